"""Whole-volume prediction beside MONAI's SlidingWindowInferer on the same weights: one 320³ volume,
tiles of 128³, overlap 32, gaussian.

    python tests/benchmarks/inference.py [FOLDER [ROUNDS]]

Both sides start from the uint8 volume on disk and end with float32 probabilities in memory; the
answers are compared once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from sides import measure

SIZE, TILE, OVERLAP = 320, 128, 32
OPTIONS = {"channels": [8, 16, 32], "block": 2}


def prepare(folder: Path) -> None:
    rng = np.random.default_rng(0)
    if not (folder / "volume.npy").is_file():
        np.save(folder / "volume.npy", rng.integers(0, 255, (1, SIZE, SIZE, SIZE), np.uint8))


def network() -> torch.nn.Module:
    from pipeline import networks
    from pipeline.records import NamedOptions

    torch.manual_seed(0)
    return networks.build(NamedOptions(name="dynunet", options=OPTIONS), 1, 1, 3).eval()


def _save(folder: Path, name: str, soft: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", soft)


def ours(folder: Path) -> float:
    from pipeline.data.normalise import percentile
    from pipeline.geometry import Tiling
    from pipeline.inference.sliding_window import Source, TileRun, sliding_window

    net = network()
    began = time.perf_counter()
    array = np.load(folder / "volume.npy", mmap_mode="r")
    tiles = Tiling(size=array.shape[1:], tile=(TILE,) * 3, overlap=OVERLAP, one_sided=False)
    scale, _ = percentile(array)
    run = TileRun(
        source=Source(array=array, scale=scale),
        predict_tile=lambda x: {"main": net(x)["main"].sigmoid()},
        tiles=tiles,
    )
    soft = sliding_window(run)["main"]
    seconds = time.perf_counter() - began
    if (folder / "monai.npy").is_file():
        other = np.load(folder / "monai.npy", mmap_mode="r")
        assert np.abs(soft - other).max() < 1e-5, "the two sides differ"
    return seconds


def monai(folder: Path) -> float:
    from monai.inferers.inferer import SlidingWindowInferer
    from monai.transforms.intensity.array import ScaleIntensityRangePercentiles

    net = network()
    began = time.perf_counter()
    array = np.load(folder / "volume.npy").astype(np.float32)
    x = torch.as_tensor(
        np.asarray(ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True)(array))
    )[None]
    inferer = SlidingWindowInferer(
        (TILE,) * 3, sw_batch_size=1, overlap=OVERLAP / TILE, mode="gaussian"
    )
    with torch.inference_mode():
        # sw_batch_size 1 hands the network a view of the input; a network with in-place layers must
        # not write into it.
        soft = inferer(x, lambda t: net(t.clone())["main"].sigmoid())[0].numpy()
    seconds = time.perf_counter() - began
    _save(folder, "monai", soft)
    return seconds


if __name__ == "__main__":
    measure(
        __file__, {"ours": ours, "MONAI SlidingWindowInferer": monai}, prepare, "s", sys.argv[1:]
    )
