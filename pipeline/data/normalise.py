"""Map intensities to a common range, with limits read from the array itself: the same in training
and in prediction.

A constant array maps to the lower end of the range. Values that are not finite take no part in
finding the limits. What a user should be told about an array's limits is found here, too:
:func:`fit_with_notes` (warnings), :func:`problem_of` (an error).

Arrays of more than ``WHOLE`` numbers that are read as they are sliced get their limits slab by
slab. Percentiles are exact for every number type of up to 32 bits: numbers are mapped to unsigned
integers in the same order, and their upper and then their lower 16 bits are counted, in two passes.
Mean and deviation are merged from slabs in float64 (Chan, Golub, LeVeque 1983), so that they differ
from those of the array in memory by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from pipeline.config import ConfigError, bind
from pipeline.files import LazyArray, slabs
from pipeline.records import NamedOptions
from pipeline.registry import Registry

WHOLE = 2**27
"""Arrays of up to this many numbers are read at once, and get the very limits that they get in
training.
"""

CHUNK = 2**20
"""Voxels counted at a time: ``np.bincount`` turns its input into int64, eight times the size of
uint8.
"""

MAX_OUTSIDE = 0.5
"""Largest share of the values of a channel that ``range`` may clip before it is an error, unless
its options say otherwise.
"""

MARGIN = 0.01
"""Share of the range by which a value may lie outside it and is not counted: resampling leaves a
background of -1e-7.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensityScale:
    """A linear map for each channel: ``low`` goes to ``to[0]`` and ``high`` to ``to[1]``; with
    ``clip`` nothing leaves that range.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    to: tuple[float, float] = (0.0, 1.0)
    clip: bool = True

    def apply(self, array: np.ndarray) -> np.ndarray:
        """``(C, *S)`` of any number type to float32 of the same shape.

        Constant channels and NaN become ``to[0]``.
        """
        out = np.empty(array.shape, np.float32)
        start, span = self.to[0], self.to[1] - self.to[0]
        for channel, (low, high) in enumerate(self._limits(len(array))):
            if not high > low:
                out[channel] = start
                continue
            np.subtract(
                array[channel],
                np.float32(low),
                out=out[channel],
                dtype=np.float32,
                casting="unsafe",
            )
            out[channel] *= np.float32(span / (high - low))
            out[channel] += np.float32(start)
        if array.dtype.kind == "f":
            out[np.isnan(out)] = start
        return np.clip(out, min(self.to), max(self.to), out=out) if self.clip else out

    def invert(self, array: np.ndarray) -> np.ndarray:
        """The opposite of :meth:`apply` for ``(C, *S)``, float32; what was clipped stays clipped,
        constant channels give their value.
        """
        out = np.empty(array.shape, np.float32)
        span = self.to[1] - self.to[0]
        for channel, (low, high) in enumerate(self._limits(len(array))):
            out[channel] = (array[channel] - np.float32(self.to[0])) * np.float32(
                max(high - low, 0) / span
            ) + np.float32(low)
        return out

    def _limits(self, channels: int) -> Sequence[tuple[float, float]]:
        limits = list(zip(self.low, self.high, strict=True))
        if len(limits) not in (1, channels):
            raise ValueError(
                f"a scale of {len(limits)} channels cannot be used for an array of {channels}"
            )
        return limits * (channels if len(limits) == 1 else 1)


Fitted = tuple[IntensityScale, tuple[str, ...]]
"""A scale, and sentences that a reader of the array's file should be told about its limits."""


@dataclass(frozen=True, slots=True)
class NormalisationEntry:
    """An entry of NORMALISE.

    Args:
        fit: ``fit(array, **options)`` with ``(C, *S)`` in memory, or read as it is sliced, gives
            its scale and notes.
        limits: ``limits(dtype, **options)``: fixed limits (low, high) that values of the array may
            lie beyond; None where they follow it.
        bounded: whether what comes out lies in the range of the option ``to``.
    """

    fit: Callable[..., Fitted]
    _: KW_ONLY
    limits: Callable[..., tuple[float, float]] | None = None
    bounded: bool = True


