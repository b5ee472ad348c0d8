"""What an augmentation changes in a sample, and checks of options that entries share."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.transforms import (
    ConcatItemsd,
    MapTransform,
    Transform,
)
from monai.utils import convert_to_dst_type

from pipeline.config import ConfigError


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


def intensity_keys(keys: Keys, entry: str, both: bool) -> tuple[str, ...]:
    """Entries that an augmentation of intensities changes: with ``both`` the image targets, too."""
    if not isinstance(both, bool):
        raise ConfigError(f"augment {entry}: both is {both!r}, must be true or false.")
    if both and len(keys.pair) < 2:
        raise ConfigError(
            f"augment {entry}: both is true, but no target is an image. Leave it out."
        )
    return keys.pair if both else keys.image


def same_for_pair(
    keys: Keys, entry: str, both: bool, make: Callable[[tuple[str, ...]], Transform]
) -> list[Transform]:
    """``make(image)``, or with ``both`` one change of image and target.

    Both then get the same random numbers, and statistics of the two together.
    """
    chosen = intensity_keys(keys, entry, both)
    return (
        [ConcatItemsd(chosen, JOINED), make((JOINED,)), SplitJoinedd(chosen)]
        if both
        else [make(chosen)]
    )


def two_numbers(entry: str, option: str, values: Sequence[float]) -> tuple[float, float]:
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
