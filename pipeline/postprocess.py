"""From a soft prediction to labels: the table of post-processing steps, and how a list of them is checked, adjusted and run.

Soft predictions are float32 ``(K, *S)``, labels are integers ``(*S)`` with 0 as background. A *deciding* step turns the first
into the second and can only come first; without one, one channel is cut at 0.5 and several are compared. All other steps
take labels to labels. Steps on labels treat each class on its own and change only voxels of that class and background voxels:
what one class gains, no other class loses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import edt
import numpy as np
import scipy
import skimage

from pipeline import morphology
from pipeline.config import ConfigError, bind
from pipeline.morphology import sheets
from pipeline.records import Part, UserError


def threshold(array: np.ndarray, at: float = 0.5) -> np.ndarray:
    """Soft ``(1, *S)`` -> uint8 labels: 1 where the probability is ``at`` or more."""
    return (_only_channel(array, "threshold") >= _probability("threshold: at", at)).astype(np.uint8)


def hysteresis(array: np.ndarray, low: float, high: float, connectivity: int = 26) -> np.ndarray:
    """Soft ``(1, *S)`` -> uint8 labels: components of ``>= low`` that somewhere reach ``>= high``."""
    soft = _only_channel(array, "hysteresis")
    if not _probability("hysteresis: low", low) <= _probability("hysteresis: high", high):
        raise ConfigError(f"hysteresis: low is {low}, above high, which is {high}. Exchange them.")
    return morphology.hysteresis(soft >= low, soft >= high, connectivity).astype(np.uint8)


def walls(array: np.ndarray, low: float = 0.01, depth: float = 1.5, least: int = 5, merge: float = 0.5) -> np.ndarray:
    """Soft ``(1, *S)`` -> uint8 labels: the surfaces between bodies, as :func:`pipeline.morphology.walls` defines them.

    For surfaces that close, such as membranes of cells; papyrus sheets, which end freely, want threshold or hysteresis.
    """
    soft = _only_channel(array, "walls")
    _size("walls: depth", depth)
    _size("walls: least", least)
    return morphology.walls(soft, _probability("walls: low", low), depth, least, _probability("walls: merge", merge)).astype(np.uint8)


def argmax(array: np.ndarray) -> np.ndarray:
    """Soft ``(K, *S)``, K > 1 -> uint8 labels: the channel with the largest value, the first of equal ones."""
    if not 1 < len(array) <= 256:
        raise ConfigError(
            f"argmax compares 2 to 256 channels, the prediction has {len(array)}. For one channel use threshold or hysteresis."
        )
    return array.argmax(0).astype(np.uint8)


def dust(array: np.ndarray, below: int = 100, connectivity: int = 26) -> np.ndarray:
    """Removes components of fewer than ``below`` voxels."""
    _size("dust: below", below)
    return _each_class(array, lambda mask: morphology.dust(mask, below, connectivity))


def fill_holes(array: np.ndarray, below: int | None = 50, per_slice: int | None = None) -> np.ndarray:
    """Fills holes of at most ``below`` voxels (``None``: of any size), as :func:`pipeline.morphology.fill_holes` defines them.

    ``per_slice`` names the axis across which 2D holes are filled slice by slice instead of 3D cavities. Another class inside a
    hole counts towards its size and stays.
    """
    if below is not None:
        _size("fill_holes: below", below)
    return _each_class(array, lambda mask: morphology.fill_holes(mask, below, per_slice))


def opening(array: np.ndarray, radius: float | Sequence[float] | None = None, size: int | Sequence[int] | None = None) -> np.ndarray:
    """Removes what a ball or ellipsoid does not fit into: ``radius`` in voxels, or ``size``, as in :func:`closing`."""
    reach = _reach("opening", radius, size, array.ndim)
    if isinstance(reach, tuple):
        return _each_class(array, lambda mask: sheets.opening_by_ellipsoid(mask, reach))
    return _each_class(array, lambda mask: morphology.opening(mask, reach))


def closing(array: np.ndarray, radius: float | Sequence[float] | None = None, size: int | Sequence[int] | None = None) -> np.ndarray:
    """Fills gaps that a ball does not fit into: ``radius`` in voxels, or ``size``, the edge of a cubic kernel.

    A kernel of edge n reaches k = n // 2 voxels from its centre and stands for the ball of radius k + 1/2: 1 changes nothing,
    2 and 3 are a voxel and its 18 neighbours. (Radii that are whole numbers leave pinholes open, see
    :func:`pipeline.morphology.closing`.) A list with one number for each axis, such as ``radius: [3, 2, 2]``, stands for an ellipsoid;
    radius 0 (size 1) does not reach along its axis. Closing may join neighbouring sheets of one class, which :func:`sheet_closing` never
    does; it never joins classes.
    """
    reach = _reach("closing", radius, size, array.ndim)
    if isinstance(reach, tuple):
        return _each_class(array, lambda mask: sheets.closing_by_ellipsoid(mask, reach))
    return _each_class(array, lambda mask: morphology.closing(mask, reach))


def sheet_closing(array: np.ndarray, radius: float = 2.5) -> np.ndarray:
    """Closes each sheet (26-connected component) by a ball on its own and joins none: :func:`pipeline.morphology.sheets.close_sheets`."""
    return _mend_each_class(array, lambda mask, free: sheets.close_sheets(mask, radius, free))


def patch_sheets(array: np.ndarray, largest: int = 200) -> np.ndarray:
    """Fills holes through sheets, up to ``largest`` voxels wide in area, by height maps: :func:`pipeline.morphology.sheets.patch_sheets`.

    For volumes only. Mend contacts first (``watertight``) where sheets may hang together by edges and corners.
    """
    _size("patch_sheets: largest", largest)
    return _mend_each_class(array, lambda mask, free: sheets.patch_sheets(mask, largest, free))


def watertight(array: np.ndarray) -> np.ndarray:
    """Turns contacts by an edge or a corner into contacts by faces and joins no sheets: :func:`pipeline.morphology.sheets.watertight`.

    It may shut in cavities that leaked through such contacts; ``fill_holes`` comes after it.
    """
    return _mend_each_class(array, sheets.watertight)


def thickness(array: np.ndarray, target: float = 3.0, per: str = "component") -> np.ndarray:
    """Brings the mean thickness of sheets nearest to ``target`` voxels, topology kept: :func:`pipeline.morphology.sheets.set_thickness`.

    ``per`` "component" measures each sheet, "class" all sheets of a class together.
    """
    return _mend_each_class(array, lambda mask, free: sheets.set_thickness(mask, target, per, free))


def instances(array: np.ndarray, depth: float = 2.0) -> np.ndarray:
    """Labels -> instance numbers 1.. in the smallest unsigned type that holds them: touching bodies are cut at their necks.

    Watershed of the distance to the background (Beucher and Lantuéjoul 1979). Two bodies have a seed each when every path
    between them sinks more than ``depth`` voxels below the lower of their largest distances (h-maxima); every 26-connected
    component has at least one. Classes are separated first; numbers follow class, then C order of the seeds. Sheets that touch over an area
    have no neck and stay together.
    """
    if not depth > 0:
        raise ConfigError(f"instances: depth is {depth!r}; it is a distance in voxels and must be positive.")
    out = np.zeros(array.shape, dtype=np.uint32)
    count = 0
    for _, box, mask in _classes(array):
        numbers, found = _split(mask, depth)
        out[box][mask] = numbers[mask] + count
        count += found
    return out.astype(np.min_scalar_type(count))


def _split(mask: np.ndarray, depth: float) -> tuple[np.ndarray, int]:
    distance = edt.edt(mask)
    # A mask without any background has distance inf everywhere; a background at -depth keeps components from meeting in it.
    height = np.where(mask, np.minimum(distance, max(mask.shape)), -depth).astype(np.float64)
    lowered = skimage.morphology.reconstruction(height - depth, height)
    levelled = np.pad(lowered, 1, constant_values=-2 * depth)  # no maxima in a constant array
    tops = np.asarray(skimage.morphology.local_maxima(levelled, connectivity=mask.ndim))
    seeds, found = morphology.components(mask & tops[(slice(1, -1),) * mask.ndim])
    return skimage.segmentation.watershed(-height, seeds.astype(np.int32), connectivity=mask.ndim, mask=mask).astype(np.uint32), found


def _only_channel(array: np.ndarray, step: str) -> np.ndarray:
    if len(array) != 1:
        raise ConfigError(f"{step} takes one channel, the prediction has {len(array)}. For several classes use argmax.")
    return array[0]


def _probability(what: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(f"{what} is {value}; it is compared with probabilities and must lie in 0..1.")
    return value


def _size(what: str, value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"{what} is {value}; it is a number of voxels and must not be negative.")


def _reach(step: str, radius: Any, size: Any, dims: int) -> float | tuple[float, ...]:
    """The radius of a ball or the radii of an ellipsoid, one for each axis."""
    if (radius is None) == (size is None):
        raise ConfigError(f"{step} takes either radius or size, got radius={radius} and size={size}. Give one, e.g. radius: 1.5.")
    given = radius if size is None else size
    if not isinstance(given, Sequence):
        return given if size is None else _half(step, size)
    if len(given) != dims:
        raise ConfigError(f"{step}: {list(given)} has {len(given)} numbers for {dims} axes. Give one number, or one for each axis.")
    return tuple(given) if size is None else tuple(0.0 if n == 1 else _half(step, n) for n in given)


def _half(step: str, size: int) -> float:
    if not size >= 1:
        raise ConfigError(f"{step}: size is {size}; a kernel's edge is at least 1 voxel.")
    return size // 2 + 0.5


def _classes(array: np.ndarray) -> Iterator[tuple[int, tuple[slice, ...], np.ndarray]]:
    """Class value, a box around the class and its mask in that box, in ascending order.

    The box has one voxel of background to spare where the array goes on, so that a face of the box is a face of the array
    or lies outside the class: every step gives the same inside the box as in the whole array.
    """
    for value, box in enumerate(scipy.ndimage.find_objects(array), 1):
        if box is not None:
            grown = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
            yield value, grown, array[grown] == value


def _each_class(array: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply a change that only adds or only removes to each class; it may add background voxels, the lowest class first."""
    return _mend_each_class(array, lambda mask, _: change(mask))


