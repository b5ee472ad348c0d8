"""Betti matching: which features of two grey-valued arrays are the same features of their union.

Features are components, tunnels and cavities.

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
    """``(1, 2)`` in dimension 0, else ``(0, 2)``: births of the component that never dies.

    One birth in each array; the component is in no other field.
    """


def match(first: np.ndarray, second: np.ndarray) -> tuple[Pairs, ...]:
    """Match the features of two grey-valued arrays.

    Binary masks are compared by ``match(~prediction, ~label)``: then foreground is 6-connected, and
    the features of a mask are its Betti numbers less the one essential component. Only the order of
    the values counts; a NaN is larger than any number.

    Args:
        first: ``(Y, X)`` or ``(Z, Y, X)``, not empty.
        second: of the same shape.

    Returns:
        One :class:`Pairs` for each dimension: 0 holds components, 1 tunnels (holes of an image), 2
        cavities of a volume.

    Raises:
        UserError: for other shapes.

    Example:
        >>> import numpy as np
        >>> first, second = np.array([[0.0, 0.9, 0.1]]), np.array([[0.2, 0.8, 0.0]])
        >>> match(first, second)[0].matched.tolist()
        [[2, 1, 0, 1]]
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
    """Cells of one kind in their order."""

    corner: np.ndarray
    """Smallest corner of each, ``(n,)``."""
    type: np.ndarray
    """Type of each, ``(n,)``."""
    vertices: np.ndarray
    """Vertices of each in C order, ``(n, 2, 4 or 8)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """The cells of a shape.

    Top cells are the largest (cubes; squares in 2D), facets separate them (squares; edges in 2D).
    """

    depth: int
    edges: _Cells
    facets: _Cells
    tops: _Cells
    adjacent: np.ndarray
    """``(facets, 2)``: top cells on either side of a facet; the count of top cells: outside."""
    square_edges: np.ndarray
    """``(facets, 4)``: the edges of a square; empty in 2D."""


def _grid(lengths: Sequence[int]) -> _Grid:
    """Cells of a grid; ``lengths`` are those of at most three axes, each more than 1."""
    depth, shape = len(lengths), (*[1] * (3 - len(lengths)), *lengths)
    steps = np.array([shape[1] * shape[2], shape[2], 1])
    edges = _cells(shape, steps, [(0,), (1,), (2,)])
    facets = _cells(shape, steps, [(1, 2), (0, 2), (0, 1)]) if depth == 3 else edges
    tops = _cells(shape, steps, [tuple(range(3 - depth, 3))])
    normal = np.array([0, 1, 2] if depth == 3 else [0, 2, 1])
    top_at = np.full(np.prod(shape), len(tops.corner))
    top_at[tops.corner] = np.arange(len(tops.corner))
    # A step back from the first layer lands in the last one, where no top cell begins: that is
    # the outside, as it should be.
    adjacent = np.stack(
        [top_at[facets.corner], top_at[facets.corner - steps[normal[facets.type]]]], 1
    )
    square_edges = _square_edges(facets, edges, steps) if depth == 3 else np.empty((0, 4), np.int64)
    return _Grid(
        depth=depth,
        edges=edges,
        facets=facets,
        tops=tops,
        adjacent=adjacent,
        square_edges=square_edges,
    )


def _cells(shape: tuple[int, ...], steps: np.ndarray, kinds: Sequence[tuple[int, ...]]) -> _Cells:
    """Cells of one kind; ``kinds`` are the axes along which the cells of each type extend."""
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


def _square_edges(squares: _Cells, edges: _Cells, steps: np.ndarray) -> np.ndarray:
    """The four edges of each square."""
    edge = np.full((squares.corner.max() + steps.sum() + 1, 3), -1)
    edge[edges.corner, edges.type] = np.arange(len(edges.corner))
    a, b = (squares.type + 1) % 3, (squares.type + 2) % 3
    at = squares.corner
    return np.stack([edge[at, a], edge[at, b], edge[at + steps[a], b], edge[at + steps[b], a]], 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Filtration:
    """When the cells of one array appear: ``ranks`` of its voxels and of each cell.

    ``joining_edges`` join two components, by appearance, and ``younger_births`` are the vertices
    from which the younger of the two was born. ``sealing_facets`` are the facets whose removal
    joins two components of top cells, last first, ``filling_cells`` the top cells that end then.
    """

    ranks: np.ndarray
    edges: np.ndarray
    facets: np.ndarray
    tops: np.ndarray
    joining_edges: np.ndarray
    younger_births: np.ndarray
    sealing_facets: np.ndarray
    filling_cells: np.ndarray


def _filtration(grid: _Grid, ranks: np.ndarray) -> _Filtration:
    edges, facets, tops = (ranks[x.vertices].max(1) for x in (grid.edges, grid.facets, grid.tops))
    joining_edges, younger_births = _merges(grid.edges.vertices, _order(edges), _age(ranks))
    sealing_facets, filling_cells = _merges(grid.adjacent, _order(facets)[::-1], _dual_age(tops))
    return _Filtration(
        ranks=ranks,
        edges=edges,
        facets=facets,
        tops=tops,
        joining_edges=joining_edges,
        younger_births=younger_births,
        sealing_facets=sealing_facets,
        filling_cells=filling_cells,
    )


def _order(values: np.ndarray) -> np.ndarray:
    """Stable order of the values."""
    # numpy sorts 16 bits in linear time.
    return np.argsort(
        values.astype(np.uint16) if values.max(initial=0) < 1 << 16 else values, kind="stable"
    )


def _age(ranks: np.ndarray) -> np.ndarray:
    """Order in which voxels appear; of two components the one born later dies."""
    return ranks * len(ranks) + np.arange(len(ranks))


def _dual_age(tops: np.ndarray) -> np.ndarray:
    """Order, read backwards, in which top cells appear, the outside last of all.

    Of two joined ones that which appears first ends.
    """
    return np.append(-_age(tops), np.iinfo(np.int64).min)


def _merges(ends: np.ndarray, order: np.ndarray, age: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The links of a graph that join two trees, in ``order``, and the root that dies at each."""
    died = _dying_roots(ends[order], age)
    joins = died >= 0
    return order[joins], died[joins]