def percentile(
    array: LazyArray, low: float = 0.5, high: float = 99.5, to: Sequence[float] = (0.0, 1.0)
) -> Fitted:
    """Limits at two percentiles of each channel of ``(C, *S)``, clipped; the result of
    ``np.percentile`` (linear), from a histogram for 8 and 16 bits.

    A channel whose two percentiles are equal although it is not constant is scaled from its minimum
    to its maximum.
    """
    if not 0 <= low < high <= 100:
        raise ConfigError(
            f"data.normalise: percentile low={low}, high={high} must satisfy 0 <= low < high <="
            " 100."
        )
    span, ends = _pair(to), list[tuple[float, ...]]()

    def ends_of(channel: int) -> tuple[float, ...]:
        if not ends:
            ends.extend(percentiles(array, (0, 100)))
        return ends[channel]

    limits, notes = widened(percentiles(array, (low, high)), (low, high), ends_of)
    return (
        IntensityScale(low=tuple(a for a, _ in limits), high=tuple(b for _, b in limits), to=span),
        notes,
    )


def widened(
    limits: Sequence[tuple[float, ...]],
    at: tuple[float, float],
    ends_of: Callable[[int], tuple[float, ...]],
) -> tuple[list[tuple[float, ...]], tuple[str, ...]]:
    """Limits of channels, those that are equal replaced by ``ends_of(channel)`` (minimum, maximum)
    where these differ, and what to tell.

    Most voxels of a few bright spots on an empty ground are equal: both percentiles are, and the
    spots would be lost.
    """
    out, notes = list(limits), []
    for channel, (low, high) in enumerate(limits):
        if high > low:
            continue
        least, most = ends_of(channel)
        if most > least:
            out[channel] = (least, most)
            which = f" of channel {channel}" if len(limits) > 1 else ""
            notes.append(
                f"percentiles {at[0]:g} and {at[1]:g}{which} are both {low:g}, though its values"
                f" reach from {least:g} to {most:g}: it is scaled from its minimum to its maximum"
                " instead"
            )
    return out, tuple(notes)


def fixed_range(
    array: LazyArray,
    low: float | None = 0,
    high: float | None = 255,
    to: Sequence[float] = (0.0, 1.0),
    max_outside: float = MAX_OUTSIDE,
) -> Fitted:
    """The same limits for every array, clipped: for images whose brightness has a meaning.

    No value of the array is read.

    ``None`` is the end of the array's own number type (:func:`ends`), so that one setting serves 8
    bits, 16 bits and floats. Where more than ``max_outside`` of an array's values lie outside the
    limits, :func:`problem_of` says so; a window that is meant to cut off most of a scan raises it.
    """
    if not 0 <= max_outside <= 1:
        raise ConfigError(
            f"data.normalise: range max_outside={max_outside} must be a share, 0 to 1."
        )
    span, channels = _pair(to), len(array)
    least, most = _range_limits(array.dtype, low, high)
    return IntensityScale(low=(least,) * channels, high=(most,) * channels, to=span), ()


def _range_limits(
    dtype: Any, low: float | None = 0, high: float | None = 255, **_: Any
) -> tuple[float, float]:
    least, most = ends(dtype)
    low, high = least if low is None else low, most if high is None else high
    if not low < high:
        raise ConfigError(f"data.normalise: range low={low}, high={high} must satisfy low < high.")
    return float(low), float(high)


def ends(dtype: np.dtype | str) -> tuple[float, float]:
    """Least and greatest intensity of a number type: those of an integer type, 0 and 1 for floats.

    >>> ends("uint8"), ends("float32")
    ((0.0, 255.0), (0.0, 1.0))
    """
    kind = np.dtype(dtype)
    if kind.kind not in "iu":
        return 0.0, 1.0
    return float(np.iinfo(kind).min), float(np.iinfo(kind).max)


def zscore(array: LazyArray) -> Fitted:
    """Mean 0 and standard deviation 1 for each channel, not clipped."""
    if _by_slabs(array):
        moments = [_Moments() for _ in range(len(array))]
        for first, end in slabs(array):
            for found, channel in zip(moments, array[:, first:end], strict=True):
                found.add(channel)
        pairs = [(m.mean, m.deviation) for m in moments]
    else:
        pairs = [_mean_and_deviation(channel) for channel in array[:]]
    return (
        IntensityScale(
            low=tuple(m for m, _ in pairs), high=tuple(m + d for m, d in pairs), clip=False
        ),
        (),
    )


