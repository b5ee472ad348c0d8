"""How well a photograph was retouched: the part that was to change, and apart from it the rest.

Images are ``(C, *S)`` on 0..1, as in ``image``. A retoucher changes a few per cent of the pixels,
so that the PSNR of the whole image says little but how well the rest was copied; here the two sides
of the mask of change are scored each by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.metrics.image import WINDOW, each_channel, mae, psnr
from pipeline.metrics.overlap import dice, same_shape
from pipeline.records import UserError

PREDICTED = 0.5
"""Probability from which a pixel of a predicted mask counts as changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retouched:
    """What a retouched case has besides its prediction and its target.

    Args:
        source: the input ``(C, *S)``.
        mask: bool ``(*S)``, what was to change.
        predicted: probability ``(*S)`` of the mask; None: the network gives none.
    """

    source: np.ndarray
    mask: np.ndarray
    predicted: np.ndarray | None = None


def retouch(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    change: Retouched,
) -> dict[str, float]:
    """Score an image inside and outside the mask of change.

    A side without pixels has no score: NaN, which means over cases leave out.

    Args:
        prediction: image ``(C, *S)`` on 0..1.
        target: image ``(C, *S)``, the ground truth.
        valid: bool ``(*S)``, the pixels that count; None: all.
        change: input and mask of the case.

    Returns:
        Scores by name:

        - ``psnr_in``, ``psnr_out``: PSNR of the pixels inside and outside in dB, at most 100;
        - ``ssim_in``, ``ssim_out``: the similarity map of the whole images
          (:func:`pipeline.metrics.image.ssim`, each channel by itself), averaged over the windows
          that lie in the image and whose centre is inside and outside. NaN where no window fits;
        - ``leak``: mean absolute difference of the prediction from the *input* outside: what was
          changed although it should not be;
        - ``mask_dice``, only with a predicted mask: its Dice from a probability of 0.5 on. Both
          empty: 1, one empty: 0;
        - ``mask_share``: share of pixels that are inside;
        - ``empty_mask``: 1 where no pixel is inside, else 0; its mean is the share of such cases.

    Raises:
        UserError: shapes differ.
        ValueError: a pixel that counts is NaN or infinite.
    """
    _require_shapes(target, change)
    same_shape(prediction, target, valid, channel_axes=1)
    counted = np.ones(change.mask.shape, bool) if valid is None else valid
    inside, outside = change.mask & counted, ~change.mask & counted
    scores = {
        "psnr_in": psnr(prediction, target, inside)["psnr"] if inside.any() else math.nan,
        "psnr_out": psnr(prediction, target, outside)["psnr"] if outside.any() else math.nan,
    }
    scores |= zip(
        ("ssim_in", "ssim_out"),
        _similarity(prediction, target, counted, (inside, outside)),
        strict=True,
    )
    scores["leak"] = mae(prediction, change.source, outside)["mae"] if outside.any() else math.nan
    if change.predicted is not None:
        scores["mask_dice"] = dice(change.predicted >= PREDICTED, change.mask, valid)["dice"]
    share = float(inside.sum() / counted.sum()) if counted.any() else math.nan
    return {**scores, "mask_share": share, "empty_mask": float(not inside.any())}


def _require_shapes(target: np.ndarray, change: Retouched) -> None:
    """Raise UserError unless the input has the shape of the target, the masks its space axes."""
    space = target.shape[1:]
    for what, shape, wanted in (
        ("input", change.source.shape, target.shape),
        ("mask of change", change.mask.shape, space),
        ("predicted mask", space if change.predicted is None else change.predicted.shape, space),
    ):
        if shape != wanted:
            raise UserError(
                f"retouch: the {what} has the shape {shape}, the target asks for {wanted}. They"
                " must be of the same case."
            )


def _similarity(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray,
    sides: tuple[np.ndarray, np.ndarray],
) -> tuple[float, float]:
    """Mean similarity over the window centres of each side; channel by channel, to save memory."""
    if min(valid.shape) < WINDOW:
        return math.nan, math.nan
    sums, counts = np.zeros(2), np.zeros(2)
    for pair in zip(prediction, target, strict=True):
        one, other = (np.where(valid, channel, 0).astype(np.float64)[None] for channel in pair)
        similarity, inner = each_channel(one, other, 1.0)
        sums += np.array([similarity[inner].sum(where=side[None][inner]) for side in sides])
        counts += np.array([np.count_nonzero(side[None][inner]) for side in sides])
    first, second = (float(s / n) if n else math.nan for s, n in zip(sums, counts, strict=True))
    return first, second


def empty_masks(cases: Iterable[Mapping[str, Any]]) -> tuple[int, int] | None:
    """Count the cases with an empty mask of change.

    Args:
        cases: scores of each case.

    Returns:
        Cases with an empty mask, and cases of which that is known; None where it is of none.
    """
    known = [scores["empty_mask"] for scores in cases if scores.get("empty_mask") is not None]
    return (sum(value == 1 for value in known), len(known)) if known else None


def note(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    """Make the line below a table that says how many cases have an empty mask.

    Args:
        cases: scores of each case.

    Returns:
        One line, or none where ``retouch`` is not among the metrics.

    Example:
        >>> note([{"empty_mask": 1.0}, {"empty_mask": 0.0}]), note([{"psnr": 40.0}])
        (['1 of 2 cases have an empty mask: psnr_in and ssim_in leave them out'], [])
    """
    found = empty_masks(cases)
    return (
        []
        if found is None
        else [
            f"{found[0]} of {found[1]} cases have an empty mask: psnr_in and ssim_in leave them out"
        ]
    )
