"""Labels in memory, class numbers of any type or MONAI's one-hot form, as class numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def class_numbers(
    labels: Tensor,
    classes: int | None,
    ignore_label: int | None = None,
    role: str = "the target",
    suggestion: str = "",
) -> Tensor:
    """Class numbers of labels, checked.

    Args:
        labels: ``(B, 1, *S)`` class numbers of any type, or ``(B, K, *S)`` one-hot, ``K > 1``.
        classes: how many there are, background counted; None: any number from 0 on is one.
        ignore_label: number that may occur besides; of one-hot labels a voxel without a class.
        role: what messages call the labels.
        suggestion: what messages advise where a number is no class.

    Returns:
        int64 ``(B, 1, *S)``.

    Raises:
        ValueError: for fractions, numbers that are no class, and channels that are not one-hot.

    Example:
        >>> class_numbers(torch.tensor([[[0.0, 2.0, 1.0]]]), 3).tolist()
        [[[0, 2, 1]]]
        >>> class_numbers(torch.tensor([[[1, 0, 0], [0, 1, 0]]]), 2, ignore_label=255).tolist()
        [[[0, 1, 255]]]
    """
    if labels.shape[1] > 1:
        return _decoded(labels, ignore_label, role)
    numbers = labels.long()
    fraction = numbers != labels  # NaN, too
    wrong = numbers < 0 if classes is None else (numbers < 0) | (numbers >= classes)
    if ignore_label is not None:
        wrong &= numbers != ignore_label
    wrong |= fraction
    if wrong.any():  # the one point where a GPU is waited for
        most = "on" if classes is None else f"to {classes - 1}"
        raise ValueError(
            f"{role} holds {labels[wrong][0].item():g}, must hold whole class numbers from 0"
            f" {most}. {suggestion}".rstrip()
        )
    return numbers


def _decoded(labels: Tensor, ignore_label: int | None, role: str) -> Tensor:
    """Class numbers of one-hot labels; ``ignore_label`` where no channel is set."""
    count = (labels == 1).sum(1, keepdim=True)
    none = count == 0
    wrong = (count > 1) | ((labels != 0) & (labels != 1)).any(1, keepdim=True)
    if ignore_label is None:
        wrong |= none
    if wrong.any():
        raise ValueError(
            f"{role} {tuple(labels.shape)} is not one-hot: in {int(wrong.sum())} voxels not exactly"
            " one channel is 1. Probabilities need argmax(1, keepdim=True) first; voxels without a"
            " class an ignore_label; channels that overlap, or have no background, one call for"
            " each: x[:, k:k + 1]."
        )
    numbers = labels.to(torch.uint8).argmax(1, keepdim=True)
    return numbers if ignore_label is None else numbers.masked_fill(none, ignore_label)
