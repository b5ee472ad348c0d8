"""Losses of many classes with as few arrays of ``(B, K, *S)`` as can be.

The usual formulas hold several: the one-hot target, products with it, and what the gradient needs
of each. Here one is kept besides the logits, of probabilities or their logarithms, and the target
stays class numbers. Values are those of the usual formulas up to rounding; few classes keep those,
so that their bits do not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MANY = 16
"""Number of channels above which losses are computed in this way."""


class _LogProbability(torch.autograd.Function):
    """Logarithm of the softmax at the label; only the log-softmax is kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        logs = logits.log_softmax(1)
        ctx.save_for_backward(logs, target)
        return torch.cat([_at(one, label) for one, label in zip(logs, target, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logs, target = ctx.saved_tensors
        given = gradients[0]
        out = logs.exp().mul_(-given)
        for k in range(logs.shape[1]):
            out[:, k : k + 1].add_(given * (target == k))
        return out, None


def _at(logs: Tensor, label: Tensor) -> Tensor:
    """Values of one sample ``(K, *S)`` at its labels ``(1, *S)``, as ``(1, 1, *S)``."""
    return logs.gather(0, label.long())[None]


def log_probability(logits: Tensor, target: Tensor) -> Tensor:
    """Logarithm of the softmax probability of each voxel's own class.

    Args:
        logits: ``(B, K, *S)``.
        target: class numbers from 0 to K - 1, ``(B, 1, *S)``.

    Returns:
        ``(B, 1, *S)``.

    Example:
        >>> log_probability(torch.zeros(1, 4, 2), torch.tensor([[[0, 3]]])).exp().tolist()
        [[[0.25, 0.25]]]
    """
    return _LogProbability.apply(logits, target)


class _ClassSums(torch.autograd.Function):
    """True and false positives and false negatives of each class; only the softmax is kept."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        p = logits.softmax(1)
        ctx.save_for_backward(p, target, valid)
        sums = torch.stack(list(_sums(p, target, valid)), 2)
        return sums[0], sums[1], sums[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        p, target, valid = ctx.saved_tensors
        space = (len(p), 1, *[1] * (p.ndim - 2))
        out = torch.empty_like(p)
        dot = torch.zeros_like(valid)
        inside = torch.empty_like(target, dtype=torch.bool)
        for k in range(p.shape[1]):
            both, over, under = (g[:, k].reshape(space) for g in gradients)
            torch.eq(target, k, out=inside)
            own = out[:, k : k + 1]
            own.copy_(torch.where(inside, both - under, over)).mul_(valid)
            dot.addcmul_(own, p[:, k : k + 1])
        return out.sub_(dot).mul_(p), None, None


def _sums(p: Tensor, target: Tensor, valid: Tensor) -> Iterator[Tensor]:
    """TP, FP and FN of each class, ``(3, B)``; all classes share the arrays in between."""
    axes = tuple(range(1, p.ndim))
    inside = torch.empty_like(target, dtype=torch.bool)
    found, both, true = (torch.empty_like(valid) for _ in range(3))
    for k in range(p.shape[1]):
        torch.eq(target, k, out=inside)
        torch.mul(p[:, k : k + 1], valid, out=found)
        torch.mul(found, inside, out=both)
        torch.mul(valid, inside, out=true)
        parts = (both, found.sub_(both), true.sub_(both))
        yield torch.stack([part.sum(axes) for part in parts])


def class_sums(logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Soft counts of each class under a softmax.

    Args:
        logits: ``(B, K, *S)``.
        target: class numbers, ``(B, 1, *S)``.
        valid: 1 where a voxel counts, else 0, ``(B, 1, *S)``.

    Returns:
        Sums of p over voxels of the class, of p over others, and of 1 - p over those of the class;
        each ``(B, K)``.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4), torch.tensor([[[0, 0, 1, 1]]])
        >>> [s.tolist() for s in class_sums(logits, target, torch.ones(1, 1, 4))]
        [[[1.0, 1.0]], [[1.0, 1.0]], [[1.0, 1.0]]]
    """
    return _ClassSums.apply(logits, target, valid)
