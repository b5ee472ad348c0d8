"""Losses by name, and the weighted sum of the terms of a config."""

from pipeline.losses.deep import NO_HEADS, main_factor, with_deep
from pipeline.losses.entry import Kind, LossEntry
from pipeline.losses.table import LOSSES, for_target, make, maps, reads
from pipeline.losses.weighted_sum import WeightedSum, check, faults

__all__ = [
    "LOSSES",
    "NO_HEADS",
    "Kind",
    "LossEntry",
    "WeightedSum",
    "check",
    "faults",
    "for_target",
    "main_factor",
    "make",
    "maps",
    "reads",
    "with_deep",
]
