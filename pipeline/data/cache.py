"""Cache of all cases as memory-mapped arrays, shared by all folds and loader processes.

Arrays keep the number type of their files, so that any patch is read without decoding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import config, documents, files
from pipeline.config.numbers import entries
from pipeline.data import normalise, spaces
from pipeline.data.model_space import ModelSpace
from pipeline.data.prepare import prepared
from pipeline.data.properties import (
    READ_ONLY,
    CaseProperties,
    Progress,
    binarise_rule,
    content_hash,
    file_name,
    file_stamp,
    files_by_role,
    jsonable,
    parallel,
    unless_read_only,
)
from pipeline.data.reading import load_image
from pipeline.data.targets import MASKED, label_dtype, load_target, read_labels, target_rules
from pipeline.records import Case, UserError

FORMAT = 2
"""Increased when the arrays change their meaning; older ones on disk are then made again."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Volume:
    """Handle of an ``.npy`` array ``(C, *S)``: a path that is opened where it is used.

    Copies and pickles carry the path, never voxels.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def array(self) -> np.ndarray:
        """The array, memory-mapped and read-only."""
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def __deepcopy__(self, memo: dict) -> Volume:
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedCase:
    """A case whose arrays lie in the cache."""

    case: Case
    image: Volume
    """``(C, *S)`` as its file has it; float64 as float32. Not normalised, but float32 with its mask
    (:func:`pipeline.data.prepare.prepared`) where the normalisation needs that.
    """
    targets: Mapping[str, Volume]
    """Targets by role: labels and masks ``(1, *S)`` in the smallest integer type, images
    ``(C, *S)``.
    """
    scale: normalise.IntensityScale
    """Normalisation of the image, applied after a patch is cut."""
    properties: CaseProperties
    space: ModelSpace = field(default_factory=ModelSpace)
    """The way from the case's files to these arrays."""
    maps: Mapping[str, Volume] = field(default_factory=dict)
    """Maps made from labels or from a pair (:mod:`pipeline.data.derived`), by their name in a
    sample.
    """


def cache_folder(data: config.Data, run: Path) -> Path:
    """Folder of the cache of a run.

    Args:
        data: section ``data`` of the config.
        run: folder of the run.

    Returns:
        ``data.store`` where that is set, else ``<root>/store`` where data_prep made it, else
        ``<run>/store``.
    """
    if data.store is not None:
        return Path(data.store)
    beside = Path(data.root) / "store"
    return beside if (beside / "arrays").is_dir() else run / "store"


def build(
    cases: Sequence[Case],
    properties: Sequence[CaseProperties],
    settings: config.Config,
    folder: Path,
    progress: Progress | None = None,
    workers: int | None = None,
) -> list[CachedCase]:
    """Write the arrays of every case below ``<folder>/arrays``.

    Arrays that are there already and still fit their files are not decoded again.

    Args:
        cases: cases of the data set.
        properties: those of ``examine(cases, ...)``, without problems.
        settings: config of the run.
        folder: folder of the cache (:func:`cache_folder`).
        progress: called after each case.
        workers: threads; None: one per core, at most 16.

    Returns:
        The cached cases, in the order of ``cases``.

    Raises:
        UserError: where a case has problems, a file changed since it was examined, or the folder is
            read-only.
        ConfigError: where the normalisation lacks numbers (:mod:`pipeline.data.resolve`).
        DiskError: where the disk certainly cannot hold the arrays.
    """
    normalise.require_numbers(settings.data.normalise)
    pairs = list(zip(cases, properties, strict=True))
    with writable(folder):
        text = require_room(cases, properties, settings, folder)
        if text is not None:
            logger.warning(text)
        try:
            return parallel(
                lambda pair: _cache_case(*pair, settings, arrays_folder(folder, settings)),
                pairs,
                progress,
                workers,
            )
        finally:
            files.forget()


def arrays_folder(folder: Path, settings: config.Config, kind: str = "arrays") -> Path:
    """Folder of the arrays of one model space; runs in several may share a cache.

    Args:
        folder: folder of the cache.
        settings: config of the run.
        kind: ``arrays`` or ``maps``.

    Returns:
        ``<folder>/<kind>``; of a config that asks for a model space a folder in it.
    """
    if not settings.data.has_space:
        return folder / kind
    text = json.dumps(_space_key(settings), sort_keys=True, default=list)
    return folder / kind / f"space_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _space_key(settings: config.Config) -> dict[str, Any]:
    """Settings that change the values of cached arrays."""
    found = spaces.settings_of(settings)
    if settings.data.spacing is not None:  # values are clipped before they are resampled
        found["normalise"] = [[e.name, dict(e.options)] for e in entries(settings.data.normalise)]
    return found


