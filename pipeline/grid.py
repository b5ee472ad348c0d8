"""World grids: axis order and spacing of arrays, and flips and axis orders between grids.

Two families of files order their axes differently. Arrays of NIfTI, MetaImage, NRRD and DICOM are
``(X, Y, Z)`` with an affine that says where they lie; TIFF, Zarr, NumPy arrays and pictures are
``(Z, Y, X)`` without one.
Nothing says which axis of one family is which of the other, so files of different families are
never compared voxel by voxel. Within NIfTI, grids that are equal up to flips and axis order are
mapped onto one another exactly; nothing is resampled here.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nibabel
import numpy as np

from pipeline.records import MILLIMETRES, Geometry, UserError

TOLERANCE = 1e-3
"""Largest difference in millimetres between entries of two affines that count as equal.

For voxels that are not tiny; see ``SHARE``.
"""

SHARE = 0.01
"""The same as a share of the smallest side of a voxel: the limit for voxels of micrometres."""

SPREAD = 0.1
"""Share by which spacings of a data set may differ without a warning."""

NIFTI_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}
"""Millimetres in NIfTI's code of the unit of space; 0, unknown, is millimetres in practice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How the space axes of an array lie in the world, as far as its file says.

    Args:
        family: ``nifti`` for ``(X, Y, Z)`` with an affine (also MetaImage, NRRD and DICOM),
            ``array`` for ``(Z, Y, X)`` (in 2D ``(Y, X)``) without.
        spacing: millimetres between voxels along each space axis of the array; None where the file
            carries no unit.
        codes: nearest anatomical direction of each axis, such as ``RAS``; None where the file says
            nothing.
        affine: voxel to world in millimetres, 4 x 4; None where there is none.
    """

    family: str
    spacing: tuple[float, ...] | None = None
    codes: str | None = None
    affine: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """Axis order and flips that map an array onto another grid.

    Args:
        axes: ``axes[i]`` is the source axis that becomes axis i.
        flips: axes of the result that are flipped.

    Example:
        >>> Alignment(axes=(1, 0), flips=(0,)).apply(np.array([[[1, 2, 3], [4, 5, 6]]])).tolist()
        [[[3, 6], [2, 5], [1, 4]]]
    """

    axes: tuple[int, ...]
    flips: tuple[int, ...]

    @property
    def identity(self) -> bool:
        """Whether nothing is to be done."""
        return self.axes == tuple(range(len(self.axes))) and not self.flips

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Map an array onto the other grid.

        Args:
            array: ``(C, *S)`` on the source grid.

        Returns:
            A view ``(C, *S)`` on the other grid.
        """
        moved = array.transpose(0, *(a + 1 for a in self.axes))
        return np.flip(moved, tuple(a + 1 for a in self.flips)) if self.flips else moved

    @property
    def inverse(self) -> Alignment:
        """The opposite alignment: ``a.inverse.apply(a.apply(x))`` is x."""
        axes = tuple(self.axes.index(i) for i in range(len(self.axes)))
        return Alignment(axes=axes, flips=tuple(i for i, a in enumerate(axes) if a in self.flips))

    def size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Map a shape onto the other grid.

        Args:
            size: ``(*S)`` on the source grid.

        Returns:
            ``(*S)`` on the other grid.
        """
        return tuple(size[a] for a in self.axes)


def grid_of(geometry: Geometry, dims: int) -> Grid:
    """Grid of an array that was read with a geometry.

    Args:
        geometry: what its file says.
        dims: number of space axes of the array ``(C, *S)``.

    Returns:
        The grid, without what the file does not say or says wrongly (no positive, finite spacing).
    """
    meta = geometry.meta
    if geometry.format == "nifti":
        return _nifti(meta, dims)
    if geometry.format == "itk":
        return _itk(meta, dims)
    spacing = {"zarr": _zarr_spacing, "tiff": _tiff_spacing}.get(
        geometry.format, lambda meta, dims: None
    )(meta, dims)
    good = spacing is not None and all(math.isfinite(s) and s > 0 for s in spacing)
    return Grid(family="array", spacing=spacing if good else None)


def _nifti(meta: Mapping[str, Any], dims: int) -> Grid:
    unit, placed, zooms = _nifti_header(meta)
    # JSON has null for NaN.
    affine = np.array(
        [[math.nan if x is None else x for x in row] for row in meta["affine"]], float
    )
    affine[:3] *= unit
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))[:dims]
    if not (np.isfinite(affine).all() and (spacing > 0).all()):
        return Grid(family="nifti")
    stated = placed or any(abs(z - 1) > 1e-6 for z in zooms[:dims])
    codes = "".join(c or "?" for c in nibabel.aff2axcodes(affine))[:dims] if placed else None
    return Grid(
        family="nifti",
        spacing=tuple(float(s) for s in spacing) if stated or unit != 1.0 else None,
        codes=codes,
        affine=tuple(tuple(float(x) for x in row) for row in affine),
    )


def _itk(meta: Mapping[str, Any], dims: int) -> Grid:
    """Grid of MetaImage, NRRD or DICOM, whose affine is in millimetres."""
    sizes = {len(meta[key]) for key in ("spacing", "origin", "directions")}
    sizes |= {len(row) for row in meta["directions"]}
    if len(sizes) > 1:
        raise UserError(
            f"spacing, origin and directions are of {sorted(sizes)} axes. Give as many of each."
        )
    found = affine_grid(meta["affine"], dims)
    stated = meta["placed"] or bool(meta["unit"]) or any(s != 1 for s in meta["spacing"][:dims])
    return replace(
        found,
        spacing=found.spacing if stated else None,
        codes=found.codes if meta["placed"] else None,
    )


def has_world(geometry: Geometry) -> bool:
    """Whether arrays of a geometry are ``(X, Y, Z)`` with an affine, the family ``nifti``.

    Args:
        geometry: what a file says.

    Returns:
        False for TIFF, Zarr, NumPy arrays and pictures.
    """
    return geometry.format in ("nifti", "itk")


def affine_grid(affine: Any, dims: int) -> Grid:
    """Grid of an array ``(X, Y, Z)`` with a known affine.

    Args:
        affine: 4 x 4 from voxels to millimetres, RAS+.
        dims: number of space axes of the array.

    Returns:
        A grid of the family ``nifti``.

    Raises:
        UserError: for what is no such matrix.
    """
    matrix = np.asarray(affine, float)
    good = (
        matrix.shape == (4, 4)
        and np.isfinite(matrix).all()
        and abs(np.linalg.det(matrix[:3, :3])) > 0
    )
    if not good:
        raise UserError(
            f"affine has shape {matrix.shape}; give 4 x 4 finite numbers whose columns span the"
            " space."
        )
    spacing = np.sqrt((matrix[:3, :3] ** 2).sum(0))[:dims]
    return Grid(
        family="nifti",
        spacing=tuple(float(s) for s in spacing),
        codes="".join(c or "?" for c in nibabel.aff2axcodes(matrix))[:dims],
        affine=tuple(tuple(float(x) for x in row) for row in matrix),
    )


def _nifti_header(meta: Mapping[str, Any]) -> tuple[float, bool, tuple[float, ...]]:
    """Read from a header kept as base64 what a grid needs.

    Returns millimetres in a unit, whether a form places the array in the world, and the zooms.
    """
    block = base64.b64decode(meta["header"])
    kind = (
        nibabel.Nifti1Header
        if len(block) == nibabel.Nifti1Header.sizeof_hdr
        else nibabel.Nifti2Header
    )
    header: Any = kind(block, endianness=meta["endian"], check=False)
    placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    return (
        NIFTI_UNITS.get(int(header["xyzt_units"]) % 8, 1.0),
        placed,
        tuple(float(z) for z in header["pixdim"][1:4]),
    )


def _zarr_spacing(meta: Mapping[str, Any], dims: int) -> tuple[float, ...] | None:
    units = [MILLIMETRES.get(str(u).lower()) for u in meta.get("units") or ()]
    scale = meta.get("scale") or ()
    if len(units) != dims or len(scale) != dims or None in units:
        return None
    return tuple(float(s) * float(u or 0) for s, u in zip(scale, units, strict=True))


def _tiff_spacing(meta: Mapping[str, Any], dims: int) -> tuple[float, ...] | None:
    """Spacing of ImageJ, OME and this package's own description.

    The dots per inch of a picture are no spacing.
    """
    unit = MILLIMETRES.get(_plain(str(meta.get("unit", ""))).lower())
    # One voxel per unit is kept as no resolution at all.
    resolution = meta.get("resolution", [[1, 1], [1, 1]])
    if unit is None or any(not a or not b for a, b in resolution):
        return None
    x, y = (unit * b / a for a, b in resolution)
    if dims == 2:
        return (y, x)
    return (unit * float(meta["spacing"]), y, x) if "spacing" in meta else None


def _plain(text: str) -> str:
    """Replace ImageJ's escapes such as ``\\u00B5m`` by the characters that they mean."""
    return text.replace("\\u00B5", "\u00b5").replace("\\u00b5", "\u00b5").strip()


