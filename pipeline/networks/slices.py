"""Convolutions of volumes that are one slice thick, computed as those of images.

A 2D configuration of volumes is a patch of one slice with kernels of depth 1. Convolutions of
volumes take several times as long for it (bfloat16 on a CPU: minutes), and give the same.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def _flat(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the first space axis has one voxel and is left alone."""
    return x.dim() == 5 and x.shape[2] == kernel[0] == stride[0] == 1


class SliceConv3d(nn.Conv3d):
    """``nn.Conv3d`` that computes single slices in 2D; weights and results are the same."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Convolve.

        Args:
            input: ``(B, C, D, H, W)``.

        Returns:
            As ``nn.Conv3d``.
        """
        if not _flat(input, self.kernel_size, self.stride) or self.padding[0] != 0:
            return super().forward(input)
        return functional.conv2d(
            input[:, :, 0],
            self.weight[:, :, 0],
            self.bias,
            self.stride[1:],
            self.padding[1:],  # type: ignore[arg-type]
            self.dilation[1:],
            self.groups,
        )[:, :, None]


class SliceConvTranspose3d(nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` that computes single slices in 2D, as :class:`SliceConv3d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        """Convolve.

        Args:
            input: ``(B, C, D, H, W)``.
            output_size: as of ``nn.ConvTranspose3d``.

        Returns:
            As ``nn.ConvTranspose3d``.
        """
        plain = output_size is None and self.padding[0] == self.output_padding[0] == 0
        if not plain or not _flat(input, self.kernel_size, self.stride):
            return super().forward(input, output_size)
        return functional.conv_transpose2d(
            input[:, :, 0],
            self.weight[:, :, 0],
            self.bias,
            self.stride[1:],
            self.padding[1:],  # type: ignore[arg-type]
            self.output_padding[1:],
            self.groups,
            self.dilation[1:],
        )[:, :, None]
