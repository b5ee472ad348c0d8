"""Which model space an image needs, by its grid, the config, and what the model was trained on.

What cannot be made equal is refused, and what may matter is warned of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.data import resampling
from pipeline.data.model_space import SAME, Crop, ModelSpace, Resampling
from pipeline.files import FileError, LazyArray, slabs
from pipeline.files.limits import check_memory
from pipeline.grid import SPREAD, Alignment, Grid, by_mm, reorientation, spread

FAMILIES = {
    "nifti": "NIfTI, MetaImage, NRRD or DICOM, whose arrays are (X, Y, Z)",
    "array": "TIFF, Zarr, NumPy arrays or pictures, which are (Z, Y, X)",
}
"""What messages call the two families of grids."""

ROUNDING = 1e-6
"""Tolerance, so that a tenth is not more than a tenth."""

Box = Sequence[Sequence[int]]
"""First voxel and the one after the last along each axis of a file."""


def space_of(
    name: Path,
    grid: Grid,
    array: LazyArray,
    config: Config,
    trained_on: Mapping[str, Any],
) -> ModelSpace:
    """The model space of an array.

    Args:
        name: what messages call the array.
        grid: its grid.
        array: ``(C, *S)``; read only where the config crops.
        config: of the model.
        trained_on: ``Checkpoint.trained_on``; empty where the model file says nothing of axes, and
            in training.

    Returns:
        The way to model space and back; identity where nothing is asked for and the axes agree or
        are not known.

    Raises:
        FileError: for a file of another family than those trained on, for axes that no order and no
            flip makes those of the model, and for a spacing that is needed and not known.
    """
    box = nonzero_box(array) if config.data.crop is not None else None
    return space_for(name, grid, array.shape[1:], config, trained_on, box)


def space_for(
    name: Path,
    grid: Grid,
    size: Sequence[int],
    config: Config,
    trained_on: Mapping[str, Any],
    box: Box | None = None,
) -> ModelSpace:
    """As :func:`space_of`, where the box is known.

    Args:
        name: what messages call the array.
        grid: its grid.
        size: ``(*S)``.
        config: of the model.
        trained_on: ``Checkpoint.trained_on``.
        box: of :func:`nonzero_box` where the config crops.

    Returns:
        The way to model space and back.

    Raises:
        FileError: as :func:`space_of`.
    """
    _require_family(name, grid, trained_on)
    data = config.data
    codes = data.orientation or trained_on.get("codes")
    oriented = _alignment(name, grid.codes, codes, required=data.orientation is not None)
    notes = () if data.spacing is not None else _spacing_note(grid, oriented, trained_on)
    alignment = _permuted(oriented, data.axes, len(size))
    crop = None
    if box is not None and any(tuple(b) != (0, n) for b, n in zip(box, size, strict=True)):
        starts, stops = zip(*box, strict=True)
        crop = Crop(start=tuple(starts), stop=tuple(stops), size=tuple(size))
        crop = crop if alignment == SAME else crop.moved(alignment)
    own = _along(grid.spacing, alignment)
    change, spacing = None, own
    if data.spacing is not None:
        inner = crop.inner if crop else size if alignment == SAME else alignment.size(size)
        change, spacing = _resampling(name, own, tuple(inner), config)
    moved = oriented is not None and not oriented.identity
    return ModelSpace(
        alignment=SAME if alignment.identity else alignment,
        crop=crop,
        resampling=change,
        spacing=spacing,
        codes=(str(grid.codes), str(codes)) if moved else ("", ""),
        notes=notes,
    )


def require_memory(name: Path, space: ModelSpace, channels: int) -> None:
    """Check, before any work, that an image can be resampled in memory.

    A header with a wrong unit makes a thousand voxels of one.

    Args:
        name: what messages call the array.
        space: its model space.
        channels: float32 numbers for each voxel there.

    Raises:
        FileError: where it does not fit.
    """
    if space.resampling is not None:
        shape = (channels, *space.resampling.new)
        check_memory(name, shape, np.float32, "at data.spacing an array")


def settings_of(config: Config) -> dict[str, Any]:
    """All settings that the model space of an image depends on, JSON-able.

    Args:
        config: of the model.

    Returns:
        Values by key of ``data``; empty where nothing is asked for.
    """
    data = config.data
    if not data.has_space:
        return {}
    found: dict[str, Any] = {
        "orientation": data.orientation,
        "axes": data.axes and list(data.axes),
        "crop": data.crop,
    }
    if data.spacing is not None:
        found |= {"spacing": list(data.spacing), "resample": asdict(data.resample)}
        found["task"] = config.task
    return found


def nonzero_box(array: LazyArray) -> tuple[tuple[int, int], ...]:
    """The box outside of which all channels are 0.

    Args:
        array: ``(C, *S)``, in memory or read as it is sliced.

    Returns:
        First voxel and the one after the last along each axis; the whole of an array of zeros.

    Example:
        >>> nonzero_box(np.array([[[0, 0, 0], [0, 7, 0]]]))
        ((1, 2), (1, 2))
    """
    size = array.shape[1:]
    seen = [np.zeros(n, bool) for n in size]
    for first, end in slabs(array):
        inside = (np.asarray(array[:, first:end]) != 0).any(0)
        seen[0][first:end] = inside.any(tuple(range(1, inside.ndim)))
        for axis in range(1, inside.ndim):
            seen[axis] |= inside.any(tuple(a for a in range(inside.ndim) if a != axis))
    if not seen[0].any():
        return tuple((0, n) for n in size)
    return tuple((int(np.flatnonzero(s)[0]), int(np.flatnonzero(s)[-1]) + 1) for s in seen)


def _require_family(name: Path, grid: Grid, trained_on: Mapping[str, Any]) -> None:
    family = trained_on.get("family")
    if family is not None and grid.family != family:
        raise FileError(
            name,
            f"is of another kind than the model was trained on: {FAMILIES[grid.family]}; trained on"
            f" {FAMILIES.get(family, family)}",
            "Nothing says which axis is which. Convert it, axes included, to the kind of the"
            " training data, or train on files of its kind",
        )


def _alignment(
    name: Path, codes: str | None, wanted: str | None, required: bool
) -> Alignment | None:
    """How the axes of a file become the wanted ones; None where either is not known."""
    if required and (not codes or "?" in codes):
        raise FileError(
            name,
            "does not say how its axes lie in the body (no sform and no qform, or a format that"
            f" cannot), but data.orientation is {wanted}",
            "Give it an affine (NIfTI), or leave data.orientation out and see that all files lie"
            " alike",
        )
    if not codes or not wanted or "?" in codes + wanted:
        return None
    found = reorientation(codes, wanted)
    if found is None:
        problem = f"has axes {codes}, the model was trained on {wanted}: other planes of the body"
        raise FileError(
            name,
            problem,
            f"Give images whose axes are {wanted} in any order and direction, or train on such as"
            " this",
        )
    return found


def _permuted(oriented: Alignment | None, axes: Sequence[int] | None, dims: int) -> Alignment:
    """The alignment followed by a change of the order of axes."""
    if axes is None:
        return SAME if oriented is None else oriented
    first = oriented or Alignment(axes=tuple(range(dims)), flips=())
    return Alignment(
        axes=tuple(first.axes[a] for a in axes),
        flips=tuple(n for n, a in enumerate(axes) if a in first.flips),
    )


def _along(spacing: Sequence[float] | None, alignment: Alignment) -> tuple[float, ...] | None:
    """Spacing in the order of model space."""
    if spacing is None or alignment == SAME:
        return None if spacing is None else tuple(spacing)
    return tuple(spacing[a] for a in alignment.axes)


def _resampling(
    name: Path, own: tuple[float, ...] | None, size: tuple[int, ...], config: Config
) -> tuple[Resampling | None, tuple[float, ...]]:
    """The change of spacing of a cropped image; None where its voxels are the wanted ones."""
    data = config.data
    assert data.spacing is not None
    if own is None:
        raise FileError(
            name,
            "does not say how far its voxels lie apart, but data.spacing is"
            f" {list(data.spacing)} mm",
            "Give it its spacing (NIfTI, OME-TIFF, ImageJ TIFF and OME-Zarr hold one; in Python"
            " spacing= or affine=), or leave data.spacing out and see that all voxels are alike",
        )
    wanted = tuple(b if a is None else float(a) for a, b in zip(data.spacing, own, strict=True))
    new = resampling.new_size(size, own, wanted)
    if new == size:
        return None, wanted
    rules, images = data.resample, config.task == "image"
    return Resampling(
        old=size,
        new=new,
        coarse=resampling.coarse_axis(own, wanted, rules.coarse),
        coarse_back=resampling.coarse_axis(wanted, own, rules.coarse),
        image=rules.images,
        labels=rules.labels,
        back=rules.images if images else rules.probabilities,
        rule=rules.rule,
    ), wanted


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
            " learned. Train with data.spacing, resample the file, or expect worse answers"
        ),
    )
