"""NIfTI: arrays in the axis order of their file, with the header kept byte for byte."""

from __future__ import annotations

import base64
import contextlib
import gzip
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files.errors import FileError, wrong_axes
from pipeline.files.names import suffix
from pipeline.records import Geometry

if TYPE_CHECKING:
    import nibabel
    import numpy as np


def probe(path: Path, dims: int) -> tuple[tuple[int, ...], str]:
    """Shape ``(C, *S)`` and number type from the header; an uncompressed file is compared with the size that it announces."""
    return _described(path, _load(path), dims)


def geometry(path: Path, dims: int) -> Geometry:
    """Header and affine, without the pixels."""
    image = _load(path)
    _described(path, image, dims)
    return _geometry(image, dims)


def read(path: Path, dims: int, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Array ``(C, *S)`` with the file's scaling applied, read to the end of the stream."""
    import numpy as np

    image = _load(path)
    (channels, *space), _ = _described(path, image, dims)
    if suffix(path) == ".nii.gz":
        with gzip.open(path) as stream:
            array = np.asanyarray(type(image).from_stream(stream).dataobj)
            # gzip compares its checksum only at the end of the stream.
            while stream.read(2**20):
                pass
    else:
        array = np.asanyarray(image.dataobj).copy()
    return np.moveaxis(array.reshape(*space, channels), -1, 0), _geometry(image, dims)


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write ``(C, *S)``, several channels as a fourth axis, in the place that a NIfTI's geometry describes."""
    image = _image(array, geometry)
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(path.open("wb"))
        if suffix(path) == ".nii.gz":
            # No name and no time in the gzip header: equal arrays give equal files.
            stream = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=stream, mtime=0))
        image.to_stream(stream)


def _load(path: Path) -> nibabel.Nifti1Image:
    import nibabel

    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):
        raise FileError(path, f"is {type(image).__name__}, no single-file NIfTI", "Convert it to .nii.gz")
    return image


def _described(path: Path, image: nibabel.Nifti1Image, dims: int) -> tuple[tuple[int, ...], str]:
    """Shape ``(C, *S)`` and number type of NIfTI axes ``(X, Y, Z, T, C, ...)``: three of space, one other may be longer than one."""
    proxy: Any = image.dataobj
    shape, dtype = proxy.shape, proxy.dtype
    need, size = proxy.offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if suffix(path) == ".nii" and size < need:
        raise FileError(path, f"is truncated: its header announces {need} bytes, the file has {size}")
    further = [n for n in shape[3:] if n != 1]
    if len(shape) < dims or any(n != 1 for n in shape[dims:3]) or len(further) > 1:
        raise wrong_axes(path, shape, dims)
    scaled = (proxy.slope, proxy.inter) != (1, 0)
    return (further[0] if further else 1, *shape[:dims]), "float64" if scaled else dtype.name


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
    """``(C, *S)`` as an image whose header is the geometry's, byte for byte, but for shape, number type, scaling and display range."""
    import nibabel
    import numpy as np

    data = _axes(array.astype(np.float32) if array.dtype == np.float16 else array, geometry)
    if geometry.format != "nifti":
        return nibabel.Nifti1Image(data, np.eye(4), dtype=data.dtype)
    block = base64.b64decode(geometry.meta["header"])
    kind = nibabel.Nifti1Image if len(block) == nibabel.Nifti1Header.sizeof_hdr else nibabel.Nifti2Image
    header = kind.header_class(block, endianness=geometry.meta["endian"], check=False)
    header.set_data_shape(data.shape)
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    # Without an affine nibabel leaves sform, qform and their codes as the header has them.
    return kind(data, None, header, dtype=data.dtype)


def _axes(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """``(C, X, Y, Z)`` or ``(C, X, Y)`` in NIfTI's order; an image has a third axis of one, unless its source has none."""
    import numpy as np

    data = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and (len(array) > 1 or len(geometry.meta.get("shape", ())) != 2):
        data = data[:, :, None]
    return data[..., 0] if len(array) == 1 else data
