"""Connected components of masks larger than memory, slab by slab: exactly those of the whole mask.

A slab is some rows along the first axis. Each is labelled by itself; components that touch across the face of two slabs are joined
afterwards. Memory follows one slab and the number of components, not the volume.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from pipeline import morphology

Make = Callable[[int, int], np.ndarray]
"""Rows (first, end) of a mask: bool ``(end - first, ...)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """Components of a mask that is labelled slab by slab.

    ``bases[i]`` is added to the labels of slab i; ``names`` (by those numbers) says which component a label belongs to, 0 is background.
    By component: ``sizes`` in voxels, ``outside`` whether a face of the array is touched, ``marked`` whether a marked voxel is held.
    """

    slabs: tuple[tuple[int, int], ...]
    bases: tuple[int, ...]
    names: np.ndarray
    sizes: np.ndarray
    outside: np.ndarray
    marked: np.ndarray
    connectivity: int

    def pick(self, number: int, mask: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Of slab ``number``, whose ``mask`` is given again, the components that are ``wanted`` (bool by component, entry 0 is background)."""
        labels, count = morphology.components(mask, self.connectivity)
        base = self.bases[number]
        table = np.zeros(count + 1, bool)
        table[1:] = wanted[self.names[base + 1 : base + count + 1]]
        return table[labels]


def connect(make: Make, slabs: Sequence[tuple[int, int]], connectivity: int = 26, marks: Make | None = None) -> Components:
    """Components of the mask that ``make`` gives slab by slab; slabs are consecutive and begin at row 0. ``marks``: another mask."""
    bases, sizes, outside, marked, pairs = [], [np.zeros(1, np.int64)], [np.zeros(1, bool)], [np.zeros(1, bool)], []
    base, face = 0, None
    for number, (first, end) in enumerate(slabs):
        labels, count = morphology.components(make(first, end), connectivity)
        bases.append(base)
        sizes.append(np.bincount(labels[labels > 0], minlength=count + 1)[1:])
        outside.append(_flags(_border(labels, number == 0, number == len(slabs) - 1), count))
        marked.append(_flags(labels[marks(first, end)], count) if marks else np.zeros(count, bool))
        if face is not None:
            pairs.append(_contacts(face, _shifted(labels[0], base), connectivity))
        face = _shifted(labels[-1], base)
        base += count
    names = _names(base, pairs)
    return Components(
        slabs=tuple(slabs),
        bases=tuple(bases),
        names=names,
        sizes=np.bincount(names, weights=np.concatenate(sizes)).astype(np.int64),
        outside=_any(names, np.concatenate(outside)),
        marked=_any(names, np.concatenate(marked)),
        connectivity=connectivity,
    )


def _shifted(labels: np.ndarray, base: int) -> np.ndarray:
    return np.where(labels > 0, labels.astype(np.int64) + base, 0)


def _flags(labels: np.ndarray, count: int) -> np.ndarray:
    found = np.zeros(count + 1, bool)
    found[labels] = True
    return found[1:]


def _any(names: np.ndarray, flags: np.ndarray) -> np.ndarray:
    return np.bincount(names, weights=flags) > 0


def _border(labels: np.ndarray, first: bool, last: bool) -> np.ndarray:
    """Labels at those faces of a slab that are faces of the array."""
    faces = [labels[:1]] * first + [labels[-1:]] * last
    for axis in range(1, labels.ndim):
        faces += [labels.take(0, axis), labels.take(-1, axis)]
    return np.concatenate([face.ravel() for face in faces])


def _contacts(before: np.ndarray, after: np.ndarray, connectivity: int) -> np.ndarray:
    """Pairs ``(N, 2)`` of labels that touch across the face between two slabs."""
    steps = {6: 0, 18: 1, 26: before.ndim}[connectivity]
    if before.ndim == 1:
        steps = min(steps, 1)
    found = []
    for offset in itertools.product((-1, 0, 1), repeat=before.ndim):
        if sum(map(abs, offset)) > steps:
            continue
        one = before[tuple(slice(max(d, 0), n + min(d, 0)) for d, n in zip(offset, before.shape, strict=True))]
        two = after[tuple(slice(max(-d, 0), n + min(-d, 0)) for d, n in zip(offset, before.shape, strict=True))]
        touching = (one > 0) & (two > 0)
        found.append(np.unique(np.stack([one[touching], two[touching]], 1), axis=0))
    return np.unique(np.concatenate(found), axis=0)


def _names(count: int, pairs: Sequence[np.ndarray]) -> np.ndarray:
    """The component of each label, numbered from 1; 0 stays 0."""
    joined = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    graph = scipy.sparse.coo_array((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), shape=(count + 1, count + 1))
    # The background is a node without edges, and as the first node it gets the number 0.
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1]


def dust(make: Make, slabs: Sequence[tuple[int, int]], below: int, connectivity: int = 26) -> Callable[[int], np.ndarray]:
    """:func:`pipeline.morphology.dust`: a function from a slab's number to its rows of the result."""
    found = connect(make, slabs, connectivity)
    return _picked(make, found, found.sizes >= max(below, 1))


def hysteresis(low: Make, high: Make, slabs: Sequence[tuple[int, int]], connectivity: int = 26) -> Callable[[int], np.ndarray]:
    """:func:`pipeline.morphology.hysteresis`: a function from a slab's number to its rows of the result."""
    found = connect(low, slabs, connectivity, high)
    return _picked(low, found, found.marked)


def fill_holes(make: Make, slabs: Sequence[tuple[int, int]], below: int | None = None) -> Callable[[int], np.ndarray]:
    """:func:`pipeline.morphology.fill_holes` (not by slices): a function from a slab's number to its rows of the result."""

    def background(first: int, end: int) -> np.ndarray:
        return ~make(first, end)

    found = connect(background, slabs, 6)
    small = ~found.outside & (found.sizes <= below if below is not None else True)
    holes = _picked(background, found, small)
    return lambda number: make(*found.slabs[number]) | holes(number)


def _picked(make: Make, found: Components, wanted: np.ndarray) -> Callable[[int], np.ndarray]:
    return lambda number: found.pick(number, make(*found.slabs[number]), wanted)
