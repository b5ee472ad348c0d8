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

from pipeline import files
from pipeline.config import Change
from pipeline.data import change as changes
from pipeline.engine import processes
from pipeline.engine import soft as softs
from pipeline.metrics import BETTER, CHANGED, IMAGES, SOFT, evaluate, evaluate_frames
from pipeline.metrics.frames import POOLED, Counts, Truth, count, pool
from pipeline.metrics.image import intensities
from pipeline.metrics.retouch import Retouched, empty_masks
from pipeline.records import Part

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
    how the mask of what was to change is made from input and target, for the metrics in ``CHANGED``.
    """

    metrics: Sequence[Part]
    dims: int
    ignore: int | None = None
    binarise: float | None = None
    padded: tuple[int, ...] | None = None
    change: Change = field(default_factory=Change)

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
    good = {p.id: row for p in pairs if not isinstance(row := rows[p.id], str)}
    failed = {p.id: row for p in pairs if isinstance(row := rows[p.id], str)}
    found = {"cases": {i: row.scores for i, row in good.items()}, "mean": mean(row.scores for row in good.values()), "failed": failed}
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
    """Scores of a case, its voxels' counts where there are two classes, and of images the scores of the input as it is."""

    scores: Scores
    counts: Mapping[str, Counts] | None = None
    nothing: Scores | None = None


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
        answer, label = _labels(pair.prediction, rules), _labels(pair.label, rules, rules.binarise)
        if answer.shape != label.shape:
            raise ValueError(f"prediction has shape {answer.shape}, label {label.shape}")
        fov = None if pair.fov is None else _labels(pair.fov, dataclasses.replace(rules, ignore=None), rules.binarise)
        truth = Truth(label=label, ignore=rules.ignore, fov=fov, padded=rules.padded)
        soft = _probability(pair, answer.shape)
        return Row(evaluate_frames(rules.metrics, answer, truth, soft), counted(rules.metrics, answer, truth, soft))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _image_row(pair: Pair) -> Row:
    rules = pair.rules
    image, target = (files.read(path, rules.dims)[0] for path in (pair.prediction, pair.label))
    if pair.input is None:
        return Row(image_scores(rules.metrics, image, target))
    source = files.read(pair.input, rules.dims)[0]
    change = Retouched(source=source, mask=_changed(source, target, rules)) if rules.changed else None
    told = change if change is None else dataclasses.replace(change, predicted=_predicted(pair))
    return Row(image_scores(rules.metrics, image, target, told), nothing=image_scores(rules.metrics, source, target, change))


def _changed(source: np.ndarray, target: np.ndarray, rules: Rules) -> np.ndarray:
    """What was to change, bool ``(*S)``; in half precision before it is compared, as training keeps its masks."""
    return changes.mask(source, target, rules.change)[0].astype(np.float16) >= changes.LEVEL


def _predicted(pair: Pair) -> np.ndarray | None:
    """The probability ``(*S)`` in the picture of a predicted mask."""
    if pair.mask is None:
        return None
    array = files.read(pair.mask, pair.rules.dims)[0]
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


def _labels(path: Path, rules: Rules, cut: float | None = None) -> np.ndarray:
    """Labels ``(*S)`` of a file: 0 and 1 for a picture of a mask or where there is a ``cut``, else as they are."""
    array = files.read(path, rules.dims, labels=True)[0]
    if (array != array[:1]).any():
        raise ValueError(f"{path} has {len(array)} different channels where labels are needed")
    labels, values = array[0], set(np.unique(array[0]).tolist())
    white = next((w for w in (255, 65535) if w in values and w != rules.ignore and values <= {0, w, rules.ignore}), None)
    above = labels == white if cut is None else labels > cut
    if cut is None and white is None:
        return labels
    mask = above.astype(np.int32)
    return mask if rules.ignore is None else np.where(labels == rules.ignore, rules.ignore, mask)


def _probability(pair: Pair, shape: Sequence[int]) -> np.ndarray | None:
    """Foreground probabilities ``(*S)`` where a metric asks for them and they are those of two classes."""
    if pair.soft is None or not SOFT & {m.name for m in pair.rules.metrics}:
        return None
    soft = softs.load(pair.soft, pair.id)[0].soft
    if soft.shape[1:] != tuple(shape):
        raise ValueError(f"probabilities have shape {soft.shape[1:]}, prediction {tuple(shape)}")
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
