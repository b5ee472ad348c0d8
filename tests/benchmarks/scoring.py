"""Scoring folders of answers by two source trees in turn: 22 cubes and 40 pictures, made here; medians, ratio, peak memory.

    python tests/benchmarks/scoring.py OLD NEW [--folder DIR] [--rounds 3] [--only cubes]

Each run is the command in a process of its own. Peak memory is that of the largest process. The numbers of both trees have to be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
import tifffile

METRICS = {"cubes": ("dice", "surface_dice", "competition"), "pictures": ("dice", "surface_dice", "hd95")}
SHAPES = {"cubes": (160,) * 3, "pictures": (512,) * 2}
COUNTS = {"cubes": 22, "pictures": 40}
RUNS = (("cubes", 1), ("cubes", 2), ("pictures", 1), ("pictures", 2))


@dataclass(frozen=True, slots=True)
class Side:
    """Seconds on the clock and of processors, peak memory in MiB, and the numbers."""

    clock: float
    processors: float
    memory: float
    scores: dict


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("old", type=Path, help="source tree")
    p.add_argument("new", type=Path, help="source tree")
    p.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "pipeline_scoring")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", choices=sorted(SHAPES))
    arguments = p.parse_args()
    for kind, workers in RUNS:
        if arguments.only not in (None, kind):
            continue
        prepare(arguments.folder / kind, SHAPES[kind], COUNTS[kind])
        sides: dict[str, list[Side]] = {"old": [], "new": []}
        for _ in range(arguments.rounds):
            for name, found in sides.items():
                found.append(evaluate(getattr(arguments, name), arguments.folder / kind, METRICS[kind], workers))
        report(f"{COUNTS[kind]} {kind}, {workers} worker{'s' if workers > 1 else ''}", sides)


def prepare(folder: Path, shape: tuple[int, ...], count: int) -> None:
    """Smooth random masks with a border that is ignored, and answers that differ from them a little; made once."""
    for name in ("labels", "answers"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for n in range(count):
        label_file, answer_file = (folder / name / f"case{n:02}.tif" for name in ("labels", "answers"))
        if answer_file.is_file():
            continue
        rng = np.random.default_rng(n)
        coarse = rng.random([s // 16 for s in shape])
        grey = scipy.ndimage.zoom(coarse, [s / c for s, c in zip(shape, coarse.shape, strict=True)], order=1)
        label = (grey > 0.5).astype(np.uint8)
        label[..., :4] = 2
        answer = ((grey > 0.49) ^ (rng.random(shape) < 1e-5)).astype(np.uint8)
        tifffile.imwrite(label_file, label, photometric="minisblack")
        tifffile.imwrite(answer_file, answer, photometric="minisblack")


def evaluate(tree: Path, folder: Path, metrics: tuple[str, ...], workers: int) -> Side:
    out = folder / "scores.json"
    places = ["--predictions", folder / "answers", "--labels", folder / "labels", "--out", out]
    words = [*places, "--ignore-label", "2", "--workers", str(workers), "--metrics", *metrics]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    command = [sys.executable, "-m", "pipeline.evaluate", *map(str, words)]
    process = subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{tree}: {process.stderr.read().decode() if process.stderr else status}")
    return Side(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, json.loads(out.read_text()))


def report(what: str, sides: dict[str, list[Side]]) -> None:
    if len({json.dumps(side.scores) for found in sides.values() for side in found}) > 1:
        raise SystemExit(f"{what}: the two trees give other numbers.")
    medians = {
        name: [statistics.median(getattr(s, what) for s in found) for what in ("clock", "processors", "memory")]
        for name, found in sides.items()
    }
    for name, (clock, processors, memory) in medians.items():
        print(f"{what:<24}{name:<6}{clock:>8.2f} s, {processors:>8.2f} s of processors, peak {memory:,.0f} MiB")
    ratios = [new / old for new, old in zip(medians["new"], medians["old"], strict=True)]
    print(f"{what:<24}new / old: {ratios[0]:.2f} in time, {ratios[1]:.2f} of processors, {ratios[2]:.2f} in peak memory", flush=True)


if __name__ == "__main__":
    main()
