"""Betti matching of two binary masks: numbers of features, and of those that they share.

Stucki et al., ICML 2023 (arXiv:2211.15272) and arXiv:2407.04683: both masks are filtered together
with their union, and features are matched when the same cell ends them in the union. For masks all
features appear and end together, which leaves little to compute: components and cavities follow
from labelled arrays, and only tunnels that both masks have need a matrix reduction.
"""

from __future__ import annotations

import numpy as np

from pipeline import morphology
from pipeline.records import UserError

Counts = tuple[tuple[int, int, int], ...]
"""For each dimension: features matched, in the first mask, in the second."""

MOST_VOXELS = (2**31 - 1) // 9
"""Cells are numbered in 32 bits, in three classes of three to a voxel."""


def matching_counts(prediction: np.ndarray, target: np.ndarray) -> Counts:
    """Count the matched, predicted and true features of two masks.

    Foreground is 6-connected (2D: 4) before a 26-connected (8) background that goes on beyond the
    array. The first component of a mask never counts: an empty mask and a single component have 0.
    A volume may have axes of length 1.

    Args:
        prediction: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        target: of the same shape.

    Returns:
        ``(matched, predicted, true)`` of components, tunnels, cavities; in 2D of components, holes.

    Raises:
        UserError: the shapes differ or have other than 2 or 3 axes, or there are more than 238
            million voxels.

    Source:
        Stucki et al., see the module; the counts are those of the published matcher, ties and order
        of axes included.

    Example:
        >>> import numpy as np
        >>> matching_counts(np.array([[1, 0, 1]]), np.array([[1, 0, 1]]))
        ((1, 1, 1), (0, 0, 0))
    """
    if prediction.shape != target.shape or prediction.ndim not in (2, 3):
        raise UserError(
            "Betti matching takes two masks (Y, X) or (Z, Y, X) of one shape, got"
            f" {prediction.shape} and {target.shape}."
        )
    shape = (1,) * (3 - prediction.ndim) + prediction.shape
    p, g = (np.ascontiguousarray(mask != 0).reshape(shape) for mask in (prediction, target))
    found, true = _features(p), _features(g)
    rows = [[0, a, b] for a, b in zip(found, true, strict=True)]
    for row, match in zip(rows, (_components, _tunnels, _cavities), strict=True):
        if row[1] and row[2]:
            row[0] = match(p, g)
    return tuple((m, a, b) for m, a, b in rows[: prediction.ndim])


def _features(mask: np.ndarray) -> tuple[int, int, int]:
    """Betti numbers of a mask, without its first component."""
    if not mask.any():
        return 0, 0, 0
    b0, b1, b2 = morphology.betti_numbers(mask, connectivity=6)
    return b0 - 1, b1, b2


def _components(p: np.ndarray, g: np.ndarray) -> int:
    """Number of matched components.

    Components of the union join, one after the other, the part that has been swept, in the order in
    which an edge reaches them. The edges outside the union come in the order of their lower ends,
    and behind that sweep all is joined. Two sides that join are a match when both hold voxels of
    both masks.
    """
    labels, count = morphology.components(p | g, connectivity=6)
    in_p, in_g = _present(labels, p, count), _present(labels, g, count)
    if (in_p & in_g).all():
        return count - 1
    order = np.argsort(_arrivals(labels, count), kind="stable")
    p_before, g_before = (np.logical_or.accumulate(x[order])[:-1] for x in (in_p, in_g))
    return int(np.count_nonzero(p_before & g_before & in_p[order][1:] & in_g[order][1:]))


def _present(labels: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
    """For each component whether it meets the mask."""
    return np.bincount(labels[mask], minlength=count + 1)[1:] > 0


def _arrivals(labels: np.ndarray, count: int) -> np.ndarray:
    """For each component when the first edge from a smaller voxel ends in it.

    The time is three times that voxel's index plus the axis.
    """
    shape = labels.shape
    plane, row = shape[1] * shape[2], shape[2]
    first = np.full(count + 1, np.iinfo(np.int64).max)

    def enter(part: np.ndarray, offset: int, step: int, axis: int) -> None:
        numbers, index = np.unique(part, return_index=True)
        np.minimum.at(first, numbers, 3 * (index + offset - step) + axis)

    # The smallest lower end of a voxel lies along the first axis that has one.
    enter(labels[1:].ravel(), plane, plane, 0)
    enter(labels[0, 1:].ravel(), row, row, 1)
    enter(labels[0, 0, 1:].ravel(), 1, 1, 2)
    first[labels[0, 0, 0]] = -1
    return first[1:]


def _cavities(p: np.ndarray, g: np.ndarray) -> int:
    """Number of matched cavities.

    A cavity of a mask picks the cavity of the union inside it that has the last voxel; a match is
    picked from both sides.
    """
    labels, count = _outside_and_cavities(p | g)
    where = np.flatnonzero(labels > 1)
    last = np.zeros(count + 1, np.int64)
    last[labels.ravel()[where]] = where  # the last of repeated entries stays
    last = np.sort(last[2:])
    picks = []
    for mask in (p, g):
        own = _outside_and_cavities(mask)[0].ravel()[last]
        picks.append(
            {
                cavity: voxel
                for cavity, voxel in zip(own.tolist(), last.tolist(), strict=True)
                if cavity > 1
            }
        )
    return len(set(picks[0].values()) & set(picks[1].values()))


def _outside_and_cavities(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Components of the padded background: 1 is the outside, the others are cavities."""
    return morphology.components(np.pad(~mask, 1, constant_values=True), connectivity=26)


def _tunnels(p: np.ndarray, g: np.ndarray) -> int:
    """Number of matched tunnels: squares that end a tunnel of both masks inside the union.

    A tunnel of a mask lives on in the union that grows over the outside, square by square; the
    square that ends it there is its image pair. In the two-valued filtration every such pair is a
    feature of all three, so that it is enough to count common squares.
    """
    # Here, because numba takes 0.3 s to import.
    from pipeline.morphology._tunnels import EXISTS, OWN, UNION, closing_squares

    union = np.pad((p | g) * np.uint8(UNION) + np.uint8(EXISTS), 1)
    if union.size > MOST_VOXELS:
        raise UserError(
            f"Betti matching takes at most {MOST_VOXELS:,} voxels, these masks have the shape"
            f" {p.shape}. Match them in parts."
        )
    steps = np.array([union.shape[1] * union.shape[2], union.shape[2], 1])
    ends = []
    for mask in (p, g):
        codes = union + np.pad(mask * np.uint8(OWN), 1)
        ends.append(closing_squares(codes.ravel(), _uniform(codes).ravel(), steps))
    return len(np.intersect1d(*ends, assume_unique=True))


def _uniform(codes: np.ndarray) -> np.ndarray:
    """Voxels whose surroundings all have their code.

    These are the neighbours one step around and two ahead along the first axis. No voxel of the
    array's margin is one.
    """
    same = codes != 0
    for axis, ahead in ((2, 1), (1, 1), (0, 2)):
        before, after = (
            np.s_[(slice(None),) * axis + (part,)] for part in (slice(None, -1), slice(1, None))
        )
        link = same[before] & same[after] & (codes[before] == codes[after])
        same = np.zeros_like(same)
        inner = np.s_[(slice(None),) * axis + (slice(1, codes.shape[axis] - ahead),)]
        same[inner] = link[np.s_[(slice(None),) * axis + (slice(None, -ahead),)]]
        for step in range(1, ahead + 1):
            last = step - ahead or None
            same[inner] &= link[np.s_[(slice(None),) * axis + (slice(step, last),)]]
    return same
