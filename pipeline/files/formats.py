"""Read, check, view and write one array with its geometry, by the suffix of its file.

Damage is checked here and not left to the libraries: tifffile logs a truncated file and returns
fewer pages, nibabel notices it only when pixels are used, and gzip compares its checksum only when
the stream is read to the end.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from pipeline.files import boxes, dicom, metaimage, nifti, npy, nrrd, pictures, tiff
from pipeline.files.durable import whole
from pipeline.files.errors import AGAIN, FileError, guarded
from pipeline.files.names import (
    FOLDERS,
    INSTEAD,
    SUFFIXES,
    WRITABLE,
    box_text,
    format_suffix,
    split_selection,
    suffix,
)
from pipeline.files.pixels import LazyArray, Rows
from pipeline.records import Geometry, UserError

_FORMATS = {
    ".tif": tiff,
    ".tiff": tiff,
    ".nii": nifti,
    ".nii.gz": nifti,
    ".mha": metaimage,
    ".mhd": metaimage,
    ".nrrd": nrrd,
    ".nhdr": nrrd,
    ".dcm": dicom,
    ".png": pictures,
    ".jpg": pictures,
    ".jpeg": pictures,
    ".gif": pictures,
    ".bmp": pictures,
    ".npy": npy,
}
"""Module of each format of single files.

Each has probe, geometry, read and write; some also have view.
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a file declares, without its pixels being decoded."""

    shape: tuple[int, ...]
    """``(C, *S)``; empty where there is a problem."""
    dtype: str
    """Name of the dtype; empty where there is a problem."""
    problem: str | None
    """What is wrong with the file; None for a sound one."""
    suggestion: str = AGAIN
    """What the user can do about the problem."""


def probe(path: Path, dims: int) -> Probe:
    """Check the structure of an image file without decoding pixels.

    Found are missing, empty and truncated files, a wrong number of axes and an unknown format.
    Truncation inside a compressed stream (``.nii.gz``, a JPEG) shows only in :func:`read`. Never
    raises for a bad file.

    Args:
        path: image file.
        dims: number of space axes, 2 or 3.

    Returns:
        Shape and dtype, or the problem.
    """
    try:
        shape, dtype = _probed(path, dims)
        return Probe(shape=shape, dtype=dtype, problem=None)
    except FileError as error:
        return Probe(shape=(), dtype="", problem=error.problem, suggestion=error.suggestion)


def _probed(path: Path, dims: int) -> tuple[tuple[int, ...], str]:
    """Shape ``(C, *S)`` and dtype of an image or of a box of it."""
    whole = boxes.source(path)
    with boxes.naming(path, whole):
        shape, dtype = guarded(whole, lambda: _format(whole).probe(whole, dims))
        if box_text(path) is not None:
            shape = (shape[0], *boxes.size_of(boxes.box_of(path, shape[1:])))
        return shape, dtype


def read(path: Path, dims: int, labels: bool = False) -> tuple[np.ndarray, Geometry]:
    """Read an image file, or a box of it (:mod:`pipeline.files.boxes`), into memory.

    Palettes become RGB, with ``labels`` (and in volumes) their indices, or 0 and 255 where an image
    is black and white. Alpha is dropped, bool becomes uint8, and a 2D image is turned upright by
    its EXIF or TIFF orientation. Greys of 1, 2 or 4 bits are scaled to 0..255 as they are
    displayed, with ``labels`` (and in volumes) the stored values are kept.

    Args:
        path: image file.
        dims: number of space axes: 3 gives ``(C, Z, Y, X)`` from TIFF and ``(C, X, Y, Z)``, the
            order of the file, from NIfTI, MetaImage, NRRD and DICOM; 2 gives ``(C, Y, X)``, of
            those four ``(C, X, Y)``.
        labels: read a label map, whose values are classes, not intensities.

    Returns:
        Array ``(C, *S)`` in the dtype of the file (native byte order, C-contiguous), and its
        geometry; ``Geometry.notes`` says what else to know.

    Raises:
        FileError: where the file cannot be read to the last pixel or does not have ``dims`` space
            axes.
    """
    if box_text(path) is not None:
        return _read_box(path, dims, labels)
    array, geometry = guarded(path, lambda: _format(path).read(path, dims, labels))
    return _checked_values(path, array), geometry


def _checked_values(path: Path, array: np.ndarray) -> np.ndarray:
    """The array in native byte order; bool as uint8. Raises FileError for what is no number."""
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "uif":
        raise FileError(
            path, f"holds {array.dtype} values", "Convert it to an integer or real number type"
        )
    if array.size == 0:
        raise FileError(path, f"holds no pixel, shape {array.shape}")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _read_box(path: Path, dims: int, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Read a box of an image: slab by slab where its format can, else the whole is decoded."""
    whole = boxes.source(path)
    with boxes.naming(path, whole):
        if _is_sliced(whole, dims):
            with _opened(whole, dims) as (rows, geometry):
                box = boxes.box_of(path, rows.shape[1:])
                array = boxes.loaded(path, rows, box)
        else:
            parts_of = parts(whole)
            array, geometry = guarded(
                whole,
                lambda: boxes.decoded(
                    (whole, dims, labels),
                    parts_of,
                    lambda: guarded(whole, lambda: _format(whole).read(whole, dims, labels)),
                ),
            )
            box = boxes.box_of(path, array.shape[1:])
            array = np.asarray(boxes.cut(array, box))
        return _checked_values(path, array), boxes.moved(geometry, box)


