"""Classes that are the left and the right of something, by their names and by where they lie."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.planning.fingerprint import CaseFacts, Fingerprint, Oddity

LEFT = ("left", "l", "lh", "lt", "links", "linke", "linker", "linkes", "gauche", "sinistra",
        "sinistro", "sinister", "izquierda", "izquierdo", "esquerda", "esquerdo")  # fmt: skip
RIGHT = ("right", "r", "rh", "rt", "rechts", "rechte", "rechter", "rechtes", "droite", "destra",
         "destro", "dexter", "derecha", "derecho", "direita", "direito")  # fmt: skip
"""Words for a side; entries at the same place belong together."""

SIDES = {**dict.fromkeys(LEFT, "left"), **dict.fromkeys((*RIGHT, "droit"), "right")}
PREFIXES = ("left", "right", "links", "rechts", "gauche", "droite")
"""Words that may be written together with the rest of a name: ``leftlung``."""

WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+")

ALIKE = 1.6
"""Largest ratio of volumes and extents of two sides."""

ASIDE = 0.4
"""Largest distance along other axes, as a share of that between the sides."""

APART = 0.05
"""Least distance of two sides, as a share of the image."""

USUAL = 0.9
"""Share of cases in which two classes must lie like sides."""

FEWEST = 3
"""Cases from which on places say something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SidePair:
    """Two classes that are left and right of each other."""

    left: int
    """Label value; by position alone and without codes: that with the smaller index."""
    right: int
    axis: str | int | None
    """``LR`` where files have axis codes, else the axis of the array; None: names alone say it."""
    by: str
    """``name``, ``position`` or ``both``."""
    text: str
    """Evidence."""
    odd: tuple[str, ...] = ()
    """Ids of cases in which the two lie the other way round than names or other cases say."""


def sides(fingerprint: Fingerprint) -> tuple[SidePair, ...]:
    """Find classes that are the left and the right of something, by name and by position.

    Args:
        fingerprint: of a data set of labels.

    Returns:
        The pairs, by label value.
    """
    named = name_pairs(fingerprint.class_names)
    placed = dict(_placed_pairs(fingerprint))
    found = [_named_pair(fingerprint, pair, placed) for pair in named]
    taken = {value for pair in named for value in pair}
    for pair, axis in placed.items():
        if not taken & set(pair):
            first = fingerprint.class_names.get(pair[0], f"class {pair[0]}")
            other = fingerprint.class_names.get(pair[1], f"class {pair[1]}")
            where = "across the midline" if axis == "LR" else f"along axis {axis}"
            text = f"{first} and {other} are of one size and lie like mirror images {where}"
            found.append(SidePair(left=pair[0], right=pair[1], axis=axis, by="position", text=text))
    return tuple(sorted(found, key=lambda pair: pair.left))


def name_pairs(names: Mapping[int, str]) -> list[tuple[int, int]]:
    """Pairs of classes whose names differ in a word for left and right alone.

    Args:
        names: of classes, by label value.

    Returns:
        Values of left and right.

    Example:
        >>> name_pairs({1: "LeftParotid", 2: "RightParotid", 3: "bright", 4: "Lung_R", 5: "L lung"})
        [(1, 2), (5, 4)]
    """
    table: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for value, name in names.items():
        for rest, side in _without_side(name):
            table[rest].setdefault(side, value)
    pairs = [(t["left"], t["right"]) for t in table.values() if len(t) == 2]
    return list(dict.fromkeys(pairs))


