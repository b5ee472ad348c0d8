"""U-Nets from MONAI with named heads: the plain U-Net, nnU-Net's DynUNet, and SegResNet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.dynunet import DynUNet, DynUNetSkipLayer
from monai.networks.nets.segresnet import SegResNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn

from pipeline.networks.base import (
    HeadedNet,
    activation_layer,
    are_whole,
    choice,
    fraction,
    is_whole,
    norm_layer,
    require,
)

UPSAMPLE = ("deconv", "nontrainable", "pixelshuffle")
Layer = str | Mapping[str, Any]


class UNet(HeadedNet):
    """A U-Net that ends in features, and one convolution of kernel 1 for each head.

    Args:
        trunk: the U-Net; its last convolution becomes that of head ``main``.
        dims: space axes, 2 or 3.
        heads: further heads, name to channel count.
    """

    def __init__(self, trunk: BasicUNet, dims: int, heads: Mapping[str, int]) -> None:
        super().__init__(("main", *heads), (16,) * dims)
        main = trunk.final_conv
        trunk.final_conv = nn.Identity()
        self.trunk = trunk
        # Prefixed attributes, not a ModuleDict: that refuses a head named "values" or "type".
        self.add_module("head_main", main)
        for name, channels in heads.items():
            self.add_module(f"head_{name}", type(main)(main.in_channels, channels, kernel_size=1))
        self.outputs = tuple(f"head_{name}" for name in self.heads)
        names = [
            "conv_0",
            *(f"down_{n}" for n in range(1, 5)),
            *(f"upcat_{n}" for n in (4, 3, 2, 1)),
        ]
        self.levels = tuple((f"trunk.{name}",) for name in names)

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Compute all heads of an input whose axes are multiples of 16.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            ``{head: (B, K, *S)}``, logits.
        """
        features = self.trunk(x)
        return {name: self.get_submodule(f"head_{name}")(features) for name in self.heads}


def unet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    channels: Sequence[int] = (32, 64, 128, 256, 512),
    last: int | None = None,
    norm: Layer = "instance",
    activation: Layer = "leaky_relu",
    dropout: float = 0.0,
    upsample: str = "deconv",
    heads: Mapping[str, int] | None = None,
) -> HeadedNet:
    """Five-level U-Net: two convolutions of kernel 3 per level, max pooling, skip connections.

    The default has 22,625,281 weights in 3D for one channel in and out.

    Args:
        in_channels: channels of the input.
        out_channels: channels of head ``main``.
        dims: space axes, 2 or 3.
        channels: width of each level, finest first.
        last: width after the last upsampling; None: the first width.
        norm: instance, batch or group, see :func:`~pipeline.networks.base.norm_layer`.
        activation: see :func:`~pipeline.networks.base.activation_layer`.
        dropout: probability, in [0, 1).
        upsample: deconv, nontrainable (linear interpolation; not bitwise reproducible on CUDA) or
            pixelshuffle.
        heads: further outputs on the shared trunk, name to channel count, e.g. ``{mask: 1}``.

    Returns:
        The network, with heads ``main`` and those of ``heads``.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: Falk et al., Nature Methods 16, 2019; MONAI's ``BasicUNet``.

    Example:
        >>> widths = [4, 4, 8, 8, 16]
        >>> net = unet(in_channels=1, out_channels=3, dims=2, channels=widths, heads={"mask": 1})
        >>> {name: tuple(y.shape) for name, y in net(torch.zeros(1, 1, 40, 50)).items()}
        {'main': (1, 3, 40, 50), 'mask': (1, 1, 40, 50)}
    """
    where = "network 'unet'"
    require(
        are_whole(channels, 2) and len(channels) == 5,
        f"{where}: channels is {channels!r}, must be five whole numbers of at least 2, e.g. [32,"
        " 64, 128, 256, 512]. dynunet takes other depths.",
    )
    last = channels[0] if last is None else last
    require(
        is_whole(last),
        f"{where}: last is {last!r}, must be a whole number of at least 1, or null for the first"
        " width.",
    )
    further = _further_heads({} if heads is None else heads, where)
    trunk = BasicUNet(
        dims,
        in_channels,
        out_channels,
        features=(*channels, last),
        norm=norm_layer(norm, (*channels, last), f"{where}: norm"),
        act=activation_layer(activation, f"{where}: activation"),
        dropout=fraction(dropout, f"{where}: dropout"),
        upsample=choice(upsample, UPSAMPLE, f"{where}: upsample"),
    )
    return UNet(trunk, dims, further)


