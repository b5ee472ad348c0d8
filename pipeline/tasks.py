"""The kinds of prediction: LABELS (a class for each voxel), REGIONS of them, IMAGE (intensities).

A task says how many channels the network returns, how its outputs become heads that can be averaged
(``heads``), how those become the final array (``decide``), and which files that is written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.config import Config
from pipeline.data.normalise import IntensityScale
from pipeline.files.names import INSTEAD

if TYPE_CHECKING:
    import torch

COMPANIONS = ("_visualization", "_overlay")
"""Endings of the pictures that lie beside label maps and are none."""


def is_companion(name: str) -> bool:
    """Check whether a file is a picture beside a prediction and no prediction.

    Args:
        name: stem of the file.

    Returns:
        True for the endings of ``COMPANIONS``.

    Example:
        >>> is_companion("case1_overlay"), is_companion("case1")
        (True, False)
    """
    return name.endswith(COMPANIONS)


class Task(Protocol):
    """What differs between the kinds of prediction.

    An *answer* is the final array of a case, as it is written to a file: labels or an image.
    """

    soft_type: type[np.floating]
    """Number type of saved float predictions.

    Probabilities keep three decimals in 16 bits, images need 32.
    """
    further: tuple[str, ...]
    """Heads beside ``main``, of one channel each, that are predicted where a network has them."""
    companions: tuple[str, ...]
    """Endings of pictures beside an answer."""
    default_metric: str
    """Metric of the task where a config names none."""
    needed: tuple[str, ...]
    """What must be known of an input to write an answer from its float prediction alone."""
    decides: bool
    """Whether post-processing makes the answer from the float prediction."""

    def facts(self, config: Config) -> dict[str, Any]:
        """List what summaries say of the answers, beside the task.

        Args:
            config: of the run.

        Returns:
            Values by name, for JSON.
        """
        ...

    def bytes_per_voxel(self, channels: int, dtype: str) -> int:
        """Estimate the size of an answer on disk with its companions.

        Files are taken as uncompressed.

        Args:
            channels: of the answer.
            dtype: number type of the input.

        Returns:
            Bytes per voxel.
        """
        ...

    def channels(self, config: Config, image_channels: int) -> int:
        """Count the output channels K of the main head.

        Args:
            config: of the run.
            image_channels: channels of the input.

        Returns:
            K.
        """
        ...

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn logits into values that may be averaged over tiles, flips and folds.

        Args:
            logits: ``(B, K, *S)`` of any float type.

        Returns:
            Float32 ``(B, K, *S)``.
        """
        ...

    def heads(self, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Turn the outputs of a network into the heads that are predicted.

        Args:
            outputs: raw outputs by head.

        Returns:
            ``{"main": (B, K, *S)}`` float32, and of ``further`` those that the network gives.
        """
        ...

    def outside(self, channels: int, scale: IntensityScale | None) -> tuple[float, ...]:
        """Values of the main head where the model saw nothing (``data.crop``).

        Args:
            channels: K.
            scale: normalisation of the input (images).

        Returns:
            One value per channel: background, or the intensity 0.
        """
        ...

    def decide(
        self, soft: np.ndarray, scale: IntensityScale | None = None, dtype: str = "uint8"
    ) -> np.ndarray:
        """Turn a float prediction into an answer, without post-processing.

        Args:
            soft: main head ``(K, *S)``.
            scale: normalisation of the input, to be inverted (images); None: not normalised.
            dtype: number type of the input (images).

        Returns:
            Labels ``(*S)`` or image ``(K, *S)``.
        """
        ...

    def suffix(self, given: str) -> str:
        """Choose the file format of an answer: that of the input where it can hold the answer.

        Args:
            given: suffix of the input file, such as ``.tif``.

        Returns:
            Suffix of the answer.
        """
        ...

    def names(self, case_id: str, given: str) -> list[str]:
        """List the files that an answer may be written to, the answer itself first.

        Args:
            case_id: of the case.
            given: suffix of the input file.

        Returns:
            Paths relative to the output folder.
        """
        ...


class Labels:
    """Classes: one channel is a foreground probability by a sigmoid, K > 1 channels a softmax.

    Arguments and results of the methods are those of :class:`Task`.
    """

    soft_type: type[np.floating] = np.float16
    further: tuple[str, ...] = ()
    companions: tuple[str, ...] = COMPANIONS
    default_metric = "dice"
    needed: tuple[str, ...] = ()
    decides = True

    def facts(self, config: Config) -> dict[str, Any]:
        """The number of classes."""
        return {"classes": config.data.classes}

    def bytes_per_voxel(self, channels: int, dtype: str) -> int:
        """Two bytes: labels and their visualisation."""
        return 2

    def channels(self, config: Config, image_channels: int) -> int:
        """One for two classes, else one for each class."""
        return 1 if config.data.classes == 2 else config.data.classes

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """Sigmoid of one channel, softmax of several."""
        logits = logits.float()
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)

    def heads(self, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The main head only."""
        return {"main": self.activate(outputs["main"])}

    def outside(self, channels: int, scale: IntensityScale | None) -> tuple[float, ...]:
        """Background: probability 0 of one channel, 1 of the first of several."""
        return (float(channels > 1), *(0.0,) * (channels - 1))

    def decide(
        self, soft: np.ndarray, scale: IntensityScale | None = None, dtype: str = "uint8"
    ) -> np.ndarray:
        """Cut one channel at 0.5 (``>=``), take the largest of several; uint8 ``(*S)``."""
        return ((soft[0] >= 0.5) if len(soft) == 1 else soft.argmax(0)).astype(np.uint8)

    def suffix(self, given: str) -> str:
        """Another format in place of what cannot be written, PNG of JPEG, which invents labels.

        Example:
            >>> Labels().suffix(".jpg"), Labels().suffix(".tif"), Labels().suffix(".dcm")
            ('.png', '.tif', '.nii.gz')
        """
        return ".png" if given in (".jpg", ".jpeg") else INSTEAD.get(given, given)

    def names(self, case_id: str, given: str) -> list[str]:
        """The label map, its visualisation and its overlay.

        Example:
            >>> Labels().names("case1", ".tif")
            ['case1.tif', 'case1_visualization.tif', 'case1_overlay.png']
        """
        ending = self.suffix(given)
        return [f"{case_id}{ending}", f"{case_id}_visualization{ending}", f"{case_id}_overlay.png"]


class Regions(Labels):
    """Unions of classes: one channel for each region, a probability of its own by a sigmoid.

    Arguments and results of the methods are those of :class:`Task`.
    """

    def facts(self, config: Config) -> dict[str, Any]:
        """The number of classes, and the regions with the label that is written for each."""
        regions, unions = config.data.regions or {}, config.data.unions or ()
        return {
            **super().facts(config),
            "regions": {n: list(v) for n, v in zip(regions, unions, strict=True)},
            "regions_class_order": list(config.data.regions_class_order or ()),
        }

    def channels(self, config: Config, image_channels: int) -> int:
        """One for each region."""
        return len(config.data.unions or ())

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """Sigmoid of each channel."""
        return logits.float().sigmoid()

    def outside(self, channels: int, scale: IntensityScale | None) -> tuple[float, ...]:
        """Probability 0 of every region."""
        return (0.0,) * channels

    def decide(
        self, soft: np.ndarray, scale: IntensityScale | None = None, dtype: str = "uint8"
    ) -> np.ndarray:
        """Refuse: the label of each region stands in a config, which ``decision`` reads.

        Raises:
            ValueError: always.
        """
        raise ValueError("regions are decided by the step 'regions' of post-processing")


class Image:
    """Intensities on the scale of the (normalised) target.

    ``decide`` returns to the input's scale and type, with rounding. A network with a head ``mask``
    also predicts where it changed something: a probability by a sigmoid, perhaps at a coarser
    resolution. Arguments and results of the methods are those of :class:`Task`.
    """

    soft_type: type[np.floating] = np.float32
    further: tuple[str, ...] = ("mask",)
    companions: tuple[str, ...] = ()
    default_metric = "psnr"
    needed: tuple[str, ...] = ("scale", "dtype")
    decides = False

    def facts(self, config: Config) -> dict[str, Any]:
        """Nothing."""
        return {}

    def bytes_per_voxel(self, channels: int, dtype: str) -> int:
        """Those of all channels in the input's number type."""
        return channels * np.dtype(dtype).itemsize

    def channels(self, config: Config, image_channels: int) -> int:
        """As many as the input has."""
        return image_channels

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """The values themselves, as float32."""
        return logits.float()

    def heads(self, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The main head and, where there is one, the probability ``mask`` resized to it."""
        from torch.nn import functional

        main = self.activate(outputs["main"])
        if "mask" not in outputs:
            return {"main": main}
        mask = outputs["mask"].float().sigmoid()
        if mask.shape[2:] != main.shape[2:]:
            mode = "bilinear" if mask.ndim == 4 else "trilinear"
            mask = functional.interpolate(mask, main.shape[2:], mode=mode, align_corners=False)
        return {"main": main, "mask": mask}

    def outside(self, channels: int, scale: IntensityScale | None) -> tuple[float, ...]:
        """The intensity 0 on the scale of training."""
        if scale is None:
            return (0.0,) * channels
        return tuple(float(v) for v in scale.apply(np.zeros((channels, 1), np.float32))[:, 0])

    def decide(
        self, soft: np.ndarray, scale: IntensityScale | None = None, dtype: str = "uint8"
    ) -> np.ndarray:
        """Invert the normalisation; integers are rounded and clipped to their type.

        Raises:
            ValueError: a value is NaN or infinite and the type is an integer.
        """
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
        """Another format in place of what cannot be written.

        Example:
            >>> Image().suffix(".jpg"), Image().suffix(".gif")
            ('.jpg', '.png')
        """
        return INSTEAD.get(given, given)

    def names(self, case_id: str, given: str) -> list[str]:
        """The image, and its mask of change as PNG or TIFF.

        Example:
            >>> Image().names("case1", ".jpg")
            ['case1.jpg', 'masks/case1.png', 'masks/case1.tif']
        """
        return [
            f"{case_id}{self.suffix(given)}",
            *(f"masks/{case_id}{kind}" for kind in (".png", ".tif")),
        ]


TASKS: dict[str, Task] = {"labels": Labels(), "regions": Regions(), "image": Image()}
"""The tasks by name; ``regions`` are the rules of task labels with ``data.regions``."""
