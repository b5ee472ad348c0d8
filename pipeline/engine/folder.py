"""Scores of a folder of answers, several cases at a time, with no more of them in memory than it holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.engine import processes
from pipeline.engine import soft as softs
from pipeline.metrics import SOFT, evaluate, evaluate_frames
from pipeline.metrics.frames import POOLED, Counts, Truth, count, pool
from pipeline.metrics.image import NAMES, intensities
from pipeline.records import Part

Scores = dict[str, Any]
"""Numbers by name; a metric may add a table of numbers, such as ``counts``."""

BYTES = 30
"""Memory that scoring takes for each voxel (measured for ``competition``, the largest: 12, and 5 for the two files)."""

IMAGE_BYTES = 100
"""The same for metrics of images (measured for ``ssim``, the largest: 85)."""

BASE = 300 << 20
"""Memory of a worker before its first case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How answers and labels are compared. ``binarise`` and ``padded`` as in :class:`pipeline.config.Data`.

    Metrics are all of labels or all of images; of images, files are read as pictures, and nothing else here has a meaning.
    """

    metrics: Sequence[Part]
    dims: int
    ignore: int | None = None
    binarise: float | None = None
    padded: tuple[int, ...] | None = None

    @property
    def images(self) -> bool:
        """Whether the metrics are of images."""
        return any(m.name in NAMES for m in self.metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An answer and its label file; ``soft`` is the folder with its probabilities, ``fov`` the file of its field of view.

    Images: ``input`` is the file that the answer was made from, for the row "do nothing".
    """

    id: str
    prediction: Path
    label: Path
    rules: Rules
    soft: Path | None = None
    fov: Path | None = None
    input: Path | None = None


def folder(pairs: Sequence[Pair], workers: int | None = None, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Score answers against labels: ``{"cases": {id: scores}, "mean": scores, "failed": {id: reason}}``, cases in the given order.

    Binary cases add ``"pooled"``, the metrics of all their voxels together, as far as they can be pooled. Images with an ``input`` add
    ``"do_nothing"``, the means of the inputs themselves, and ``"difference"``, what the answers gain over them. ``workers``: processes; None: one a core, fewer where memory is short. What ``progress(done, total)`` raises stops the work.
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
    found |= {"pooled": pooled} if pooled else {}
    return found | ({"do_nothing": idle, "difference": {k: found["mean"][k] - v for k, v in idle.items()}} if idle else {})


@dataclass(frozen=True, slots=True)
class Row:
    """Scores of a case, its voxels' counts where there are two classes, and of images the scores of the input as it is."""

    scores: Scores
    counts: Mapping[str, Counts] | None = None
    nothing: Scores | None = None


def _rows(pairs: Sequence[Pair], workers: int | None) -> Iterable[tuple[Pair, Row | str]]:
    each = IMAGE_BYTES if any(p.rules.images for p in pairs) else BYTES
    number = min(len(pairs), processes.count(BASE + each * max((_voxels(p) for p in pairs), default=0), workers))
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


def _voxels(pair: Pair) -> int:
    return math.prod(files.probe(pair.label, pair.rules.dims).shape)


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
    target = files.read(pair.label, pair.rules.dims)[0]
    scores = image_scores(pair.rules.metrics, files.read(pair.prediction, pair.rules.dims)[0], target)
    if pair.input is None:
        return Row(scores)
    return Row(scores, nothing=image_scores(pair.rules.metrics, files.read(pair.input, pair.rules.dims)[0], target))


def image_scores(metrics: Sequence[Part], image: np.ndarray, target: np.ndarray) -> Scores:
    """Metrics of an image ``(C, *S)`` against its target, both as their files have them, each brought to 0..1 by its own number type.

    Raises ValueError where shapes differ or a pixel is NaN.
    """
    if image.shape != target.shape:
        raise ValueError(f"the image has shape {image.shape}, its target {target.shape}")
    return evaluate(metrics, intensities(image), intensities(target))


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
