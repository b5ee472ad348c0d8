"""Arrays larger than memory: rows are read as they are sliced, and one slab is kept at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

SLAB = 2**22
"""Bytes of a slab that a pass over a whole array reads at a time, unless ROWS rows are more."""

ROWS = 16
"""Fewest rows of a slab: components of thinner ones would mostly be parts of others."""


class LazyArray(Protocol):
    """What a numpy array ``(C, *S)`` and one that is read as it is sliced have in common."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, *S)``."""
        ...

    @property
    def dtype(self) -> Any:
        """Dtype of the values."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> np.ndarray: ...


@dataclass(slots=True)
class Rows:
    """Array ``(C, *S)`` whose rows along the first space axis are computed as they are sliced.

    Slices must have step 1. The rows of the last access are kept, because neighbouring tiles need
    the same ones: memory holds one slab.

    Example:
        >>> def make(first, end):
        ...     return np.arange(first, end).reshape(1, -1, 1)
        >>> Rows((1, 9, 1), np.int64, make)[:, 3:5].ravel().tolist()
        [3, 4]
    """

    shape: tuple[int, ...]
    """``(C, *S)``."""
    dtype: Any
    """Dtype of the values."""
    make: Callable[[int, int], np.ndarray]
    """``make(first, end)``: those rows of all channels, ``(C, end - first, ...)``."""
    _first: int = field(default=0, init=False, repr=False)
    _kept: Any = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any, /) -> np.ndarray:
        parts = () if key is Ellipsis else key if isinstance(key, tuple) else (key,)
        channel, rows, *rest = (*parts, *[slice(None)] * (len(self.shape) - len(parts)))
        first, end, _ = rows.indices(self.shape[1])
        return self._slab(first, max(first, end))[(channel, slice(None), *rest)]

    def _slab(self, first: int, end: int) -> np.ndarray:
        """Rows ``first`` to ``end``; those that are kept already are not computed again."""
        if first == end:
            return np.empty((self.shape[0], 0, *self.shape[2:]), self.dtype)
        kept, start = self._kept, self._first
        stop = start + (0 if kept is None else kept.shape[1])
        if kept is not None and start <= first and end <= stop:
            return kept[:, first - start : end - start]
        if kept is not None and start <= first < stop < end:
            new = np.empty((self.shape[0], end - first, *self.shape[2:]), self.dtype)
            new[:, : stop - first] = kept[:, first - start :]
            self._kept = kept = None
            new[:, stop - first :] = self.make(stop, end)
        else:
            self._kept = kept = None
            new = np.ascontiguousarray(self.make(first, end), self.dtype)
        self._first, self._kept = first, new
        return new


def slabs(array: LazyArray, rows: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges of rows that cover the first space axis.

    Args:
        array: ``(C, *S)``.
        rows: rows of each range; None: as many as make SLAB bytes, at least ROWS.

    Returns:
        Iterator over ``(first, end)``.

    Example:
        >>> list(slabs(np.zeros((1, 5, 2)), rows=2))
        [(0, 2), (2, 4), (4, 5)]
    """
    high = array.shape[1]
    rows = rows or max(ROWS, SLAB // max(1, row_bytes(array.shape, array.dtype)))
    return ((first, min(first + rows, high)) for first in range(0, high, rows))


def row_bytes(shape: Sequence[int], dtype: Any) -> int:
    """Size of one row along the first space axis, all channels.

    Args:
        shape: ``(C, *S)``.
        dtype: dtype of the array.

    Returns:
        Bytes.
    """
    return math.prod(shape) // max(1, shape[1]) * np.dtype(dtype).itemsize
