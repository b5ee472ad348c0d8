"""Receptive radius of a network, and its layers that see the whole tile.

Both decide whether prediction in tiles can equal prediction of the whole image.
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
    """Receptive radius along each axis in voxels, at the output and at each normalisation.

    Counted from edges on the network's stride: a voxel at least ``output`` from an edge of a tile
    that starts and ends on the stride does not depend on anything beyond it. Normalisations
    themselves are left out of the count.
    """

    output: tuple[int, ...]
    """Radius of head ``main`` along each axis."""
    norms: tuple[tuple[int, ...], ...] = ()
    """Radius at the input of each layer of :func:`has_statistics`, in the order of calls."""


def stride(network: nn.Module, dims: int) -> tuple[int, ...]:
    """Multiples of voxels by which the input may be shifted so that the output is shifted alike.

    Args:
        network: any network.
        dims: space axes.

    Returns:
        ``network.divisor``, or 1 for each axis where it has none.
    """
    return tuple(getattr(network, "divisor", (1,) * dims))


def has_statistics(layer: nn.Module) -> bool:
    """Check whether a layer normalises by the mean and variance of its own input over space.

    Args:
        layer: any module.

    Returns:
        True for group norm, and for instance and batch norm without running statistics.
    """
    if isinstance(layer, _BatchNorm | _InstanceNorm):
        return layer.running_mean is None
    return isinstance(layer, nn.GroupNorm)


def tile_dependent(network: nn.Module) -> tuple[str, ...]:
    """List the layers (in evaluation mode) whose output at a voxel depends on the whole tile.

    No halo can correct them. Beside those of :func:`has_statistics`: layer norm over space,
    adaptive pooling, and linear enlargement with ``align_corners``, whose step depends on the size
    of the map. Layer norm over channels alone is not among them. Only modules are found, not calls
    of functions.

    Args:
        network: any module.

    Returns:
        ``"name (Type)"`` of each layer.

    Example:
        >>> tile_dependent(nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4)))
        ('1 (InstanceNorm2d)',)
    """
    return tuple(
        f"{name} ({type(layer).__name__})"
        for name, layer in network.named_modules()
        if has_statistics(layer) or _spans(layer)
    )


def beyond_statistics(network: nn.Module) -> tuple[str, ...]:
    """List the layers of :func:`tile_dependent` that fixed statistics cannot correct either.

    Args:
        network: any module.

    Returns:
        ``"name (Type)"`` of each layer.
    """
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
    """Measure the receptive radius along each axis, as :class:`Reach` counts it.

    Args:
        network: takes ``(B, C, *S)`` and returns a mapping with ``main``.
        channels: channels of its input.
        dims: space axes.

    Returns:
        Voxels for each axis.

    Raises:
        UserError: as :func:`reach`.
    """
    return reach(network, channels, dims).output


def halo(network: nn.Module, channels: int, dims: int) -> int:
    """Find the least halo on the network's stride that covers its radius along every axis.

    Args:
        network: takes ``(B, C, *S)`` and returns a mapping with ``main``.
        channels: channels of its input.
        dims: space axes.

    Returns:
        Voxels, one number for all axes.

    Raises:
        UserError: as :func:`reach`.
    """
    axes = zip(radius(network, channels, dims), stride(network, dims), strict=True)
    return max(up(r, s) for r, s in axes)


def reach(network: nn.Module, channels: int, dims: int) -> Reach:
    """Trace the receptive radius: put NaN beyond an edge and find the NaN in the output.

    NaN passes every convolution, pooling and interpolation whatever the weights, so this is the
    radius of the structure, not of one set of weights. Runs on a copy on the CPU; the network is
    not touched.

    Args:
        network: takes ``(B, C, *S)`` and returns a mapping with ``main``.
        channels: channels of its input.
        dims: space axes.

    Returns:
        The radius at the output and at each normalisation.

    Raises:
        UserError: where NaN is found everywhere up to a length of ``LONGEST``: such a network sees
            the whole image.

    Example:
        >>> class Net(nn.Module):
        ...     conv = nn.Conv2d(1, 1, (3, 5), padding="same")
        ...     def forward(self, x: Tensor) -> dict[str, Tensor]:
        ...         return {"main": self.conv(x)}
        >>> reach(Net(), channels=1, dims=2)
        Reach(output=(1, 2), norms=())
    """
    log: list[Tensor] = []
    probe = _probe(network, log)
    along = [_along(probe, log, channels, axis, stride(network, dims)) for axis in range(dims)]
    output, *norms = zip(*along, strict=True)
    return Reach(output=output, norms=tuple(norms))


def _probe(network: nn.Module, log: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """A copy of the network whose normalisations do nothing but append their input to ``log``."""
    duplicate = copy.deepcopy(network).cpu().float().eval()
    for layer in duplicate.modules():
        if has_statistics(layer):
            layer.forward = lambda x: (log.append(x), x.clone())[1]
    return lambda x: duplicate(x)["main"]


def _along(
    probe: Callable[[Tensor], Tensor],
    log: list[Tensor],
    channels: int,
    axis: int,
    multiple: Sequence[int],
) -> list[int]:
    """Radius along one axis: of the output, then of each normalisation."""
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
    """How far NaN has come over the edge, in voxels of the input.

    ``before``: it was put before the edge, else behind it.
    """
    other = [a for a in range(found.ndim) if a != 2 + axis]
    marked = (
        found.isnan().any(dim=other[0]) if len(other) == 1 else found.isnan().sum(dim=other) > 0
    )
    cells = marked.nonzero()
    cell = length // len(marked)
    if not len(cells):
        return 0
    return max(
        0, (int(cells.max()) + 1) * cell - edge if before else edge - int(cells.min()) * cell
    )
