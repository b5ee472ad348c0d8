"""How much memory scoring takes, and how many processes may run for that.

The share of each metric is in its entry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline import processes
from pipeline.metrics import METRICS, of_images
from pipeline.records import NamedOptions

BASE = 300 << 20
"""Bytes of a worker before its first case."""

OPENED = 14
"""Bytes for each voxel of a case of labels before any metric.

Two files and their class numbers, with room for those of float files.
"""

OPENED_IMAGE = 20
"""Bytes for each voxel and channel of a case of images before any metric.

Files, and intensities of answer, target and input.
"""


def case_bytes(metrics: Sequence[NamedOptions], shape: Sequence[int]) -> int:
    """Memory that scoring a case takes.

    That is the case, and the metric that takes most, since they are computed one after another.

    Args:
        metrics: all of labels or all of images.
        shape: shape ``(C, *S)`` of the case.

    Returns:
        Bytes.
    """
    entries = [METRICS[part.name] for part in metrics]
    each = (OPENED_IMAGE if of_images(metrics) else OPENED) + max(
        (e.bytes_per_voxel for e in entries), default=0
    )
    return math.prod(shape) * each + math.prod(shape[1:]) * max(
        (e.bytes_per_pixel for e in entries), default=0
    )


def workers(bytes_of_a_case: int, asked: int | None = None) -> int:
    """Number of worker processes.

    Args:
        bytes_of_a_case: memory that the largest case takes.
        asked: number that the user wants; None: one a core, as far as memory holds the largest case
            in each.

    Returns:
        At least 1.
    """
    return processes.count(BASE + bytes_of_a_case, asked)
