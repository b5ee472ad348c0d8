"""Scores of arrays in memory, for users' own code."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.labels import class_numbers
from pipeline.metrics import METRICS, bound, needing
from pipeline.metrics.context import several
from pipeline.metrics.names import read_metric
from pipeline.records import NamedOptions, UserError
from pipeline.scoring import core
from pipeline.scoring.core import CaseArrays, Rules, blanked
from pipeline.scoring.pairs import foreground


def score(
    answer: Any,
    truth: Any,
    metrics: Sequence[str | NamedOptions | Mapping[str, Any]] | str = ("dice",),
    *,
    spacing: Sequence[float] | float | None = None,
    ignore_label: int | None = None,
    num_classes: int | None = None,
    probabilities: Any = None,
) -> dict[str, Any]:
    """Score one case whose prediction and ground truth lie in memory on one grid.

    Args:
        answer: class numbers ``(*S)``, a NumPy array or a tensor; for metrics of images intensities
            ``(C, *S)``.
        truth: of the same shape.
        metrics: names, also with options (``"surface_dice:tolerance=3"``), all of labels or all of
            images.
        spacing: millimetres between voxels along each axis; distances are then millimetres and
            volumes millilitres, without it voxels.
        ignore_label: voxels of this value in ``truth`` are not counted.
        num_classes: number of classes, background included; None: those that occur. A class that is
            declared and in neither array is NaN.
        probabilities: of the foreground ``(*S)``, for ``roc_auc`` and ``pr_auc``.

    Returns:
        Numbers by name: ``dice``, and of several classes ``dice_1``, ``dice_2`` and so on. NaN
        where there is nothing to count.

    Raises:
        UserError: arrays do not fit each other, values are no class numbers, or a metric or option
            is unknown.

    Example:
        >>> import numpy as np
        >>> score(np.array([[0, 1, 1]]), np.array([[0, 1, 0]]), ["dice"])["dice"]
        0.6666666666666666
        >>> truth = np.zeros((4, 20, 20), np.uint8)
        >>> truth[1:3, 2:7, 2:12], truth[0, 15, 15] = 1, 1
        >>> found = score(
        ...     truth[:, ::-1, ::-1], truth, ["lesion_f1:min_mm3=50", "volume_error"],
        ...     spacing=(5.0, 1.0, 1.0),
        ... )
        >>> found["lesion_f1"], found["lesions_true"], found["volume_error"], found["volume_true"]
        (0.0, 1.0, 0.0, 0.505)
    """
    parts = parts_of(metrics)
    for part in parts:
        bound(part, "metrics")
    images = [p.name for p in parts if METRICS[p.name].task == "image"]
    if images and len(images) < len(parts):
        raise UserError(
            f"metrics: {', '.join(images)} are of images, the others of labels. Score twice."
        )
    if changed := needing(parts, "change"):
        raise UserError(
            f"metrics: {', '.join(changed)} needs inputs beside answers. Use score_folder, or"
            " pipeline.evaluate --inputs."
        )
    case = CaseArrays(answer=_array(answer), target=_array(truth))
    if case.answer.shape != case.target.shape:
        raise UserError(
            f"the answer has shape {case.answer.shape}, the truth {case.target.shape}. Bring both"
            " to one grid."
        )
    case = dataclasses.replace(case, spacing=_spacing(spacing, case.target.ndim - bool(images)))
    if ignore_label is not None and (
        isinstance(ignore_label, bool) or not isinstance(ignore_label, int | np.integer)
    ):
        raise UserError(f"ignore_label is {ignore_label!r}; give a whole number, or None.")
    rules = Rules(metrics=tuple(parts), ignore=ignore_label)
    if images:
        try:
            return core.score(case, rules)
        except ValueError as error:
            raise UserError(f"{error}. Look at both arrays.") from None
    case = _of_labels(case, rules, num_classes)
    case = dataclasses.replace(
        case, probabilities=_probabilities(probabilities, rules, case.target.shape)
    )
    return core.score(case, dataclasses.replace(rules, classes=_classes(case, rules, num_classes)))


def _spacing(given: Sequence[float] | float | None, dims: int) -> tuple[float, ...] | None:
    """Millimetres along each axis from one number or several. Raises UserError for other values."""
    if given is None:
        return None
    try:
        found = tuple(
            float(s)
            for s in (given if isinstance(given, Sequence | np.ndarray) else [given] * dims)
        )
    except (TypeError, ValueError):
        found = ()
    if len(found) != dims or not all(math.isfinite(s) and s > 0 for s in found):
        raise UserError(
            f"spacing is {given!r}; give {dims} numbers above 0, millimetres along each axis."
        )
    return found


def _of_labels(case: CaseArrays, rules: Rules, number: int | None) -> CaseArrays:
    """The case with class numbers; its answer is background where the label is ignored."""
    label = class_numbers(Path("truth"), case.target, rules.ignore)
    answer = class_numbers(Path("answer"), case.answer, rules.ignore)
    counted = True if rules.ignore is None else label != rules.ignore
    largest = max(int(a.max(initial=0, where=counted)) for a in (answer, label))
    if number is not None and largest >= number:
        raise UserError(
            f"class {largest} occurs, but num_classes is {number}: classes count from 0, background"
            " included."
        )
    return dataclasses.replace(case, answer=blanked(answer, label, rules.ignore), target=label)


def _classes(case: CaseArrays, rules: Rules, number: int | None) -> tuple[int, ...] | None:
    """Foreground classes: all that are declared, else those that occur; None for a mask."""
    if number is not None:
        return tuple(c for c in range(1, number) if c != rules.ignore)
    counted = ... if rules.ignore is None else case.target != rules.ignore
    found = tuple(
        sorted(foreground(case.answer[counted], None) | foreground(case.target[counted], None))
    )
    return found if several(found) else None


def _probabilities(given: Any, rules: Rules, shape: tuple[int, ...]) -> np.ndarray | None:
    """Foreground probabilities as float32.

    Raises UserError where a metric lacks them, and for values outside 0..1.
    """
    if given is None:
        if wanting := sorted(needing(rules.metrics, "probabilities")):
            raise UserError(f"metrics: {', '.join(wanting)} need probabilities=, the foreground's.")
        return None
    soft = _array(given).astype(np.float32)
    if soft.shape != shape:
        raise UserError(
            f"probabilities have shape {soft.shape}, the truth {shape}. Give those of the"
            " foreground alone."
        )
    if not (np.isfinite(soft).all() and soft.min() >= 0 and soft.max() <= 1):
        raise UserError(
            "probabilities hold values that are no numbers from 0 to 1. Give the foreground's,"
            " after sigmoid or softmax."
        )
    return soft


def parts_of(metrics: Any) -> list[NamedOptions]:
    """Parse metrics as users name them.

    Args:
        metrics: one or several names, mappings with ``name`` and ``options``, or
            :class:`~pipeline.records.NamedOptions`.

    Returns:
        Names and options, at least one.

    Raises:
        UserError: one cannot be parsed or is named twice, or there is none.

    Example:
        >>> [part.options for part in parts_of("surface_dice:tolerance=3")]
        [{'tolerance': 3}]
    """
    several = [metrics] if isinstance(metrics, str | NamedOptions | Mapping) else list(metrics)
    parts = [_part(metric) for metric in several]
    names = [p.name for p in parts]
    if not parts or len(set(names)) < len(names):
        raise UserError(f"metrics is {several!r}; name at least one, and each once.")
    return parts


def _part(metric: Any) -> NamedOptions:
    if isinstance(metric, NamedOptions):
        return metric
    if isinstance(metric, str):
        return read_metric(metric)
    good = (
        isinstance(metric, Mapping)
        and isinstance(metric.get("name"), str)
        and not set(metric) - {"name", "options"}
    )
    if not good or not isinstance(metric.get("options", {}), Mapping):
        raise UserError(
            f"{metric!r} names no metric. Write 'dice', 'surface_dice:tolerance=2' or a mapping"
            " with name and options."
        )
    return NamedOptions(name=metric["name"], options=dict(metric.get("options", {})))


def _array(given: Any) -> np.ndarray:
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = (
            given.float() if str(given.dtype) == "torch.bfloat16" else given
        )  # a type that NumPy lacks
    array = np.asarray(given)
    if isinstance(given, str | Path) or array.dtype.kind not in "buif":
        raise UserError(
            f"{str(given)[:80]!r} is no array of numbers. Give arrays, or use score_folder for"
            " files."
        )
    return array.astype(np.uint8) if array.dtype == bool else array
