"""Repairs for thin sheets that lie close together, without ever joining two of them.

They close, plug, patch and thicken each sheet. Sheets are 26-connected components. Every repair
takes a mask ``(Z, Y, X)`` or ``(Y, X)`` and returns a new one with as many 26-connected components;
``free`` (bool, same shape) marks the voxels that may become foreground, all others stay as they
are. Nothing is eaten at the faces of the array.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import scipy

from pipeline import morphology
from pipeline.records import UserError

_MIN_SINGLE = 0.75  # a component is a height map where this part of its columns holds one run


def close_sheets(
    mask: np.ndarray, radius: float = 2.5, free: np.ndarray | None = None
) -> np.ndarray:
    """Apply :func:`pipeline.morphology.closing` to each sheet on its own.

    Voxels that two sheets would fill, or that would touch (by face, edge or corner) another sheet
    or what it would fill, are left out. Components of fewer voxels than the ball are left as they
    are. Adds only; equivariant under flips and rotations.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        radius: of the ball in voxels.
        free: bool, same shape, voxels that may become foreground; None: all.

    Returns:
        bool, same shape.

    Raises:
        UserError: the mask has other than 2 or 3 axes, or the radius is negative or infinite.
    """
    labels = _labelled(mask)
    least = ball_size(radius, mask.ndim)
    sizes = np.bincount(labels.ravel())
    claims = labels.copy()
    for number, box in enumerate(scipy.ndimage.find_objects(labels), 1):
        if sizes[number] >= least:
            view = claims[box]
            own = labels[box] == number
            added = morphology.closing(own, radius) & (labels[box] == 0)
            view[added] = np.where(view[added] == 0, number, -1)
    grown = (labels > 0) | _undisputed(labels, claims, free)
    # Without what lost its sheet when voxels were left out.
    return morphology.hysteresis(grown, labels > 0)


def ball_size(radius: float, ndim: int) -> int:
    """Voxels of the ball; 1 for what is no radius, which closing refuses."""
    reach = math.floor(radius) if 0 <= radius < math.inf else 0
    square = sum(np.ix_(*[np.arange(-reach, reach + 1) ** 2] * ndim))
    return int(np.count_nonzero(square <= radius**2 + 1e-6))


def _undisputed(labels: np.ndarray, claims: np.ndarray, free: np.ndarray | None) -> np.ndarray:
    """Where exactly one sheet claims background and no neighbour is claimed by another sheet."""
    keep = (labels == 0) & (claims > 0)
    if free is not None:
        keep &= free
    flat, steps = _flattened(claims, margin=0)
    voxels = np.flatnonzero(_flattened(keep, margin=0)[0])
    own = flat[voxels]
    alone = np.ones(len(voxels), bool)
    for offset in itertools.product((-1, 0, 1), repeat=3):
        near = flat[voxels + int(np.dot(offset, steps))]
        alone &= (near == 0) | (near == own)
    keep[keep] = alone
    return keep


def watertight(mask: np.ndarray, free: np.ndarray | None = None) -> np.ndarray:
    """Fill until no voxels of a sheet, nor of the background, meet by an edge or a corner only.

    The result is well-composed: in every block of 2 x 2 x 2 voxels (2D: 2 x 2) foreground and
    background are both 6-connected, and sheets have the same components, tunnels and cavities
    whichever connectivity one counts with. Diagonal pinholes are plugged, straight ones stay; a
    cavity that leaked through such a contact is shut in. Every block has voxels that would mend it
    (:func:`contact_table`); the one with the most foreground around it is filled, until all are
    mended. Voxels that would touch another sheet or are not ``free`` are never filled, and only
    where nothing else would do can a contact remain. Adds only, inside the box of each sheet; twice
    is the same as once. Ties go to the smaller index, so that flips can change single voxels.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        free: bool, same shape, voxels that may become foreground; None: all.

    Returns:
        bool, same shape.

    Raises:
        UserError: the mask has other than 2 or 3 axes.

    Source:
        Latecki, Eckhardt and Rosenfeld 1995; repaired as by Siqueira et al., JMIV 30, 2008.

    Example:
        >>> import numpy as np
        >>> watertight(np.array([[1, 0], [0, 1]])).tolist()
        [[True, True], [False, True]]
    """
    labels = _labelled(mask)
    if _is_uniform(labels):
        return labels > 0
    flat, steps = _flattened(labels, free)
    _compiled().fill_contacts(flat, steps, contact_table())
    return _unflattened(flat, labels.shape) > 0


def contact_table() -> np.ndarray:
    """List for each 2 x 2 x 2 block the background voxels that can end a contact.

    Two voxels that meet by an edge have two voxels between them; where those belong to the other
    side, the background pair is given. Two that meet by a corner, the other six belonging to the
    other side, give all background voxels.

    Returns:
        uint8 ``(256,)``, the bits of those voxels by the code of the block (bit 4 z + 2 y + x); 0
        where foreground and background are both 6-connected.
    """
    table = np.zeros(256, np.uint8)
    for code, one in itertools.product(range(256), range(8)):
        for other in range(one):
            inside = code >> one & 1
            if inside == code >> other & 1:
                between = [
                    k for k in range(8) if k not in (one, other) and (k ^ one) & (k ^ other) == 0
                ]
                if len(between) > 1 and all(code >> k & 1 != inside for k in between):
                    table[code] |= sum(1 << k for k in (between if inside else (one, other)))
    return table


def patch_sheets(
    mask: np.ndarray, largest: int = 200, free: np.ndarray | None = None
) -> np.ndarray:
    """Fill holes through sheets with a piece of height map.

    Each component is projected along the axis on which its projection is largest. A hole is an
    8-connected region of at most ``largest`` pixels that the projection surrounds; so a ring is a
    sheet with a hole. The lower and upper side of the patch are interpolated linearly along both
    axes of the projection, between columns that hold a single run; the two are weighted by the
    inverse distances to those. Contacts by edges and corners are mended as by :func:`watertight`. A
    patch is dropped unless it leaves fewer tunnels (6-connected) and no more cavities, if it would
    touch another component, or if a voxel of it is not ``free``. Components of which less than
    three quarters of the columns hold a single run, because they fold or close, are left as they
    are. Adds only. Flips may move a patch by half a voxel.

    Args:
        mask: ``(Z, Y, X)``, foreground where non-zero.
        largest: area of the largest hole in pixels of the projection.
        free: bool, same shape, voxels that may become foreground; None: all.

    Returns:
        bool, same shape.

    Raises:
        UserError: for images: a line that has a hole is two lines.
    """
    if mask.ndim != 3:
        raise UserError(
            f"patch_sheets mends sheets in volumes, this mask has the shape {mask.shape}. Leave the"
            " step out."
        )
    out = _labelled(mask)
    if _is_uniform(out):
        return out > 0
    if free is not None:
        out[(out == 0) & ~free] = -1
    for number, box in enumerate(scipy.ndimage.find_objects(out), 1):
        wider = tuple(slice(max(s.start - 2, 0), s.stop + 2) for s in box)
        own = out[wider] == number
        axis = max(range(3), key=lambda i: np.count_nonzero(own.any(i)))
        _patch(np.moveaxis(out[wider], axis, 0), number, largest)
    return out > 0


def _patch(labels: np.ndarray, number: int, largest: int) -> None:
    """Fill holes of one component in place; the first axis is the line of sight."""
    own = labels == number
    voxels = np.count_nonzero(own, axis=0)
    filled = voxels > 0
    sides = np.stack([own.argmax(0), len(own) - 1 - own[::-1].argmax(0)])
    single = filled & (sides[1] - sides[0] + 1 == voxels)
    holes = _holes(filled, largest)
    if not holes.any() or np.count_nonzero(single) < _MIN_SINGLE * np.count_nonzero(filled):
        return
    runs = _interpolated(sides, filled, single)
    for hole, box in enumerate(scipy.ndimage.find_objects(holes), 1):
        if box is not None:
            window = tuple(slice(max(s.start - 3, 0), s.stop + 3) for s in box)
            _fill_hole(labels[:, *window], number, holes[window] == hole, runs[:, *window])


def _holes(filled: np.ndarray, largest: int) -> np.ndarray:
    """Numbers the 8-connected regions of at most ``largest`` pixels that ``filled`` surrounds."""
    numbers, count = morphology.components(~filled, 26)
    keep = np.bincount(numbers.ravel(), minlength=count + 1) <= largest
    keep[0] = False
    for face in (numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]):
        keep[face] = False
    return np.where(keep[numbers], numbers, 0).astype(np.int32)


def _interpolated(sides: np.ndarray, filled: np.ndarray, single: np.ndarray) -> np.ndarray:
    """First and last voxel of the run that continues the columns around, int ``(2, A, B)``.

    First = last + 1 where none are near. Where the sheet is steep they reach the four neighbours.
    """
    total, weights = np.zeros(sides.shape), np.zeros(filled.shape)
    for axis in (0, 1):
        position = np.indices(filled.shape)[axis]
        before = np.maximum.accumulate(np.where(filled, position, 0), axis)
        after = np.where(filled, position, filled.shape[axis] - 1)
        after = np.flip(np.minimum.accumulate(np.flip(after, axis), axis), axis)
        usable = (
            ~filled
            & np.take_along_axis(single, before, axis)
            & np.take_along_axis(single, after, axis)
        )
        back, ahead = np.maximum(position - before, 1), np.maximum(after - position, 1)
        first, last = (
            np.stack([np.take_along_axis(side, i, axis) for side in sides]) for i in (before, after)
        )
        weight = usable * (1 / back + 1 / ahead)
        total += weight * (first * ahead + last * back) / (back + ahead)
        weights += weight
    known = weights > 0
    low, high = np.floor(total / np.where(known, weights, 1) + 0.5).astype(np.int64)
    return _joined(np.where(single, sides[0], low), np.where(single, sides[1], high), known, single)


def _joined(low: np.ndarray, high: np.ndarray, known: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Lengthen runs, down to all lower neighbours, up to higher ones outside the hole."""
    tops = np.where(known | single, high, np.iinfo(np.int64).max)
    bottoms = np.where(single, low, -1)
    lower, higher = low.copy(), high.copy()
    for axis, move in itertools.product((0, 1), (-1, 1)):
        # No hole is at the border, where roll would wrap around.
        lower = np.minimum(lower, np.roll(tops, move, axis))
        higher = np.maximum(higher, np.roll(bottoms, move, axis))
    return np.stack([np.where(known, lower, 1), np.where(known, higher, 0)])


