"""How well two label maps agree in their lesions, and in their volumes.

A lesion is a connected component of a foreground class. Arguments, classes and keys are those of
:mod:`pipeline.metrics.overlap`; ignored voxels become background in both maps first. With several
classes every number has a key for each of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from pipeline import morphology
from pipeline.metrics.overlap import Classes, confined, over_classes, values_of
from pipeline.metrics.segments import segment_overlaps
from pipeline.metrics.surface import Spacing
from pipeline.morphology.sizes import least_voxels, voxel_volume
from pipeline.records import UserError

ML = 1000.0
"""Cubic millimetres in a millilitre."""


def lesion_f1(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    connectivity: int = 26,
    overlap: float | None = None,
    iou: float | None = None,
    min_size: int | None = None,
    min_mm3: float | None = None,
    classes: Classes = None,
    spacing: Spacing = None,
) -> dict[str, float]:
    """F1 of lesions that are found, 2 TP / (2 TP + FP + FN), whatever their sizes.

    Lesions smaller than ``min_size`` or ``min_mm3`` are taken out of both maps first. Then:

    * Without ``iou``: a true lesion is found (TP) where at least the share ``overlap`` of its
      voxels, and at least one, is predicted, by one lesion or several; else it is missed (FN). A
      predicted lesion is false (FP) where less than that share of its voxels, or none, is true. One
      predicted lesion may find several true ones.
    * With ``iou``: a true and a predicted lesion are a pair where their intersection over union is
      ``iou`` or more. TP is the largest number of pairs in which no lesion occurs twice; true
      lesions without a partner are FN, predicted ones FP.

    Both empty: 1, one empty: 0.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        connectivity: of lesions, 6, 18 or 26 as in 3D; in 2D 6 means 4 neighbours, 18 and 26 mean
            8.
        overlap: share of a lesion's voxels, 0..1; None: one voxel is enough.
        iou: intersection over union of a pair, above 0 and up to 1; None: by ``overlap``.
        min_size: voxels of the smallest lesion that counts; None: all count.
        min_mm3: instead, its volume in mm³; a lesion of exactly this volume counts.
        classes: foreground classes of the data set; None: those that occur in either map.
        spacing: millimetres between voxels along each axis; None: not known.

    Returns:
        ``lesion_f1``, ``lesion_precision`` TP / (TP + FP) and ``lesion_recall`` TP / (TP + FN) in
        0..1, the latter two for empty maps like F1; ``lesions_true`` and ``lesions_predicted``, the
        numbers of lesions. With several classes means of the first three, sums of the last two, and
        ``lesion_f1_<class>`` and so on of each.

    Raises:
        UserError: for ``overlap`` beside ``iou`` and ``min_size`` beside ``min_mm3``, numbers
            outside their range, mm³ without spacing, and for shapes that differ.

    Source:
        By overlap: the lesion-wise F1 of ISLES 2022 (Hernandez Petzsche et al., Scientific Data 9,
        2022), where one voxel is enough; a share of the lesion as in MSSEG 2016 (Commowick et al.,
        Scientific Reports 8, 2018). By IoU: the recognition quality of panoptic segmentation
        (Kirillov et al., CVPR 2019), whose pairs are unique above 0.5.

    Example:
        >>> import numpy as np
        >>> truth = np.array([[1, 1, 0, 0, 1, 0, 0]])
        >>> found = lesion_f1(np.array([[0, 1, 0, 0, 0, 0, 1]]), truth)
        >>> found["lesion_f1"], found["lesions_true"]
        (0.5, 2.0)
        >>> lesion_f1(np.array([[0, 1, 0, 0, 0, 0, 1]]), truth, iou=0.6)["lesion_f1"]
        0.0
    """
    if overlap is not None and iou is not None:
        raise UserError(f"lesion_f1: overlap is {overlap!r} and iou {iou!r}. Give one of them.")
    if overlap is not None and not 0 <= overlap <= 1:
        raise UserError(
            f"lesion_f1: overlap is {overlap!r}; it is a share of a lesion and must lie in 0..1."
        )
    if iou is not None and not 0 < iou <= 1:
        raise UserError(
            f"lesion_f1: iou is {iou!r}; it is the least intersection over union of a pair and must"
            " be above 0 and at most 1."
        )
    match = functools.partial(
        _matched,
        connectivity=connectivity,
        least=_least(min_size, min_mm3, spacing),
        overlap=overlap or 0.0,
        iou=iou,
    )
    maps = confined(prediction, target, valid)
    return _each_number(
        maps, lambda p, t: match(p, t).scores, classes, ("lesions_true", "lesions_predicted")
    )


def _least(min_size: int | None, min_mm3: float | None, spacing: Spacing) -> int:
    """Voxels of the smallest lesion that counts."""
    if min_mm3 is None:
        if min_size is not None and not min_size >= 0:
            raise UserError(
                f"lesion_f1: min_size is {min_size!r}; it is a number of voxels and must not be"
                " negative."
            )
        return min_size or 0
    if min_size is not None:
        raise UserError(
            f"lesion_f1: min_size is {min_size!r} voxels and min_mm3 {min_mm3!r} mm³. Give one of"
            " them."
        )
    if spacing is None:
        raise UserError(
            f"lesion_f1: min_mm3 is {min_mm3!r}, but the files carry no unit of length. Use"
            " min_size (voxels), or files that do: NIfTI, OME-Zarr, OME or ImageJ TIFF."
        )
    try:
        return least_voxels(min_mm3, spacing)
    except UserError as error:
        raise UserError(f"lesion_f1: min_mm3: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matched:
    """Numbers of lesions of one class."""

    true: int
    predicted: int
    found: int
    false: int

    @property
    def scores(self) -> dict[str, float]:
        tp, fp, fn = self.found, self.false, self.true - self.found
        return {
            "lesion_f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0,
            "lesion_precision": tp / (tp + fp) if tp + fp else float(self.true == 0),
            "lesion_recall": tp / self.true if self.true else float(self.predicted == 0),
            "lesions_true": float(self.true),
            "lesions_predicted": float(self.predicted),
        }


def _matched(
    prediction: np.ndarray,
    target: np.ndarray,
    connectivity: int,
    least: int,
    overlap: float,
    iou: float | None,
) -> _Matched:
    """Match the lesions of two masks ``(*S)``."""
    either = prediction | target
    box = _box(either)
    maps = [morphology.components(mask[box], connectivity)[0] for mask in (prediction, target)]
    table = segment_overlaps(maps[0], maps[1], either[box])
    # By side (prediction, truth) and lesion; entry 0 is the background.
    sizes = [np.bincount(side, table.voxels, minlength=1) for side in table.pairs]
    counts = [(np.arange(len(size)) > 0) & (size >= least) for size in sizes]
    both = counts[0][table.pairs[0]] & counts[1][table.pairs[1]]
    pairs, voxels = table.pairs[:, both], table.voxels[both]
    predicted, true = (int(np.count_nonzero(which)) for which in counts)
    if iou is not None:
        union = sizes[0][pairs[0]] + sizes[1][pairs[1]] - voxels
        tp = _most_pairs(pairs[:, voxels / union >= iou], (len(sizes[0]), len(sizes[1])))
        return _Matched(true=true, predicted=predicted, found=tp, false=predicted - tp)
    hits = []
    for side, size in zip(pairs, sizes, strict=True):
        shared = np.bincount(side, voxels, minlength=len(size))
        hit = (shared > 0) & (shared / np.maximum(size, 1) >= overlap)
        hits.append(int(np.count_nonzero(hit)))
    return _Matched(true=true, predicted=predicted, found=hits[1], false=predicted - hits[0])


def _most_pairs(pairs: np.ndarray, shape: tuple[int, int]) -> int:
    """Largest number of pairs ``(2, N)`` of which no two share a member."""
    graph = scipy.sparse.csr_array((np.ones(pairs.shape[1], np.int8), tuple(pairs)), shape=shape)
    partners = scipy.sparse.csgraph.maximum_bipartite_matching(graph, perm_type="column")
    return int(np.count_nonzero(partners >= 0))


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The box around a mask ``(*S)``, with 1 voxel along each axis where it is empty."""
    found = scipy.ndimage.find_objects(mask.view(np.uint8))
    return found[0] if found else (slice(0, 1),) * mask.ndim