def _further_heads(heads: Any, where: str) -> Mapping[str, int]:
    require(
        isinstance(heads, Mapping),
        f"{where}: heads is {heads!r}, must map names to channel counts, e.g. {{mask: 1}}.",
    )
    for name, channels in heads.items():
        free = (
            isinstance(name, str)
            and re.fullmatch(r"[A-Za-z]\w*", name)
            and name != "main"
            and not re.fullmatch(r"deep\d*", name)
        )
        require(
            bool(free),
            f"{where}: head {name!r} must be a word other than 'main' and 'deep...', which mean"
            " something, e.g. mask.",
        )
        require(
            is_whole(channels),
            f"{where}: head {name!r} has {channels!r} channels, must be a whole number of at"
            " least 1.",
        )
    return heads


class DeepUNet(HeadedNet):
    """DynUNet whose deep-supervision maps are the heads ``deep1`` (finest), ``deep2``, ...

    These heads have full size and are returned in training mode only.

    Args:
        trunk: the network.
        divisor: for each axis the product of the strides.
        deep: number of deep-supervision heads.
        block: edge of the blocks that are folded into channels; 1: none.
    """

    def __init__(self, trunk: DynUNet, divisor: Sequence[int], deep: int, block: int = 1) -> None:
        super().__init__(
            ("main", *(f"deep{i}" for i in range(1, deep + 1))), [d * block for d in divisor]
        )
        self.block = block
        # MONAI registers these blocks a second time inside skip_layers; each weight must have one
        # name to be saved.
        for duplicate in (
            "input_block",
            "downsamples",
            "bottleneck",
            "upsamples",
            "deep_supervision_heads",
        ):
            if hasattr(trunk, duplicate):
                delattr(trunk, duplicate)
        self.trunk = trunk
        self.outputs, self.levels = _nested(trunk)

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Compute all heads of an input whose axes are multiples of ``divisor``.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            ``{head: (B, K, *S)}``, logits; in evaluation mode ``main`` alone.
        """
        y = self.trunk(pixelunshuffle(x, len(self.divisor), self.block) if self.block > 1 else x)
        # MONAI keeps the maps of the last pass in a list, which then holds the graph alive and
        # breaks deepcopy.
        self.trunk.heads[:] = [torch.empty(0)] * len(self.trunk.heads)
        stacked = self.training and len(self.heads) > 1
        maps = dict(zip(self.heads, y.unbind(1), strict=True)) if stacked else {"main": y}
        return (
            {k: pixelshuffle(v, len(self.divisor), self.block) for k, v in maps.items()}
            if self.block > 1
            else maps
        )


def _nested(trunk: DynUNet) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Output layers and levels of a DynUNet, whose levels lie in one another."""
    outputs, down, up = ["trunk.output_block"], [], []
    name, layer = "trunk.skip_layers", trunk.skip_layers
    while isinstance(layer, DynUNetSkipLayer):
        down.append((f"{name}.downsample",))
        up.append((f"{name}.upsample",))
        outputs += [f"{name}.super_head"] if layer.super_head is not None else []
        name, layer = f"{name}.next_layer", layer.next_layer
    return tuple(outputs), (*down, (name,), *reversed(up))


