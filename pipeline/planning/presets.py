"""PRESETS: the numbers in which nnU-Net's planners differ, and those that all share.

Source: Isensee et al., Nature Methods 18:203, 2021; Isensee et al., MICCAI 2024 (ResEnc presets);
values as of nnU-Net 2.8.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.registry import Registry

Size = tuple[int, ...]

SMALLEST_EDGE = 4
"""Voxels of the smallest edge at the bottom of a network."""

BASE_WIDTH = 32
"""Channels of the finest level; doubled from level to level."""

WIDEST: Mapping[int, int] = {2: 512, 3: 320}
"""Most channels of a level, by number of axes."""

LARGEST_EDGE: Mapping[int, int] = {2: 2048, 3: 256}
"""Edge of the square or cube that has as many voxels as the patch that planning starts with."""

REFERENCE_BATCH: Mapping[int, int] = {2: 12, 3: 2}
"""Samples in a batch for which a preset's reference stands, by number of axes."""

LEAST_BATCH = 2
"""Samples in the smallest batch, whether they fit or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One of nnU-Net's planners.

    Example:
        >>> PRESETS["resenc-m"].counts(6), PRESETS["plain"].counts(3)
        ((1, 3, 4, 6, 6, 6), (2, 2, 2))
    """

    planner: str
    """nnU-Net's name of it."""
    network: str
    """Entry of NETWORKS."""
    residual: bool
    """Whether the encoder has a stem and residual blocks; else convolutions alone."""
    blocks: Size
    """Convolutions, or residual blocks, of each level of the encoder; the last number goes on."""
    decoder: int
    """Convolutions of each level of the decoder."""
    reference: Mapping[int, float]
    """Elements of all feature maps of one sample that fit ``gigabytes``, by number of axes, where a
    batch is ``REFERENCE_BATCH``."""
    gigabytes: float
    """Memory of the device that the reference is for."""
    fits: Mapping[int, int]
    """Samples that must fit before the patch stops shrinking, by number of axes."""
    share: float
    """Largest share of all voxels of the data set in one batch."""

    def counts(self, levels: int) -> Size:
        """Repeat ``blocks`` for a network.

        Args:
            levels: levels of the encoder.

        Returns:
            Convolutions or residual blocks of each level, finest first.
        """
        return (*self.blocks, *[self.blocks[-1]] * levels)[:levels]

    def budget(self, dims: int, gigabytes: float | None = None) -> float:
        """Scale the reference, in proportion, to another device.

        Args:
            dims: space axes, 2 or 3.
            gigabytes: memory of the device. None: that of the preset.

        Returns:
            Elements, as in ``reference``.

        Example:
            >>> PRESETS["plain"].budget(3, 16)
            1120000000.0
        """
        scale = 1.0 if gigabytes is None else gigabytes / self.gigabytes
        return self.reference[dims] * scale


def _residual(planner: str, reference: Mapping[int, float], gigabytes: float) -> Preset:
    """One of the three presets of nnU-Net Revisited: they differ in what they let it cost."""
    return Preset(
        planner=planner,
        network="resenc_unet",
        residual=True,
        blocks=(1, 3, 4, 6),
        decoder=1,
        reference=reference,
        gigabytes=gigabytes,
        fits=REFERENCE_BATCH,
        share=1.0,
    )


PRESETS: Registry[Preset] = Registry(
    "preset",
    {
        "plain": Preset(
            planner="ExperimentPlanner",
            network="plain_unet",
            residual=False,
            blocks=(2,),
            decoder=2,
            reference={2: 8.5e7, 3: 5.6e8},
            gigabytes=8,
            fits={2: 2, 3: 2},
            share=0.05,
        ),
        "resenc-m": _residual("nnUNetPlannerResEncM", {2: 1.35e8, 3: 6.8e8}, 8),
        "resenc-l": _residual("nnUNetPlannerResEncL", {2: 3.8e8, 3: 2.1e9}, 24),
        "resenc-xl": _residual("nnUNetPlannerResEncXL", {2: 5.6e8, 3: 3.6e9}, 40),
    },
)
"""Sets of rules by name, from the smallest to the largest."""
