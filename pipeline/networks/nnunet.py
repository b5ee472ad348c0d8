"""nnU-Net's networks: the plain U-Net and the one with a residual encoder.

Their weights have nnU-Net's names, without the second names that nnU-Net gives to the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from pipeline.networks.base import (
    HeadedNet,
    activation_layer,
    are_whole,
    is_whole,
    norm_layer,
    require,
)
from pipeline.networks.nnunet_parts import (
    Blocks,
    Decoder,
    Encoder,
    Plan,
    Residual,
    Size,
    Stack,
)
from pipeline.networks.unet import Layer, per_level
from pipeline.records import DeepHead

WIDTHS = (32, 64, 128, 256, 320, 320)
BLOCKS = (1, 3, 4, 6)
"""Residual blocks of the encoder's levels; the last number is that of all further ones, too."""

WIDEST = 63
"""Largest kernel along an axis; one of 63³ takes as long as ten thousand of 3³."""

FARTHEST = 1024
"""Largest product of the strides along an axis."""


class NnUNet(HeadedNet):
    """An encoder and a decoder with a head on each of its levels.

    The coarser heads ``deep1`` ... keep the size of their level and are returned in training mode
    only. Without deep supervision their layers are there, so that the same weights fit, and frozen.

    Args:
        encoder: the way down.
        plan: the network's options.
        deep_supervision: whether there are coarser heads.
    """

    def __init__(self, encoder: Encoder, plan: Plan, deep_supervision: bool) -> None:
        total = list(accumulate(plan.strides, lambda a, b: tuple(map(int.__mul__, a, b))))
        deep = nnunet_weights(total[:-1]) if deep_supervision else {}
        super().__init__(tuple(deep) or ("main",), total[-1])
        self.deep: Mapping[str, DeepHead] = deep
        self.encoder, self.decoder = encoder, Decoder(plan)
        self.outputs = ("decoder.seg_layers",)
        count = len(plan.widths)
        self.levels = (
            *([("encoder.stem",)] if encoder.stem is not None else []),
            *((f"encoder.stages.{e}",) for e in range(count)),
            *((f"decoder.transpconvs.{d}", f"decoder.stages.{d}") for d in range(count - 1)),
        )
        _initialise(self)
        if not deep_supervision:
            self.decoder.seg_layers[:-1].requires_grad_(False)

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Compute all heads of an input whose axes are multiples of ``divisor``.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            ``{head: (B, K, *S)}``, logits, of deep heads S divided by their stride; in evaluation
            mode ``main`` alone.
        """
        found = self.decoder(self.encoder(x), self.training and len(self.heads) > 1)
        return dict(zip(self.heads, found, strict=False))


def nnunet_weights(strides: Sequence[Size]) -> dict[str, DeepHead]:
    """Weigh the heads of all sizes as nnU-Net does: halved from head to head, the coarsest by 0.

    Args:
        strides: stride of each head along each axis, that of ``main`` first.

    Returns:
        Weights, which sum to 1, and strides by head: ``main``, ``deep1`` ...

    Example:
        >>> heads = nnunet_weights([(1, 1), (2, 2), (4, 4)])
        >>> {name: round(head.weight, 4) for name, head in heads.items()}
        {'main': 0.6667, 'deep1': 0.3333, 'deep2': 0.0}
    """
    count = len(strides)
    raw = [0.0 if 0 < i == count - 1 else 0.5**i for i in range(count)]
    names = ["main", *(f"deep{i}" for i in range(1, count))]
    return {
        name: DeepHead(weight=weight / sum(raw), stride=stride)
        for name, weight, stride in zip(names, raw, strides, strict=True)
    }


def _initialise(network: nn.Module) -> None:
    """He's normal distribution for all kernels; residual blocks begin as their skip connection."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, Residual):
            for tensor in module.conv2.norm.parameters():
                nn.init.zeros_(tensor)


