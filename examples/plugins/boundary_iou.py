"""The metric ``boundary_iou``: overlap of contours, which large objects do not hide.

::

    metrics: [dice, {name: boundary_iou, options: {width: 3}}]
    pipeline evaluate ... --metrics dice boundary_iou:width=3 --plugin boundary_iou.py
"""

from collections.abc import Sequence

import edt
import numpy as np

import pipeline as pl


def boundary_iou(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    width: float = 2.0,
    classes: Sequence[int] | None = None,
) -> dict[str, float]:
    """Intersection over union of the rims of two masks, their voxels near the background.

    Both masks empty: 1, one of them: 0. The border of the image is no background.

    Args:
        prediction: label map ``(*S)``.
        target: label map ``(*S)``, the ground truth.
        valid: bool ``(*S)``, the voxels that count; None: all.
        width: of the rim in voxels, at least 1.
        classes: foreground classes of the data set; None: those that occur in either map.

    Returns:
        ``boundary_iou`` in 0..1, of several classes the mean over those that occur, and
        ``boundary_iou_<class>``, NaN for a class in neither map.

    Source: Cheng et al., CVPR 2021; there the border of the image belongs to the background.
    """
    if not width >= 1:
        raise pl.UserError(f"boundary_iou: width is {width}, must be at least 1 voxel.")
    if valid is not None:
        prediction, target = (np.where(valid, labels, 0) for labels in (prediction, target))
    found = {int(n) for labels in (prediction, target) for n in np.unique(labels)} - {0}
    numbers = sorted(found if classes is None else classes)
    if max(numbers, default=1) == 1:
        return {"boundary_iou": _iou(prediction > 0, target > 0, width)}
    each = {
        f"boundary_iou_{n}": _iou(prediction == n, target == n, width) if n in found else np.nan
        for n in numbers
    }
    known = [value for value in each.values() if not np.isnan(value)]
    return {"boundary_iou": float(np.mean(known)) if known else np.nan, **each}


def _iou(prediction: np.ndarray, target: np.ndarray, width: float) -> float:
    rims = [
        mask & (edt.edt(np.ascontiguousarray(mask), black_border=False) <= width)
        for mask in (prediction, target)
    ]
    union = np.count_nonzero(rims[0] | rims[1])
    if union == 0:  # both are empty, or fill the image, or one does the one and one the other
        return float(np.array_equal(prediction, target))
    return np.count_nonzero(rims[0] & rims[1]) / union


pl.register("boundary_iou", pl.MetricEntry(boundary_iou, better="higher", bytes_per_voxel=16))
