"""Normalisation: intensities on a common range, with limits read from the array itself.

The same in training and in prediction. A constant array maps to the lower end of the range. Values
that are not finite take no part in finding the limits. Findings about an array's limits come from
here, too: :func:`fit_with_notes` (warnings), :func:`problem_of` (an error).

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
from pipeline.files import LazyArray, Rows, slabs
from pipeline.records import NamedOptions
from pipeline.registry import Registry

WHOLE = 2**27
"""Arrays of up to this many numbers are read at once, and get the very limits of training."""

CHUNK = 2**20
"""Voxels counted at a time: ``np.bincount`` turns its input into int64, eight times the size of
uint8.
"""

MAX_OUTSIDE = 0.5
"""Default of the largest share of a channel's values that ``range`` may clip before it is an error.
"""

MARGIN = 0.01
"""Share of the range by which a value may lie outside it uncounted: resampling leaves a background
of -1e-7.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensityScale:
    """A linear map for each channel: ``low`` goes to ``to[0]`` and ``high`` to ``to[1]``.

    One entry of ``low`` and ``high`` per channel, or one for all channels.
    """

    low: tuple[float, ...]
    """Intensity that maps to ``to[0]``."""
    high: tuple[float, ...]
    """Intensity that maps to ``to[1]``; a channel with ``high <= low`` is constant."""
    to: tuple[float, float] = (0.0, 1.0)
    """Range of the output."""
    clip: bool = True
    """Whether the output is clipped to that range."""

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Normalise an array.

        Args:
            array: ``(C, *S)`` of any number type.

        Returns:
            ``(C, *S)``, float32; constant channels and NaN become ``to[0]``.

        Raises:
            ValueError: where the array has another number of channels than the scale.

        Example:
            >>> scale = IntensityScale(low=(0.0,), high=(128.0,))
            >>> scale.apply(np.array([[0, 64, 255]], np.uint8)).tolist()
            [[0.0, 0.5, 1.0]]
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
        """Undo :meth:`apply`; what was clipped stays clipped.

        Args:
            array: ``(C, *S)``, normalised.

        Returns:
            ``(C, *S)``, float32; constant channels give their value.

        Raises:
            ValueError: where the array has another number of channels than the scale.
        """
        out = np.empty(array.shape, np.float32)
        span = self.to[1] - self.to[0]
        for channel, (low, high) in enumerate(self._limits(len(array))):
            out[channel] = (array[channel] - np.float32(self.to[0])) * np.float32(
                max(high - low, 0) / span
            ) + np.float32(low)
        return out

    def _limits(self, channels: int) -> Sequence[tuple[float, float]]:
        """(low, high) of each of so many channels."""
        limits = list(zip(self.low, self.high, strict=True))
        if len(limits) not in (1, channels):
            raise ValueError(
                f"a scale of {len(limits)} channels cannot be used for an array of {channels}"
            )
        return limits * (channels if len(limits) == 1 else 1)


Fitted = tuple[IntensityScale, tuple[str, ...]]
"""A scale, and warnings about the limits of the array that it was fitted to."""


@dataclass(frozen=True, slots=True)
class NormalisationEntry:
    """An entry of NORMALISE.

    Args:
        fit: ``fit(array, **options)`` with ``(C, *S)`` in memory, or read as it is sliced, gives
            its scale and notes.
        limits: ``limits(dtype, **options)``: fixed limits (low, high) that values of the array may
            lie beyond; None where they follow it.
        bounded: whether what comes out lies in the range of the option ``to``.

    Example:
        >>> def full(array):
        ...     least, most = ends(array.dtype)
        ...     return IntensityScale(low=(least,), high=(most,)), ()
        >>> entry = NormalisationEntry(fit=full)
        >>> entry.fit(np.zeros((1, 2, 2), np.uint8))[0].high
        (255.0,)
    """

    fit: Callable[..., Fitted]
    _: KW_ONLY
    limits: Callable[..., tuple[float, float]] | None = None
    bounded: bool = True


