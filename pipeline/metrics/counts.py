"""Metrics pooled over many cases, from the confusion matrix of all their voxels.

A large case weighs more than a small one. Empty cases count as in one image. A formula here is the
``value`` of a :class:`Pooling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.metrics.probability import Tally, area_pr, area_roc


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Confusion matrix of two classes in one frame, of one case or of many."""

    tp: int = 0
    """Foreground in the prediction and in the truth, in voxels."""
    fp: int = 0
    """Foreground in the prediction only."""
    fn: int = 0
    """Foreground in the truth only."""
    tn: int = 0
    """Background in both."""
    tally: Tally | None = None
    """Voxels of both classes by probability; None where there are no probabilities."""

    @property
    def foreground(self) -> int:
        """Voxels that are foreground in the prediction or in the truth."""
        return self.tp + self.fp + self.fn

    @property
    def total(self) -> int:
        """Voxels that count."""
        return self.foreground + self.tn

    def __add__(self, other: Counts) -> Counts:
        both = (
            self.tally + other.tally if self.tally is not None and other.tally is not None else None
        )
        return Counts(
            tp=self.tp + other.tp,
            fp=self.fp + other.fp,
            fn=self.fn + other.fn,
            tn=self.tn + other.tn,
            tally=both,
        )


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a metric is computed from :class:`Counts`.

    Args:
        value: the metric of the counts.
        background: whether true negatives enter it; else NaN without foreground.
        any_class: whether it is one number over all classes, where ``tp`` are the voxels with the
            right class and ``fn`` the others.
    """

    value: Callable[[Counts], float]
    background: bool = False
    any_class: bool = False

    def known(self, counts: Counts) -> float:
        """Compute the metric, or NaN where there is nothing that it counts.

        Args:
            counts: pooled or of one case.

        Returns:
            The value of the metric.
        """
        return (
            self.value(counts)
            if (counts.total if self.background else counts.foreground)
            else math.nan
        )


def _ratio(part: int, whole: int, empty: float) -> float:
    return part / whole if whole else empty


def dice(c: Counts) -> float:
    """2 tp / (2 tp + fp + fn); 1 if both are empty.

    Args:
        c: confusion matrix.

    Returns:
        Dice, 0..1.
    """
    return _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn, 1.0)


def iou(c: Counts) -> float:
    """tp / (tp + fp + fn); 1 if both are empty.

    Args:
        c: confusion matrix.

    Returns:
        Intersection over union, 0..1.
    """
    return _ratio(c.tp, c.tp + c.fp + c.fn, 1.0)


def precision(c: Counts) -> float:
    """tp / (tp + fp); without predicted foreground 1 if there is no true one either, else 0.

    Args:
        c: confusion matrix.

    Returns:
        Precision, 0..1.
    """
    return _ratio(c.tp, c.tp + c.fp, float(c.fn == 0))


def recall(c: Counts) -> float:
    """tp / (tp + fn); without true foreground 1 if there is no predicted one either, else 0.

    Args:
        c: confusion matrix.

    Returns:
        Recall, 0..1.
    """
    return _ratio(c.tp, c.tp + c.fn, float(c.fp == 0))


def specificity(c: Counts) -> float:
    """tn / (tn + fp); 1 without background.

    Args:
        c: confusion matrix.

    Returns:
        Specificity, 0..1.
    """
    return _ratio(c.tn, c.tn + c.fp, 1.0)


def accuracy(c: Counts) -> float:
    """(tp + tn) / all voxels; 1 without any.

    Args:
        c: confusion matrix.

    Returns:
        Accuracy, 0..1.
    """
    return _ratio(c.tp + c.tn, c.total, 1.0)


def roc_auc(c: Counts) -> float:
    """Area under the ROC curve.

    Args:
        c: counts with a tally of probabilities.

    Returns:
        The area, 0..1; NaN without a tally or without one of the classes.
    """
    return math.nan if c.tally is None else area_roc(c.tally)


def pr_auc(c: Counts) -> float:
    """Area under the precision-recall curve.

    Args:
        c: counts with a tally of probabilities.

    Returns:
        The area, 0..1; NaN without a tally or without foreground.
    """
    return math.nan if c.tally is None else area_pr(c.tally)
