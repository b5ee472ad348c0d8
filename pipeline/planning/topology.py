"""nnU-Net's rules for patch, network and batch size, from spacings and shapes alone.

Axes are in the order of the plan: the coarsest first. Nothing here reads files or builds networks.

Source: Isensee et al., Nature Methods 18:203, 2021; Isensee et al., MICCAI 2024 (ResEnc presets);
rules as of nnU-Net 2.8.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

Size = tuple[int, ...]
Spacing = tuple[float, ...]

SMALLEST_EDGE = 4
"""Voxels of the smallest edge at the bottom of a network."""

BASE, CAP = 32, {2: 512, 3: 320}
"""Width of the finest level, and largest width by number of axes."""

VOLUME = {2: 2048**2, 3: 256**3}
"""Voxels of the patch that planning starts with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Rules that differ between nnU-Net's planners."""

    network: str
    """Entry of NETWORKS."""
    blocks: Size
    """Convolutions or residual blocks of each level of the encoder; the last goes on."""
    decoder: int
    """Convolutions of each level of the decoder."""
    reference: dict[int, float]
    """Elements of all feature maps that fit ``gigabytes``, by number of axes."""
    gigabytes: float
    """Memory of the device that the reference is for."""
    share: float
    """Largest share of all voxels of the data set in one batch."""

    def count(self, level: int) -> int:
        """Convolutions or blocks of a level of the encoder, the finest is 0."""
        return self.blocks[min(level, len(self.blocks) - 1)]


RES = (1, 3, 4, 6)
PRESETS = {
    "plain": Preset(
        network="plain_unet",
        blocks=(2,),
        decoder=2,
        reference={3: 5.6e8, 2: 8.5e7},
        gigabytes=8,
        share=0.05,
    ),
    "resenc-m": Preset(
        network="resenc_unet",
        blocks=RES,
        decoder=1,
        reference={3: 6.8e8, 2: 1.35e8},
        gigabytes=8,
        share=1.0,
    ),
    "resenc-l": Preset(
        network="resenc_unet",
        blocks=RES,
        decoder=1,
        reference={3: 2.1e9, 2: 3.8e8},
        gigabytes=24,
        share=1.0,
    ),
    "resenc-xl": Preset(
        network="resenc_unet",
        blocks=RES,
        decoder=1,
        reference={3: 3.6e9, 2: 5.6e8},
        gigabytes=40,
        share=1.0,
    ),
}
REFERENCE_BATCH = {3: 2, 2: 12}
LEAST_BATCH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Strides and kernels of a network, and the patch padded to its multiples."""

    patch: Size
    strides: tuple[Size, ...]
    kernels: tuple[Size, ...]

    @property
    def divisor(self) -> Size:
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))

    def widths(self) -> Size:
        cap = CAP[len(self.patch)]
        return tuple(min(cap, BASE * 2**e) for e in range(len(self.strides)))


def topology(spacing: Spacing, patch: Sequence[int]) -> Topology:
    dims = len(patch)
    size, space = list(patch), list(spacing)
    kernel = [1] * dims
    strides, kernels = [(1,) * dims], []
    while True:
        axes = [a for a in range(dims) if size[a] >= 2 * SMALLEST_EDGE]
        if not axes:
            break
        finest = min(space[a] for a in axes)
        axes = [a for a in axes if space[a] / finest < 2]
        if len(axes) == 1 and size[axes[0]] < 3 * SMALLEST_EDGE:
            break
        least = min(space)
        kernel = [3 if k == 3 or s / least < 2 else 1 for k, s in zip(kernel, space, strict=True)]
        step = tuple(2 if a in axes else 1 for a in range(dims))
        space = [s * t for s, t in zip(space, step, strict=True)]
        size = [-(-n // t) for n, t in zip(size, step, strict=True)]
        strides.append(step)
        kernels.append(tuple(kernel))
    kernels.append((3,) * dims)
    divisor = [math.prod(axis) for axis in zip(*strides, strict=True)]
    padded = tuple(-(-n // d) * d for n, d in zip(patch, divisor, strict=True))
    return Topology(patch=padded, strides=tuple(strides), kernels=tuple(kernels))


def elements(plan: Topology, preset: Preset, classes: int) -> int:
    """Elements of all feature maps of one sample."""
    total = list(
        accumulate(plan.strides, lambda a, b: tuple(x * y for x, y in zip(a, b, strict=True)))
    )
    voxels = [math.prod(n // s for n, s in zip(plan.patch, t, strict=True)) for t in total]
    widths = plan.widths()
    found = 0
    if preset.network == "resenc_unet":
        found += widths[0] * voxels[0]
        for e, (w, v) in enumerate(zip(widths, voxels, strict=True)):
            skip = e > 0 and (w != widths[e - 1] or max(plan.strides[e]) > 1)
            found += (2 * preset.count(e) + skip) * w * v
    else:
        found += sum(
            preset.count(e) * w * v for e, (w, v) in enumerate(zip(widths, voxels, strict=True))
        )
    found += sum(
        (preset.decoder + 1) * w * v for w, v in list(zip(widths, voxels, strict=True))[:-1]
    )
    return found + classes * voxels[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    topology: Topology
    batch: int
    elements: int


def initial_patch(spacing: Spacing, median: Sequence[int]) -> Size:
    inverse = [1 / s for s in spacing]
    dims = len(spacing)
    edge = (VOLUME[dims] / math.prod(inverse)) ** (1 / dims)
    return tuple(min(round(i * edge), n) for i, n in zip(inverse, median, strict=True))


def configuration(
    spacing: Spacing,
    median: Sequence[int],
    cases: int,
    classes: int,
    preset: Preset,
    gigabytes: float | None = None,
    dataset_voxels: float | None = None,
) -> Configuration:
    dims = len(spacing)
    budget = (
        preset.reference[dims]
        * (preset.gigabytes if gigabytes is None else gigabytes)
        / preset.gigabytes
    )
    patch = list(initial_patch(spacing, median))
    plan = topology(spacing, patch)
    patch = list(plan.patch)
    size = elements(plan, preset, classes)
    reference = REFERENCE_BATCH[dims]

    def too_large(e):
        return (e / reference * 2 > budget) if preset.network == "plain_unet" else e > budget

    while too_large(size):
        axis = max(range(dims), key=lambda a: (patch[a] / median[a], a))
        trial = list(patch)
        trial[axis] -= plan.divisor[axis]
        step = topology(spacing, trial).divisor[axis]
        patch[axis] -= step
        plan = topology(spacing, patch)
        patch = list(plan.patch)
        size = elements(plan, preset, classes)
    voxels = math.prod(median) * cases if dataset_voxels is None else dataset_voxels
    cap = round(voxels * preset.share / math.prod(patch))
    batch = max(min(round(budget / size * reference), cap), LEAST_BATCH)
    return Configuration(topology=plan, batch=batch, elements=size)
