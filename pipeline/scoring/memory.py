"""How much memory scoring takes, and how many processes it may have for that.

Each metric's share stands in its entry.
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
"""Bytes for each voxel of a case of labels, before any metric: two files and their class numbers,
with room for those of floats.
"""

OPENED_IMAGE = 20
"""Bytes for each voxel and channel of a case of images: files, and intensities of answer, target
and input.
"""


def case_bytes(metrics: Sequence[NamedOptions], shape: Sequence[int]) -> int:
    """Memory that scoring a case ``(C, *S)`` takes: the case, and the metric that takes most, since
    they come one after another.
    """
    entries = [METRICS[part.name] for part in metrics]
    each = (OPENED_IMAGE if of_images(metrics) else OPENED) + max(
        (e.bytes_per_voxel for e in entries), default=0
    )
    return math.prod(shape) * each + math.prod(shape[1:]) * max(
        (e.bytes_per_pixel for e in entries), default=0
    )


def workers(bytes_of_a_case: int, asked: int | None = None) -> int:
    """Worker processes: as many as asked, else one a core, as far as memory holds the largest case
    in each.
    """
    return processes.count(BASE + bytes_of_a_case, asked)
