"""The post-processing step ``min_radius``: removes streaks and films that ``dust`` finds too large.

::

    postprocess: [argmax, {name: min_radius, options: {radius: 2}}]
"""

import edt
import numpy as np
from scipy import ndimage
from skimage.measure import label

import pipeline as pl


def min_radius(array: np.ndarray, radius: float = 2.0) -> np.ndarray:
    """Remove components into which no ball of this radius fits, each class by itself.

    The border of the image cuts no ball: what lies beyond is taken for foreground.

    Args:
        array: labels ``(*S)``, 2D or 3D.
        radius: in voxels, from a voxel's centre to that of the nearest voxel outside: of a sheet
            one voxel thick 1, of one three voxels thick 2.

    Returns:
        Labels ``(*S)`` of the same type.
    """
    if not radius >= 0:
        raise ValueError(f"radius is {radius} voxels, must not be negative.")
    out = np.zeros_like(array)
    for number in np.unique(array[array > 0]):
        mask = array == number
        components = np.asarray(label(mask, connectivity=array.ndim))  # corners touch, too
        depth = edt.edt(mask, black_border=False)
        largest = ndimage.maximum(depth, components, np.arange(components.max() + 1))
        out[(largest >= radius)[components] & mask] = number
    return out


def tried(setting: pl.SearchSetting) -> list[dict[str, float]]:
    """Options that ``pipeline.tune`` tries; it also tries to leave the step out."""
    return [{"radius": 1.5}, {"radius": 2.0}, {"radius": 3.0}]


pl.register(
    "min_radius",
    pl.PostprocessStep(
        min_radius, bytes_per_voxel=30, search=pl.StepSearch(position=2.5, options=tried)
    ),
)
