"""How the segments of two labelings overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 1 << 22
"""Voxels whose segments are compared at a time, to bound the memory."""


@dataclass(frozen=True, slots=True)
class SegmentOverlaps:
    """How many voxels each pair of segments shares."""

    pairs: np.ndarray
    """Segments ``(2, N)``, predicted and true, 0 the background."""
    voxels: np.ndarray
    """Voxels ``(N,)`` of each pair, float64."""


def segment_overlaps(
    prediction: np.ndarray, target: np.ndarray, where: np.ndarray
) -> SegmentOverlaps:
    """Count the voxels of each pair of segments.

    Args:
        prediction: segment numbers ``(*S)``, none negative, 0 the background.
        target: the same of the other labeling.
        where: bool ``(*S)``, the voxels that are counted.

    Returns:
        The pairs that occur.

    Example:
        >>> import numpy as np
        >>> first, second = np.array([[1, 1, 2]]), np.array([[0, 3, 3]])
        >>> found = segment_overlaps(first, second, first > 0)
        >>> found.pairs.T.tolist(), found.voxels.tolist()
        ([[1, 0], [1, 3], [2, 3]], [1.0, 1.0, 1.0])
    """
    labels: Sequence[np.ndarray] = (prediction, target)
    width = int(labels[1].max(initial=0)) + 1
    keys, counts = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    rows = max(1, CHUNK * len(where) // max(where.size, 1))
    for start in range(0, len(where), rows):
        slab = slice(start, start + rows)
        first, second = (side[slab][where[slab]].astype(np.int64) for side in labels)
        key, count = _tally(first * width + second)
        keys.append(key)
        counts.append(count)
    key, number = np.unique(np.concatenate(keys), return_inverse=True)
    return SegmentOverlaps(
        np.stack(np.divmod(key, width)), np.bincount(number, np.concatenate(counts), len(key))
    )


def _tally(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values ``(N,)``, none negative, and how often each occurs.

    Neighbours are mostly equal: runs are found before sorting.
    """
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    lengths = np.diff(starts, append=values.size)
    key, number = np.unique(values[starts], return_inverse=True)
    return key, np.bincount(number, lengths, len(key))
