"""Losses for label targets: overlap (dice, tversky), cross-entropy (ce, focal) and variance.

``target`` holds class indices ``(B, 1, *S)``. With one output channel the activation is a sigmoid
and every label above 0 is foreground; with K > 1 channels it is a softmax over classes 0
(background) to K - 1. A batch without a valid voxel gives 0.

dice, tversky and ce also take a soft target: floating-point numbers ``(B, 1, *S)`` in 0..1, the
wanted probability of the one output channel. Each is then least where the prediction equals the
target, so soft edges stay soft, and of a target of 0 and 1 the value is that of labels.
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
from pipeline.losses import many
from pipeline.losses.masked import Loss, masked, masked_mean, number, sample_mean, switch

SMALLEST = 1e-12
"""Least smoothing that still prevents 0 / 0."""

_Measure = Callable[[Tensor, Tensor], Tensor]


def probabilities(logits: Tensor) -> Tensor:
    """Sigmoid of one channel, softmax of several.

    Args:
        logits: ``(B, K, *S)``.

    Returns:
        Probabilities ``(B, K, *S)``.
    """
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def foreground(target: Tensor) -> Tensor:
    """Find where class indices are above 0.

    Args:
        target: class indices ``(B, 1, *S)``.

    Returns:
        bool ``(B, 1, *S)``.

    Raises:
        ValueError: for more than one channel.
    """
    if target.shape[1] != 1:
        raise ValueError(
            f"label target has shape {tuple(target.shape)}, must hold class indices in one channel:"
            " (B, 1, *S)."
        )
    return target > 0


def one_hot(target: Tensor, like: Tensor) -> Tensor:
    """Encode class indices in the shape and type of logits; one channel means foreground.

    Args:
        target: class indices ``(B, 1, *S)``.
        like: logits ``(B, K, *S)``.

    Returns:
        0 and 1, ``(B, K, *S)``.

    Raises:
        ValueError: for a target of more than one channel.

    Example:
        >>> one_hot(torch.tensor([[[0, 2]]]), torch.zeros(1, 3, 2)).tolist()
        [[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]]
    """
    inside, classes = foreground(target), like.shape[1]
    if classes == 1:
        return inside.to(like.dtype)
    index = torch.arange(classes, device=target.device).reshape(1, -1, *[1] * (target.ndim - 2))
    return (target == index).to(like.dtype)


def is_soft(target: Tensor, logits: Tensor) -> bool:
    """Check whether a target holds wanted probabilities rather than class indices.

    Args:
        target: class indices, or floating-point probabilities.
        logits: ``(B, K, *S)``.

    Returns:
        Whether ``target`` is of a floating-point type.

    Raises:
        ValueError: for a soft target unless both have one channel.
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
    """Soft Dice, ``1 - (2 TP + smooth) / (2 TP + FP + FN + smooth)``.

    The value is the mean over samples and classes. TP of a soft target is ``sum min(p, t)``, the
    product's value for labels: the loss is 0 at p = t; the product would push every p to 0 or 1.

    Args:
        smooth: added to numerator and denominator, at least 1e-12.
        batch: pool voxels of the whole batch first, steadier where samples hold little foreground.
        background: let class 0 of several take part.

    Returns:
        ``loss(logits, target, valid)``, see :data:`pipeline.losses.masked.Loss`.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: Milletari et al., 3DV 2016; for soft targets Wang et al., Dice Semimetric Losses, MICCAI
    2023.

    Example:
        >>> target = torch.tensor([[[[1, 1, 0, 0]]]])  # (B, 1, Y, X)
        >>> logits = torch.tensor([[[[20.0, -20.0, -20.0, -20.0]]]])
        >>> round(dice()(logits, target, torch.ones(1, 1, 1, 4)).item(), 4)
        0.3333
    """
    smooth = number(smooth, "'dice': smooth", SMALLEST)
    batch, background = switch(batch, "'dice': batch"), switch(background, "'dice': background")
    of_labels = DiceLoss(reduction="none", batch=batch, smooth_nr=smooth, smooth_dr=smooth)
    semimetric = _semimetric(0.5, 0.5, smooth / 2, batch)
    return _overlap((of_labels, semimetric), (0.5, 0.5, smooth / 2), batch, background)


