"""Distances between the surfaces of two label maps, in millimetres with a spacing, else in voxels.

Arguments, classes and keys are those of :mod:`pipeline.metrics.overlap`; ignored voxels become
background in both maps first. ``spacing`` holds millimetres along each axis, None where the files
carry no unit; a tolerance in voxels never depends on it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import edt
import numpy as np
import scipy
import skimage

from pipeline import morphology
from pipeline.metrics.overlap import Classes, confined, over_classes
from pipeline.records import UserError

Spacing = Sequence[float] | None
"""Millimetres between voxels along each axis; None: not known."""

TOLERANCE = 2.0
"""Default tolerance of ``surface_dice`` in voxels."""


def surface_dice(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    tolerance: float | None = None,
    tolerance_mm: float | None = None,
    classes: Classes = None,
    spacing: Spacing = None,
) -> dict[str, float]:
    """Share of both surfaces that lies within a tolerance of the other one.

    Both empty: 1, one empty: 0. A surface element is a 2x2x2 neighbourhood of the zero-padded mask
    that is neither empty nor full. It weighs the area of its marching-cubes triangles (2D: the
    length of its contour) and lies at the neighbourhood's centre.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        tolerance: in voxels, whatever the spacing; 2 unless one of the two is given.
        tolerance_mm: in millimetres; then distances and areas are measured in physical space.
        classes: foreground classes of the data set; None: those that occur in either map.
        spacing: millimetres between voxels along each axis; None: not known.

    Returns:
        ``surface_dice`` in 0..1; of several classes the mean, and ``surface_dice_<class>``.

    Raises:
        UserError: for a negative tolerance, for both at once, for millimetres without spacing, and
            for shapes that differ.

    Source:
        Nikolov et al. 2018, arXiv:1809.04430; the numbers are those of the surface-distance package
        (0.1).

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((8, 8), np.uint8)
        >>> mask[2:4] = 1
        >>> surface_dice(mask, np.roll(mask, 1, 0), tolerance=1)
        {'surface_dice': 1.0}
    """
    if tolerance is not None and tolerance_mm is not None:
        raise UserError(
            f"surface_dice: tolerance is {tolerance!r} voxels and tolerance_mm {tolerance_mm!r} mm."
            " Give one of them."
        )
    if tolerance_mm is None:
        limit = TOLERANCE if tolerance is None else tolerance
        measure = functools.partial(
            _surface_dice, tolerance=_checked_distance("tolerance", limit, "voxels")
        )
    else:
        if spacing is None:
            raise UserError(
                f"surface_dice: tolerance_mm is {tolerance_mm!r}, but the files carry no unit of"
                " length. Use tolerance (voxels), or files that do: NIfTI, OME-Zarr, OME or ImageJ"
                " TIFF."
            )
        limit = _checked_distance("tolerance_mm", tolerance_mm, "millimetres")
        measure = functools.partial(_surface_dice, tolerance=limit, spacing=tuple(spacing))
    return over_classes("surface_dice", confined(prediction, target, valid), measure, classes)


def _checked_distance(name: str, value: float, unit: str) -> float:
    """The value, if it is a distance; ``name`` and ``unit`` are for the message."""
    if not value >= 0:
        raise UserError(
            f"{name} is {value!r}; it is a distance in {unit} and must not be negative."
        )
    return value


def _surface_dice(
    prediction: np.ndarray,
    target: np.ndarray,
    tolerance: float,
    spacing: tuple[float, ...] | None = None,
) -> float:
    """The share for two masks; with a ``spacing`` tolerance, distances and areas are physical."""
    box = _box(prediction, target)
    if box is None:
        return float(prediction.any() == target.any())
    codes = [neighbour_codes(mask[box]) for mask in (prediction, target)]
    sizes = unit_element_sizes(prediction.ndim) if spacing is None else element_sizes(spacing)
    surfaces = [(code != 0) & (code != len(sizes) - 1) for code in codes]
    total = near = 0.0
    for i in (0, 1):
        close = _within(surfaces[1 - i], tolerance, spacing)
        total += _area(codes[i], surfaces[i], sizes)
        near += _area(codes[i], surfaces[i] & close, sizes)
    return near / total


def _within(surface: np.ndarray, tolerance: float, spacing: tuple[float, ...] | None) -> np.ndarray:
    """Where a surface element is no farther away than the tolerance."""
    if spacing is None:
        return morphology.dilate(surface, tolerance)
    # A relative 1e-6 more than the tolerance: 3 mm are within 3 mm in float32, too.
    return edt.edt(~surface, anisotropy=spacing) <= tolerance * (1 + 1e-6)


def _area(codes: np.ndarray, where: np.ndarray, sizes: np.ndarray) -> float:
    """Total area of the surface elements at ``where``."""
    # Counts first: exact, whatever the order of voxels.
    return float(np.bincount(codes[where], minlength=len(sizes)) @ sizes)


def _box(prediction: np.ndarray, target: np.ndarray) -> tuple[slice, ...] | None:
    """The box around both masks; None when either is empty."""
    if not (prediction.any() and target.any()):
        return None
    return scipy.ndimage.find_objects((prediction | target).view(np.uint8))[0]


def neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """The 2x2x2 (2D: 2x2) neighbourhoods of the zero-padded mask as bits, first corner highest.

    From ``(*S)`` to uint8 ``(*(S + 1))``.
    """
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([n + 1 for n in mask.shape], dtype=np.uint8)
    for corner in itertools.product((0, 1), repeat=mask.ndim):
        codes <<= 1
        codes |= padded[tuple(slice(c, c + n + 1) for c, n in zip(corner, mask.shape, strict=True))]
    return codes


_AREAS = (
    "099393is9i3s3ss293isisrSiccDcDBs9i3siccDirsScBDs3ss2cDBscBDs6cc3"
    "9iic3scDircBsSDs3scDs2BscB6cDsc3ircBcB6crABrBrcisSDsDsc3Brcicii9"
)
"""Areas of the first 128 neighbourhood codes; those of the others are mirrored.

