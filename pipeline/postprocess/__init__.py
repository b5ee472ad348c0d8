"""Post-processing: from probabilities to labels.

:mod:`steps` are functions of arrays, :mod:`table` describes each, :mod:`lists` checks and adjusts
lists of them, and :mod:`driver` runs a list on an array in memory or on a larger one.
"""

from __future__ import annotations

from pipeline.postprocess.classes import each_class, mend_each_class
from pipeline.postprocess.driver import apply, check_memory, run, statistics
from pipeline.postprocess.lists import adjust, check, decided, faults
from pipeline.postprocess.sizes import in_mm3, in_voxels, problem_of, require_spacing
from pipeline.postprocess.steps import (
    argmax,
    closing,
    dust,
    fill_holes,
    hysteresis,
    instances,
    largest_component,
    opening,
    patch_sheets,
    regions,
    sheet_closing,
    thickness,
    threshold,
    walls,
    watertight,
)
from pipeline.postprocess.table import (
    POSTPROCESS,
    PostprocessStep,
    SearchSetting,
    StepSearch,
    VolumeOption,
    decides,
    resolved,
)

__all__ = [
    "POSTPROCESS",
    "PostprocessStep",
    "SearchSetting",
    "StepSearch",
    "VolumeOption",
    "adjust",
    "apply",
    "argmax",
    "check",
    "check_memory",
    "closing",
    "decided",
    "decides",
    "dust",
    "each_class",
    "faults",
    "fill_holes",
    "hysteresis",
    "in_mm3",
    "in_voxels",
    "instances",
    "largest_component",
    "mend_each_class",
    "opening",
    "patch_sheets",
    "problem_of",
    "regions",
    "require_spacing",
    "resolved",
    "run",
    "sheet_closing",
    "statistics",
    "thickness",
    "threshold",
    "walls",
    "watertight",
]