def tversky(
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1e-5,
    batch: bool = False,
    background: bool = False,
) -> Loss:
    """Tversky index, ``1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth)``.

    0.5 and 0.5 is Dice.

    Args:
        alpha: weight of false positives (some papers swap it and ``beta``).
        beta: weight of false negatives: raise it for recall.
        smooth: as in :func:`dice`, as is TP of a soft target.
        batch: as in :func:`dice`.
        background: as in :func:`dice`.

    Returns:
        ``loss(logits, target, valid)``, see :data:`pipeline.losses.masked.Loss`.

    Raises:
        ConfigError: for an option that cannot be used, or where both weights are 0.

    Source: Salehi et al., MLMI 2017.
    """
    smooth = number(smooth, "'tversky': smooth", SMALLEST)
    alpha, beta = number(alpha, "'tversky': alpha"), number(beta, "'tversky': beta")
    if alpha == beta == 0:
        raise ConfigError(
            "loss 'tversky': alpha and beta are both 0, so that the loss is 0 for every answer."
            " Raise one of them."
        )
    batch = switch(batch, "'tversky': batch")
    background = switch(background, "'tversky': background")
    of_labels = TverskyLoss(
        reduction="none", alpha=alpha, beta=beta, batch=batch, smooth_nr=smooth, smooth_dr=smooth
    )
    semimetric = _semimetric(alpha, beta, smooth, batch)
    return _overlap((of_labels, semimetric), (alpha, beta, smooth), batch, background)


def _semimetric(alpha: float, beta: float, smooth: float, batch: bool) -> _Measure:
    """Tversky of soft sets, 0 exactly at p = t.

    ``TP = sum min(p, t)``, ``FP = sum max(p - t, 0)``, ``FN = sum max(t - p, 0)``. MONAI's
    ``soft_label`` is the same on paper, but finds TP as a difference of sums: in float32 a mask of
    a hundred pixels drowns in the rounding of a million.
    """

    def measure(p: Tensor, t: Tensor) -> Tensor:
        axes = [axis for axis in range(p.ndim) if axis > 1 or (batch and axis == 0)]
        both, over, under = (
            x.sum(axes)
            for x in (torch.minimum(p, t), functional.relu(p - t), functional.relu(t - p))
        )
        return 1 - (both + smooth) / (both + alpha * over + beta * under + smooth)

    return measure


def _overlap(
    measures: tuple[_Measure, _Measure],
    weights: tuple[float, float, float],
    batch: bool,
    background: bool,
) -> Loss:
    """Mean of one of two measures: the first for labels, the second for soft targets.

    A measure gives one value for each sample (unless ``batch``) and class. ``weights`` are those of
    the measure, alpha, beta and smooth, for many classes.
    """

    @masked
    def loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        soft = is_soft(target, logits)
        first = 1 if logits.shape[1] > 1 and not background else 0
        if logits.shape[1] > many.MANY:
            foreground(target)  # its shape is checked
            values = _of_many(many.class_sums(logits, target, valid), weights, batch)[..., first:]
            return values.mean() if batch else sample_mean(values, valid)
        p = (probabilities(logits) * valid)[:, first:]
        y = ((target.to(logits.dtype) if soft else one_hot(target, logits)) * valid)[:, first:]
        values = measures[soft](p, y)
        return values.mean() if batch else sample_mean(values, valid)

    return loss


def _of_many(
    sums: tuple[Tensor, Tensor, Tensor], weights: tuple[float, float, float], batch: bool
) -> Tensor:
    """The measure ``(B, K)``, or ``(K,)`` for a whole batch, from soft counts of each class."""
    alpha, beta, smooth = weights
    both, over, under = (s.sum(0) if batch else s for s in sums)
    return 1 - (both + smooth) / (both + alpha * over + beta * under + smooth)