@numba.njit(cache=True, nogil=True)
def _dying_roots(ends, age):
    """At each link ``(n, 2)`` of a graph, in turn: the root that dies, -1 where none does.

    Of the two roots that a link joins the larger in ``age`` dies.
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
    """Features of both arrays, matched where ``hits`` says that they meet in the union.

    ``features`` are ``(F, 2)`` of either array; ``hits`` ``(2, n)`` holds for each feature of the
    union which of them meet in it, -1 for none.
    """
    a, b = hits[:, (hits >= 0).all(0)]
    return Pairs(
        matched=np.concatenate([features[0][a], features[1][b]], 1),
        first=np.delete(features[0], a, 0),
        second=np.delete(features[1], b, 0),
        essential=np.empty((0, 2), np.int64) if essential is None else essential,
    )


def _index_table(keys: np.ndarray, size: int) -> np.ndarray:
    """Table of ``size`` from key to position among ``keys``, -1 for what is no key."""
    table = np.full(size, -1)
    table[keys] = np.arange(len(keys))
    return table


def _last(vertices: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Which vertex completes each cell ``(n, vertices)``."""
    backwards = vertices[:, ::-1]
    return np.take_along_axis(backwards, ranks[backwards].argmax(1)[:, None], 1)[:, 0]


def _components(grid: _Grid, arrays: Sequence[_Filtration], union: _Filtration) -> Pairs:
    """Match components.

    Each edge that joins two components of the union joins, in the same turn, two of each array: the
    dying ones meet.
    """
    features, hits = [], []
    is_feature = union.ranks[union.younger_births] != union.edges[union.joining_edges]
    for x in arrays:
        persistent = x.ranks[x.younger_births] != x.edges[x.joining_edges]
        births, ends = (
            x.younger_births[persistent],
            grid.edges.vertices[x.joining_edges[persistent]],
        )
        features.append(np.stack([births, _last(ends, x.ranks)], 1))
        dying = _dying_roots(grid.edges.vertices[union.joining_edges], _age(x.ranks))
        hits.append(_index_table(births, len(x.ranks))[dying[is_feature]])
    return _pairs(features, np.stack(hits), np.array([[x.ranks.argmin() for x in arrays]]))


def _cavities(grid: _Grid, arrays: Sequence[_Filtration], union: _Filtration) -> Pairs:
    """Match cavities by duality: in reverse order a cavity is a component of the top cells.

    Each is mapped to the union's top cell that ends with the same facet.
    """
    features, hits = [], []
    is_feature = union.facets[union.sealing_facets] != union.tops[union.filling_cells]
    for x in arrays:
        persistent = x.facets[x.sealing_facets] != x.tops[x.filling_cells]
        ends = (
            grid.facets.vertices[x.sealing_facets[persistent]],
            grid.tops.vertices[x.filling_cells[persistent]],
        )
        features.append(np.stack([_last(cells, x.ranks) for cells in ends], 1))
        mapped = _dying_roots(grid.adjacent[x.sealing_facets], _dual_age(union.tops))[persistent]
        hits.append(_index_table(mapped, len(union.tops))[union.filling_cells[is_feature]])
    return _pairs(features, np.stack(hits))


