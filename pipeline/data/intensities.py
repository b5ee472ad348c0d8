"""Intensities of the foreground of a data set: the numbers of ``ct``, from one count a case.

The count of a case is kept with its properties, so that no voxel is read twice. It is exact for
whole numbers, of whatever type, that span at most ``WIDEST``: all of 8 and 16 bits, and scans in
Hounsfield units saved as floats. Others are counted in ``BINS`` bins from the least to the greatest
of the case, by the middle of each: a percentile is then off by at most half a bin, 6.2e-5 of the
range of the foreground. Mean and deviation come from moments in float64, merged in the order of the
cases (Chan, Golub, LeVeque 1983), whatever the count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.statistics import Moments, interpolated
from pipeline.files import slabs

WIDEST = 2**16
"""Most values, from the least to the greatest, of which each has a count of its own."""

BINS = 2**13
"""Bins of values that are not whole or span more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensities:
    """Foreground intensities of one channel of a case, JSON-able."""

    count: int
    """Finite values."""
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared differences from the mean."""
    start: float = 0.0
    """Value of the first entry of ``counts``."""
    step: float = 1.0
    """Difference between the values of two neighbouring entries."""
    counts: tuple[int, ...] = ()
    """How often each value occurs."""


def foreground(labels: np.ndarray, ignored: int | None) -> np.ndarray:
    """Voxels of any class that is neither background nor ignored.

    Args:
        labels: class numbers of any shape.
        ignored: value of ignored voxels; None: there are none.

    Returns:
        Bool of that shape.

    Example:
        >>> foreground(np.array([0, 1, 2, 3]), 2).tolist()
        [False, True, False, True]
    """
    found = labels > 0
    return found if ignored is None else found & (labels != ignored)


def collect(image: np.ndarray, mask: np.ndarray) -> tuple[Intensities, ...]:
    """Count the intensities of each channel inside a mask.

    Args:
        image: ``(C, *S)`` of any number type.
        mask: bool ``(*S)``.

    Returns:
        One count for each channel.

    Example:
        >>> image, mask = np.array([[7, 5, 5, 9]]), np.array([True, True, True, False])
        >>> collect(image, mask)[0].counts
        (2, 0, 1)
    """
    return tuple(_collect(image[n : n + 1], mask) for n in range(len(image)))


def _collect(channel: np.ndarray, mask: np.ndarray) -> Intensities:
    """The count of one channel ``(1, *S)``, slab by slab in two passes."""
    moments, least, most, whole = Moments(), np.inf, -np.inf, True
    for values in _values(channel, mask):
        moments.add(values)
        least, most = min(least, float(values.min())), max(most, float(values.max()))
        whole = whole and (values.dtype.kind in "iub" or bool((values == np.floor(values)).all()))
    if not moments.count:
        return Intensities(count=0)
    exact = (
        whole and most - least < WIDEST and max(abs(least), abs(most)) < 2**53
    ) or most == least
    bins = int(most - least) + 1 if exact else BINS
    step = 1.0 if exact else (most - least) / BINS
    counts = np.zeros(bins, np.int64)
    for values in _values(channel, mask):
        places = ((values.astype(np.float64) - least) / step).astype(np.int64)
        counts += np.bincount(np.minimum(places, bins - 1), minlength=bins)
    return Intensities(
        count=moments.count,
        mean=moments.mean,
        squares=moments.squares,
        start=least if exact else least + step / 2,
        step=step,
        counts=tuple(counts.tolist()),
    )


def _values(channel: np.ndarray, mask: np.ndarray) -> Iterator[np.ndarray]:
    """Finite values of a channel ``(1, *S)`` inside a mask, slab by slab, none of them empty."""
    for first, end in slabs(channel):
        values = channel[0, first:end][mask[first:end]]
        values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if values.size:
            yield values


def pooled(cases: Sequence[Intensities], at: Sequence[float]) -> tuple[list[float], float, float]:
    """Percentiles, mean and deviation of one channel over all cases.

    Args:
        cases: the counts, in the order of the cases; at least one is not empty.
        at: percentiles, 0 to 100.

    Returns:
        Percentiles in the order of ``at``, those of ``np.percentile``; mean; standard deviation
        (``ddof`` 0).

    Example:
        >>> image = np.arange(5)[None]
        >>> pooled(collect(image, image[0] > 0), (0, 50))
        ([1.0, 2.5], 2.5, 1.118033988749895)
    """
    moments = Moments()
    for case in cases:
        if case.count:
            moments.merge(case.count, case.mean, case.squares)
    values = np.concatenate([c.start + c.step * np.arange(len(c.counts)) for c in cases])
    counts = np.concatenate([np.asarray(c.counts, np.int64) for c in cases])
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(counts[order])

    def value_at(position: int) -> float:
        place = np.searchsorted(sums, min(position, moments.count - 1), side="right")
        return float(values[order[place]])

    found = []
    for q in at:
        rank = q / 100 * (moments.count - 1)
        pair = {n: value_at(n) for n in (int(rank), int(rank) + 1)}
        found.append(interpolated(pair, rank))
    return found, moments.mean, moments.deviation
