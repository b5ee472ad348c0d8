"""Scores of a folder of answers, several cases at a time, with no more of them in memory than it holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, processes
from pipeline.config import Change
from pipeline.data import change as changes
from pipeline.data import labels
from pipeline.files import FileError
from pipeline.grid import Grid, alignment, by_mm, grid_of
from pipeline.inference import soft as softs
from pipeline.metrics import BETTER, CHANGED, IMAGES, NUMBERLESS, SOFT, evaluate, evaluate_frames
from pipeline.metrics.context import MetricContext, several
from pipeline.metrics.frames import POOLED, Counts, Truth, count, pool
from pipeline.metrics.image import intensities
from pipeline.metrics.retouch import Retouched, empty_masks
from pipeline.records import Geometry, Part, UserError

Scores = dict[str, Any]
"""Numbers by name; a metric may add a table of numbers, such as ``counts``."""

BYTES = 30
"""Memory that scoring takes for each voxel (measured for ``competition``, the largest: 12, and 5 for the two files)."""

IMAGE_BYTES, PIXEL_BYTES = 48, 115
"""Memory for metrics of images: for each voxel of each channel, and again for each voxel of space, since similarity is found a channel at
a time (measured for ``psnr ssim retouch`` together: 253 for a pixel of three channels of 16 bits, 155 for a grey one)."""

BASE = 300 << 20
"""Memory of a worker before its first case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How answers and labels are compared. ``binarise`` and ``padded`` as in :class:`pipeline.config.Data`.

    Metrics are all of labels or all of images; of images, files are read as pictures, and of the rest only ``change`` has a meaning:
    how the mask of what was to change is made from input and target, for the metrics in ``CHANGED``. ``declared`` is the number of
    classes of the model that gave the answers, where it is known; ``classes`` are the foreground classes of the whole set, once they
    are; ``millimetres``: every label file says how far its voxels lie apart.
    """

    metrics: Sequence[Part]
    dims: int
    ignore: int | None = None
    binarise: float | None = None
    padded: tuple[int, ...] | None = None
    change: Change = field(default_factory=Change)
    declared: int | None = None
    classes: tuple[int, ...] | None = None
    millimetres: bool = False

    @property
    def images(self) -> bool:
        """Whether the metrics are of images."""
        return any(m.name in IMAGES for m in self.metrics)

    @property
    def changed(self) -> bool:
        """Whether a metric reads the mask of what was to change."""
        return any(m.name in CHANGED for m in self.metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An answer and its label file; ``soft`` is the folder with its probabilities, ``fov`` the file of its field of view.

    Images: ``input`` is the file that the answer was made from, for the row "do nothing" and the mask of change; ``mask`` the picture
    of that mask as the network predicted it.
    """

    id: str
    prediction: Path
    label: Path
    rules: Rules
    soft: Path | None = None
    fov: Path | None = None
    input: Path | None = None
    mask: Path | None = None


