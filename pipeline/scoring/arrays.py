"""Scores of arrays in memory, for people's own code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.labels import class_numbers
from pipeline.metrics import CHANGED, IMAGES, SOFT, bound, evaluate_frames
from pipeline.metrics.context import MetricContext
from pipeline.metrics.frames import Truth
from pipeline.metrics.names import read_metric
from pipeline.records import Part, UserError
from pipeline.scoring.folder import image_scores


def score(
    answer: Any,
    truth: Any,
    metrics: Sequence[str | Part | Mapping[str, Any]] | str = ("dice",),
    *,
    spacing: Sequence[float] | float | None = None,
    ignore_label: int | None = None,
    num_classes: int | None = None,
    probabilities: Any = None,
) -> dict[str, Any]:
    """Metrics of one case whose answer and truth lie in memory on one grid.

    Args:
        answer: class numbers ``(*S)``, a NumPy array or a tensor; for metrics of images intensities ``(C, *S)``.
        truth: of the same shape.
        metrics: names, also with options (``"surface_dice:tolerance=3"``), all of labels or all of images.
        spacing: millimetres between voxels along each axis; distances are then millimetres, without it voxels.
        ignore_label: voxels of this value in ``truth`` are not counted.
        num_classes: classes, background included; without it those that occur. A class that is declared and in neither array is NaN.
        probabilities: foreground ``(*S)``, for ``roc_auc`` and ``pr_auc``.

    Returns:
        Numbers by name: ``dice``, and of several classes ``dice_1``, ``dice_2`` and so on. NaN where there is nothing to count.

    Raises:
        UserError: for arrays that do not fit each other, values that are no class numbers, unknown metrics and options.

    Example:
        >>> import numpy as np
        >>> score(np.array([[0, 1, 1]]), np.array([[0, 1, 0]]), ["dice"])["dice"]
        0.6666666666666666
    """
    parts = parts_of(metrics)
    for part in parts:
        bound(part, "metrics")
    images = [p.name for p in parts if p.name in IMAGES]
    if images and len(images) < len(parts):
        raise UserError(f"metrics: {', '.join(images)} are of images, the others of labels. Score twice.")
    if changed := [name for name in images if name in CHANGED]:
        raise UserError(f"metrics: {', '.join(changed)} needs inputs beside answers. Use score_folder, or pipeline.evaluate --inputs.")
    mine, real = (_array(a) for a in (answer, truth))
    if mine.shape != real.shape:
        raise UserError(f"the answer has shape {mine.shape}, the truth {real.shape}. Bring both to one grid.")
    spacing = _spacing(spacing, mine.ndim - bool(images))
    if ignore_label is not None and (isinstance(ignore_label, bool) or not isinstance(ignore_label, int | np.integer)):
        raise UserError(f"ignore_label is {ignore_label!r}; give a whole number, or None.")
    if images:
        try:
            return image_scores(parts, mine, real)
        except ValueError as error:
            raise UserError(f"{error}. Look at both arrays.") from None
    return _of_labels(parts, (mine, real), spacing, (ignore_label, num_classes), probabilities)


def _spacing(given: Sequence[float] | float | None, dims: int) -> tuple[float, ...] | None:
    """Millimetres along each axis, one number for all. Raises UserError for what is no distance."""
    if given is None:
        return None
    try:
        found = tuple(float(s) for s in (given if isinstance(given, Sequence | np.ndarray) else [given] * dims))
    except (TypeError, ValueError):
        found = ()
    if len(found) != dims or not all(math.isfinite(s) and s > 0 for s in found):
        raise UserError(f"spacing is {given!r}; give {dims} numbers above 0, millimetres along each axis.")
    return found


def _of_labels(
    parts: Sequence[Part],
    maps: tuple[np.ndarray, np.ndarray],
    spacing: Sequence[float] | None,
    rules: tuple[int | None, int | None],
    probabilities: Any,
) -> dict[str, Any]:
    ignore, number = rules
    label = class_numbers(Path("truth"), maps[1], ignore)
    answer = class_numbers(Path("answer"), maps[0], ignore)
    valid = None if ignore is None else label != ignore
    largest = max(int(a.max(initial=0, where=True if valid is None else valid)) for a in (answer, label))
    if number is not None and largest >= number:
        raise UserError(f"class {largest} occurs, but num_classes is {number}: classes count from 0, background included.")
    soft = None if probabilities is None else _array(probabilities).astype(np.float32)
    if soft is not None and soft.shape != label.shape:
        raise UserError(f"probabilities have shape {soft.shape}, the truth {label.shape}. Give those of the foreground alone.")
    if soft is not None and not (np.isfinite(soft).all() and soft.min() >= 0 and soft.max() <= 1):
        raise UserError("probabilities hold values that are no numbers from 0 to 1. Give the foreground's, after sigmoid or softmax.")
    if soft is None and (wanting := sorted(SOFT & {p.name for p in parts})):
        raise UserError(f"metrics: {', '.join(wanting)} need probabilities=, the foreground's.")
    occurring = {int(v) for a in (answer, label) for v in np.unique(a if valid is None else a[valid])} - {0}
    classes = tuple(sorted(occurring)) if number is None else tuple(c for c in range(1, number) if c != ignore)
    context = MetricContext(
        classes=None if number is None and largest <= 1 else classes,
        spacing=None if spacing is None else tuple(float(s) for s in spacing),
    )
    if valid is not None and int(answer.max(initial=0)) > 1:  # what it holds where nothing is counted is no class of the case
        answer = np.where(valid, answer, 0)
    return evaluate_frames(parts, answer, Truth(label=label, ignore=ignore, context=context), soft)


def parts_of(metrics: Any) -> list[Part]:
    """Metrics as people name them. Raises UserError for what names none, and for one that is named twice."""
    several = [metrics] if isinstance(metrics, str | Part | Mapping) else list(metrics)
    parts = [_part(metric) for metric in several]
    names = [p.name for p in parts]
    if not parts or len(set(names)) < len(names):
        raise UserError(f"metrics is {several!r}; name at least one, and each once.")
    return parts


def _part(metric: Any) -> Part:
    if isinstance(metric, Part):
        return metric
    if isinstance(metric, str):
        return read_metric(metric)
    good = isinstance(metric, Mapping) and isinstance(metric.get("name"), str) and not set(metric) - {"name", "options"}
    if not good or not isinstance(metric.get("options", {}), Mapping):
        raise UserError(f"{metric!r} names no metric. Write 'dice', 'surface_dice:tolerance=2' or a mapping with name and options.")
    return Part(name=metric["name"], options=dict(metric.get("options", {})))


def _array(given: Any) -> np.ndarray:
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given  # a type that NumPy lacks
    array = np.asarray(given)
    if isinstance(given, str | Path) or array.dtype.kind not in "buif":
        raise UserError(f"{str(given)[:80]!r} is no array of numbers. Give arrays, or use score_folder for files.")
    return array.astype(np.uint8) if array.dtype == bool else array
