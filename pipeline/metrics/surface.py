"""How near the surfaces of two label maps lie to each other, in voxels.

Arguments, classes and keys are those of :mod:`pipeline.metrics.region`; ignored voxels become background in both maps first.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from pipeline import morphology
from pipeline.metrics.region import confined, over_classes
from pipeline.records import UserError


def surface_dice(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None, tolerance: float = 2.0) -> dict[str, float]:
    """Share of both surfaces that lies within ``tolerance`` voxels of the other one. Both empty: 1, one empty: 0.

    A surface element is a 2x2x2 neighbourhood of the zero-padded mask that is neither empty nor full. It weighs the area of
    its marching-cubes triangles (2D: the length of its contour) and lies at the neighbourhood's centre. Nikolov et al. 2018,
    arXiv:1809.04430; the numbers are those of the surface-distance package (0.1) with a spacing of 1.
    """
    if not tolerance >= 0:
        raise UserError(f"tolerance is {tolerance!r}; it is a distance in voxels and must not be negative.")
    measure = functools.partial(_surface_dice, tolerance=tolerance)
    return over_classes("surface_dice", *confined(prediction, target, valid), measure)


def _surface_dice(prediction: np.ndarray, target: np.ndarray, tolerance: float) -> float:
    box = _box(prediction, target)
    if box is None:
        return float(prediction.any() == target.any())
    codes = [_neighbour_codes(mask[box]) for mask in (prediction, target)]
    sizes = _element_sizes(prediction.ndim)
    surfaces = [(code != 0) & (code != len(sizes) - 1) for code in codes]
    total = near = 0.0
    for i in (0, 1):
        close = morphology.dilate(surfaces[1 - i], tolerance)
        total += _area(codes[i], surfaces[i], sizes)
        near += _area(codes[i], surfaces[i] & close, sizes)
    return near / total


def _area(codes: np.ndarray, where: np.ndarray, sizes: np.ndarray) -> float:
    return float(np.bincount(codes[where], minlength=len(sizes)) @ sizes)  # counts first: exact, whatever the order of voxels


def _box(prediction: np.ndarray, target: np.ndarray) -> tuple[slice, ...] | None:
    """The box around both masks; None when either is empty."""
    from scipy.ndimage import find_objects

    if not (prediction.any() and target.any()):
        return None
    return find_objects((prediction | target).view(np.uint8))[0]


def _neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """``(*S)`` -> uint8 ``(*(S + 1))``: the 2x2x2 (2D: 2x2) neighbourhoods of the zero-padded mask as bits, first corner highest."""
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([n + 1 for n in mask.shape], dtype=np.uint8)
    for corner in itertools.product((0, 1), repeat=mask.ndim):
        codes <<= 1
        codes |= padded[tuple(slice(c, c + n + 1) for c, n in zip(corner, mask.shape, strict=True))]
    return codes


_AREAS = "099393is9i3s3ss293isisrSiccDcDBs9i3siccDirsScBDs3ss2cDBscBDs6cc39iic3scDircBsSDs3scDs2BscB6cDsc3ircBcB6crABrBrcisSDsDsc3Brcicii9"
"""Areas of the first 128 neighbourhood codes, those of the others mirrored: base 62, digit ``9 i + 3 j + k`` standing for
``i sqrt(3) / 8 + j sqrt(2) / 2 + k / 2``. These are the triangles of marching cubes (Lorensen and Cline 1987) through edge midpoints.
"""


@functools.cache
def _element_sizes(dims: int) -> np.ndarray:
    """Float64 area (2D: length) of the surface element of each neighbourhood code, at spacing 1."""
    if dims == 2:
        one, straight = math.sqrt(2) / 2, 1.0  # a corner cut off; a line along an axis; two corners that are cut off
        return np.array([0, one, one, straight, one, straight, 2 * one, one, one, 2 * one, straight, one, straight, one, one, 0])
    digits = np.array([int(c, 36) if c.islower() or c.isdigit() else ord(c) - 29 for c in _AREAS])
    areas = digits // 9 * math.sqrt(3) / 8 + digits // 3 % 3 * math.sqrt(2) / 2 + digits % 3 / 2
    return np.concatenate((areas, areas[::-1]))


def hd95(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """95th percentile of the Hausdorff distance: the larger of the two directions' percentiles, over surface voxels.

    Surface voxels are foreground with a background voxel, or the outside of the array, across a face. Both empty: 0, one
    empty: the diagonal of the array, the worst there can be, so that a mean over cases stays a number.
    """
    return over_classes("hd95", *confined(prediction, target, valid), _hd95)


def assd(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """Average symmetric surface distance: the mean over the surface voxels of both masks of the distance to the other surface.

    Surface voxels and empty cases as in :func:`hd95`.
    """
    return over_classes("assd", *confined(prediction, target, valid), _assd)


def _hd95(prediction: np.ndarray, target: np.ndarray) -> float:
    distances = _surface_distances(prediction, target)
    return max(float(np.percentile(d, 95)) for d in distances) if distances else _worst(prediction, target)


def _assd(prediction: np.ndarray, target: np.ndarray) -> float:
    distances = _surface_distances(prediction, target)
    return float(np.concatenate(distances).mean(dtype=np.float64)) if distances else _worst(prediction, target)


def _worst(prediction: np.ndarray, target: np.ndarray) -> float:
    if prediction.any() == target.any():
        return 0.0
    return math.sqrt(sum((n - 1) ** 2 for n in target.shape))


def _surface_distances(prediction: np.ndarray, target: np.ndarray) -> list[np.ndarray]:
    """Distances of the prediction's surface voxels to the target's and the other way round; empty when either mask is."""
    import edt
    from scipy.ndimage import binary_erosion

    box = _box(prediction, target)
    if box is None:
        return []
    edges = [mask[box] & np.logical_not(binary_erosion(mask[box])) for mask in (prediction, target)]
    return [edt.edt(~edges[1])[edges[0]], edt.edt(~edges[0])[edges[1]]]
