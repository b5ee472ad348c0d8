"""Check every case once, and keep it as memory-mapped arrays that all folds and loader processes share.

``examine`` decodes each file once and writes down properties (JSON, reused while the files stay as they are); ``faults`` judges the
facts without touching a pixel; ``build`` keeps arrays in their own number type, from which any patch is read without decoding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline import config, documents, files, grid
from pipeline.data import normalise
from pipeline.data.labels import WHITE as WHITE_NUMBERS
from pipeline.data.labels import rounded
from pipeline.data.reading import NONFINITE, load_image, nonfinite, nonfinite_files, nonfinite_problem, same_affine, single
from pipeline.records import Case, Fault, Geometry, NamedOptions, UserError

FORMAT = 2
"""Raised when arrays change their meaning; older ones on disk are then made again."""

FACTS = 4
"""Raised when facts change their meaning or gain fields; older ones on disk are then found again."""

MASKED = ("labels", "mask")
"""Kinds of targets whose values are classes."""

WHITE = tuple(map(str, WHITE_NUMBERS))
"""As facts write them: values that stand for class 1 in a black and white picture of 8 or 16 bits."""

LISTED = 256
"""Distinct label values that facts keep; an image given as labels would have millions."""

logger = logging.getLogger(__name__)

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` after each case, in the calling thread; what it raises stops the work."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Volume:
    """Handle of an ``.npy`` array ``(C, *S)``: a path, opened where it is used. Copies and pickles carry the path, never pixels."""

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
class CaseProperties:
    """What one look at a case's pixels found; JSON-able by ``dataclasses.asdict``. Roles are ``image`` and the targets' names.

    ``files`` holds one entry per file (the image may have several). ``problems`` are (path, problem, cure) of files that cannot
    be used; other fields then tell what could be read. ``content`` is the SHA-256 of the decoded image with its shape and type,
    ``target_contents`` those of the targets.
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
    """Of each role, what a reader of its file should be told (:attr:`pipeline.records.Geometry.notes`)."""
    scale_notes: tuple[str, ...] = ()
    """What should be told about the scale of the image (:func:`pipeline.data.normalise.fit_with_notes`)."""
    outside: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Of each image that the normalisation would mostly clip, problem and cure (:func:`pipeline.data.normalise.problem_of`)."""
    grids: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For each role that can be read ``family``, ``codes`` and ``spacing`` in mm (:class:`pipeline.grid.Grid`), of the image's first file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedCase:
    """A case whose arrays lie in the store: image ``(C, *S)`` as its file has it, labels ``(1, *S)`` in the smallest integer type."""

    case: Case
    image: Volume
    targets: Mapping[str, Volume]
    scale: normalise.IntensityScale
    properties: CaseProperties
    maps: Mapping[str, Volume] = field(default_factory=dict)
    """Maps made from labels or from a pair (:mod:`pipeline.data.derived`), by their name in a sample."""


def place(data: config.Data, run: Path) -> Path:
    """Folder of the store: the configured one, else ``<root>/store`` where data_prep made it, else ``<run>/store``."""
    if data.store is not None:
        return Path(data.store)
    beside = Path(data.root) / "store"
    return beside if (beside / "arrays").is_dir() else run / "store"


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


# --- examine -----------------------------------------------------------------------------------------------------------


def examine(
    cases: Sequence[Case],
    settings: config.Config,
    cache: Path | None,
    write: bool = True,
    progress: Progress | None = None,
    workers: int | None = None,
) -> list[CaseProperties]:
    """Properties of every case, in order. Each file is decoded once, or not at all where ``<cache>/facts/ID.json`` still fits it.

    ``write`` keeps new properties in the cache. Never raises for a bad file: what is wrong stands in ``CaseProperties.problems``.
    """
    return parallel(lambda case: _facts(case, settings, cache, write), cases, progress, workers)


def parallel(work: Callable[[T], R], items: Sequence[T], progress: Progress | None, workers: int | None) -> list[R]:
    """Map over threads, one per core unless said: codecs and numpy release the GIL, and no more cases than threads are in memory."""
    results = []
    with ThreadPoolExecutor(max_workers=max(1, workers or min(_cores(), 16))) as pool:
        try:
            for done, result in enumerate(pool.map(work, items), 1):
                results.append(result)
                if progress:
                    progress(done, len(items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _facts(case: Case, settings: config.Config, cache: Path | None, write: bool) -> CaseProperties:
    key = _key(case, settings)
    path = cache / "facts" / f"{file_name(case.id)}.json" if cache else None
    known = _known_facts(path, key, case) if path else None
    if known is not None:
        return known
    properties = _look(case, settings, key["files"])
    if path and write and not properties.problems:
        with _unless_read_only():
            files.write_json(path, {"key": key, "facts": properties})
    return properties


@contextlib.contextmanager
def _unless_read_only() -> Iterator[None]:
    """What cannot be kept in a place that may not be written is found again next time."""
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise


def _grid_entry(geometry: Geometry, dims: int) -> dict[str, Any]:
    found = grid.grid_of(geometry, dims)
    return {"family": found.family, "codes": found.codes, "spacing": found.spacing and list(found.spacing)}


def _key(case: Case, settings: config.Config) -> dict[str, Any]:
    """All that the facts of a case depend on; moving a data set changes none of it."""
    normal = settings.data.normalise
    return {
        "format": FACTS,
        "dims": settings.data.dims,
        "normalise": {"name": normal.name, "options": dict(normal.options)},
        "targets": {role: settings.roles.get(role, "image") for role in case.targets},
        "binarise": _cut(settings.data),
        "files": {role: [_stamp(path) for path in paths] for role, paths in _roles(case).items()},
    }


def _cut(data: config.Data) -> list[Any] | None:
    """What decides the values of labels while they are read; None where they stay as they are."""
    return None if data.binarise is None else [data.binarise, data.ignore_label]


def _roles(case: Case) -> dict[str, tuple[Path, ...]]:
    return {"image": case.image} | {role: (path,) for role, path in case.targets.items()}


def _stamp(path: Path) -> dict[str, Any]:
    try:
        stat = path.stat()
    except OSError:
        return {"name": path.name, "size": -1, "mtime_ns": -1}
    if path.is_dir():  # Zarr: what changes inside does not change the folder
        inside = [p.stat() for p in path.rglob("*") if p.is_file()]
        size, newest = sum(s.st_size for s in inside), max((s.st_mtime_ns for s in inside), default=0)
        return {"name": path.name, "size": size, "mtime_ns": newest, "files": len(inside)}
    return {"name": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _known_facts(path: Path, key: Mapping[str, Any], case: Case) -> CaseProperties | None:
    """Properties on disk, or None where there are none, they are damaged, or they belong to other files."""
    try:
        document = files.read_document(path, documents.KnownFacts, "")
        if document["key"] != _jsonable(key) or document["facts"]["id"] != case.id:
            return None
        # The data set may have moved since.
        paths = {
            role: [{**s, "path": str(p)} for s, p in zip(key["files"][role], paths, strict=True)] for role, paths in _roles(case).items()
        }
        return dataclasses.replace(_facts_from(document["facts"]), files=paths)
    except (files.FileError, KeyError, ValueError):
        return None


def _jsonable(obj: Any) -> Any:
    return json.loads(json.dumps(obj, default=list))


def _facts_from(document: Mapping[str, Any]) -> CaseProperties:
    scale = document["scale"]
    return CaseProperties(
        **{
            **document,
            "shapes": {role: tuple(shape) for role, shape in document["shapes"].items()},
            "problems": tuple((a, b, c) for a, b, c in document["problems"]),
            "notes": {role: tuple(notes) for role, notes in document["notes"].items()},
            "scale_notes": tuple(document["scale_notes"]),
            "outside": {role: (problem, suggestion) for role, (problem, suggestion) in document["outside"].items()},
            "scale": scale
            and normalise.IntensityScale(low=tuple(scale["low"]), high=tuple(scale["high"]), to=tuple(scale["to"]), clip=scale["clip"]),
        }
    )


def _look(case: Case, settings: config.Config, stamps: Mapping[str, list[dict[str, Any]]]) -> CaseProperties:
    """Decode every file of a case and note what it holds."""
    found, normal = _Findings(), settings.data.normalise
    image = found.attempt(lambda: load_image(case, settings.data.dims))
    if image is not None:
        found.note("image", *image)
        found.judge("image", normal, image[0])
        scale, notes = normalise.fit_with_notes(normal, image[0])
        found.rest = {
            "nonfinite_files": {str(number): count for number, count in nonfinite_files(case, image[0]).items()},
            "constant": _is_constant(image[0]),
            "content": content_hash(image[0]),
            "scale": scale,
            "scale_notes": notes,
        }
    for role, path in case.targets.items():
        kind = settings.roles.get(role, "image")
        rules = _rules(settings.data, kind)
        target = found.attempt(lambda path=path, rules=rules, kind=kind: _load_target(path, rules, labels=kind in MASKED))
        if target is not None:
            found.note(role, *target)
            found.contents[role] = content_hash(target[0])
            if kind in MASKED:
                found.values[role] = label_values(target[0])
            else:
                found.judge(role, normal, target[0])
    named = {
        role: [{**stamp, "path": str(path)} for stamp, path in zip(stamps[role], paths, strict=True)]
        for role, paths in _roles(case).items()
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


def _load_target(path: Path, data: config.Data, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Array ``(C, *S)`` and geometry of a target; labels have one channel, and two values where ``data.binarise`` is set."""
    array, geometry = files.read(path, data.dims, labels=labels)
    if not labels:
        return single(path, array), geometry
    array = array if data.binarise is not None else rounded(array)
    array = array if data.binarise is None else _binarised(path, array, data)
    if len(array) > 1 and (array != array[:1]).any():
        suggestion = "Save labels with one channel that holds the class numbers"
        raise files.FileError(path, f"has {len(array)} different channels where labels are needed", suggestion)
    return array[:1], geometry  # several where a grey mask is saved in colour