def near(one: Sequence[Sequence[Any]], other: Sequence[Sequence[Any]]) -> bool:
    """Whether two affines are equal but for rounding.

    An origin is kept in single precision, which matters beside tiny voxels. NaN, for which JSON has
    None, is equal to itself.

    Args:
        one: 4 x 4, voxels to millimetres.
        other: 4 x 4; its voxels set the tolerance.

    Returns:
        True where all entries are close.
    """
    a, b = np.array(one, float), np.array(other, float)
    unknown = np.isnan(a) & np.isnan(b)
    a[unknown] = b[unknown] = 0
    sides = np.sqrt((b[:3, :-1] ** 2).sum(0))
    limit = np.full(b.shape, min(TOLERANCE, SHARE * float(sides[sides > 0].min(initial=1))))
    limit[:3, -1] += 4 * np.finfo(np.float32).eps * np.abs(b[:3, -1])
    return bool((np.abs(a - b) <= limit).all())


def alignment(
    source: Grid, shape: Sequence[int], target: Grid, size: Sequence[int]
) -> Alignment | None:
    """Find the flips and the axis order that map an array onto a target grid.

    Both grids are NIfTI's. Where one of them has no affine, arrays of equal shape count as aligned.

    Args:
        source: grid of the array.
        shape: ``(*S)`` of the array.
        target: the other grid.
        size: ``(*S)`` on the target grid.

    Returns:
        The alignment; None where flips and axis order alone are not enough.
    """
    dims = len(shape)
    if source.affine is None or target.affine is None:
        return Alignment(axes=tuple(range(dims)), flips=()) if tuple(shape) == tuple(size) else None
    given, wanted = np.array(source.affine), np.array(target.affine)
    for axes in itertools.permutations(range(dims)):
        if tuple(shape[a] for a in axes) != tuple(size):
            continue
        for flips in itertools.product((False, True), repeat=dims):
            to_source = np.eye(4)  # voxel of the target -> voxel of the source
            to_source[:dims, :dims] = 0
            for new, (old, flipped) in enumerate(zip(axes, flips, strict=True)):
                to_source[old, new] = -1 if flipped else 1
                to_source[old, 3] = shape[old] - 1 if flipped else 0
            if near((given @ to_source).tolist(), wanted.tolist()):
                return Alignment(
                    axes=axes, flips=tuple(i for i, flipped in enumerate(flips) if flipped)
                )
    return None


