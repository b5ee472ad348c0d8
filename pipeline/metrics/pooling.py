"""Cases pooled: a metric of all voxels of all cases together, frame by frame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pipeline.metrics import METRICS
from pipeline.metrics.counts import Counts
from pipeline.records import METRICS_VERSION


def pool(cases: Iterable[Mapping[str, Counts]], names: Iterable[str], version: int = METRICS_VERSION) -> dict[str, float]:
    """The metrics among ``names`` that can be pooled, over all voxels of the cases, frame by frame; empty without a case.

    ``cases`` are counts by suffix. NaN in a frame without any voxel that counts (metrics version 1: as for an empty image).
    """
    total: dict[str, Counts] = {}
    for case in cases:
        for suffix, counts in case.items():
            total[suffix] = total[suffix] + counts if suffix in total else counts
    wanted = {name: pooled for name in names if (pooled := METRICS[name].pooled) is not None}
    return {
        f"{name}{suffix}": math.nan if version >= 2 and not counts.total else pooled.value(counts)
        for suffix, counts in total.items()
        for name, pooled in wanted.items()
    }