def require_room(
    cases: Sequence[Case],
    properties: Sequence[CaseProperties],
    settings: config.Config,
    folder: Path,
) -> str | None:
    """Check that the disk of a cache has room for the arrays that are not there yet.

    Args:
        cases: cases of the data set.
        properties: those of ``examine(cases, ...)``.
        settings: config of the run.
        folder: folder of the cache.

    Returns:
        A warning where fewer bytes are free than the arrays take, else None.

    Raises:
        DiskError: where the arrays certainly cannot fit.
    """
    need = 0
    for case, props in zip(cases, properties, strict=True):
        for role, shape in props.shapes.items():
            size = _array_bytes(role, shape, props, settings)
            path = arrays_folder(folder, settings) / f"{file_name(case.id)}.{role}.npy"
            need += size if _file_size(path) < size else 0
    return files.require_room(
        folder, need, "Free space there, or set data.store to a folder on another disk."
    )


def _array_bytes(
    role: str, shape: Sequence[int], props: CaseProperties, settings: config.Config
) -> int:
    """Bytes of one array of the cache."""
    kind, space = settings.roles.get(role, "image"), props.model_space
    voxels = math.prod(space.size(shape[1:]))
    if role != "image" and kind in MASKED:
        return voxels * label_dtype(target_rules(settings.data, kind)).itemsize
    dtype = np.dtype(props.dtypes[role])
    prepares = role == "image" and normalise.needs_preparing(settings.data.normalise)
    single = prepares or dtype == np.float64 or space.resampling is not None
    return shape[0] * voxels * (4 if single else dtype.itemsize)


