"""Scoring folders of answers by two source trees in turn: 22 cubes and 40 pictures, made here;
medians, ratio, peak memory.

    python tests/benchmarks/scoring.py OLD NEW [--folder DIR] [--rounds 3] [--only cubes]

Each run is the command in a process of its own. Peak memory is that of the largest process. The
numbers of both trees have to be equal.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import scipy
import tifffile
from trees import Side, report, run

METRICS = {
    "cubes": ("dice", "surface_dice", "competition"),
    "pictures": ("dice", "surface_dice", "hd95"),
}
SHAPES = {"cubes": (160,) * 3, "pictures": (512,) * 2}
COUNTS = {"cubes": 22, "pictures": 40}
RUNS = (("cubes", 1), ("cubes", 2), ("pictures", 1), ("pictures", 2))


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
                found.append(
                    evaluate(
                        getattr(arguments, name), arguments.folder / kind, METRICS[kind], workers
                    )
                )
        report(f"{COUNTS[kind]} {kind}, {workers} worker{'s' if workers > 1 else ''}", sides)


def prepare(folder: Path, shape: tuple[int, ...], count: int) -> None:
    """Smooth random masks with a border that is ignored, and answers that differ from them a
    little; made once.
    """
    for name in ("labels", "answers"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for n in range(count):
        label_file, answer_file = (
            folder / name / f"case{n:02}.tif" for name in ("labels", "answers")
        )
        if answer_file.is_file():
            continue
        rng = np.random.default_rng(n)
        coarse = rng.random([s // 16 for s in shape])
        grey = scipy.ndimage.zoom(
            coarse, [s / c for s, c in zip(shape, coarse.shape, strict=True)], order=1
        )
        label = (grey > 0.5).astype(np.uint8)
        label[..., :4] = 2
        answer = ((grey > 0.49) ^ (rng.random(shape) < 1e-5)).astype(np.uint8)
        tifffile.imwrite(label_file, label, photometric="minisblack")
        tifffile.imwrite(answer_file, answer, photometric="minisblack")


def evaluate(tree: Path, folder: Path, metrics: tuple[str, ...], workers: int) -> Side:
    out = folder / "scores.json"
    places = ["--predictions", folder / "answers", "--labels", folder / "labels", "--out", out]
    words = [*places, "--ignore-label", "2", "--workers", workers, "--metrics", *metrics]
    return run(tree, "evaluate", words, lambda: json.loads(out.read_text()))


if __name__ == "__main__":
    main()
