"""Arrays with an origin, a spacing and directions, as MetaImage, NRRD and DICOM describe them.

Their world is LPS: x grows to the left, y to the back, z to the head. Affines are RAS+, as NIfTI's,
so that files of all four formats can be compared and predicted by one model. Headers are read here
and not by ITK, whose parsers trust them; its own reading is the reference in the tests.
"""

from __future__ import annotations

import base64
import bz2
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from pipeline.files.errors import FileError, check_regular, wrong_axes
from pipeline.files.limits import DEFLATE, check_memory, check_ratio, check_values
from pipeline.records import MILLIMETRES, Geometry

FORMAT = "itk"
"""Format of the geometry of all these files."""

AGAIN = "Mend its header, or export it again"
"""Suggestion for headers that are wrong."""

NIFTI_UNITS = {1: 1000.0, 3: 1e-3}
"""Millimetres in NIfTI's code of the unit of space, where they are not 1."""

PADDING = 512
"""Bytes behind the pixels that are no sign of a wrong header, such as a line feed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where an array lies: one spacing, one origin and one direction (a unit vector) an axis.

    Args:
        spacing: distance of voxels along each axis, in ``unit``.
        origin: centre of the first voxel, LPS.
        directions: one row an axis, LPS.
        placed: whether the file says how the axes lie in the world.
        unit: name of the unit; empty: millimetres.
    """

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    directions: tuple[tuple[float, ...], ...]
    placed: bool = True
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """Where the pixels of a header are, and how.

    Args:
        path: file that holds them.
        skip: bytes before them; -1: they are the last ones of the file.
        encoding: ``raw``, ``gzip`` (also for zlib) or ``bzip2``.
        size: bytes that they take in the file; None: all that follow.
    """

    path: Path
    skip: int
    encoding: str = "raw"
    size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a MetaImage or NRRD file declares.

    Args:
        shape: sizes along the axes of the file, the fastest first.
        channel: which of them are the channels; None: none.
        dtype: number type, with its byte order.
        frame: where the space axes lie.
        payload: where the pixels are.
    """

    shape: tuple[int, ...]
    channel: int | None
    dtype: np.dtype
    frame: Frame
    payload: Payload


def describe(path: Path, header: Header, dims: int) -> tuple[tuple[int, ...], str]:
    """Check what a header declares against the file of its pixels.

    Args:
        path: the file.
        header: its header.
        dims: number of space axes, 2 or 3.

    Returns:
        Shape ``(C, *S)`` and name of the dtype.

    Raises:
        FileError: for other axes, a truncated file, or one that is larger than it should be.
    """
    check_values(path, header.shape, header.dtype)
    space = [n for axis, n in enumerate(header.shape) if axis != header.channel]
    if not dims <= len(space) <= 3 or any(n != 1 for n in space[dims:]):
        raise wrong_axes(path, header.shape, dims)
    need = math.prod(header.shape) * header.dtype.itemsize
    _check_size(path, header.payload, need)
    channels = 1 if header.channel is None else header.shape[header.channel]
    return (channels, *space[:dims]), header.dtype.newbyteorder("=").name


def _check_size(path: Path, payload: Payload, need: int) -> None:
    """Raise FileError where the pixels cannot be, or cannot be all, that a header announces."""
    whole = check_regular(payload.path).st_size
    have = whole - max(0, payload.skip)
    if payload.size is not None and payload.size > have:
        raise FileError(
            path,
            f"is truncated: its header announces {payload.size} compressed bytes, there are {have}",
        )
    if payload.encoding != "raw":
        most = DEFLATE if payload.encoding == "gzip" else need
        check_ratio(path, need, have if payload.size is None else payload.size, most)
        return
    if have < need:
        raise FileError(
            path, f"is truncated: its header announces {need} bytes of pixels, there are {have}"
        )
    if payload.skip >= 0 and have > need + PADDING:
        raise FileError(
            path,
            f"has {have} bytes of pixels where its header announces {need}",
            "Its header and its pixels do not belong together: export it again",
        )


def load(path: Path, header: Header, dims: int) -> np.ndarray:
    """Read the pixels.

    Args:
        path: the file.
        header: its header.
        dims: number of space axes, 2 or 3.

    Returns:
        Array ``(C, X, Y, Z)`` or ``(C, X, Y)``.

    Raises:
        FileError: as :func:`describe`; where the pixels end early or do not fit into memory.
    """
    shape, _ = describe(path, header, dims)
    check_memory(path, shape, header.dtype)
    need = math.prod(header.shape) * header.dtype.itemsize
    data = _pixels(path, header.payload, need)
    array = np.frombuffer(data, header.dtype).reshape(header.shape[::-1]).T
    array = array[None] if header.channel is None else np.moveaxis(array, header.channel, 0)
    return np.array(array.reshape(shape), order="C")  # a copy, which may be changed


def _pixels(path: Path, payload: Payload, need: int) -> bytes:
    """Exactly ``need`` bytes of pixels."""
    with payload.path.open("rb") as stream:
        if payload.skip < 0:
            stream.seek(-need, os.SEEK_END)
        else:
            stream.seek(payload.skip)
        if payload.encoding == "raw":
            data = stream.read(need)
            if len(data) < need:
                raise FileError(path, f"is truncated: {len(data)} of {need} bytes are there")
            return data
        packed = stream.read() if payload.size is None else stream.read(payload.size)
    # 47: a header of zlib or gzip, whichever is there.
    decoder = zlib.decompressobj(47) if payload.encoding == "gzip" else bz2.BZ2Decompressor()
    data = decoder.decompress(packed, need + 1)
    if len(data) == need and not decoder.eof:  # its checksum is compared at the end only
        data += decoder.decompress(b"", 1)
    if len(data) > need:
        problem = f"unpacks to more than the {need} bytes of pixels that its header announces"
        raise FileError(
            path, problem, "Its header and its pixels do not belong together: export it again"
        )
    if len(data) < need or not decoder.eof:
        raise FileError(
            path, f"is truncated: it unpacks to {len(data)} of {need} bytes, or is cut off there"
        )
    return data


def detached(path: Path, name: str) -> Path:
    """File of pixels that a header names.

    Args:
        path: the header.
        name: name in it.

    Returns:
        Path of the pixels, which lie in the folder of the header.

    Raises:
        FileError: for several files, one elsewhere, or none.
    """
    if "%" in name or not name or name.split()[0] == "LIST":
        raise FileError(
            path,
            f"has its pixels in several files ({name[:80]!r})",
            "Write it as one file, .mha or .nrrd",
        )
    real = Path(os.path.realpath(path)).parent
    found = Path(os.path.realpath(real / name))
    if "\0" in name or not found.is_relative_to(real):
        raise FileError(
            path,
            f"names {name[:80]!r} as the file of its pixels, which is outside its folder",
            "Copy that file beside it, and name it without a folder",
        )
    if not os.path.lexists(found):
        raise FileError(
            path,
            f"names {name[:80]!r} as the file of its pixels, which does not exist",
            "Copy both files",
        )
    if not os.path.isfile(found):
        raise FileError(
            path,
            f"names {name[:80]!r} as the file of its pixels, which is no regular file",
            "Copy both files",
        )
    return found


# --- numbers and units in headers -----------------------------------------------------------------


def numbers(path: Path, key: str, text: str, count: int | None = None) -> tuple[float, ...]:
    """Finite numbers of a header field.

    Args:
        path: the file.
        key: name of the field.
        text: its value, numbers between blanks.
        count: how many there must be; None: any number.

    Returns:
        The numbers.

    Raises:
        FileError: for anything else.
    """
    try:
        values = tuple(float(part) for part in text.split())
    except ValueError:
        values = (math.nan,)
    if not all(math.isfinite(v) for v in values) or (count is not None and len(values) != count):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise FileError(
            path, f"has the field {key} of {text[:80]!r}, where {wanted} are needed", AGAIN
        )
    return values


def whole_numbers(
    path: Path, key: str, text: str, count: int | None = None, least: int = 0
) -> tuple[int, ...]:
    """Whole numbers of a header field.

    Args:
        path: the file.
        key: name of the field.
        text: its value, numbers between blanks.
        count: how many there must be; None: any number.
        least: the smallest that is allowed.

    Returns:
        The numbers.

    Raises:
        FileError: for anything else.
    """
    parts = text.split()
    good = all(p.lstrip("+-").isdecimal() and len(p) < 20 and int(p) >= least for p in parts)
    if not good or (count is not None and len(parts) != count):
        wanted = "whole numbers" if count is None else f"{count} whole numbers"
        raise FileError(
            path,
            f"has the field {key} of {text[:80]!r}, where {wanted} from {least} on are needed",
            AGAIN,
        )
    return tuple(int(p) for p in parts)


def check_frame(path: Path, frame: Frame) -> Frame:
    """Check that spacings are positive and directions span the space.

    Args:
        path: the file.
        frame: what its header says.

    Returns:
        The frame.

    Raises:
        FileError: where they do not.
    """
    if any(s <= 0 for s in frame.spacing):
        raise FileError(
            path, f"has a spacing of {' x '.join(map(str, frame.spacing))}, not all above 0", AGAIN
        )
    with np.errstate(all="ignore"):
        volume = abs(np.linalg.det(np.array(frame.directions)))
    if not volume > SPAN:
        raise FileError(
            path, "has directions of its axes that do not span the space: two are parallel", AGAIN
        )
    return frame


SPAN = 1e-4
"""Smallest volume that directions span: 1 for right angles, 0 where two are parallel."""


def millimetres(unit: str) -> float:
    """Millimetres in a unit.

    Args:
        unit: its name; empty or unknown: millimetres, as ITK takes it.

    Returns:
        The factor.
    """
    return MILLIMETRES.get(unit.lower(), 1.0)


# --- geometries -----------------------------------------------------------------------------------


def geometry_of(frame: Frame, dims: int) -> Geometry:
    """Geometry of an array with a frame.

    Args:
        frame: where it lies.
        dims: number of its space axes, 2 or 3.

    Returns:
        Geometry of format ``itk``, whose affine is RAS+ in millimetres.
    """
    count = len(frame.spacing)
    affine = np.eye(4)
    affine[:count, :count] = np.array(frame.directions).T * np.array(frame.spacing)
    affine[:count, 3] = frame.origin
    affine[:3] *= millimetres(frame.unit)
    affine[:2] *= -1
    affine += 0.0  # no negative zeros
    meta = {
        "dims": dims,
        "affine": affine.tolist(),
        "spacing": list(frame.spacing),
        "origin": list(frame.origin),
        "directions": [list(row) for row in frame.directions],
        "placed": frame.placed,
        "unit": frame.unit,
    }
    return Geometry(format=FORMAT, meta=meta)


def frame_of(geometry: Geometry, dims: int) -> Frame:
    """The frame to write an array with.

    Args:
        geometry: of MetaImage, NRRD or DICOM, or of NIfTI; of another format: no place.
        dims: number of space axes of the array.

    Returns:
        A frame of two or three axes.
    """
    meta = geometry.meta
    if geometry.format == FORMAT and len(meta["spacing"]) >= dims:
        return Frame(
            spacing=tuple(meta["spacing"]),
            origin=tuple(meta["origin"]),
            directions=tuple(tuple(row) for row in meta["directions"]),
            placed=meta["placed"],
            unit=meta["unit"],
        )
    affine = _nifti_affine(meta) if geometry.format == "nifti" else None
    if affine is None:
        axes = np.eye(dims).tolist()
        return Frame(
            spacing=(1.0,) * dims,
            origin=(0.0,) * dims,
            directions=tuple(map(tuple, axes)),
            placed=False,
        )
    affine[:2] *= -1
    affine += 0.0
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))
    directions = (affine[:3, :3] / spacing).T
    return Frame(
        spacing=tuple(spacing.tolist()),
        origin=tuple(affine[:3, 3].tolist()),
        directions=tuple(map(tuple, directions.tolist())),
    )


def _nifti_affine(meta: Mapping[str, Any]) -> np.ndarray | None:
    """Affine of a NIfTI file in millimetres; None for one that no frame can be made of."""
    affine = np.array(
        [[math.nan if x is None else x for x in row] for row in meta["affine"]], float
    )
    block = base64.b64decode(meta["header"])
    first = len(block) == nibabel.Nifti1Header.sizeof_hdr
    header: Any = (nibabel.Nifti1Header if first else nibabel.Nifti2Header)(
        block, endianness=meta["endian"], check=False
    )
    affine[:3] *= NIFTI_UNITS.get(int(header["xyzt_units"]) % 8, 1.0)
    good = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0
    return affine if good else None


def is_moved(frame: Frame) -> bool:
    """Whether a frame says more than its spacing.

    Args:
        frame: any frame.

    Returns:
        False for origin 0 and directions along the axes.
    """
    axes = np.eye(len(frame.spacing))
    return any(frame.origin) or not np.array_equal(np.array(frame.directions), axes)


def in_file_order(array: np.ndarray, frame: Frame) -> tuple[list[int], bytes]:
    """Sizes and bytes of ``(C, *S)``, channels fastest, as both formats store vectors.

    Args:
        array: ``(C, X, Y, Z)`` or ``(C, X, Y)``; float16 is written as float32.
        frame: its number of axes is that of the file.

    Returns:
        Sizes of the space axes, and the bytes in little-endian order.
    """
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    size = [*array.shape[1:], *[1] * (len(frame.spacing) - array.ndim + 1)]
    return size, array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="F")


def row(values: Sequence[float]) -> str:
    """Numbers for a header, to the last bit.

    Args:
        values: finite numbers.

    Returns:
        Text with blanks between.

    Example:
        >>> row([1.0, 0.1])
        '1 0.1'
    """
    return " ".join(repr(float(v)).removesuffix(".0") for v in values)
