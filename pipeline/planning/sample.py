"""The one case that costs are measured on: a real one, or one made up with the same facts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import nibabel
import numpy as np

from pipeline.config import Config
from pipeline.records import Case

LARGEST = 2**25
"""Most voxels of a case, times output channels, that is measured whole; larger ones are cut."""

RADIUS = 0.4
"""Radius of a made-up object, as a share of the room that it has along an axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCase:
    """The facts of the median case, and a real case where one is at hand.

    Args:
        shape: ``(*S)`` in model space.
        native: ``(*S)`` on the grid of its file.
        channels: of the image.
        outputs: output channels of the network.
        classes: label values including background.
        spacing: millimetres between voxels of the file along each axis; None: not known.
        codes: axis codes of the file, such as ``RAS``; None: not known.
        dtype: number type of the image's file.
        shapes: ``(*S)`` in model space of all cases, over which seconds of a case are means; empty:
            all are like the median, which has fewer tiles than the mean of cases of mixed sizes.
        case: a real case of about the median size, whose files are read; None, or too large a one:
            a case is made up, of which file formats and shapes of objects are not known.

    Example:
        >>> SampleCase(shape=(8, 8), native=(16, 16), channels=1, outputs=1, classes=2).voxels
        64
    """

    shape: tuple[int, ...]
    native: tuple[int, ...]
    channels: int
    outputs: int
    classes: int
    spacing: tuple[float, ...] | None = None
    codes: str | None = None
    dtype: str = "int16"
    shapes: tuple[tuple[int, ...], ...] = ()
    case: Case | None = None

    @property
    def voxels(self) -> int:
        """Voxels in model space."""
        return math.prod(self.shape)

    @property
    def every_shape(self) -> tuple[tuple[int, ...], ...]:
        """Sizes of all cases in model space."""
        return self.shapes or (self.shape,)

    @property
    def larger(self) -> float:
        """Mean voxels of a case over those of the median."""
        return mean(map(math.prod, self.every_shape)) / self.voxels

    @property
    def is_real(self) -> bool:
        """Whether the real case is measured."""
        largest = max(self.voxels, math.prod(self.native))
        return self.case is not None and largest * self.outputs <= LARGEST


def measured_case(sample: SampleCase, config: Config, folder: Path) -> Case:
    """The case to measure.

    Args:
        sample: its facts.
        config: its targets by kind.
        folder: where a made-up case is written.

    Returns:
        The real case, or a made-up one.
    """
    if sample.case is not None and sample.is_real:
        return sample.case
    return write_case(sample, config, folder)


def cut_size(sample: SampleCase, config: Config) -> tuple[int, ...]:
    """Voxels on the file's grid of a made-up case.

    Args:
        sample: the facts of the median case.
        config: its patch size.

    Returns:
        The median's own where it is small enough to be measured whole; else smaller along each axis
        by one factor, but with room for a patch where the median has that.
    """
    share = LARGEST / (max(sample.voxels, math.prod(sample.native)) * sample.outputs)
    factor = min(1.0, share ** (1 / len(sample.native)))
    # Axes of the file may stand in another order than those of the patch: the longest side counts.
    least = max(config.data.patch.size)
    return tuple(
        max(1, min(n, max(round(n * factor), math.ceil(least * n / max(1, m)))))
        for n, m in zip(sample.native, _alike(sample.native, sample.shape), strict=True)
    )


def _alike(native: Sequence[int], shape: Sequence[int]) -> Sequence[int]:
    """Sizes in model space, sorted as those on the file's grid are, which they belong to."""
    ranks = sorted(range(len(native)), key=lambda axis: native[axis])
    found = [0] * len(native)
    for axis, n in zip(ranks, sorted(shape), strict=True):
        found[axis] = n
    return found


