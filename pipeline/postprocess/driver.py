"""From a soft prediction to labels: one driver, for arrays in memory and for larger ones.

Soft predictions are float32 ``(K, *S)``; labels are integers, ``(*S)`` in memory and lazily
``(1, *S)``, with 0 as background. A lazy array goes through the steps slab by slab as far as they
allow by what they see; an array in memory is the case of one slab and goes through as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline import files, morphology, processes
from pipeline.files import LazyArray, Rows, slabs
from pipeline.morphology import SlabArray
from pipeline.postprocess.lists import bound, decided
from pipeline.postprocess.table import POSTPROCESS, decides, sees
from pipeline.records import NamedOptions, UserError

Array = TypeVar("Array", bound=LazyArray)
"""An array in memory, or one whose rows are made or read when they are sliced."""


def apply(steps: Sequence[NamedOptions], soft: Array, work: Path | None = None) -> Array:
    """Soft ``(K, *S)`` -> labels, uint8 unless ``instances`` needs more.

    When no deciding step comes first, one channel is cut at 0.5 (``>=``), several are compared
    (``argmax``). Otherwise as :func:`run`.
    """
    return run(decided(steps, len(soft)), soft, work)


def run(steps: Sequence[NamedOptions], array: Array, work: Path | None = None) -> Array:
    """The steps one after the other, as they stand.

    Args:
        steps: a deciding one can only come first.
        array: what the first of them takes, soft ``(K, *S)`` or labels: ``(*S)`` in memory, lazily
            ``(1, *S)``.
        work: an existing folder that gets a scratch file for each step on components of a lazy
            array, and has to stay as long as the answer is used.

    Returns:
        Labels ``(*S)``; of a lazy array lazily ``(1, *S)``, which from the first step on that needs
        the whole lie in memory.
    """
    labels: Any = array
    for number, (step, call) in enumerate(zip(steps, bound(steps), strict=True)):
        scratch = work and work / f"step_{number}.npy"
        labels = (
            call(labels)
            if isinstance(labels, np.ndarray)
            else _by_slabs(step, call, labels, scratch)
        )
    return labels if isinstance(array, np.ndarray) else _lazy(labels)


def _lazy(labels: LazyArray) -> Any:
    """Labels in memory as lazy ones ``(1, *S)``; those that are lazy stay."""
    if not isinstance(labels, np.ndarray):
        return labels
    return Rows((1, *labels.shape), labels.dtype, lambda first, end: labels[None, first:end])


def _by_slabs(
    step: NamedOptions, call: Callable[..., Any], array: Rows, scratch: Path | None
) -> LazyArray:
    """One step on a lazy array; its labels are in memory where it needs the whole."""
    taken: Any = slice(None) if decides(step) else 0  # all channels, or the labels
    if sees(step) == "whole":
        return call(array[taken])
    tiny = np.ones((len(array), *(4,) * (len(array.shape) - 1)), array.dtype)
    dtype = call(tiny[taken]).dtype
    if sees(step) == "local":
        return Rows(
            (1, *array.shape[1:]), dtype, lambda first, end: call(array[taken, first:end])[None]
        )
    if scratch is None:
        raise ValueError(f"{step.name!r} of a lazy array needs work, a folder for a scratch file.")
    return files.stored(_rows(call(_slab_array(array, taken)), dtype), scratch)


def _slab_array(array: LazyArray, taken: Any) -> SlabArray:
    """A lazy array in the slabs in which labels are written; ``taken`` of its channels."""
    size = array.shape[1:]
    ranges = dict(enumerate(slabs(np.broadcast_to(np.uint8(0), (1, *size)))))
    shape = tuple(array.shape) if isinstance(taken, slice) else size
    return SlabArray(shape, ranges, lambda number: array[taken, slice(*ranges[number])])


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


def statistics(labels: LazyArray) -> dict[str, int]:
    """Voxels of foreground (all classes) and background, 26-connected components of the foreground.

    And voxels of the largest component.

    Args:
        labels: ``(*S)``, or lazily ``(1, *S)``.
    """
    sizes = morphology.component_sizes(
        (labels if isinstance(labels, np.ndarray) else _slab_array(labels, 0)) != 0
    )
    foreground = int(sizes.sum())
    return {
        "foreground_voxels": foreground,
        "background_voxels": math.prod(labels.shape) - foreground,
        "components": len(sizes) - 1,
        "largest_component": int(sizes.max()),
    }


def check_memory(
    steps: Sequence[NamedOptions], channels: int, size: Sequence[int], available: int | None = None
) -> None:
    """Raise UserError where a step needs the whole of a lazy array in memory and that does not fit.

    Args:
        steps: the post-processing.
        channels: K of the soft prediction.
        size: voxels along each of its space axes.
        available: bytes of memory, the machine's unless given.
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
