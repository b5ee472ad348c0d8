"""Compiled loops of :mod:`pipeline.data.spatial`: one pass over the voxels of a patch.

Voxel ``(i, j, k)`` of the patch lies at ``matrix @ (i, j, k) + offset`` in ``part``, in voxels; an
image ``(Y, X)`` is a volume of one slice. Around ``part`` lies ``fill``. Places within 1e-9 of the
middle of a voxel are taken for it, so that turns by 90 degrees are exact.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_NEAR = 1e-9


@njit(cache=True, inline="always")
def _cell(place):
    """Lower voxel along an axis, share of the next one, and 1 where that counts, else 0."""
    lower = math.floor(place)
    share = place - lower
    if share > 1 - _NEAR:
        return int(lower) + 1, 0.0, 0
    return (int(lower), 0.0, 0) if share < _NEAR else (int(lower), share, 1)


@njit(cache=True, nogil=True)
def linear(part, matrix, offset, fill, out):
    """Interpolate linearly.

    Args:
        part: float32 ``(C, Z, Y, X)``.
        matrix: float64 ``(3, 3)``.
        offset: float64 ``(3,)``.
        fill: value around ``part``.
        out: float32 ``(C, *size)``, to be written.
    """
    channels, depth, height, width = part.shape
    flat = part.reshape(channels, -1)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            for k in range(out.shape[3]):
                z0, z, dz = _cell(
                    offset[0] + matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 2] * k
                )
                y0, y, dy = _cell(
                    offset[1] + matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 2] * k
                )
                x0, x, dx = _cell(
                    offset[2] + matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k
                )
                z1, y1, x1 = z0 + dz, y0 + dy, x0 + dx
                if min(z0, y0, x0) >= 0 and z1 < depth and y1 < height and x1 < width:
                    first = np.uint64((z0 * height + y0) * width + x0)
                    right, below = np.uint64(dx), np.uint64(dy * width)
                    behind = np.uint64(dz * height * width)
                    for c in range(channels):
                        out[c, i, j, k] = _between(flat[c], first, behind, below, right, z, y, x)
                    continue
                for c in range(channels):
                    total = 0.0
                    for corner in range(8):
                        a, b, d = corner >> 2, corner >> 1 & 1, corner & 1
                        p, q, r = z0 + a * dz, y0 + b * dy, x0 + d * dx
                        weight = (z if a else 1 - z) * (y if b else 1 - y) * (x if d else 1 - x)
                        if 0 <= p < depth and 0 <= q < height and 0 <= r < width:
                            total += weight * part[c, p, q, r]
                        else:
                            total += weight * fill
                    out[c, i, j, k] = total


@njit(cache=True, inline="always")
def _between(flat, first, behind, below, right, z, y, x):
    """Linear interpolation in the cell of a volume that begins at ``first``."""
    a, b = flat[first], flat[first + right]
    c, d = flat[first + below], flat[first + below + right]
    e, f = flat[first + behind], flat[first + behind + right]
    g, h = flat[first + behind + below], flat[first + behind + below + right]
    upper, lower = a + x * (b - a), c + x * (d - c)
    front = upper + y * (lower - upper)
    upper, lower = e + x * (f - e), g + x * (h - g)
    return front + z * (upper + y * (lower - upper) - front)


@njit(cache=True, nogil=True)
def labels(part, matrix, offset, fill, out):
    """Take the label with the largest share.

    Of equal shares the nearest voxel's label wins if it is among them, else the lowest.

    Args:
        part: labels ``(C, Z, Y, X)``.
        matrix: float64 ``(3, 3)``.
        offset: float64 ``(3,)``.
        fill: label around ``part``, of its type.
        out: ``(C, *size)`` of the same type, to be written.
    """
    channels, depth, height, width = part.shape
    found, weights = np.empty(8, part.dtype), np.empty(8)
    flat = part.reshape(channels, -1)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            for k in range(out.shape[3]):
                z0, z, dz = _cell(
                    offset[0] + matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 2] * k
                )
                y0, y, dy = _cell(
                    offset[1] + matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 2] * k
                )
                x0, x, dx = _cell(
                    offset[2] + matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k
                )
                inner = (
                    min(z0, y0, x0) >= 0
                    and max(z0 + dz - depth, y0 + dy - height, x0 + dx - width) < 0
                )
                first = np.uint64((z0 * height + y0) * width + x0) if inner else np.uint64(0)
                right, below = np.uint64(dx), np.uint64(dy * width)
                behind = np.uint64(dz * height * width)
                for c in range(channels):
                    if inner and _one_label(flat[c], first, behind, below, right):
                        out[c, i, j, k] = flat[c, first]
                        continue
                    same = True
                    for corner in range(8):
                        p = z0 + (corner >> 2) * dz
                        q = y0 + (corner >> 1 & 1) * dy
                        r = x0 + (corner & 1) * dx
                        if 0 <= p < depth and 0 <= q < height and 0 <= r < width:
                            found[corner] = part[c, p, q, r]
                        else:
                            found[corner] = fill
                        same = same and found[corner] == found[0]
                    out[c, i, j, k] = found[0] if same else _largest(found, weights, z, y, x)


@njit(cache=True, inline="always")
def _one_label(flat, first, behind, below, right):
    """Whether all corners of a cell have one label."""
    label = flat[first]
    return (
        flat[first + right] == label
        and flat[first + below] == label
        and flat[first + below + right] == label
        and flat[first + behind] == label
        and flat[first + behind + right] == label
        and flat[first + behind + below] == label
        and flat[first + behind + below + right] == label
    )


@njit(cache=True)
def _largest(found, weights, z, y, x):
    """The label with the largest share among the corners of a cell."""
    for corner in range(8):
        weights[corner] = (
            (z if corner >> 2 else 1 - z)
            * (y if corner >> 1 & 1 else 1 - y)
            * (x if corner & 1 else 1 - x)
        )
    best, lowest = -1.0, found[0]
    nearest = 4 * int(z >= 0.5 - _NEAR) + 2 * int(y >= 0.5 - _NEAR) + int(x >= 0.5 - _NEAR)
    own = _share(found, weights, found[nearest])
    for corner in range(8):
        share = _share(found, weights, found[corner])
        if share > best + _NEAR:
            best, lowest = share, found[corner]
        elif share > best - _NEAR and found[corner] < lowest:
            lowest = found[corner]
    return found[nearest] if own > best - _NEAR else lowest


@njit(cache=True, inline="always")
def _share(found, weights, label):
    """The share of a label."""
    total = 0.0
    for corner in range(8):
        if found[corner] == label:
            total += weights[corner]
    return total