def write_case(sample: SampleCase, config: Config, folder: Path) -> Case:
    """Write a made-up case: noise with an ellipsoid of each class, which is brighter.

    Args:
        sample: its facts.
        config: roles of its files.
        folder: where files are written.

    Returns:
        The case; it has a file for each channel, NIfTI where a spacing is known, else npy.
    """
    random = np.random.default_rng(0)
    size = cut_size(sample, config)
    labels = objects(size, sample.classes)
    noise = random.integers(1, 120, (sample.channels, *size))
    image = (noise + 120 * labels / max(1, sample.classes - 1)).astype(sample.dtype)
    put = Files(folder, sample)
    targets = {
        role: put.write(role, _target(kind, labels, image)) for role, kind in config.roles.items()
    }
    paths = tuple(put.write(f"image_{n}", [channel]) for n, channel in enumerate(image))
    return Case(id="sample", image=paths, targets=targets)


def _target(kind: str, labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    if kind == "labels":
        return labels[None]
    if kind == "mask":
        return np.ones_like(labels)[None]
    target, middle = image.copy(), tuple(slice(n // 3, 2 * n // 3) for n in labels.shape)
    target[(slice(None), *middle)] //= 2  # what is to change, for data.change
    return target


def objects(size: Sequence[int], classes: int) -> np.ndarray:
    """An ellipsoid of each class, side by side on a lattice.

    Args:
        size: ``(*S)``.
        classes: label values including background.

    Returns:
        uint8 or uint16 ``(*S)``; every class, background among them, has a voxel
            where there are enough.

    Example:
        >>> np.unique(objects((12, 12), 4)).tolist()
        [0, 1, 2, 3]
    """
    found = np.zeros(size, np.uint8 if classes <= 256 else np.uint16)
    for number, box in zip(range(1, classes), _boxes(size, classes - 1), strict=False):
        part = found[box]
        axes = np.ogrid[tuple(slice(0, n) for n in part.shape)]
        reach = sum(
            ((a - (n - 1) / 2) / max(0.5, RADIUS * n)) ** 2
            for a, n in zip(axes, part.shape, strict=True)
        )
        part[np.asarray(reach) <= 1] = number
        part[tuple(n // 2 for n in part.shape)] = number
    if found.all():  # small boxes are full: the last, which is the largest, gives a corner away
        found[(-1,) * found.ndim] = 0
    return found


def _boxes(size: Sequence[int], count: int) -> Iterator[tuple[slice, ...]]:
    """At least so many boxes side by side, as far as there are voxels."""
    parts = [1] * len(size)
    while math.prod(parts) < count and any(p < n for p, n in zip(parts, size, strict=True)):
        axis = max(range(len(size)), key=lambda a: size[a] / parts[a])
        parts[axis] += 1
    edges = [[n * k // p for k in range(p + 1)] for n, p in zip(size, parts, strict=True)]
    yield from itertools.product(*([slice(*e) for e in itertools.pairwise(axis)] for axis in edges))


@dataclass(frozen=True, slots=True)
class Files:
    """Writes arrays of a made-up case.

    Args:
        folder: where they are written.
        sample: spacing and axis codes.
    """

    folder: Path
    sample: SampleCase

    def write(self, name: str, channels: Any) -> Path:
        """Write a role.

        Args:
            name: of the file.
            channels: ``(C, *S)``.

        Returns:
            Its path.
        """
        array = np.asarray(channels)
        if self.sample.spacing is None:
            path = self.folder / f"{name}.npy"
            np.save(path, array if len(array) > 1 else array[0])
            return path
        path = self.folder / f"{name}.nii"
        values = np.moveaxis(array, 0, -1) if len(array) > 1 else array[0]
        if values.dtype.kind == "i" and values.dtype.itemsize > 4:
            values = values.astype(np.int32)  # which viewers read
        image = nibabel.Nifti1Image(values, self._affine())
        image.header.set_xyzt_units("mm")
        nibabel.save(image, path)
        return path

    def _affine(self) -> np.ndarray:
        """From voxels to millimetres (RAS+)."""
        spacing = (*(self.sample.spacing or ()), 1.0)[:3]
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        codes = self.sample.codes if len(self.sample.codes or "") == 3 else "RAS"
        for axis, letter in enumerate(codes or ""):
            row = next(n for n, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
            affine[row, axis] = spacing[axis] * (1 if letter in "RAS" else -1)
        return affine
