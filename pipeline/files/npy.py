"""NumPy's own format: any array ``(*S)`` or ``(C, *S)``, without geometry, never with pickled objects."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.files.errors import wrong_axes
from pipeline.files.pixels import Pixels, Rows, slabs
from pipeline.records import Geometry

if TYPE_CHECKING:
    import numpy as np


def _load(path: Path, dims: int) -> np.ndarray:
    import numpy as np

    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (dims, dims + 1):
        raise wrong_axes(path, array.shape, dims)
    return array.reshape(-1, *array.shape[-dims:])


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
    return _load(path, dims).copy(), Geometry(format="none", meta={"dims": dims})


def view(path: Path, dims: int) -> tuple[Pixels, Geometry]:
    """The array of :func:`read`, of which rows are read as they are sliced."""
    array = _load(path, dims)

    def make(first: int, end: int) -> np.ndarray:
        # Mapped anew for each slab: pages of a mapping count as memory of this process until it is closed.
        import numpy as np

        return np.array(_load(path, dims)[:, first:end])

    return Rows(array.shape, array.dtype.newbyteorder("="), make), Geometry(format="none", meta={"dims": dims})


def write(path: Path, array: np.ndarray | Pixels, geometry: Geometry) -> None:
    """Write the array as it is; :class:`Rows` slab by slab, several channels or not, in the order of their file.

    By plain writes, never through a mapping: a full disk answers those with an error, but kills a process that maps.
    """
    import numpy as np

    with path.open("wb", buffering=0) as stream:
        if isinstance(array, Rows):
            _write_rows(stream, array)
            return
        whole = np.asarray(array[:])
        if whole.flags.c_contiguous and not whole.dtype.hasobject:
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(whole))
            _write_all(stream, whole)
        else:
            np.lib.format.write_array(_Plain(stream), whole, allow_pickle=False)


def _write_rows(stream: BinaryIO, array: Rows) -> None:
    """Written where they belong: channels lie one behind the other in the file."""
    import numpy as np

    dtype = np.dtype(array.dtype)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(array.shape)}
    np.lib.format.write_array_header_1_0(stream, header)
    offset, row = stream.tell(), math.prod(array.shape[2:]) * dtype.itemsize
    for first, end in slabs(array):
        part = np.ascontiguousarray(array[:, first:end], dtype)
        for number, channel in enumerate(part):
            stream.seek(offset + (number * array.shape[1] + first) * row)
            _write_all(stream, channel)


def _write_all(stream: BinaryIO, array: np.ndarray) -> None:
    """All bytes of a contiguous array; the system may take fewer at a time."""
    import numpy as np

    left = memoryview(array.reshape(-1).view(np.uint8))  # pyright: ignore[reportArgumentType] - an array is a buffer
    while left:
        left = left[stream.write(left) :]


class _Plain:
    """A stream that numpy takes for no file, so that it writes by ``write``, whose errors have a reason."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self.stream.write(left) :]
