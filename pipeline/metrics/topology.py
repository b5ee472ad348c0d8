"""How well two label maps agree in connectivity: skeletons, segments and matched features.

Arguments, classes and keys are those of :mod:`pipeline.metrics.overlap`; ignored voxels become
background in both maps first. With one foreground class the parts of a score are further keys; with
several, one key for each class. ``voi`` and ``adapted_rand`` compare whole labelings instead, in
which equal numbers mean nothing and every number is a segment.
"""

from __future__ import annotations

from collections.abc import Callable

import edt
import numpy as np
import scipy
import skimage

from pipeline import morphology
from pipeline.metrics.context import several
from pipeline.metrics.overlap import Classes, confined, over_classes
from pipeline.metrics.segments import SegmentOverlaps, segment_overlaps
from pipeline.morphology.counts import matching_counts

Measure = Callable[[np.ndarray, np.ndarray], dict[str, float]]
"""Scores of two masks ``(*S)`` by key; the metric's own name is the first."""


def _in_parts(
    name: str, maps: tuple[np.ndarray, np.ndarray], measure: Measure, classes: Classes = None
) -> dict[str, float]:
    """:func:`over_classes` for a measure of several numbers, which a single class shows all."""
    parts: dict[str, float] = {}

    def first(p: np.ndarray, t: np.ndarray) -> float:
        parts.update(measure(p, t))
        return parts[name]

    scores = over_classes(name, maps, first, classes)
    return parts if len(scores) == 1 else scores


