"""From probabilities to labels: one driver, for arrays in memory and for larger ones.

Probabilities are float32 ``(K, *S)``; labels are integers, ``(*S)`` in memory and lazily
``(1, *S)``, with 0 as background. A lazy array goes through the steps slab by slab as far as what
they have to see allows; an array in memory is the case of one slab and goes through as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline import files, morphology, processes
from pipeline.files import LazyArray, Rows, slabs
from pipeline.files.pixels import SLAB, row_bytes
from pipeline.morphology import SlabArray
from pipeline.morphology.sizes import voxel_volume
from pipeline.postprocess.lists import bound, decided
from pipeline.postprocess.table import POSTPROCESS, decides, sees
from pipeline.records import NamedOptions, UserError

FEWEST = 8
"""Rows that are decided together where labels are held: as many as resampling computes at once."""

Array = TypeVar("Array", bound=LazyArray)
"""An array in memory, or one whose rows are made or read when they are sliced."""


def apply(
    steps: Sequence[NamedOptions],
    soft: Array,
    work: Path | None = None,
    spacing: Sequence[float] | None = None,
) -> Array:
    """Turn probabilities into labels by a list of steps, completed by a deciding one.

    When no deciding step comes first, one channel is cut at 0.5 (``>=``), several are compared
    (``argmax``). Otherwise as :func:`run`.

    Args:
        steps: post-processing of a config.
        soft: probabilities ``(K, *S)``, in memory or lazy.
        work: see :func:`run`.
        spacing: see :func:`run`.

    Returns:
        Labels, uint8 unless ``instances`` needs more; ``(*S)``, of a lazy array lazily ``(1, *S)``.

    Raises:
        ConfigError: for unknown names and options, and for a deciding step that comes late.
        UserError: a size is in mm³, and the spacing is not known.

    Example:
        >>> import numpy as np
        >>> soft = np.array([[[0.9, 0.8, 0.1, 0.7]]], np.float32)
        >>> apply([NamedOptions(name="dust", options={"below": 2})], soft)
        array([[1, 1, 0, 0]], dtype=uint8)
    """
    return run(decided(steps, len(soft)), soft, work, spacing)


def run(
    steps: Sequence[NamedOptions],
    array: Array,
    work: Path | None = None,
    spacing: Sequence[float] | None = None,
) -> Array:
    """Run the steps one after the other, as they stand.

    Args:
        steps: a deciding one can only come first.
        array: what the first of them takes, probabilities ``(K, *S)`` or labels: ``(*S)`` in
            memory, lazily ``(1, *S)``.
        work: an existing folder that gets a scratch file for each step on components of a lazy
            array, and has to stay as long as the labels are used; None: probabilities are decided
            slab by slab, and the labels are held in memory.
        spacing: millimetres between voxels along each axis, by which sizes in mm³ become voxels;
            None: not known.

    Returns:
        Labels ``(*S)``; of a lazy array lazily ``(1, *S)``, which from the first step on that needs
        the whole lie in memory.

    Raises:
        ConfigError: for unknown names and options, and for a deciding step that comes late.
        UserError: a size is in mm³, and the spacing is not known.
    """
    labels: Any = array
    for number, (step, call) in enumerate(zip(steps, bound(steps, spacing), strict=True)):
        scratch = work and work / f"step_{number}.npy"
        labels = (
            call(labels)
            if isinstance(labels, np.ndarray)
            else _by_slabs(step, call, labels, scratch)
        )
    return labels if isinstance(array, np.ndarray) else _lazy(labels)


def _lazy(labels: LazyArray) -> Any:
    """Labels in memory as lazy ones ``(1, *S)``; lazy ones stay as they are."""
    if not isinstance(labels, np.ndarray):
        return labels
    return Rows((1, *labels.shape), labels.dtype, lambda first, end: labels[None, first:end])


def _by_slabs(
    step: NamedOptions, call: Callable[..., Any], array: Rows, scratch: Path | None
) -> LazyArray:
    """One step on a lazy array; its labels are in memory where it needs the whole."""
    selected: Any = slice(None) if decides(step) else 0  # all channels, or the labels
    if sees(step) == "whole":
        return call(array[selected])
    tiny = np.ones((len(array), *(4,) * (len(array.shape) - 1)), array.dtype)
    dtype = call(tiny[selected]).dtype
    if sees(step) == "local":
        lazy = Rows(
            (1, *array.shape[1:]), dtype, lambda first, end: call(array[selected, first:end])[None]
        )
        return lazy if scratch is not None else _held(lazy, array)
    made = _rows(call(_slab_array(array, selected)), dtype)
    return files.stored(made, scratch) if scratch is not None else _held(made, made)


def _held(labels: Rows, source: LazyArray) -> np.ndarray:
    """Lazy labels ``(1, *S)`` as an array ``(*S)``, made in the slabs of their source."""
    out = np.empty(labels.shape[1:], labels.dtype)
    rows = max(FEWEST, SLAB // row_bytes(source.shape, source.dtype))
    for first, end in slabs(source, rows):
        out[first:end] = labels.make(first, end)[0]
    return out


def _slab_array(array: LazyArray, selected: Any) -> SlabArray:
    """A lazy array, or one channel of it, in the slabs in which labels are written."""
    size = array.shape[1:]
    ranges = dict(enumerate(slabs(np.broadcast_to(np.uint8(0), (1, *size)))))
    shape = tuple(array.shape) if isinstance(selected, slice) else size
    return SlabArray(shape, ranges, lambda number: array[selected, slice(*ranges[number])])


def _rows(labels: SlabArray, dtype: np.dtype) -> Rows:
    """Labels ``(1, *S)`` that are made one slab at a time, as lazy rows."""

    def make(first: int, end: int) -> np.ndarray:
        parts = [
            (n, max(a, first) - a, min(b, end) - a)
            for n, (a, b) in labels.ranges.items()
            if a < end and first < b
        ]
        return np.concatenate([labels.make(n)[start:stop] for n, start, stop in parts])[None]

    return Rows((1, *labels.shape), dtype, make)


def statistics(labels: LazyArray, spacing: Sequence[float] | None = None) -> dict[str, int | float]:
    """Count voxels and components of labels.

    Args:
        labels: labels ``(*S)``, or lazily ``(1, *S)``.
        spacing: millimetres between voxels along each axis; None: not known.

    Returns:
        ``foreground_voxels`` (all classes), ``background_voxels``, ``components`` (26-connected, of
        the foreground), and ``largest_component`` in voxels. Of a volume whose spacing is known
        also ``foreground_ml`` in millilitres and ``largest_component_mm3``.

    Example:
        >>> import numpy as np
        >>> statistics(np.array([[1, 1, 0, 2]]))["largest_component"]
        2
    """
    sizes = morphology.component_sizes(
        (labels if isinstance(labels, np.ndarray) else _slab_array(labels, 0)) != 0
    )
    foreground, largest = int(sizes.sum()), int(sizes.max())
    found: dict[str, int | float] = {
        "foreground_voxels": foreground,
        "background_voxels": math.prod(labels.shape) - foreground,
        "components": len(sizes) - 1,
        "largest_component": largest,
    }
    if spacing is not None and len(spacing) == 3:
        mm3 = voxel_volume(spacing)
        found |= {
            "foreground_ml": float(f"{foreground * mm3 / 1000:.6g}"),
            "largest_component_mm3": float(f"{largest * mm3:.6g}"),
        }
    return found


def check_memory(
    steps: Sequence[NamedOptions], channels: int, size: Sequence[int], available: int | None = None
) -> None:
    """Require that a step which needs the whole of a lazy array fits into memory.

    Args:
        steps: the post-processing.
        channels: K of the probabilities.
        size: voxels along each of its space axes.
        available: bytes of memory; None: what is free on this machine.

    Raises:
        UserError: a step needs more than that.
    """
    steps = decided(steps, channels)
    first = next((i for i, step in enumerate(steps) if sees(step) == "whole"), None)
    if first is None:
        return
    step = max(steps[first:], key=lambda step: POSTPROCESS[step.name].bytes_per_voxel)
    need = math.prod(size) * (
        POSTPROCESS[step.name].bytes_per_voxel + 4 * channels * decides(steps[first])
    )
    available = processes.available_memory() if available is None else available
    if need <= available:
        return
    gib = [f"{n / 2**30:.1f} GiB" for n in (need, available)]
    by_block = [name for name in POSTPROCESS if sees(NamedOptions(name=name)) != "whole"]
    raise UserError(
        f"{' x '.join(map(str, size))} voxels are too many for {step.name!r} of postprocess on this"
        f" machine: that step needs the whole answer and about {gib[0]} of memory, {gib[1]} are"
        f" free. Only {', '.join(by_block)} work block by block. Give --threshold and leave that"
        " step out, or compute the blocks here with --shard 0/1 and run the same command without"
        " --shard on a machine with that memory."
    )
