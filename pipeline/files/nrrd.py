"""NRRD (.nrrd, and .nhdr with its pixels beside it), the usual format of 3D Slicer.

Read are raw, gzip and bzip2 pixels of one file; one .nrrd is written. Arrays have the axis order of
the file, ``(C, X, Y, Z)``, as those of NIfTI. Specification: teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np

from pipeline.files import frames
from pipeline.files.errors import FileError
from pipeline.files.frames import AGAIN, Frame, Header, Payload
from pipeline.records import Geometry

LONGEST = 2**20
"""Most bytes of a header; those of diffusion images have some 20 000."""

TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        *("longlong", "long long", "long long int", "signed long long"),
        *("signed long long int", "int64", "int64_t"),
    ),
    "u8": (*("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),),
    "f4": ("float",),
    "f8": ("double",),
}
"""Names of each number type."""

ENCODINGS = {"raw": "raw", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2"}

SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
"""Signs that bring a world to LPS."""

COMPONENTS = frozenset(
    (
        *("list", "vector", "covariant-vector", "normal", "point", "scalar", "stub"),
        *("rgb-color", "hsv-color", "xyz-color", "rgba-color", "2-vector", "3-color"),
        *("4-color", "3-vector", "3-gradient", "3-normal", "4-vector"),
    )
)
"""Kinds of an axis that are channels."""

SPACE_KINDS = frozenset(("domain", "space", "none", "???"))
"""Kinds of an axis of space."""

KNOWN = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
"""Other spellings of fields."""


def probe(path: Path, dims: int) -> tuple[tuple[int, ...], str]:
    """Check the header of an NRRD file, and the size of its pixels.

    Args:
        path: ``.nrrd`` or ``.nhdr`` file.
        dims: number of space axes, 2 or 3.

    Returns:
        Shape ``(C, *S)`` and name of the dtype.

    Raises:
        FileError: where the file is damaged, truncated or has other axes.
    """
    return frames.describe(path, _header(path), dims)


def geometry(path: Path, dims: int) -> Geometry:
    """Read where the image lies.

    Args:
        path: ``.nrrd`` or ``.nhdr`` file.
        dims: number of space axes, 2 or 3.

    Returns:
        Geometry of format ``itk``.

    Raises:
        FileError: as :func:`probe`.
    """
    header = _header(path)
    frames.describe(path, header, dims)
    return frames.geometry_of(header.frame, dims)


def read(path: Path, dims: int, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Read an NRRD file to its last byte.

    Args:
        path: ``.nrrd`` or ``.nhdr`` file.
        dims: number of space axes, 2 or 3.
        labels: not used; other formats read label maps differently.

    Returns:
        Array ``(C, X, Y, Z)`` or ``(C, X, Y)``, and its geometry.

    Raises:
        FileError: as :func:`probe`, and where the array does not fit into memory.
    """
    header = _header(path)
    return frames.load(path, header, dims), frames.geometry_of(header.frame, dims)


