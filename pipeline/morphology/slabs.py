"""Arrays that are made one slab at a time, so that memory follows a slab and not the volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class SlabArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array ``(*S)``, or ``(K, *S)`` with channels, of which some rows are made at a time.

    Operators and elementwise functions of NumPy give another such array and compute nothing yet.

    Args:
        shape: that of the whole array.
        ranges: rows ``(first, end)`` along the first space axis of each slab, by the slab's
            number; consecutive.
        make: from a slab's number to its rows: ``(rows, ...)``, with channels ``(K, rows, ...)``.
    """

    shape: tuple[int, ...]
    ranges: Mapping[int, tuple[int, int]]
    make: Callable[[int], np.ndarray]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options:
            return NotImplemented

        def make(number: int) -> np.ndarray:
            return ufunc(*(i.make(number) if isinstance(i, SlabArray) else i for i in inputs))

        return SlabArray(self.shape, self.ranges, make)

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> SlabArray:
        """Each slab changed by a function that keeps its shape."""
        return SlabArray(self.shape, self.ranges, lambda number: change(self.make(number)))

    def astype(self, dtype: Any) -> SlabArray:
        """The same values as another number type."""
        return self.map(lambda rows: rows.astype(dtype))

    def channel(self, index: int) -> SlabArray:
        """One channel ``(*S)`` of an array ``(K, *S)``."""
        return SlabArray(self.shape[1:], self.ranges, lambda number: self.make(number)[index])

    def crop(self, box: tuple[slice, ...]) -> SlabArray:
        """The part of an array ``(*S)`` in a box; slabs keep their numbers, those outside are gone.

        Args:
            box: a slice with a start and a stop for each axis; stops may lie beyond the array.
        """
        rows, *others = box
        cut = {n: (max(a, rows.start), min(b, rows.stop)) for n, (a, b) in self.ranges.items()}
        ranges = {n: (a, b) for n, (a, b) in cut.items() if a < b}

        def make(number: int) -> np.ndarray:
            first, (start, stop) = self.ranges[number][0], ranges[number]
            return self.make(number)[(slice(start - first, stop - first), *others)]

        shape = tuple(min(s.stop, n) - s.start for s, n in zip(box, self.shape, strict=True))
        return SlabArray(shape, ranges, make)
