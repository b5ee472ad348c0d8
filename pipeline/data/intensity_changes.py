"""Changes of intensity with what they draw, with the distributions of nnU-Net.

For :mod:`pipeline.data.channelwise`. Everything is float32 in torch, and a change writes its result
to an array of its own: patches may be views of memory-mapped files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional


class Change(Protocol):
    """A change of intensities."""

    def __call__(
        self, source: torch.Tensor, result: torch.Tensor, random: np.random.RandomState
    ) -> None:
        """Write the changed intensities.

        Args:
            source: float32, ``(*S)`` of one channel, or ``(C, *S)`` of all that change together.
            result: the array to write to, of the shape of ``source``.
            random: the only source of random numbers.
        """
        ...


@dataclass(frozen=True, slots=True)
class Factor:
    """A positive or negative factor and its distribution."""

    low: float
    high: float
    balanced: bool = False
    """Half of the draws uniform in [low, 1], half in [1, high]; else uniform in [low, high]."""

    def draw(self, random: np.random.RandomState) -> float:
        """Draw a factor.

        Args:
            random: source of random numbers.

        Returns:
            The factor.
        """
        if not self.balanced:
            return random.uniform(self.low, self.high)
        below = random.random_sample() < 0.5
        return random.uniform(self.low, 1) if below else random.uniform(1, self.high)


@dataclass(frozen=True, slots=True)
class Noise:
    """Gaussian noise of one standard deviation, drawn for each voxel and channel.

    torch draws it, with a seed from the sample's random numbers: five times faster than numpy.
    """

    low: float
    """Least standard deviation."""
    high: float

    def __call__(
        self, source: torch.Tensor, result: torch.Tensor, random: np.random.RandomState
    ) -> None:
        std = random.uniform(self.low, self.high)
        generator = torch.Generator().manual_seed(int(random.randint(0, 2**32, dtype=np.int64)))
        result.normal_(0, std, generator=generator).add_(source)


@dataclass(frozen=True, slots=True)
class Brightness:
    """Multiply by a factor."""

    factor: Factor

    def __call__(
        self, source: torch.Tensor, result: torch.Tensor, random: np.random.RandomState
    ) -> None:
        torch.mul(source, self.factor.draw(random), out=result)


@dataclass(frozen=True, slots=True)
class Offset:
    """Add a constant with a normal distribution."""

    mean: float
    std: float

    def __call__(
        self, source: torch.Tensor, result: torch.Tensor, random: np.random.RandomState
    ) -> None:
        torch.add(source, random.normal(self.mean, self.std), out=result)


@dataclass(frozen=True, slots=True)
class Contrast:
    """Spread about the mean by a factor."""

    factor: Factor
    preserve_range: bool
    """Clip to the minimum and maximum from before."""

    def __call__(
        self, source: torch.Tensor, result: torch.Tensor, random: np.random.RandomState
    ) -> None:
        by, mean = self.factor.draw(random), source.mean()
        torch.sub(source, mean, out=result).mul_(by).add_(mean)
        if self.preserve_range:
            result.clamp_(*torch.aminmax(source))


@dataclass(frozen=True, slots=True)
class Gamma:
    """Power of the intensity between minimum and maximum."""

    factor: Factor
    """Distribution of the exponent."""
    invert: bool
    """Of the negated image: bright values are spread where dark ones were, and vice versa."""
    retain_stats: bool
    """Give the result the mean and standard deviation from before."""

    def __call__(
        self, source: torch.Tensor, result: torch.Tensor, random: np.random.RandomState
    ) -> None:
        exponent = self.factor.draw(random)
        low, high = (float(v) for v in torch.aminmax(source))
        span = high - low
        if not span > 0:  # constant: nothing to bend
            result.copy_(source)
            return
        if self.invert:
            torch.sub(high, source, out=result)
        else:
            torch.sub(source, low, out=result)
        result.div_(span)  # 0..1, both of them taken, so that no deviation below is 0
        mean, std = moments(result) if self.retain_stats else (0.0, 1.0)
        result.log_().mul_(exponent).exp_()  # ten times faster than pow_; log 0 gives 0, too
        bent_mean, bent_std = moments(result) if self.retain_stats else (0.0, 1.0)
        sign, end = (-1, high) if self.invert else (1, low)
        slope = std / bent_std
        result.mul_(sign * span * slope).add_(end + sign * span * (mean - slope * bent_mean))


def moments(values: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation of all values.

    Args:
        values: any shape.

    Returns:
        Both, with the number of values as divisor.

    Example:
        >>> moments(torch.tensor([0.0, 2.0]))
        (1.0, 1.0)
    """
    # Not torch.std_mean, which is six times slower.
    return float(values.mean()), float(values.std(correction=0))