def reorientation(codes: str, wanted: str) -> Alignment | None:
    """Find the axis order and the flips that bring an array to the wanted axis codes.

    Args:
        codes: axis codes of the array, such as ``LPS``.
        wanted: axis codes of the result.

    Returns:
        The alignment; None where the codes name other axes.

    Example:
        >>> reorientation("LPS", "RAS")
        Alignment(axes=(0, 1, 2), flips=(0, 1))
    """
    pairs = [frozenset("LR"), frozenset("PA"), frozenset("IS")]
    line = [next((p for p in pairs if c in p), None) for c in codes]
    goal = [next((p for p in pairs if c in p), None) for c in wanted]
    if None in line or None in goal:
        return None
    if sorted(map(sorted, line)) != sorted(map(sorted, goal)):  # type: ignore[arg-type]
        return None
    axes = tuple(line.index(p) for p in goal)
    return Alignment(axes=axes, flips=tuple(i for i, a in enumerate(axes) if codes[a] != wanted[i]))


def spread(spacings: Sequence[Sequence[float]]) -> float:
    """Largest share by which the spacings of a set differ along an axis.

    Args:
        spacings: one spacing (millimetres along each axis) for each image.

    Returns:
        The share; 0 for no spacings.

    Example:
        >>> spread([(1.0, 1.0), (1.0, 1.5)])
        0.5
    """
    return max(
        (max(column) / min(column) - 1 for column in zip(*spacings, strict=True)), default=0.0
    )


def by_mm(spacing: Sequence[float]) -> str:
    """Format a spacing for a message.

    Args:
        spacing: millimetres along each axis.

    Returns:
        Text with four digits for each axis.

    Example:
        >>> by_mm([0.8, 0.8, 5])
        '0.8 x 0.8 x 5 mm'
    """
    return " x ".join(f"{s:.4g}" for s in spacing) + " mm"
