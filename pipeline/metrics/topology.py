"""How well two label maps agree in what is connected to what: skeletons, components as segments, and matched features.

Arguments, classes and keys are those of :mod:`pipeline.metrics.region`; ignored voxels become background in both maps first.
With one foreground class the parts of a score are further keys; with several, one key for each class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline import morphology
from pipeline.metrics.region import confined, over_classes

Measure = Callable[[np.ndarray, np.ndarray], dict[str, float]]
"""Scores of two masks ``(*S)`` by key; the metric's own name is the first."""

_AT_ONCE = 1 << 22  # voxels whose segments are compared at a time, to bound the memory


def _in_parts(name: str, prediction: np.ndarray, target: np.ndarray, measure: Measure) -> dict[str, float]:
    """:func:`over_classes` for a measure of several numbers, which are shown for a single foreground class only."""
    parts: dict[str, float] = {}

    def first(p: np.ndarray, t: np.ndarray) -> float:
        parts.update(measure(p, t))
        return parts[name]

    scores = over_classes(name, prediction, target, first)
    return parts if len(scores) == 1 else scores


def cldice(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """Centreline Dice (Shit et al., CVPR 2021): harmonic mean of topology precision and sensitivity, which are further keys.

    ``cldice_precision`` is the share of the prediction's skeleton that lies in the target, ``cldice_sensitivity`` the share of
    the target's skeleton that lies in the prediction. Skeletons are curves (Zhang & Suen 1984 in 2D, Lee et al. 1994 in 3D):
    that of a sheet is a few lines in it. Both empty: 1, one empty: 0.
    """
    return _in_parts("cldice", *confined(prediction, target, valid), _cldice)


def _cldice(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    shares = [_share_inside(prediction, target), _share_inside(target, prediction)]
    total = sum(shares)
    mean = 2 * shares[0] * shares[1] / total if total else 0.0
    return {"cldice": mean, "cldice_precision": shares[0], "cldice_sensitivity": shares[1]}


def _share_inside(mask: np.ndarray, other: np.ndarray) -> float:
    if not (mask.any() and other.any()):
        return float(mask.any() == other.any())
    return float(other[_skeleton(mask)].mean())


def _skeleton(mask: np.ndarray) -> np.ndarray:
    """Curve skeleton; a component of which nothing would be left keeps its innermost voxel."""
    import edt
    from scipy.ndimage import maximum_position
    from skimage.morphology import skeletonize

    skeleton = skeletonize(mask)
    labels, count = morphology.components(mask)
    # Thinning in 3D deletes bodies of even width without a trace, 2x2x2 and 8x8x8 for example.
    lost = np.setdiff1d(np.arange(1, count + 1), labels[skeleton])
    if lost.size:
        depth = edt.edt(np.ascontiguousarray(mask), black_border=True)
        skeleton[tuple(np.transpose(maximum_position(depth, labels, lost)))] = True
    return skeleton


def voi(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """Variation of information (Meila 2007) of the components as segments, in bits: ``voi = voi_split + voi_merge``.

    Segments and parts are those of :func:`voi_of`. Both empty: 0. One empty: the entropy of the sizes of the other's
    components, all of it in one part, which is 0 for a single component.
    """
    return _in_parts("voi", *confined(prediction, target, valid), _voi)


def _voi(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    split, merge = voi_of(prediction, target)
    return {"voi": split + merge, "voi_split": split, "voi_merge": merge}


def voi_of(prediction_mask: np.ndarray, target_mask: np.ndarray) -> tuple[float, float]:
    """``(split, merge)`` in bits: the conditional entropies H(prediction | target) and H(target | prediction).

    Segments are the 26-connected (2D: 8-connected) components of the two masks bool ``(*S)``, and of each its background; they
    are compared over the union of the masks. Split grows where the prediction cuts or misses true components, merge where it
    joins or invents them. Both are 0 for two empty masks.
    """
    overlaps = _overlaps(prediction_mask, target_mask, prediction_mask | target_mask)
    return _conditional_entropy(overlaps, given=1), _conditional_entropy(overlaps, given=0)


@dataclass(frozen=True, slots=True)
class _Overlaps:
    """Pairs of components ``(2, N)``, predicted and true, 0 the background, and how many voxels ``(N,)`` each pair shares."""

    pairs: np.ndarray
    voxels: np.ndarray


def _conditional_entropy(overlaps: _Overlaps, given: int) -> float:
    """Bits that the other segmentation's segment still holds where that of side ``given`` is known; 0 without voxels."""
    segment, voxels = overlaps.pairs[given], overlaps.voxels
    if not voxels.size:
        return 0.0
    of_segment = np.bincount(segment, voxels)[segment]
    return float(voxels @ np.log2(of_segment / voxels) / voxels.sum())


def _overlaps(prediction: np.ndarray, target: np.ndarray, where: np.ndarray) -> _Overlaps:
    """How the components of two masks overlap in the voxels of the mask ``where``."""
    labels = [morphology.components(mask)[0] for mask in (prediction, target)]
    width = int(labels[1].max(initial=0)) + 1
    keys, counts = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    rows = max(1, _AT_ONCE * len(where) // max(where.size, 1))
    for start in range(0, len(where), rows):
        slab = slice(start, start + rows)
        first, second = (side[slab][where[slab]].astype(np.int64) for side in labels)
        key, count = _tally(first * width + second)
        keys.append(key)
        counts.append(count)
    key, number = np.unique(np.concatenate(keys), return_inverse=True)
    return _Overlaps(np.stack(np.divmod(key, width)), np.bincount(number, np.concatenate(counts), len(key)))


def _tally(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values ``(N,)``, none negative, and how often each occurs. Neighbours are mostly equal: runs are found before sorting."""
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    lengths = np.diff(starts, append=values.size)
    key, number = np.unique(values[starts], return_inverse=True)
    return key, np.bincount(number, lengths, len(key))


def adapted_rand(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """Adapted Rand error (Arganda-Carreras et al. 2015) of the components as segments, as SNEMI3D counts it.

    Over pairs of voxels of the target: ``adapted_rand_precision`` is the share of the pairs in one predicted segment that are
    also in one true component, ``adapted_rand_recall`` the share of the pairs in one true component that are also in one
    predicted segment (1 where there is no such pair), and the error is 1 minus their harmonic mean. Voxels outside the target
    do not count, and those of it that the prediction misses are one segment together: see ``dice`` for how much is missed.
    Both empty: error 0, one empty: error 1, precision and recall 0.
    """
    return _in_parts("adapted_rand", *confined(prediction, target, valid), _adapted_rand)


def _adapted_rand(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    if not (prediction.any() and target.any()):
        agree = float(prediction.any() == target.any())
        return {"adapted_rand": 1 - agree, "adapted_rand_precision": agree, "adapted_rand_recall": agree}
    overlaps = _overlaps(prediction, target, target)
    predicted, true = (_pairs_of_voxels(np.bincount(side, overlaps.voxels)) for side in overlaps.pairs)
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
    return part / whole if whole else 1.0


def betti_matching_error(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """Features of both masks without a partner in the other, by Betti matching (Stucki et al., ICML 2023).

    A component, tunnel or cavity (2D: component, hole) has a partner if both are one feature of the union of the masks, so
    that equal Betti numbers in different places are errors here. Foreground is 6-connected, background 26-connected. Further
    keys: ``betti_matching_error_b0`` and so on for each dimension. The first components of both masks are partners. Both
    empty: 0. One empty: the sum of the other's Betti numbers.
    """
    return _in_parts("betti_matching_error", *confined(prediction, target, valid), _betti_matching_error)


def _betti_matching_error(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    from pipeline.morphology.counts import matching_counts

    unmatched = [float(p + g - 2 * m) for m, p, g in matching_counts(prediction, target)]
    unmatched[0] += float(prediction.any() != target.any())  # matching leaves out each mask's first component
    name = "betti_matching_error"
    return {name: sum(unmatched)} | {f"{name}_b{k}": value for k, value in enumerate(unmatched)}
