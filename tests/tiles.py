"""Tiled prediction of one head, for tests whose networks are plain functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.geometry import Tiling
from pipeline.inference.sliding_window import Replicas, Source, Speaker, sliding_window


def main(answer: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    """The function as a network that has the head ``main`` alone."""
    return lambda tiles: {"main": answer(tiles)}


def tiled(source: Source, answer: Callable[[Any], Any], tiles: Tiling, batch: int = 1, device: str = "cpu") -> np.ndarray:
    """The main head ``(K, *S)`` of a whole case."""
    speak = answer if isinstance(answer, Speaker | Replicas) else main(answer)
    return sliding_window(source, speak, tiles, batch, device)["main"]
