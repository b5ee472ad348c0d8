"""The loss ``focal_tversky``: for small structures that Dice loses.

::

    losses: [{name: focal_tversky, options: {beta: 0.8}}, ce]
"""

from collections.abc import Callable

import torch
from torch import Tensor

import pipeline as pl

LEAST = 1e-6
"""Below it the loss is constant: the slope of a root is infinite at 0."""


def focal_tversky(
    *, alpha: float = 0.3, beta: float = 0.7, gamma: float = 4 / 3, smooth: float = 1e-5
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Focal Tversky, ``(1 - TP / (TP + alpha FP + beta FN)) ** (1 / gamma)``.

    The mean over samples and classes but background. The root keeps the gradient large where a
    structure is nearly right, which Dice neglects; ``gamma`` below 1 favours the hard ones instead.

    Args:
        alpha: weight of false positives.
        beta: weight of false negatives: raise it for recall.
        gamma: above 0; 1 is the loss ``tversky``.
        smooth: above 0; added to numerator and denominator, which may both be empty.

    Returns:
        ``loss(head, target, valid)``: logits ``(B, K, *S)``, class numbers ``(B, 1, *S)``, and 1
        where a voxel counts ``(B, 1, *S)``, to a tensor ``()``.

    Source: Abraham & Khan, ISBI 2019.
    """
    for name, value in (("gamma", gamma), ("smooth", smooth)):
        if not value > 0:
            raise ValueError(f"{name} is {value}, must be above 0.")

    def loss(head: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        head = head.float()  # half precision cannot hold sums over a patch
        if head.shape[1] == 1:
            p, y = head.sigmoid(), target > 0
        else:
            number = torch.arange(1, head.shape[1], device=head.device)
            p, y = head.softmax(1)[:, 1:], target == number.view(1, -1, *[1] * (target.ndim - 2))
        p, y = (p * valid).flatten(2), (y * valid).flatten(2)  # (B, classes, voxels)
        hit, false, missed = (p * y).sum(2), (p * (1 - y)).sum(2), ((1 - p) * y).sum(2)
        index = (hit + smooth) / (hit + alpha * false + beta * missed + smooth)
        return ((1 - index).clamp(min=LEAST) ** (1 / gamma)).mean()

    return loss


pl.register("focal_tversky", pl.LossEntry(focal_tversky, targets=("labels",)))
