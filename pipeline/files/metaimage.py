"""MetaImage (.mha, and .mhd with its pixels beside it), the usual format of ITK's programs.

Read are binary pixels, compressed or not, of one file; one .mha is written. Arrays have the axis
order of the file, ``(C, X, Y, Z)``, as those of NIfTI. Specification: itk.org/Wiki/MetaIO.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from pipeline.files import frames
from pipeline.files.errors import FileError
from pipeline.files.frames import AGAIN, Frame, Header, Payload
from pipeline.records import Geometry

LONGEST = 2**20
"""Most bytes of a header; usual ones have 500."""

TYPES = {
    "MET_CHAR": "i1",
    "MET_ASCII_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""Number types; a long has 4 bytes here, on every machine."""

WRITTEN = {
    np.dtype(kind).name: name for name, kind in TYPES.items() if name[4:] not in ("ASCII_CHAR",)
} | {"int32": "MET_INT", "uint32": "MET_UINT"}
"""Name of each type that is written."""

ALIASES = {
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "Position": "Offset",
    "Origin": "Offset",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
"""Other names of fields."""


def probe(path: Path, dims: int) -> tuple[tuple[int, ...], str]:
    """Check the header of a MetaImage, and the size of its pixels.

    Args:
        path: ``.mha`` or ``.mhd`` file.
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
        path: ``.mha`` or ``.mhd`` file.
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
    """Read a MetaImage to its last byte.

    Args:
        path: ``.mha`` or ``.mhd`` file.
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
        path: ``.mha`` or ``.mhd`` file.

    Returns:
        The file itself, or the one that it names.

    Raises:
        FileError: where the header is damaged or names what may not be read.
    """
    return _header(path).payload.path


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write a compressed ``.mha``.

    Args:
        path: file to write.
        array: ``(C, *S)``; channels become the components of a voxel.
        geometry: of MetaImage, NRRD, DICOM or NIfTI; of another format: origin 0, spacing 1.
    """
    frame = frames.frame_of(geometry, array.ndim - 1)
    kind = "float32" if array.dtype == np.float16 else array.dtype.name
    size, data = frames.in_file_order(array, frame)
    packed = zlib.compress(data, 6)
    count = len(size)
    fields = {
        "ObjectType": "Image",
        "NDims": str(count),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(len(packed)),
        **({"DistanceUnits": frame.unit} if frame.unit else {}),
        **(
            {
                "TransformMatrix": " ".join(map(frames.row, frame.directions)),
                "Offset": frames.row(frame.origin),
            }
            if frame.placed or count == 2 or frames.is_moved(frame)
            else {}
        ),
        "ElementSpacing": frames.row(frame.spacing),
        "DimSize": " ".join(map(str, size)),
        **({"ElementNumberOfChannels": str(len(array))} if len(array) > 1 else {}),
        "ElementType": WRITTEN[kind],
        "ElementDataFile": "LOCAL",
    }
    head = "".join(f"{key} = {value}\n" for key, value in fields.items())
    path.write_bytes(head.encode() + packed)


def _header(path: Path) -> Header:
    """What the fields of a header mean."""
    fields, end = _fields(path)
    for key in ("NDims", "DimSize", "ElementType"):
        if key not in fields:
            raise FileError(path, f"is no MetaImage, or damaged: it has no field {key}", AGAIN)
    (count,) = frames.whole_numbers(path, "NDims", fields["NDims"], 1, 1)
    size = frames.whole_numbers(path, "DimSize", fields["DimSize"], count)
    (channels,) = frames.whole_numbers(
        path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"), 1, 1
    )
    if count not in (2, 3):
        size_text = "x".join(map(str, size[:8]))
        raise FileError(
            path,
            f"has {count} axes ({size_text}) where 2 or 3 are needed",
            "Write each volume of the series to a file of its own",
        )
    _refuse_unread(path, fields)
    big = _flag(path, fields, "BinaryDataByteOrderMSB")
    kind = fields["ElementType"].removesuffix("_ARRAY")
    if kind not in TYPES:
        raise FileError(
            path,
            f"holds values of type {fields['ElementType'][:40]!r}",
            "Convert it to an integer or real number type",
        )
    return Header(
        shape=size if channels == 1 else (channels, *size),
        channel=None if channels == 1 else 0,
        dtype=np.dtype((">" if big else "<") + TYPES[kind]),
        frame=_frame(path, fields, count),
        payload=_payload(path, fields, end),
    )


def _refuse_unread(path: Path, fields: dict[str, str]) -> None:
    """Raise FileError for pixels as text, and for values that are to be scaled."""
    if not _flag(path, fields, "BinaryData", "True"):
        raise FileError(path, "holds its pixels as text", "Write it with BinaryData = True")
    for key, plain in (
        ("ElementToIntensityFunctionSlope", 1),
        ("ElementToIntensityFunctionOffset", 0),
    ):
        if key in fields and frames.numbers(path, key, fields[key], 1) != (plain,):
            raise FileError(
                path, f"has values that are to be scaled ({key})", "Apply it, and write it again"
            )


def _frame(path: Path, fields: dict[str, str], count: int) -> Frame:
    """Where the array lies; directions are one row an axis, as the file has them."""
    spacing = fields.get("ElementSpacing", fields.get("ElementSize", "1 " * count))
    matrix = fields.get("TransformMatrix", frames.row(np.eye(count).ravel().tolist()))
    values = np.array(frames.numbers(path, "TransformMatrix", matrix, count * count))
    unit = fields.get("DistanceUnits", "")
    frame = Frame(
        spacing=frames.numbers(path, "ElementSpacing", spacing, count),
        origin=frames.numbers(path, "Offset", fields.get("Offset", "0 " * count), count),
        directions=tuple(map(tuple, values.reshape(count, count).tolist())),
        placed=count == 3 and ("TransformMatrix" in fields or "Offset" in fields),
        unit=unit if unit not in ("?", "mm") else "",
    )
    return frames.check_frame(path, frame)


def _payload(path: Path, fields: dict[str, str], end: int) -> Payload:
    """Where the pixels are; ``end`` is the end of the header."""
    packed = _flag(path, fields, "CompressedData")
    size = None
    if packed and "CompressedDataSize" in fields:
        (size,) = frames.whole_numbers(
            path, "CompressedDataSize", fields["CompressedDataSize"], 1, 1
        )
    (skip,) = frames.whole_numbers(path, "HeaderSize", fields.get("HeaderSize", "0"), 1, -1)
    name = fields["ElementDataFile"]
    local = name.upper() == "LOCAL"
    if skip and (local or packed):
        raise FileError(path, f"has a HeaderSize of {skip} beside such pixels", AGAIN)
    return Payload(
        path=path if local else frames.detached(path, name),
        skip=end if local else skip,
        encoding="gzip" if packed else "raw",
        size=size,
    )


def _flag(path: Path, fields: dict[str, str], key: str, default: str = "False") -> bool:
    """A field that is true or false."""
    value = fields.get(key, default)
    if value.lower() not in ("true", "false", "1", "0"):
        raise FileError(path, f"has the field {key} of {value[:40]!r}, not True or False", AGAIN)
    return value.lower() in ("true", "1")


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Fields by name, and the byte at which the pixels begin; ElementDataFile is the last one."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while "ElementDataFile" not in fields:
            line = stream.readline(LONGEST)
            if not line or stream.tell() > LONGEST:
                raise FileError(
                    path, "is no MetaImage, or its header is cut off: it has no ElementDataFile"
                )
            if not line.strip():
                continue
            key, sign, value = line.decode("latin-1").partition("=")
            key = ALIASES.get(key.strip(), key.strip())
            if not sign or not key.isascii() or not key.isprintable():
                raise FileError(
                    path, f"is no MetaImage, or damaged: its header has the line {line[:40]!r}"
                )
            if key in fields:
                raise FileError(path, f"has the field {key[:40]} twice in its header", AGAIN)
            fields[key] = value.strip()
        return fields, stream.tell()
