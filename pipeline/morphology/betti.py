"""Euler characteristic and Betti numbers of masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.morphology.labelling import as_mask, components
from pipeline.records import UserError

_DUAL = {6: 26, 26: 6}


def euler_number(mask: np.ndarray, connectivity: int = 6) -> int:
    """Euler characteristic of the foreground: components - tunnels + cavities.

    In 2D it is components - holes.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        connectivity: 6: voxels are the vertices of a cubical complex, whose edges, squares and
            cubes are there when all their vertices are. 26: voxels are closed cubes, whose faces,
            edges and corners are there when any cube at them is.

    Returns:
        The number.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or the connectivity is neither 6 nor 26.

    Example:
        >>> import numpy as np
        >>> euler_number(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]))
        0
    """
    mask = as_mask(mask)
    _require_dual(connectivity)
    if connectivity == 6:
        return _alternating_count(mask, np.logical_and)
    return (-1) ** mask.ndim * _alternating_count(np.pad(mask, 1), np.logical_or)


def _alternating_count(mask: np.ndarray, join: Callable[..., np.ndarray], axis: int = 0) -> int:
    """Sum over the sets of axes from ``axis`` on of (-1)^size times the cells along those axes.

    A cell is made by joining neighbours along the axes of the set.
    """
    if axis == mask.ndim:
        return int(np.count_nonzero(mask))
    first = mask[(slice(None),) * axis + (slice(None, -1),)]
    second = mask[(slice(None),) * axis + (slice(1, None),)]
    return _alternating_count(mask, join, axis + 1) - _alternating_count(
        join(first, second), join, axis + 1
    )


def betti_numbers(mask: np.ndarray, connectivity: int = 6) -> tuple[int, ...]:
    """Numbers of components, tunnels and cavities of a volume, components and holes of an image.

    The background has the dual connectivity (26 for a foreground of 6, 6 for one of 26) and
    continues beyond the array: a tunnel may run from face to face, a dent in a face is no cavity.
    Tunnels follow from ``b0 - b1 + b2 = Euler number``.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        connectivity: of the foreground, 6 or 26 (in 2D 4 and 8 neighbours).

    Returns:
        ``(b0, b1, b2)``, in 2D ``(b0, b1)``; zeros for an empty mask.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or the connectivity is neither 6 nor 26.

    Example:
        >>> import numpy as np
        >>> betti_numbers(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]))
        (1, 1)
    """
    mask = as_mask(mask)
    _require_dual(connectivity)
    b0 = components(mask, connectivity)[1]
    euler = euler_number(mask, connectivity)
    if mask.ndim == 2:
        return b0, b0 - euler
    outside_and_cavities = components(np.pad(~mask, 1, constant_values=True), _DUAL[connectivity])[
        1
    ]
    b2 = outside_and_cavities - 1
    return b0, b0 + b2 - euler, b2


def _require_dual(connectivity: int) -> None:
    if connectivity not in _DUAL:
        raise UserError(
            f"connectivity is {connectivity!r}; it must be 6 (background 26) or 26 (background 6)"
            " to have Betti numbers."
        )
