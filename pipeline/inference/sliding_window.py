"""Whole cases from tiles: every network, flip and scale on each tile, blended in float32.

The volume is passed over once. Memory follows one tile-high band of it, plus the result where it is
kept: :func:`stream` hands finished rows on instead. The input may be memory-mapped, or read piece
by piece (:class:`pipeline.files.LazyArray`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.nn import functional

from pipeline.config import Config
from pipeline.data.normalise import IntensityScale
from pipeline.files import LazyArray
from pipeline.geometry import Tiling, flips, up
from pipeline.inference import devices, norms
from pipeline.inference.blending import Blend, Frame, Slab
from pipeline.inference.fusion import require_weights
from pipeline.networks import receptive
from pipeline.records import UserError
from pipeline.tasks import TASKS

Heads = dict[str, torch.Tensor]
"""Probabilities (of images: intensities) by head, ``{"main": (B, K, *tile)}`` float32."""

TilePredictor = Callable[[torch.Tensor], Heads]
"""From normalised tiles ``(B, C, *tile)`` to probabilities by head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A case to predict.

    Args:
        array: ``(C, *S)`` of any number type, in memory or read as it is sliced.
        scale: how it is normalised.
    """

    array: LazyArray
    scale: IntensityScale


FlipAxes = tuple[int, ...]
"""Axes that are flipped, counted from the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEnsemble:
    """A :data:`TilePredictor` of networks: the weighted mean of their predictions.

    It averages also over ``predict.scales`` and, with ``predict.flips``, over all flips. At a scale
    other than 1 the tile is resampled, and its prediction is brought back to the tile's size before
    it is averaged. Linear resampling has weights that sum to 1, so probabilities still do.

    Args:
        networks: networks of one kind, on ``device``.
        shares: weight of each network, already divided by the number of flips and scales.
        config: task and ``predict`` options.
        device: device of the networks and the tiles.
        fixed: statistics of group and instance norm by (network, flip, scale); where they are
            missing, each tile is measured.
    """

    networks: Sequence[torch.nn.Module]
    shares: Sequence[float]
    config: Config
    device: str
    fixed: Mapping[tuple[int, FlipAxes, float], Sequence[norms.Moments]] = field(
        default_factory=dict
    )

    @property
    def multiple(self) -> tuple[int, ...]:
        """Stride of the networks along each axis."""
        return receptive.stride(self.networks[0], self.config.data.dims)

    @property
    def flips(self) -> list[FlipAxes]:
        """Flips that are averaged over."""
        return flips(self.config.data.dims) if self.config.predict.flips else [()]

    def __call__(self, tiles: torch.Tensor) -> Heads:
        """Predict a batch of tiles.

        Args:
            tiles: normalised tiles ``(B, C, *tile)`` on ``device``.

        Returns:
            Probabilities ``(B, K, *tile)`` float32 by head.
        """
        size = tiles.shape[2:]
        total: Heads = {}
        for scale in self.config.predict.scales:
            heads = self._at_scale(resampled(tiles, scaled(size, scale)), scale)
            _add(total, {name: resampled(head, size) for name, head in heads.items()})
        return total

    def _at_scale(self, tiles: torch.Tensor, scale: float) -> Heads:
        """Mean over flips and networks for tiles that are resampled to a scale already."""
        amp, task = self._amp(), TASKS[self.config.rules]
        inside = (..., *map(slice, tiles.shape[2:]))
        total: Heads = {}
        for axes in self.flips:
            flipped = torch.flip(self._padded(tiles), axes) if axes else tiles
            for n, (network, share) in enumerate(zip(self.networks, self.shares, strict=True)):
                with torch.autocast(devices.kind(self.device), amp, enabled=amp is not None):
                    outputs = norms.with_moments(
                        network, flipped, self.fixed.get((n, axes, scale), ())
                    )
                heads = task.heads(outputs)
                if axes:
                    heads = {name: torch.flip(head, axes)[inside] for name, head in heads.items()}
                _add(total, {name: head * float(share) for name, head in heads.items()})
        return total

    def _padded(self, tiles: torch.Tensor) -> torch.Tensor:
        """Pad before flipping, so that a flipped image is pooled as its flipped tiles are."""
        margin = [up(n, g) - n for n, g in zip(tiles.shape[2:], self.multiple, strict=True)]
        return (
            functional.pad(tiles, [p for m in reversed(margin) for p in (0, m)], mode="replicate")
            if any(margin)
            else tiles
        )

    def _amp(self) -> torch.dtype | None:
        cuda = devices.kind(self.device) == "cuda"
        return (
            {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.train.amp)
            if cuda
            else None
        )


