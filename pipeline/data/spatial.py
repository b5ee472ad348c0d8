"""Rotation and scaling of a patch while it is read: only the box that it needs is.

A patch that is rotated after it was cut lacks its corners. Here the transform is drawn first; then
the voxels of the transformed patch are read from the memory map, no more, and interpolated once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable
from torch.nn.functional import grid_sample

SLENDER = {2: 1.5, 3: 3.0}
"""Longest to shortest side of a patch above which rotations are restricted, by space axes.

2D: smaller angles; 3D: about the shortest axis alone. As in nnU-Net.
"""

SINGLE = 512
"""Voxels along the side of a box above which float32 cannot place a voxel to 1e-4."""

TIE = 1e-4
"""Shares of labels nearer to each other than this are computed again, in float64."""

CHUNK = 2**18
"""Voxels whose label is decided in one piece."""


def rotation(angles: Sequence[float]) -> np.ndarray:
    """Rotation about each axis in turn, the first axis first.

    Args:
        angles: in radians: three, or one in 2D.

    Returns:
        Matrix for column vectors: 3×3, or 2×2.

    Example:
        >>> (rotation([math.pi / 2]) @ [1, 0]).round(6).tolist()
        [0.0, 1.0]
    """
    if len(angles) == 1:
        return _plane_rotation(2, 0, 1, angles[0])
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        matrix = _plane_rotation(3, (axis + 1) % 3, (axis + 2) % 3, angle) @ matrix
    return matrix


def _plane_rotation(dims: int, a: int, b: int, angle: float) -> np.ndarray:
    """Rotation that takes axis ``a`` towards axis ``b``."""
    matrix = np.eye(dims)
    matrix[[a, b], [a, b]] = math.cos(angle)
    matrix[b, a] = math.sin(angle)
    matrix[a, b] = -math.sin(angle)
    return matrix


class Warp:
    """A transformed patch: which voxels it needs, and what it makes of them.

    Voxel ``o`` of the patch shows the volume at ``centre + matrix @ (o - (size - 1) / 2)``, in
    voxels; ``centre`` is that of the patch before the transform.

    Args:
        matrix: of the transform; columns longer than 1 show more of the volume, smaller.
        start: first voxel of the patch before the transform, may be negative.
        size: ``(*S)`` of the patch.

    Example:
        >>> warp = Warp(2 * np.eye(2), start=[3, 3], size=[4, 4])
        >>> warp.box()
        ([1, 1], [8, 8])
    """

    def __init__(self, matrix: np.ndarray, start: Sequence[int], size: Sequence[int]) -> None:
        self.matrix, self.size = matrix, tuple(size)
        self.half = (np.array(size) - 1) / 2
        self.centre = np.array(start) + self.half
        self._grid: tuple[Any, torch.Tensor] = ((), torch.empty(0))

    def box(self) -> tuple[list[int], list[int]]:
        """The box whose voxels the patch is interpolated from.

        Returns:
            First voxel and size, the smallest that hold all; they may reach beyond the volume.
        """
        reach = np.abs(self.matrix) @ self.half
        # Rounded: a sine of 1e-17 asks for no further voxels.
        low = np.floor((self.centre - reach).round(6)).astype(int)
        high = np.ceil((self.centre + reach).round(6)).astype(int)
        return low.tolist(), (high - low + 1).tolist()

    def linear(self, part: np.ndarray, low: Sequence[int], fill: float = 0.0) -> np.ndarray:
        """Interpolate linearly.

        Args:
            part: ``(C, *T)``, the voxels of :meth:`box` that lie in the volume.
            low: first voxel of ``part`` in the volume.
            fill: value around ``part``.

        Returns:
            float32 ``(C, *size)``.
        """
        if not part.size:
            return np.full((len(part), *self.size), fill, np.float32)
        grid = self._grid_of(low, part.shape[1:])
        values = torch.from_numpy(np.ascontiguousarray(part)).to(grid.dtype)
        out = grid_sample(
            (values - fill)[None] if fill else values[None], grid[None], align_corners=False
        )[0]
        return (out + fill if fill else out).float().numpy()

    def labels(self, part: np.ndarray, low: Sequence[int], fill: int) -> np.ndarray:
        """Label with the largest share of each voxel.

        Shares are those of linear interpolation of each label's mask. Equal ones go to the nearest
        voxel's label, or to the lowest where that has less.

        Args:
            part: ``(C, *T)``, as of :meth:`linear`; each channel for itself.
            low: first voxel of ``part`` in the volume.
            fill: label around ``part``.

        Returns:
            ``(C, *size)`` of the same type.
        """
        return np.stack([self._decided(channel, low, fill) for channel in part])

    def _decided(self, part: np.ndarray, low: Sequence[int], fill: int) -> np.ndarray:
        """Labels of one channel ``(*T)``."""
        inside = (list(low), list(part.shape)) == self.box()
        values = _values(part)
        if not inside:
            values = np.union1d(values, np.array([fill], part.dtype))
        out = np.full(self.size, values[0], part.dtype)
        if len(values) == 2:
            # The share of the other one is what is left: fill's mask is 1 outside, its own is not.
            one, other = values if values[1] != fill else values[::-1]
            share = self.linear((part == other)[None].astype(np.float32), low)[0]
            out[:] = np.where(share > 0.5, other, one)
            tied = np.flatnonzero(np.abs(share - 0.5) < TIE)
            if len(tied):
                self._decide_exactly(out, tied, np.pad(part, 1, constant_values=fill), low)
        elif len(values) > 2:
            self._decide_many(out, np.pad(part, 1, constant_values=fill), low)
        return out

    def _decide_many(self, out: np.ndarray, padded: np.ndarray, low: Sequence[int]) -> None:
        """Labels where there are many: most voxels lie between voxels of one label."""
        least = most = padded
        for axis in range(padded.ndim):
            low_part, high_part = ([slice(None)] * padded.ndim for _ in range(2))
            low_part[axis], high_part[axis] = slice(None, -1), slice(1, None)
            a, b = tuple(low_part), tuple(high_part)
            least, most = np.minimum(least[a], least[b]), np.maximum(most[a], most[b])
        mixed = least != most
        for first in range(0, out.size, CHUNK):
            at = np.arange(first, min(first + CHUNK, out.size))
            base, _ = self._cells(at, padded.shape, low)
            out.reshape(-1)[at] = least[tuple(base)]
            self._decide_exactly(out, at[mixed[tuple(base)]], padded, low)

    def _decide_exactly(
        self, out: np.ndarray, chosen: np.ndarray, padded: np.ndarray, low: Sequence[int]
    ) -> None:
        """Labels at the flat indices ``chosen`` of ``out``, from the corners of their cells."""
        for first in range(0, len(chosen), CHUNK):
            at = chosen[first : first + CHUNK]
            base, rest = self._cells(at, padded.shape, low)
            corners = list(itertools.product((0, 1), repeat=padded.ndim))
            labels = np.stack([padded[tuple(base + np.array(c)[:, None])] for c in corners])
            weights = np.stack(
                [np.prod(np.where(np.array(c)[:, None], rest, 1 - rest), axis=0) for c in corners]
            )
            shares = np.stack([(weights * (labels == own)).sum(axis=0) for own in labels])
            tied = shares >= shares.max(axis=0) - 1e-9
            near = (rest >= 0.5 - 1e-9).astype(int)
            number = np.ravel_multi_index(tuple(near), (2,) * padded.ndim)[None]
            nearest = np.take_along_axis(labels, number, 0)[0]
            lowest = np.where(tied, labels, labels.max(axis=0)).min(axis=0)
            wins = np.take_along_axis(tied, number, 0)[0]
            out.reshape(-1)[at] = np.where(wins, nearest, lowest)

    def _cells(
        self, at: np.ndarray, padded: Sequence[int], low: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cell of a padded part, and place in it, of voxels given by flat index.

        ``(dims, n)`` each: lowest corner, and 0 to 1 from there.
        """
        index = np.stack(np.unravel_index(at, self.size)) - self.half[:, None]
        offset = self.centre - np.array(low) + 1
        place = self.matrix @ index + offset[:, None]
        end = np.array(padded)[:, None] - 1
        place = place.clip(0, end)  # beyond the padding is more of the same
        base = np.minimum(place.astype(np.intp), end - 1)
        return base, place - base

    def _grid_of(self, low: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
        """Places of all voxels in a part, in torch's units, ``(*size, dims)``.

        The last one is kept: the arrays of a sample have the same box.
        """
        key = (tuple(low), tuple(shape))
        if self._grid[0] != key:
            dims, single = len(shape), max(shape) <= SINGLE
            grid = np.empty((*self.size, dims), np.float32 if single else np.float64)
            index = [np.arange(n) - h for n, h in zip(self.size, self.half, strict=True)]
            for d, length in enumerate(shape):
                # Torch counts from -1 to 1 between the outer faces of the first and last voxel.
                unit = 2 / length
                terms = [unit * self.matrix[d, k] * index[k] for k in range(dims)]
                terms[-1] = terms[-1] + unit * (self.centre[d] - low[d] + 0.5) - 1
                last = terms[-1] if dims == 2 else terms[1][:, None] + terms[2]
                first = terms[0].reshape(-1, *(1,) * (dims - 1))
                np.add(first, last, out=grid[..., dims - 1 - d], casting="same_kind")
            self._grid = (key, torch.from_numpy(grid))
        return self._grid[1]


def _values(part: np.ndarray) -> np.ndarray:
    """Sorted values of an integer array."""
    if part.dtype.kind == "u" and part.dtype.itemsize <= 2:  # several times as quick
        return np.flatnonzero(np.bincount(part.reshape(-1))).astype(part.dtype)
    return np.unique(part)


class RandSpatiald(Randomizable, MapTransform):
    """Rotate and scale a patch at random, as nnU-Net does.

    The crop takes it over (:class:`pipeline.data.sampling.RandBalancedCropd`): it draws the
    transform before it reads. Called by itself it changes a patch that is cut already, with nothing
    known around it.

    Args:
        keys: entries of a sample, and the interpolation of each: ``bilinear`` or ``nearest``.
        size: ``(*S)`` of the patch.
        chances: probabilities of a rotation and of a scaling, 0 to 1.
        angles: largest angle about each axis in radians; one in 2D.
        scale: range of the factor; above 1 shows more of the volume, smaller.
        fixed: axis along which nothing is scaled; None: all are.
    """

    def __init__(
        self,
        keys: Mapping[str, str],
        size: Sequence[int],
        chances: tuple[float, float],
        angles: Sequence[float],
        scale: tuple[float, float],
        fixed: int | None = None,
    ) -> None:
        MapTransform.__init__(self, list(keys))
        self.modes, self.size, self.chances = dict(keys), tuple(size), chances
        self.angles, self.scale, self.fixed = tuple(angles), scale, fixed

    def draw(self, random: np.random.RandomState) -> np.ndarray | None:
        """Draw a transform.

        Uses up as many random numbers whatever comes out.

        Args:
            random: where numbers are drawn from.

        Returns:
            Its matrix (:class:`Warp`); None where the patch stays as it is.
        """
        draws = random.random_sample(3 + len(self.angles))
        rotates, scales = (bool(d < p) for d, p in zip(draws, self.chances, strict=False))
        if not (rotates or scales):
            return None
        angles = [(2 * d - 1) * most for d, most in zip(draws[3:], self.angles, strict=True)]
        low, high = self.scale
        factors = np.full(len(self.size), low + draws[2] * (high - low) if scales else 1.0)
        if self.fixed is not None:
            factors[self.fixed] = 1
        turned = rotation(angles) if rotates else np.eye(len(self.size))
        return turned * factors  # the columns: scaled first

    def randomize(self, data: Any = None) -> np.ndarray | None:
        """Draw a transform from the own state.

        Args:
            data: not used.

        Returns:
            As of :meth:`draw`.
        """
        return self.draw(self.R)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out, matrix = dict(data), self.randomize()
        if matrix is None:
            return out
        zero = (0,) * len(self.size)
        for key in self.key_iterator(out):
            array = np.asarray(out[key])
            warp = Warp(matrix, zero, array.shape[1:])
            make = warp.labels if self.modes[str(key)] == "nearest" else warp.linear
            out[key] = make(array, zero, 0)
        return out


def rules(
    size: Sequence[int], degrees: float | None, dummy_2d: bool | None
) -> tuple[tuple[float, ...], int | None]:
    """Largest angles for a patch, and the axis that is left alone.

    Args:
        size: ``(*S)`` of the patch.
        degrees: largest angle in degrees; None: nnU-Net's.
        dummy_2d: rotate and scale the planes across the shortest axis of a volume alone; None:
            where the longest is more than three times as long.

    Returns:
        Largest angle about each axis in radians, one in 2D; the shortest axis, or None.

    Example:
        >>> rules((16, 64, 64), None, None)[1], rules((64, 64, 64), None, None)[1]
        (0, None)
    """
    dims, slender = len(size), max(size) / min(size) > SLENDER[len(size)]
    if dims == 2:
        usual = 15.0 if slender else 180.0
        return (math.radians(usual if degrees is None else degrees),), None
    if not (slender if dummy_2d is None else dummy_2d):
        return (math.radians(30.0 if degrees is None else degrees),) * 3, None
    fixed = list(size).index(min(size))
    angle = math.radians(180.0 if degrees is None else degrees)
    return tuple(angle if axis == fixed else 0.0 for axis in range(3)), fixed
