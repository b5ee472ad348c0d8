"""Properties of each case: shapes, number types, intensities, label values, grids.

They are found in one pass over the voxels and kept as JSON while the files stay as they are. The
order of work: cases -> properties -> checks (what is wrong) -> cache (arrays).
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
from pipeline.config import numbers
from pipeline.config.numbers import Normalisation
from pipeline.data import intensities, normalise, scales, spaces
from pipeline.data.intensities import Intensities
from pipeline.data.model_space import ModelSpace, from_record
from pipeline.data.prepare import with_entries
from pipeline.data.reading import load_image, nonfinite, nonfinite_files
from pipeline.data.targets import MASKED, label_values, load_target, target_rules
from pipeline.files.limits import cores
from pipeline.records import Case, Geometry, NamedOptions

FORMAT = 4
"""Increased when meaning or fields of the properties change; older ones are then found again."""

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of the operating system for a place that may not be written."""

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` after each case, in the calling thread; what it raises stops
the work.
"""

Decoded = Mapping[str, np.ndarray]
"""Arrays ``(C, *S)`` of a case by role, without those that cannot be read."""

T = TypeVar("T")

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseProperties:
    """What one pass over the voxels of a case found; JSON-able by ``dataclasses.asdict``.

    Roles are ``image`` and the names of the targets.
    """

    id: str
    files: Mapping[str, list[dict[str, Any]]]
    """Path, name, size and time of change of each file, by role; the image may have several."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape ``(C, *S)`` of each role."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    affines: Mapping[str, list[list[float]]] = field(default_factory=dict)
    """Affine of each role whose header has one."""
    problems: tuple[tuple[str, str, str], ...] = ()
    """(path, problem, suggestion) of files that cannot be used; other fields then hold what could
    be read.
    """
    nonfinite: Mapping[str, int] = field(default_factory=dict)
    """Of each role that holds NaN or infinity: how many."""
    nonfinite_files: Mapping[str, int] = field(default_factory=dict)
    """The same within the image, by the number of its file."""
    constant: bool = False
    """Whether no channel of the image has two different finite values."""
    label_values: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Voxels of each value of each label or mask (:func:`pipeline.data.targets.label_values`)."""
    content: str = ""
    """SHA-256 of the decoded image with its shape and number type (:func:`content_hash`)."""
    target_contents: Mapping[str, str] = field(default_factory=dict)
    """The same of the targets."""
    scale: normalise.IntensityScale | None = None
    """Normalisation fitted to the image; None where it could not be read."""
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each role, warnings about its file (:attr:`pipeline.records.Geometry.notes`)."""
    scale_notes: tuple[str, ...] = ()
    """Warnings about the scale of the image (:func:`pipeline.data.normalise.fit_with_notes`)."""
    outside: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Of each image that the normalisation would mostly clip, problem and suggestion
    (:func:`pipeline.data.normalise.problem_of`).
    """
    grids: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For each role that can be read ``family``, ``codes`` and ``spacing`` in mm
    (:class:`pipeline.grid.Grid`), of the image's first file.
    """
    space: Mapping[str, Any] | None = None
    """The way to model space (:meth:`pipeline.data.model_space.ModelSpace.record`); None where the
    config asks for none.
    """
    intensities: tuple[Intensities, ...] = ()
    """Of each channel of the image in the foreground, where the normalisation takes numbers from
    there.
    """

    @property
    def model_space(self) -> ModelSpace:
        """The way to model space."""
        return ModelSpace() if self.space is None else from_record(self.space)

    @property
    def model_size(self) -> tuple[int, ...]:
        """``(*S)`` of the image in model space."""
        return self.model_space.size(self.shapes["image"][1:])


def case_listing(cases: Sequence[Case], properties: Sequence[CaseProperties]) -> dict[str, Any]:
    """Content of a run's ``cases.json``.

    Args:
        cases: cases of the data set.
        properties: those of ``examine(cases, ...)``.

    Returns:
        By id: absolute paths, group, and the hash of each role's content.
    """
    return {
        case.id: {
            "image": [str(path.resolve()) for path in case.image],
            "targets": {role: str(path.resolve()) for role, path in case.targets.items()},
            "group": case.group,
            "content": {"image": props.content, **props.target_contents},
        }
        for case, props in zip(cases, properties, strict=True)
    }


def examine(
    cases: Sequence[Case],
    settings: config.Config,
    cache: Path | None,
    write: bool = True,
    progress: Progress | None = None,
    workers: int | None = None,
) -> list[CaseProperties]:
    """Find the properties of every case.

    Each file is decoded once, or not at all where ``<cache>/facts/ID.json`` still fits it. Never
    raises for a bad file: what is wrong stands in ``CaseProperties.problems``.

    Args:
        cases: cases of the data set.
        settings: config of the run.
        cache: folder of the cache; None: nothing is reused or written.
        write: keep new properties in the cache.
        progress: called after each case.
        workers: threads; None: one per core, at most 16.

    Returns:
        Properties in the order of ``cases``.
    """
    return parallel(
        lambda case: _properties_of(case, settings, cache, write), cases, progress, workers
    )


def examine_one(
    case: Case, settings: config.Config, observe: Callable[[Decoded], None]
) -> CaseProperties:
    """Find the properties of one case, and show its decoded arrays to a function.

    Nothing is taken from a cache or written to one.

    Args:
        case: the case.
        settings: config of the run.
        observe: called once with the image and the targets, each as it was read.

    Returns:
        Properties, as of :func:`examine`.
    """
    return _examine_case(case, settings, _cache_key(case, settings)["files"], observe)


def parallel(
    work: Callable[[T], R], items: Sequence[T], progress: Progress | None, workers: int | None
) -> list[R]:
    """Map a function over threads, with progress.

    Codecs and numpy release the GIL, and no more items than threads are in memory.

    Args:
        work: function of one item.
        items: its arguments.
        progress: called after each item, in order.
        workers: threads; None or 0: one per core, at most 16.

    Returns:
        Results in the order of ``items``.

    Raises:
        BaseException: the first that ``work`` or ``progress`` raises; items not begun are
            cancelled.
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
    """Properties of one case, from disk where they still fit."""
    key = _cache_key(case, settings)
    path = cache / "facts" / f"{file_name(case.id)}.json" if cache else None
    known = _known_properties(path, key, case) if path else None
    if known is not None and (known.intensities or not _counts_foreground(settings)):
        return completed(known, settings)
    properties = _examine_case(case, settings, key["files"])
    if path and write and not properties.problems:
        with unless_read_only():
            files.write_json(path, {"key": key, "facts": _document(properties)})
    return completed(properties, settings)


def completed(properties: CaseProperties, settings: config.Config) -> CaseProperties:
    """Properties whose scale has the numbers of the data set.

    Args:
        properties: of a case.
        settings: config of the run.

    Returns:
        The properties: the same where the config has no such numbers yet, or needs none.
    """
    method, scale = settings.data.normalise, properties.scale
    if scale is None or any(map(numbers.lacking, numbers.entries(method))):
        return properties
    channels = properties.shapes["image"][0]
    made = with_entries(method, scale, channels, numbers.FOUND)
    return dataclasses.replace(properties, scale=made)


def _counts_foreground(settings: config.Config) -> bool:
    """Whether numbers of the normalisation have to be found in the foreground of the cases."""
    return _foreground_role(settings) is not None and any(
        map(numbers.lacking, numbers.entries(settings.data.normalise))
    )


def _foreground_role(settings: config.Config) -> str | None:
    """The target whose classes are the foreground: the first of labels."""
    return next((name for name, kind in settings.targets.items() if kind == "labels"), None)


@contextlib.contextmanager
def unless_read_only() -> Iterator[None]:
    """Ignore that a folder may not be written: what cannot be kept is found again next time.

    Yields:
        Nothing; the file is written inside the context.

    Raises:
        OSError: any other error of the operating system.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise


def _grid_entry(geometry: Geometry, dims: int) -> dict[str, Any]:
    """Family, axis codes and spacing of a file, JSON-able."""
    found = grid.grid_of(geometry, dims)
    return {
        "family": found.family,
        "codes": found.codes,
        "spacing": found.spacing and list(found.spacing),
    }


def _cache_key(case: Case, settings: config.Config) -> dict[str, Any]:
    """All that the properties of a case depend on; moving a data set changes none of it."""
    return {
        "format": FORMAT,
        "dims": settings.data.dims,
        **_normalisation_key(settings),
        "targets": {role: settings.roles.get(role, "image") for role in case.targets},
        "binarise": binarise_rule(settings.data),
        **({"space": spaces.settings_of(settings)} if settings.data.has_space else {}),
        "files": {
            role: [file_stamp(path) for path in paths]
            for role, paths in files_by_role(case).items()
        },
    }


def _normalisation_key(settings: config.Config) -> dict[str, Any]:
    """The part of a key that the normalisation is: the numbers of the data set are none of it."""
    normal = settings.data.normalise
    found = [
        {"name": e.name, "options": {} if e.name in numbers.FOUND else dict(e.options)}
        for e in numbers.entries(normal)
    ]
    more = {"foreground": [_foreground_role(settings), settings.data.ignore_label]}
    return {
        "normalise": found[0] if isinstance(normal, NamedOptions) else found,
        **(more if any(entry["name"] in numbers.FOUND for entry in found) else {}),
    }


def binarise_rule(data: config.Data) -> list[Any] | None:
    """Settings that change the values of labels while they are read.

    Args:
        data: section ``data`` of the config.

    Returns:
        ``[binarise, ignore_label]``; None where values stay as they are.
    """
    return None if data.binarise is None else [data.binarise, data.ignore_label]


def files_by_role(case: Case) -> dict[str, tuple[Path, ...]]:
    """Files of a case by role.

    Args:
        case: the case.

    Returns:
        ``image`` with all its files, then each target with one.
    """
    return {"image": case.image} | {role: (path,) for role, path in case.targets.items()}


def file_stamp(path: Path) -> dict[str, Any]:
    """Name, size and time of change of a file, by which a changed file is noticed.

    Args:
        path: a file, or a folder (Zarr, DICOM), whose stamp covers all files inside; of a header
            with its pixels beside it both count.

    Returns:
        ``name``, ``size`` in bytes, ``mtime_ns`` in nanoseconds (both -1 where there is no such
        file); of a folder also ``files``, their number.
    """
    whole = files.split_selection(path)[0]
    try:
        stat = whole.stat()
    except OSError:
        return {"name": path.name, "size": -1, "mtime_ns": -1}
    parts = files.parts(path)
    if parts != [whole]:  # a folder, or a header: what changes inside does not change it
        inside = [p.stat() for p in parts]
        size, newest = (
            sum(s.st_size for s in inside),
            max((s.st_mtime_ns for s in inside), default=0),
        )
        return {"name": path.name, "size": size, "mtime_ns": newest, "files": len(inside)}
    return {"name": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _known_properties(path: Path, key: Mapping[str, Any], case: Case) -> CaseProperties | None:
    """Properties on disk; None where they are missing, damaged, or of other files."""
    try:
        document = files.read_document(path, documents.KnownProperties, "")
        if document["key"] != jsonable(key) or document["facts"]["id"] != case.id:
            return None
        # The data set may have moved since.
        paths = {
            role: [{**s, "path": str(p)} for s, p in zip(key["files"][role], paths, strict=True)]
            for role, paths in files_by_role(case).items()
        }
        found = dataclasses.replace(_properties_from(document["facts"]), files=paths)
        _ = found.model_space  # ValueError where it is none
        return found
    except (files.FileError, KeyError, ValueError):
        return None


def jsonable(obj: Any) -> Any:
    """An object as it comes back from JSON: tuples as lists, keys as text.

    Args:
        obj: a JSON-able object.

    Returns:
        The same as dicts, lists, text, numbers and None.
    """
    return json.loads(json.dumps(obj, default=list))


def _document(properties: CaseProperties) -> dict[str, Any]:
    """Properties as their JSON document; what only some normalisations have is left out."""
    found = {f.name: getattr(properties, f.name) for f in dataclasses.fields(properties)}
    found["scale"] = properties.scale and properties.scale.as_json()
    return (
        found if properties.intensities else {k: v for k, v in found.items() if k != "intensities"}
    )


def _properties_from(document: Mapping[str, Any]) -> CaseProperties:
    """Properties from their JSON document."""
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
            "scale": scale and scales.from_json(scale),
            "intensities": tuple(
                Intensities(**{**entry, "counts": tuple(entry["counts"])})
                for entry in document.get("intensities", ())
            ),
        }
    )


def _examine_case(
    case: Case,
    settings: config.Config,
    stamps: Mapping[str, list[dict[str, Any]]],
    observe: Callable[[Decoded], None] | None = None,
) -> CaseProperties:
    """Decode every file of a case and note what it holds."""
    found, normal = _Findings(), normalise.pending(settings.data.normalise)
    arrays: dict[str, np.ndarray] = {}
    image = found.attempt(lambda: load_image(case, settings.data.dims))
    if image is not None and (wrong := normalise.channel_problem(normal, image[0])):
        found.note("image", *image)
        found.problems.append((str(case.image[0]), *wrong))
    elif image is not None:
        found.note("image", *image)
        found.check_range("image", normal, image[0])
        space = found.attempt(lambda: _space_of(case, image, settings)) or ModelSpace()
        scale, notes = normalise.fit_with_notes(normal, space.to_native(image[0]))
        found.rest = {
            "nonfinite_files": {
                str(number): count for number, count in nonfinite_files(case, image[0]).items()
            },
            "constant": _is_constant(image[0]),
            "content": content_hash(image[0]),
            "scale": scale,
            "scale_notes": notes,
            "space": space.record() if settings.data.has_space else None,
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
                found.check_range(role, normal, target[0])
            if role == _foreground_role(settings) and _counts_foreground(settings):
                found.count_foreground(image, target[0], settings.data.ignore_label)
            if observe is not None:
                arrays[role] = target[0]
    if observe is not None:
        observe(arrays if image is None else {"image": image[0], **arrays})
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


def _space_of(
    case: Case, image: tuple[np.ndarray, Geometry], settings: config.Config
) -> ModelSpace:
    """The way of a case to model space."""
    array, geometry = image
    if not settings.data.has_space:
        return ModelSpace()
    own = grid.grid_of(geometry, settings.data.dims)
    return spaces.space_of(case.image[0], own, array, settings, {})


@dataclass(slots=True)
class _Findings:
    """What is noted while a case is examined."""

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
        """Result of ``load``; None where it fails, which is noted as a problem."""
        try:
            return load()
        except files.FileError as error:
            self.problems.append((str(error.path), error.problem, error.suggestion))
            return None

    def note(self, role: str, array: np.ndarray, geometry: Geometry) -> None:
        """Note shape, number type, grid and values that are not finite."""
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

    def count_foreground(
        self, image: tuple[np.ndarray, Geometry] | None, labels: np.ndarray, ignored: int | None
    ) -> None:
        """Count the intensities of the foreground, where labels and image fit."""
        if image is not None and image[0].shape[1:] == labels.shape[1:]:
            mask = intensities.foreground(labels[0], ignored)
            self.rest["intensities"] = intensities.collect(image[0], mask)

    def check_range(self, role: str, normal: Normalisation, image: np.ndarray) -> None:
        """Note an image that the normalisation would mostly clip."""
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
    """SHA-256 of an array's number type, shape and values.

    Args:
        array: any array.

    Returns:
        64 hexadecimal digits, equal for equal arrays, whatever files they come from.
    """
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def file_name(case_id: str) -> str:
    """File name for a case id.

    Args:
        case_id: id of a case.

    Returns:
        The id; one of more than 200 bytes is shortened and made unique again by its hash.
    """
    raw = os.fsencode(case_id)
    return (
        case_id
        if len(raw) <= 200
        else raw[:150].decode(errors="ignore") + "-" + hashlib.sha256(raw).hexdigest()[:16]
    )
