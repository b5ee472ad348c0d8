"""Maps that follow from a case's files alone: made once per case, cut and moved like labels.

Skeleton, medial surface and distance follow from a label, the mask of change from a pair of images.
They are kept beside the cached arrays. A loss that reads one gets it as a further argument, already
cropped. Which maps of labels a system needs follows from its loss terms
(:func:`pipeline.losses.reads`), whose options that shape a map are part of its name and of the key
under which it is kept; the mask of change is made wherever ``data.change`` is set.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import edt
import numpy as np
import skimage

from pipeline.config import Change, Config, ConfigError, Data
from pipeline.data import cache, change, properties
from pipeline.data.cache import CachedCase, Volume
from pipeline.data.locations import LEAST, LOCATIONS, SEED, SHARE, class_locations
from pipeline.data.properties import Progress
from pipeline.morphology import dilate
from pipeline.records import LossTerm, UserError

FORMAT = 1
"""Increased when a map changes its meaning; older ones on disk are then made again."""

RADIUS = 2.0
"""Voxels by which a skeleton or medial surface grows into a tube unless a loss term sets another
radius.
"""

REACH = 5.0
"""Voxels at which a distance is cut off unless a loss term sets another reach."""


def skeleton(mask: np.ndarray, *, radius: float = RADIUS) -> np.ndarray:
    """Centre lines of a mask, thickened inside it.

    Of a sheet in 3D thinning leaves *lines*, which say nothing of the rest of the sheet: there
    :func:`medial_surface` is the map to use.

    Args:
        mask: ``(*S)``, bool, 2D or 3D.
        radius: voxels by which the centre lines grow, Euclidean.

    Returns:
        ``(*S)``, uint8 0/1, inside the mask; empty for an empty mask.

    Source:
        Thinning of Zhang & Suen (CACM 1984) in 2D and of Lee et al. (CVGIP 1994) in 3D.

    Example:
        >>> mask = np.zeros((5, 9), bool)
        >>> mask[1:4, 1:8] = True
        >>> skeleton(mask, radius=0)[2].tolist()
        [0, 1, 1, 1, 1, 1, 0, 0, 0]
    """
    return _grown(mask, skimage.morphology.skeletonize, radius)


def medial_surface(mask: np.ndarray, *, radius: float = RADIUS) -> np.ndarray:
    """Middle of the sheets of a mask, thickened inside it.

    The union of the 2D skeletons of all slices across all three axes: the slices along one axis
    alone miss a sheet that lies parallel to them, where a skeleton is a few diagonals. Of an image
    ``(Y, X)`` it is the skeleton.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, bool.
        radius: voxels by which the surface grows, Euclidean.

    Returns:
        Shape of ``mask``, uint8 0/1, inside the mask; empty for an empty mask.
    """
    return _grown(mask, _thin_slices, radius)


def distance(mask: np.ndarray, *, reach: float = REACH) -> np.ndarray:
    """Signed Euclidean distance of voxel centres to the surface of a mask.

    The surface runs between voxels, hence -0.5 and 0.5 at the voxels on either side of a flat one.
    Beyond the array lies no surface.

    Args:
        mask: ``(*S)``, bool.
        reach: voxels at which the distance is cut off.

    Returns:
        ``(*S)``, float16, negative inside; ``reach`` everywhere for an empty mask, ``-reach`` for a
        full one.

    Example:
        >>> distance(np.array([[False, False, True, True]]), reach=1.0).tolist()
        [[1.0, 0.5, -0.5, -1.0]]
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
"""Maps of labels by name: ``DERIVED[name](mask, **options)``; keyword arguments are the options."""

MASK = "mask"
"""Name of the mask of change in samples and batches."""

BLOCKS = "mask:blocks"
"""Name in ``CachedCase.maps`` of the index that says where the mask of change is
(:func:`pipeline.data.change.blocks`).
"""


def _grown(mask: np.ndarray, thin: Callable[[np.ndarray], np.ndarray], radius: float) -> np.ndarray:
    """``thin(mask)`` grown by ``radius`` inside ``mask``.

    Only the box that holds foreground is computed.
    """
    out = np.zeros(mask.shape, np.uint8)
    if mask.any():
        box = tuple(_span(mask, axis) for axis in range(mask.ndim))
        inner = np.ascontiguousarray(mask[box])
        out[box] = dilate(thin(inner), radius) & inner
    return out


def _span(mask: np.ndarray, axis: int) -> slice:
    """Where ``mask``, which is not empty, begins and ends along one axis."""
    occupied = np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))
    return slice(int(occupied[0]), int(occupied[-1]) + 1)


def _thin_slices(mask: np.ndarray) -> np.ndarray:
    """Union of the skeletons of all 2D slices of ``mask``."""
    if mask.ndim == 2:
        return skimage.morphology.skeletonize(mask)
    out = np.zeros_like(mask)
    for axis in range(mask.ndim):
        for thinned, plane in zip(
            np.moveaxis(out, axis, 0), np.moveaxis(mask, axis, 0), strict=True
        ):
            if plane.any():
                thinned |= skimage.morphology.skeletonize(np.ascontiguousarray(plane))
    return out


