"""A label map of many classes is made in memory that holds neither all classes nor a large part."""

from __future__ import annotations

import os
import subprocess
import sys

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""Each thread reserves address space of its own, which the limit would count."""

EXPORT = """
import resource, sys
from pathlib import Path
import numpy as np
from pipeline.data.model_space import ModelSpace, Resampling
from pipeline.grid import Alignment
from pipeline.inference.soft import SoftPrediction
from pipeline.inference.writing import decided

classes, small, large = 14, 40, 256
rng = np.random.default_rng(0)
soft = rng.random((classes, small, small, small), np.float32)
turned = sys.argv[1] == "turned"
turn = Alignment(axes=(2, 0, 1) if turned else (), flips=(0,) if turned else ())
space = ModelSpace(alignment=turn, resampling=Resampling(old=(large,) * 3, new=(small,) * 3))
held = int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0]) * 1024
limit = held + 200 * 2**20  # all classes of the large grid take 896 MiB, labels 16
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
labels = decided(SoftPrediction(case_id="case", heads={"main": soft}, space=space))
assert labels.shape == (large,) * 3, labels.shape
assert set(np.unique(labels)) == set(range(classes))
print(int(labels.astype(np.int64).sum()))
"""


def test_fourteen_classes_to_256_within_200_mib() -> None:
    found = []
    for turned in ("straight", "turned"):
        done = subprocess.run(
            [sys.executable, "-c", EXPORT, turned],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **ONE_THREAD},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(int(done.stdout))
    straight, turned_sum = found
    assert abs(straight - turned_sum) < 1e-4 * straight  # the same volume, seen from another side
