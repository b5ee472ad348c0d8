"""Losses of retouching: the difference inside the mask of change by value, edge and detail.

The masked losses divide by the mask and not by the image, because a mask covers a few per cent of a
photograph: a mean over the image would hardly depend on what happens in it. The mask is the fourth
argument, ``(B, 1, *S)``: soft, in 0..1, or labels, of which every one above 0 counts as 1. Invalid
voxels, and for the edges every 3 x 3 window that holds one, count nowhere. An empty mask gives 0
and no gradient. ``total_variation`` needs no mask: it favours smooth outputs.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, cat
from torch.nn import functional

from pipeline.config import ConfigError
from pipeline.losses.image import same_images
from pipeline.losses.masked import Loss, masked, masked_mean


def masked_l1() -> Loss:
    """Mean absolute difference inside the mask, ``sum m |x - y| / (max(sum m, 1) C)``.

    Sums run over the voxels of the batch and the C channels: it is the mean difference where m is
    1.

    Returns:
        ``loss(output, target, valid, mask)``, see :data:`pipeline.losses.masked.Loss`.

    Example:
        >>> import torch
        >>> x, mask = torch.tensor([[[[1.0, 3.0, 5.0]]]]), torch.tensor([[[[0.0, 1.0, 0.0]]]])
        >>> masked_l1()(x, torch.zeros_like(x), torch.ones_like(x), mask).item()
        3.0
    """

    @masked
    def loss(output: Tensor, target: Tensor, valid: Tensor, mask: Tensor) -> Tensor:
        same_images(output, target)
        return _inside((output - target).abs(), mask)

    return loss


def masked_sobel() -> Loss:
    """Difference of edges inside the mask, ``sum m (|Sx d| + |Sy d|) / (max(sum m, 1) C)``.

    d is the difference of two images ``(B, C, Y, X)``. Sx and Sy are the 3 x 3 kernels of Sobel
    divided by 8, so that a ramp of slope 1 along an axis has gradient 1. They are linear, so both
    images are compared by one filtering of their difference, and an edge in the wrong direction is
    an error, too. The border is repeated outside the image: a constant image has no edge there.

    Returns:
        ``loss(output, target, valid, mask)``, see :data:`pipeline.losses.masked.Loss`; it raises a
        ConfigError for volumes.

    Source: kernels of Sobel, 1968.
    """
    return _filtered("masked_sobel", lambda d: _sobel(d, -1, -2).abs() + _sobel(d, -2, -1).abs())


def masked_laplacian() -> Loss:
    """Difference of fine detail inside the mask, ``sum m |L d| / (max(sum m, 1) C)``.

    d is the difference of two images ``(B, C, Y, X)``. L is the sum of the four neighbours less
    four times the pixel; it is blind to constants and ramps. Border as in :func:`masked_sobel`.

    Returns:
        ``loss(output, target, valid, mask)``, see :data:`pipeline.losses.masked.Loss`; it raises a
        ConfigError for volumes.
    """
    return _filtered("masked_laplacian", lambda d: _laplacian(d).abs())


def total_variation() -> Loss:
    """Anisotropic total variation of the output: ``sum over axes of the mean |x[i + 1] - x[i]|``.

    The paper takes the length of the gradient; the sum of its parts has no root and prefers edges
    along the axes. The mean runs over the pairs of neighbours that are both valid; a ramp of slope
    1 costs 1. It reads no target and favours a constant output: a small weight beside other terms
    smooths, e.g., a blend layer.

    Returns:
        ``loss(output, target, valid)``, with ``output`` ``(B, C, *S)``; see
        :data:`pipeline.losses.masked.Loss`.

    Source: after Rudin, Osher & Fatemi, Physica D 1992.
    """

    @masked
    def loss(output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        total = output.new_zeros(())
        for axis in range(2, output.ndim):
            a, b = _ends(valid, axis)
            low, high = _ends(output, axis)
            total = total + masked_mean((high - low).abs(), a * b)
        return total

    return loss


def _filtered(name: str, strength: Callable[[Tensor], Tensor]) -> Loss:
    """Mean inside the mask of ``strength`` of the difference of two images.

    ``strength`` filters by windows of 3 x 3.
    """

    @masked
    def loss(output: Tensor, target: Tensor, valid: Tensor, mask: Tensor) -> Tensor:
        same_images(output, target)
        if output.ndim != 4:
            raise ConfigError(
                f"loss {name!r} got {tuple(output.shape)}; it compares images (B, C, Y, X) and not"
                " volumes. Take masked_l1."
            )
        # What lies beyond the image is not invalid.
        whole = 1 - functional.max_pool2d(1 - valid, 3, stride=1, padding=1)
        return _inside(strength(output - target), mask * whole)

    return loss


def _inside(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` ``(B, C, *S)`` over channels and the mask ``(B, 1, *S)``.

    The mask counts as one whole voxel at least.
    """
    mask = mask.clamp(0, 1)
    return (values * mask).sum() / (mask.sum().clamp(min=1) * values.shape[1])


def _sobel(x: Tensor, along: int, across: int) -> Tensor:
    """Central difference along one axis, smoothed by [1, 2, 1] / 4 across it."""
    low, _, high = _three(x, along)
    before, here, after = _three((high - low) / 2, across)
    return (before + 2 * here + after) / 4


def _laplacian(x: Tensor) -> Tensor:
    (up, _, down), (left, _, right) = _three(x, -2), _three(x, -1)
    return up + down + left + right - 4 * x


def _three(x: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """The voxel before, the voxel and the voxel after along ``axis``; the border is repeated.

    Joined slices rather than torch's replicate padding, whose gradient is not reproducible on CUDA.
    """
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
    but_last, but_first = _ends(x, axis)
    return cat([first, but_last], axis), x, cat([but_first, last], axis)


def _ends(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """``x`` without its last and without its first voxel along ``axis``."""
    return x.narrow(axis, 0, x.shape[axis] - 1), x.narrow(axis, 1, x.shape[axis] - 1)
