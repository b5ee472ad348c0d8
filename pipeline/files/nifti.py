"""NIfTI: arrays in the axis order of their file, with the header kept byte for byte."""

from __future__ import annotations

import base64
import contextlib
import gzip
import logging
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from pipeline.files.errors import FileError, silence, wrong_axes
from pipeline.files.frames import FORMAT
from pipeline.files.limits import DEFLATE, check_memory, check_ratio, check_values
from pipeline.files.names import suffix
from pipeline.records import Geometry


def probe(path: Path, dims: int) -> tuple[tuple[int, ...], str]:
    """Check the header of a NIfTI file, and the size of one that is not compressed.

    Args:
        path: ``.nii`` or ``.nii.gz`` file.
        dims: number of space axes, 2 or 3.

    Returns:
        Shape ``(C, *S)`` and name of the dtype after scaling.

    Raises:
        FileError: where the file is damaged, truncated or has other axes.
    """
    return _describe(path, _load(path), dims)


def geometry(path: Path, dims: int) -> Geometry:
    """Read header and affine, without the pixels.

    Args:
        path: ``.nii`` or ``.nii.gz`` file.
        dims: number of space axes, 2 or 3.

    Returns:
        Geometry of format ``nifti``.

    Raises:
        FileError: as :func:`probe`.
    """
    image = _load(path)
    _describe(path, image, dims)
    return _geometry(image, dims)


