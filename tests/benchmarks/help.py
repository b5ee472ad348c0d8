"""Seconds until ``--help`` of each command has answered, and until ``import pipeline`` is done:
medians of seven processes.

    python tests/benchmarks/help.py

The start of the interpreter is included; its own time stands in the last line.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from pipeline.__main__ import COMMANDS


def median(*words: str) -> float:
    times = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args()
    print(f"{'python -m pipeline':<20}{median('-m', 'pipeline'):.3f} s")
    print(f"{'list configs':<20}{median('-m', 'pipeline.list', 'configs'):.3f} s")
    for command in COMMANDS:
        print(f"{command + ' --help':<20}{median('-m', f'pipeline.{command}', '--help'):.3f} s")
    print(f"{'import pipeline':<20}{median('-c', 'import pipeline'):.3f} s")
    print(f"{'an empty program':<20}{median('-c', ''):.3f} s")


if __name__ == "__main__":
    main()
