"""Betti matching: which components, tunnels and cavities of two grey-valued arrays are the same
features of their union.

Stucki, Paetzold, Shit, Menze, Bauer, "Topologically faithful image segmentation via induced
matching of persistence barcodes" (ICML 2023, arXiv 2211.15272) and, for volumes, "Efficient Betti
matching" (arXiv 2407.04683). Both arrays are filtered by sublevels on the vertex construction:
voxels are vertices, face neighbours are joined by edges, four edges bound a square, six squares a
cube, and a cell appears with the last of its vertices. The voxelwise minimum of both arrays, their
union, contains either; a feature of one array matches a feature of the other if both are mapped to
the same feature of the union.

Cells of one kind are counted by their smallest corner in C order, then by type: the direction of an
edge, the normal of a square. They appear by value, and among equal values in that order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np

from pipeline.records import UserError

_BITS = 5  # 32 bits to a word of 64: no shift meets the sign
_LOW = (1 << _BITS) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """The features of one dimension, as flat voxel indices (C order, int64).

    A feature is born with one cell and dies with another; each is named by the voxel that completes
    it: of the cell's vertices the one of largest value, among equals the last in C order. Features
    that die at the value of their birth are left out.
    """

    matched: np.ndarray
    """``(N, 4)``: birth and death in the first array, birth and death in the second."""
    first: np.ndarray
    """``(M, 2)``: birth and death of the unmatched features of the first array."""
    second: np.ndarray
    """``(K, 2)``: birth and death of the unmatched features of the second array."""
    essential: np.ndarray
    """``(1, 2)`` in dimension 0, else ``(0, 2)``: births, one in each array, of the component that
    never dies; in no other field.
    """


def match(first: np.ndarray, second: np.ndarray) -> tuple[Pairs, ...]:
    """Match the features of two arrays ``(Y, X)`` or ``(Z, Y, X)`` of one shape: one :class:`Pairs`
    for each dimension.

    Dimension 0 holds components, 1 tunnels (holes of an image), 2 cavities of a volume. Binary
    masks are compared by ``match(~prediction, ~label)``: then foreground is 6-connected, and the
    features of a mask are its Betti numbers less the one essential component. Only the order of the
    values counts; a NaN is larger than any number. Raises UserError for other shapes.
    """
    if first.shape != second.shape or first.ndim not in (2, 3) or not first.size:
        raise UserError(
            f"Betti matching got arrays of the shapes {first.shape} and {second.shape}. Give two of"
            " one shape, (Y, X) or (Z, Y, X), not empty."
        )
    # An axis of length 1 holds no cells: without it the order of the cells is the same, and a flat
    # volume is an image.
    grid = _grid([n for n in first.shape if n > 1])
    ranks = np.unique(np.concatenate([first.ravel(), second.ravel()]), return_inverse=True)[
        1
    ].astype(np.int64)
    arrays = [_filtration(grid, x) for x in (ranks[: first.size], ranks[first.size :])]
    union = _filtration(grid, np.minimum(*(x.ranks for x in arrays)))
    found = [_components(grid, arrays, union)]
    if grid.depth == 3:
        found.append(_tunnels(grid, arrays, union))
    if grid.depth >= 2:
        found.append(_cavities(grid, arrays, union))
    nothing = _pairs([np.empty((0, 2), np.int64)] * 2, np.empty((2, 0), np.int64))
    return (*found, *[nothing] * (first.ndim - len(found)))


# ---------------------------------------------------------------- cells


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """Cells of one kind in their order: smallest corner ``(n,)``, type ``(n,)``, vertices in C
    order ``(n, 2, 4 or 8)``.
    """

    corner: np.ndarray
    type: np.ndarray
    vertices: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """The cells that a shape has.

    Rooms are its largest cells (cubes; squares in 2D), walls part them (squares; edges in 2D).
    """

    depth: int
    edges: _Cells
    walls: _Cells
    rooms: _Cells
    beside: np.ndarray
    """``(walls, 2)``: the rooms on either side of a wall; the number of rooms stands for the
    outside.
    """
    sides: np.ndarray
    """``(walls, 4)``: the edges of a wall; empty in 2D."""


def _grid(lengths: Sequence[int]) -> _Grid:
    """``lengths``: those of at most three axes, each more than 1."""
    depth, shape = len(lengths), (*[1] * (3 - len(lengths)), *lengths)
    steps = np.array([shape[1] * shape[2], shape[2], 1])
    edges = _cells(shape, steps, [(0,), (1,), (2,)])
    walls = _cells(shape, steps, [(1, 2), (0, 2), (0, 1)]) if depth == 3 else edges
    rooms = _cells(shape, steps, [tuple(range(3 - depth, 3))])
    normal = np.array([0, 1, 2] if depth == 3 else [0, 2, 1])
    room = np.full(np.prod(shape), len(rooms.corner))
    room[rooms.corner] = np.arange(len(rooms.corner))
    # A step back from the first layer lands in the last one, where no room begins: that is the
    # outside, as it should be.
    beside = np.stack([room[walls.corner], room[walls.corner - steps[normal[walls.type]]]], 1)
    sides = _sides(walls, edges, steps) if depth == 3 else np.empty((0, 4), np.int64)
    return _Grid(depth=depth, edges=edges, walls=walls, rooms=rooms, beside=beside, sides=sides)


def _cells(shape: tuple[int, ...], steps: np.ndarray, kinds: Sequence[tuple[int, ...]]) -> _Cells:
    """``kinds``: the axes along which the cells of each type extend."""
    fits = np.zeros((*shape, len(kinds)), bool)
    for number, axes in enumerate(kinds):
        fits[
            (
                *(slice(n - 1) if axis in axes else slice(None) for axis, n in enumerate(shape)),
                number,
            )
        ] = True
    corner, types = np.divmod(np.flatnonzero(fits), len(kinds))
    offsets = [
        sorted(sum(on) for on in itertools.product(*((0, int(steps[axis])) for axis in axes)))
        for axes in kinds
    ]
    return _Cells(corner=corner, type=types, vertices=corner[:, None] + np.array(offsets)[types])


def _sides(squares: _Cells, edges: _Cells, steps: np.ndarray) -> np.ndarray:
    edge = np.full((squares.corner.max() + steps.sum() + 1, 3), -1)
    edge[edges.corner, edges.type] = np.arange(len(edges.corner))
    a, b = (squares.type + 1) % 3, (squares.type + 2) % 3
    at = squares.corner
    return np.stack([edge[at, a], edge[at, b], edge[at + steps[a], b], edge[at + steps[b], a]], 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Filtration:
    """When the cells of one array appear: ``ranks`` of its voxels and of each cell, and the order
    of the edges and walls.

    ``bridges`` are the edges that join two components, by appearance, and ``drowned`` the vertex
    from which the younger of the two was born. ``dams`` are the watershed_boundaries whose removal
    joins two rooms, last first, and ``flooded`` the room that thereby ends.
    """

    ranks: np.ndarray
    edges: np.ndarray
    walls: np.ndarray
    rooms: np.ndarray
    bridges: np.ndarray
    drowned: np.ndarray
    dams: np.ndarray
    flooded: np.ndarray


def _filtration(grid: _Grid, ranks: np.ndarray) -> _Filtration:
    edges, walls, rooms = (ranks[x.vertices].max(1) for x in (grid.edges, grid.walls, grid.rooms))
    bridges, drowned = _forest(grid.edges.vertices, _order(edges), _age(ranks))
    dams, flooded = _forest(grid.beside, _order(walls)[::-1], _youth(rooms))
    return _Filtration(
        ranks=ranks,
        edges=edges,
        walls=walls,
        rooms=rooms,
        bridges=bridges,
        drowned=drowned,
        dams=dams,
        flooded=flooded,
    )


def _order(values: np.ndarray) -> np.ndarray:
    # numpy sorts 16 bits in linear time.
    return np.argsort(
        values.astype(np.uint16) if values.max(initial=0) < 1 << 16 else values, kind="stable"
    )


def _age(ranks: np.ndarray) -> np.ndarray:
    """Order in which voxels appear; of two components the one born later dies."""
    return ranks * len(ranks) + np.arange(len(ranks))


def _youth(rooms: np.ndarray) -> np.ndarray:
    """Order, read backwards, in which rooms appear, the outside last of all; of two joined ones
    that which appears first ends.
    """
    return np.append(-_age(rooms), np.iinfo(np.int64).min)


def _forest(ends: np.ndarray, order: np.ndarray, age: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The links of a graph that join two trees, taken in ``order``, and the root that dies at each."""
    died = _unite(ends[order], age)
    joins = died >= 0
    return order[joins], died[joins]


