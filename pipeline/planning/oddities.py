"""What a person should know of a data set before a network is trained on it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config, Data
from pipeline.data import checks, world
from pipeline.data.properties import CaseProperties
from pipeline.planning.fingerprint import CaseFacts, Fingerprint, Oddity
from pipeline.planning.names import instances
from pipeline.planning.observing import Observed
from pipeline.planning.sides import sides, swapped
from pipeline.records import Case, Fault

FAR = 5.0
"""Median absolute deviations from the median beyond which a case is far from the rest."""

LEAST = 5
"""Cases from which on a median says what is usual."""

SIZE = math.log(1.5)
"""Least difference of the logarithm of a size that is worth a line."""

SHIFT = 1.0
"""Least difference of a mean intensity, in standard deviations of the median case."""

NAMED = 5
"""Classes or cases that a line names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that was found in a data set."""

    root: Path
    cases: Sequence[Case]
    properties: Sequence[CaseProperties]
    observed: Sequence[Observed]
    """Three sequences in the same order."""
    settings: Config
    faults: Sequence[Fault]
    """Of how the files lie."""
    fingerprint: Fingerprint
    """Still without oddities."""

    @property
    def facts(self) -> tuple[CaseFacts, ...]:
        """Of the cases whose image can be read."""
        return self.fingerprint.cases


def oddities(seen: Seen) -> tuple[Oddity, ...]:
    """Everything odd: what training refuses first, then what it warns of.

    Args:
        seen: what was found.

    Returns:
        One entry for each case and finding; an empty case means the data set.
    """
    objects = instances(seen.fingerprint)
    found = [*_faults(seen)]
    if objects is not None:
        found.append(Oddity(case="", text=f"{objects.text}. {OBJECTS}"))
    elif "labels" in seen.settings.targets.values():
        found += [*_gaps(seen), *_absent_classes(seen), *_single_values(seen)]
        found += swapped(sides(seen.fingerprint), seen.fingerprint)
    found += [*_unlike_files(seen), *_far_sizes(seen), *_far_intensities(seen)]
    return tuple(sorted(found, key=lambda oddity: oddity.severity != "error"))


OBJECTS = (
    "Objects cannot be trained as such yet: save masks of two classes (or of inside, border and"
    " outside), and number the components of the answers"
)
"""What can be done about numbered objects."""


def _faults(seen: Seen) -> Iterator[Oddity]:
    """What the checks of training find.

    Mixed orientations and spacings are not among it where all files say theirs: a plan brings all
    volumes to one.
    """
    owners = {
        path: case.id for case in seen.cases for path in (*case.image, *case.targets.values())
    }
    faults = [
        *seen.faults,
        *checks.faults(seen.properties, seen.cases, seen.settings),
        *world.faults(seen.properties, seen.cases, seen.root, data=_planned(seen)),
    ]
    for fault in faults:
        yield Oddity(
            case=owners.get(fault.path, ""),
            text=f"{fault.problem}. {fault.suggestion}",
            path=str(fault.path),
            severity=fault.severity,
        )


def _planned(seen: Seen) -> Data:
    """Section ``data`` with the space that a plan brings the cases to."""
    data = seen.settings.data
    coded = all(f.codes is not None and "?" not in f.codes for f in seen.facts)
    spaced = all(f.spacing is not None for f in seen.facts)
    return dataclasses.replace(
        data,
        orientation="RAS" if coded and data.dims == 3 else None,
        spacing=(1.0,) * data.dims if spaced else None,
    )


def _called(seen: Seen, value: int) -> str:
    """A class in words: ``class 5 (Esophagus)``."""
    name = seen.fingerprint.class_names.get(value)
    return f"class {value}" + (f" ({name})" if name else "")


def _absent_classes(seen: Seen) -> Iterator[Oddity]:
    """Classes that some cases lack."""
    labelled = [f for f in seen.facts if f.voxels]
    ignored = seen.settings.data.ignore_label
    wanted = sorted(
        {v for f in labelled for v in f.voxels if v > 0 and v != ignored}
        | set(seen.fingerprint.class_names)
    )
    if not labelled:
        return
    have = Counter(v for f in labelled for v in f.voxels)
    rare = sorted((v for v in wanted if have[v] < len(labelled)), key=lambda v: have[v])
    if not rare:
        return
    shown = ", ".join(f"{_called(seen, v)} is in {have[v]}" for v in rare[:NAMED])
    more = (
        f", and {len(rare) - NAMED} more classes are missing in some" if len(rare) > NAMED else ""
    )
    advice = "Check that this is meant"
    if any(have[v] == 0 for v in rare):
        advice += ": what no case holds cannot be learned"
    yield Oddity(case="", text=f"{shown} of {len(labelled)} cases{more}. {advice}")


IGNORED = 255
"""Value that many data sets give to voxels that do not count."""


def _gaps(seen: Seen) -> Iterator[Oddity]:
    """Label values that are no consecutive numbers, where nothing names them."""
    values = sorted(
        {v for f in seen.facts for v in f.voxels if v >= 0} - {seen.fingerprint.ignore_label}
    )
    if not values or seen.fingerprint.class_names or seen.fingerprint.regions:
        return
    missing = values[-1] + 1 - len(values)
    if missing <= len(values):
        return
    shown = ", ".join(map(str, values[:NAMED])) + (", ..." if len(values) > NAMED else "")
    text = (
        f"labels hold {shown}{f' and {values[-1]}' if len(values) > NAMED else ''}: classes are"
        f" counted from 0 to {values[-1]}, and {missing} of them occur nowhere. Number the classes"
        " 0, 1, 2, ..."
    )
    if values[-1] == IGNORED:
        text += f"; if {IGNORED} marks voxels that do not count, set data.ignore_label: {IGNORED}"
    yield Oddity(case="", text=text)


def _single_values(seen: Seen) -> Iterator[Oddity]:
    """Labels that are one class everywhere."""
    ignored = seen.settings.data.ignore_label
    for facts in seen.facts:
        if len(facts.voxels) == 1 and next(iter(facts.voxels)) not in (0, ignored):
            value = next(iter(facts.voxels))
            text = f"is {_called(seen, value)} in every voxel. Check that this is meant"
            yield Oddity(case=facts.id, text=text)


def _unlike_files(seen: Seen) -> Iterator[Oddity]:
    """Number types that differ, and spacings that some files lack."""
    types = _by(seen.facts, lambda f: f.dtype)
    if len(types) > 1:
        text = (
            f"images hold different number types: {_counted(types)}. Check that equal numbers mean"
            " equal brightness; a normalisation of each image by itself does not care"
        )
        yield Oddity(case="", text=text)
    spaced = _by(seen.facts, lambda f: "with" if f.spacing else "without")
    if len(spaced) > 1:
        text = (
            f"{len(spaced['without'])} of {len(seen.facts)} images do not say the size of their"
            f" voxels: {_some(spaced['without'])}. Save them with their spacing, or nothing can be"
            " resampled"
        )
        yield Oddity(case="", text=text)


def _by(facts: Sequence[CaseFacts], key: Callable[[CaseFacts], str]) -> dict[str, list[str]]:
    """Ids by a property."""
    found: dict[str, list[str]] = defaultdict(list)
    for entry in facts:
        found[key(entry)].append(entry.id)
    return found


def _counted(groups: Mapping[str, Sequence[str]]) -> str:
    """``39 uint8, 1 uint16 (case_7)``."""
    usual = max(groups, key=lambda name: len(groups[name]))
    return ", ".join(
        f"{len(ids)} {name}" + ("" if name == usual else f" ({_some(ids)})")
        for name, ids in sorted(groups.items(), key=lambda item: -len(item[1]))
    )


def _some(ids: Sequence[str]) -> str:
    """The first ids."""
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")


def far(values: Sequence[float], least: float) -> list[int]:
    """Which values lie far from the others.

    Args:
        values: one for each case.
        least: differences up to this are never far.

    Returns:
        Positions of those whose difference from the median is above 5 median absolute deviations
        and above ``least``; none of fewer than five values.

    Example:
        >>> far([10.0, 11.0, 9.0, 10.0, 10.5, 30.0], 1.0)
        [5]
    """
    if len(values) < LEAST:
        return []
    middle = statistics.median(values)
    spread = statistics.median(abs(v - middle) for v in values)
    return [n for n, v in enumerate(values) if abs(v - middle) > max(FAR * spread, least)]


def _far_sizes(seen: Seen) -> Iterator[Oddity]:
    """Cases of unusual size."""
    sizes = [math.log(math.prod(f.shape)) for f in seen.facts]
    usual = "x".join(
        f"{statistics.median(axis):g}" for axis in zip(*(f.shape for f in seen.facts), strict=True)
    )
    for n in far(sizes, SIZE):
        facts = seen.facts[n]
        shape = "x".join(map(str, facts.shape))
        text = f"has {shape} voxels, the median is {usual}. Check that this is meant"
        yield Oddity(case=facts.id, text=text)


def _far_intensities(seen: Seen) -> Iterator[Oddity]:
    """Cases whose mean intensity in the foreground is unusual."""
    channels = min((len(o.intensities) for o in seen.observed if o.intensities), default=0)
    for channel in range(channels):
        known = [
            (case.id, o.intensities[channel])
            for case, o in zip(seen.cases, seen.observed, strict=True)
            if o.intensities and o.intensities[channel].count
        ]
        within = [math.sqrt(i.squares / i.count) for _, i in known]
        means = [i.mean for _, i in known]
        for n in far(means, SHIFT * statistics.median(within or [0.0])):
            text = (
                f"has a mean intensity of {means[n]:.4g} in the foreground of channel {channel},"
                f" the median of all cases is {statistics.median(means):.4g}. Check its units and"
                " window"
            )
            yield Oddity(case=known[n][0], text=text)
