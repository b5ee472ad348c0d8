"""Losses for image targets: the difference of ``output`` and ``target``.

It is taken voxel by voxel or, in ``ms_ssim``, window by window. The target ``(B, K, *S)`` has the
shape of the output. Without a valid voxel the value is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import ConfigError
from pipeline.losses.masked import Loss, masked, masked_mean, number, sample_mean

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponent of each scale of MS-SSIM, finest first, as published."""
EDGE, SIGMA = 11, 1.5
"""Edge and standard deviation of the Gaussian window of SSIM, in voxels."""
C1, C2 = 0.01**2, 0.03**2
"""Constants of SSIM for intensities in 0..1."""
FLOOR = 1e-3
"""Least similarity of a scale: below 0 a power has no value, and at 0 no slope."""


def l1() -> Loss:
    """Mean absolute difference.

    Returns:
        ``loss(output, target, valid)``, see :data:`pipeline.losses.masked.Loss`.

    Example:
        >>> x = torch.tensor([[[[0.0, 0.5, 1.0]]]])
        >>> l1()(x, torch.zeros_like(x), torch.tensor([[[[1.0, 1.0, 0.0]]]])).item()
        0.25
    """
    return _difference(lambda d: d.abs())


def mse() -> Loss:
    """Mean squared difference.

    Returns:
        ``loss(output, target, valid)``, see :data:`pipeline.losses.masked.Loss`.
    """
    return _difference(lambda d: d.square())


def charbonnier(*, epsilon: float = 1e-3) -> Loss:
    """Charbonnier loss ``sqrt(d^2 + epsilon^2)``: L1 that is smooth at 0.

    Args:
        epsilon: value where the images agree, at least 1e-12.

    Returns:
        ``loss(output, target, valid)``, see :data:`pipeline.losses.masked.Loss`.

    Raises:
        ConfigError: for an ``epsilon`` that cannot be used.

    Source: Charbonnier et al., ICIP 1994.
    """
    epsilon = number(epsilon, "'charbonnier': epsilon", 1e-12)
    return _difference(lambda d: (d.square() + epsilon**2).sqrt())


