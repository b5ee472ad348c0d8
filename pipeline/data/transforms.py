"""From a cached case to a training sample: open, crop, augment."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.transforms import (
    Compose,
    Transform,
)

from pipeline.config import Config
from pipeline.data import derived
from pipeline.data.augment.table import augmentations
from pipeline.data.cache import CachedCase
from pipeline.data.derived import MapRequest
from pipeline.data.locations import LOCATIONS
from pipeline.data.sampling import RandBalancedCropd
from pipeline.data.spatial import RandSpatiald


@contextlib.contextmanager
def plain_tensors() -> Iterator[None]:
    """Let MONAI's transforms give plain tensors inside the context.

    They cost a seventh of a MetaTensor in every small operation, and nothing here reads metadata.
    The switch is the whole process's, so it is put back for a user's own MONAI code.

    Yields:
        Nothing.
    """
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


class OpenCachedCase(Transform):
    """Deterministic head of the chain, the part that CacheDataset keeps.

    It gives handles of the memory-mapped volumes and the scale of the image.

    Args:
        targets: names of the targets, for a case may have further roles that only scores read.
        maps: names of the maps to be cut, and of the index by which patches are chosen.
    """

    def __init__(self, targets: Iterable[str], maps: Iterable[str] = ()) -> None:
        self.targets, self.maps = tuple(targets), tuple(maps)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        cached: CachedCase = data["stored"]
        maps = {name: cached.maps[name] for name in self.maps}
        targets = {name: cached.targets[name] for name in self.targets}
        return {
            "image": cached.image,
            **targets,
            **maps,
            "scale": cached.scale,
            "id": cached.case.id,
        }


def training_chain(config: Config, reads: Collection[MapRequest] = ()) -> Compose:
    """Transforms of training: open, balanced crop (with ``spatial``), augmentation.

    Args:
        config: config of the run.
        reads: maps that the losses read.

    Returns:
        The chain, from ``{"stored": CachedCase}`` to a sample.

    Raises:
        ConfigError: as of :func:`augmentations`.
    """
    changes = augmentations(config, reads)
    spatial = next((t for t in changes[:1] if isinstance(t, RandSpatiald)), None)
    rest = changes if spatial is None else changes[1:]
    return Compose([opener(config, reads), cropper(config, reads, spatial), *rest])


def validation_chain(config: Config, reads: Collection[MapRequest] = ()) -> Compose:
    """Transforms of validation: the same crop without augmentation.

    With fixed seeds it gives the same patches in every epoch.

    Args:
        config: config of the run.
        reads: maps that the losses read.

    Returns:
        The chain, from ``{"stored": CachedCase}`` to a sample.
    """
    return Compose([opener(config, reads), cropper(config, reads)])


def opener(config: Config, reads: Collection[MapRequest] = ()) -> OpenCachedCase:
    """First transform of a chain.

    Args:
        config: config of the run.
        reads: maps that the losses read.

    Returns:
        A transform that opens the targets and maps of this config.
    """
    index = () if config.data.patch.changed is None else (derived.BLOCKS,)
    classes = () if derived.located(config) is None else (LOCATIONS,)
    return OpenCachedCase(config.targets, (*derived.wanted(config, reads), *index, *classes))


def cropper(
    config: Config, reads: Collection[MapRequest] = (), spatial: RandSpatiald | None = None
) -> RandBalancedCropd:
    """Crop of a chain.

    Args:
        config: config of the run.
        reads: maps that the losses read.
        spatial: rotation and scaling; None: patches are cut as they are.

    Returns:
        A transform that cuts image, targets and maps of this config.
    """
    targets: Mapping[str, Any] = config.targets
    maps = {name: m.fill for name, m in derived.wanted(config, reads).items()}
    return RandBalancedCropd(targets, config.data.patch, config.data.ignore_label, maps, spatial)
