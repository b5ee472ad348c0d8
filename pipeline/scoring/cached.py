"""Scoring of cached held-out cases by the rules of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.config import Config
from pipeline.data.cache import CachedCase, file_image, file_target
from pipeline.data.change import LEVEL, difference_mask
from pipeline.metrics import pool
from pipeline.metrics.counts import Counts
from pipeline.records import METRICS_VERSION, NamedOptions, UserError
from pipeline.scoring import core, worlds
from pipeline.scoring.core import CaseArrays, Rules, Scores
from pipeline.scoring.patches import classes_of, validation_metrics
from pipeline.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """What a run's config does not say about its scores.

    Args:
        version: metrics version.
        spacings: millimetres between voxels along each axis by case; empty where distances are in
            voxels.
    """

    version: int = METRICS_VERSION
    spacings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def in_model_space(self, cases: Iterable[CachedCase]) -> dict[str, tuple[float, ...]]:
        """Spacings of the arrays that a network sees.

        Args:
            cases: the cached cases.

        Returns:
            Millimetres between voxels along each axis by case; empty where distances are in voxels.
        """
        found = dict(self.spacings)
        for cached in cases:
            own = cached.space.spacing
            if cached.case.id in found and own is not None and not cached.space.identity:
                found[cached.case.id] = own
        return found


PRESENT = Scoring()
"""The present metrics version, with distances in voxels."""


def case_metrics(config: Config) -> tuple[NamedOptions, ...]:
    """Metrics of whole cases; the first one chooses between the kept and the averaged weights.

    Args:
        config: config of the run.

    Returns:
        The config's metrics, or the task's default.
    """
    return config.metrics or (NamedOptions(name=TASKS[config.rules].default_metric),)


def rules_of(config: Config, version: int = METRICS_VERSION) -> Rules:
    """The rules by which a run's cases are scored.

    Metrics get all classes of the run, unless instances are numbered.

    Args:
        config: config of the run.
        version: metrics version of the run.

    Returns:
        The rules.
    """
    numbered = any(step.name == "instances" for step in config.postprocess)
    return Rules(
        metrics=case_metrics(config),
        ignore=config.data.ignore_label,
        classes=None if numbered else classes_of(config.data),
        regions=None if numbered else config.data.unions,
        padded=config.data.frames.padded,
        version=version,
    )


def scoring_of(config: Config, version: int, cases: Sequence[CachedCase]) -> Scoring:
    """Metrics version and spacings of a run.

    Distances are millimetres where a metric measures any and the labels of all cases carry a unit.

    Args:
        config: config of the run.
        version: metrics version of the run.
        cases: all cases that are scored.

    Returns:
        Version and spacings.

    Raises:
        UserError: an option is in millimetres, and some labels carry no unit.
    """
    if version < 2:
        return Scoring(version=version)
    metrics = (*case_metrics(config), *validation_metrics(config))
    label = next(iter(config.targets))
    labels = {c.case.id: c.case.targets[label] for c in cases}
    return Scoring(version=version, spacings=worlds.spacings(metrics, labels, config.data.dims))


def label_case(
    config: Config,
    cached: CachedCase,
    answer: np.ndarray,
    soft: np.ndarray | None = None,
    spacing: tuple[float, ...] | None = None,
) -> CaseArrays:
    """A case of labels for the scoring core.

    Args:
        config: config of the run.
        cached: the case with its targets.
        answer: class numbers ``(*S)``.
        soft: the probabilities ``(K, *S)`` behind it, which are used where there is one channel.
        spacing: millimetres between voxels along each axis; None: distances are in voxels.

    Returns:
        The case.
    """
    fov = config.data.frames.fov
    return CaseArrays(
        answer=answer,
        target=file_target(cached, next(iter(config.targets)), config)[0],
        probabilities=soft[0] if soft is not None and len(soft) == 1 else None,
        fov=None if fov is None else file_target(cached, fov, config)[0],
        spacing=spacing,
    )


def score_image(
    config: Config, cached: CachedCase, answer: np.ndarray, predicted: np.ndarray | None = None
) -> Scores:
    """Score an image against the target of its case.

    Args:
        config: config of the run.
        cached: the case.
        answer: ``(C, *S)`` of the input's number type.
        predicted: probability ``(*S)`` of the mask of change, where the network gives one.

    Returns:
        Scores by metric.

    Raises:
        UserError: it cannot be scored, e.g. for a NaN or a target of another number type; the
            message names the case.
    """
    rules, target = rules_of(config), file_target(cached, image_target(config), config)
    if target.dtype != answer.dtype:
        raise UserError(
            f"case {cached.case.id}: the input holds {answer.dtype}, its target {target.dtype}; one"
            " normalisation cannot serve both. Save the two in the same number type."
        )
    source = file_image(cached, config.data.dims)
    changed = changed_of(config, cached) if rules.need_change else None
    case = CaseArrays(
        answer=answer, target=target, source=source, changed=changed, predicted=predicted
    )
    try:
        return core.score(case, rules)
    except ValueError as error:
        raise UserError(f"case {cached.case.id}: {error}.") from None


def image_target(config: Config) -> str:
    """Name of the target image; a user's masks may be targets beside it.

    Args:
        config: config of the run.

    Returns:
        The first target of images.
    """
    return next(name for name, kind in config.targets.items() if kind == "image")


def changed_of(config: Config, cached: CachedCase) -> np.ndarray | None:
    """The mask of what was to change in a case, on the grid of its files.

    It is made by ``data.change``, or the user's own: a target of labels called ``mask``.

    Args:
        config: config of the run.
        cached: the case.

    Returns:
        Bool ``(*S)``; None where the data has no such mask.
    """
    change = config.data.change
    if "mask" in cached.maps and cached.space.identity:
        return np.asarray(cached.maps["mask"].array)[0] >= LEVEL
    if "mask" in cached.maps and change is not None:
        source = file_image(cached, config.data.dims)
        target = file_target(cached, image_target(config), config)
        return difference_mask(source, target, change)[0].astype(np.float16) >= LEVEL
    if "mask" in cached.targets:
        return file_target(cached, "mask", config)[0] > 0
    return None


def pooled(
    config: Config,
    cases: Iterable[tuple[CachedCase, np.ndarray, np.ndarray | None]],
    version: int = METRICS_VERSION,
) -> Scores:
    """Compute the metrics that can be pooled over all voxels of several cases.

    Args:
        config: config of the run.
        cases: (case, answer ``(*S)``, probabilities ``(K, *S)`` or None) of each.
        version: metrics version of the run.

    Returns:
        Scores by metric; empty for more than two classes.
    """
    rules = rules_of(config, version)
    found: list[dict[str, Counts]] = []
    for cached, answer, soft in cases:
        counts = core.counted(label_case(config, cached, answer, soft), rules)
        if counts is None:
            return {}
        found.append(counts)
    return dict(pool(found, (m.name for m in rules.metrics), version))
