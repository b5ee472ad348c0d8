"""Operations on binary masks of two and three axes.

A function takes a mask ``(*S)`` of any number type (non-zero is foreground), returns a new array
and leaves its argument alone. Connectivity is named as in 3D: 6 (faces), 18 (and edges), 26 (and
corners).
"""

from pipeline.morphology.betti import betti_numbers, euler_number
from pipeline.morphology.boundaries import watershed_boundaries
from pipeline.morphology.dilation import closing, dilate, erode, opening
from pipeline.morphology.labelling import (
    component_sizes,
    components,
    fill_holes,
    hysteresis,
    keep_largest,
    remove_small_components,
)
from pipeline.morphology.slabs import SlabArray

__all__ = [
    "SlabArray",
    "betti_numbers",
    "closing",
    "component_sizes",
    "components",
    "dilate",
    "erode",
    "euler_number",
    "fill_holes",
    "hysteresis",
    "keep_largest",
    "opening",
    "remove_small_components",
    "watershed_boundaries",
]
