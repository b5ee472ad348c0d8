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
from pipeline.postprocess.classes import Labels, each_class, mend_each_class
from pipeline.postprocess.classes import classes as classes_of
from pipeline.postprocess.objects import EACH, Classes, remove_from_objects


def threshold(array: np.ndarray, at: float = 0.5) -> np.ndarray:
    """Label as foreground where the probability is ``at`` or more.

    Args:
        array: probabilities ``(1, *S)``.
        at: threshold, 0..1.

    Returns:
        Labels 0 and 1, uint8 ``(*S)``.

    Raises:
        ConfigError: several channels, or ``at`` outside 0..1.

    Example:
        >>> import numpy as np
        >>> threshold(np.array([[0.2, 0.5, 0.9]]))
        array([0, 1, 1], dtype=uint8)
    """
    return (_only_channel(array, "threshold") >= _probability("threshold: at", at)).astype(np.uint8)


def hysteresis(array: Labels, low: float, high: float, connectivity: int = 26) -> Labels:
    """Label the components of ``>= low`` that somewhere reach ``>= high``.

    Args:
        array: probabilities ``(1, *S)``, in memory or in slabs.
        low: threshold of the components, 0..1.
        high: threshold that a voxel of each must reach, ``low``..1.
        connectivity: of the components, 6, 18 or 26.

    Returns:
        Labels 0 and 1, uint8 ``(*S)``.

    Raises:
        ConfigError: several channels, a threshold outside 0..1, or ``low`` above ``high``.

    Example:
        >>> import numpy as np
        >>> hysteresis(np.array([[[0.4, 0.9, 0.0, 0.4]]]), low=0.3, high=0.8)
        array([[1, 1, 0, 0]], dtype=uint8)
    """
    soft = _only_channel(array, "hysteresis")
    if not _probability("hysteresis: low", low) <= _probability("hysteresis: high", high):
        raise ConfigError(f"hysteresis: low is {low}, above high, which is {high}. Exchange them.")
    return morphology.hysteresis(soft >= low, soft >= high, connectivity).astype(np.uint8)


def walls(
    array: np.ndarray, low: float = 0.01, depth: float = 1.5, least: int = 5, merge: float = 0.5
) -> np.ndarray:
    """Label the surfaces between bodies.

    Defined by :func:`pipeline.morphology.watershed_boundaries`. For surfaces that close, such as
    membranes of cells; for papyrus sheets, which end freely, use threshold or hysteresis.

    Args:
        array: probabilities ``(1, *S)`` of a surface.
        low: probability from which a voxel may belong to a surface, 0..1.
        depth: seeds lie more than this many voxels away from such voxels.
        least: voxels of the smallest seed.
        merge: boundaries of a lower mean probability are dissolved, 0..1.

    Returns:
        Labels 0 and 1, uint8 ``(*S)``.

    Raises:
        ConfigError: several channels, a probability outside 0..1, or a negative size.
    """
    soft = _only_channel(array, "walls")
    _size("walls: depth", depth)
    _size("walls: least", least)
    return morphology.watershed_boundaries(
        soft, _probability("walls: low", low), depth, least, _probability("walls: merge", merge)
    ).astype(np.uint8)


def argmax(array: np.ndarray) -> np.ndarray:
    """Label each voxel by the channel with the largest value, the first of equal ones.

    Args:
        array: probabilities ``(K, *S)``, 2 to 256 channels.

    Returns:
        Labels from 0 to K - 1, uint8 ``(*S)``.

    Raises:
        ConfigError: fewer or more channels.
    """
    if not 1 < len(array) <= 256:
        raise ConfigError(
            f"argmax compares 2 to 256 channels, the prediction has {len(array)}. For one channel"
            " use threshold or hysteresis."
        )
    labels, best = np.zeros(array.shape[1:], np.uint8), array.max(0)
    for number in reversed(range(len(array))):  # twice as fast as array.argmax(0)
        np.putmask(labels, array[number] == best, number)
    return labels