# --- options --------------------------------------------------------------------------------------


def plain_unet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    channels: Sequence[int] = WIDTHS,
    kernel: int | Sequence[int | Sequence[int]] = 3,
    strides: Sequence[int | Sequence[int]] | None = None,
    convs: int | Sequence[int] = 2,
    decoder_convs: int | Sequence[int] = 2,
    norm: Layer = "instance",
    activation: Layer = "leaky_relu",
    deep_supervision: bool = True,
) -> HeadedNet:
    """nnU-Net's U-Net (its PlainConvUNet): strided convolutions down, transposed ones up.

    The default has 31,196,399 weights in 3D for one channel in and three out.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every head.
        dims: space axes, 2 or 3.
        channels: width of each level, finest first, at least two levels.
        kernel: one odd number, or one entry per level: a number, or one for each axis.
        strides: one entry per level, a number or one for each axis; the first is 1. None: 1, then
            2.
        convs: convolutions of each level of the encoder: one number, or one per level.
        decoder_convs: the same for the decoder, coarsest first; one entry fewer.
        norm: instance, batch or group, see :func:`~pipeline.networks.base.norm_layer`.
        activation: see :func:`~pipeline.networks.base.activation_layer`.
        deep_supervision: train heads ``deep1`` (finest) ... of all decoder levels, each as large as
            its level, with nnU-Net's weights unless loss terms name them.

    Returns:
        The network, with head ``main`` and in training mode the deep-supervision heads.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: Isensee et al., Nature Methods 18, 2021.

    Example:
        >>> import torch
        >>> net = plain_unet(in_channels=1, out_channels=2, dims=2, channels=[4, 8, 8])
        >>> {name: tuple(y.shape) for name, y in net(torch.zeros(1, 1, 40, 50)).items()}
        {'main': (1, 2, 40, 50), 'deep1': (1, 2, 20, 25)}
        >>> round(net.deep["main"].weight, 4), net.deep["deep1"]
        (1.0, DeepHead(weight=0.0, stride=(2, 2)))
    """
    where = "network 'plain_unet'"
    plan = _plan(
        where,
        (in_channels, out_channels, dims),
        (channels, kernel, strides, decoder_convs),
        (norm, activation),
    )
    counts = _counts(convs, len(plan.widths), f"{where}: convs", "one for each level")
    inputs = (in_channels, *plan.widths)
    stages = [
        nn.Sequential(
            Stack(
                plan.unit(width if i else inputs[e], width, e, None if i else plan.strides[e])
                for i in range(counts[e])
            )
        )
        for e, width in enumerate(plan.widths)
    ]
    return NnUNet(Encoder(stages), plan, _switch(deep_supervision, where))


