"""The table of augmentations, all MONAI's, and the chain from a stored case to a training sample."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.transforms import (
    Compose,
    OneOf,
    RandAdjustContrastd,
    RandAffined,
    RandAxisFlipd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotate90d,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
    Transform,
)

from pipeline.config import Config, ConfigError, bind
from pipeline.data import derived
from pipeline.data.sampling import RandBalancedCropd
from pipeline.data.store import Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Which entries of a sample a transform touches: ``every`` for geometry, ``image`` for intensities; ``modes`` per entry of ``every``."""

    image: tuple[str, ...]
    every: tuple[str, ...]
    modes: tuple[str, ...]
    size: tuple[int, ...]


def _flip(keys: Keys, p: float = 0.5, axes: str | Sequence[int] = "random") -> list[Transform]:
    """``axes: random``: one axis drawn at random; ``each``: every axis on its own; or a list of axes."""
    if axes == "random":
        return [RandAxisFlipd(keys.every, prob=p)]
    if isinstance(axes, str) and axes != "each":
        raise ConfigError(f"augment flip: axes is {axes!r}, must be random, each, or a list of axes.")
    chosen = range(len(keys.size)) if isinstance(axes, str) else axes
    flips: list[Transform] = [RandFlipd(keys.every, prob=p, spatial_axis=axis) for axis in chosen]
    return flips


def _rotate90(keys: Keys, p: float = 0.5, planes: Sequence[Sequence[int]] | None = None) -> list[Transform]:
    """By 90, 180 or 270 degrees in a plane drawn at random among those whose two sides are equally long."""
    planes = [tuple(x) for x in planes] if planes is not None else list(itertools.combinations(range(len(keys.size)), 2))
    square = [(a, b) for a, b in planes if keys.size[a] == keys.size[b]]
    if not square:
        raise ConfigError(
            f"augment rotate90: patch size {list(keys.size)} has no plane with equal sides. Make two sides equal or remove rotate90."
        )
    return [OneOf([RandRotate90d(keys.every, prob=p, max_k=3, spatial_axes=plane) for plane in square])]


def _noise(keys: Keys, p: float = 0.5, std: float = 0.01) -> list[Transform]:
    """Gaussian noise of exactly this standard deviation."""
    return [RandGaussianNoised(keys.image, prob=p, mean=0.0, std=std, sample_std=False)]


def _brightness(keys: Keys, p: float = 0.5, range: Sequence[float] = (0.8, 1.2)) -> list[Transform]:  # noqa: A002 - the YAML's word
    """Multiply by a factor drawn from ``range``."""
    return [RandScaleIntensityd(keys.image, prob=p, factors=(range[0] - 1, range[1] - 1))]


def _contrast(keys: Keys, p: float = 0.5, range: Sequence[float] = (0.8, 1.2)) -> list[Transform]:  # noqa: A002
    """Spread about the patch's mean by a factor drawn from ``range``."""
    return [RandScaleIntensityFixedMeand(keys.image, prob=p, factors=(range[0] - 1, range[1] - 1), preserve_range=False)]


def _shift(keys: Keys, p: float = 0.5, offset: float = 0.1) -> list[Transform]:
    """Add a constant drawn from ``[-offset, offset]``."""
    return [RandShiftIntensityd(keys.image, prob=p, offsets=offset)]


def _gamma(keys: Keys, p: float = 0.5, range: Sequence[float] = (0.7, 1.5)) -> list[Transform]:  # noqa: A002
    return [RandAdjustContrastd(keys.image, prob=p, gamma=(range[0], range[1]))]


def _blur(keys: Keys, p: float = 0.5, sigma: Sequence[float] = (0.5, 1.0)) -> list[Transform]:
    """Gaussian blur; ``sigma`` in voxels."""
    bounds = (sigma[0], sigma[1])
    return [RandGaussianSmoothd(keys.image, bounds, bounds, bounds, prob=p)]


def _affine(keys: Keys, p: float = 0.5, degrees: float = 15.0, scale: float = 0.1) -> list[Transform]:
    """Rotation about every axis and zoom; slow on CPU (0.4 s for a pair of 128³)."""
    angle = degrees * 3.141592653589793 / 180
    dims = len(keys.size)
    return [
        RandAffined(
            keys.every,
            prob=p,
            rotate_range=(angle,) * (3 if dims == 3 else 1),
            scale_range=(scale,) * dims,
            mode=keys.modes,
            padding_mode="reflection",
        )
    ]


AUGMENT: dict[str, Callable[..., list[Transform]]] = {
    "flip": _flip,
    "rotate90": _rotate90,
    "noise": _noise,
    "brightness": _brightness,
    "contrast": _contrast,
    "shift": _shift,
    "gamma": _gamma,
    "blur": _blur,
    "affine": _affine,
}


def augmentations(config: Config) -> list[Transform]:
    """MONAI transforms of ``data.augment``. Raises ConfigError for unknown names, options, or impossible settings."""
    kinds, maps = config.targets, derived.wanted(config)
    every = ("image", *kinds, *maps)
    classes = {k for k, kind in kinds.items() if kind == "labels"} | {k for k, m in maps.items() if m.is_mask}
    modes = tuple("nearest" if k in classes else "bilinear" for k in every)
    image = ("image",)
    keys = Keys(image=image, every=every, modes=modes, size=config.data.patch.size)
    out: list[Transform] = []
    for n, part in enumerate(config.data.augment):
        where = f"data.augment.{n}"
        bind(AUGMENT, part, where, ("keys",))
        try:
            out += AUGMENT[part.name](keys, **part.options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {part.name!r} with {dict(part.options)}: {error}") from None
    return out


class OpenStored(Transform):
    """Deterministic head of the chain, the part that CacheDataset keeps: handles of the memory-mapped volumes and their statistics.

    ``maps`` names the maps that losses read.
    """

    def __init__(self, maps: Iterable[str] = ()) -> None:
        self.maps = tuple(maps)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        stored: Stored = data["stored"]
        maps = {name: stored.maps[name] for name in self.maps}
        return {"image": stored.image, **stored.targets, **maps, "scale": stored.scale, "id": stored.case.id}


def training_chain(config: Config) -> Compose:
    """Open, balanced crop, augmentation."""
    return Compose([OpenStored(derived.wanted(config)), cropper(config), *augmentations(config)])


def validation_chain(config: Config) -> Compose:
    """The same crop without augmentation: with fixed seeds, the same patches in every epoch."""
    return Compose([OpenStored(derived.wanted(config)), cropper(config)])


def cropper(config: Config) -> RandBalancedCropd:
    targets: Mapping[str, Any] = config.targets
    maps = {name: m.fill for name, m in derived.wanted(config).items()}
    return RandBalancedCropd(targets, config.data.patch, config.data.ignore_label, maps)
