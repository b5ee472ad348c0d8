"""Augmentations, MONAI's and own ones, and the chain from a cached case to a training sample.

Geometry moves the image and every target by the same field: images, distances and soft masks are
interpolated linearly, labels take the nearest voxel and keep their values, the ignored one
included. Intensities change in the image alone, for a label does not depend on them; where the
target is an image, ``both: true`` of an entry gives it the same change as the input. What each
entry does to colours stands in its docstring; ``colour`` is the only one that means to change them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.transforms import (
    Compose,
    ConcatItemsd,
    MapTransform,
    OneOf,
    RandAdjustContrastd,
    RandAffined,
    RandAxisFlipd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandomizableTransform,
    RandRotate90d,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
    Resample,
    Transform,
)
from monai.transforms.utils import create_grid
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_numpy
from scipy.interpolate import BSpline
from skimage.exposure import equalize_adapthist

from pipeline.config import Config, ConfigError, bind
from pipeline.data import channelwise, derived, intensity_changes
from pipeline.data.cache import CachedCase
from pipeline.data.channelwise import RandChannelsd
from pipeline.data.derived import MapRequest
from pipeline.data.locations import LOCATIONS
from pipeline.data.sampling import RandBalancedCropd
from pipeline.data.spatial import RandSpatiald, rules
from pipeline.registry import Registry


@contextlib.contextmanager
def plain_tensors() -> Iterator[None]:
    """Let MONAI's transforms give plain tensors inside the context.

    They cost a seventh of a MetaTensor in every small operation, and nothing here reads metadata.
    The switch is the whole process's, so it is put back for a user's own MONAI code.

    Yields:
        Nothing.
    """
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Entries of a sample that transforms change."""

    image: tuple[str, ...]
    """The image alone, for intensities."""
    every: tuple[str, ...]
    """Image, targets and maps, for geometry."""
    modes: tuple[str, ...]
    """Interpolation of each entry of ``every``: ``bilinear`` or ``nearest``."""
    size: tuple[int, ...]
    """``(*S)`` of the patch in voxels."""
    pair: tuple[str, ...] = ()
    """The image and the targets that are images, for entries with ``both``."""


JOINED = "image and target"
"""Entry of a sample in which image and target are joined along the channels while an augmentation
of ``both`` runs.
"""


def _intensity_keys(keys: Keys, entry: str, both: bool) -> tuple[str, ...]:
    """Entries that an augmentation of intensities changes: with ``both`` the image targets, too."""
    if not isinstance(both, bool):
        raise ConfigError(f"augment {entry}: both is {both!r}, must be true or false.")
    if both and len(keys.pair) < 2:
        raise ConfigError(
            f"augment {entry}: both is true, but no target is an image. Leave it out."
        )
    return keys.pair if both else keys.image


def _same_for_pair(
    keys: Keys, entry: str, both: bool, make: Callable[[tuple[str, ...]], Transform]
) -> list[Transform]:
    """``make(image)``, or with ``both`` one change of image and target.

    Both then get the same random numbers, and statistics of the two together.
    """
    chosen = _intensity_keys(keys, entry, both)
    return (
        [ConcatItemsd(chosen, JOINED), make((JOINED,)), SplitJoinedd(chosen)]
        if both
        else [make(chosen)]
    )


def _flip(keys: Keys, p: float = 0.5, axes: str | Sequence[int] = "random") -> list[Transform]:
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