def dynunet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    channels: Sequence[int] = (32, 64, 128, 256, 320, 320),
    kernel: int | Sequence[int | Sequence[int]] = 3,
    strides: Sequence[int | Sequence[int]] | None = None,
    norm: Layer = "instance",
    activation: Layer = "leaky_relu",
    residual: bool = False,
    deep_supervision: int = 0,
    block: int = 1,
) -> HeadedNet:
    """U-Net as nnU-Net builds it: strided convolutions, any depth, anisotropic kernels and strides.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every head.
        dims: space axes, 2 or 3.
        channels: width of each level, finest first, at least three levels.
        kernel: one odd number, or one entry per level: a number, or one for each axis.
        strides: one entry per level, 1 or 2, or one number for each axis; the first is 1. None: 1,
            then 2.
        norm: instance, batch or group, see :func:`~pipeline.networks.base.norm_layer`.
        activation: see :func:`~pipeline.networks.base.activation_layer`.
        residual: use residual blocks in the encoder.
        deep_supervision: number of further heads ``deep1`` ..., each from a level at half the size
            of the one before, enlarged to full size by repetition; at most the levels less 2.
        block: fold blocks of this edge into channels before the network and unfold its output
            (sub-pixel convolution, Shi et al., CVPR 2016): with 2, the finest level works on an
            eighth of the voxels in 3D.

    Returns:
        The network, with head ``main`` and in training mode the deep-supervision heads.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: Isensee et al., Nature Methods 18, 2021; MONAI's ``DynUNet``.

    Example:
        >>> options = {"channels": [4, 8, 8], "deep_supervision": 1}
        >>> net = dynunet(in_channels=1, out_channels=2, dims=2, **options)
        >>> x = torch.zeros(1, 1, 40, 50)
        >>> sorted(net(x)), sorted(net.eval()(x))
        (['deep1', 'main'], ['main'])
    """
    where = "network 'dynunet'"
    require(
        are_whole(channels) and len(channels) >= 3,
        f"{where}: channels is {channels!r}, must be at least three whole numbers, one for each"
        " level, e.g. [32, 64, 128].",
    )
    levels = len(channels)
    kernels = per_level(
        [kernel] * levels if isinstance(kernel, int) else kernel, levels, dims, f"{where}: kernel"
    )
    require(
        all(k % 2 for row in kernels for k in row),
        f"{where}: kernel is {kernel!r}, must hold odd numbers, e.g. 3.",
    )
    steps = per_level(
        [1] + [2] * (levels - 1) if strides is None else strides, levels, dims, f"{where}: strides"
    )
    good = all(s in (1, 2) for row in steps for s in row) and set(steps[0]) == {1}
    require(
        good,
        f"{where}: strides is {strides!r}, must hold 1 and 2 only and begin with 1, e.g."
        f" {[1] + [2] * (levels - 1)}.",
    )
    require(
        isinstance(residual, bool), f"{where}: residual is {residual!r}, must be true or false."
    )
    require(
        is_whole(deep_supervision, 0) and deep_supervision <= levels - 2,
        f"{where}: deep_supervision is {deep_supervision!r}, must be a whole number from 0 to"
        f" {levels - 2} with {levels} levels.",
    )
    require(
        is_whole(block),
        f"{where}: block is {block!r}, must be a whole number of at least 1; 1 switches it off.",
    )
    trunk = DynUNet(
        dims,
        in_channels * block**dims,
        out_channels * block**dims,
        kernel_size=kernels,
        strides=steps,
        upsample_kernel_size=steps[1:],
        filters=list(channels),
        norm_name=norm_layer(norm, channels, f"{where}: norm"),
        act_name=activation_layer(activation, f"{where}: activation"),
        deep_supervision=deep_supervision > 0,
        deep_supr_num=max(deep_supervision, 1),
        res_block=residual,
    )
    return DeepUNet(
        trunk, [prod(axis) for axis in zip(*steps, strict=True)], deep_supervision, block
    )


