"""Group and instance norm in tiles: statistics of the whole image, measured once, are given to
every tile.

A network is changed only inside :func:`holding`, and restored however that is left. One thread at a
time may use a network whose statistics are held.
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
"""Voxels of the image that :func:`frozen` statistics are measured on, by number of space axes;
larger ones are reduced.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean and (biased) variance of one layer's input for each channel ``(C,)``, float64; channels
    of one group share theirs.
    """

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A normalised image of ``size``, a multiple of the network's stride: ``read(start, size)``
    gives ``(1, C, *size)`` of it.
    """

    size: tuple[int, ...]
    read: Callable[[Sequence[int], Sequence[int]], Tensor]

    def flipped(self, axes: Sequence[int]) -> Space:
        """The same image flipped along ``axes``, counted from the end."""
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
    """Within, during one pass, layers with statistics take them from ``moments(number of the call,
    layer, input)``.
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
    """Heads of the network for ``tiles``, with the statistics ``known`` instead of the tiles' own;
    none known: their own.
    """
    if not known:
        return network(tiles)
    with holding(network, lambda n, layer, x: known[n]):
        return network(tiles)


def _normalise(layer: Any, x: Tensor, moments: Moments) -> Tensor:
    """What the layer does, with given statistics: ``(x - mean) / sqrt(variance + eps) * weight +
    bias``, float32.
    """
    scale = torch.rsqrt(moments.variance + layer.eps)
    if layer.weight is not None:
        scale = scale * layer.weight.double()
    shift = -moments.mean * scale
    if layer.bias is not None:
        shift = shift + layer.bias.double()
    shape = (1, -1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.float().view(shape), x.float(), scale.float().view(shape))


class _Sums:
    """Sums over the batch and space of one layer's input, piece by piece, in float64."""

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
    """Statistics of one pass over an image ``(1, C, *S)``, in the order of the calls."""
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
    """The image ``(1, C, *S)``, reduced by a whole factor by area interpolation to about
    ``largest`` voxels (default: ``LARGEST``).

    Read in bands, so that a large image is never in memory.
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
    """The layer whose statistics are measured has its input; the rest of the pass is not needed."""


@torch.inference_mode()
def exact(
    network: nn.Module, space: Space, tile: Sequence[int], spreads: Sequence[Sequence[int]]
) -> tuple[Moments, ...]:
    """Statistics that one pass over the whole image would have, found tile by tile, layer after
    layer.

    For every call of such a layer, tiles with the halo that the layer needs run up to it, with the
    statistics of the layers before; their cores partition the layer's map. ``spreads`` are those of
    :class:`~pipeline.networks.receptive.Reach`, ``norms``. So L layers cost L partial passes, about
    L / 2 times a whole pass over the image, times the share of the halos, ``(tile / (tile - 2
    radius)) ** dims`` at the end of the network and little at its beginning. Raises UserError where
    ``tile`` leaves nothing between the halos.
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
    """For each call of a normalisation the boxes along each axis.

    Raises UserError where ``tile`` leaves nothing between the halos.
    """
    return [
        [_boxes(*axis) for axis in zip(size, tile, spread, multiple, strict=True)]
        for spread in spreads
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    """A tile along one axis, and the part of it that counts."""

    start: int
    length: int
    skip: int
    core: int


def _boxes(size: int, tile: int, spread: int, multiple: int) -> list[_Box]:
    """Tiles along one axis whose cores partition it, each with a halo of at least ``spread``
    inside; all edges on the grid.
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
    for place in range(0, size, core):
        start, end = max(0, place - halo), min(size, place + core + halo)
        boxes.append(
            _Box(start=start, length=end - start, skip=place - start, core=min(core, size - place))
        )
    return boxes


def _next(
    network: nn.Module, space: Space, known: Sequence[Moments], boxes: Sequence[Sequence[_Box]]
) -> Moments:
    """Statistics of the first call whose statistics are not known."""
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
    """Where the cores lie in a map of ``shape`` that belongs to the box."""
    lengths = [b.length for b in box]
    lengths = network.padded_size(lengths) if isinstance(network, HeadedNet) else lengths
    cells = [n // m for n, m in zip(lengths, shape, strict=True)]
    return (
        ...,
        *(slice(b.skip // c, (b.skip + b.core) // c) for b, c in zip(box, cells, strict=True)),
    )
