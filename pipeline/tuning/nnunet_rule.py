"""nnU-Net's rule for post-processing: the largest component, of the foreground and by class.

It is a baseline, made like any choice here: on the other parts of the cases, scored on the one left
out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline.postprocess.objects import Object
from pipeline.tuning.search import Candidate, part, sides

Dices = Callable[[Sequence[Candidate]], Mapping[tuple[str, str], Sequence[float]]]
"""Candidates -> Dice of each object, in order, by (case, key of the candidate)."""


def nnunet_rule(
    base: Candidate, objects: Sequence[Object], parts: Mapping[str, Sequence[str]], dice: Dices
) -> dict[str, Candidate]:
    """Choose largest components by nnU-Net's rule, with each part held out in turn and on all.

    The largest component of the whole foreground is kept where the mean Dice rises and that of no
    class falls; then for each class by itself where its own Dice rises. Means are over the cases in
    which the class is there or was predicted.

    Args:
        base: the answer without post-processing.
        objects: values of each class or region.
        parts: case ids by the part's name.
        dice: computes Dice.

    Returns:
        For each part the choice made on all other parts only, and under ``ALL`` that on all cases.

    Source:
        Isensee et al., Nature Methods 2021; the rule as nnU-Net 2 has it.
    """
    union = _largest(base, "foreground") if len(objects) > 1 else base
    found = dict(dice([base, union]))
    cases = sides(parts)
    sources = {
        name: union if _all_gain(*(_means(found, ids, c) for c in (base, union))) else base
        for name, ids in cases.items()
    }
    alone = {
        (source.key, values): _largest(source, [_plain(values)])
        for source in {s.key: s for s in sources.values()}.values()
        for values in objects
    }
    found |= dice(list(alone.values()))
    chosen: dict[str, Candidate] = {}
    for name, source in sources.items():
        before = _means(found, cases[name], source)
        kept = [
            values
            for n, values in enumerate(objects)
            if _means(found, cases[name], alone[source.key, values])[n] > before[n]
        ]
        chosen[name] = _with_objects(source, kept)
    return chosen


def _plain(values: Object) -> int | list[int]:
    return values[0] if len(values) == 1 else list(values)


def _largest(source: Candidate, classes: str | list[int | list[int]]) -> Candidate:
    options = {} if classes == "foreground" else {"classes": classes}
    step = part("largest_component", **options)
    return dataclasses.replace(source, steps=(*source.steps, step))


def _with_objects(source: Candidate, objects: Sequence[Object]) -> Candidate:
    """The source with the largest components of some objects; regions overlap, a step for each."""
    if all(len(values) == 1 for values in objects):
        return _largest(source, [v for (v,) in objects]) if objects else source
    for values in objects:
        source = _largest(source, [_plain(values)])
    return source


def _means(
    found: Mapping[tuple[str, str], Sequence[float]], cases: Sequence[str], candidate: Candidate
) -> np.ndarray:
    """Mean Dice of each object over the cases that have one; NaN where none has."""
    rows = np.array([found[case, candidate.key] for case in cases], float)
    there = np.isfinite(rows)
    sums, counts = np.where(there, rows, 0).sum(0), there.sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _all_gain(before: np.ndarray, after: np.ndarray) -> bool:
    there = np.isfinite(before) & np.isfinite(after)
    before, after = before[there], after[there]
    return bool(len(after) and after.mean() > before.mean() and (after >= before).all())
