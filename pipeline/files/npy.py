"""NumPy's own format: any array ``(*S)`` or ``(C, *S)``, without geometry, never with pickled objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
    """Write the array as it is; :class:`Rows` slab by slab, several channels or not, in the order of their file."""
    import numpy as np

    if not isinstance(array, Rows):
        np.save(path, array[:], allow_pickle=False)
        return
    # Made sparse at its full length, then filled: channels lie one behind the other in the file.
    out = np.lib.format.open_memmap(path, "w+", np.dtype(array.dtype), array.shape)
    shape, dtype, offset = out.shape, out.dtype, out.offset
    del out
    for first, end in slabs(array):
        part = np.memmap(path, dtype, "r+", offset, shape)
        part[:, first:end] = array[:, first:end]
        part.flush()