def _without_side(name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The sorted words of a name without a side, and the side; once for each word that is one."""
    words = [w.casefold() for w in WORDS.findall(name)]
    for n, word in enumerate(words):
        others = [*words[:n], *words[n + 1 :]]
        if word in SIDES:
            yield tuple(sorted(others)), SIDES[word]
        for side in PREFIXES:
            if word != side and word.startswith(side):
                yield tuple(sorted([*others, word.removeprefix(side)])), SIDES[side]
            elif word != side and word.endswith(side):
                yield tuple(sorted([*others, word.removesuffix(side)])), SIDES[side]


def _named_pair(
    fingerprint: Fingerprint, pair: tuple[int, int], placed: Mapping[tuple[int, int], str | int]
) -> SidePair:
    """A pair by name, with what its places say."""
    axis = placed.get(pair, placed.get((pair[1], pair[0])))
    names = [fingerprint.class_names[value] for value in pair]
    text = f"{names[0]} and {names[1]} are called left and right"
    if axis is not None:
        text += ", and lie like mirror images"
        text += " across the midline" if axis == "LR" else f" along axis {axis}"
    elif any(_lr_axis(c) is not None for c in fingerprint.cases):
        axis = "LR"
    steps = [] if axis is None else _steps(fingerprint.cases, pair, axis)
    wrong = [name for name, step in steps if step[0] < 0]
    if axis != "LR" and len(wrong) > len(steps) / 2:
        wrong = [name for name, step in steps if step[0] > 0]
    by = "both" if {pair, (pair[1], pair[0])} & set(placed) else "name"
    return SidePair(left=pair[0], right=pair[1], axis=axis, by=by, text=text, odd=tuple(wrong))


def _lr_axis(case: CaseFacts) -> int | None:
    """The array axis that runs between left and right."""
    if case.codes is None:
        return None
    return next((n for n, code in enumerate(case.codes) if code in "LR"), None)


def _steps(
    cases: Sequence[CaseFacts], pair: tuple[int, int], axis: str | int
) -> list[tuple[str, tuple[float, ...]]]:
    """By id the way from the first class to the second in voxels (mm where known).

    Along the axis first (towards the right where files say so), then along the others.
    """
    found = []
    for case in cases:
        along = _lr_axis(case) if axis == "LR" else axis
        if not isinstance(along, int) or along >= len(case.shape):
            continue
        if not all(value in case.centres for value in pair):
            continue
        unit = case.spacing or (1.0,) * len(case.shape)
        one, two = (case.centres[value] for value in pair)
        way = [(b - a) * n * u for a, b, n, u in zip(one, two, case.shape, unit, strict=True)]
        sign = -1.0 if axis == "LR" and case.codes is not None and case.codes[along] == "L" else 1.0
        found.append((case.id, (sign * way[along], *way[:along], *way[along + 1 :])))
    return found


def _placed_pairs(fingerprint: Fingerprint) -> Iterator[tuple[tuple[int, int], str | int]]:
    """Pairs of classes of one size that lie like mirror images, with the axis."""
    cases = [c for c in fingerprint.cases if len(c.centres) > 1]
    if len(cases) < FEWEST or fingerprint.dims != len(cases[0].shape):
        return
    coded = sum(_lr_axis(c) is not None for c in cases) >= USUAL * len(cases)
    axes: list[str | int] = ["LR"] if coded else list(range(fingerprint.dims))
    count = Counter(v for c in cases for v in c.centres)
    values = sorted(v for v, n in count.items() if n >= max(FEWEST, len(cases) / 2))
    if len(values) > 256:
        return
    taken = set[int]()
    alike = [(a, b) for n, a in enumerate(values) for b in values[n + 1 :] if _alike(cases, a, b)]
    scored = [
        (score, pair, axis)
        for pair in alike
        for axis in axes
        if (score := _mirrored(cases, pair, axis)) is not None
    ]
    for (_, forward), pair, axis in sorted(scored, key=lambda entry: entry[0]):
        if not taken & set(pair):
            taken |= set(pair)
            yield (pair if forward else (pair[1], pair[0])), axis


def _alike(cases: Sequence[CaseFacts], one: int, two: int) -> bool:
    """Whether two classes have about the same volume and extents in the median case."""
    both = [c for c in cases if one in c.extents and two in c.extents]
    if len(both) < max(FEWEST, len(cases) / 2):
        return False
    ratios = [statistics.median(c.voxels[one] / c.voxels[two] for c in both)]
    ratios += [
        statistics.median(c.extents[one][axis] / c.extents[two][axis] for c in both)
        for axis in range(min(len(c.shape) for c in both))
    ]
    return all(1 / ALIKE <= r <= ALIKE for r in ratios)


def _mirrored(
    cases: Sequence[CaseFacts], pair: tuple[int, int], axis: str | int
) -> tuple[float, bool] | None:
    """How far two classes are from mirror images, and whether the first is the left one.

    None where they are none in enough cases.
    """
    known = dict(_steps(cases, pair, axis))
    by_id = {c.id: c for c in cases}
    right = [name for name, step in known.items() if step[0] > 0]
    forward = 2 * len(right) >= len(known)
    good = [
        name
        for name, step in known.items()
        if (step[0] > 0) == forward
        and all(abs(s) <= ASIDE * abs(step[0]) for s in step[1:])
        and _on_both_sides(by_id[name], pair, axis)
    ]
    if len(known) < FEWEST or len(good) < USUAL * len(known):
        return None
    aside = [max(map(abs, known[n][1:]), default=0.0) / abs(known[n][0]) for n in good]
    return statistics.median(aside), forward


def _on_both_sides(case: CaseFacts, pair: tuple[int, int], axis: str | int) -> bool:
    """Whether two classes lie on both sides of the middle of the image, and apart."""
    along = axis if isinstance(axis, int) else _lr_axis(case) or 0
    one, two = sorted(case.centres[value][along] for value in pair)
    return one < 0.5 < two and two - one >= APART


def swapped(pairs: Sequence[SidePair], fingerprint: Fingerprint) -> tuple[Oddity, ...]:
    """Cases in which a left class lies right of its partner.

    Args:
        pairs: of :func:`sides`.
        fingerprint: of the same data set.

    Returns:
        One entry for each pair and case; one for each pair that lies so in most cases.
    """
    found = []
    for pair in pairs:
        names = [
            fingerprint.class_names.get(value, f"class {value}")
            for value in (pair.left, pair.right)
        ]
        both = sum({pair.left, pair.right} <= set(c.centres) for c in fingerprint.cases)
        if pair.axis == "LR" and 2 * len(pair.odd) > both:
            text = (
                f"{names[0]} lies to the right of {names[1]} in {len(pair.odd)} of {both} cases."
                " Either the two are called the wrong way round, or the headers are flipped"
            )
            found.append(Oddity(case="", text=text))
            continue
        than = "" if pair.axis == "LR" else ", unlike in most cases"
        for case in pair.odd:
            text = (
                f"{names[0]} lies on the right side of {names[1]}{than}. Check whether the labels"
                " are swapped or the header is flipped"
            )
            found.append(Oddity(case=case, text=text))
    return tuple(found)
