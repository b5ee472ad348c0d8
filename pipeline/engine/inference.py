"""Whole cases from tiles: one pass over the volume, every network, flip and scale on each tile, blended in float32, streamed in bands.

Memory follows one tile-high band of the volume plus the output; the input may be memory-mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from pipeline.config import Config
from pipeline.data.normalise import Scale
from pipeline.data.sampling import crop_scaled
from pipeline.geometry import Tiling, flips
from pipeline.records import UserError
from pipeline.tasks import TASKS

Voice = Callable[[torch.Tensor], torch.Tensor]
"""Normalised tiles ``(B, C, *tile)`` -> soft answers ``(B, K, *tile)``, float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A case to predict: ``array`` ``(C, *S)`` of any number type, memory-mapped or not, and how it is normalised."""

    array: np.ndarray
    scale: Scale


def voice(networks: Sequence[torch.nn.Module], config: Config, device: str, weights: Sequence[float] | None = None) -> Voice:
    """Weighted mean of the soft answers of several networks, over ``predict.scales`` and, with ``predict.flips``, all axis flips.

    At a scale other than 1 the tile is resampled, and its soft answer is brought back to the tile's size before it is averaged.
    Linear resampling has weights that sum to 1, so probabilities still do.
    """
    task = TASKS[config.task]
    dims, scales = config.data.dims, config.predict.scales
    turns = flips(dims) if config.predict.flips else [()]
    shares = np.asarray(weights if weights is not None else [1.0] * len(networks), float)
    shares = shares / shares.sum() / len(turns) / len(scales)
    amp = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.amp) if device == "cuda" else None

    def ask(tiles: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor | None = None
        for turn in turns:
            turned = torch.flip(tiles, turn) if turn else tiles
            for network, share in zip(networks, shares, strict=True):
                with torch.autocast(device, amp, enabled=amp is not None):
                    logits = network(turned)["main"]
                soft = task.soft(logits)
                soft = (torch.flip(soft, turn) if turn else soft) * float(share)
                total = soft if total is None else total + soft
        assert total is not None
        return total

    def speak(tiles: torch.Tensor) -> torch.Tensor:
        size = tiles.shape[2:]
        answers = (resampled(ask(resampled(tiles, scaled(size, scale))), size) for scale in scales)
        total = next(answers)
        for answer in answers:
            total = total + answer
        return total

    return speak


def scaled(size: Sequence[int], scale: float) -> tuple[int, ...]:
    """``size`` times ``scale``, at least one voxel along each axis.

    >>> scaled((64, 1, 10), 0.25)
    (16, 1, 2)
    """
    return tuple(max(1, round(n * scale)) for n in size)


def resampled(batch: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """``(B, C, *S)`` at another size, by linear interpolation between voxel centres; the very same tensor where nothing changes.

    Images are smoothed before they shrink; volumes are not, since torch has no such filter for three axes.
    """
    if tuple(batch.shape[2:]) == tuple(size):
        return batch
    flat = len(size) == 2
    return functional.interpolate(batch, tuple(size), mode="bilinear" if flat else "trilinear", align_corners=False, antialias=flat)


def tiling(config: Config, size: Sequence[int]) -> Tiling:
    """The tiling that ``predict`` asks for. An image in one piece has no inner faces, so no halo is kept for them."""
    predict = config.predict
    whole = predict.patch == "whole"
    patch = predict.patch if isinstance(predict.patch, tuple) else config.data.patch.size
    return Tiling(
        size=tuple(size),
        tile=tuple(size) if whole else patch,
        overlap=predict.overlap,
        window=predict.window,
        one_sided=predict.one_sided,
        halo=0 if whole else predict.halo,
    )


@torch.inference_mode()
def sliding_window(source: Source, speak: Voice, tiles: Tiling, batch: int = 1, device: str = "cpu") -> np.ndarray:
    """Soft answer ``(K, *S)`` float32 for a whole case.

    Equals MONAI's SlidingWindowInferer with gaussian blending to float32 rounding when ``one_sided`` is off. Raises UserError when
    the device runs out of memory.
    """
    band: _Band | None = None
    try:
        for places in _batches(tiles, batch):
            stack = np.stack([_cut(source, tiles, place) for place in places])
            soft = speak(torch.from_numpy(stack).to(device))
            band = band or _Band(tiles, soft.shape[1], device)
            for place, one in zip(places, soft, strict=True):
                band.add(place, one)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not _out_of_memory(error):
            raise
        smaller = " ".join(str(-(-n // 2)) for n in tiles.tile)
        raise UserError(
            f"out of memory on {device} at tile {tiles.tile}, batch {batch}: predict in smaller tiles, e.g. --patch-size {smaller} "
            f"(predict.patch), or fewer at a time (predict.batch). ({(str(error) or type(error).__name__).splitlines()[0]})"
        ) from None
    assert band is not None
    return band.finish()


def _out_of_memory(error: Exception) -> bool:
    """Whether this is how torch or numpy says so; torch has no class of its own for the memory of a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _batches(tiles: Tiling, batch: int) -> Iterator[list[tuple[int, ...]]]:
    group: list[tuple[int, ...]] = []
    for place in tiles.places():
        group.append(place)
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


