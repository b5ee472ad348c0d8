"""One look at each file of a data set: properties, facts for planning, and what is odd."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.data import cases as case_finder
from pipeline.data import described, intensities
from pipeline.data import properties as case_properties
from pipeline.data.labels import WHITE
from pipeline.data.properties import CaseProperties, Progress
from pipeline.planning.arrangement import Arrangement
from pipeline.planning.fingerprint import CaseFacts, ChannelFacts, Fingerprint
from pipeline.planning.observing import Observed, observe
from pipeline.planning.oddities import Seen, oddities
from pipeline.records import Case, UserError

AT = (0.0, 0.5, 50.0, 99.5, 100.0)
"""Percentiles of the foreground."""

MOST_CLASSES = 2**16
"""Label values beyond this are none of a class."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at a case gave."""

    properties: CaseProperties
    observed: Observed
    seconds: float


def fingerprint_of(
    arrangement: Arrangement, progress: Progress | None = None, workers: int | None = None
) -> Fingerprint:
    """Look at every file of a data set, once.

    No more cases than threads are in memory. Files that cannot be used are oddities.

    Args:
        arrangement: where the files lie (:func:`pipeline.planning.arrangement.arrange`).
        progress: called after each case.
        workers: threads; None: one per core, at most 16.

    Returns:
        The facts.

    Raises:
        UserError: where there is no case, or none can be read.
    """
    settings, root = arrangement.config, arrangement.root
    found = case_finder.find(settings.data, settings.roles, root)
    if not found.train:
        lines = "".join(f"\n  {fault}" for fault in found.faults[:SHOWN])
        raise UserError(f"{root} holds no case to train on.{lines}")
    looks = case_properties.parallel(
        lambda case: _look_at(case, settings), found.train, progress, workers
    )
    _require_one(root, looks)
    settings, observed = _with_classes(settings, root, looks)
    properties = [look.properties for look in looks]
    facts = tuple(
        _facts(look, seen) for look, seen in zip(looks, observed, strict=True) if seen.box
    )
    regions = described.regions(root) if found.layout == "nnunet" else None
    fingerprint = Fingerprint(
        root=str(root),
        layout=found.layout,
        folders=_folders(settings, found.layout),
        dims=settings.data.dims,
        task=settings.task,
        cases=facts,
        channels=_channels(observed, described.channel_names(settings.data, root)),
        class_names={} if regions else described.label_names(settings.data, root),
        regions=None if regions is None else regions.members,
        regions_class_order=None if regions is None else regions.order,
        ignore_label=settings.data.ignore_label,
        classes=settings.data.classes,
        binarise=settings.data.binarise,
        test=settings.data.test if found.layout == "folders" else "",
        tests=len(found.test),
        groups={case.id: case.group for case in found.train if case.group is not None},
    )
    seen = Seen(
        root=root,
        cases=found.train,
        properties=properties,
        observed=observed,
        settings=settings,
        faults=found.faults,
        fingerprint=fingerprint,
    )
    return dataclasses.replace(fingerprint, oddities=oddities(seen))


SHOWN = 5
"""Files that an error names."""


def _look_at(case: Case, settings: Config) -> _Look:
    """Decode the files of a case once."""
    begin, kept = time.thread_time(), list[Observed]()
    role = first_labels(settings)
    properties = case_properties.examine_one(
        case,
        settings,
        lambda arrays: kept.append(observe(arrays, role, settings.data.ignore_label)),
    )
    return _Look(properties, kept[0], time.thread_time() - begin)


def first_labels(settings: Config) -> str | None:
    """The target whose classes planning looks at.

    Args:
        settings: a config.

    Returns:
        Name of the first target of labels; None where there is none.
    """
    return next((name for name, kind in settings.targets.items() if kind == "labels"), None)


def _require_one(root: Path, looks: Sequence[_Look]) -> None:
    """Refuse a data set of which no case can be read."""
    if any(look.observed.box for look in looks):
        return
    problems = [p for look in looks for p in look.properties.problems]
    lines = "".join(f"\n  {path}: {what}. {advice}." for path, what, advice in problems[:SHOWN])
    more = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise UserError(f"{root}: none of its {len(looks)} cases can be read.{lines}{more}")


