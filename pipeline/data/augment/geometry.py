"""Augmentations that move voxels: the image and every target by the same field."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from monai.transforms import (
    OneOf,
    RandAxisFlipd,
    RandFlipd,
    RandRotate90d,
    Transform,
)

from pipeline.config import ConfigError
from pipeline.data.augment.keys import Keys, two_numbers
from pipeline.data.augment.moves import RandElasticd, RandTypedAffined
from pipeline.data.spatial import RandSpatiald, rules


def flip(keys: Keys, p: float = 0.5, axes: str | Sequence[int] = "random") -> list[Transform]:
    """Flip axes.

    ``axes: random``: one axis drawn at random; ``each``: every axis on its own; or a list of axes.
    """
    if axes == "random":
        return [RandAxisFlipd(keys.every, prob=p)]
    if isinstance(axes, str) and axes != "each":
        raise ConfigError(
            f"augment flip: axes is {axes!r}, must be random, each, or a list of axes."
        )
    chosen = range(len(keys.size)) if isinstance(axes, str) else axes
    flips: list[Transform] = [RandFlipd(keys.every, prob=p, spatial_axis=axis) for axis in chosen]
    return flips


def rotate90(
    keys: Keys, p: float = 0.5, planes: Sequence[Sequence[int]] | None = None
) -> list[Transform]:
    """Rotate by 90, 180 or 270 degrees in a plane drawn at random.

    Among ``planes`` (default: all), those whose two sides are equally long.
    """
    planes = (
        [tuple(x) for x in planes]
        if planes is not None
        else list(itertools.combinations(range(len(keys.size)), 2))
    )
    square = [(a, b) for a, b in planes if keys.size[a] == keys.size[b]]
    if not square:
        raise ConfigError(
            f"augment rotate90: patch size {list(keys.size)} has no plane with equal sides. Make"
            " two sides equal or remove rotate90."
        )
    return [
        OneOf([RandRotate90d(keys.every, prob=p, max_k=3, spatial_axes=plane) for plane in square])
    ]


def affine(
    keys: Keys,
    p: float = 0.5,
    degrees: float = 15.0,
    scale: float = 0.1,
    translate: float = 0.0,
    shear: float = 0.0,
) -> list[Transform]:
    """Rotation about every axis, zoom of every axis, shift and shear, each drawn from ``[-x, x]``.

    ``translate`` in voxels; ``shear`` as the tangent of the angle. The patch is mirrored at its
    border. Slow on CPU (0.4 s for a pair of 128³).
    """
    dims = len(keys.size)
    # A range of zero would take numbers from the shared state, and thereby change what a seed gives
    # in configs without it.
    moves = {
        "translate_range": (translate,) * dims if translate else None,
        "shear_range": (shear,) * (dims * (dims - 1)) if shear else None,
    }
    return [_resampling(keys, p, degrees, scale_range=(scale,) * dims, **moves)]


def rotate(keys: Keys, p: float = 0.5, degrees: float = 180.0) -> list[Transform]:
    """Rotation about every axis by angles drawn from ``[-degrees, degrees]``, without zoom.

    Widths stay. The patch is mirrored at its border.
    """
    return [_resampling(keys, p, degrees)]


def _resampling(keys: Keys, p: float, degrees: float, **ranges: Any) -> Transform:
    """RandTypedAffined over all entries, mirrored at the border."""
    angles = (degrees * math.pi / 180,) * (3 if len(keys.size) == 3 else 1)
    return RandTypedAffined(
        keys.every,
        prob=p,
        rotate_range=angles,
        mode=keys.modes,
        padding_mode="reflection",
        **ranges,
    )


def elastic(
    keys: Keys, p: float = 0.5, spacing: float = 32.0, magnitude: float = 8.0
) -> list[Transform]:
    """Smooth deformation that moves no voxel by more than ``magnitude`` voxels along an axis.

    In 2D a quarter of it is typical. ``spacing``: voxels between the points that are moved.
    Magnitudes at which the patch could fold over itself are refused: inside the patch nothing is
    torn or doubled, though a thing one voxel thin may break, as in any resampling. The patch is
    mirrored at its border.
    """
    dims = len(keys.size)
    if not spacing > 0:
        raise ConfigError(
            f"augment elastic: spacing is {spacing} voxels, must be above 0, e.g. 32."
        )
    most = UNFOLDED[dims] * spacing
    if not 0 <= magnitude <= most:
        raise ConfigError(
            f"augment elastic: magnitude is {magnitude}, must be from 0 to {most:g}"
            f" ({UNFOLDED[dims]} of spacing {spacing:g}), above which the patch can fold over"
            " itself. Lower magnitude or raise spacing."
        )
    return [RandElasticd(keys, p, spacing, magnitude)]


def spatial(
    keys: Keys,
    p_rotation: float = 0.2,
    p_scaling: float = 0.2,
    degrees: float | None = None,
    scale: tuple[float, float] = (0.7, 1.4),
    dummy_2d: bool | None = None,
) -> list[Transform]:
    """Rotation and scaling of nnU-Net, drawn before a patch is read.

    It has to be the first entry: what comes into view is read from the volume, and where nothing is
    drawn the patch is cut as it is. Rotation about each axis by angles of at most ``degrees``;
    ``null``: 30 in 3D, 180 in 2D, or 15 where a patch is more than 1.5 times as long as wide. One
    factor of all axes is drawn from ``scale``; above 1 things become smaller. ``dummy_2d``: of
    volumes, only the planes across the shortest axis of the patch are rotated (by up to 180
    degrees) and scaled; ``null``: where the longest axis is more than three times as long. Labels
    take the largest interpolated share.

    Source:
        Isensee et al., Nature Methods 18:203, 2021.
    """
    low, high = two_numbers("spatial", "scale", scale)
    if not 0 < low <= high <= FARTHEST:
        raise ConfigError(
            f"augment spatial: scale is [{low}, {high}], must satisfy 0 < low <= high <="
            f" {FARTHEST}, e.g. [0.7, 1.4]."
        )
    for name, p in (("p_rotation", p_rotation), ("p_scaling", p_scaling)):
        if not 0 <= p <= 1:
            raise ConfigError(
                f"augment spatial: {name} is {p!r}, must be a probability from 0 to 1."
            )
    if degrees is not None and not 0 <= degrees <= 180:
        raise ConfigError(f"augment spatial: degrees is {degrees}, must be from 0 to 180, or null.")
    if dummy_2d and len(keys.size) == 2:
        raise ConfigError("augment spatial: dummy_2d is for volumes (data.dims: 3). Leave it out.")
    angles, fixed = rules(keys.size, degrees, dummy_2d)
    modes = dict(zip(keys.every, keys.modes, strict=True))
    return [RandSpatiald(modes, keys.size, (p_rotation, p_scaling), angles, (low, high), fixed)]


FARTHEST = 4
"""Largest factor of ``spatial``: a patch is read from a box that is so many times as long."""

UNFOLDED = {2: 0.48, 3: 0.40}
"""Largest shift of control points, in units of their spacing, at which no cubic B-spline
deformation folds (Choi & Lee, Graph. Models 62:411, 2000), rounded down.
"""
