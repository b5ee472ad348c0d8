"""Metrics of whole cases by name.

Label maps are compared in ``overlap``, ``surface`` and ``topology``, images in ``image``.
"""

from pipeline.metrics.entry import MetricEntry
from pipeline.metrics.evaluation import evaluate, evaluate_frames, pool
from pipeline.metrics.table import (
    METRICS,
    PROBABILITIES,
    better,
    bound,
    directions,
    in_millimetres,
    millimetre_options,
    names_of,
    needing,
    of_images,
    units,
)

__all__ = [
    "METRICS",
    "PROBABILITIES",
    "MetricEntry",
    "better",
    "bound",
    "directions",
    "evaluate",
    "evaluate_frames",
    "in_millimetres",
    "millimetre_options",
    "names_of",
    "needing",
    "of_images",
    "pool",
    "units",
]
