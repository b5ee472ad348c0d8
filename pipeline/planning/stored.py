"""Fingerprints as JSON documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pipeline import documents, files
from pipeline.planning.fingerprint import FORMAT, CaseFacts, ChannelFacts, Fingerprint, Oddity

T = TypeVar("T")

AGAIN = "Make it again with pipeline.plan"

BY_VALUE = ("voxels", "components", "centres", "extents")
"""Fields of a case whose keys are label values."""


def as_json(fingerprint: Fingerprint) -> dict[str, Any]:
    """A fingerprint as a JSON document (:class:`pipeline.documents.Fingerprint`).

    Args:
        fingerprint: of a data set.

    Returns:
        Plain Python data for :func:`pipeline.files.write_json`.
    """
    return {"format": FORMAT, **_plain(dataclasses.asdict(fingerprint))}


def _plain(value: Any) -> Any:
    """Tuples as lists, keys as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def read(path: Path) -> Fingerprint:
    """Read a kept fingerprint.

    Args:
        path: JSON file.

    Returns:
        The fingerprint.

    Raises:
        FileError: where it cannot be read, follows no such document, or is of another format.
    """
    document = files.read_document(path, dict[str, Any], AGAIN, "is no fingerprint")
    return from_json(document, path)


def from_json(document: Mapping[str, Any], path: Path) -> Fingerprint:
    """A fingerprint from its JSON document.

    Args:
        document: parsed JSON.
        path: its file, for messages.

    Returns:
        The fingerprint.

    Raises:
        FileError: where it follows no such document, or is of another format.
    """
    if document.get("format") != FORMAT:
        problem = (
            f"holds the format {files.shown(document.get('format'))} of fingerprints, this version"
            f" reads {FORMAT}"
        )
        raise files.FileError(path, problem, AGAIN)
    files.checked(path, document, documents.Fingerprint, AGAIN)
    try:
        found = _fingerprint(document)
        _require_axes(found)
    except ValueError as error:
        raise files.FileError(path, f"is no fingerprint: {error}", AGAIN) from None
    return found


def _fingerprint(document: Mapping[str, Any]) -> Fingerprint:
    """The records of a checked document; ValueError for keys that are no label values."""
    fields = {f.name: document[f.name] for f in dataclasses.fields(Fingerprint)}
    regions, order = fields["regions"], fields["regions_class_order"]
    fields.update(
        cases=tuple(map(_case, fields["cases"])),
        channels=tuple(_record(ChannelFacts, entry) for entry in fields["channels"]),
        class_names=_by_value(fields["class_names"], str),
        regions=None if regions is None else {n: tuple(v) for n, v in regions.items()},
        regions_class_order=None if order is None else tuple(order),
        oddities=tuple(_record(Oddity, entry) for entry in fields["oddities"]),
    )
    return Fingerprint(**fields)


def _record(kind: type[T], entry: Mapping[str, Any]) -> T:
    """A record from the keys of a document that are its fields."""
    names = [f.name for f in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    return kind(**{name: entry[name] for name in names})


def _case(entry: Mapping[str, Any]) -> CaseFacts:
    """One case."""
    spacing = entry["spacing"]
    tables = {
        "voxels": _by_value(entry["voxels"], int),
        "components": _by_value(entry["components"], int),
        "centres": _by_value(entry["centres"], tuple),
        "extents": _by_value(entry["extents"], tuple),
    }
    lists = {
        "shape": tuple(entry["shape"]),
        "box": tuple(entry["box"]),
        "spacing": None if spacing is None else tuple(spacing),
    }
    return _record(CaseFacts, {**entry, **tables, **lists})


def _by_value(table: Mapping[str, Any], make: Callable[[Any], T]) -> dict[int, T]:
    """A mapping by label value."""
    found = {}
    for key, entry in table.items():
        value = int(key) if len(key) < 20 else None
        if value is None or str(value) != key:
            raise ValueError(f"{files.shown(key)} is no label value")
        found[value] = make(entry)
    return found


def _require_axes(fingerprint: Fingerprint) -> None:
    """Raise ValueError where a case has other axes than the data set."""
    dims = fingerprint.dims
    for case in fingerprint.cases:
        rows = [case.shape, case.box, case.spacing, case.codes]
        rows += [*case.centres.values(), *case.extents.values()]
        if any(row is not None and len(row) != dims for row in rows):
            raise ValueError(f"case {case.id} has other than {dims} axes")
