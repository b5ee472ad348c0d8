"""Rules of nnU-Net for one configuration: patch, strides, kernels and batch size.

All follow from a spacing, a median shape and a budget. Axes are in the order of the plan: the
coarsest first. Nothing here reads files or builds networks.

Source: Isensee et al., Nature Methods 18:203, 2021; rules as of nnU-Net 2.8.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from pipeline.planning.presets import (
    BASE_WIDTH,
    LARGEST_EDGE,
    LEAST_BATCH,
    REFERENCE_BATCH,
    SMALLEST_EDGE,
    WIDEST,
    Preset,
    Size,
)
from pipeline.records import UserError

Spacing = tuple[float, ...]


class PlanError(UserError):
    """Data or a budget for which there is no plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Strides and kernels of a network, and the patch padded to its multiples."""

    patch: Size
    """Voxels, multiples of ``divisor``."""
    strides: tuple[Size, ...]
    """Of each level, finest first; the first is 1."""
    kernels: tuple[Size, ...]
    """Of each level, finest first."""

    @property
    def divisor(self) -> Size:
        """Product of the strides along each axis."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))

    @property
    def widths(self) -> Size:
        """Channels of each level."""
        widest = WIDEST[len(self.patch)]
        return tuple(min(widest, BASE_WIDTH * 2**level) for level in range(len(self.strides)))

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Size of the patch at each level."""
        totals = accumulate(self.strides, lambda a, b: tuple(map(int.__mul__, a, b)))
        return tuple(tuple(map(int.__floordiv__, self.patch, total)) for total in totals)


def topology(spacing: Sequence[float], patch: Sequence[float]) -> Topology:
    """Choose strides and kernels for a patch.

    Each level halves the axes that have at least 8 voxels and a spacing of less than twice the
    finest of these; a single such axis only while it has 12. Kernels are 1 along an axis until its
    spacing is less than twice the finest of all, 3 from then on, and 3 at the bottom.

    Args:
        spacing: length of a voxel along each axis.
        patch: size that is wanted, in voxels; it may be a half, as medians are.

    Returns:
        Strides, kernels and the patch rounded up to multiples of the strides.

    Example:
        >>> found = topology((4.0, 0.8, 0.8), (20, 160, 160))
        >>> found.patch, found.strides[:3]
        ((20, 160, 160), ((1, 1, 1), (1, 2, 2), (1, 2, 2)))
        >>> found.kernels[:3], found.sizes[-1]
        (((1, 3, 3), (1, 3, 3), (3, 3, 3)), (5, 5, 5))
    """
    dims = len(patch)
    size, space = list(patch), list(spacing)
    kernel = [1] * dims
    strides: list[Size] = [(1,) * dims]
    kernels: list[Size] = []
    while axes := _halved(space, size):
        least = min(space)
        kernel = [3 if k == 3 or s / least < 2 else 1 for k, s in zip(kernel, space, strict=True)]
        step = tuple(2 if axis in axes else 1 for axis in range(dims))
        space = [s * t for s, t in zip(space, step, strict=True)]
        size = [math.ceil(n / t) if t == 2 else n for n, t in zip(size, step, strict=True)]
        strides.append(step)
        kernels.append(tuple(kernel))
    kernels.append((3,) * dims)
    divisor = [math.prod(axis) for axis in zip(*strides, strict=True)]
    padded = tuple(math.ceil(n / d) * d for n, d in zip(patch, divisor, strict=True))
    return Topology(patch=padded, strides=tuple(strides), kernels=tuple(kernels))


def _halved(spacing: Sequence[float], size: Sequence[float]) -> list[int]:
    """Axes that the next level halves; none at the bottom."""
    axes = [axis for axis, n in enumerate(size) if n >= 2 * SMALLEST_EDGE]
    finest = min((spacing[axis] for axis in axes), default=1.0)
    axes = [axis for axis in axes if spacing[axis] / finest < 2]
    alone = len(axes) == 1 and size[axes[0]] < 3 * SMALLEST_EDGE
    return [] if alone else axes


def elements(plan: Topology, preset: Preset, outputs: int) -> int:
    """Count the elements of all feature maps of one sample: nnU-Net's measure of memory.

    Counted are the results of all convolutions, but of deep supervision.

    Args:
        plan: patch and network.
        preset: rules.
        outputs: channels of the answer.

    Returns:
        Number of elements.

    Example:
        >>> from pipeline.planning.presets import PRESETS
        >>> cube = Topology(patch=(128,) * 3, strides=((1,) * 3, *[(2,) * 3] * 5), kernels=())
        >>> [elements(cube, PRESETS[name], 3) for name in ("plain", "resenc-m")]
        [452796416, 557420544]
    """
    voxels = [math.prod(size) for size in plan.sizes]
    maps = [width * n for width, n in zip(plan.widths, voxels, strict=True)]
    counts = preset.counts(len(maps))
    if preset.residual:
        shortcuts = [_shortcut(plan, level) for level in range(len(maps))]
        encoder = maps[0] + sum(
            (2 * count + shortcut) * m
            for count, shortcut, m in zip(counts, shortcuts, maps, strict=True)
        )
    else:
        encoder = sum(count * m for count, m in zip(counts, maps, strict=True))
    decoder = sum((preset.decoder + 1) * m for m in maps[:-1])
    return encoder + decoder + outputs * voxels[0]


def _shortcut(plan: Topology, level: int) -> bool:
    """Whether the skip connection of a level's first block changes the size or the channels."""
    widths = (plan.widths[0], *plan.widths)
    return max(plan.strides[level]) > 1 or widths[level] != widths[level + 1]