def _file_size(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn the error of a cache that may not be written into a UserError that says so.

    Args:
        folder: folder of the cache, for the message.

    Yields:
        Nothing; the cache is written inside the context.

    Raises:
        UserError: for a read-only file system or missing permission; other errors pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno in READ_ONLY:
            raise UserError(
                f"{folder}: the store may not be written here ({error.strerror}). Set data.store to"
                " another folder."
            ) from None
        raise


def _cache_case(
    case: Case, props: CaseProperties, settings: config.Config, folder: Path
) -> CachedCase:
    """The arrays of one case: those on disk where they still fit, else new ones."""
    if props.problems or props.scale is None:
        raise UserError(
            f"{case.image[0]}: cannot be stored:"
            f" {props.problems[0][1] if props.problems else 'it was not read'}. Mend the file"
            " first."
        )
    key = _cache_key(case, props, settings)
    manifest = folder / f"{file_name(case.id)}.json"
    volumes = known_volumes(manifest, key)
    if volumes is not None and _lacks_checksums(manifest):
        if _matches_files(case, props, settings, volumes):
            with unless_read_only():
                write_manifest(manifest, key, volumes)
        else:
            logger.warning(
                "%s: its arrays hold other values than its files, as they are read today. They are"
                " made again",
                manifest,
            )
            volumes = None
    if volumes is None:
        volumes = _write_volumes(case, props, settings, folder)
        write_manifest(manifest, key, volumes)
    targets = {role: volumes[role] for role in case.targets}
    return CachedCase(
        case=case,
        image=volumes["image"],
        targets=targets,
        scale=props.scale,
        properties=props,
        space=props.model_space,
    )


def _cache_key(case: Case, props: CaseProperties, settings: config.Config) -> dict[str, Any]:
    """All that the arrays of a case depend on."""
    data = settings.data
    kinds = {role: settings.roles.get(role, "image") for role in case.targets}
    stamps = {
        role: [file_stamp(path) for path in paths] for role, paths in files_by_role(case).items()
    }
    rules = {
        "classes": data.classes,
        "ignore_label": data.ignore_label,
        "binarise": binarise_rule(data),
    }
    labels = rules if set(MASKED) & set(kinds.values()) else {}
    space = {"space": [_space_key(settings), props.space]} if data.has_space else {}
    masked = [normalise.is_masked(entry) for entry in entries(data.normalise)]
    return {
        "format": FORMAT,
        "content": props.content,
        "files": stamps,
        "targets": kinds,
        **labels,
        **space,
        **({"masked": masked} if any(masked) else {}),
    }


def missing_cases(
    cases: Sequence[Case],
    properties: Sequence[CaseProperties],
    settings: config.Config,
    folder: Path,
) -> list[str]:
    """Cases of which :func:`build` would have to write arrays.

    Args:
        cases: cases of the data set.
        properties: those of ``examine(cases, ...)``.
        settings: config of the run.
        folder: folder of the cache.

    Returns:
        Their ids, in the order of ``cases``.
    """
    manifests = {
        case.id: (
            arrays_folder(folder, settings) / f"{file_name(case.id)}.json",
            _cache_key(case, props, settings),
        )
        for case, props in zip(cases, properties, strict=True)
    }
    return [
        case_id
        for case_id, (manifest, key) in manifests.items()
        if known_volumes(manifest, key) is None
    ]


def write_manifest(manifest: Path, key: Mapping[str, Any], volumes: Mapping[str, Volume]) -> None:
    """Write what the arrays beside ``manifest`` were made from, and their checksums.

    Args:
        manifest: JSON file to write, in the folder of the arrays; :func:`known_volumes` reads it.
        key: all that the arrays depend on, JSON-able.
        volumes: the arrays by role.
    """
    arrays = {
        role: {
            **dataclasses.asdict(volume),
            "path": volume.path.name,
            "bytes": volume.path.stat().st_size,
            "sum": files.checksum(volume.path),
        }
        for role, volume in volumes.items()
    }
    files.write_json(manifest, {"key": key, "arrays": arrays})


def known_volumes(manifest: Path, key: Mapping[str, Any]) -> dict[str, Volume] | None:
    """Arrays that a manifest describes, if they were made from ``key`` and are intact.

    A damaged array is logged, since whatever was trained on it is in doubt. Manifests of older
    versions hold no checksums: their arrays are taken as they are.

    Args:
        manifest: file of :func:`write_manifest`.
        key: all that the arrays have to depend on.

    Returns:
        The arrays by role; None where the manifest is missing or has another key, or an array is
        missing, torn or damaged.
    """
    try:
        document = files.read_document(manifest, documents.Manifest, "")
        if document["key"] != jsonable(key):
            return None
        arrays = {
            role: (manifest.with_name(entry["path"]), entry)
            for role, entry in document["arrays"].items()
        }
        if any(path.stat().st_size != entry["bytes"] for path, entry in arrays.values()):
            return None
        damaged = [
            path
            for path, entry in arrays.values()
            if "sum" in entry and files.checksum(path) != entry["sum"]
        ]
        for path in damaged:
            logger.warning(
                "%s: is damaged: its content is not what was written. It is made again", path
            )
        known = {
            role: Volume(path=path, shape=tuple(entry["shape"]), dtype=entry["dtype"])
            for role, (path, entry) in arrays.items()
        }
        return None if damaged else known
    except (
        files.FileError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ):  # no manifest of ours
        return None


def _lacks_checksums(manifest: Path) -> bool:
    """Whether a manifest was written before checksums were kept."""
    return any("sum" not in entry for entry in files.read_json(manifest)["arrays"].values())


def _matches_files(
    case: Case, props: CaseProperties, settings: config.Config, volumes: Mapping[str, Volume]
) -> bool:
    """Whether arrays hold what is read from the case's files today.

    Older arrays were made before some files were read as they are now.
    """
    try:
        if content_hash(np.asarray(volumes["image"].array)) != props.content:
            return False
        return all(
            np.array_equal(_target_array(case, role, settings), volumes[role].array)
            for role in case.targets
        )
    except (OSError, ValueError):  # no array at all
        return False


def _target_array(case: Case, role: str, settings: config.Config) -> np.ndarray:
    """A target as the cache keeps it."""
    kind, path, data = settings.roles.get(role, "image"), case.targets[role], settings.data
    return (
        read_labels(path, target_rules(data, kind))
        if kind in MASKED
        else load_target(path, data, labels=False)[0]
    )


def _write_volumes(
    case: Case, props: CaseProperties, settings: config.Config, folder: Path
) -> dict[str, Volume]:
    """Decode the files of a case and write its arrays."""
    data = settings.data
    image, _ = load_image(case, data.dims)
    if content_hash(image) != props.content:
        raise UserError(
            f"{case.image[0]}: changed while it was being prepared. Run the command again."
        )
    space, name = props.model_space, file_name(case.id)
    spaces.require_memory(case.image[0], space, len(image))
    assert props.scale is not None
    prepare = functools.partial(
        prepared, data.normalise, props.scale, clip=space.resampling is not None
    )
    there = np.asarray(space.to_model(image, prepare=prepare))
    volumes = {"image": save(folder / f"{name}.image.npy", there)}
    for role in case.targets:
        target = _target_array(case, role, settings)
        if settings.roles.get(role, "image") in MASKED:
            target = space.labels_to_model(target)
        elif not space.identity:
            clipped = None if space.resampling is None else prepare
            target = np.asarray(space.to_model(target, prepare=clipped))
        volumes[role] = save(folder / f"{name}.{role}.npy", target)
    return volumes


def file_target(cached: CachedCase, role: str, settings: config.Config) -> np.ndarray:
    """A target on the grid of its file.

    Args:
        cached: the case.
        role: name of the target.
        settings: config of the run.

    Returns:
        ``(C, *S)``: the cached array where model space is that grid, else read from the file.

    Raises:
        FileError: for a file that cannot be read.
    """
    if cached.space.identity:
        return np.asarray(cached.targets[role].array)
    return _target_array(cached.case, role, settings)


def file_image(cached: CachedCase, dims: int) -> np.ndarray:
    """The image on the grid of its file.

    Args:
        cached: the case.
        dims: space axes.

    Returns:
        ``(C, *S)``, as :func:`file_target`.

    Raises:
        FileError: for a file that cannot be read.
    """
    if cached.space.identity:
        return np.asarray(cached.image.array)
    return load_image(cached.case, dims)[0]


def save(path: Path, array: np.ndarray) -> Volume:
    """Write an array as ``.npy``, whole or not at all.

    Args:
        path: file to write.
        array: ``(C, *S)``.

    Returns:
        Its handle.
    """
    files.write(path, array, dims=array.ndim - 1)
    return Volume(path=path, shape=tuple(int(n) for n in array.shape), dtype=str(array.dtype))
