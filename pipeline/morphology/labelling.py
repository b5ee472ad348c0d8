"""Connected components of masks, and what removes, keeps or fills whole components.

Everything here is defined over slabs: each is labelled by itself, and components that touch across
the face of two slabs are joined afterwards, so that memory follows one slab and the number of
components. An array in memory is the case of one slab: it is labelled once, and nothing is joined.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import cc3d
import numpy as np
import scipy

from pipeline.morphology.slabs import SlabArray
from pipeline.records import UserError

_NEIGHBOURS: dict[int, dict[int, Literal[4, 6, 8, 18, 26]]] = {
    2: {6: 4, 18: 8, 26: 8},
    3: {6: 6, 18: 18, 26: 26},
}

Mask = TypeVar("Mask", np.ndarray, SlabArray)
"""A mask ``(Z, Y, X)`` or ``(Y, X)``, in memory or slab by slab."""

Measure = Callable[[np.ndarray, int, int], np.ndarray]
"""``(labels, count, number of the slab)`` -> a number for each label, ``(count + 1,)``.

It adds up over the parts of a component; entry 0, the background, has no meaning.
"""


def as_mask(mask: np.ndarray) -> np.ndarray:
    """Convert a mask to contiguous bool.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)`` of any number type.

    Returns:
        bool, same shape; True where non-zero.

    Raises:
        UserError: it has other than two or three axes.
    """
    if mask.ndim not in _NEIGHBOURS:
        raise UserError(
            f"A mask has 2 or 3 axes, this one has the shape {mask.shape}."
            " Give (Y, X) or (Z, Y, X)."
        )
    return np.ascontiguousarray(mask, dtype=bool)


def components(mask: np.ndarray, connectivity: int = 26) -> tuple[np.ndarray, int]:
    """Label the connected components of a mask in memory.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        connectivity: 6, 18 or 26 as in 3D; in 2D 6 means 4 neighbours, 18 and 26 mean 8.

    Returns:
        Labels (unsigned, 0 is background, 1.. in C order of the first voxels) and their number.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or the connectivity is unknown.

    Example:
        >>> import numpy as np
        >>> labels, count = components(np.array([[1, 1, 0, 1]]))
        >>> labels.tolist(), count
        ([[1, 1, 0, 2]], 2)
    """
    mask = as_mask(mask)
    known = _NEIGHBOURS[mask.ndim]
    if connectivity not in known:
        raise UserError(
            f"connectivity is {connectivity!r}; it must be one of {', '.join(map(str, known))}"
            " (in 2D 6 means 4, 26 means 8)."
        )
    # As integers: for bool arrays cc3d 4.1.1 reserves too few labels and fails on, or mislabels,
    # some images and thin volumes.
    labels, count = cc3d.connected_components(
        mask.view(np.uint8), connectivity=known[connectivity], return_N=True
    )
    return labels, int(count)


def component_sizes(mask: np.ndarray | SlabArray, connectivity: int = 26) -> np.ndarray:
    """Count the voxels of each component.

    Args:
        mask: in memory or in slabs.
        connectivity: 6, 18 or 26 as in 3D; in 2D 6 means 4 neighbours, 18 and 26 mean 8.

    Returns:
        int64 ``(number of components + 1,)``; entry 0 is 0.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or the connectivity is unknown.

    Example:
        >>> import numpy as np
        >>> component_sizes(np.array([[1, 1, 0, 1]])).tolist()
        [0, 2, 1]
    """
    if isinstance(mask, SlabArray):
        return connect(mask, connectivity, _sizes).totals.astype(np.int64)
    return _sizes(*components(mask, connectivity))


def remove_small_components(mask: Mask, min_size: int, connectivity: int = 26) -> Mask:
    """Remove the components of fewer than ``min_size`` voxels.

    Args:
        mask: in memory or in slabs.
        min_size: voxels of the smallest component that stays.
        connectivity: 6, 18 or 26 as in 3D; in 2D 6 means 4 neighbours, 18 and 26 mean 8.

    Returns:
        A mask of the same kind, bool.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or the connectivity is unknown.

    Example:
        >>> import numpy as np
        >>> remove_small_components(np.array([[1, 1, 0, 1]]), 2).astype(int)
        array([[1, 1, 0, 0]])
    """
    return _select(mask, connectivity, _sizes, lambda sizes: sizes >= max(min_size, 1))


def keep_largest(mask: Mask, connectivity: int = 26) -> Mask:
    """Keep the component with the most voxels.

    Components of equal size, when there is none larger, all stay: which of them came first would
    depend on the orientation of the array.

    Args:
        mask: in memory or in slabs.
        connectivity: 6, 18 or 26 as in 3D; in 2D 6 means 4 neighbours, 18 and 26 mean 8.

    Returns:
        A mask of the same kind, bool.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or the connectivity is unknown.

    Example:
        >>> import numpy as np
        >>> keep_largest(np.array([[1, 1, 0, 1]])).astype(int)
        array([[1, 1, 0, 0]])
    """
    return _select(mask, connectivity, _sizes, lambda sizes: sizes == sizes.max())


def hysteresis(low: Mask, high: Mask, connectivity: int = 26) -> Mask:
    """Keep the components of the mask ``low`` that hold at least one voxel of the mask ``high``.

    Args:
        low: in memory or in slabs.
        high: of the same shape and kind.
        connectivity: 6, 18 or 26 as in 3D; in 2D 6 means 4 neighbours, 18 and 26 mean 8.

    Returns:
        A mask of the same kind, bool.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or the connectivity is unknown.

    Source:
        Canny, A computational approach to edge detection, TPAMI 8, 1986.
    """

    def marks(labels: np.ndarray, count: int, number: int) -> np.ndarray:
        rows = high.make(number) if isinstance(high, SlabArray) else high
        found = np.zeros(count + 1, dtype=bool)
        found[labels[as_mask(rows)]] = True
        return found

    return _select(low, connectivity, marks, lambda found: found > 0)


def fill_holes(mask: Mask, max_size: int | None = None, per_slice: int | None = None) -> Mask:
    """Fill the holes of at most ``max_size`` voxels.

    A hole is a 6-connected (2D: 4-connected) component of the background that does not touch the
    border of the array. This is the background of a 26-connected foreground, and what
    ``scipy.ndimage.binary_fill_holes`` fills.

    Args:
        mask: in memory, or in slabs.
        max_size: voxels of the largest hole that is filled; None: holes of any size.
        per_slice: an axis of a volume in memory: holes are those of each 2D slice perpendicular to
            it, which are cavities and also tunnels that run along the axis; None: cavities.

    Returns:
        A mask of the same kind, bool.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or ``per_slice`` names no axis of a volume.

    Example:
        >>> import numpy as np
        >>> fill_holes(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])).astype(int)[1]
        array([1, 1, 1])
    """
    if not isinstance(mask, SlabArray):
        mask = as_mask(mask)
        if per_slice is not None:
            return _fill_slices(mask, max_size, per_slice)
    # fill_voids 2.1.2 fills another set in 2 of 100 small random volumes, and is no faster.
    numbers = list(mask.ranges) if isinstance(mask, SlabArray) else [0]

    def sizes(labels: np.ndarray, count: int, number: int) -> np.ndarray:
        """Voxels of each label, inf where it touches the border; 0 where any hole is filled."""
        found = (
            np.zeros(count + 1) if max_size is None else _sizes(labels, count).astype(np.float64)
        )
        for face in _border(labels, number == numbers[0], number == numbers[-1]):
            found[face] = np.inf
        return found

    filled: Any = mask | _select(
        ~mask, 6, sizes, lambda found: found <= (0 if max_size is None else max_size)
    )
    return filled


def _fill_slices(mask: np.ndarray, max_size: int | None, axis: int) -> np.ndarray:
    """Fill the holes of each 2D slice perpendicular to an axis."""
    if mask.ndim != 3 or axis not in range(-3, 3):
        raise UserError(
            f"per_slice is {axis!r} for a mask of shape {mask.shape}; it names an axis of a volume:"
            " 0, 1 or 2."
        )
    out = np.empty_like(mask)
    for before, after in zip(np.moveaxis(mask, axis, 0), np.moveaxis(out, axis, 0), strict=True):
        after[...] = fill_holes(before, max_size)
    return out


def _sizes(labels: np.ndarray, count: int, _: int = 0) -> np.ndarray:
    """Voxels of each component; entry 0 is 0.

    Counted piece by piece, because NumPy first makes integers of 64 bits of what it counts.
    """
    flat, step = labels.reshape(-1), max(2**20, 16 * count)
    pieces = (flat[i : i + step] for i in range(0, labels.size, step))
    return sum(
        (np.bincount(p[p > 0], minlength=count + 1) for p in pieces), np.zeros(count + 1, np.int64)
    )


def _border(labels: np.ndarray, first: bool, last: bool) -> Iterator[np.ndarray]:
    """Labels at those faces of a slab that are faces of the array."""
    if first:
        yield labels[0]
    if last:
        yield labels[-1]
    for axis in range(1, labels.ndim):
        yield labels.take(0, axis)
        yield labels.take(-1, axis)


def _select(
    mask: Mask, connectivity: int, measure: Measure, wanted: Callable[[np.ndarray], np.ndarray]
) -> Mask:
    """The components of the mask whose measure is ``wanted``."""

    def of_one_slab(rows: np.ndarray, number: int = 0) -> np.ndarray:
        labels, count = components(rows, connectivity)
        return _selected(labels, wanted(measure(labels, count, number)))

    if not isinstance(mask, SlabArray):
        return of_one_slab(mask)
    if len(mask.ranges) == 1:
        return mask.map(lambda rows: of_one_slab(rows, *mask.ranges))
    found = connect(mask, connectivity, measure)
    return found.select(wanted(found.totals))


def _selected(labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The voxels whose label is wanted; ``wanted`` is by label, and its entry 0 is overwritten."""
    wanted[0] = False
    return wanted[labels]