def volume_error(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
    spacing: Spacing = None,
) -> dict[str, float]:
    """Relative difference of the volumes, ``| |P| - |T| | / |T|``.

    It says nothing of where the volumes lie. Without true volume it has no value and is NaN, also
    where something is predicted: look at ``volume_predicted`` there.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes of the data set; None: those that occur in either map.
        spacing: millimetres between voxels along each axis; None: not known.

    Returns:
        ``volume_error`` from 0 on; ``volume_bias``, the same with its sign, negative where too
        little is predicted; ``volume_true`` and ``volume_predicted`` in millilitres, in voxels
        without spacing and in 2D. With several classes means of the first two, sums of the last
        two, and ``volume_error_<class>`` and so on of each.

    Raises:
        UserError: the shapes differ.

    Source:
        The relative volume difference of SLIVER07 (Heimann et al., IEEE TMI 28, 2009), as a share.

    Example:
        >>> import numpy as np
        >>> masks = np.zeros((2, 4, 10, 10), np.uint8)
        >>> masks[0, 1, :5], masks[1, 1] = 1, 1
        >>> volume_error(*masks, spacing=(5.0, 1.0, 1.0))  # doctest: +NORMALIZE_WHITESPACE
        {'volume_error': 0.5, 'volume_bias': -0.5, 'volume_true': 0.5, 'volume_predicted': 0.25}
    """
    unit = voxel_volume(spacing) / ML if spacing is not None and len(spacing) == 3 else 1.0

    def measure(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
        p, t = (int(np.count_nonzero(mask)) for mask in (found, true))
        bias = (p - t) / t if t else math.nan
        return {
            "volume_error": abs(bias),
            "volume_bias": bias,
            "volume_true": t * unit,
            "volume_predicted": p * unit,
        }

    maps = confined(prediction, target, valid)
    return _each_number(maps, measure, classes, ("volume_true", "volume_predicted"))


def _each_number(
    maps: tuple[np.ndarray, np.ndarray],
    measure: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    classes: Classes,
    summed: tuple[str, ...],
) -> dict[str, float]:
    """:func:`over_classes` for each number of a measure, which is applied once to each class.

    Those in ``summed`` are sums over the classes, the others means.
    """
    rows: list[dict[str, float]] = []

    def first(p: np.ndarray, t: np.ndarray) -> float:
        rows.append(measure(p, t))
        return next(iter(rows[-1].values()))

    def again(key: str) -> Callable[[Any, Any], float]:
        known = iter(rows)
        return lambda *_: next(known)[key]

    name, *others = measure(*(np.zeros((1,) * m.ndim, bool) for m in maps))
    scores = over_classes(name, maps, first, classes)
    values = [np.array(sorted(values_of(m)), m.dtype) for m in maps]  # all that is still needed
    for key in others:
        scores |= over_classes(key, (values[0], values[1]), again(key), classes)
    return scores | {key: float(sum(row[key] for row in rows)) for key in summed}
