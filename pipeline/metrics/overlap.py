"""How well two label maps agree as sets of voxels, and in the number of their components, tunnels
and cavities.

Label maps are integers ``(*S)``, ``valid`` is bool ``(*S)``: voxels where it is False count
nowhere. Every metric returns its own name first. When a label above 1 occurs the value is the mean
over the foreground classes that occur in either map, and each such class adds a key
``<name>_<class>``; otherwise foreground is ``!= 0``. ``classes`` are those of a whole data set:
each has its key then, NaN where neither map holds it, so that the columns of all cases are the
same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pipeline import morphology
from pipeline.data.normalise import histogram
from pipeline.metrics.context import several
from pipeline.records import UserError


def same_shape(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None, channel_axes: int = 0
) -> None:
    """Raise UserError unless prediction and target have one shape and ``valid`` that of their space
    axes.
    """
    if prediction.shape != target.shape:
        raise UserError(
            f"The prediction has the shape {prediction.shape}, the target {target.shape}. They must"
            " be of the same case."
        )
    if valid is not None and valid.shape != target.shape[channel_axes:]:
        raise UserError(
            f"The mask of valid voxels has the shape {valid.shape}, the target {target.shape}. They"
            " must cover the same space."
        )


def confined(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both label maps with ignored voxels set to background."""
    same_shape(prediction, target, valid)
    if valid is None:
        return prediction, target
    zero = np.zeros((), dtype=prediction.dtype)
    return np.where(valid, prediction, zero), np.where(valid, target, zero.astype(target.dtype))


Classes = Sequence[int] | None
"""Foreground classes of a data set; None: those of the case at hand."""


def over_classes(
    name: str,
    maps: tuple[np.ndarray, np.ndarray],
    measure: Callable[[np.ndarray, np.ndarray], float],
    classes: Classes = None,
) -> dict[str, float]:
    """``measure`` of the two foreground masks, or its mean over classes and one key for each (see
    the head of this file).
    """
    prediction, target = maps
    if not several(classes) and max(prediction.max(initial=0), target.max(initial=0)) <= 1:
        return {name: measure(prediction != 0, target != 0)}
    present = values_of(prediction) | values_of(target)
    wanted = sorted(present - {0}) if classes is None else [c for c in classes if c != 0]
    each = {
        f"{name}_{c}": measure(prediction == c, target == c) if c in present else math.nan
        for c in wanted
    }
    return {name: mean_of(each.values()), **each}


def values_of(labels: np.ndarray) -> set[int]:
    """The values that occur in a label map; counted, not sorted, where they have 8 or 16 bits."""
    if labels.dtype in (np.uint8, np.uint16):
        return set(np.flatnonzero(histogram(labels)).tolist())
    return set(np.unique(labels).tolist())


def mean_of(values: Iterable[float]) -> float:
    """Mean of the values that are numbers; NaN where there is none."""
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


Share = Callable[[int, int, int], float]
"""Score from the voxels of the intersection, of the prediction and of the target, none of which is
0 but perhaps the first.
"""


def _share(
    name: str, maps: tuple[np.ndarray, np.ndarray], share: Share, classes: Classes
) -> dict[str, float]:
    def measure(prediction: np.ndarray, target: np.ndarray) -> float:
        both, p, t = (
            int(np.count_nonzero(mask)) for mask in (prediction & target, prediction, target)
        )
        return share(both, p, t) if p and t else float(p == t)

    return over_classes(name, maps, measure, classes)


def dice(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """2 |P and T| / (|P| + |T|) (Dice 1945). Both empty: 1, one empty: 0."""
    return _share(
        "dice", confined(prediction, target, valid), lambda both, p, t: 2 * both / (p + t), classes
    )


def iou(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """|P and T| / |P or T| (Jaccard 1901). Both empty: 1, one empty: 0."""
    return _share(
        "iou",
        confined(prediction, target, valid),
        lambda both, p, t: both / (p + t - both),
        classes,
    )


def precision(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """|P and T| / |P|. Both empty: 1, one empty: 0, whichever it is."""
    return _share(
        "precision", confined(prediction, target, valid), lambda both, p, t: both / p, classes
    )


def recall(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """|P and T| / |T|. Both empty: 1, one empty: 0, whichever it is."""
    return _share(
        "recall", confined(prediction, target, valid), lambda both, p, t: both / t, classes
    )


def specificity(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """Share of the valid background that is called background. No background: 1."""
    same_shape(prediction, target, valid)
    known = np.ones(target.shape, bool) if valid is None else valid

    def measure(found: np.ndarray, true: np.ndarray) -> float:
        outside = known & ~true
        total = int(np.count_nonzero(outside))
        return 1 - int(np.count_nonzero(found & outside)) / total if total else 1.0

    return over_classes("specificity", confined(prediction, target, valid), measure, classes)


def accuracy(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, float]:
    """Share of valid voxels with the right label, background included; over all classes at once.

    No valid voxel: 1.
    """
    same_shape(prediction, target, valid)
    right = prediction == target
    if valid is not None:
        right = right[valid]
    return {"accuracy": float(right.mean()) if right.size else 1.0}


def components(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, float]:
    """Numbers of 26-connected (2D: 8-connected) components of the foreground: ``components``
    predicted, ``components_true``.
    """
    found, true = (
        float(morphology.components(m != 0)[1]) for m in confined(prediction, target, valid)
    )
    return {"components": found, "components_true": true}


def betti_error(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    connectivity: int = 6,
) -> dict[str, float]:
    """Sum of the absolute differences of the Betti numbers of the foreground, and the numbers
    themselves.

    ``connectivity`` 6: foreground is 6-connected, background 26-connected; 26: the other way round
    (in 2D 4 and 8 neighbours).
    Further keys: ``betti_error_b0`` (predicted), ``betti_error_b0_true`` and so on for tunnels (b1)
    and cavities (b2); in 2D components (b0) and holes (b1). Both empty: 0, one empty: the sum of
    the other's numbers.
    """
    found, true = (
        morphology.betti_numbers(m != 0, connectivity) for m in confined(prediction, target, valid)
    )
    out = {"betti_error": float(sum(abs(a - b) for a, b in zip(found, true, strict=True)))}
    for k, (a, b) in enumerate(zip(found, true, strict=True)):
        out |= {f"betti_error_b{k}": float(a), f"betti_error_b{k}_true": float(b)}
    return out
