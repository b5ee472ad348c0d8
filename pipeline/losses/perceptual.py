"""Perceptual loss: compares images by the features of a network trained to recognise objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import ConfigError, nearest
from pipeline.losses import vgg
from pipeline.losses.image import same_images, unit
from pipeline.losses.masked import Loss, masked, masked_mean, number, switch

REDUCE = ("area", "centre", "mask")


def perceptual(
    *,
    layers: Sequence[str] | Mapping[str, float] = ("relu1_2", "relu2_2", "relu3_3"),
    weights: str | None = None,
    range: Sequence[float] = (-1.0, 1.0),  # noqa: A002 - the YAML's word
    size: int | None = None,
    reduce: str = "area",
    checkpoint: bool = False,
) -> Loss:
    """Sum over layers of the mean absolute difference of VGG16 features.

    For images ``(B, 1 or 3, Y, X)``; one channel is used three times. 0 for equal images. VGG16 is
    fixed: it is no part of the network that is trained. An ignored voxel is the same in both
    images, and features over ignored voxels only do not count. For one image of 512 x 512, features
    up to relu3_3 take 0.26 GiB, and 4.1 GiB for 2048 x 2048.

    Args:
        layers: names ``relu1_1`` ... ``relu5_3``, or a map from names to weights.
        weights: file made by ``data_prep/slim_vgg.py`` (or vgg16-397923af.pth); None: torch's
            cache, else a download; ``random``: fixed random weights, for tests. They are read at
            the first use.
        range: the intensities that stand for black and white, those of ``data.normalise``.
        size: largest side in pixels that VGG16 sees, None for all; larger images are reduced as
            ``reduce`` says.
        reduce: ``area``: resize by the means of areas; ``centre``: crop the middle; ``mask``: crop
            where most of the mask of change lies (the middle where it is empty).
        checkpoint: compute features twice and do not keep them, which saves memory.

    Returns:
        ``loss(output, target, valid)``, with ``reduce="mask"`` also the mask ``(B, 1, Y, X)``; see
        :data:`pipeline.losses.masked.Loss`. It raises a ConfigError for volumes, other channel
        counts and images that are too small, and a WeightsError for weights that are missing in the
        cache.

    Raises:
        ConfigError: for an option that cannot be used.
        WeightsError: for a file of weights that is missing or cannot be used.

    Source: after Johnson, Alahi & Fei-Fei, ECCV 2016.
    """
    where = "'perceptual'"
    chosen, to_unit = _layers(layers, where), unit(range, f"{where}: range")
    least = 2 ** (len(vgg.blocks(vgg.deepest(chosen))) - 1)
    _require(
        size is None or _is_side(size, least),
        f"{where}: size is {size!r}, must be a whole number of at least {least}, or null.",
    )
    _require(
        reduce in REDUCE, f"{where}: reduce is {reduce!r}, must be one of: {', '.join(REDUCE)}."
    )
    _require(
        reduce != "mask" or size is not None,
        f"{where}: reduce: mask needs size, the side of the window around it, e.g. size: 512.",
    )
    twice = switch(checkpoint, f"{where}: checkpoint")
    vgg_weights = _Weights(weights, vgg.deepest(chosen))

    def features_of(x: Tensor, save_memory: bool) -> dict[str, Tensor]:
        mean, std = (
            torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None]
            for values in (vgg.MEAN, vgg.STD)
        )
        colours = (to_unit(x).expand(-1, 3, -1, -1) - mean) / std
        return vgg.features(colours, vgg_weights.like(x), list(chosen), save_memory)

    @masked
    def loss(output: Tensor, target: Tensor, valid: Tensor, *mask: Tensor) -> Tensor:
        same_images(output, target)
        x, y, counts = _smaller([output, target.to(output.dtype), valid], size, reduce, *mask)
        _require_picture(x, least)
        with torch.no_grad():
            wanted = features_of(y, False)
        found = features_of(x, twice)
        terms = [
            weight
            * masked_mean(
                (found[name] - wanted[name]).abs(),
                functional.adaptive_max_pool2d(counts.ceil(), found[name].shape[2:]),
            )
            for name, weight in chosen.items()
        ]
        return torch.stack(terms).sum()

    return loss


class _Weights:
    """VGG16's weights, moved to the device and type of the images.

    A file is checked at once; weights are read at the first use.
    """

    def __init__(self, source: Any, last: str) -> None:
        good = source is None or (isinstance(source, str) and source != "")
        _require(good, f"'perceptual': weights is {source!r}, must be a file, 'random' or null.")
        self.random, self.last = source == "random", last
        self.path = None if source is None or self.random else Path(source).expanduser()
        self.tensors: dict[str, Tensor] = {}
        if self.path is not None:
            vgg.check(self.path, last)

    def like(self, x: Tensor) -> dict[str, Tensor]:
        """The weights in the type and on the device of ``x``."""
        first = next(iter(self.tensors.values()), None)
        if first is None or (first.dtype, first.device) != (x.dtype, x.device):
            # A first use in validation would make tensors that training cannot use.
            with torch.inference_mode(False):
                raw = self.tensors or (
                    vgg.random_weights(self.last) if self.random else vgg.load(self.path, self.last)
                )
                self.tensors = {name: value.to(x) for name, value in raw.items()}
        return self.tensors


def trial(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Replace weights that would be downloaded at the first use by random ones.

    Args:
        options: options of :func:`perceptual`.

    Returns:
        The options for a trial.
    """
    return {**options, "weights": "random"} if options.get("weights") is None else options


