"""The loss ``edge_ce``: cross-entropy that counts most along the edges of structures.

It reads a map, which the loader makes from the label once and crops and flips with it.

::

    losses: [dice, {name: edge_ce, options: {strength: 5, sigma: 1.5}}]
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

import pipeline as pl


def edge_ce(
    *, strength: float = 5.0, sigma: float = 1.5, reach: float = 5.0
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Cross-entropy, weighted by ``1 + strength * exp(-d**2 / (2 sigma**2))``.

    d is the distance to the nearest surface of a class, the map ``distance``.

    Args:
        strength: how much more a voxel at an edge counts than one far away.
        sigma: width of the edge in voxels.
        reach: distance in voxels at which the map is cut off, as in the loss ``boundary``, so that
            both read one map; at least three times ``sigma``.

    Returns:
        ``loss(head, target, valid, distance)``: logits ``(B, K, *S)``, class numbers and 1 where a
        voxel counts, both ``(B, 1, *S)``, and the signed distance to the surface of every class but
        background, to a tensor ``()``.

    Source: the weight map of Ronneberger et al., MICCAI 2015, with the nearest surface only.
    """
    if not 0 < 3 * sigma <= reach:
        raise ValueError(f"sigma is {sigma} and reach {reach}, must satisfy 0 < 3 sigma <= reach.")

    def loss(head: Tensor, target: Tensor, valid: Tensor, distance: Tensor) -> Tensor:
        head, nearest = head.float(), distance.float().abs().amin(1)  # (B, *S)
        weight = valid[:, 0] * (1 + strength * (-((nearest / sigma) ** 2) / 2).exp())
        if head.shape[1] == 1:
            wanted = (target[:, 0] > 0).float()
            entropy = functional.binary_cross_entropy_with_logits(head[:, 0], wanted, weight)
        else:
            number = target[:, 0].masked_fill(valid[:, 0] == 0, 0).long()
            entropy = (weight * functional.cross_entropy(head, number, reduction="none")).mean()
        return entropy / weight.mean().clamp(min=1e-8)

    return loss


pl.register("edge_ce", pl.LossEntry(edge_ce, targets=("labels",), map="distance"))
