"""A box of the voxels of an image, which reads as an image of its own: ``stack.tif#box=0:200x:x:``.

A box has a range ``first:end`` for each space axis, in the order of the array that
:func:`pipeline.files.read` gives; an end that is left out is that of the image. Any format can be
cut so. Of a Zarr the box may stand beside level and time: ``a.zarr#level=1,box=0:9x:x:``.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from pipeline.files import frames
from pipeline.files.errors import FileError
from pipeline.files.limits import check_memory
from pipeline.files.names import BOX, box_text, without_box
from pipeline.files.pixels import LazyArray, Rows, row_bytes, slabs
from pipeline.records import Geometry

Box = tuple[tuple[int, int], ...]
"""First voxel and end along each space axis."""

SLAB = 2**28
"""Bytes of whole rows that are read at a time where a box is cut out of them."""

KEPT = 2**30
"""Most bytes of whole images that are kept for further boxes of the same files."""

_RANGE = re.compile(r"(\d{0,9}):(\d{0,9})")


def source(path: Path) -> Path:
    """The path without its box.

    Args:
        path: such as ``stack.tif#box=0:200x:x:``. An entry of the disk that itself has such a name
            stays: the box in its name is cut out of it.

    Returns:
        The path of the whole image; what else is chosen of a Zarr stays in it.
    """
    if box_text(path) is None or os.path.lexists(path):
        return path
    return path.with_name(without_box(path.name))


def with_box(path: Path, box: Sequence[tuple[int, int] | None]) -> Path:
    """The path of a box of an image.

    Args:
        path: an image, of which no box is chosen.
        box: first voxel and end along each space axis; None: the whole axis.

    Returns:
        The path.

    Example:
        >>> str(with_box(Path("a.tif"), [(0, 200), None, None]))
        'a.tif#box=0:200x:x:'
        >>> str(with_box(Path("a.zarr#level=1"), [None, (3, 9)]))
        'a.zarr#level=1,box=:x3:9'
    """
    text = "x".join(":" if pair is None else f"{pair[0]}:{pair[1]}" for pair in box)
    chosen = re.search(r"\.zarr#[^/#]+$", path.name, re.IGNORECASE)
    return path.with_name(f"{path.name}{',' if chosen else '#'}{BOX}{text}")


def box_of(path: Path, size: Sequence[int]) -> Box:
    """The box that a path chooses of an image.

    Args:
        path: path with a box.
        size: ``(*S)`` of the whole image.

    Returns:
        First voxel and end along each space axis.

    Raises:
        FileError: for what is no box, or none inside the image.

    Example:
        >>> box_of(Path("a.tif#box=2:x:"), (9, 7))
        ((2, 9), (0, 7))
    """
    text = box_text(path) or ""
    found = [_RANGE.fullmatch(part) for part in text.split("x")]
    whole = "x".join(map(str, size))
    suggestion = f"Write first:end for each of its {len(size)} axes, such as #{BOX}" + "x".join(
        f"0:{n}" for n in size
    )
    if len(found) != len(size) or None in found:
        raise FileError(path, f"chooses {text[:60]!r}, no box of an image of {whole}", suggestion)
    box = tuple(
        (int(m[1] or 0), int(m[2]) if m[2] else n)
        for m, n in zip(found, size, strict=True)
        if m is not None
    )
    if any(not first < end <= n for (first, end), n in zip(box, size, strict=True)):
        raise FileError(
            path, f"chooses {text[:60]!r}, which is no box inside an image of {whole}", suggestion
        )
    return box


def size_of(box: Box) -> tuple[int, ...]:
    """``(*S)`` of a box."""
    return tuple(end - first for first, end in box)


def cut(array: LazyArray, box: Box) -> LazyArray:
    """Cut a box out of an array.

    Args:
        array: ``(C, *S)``, in memory or read as it is sliced.
        box: first voxel and end along each space axis.

    Returns:
        ``(C, *S)`` of the box: a copy, or an array that is read as it is sliced like the given one.
    """
    start = box[0][0]
    inner = tuple(slice(*pair) for pair in box[1:])
    shape = (array.shape[0], *size_of(box))
    if not isinstance(array, Rows):
        return np.array(array[(slice(None), slice(*box[0]), *inner)])
    make = array.make  # and not its slices, of which it would keep the last
    return Rows(
        shape,
        array.dtype,
        lambda first, end: np.ascontiguousarray(
            make(start + first, start + end)[(slice(None), slice(None), *inner)]
        ),
    )


def loaded(path: Path, array: LazyArray, box: Box) -> np.ndarray:
    """Read a box, never more than some whole rows beside it at a time.

    Args:
        path: the file, for messages.
        array: ``(C, *S)`` of the whole image, usually read as it is sliced.
        box: first voxel and end along each space axis.

    Returns:
        ``(C, *S)`` of the box.

    Raises:
        FileError: where the box does not fit into memory.
    """
    part = cut(array, box)
    if not isinstance(part, Rows):
        return np.asarray(part)
    check_memory(path, part.shape, part.dtype, "a box")
    out = np.empty(part.shape, part.dtype)
    rows = max(1, SLAB // max(1, row_bytes(array.shape, array.dtype)))
    for first, end in slabs(part, rows):
        out[:, first:end] = part.make(first, end)
    return out


@contextlib.contextmanager
def naming(path: Path, whole: Path) -> Iterator[None]:
    """Let errors of a whole image name the box that was asked for.

    Args:
        path: path with the box.
        whole: path without it.

    Yields:
        Nothing.

    Raises:
        FileError: those of the context.
    """
    try:
        yield
    except FileError as error:
        if error.path != whole:
            raise
        raise FileError(path, error.problem, error.suggestion) from None


# --- images that are decoded whole ----------------------------------------------------------------

_decoded: OrderedDict[Any, tuple[np.ndarray, Geometry]] = OrderedDict()
_locks: defaultdict[Any, threading.Lock] = defaultdict(threading.Lock)
_changing = threading.Lock()


def decoded(
    key: tuple[Any, ...], paths: Sequence[Path], read: Callable[[], tuple[np.ndarray, Geometry]]
) -> tuple[np.ndarray, Geometry]:
    """A whole image, of which several boxes are read one after the other.

    It is decoded once in a process while its files do not change and KEPT bytes hold it beside
    those that were read since.

    Args:
        key: what is read, and how.
        paths: files that it is read from.
        read: reads it.

    Returns:
        Array ``(C, *S)``, not to be written to, and geometry.
    """
    stats = [os.stat(p) for p in paths]
    entry = (*key, *((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats))
    with _changing:
        lock = _locks[entry]
    with lock:
        with _changing:
            known = _decoded.get(entry)
            if known is not None:
                _decoded.move_to_end(entry)
                return known
        found = read()
        with _changing:
            if found[0].nbytes > KEPT:
                _locks.pop(entry, None)
                return found
            _decoded[entry] = found
            while sum(array.nbytes for array, _ in _decoded.values()) > KEPT:
                _locks.pop(_decoded.popitem(last=False)[0], None)
    return found


def forget() -> None:
    """Free the memory of whole images that were kept for further boxes."""
    with _changing:
        _decoded.clear()
        _locks.clear()


# --- geometries -----------------------------------------------------------------------------------


def moved(geometry: Geometry, box: Box) -> Geometry:
    """Geometry of a box of an image.

    Its origin moves where the file says where the image lies: affine of NIfTI, MetaImage, NRRD and
    DICOM, translation of Zarr. TIFF, pictures and NumPy have none.

    Args:
        geometry: of the whole image.
        box: first voxel and end along each space axis.

    Returns:
        The geometry with which the box can be written.
    """
    start = [first for first, _ in box]
    change = {"nifti": _moved_nifti, frames.FORMAT: _moved_frame, "zarr": _moved_zarr}.get(
        geometry.format
    )
    if change is None:
        return geometry
    return replace(geometry, meta=change(geometry.meta, start, size_of(box)))


def _moved_nifti(
    meta: Mapping[str, Any], start: Sequence[int], size: Sequence[int]
) -> dict[str, Any]:
    """Header with the shape of the box, and origins of its affines at the box.

    Without a code of a form the header places nothing, and NIfTI's affine follows from the shape.
    """
    block = base64.b64decode(meta["header"])
    kind = (
        nibabel.Nifti1Header
        if len(block) == nibabel.Nifti1Header.sizeof_hdr
        else nibabel.Nifti2Header
    )
    header: Any = kind(block, endianness=meta["endian"], check=False)
    shape = [*size, *meta["shape"][len(size) :]]
    header.set_data_shape(shape)
    step = np.zeros(3)
    step[: len(start)] = start
    if int(header["sform_code"]) > 0:
        affine = header.get_sform()
        for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
            header[name] = [*affine[row, :3], affine[row, 3] + affine[row, :3] @ step]
    if int(header["qform_code"]) > 0:
        with contextlib.suppress(HeaderDataError, ValueError):  # as damaged as in the whole image
            affine = header.get_qform()
            for row, name in enumerate(("qoffset_x", "qoffset_y", "qoffset_z")):
                header[name] = affine[row, 3] + affine[row, :3] @ step
    return {
        **meta,
        "shape": [int(n) for n in header.get_data_shape()],
        "affine": [[float(x) for x in row] for row in header.get_best_affine()],
        "header": base64.b64encode(header.binaryblock).decode(),
    }


def _moved_frame(
    meta: Mapping[str, Any], start: Sequence[int], size: Sequence[int]
) -> dict[str, Any]:
    """Frame with its origin at the box; one that the file does not place stays at 0."""
    del size
    frame = frames.frame_of(Geometry(format=frames.FORMAT, meta=meta), len(start))
    if not (frame.placed or len(frame.spacing) == 2 or frames.is_moved(frame)):
        return dict(meta)
    step = np.zeros(len(frame.spacing))
    step[: len(start)] = start
    shift = (step * frame.spacing) @ np.array(frame.directions)
    origin = tuple((np.array(frame.origin) + shift).tolist())
    return {**meta, **frames.geometry_of(replace(frame, origin=origin), meta["dims"]).meta}


def _moved_zarr(
    meta: Mapping[str, Any], start: Sequence[int], size: Sequence[int]
) -> dict[str, Any]:
    """Translation of the box, in the unit of the file; a plain array has no scale and no place."""
    del size
    if "scale" not in meta:
        return dict(meta)
    before = meta.get("translation") or [0.0] * len(start)
    shift = [b + s * n for b, s, n in zip(before, meta["scale"], start, strict=True)]
    rest = {key: value for key, value in meta.items() if key != "translation"}
    return rest | ({"translation": shift} if any(shift) else {})