def _fill_hole(labels: np.ndarray, number: int, hole: np.ndarray, runs: np.ndarray) -> None:
    """Fill one hole of a component in place, if that closes a tunnel and harms nothing."""
    height = np.arange(len(labels))[:, None, None]
    patch = hole & (runs[0] <= height) & (height <= runs[1])
    near = labels[morphology.dilate(patch, math.sqrt(3))]
    if not patch.any(0)[hole].all() or labels[patch].any() or ((near > 0) & (near != number)).any():
        return
    flat, steps = _flattened(
        np.where(patch, number, labels), morphology.dilate(hole, math.sqrt(2))[None]
    )
    _compiled().fill_contacts(flat, steps, contact_table())
    after = _unflattened(flat, labels.shape) == number
    was, now = (morphology.betti_numbers(m, connectivity=6) for m in (labels == number, after))
    if now[1] < was[1] and now[0] <= was[0] and now[2] <= was[2]:
        labels[after] = number


def mean_thickness(mask: np.ndarray) -> float:
    """Estimate the mean thickness: twice the volume over the area of the surface.

    Faces of the array are no surface. The area is the weighted number of pairs of neighbours (in 13
    directions; 2D: 4) that the surface separates, a discrete Cauchy-Crofton formula, with weights
    that make it exact for planes perpendicular to an axis, a face diagonal or a space diagonal. A
    flat plate of n = 1, 2, ... voxels along an axis has the thickness n without bias; slanting
    plates come out up to a tenth too thin (a sixth below 3 voxels); the rim of a plate of edge L
    takes about 2 n / L away.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.

    Returns:
        Thickness in voxels (2D: from area and length). Infinite without surface, 0 if empty.

    Source:
        Schladitz, Ohser and Nagel, DGCI 2006.

    Example:
        >>> import numpy as np
        >>> plate = np.zeros((7, 20, 20))
        >>> plate[2:5] = 1
        >>> round(mean_thickness(plate), 3)
        3.0
    """
    labels = _labelled(mask)
    volume = np.count_nonzero(labels)
    area = float(_areas(labels).sum())
    return float(2 * volume / area) if area else (math.inf if volume else 0.0)


