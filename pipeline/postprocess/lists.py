"""Lists of post-processing steps: how they are checked, adjusted and turned into functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.config import ConfigError, bind
from pipeline.postprocess.objects import named_objects
from pipeline.postprocess.sizes import MM3, in_voxels
from pipeline.postprocess.table import POSTPROCESS, decides, resolved, sees
from pipeline.records import NamedOptions, UserError

CHANNELS = {"one": "one channel", "several": "two channels or more"}
"""Words for messages."""


def bound(
    steps: Sequence[NamedOptions], spacing: Sequence[float] | None = None
) -> list[Callable[..., Any]]:
    """Turn the steps into functions of an array.

    Args:
        steps: names with options.
        spacing: millimetres between voxels along each axis; None: not known.

    Returns:
        One function for each step.

    Raises:
        ConfigError: for unknown names and options, and for a deciding step that comes late.
        UserError: a size is in mm³, and the spacing is not known.
    """
    return [_bound_step(steps, i, spacing) for i in range(len(steps))]


def _bound_step(
    steps: Sequence[NamedOptions], i: int, spacing: Sequence[float] | None
) -> Callable[..., Any]:
    step = in_voxels(steps[i], spacing, f"postprocess.{i}")
    known = step.name in POSTPROCESS and POSTPROCESS[step.name].volume is not None
    further = ("mm3",) if known else ()
    call = bind(POSTPROCESS, step, f"postprocess.{i}", given=("array",), further=further)
    if i > 0 and decides(steps[i]):
        raise ConfigError(
            f"postprocess.{i}: {steps[i].name!r} takes a soft prediction, but comes after"
            f" {steps[i - 1].name!r}. Put it first."
        )
    return call


def check(steps: Sequence[NamedOptions], channels: int | None = None, dims: int = 3) -> None:
    """Require steps that :func:`faults` finds nothing wrong with.

    Args:
        steps: names with options.
        channels: K of the predictions to come; None: any.
        dims: their space axes.

    Raises:
        ConfigError: with the first fault.
    """
    for fault in faults(steps, channels, dims):
        raise ConfigError(fault)


def faults(
    steps: Sequence[NamedOptions], channels: int | None = None, dims: int = 3
) -> Iterator[str]:
    """Find what is wrong with the steps: names, options, their values and order.

    Each is tried out on a tiny array.

    Args:
        steps: names with options.
        channels: K of the predictions to come; None: any.
        dims: their space axes.

    Yields:
        A message for each fault.

    Example:
        >>> list(faults([NamedOptions(name="dust", options={"below": -1})]))
        ["postprocess.0: 'dust' with {'below': -1}: dust: below is -1; ... must not be negative."]
    """
    soft = np.ones((channels or _usual_channels(steps), *(4,) * dims), dtype=np.float32)
    labels = np.ones((4,) * dims, dtype=np.uint8)
    written = _written(steps, channels)
    for i, step in enumerate(steps):
        try:
            call = _bound_step(steps, i, (1.0,) * dims)
        except UserError as error:
            yield str(error)
            continue
        try:
            call(soft if decides(step) else labels)
        except (UserError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            yield f"postprocess.{i}: {step.name!r} with {dict(step.options)}: {error}"
            continue
        if sees(step) == "local" and not _is_local(call, soft.shape, decides(step)):
            yield (
                f"postprocess.{i}: {step.name!r} says that it changes each row by itself"
                " (sees='local'), but its rows come out otherwise alone than together. Leave sees"
                " out of its PostprocessStep."
            )
        name = resolved(step).name
        written = written if decides(step) or name in KEEPING else None
        if written is not None and (absent := sorted(_named(step) - written)):
            yield (
                f"postprocess.{i}: {step.name!r} has classes: {step.options['classes']!r}, but the"
                f" labels hold no {', '.join(map(str, absent))}: they hold"
                f" {', '.join(map(str, sorted(written)))}. Name those, or leave classes out."
            )
        wanted = POSTPROCESS[step.name].decides
        if wanted in CHANNELS and (wanted == "one") != (len(soft) == 1):
            yield (
                f"postprocess.{i}: {step.name!r} decides predictions of {CHANNELS[wanted]}, this"
                f" one has {len(soft)}."
            )


KEEPING = (
    "opening",
    "closing",
    "dust",
    "largest_component",
    "sheet_closing",
    "patch_sheets",
    "watertight",
    "fill_holes",
    "thickness",
)
"""Steps from labels to labels of the same classes."""


def _written(steps: Sequence[NamedOptions], channels: int | None) -> set[int] | None:
    """Foreground values that the deciding step writes; None: not known."""
    first = resolved(steps[0]) if steps and decides(steps[0]) else None
    name = first.name if first else "threshold" if channels == 1 else "argmax"
    if name in ("threshold", "hysteresis", "walls"):
        return {1}
    if name == "argmax" and channels is not None:
        return set(range(1, channels))
    order = first.options.get("order") if first and name == "regions" else None
    return set(order) if isinstance(order, Sequence) else None


def _named(step: NamedOptions) -> set[int]:
    """Label values that a step names in its option ``classes``, which has been checked."""
    if resolved(step).name not in ("dust", "largest_component") or "classes" not in step.options:
        return set()
    objects = named_objects(step.name, step.options["classes"])
    return {value for values in objects or () for value in values}


def _usual_channels(steps: Sequence[NamedOptions]) -> int:
    """Channels of the predictions that the first step takes, where nothing else says it."""
    decided_by = POSTPROCESS[steps[0].name].decides if steps and decides(steps[0]) else "one"
    order = steps[0].options.get("order") if decided_by == "any" else None
    return len(order) if isinstance(order, Sequence) and order else 2 - (decided_by == "one")


def _is_local(call: Callable[[np.ndarray], np.ndarray], shape: Sequence[int], soft: bool) -> bool:
    """Whether rows of a random array ``(K, *S)`` come out alone as they do together."""
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    array = array if soft else (array[:1] > 0.5).astype(np.uint8)
    rows = [array[:, n : n + 1] for n in range(array.shape[1])]
    return np.array_equal(
        call(array if soft else array[0]), np.concatenate([call(r if soft else r[0]) for r in rows])
    )


def decided(steps: Sequence[NamedOptions], channels: int) -> tuple[NamedOptions, ...]:
    """Put a deciding step in front of the steps if there is none.

    One channel is cut at 0.5 (``>=``), several are compared (``argmax``).

    Args:
        steps: names with options.
        channels: K of the probabilities.

    Returns:
        The steps, the first a deciding one.

    Example:
        >>> [step.name for step in decided([NamedOptions(name="dust")], channels=3)]
        ['argmax', 'dust']
    """
    if not steps or not decides(steps[0]):
        return (NamedOptions(name="threshold" if channels == 1 else "argmax"), *steps)
    return tuple(steps)


def adjust(
    steps: Sequence[NamedOptions],
    threshold: float | None = None,
    min_component_size: int | None = None,
    max_hole_size: int | None = None,
    kernel_size: int | None = None,
    separate_instances: bool = False,
) -> tuple[NamedOptions, ...]:
    """Apply the options of the command line to a system's list; None leaves it as it is.

    Args:
        steps: the system's.
        threshold: comes first, in place of any deciding step.
        min_component_size: sets ``below`` of each ``dust``, whose ``classes`` stay. Of this and
            the next two: a step that is missing is inserted before the first that is later in
            POSTPROCESS; 0 removes it.
        max_hole_size: sets ``below`` of each ``fill_holes``.
        kernel_size: sets ``size`` of each ``closing``, instead of a ``radius``.
        separate_instances: adds ``instances`` at the end; False removes nothing.

    Returns:
        The new list.

    Example:
        >>> [step.name for step in adjust([NamedOptions(name="fill_holes")], min_component_size=50)]
        ['dust', 'fill_holes']
    """
    steps = tuple(steps)
    if threshold is not None:
        own = next((s for s in steps if s.name == "regions"), None)
        first = (
            NamedOptions(name="threshold", options={"at": threshold})
            if own is None
            else NamedOptions(name=own.name, options={**own.options, "threshold": threshold})
        )
        steps = (first, *(s for s in steps if not decides(s)))
    for name, option, size in (
        ("closing", "size", kernel_size),
        ("dust", "below", min_component_size),
        ("fill_holes", "below", max_hole_size),
    ):
        if size is not None:
            steps = (
                _resized(steps, name, {option: size})
                if size
                else tuple(s for s in steps if resolved(s).name != name)
            )
    if separate_instances and all(resolved(step).name != "instances" for step in steps):
        steps = (*steps, NamedOptions(name="instances"))
    return steps


def _resized(
    steps: tuple[NamedOptions, ...], name: str, options: dict[str, Any]
) -> tuple[NamedOptions, ...]:
    """The list with these options of a step, which is inserted where it is missing."""
    if any(resolved(step).name == name for step in steps):
        return tuple(
            _with_options(resolved(step), options) if resolved(step).name == name else step
            for step in steps
        )
    order = list(POSTPROCESS)
    later = order[order.index(name) + 1 :]
    place = next((i for i, step in enumerate(steps) if resolved(step).name in later), len(steps))
    return (*steps[:place], NamedOptions(name=name, options=options), *steps[place:])


def _with_options(step: NamedOptions, options: dict[str, Any]) -> NamedOptions:
    """A step with more options; its size in voxels excludes a kernel's radius, and mm³."""
    kept = {k: v for k, v in step.options.items() if k not in ("radius", MM3)}
    return NamedOptions(name=step.name, options={**kept, **options})
