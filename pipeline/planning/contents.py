"""What a few files of a folder hold: pictures or volumes, labels or images."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline import files
from pipeline.files import FileError

PROBED = 3
"""Files of a folder that are decoded."""

HEADERS = 9
"""Files of a folder whose header is read."""

WIDEST = 2**24
"""Voxels of a file that are looked at."""

FEW = 8
"""Most values of a label map that needs no other sign."""

FLAT = 0.6
"""Share of neighbours beside foreground that are equal, from which on values are labels."""

COLOURS = 64
"""Most colours of a label map saved in colour."""

Kind = Literal["labels", "image", "colours"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What some files hold."""

    kind: Kind
    """``labels``, ``image``, or ``colours``: labels whose classes are colours."""
    binarise: float | None = None
    """Value above which a black and white picture with greys is white."""
    text: str = ""
    """The evidence."""


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Some of the files, evenly from first to last.

    Args:
        paths: files.
        count: how many.

    Returns:
        At most ``count`` of them.

    Example:
        >>> [p.name for p in spread([Path(c) for c in "abcdefg"], 3)]
        ['a', 'd', 'g']
    """
    if len(paths) <= count:
        return list(paths)
    return [paths[round(n * (len(paths) - 1) / (count - 1))] for n in range(count)]


def axes_of(paths: Sequence[Path]) -> int:
    """Space axes of the files of a folder, from some headers.

    Args:
        paths: image files.

    Returns:
        2 or 3: what most of them have.

    Raises:
        FileError: where no header can be read, that of the first file.
    """
    found, errors = Counter[int](), list[FileError]()
    for path in spread(paths, HEADERS):
        try:
            found[files.dims_of(path)] += 1
        except FileError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return found.most_common(1)[0][0]


def content_of(paths: Sequence[Path], dims: int) -> Content | None:
    """What some files hold, as targets.

    Args:
        paths: image files.
        dims: space axes.

    Returns:
        What most of those that can be read hold; None where none can.
    """
    found = [c for path in spread(paths, PROBED) if (c := _content(path, dims)) is not None]
    if not found:
        return None
    kind = Counter(c.kind for c in found).most_common(1)[0][0]
    alike = [c for c in found if c.kind == kind]
    return next((c for c in alike if c.binarise is not None), alike[0])


def _content(path: Path, dims: int) -> Content | None:
    """What one file holds; None where it cannot be read."""
    try:
        with _decoded(path, dims) as array:
            return judged(array)
    except FileError:
        return None


@contextlib.contextmanager
def _decoded(path: Path, dims: int) -> Iterator[np.ndarray]:
    """The middle rows of a file as labels ``(C, *S)``."""
    found = files.probe(path, dims)
    if found.problem is None and dims == 3 and np.prod(found.shape[1:], dtype=float) > WIDEST:
        with files.view(path, dims) as (rows, _):
            wanted = max(2, int(WIDEST // max(1, np.prod(found.shape[2:], dtype=float))))
            first = max(0, (rows.shape[1] - wanted) // 2)
            yield np.asarray(rows[:, first : first + wanted])
            return
    yield files.read(path, dims, labels=True)[0]


def judged(array: np.ndarray) -> Content:
    """Whether an array holds labels or an image.

    Args:
        array: ``(C, *S)``.

    Returns:
        Its kind. Few whole values, or whole values of which most neighbours are equal, are labels;
        values near 0 and 255 almost everywhere a black and white mask kept with losses.

    Example:
        >>> judged(np.array([[[0, 0, 1], [0, 2, 2]]])).text
        '3 whole values up to 2'
        >>> judged(np.random.default_rng(0).integers(0, 255, (1, 20, 20))).kind
        'image'
    """
    if len(array) > 1 and any(not np.array_equal(array[0], c) for c in array[1:]):
        return _in_colour(array)
    plane = array[0]
    if plane.dtype.kind == "f" and not (
        np.isfinite(plane).all() and (plane == np.floor(plane)).all()
    ):
        return Content(kind="image", text="values that are not whole")
    values = np.unique(plane)
    text = f"{len(values)} whole values up to {int(values[-1])}"
    if len(values) <= FEW and (len(values) <= 2 or not _lossy(plane)):
        return Content(kind="labels", text=text)
    if _lossy(plane):
        return Content(
            kind="labels", binarise=127, text="black and white with greys, as JPEG makes them"
        )
    return Content(kind="labels" if flatness(plane) >= FLAT else "image", text=text)


def _in_colour(array: np.ndarray) -> Content:
    """What an array of several different channels holds."""
    pixels = array.reshape(len(array), -1).T
    some = pixels[:: max(1, len(pixels) // 2**18)]
    colours = len(np.unique(some, axis=0))
    if len(array) == 3 and colours <= COLOURS and flatness(array[0]) >= FLAT:
        return Content(kind="colours", text=f"{colours} colours")
    return Content(kind="image", text=f"{len(array)} channels")


def _lossy(plane: np.ndarray) -> bool:
    """Whether values are those of a black and white picture after a lossy step.

    It leaves greys near both ends; classes 0, 1, 2 beside an ignored 255 have none near white.
    """
    if plane.min() < 0 or plane.max() > 255:
        return False
    dark, light = plane <= 40, plane >= 215
    greys = ((plane > 0) & dark).any() and ((plane < 255) & light).any()
    return bool(greys and np.mean(dark | light) >= 0.9)


def flatness(plane: np.ndarray) -> float:
    """Share of neighbours along the last axis that are equal, where one of them is not 0.

    Args:
        plane: ``(*S)``.

    Returns:
        0 to 1: near 1 for label maps, near 0 for photographs; 1 where there is no pair.
    """
    one, two = plane[..., :-1], plane[..., 1:]
    counted = (one != 0) | (two != 0)
    return float(np.mean((one == two)[counted])) if counted.any() else 1.0
