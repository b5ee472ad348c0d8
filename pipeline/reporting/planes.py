"""Planes of volumes as a person looks at them: the richest slices, upright, with square pixels.

Volumes are read slab by slab where their format can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.files import LazyArray, slabs
from pipeline.grid import Grid

SMALL, LARGE, FULL = 240, 420, 1024
"""Sizes of pictures in pixels.

They are enlarged to at least about SMALL; planes of a volume are reduced to at most LARGE, images
to at most FULL.
"""

RICH = 0.7
"""Share of the most foreground that a slice has, from which on another one is rich as well."""

NAMES = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "L": "sagittal",
         "R": "sagittal"}  # fmt: skip
"""A plane's name by the direction that it is perpendicular to."""

DOWN, RIGHT = ("I", "P"), ("L", "P")
"""Directions that point down and to the right, the first that a plane has.

So the head is above, the nose to the left or above, and the patient's right on the left, as
radiologists look at it.
"""

OPPOSITE = {"I": "S", "S": "I", "P": "A", "A": "P", "L": "R", "R": "L"}


NOWHERE = Grid(family="array")
"""Of a volume whose file says neither spacing nor directions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One slice of a volume.

    Args:
        axis: axis of the array that it is perpendicular to.
        index: its position along that axis, from 0.
        count: number of slices along that axis.
        grid: how the volume lies in the world.
    """

    axis: int
    index: int
    count: int
    grid: Grid = NOWHERE

    @property
    def title(self) -> str:
        """Its position in words.

        Example:
            >>> Cut(axis=2, index=4, count=9, grid=Grid(family="nifti", codes="RAS")).title
            'axial, slice 5 of 9'
        """
        name = NAMES[self.grid.codes[self.axis]] if self.grid.codes else f"axis {self.axis}"
        return f"{name}, slice {self.index + 1} of {self.count}"

    @property
    def pixel(self) -> tuple[float, float]:
        """Height and width of a pixel of the upright plane, in millimetres; 1 where not known."""
        sizes = self.grid.spacing or (1.0, 1.0, 1.0)
        first, second = (sizes[a] for a in self._others())
        return (second, first) if self._turns()[0] else (first, second)

    def upright(self, plane: np.ndarray) -> np.ndarray:
        """Turn a plane as it is looked at.

        Args:
            plane: ``(C, A, B)``, of the two other axes in the order of the array.

        Returns:
            A view ``(C, Y, X)``; planes of files that say no directions stay as they are.
        """
        transposed, flips = self._turns()
        turned = plane.swapaxes(-1, -2) if transposed else plane
        return np.flip(turned, flips) if flips else turned

    def _others(self) -> tuple[int, int]:
        """The axes that the plane lies in."""
        first, second = (a for a in range(3) if a != self.axis)
        return first, second

    def _turns(self) -> tuple[bool, tuple[int, ...]]:
        """Whether the axes of the plane are swapped, and which are flipped after that."""
        codes = self.grid.codes
        if not codes:
            return False, ()
        first, second = (codes[a] for a in self._others())
        down = next(d for d in DOWN if {d, OPPOSITE[d]} & {first, second})
        transposed = first not in (down, OPPOSITE[down])
        rows, columns = (second, first) if transposed else (first, second)
        right = next(r for r in RIGHT if columns in (r, OPPOSITE[r]))
        return transposed, tuple(
            axis
            for axis, code, wanted in ((-2, rows, down), (-1, columns, right))
            if code != wanted
        )


def counts(labels: LazyArray, ignore: int | None = None) -> list[np.ndarray]:
    """Count the foreground of each slice along each axis.

    Args:
        labels: ``(1, *S)``, three space axes.
        ignore: label value that is no foreground; None: none.

    Returns:
        One array of voxels for each axis.
    """
    found = [np.zeros(n, np.int64) for n in labels.shape[1:]]
    for first, end in slabs(labels):
        add_foreground(found, np.asarray(labels[0, first:end]), first, ignore)
    return found


def add_foreground(
    found: list[np.ndarray], part: np.ndarray, first: int, ignore: int | None
) -> None:
    """Add the foreground of a slab to the counts of slices.

    Args:
        found: voxels of each slice along each axis, changed in place.
        part: labels of the slab ``(Z, Y, X)``.
        first: its first row.
        ignore: label value that is no foreground; None: none.
    """
    foreground = (part != 0) & (part != ignore) if ignore is not None else part != 0
    found[0][first : first + len(part)] = foreground.sum(axis=(1, 2))
    found[1] += foreground.sum(axis=(0, 2))
    found[2] += foreground.sum(axis=(0, 1))


def cuts(foreground: Sequence[np.ndarray], grid: Grid) -> list[Cut]:
    """Choose a slice along each axis: of those that are rich in foreground the most central one.

    Args:
        foreground: voxels of foreground of each slice along each axis.
        grid: how the volume lies in the world.

    Returns:
        Three slices: axial, coronal, sagittal where the file says directions, else in the order of
        the axes. Without foreground they are the middle ones.
    """
    chosen = []
    for axis, along in enumerate(foreground):
        rich = np.flatnonzero(along >= RICH * along.max())
        index = int(rich[np.abs(rich - len(along) // 2).argmin()])
        chosen.append(Cut(axis=axis, index=index, count=len(along), grid=grid))
    return sorted(chosen, key=lambda c: c.title) if grid.codes else chosen


def planes(volume: LazyArray, wanted: Sequence[Cut]) -> list[np.ndarray]:
    """Read slices of a volume in one pass.

    Args:
        volume: ``(C, *S)``, three space axes.
        wanted: slices of it.

    Returns:
        Upright planes ``(C, Y, X)``, one for each slice.
    """
    gathered: list[list[np.ndarray]] = [[] for _ in wanted]
    for first, end in slabs(volume):
        part = np.asarray(volume[:, first:end])
        for cut, pieces in zip(wanted, gathered, strict=True):
            if cut.axis:
                pieces.append(part.take(cut.index, cut.axis + 1))
            elif first <= cut.index < end:
                pieces.append(part[:, cut.index - first].copy())
    found = (p[0] if cut.axis == 0 else np.concatenate(p, axis=1)
             for cut, p in zip(wanted, gathered, strict=True))  # fmt: skip
    return [cut.upright(plane) for cut, plane in zip(wanted, found, strict=True)]


def enlarge(
    plane: np.ndarray, pixel: tuple[float, float] = (1.0, 1.0), least: int = SMALL
) -> np.ndarray:
    """Repeat pixels, so that small pictures can be read and all pictures have square pixels.

    Args:
        plane: ``(Y, X, ...)``.
        pixel: height and width of its pixels.
        least: pixels that its longer side has afterwards, about.

    Returns:
        The plane, or unchanged where it is larger and has square pixels.
    """
    fine = min(pixel)
    stretch = [p / fine for p in pixel]
    sides = [n * s for n, s in zip(plane.shape[:2], stretch, strict=True)]
    factor = max(1, round(least / max(sides)))
    if max(stretch) > 1 and max(sides) > MOST:
        factor = MOST / max(sides)
    rows, columns = (
        np.minimum(np.arange(max(1, round(n * s * factor))) / (s * factor), n - 1).astype(int)
        for n, s in zip(plane.shape[:2], stretch, strict=True)
    )
    return plane[rows][:, columns]


MOST = 4096
"""Pixels of the longer side of a plane whose pixels were no squares."""
