"""SA-UNet for thin structures: a small U-Net with DropBlock and spatial attention at its bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.base import HeadedNet, are_whole, choice, fraction, is_whole, require
from pipeline.networks.dropblock import SCHEDULES, DropBlock

Layer = Callable[[int, int], nn.Module]


class SpatialAttention(nn.Module):
    """Spatial attention: ``x * sigmoid(conv([mean, max over channels]))``.

    Args:
        kernel: edge of the convolution, odd.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh every pixel by what its channels hold.

        Args:
            x: ``(B, C, Y, X)``.

        Returns:
            ``(B, C, Y, X)``.
        """
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.conv(summary).sigmoid()


class Doubling(nn.Module):
    """Transposed convolution of kernel 3 and stride 2, aligned as with Keras' ``same``.

    Input pixel i reaches output pixels 2i, 2i + 1 and 2i + 2; torch's own padding would give 2i -
    1, 2i and 2i + 1.

    Args:
        inside: channels in.
        outside: channels out.
    """

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inside, outside, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Double a map.

        Args:
            x: ``(B, inside, Y, X)``.

        Returns:
            ``(B, outside, 2 Y, 2 X)``.
        """
        return self.conv(x)[..., :-1, :-1]


class SAUNet(HeadedNet):
    """Encoder, bottom with attention, decoder and one convolution of kernel 1.

    Args:
        channels: width of each level, finest first.
        ends: channels of the input and of the output.
        layer: ``layer(inside, outside)`` makes one block.
        kernel: edge of the attention's convolution.
    """

    def __init__(
        self, channels: Sequence[int], ends: tuple[int, int], layer: Layer, kernel: int
    ) -> None:
        *widths, bottom = channels
        super().__init__(("main",), (2 ** len(widths),) * 2)
        before = [ends[0], *widths]
        self.down = nn.ModuleList(
            nn.Sequential(layer(a, b), layer(b, b)) for a, b in zip(before, widths, strict=False)
        )
        self.bottom = nn.Sequential(
            layer(before[-1], bottom), SpatialAttention(kernel), layer(bottom, bottom)
        )
        # (width below, width), coarsest first
        pairs = list(zip([*widths[1:], bottom], widths, strict=True))[::-1]
        self.enlarge = nn.ModuleList(Doubling(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.Sequential(layer(2 * b, b), layer(b, b)) for _, b in pairs)
        self.head_main = nn.Conv2d(widths[0], ends[1], 1)
        self.outputs = ("head_main",)
        self.levels = (
            *((f"down.{n}",) for n in range(len(self.down))),
            ("bottom",),
            *((f"enlarge.{n}", f"up.{n}") for n in range(len(self.up))),
        )
        self.apply(_initialise)

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the head of an input whose axes are multiples of ``divisor``.

        Args:
            x: images ``(B, C, Y, X)``.

        Returns:
            ``{"main": (B, K, Y, X)}``, logits.
        """
        skips: list[Tensor] = []
        for level in self.down:
            skips.append(level(x))
            x = functional.max_pool2d(skips[-1], 2)
        x = self.bottom(x)
        for enlarge, level in zip(self.enlarge, self.up, strict=True):
            x = level(torch.cat([enlarge(x), skips.pop()], 1))
        return {"main": self.head_main(x)}


def _block(
    inside: int, outside: int, *, drop: Callable[[], DropBlock], momentum: float
) -> nn.Module:
    """Convolution, DropBlock, batch norm, ReLU.

    The norm comes after DropBlock, so it sees the maps with their holes.
    """
    norm = nn.BatchNorm2d(outside, eps=1e-3, momentum=momentum)
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1), drop(), norm, nn.ReLU(inplace=True)
    )


def _initialise(module: nn.Module) -> None:
    """Keras' initialisation: Glorot uniform, no bias; He et al. (ICCV 2015) for the attention."""
    if isinstance(module, SpatialAttention):
        nn.init.kaiming_normal_(module.conv.weight, nonlinearity="relu")
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def sa_unet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    channels: Sequence[int] = (16, 32, 64, 128),
    keep: float = 0.9,
    block: int = 7,
    schedule: str = "constant",
    kernel: int = 7,
    momentum: float = 0.01,
) -> HeadedNet:
    """SA-UNet, layer by layer as its authors built it, for images only.

    The default has 537,299 weights for three channels in and one out (and 1,408 running statistics,
    which are not trained).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        dims: 2.
        channels: width of each level, finest first, at least two.
        keep: share of units that DropBlock keeps, in (0, 1]; 1 drops nothing. The authors trained
            DRIVE with 0.82 and CHASE_DB1 with 0.87, constant.
        block: edge of DropBlock's blocks. They need maps of at least that edge: for a block of 7 at
            the bottom, patches of 56 and more.
        schedule: ``constant`` or ``linear``, see :class:`~pipeline.networks.dropblock.DropBlock`.
        kernel: edge of the attention's convolution, odd.
        momentum: share of the newest batch in the statistics that batch norm keeps for prediction;
            0.01 is Keras' default and wants several hundred steps, torch's own is 0.1.

    Returns:
        The network, with head ``main``.

    Raises:
        ConfigError: for ``dims`` other than 2, or an option that cannot be used.

    Source: Guo et al., ICPR 2020.

    Example:
        >>> net = sa_unet(in_channels=3, out_channels=1, dims=2)
        >>> sum(p.numel() for p in net.parameters())
        537299
    """
    where = "network 'sa_unet'"
    require(
        dims == 2,
        f"{where} is a network for images, but data.dims is {dims}. Set data.dims: 2, or take the"
        " network 'unet'.",
    )
    require(
        are_whole(channels) and len(channels) >= 2,
        f"{where}: channels is {channels!r}, must be at least two whole numbers, one for each"
        " level, e.g. [16, 32, 64, 128].",
    )
    require(
        _is_share(keep),
        f"{where}: keep is {keep!r}, must be a number above 0 and at most 1, e.g. 0.9; 1 drops"
        " nothing.",
    )
    require(
        is_whole(block),
        f"{where}: block is {block!r}, must be a whole number of at least 1, e.g. 7.",
    )
    choice(schedule, SCHEDULES, f"{where}: schedule")
    require(
        is_whole(kernel) and kernel % 2 == 1,
        f"{where}: kernel is {kernel!r}, must be an odd whole number, e.g. 7.",
    )
    momentum = fraction(momentum, f"{where}: momentum")
    require(
        momentum > 0,
        f"{where}: momentum is 0, so batch norm would never learn its statistics. Set e.g. 0.01.",
    )
    layer = partial(
        _block, drop=partial(DropBlock, float(keep), block, schedule), momentum=momentum
    )
    return SAUNet(channels, (in_channels, out_channels), layer, kernel)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
