"""The space in which a model sees images: how arrays go there and predictions back, exactly.

Today axes are reordered and flipped; nothing is cropped or resampled. What cannot be made equal is
refused, and what may matter is warned of. Where nothing is to be done, the array itself is passed
through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline import files
from pipeline.files import FileError, LazyArray, Rows, npy, slabs
from pipeline.grid import SPREAD, Alignment, Grid, by_mm, grid_of, reorientation, spread
from pipeline.records import Case, Geometry

FAMILIES = {
    "nifti": "NIfTI, MetaImage, NRRD or DICOM, whose arrays are (X, Y, Z)",
    "array": "TIFF, Zarr, NumPy arrays or pictures, which are (Z, Y, X)",
}
"""What messages call the two families of grids."""

ROUNDING = 1e-6
"""Tolerance, so that a tenth is not more than a tenth."""


class Step(Protocol):
    """One invertible step to model space.

    Arrays are ``(C, *S)`` in memory, or read as they are sliced.
    """

    def size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The file's ``(*S)`` after this step.

        Args:
            size: ``(*S)`` before it.

        Returns:
            ``(*S)`` after it.
        """
        ...

    def forward(self, array: LazyArray, scratch: Path | None) -> LazyArray:
        """The array after this step.

        Args:
            array: ``(C, *S)``.
            scratch: file for what can neither be held in memory nor read as it is sliced; None: in
                memory.

        Returns:
            ``(C, *S)`` after this step.
        """
        ...

    def back(self, array: LazyArray, scratch: Path | None) -> LazyArray:
        """The inverse of :meth:`forward`, for any number of channels.

        Args:
            array: ``(C, *S)`` after this step.
            scratch: as of :meth:`forward`.

        Returns:
            ``(C, *S)`` before this step.
        """
        ...


@dataclass(frozen=True, slots=True)
class Reorient:
    """Reordered and flipped axes, as in :class:`pipeline.grid.Alignment`."""

    alignment: Alignment

    def size(self, size: Sequence[int]) -> tuple[int, ...]:
        """As :meth:`Step.size`.

        Args:
            size: ``(*S)`` before.

        Returns:
            ``(*S)`` after.
        """
        return self.alignment.size(size)

    def forward(self, array: LazyArray, scratch: Path | None) -> LazyArray:
        """As :meth:`Step.forward`.

        Args:
            array: ``(C, *S)``.
            scratch: file for a lazy array whose rows become columns; None: in memory.

        Returns:
            ``(C, *S)`` reoriented: a copy in memory, or read as it is sliced.
        """
        return _reoriented(array, self.alignment, scratch)

    def back(self, array: LazyArray, scratch: Path | None) -> LazyArray:
        """As :meth:`Step.back`.

        Args:
            array: ``(C, *S)`` reoriented.
            scratch: as of :meth:`forward`.

        Returns:
            ``(C, *S)`` in the order of the file.
        """
        return _reoriented(array, self.alignment.inverse, scratch)


def _reoriented(array: LazyArray, alignment: Alignment, scratch: Path | None) -> LazyArray:
    """The reoriented array: a copy in memory, or read as it is sliced.

    A lazy array whose rows remain rows is read as it is sliced; another is mapped from the file
    ``scratch``, which is written slab by slab.
    """
    if isinstance(array, np.ndarray) or scratch is None:
        return np.ascontiguousarray(alignment.apply(array[:]))
    shape, dtype = (array.shape[0], *alignment.size(array.shape[1:])), np.dtype(array.dtype)
    if alignment.axes[0] != 0:
        return _reoriented_on_disk(array, alignment, shape, scratch)
    flipped, rows = 0 in alignment.flips, array.shape[1]

    def make(first: int, end: int) -> np.ndarray:
        return alignment.apply(
            array[:, rows - end : rows - first] if flipped else array[:, first:end]
        )

    return Rows(shape, dtype, make)


