"""How well two label maps agree as sets of voxels, and in their numbers of features.

Features are components, tunnels and cavities. Label maps are integers ``(*S)``, ``valid`` is bool
``(*S)``: voxels where it is False count nowhere. Every metric returns its own name first. When a
label above 1 occurs the value is the mean over the foreground classes that occur in either map, and
each such class adds a key ``<name>_<class>``; otherwise foreground is ``!= 0``. ``classes`` are
those of a whole data set: each has its key then, NaN where neither map holds it, so that the
columns of all cases are the same.
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
    """Require one shape of prediction and target, and of ``valid`` that of their space axes.

    Args:
        prediction: array ``(*S)`` or ``(C, *S)``.
        target: array of the same shape.
        valid: bool ``(*S)``; None: not checked.
        channel_axes: axes in front of the space axes, 0 or 1.

    Raises:
        UserError: a shape differs.
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
    """Set ignored voxels of both label maps to background.

    Args:
        prediction: label map ``(*S)``.
        target: label map ``(*S)``.
        valid: bool ``(*S)``, the voxels that count; None: all.

    Returns:
        Prediction and target; the arrays themselves where all voxels count.

    Raises:
        UserError: the shapes differ.
    """
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
    """Apply a measure of two masks to each foreground class and average.

    Args:
        name: key of the result.
        maps: prediction and target, label maps ``(*S)``.
        measure: from the two foreground masks, bool ``(*S)``, to a number.
        classes: foreground classes of the data set; None: those that occur in either map.

    Returns:
        ``name``, and with several classes ``<name>_<class>`` of each (see the module).
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
    """List the values that occur in a label map.

    They are counted, not sorted, where they have 8 or 16 bits.

    Args:
        labels: integers of any shape.

    Returns:
        The distinct values.
    """
    if labels.dtype in (np.uint8, np.uint16):
        return set(np.flatnonzero(histogram(labels)).tolist())
    return set(np.unique(labels).tolist())


def mean_of(values: Iterable[float]) -> float:
    """Average the values that are not NaN.

    Args:
        values: numbers.

    Returns:
        Their mean; NaN where all are NaN or there is none.
    """
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


Share = Callable[[int, int, int], float]
"""Score from the voxels of the intersection, of the prediction and of the target.