@numba.njit(cache=True, nogil=True)
def _unite(ends, age):
    """At each link ``(n, 2)`` of a graph, in turn: which of the two roots it joins is the larger in
    ``age`` and dies; -1 for none.
    """
    parent = np.arange(len(age))
    died = np.full(len(ends), -1)
    for i in range(len(ends)):
        a, b = ends[i]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        if a != b:
            young, old = (a, b) if age[a] > age[b] else (b, a)
            parent[young] = old
            died[i] = young
    return died


# ---------------------------------------------------------------- features


def _pairs(
    features: Sequence[np.ndarray], hits: np.ndarray, essential: np.ndarray | None = None
) -> Pairs:
    """``features``: ``(F, 2)`` of either array; ``hits`` ``(2, n)``: which of them meet in a
    feature of the union, -1 for none.
    """
    a, b = hits[:, (hits >= 0).all(0)]
    return Pairs(
        matched=np.concatenate([features[0][a], features[1][b]], 1),
        first=np.delete(features[0], a, 0),
        second=np.delete(features[1], b, 0),
        essential=np.empty((0, 2), np.int64) if essential is None else essential,
    )


def _number(keys: np.ndarray, size: int) -> np.ndarray:
    """Table of ``size`` from key to position among ``keys``, -1 for what is no key."""
    table = np.full(size, -1)
    table[keys] = np.arange(len(keys))
    return table