def _cut(source: Source, tiles: Tiling, place: Sequence[int]) -> np.ndarray:
    return crop_scaled(source.array, [p - b for p, b in zip(place, tiles.before, strict=True)], tiles.tile, source.scale)


class _Band:
    """Sums over one tile-high band along the first axis; rows that no later tile can reach are divided and handed to the output."""

    def __init__(self, tiles: Tiling, channels: int, device: str) -> None:
        self.tiles, self.device = tiles, device
        across = tiles.padded[1:]
        self.sums = torch.zeros((channels, tiles.tile[0], *across), device=device)
        self.weights = torch.zeros((tiles.tile[0], *across), device=device)
        self.start = 0
        self.out = np.empty((channels, *tiles.size), np.float32)
        self._profile: tuple[tuple, torch.Tensor] | None = None

    def add(self, place: Sequence[int], soft: torch.Tensor) -> None:
        if place[0] != self.start:
            self._release(place[0])
        weight = self._weight(place)
        box = tuple(slice(p, p + t) for p, t in zip(place[1:], self.tiles.tile[1:], strict=True))
        self.sums[(slice(None), slice(None), *box)].addcmul_(soft, weight)
        self.weights[(slice(None), *box)] += weight

    def _weight(self, place: Sequence[int]) -> torch.Tensor:
        # Tiles differ only in which of their faces are borders of the space.
        kind = tuple((p == 0, p == n - t) for p, n, t in zip(place, self.tiles.padded, self.tiles.tile, strict=True))
        if self._profile is None or self._profile[0] != kind:
            self._profile = (kind, torch.from_numpy(self.tiles.weights(place)).to(self.device))
        return self._profile[1]

    def _release(self, until: int) -> None:
        """Rows before ``until`` (in the padded space) are complete: write them out and move the band up."""
        rows = min(until - self.start, self.tiles.tile[0])
        done = (self.sums[:, :rows] / self.weights[:rows]).cpu().numpy()
        inner = tuple(slice(b, b + n) for b, n in zip(self.tiles.before[1:], self.tiles.size[1:], strict=True))
        first = self.start - self.tiles.before[0]
        low, high = max(first, 0), min(first + rows, self.tiles.size[0])
        self.out[:, low:high] = done[(slice(None), slice(low - first, high - first), *inner)]
        for buffer, axis in ((self.sums, 1), (self.weights, 0)):
            kept = buffer.shape[axis] - rows
            rest = buffer.narrow(axis, rows, kept).clone()
            buffer.narrow(axis, 0, kept).copy_(rest)
            buffer.narrow(axis, kept, rows).zero_()
        self.start = until

    def finish(self) -> np.ndarray:
        self._release(self.tiles.padded[0])
        return self.out
