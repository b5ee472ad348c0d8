"""Files of a case opened: answer, label and what else is scored with them, on the grid of the
label, in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.config import Change
from pipeline.data import change as changes
from pipeline.data import labels
from pipeline.files import FileError
from pipeline.grid import Grid, alignment, by_mm, grid_of
from pipeline.inference import soft as softs
from pipeline.metrics import names_of
from pipeline.metrics.image import intensities
from pipeline.records import Geometry
from pipeline.scoring.core import CaseArrays, Rules, blanked


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the files of a set become arrays.

    Args:
        dims: space axes.
        binarise: as in :class:`pipeline.config.Data`.
        declared: number of classes of the model that gave the answers, None where it is not known.
        change: of images, how the mask of what was to change is made from input and target.
    """

    dims: int
    binarise: float | None = None
    declared: int | None = None
    change: Change = field(default_factory=Change)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An answer and its label file; of metrics of images both are pictures.

    Args:
        soft: folder with the answer's probabilities.
        fov: file of its field of view.
        input: of images, the file that the answer was made from.
        mask: of images, the picture of the mask of change as the network predicted it.
        spacing: millimetres between voxels along each axis of the label; None: distances are
            counted in voxels.
    """

    id: str
    prediction: Path
    label: Path
    rules: Rules
    reading: Reading
    soft: Path | None = None
    fov: Path | None = None
    input: Path | None = None
    mask: Path | None = None
    spacing: tuple[float, ...] | None = None


def opened(pair: Pair) -> CaseArrays:
    """The case in memory.

    Raises FileError for files that hold something else, or do not lie on one grid.
    """
    return _opened_images(pair) if pair.rules.images else _opened_labels(pair)


def foreground(labels_of_case: np.ndarray, ignore: int | None) -> frozenset[int]:
    """Foreground values that occur."""
    return frozenset(int(v) for v in labels.occurring(labels_of_case) if v not in (0, ignore))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the label of a case lies: everything else of the case is brought there, or refused."""

    path: Path
    grid: Grid
    shape: tuple[int, ...]

    def bring(self, path: Path, array: np.ndarray, geometry: Geometry) -> np.ndarray:
        """``(C, *S)`` of another file of the case on this grid, by flips and axis order alone.

        Raises FileError where that is not possible: another shape, another place in the world, or a
        format whose order of axes nothing relates to this one's.
        """
        own = grid_of(geometry, len(self.shape))
        if own.family != self.grid.family:
            raise FileError(
                path,
                f"and {self.path} are of formats that order their axes differently (NIfTI: X, Y, Z;"
                " TIFF, Zarr, pictures and npy: Z, Y, X), and nothing says which axis is which",
                "Save both in one format",
            )
        found = alignment(own, array.shape[1:], self.grid, self.shape)
        unplaced = own.affine is None or self.grid.affine is None
        if found is None and (unplaced or sorted(array.shape[1:]) != sorted(self.shape)):
            raise FileError(
                path,
                f"has shape {array.shape[1:]}, {self.path} {self.shape}",
                "They must be of the same case and grid",
            )
        if found is None:
            raise FileError(
                path,
                f"lies elsewhere in the world than {self.path}: no flip and no order of axes makes"
                f" their grids equal ({_place(own, array.shape[1:])};"
                f" {_place(self.grid, self.shape)})",
                "Resample it to that grid, or mend the header that is wrong",
            )
        return found.apply(array)


def _place(grid: Grid, shape: Sequence[int]) -> str:
    size = " x ".join(map(str, shape))
    return f"{size}, {grid.codes or 'no codes'}" + (
        f", {by_mm(grid.spacing)}" if grid.spacing else ""
    )


def _opened_labels(pair: Pair) -> CaseArrays:
    array, geometry = _one_channel(pair.label, pair.reading.dims)
    label = _class_numbers(pair, pair.label, array, pair.rules.ignore)
    _require_declared(pair, label)
    place = Place(
        path=pair.label, grid=grid_of(geometry, pair.reading.dims), shape=tuple(label.shape)
    )
    fov = _fov(pair, place)
    answer = _counted_only(pair, _answer(pair, place), label)
    return CaseArrays(
        answer=answer,
        target=label,
        probabilities=_probabilities(pair, place),
        fov=fov,
        spacing=pair.spacing,
    )


def _class_numbers(pair: Pair, path: Path, array: np.ndarray, ignore: int | None) -> np.ndarray:
    """Class numbers of a file; with a ``binarise`` 1 where a value lies above it, ``ignore`` where
    it is that, and 0 elsewhere.
    """
    cut = pair.reading.binarise
    if cut is None:
        return labels.class_numbers(path, array, ignore)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise FileError(
            path,
            f"holds {int(np.isnan(array).sum())} values that are NaN",
            "Replace them by numbers",
        )
    mask = (array > cut).astype(np.int32)
    return mask if ignore is None else np.where(array == ignore, ignore, mask)


def _fov(pair: Pair, place: Place) -> np.ndarray | None:
    if pair.fov is None:
        return None
    array, geometry = _one_channel(pair.fov, pair.reading.dims)
    return place.bring(pair.fov, _class_numbers(pair, pair.fov, array, None)[None], geometry)[0]


