"""Which voxels are one object: the option ``classes`` of steps that remove whole components.

``each``: every class by itself. ``foreground``: all classes together. A list: its values, each by
itself, ``[1, 3]``; a list within it is one object of several classes, as in ``data.regions``:
``[[1, 2], 3]``. Values are those of the written labels, with ``data.regions`` too. Classes that are
not named stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pipeline.config import ConfigError
from pipeline.config.errors import shown
from pipeline.morphology import SlabArray
from pipeline.postprocess.classes import Box, Labels, class_boxes, union_box

EACH, FOREGROUND = "each", "foreground"

Classes = Literal["each", "foreground"] | int | Sequence[int | Sequence[int]]
"""The option ``classes``, as in YAML."""

Object = tuple[int, ...]
"""Values of the classes that are one object."""


def named_objects(step: str, classes: Any) -> tuple[Object, ...] | None:
    """Read the option ``classes``.

    Args:
        step: its name, for messages.
        classes: the option.

    Returns:
        The objects that it names; None: ``each`` or ``foreground``, which name none.

    Raises:
        ConfigError: for other words and values, no value, and a value that is named twice.

    Example:
        >>> named_objects("dust", [[1, 2], 3])
        ((1, 2), (3,))
    """
    if classes in (EACH, FOREGROUND):
        return None
    several = isinstance(classes, Sequence) and not isinstance(classes, str)
    items: list[Any] = list(classes) if several else [classes]
    objects: list[list[Any]] = [list(i) if isinstance(i, list | tuple) else [i] for i in items]
    values = [value for values in objects for value in values]
    if not objects or not all(objects) or not all(map(_is_class, values)):
        raise ConfigError(
            f"{step}: classes is {shown(classes)}, must be each, foreground, or a list of label"
            " values from 1 on, such as [1, 3]; [[1, 2]] is one object of two classes."
        )
    if len(set(values)) < len(values):
        raise ConfigError(
            f"{step}: classes is {shown(classes)}; a value is named twice. Name it once, and in a"
            " second step for another object."
        )
    return tuple(tuple(int(value) for value in values) for values in objects)


def _is_class(value: Any) -> bool:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    return whole and 1 <= value < 2**16


def remove_from_objects(
    labels: Labels, step: str, classes: Any, keep: Callable[[Any], Any]
) -> Labels:
    """Turn parts of objects into background; nothing is added, and no class changes another.

    Args:
        labels: labels ``(*S)``, 0 the background, in memory or in slabs.
        step: its name, for messages.
        classes: the option.
        keep: from the mask of an object, of the same kind and in the object's box, to what stays.

    Returns:
        New labels of the same kind.

    Raises:
        ConfigError: ``classes`` is none.

    Example:
        >>> import numpy as np
        >>> from pipeline import morphology
        >>> remove_from_objects(np.array([[1, 0, 2, 2]]), "", "foreground", morphology.keep_largest)
        array([[0, 0, 2, 2]])
    """
    named = named_objects(step, classes)
    boxes = class_boxes(labels)
    if named is None:
        named = tuple((v,) for v in boxes) if classes == EACH else (tuple(boxes),)
    found = _present(named, boxes)
    if isinstance(labels, SlabArray):
        return _in_slabs(labels, found, keep)
    out = labels.copy()
    for values, box in found.items():
        mask = is_object(labels[box], values)
        out[box][mask & ~keep(mask)] = 0
    return out


def _present(objects: Iterable[Object], boxes: Mapping[int, Box]) -> dict[Object, Box]:
    """The objects of which something is there, with the box around them."""
    present = (tuple(v for v in values if v in boxes) for values in objects)
    return {
        values: functools.reduce(union_box, (boxes[v] for v in values))
        for values in present
        if values
    }


def is_object(labels: np.ndarray, values: Object) -> np.ndarray:
    """Mask of some values.

    Args:
        labels: labels of any shape.
        values: those of the object.

    Returns:
        bool, of the same shape.
    """
    return labels == values[0] if len(values) == 1 else np.isin(labels, values)


def _in_slabs(
    labels: SlabArray, objects: Mapping[Object, Box], keep: Callable[[SlabArray], SlabArray]
) -> SlabArray:
    kept = {
        values: keep(labels.crop(box).map(functools.partial(is_object, values=values)))
        for values, box in objects.items()
    }

    def make(number: int) -> np.ndarray:
        array, first = labels.make(number), labels.ranges[number][0]
        out = array.copy()
        for values, after in kept.items():
            if number in after.ranges:
                start, stop = after.ranges[number]
                box = (slice(start - first, stop - first), *objects[values][1:])
                out[box][is_object(array[box], values) & ~after.make(number)] = 0
        return out

    return SlabArray(labels.shape, labels.ranges, make)
