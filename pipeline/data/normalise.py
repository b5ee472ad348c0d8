"""Normalisation: intensities on a common range, with limits read from the array itself.

The same in training and in prediction. A constant array maps to the lower end of the range. Values
that are not finite take no part in finding the limits. Findings about an array's limits come from
here, too: :func:`fit_with_notes` (warnings), :func:`problem_of` (an error).

Arrays of more than ``WHOLE`` numbers that are read as they are sliced get their limits slab by
slab (:mod:`pipeline.data.statistics`); mean and deviation then differ from those of the array in
memory by rounding only.

One entry serves all channels, or each channel has its own. The numbers of ``ct`` come from the
whole data set (:mod:`pipeline.data.intensities`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from pipeline.config import ConfigError, bind, numbers
from pipeline.config.numbers import Normalisation
from pipeline.data.nonzero import Channel, Whole, in_memory, inside
from pipeline.data.scales import ChannelRange, IntensityScale, joined
from pipeline.data.statistics import (
    CHUNK,
    Moments,
    extremes,
    percentiles_by_slabs,
    percentiles_in_memory,
)
from pipeline.data.statistics import histogram as histogram
from pipeline.files import LazyArray, slabs
from pipeline.records import NamedOptions
from pipeline.registry import Registry

WHOLE = 2**27
"""Arrays of up to this many numbers are read at once, and get the very limits of training."""

MAX_OUTSIDE = 0.5
"""Default of the largest share of a channel's values that ``range`` may clip before it is an error.
"""

LEAST = 1e-8
"""Least standard deviation and range that are divided by, so that a constant becomes 0."""

MARGIN = 0.01
"""Share of the range by which a value may lie outside it uncounted: resampling leaves a background
of -1e-7.
"""


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
        strict: whether no value at all may lie beyond ``limits``.
        of_images: whether it can serve images and the targets that are made from them.

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
    strict: bool = False
    of_images: bool = True


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


def zscore(array: LazyArray, mask: bool = False) -> Fitted:
    """Mean 0 and standard deviation 1 for each channel, not clipped.

    Args:
        array: ``(C, *S)``, in memory or read as it is sliced.
        mask: only voxels of the image's non-zero part count (:mod:`pipeline.data.nonzero`), and
            others become 0 by :func:`~pipeline.data.prepare.prepared`.

    Returns:
        Scale; there are no warnings.

    Source:
        With ``mask``, the rule of nnU-Net's ``use_mask_for_norm`` (Isensee et al. 2021), of which
        labels are no part.
    """
    within = inside(array) if mask else None
    if _needs_slabs(array):
        moments = [Moments() for _ in range(len(array))]
        for first, end in slabs(array):
            for found, channel in zip(moments, array[:, first:end], strict=True):
                found.add(channel if within is None else channel[within[first:end]])
        pairs = [(m.mean, m.deviation) for m in moments]
    else:
        pairs = [
            _mean_and_deviation(channel if within is None else channel[within])
            for channel in array[:]
        ]
    return (
        IntensityScale(
            low=tuple(m for m, _ in pairs),
            high=tuple(m + (max(d, LEAST) if mask else d) for m, d in pairs),
            clip=False,
        ),
        (),
    )


def _mean_and_deviation(channel: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the finite values, zeros where there is none."""
    values = channel[np.isfinite(channel)] if channel.dtype.kind == "f" else channel
    if not values.size:
        return 0.0, 0.0
    return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))