The last two are never 0.
"""


def _by_counts(
    name: str, maps: tuple[np.ndarray, np.ndarray], share: Share, classes: Classes
) -> dict[str, float]:
    """Score of voxel counts by class; both masks empty: 1, one empty: 0."""
    return over_counts(
        name,
        maps,
        lambda both, p, t: share(both, p, t) if p and t else float(p == t),
        classes,
    )


def over_counts(
    name: str,
    maps: tuple[np.ndarray, np.ndarray],
    share: Share,
    classes: Classes = None,
) -> dict[str, float]:
    """Apply a measure of voxel counts to each foreground class and average.

    It is :func:`over_classes` for measures that need no more than counts: those of all classes come
    from one pass over the maps, however many they are.

    Args:
        name: key of the result.
        maps: prediction and target, label maps ``(*S)``.
        share: from the voxels of the intersection, of the prediction and of the target to a number.
        classes: foreground classes of the data set; None: those that occur in either map.

    Returns:
        As :func:`over_classes`.
    """
    binary = not several(classes) and max(maps[0].max(initial=0), maps[1].max(initial=0)) <= 1
    joint = None if binary else joint_counts(*maps)
    if joint is None:

        def measure(prediction: np.ndarray, target: np.ndarray) -> float:
            both, p, t = (
                int(np.count_nonzero(mask)) for mask in (prediction & target, prediction, target)
            )
            return share(both, p, t)

        return over_classes(name, maps, measure, classes)
    both, p, t = np.diagonal(joint).tolist(), joint.sum(1).tolist(), joint.sum(0).tolist()
    wanted = (
        [c for c in range(1, len(joint)) if p[c] or t[c]]
        if classes is None
        else [c for c in classes if c != 0]
    )
    each = {
        f"{name}_{c}": share(both[c], p[c], t[c]) if c < len(joint) and (p[c] or t[c]) else math.nan
        for c in wanted
    }
    return {name: mean_of(each.values()), **each}


MOST_JOINT = 1024
"""Label values below this are counted together."""

JOINT_SLAB = 2**21
"""Voxels that are counted at a time."""


def joint_counts(prediction: np.ndarray, target: np.ndarray) -> np.ndarray | None:
    """Count the voxels of each pair of label values.

    Args:
        prediction: label map ``(*S)``.
        target: label map ``(*S)``.

    Returns:
        int64 ``(N, N)``, rows by value of the prediction, columns by that of the target; None where
        values are no integers from 0 to 1,023.

    Example:
        >>> joint_counts(np.array([0, 1, 1]), np.array([0, 0, 1])).tolist()
        [[1, 0], [1, 1]]
    """
    maps = (prediction, target)
    if any(m.dtype.kind not in "iu" or m.min(initial=0) < 0 for m in maps):
        return None
    values = 1 + max(int(m.max(initial=0)) for m in maps)
    if values > MOST_JOINT:
        return None
    rows, columns = (np.ascontiguousarray(m).reshape(-1) for m in maps)
    counts = np.zeros(values * values, np.int64)
    for start in range(0, rows.size, JOINT_SLAB):
        part = slice(start, start + JOINT_SLAB)
        codes = rows[part].astype(np.int64) * values + columns[part]
        counts += np.bincount(codes, minlength=values * values)
    return counts.reshape(values, values)


def dice(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """Dice coefficient ``2 |P and T| / (|P| + |T|)``.

    Both empty: 1, one empty: 0.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes of the data set; None: those that occur in either map.

    Returns:
        ``dice`` in 0..1; with several classes their mean, and ``dice_<class>`` of each.

    Raises:
        UserError: the shapes differ.

    Source:
        Dice 1945.

    Example:
        >>> import numpy as np
        >>> dice(np.array([[0, 1, 1, 2]]), np.array([[0, 1, 2, 2]]))["dice_1"]
        0.6666666666666666
    """
    return _by_counts(
        "dice", confined(prediction, target, valid), lambda both, p, t: 2 * both / (p + t), classes
    )


def iou(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """Intersection over union ``|P and T| / |P or T|``.

    Both empty: 1, one empty: 0.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes of the data set; None: those that occur in either map.

    Returns:
        ``iou`` in 0..1; with several classes their mean, and ``iou_<class>`` of each.

    Raises:
        UserError: the shapes differ.

    Source:
        Jaccard 1901.

    Example:
        >>> import numpy as np
        >>> iou(np.array([[0, 1, 1]]), np.array([[0, 0, 1]]))
        {'iou': 0.5}
    """
    return _by_counts(
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
    """Precision ``|P and T| / |P|``.

    Both empty: 1, one empty: 0, whichever it is.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes of the data set; None: those that occur in either map.

    Returns:
        ``precision`` in 0..1; with several classes their mean, and ``precision_<class>`` of each.

    Raises:
        UserError: the shapes differ.
    """
    return _by_counts(
        "precision", confined(prediction, target, valid), lambda both, p, t: both / p, classes
    )


def recall(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """Recall ``|P and T| / |T|``.

    Both empty: 1, one empty: 0, whichever it is.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes of the data set; None: those that occur in either map.

    Returns:
        ``recall`` in 0..1; with several classes their mean, and ``recall_<class>`` of each.

    Raises:
        UserError: the shapes differ.
    """
    return _by_counts(
        "recall", confined(prediction, target, valid), lambda both, p, t: both / t, classes
    )


def specificity(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    classes: Classes = None,
) -> dict[str, float]:
    """Share of the valid background that is predicted as background.

    No background: 1.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        classes: foreground classes of the data set; None: those that occur in either map.

    Returns:
        ``specificity`` in 0..1; with several classes the mean, and ``specificity_<class>`` of each.

    Raises:
        UserError: the shapes differ.
    """
    same_shape(prediction, target, valid)
    known = target.size if valid is None else int(np.count_nonzero(valid))

    def share(both: int, p: int, t: int) -> float:
        return 1 - (p - both) / (known - t) if known > t else 1.0

    return over_counts("specificity", confined(prediction, target, valid), share, classes)


def accuracy(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, float]:
    """Share of valid voxels with the right label, background included; over all classes at once.

    No valid voxel: 1.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.

    Returns:
        ``accuracy`` in 0..1.

    Raises:
        UserError: the shapes differ.
    """
    same_shape(prediction, target, valid)
    right = prediction == target
    if valid is not None:
        right = right[valid]
    return {"accuracy": float(right.mean()) if right.size else 1.0}


def components(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, float]:
    """Numbers of 26-connected (2D: 8-connected) components of the foreground.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.

    Returns:
        ``components`` of the prediction and ``components_true``.

    Raises:
        UserError: the shapes differ.
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
    """Sum of the absolute differences of the foreground's Betti numbers.

    Both empty: 0, one empty: the sum of the other's numbers.

    Args:
        prediction: label map ``(*S)`` of integers.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        connectivity: 6: foreground is 6-connected, background 26-connected; 26: the other way round
            (in 2D 4 and 8 neighbours).

    Returns:
        ``betti_error``, then ``betti_error_b0`` (predicted), ``betti_error_b0_true`` and so on for
        tunnels (b1) and cavities (b2); in 2D components (b0) and holes (b1).

    Raises:
        UserError: the shapes differ, or the connectivity is neither 6 nor 26.

    Example:
        >>> import numpy as np
        >>> ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
        >>> betti_error(np.ones((3, 3)), ring)["betti_error"]
        1.0
    """
    found, true = (
        morphology.betti_numbers(m != 0, connectivity) for m in confined(prediction, target, valid)
    )
    out = {"betti_error": float(sum(abs(a - b) for a, b in zip(found, true, strict=True)))}
    for k, (a, b) in enumerate(zip(found, true, strict=True)):
        out |= {f"betti_error_b{k}": float(a), f"betti_error_b{k}_true": float(b)}
    return out