def percentile(
    array: LazyArray, low: float = 0.5, high: float = 99.5, to: Sequence[float] = (0.0, 1.0)
) -> Fitted:
    """Limits at two percentiles of each channel, clipped.

    A channel whose two percentiles are equal although it is not constant is scaled from its minimum
    to its maximum.

    Args:
        array: ``(C, *S)``, in memory or read as it is sliced.
        low: percentile that maps to ``to[0]``, 0 to 100.
        high: percentile that maps to ``to[1]``, above ``low``.
        to: range of the output.

    Returns:
        Scale and warnings; limits are those of ``np.percentile`` (linear), from a histogram for 8
        and 16 bits.

    Raises:
        ConfigError: for percentiles that are not rising or outside 0 to 100, and for a bad range.
    """
    if not 0 <= low < high <= 100:
        raise ConfigError(
            f"data.normalise: percentile low={low}, high={high} must satisfy"
            " 0 <= low < high <= 100."
        )
    to_range, extremes = _output_range(to), list[tuple[float, ...]]()

    def extremes_of(channel: int) -> tuple[float, ...]:
        if not extremes:
            extremes.extend(percentiles(array, (0, 100)))
        return extremes[channel]

    limits, notes = widened(percentiles(array, (low, high)), (low, high), extremes_of)
    return (
        IntensityScale(
            low=tuple(a for a, _ in limits), high=tuple(b for _, b in limits), to=to_range
        ),
        notes,
    )


