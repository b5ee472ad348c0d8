"""Perceptual loss: images are compared by what a network that was trained to recognise objects makes of them."""

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

REDUCE = ("area", "centre")


def perceptual(
    *,
    layers: Sequence[str] | Mapping[str, float] = ("relu1_2", "relu2_2", "relu3_3"),
    weights: str | None = None,
    range: Sequence[float] = (-1.0, 1.0),  # noqa: A002 - the YAML's word
    size: int | None = None,
    reduce: str = "area",
    checkpoint: bool = False,
) -> Loss:
    """Sum over ``layers`` of the mean absolute difference of VGG16 features (after Johnson, Alahi & Fei-Fei, ECCV 2016).

    For images ``(B, 1 or 3, Y, X)``; one channel is used three times. 0 for equal images. VGG16 is fixed: it is no part of the
    network that is trained. An ignored voxel is the same in both images, and features over ignored voxels only do not count.

    ``layers``: names ``relu1_1`` ... ``relu5_3``, or a map from names to weights. ``weights``: file made by
    ``data_prep/slim_vgg.py`` (or vgg16-397923af.pth); ``null``: torch's cache, then the network; ``random``: fixed random weights,
    for tests. They are read at the first use. ``range``: the intensities that stand for black and white, those of
    ``data.normalise``. ``size``: largest side that VGG16 sees, ``null`` for all; larger images are brought down to it by means of
    areas (``reduce: area``), or cut to their middle (``centre``). ``checkpoint``: features are computed twice and not kept, which
    saves memory. For one image of 512 x 512, features up to relu3_3 take 0.26 GiB, and 4.1 GiB for 2048 x 2048.
    Raises ConfigError for wrong options, and WeightsError for weights that are missing: a path here, the cache at the first use.
    """
    where = "'perceptual'"
    chosen, to_unit = _layers(layers, where), unit(range, f"{where}: range")
    least = 2 ** (len(vgg.blocks(vgg.deepest(chosen))) - 1)
    _require(size is None or _is_side(size, least), f"{where}: size is {size!r}, must be a whole number of at least {least}, or null.")
    _require(reduce in REDUCE, f"{where}: reduce is {reduce!r}, must be one of: {', '.join(REDUCE)}.")
    twice, held = switch(checkpoint, f"{where}: checkpoint"), _Weights(weights, vgg.deepest(chosen))

    def seen(x: Tensor, save_memory: bool) -> dict[str, Tensor]:
        mean, std = (torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None] for values in (vgg.MEAN, vgg.STD))
        colours = (to_unit(x).expand(-1, 3, -1, -1) - mean) / std
        return vgg.features(colours, held.like(x), list(chosen), save_memory)

    @masked
    def loss(output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        same_images(output, target)
        x, y, counts = (_smaller(t, size, reduce) for t in (output, target.to(output.dtype), valid))
        _require_picture(x, least)
        with torch.no_grad():
            wanted = seen(y, False)
        have = seen(x, twice)
        terms = [
            weight * masked_mean((have[name] - wanted[name]).abs(), functional.adaptive_max_pool2d(counts.ceil(), have[name].shape[2:]))
            for name, weight in chosen.items()
        ]
        return torch.stack(terms).sum()

    return loss


class _Weights:
    """VGG16's weights, looked for at once where a path is given, read at the first use, and moved to where the images are."""

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
            with torch.inference_mode(False):  # made by a first use in validation, they could not be used in training
                raw = self.tensors or (vgg.random_weights(self.last) if self.random else vgg.load(self.path, self.last))
                self.tensors = {name: value.to(x) for name, value in raw.items()}
        return self.tensors


def _layers(value: Any, where: str) -> dict[str, float]:
    """Weight of each layer, from names or from a map."""
    good = isinstance(value, list | tuple | Mapping) and len(value) > 0
    _require(good, f"{where}: layers is {value!r}, must be a list of names, or a map from names to weights, e.g. [relu2_2, relu3_3].")
    for name in value:
        _require(name in vgg.LAYERS, f"{where}: layer {name!r} is unknown. {nearest(str(name), vgg.LAYERS)}")
    _require(len(set(value)) == len(value), f"{where}: layers {list(value)} names one twice. For more of a layer give it a weight.")
    pairs = value.items() if isinstance(value, Mapping) else [(name, 1.0) for name in value]
    return {name: number(weight, f"{where}: weight of layer {name}") for name, weight in pairs}


def _is_side(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _require(good: bool, message: str) -> None:
    if not good:
        raise ConfigError(f"loss {message}")


def _require_picture(x: Tensor, least: int) -> None:
    _require(x.ndim == 4, f"'perceptual' got {tuple(x.shape)}; it compares images (B, C, Y, X) and not volumes. Take l1 or ms_ssim.")
    _require(x.shape[1] in (1, 3), f"'perceptual' got {x.shape[1]} channels; it compares grey images (1) and RGB (3). Take l1 or ms_ssim.")
    _require(min(x.shape[2:]) >= least, f"'perceptual' got images of {tuple(x.shape[2:])}; these layers need sides of at least {least}.")


def _smaller(x: Tensor, size: int | None, how: str) -> Tensor:
    """``(B, C, Y, X)`` with sides of at most ``size``: all of it by means of areas, in proportion, or its middle."""
    if size is None or x.ndim != 4:
        return x
    height, width = x.shape[2:]
    if max(height, width) <= size:
        return x
    if how == "centre":
        top, left = max(height - size, 0) // 2, max(width - size, 0) // 2
        return x[..., top : top + size, left : left + size]
    share = size / max(height, width)
    return functional.interpolate(x, size=[max(1, round(n * share)) for n in (height, width)], mode="area")