def per_level(value: Any, levels: int, dims: int, where: str) -> list[tuple[int, ...]]:
    """Check an option that holds one size for each level.

    Args:
        value: a list of whole numbers of at least 1, or of lists of ``dims`` of them.
        levels: entries that it must have.
        dims: space axes.
        where: name of the option in the message.

    Returns:
        ``dims`` numbers for each level.

    Raises:
        ConfigError: if it is no such list.
    """
    listed = isinstance(value, list | tuple) and len(value) == levels
    rows = [(v,) * dims if isinstance(v, int) else v for v in value] if listed else []
    require(
        listed and all(are_whole(row) and len(row) == dims for row in rows),
        f"{where} is {value!r}, must hold {levels} entries, one for each level: a whole number, or"
        f" {dims} of them.",
    )
    return [tuple(row) for row in rows]


class ResidualUNet(HeadedNet):
    """SegResNet with its one output as head ``main``.

    Args:
        trunk: the network.
        divisor: for each axis the factor between the finest and the coarsest level.
    """

    def __init__(self, trunk: SegResNet, divisor: Sequence[int]) -> None:
        super().__init__(("main",), divisor)
        self.trunk = trunk
        down, up = len(trunk.down_layers), len(trunk.up_layers)
        self.outputs = ("trunk.conv_final.2",)
        self.levels = (
            ("trunk.convInit", "trunk.down_layers.0"),
            *((f"trunk.down_layers.{n}",) for n in range(1, down)),
            *((f"trunk.up_samples.{n}", f"trunk.up_layers.{n}") for n in range(up - 1)),
            (f"trunk.up_samples.{up - 1}", f"trunk.up_layers.{up - 1}", "trunk.conv_final.0"),
        )

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the head of an input whose axes are multiples of ``divisor``.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            ``{"main": (B, K, *S)}``, logits.
        """
        return {"main": self.trunk(x)}


def segresnet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    filters: int = 32,
    blocks_down: Sequence[int] = (1, 2, 2, 4),
    blocks_up: Sequence[int] = (1, 1, 1),
    norm: Layer = "group",
    activation: Layer = "relu",
    upsample: str = "nontrainable",
) -> HeadedNet:
    """Residual encoder with a light decoder, without the autoencoder branch of the paper.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        dims: space axes, 2 or 3.
        filters: width of the finest level, doubled at each level.
        blocks_down: residual blocks of each level on the way down, finest first.
        blocks_up: residual blocks of each level on the way up, coarsest first; one entry fewer.
        norm: group, instance or batch, see :func:`~pipeline.networks.base.norm_layer`.
        activation: see :func:`~pipeline.networks.base.activation_layer`.
        upsample: as in :func:`unet`.

    Returns:
        The network, with head ``main``.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: Myronenko, BrainLes 2018; MONAI's ``SegResNet``.

    Example:
        >>> net = segresnet(in_channels=4, out_channels=3, dims=3, filters=8)
        >>> net(torch.zeros(1, 4, 16, 16, 20))["main"].shape
        torch.Size([1, 3, 16, 16, 20])
    """
    where = "network 'segresnet'"
    require(
        is_whole(filters),
        f"{where}: filters is {filters!r}, must be a whole number of at least 1, e.g. 32.",
    )
    require(
        are_whole(blocks_down) and len(blocks_down) >= 2,
        f"{where}: blocks_down is {blocks_down!r}, must be at least two whole numbers, one for each"
        " level, e.g. [1, 2, 2, 4].",
    )
    levels = len(blocks_down)
    require(
        are_whole(blocks_up) and len(blocks_up) == levels - 1,
        f"{where}: blocks_up is {blocks_up!r}, must be {levels - 1} whole numbers, one fewer than"
        f" blocks_down, e.g. {[1] * (levels - 1)}.",
    )
    trunk = SegResNet(
        dims,
        filters,
        in_channels,
        out_channels,
        norm=norm_layer(norm, [filters * 2**i for i in range(levels)], f"{where}: norm"),
        act=activation_layer(activation, f"{where}: activation"),
        blocks_down=tuple(blocks_down),
        blocks_up=tuple(blocks_up),
        upsample_mode=choice(upsample, UPSAMPLE, f"{where}: upsample"),
    )
    return ResidualUNet(trunk, (2 ** (levels - 1),) * dims)
