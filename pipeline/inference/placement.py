"""Whether a file's axes are those that a model was trained on, and how its array is brought to them and the answer back.

Nothing is resampled: axes are put into another order and turned round, which is exact. What cannot be made equal is refused, and
what may matter is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline import files
from pipeline.files import FileError, Pixels, Rows
from pipeline.grid import SPREAD, Alignment, Grid, by_mm, grid_of, reorientation, spread
from pipeline.records import Case, Geometry

Array = TypeVar("Array", np.ndarray, Pixels)

FAMILIES = {
    "nifti": "NIfTI, whose arrays are (X, Y, Z)",
    "array": "TIFF, Zarr, NumPy arrays or pictures, which are (Z, Y, X)",
}
"""What is called by the two families of grids, for messages."""

ROUNDING = 1e-6
"""A tenth is not more than a tenth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How the array ``(C, *S)`` of a file goes to the axes of training. ``notes`` are what a user should be told.

    ``alignment`` is None where the array is taken as it is.
    """

    alignment: Alignment | None = None
    codes: tuple[str, str] = ("", "")
    """Axis codes of the file and of training, where an alignment brings one to the other."""
    notes: tuple[str, ...] = ()

    @property
    def first_axis_stays(self) -> bool:
        """Whether rows along the first axis remain rows, so that an answer can be brought back slab by slab."""
        return self.alignment is None or self.alignment.axes[0] == 0

    def apply(self, array: Array) -> Array | np.ndarray:
        """On the axes of training: the very array where nothing changes, else a copy in memory."""
        return array if self.alignment is None else np.ascontiguousarray(self.alignment.apply(array[:]))

    def size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The file's ``(*S)`` on the axes of training."""
        return tuple(size) if self.alignment is None else tuple(size[a] for a in self.alignment.axes)

    def restore(self, array: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`apply`, for any number of channels."""
        return array if self.alignment is None else np.ascontiguousarray(self.alignment.invert(array))

    def restore_rows(self, rows: Rows) -> Rows:
        """As :meth:`restore`, read as it is sliced; the first axis must stay."""
        way = self.alignment
        if way is None:
            return rows
        turned, high = 0 in way.flips, rows.shape[1]
        size = [rows.shape[1 + a] for a in np.argsort(way.axes)]

        def make(first: int, end: int) -> np.ndarray:
            return way.invert(rows[:, high - end : high - first] if turned else rows[:, first:end])

        return Rows((rows.shape[0], *size), rows.dtype, make)


def placement(case: Case, geometry: Geometry, dims: int, trained_on: Mapping[str, Any]) -> Placement:
    """How a case of this geometry goes to the axes of training; as it is where the model file says nothing of them.

    Raises FileError for a file of another family than those trained on, and for axes that no order and no flip makes those.
    """
    _require_one_family(case)
    return placed(case.image[0], grid_of(geometry, dims), trained_on)


def placed(path: Path, here: Grid, trained_on: Mapping[str, Any]) -> Placement:
    """As :func:`placement`, of an array on the grid ``here``; ``path`` is what messages call it."""
    family, codes = trained_on.get("family"), trained_on.get("codes")
    if family is not None and here.family != family:
        raise FileError(
            path,
            f"is of another kind than the model was trained on: {FAMILIES[here.family]}; trained on {FAMILIES.get(family, family)}",
            "Nothing says which axis is which. Convert it, axes included, to the kind of the training data, or train on files of its kind",
        )
    alignment = _alignment(path, here.codes, codes)
    notes = _spacing_note(here, alignment, trained_on)
    if alignment is None or alignment.identity:
        return Placement(notes=notes)
    return Placement(alignment=alignment, codes=(str(here.codes), str(codes)), notes=notes)


def _require_one_family(case: Case) -> None:
    for path in case.image[1:]:
        if _is_nifti(path) != _is_nifti(case.image[0]):
            problem = f"is a channel of the same case as {case.image[0].name}, but their formats order axes differently"
            raise FileError(path, problem, "Save all channels of a case in one format")


def _is_nifti(path: Path) -> bool:
    return files.suffix(path) in (".nii", ".nii.gz")


def _alignment(path: Path, codes: str | None, wanted: str | None) -> Alignment | None:
    """None where either side does not know its axes."""
    if not codes or not wanted or "?" in codes + wanted:
        return None
    found = reorientation(codes, wanted)
    if found is None:
        problem = f"has axes {codes}, the model was trained on {wanted}: other planes of the body"
        raise FileError(path, problem, f"Give images whose axes are {wanted} in any order and direction, or train on such as this")
    return found


def _spacing_note(here: Grid, alignment: Alignment | None, trained_on: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence where voxels are more than a tenth larger or smaller than those of training along an axis."""
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
        f"its voxels are {by_mm(given)}, those that the model was trained on {by_mm(wanted)}: nothing is resampled here, so structures "
        "look larger or smaller than those that it learned. Resample the file, or expect worse answers",
    )
