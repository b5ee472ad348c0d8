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
        ranges: consecutive rows ``(first, end)`` along the first space axis, by number of the slab.
        make: from a slab's number to its rows: ``(rows, ...)``, with channels ``(K, rows, ...)``.

    Example:
        >>> array = np.arange(6).reshape(3, 2)
        >>> slabs = SlabArray((3, 2), {0: (0, 2), 1: (2, 3)}, lambda n: array[2 * n : 2 * n + 2])
        >>> (slabs >= 3).make(1)
        array([[ True,  True]])
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
        """Apply a function that keeps shapes to each slab.

        Args:
            change: from rows to rows.

        Returns:
            A new lazy array.
        """
        return SlabArray(self.shape, self.ranges, lambda number: change(self.make(number)))

    def astype(self, dtype: Any) -> SlabArray:
        """Convert the values to another number type.

        Args:
            dtype: NumPy type.

        Returns:
            A new lazy array.
        """
        return self.map(lambda rows: rows.astype(dtype))

    def channel(self, index: int) -> SlabArray:
        """Take one channel of an array ``(K, *S)``.

        Args:
            index: of the channel.

        Returns:
            A lazy array ``(*S)``.
        """
        return SlabArray(self.shape[1:], self.ranges, lambda number: self.make(number)[index])

    def crop(self, box: tuple[slice, ...]) -> SlabArray:
        """Take the part of an array ``(*S)`` in a box.

        Args:
            box: a slice with a start and a stop for each axis; stops may lie beyond the array.

        Returns:
            A lazy array; slabs keep their numbers, those outside are gone.
        """
        rows, *others = box
        cut = {n: (max(a, rows.start), min(b, rows.stop)) for n, (a, b) in self.ranges.items()}
        ranges = {n: (a, b) for n, (a, b) in cut.items() if a < b}

        def make(number: int) -> np.ndarray:
            first, (start, stop) = self.ranges[number][0], ranges[number]
            return self.make(number)[(slice(start - first, stop - first), *others)]

        shape = tuple(min(s.stop, n) - s.start for s, n in zip(box, self.shape, strict=True))
        return SlabArray(shape, ranges, make)
