"""Resampling to another number of voxels by one matrix for each axis.

The resize of :func:`skimage.transform.resize` (``mode="edge"``, no smoothing, clipped to the range
of the input) is linear and separable, so that it is a product with one matrix along each axis.
Planes across the first axis are computed one at a time and then mixed, so that any rows of the
result have the bits that they have in the whole, and only the planes that these rows need are held.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from pipeline.files import LazyArray, Rows, slabs

ORDERS = (0, 1, 3)
"""Orders of the spline: nearest voxel, linear, cubic."""

RULES = ("argmax", "half")
"""Which class a voxel of resampled labels gets, see :func:`resize_labels`."""

ROWS = 8
"""Rows along the first axis that are computed together, always the same ones."""

DENSE = 256
"""Voxels along an axis up to which a full matrix is as fast as its few entries."""

TIE = 1e-6
"""Shares of two classes that differ by less are equal; the lower class number then wins.

So are two spacings: affines are kept in single precision.
"""


@dataclass(frozen=True, slots=True)
class AxisResize:
    """How one axis is resampled.

    Args:
        old: voxels before.
        new: voxels after.
        order: 0 nearest, 1 linear, 3 cubic.
        flipped: the axis runs the other way than the one that the result is defined for: where two
            voxels are equally near, the other one is taken.
    """

    old: int
    new: int
    order: int
    flipped: bool = False

    @property
    def identity(self) -> bool:
        """Whether nothing is to be done."""
        return self.old == self.new

    @property
    def matrix(self) -> np.ndarray:
        """The map as a matrix ``(new, old)``, float64, read-only."""
        found = operator(self.old, self.new, self.order)
        return found[::-1, ::-1] if self.flipped else found

    @property
    def nearest(self) -> np.ndarray:
        """For order 0: the old voxel of each new one, ``(new,)``."""
        return self.matrix.argmax(1)


@functools.lru_cache(maxsize=64)
def operator(old: int, new: int, order: int) -> np.ndarray:
    """The matrix that resamples one axis, voxel centres at the middle of equal shares.

    Args:
        old: voxels before, at least 1.
        new: voxels after, at least 1.
        order: 0 nearest, 1 linear, 3 cubic spline.

    Returns:
        ``(new, old)`` float64, read-only; rows sum to 1.

    Source:
        ``scipy.ndimage.zoom(mode="nearest", grid_mode=True)`` of the unit vectors, which is what
        :func:`skimage.transform.resize` calls.

    Example:
        >>> operator(2, 4, 1).tolist()
        [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order}, must be one of {', '.join(map(str, ORDERS))}.")
    found = np.eye(old)
    if old != new:
        zoomed = ndimage.zoom(found, (new / old, 1), order=order, mode="nearest", grid_mode=True)
        found = np.asarray(zoomed)
    found.flags.writeable = False
    return found


def resize(array: LazyArray, axes: Sequence[AxisResize], coarse: int | None = None) -> np.ndarray:
    """Resample an array in memory.

    Args:
        array: ``(C, *S)`` of any number type, in memory or read as it is sliced.
        axes: one entry for each axis of S.
        coarse: axis of S whose slices are clipped each to its own range; None: each channel is.

    Returns:
        ``(C, *new)``: float64 of float64, the same type where all orders are 0, else float32.

    Example:
        >>> image = np.array([[[0.0, 4.0]]])
        >>> resize(image, [AxisResize(1, 1, 1), AxisResize(2, 4, 1)]).tolist()
        [[[0.0, 1.0, 3.0, 4.0]]]
    """
    return resized(array, axes, coarse)[:]


def resized(array: LazyArray, axes: Sequence[AxisResize], coarse: int | None = None) -> LazyArray:
    """As :func:`resize`, computed as it is sliced; rows have the bits of the whole.

    Args:
        array: ``(C, *S)``, in memory or read as it is sliced.
        axes: one entry for each axis of S.
        coarse: as of :func:`resize`.

    Returns:
        ``(C, *new)``; the array itself where nothing is to be done.

    Raises:
        ValueError: where the array has other sizes than ``axes``.
    """
    if tuple(array.shape[1:]) != tuple(a.old for a in axes):
        raise ValueError(f"array {tuple(array.shape)} does not fit {[a.old for a in axes]}.")
    if all(a.identity for a in axes):
        return array
    dtype = _dtype(array, axes)
    plan = _Plan(
        array=array,
        axes=tuple(axes),
        dtype=dtype,
        limits=_limits(array, axes, coarse, dtype),
        coarse=coarse,
    )
    return Rows((array.shape[0], *(a.new for a in axes)), dtype, plan.rows)


