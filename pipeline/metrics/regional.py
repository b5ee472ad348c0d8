"""Metrics of regions: unions of label values that are scored as one.

A region of a label map is the mask of its values. A metric that compares numbers is computed for
the mask of each region, ``dice_1``, ``dice_2`` and so on in the order of the regions, and ``dice``
is their mean. A region that is in neither map of a case has the value NaN there, and is left out of
the mean. Metrics of the foreground see it once, the union of all regions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.metrics.counts import Counts
from pipeline.metrics.overlap import mean_of

Regions = Sequence[Sequence[int]]
"""Label values of each region."""


def inside(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Find where a label map holds one of some values.

    Args:
        labels: integers of any shape.
        values: the values of a region.

    Returns:
        bool, shape of ``labels``.

    Example:
        >>> inside(np.array([0, 1, 2, 3]), (1, 3)).tolist()
        [False, True, False, True]
    """
    if labels.dtype in (np.uint8, np.uint16):
        table = np.zeros(np.iinfo(labels.dtype).max + 1, bool)
        table[[v for v in values if 0 <= v < len(table)]] = True
        return table[labels]
    return np.isin(labels, list(values))


def within(labels: np.ndarray, regions: Regions) -> np.ndarray:
    """Set values that are in no region to background; of one region alone make a mask.

    Args:
        labels: label map of any shape.
        regions: label values of each region.

    Returns:
        Labels of the same shape; uint8 0 and 1 for one region.

    Example:
        >>> within(np.array([0, 1, 2, 3]), [(1, 2), (2,)]).tolist()
        [0, 1, 2, 0]
    """
    known = inside(labels, sorted({v for values in regions for v in values}))
    return (
        known.astype(np.uint8)
        if len(regions) == 1
        else np.where(known, labels, 0).astype(labels.dtype, copy=False)
    )


def by_region(
    measure: Callable[[np.ndarray, np.ndarray], Mapping[str, Any]],
    maps: tuple[np.ndarray, np.ndarray],
    valid: np.ndarray | None,
    regions: Regions,
) -> dict[str, Any]:
    """Compute a metric for each region, and the mean.

    Args:
        measure: from the masks of prediction and target, uint8 0 and 1, to numbers by name.
        maps: prediction and target, label maps ``(*S)``.
        valid: bool ``(*S)``, the voxels that count; None: all.
        regions: label values of each region.

    Returns:
        Of each number ``<name>``, the mean over regions, and ``<name>_1``, ``<name>_2`` ...

    Example:
        >>> from pipeline.metrics.overlap import dice
        >>> maps = np.array([[0, 1, 2]]), np.array([[0, 2, 2]])
        >>> by_region(dice, maps, None, [(1, 2), (2,)])["dice_2"]
        0.6666666666666666
    """
    found: list[Mapping[str, Any] | None] = []
    for values in regions:
        masks = [inside(labels, values) for labels in maps]
        counted = masks[0] | masks[1]
        present = bool((counted if valid is None else counted & valid).any())
        found.append(measure(*(m.astype(np.uint8) for m in masks)) if present else None)
    first = next((row for row in found if row is not None), None)
    if first is None:
        empty = np.zeros(maps[0].shape, np.uint8)
        first = measure(empty, empty)
    keys = [key for key, value in first.items() if not isinstance(value, Mapping)]
    out: dict[str, Any] = {}
    for key in keys:
        each = {
            f"{key}_{n}": math.nan if row is None else row[key] for n, row in enumerate(found, 1)
        }
        out |= {key: mean_of(each.values()), **each}
    return out


def count_regions(
    answer: np.ndarray, label: np.ndarray, valid: np.ndarray | None, regions: Regions
) -> dict[int, Counts]:
    """Count the confusion matrix of each region in one patch.

    Args:
        answer: predicted label map ``(*S)``.
        label: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        regions: label values of each region.

    Returns:
        Counts by number of the region, from 1 on.
    """
    known = np.ones(label.shape, bool) if valid is None else valid
    total, out = int(np.count_nonzero(known)), dict[int, Counts]()
    for n, values in enumerate(regions, 1):
        found, true = (inside(labels, values) & known for labels in (answer, label))
        both, p, t = (int(np.count_nonzero(mask)) for mask in (found & true, found, true))
        out[n] = Counts(tp=both, fp=p - both, fn=t - both, tn=total - p - t + both)
    return out
