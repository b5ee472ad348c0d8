"""Metrics of a case computed together, in every frame, and pooled over cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.config import ConfigError
from pipeline.metrics.context import MetricContext
from pipeline.metrics.counts import Counts
from pipeline.metrics.frames import Truth, views
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
    """All metrics of one case in one dict; where two give the same key the later one stands.

    ``soft`` are the foreground probabilities ``(*S)`` behind a label map, ``change`` is the input
    and the mask of an image. Where no voxel is ``valid`` there is nothing to count: every number is
    NaN. Raises ConfigError for unknown metrics or options, and for one that needs probabilities or
    ``change`` where there are none, before anything is computed.
    """
    context = context or MetricContext()
    calls = [bound(part, f"metrics.{i}") for i, part in enumerate(parts)]
    _require_given(parts, soft, change)
    further = {"change": change, "classes": context.classes, "spacing": context.spacing}
    scores: dict[str, Any] = {}
    for part, metric in zip(parts, calls, strict=True):
        entry = METRICS[part.name]
        old = entry.version_1 if context.version < 2 else None
        known = () if old else entry.given
        options = {name: value for name, value in further.items() if name in known}
        scores |= (old or metric)(
            soft if "probabilities" in entry.needs else prediction, target, valid, **options
        )
    if context.version >= 2 and valid is not None and not valid.any():
        return {
            key: value if isinstance(value, Mapping) else math.nan for key, value in scores.items()
        }
    return scores


def _require_given(
    parts: Sequence[NamedOptions], soft: np.ndarray | None, change: Retouched | None
) -> None:
    """Raise ConfigError where a metric lacks what it needs."""
    if soft is None and (lacking := needing(parts, "probabilities")):
        way_out = "predict with --save-soft, or leave it out."
        raise ConfigError(
            f"{', '.join(lacking)}: needs foreground probabilities of two classes; {way_out}"
        )
    if change is None and (lacking := needing(parts, "change")):
        way_out = (
            "set data.change: {} in the config (pipeline.evaluate: --inputs DIR), or leave it out."
        )
        what = "needs the input and a mask of what was to change; it is a metric of whole cases:"
        raise ConfigError(f"{', '.join(lacking)}: {what} {way_out}")


def evaluate_frames(
    parts: Sequence[NamedOptions], answer: np.ndarray, truth: Truth, soft: np.ndarray | None = None
) -> dict[str, Any]:
    """Metrics of an answer ``(*S)``, and of probabilities ``(*S)``, in every frame of its truth
    (see ``frames``).
    """
    scores: dict[str, Any] = {}
    for view in views(truth):
        seen = None if soft is None else view.of(soft)
        found = evaluate(
            parts, view.of(answer), view.label, view.valid, seen, context=truth.context
        )
        scores |= {name + view.suffix: value for name, value in found.items()}
    return scores


def pool(
    cases: Iterable[Mapping[str, Counts]], names: Iterable[str], version: int = METRICS_VERSION
) -> dict[str, float]:
    """The metrics among ``names`` that can be pooled, over all voxels of the cases, frame by frame;
    empty without a case.

    ``cases`` are counts by suffix. NaN in a frame without any voxel that counts (metrics version 1:
    as for an empty image).
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