def _dtype(array: LazyArray, axes: Sequence[AxisResize]) -> np.dtype:
    """Number type of the result."""
    own = np.dtype(array.dtype)
    if all(a.identity or a.order == 0 for a in axes):
        return own
    return own if own == np.float64 else np.dtype(np.float32)


def _limits(
    array: LazyArray, axes: Sequence[AxisResize], coarse: int | None, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray] | None:
    """Least and greatest value of each channel, or of each slice of it; None where none is needed.

    Only a cubic spline leaves the range of its input. Shape ``(C, 1, ...)``, with the new slices at
    the place of ``coarse``; slices of the first axis are clipped plane by plane.
    """
    if coarse == 0 or not any(a.order > 1 and not a.identity for a in axes):
        return None
    kept = None if coarse is None else coarse + 1
    over = tuple(a for a in range(1, len(axes) + 1) if a != kept)
    low = high = None
    for first, end in slabs(array):
        part = np.asarray(array[:, first:end])
        least, most = part.min(over, keepdims=True), part.max(over, keepdims=True)
        low = least if low is None else np.minimum(low, least)
        high = most if high is None else np.maximum(high, most)
    assert low is not None
    assert high is not None
    if coarse is not None:
        low, high = (x.take(axes[coarse].nearest, coarse + 1) for x in (low, high))
    return low.astype(dtype), high.astype(dtype)