# --- which maps -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """A map of one target: an entry of DERIVED and all its options."""

    target: str
    """Name of the target."""
    name: str
    """Key in DERIVED."""
    options: Mapping[str, float]
    """All keyword arguments of that function."""

    @property
    def key(self) -> str:
        """Name in samples and batches.

        ``label:skeleton``; with other options than the default ``label:skeleton,radius=3``.
        """
        return ",".join(
            [
                f"{self.target}:{self.name}",
                *(f"{k}={v:g}" for k, v in self._non_default_options().items()),
            ]
        )

    @property
    def file(self) -> str:
        """Part of a file name: ``label.skeleton-radius3``."""
        return "-".join(
            [
                f"{self.target}.{self.name}",
                *(f"{k}{v:g}" for k, v in self._non_default_options().items()),
            ]
        )

    @property
    def is_mask(self) -> bool:
        """Whether it holds 0 and 1 rather than distances."""
        return self.name != "distance"

    @property
    def fill(self) -> float:
        """Value outside the volume: no foreground, hence as far away as the distance reaches."""
        return 0.0 if self.is_mask else self.options["reach"]

    def _non_default_options(self) -> dict[str, float]:
        """Options that differ from the defaults."""
        defaults = _defaults(self.name)
        return {k: v for k, v in self.options.items() if v != defaults[k]}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMask:
    """Soft mask of what differs between a case's image and a target.

    Made by :func:`pipeline.data.change.difference_mask` with the settings of ``data.change``. It is
    interpolated like an image, and outside the image nothing has changed.
    """

    target: str
    """Name of the target that is compared with the image."""
    key: ClassVar[str] = MASK
    """Name in samples and batches."""
    is_mask: ClassVar[bool] = False
    """False: it is interpolated."""
    fill: ClassVar[float] = 0.0
    """Value outside the image."""


def _defaults(name: str) -> dict[str, float]:
    """Options of an entry of DERIVED with their defaults."""
    return {
        n: p.default
        for n, p in inspect.signature(DERIVED[name]).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }


MapRequest = Map | ChangeMask
"""A map that a loss reads, or that ``data.change`` asks for."""


def of_term(name: str, term: LossTerm) -> MapRequest:
    """The map that a loss term reads.

    Args:
        name: ``MASK`` or a key of DERIVED.
        term: the loss term; those of its options that are the map's, too, are taken over.

    Returns:
        The map, with defaults for other options.
    """
    if name == MASK:
        return ChangeMask(target=term.target)
    return Map(
        target=term.target,
        name=name,
        options={k: term.options.get(k, v) for k, v in _defaults(name).items()},
    )


def wanted(settings: Config, reads: Iterable[MapRequest] = ()) -> dict[str, MapRequest]:
    """All maps that a config needs: those of labels that its losses read, and the mask of change.

    That mask is wanted wherever ``data.change`` is set, whether a loss reads it or not: metrics and
    the choice of patches do, too. Without ``data.change`` a loss of a mask reads a target of that
    name, and nothing is made.

    Args:
        settings: config of the run.
        reads: maps that the losses read (:func:`pipeline.losses.reads`).

    Returns:
        Maps by their name in a sample.

    Raises:
        ConfigError: where ``data.change`` is set and no target is an image to compare with.
    """
    maps: dict[str, MapRequest] = {m.key: m for m in reads if isinstance(m, Map)}
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


def derive(label: np.ndarray, request: Map, data: Data) -> np.ndarray:
    """Compute a map of a label.

    Ignored voxels are taken as background: a sheet is cut where its label ends.

    Args:
        label: ``(1, *S)``, class numbers.
        request: map and options.
        data: section ``data`` of the config, for classes and ignored label.

    Returns:
        ``(1, *S)`` for two classes, else ``(classes - 1, *S)``: a channel for each but background;
        with regions ``(R, *S)``, a channel for each of them.
    """
    numbers = (
        label[0]
        if data.ignore_label is None
        else np.where(label[0] == data.ignore_label, 0, label[0])
    )
    make = functools.partial(DERIVED[request.name], **request.options)
    return np.stack([make(mask) for mask in _masks(numbers, data)])


def _masks(numbers: np.ndarray, data: Data) -> Iterator[np.ndarray]:
    """The mask of each region or class."""
    if data.unions is not None:
        yield from (np.isin(numbers, values) for values in data.unions)
    elif data.classes == 2:
        yield numbers > 0
    else:
        yield from (numbers == k for k in range(1, data.classes))