def pixels_file(path: Path) -> Path:
    """File that holds the pixels.

    Args:
        path: ``.nrrd`` or ``.nhdr`` file.

    Returns:
        The file itself, or the one that it names.

    Raises:
        FileError: where the header is damaged or names what may not be read.
    """
    return _header(path).payload.path


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write a compressed ``.nrrd``.

    Args:
        path: file to write.
        array: ``(C, *S)``; channels become the first axis, of kind vector.
        geometry: of MetaImage, NRRD, DICOM or NIfTI; of another format: spacing 1 and no place.
    """
    frame = frames.frame_of(geometry, array.ndim - 1)
    kind = "float32" if array.dtype == np.float16 else array.dtype.name
    size, data = frames.in_file_order(array, frame)
    count, several = len(size), len(array) > 1
    directions = [
        f"({','.join(frames.row([s * x]) for x in axis)})"
        for s, axis in zip(frame.spacing, frame.directions, strict=True)
    ]
    lines = [
        "NRRD0004",
        f"type: {WRITTEN[kind]}",
        f"dimension: {count + several}",
        "space: left-posterior-superior"
        if frame.placed and count == 3
        else f"space dimension: {count}",
        f"sizes: {' '.join(map(str, [len(array)] * several + size))}",
        f"space directions: {' '.join(['none'] * several + directions)}",
        f"kinds: {' '.join(['vector'] * several + ['domain'] * count)}",
        "endian: little",
        "encoding: gzip",
        *([f"space units: {' '.join([_quoted(frame.unit)] * count)}"] if frame.unit else []),
        f"space origin: ({','.join(map(frames.row, ([x] for x in frame.origin)))})",
    ]
    head = "".join(f"{line}\n" for line in lines) + "\n"
    path.write_bytes(head.encode() + gzip.compress(data, 6, mtime=0))


WRITTEN = {
    np.dtype(kind).name: next((n for n in names if n.startswith("float")), names[-1])
    for kind, names in TYPES.items()
} | {"int8": "int8", "float64": "double", "float32": "float"}
"""Name of each type that is written."""


def _quoted(unit: str) -> str:
    return '"' + "".join(c for c in unit if c.isprintable() and c not in '"\\') + '"'


def _header(path: Path) -> Header:
    """What the fields of a header mean."""
    fields, end = _fields(path)
    for key in ("type", "dimension", "sizes", "encoding"):
        if key not in fields:
            raise FileError(path, f"has no field {key!r} in its header", AGAIN)
    (count,) = frames.whole_numbers(path, "dimension", fields["dimension"], 1, 1)
    size = frames.whole_numbers(path, "sizes", fields["sizes"], count)
    channel = _channel_axis(path, fields, count)
    if count - (channel is not None) not in (2, 3):
        raise FileError(
            path,
            f"has {count} axes ({'x'.join(map(str, size[:8]))}) where 2 or 3 of space are needed",
            "Write each volume of the series to a file of its own, or call its channels a vector"
            " (kinds)",
        )
    return Header(
        shape=size,
        channel=channel,
        dtype=_dtype(path, fields),
        frame=_frame(path, fields, [n for n in range(count) if n != channel]),
        payload=_payload(path, fields, end),
    )


def _dtype(path: Path, fields: dict[str, str]) -> np.dtype:
    name = " ".join(fields["type"].lower().split())
    kind = next((kind for kind, names in TYPES.items() if name in names), None)
    if kind is None:
        raise FileError(
            path,
            f"holds values of type {fields['type'][:40]!r}",
            "Convert it to an integer or real number type",
        )
    order = fields.get("endian", "little" if kind[1] == "1" else "").lower()
    if order not in ("little", "big"):
        raise FileError(path, "does not say its byte order ('endian: little' or 'big')", AGAIN)
    return np.dtype((">" if order == "big" else "<") + kind)


def _channel_axis(path: Path, fields: dict[str, str], count: int) -> int | None:
    """The axis that is no axis of space; None where all are."""
    kinds = fields.get("kinds", "??? " * count).lower().split()
    if len(kinds) != count:
        raise FileError(path, f"has {len(kinds)} 'kinds' for {count} axes", AGAIN)
    outside = [n for n, kind in enumerate(kinds) if kind not in SPACE_KINDS]
    vectors = _vectors(path, fields.get("space directions", ""))
    if vectors:
        if len(vectors) != count:
            raise FileError(path, f"has {len(vectors)} 'space directions' for {count} axes", AGAIN)
        without = [n for n, vector in enumerate(vectors) if vector is None]
        if not set(outside) <= set(without):
            raise FileError(path, "has space directions of axes that are no space (kinds)", AGAIN)
        outside = without
    if not outside:
        return None
    kind = kinds[outside[0]]
    if len(outside) > 1 or kind not in COMPONENTS | {"none", "???"}:
        shown = ", ".join(kinds[n] for n in outside[:8])
        raise FileError(
            path,
            f"has axes of the kind {shown[:80]} beside space; one of channels is the most",
            "Write each volume of the series to a file of its own",
        )
    return outside[0]


def _vectors(path: Path, text: str) -> list[tuple[float, ...] | None]:
    """Vectors such as ``(1,0,0)``; None for ``none``."""
    parts = re.findall(r"\([^()]*\)|none", text)
    if re.sub(r"\([^()]*\)|none", "", text).strip():
        raise FileError(path, f"has vectors of {text[:80]!r} in its header", AGAIN)
    return [
        None
        if part == "none"
        else frames.numbers(path, "space directions", part[1:-1].replace(",", " "))
        for part in parts
    ]


def _frame(path: Path, fields: dict[str, str], axes: list[int]) -> Frame:
    """Where the space axes lie, in LPS."""
    count = len(axes)
    signs = SPACES.get(fields.get("space", "").lower())
    steps = np.array(_steps(path, fields, axes))
    origin = np.zeros(count)
    if "space origin" in fields:
        found = _vectors(path, fields["space origin"])
        if len(found) != 1 or found[0] is None or len(found[0]) != count:
            raise FileError(path, f"has a space origin that is no vector of {count} numbers", AGAIN)
        origin = np.array(found[0])
    if signs is not None and count == 3:
        steps, origin = steps * signs + 0.0, origin * signs + 0.0
    with np.errstate(all="ignore"):
        spacing = np.sqrt((steps**2).sum(1))
        directions = steps / spacing[:, None]
    if not (np.isfinite(directions).all() and np.isfinite(spacing).all()):
        raise FileError(path, "has space directions of length 0, or beyond all numbers", AGAIN)
    frame = Frame(
        spacing=tuple(spacing.tolist()),
        origin=tuple(origin.tolist()),
        directions=tuple(map(tuple, directions.tolist())),
        placed=signs is not None and count == 3 and "space directions" in fields,
        unit=_unit(fields),
    )
    return frames.check_frame(path, frame)


def _steps(path: Path, fields: dict[str, str], axes: list[int]) -> list[list[float]]:
    """The vector from one voxel to the next along each space axis."""
    count = len(axes)
    vectors = _vectors(path, fields.get("space directions", ""))
    if vectors:
        found = [vector for vector in vectors if vector is not None]
        if any(len(vector) != count for vector in found):
            raise FileError(
                path,
                f"has {count} axes in a space of {len(found[0])} axes",
                "Write it again with as many axes as its space has",
            )
        return [list(vector) for vector in found]
    spacings = [1.0] * count
    if "spacings" in fields:
        parts = fields["spacings"].split()
        if len(parts) <= max(axes):
            raise FileError(path, f"has {len(parts)} 'spacings', too few for its axes", AGAIN)
        own = [p if p.lower() != "nan" else "1" for p in (parts[n] for n in axes)]
        spacings = list(frames.numbers(path, "spacings", " ".join(own), count))
    if any(s <= 0 for s in spacings):
        raise FileError(path, f"has spacings of {fields['spacings'][:80]}, not all above 0", AGAIN)
    return [[s if i == n else 0.0 for i in range(count)] for n, s in enumerate(spacings)]


def _unit(fields: dict[str, str]) -> str:
    """The first unit of space; empty for millimetres and none."""
    found = re.findall(r'"([^"]*)"', fields.get("space units", fields.get("units", "")))
    unit = next((u for u in found if u), "")
    return "" if unit == "mm" or not unit.isprintable() else unit[:40]


def _payload(path: Path, fields: dict[str, str], end: int) -> Payload:
    """Where the pixels are; ``end`` is the end of the header."""
    encoding = ENCODINGS.get(fields["encoding"].lower())
    if encoding is None:
        raise FileError(
            path,
            f"has pixels in the encoding {fields['encoding'][:40]!r}",
            "Write it with the encoding raw or gzip",
        )
    (lines,) = frames.whole_numbers(path, "line skip", fields.get("line skip", "0"), 1)
    (skip,) = frames.whole_numbers(path, "byte skip", fields.get("byte skip", "0"), 1, -1)
    name = fields.get("data file")
    if lines or (skip and (encoding != "raw" or name is None)):
        raise FileError(
            path,
            "has pixels that begin behind skipped lines or bytes of a stream",
            "Write it again as one .nrrd",
        )
    if name is None:
        return Payload(path=path, skip=end, encoding=encoding)
    return Payload(path=frames.detached(path, name), skip=skip, encoding=encoding)


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Fields by name, and the byte at which the pixels begin: behind the first empty line."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        if not re.fullmatch(rb"NRRD000[1-5]\s*", stream.readline(80)):
            raise FileError(path, "is no NRRD file: it does not begin with NRRD0004")
        while line := stream.readline(LONGEST):
            text = line.decode("latin-1").rstrip("\r\n")
            if stream.tell() > LONGEST:
                raise FileError(path, f"has a header of more than {LONGEST} bytes", AGAIN)
            if not text:
                break
            if text.startswith("#") or re.match(r"[^:]*:=", text):
                continue
            key, sign, value = text.partition(":")
            key = KNOWN.get(key.strip().lower(), key.strip().lower())
            if not sign or not key.isascii() or not key.isprintable():
                raise FileError(path, f"is damaged: its header has the line {text[:40]!r}", AGAIN)
            if key in fields:
                raise FileError(path, f"has the field {key[:40]} twice in its header", AGAIN)
            fields[key] = value.strip()
        return fields, stream.tell()
