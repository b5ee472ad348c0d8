"""Where training patches are cut: positions whose share of foreground is wanted, and a seed for every sample of every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from monai.transforms import MapTransform, Randomizable

from pipeline.config import Patch
from pipeline.data.store import Volume
from pipeline.geometry import crop


def seed_of(*words: int) -> int:
    """One 32-bit seed from (seed, fold, epoch, sample, ...): the same words give the same seed on every machine.

    >>> seed_of(42, 0, 1, 2) == seed_of(42, 0, 1, 2) != seed_of(42, 0, 1, 3)
    True
    """
    return int(np.random.SeedSequence([w + 1 for w in words]).generate_state(1)[0])


def foreground_share(label: np.ndarray, ignore: int | None) -> float:
    """Share of foreground among the labelled voxels; ``nan`` where nothing is labelled."""
    if ignore is None:
        return float(np.count_nonzero(label)) / label.size
    ignored = int(np.count_nonzero(label == ignore))
    labelled = label.size - ignored
    foreground = int(np.count_nonzero(label)) - (ignored if ignore != 0 else 0)
    return foreground / labelled if labelled else float("nan")


def grid_starts(length: int, size: int, overlap: float) -> list[int]:
    """First voxels of the slices along one axis: every ``size * (1 - overlap)`` voxels (rounded, at least 1), the last one at the border.

    An axis no longer than a slice has one, centred: a negative start means padding.

    >>> grid_starts(100, 64, 0.25), grid_starts(64, 64, 0.5), grid_starts(61, 64, 0.5)
    ([0, 36], [0], [-1])
    """
    if length <= size:
        return [-((size - length) // 2)]
    return [*range(0, length - size, max(1, round(size * (1 - overlap)))), length - size]


def grid_places(space: Sequence[int], size: Sequence[int], overlap: float) -> list[list[int]]:
    """:func:`grid_starts` for each axis; the slices of a space are their product, the last axis counting fastest."""
    return [grid_starts(n, t, overlap) for n, t in zip(space, size, strict=True)]


class RandBalancedCropd(Randomizable, MapTransform):
    """Cut one patch of ``patch.size`` out of memory-mapped volumes, balanced by the share of foreground.

    Up to ``patch.tries`` positions are drawn uniformly; the first whose share lies in ``patch.foreground`` is taken, else the
    one nearest to that range. Only the patch is ever read. Volumes smaller than the patch are padded, half on each side, with
    zeros in the image and ``ignore`` (0 without one) in labels. The image is normalised after cutting, so padding is 0.
    Adds ``"foreground_share"`` (nan where nothing is labelled or there are no labels). ``maps`` are cut at the same place, as
    they are (halves become float32) and with the value named for each outside the volume. Where ``place`` is set, the patch
    starts there and nothing is drawn.
    """

    place: Sequence[int] | None = None

    def __init__(
        self, targets: Mapping[str, str], patch: Patch, ignore: int | None, maps: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        MapTransform.__init__(self, ["image", *targets, *maps])
        self.targets, self.patch, self.ignore, self.maps = dict(targets), patch, ignore, dict(maps)
        self.guide = next((name for name, kind in targets.items() if kind == "labels"), None)

    def randomize(self, guide: Volume | None, size: Sequence[int]) -> tuple[list[int], float]:
        array = guide.array if guide is not None else None
        if self.place is not None:
            return list(self.place), self._share(array, self.place)
        wanted = self.patch.foreground if array is not None else None
        best: tuple[float, list[int], float] | None = None
        for _ in range(self.patch.tries if wanted else 1):
            start = [int(self.R.randint(0, n - t + 1)) if n > t else -((t - n) // 2) for n, t in zip(size, self.patch.size, strict=True)]
            share = self._share(array, start)
            miss = _distance(share, wanted) if wanted else 0.0
            if best is None or miss < best[0]:
                best = (miss, start, share)
            if miss == 0:
                break
        assert best is not None
        return best[1], best[2]

    def _share(self, array: np.ndarray | None, start: Sequence[int]) -> float:
        if array is None:
            return float("nan")
        box = tuple(slice(max(s, 0), s + t) for s, t in zip(start, self.patch.size, strict=True))
        return foreground_share(np.ascontiguousarray(array[(0, *box)]), self.ignore)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        out = dict(data)
        image: Volume = data["image"]
        start, share = self.randomize(data[self.guide] if self.guide else None, image.shape[1:])
        out["foreground_share"] = share
        scale = out.pop("scale")
        out["image"] = crop_scaled(image.array, start, self.patch.size, scale)
        for name, kind in self.targets.items():
            if kind == "image":
                out[name] = crop_scaled(data[name].array, start, self.patch.size, scale)
            else:
                out[name] = crop(data[name].array, start, self.patch.size, fill=0 if self.ignore is None else self.ignore)
        for name, fill in self.maps.items():
            part = crop(data[name].array, start, self.patch.size, fill)
            out[name] = part.astype(np.float32) if part.dtype == np.float16 else part
        return out


def crop_scaled(array: np.ndarray, start: Sequence[int], size: Sequence[int], scale: Any) -> np.ndarray:
    """Box of ``array`` ``(C, *S)``, normalised by ``scale``, float32, zero outside the volume."""
    space = array.shape[1:]
    low = [max(s, 0) for s in start]
    inside = [max(0, min(s + t, n) - a) for s, t, n, a in zip(start, size, space, low, strict=True)]
    part = scale.apply(array[(slice(None), *(slice(a, a + n) for a, n in zip(low, inside, strict=True)))])
    return part if tuple(inside) == tuple(size) else crop(part, [s - a for s, a in zip(start, low, strict=True)], size)


def _distance(share: float, wanted: tuple[float, float]) -> float:
    low, high = wanted
    return 2.0 if np.isnan(share) else max(low - share, share - high, 0.0)