def _answer(pair: Pair, place: Place) -> np.ndarray:
    """The answer of a case; with a ``binarise`` one that is no mask yet is cut there, too."""
    array, geometry = _one_channel(pair.prediction, pair.reading.dims)
    near = labels.rounded(array)
    known = set(labels.occurring(near))
    if pair.reading.binarise is not None and not (
        known <= {0, 1} or labels.white_of(known, None) is not None
    ):
        answer = _class_numbers(pair, pair.prediction, array, None)
    else:
        answer = labels.class_numbers(pair.prediction, near, pair.rules.ignore)
    return place.bring(pair.prediction, answer[None], geometry)[0]


def _counted_only(pair: Pair, answer: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The answer with background where the label is ignored.

    Raises FileError where the ignored value itself, if it is no class number, stands where the
    label counts.
    """
    ignore = pair.rules.ignore
    seen = blanked(answer, label, ignore)
    below = 0 if seen is answer else int(np.count_nonzero(seen < 0))
    if below:
        raise FileError(
            pair.prediction,
            f"holds the ignored value {ignore} in {below} voxels that {pair.label} counts",
            "Give them a class number, 0 for background",
        )
    return seen


def _one_channel(path: Path, dims: int) -> tuple[np.ndarray, Geometry]:
    """Values ``(*S)`` of a label file, and its geometry."""
    array, geometry = files.read(path, dims, labels=True)
    if len(array) > 1 and (array != array[:1]).any():
        raise FileError(
            path,
            f"has {len(array)} different channels where labels are needed",
            "Save labels with one channel of class numbers",
        )
    return array[0], geometry


def _require_declared(pair: Pair, label: np.ndarray) -> None:
    """Raise FileError for label values that the model which gave the answers does not know."""
    number = pair.reading.declared
    if number is None or pair.reading.binarise is not None:
        return
    odd = {
        v: n
        for v, n in labels.occurring(label).items()
        if v != pair.rules.ignore and not 0 <= v < number
    }
    if odd:
        shown = ", ".join(f"{v} ({n} voxels)" for v, n in list(odd.items())[:6])
        raise FileError(
            pair.label,
            f"holds labels outside 0 to {number - 1}, which the answers' model knows: {shown}",
            "Correct the labels, name the value that is not labelled with --ignore-label, or use"
            " --binarise X",
        )


def _probabilities(pair: Pair, place: Place) -> np.ndarray | None:
    """Foreground probabilities ``(*S)`` where a metric asks for them and they are those of two
    classes.
    """
    if pair.soft is None or not pair.rules.need_probabilities:
        return None
    kept = softs.load_sound(pair.soft, pair.id)
    soft = place.bring(pair.soft / f"{pair.id}.npy", np.asarray(kept.main), kept.geometry)
    return soft[0] if len(soft) == 1 else None


def _opened_images(pair: Pair) -> CaseArrays:
    dims = pair.reading.dims
    target, geometry = files.read(pair.label, dims)
    _require_image(pair.label, target)
    place = Place(path=pair.label, grid=grid_of(geometry, dims), shape=tuple(target.shape[1:]))
    answer = place.bring(pair.prediction, *files.read(pair.prediction, dims))
    if pair.input is None:
        return CaseArrays(answer=answer, target=target)
    source = place.bring(pair.input, *files.read(pair.input, dims))
    if not pair.rules.need_change:
        return CaseArrays(answer=answer, target=target, source=source)
    changed = changed_mask(source, target, pair.reading.change)
    return CaseArrays(
        answer=answer,
        target=target,
        source=source,
        changed=changed,
        predicted=_predicted(pair, place),
    )


FEW = 3
"""Largest value of an integer file that is taken for class numbers and not for intensities."""


def _require_image(path: Path, array: np.ndarray) -> None:
    """Raise FileError for a file of class numbers: metrics of images say nothing about labels."""
    if array.dtype.kind in "iu" and 1 <= int(array.max()) <= FEW:
        raise FileError(
            path,
            f"holds whole numbers from {int(array.min())} to {int(array.max())}: labels, of which"
            f" {', '.join(names_of('image'))} say nothing",
            "Use metrics of labels, e.g. --metrics dice; of images give files on their full scale",
        )


def changed_mask(source: np.ndarray, target: np.ndarray, change: Change) -> np.ndarray:
    """What was to change, bool ``(*S)``; in half precision before it is compared, as training keeps
    its masks.
    """
    return changes.difference_mask(source, target, change)[0].astype(np.float16) >= changes.LEVEL


def _predicted(pair: Pair, place: Place) -> np.ndarray | None:
    """The probability ``(*S)`` in the picture of a predicted mask."""
    if pair.mask is None:
        return None
    array = place.bring(pair.mask, *files.read(pair.mask, pair.reading.dims))
    if (array != array[:1]).any():
        raise ValueError(f"{pair.mask} has {len(array)} different channels where a mask is needed")
    return intensities(array[0])
