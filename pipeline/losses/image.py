"""Losses for image targets: the mean over valid voxels and channels of a function of ``output - target``.

The target ``(B, K, *S)`` has the shape of the output. Without a valid voxel the value is 0.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pipeline.losses.masked import Loss, masked, masked_mean, number


def l1() -> Loss:
    """Mean absolute difference."""
    return _difference(lambda d: d.abs())


def mse() -> Loss:
    """Mean squared difference."""
    return _difference(lambda d: d.square())


def charbonnier(*, epsilon: float = 1e-3) -> Loss:
    """``sqrt(d^2 + epsilon^2)``: L1 with a smooth foot (Charbonnier et al., ICIP 1994). ``epsilon`` where the images agree."""
    epsilon = number(epsilon, "'charbonnier': epsilon", 1e-12)
    return _difference(lambda d: (d.square() + epsilon**2).sqrt())


def _difference(function: Callable[[Tensor], Tensor]) -> Loss:
    @masked
    def loss(output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        if output.shape != target.shape:
            raise ValueError(f"output {tuple(output.shape)} and image target {tuple(target.shape)} must have the same shape.")
        return masked_mean(function(output - target), valid)

    return loss
