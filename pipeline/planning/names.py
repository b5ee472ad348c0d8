"""What names say: groups in ids, unknown channels, objects in place of classes."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data import patterns
from pipeline.data.listing import natural
from pipeline.planning.fingerprint import CaseFacts, Fingerprint

# --- groups ---------------------------------------------------------------------------------------

GROUPINGS = (
    r"_(\d+)[LR]$",
    r"^(.+)[_-](?:[LR]|[Ll]eft|[Rr]ight|OD|OS)$",
    r"^([^_]+)_",
    r"^([^-]+)-",
    r"^(.+)_[^_]+$",
    r"^(.+)-[^-]+$",
    r"^([^_]+_[^_]+)_",
    r"^(.*\d)[A-Za-z]$",
    r"^(.*[A-Za-z])\d+$",
)
"""Expressions that are tried on ids; of two that group alike the first is kept."""

SHOWN = 3
"""Ids of an example."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupProposal:
    """A regular expression that may find the group (patient, animal, slide) in ids."""

    pattern: str
    """For ``data.folds.pattern``."""
    groups: int
    """Number of groups."""
    text: str
    """What it finds, with an example."""


def group_proposals(ids: Sequence[str]) -> tuple[GroupProposal, ...]:
    """Expressions that divide ids into groups of which some hold several.

    Args:
        ids: ids of cases.

    Returns:
        Proposals, most groups first; none for plain counters.

    Example:
        >>> for found in group_proposals(["rat1_a1", "rat3_a9", "rat3_a10"]):
        ...     print(found.pattern, "|", found.text)
        ^([^_]+)_ | 2 groups in 3 names, e.g. rat3: rat3_a9, rat3_a10
        >>> group_proposals(["case_001", "case_002", "case_010"])
        ()
    """
    found, known = list[GroupProposal](), set[frozenset[frozenset[str]]]()
    for pattern in GROUPINGS:
        groups = _groups(ids, [m and m[1] for m in map(re.compile(pattern).search, ids)])
        parts = frozenset(map(frozenset, groups.values()))
        if not 2 <= len(groups) < len(ids) or parts in known:
            continue
        if _groups(ids, patterns.first_groups(pattern, ids)) != groups:
            continue
        known.add(parts)
        name, most = max(groups.items(), key=lambda item: len(item[1]))
        text = (
            f"{len(groups)} groups in {len(ids)} names, e.g. {name}: {', '.join(most[:SHOWN])}"
            f"{', ...' if len(most) > SHOWN else ''}"
        )
        found.append(GroupProposal(pattern=pattern, groups=len(groups), text=text))
    return tuple(sorted(found, key=lambda proposal: -proposal.groups))


def _groups(ids: Sequence[str], groups: Sequence[str | None]) -> dict[str, list[str]]:
    """Ids by group, in natural order; empty where an id has none."""
    if not all(groups):
        return {}
    found: dict[str, list[str]] = defaultdict(list)
    for group, name in zip(groups, ids, strict=True):
        found[str(group)].append(name)
    return {group: sorted(names, key=natural) for group, names in found.items()}


# --- channels -------------------------------------------------------------------------------------

CHANNELS = ("CT", "zscore", "rescale_to_0_1", "rgb_to_0_1", "noNorm")
"""Names that choose a normalisation in nnU-Net, whatever their case; all others are z-scored."""

LIKE_CT = frozenset({"ct", "cta", "cect", "ncct", "cbct", "hu", "houndsfield", "hounsfield"})
"""Words of names that may mean CT."""


def unknown_channels(names: Sequence[str]) -> tuple[str, ...]:
    """Channels whose names mean nothing to nnU-Net.

    Args:
        names: of the channels, in their order.

    Returns:
        A text for each unknown name.

    Example:
        >>> unknown_channels(["CT", "zScore"])
        ()
        >>> unknown_channels(["CT", "Ct-scan"])[0].split(". ")[1]
        'If it holds Hounsfield units, call it CT'
    """
    found = []
    for n, name in enumerate(names):
        if name.casefold() in {known.casefold() for known in CHANNELS}:
            continue
        near = _near(name)
        text = (
            f"channel {n} is called {name!r}, which means nothing: it is z-scored like any name but"
            f" {', '.join(CHANNELS[:-1])} and {CHANNELS[-1]}"
        )
        if near == "CT":
            text += ". If it holds Hounsfield units, call it CT"
        elif near:
            text += f". If {near} is meant, write it so"
        found.append(text)
    return tuple(found)


def _near(name: str) -> str:
    """The known name that a name may mean; empty where it is like none."""
    plain = re.sub(r"[\W_]+", "", name).casefold()
    for known in CHANNELS[1:]:
        if plain == re.sub(r"[\W_]+", "", known).casefold():
            return known
    return "CT" if LIKE_CT & set(re.split(r"[\W_\d]+", name.casefold())) else ""


# --- objects --------------------------------------------------------------------------------------

MANY = 8
"""Fewest label values that may be objects."""

MOSTLY = 0.8
"""Share of values, or of cases, from which on a property holds."""

FEW_CASES = 0.5
"""Share of cases in which an object's number occurs at most, where numbers have gaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """Labels whose values number objects, and are no classes."""

    values: int
    """Different values in the data set."""
    least: int
    """Fewest objects of a case."""
    most: int
    """Most objects of a case."""
    text: str
    """What speaks for it."""


def instances(fingerprint: Fingerprint) -> Instances | None:
    """Whether label values are objects (cells, nuclei) and no classes.

    Objects are many, each in one piece, most without a name, and not the same in every case: they
    are numbered 1 to n with another n in each image, or most numbers occur in few cases.

    Args:
        fingerprint: of the data set.

    Returns:
        What was found; None where values are classes.
    """
    cases = [c for c in fingerprint.cases if c.values]
    values = {v for c in cases for v in c.components}
    numbers = [c.values for c in cases]
    unnamed = values - set(fingerprint.class_names)
    if len(values) < MANY or len(unnamed) < MOSTLY * len(values) or fingerprint.regions:
        return None
    if not _in_one_piece(cases) or not _differ(cases, values):
        return None
    least, most = min(numbers), max(numbers)
    span = f"{least}" if least == most else f"{least} to {most}"
    text = (
        f"labels hold {span} values in an image, each in one piece and without a name: they look"
        " like numbered objects (cells, nuclei), not classes"
    )
    return Instances(values=max(len(values), most), least=least, most=most, text=text)


def _in_one_piece(cases: Sequence[CaseFacts]) -> bool:
    """Whether most values of most cases are one component."""
    pieces = [n for c in cases for n in c.components.values()]
    return sum(n == 1 for n in pieces) >= MOSTLY * len(pieces)


def _differ(cases: Sequence[CaseFacts], values: set[int]) -> bool:
    """Whether values are numbers that each case gives anew."""
    if len(cases) == 1:
        return len(values) > 2 * MANY
    counted = [set(c.components) == set(range(1, len(c.components) + 1)) for c in cases]
    if sum(counted) >= MOSTLY * len(cases):
        return len({c.values for c in cases}) > max(1, len(cases) // 4)
    seen = Counter(v for c in cases for v in c.components)
    return statistics.median(seen.values()) <= FEW_CASES * len(cases)
