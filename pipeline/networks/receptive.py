"""How far a network sees, and which of its layers see the whole tile: what decides whether tiles
can equal the whole image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd

from pipeline.geometry import up
from pipeline.records import UserError

LONGEST = 4096
"""Voxels along an axis at which :func:`reach` gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How many voxels beyond a place the network sees along each axis, at its output and at each
    normalisation that it calls, in order.

    Counted from edges on the network's stride: a voxel at least ``output`` from an edge of a tile
    that starts and ends on the stride does not depend on anything beyond it. Normalisations
    themselves are left out of the count.
    """

    output: tuple[int, ...]
    norms: tuple[tuple[int, ...], ...] = ()


def stride(network: nn.Module, dims: int) -> tuple[int, ...]:
    """Multiple of voxels by which a network may be shifted with its answer, for each axis:
    ``divisor``, or 1 where it names none.
    """
    return tuple(getattr(network, "divisor", (1,) * dims))


def has_statistics(layer: nn.Module) -> bool:
    """Whether a layer normalises by the mean and variance of its own input over space: group and
    instance norm, and batch norm that keeps no running statistics.
    """
    if isinstance(layer, _BatchNorm | _InstanceNorm):
        return layer.running_mean is None
    return isinstance(layer, nn.GroupNorm)


def tile_dependent(network: nn.Module) -> tuple[str, ...]:
    """Layers (in evaluation mode) whose answer at a place depends on the whole tile, as ``"name
    (Type)"``; no halo can mend them.

    Beside those of :func:`has_statistics`: layer norm over space, adaptive pooling, and linear
    enlargement with ``align_corners``, whose step depends on the size of the map. Layer norm over
    channels alone is not among them. Only modules are found, not calls of functions.
    """
    return tuple(
        f"{name} ({type(layer).__name__})"
        for name, layer in network.named_modules()
        if has_statistics(layer) or _spans(layer)
    )


def beyond_statistics(network: nn.Module) -> tuple[str, ...]:
    """Those of :func:`tile_dependent` that fixed statistics cannot mend either."""
    return tuple(
        f"{name} ({type(layer).__name__})"
        for name, layer in network.named_modules()
        if _spans(layer)
    )


def _spans(layer: nn.Module) -> bool:
    if isinstance(layer, nn.LayerNorm):
        return len(layer.normalized_shape) > 1
    if isinstance(layer, nn.Upsample):
        return bool(layer.align_corners)
    return isinstance(layer, _AdaptiveAvgPoolNd | _AdaptiveMaxPoolNd)


def radius(network: nn.Module, channels: int, dims: int) -> tuple[int, ...]:
    """Receptive radius along each axis in voxels, as :class:`Reach` counts it."""
    return reach(network, channels, dims).output


def halo(network: nn.Module, channels: int, dims: int) -> int:
    """The least halo on the network's stride that covers its receptive radius along every axis."""
    axes = zip(radius(network, channels, dims), stride(network, dims), strict=True)
    return max(up(r, s) for r, s in axes)


def reach(network: nn.Module, channels: int, dims: int) -> Reach:
    """Receptive radius of a network of ``channels`` inputs, traced: NaN is put beyond an edge, and
    the answer read for where it is found.

    NaN passes every convolution, pooling and interpolation whatever the weights, so this is the
    radius of the structure, not of one set of weights. Runs on a copy on the CPU; the network is
    not touched. Raises UserError where NaN is found everywhere up to a length of ``LONGEST``: such
    a network sees the whole image.
    """
    log: list[Tensor] = []
    probe = _probe(network, log)
    along = [_along(probe, log, channels, axis, stride(network, dims)) for axis in range(dims)]
    output, *norms = zip(*along, strict=True)
    return Reach(output=output, norms=tuple(norms))


def _probe(network: nn.Module, log: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """A copy of the network whose statistics are neutral and whose normalisations write what they
    are given to ``log``.
    """
    twin = copy.deepcopy(network).cpu().float().eval()
    for layer in twin.modules():
        if has_statistics(layer):
            layer.forward = lambda x: (log.append(x), x.clone())[1]
    return lambda x: twin(x)["main"]


def _along(
    probe: Callable[[Tensor], Tensor],
    log: list[Tensor],
    channels: int,
    axis: int,
    multiple: Sequence[int],
) -> list[int]:
    """Radius along one axis: of the answer, then of each normalisation."""
    length = up(max(64, 8 * multiple[axis]), 2 * multiple[axis])
    while length <= max(LONGEST, 16 * multiple[axis]):
        edge = up(length // 2, multiple[axis])
        sides = []
        for side in (slice(edge, None), slice(None, edge)):
            x = torch.zeros(1, channels, *multiple).repeat_interleave(
                length // multiple[axis], 2 + axis
            )
            x.transpose(0, 2 + axis)[side] = torch.nan
            log.clear()
            with torch.inference_mode():
                maps = [probe(x), *log]
            sides.append([_spread(m, axis, edge, length, side.start is None) for m in maps])
        log.clear()
        found = [max(pair) for pair in zip(*sides, strict=True)]
        if max(found) < min(edge, length - edge):
            return found
        length *= 2
    raise UserError(
        f"the network sees further than {LONGEST} voxels along axis {axis}: no halo can make its"
        " tiles equal the whole image. Predict whole images (--whole), or in tiles as large as"
        " those of training."
    )


def _spread(found: Tensor, axis: int, edge: int, length: int, before: bool) -> int:
    """How far NaN has come over the edge, in voxels of the input; ``before``: it was put in front
    of the edge, else behind.
    """
    other = [a for a in range(found.ndim) if a != 2 + axis]
    marked = (
        found.isnan().any(dim=other[0]) if len(other) == 1 else found.isnan().sum(dim=other) > 0
    )
    places = marked.nonzero()
    cell = length // len(marked)
    if not len(places):
        return 0
    return max(
        0, (int(places.max()) + 1) * cell - edge if before else edge - int(places.min()) * cell
    )