def _tunnels(grid: _Grid, arrays: Sequence[_Filtration], union: _Filtration) -> Pairs:
    """Match tunnels by matrix reduction.

    A feature of the union is mapped back by its square: to the edge with which that is paired when
    the union's squares are reduced in the order of the array's edges (image persistence).
    """
    features, births = [], []
    for x in arrays:
        squares, edges = _reduced(grid, x, x)
        persistent = x.edges[edges] != x.facets[squares]
        births.append(edges[persistent])
        ends = grid.edges.vertices[edges[persistent]], grid.facets.vertices[squares[persistent]]
        features.append(np.stack([_last(cells, x.ranks) for cells in ends], 1))
    if not all(len(x) for x in births):
        return _pairs(features, np.empty((2, 0), np.int64))
    squares, edges = _reduced(grid, union, union)
    is_feature = union.edges[edges] != union.facets[squares]
    hits = [
        _index_table(b, len(x.edges))[_reduced(grid, union, x)[1][is_feature]]
        for b, x in zip(births, arrays, strict=True)
    ]
    return _pairs(features, np.stack(hits))


def _reduced(grid: _Grid, columns: _Filtration, rows: _Filtration) -> tuple[np.ndarray, np.ndarray]:
    """The squares that close a tunnel and the edge that opened each.

    Squares are in the order of ``columns``, edges are paired by the order of ``rows``.

    Edges that join components open no tunnel and squares that seal a cavity close none: they are
    left out (clearing), and what remains pairs off entirely, because the whole box has no tunnel.
    """
    order = _order(columns.facets)
    squares = order[~np.isin(order, columns.sealing_facets)]
    order = _order(rows.edges)
    edges = order[~np.isin(order, rows.joining_edges)]
    return squares, edges[
        lowest_ones(_index_table(edges, len(rows.edges))[grid.square_edges[squares]])
    ]


@numba.njit(cache=True)
def _flip(words, busy, row):
    """Change a bit of the set ``words``; ``busy`` has a bit for each word that may hold any."""
    words[row >> _BITS] ^= 1 << (row & _LOW)
    busy[row >> 2 * _BITS] |= 1 << ((row >> _BITS) & _LOW)


@numba.njit(cache=True)
def _highest(word):
    """Number of the highest bit of a 32-bit word that is set."""
    bit = 0
    for step in (16, 8, 4, 2, 1):
        if word >> step:
            word >>= step
            bit += step
    return bit


@numba.njit(cache=True)
def _largest(words, busy, block):
    """The largest element of the set, -1 if there is none.

    ``block`` is a word of ``busy`` above which all are 0.
    """
    while block >= 0:
        if busy[block] == 0:
            block -= 1
            continue
        word = (block << _BITS) + _highest(busy[block])
        if words[word]:
            return (word << _BITS) + _highest(words[word])
        busy[block] ^= 1 << (word & _LOW)
    return -1


@numba.njit(cache=True, nogil=True)
def lowest_ones(columns):
    """The lowest one of each column after left-to-right reduction mod 2.

    ``columns`` ``(n, 4)``: the rows of their ones, all below n, or -1. The matrix must have full
    rank: compiled code checks no index.

    Source: Edelsbrunner, Letscher, Zomorodian 2002.
    """
    size = len(columns)
    pivots, owner, begin = np.full(size, -1), np.full(size, -1), np.zeros(size + 1, np.int64)
    stored, used = np.empty(4 * size, np.int64), 0
    words = np.zeros((size >> _BITS) + 1, np.int64)
    busy = np.zeros((size >> 2 * _BITS) + 1, np.int64)
    for column in range(size):
        if used + size > len(stored):
            stored = np.append(stored, np.empty_like(stored))
        pivot = columns[column].max()
        # Most are alone: then there is nothing to add, and the column is kept as it is.
        alone = owner[pivot] < 0
        for row in columns[column]:
            if row >= 0 and alone:
                stored[used] = row
                used += 1
            elif row >= 0:
                _flip(words, busy, row)
        while owner[pivot] >= 0:
            for i in range(begin[owner[pivot]], begin[owner[pivot] + 1]):
                _flip(words, busy, stored[i])
            pivot = _largest(words, busy, pivot >> 2 * _BITS)
        pivots[column], owner[pivot] = pivot, column
        row = -1 if alone else pivot
        while row >= 0:
            stored[used] = row
            used += 1
            _flip(words, busy, row)
            row = _largest(words, busy, row >> 2 * _BITS)
        begin[column + 1] = used
    return pivots
