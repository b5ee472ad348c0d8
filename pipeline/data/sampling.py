"""Where training patches are cut: balanced by foreground, by class or by change, by their seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from monai.transforms import MapTransform, Randomizable

from pipeline.config import Patch
from pipeline.data.cache import Volume
from pipeline.data.change import LEVEL, REDUCED
from pipeline.data.derived import BLOCKS, MASK
from pipeline.data.locations import LOCATIONS, draw_voxel
from pipeline.data.spatial import RandSpatiald, Warp
from pipeline.geometry import crop


def seed_of(*numbers: int) -> int:
    """One 32-bit seed from several numbers, the same on every machine.

    Args:
        numbers: (seed, fold, epoch, sample, ...), each at least -1.

    Returns:
        0 to 2**32 - 1.

    Example:
        >>> seed_of(42, 0, 1, 2) == seed_of(42, 0, 1, 2) != seed_of(42, 0, 1, 3)
        True
    """
    return int(np.random.SeedSequence([n + 1 for n in numbers]).generate_state(1)[0])


def foreground_share(label: np.ndarray, ignore: int | None) -> float:
    """Share of foreground among the labelled voxels.

    Args:
        label: class numbers of any shape, background 0.
        ignore: ignored label; None: there is none.

    Returns:
        0 to 1; ``nan`` where nothing is labelled.

    Example:
        >>> foreground_share(np.array([0, 1, 255]), ignore=255)
        0.5
    """
    if ignore is None:
        return float(np.count_nonzero(label)) / label.size if label.size else float("nan")
    ignored = int(np.count_nonzero(label == ignore))
    labelled = label.size - ignored
    foreground = int(np.count_nonzero(label)) - (ignored if ignore != 0 else 0)
    return foreground / labelled if labelled else float("nan")


def grid_starts(length: int, size: int, overlap: float) -> list[int]:
    """First voxels of the grid patches along one axis, the last one at the border.

    Args:
        length: voxels of the axis.
        size: voxels of a grid patch along the axis.
        overlap: share of a grid patch that neighbours have in common; the stride,
            ``size * (1 - overlap)``, is rounded and at least 1.

    Returns:
        Rising starts. An axis no longer than a grid patch has one, centred: a negative start means
        padding.

    Example:
        >>> grid_starts(100, 64, 0.25), grid_starts(64, 64, 0.5), grid_starts(61, 64, 0.5)
        ([0, 36], [0], [-1])
    """
    if length <= size:
        return [-((size - length) // 2)]
    return [*range(0, length - size, max(1, round(size * (1 - overlap)))), length - size]


def grid_patch_starts(space: Sequence[int], size: Sequence[int], overlap: float) -> list[list[int]]:
    """:func:`grid_starts` for each axis.

    Args:
        space: ``(*S)`` of the volume.
        size: ``(*S)`` of a grid patch.
        overlap: as of :func:`grid_starts`.

    Returns:
        Starts along each axis; the grid patches of a space are their product, the last axis
        counting fastest.
    """
    return [grid_starts(n, t, overlap) for n, t in zip(space, size, strict=True)]


def holds_change(
    mask: np.ndarray, blocks: np.ndarray, start: Sequence[int], size: Sequence[int]
) -> bool:
    """Whether a box holds some of a mask of change.

    Exact, though of the mask itself only blocks that the border of the box cuts are read, until one
    holds change.

    Args:
        mask: ``(1, *S)`` of :func:`pipeline.data.change.difference_mask`.
        blocks: its index (:func:`pipeline.data.change.blocks`).
        start: first voxel of the box, may be negative.
        size: ``(*S)`` of the box.

    Returns:
        True where a voxel in the box has at least ``LEVEL``.
    """
    low = [max(s, 0) for s in start]
    high = [min(s + t, n) for s, t, n in zip(start, size, mask.shape[1:], strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return False  # wholly outside: a stop before the first pixel would count from the far end
    if blocks[
        (0, *(slice(-(-a // REDUCED), b // REDUCED) for a, b in zip(low, high, strict=True)))
    ].any():
        return True
    first = [a // REDUCED for a in low]
    around = blocks[(0, *(slice(f, -(-b // REDUCED)) for f, b in zip(first, high, strict=True)))]
    for block in (np.argwhere(around) + first) * REDUCED:
        box = tuple(
            slice(max(a, k), min(b, k + REDUCED))
            for a, b, k in zip(low, high, block.tolist(), strict=True)
        )
        if (mask[(0, *box)] >= LEVEL).any():
            return True
    return False


class RandBalancedCropd(Randomizable, MapTransform):
    """Cut one patch out of memory-mapped volumes, balanced by the share of foreground.

    Up to ``patch.tries`` positions are drawn uniformly; the first whose share lies in
    ``patch.foreground`` is taken, else the one nearest to that range. Only the patch is ever read.

    Volumes smaller than the patch are padded, half on each side, with zeros in the image and
    ``ignore`` (0 without one) in labels, or with ``patch.border: mirror`` mirrored like the image.
    The image is normalised after cutting, so padding is 0. Maps are cut at the same position, as
    they are (halves become float32).

    Where the index of a mask of change is given, under ``BLOCKS``, that position is replaced with
    probability ``patch.changed``: a block that holds some of the mask is drawn uniformly, in it a
    pixel of at least ``LEVEL``, and a position of the patch among those that hold the pixel. The
    index itself is not passed on.

    With ``patch.oversample`` there are no tries: where the index of classes is given, under
    ``LOCATIONS``, a voxel is drawn (:func:`pipeline.data.locations.draw_voxel`) and the patch is
    centred on it, as nnU-Net does: it begins in the volume, but may reach beyond its end. Where no
    voxel is drawn any position inside has the same chance.

    With ``spatial`` a transform is drawn after the position, and the box that it needs is read
    instead. Images and maps that are no masks are interpolated linearly, with the same values
    outside as above; labels and masks take the label with the largest share.

    Adds ``"foreground_share"`` (nan where nothing is labelled or there are no labels) and
    ``"changed"``, 1 where the patch holds some of the mask, else 0 (nan without a mask).

    Args:
        targets: kind of each target by its name in a sample.
        patch: ``data.patch`` of the config.
        ignore: ignored label; None: there is none.
        maps: value outside the volume of each map, by its name in a sample.
        spatial: rotation and scaling; None: patches are cut as they are.
    """

    forced: bool = False
    """With ``patch.oversample``: whether the next patch is centred on foreground."""

    fixed_start: Sequence[int] | None = None
    """Where set, the patch starts there and nothing is drawn."""

    def __init__(
        self,
        targets: Mapping[str, str],
        patch: Patch,
        ignore: int | None,
        maps: Mapping[str, float] = MappingProxyType({}),
        spatial: RandSpatiald | None = None,
    ) -> None:
        MapTransform.__init__(self, ["image", *targets, *maps])
        self.spatial = spatial
        self.targets, self.patch, self.ignore, self.maps = dict(targets), patch, ignore, dict(maps)
        self.guide = next((name for name, kind in targets.items() if kind == "labels"), None)

    def randomize(self, data: Mapping[str, Any]) -> tuple[list[int], float]:
        """Draw the position of the patch.

        Args:
            data: a sample before cutting: volumes by name.

        Returns:
            First voxel along each axis (negative: padding), and the share of foreground there.
        """
        array = data[self.guide].array if self.guide else None
        if self.fixed_start is not None:
            return list(self.fixed_start), self._foreground_at(array, self.fixed_start)
        if LOCATIONS in data:
            start = self._start_by_class(data[LOCATIONS].array, data["image"].shape[1:])
            return start, self._foreground_at(array, start)
        start, share = self._balanced_start(array, data["image"].shape[1:])
        on_change = self._start_on_change(data[MASK], data[BLOCKS]) if BLOCKS in data else None
        return (
            (start, share)
            if on_change is None
            else (on_change, self._foreground_at(array, on_change))
        )

    def _balanced_start(
        self, array: np.ndarray | None, size: Sequence[int]
    ) -> tuple[list[int], float]:
        """The drawn position with the best share of foreground, and that share."""
        wanted = self.patch.foreground if array is not None else None
        best: tuple[float, list[int], float] | None = None
        for _ in range(self.patch.tries if wanted else 1):
            start = [
                int(self.R.randint(0, n - t + 1)) if n > t else -((t - n) // 2)
                for n, t in zip(size, self.patch.size, strict=True)
            ]
            share = self._foreground_at(array, start)
            miss = _distance_to_range(share, wanted) if wanted else 0.0
            if best is None or miss < best[0]:
                best = (miss, start, share)
            if miss == 0:
                break
        assert best is not None
        return best[1], best[2]

    def _start_by_class(self, index: np.ndarray, size: Sequence[int]) -> list[int]:
        """Start of a patch by nnU-Net's rule; uses up the same random numbers in all cases."""
        draws = self.R.random_sample(2 + len(size)).tolist()
        drawn = draw_voxel(index, self.forced, draws[:2])
        axes = zip(size, self.patch.size, strict=True)
        if drawn is None:
            return [_uniform_start(n, t, d) for (n, t), d in zip(axes, draws[2:], strict=True)]
        return [_centred_start(v, n, t) for (n, t), v in zip(axes, drawn[1], strict=True)]

    def _start_on_change(self, mask: Volume, blocks: Volume) -> list[int] | None:
        """Start of a patch that holds some of the mask; None to keep the balanced one.

        None where the draw is above ``patch.changed`` or nothing has changed. Uses up the same
        random numbers in all cases.
        """
        draws = self.R.random_sample(3 + len(self.patch.size))
        held = np.argwhere(blocks.array[0])
        if self.patch.changed is None or draws[0] >= self.patch.changed or not len(held):
            return None
        corner = held[int(draws[1] * len(held))] * REDUCED
        pixels = (
            np.argwhere(mask.array[(0, *(slice(a, a + REDUCED) for a in corner.tolist()))] >= LEVEL)
            + corner
        )
        pixel = pixels[int(draws[2] * len(pixels))].tolist()
        axes = zip(pixel, mask.shape[1:], self.patch.size, draws[3:].tolist(), strict=True)
        return [_start_around(*axis) for axis in axes]

    def _foreground_at(self, array: np.ndarray | None, start: Sequence[int]) -> float:
        """Share of foreground of the patch at ``start``; nan without labels."""
        if array is None:
            return float("nan")
        box = tuple(
            slice(max(s, 0), max(s + t, 0)) for s, t in zip(start, self.patch.size, strict=True)
        )
        return foreground_share(np.ascontiguousarray(array[(0, *box)]), self.ignore)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        out = dict(data)
        start, share = self.randomize(data)
        matrix = None if self.spatial is None else self.spatial.draw(self.R)
        scale = out.pop("scale")
        for index in (BLOCKS, LOCATIONS):
            out.pop(index, None)
        if matrix is not None:
            self._warp(out, data, Warp(matrix, start, self.patch.size))
            return out
        for name, kind in {"image": "image", **self.targets}.items():
            if kind == "image":
                out[name] = self._cut_image(data[name].array, start, scale)
            else:
                out[name] = self._cut(
                    data[name].array, start, 0 if self.ignore is None else self.ignore
                )
        for name, fill in self.maps.items():
            part = self._cut(data[name].array, start, fill)
            out[name] = part.astype(np.float32) if part.dtype == np.float16 else part
        out["foreground_share"] = share
        out["changed"] = self._holds_change(out)
        return out

    def _warp(self, out: dict[str, Any], data: Mapping[str, Any], warp: Warp) -> None:
        """Put the transformed patch of every array into ``out``."""
        assert self.spatial is not None
        label = 0 if self.ignore is None else self.ignore
        fills = {"image": 0.0, **self.maps}
        for name in (str(key) for key in self.keys):
            part, low = self._read_box(data[name].array, warp)
            if name == "image" or self.targets.get(name) == "image":
                out[name] = warp.linear(data["scale"].apply(part), low)
            elif self.spatial.modes[name] == "nearest":
                out[name] = warp.labels(part, low, int(fills.get(name, label)))
            else:
                out[name] = warp.linear(part, low, fills.get(name, label))
        guide = None if self.guide is None else out[self.guide]
        out["foreground_share"] = (
            float("nan") if guide is None else foreground_share(guide, self.ignore)
        )
        out["changed"] = self._holds_change(out)

    def _read_box(self, array: np.ndarray, warp: Warp) -> tuple[np.ndarray, list[int]]:
        """The voxels of an array that a transformed patch needs, and the first of them."""
        low, size = warp.box()
        if self.patch.border == "mirror":
            return crop_mirrored(array, low, size), low
        first = [max(a, 0) for a in low]
        stops = [max(a + n, f) for a, n, f in zip(low, size, first, strict=True)]
        box = (slice(f, s) for f, s in zip(first, stops, strict=True))
        return np.asarray(array[(slice(None), *box)]), first

    def _holds_change(self, sample: Mapping[str, Any]) -> float:
        """1 where a sample holds some of the mask of change, else 0; nan without a mask."""
        return float((sample[MASK] >= LEVEL).any()) if MASK in self.maps else float("nan")

    def _cut(self, array: np.ndarray, start: Sequence[int], fill: float) -> np.ndarray:
        """A patch of a label or a map."""
        if self.patch.border == "mirror":
            return crop_mirrored(array, start, self.patch.size)
        return crop(array, start, self.patch.size, fill)

    def _cut_image(self, array: np.ndarray, start: Sequence[int], scale: Any) -> np.ndarray:
        """A normalised patch of an image."""
        if self.patch.border == "mirror":
            return scale.apply(crop_mirrored(array, start, self.patch.size))
        return crop_scaled(array, start, self.patch.size, scale)


