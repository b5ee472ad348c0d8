"""Compiled part of :mod:`pipeline.morphology.counts`: squares that close a tunnel within a union.

A volume is a cubical complex with voxels as vertices. It is given as codes
``(X + 2, Y + 2, Z + 2)`` with a margin of zeros: a voxel holds the bit OWN where it lies in the
mask, UNION where it lies in either, and EXISTS everywhere. The code of an edge or square is the
bitwise and of its vertices' codes. Edge ``3 i + t`` leaves voxel ``i`` along axis ``t``; square
``3 i + t`` has its smallest corner at ``i`` and the normal ``t``; cube ``i`` has its smallest
corner at ``i``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

OWN, UNION, EXISTS = 1, 2, 4
MISSING = 3
JOINED, APPARENT, OTHER = 1, 2, 3


@njit(cache=True, inline="always")
def _class(code):
    """0: inside the mask; 1: elsewhere in the union; 2: outside.

    Cells are ordered by class, then position.
    """
    return 0 if code & OWN else (1 if code & UNION else 2)


@njit(cache=True)
def _classes(codes, steps):
    """Class of every edge and of every square; MISSING where there is none."""
    edges, squares = (
        np.full(3 * codes.size, MISSING, np.uint8),
        np.full(3 * codes.size, MISSING, np.uint8),
    )
    for i in range(codes.size - steps[0] - steps[1]):
        if codes[i]:
            for t in range(3):
                a, b = steps[(t + 1) % 3], steps[(t + 2) % 3]
                code = codes[i] & codes[i + steps[t]]
                if code:
                    edges[3 * i + t] = _class(code)
                code = codes[i] & codes[i + a] & codes[i + b] & codes[i + a + b]
                if code:
                    squares[3 * i + t] = _class(code)
    return edges, squares


@njit(cache=True, inline="always")
def _square_edges(square, steps):
    """The four edges of a square."""
    i, t = square // 3, square % 3
    u, v = (t + 1) % 3, (t + 2) % 3
    return 3 * i + u, 3 * i + v, 3 * (i + steps[u]) + v, 3 * (i + steps[v]) + u


@njit(cache=True)
def _spanning_edges(codes, uniform, edges, steps):
    """Edges of the minimum spanning tree that are first at a voxel (cut property).

    No cycle ends with one of them.
    """
    tree = np.zeros(edges.size, np.bool_)
    for i in range(steps[0], codes.size - steps[0]):
        if uniform[i]:
            tree[3 * (i - steps[0])] = True
        elif codes[i]:
            best, best_edge = MISSING, -1
            # In the order of their positions: the first of a class is the first of all.
            for t in range(3):
                edge = 3 * (i - steps[t]) + t
                if edges[edge] < best:
                    best, best_edge = edges[edge], edge
            for edge in range(3 * i, 3 * i + 3):
                if edges[edge] < best:
                    best, best_edge = edges[edge], edge
            if best_edge >= 0:
                tree[best_edge] = True
    return tree


@njit(cache=True, inline="always")
def _root(parent, i):
    """Root of a union-find tree, with path halving."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, inline="always")
def _join(parent, square, steps, exists):
    """Join the two cubes at a square, 0 standing for the outside; False if they were together."""
    i = square // 3
    j = i - steps[square % 3]
    one, two = _root(parent, i if exists[i] else 0), _root(parent, j if exists[j] else 0)
    if one == two:
        return False
    # The outside, and otherwise the smaller index, stays: paths then run in one direction.
    if one < two:
        parent[two] = one
    else:
        parent[one] = two
    return True


@njit(cache=True)
def _last_faces(codes, uniform, squares, steps, state):
    """Join every cube with its neighbour across its last face, and mark the face.

    That face is in the maximum spanning tree.
    """
    exists = np.zeros(codes.size, np.bool_)
    parent = np.arange(codes.size).astype(np.int32)
    diagonal = steps[0] + steps[1] + steps[2]
    for i in range(codes.size - diagonal):
        exists[i] = codes[i] != 0 and codes[i + diagonal] != 0
    for i in range(codes.size):
        if exists[i]:
            face = 3 * (i + steps[0])
            if not uniform[i]:
                best = squares[face]
                for t in (1, 2):  # from the last position down
                    other = 3 * (i + steps[t]) + t
                    if squares[other] > best:
                        best, face = squares[other], other
                for other in range(3 * i + 2, 3 * i - 1, -1):
                    if squares[other] > best:
                        best, face = squares[other], other
            if state[face] != JOINED:
                state[face] = JOINED
                _join(parent, face, steps, exists)
    return parent, exists


@njit(cache=True, inline="always")
def _last_edge(edges, square, steps):
    """The edge of a square that comes last."""
    best, last = -1, -1
    for edge in _square_edges(square, steps):
        if edges[edge] > best or (edges[edge] == best and edge > last):
            best, last = np.int64(edges[edge]), edge
    return last


@njit(cache=True, inline="always")
def _is_first_square(squares, square, edge, steps):
    """Whether no square at the edge comes before this one, which is at it."""
    i, t = edge // 3, edge % 3
    own = squares[square]
    for u in range(3):
        if u != t:
            normal = 3 - t - u
            for corner in (i - steps[u], i):
                other = 3 * corner + normal
                if squares[other] < own or (squares[other] == own and other < square):
                    return False
    return True