def missing(options: Mapping[str, Any]) -> str | None:
    """Warn of weights that would be downloaded.

    Args:
        options: options of :func:`perceptual`.

    Returns:
        The message; None: nothing is missing.
    """
    if options.get("weights") is not None or any(vgg.cache().glob("*vgg16*")):
        return None
    text = (
        f"the weights of VGG16 are not in {vgg.cache()}; they would be fetched from the network at"
        " the first step"
    )
    return f"{text}. data_prep/slim_vgg.py makes a file for options.weights."


def _layers(value: Any, where: str) -> dict[str, float]:
    """Weight of each layer, from names or from a map."""
    good = isinstance(value, list | tuple | Mapping) and len(value) > 0
    _require(
        good,
        f"{where}: layers is {value!r}, must be a list of names, or a map from names to weights,"
        " e.g. [relu2_2, relu3_3].",
    )
    for name in value:
        _require(
            name in vgg.LAYERS,
            f"{where}: layer {name!r} is unknown. {nearest(str(name), vgg.LAYERS)}",
        )
    _require(
        len(set(value)) == len(value),
        f"{where}: layers {list(value)} names one twice. For more of a layer give it a weight.",
    )
    pairs = value.items() if isinstance(value, Mapping) else [(name, 1.0) for name in value]
    return {name: number(weight, f"{where}: weight of layer {name}") for name, weight in pairs}


def _is_side(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _require(good: bool, message: str) -> None:
    if not good:
        raise ConfigError(f"loss {message}")


def _require_picture(x: Tensor, least: int) -> None:
    _require(
        x.ndim == 4,
        f"'perceptual' got {tuple(x.shape)}; it compares images (B, C, Y, X) and not volumes. Take"
        " l1 or ms_ssim.",
    )
    _require(
        x.shape[1] in (1, 3),
        f"'perceptual' got {x.shape[1]} channels; it compares grey images (1) and RGB (3). Take l1"
        " or ms_ssim.",
    )
    _require(
        min(x.shape[2:]) >= least,
        f"'perceptual' got images of {tuple(x.shape[2:])}; these layers need sides of at least"
        f" {least}.",
    )


def _smaller(
    images: Sequence[Tensor], size: int | None, how: str, mask: Tensor | None = None
) -> Sequence[Tensor]:
    """Reduce images ``(B, C, Y, X)`` to sides of at most ``size``.

    All by the means of areas, in proportion, or by a window of each sample.
    """
    height, width = images[0].shape[-2:]
    if size is None or images[0].ndim != 4 or max(height, width) <= size:
        return images
    if how == "area":
        share = size / max(height, width)
        smaller = [max(1, round(n * share)) for n in (height, width)]
        return [functional.interpolate(x, size=smaller, mode="area") for x in images]
    middle = [(max(height - size, 0) // 2, max(width - size, 0) // 2)] * len(images[0])
    corners = middle if how == "centre" else window_corners(_given(mask), size, middle)
    return [
        torch.stack(
            [one[:, y : y + size, x : x + size] for one, (y, x) in zip(t, corners, strict=True)]
        )
        for t in images
    ]


def _given(mask: Tensor | None) -> Tensor:
    if mask is None:
        raise ValueError(
            "loss 'perceptual' with reduce: mask needs the mask as its fourth argument."
        )
    return mask


def window_corners(
    mask: Tensor, size: int, empty: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Corner of the window of ``size`` in each sample of a mask ``(B, 1, Y, X)``.

    ``empty`` holds the corners for samples whose mask is empty. The window's middle is the cell, of
    16 or more along the window, around which most of the mask lies by a weight that falls linearly
    to nothing at the window's edge: so a blemish that fits into many windows comes to lie in the
    middle of one.
    """
    height, width = mask.shape[2:]
    cell = max(1, size // 16)
    reach = max(1, (size // cell // 2 - 1) | 1)  # odd
    near = functional.avg_pool2d(mask.clamp(0, 1), cell, ceil_mode=True)
    for _ in range(2):  # two boxes make a pyramid
        near = functional.avg_pool2d(near, reach, stride=1, padding=reach // 2)
    across = near.shape[3]
    corners = []
    for index, most, other in zip(
        near.flatten(1).argmax(1).tolist(), near.flatten(1).amax(1).tolist(), empty, strict=True
    ):
        middle = [cell * n + cell // 2 for n in divmod(index, across)]
        corner = [
            min(max(m - size // 2, 0), max(n - size, 0))
            for m, n in zip(middle, (height, width), strict=True)
        ]
        corners.append((corner[0], corner[1]) if most > 0 else other)
    return corners