def _uniform_start(length: int, size: int, draw: float) -> int:
    """Start of a patch inside, along one axis, by ``draw`` in [0, 1).

    Centred where the patch is longer.
    """
    return int(draw * (length - size + 1)) if length > size else -((size - length) // 2)


def _centred_start(voxel: int, length: int, size: int) -> int:
    """Start, along one axis, of a patch centred on ``voxel``; it may reach beyond the end."""
    return max(0 if length >= size else -((size - length) // 2), voxel - size // 2)


def _start_around(pixel: int, length: int, size: int, draw: float) -> int:
    """Start, along one axis, of a patch that holds ``pixel`` and stays inside.

    ``draw`` in [0, 1) picks one of those that do.
    """
    if length <= size:
        return -((size - length) // 2)
    low, high = max(0, pixel - size + 1), min(pixel, length - size)
    return low + int(draw * (high - low + 1))


def crop_scaled(
    array: np.ndarray, start: Sequence[int], size: Sequence[int], scale: Any
) -> np.ndarray:
    """Box of an image, normalised.

    Args:
        array: ``(C, *S)``, may be memory-mapped; only the box is read.
        start: first voxel of the box, may be negative.
        size: ``(*S)`` of the box.
        scale: :class:`pipeline.data.normalise.IntensityScale`.

    Returns:
        ``(C, *size)``, float32, zero outside the volume.
    """
    space = array.shape[1:]
    low = [max(s, 0) for s in start]
    inside = [max(0, min(s + t, n) - a) for s, t, n, a in zip(start, size, space, low, strict=True)]
    part = scale.apply(
        array[(slice(None), *(slice(a, a + n) for a, n in zip(low, inside, strict=True)))]
    )
    return (
        part
        if tuple(inside) == tuple(size)
        else crop(part, [s - a for s, a in zip(start, low, strict=True)], size)
    )


def crop_mirrored(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Box of an array that goes on mirrored beyond its borders.

    The border voxel is included, to and fro as often as needed: NumPy's ``symmetric``, OpenCV's
    ``BORDER_REFLECT``. Only the part that is needed is read from a memory-mapped array.

    Args:
        array: ``(C, *S)``.
        start: first voxel of the box, may be negative.
        size: ``(*S)`` of the box.

    Returns:
        ``(C, *size)``, a copy.

    Example:
        >>> crop_mirrored(np.array([[1, 2, 3]]), [-2], [6]).tolist()
        [[2, 1, 1, 2, 3, 3]]
    """
    indices = [
        _mirrored_indices(s, t, n) for s, t, n in zip(start, size, array.shape[1:], strict=True)
    ]
    out = np.array(array[(slice(None), *(slice(p.min(), p.max() + 1) for p in indices))])
    for axis, (index, s, n) in enumerate(zip(indices, start, array.shape[1:], strict=True), 1):
        if s < 0 or s + len(index) > n:
            out = out.take(index - index.min(), axis)
    return out


def _mirrored_indices(start: int, size: int, length: int) -> np.ndarray:
    """Indices along an axis of ``length`` voxels of ``size`` voxels from ``start`` on, mirrored."""
    index = np.arange(start, start + size) % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)


def _distance_to_range(share: float, wanted: tuple[float, float]) -> float:
    """How far a share lies outside the wanted range; more than any other for nan."""
    low, high = wanted
    return 2.0 if np.isnan(share) else max(low - share, share - high, 0.0)
