"""The last step of a prediction: decide, post-process, and write the answer and its companions.

Companions are pictures and masks beside the answer. A prediction may be in memory or read as it is
sliced: a volume in memory is the case of one slab.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import colours, files, postprocess
from pipeline.data import normalise
from pipeline.files import LazyArray, Rows, slabs
from pipeline.grid import has_world
from pipeline.inference.soft import SoftPrediction
from pipeline.records import NamedOptions
from pipeline.tasks import COMPANIONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an answer is written, and what it is made with.

    Args:
        output: folder of the answers.
        steps: post-processing of labels.
        image: the input ``(C, *S)``; labels of a 2D one are also drawn over it, as
            ``ID_overlay.png``.
        work: folder for scratch files of what is read as it is sliced.
        names: of label values, whose voxels are then counted one by one.
    """

    output: Path
    steps: Sequence[NamedOptions] = ()
    image: np.ndarray | None = None
    work: Path | None = None
    names: Mapping[int, str] = field(default_factory=dict)


def write_answer(soft: SoftPrediction, target: Target) -> dict[str, Any]:
    """Decide, post-process and write a case.

    Args:
        soft: the prediction.
        target: where it goes.

    Returns:
        Name of the answer's file as ``output``, and its statistics, for the case's row in a
        summary.
    """
    paths = [target.output / name for name in soft.meta.rules.names(soft.case_id, suffix_of(soft))]
    statistics = WRITERS[soft.meta.task](soft, target, paths)
    logger.info(f"  Saved {paths[0]}")
    return {"output": paths[0].name, **statistics}