def _add(total: Heads, heads: Heads) -> None:
    """Add heads to a sum, which is empty at first."""
    for name, head in heads.items():
        total[name] = total[name] + head if name in total else head


def network_ensemble(
    networks: Sequence[torch.nn.Module],
    config: Config,
    device: str,
    weights: Sequence[float] | None = None,
) -> NetworkEnsemble:
    """Combine networks to a tile predictor, as ``config.predict`` says.

    Args:
        networks: networks of one kind, on ``device``.
        config: task and ``predict`` options.
        device: where tiles are computed.
        weights: one for each network; None: equal ones.

    Returns:
        The weighted mean of the networks' predictions.

    Raises:
        UserError: weights are negative or not finite, or none is positive.
    """
    require_weights(weights if weights is not None else [1.0])
    shares = np.asarray(weights if weights is not None else [1.0] * len(networks), float)
    flips = 2**config.data.dims if config.predict.flips else 1
    shares = shares / shares.sum() / flips / len(config.predict.scales)
    return NetworkEnsemble(
        networks=tuple(networks), shares=tuple(shares), config=config, device=device
    )


@dataclass(frozen=True, slots=True)
class Replicas:
    """A :data:`TilePredictor` with copies of its networks on several devices.

    Batches of tiles go to the devices in turn, and come back in order. Where the devices compute
    alike, the result has the bits of one device.

    Args:
        ensembles: the same networks, one ensemble for each device.
    """

    ensembles: Sequence[NetworkEnsemble]

    @property
    def multiple(self) -> tuple[int, ...]:
        """Stride of the networks along each axis."""
        return self.ensembles[0].multiple

    def __call__(self, tiles: torch.Tensor) -> Heads:
        """Predict a batch of tiles on the first device.

        Args:
            tiles: normalised tiles ``(B, C, *tile)`` there.

        Returns:
            Probabilities ``(B, K, *tile)`` float32 by head.
        """
        return self.ensembles[0](tiles)

    def predictions(self, stacks: Iterator[torch.Tensor]) -> Iterator[Heads]:
        """Predict batches of tiles on all devices; one batch waits for each device.

        Args:
            stacks: normalised tiles ``(B, C, *tile)`` on the CPU.

        Yields:
            Probabilities by head in the order of ``stacks``, each on the device that computed it.
        """
        pools = [
            ThreadPoolExecutor(1, thread_name_prefix=ensemble.device) for ensemble in self.ensembles
        ]
        pending: deque[Future[Heads]] = deque()
        try:
            for n, stack in enumerate(stacks):
                index = n % len(pools)
                pending.append(pools[index].submit(_predict_batch, self.ensembles[index], stack))
                if len(pending) > len(pools):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for pool in pools:
                pool.shutdown(cancel_futures=True)


@torch.inference_mode()  # the mode belongs to a thread, so that of the caller does not count here
def _predict_batch(ensemble: NetworkEnsemble, stack: torch.Tensor) -> Heads:
    return ensemble(stack.to(ensemble.device))