@dataclass(frozen=True, slots=True)
class Blur:
    """Gaussian blur with a width of its own along each axis, mirrored at the border."""

    low: float
    """Least standard deviation in voxels."""
    high: float

    def __call__(
        self, source: torch.Tensor, result: torch.Tensor, random: np.random.RandomState
    ) -> None:
        out = source
        for axis, length in enumerate(source.shape):
            weights = blur_matrix(length, random.uniform(self.low, self.high))
            out = along(out, weights, axis - source.ndim)
        result.copy_(out)


@dataclass(frozen=True, slots=True)
class LowResolution:
    """Fewer voxels by a factor, the nearest ones, and back by linear interpolation."""

    low: float
    """Least factor, above 0."""
    high: float
    kept: tuple[int, ...]
    """Axes that keep their resolution."""
    dims: int
    """Space axes."""

    def __call__(
        self, source: torch.Tensor, result: torch.Tensor, random: np.random.RandomState
    ) -> None:
        by = random.uniform(self.low, self.high)
        size = source.shape[-self.dims :]
        small = [n if axis in self.kept else max(1, round(n * by)) for axis, n in enumerate(size)]
        batch = source.reshape(1, -1, *size)
        out = functional.interpolate(batch, small, mode="nearest-exact")
        for axis, (few, many) in enumerate(zip(small, size, strict=True)):
            if few != many:
                out = along(out, linear_matrix(few, many), axis - self.dims)
        result.copy_(out.reshape(source.shape))


# --- products along an axis, several times faster than convolution and interpolation on CPU -------


def along(values: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """Product of a matrix and an array along one axis.

    Args:
        values: ``(..., *S)``.
        matrix: ``(new, old)``.
        axis: the one of length ``old``: -1, -2 or -3.

    Returns:
        The array with ``new`` values along that axis.

    Example:
        >>> along(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]]), -1).tolist()
        [[3.0]]
    """
    if axis == -1:
        return values @ matrix.T
    if axis == -2:
        return matrix @ values
    return (matrix @ values.flatten(-2)).unflatten(-1, values.shape[-2:])


def blur_matrix(length: int, sigma: float) -> torch.Tensor:
    """Weights of a Gaussian blur along an axis, cut off at 4 sigma, mirrored at the border.

    The edge voxel is repeated in the mirror, as in scipy's ``mode="reflect"``.

    Args:
        length: voxels of the axis.
        sigma: standard deviation in voxels, above 0.

    Returns:
        ``(length, length)``, rows sum to 1.

    Example:
        >>> [round(w, 2) for w in blur_matrix(4, 0.5)[1].tolist()]
        [0.11, 0.79, 0.11, 0.0]
    """
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    places = (np.arange(length)[:, None] + offsets) % (2 * length)
    places = np.minimum(places, 2 * length - 1 - places)
    matrix = np.zeros((length, length))
    rows = np.broadcast_to(np.arange(length)[:, None], places.shape)
    np.add.at(matrix, (rows, places), np.broadcast_to(weights / weights.sum(), places.shape))
    return torch.from_numpy(matrix.astype(np.float32))


def linear_matrix(few: int, many: int) -> torch.Tensor:
    """Weights of linear interpolation along an axis, ``align_corners=False``.

    Args:
        few: voxels of the axis.
        many: voxels wanted.

    Returns:
        ``(many, few)``, rows sum to 1.

    Example:
        >>> linear_matrix(1, 2).tolist()
        [[1.0], [1.0]]
    """
    return functional.interpolate(torch.eye(few)[None], many, mode="linear")[0].T.contiguous()