def _difference(function: Callable[[Tensor], Tensor]) -> Loss:
    @masked
    def loss(output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        same_images(output, target)
        return masked_mean(function(output - target), valid)

    return loss


def ms_ssim(*, levels: int = 5, range: Sequence[float] = (-1.0, 1.0)) -> Loss:  # noqa: A002 - the YAML's word
    """``1 - MS-SSIM``, mean over samples and channels; 0 for equal images, at most 1.

    MS-SSIM is the product of the mean contrast-structure terms of all scales but the coarsest, and
    of the mean SSIM of that one, each to its published power. Gaussian windows of edge 11 and sigma
    1.5 that lie wholly inside the image and hold valid voxels only, population variances, 2D or 3D
    as the images are; each scale is the mean of 2 x 2 (x 2) voxels of the finer one.

    Intensities outside ``range`` are allowed. A scale on which the images are unlike or opposite
    counts as 0.001 similar and gives no gradient. A sample without a valid window on the coarsest
    scale does not count.

    Args:
        levels: number of scales; with fewer than five the first ones are taken and their powers
            scaled to a sum of 1; 1 is plain SSIM. Each side must have at least
            ``11 * 2^(levels - 1)`` voxels: 176 for five.
        range: the intensities that stand for black and white, those of ``data.normalise``: they are
            mapped to 0..1, where SSIM's constants hold.

    Returns:
        ``loss(output, target, valid)``, see :data:`pipeline.losses.masked.Loss`; it raises a
        ConfigError for images that are too small.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: Wang, Simoncelli & Bovik, Asilomar 2003.

    Example:
        >>> x = torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 32, 32)
        >>> loss, valid = ms_ssim(levels=2), torch.ones_like(x)
        >>> round(loss(x, x, valid).item(), 4), round(loss(-x, x, valid).item(), 4)
        (0.0, 0.999)
    """
    if not isinstance(levels, int) or isinstance(levels, bool) or not 1 <= levels <= len(SCALES):
        raise ConfigError(
            f"loss 'ms_ssim': levels is {levels!r}, must be a whole number from 1 to {len(SCALES)}."
        )
    to_unit = unit(range, "'ms_ssim': range")
    powers = [power / sum(SCALES[:levels]) for power in SCALES[:levels]]

    @masked
    def loss(output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        same_images(output, target)
        _large_enough(output.shape[2:], levels)
        x, y, windows = to_unit(output), to_unit(target.to(output.dtype)), valid
        logs = output.new_zeros(output.shape[:2])
        for level, power in enumerate(powers):
            x, y, valid = (x, y, valid) if level == 0 else _halved(x, y, valid)
            similarity, windows = _similarity(x, y, valid, with_brightness=level == levels - 1)
            logs = logs + power * similarity.clamp(min=FLOOR).log()
        return sample_mean(1 - logs.exp(), windows)

    return loss


def _similarity(
    x: Tensor, y: Tensor, valid: Tensor, with_brightness: bool
) -> tuple[Tensor, Tensor]:
    """Mean over windows of contrast and structure ``(B, K)``, and the valid windows ``(B, 1, *S)``.

    ``with_brightness`` multiplies each window by its brightness term.
    """
    windows = (_blurred(1 - valid) == 0).to(x.dtype)  # exact: sums of positive numbers
    mean_x, mean_y, xx, yy, xy = _blurred(
        torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 1)
    ).unflatten(0, (5, -1))
    spread = xx - mean_x.square() + yy - mean_y.square()
    terms = (2 * (xy - mean_x * mean_y) + C2) / (spread + C2)
    if with_brightness:
        terms = terms * (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    return (terms * windows).flatten(2).sum(2) / windows.flatten(2).sum(2).clamp(min=1), windows


def _blurred(x: Tensor) -> Tensor:
    """Gaussian mean of every window that lies inside ``(N, K, *S)``, one axis after the other."""
    dims = x.ndim - 2
    gaussian = torch.exp(
        -0.5 * ((torch.arange(EDGE, dtype=torch.float64) - EDGE // 2) / SIGMA) ** 2
    )
    gaussian = (gaussian / gaussian.sum()).to(x)
    # All maps as channels of one image with a kernel each: on a CPU 25 times faster than as a batch
    # of grey images.
    y = x.flatten(0, 1)[None]
    count = y.shape[1]
    for axis in range(dims):
        kernel = gaussian.reshape([EDGE if a == axis else 1 for a in range(dims)]).expand(
            count, 1, *[-1] * dims
        )
        y = (functional.conv2d if dims == 2 else functional.conv3d)(y, kernel, groups=count)
    return y[0].unflatten(0, x.shape[:2])


def _halved(x: Tensor, y: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of blocks of two along each axis; a block with an invalid voxel is invalid.

    An odd last row is left out.
    """
    mean, most = (
        (functional.avg_pool2d, functional.max_pool2d)
        if x.ndim == 4
        else (functional.avg_pool3d, functional.max_pool3d)
    )
    return mean(x, 2), mean(y, 2), 1 - most(1 - valid, 2)


def _large_enough(size: Sequence[int], levels: int) -> None:
    if min(size) < EDGE * 2 ** (levels - 1):
        fitting = int(math.log2(max(min(size) / EDGE, 0.5))) + 1
        suggestion = f"Set levels: {fitting}, or take" if min(size) >= EDGE else "Take"
        raise ConfigError(
            f"loss 'ms_ssim' got images of {tuple(size)}; {levels} levels need at least"
            f" {EDGE * 2 ** (levels - 1)} along each side. {suggestion} larger patches"
            " (data.patch.size)."
        )


def same_images(output: Tensor, target: Tensor) -> None:
    """Raise unless output and target have one shape.

    Otherwise broadcasting would compare other images than were meant.

    Args:
        output: any shape.
        target: must have the same shape.

    Raises:
        ValueError: for different shapes.
    """
    if output.shape != target.shape:
        raise ValueError(
            f"output {tuple(output.shape)} and image target {tuple(target.shape)} must have the"
            " same shape."
        )


def unit(limits: Any, where: str) -> Callable[[Tensor], Tensor]:
    """Make the linear map from ``[low, high]`` to ``[0, 1]``.

    Args:
        limits: two rising finite numbers, the intensities of black and white.
        where: name of the option in the message.

    Returns:
        Function from a tensor to a tensor of the same shape.

    Raises:
        ConfigError: for other limits.

    Example:
        >>> unit([-1, 1], "'ms_ssim': range")(torch.tensor([-1.0, 0.0, 3.0])).tolist()
        [0.0, 0.5, 2.0]
    """
    good = isinstance(limits, list | tuple) and len(limits) == 2
    good = good and all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in limits
    )
    if not good or not limits[0] < limits[1]:
        raise ConfigError(
            f"loss {where} is {limits!r}, must be two rising numbers, those of data.normalise, e.g."
            " [-1, 1]."
        )
    low, high = limits
    return lambda x: (x - low) / (high - low)