def ce(*, positive_weight: float = 1.0) -> Loss:
    """Cross-entropy, mean over valid voxels: binary for one channel, softmax for several.

    The mean divides by the number of valid voxels whatever ``positive_weight``. At p = t of a soft
    target t the value is the entropy of t.

    Args:
        positive_weight: factor on the loss of foreground voxels (every class but 0); a voxel of a
            soft target t has the factor ``1 + (positive_weight - 1) t``.

    Returns:
        ``loss(logits, target, valid)``, see :data:`pipeline.losses.masked.Loss`.

    Raises:
        ConfigError: for a weight that is negative or no number.

    Example:
        >>> logits, target = torch.zeros(1, 2, 1, 3), torch.tensor([[[[0, 1, 1]]]])
        >>> round(ce()(logits, target, torch.ones(1, 1, 1, 3)).item(), 4)
        0.6931
    """
    weight = number(positive_weight, "'ce': positive_weight")

    @masked
    def loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        if is_soft(target, logits):
            t = target.to(logits.dtype)
            values = functional.binary_cross_entropy_with_logits(logits, t, reduction="none")
            return masked_mean((1 + (weight - 1) * t) * values, valid)
        if logits.shape[1] > many.MANY:
            values = -many.log_probability(logits, target)
            return masked_mean(torch.where(foreground(target), weight * values, values), valid)
        y = one_hot(target, logits)
        if logits.shape[1] == 1:
            values = functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
        else:
            # A product with the one-hot target, because nll_loss in 2D is not reproducible on CUDA.
            values = -(functional.log_softmax(logits, 1) * y).sum(1, keepdim=True)
        return masked_mean(torch.where(foreground(target), weight * values, values), valid)

    return loss


def focal(*, gamma: float = 2.0, alpha: float | None = None) -> Loss:
    """Focal loss ``-(1 - p_t)^gamma log p_t``, mean over valid voxels.

    For K classes the value is K times that of MONAI's mean, which divides by channels too.

    Args:
        gamma: 0, which is cross-entropy, or at least 1 (between, the gradient is infinite at p_t =
            1).
        alpha: weight of foreground in [0, 1], ``1 - alpha`` is that of background; None: both count
            1.

    Returns:
        ``loss(logits, target, valid)``, see :data:`pipeline.losses.masked.Loss`.

    Raises:
        ConfigError: for an option that cannot be used.

    Source: Lin et al., ICCV 2017.
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
        if logits.shape[1] > many.MANY:
            log_p = many.log_probability(logits, target)
            values = -((1 - log_p.exp()) ** gamma) * log_p
            if alpha is not None:
                values = torch.where(foreground(target), alpha * values, (1 - alpha) * values)
            return masked_mean(values, valid)
        measure = sigmoid_focal_loss if logits.shape[1] == 1 else softmax_focal_loss
        values = measure(logits, one_hot(target, logits), gamma, alpha)
        return masked_mean(values.sum(1, keepdim=True), valid)

    return loss


def variance(*, eps: float = 1e-8) -> Loss:
    """Penalise predictions that are more uniform than the label: ``max(0, 1 - s_p / s_y)``.

    ``s_p = sqrt(var(p) + eps)`` is the standard deviation of the foreground probability p over the
    valid voxels of a sample, ``s_y`` that of its binary label; the value is the mean over samples.
    It is 1 for a uniform prediction (less ``sqrt(eps) / s_y``) and 0 for any prediction as spread
    as the label. The standard deviation, not the variance, because the gradient of a variance
    vanishes just where it is needed, in an almost uniform prediction. A sample whose label is
    uniform contributes 0.

    Args:
        eps: added to the variance of p, at least 1e-12.

    Returns:
        ``loss(logits, target, valid)``, see :data:`pipeline.losses.masked.Loss`.

    Raises:
        ConfigError: for an ``eps`` that cannot be used.
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