def with_fixed_norms(predict_tile: TilePredictor, source: Source, tiles: Tiling) -> TilePredictor:
    """Fix the statistics of norms for one case, with ``predict.norms`` frozen or exact.

    Group and instance norms then have the statistics of that case, for each network, flip and
    scale.

    Args:
        predict_tile: the networks.
        source: the case.
        tiles: its tiling.

    Returns:
        A predictor for this case alone; the same one where nothing is to be fixed: one tile,
        networks without such layers, ``predict.norms: tile``, or no :class:`NetworkEnsemble`.

    Raises:
        UserError: a layer depends on the tile in another way than by its statistics, or statistics
            are exact and there are scales other than 1: resampled tiles are no part of a resampled
            image.
    """
    if isinstance(predict_tile, Replicas):
        # Each of them is a NetworkEnsemble.
        fixed = [with_fixed_norms(e, source, tiles) for e in predict_tile.ensembles]
        return Replicas(fixed)  # type: ignore[arg-type]
    if (
        not isinstance(predict_tile, NetworkEnsemble)
        or predict_tile.config.predict.norms == "tile"
        or tiles.count() == 1
    ):
        return predict_tile
    mode, scales = predict_tile.config.predict.norms, predict_tile.config.predict.scales
    for network in predict_tile.networks[:1]:
        if not receptive.tile_dependent(network):
            return predict_tile
        if beyond := receptive.beyond_statistics(network):
            raise UserError(
                f"predict.norms is {mode}, but no statistics make tiles equal the whole image here:"
                f" {', '.join(beyond[:3])} depends on a tile's size. Predict whole images"
                " (--whole), or in tiles of the training size with --norms tile."
            )
    if mode == "exact" and tuple(scales) != (1,):
        raise UserError(
            f"predict.norms exact goes with scale 1 only, not {list(scales)}. Leave --scales out,"
            " or take --norms frozen."
        )
    return replace(predict_tile, fixed=_statistics(predict_tile, source, tiles))


Key = tuple[int, FlipAxes, float]
"""Number of a network, axes that are flipped, scale."""


def _statistics(
    predict_tile: NetworkEnsemble, source: Source, tiles: Tiling
) -> dict[Key, Sequence[norms.Moments]]:
    """Statistics of the norms of each network, flip and scale over a whole case."""
    mode, scales = predict_tile.config.predict.norms, predict_tile.config.predict.scales
    space = norms.Space(
        size=tiles.padded,
        read=lambda start, size: _tensor(source, start, size, predict_tile.device),
    )
    spreads = (
        receptive.reach(predict_tile.networks[0], len(source.array), len(tiles.size)).norms
        if mode == "exact"
        else ()
    )
    fixed: dict[Key, Sequence[norms.Moments]] = {}
    for axes in predict_tile.flips:
        flipped = space.flipped(axes)
        image = norms.reduced(flipped) if mode == "frozen" else None
        for n, network in enumerate(predict_tile.networks):
            for scale in scales:
                key = (n, axes, scale)
                if image is None:
                    fixed[key] = norms.exact(network, flipped, tiles.tile, spreads)
                else:
                    fixed[key] = norms.frozen(
                        network, resampled(image, scaled(image.shape[2:], scale))
                    )
    return fixed


def _tensor(source: Source, start: Sequence[int], size: Sequence[int], device: str) -> torch.Tensor:
    return torch.from_numpy(cut(source, start, size)[None]).to(device)


def scaled(size: Sequence[int], scale: float) -> tuple[int, ...]:
    """Multiply a size.

    Args:
        size: voxels along each axis.
        scale: factor.

    Returns:
        Rounded voxels along each axis, at least 1.

    Example:
        >>> scaled((64, 1, 10), 0.25)
        (16, 1, 2)
    """
    return tuple(max(1, round(n * scale)) for n in size)


