"""Map intensities to a common range, with limits read from the array itself: the same in training and in prediction.

A constant array maps to the lower end of the range. Values that are not finite take no part in finding the limits.
What a user should be told about an array's limits is found here, too: :func:`fit_with_notes` (warnings), :func:`problem_of` (an error).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config import ConfigError, bind
from pipeline.records import Part

CHUNK = 2**20
"""Voxels counted at a time: ``np.bincount`` turns its input into int64, eight times the size of uint8."""

MAX_OUTSIDE = 0.5
"""Largest share of the values of a channel that ``range`` may clip before it is an error, unless its options say otherwise."""

MARGIN = 0.01
"""Share of the range by which a value may lie outside it and is not counted: resampling leaves a background of -1e-7."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A linear map for each channel: ``low`` goes to ``to[0]`` and ``high`` to ``to[1]``; with ``clip`` nothing leaves that range."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    to: tuple[float, float] = (0.0, 1.0)
    clip: bool = True

    def apply(self, array: np.ndarray) -> np.ndarray:
        """``(C, *S)`` of any number type to float32 of the same shape. Constant channels and NaN become ``to[0]``."""
        out = np.empty(array.shape, np.float32)
        start, span = self.to[0], self.to[1] - self.to[0]
        for channel, (low, high) in enumerate(self._limits(len(array))):
            if not high > low:
                out[channel] = start
                continue
            np.subtract(array[channel], np.float32(low), out=out[channel], dtype=np.float32, casting="unsafe")
            out[channel] *= np.float32(span / (high - low))
            out[channel] += np.float32(start)
        if array.dtype.kind == "f":
            out[np.isnan(out)] = start
        return np.clip(out, min(self.to), max(self.to), out=out) if self.clip else out

    def invert(self, array: np.ndarray) -> np.ndarray:
        """The opposite of :meth:`apply` for ``(C, *S)``, float32; what was clipped stays clipped, constant channels give their value."""
        out = np.empty(array.shape, np.float32)
        span = self.to[1] - self.to[0]
        for channel, (low, high) in enumerate(self._limits(len(array))):
            out[channel] = (array[channel] - np.float32(self.to[0])) * np.float32(max(high - low, 0) / span) + np.float32(low)
        return out

    def _limits(self, channels: int) -> Sequence[tuple[float, float]]:
        limits = list(zip(self.low, self.high, strict=True))
        if len(limits) not in (1, channels):
            raise ValueError(f"a scale of {len(limits)} channels cannot be used for an array of {channels}")
        return limits * (channels if len(limits) == 1 else 1)


def percentile(array: np.ndarray, low: float = 0.5, high: float = 99.5, to: Sequence[float] = (0.0, 1.0)) -> Scale:
    """Limits at two percentiles of each channel of ``(C, *S)``, clipped; the result of ``np.percentile`` (linear), from a histogram for 8 and 16 bits.

    A channel whose two percentiles are equal although it is not constant is scaled from its minimum to its maximum.
    """
    return _percentile(array, low, high, to)[0]


def _percentile(array: np.ndarray, low: float = 0.5, high: float = 99.5, to: Sequence[float] = (0.0, 1.0)) -> tuple[Scale, tuple[str, ...]]:
    if not 0 <= low < high <= 100:
        raise ConfigError(f"data.normalise: percentile low={low}, high={high} must satisfy 0 <= low < high <= 100.")
    found = [percentiles(channel, (low, high)) for channel in array]
    limits, notes = widened(found, (low, high), lambda c: percentiles(array[c], (0, 100)))
    return Scale(low=tuple(a for a, _ in limits), high=tuple(b for _, b in limits), to=_pair(to)), notes


def widened(
    limits: Sequence[tuple[float, ...]], at: tuple[float, float], ends_of: Callable[[int], tuple[float, ...]]
) -> tuple[list[tuple[float, ...]], tuple[str, ...]]:
    """Limits of channels, those that are equal replaced by ``ends_of(channel)`` (minimum, maximum) where these differ, and what to tell.

    Most voxels of a few bright spots on an empty ground are equal: both percentiles are, and the spots would be lost.
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
                f"percentiles {at[0]:g} and {at[1]:g}{which} are both {low:g}, though its values reach from {least:g} to {most:g}: "
                "it is scaled from its minimum to its maximum instead"
            )
    return out, tuple(notes)


def fixed_range(
    array: np.ndarray,
    low: float | None = 0,
    high: float | None = 255,
    to: Sequence[float] = (0.0, 1.0),
    max_outside: float = MAX_OUTSIDE,
) -> Scale:
    """The same limits for every array, clipped: for images whose brightness has a meaning.

    ``None`` is the end of the array's own number type (:func:`ends`), so that one setting serves 8 bits, 16 bits and floats.
    Where more than ``max_outside`` of an array's values lie outside the limits, :func:`problem_of` says so; a window that is meant to
    cut off most of a scan raises it.
    """
    if not 0 <= max_outside <= 1:
        raise ConfigError(f"data.normalise: range max_outside={max_outside} must be a share, 0 to 1.")
    least, most = ends(array.dtype)
    low, high = least if low is None else low, most if high is None else high
    if not low < high:
        raise ConfigError(f"data.normalise: range low={low}, high={high} must satisfy low < high.")
    return Scale(low=(float(low),) * len(array), high=(float(high),) * len(array), to=_pair(to))


def ends(dtype: np.dtype | str) -> tuple[float, float]:
    """Least and greatest intensity of a number type: those of an integer type, 0 and 1 for floats.

    >>> ends("uint8"), ends("float32")
    ((0.0, 255.0), (0.0, 1.0))
    """
    kind = np.dtype(dtype)
    if kind.kind not in "iu":
        return 0.0, 1.0
    return float(np.iinfo(kind).min), float(np.iinfo(kind).max)


def zscore(array: np.ndarray) -> Scale:
    """Mean 0 and standard deviation 1 for each channel, not clipped."""
    low, high = [], []
    for channel in array:
        values = channel[np.isfinite(channel)] if channel.dtype.kind == "f" else channel
        mean = float(values.mean(dtype=np.float64)) if values.size else 0.0
        low.append(mean)
        high.append(mean + (float(values.std(dtype=np.float64)) if values.size else 0.0))
    return Scale(low=tuple(low), high=tuple(high), clip=False)


NORMALISE: dict[str, Callable[..., Scale]] = {"percentile": percentile, "range": fixed_range, "zscore": zscore}


def fit(part: Part, array: np.ndarray) -> Scale:
    """Scale of one array ``(C, *S)`` by an entry of NORMALISE. Raises ConfigError for an unknown name or option."""
    return bind(NORMALISE, part, "data.normalise", given=("array",))(array=array)


def fit_with_notes(part: Part, array: np.ndarray) -> tuple[Scale, tuple[str, ...]]:
    """:func:`fit`, and sentences that a reader of the array's file should be told about its limits."""
    if part.name != "percentile":
        return fit(part, array), ()
    return bind({"percentile": _percentile}, part, "data.normalise", given=("array",))(array=array)


