"""Label maps in colours that colour-blind readers can tell apart, over an image or as errors.

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
    """Make a picture of a plane's channels.

    Args:
        plane: ``(C, Y, X)``.

    Returns:
        ``(Y, X, 3)``: three channels as colours; of any other number the first as grey.
    """
    return np.moveaxis(plane if len(plane) == 3 else np.repeat(plane[:1], 3, axis=0), 0, -1)


def stretched(plane: np.ndarray) -> np.ndarray:
    """Make a picture of an image of any number type.

    Black is its 0.5 and white its 99.5 percentile. All channels share these limits, so colours keep
    their hue. NaN is black; a constant image is black as well.

    Args:
        plane: ``(C, Y, X)``.

    Returns:
        float32 ``(Y, X, 3)`` from 0 to 1.
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
    """Mix one colour into a part of a picture.

    Args:
        picture: ``(Y, X, 3)``.
        where: bool ``(Y, X)``, the pixels to tint.
        colour: red, green and blue from 0 to 255.
        strength: share of the colour, 0 to 1.

    Returns:
        ``(Y, X, 3)``.
    """
    return np.where(
        where[..., None], (1 - strength) * picture + strength * np.asarray(colour) / 255, picture
    )


def classes(
    picture: np.ndarray,
    labels: np.ndarray,
    colours: Sequence[Colour] = CLASSES,
    strength: float = 0.6,
) -> np.ndarray:
    """Tint each label above 0 in its own colour.

    Args:
        picture: ``(Y, X, 3)``.
        labels: ``(Y, X)``.
        colours: those of labels 1, 2, ...; they repeat after the last.
        strength: share of the colour, 0 to 1.

    Returns:
        ``(Y, X, 3)``.
    """
    painted = (np.asarray(colours) / 255)[(labels.astype(np.int64) - 1) % len(colours)]
    return np.where((labels > 0)[..., None], (1 - strength) * picture + strength * painted, picture)


def hatch(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Grey out a part of a picture under diagonal lines, eight pixels apart.

    Args:
        picture: ``(Y, X, 3)``.
        where: bool ``(Y, X)``, the pixels to hatch.

    Returns:
        ``(Y, X, 3)``.
    """
    lines = where & (np.indices(where.shape).sum(axis=0) % 8 < 2)
    return tint(tint(picture, where, (110, 110, 110), 0.55), lines, (190, 190, 190), 0.6)


def errors(picture: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Draw where a prediction differs from the truth, over the picture dimmed to grey.

    The colours are those named above: found, false positive, false negative, wrong class.

    Args:
        picture: ``(Y, X, 3)``.
        truth: labels ``(Y, X)``.
        answer: predicted labels ``(Y, X)``.

    Returns:
        ``(Y, X, 3)``.
    """
    shown = 0.5 * picture.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    real, predicted = truth > 0, answer > 0
    for where, colour in (
        (real & (truth == answer), FOUND),
        (~real & predicted, FALSE_POSITIVE),
        (real & ~predicted, FALSE_NEGATIVE),
        (real & predicted & (truth != answer), WRONG_CLASS),
    ):
        shown = tint(shown, where, colour, 0.85)
    return shown


def overlay(
    image: np.ndarray, labels: np.ndarray, colours: Sequence[Colour] = CLASSES
) -> np.ndarray:
    """Draw labels over an image, :func:`stretched`, each in its own colour.

    Args:
        image: ``(C, Y, X)`` of any number type.
        labels: ``(Y, X)``.
        colours: those of labels 1, 2, ...; they repeat after the last.

    Returns:
        uint8 RGB ``(Y, X, 3)``.

    Raises:
        ValueError: where the two differ in size.

    Example:
        >>> overlay(np.zeros((1, 4, 4)), np.eye(4, dtype=int)).shape
        (4, 4, 3)
    """
    if image.shape[1:] != labels.shape:
        raise ValueError(
            f"an image of {image.shape[1:]} pixels cannot lie under labels of {labels.shape}"
        )
    return to_bytes(classes(stretched(image), labels, colours, 0.75))


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """Convert a picture to 8 bits.

    Args:
        picture: floats, black at 0 and white at 1; values beyond are clipped, NaN is black.

    Returns:
        uint8 of the same shape.
    """
    return np.rint(255 * np.clip(np.nan_to_num(picture), 0, 1)).astype(np.uint8)
