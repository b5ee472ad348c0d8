"""A coarser spacing for small budgets, where all that is learned is large.

A patch of a fixed number of voxels then sees more of the image, and a step more of the data.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping

from pipeline.planning.axes import PlanAxes, brought
from pipeline.planning.fingerprint import CaseFacts, Fingerprint
from pipeline.planning.nnunet import NnunetPlan

LEAST = 20
"""Voxels across which the smallest class still is, along the finest axis."""

MOST = 2.0
"""Largest factor."""

WORTH = 1.3
"""Smallest factor that is taken."""

FILLED = 0.3
"""Share of its bounding box that a class must fill; a ball fills half, a tube or a shell less."""


def factor(fingerprint: Fingerprint, rules: NnunetPlan, axes: PlanAxes) -> float:
    """How much coarser the fine axes may be.

    Args:
        fingerprint: of a data set of labels.
        rules: nnU-Net's, for the spacing.
        axes: those of the plan.

    Returns:
        1 where a class is small, thin, in pieces, or nothing is known; at most 2.
    """
    if any(c.spacing is None for c in fingerprint.cases) or fingerprint.task != "labels":
        return 1.0
    found = _across(fingerprint, rules, axes)
    if not found:
        return 1.0
    wanted = min(MOST, min(found.values()) / LEAST)
    return wanted if wanted >= WORTH else 1.0


def _across(fingerprint: Fingerprint, rules: NnunetPlan, axes: PlanAxes) -> Mapping[int, float]:
    """Median voxels across each class at the target spacing, on fine axes; 0 of thin ones."""
    values = {v for c in fingerprint.cases for v in c.extents if v != fingerprint.ignore_label}
    found = {}
    for value in values:
        cases = [c for c in fingerprint.cases if value in c.extents]
        whole = statistics.median(c.components[value] for c in cases) == 1
        filled = statistics.median(c.voxels[value] / math.prod(c.extents[value]) for c in cases)
        solid = whole and filled >= FILLED
        sizes = [_least(c, value, rules, axes) for c in cases]
        found[value] = statistics.median(sizes) if solid else 0.0
    return found


def _least(case: CaseFacts, value: int, rules: NnunetPlan, axes: PlanAxes) -> float:
    """Voxels across a class of one case at the target spacing, along its shortest fine axis."""
    order = axes.of(case)
    assert case.spacing is not None
    sizes = brought(case.extents[value], order)
    spacing = brought(case.spacing, order)
    return min(
        n * s / target
        for n, s, target, fine in zip(sizes, spacing, rules.spacing, fine_axes(rules), strict=True)
        if fine
    )


def fine_axes(rules: NnunetPlan) -> tuple[bool, ...]:
    """Axes whose spacing is less than twice the finest.

    Args:
        rules: nnU-Net's plan.

    Returns:
        One truth value per axis of the plan.
    """
    least = min(rules.spacing)
    return tuple(s < 2 * least for s in rules.spacing)


def coarser(rules: NnunetPlan, by: float) -> NnunetPlan:
    """nnU-Net's plan with fine axes that are coarser.

    Args:
        rules: the plan.
        by: factor.

    Returns:
        The plan with other spacing, median shape and shapes; its configurations are as they were.
    """
    fine = fine_axes(rules)
    factors = [by if f else 1.0 for f in fine]
    reason = (
        f"{rules.reasons['spacing']}; {by:.2g} times coarser, since all classes are solid and at"
        f" least {LEAST * by:.0f} voxels across"
    )
    return dataclasses.replace(
        rules,
        spacing=tuple(s * f for s, f in zip(rules.spacing, factors, strict=True)),
        median_shape=tuple(n / f for n, f in zip(rules.median_shape, factors, strict=True)),
        shapes=tuple(
            tuple(max(1, round(n / f)) for n, f in zip(shape, factors, strict=True))
            for shape in rules.shapes
        ),
        reasons={**rules.reasons, "spacing": reason},
    )
