"""Volumes in cubic millimetres as numbers of voxels, and back.

A volume that is a whole number of voxels but for rounding is that number: spacings come from files
in single precision.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from pipeline.records import UserError

ROUNDING = 1e-6
"""Relative difference of volumes that count as equal."""

MOST = 2.0**60
"""Voxels that stand for any larger number: no array has as many."""


def voxel_volume(spacing: Sequence[float]) -> float:
    """Volume of a voxel.

    Args:
        spacing: millimetres between voxels along each of three axes.

    Returns:
        Cubic millimetres.

    Raises:
        UserError: there are other than three axes.

    Example:
        >>> voxel_volume((5.0, 0.5, 0.5))
        1.25
    """
    if len(spacing) != 3:
        raise UserError(
            f"a volume in mm³ is asked for, but the images have {len(spacing)} space axes. Give the"
            " size in voxels."
        )
    return math.prod(map(float, spacing))


def least_voxels(mm3: float, spacing: Sequence[float]) -> int:
    """Voxels of the smallest component that is no smaller than a volume.

    Args:
        mm3: the volume in cubic millimetres, at least 0.
        spacing: millimetres between voxels along each of three axes.

    Returns:
        The volume in voxels, rounded up; a component of exactly ``mm3`` has as many.

    Raises:
        UserError: for a volume that is negative or not finite, and for other than three axes.

    Example:
        >>> least_voxels(50, (5.0, 0.5, 0.5)), least_voxels(51, (5.0, 0.5, 0.5))
        (40, 41)
    """
    return math.ceil(_voxels(mm3, spacing) * (1 - ROUNDING))


def most_voxels(mm3: float, spacing: Sequence[float]) -> int:
    """Voxels of the largest hole that is no larger than a volume.

    Args:
        mm3: the volume in cubic millimetres, at least 0.
        spacing: millimetres between voxels along each of three axes.

    Returns:
        The volume in voxels, rounded down; a hole of exactly ``mm3`` has as many.

    Raises:
        UserError: for a volume that is negative or not finite, and for other than three axes.

    Example:
        >>> most_voxels(50, (5.0, 0.5, 0.5)), most_voxels(51, (5.0, 0.5, 0.5))
        (40, 40)
    """
    return math.floor(_voxels(mm3, spacing) * (1 + ROUNDING))


def _voxels(mm3: float, spacing: Sequence[float]) -> float:
    good = isinstance(mm3, int | float) and not isinstance(mm3, bool)
    if not good or not 0 <= mm3 < math.inf:
        raise UserError(f"{mm3!r} mm³ is no volume; give a number of at least 0.")
    return min(mm3 / max(voxel_volume(spacing), sys.float_info.min), MOST)