def resampled(batch: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resample by linear interpolation between voxel centres.

    Images are smoothed before they shrink; volumes are not, since torch has no such filter for
    three axes.

    Args:
        batch: ``(B, C, *S)``.
        size: voxels wanted along each axis.

    Returns:
        ``(B, C, *size)``; the very same tensor where the size is the same.
    """
    if tuple(batch.shape[2:]) == tuple(size):
        return batch
    flat = len(size) == 2
    return functional.interpolate(
        batch,
        tuple(size),
        mode="bilinear" if flat else "trilinear",
        align_corners=False,
        antialias=flat,
    )


def tiling(
    config: Config, size: Sequence[int], predict_tile: TilePredictor | None = None
) -> Tiling:
    """The tiling that ``config.predict`` sets for a case.

    An image in one piece has no inner faces, so no halo is kept for them.

    Args:
        config: its ``predict`` options, and the patch size of training.
        size: voxels of the case along each axis.
        predict_tile: the networks, whose stride tiles are aligned to; None: a stride of 1.

    Returns:
        The tiling.

    Raises:
        UserError: halos leave nothing of a tile.
    """
    predict = config.predict
    whole = predict.patch == "whole"
    patch = predict.patch if isinstance(predict.patch, tuple) else config.data.patch.size
    try:
        return Tiling(
            size=tuple(size),
            tile=tuple(size) if whole else patch,
            overlap=predict.overlap,
            window=predict.window,
            one_sided=predict.one_sided,
            halo=0 if whole else predict.halo,
            multiple=() if whole or predict_tile is None else getattr(predict_tile, "multiple", ()),
        )
    except ValueError as error:
        raise UserError(
            f"predict: {error} (--patch-size), or lower predict.halo (--halo)."
        ) from None


SlabWriter = Callable[[int, Mapping[str, np.ndarray]], None]
"""Takes finished rows: number of the first one, and probabilities ``(K, n, ...)`` by head.

Rows are counted along the first space axis. The float32 arrays are valid until it returns.
"""


Advance = Callable[[int], object]
"""Called with the number of tiles just predicted; an exception from it ends the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileRun:
    """What is predicted, by which networks, in which tiles.

    Args:
        source: the case and its normalisation.
        predict_tile: the networks.
        tiles: how the case is tiled.
        batch: tiles in a forward pass.
        device: where tiles are computed (of one :class:`NetworkEnsemble`) and summed.
        advance: called with the number of tiles of each batch that is done.
    """

    source: Source
    predict_tile: TilePredictor
    tiles: Tiling
    batch: int = 1
    device: str = "cpu"
    advance: Advance | None = None


def sliding_window(run: TileRun) -> dict[str, np.ndarray]:
    """Predict a whole case tile by tile.

    Equals MONAI's SlidingWindowInferer with gaussian blending to float32 rounding when
    ``one_sided`` is off.

    Args:
        run: case, networks and tiles.

    Returns:
        Probabilities ``(K, *S)`` float32 by head.

    Raises:
        UserError: the device runs out of memory.

    Example:
        >>> from pipeline.data.normalise import IntensityScale
        >>> scale = IntensityScale(low=(0,), high=(100,), to=(0, 1), clip=False)
        >>> run = TileRun(
        ...     source=Source(array=np.full((1, 20, 20), 25, np.uint8), scale=scale),
        ...     predict_tile=lambda batch: {"main": 2 * batch},
        ...     tiles=Tiling(size=(20, 20), tile=(8, 8), overlap=4),
        ... )
        >>> main = sliding_window(run)["main"]
        >>> main.shape, float(main.min()), float(main.max())
        ((1, 20, 20), 0.5, 0.5)
    """
    out: dict[str, np.ndarray] = {}

    def keep(first: int, heads: Mapping[str, np.ndarray]) -> None:
        for name, rows in heads.items():
            if name not in out:
                out[name] = np.empty((len(rows), *run.tiles.size), np.float32)
            out[name][:, first : first + rows.shape[1]] = rows

    stream(run, keep)
    return out


@torch.inference_mode()
def stream(run: TileRun, writer: SlabWriter, rows: tuple[int, int] | None = None) -> None:
    """Predict a case and hand rows on as they are finished, in order and without gaps.

    Rows are counted along the first space axis. With ``rows``, these have the bits that they have
    in the whole result: every tile that reaches them is computed, in the same batches, and summed
    in the same order.

    Args:
        run: case, networks and tiles.
        writer: takes the finished rows.
        rows: first row and end of the rows wanted; None: all.

    Raises:
        UserError: the device runs out of memory.
    """
    tiles, device = run.tiles, run.device
    wanted = rows or (0, tiles.size[0])
    blend = Blend(Frame(tiles=tiles, size=tiles.size, device=device))
    try:
        for origins, needed, heads in _predicted_batches(run, wanted):
            if run.advance is not None:
                run.advance(len(origins))
            spots = [(origin, 0) for origin, use in zip(origins, needed, strict=True) if use]
            used = {
                name: (head if all(needed) else head[needed]).to(device)
                for name, head in heads.items()
            }
            for slab in blend.add(spots, used):
                _write_wanted(slab, writer, wanted)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not _out_of_memory(error):
            raise
        smaller = " ".join(str(-(-n // 2)) for n in tiles.tile)
        raise UserError(
            f"out of memory on {device} at tile {tiles.tile}, batch {run.batch}: predict in smaller"
            f" tiles, e.g. --patch-size {smaller} (predict.patch), or fewer at a time"
            f" (predict.batch). ({(str(error) or type(error).__name__).splitlines()[0]})"
        ) from None
    _write_wanted(blend.rest(), writer, wanted)


def _write_wanted(slab: Slab, writer: SlabWriter, wanted: tuple[int, int]) -> None:
    """Hand on those rows of a slab that are wanted."""
    heads = {
        str(name): rows[0].cpu().numpy()
        for name, rows in zip(slab.names or (), slab.rows, strict=True)
    }
    count = next(iter(heads.values())).shape[1]
    low, high = max(slab.start, wanted[0]), min(slab.start + count, wanted[1])
    if low < high:
        writer(
            low,
            {name: rows[:, low - slab.start : high - slab.start] for name, rows in heads.items()},
        )


PredictedBatch = tuple[list[tuple[int, ...]], list[bool], Heads]
"""Origins of a batch's tiles, which of them reach the wanted rows, and the tiles' predictions."""


def _predicted_batches(run: TileRun, rows: tuple[int, int]) -> Iterator[PredictedBatch]:
    """Batches with a tile that reaches ``rows``, in order."""
    predict_tile, tiles = run.predict_tile, run.tiles
    waiting: deque[tuple[list[tuple[int, ...]], list[bool]]] = deque()

    def stacks() -> Iterator[torch.Tensor]:
        for origins in _batches(tiles, run.batch):
            needed = [tiles.reaches(origin, *rows) for origin in origins]
            if any(needed):
                waiting.append((origins, needed))
                # Tiles that share a batch are computed together even where some are not needed: its
                # size may change the last bits.
                yield torch.from_numpy(
                    np.stack([cut(run.source, origin, tiles.tile) for origin in origins])
                )

    if isinstance(predict_tile, Replicas):
        predictions = predict_tile.predictions(stacks())
    else:
        predictions = (predict_tile(stack.to(run.device)) for stack in stacks())
    for heads in predictions:
        yield *waiting.popleft(), heads


def _out_of_memory(error: Exception) -> bool:
    """Whether torch or NumPy ran out of memory; for that of a CPU torch has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(
        error
    )


def _batches(tiles: Tiling, batch: int) -> Iterator[list[tuple[int, ...]]]:
    """Origins of tiles in groups of ``batch``."""
    group: list[tuple[int, ...]] = []
    for origin in tiles.origins():
        group.append(origin)
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


def cut(source: Source, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Cut a normalised box out of a case.

    Args:
        source: the case.
        start: first voxel of the box along each axis.
        size: voxels of the box along each axis. It may leave the case at the far ends, where the
            border is repeated.

    Returns:
        Float32 ``(C, *size)``.

    Example:
        >>> from pipeline.data.normalise import IntensityScale
        >>> ramp = np.arange(4, dtype=np.uint8)[None, None]
        >>> scale = IntensityScale(low=(0,), high=(2,), to=(0, 1), clip=False)
        >>> cut(Source(array=ramp, scale=scale), (0, 2), (1, 4))[0].tolist()
        [[1.0, 1.5, 1.5, 1.5]]
    """
    space = source.array.shape[1:]
    # A box beyond the end repeats the last voxel.
    first = [min(s, n - 1) for s, n in zip(start, space, strict=True)]
    part = source.scale.apply(
        source.array[
            (slice(None), *(slice(a, s + t) for a, s, t in zip(first, start, size, strict=True)))
        ]
    )
    margin = [(0, t - n) for t, n in zip(size, part.shape[1:], strict=True)]
    return np.pad(part, [(0, 0), *margin], mode="edge") if part.shape[1:] != tuple(size) else part
