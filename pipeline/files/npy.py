"""NumPy's own format: any array ``(*S)`` or ``(C, *S)``, without geometry or pickled objects."""

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
"""Longest header, in bytes.

This is NumPy's own limit: the header is Python source, and parsing more could take for ever.
"""


def _load(path: Path, dims: int) -> np.ndarray:
    """The memory-mapped array ``(C, *S)``, after its header was compared with the file's size."""
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
    """Shape, dtype, and the byte at which the values begin."""
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
    """Check the header of a npy file and its size.

    Args:
        path: ``.npy`` file.
        dims: number of space axes, 2 or 3.

    Returns:
        Shape ``(C, *S)`` and name of the dtype.

    Raises:
        FileError: where the file is damaged, truncated or has other axes.
    """
    array = _load(path, dims)
    return array.shape, str(array.dtype)


def geometry(path: Path, dims: int) -> Geometry:
    """The number of space axes: npy files have no other geometry.

    Args:
        path: ``.npy`` file.
        dims: number of space axes, 2 or 3.

    Returns:
        Geometry of format ``none``.

    Raises:
        FileError: as :func:`probe`.
    """
    _load(path, dims)
    return Geometry(format="none", meta={"dims": dims})


def read(path: Path, dims: int, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Read a npy file; a missing channel axis is added.

    Args:
        path: ``.npy`` file.
        dims: number of space axes, 2 or 3.
        labels: not used; other formats read label maps differently.

    Returns:
        Array ``(C, *S)`` and its geometry.

    Raises:
        FileError: as :func:`probe`, and where the array does not fit into memory.
    """
    array = _load(path, dims)
    check_memory(path, array.shape, array.dtype)
    return array.copy(), Geometry(format="none", meta={"dims": dims})


def view(path: Path, dims: int) -> tuple[LazyArray, Geometry]:
    """Open a npy file for reading slab by slab.

    Args:
        path: ``.npy`` file.
        dims: number of space axes, 2 or 3.

    Returns:
        The array ``(C, *S)`` of :func:`read`, of which rows are read as they are sliced, and its
        geometry.

    Raises:
        FileError: as :func:`probe`, and from a slice that does not fit into memory.
    """
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
    """Write an array as it is.

    Writes go through the file, never through a memory map: a full disk answers them with an error,
    but kills a process that maps.

    Args:
        path: file to write.
        array: array of any shape; :class:`Rows` ``(C, *S)`` are written slab by slab, in C order.
        geometry: not used: the format holds none.
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
            np.lib.format.write_array(_WriteOnly(stream), whole, allow_pickle=False)


def rows(path: Path) -> Rows:
    """Open a npy file that this package wrote, without checks.

    Args:
        path: ``.npy`` file of shape ``(C, *S)``.

    Returns:
        The array, read as it is sliced.
    """
    found = np.load(path, mmap_mode="r", allow_pickle=False)

    def make(first: int, end: int) -> np.ndarray:
        # Mapped anew for each slab: pages of a mapping count as memory of this process until it is
        # closed.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[:, first:end])

    return Rows(tuple(found.shape), found.dtype, make)


def room(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """Make a npy file that is mapped for writing anywhere in it.

    The disk space of the whole file is allocated first: a full disk kills a process that maps.

    Args:
        path: new file.
        shape: shape of the array.
        dtype: its dtype.

    Returns:
        The mapped array, all zeros.

    Raises:
        OSError: where the disk is full.
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
    """Write slabs at their offsets: each channel is contiguous in the file."""
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
    """Write all bytes of a contiguous array; one call may take only a part of them."""
    left = memoryview(array.reshape(-1).view(np.uint8))  # pyright: ignore[reportArgumentType] - an array is a buffer
    while left:
        left = left[stream.write(left) :]


class _WriteOnly:
    """A stream that numpy does not take for a file, so that it calls ``write``.

    Errors of ``write`` have a reason; those of numpy's own writing have none.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def write(self, data: bytes) -> None:
        """Write all of ``data``."""
        left = memoryview(data)
        while left:
            left = left[self.stream.write(left) :]
