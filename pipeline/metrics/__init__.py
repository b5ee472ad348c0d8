"""Metrics of whole cases by name: ``f(prediction, target, valid=None, **options) -> {name: number, ...}``.

Those in ``SOFT`` read probabilities as their prediction, all others the answer; those in ``CHANGED`` also read the input and the mask of
what was to change, as ``change``. Where a field of view is given (``frames``) every name ends with the frame that it was counted in. A
metric's own name is its first key and begins all others (``competition`` excepted, whose parts have names of their own; its ``counts``
are no number but a table; and ``retouch``, which has parts only and no number of its own name). Label maps are described in ``region``,
images in ``image``.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pipeline.config import ConfigError, bind, nearest
from pipeline.metrics import competition, image, probability, region, retouch, surface, topology
from pipeline.metrics.context import MetricContext
from pipeline.metrics.frames import SUFFIXES, Truth, views
from pipeline.metrics.retouch import Retouched
from pipeline.records import Part

METRICS: dict[str, Callable[..., dict[str, Any]]] = {
    "competition": competition.competition,
    "dice": region.dice,
    "iou": region.iou,
    "precision": region.precision,
    "recall": region.recall,
    "specificity": region.specificity,
    "accuracy": region.accuracy,
    "roc_auc": probability.roc_auc,
    "pr_auc": probability.pr_auc,
    "components": region.components,
    "betti_error": region.betti_error,
    "betti_matching_error": topology.betti_matching_error,
    "cldice": topology.cldice,
    "voi": topology.voi,
    "adapted_rand": topology.adapted_rand,
    "surface_dice": surface.surface_dice,
    "hd95": surface.hd95,
    "assd": surface.assd,
    "mae": image.mae,
    "psnr": image.psnr,
    "ssim": image.ssim,
    "retouch": retouch.retouch,
}

SOFT = frozenset({"roc_auc", "pr_auc"})
"""Metrics of probabilities, two classes only."""

CHANGED = frozenset({"retouch"})
"""Metrics of images that also read a :class:`Retouched`."""

IMAGES = image.NAMES | CHANGED
"""Metrics of images; all others are of labels."""

NUMBERLESS = SOFT | {"competition", "components", "betti_error", "voi", "adapted_rand"}
"""Metrics of labels to which equal numbers in the two maps mean nothing."""

DISTANCES = frozenset({"hd95", "assd"})
"""Metrics whose value is a length."""

VERSION_1: dict[str, Callable[..., dict[str, Any]]] = {
    "voi": topology.voi_by_class,
    "adapted_rand": topology.adapted_rand_by_class,
}
"""What some names meant in metrics version 1, for runs that began with it."""

GIVEN = ("prediction", "target", "valid", "change", "classes", "spacing")
"""Arguments that the package gives to a metric that takes them; no options of a user."""

BETTER: dict[str, Literal["higher", "lower"]] = {
    "loss": "lower",
    "competition": "higher",
    "toposcore": "higher",
    "voi_score": "higher",
    "dice": "higher",
    "iou": "higher",
    "precision": "higher",
    "recall": "higher",
    "specificity": "higher",
    "accuracy": "higher",
    "roc_auc": "higher",
    "pr_auc": "higher",
    "betti_error": "lower",
    "betti_matching_error": "lower",
    "cldice": "higher",
    "voi": "lower",
    "adapted_rand": "lower",
    "surface_dice": "higher",
    "hd95": "lower",
    "assd": "lower",
    "mae": "lower",
    "psnr": "higher",
    "ssim": "higher",
    "psnr_in": "higher",
    "psnr_out": "higher",
    "ssim_in": "higher",
    "ssim_out": "higher",
    "leak": "lower",
    "mask_dice": "higher",
}
"""Which direction of a value is better. Counts, like ``components``, have none and are not here."""


def better(name: str) -> Literal["higher", "lower"]:
    """Direction in which a value improves; takes ``dice``, ``val_dice``, ``dice_2`` (of class 2) and ``dice_fov`` (of a frame).

    Raises ConfigError for values that cannot be compared, such as counts, and for unknown ones.
    """
    base = re.sub(rf"({'|'.join(SUFFIXES)})$", "", name.removeprefix("val_"))
    base = re.sub(r"_\d+$", "", base)
    if base not in BETTER:
        raise ConfigError(f"{name!r} is no value that has a better and a worse direction. {nearest(base, BETTER)}")
    return BETTER[base]


def bound(part: Part, where: str) -> Callable[..., dict[str, Any]]:
    """A metric with its options bound. Raises ConfigError, which names ``where``, for an unknown metric or option."""
    return bind(METRICS, part, where, given=_given(part.name))


def _given(name: str) -> tuple[str, ...]:
    """Those of ``GIVEN`` that a metric takes; none for an unknown one, which is refused by name."""
    if name not in METRICS:
        return ()
    return tuple(n for n in inspect.signature(METRICS[name]).parameters if n in GIVEN)


def in_millimetres(parts: Sequence[Part]) -> bool:
    """Whether a metric among these measures in the world where the files say how: a distance, or a tolerance in millimetres."""
    return any(part.name in DISTANCES or "tolerance_mm" in part.options for part in parts)


def units(parts: Sequence[Part], spacing: bool) -> dict[str, str]:
    """Unit of each metric that is a length: ``mm`` where the files say how far voxels lie apart, else ``voxels``."""
    return {part.name: "mm" if spacing else "voxels" for part in parts if part.name in DISTANCES}


def evaluate(
    parts: Sequence[Part],
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
    in ``SOFT`` without probabilities or in ``CHANGED`` without ``change``, before anything is computed.
    """
    context = context or MetricContext()
    calls = [bound(part, f"metrics.{i}") for i, part in enumerate(parts)]
    _require(
        parts, SOFT if soft is None else (), "needs foreground probabilities of two classes; predict with --save-soft, or leave it out."
    )
    _require(
        parts,
        CHANGED if change is None else (),
        "needs the input and a mask of what was to change; it is a metric of whole cases: set data.change: {} in the config (pipeline.evaluate: --inputs DIR), or leave it out.",
    )
    further = {"change": change, "classes": context.classes, "spacing": context.spacing}
    scores: dict[str, Any] = {}
    for part, metric in zip(parts, calls, strict=True):
        old = context.version < 2 and part.name in VERSION_1
        call = VERSION_1[part.name] if old else metric
        known = () if old else _given(part.name)
        options = {name: value for name, value in further.items() if name in known}
        scores |= call(soft if part.name in SOFT else prediction, target, valid, **options)
    if context.version >= 2 and valid is not None and not valid.any():
        return {key: value if isinstance(value, Mapping) else math.nan for key, value in scores.items()}
    return scores


def _require(parts: Sequence[Part], without: Collection[str], message: str) -> None:
    """Raise ConfigError where a metric is asked for ``without`` what it reads."""
    lacking = [part.name for part in parts if part.name in without]
    if lacking:
        raise ConfigError(f"{', '.join(lacking)}: {message}")


def evaluate_frames(parts: Sequence[Part], answer: np.ndarray, truth: Truth, soft: np.ndarray | None = None) -> dict[str, Any]:
    """Metrics of an answer ``(*S)``, and of probabilities ``(*S)``, in every frame of its truth (see ``frames``)."""
    scores: dict[str, Any] = {}
    for view in views(truth):
        seen = None if soft is None else view.of(soft)
        found = evaluate(parts, view.of(answer), view.label, view.valid, seen, context=truth.context)
        scores |= {name + view.suffix: value for name, value in found.items()}
    return scores
