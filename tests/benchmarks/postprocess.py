"""CPU time and memory of post-processing by two source trees, in turn, each run in a process of its
own on the same input.

    python tests/benchmarks/postprocess.py OLD NEW [--folder DIR] [--rounds 5] [--only NAME]

``pictures``: 200 pictures of 256^2, one channel and four; ``volume``: 320^3 with hysteresis, dust
and fill_holes in memory; ``slabs``: 1,024 slices of 256^2 through the lazy path, which ends in a
file. A tree is a folder that holds the package ``pipeline``. Answers of both trees are compared by
a checksum.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CHAINS = {
    "one": [("threshold", {}), ("dust", {"below": 30}), ("fill_holes", {"below": 20})],
    "several": [("argmax", {}), ("dust", {"below": 30}), ("fill_holes", {"below": 20})],
    "joined": [
        ("hysteresis", {"low": 0.4, "high": 0.7}),
        ("dust", {"below": 100}),
        ("fill_holes", {"below": 50}),
    ],
}


def steps(chain: str) -> list[Any]:
    from pipeline.records import NamedOptions

    return [NamedOptions(name=name, options=options) for name, options in CHAINS[chain]]


def soft(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A random field in [0, 1] whose blobs are some voxels wide; several channels sum to 1."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    field = gaussian_filter(noise, [0, *(2.0,) * (len(shape) - 1)])
    field = np.exp(field / field.std())
    return field / (field.sum(0) if len(field) > 1 else 1 + field)


def prepare(folder: Path) -> None:
    shapes = {
        "pictures1": (1, 200, 256, 256),
        "pictures4": (4, 200, 256, 256),
        "volume": (1, 320, 320, 320),
        "slabs": (1, 1024, 256, 256),
    }
    for number, (name, shape) in enumerate(shapes.items()):
        path = folder / f"{name}.npy"
        if not path.is_file():
            if name.startswith("pictures"):
                np.save(
                    path, np.stack([soft((shape[0], *shape[2:]), seed) for seed in range(shape[1])])
                )
            else:
                np.save(path, soft(shape, number))


def pictures(folder: Path, channels: int) -> tuple[float, bytes]:
    from pipeline import postprocess

    arrays = np.load(folder / f"pictures{channels}.npy")
    chain = steps("one" if channels == 1 else "several")
    postprocess.apply(chain, arrays[0])
    begin = time.process_time()
    found = [postprocess.apply(chain, array) for array in arrays]
    [postprocess.statistics(labels) for labels in found]
    return time.process_time() - begin, np.stack(found).tobytes()


def volume(folder: Path) -> tuple[float, bytes]:
    from pipeline import postprocess

    array = np.load(folder / "volume.npy")
    postprocess.apply(steps("joined"), array[:, :8, :8, :8])
    begin = time.process_time()
    labels = postprocess.apply(steps("joined"), array)
    postprocess.statistics(labels)
    return time.process_time() - begin, labels.tobytes()


def slabs(folder: Path) -> tuple[float, bytes]:
    from pipeline import files, postprocess
    from pipeline.files import Rows

    def read(first: int, end: int) -> np.ndarray:
        return np.array(np.load(folder / "slabs.npy", mmap_mode="r")[:, first:end])

    array = Rows((1, 1024, 256, 256), np.dtype(np.float32), read)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        begin = time.process_time()
        if hasattr(postprocess, "check_memory"):
            labels, measure = (
                postprocess.apply(steps("joined"), array, Path(work)),
                postprocess.statistics,
            )
        else:  # before there was one driver
            from pipeline.inference import blocks

            labels, measure = blocks.decide(steps("joined"), array, Path(work)), blocks.statistics
        files.write(Path(work) / "answer.npy", labels)
        measure(labels)
        return time.process_time() - begin, (Path(work) / "answer.npy").read_bytes()[:: 2**6]


TASKS: dict[str, Callable[[Path], tuple[float, bytes]]] = {
    "pictures, 1 channel": lambda folder: pictures(folder, 1),
    "pictures, 4 channels": lambda folder: pictures(folder, 4),
    "volume": volume,
    "slabs": slabs,
}


def one(task: str, folder: Path) -> None:
    """Run one task in this process, with what a command has loaded, and print what it took."""
    from pipeline.workflows import predict  # noqa: F401

    seconds, answer = TASKS[task](folder)
    # Not getrusage: its peak is at least that of the parent, which made the input.
    peak = (
        next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        / 1024
    )
    print(
        json.dumps({"seconds": seconds, "peak": peak, "answer": hashlib.sha256(answer).hexdigest()})
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trees", type=Path, nargs="*", help="OLD and NEW")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/pipeline_benchmark"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=TASKS)
    parser.add_argument("--one", choices=TASKS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.folder)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    prepare(arguments.folder)
    print(
        f"{'task':<22}{'old CPU s':>10}{'new CPU s':>10}{'ratio':>7}"
        f"{'old MiB':>9}{'new MiB':>9}{'ratio':>7}   answers"
    )
    for task in [arguments.only] if arguments.only else TASKS:
        rows: list[list[dict[str, Any]]] = [[], []]
        for turn in range(2 * arguments.rounds):
            side = (turn + turn // 2) % 2  # old new, new old, ...
            command = [sys.executable, __file__, "--one", task, "--folder", str(arguments.folder)]
            setting = {
                **os.environ,
                "PYTHONPATH": str(arguments.trees[side]),
                "OMP_NUM_THREADS": "1",
            }
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=True,
                env=setting,
                cwd=arguments.folder,
            )
            rows[side].append(json.loads(done.stdout.splitlines()[-1]))
        old, new = (
            {k: statistics.median(r[k] for r in side) for k in ("seconds", "peak")} for side in rows
        )
        same = len({r["answer"] for side in rows for r in side}) == 1
        seconds = (
            f"{old['seconds']:>10.3f}{new['seconds']:>10.3f}{new['seconds'] / old['seconds']:>7.2f}"
        )
        memory = f"{old['peak']:>9.0f}{new['peak']:>9.0f}{new['peak'] / old['peak']:>7.2f}"
        print(f"{task:<22}{seconds}{memory}   {'equal' if same else 'DIFFERENT'}", flush=True)


if __name__ == "__main__":
    main()
