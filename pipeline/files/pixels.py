"""Arrays that stay in their file: what is sliced out of them is read, and one slab of rows at a
time is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

SLAB = 2**22
"""Bytes of a slab that a pass over a whole array reads at a time, if that are at least ``ROWS``
rows.
"""

ROWS = 16
"""Fewest rows of such a slab: components of thinner ones would mostly be parts of others."""


class LazyArray(Protocol):
    """What a numpy array ``(C, *S)`` and one that is read when it is sliced have in common."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> np.ndarray: ...


@dataclass(slots=True)
class Rows:
    """Array ``(C, *S)`` made by ``make(first, end)``: all channels of those rows along the first
    space axis, ``(C, end - first, ...)``.

    Slices must have step 1. The rows asked for last are kept, since neighbouring tiles want the
    same ones: memory follows one slab.
    """

    shape: tuple[int, ...]
    dtype: Any
    make: Callable[[int, int], np.ndarray]
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
        """Rows ``first`` to ``end``; what is kept of them already is not made again."""
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
    """Ranges of rows (first, end) that cover the first space axis; unless ``rows`` says how many
    each holds, as many as make ``SLAB`` bytes, at least ``ROWS``.
    """
    high = array.shape[1]
    rows = rows or max(ROWS, SLAB // max(1, row_bytes(array.shape, array.dtype)))
    return ((first, min(first + rows, high)) for first in range(0, high, rows))


def row_bytes(shape: Sequence[int], dtype: Any) -> int:
    """Bytes of one row along the first space axis of ``(C, *S)``, all channels."""
    return math.prod(shape) // max(1, shape[1]) * np.dtype(dtype).itemsize