Base 62, digit ``9 i + 3 j + k`` standing for ``i sqrt(3) / 8 + j sqrt(2) / 2 + k / 2``. These are
the triangles of marching cubes (Lorensen and Cline 1987) through edge midpoints.
"""


@functools.cache
def unit_element_sizes(dims: int) -> np.ndarray:
    """Float64 area (2D: length) of the surface element of each neighbourhood code, at spacing 1."""
    if dims == 2:
        # A corner cut off (two of them: 2 * cut), and a line along an axis.
        cut, line = math.sqrt(2) / 2, 1.0
        return np.array(
            [0, cut, cut, line, cut, line, 2 * cut, cut, cut, 2 * cut, line, cut, line, cut, cut, 0]
        )
    digits = np.array([int(c, 36) if c.islower() or c.isdigit() else ord(c) - 29 for c in _AREAS])
    areas = digits // 9 * math.sqrt(3) / 8 + digits // 3 % 3 * math.sqrt(2) / 2 + digits % 3 / 2
    return np.concatenate((areas, areas[::-1]))


@functools.cache
def element_sizes(spacing: tuple[float, ...]) -> np.ndarray:
    """Area (2D: length) of the surface element of each neighbourhood code in physical space.

    An area is no sum of its parts at spacing 1, so the triangles themselves are measured.

    Args:
        spacing: millimetres between voxels along each of 2 or 3 axes.

    Returns:
        Float64 ``(256,)`` in square millimetres; in 2D ``(16,)`` in millimetres.

    Source:
        The numbers are those of the surface-distance package (0.1).
    """
    if len(spacing) == 2:
        y, x = spacing
        cut = math.hypot(y, x) / 2
        return np.array(
            [0, cut, cut, x, cut, y, 2 * cut, cut, cut, 2 * cut, y, cut, x, cut, cut, 0]
        )
    own = unit_element_sizes(3)
    return np.array([_mesh_area(code, own[code], spacing) for code in range(256)])


def _mesh_area(code: int, own: float, spacing: tuple[float, ...]) -> float:
    """Area at ``spacing`` of a code's element, whose area at spacing 1 is ``own``."""
    if own == 0:
        return 0.0
    # Where the case is ambiguous, the mesh is that of the complement; it is the one with the right
    # area at spacing 1.
    meshes = (_triangles(side) for side in (code, 255 - code))
    mesh = next(m for m in meshes if abs(_mesh_size(m, (1.0, 1.0, 1.0)) - own) < 1e-6)
    return _mesh_size(mesh, spacing)


