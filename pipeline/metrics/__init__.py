"""Metrics of whole cases by name. Each is a record (:class:`MetricEntry`), so that adding one is one place: ``METRICS.add(name, entry)``.

Where a field of view is given (``frames``) every name ends with the frame that it was counted in. A metric's own name is its first key
and begins all others (``competition`` excepted, whose parts have names of their own; its ``counts`` are no number but a table; and
``retouch``, which has parts only and no number of its own name). Label maps are described in ``region``, images in ``image``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.config import ConfigError, bind, nearest
from pipeline.metrics import competition, counts, image, overlap, probability, retouch, surface, topology
from pipeline.metrics.context import MetricContext
from pipeline.metrics.counts import Counts, Pooling
from pipeline.metrics.entry import Better, Compute, MetricEntry, Need
from pipeline.metrics.frames import SUFFIXES, Truth, views
from pipeline.metrics.retouch import Retouched
from pipeline.records import METRICS_VERSION, NamedOptions
from pipeline.registry import Registry

PROBABILITIES: frozenset[Need] = frozenset({"probabilities"})

METRICS: Registry[MetricEntry] = Registry(
    "metric",
    {
        "competition": MetricEntry(
            competition.competition,
            better="higher",
            parts={"toposcore": "higher", "surface_dice": "higher", "voi_score": "higher"},
            compares_numbers=False,
            bytes_per_voxel=16,
        ),
        "dice": MetricEntry(overlap.dice, better="higher", pooled=Pooling(counts.dice), bytes_per_voxel=6),
        "iou": MetricEntry(overlap.iou, better="higher", pooled=Pooling(counts.iou), bytes_per_voxel=6),
        "precision": MetricEntry(overlap.precision, better="higher", pooled=Pooling(counts.precision), bytes_per_voxel=6),
        "recall": MetricEntry(overlap.recall, better="higher", pooled=Pooling(counts.recall), bytes_per_voxel=6),
        "specificity": MetricEntry(
            overlap.specificity, better="higher", pooled=Pooling(counts.specificity, background=True), bytes_per_voxel=7
        ),
        "accuracy": MetricEntry(
            overlap.accuracy, better="higher", pooled=Pooling(counts.accuracy, background=True, any_class=True), bytes_per_voxel=2
        ),
        "roc_auc": MetricEntry(
            probability.roc_auc,
            better="higher",
            needs=PROBABILITIES,
            compares_numbers=False,
            pooled=Pooling(counts.roc_auc, background=True),
            bytes_per_voxel=42,
        ),
        "pr_auc": MetricEntry(
            probability.pr_auc,
            better="higher",
            needs=PROBABILITIES,
            compares_numbers=False,
            pooled=Pooling(counts.pr_auc, background=True),
            bytes_per_voxel=42,
        ),
        "components": MetricEntry(overlap.components, compares_numbers=False, bytes_per_voxel=8),
        "betti_error": MetricEntry(overlap.betti_error, better="lower", compares_numbers=False, bytes_per_voxel=9),
        "betti_matching_error": MetricEntry(topology.betti_matching_error, better="lower", bytes_per_voxel=48),
        "cldice": MetricEntry(topology.cldice, better="higher", bytes_per_voxel=48),
        "voi": MetricEntry(topology.voi, better="lower", compares_numbers=False, version_1=topology.voi_by_class, bytes_per_voxel=16),
        "adapted_rand": MetricEntry(
            topology.adapted_rand, better="lower", compares_numbers=False, version_1=topology.adapted_rand_by_class, bytes_per_voxel=16
        ),
        "surface_dice": MetricEntry(surface.surface_dice, better="higher", bytes_per_voxel=12),
        "hd95": MetricEntry(surface.hd95, better="lower", length=True, bytes_per_voxel=13),
        "assd": MetricEntry(surface.assd, better="lower", length=True, bytes_per_voxel=13),
        "mae": MetricEntry(image.mae, better="lower", task="image", bytes_per_voxel=17),
        "psnr": MetricEntry(image.psnr, better="higher", task="image", bytes_per_voxel=9),
        "ssim": MetricEntry(image.ssim, better="higher", task="image", bytes_per_voxel=30, bytes_per_pixel=104),
        "retouch": MetricEntry(
            retouch.retouch,
            task="image",
            needs=frozenset({"change"}),
            parts={
                "psnr_in": "higher",
                "psnr_out": "higher",
                "ssim_in": "higher",
                "ssim_out": "higher",
                "leak": "lower",
                "mask_dice": "higher",
            },
            bytes_per_voxel=12,
            bytes_per_pixel=128,
        ),
    },
    record=MetricEntry,
)


def names_of(task: str) -> list[str]:
    """Names of the metrics that compare answers of a task, in alphabetical order."""
    return sorted(name for name, entry in METRICS.items() if entry.task == task)


def needing(parts: Sequence[NamedOptions], need: Need) -> list[str]:
    """Names of those metrics that read something besides answer and target."""
    return [part.name for part in parts if need in METRICS[part.name].needs]


def of_images(parts: Sequence[NamedOptions]) -> bool:
    """Whether a metric among these is of images."""
    return any(METRICS[part.name].task == "image" for part in parts)


def directions() -> dict[str, Better]:
    """The better direction of every value that has one. Counts, like ``components``, have none and are not here."""
    out: dict[str, Better] = {"loss": "lower"}
    for name, entry in METRICS.items():
        out |= entry.parts if entry.better is None else {name: entry.better, **entry.parts}
    return out


def better(name: str) -> Better:
    """Direction in which a value improves; takes ``dice``, ``val_dice``, ``dice_2`` (of class 2) and ``dice_fov`` (of a frame).

    Raises ConfigError for values that cannot be compared, such as counts, and for unknown ones.
    """
    base = re.sub(rf"({'|'.join(SUFFIXES)})$", "", name.removeprefix("val_"))
    base = re.sub(r"_\d+$", "", base)
    known = directions()
    if base not in known:
        raise ConfigError(f"{name!r} is no value that has a better and a worse direction. {nearest(base, known)}")
    return known[base]


def bound(part: NamedOptions, where: str) -> Compute:
    """A metric with its options bound. Raises ConfigError, which names ``where``, for an unknown metric or option."""
    return bind(METRICS, part, where, given=METRICS[part.name].given if part.name in METRICS else ())


def millimetre_options(parts: Sequence[NamedOptions]) -> list[str]:
    """Options among these metrics' that are lengths in the world, such as ``tolerance_mm``."""
    return [key for part in parts for key, value in part.options.items() if key.endswith("_mm") and value is not None]


