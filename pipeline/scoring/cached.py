"""Held-out cases of the store as the scoring core takes them, and by which rules a run scores them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.config import Config
from pipeline.data.cache import CachedCase
from pipeline.data.change import LEVEL
from pipeline.metrics import pool
from pipeline.metrics.counts import Counts
from pipeline.records import METRICS_VERSION, NamedOptions, UserError
from pipeline.scoring import core, worlds
from pipeline.scoring.core import CaseArrays, Rules, Scores
from pipeline.scoring.patches import classes_of, validation_metrics
from pipeline.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """What a run's config does not say of its scores: their metrics version, and millimetres
    between voxels by case where distances are lengths.
    """

    version: int = METRICS_VERSION
    spacings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


PRESENT = Scoring()


def case_metrics(config: Config) -> tuple[NamedOptions, ...]:
    """Metrics of whole cases, with the task's default; the first one chooses between best and
    averaged weights.
    """
    return config.metrics or (NamedOptions(name=TASKS[config.task].default_metric),)


def rules_of(config: Config, version: int = METRICS_VERSION) -> Rules:
    """By what a run's cases are scored: metrics are told of all its classes, unless instances are
    numbered.
    """
    numbered = any(step.name == "instances" for step in config.postprocess)
    return Rules(
        metrics=case_metrics(config),
        ignore=config.data.ignore_label,
        classes=None if numbered else classes_of(config.data),
        padded=config.data.frames.padded,
        version=version,
    )


def scoring_of(config: Config, version: int, cases: Sequence[CachedCase]) -> Scoring:
    """How a run is scored: lengths are millimetres where a metric measures any and the labels of
    all cases carry a unit.

    Raises UserError where an option in millimetres is asked for and some labels carry none.
    """
    if version < 2:
        return Scoring(version=version)
    metrics, label = (
        (*case_metrics(config), *validation_metrics(config)),
        next(iter(config.targets)),
    )
    labels = {c.case.id: c.case.targets[label] for c in cases}
    return Scoring(version=version, spacings=worlds.spacings(metrics, labels, config.data.dims))


def label_case(
    config: Config,
    cached: CachedCase,
    answer: np.ndarray,
    soft: np.ndarray | None = None,
    spacing: tuple[float, ...] | None = None,
) -> CaseArrays:
    """A case of labels.

    Args:
        answer: class numbers ``(*S)``.
        soft: the soft answer ``(K, *S)`` behind it; foreground's where it has one channel.
        spacing: millimetres between voxels along each axis.
    """
    fov = config.data.frames.fov
    return CaseArrays(
        answer=answer,
        target=np.asarray(cached.targets[next(iter(config.targets))].array)[0],
        probabilities=soft[0] if soft is not None and len(soft) == 1 else None,
        fov=None if fov is None else np.asarray(cached.targets[fov].array)[0],
        spacing=spacing,
    )


def score_image(
    config: Config, cached: CachedCase, answer: np.ndarray, predicted: np.ndarray | None = None
) -> Scores:
    """Metrics of an image ``(C, *S)`` of the input's number type against the case's target.

    ``predicted`` is the probability ``(*S)`` of the mask of change, where the network gives one.
    Raises UserError naming the case where it cannot be scored: a NaN in it, or a target of another
    number type.
    """
    rules, target = rules_of(config), np.asarray(cached.targets[image_target(config)].array)
    if target.dtype != answer.dtype:
        raise UserError(
            f"case {cached.case.id}: the input holds {answer.dtype}, its target {target.dtype}; one"
            " normalisation cannot serve both. Save the two in the same number type."
        )
    source, changed = (
        np.asarray(cached.image.array),
        changed_of(cached) if rules.need_change else None,
    )
    case = CaseArrays(
        answer=answer, target=target, source=source, changed=changed, predicted=predicted
    )
    try:
        return core.score(case, rules)
    except ValueError as error:
        raise UserError(f"case {cached.case.id}: {error}.") from None


def image_target(config: Config) -> str:
    """Name of the image that the answer should be: a user's masks may be a target beside it."""
    return next(name for name, kind in config.targets.items() if kind == "image")


def changed_of(cached: CachedCase) -> np.ndarray | None:
    """What was to change in a case, bool ``(*S)``; None where the data has no such mask.

    That is by ``data.change``, or the user's own: a target of labels called ``mask``.
    """
    if "mask" in cached.maps:
        return np.asarray(cached.maps["mask"].array)[0] >= LEVEL
    if "mask" in cached.targets:
        return np.asarray(cached.targets["mask"].array)[0] > 0
    return None


def pooled(
    config: Config,
    cases: Iterable[tuple[CachedCase, np.ndarray, np.ndarray]],
    version: int = METRICS_VERSION,
) -> Scores:
    """The metrics that can be pooled, over all voxels of (case, answer ``(*S)``, activate ``(K,
    *S)``); empty for more than two classes.
    """
    rules = rules_of(config, version)
    found: list[dict[str, Counts]] = []
    for cached, answer, soft in cases:
        counts = core.counted(label_case(config, cached, answer, soft), rules)
        if counts is None:
            return {}
        found.append(counts)
    return dict(pool(found, (m.name for m in rules.metrics), version))
