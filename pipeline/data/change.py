"""Mask of what differs between a pair of images, for retouching: made from the pair itself.

The recipe is that of the project "ABPN patch-wise training": difference of brightness, threshold,
opening, dilation, blur. It finds what was changed by more than the threshold, so compression noise
and global grading must stay below that.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy

from pipeline import config
from pipeline.data.normalise import ends
from pipeline.morphology import dilate, opening
from pipeline.records import UserError

REDUCED = 32
"""Edge in pixels of the blocks of :func:`blocks`."""

LEVEL = 0.5
"""Value from which a pixel of a soft mask counts as changed."""

ROUNDING = 1e-3
"""Levels by which a difference must exceed the threshold: those of 16 bits (0.004 apart) and of
floats are rounded.
"""


def difference_mask(image: np.ndarray, target: np.ndarray, settings: config.Change) -> np.ndarray:
    """Soft mask of what differs between two images as their files have them.

    Each image is brought to levels of 0..255 by its own number type (floats are taken as 0..1), so
    one picture with 8 and 16 bits gives one mask. With ``opening: 0, dilation: 0, blur: 0`` the
    mask is 1 exactly where the magnified difference is above the threshold.

    Args:
        image: ``(C, Y, X)``, the picture before.
        target: ``(C, Y, X)``, the picture after.
        settings: ``data.change`` of the config.

    Returns:
        ``(1, Y, X)``, float32 in 0..1.

    Raises:
        UserError: where the shapes differ.

    Source:
        Project "ABPN patch-wise training".

    Example:
        >>> before = np.zeros((3, 8, 8), np.uint8)
        >>> after = before.copy()
        >>> after[:, 2, 5] = 200
        >>> mask = difference_mask(before, after, config.Change(opening=0, dilation=0, blur=0))
        >>> np.argwhere(mask).tolist()
        [[0, 2, 5]]
    """
    if image.shape != target.shape:
        raise UserError(
            f"a mask of change needs two images of one shape, got {image.shape} and {target.shape}."
            " Export both at one size."
        )
    changed = (
        difference(image, target, settings.by) > settings.threshold / settings.magnifier + ROUNDING
    )
    if settings.opening:
        changed = opening(changed, settings.opening)
    if settings.dilation:
        changed = dilate(changed, settings.dilation)
    mask = changed.astype(np.float32)
    if settings.blur and changed.any():
        mask = scipy.ndimage.gaussian_filter(mask, settings.blur, mode="nearest")
    return mask[None].clip(0, 1)


def difference(image: np.ndarray, target: np.ndarray, by: str) -> np.ndarray:
    """Difference of two images in levels of 0..255.

    Args:
        image: ``(C, Y, X)``.
        target: ``(C, Y, X)``, may be of another number type.
        by: ``value``: difference of the value of HSV; ``colour``: the greatest of all channels.

    Returns:
        ``(Y, X)``, float32.
    """
    if by == "value":
        return np.abs(_levels(image.max(axis=0)) - _levels(target.max(axis=0)))
    # Channel by channel: all of a large photograph at once is half a gigabyte of floats.
    return functools.reduce(
        np.maximum, (np.abs(_levels(a) - _levels(b)) for a, b in zip(image, target, strict=True))
    )


def _levels(array: np.ndarray) -> np.ndarray:
    """Intensities as float32 levels of 0..255, by the number type of the array."""
    white = 1.0 if array.dtype.kind == "f" else ends(array.dtype)[1]
    return array.astype(np.float32) * np.float32(255 / white)


def blocks(mask: np.ndarray) -> np.ndarray:
    """Index of a mask: which blocks of ``REDUCED`` pixels hold some of it.

    Args:
        mask: ``(1, Y, X)`` of :func:`difference_mask`.

    Returns:
        uint8 0/1 ``(1, ceil(Y / 32), ceil(X / 32))``.
    """
    height, width = mask.shape[1:]
    y, x = (np.arange(0, n, REDUCED) for n in (height, width))
    found = np.maximum.reduceat(np.maximum.reduceat(mask[0] >= LEVEL, y, axis=0), x, axis=1)
    return found[None].astype(np.uint8)