@njit(cache=True)
def _split_apparent(codes, uniform, edges, squares, steps, state, owner):
    """Mark the apparent pairs; returns the other squares in order.

    An apparent pair is an edge and a square where the edge is the square's last and the square the
    edge's first.
    """
    for i in range(steps[0], codes.size - steps[0] - steps[1]):
        if uniform[i]:
            for t in (1, 2):
                state[3 * i + t] = APPARENT
                owner[3 * (i + steps[0]) + 3 - t] = 3 * i + t
        elif codes[i]:
            for square in range(3 * i, 3 * i + 3):
                if squares[square] != MISSING and not state[square]:
                    edge = _last_edge(edges, square, steps)
                    if _is_first_square(squares, square, edge, steps):
                        state[square] = APPARENT
                        owner[edge] = square
                    else:
                        state[square] = OTHER + squares[square]
    return np.concatenate(
        (
            np.flatnonzero(state == OTHER),
            np.flatnonzero(state == OTHER + 1),
            np.flatnonzero(state == OTHER + 2),
        )
    )


@njit(cache=True, inline="always")
def _highest(word):
    """Number of the highest bit of a 64-bit word that is set."""
    n = 0
    for shift in (32, 16, 8, 4, 2, 1):
        if word >> np.uint64(shift):
            word >>= np.uint64(shift)
            n += shift
    return n


@njit(cache=True, inline="always")
def _flip(key, column):
    """Add a row to the column modulo 2.

    Two levels above the bits mark where any is set.
    """
    bits, words, blocks = column
    one = np.uint64(1)
    w = key >> 6
    bits[w] ^= one << np.uint64(key & 63)
    b = w >> 6
    if bits[w]:
        words[b] |= one << np.uint64(w & 63)
    else:
        words[b] &= ~(one << np.uint64(w & 63))
    if words[b]:
        blocks[b >> 6] |= one << np.uint64(b & 63)
    else:
        blocks[b >> 6] &= ~(one << np.uint64(b & 63))


@njit(cache=True, inline="always")
def _pivot(column, start):
    """Largest row of the column, -1 if it is empty; no block above ``start`` has a bit set."""
    bits, words, blocks = column
    for k in range(start, -1, -1):
        if blocks[k]:
            b = (k << 6) + _highest(blocks[k])
            w = (b << 6) + _highest(words[b])
            return (w << 6) + _highest(bits[w])
    return -1


@njit(cache=True)
def _add_boundary(square, edges, steps, tree, column):
    """Add a square's edges to the column, without those that no cycle ends with."""
    for edge in _square_edges(square, steps):
        if not tree[edge]:
            _flip(np.int64(edges[edge]) * len(edges) + edge, column)


@njit(cache=True)
def _reduce(edges, steps, tree, owner, columns, column):
    """Add earlier columns until the pivot has no owner; returns it, or -1 where nothing is left."""
    starts, stored = columns
    pivot = _pivot(column, len(column[2]) - 1)
    while pivot >= 0:
        pivot_owner = owner[pivot % len(edges)]
        if pivot_owner == -1:
            break
        if pivot_owner >= 0:
            _add_boundary(pivot_owner, edges, steps, tree, column)
        else:
            for n in range(starts[-2 - pivot_owner], starts[-1 - pivot_owner]):
                _flip(np.int64(stored[n]), column)
        pivot = _pivot(column, pivot >> 18)
    return pivot


@njit(cache=True)
def _store_column(pivot, stored, used, column):
    """Move the rows of the column to the end of ``stored``, which may grow.

    Returns it and how much of it is used.
    """
    while pivot >= 0:
        if used == len(stored):
            stored = np.concatenate((stored, np.empty(used, np.int32)))
        stored[used] = pivot
        used += 1
        _flip(pivot, column)
        pivot = _pivot(column, pivot >> 18)
    return stored, used


@njit(cache=True, nogil=True)
def closing_squares(codes, uniform, steps):
    """Find the squares outside the union that close a class of cycles of the mask.

    They close it in the union that grows over the outside.

    Reduces the boundary matrix with the squares of mask, union and outside in this order as
    columns, and the edges ordered in the same way as rows: a square of the outside whose reduced
    column lies in the mask is one of those.

    Args:
        codes: of the voxels, flat uint8.
        uniform: flat bool, voxels whose surroundings all have their code: there every cell is
            paired with its neighbour along the first axis without a search.
        steps: distances in ``codes`` from a voxel to its three next ones, int64 ``(3,)``.

    Returns:
        Numbers of the squares in their order, int64.
    """
    state = np.zeros(3 * codes.size, np.uint8)
    # Of an edge: the apparent square, or -2 - k for the k-th stored column.
    owner = np.full(3 * codes.size, -1, np.int32)
    edges, squares = _classes(codes, steps)
    tree = _spanning_edges(codes, uniform, edges, steps)
    parent, exists = _last_faces(codes, uniform, squares, steps, state)
    rest = _split_apparent(codes, uniform, edges, squares, steps, state, owner)
    # Boundaries of cavities reduce to nothing: the dual graph identifies them.
    for n in range(len(rest) - 1, -1, -1):
        if _join(parent, rest[n], steps, exists):
            state[rest[n]] = JOINED
    bits = np.zeros((9 * codes.size >> 6) + 1, np.uint64)
    words = np.zeros((len(bits) >> 6) + 1, np.uint64)
    column = (bits, words, np.zeros((len(words) >> 6) + 1, np.uint64))
    starts = np.zeros(len(rest) + 1, np.int64)
    stored, count = np.empty(1 << 16, np.int32), 0
    found = [0]
    for square in rest:
        if state[square] != JOINED:
            _add_boundary(square, edges, steps, tree, column)
            pivot = _reduce(edges, steps, tree, owner, (starts, stored), column)
            if 0 <= pivot < len(edges) and squares[square] == 2:
                found.append(square)
            if pivot >= 0:
                owner[pivot % len(edges)] = -2 - count
                stored, starts[count + 1] = _store_column(pivot, stored, starts[count], column)
                count += 1
    return np.array(found[1:])
