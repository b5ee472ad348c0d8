"""Shapes of binary masks: connected components, holes, balls that grow and shrink them, Euler and Betti numbers.

Every function takes a mask ``(Z, Y, X)`` or ``(Y, X)`` (bool, or anything whose non-zero elements are foreground), returns a
new array and leaves its argument alone. Connectivity is named as in 3D, 6 (faces), 18 (and edges) or 26 (and corners); in 2D
6 means the four edge neighbours, 18 and 26 the eight neighbours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import edt
import numpy as np
import skimage

from pipeline.morphology.labelling import as_mask, component_sizes, components, fill_holes, hysteresis, remove_small_components
from pipeline.morphology.slabs import SlabArray
from pipeline.records import UserError

__all__ = [
    "SlabArray",
    "betti_numbers",
    "closing",
    "component_sizes",
    "components",
    "dilate",
    "erode",
    "euler_number",
    "fill_holes",
    "hysteresis",
    "opening",
    "remove_small_components",
    "watershed_boundaries",
]

_DUAL = {6: 26, 26: 6}
_SMALL = 10  # up to this radius rows beat the distance transform


def dilate(mask: np.ndarray, radius: float) -> np.ndarray:
    """Voxels within ``radius`` (Euclidean, between voxel centres) of the mask; beyond the array lies background.

    Exact for any radius. Small balls are put together from shifted rows, which is up to ten times faster than the distance
    transform that makes the cost of large ones independent of their radius.
    """
    _require_distance(radius)
    mask = as_mask(mask)
    square = radius**2 + 1e-6
    return _dilate_by_rows(mask, square) if radius <= _SMALL else edt.edtsq(~mask) <= square


def _dilate_by_rows(mask: np.ndarray, square: float) -> np.ndarray:
    """Dilation by the ball ``d^2 <= square``, seen as rows along the last axis, one for each offset along the others."""
    reach = math.isqrt(int(square))
    out = np.zeros_like(mask)
    rows = mask.copy()  # the mask dilated along the last axis by `half`, which grows
    for half in range(reach + 1):
        if half:
            rows[..., half:] |= mask[..., :-half]
            rows[..., :-half] |= mask[..., half:]
        for offset in itertools.product(range(-reach, reach + 1), repeat=mask.ndim - 1):
            rest = square - sum(d * d for d in offset)
            if rest >= 0 and math.isqrt(int(rest)) == half:
                out[_shifted(mask.shape, offset)] |= rows[_shifted(mask.shape, [-d for d in offset])]
    return out


def _shifted(shape: tuple[int, ...], offset: Sequence[int]) -> tuple[slice, ...]:
    """The part of an array that receives voxels when its content moves by ``offset``; by ``-offset``: the part that gives them."""
    moves = zip(shape, offset, strict=False)
    return tuple(slice(max(d, 0), max(d, 0) + max(n - abs(d), 0)) for n, d in moves)


def erode(mask: np.ndarray, radius: float) -> np.ndarray:
    """Voxels that no background voxel of the array comes within ``radius`` of; beyond the array lies nothing that erodes.

    The exact dual of :func:`dilate`: a sheet that meets a face of the volume keeps its end there.
    """
    return ~dilate(~as_mask(mask), radius)


def opening(mask: np.ndarray, radius: float) -> np.ndarray:
    """Erosion, then dilation: removes what no ball of this radius fits into. Adds nothing; twice is the same as once.

    The balls are centred inside the array and only their part inside it counts, so a thick sheet keeps its ends at the faces.
    """
    return dilate(erode(mask, radius), radius)


def closing(mask: np.ndarray, radius: float) -> np.ndarray:
    """Dilation, then erosion: fills what no ball of this radius can reach from outside. Removes nothing; twice is the same as once.

    The mask grows beyond the array before it shrinks again. So a sheet that meets a face is neither eaten there (as by
    ``scipy.ndimage.binary_closing``) nor glued to a face that it only comes near to. Prefer radii of k + 1/2: a ball of radius k
    has poles one voxel wide, which reach into every pinhole of a flat sheet and keep it open.
    """
    _require_distance(radius)
    margin = math.ceil(radius) + 1
    closed = erode(dilate(np.pad(as_mask(mask), margin), radius), radius)
    return np.ascontiguousarray(closed[(slice(margin, -margin),) * mask.ndim])


def _require_distance(radius: float) -> None:
    if not 0 <= radius < math.inf:
        raise UserError(f"radius is {radius!r}; it is a distance in voxels: finite and not negative.")


def watershed_boundaries(soft: np.ndarray, low: float, depth: float, least: int = 30, merge: float = 0.0) -> np.ndarray:
    """The surfaces between bodies: voxels with a 6-neighbour (2D: 4-) in another body. bool ``(*S)``, two voxels thick.

    Bodies grow by a watershed over ``soft`` ``(*S)``, the probability of a surface, from seeds: the 6-connected parts of at least
    ``least`` voxels that lie more than ``depth`` voxels away from every voxel of ``soft >= low``. Then the weakest boundaries are
    dissolved until the mean probability of each is at least ``merge`` (average linkage, as in the agglomeration of Funke et al.,
    TPAMI 41, 2019): small seeds find every body, merging mends what they split. A wall between two bodies has no hole, whatever
    the probability does inside it; a sheet that ends freely inside a body is lost. This is how labels are made from a
    segmentation into bodies (cells, neurites), backwards. Without two seeds there is no wall.
    """
    distance = edt.edt(np.ascontiguousarray(soft < low), black_border=False)
    seeds, _ = components(remove_small_components(distance > depth, least, 6), 6)
    bodies = skimage.segmentation.watershed(soft, seeds.astype(np.int32))
    return _between(_merged(bodies, soft, merge))


def _merged(bodies: np.ndarray, soft: np.ndarray, merge: float) -> np.ndarray:
    """Join bodies whose common boundary has a mean probability below ``merge``, weakest first."""
    while True:
        pairs, means = _boundaries(bodies, soft)
        weak = means < merge
        if not weak.any():
            return bodies
        weakest = np.full(int(bodies.max()) + 1, np.inf)
        for side in pairs:
            np.minimum.at(weakest, side, means)
        # Pairs that are each other's weakest may join at once: no join of others could come before theirs.
        mutual = weak & (means <= weakest[pairs[0]]) & (means <= weakest[pairs[1]])
        target = np.arange(len(weakest))
        target[pairs[1][mutual]] = pairs[0][mutual]
        while (target != target[target]).any():
            target = target[target]
        bodies = target[bodies]


def _boundaries(bodies: np.ndarray, soft: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Touching pairs ``(2, N)``, smaller number first, and the mean over their common faces of the larger probability of the two voxels."""
    keys, values = [], []
    count = int(bodies.max()) + 1
    for axis in range(bodies.ndim):
        body, value = np.moveaxis(bodies, axis, 0), np.moveaxis(soft, axis, 0)
        differ = body[:-1] != body[1:]
        one, other = body[:-1][differ].astype(np.int64), body[1:][differ].astype(np.int64)
        keys.append(np.minimum(one, other) * count + np.maximum(one, other))
        values.append(np.maximum(value[:-1][differ], value[1:][differ]))
    pairs, number = np.unique(np.concatenate(keys), return_inverse=True)
    means = np.bincount(number, np.concatenate(values)) / np.maximum(np.bincount(number), 1)
    return np.stack([pairs // count, pairs % count]), means


def _between(bodies: np.ndarray) -> np.ndarray:
    out = np.zeros(bodies.shape, bool)
    for axis in range(bodies.ndim):
        across = np.diff(bodies, axis=axis) != 0
        before, after = ([slice(None)] * bodies.ndim for _ in range(2))
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        out[tuple(before)] |= across
        out[tuple(after)] |= across
    return out


def euler_number(mask: np.ndarray, connectivity: int = 6) -> int:
    """Euler characteristic of the foreground: components - tunnels + cavities (2D: components - holes).

    ``connectivity`` 6: voxels are the vertices of a cubical complex, whose edges, squares and cubes are there when all their
    vertices are. 26: voxels are closed cubes, whose faces, edges and corners are there when any cube at them is.
    """
    mask = as_mask(mask)
    _require_dual(connectivity)
    if connectivity == 6:
        return _alternating_count(mask, np.logical_and)
    return (-1) ** mask.ndim * _alternating_count(np.pad(mask, 1), np.logical_or)


def _alternating_count(mask: np.ndarray, join: Callable[..., np.ndarray], axis: int = 0) -> int:
    """Sum over all sets of axes from ``axis`` on of (-1)^size times the cells made by joining neighbours along the set's axes."""
    if axis == mask.ndim:
        return int(np.count_nonzero(mask))
    first = mask[(slice(None),) * axis + (slice(None, -1),)]
    second = mask[(slice(None),) * axis + (slice(1, None),)]
    return _alternating_count(mask, join, axis + 1) - _alternating_count(join(first, second), join, axis + 1)


def betti_numbers(mask: np.ndarray, connectivity: int = 6) -> tuple[int, ...]:
    """``(components, tunnels, cavities)`` of a volume, ``(components, holes)`` of an image; an empty mask has zeros.

    The background has the dual connectivity (26 for a foreground of 6, 6 for one of 26) and continues beyond the array: a
    tunnel may run from face to face, a dent in a face is no cavity. Tunnels follow from ``b0 - b1 + b2 = Euler number``.
    """
    mask = as_mask(mask)
    _require_dual(connectivity)
    b0 = components(mask, connectivity)[1]
    euler = euler_number(mask, connectivity)
    if mask.ndim == 2:
        return b0, b0 - euler
    outside_and_cavities = components(np.pad(~mask, 1, constant_values=True), _DUAL[connectivity])[1]
    b2 = outside_and_cavities - 1
    return b0, b0 + b2 - euler, b2


def _require_dual(connectivity: int) -> None:
    if connectivity not in _DUAL:
        raise UserError(f"connectivity is {connectivity!r}; it must be 6 (background 26) or 26 (background 6) to have Betti numbers.")
