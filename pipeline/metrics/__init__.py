"""Metrics of whole cases by name: ``f(prediction, target, valid=None, **options) -> {name: number, ...}``.

A metric's own name is its first key and begins all others (``competition`` excepted, whose parts have names of their own; its ``counts``
are no number but a table). Label maps are described in ``region``, images in ``image``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from pipeline.config import ConfigError, bind, nearest
from pipeline.metrics import competition, image, region, surface, topology
from pipeline.records import Part

METRICS: dict[str, Callable[..., dict[str, Any]]] = {
    "competition": competition.competition,
    "dice": region.dice,
    "iou": region.iou,
    "precision": region.precision,
    "recall": region.recall,
    "accuracy": region.accuracy,
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
}

BETTER: dict[str, Literal["higher", "lower"]] = {
    "loss": "lower",
    "competition": "higher",
    "toposcore": "higher",
    "voi_score": "higher",
    "dice": "higher",
    "iou": "higher",
    "precision": "higher",
    "recall": "higher",
    "accuracy": "higher",
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
}
"""Which direction of a value is better. Counts, like ``components``, have none and are not here."""


def better(name: str) -> Literal["higher", "lower"]:
    """Direction in which a value improves; takes ``dice``, ``val_dice``, and ``dice_2`` (of class 2).

    Raises ConfigError for values that cannot be compared, such as counts, and for unknown ones.
    """
    base = re.sub(r"_\d+$", "", name.removeprefix("val_"))
    if base not in BETTER:
        raise ConfigError(f"{name!r} is no value that has a better and a worse direction. {nearest(base, BETTER)}")
    return BETTER[base]


def evaluate(parts: Sequence[Part], prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> dict[str, Any]:
    """All metrics of one case in one dict; where two give the same key the later one stands.

    Raises ConfigError for unknown metrics or options, before anything is computed.
    """
    bound = [bind(METRICS, part, f"metrics.{i}", given=("prediction", "target", "valid")) for i, part in enumerate(parts)]
    scores: dict[str, Any] = {}
    for metric in bound:
        scores |= metric(prediction, target, valid)
    return scores
