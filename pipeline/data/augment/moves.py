"""Geometric transforms that MONAI lacks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    MapTransform,
    RandAffined,
    RandomizableTransform,
    Resample,
)
from monai.transforms.utils import create_grid
from monai.utils import TransformBackends, convert_to_dst_type
from scipy.interpolate import BSpline

from pipeline.data.augment.keys import Keys


class RandTypedAffined(RandAffined):
    """MONAI's RandAffined, except that every entry keeps its number type.

    MONAI returns labels as float32, even where it does nothing.
    """

    def __call__(
        self, data: Mapping[Hashable, Any], lazy: bool | None = None
    ) -> dict[Hashable, Any]:
        out = super().__call__(data, lazy)
        return {
            **out,
            **{key: convert_to_dst_type(out[key], data[key])[0] for key in self.key_iterator(out)},
        }


class RandElasticd(RandomizableTransform, MapTransform):
    """Free-form deformation by a cubic B-spline, the same for all of ``keys.every``.

    Control points ``spacing`` voxels apart are shifted by up to ``magnitude`` voxels along each
    axis; the weights of a B-spline are positive and sum to 1, so no voxel moves further. Of MONAI's
    own, Rand2DElasticd moves voxels at the border even for magnitude 0 (by 1.5 at spacing 32),
    Rand3DElasticd's magnitude has no unit and its 128³ take seconds, and RandGridDistortiond warps
    each axis alone.

    Args:
        keys: entries of a sample, with modes and patch size.
        prob: probability, 0 to 1.
        spacing: voxels between control points.
        magnitude: largest shift of a control point along an axis, in voxels.

    Source:
        Rueckert et al., IEEE TMI 18:712, 1999.
    """

    def __init__(self, keys: Keys, prob: float, spacing: float, magnitude: float) -> None:
        MapTransform.__init__(self, keys.every)
        RandomizableTransform.__init__(self, prob)
        self.modes, self.magnitude = keys.modes, magnitude
        self.weights = [_spline(n, spacing) for n in keys.size]
        self.resample = Resample(padding_mode="reflection", dtype=np.float32)
        self.shifts = np.zeros(0)

    def randomize(self, data: Any = None) -> None:
        """Draw whether to deform, and the shifts of the control points.

        Args:
            data: not used.
        """
        super().randomize(None)
        if self._do_transform:
            points = (len(self.weights), *(w.shape[1] for w in self.weights))
            self.shifts = self.R.uniform(-self.magnitude, self.magnitude, points)

    def field(self) -> np.ndarray:
        """Shift of every voxel.

        Returns:
            ``(axes, *S)`` in voxels: the output at x is the input at x + shift.
        """
        out = self.shifts
        for axis, weights in enumerate(self.weights, start=1):
            out = np.moveaxis(np.tensordot(weights, out, axes=(1, axis)), 0, axis)
        return out

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize()
        if not self._do_transform:
            return out
        coordinates = torch.as_tensor(
            create_grid(
                [len(w) for w in self.weights], dtype=np.float32, backend=TransformBackends.TORCH
            )
        )
        coordinates[:-1] += torch.as_tensor(self.field(), dtype=torch.float32)
        for key, mode in self.key_iterator(out, self.modes):
            out[key] = convert_to_dst_type(
                self.resample(out[key], coordinates, mode=mode), data[key]
            )[0]
        return out


def _spline(size: int, spacing: float) -> np.ndarray:
    """Weights of the control points of a uniform cubic B-spline at the voxels of one axis.

    ``(size, points)``; rows sum to 1.
    """
    positions = np.arange(size) / spacing
    knots = np.arange(-3.0, np.floor(positions[-1]) + 5)
    return BSpline.design_matrix(positions, knots, 3).toarray()
