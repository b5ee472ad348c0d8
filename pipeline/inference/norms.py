"""Group and instance norm in tiles, with statistics of the whole image.

They are measured once and given to every tile. A network is changed only inside :func:`holding`,
and restored however that is left. Only one thread at a time may use a network inside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.geometry import up
from pipeline.networks import HeadedNet, receptive
from pipeline.records import UserError

LARGEST = {2: 2**20, 3: 2**21}
"""Voxels of the image that :func:`frozen` measures, by number of space axes.

Larger images are reduced.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Statistics of one layer's input, float64. Channels of one group share theirs.

    Args:
        mean: mean of each channel ``(C,)``.
        variance: biased variance of each channel ``(C,)``.
    """

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A normalised image that is read in boxes.

    Args:
        size: voxels along each axis, multiples of the network's stride.
        read: from first voxel and size of a box to ``(1, C, *size)``.
    """

    size: tuple[int, ...]
    read: Callable[[Sequence[int], Sequence[int]], Tensor]

    def flipped(self, axes: Sequence[int]) -> Space:
        """Flip the image.

        Args:
            axes: axes to flip, counted from the end.

        Returns:
            The flipped image, which reads boxes of this one; this one where there are no axes.
        """
        if not axes:
            return self

        def read(start: Sequence[int], size: Sequence[int]) -> Tensor:
            begin = list(start)
            for axis in axes:
                begin[axis] = self.size[axis] - start[axis] - size[axis]
            return torch.flip(self.read(begin, size), tuple(axes))

        return Space(size=self.size, read=read)