def _binarised(path: Path, array: np.ndarray, data: config.Data) -> np.ndarray:
    """1 where a value lies above ``data.binarise``, the ignored label where it is that, 0 elsewhere."""
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise files.FileError(path, f"holds {np.isnan(array).sum()} values that are NaN", "Replace them by numbers")
    mask = (array > data.binarise).astype(label_dtype(data))
    if data.ignore_label is not None:
        mask[array == data.ignore_label] = data.ignore_label
    return mask


def _rules(data: config.Data, kind: str) -> config.Data:
    """How a role of this kind is read: a field of view always has two classes and nothing to ignore."""
    return dataclasses.replace(data, classes=2, ignore_label=None) if kind == "mask" else data


def read_labels(path: Path, data: config.Data) -> np.ndarray:
    """Labels ``(1, *S)`` of one file in the smallest integer type that holds every class, checked as ``faults`` checks them.

    In a two-class mask of 0 and 255 (16 bits: 0 and 65535) the larger becomes 1; with ``data.binarise`` every value above it.
    Raises FileError for values outside the classes.
    """
    array, _ = _load_target(path, data, labels=True)
    values = label_values(array)
    problem = _label_problem(values, data)
    if problem:
        raise files.FileError(path, *problem)
    white = _white(values, data)
    return (np.where(array == int(white), 1, array) if white else array).astype(label_dtype(data))


