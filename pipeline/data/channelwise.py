"""Changes of intensity whose numbers are drawn for each channel: the transform and its options.

The entries of :mod:`pipeline.data.augment` use them for what MONAI's transforms lack.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform

from pipeline.config import ConfigError
from pipeline.data.intensity_changes import Change, Factor

DUMMY_2D = 3
"""Ratio of the longest to the shortest side above which nnU-Net treats a patch as a stack."""


class RandChannelsd(RandomizableTransform, MapTransform):
    """Change the intensities of an image, all channels together or each for itself.

    Args:
        keys: entries ``(C, *S)`` of a sample.
        prob: probability that a sample is changed, 0 to 1.
        change: what is done.
        share: probability of each channel of such a sample, which then has its own random numbers
            and its own statistics; None: one change of all channels together.

    Example:
        >>> from pipeline.data.intensity_changes import Brightness
        >>> twice = RandChannelsd(("image",), 1.0, Brightness(Factor(2.0, 2.0)), None)
        >>> twice({"image": np.ones((1, 1, 2), np.float32)})["image"].tolist()
        [[[2.0, 2.0]]]
    """

    def __init__(
        self, keys: Sequence[str], prob: float, change: Change, share: float | None
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.change, self.share = change, share

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize(None)
        for key in self.key_iterator(out) if self._do_transform else ():
            out[key] = self._changed(out[key])
        return out

    def _changed(self, image: Any) -> Any:
        """The changed copy of an image, or the image itself where no channel was drawn."""
        if self.share is None:
            source = as_float32(image)
            result = torch.empty_like(source)
            self.change(source, result, self.R)
            return result
        chosen = self.R.random_sample(len(image)) < self.share
        if not chosen.any():
            return image
        source = as_float32(image)
        result = torch.empty_like(source)
        for before, after, is_chosen in zip(source, result, chosen, strict=True):
            if is_chosen:
                self.change(before, after, self.R)
            else:
                after.copy_(before)
        return result


def as_float32(image: Any) -> torch.Tensor:
    """An image as a contiguous float32 tensor, which may share its memory: not to be written to.

    Args:
        image: array or tensor of any number type.

    Returns:
        Tensor of the same shape.
    """
    if isinstance(image, torch.Tensor):
        return image.to(torch.float32).contiguous()
    array = np.ascontiguousarray(image, np.float32)
    # torch warns of read-only memory, which is only read here.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


# --- options --------------------------------------------------------------------------------------


def factor(entry: str, bounds: tuple[float, float], balanced: bool) -> Factor:
    """Distribution of the factor of an entry.

    Args:
        entry: name of the entry, for messages.
        bounds: its ``range``.
        balanced: its option of that name.

    Returns:
        The distribution.

    Raises:
        ConfigError: where half of the draws cannot be below 1 and half above.

    Example:
        >>> factor("gamma", (0.7, 1.5), True)
        Factor(low=0.7, high=1.5, balanced=True)
    """
    low, high = bounds
    if low > high:
        raise ConfigError(
            f"augment {entry}: range is [{low}, {high}], the first must not be above the second."
            f" Write [{high}, {low}]."
        )
    if balanced and not low < 1 < high:
        raise ConfigError(
            f"augment {entry}: range is [{low}, {high}], and balanced draws half of the factors"
            " below 1 and half above, so it must satisfy low < 1 < high, e.g. [0.75, 1.25]. Change"
            " range or leave balanced out."
        )
    return Factor(low, high, balanced)


def share(entry: str, per_channel: bool | float, both: bool = False) -> float | None:
    """Probability of each channel by the option ``per_channel``.

    Args:
        entry: name of the entry, for messages.
        per_channel: the option.
        both: the option of that name of the entry.

    Returns:
        None where all channels change together.

    Raises:
        ConfigError: for values that are none, and together with ``both``.

    Example:
        >>> share("blur", 0.5), share("gamma", True), share("gamma", False)
        (0.5, 1.0, None)
    """
    if isinstance(per_channel, bool):
        found = 1.0 if per_channel else None
    elif isinstance(per_channel, int | float) and 0 < per_channel <= 1:
        found = float(per_channel)
    else:
        raise ConfigError(
            f"augment {entry}: per_channel is {per_channel!r}, must be true, false, or the"
            " probability of each channel, above 0 and at most 1, e.g. 0.5."
        )
    if both and found is not None:
        raise ConfigError(
            f"augment {entry}: per_channel changes each channel of image and target for itself,"
            " and both gives image and target the same change. Keep one."
        )
    return found


def check_bool(entry: str, **options: Any) -> None:
    """Check options that are switches.

    Args:
        entry: name of the entry, for messages.
        options: their values by name.

    Raises:
        ConfigError: for a value other than true and false.
    """
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ConfigError(f"augment {entry}: {name} is {value!r}, must be true or false.")


def kept_axes(size: Sequence[int], ignore_axes: Sequence[int] | None) -> tuple[int, ...]:
    """Axes along which ``low_resolution`` keeps the resolution.

    Args:
        size: ``(*S)`` of the patch.
        ignore_axes: the option of that name; None: the shortest axis of a volume whose longest side
            is more than three times as long, as in nnU-Net's dummy 2D.

    Returns:
        Numbers of axes.

    Raises:
        ConfigError: for what is no list of axes.

    Example:
        >>> kept_axes((20, 128, 128), None), kept_axes((64, 128, 128), None)
        ((0,), ())
    """
    if ignore_axes is None:
        is_stack = len(size) == 3 and max(size) / min(size) > DUMMY_2D
        return (list(size).index(min(size)),) if is_stack else ()
    axes = range(len(size))
    if isinstance(ignore_axes, str) or not all(
        isinstance(a, int) and not isinstance(a, bool) and a in axes for a in ignore_axes
    ):
        raise ConfigError(
            f"augment low_resolution: ignore_axes is {ignore_axes!r}, must be null or a list of"
            f" axes from 0 to {len(size) - 1}, e.g. [0]."
        )
    return tuple(ignore_axes)
