"""Losses for label targets: overlap (dice, tversky), voxel by voxel (ce, focal), and one that
punishes uniform answers.

``target`` holds class indices ``(B, 1, *S)``. With one output channel the activation is a sigmoid
and every label above 0 is foreground; with K > 1 channels it is a softmax over classes 0
(background) to K - 1. A batch without a valid voxel gives 0.

dice, tversky and ce also take a soft target: floating-point numbers ``(B, 1, *S)`` in 0..1, the
wanted probability of the one output channel. Each is then least where the answer equals the target,
so soft edges stay soft, and of a target of 0 and 1 the value is that of labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.losses.dice import DiceLoss
from monai.losses.focal_loss import sigmoid_focal_loss, softmax_focal_loss
from monai.losses.tversky import TverskyLoss
from torch import Tensor
from torch.nn import functional

from pipeline.config import ConfigError
from pipeline.losses.masked import Loss, masked, masked_mean, number, sample_mean, switch

SMALLEST = 1e-12
"""Least smoothing that still keeps 0 / 0 away."""

_Measure = Callable[[Tensor, Tensor], Tensor]


def probabilities(logits: Tensor) -> Tensor:
    """Sigmoid of one channel, softmax of several."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def foreground(target: Tensor) -> Tensor:
    """Where class indices ``(B, 1, *S)`` are above 0, as booleans."""
    if target.shape[1] != 1:
        raise ValueError(
            f"label target has shape {tuple(target.shape)}, must hold class indices in one channel:"
            " (B, 1, *S)."
        )
    return target > 0


def one_hot(target: Tensor, like: Tensor) -> Tensor:
    """Class indices ``(B, 1, *S)`` in the shape and type of the logits ``like``; one channel means
    foreground.
    """
    inside, classes = foreground(target), like.shape[1]
    if classes == 1:
        return inside.to(like.dtype)
    index = torch.arange(classes, device=target.device).reshape(1, -1, *[1] * (target.ndim - 2))
    return (target == index).to(like.dtype)


def is_soft(target: Tensor, logits: Tensor) -> bool:
    """Whether ``target`` holds wanted probabilities rather than class indices; ValueError unless
    both have one channel then.
    """
    if not target.is_floating_point():
        return False
    if logits.shape[1] != 1 or target.shape[1] != 1:
        raise ValueError(
            f"a soft target {tuple(target.shape)} and logits {tuple(logits.shape)} must have one"
            " channel each: (B, 1, *S). Several classes need labels: whole numbers."
        )
    return True


def dice(*, smooth: float = 1e-5, batch: bool = False, background: bool = False) -> Loss:
    """Soft Dice, ``1 - (2 TP + smooth) / (2 TP + FP + FN + smooth)`` (Milletari et al., 3DV 2016),
    mean over samples and classes.

    ``batch``: pool voxels of the whole batch first, steadier where samples hold little foreground.
    ``background``: let class 0 of several take part. TP of a activate target is ``sum min(p, t)``,
    the product's value for labels (Wang et al., Dice Semimetric Losses, MICCAI 2023): it is 0 at p
    = t, where the product would push every p to 0 or 1.
    """
    smooth = number(smooth, "'dice': smooth", SMALLEST)
    batch, background = switch(batch, "'dice': batch"), switch(background, "'dice': background")
    hard = DiceLoss(reduction="none", batch=batch, smooth_nr=smooth, smooth_dr=smooth)
    return _overlap((hard, _semimetric(0.5, 0.5, smooth / 2, batch)), batch, background)


def tversky(
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1e-5,
    batch: bool = False,
    background: bool = False,
) -> Loss:
    """Tversky index, ``1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth)`` (Salehi et al.,
    MLMI 2017).

    ``alpha`` weights false positives and ``beta`` false negatives (some papers swap them): raise
    ``beta`` for recall. 0.5 and 0.5 is Dice. ``batch``, ``background`` and TP of a activate target
    as in :func:`dice`.
    """
    smooth = number(smooth, "'tversky': smooth", SMALLEST)
    alpha, beta = number(alpha, "'tversky': alpha"), number(beta, "'tversky': beta")
    if alpha == beta == 0:
        raise ConfigError(
            "loss 'tversky': alpha and beta are both 0, so that the loss is 0 for every answer."
            " Raise one of them."
        )
    batch, background = (
        switch(batch, "'tversky': batch"),
        switch(background, "'tversky': background"),
    )
    hard = TverskyLoss(
        reduction="none", alpha=alpha, beta=beta, batch=batch, smooth_nr=smooth, smooth_dr=smooth
    )
    return _overlap((hard, _semimetric(alpha, beta, smooth, batch)), batch, background)


