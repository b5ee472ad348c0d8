"""Surfaces between bodies, by a watershed over the probability of a surface."""

from __future__ import annotations

import edt
import numpy as np
import skimage

from pipeline.morphology.labelling import components, remove_small_components


def watershed_boundaries(
    soft: np.ndarray, low: float, depth: float, least: int = 30, merge: float = 0.0
) -> np.ndarray:
    """The surfaces between bodies: voxels with a 6-neighbour (2D: 4-) in another body. bool
    ``(*S)``, two voxels thick.

    Bodies grow by a watershed over ``soft`` ``(*S)``, the probability of a surface, from seeds: the
    6-connected parts of at least ``least`` voxels that lie more than ``depth`` voxels away from
    every voxel of ``soft >= low``. Then the weakest boundaries are dissolved until the mean
    probability of each is at least ``merge`` (average linkage, as in the agglomeration of Funke et
    al., TPAMI 41, 2019): small seeds find every body, merging mends what they split. A wall between
    two bodies has no hole, whatever the probability does inside it; a sheet that ends freely inside
    a body is lost. This is how labels are made from a segmentation into bodies (cells, neurites),
    backwards. Without two seeds there is no wall.
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
        # Pairs that are each other's weakest may join at once: no join of others could come before
        # theirs.
        mutual = weak & (means <= weakest[pairs[0]]) & (means <= weakest[pairs[1]])
        target = np.arange(len(weakest))
        target[pairs[1][mutual]] = pairs[0][mutual]
        while (target != target[target]).any():
            target = target[target]
        bodies = target[bodies]


def _boundaries(bodies: np.ndarray, soft: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Touching pairs ``(2, N)``, smaller number first, and the mean over their common faces of the
    larger probability of the two voxels.
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


def _between(bodies: np.ndarray) -> np.ndarray:
    out = np.zeros(bodies.shape, bool)
    for axis in range(bodies.ndim):
        across = np.diff(bodies, axis=axis) != 0
        before, after = ([slice(None)] * bodies.ndim for _ in range(2))
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        out[tuple(before)] |= across
        out[tuple(after)] |= across
    return out
