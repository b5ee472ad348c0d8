"""What is done to an array before it is resampled or kept: clipping in its own units, and masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.config import numbers
from pipeline.config.numbers import Normalisation
from pipeline.data import normalise
from pipeline.data.nonzero import Whole, mask_of
from pipeline.data.scales import IntensityScale, clipped, joined, parts
from pipeline.files import LazyArray, Rows
from pipeline.records import NamedOptions


def prepared(
    method: Normalisation,
    scale: IntensityScale,
    array: LazyArray,
    *,
    clip: bool,
    mask: np.ndarray | None = None,
) -> LazyArray:
    """An array before it is resampled, or cached: clipped in its own units, and masked.

    Where nothing is resampled, ``scale.apply`` gives the same for the array before and after
    clipping (but for rounding at the ends of a range), and 0 outside a mask. With ``clip``, to
    prepare, resample and apply the scale is the same as to normalise and resample.

    Args:
        method: one entry, or one for each channel.
        scale: fitted to this very array.
        array: ``(C, *S)``, in memory or read as it is sliced. Masks are then found slab by slab and
            held, one byte a voxel.
        clip: also clip channels that the scale clips.
        mask: :func:`pipeline.data.nonzero.mask_of` of the array, where it is known.

    Returns:
        ``(C, *S)`` float32, in memory where the array was; the array itself where nothing is to be
        done.

    Example:
        >>> masked = NamedOptions(name="zscore", options={"mask": True})
        >>> image = np.array([[0.0, 2.0, 6.0]], np.float32)
        >>> scale = normalise.fit(masked, image)
        >>> scale.apply(np.asarray(prepared(masked, scale, image, clip=False))).tolist()
        [[0.0, -1.0, 1.0]]
    """
    count = len(array)
    each = numbers.entries(method) * (count if isinstance(method, NamedOptions) else 1)
    plans = [
        (how.limits(low, high) if clip else None, low if normalise.is_masked(entry) else None)
        for entry, (low, high, how) in zip(each, scale.channels(count), strict=True)
    ]
    if all(plan == (None, None) for plan in plans):
        return array
    if mask is None and any(mean is not None for _, mean in plans):
        mask = mask_of(array)

    def make(first: int, end: int) -> np.ndarray:
        rows = array[:, first:end]
        out = np.empty(rows.shape, np.float32)
        for values, result, (limits, mean) in zip(rows, out, plans, strict=True):
            clipped(values, limits, result)
            if mean is not None and mask is not None:
                result[~mask[first:end]] = mean
        return out

    if isinstance(array, np.ndarray):
        return make(0, array.shape[1])
    return Rows(array.shape, np.dtype(np.float32), make)


def fitted(
    method: Normalisation, array: LazyArray, *, clip: bool = False
) -> tuple[IntensityScale, tuple[str, ...], LazyArray]:
    """Fit a normalisation and prepare the array, so that a mask is found once.

    Args:
        method: one entry, or one for each channel.
        array: ``(C, *S)``, in memory or read as it is sliced.
        clip: as of :func:`prepared`.

    Returns:
        Scale, warnings for the user, and what :func:`prepared` gives.

    Raises:
        ConfigError: as of :func:`pipeline.data.normalise.fit_with_notes`.
    """
    if not normalise.needs_preparing(method):
        scale, notes = normalise.fit_with_notes(method, array)
        return scale, notes, prepared(method, scale, array, clip=clip)
    whole = Whole(array)
    each = [method] * len(array) if isinstance(method, NamedOptions) else method
    scale, notes = normalise.fit_channels(each, whole)
    return scale, notes, prepared(method, scale, array, clip=clip, mask=whole.mask)


def with_entries(
    method: Normalisation, scale: IntensityScale, count: int, names: Mapping[str, Any]
) -> IntensityScale:
    """A scale in which the channels of some entries, that read no value, are fitted anew.

    Args:
        method: one entry, or one for each channel.
        scale: the scale of an array.
        count: its channels.
        names: entries to fit.

    Returns:
        The scale; the same where no channel has such an entry.
    """
    each = numbers.entries(method) * (count if isinstance(method, NamedOptions) else 1)
    if not any(entry.name in names for entry in each):
        return scale
    blank = np.zeros((1, 1), np.float32)
    return joined(
        [
            normalise.fit(entry, blank) if entry.name in names else old
            for entry, old in zip(each, parts(scale, count), strict=True)
        ]
    )