def folder(pairs: Sequence[Pair], workers: int | None = None, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Score answers against labels: ``{"cases": {id: scores}, "mean": scores, "failed": {id: reason}}``, cases in the given order.

    Binary cases add ``"pooled"``, the metrics of all their voxels together, as far as they can be pooled. Images with an ``input`` add
    ``"do_nothing"``, the means of the inputs themselves, and ``"difference"``, what the answers gain over them in every value that has a
    better direction; with a metric of ``CHANGED`` also ``"empty_masks"``, the number of cases in which nothing was to change.
    ``workers``: processes; None: one a core, fewer where memory is short. What ``progress(done, total)`` raises stops the work.
    """
    rows: dict[str, Row | str] = {}
    for pair, row in _rows(pairs, workers):
        rows[pair.id] = row
        if progress:
            progress(len(rows), len(pairs))
    classes = classes_of(rows.values())
    require_comparable(rows.values(), pairs[0].rules.metrics if pairs else ())
    if several(classes):
        rows |= {pair.id: row for pair, row in _rows(_of_one_class(pairs, rows, classes), workers)}
    good = {p.id: row for p in pairs if not isinstance(row := rows[p.id], str)}
    failed = {p.id: row for p in pairs if isinstance(row := rows[p.id], str)}
    cases = same_columns({i: row.scores for i, row in good.items()}) if several(classes) else {i: row.scores for i, row in good.items()}
    found = {"cases": cases, "mean": mean(cases.values()), "failed": failed}
    found |= {"classes": list(classes)} if several(classes) else {}
    counts = [row.counts for row in good.values() if row.counts is not None]
    pooled = pool(counts, (m.name for p in pairs[:1] for m in p.rules.metrics)) if len(counts) == len(good) else {}
    idle = mean(row.nothing for row in good.values() if row.nothing is not None)
    empty = empty_masks(found["cases"].values())
    found |= {"pooled": pooled} if pooled else {}
    found |= {} if empty is None else {"empty_masks": empty[0]}
    gain = {k: found["mean"][k] - v for k, v in idle.items() if k in BETTER}
    return found | ({"do_nothing": idle, "difference": gain} if idle else {})


@dataclass(frozen=True, slots=True)
class Row:
    """Scores of a case, its voxels' counts where there are two classes, and of images the scores of the input as it is.

    ``answers`` and ``labels`` are the foreground values that occur in the answer and in the label.
    """

    scores: Scores
    counts: Mapping[str, Counts] | None = None
    nothing: Scores | None = None
    answers: frozenset[int] = frozenset()
    labels: frozenset[int] = frozenset()


def classes_of(rows: Iterable[Row | str]) -> tuple[int, ...]:
    """Foreground classes of a set: every value that an answer or a label of it holds."""
    return tuple(sorted(set().union(*(row.answers | row.labels for row in rows if not isinstance(row, str)))))


SMALL = 8
"""Classes below this may well differ between answers and labels of a small set."""


def require_comparable(rows: Iterable[Row | str], metrics: Sequence[Part]) -> None:
    """Raise UserError where answers and labels of a set have no foreground value in common, so that nothing can ever agree.

    Where no metric compares equal numbers, numbers are names, and may differ: only two greys are then taken for a mistake.
    """
    good = [row for row in rows if not isinstance(row, str)]
    answers, truths = (set().union(*(getattr(row, side) for row in good)) for side in ("answers", "labels"))
    if all(m.name in NUMBERLESS for m in metrics) and max(len(answers), len(truths)) > 1:
        return
    if answers and truths and not answers & truths and max(answers | truths) >= SMALL:
        raise UserError(
            f"the labels hold {_listed(truths)} where the answers hold {_listed(answers)}: no value is foreground in both, so nothing can "
            "agree. Bring both to the same class numbers, or say with --binarise X from which value on a label is foreground."
        )


def _listed(values: Iterable[int]) -> str:
    known = sorted(values)
    return ", ".join(map(str, known[:6])) + (", ..." if len(known) > 6 else "")


def _of_one_class(pairs: Sequence[Pair], rows: Mapping[str, Row | str], classes: tuple[int, ...]) -> list[Pair]:
    """Cases that were scored as masks although the set has several classes, with the classes of the set."""
    masks = [p for p in pairs if not isinstance(row := rows[p.id], str) and max(row.answers | row.labels, default=0) <= 1]
    return [dataclasses.replace(p, rules=dataclasses.replace(p.rules, classes=classes)) for p in masks]


def same_columns(cases: Mapping[str, Scores]) -> dict[str, Scores]:
    """The scores of a set with the same keys in every case: a class that neither of a case's maps holds has NaN there."""
    keys = dict.fromkeys(key for scores in cases.values() for key in scores)
    return {i: {key: scores.get(key, math.nan) for key in keys} for i, scores in cases.items()}


def _rows(pairs: Sequence[Pair], workers: int | None) -> Iterable[tuple[Pair, Row | str]]:
    number = min(len(pairs), processes.count(BASE + max((_bytes(p) for p in pairs), default=0), workers))
    if number <= 1:
        yield from ((pair, score(pair)) for pair in pairs)
        return
    with processes.pool(number) as pool:
        futures = {pool.submit(score, pair): pair for pair in pairs}
        try:
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except BrokenProcessPool:
                    yield futures[future], "its process died, probably for want of memory; run with --workers 1"
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _bytes(pair: Pair) -> int:
    """Memory that scoring this case takes."""
    shape = files.probe(pair.label, pair.rules.dims).shape
    if not pair.rules.images:
        return BYTES * math.prod(shape)
    return IMAGE_BYTES * math.prod(shape) + PIXEL_BYTES * math.prod(shape[1:])


def score(pair: Pair) -> Row | str:
    """Scores of one case, or why there are none."""
    rules = pair.rules
    try:
        if rules.images:
            return _image_row(pair)
        truth, place = _truth(pair)
        answer = _counted_only(pair, _answer(pair, place), truth)
        soft = _probability(pair, place)
        return Row(
            evaluate_frames(rules.metrics, answer, truth, soft),
            counted(rules.metrics, answer, truth, soft),
            answers=_foreground(answer, None),
            labels=_foreground(truth.label, rules.ignore),
        )
    except FileError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the label of a case lies: everything else of the case is brought there, or refused."""

    path: Path
    grid: Grid
    shape: tuple[int, ...]

    def bring(self, path: Path, array: np.ndarray, geometry: Geometry) -> np.ndarray:
        """``(C, *S)`` of another file of the case on this grid, by flips and axis order alone.

        Raises FileError where that is not possible: another shape, another place in the world, or a format whose order of axes
        nothing relates to this one's.
        """
        own = grid_of(geometry, len(self.shape))
        if own.family != self.grid.family:
            raise FileError(
                path,
                f"and {self.path} are of formats that order their axes differently (NIfTI: X, Y, Z; TIFF, Zarr, pictures and npy: "
                "Z, Y, X), and nothing says which axis is which",
                "Save both in one format",
            )
        found = alignment(own, array.shape[1:], self.grid, self.shape)
        unplaced = own.affine is None or self.grid.affine is None
        if found is None and (unplaced or sorted(array.shape[1:]) != sorted(self.shape)):
            raise FileError(path, f"has shape {array.shape[1:]}, {self.path} {self.shape}", "They must be of the same case and grid")
        if found is None:
            raise FileError(
                path,
                f"lies elsewhere in the world than {self.path}: no flip and no order of axes makes their grids equal "
                f"({_place(own, array.shape[1:])}; {_place(self.grid, self.shape)})",
                "Resample it to that grid, or mend the header that is wrong",
            )
        return found.apply(array)


def _place(grid: Grid, shape: Sequence[int]) -> str:
    size = " x ".join(map(str, shape))
    return f"{size}, {grid.codes or 'no codes'}" + (f", {by_mm(grid.spacing)}" if grid.spacing else "")


def _truth(pair: Pair) -> tuple[Truth, Place]:
    """The label of a case with its field of view, and where it lies."""
    rules = pair.rules
    array, geometry = _one_channel(pair.label, rules.dims)
    label = labels.class_numbers(pair.label, array, rules.ignore) if rules.binarise is None else _cut(pair.label, array, rules)
    _require_declared(pair.label, label, rules)
    place = Place(path=pair.label, grid=grid_of(geometry, rules.dims), shape=tuple(label.shape))
    spacing = place.grid.spacing if rules.millimetres else None
    context = MetricContext(classes=rules.classes, spacing=spacing)
    return Truth(label=label, ignore=rules.ignore, fov=_fov(pair, place), padded=rules.padded, context=context), place


def _fov(pair: Pair, place: Place) -> np.ndarray | None:
    if pair.fov is None:
        return None
    array, geometry = _one_channel(pair.fov, pair.rules.dims)
    plain = dataclasses.replace(pair.rules, ignore=None)
    mask = labels.class_numbers(pair.fov, array) if plain.binarise is None else _cut(pair.fov, array, plain)
    return place.bring(pair.fov, mask[None], geometry)[0]


def _answer(pair: Pair, place: Place) -> np.ndarray:
    """The answer of a case; with a ``binarise`` one that is no mask yet is cut there, too."""
    array, geometry = _one_channel(pair.prediction, pair.rules.dims)
    near, cut = labels.rounded(array), pair.rules.binarise
    known = set(labels.occurring(near))
    if cut is not None and not (known <= {0, 1} or labels.white_of(known, None) is not None):
        answer = _cut(pair.prediction, array, dataclasses.replace(pair.rules, ignore=None))
    else:
        answer = labels.class_numbers(pair.prediction, near, pair.rules.ignore)
    return place.bring(pair.prediction, answer[None], geometry)[0]


def _counted_only(pair: Pair, answer: np.ndarray, truth: Truth) -> np.ndarray:
    """The answer with background where the label is ignored: what it holds there is no class of the set.

    Raises FileError where the ignored value itself, if it is no class number, stands where the label counts.
    """
    if truth.ignore is None or 0 <= int(answer.min()) <= int(answer.max()) <= 1:
        return answer
    seen = np.where(truth.label == truth.ignore, np.zeros((), answer.dtype), answer)
    below = int(np.count_nonzero(seen < 0))
    if below:
        raise FileError(
            pair.prediction,
            f"holds the ignored value {truth.ignore} in {below} voxels that {pair.label} counts",
            "Give them a class number, 0 for background",
        )
    return seen


def _one_channel(path: Path, dims: int) -> tuple[np.ndarray, Geometry]:
    """Values ``(*S)`` of a label file, and its geometry."""
    array, geometry = files.read(path, dims, labels=True)
    if len(array) > 1 and (array != array[:1]).any():
        raise FileError(
            path, f"has {len(array)} different channels where labels are needed", "Save labels with one channel of class numbers"
        )
    return array[0], geometry


def _cut(path: Path, array: np.ndarray, rules: Rules) -> np.ndarray:
    """1 where a value lies above ``binarise``, the ignored label where it is that, 0 elsewhere."""
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise FileError(path, f"holds {int(np.isnan(array).sum())} values that are NaN", "Replace them by numbers")
    mask = (array > rules.binarise).astype(np.int32)
    return mask if rules.ignore is None else np.where(array == rules.ignore, rules.ignore, mask)


def _require_declared(path: Path, label: np.ndarray, rules: Rules) -> None:
    """Raise FileError for label values that the model which gave the answers does not know."""
    if rules.declared is None or rules.binarise is not None:
        return
    odd = {v: n for v, n in labels.occurring(label).items() if v != rules.ignore and not 0 <= v < rules.declared}
    if odd:
        shown = ", ".join(f"{v} ({n} voxels)" for v, n in list(odd.items())[:6])
        raise FileError(
            path,
            f"holds labels outside 0 to {rules.declared - 1}, which the answers' model knows: {shown}",
            "Correct the labels, name the value that is not labelled with --ignore-label, or use --binarise X",
        )


def _foreground(label: np.ndarray, ignore: int | None) -> frozenset[int]:
    return frozenset(int(v) for v in labels.occurring(label) if v not in (0, ignore))


def _image_row(pair: Pair) -> Row:
    rules = pair.rules
    target, geometry = files.read(pair.label, rules.dims)
    _require_image(pair.label, target)
    place = Place(path=pair.label, grid=grid_of(geometry, rules.dims), shape=tuple(target.shape[1:]))
    image = place.bring(pair.prediction, *files.read(pair.prediction, rules.dims))
    if pair.input is None:
        return Row(image_scores(rules.metrics, image, target))
    source = place.bring(pair.input, *files.read(pair.input, rules.dims))
    change = Retouched(source=source, mask=_changed(source, target, rules)) if rules.changed else None
    told = change if change is None else dataclasses.replace(change, predicted=_predicted(pair, place))
    return Row(image_scores(rules.metrics, image, target, told), nothing=image_scores(rules.metrics, source, target, change))


FEW = 3
"""Largest value of an integer file that is taken for class numbers and not for intensities."""


def _require_image(path: Path, array: np.ndarray) -> None:
    """Raise FileError for a file of class numbers: metrics of images say nothing about labels."""
    if array.dtype.kind in "iu" and 1 <= int(array.max()) <= FEW:
        raise FileError(
            path,
            f"holds whole numbers from {int(array.min())} to {int(array.max())}: labels, of which psnr, ssim, mae and retouch say nothing",
            "Use metrics of labels, e.g. --metrics dice; of images give files on their full scale",
        )


def _changed(source: np.ndarray, target: np.ndarray, rules: Rules) -> np.ndarray:
    """What was to change, bool ``(*S)``; in half precision before it is compared, as training keeps its masks."""
    return changes.mask(source, target, rules.change)[0].astype(np.float16) >= changes.LEVEL


def _predicted(pair: Pair, place: Place) -> np.ndarray | None:
    """The probability ``(*S)`` in the picture of a predicted mask."""
    if pair.mask is None:
        return None
    array = place.bring(pair.mask, *files.read(pair.mask, pair.rules.dims))
    if (array != array[:1]).any():
        raise ValueError(f"{pair.mask} has {len(array)} different channels where a mask is needed")
    return intensities(array[0])


def image_scores(metrics: Sequence[Part], image: np.ndarray, target: np.ndarray, change: Retouched | None = None) -> Scores:
    """Metrics of an image ``(C, *S)`` against its target, both as their files have them, each brought to 0..1 by its own number type.

    So is the input in ``change``. Raises ValueError where shapes differ or a pixel is NaN.
    """
    if image.shape != target.shape:
        raise ValueError(f"the image has shape {image.shape}, its target {target.shape}")
    known = change if change is None else dataclasses.replace(change, source=intensities(change.source))
    return evaluate(metrics, intensities(image), intensities(target), change=known)


def _probability(pair: Pair, place: Place) -> np.ndarray | None:
    """Foreground probabilities ``(*S)`` where a metric asks for them and they are those of two classes."""
    if pair.soft is None or not SOFT & {m.name for m in pair.rules.metrics}:
        return None
    softs.require_sound(pair.soft, pair.id)
    kept = softs.load(pair.soft, pair.id)
    soft = place.bring(pair.soft / f"{pair.id}.npy", np.asarray(kept.main), kept.geometry)
    return soft[0] if len(soft) == 1 else None


def counted(metrics: Sequence[Part], answer: np.ndarray, truth: Truth, soft: np.ndarray | None) -> dict[str, Counts] | None:
    """Counts of a case in every frame if it has two classes and a metric can be pooled."""
    most = max(int(answer.max(initial=0)), int(np.max(truth.label, initial=0, where=truth.label != truth.ignore)))
    return count(answer, truth, soft) if most <= 1 and any(m.name in POOLED for m in metrics) else None


def mean(scores: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each metric over cases, NaN left out; NaN where no case has a value. Tables have no mean."""
    rows = list(scores)
    out = {}
    for key in dict.fromkeys(k for row in rows for k, v in row.items() if not isinstance(v, Mapping)):
        values = [row[key] for row in rows if key in row and math.isfinite(row[key])]
        out[key] = float(np.mean(values)) if values else math.nan
    return out
