"""Tiled prediction with MONAI's interface: any callable, tensors in and out, streamed in bands.

It only tiles: no config, no normalisation, no flips. The commands use
:mod:`pipeline.inference.sliding_window`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from tqdm import tqdm

from pipeline.geometry import Tiling, up
from pipeline.inference.blending import Blend, Frame, Output, Slab, Spot, packed, plain
from pipeline.networks import receptive

Device = torch.device | str
MODES = ("constant", "gaussian")
PADDING = ("constant", "reflect", "replicate", "circular")
LEFT_OUT: dict[str, tuple[Any, str]] = {
    "cache_roi_weight_map": (False, "weights are kept for as long as tiles need them anyway"),
    "cpu_thresh": (
        None,
        'give device="cpu", which keeps only one band of tiles on sw_device whatever the size',
    ),
    "buffer_steps": (None, "sums are always kept in one band of tiles on sw_device"),
    "buffer_dim": (-1, "sums are always kept in one band of tiles along the first space axis"),
    "with_coord": (
        False,
        "only monai.inferers.SlidingWindowInferer tells the network where its tiles lie",
    ),
}
"""MONAI's arguments that are not supported: MONAI's default, and what to do instead."""


class SlidingWindowInferer(Inferer):
    """MONAI's ``SlidingWindowInferer`` with memory for one band of tiles beside the result.

    Equals ``monai.inferers.SlidingWindowInferer`` to 1e-5 with ``one_sided=False``, ``halo=0`` and
    a stride of 1 (or one that divides the tile, its step, the image and the padding): the same
    tiles, weights, padding and structure of the result. It differs from MONAI where MONAI loses
    something: sums are float32 for half-precision inputs, the network gets copies and so cannot
    write into the input, every output keeps the metadata of a MetaTensor, and integer images are
    accepted.

    No gradients are computed: the network is called under ``torch.no_grad()``, and the result is an
    ordinary tensor without a graph, which can be changed in place or put into a loss. MONAI's
    carries gradients where the caller leaves them on. ``network.eval()`` is left to the caller, as
    with MONAI.

    Args:
        roi_size: size of a tile in voxels, one for all axes or one for each; -1, 0 or None stands
            for the whole axis. An axis of the image that is shorter is padded on both sides to it,
            and the result is cropped back.
        sw_batch_size: tiles in a call of the network. Tiles of one origin of all B items come one
            after the other.
        overlap: share of a tile, from 0 to below 1, that it has in common with the next one, one
            for all axes or one for each.
        mode: "gaussian" (tiles count less towards their faces; the default here) or "constant"
            (MONAI's default).
        sigma_scale: standard deviation of the Gaussian as a share of the tile, one for all axes or
            one for each.
        padding_mode: "constant", "reflect", "replicate" or "circular", for images shorter than a
            tile.
        cval: the value of constant padding.
        sw_device: where tiles are computed and summed; None: the device of the inputs. Tiles are
            moved one batch at a time.
        device: where the result is gathered; None: the device of the inputs. A call may give
            another one.
        progress: show a progress bar.
        one_sided: do not let the windows of tiles at the border of the image fall off towards that
            border, where no other tile contributes. False is MONAI's behaviour.
        halo: voxels at the inner faces of a tile that are computed but not used; ``overlap`` is
            then a share of what remains.
        stride: multiple of voxels on which tiles start and end, one for all axes or one for each,
            so that a network that pools sees each tile as it would see the whole image. None takes
            the ``divisor`` of a network that has one, as those of this package do, and else 1.
            Tiles are enlarged to it, steps between them shortened, and the far ends of the image
            repeated.
        left_out: MONAI's other arguments, accepted only at MONAI's default.

    Raises:
        ValueError: a value is out of range; the message names what is allowed.
        TypeError: an argument of MONAI's that is not supported (``cache_roi_weight_map``,
            ``cpu_thresh``, ``buffer_steps``, ``buffer_dim``, ``with_coord``) has another value than
            MONAI's default; the message says what to do instead.

    Source:
        The contract, placement and Gaussian window of MONAI 1.6 (Apache-2.0,
        https://github.com/Project-MONAI/MONAI). One-sided windows, halos, tiles on the stride and
        the band of sums are this package's.

    Example:
        >>> import torch
        >>> inferer = SlidingWindowInferer((8, 8), overlap=0.5, mode="gaussian")
        >>> image = torch.arange(2 * 20 * 13.0).reshape(2, 1, 20, 13)
        >>> inferer(image, lambda tiles: {"twice": 2 * tiles})["twice"].allclose(2 * image)
        True
        >>> [(first, tuple(rows.shape)) for first, rows in inferer.slabs(image, torch.relu)]
        [(0, (2, 1, 4, 13)), (4, (2, 1, 4, 13)), (8, (2, 1, 4, 13)), (12, (2, 1, 8, 13))]
    """

    def __init__(  # MONAI's arguments in MONAI's order, then those of this package
        self,
        roi_size: Sequence[int | None] | int | None,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: str = "gaussian",
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        sw_device: Device | None = None,
        device: Device | None = None,
        progress: bool = False,
        *,
        one_sided: bool = True,
        halo: int = 0,
        stride: Sequence[int] | int | None = None,
        **left_out: Any,
    ) -> None:
        super().__init__()
        _refuse(left_out)
        _require(
            all(r is None or isinstance(r, Integral) for r in _each(roi_size)),
            f"roi_size is {roi_size}, but it counts voxels: whole numbers",
        )
        _require(
            sw_batch_size >= 1, f"sw_batch_size is {sw_batch_size}, but a batch has at least 1 tile"
        )
        _require(
            all(0 <= o < 1 for o in _each(overlap)),
            f"overlap is {overlap}, but it is a share of a tile: from 0 to below 1",
        )
        _require(
            all(s > 0 for s in _each(sigma_scale)),
            f"sigma_scale is {sigma_scale}, but a share of a tile is above 0",
        )
        _require(halo >= 0, f"halo is {halo}, but it counts voxels: 0 or more")
        _require(
            all(s >= 1 for s in _each(1 if stride is None else stride)),
            f"stride is {stride}, but it counts voxels: 1 or more",
        )
        self.roi_size = roi_size
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.mode = _one_of("mode", mode, MODES)
        self.sigma_scale = sigma_scale
        self.padding_mode = _one_of("padding_mode", padding_mode, PADDING)
        self.cval = cval
        self.sw_device = sw_device
        self.device = device
        self.progress = progress
        self.one_sided = one_sided
        self.halo = halo
        self.stride = stride

    @torch.no_grad()
    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Predict whole images.

        Args:
            inputs: images ``(B, C, *S)`` of any number type, with any number of space axes.
            network: any callable from tiles ``(n, C, *tile)`` to a tensor ``(n, K, *tile)`` of
                floating point, or a tuple, list or dict of such tensors. An output of another size
                than the tile makes a result of another size than the image, by the same factor.
            args: passed to the network after the tiles.
            kwargs: passed to the network, but for two that MONAI reads itself: ``device`` overrides
                that of the constructor, and ``condition`` is a second image of the same shape as
                ``inputs``, of which the network gets the same tiles.

        Returns:
            The network's output for whole images: ``(B, K, *S)`` of the inputs' type (of the
            network's, where the inputs are integers). A tuple or list of several gives a tuple, one
            of a single tensor gives that tensor, a dict a dict. MetaTensors in, MetaTensors out:
            metadata are the input's, unchanged also where the size is not.

        Raises:
            ValueError: no tiling of such images exists, or outputs differ from tile to tile in size
                or number.
            TypeError: the inputs are not a tensor, or the network returns something else than
                tensors of floating point.
        """
        whole: list[torch.Tensor] = []
        names: list[Hashable] | None = None
        for slab in self._finished(inputs, network, args, kwargs):
            names = slab.names
            whole = whole or slab.room()
            for target, first, rows in zip(whole, slab.first, slab.rows, strict=True):
                target[:, :, first : first + rows.shape[2]] = rows
        if isinstance(inputs, MetaTensor):
            whole = [MetaTensor(w).copy_meta_from(inputs) for w in whole]
        return packed(whole, names)

    @torch.no_grad()
    def slabs(
        self,
        inputs: torch.Tensor,
        network: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Iterator[tuple[int, Output]]:
        """Predict whole images, slab by slab along the first space axis, in order and without gaps.

        Only the band of rows that tiles still add to is held, so results larger than memory can be
        written to disk. Joined along axis 2, the slabs are bit for bit the result of a call.

        Args:
            inputs: as for a call.
            network: as for a call.
            args: as for a call.
            kwargs: as for a call.

        Yields:
            The slab's first row along the first space axis of the inputs, and the slab: rows
            ``(B, K, n, ...)`` on ``device``, in the structure of the network's output, as plain
            tensors. A slab of an output of another size than the tile has its rows in proportion,
            and may have none.

        Raises:
            ValueError: as for a call, when the first slab is taken.
            TypeError: as for a call, when the first slab is taken.
        """
        for slab in self._finished(inputs, network, args, kwargs):
            yield slab.start, packed([rows.clone() for rows in slab.rows], slab.names)

    def _finished(
        self,
        inputs: torch.Tensor,
        network: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Iterator[Slab]:
        kwargs = dict(kwargs)
        _refuse(
            {name: kwargs.pop(name) for name in ("buffer_steps", "buffer_dim") if name in kwargs}
        )
        frame = self._frame(inputs, network)
        cutter = _Cutter(frame=frame, padding=self.padding_mode, fill=self.cval)
        device = torch.device(kwargs.pop("device", None) or self.device or inputs.device)
        image, condition = plain(inputs), plain(kwargs.pop("condition", None))
        if condition is not None and condition.shape != inputs.shape:
            raise ValueError(
                f"condition {tuple(condition.shape)} must have the shape of the inputs "
                f"{tuple(inputs.shape)}: both are cut into the same tiles"
            )
        blend = Blend(frame)
        for batch in self._batches(frame.tiles, len(inputs)):
            if condition is not None:
                kwargs["condition"] = cutter.stack(condition, batch).to(frame.device)
            tiles = cutter.stack(image, batch).to(frame.device)
            for slab in blend.add(batch, network(tiles, *args, **kwargs)):
                yield slab.to(device)
        yield blend.rest().to(device)

    def _batches(self, tiles: Tiling, items: int) -> Iterator[list[Spot]]:
        """Tiles of all items in batches, origin by origin."""
        total = -(-tiles.count() * items // self.sw_batch_size)
        spots = itertools.product(tiles.origins(), range(items))
        batches = iter(lambda: list(itertools.islice(spots, self.sw_batch_size)), [])
        yield from tqdm(batches, total=total, disable=not self.progress)

    def _frame(self, inputs: torch.Tensor, network: Callable[..., Any]) -> Frame:
        if not isinstance(inputs, torch.Tensor):
            raise TypeError(
                f"inputs are {type(inputs).__name__}, but a tensor (B, C, *S) is needed;"
                " torch.from_numpy makes one of an array"
            )
        if inputs.ndim < 3 or not inputs.numel():
            raise ValueError(
                f"inputs have shape {tuple(inputs.shape)}, but (B, C, *S) with at least one space"
                " axis and one voxel is needed"
            )
        size = tuple(inputs.shape[2:])
        dims = len(size)
        own = self.stride is None
        stride = _own_stride(network, dims) if own else _per_axis("stride", self.stride, dims)
        roi = zip(_per_axis("roi_size", self.roi_size, dims), size, strict=True)
        wanted = tuple(int(r) if r and r > 0 else n for r, n in roi)
        axes = zip(size, wanted, stride, strict=True)
        space = tuple(up(r, g) if n < r else n for n, r, g in axes)
        tile = tuple(up(r, g) for r, g in zip(wanted, stride, strict=True))
        overlap = _per_axis("overlap", self.overlap, dims)
        tiles = Tiling(
            size=space,
            tile=tile,
            window=self.mode,
            one_sided=self.one_sided,
            halo=self.halo,
            multiple=stride,
            steps=tuple(
                int((t - 2 * self.halo) * (1 - o)) for t, o in zip(tile, overlap, strict=True)
            ),
            sigma_scale=_per_axis("sigma_scale", self.sigma_scale, dims),
        )
        device = torch.device(self.sw_device or inputs.device)
        dtype = inputs.dtype if inputs.is_floating_point() else None
        return Frame(tiles=tiles, size=size, items=len(inputs), device=device, dtype=dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cutter:
    """Cuts the tiles of a frame out of images, padded at their borders."""

    frame: Frame
    padding: str
    fill: float

    def stack(self, images: torch.Tensor, spots: Sequence[Spot]) -> torch.Tensor:
        """Copies of tiles ``(n, C, *tile)``."""
        return torch.stack([self._cut(images[item], origin) for origin, item in spots])

    def _cut(self, image: torch.Tensor, origin: Sequence[int]) -> torch.Tensor:
        """A tile ``(C, *tile)``, padded by itself: the whole padded image is never made."""
        tiles, outside = self.frame.tiles, []
        for axis, (start, tile, n, space, low) in enumerate(
            zip(origin, tiles.tile, self.frame.size, tiles.size, self.frame.low, strict=True), 1
        ):
            if low <= start and start + tile <= low + n:
                image = image.narrow(axis, start - low, tile)
            else:
                index = torch.arange(start, start + tile).clamp(max=space - 1) - low
                outside.append((axis, index, n))
        for axis, index, n in outside:
            image = self._padded(image, axis, index.to(image.device), n)
        return image

    def _padded(self, image: torch.Tensor, axis: int, index: torch.Tensor, n: int) -> torch.Tensor:
        """Voxels at ``index`` along an axis of ``n`` voxels, some of which are outside of it."""
        if self.padding == "circular":
            return image.index_select(axis, index % n)
        if self.padding == "reflect":
            index = index % max(1, 2 * n - 2)  # an axis of one voxel can only repeat it
            return image.index_select(axis, torch.minimum(index, 2 * n - 2 - index))
        part = image.index_select(axis, index.clamp(0, n - 1))
        if self.padding == "constant":
            part.index_fill_(axis, ((index < 0) | (index >= n)).nonzero().flatten(), self.fill)
        return part


def _own_stride(network: Any, dims: int) -> tuple[int, ...]:
    """Stride of this package's networks; elsewhere ``divisor`` may mean something else."""
    own = getattr(network, "divisor", None)
    named = isinstance(network, torch.nn.Module) and isinstance(own, tuple) and len(own) == dims
    return receptive.stride(network, dims) if named else (1,) * dims


def _each(value: Any) -> tuple:
    return tuple(value) if isinstance(value, Iterable) else (value,)


def _per_axis(name: str, value: Any, dims: int) -> tuple:
    values = _each(value)
    if isinstance(value, Iterable) and len(values) != dims:
        raise ValueError(
            f"{name} is {value}, but inputs have {dims} space axes; give one value for each, or one"
            " for all"
        )
    return values if isinstance(value, Iterable) else values * dims


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    word = str(getattr(value, "value", value)).lower()
    if word not in known:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(known)}")
    return word


def _require(true: bool, message: str) -> None:
    if not true:
        raise ValueError(message)


def _refuse(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in LEFT_OUT:
            raise TypeError(f"SlidingWindowInferer has no argument {name!r}")
        usual, instead = LEFT_OUT[name]
        if value != usual:
            raise TypeError(f"{name}={value!r} is not taken: {instead}. Leave it out.")
