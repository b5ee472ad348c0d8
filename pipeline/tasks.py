"""The two kinds of answer: LABELS (a class for each voxel) and IMAGE (an intensity for each voxel).

A task says how many channels the network returns, how its outputs become heads that can be averaged
(``heads``), how those become an answer (``decide``), and which files an answer has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.config import Config
from pipeline.data.normalise import IntensityScale
from pipeline.files.names import READ_ONLY

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


class Task(Protocol):
    """What differs between the kinds of answer.

    ``soft_type`` is the number type of activate files: probabilities keep three decimals in 16
    bits, images need 32. ``further`` are heads beside ``main``, of one channel each, that are
    predicted where a network has them. ``companions`` are endings of pictures beside an answer.
    """

    soft_type: type[np.floating]
    further: tuple[str, ...]
    companions: tuple[str, ...]
    default_metric: str
    """What answers are measured by where a config names no metric."""
    needed: tuple[str, ...]
    """What must be known of an input, so that an answer can be written from its soft prediction
    alone.
    """
    decides: bool
    """Whether post-processing makes the answer from the soft prediction."""

    def facts(self, config: Config) -> dict[str, Any]:
        """What summaries say of the answers, beside the task."""
        ...

    def bytes_per_voxel(self, channels: int, dtype: str) -> int:
        """Bytes of an answer, with what lies beside it, where files are not compressed; ``dtype``
        is the input's.
        """
        ...

    def channels(self, config: Config, image_channels: int) -> int:
        """Output channels K of the main head."""
        ...

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """``(B, K, *S)`` of any float type -> float32 ``(B, K, *S)`` that may be averaged over
        tiles, flips and folds.
        """
        ...

    def heads(self, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is predicted, by head: ``{"main": (B, K, *S)}`` float32, and of ``further`` what the
        network gives.
        """
        ...

    def decide(
        self, soft: np.ndarray, scale: IntensityScale | None = None, dtype: str = "uint8"
    ) -> np.ndarray:
        """Soft ``(K, *S)`` of the main head -> answer, without post-processing."""
        ...

    def suffix(self, given: str) -> str:
        """Format of the answer to an input of the format ``given``: the same where that can hold
        it.
        """
        ...

    def names(self, case_id: str, given: str) -> list[str]:
        """Files that the answer may be written to, relative to the output folder, the answer itself
        first.
        """
        ...


class Labels:
    """Classes. One channel means foreground probability by a sigmoid; K > 1 channels a softmax."""

    soft_type: type[np.floating] = np.float16
    further: tuple[str, ...] = ()
    companions: tuple[str, ...] = COMPANIONS
    default_metric = "dice"
    needed: tuple[str, ...] = ()
    decides = True

    def facts(self, config: Config) -> dict[str, Any]:
        return {"classes": config.data.classes}

    def bytes_per_voxel(self, channels: int, dtype: str) -> int:
        return 2  # labels and their visualisation

    def channels(self, config: Config, image_channels: int) -> int:
        return 1 if config.data.classes == 2 else config.data.classes

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)

    def heads(self, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"main": self.activate(outputs["main"])}

    def decide(
        self, soft: np.ndarray, scale: IntensityScale | None = None, dtype: str = "uint8"
    ) -> np.ndarray:
        return ((soft[0] >= 0.5) if len(soft) == 1 else soft.argmax(0)).astype(np.uint8)

    def suffix(self, given: str) -> str:
        """PNG in place of what cannot be written, and of JPEG, which would invent labels.

        >>> Labels().suffix(".jpg"), Labels().suffix(".tif")
        ('.png', '.tif')
        """
        return ".png" if given in (*READ_ONLY, ".jpg", ".jpeg") else given

    def names(self, case_id: str, given: str) -> list[str]:
        ending = self.suffix(given)
        return [f"{case_id}{ending}", f"{case_id}_visualization{ending}", f"{case_id}_overlay.png"]


class Image:
    """Intensities on the scale of the (normalised) target; ``decide`` returns to the input's scale
    and type, with rounding.

    A network with a head ``mask`` also says where it changed something: a probability by a sigmoid,
    perhaps at a coarser resolution.
    """

    soft_type: type[np.floating] = np.float32
    further: tuple[str, ...] = ("mask",)
    companions: tuple[str, ...] = ()
    default_metric = "psnr"
    needed: tuple[str, ...] = ("scale", "dtype")
    decides = False

    def facts(self, config: Config) -> dict[str, Any]:
        return {}

    def bytes_per_voxel(self, channels: int, dtype: str) -> int:
        return channels * np.dtype(dtype).itemsize

    def channels(self, config: Config, image_channels: int) -> int:
        return image_channels

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.float()

    def heads(self, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        from torch.nn import functional

        main = self.activate(outputs["main"])
        if "mask" not in outputs:
            return {"main": main}
        mask = outputs["mask"].float().sigmoid()
        if mask.shape[2:] != main.shape[2:]:
            way = "bilinear" if mask.ndim == 4 else "trilinear"
            mask = functional.interpolate(mask, main.shape[2:], mode=way, align_corners=False)
        return {"main": main, "mask": mask}

    def decide(
        self, soft: np.ndarray, scale: IntensityScale | None = None, dtype: str = "uint8"
    ) -> np.ndarray:
        array = scale.invert(soft) if scale is not None else soft
        if np.issubdtype(np.dtype(dtype), np.integer):
            if not np.isfinite(array).all():
                raise ValueError(
                    f"{np.count_nonzero(~np.isfinite(array))} values of the answer are NaN or"
                    " infinite; was the network trained well?"
                )
            info = np.iinfo(dtype)
            array = np.clip(np.rint(array), info.min, info.max)
        return array.astype(dtype)

    def suffix(self, given: str) -> str:
        """PNG in place of what cannot be written.

        >>> Image().suffix(".jpg"), Image().suffix(".gif")
        ('.jpg', '.png')
        """
        return ".png" if given in READ_ONLY else given

    def names(self, case_id: str, given: str) -> list[str]:
        return [
            f"{case_id}{self.suffix(given)}",
            *(f"masks/{case_id}{kind}" for kind in (".png", ".tif")),
        ]


TASKS: dict[str, Task] = {"labels": Labels(), "image": Image()}