def resenc_unet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    channels: Sequence[int] = WIDTHS,
    kernel: int | Sequence[int | Sequence[int]] = 3,
    strides: Sequence[int | Sequence[int]] | None = None,
    blocks: int | Sequence[int] | None = None,
    decoder_convs: int | Sequence[int] = 1,
    norm: Layer = "instance",
    activation: Layer = "leaky_relu",
    deep_supervision: bool = True,
) -> HeadedNet:
    """nnU-Net's U-Net with a residual encoder (its ResidualEncoderUNet, presets ResEnc M, L, XL).

    The default has 102,350,575 weights in 3D for one channel in and three out. Each residual block
    begins as its skip connection: the last norm of the block starts with weight 0.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every head.
        dims: space axes, 2 or 3.
        channels: as in :func:`plain_unet`.
        kernel: as in :func:`plain_unet`.
        strides: as in :func:`plain_unet`.
        blocks: residual blocks of each level of the encoder: one number, or one per level. None: 1,
            3, 4, then 6.
        decoder_convs: as in :func:`plain_unet`.
        norm: as in :func:`plain_unet`.
        activation: as in :func:`plain_unet`.
        deep_supervision: as in :func:`plain_unet`.

    Returns:
        The network, with head ``main`` and in training mode the deep-supervision heads.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: Isensee et al., nnU-Net Revisited, MICCAI 2024.

    Example:
        >>> net = resenc_unet(in_channels=1, out_channels=2, dims=2, channels=[4, 8, 8])
        >>> [len(stage.blocks) for stage in net.encoder.stages]
        [1, 3, 4]
    """
    where = "network 'resenc_unet'"
    plan = _plan(
        where,
        (in_channels, out_channels, dims),
        (channels, kernel, strides, decoder_convs),
        (norm, activation),
    )
    levels = len(plan.widths)
    usual = (*BLOCKS, *[BLOCKS[-1]] * levels)[:levels]
    counts = _counts(
        usual if blocks is None else blocks, levels, f"{where}: blocks", "one for each level"
    )
    inputs = (plan.widths[0], *plan.widths)
    stages = [
        Blocks(
            Residual(plan, width if i else inputs[e], e, None if i else plan.strides[e])
            for i in range(counts[e])
        )
        for e, width in enumerate(plan.widths)
    ]
    stem = Stack([plan.unit(in_channels, plan.widths[0], 0)])
    return NnUNet(Encoder(stages, stem), plan, _switch(deep_supervision, where))


def _plan(
    where: str, sizes: tuple[int, int, int], shape: tuple[Any, ...], layers: tuple[Layer, Layer]
) -> Plan:
    """Check the options of both networks.

    ``sizes``: channels in and out, axes; ``shape``: channels, kernel, strides and convolutions of
    the decoder; ``layers``: norm and activation.
    """
    (inputs, outputs, dims), (channels, kernel, strides, decoder_convs) = sizes, shape
    require(
        are_whole(channels) and len(channels) >= 2,
        f"{where}: channels is {channels!r}, must be at least two whole numbers, one for each"
        " level, e.g. [32, 64, 128].",
    )
    levels = len(channels)
    kernels = per_level(
        [kernel] * levels if isinstance(kernel, int) else kernel, levels, dims, f"{where}: kernel"
    )
    require(
        all(k % 2 and k <= WIDEST for row in kernels for k in row),
        f"{where}: kernel is {kernel!r}, must hold odd numbers of at most {WIDEST}, e.g. 3.",
    )
    usual = [1] + [2] * (levels - 1)
    steps = per_level(usual if strides is None else strides, levels, dims, f"{where}: strides")
    require(
        set(steps[0]) == {1},
        f"{where}: strides is {strides!r}, must begin with 1, as the finest level has the size of"
        f" the image, e.g. {usual}.",
    )
    total = [math.prod(axis) for axis in zip(*steps, strict=True)]
    require(
        max(total) <= FARTHEST,
        f"{where}: strides is {strides!r}, whose product is {max(total)} along an axis, must be at"
        f" most {FARTHEST}. Use fewer levels or smaller strides.",
    )
    return Plan(
        dims=dims,
        ends=(inputs, outputs),
        widths=tuple(channels),
        kernels=kernels,
        strides=steps,
        decoder=_counts(
            decoder_convs,
            levels - 1,
            f"{where}: decoder_convs",
            "one for each level but the coarsest",
        ),
        norm=norm_layer(layers[0], channels, f"{where}: norm"),
        activation=activation_layer(layers[1], f"{where}: activation"),
    )


def _counts(value: Any, many: int, where: str, which: str) -> Size:
    """One number of at least 1 for each of ``many`` levels."""
    counts = [value] * many if is_whole(value) else value
    require(
        are_whole(counts) and len(counts) == many,
        f"{where} is {value!r}, must be a whole number of at least 1, or a list of {many} of them,"
        f" {which}.",
    )
    return tuple(counts)


def _switch(value: Any, where: str) -> bool:
    require(
        isinstance(value, bool),
        f"{where}: deep_supervision is {value!r}, must be true or false.",
    )
    return value