# --- over several slabs ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """Components of a mask in slabs.

    A *global label* is a label of a slab plus its entry in ``label_offsets``; 0: background.

    Args:
        mask: in slabs.
        connectivity: 6, 18 or 26.
        label_offsets: for each slab what is added to its labels.
        component_of: component of each global label, from 1 on; 0 of the background.
        totals: measure of each component, ``(number of components + 1,)``.
    """

    mask: SlabArray
    connectivity: int
    label_offsets: Mapping[int, int]
    component_of: np.ndarray
    totals: np.ndarray

    def select(self, wanted: np.ndarray) -> SlabArray:
        """Select components.

        Args:
            wanted: bool by component.

        Returns:
            Their voxels; slabs are labelled again when they are made.
        """

        def make(number: int) -> np.ndarray:
            labels, count = components(self.mask.make(number), self.connectivity)
            base = self.label_offsets[number]
            return _selected(labels, wanted[self.component_of[base : base + count + 1]])

        return SlabArray(self.mask.shape, self.mask.ranges, make)


def connect(mask: SlabArray, connectivity: int, measure: Measure) -> Components:
    """Label each slab and join what touches: the components of the whole mask.

    Args:
        mask: in slabs.
        connectivity: 6, 18 or 26.
        measure: number for each label of a slab, which adds up over the parts of a component.

    Returns:
        The components with their measures.
    """
    label_offsets, totals, pairs = {}, [np.zeros(1)], []
    base, face = 0, None
    for number in mask.ranges:
        labels, count = components(mask.make(number), connectivity)
        label_offsets[number] = base
        totals.append(measure(labels, count, number)[1:])
        if face is not None:
            pairs.append(_contacts(face, _offset_labels(labels[0], base), connectivity))
        face = _offset_labels(labels[-1], base)
        base += count
    component_of = _component_numbers(base, pairs)
    total = np.bincount(component_of, weights=np.concatenate(totals))
    return Components(
        mask=mask,
        connectivity=connectivity,
        label_offsets=label_offsets,
        component_of=component_of,
        totals=total,
    )


def _offset_labels(labels: np.ndarray, base: int) -> np.ndarray:
    """Global labels of a slab's labels; 0 stays 0."""
    return np.where(labels > 0, labels.astype(np.int64) + base, 0)


