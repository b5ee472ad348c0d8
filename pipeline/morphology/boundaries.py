"""Surfaces between bodies, by a watershed over the probability of a surface."""

from __future__ import annotations

import edt
import numpy as np
import skimage

from pipeline.morphology.labelling import components, remove_small_components


def watershed_boundaries(
    soft: np.ndarray, low: float, depth: float, least: int = 30, merge: float = 0.0
) -> np.ndarray:
    """Find the surfaces between bodies by a seeded watershed and agglomeration.

    Bodies grow by a watershed over ``soft`` from seeds: the 6-connected parts of at least ``least``
    voxels that lie more than ``depth`` voxels away from every voxel of ``soft >= low``. Then the
    weakest boundaries are dissolved until the mean probability of each is at least ``merge``
    (average linkage): small seeds find every body, merging mends what they split. A boundary
    between two bodies has no hole, whatever the probability does inside it; a sheet that ends
    freely inside a body is lost. This inverts how labels are made from a segmentation into bodies
    (cells, neurites). Without two seeds there is no boundary.

    Args:
        soft: probability of a surface ``(*S)``, 0..1.
        low: probability from which a voxel may belong to a surface.
        depth: distance of seeds from such voxels, in voxels.
        least: voxels of the smallest seed.
        merge: boundaries of a lower mean probability are dissolved; 0: none.

    Returns:
        bool ``(*S)``: voxels with a 6-neighbour (2D: 4-) in another body, two voxels thick.

    Source:
        Agglomeration as in Funke et al., TPAMI 41, 2019.

    Example:
        >>> import numpy as np
        >>> soft = np.zeros((5, 8), np.float32)
        >>> soft[:, 4] = 0.9
        >>> watershed_boundaries(soft, low=0.5, depth=1, least=2)[0].astype(int)
        array([0, 0, 0, 1, 1, 0, 0, 0])
    """
    distance = edt.edt(np.ascontiguousarray(soft < low), black_border=False)
    seeds, _ = components(remove_small_components(distance > depth, least, 6), 6)
    bodies = skimage.segmentation.watershed(soft, seeds.astype(np.int32))
    return _boundary_voxels(_merged(bodies, soft, merge))


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
        # Pairs that are each other's weakest may join at once: no other join could come first.
        mutual = weak & (means <= weakest[pairs[0]]) & (means <= weakest[pairs[1]])
        target = np.arange(len(weakest))
        target[pairs[1][mutual]] = pairs[0][mutual]
        while (target != target[target]).any():
            target = target[target]
        bodies = target[bodies]


def _boundaries(bodies: np.ndarray, soft: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Touching pairs ``(2, N)`` of bodies and the mean probability between them.

    The smaller number is first. The mean is over their common faces, of the larger probability of
    the two voxels.
    """
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


def _boundary_voxels(bodies: np.ndarray) -> np.ndarray:
    """Voxels with a neighbour across a face in another body."""
    out = np.zeros(bodies.shape, bool)
    for axis in range(bodies.ndim):
        across = np.diff(bodies, axis=axis) != 0
        before, after = ([slice(None)] * bodies.ndim for _ in range(2))
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        out[tuple(before)] |= across
        out[tuple(after)] |= across
    return out