def notes_of(part: Part, array: np.ndarray) -> tuple[str, ...]:
    """Those sentences alone."""
    return fit_with_notes(part, array)[1]


def problem_of(part: Part, array: np.ndarray) -> tuple[str, str] | None:
    """What is wrong with an array ``(C, *S)`` for this normalisation, and the way out: ``range`` would clip most of its finite values.

    Nothing is counted where all numbers of the array's type lie inside the limits.
    """
    frame = clipping(part, array)
    if frame is None:
        return None
    counts = [Outside() for _ in array]
    for count, channel in zip(counts, array, strict=True):
        count.add(channel, *frame)
    return verdict(part, counts, frame)


def clipping(part: Part, array: Any) -> tuple[float, float] | None:
    """The limits of ``range``; None for other normalisations and where no number of the array's type lies outside them."""
    if part.name != "range":
        return None
    scale = fit(part, np.empty((1, 0), array.dtype))
    (low,), (high,) = scale.low, scale.high
    least, most = ends(array.dtype)
    inside = array.dtype.kind in "iub" and low <= least and most <= high
    return None if inside else (low, high)


@dataclass(slots=True)
class Outside:
    """How many finite values of a channel there are, how many lie outside a range, and where they begin and end."""

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
                self.outside += int(np.count_nonzero((part < low - margin) | (part > high + margin)))
                self.least, self.most = min(self.least, float(part.min())), max(self.most, float(part.max()))


def verdict(part: Part, counts: Sequence[Outside], frame: tuple[float, float]) -> tuple[str, str] | None:
    """The problem of the worst channel and the way out; None where none has more than its share outside the range."""
    allowed = part.options.get("max_outside", MAX_OUTSIDE)
    shares = [c.outside / c.finite if c.finite else 0.0 for c in counts]
    worst = int(np.argmax(shares)) if shares else 0
    if not shares or shares[worst] <= allowed:
        return None
    count, which = counts[worst], f" of channel {worst}" if len(counts) > 1 else ""
    problem = (
        f"has {100 * shares[worst]:.3g} % of its values{which} outside the range {frame[0]:g} to {frame[1]:g} of data.normalise, "
        f"where they would be cut off: they reach from {count.least:g} to {count.most:g}"
    )
    cure = (
        "Set low and high of data.normalise to limits that hold the values, or bring the file to the range; "
        f"a window that is meant needs max_outside (now {allowed:g}) in the options"
    )
    return problem, cure


def unit(part: Part, array: np.ndarray) -> np.ndarray:
    """A normalised array of any shape on 0..1, float32, ``to[0]`` at 0 and ``to[1]`` at 1, for metrics with a peak of 1.

    Clipped, as normalised images are. What has no range (``zscore``) comes back as it is.
    """
    array = np.asarray(array, np.float32)
    if part.name == "zscore":
        return array
    start, end = _pair(part.options.get("to", (0.0, 1.0)))
    return np.clip((array - np.float32(start)) / np.float32(end - start), 0, 1)


def percentiles(values: np.ndarray, at: Sequence[float]) -> tuple[float, ...]:
    """Percentiles ``at`` (0 to 100) of the finite values, equal to ``np.percentile`` with linear interpolation; zeros where there is none."""
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
    below = int(position)
    part = position - below
    a = int(np.searchsorted(rank, below, side="right"))
    b = int(np.searchsorted(rank, min(below + 1, int(rank[-1]) - 1), side="right"))
    # The two forms in which numpy interpolates, so that results agree to the last bit.
    return float(b - (b - a) * (1 - part) if part >= 0.5 else a + (b - a) * part)


def histogram(values: np.ndarray) -> np.ndarray:
    """How often each value from 0 to the largest of its type occurs in a uint8 or uint16 array."""
    bins = int(np.iinfo(values.dtype).max) + 1
    total = np.zeros(bins, np.int64)
    flat = values.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        total += np.bincount(flat[start : start + CHUNK], minlength=bins)
    return total


def _pair(values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2 or values[0] == values[1]:
        raise ConfigError(f"data.normalise: to={list(values)} must be two different numbers, e.g. [0, 1].")
    return float(values[0]), float(values[1])
