"""Formats by suffix: check, read, view, write one array with its geometry.

Damage is looked for here and not left to the libraries: tifffile logs a truncated file and returns
fewer pages, nibabel meets it only when pixels are used, and gzip checks its sum only when somebody
reads to the end.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from pipeline.files import nifti, npy, pictures, tiff
from pipeline.files.durable import (
    whole,
)
from pipeline.files.errors import AGAIN, FileError, guarded
from pipeline.files.names import FOLDERS, SUFFIXES, suffix
from pipeline.files.pixels import LazyArray, Rows
from pipeline.records import Geometry, UserError

_FORMATS = {
    ".tif": tiff,
    ".tiff": tiff,
    ".nii": nifti,
    ".nii.gz": nifti,
    ".png": pictures,
    ".jpg": pictures,
    ".jpeg": pictures,
    ".gif": pictures,
    ".bmp": pictures,
    ".npy": npy,
}
"""Each format of single files is a module with probe, geometry, read and write; some also have
view.
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a file says about itself without its pixels being decoded.

    ``problem`` is None for a sound file; then shape and dtype hold.
    """

    shape: tuple[int, ...]
    dtype: str
    problem: str | None
    suggestion: str = AGAIN


def probe(path: Path, dims: int) -> Probe:
    """Check a file's structure without decoding pixels: missing, empty, truncated, wrong number of
    axes, unknown format.

    Truncation inside a compressed stream (``.nii.gz``, a JPEG) shows only in :func:`read`. Never
    raises for a bad file.
    """
    try:
        shape, dtype = guarded(path, lambda: _format(path).probe(path, dims))
        return Probe(shape=shape, dtype=dtype, problem=None)
    except FileError as error:
        return Probe(shape=(), dtype="", problem=error.problem, suggestion=error.suggestion)


def read(path: Path, dims: int, labels: bool = False) -> tuple[np.ndarray, Geometry]:
    """Array ``(C, *S)`` in the file's own number type (native byte order, C-contiguous) and its
    geometry.

    ``dims`` is the number of space axes: 3 gives ``(C, Z, Y, X)`` from TIFF and ``(C, X, Y, Z)``,
    the file's order, from NIfTI; 2 gives ``(C, Y, X)``. Palettes become RGB, with ``labels`` (and
    in volumes) their indices, or 0 and 255 where an image is black and white; alpha is dropped,
    bool becomes uint8, a picture is turned as its EXIF or TIFF orientation says. Greys of 1, 2 or 4
    bits are 0 to 255 as they are seen, with ``labels`` (and in volumes) the numbers that are
    stored. ``Geometry.notes`` says what else to know. Raises FileError for whatever cannot be read
    to the last pixel or does not have ``dims`` space axes.
    """
    array, geometry = guarded(path, lambda: _format(path).read(path, dims, labels))
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "uif":
        raise FileError(
            path, f"holds {array.dtype} values", "Convert it to an integer or real number type"
        )
    if array.size == 0:
        raise FileError(path, f"holds no pixel, shape {array.shape}")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("=")), geometry


@contextlib.contextmanager
def view(path: Path, dims: int) -> Iterator[tuple[LazyArray, Geometry]]:
    """The array of :func:`read` and its geometry, of which rows are read as they are sliced: TIFF,
    Zarr and npy. Others are read whole.

    The array can be used until the context is left. Raises FileError as :func:`read` does, also
    from a slice that cannot be read.
    """
    form = _format(path)
    with contextlib.ExitStack() as stack:
        if not hasattr(form, "view"):
            yield read(path, dims)
            return
        given = (stack,) if form is tiff else ()
        pixels, place = guarded(path, lambda: form.view(path, dims, *given))
        if 0 in pixels.shape:
            raise FileError(path, f"holds no pixel, shape {pixels.shape}")
        if pixels.dtype.kind not in "uifb":
            raise FileError(
                path, f"holds {pixels.dtype} values", "Convert it to an integer or real number type"
            )
        yield _guarded_rows(path, pixels), place


def _guarded_rows(path: Path, pixels: LazyArray) -> LazyArray:
    """The same, with bool as uint8, and with FileError for rows that cannot be read."""
    if not isinstance(pixels, Rows):
        return np.asarray(pixels)
    dtype = np.dtype(np.uint8) if pixels.dtype == bool else pixels.dtype
    make = pixels.make
    return replace(
        pixels, dtype=dtype, make=lambda first, end: guarded(path, lambda: make(first, end))
    )


def geometry(path: Path, dims: int) -> Geometry:
    """The geometry that :func:`read` would give, from the header alone.

    Raises FileError like it.
    """
    return guarded(path, lambda: _format(path).geometry(path, dims))


def dims_of(path: Path) -> int:
    """Number of space axes of a file, 3 where it can be read as a volume, else 2.

    Raises FileError where it is neither.
    """
    for dims in (3, 2):
        found = probe(path, dims)
        if found.problem is None:
            return dims
    raise FileError(path, str(found.problem), found.suggestion)


def _format(path: Path) -> ModuleType:
    known = suffix(path)
    if not known:
        raise FileError(
            path,
            f"has a suffix that no reader knows ({path.suffix or 'none'})",
            f"Known are {', '.join(SUFFIXES)}",
        )
    if known in FOLDERS:
        from pipeline.files import zarr  # takes 0.3 s to import, and few data sets hold any

        return zarr
    return _FORMATS[known]


def write(
    path: Path, array: LazyArray, geometry: Geometry | None = None, dims: int | None = None
) -> None:
    """Write ``(*S)`` or ``(C, *S)`` in the format of the suffix, in the place that ``geometry``
    describes, whole or not at all.

    ``dims`` (space axes) settles what ``(3, Y, X)`` means; unsaid, the geometry says it, else
    pictures such as PNG are 2D and other arrays of three axes or more are volumes. Equal arrays
    give equal bytes. Raises UserError where the format cannot hold the array. :class:`Rows` ``(C,
    *S)`` are written slab by slab as TIFF volumes, Zarr and npy; in other formats they are held in
    memory.
    """
    geometry = geometry or Geometry()
    if isinstance(array, Rows):
        form = _format(path)
        with whole(path, math.prod(array.shape) * np.dtype(array.dtype).itemsize) as temp:
            form.write(temp, array if hasattr(form, "view") else array[:], geometry)
        return
    array = np.asarray(array)
    flat = array.ndim == 2 or _FORMATS.get(suffix(path)) is pictures
    space: int = dims or geometry.meta.get("dims") or (2 if flat else 3)
    if array.ndim not in (space, space + 1):
        raise UserError(
            f"{path}: an array of shape {array.shape} is not (*S) or (C, *S) with {space} space"
            " axes."
        )
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "uif":
        raise UserError(
            f"{path}: values of type {array.dtype} cannot be written. Convert them to an integer or"
            " real number type."
        )
    form = _format(path)
    with whole(path, array.nbytes) as temp:
        form.write(
            temp, array if form is npy else array.reshape(-1, *array.shape[-space:]), geometry
        )


def stored(array: Rows, path: Path) -> Rows:
    """The same ``(C, *S)`` from the new file ``path`` (``.npy``), so that what it is made from is
    made once.
    """
    write(path, array)
    return npy.rows(path)