def _mend_each_class(array: np.ndarray, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """As :func:`_each_class` for changes that take the mask and what they may add: background that no class had or has got."""
    out = array.copy()
    for value, box, before in _classes(array):
        view = out[box]
        free = (array[box] == 0) & (view == 0)
        after = change(before, free)
        view[before & ~after] = 0
        view[after & free] = value
    return out


POSTPROCESS: dict[str, Callable[..., np.ndarray]] = {
    "threshold": threshold,
    "hysteresis": hysteresis,
    "walls": walls,
    "argmax": argmax,
    "opening": opening,
    "closing": closing,
    "dust": dust,
    "sheet_closing": sheet_closing,
    "patch_sheets": patch_sheets,
    "watertight": watertight,
    "fill_holes": fill_holes,
    "thickness": thickness,
    "instances": instances,
}
"""Steps by name, in the order that is natural for them; :func:`adjust` inserts by it."""

DECIDE = frozenset({"threshold", "hysteresis", "walls", "argmax"})
"""The steps that take soft predictions."""


def _bound(steps: Sequence[Part]) -> list[Callable[..., np.ndarray]]:
    """The steps as functions of an array. Raises ConfigError for unknown names, unknown options and a late deciding step."""
    return [_call(steps, i) for i in range(len(steps))]


def _call(steps: Sequence[Part], i: int) -> Callable[..., np.ndarray]:
    call = bind(POSTPROCESS, steps[i], f"postprocess.{i}", given=("array",))
    if i > 0 and steps[i].name in DECIDE:
        raise ConfigError(
            f"postprocess.{i}: {steps[i].name!r} takes a soft prediction, but comes after {steps[i - 1].name!r}. Put it first."
        )
    return call


def check(steps: Sequence[Part], channels: int | None = None, dims: int = 3) -> None:
    """Raise ConfigError for a step that would fail later: the first that :func:`faults` finds."""
    for fault in faults(steps, channels, dims):
        raise ConfigError(fault)


def faults(steps: Sequence[Part], channels: int | None = None, dims: int = 3) -> Iterator[str]:
    """What is wrong with the steps: names, options, their values and order, each tried out on a tiny array.

    ``channels`` (K) and ``dims`` (space axes) are those of the predictions to come; without ``channels`` any K will do.
    """
    many = channels or (2 if steps and steps[0].name == "argmax" else 1)
    soft = np.ones((many, *(4,) * dims), dtype=np.float32)
    labels = np.ones((4,) * dims, dtype=np.uint8)
    for i, step in enumerate(steps):
        try:
            call = _call(steps, i)
        except ConfigError as error:
            yield str(error)
            continue
        try:
            call(soft if step.name in DECIDE else labels)
        except (UserError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            yield f"postprocess.{i}: {step.name!r} with {dict(step.options)}: {error}"


def apply(steps: Sequence[Part], soft: np.ndarray) -> np.ndarray:
    """Soft ``(K, *S)`` -> labels ``(*S)``, uint8 unless ``instances`` needs more.

    When no deciding step comes first, one channel is cut at 0.5 (``>=``), several are compared (``argmax``).
    """
    return run(decided(steps, len(soft)), soft)


def decided(steps: Sequence[Part], channels: int) -> tuple[Part, ...]:
    """The steps for a prediction of that many channels, with a deciding one in front where there is none."""
    if not steps or steps[0].name not in DECIDE:
        return (Part(name="threshold" if channels == 1 else "argmax"), *steps)
    return tuple(steps)


def run(steps: Sequence[Part], array: Any, work: object = None) -> Any:
    """The steps one after the other, as they stand, on what the first of them takes: soft ``(K, *S)`` or labels ``(*S)``."""
    for call in _bound(steps):
        array = call(array)
    return array


def adjust(
    steps: Sequence[Part],
    threshold: float | None = None,
    min_component_size: int | None = None,
    max_hole_size: int | None = None,
    kernel_size: int | None = None,
    separate_instances: bool = False,
) -> tuple[Part, ...]:
    """The options of the command line laid over a system's list of steps; ``None`` leaves the list as it is.

    ``threshold`` takes the place of whatever deciding step there is. The three sizes set ``dust`` (``below``), ``fill_holes``
    (``below``) and ``closing`` (``size``, instead of a ``radius``) wherever they stand; a step that is missing is put in
    before the first that comes later in POSTPROCESS, and size 0 takes the step away. ``separate_instances`` adds ``instances``
    at the end; not asking for it removes nothing.
    """
    steps = tuple(steps)
    if threshold is not None:
        steps = (Part(name="threshold", options={"at": threshold}), *(s for s in steps if s.name not in DECIDE))
    for name, option, size in (
        ("closing", "size", kernel_size),
        ("dust", "below", min_component_size),
        ("fill_holes", "below", max_hole_size),
    ):
        if size is not None:
            steps = _resized(steps, name, {option: size}) if size else tuple(s for s in steps if s.name != name)
    if separate_instances and all(step.name != "instances" for step in steps):
        steps = (*steps, Part(name="instances"))
    return steps


def _resized(steps: tuple[Part, ...], name: str, options: dict[str, Any]) -> tuple[Part, ...]:
    if any(step.name == name for step in steps):
        return tuple(_with(step, options) if step.name == name else step for step in steps)
    order = list(POSTPROCESS)
    later = order[order.index(name) + 1 :]
    place = next((i for i, step in enumerate(steps) if step.name in later), len(steps))
    return (*steps[:place], Part(name=name, options=options), *steps[place:])


def _with(step: Part, options: dict[str, Any]) -> Part:
    kept = {k: v for k, v in step.options.items() if k != "radius"}  # a kernel's size and its radius exclude each other
    return Part(name=step.name, options={**kept, **options})


def statistics(labels: Any) -> dict[str, int]:
    """Voxels of foreground (all classes) and background, 26-connected components of the foreground, voxels of the largest."""
    numbers, count = morphology.components(labels != 0)
    sizes = np.bincount(numbers[numbers > 0], minlength=1)
    foreground = int(sizes.sum())
    return {
        "foreground_voxels": foreground,
        "background_voxels": labels.size - foreground,
        "components": count,
        "largest_component": int(sizes.max()),
    }


def check_memory(steps: Sequence[Part], channels: int, size: Sequence[int]) -> None:
    return