def attach(
    cases: Sequence[CachedCase],
    settings: Config,
    folder: Path,
    reads: Iterable[MapRequest] = (),
    progress: Progress | None = None,
) -> list[CachedCase]:
    """Add to cases every map that the config needs, kept below ``<folder>/maps``.

    What is there and still fits is used again. With the mask of change comes its index, under
    ``BLOCKS``; a case without the target has neither. With ``data.patch.oversample`` comes the
    index of classes of the first target of labels, under ``LOCATIONS``.

    Args:
        cases: cached cases.
        settings: config of the run.
        folder: folder of the cache.
        reads: maps that the losses read.
        progress: called after each case.

    Returns:
        The cases with their maps, in order; where no map is wanted the same cases, and nothing is
        written.

    Raises:
        ConfigError: where ``data.change`` is set and no target is an image.
        UserError: where the folder is read-only or the images of a pair cannot be compared.
    """
    requests = wanted(settings, reads)
    guide = located(settings)
    if not requests and guide is None:
        return list(cases)

    maps_folder = cache.arrays_folder(folder, settings, "maps")

    def work(case: CachedCase) -> CachedCase:
        maps: dict[str, Volume] = {}
        for key, request in requests.items():
            if isinstance(request, Map):
                maps[key] = _cached_map(case, request, settings.data, maps_folder)
            elif settings.data.change is not None and request.target in case.targets:
                maps |= _cached_change_mask(case, request.target, settings.data.change, maps_folder)
        if guide is not None:
            maps[LOCATIONS] = _cached_locations(case, guide, settings.data, maps_folder)
        return dataclasses.replace(case, maps=maps)

    with cache.writable(folder):
        return properties.parallel(work, cases, progress, None)


def located(settings: Config) -> str | None:
    """The target whose classes patches are drawn from.

    Args:
        settings: config of the run.

    Returns:
        Name of the first target of labels; None without ``data.patch.oversample``.
    """
    if settings.data.patch.oversample is None:
        return None
    return next((name for name, kind in settings.targets.items() if kind == "labels"), None)


def _cached_locations(case: CachedCase, target: str, data: Data, folder: Path) -> Volume:
    """Index of the classes of a label, read where it still fits, else made."""
    key: dict[str, Any] = {
        "format": FORMAT,
        "label": case.properties.target_contents[target],
        "classes": data.classes,
        "ignore_label": data.ignore_label,
        "map": "locations",
        "options": {"seed": SEED, "least": LEAST, "share": SHARE},
        **({} if data.unions is None else {"regions": data.unions}),
        **_space_of(case),
    }
    name = f"{properties.file_name(case.case.id)}.{target}.locations"
    manifest = folder / f"{name}.json"
    volumes = cache.known_volumes(manifest, key)
    if volumes is None:
        array = class_locations(case.targets[target].array, data)
        volumes = {LOCATIONS: cache.save(folder / f"{name}.npy", array)}
        cache.write_manifest(manifest, key, volumes)
    return volumes[LOCATIONS]


def _cached_map(case: CachedCase, request: Map, data: Data, folder: Path) -> Volume:
    """A map of a label, read where it still fits, else made."""
    key: dict[str, Any] = {
        "format": FORMAT,
        "label": case.properties.target_contents[request.target],
        "classes": data.classes,
        "ignore_label": data.ignore_label,
        "map": request.name,
        "options": dict(request.options),
        **({} if data.unions is None else {"regions": data.unions}),
        **_space_of(case),
    }
    name = f"{properties.file_name(case.case.id)}.{request.file}"
    manifest = folder / f"{name}.json"
    volumes = cache.known_volumes(manifest, key)
    if volumes is None:
        array = derive(np.asarray(case.targets[request.target].array), request, data)
        volumes = {"map": cache.save(folder / f"{name}.npy", array)}
        cache.write_manifest(manifest, key, volumes)
    return volumes["map"]


def _cached_change_mask(
    case: CachedCase, target: str, settings: Change, folder: Path
) -> dict[str, Volume]:
    """Mask of change, float16 ``(1, Y, X)``, and its index.

    Settings other than the defaults are part of the file's name, for runs may share a cache.
    """
    options = dataclasses.asdict(settings)
    key = {
        "format": FORMAT,
        "image": case.properties.content,
        "target": case.properties.target_contents[target],
        "map": "change",
        "options": options,
        **_space_of(case),
    }
    defaults = dataclasses.asdict(Change())
    changed = [f"{k}{v}" for k, v in options.items() if v != defaults[k]]
    name = "-".join([f"{properties.file_name(case.case.id)}.{target}.change", *changed])
    manifest = folder / f"{name}.json"
    volumes = cache.known_volumes(manifest, key)
    if volumes is None:
        mask = _change_mask(case, target, settings)
        volumes = {
            MASK: cache.save(folder / f"{name}.npy", mask),
            BLOCKS: cache.save(folder / f"{name}.blocks.npy", change.blocks(mask)),
        }
        cache.write_manifest(manifest, key, volumes)
    return volumes


def _space_of(case: CachedCase) -> dict[str, Any]:
    """What a key says of the space of a case's arrays."""
    return {} if case.properties.space is None else {"space": case.properties.space}


def _change_mask(case: CachedCase, target: str, settings: Change) -> np.ndarray:
    """Mask of change of one case; errors name its two files."""
    try:
        mask = change.difference_mask(
            np.asarray(case.image.array), np.asarray(case.targets[target].array), settings
        )
    except UserError as error:
        raise UserError(
            f"{case.case.targets[target]} and {case.case.image[0].name}: {error}"
        ) from None
    return mask.astype(np.float16)