def read(path: Path, dims: int, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Read a NIfTI file to the end of its stream, with its scaling applied.

    Args:
        path: ``.nii`` or ``.nii.gz`` file.
        dims: number of space axes, 2 or 3.
        labels: not used; other formats read label maps differently.

    Returns:
        Array ``(C, X, Y, Z)`` or ``(C, X, Y)`` in the axis order of the file, and its geometry.

    Raises:
        FileError: as :func:`probe`, and where the array does not fit into memory.
    """
    image = _load(path)
    (channels, *space), dtype = _describe(path, image, dims)
    check_memory(path, (channels, *space), dtype)
    # Scaling may overflow; arrays are checked for NaN and infinity later.
    with np.errstate(all="ignore"):
        if suffix(path) == ".nii.gz":
            with gzip.open(path) as stream:
                array = np.asanyarray(type(image).from_stream(stream).dataobj)
                _read_to_end(path, stream)
        else:
            array = np.asanyarray(image.dataobj).copy()
    return np.moveaxis(array.reshape(*space, channels), -1, 0), _geometry(image, dims)


def _read_to_end(path: Path, stream: gzip.GzipFile) -> None:
    """Read on to the end of the stream, because gzip compares its checksum only there.

    At most BEHIND bytes may follow the pixels.
    """
    rest = 0
    while part := stream.read(2**20):
        rest += len(part)
        if rest > BEHIND:
            problem = (
                f"goes on for more than {BEHIND >> 20} MiB behind the pixels that its header"
                " announces"
            )
            raise FileError(
                path, problem, "Its header and its pixels do not belong together: export it again"
            )


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write a NIfTI file.

    Args:
        path: ``.nii`` or ``.nii.gz`` file to write.
        array: ``(C, *S)``; several channels become the fourth axis. float16 is written as float32.
        geometry: header and affine of a NIfTI file, affine of MetaImage, NRRD or DICOM; of another
            format: identity affine.
    """
    image = _image(array, geometry)
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(path.open("wb"))
        if suffix(path) == ".nii.gz":
            # No name and no time in the gzip header: equal arrays give equal files.
            stream = stack.enter_context(
                gzip.GzipFile("", "wb", compresslevel=6, fileobj=stream, mtime=0)
            )
        image.to_stream(stream)


BEHIND = 2**26
"""Most bytes behind the pixels of a ``.nii.gz`` file: some writers pad their files."""

BEFORE = 2**26
"""Most bytes of extensions before the pixels.

The longest known are DICOM headers and XML of connectomes, of a few MiB.
"""

EXTENSIONS = 10_000
"""Most extensions of a header: files have one or two."""


def _load(path: Path) -> nibabel.Nifti1Image:
    silence("nibabel", "numpy")
    # What nibabel would log about a damaged header is raised here, or repaired by nibabel.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)
    _check_header(path)
    try:
        image = nibabel.load(path)
    except ImageFileError:
        raise FileError(
            path,
            "is no NIfTI file, or its header is damaged",
            "Copy it again, or convert it to .nii.gz",
        ) from None
    except HeaderDataError as error:
        raise FileError(path, f"has a damaged header ({str(error)[:200]})") from None
    if not isinstance(image, nibabel.Nifti1Image):
        raise FileError(
            path, f"is {type(image).__name__}, no single-file NIfTI", "Convert it to .nii.gz"
        )
    return image


def _check_header(path: Path) -> None:
    """Raise FileError for headers on which nibabel would read for ever.

    Those are extensions without an end, and names without an end in the gzip header.
    """
    packed = suffix(path) == ".nii.gz"
    with path.open("rb") as stream:
        head = stream.read(2048)
    if packed:
        head = _gunzip_head(path, head)
    single = head[344:347] in (b"n+1", b"ni1")
    if not single and head[4:7] not in (b"n+2", b"ni2"):
        suggestion = "Copy it again, or convert it to .nii.gz"
        raise FileError(path, "is no NIfTI file, or its header is damaged or cut off", suggestion)
    length = 348 if single else 540
    if len(head) < length:
        raise FileError(path, "is truncated inside its header")
    # As nibabel guesses it: from the number of axes.
    order = (
        "<" if 1 <= int.from_bytes(head[40:42] if single else head[16:24], "little") <= 7 else ">"
    )
    (start,) = struct.unpack_from(order + ("f" if single else "q"), head, 108 if single else 168)
    if not math.isfinite(start) or start < 0 or start > BEFORE:
        problem = f"has pixels that begin at byte {start:g} (vox_offset); {BEFORE} is the most"
        raise FileError(path, problem, "Mend its header, or export it again")
    if any(head[length : length + 1]):
        if start < length + 4 or b"ni" in (head[344:346], head[4:6]):
            raise FileError(
                path,
                "is the header of a pair of files, or damaged: its extensions have no end",
                "Convert it to .nii.gz",
            )
        with gzip.open(path) if packed else path.open("rb") as stream:
            stream.seek(length + 4)
            _check_extensions(path, stream.read(int(start) - length - 4), order)


def _check_extensions(path: Path, data: bytes, order: str) -> None:
    """Raise FileError for header extensions that do not fit into ``data``."""
    offset = 0
    for _ in range(EXTENSIONS):
        if offset + 16 > len(data):  # an extension has at least as many bytes; fewer are padding
            return
        (size,) = struct.unpack_from(order + "i", data, offset)
        if size < 8 or offset + size > len(data):
            raise FileError(
                path,
                f"has a header extension of {size} bytes where {len(data) - offset} are left before"
                " the pixels",
            )
        offset += size
    raise FileError(path, f"has more than {EXTENSIONS} header extensions", "Export it again")


def _gunzip_head(path: Path, head: bytes) -> bytes:
    """The first 544 bytes of gzip data, or as many as there are.

    The file may consist of several gzip streams.
    """
    if head[:2] != b"\x1f\x8b" or len(head) < 18:
        suggestion = "Rename it to .nii if it is not compressed, else copy or export it again"
        raise FileError(
            path, "cannot be unpacked: it is not compressed with gzip, or is cut off", suggestion
        )
    data = _decompress_head(head)
    if len(data) >= 544:
        return data
    # A file name or an extra field stands before the data; Python reads a name byte by byte.
    with path.open("rb") as stream:
        data = _decompress_head(stream.read(NAME))
    if not data:
        raise FileError(path, f"has no data in the first {NAME} bytes of its gzip stream")
    return data


def _decompress_head(packed: bytes) -> bytes:
    """At most 544 bytes of concatenated gzip streams, some of which may be empty."""
    data = b""
    while packed and len(data) < 544:
        decoder = zlib.decompressobj(31)
        data += decoder.decompress(packed, 544 - len(data))
        packed = decoder.unused_data.lstrip(b"\0") if decoder.eof else b""
    return data


NAME = 2**18
"""Bytes in which the data of a gzip stream must begin.

Before them are a name, a comment and an extra field of 64 KiB.
"""


def _describe(path: Path, image: nibabel.Nifti1Image, dims: int) -> tuple[tuple[int, ...], str]:
    """Shape ``(C, *S)`` and dtype of NIfTI axes ``(X, Y, Z, T, C, ...)``.

    Behind the three space axes only one other axis may be longer than 1: the channels.
    """
    proxy: Any = image.dataobj
    shape, dtype = tuple(int(n) for n in proxy.shape), proxy.dtype
    check_values(path, shape, dtype)
    need, size = proxy.offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if suffix(path) == ".nii" and size < need:
        raise FileError(
            path, f"is truncated: its header announces {need} bytes, the file has {size}"
        )
    if suffix(path) == ".nii.gz":
        check_ratio(path, need, size, DEFLATE)
    extra = [n for n in shape[3:] if n != 1]
    if len(shape) < dims or any(n != 1 for n in shape[dims:3]) or len(extra) > 1:
        raise wrong_axes(path, shape, dims)
    scaled = (proxy.slope, proxy.inter) != (1, 0)
    return (extra[0] if extra else 1, *shape[:dims]), "float64" if scaled else dtype.name


def _geometry(image: nibabel.Nifti1Image, dims: int) -> Geometry:
    header: Any = image.header
    meta = {
        "dims": dims,
        "shape": [int(n) for n in header.get_data_shape()],
        "affine": [[float(x) for x in row] for row in header.get_best_affine()],
        "endian": header.endianness,
        "header": base64.b64encode(header.binaryblock).decode(),
    }
    return Geometry(format="nifti", meta=meta)


def _image(array: np.ndarray, geometry: Geometry) -> nibabel.Nifti1Image:
    """A NIfTI image of ``(C, *S)``.

    Its header is the geometry's, byte for byte, but for shape, dtype, scaling and display range.
    """
    data = _axes(array.astype(np.float32) if array.dtype == np.float16 else array, geometry)
    if geometry.format == FORMAT:
        return _placed(data, geometry)
    if geometry.format != "nifti":
        return nibabel.Nifti1Image(data, np.eye(4), dtype=data.dtype)
    block = base64.b64decode(geometry.meta["header"])
    kind = (
        nibabel.Nifti1Image
        if len(block) == nibabel.Nifti1Header.sizeof_hdr
        else nibabel.Nifti2Image
    )
    header = kind.header_class(block, endianness=geometry.meta["endian"], check=False)
    header.set_data_shape(data.shape)
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    # Without an affine nibabel leaves sform, qform and their codes as the header has them.
    return kind(data, None, header, dtype=data.dtype)


def _placed(data: np.ndarray, geometry: Geometry) -> nibabel.Nifti1Image:
    """An image at the place of a MetaImage, NRRD or DICOM file, in millimetres."""
    image = nibabel.Nifti1Image(data, None, dtype=data.dtype)
    header: Any = image.header
    affine = np.array(geometry.meta["affine"], float)
    code = 1 if geometry.meta["placed"] else 2  # of a scanner, or aligned to something
    header.set_xyzt_units("mm")
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    return image


def _axes(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """``(C, X, Y, Z)`` or ``(C, X, Y)`` in NIfTI's axis order.

    A 2D image gets a third axis of length 1, unless its source has none.
    """
    data = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and (len(array) > 1 or len(geometry.meta.get("shape", ())) != 2):
        data = data[:, :, None]
    return data[..., 0] if len(array) == 1 else data