@dataclass(slots=True, eq=False)
class _Plan:
    """What is known of a resize before rows of its result are computed."""

    array: LazyArray
    axes: tuple[AxisResize, ...]
    dtype: np.dtype
    limits: tuple[np.ndarray, np.ndarray] | None
    coarse: int | None
    planes: dict[int, np.ndarray] = field(default_factory=dict)
    """Planes of the input that the last rows needed, resampled in the plane."""

    def rows(self, first: int, end: int) -> np.ndarray:
        """Rows ``[first, end)`` of the result."""
        out = np.empty(
            (self.array.shape[0], end - first, *(a.new for a in self.axes[1:])), self.dtype
        )
        for start in range(first // ROWS * ROWS, end, ROWS):
            stop = min(start + ROWS, self.axes[0].new)
            low, high = max(first, start), min(end, stop)
            out[:, low - first : high - first] = self._chunk(start, stop)[
                :, low - start : high - start
            ]
        if self.limits is not None:
            np.clip(out, *self.limits, out=out)
        return out

    def _chunk(self, start: int, stop: int) -> np.ndarray:
        """Rows of one chunk, from the planes of the input that they need."""
        first_axis = self.axes[0]
        if first_axis.identity:
            return self._needed(range(start, stop))
        if first_axis.order == 0:
            wanted = first_axis.nearest[start:stop]
            found = self._needed(range(int(wanted.min()), int(wanted.max()) + 1))
            return found[:, wanted - int(wanted.min())]
        weights = _trimmed(first_axis, self.dtype)[start:stop]
        used = np.flatnonzero(weights.any(0))
        low, high = int(used[0]), int(used[-1]) + 1
        found = self._needed(range(low, high))
        flat = found.reshape(len(found), high - low, -1)
        mixed = np.matmul(weights[:, low:high], flat)
        return mixed.reshape(len(found), stop - start, *found.shape[2:])

    def _needed(self, wanted: range) -> np.ndarray:
        """Planes of the input, resampled in the plane: ``(C, n, *new[1:])``."""
        planes = self.planes
        for number in [n for n in planes if n not in wanted]:
            del planes[number]
        missing = [n for n in wanted if n not in planes]
        if missing:
            first, end = missing[0], missing[-1] + 1
            part = _in_plane(np.asarray(self.array[:, first:end]), self.axes, self.dtype)
            if self.coarse == 0 and any(a.order > 1 for a in self.axes[1:]):
                part = _clipped_planes(part, np.asarray(self.array[:, first:end]))
            planes |= {n: part[:, n - first] for n in range(first, end)}
        return np.stack([planes[n] for n in wanted], 1)


def _clipped_planes(part: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Planes ``(C, n, ...)`` clipped each to the range of its source."""
    over = tuple(range(2, source.ndim))
    low, high = source.min(over, keepdims=True), source.max(over, keepdims=True)
    return np.clip(part, low.astype(part.dtype), high.astype(part.dtype), out=part)


def _in_plane(part: np.ndarray, axes: Sequence[AxisResize], dtype: np.dtype) -> np.ndarray:
    """Rows ``(C, n, *S[1:])`` resampled along all axes but the first; what shrinks most first."""
    part = part.astype(dtype, copy=False)
    order = sorted(range(1, len(axes)), key=lambda n: axes[n].new / axes[n].old)
    for n in order:
        if not axes[n].identity:
            part = _along(part, axes[n], n + 1, dtype)
    return part


def _along(part: np.ndarray, axis: AxisResize, at: int, dtype: np.dtype) -> np.ndarray:
    """One axis resampled; each plane is a product of its own, so that its bits are its own."""
    if axis.order == 0:
        return part.take(axis.nearest, at)
    if axis.order == 1 and axis.old > DENSE:
        return _two_taps(part, axis, at, dtype)
    weights = _trimmed(axis, dtype)
    if at == part.ndim - 1:
        if part.ndim == 3:  # a picture: its rows are planes of one axis
            return np.matmul(weights, part[..., None])[..., 0]
        return np.matmul(part, weights.T)
    return np.moveaxis(np.matmul(weights, np.moveaxis(part, at, -2)), -2, at)


def _two_taps(part: np.ndarray, axis: AxisResize, at: int, dtype: np.dtype) -> np.ndarray:
    """Linear interpolation along one axis from the two nearest voxels."""
    matrix = axis.matrix
    before = np.minimum((matrix != 0).argmax(1), axis.old - 2)
    rows = np.arange(axis.new)
    shape = [1] * part.ndim
    shape[at] = -1
    out = part.take(before, at)
    out *= matrix[rows, before].astype(dtype).reshape(shape)
    further = part.take(before + 1, at)
    further *= matrix[rows, before + 1].astype(dtype).reshape(shape)
    out += further
    return out


@functools.lru_cache(maxsize=64)
def _trimmed(axis: AxisResize, dtype: np.dtype) -> np.ndarray:
    """The matrix in a number type, without entries below its precision."""
    matrix = axis.matrix
    few = np.where(np.abs(matrix) < np.finfo(dtype).eps / 8, 0, matrix)
    return np.ascontiguousarray(few.astype(dtype))


# --- labels ---------------------------------------------------------------------------------------


def resize_labels(
    labels: np.ndarray, axes: Sequence[AxisResize], rule: str = "argmax"
) -> np.ndarray:
    """Resample a label map: each class as a mask, then one class for each voxel.

    No value appears that was not there. One class at a time is held.

    Args:
        labels: ``(1, *S)`` of integers.
        axes: one entry for each axis of S, of order 0 or 1.
        rule: ``argmax``: the class with the greatest share, of equal ones the lowest number;
            ``half``: nnU-Net's, classes in ascending order where their share is above 0.5, else 0,
            which leaves holes of background where three classes meet.

    Returns:
        ``(1, *new)`` of the same type.

    Example:
        >>> labels = np.array([[[0, 0, 3, 3]]])
        >>> resize_labels(labels, [AxisResize(1, 1, 1), AxisResize(4, 2, 1)]).tolist()
        [[[0, 3]]]
    """
    if all(a.identity or a.order == 0 for a in axes):
        return resize(labels, axes)
    values = np.unique(labels)
    out = np.zeros((1, *(a.new for a in axes)), labels.dtype)
    if len(values) == 1:
        out[...] = values[0]
        return out
    best = np.full(out.shape, 0.5 if rule == "half" else -1.0, np.float32)
    for value in values:
        found = _class_share(labels, value, axes)
        if found is None:
            continue
        box, part = found
        own, share = (slice(None), *box), best[(slice(None), *box)]
        more = part > share if rule == "half" else part > share + TIE
        out[own][more] = value
        if rule != "half":
            share[more] = part[more]
    return out


def _class_share(
    labels: np.ndarray, value: Any, axes: Sequence[AxisResize]
) -> tuple[tuple[slice, ...], np.ndarray] | None:
    """Share of a class in each voxel, float32 ``(1, ...)``, of the box that it reaches.

    None where it reaches none: all of its voxels lie between those that a coarser grid samples.
    """
    mask = labels == value
    box, parts = [], list[np.ndarray]()
    inside: list[slice] = []
    for n, axis in enumerate(axes):
        over = tuple(a for a in range(mask.ndim) if a != n + 1)
        matrix = axis.matrix
        reached = np.flatnonzero(matrix[:, mask.any(over)].any(1))
        if not reached.size:
            return None
        low, high = int(reached[0]), int(reached[-1]) + 1
        used = np.flatnonzero(matrix[low:high].any(0))
        box.append(slice(low, high))
        inside.append(slice(int(used[0]), int(used[-1]) + 1))
        parts.append(matrix[low:high, inside[-1]].astype(np.float32))
    share = mask[(slice(None), *inside)].astype(np.float32)
    for n, weights in sorted(enumerate(parts), key=lambda p: p[1].shape[0] / p[1].shape[1]):
        share = np.moveaxis(np.matmul(weights, np.moveaxis(share, n + 1, -2)), -2, n + 1)
    return tuple(box), share


# --- sizes and axes -------------------------------------------------------------------------------


def new_size(
    size: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]
) -> tuple[int, ...]:
    """Voxels along each axis at another spacing.

    Args:
        size: ``(*S)``.
        spacing: millimetres between voxels along each axis.
        wanted: the same after resampling.

    Returns:
        The rounded quotient (halves to the even number, whatever the last digits of an affine), at
        least 1. The exact factor is that of the sizes.

    Example:
        >>> new_size((128, 128, 40), (0.8, 0.8, 5.0), (1.0, 1.0, 5.0))
        (102, 102, 40)
    """
    return tuple(
        max(1, round(round(n * old / new, 3)))
        for n, old, new in zip(size, spacing, wanted, strict=True)
    )


def coarse_axis(
    current: Sequence[float], wanted: Sequence[float], ratio: float | None
) -> int | None:
    """The axis that is so much coarser than the others that its slices are resampled apart.

    Args:
        current: millimetres between voxels along each axis before.
        wanted: the same after.
        ratio: coarsest over finest spacing above which slices count as apart; None: never.

    Returns:
        The axis of the greatest spacing, judged before resampling and, where that is even, after
        it; None where it is nowhere uneven, and where two axes are equally coarse.

    Source:
        nnU-Net's rule for separate resampling along z.

    Example:
        >>> coarse_axis((0.8, 0.8, 5.0), (1.0, 1.0, 5.0), 3.0)
        2
    """
    if ratio is None or len(current) < 3:
        return None
    for spacing in (current, wanted):
        if max(spacing) / min(spacing) > ratio * (1 + TIE):
            most = [n for n, s in enumerate(spacing) if math.isclose(s, max(spacing), rel_tol=TIE)]
            return most[0] if len(most) == 1 else None
    return None


def axes_of(
    old: Sequence[int], new: Sequence[int], order: int, coarse: int | None, coarse_order: int = 0
) -> tuple[AxisResize, ...]:
    """How each axis is resampled.

    Args:
        old: ``(*S)`` before.
        new: ``(*S)`` after.
        order: spline order of all axes but ``coarse``.
        coarse: axis resampled by ``coarse_order``; None: none.
        coarse_order: its order.

    Returns:
        One entry for each axis.
    """
    return tuple(
        AxisResize(a, b, coarse_order if n == coarse else order)
        for n, (a, b) in enumerate(zip(old, new, strict=True))
    )


def permuted(
    axes: Sequence[AxisResize], order: Sequence[int], flips: Mapping[int, bool]
) -> tuple[AxisResize, ...]:
    """The same resampling of an array whose axes are in another order and direction.

    Args:
        axes: of the array as it is.
        order: ``order[i]`` is the axis that becomes axis i.
        flips: for each new axis whether it is flipped.

    Returns:
        One entry for each new axis.
    """
    return tuple(
        AxisResize(axes[a].old, axes[a].new, axes[a].order, axes[a].flipped != flips[i])
        for i, a in enumerate(order)
    )
