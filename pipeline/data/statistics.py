"""Percentiles, extremes and moments of arrays, in memory or slab by slab.

Percentiles are those of ``np.percentile`` (linear), and exact for every number type of up to 32
bits: numbers are mapped to unsigned integers in the same order, and their upper and then their
lower 16 bits are counted, in two passes. Mean and deviation are merged from slabs in float64 (Chan,
Golub, LeVeque 1983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.files import LazyArray, slabs

CHUNK = 2**20
"""Voxels counted at a time: ``np.bincount`` turns its input into int64, eight times the size of
uint8.
"""


def extremes(array: LazyArray) -> list[tuple[float, float]]:
    """Least and greatest finite value of each channel.

    Args:
        array: ``(C, *S)``, in memory or read as it is sliced.

    Returns:
        One pair per channel; zeros where no value is finite.

    Example:
        >>> extremes(np.array([[3, -1, 2]]))
        [(-1.0, 3.0)]
    """
    found = [(np.inf, -np.inf)] * len(array)
    for first, end in slabs(array):
        for n, channel in enumerate(array[:, first:end]):
            values = channel[np.isfinite(channel)] if channel.dtype.kind == "f" else channel
            if values.size:
                found[n] = (
                    min(found[n][0], float(values.min())),
                    max(found[n][1], float(values.max())),
                )
    return [pair if pair[0] <= pair[1] else (0.0, 0.0) for pair in found]


def percentiles_in_memory(values: np.ndarray, at: Sequence[float]) -> tuple[float, ...]:
    """Percentiles of one channel, from a histogram for 8 and 16 bits."""
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if values.size == 0:
        return (0.0,) * len(at)
    if values.dtype not in (np.uint8, np.uint16):
        return tuple(float(x) for x in np.percentile(values, at))
    cumulative = np.cumsum(histogram(values))
    return tuple(_from_histogram(cumulative, q / 100 * (values.size - 1)) for q in at)


def _from_histogram(cumulative: np.ndarray, position: float) -> float:
    """Value at a fractional position of the sorted sample with this cumulative histogram."""
    pair = {
        n: float(np.searchsorted(cumulative, min(n, int(cumulative[-1]) - 1), side="right"))
        for n in (int(position), int(position) + 1)
    }
    return interpolated(pair, position)


def histogram(values: np.ndarray) -> np.ndarray:
    """How often each value of its number type occurs in an array.

    Args:
        values: uint8 or uint16, any shape.

    Returns:
        int64 counts, one for each value from 0 to the largest of the type.

    Example:
        >>> histogram(np.array([1, 1, 255], np.uint8))[[0, 1, 255]].tolist()
        [0, 2, 1]
    """
    bins = int(np.iinfo(values.dtype).max) + 1
    total = np.zeros(bins, np.int64)
    flat = values.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        total += np.bincount(flat[start : start + CHUNK], minlength=bins)
    return total


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations of the finite values met so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: np.ndarray) -> None:
        """Merge further values."""
        values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if not values.size:
            return
        mean = float(values.mean(dtype=np.float64))
        self.merge(values.size, mean, float(values.var(dtype=np.float64)) * values.size)

    def merge(self, count: int, mean: float, squares: float) -> None:
        """Merge the moments of further values.

        Args:
            count: how many, at least 1.
            mean: theirs.
            squares: sum of their squared differences from it.
        """
        total, step = self.count + count, mean - self.mean
        self.squares += squares + step**2 * self.count * count / total
        self.mean += step * count / total
        self.count = total

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return (self.squares / self.count) ** 0.5 if self.count else 0.0


def percentiles_by_slabs(array: LazyArray, at: Sequence[float]) -> list[tuple[float, ...]]:
    """:func:`~pipeline.data.normalise.percentiles`, slab by slab."""
    upper = np.zeros((len(array), 2**16), np.int64)
    for first, end in slabs(array):
        for counts, channel in zip(upper, array[:, first:end], strict=True):
            counts += _histogram_of_16_bits(_sort_keys(channel) >> 16)
    totals = upper.sum(1)
    ranks = [[q / 100 * (int(n) - 1) for q in at] if n else [] for n in totals]
    positions = [
        sorted({min(int(r) + more, int(n) - 1) for r in rs for more in (0, 1)})
        for rs, n in zip(ranks, totals, strict=True)
    ]
    values = _order_statistics(array, upper, positions)
    return [
        tuple(interpolated(found, r) for r in rs) if rs else (0.0,) * len(at)
        for rs, found in zip(ranks, values, strict=True)
    ]


def interpolated(found: dict[int, float], rank: float) -> float:
    """Value at a fractional rank, given those at whole ranks."""
    below = int(rank)
    low, high = found[below], found[min(below + 1, max(found))]
    fraction = rank - below
    # The two forms in which numpy interpolates, so that results agree to the last bit.
    return (
        high - (high - low) * (1 - fraction) if fraction >= 0.5 else low + (high - low) * fraction
    )


def _order_statistics(
    array: LazyArray, upper: np.ndarray, positions: Sequence[Sequence[int]]
) -> list[dict[int, float]]:
    """Values at some positions of each sorted channel, given how often each upper half occurs."""
    sums = np.cumsum(upper, axis=1)
    halves = [
        [int(np.searchsorted(sums[c], p, side="right")) for p in ps]
        for c, ps in enumerate(positions)
    ]
    lower = [{half: np.zeros(2**16, np.int64) for half in hs} for hs in halves]
    for first, end in slabs(array):
        for counts, channel in zip(lower, array[:, first:end], strict=True):
            keys = _sort_keys(channel)
            for half, count in counts.items():
                count += _histogram_of_16_bits(keys[keys >> 16 == half] & 0xFFFF)
    out = []
    for c, ps in enumerate(positions):
        found = {}
        for position, half in zip(ps, halves[c], strict=True):
            before = int(sums[c][half] - upper[c][half])
            low = int(np.searchsorted(np.cumsum(lower[c][half]), position - before, side="right"))
            found[position] = _from_sort_key((half << 16) | low, np.dtype(array.dtype))
        out.append(found)
    return out


def _histogram_of_16_bits(halves: np.ndarray) -> np.ndarray:
    return histogram(halves.astype(np.uint16))


def _sort_keys(values: np.ndarray) -> np.ndarray:
    """Finite values as uint32 in the same order; floats by their bits (Herf 2001)."""
    if values.dtype.kind in "f" or values.dtype.itemsize == 8:
        with np.errstate(over="ignore"):
            values = values[np.isfinite(values)].astype(np.float32)
        values = values[np.isfinite(values)] + np.float32(0)  # -0 becomes 0
        bits = values.view(np.uint32)
        return np.where(bits >> 31, ~bits, bits | np.uint32(2**31))
    if values.dtype.kind == "u":
        return values.ravel().astype(np.uint32)
    return (values.ravel().astype(np.int64) + 2**31).astype(np.uint32)


def _from_sort_key(key: int, dtype: np.dtype) -> float:
    """The number that a sort key stands for."""
    if dtype.kind == "f" or dtype.itemsize == 8:
        bits = key ^ 2**31 if key >> 31 else key ^ 0xFFFFFFFF
        return float(np.array(bits, np.uint32).view(np.float32))
    return float(key if dtype.kind == "u" else key - 2**31)
