"""Tiled prediction of one head, for tests whose networks are plain functions; soft predictions from
one array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.data.cache import CachedCase
from pipeline.geometry import Tiling
from pipeline.inference.sliding_window import (
    NetworkEnsemble,
    Replicas,
    Source,
    TileRun,
    sliding_window,
)
from pipeline.inference.soft import SoftPrediction, split
from pipeline.scoring import held_out


def main(answer: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    """The function as a network that has the head ``main`` alone."""
    return lambda tiles: {"main": answer(tiles)}


def tiled(
    source: Source, answer: Callable[[Any], Any], tiles: Tiling, batch: int = 1, device: str = "cpu"
) -> np.ndarray:
    """The main head ``(K, *S)`` of a whole case."""
    predict_tile = answer if isinstance(answer, NetworkEnsemble | Replicas) else main(answer)
    run = TileRun(source=source, predict_tile=predict_tile, tiles=tiles, batch=batch, device=device)
    return sliding_window(run)["main"]


def soft_of(config: Config, soft: np.ndarray, cached: CachedCase) -> SoftPrediction:
    """The soft prediction of a case in the store; the channel of an image behind its own is the
    mask.
    """
    meta = held_out.meta_of(cached, config)
    return SoftPrediction(
        case_id=cached.case.id, heads=split(soft, meta.channels, meta.task), meta=meta
    )