def regions(
    array: np.ndarray, order: Sequence[int], threshold: float | Sequence[float] = 0.5
) -> np.ndarray:
    """Label by region after region: where the probability is above ``threshold``.

    Later regions overwrite earlier ones.

    Args:
        array: probabilities of the regions ``(K, *S)``.
        order: label value that is written for each of them, at least 1.
        threshold: 0..1, one for all regions or one for each.

    Returns:
        Labels ``(*S)``, uint8, for values above 255 uint16.

    Raises:
        ConfigError: as many values or thresholds as channels are needed, or one is out of range.

    Source:
        Isensee et al., Nature Methods 2021 (nnU-Net's region-based training).

    Example:
        >>> import numpy as np
        >>> regions(np.array([[0.2, 0.9, 0.9], [0.4, 0.5, 0.6]]), order=[1, 2])
        array([0, 1, 2], dtype=uint8)
    """
    labels, cuts = _region_labels(order), threshold
    cuts = list(cuts) if isinstance(cuts, Sequence) else [cuts] * len(labels)
    if not len(labels) == len(cuts) == len(array):
        raise ConfigError(
            f"regions: order has {len(labels)} values and threshold {len(cuts)}, the prediction has"
            f" {len(array)} channels. Give one for each region."
        )
    out = np.zeros(array.shape[1:], np.uint8 if max(labels) <= 255 else np.uint16)
    for probability, label, cut in zip(array, labels, cuts, strict=True):
        out[probability > _probability("regions: threshold", cut)] = label
    return out


def _region_labels(order: Any) -> list[int]:
    """The option ``order`` as numbers."""
    labels = list(order) if isinstance(order, Sequence) and not isinstance(order, str) else []
    if not labels or any(
        isinstance(v, bool) or not isinstance(v, int) or not 1 <= v < 2**16 for v in labels
    ):
        raise ConfigError(
            f"regions: order is {order!r}, must be a list of label values from 1 on, one for each"
            " region."
        )
    return labels


def dust(
    array: Labels, below: int = 100, connectivity: int = 26, classes: Classes = "each"
) -> Labels:
    """Remove components of fewer than ``below`` voxels.

    Args:
        array: labels ``(*S)``, in memory or in slabs.
        below: voxels of the smallest component that stays.
        connectivity: of the components, 6, 18 or 26.
        classes: whose components, see :mod:`pipeline.postprocess.objects`: ``each`` class by
            itself, a list of label values by themselves, or the whole ``foreground`` as one.

    Returns:
        Labels of the same kind.

    Raises:
        ConfigError: ``below`` is negative, or ``classes`` names no classes.

    Example:
        >>> import numpy as np
        >>> dust(np.array([[1, 0, 1, 1]]), below=2)
        array([[0, 0, 1, 1]])
        >>> dust(np.array([[1, 0, 2, 0, 1]]), below=2, classes=[2])
        array([[1, 0, 0, 0, 1]])
    """
    _size("dust: below", below)

    def change(mask: Any) -> Any:
        return morphology.remove_small_components(mask, below, connectivity)

    if classes == EACH:
        return each_class(array, change)
    return remove_from_objects(array, "dust", classes, change)


def largest_component(
    array: Labels, classes: Classes = "foreground", connectivity: int = 26
) -> Labels:
    """Keep the largest component of an object; the rest of it becomes background.

    Components of equal size, when there is none larger, all stay.

    Args:
        array: labels ``(*S)``, in memory or in slabs.
        classes: which objects, see :mod:`pipeline.postprocess.objects`: the whole ``foreground`` as
            one, ``each`` class by itself, or a list of label values by themselves, ``[1, 3]``;
            ``[[1, 2]]`` is one object of two classes. Classes that are not named stay as they are.
        connectivity: of the components, 6, 18 or 26.

    Returns:
        Labels of the same kind.

    Raises:
        ConfigError: ``classes`` names no classes.

    Source:
        Isensee et al., Nature Methods 2021 (nnU-Net's post-processing: the foreground, then each
        class or region).

    Example:
        >>> import numpy as np
        >>> labels = np.array([[2, 0, 1, 1, 2, 2, 0, 1]])
        >>> largest_component(labels)
        array([[0, 0, 1, 1, 2, 2, 0, 0]])
        >>> largest_component(labels, classes=[2])
        array([[0, 0, 1, 1, 2, 2, 0, 1]])
    """
    return remove_from_objects(
        array,
        "largest_component",
        classes,
        lambda mask: morphology.keep_largest(mask, connectivity),
    )