def ct(
    array: LazyArray,
    low_percentile: float = 0.5,
    high_percentile: float = 99.5,
    low: float | None = None,
    high: float | None = None,
    mean: float | None = None,
    std: float | None = None,
) -> Fitted:
    """The same window and z-score for every array: for scans whose intensities have a unit.

    ``(clip(x, low, high) - mean) / max(std, 1e-8)``. The four numbers are those of the foreground
    of all training cases (:mod:`pipeline.data.intensities`), unless the config gives them. No value
    of the array is read.

    Args:
        array: ``(C, *S)``, for its channels.
        low_percentile: percentile of the foreground that becomes ``low``, 0 to 100.
        high_percentile: percentile that becomes ``high``, above ``low_percentile``.
        low: least intensity; lower ones become it.
        high: greatest intensity.
        mean: intensity that maps to 0.
        std: difference of intensity that maps to 1.

    Returns:
        Scale; there are no warnings.

    Raises:
        ConfigError: for percentiles or numbers that are impossible, or not there.

    Source:
        ``CTNormalization`` of nnU-Net (Isensee et al. 2021).

    Example:
        >>> scale, _ = ct(np.zeros((1, 1)), low=-100, high=300, mean=100, std=50)
        >>> scale.apply(np.array([[-1000, 100, 3000]])).tolist()
        [[-4.0, 0.0, 4.0]]
    """
    if not 0 <= low_percentile < high_percentile <= 100:
        raise ConfigError(
            f"data.normalise: ct low_percentile={low_percentile}, high_percentile={high_percentile}"
            " must satisfy 0 <= low_percentile < high_percentile <= 100."
        )
    if low is None or high is None or mean is None or std is None:
        raise ConfigError(
            "data.normalise: ct lacks numbers of low, high, mean and std, which training finds and"
            " writes to the run's config and models. Take them from there."
        )
    if not (low <= high and std >= 0 and np.isfinite([low, high, mean, std]).all()):
        raise ConfigError(
            f"data.normalise: ct low={low}, high={high}, mean={mean}, std={std} must be finite, and"
            " satisfy low <= high and std >= 0."
        )
    scale = IntensityScale(
        low=(float(mean),),
        high=(mean + max(std, LEAST),),
        clip=False,
        ranges=(ChannelRange(clip=False, window=(float(low), float(high))),),
    )
    return joined([scale] * len(array)), ()


def rescale(array: LazyArray, to: Sequence[float] = (0.0, 1.0)) -> Fitted:
    """Each channel from its minimum to its maximum.

    Args:
        array: ``(C, *S)``, in memory or read as it is sliced.
        to: range of the output; constant channels become its start.

    Returns:
        Scale; there are no warnings.

    Raises:
        ConfigError: for a bad range.

    Source:
        ``RescaleTo01Normalization`` of nnU-Net (Isensee et al. 2021).
    """
    limits, to_range = extremes(array), _output_range(to)
    return (
        IntensityScale(
            low=tuple(a for a, _ in limits),
            high=tuple(a + max(b - a, LEAST) for a, b in limits),
            to=to_range,
        ),
        (),
    )


def rgb(array: LazyArray) -> Fitted:
    """Values of 8 bits to 0..1: ``x / 255``, whatever number type holds them.

    No value of the array is read; :func:`problem_of` refuses one outside 0..255.

    Args:
        array: ``(C, *S)``, for its channels.

    Returns:
        Scale; there are no warnings.

    Source:
        ``RGBTo01Normalization`` of nnU-Net (Isensee et al. 2021).
    """
    count = len(array)
    return IntensityScale(low=(0.0,) * count, high=(255.0,) * count, clip=False), ()


def none(array: LazyArray) -> Fitted:
    """Values as they are, as float32.

    Args:
        array: ``(C, *S)``, for its channels.

    Returns:
        Scale; there are no warnings.
    """
    return IntensityScale(low=(0.0,) * len(array), high=(1.0,) * len(array), clip=False), ()


NORMALISE: Registry[NormalisationEntry] = Registry(
    "normalisation",
    {
        "percentile": NormalisationEntry(fit=percentile),
        "range": NormalisationEntry(fit=fixed_range, limits=_range_limits),
        "zscore": NormalisationEntry(fit=zscore, bounded=False),
        "ct": NormalisationEntry(fit=ct, bounded=False, of_images=False),
        "rescale": NormalisationEntry(fit=rescale),
        "rgb": NormalisationEntry(fit=rgb, limits=lambda dtype: (0.0, 255.0), strict=True),
        "none": NormalisationEntry(fit=none, bounded=False, of_images=False),
    },
    record=NormalisationEntry,
)
"""Normalisations by name, as in ``data.normalise``."""


# --- one entry for all channels, or one for each --------------------------------------------------


def _located(method: Normalisation) -> Iterator[tuple[str, NamedOptions]]:
    """Entries with the key of each in a config."""
    if isinstance(method, NamedOptions):
        yield "data.normalise", method
    else:
        yield from ((f"data.normalise.{n}", entry) for n, entry in enumerate(method))


def check(method: Normalisation) -> None:
    """Check the options of a normalisation.

    Args:
        method: name and options, or one for each channel.

    Raises:
        ConfigError: for an unknown name or option.
    """
    for where, entry in _located(method):
        bind(NORMALISE, entry, where, given=("array",))


