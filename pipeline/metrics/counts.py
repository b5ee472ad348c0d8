"""Metrics of many cases together: from the confusion matrix of all their voxels, where a large case
weighs more than a small one.

Empty cases count as in one image. A formula here is the ``value`` of a :class:`Pooling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.metrics.probability import Tally, area_pr, area_roc


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Voxels of two classes in one frame, of one case or of many: the confusion matrix, and scores
    of both classes where they are known.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0
    tally: Tally | None = None

    @property
    def foreground(self) -> int:
        """Voxels that are foreground in the answer or in truth."""
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
    """How a metric is found from :class:`Counts`.

    Args:
        value: the metric of the counts.
        background: whether voxels that are rightly background enter it; else there is nothing to
            count without foreground.
        any_class: whether it is one number over all classes, where ``tp`` are the voxels that are
            right and ``fn`` those that are not.
    """

    value: Callable[[Counts], float]
    background: bool = False
    any_class: bool = False

    def known(self, counts: Counts) -> float:
        """The value; NaN where there is nothing that it counts."""
        return (
            self.value(counts)
            if (counts.total if self.background else counts.foreground)
            else math.nan
        )


def _share(part: int, whole: int, empty: float) -> float:
    return part / whole if whole else empty


def dice(c: Counts) -> float:
    return _share(2 * c.tp, 2 * c.tp + c.fp + c.fn, 1.0)


def iou(c: Counts) -> float:
    return _share(c.tp, c.tp + c.fp + c.fn, 1.0)


def precision(c: Counts) -> float:
    return _share(c.tp, c.tp + c.fp, float(c.fn == 0))


def recall(c: Counts) -> float:
    return _share(c.tp, c.tp + c.fn, float(c.fp == 0))


def specificity(c: Counts) -> float:
    return _share(c.tn, c.tn + c.fp, 1.0)


def accuracy(c: Counts) -> float:
    return _share(c.tp + c.tn, c.total, 1.0)


def roc_auc(c: Counts) -> float:
    return math.nan if c.tally is None else area_roc(c.tally)


def pr_auc(c: Counts) -> float:
    return math.nan if c.tally is None else area_pr(c.tally)