def log_written(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Say where the answers are, and what lies beside each, by the files of the first one.

    Args:
        folder: the folder of the answers.
        rows: rows of its summary.
    """
    row = next((row for row in rows if "output" in row), None)
    if row is None:
        return
    own = tuple(f"{row['id']}{kind}" for kind in COMPANIONS)
    beside = sorted(name for name in os.listdir(folder) if name.startswith(own))
    text = f"; beside each, to look at: {', '.join(beside)}" if beside else ""
    logger.info(f"Answers are in {folder}, such as {row['output']}{text}")


def suffix_of(soft: SoftPrediction) -> str:
    """Format of the answer's file.

    Args:
        soft: the prediction.

    Returns:
        Format of the input; for cases predicted in training, which do not say it, the usual one of
        their geometry.
    """
    return soft.meta.suffix or (".nii.gz" if has_world(soft.geometry) else ".tif")


def decided(
    soft: SoftPrediction,
    steps: Sequence[NamedOptions] = (),
    work: Path | None = None,
    spacing: Sequence[float] | None = None,
) -> LazyArray:
    """Decide and post-process a prediction.

    Args:
        soft: the prediction.
        steps: post-processing of labels.
        work: folder for scratch files of what is read as it is sliced.
        spacing: millimetres between voxels along each axis; None: as the geometry says.

    Returns:
        Labels ``(*S)`` where the prediction is in memory, else ``(1, *S)`` as they are sliced;
        images ``(C, *S)`` in the input's number type.

    Raises:
        FileError: a size is in mm³, and the spacing is not known.
    """
    task, dtype = soft.meta.rules, str(soft.meta.dtype)
    held = isinstance(soft.main, np.ndarray)
    main = soft.on_file_grid(work).main
    if task.decides:
        spacing = soft.spacing if spacing is None else spacing
        named = Path(soft.meta.image[0] if soft.meta.image else soft.case_id)
        postprocess.require_spacing(named, steps, spacing)
        labels = postprocess.apply(steps, main, None if held else work, spacing)
        return labels[:][0] if held and isinstance(labels, Rows) else labels
    answer = _changed(main, dtype, lambda part: task.decide(part, soft.meta.scale, dtype))
    return answer[:] if held else answer


def _changed(
    array: LazyArray, dtype: Any, change: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray | Rows:
    """The array with every voxel changed, as it is sliced where the array is."""
    if isinstance(array, np.ndarray):
        return change(array)
    return Rows(array.shape, np.dtype(dtype), lambda first, end: change(array[:, first:end]))


# --- one writer a task ----------------------------------------------------------------------------


def _write_labels(soft: SoftPrediction, target: Target, paths: Sequence[Path]) -> dict[str, Any]:
    """Write labels, a visualisation and, of 2D images, an overlay.

    The visualisation is labels spread over 0..255, for viewers that show 0 and 1 as black.
    """
    path, visualisation, overlay = paths
    labels = decided(soft, target.steps, target.work)
    if isinstance(labels, Rows) and target.work is not None:  # it is read four times below
        labels = files.stored(labels, target.work / "labels.npy")
    rows = labels[None] if isinstance(labels, np.ndarray) else labels
    files.write(path, labels, soft.geometry)
    found = _occurring(rows)
    factor = 255 / max(1, *found)
    grey = _changed(
        labels, np.uint8, lambda part: (part.astype(np.float32) * factor).astype(np.uint8)
    )
    files.write(visualisation, grey, soft.geometry)
    if target.image is not None and isinstance(labels, np.ndarray) and labels.ndim == 2:
        _write_overlay(overlay, target.image, labels, len(soft.main))
    statistics = postprocess.statistics(labels, soft.spacing)
    logger.info("  " + ", ".join(f"{k}: {v}" for k, v in statistics.items()))
    voxels = _named_voxels(found, target)
    if not voxels:
        return statistics
    logger.info("  voxels: " + ", ".join(f"{k}: {v}" for k, v in voxels.items()))
    return {**statistics, "voxels": voxels}


def _occurring(rows: LazyArray) -> dict[int, int]:
    """Voxels of each label value of ``(1, *S)``; of other types than 8 and 16 bits the largest."""
    if rows.dtype not in (np.uint8, np.uint16):
        return {max(int(rows[:, first:end].max()) for first, end in slabs(rows)): 0}
    counts = np.sum([normalise.histogram(rows[:, a:b]) for a, b in slabs(rows)], axis=0)
    return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}


def _named_voxels(found: Mapping[int, int], target: Target) -> dict[str, int]:
    """Voxels of each class by name; nothing without names, and where values number instances."""
    if not target.names or any(step.name == "instances" for step in target.steps):
        return {}
    values = sorted({*target.names, *(v for v in found if v)})
    return {target.names.get(v, str(v)): found.get(v, 0) for v in values}


def _write_overlay(path: Path, image: np.ndarray, answer: np.ndarray, channels: int) -> None:
    """Write labels over their image; a mask in one colour, classes and instances in one each."""
    binary = channels == 1 and answer.max() <= 1
    picture = colours.overlay(image, answer, (colours.SKY,) if binary else colours.CLASSES)
    files.write(path, picture.transpose(2, 0, 1), dims=2)


def _write_image(soft: SoftPrediction, target: Target, paths: Sequence[Path]) -> dict[str, Any]:
    """Write an image and, where there is a mask head, that as a grey picture 0..255.

    A volume's mask is a TIFF. Returns the mask's share of the image.
    """
    path, *pictures = paths
    files.write(path, decided(soft, work=target.work), soft.geometry)
    if "mask" not in soft.heads:
        return {}
    mask = soft.on_file_grid(target.work).heads["mask"]
    dims = len(mask.shape) - 1
    grey = _changed(mask, np.uint8, lambda part: (part * 255).round().astype(np.uint8))
    files.write(pictures[dims - 2], grey, dims=dims)
    inside = sum(int(np.count_nonzero(mask[:, first:end] >= 0.5)) for first, end in slabs(mask))
    return {"mask_share": round(inside / int(np.prod(mask.shape)), 6)}


WRITERS: dict[str, Callable[[SoftPrediction, Target, Sequence[Path]], dict[str, Any]]] = {
    "labels": _write_labels,
    "regions": _write_labels,
    "image": _write_image,
}