def _mean_and_deviation(channel: np.ndarray) -> tuple[float, float]:
    values = channel[np.isfinite(channel)] if channel.dtype.kind == "f" else channel
    if not values.size:
        return 0.0, 0.0
    return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))


NORMALISE: Registry[NormalisationEntry] = Registry(
    "normalisation",
    {
        "percentile": NormalisationEntry(fit=percentile),
        "range": NormalisationEntry(fit=fixed_range, limits=_range_limits),
        "zscore": NormalisationEntry(fit=zscore, bounded=False),
    },
    record=NormalisationEntry,
)


def check(part: NamedOptions) -> None:
    """Raise ConfigError for an unknown name or option."""
    bind(NORMALISE, part, "data.normalise", given=("array",))


def fit(part: NamedOptions, array: LazyArray) -> IntensityScale:
    """IntensityScale of one array ``(C, *S)`` by an entry of NORMALISE.

    Raises ConfigError for an unknown name or option.
    """
    return fit_with_notes(part, array)[0]


def fit_with_notes(part: NamedOptions, array: LazyArray) -> Fitted:
    """:func:`fit`, and sentences that a reader of the array's file should be told about its limits."""
    return bind(NORMALISE, part, "data.normalise", given=("array",))(array=array)


def problem_of(part: NamedOptions, array: LazyArray) -> tuple[str, str] | None:
    """What is wrong with an array ``(C, *S)`` for this normalisation, and the way out: fixed limits
    would clip most of its finite values.

    Nothing is read where no number of the array's type lies outside the limits.
    """
    entry = NORMALISE[part.name]
    if entry.limits is None:
        return None
    low, high = entry.limits(array.dtype, **part.options)
    least, most = ends(array.dtype)
    if array.dtype.kind in "iub" and low <= least and most <= high:
        return None
    counts = [Outside() for _ in range(len(array))]
    for first, end in slabs(array):
        for count, channel in zip(counts, array[:, first:end], strict=True):
            count.add(channel, low, high)
    return _verdict(part, counts, (low, high))


@dataclass(slots=True)
class Outside:
    """How many finite values of a channel there are, how many lie outside a range, and where they
    begin and end.
    """

    finite: int = 0
    outside: int = 0
    least: float = float("inf")
    most: float = float("-inf")

    def add(self, values: np.ndarray, low: float, high: float) -> None:
        margin = MARGIN * (high - low)
        flat = values.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            part = part[np.isfinite(part)] if part.dtype.kind == "f" else part
            if part.size:
                self.finite += part.size
                self.outside += int(
                    np.count_nonzero((part < low - margin) | (part > high + margin))
                )
                self.least, self.most = (
                    min(self.least, float(part.min())),
                    max(self.most, float(part.max())),
                )


def _verdict(
    part: NamedOptions, counts: Sequence[Outside], frame: tuple[float, float]
) -> tuple[str, str] | None:
    """The problem of the worst channel and the way out; None where none has more than its share
    outside the range.
    """
    allowed = part.options.get("max_outside", MAX_OUTSIDE)
    shares = [c.outside / c.finite if c.finite else 0.0 for c in counts]
    worst = int(np.argmax(shares)) if shares else 0
    if not shares or shares[worst] <= allowed:
        return None
    count, which = counts[worst], f" of channel {worst}" if len(counts) > 1 else ""
    problem = (
        f"has {100 * shares[worst]:.3g} % of its values{which} outside the range {frame[0]:g} to"
        f" {frame[1]:g} of data.normalise, where they would be cut off: they reach from"
        f" {count.least:g} to {count.most:g}"
    )
    suggestion = (
        "Set low and high of data.normalise to limits that hold the values, or bring the file to"
        f" the range; a window that is meant needs max_outside (now {allowed:g}) in the options"
    )
    return problem, suggestion


def unit(part: NamedOptions, array: np.ndarray) -> np.ndarray:
    """A normalised array of any shape on 0..1, float32, ``to[0]`` at 0 and ``to[1]`` at 1, for
    metrics with a peak of 1.

    Clipped, as normalised images are. What has no range (``zscore``) comes back as it is.
    """
    array = np.asarray(array, np.float32)
    if not NORMALISE[part.name].bounded:
        return array
    start, end = _pair(part.options.get("to", (0.0, 1.0)))
    return np.clip((array - np.float32(start)) / np.float32(end - start), 0, 1)


