"""Peak memory against the depth of a volume: ``pipeline.predict`` by blocks, and MONAI's
SlidingWindowInferer on the same network.

    python tests/benchmarks/depth.py [--depths 128 512 2048] [--edge 256] [--folder DIR]

The volume is a sparse uint8 BigTIFF of ``edge`` x ``edge`` voxels a slice. Both sides run in a
process of their own and end with files: ours with the answer, MONAI's side with the same answer
from the whole probability in memory. Prints each peak, and the slope in MiB per 1,000 slices.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

TILE, OVERLAP = 64, 16
CONFIG = {
    "name": "depth",
    "task": "labels",
    "data": {
        "dims": 3,
        "layout": "folders",
        "patch": {"size": [TILE] * 3},
        "normalise": "percentile",
    },
    "network": {"name": "dynunet", "options": {"channels": [2, 4, 4], "block": 2, "norm": "batch"}},
    "losses": ["dice"],
    "predict": {"overlap": OVERLAP},
    "postprocess": ["threshold", {"name": "dust", "options": {"below": 20}}],
}


def prepare(folder: Path, depths: list[int], edge: int) -> None:
    """The model and one volume for each depth."""
    import tifffile
    import torch

    from pipeline import config as configs
    from pipeline import networks
    from pipeline.inference.models import save_model
    from pipeline.records import Checkpoint

    config = configs.from_dict(CONFIG)
    torch.manual_seed(0)
    weights = networks.build(config.network, 1, 1, 3).state_dict()
    save_model(
        folder / "model.safetensors",
        Checkpoint(
            config=configs.to_dict(config),
            channels=(1, 1),
            fold=0,
            epoch=0,
            score=None,
            weights=weights,
        ),
    )
    for depth in depths:
        path = folder / f"{depth}.tif"
        if not path.is_file():
            tifffile.memmap(
                path,
                shape=(depth, edge, edge),
                dtype="uint8",
                bigtiff=True,
                photometric="minisblack",
            )


def ours(folder: Path, depth: int) -> None:
    from pipeline import predict

    words = [
        "--checkpoint",
        str(folder / "model.safetensors"),
        "--input",
        str(folder / f"{depth}.tif"),
        "--output",
        str(folder / "ours"),
    ]
    assert predict.main([*words, "--blocks", "always", "--device", "cpu"]) == 0


def monai(folder: Path, depth: int) -> None:
    """The same work with the volume as a tensor: tiles, threshold, dust."""
    import tifffile
    import torch
    from monai.inferers.inferer import SlidingWindowInferer

    from pipeline import morphology
    from pipeline.data import normalise
    from pipeline.inference.models import load_models

    (network,), config = load_models([folder / "model.safetensors"])
    array = tifffile.imread(folder / f"{depth}.tif")[None]
    image = torch.from_numpy(normalise.fit(config.data.normalise, array).apply(array))[None]
    inferer = SlidingWindowInferer(
        (TILE,) * 3, sw_batch_size=1, overlap=OVERLAP / TILE, mode="gaussian"
    )
    with torch.inference_mode():
        soft = inferer(image, lambda x: network(x.clone())["main"].sigmoid())[0, 0].numpy()  # type: ignore[index]
    answer = morphology.remove_small_components(soft >= 0.5, 20).astype(np.uint8)
    tifffile.imwrite(folder / "monai.tif", answer, compression="zlib")


SIDES = {"pipeline.predict": ours, "MONAI SlidingWindowInferer": monai}


def peak() -> float:
    """Largest resident set of this process so far, in MiB; pages of mapped files count."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--depths", type=int, nargs="+", default=[128, 512, 2048])
    p.add_argument("--edge", type=int, default=256)
    p.add_argument("--folder", type=Path, default=Path("/tmp/pipeline_benchmark_depth"))
    p.add_argument("--side", nargs=2, metavar=("NAME", "DEPTH"), help=argparse.SUPPRESS)
    arguments = p.parse_args()
    folder: Path = arguments.folder / str(arguments.edge)
    if arguments.side:
        SIDES[arguments.side[0]](folder, int(arguments.side[1]))
        print(f"peak {peak()}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder, arguments.depths, arguments.edge)
    for name in SIDES:
        peaks = []
        for depth in arguments.depths:
            words = [
                sys.executable,
                __file__,
                "--folder",
                str(arguments.folder),
                "--edge",
                str(arguments.edge),
                "--side",
                name,
                str(depth),
            ]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            peaks.append(float(done.stdout.split("peak ")[-1]))
            print(f"{name:<28}{depth:>7} slices {peaks[-1]:>10,.0f} MiB", flush=True)
        if len(peaks) > 1:
            print(
                f"{name:<28}{np.polyfit(arguments.depths, peaks, 1)[0] * 1000:>10,.1f} MiB per"
                " 1,000 slices"
            )


if __name__ == "__main__":
    main()