def _contacts(before: np.ndarray, after: np.ndarray, connectivity: int) -> np.ndarray:
    """Pairs ``(N, 2)`` of global labels that touch across the face between two slabs."""
    steps = {6: 0, 18: 1, 26: before.ndim}[connectivity]
    if before.ndim == 1:
        steps = min(steps, 1)
    found = []
    for offset in itertools.product((-1, 0, 1), repeat=before.ndim):
        if sum(map(abs, offset)) > steps:
            continue
        one = before[
            tuple(
                slice(max(d, 0), n + min(d, 0)) for d, n in zip(offset, before.shape, strict=True)
            )
        ]
        two = after[
            tuple(
                slice(max(-d, 0), n + min(-d, 0)) for d, n in zip(offset, before.shape, strict=True)
            )
        ]
        touching = (one > 0) & (two > 0)
        # One number for each pair sorts many times faster than rows do; SciPy's graphs end at
        # 2^31 nodes anyway.
        found.append(np.unique(one[touching] << 32 | two[touching]))
    pairs = np.unique(np.concatenate(found))
    return np.stack([pairs >> 32, pairs & 0xFFFFFFFF], 1)


def _component_numbers(count: int, pairs: Sequence[np.ndarray]) -> np.ndarray:
    """The component of each global label, numbered from 1; 0 stays 0."""
    joined = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    graph = scipy.sparse.coo_array(
        (np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), shape=(count + 1, count + 1)
    )
    # The background is a node without edges, and as the first node it gets the number 0.
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
