"""Run two sides of a comparison in turn, each in a process of its own, and print medians, ratio and
peak memory.

A benchmark module defines ``SIDES``: name -> function that does the work and returns the number to
compare.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


def measure(
    script: str,
    sides: Mapping[str, Callable[[Path], float]],
    prepare: Callable[[Path], None],
    unit: str,
    argv: list[str],
) -> None:
    """``script --side NAME FOLDER`` runs one side and prints JSON; without arguments, prepare and
    run all sides in turn.
    """
    if argv[:1] == ["--side"]:
        value = sides[argv[1]](Path(argv[2]))
        print(
            json.dumps(
                {"value": value, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
            )
        )
        return
    text = sys.modules["__main__"].__doc__
    formatter = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=text, formatter_class=formatter)
    p.add_argument("folder", type=Path, nargs="?", default=Path("/tmp/pipeline_benchmark"))
    p.add_argument("rounds", type=int, nargs="?", default=3)
    given = p.parse_args(argv)
    folder, rounds = given.folder, given.rounds
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name in sides:
            done = subprocess.run(
                [sys.executable, script, "--side", name, str(folder)],
                stdout=subprocess.PIPE,  # errors are shown
                text=True,
                check=True,
            )
            rows[name].append(json.loads(done.stdout.splitlines()[-1]))
    first, *others = sides
    for name, results in rows.items():
        values = [r["value"] for r in results]
        print(
            f"{name:<28}{statistics.median(values):>12.3f} {unit} (min {min(values):.3f}, max"
            f" {max(values):.3f}), peak {statistics.median(r['peak'] for r in results):,.0f} MiB"
        )
    for name in others:
        value, peak = (
            statistics.median(r[k] for r in rows[first])
            / statistics.median(r[k] for r in rows[name])
            for k in ("value", "peak")
        )
        print(
            f"{first} / {name}: {value:.2f} in {unit}, {peak:.2f} in peak memory ({rounds} rounds"
            " in turn)"
        )
