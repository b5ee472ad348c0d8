"""Inputs of the training of one fold, and how its batches come to the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.data.loaders import Loader
from pipeline.data.sampling import seed_of
from pipeline.losses import WeightedSum
from pipeline.metrics.names import key_names
from pipeline.networks import HeadedNet
from pipeline.records import ALL, METRICS_VERSION, FoldName, seed_number
from pipeline.runs import FoldFolder
from pipeline.training.distributed import DistributedContext

LAYERS = 0
"""Last element of the seed of a step's random layers, to which the rank is added.

Augmentation is seeded by (seed, fold, epoch, position).
"""


class TrainingError(Exception):
    """A fold cannot go on; the message names the cases and the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldJob:
    """Everything that the training of one fold needs.

    On all ranks the same but for ``context`` and the batches of the loaders.
    """

    config: Config
    fold: FoldName
    """Number of the fold; ``all``: every case is trained on, and nothing is validated."""
    folder: Path
    """Folder of the fold, ``RUN/fold_N`` or ``RUN/fold_all``."""
    device: str
    """``cpu`` or ``cuda``."""
    network: HeadedNet
    channels: tuple[int, int]
    """Channels of the network's input and of its main head."""
    losses: WeightedSum
    """The loss, a weighted sum of terms over heads."""
    train_loader: Loader
    """Batches of training patches."""
    val_loader: Loader | None
    """Batches of the fixed patches of held-out cases; None where no case is held out."""
    raise_if_stopped: Callable[[], None]
    """Raises when any rank was asked to stop; all ranks call it at the same points of their work.

    It raises a BaseException that is no Exception, so that nothing handles it as an error.
    """
    progress: Callable[[int, int, str], object]
    """Called as ``progress(done, total, text)`` with the steps of all epochs."""
    context: DistributedContext = field(default_factory=DistributedContext)
    """The ranks that train it."""
    version: int = METRICS_VERSION
    """Metrics version by which this fold validates."""
    spacings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Voxel spacings in mm by held-out case.

    Empty unless a metric of ``train.validate`` measures lengths and all files carry a unit.
    """
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    """What the training data looked like, for the header of model files."""

    @property
    def kept(self) -> str:
        """Kind of the weights that the fold keeps beside averaged ones: ``best`` or ``last``."""
        return kept_weights(self.config, self.fold)

    @property
    def class_names(self) -> dict[int, str]:
        """Names of classes or regions by their number in keys of metrics; empty without names."""
        names = self.trained_on.get("class_names")
        return key_names({"class_names": names, "regions": self.config.data.regions})

    @property
    def files(self) -> FoldFolder:
        """The fold's files."""
        return FoldFolder(self.folder)

    def images(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Move the images of a batch to the device, in the config's memory format.

        Args:
            batch: a batch of a loader.

        Returns:
            ``(B, C, *S)``.
        """
        images = batch["image"].to(self.device, non_blocking=True)
        if self.config.train.channels_last:
            images = images.to(memory_format=memory_format(images.ndim - 2))
        return images

    def targets(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Move the targets of a batch, and the maps that losses read, to the device.

        Args:
            batch: a batch of a loader.

        Returns:
            Tensors ``(B, C, *S)`` by name.
        """
        names = dict.fromkeys((*self.config.kinds, *self.losses.maps.values()))
        return {name: batch[name].to(self.device, non_blocking=True) for name in names}

    def autocast(self) -> torch.autocast:
        """Autocast to the config's precision, for a forward pass.

        Returns:
            A context manager; without effect for full precision, and for fp16 on the CPU.
        """
        amp = self.config.train.amp
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp, torch.bfloat16)
        enabled = amp == "bf16" or (amp == "fp16" and self.device == "cuda")
        return torch.autocast(self.device, dtype, enabled=enabled)

    def seed_layers(self, epoch: int, step: int) -> None:
        """Seed dropout and other random layers for one step of this rank.

        Args:
            epoch: counted from 0.
            step: number of the batch in its epoch, counted from 0.
        """
        fold = seed_number(self.fold)
        torch.manual_seed(seed_of(self.config.seed, fold, epoch, step, LAYERS + self.context.rank))


def kept_weights(config: Config, fold: FoldName) -> str:
    """Kind of the weights that a fold keeps beside averaged ones.

    Args:
        config: its ``train.keep``.
        fold: number of the fold, or ``all``, which has no best epoch.

    Returns:
        ``best`` or ``last``.
    """
    return "last" if fold == ALL else config.train.keep


def memory_format(dims: int) -> torch.memory_format:
    """The channels-last memory format.

    Args:
        dims: spatial axes, 2 or 3.

    Returns:
        torch's memory format.
    """
    return torch.channels_last_3d if dims == 3 else torch.channels_last
