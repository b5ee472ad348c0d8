"""The score of Kaggle's "Vesuvius Challenge - Surface Detection", exactly, in seconds instead of
minutes.

``0.30 TopoScore + 0.35 SurfaceDice(2 voxels) + 0.35 VOI score`` of one volume; the leaderboard is
the mean over volumes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.metrics.overlap import confined
from pipeline.metrics.surface import surface_dice
from pipeline.metrics.topology import voi_of
from pipeline.morphology.counts import Counts, matching_counts
from pipeline.records import UserError

SHARES = (0.30, 0.35, 0.35)
"""Weights of TopoScore, SurfaceDice and VOI score."""

DIMENSIONS = (0.34, 0.33, 0.33)
"""Weights of components, tunnels and cavities in the TopoScore."""

TOLERANCE = 2.0
"""Voxels, of the SurfaceDice."""

ALPHA = 0.3
"""Of the VOI score ``1 / (1 + alpha (split + merge))``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompetitionScore:
    """Score of one volume and what it is made of.

    ``counts``: dimension -> features matched, predicted, true.
    """

    score: float
    toposcore: float
    surface_dice: float
    voi_score: float
    voi_split: float
    voi_merge: float
    counts: Mapping[int, tuple[int, int, int]]


def competition_score(
    prediction: np.ndarray, label: np.ndarray, ignore_label: int | None = 2
) -> CompetitionScore:
    """Score a prediction ``(Z, Y, X)`` against a label of the same shape; axes of length 1 are
    allowed.

    Foreground is ``!= 0`` (NaN in the prediction is background); voxels where the label is
    ``ignore_label`` become background in both. Two empty masks score 1. An empty prediction is no
    error: it gets what the three terms give it.

    The definition is that of the organisers' package ``topometrics`` as their notebook calls it:
    integers agree, and numbers to rounding. Raises UserError unless both are 3D and of one shape.
    """
    if label.ndim != 3 or prediction.shape != label.shape:
        raise UserError(
            "The competition's score takes two volumes (Z, Y, X) of one shape, got"
            f" {prediction.shape} and {label.shape}."
        )
    counted = np.ones(label.shape, bool) if ignore_label is None else label != ignore_label
    found = counted & (prediction != 0)
    if prediction.dtype.kind == "f":
        found &= ~np.isnan(prediction)
    return _score(found, counted & (label != 0))


def competition(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, Any]:
    """:func:`competition_score` as a metric: ``competition`` and its parts; ``counts`` maps
    ``"0"``, ``"1"``, ``"2"`` to [matched, predicted, true].
    """
    masks = [mask != 0 for mask in confined(prediction, target, valid)]
    record = _score(*masks)
    parts = ("toposcore", "surface_dice", "voi_score", "voi_split", "voi_merge")
    counts = {str(k): list(row) for k, row in record.counts.items()}
    return {
        "competition": record.score,
        **{name: getattr(record, name) for name in parts},
        "counts": counts,
    }


def _score(found: np.ndarray, true: np.ndarray) -> CompetitionScore:
    if found.ndim != 3:
        raise UserError(
            f"The competition's score takes volumes (Z, Y, X), got the shape {found.shape}."
        )
    counts = np.sum(
        [matching_counts(found[box], true[box]) for box in octants(found.shape)], axis=0
    ).tolist()
    split, merge = voi_of(found, true)
    parts = (
        toposcore(counts),
        surface_dice(found, true, tolerance=TOLERANCE)["surface_dice"],
        1 / (1 + ALPHA * (split + merge)),
    )
    return CompetitionScore(
        score=min(1.0, math.fsum(share * part for share, part in zip(SHARES, parts, strict=True))),
        toposcore=parts[0],
        surface_dice=parts[1],
        voi_score=parts[2],
        voi_split=split,
        voi_merge=merge,
        counts={k: (m, p, g) for k, (m, p, g) in enumerate(counts)},
    )


def octants(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Every axis in two runs, the longer first; an axis of length 1 in one.

    Up to eight boxes in C order.
    """
    halves = [(n + 1) // 2 for n in shape]
    yield from itertools.product(
        *(
            (slice(0, h), slice(h, n)) if n > 1 else (slice(0, n),)
            for h, n in zip(halves, shape, strict=True)
        )
    )


def toposcore(counts: Counts | Sequence[Sequence[int]]) -> float:
    """Mean of the dimensions' F1 over those that either mask has features of; 1 where neither has
    any.

    F1 is ``2 m / (p + g)``; without true features ``0.5 / (p + 0.5)``.
    """
    scores = [
        (w, 2 * m / (p + g) if g else 0.5 / (p + 0.5))
        for w, (m, p, g) in zip(DIMENSIONS, counts, strict=True)
        if p or g
    ]
    return sum(w * f for w, f in scores) / sum(w for w, _ in scores) if scores else 1.0
