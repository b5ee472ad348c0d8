"""Augmentations of intensities and colours, of the image alone or with ``both`` of its pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai.transforms import (
    RandAdjustContrastd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
    Transform,
)

from pipeline.config import ConfigError
from pipeline.data import channelwise, intensity_changes
from pipeline.data.augment.colours import RandClahed, RandColourd, RandMirroredSmoothd
from pipeline.data.augment.keys import Keys, intensity_keys, same_for_pair, two_numbers
from pipeline.data.channelwise import RandChannelsd


def noise(keys: Keys, p: float = 0.5, std: float | tuple[float, float] = 0.01) -> list[Transform]:
    """Gaussian noise of exactly this standard deviation, drawn for each voxel and channel.

    With ``std: [low, high]`` it is drawn for each sample, the same for all channels. In RGB the
    noise is coloured grain.
    """
    if not isinstance(std, int | float):
        low, high = two_numbers("noise", "std", std)
        if not 0 <= low <= high:
            raise ConfigError(
                f"augment noise: std is [{low}, {high}], must be one number, or [low, high] with"
                " 0 <= low <= high, e.g. [0, 0.1]."
            )
        return [RandChannelsd(keys.image, p, intensity_changes.Noise(low, high), None)]
    return [RandGaussianNoised(keys.image, prob=p, mean=0.0, std=std, sample_std=False)]


def brightness(
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
    low, high = two_numbers("brightness", "range", range)
    share = channelwise.share("brightness", per_channel, both)
    channelwise.check_bool("brightness", balanced=balanced)
    if balanced or share is not None:
        factor = channelwise.factor("brightness", (low, high), balanced)
        change = intensity_changes.Brightness(factor)
        return same_for_pair(keys, "brightness", both, lambda k: RandChannelsd(k, p, change, share))
    return same_for_pair(
        keys,
        "brightness",
        both,
        lambda k: RandScaleIntensityd(k, prob=p, factors=(low - 1, high - 1)),
    )


def brightness_additive(
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
    return same_for_pair(
        keys, "brightness_additive", both, lambda k: RandChannelsd(k, p, change, share)
    )


def contrast(
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
    low, high = two_numbers("contrast", "range", range)
    share = channelwise.share("contrast", per_channel, both)
    channelwise.check_bool("contrast", balanced=balanced, preserve_range=preserve_range)
    if balanced or preserve_range or share is not None:
        factor = channelwise.factor("contrast", (low, high), balanced)
        change = intensity_changes.Contrast(factor, preserve_range)
        return same_for_pair(keys, "contrast", both, lambda k: RandChannelsd(k, p, change, share))
    factors = low - 1, high - 1
    return same_for_pair(
        keys,
        "contrast",
        both,
        lambda k: RandScaleIntensityFixedMeand(k, prob=p, factors=factors, preserve_range=False),
    )


def shift(keys: Keys, p: float = 0.5, offset: float = 0.1, both: bool = False) -> list[Transform]:
    """Add a constant drawn from ``[-offset, offset]``, one for all channels: hues stay."""
    return same_for_pair(
        keys, "shift", both, lambda k: RandShiftIntensityd(k, prob=p, offsets=offset)
    )


def gamma(
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
    low, high = two_numbers("gamma", "range", range)
    if min(low, high) <= 0:
        raise ConfigError(
            f"augment gamma: range is [{low}, {high}], both must be above 0, e.g. [0.7, 1.5]."
        )
    share = channelwise.share("gamma", per_channel, both)
    channelwise.check_bool("gamma", balanced=balanced, invert=invert, retain_stats=retain_stats)
    if balanced or invert or retain_stats or share is not None:
        factor = channelwise.factor("gamma", (low, high), balanced)
        change = intensity_changes.Gamma(factor, invert, retain_stats)
        return same_for_pair(keys, "gamma", both, lambda k: RandChannelsd(k, p, change, share))
    return same_for_pair(
        keys, "gamma", both, lambda k: RandAdjustContrastd(k, prob=p, gamma=(low, high))
    )


def blur(
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
    bounds = two_numbers("blur", "sigma", sigma)
    if min(bounds) <= 0:
        raise ConfigError(
            f"augment blur: sigma is {list(bounds)} voxels, both must be above 0, e.g. [0.5, 1.0]."
        )
    share = channelwise.share("blur", per_channel)
    if share is not None:
        low, high = sorted(bounds)
        return [RandChannelsd(keys.image, p, intensity_changes.Blur(low, high), share)]
    return [RandMirroredSmoothd(keys.image, bounds, bounds, bounds, prob=p)]


def low_resolution(
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
    low, high = two_numbers("low_resolution", "scale", scale)
    if not 0 < low <= high <= 1:
        raise ConfigError(
            f"augment low_resolution: scale is [{low}, {high}], must satisfy 0 < low <= high <= 1,"
            " e.g. [0.5, 1]."
        )
    kept = channelwise.kept_axes(keys.size, ignore_axes)
    change = intensity_changes.LowResolution(low, high, kept, len(keys.size))
    share = channelwise.share("low_resolution", per_channel)
    return [RandChannelsd(keys.image, p, change, share)]


def colour(
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
    low, high = two_numbers("colour", "saturation", saturation)
    if min(low, high) < 0 or not 0 <= gain < 1 or hue < 0:
        raise ConfigError(
            f"augment colour: hue={hue}, saturation=[{low}, {high}], gain={gain}: none may be"
            " negative, and gain must be below 1."
        )
    return [RandColourd(intensity_keys(keys, "colour", both), p, hue, (low, high), gain)]


def clahe(
    keys: Keys, p: float = 0.5, clip: tuple[float, float] = (0.005, 0.02), tiles: int = 4
) -> list[Transform]:
    """Contrast limited adaptive histogram equalisation of 2D patches; limit drawn from ``clip``.

    ``tiles`` along each axis of the patch. A limit of c raises local contrast by a factor of at
    most about 256 c: 1.3 to 5 by default. RGB: the HSV value alone is equalised, hue and saturation
    stay; other images: each channel on its own.

    Source:
        Zuiderveld, Graphics Gems IV, 1994.
    """
    low, high = two_numbers("clahe", "clip", clip)
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


TILE = 8
"""Pixels along the side of the smallest tile whose histogram is meaningful."""
