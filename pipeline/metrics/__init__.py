"""Metrics of whole cases by name: ``f(prediction, target, valid=None, **options) -> {name: number, ...}``.

Those in ``SOFT`` read probabilities as their prediction, all others the answer; those in ``CHANGED`` also read the input and the mask of
what was to change, as ``change``. Where a field of view is given (``frames``) every name ends with the frame that it was counted in. A
metric's own name is its first key and begins all others (``competition`` excepted, whose parts have names of their own; its ``counts``
are no number but a table; and ``retouch``, which has parts only and no number of its own name). Label maps are described in ``region``,
images in ``image``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import numpy as np

from pipeline.config import ConfigError, bind, nearest
from pipeline.metrics import competition, image, probability, region, retouch, surface, topology
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
    further = ("change",) if part.name in CHANGED else ()
    return bind(METRICS, part, where, given=("prediction", "target", "valid", *further))


def evaluate(
    parts: Sequence[Part],
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    soft: np.ndarray | None = None,
    change: Retouched | None = None,
) -> dict[str, Any]:
    """All metrics of one case in one dict; where two give the same key the later one stands.

    ``soft`` are the foreground probabilities ``(*S)`` behind a label map, ``change`` is the input and the mask of an image. Raises
    ConfigError for unknown metrics or options, and for one in ``SOFT`` without probabilities or in ``CHANGED`` without ``change``,
    before anything is computed.
    """
    calls = [bound(part, f"metrics.{i}") for i, part in enumerate(parts)]
    _require(
        parts, SOFT if soft is None else (), "needs foreground probabilities of two classes; predict with --save-soft, or leave it out."
    )
    _require(
        parts,
        CHANGED if change is None else (),
        "needs the input and a mask of what was to change; it is a metric of whole cases: set data.change: {} in the config (pipeline.evaluate: --inputs DIR), or leave it out.",
    )
    scores: dict[str, Any] = {}
    for part, metric in zip(parts, calls, strict=True):
        further = {"change": change} if part.name in CHANGED else {}
        scores |= metric(soft if part.name in SOFT else prediction, target, valid, **further)
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
        found = evaluate(parts, view.of(answer), view.label, view.valid, None if soft is None else view.of(soft))
        scores |= {name + view.suffix: value for name, value in found.items()}
    return scores
