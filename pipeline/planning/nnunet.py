"""nnU-Net's plans: which configurations there are for a data set, and why each value is as it is.

Source: Isensee et al., Nature Methods 18:203, 2021; Isensee et al., MICCAI 2024 (ResEnc presets);
rules as of nnU-Net 2.8.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import nearest
from pipeline.planning import reasons
from pipeline.planning.facts import (
    NORMALISATIONS,
    Facts,
    Normalisation,
    normalisation,
    target_spacing,
)
from pipeline.planning.presets import PRESETS, Preset, Size
from pipeline.planning.topology import Fit, PlanError, Spacing, fit

__all__ = ["Configuration", "Facts", "NnunetPlan", "PlanError", "plan"]

MASKED_BELOW = 3 / 4
"""Median share of the images that is left after cropping below which z-scores ignore the rest."""

LOW_RESOLUTION_BELOW = 0.25
"""Share of the median image in a patch below which a low resolution is planned."""

COARSER = 1.03
"""Factor of a step towards a low resolution."""

LEAST_GAIN = 2
"""Voxels of the median image over those at a low resolution that make it worth having."""

PICTURE_DEPTH = 999
"""Spacing of a picture's third axis, which nnU-Net adds, over its largest other spacing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One network with its patch, batch and spacing. Axes are those of the plan."""

    spacing: Spacing
    median_shape: tuple[float, ...]
    """Median shape of the cases at ``spacing``; a half where two cases share the middle."""
    patch: Size
    batch: int
    batch_dice: bool
    """Whether the Dice loss takes a batch for one image."""
    network: str
    """Entry of NETWORKS."""
    strides: tuple[Size, ...]
    kernels: tuple[Size, ...]
    widths: Size
    blocks: Size
    """Convolutions (``plain_unet``) or residual blocks of each level of the encoder."""
    decoder: Size
    """Convolutions of each level of the decoder, coarsest first."""
    elements: int
    """Elements of all feature maps of one sample, nnU-Net's estimate of memory."""
    reasons: Mapping[str, str]
    """The rule that fired, with its numbers, by value: ``spacing``, ``patch``, ``batch``,
    ``strides``, ``kernels``, ``batch_dice``, ``normalisation``."""

    @property
    def options(self) -> dict[str, object]:
        """Options of the network, as a config writes them."""
        counts = "blocks" if self.network == "resenc_unet" else "convs"
        return {
            "channels": list(self.widths),
            "kernel": [list(row) for row in self.kernels],
            "strides": [list(row) for row in self.strides],
            counts: list(self.blocks),
            "decoder_convs": list(self.decoder),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NnunetPlan:
    """What nnU-Net would train for a data set."""

    preset: str
    transpose_forward: Size
    """Axis of the arrays that each axis of the plan is; the coarsest comes first."""
    spacing: Spacing
    """Target spacing; axes are those of the plan. For pictures without the axis that is added."""
    median_shape: tuple[float, ...]
    """Median shape at ``spacing``."""
    shapes: tuple[Size, ...]
    """Of each case at ``spacing``."""
    configurations: Mapping[str, Configuration]
    """``2d``, ``3d_fullres`` and ``3d_lowres``, those that exist; at least one."""
    dropped: Mapping[str, str]
    """Why a configuration does not exist."""
    cascade: bool
    """Whether a second ``3d_fullres`` is trained on the answers of ``3d_lowres``."""
    normalisation: tuple[Normalisation, ...]
    """Of each channel."""
    masked: tuple[bool, ...]
    """Whether the statistics of each channel leave out what is 0 in all channels."""
    unknown: tuple[str, ...]
    """Names of channels that mean nothing to nnU-Net, which takes z-score without a word."""
    reasons: Mapping[str, str]
    """The rule that fired, by value: ``transpose``, ``spacing``, ``normalisation``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _World:
    """Facts on the axes of the plan; of pictures the axis that is added comes first."""

    order: Size
    spacing: Spacing
    shapes: np.ndarray
    """``(cases, axes)`` at ``spacing``."""
    median: tuple[float, ...]
    cases: int
    outputs: int
    preset: Preset
    gigabytes: float | None
    unit: str
    picture: bool
    why: str
    """Reason of the spacing."""


def plan(facts: Facts, preset: str = "plain", gigabytes: float | None = None) -> NnunetPlan:
    """Plan a data set as nnU-Net does.

    Args:
        facts: shapes, spacings, channels and classes.
        preset: entry of PRESETS.
        gigabytes: memory of the device to plan for. None: that of the preset.

    Returns:
        Configurations with reasons.

    Raises:
        PlanError: for an unknown preset, or if there is no configuration.

    Example:
        >>> facts = Facts(
        ...     shapes=[(36, 50, 35)], spacings=[(1, 1, 1)], channels=["MRI"], classes=3,
        ...     training=260,
        ... )
        >>> found = plan(facts)
        >>> full = found.configurations["3d_fullres"]
        >>> full.patch, full.batch, found.unknown
        ((40, 56, 40), 9, ('MRI',))
        >>> full.reasons["batch"]
        '58 would fit the memory, 5 % of the voxels of all cases allow 9'
        >>> found.dropped["3d_lowres"]
        'The patch holds 142 % of the median image, at least 25 %.'
    """
    if preset not in PRESETS:
        raise PlanError(
            f"preset is {preset!r}, must be one of {', '.join(PRESETS)}. {nearest(preset, PRESETS)}"
        )
    if gigabytes is not None and not 0 < gigabytes < math.inf:
        raise PlanError(f"gigabytes is {gigabytes}, must be above 0, e.g. 8.")
    world = _world(facts, PRESETS[preset], gigabytes)
    schemes: tuple[Normalisation, ...] = tuple(normalisation(name) for name in facts.channels)
    unknown = tuple(n for n in facts.channels if n.casefold() not in NORMALISATIONS)
    mask = facts.left < MASKED_BELOW
    masked = tuple(mask and scheme == "zscore" for scheme in schemes)
    why = reasons.normalisation(facts.channels, schemes, unknown, (facts.left, MASKED_BELOW))
    found, dropped = _configurations(world, why)
    first = 1 if world.picture else 0
    return NnunetPlan(
        preset=preset,
        transpose_forward=(0, 1) if world.picture else world.order,
        spacing=world.spacing[first:],
        median_shape=world.median[first:],
        shapes=tuple(tuple(row[first:]) for row in world.shapes.tolist()),
        configurations=found,
        dropped=dropped,
        cascade="3d_lowres" in found,
        normalisation=schemes,
        masked=masked,
        unknown=unknown,
        reasons={
            "transpose": reasons.transpose(world.picture, world.order, world.spacing),
            "spacing": world.why,
            "normalisation": why,
        },
    )


def _world(facts: Facts, preset: Preset, gigabytes: float | None) -> _World:
    """Choose spacing and order of the axes."""
    shapes, spacings = np.array(facts.shapes), np.array(facts.spacings, float)
    picture = shapes.shape[1] == 2
    if picture:
        depth = PICTURE_DEPTH * spacings.max(axis=1, keepdims=True)
        spacings = np.concatenate([depth, spacings], axis=1)
        shapes = np.concatenate([np.ones_like(shapes[:, :1]), shapes], axis=1)
    target, why = target_spacing(shapes, spacings, facts.unit)
    coarsest = int(np.argmax(target))
    order = (coarsest, *(axis for axis in range(3) if axis != coarsest))
    resampled = np.rint(spacings / target * shapes).astype(int)
    return _World(
        order=order,
        spacing=tuple(target[list(order)].tolist()),
        shapes=resampled[:, order],
        median=tuple(np.median(resampled, axis=0)[list(order)].tolist()),
        cases=facts.cases,
        outputs=facts.classes + facts.ignore,
        preset=preset,
        gigabytes=gigabytes,
        unit=facts.unit,
        picture=picture,
        why="median; pictures have no third axis" if picture else why,
    )


def _configurations(world: _World, why: str) -> tuple[dict[str, Configuration], dict[str, str]]:
    """Configurations, and reasons of those that do not exist."""
    found: dict[str, Configuration] = {}
    dropped: dict[str, str] = {}
    voxels = math.prod(world.median) * world.cases
    size = (world.spacing[1:], world.median[1:])
    texts = {"normalisation": why, "spacing": reasons.flat(world.why, world.picture)}
    try:
        flat = _fit(world, *size, voxels)
        found["2d"] = _made(world, size, flat, True, texts | {"batch_dice": "yes, always in 2d"})
    except PlanError as error:
        dropped["2d"] = str(error)
    if world.median[0] == 1:
        text = "Pictures have two axes." if world.picture else "The median image is one slice."
        dropped |= {"3d_fullres": text, "3d_lowres": text}
    else:
        try:
            full = _fit(world, world.spacing, world.median, voxels)
            _add_volumes(world, full, why, found, dropped)
        except PlanError as error:
            dropped |= {"3d_fullres": str(error), "3d_lowres": "There is no 3d_fullres."}
    if not found:
        texts = [f"{name}: {text}" for name, text in dropped.items() if name != "3d_lowres"]
        raise PlanError("nnU-Net's rules give no configuration. " + " ".join(texts))
    return found, dropped


def _add_volumes(
    world: _World,
    full: Fit,
    why: str,
    found: dict[str, Configuration],
    dropped: dict[str, str],
) -> None:
    """Add ``3d_fullres`` and, if worthwhile, ``3d_lowres``."""
    low, text = _low_resolution(world, full)
    pooled = low is not None
    size = (world.spacing, world.median)
    texts = {"normalisation": why, "spacing": world.why, "batch_dice": reasons.batch_dice(pooled)}
    found["3d_fullres"] = _made(world, size, full, pooled, texts)
    if low is None:
        dropped["3d_lowres"] = text
    else:
        texts |= {"spacing": text, "batch_dice": "no, never at low resolution"}
        found["3d_lowres"] = _made(world, low[0], low[1], False, texts)


_Size = tuple[Spacing, tuple[float, ...]]
"""A spacing and the median shape at it."""


def _fit(world: _World, spacing: Spacing, median: Sequence[float], voxels: float) -> Fit:
    return fit(spacing, median, voxels, world.outputs, world.preset, world.gigabytes)


def _low_resolution(world: _World, full: Fit) -> tuple[tuple[_Size, Fit] | None, str]:
    """Make the spacing coarser until a patch holds enough of the image; None if not worthwhile.

    The reason comes with it: of the spacing, or of there being no low resolution.
    """
    all_voxels = math.prod(world.median)
    voxels, low, steps = all_voxels, full, 0
    spacing, median = world.spacing, world.median
    while math.prod(low.topology.patch) / voxels < LOW_RESOLUTION_BELOW:
        spacing, steps = _coarser(spacing), steps + 1
        exact = [f / s * n for f, s, n in zip(world.spacing, spacing, world.median, strict=True)]
        median, voxels = tuple(float(round(n)) for n in exact), math.prod(exact)
        try:
            low = _fit(world, spacing, median, voxels * world.cases)
        except PlanError as error:
            return None, str(error)
    held = math.prod(full.topology.patch) / all_voxels
    if not steps:
        return None, reasons.patch_is_enough(held, LOW_RESOLUTION_BELOW)
    gain = all_voxels / voxels
    if gain < LEAST_GAIN:
        return None, reasons.little_gain(gain, LEAST_GAIN)
    text = reasons.low_resolution((held, LOW_RESOLUTION_BELOW), (COARSER, steps), gain)
    return ((spacing, median), low), text


def _coarser(spacing: Spacing) -> Spacing:
    """A step: of the axes that are twice as fine as the coarsest one; of all if there are none."""
    coarsest = max(spacing)
    fine = [coarsest / s > 2 for s in spacing]
    return tuple(
        s * COARSER if is_fine or not any(fine) else s
        for s, is_fine in zip(spacing, fine, strict=True)
    )


def _made(
    world: _World, size: _Size, found: Fit, batch_dice: bool, texts: Mapping[str, str]
) -> Configuration:
    preset, made = world.preset, found.topology
    levels = len(made.strides)
    return Configuration(
        spacing=size[0],
        median_shape=size[1],
        patch=made.patch,
        batch=found.batch,
        batch_dice=batch_dice,
        network=preset.network,
        strides=made.strides,
        kernels=made.kernels,
        widths=made.widths,
        blocks=preset.counts(levels),
        decoder=(preset.decoder,) * (levels - 1),
        elements=found.elements,
        reasons={**texts, **reasons.of_fit(found, preset, size[1])},
    )
