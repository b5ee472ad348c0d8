"""NumPy's own format: any array ``(*S)`` or ``(C, *S)``, without geometry, never with pickled
objects.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.files.errors import FileError, wrong_axes
from pipeline.files.limits import check_memory, check_values
from pipeline.files.pixels import LazyArray, Rows, slabs
from pipeline.records import Geometry

_MAGIC = b"\x93NUMPY"

LONGEST = 10_000
"""Bytes of a header.

NumPy's own limit: it is Python source, and parsing more could take for ever.
"""


def _load(path: Path, dims: int) -> np.ndarray:
    """The mapped array ``(C, *S)``, after the header has been compared with the size of the file."""
    shape, dtype, start = _header(path)
    check_values(path, shape, dtype)
    need, size = start + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if need > size:
        raise FileError(
            path, f"is truncated: its header announces {need} bytes, the file has {size}"
        )
    if len(shape) not in (dims, dims + 1):
        raise wrong_axes(path, shape, dims)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.reshape(-1, *array.shape[-dims:])


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, number type and the byte at which the numbers begin."""
    with path.open("rb") as stream:
        head = stream.read(12)
        if not head.startswith(_MAGIC) or len(head) < 12 or head[6] not in (1, 2, 3):
            raise FileError(
                path,
                "is no .npy file of NumPy, or its header is damaged",
                "Write it again with numpy.save",
            )
        length = int.from_bytes(head[8:10] if head[6] == 1 else head[8:12], "little")
        if length > LONGEST:
            raise FileError(
                path,
                f"has a header of {length} bytes; {LONGEST} are the most",
                "Write it again with numpy.save",
            )
        stream.seek(8)
        reader = (
            np.lib.format.read_array_header_1_0
            if head[6] == 1
            else np.lib.format.read_array_header_2_0
        )
        try:
            shape, _, dtype = reader(stream, LONGEST)
        except ValueError as error:
            raise FileError(
                path, f"has a damaged header ({str(error)[:200]})", "Write it again with numpy.save"
            ) from None
        return tuple(int(n) for n in shape), dtype, stream.tell()


def probe(path: Path, dims: int) -> tuple[tuple[int, ...], str]:
    """Shape ``(C, *S)`` and number type from the header."""
    array = _load(path, dims)
    return array.shape, str(array.dtype)


def geometry(path: Path, dims: int) -> Geometry:
    """No place in the world, only the number of axes."""
    _load(path, dims)
    return Geometry(format="none", meta={"dims": dims})


def read(path: Path, dims: int, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Array ``(C, *S)``; a missing channel axis is added."""
    array = _load(path, dims)
    check_memory(path, array.shape, array.dtype)
    return array.copy(), Geometry(format="none", meta={"dims": dims})


def view(path: Path, dims: int) -> tuple[LazyArray, Geometry]:
    """The array of :func:`read`, of which rows are read as they are sliced."""
    array = _load(path, dims)

    def make(first: int, end: int) -> np.ndarray:
        # Mapped anew for each slab: pages of a mapping count as memory of this process until it is
        # closed.
        rows = _load(path, dims)[:, first:end]
        check_memory(path, rows.shape, rows.dtype, "rows")
        return np.array(rows)

    return Rows(array.shape, array.dtype.newbyteorder("="), make), Geometry(
        format="none", meta={"dims": dims}
    )


def write(path: Path, array: LazyArray, geometry: Geometry) -> None:
    """Write the array as it is; :class:`Rows` slab by slab, several channels or not, in the order
    of their file.

    By plain writes, never through a mapping: a full disk answers those with an error, but kills a
    process that maps.
    """
    with path.open("wb", buffering=0) as stream:
        if isinstance(array, Rows):
            _write_rows(stream, array)
            return
        whole = np.asarray(array[:])
        if whole.flags.c_contiguous and not whole.dtype.hasobject:
            np.lib.format.write_array_header_1_0(
                stream, np.lib.format.header_data_from_array_1_0(whole)
            )
            _write_all(stream, whole)
        else:
            np.lib.format.write_array(_Plain(stream), whole, allow_pickle=False)


def rows(path: Path) -> Rows:
    """An array ``(C, *S)`` of this package's own, read as it is sliced."""
    found = np.load(path, mmap_mode="r", allow_pickle=False)

    def make(first: int, end: int) -> np.ndarray:
        # Mapped anew for each slab: pages of a mapping count as memory of this process until it is
        # closed.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[:, first:end])

    return Rows(tuple(found.shape), found.dtype, make)


def room(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """A new file mapped for writing anywhere in it.

    The disk gives all its bytes first: one that is full kills a process that maps.
    """
    with path.open("wb", buffering=0) as stream:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": tuple(shape),
        }
        np.lib.format.write_array_header_1_0(stream, header)
        os.posix_fallocate(
            stream.fileno(), 0, stream.tell() + math.prod(shape) * np.dtype(dtype).itemsize
        )
    return np.lib.format.open_memmap(path, mode="r+")


def _write_rows(stream: BinaryIO, array: Rows) -> None:
    """Written where they belong: channels lie one behind the other in the file."""
    dtype = np.dtype(array.dtype)
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": tuple(array.shape),
    }
    np.lib.format.write_array_header_1_0(stream, header)
    offset, row = stream.tell(), math.prod(array.shape[2:]) * dtype.itemsize
    for first, end in slabs(array):
        part = np.ascontiguousarray(array[:, first:end], dtype)
        for number, channel in enumerate(part):
            stream.seek(offset + (number * array.shape[1] + first) * row)
            _write_all(stream, channel)


def _write_all(stream: BinaryIO, array: np.ndarray) -> None:
    """All bytes of a contiguous array; the system may take fewer at a time."""
    left = memoryview(array.reshape(-1).view(np.uint8))  # pyright: ignore[reportArgumentType] - an array is a buffer
    while left:
        left = left[stream.write(left) :]


class _Plain:
    """A stream that numpy takes for no file, so that it writes by ``write``, whose errors have a
    reason.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self.stream.write(left) :]
