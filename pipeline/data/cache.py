"""Every case as memory-mapped arrays that all folds and loader processes share.

Arrays keep the number type of their files, so that any patch is read without decoding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import config, documents, files
from pipeline.data import normalise
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
"""Raised when arrays change their meaning; older ones on disk are then made again."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Volume:
    """Handle of an ``.npy`` array ``(C, *S)``: a path, opened where it is used.

    Copies and pickles carry the path, never pixels.
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
    """A case whose arrays lie in the store: image ``(C, *S)`` as its file has it, labels ``(1,
    *S)`` in the smallest integer type.
    """

    case: Case
    image: Volume
    targets: Mapping[str, Volume]
    scale: normalise.IntensityScale
    properties: CaseProperties
    maps: Mapping[str, Volume] = field(default_factory=dict)
    """Maps made from labels or from a pair (:mod:`pipeline.data.derived`), by their name in a
    sample.
    """


def cache_folder(data: config.Data, run: Path) -> Path:
    """Folder of the store: the configured one, else ``<root>/store`` where data_prep made it, else
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
    """Arrays of every case below ``<folder>/arrays``, in order; what is there already and still
    fits its files is not decoded again.

    ``properties`` come from ``examine(cases, ...)`` and must be without errors. Raises UserError
    where a file changed since then or the folder is read-only.
    """
    pairs = list(zip(cases, properties, strict=True))
    with writable(folder):
        text = require_room(cases, properties, settings, folder)
        if text is not None:
            logger.warning(text)
        return parallel(
            lambda pair: _cached(*pair, settings, folder / "arrays"), pairs, progress, workers
        )


def require_room(
    cases: Sequence[Case],
    properties: Sequence[CaseProperties],
    settings: config.Config,
    folder: Path,
) -> str | None:
    """A warning where the disk of a store has fewer bytes free than its arrays take; DiskError
    where they certainly cannot fit.
    """
    need = 0
    for case, entry in zip(cases, properties, strict=True):
        for role, shape in entry.shapes.items():
            size = _bytes_of(role, shape, entry, settings)
            need += (
                size if _size(folder / "arrays" / f"{file_name(case.id)}.{role}.npy") < size else 0
            )
    return files.require_room(
        folder, need, "Free space there, or set data.store to a folder on another disk."
    )


def _bytes_of(
    role: str, shape: Sequence[int], entry: CaseProperties, settings: config.Config
) -> int:
    """Bytes of the numbers of an array of the store."""
    kind = settings.roles.get(role, "image")
    if role != "image" and kind in MASKED:
        return math.prod(shape[1:]) * label_dtype(target_rules(settings.data, kind)).itemsize
    dtype = np.dtype(entry.dtypes[role])
    return math.prod(shape) * (4 if dtype == np.float64 else dtype.itemsize)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn the error of a store that may not be written into a UserError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in READ_ONLY:
            raise UserError(
                f"{folder}: the store may not be written here ({error.strerror}). Set data.store to"
                " another folder."
            ) from None
        raise


def _cached(case: Case, entry: CaseProperties, settings: config.Config, folder: Path) -> CachedCase:
    if entry.problems or entry.scale is None:
        raise UserError(
            f"{case.image[0]}: cannot be stored:"
            f" {entry.problems[0][1] if entry.problems else 'it was not read'}. Mend the file"
            " first."
        )
    key = _cache_key(case, entry, settings)
    manifest = folder / f"{file_name(case.id)}.json"
    volumes = known_volumes(manifest, key)
    if volumes is not None and _without_sums(manifest):
        if _still_right(case, entry, settings, volumes):
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
        volumes = _write_volumes(case, entry, settings, folder)
        write_manifest(manifest, key, volumes)
    targets = {role: volumes[role] for role in case.targets}
    return CachedCase(
        case=case, image=volumes["image"], targets=targets, scale=entry.scale, properties=entry
    )


def _cache_key(case: Case, entry: CaseProperties, settings: config.Config) -> dict[str, Any]:
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
    return {"format": FORMAT, "content": entry.content, "files": stamps, "targets": kinds, **labels}


def missing_cases(
    cases: Sequence[Case],
    properties: Sequence[CaseProperties],
    settings: config.Config,
    folder: Path,
) -> list[str]:
    """Ids of cases of which :func:`build` would have to write arrays."""
    manifests = {
        c.id: (folder / "arrays" / f"{file_name(c.id)}.json", _cache_key(c, f, settings))
        for c, f in zip(cases, properties, strict=True)
    }
    return [
        name for name, (manifest, key) in manifests.items() if known_volumes(manifest, key) is None
    ]


def write_manifest(manifest: Path, key: Mapping[str, Any], volumes: Mapping[str, Volume]) -> None:
    """Write down what the arrays beside ``manifest`` were made from, and their sums, for
    :func:`known_volumes`.
    """
    arrays = {
        role: {
            **dataclasses.asdict(v),
            "path": v.path.name,
            "bytes": v.path.stat().st_size,
            "sum": files.checksum(v.path),
        }
        for role, v in volumes.items()
    }
    files.write_json(manifest, {"key": key, "arrays": arrays})


def known_volumes(manifest: Path, key: Mapping[str, Any]) -> dict[str, Volume] | None:
    """Arrays that the manifest describes, if they were made from what ``key`` says and none is
    missing, torn or damaged; else None.

    Damage is said, since whatever was trained on it is in doubt. Older manifests hold no sums:
    their arrays are taken as they are.
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


def _without_sums(manifest: Path) -> bool:
    return any("sum" not in entry for entry in files.read_json(manifest)["arrays"].values())


def _still_right(
    case: Case, entry: CaseProperties, settings: config.Config, volumes: Mapping[str, Volume]
) -> bool:
    """Whether arrays hold what is read from the case's files today: older ones were made before
    some files were read as they are now.
    """
    try:
        if content_hash(np.asarray(volumes["image"].array)) != entry.content:
            return False
        return all(
            np.array_equal(_target_array(case, role, settings), volumes[role].array)
            for role in case.targets
        )
    except (OSError, ValueError):  # no array at all
        return False


def _target_array(case: Case, role: str, settings: config.Config) -> np.ndarray:
    """A target as the store keeps it."""
    kind, path, data = settings.roles.get(role, "image"), case.targets[role], settings.data
    return (
        read_labels(path, target_rules(data, kind))
        if kind in MASKED
        else load_target(path, data, labels=False)[0]
    )


def _write_volumes(
    case: Case, entry: CaseProperties, settings: config.Config, folder: Path
) -> dict[str, Volume]:
    image, _ = load_image(case, settings.data.dims)
    if content_hash(image) != entry.content:
        raise UserError(
            f"{case.image[0]}: changed while it was being prepared. Run the command again."
        )
    volumes = {"image": save(folder / f"{file_name(case.id)}.image.npy", image)}
    for role in case.targets:
        volumes[role] = save(
            folder / f"{file_name(case.id)}.{role}.npy", _target_array(case, role, settings)
        )
    return volumes


def save(path: Path, array: np.ndarray) -> Volume:
    """Write ``array`` ``(C, *S)`` as ``.npy``, whole or not at all, and return its handle."""
    files.write(path, array, dims=array.ndim - 1)
    return Volume(path=path, shape=tuple(int(n) for n in array.shape), dtype=str(array.dtype))
