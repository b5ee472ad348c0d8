"""The limits of :mod:`pipeline.data.normalise` for arrays larger than memory, which are read slab by slab.

Percentiles are exact for every number type of up to 32 bits: numbers are mapped to unsigned integers in the same order, and their upper
and then their lower 16 bits are counted, in two passes over the file. Mean and deviation are merged from slabs in float64
(Chan, Golub, LeVeque 1983), so that they differ from those of the array in memory by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import bind
from pipeline.data import normalise
from pipeline.data.normalise import Scale
from pipeline.files import Pixels, slabs
from pipeline.records import Part

WHOLE = 2**27
"""Arrays of up to this many numbers are read at once, and get the very limits that they get in training."""


def fit(part: Part, array: Pixels) -> Scale:
    """As :func:`pipeline.data.normalise.fit`, in memory bounded by one slab where the array has more than ``WHOLE`` numbers."""
    return fit_with_notes(part, array)[0]


def fit_with_notes(part: Part, array: Pixels) -> tuple[Scale, tuple[str, ...]]:
    """As :func:`pipeline.data.normalise.fit_with_notes`, in the same bounds."""
    if _fits(array):
        return normalise.fit_with_notes(part, array[:])
    return bind(STREAMED, part, "data.normalise", given=("array",))(array=array)


def notes_of(part: Part, array: Pixels) -> tuple[str, ...]:
    """As :func:`pipeline.data.normalise.notes_of`, in the same bounds."""
    return fit_with_notes(part, array)[1]


def problem_of(part: Part, array: Pixels) -> tuple[str, str] | None:
    """As :func:`pipeline.data.normalise.problem_of`, slab by slab; nothing is read where nothing can lie outside."""
    frame = normalise.clipping(part, array)
    if frame is None:
        return None
    counts = [normalise.Outside() for _ in range(len(array))]
    for first, end in slabs(array):
        for count, channel in zip(counts, array[:, first:end], strict=True):
            count.add(channel, *frame)
    return normalise.verdict(part, counts, frame)


def _fits(array: Pixels) -> bool:
    return int(np.prod(array.shape)) <= WHOLE


def percentile(array: Pixels, low: float = 0.5, high: float = 99.5, to: Sequence[float] = (0.0, 1.0)) -> tuple[Scale, tuple[str, ...]]:
    """:func:`pipeline.data.normalise.percentile` by counting, with its notes."""
    frame = normalise.percentile(np.zeros((1, 1), np.uint8), low, high, to)  # checks the options
    ends: list[tuple[float, ...]] = []

    def ends_of(channel: int) -> tuple[float, ...]:
        if not ends:
            ends.extend(percentiles(array, (0, 100)))
        return ends[channel]

    limits, notes = normalise.widened(percentiles(array, (low, high)), (low, high), ends_of)
    return Scale(low=tuple(a for a, _ in limits), high=tuple(b for _, b in limits), to=frame.to), notes


def fixed_range(
    array: Pixels,
    low: float | None = 0,
    high: float | None = 255,
    to: Sequence[float] = (0.0, 1.0),
    max_outside: float = normalise.MAX_OUTSIDE,
) -> tuple[Scale, tuple[str, ...]]:
    """:func:`pipeline.data.normalise.fixed_range`, for which no pixel is read."""
    return normalise.fixed_range(np.empty((len(array), 0), array.dtype), low, high, to, max_outside), ()


def zscore(array: Pixels) -> tuple[Scale, tuple[str, ...]]:
    """:func:`pipeline.data.normalise.zscore` in one pass."""
    moments = [_Moments() for _ in range(len(array))]
    for first, end in slabs(array):
        for found, channel in zip(moments, array[:, first:end], strict=True):
            found.add(channel)
    low = tuple(m.mean for m in moments)
    return Scale(low=low, high=tuple(m.mean + m.deviation for m in moments), clip=False), ()


STREAMED: dict[str, Callable[..., tuple[Scale, tuple[str, ...]]]] = {"percentile": percentile, "range": fixed_range, "zscore": zscore}


@dataclass(slots=True)
class _Moments:
    """Count, mean and sum of squared deviations of the finite values met so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: np.ndarray) -> None:
        values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if not values.size:
            return
        mean = float(values.mean(dtype=np.float64))
        count, step = self.count + values.size, mean - self.mean
        self.squares += float(values.var(dtype=np.float64)) * values.size + step**2 * self.count * values.size / count
        self.mean += step * values.size / count
        self.count = count

    @property
    def deviation(self) -> float:
        return (self.squares / self.count) ** 0.5 if self.count else 0.0


