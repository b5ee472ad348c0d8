"""What one look at each case finds: shapes, types, intensities, label values, grids; kept as JSON
while the files stay as they are.

The walk: cases -> properties -> checks (what is wrong) -> cache (arrays).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline import config, documents, files, grid
from pipeline.data import normalise
from pipeline.data.reading import load_image, nonfinite, nonfinite_files
from pipeline.data.targets import MASKED, label_values, load_target, target_rules
from pipeline.files.limits import cores
from pipeline.records import Case, Geometry, NamedOptions

FACTS = 4
"""Raised when facts change their meaning or gain fields; older ones on disk are then found again."""

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` after each case, in the calling thread; what it raises stops
the work.
"""

T = TypeVar("T")

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseProperties:
    """What one look at a case's pixels found; JSON-able by ``dataclasses.asdict``. Roles are
    ``image`` and the targets' names.

    ``files`` holds one entry per file (the image may have several). ``problems`` are (path,
    problem, cure) of files that cannot be used; other fields then tell what could be read.
    ``content`` is the SHA-256 of the decoded image with its shape and type, ``target_contents``
    those of the targets.
    """

    id: str
    files: Mapping[str, list[dict[str, Any]]]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    affines: Mapping[str, list[list[float]]] = field(default_factory=dict)
    problems: tuple[tuple[str, str, str], ...] = ()
    nonfinite: Mapping[str, int] = field(default_factory=dict)
    nonfinite_files: Mapping[str, int] = field(default_factory=dict)
    """Of the image, where it holds such values: how many by the number of its file."""
    constant: bool = False
    label_values: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    content: str = ""
    target_contents: Mapping[str, str] = field(default_factory=dict)
    scale: normalise.IntensityScale | None = None
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each role, what a reader of its file should be told
    (:attr:`pipeline.records.Geometry.notes`).
    """
    scale_notes: tuple[str, ...] = ()
    """What should be told about the scale of the image
    (:func:`pipeline.data.normalise.fit_with_notes`).
    """
    outside: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Of each image that the normalisation would mostly clip, problem and cure
    (:func:`pipeline.data.normalise.problem_of`).
    """
    grids: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For each role that can be read ``family``, ``codes`` and ``spacing`` in mm
    (:class:`pipeline.grid.Grid`), of the image's first file.
    """


def case_listing(cases: Sequence[Case], properties: Sequence[CaseProperties]) -> dict[str, Any]:
    """For a run's ``cases.json``: where each case lies, its group, and the hash of what it holds."""
    return {
        c.id: {
            "image": [str(p.resolve()) for p in c.image],
            "targets": {k: str(p.resolve()) for k, p in c.targets.items()},
            "group": c.group,
            "content": {"image": f.content, **f.target_contents},
        }
        for c, f in zip(cases, properties, strict=True)
    }


def examine(
    cases: Sequence[Case],
    settings: config.Config,
    cache: Path | None,
    write: bool = True,
    progress: Progress | None = None,
    workers: int | None = None,
) -> list[CaseProperties]:
    """Properties of every case, in order.

    Each file is decoded once, or not at all where ``<cache>/facts/ID.json`` still fits it.

    ``write`` keeps new properties in the cache. Never raises for a bad file: what is wrong stands
    in ``CaseProperties.problems``.
    """
    return parallel(
        lambda case: _properties_of(case, settings, cache, write), cases, progress, workers
    )