def fill_holes(array: Labels, below: int | None = 50, per_slice: int | None = None) -> Labels:
    """Fill holes of at most ``below`` voxels.

    Holes are those of :func:`pipeline.morphology.fill_holes`. Another class inside a hole counts
    towards its size and stays.

    Args:
        array: labels ``(*S)``, in memory or, without ``per_slice``, in slabs.
        below: voxels of the largest hole that is filled; None: any size.
        per_slice: axis across which 2D holes are filled slice by slice instead of 3D cavities;
            None: cavities.

    Returns:
        Labels of the same kind.

    Raises:
        ConfigError: ``below`` is negative.
    """
    if below is not None:
        _size("fill_holes: below", below)
    return each_class(array, lambda mask: morphology.fill_holes(mask, below, per_slice))


def opening(
    array: np.ndarray,
    radius: float | Sequence[float] | None = None,
    size: int | Sequence[int] | None = None,
) -> np.ndarray:
    """Remove what a ball or ellipsoid does not fit into.

    Args:
        array: labels ``(*S)``.
        radius: in voxels, as in :func:`closing`.
        size: instead of a radius, as in :func:`closing`.

    Returns:
        Labels ``(*S)``.

    Raises:
        ConfigError: not exactly one of radius and size, or a number of them that fits no axes.
    """
    return _by_radii(
        array,
        _radii("opening", radius, size, array.ndim),
        morphology.opening,
        sheets.opening_by_ellipsoid,
    )


def closing(
    array: np.ndarray,
    radius: float | Sequence[float] | None = None,
    size: int | Sequence[int] | None = None,
) -> np.ndarray:
    """Fill gaps that a ball or ellipsoid does not fit into.

    Closing may join neighbouring sheets of one class, which :func:`sheet_closing` never does; it
    never joins classes.

    Args:
        array: labels ``(*S)``.
        radius: of the ball in voxels. Whole numbers leave pinholes open, see
            :func:`pipeline.morphology.closing`. A list with one number for each axis, such as
            ``[3, 2, 2]``, stands for an ellipsoid; 0 does not reach along its axis.
        size: instead of a radius, the edge of a cubic kernel, or one for each axis. A kernel of
            edge n reaches k = n // 2 voxels from its centre and stands for the ball of radius k +
            1/2: 1 changes nothing, 2 and 3 are a voxel and its 18 neighbours.

    Returns:
        Labels ``(*S)``.

    Raises:
        ConfigError: not exactly one of radius and size, or a number of them that fits no axes.
    """
    return _by_radii(
        array,
        _radii("closing", radius, size, array.ndim),
        morphology.closing,
        sheets.closing_by_ellipsoid,
    )


def sheet_closing(array: np.ndarray, radius: float = 2.5) -> np.ndarray:
    """Close each sheet (26-connected component) by a ball on its own, joining none.

    See :func:`pipeline.morphology.sheets.close_sheets`.

    Args:
        array: labels ``(*S)``.
        radius: of the ball in voxels.

    Returns:
        Labels ``(*S)``.
    """
    return mend_each_class(array, lambda mask, free: sheets.close_sheets(mask, radius, free))


def patch_sheets(array: np.ndarray, largest: int = 200) -> np.ndarray:
    """Fill holes through sheets of a volume by height maps.

    See :func:`pipeline.morphology.sheets.patch_sheets`. Mend contacts first (``watertight``) where
    sheets may hang together by edges and corners.

    Args:
        array: labels ``(Z, Y, X)``.
        largest: area of the largest hole that is filled, in voxels.

    Returns:
        Labels ``(Z, Y, X)``.

    Raises:
        ConfigError: ``largest`` is negative.
    """
    _size("patch_sheets: largest", largest)
    return mend_each_class(array, lambda mask, free: sheets.patch_sheets(mask, largest, free))


