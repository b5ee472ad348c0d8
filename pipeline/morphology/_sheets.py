"""Compiled loops of :mod:`pipeline.morphology.sheets`: repairs within small neighbourhoods.

Arrays are flat: volumes of int32 component numbers in C order, with a margin of one voxel all
around. 0 is background that may be filled; -1, which the margin holds throughout, is background
that stays. ``steps`` are the strides of the three axes.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# A cube of 3 x 3 x 3 voxels is 27 bits, of which bit 9 (z + 1) + 3 (y + 1) + (x + 1) stands for the
# offset (z, y, x).
_SPACE = (1 << 27) - 1
_CENTRE = 1 << 13


def _bits(belongs) -> int:
    """Bits of the neighbours (z, y, x) that belong to a set."""
    return sum(1 << k for k in range(27) if belongs(k // 9 - 1, k // 3 % 3 - 1, k % 3 - 1))


_FACES = _bits(lambda z, y, x: abs(z) + abs(y) + abs(x) == 1)
_FACES_AND_EDGES = _bits(lambda z, y, x: 1 <= abs(z) + abs(y) + abs(x) <= 2)
_NOT_LEFT, _NOT_RIGHT = _bits(lambda z, y, x: x > -1), _bits(lambda z, y, x: x < 1)
_NOT_UPPER, _NOT_LOWER = _bits(lambda z, y, x: y > -1), _bits(lambda z, y, x: y < 1)


@njit(cache=True, nogil=True)
def fill_contacts(labels, steps, table):
    """Fill background in place until no 2 x 2 x 2 block has a contact by edge or corner only.

    Voxels are filled one at a time: of those that ``table`` allows the one with the most foreground
    around it, the first of equal ones, unless it would touch another component.

    Args:
        labels: flat int32 volume.
        steps: strides of the axes, int64 ``(3,)``.
        table: uint8 ``(256,)``, for the code of a block (bit 4 z + 2 y + x) the bits of the voxels
            that may be filled next.
    """
    corners = np.empty(8, np.int64)
    for k in range(8):
        corners[k] = (k >> 2) * steps[0] + (k >> 1 & 1) * steps[1] + (k & 1) * steps[2]
    blocks = [np.int64(0) for _ in range(0)]
    for first in range(labels.size - corners[7]):
        blocks.append(np.int64(first))
        while len(blocks) > 0:
            voxel, own = _next_to_fill(labels, blocks.pop(), corners, steps, table)
            if voxel >= 0:
                labels[voxel] = own
                for k in range(8):
                    blocks.append(voxel - corners[k])


@njit(cache=True, inline="always")
def _next_to_fill(labels, block, corners, steps, table):
    """A background voxel of a block and the component that it goes to; -1 if there is none."""
    code, own = 0, np.int32(0)  # all foreground of a block is one component
    for k in range(8):
        label = labels[block + corners[k]]
        if label > 0:
            code |= 1 << k
            own = label
    best, most = np.int64(-1), 0
    for k in range(8):
        if table[code] >> k & 1 and labels[block + corners[k]] == 0:
            around = _around(labels, block + corners[k], steps, own)
            if around > most:
                best, most = block + corners[k], around
    return best, own


@njit(cache=True, inline="always")
def _around(labels, voxel, steps, own):
    """Neighbours (26) of a voxel in component ``own``; -1 if another component is among them."""
    count = 0
    for z in range(-1, 2):
        for y in range(-1, 2):
            for x in range(-1, 2):
                label = labels[voxel + z * steps[0] + y * steps[1] + x * steps[2]]
                if label == own:
                    count += 1
                elif label > 0:
                    return -1
    return count


@njit(cache=True, nogil=True)
def areas(labels, offsets, weights, count):
    """Count, weighted, the pairs of neighbours that the surface of each component separates.

    Args:
        labels: int32 ``(Z, Y, X)``, not flat; its margin repeats the faces of the volume.
        offsets: from a voxel to its neighbours, int64 ``(N, 3)``.
        weights: float64 ``(N,)``.
        count: number of components.

    Returns:
        Float64 ``(count + 1,)``; entry 0 is 0.
    """
    out = np.zeros(count + 1, np.float64)
    for z in range(1, labels.shape[0] - 1):
        for y in range(1, labels.shape[1] - 1):
            for x in range(1, labels.shape[2] - 1):
                one = labels[z, y, x]
                for k in range(weights.size):
                    other = labels[z + offsets[k, 0], y + offsets[k, 1], x + offsets[k, 2]]
                    if (one > 0) != (other > 0):
                        out[max(one, other)] += weights[k]
    return out


@njit(cache=True, nogil=True)
def shortest_axes(labels, steps, first):
    """Find for every foreground voxel the axis along which the run through it is shortest.

    Args:
        labels: flat int32 volume.
        steps: strides of the axes, int64 ``(3,)``.
        first: smallest axis to consider.

    Returns:
        Axes, uint8 flat; the first of equal ones.
    """
    axes = np.zeros(labels.size, np.uint8)
    lengths = np.full(labels.size, labels.size, np.int32)
    for axis in range(first, 3):
        step = steps[axis]
        for i in range(step, labels.size):
            if labels[i] > 0 and labels[i - step] != labels[i]:
                end = i
                while labels[end] == labels[i]:
                    end += step
                length = (end - i) // step
                for j in range(i, end, step):
                    if length < lengths[j]:
                        lengths[j], axes[j] = length, axis
    return axes


@njit(cache=True, nogil=True)
def resize(labels, axes, steps, missing, rounds):
    """Add or remove layers one voxel thick in place to bring every component nearest to its volume.

    Layers lie along ``axes``, one side after the other. A voxel changes only when it is simple and,
    growing, touches no other component.

    Args:
        labels: flat int32 volume.
        axes: axis of each voxel, uint8 flat; changed in place.
        steps: strides of the axes, int64 ``(3,)``.
        missing: voxels to add to each component (negative: to remove), int64 ``(components + 1,)``;
            changed in place.
        rounds: largest number of rounds for each component, int64 ``(components + 1,)``.
    """
    for turn in range(rounds.max()):
        before = missing.copy()
        for side in (1, -1):
            voxels, owners = _layer(labels, axes, steps * side, missing, rounds > turn)
            layer = np.zeros(missing.size, np.int64)
            for owner in owners:
                layer[owner] += 1
            nearer = layer < 2 * np.abs(missing)
            for voxel, owner in zip(voxels, owners):  # noqa: B905 (numba knows no strict=)
                if (
                    nearer[owner]
                    and _simple(labels, voxel, steps, owner)
                    and _around(labels, voxel, steps, owner) >= 0
                ):
                    grows = labels[voxel] == 0
                    labels[voxel] = owner if grows else 0
                    missing[owner] -= 1 if grows else -1
        if (missing == before).all():
            return


@njit(cache=True)
def _layer(labels, axes, moves, missing, active):
    """The voxels on one side that would change next, and their components."""
    voxels, owners = [np.int64(0) for _ in range(0)], [np.int32(0) for _ in range(0)]
    added = np.zeros(labels.size, np.bool_)
    for i in range(labels.size):
        owner = labels[i]
        if owner > 0 and active[owner]:
            move = moves[axes[i]]
            if labels[i + move] == 0:
                if missing[owner] > 0 and not added[i + move]:
                    added[i + move] = True
                    axes[i + move] = axes[i]
                    voxels.append(i + move)
                    owners.append(owner)
                elif missing[owner] < 0 and labels[i - move] == owner:
                    voxels.append(np.int64(i))
                    owners.append(owner)
    return voxels, owners


@njit(cache=True, inline="always")
def _simple(labels, voxel, steps, own):
    """Whether a change of this voxel keeps the topology, for 6- and for 26-connected foreground.

    Source: Bertrand 1994.
    """
    inside, k = 0, 0
    for z in range(-1, 2):
        for y in range(-1, 2):
            for x in range(-1, 2):
                if labels[voxel + z * steps[0] + y * steps[1] + x * steps[2]] == own:
                    inside |= 1 << k
                k += 1
    inside &= _SPACE ^ _CENTRE
    outside = inside ^ _SPACE ^ _CENTRE
    return _each_one_piece(inside, outside) and _each_one_piece(outside, inside)


@njit(cache=True)
def _each_one_piece(one, other):
    """Whether the centre has one neighbouring piece in each of two sets.

    Pieces are 6-connected in ``one`` and 26-connected in ``other``.
    """
    faces = one & _FACES
    if faces == 0 or other == 0:
        return False
    reached, wider = 0, faces & -faces
    while wider != reached:
        reached = wider
        wider |= (
            (reached << 1 & _NOT_LEFT)
            | (reached >> 1 & _NOT_RIGHT)
            | (reached << 3 & _NOT_UPPER)
            | (reached >> 3 & _NOT_LOWER)
        )
        wider = (wider | reached << 9 | reached >> 9) & one & _FACES_AND_EDGES
    if reached & faces != faces:
        return False
    reached, wider = 0, other & -other
    while wider != reached:
        reached = wider
        wider |= (wider << 1 & _NOT_LEFT) | (wider >> 1 & _NOT_RIGHT)
        wider |= (wider << 3 & _NOT_UPPER) | (wider >> 3 & _NOT_LOWER)
        wider = (wider | wider << 9 | wider >> 9) & other
    return reached == other
