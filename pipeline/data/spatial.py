"""Rotation and scaling of a patch while it is read: only the box that it needs is.

A patch that is rotated after it was cut lacks its corners. Here the transform is drawn first; then
the voxels of the transformed patch are read from the memory map, no more, and interpolated once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import MapTransform, Randomizable

SLENDER = {2: 1.5, 3: 3.0}
"""Longest to shortest side of a patch above which rotations are restricted, by space axes.

2D: smaller angles; 3D: about the shortest axis alone. As in nnU-Net.
"""


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
        out = np.empty((len(part), *self.size), np.float32)
        _kernels().linear(*self._seen(part.astype(np.float32, copy=False), low, float(fill), out))
        return out

    def labels(self, part: np.ndarray, low: Sequence[int], fill: int) -> np.ndarray:
        """Label with the largest share of each voxel.

        Shares are those of linear interpolation of each label's mask, in float64. Equal ones go to
        the nearest voxel's label, or to the lowest where that has less.

        Args:
            part: ``(C, *T)``, as of :meth:`linear`; each channel for itself.
            low: first voxel of ``part`` in the volume.
            fill: label around ``part``.

        Returns:
            ``(C, *size)`` of the same type.
        """
        kind = part.dtype
        if kind != np.uint8:  # one more compiled loop, for all other types
            part = part.astype(np.int32)
        out = np.empty((len(part), *self.size), part.dtype)
        _kernels().labels(*self._seen(part, low, part.dtype.type(fill), out))
        return out.astype(kind, copy=False)

    def _seen(
        self, part: np.ndarray, low: Sequence[int], fill: Any, out: np.ndarray
    ) -> tuple[Any, ...]:
        """Arguments of a kernel: volumes, an image as one of one slice."""
        missing = 3 - len(self.size)
        matrix, offset = np.eye(3), np.zeros(3)
        matrix[missing:, missing:] = self.matrix
        offset[missing:] = self.centre - np.array(low) - self.matrix @ self.half
        part = np.require(part, requirements=("C", "W"))  # else one more compiled loop
        part, out = (a[:, None] if missing else a for a in (part, out))
        return part, matrix, offset, fill, out


def _kernels() -> Any:
    """The compiled loops."""
    from pipeline.data import _warping

    return _warping


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
        rotated = rotation(angles) if rotates else np.eye(len(self.size))
        return rotated * factors  # the columns: scaled first

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
