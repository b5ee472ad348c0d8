"""Targets and maps at the size of heads that are coarser than the input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def downsampled(target: Tensor, valid: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Reduce a target to a size by the means of blocks.

    Blocks have one size; the last may be smaller, as for a head of half the size, rounded up. Where
    no such blocks bring S to ``size``, nothing is changed, and the loss refuses the shapes.

    Args:
        target: ``(B, C, *S)``.
        valid: where it counts, ``(B, 1, *S)``.
        size: voxels along each axis.

    Returns:
        Both with ``size``; ``valid`` stays 1 where a whole block is.
    """
    full = target.shape[2:]
    block = [math.ceil(n / m) for n, m in zip(full, size, strict=True)]
    if max(block) == 1 or any(
        math.ceil(n / b) != m for n, b, m in zip(full, block, size, strict=True)
    ):
        return target, valid
    return means(target, valid, block)


def means(target: Tensor, valid: Tensor, block: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Reduce a target by the means of blocks.

    Args:
        target: ``(B, C, *S)``.
        valid: where it counts, ``(B, 1, *S)``.
        block: voxels of a block along each axis; the last block may be smaller.

    Returns:
        Both, S divided by ``block``, rounded up; ``valid`` stays 1 where a whole block is.
    """
    if max(block) == 1:
        return target, valid
    mean, most = (
        (functional.avg_pool2d, functional.max_pool2d)
        if len(block) == 2
        else (functional.avg_pool3d, functional.max_pool3d)
    )
    size = list(block)
    return mean(target.float(), size, ceil_mode=True), 1 - most(1 - valid, size, ceil_mode=True)


def subsampled(array: Tensor, stride: Sequence[int]) -> Tensor:
    """Take the middle voxel of each block, the last voxel where an axis ends before the middle.

    Of blocks with two middles along an axis the later one; where a size is a multiple of the stride
    this is torch's ``nearest-exact``.

    Args:
        array: ``(B, C, *S)`` of any type.
        stride: voxels of a block along each axis.

    Returns:
        ``(B, C, *S)``, S divided by the stride, rounded up.

    Example:
        >>> subsampled(torch.arange(10).reshape(1, 1, 2, 5), (1, 3)).tolist()
        [[[[1, 4], [6, 9]]]]
    """
    for axis, step in enumerate(stride, 2):
        if step > 1:
            size = array.shape[axis]
            middle = torch.arange(step // 2, size + step // 2, step, device=array.device)
            array = array.index_select(axis, middle.clamp(max=size - 1))
    return array
