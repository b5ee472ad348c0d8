"""Encoder and decoder of nnU-Net's networks, whose weights have nnU-Net's names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import Tensor, nn

from pipeline.networks.base import Spec
from pipeline.networks.slices import SliceConv3d, SliceConvTranspose3d

CONV = {2: nn.Conv2d, 3: SliceConv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: SliceConvTranspose3d}
POOL = {2: nn.AvgPool2d, 3: nn.AvgPool3d}

Size = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The checked options that both networks share: one entry for each level, finest first."""

    dims: int
    ends: tuple[int, int]
    """Channels of the input and of every head."""
    widths: Size
    kernels: Sequence[Size]
    strides: Sequence[Size]
    decoder: Size
    """Convolutions of the decoder's levels, coarsest first."""
    norm: Spec
    activation: Spec

    def unit(self, inputs: int, outputs: int, level: int, stride: Size | None = None) -> Unit:
        """Make a convolution with the kernel of a level, and norm and activation behind it.

        Args:
            inputs: channels of its input.
            outputs: channels of its output.
            level: number of the level.
            stride: steps of the convolution; None: 1.

        Returns:
            The layers.
        """
        kernel = self.kernels[level]
        conv = CONV[self.dims](
            inputs, outputs, kernel, stride or 1, padding=tuple(k // 2 for k in kernel)
        )
        return Unit(conv, *self.behind(outputs))

    def behind(self, channels: int) -> tuple[nn.Module, nn.Module]:
        """Make the norm and the activation behind a convolution.

        Args:
            channels: outputs of the convolution.

        Returns:
            Both layers.
        """
        norm = get_norm_layer(self.norm, spatial_dims=self.dims, channels=channels)
        return norm, get_act_layer(self.activation)


class Unit(nn.Module):
    """Convolution, norm and, where there is one, activation.

    Args:
        conv: the convolution.
        norm: the norm.
        nonlin: the activation; None: none.
    """

    def __init__(self, conv: nn.Module, norm: nn.Module, nonlin: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.nonlin = conv, norm, nonlin

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layers.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            ``(B, K, *S)``, S divided by the stride.
        """
        y = self.norm(self.conv(x))
        return y if self.nonlin is None else self.nonlin(y)


class Stack(nn.Module):
    """Several convolutions behind each other.

    Args:
        convs: the convolutions.
    """

    def __init__(self, convs: Iterable[Unit]) -> None:
        super().__init__()
        self.convs = nn.Sequential(*convs)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layers.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            ``(B, K, *S)``, S divided by the stride of the first convolution.
        """
        return self.convs(x)


class Residual(nn.Module):
    """Two convolutions, to whose result the input is added before the second activation.

    Where sizes differ, the input is reduced by the means of blocks; where channels do, by a
    convolution of kernel 1 with a norm.

    Args:
        plan: the network's options.
        inputs: channels of the input.
        level: number of the level.
        stride: steps of the first convolution; None: 1.
    """

    def __init__(self, plan: Plan, inputs: int, level: int, stride: Size | None = None) -> None:
        super().__init__()
        width = plan.widths[level]
        self.conv1 = plan.unit(inputs, width, level, stride)
        self.conv2 = plan.unit(width, width, level)
        self.nonlin2, self.conv2.nonlin = self.conv2.nonlin, None
        ways: list[nn.Module] = []
        if stride is not None and max(stride) > 1:
            ways.append(POOL[plan.dims](stride, stride))
        if inputs != width:
            conv = CONV[plan.dims](inputs, width, 1, bias=False)
            ways.append(Unit(conv, plan.behind(width)[0]))
        self.skip = nn.Sequential(*ways)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layers.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            ``(B, K, *S)``, S divided by the stride.
        """
        assert self.nonlin2 is not None
        return self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))


class Blocks(nn.Module):
    """Several residual blocks behind each other.

    Args:
        blocks: the blocks.
    """

    def __init__(self, blocks: Iterable[Residual]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the blocks.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            ``(B, K, *S)``, S divided by the stride of the first block.
        """
        return self.blocks(x)


class Encoder(nn.Module):
    """The way down.

    Args:
        stages: one for each level, finest first.
        stem: what is computed before the first stage; None: nothing.
    """

    def __init__(self, stages: Iterable[nn.Module], stem: Stack | None = None) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the features of all levels.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            Features of each level, finest first.
        """
        x = x if self.stem is None else self.stem(x)
        found: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class Decoder(nn.Module):
    """The way up: each level is enlarged and joined with the encoder's features of that size.

    Args:
        plan: the network's options.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        up, widths = TRANSPOSED[plan.dims], plan.widths
        levels = range(len(widths) - 2, -1, -1)
        self.transpconvs = nn.ModuleList(
            up(widths[e + 1], widths[e], plan.strides[e + 1], plan.strides[e + 1]) for e in levels
        )
        self.stages = nn.ModuleList(
            Stack(
                plan.unit(widths[e] if i else 2 * widths[e], widths[e], e)
                for i in range(plan.decoder[d])
            )
            for d, e in enumerate(levels)
        )
        self.seg_layers = nn.ModuleList(
            CONV[plan.dims](widths[e], plan.ends[1], kernel_size=1) for e in levels
        )

    def forward(self, features: Sequence[Tensor], every: bool) -> list[Tensor]:
        """Compute the heads.

        Args:
            features: those of the encoder, finest first.
            every: whether the heads of all levels are wanted, or only the finest.

        Returns:
            Logits, finest first.
        """
        *skips, x = features
        heads: list[Tensor] = []
        for d, skip in enumerate(reversed(skips)):
            x = self.stages[d](torch.cat([self.transpconvs[d](x), skip], dim=1))
            if every or d + 1 == len(skips):
                heads.insert(0, self.seg_layers[d](x))
        return heads