def percentiles(array: Pixels, at: Sequence[float]) -> list[tuple[float, ...]]:
    """Percentiles ``at`` (0 to 100) of the finite values of each channel, linear between the two nearest; zeros where there is none.

    Exact for numbers of up to 32 bits; of 64 bits, their float32 values are counted.
    """
    upper = np.zeros((len(array), 2**16), np.int64)
    for first, end in slabs(array):
        for counts, channel in zip(upper, array[:, first:end], strict=True):
            counts += _counts(_keys(channel) >> 16)
    totals = upper.sum(1)
    ranks = [[q / 100 * (int(n) - 1) for q in at] if n else [] for n in totals]
    places = [sorted({min(int(r) + more, int(n) - 1) for r in rs for more in (0, 1)}) for rs, n in zip(ranks, totals, strict=True)]
    values = _order_statistics(array, upper, places)
    return [tuple(_between(found, r) for r in rs) if rs else (0.0,) * len(at) for rs, found in zip(ranks, values, strict=True)]


def _between(found: dict[int, float], rank: float) -> float:
    below = int(rank)
    low, high = found[below], found[min(below + 1, max(found))]
    part = rank - below
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


def _order_statistics(array: Pixels, upper: np.ndarray, places: Sequence[Sequence[int]]) -> list[dict[int, float]]:
    """Values at some places of each sorted channel, given how often each upper half occurs."""
    sums = np.cumsum(upper, axis=1)
    halves = [[int(np.searchsorted(sums[c], p, side="right")) for p in ps] for c, ps in enumerate(places)]
    lower = [{half: np.zeros(2**16, np.int64) for half in hs} for hs in halves]
    for first, end in slabs(array):
        for counts, channel in zip(lower, array[:, first:end], strict=True):
            keys = _keys(channel)
            for half, count in counts.items():
                count += _counts(keys[keys >> 16 == half] & 0xFFFF)
    out = []
    for c, ps in enumerate(places):
        found = {}
        for place, half in zip(ps, halves[c], strict=True):
            before = int(sums[c][half] - upper[c][half])
            low = int(np.searchsorted(np.cumsum(lower[c][half]), place - before, side="right"))
            found[place] = _value((half << 16) | low, np.dtype(array.dtype))
        out.append(found)
    return out


def _counts(halves: np.ndarray) -> np.ndarray:
    return normalise.histogram(halves.astype(np.uint16))


def _keys(values: np.ndarray) -> np.ndarray:
    """Finite values as uint32 in the same order; floats by their bits, the sign turned (Herf 2001)."""
    if values.dtype.kind in "f" or values.dtype.itemsize == 8:
        with np.errstate(over="ignore"):
            values = values[np.isfinite(values)].astype(np.float32)
        values = values[np.isfinite(values)] + np.float32(0)  # -0 becomes 0
        bits = values.view(np.uint32)
        return np.where(bits >> 31, ~bits, bits | np.uint32(2**31))
    if values.dtype.kind == "u":
        return values.ravel().astype(np.uint32)
    return (values.ravel().astype(np.int64) + 2**31).astype(np.uint32)


def _value(key: int, dtype: np.dtype) -> float:
    """The number that a key stands for."""
    if dtype.kind == "f" or dtype.itemsize == 8:
        bits = key ^ 2**31 if key >> 31 else key ^ 0xFFFFFFFF
        return float(np.array(bits, np.uint32).view(np.float32))
    return float(key if dtype.kind == "u" else key - 2**31)
