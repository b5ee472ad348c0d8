"""Label maps as colours that colour-blind readers can tell apart: laid over an image, or as errors
against a truth.

Pictures are ``(Y, X, 3)`` floats from 0 to 1, label maps ``(Y, X)`` integers with 0 as background;
every function returns a new array.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Colour = tuple[int, int, int]
"""Red, green and blue from 0 to 255."""

GREEN: Colour = (0, 190, 130)
SKY: Colour = (86, 180, 233)
YELLOW: Colour = (240, 228, 66)
PURPLE: Colour = (204, 121, 167)
ORANGE: Colour = (240, 120, 0)
BLUE: Colour = (50, 120, 255)
WHITE: Colour = (225, 225, 225)
GREY: Colour = (90, 90, 90)
CLASSES = (GREEN, SKY, YELLOW, PURPLE, ORANGE, BLUE)
"""Colours of label values 1, 2, ...: those of Okabe and Ito (2008), brightened."""

FOUND, FALSE_POSITIVE, FALSE_NEGATIVE, WRONG_CLASS = WHITE, ORANGE, BLUE, PURPLE
"""What the colours of :func:`errors` mean."""


def rgb(plane: np.ndarray) -> np.ndarray:
    """``(C, Y, X)`` as ``(Y, X, 3)``: three channels as colours, of any other number the first as
    grey.
    """
    return np.moveaxis(plane if len(plane) == 3 else np.repeat(plane[:1], 3, axis=0), 0, -1)


def stretched(plane: np.ndarray) -> np.ndarray:
    """An image ``(C, Y, X)`` of any number type as a picture, black at its 0.5 and white at its
    99.5 percentile.

    All channels share their limits, so colours keep their hue. NaN is black; a constant image is
    black as well.
    """
    values = rgb(plane).astype(np.float32)
    finite = np.isfinite(values)
    low, high = (
        np.percentile(values[finite], [0.5, 99.5]).astype(np.float32) if finite.any() else (0, 1)
    )
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return np.clip((values - low) / (high - low if high > low else 1), 0, 1)


def tint(
    picture: np.ndarray, where: np.ndarray, colour: Sequence[int], strength: float
) -> np.ndarray:
    """``picture`` mixed with ``strength`` (0 to 1) of one colour in the difference_mask ``where``."""
    return np.where(
        where[..., None], (1 - strength) * picture + strength * np.asarray(colour) / 255, picture
    )


def classes(
    picture: np.ndarray,
    labels: np.ndarray,
    colours: Sequence[Colour] = CLASSES,
    strength: float = 0.6,
) -> np.ndarray:
    """``picture`` with each label above 0 tinted in its own colour; colours repeat after the last."""
    painted = (np.asarray(colours) / 255)[(labels.astype(np.int64) - 1) % len(colours)]
    return np.where((labels > 0)[..., None], (1 - strength) * picture + strength * painted, picture)


def hatch(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """``picture`` greyed under diagonal lines, eight pixels apart, in the difference_mask
    ``where``.
    """
    lines = where & (np.indices(where.shape).sum(axis=0) % 8 < 2)
    return tint(tint(picture, where, (110, 110, 110), 0.55), lines, (190, 190, 190), 0.6)


def errors(picture: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """What an answer found, invented, missed and confused, in the colours named above, over
    ``picture`` dimmed and without its colours.
    """
    shown = 0.5 * picture.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    real, said = truth > 0, answer > 0
    for where, colour in (
        (real & (truth == answer), FOUND),
        (~real & said, FALSE_POSITIVE),
        (real & ~said, FALSE_NEGATIVE),
        (real & said & (truth != answer), WRONG_CLASS),
    ):
        shown = tint(shown, where, colour, 0.85)
    return shown


def overlay(
    image: np.ndarray, labels: np.ndarray, colours: Sequence[Colour] = CLASSES
) -> np.ndarray:
    """An image ``(C, Y, X)`` of any number type, :func:`stretched`, under its tinted labels ``(Y,
    X)``: uint8 RGB ``(Y, X, 3)``.

    Raises ValueError where the two differ in size.
    """
    if image.shape[1:] != labels.shape:
        raise ValueError(
            f"an image of {image.shape[1:]} pixels cannot lie under labels of {labels.shape}"
        )
    return to_bytes(classes(stretched(image), labels, colours, 0.75))


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """A picture as uint8; NaN is black."""
    return np.rint(255 * np.clip(np.nan_to_num(picture), 0, 1)).astype(np.uint8)