def watertight(array: np.ndarray) -> np.ndarray:
    """Turn contacts by an edge or a corner into contacts by faces, joining no sheets.

    See :func:`pipeline.morphology.sheets.watertight`. It may shut in cavities that leaked through
    such contacts; ``fill_holes`` comes after it.

    Args:
        array: labels ``(*S)``.

    Returns:
        Labels ``(*S)``.
    """
    return mend_each_class(array, sheets.watertight)


def thickness(array: np.ndarray, target: float = 3.0, per: str = "component") -> np.ndarray:
    """Bring the mean thickness of sheets nearest to ``target`` voxels, topology kept.

    See :func:`pipeline.morphology.sheets.set_thickness`.

    Args:
        array: labels ``(*S)``.
        target: thickness in voxels.
        per: ``component`` measures each sheet, ``class`` all sheets of a class together.

    Returns:
        Labels ``(*S)``.
    """
    return mend_each_class(array, lambda mask, free: sheets.set_thickness(mask, target, per, free))


def instances(array: np.ndarray, depth: float = 2.0) -> np.ndarray:
    """Split labels into numbered instances, cutting touching bodies at their necks.

    Bodies are cut by a watershed of the distance to the background. Two bodies have a seed each
    when every path between them sinks more than ``depth`` voxels below the lower of their largest
    distances (h-maxima); every 26-connected component has at least one. Classes are separated
    first; numbers follow class, then C order of the seeds. Sheets that touch over an area have no
    neck and stay together.

    Args:
        array: labels ``(*S)``.
        depth: of the neck in voxels, positive.

    Returns:
        Instance numbers 1.. ``(*S)`` in the smallest unsigned type that holds them; 0: background.

    Raises:
        ConfigError: ``depth`` is not positive.

    Source:
        Beucher and Lantuéjoul, Use of watersheds in contour detection, 1979.
    """
    if not depth > 0:
        raise ConfigError(
            f"instances: depth is {depth!r}; it is a distance in voxels and must be positive."
        )
    out = np.zeros(array.shape, dtype=np.uint32)
    count = 0
    for _, box, mask in classes_of(array):
        numbers, found = _split_at_necks(mask, depth)
        out[box][mask] = numbers[mask] + count
        count += found
    return out.astype(np.min_scalar_type(count))


def _split_at_necks(mask: np.ndarray, depth: float) -> tuple[np.ndarray, int]:
    """Instance numbers of one mask by a watershed, and how many there are."""
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
    """The channel ``(*S)`` of one-channel probabilities."""
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


def _radii(step: str, radius: Any, size: Any, dims: int) -> float | tuple[float, ...]:
    """The radius of a ball or the radii of an ellipsoid, one for each axis."""
    if (radius is None) == (size is None):
        raise ConfigError(
            f"{step} takes either radius or size, got radius={radius} and size={size}. Give one,"
            " e.g. radius: 1.5."
        )
    given = radius if size is None else size
    if not isinstance(given, Sequence):
        return given if size is None else _radius_of_edge(step, size)
    if len(given) != dims:
        raise ConfigError(
            f"{step}: {list(given)} has {len(given)} numbers for {dims} axes. Give one number, or"
            " one for each axis."
        )
    return (
        tuple(given)
        if size is None
        else tuple(0.0 if n == 1 else _radius_of_edge(step, n) for n in given)
    )


def _by_radii(
    array: np.ndarray,
    reach: Any,
    ball: Callable[..., np.ndarray],
    ellipsoid: Callable[..., np.ndarray],
) -> np.ndarray:
    """Change each class by a ball, or where there is a radius for each axis by an ellipsoid."""
    change = ellipsoid if isinstance(reach, tuple) else ball
    return each_class(array, lambda mask: change(mask, reach))


def _radius_of_edge(step: str, size: int) -> float:
    """Radius of the ball that a kernel of this edge stands for."""
    if not size >= 1:
        raise ConfigError(f"{step}: size is {size}; a kernel's edge is at least 1 voxel.")
    return size // 2 + 0.5