def _semimetric(alpha: float, beta: float, smooth: float, batch: bool) -> _Measure:
    """Tversky of soft sets: ``TP = sum min(p, t)``, ``FP = sum max(p - t, 0)``, ``FN = sum max(t -
    p, 0)``; 0 exactly at p = t.

    MONAI's ``soft_label`` is the same on paper, but finds TP as a difference of sums: in float32 a
    mask of a hundred pixels drowns in the rounding of a million.
    """

    def measure(p: Tensor, t: Tensor) -> Tensor:
        axes = [axis for axis in range(p.ndim) if axis > 1 or (batch and axis == 0)]
        both, over, under = (
            x.sum(axes)
            for x in (torch.minimum(p, t), functional.relu(p - t), functional.relu(t - p))
        )
        return 1 - (both + smooth) / (both + alpha * over + beta * under + smooth)

    return measure


def _overlap(measures: tuple[_Measure, _Measure], batch: bool, background: bool) -> Loss:
    """Mean of the measure for labels or soft targets, which gives one value for each sample (unless
    ``batch``) and class.
    """

    @masked
    def loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        soft = is_soft(target, logits)
        first = 1 if logits.shape[1] > 1 and not background else 0
        p = (probabilities(logits) * valid)[:, first:]
        y = ((target.to(logits.dtype) if soft else one_hot(target, logits)) * valid)[:, first:]
        values = measures[soft](p, y)
        return values.mean() if batch else sample_mean(values, valid)

    return loss


def ce(*, positive_weight: float = 1.0) -> Loss:
    """Cross-entropy, mean over valid voxels: binary for one channel, softmax for several.

    ``positive_weight`` multiplies the loss of foreground voxels (every class but 0); the mean still
    divides by the number of valid voxels. A voxel of a soft target t counts ``1 + (positive_weight
    - 1) t``; at p = t the value is the entropy of t.
    """
    weight = number(positive_weight, "'ce': positive_weight")

    @masked
    def loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        if is_soft(target, logits):
            t = target.to(logits.dtype)
            values = functional.binary_cross_entropy_with_logits(logits, t, reduction="none")
            return masked_mean((1 + (weight - 1) * t) * values, valid)
        y = one_hot(target, logits)
        if logits.shape[1] == 1:
            values = functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
        else:
            # A product with the one-hot target, because nll_loss in 2D is not reproducible on CUDA.
            values = -(functional.log_softmax(logits, 1) * y).sum(1, keepdim=True)
        return masked_mean(torch.where(foreground(target), weight * values, values), valid)

    return loss


def focal(*, gamma: float = 2.0, alpha: float | None = None) -> Loss:
    """Focal loss ``-(1 - p_t)^gamma log p_t`` (Lin et al., ICCV 2017), mean over valid voxels;
    gamma 0 is cross-entropy.

    ``gamma``: 0, or at least 1 (between, the gradient is infinite at p_t = 1). ``alpha``: weight of
    foreground in [0, 1], ``1 - alpha`` is that of background; null: both count 1. For K classes the
    value is K times that of MONAI's mean, which divides by channels too.
    """
    gamma = number(gamma, "'focal': gamma")
    if 0 < gamma < 1:
        raise ConfigError(
            f"loss 'focal': gamma is {gamma:g}, must be 0 or at least 1: between, the gradient is"
            " infinite. Use 2."
        )
    alpha = None if alpha is None else number(alpha, "'focal': alpha", most=1)

    @masked
    def loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        measure = sigmoid_focal_loss if logits.shape[1] == 1 else softmax_focal_loss
        values = measure(logits, one_hot(target, logits), gamma, alpha)
        return masked_mean(values.sum(1, keepdim=True), valid)

    return loss


def variance(*, eps: float = 1e-8) -> Loss:
    """Punish answers that are more uniform than the label: ``max(0, 1 - s_p / s_y)``, mean over
    samples.

    ``s_p = sqrt(var(p) + eps)`` is the standard deviation of the foreground probability p over the
    valid voxels of a sample, ``s_y`` that of its binary label. The value is 1 for a uniform answer
    (less ``sqrt(eps) / s_y``) and 0 for any answer as spread as the label. The standard deviation,
    not the variance, because the gradient of a variance dies just where it is needed, in an almost
    uniform answer. A sample whose label is uniform contributes 0.
    """
    eps = number(eps, "'variance': eps", SMALLEST)

    @masked
    def loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        # Of several channels the background's: p and 1 - p have the same spread.
        p = probabilities(logits)[:, :1].flatten(1)
        v = valid.flatten(1)
        count = v.sum(1).clamp(min=1)
        mean = (p * v).sum(1, keepdim=True) / count[:, None]
        spread = ((p - mean).square() * v).sum(1) / count
        share = foreground(target).flatten(1).sum(1) / count
        label = (share * (1 - share)).clamp(min=0)
        values = 1 - (spread + eps).sqrt() / label.clamp(min=SMALLEST).sqrt()
        return sample_mean(torch.where(label > 0, values.clamp(min=0), 0), valid)

    return loss
