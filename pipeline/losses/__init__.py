"""Losses by name, and the weighted sum of the terms of a config."""

from pipeline.losses.entry import Kind, LossEntry
from pipeline.losses.table import LOSSES, for_target, make, maps, reads
from pipeline.losses.weighted_sum import WeightedSum, check, faults, with_deep

__all__ = [
    "LOSSES",
    "Kind",
    "LossEntry",
    "WeightedSum",
    "check",
    "faults",
    "for_target",
    "make",
    "maps",
    "reads",
    "with_deep",
]
