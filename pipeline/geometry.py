"""Tiles, blending windows, padding and flips for any number of space axes: the arithmetic of tiled prediction, without a network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

FLOOR = 1e-3
"""Smallest blending weight: no voxel of a tile is ever without a vote (MONAI's value)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a space of ``size`` voxels is covered by equal tiles.

    A space smaller than the tile is padded to it, half on each side. Neighbouring tiles share ``overlap`` voxels (at most half of
    what remains of a tile between its halos); the last tile is moved inside, so no tile leaves the padded space.
    ``halo`` voxels at the inner faces of a tile are computed but not used.
    """

    size: tuple[int, ...]
    tile: tuple[int, ...]
    overlap: int = 0
    window: str = "gaussian"
    one_sided: bool = True
    halo: int = 0

    def __post_init__(self) -> None:
        if len(self.size) != len(self.tile):
            raise ValueError(f"tile {self.tile} and space {self.size} differ in their number of axes")
        if min(self.tile) <= 2 * self.halo:
            raise ValueError(f"tile {self.tile} leaves nothing between two halos of {self.halo}; enlarge the tile")
        if self.window not in WINDOWS:
            raise ValueError(f"window {self.window!r} is unknown; known: {', '.join(WINDOWS)}")

    @property
    def padded(self) -> tuple[int, ...]:
        """Size of the space after padding."""
        return tuple(max(n, t) for n, t in zip(self.size, self.tile, strict=True))

    @property
    def before(self) -> tuple[int, ...]:
        """Voxels of padding in front of the first voxel, per axis."""
        return tuple((p - n) // 2 for p, n in zip(self.padded, self.size, strict=True))

    def starts(self, axis: int) -> list[int]:
        """First voxel of every tile along one axis, in the padded space, increasing.

        >>> Tiling(size=(100,), tile=(64,), overlap=16).starts(0)
        [0, 36]
        """
        n, tile = self.padded[axis], self.tile[axis]
        core = tile - 2 * self.halo
        stride = max(1, core - min(self.overlap, core // 2))
        starts = list(range(0, n - tile, stride))
        return [*starts, n - tile]

    def places(self) -> Iterator[tuple[int, ...]]:
        """First voxel of every tile in C order: all tiles of one start along the first axis come together."""
        return itertools.product(*(self.starts(a) for a in range(len(self.size))))

    def count(self) -> int:
        """Number of tiles."""
        return int(np.prod([len(self.starts(a)) for a in range(len(self.size))]))

    def weights(self, place: Sequence[int]) -> np.ndarray:
        """Blending weight of the tile at ``place``: float32, shape ``tile``; at least ``FLOOR`` outside the halo, 0 inside it."""
        profiles, inside = [], []
        for axis, start in enumerate(place):
            first, last = start == 0, start == self.padded[axis] - self.tile[axis]
            profiles.append(self._profile(self.tile[axis], first, last))
            used = np.ones(self.tile[axis], bool)
            used[: 0 if first else self.halo] = False
            used[len(used) - (0 if last else self.halo) :] = False
            inside.append(used)
        return np.maximum(_outer(profiles), FLOOR).astype(np.float32) * _outer(inside)

    def _profile(self, n: int, first: bool, last: bool) -> np.ndarray:
        profile = WINDOWS[self.window](n, self.overlap)
        if self.one_sided and first:
            profile = np.concatenate([np.full(n // 2, profile.max()), profile[n // 2 :]])
        if self.one_sided and last:
            profile = np.concatenate([profile[: n - n // 2], np.full(n // 2, profile.max())])
        return profile


def _outer(profiles: Sequence[np.ndarray]) -> np.ndarray:
    out = np.ones((), profiles[0].dtype)
    for profile in profiles:
        out = out[..., None] * profile
    return out


def _gaussian(n: int, overlap: int) -> np.ndarray:
    """Standard deviation n / 8 about the tile's centre, as in MONAI and nnU-Net."""
    x = np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)
    return np.exp(-(x**2) / np.float32(2 * (n / 8) ** 2))


def _hann(n: int, overlap: int) -> np.ndarray:
    """Raised cosine whose zeros lie one step outside the tile: the plain window is zero on the outermost voxels."""
    return (np.sin(np.pi * np.arange(1, n + 1) / (n + 1)) ** 2).astype(np.float32)


def _feather(n: int, overlap: int) -> np.ndarray:
    """Linear ramp over the overlap, 1 in between; two facing ramps add up to 1."""
    edge = np.arange(1, n + 1) / (min(overlap, n // 2) + 1)
    return np.minimum(1, np.minimum(edge, edge[::-1])).astype(np.float32)


def _constant(n: int, overlap: int) -> np.ndarray:
    return np.ones(n, np.float32)


WINDOWS = {"gaussian": _gaussian, "hann": _hann, "feather": _feather, "constant": _constant}


def crop(array: np.ndarray, start: Sequence[int], size: Sequence[int], fill: float = 0) -> np.ndarray:
    """Copy of the box at ``start`` (may be negative) of ``size`` from the last axes of ``array``; outside is ``fill``.

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
    out[(..., *(slice(a - s, max(a, b) - s) for a, b, s in zip(low, high, start, strict=True)))] = part
    return out


def flips(dims: int) -> list[tuple[int, ...]]:
    """Every set of space axes to flip, the identity first; axes count from the end, so that they fit any leading axes.

    >>> flips(2)
    [(), (-2,), (-1,), (-2, -1)]
    """
    axes = range(-dims, 0)
    return [c for k in range(dims + 1) for c in itertools.combinations(axes, k)]