def set_thickness(
    mask: np.ndarray, target: float = 3.0, per: str = "component", free: np.ndarray | None = None
) -> np.ndarray:
    """Grow or shrink sheets to a mean thickness without a change of topology.

    The thickness is that of :func:`mean_thickness`. One layer of voxels is added to, or removed
    from, one side of a sheet, then the other, as long as the volume comes nearer to ``target`` /
    thickness times what it was, and in no more rounds than that should take. The layers lie along
    the axis in which the sheet is thinnest there, so that rims stay where they are. Voxels change
    one by one, and only if they are simple for 6- and for 26-connected foreground and touch no
    other component: components, tunnels and cavities stay as many. Nothing grows where it is not
    ``free``, and nothing is removed beside such voxels. Flips can shift the result by one voxel,
    for the side that comes first does not turn with them.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        target: mean thickness to come nearest to, in voxels.
        per: ``component``: of each component (those of fewer than 10 ``target``^2 voxels, 2D 10
            ``target``, stay as they are); ``class``: of all together, one factor for all.
        free: bool, same shape, voxels that may become foreground; None: all.

    Returns:
        bool, same shape.

    Raises:
        UserError: for a target that is not positive and for an unknown ``per``.

    Source:
        Simple points: Bertrand 1994.
    """
    if not 0 < target < math.inf:
        raise UserError(
            f"thickness: target is {target!r}; it is a number of voxels, finite and positive, e.g."
            " 3.0."
        )
    if per not in ("component", "class"):
        raise UserError(f"thickness: per is {per!r}; it must be 'component' or 'class'.")
    labels = _labelled(mask)
    if _is_uniform(labels):
        return labels > 0
    missing, rounds = _plan(labels, target, per)
    flat, steps = _flattened(labels, free)
    axes = _compiled().shortest_axes(flat, steps, 3 - mask.ndim)
    _compiled().resize(flat, axes, steps, missing, rounds)
    return _unflattened(flat, labels.shape) > 0