def widened(
    limits: Sequence[tuple[float, ...]],
    at: tuple[float, float],
    extremes_of: Callable[[int], tuple[float, ...]],
) -> tuple[list[tuple[float, ...]], tuple[str, ...]]:
    """Limits of channels, those that are equal replaced by minimum and maximum where these differ.

    Most voxels of a few bright spots on an empty ground are equal: both percentiles are, and the
    spots would be lost.

    Args:
        limits: (low, high) of each channel.
        at: the two percentiles, for messages.
        extremes_of: ``extremes_of(channel)`` gives (minimum, maximum); called for equal limits
            only.

    Returns:
        Limits of each channel, and a warning for each that was replaced.
    """
    out, notes = list(limits), []
    for channel, (low, high) in enumerate(limits):
        if high > low:
            continue
        least, most = extremes_of(channel)
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

    No value of the array is read. Where more than ``max_outside`` of an array's values lie outside
    the limits, :func:`problem_of` says so; a window that is meant to cut off most of a scan raises
    it.

    Args:
        array: ``(C, *S)``, for its number type and channels.
        low: intensity that maps to ``to[0]``; None: the least of the array's number type
            (:func:`ends`), so that one setting serves 8 bits, 16 bits and floats.
        high: intensity that maps to ``to[1]``; None: the greatest of the number type.
        to: range of the output.
        max_outside: largest share of values that may be clipped, 0 to 1.

    Returns:
        Scale; there are no warnings.

    Raises:
        ConfigError: for limits that are not rising, a bad range or a bad share.
    """
    if not 0 <= max_outside <= 1:
        raise ConfigError(
            f"data.normalise: range max_outside={max_outside} must be a share, 0 to 1."
        )
    to_range, channels = _output_range(to), len(array)
    least, most = _range_limits(array.dtype, low, high)
    return IntensityScale(low=(least,) * channels, high=(most,) * channels, to=to_range), ()


def _range_limits(
    dtype: Any, low: float | None = 0, high: float | None = 255, **_: Any
) -> tuple[float, float]:
    """Fixed limits of ``range`` for a number type."""
    least, most = ends(dtype)
    low, high = least if low is None else low, most if high is None else high
    if not low < high:
        raise ConfigError(f"data.normalise: range low={low}, high={high} must satisfy low < high.")
    return float(low), float(high)


def ends(dtype: np.dtype | str) -> tuple[float, float]:
    """Least and greatest intensity of a number type.

    Args:
        dtype: a number type.

    Returns:
        Those of an integer type, 0 and 1 for floats.

    Example:
        >>> ends("uint8"), ends("float32")
        ((0.0, 255.0), (0.0, 1.0))
    """
    kind = np.dtype(dtype)
    if kind.kind not in "iu":
        return 0.0, 1.0
    return float(np.iinfo(kind).min), float(np.iinfo(kind).max)


def zscore(array: LazyArray) -> Fitted:
    """Mean 0 and standard deviation 1 for each channel, not clipped.

    Args:
        array: ``(C, *S)``, in memory or read as it is sliced.

    Returns:
        Scale; there are no warnings.
    """
    if _needs_slabs(array):
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
    """Mean and standard deviation of the finite values, zeros where there is none."""
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
"""Normalisations by name, as in ``data.normalise``."""


def check(method: NamedOptions) -> None:
    """Check the options of a normalisation.

    Args:
        method: name and options.

    Raises:
        ConfigError: for an unknown name or option.
    """
    bind(NORMALISE, method, "data.normalise", given=("array",))


def fit(method: NamedOptions, array: LazyArray) -> IntensityScale:
    """Fit a normalisation to one array.

    Args:
        method: name in NORMALISE and options.
        array: ``(C, *S)``, in memory or read as it is sliced.

    Returns:
        The scale of this array.

    Raises:
        ConfigError: for an unknown name or option, and for impossible values.

    Example:
        >>> scale = fit(NamedOptions(name="zscore"), np.array([[1.0, 3.0]]))
        >>> scale.low, scale.high
        ((2.0,), (3.0,))
    """
    return fit_with_notes(method, array)[0]


def fit_with_notes(method: NamedOptions, array: LazyArray) -> Fitted:
    """As :func:`fit`, with warnings about the array's limits.

    Args:
        method: name in NORMALISE and options.
        array: ``(C, *S)``, in memory or read as it is sliced.

    Returns:
        Scale and warnings for the user.

    Raises:
        ConfigError: for an unknown name or option, and for impossible values.
    """
    return bind(NORMALISE, method, "data.normalise", given=("array",))(array=array)


def problem_of(method: NamedOptions, array: LazyArray) -> tuple[str, str] | None:
    """What is wrong with an array for a normalisation: fixed limits would clip most of it.

    Only finite values count. Nothing is read where no number of the array's type lies outside the
    limits.

    Args:
        method: name in NORMALISE and options.
        array: ``(C, *S)``, in memory or read as it is sliced.

    Returns:
        Problem and suggestion; None where nothing is wrong.

    Raises:
        ConfigError: for limits that are not rising.
    """
    entry = NORMALISE[method.name]
    if entry.limits is None:
        return None
    low, high = entry.limits(array.dtype, **method.options)
    least, most = ends(array.dtype)
    if array.dtype.kind in "iub" and low <= least and most <= high:
        return None
    counts = [RangeCount() for _ in range(len(array))]
    for first, end in slabs(array):
        for count, channel in zip(counts, array[:, first:end], strict=True):
            count.add(channel, low, high)
    return _range_problem(method, counts, (low, high))


@dataclass(slots=True)
class RangeCount:
    """Count of a channel's finite values, how many lie outside a range, and their extremes."""

    finite: int = 0
    outside: int = 0
    least: float = float("inf")
    most: float = float("-inf")

    def add(self, values: np.ndarray, low: float, high: float) -> None:
        """Count further values.

        Args:
            values: any shape.
            low: lower end of the range.
            high: upper end; values beyond an end by up to ``MARGIN`` of the range are inside.
        """
        margin = MARGIN * (high - low)
        flat = values.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            chunk = flat[start : start + CHUNK]
            chunk = chunk[np.isfinite(chunk)] if chunk.dtype.kind == "f" else chunk
            if chunk.size:
                self.finite += chunk.size
                self.outside += int(
                    np.count_nonzero((chunk < low - margin) | (chunk > high + margin))
                )
                self.least, self.most = (
                    min(self.least, float(chunk.min())),
                    max(self.most, float(chunk.max())),
                )


def _range_problem(
    method: NamedOptions, counts: Sequence[RangeCount], limits: tuple[float, float]
) -> tuple[str, str] | None:
    """Problem and suggestion for the worst channel; None where none has too many values outside."""
    allowed = method.options.get("max_outside", MAX_OUTSIDE)
    shares = [c.outside / c.finite if c.finite else 0.0 for c in counts]
    worst = int(np.argmax(shares)) if shares else 0
    if not shares or shares[worst] <= allowed:
        return None
    count, which = counts[worst], f" of channel {worst}" if len(counts) > 1 else ""
    problem = (
        f"has {100 * shares[worst]:.3g} % of its values{which} outside the range {limits[0]:g} to"
        f" {limits[1]:g} of data.normalise, where they would be cut off: they reach from"
        f" {count.least:g} to {count.most:g}"
    )
    suggestion = (
        "Set low and high of data.normalise to limits that hold the values, or bring the file to"
        f" the range; a window that is meant needs max_outside (now {allowed:g}) in the options"
    )
    return problem, suggestion


