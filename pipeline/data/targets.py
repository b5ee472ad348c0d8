"""Targets as they are read from files: labels, masks of the field of view, and images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import config, files
from pipeline.data import normalise
from pipeline.data.labels import WHITE as WHITE_NUMBERS
from pipeline.data.labels import rounded
from pipeline.data.reading import single
from pipeline.records import Geometry

MASKED = ("labels", "mask")
"""Kinds of targets whose values are classes."""

WHITE = tuple(map(str, WHITE_NUMBERS))
"""Values, as text, that stand for class 1 in a black and white picture of 8 or 16 bits."""

LISTED = 256
"""Distinct label values that are counted; an image given as labels would have millions."""


def load_target(path: Path, data: config.Data, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Read one target from its file.

    Args:
        path: file of the target.
        data: section ``data`` of the config, by :func:`target_rules` for a mask.
        labels: read class numbers; else an image.

    Returns:
        Array ``(C, *S)`` and geometry; labels have one channel, and two values besides the ignored
        one where ``data.binarise`` is set. Float64 images come as float32.

    Raises:
        FileError: for a file that cannot be read, and for labels whose channels differ.
    """
    array, geometry = files.read(path, data.dims, labels=labels)
    if not labels:
        return single(path, array), geometry
    array = array if data.binarise is not None else rounded(array)
    array = array if data.binarise is None else _binarised(path, array, data)
    if len(array) > 1 and (array != array[:1]).any():
        suggestion = "Save labels with one channel that holds the class numbers"
        raise files.FileError(
            path, f"has {len(array)} different channels where labels are needed", suggestion
        )
    return array[:1], geometry  # several where a grey mask is saved in colour


def _binarised(path: Path, array: np.ndarray, data: config.Data) -> np.ndarray:
    """1 where a value lies above ``data.binarise``, the ignored label where it is that, else 0."""
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise files.FileError(
            path, f"holds {np.isnan(array).sum()} values that are NaN", "Replace them by numbers"
        )
    mask = (array > data.binarise).astype(label_dtype(data))
    if data.ignore_label is not None:
        mask[array == data.ignore_label] = data.ignore_label
    return mask


def target_rules(data: config.Data, kind: str) -> config.Data:
    """Settings by which a role of this kind is read.

    Args:
        data: section ``data`` of the config.
        kind: ``labels``, ``image``, ``soft`` or ``mask``.

    Returns:
        ``data`` itself; for a mask, which always has two classes and nothing to ignore, a copy that
        says so.
    """
    return dataclasses.replace(data, classes=2, ignore_label=None) if kind == "mask" else data


def read_labels(path: Path, data: config.Data) -> np.ndarray:
    """Read and check the labels of one file.

    The check is that of :func:`pipeline.data.checks.faults`. In a two-class mask of 0 and 255 (16
    bits: 0 and 65535) the larger becomes 1; with ``data.binarise`` every value above it.

    Args:
        path: file of the labels.
        data: section ``data`` of the config.

    Returns:
        ``(1, *S)`` in the smallest integer type that holds every class.

    Raises:
        FileError: for a file that cannot be read, and for values outside the classes.
    """
    array, _ = load_target(path, data, labels=True)
    values = label_values(array)
    problem = label_problem(values, data)
    if problem:
        raise files.FileError(path, *problem)
    white = _white_value(values, data)
    return (np.where(array == int(white), 1, array) if white else array).astype(label_dtype(data))


def read_mask(path: Path, data: config.Data) -> np.ndarray:
    """Read and check the field of view of one file.

    The file holds 0/1, 0/255 or, with ``data.binarise``, any greys.

    Args:
        path: file of the mask.
        data: section ``data`` of the config; ``classes`` and ``ignore_label`` are those of labels
            and have no effect here.

    Returns:
        ``(1, *S)``, uint8 0/1.

    Raises:
        FileError: for other values, and where no voxel lies inside.
    """
    mask = read_labels(path, target_rules(data, "mask"))
    if not mask.any():
        raise files.FileError(path, *EMPTY_VIEW)
    return mask


EMPTY_VIEW = (
    "holds no field of view: nothing would be counted",
    "Give a mask whose foreground is the part of the image that counts",
)
"""Problem and suggestion for a mask without foreground."""


