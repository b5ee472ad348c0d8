"""One prediction scored in several frames: the field of view, the full image, the padded image.

Where the frame holds background beyond the object, accuracy and specificity rise without any better
prediction, so that numbers of different frames cannot be compared. Without a field of view there is
one frame, the whole image, and names carry no suffix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.metrics import probability
from pipeline.metrics.context import MetricContext
from pipeline.metrics.counts import Counts
from pipeline.metrics.overlap import joint_counts
from pipeline.records import UserError

SUFFIXES = ("_fov", "_full", "_padded")
"""Endings of metric names where there is a field of view.

The first is the one to compare and to select models by.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What a prediction is compared with.

    Args:
        label: label map ``(*S)``.
        ignore: value in ``label`` of voxels that do not count; None: all count.
        fov: field of view ``(*S)``, inside where ``!= 0``; None: there is none.
        padded: size of the padded image in voxels; None: no such frame.
        context: settings of the data set for the metrics.
    """

    label: np.ndarray
    ignore: int | None = None
    fov: np.ndarray | None = None
    padded: tuple[int, ...] | None = None
    context: MetricContext = field(default_factory=MetricContext)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A truth in one frame.

    Args:
        suffix: ending of the metric names.
        label: label map ``(*S)`` of the frame, background where ``valid`` is False.
        valid: bool, shape of ``label``, the voxels that count; None: all.
        margin: voxels that the frame adds at the far end of each axis.
    """

    suffix: str
    label: np.ndarray
    valid: np.ndarray | None
    margin: tuple[int, ...]

    def of(self, array: np.ndarray) -> np.ndarray:
        """Bring an array into this frame.

        Args:
            array: label map or probabilities ``(*S)`` of the image.

        Returns:
            The same with zeros in the margin.
        """
        return _pad_end(array, self.margin, 0)


def views(truth: Truth) -> Iterator[View]:
    """Make the frames of a truth.

    Args:
        truth: label map with an optional field of view and padded size.

    Yields:
        The frames, in the order of ``SUFFIXES``; a single one without a field of view.

    Raises:
        UserError: the field of view has another size than the label or is empty.
    """
    known = None if truth.ignore is None else truth.label != truth.ignore
    label = (
        truth.label
        if known is None
        else np.where(known, truth.label, 0).astype(truth.label.dtype, copy=False)
    )
    none = (0,) * label.ndim
    if truth.fov is None:
        yield View(suffix="", label=label, valid=known, margin=none)
        return
    fov = truth.fov != 0
    if fov.shape != label.shape or not fov.any():
        problem = (
            f"has the shape {fov.shape}, the label {label.shape}"
            if fov.any()
            else "is empty, so that nothing would be counted"
        )
        raise UserError(
            f"The field of view {problem}. Correct its file, or take data.frames.fov (--fov) away."
        )
    yield View(suffix="_fov", label=label, valid=fov if known is None else fov & known, margin=none)
    yield View(suffix="_full", label=label, valid=known, margin=none)
    if truth.padded is not None:
        margin = tuple(max(0, n - m) for n, m in zip(truth.padded, label.shape, strict=True))
        wider = None if known is None else _pad_end(known, margin, True)
        yield View(suffix="_padded", label=_pad_end(label, margin, 0), valid=wider, margin=margin)


def _pad_end(array: np.ndarray, margin: Sequence[int], value: Any) -> np.ndarray:
    return np.pad(array, [(0, m) for m in margin], constant_values=value) if any(margin) else array


# --- voxels counted -------------------------------------------------------------------------------


def count(answer: np.ndarray, truth: Truth, soft: np.ndarray | None = None) -> dict[str, Counts]:
    """Count the confusion matrix of one case in each frame.

    Args:
        answer: predicted label map ``(*S)``, foreground where ``!= 0``.
        truth: label map and frames.
        soft: foreground probabilities ``(*S)``; None: there are none.

    Returns:
        Counts by suffix.
    """
    return {view.suffix: _count(view, answer, soft) for view in views(truth)}


def _count(view: View, answer: np.ndarray, soft: np.ndarray | None) -> Counts:
    predicted, true = view.of(answer) != 0, view.label != 0
    valid = np.ones(predicted.shape, bool) if view.valid is None else view.valid
    numbers = {
        name: int(np.count_nonzero(a & b & valid))
        for name, a, b in (
            ("tp", predicted, true),
            ("fp", predicted, ~true),
            ("fn", ~predicted, true),
        )
    }
    return Counts(
        **numbers,
        tn=int(np.count_nonzero(valid)) - sum(numbers.values()),
        tally=None
        if soft is None
        else probability.tally_halves(view.of(soft), view.label, view.valid),
    )


def count_classes(
    answer: np.ndarray, label: np.ndarray, valid: np.ndarray | None, classes: Sequence[int]
) -> dict[int, Counts]:
    """Count the confusion matrix of each foreground class in one patch.

    Args:
        answer: predicted label map ``(*S)``.
        label: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes; of one class alone foreground is ``!= 0``.

    Returns:
        Counts by class.
    """
    view = View(suffix="", label=label, valid=valid, margin=())
    if len(classes) == 1:
        return {classes[0]: _count(view, answer, None)}
    counted = (answer, label) if valid is None else (answer[valid], label[valid])
    joint = joint_counts(*counted)
    if joint is not None:
        return {c: _counts_of(joint, c) for c in classes}
    return {
        c: _count(dataclasses.replace(view, label=label == c), answer == c, None) for c in classes
    }


def _counts_of(joint: np.ndarray, value: int) -> Counts:
    """Confusion matrix of a class from the voxels of each pair of values."""
    total = int(joint.sum())
    if value >= len(joint):
        return Counts(tn=total)
    tp, p, t = (int(n) for n in (joint[value, value], joint[value].sum(), joint[:, value].sum()))
    return Counts(tp=tp, fp=p - tp, fn=t - tp, tn=total - p - t + tp)