def _rotate90(
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


def _noise(keys: Keys, p: float = 0.5, std: float | tuple[float, float] = 0.01) -> list[Transform]:
    """Gaussian noise of exactly this standard deviation, drawn for each voxel and channel.

    With ``std: [low, high]`` it is drawn for each sample, the same for all channels. In RGB the
    noise is coloured grain.
    """
    if not isinstance(std, int | float):
        low, high = _two_numbers("noise", "std", std)
        if not 0 <= low <= high:
            raise ConfigError(
                f"augment noise: std is [{low}, {high}], must be one number, or [low, high] with"
                " 0 <= low <= high, e.g. [0, 0.1]."
            )
        return [RandChannelsd(keys.image, p, intensity_changes.Noise(low, high), None)]
    return [RandGaussianNoised(keys.image, prob=p, mean=0.0, std=std, sample_std=False)]


def _brightness(
    keys: Keys,
    p: float = 0.5,
    range: tuple[float, float] = (0.8, 1.2),  # noqa: A002
    both: bool = False,
    balanced: bool = False,
    per_channel: bool | float = False,
) -> list[Transform]:
    """Multiply by a factor drawn from ``range``, one for all channels: hues stay.

    ``balanced``: half of the factors lie below 1 and half above, however long the two parts of
    ``range`` are. ``per_channel``: an own factor for each channel; a number is the probability of
    each channel.
    """
    low, high = _two_numbers("brightness", "range", range)
    share = channelwise.share("brightness", per_channel, both)
    channelwise.check_bool("brightness", balanced=balanced)
    if balanced or share is not None:
        factor = channelwise.factor("brightness", (low, high), balanced)
        change = intensity_changes.Brightness(factor)
        return _same_for_pair(
            keys, "brightness", both, lambda k: RandChannelsd(k, p, change, share)
        )
    return _same_for_pair(
        keys,
        "brightness",
        both,
        lambda k: RandScaleIntensityd(k, prob=p, factors=(low - 1, high - 1)),
    )


def _brightness_additive(
    keys: Keys,
    p: float = 0.5,
    mean: float = 0.0,
    std: float = 0.5,
    both: bool = False,
    per_channel: bool | float = False,
) -> list[Transform]:
    """Add a constant drawn from a normal distribution, one for all channels: hues stay.

    ``per_channel``: an own constant for each channel; a number is the probability of each channel.
    """
    if not (math.isfinite(mean) and math.isfinite(std) and std >= 0):
        raise ConfigError(
            f"augment brightness_additive: mean={mean}, std={std}: both must be finite, and std not"
            " negative, e.g. mean: 0, std: 0.5."
        )
    share = channelwise.share("brightness_additive", per_channel, both)
    change = intensity_changes.Offset(mean, std)
    return _same_for_pair(
        keys, "brightness_additive", both, lambda k: RandChannelsd(k, p, change, share)
    )


def _contrast(
    keys: Keys,
    p: float = 0.5,
    range: tuple[float, float] = (0.8, 1.2),  # noqa: A002
    both: bool = False,
    balanced: bool = False,
    per_channel: bool | float = False,
    preserve_range: bool = False,
) -> list[Transform]:
    """Spread about the patch's mean over all channels by a factor drawn from ``range``.

    One factor for all channels: hues stay. ``balanced``: half of the factors lie below 1 and half
    above. ``per_channel``: an own factor for each channel, about its own mean; a number is the
    probability of each channel. ``preserve_range``: the result is clipped to the minimum and
    maximum from before, of each channel or of all together.
    """
    low, high = _two_numbers("contrast", "range", range)
    share = channelwise.share("contrast", per_channel, both)
    channelwise.check_bool("contrast", balanced=balanced, preserve_range=preserve_range)
    if balanced or preserve_range or share is not None:
        factor = channelwise.factor("contrast", (low, high), balanced)
        change = intensity_changes.Contrast(factor, preserve_range)
        return _same_for_pair(keys, "contrast", both, lambda k: RandChannelsd(k, p, change, share))
    factors = low - 1, high - 1
    return _same_for_pair(
        keys,
        "contrast",
        both,
        lambda k: RandScaleIntensityFixedMeand(k, prob=p, factors=factors, preserve_range=False),
    )


def _shift(keys: Keys, p: float = 0.5, offset: float = 0.1, both: bool = False) -> list[Transform]:
    """Add a constant drawn from ``[-offset, offset]``, one for all channels: hues stay."""
    return _same_for_pair(
        keys, "shift", both, lambda k: RandShiftIntensityd(k, prob=p, offsets=offset)
    )


def _gamma(
    keys: Keys,
    p: float = 0.5,
    range: tuple[float, float] = (0.7, 1.5),  # noqa: A002
    both: bool = False,
    balanced: bool = False,
    per_channel: bool | float = False,
    invert: bool = False,
    retain_stats: bool = False,
) -> list[Transform]:
    """Power of the intensity between the patch's minimum and maximum, which stay.

    The exponent is drawn from ``range``. Minimum, maximum and exponent are those of all channels
    together: one rising curve, so grey stays grey and the order of a voxel's channels is kept. Hues
    move a little between them, as in any gamma of a photograph.

    ``balanced``: half of the exponents lie below 1 and half above. ``per_channel``: own exponent,
    minimum and maximum for each channel; a number is the probability of each channel. ``invert``:
    the power is that of the negated image. ``retain_stats``: mean and standard deviation stay
    instead of minimum and maximum, those of each channel or of all together.
    """
    low, high = _two_numbers("gamma", "range", range)
    if min(low, high) <= 0:
        raise ConfigError(
            f"augment gamma: range is [{low}, {high}], both must be above 0, e.g. [0.7, 1.5]."
        )
    share = channelwise.share("gamma", per_channel, both)
    channelwise.check_bool("gamma", balanced=balanced, invert=invert, retain_stats=retain_stats)
    if balanced or invert or retain_stats or share is not None:
        factor = channelwise.factor("gamma", (low, high), balanced)
        change = intensity_changes.Gamma(factor, invert, retain_stats)
        return _same_for_pair(keys, "gamma", both, lambda k: RandChannelsd(k, p, change, share))
    return _same_for_pair(
        keys, "gamma", both, lambda k: RandAdjustContrastd(k, prob=p, gamma=(low, high))
    )


def _blur(
    keys: Keys,
    p: float = 0.5,
    sigma: tuple[float, float] = (0.5, 1.0),
    per_channel: bool | float = False,
) -> list[Transform]:
    """Gaussian blur along the space axes, the same for all channels.

    ``sigma`` in voxels, drawn for each axis. The patch is mirrored at its border. ``per_channel``:
    own widths for each channel; a number is the probability of each channel. The weights are then
    the Gaussian's values at the voxels, as in nnU-Net, and else its integrals over them, as in
    MONAI, which blurs a little more.
    """
    bounds = _two_numbers("blur", "sigma", sigma)
    if min(bounds) <= 0:
        raise ConfigError(
            f"augment blur: sigma is {list(bounds)} voxels, both must be above 0, e.g. [0.5, 1.0]."
        )
    share = channelwise.share("blur", per_channel)
    if share is not None:
        low, high = sorted(bounds)
        return [RandChannelsd(keys.image, p, intensity_changes.Blur(low, high), share)]
    return [RandMirroredSmoothd(keys.image, bounds, bounds, bounds, prob=p)]


def _low_resolution(
    keys: Keys,
    p: float = 0.5,
    scale: tuple[float, float] = (0.5, 1.0),
    per_channel: bool | float = 0.5,
    ignore_axes: Sequence[int] | None = None,
) -> list[Transform]:
    """Fewer voxels along each axis by a factor drawn from ``scale``, and back to the patch's size.

    The nearest voxels are kept, and interpolated linearly. ``per_channel``: an own factor for each
    channel, one for all its axes; a number is the probability of each channel. ``ignore_axes`` keep
    their resolution; ``null``: the shortest axis of a volume that is more than three times as long
    along another one.
    """
    low, high = _two_numbers("low_resolution", "scale", scale)
    if not 0 < low <= high <= 1:
        raise ConfigError(
            f"augment low_resolution: scale is [{low}, {high}], must satisfy 0 < low <= high <= 1,"
            " e.g. [0.5, 1]."
        )
    kept = channelwise.kept_axes(keys.size, ignore_axes)
    change = intensity_changes.LowResolution(low, high, kept, len(keys.size))
    share = channelwise.share("low_resolution", per_channel)
    return [RandChannelsd(keys.image, p, change, share)]


def _affine(
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


def _rotate(keys: Keys, p: float = 0.5, degrees: float = 180.0) -> list[Transform]:
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


def _elastic(
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


def _colour(
    keys: Keys,
    p: float = 0.5,
    hue: float = 10.0,
    saturation: tuple[float, float] = (0.8, 1.2),
    gain: float = 0.05,
    both: bool = False,
) -> list[Transform]:
    """Rotate hues, scale saturation, and scale each channel.

    Hues by up to ``hue`` degrees, saturation by a factor drawn from ``saturation``, each channel by
    1 ± ``gain``. For images of three channels, taken as red, green and blue; images with any other
    number are left as they are, and the same random numbers are used up. Details:
    :class:`RandColourd`.
    """
    low, high = _two_numbers("colour", "saturation", saturation)
    if min(low, high) < 0 or not 0 <= gain < 1 or hue < 0:
        raise ConfigError(
            f"augment colour: hue={hue}, saturation=[{low}, {high}], gain={gain}: none may be"
            " negative, and gain must be below 1."
        )
    return [RandColourd(_intensity_keys(keys, "colour", both), p, hue, (low, high), gain)]


def _clahe(
    keys: Keys, p: float = 0.5, clip: tuple[float, float] = (0.005, 0.02), tiles: int = 4
) -> list[Transform]:
    """Contrast limited adaptive histogram equalisation of 2D patches; limit drawn from ``clip``.

    ``tiles`` along each axis of the patch. A limit of c raises local contrast by a factor of at
    most about 256 c: 1.3 to 5 by default. RGB: the HSV value alone is equalised, hue and saturation
    stay; other images: each channel on its own.

    Source:
        Zuiderveld, Graphics Gems IV, 1994.
    """
    low, high = _two_numbers("clahe", "clip", clip)
    if len(keys.size) != 2:
        raise ConfigError(
            "augment clahe: is for images (data.dims: 2); for volumes use gamma or contrast."
        )
    if not 0 < min(low, high) <= max(low, high) <= 1:
        raise ConfigError(
            f"augment clahe: clip is [{low}, {high}], both must be above 0 and at most 1, e.g."
            " [0.005, 0.02]."
        )
    if (
        isinstance(tiles, bool)
        or not isinstance(tiles, int)
        or not 1 <= tiles <= min(keys.size) // TILE
    ):
        raise ConfigError(
            f"augment clahe: tiles is {tiles!r} for a patch of {list(keys.size)}, must be a whole"
            f" number from 1 to {min(keys.size) // TILE}, so that a tile has at least {TILE} pixels"
            " a side. Lower tiles or enlarge data.patch.size."
        )
    return [RandClahed(keys.image, p, (low, high), tuple(-(-n // tiles) for n in keys.size))]


def _spatial(
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
    low, high = _two_numbers("spatial", "scale", scale)
    if not 0 < low <= high:
        raise ConfigError(
            f"augment spatial: scale is [{low}, {high}], must satisfy 0 < low <= high, e.g."
            " [0.7, 1.4]."
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


def _two_numbers(entry: str, option: str, values: Sequence[float]) -> tuple[float, float]:
    """``values`` as two numbers. Raises ConfigError for anything else."""
    good = (
        isinstance(values, list | tuple)
        and len(values) == 2
        and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    )
    if not good:
        raise ConfigError(
            f"augment {entry}: {option} is {values!r}, must be two numbers, e.g. {option}: [0.8,"
            " 1.2]."
        )
    return values[0], values[1]


@dataclass(frozen=True, slots=True)
class AugmentationEntry:
    """An entry of AUGMENT.

    Args:
        make: ``make(keys, p=0.5, **options)`` gives transforms in MONAI's manner. They change the
            entries of a sample that ``keys`` (:class:`Keys`) names, draw from ``self.R`` (MONAI's
            ``RandomizableTransform``) and nothing else, so that a seed gives the same sample.

    Example:
        >>> def flip_rows(keys, p=0.5):
        ...     return [RandFlipd(keys.every, prob=p, spatial_axis=0)]
        >>> entry = AugmentationEntry(flip_rows)
        >>> keys = Keys(image=("image",), every=("image",), modes=("bilinear",), size=(64, 64))
        >>> len(entry.make(keys, p=0.1))
        1
    """

    make: Callable[..., list[Transform]]


AUGMENT: Registry[AugmentationEntry] = Registry(
    "augmentation",
    {
        "flip": AugmentationEntry(_flip),
        "rotate90": AugmentationEntry(_rotate90),
        "noise": AugmentationEntry(_noise),
        "brightness": AugmentationEntry(_brightness),
        "brightness_additive": AugmentationEntry(_brightness_additive),
        "contrast": AugmentationEntry(_contrast),
        "shift": AugmentationEntry(_shift),
        "gamma": AugmentationEntry(_gamma),
        "blur": AugmentationEntry(_blur),
        "low_resolution": AugmentationEntry(_low_resolution),
        "affine": AugmentationEntry(_affine),
        "rotate": AugmentationEntry(_rotate),
        "elastic": AugmentationEntry(_elastic),
        "colour": AugmentationEntry(_colour),
        "clahe": AugmentationEntry(_clahe),
        "spatial": AugmentationEntry(_spatial),
    },
    record=AugmentationEntry,
)
"""Augmentations by name, as in ``data.augment``."""

UNFOLDED = {2: 0.48, 3: 0.40}
"""Largest shift of control points, in units of their spacing, at which no cubic B-spline
deformation folds (Choi & Lee, Graph. Models 62:411, 2000), rounded down.
"""

TILE = 8
"""Pixels along the side of the smallest tile whose histogram is meaningful."""


def augmentations(config: Config, reads: Collection[MapRequest] = ()) -> list[Transform]:
    """MONAI transforms of ``data.augment``.

    Args:
        config: config of the run.
        reads: maps that the losses read (:func:`pipeline.losses.reads`).

    Returns:
        Transforms of all entries, in their order.

    Raises:
        ConfigError: for unknown names, options, or impossible settings.
    """
    return [t for n in range(len(config.data.augment)) for t in augmentation(config, n, reads)]


def augmentation(config: Config, n: int, reads: Collection[MapRequest] = ()) -> list[Transform]:
    """MONAI transforms of one entry of ``data.augment``.

    Args:
        config: config of the run.
        n: number of the entry, from 0 on.
        reads: maps that the losses read.

    Returns:
        The transforms of the entry.

    Raises:
        ConfigError: for an unknown name or option, or impossible settings.
    """
    keys, entry, where = _keys(config, reads), config.data.augment[n], f"data.augment.{n}"
    make = bind(AUGMENT, entry, where, ("keys",))
    if n and entry.name == "spatial":
        raise ConfigError(
            f"{where}: 'spatial' is drawn before a patch is read. Make it the first entry of"
            " data.augment, and the only one of its kind."
        )
    p = entry.options.get("p", 0.5)
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise ConfigError(
            f"{where}: {entry.name!r}: p is {p!r}, must be a probability from 0 to 1."
        )
    try:
        return make(keys)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {entry.name!r} with {dict(entry.options)}: {error}") from None


def _keys(config: Config, reads: Collection[MapRequest]) -> Keys:
    """Entries of a config's samples."""
    kinds, maps = config.targets, derived.wanted(config, reads)
    every = ("image", *kinds, *maps)
    classes = {k for k, kind in kinds.items() if kind == "labels"} | {
        k for k, m in maps.items() if m.is_mask
    }
    modes = tuple("nearest" if k in classes else "bilinear" for k in every)
    pair = ("image", *(k for k, kind in kinds.items() if kind == "image"))
    return Keys(image=("image",), every=every, modes=modes, size=config.data.patch.size, pair=pair)


class OpenCachedCase(Transform):
    """Deterministic head of the chain, the part that CacheDataset keeps.

    It gives handles of the memory-mapped volumes and the scale of the image.

    Args:
        targets: names of the targets, for a case may have further roles that only scores read.
        maps: names of the maps to be cut, and of the index by which patches are chosen.
    """

    def __init__(self, targets: Iterable[str], maps: Iterable[str] = ()) -> None:
        self.targets, self.maps = tuple(targets), tuple(maps)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        cached: CachedCase = data["stored"]
        maps = {name: cached.maps[name] for name in self.maps}
        targets = {name: cached.targets[name] for name in self.targets}
        return {
            "image": cached.image,
            **targets,
            **maps,
            "scale": cached.scale,
            "id": cached.case.id,
        }


def training_chain(config: Config, reads: Collection[MapRequest] = ()) -> Compose:
    """Transforms of training: open, balanced crop (with ``spatial``), augmentation.

    Args:
        config: config of the run.
        reads: maps that the losses read.

    Returns:
        The chain, from ``{"stored": CachedCase}`` to a sample.

    Raises:
        ConfigError: as of :func:`augmentations`.
    """
    changes = augmentations(config, reads)
    spatial = next((t for t in changes[:1] if isinstance(t, RandSpatiald)), None)
    rest = changes if spatial is None else changes[1:]
    return Compose([opener(config, reads), cropper(config, reads, spatial), *rest])


def validation_chain(config: Config, reads: Collection[MapRequest] = ()) -> Compose:
    """Transforms of validation: the same crop without augmentation.

    With fixed seeds it gives the same patches in every epoch.

    Args:
        config: config of the run.
        reads: maps that the losses read.

    Returns:
        The chain, from ``{"stored": CachedCase}`` to a sample.
    """
    return Compose([opener(config, reads), cropper(config, reads)])


def opener(config: Config, reads: Collection[MapRequest] = ()) -> OpenCachedCase:
    """First transform of a chain.

    Args:
        config: config of the run.
        reads: maps that the losses read.

    Returns:
        A transform that opens the targets and maps of this config.
    """
    index = () if config.data.patch.changed is None else (derived.BLOCKS,)
    classes = () if derived.located(config) is None else (LOCATIONS,)
    return OpenCachedCase(config.targets, (*derived.wanted(config, reads), *index, *classes))


def cropper(
    config: Config, reads: Collection[MapRequest] = (), spatial: RandSpatiald | None = None
) -> RandBalancedCropd:
    """Crop of a chain.

    Args:
        config: config of the run.
        reads: maps that the losses read.
        spatial: rotation and scaling; None: patches are cut as they are.

    Returns:
        A transform that cuts image, targets and maps of this config.
    """
    targets: Mapping[str, Any] = config.targets
    maps = {name: m.fill for name, m in derived.wanted(config, reads).items()}
    return RandBalancedCropd(targets, config.data.patch, config.data.ignore_label, maps, spatial)


# --- what MONAI's transforms lack -----------------------------------------------------------------


class RandTypedAffined(RandAffined):
    """MONAI's RandAffined, except that every entry keeps its number type.

    MONAI returns labels as float32, even where it does nothing.
    """

    def __call__(
        self, data: Mapping[Hashable, Any], lazy: bool | None = None
    ) -> dict[Hashable, Any]:
        out = super().__call__(data, lazy)
        return {
            **out,
            **{key: convert_to_dst_type(out[key], data[key])[0] for key in self.key_iterator(out)},
        }


class SplitJoinedd(MapTransform):
    """The inverse of ConcatItemsd: ``JOINED`` back into the entries that it was made of."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        joined = out.pop(JOINED)
        start = 0
        for key in self.key_iterator(out):
            out[key] = convert_to_dst_type(joined[start : start + len(out[key])], out[key])[0]
            start += len(out[key])
        return out


class RandMirroredSmoothd(RandGaussianSmoothd):
    """MONAI's RandGaussianSmoothd on a mirrored margin.

    MONAI takes zeros outside, which darkens every patch's border by up to a half.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        margin = math.ceil(4 * max(self.rand_smooth.sigma_x))  # where MONAI cuts its kernel off
        wide = {key: _mirrored(data[key], margin) for key in self.key_iterator(dict(data))}
        out = super().__call__({**data, **wide})
        inner = (Ellipsis, *(slice(margin, -margin),) * (data[self.keys[0]].ndim - 1))
        return {**out, **{key: out[key][inner] for key in wide}}


def _mirrored(image: Any, margin: int) -> np.ndarray:
    """The image with a mirrored margin."""
    array = convert_to_numpy(image)
    return np.pad(array, [(0, 0), *[(margin, margin)] * (array.ndim - 1)], mode="symmetric")


class RandElasticd(RandomizableTransform, MapTransform):
    """Free-form deformation by a cubic B-spline, the same for all of ``keys.every``.

    Control points ``spacing`` voxels apart are shifted by up to ``magnitude`` voxels along each
    axis; the weights of a B-spline are positive and sum to 1, so no voxel moves further. Of MONAI's
    own, Rand2DElasticd moves voxels at the border even for magnitude 0 (by 1.5 at spacing 32),
    Rand3DElasticd's magnitude has no unit and its 128³ take seconds, and RandGridDistortiond warps
    each axis alone.

    Args:
        keys: entries of a sample, with modes and patch size.
        prob: probability, 0 to 1.
        spacing: voxels between control points.
        magnitude: largest shift of a control point along an axis, in voxels.

    Source:
        Rueckert et al., IEEE TMI 18:712, 1999.
    """

    def __init__(self, keys: Keys, prob: float, spacing: float, magnitude: float) -> None:
        MapTransform.__init__(self, keys.every)
        RandomizableTransform.__init__(self, prob)
        self.modes, self.magnitude = keys.modes, magnitude
        self.weights = [_spline(n, spacing) for n in keys.size]
        self.resample = Resample(padding_mode="reflection", dtype=np.float32)
        self.shifts = np.zeros(0)

    def randomize(self, data: Any = None) -> None:
        """Draw whether to deform, and the shifts of the control points.

        Args:
            data: not used.
        """
        super().randomize(None)
        if self._do_transform:
            points = (len(self.weights), *(w.shape[1] for w in self.weights))
            self.shifts = self.R.uniform(-self.magnitude, self.magnitude, points)

    def field(self) -> np.ndarray:
        """Shift of every voxel.

        Returns:
            ``(axes, *S)`` in voxels: the output at x is the input at x + shift.
        """
        out = self.shifts
        for axis, weights in enumerate(self.weights, start=1):
            out = np.moveaxis(np.tensordot(weights, out, axes=(1, axis)), 0, axis)
        return out

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize()
        if not self._do_transform:
            return out
        coordinates = torch.as_tensor(
            create_grid(
                [len(w) for w in self.weights], dtype=np.float32, backend=TransformBackends.TORCH
            )
        )
        coordinates[:-1] += torch.as_tensor(self.field(), dtype=torch.float32)
        for key, mode in self.key_iterator(out, self.modes):
            out[key] = convert_to_dst_type(
                self.resample(out[key], coordinates, mode=mode), data[key]
            )[0]
        return out


def _spline(size: int, spacing: float) -> np.ndarray:
    """Weights of the control points of a uniform cubic B-spline at the voxels of one axis.

    ``(size, points)``; rows sum to 1.
    """
    positions = np.arange(size) / spacing
    knots = np.arange(-3.0, np.floor(positions[-1]) + 5)
    return BSpline.design_matrix(positions, knots, 3).toarray()


class RandColourd(RandomizableTransform, MapTransform):
    """Linear change of colour: hue, saturation and a gain for each channel.

    Hue and saturation are changed as one 3×3 matrix (:func:`colour_matrix`): rotation about the
    grey axis and scaling of the distance from it. A rotation by 120 degrees takes red to green, the
    mean of the three channels stays, and grey stays grey until ``gain`` tints it. Both commute with
    a common scale and offset of the channels, hence need no range: they mean the same on [0, 1], on
    [-1, 1] and on z-scores. ``gain`` multiplies the values as they are, as ``brightness`` does.
    Nothing is clipped; vivid colours may leave the normalised range a little. Where the channels
    were normalised one by one, hues are those of the normalised image.

    Args:
        keys: entries ``(3, *S)``; those with another number of channels stay as they are.
        prob: probability, 0 to 1.
        hue: largest rotation of hues in degrees.
        saturation: range of the factor of saturation.
        gain: each channel is multiplied by 1 - gain to 1 + gain.

    Source:
        Haeberli, Matrix Operations for Image Processing, 1993.
    """

    def __init__(
        self,
        keys: Sequence[str],
        prob: float,
        hue: float,
        saturation: tuple[float, float],
        gain: float,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.hue, self.saturation, self.gain = math.radians(hue), saturation, gain
        self.matrix = np.eye(3)

    def randomize(self, data: Any = None) -> None:
        """Draw whether to change colours, and the matrix.

        Args:
            data: not used.
        """
        super().randomize(None)
        if self._do_transform:
            angle, factor = self.R.uniform(-self.hue, self.hue), self.R.uniform(*self.saturation)
            gains = self.R.uniform(1 - self.gain, 1 + self.gain, 3)
            self.matrix = gains[:, None] * colour_matrix(angle, factor)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        # Drawn before channels are counted: entries after this one then do the same to grey images
        # and to colour.
        self.randomize()
        for key in self.key_iterator(out) if self._do_transform else ():
            if len(out[key]) == 3:
                image = convert_to_numpy(out[key])
                out[key] = convert_to_dst_type(
                    np.tensordot(self.matrix.astype(np.float32), image, axes=1), out[key]
                )[0]
        return out


def colour_matrix(angle: float, saturation: float) -> np.ndarray:
    """Matrix that rotates hues and scales the distance from grey.

    Args:
        angle: rotation of hues in radians, red towards green.
        saturation: factor of the distance from grey; 1 keeps it, 0 gives grey.

    Returns:
        3×3, for columns (red, green, blue).

    Source:
        Haeberli, Matrix Operations for Image Processing, 1993.

    Example:
        >>> red_turned = colour_matrix(math.radians(120), 1.0) @ [1, 0, 0]
        >>> bool(np.allclose(red_turned, [0, 1, 0]))
        True
    """
    grey = np.full((3, 3), 1 / 3)
    rotation = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return grey + saturation * (math.cos(angle) * (np.eye(3) - grey) + math.sin(angle) * rotation)


class RandClahed(RandomizableTransform, MapTransform):
    """scikit-image's ``equalize_adapthist`` on a normalised patch ``(C, Y, X)`` of any range.

    What is equalised (the HSV value of RGB, else each channel) keeps its least and its greatest
    value; a constant stays as it is. The result has at most 256 grey levels between tiles' curves,
    which are blended linearly.

    Args:
        keys: entries of a sample.
        prob: probability, 0 to 1.
        clip: range of the clip limit, within 0 to 1.
        tile: ``(Y, X)`` of a tile in pixels.
    """

    def __init__(
        self, keys: Sequence[str], prob: float, clip: tuple[float, float], tile: tuple[int, ...]
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.range, self.tile, self.clip = clip, tile, clip[0]

    def randomize(self, data: Any = None) -> None:
        """Draw whether to equalise, and the clip limit.

        Args:
            data: not used.
        """
        super().randomize(None)
        if self._do_transform:
            self.clip = self.R.uniform(*self.range)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize()
        for key in self.key_iterator(out) if self._do_transform else ():
            image = convert_to_numpy(out[key])
            changed = (
                self._equalise_value(image)
                if len(image) == 3
                else np.stack([self._equalise(channel) for channel in image])
            )
            out[key] = convert_to_dst_type(changed, out[key])[0]
        return out

    def _equalise_value(self, image: np.ndarray) -> np.ndarray:
        """Equalise RGB by its HSV value, the greatest of the three channels.

        All are multiplied by one factor, counted from the patch's minimum.
        """
        low = image.min()
        above = image - low
        value = above.max(axis=0)
        equal = self._equalise(value)
        factor = np.divide(equal, value, out=np.zeros_like(value), where=value > 0)
        return np.where(value > 0, above * factor, equal) + low

    def _equalise(self, plane: np.ndarray) -> np.ndarray:
        """Equalise one plane ``(Y, X)`` within its own range."""
        low, span = plane.min(), np.ptp(plane)
        if not span > 0:
            return plane
        return low + span * equalize_adapthist((plane - low) / span, self.tile, self.clip).astype(
            plane.dtype
        )