def _reoriented_on_disk(
    array: LazyArray, alignment: Alignment, shape: tuple[int, ...], scratch: Path
) -> Rows:
    """The reoriented array from a file: rows of one become columns of the other."""
    dtype, axis = np.dtype(array.dtype), alignment.axes.index(0) + 1
    if scratch.is_file():  # of this very array: the caller names one file per array
        return npy.rows(scratch)
    with files.whole(scratch, int(np.prod(shape)) * dtype.itemsize) as temp:
        out = npy.room(temp, shape, dtype)
        for first, end in slabs(array):
            low, high = (
                (shape[axis] - end, shape[axis] - first)
                if axis - 1 in alignment.flips
                else (first, end)
            )
            out[(slice(None),) * axis + (slice(low, high),)] = alignment.apply(array[:, first:end])
        out.flush()
        del out
    return npy.rows(scratch)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpace:
    """How the array ``(C, *S)`` of a file goes to the space in which networks see it, and back.

    Args:
        steps: in the order in which the file's array takes them; none where it is taken as it is.
        codes: axis codes of the file and of training, where an orientation brings one to the other.
        notes: warnings for the user.
    """

    steps: tuple[Step, ...] = ()
    codes: tuple[str, str] = ("", "")
    notes: tuple[str, ...] = ()

    @property
    def needs_scratch(self) -> bool:
        """Whether rows become columns, so that a lazy array needs a scratch file."""
        return any(
            isinstance(step, Reorient) and step.alignment.axes[0] != 0 for step in self.steps
        )

    def size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The file's ``(*S)`` in model space.

        Args:
            size: ``(*S)`` of the file's array.

        Returns:
            ``(*S)`` after all steps.
        """
        for step in self.steps:
            size = step.size(size)
        return tuple(size)

    def to_model(self, array: LazyArray, scratch: Path | None = None) -> LazyArray:
        """The file's array in model space: the very array where nothing changes.

        Args:
            array: ``(C, *S)``.
            scratch: where a lazy array whose rows become columns may lie, as ``NAME.N.npy``: a file
                of this array alone, used again. None: in memory.

        Returns:
            ``(C, *S)`` in model space.
        """
        for number, step in enumerate(self.steps):
            array = step.forward(array, _step_file(scratch, number))
        return array

    def to_file(self, array: LazyArray, scratch: Path | None = None) -> LazyArray:
        """The inverse of :meth:`to_model`, for any number of channels.

        Args:
            array: ``(C, *S)`` in model space.
            scratch: as of :meth:`to_model`.

        Returns:
            ``(C, *S)`` in the order of the file.
        """
        for number, step in reversed([*enumerate(self.steps)]):
            array = step.back(array, _step_file(scratch, number))
        return array


def _step_file(scratch: Path | None, number: int) -> Path | None:
    """Scratch file of one step."""
    return (
        None if scratch is None else scratch.with_name(f"{scratch.stem}.{number}{scratch.suffix}")
    )


def model_space(
    case: Case, geometry: Geometry, dims: int, trained_on: Mapping[str, Any]
) -> ModelSpace:
    """How a case goes to the axes of training.

    Args:
        case: the case, for messages.
        geometry: geometry of its image.
        dims: space axes.
        trained_on: ``Checkpoint.trained_on``; empty where the model file says nothing of axes.

    Returns:
        Steps to model space and back; none where the axes agree or are not known.

    Raises:
        FileError: for a file of another family than those trained on, and for axes that no order
            and no flip makes those.
    """
    return space_of(case.image[0], grid_of(geometry, dims), trained_on)


def space_of(path: Path, grid: Grid, trained_on: Mapping[str, Any]) -> ModelSpace:
    """As :func:`model_space`, of an array on a known grid.

    Args:
        path: what messages call the array.
        grid: its grid.
        trained_on: ``Checkpoint.trained_on``.

    Returns:
        Steps to model space and back.

    Raises:
        FileError: as of :func:`model_space`.
    """
    family, codes = trained_on.get("family"), trained_on.get("codes")
    if family is not None and grid.family != family:
        raise FileError(
            path,
            f"is of another kind than the model was trained on: {FAMILIES[grid.family]}; trained on"
            f" {FAMILIES.get(family, family)}",
            "Nothing says which axis is which. Convert it, axes included, to the kind of the"
            " training data, or train on files of its kind",
        )
    alignment = _alignment(path, grid.codes, codes)
    notes = _spacing_note(grid, alignment, trained_on)
    if alignment is None or alignment.identity:
        return ModelSpace(notes=notes)
    return ModelSpace(
        steps=(Reorient(alignment),), codes=(str(grid.codes), str(codes)), notes=notes
    )


def _alignment(path: Path, codes: str | None, wanted: str | None) -> Alignment | None:
    """How the axes of a file become those of training; None where either is not known."""
    if not codes or not wanted or "?" in codes + wanted:
        return None
    found = reorientation(codes, wanted)
    if found is None:
        problem = f"has axes {codes}, the model was trained on {wanted}: other planes of the body"
        raise FileError(
            path,
            problem,
            f"Give images whose axes are {wanted} in any order and direction, or train on such as"
            " this",
        )
    return found


def _spacing_note(
    grid: Grid, alignment: Alignment | None, trained_on: Mapping[str, Any]
) -> tuple[str, ...]:
    """A warning where voxels differ from those of training by more than a tenth along an axis."""
    given, wanted = grid.spacing, trained_on.get("spacing")
    if given is None or not wanted or len(wanted) != len(given):
        return ()
    if alignment is not None:
        given = tuple(given[a] for a in alignment.axes)
    pair = (given, tuple(wanted))
    if alignment is None and grid.family == "nifti":  # in which order the axes lie is not known
        pair = tuple(tuple(sorted(s)) for s in pair)
    if spread(pair) <= SPREAD + ROUNDING:
        return ()
    return (
        (
            f"its voxels are {by_mm(given)}, those that the model was trained on {by_mm(wanted)}:"
            " nothing is resampled here, so structures look larger or smaller than those that it"
            " learned. Resample the file, or expect worse answers"
        ),
    )
