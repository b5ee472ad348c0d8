"""Tiles, blending windows, padding and flips in any number of space axes, without a network.

The arithmetic of tiled prediction.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

FLOOR = 1e-3
"""Smallest blending weight, so that each voxel of a tile contributes (MONAI's value)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Cover of a space by equal tiles.

    Every tile starts and ends on multiples of ``multiple``, so that a tile is pooled as the whole
    space would be: the tile is rounded up to it, the steps between tiles are rounded down to it,
    and the space is padded at its far ends to the next multiple, where the last tile ends. A space
    smaller than the tile shrinks the tile to the padded space: along that axis it is computed in
    one piece, as it would be without tiles. ``tile`` and ``multiple`` read as they came out of
    this, not as they were given.

    Args:
        size: voxels of the space ``(*S)``.
        tile: voxels of a tile.
        overlap: voxels that neighbours share (at most half of what remains of a tile between its
            halos), or what ``multiple`` makes of that.
        window: blending weight inside a tile, a name in ``WINDOWS``.
        one_sided: whether the window stays at its maximum towards a border of the space, where no
            other tile takes over.
        halo: voxels at the inner faces of a tile that are computed but not used.
        multiple: total stride of the network along each axis; empty: 1 along each.
        steps: distance of neighbouring tiles along each axis, whatever ``overlap`` says (rounded
            down to ``multiple``, at least once that); empty: as ``overlap`` says.
        sigma_scale: standard deviation of the Gaussian along each axis as a share of the tile;
            empty: 1/8.

    Raises:
        ValueError: where no such tiling exists.

    Example:
        >>> tiling = Tiling(size=(100, 80), tile=(64, 64), overlap=16, multiple=(16, 16))
        >>> tiling.padded, list(tiling.origins())
        ((112, 80), [(0, 0), (0, 16), (48, 0), (48, 16)])
    """

    size: tuple[int, ...]
    tile: tuple[int, ...]
    overlap: int = 0
    window: str = "gaussian"
    one_sided: bool = True
    halo: int = 0
    multiple: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    sigma_scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        multiple = self.multiple or (1,) * len(self.size)
        if not len(self.size) == len(self.tile) == len(multiple):
            raise ValueError(
                f"tile {self.tile}, multiple {multiple} and space {self.size} differ in their"
                " number of axes"
            )
        if any(
            per_axis and len(per_axis) != len(self.size)
            for per_axis in (self.steps, self.sigma_scale)
        ):
            raise ValueError(
                f"steps {self.steps} and sigma_scale {self.sigma_scale} need one value for each of"
                f" {len(self.size)} axes"
            )
        if self.window not in WINDOWS:
            raise ValueError(f"window {self.window!r} is unknown; known: {', '.join(WINDOWS)}")
        object.__setattr__(self, "multiple", multiple)
        object.__setattr__(
            self,
            "tile",
            tuple(
                min(up(t, g), p) for t, g, p in zip(self.tile, multiple, self.padded, strict=True)
            ),
        )
        for tile, g, n in zip(self.tile, multiple, self.padded, strict=True):
            if n > tile and tile - 2 * self.halo < g:
                least = up(2 * self.halo + g, g)
                raise ValueError(
                    f"tile {self.tile} leaves too little between two halos of {self.halo}; enlarge"
                    f" it to at least {least}"
                )
        for tile, step, n in zip(self.tile, self.steps, self.padded, strict=False):
            if n > tile and step > tile - 2 * self.halo:
                raise ValueError(
                    f"steps {self.steps} leave gaps: at most {tile - 2 * self.halo} of a tile of"
                    f" {tile} are used"
                )

    @property
    def padded(self) -> tuple[int, ...]:
        """Voxels of the space after padding: the next multiples of ``multiple``."""
        return tuple(up(n, g) for n, g in zip(self.size, self.multiple, strict=True))

    def starts(self, axis: int) -> list[int]:
        """First voxel of every tile along one axis, increasing, multiples of ``multiple``.

        Args:
            axis: space axis, from 0.

        Returns:
            Starts in the padded space.

        Example:
            >>> Tiling(size=(100,), tile=(64,), overlap=16).starts(0)
            [0, 36]
            >>> Tiling(size=(100,), tile=(64,), overlap=16, multiple=(16,)).starts(0)
            [0, 48]
        """
        n, tile = self.padded[axis], self.tile[axis]
        return [*range(0, n - tile, self._stride(axis)), n - tile]

    def _stride(self, axis: int) -> int:
        """Distance of neighbouring tiles along an axis, a positive multiple of ``multiple``."""
        core, multiple = self.tile[axis] - 2 * self.halo, self.multiple[axis]
        if self.steps:
            return max(1, self.steps[axis] // multiple) * multiple
        return max(1, (core - min(self.overlap, core // 2)) // multiple) * multiple

    def origins(self) -> Iterator[tuple[int, ...]]:
        """First voxel of every tile, in C order.

        All tiles of one start along the first axis come together.

        Returns:
            One tuple of starts for each tile.
        """
        return itertools.product(*(self.starts(a) for a in range(len(self.size))))

    def count(self) -> int:
        """Number of tiles.

        Returns:
            Product of the numbers of starts along the axes.
        """
        return int(np.prod([len(self.starts(a)) for a in range(len(self.size))]))

    def reaches(self, origin: Sequence[int], first: int, end: int) -> bool:
        """Whether a tile has a weight in any of some rows along the first axis.

        Args:
            origin: first voxel of the tile.
            first: first row.
            end: row after the last.

        Returns:
            True where a row between ``first`` and ``end`` lies in the tile and outside its halo.

        Example:
            >>> tiling = Tiling(size=(100,), tile=(64,), halo=8, multiple=(4,))
            >>> [tiling.reaches((start,), 0, 44) for start in (0, 36)]
            [True, False]
        """
        low = origin[0] + (self.halo if origin[0] else 0)
        high = (
            origin[0]
            + self.tile[0]
            - (self.halo if origin[0] < self.padded[0] - self.tile[0] else 0)
        )
        return low < end and high > first

    @property
    def step(self) -> int:
        """Distance of neighbouring tiles along the first axis; only the last one may be nearer."""
        return self._stride(0) if self.padded[0] > self.tile[0] else self.padded[0]

    def weights(self, origin: Sequence[int]) -> np.ndarray:
        """Blending weight of each voxel of a tile.

        Args:
            origin: first voxel of the tile.

        Returns:
            float32 of the shape ``tile``; at least ``FLOOR`` outside the halo, 0 inside it.
        """
        profiles, inside = [], []
        for axis, start in enumerate(origin):
            first, last = start == 0, start == self.padded[axis] - self.tile[axis]
            profiles.append(self._profile(axis, first, last))
            used = np.ones(self.tile[axis], bool)
            used[: 0 if first else self.halo] = False
            used[len(used) - (0 if last else self.halo) :] = False
            inside.append(used)
        return np.maximum(_outer(profiles), FLOOR).astype(np.float32) * _outer(inside)

    def _profile(self, axis: int, first: bool, last: bool) -> np.ndarray:
        """Window along an axis, flat towards a border of the space where ``one_sided`` says so."""
        n = self.tile[axis]
        if self.window == "gaussian" and self.sigma_scale:
            profile = _gaussian(n, self.overlap, self.sigma_scale[axis])
        else:
            profile = WINDOWS[self.window](n, self.overlap)
        if self.one_sided and first:
            profile = np.concatenate([np.full(n // 2, profile.max()), profile[n // 2 :]])
        if self.one_sided and last:
            profile = np.concatenate([profile[: n - n // 2], np.full(n // 2, profile.max())])
        return profile


def up(n: int, multiple: int) -> int:
    """Round up to the next multiple.

    Args:
        n: a number of voxels.
        multiple: a positive number.

    Returns:
        The smallest multiple from ``n`` on.

    Example:
        >>> up(17, 16), up(16, 16)
        (32, 16)
    """
    return -(-n // multiple) * multiple


def _outer(profiles: Sequence[np.ndarray]) -> np.ndarray:
    """Outer product of profiles, one axis for each."""
    out = np.ones((), profiles[0].dtype)
    for profile in profiles:
        out = out[..., None] * profile
    return out


def _gaussian(n: int, overlap: int, sigma_scale: float = 1 / 8) -> np.ndarray:
    """Gaussian about the tile's centre; by default its standard deviation is n / 8.

    As in MONAI and nnU-Net.
    """
    x = np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)
    return np.exp(-(x**2) / np.float32(2 * (n * sigma_scale) ** 2))


def _hann(n: int, overlap: int) -> np.ndarray:
    """Raised cosine with its zeros one step outside the tile.

    The plain window is zero on the outermost voxels.
    """
    return (np.sin(np.pi * np.arange(1, n + 1) / (n + 1)) ** 2).astype(np.float32)


def _feather(n: int, overlap: int) -> np.ndarray:
    """Linear ramp over the overlap, 1 in between; two facing ramps add up to 1."""
    edge = np.arange(1, n + 1) / (min(overlap, n // 2) + 1)
    return np.minimum(1, np.minimum(edge, edge[::-1])).astype(np.float32)


def _constant(n: int, overlap: int) -> np.ndarray:
    return np.ones(n, np.float32)


WINDOWS = {"gaussian": _gaussian, "hann": _hann, "feather": _feather, "constant": _constant}
"""Blending windows by name: functions of tile length and overlap, float32 ``(n,)``."""


def crop(
    array: np.ndarray, start: Sequence[int], size: Sequence[int], fill: float = 0
) -> np.ndarray:
    """Copy a box from the last axes of an array; what lies outside of it is filled.

    Args:
        array: ``(..., *S)``.
        start: first voxel of the box along each space axis; may be negative.
        size: voxels of the box along each space axis.
        fill: value outside of the array.

    Returns:
        A new array ``(..., *size)`` of the same type.

    Example:
        >>> crop(np.arange(4), [-1], [3]).tolist()
        [0, 0, 1]
    """
    space = array.shape[-len(start) :]
    low = [max(s, 0) for s in start]
    high = [min(s + n, m) for s, n, m in zip(start, size, space, strict=True)]
    part = array[(..., *(slice(a, max(a, b)) for a, b in zip(low, high, strict=True)))]
    if part.shape[-len(start) :] == tuple(size):
        return np.array(part)
    out = np.full((*array.shape[: array.ndim - len(start)], *size), fill, array.dtype)
    out[(..., *(slice(a - s, max(a, b) - s) for a, b, s in zip(low, high, start, strict=True)))] = (
        part
    )
    return out


def flips(dims: int) -> list[tuple[int, ...]]:
    """List every set of space axes to flip, the identity first.

    Args:
        dims: number of space axes.

    Returns:
        Sets of axes, counted from the end, so that they fit any leading axes.

    Example:
        >>> flips(2)
        [(), (-2,), (-1,), (-2, -1)]
    """
    axes = range(-dims, 0)
    return [c for k in range(dims + 1) for c in itertools.combinations(axes, k)]
