"""Files of a case, opened and aligned to the grid of its label."""

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
        dims: number of space axes.
        binarise: as in :class:`pipeline.config.Data`.
        declared: number of classes of the model that made the answers; None where it is not known.
        change: of images, how the mask of what was to change is made from input and target.
    """

    dims: int
    binarise: float | None = None
    declared: int | None = None
    change: Change = field(default_factory=Change)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An answer and its label file; for metrics of images both are images.

    Args:
        id: id of the case.
        prediction: file of the answer.
        label: file of the label.
        rules: how it is scored.
        reading: how its files become arrays.
        soft: folder with the answer's probabilities.
        fov: file of its field of view.
        input: of images, the file that the answer was made from.
        mask: of images, the picture of the mask of change as the network predicted it.
        spacing: millimetres between voxels along each axis of the label; None: distances are in
            voxels.
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
    """Read the files of a case.

    Args:
        pair: the case.

    Returns:
        The case in memory, on the grid of its label.

    Raises:
        FileError: a file holds something else, or does not lie on the label's grid.
    """
    return _opened_images(pair) if pair.rules.images else _opened_labels(pair)


def foreground(labels_of_case: np.ndarray, ignore: int | None) -> frozenset[int]:
    """Foreground values that occur in a label map.

    Args:
        labels_of_case: class numbers of any shape.
        ignore: value that is not counted; None: all count.

    Returns:
        Values other than 0 and ``ignore``.

    Example:
        >>> sorted(foreground(np.array([0, 1, 2, 9]), 9))
        [1, 2]
    """
    return frozenset(int(v) for v in labels.occurring(labels_of_case) if v not in (0, ignore))


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelGrid:
    """The grid of a case's label, which all its other files are aligned to.

    Args:
        path: the label's file.
        grid: where its voxels lie.
        shape: voxels along each axis.
    """

    path: Path
    grid: Grid
    shape: tuple[int, ...]

    def align(self, path: Path, array: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Align an array of another file to this grid, by flips and axis order alone.

        Args:
            path: its file.
            array: ``(C, *S)``.
            geometry: where its voxels lie.

        Returns:
            The array ``(C, *S)`` on this grid.

        Raises:
            FileError: that is not possible: another shape, another position in the world, or a
                format whose axis order nothing relates to this one's.
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
                f" their grids equal ({_described(own, array.shape[1:])};"
                f" {_described(self.grid, self.shape)})",
                "Resample it to that grid, or mend the header that is wrong",
            )
        return found.apply(array)


def _described(grid: Grid, shape: Sequence[int]) -> str:
    size = " x ".join(map(str, shape))
    return f"{size}, {grid.codes or 'no codes'}" + (
        f", {by_mm(grid.spacing)}" if grid.spacing else ""
    )


def _opened_labels(pair: Pair) -> CaseArrays:
    array, geometry = _one_channel(pair.label, pair.reading.dims)
    label = _class_numbers(pair, pair.label, array, pair.rules.ignore)
    _require_declared(pair, label)
    grid = LabelGrid(
        path=pair.label, grid=grid_of(geometry, pair.reading.dims), shape=tuple(label.shape)
    )
    fov = _fov(pair, grid)
    answer = _counted_only(pair, _answer(pair, grid), label)
    return CaseArrays(
        answer=answer,
        target=label,
        probabilities=_probabilities(pair, grid),
        fov=fov,
        spacing=pair.spacing,
    )


def _class_numbers(pair: Pair, path: Path, array: np.ndarray, ignore: int | None) -> np.ndarray:
    """Class numbers of a file.

    With ``binarise``: 1 above that value, ``ignore`` where the value is that, and 0 elsewhere.
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


def _fov(pair: Pair, grid: LabelGrid) -> np.ndarray | None:
    if pair.fov is None:
        return None
    array, geometry = _one_channel(pair.fov, pair.reading.dims)
    return grid.align(pair.fov, _class_numbers(pair, pair.fov, array, None)[None], geometry)[0]


def _answer(pair: Pair, grid: LabelGrid) -> np.ndarray:
    """Class numbers of the answer; with ``binarise``, one that is no mask yet is binarised, too."""
    array, geometry = _one_channel(pair.prediction, pair.reading.dims)
    near = labels.rounded(array)
    known = set(labels.occurring(near))
    if pair.reading.binarise is not None and not (
        known <= {0, 1} or labels.white_of(known, None) is not None
    ):
        answer = _class_numbers(pair, pair.prediction, array, None)
    else:
        answer = labels.class_numbers(pair.prediction, near, pair.rules.ignore)
    return grid.align(pair.prediction, answer[None], geometry)[0]


def _counted_only(pair: Pair, answer: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The answer with background where the label is ignored.

    Raises FileError where the answer holds the ignored value, if that is no class number, in voxels
    that count.
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
    """Raise FileError for label values that the model behind the answers does not know."""
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


def _probabilities(pair: Pair, grid: LabelGrid) -> np.ndarray | None:
    """Foreground probabilities ``(*S)`` where a metric needs them and there are two classes."""
    if pair.soft is None or not pair.rules.need_probabilities:
        return None
    kept = softs.load_sound(pair.soft, pair.id)
    foreground = kept.foreground()
    if foreground is None:
        return None
    return grid.align(pair.soft / f"{pair.id}.npy", foreground, kept.geometry)[0]


def _opened_images(pair: Pair) -> CaseArrays:
    dims = pair.reading.dims
    target, geometry = files.read(pair.label, dims)
    _require_image(pair.label, target)
    grid = LabelGrid(path=pair.label, grid=grid_of(geometry, dims), shape=tuple(target.shape[1:]))
    answer = grid.align(pair.prediction, *files.read(pair.prediction, dims))
    if pair.input is None:
        return CaseArrays(answer=answer, target=target)
    source = grid.align(pair.input, *files.read(pair.input, dims))
    if not pair.rules.need_change:
        return CaseArrays(answer=answer, target=target, source=source)
    changed = changed_mask(source, target, pair.reading.change)
    return CaseArrays(
        answer=answer,
        target=target,
        source=source,
        changed=changed,
        predicted=_predicted(pair, grid),
    )


FEW = 3
"""Integer files whose largest value is at most this are class numbers, not intensities."""


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
    """The mask of what was to change, made from input and target.

    It is rounded to half precision before it is compared, as training caches its masks.

    Args:
        source: input ``(C, *S)``.
        target: target ``(C, *S)``.
        change: how the mask is made.

    Returns:
        Bool ``(*S)``.
    """
    return changes.difference_mask(source, target, change)[0].astype(np.float16) >= changes.LEVEL


def _predicted(pair: Pair, grid: LabelGrid) -> np.ndarray | None:
    """The probability ``(*S)`` in the picture of a predicted mask."""
    if pair.mask is None:
        return None
    array = grid.align(pair.mask, *files.read(pair.mask, pair.reading.dims))
    if (array != array[:1]).any():
        raise ValueError(f"{pair.mask} has {len(array)} different channels where a mask is needed")
    return intensities(array[0])