def parallel(
    work: Callable[[T], R], items: Sequence[T], progress: Progress | None, workers: int | None
) -> list[R]:
    """Map over threads, one per core unless said: codecs and numpy release the GIL, and no more
    cases than threads are in memory.
    """
    results = []
    with ThreadPoolExecutor(max_workers=max(1, workers or min(cores(), 16))) as pool:
        try:
            for done, result in enumerate(pool.map(work, items), 1):
                results.append(result)
                if progress:
                    progress(done, len(items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


def _properties_of(
    case: Case, settings: config.Config, cache: Path | None, write: bool
) -> CaseProperties:
    key = _key(case, settings)
    path = cache / "facts" / f"{file_name(case.id)}.json" if cache else None
    known = _known_properties(path, key, case) if path else None
    if known is not None:
        return known
    properties = _examine_case(case, settings, key["files"])
    if path and write and not properties.problems:
        with unless_read_only():
            files.write_json(path, {"key": key, "facts": properties})
    return properties


@contextlib.contextmanager
def unless_read_only() -> Iterator[None]:
    """What cannot be kept in a place that may not be written is found again next time."""
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise


def _grid_entry(geometry: Geometry, dims: int) -> dict[str, Any]:
    found = grid.grid_of(geometry, dims)
    return {
        "family": found.family,
        "codes": found.codes,
        "spacing": found.spacing and list(found.spacing),
    }


def _key(case: Case, settings: config.Config) -> dict[str, Any]:
    """All that the facts of a case depend on; moving a data set changes none of it."""
    normal = settings.data.normalise
    return {
        "format": FACTS,
        "dims": settings.data.dims,
        "normalise": {"name": normal.name, "options": dict(normal.options)},
        "targets": {role: settings.roles.get(role, "image") for role in case.targets},
        "binarise": binarise_rule(settings.data),
        "files": {
            role: [file_stamp(path) for path in paths]
            for role, paths in files_by_role(case).items()
        },
    }


def binarise_rule(data: config.Data) -> list[Any] | None:
    """What decides the values of labels while they are read; None where they stay as they are."""
    return None if data.binarise is None else [data.binarise, data.ignore_label]


def files_by_role(case: Case) -> dict[str, tuple[Path, ...]]:
    return {"image": case.image} | {role: (path,) for role, path in case.targets.items()}


def file_stamp(path: Path) -> dict[str, Any]:
    try:
        stat = path.stat()
    except OSError:
        return {"name": path.name, "size": -1, "mtime_ns": -1}
    if path.is_dir():  # Zarr: what changes inside does not change the folder
        inside = [p.stat() for p in path.rglob("*") if p.is_file()]
        size, newest = (
            sum(s.st_size for s in inside),
            max((s.st_mtime_ns for s in inside), default=0),
        )
        return {"name": path.name, "size": size, "mtime_ns": newest, "files": len(inside)}
    return {"name": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _known_properties(path: Path, key: Mapping[str, Any], case: Case) -> CaseProperties | None:
    """Properties on disk, or None where there are none, they are damaged, or they belong to other
    files.
    """
    try:
        document = files.read_document(path, documents.KnownFacts, "")
        if document["key"] != jsonable(key) or document["facts"]["id"] != case.id:
            return None
        # The data set may have moved since.
        paths = {
            role: [{**s, "path": str(p)} for s, p in zip(key["files"][role], paths, strict=True)]
            for role, paths in files_by_role(case).items()
        }
        return dataclasses.replace(_properties_from(document["facts"]), files=paths)
    except (files.FileError, KeyError, ValueError):
        return None


def jsonable(obj: Any) -> Any:
    return json.loads(json.dumps(obj, default=list))


def _properties_from(document: Mapping[str, Any]) -> CaseProperties:
    scale = document["scale"]
    return CaseProperties(
        **{
            **document,
            "shapes": {role: tuple(shape) for role, shape in document["shapes"].items()},
            "problems": tuple((a, b, c) for a, b, c in document["problems"]),
            "notes": {role: tuple(notes) for role, notes in document["notes"].items()},
            "scale_notes": tuple(document["scale_notes"]),
            "outside": {
                role: (problem, suggestion)
                for role, (problem, suggestion) in document["outside"].items()
            },
            "scale": (
                scale
                and normalise.IntensityScale(
                    low=tuple(scale["low"]),
                    high=tuple(scale["high"]),
                    to=tuple(scale["to"]),
                    clip=scale["clip"],
                )
            ),
        }
    )


def _examine_case(
    case: Case, settings: config.Config, stamps: Mapping[str, list[dict[str, Any]]]
) -> CaseProperties:
    """Decode every file of a case and note what it holds."""
    found, normal = _Findings(), settings.data.normalise
    image = found.attempt(lambda: load_image(case, settings.data.dims))
    if image is not None:
        found.note("image", *image)
        found.judge("image", normal, image[0])
        scale, notes = normalise.fit_with_notes(normal, image[0])
        found.rest = {
            "nonfinite_files": {
                str(number): count for number, count in nonfinite_files(case, image[0]).items()
            },
            "constant": _is_constant(image[0]),
            "content": content_hash(image[0]),
            "scale": scale,
            "scale_notes": notes,
        }
    for role, path in case.targets.items():
        kind = settings.roles.get(role, "image")
        rules = target_rules(settings.data, kind)
        target = found.attempt(
            lambda path=path, rules=rules, kind=kind: load_target(
                path, rules, labels=kind in MASKED
            )
        )
        if target is not None:
            found.note(role, *target)
            found.contents[role] = content_hash(target[0])
            if kind in MASKED:
                found.values[role] = label_values(target[0])
            else:
                found.judge(role, normal, target[0])
    named = {
        role: [
            {**stamp, "path": str(path)} for stamp, path in zip(stamps[role], paths, strict=True)
        ]
        for role, paths in files_by_role(case).items()
    }
    return CaseProperties(
        id=case.id,
        files=named,
        shapes=found.shapes,
        dtypes=found.dtypes,
        affines=found.affines,
        problems=tuple(found.problems),
        nonfinite=found.nonfinite,
        label_values=found.values,
        target_contents=found.contents,
        notes=found.notes,
        outside=found.outside,
        grids=found.grids,
        **found.rest,
    )


@dataclass(slots=True)
class _Findings:
    """Notes taken while a case is looked at."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    affines: dict[str, list[list[float]]] = field(default_factory=dict)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    nonfinite: dict[str, int] = field(default_factory=dict)
    values: dict[str, dict[str, int]] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    outside: dict[str, tuple[str, str]] = field(default_factory=dict)
    grids: dict[str, dict[str, Any]] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)

    def attempt(self, load: Callable[[], T]) -> T | None:
        try:
            return load()
        except files.FileError as error:
            self.problems.append((str(error.path), error.problem, error.suggestion))
            return None

    def note(self, role: str, array: np.ndarray, geometry: Geometry) -> None:
        self.shapes[role] = tuple(int(n) for n in array.shape)
        self.dtypes[role] = str(array.dtype)
        self.grids[role] = _grid_entry(geometry, array.ndim - 1)
        if "affine" in geometry.meta:
            self.affines[role] = geometry.meta["affine"]
        if geometry.notes:
            self.notes[role] = geometry.notes
        bad = nonfinite(array)
        if bad:
            self.nonfinite[role] = bad

    def judge(self, role: str, normal: NamedOptions, image: np.ndarray) -> None:
        problem = normalise.problem_of(normal, image)
        if problem:
            self.outside[role] = problem


def _is_constant(image: np.ndarray) -> bool:
    """Whether no channel has two different finite values."""
    for channel in image:
        values = channel[np.isfinite(channel)] if channel.dtype.kind == "f" else channel
        if values.size and values.min() != values.max():
            return False
    return True


def content_hash(array: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and values: equal for equal images, whatever files they
    come from.
    """
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def file_name(case_id: str) -> str:
    """File name for an id; a very long one is shortened and made unique again by its hash."""
    raw = os.fsencode(case_id)
    return (
        case_id
        if len(raw) <= 200
        else raw[:150].decode(errors="ignore") + "-" + hashlib.sha256(raw).hexdigest()[:16]
    )
