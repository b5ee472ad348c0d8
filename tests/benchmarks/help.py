"""Seconds until ``--help`` of each command has answered: median of seven runs, start of the interpreter included.

python tests/benchmarks/help.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

for command in ("train", "predict", "ensemble", "evaluate", "submit", "report", "serve"):
    times = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", f"pipeline.{command}", "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    print(f"{command:<10}{statistics.median(times):.3f} s")
