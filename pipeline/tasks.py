"""The two kinds of answer: LABELS (a class for each voxel) and IMAGE (an intensity for each voxel).

A task says how many channels the network returns, how logits become something that can be averaged (``soft``), how that
becomes an answer (``hard``) and how the answer is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline import files
from pipeline.config import Config
from pipeline.data.normalise import Scale
from pipeline.files.names import READ_ONLY
from pipeline.records import Geometry

if TYPE_CHECKING:
    import torch

COMPANIONS = ("_visualization", "_overlay")
"""Endings of the pictures that lie beside answers and are none."""


def is_companion(name: str) -> bool:
    """Whether a file's stem is that of a picture beside an answer.

    >>> is_companion("case1_overlay"), is_companion("case1")
    (True, False)
    """
    return name.endswith(COMPANIONS)


def answer_suffix(task: str, suffix: str) -> str:
    """Format of the answer to an input of a format: the same, or PNG where that cannot be written, or as JPEG would invent labels.

    >>> answer_suffix("labels", ".jpg"), answer_suffix("image", ".jpg"), answer_suffix("image", ".gif")
    ('.png', '.jpg', '.png')
    """
    unfit = (*READ_ONLY, ".jpg", ".jpeg") if task == "labels" else READ_ONLY
    return ".png" if suffix in unfit else suffix


class Task(Protocol):
    default_metric: str
    """What answers are measured by where a config names no metric."""

    def channels(self, config: Config, image_channels: int) -> int:
        """Output channels K of the main head."""
        ...

    def soft(self, logits: torch.Tensor) -> torch.Tensor:
        """``(B, K, *S)`` of any float type -> float32 ``(B, K, *S)`` that may be averaged over tiles, flips and folds."""
        ...

    def hard(self, soft: np.ndarray, scale: Scale | None = None, dtype: str = "uint8") -> np.ndarray:
        """Soft ``(K, *S)`` -> answer, without post-processing."""
        ...

    def write(self, folder: Path, name: str, answer: np.ndarray, geometry: Geometry, suffix: str) -> Path:
        """Write the answer as ``folder/name<suffix>``, its suffix by :func:`answer_suffix`; returns that path."""
        ...


class Labels:
    """Classes. One channel means foreground probability by a sigmoid; K > 1 channels a softmax."""

    default_metric = "dice"

    def channels(self, config: Config, image_channels: int) -> int:
        return 1 if config.data.classes == 2 else config.data.classes

    def soft(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)

    def hard(self, soft: np.ndarray, scale: Scale | None = None, dtype: str = "uint8") -> np.ndarray:
        return ((soft[0] >= 0.5) if len(soft) == 1 else soft.argmax(0)).astype(np.uint8)

    def write(self, folder: Path, name: str, answer: np.ndarray, geometry: Geometry, suffix: str) -> Path:
        """Also writes ``name_visualization<suffix>``: labels spread over 0..255, for viewers that show 0 and 1 as black."""
        suffix = answer_suffix("labels", suffix)
        path = folder / f"{name}{suffix}"
        files.write(path, answer, geometry)
        grey = (answer.astype(np.float32) * (255 / max(1, int(answer.max())))).astype(np.uint8)
        files.write(folder / f"{name}_visualization{suffix}", grey, geometry)
        return path


class Image:
    """Intensities on the scale of the (normalised) target; ``hard`` returns to the input's scale and type, with rounding."""

    default_metric = "psnr"

    def channels(self, config: Config, image_channels: int) -> int:
        return image_channels

    def soft(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.float()

    def hard(self, soft: np.ndarray, scale: Scale | None = None, dtype: str = "uint8") -> np.ndarray:
        array = scale.invert(soft) if scale is not None else soft
        if np.issubdtype(np.dtype(dtype), np.integer):
            if not np.isfinite(array).all():
                raise ValueError(
                    f"{np.count_nonzero(~np.isfinite(array))} values of the answer are NaN or infinite; was the network trained well?"
                )
            info = np.iinfo(dtype)
            array = np.clip(np.rint(array), info.min, info.max)
        return array.astype(dtype)

    def write(self, folder: Path, name: str, answer: np.ndarray, geometry: Geometry, suffix: str) -> Path:
        path = folder / f"{name}{answer_suffix('image', suffix)}"
        files.write(path, answer, geometry)
        return path


TASKS: dict[str, Task] = {"labels": Labels(), "image": Image()}


def spoken(task: str, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Soft answer ``(B, K, *S)`` of all heads that have a say in prediction.

    That is ``main`` and, of images, the probability of the head ``mask`` (one channel of logits, perhaps at a coarser resolution) as
    the last channel: so it is averaged over tiles, flips and folds like the image.
    """
    import torch
    from torch.nn import functional

    soft = TASKS[task].soft(outputs["main"])
    if task != "image" or "mask" not in outputs:
        return soft
    mask = outputs["mask"].float().sigmoid()
    if mask.shape[2:] != soft.shape[2:]:
        mask = functional.interpolate(mask, soft.shape[2:], mode="bilinear" if mask.ndim == 4 else "trilinear", align_corners=False)
    return torch.cat([soft, mask], 1)
