"""The space in which a model sees images: how a file's array goes there and the answer back,
exactly.

Today axes are put into another order and turned round; nothing is cropped or resampled. What cannot
be made equal is refused, and what may matter is said. Where nothing is to be done, the array itself
is handed through.
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
    "nifti": "NIfTI, whose arrays are (X, Y, Z)",
    "array": "TIFF, Zarr, NumPy arrays or pictures, which are (Z, Y, X)",
}
"""What is called by the two families of grids, for messages."""

ROUNDING = 1e-6
"""A tenth is not more than a tenth."""


class Step(Protocol):
    """A part of the way to model space that can be gone back exactly.

    Arrays are ``(C, *S)`` in memory, or read as they are sliced.
    """

    def size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The file's ``(*S)`` after this step."""
        ...

    def forward(self, array: LazyArray, scratch: Path | None) -> LazyArray:
        """The array after this step; ``scratch`` is a file for what can neither be held nor read as
        it is sliced.
        """
        ...

    def back(self, array: LazyArray, scratch: Path | None) -> LazyArray:
        """The inverse of :meth:`forward`, for any number of channels."""
        ...


@dataclass(frozen=True, slots=True)
class Reorient:
    """Axes in another order and turned round, as in :class:`pipeline.grid.Alignment`."""

    alignment: Alignment

    def size(self, size: Sequence[int]) -> tuple[int, ...]:
        return self.alignment.size(size)

    def forward(self, array: LazyArray, scratch: Path | None) -> LazyArray:
        return _moved(array, self.alignment, scratch)

    def back(self, array: LazyArray, scratch: Path | None) -> LazyArray:
        return _moved(array, self.alignment.inverse, scratch)


def _moved(array: LazyArray, way: Alignment, scratch: Path | None) -> LazyArray:
    """In memory a copy; read as it is sliced where rows remain rows; else mapped from the file
    ``scratch``, which is written slab by slab.
    """
    if isinstance(array, np.ndarray) or scratch is None:
        return np.ascontiguousarray(way.apply(array[:]))
    shape, dtype = (array.shape[0], *way.size(array.shape[1:])), np.dtype(array.dtype)
    if way.axes[0] != 0:
        return _mapped(array, way, shape, scratch)
    turned, high = 0 in way.flips, array.shape[1]

    def make(first: int, end: int) -> np.ndarray:
        return way.apply(array[:, high - end : high - first] if turned else array[:, first:end])

    return Rows(shape, dtype, make)


def _mapped(array: LazyArray, way: Alignment, shape: tuple[int, ...], scratch: Path) -> Rows:
    """The moved array from a file: rows of one become columns of the other."""
    dtype, place = np.dtype(array.dtype), way.axes.index(0) + 1
    if scratch.is_file():  # of this very array: who names the file says so
        return npy.rows(scratch)
    with files.whole(scratch, int(np.prod(shape)) * dtype.itemsize) as temp:
        out = npy.room(temp, shape, dtype)
        for first, end in slabs(array):
            low, high = (
                (shape[place] - end, shape[place] - first)
                if place - 1 in way.flips
                else (first, end)
            )
            out[(slice(None),) * place + (slice(low, high),)] = way.apply(array[:, first:end])
        out.flush()
        del out
    return npy.rows(scratch)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpace:
    """How the array ``(C, *S)`` of a file goes to the space in which networks see it, and answers
    back.

    Args:
        steps: in the order in which the file's array takes them; none where it is taken as it is.
        codes: axis codes of the file and of training, where an orientation brings one to the other.
        notes: what a user should be told.
    """

    steps: tuple[Step, ...] = ()
    codes: tuple[str, str] = ("", "")
    notes: tuple[str, ...] = ()

    @property
    def needs_scratch(self) -> bool:
        """Whether rows become columns, so that what is read as it is sliced goes by way of a file."""
        return any(
            isinstance(step, Reorient) and step.alignment.axes[0] != 0 for step in self.steps
        )

    def size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The file's ``(*S)`` in model space."""
        for step in self.steps:
            size = step.size(size)
        return tuple(size)

    def to_model(self, array: LazyArray, scratch: Path | None = None) -> LazyArray:
        """The file's array in model space: the very array where nothing changes.

        Args:
            array: ``(C, *S)``.
            scratch: where a lazy array whose rows become columns may lie, as ``NAME.N.npy``: a file
                of this array alone, used again.
        """
        for number, step in enumerate(self.steps):
            array = step.forward(array, _numbered(scratch, number))
        return array

    def to_file(self, array: LazyArray, scratch: Path | None = None) -> LazyArray:
        """The inverse of :meth:`to_model`, for any number of channels."""
        for number, step in reversed([*enumerate(self.steps)]):
            array = step.back(array, _numbered(scratch, number))
        return array


def _numbered(scratch: Path | None, number: int) -> Path | None:
    return (
        None if scratch is None else scratch.with_name(f"{scratch.stem}.{number}{scratch.suffix}")
    )


def model_space(
    case: Case, geometry: Geometry, dims: int, trained_on: Mapping[str, Any]
) -> ModelSpace:
    """How a case of this geometry goes to the axes of training; as it is where the model file says
    nothing of them.

    Raises FileError for a file of another family than those trained on, and for axes that no order
    and no flip makes those.
    """
    return space_of(case.image[0], grid_of(geometry, dims), trained_on)


def space_of(path: Path, here: Grid, trained_on: Mapping[str, Any]) -> ModelSpace:
    """As :func:`model_space`, of an array on the grid ``here``; ``path`` is what messages call it."""
    family, codes = trained_on.get("family"), trained_on.get("codes")
    if family is not None and here.family != family:
        raise FileError(
            path,
            f"is of another kind than the model was trained on: {FAMILIES[here.family]}; trained on"
            f" {FAMILIES.get(family, family)}",
            "Nothing says which axis is which. Convert it, axes included, to the kind of the"
            " training data, or train on files of its kind",
        )
    alignment = _alignment(path, here.codes, codes)
    notes = _spacing_note(here, alignment, trained_on)
    if alignment is None or alignment.identity:
        return ModelSpace(notes=notes)
    return ModelSpace(
        steps=(Reorient(alignment),), codes=(str(here.codes), str(codes)), notes=notes
    )


def _alignment(path: Path, codes: str | None, wanted: str | None) -> Alignment | None:
    """None where either side does not know its axes."""
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
    here: Grid, alignment: Alignment | None, trained_on: Mapping[str, Any]
) -> tuple[str, ...]:
    """A sentence where voxels are more than a tenth larger or smaller than those of training along
    an axis.
    """
    given, wanted = here.spacing, trained_on.get("spacing")
    if given is None or not wanted or len(wanted) != len(given):
        return ()
    if alignment is not None:
        given = tuple(given[a] for a in alignment.axes)
    pair = (given, tuple(wanted))
    if alignment is None and here.family == "nifti":  # in which order the axes lie is not known
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
