"""How near an image is to the one it should be: float ``(C, *S)`` with intensities in ``0..peak``, ``valid`` bool ``(*S)``.

Nothing is clipped. Elements where ``valid`` is False change no result. Without a valid element there is nothing to be wrong
about: the error is 0.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.metrics.region import same_shape
from pipeline.records import UserError

BEST_PSNR = 100.0
"""Decibels of an error too small for float32 images to show; identical images get this instead of infinity."""

_RADIUS = 5  # voxels on each side of an SSIM window: 3.5 standard deviations of 1.5, an edge of 11


def mae(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """Mean absolute error over channels and space."""
    return {"mae": _mean(np.abs(_error(prediction, target, valid)))}


def psnr(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None, peak: float = 1.0) -> dict[str, float]:
    """Peak signal-to-noise ratio ``10 log10(peak^2 / mse)`` in decibels, mse over channels and space; at most 100."""
    _require_peak(peak)
    mse = _mean(_error(prediction, target, valid) ** 2)
    return {"psnr": min(BEST_PSNR, 10 * math.log10(peak**2 / mse)) if mse else BEST_PSNR}


def ssim(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None, peak: float = 1.0) -> dict[str, float]:
    """Structural similarity (Wang et al. 2004): Gaussian windows of sigma 1.5 and edge 11, K1 = 0.01, K2 = 0.03.

    Windows are 2D for images and 3D for volumes, each channel on its own, population variances; the mean is over channels and
    over the windows that lie inside the image and whose centre is valid (none: 1). Ignored elements enter windows as 0 in both
    images. Raises UserError when a side is shorter than a window.
    """
    from skimage.metrics import structural_similarity

    _require_peak(peak)
    same_shape(prediction, target, valid, channel_axes=1)
    if min(target.shape[1:]) < 2 * _RADIUS + 1:
        raise UserError(f"ssim: the image has the shape {target.shape}; every side must be at least {2 * _RADIUS + 1}. Use psnr or mae.")
    inside = np.s_[:, *(slice(_RADIUS, -_RADIUS),) * (target.ndim - 1)]
    if valid is None:
        valid = np.ones(target.shape[1:], dtype=bool)
    counted = np.broadcast_to(valid, target.shape)[inside]
    similarity = structural_similarity(
        np.where(valid, prediction, 0).astype(np.float64),
        np.where(valid, target, 0).astype(np.float64),
        data_range=peak, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
    )[1]  # fmt: skip
    return {"ssim": float(similarity[inside][counted].mean()) if counted.any() else 1.0}


def _error(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    same_shape(prediction, target, valid, channel_axes=1)
    error = np.subtract(prediction, target, dtype=np.float64)
    return error if valid is None else error[np.broadcast_to(valid, error.shape)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0


def _require_peak(peak: float) -> None:
    if not 0 < peak < math.inf:
        raise UserError(f"peak is {peak!r}; it is the largest intensity of an image, 1 for 0..1, and must be positive.")
