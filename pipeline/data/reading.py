"""Images of cases, read whole or as they are sliced: the same values in training and prediction."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, grid
from pipeline.data.normalise import WHOLE
from pipeline.files import FileError, LazyArray, Rows
from pipeline.records import Case, Geometry

NONFINITE = "Replace them, e.g. by the mean of their neighbours"
"""What to do about values that are no numbers."""


@contextlib.contextmanager
def opened(
    case: Case, dims: int, *, whole: bool = False, finite: bool = True
) -> Iterator[tuple[LazyArray, Geometry]]:
    """Open all channels of a case.

    Args:
        case: the case.
        dims: space axes.
        whole: read it into memory; else rows are read as they are sliced, until the context is
            left, and a large file whose format can only be read whole is sliced from memory
            likewise.
        finite: refuse NaN and infinity, where the rows that hold them are read.

    Yields:
        Array ``(C, *S)``, float64 as float32 (:func:`single`), and the geometry of the first file
        with the notes of all.

    Raises:
        FileError: for a file that cannot be read or does not fit the first one.
    """
    with contextlib.ExitStack() as stack:
        found: list[tuple[LazyArray, Geometry]] = []
        for path in case.image:
            array, geometry = (
                files.read(path, dims) if whole else stack.enter_context(files.view(path, dims))
            )
            _require_same_grid(path, (array, geometry), found[:1], case)
            found.append((_checked_floats(path, array, finite), geometry))
        image = _concatenated([array for array, _ in found])
        yield (
            (image if whole else _read_when_sliced(image)),
            _with_all_notes(case, [geometry for _, geometry in found]),
        )


def load_image(case: Case, dims: int) -> tuple[np.ndarray, Geometry]:
    """All channels of a case in memory; NaN and infinity are left to the caller.

    Args:
        case: the case.
        dims: space axes.

    Returns:
        Array ``(C, *S)`` and geometry, as of :func:`opened`.

    Raises:
        FileError: for a file that cannot be read or does not fit the first one.
    """
    with opened(case, dims, whole=True, finite=False) as (image, geometry):
        return np.asarray(image), geometry


def _with_all_notes(case: Case, geometries: Sequence[Geometry]) -> Geometry:
    """The geometry of the first file, with the notes of all."""
    pairs = zip(case.image, geometries, strict=True)
    notes = [
        f"(file {path.name}) {note}" if n else note
        for n, (path, geometry) in enumerate(pairs)
        for note in geometry.notes
    ]
    return dataclasses.replace(geometries[0], notes=tuple(notes))


def _concatenated(arrays: Sequence[LazyArray]) -> LazyArray:
    """The channels of all files, in one number type.

    Float64, which whole numbers beside float32 make, becomes float32.
    """
    common = np.result_type(*(array.dtype for array in arrays))
    dtype = np.dtype(np.float32) if common == np.float64 else common
    if len(arrays) == 1:
        return arrays[0]
    if all(isinstance(array, np.ndarray) for array in arrays):
        return np.concatenate([array[:] for array in arrays]).astype(dtype, copy=False)
    shape = (sum(array.shape[0] for array in arrays), *arrays[0].shape[1:])
    return Rows(
        shape,
        dtype,
        lambda first, end: np.concatenate([array[:, first:end] for array in arrays]).astype(dtype),
    )


def _read_when_sliced(array: LazyArray) -> LazyArray:
    """A large array that its format gives only whole, read as it is sliced like the others."""
    if not isinstance(array, np.ndarray) or math.prod(array.shape) <= WHOLE:
        return array
    return Rows(array.shape, array.dtype, lambda first, end: array[:, first:end])


def _require_same_grid(
    path: Path,
    own: tuple[LazyArray, Geometry],
    first: Sequence[tuple[LazyArray, Geometry]],
    case: Case,
) -> None:
    """Raise FileError where a file is on another grid than the first one of its case."""
    for array, geometry in first:
        if grid.has_world(geometry) != grid.has_world(own[1]):
            problem = (
                f"is {_axis_order(own[1])}, the first channel {case.image[0].name} is"
                f" {_axis_order(geometry)}: nothing says which axis is which"
            )
            raise FileError(path, problem, "Save all channels in one format, the axes in one order")
        if own[0].shape[1:] != array.shape[1:]:
            problem = (
                f"has shape {tuple(own[0].shape[1:])}, the first channel {tuple(array.shape[1:])}"
            )
            raise FileError(path, problem, "Resample the channels to one grid")
        if not same_affine(geometry.meta.get("affine"), own[1].meta.get("affine")):
            raise FileError(
                path,
                "lies elsewhere in the world than the first channel (affine)",
                "Resample the channels to one grid",
            )


def _axis_order(geometry: Geometry) -> str:
    """Axis order of a file, for messages."""
    return (
        "NIfTI, MetaImage, NRRD or DICOM with axes (X, Y, Z)"
        if grid.has_world(geometry)
        else "none of them, its axes are (Z, Y, X)"
    )


def same_affine(one: Any, other: Any) -> bool:
    """Whether two affines of headers agree, as far as both files have one.

    Args:
        one: 4 x 4 affine, or None.
        other: the same of the other file.

    Returns:
        True also where either is None.
    """
    return one is None or other is None or grid.near(one, other)


def single(path: Path, array: np.ndarray) -> np.ndarray:
    """Values as they are computed with: float64 as float32, other types as they are.

    Args:
        path: the file, for messages.
        array: its values.

    Returns:
        The array itself unless it is float64.

    Raises:
        FileError: where float32 makes values infinite.
    """
    if array.dtype != np.float64:
        return array
    with np.errstate(over="ignore"):
        out = array.astype(np.float32)
    beyond = nonfinite(out) - nonfinite(array) if nonfinite(out) else 0
    if beyond:
        problem = (
            f"holds {beyond} values beyond {np.finfo(np.float32).max:.2g}, the largest number of 32"
            " bits, with which images are computed"
        )
        raise FileError(
            path,
            problem,
            "Divide its values by a power of ten, or replace those that are no measurements",
        )
    return out


# --- values that are no numbers -------------------------------------------------------------------


def _checked_floats(path: Path, array: LazyArray, finite: bool) -> LazyArray:
    """The array as :func:`single` gives it, checked for NaN and infinity when it is read."""
    if np.dtype(array.dtype).kind != "f":
        return array
    if not isinstance(array, Rows):
        whole = single(path, np.asarray(array))
        if finite:
            require_finite(path, whole)
        return whole
    make = array.make

    def checked(first: int, end: int) -> np.ndarray:
        found = single(path, make(first, end))
        if finite:
            require_finite(path, found, f" among its rows {first} to {end - 1}")
        return found

    return Rows(
        array.shape, np.dtype(np.float32) if array.dtype == np.float64 else array.dtype, checked
    )


def require_finite(path: Path, array: np.ndarray, where: str = "") -> None:
    """Refuse an array that holds NaN or infinity.

    Args:
        path: the file, for messages.
        array: ``(C, *S)``.
        where: end of the message.

    Raises:
        FileError: where a value is not finite.
    """
    if count := nonfinite(array):
        raise FileError(path, nonfinite_problem(count) + where, NONFINITE)


def nonfinite(array: np.ndarray) -> int:
    """Count NaN and infinite values.

    Args:
        array: ``(C, *S)``; integers are not read.

    Returns:
        Their number.
    """
    if array.dtype.kind != "f":
        return 0
    return array.size - sum(
        int(np.count_nonzero(np.isfinite(array[:, first:end]))) for first, end in files.slabs(array)
    )


def nonfinite_files(case: Case, image: np.ndarray) -> dict[int, int]:
    """Count NaN and infinite values in each file of a case's image.

    Args:
        case: the case.
        image: its channels ``(C, *S)``.

    Returns:
        Counts by the file's number, from 0 on; files without any are left out.
    """
    if not nonfinite(image):
        return {}
    channels = [files.probe(path, image.ndim - 1).shape[0] for path in case.image]
    ends = itertools.accumulate(channels)
    counts = [nonfinite(image[end - own : end]) for end, own in zip(ends, channels, strict=True)]
    return {number: count for number, count in enumerate(counts) if count}


def nonfinite_problem(count: int) -> str:
    """Message for values that are not finite.

    Args:
        count: how many.

    Returns:
        The problem of a FileError or Fault.
    """
    return f"holds {count} values that are NaN or infinite"