# --- percentiles and moments ----------------------------------------------------------------------


def _by_slabs(array: LazyArray) -> bool:
    """Whether an array is too large to be read at once; what lies in memory already is not."""
    return not isinstance(array, np.ndarray) and int(np.prod(array.shape)) > WHOLE


def percentiles(array: LazyArray, at: Sequence[float]) -> list[tuple[float, ...]]:
    """Percentiles ``at`` (0 to 100) of the finite values of each channel, linear between the two
    nearest; zeros where there is none.

    Those of ``np.percentile``. Slab by slab they are exact for numbers of up to 32 bits; of 64
    bits, their float32 values are counted.
    """
    return (
        _counted(array, at) if _by_slabs(array) else [_sorted(channel, at) for channel in array[:]]
    )


def _sorted(values: np.ndarray, at: Sequence[float]) -> tuple[float, ...]:
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if values.size == 0:
        return (0.0,) * len(at)
    if values.dtype not in (np.uint8, np.uint16):
        return tuple(float(x) for x in np.percentile(values, at))
    rank = np.cumsum(histogram(values))
    return tuple(_from_ranks(rank, q / 100 * (values.size - 1)) for q in at)


def _from_ranks(rank: np.ndarray, position: float) -> float:
    """Value at a fractional position of the sorted sample whose cumulative histogram is ``rank``."""
    pair = {
        n: float(np.searchsorted(rank, min(n, int(rank[-1]) - 1), side="right"))
        for n in (int(position), int(position) + 1)
    }
    return _between(pair, position)


def histogram(values: np.ndarray) -> np.ndarray:
    """How often each value from 0 to the largest of its type occurs in a uint8 or uint16 array."""
    bins = int(np.iinfo(values.dtype).max) + 1
    total = np.zeros(bins, np.int64)
    flat = values.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        total += np.bincount(flat[start : start + CHUNK], minlength=bins)
    return total


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
        self.squares += (
            float(values.var(dtype=np.float64)) * values.size
            + step**2 * self.count * values.size / count
        )
        self.mean += step * values.size / count
        self.count = count

    @property
    def deviation(self) -> float:
        return (self.squares / self.count) ** 0.5 if self.count else 0.0


def _counted(array: LazyArray, at: Sequence[float]) -> list[tuple[float, ...]]:
    """:func:`percentiles`, slab by slab."""
    upper = np.zeros((len(array), 2**16), np.int64)
    for first, end in slabs(array):
        for counts, channel in zip(upper, array[:, first:end], strict=True):
            counts += _counts(_keys(channel) >> 16)
    totals = upper.sum(1)
    ranks = [[q / 100 * (int(n) - 1) for q in at] if n else [] for n in totals]
    places = [
        sorted({min(int(r) + more, int(n) - 1) for r in rs for more in (0, 1)})
        for rs, n in zip(ranks, totals, strict=True)
    ]
    values = _order_statistics(array, upper, places)
    return [
        tuple(_between(found, r) for r in rs) if rs else (0.0,) * len(at)
        for rs, found in zip(ranks, values, strict=True)
    ]


def _between(found: dict[int, float], rank: float) -> float:
    """Value at a fractional rank, given those at whole ranks."""
    below = int(rank)
    low, high = found[below], found[min(below + 1, max(found))]
    part = rank - below
    # The two forms in which numpy interpolates, so that results agree to the last bit.
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


def _order_statistics(
    array: LazyArray, upper: np.ndarray, places: Sequence[Sequence[int]]
) -> list[dict[int, float]]:
    """Values at some places of each sorted channel, given how often each upper half occurs."""
    sums = np.cumsum(upper, axis=1)
    halves = [
        [int(np.searchsorted(sums[c], p, side="right")) for p in ps] for c, ps in enumerate(places)
    ]
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
    return histogram(halves.astype(np.uint16))


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


def _pair(values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2 or values[0] == values[1]:
        raise ConfigError(
            f"data.normalise: to={list(values)} must be two different numbers, e.g. [0, 1]."
        )
    return float(values[0]), float(values[1])