def _last(vertices: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Which vertex completes each cell ``(n, vertices)``."""
    backwards = vertices[:, ::-1]
    return np.take_along_axis(backwards, ranks[backwards].argmax(1)[:, None], 1)[:, 0]


def _components(grid: _Grid, arrays: Sequence[_Filtration], union: _Filtration) -> Pairs:
    """Each edge that joins two components of the union joins, in the same turn, two of each array:
    the dying ones meet.
    """
    features, hits = [], []
    met = union.ranks[union.drowned] != union.edges[union.bridges]
    for x in arrays:
        lasts = x.ranks[x.drowned] != x.edges[x.bridges]
        births, ends = x.drowned[lasts], grid.edges.vertices[x.bridges[lasts]]
        features.append(np.stack([births, _last(ends, x.ranks)], 1))
        dying = _unite(grid.edges.vertices[union.bridges], _age(x.ranks))
        hits.append(_number(births, len(x.ranks))[dying[met]])
    return _pairs(features, np.stack(hits), np.array([[x.ranks.argmin() for x in arrays]]))


def _cavities(grid: _Grid, arrays: Sequence[_Filtration], union: _Filtration) -> Pairs:
    """By duality: seen backwards, a cavity is a component of the rooms.

    Each is mapped to the union's room that the same wall floods.
    """
    features, hits = [], []
    met = union.walls[union.dams] != union.rooms[union.flooded]
    for x in arrays:
        lasts = x.walls[x.dams] != x.rooms[x.flooded]
        ends = grid.walls.vertices[x.dams[lasts]], grid.rooms.vertices[x.flooded[lasts]]
        features.append(np.stack([_last(cells, x.ranks) for cells in ends], 1))
        there = _unite(grid.beside[x.dams], _youth(union.rooms))[lasts]
        hits.append(_number(there, len(union.rooms))[union.flooded[met]])
    return _pairs(features, np.stack(hits))


def _tunnels(grid: _Grid, arrays: Sequence[_Filtration], union: _Filtration) -> Pairs:
    """By matrix reduction.

    A feature of the union is mapped back by its square: to the edge with which that is paired when
    the union's squares are reduced in the order of the array's edges (image persistence).
    """
    features, births = [], []
    for x in arrays:
        squares, edges = _reduced(grid, x, x)
        lasts = x.edges[edges] != x.walls[squares]
        births.append(edges[lasts])
        ends = grid.edges.vertices[edges[lasts]], grid.walls.vertices[squares[lasts]]
        features.append(np.stack([_last(cells, x.ranks) for cells in ends], 1))
    if not all(len(x) for x in births):
        return _pairs(features, np.empty((2, 0), np.int64))
    squares, edges = _reduced(grid, union, union)
    met = union.edges[edges] != union.walls[squares]
    hits = [
        _number(b, len(x.edges))[_reduced(grid, union, x)[1][met]]
        for b, x in zip(births, arrays, strict=True)
    ]
    return _pairs(features, np.stack(hits))


def _reduced(grid: _Grid, columns: _Filtration, rows: _Filtration) -> tuple[np.ndarray, np.ndarray]:
    """The squares that close a tunnel, in the order of ``columns``, and the edge, by the order of
    ``rows``, that opened it.

    Edges that join components open no tunnel and squares that seal a cavity close none: they are
    left out (clearing), and what remains pairs off entirely, because the whole box has no tunnel.
    """
    order = _order(columns.walls)
    squares = order[~np.isin(order, columns.dams)]
    order = _order(rows.edges)
    edges = order[~np.isin(order, rows.bridges)]
    return squares, edges[lowest_ones(_number(edges, len(rows.edges))[grid.sides[squares]])]


@numba.njit(cache=True)
def _flip(words, busy, row):
    """Change a bit of the set ``words``; ``busy`` has a bit for each word that may hold any."""
    words[row >> _BITS] ^= 1 << (row & _LOW)
    busy[row >> 2 * _BITS] |= 1 << ((row >> _BITS) & _LOW)


@numba.njit(cache=True)
def _highest(word):
    bit = 0
    for step in (16, 8, 4, 2, 1):
        if word >> step:
            word >>= step
            bit += step
    return bit


@numba.njit(cache=True)
def _largest(words, busy, block):
    """The largest element of the set, -1 if there is none; ``block`` is a word of ``busy`` above
    which all are 0.
    """
    while block >= 0:
        if busy[block] == 0:
            block -= 1
            continue
        place = (block << _BITS) + _highest(busy[block])
        if words[place]:
            return (place << _BITS) + _highest(words[place])
        busy[block] ^= 1 << (place & _LOW)
    return -1


@numba.njit(cache=True, nogil=True)
def lowest_ones(columns):
    """The lowest one of each column after left-to-right reduction mod 2 (Edelsbrunner, Letscher,
    Zomorodian 2002).

    ``columns`` ``(n, 4)``: the rows of their ones, all below n, or -1. The matrix must have full
    rank: compiled code checks no index.
    """
    size = len(columns)
    pivots, owner, begin = np.full(size, -1), np.full(size, -1), np.zeros(size + 1, np.int64)
    store, used = np.empty(4 * size, np.int64), 0
    words, busy = (
        np.zeros((size >> _BITS) + 1, np.int64),
        np.zeros((size >> 2 * _BITS) + 1, np.int64),
    )
    for column in range(size):
        if used + size > len(store):
            store = np.append(store, np.empty_like(store))
        pivot = columns[column].max()
        alone = (
            owner[pivot] < 0
        )  # so are most: then there is nothing to add, and the column is kept as it is
        for row in columns[column]:
            if row >= 0 and alone:
                store[used] = row
                used += 1
            elif row >= 0:
                _flip(words, busy, row)
        while owner[pivot] >= 0:
            for i in range(begin[owner[pivot]], begin[owner[pivot] + 1]):
                _flip(words, busy, store[i])
            pivot = _largest(words, busy, pivot >> 2 * _BITS)
        pivots[column], owner[pivot] = pivot, column
        row = -1 if alone else pivot
        while row >= 0:
            store[used] = row
            used += 1
            _flip(words, busy, row)
            row = _largest(words, busy, row >> 2 * _BITS)
        begin[column + 1] = used
    return pivots