def read_mask(path: Path, data: config.Data) -> np.ndarray:
    """Field of view ``(1, *S)``, uint8 0/1, of one file that holds 0/1, 0/255 or, with ``data.binarise``, any greys.

    ``data.classes`` and ``data.ignore_label`` are those of labels and say nothing here. Raises FileError for other values and where
    nothing lies inside.
    """
    mask = read_labels(path, _rules(data, "mask"))
    if not mask.any():
        raise files.FileError(path, *EMPTY_VIEW)
    return mask


EMPTY_VIEW = ("holds no field of view: nothing would be counted", "Give a mask whose foreground is the part of the image that counts")


def label_dtype(data: config.Data) -> np.dtype:
    """Smallest integer type for the classes and the ignored label; uint8 wherever possible."""
    ends = (min(0, data.ignore_label or 0), max(data.classes - 1, data.ignore_label or 0))
    kinds = (np.uint8, np.int8, np.uint16, np.int16, np.int32)
    return np.dtype(next((k for k in kinds if np.iinfo(k).min <= ends[0] and ends[1] <= np.iinfo(k).max), np.int64))


def label_values(array: np.ndarray) -> dict[str, int]:
    """How often each value occurs, by its text (``"2"``, ``"0.5"``, ``"nan"``); beyond 256 values the rest is summed under ``"others"``."""
    if array.dtype in (np.uint8, np.uint16):
        counts = normalise.histogram(array)
        values, counts = np.flatnonzero(counts), counts[counts > 0]
    else:
        values, counts = np.unique(array, return_counts=True)
    pairs = [(_text(value), int(count)) for value, count in zip(values[:LISTED], counts[:LISTED], strict=True)]
    return dict(pairs) | ({"others": int(counts[LISTED:].sum())} if len(values) > LISTED else {})


