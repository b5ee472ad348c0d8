"""How close an image is to its target.

Images are ``(C, *S)`` with intensities in ``0..peak``, ``valid`` is bool ``(*S)``. The package
scores an image as it is saved: clipped and rounded to its number type, then brought to 0..1 by
:func:`intensities`, against the target as its file has it, brought to 0..1 in the same way; hence
the default peak of 1. The functions themselves clip nothing. Elements where ``valid`` is False
change no result. Without a valid element there is nothing to be wrong about: the error is 0. A
valid element that is NaN or infinite is an error (ValueError), never left out.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import scipy
import skimage

from pipeline.data.normalise import ends
from pipeline.metrics.overlap import same_shape
from pipeline.records import UserError

BEST_PSNR = 100.0
"""Decibels of an error too small for float32 images to show.

Identical images get this instead of infinity.
"""

# Voxels on each side of an SSIM window: 3.5 standard deviations of 1.5, an edge of 11.
_RADIUS = 5
_SIGMA = 1.5
WINDOW = 2 * _RADIUS + 1
"""Edge of an SSIM window in pixels."""


def intensities(array: np.ndarray) -> np.ndarray:
    """Bring an image as its file has it to 0..1.

    Args:
        array: integers of any type, or floats.

    Returns:
        Integers divided by the largest value of their type, as float32; floats as they are.

    Example:
        >>> import numpy as np
        >>> intensities(np.array([0, 255], np.uint8)).tolist()
        [0.0, 1.0]
    """
    return (
        array
        if array.dtype.kind == "f"
        else np.divide(array, ends(array.dtype)[1], dtype=np.float32)
    )


def mae(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, float]:
    """Mean absolute error over channels and space.

    Args:
        prediction: image ``(C, *S)`` with intensities in ``0..peak``.
        target: image ``(C, *S)``, the ground truth.
        valid: bool ``(*S)``, the pixels that count; None: all.

    Returns:
        ``mae`` in units of intensity.

    Raises:
        UserError: the shapes differ.
        ValueError: a valid element is NaN or infinite.

    Example:
        >>> import numpy as np
        >>> mae(np.full((1, 2, 2), 0.5), np.zeros((1, 2, 2)))
        {'mae': 0.5}
    """
    return {"mae": _mean(np.abs(_error(prediction, target, valid)))}


def psnr(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None, peak: float = 1.0
) -> dict[str, float]:
    """Peak signal-to-noise ratio ``10 log10(peak^2 / mse)``, mse over channels and space.

    Args:
        prediction: image ``(C, *S)`` with intensities in ``0..peak``.
        target: image ``(C, *S)``, the ground truth.
        valid: bool ``(*S)``, the pixels that count; None: all.
        peak: largest possible intensity.

    Returns:
        ``psnr`` in decibels, at most 100.

    Raises:
        UserError: the shapes differ, or ``peak`` is not positive.
        ValueError: a valid element is NaN or infinite.

    Example:
        >>> import numpy as np
        >>> psnr(np.full((1, 2, 2), 0.1), np.zeros((1, 2, 2)))
        {'psnr': 20.0}
    """
    _require_peak(peak)
    mse = _mean(_error(prediction, target, valid) ** 2)
    return {"psnr": min(BEST_PSNR, 10 * math.log10(peak**2 / mse)) if mse else BEST_PSNR}


def ssim(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    peak: float = 1.0,
    kernel: Literal["channel", "3d"] = "channel",
) -> dict[str, float]:
    """Structural similarity by Gaussian windows of sigma 1.5 and edge 11.

    K1 = 0.01, K2 = 0.03, population variances. Papers use two conventions, which differ by 0.02 on
    the same images. ``kernel: channel``: windows are 2D for images and 3D for volumes, each channel
    on its own; the mean is over channels and over the windows that lie inside the image and whose
    centre is valid (none: 1). ``kernel: 3d``, images only, as in the tables of HINet, MIMO-UNet and
    NAFNet: windows of 11 x 11 x 11 over channels and space, borders (of the channels, too) repeated
    outwards, the mean over all elements that are valid. Ignored elements are 0 in windows of both.

    Args:
        prediction: image ``(C, *S)`` with intensities in ``0..peak``.
        target: image ``(C, *S)``, the ground truth.
        valid: bool ``(*S)``, the pixels that count; None: all.
        peak: largest possible intensity.
        kernel: ``channel`` or ``3d``, see above.

    Returns:
        ``ssim``, at most 1.

    Raises:
        UserError: the shapes differ, ``peak`` is not positive, ``kernel`` is unknown or ``3d`` for
            a volume, or (``channel``) a side is shorter than a window.
        ValueError: a valid element is NaN or infinite.

    Source:
        Wang, Bovik, Sheikh and Simoncelli 2004.

    Example:
        >>> import numpy as np
        >>> image = np.linspace(0, 1, 256).reshape(1, 16, 16)
        >>> ssim(image, image)
        {'ssim': 1.0}
    """
    _require_peak(peak)
    _error(prediction, target, valid)
    if kernel not in ("channel", "3d"):
        raise UserError(
            f"ssim: kernel is {kernel!r}; it is 'channel' (each channel by itself) or '3d' (over"
            " channels, too)."
        )
    valid = np.ones(target.shape[1:], dtype=bool) if valid is None else valid
    images = (
        np.where(valid, prediction, 0).astype(np.float64),
        np.where(valid, target, 0).astype(np.float64),
    )
    similarity, inside = (
        _over_channels(*images, peak) if kernel == "3d" else each_channel(*images, peak)
    )
    counted = np.broadcast_to(valid, target.shape)[inside]
    return {"ssim": float(similarity[inside][counted].mean()) if counted.any() else 1.0}


def each_channel(
    prediction: np.ndarray, target: np.ndarray, peak: float
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Compute the similarity map of :func:`ssim`, each channel by itself.

    Args:
        prediction: image ``(C, *S)``.
        target: image ``(C, *S)``.
        peak: largest possible intensity.

    Returns:
        The map ``(C, *S)``, and the slices of it whose windows lie inside the image.

    Raises:
        UserError: a side is shorter than ``WINDOW``.
    """
    if min(target.shape[1:]) < WINDOW:
        raise UserError(
            f"ssim: the image has the shape {target.shape}; every side must be at least {WINDOW}."
            " Use psnr or mae."
        )
    similarity = skimage.metrics.structural_similarity(
        prediction,
        target,
        data_range=peak,
        channel_axis=0,
        gaussian_weights=True,
        sigma=_SIGMA,
        use_sample_covariance=False,
        full=True,
    )[1]
    return similarity, np.s_[:, *(slice(_RADIUS, -_RADIUS),) * (target.ndim - 1)]


