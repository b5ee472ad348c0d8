"""Where the classes of a case are: some voxels of each, from which patches are drawn as in nnU-Net.

The index is made once per case (:func:`pipeline.data.derived.attach`) and kept beside the maps. It
is read through a memory map: a draw touches a few rows, and no label.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.config import Data

LOCATIONS = "label:locations"
"""Name of the index in ``CachedCase.maps``."""

LABELLED = 0
"""Key of all labelled voxels, whatever their class; only with ``data.ignore_label``."""

SEED = 1234
"""Seed of the kept voxels of a class, nnU-Net's."""

LEAST, SHARE = 10_000, 0.01
"""Voxels kept of a class: this share of them, and at least so many where it has them."""

SLAB = 2**22
"""Voxels that are looked at in one piece."""


def keys_of(data: Data) -> list[tuple[int, tuple[int, ...]]]:
    """Keys of an index and the label values that each stands for.

    Args:
        data: section ``data`` of the config.

    Returns:
        ``LABELLED`` with all classes where some label is ignored; then 1, 2, ... for each class but
        the background, or with regions for each region.

    Example:
        >>> keys_of(Data(classes=3, ignore_label=255))
        [(0, (0, 1, 2)), (1, (1,)), (2, (2,))]
    """
    values = data.unions or tuple((k,) for k in range(1, data.classes))
    labelled = [] if data.ignore_label is None else [(LABELLED, tuple(range(data.classes)))]
    return [*labelled, *enumerate(values, 1)]


def kept(count: int) -> int:
    """Number of voxels that are kept of a class.

    Args:
        count: voxels of the class in a case.

    Returns:
        1 % of them, rounded up, and at least 10,000 where there are so many.

    Example:
        >>> kept(7), kept(20_000), kept(2_000_001)
        (7, 10000, 20001)
    """
    return min(count, max(LEAST, math.ceil(count * SHARE)))


def class_locations(label: np.ndarray, data: Data) -> np.ndarray:
    """Some voxels of each class of a label, drawn without replacement.

    The label is read twice, slab by slab: voxels are counted, their numbers drawn, and those found
    again. Memory grows with a slab and with what is kept, not with the label.

    Args:
        label: ``(1, *S)``, class numbers; may be memory-mapped.
        data: section ``data`` of the config, for classes, regions and ignored label.

    Returns:
        int32 ``(M, 1 + dims)``: the key (:func:`keys_of`) and the voxel, sorted by key and in a
        key in the order of memory.

    Source:
        Isensee et al., Nature Methods 18:203, 2021 (nnU-Net).

    Example:
        >>> class_locations(np.array([[[0, 2], [1, 2]]]), Data(classes=3)).tolist()
        [[1, 1, 0], [2, 0, 1], [2, 1, 1]]
    """
    keys = keys_of(data)
    members = np.zeros((len(keys), data.classes + 1), bool)
    for row, (_, values) in zip(members, keys, strict=True):
        row[list(values)] = True
    counts = np.array([members @ c for c in _counted(label[0], data)]).reshape(-1, len(keys))
    ends = counts.cumsum(axis=0)
    chosen = [
        _drawn(int(total), key) for total, (key, _) in zip(counts.sum(axis=0), keys, strict=True)
    ]
    parts: list[list[np.ndarray]] = [[] for _ in keys]
    for n, (first, numbers) in enumerate(_slabs(label[0], data)):
        for k, wanted in enumerate(chosen):
            low, high = np.searchsorted(wanted, (ends[n, k] - counts[n, k], ends[n, k]))
            if low == high:
                continue
            there = np.flatnonzero(members[k][numbers])
            flat = there[wanted[low:high] - (ends[n, k] - counts[n, k])]
            voxels = np.stack(np.unravel_index(flat, numbers.shape), axis=1)
            voxels[:, 0] += first
            parts[k].append(_rows(keys[k][0], voxels))
    empty = np.zeros((0, label.ndim), np.int32)
    return np.concatenate([empty, *(rows for found in parts for rows in found)])


def _slabs(label: np.ndarray, data: Data) -> Iterator[tuple[int, np.ndarray]]:
    """First row and class numbers of each slab of ``(*S)``; ignored voxels are ``classes``."""
    rows = max(1, SLAB // max(1, math.prod(label.shape[1:])))
    ignored = np.int32(data.classes)  # int8 holds 127 and -1, but not the number after 127
    for first in range(0, label.shape[0], rows):
        part = np.asarray(label[first : first + rows])
        if data.ignore_label is None:
            yield first, part
        else:
            yield first, np.where(part == data.ignore_label, ignored, part)


def _counted(label: np.ndarray, data: Data) -> Iterator[np.ndarray]:
    """Voxels of each class, and of the ignored label, in each slab."""
    for _, numbers in _slabs(label, data):
        yield np.bincount(numbers.reshape(-1), minlength=data.classes + 1)


def _drawn(count: int, key: int) -> np.ndarray:
    """Sorted numbers of the voxels that are kept of ``count``."""
    random = np.random.default_rng((SEED, key))
    return np.sort(random.choice(count, kept(count), replace=False, shuffle=False))


def _rows(key: int, voxels: np.ndarray) -> np.ndarray:
    """Rows of an index."""
    rows = np.empty((len(voxels), 1 + voxels.shape[1]), np.int32)
    rows[:, 0], rows[:, 1:] = key, voxels
    return rows


# --- drawing --------------------------------------------------------------------------------------


def ranges(index: np.ndarray) -> dict[int, tuple[int, int]]:
    """First and last row of each key of an index.

    Args:
        index: of :func:`class_locations`; of a memory map only a few rows are read.

    Returns:
        ``(first, stop)`` by key, for keys that occur.

    Example:
        >>> ranges(np.array([[1, 5], [1, 7], [3, 6]]))
        {1: (0, 2), 3: (2, 3)}
    """
    found, first, keys = {}, 0, index[:, 0]
    while first < len(index):
        key = int(keys[first])
        stop = bisect.bisect_right(keys, key, first)  # type: ignore[type-var]
        found[key], first = (first, stop), stop
    return found


def draw_voxel(
    index: np.ndarray, forced: bool, draws: Sequence[float]
) -> tuple[int, tuple[int, ...]] | None:
    """Draw the voxel that a patch is centred on.

    Args:
        index: of :func:`class_locations`.
        forced: whether it has to be foreground: a class is drawn uniformly among those of the case,
            then one of its voxels. Of a case without foreground, and where not forced, it is a
            labelled voxel.
        draws: two numbers in [0, 1).

    Returns:
        Key and voxel; None where any position will do: nothing is ignored, and no foreground asked
        for or there.
    """
    found = ranges(index)
    classes = [key for key in found if key != LABELLED] if forced else []
    if not classes and LABELLED not in found:
        return None
    key = classes[int(draws[0] * len(classes))] if classes else LABELLED
    first, stop = found[key]
    row = index[first + int(draws[1] * (stop - first))]
    return key, tuple(int(n) for n in row[1:])


def is_forced(position: int, wide: int, share: float) -> bool:
    """Whether a sample of a batch is centred on foreground, by nnU-Net's rule.

    Args:
        position: number of the sample in its epoch.
        wide: samples of a batch on all ranks.
        share: ``data.patch.oversample``.

    Returns:
        True for the last ``wide - round(wide * (1 - share))`` samples of each batch.

    Example:
        >>> [is_forced(n, 2, 0.33) for n in range(4)], sum(is_forced(n, 9, 0.33) for n in range(9))
        ([False, True, False, True], 3)
    """
    return position % wide >= round(wide * (1 - share))