def initial_patch(spacing: Sequence[float], median: Sequence[float]) -> tuple[float, ...]:
    """Box of the world's shape with as many voxels as 256³ or 2048², within the median image.

    Args:
        spacing: length of a voxel along each axis.
        median: median shape of the images at this spacing.

    Returns:
        Voxels along each axis; a half where the median is one.

    Example:
        >>> initial_patch((2.0, 1.0, 1.0), (400, 300, 512))
        (161, 300, 323)
    """
    inverse = [1 / s for s in spacing]
    dims = len(inverse)
    scale = (LARGEST_EDGE[dims] ** dims / math.prod(inverse)) ** (1 / dims)
    return tuple(min(round(i * scale), n) for i, n in zip(inverse, median, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A patch and a batch that fit a budget, and what they come from."""

    topology: Topology
    elements: int
    """Of all feature maps of one sample."""
    initial: tuple[float, ...]
    """Patch that the search began with."""
    shrunk: int
    """How often the patch was made smaller."""
    budget: float
    """Elements of one sample that fit in a batch of ``REFERENCE_BATCH``."""
    by_memory: int
    """Samples that fit the budget."""
    by_voxels: int
    """Samples that the share of all voxels allows."""

    @property
    def batch(self) -> int:
        """Samples in a batch."""
        return max(min(self.by_memory, self.by_voxels), LEAST_BATCH)


def fit(
    spacing: Sequence[float],
    median: Sequence[float],
    voxels: float,
    outputs: int,
    preset: Preset,
    gigabytes: float | None = None,
) -> Fit:
    """Shrink the patch until it fits, then enlarge the batch.

    The axis that is longest, relative to the median image, shrinks by one multiple of the network
    at a time; of equal ones the last.

    Args:
        spacing: length of a voxel along each axis, 2 or 3 of them.
        median: median shape of the images at this spacing.
        voxels: of all images together, at this spacing.
        outputs: channels of the answer.
        preset: rules.
        gigabytes: memory of the device. None: that of the preset.

    Returns:
        Patch, network and batch.

    Raises:
        PlanError: if no patch fits.

    Example:
        >>> from pipeline.planning.presets import PRESETS
        >>> found = fit((1, 1, 1), (320, 320, 320), 786 * 320**3, 3, PRESETS["resenc-l"])
        >>> found.topology.patch, found.batch
        ((192, 192, 192), 2)
    """
    dims = len(spacing)
    budget, reference = preset.budget(dims, gigabytes), REFERENCE_BATCH[dims]
    first = initial_patch(spacing, median)
    plan = topology(spacing, first)
    size, shrunk = elements(plan, preset, outputs), 0
    while size / reference * preset.fits[dims] > budget:
        plan = _shrunk(plan, spacing, median, budget)
        size, shrunk = elements(plan, preset, outputs), shrunk + 1
    if len(plan.strides) < 2:
        raise _too_large(plan, budget) if shrunk else _too_small(plan)
    return Fit(
        topology=plan,
        elements=size,
        initial=first,
        shrunk=shrunk,
        budget=budget,
        by_memory=round(budget / size * reference),
        by_voxels=round(voxels * preset.share / math.prod(plan.patch)),
    )


def _shrunk(
    plan: Topology, spacing: Sequence[float], median: Sequence[float], budget: float
) -> Topology:
    """Next smaller patch, with its network.

    The step is a multiple of the smaller patch's network, else valid sizes would be left out.
    """
    patch = list(plan.patch)
    axis = max(range(len(patch)), key=lambda a: (patch[a] / median[a], a))
    trial = [n - plan.divisor[a] if a == axis else n for a, n in enumerate(patch)]
    if min(trial) > 0:
        patch[axis] -= topology(spacing, trial).divisor[axis]
    if min(trial) <= 0 or min(patch) <= 0:
        raise _too_large(plan, budget)
    return topology(spacing, patch)


def _too_large(plan: Topology, budget: float) -> PlanError:
    return PlanError(
        f"No patch fits into {budget:,.0f} elements of feature maps: {shape_text(plan.patch)}"
        " voxels are left, for which there is no network. Plan for more memory."
    )


def _too_small(plan: Topology) -> PlanError:
    return PlanError(
        f"There is no network of two levels: no axis of a patch of {shape_text(plan.patch)} voxels"
        " is halved. Use larger images."
    )


def shape_text(shape: Sequence[float]) -> str:
    """Format a shape.

    Args:
        shape: one number for each axis.

    Returns:
        Such as ``64 x 128 x 128``.

    Example:
        >>> shape_text((20, 23.5))
        '20 x 23.5'
    """
    return " x ".join(f"{n:g}" if n < 1e6 else f"{n:.0f}" for n in shape)
