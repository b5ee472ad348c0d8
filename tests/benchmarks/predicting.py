"""Prediction by two source trees in turn: medians, ratio, peak memory.

    PYTHONPATH=tests python tests/benchmarks/predicting.py OLD NEW [--folder DIR] [--rounds 3]
        [--only volume] [--blocks always]

Predicted are a volume of 320^3, a picture of 4096^2 and 200 pictures of 256^2. Each run is the
command in a process of its own, with a small network, post-processing and soft predictions. Answers
and soft arrays of both trees have to be equal to the last bit.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from small_models import model_file
from trees import Side, report, run

SHAPES = {"volume": (320,) * 3, "picture": (4096,) * 2, "pictures": (256,) * 2}
COUNTS = {"volume": 1, "picture": 1, "pictures": 200}


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("old", type=Path, help="source tree")
    p.add_argument("new", type=Path, help="source tree")
    p.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "pipeline_predicting"
    )
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", choices=sorted(SHAPES))
    p.add_argument("--blocks", choices=("never", "always"), default="never")
    arguments = p.parse_args()
    for kind in SHAPES if arguments.only is None else [arguments.only]:
        folder = arguments.folder / kind
        prepare(folder, SHAPES[kind], COUNTS[kind])
        sides: dict[str, list[Side]] = {"old": [], "new": []}
        for _ in range(arguments.rounds):
            for name, found in sides.items():
                found.append(predict(getattr(arguments, name), folder, arguments.blocks))
        report(f"{COUNTS[kind]} {kind}, --blocks {arguments.blocks}", sides)


def prepare(folder: Path, shape: tuple[int, ...], count: int) -> None:
    """Noise, and a model with random weights; made once."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    if len(list((folder / "images").iterdir())) == count:
        return
    tile = [96] * 3 if len(shape) == 3 else [512] * 2
    steps = [
        {"name": "threshold", "options": {"at": 0.5}},
        {"name": "dust", "options": {"below": 50}},
        "fill_holes",
    ]
    data = {"dims": len(shape), "patch": {"size": tile}, "normalise": "percentile"}
    model_file(folder, dims=len(shape), data=data, postprocess=steps)
    for n in range(count):
        array = np.random.default_rng(n).integers(0, 255, shape, dtype=np.uint8)
        if len(shape) == 3:
            tifffile.imwrite(
                folder / "images" / f"case{n}.tif",
                array,
                photometric="minisblack",
                compression="zlib",
            )
        else:
            Image.fromarray(array).save(folder / "images" / f"case{n:03}.png")


def predict(tree: Path, folder: Path, blocks: str) -> Side:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = [
        "--checkpoint",
        folder / "best_model.safetensors",
        "--input",
        folder / "images",
        "--output",
        out,
        "--device",
        "cpu",
    ]
    return run(tree, "predict", [*words, "--save-soft", "--blocks", blocks], lambda: digest(out))


def digest(out: Path) -> str:
    """Of all pixels and soft arrays."""
    found = hashlib.sha256()
    for path in sorted(p for p in out.rglob("*") if p.is_file() and p.suffix != ".json"):
        found.update(path.relative_to(out).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
