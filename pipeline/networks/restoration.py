"""Two U-Nets that turn an image into an image: for translation by example and for deblurring.

Outputs are not squashed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.base import HeadedNet, Spec, is_whole, norm_layer, require

Norm = str | Mapping[str, Any]

RESIDUAL_START = 0.01
"""Factor on the initial weights of the last convolution where the input is added to its output.

Training then begins at the input, not at noise on it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What the two networks differ in."""

    block: Callable[[int, int], nn.Module]
    """``block(inside, outside)`` makes the convolutions of a level."""
    enlarge: Callable[[int, int], nn.Module]
    """``enlarge(below, width)`` doubles a map of ``below`` channels."""
    keeps_width: bool
    """Whether ``enlarge`` keeps the channels of the level below, rather than making ``width``."""
    skip_first: bool
    """Whether the skip comes before the enlarged map where they are joined."""


class ImageUNet(HeadedNet):
    """Encoder, bottom, decoder and one convolution of kernel 1.

    Args:
        widths: channels of each level, finest first, and of the bottom.
        ends: channels of the input and of the output.
        parts: how blocks and enlargements are made.
        residual: add the input to the output.
    """

    def __init__(
        self, widths: Sequence[int], ends: tuple[int, int], parts: _Parts, residual: bool = False
    ) -> None:
        *levels, bottom = widths
        super().__init__(("main",), (2 ** len(levels),) * 2)
        self.residual, self.skip_first = residual, parts.skip_first
        before = [ends[0], *levels]
        self.down = nn.ModuleList(parts.block(a, b) for a, b in zip(before, levels, strict=False))
        self.bottom = parts.block(before[-1], bottom)
        self.enlarge, self.up = nn.ModuleList(), nn.ModuleList()
        below = bottom
        for width in reversed(levels):
            self.enlarge.append(parts.enlarge(below, width))
            self.up.append(parts.block((below if parts.keeps_width else width) + width, width))
            below = width
        self.head_main = nn.Conv2d(levels[0], ends[1], 1)
        self.outputs = ("head_main",)
        self.levels = (
            *((f"down.{n}",) for n in range(len(self.down))),
            ("bottom",),
            *((f"enlarge.{n}", f"up.{n}") for n in range(len(self.up))),
        )
        if residual:
            with torch.no_grad():
                self.head_main.weight.mul_(RESIDUAL_START)
                nn.init.zeros_(self.head_main.bias)  # type: ignore[arg-type]

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the head of an input whose axes are multiples of ``divisor``.

        Args:
            x: images ``(B, C, Y, X)``.

        Returns:
            ``{"main": (B, K, Y, X)}``, intensities.
        """
        y, skips = x, []
        for level in self.down:
            skips.append(level(y))
            y = functional.max_pool2d(skips[-1], 2)
        y = self.bottom(y)
        for enlarge, level in zip(self.enlarge, self.up, strict=True):
            skip, large = skips.pop(), enlarge(y)
            y = level(torch.cat([skip, large] if self.skip_first else [large, skip], 1))
        y = self.head_main(y)
        return {"main": x + y if self.residual else y}


def _double(inside: int, outside: int, *, norm: Spec | None, bias: bool) -> nn.Module:
    """Convolution of kernel 3, norm, ReLU; twice."""
    layers: list[nn.Module] = []
    for width in (inside, outside):
        layers.append(nn.Conv2d(width, outside, 3, padding=1, bias=bias))
        layers += [] if norm is None else [get_norm_layer(norm, spatial_dims=2, channels=outside)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _interpolate(_inside: int, _outside: int, *, align_corners: bool) -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners)


