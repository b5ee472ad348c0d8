"""What a plan reaches: out of fold, by class, beside "all background" and an atlas.

    python tests/benchmarks/planned_scores.py DATA --minutes 25 --out FOLDER [-- OPTIONS OF PLAN]

Nothing is written by hand: ``pipeline.plan DATA --budget cpu --minutes N``, then
``pipeline.train --fold -1``. The same command again goes on where it was stopped; a finished run is
only summed up. The atlas of a fold is the mean label map of its training cases at the same place
(as a share of each axis of the file), the class with the largest share; a region, where more than
half of them have it. Intervals are 95 %, bootstrap over cases.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.config import Config
from pipeline.runs import RunFolder
from pipeline.scoring.bootstrap import interval

ROOT = Path(__file__).resolve().parents[2]


def command(*words: object) -> float:
    """Run a command of the package; seconds that it took."""
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True, env=environment)
    return time.monotonic() - began


def labels_of(run: RunFolder, case: str) -> np.ndarray:
    """Label map ``(*S)`` of a case, as its file has it."""
    role = next(iter(run.config().targets))
    path = Path(run.listing()[case]["targets"][role])
    return files.read(path, run.config().data.dims, labels=True)[0][0]


def resized(labels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A label map on another grid: the nearest voxel at the same share of each axis."""
    for axis, size in enumerate(shape):
        places = (np.arange(size) + 0.5) * labels.shape[axis] / size
        labels = np.take(labels, places.astype(int), axis=axis)
    return labels


def masks(labels: np.ndarray, config: Config) -> list[np.ndarray]:
    """The mask of each class or region."""
    data = config.data
    if data.unions is not None:
        return [np.isin(labels, values) for values in data.unions]
    if data.classes == 2:
        limit = 0 if data.binarise is None else data.binarise
        return [labels > limit]
    return [labels == value for value in range(1, data.classes)]


def dice(answer: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two masks; NaN where both are empty."""
    both = int(answer.sum()) + int(truth.sum())
    return 2 * int((answer & truth).sum()) / both if both else math.nan


def atlas(run: RunFolder, case: str, training: Sequence[str]) -> list[np.ndarray]:
    """The atlas answer of a case, a mask for each class or region."""
    config, shape = run.config(), labels_of(run, case).shape
    shares = None
    for name in training:
        found = [m.astype(np.float32) for m in masks(resized(labels_of(run, name), shape), config)]
        shares = found if shares is None else [a + b for a, b in zip(shares, found, strict=True)]
    assert shares is not None
    parts = np.stack(shares) / len(training)
    if config.data.unions is not None:
        return list(parts > 0.5)
    background = 1 - parts.sum(axis=0)
    best = parts.argmax(axis=0)
    inside = parts.max(axis=0) > background
    return [inside & (best == n) for n in range(len(parts))]


def column(values: Sequence[float]) -> str:
    """Mean with its interval."""
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return "-"
    found = interval(known)
    ends = "" if found is None else f" [{found[0]:.3f}, {found[1]:.3f}]"
    return f"{np.mean(known):.3f}{ends}"


def table(run: RunFolder) -> list[str]:
    """Rows by class: network, atlas, all background."""
    summary, config = run.summary(), run.config()
    count = len(config.data.unions) if config.data.unions else config.data.classes - 1
    names = [summary.get("class_names", {}).get(str(n + 1), f"class {n + 1}") for n in range(count)]
    if config.data.regions:
        names = list(config.data.regions)
    keys = [f"dice_{n + 1}" for n in range(count)] if count > 1 else ["dice"]
    ours = {k: [c["metrics"][k] for c in summary["cases"].values()] for k in (*keys, "dice")}
    other: dict[str, list[list[float]]] = {"atlas": [], "background": []}
    for fold in run.splits():
        for case in fold["val"]:
            truth = masks(labels_of(run, case), config)
            placed = atlas(run, case, fold["train"])
            other["atlas"].append([dice(a, b) for a, b in zip(placed, truth, strict=True)])
            other["background"].append([math.nan if not b.any() else 0.0 for b in truth])
    rows = [f"{'':<16}{'out of fold':<26}{'atlas':<26}all background"]
    for n, (name, key) in enumerate(zip(names, keys, strict=True)):
        found = [column([case[n] for case in other[k]]) for k in ("atlas", "background")]
        rows.append(f"{name:<16}{column(ours[key]):<26}{found[0]:<26}{found[1]}")
    if count > 1:
        found = [column([float(np.nanmean(case)) for case in other[k]]) for k in other]
        rows.append(f"{'mean':<16}{column(ours['dice']):<26}{found[0]:<26}{found[1]}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("options", nargs="*", help="further options of pipeline.plan, after --")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    plan, run = given.out / "plan.yaml", RunFolder(given.out / "run")
    times = given.out / "seconds.json"
    if not plan.is_file():
        words = ["--budget", "cpu", "--minutes", given.minutes, "--out", plan, *given.options]
        seconds = command("pipeline.plan", given.data, *words)
        times.write_text(json.dumps({"plan": seconds}))
    if len(run.completed() if run.exists else []) < run.fold_count() if run.exists else True:
        seconds = command("pipeline.train", "--config", plan, "--fold", -1, "--out", run.path)
        kept = json.loads(times.read_text())
        times.write_text(json.dumps({**kept, "train": kept.get("train", 0) + seconds}))
    kept = json.loads(times.read_text())
    config = run.config()
    steps = config.train.epochs * (config.data.patch.steps or 0)
    print(f"{given.data.name}: {len(run.listing())} cases, {steps} steps a fold", end="; ")
    print(", ".join(f"{name} {seconds / 60:.1f} min" for name, seconds in kept.items()))
    print("\n".join(table(run)))


if __name__ == "__main__":
    main()