def _over_channels(
    prediction: np.ndarray, target: np.ndarray, peak: float
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Similarity map ``(C, Y, X)`` by windows that reach over channels; all of it counts."""
    if target.ndim != 3:
        raise UserError(
            f"ssim: kernel '3d' is for images (C, Y, X), got the shape {target.shape}. Leave the"
            " option out."
        )

    def mean(values: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(values, _SIGMA, mode="nearest", radius=_RADIUS)

    x, y = mean(prediction), mean(target)
    luminance = (2 * x * y + (0.01 * peak) ** 2) / (x**2 + y**2 + (0.01 * peak) ** 2)
    variances = mean(prediction**2) - x**2 + mean(target**2) - y**2
    covariance = mean(prediction * target) - x * y
    return (
        luminance * (2 * covariance + (0.03 * peak) ** 2) / (variances + (0.03 * peak) ** 2),
        np.s_[:, :, :],
    )


def _error(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Difference of the valid elements, float64 ``(C, *S)`` or, with a mask, flat."""
    same_shape(prediction, target, valid, channel_axes=1)
    error = np.subtract(prediction, target, dtype=np.float64)
    error = error if valid is None else error[np.broadcast_to(valid, error.shape)]
    bad = error.size - np.count_nonzero(np.isfinite(error))
    if bad:
        raise ValueError(
            f"{bad} of {error.size} pixels are NaN or infinite in the answer or the target: there"
            " is no score"
        )
    return error


def _mean(values: np.ndarray) -> float:
    """Mean of the values; 0 without any."""
    return float(values.mean()) if values.size else 0.0


def _require_peak(peak: float) -> None:
    if not 0 < peak < math.inf:
        raise UserError(
            f"peak is {peak!r}; it is the largest intensity of an image, 1 for 0..1, and must be"
            " positive."
        )