def label_dtype(data: config.Data) -> np.dtype:
    """Smallest integer type for the classes and the ignored label.

    Args:
        data: section ``data`` of the config.

    Returns:
        uint8 wherever possible.

    Example:
        >>> label_dtype(config.Data(classes=3, ignore_label=-1))
        dtype('int8')
    """
    ends = (min(0, data.ignore_label or 0), max(data.classes - 1, data.ignore_label or 0))
    kinds = (np.uint8, np.int8, np.uint16, np.int16, np.int32)
    return np.dtype(
        next(
            (k for k in kinds if np.iinfo(k).min <= ends[0] and ends[1] <= np.iinfo(k).max),
            np.int64,
        )
    )


def label_values(array: np.ndarray) -> dict[str, int]:
    """Count the voxels of each label value.

    Args:
        array: labels of any shape and number type.

    Returns:
        Counts by the value as text (``"2"``, ``"0.5"``, ``"nan"``), ascending; beyond 256 values
        the rest is summed under ``"others"``.

    Example:
        >>> label_values(np.array([0, 2, 2, 0.5]))
        {'0': 1, '0.5': 1, '2': 2}
    """
    if array.dtype in (np.uint8, np.uint16):
        counts = normalise.histogram(array)
        values, counts = np.flatnonzero(counts), counts[counts > 0]
    else:
        values, counts = np.unique(array, return_counts=True)
    pairs = [
        (_value_text(value), int(count))
        for value, count in zip(values[:LISTED], counts[:LISTED], strict=True)
    ]
    return dict(pairs) | ({"others": int(counts[LISTED:].sum())} if len(values) > LISTED else {})


def _value_text(value: Any) -> str:
    """A number as text, without a fraction where it is whole."""
    return str(int(value)) if np.isfinite(value) and int(value) == value else repr(float(value))


def label_problem(values: Mapping[str, int], data: config.Data) -> tuple[str, str] | None:
    """What is wrong with these label values.

    Args:
        values: counts of :func:`label_values`.
        data: section ``data`` of the config, by :func:`target_rules`.

    Returns:
        Problem and suggestion; None where all values are classes or the ignored label.
    """
    wrong = (
        {}
        if _white_value(values, data)
        else {value: count for value, count in values.items() if value not in _allowed_values(data)}
    )
    if not wrong:
        return None
    shown = ", ".join(f"{value} ({count} voxels)" for value, count in list(wrong.items())[:8])
    known = f"0 to {data.classes - 1}" + (
        "" if data.ignore_label is None else f" and {data.ignore_label}, which is ignored"
    )
    suggestion = "Correct the file, or data.classes or data.ignore_label"
    if data.classes == 2 and _looks_lossy(values):
        suggestion += (
            "; if it is a black and white mask that was kept as JPEG or resized, set"
            " data.binarise: 127"
        )
    return f"holds labels outside {known}: {shown}{', ...' if len(wrong) > 8 else ''}", suggestion


def _looks_lossy(values: Mapping[str, int]) -> bool:
    """Whether these may be the values of a picture of 0 and 255 after a lossy step.

    Signs are greys near both ends, or many greys.
    """
    if "others" in values or any(not 0 <= float(v) <= 255 for v in values):
        return False
    numbers = [float(v) for v in values]
    greys = [v for v in numbers if 1 < v < 255]
    return (
        bool(greys)
        and max(numbers) > 127
        and (len(numbers) > 8 or (min(numbers) <= 40 and max(numbers) >= 215))
    )


def _allowed_values(data: config.Data) -> set[str]:
    """Classes and the ignored label, as text."""
    return {str(value) for value in range(data.classes)} | (
        {str(data.ignore_label)} if data.ignore_label is not None else set()
    )


def _white_value(values: Mapping[str, int], data: config.Data) -> str | None:
    """The value that stands for class 1 in a black and white picture, as text; else None."""
    allowed = _allowed_values(data)
    found = (
        w
        for w in WHITE
        if data.classes == 2
        and w in values
        and w not in allowed
        and set(values) <= (allowed - {"1"}) | {w}
    )
    return next(found, None)
