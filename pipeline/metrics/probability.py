"""How well probabilities rank foreground above background, whatever the threshold.

These are the areas under the ROC and precision-recall curves. Probabilities are ``(*S)``, targets
label maps of two classes ``(*S)``, ``valid`` is bool ``(*S)``. No probability is rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.metrics.overlap import same_shape


@dataclass(frozen=True, slots=True)
class Tally:
    """Voxels of each class at each distinct score, scores ascending."""

    background: np.ndarray
    """Integers ``(n,)``: background voxels at each score."""
    foreground: np.ndarray
    """Integers ``(n,)``: foreground voxels at each score."""

    def __add__(self, other: Tally) -> Tally:
        """Pool two tallies over the same scores (:func:`tally_halves`)."""
        return Tally(self.background + other.background, self.foreground + other.foreground)


def tally(soft: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> Tally:
    """Count the valid voxels of both classes at every score that occurs.

    Args:
        soft: scores ``(*S)``.
        target: label map ``(*S)``, foreground where ``!= 0``.
        valid: bool ``(*S)``, the voxels that count; None: all.

    Returns:
        Counts at the distinct scores.

    Raises:
        UserError: the shapes differ.
    """
    scores, truth = _chosen(soft, target, valid)
    thresholds, index = np.unique(scores, return_inverse=True)
    return Tally(*(np.bincount(index[side], minlength=len(thresholds)) for side in (~truth, truth)))


HALVES = 15361
"""Half-precision numbers from 0 to 1; their bit patterns are in order."""


def tally_halves(soft: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> Tally:
    """Count as :func:`tally` with probabilities rounded to half precision.

    The scores are all half-precision numbers from 0 to 1, so that tallies of cases add up.

    Args:
        soft: probabilities ``(*S)``.
        target: label map ``(*S)``, foreground where ``!= 0``.
        valid: bool ``(*S)``, the voxels that count; None: all.

    Returns:
        Counts at ``HALVES`` scores.

    Raises:
        UserError: the shapes differ.
    """
    scores, truth = _chosen(soft, target, valid)
    index = np.clip(scores, 0, 1).astype(np.float16).view(np.uint16)
    return Tally(*(np.bincount(index[side], minlength=HALVES) for side in (~truth, truth)))


def _chosen(
    soft: np.ndarray, target: np.ndarray, valid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and foreground of the voxels that count, both flat."""
    same_shape(soft, target, valid)
    where = np.ones(target.shape, bool) if valid is None else valid
    return soft[where], target[where] != 0


def area_roc(counts: Tally) -> float:
    """Chance that a foreground voxel scores above a background voxel, ties counted half.

    Args:
        counts: voxels of both classes by score.

    Returns:
        The area under the ROC curve, 0..1; NaN where one of the classes has no voxel.

    Source:
        Hanley & McNeil, Radiology 143, 1982.
    """
    n, p = (int(side.sum()) for side in (counts.background, counts.foreground))
    if not n or not p:
        return math.nan
    below = np.cumsum(counts.background, dtype=np.float64) - counts.background / 2
    return float((below * counts.foreground).sum() / n / p)


def area_pr(counts: Tally) -> float:
    """Average precision: precision at each distinct threshold, weighted by the recall that it adds.

    There is no interpolation between thresholds.

    Args:
        counts: voxels of both classes by score.

    Returns:
        The average precision, 0..1; NaN where there is no foreground.
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

    Args:
        prediction: foreground probabilities, or any scores, ``(*S)``.
        target: label map ``(*S)`` of two classes, foreground where ``!= 0``.
        valid: bool ``(*S)``, the voxels that count; None: all.

    Returns:
        ``roc_auc`` in 0..1; NaN where there is no foreground or no background.

    Raises:
        UserError: the shapes differ.

    Example:
        >>> import numpy as np
        >>> roc_auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
        {'roc_auc': 0.75}
    """
    return {"roc_auc": area_roc(tally(prediction, target, valid))}


def pr_auc(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, float]:
    """Area under the precision-recall curve of probabilities, as average precision.

    Args:
        prediction: foreground probabilities, or any scores, ``(*S)``.
        target: label map ``(*S)`` of two classes, foreground where ``!= 0``.
        valid: bool ``(*S)``, the voxels that count; None: all.

    Returns:
        ``pr_auc`` in 0..1; NaN where there is no foreground.

    Raises:
        UserError: the shapes differ.
    """
    return {"pr_auc": area_pr(tally(prediction, target, valid))}
