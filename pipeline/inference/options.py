"""Which networks predict, and how: the options that commands and functions share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import postprocess
from pipeline.config import Config, Predict, plain, structure
from pipeline.records import FoldName
from pipeline.runs import FoldFolder, RunFolder, fold_names
from pipeline.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which networks predict, and how. None everywhere means: as the model's config says.

    Args:
        checkpoint: run folder (all its folds), fold folder or model file.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``; several separated by commas share the
            tiles.
        backend: what computes the networks: ``torch``, ``onnx``, ``openvino``.
        patch_size: voxels along each axis of a tile; one number for all axes.
        whole: predict each image in one piece, whatever its size.
        overlap: voxels that neighbouring tiles share.
        halo: voxels at inner tile faces that are not used; ``auto``: the receptive radius of the
            network.
        norms: statistics of group and instance norm: of each ``tile``, or of the whole image
            (``frozen``, ``exact``).
        batch: tiles in a forward pass.
        threshold: probability from which a voxel is foreground.
        min_component_size: voxels below which a component is removed; 0 keeps all.
        max_hole_size: voxels up to which a hole is filled; 0: none.
        kernel_size: edge of the closing kernel in voxels; 0: none.
        separate_instances: label touching objects separately.
        tta: average over all flips.
        scales: average over tiles resized by these factors.
        model: which weights of a fold: ``best``, ``swa``, ``last``, ``auto``.
        allow_missing_folds: accept a run whose folds are not all complete.
        folds: which folds of a run; ``all``: the one model of all cases; None: every finished fold.

    Example:
        >>> ModelOptions(checkpoint="runs/demo", scales=1.25).scales
        (1.25,)
    """

    checkpoint: Path | str | RunFolder | FoldFolder
    device: str = "auto"
    backend: str = "torch"
    patch_size: Sequence[int] | int | None = None
    whole: bool = False
    overlap: int | None = None
    halo: int | Literal["auto"] | None = None
    norms: str | None = None
    batch: int | None = None
    threshold: float | None = None
    min_component_size: int | None = None
    max_hole_size: int | None = None
    kernel_size: int | None = None
    separate_instances: bool = False
    tta: bool | None = None
    scales: Sequence[float] | None = None
    model: str | None = None
    allow_missing_folds: bool = False
    folds: Sequence[FoldName] | FoldName | None = None

    def __post_init__(self) -> None:
        given = self.checkpoint
        object.__setattr__(
            self,
            "checkpoint",
            given.path if isinstance(given, RunFolder | FoldFolder) else Path(given),
        )
        object.__setattr__(self, "folds", fold_names(self.folds))
        if isinstance(self.scales, int | float):
            object.__setattr__(self, "scales", (float(self.scales),))

    def over(self, config: Config) -> Config:
        """Apply these options to the config of a model.

        Args:
            config: the model's config.

        Returns:
            A config with the options in ``predict`` and ``postprocess``.

        Raises:
            UserError: an option is not valid for this config.
        """
        changes: dict[str, Any] = {}
        if self.patch_size is not None:
            size = (
                (self.patch_size,) if isinstance(self.patch_size, int) else tuple(self.patch_size)
            )
            changes["patch"] = size * (config.data.dims if len(size) == 1 else 1)
        if self.whole:
            changes["patch"] = "whole"
        if self.scales is not None:
            changes["scales"] = tuple(self.scales)
        for name in ("overlap", "batch", "halo", "norms"):
            if getattr(self, name) not in (None, "auto"):
                changes[name] = getattr(self, name)
        if self.tta is not None:
            changes["flips"] = self.tta
        steps = config.postprocess
        if TASKS[config.rules].decides:
            steps = postprocess.adjust(
                steps,
                threshold=self.threshold,
                min_component_size=self.min_component_size,
                max_hole_size=self.max_hole_size,
                kernel_size=self.kernel_size,
                separate_instances=self.separate_instances,
            )
        predict = (
            structure({**plain(config.predict), **changes}, Predict, "how to predict")
            if changes
            else config.predict
        )
        return dataclasses.replace(config, predict=predict, postprocess=steps)