def _text(value: Any) -> str:
    return str(int(value)) if np.isfinite(value) and int(value) == value else repr(float(value))


def _is_constant(image: np.ndarray) -> bool:
    """Whether no channel has two different finite values."""
    for channel in image:
        values = channel[np.isfinite(channel)] if channel.dtype.kind == "f" else channel
        if values.size and values.min() != values.max():
            return False
    return True


def content_hash(array: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and values: equal for equal images, whatever files they come from."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


# --- judge -------------------------------------------------------------------------------------------------------------


def faults(properties: Sequence[CaseProperties], cases: Sequence[Case], settings: config.Config) -> list[Fault]:
    """Everything that is wrong with the cases' content, each with path and cure; ``properties`` come from ``examine(cases, ...)``."""
    found = []
    for case, fact in zip(cases, properties, strict=True):
        found += [Fault(path=Path(path), problem=problem, suggestion=suggestion) for path, problem, suggestion in fact.problems]
        found += [*_image_faults(case, fact), *_number_faults(case, fact)]
        for role in (r for r in case.targets if r in fact.shapes):
            found += _target_faults(case, fact, role, settings)
    return [*found, *_channel_faults(properties, cases), *_twins(properties, cases)]


def _image_faults(case: Case, fact: CaseProperties) -> Iterator[Fault]:
    found = [(case.image[int(number)], count) for number, count in fact.nonfinite_files.items()]
    found += [(case.targets[role], count) for role, count in fact.nonfinite.items() if role not in ("image", *fact.label_values)]
    for path, count in found:
        yield Fault(path=path, problem=nonfinite_problem(count), suggestion=NONFINITE)
    if fact.constant:
        suggestion = "It teaches nothing and is often a failed export: replace it or take the case away"
        severity = "error" if case.targets else "warning"
        yield Fault(path=case.image[0], problem="is constant: every voxel has the same value", suggestion=suggestion, severity=severity)


def _number_faults(case: Case, fact: CaseProperties) -> Iterator[Fault]:
    """Files whose numbers may mean something else than they seem to, or that the normalisation does not fit."""
    paths = {role: paths[0] for role, paths in _roles(case).items()}
    for role, (problem, suggestion) in fact.outside.items():
        yield Fault(path=paths[role], problem=problem, suggestion=suggestion)
    for role, notes in fact.notes.items():
        for note in notes:
            yield Fault(path=paths[role], problem=note, suggestion="Check that this is meant; else save the file again", severity="warning")
    for note in fact.scale_notes:
        suggestion = "Check the image; data.normalise can set other percentiles, or range with limits of its own"
        yield Fault(path=paths["image"], problem=note, suggestion=suggestion, severity="warning")


def _target_faults(case: Case, fact: CaseProperties, role: str, settings: config.Config) -> Iterator[Fault]:
    path, image, target = case.targets[role], fact.shapes.get("image"), fact.shapes[role]
    if image and image[1:] != target[1:]:
        problem = f"has shape {_by(target[1:])}, its image {case.image[0].name} has {_by(image[1:])}"
        suggestion = "Check that the two belong together; resample one to the other's grid"
        if image[1:] == target[:0:-1]:
            suggestion += (
                ". A photograph is turned upright by its EXIF orientation: a mask drawn over the unturned pixels must be turned, too"
            )
        yield Fault(path=path, problem=problem, suggestion=suggestion)
    types = fact.dtypes.get("image"), fact.dtypes.get(role)
    if settings.roles.get(role) == "image" and None not in types and types[0] != types[1]:
        problem = f"holds {types[1]}, its image {case.image[0].name} {types[0]}"
        yield Fault(
            path=path, problem=problem, suggestion="Save both with the same number type, so that equal values mean equal brightness"
        )
    if not same_affine(fact.affines.get("image"), fact.affines.get(role)):
        problem = f"lies elsewhere in the world than its image {case.image[0].name}: their affines differ by more than {grid.TOLERANCE}"
        yield Fault(
            path=path, problem=problem, suggestion="Resample it to the image's grid, or copy the image's affine if only the header is wrong"
        )
    if role in fact.label_values:
        kind = settings.roles[role]
        yield from _label_faults(path, fact.label_values[role], _rules(settings.data, kind), kind)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _label_faults(path: Path, values: Mapping[str, int], data: config.Data, kind: str) -> Iterator[Fault]:
    problem = _label_problem(values, data)
    if problem:
        yield Fault(path=path, problem=problem[0], suggestion=problem[1])
    elif kind == "mask":
        if set(values) <= {"0"}:
            yield Fault(path=path, problem=EMPTY_VIEW[0], suggestion=EMPTY_VIEW[1])
    elif set(values) == {str(data.ignore_label)}:
        yield Fault(path=path, problem="is ignored everywhere", suggestion="The case teaches nothing and has no score", severity="warning")
    elif set(values) <= {"0", str(data.ignore_label)}:
        suggestion = "Check that this is meant" + (
            "" if data.binarise is None else f"; no value lies above data.binarise: {data.binarise:g}"
        )
        yield Fault(path=path, problem="has no foreground", suggestion=suggestion, severity="warning")


def _label_problem(values: Mapping[str, int], data: config.Data) -> tuple[str, str] | None:
    """What is wrong with these label values, and the cure; None where they are classes or the ignored label."""
    wrong = {} if _white(values, data) else {value: count for value, count in values.items() if value not in _allowed(data)}
    if not wrong:
        return None
    shown = ", ".join(f"{value} ({count} voxels)" for value, count in list(wrong.items())[:8])
    known = f"0 to {data.classes - 1}" + ("" if data.ignore_label is None else f" and {data.ignore_label}, which is ignored")
    suggestion = "Correct the file, or data.classes or data.ignore_label"
    if data.classes == 2 and _looks_smeared(values):
        suggestion += "; if it is a black and white mask that was kept as JPEG or resized, set data.binarise: 127"
    return f"holds labels outside {known}: {shown}{', ...' if len(wrong) > 8 else ''}", suggestion


def _looks_smeared(values: Mapping[str, int]) -> bool:
    """Whether these may be the values of a picture of 0 and 255 after a lossy step: greys near both ends, or many greys."""
    if "others" in values or any(not 0 <= float(v) <= 255 for v in values):
        return False
    numbers = [float(v) for v in values]
    greys = [v for v in numbers if 1 < v < 255]
    return bool(greys) and max(numbers) > 127 and (len(numbers) > 8 or (min(numbers) <= 40 and max(numbers) >= 215))


def _allowed(data: config.Data) -> set[str]:
    return {str(value) for value in range(data.classes)} | ({str(data.ignore_label)} if data.ignore_label is not None else set())


def _white(values: Mapping[str, int], data: config.Data) -> str | None:
    """The value that stands for class 1 where these are the values of a black and white picture, else None."""
    allowed = _allowed(data)
    found = (w for w in WHITE if data.classes == 2 and w in values and w not in allowed and set(values) <= (allowed - {"1"}) | {w})
    return next(found, None)


def _channel_faults(properties: Sequence[CaseProperties], cases: Sequence[Case]) -> Iterator[Fault]:
    """Cases whose image or target has another number of channels than most."""
    for role in {role: None for fact in properties for role in fact.shapes}:
        counts = Counter(fact.shapes[role][0] for fact in properties if role in fact.shapes)
        usual, times = counts.most_common(1)[0]
        for case, fact in zip(cases, properties, strict=True):
            have = fact.shapes.get(role, (usual,))[0]
            if have != usual:
                path = case.image[0] if role == "image" else case.targets[role]
                yield Fault(
                    path=path,
                    problem=f"has {have} channels, {times} other cases have {usual}",
                    suggestion="Give every case the same channels",
                )


def _twins(properties: Sequence[CaseProperties], cases: Sequence[Case]) -> Iterator[Fault]:
    """Images that occur under several ids."""
    same: dict[str, list[Case]] = defaultdict(list)
    for case, fact in zip(cases, properties, strict=True):
        if fact.content:
            same[fact.content].append(case)
    for group in (group for group in same.values() if len(group) > 1):
        names = ", ".join(case.id for case in group)
        suggestion = "They stay on one side of every fold; remove the copies if they are not meant"
        yield Fault(
            path=group[0].image[0], problem=f"holds the same image as other cases: {names}", suggestion=suggestion, severity="warning"
        )


# --- build -------------------------------------------------------------------------------------------------------------


def build(
    cases: Sequence[Case],
    properties: Sequence[CaseProperties],
    settings: config.Config,
    folder: Path,
    progress: Progress | None = None,
    workers: int | None = None,
) -> list[CachedCase]:
    """Arrays of every case below ``<folder>/arrays``, in order; what is there already and still fits its files is not decoded again.

    ``properties`` come from ``examine(cases, ...)`` and must be without errors. Raises UserError where a file changed since then or the folder is read-only.
    """
    pairs = list(zip(cases, properties, strict=True))
    with writable(folder):
        text = require_room(cases, properties, settings, folder)
        if text is not None:
            logger.warning(text)
        return parallel(lambda pair: _stored(*pair, settings, folder / "arrays"), pairs, progress, workers)


def require_room(cases: Sequence[Case], properties: Sequence[CaseProperties], settings: config.Config, folder: Path) -> str | None:
    """A warning where the disk of a store has fewer bytes free than its arrays take; DiskError where they certainly cannot fit."""
    need = 0
    for case, fact in zip(cases, properties, strict=True):
        for role, shape in fact.shapes.items():
            size = _bytes_of(role, shape, fact, settings)
            need += size if _size(folder / "arrays" / f"{file_name(case.id)}.{role}.npy") < size else 0
    return files.require_room(folder, need, "Free space there, or set data.store to a folder on another disk.")


def _bytes_of(role: str, shape: Sequence[int], fact: CaseProperties, settings: config.Config) -> int:
    """Bytes of the numbers of an array of the store."""
    kind = settings.roles.get(role, "image")
    if role != "image" and kind in MASKED:
        return math.prod(shape[1:]) * label_dtype(_rules(settings.data, kind)).itemsize
    dtype = np.dtype(fact.dtypes[role])
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
            raise UserError(f"{folder}: the store may not be written here ({error.strerror}). Set data.store to another folder.") from None
        raise


def _stored(case: Case, fact: CaseProperties, settings: config.Config, folder: Path) -> CachedCase:
    if fact.problems or fact.scale is None:
        raise UserError(
            f"{case.image[0]}: cannot be stored: {fact.problems[0][1] if fact.problems else 'it was not read'}. Mend the file first."
        )
    key = _stored_key(case, fact, settings)
    manifest = folder / f"{file_name(case.id)}.json"
    volumes = known_volumes(manifest, key)
    if volumes is not None and _without_sums(manifest):
        if _still_right(case, fact, settings, volumes):
            with _unless_read_only():
                write_manifest(manifest, key, volumes)
        else:
            logger.warning("%s: its arrays hold other values than its files, as they are read today. They are made again", manifest)
            volumes = None
    if volumes is None:
        volumes = _write_volumes(case, fact, settings, folder)
        write_manifest(manifest, key, volumes)
    targets = {role: volumes[role] for role in case.targets}
    return CachedCase(case=case, image=volumes["image"], targets=targets, scale=fact.scale, properties=fact)


def _stored_key(case: Case, fact: CaseProperties, settings: config.Config) -> dict[str, Any]:
    """All that the arrays of a case depend on."""
    data = settings.data
    kinds = {role: settings.roles.get(role, "image") for role in case.targets}
    stamps = {role: [_stamp(path) for path in paths] for role, paths in _roles(case).items()}
    rules = {"classes": data.classes, "ignore_label": data.ignore_label, "binarise": _cut(data)}
    labels = rules if set(MASKED) & set(kinds.values()) else {}
    return {"format": FORMAT, "content": fact.content, "files": stamps, "targets": kinds, **labels}


def missing(cases: Sequence[Case], properties: Sequence[CaseProperties], settings: config.Config, folder: Path) -> list[str]:
    """Ids of cases of which :func:`build` would have to write arrays."""
    manifests = {
        c.id: (folder / "arrays" / f"{file_name(c.id)}.json", _stored_key(c, f, settings)) for c, f in zip(cases, properties, strict=True)
    }
    return [name for name, (manifest, key) in manifests.items() if known_volumes(manifest, key) is None]


def write_manifest(manifest: Path, key: Mapping[str, Any], volumes: Mapping[str, Volume]) -> None:
    """Write down what the arrays beside ``manifest`` were made from, and their sums, for :func:`known_volumes`."""
    arrays = {
        role: {**dataclasses.asdict(v), "path": v.path.name, "bytes": v.path.stat().st_size, "sum": files.checksum(v.path)}
        for role, v in volumes.items()
    }
    files.write_json(manifest, {"key": key, "arrays": arrays})


def known_volumes(manifest: Path, key: Mapping[str, Any]) -> dict[str, Volume] | None:
    """Arrays that the manifest describes, if they were made from what ``key`` says and none is missing, torn or damaged; else None.

    Damage is said, since whatever was trained on it is in doubt. Older manifests hold no sums: their arrays are taken as they are.
    """
    try:
        document = files.read_document(manifest, documents.Manifest, "")
        if document["key"] != _jsonable(key):
            return None
        arrays = {role: (manifest.with_name(entry["path"]), entry) for role, entry in document["arrays"].items()}
        if any(path.stat().st_size != entry["bytes"] for path, entry in arrays.values()):
            return None
        damaged = [path for path, entry in arrays.values() if "sum" in entry and files.checksum(path) != entry["sum"]]
        for path in damaged:
            logger.warning("%s: is damaged: its content is not what was written. It is made again", path)
        known = {role: Volume(path=path, shape=tuple(entry["shape"]), dtype=entry["dtype"]) for role, (path, entry) in arrays.items()}
        return None if damaged else known
    except (files.FileError, OSError, KeyError, TypeError, ValueError, AttributeError):  # no manifest of ours
        return None


def _without_sums(manifest: Path) -> bool:
    return any("sum" not in entry for entry in files.read_json(manifest)["arrays"].values())


def _still_right(case: Case, fact: CaseProperties, settings: config.Config, volumes: Mapping[str, Volume]) -> bool:
    """Whether arrays hold what is read from the case's files today: older ones were made before some files were read as they are now."""
    try:
        if content_hash(np.asarray(volumes["image"].array)) != fact.content:
            return False
        return all(np.array_equal(_target_array(case, role, settings), volumes[role].array) for role in case.targets)
    except (OSError, ValueError):  # no array at all
        return False


def _target_array(case: Case, role: str, settings: config.Config) -> np.ndarray:
    """A target as the store keeps it."""
    kind, path, data = settings.roles.get(role, "image"), case.targets[role], settings.data
    return read_labels(path, _rules(data, kind)) if kind in MASKED else _load_target(path, data, labels=False)[0]


def _write_volumes(case: Case, fact: CaseProperties, settings: config.Config, folder: Path) -> dict[str, Volume]:
    image, _ = load_image(case, settings.data.dims)
    if content_hash(image) != fact.content:
        raise UserError(f"{case.image[0]}: changed while it was being prepared. Run the command again.")
    volumes = {"image": save(folder / f"{file_name(case.id)}.image.npy", image)}
    for role in case.targets:
        volumes[role] = save(folder / f"{file_name(case.id)}.{role}.npy", _target_array(case, role, settings))
    return volumes


def save(path: Path, array: np.ndarray) -> Volume:
    """Write ``array`` ``(C, *S)`` as ``.npy``, whole or not at all, and return its handle."""
    files.write(path, array, dims=array.ndim - 1)
    return Volume(path=path, shape=tuple(int(n) for n in array.shape), dtype=str(array.dtype))


def file_name(case_id: str) -> str:
    """File name for an id; a very long one is shortened and made unique again by its hash."""
    raw = os.fsencode(case_id)
    return case_id if len(raw) <= 200 else raw[:150].decode(errors="ignore") + "-" + hashlib.sha256(raw).hexdigest()[:16]
