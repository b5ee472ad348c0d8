"""MedNeXt: a U-Net of large depthwise convolutions, from MONAI, with deep supervision."""

from __future__ import annotations

from collections.abc import Mapping

from monai.networks.nets.mednext import MedNeXt, create_mednext
from torch import Tensor

from pipeline.networks.base import HeadedNet, choice, require
from pipeline.networks.nnunet import nnunet_weights
from pipeline.records import DeepHead

SIZES = ("S", "B", "M", "L")
KERNELS = (3, 5)


class MedNeXtNet(HeadedNet):
    """MONAI's MedNeXt whose coarser outputs are the heads ``deep1`` (finest) ... ``deep4``.

    These keep the size of their level, that of the bottleneck included, and are returned in
    training mode only.

    Args:
        trunk: the network.
        dims: space axes, 2 or 3.
    """

    def __init__(self, trunk: MedNeXt, dims: int) -> None:
        levels = len(trunk.up_blocks)
        strides = [(2**i,) * dims for i in range(levels + 1)]
        deep = nnunet_weights(strides) if trunk.do_ds else {}
        super().__init__(tuple(deep) or ("main",), strides[-1])
        self.deep: Mapping[str, DeepHead] = deep
        self.trunk = trunk
        self.outputs = ("trunk.out_0", *(["trunk.out_blocks"] if trunk.do_ds else []))
        self.levels = (
            ("trunk.stem",),
            ("trunk.enc_stages.0",),
            *(
                (f"trunk.down_blocks.{e - 1}", f"trunk.enc_stages.{e}")
                for e in range(1, len(trunk.enc_stages))
            ),
            (f"trunk.down_blocks.{len(trunk.down_blocks) - 1}", "trunk.bottleneck"),
            *((f"trunk.up_blocks.{d}", f"trunk.dec_stages.{d}") for d in range(levels)),
        )

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Compute all heads of an input whose axes are multiples of ``divisor``.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            ``{head: (B, K, *S)}``, logits, of deep heads S divided by their stride; in evaluation
            mode ``main`` alone.
        """
        found = self.trunk(x)  # with deep heads a tuple, finest first
        return (
            {"main": found}
            if isinstance(found, Tensor)
            else dict(zip(self.heads, found, strict=True))
        )


def mednext(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    size: str = "S",
    kernel: int = 3,
    deep_supervision: bool = True,
) -> HeadedNet:
    """MedNeXt of the published sizes, as MONAI builds it.

    Weights in 3D for one channel in and 14 out, with deep supervision. Kernel 3: S 5,564,806, B
    10,524,742, M 17,547,398, L 61,740,646. Kernel 5: S 5,994,438, B 10,954,374, M 18,259,270, L
    62,954,278. All eight agree to 0.1 million with the published ones: 5.6, 10.5, 17.6 and 61.8;
    5.9, 11.0, 18.3 and 63.0.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every head.
        dims: space axes, 3, or 2, in which its authors did not test it.
        size: S, B, M or L.
        kernel: 3 or 5.
        deep_supervision: train heads ``deep1`` (finest) ... ``deep4``, each as large as its level,
            with nnU-Net's weights unless loss terms name them.

    Returns:
        The network, with head ``main`` and in training mode the deep-supervision heads.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: Roy et al., MICCAI 2023; MONAI's ``create_mednext``.

    Example:
        >>> import torch
        >>> net = mednext(in_channels=1, out_channels=2, dims=2)
        >>> {name: tuple(y.shape[2:]) for name, y in net(torch.zeros(1, 1, 32, 40)).items()}
        {'main': (32, 40), 'deep1': (16, 20), 'deep2': (8, 10), 'deep3': (4, 5), 'deep4': (2, 3)}
    """
    where = "network 'mednext'"
    choice(size, SIZES, f"{where}: size")
    require(
        kernel in KERNELS and not isinstance(kernel, bool),
        f"{where}: kernel is {kernel!r}, must be 3 or 5, as published.",
    )
    require(
        isinstance(deep_supervision, bool),
        f"{where}: deep_supervision is {deep_supervision!r}, must be true or false.",
    )
    trunk = create_mednext(size, dims, in_channels, out_channels, kernel, deep_supervision)
    return MedNeXtNet(trunk, dims)
