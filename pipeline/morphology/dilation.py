"""Dilation, erosion, opening and closing by balls of exact Euclidean radius."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import edt
import numpy as np

from pipeline.morphology.labelling import as_mask
from pipeline.records import UserError

_ROWS_UP_TO = 10  # larger balls: the distance transform is faster


def dilate(mask: np.ndarray, radius: float) -> np.ndarray:
    """Dilate a mask by a ball; beyond the array lies background.

    Exact for any radius. Small balls are composed of shifted rows, which is up to ten times faster
    than the distance transform that makes the cost of large ones independent of their radius.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        radius: Euclidean, between voxel centres, in voxels.

    Returns:
        bool, voxels within ``radius`` of the mask.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or the radius is negative or infinite.

    Example:
        >>> import numpy as np
        >>> dilate(np.array([[0, 0, 1, 0, 0, 0]]), 2).astype(int)
        array([[1, 1, 1, 1, 1, 0]])
    """
    _require_distance(radius)
    mask = as_mask(mask)
    square = radius**2 + 1e-6
    return _dilate_by_rows(mask, square) if radius <= _ROWS_UP_TO else edt.edtsq(~mask) <= square


def _dilate_by_rows(mask: np.ndarray, square: float) -> np.ndarray:
    """Dilation by the ball ``d^2 <= square`` as a union of shifted rows.

    Rows lie along the last axis, one for each offset along the others.
    """
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
                out[_shifted(mask.shape, offset)] |= rows[
                    _shifted(mask.shape, [-d for d in offset])
                ]
    return out


def _shifted(shape: tuple[int, ...], offset: Sequence[int]) -> tuple[slice, ...]:
    """The part of an array that receives voxels when its content moves by ``offset``.

    With ``-offset``: the part that gives them.
    """
    moves = zip(shape, offset, strict=False)
    return tuple(slice(max(d, 0), max(d, 0) + max(n - abs(d), 0)) for n, d in moves)


def erode(mask: np.ndarray, radius: float) -> np.ndarray:
    """Erode a mask by a ball; beyond the array lies nothing that erodes.

    The exact dual of :func:`dilate`: a sheet that meets a face of the volume keeps its end there.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        radius: Euclidean, between voxel centres, in voxels.

    Returns:
        bool, voxels that no background voxel of the array comes within ``radius`` of.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or the radius is negative or infinite.
    """
    return ~dilate(~as_mask(mask), radius)


def opening(mask: np.ndarray, radius: float) -> np.ndarray:
    """Erode, then dilate: remove what no ball of this radius fits into.

    Adds nothing; twice is the same as once. The balls are centred inside the array and only their
    part inside it counts, so a thick sheet keeps its ends at the faces.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        radius: of the ball in voxels.

    Returns:
        bool, same shape.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or the radius is negative or infinite.
    """
    return dilate(erode(mask, radius), radius)


def closing(mask: np.ndarray, radius: float) -> np.ndarray:
    """Dilate, then erode: fill what no ball of this radius can reach from outside.

    Removes nothing; twice is the same as once. The mask grows beyond the array before it shrinks
    again. So a sheet that meets a face is neither eaten there (as by
    ``scipy.ndimage.binary_closing``) nor glued to a face that it only comes near to. Prefer radii
    of k + 1/2: a ball of radius k has poles one voxel wide, which reach into every pinhole of a
    flat sheet and keep it open.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        radius: of the ball in voxels.

    Returns:
        bool, same shape.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or the radius is negative or infinite.

    Example:
        >>> import numpy as np
        >>> closing(np.array([[1, 1, 0, 1, 1]]), 1.5).astype(int)
        array([[1, 1, 1, 1, 1]])
    """
    _require_distance(radius)
    margin = math.ceil(radius) + 1
    closed = erode(dilate(np.pad(as_mask(mask), margin), radius), radius)
    return np.ascontiguousarray(closed[(slice(margin, -margin),) * mask.ndim])


def _require_distance(radius: float) -> None:
    if not 0 <= radius < math.inf:
        raise UserError(
            f"radius is {radius!r}; it is a distance in voxels: finite and not negative."
        )
