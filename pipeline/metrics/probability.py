"""How well probabilities rank foreground above background, whatever the threshold: areas under the
ROC and precision-recall curves.

Probabilities are ``(*S)``, targets label maps of two classes ``(*S)``, ``valid`` is bool ``(*S)``.
No probability is rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.metrics.overlap import same_shape


@dataclass(frozen=True, slots=True)
class Tally:
    """Voxels of background and of foreground at each distinct score, scores ascending: two integer
    arrays ``(n,)``.
    """

    background: np.ndarray
    foreground: np.ndarray

    def __add__(self, other: Tally) -> Tally:
        """Pool two tallies over the same scores (:func:`tally_halves`)."""
        return Tally(self.background + other.background, self.foreground + other.foreground)


def tally(soft: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> Tally:
    """Count the valid voxels of both classes at every score that occurs."""
    scores, truth = _chosen(soft, target, valid)
    places, index = np.unique(scores, return_inverse=True)
    return Tally(*(np.bincount(index[side], minlength=len(places)) for side in (~truth, truth)))


HALVES = 15361
"""Numbers from 0 to 1 that half precision knows; their bit patterns are in order."""


def tally_halves(soft: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> Tally:
    """Like :func:`tally` for probabilities rounded to half precision, over all its numbers from 0
    to 1, so that tallies of cases add up.
    """
    scores, truth = _chosen(soft, target, valid)
    index = np.clip(scores, 0, 1).astype(np.float16).view(np.uint16)
    return Tally(*(np.bincount(index[side], minlength=HALVES) for side in (~truth, truth)))


def _chosen(
    soft: np.ndarray, target: np.ndarray, valid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    same_shape(soft, target, valid)
    where = np.ones(target.shape, bool) if valid is None else valid
    return soft[where], target[where] != 0


def area_roc(counts: Tally) -> float:
    """Chance that a foreground voxel scores above a background voxel, ties half (Hanley & McNeil,
    Radiology 143, 1982).

    Nan where one of the classes has no voxel.
    """
    n, p = (int(side.sum()) for side in (counts.background, counts.foreground))
    if not n or not p:
        return math.nan
    below = np.cumsum(counts.background, dtype=np.float64) - counts.background / 2
    return float((below * counts.foreground).sum() / n / p)


def area_pr(counts: Tally) -> float:
    """Average precision: precision at each distinct threshold, weighted by the recall that it adds;
    no interpolation between them.

    Nan where there is no foreground.
    """
    p = int(counts.foreground.sum())
    if not p:
        return math.nan
    true, false = (
        np.cumsum(side[::-1], dtype=np.float64) for side in (counts.foreground, counts.background)
    )
    return float((counts.foreground[::-1] * true / np.maximum(true + false, 1)).sum() / p)


def roc_auc(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, float]:
    """Area under the ROC curve of probabilities.

    Nan where there is no foreground or no background.
    """
    return {"roc_auc": area_roc(tally(prediction, target, valid))}


def pr_auc(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, float]:
    """Area under the precision-recall curve of probabilities, as average precision.

    Nan where there is no foreground.
    """
    return {"pr_auc": area_pr(tally(prediction, target, valid))}
