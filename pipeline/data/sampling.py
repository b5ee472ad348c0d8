"""Where training patches are cut: positions whose share of foreground or of change is wanted, and a
seed for every sample of every epoch.
"""

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
from pipeline.geometry import crop


def seed_of(*words: int) -> int:
    """One 32-bit seed from (seed, fold, epoch, sample, ...): the same words give the same seed on
    every machine.

    >>> seed_of(42, 0, 1, 2) == seed_of(42, 0, 1, 2) != seed_of(42, 0, 1, 3)
    True
    """
    return int(np.random.SeedSequence([w + 1 for w in words]).generate_state(1)[0])


def foreground_share(label: np.ndarray, ignore: int | None) -> float:
    """Share of foreground among the labelled voxels; ``nan`` where nothing is labelled."""
    if ignore is None:
        return float(np.count_nonzero(label)) / label.size if label.size else float("nan")
    ignored = int(np.count_nonzero(label == ignore))
    labelled = label.size - ignored
    foreground = int(np.count_nonzero(label)) - (ignored if ignore != 0 else 0)
    return foreground / labelled if labelled else float("nan")


def grid_starts(length: int, size: int, overlap: float) -> list[int]:
    """First voxels of the slices along one axis: every ``size * (1 - overlap)`` voxels (rounded, at
    least 1), the last one at the border.

    An axis no longer than a slice has one, centred: a negative start means padding.

    >>> grid_starts(100, 64, 0.25), grid_starts(64, 64, 0.5), grid_starts(61, 64, 0.5)
    ([0, 36], [0], [-1])
    """
    if length <= size:
        return [-((size - length) // 2)]
    return [*range(0, length - size, max(1, round(size * (1 - overlap)))), length - size]


def grid_places(space: Sequence[int], size: Sequence[int], overlap: float) -> list[list[int]]:
    """:func:`grid_starts` for each axis; the slices of a space are their product, the last axis
    counting fastest.
    """
    return [grid_starts(n, t, overlap) for n, t in zip(space, size, strict=True)]


def holds_change(
    mask: np.ndarray, blocks: np.ndarray, start: Sequence[int], size: Sequence[int]
) -> bool:
    """Whether the box at ``start`` (may be negative) of ``size`` holds a place of a difference_mask
    of change ``(1, *S)`` given with its index.

    Exact, though of the mask itself only blocks that the border of the box cuts are read, until one
    settles it.
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
    """Cut one patch of ``patch.size`` out of memory-mapped volumes, balanced by the share of
    foreground.

    Up to ``patch.tries`` positions are drawn uniformly; the first whose share lies in
    ``patch.foreground`` is taken, else the one nearest to that range. Only the patch is ever read.
    Volumes smaller than the patch are padded, half on each side, with zeros in the image and
    ``ignore`` (0 without one) in labels, or with ``patch.border: mirror`` mirrored like the image.
    The image is normalised after cutting, so padding is 0. ``maps`` are cut at the same place, as
    they are (halves become float32) and with the value named for each outside the volume. Where the
    index of a mask of change is given, under ``BLOCKS``, that place is replaced with probability
    ``patch.changed``: a block that holds some of the mask is drawn uniformly, in it a pixel of at
    least ``LEVEL``, and a place of the patch among those that hold the pixel. The index itself is
    not passed on. Adds ``"foreground_share"`` (nan where nothing is labelled or there are no
    labels) and ``"changed"``, 1 where the patch holds some of the mask, else 0 (nan without a
    mask). Where ``place`` is set, the patch starts there and nothing is drawn.
    """

    place: Sequence[int] | None = None

    def __init__(
        self,
        targets: Mapping[str, str],
        patch: Patch,
        ignore: int | None,
        maps: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        MapTransform.__init__(self, ["image", *targets, *maps])
        self.targets, self.patch, self.ignore, self.maps = dict(targets), patch, ignore, dict(maps)
        self.guide = next((name for name, kind in targets.items() if kind == "labels"), None)

    def randomize(self, data: Mapping[str, Any]) -> tuple[list[int], float]:
        array = data[self.guide].array if self.guide else None
        if self.place is not None:
            return list(self.place), self._share(array, self.place)
        start, share = self._balanced(array, data["image"].shape[1:])
        aimed = self._aimed(data[MASK], data[BLOCKS]) if BLOCKS in data else None
        return (start, share) if aimed is None else (aimed, self._share(array, aimed))

    def _balanced(self, array: np.ndarray | None, size: Sequence[int]) -> tuple[list[int], float]:
        wanted = self.patch.foreground if array is not None else None
        best: tuple[float, list[int], float] | None = None
        for _ in range(self.patch.tries if wanted else 1):
            start = [
                int(self.R.randint(0, n - t + 1)) if n > t else -((t - n) // 2)
                for n, t in zip(size, self.patch.size, strict=True)
            ]
            share = self._share(array, start)
            miss = _distance(share, wanted) if wanted else 0.0
            if best is None or miss < best[0]:
                best = (miss, start, share)
            if miss == 0:
                break
        assert best is not None
        return best[1], best[2]

    def _aimed(self, mask: Volume, blocks: Volume) -> list[int] | None:
        """Start of a patch that holds some of the mask; None where chance or a clean case leaves
        the patch where it is.

        Uses up the same random numbers in all cases.
        """
        chances = self.R.random_sample(3 + len(self.patch.size))
        held = np.argwhere(blocks.array[0])
        if self.patch.changed is None or chances[0] >= self.patch.changed or not len(held):
            return None
        corner = held[int(chances[1] * len(held))] * REDUCED
        pixels = (
            np.argwhere(mask.array[(0, *(slice(a, a + REDUCED) for a in corner.tolist()))] >= LEVEL)
            + corner
        )
        pixel = pixels[int(chances[2] * len(pixels))].tolist()
        axes = zip(pixel, mask.shape[1:], self.patch.size, chances[3:].tolist(), strict=True)
        return [_start_around(*axis) for axis in axes]

    def _share(self, array: np.ndarray | None, start: Sequence[int]) -> float:
        if array is None:
            return float("nan")
        box = tuple(
            slice(max(s, 0), max(s + t, 0)) for s, t in zip(start, self.patch.size, strict=True)
        )
        return foreground_share(np.ascontiguousarray(array[(0, *box)]), self.ignore)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        out = dict(data)
        start, share = self.randomize(data)
        scale = out.pop("scale")
        out.pop(BLOCKS, None)
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
        out["changed"] = float((out[MASK] >= LEVEL).any()) if MASK in self.maps else float("nan")
        return out

    def _cut(self, array: np.ndarray, start: Sequence[int], fill: float) -> np.ndarray:
        if self.patch.border == "mirror":
            return crop_mirrored(array, start, self.patch.size)
        return crop(array, start, self.patch.size, fill)

    def _cut_image(self, array: np.ndarray, start: Sequence[int], scale: Any) -> np.ndarray:
        if self.patch.border == "mirror":
            return scale.apply(crop_mirrored(array, start, self.patch.size))
        return crop_scaled(array, start, self.patch.size, scale)


def _start_around(pixel: int, length: int, size: int, chance: float) -> int:
    """Start, along one axis, of a patch that holds ``pixel`` and stays inside: ``chance`` in [0, 1)
    picks one of those that do.
    """
    if length <= size:
        return -((size - length) // 2)
    low, high = max(0, pixel - size + 1), min(pixel, length - size)
    return low + int(chance * (high - low + 1))


def crop_scaled(
    array: np.ndarray, start: Sequence[int], size: Sequence[int], scale: Any
) -> np.ndarray:
    """Box of ``array`` ``(C, *S)``, normalised by ``scale``, float32, zero outside the volume."""
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
    """Box of ``array`` ``(C, *S)``; beyond a border the array goes on mirrored, border voxel
    included, to and fro as often as needed.

    NumPy's ``symmetric``, OpenCV's ``BORDER_REFLECT``. Only the part that is needed is read from a
    memory-mapped array.
    """
    places = [_reflected(s, t, n) for s, t, n in zip(start, size, array.shape[1:], strict=True)]
    out = np.array(array[(slice(None), *(slice(p.min(), p.max() + 1) for p in places))])
    for axis, (place, s, n) in enumerate(zip(places, start, array.shape[1:], strict=True), 1):
        if s < 0 or s + len(place) > n:
            out = out.take(place - place.min(), axis)
    return out


def _reflected(start: int, size: int, length: int) -> np.ndarray:
    """Where along an axis of ``length`` voxels the ``size`` voxels from ``start`` on are found if
    it goes on mirrored.
    """
    place = np.arange(start, start + size) % (2 * length)
    return np.minimum(place, 2 * length - 1 - place)


def _distance(share: float, wanted: tuple[float, float]) -> float:
    low, high = wanted
    return 2.0 if np.isnan(share) else max(low - share, share - high, 0.0)