def _triangles(code: int) -> np.ndarray:
    """Corners ``(N, 3, 3)`` of the marching-cubes triangles of one neighbourhood."""
    corners = np.array([code >> (7 - i) & 1 for i in range(8)], float).reshape(2, 2, 2)
    points, faces, *_ = skimage.measure.marching_cubes(corners, 0.5, method="lorensen")
    return points.astype(np.float64)[faces]


def _mesh_size(triangles: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Total area of the triangles at a spacing."""
    sides = np.diff(triangles * np.array(spacing), axis=1)
    return float(np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1).sum() / 2)


def hd95(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
    spacing: Spacing = None,
) -> dict[str, float]:
    """95th percentile of the Hausdorff distance over surface voxels.

    It is the larger of the percentiles of the two directions. Surface voxels are foreground with a
    background voxel, or the outside of the array, across a face. Both empty: 0, one empty: the
    diagonal of the array, the worst there can be, so that a mean over cases stays a number.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes of the data set; None: those that occur in either map.
        spacing: millimetres between voxels along each axis; None: distances in voxels.

    Returns:
        ``hd95`` in millimetres with a ``spacing``, else in voxels; with several classes their mean,
        and ``hd95_<class>`` of each.

    Raises:
        UserError: the shapes differ.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((8, 8), np.uint8)
        >>> mask[2:4] = 1
        >>> hd95(mask, np.roll(mask, 1, 0), spacing=(0.5, 0.5))
        {'hd95': 0.5}
    """
    measure = functools.partial(_hd95, spacing=spacing)
    return over_classes("hd95", confined(prediction, target, valid), measure, classes)


def assd(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
    spacing: Spacing = None,
) -> dict[str, float]:
    """Average symmetric surface distance over the surface voxels of both masks.

    It is the mean distance of each surface voxel to the other surface. Surface voxels and empty
    cases as in :func:`hd95`.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes of the data set; None: those that occur in either map.
        spacing: millimetres between voxels along each axis; None: distances in voxels.

    Returns:
        ``assd`` in millimetres with a ``spacing``, else in voxels; with several classes their mean,
        and ``assd_<class>`` of each.

    Raises:
        UserError: the shapes differ.
    """
    measure = functools.partial(_assd, spacing=spacing)
    return over_classes("assd", confined(prediction, target, valid), measure, classes)


def _hd95(prediction: np.ndarray, target: np.ndarray, spacing: Spacing) -> float:
    distances = _surface_distances(prediction, target, spacing)
    if not distances:
        return _distance_to_empty(prediction, target, spacing)
    return max(float(np.percentile(d, 95)) for d in distances)


def _assd(prediction: np.ndarray, target: np.ndarray, spacing: Spacing) -> float:
    distances = _surface_distances(prediction, target, spacing)
    if not distances:
        return _distance_to_empty(prediction, target, spacing)
    return float(np.concatenate(distances).mean(dtype=np.float64))


def _distance_to_empty(prediction: np.ndarray, target: np.ndarray, spacing: Spacing) -> float:
    """Distance where a mask is empty: 0 if both are, else the diagonal of the array."""
    if prediction.any() == target.any():
        return 0.0
    return math.hypot(
        *((n - 1) * s for n, s in zip(target.shape, spacing or (1.0,) * target.ndim, strict=True))
    )


def _surface_distances(
    prediction: np.ndarray, target: np.ndarray, spacing: Spacing
) -> list[np.ndarray]:
    """Distances of the surface voxels to the other surface: from the prediction, from the target.

    Empty when either mask is.
    """
    box = _box(prediction, target)
    if box is None:
        return []
    edges = [
        mask[box] & np.logical_not(scipy.ndimage.binary_erosion(mask[box]))
        for mask in (prediction, target)
    ]
    anisotropy = None if spacing is None else tuple(spacing)
    return [
        edt.edt(~edges[1], anisotropy=anisotropy)[edges[0]],
        edt.edt(~edges[0], anisotropy=anisotropy)[edges[1]],
    ]
