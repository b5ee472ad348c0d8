"""The post-processing steps as functions: arrays in, labels ``(*S)`` out.

Steps on labels treat each class on its own and change only voxels of that class and background
voxels: what one class gains, no other class loses. Those that deal in whole components take a
:class:`pipeline.morphology.SlabArray` as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import edt
import numpy as np
import skimage

from pipeline import morphology
from pipeline.config import ConfigError
from pipeline.morphology import SlabArray, sheets
from pipeline.postprocess.classes import Labels, classes, each_class, mend_each_class


def threshold(array: np.ndarray, at: float = 0.5) -> np.ndarray:
    """Soft ``(1, *S)`` -> uint8 labels: 1 where the probability is ``at`` or more."""
    return (_only_channel(array, "threshold") >= _probability("threshold: at", at)).astype(np.uint8)


def hysteresis(array: Labels, low: float, high: float, connectivity: int = 26) -> Labels:
    """Soft ``(1, *S)`` -> uint8 labels: components of ``>= low`` that somewhere reach ``>= high``."""
    soft = _only_channel(array, "hysteresis")
    if not _probability("hysteresis: low", low) <= _probability("hysteresis: high", high):
        raise ConfigError(f"hysteresis: low is {low}, above high, which is {high}. Exchange them.")
    return morphology.hysteresis(soft >= low, soft >= high, connectivity).astype(np.uint8)


def walls(
    array: np.ndarray, low: float = 0.01, depth: float = 1.5, least: int = 5, merge: float = 0.5
) -> np.ndarray:
    """Soft ``(1, *S)`` -> uint8 labels: the surfaces between bodies.

    Defined by :func:`pipeline.morphology.watershed_boundaries`. For surfaces that close, such as
    membranes of cells; papyrus sheets, which end freely, want threshold or hysteresis.
    """
    soft = _only_channel(array, "walls")
    _size("walls: depth", depth)
    _size("walls: least", least)
    return morphology.watershed_boundaries(
        soft, _probability("walls: low", low), depth, least, _probability("walls: merge", merge)
    ).astype(np.uint8)


def argmax(array: np.ndarray) -> np.ndarray:
    """Soft ``(K, *S)``, K > 1 -> uint8 labels: the channel with the largest value.

    The first of equal ones.
    """
    if not 1 < len(array) <= 256:
        raise ConfigError(
            f"argmax compares 2 to 256 channels, the prediction has {len(array)}. For one channel"
            " use threshold or hysteresis."
        )
    return array.argmax(0).astype(np.uint8)


def dust(array: Labels, below: int = 100, connectivity: int = 26) -> Labels:
    """Removes components of fewer than ``below`` voxels."""
    _size("dust: below", below)
    return each_class(
        array, lambda mask: morphology.remove_small_components(mask, below, connectivity)
    )


def fill_holes(array: Labels, below: int | None = 50, per_slice: int | None = None) -> Labels:
    """Fills holes of at most ``below`` voxels (``None``: of any size).

    Holes are those of :func:`pipeline.morphology.fill_holes`; ``per_slice`` names the axis across
    which 2D holes are filled slice by slice instead of 3D cavities. Another class inside a hole
    counts towards its size and stays.
    """
    if below is not None:
        _size("fill_holes: below", below)
    return each_class(array, lambda mask: morphology.fill_holes(mask, below, per_slice))


def opening(
    array: np.ndarray,
    radius: float | Sequence[float] | None = None,
    size: int | Sequence[int] | None = None,
) -> np.ndarray:
    """Removes what a ball or ellipsoid does not fit into.

    ``radius`` in voxels, or ``size``, as in :func:`closing`.
    """
    return _by_reach(
        array,
        _reach("opening", radius, size, array.ndim),
        morphology.opening,
        sheets.opening_by_ellipsoid,
    )


def closing(
    array: np.ndarray,
    radius: float | Sequence[float] | None = None,
    size: int | Sequence[int] | None = None,
) -> np.ndarray:
    """Fills gaps that a ball does not fit into.

    Closing may join neighbouring sheets of one class, which :func:`sheet_closing` never does; it
    never joins classes.

    Args:
        array: labels ``(*S)``.
        radius: of the ball in voxels. Whole numbers leave pinholes open, see
            :func:`pipeline.morphology.closing`. A list with one number for each axis, such as
            ``[3, 2, 2]``, stands for an ellipsoid; 0 does not reach along its axis.
        size: instead of a radius, the edge of a cubic kernel, or one for each axis. A kernel of
            edge n reaches k = n // 2 voxels from its centre and stands for the ball of radius
            k + 1/2: 1 changes nothing, 2 and 3 are a voxel and its 18 neighbours.
    """
    return _by_reach(
        array,
        _reach("closing", radius, size, array.ndim),
        morphology.closing,
        sheets.closing_by_ellipsoid,
    )


def sheet_closing(array: np.ndarray, radius: float = 2.5) -> np.ndarray:
    """Closes each sheet (26-connected component) by a ball on its own and joins none.

    See :func:`pipeline.morphology.sheets.close_sheets`.
    """
    return mend_each_class(array, lambda mask, free: sheets.close_sheets(mask, radius, free))


def patch_sheets(array: np.ndarray, largest: int = 200) -> np.ndarray:
    """Fills holes through sheets, up to ``largest`` voxels wide in area, by height maps.

    See :func:`pipeline.morphology.sheets.patch_sheets`. For volumes only. Mend contacts first
    (``watertight``) where sheets may hang together by edges and corners.
    """
    _size("patch_sheets: largest", largest)
    return mend_each_class(array, lambda mask, free: sheets.patch_sheets(mask, largest, free))


def watertight(array: np.ndarray) -> np.ndarray:
    """Turns contacts by an edge or a corner into contacts by faces and joins no sheets.

    See :func:`pipeline.morphology.sheets.watertight`. It may shut in cavities that leaked through
    such contacts; ``fill_holes`` comes after it.
    """
    return mend_each_class(array, sheets.watertight)


def thickness(array: np.ndarray, target: float = 3.0, per: str = "component") -> np.ndarray:
    """Brings the mean thickness of sheets nearest to ``target`` voxels, topology kept.

    See :func:`pipeline.morphology.sheets.set_thickness`. ``per`` "component" measures each sheet,
    "class" all sheets of a class together.
    """
    return mend_each_class(array, lambda mask, free: sheets.set_thickness(mask, target, per, free))


def instances(array: np.ndarray, depth: float = 2.0) -> np.ndarray:
    """Labels -> instance numbers 1.. in the smallest unsigned type that holds them.

    Touching bodies are cut at their necks, by a watershed of the distance to the background. Two
    bodies have a seed each when every path between them sinks more than ``depth`` voxels below the
    lower of their largest distances (h-maxima); every 26-connected component has at least one.
    Classes are separated first; numbers follow class, then C order of the seeds. Sheets that touch
    over an area have no neck and stay together.

    Source: Beucher and Lantuéjoul, Use of watersheds in contour detection, 1979.
    """
    if not depth > 0:
        raise ConfigError(
            f"instances: depth is {depth!r}; it is a distance in voxels and must be positive."
        )
    out = np.zeros(array.shape, dtype=np.uint32)
    count = 0
    for _, box, mask in classes(array):
        numbers, found = _split(mask, depth)
        out[box][mask] = numbers[mask] + count
        count += found
    return out.astype(np.min_scalar_type(count))


def _split(mask: np.ndarray, depth: float) -> tuple[np.ndarray, int]:
    distance = edt.edt(mask)
    # A mask without any background has distance inf everywhere; a background at -depth keeps
    # components from meeting in it.
    height = np.where(mask, np.minimum(distance, max(mask.shape)), -depth).astype(np.float64)
    lowered = skimage.morphology.reconstruction(height - depth, height)
    levelled = np.pad(lowered, 1, constant_values=-2 * depth)  # no maxima in a constant array
    tops = np.asarray(skimage.morphology.local_maxima(levelled, connectivity=mask.ndim))
    seeds, found = morphology.components(mask & tops[(slice(1, -1),) * mask.ndim])
    return (
        skimage.segmentation.watershed(
            -height, seeds.astype(np.int32), connectivity=mask.ndim, mask=mask
        ).astype(np.uint32),
        found,
    )


def _only_channel(array: np.ndarray | SlabArray, step: str) -> Any:
    channels = array.shape[0]
    if channels != 1:
        raise ConfigError(
            f"{step} takes one channel, the prediction has {channels}. For several classes use"
            " argmax."
        )
    return array.channel(0) if isinstance(array, SlabArray) else array[0]


def _probability(what: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(
            f"{what} is {value}; it is compared with probabilities and must lie in 0..1."
        )
    return value


def _size(what: str, value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"{what} is {value}; it is a number of voxels and must not be negative.")


def _reach(step: str, radius: Any, size: Any, dims: int) -> float | tuple[float, ...]:
    """The radius of a ball or the radii of an ellipsoid, one for each axis."""
    if (radius is None) == (size is None):
        raise ConfigError(
            f"{step} takes either radius or size, got radius={radius} and size={size}. Give one,"
            " e.g. radius: 1.5."
        )
    given = radius if size is None else size
    if not isinstance(given, Sequence):
        return given if size is None else _half(step, size)
    if len(given) != dims:
        raise ConfigError(
            f"{step}: {list(given)} has {len(given)} numbers for {dims} axes. Give one number, or"
            " one for each axis."
        )
    return tuple(given) if size is None else tuple(0.0 if n == 1 else _half(step, n) for n in given)


def _by_reach(
    array: np.ndarray,
    reach: Any,
    ball: Callable[..., np.ndarray],
    ellipsoid: Callable[..., np.ndarray],
) -> np.ndarray:
    """Each class changed by a ball, or where there is a radius for each axis by an ellipsoid."""
    change = ellipsoid if isinstance(reach, tuple) else ball
    return each_class(array, lambda mask: change(mask, reach))


def _half(step: str, size: int) -> float:
    if not size >= 1:
        raise ConfigError(f"{step}: size is {size}; a kernel's edge is at least 1 voxel.")
    return size // 2 + 0.5