def in_millimetres(parts: Sequence[NamedOptions]) -> bool:
    """Whether a metric among these measures in the world where the files say how: a distance, or with an option in millimetres."""
    return bool(millimetre_options(parts)) or any(METRICS[part.name].length for part in parts)


def units(parts: Sequence[NamedOptions], spacing: bool) -> dict[str, str]:
    """Unit of each metric that is a length: ``mm`` where the files say how far voxels lie apart, else ``voxels``."""
    return {part.name: "mm" if spacing else "voxels" for part in parts if METRICS[part.name].length}


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

    ``soft`` are the foreground probabilities ``(*S)`` behind a label map, ``change`` is the input and the mask of an image. Where no
    voxel is ``valid`` there is nothing to count: every number is NaN. Raises ConfigError for unknown metrics or options, and for one
    that needs probabilities or ``change`` where there are none, before anything is computed.
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
        scores |= (old or metric)(soft if "probabilities" in entry.needs else prediction, target, valid, **options)
    if context.version >= 2 and valid is not None and not valid.any():
        return {key: value if isinstance(value, Mapping) else math.nan for key, value in scores.items()}
    return scores


def _require_given(parts: Sequence[NamedOptions], soft: np.ndarray | None, change: Retouched | None) -> None:
    """Raise ConfigError where a metric lacks what it needs."""
    if soft is None and (lacking := needing(parts, "probabilities")):
        way_out = "predict with --save-soft, or leave it out."
        raise ConfigError(f"{', '.join(lacking)}: needs foreground probabilities of two classes; {way_out}")
    if change is None and (lacking := needing(parts, "change")):
        way_out = "set data.change: {} in the config (pipeline.evaluate: --inputs DIR), or leave it out."
        what = "needs the input and a mask of what was to change; it is a metric of whole cases:"
        raise ConfigError(f"{', '.join(lacking)}: {what} {way_out}")


def evaluate_frames(parts: Sequence[NamedOptions], answer: np.ndarray, truth: Truth, soft: np.ndarray | None = None) -> dict[str, Any]:
    """Metrics of an answer ``(*S)``, and of probabilities ``(*S)``, in every frame of its truth (see ``frames``)."""
    scores: dict[str, Any] = {}
    for view in views(truth):
        seen = None if soft is None else view.of(soft)
        found = evaluate(parts, view.of(answer), view.label, view.valid, seen, context=truth.context)
        scores |= {name + view.suffix: value for name, value in found.items()}
    return scores


def pool(cases: Iterable[Mapping[str, Counts]], names: Iterable[str], version: int = METRICS_VERSION) -> dict[str, float]:
    """The metrics among ``names`` that can be pooled, over all voxels of the cases, frame by frame; empty without a case.

    ``cases`` are counts by suffix. NaN in a frame without any voxel that counts (metrics version 1: as for an empty image).
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
