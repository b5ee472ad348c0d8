"""Images as users give them: paths, and arrays with an affine, a spacing or an order of axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data import reading
from pipeline.grid import Grid, affine_grid, grid_of
from pipeline.records import Case, UserError

ARRAY = Path("array")
"""Name in messages of an array that was not read from a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenImage:
    """An image as it was given, with its array ``(C, *S)`` in the axis order of its family."""

    name: Path
    array: np.ndarray
    grid: Grid
    order: tuple[int, ...]
    """Axes of the given array in the order of ``array``."""
    tensor: torch.Tensor | None = None

    def restored(self, result: np.ndarray) -> np.ndarray:
        """Transpose a result to the axis order of the given array.

        Args:
            result: ``(*S)`` or ``(K, *S)`` in the axis order of ``array``.

        Returns:
            A view of it.
        """
        lead = result.ndim - len(self.order)
        return result.transpose(*range(lead), *(lead + int(a) for a in np.argsort(self.order)))

    def as_given(self, result: np.ndarray) -> Any:
        """A result of the kind that was given.

        Args:
            result: ``(*S)`` or ``(K, *S)``.

        Returns:
            A contiguous array where an array or a path was given, else a tensor on the device of
            the given one.
        """
        whole = np.ascontiguousarray(result)
        return whole if self.tensor is None else torch.from_numpy(whole).to(self.tensor.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How an array lies in the world, as its user says it."""

    affine: Any = None
    """4 x 4 from voxels to millimetres (RAS+), of an array ``(X, Y, Z)``."""
    spacing: Sequence[float] | None = None
    """Millimetres between voxels along each axis of the array."""
    axes: str | None = None
    """Order of the array's space axes, such as ``xyz``; None: ``zyx``."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said."""
        return self.affine is None and self.spacing is None and self.axes is None


def open_given(
    volume: Any,
    placement: Placement,
    dims: int,
    trained_on: Mapping[str, Any],
    warn: Callable[[str], object],
) -> GivenImage:
    """Read a file, or take an array or tensor.

    Args:
        volume: path of an image file, or an array ``(*S)`` or ``(C, *S)`` of numbers.
        placement: how an array lies; empty for a file, which says it itself.
        dims: number of space axes of the model, 2 or 3.
        trained_on: what the model file says of its training data.
        warn: takes what a reader of the file should know.

    Returns:
        The image with its array ``(C, *S)``.

    Raises:
        UserError: for what is no image of this model.
        FileError: for a file that cannot be read.
    """
    same = tuple(range(dims))
    if isinstance(volume, str | Path):
        if not placement.is_empty:
            raise UserError(
                f"{volume}: a file says itself how its axes lie. Leave affine, spacing and axes"
                " out."
            )
        path = Path(volume)
        array, geometry = reading.load_image(Case(id=path.name, image=(path,)), dims)
        for note in geometry.notes:
            warn(f"{path.name}: {note}.")
        return GivenImage(name=path, array=array, grid=grid_of(geometry, dims), order=same)
    tensor = volume if isinstance(volume, torch.Tensor) else None
    family = trained_on.get("family")
    if placement.affine is None and tensor is not None and family == "nifti":
        # MONAI's MetaTensor, RAS+ as nibabel's
        placement = replace(placement, affine=getattr(volume, "affine", None))
    array = np.asarray(_dense(tensor) if tensor is not None else volume)
    array = array[None] if array.ndim == dims else array
    if array.ndim != dims + 1 or 0 in array.shape or array.dtype.kind not in "buif":
        raise UserError(
            f"the array has shape {tuple(np.shape(volume))} and type {array.dtype}; this model"
            f" takes numbers of shape {'(Z, Y, X)' if dims == 3 else '(Y, X)'} or, channels first,"
            f" (C, {'Z, Y, X' if dims == 3 else 'Y, X'})."
        )
    grid, order = _grid_of(placement, dims, trained_on)
    array = array.transpose(0, *(a + 1 for a in order)) if order != same else array
    array = array.astype(np.uint8) if array.dtype == bool else reading.single(ARRAY, array)
    return GivenImage(name=ARRAY, array=array, grid=grid, order=order, tensor=tensor)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU, of a type that NumPy has."""
    plain = tensor.detach().cpu()
    return plain.float() if plain.dtype == torch.bfloat16 else plain


def _grid_of(
    placement: Placement, dims: int, trained_on: Mapping[str, Any]
) -> tuple[Grid, tuple[int, ...]]:
    """The grid of an array, and its axes in the order of that grid."""
    affine, spacing, axes = placement.affine, placement.spacing, placement.axes
    same = tuple(range(dims))
    if affine is not None:
        if spacing is not None or axes is not None:
            raise UserError(
                "an affine says how far voxels lie apart and which axis is which: leave spacing and"
                " axes out."
            )
        return affine_grid(affine, dims), same
    if trained_on.get("family") == "nifti":
        codes = trained_on.get("codes")
        raise UserError(
            f"the model was trained on NIfTI{f' with axes {codes}' if codes else ''}, and an array"
            " does not say how its axes lie. Give affine=, the 4 x 4 matrix of the image"
            " (nibabel: image.affine), or the path of its file."
        )
    natural = "zyx"[-dims:]
    given = "".join(axes or natural).lower()
    if sorted(given) != sorted(natural):
        raise UserError(
            f"axes is {axes!r}, must be the letters {natural!r} in the order of the array, without"
            " channels."
        )
    order = tuple(given.index(letter) for letter in natural)
    if spacing is not None:
        spacing = [float(spacing)] * dims if isinstance(spacing, int | float) else spacing
        if len(spacing) != dims or not all(np.isfinite(s) and s > 0 for s in spacing):
            raise UserError(
                f"spacing is {list(spacing)}; give {dims} positive numbers, millimetres along each"
                " axis of the array."
            )
        spacing = tuple(float(spacing[a]) for a in order)
    return Grid(family="array", spacing=spacing), order