def _is_sliced(path: Path, dims: int) -> bool:
    """Whether :func:`view` gives the values of :func:`read`, whatever they mean, slab by slab.

    Pictures in TIFF have palettes, orientations and greys of few bits.
    """
    form = _format(path)
    return hasattr(form, "view") and not (form is tiff and dims == 2)


@contextlib.contextmanager
def view(path: Path, dims: int) -> Iterator[tuple[LazyArray, Geometry]]:
    """Open an image file for reading slab by slab: TIFF, Zarr and npy; others are read whole.

    Args:
        path: image file.
        dims: number of space axes, as for :func:`read`.

    Yields:
        The array ``(C, *S)`` of :func:`read`, of which rows are read as they are sliced, and its
        geometry. The array can be used until the context is left.

    Raises:
        FileError: as :func:`read` does, also from a slice that cannot be read.
    """
    whole = boxes.source(path)
    if box_text(path) is None:
        with _opened(path, dims) as found:
            yield found
    elif not _is_sliced(whole, dims):
        yield _read_box(path, dims, labels=False)
    else:
        with boxes.naming(path, whole), _opened(whole, dims) as (rows, place):
            box = boxes.box_of(path, rows.shape[1:])
            yield boxes.cut(rows, box), boxes.moved(place, box)


@contextlib.contextmanager
def _opened(path: Path, dims: int) -> Iterator[tuple[LazyArray, Geometry]]:
    """A whole image, read as it is sliced where its format can."""
    form = _format(path)
    with contextlib.ExitStack() as stack:
        if not hasattr(form, "view"):
            yield read(path, dims)
            return
        given = (stack,) if form is tiff else ()
        pixels, geometry = guarded(path, lambda: form.view(path, dims, *given))
        if 0 in pixels.shape:
            raise FileError(path, f"holds no pixel, shape {pixels.shape}")
        if pixels.dtype.kind not in "uifb":
            raise FileError(
                path, f"holds {pixels.dtype} values", "Convert it to an integer or real number type"
            )
        yield _guarded_rows(path, pixels), geometry


def _guarded_rows(path: Path, pixels: LazyArray) -> LazyArray:
    """The same array, with bool as uint8 and with FileError for rows that cannot be read."""
    if not isinstance(pixels, Rows):
        return np.asarray(pixels)
    dtype = np.dtype(np.uint8) if pixels.dtype == bool else pixels.dtype
    make = pixels.make
    return replace(
        pixels, dtype=dtype, make=lambda first, end: guarded(path, lambda: make(first, end))
    )


