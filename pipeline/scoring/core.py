"""The scoring core: one case in memory, on one grid, and the one function that scores it.

Folders of files, held-out cases of a fold, candidates of tuning and arrays of users' own code only
differ in how they are opened.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.metrics import METRICS, evaluate, evaluate_frames, needing, of_images
from pipeline.metrics.context import MetricContext
from pipeline.metrics.counts import Counts
from pipeline.metrics.frames import Truth, View, count
from pipeline.metrics.image import intensities
from pipeline.metrics.regional import within
from pipeline.metrics.retouch import Retouched
from pipeline.records import METRICS_VERSION, NamedOptions

Scores = dict[str, Any]
"""Numbers by name; a metric may add a table of numbers, such as ``counts``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How the cases of a set are scored.

    Args:
        metrics: all of labels or all of images.
        ignore: label value that is not counted.
        classes: foreground classes of the whole set; None: those that occur in a case.
        regions: label values of each region that is scored in place of classes; None: none.
        padded: where there is a field of view, a further frame: the image with background up to
            this size, in voxels.
        version: see :data:`pipeline.records.METRICS_VERSION`.
    """

    metrics: tuple[NamedOptions, ...]
    ignore: int | None = None
    classes: tuple[int, ...] | None = None
    regions: tuple[tuple[int, ...], ...] | None = None
    padded: tuple[int, ...] | None = None
    version: int = METRICS_VERSION

    @property
    def images(self) -> bool:
        """Whether the metrics are of images."""
        return of_images(self.metrics)

    @property
    def need_change(self) -> bool:
        """Whether a metric reads the mask of what was to change."""
        return bool(needing(self.metrics, "change"))

    @property
    def need_probabilities(self) -> bool:
        """Whether a metric reads probabilities."""
        return bool(needing(self.metrics, "probabilities"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseArrays:
    """A case as it is scored.

    Args:
        answer: class numbers ``(*S)``, or an image ``(C, *S)`` as its file has it.
        target: what it is compared with, of the same shape.
        probabilities: of labels of two classes, those of foreground ``(*S)``.
        fov: of labels, the field of view ``(*S)``: inside where it is not 0.
        spacing: millimetres between voxels along each axis; None: distances are in voxels.
        source: of images, the input ``(C, *S)`` that the answer was made from.
        changed: of images, what was to change, bool ``(*S)``.
        predicted: of images, the probability ``(*S)`` of that mask as the network gives it.
    """

    answer: np.ndarray
    target: np.ndarray
    probabilities: np.ndarray | None = None
    fov: np.ndarray | None = None
    spacing: tuple[float, ...] | None = None
    source: np.ndarray | None = None
    changed: np.ndarray | None = None
    predicted: np.ndarray | None = None

    def doing_nothing(self) -> CaseArrays:
        """The case of images with its input as the answer.

        Returns:
            A case to be scored as a baseline.

        Raises:
            ValueError: the case has no input.
        """
        if self.source is None:
            raise ValueError(
                "a case without its input cannot be scored as one that nothing was done to"
            )
        return dataclasses.replace(self, answer=self.source, predicted=None)


def score(case: CaseArrays, rules: Rules) -> Scores:
    """Compute the metrics of one case.

    Images are scaled to 0..1, each by its own number type.

    Args:
        case: the case.
        rules: how it is scored.

    Returns:
        Scores by metric; of labels with a field of view, further frames have suffixes.

    Raises:
        ValueError: images differ in shape or hold a NaN.
        UserError: label maps and fields of view do not fit each other.

    Example:
        >>> case = CaseArrays(answer=np.array([[0, 1, 1]]), target=np.array([[0, 1, 0]]))
        >>> score(case, Rules(metrics=(NamedOptions(name="dice"),)))["dice"]
        0.6666666666666666
    """
    if rules.images:
        return _of_images(case, rules)
    return evaluate_frames(rules.metrics, case.answer, truth_of(case, rules), case.probabilities)


def score_in(view: View, case: CaseArrays, rules: Rules) -> Scores:
    """Compute the metrics of a case of labels in one frame of its truth.

    It serves many answers to one case. Names have no suffix of the frame.

    Args:
        view: the frame.
        case: the case.
        rules: how it is scored.

    Returns:
        Scores by metric.
    """
    soft = None if case.probabilities is None else view.of(case.probabilities)
    return evaluate(
        rules.metrics,
        view.of(case.answer),
        view.label,
        view.valid,
        soft,
        context=context_of(case, rules),
    )


def truth_of(case: CaseArrays, rules: Rules) -> Truth:
    """The ground truth of a case of labels, with what limits the voxels that count.

    Args:
        case: the case.
        rules: how it is scored.

    Returns:
        The truth, from which frames are made.
    """
    return Truth(
        label=case.target,
        ignore=rules.ignore,
        fov=case.fov,
        padded=rules.padded,
        context=context_of(case, rules),
    )


def context_of(case: CaseArrays, rules: Rules) -> MetricContext:
    """What metrics get to know beside the arrays.

    Args:
        case: the case.
        rules: how it is scored.

    Returns:
        Classes or regions, and spacing; none in metrics version 1.
    """
    if rules.version < 2:
        return MetricContext(version=rules.version)
    return MetricContext(
        classes=None if rules.regions else rules.classes,
        regions=rules.regions,
        spacing=case.spacing,
        version=rules.version,
    )


def _of_images(case: CaseArrays, rules: Rules) -> Scores:
    if case.answer.shape != case.target.shape:
        raise ValueError(f"the image has shape {case.answer.shape}, its target {case.target.shape}")
    change = None
    if rules.need_change and case.source is not None and case.changed is not None:
        change = Retouched(
            source=intensities(case.source), mask=case.changed, predicted=case.predicted
        )
    return evaluate(
        rules.metrics, intensities(case.answer), intensities(case.target), change=change
    )


def counted(case: CaseArrays, rules: Rules) -> dict[str, Counts] | None:
    """Count the voxels of a case of labels in every frame, for pooled metrics.

    Args:
        case: the case.
        rules: how it is scored.

    Returns:
        Counts by frame; None where there are more than two classes, or regions, or no metric can be
        pooled.
    """
    if rules.regions is not None:
        if len(rules.regions) > 1:
            return None
        case = _of_one_region(case, rules)
    most = max(
        int(case.answer.max(initial=0)),
        int(np.max(case.target, initial=0, where=case.target != rules.ignore)),
    )
    pooled = any(METRICS[m.name].pooled for m in rules.metrics)
    return (
        count(case.answer, truth_of(case, rules), case.probabilities)
        if most <= 1 and pooled
        else None
    )


def _of_one_region(case: CaseArrays, rules: Rules) -> CaseArrays:
    """The case with masks of the one region in place of labels; ignored voxels stay ignored."""
    answer, target = (within(a, rules.regions or ()) for a in (case.answer, case.target))
    if rules.ignore is not None:
        target = np.where(case.target == rules.ignore, rules.ignore, target)
    return dataclasses.replace(case, answer=answer, target=target)


def blanked(answer: np.ndarray, label: np.ndarray, ignore: int | None) -> np.ndarray:
    """Set an answer to background where the label is ignored: its values there are no classes.

    Args:
        answer: class numbers ``(*S)``.
        label: class numbers ``(*S)``.
        ignore: label value that is not counted; None: all count.

    Returns:
        The answer; the very same array where it needs no change.

    Example:
        >>> blanked(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 9]), 9).tolist()
        [0, 1, 2, 0]
    """
    if ignore is None or 0 <= int(answer.min(initial=0)) <= int(answer.max(initial=0)) <= 1:
        return answer
    return np.where(label == ignore, np.zeros((), answer.dtype), answer)


def mean(scores: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each metric over cases; NaN values are left out.

    Args:
        scores: scores of each case; tables in them are left out.

    Returns:
        Means by metric; NaN where no case has a value.

    Example:
        >>> mean([{"dice": 0.5}, {"dice": 1.0}, {"dice": math.nan}])
        {'dice': 0.75}
    """
    rows = list(scores)
    out = {}
    for key in dict.fromkeys(
        k for row in rows for k, v in row.items() if not isinstance(v, Mapping)
    ):
        values = [row[key] for row in rows if key in row and math.isfinite(row[key])]
        out[key] = float(np.mean(values)) if values else math.nan
    return out