def _plan(labels: np.ndarray, target: float, per: str) -> tuple[np.ndarray, np.ndarray]:
    """For each component the voxels to add (negative: to remove), and in how many rounds.

    Both int64, entry 0 is 0.
    """
    volumes = np.bincount(labels.ravel()).astype(np.float64)
    volumes[0] = 0
    surface = _areas(labels)
    if per == "class":
        now = np.full(len(volumes), 2 * volumes.sum() / surface.sum())
    else:
        now = np.where(
            volumes >= 10 * target ** (labels.ndim - 1),
            2 * volumes / np.maximum(surface, 1e-9),
            target,
        )
    missing = np.rint(volumes * (target / now - 1)).astype(np.int64)
    # A round adds two layers, each of which measures at least 1 / sqrt(3) across the sheet.
    return missing, np.where(missing, np.ceil(abs(target - now) * math.sqrt(3) / 2), 0).astype(
        np.int64
    )


def _areas(labels: np.ndarray) -> np.ndarray:
    """Area (2D: length) of the surface of each component, float64; entry 0 is 0."""
    if _is_uniform(labels):
        return np.zeros(int(labels.max(initial=0)) + 1)
    offsets = [
        o
        for o in itertools.product((-1, 0, 1), repeat=3)
        if o > (0, 0, 0) and (labels.ndim == 3 or o[0] == 0)
    ]
    by_length = {3: _WEIGHTS_3D, 2: _WEIGHTS_2D}[labels.ndim]
    weights = np.array([by_length[np.count_nonzero(o) - 1] for o in offsets])
    widened = np.pad(labels.reshape(-1, *labels.shape[-2:]), 1, mode="edge")
    return _compiled().areas(widened, np.array(offsets), weights, int(labels.max()))


_WEIGHTS_2D = (math.sqrt(2) - 1, 1 - math.sqrt(1 / 2))
_WEIGHTS_3D = (
    2 / math.sqrt(3) - 1,
    math.sqrt(1 / 2) - math.sqrt(1 / 3),
    (1 + math.sqrt(1 / 3)) / 2 - math.sqrt(1 / 2),
)
"""For steps along an axis, a face diagonal, a space diagonal.

They solve "area 1" for planes perpendicular to each of these.
"""