def _interpolate_and_mix(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(
        _interpolate(inside, outside, align_corners=False), nn.Conv2d(inside, outside, 3, padding=1)
    )


def image_unet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    base: int = 64,
    depth: int = 4,
    norm: Norm = "batch",
    align_corners: bool = True,
) -> HeadedNet:
    """U-Net for pairs of images (TUNET, 2025), with a light decoder.

    Its bilinear enlargement has no weights. Convolutions have a bias only where there is no norm.
    (Doubling is not bitwise reproducible on CUDA.) The default has 31,384,963 weights for three
    channels in and out.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        dims: 2.
        base: width of the finest level, doubled at each halving.
        depth: number of halvings.
        norm: batch, group, instance or none; group and instance make a tile depend on all of its
            pixels.
        align_corners: how maps are doubled. ``True``, as in the original, puts corners on corners:
            the step between samples is (n - 1) / (2n - 1), so every value depends on the size of
            the map, and tiles cannot equal the whole image however large their halo. ``False``
            steps by one half everywhere: with batch norm or none, tiles are then exact.

    Returns:
        The network, with head ``main``.

    Raises:
        ConfigError: for ``dims`` other than 2, or an option that cannot be used.

    Example:
        >>> net = image_unet(in_channels=3, out_channels=3, dims=2, base=4, depth=2)
        >>> net(torch.rand(1, 3, 30, 50))["main"].shape
        torch.Size([1, 3, 30, 50])
    """
    where = "network 'image_unet'"
    _require_image(dims, where)
    require(
        is_whole(base), f"{where}: base is {base!r}, must be a whole number of at least 1, e.g. 64."
    )
    require(
        is_whole(depth),
        f"{where}: depth is {depth!r}, must be a whole number of at least 1, e.g. 4 halvings.",
    )
    require(
        isinstance(align_corners, bool),
        f"{where}: align_corners is {align_corners!r}, must be true or false.",
    )
    widths = [base * 2**i for i in range(depth + 1)]
    spec = _norm(norm, widths, f"{where}: norm (besides 'none')")
    parts = _Parts(
        block=partial(_double, norm=spec, bias=spec is None),
        enlarge=partial(_interpolate, align_corners=align_corners),
        keeps_width=True,
        skip_first=True,
    )
    return ImageUNet(widths, (in_channels, out_channels), parts)


def deblur_unet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    base: int = 32,
    groups: int = 8,
    norm: Norm = "group",
    residual: bool = False,
) -> HeadedNet:
    """U-Net for deblurring, with four halvings and group norm.

    Maps are enlarged by bilinear interpolation and a convolution (no checkerboard). (Doubling is
    not bitwise reproducible on CUDA.) The default has 8,636,451 weights for three channels in and
    out.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        dims: 2.
        base: width of the finest level; the bottom has 16 times as many channels.
        groups: those of ``norm: group``; with ``norm: batch`` or ``none`` it is not used.
        norm: batch, group, instance or none. Group norm reads all pixels of its input, so the
            output at a pixel differs between a tile and the whole image.
        residual: the network learns what to add to its input, ``x + f(x)``, and starts with next to
            nothing.

    Returns:
        The network, with head ``main``.

    Raises:
        ConfigError: for ``dims`` other than 2, an option that cannot be used, or ``residual`` with
            different channel counts.

    Example:
        >>> net = deblur_unet(in_channels=1, out_channels=1, dims=2, base=8, residual=True)
        >>> net(torch.rand(1, 1, 30, 50))["main"].shape
        torch.Size([1, 1, 30, 50])
    """
    where = "network 'deblur_unet'"
    _require_image(dims, where)
    require(
        is_whole(base), f"{where}: base is {base!r}, must be a whole number of at least 1, e.g. 32."
    )
    require(
        is_whole(groups),
        f"{where}: groups is {groups!r}, must be a whole number of at least 1, e.g. 8.",
    )
    require(
        isinstance(residual, bool), f"{where}: residual is {residual!r}, must be true or false."
    )
    require(
        not residual or in_channels == out_channels,
        f"{where}: residual adds the input of {in_channels} channels to an output of"
        f" {out_channels}. Set residual: false, or bring both to one number.",
    )
    widths = [base * 2**i for i in range(5)]
    spec = _norm(
        {"name": "group", "options": {"num_groups": groups}} if norm == "group" else norm,
        widths,
        f"{where}: norm (besides 'none')",
    )
    parts = _Parts(
        block=partial(_double, norm=spec, bias=True),
        enlarge=_interpolate_and_mix,
        keeps_width=False,
        skip_first=False,
    )
    return ImageUNet(widths, (in_channels, out_channels), parts, residual)


def _norm(value: Norm, widths: Sequence[int], where: str) -> Spec | None:
    return None if value == "none" else norm_layer(value, widths, where)


def _require_image(dims: int, where: str) -> None:
    require(
        dims == 2,
        f"{where} is a network for images, but data.dims is {dims}. Set data.dims: 2, or take the"
        " network 'unet'.",
    )
