"""A photograph predicted on a CPU by torch, ONNX Runtime and OpenVINO: seconds and peak memory.

    python tests/benchmarks/backends.py [--checkpoint FILE | --network deblur_unet] [--size 2048]
        [--patch 512] [--overlap 32] [--rounds 3]
    OMP_NUM_THREADS=2 python tests/benchmarks/backends.py --image photograph.jpg
        --checkpoint runs/deblur/fold_0/best_model.safetensors

The weights are the same on every side. Every round of every side is a process of its own; rounds
take turns. Seconds are those of tiled prediction, from the image in memory to float32 in memory;
the start (loading, first export, compilation) stands beside. Peak memory is VmHWM of the process;
the first row is that of a process that has loaded torch and the model and predicts nothing. Answers
are compared with torch's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LOADED = "torch, loaded only"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument(
        "--checkpoint",
        type=Path,
        help="model file of a 2D image system; default: fresh weights of --network",
    )
    p.add_argument("--network", default="deblur_unet", help="deblur_unet, image_unet")
    p.add_argument(
        "--image", type=Path, help="photograph, resized to --size; default: a synthetic one"
    )
    p.add_argument("--size", type=int, default=2048)
    p.add_argument("--patch", default="512", help="tile size, or whole")
    p.add_argument("--overlap", type=int, default=32)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--backends", nargs="+", default=["torch", "onnx", "openvino"])
    p.add_argument("--folder", type=Path, default=Path("/tmp/pipeline_backends"))
    p.add_argument("--side", help=argparse.SUPPRESS)
    return p


def main() -> None:
    arguments = parser().parse_args()
    if arguments.side:
        print(json.dumps(one(arguments)))
        return
    prepare(arguments)
    sides = [LOADED, *arguments.backends]
    rows: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side in sides:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--side", side],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            rows[side].append(json.loads(done.stdout.splitlines()[-1]))
    report(arguments, rows)


def report(arguments: argparse.Namespace, rows: dict[str, list[dict[str, float]]]) -> None:
    size, patch = arguments.size, arguments.patch
    print(
        f"{arguments.checkpoint or arguments.network}, {size} x {size}, tiles {patch}, overlap"
        f" {arguments.overlap}, {arguments.rounds} rounds in turn,"
        f" {int(rows[LOADED][0]['threads'])} threads"
    )
    print(
        "| backend | seconds (min to max) | torch / this | start, s | peak memory, MiB | max "
        "difference to torch |\n"
        "|---|---|---|---|---|---|"
    )
    base = (
        statistics.median(r["seconds"] for r in rows["torch"]) if "torch" in rows else float("nan")
    )
    for side, results in rows.items():
        seconds, peak, start = ([r[k] for r in results] for k in ("seconds", "peak", "start"))
        median = statistics.median(seconds)
        took = (
            f"{median:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | {base / median:.2f}"
            if median
            else "- | -"
        )
        worst = max(r["difference"] for r in results)
        print(
            f"| {side} | {took} | {statistics.median(start):.1f} | {statistics.median(peak):,.0f} |"
            f" {f'{worst:.1e}' if median else '-'} |"
        )


def prepare(arguments: argparse.Namespace) -> None:
    """The image, and where no checkpoint is given a model file of fresh weights."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "torch.npy").unlink(missing_ok=True)
    np.save(arguments.folder / "image.npy", photograph(arguments.image, arguments.size))
    if arguments.checkpoint is None:
        fresh(arguments.network, arguments.folder / "fresh.safetensors")


def photograph(path: Path | None, size: int) -> np.ndarray:
    """``(3, size, size)`` uint8."""
    from PIL import Image

    if path is not None:
        return (
            np.asarray(Image.open(path).convert("RGB").resize((size, size)))
            .transpose(2, 0, 1)
            .copy()
        )
    y, x = np.mgrid[:size, :size].astype(np.float32)
    waves = np.stack([np.sin(y / 31 + c) * np.cos(x / (17 + 5 * c)) for c in range(3)])
    return np.clip(
        waves * 100 + 128 + np.random.default_rng(0).normal(0, 8, waves.shape), 0, 255
    ).astype(np.uint8)


def fresh(network: str, path: Path) -> Path:
    """A model file with weights from seed 0."""
    import torch

    from pipeline import config, networks
    from pipeline.inference.models import save_model
    from pipeline.records import Checkpoint

    facts = {
        "name": network,
        "task": "image",
        "data": {
            "dims": 2,
            "folders": {"image": "src", "target": "dst"},
            "normalise": {"name": "range", "options": {"low": 0, "high": 255, "to": [-1, 1]}},
            "patch": {"size": [256, 256], "foreground": None},
        },
        "network": {"name": network},
        "losses": [{"name": "l1", "target": "target"}],
        "predict": {"window": "feather"},
    }
    system = config.from_dict(facts, network)
    torch.manual_seed(0)
    weights = networks.build(system.network, 3, 3, 2).state_dict()
    save_model(
        path,
        Checkpoint(
            config=config.to_dict(system),
            channels=(3, 3),
            fold=0,
            epoch=0,
            score=None,
            weights=weights,
        ),
    )
    return path


def one(arguments: argparse.Namespace) -> dict[str, float]:
    """One side, in this process."""
    import torch

    from pipeline.data import normalise
    from pipeline.inference.options import ModelOptions
    from pipeline.inference.predictor import prepare
    from pipeline.inference.sliding_window import Source, TileRun, sliding_window, tiling

    began = time.perf_counter()
    backend = "torch" if arguments.side == LOADED else arguments.side
    checkpoint = arguments.checkpoint or arguments.folder / "fresh.safetensors"
    size = (
        {"whole": True}
        if arguments.patch == "whole"
        else {"patch_size": [int(arguments.patch)], "overlap": arguments.overlap}
    )
    predictor = prepare(ModelOptions(checkpoint=checkpoint, device="cpu", backend=backend, **size))
    start, threads = time.perf_counter() - began, torch.get_num_threads()
    if arguments.side == LOADED:
        return {"seconds": 0, "start": start, "peak": peak(), "difference": 0, "threads": threads}
    array = np.load(arguments.folder / "image.npy")
    source = Source(array=array, scale=normalise.fit(predictor.config.data.normalise, array))
    began = time.perf_counter()
    tiles = tiling(predictor.config, array.shape[1:], predictor.predict_tile)
    run = TileRun(
        source=source,
        predict_tile=predictor.predict_tile,
        tiles=tiles,
        batch=predictor.config.predict.batch,
    )
    soft = sliding_window(run)["main"]
    seconds, most = time.perf_counter() - began, peak()
    return {
        "seconds": seconds,
        "start": start,
        "peak": most,
        "difference": compared(arguments, backend, soft),
        "threads": threads,
    }


def compared(arguments: argparse.Namespace, backend: str, soft: np.ndarray) -> float:
    reference = arguments.folder / "torch.npy"
    if backend == "torch":
        np.save(reference, soft)
    return float(np.abs(soft - np.load(reference)).max()) if reference.is_file() else float("nan")


def peak() -> float:
    """VmHWM of this process in MiB. (ru_maxrss would begin with that of the process that started
    this one.)
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
