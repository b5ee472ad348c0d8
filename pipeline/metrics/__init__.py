"""Metrics of whole cases by name: of label maps (``overlap``, ``surface``, ``topology``), of images
(``image``).
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
