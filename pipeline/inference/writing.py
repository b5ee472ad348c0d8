"""The last step of a prediction: decide, post-process, and write the answer with the pictures and masks beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import colours, files, postprocess
from pipeline.data.normalise import Scale
from pipeline.records import Part, Prediction
from pipeline.tasks import TASKS

logger = logging.getLogger(__name__)


def finish(
    steps: Sequence[Part], prediction: Prediction, output: Path, facts: Mapping[str, Any], image: np.ndarray | None = None
) -> dict[str, Any]:
    """Decide, post-process, write; returns statistics of the answer.

    ``facts`` are what travels with a soft prediction: ``task``, ``suffix`` of the input, for images also its ``scale`` and ``dtype``.
    ``image`` is the input ``(C, *S)``; labels of a 2D one are also written over it, as ``ID_overlay.png``. An image with one
    channel more than ``channels`` of the facts comes from a network with a head ``mask``: its probability goes to ``masks/ID.png``.
    """
    task, statistics = TASKS[facts["task"]], {}
    if facts["task"] == "labels":
        answer = postprocess.apply(steps, prediction.soft)
        statistics = postprocess.statistics(answer)
        logger.info("  " + ", ".join(f"{k}: {v}" for k, v in statistics.items()))
    else:
        count = facts.get("channels", len(prediction.soft))
        answer = task.hard(prediction.soft[:count], _scale(facts["scale"]), facts["dtype"])
        statistics = _write_mask(output, prediction, count)
    path = task.write(output, prediction.case_id, answer, prediction.geometry, facts["suffix"])
    if facts["task"] == "labels" and image is not None and answer.ndim == 2:
        _write_overlay(output / f"{prediction.case_id}_overlay.png", image, answer, len(prediction.soft))
    logger.info(f"  Saved {path}")
    return {"output": path.name, **statistics}


def _write_mask(output: Path, prediction: Prediction, channels: int) -> dict[str, Any]:
    """The predicted mask, where there is one, as grey picture 0..255 (of a volume: a file like the answer); returns its share of the image."""
    if len(prediction.soft) == channels:
        return {}
    mask = prediction.soft[channels]
    suffix = ".png" if mask.ndim == 2 else ".tif"
    files.write(output / "masks" / f"{prediction.case_id}{suffix}", (mask * 255).round().astype("uint8"), dims=mask.ndim)
    return {"mask_share": round(float((mask >= 0.5).mean()), 6)}


def _write_overlay(path: Path, image: np.ndarray, answer: np.ndarray, channels: int) -> None:
    """The answer over its image; the foreground of a mask in one colour, classes and instances in one each."""
    binary = channels == 1 and answer.max() <= 1
    picture = colours.overlay(image, answer, (colours.SKY,) if binary else colours.CLASSES)
    files.write(path, picture.transpose(2, 0, 1), dims=2)


def _scale(facts: Mapping[str, Any]) -> Scale:
    return Scale(low=tuple(facts["low"]), high=tuple(facts["high"]), to=tuple(facts["to"]), clip=facts["clip"])
