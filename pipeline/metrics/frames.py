"""One answer counted in several frames: inside the field of view, over the full image, over the padded image; and cases pooled.

Where the frame holds background beyond the object, accuracy and specificity rise without any better answer, so that numbers
of different frames cannot be compared. Without a field of view there is one frame, the whole image, and names carry no suffix.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.metrics import probability
from pipeline.metrics.context import MetricContext
from pipeline.metrics.probability import Tally
from pipeline.records import METRICS_VERSION, UserError

SUFFIXES = ("_fov", "_full", "_padded")
"""What names of metrics end with where there is a field of view; the first is the one to compare and to choose by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What an answer is compared with: a label map ``(*S)``, its ignored value, the field of view ``(*S)`` and the padded size.

    ``context`` is what the metrics are told of the data set.
    """

    label: np.ndarray
    ignore: int | None = None
    fov: np.ndarray | None = None
    padded: tuple[int, ...] | None = None
    context: MetricContext = field(default_factory=MetricContext)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A truth in one frame: ``label`` has background where ``valid`` (None: everywhere) is False; ``margin`` voxels follow at the far ends."""

    suffix: str
    label: np.ndarray
    valid: np.ndarray | None
    margin: tuple[int, ...]

    def of(self, array: np.ndarray) -> np.ndarray:
        """An answer or a probability ``(*S)`` in this frame: zero in the margin."""
        return _widened(array, self.margin, 0)


def views(truth: Truth) -> Iterator[View]:
    """The frames of a truth. Raises UserError where the field of view has another size than the label or is empty."""
    known = None if truth.ignore is None else truth.label != truth.ignore
    label = truth.label if known is None else np.where(known, truth.label, 0).astype(truth.label.dtype)
    none = (0,) * label.ndim
    if truth.fov is None:
        yield View(suffix="", label=label, valid=known, margin=none)
        return
    fov = truth.fov != 0
    if fov.shape != label.shape or not fov.any():
        problem = f"has the shape {fov.shape}, the label {label.shape}" if fov.any() else "is empty, so that nothing would be counted"
        raise UserError(f"The field of view {problem}. Correct its file, or take data.frames.fov (--fov) away.")
    yield View(suffix="_fov", label=label, valid=fov if known is None else fov & known, margin=none)
    yield View(suffix="_full", label=label, valid=known, margin=none)
    if truth.padded is not None:
        margin = tuple(max(0, n - m) for n, m in zip(truth.padded, label.shape, strict=True))
        wider = None if known is None else _widened(known, margin, True)
        yield View(suffix="_padded", label=_widened(label, margin, 0), valid=wider, margin=margin)


def _widened(array: np.ndarray, margin: Sequence[int], value: Any) -> np.ndarray:
    return np.pad(array, [(0, m) for m in margin], constant_values=value) if any(margin) else array


# --- cases pooled ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Voxels of two classes in one frame, of one case or of many: the confusion matrix, and scores of both classes where they are known."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0
    tally: Tally | None = None

    @property
    def foreground(self) -> int:
        """Voxels that are foreground in the answer or in truth."""
        return self.tp + self.fp + self.fn

    def __add__(self, other: Counts) -> Counts:
        both = self.tally + other.tally if self.tally is not None and other.tally is not None else None
        return Counts(tp=self.tp + other.tp, fp=self.fp + other.fp, fn=self.fn + other.fn, tn=self.tn + other.tn, tally=both)


def count(answer: np.ndarray, truth: Truth, soft: np.ndarray | None = None) -> dict[str, Counts]:
    """Counts of one case in each frame, by suffix. ``answer`` and ``soft`` are ``(*S)``; foreground is ``!= 0``."""
    return {view.suffix: _count(view, answer, soft) for view in views(truth)}


def _count(view: View, answer: np.ndarray, soft: np.ndarray | None) -> Counts:
    said, true = view.of(answer) != 0, view.label != 0
    valid = np.ones(said.shape, bool) if view.valid is None else view.valid
    numbers = {name: int(np.count_nonzero(a & b & valid)) for name, a, b in (("tp", said, true), ("fp", said, ~true), ("fn", ~said, true))}
    return Counts(
        **numbers,
        tn=int(np.count_nonzero(valid)) - sum(numbers.values()),
        tally=None if soft is None else probability.tally_halves(view.of(soft), view.label, view.valid),
    )


def _share(part: int, whole: int, empty: float) -> float:
    return part / whole if whole else empty


POOLED: dict[str, Callable[[Counts], float]] = {
    "dice": lambda c: _share(2 * c.tp, 2 * c.tp + c.fp + c.fn, 1.0),
    "iou": lambda c: _share(c.tp, c.tp + c.fp + c.fn, 1.0),
    "precision": lambda c: _share(c.tp, c.tp + c.fp, float(c.fn == 0)),
    "recall": lambda c: _share(c.tp, c.tp + c.fn, float(c.fp == 0)),
    "specificity": lambda c: _share(c.tn, c.tn + c.fp, 1.0),
    "accuracy": lambda c: _share(c.tp + c.tn, c.tp + c.tn + c.fp + c.fn, 1.0),
    "roc_auc": lambda c: float("nan") if c.tally is None else probability.area_roc(c.tally),
    "pr_auc": lambda c: float("nan") if c.tally is None else probability.area_pr(c.tally),
}
"""Metrics of all voxels of all cases together; empty cases as for one image. A large image weighs more than a small one here."""


OVERLAP = ("dice", "iou", "precision", "recall")
"""Those of them that look at foreground only."""


def pooled_value(name: str, counts: Counts) -> float:
    """A metric of ``POOLED`` of many patches or cases; NaN where there is nothing that it counts."""
    looked_at = counts.foreground if name in OVERLAP else counts.foreground + counts.tn
    return POOLED[name](counts) if looked_at else math.nan


def count_classes(answer: np.ndarray, label: np.ndarray, valid: np.ndarray | None, classes: Sequence[int]) -> dict[int, Counts]:
    """Counts of each foreground class in one patch ``(*S)``; of one class alone foreground is ``!= 0``."""
    view = View(suffix="", label=label, valid=valid, margin=())
    if len(classes) == 1:
        return {classes[0]: _count(view, answer, None)}
    return {c: _count(dataclasses.replace(view, label=label == c), answer == c, None) for c in classes}


def pool(cases: Iterable[Mapping[str, Counts]], names: Iterable[str], version: int = METRICS_VERSION) -> dict[str, float]:
    """The metrics among ``names`` that can be pooled, over all voxels of the cases, frame by frame; empty without a case.

    NaN in a frame without any voxel that counts (metrics version 1: as for an empty image).
    """
    total: dict[str, Counts] = {}
    for case in cases:
        for suffix, counts in case.items():
            total[suffix] = total[suffix] + counts if suffix in total else counts
    wanted = [name for name in dict.fromkeys(names) if name in POOLED]
    out = {f"{name}{suffix}": POOLED[name](counts) for suffix, counts in total.items() for name in wanted}
    void = [s for s, counts in total.items() if version >= 2 and not counts.foreground + counts.tn]
    return out | {f"{name}{suffix}": math.nan for suffix in void for name in wanted}
