"""The part of an image that was measured: its non-zero voxels and the holes among them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from pipeline.files import LazyArray, slabs


def mask_of(array: LazyArray) -> np.ndarray:
    """Voxels where any channel is not zero, with their holes.

    Args:
        array: ``(C, *S)``, in memory or read as it is sliced: then slab by slab, and the mask alone
            is held, one byte a voxel (three while holes are filled).

    Returns:
        Bool ``(*S)``.

    Example:
        >>> mask_of(np.array([[[0, 0, 0, 0, 0], [0, 5, 5, 5, 0], [0, 5, 0, 5, 0], [0, 5, 5, 5, 0]]])
        ... ).astype(int).tolist()
        [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0]]
    """
    found = np.zeros(array.shape[1:], bool)
    for first, end in slabs(array):
        for channel in array[:, first:end]:
            found[first:end] |= channel != 0
    return found if found.all() else np.asarray(ndimage.binary_fill_holes(found))


@dataclass(slots=True)
class Whole:
    """An array, and its mask, which is found once and only where it is asked for."""

    array: LazyArray
    _mask: np.ndarray | None = field(default=None, init=False, repr=False)

    @property
    def mask(self) -> np.ndarray:
        """:func:`mask_of` of the array, ``(*S)``."""
        if self._mask is None:
            self._mask = mask_of(self.array)
        return self._mask


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel of an array, as an array ``(1, *S)`` that is read as it is sliced."""

    whole: Whole
    number: int
    """Of the channel, from 0."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(1, *S)``."""
        return (1, *self.whole.array.shape[1:])

    @property
    def dtype(self) -> Any:
        """Number type of the values."""
        return self.whole.array.dtype

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: Any, /) -> np.ndarray:
        """Part of the channel, as of the whole array.

        Args:
            key: of channels (there is one), then of each axis that is to be cut.

        Returns:
            ``(1, rows, ...)`` for a slice of channels.
        """
        channel, *rest = key if isinstance(key, tuple) else (key,)
        return self.whole.array[(slice(self.number, self.number + 1), *rest)][channel]


def inside(array: LazyArray) -> np.ndarray:
    """Mask of the image that an array is, or is a channel of.

    Args:
        array: ``(C, *S)`` or a :class:`Channel`.

    Returns:
        Bool ``(*S)``.
    """
    return array.whole.mask if isinstance(array, Channel) else mask_of(array)


def in_memory(array: LazyArray) -> bool:
    """Whether an array, or the one that it is a channel of, lies in memory.

    Args:
        array: ``(C, *S)`` or a :class:`Channel`.

    Returns:
        False for what is read as it is sliced.
    """
    return isinstance(array.whole.array if isinstance(array, Channel) else array, np.ndarray)
