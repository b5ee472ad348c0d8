"""Maps that follow from a case's files alone: made once per case, kept beside the store, cut and
moved like labels.

Skeleton, medial surface and distance follow from a label, the mask of change from a pair of images.
A loss that reads one gets it as a further argument, already cropped. Which maps of labels a system
needs follows from its loss terms (:func:`pipeline.losses.reads`), whose options that shape a map
are part of its name and of the key under which it is kept; the mask of change is made wherever
``data.change`` is set.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import edt
import numpy as np
import skimage

from pipeline.config import Change, Config, ConfigError, Data
from pipeline.data import cache, change, properties
from pipeline.data.cache import CachedCase, Volume
from pipeline.data.properties import Progress
from pipeline.morphology import dilate
from pipeline.records import LossTerm, UserError

FORMAT = 1
"""Raised when a map changes its meaning; older ones on disk are then made again."""

RADIUS = 2.0
"""Voxels by which a skeleton or medial surface grows into a tube unless a term says otherwise."""

REACH = 5.0
"""Voxels at which a distance is cut off unless a term says otherwise."""


def skeleton(mask: np.ndarray, *, radius: float = RADIUS) -> np.ndarray:
    """Centre lines of ``mask`` ``(*S)``, grown by the ball of ``radius`` and kept inside it: uint8
    0/1, empty for an empty mask.

    Thinning is that of Zhang & Suen (CACM 1984) in 2D and of Lee et al. (CVGIP 1994) in 3D. Of a
    sheet in 3D it leaves *lines*, which say nothing of the rest of the sheet: there
    :func:`medial_surface` is the map to use.
    """
    return _tube(mask, skimage.morphology.skeletonize, radius)


def medial_surface(mask: np.ndarray, *, radius: float = RADIUS) -> np.ndarray:
    """Middle of the sheets of ``mask`` ``(Z, Y, X)``, grown by the ball of ``radius`` and kept
    inside it: uint8 0/1.

    The union of the 2D skeletons of all slices across all three axes: the slices along one axis
    alone miss a sheet that lies parallel to them, where a skeleton is a few diagonals. Of an image
    ``(Y, X)`` it is the skeleton.
    """
    return _tube(mask, _thin_slices, radius)


def distance(mask: np.ndarray, *, reach: float = REACH) -> np.ndarray:
    """Signed Euclidean distance of voxel centres to the surface of ``mask`` ``(*S)``, cut off at
    ``reach``: float16, negative inside.

    The surface runs between voxels, hence -0.5 and 0.5 at the voxels on either side of a flat one.
    Beyond the array lies no surface. An empty mask has ``reach`` everywhere, a full one ``-reach``.
    """
    outside, inside = (
        edt.edt(np.ascontiguousarray(part), black_border=False) for part in (~mask, mask)
    )
    return np.where(mask, 0.5 - inside, outside - 0.5).clip(-reach, reach).astype(np.float16)


DERIVED: dict[str, Callable[..., np.ndarray]] = {
    "skeleton": skeleton,
    "medial_surface": medial_surface,
    "distance": distance,
}

MASK = "mask"
"""Name of the mask of change in samples and batches."""

BLOCKS = "mask:blocks"
"""Name in ``CachedCase.maps`` of the small index that says where the difference_mask of change is
(:func:`pipeline.data.change.blocks`).
"""


def _tube(mask: np.ndarray, thin: Callable[[np.ndarray], np.ndarray], radius: float) -> np.ndarray:
    """``thin(mask)`` grown by ``radius`` inside ``mask``; only the box that holds foreground is
    worked on.
    """
    out = np.zeros(mask.shape, np.uint8)
    if mask.any():
        box = tuple(_span(mask, axis) for axis in range(mask.ndim))
        inner = np.ascontiguousarray(mask[box])
        out[box] = dilate(thin(inner), radius) & inner
    return out


def _span(mask: np.ndarray, axis: int) -> slice:
    """Where ``mask``, which is not empty, begins and ends along one axis."""
    places = np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))
    return slice(int(places[0]), int(places[-1]) + 1)


def _thin_slices(mask: np.ndarray) -> np.ndarray:
    """Union of the skeletons of all 2D slices of ``mask``."""
    if mask.ndim == 2:
        return skimage.morphology.skeletonize(mask)
    out = np.zeros_like(mask)
    for axis in range(mask.ndim):
        for into, plane in zip(np.moveaxis(out, axis, 0), np.moveaxis(mask, axis, 0), strict=True):
            if plane.any():
                into |= skimage.morphology.skeletonize(np.ascontiguousarray(plane))
    return out


# --- which maps -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """A map of one target: the entry of DERIVED and all its options."""

    target: str
    name: str
    options: Mapping[str, float]

    @property
    def key(self) -> str:
        """Its name in samples and batches: ``label:skeleton``; with other options than usual
        ``label:skeleton,radius=3``.
        """
        return ",".join(
            [f"{self.target}:{self.name}", *(f"{k}={v:g}" for k, v in self._unusual().items())]
        )

    @property
    def file(self) -> str:
        """Its part of a file name: ``label.skeleton-radius3``."""
        return "-".join(
            [f"{self.target}.{self.name}", *(f"{k}{v:g}" for k, v in self._unusual().items())]
        )

    @property
    def is_mask(self) -> bool:
        """Whether it holds 0 and 1 rather than distances."""
        return self.name != "distance"

    @property
    def fill(self) -> float:
        """Its value outside the volume: no foreground, hence as far away as the distance reaches."""
        return 0.0 if self.is_mask else self.options["reach"]

    def _unusual(self) -> dict[str, float]:
        usual = _defaults(self.name)
        return {k: v for k, v in self.options.items() if v != usual[k]}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMask:
    """The soft mask of what differs between a case's image and ``target``
    (:func:`pipeline.data.change.mask`).

    Its settings are those of ``data.change``. It is interpolated like an image, and outside the
    image nothing has changed.
    """

    target: str
    key: ClassVar[str] = MASK
    is_mask: ClassVar[bool] = False
    fill: ClassVar[float] = 0.0


def _defaults(name: str) -> dict[str, float]:
    return {
        n: p.default
        for n, p in inspect.signature(DERIVED[name]).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }


Wish = Map | ChangeMask
"""A map that a loss reads, or that ``data.change`` asks for."""


def of_term(name: str, term: LossTerm) -> Wish:
    """The map that a loss term reads: ``MASK`` or an entry of DERIVED, with those options of the
    term that are the map's, too.
    """
    if name == MASK:
        return ChangeMask(target=term.target)
    return Map(
        target=term.target,
        name=name,
        options={k: term.options.get(k, v) for k, v in _defaults(name).items()},
    )


def wanted(settings: Config, reads: Iterable[Wish] = ()) -> dict[str, Wish]:
    """All maps that a config needs, by their name in a sample: those of labels that its losses
    read, and the mask of ``data.change``.

    That mask is wanted whether a loss reads it or not, for metrics and the choice of patches do,
    too. Without ``data.change`` a loss of a mask reads a target of that name, and nothing is made.
    ``reads`` are the maps that the losses read (:func:`pipeline.losses.reads`). Raises ConfigError
    where no target is an image to compare with.
    """
    maps: dict[str, Wish] = {m.key: m for m in reads if isinstance(m, Map)}
    if settings.data.change is not None:
        images = [name for name, kind in settings.targets.items() if kind == "image"]
        if not images:
            raise ConfigError(
                "data.change compares pairs of images, but no target is one:"
                f" {dict(settings.targets)}. Add one of kind image."
            )
        maps[MASK] = ChangeMask(target=images[0])
    return maps


# --- make and keep --------------------------------------------------------------------------------


def derive(label: np.ndarray, wish: Map, data: Data) -> np.ndarray:
    """The map of a label ``(1, *S)``: ``(1, *S)`` for two classes, else ``(classes - 1, *S)``, a
    channel for each but background.

    Ignored voxels are taken as background: a sheet is cut where its label ends.
    """
    known = (
        label[0]
        if data.ignore_label is None
        else np.where(label[0] == data.ignore_label, 0, label[0])
    )
    masks = [known > 0] if data.classes == 2 else [known == k for k in range(1, data.classes)]
    return np.stack([DERIVED[wish.name](mask, **wish.options) for mask in masks])


def attach(
    cases: Sequence[CachedCase],
    settings: Config,
    folder: Path,
    reads: Iterable[Wish] = (),
    progress: Progress | None = None,
) -> list[CachedCase]:
    """The cases with every map that the config needs, kept below ``<folder>/maps``; what is there
    and still fits is used again.

    ``folder`` is that of the store. Where no map is wanted the cases come back as they are and
    nothing is written. With the mask of change comes its index, under ``BLOCKS``; a case without
    the target has neither. Raises UserError where the folder is read-only or the images of a pair
    cannot be compared.
    """
    wishes = wanted(settings, reads)
    if not wishes:
        return list(cases)

    def work(case: CachedCase) -> CachedCase:
        maps: dict[str, Volume] = {}
        for key, wish in wishes.items():
            if isinstance(wish, Map):
                maps[key] = _kept(case, wish, settings.data, folder / "maps")
            elif settings.data.change is not None and wish.target in case.targets:
                maps |= _kept_change(case, wish.target, settings.data.change, folder / "maps")
        return dataclasses.replace(case, maps=maps)

    with cache.writable(folder):
        return properties.parallel(work, cases, progress, None)


def _kept(case: CachedCase, wish: Map, data: Data, folder: Path) -> Volume:
    key: dict[str, Any] = {
        "format": FORMAT,
        "label": case.properties.target_contents[wish.target],
        "classes": data.classes,
        "ignore_label": data.ignore_label,
        "map": wish.name,
        "options": dict(wish.options),
    }
    name = f"{properties.file_name(case.case.id)}.{wish.file}"
    manifest = folder / f"{name}.json"
    volumes = cache.known_volumes(manifest, key)
    if volumes is None:
        made = derive(np.asarray(case.targets[wish.target].array), wish, data)
        volumes = {"map": cache.save(folder / f"{name}.npy", made)}
        cache.write_manifest(manifest, key, volumes)
    return volumes["map"]


def _kept_change(
    case: CachedCase, target: str, settings: Change, folder: Path
) -> dict[str, Volume]:
    """Mask of change, float16 ``(1, Y, X)``, and its index.

    Unusual settings are part of the file's name, for runs may share a store.
    """
    options = dataclasses.asdict(settings)
    key = {
        "format": FORMAT,
        "image": case.properties.content,
        "target": case.properties.target_contents[target],
        "map": "change",
        "options": options,
    }
    usual = dataclasses.asdict(Change())
    unusual = [f"{k}{v}" for k, v in options.items() if v != usual[k]]
    name = "-".join([f"{properties.file_name(case.case.id)}.{target}.change", *unusual])
    manifest = folder / f"{name}.json"
    volumes = cache.known_volumes(manifest, key)
    if volumes is None:
        soft = _changed(case, target, settings)
        volumes = {
            MASK: cache.save(folder / f"{name}.npy", soft),
            BLOCKS: cache.save(folder / f"{name}.blocks.npy", change.blocks(soft)),
        }
        cache.write_manifest(manifest, key, volumes)
    return volumes


def _changed(case: CachedCase, target: str, settings: Change) -> np.ndarray:
    try:
        mask = change.difference_mask(
            np.asarray(case.image.array), np.asarray(case.targets[target].array), settings
        )
    except UserError as error:
        raise UserError(
            f"{case.case.targets[target]} and {case.case.image[0].name}: {error}"
        ) from None
    return mask.astype(np.float16)