def geometry(path: Path, dims: int) -> Geometry:
    """Read the geometry of an image from its header alone.

    Args:
        path: image file.
        dims: number of space axes, as for :func:`read`.

    Returns:
        The geometry that :func:`read` would give.

    Raises:
        FileError: where the header cannot be read or does not have ``dims`` space axes.
    """
    whole = boxes.source(path)
    with boxes.naming(path, whole):
        found = guarded(whole, lambda: _format(whole).geometry(whole, dims))
        if box_text(path) is None:
            return found
        size = guarded(whole, lambda: _format(whole).probe(whole, dims))[0][1:]
        return boxes.moved(found, boxes.box_of(path, size))


def dims_of(path: Path) -> int:
    """Number of space axes of an image file.

    Args:
        path: image file.

    Returns:
        3 where it can be read as a volume, else 2.

    Raises:
        FileError: where it can be read as neither.
    """
    for dims in (3, 2):
        found = probe(path, dims)
        if found.problem is None:
            return dims
    raise FileError(path, str(found.problem), found.suggestion)


def _format(path: Path) -> ModuleType:
    """The module that reads and writes the format of a path."""
    known = format_suffix(path)
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
    """Write an array in the format of the file's suffix, whole or not at all.

    Equal arrays give equal bytes. :class:`Rows` ``(C, *S)`` are written slab by slab as TIFF
    volumes, Zarr and npy; for other formats they are loaded into memory.

    Args:
        path: file to write.
        array: ``(*S)`` or ``(C, *S)``; bool is written as uint8.
        geometry: geometry to write, usually that of the input image; None: none.
        dims: number of space axes, which decides what ``(3, Y, X)`` means. None: that of the
            geometry, else 2 for 2D arrays and formats such as PNG, and 3 for others.

    Raises:
        UserError: where the format cannot hold the array.
        DiskError: where the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(Path(folder) / "a.tif", np.zeros((4, 5, 6), np.uint8))
        ...     read(Path(folder) / "a.tif", dims=3)[0].shape
        (1, 4, 5, 6)
    """
    geometry = geometry or Geometry()
    _require_writable_format(path)
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


def _require_writable_format(path: Path) -> None:
    """Raise UserError for a format that is only read, and for a box of an image."""
    if box_text(path) is not None:
        raise UserError(f"{path}: a box of an image can only be read. Name a file of its own.")
    known = suffix(path)
    if known in INSTEAD and _FORMATS[known] is not pictures:  # which say it themselves
        raise UserError(
            f"{path}: {known} files are only read. Write {INSTEAD[known]} instead; all that can be"
            f" written: {', '.join(WRITABLE)}."
        )


def parts(path: Path) -> list[Path]:
    """Files that an image consists of.

    Args:
        path: image file or folder.

    Returns:
        Of a folder all files inside; of a header (``.mhd``, ``.nhdr``) itself and that of its
        pixels, where it names one; else the file itself.
    """
    path = split_selection(path)[0]
    if os.path.isdir(path):
        return [p for p in path.rglob("*") if p.is_file()]
    if suffix(path) not in (".mhd", ".nhdr"):
        return [path]
    try:
        return [path, guarded(path, lambda: _FORMATS[suffix(path)].pixels_file(path))]
    except FileError:
        return [path]


def stored(array: Rows, path: Path) -> Rows:
    """Cache an array in a file, so that its rows are computed once.

    Args:
        array: ``(C, *S)``, computed as it is sliced.
        path: new ``.npy`` file.

    Returns:
        The same ``(C, *S)``, read from ``path`` as it is sliced.

    Raises:
        DiskError: where the file cannot be written.
    """
    write(path, array)
    return npy.rows(path)
