"""Throughput of training with one rank and with two on this machine: the same samples, one thread a
rank, in turn.

    python tests/benchmarks/ranks.py [--rounds 2] [--epochs 4] [--patch 48]

Two ranks with batches of one see what one rank with batches of two sees. Seconds are those of the
epochs after the first, by the run's own log; peak memory is that of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
name: ranks
data:
  layout: competition
  ignore_label: 2
  folds: {{count: 2}}
  patch: {{size: [{p}, {p}, {p}], batch: 2, per_case: 4, foreground: null}}
network: {{name: unet, options: {{channels: [16, 32, 64, 64, 64]}}}}
losses: [dice, ce]
train: {{epochs: {e}, validate: {{every: 100}}, preview_every: 0}}
"""


def data(root: Path) -> None:
    random = np.random.default_rng(0)
    for folder in ("train_images", "train_labels"):
        (root / folder).mkdir(parents=True)
    for n in range(8):
        image = random.integers(0, 256, (64, 96, 96), np.uint8)
        tifffile.imwrite(root / "train_images" / f"{n}.tif", image)
        tifffile.imwrite(root / "train_labels" / f"{n}.tif", (image > 200).astype(np.uint8))
    (root / "train.csv").write_text("id,scroll_id\n" + "".join(f"{n},{n % 4}\n" for n in range(8)))


def epoch_seconds(folder: Path, ranks: int) -> float:
    """Median seconds of an epoch of fold 0 with so many ranks."""
    run = folder / f"run_{ranks}"
    shutil.rmtree(run, ignore_errors=True)
    start = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        if ranks > 1
        else []
    )
    words = [
        "-m",
        "pipeline.train",
        "--config",
        str(folder / "c.yaml"),
        "--data-dir",
        str(folder / "data"),
        "--out",
        str(run),
        "--fold",
        "0",
    ]
    words += ["--set", f"data.patch.batch={2 // ranks}"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    subprocess.run(
        [sys.executable, *start, *words], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    lines = [json.loads(line) for line in (run / "fold_0" / "log.jsonl").read_text().splitlines()]
    return statistics.median(line["seconds"] for line in lines[1:])


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--patch", type=int, default=48)
    arguments = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data(folder / "data")
        (folder / "c.yaml").write_text(CONFIG.format(p=arguments.patch, e=arguments.epochs))
        found: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(arguments.rounds):
            for ranks, seconds in found.items():
                seconds.append(epoch_seconds(folder, ranks))
        samples = 4 * 4  # cases to train on, patches of each
        for ranks, seconds in found.items():
            print(
                f"{ranks} rank{'s' * (ranks > 1)}: {samples / statistics.median(seconds):.2f}"
                f" patches/s (median of {len(seconds)} runs)"
            )
        ratio = statistics.median(found[1]) / statistics.median(found[2])
        print(
            f"two ranks are {ratio:.2f} times as fast; largest process"
            f" {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10} MiB"
        )


if __name__ == "__main__":
    main()