def _with_classes(
    settings: Config, root: Path, looks: Sequence[_Look]
) -> tuple[Config, list[Observed]]:
    """The config with the number of classes, and facts in which white is class 1.

    The number is that of ``dataset.json``; without one it follows from the values.
    """
    observed = [look.observed for look in looks]
    if first_labels(settings) is None:
        return settings, observed
    ignored = settings.data.ignore_label
    classes = _described_classes(root) or 1 + max(
        (_largest(o.voxels, ignored) for o in observed), default=1
    )
    classes = min(max(2, classes), MOST_CLASSES)
    data = dataclasses.replace(settings.data, classes=classes)
    whitened = [_white_as_one(o, ignored) for o in observed] if classes == 2 else observed
    return dataclasses.replace(settings, data=data), whitened


def _described_classes(root: Path) -> int:
    """Classes that ``dataset.json`` names, background included; 0 where it names none."""
    regions = described.regions(root)
    names = case_finder.class_names(root)
    largest = max([*names, 0 if regions is None else regions.largest])
    return largest + 1 if largest else 0


def _white(voxels: Mapping[int, int], ignored: int | None) -> int | None:
    """The value that stands for class 1 in a black and white picture."""
    values = {v for v in voxels if v not in (0, ignored)}
    return values.pop() if len(values) == 1 and next(iter(values)) in WHITE else None


def _largest(voxels: Mapping[int, int], ignored: int | None) -> int:
    """The largest class of a case."""
    if _white(voxels, ignored) is not None:
        return 1
    return max((v for v in voxels if v != ignored), default=0)


def _white_as_one(seen: Observed, ignored: int | None) -> Observed:
    """Facts in which a white mask is class 1."""
    white = _white(seen.voxels, ignored)
    if white is None:
        return seen

    def renamed(table: Mapping) -> dict:
        return {1 if value == white else value: entry for value, entry in table.items()}

    names = ("voxels", "components", "centres", "extents")
    return dataclasses.replace(seen, **{n: renamed(getattr(seen, n)) for n in names})


def _facts(look: _Look, seen: Observed) -> CaseFacts:
    """The record of one case that could be read."""
    properties = look.properties
    grid = properties.grids["image"]
    return CaseFacts(
        id=properties.id,
        shape=tuple(properties.shapes["image"][1:]),
        box=seen.box,
        dtype=properties.dtypes["image"],
        spacing=None if grid["spacing"] is None else tuple(grid["spacing"]),
        codes=grid["codes"],
        family=grid["family"],
        voxels=seen.voxels,
        components=seen.components,
        centres=seen.centres,
        extents=seen.extents,
        values=seen.values,
        seconds=round(look.seconds, 4),
    )


def _channels(observed: Sequence[Observed], names: Sequence[str]) -> tuple[ChannelFacts, ...]:
    """Intensities of each channel that all cases have."""
    chosen = [o for o in observed if o.foreground] or [o for o in observed if o.intensities]
    number = min((len(o.intensities) for o in chosen), default=0)
    found = []
    for n in range(number):
        counts = [o.intensities[n] for o in chosen if o.intensities[n].count]
        if not counts:
            return ()
        (minimum, low, median, high, maximum), mean, std = intensities.pooled(counts, AT)
        means = [c.mean for c in counts]
        spread = statistics.pstdev(means) / std if std > 0 else 0.0
        found.append(
            ChannelFacts(
                name=names[n] if n < len(names) else None,
                minimum=minimum,
                maximum=maximum,
                mean=mean,
                std=std,
                median=median,
                low=low,
                high=high,
                spread=spread,
            )
        )
    return tuple(found)


def _folders(settings: Config, layout: str) -> dict[str, str]:
    """Folder by role, of the layout ``folders``."""
    return dict(settings.data.folders) if layout == "folders" else {}
