"""Metrics of a case computed together, in every frame, and pooled over cases."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.config import ConfigError
from pipeline.metrics.context import MetricContext
from pipeline.metrics.counts import Counts
from pipeline.metrics.entry import Compute
from pipeline.metrics.frames import Truth, views
from pipeline.metrics.regional import by_region, within
from pipeline.metrics.retouch import Retouched
from pipeline.metrics.table import METRICS, bound, needing
from pipeline.records import METRICS_VERSION, NamedOptions


def evaluate(
    parts: Sequence[NamedOptions],
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    soft: np.ndarray | None = None,
    change: Retouched | None = None,
    context: MetricContext | None = None,
) -> dict[str, Any]:
    """Compute all metrics of one case; where two give the same key the later one wins.

    Where no voxel is ``valid`` there is nothing to count: every number is NaN. Options are checked
    before anything is computed.

    Args:
        parts: metrics with their options.
        prediction: label map ``(*S)``, or image ``(C, *S)`` on 0..1.
        target: of the same shape.
        valid: bool ``(*S)``, the voxels that count; None: all.
        soft: foreground probabilities ``(*S)`` behind a label map; None: there are none.
        change: input and mask of change of an image; None: there is none.
        context: classes or regions, spacing and version of the data set; None: the defaults.

    Returns:
        Values by key; a value may be a table (a mapping).

    Raises:
        ConfigError: for unknown metrics or options, and for a metric that needs probabilities or
            ``change`` where there are none.

    Example:
        >>> import numpy as np
        >>> metrics = [NamedOptions(name="dice"), NamedOptions(name="recall")]
        >>> evaluate(metrics, np.array([[0, 1, 1]]), np.array([[0, 0, 1]]))
        {'dice': 0.6666666666666666, 'recall': 1.0}
    """
    context = context or MetricContext()
    calls = [bound(part, f"metrics.{i}") for i, part in enumerate(parts)]
    _require_given(parts, soft, change)
    available = {"change": change, "classes": context.classes, "spacing": context.spacing}
    regions = context.regions
    if regions is not None:
        prediction, target = within(prediction, regions), within(target, regions)
    scores: dict[str, Any] = {}
    for part, metric in zip(parts, calls, strict=True):
        entry = METRICS[part.name]
        version_1 = entry.version_1 if context.version < 2 else None
        known = () if version_1 else entry.given
        options = {name: value for name, value in available.items() if name in known}
        if regions is not None and len(regions) > 1 and entry.compares_numbers:
            call = functools.partial(_call, metric, valid, options)
            scores |= by_region(call, (prediction, target), valid, regions)
            continue
        scores |= (version_1 or metric)(
            soft if "probabilities" in entry.needs else prediction, target, valid, **options
        )
    if context.version >= 2 and valid is not None and not valid.any():
        return {
            key: value if isinstance(value, Mapping) else math.nan for key, value in scores.items()
        }
    return scores


def _call(
    metric: Compute,
    valid: np.ndarray | None,
    options: Mapping[str, Any],
    prediction: np.ndarray,
    target: np.ndarray,
) -> dict[str, Any]:
    return metric(prediction, target, valid, **options)


def _require_given(
    parts: Sequence[NamedOptions], soft: np.ndarray | None, change: Retouched | None
) -> None:
    """Raise ConfigError where a metric lacks what it needs."""
    if soft is None and (lacking := needing(parts, "probabilities")):
        suggestion = "predict with --save-soft, or leave it out."
        raise ConfigError(
            f"{', '.join(lacking)}: needs foreground probabilities of two classes; {suggestion}"
        )
    if change is None and (lacking := needing(parts, "change")):
        suggestion = (
            "set data.change: {} in the config (pipeline.evaluate: --inputs DIR), or leave it out."
        )
        what = "needs the input and a mask of what was to change; it is a metric of whole cases:"
        raise ConfigError(f"{', '.join(lacking)}: {what} {suggestion}")


def evaluate_frames(
    parts: Sequence[NamedOptions], answer: np.ndarray, truth: Truth, soft: np.ndarray | None = None
) -> dict[str, Any]:
    """Compute the metrics of a prediction in every frame of its truth (see ``frames``).

    Args:
        parts: metrics with their options.
        answer: predicted label map ``(*S)``.
        truth: label map, field of view and context.
        soft: foreground probabilities ``(*S)``; None: there are none.

    Returns:
        Values by key, which ends with the suffix of the frame.
    """
    scores: dict[str, Any] = {}
    for view in views(truth):
        probabilities = None if soft is None else view.of(soft)
        found = evaluate(
            parts, view.of(answer), view.label, view.valid, probabilities, context=truth.context
        )
        scores |= {name + view.suffix: value for name, value in found.items()}
    return scores


def pool(
    cases: Iterable[Mapping[str, Counts]], names: Iterable[str], version: int = METRICS_VERSION
) -> dict[str, float]:
    """Compute the metrics that can be pooled over all voxels of the cases, frame by frame.

    Args:
        cases: of each case its counts by suffix of the frame.
        names: metrics; those that cannot be pooled are left out.
        version: metrics version, see :data:`pipeline.records.METRICS_VERSION`.

    Returns:
        Values by name and suffix, empty without a case. NaN in a frame without any voxel that
        counts (metrics version 1: as for an empty image).
    """
    total: dict[str, Counts] = {}
    for case in cases:
        for suffix, found in case.items():
            total[suffix] = total[suffix] + found if suffix in total else found
    wanted = {name: pooled for name in names if (pooled := METRICS[name].pooled) is not None}
    return {
        f"{name}{suffix}": math.nan if version >= 2 and not found.total else pooled.value(found)
        for suffix, found in total.items()
        for name, pooled in wanted.items()
    }