@contextmanager
def holding(
    network: nn.Module, moments: Callable[[int, nn.Module, Tensor], Moments]
) -> Iterator[None]:
    """Replace the statistics of group and instance norms during one forward pass.

    Args:
        network: its layers with statistics are patched until the context ends.
        moments: from number of the call, layer and input to the statistics to use.

    Yields:
        Nothing; run the pass inside.
    """
    layers = [layer for layer in network.modules() if receptive.has_statistics(layer)]
    calls = itertools.count()

    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        return _normalise(layer, x, moments(next(calls), layer, x))

    try:
        for layer in layers:
            layer.forward = partial(forward, layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def with_moments(
    network: nn.Module, tiles: Tensor, known: Sequence[Moments]
) -> Mapping[str, Tensor]:
    """Run a network with given statistics.

    Args:
        network: the network.
        tiles: its input ``(B, C, *tile)``.
        known: statistics of each call of a norm, in order; empty: the tiles' own are used.

    Returns:
        The network's heads.
    """
    if not known:
        return network(tiles)
    with holding(network, lambda n, layer, x: known[n]):
        return network(tiles)


def _normalise(layer: Any, x: Tensor, moments: Moments) -> Tensor:
    """``(x - mean) / sqrt(variance + eps) * weight + bias``, float32, with given statistics."""
    scale = torch.rsqrt(moments.variance + layer.eps)
    if layer.weight is not None:
        scale = scale * layer.weight.double()
    shift = -moments.mean * scale
    if layer.bias is not None:
        shift = shift + layer.bias.double()
    shape = (1, -1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.float().view(shape), x.float(), scale.float().view(shape))


class _Sums:
    """Sums in float64 over batch and space of one layer's input, piece by piece."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        flat = x.double().transpose(0, 1).flatten(1)
        self.count += flat.shape[1]
        self.first = self.first.to(x.device) + flat.sum(1)
        self.second = self.second.to(x.device) + flat.square().sum(1)

    def moments(self, layer: nn.Module) -> Moments:
        mean, square = self.first / self.count, self.second / self.count
        if isinstance(layer, nn.GroupNorm):
            each = len(mean) // layer.num_groups
            mean, square = (
                v.view(-1, each).mean(1).repeat_interleave(each) for v in (mean, square)
            )
        return Moments(mean=mean, variance=(square - mean.square()).clamp(min=0))


@torch.inference_mode()
def frozen(network: nn.Module, image: Tensor) -> tuple[Moments, ...]:
    """Measure statistics in one pass over an image.

    Args:
        network: the network.
        image: ``(1, C, *S)``, which fits into memory.

    Returns:
        Statistics of each call of a norm, in order.
    """
    found: list[Moments] = []

    def measure(_call: int, layer: nn.Module, x: Tensor) -> Moments:
        sums = _Sums()
        sums.add(x)
        found.append(sums.moments(layer))
        return found[-1]

    with holding(network, measure):
        network(image)
    return tuple(found)


def reduced(space: Space, largest: int | None = None) -> Tensor:
    """Shrink an image by a whole factor, by area interpolation.

    It is read in bands, so that a large image is never in memory.

    Args:
        space: the image.
        largest: about the number of voxels wanted; None: ``LARGEST``.

    Returns:
        The image ``(1, C, *S)``, at its own size where it is small enough.
    """
    dims = len(space.size)
    edge = ceil((prod(space.size) / (largest or LARGEST[dims])) ** (1 / dims))
    if edge <= 1:
        return space.read([0] * dims, space.size)
    bands = []
    for start in range(0, space.size[0], edge):
        rows = min(edge, space.size[0] - start)
        band = space.read([start] + [0] * (dims - 1), [rows, *space.size[1:]])
        bands.append(
            functional.interpolate(
                band, [1, *(ceil(n / edge) for n in space.size[1:])], mode="area"
            )
        )
    return torch.cat(bands, 2)


class _Reached(Exception):  # noqa: N818 - ends a pass, no error
    """Raised when the layer to be measured has its input: the rest of the pass is not needed."""


@torch.inference_mode()
def exact(
    network: nn.Module, space: Space, tile: Sequence[int], spreads: Sequence[Sequence[int]]
) -> tuple[Moments, ...]:
    """Measure, tile by tile and layer after layer, the statistics of one pass over the whole image.

    For every call of a norm, tiles with the halo that the layer needs run up to it, with the
    statistics of the layers before; their cores partition the layer's map. So L layers cost L
    partial passes, about L / 2 times a whole pass over the image, times the share of the halos,
    ``(tile / (tile - 2 radius)) ** dims`` at the end of the network and little at its beginning.

    Args:
        network: the network.
        space: the image.
        tile: voxels of a tile along each axis.
        spreads: receptive radius of each norm, ``norms`` of
            :class:`~pipeline.networks.receptive.Reach`.

    Returns:
        Statistics of each call of a norm, in order.

    Raises:
        UserError: ``tile`` leaves nothing between the halos.
    """
    known: list[Moments] = []
    for boxes in layouts(space.size, tile, receptive.stride(network, len(space.size)), spreads):
        known.append(_next(network, space, known, boxes))
    return tuple(known)


def layouts(
    size: Sequence[int],
    tile: Sequence[int],
    multiple: Sequence[int],
    spreads: Sequence[Sequence[int]],
) -> list[list[list[_Box]]]:
    """Tiles for the measurement of each norm, as :func:`exact` uses them.

    Args:
        size: voxels of the image along each axis.
        tile: voxels of a tile along each axis.
        multiple: stride of the network along each axis.
        spreads: receptive radius of each norm along each axis.

    Returns:
        For each call of a norm the boxes along each axis.

    Raises:
        UserError: ``tile`` leaves nothing between the halos.
    """
    return [
        [_boxes(*axis) for axis in zip(size, tile, spread, multiple, strict=True)]
        for spread in spreads
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    """A tile along one axis, and the core of it that is measured, in voxels."""

    start: int
    length: int
    skip: int
    core: int


def _boxes(size: int, tile: int, spread: int, multiple: int) -> list[_Box]:
    """Tiles along one axis whose cores partition it.

    Each has a halo of at least ``spread`` towards its inner faces; all faces are on ``multiple``.
    """
    tile, halo = up(tile, multiple), up(spread, multiple)
    if size <= tile:
        return [_Box(start=0, length=size, skip=0, core=size)]
    core = tile - 2 * halo
    if core < multiple:
        raise UserError(
            f"predict.norms exact needs tiles of at least {2 * halo + multiple}, not {tile}: layers"
            f" see {spread} voxels far. Enlarge them (--patch-size {2 * halo + multiple}, or twice"
            " that to lose less in halos), or take --norms frozen."
        )
    boxes = []
    for first in range(0, size, core):
        start, end = max(0, first - halo), min(size, first + core + halo)
        boxes.append(
            _Box(start=start, length=end - start, skip=first - start, core=min(core, size - first))
        )
    return boxes


def _next(
    network: nn.Module, space: Space, known: Sequence[Moments], boxes: Sequence[Sequence[_Box]]
) -> Moments:
    """Statistics of the first call whose statistics are not known yet."""
    sums, layers = _Sums(), []
    for box in itertools.product(*boxes):
        tile = space.read([b.start for b in box], [b.length for b in box])

        def moments(call: int, layer: nn.Module, x: Tensor, box: Sequence[_Box] = box) -> Moments:
            if call < len(known):
                return known[call]
            sums.add(x[_core(network, box, x.shape[2:])])
            layers.append(layer)
            raise _Reached

        try:
            with holding(network, moments):
                network(tile)
        except _Reached:
            pass
    return sums.moments(layers[0])


def _core(network: nn.Module, box: Sequence[_Box], shape: Sequence[int]) -> tuple:
    """Slices of a feature map of ``shape`` that belong to the core of a box."""
    lengths = [b.length for b in box]
    lengths = network.padded_size(lengths) if isinstance(network, HeadedNet) else lengths
    cells = [n // m for n, m in zip(lengths, shape, strict=True)]
    return (
        ...,
        *(slice(b.skip // c, (b.skip + b.core) // c) for b, c in zip(box, cells, strict=True)),
    )