def require_numbers(method: Normalisation) -> None:
    """Check that a stored normalisation has the numbers that training finds.

    Args:
        method: of the config of a run or a model.

    Raises:
        ConfigError: where one is missing.
    """
    for where, entry in _located(method):
        if lacking := numbers.lacking(entry):
            raise ConfigError(
                f"{where}: {entry.name!r} has no {', '.join(lacking)}; training finds them in the"
                " data and writes them down."
            )


def pending(method: Normalisation) -> Normalisation:
    """A normalisation before the numbers of its data set are known.

    Args:
        method: one entry, or one for each channel.

    Returns:
        The same with ``none`` in place of entries with such numbers, given or not
        (:func:`pipeline.data.properties.completed`).
    """
    stand_in = NamedOptions(name="none")
    if isinstance(method, NamedOptions):
        return stand_in if method.name in numbers.FOUND else method
    return tuple(stand_in if entry.name in numbers.FOUND else entry for entry in method)


def channel_problem(method: Normalisation, array: LazyArray) -> tuple[str, str] | None:
    """Whether a normalisation has one entry for each channel, where it has several.

    Args:
        method: one entry, or one for each channel.
        array: ``(C, *S)``.

    Returns:
        Problem and suggestion; None where the numbers agree.
    """
    if isinstance(method, NamedOptions) or len(method) == len(array):
        return None
    return (
        f"has {len(array)} channels, data.normalise has {len(method)} entries",
        "Give data.normalise one entry for each channel, or one without a list for all",
    )


def fit(method: Normalisation, array: LazyArray) -> IntensityScale:
    """Fit a normalisation to one array.

    Args:
        method: name in NORMALISE and options, or one for each channel.
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


def fit_with_notes(method: Normalisation, array: LazyArray) -> Fitted:
    """As :func:`fit`, with warnings about the array's limits.

    Args:
        method: name in NORMALISE and options, or one for each channel.
        array: ``(C, *S)``, in memory or read as it is sliced.

    Returns:
        Scale and warnings for the user.

    Raises:
        ConfigError: for an unknown name or option, for impossible values, and for another number of
            channels.
    """
    if isinstance(method, NamedOptions):
        return bind(NORMALISE, method, "data.normalise", given=("array",))(array=array)
    if problem := channel_problem(method, array):
        raise ConfigError(f"the image {problem[0]}. {problem[1]}.")
    return fit_channels(method, Whole(array))


def fit_channels(method: Sequence[NamedOptions], whole: Whole) -> Fitted:
    """Fit one entry to each channel.

    Args:
        method: as many entries as channels.
        whole: the array, which keeps its mask where an entry asks for it.

    Returns:
        Scale and warnings.

    Raises:
        ConfigError: as of :func:`fit_with_notes`.
    """
    scales, notes = list[IntensityScale](), list[str]()
    for n, (where, entry) in enumerate(_located(method)):
        fitted = bind(NORMALISE, entry, where, given=("array",))(array=Channel(whole, n))
        scales.append(fitted[0])
        notes += [f"(channel {n}) {note}" for note in fitted[1]]
    return joined(scales), tuple(notes)


def problem_of(method: Normalisation, array: LazyArray) -> tuple[str, str] | None:
    """What is wrong with an array for a normalisation: fixed limits would clip most of it.

    Only finite values count. Nothing is read where no number of the array's type lies outside the
    limits.

    Args:
        method: name in NORMALISE and options, or one for each channel.
        array: ``(C, *S)``, in memory or read as it is sliced.

    Returns:
        Problem and suggestion; None where nothing is wrong.

    Raises:
        ConfigError: for limits that are not rising.
    """
    if isinstance(method, NamedOptions):
        return _problem_of(method, array)
    if problem := channel_problem(method, array):
        return problem
    whole = Whole(array)
    for n, entry in enumerate(method):
        if problem := _problem_of(entry, Channel(whole, n)):
            return (f"{problem[0]} (channel {n})", problem[1])
    return None


def _problem_of(method: NamedOptions, array: LazyArray) -> tuple[str, str] | None:
    """:func:`problem_of` for one entry."""
    entry = NORMALISE[method.name]
    if entry.limits is None:
        return None
    low, high = entry.limits(array.dtype, **method.options)
    least, most = ends(array.dtype)
    if array.dtype.kind in "iub" and low <= least and most <= high:
        return None
    counts = [RangeCount() for _ in range(len(array))]
    margin = 0.0 if entry.strict else MARGIN
    for first, end in slabs(array):
        for count, channel in zip(counts, array[:, first:end], strict=True):
            count.add(channel, low, high, margin)
    return _range_problem(method, counts, (low, high))


@dataclass(slots=True)
class RangeCount:
    """Count of a channel's finite values, how many lie outside a range, and their extremes."""

    finite: int = 0
    outside: int = 0
    least: float = float("inf")
    most: float = float("-inf")

    def add(self, values: np.ndarray, low: float, high: float, share: float = MARGIN) -> None:
        """Count further values.

        Args:
            values: any shape.
            low: lower end of the range.
            high: upper end.
            share: values beyond an end by up to this share of the range are inside.
        """
        margin = share * (high - low)
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
    strict = NORMALISE[method.name].strict
    allowed = 0.0 if strict else method.options.get("max_outside", MAX_OUTSIDE)
    shares = [c.outside / c.finite if c.finite else 0.0 for c in counts]
    worst = int(np.argmax(shares)) if shares else 0
    if not shares or shares[worst] <= allowed:
        return None
    count, which = counts[worst], f" of channel {worst}" if len(counts) > 1 else ""
    if strict:
        return (
            f"has {count.outside} values{which} outside {limits[0]:g} to {limits[1]:g}, which"
            f" {method.name!r} of data.normalise takes: they reach from {count.least:g} to"
            f" {count.most:g}",
            "Give an image of 8 bits, or normalise such images by range, percentile or rescale",
        )
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


