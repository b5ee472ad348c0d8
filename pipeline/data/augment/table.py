"""AUGMENT: what ``data.augment`` in a YAML may name, and the transforms of a config."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from monai.transforms import Transform

from pipeline.config import Config, ConfigError, bind
from pipeline.data import derived
from pipeline.data.augment.geometry import affine, elastic, flip, rotate, rotate90, spatial
from pipeline.data.augment.intensity import (
    blur,
    brightness,
    brightness_additive,
    clahe,
    colour,
    contrast,
    gamma,
    low_resolution,
    noise,
    shift,
)
from pipeline.data.augment.keys import Keys
from pipeline.data.derived import MapRequest
from pipeline.registry import Registry


@dataclass(frozen=True, slots=True)
class AugmentationEntry:
    """An entry of AUGMENT.

    Args:
        make: ``make(keys, p=0.5, **options)`` gives transforms in MONAI's manner. They change the
            entries of a sample that ``keys`` (:class:`Keys`) names, draw from ``self.R`` (MONAI's
            ``RandomizableTransform``) and nothing else, so that a seed gives the same sample.

    Example:
        >>> from monai.transforms import RandFlipd
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
        "flip": AugmentationEntry(flip),
        "rotate90": AugmentationEntry(rotate90),
        "noise": AugmentationEntry(noise),
        "brightness": AugmentationEntry(brightness),
        "brightness_additive": AugmentationEntry(brightness_additive),
        "contrast": AugmentationEntry(contrast),
        "shift": AugmentationEntry(shift),
        "gamma": AugmentationEntry(gamma),
        "blur": AugmentationEntry(blur),
        "low_resolution": AugmentationEntry(low_resolution),
        "affine": AugmentationEntry(affine),
        "rotate": AugmentationEntry(rotate),
        "elastic": AugmentationEntry(elastic),
        "colour": AugmentationEntry(colour),
        "clahe": AugmentationEntry(clahe),
        "spatial": AugmentationEntry(spatial),
    },
    record=AugmentationEntry,
)
"""Augmentations by name, as in ``data.augment``."""


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