def cldice(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """Centreline Dice: harmonic mean of topology precision and topology sensitivity.

    Skeletons are curves (Zhang & Suen 1984 in 2D, Lee et al. 1994 in 3D): that of a sheet is a few
    lines in it. Both empty: 1, one empty: 0.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes of the data set; None: those that occur in either map.

    Returns:
        ``cldice`` in 0..1. With one class also ``cldice_precision``, the share of the prediction's
        skeleton that lies in the target, and ``cldice_sensitivity``, the share of the target's
        skeleton that lies in the prediction; with several ``cldice_<class>`` of each.

    Raises:
        UserError: the shapes differ.

    Source:
        Shit et al., CVPR 2021.
    """
    return _in_parts("cldice", confined(prediction, target, valid), _cldice, classes)


def _cldice(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    shares = [_share_inside(prediction, target), _share_inside(target, prediction)]
    total = sum(shares)
    mean = 2 * shares[0] * shares[1] / total if total else 0.0
    return {"cldice": mean, "cldice_precision": shares[0], "cldice_sensitivity": shares[1]}


def _share_inside(mask: np.ndarray, other: np.ndarray) -> float:
    """Share of the mask's skeleton inside the other one; both empty: 1, one empty: 0."""
    if not (mask.any() and other.any()):
        return float(mask.any() == other.any())
    return float(other[_skeleton(mask)].mean())


def _skeleton(mask: np.ndarray) -> np.ndarray:
    """Curve skeleton; a component of which nothing would be left keeps its innermost voxel."""
    skeleton = skimage.morphology.skeletonize(mask)
    labels, count = morphology.components(mask)
    # Thinning in 3D deletes bodies of even width without a trace, 2x2x2 and 8x8x8 for example.
    lost = np.setdiff1d(np.arange(1, count + 1), labels[skeleton])
    if lost.size:
        depth = edt.edt(np.ascontiguousarray(mask), black_border=True)
        skeleton[tuple(np.transpose(scipy.ndimage.maximum_position(depth, labels, lost)))] = True
    return skeleton


def voi(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """Variation of information of two labelings in bits: ``voi = voi_split + voi_merge``.

    Where a label above 1 occurs (or ``classes`` holds one), every number of a map is a segment, 0
    the background; of two masks the segments are their connected components, see :func:`voi_of`.
    Voxels that are background in both do not count. Both empty: 0. One empty: the entropy of the
    sizes of the other's segments, all of it in one part, which is 0 for a single segment.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes of the data set; None: those that occur in either map.

    Returns:
        ``voi``, ``voi_split`` and ``voi_merge``.

    Raises:
        UserError: the shapes differ.

    Source:
        Meila 2007.

    Example:
        >>> import numpy as np
        >>> voi(np.array([[1, 1, 2, 2]]), np.array([[5, 5, 5, 5]]))
        {'voi': 1.0, 'voi_split': 1.0, 'voi_merge': 0.0}
    """
    maps = _labelings(confined(prediction, target, valid), classes)
    return _voi(maps, (maps[0] != 0) | (maps[1] != 0))


def _voi(maps: tuple[np.ndarray, np.ndarray], where: np.ndarray) -> dict[str, float]:
    """The scores of two labelings over the voxels of ``where``."""
    overlaps = segment_overlaps(*maps, where)
    split, merge = (_conditional_entropy(overlaps, given=side) for side in (1, 0))
    return {"voi": split + merge, "voi_split": split, "voi_merge": merge}


def _labelings(
    maps: tuple[np.ndarray, np.ndarray], classes: Classes
) -> tuple[np.ndarray, np.ndarray]:
    """Segment numbers ``(*S)``, 0 the background: of label maps, or the components of masks."""
    first, second = maps
    if several(classes) or max(first.max(initial=0), second.max(initial=0)) > 1:
        return _numbered(first), _numbered(second)
    return morphology.components(first != 0)[0], morphology.components(second != 0)[0]


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Labels of any size and sign as numbers from 1 on, which index tables; 0 stays 0."""
    if labels.dtype in (np.uint8, np.uint16):
        return labels
    values = np.unique(labels)
    return np.where(labels == 0, 0, np.searchsorted(values[values != 0], labels) + 1)


def voi_by_class(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, float]:
    """``voi`` of metrics version 1: the mean over classes, each with its components as segments.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.

    Returns:
        ``voi``; of one class also its parts, of several ``voi_<class>`` of each.

    Raises:
        UserError: the shapes differ.
    """
    return _in_parts(
        "voi", confined(prediction, target, valid), lambda p, t: _voi(_components(p, t), p | t)
    )


def adapted_rand_by_class(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, float]:
    """``adapted_rand`` of metrics version 1, like :func:`voi_by_class`.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.

    Returns:
        ``adapted_rand``; of one class also its parts, of several ``adapted_rand_<class>`` of each.

    Raises:
        UserError: the shapes differ.
    """
    return _in_parts(
        "adapted_rand",
        confined(prediction, target, valid),
        lambda p, t: _adapted_rand(_components(p, t)),
    )


def _components(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return morphology.components(prediction)[0], morphology.components(target)[0]


def voi_of(prediction_mask: np.ndarray, target_mask: np.ndarray) -> tuple[float, float]:
    """Variation of information of two masks, by their components.

    Segments are the 26-connected (2D: 8-connected) components of the two masks, and of each its
    background; they are compared over the union of the masks. Both parts are 0 for two empty masks.

    Args:
        prediction_mask: bool ``(*S)``.
        target_mask: bool ``(*S)``.

    Returns:
        ``(split, merge)`` in bits: the conditional entropies H(prediction | target) and H(target |
        prediction). Split grows where the prediction cuts or misses true components, merge where it
        joins or invents them.
    """
    found = _voi(_components(prediction_mask, target_mask), prediction_mask | target_mask)
    return found["voi_split"], found["voi_merge"]


def _conditional_entropy(overlaps: SegmentOverlaps, given: int) -> float:
    """Entropy in bits of the other segmentation given that of side ``given``; 0 without voxels."""
    segment, voxels = overlaps.pairs[given], overlaps.voxels
    if not voxels.size:
        return 0.0
    of_segment = np.bincount(segment, voxels)[segment]
    return float(voxels @ np.log2(of_segment / voxels) / voxels.sum())


def adapted_rand(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """Adapted Rand error of two labelings, as SNEMI3D counts it.

    Segments as in :func:`voi`. Pairs are those of voxels of the target. Voxels outside the target
    do not count, and those of it that the prediction misses are one segment together: see ``dice``
    for how much is missed. Both empty: error 0, one empty: error 1, precision and recall 0.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes of the data set; None: those that occur in either map.

    Returns:
        ``adapted_rand_precision``: share of the pairs in one predicted segment that are also in one
        true component; ``adapted_rand_recall``: share of the pairs in one true component that are
        also in one predicted segment (each 1 where there is no such pair); ``adapted_rand``, the
        first key: 1 minus their harmonic mean.

    Raises:
        UserError: the shapes differ.

    Source:
        Arganda-Carreras et al. 2015.

    Example:
        >>> import numpy as np
        >>> adapted_rand(np.array([[1, 1, 2, 2]]), np.array([[3, 3, 7, 7]]))["adapted_rand"]
        0.0
    """
    return _adapted_rand(_labelings(confined(prediction, target, valid), classes))


def _adapted_rand(maps: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    prediction, target = maps
    if not (prediction.any() and target.any()):
        agree = float(prediction.any() == target.any())
        return {
            "adapted_rand": 1 - agree,
            "adapted_rand_precision": agree,
            "adapted_rand_recall": agree,
        }
    overlaps = segment_overlaps(prediction, target, target != 0)
    predicted, true = (
        _pairs_of_voxels(np.bincount(side, overlaps.voxels)) for side in overlaps.pairs
    )
    both = _pairs_of_voxels(overlaps.voxels)
    return {
        "adapted_rand": 1 - _ratio(2 * both, predicted + true),
        "adapted_rand_precision": _ratio(both, predicted),
        "adapted_rand_recall": _ratio(both, true),
    }


def _pairs_of_voxels(sizes: np.ndarray) -> float:
    """Ordered pairs of different voxels within segments of these sizes."""
    return float(sizes @ (sizes - 1))


def _ratio(part: float, whole: float) -> float:
    """The quotient; 1 where the divisor is 0."""
    return part / whole if whole else 1.0


def betti_matching_error(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """Features of both masks without a partner in the other, by Betti matching.

    A component, tunnel or cavity (2D: component, hole) has a partner if both are one feature of the
    union of the masks, so that equal Betti numbers in different places are errors here. Foreground
    is 6-connected, background 26-connected. The first components of both masks are partners. Both
    empty: 0. One empty: the sum of the other's Betti numbers.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes of the data set; None: those that occur in either map.

    Returns:
        ``betti_matching_error``; with one class also ``betti_matching_error_b0`` and so on for each
        dimension, with several ``betti_matching_error_<class>`` of each.

    Raises:
        UserError: the shapes differ.

    Source:
        Stucki et al., ICML 2023.

    Example:
        >>> import numpy as np
        >>> scores = betti_matching_error(np.array([[1, 0, 1]]), np.array([[1, 1, 1]]))
        >>> scores["betti_matching_error"], scores["betti_matching_error_b0"]
        (1.0, 1.0)
    """
    return _in_parts(
        "betti_matching_error", confined(prediction, target, valid), _betti_matching_error, classes
    )


def _betti_matching_error(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    unmatched = [float(p + g - 2 * m) for m, p, g in matching_counts(prediction, target)]
    # Matching leaves out each mask's first component.
    unmatched[0] += float(prediction.any() != target.any())
    name = "betti_matching_error"
    return {name: sum(unmatched)} | {f"{name}_b{k}": value for k, value in enumerate(unmatched)}
