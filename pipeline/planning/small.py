"""Our own rules for CPUs and short trainings, where nnU-Net's networks take minutes a step.

Everything else is as nnU-Net has it: target spacing, order of the axes, how strides and kernels
follow from spacing and patch. What differs was found by measurement (docs/plan.md): half the
width, patches of a fixed number of voxels, and slices where a stack is thin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.planning.nnunet import Configuration, NnunetPlan
from pipeline.planning.topology import Topology, shape_text, topology

BASE, CAP = 16, 128
"""Width of the finest level, and largest width."""

MOST_LEVELS = 5
"""Levels of a network; each further one sees twice as far."""

VOXELS = {2: 256 * 256, 3: 90_000}
"""Voxels of a sample, by axes of the network."""

BATCH = {2: 4, 3: 2}
"""Samples of a batch; twice as many where patches are half as large or smaller."""

THIN = 3.0
"""Spacing across over that in the plane, and sides in the plane over slices, above which a stack is
learned slice by slice."""


def kind(plan: NnunetPlan) -> tuple[str, str]:
    """Whether volumes are learned whole or slice by slice.

    Args:
        plan: nnU-Net's.

    Returns:
        ``2d`` or ``3d_fullres``, and why.
    """
    if len(plan.spacing) == 2:
        return "2d", "pictures"
    across, plane = plan.spacing[0], max(plan.spacing[1:])
    slices, side = plan.median_shape[0], min(plan.median_shape[1:])
    thin = across > THIN * plane and side > THIN * slices
    text = (
        f"{'a thin stack' if thin else 'no thin stack'}: distance of slices over that of pixels"
        f" {across / plane:.1f}, rows over slices {side / slices:.1f};"
        f" {'both' if thin else 'not both'} above {THIN:g}"
    )
    return ("2d" if thin else "3d_fullres"), text


def configuration(plan: NnunetPlan, name: str) -> Configuration:
    """The network, patch and batch of a small budget.

    Args:
        plan: nnU-Net's, for its spacing and median shape.
        name: ``2d`` or ``3d_fullres``.

    Returns:
        The configuration. Of ``2d`` all axes are those of the plane.
    """
    flat = name == "2d" and len(plan.spacing) == 3
    spacing = plan.spacing[1:] if flat else plan.spacing
    median = plan.median_shape[1:] if flat else plan.median_shape
    dims = len(spacing)
    voxels = VOXELS[dims]
    made = _topology(spacing, median, voxels)
    widths = tuple(min(CAP, BASE * 2**level) for level in range(len(made.strides)))
    held = math.prod(made.patch) / math.prod(median)
    reasons = {
        "spacing": plan.reasons["spacing"],
        "patch": (
            f"the whole median image {shape_text(median)} in multiples of the network"
            if held >= 1
            else f"about {voxels:,} {'pixels' if dims == 2 else 'voxels'}, equally long along each"
            f" axis where the median image {shape_text(median)} allows; {held:.0%} of it"
        ),
        "batch": "small batches leave time for more steps",
        "strides": "nnU-Net's rule: halve every axis while 4 voxels are left",
        "batch_dice": "small patches often lack a class",
        "normalisation": plan.reasons["normalisation"],
    }
    return Configuration(
        spacing=spacing,
        median_shape=median,
        patch=made.patch,
        batch=_batch(made.patch),
        batch_dice=True,
        network="plain_unet",
        strides=made.strides,
        kernels=made.kernels,
        widths=widths,
        blocks=(2,) * len(widths),
        decoder=(2,) * (len(widths) - 1),
        elements=0,
        reasons=reasons,
    )


def _batch(patch: Sequence[int]) -> int:
    """Samples of a batch."""
    usual, dims = BATCH[len(patch)], len(patch)
    return 2 * usual if 2 * math.prod(patch) <= VOXELS[dims] else usual


def _topology(spacing: Sequence[float], median: Sequence[float], voxels: int) -> Topology:
    """Strides of a patch of about so many voxels, and the patch as their multiple."""
    patch = box(spacing, median, voxels)
    for _ in range(4):
        made = _limited(topology(spacing, patch))
        divisor = made.divisor
        rounded = tuple(
            _multiple(n, d, up=n >= m) for n, d, m in zip(patch, divisor, median, strict=True)
        )
        if rounded == patch:
            break
        patch = rounded
    return _limited(topology(spacing, patch))


def _multiple(size: int, divisor: int, up: bool) -> int:
    """The nearest multiple; the next one where the whole axis is taken."""
    count = math.ceil(size / divisor) if up else round(size / divisor)
    return max(1, count) * divisor


def _limited(made: Topology) -> Topology:
    """At most MOST_LEVELS levels, with the patch as it was."""
    if len(made.strides) <= MOST_LEVELS:
        return made
    kernels = (*made.kernels[: MOST_LEVELS - 1], made.kernels[-1])
    return Topology(patch=made.patch, strides=made.strides[:MOST_LEVELS], kernels=kernels)


def box(spacing: Sequence[float], median: Sequence[float], voxels: int) -> tuple[int, ...]:
    """The largest box of so many voxels with equal sides in mm, within the median image.

    Args:
        spacing: mm along each axis.
        median: voxels of the median image along each axis.
        voxels: wanted.

    Returns:
        Voxels along each axis.

    Example:
        >>> box((1, 1, 1), (35, 50, 36), 90_000)
        (35, 50, 36)
        >>> box((3, 4.5, 4.5), (100, 70, 70), 90_000)
        (59, 39, 39)
    """
    limits = [round(n) for n in median]
    size = list(limits)
    free = set(range(len(size)))
    while free:
        left = voxels / math.prod(size[a] for a in range(len(size)) if a not in free)
        edge = (left * math.prod(spacing[a] for a in free)) ** (1 / len(free))
        clipped = {a for a in free if edge / spacing[a] >= limits[a]}
        if not clipped:
            for a in free:
                size[a] = max(1, round(edge / spacing[a]))
            break
        free -= clipped
    return tuple(size)
