"""Scores of a folder of answers, several cases at a time, with no more of them in memory than it holds."""

from __future__ import annotations

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
from pipeline.metrics import evaluate
from pipeline.records import Part

Scores = dict[str, Any]
"""Numbers by name; a metric may add a table of numbers, such as ``counts``."""

BYTES = 30
"""Memory that scoring takes for each voxel (measured for ``competition``, the largest: 12, and 5 for the two files)."""

BASE = 300 << 20
"""Memory of a worker before its first case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An answer and its label file, and how to compare them."""

    id: str
    prediction: Path
    label: Path
    metrics: Sequence[Part]
    dims: int
    ignore: int | None


def folder(pairs: Sequence[Pair], workers: int | None = None, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Score answers against labels: ``{"cases": {id: scores}, "mean": scores, "failed": {id: reason}}``, cases in the given order.

    ``workers``: processes; None: one a core, fewer where memory is short. What ``progress(done, total)`` raises stops the work.
    """
    rows: dict[str, Scores | str] = {}
    for pair, row in _rows(pairs, workers):
        rows[pair.id] = row
        if progress:
            progress(len(rows), len(pairs))
    cases = {p.id: row for p in pairs if not isinstance(row := rows[p.id], str)}
    failed = {p.id: row for p in pairs if isinstance(row := rows[p.id], str)}
    return {"cases": cases, "mean": mean(cases.values()), "failed": failed}


def _rows(pairs: Sequence[Pair], workers: int | None) -> Iterable[tuple[Pair, Scores | str]]:
    number = min(len(pairs), processes.count(BASE + BYTES * max((_voxels(p) for p in pairs), default=0), workers))
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
    return math.prod(files.probe(pair.label, pair.dims).shape)


def score(pair: Pair) -> Scores | str:
    """Scores of one case, or why there are none."""
    try:
        answer, truth = (_mask(files.read(p, pair.dims, labels=True)[0][0]) for p in (pair.prediction, pair.label))
        if answer.shape != truth.shape:
            raise ValueError(f"prediction has shape {answer.shape}, label {truth.shape}")
        return score_labels(pair.metrics, answer, truth, pair.ignore)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _mask(labels: np.ndarray) -> np.ndarray:
    """A picture of a mask, 0 and 255, as 0 and 1; other labels as they are."""
    return np.where(labels == 255, 1, labels) if set(np.unique(labels)) <= {0, 255} else labels


def score_labels(metrics: Sequence[Part], answer: np.ndarray, truth: np.ndarray, ignore: int | None) -> Scores:
    """Metrics of an answer ``(*S)`` against a label map that may hold the ignored value."""
    valid = None if ignore is None else truth != ignore
    return evaluate(metrics, answer, truth if valid is None else np.where(valid, truth, 0), valid)


def mean(scores: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each metric over cases, NaN left out; NaN where no case has a value. Tables have no mean."""
    rows = list(scores)
    out = {}
    for key in dict.fromkeys(k for row in rows for k, v in row.items() if not isinstance(v, Mapping)):
        values = [row[key] for row in rows if key in row and math.isfinite(row[key])]
        out[key] = float(np.mean(values)) if values else math.nan
    return out