def unit(method: Normalisation, array: np.ndarray) -> np.ndarray:
    """A normalised array on 0..1, for metrics with a peak of 1.

    Args:
        method: name in NORMALISE and options, or one for each channel.
        array: any shape; ``(C, *S)`` for one entry a channel.

    Returns:
        Float32 of that shape, ``to[0]`` at 0 and ``to[1]`` at 1, clipped as normalised images are.
        What has no range (``zscore``) comes back as it is.

    Example:
        >>> method = NamedOptions(name="range", options={"to": [-1, 1]})
        >>> unit(method, np.array([-1.0, 0.0, 1.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    array = np.asarray(array, np.float32)
    if not isinstance(method, NamedOptions):
        return np.stack([unit(entry, one) for entry, one in zip(method, array, strict=True)])
    if not NORMALISE[method.name].bounded:
        return array
    start, end = _output_range(method.options.get("to", (0.0, 1.0)))
    return np.clip((array - np.float32(start)) / np.float32(end - start), 0, 1)


def image_problem(entry: NamedOptions) -> str | None:
    """Whether a normalisation can serve a system of images, whose targets it normalises, too.

    Args:
        entry: name in NORMALISE and options.

    Returns:
        What is wrong and the way out; None where it can.
    """
    if NORMALISE[entry.name].of_images and not is_masked(entry):
        return None
    what = f"{entry.name!r} with mask" if is_masked(entry) else repr(entry.name)
    return (
        f"{what} gives intensities without a range, but losses and metrics of task image need black"
        " and white. Use range, percentile, rescale or rgb."
    )


# --- what is done before an array is resampled or kept (prepare.py) -------------------------------


def is_masked(entry: NamedOptions) -> bool:
    """Whether an entry makes voxels outside the image's non-zero part 0.

    Args:
        entry: of ``data.normalise``.

    Returns:
        True for ``zscore`` with ``mask: true``.
    """
    return entry.name == "zscore" and bool(entry.options.get("mask"))


def needs_preparing(method: Normalisation) -> bool:
    """Whether arrays are kept and predicted only after preparation, even if not resampled.

    See :func:`~pipeline.data.prepare.prepared`.

    Args:
        method: one entry, or one for each channel.

    Returns:
        True where an entry has a mask, which cannot be found again in a part of the array.
    """
    return any(map(is_masked, numbers.entries(method)))


def _needs_slabs(array: LazyArray) -> bool:
    """Whether an array is too large to be read at once; what lies in memory already is not."""
    return not in_memory(array) and int(np.prod(array.shape)) > WHOLE


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
        percentiles_by_slabs(array, at)
        if _needs_slabs(array)
        else [percentiles_in_memory(channel, at) for channel in array[:]]
    )


def _output_range(values: Sequence[float]) -> tuple[float, float]:
    """Option ``to`` as two numbers. Raises ConfigError for anything else."""
    if len(values) != 2 or values[0] == values[1]:
        raise ConfigError(
            f"data.normalise: to={list(values)} must be two different numbers, e.g. [0, 1]."
        )
    return float(values[0]), float(values[1])
