"""Class by class: a change of a mask, applied to each class of an array of labels.

What one class gains, no other class loses: a class loses only its own voxels, and gains only
background, the lowest class first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import scipy

from pipeline.morphology import SlabArray

Labels = TypeVar("Labels", np.ndarray, SlabArray)
"""Labels ``(*S)``, in memory or slab by slab."""

Box = tuple[slice, ...]
"""A slice with start and stop for each axis."""

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From the mask of a class and the free voxels, which no class had or has got, to its mask."""


def each_class(labels: Labels, change: Callable[[Any], Any]) -> Labels:
    """Apply a change of masks that only adds or only removes to each class.

    Args:
        labels: labels ``(*S)``, 0 the background, in memory or in slabs.
        change: of a mask of the same kind in the class's box, as the functions of
            :mod:`pipeline.morphology.labelling`.

    Returns:
        New labels of the same kind.

    Example:
        >>> import numpy as np
        >>> from pipeline import morphology
        >>> each_class(np.array([[1, 0, 2, 2]]), lambda m: morphology.remove_small_components(m, 2))
        array([[0, 0, 2, 2]])
    """
    if isinstance(labels, SlabArray):
        return _each_class_in_slabs(labels, change)
    return mend_each_class(labels, lambda mask, _: change(mask))


def _each_class_in_slabs(labels: SlabArray, change: Callable[[SlabArray], SlabArray]) -> SlabArray:
    boxes = class_boxes(labels)
    changed = {value: change(labels.crop(box) == value) for value, box in boxes.items()}

    def make(number: int) -> np.ndarray:
        array, first = labels.make(number), labels.ranges[number][0]
        out = array.copy()
        for value, after in changed.items():
            if number in after.ranges:
                start, stop = after.ranges[number]
                box = (slice(start - first, stop - first), *boxes[value][1:])
                rows = after.make(number)
                _change(out[box], array[box], value, lambda *_, rows=rows: rows)
        return out

    return SlabArray(labels.shape, labels.ranges, make)


def mend_each_class(labels: np.ndarray, change: Change) -> np.ndarray:
    """Apply changes to each class in memory that also take the voxels they may add.

    Args:
        labels: labels ``(*S)``, 0 the background.
        change: from the mask of a class in its box and the free voxels there to its new mask.

    Returns:
        New labels.
    """
    out = labels.copy()
    for value, box in class_boxes(labels).items():
        _change(out[box], labels[box], value, change)
    return out


def _change(out: np.ndarray, labels: np.ndarray, value: int, change: Change) -> None:
    """Change one class in place; other classes may have been changed in ``out`` already."""
    before = labels == value
    free = (labels == 0) & (out == 0)
    after = change(before, free)
    out[before & ~after] = 0
    out[after & free] = value


def classes(labels: np.ndarray) -> Iterator[tuple[int, Box, np.ndarray]]:
    """Iterate over the classes of labels in ascending order.

    Args:
        labels: labels ``(*S)``, 0 the background.

    Yields:
        Class value, its box and its mask in that box.
    """
    for value, box in class_boxes(labels).items():
        yield value, box, labels[box] == value


def class_boxes(labels: np.ndarray | SlabArray) -> dict[int, Box]:
    """Find a box around each class.

    The box has one voxel of background to spare where the array goes on, so that a face of the box
    is a face of the array or lies outside the class: every step gives the same inside the box as in
    the whole array.

    Args:
        labels: labels ``(*S)``, 0 the background, in memory or in slabs.

    Returns:
        Boxes by class value, ascending.
    """
    found: dict[int, Box] = {}
    for first, rows in _slabs(labels):
        for value, box in enumerate(scipy.ndimage.find_objects(rows), 1):
            if box is not None:
                moved = (slice(box[0].start + first, box[0].stop + first), *box[1:])
                found[value] = union_box(found.get(value, moved), moved)
    grown = (
        (value, tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box))
        for value, box in found.items()
    )
    return dict(sorted(grown))


def _slabs(labels: np.ndarray | SlabArray) -> Iterator[tuple[int, np.ndarray]]:
    """First row and rows of each slab; an array in memory is one."""
    if not isinstance(labels, SlabArray):
        yield 0, labels
        return
    for number, (first, _) in labels.ranges.items():
        yield first, labels.make(number)


def union_box(one: Box, other: Box) -> Box:
    """Find the box around two boxes.

    Args:
        one: a box.
        other: another, of as many axes.

    Returns:
        The smallest box that holds both.
    """
    return tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
