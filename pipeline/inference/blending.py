"""Blending of tiles: weighted sums in one band of tiles, handed on as rows are finished.

Rows are finished as soon as no later tile reaches them. Both kinds of tiled prediction use it:
:mod:`pipeline.inference.sliding_window` (the commands) and :mod:`pipeline.inference.inferer`
(MONAI's interface, for users' own code).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from torch.nn import functional

from pipeline.geometry import Tiling

Output = torch.Tensor | tuple[torch.Tensor, ...] | dict[Hashable, torch.Tensor]
"""A result: one ``(B, K, *S)`` tensor or several."""

Spot = tuple[tuple[int, ...], int]
"""Origin of a tile, and the item of the batch of images that it belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Images, and the tiles that cover them with their padding.

    The images lie in the middle of the space that ``tiles`` cover, which is as large, or larger
    where tiles are.

    Args:
        tiles: the tiling of the padded space.
        size: voxels of an image along each axis.
        items: number of images.
        device: where sums are kept.
        dtype: number type of the result; None: that of the network's outputs.
    """

    tiles: Tiling
    size: tuple[int, ...]
    items: int = 1
    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = torch.float32

    @property
    def low(self) -> tuple[int, ...]:
        """Padding in front of the image along each axis: half of it, a multiple of the stride."""
        axes = zip(self.tiles.size, self.size, self.tiles.multiple, strict=True)
        return tuple((space - n) // 2 // g * g for space, n, g in axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """Finished rows of every output, valid until the next slab is taken.

    Args:
        start: first row, counted in the inputs.
        names: names of the outputs; None where the network gives a tensor or a sequence.
        rows: rows ``(B, K, n, ...)`` of each output.
        first: first row in each output, which may have another size than the inputs.
        whole: shape ``(B, K, *S)`` of each whole output.
    """

    start: int
    names: list[Hashable] | None
    rows: list[torch.Tensor]
    first: list[int]
    whole: list[tuple[int, ...]]

    def to(self, device: torch.device) -> Slab:
        """Copy the slab to a device.

        Args:
            device: where the rows are needed.

        Returns:
            The slab with its rows there; the same tensors where they are there already.
        """
        return replace(self, rows=[rows.to(device) for rows in self.rows])

    def room(self) -> list[torch.Tensor]:
        """Allocate the whole outputs.

        Returns:
            Uninitialised tensors ``(B, K, *S)``, one for each output, of the type and on the device
            of its rows.
        """
        sizes = zip(self.whole, self.rows, strict=True)
        return [torch.empty(size, dtype=rows.dtype, device=rows.device) for size, rows in sizes]


class Blend:
    """Weighted sums of all outputs of a network in one band of tiles.

    Args:
        frame: images and tiles.
    """

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.start = -1
        self.names: list[Hashable] | None = None
        self.bands: list[Band] = []
        self._weights: tuple[tuple, list[torch.Tensor]] | None = None

    def add(self, spots: Sequence[Spot], prediction: Any) -> Iterator[Slab]:
        """Add the outputs for a batch of tiles.

        Args:
            spots: origin and item of each tile, in the order of :meth:`Tiling.origins`.
            prediction: a tensor ``(n, K, *tile)``, or a tuple, list or dict of such.

        Yields:
            Slabs of the rows that are finished before the next tiles begin.

        Raises:
            TypeError: an output is not a tensor of floating point, or there is none.
            ValueError: an output has the wrong shape, or another shape or name than for the tiles
                before.
        """
        names, outputs = unpacked(prediction)
        _check(names, outputs, len(spots), len(self.frame.size))
        if not self.bands:
            self.names, self.start = names, spots[0][0][0]
            self.bands = [
                Band(self.frame, o.shape[1:], self.frame.dtype or o.dtype) for o in outputs
            ]
        shapes, before = [tuple(o.shape[1:]) for o in outputs], [b.shape for b in self.bands]
        if names != self.names or shapes != before:
            raise ValueError(
                f"the network answered with {names or 'tensors'} of {shapes} to one tile and"
                f" {self.names or 'tensors'} of {before} to others; every tile needs the same"
                " outputs"
            )
        for n, (origin, item) in enumerate(spots):
            if origin[0] != self.start:
                yield self.finished(origin[0])
                self.move(origin[0])
            for band, output, weight in zip(self.bands, outputs, self.weights(origin), strict=True):
                band.add(origin, item, output[n], weight)

    def weights(self, origin: Sequence[int]) -> list[torch.Tensor]:
        """Blending weights of a tile for each output.

        Args:
            origin: first voxel of the tile.

        Returns:
            Float32 arrays, one for each output, of the size that a tile has in it.
        """
        tiles = self.frame.tiles
        kind: tuple = ()
        if tiles.one_sided or tiles.halo:  # tiles differ in which of their faces are borders
            axes = zip(origin, tiles.padded, tiles.tile, strict=True)
            kind = tuple((p == 0, p == n - t) for p, n, t in axes)
        if self._weights is None or self._weights[0] != kind:
            whole = torch.from_numpy(tiles.weights(origin)).to(self.frame.device)
            maps, last = [], whole
            for band in self.bands:
                # From the output before, as MONAI does: it decides which voxel is sampled.
                last = whole if band.tile == tiles.tile else _nearest(last, band.tile)
                maps.append(last)
            self._weights = (kind, maps)
        return self._weights[1]

    def rest(self) -> Slab:
        """The rows that the last tiles finish.

        Returns:
            The last slab.
        """
        return self.finished(self.frame.tiles.padded[0])

    def finished(self, until: int) -> Slab:
        """The rows before a row that no later tile reaches.

        Args:
            until: the row after the last one, counted in the padded inputs.

        Returns:
            A slab of means; the sums themselves are divided, so that it is valid until the next
            change.
        """
        return Slab(
            start=self.start,
            names=self.names,
            rows=[band.finished(self.start, until) for band in self.bands],
            first=[band.first(self.start) for band in self.bands],
            whole=[band.whole for band in self.bands],
        )

    def move(self, until: int) -> None:
        """Let all bands begin at a later row.

        Args:
            until: the new first row, counted in the padded inputs.
        """
        for band in self.bands:
            band.move(self.start, until)
        self.start = until


class Band:
    """Sums and weights of one output over the rows that tiles of one first row reach.

    Args:
        frame: images and tiles.
        shape: shape ``(K, *tile)`` of the output for one tile.
        dtype: number type of the result; sums are at least float32.

    Raises:
        ValueError: halos are used, but tiles do not start on whole voxels of this output.
    """

    def __init__(self, frame: Frame, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.frame, self.dtype = frame, dtype
        self.shape, self.tile = tuple(shape), tuple(shape[1:])
        tiles, axes = frame.tiles, range(len(self.tile))
        on_voxels = all(
            p * self.tile[a] % tiles.tile[a] == 0 for a in axes for p in tiles.starts(a)
        )
        if tiles.halo and not on_voxels:
            raise ValueError(
                f"a halo of {tiles.halo} needs tiles that start on whole voxels of every output,"
                f" but one has {self.tile} voxels for a tile of {tiles.tile}; leave halo at 0, or"
                " give the network's stride"
            )
        across = [self._at(axis, tiles.padded[axis]) for axis in axes[1:]]
        precise = torch.promote_types(dtype, torch.float32)
        band = (self.tile[0], *across)
        self.sums = torch.zeros((frame.items, shape[0], *band), dtype=precise, device=frame.device)
        self.weights = torch.zeros(band, dtype=precise, device=frame.device)
        self.kept = [self._kept(axis) for axis in axes]
        self.whole = (frame.items, shape[0], *(high - low for low, high in self.kept))

    def _at(self, axis: int, voxel: int) -> int:
        """Position in the output, which may have another size, of a voxel of the inputs."""
        return voxel * self.tile[axis] // self.frame.tiles.tile[axis]

    def _kept(self, axis: int) -> tuple[int, int]:
        """First voxel and end of the image in the padded output."""
        n, low = self.frame.size[axis], self.frame.low[axis]
        if self.frame.tiles.size[axis] == n:
            return 0, self._at(axis, n)
        out, tile = self.tile[axis], self.frame.tiles.tile[axis]
        return round(low * out / tile), round((low + n) * out / tile)  # MONAI's rounding

    def first(self, start: int) -> int:
        """The row of the result that belongs to a row of the padded inputs.

        Args:
            start: row of the padded inputs.

        Returns:
            Row of the result, at least 0.
        """
        return max(0, self._at(0, start) - self.kept[0][0])

    def add(
        self,
        origin: Sequence[int],
        item: int,
        output: torch.Tensor,
        weight: torch.Tensor,
    ) -> None:
        """Add the output for one tile.

        Args:
            origin: first voxel of the tile in the padded inputs.
            item: number of the image.
            output: the network's output ``(K, *tile)``.
            weight: blending weights of the size ``tile`` of this output.
        """
        first = [self._at(axis, start) for axis, start in enumerate(origin)][1:]
        across = (slice(f, f + n) for f, n in zip(first, self.tile[1:], strict=True))
        box = (slice(None), *across)
        weight = weight.to(self.sums.dtype)
        self.sums[(item, slice(None), *box)].addcmul_(output.to(self.sums), weight)
        if item == 0:  # tiles of other items have the same origins
            self.weights[box] += weight

    def finished(self, start: int, until: int) -> torch.Tensor:
        """Weighted mean of finished rows, divided in place.

        Args:
            start: first row of the band, counted in the padded inputs.
            until: the row after the last finished one.

        Returns:
            Rows ``(B, K, n, ...)`` of the image, without its padding.
        """
        begin = self._at(0, start)
        rows = self._at(0, until) - begin
        mean = self.sums[:, :, :rows].div_(self.weights[:rows])
        (low, high), *across = self.kept
        box = (slice(max(low - begin, 0), max(high - begin, 0)), *(slice(*kept) for kept in across))
        return mean[(slice(None), slice(None), *box)].to(self.dtype)

    def move(self, start: int, until: int) -> None:
        """Let the band begin at a later row.

        Args:
            start: present first row, counted in the padded inputs.
            until: the new one.
        """
        rows = self._at(0, until) - self._at(0, start)
        for buffer, axis in ((self.sums, 2), (self.weights, 0)):
            left = buffer.shape[axis] - rows
            rest = buffer.narrow(axis, rows, left)
            buffer.narrow(axis, 0, left).copy_(rest.clone() if left > rows else rest)
            buffer.narrow(axis, left, rows).zero_()


def _nearest(weights: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if tuple(weights.shape) == tuple(size):
        return weights
    return functional.interpolate(weights[None, None], tuple(size), mode="nearest-exact")[0, 0]


def unpacked(prediction: Any) -> tuple[list[Hashable] | None, list[torch.Tensor]]:
    """Split a network's output into names and tensors.

    Args:
        prediction: a tensor, or a tuple, list or dict of tensors.

    Returns:
        Names of the outputs (None where there are none), and the outputs as plain tensors.
    """
    if isinstance(prediction, torch.Tensor):
        return None, [plain(prediction)]
    if isinstance(prediction, Mapping):
        return list(prediction), [plain(value) for value in prediction.values()]
    several = prediction if isinstance(prediction, tuple | list) else [prediction]
    return None, [plain(value) for value in several]


def packed(outputs: Sequence[torch.Tensor], names: Sequence[Hashable] | None) -> Output:
    """The inverse of :func:`unpacked`.

    Args:
        outputs: one tensor for each output.
        names: their names, or None.

    Returns:
        A dict where there are names, else the single tensor, or a tuple of several.
    """
    if names is not None:
        return dict(zip(names, outputs, strict=True))
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _check(names: Sequence[Hashable] | None, outputs: Sequence[Any], count: int, dims: int) -> None:
    """Raise TypeError or ValueError for outputs that cannot be blended."""
    if not outputs:
        raise TypeError("the network answered with no output at all")
    for name, output in zip(names or range(len(outputs)), outputs, strict=True):
        if not isinstance(output, torch.Tensor):
            raise TypeError(
                f"output {name!r} of the network is {type(output).__name__}, but a tensor, or a"
                " tuple, list or dict of tensors, is needed"
            )
        if not output.is_floating_point():
            raise TypeError(
                f"output {name!r} of the network is {output.dtype},"
                " but overlapping tiles are averaged;"
                " return probabilities or logits, and take labels from the blended answer"
            )
        if output.ndim != dims + 2 or len(output) != count:
            raise ValueError(
                f"output {name!r} of the network has shape {tuple(output.shape)} for {count} tiles,"
                f" but ({count}, K, *tile) with {dims} space axes is needed"
            )


def plain(tensor: Any) -> Any:
    """Strip the metadata of a MetaTensor.

    Args:
        tensor: anything.

    Returns:
        The plain tensor of a MetaTensor, everything else as it is.
    """
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
