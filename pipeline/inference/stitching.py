"""What tiles cost and change: the halo that makes them exact, or the measured difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from pipeline.config import Config
from pipeline.data import normalise
from pipeline.geometry import Tiling, up
from pipeline.inference.sliding_window import (
    NetworkEnsemble,
    Source,
    TilePredictor,
    TileRun,
    sliding_window,
)
from pipeline.networks import receptive
from pipeline.records import UserError

SAMPLE = {2: 512, 3: 64}
"""Longest edge in voxels of tiles in :func:`mismatch`, by number of space axes; takes seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """``|tiled - whole|`` of the probabilities of a sample of a case.

    Args:
        size: voxels of the sample along each axis.
        tile: voxels of a tile along each axis.
        most: largest difference.
        mean: mean difference.
    """

    size: tuple[int, ...]
    tile: tuple[int, ...]
    most: float
    mean: float


def mismatch(predict_tile: NetworkEnsemble, source: Source, tiles: Tiling) -> Mismatch:
    """Measure how tiled and whole prediction differ on a crop from the middle of a case.

    The first network predicts it without flips and scales. The crop is a tile and a half long along
    the last axis that has several tiles, one tile along the others. Tiles longer than ``SAMPLE``
    are cut to that, and halos that do not fit into them as well.

    Args:
        predict_tile: the networks.
        source: the case.
        tiles: its tiling, of more than one tile.

    Returns:
        The differences.
    """
    multiple, space = tiles.multiple, source.array.shape[1:]
    tile = [min(t, up(SAMPLE[len(space)], g)) for t, g in zip(tiles.tile, multiple, strict=True)]
    size = [min(n, t) for n, t in zip(space, tile, strict=True)]
    along = max(a for a, (n, t) in enumerate(zip(space, tile, strict=True)) if n > t)
    size[along] = min(space[along], up(tile[along] * 3 // 2, multiple[along]))
    start = [(n - m) // 2 for n, m in zip(space, size, strict=True)]
    sample = replace(
        source,
        array=source.array[
            (slice(None), *(slice(s, s + m) for s, m in zip(start, size, strict=True)))
        ],
    )
    plain = replace(
        predict_tile.config,
        predict=replace(predict_tile.config.predict, flips=False, scales=(1.0,)),
    )
    alone = replace(predict_tile, networks=predict_tile.networks[:1], shares=(1.0,), config=plain)
    pieces = replace(
        tiles,
        size=tuple(size),
        tile=tuple(tile),
        halo=min(tiles.halo, (tile[along] - multiple[along]) // 2),
    )
    run = TileRun(source=sample, predict_tile=alone, tiles=pieces, device=predict_tile.device)
    whole = sliding_window(replace(run, tiles=replace(pieces, tile=tuple(size))))
    tiled = sliding_window(run)
    error = np.concatenate([np.abs(tiled[name] - whole[name]) for name in whole])
    return Mismatch(
        size=tuple(size), tile=pieces.tile, most=float(error.max()), mean=float(error.mean())
    )


def warning(
    predict_tile: TilePredictor, source: Source, tiles: Tiling, backend: str = "torch"
) -> str | None:
    """Describe how tiles of a case differ from the whole image, where no halo helps.

    Args:
        predict_tile: the networks.
        source: the case.
        tiles: its tiling.
        backend: what computes the networks.

    Returns:
        A text with the measured difference and what helps. None, and nothing is measured, where
        tiles are as good: one tile, statistics already those of the whole, no layer that depends on
        the tile, no :class:`NetworkEnsemble`, or tiles of the training size, in which the network
        sees what it was trained on.
    """
    if (
        not isinstance(predict_tile, NetworkEnsemble)
        or tiles.count() == 1
        or predict_tile.config.predict.norms != "tile"
        or _as_trained(predict_tile.config, tiles)
    ):
        return None
    layers = receptive.tile_dependent(predict_tile.networks[0])
    if not layers:
        return None
    found = mismatch(predict_tile, source, tiles)
    suggestions = "; ".join(
        f"({n}) {text}"
        for n, text in enumerate(_suggestions(predict_tile, source, tiles, backend), 1)
    )
    return (
        f"{len(layers)} layers see their whole tile, e.g. {layers[0]}: tiled answers differ from"
        f" whole ones, by {found.most:.2g} at most and {found.mean:.2g} on average in a sample of"
        f" {_edges(found.size)} in tiles of {_edges(found.tile)}. Ways out: {suggestions}."
    )


def _as_trained(config: Config, tiles: Tiling) -> bool:
    """Whether tiles have the size of training patches, or of a smaller whole space."""
    sizes = zip(config.data.patch.size, tiles.multiple, tiles.padded, strict=True)
    return tiles.tile == tuple(min(up(n, g), whole) for n, g, whole in sizes)


def _suggestions(
    predict_tile: NetworkEnsemble, source: Source, tiles: Tiling, backend: str
) -> list[str]:
    """What helps, as far as it can be done here."""
    trained, predict = predict_tile.config.data.patch.size, predict_tile.config.predict
    room = "" if all(n > 2 * tiles.halo for n in trained) else " and a smaller --halo"
    found = [
        f"tiles of the training size, {_edges(trained)}"
        f" (--patch-size {' '.join(map(str, trained))}{room}),"
        " so that the network sees what it learned from"
    ]
    # Statistics do not help where whole maps are enlarged or pooled.
    if not receptive.beyond_statistics(predict_tile.networks[0]):
        other = "" if backend == "torch" else "--backend torch "
        found.append(
            f"{other}--norms frozen, statistics of one pass over the (reduced) whole image"
        )
        if tuple(predict.scales) == (1,):
            found.append(
                f"{other}--norms exact, those of the whole image, with a halo (--halo auto) equal"
                " to it"
            )
    if prod(source.array.shape) <= normalise.WHOLE:
        found.append("whole images (--whole)")
    return found


def with_halo(config: Config, network: torch.nn.Module, channels: int) -> tuple[Config, str]:
    """Set the least halo that covers the receptive field of a network.

    An image predicted whole needs none.

    Args:
        config: config of the prediction.
        network: the network.
        channels: its input channels.

    Returns:
        The config with that halo, and a text for the log on what it costs.

    Raises:
        UserError: tiles have no room for it.
    """
    predict, dims = config.predict, config.data.dims
    if predict.patch == "whole":
        return config, "Halo: none, each image is predicted in one piece."
    radius, multiple = receptive.radius(network, channels, dims), receptive.stride(network, dims)
    halo = receptive.halo(network, channels, dims)
    tile = [
        up(t, g) for t, g in zip(predict.patch or config.data.patch.size, multiple, strict=True)
    ]
    core = [t - 2 * halo for t in tile]
    least = [up(2 * halo + g, g) for g in multiple]
    if any(c < g for c, g in zip(core, multiple, strict=True)):
        raise UserError(
            f"--halo auto: the network sees {_edges(radius)} voxels beyond a place, so its tiles"
            f" need at least {_edges(least)}, not {_edges(tile)}."
            f" Give e.g. --patch-size {' '.join(str(up(4 * halo, g)) for g in multiple)},"
            " or a smaller --halo, which leaves faint seams."
        )
    wasted = 1 - prod(core) / prod(tile)
    text = (
        f"Halo: {halo}; the network sees {_edges(radius)} voxels beyond a place, its stride is"
        f" {_edges(multiple)}. Of an inner tile of {_edges(tile)}, {_edges(core)} are used:"
        f" {wasted:.0%} of its work goes into the halo"
    )
    more = (
        " Larger tiles (--patch-size) lose less; overlap adds nothing to exact tiles (--overlap 0)."
    )
    return replace(config, predict=replace(predict, halo=halo)), text + "." + more


def _edges(size: Sequence[int]) -> str:
    return " x ".join(str(n) for n in size)