def closing_by_ellipsoid(mask: np.ndarray, radii: Sequence[float]) -> np.ndarray:
    """Apply :func:`pipeline.morphology.closing` with an ellipsoid; may join sheets.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        radii: of the ellipsoid in voxels, one for each axis; 0: no reach along it.

    Returns:
        bool, same shape.

    Raises:
        UserError: a radius is missing, negative or infinite.
    """
    mask = _with_radii(mask, radii)
    margin = math.ceil(max(radii)) + 1
    wide = ~_dilated(np.pad(mask, margin), radii)
    return np.ascontiguousarray(~_dilated(wide, radii)[(slice(margin, -margin),) * mask.ndim])


def opening_by_ellipsoid(mask: np.ndarray, radii: Sequence[float]) -> np.ndarray:
    """Apply :func:`pipeline.morphology.opening` with an ellipsoid.

    Args:
        mask: ``(Z, Y, X)`` or ``(Y, X)``, foreground where non-zero.
        radii: of the ellipsoid in voxels, one for each axis; 0: no reach along it.

    Returns:
        bool, same shape.

    Raises:
        UserError: a radius is missing, negative or infinite.
    """
    return _dilated(~_dilated(~_with_radii(mask, radii), radii), radii)


def _with_radii(mask: np.ndarray, radii: Sequence[float]) -> np.ndarray:
    """The mask as contiguous bool, if the radii fit its axes."""
    if len(radii) != mask.ndim or not all(0 <= r < math.inf for r in radii):
        raise UserError(
            f"radii are {list(radii)} for a mask of shape {mask.shape}; give one for each axis,"
            " finite and not negative."
        )
    return np.ascontiguousarray(mask, dtype=bool)


def _dilated(mask: np.ndarray, radii: Sequence[float]) -> np.ndarray:
    """Voxels that an ellipsoid around a voxel of the mask covers, composed of shifted rows."""
    out = np.zeros_like(mask)
    rows: dict[int, np.ndarray] = {}
    for offset in itertools.product(*[range(-int(r), int(r) + 1) for r in radii[:-1]]):
        rest = 1 - sum((d / r) ** 2 for d, r in zip(offset, radii, strict=False) if d)
        if rest > -1e-9:
            half = int(radii[-1] * math.sqrt(max(rest, 0)) + 1e-9)
            if half not in rows:
                rows[half] = _extended(mask, half)
            out[_shifted(offset)] |= rows[half][_shifted([-d for d in offset])]
    return out


def _extended(mask: np.ndarray, half: int) -> np.ndarray:
    """The mask dilated along the last axis by ``half`` voxels on each side."""
    out = mask.copy()
    for d in range(1, half + 1):
        out[..., d:] |= mask[..., :-d]
        out[..., :-d] |= mask[..., d:]
    return out


def _shifted(offset: Sequence[int]) -> tuple[slice, ...]:
    """The part of an array that receives voxels when its content moves by ``offset``.

    With ``-offset``: the part that gives them.
    """
    return tuple(slice(max(d, 0), min(d, 0) or None) for d in offset)


def _labelled(mask: np.ndarray) -> np.ndarray:
    """26-connected components, int32."""
    return morphology.components(mask)[0].astype(np.int32)


def _is_uniform(labels: np.ndarray) -> bool:
    """Whether the array is empty or full.

    The compiled part, which takes a moment to load, is not needed then.
    """
    return bool((labels == 0).all() or (labels > 0).all())


def _compiled() -> ModuleType:
    """The loops over single voxels.

    They are imported by the first repair that finds something to do: numba takes 0.3 s to import.
    """
    from pipeline.morphology import _sheets

    return _sheets


def _flattened(
    labels: np.ndarray, free: np.ndarray | None = None, margin: int = -1
) -> tuple[np.ndarray, np.ndarray]:
    """The volume of a volume or image with a margin, flat, and its strides in voxels.

    Background that is not ``free`` is -1.
    """
    if free is not None:
        labels = np.where((labels == 0) & ~free, np.int32(-1), labels)
    wide = np.pad(labels.reshape(-1, *labels.shape[-2:]), 1, constant_values=margin)
    return wide.ravel(), np.array([wide.shape[1] * wide.shape[2], wide.shape[2], 1])


def _unflattened(flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The volume or image of a flat volume, without its margin."""
    depth = shape[0] if len(shape) == 3 else 1
    return flat.reshape(depth + 2, shape[-2] + 2, shape[-1] + 2)[1:-1, 1:-1, 1:-1].reshape(shape)
