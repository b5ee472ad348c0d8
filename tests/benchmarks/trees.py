"""A command of two source trees in turn, each run in a process of its own: seconds, peak memory,
and whether both gave the same.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Side:
    """Seconds on the clock and of processors, peak memory in MiB, and what came out."""

    clock: float
    processors: float
    memory: float
    result: Any


def run(tree: Path, command: str, words: Sequence[object], result: Callable[[], Any]) -> Side:
    """``python -m pipeline.COMMAND`` of a tree; ``result`` reads what it left, afterwards."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    line = [sys.executable, "-m", f"pipeline.{command}", *map(str, words)]
    process = subprocess.Popen(
        line, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{tree}: {process.stderr.read().decode() if process.stderr else status}")
    clock = time.perf_counter() - began
    return Side(clock, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, result())


def report(what: str, sides: Mapping[str, Sequence[Side]]) -> None:
    """Print medians and ratios. Ends the benchmark where the two trees gave other results."""
    if len({json.dumps(side.result) for found in sides.values() for side in found}) > 1:
        raise SystemExit(f"{what}: the two trees give other results.")
    medians = {
        name: [
            statistics.median(getattr(s, what) for s in found)
            for what in ("clock", "processors", "memory")
        ]
        for name, found in sides.items()
    }
    for name, (clock, processors, memory) in medians.items():
        print(
            f"{what:<30}{name:<6}{clock:>8.2f} s, {processors:>8.2f} s of processors, peak"
            f" {memory:,.0f} MiB"
        )
    ratios = [new / old for new, old in zip(medians["new"], medians["old"], strict=True)]
    print(
        f"{what:<30}new / old: {ratios[0]:.2f} in time, {ratios[1]:.2f} of processors,"
        f" {ratios[2]:.2f} in peak memory",
        flush=True,
    )