def prepared(scale: IntensityScale, array: LazyArray) -> LazyArray:
    """Clip values as normalisation will, before they are resampled.

    Args:
        scale: of the array.
        array: ``(C, *S)``, in memory or read as it is sliced.

    Returns:
        Float32 ``(C, *S)``, as lazy as the array; the array itself where nothing is clipped.
    """
    if not scale.clip:
        return array
    shape = (-1, *[1] * (len(array.shape) - 1))
    low, high = (np.array(x, np.float32).reshape(shape) for x in (scale.low, scale.high))

    def clipped(part: np.ndarray) -> np.ndarray:
        return np.clip(part.astype(np.float32, copy=False), low, np.maximum(low, high))

    if isinstance(array, np.ndarray):
        return clipped(array)
    return Rows(array.shape, np.float32, lambda first, end: clipped(array[:, first:end]))


def unit(method: NamedOptions, array: np.ndarray) -> np.ndarray:
    """A normalised array on 0..1, for metrics with a peak of 1.

    Args:
        method: name in NORMALISE and options.
        array: any shape.

    Returns:
        Float32 of that shape, ``to[0]`` at 0 and ``to[1]`` at 1, clipped as normalised images are.
        What has no range (``zscore``) comes back as it is.

    Example:
        >>> method = NamedOptions(name="range", options={"to": [-1, 1]})
        >>> unit(method, np.array([-1.0, 0.0, 1.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    array = np.asarray(array, np.float32)
    if not NORMALISE[method.name].bounded:
        return array
    start, end = _output_range(method.options.get("to", (0.0, 1.0)))
    return np.clip((array - np.float32(start)) / np.float32(end - start), 0, 1)


# --- percentiles and moments ----------------------------------------------------------------------


def _needs_slabs(array: LazyArray) -> bool:
    """Whether an array is too large to be read at once; what lies in memory already is not."""
    return not isinstance(array, np.ndarray) and int(np.prod(array.shape)) > WHOLE


def percentiles(array: LazyArray, at: Sequence[float]) -> list[tuple[float, ...]]:
    """Percentiles of the finite values of each channel, those of ``np.percentile``.

    They are linear between the two nearest values. Slab by slab they are exact for numbers of up to
    32 bits; of 64 bits, their float32 values are counted.

    Args:
        array: ``(C, *S)``, in memory or read as it is sliced.
        at: percentiles, 0 to 100.

    Returns:
        One tuple per channel, in the order of ``at``; zeros where no value is finite.

    Example:
        >>> percentiles(np.array([[0, 10, 20, 30, 40]], np.uint8), (0, 50, 100))
        [(0.0, 20.0, 40.0)]
    """
    return (
        _percentiles_by_slabs(array, at)
        if _needs_slabs(array)
        else [_percentiles_in_memory(channel, at) for channel in array[:]]
    )


def _percentiles_in_memory(values: np.ndarray, at: Sequence[float]) -> tuple[float, ...]:
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
    return _interpolated(pair, position)


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
class _Moments:
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
        count, step = self.count + values.size, mean - self.mean
        self.squares += (
            float(values.var(dtype=np.float64)) * values.size
            + step**2 * self.count * values.size / count
        )
        self.mean += step * values.size / count
        self.count = count

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return (self.squares / self.count) ** 0.5 if self.count else 0.0


def _percentiles_by_slabs(array: LazyArray, at: Sequence[float]) -> list[tuple[float, ...]]:
    """:func:`percentiles`, slab by slab."""
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
        tuple(_interpolated(found, r) for r in rs) if rs else (0.0,) * len(at)
        for rs, found in zip(ranks, values, strict=True)
    ]


def _interpolated(found: dict[int, float], rank: float) -> float:
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


def _output_range(values: Sequence[float]) -> tuple[float, float]:
    """Option ``to`` as two numbers. Raises ConfigError for anything else."""
    if len(values) != 2 or values[0] == values[1]:
        raise ConfigError(
            f"data.normalise: to={list(values)} must be two different numbers, e.g. [0, 1]."
        )
    return float(values[0]), float(values[1])
