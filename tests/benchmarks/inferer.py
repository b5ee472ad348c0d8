"""pipeline's SlidingWindowInferer beside MONAI's: 512 x 256 x 256, tiles of 96³, overlap 0.25,
gaussian.

    python tests/benchmarks/inferer.py [FOLDER [ROUNDS]]

The network is one convolution to two channels, so that what is measured is the tiling. Ours runs
twice: gathered as MONAI gathers, and slab by slab, where the answer is never held. Answers are
compared. Seconds are those of one CPU thread, so that a busy machine changes little.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from sides import measure

SIZE = (512, 256, 256)
OPTIONS = {"roi_size": (96, 96, 96), "overlap": 0.25, "mode": "gaussian"}


def prepare(folder: Path) -> None:
    if not (folder / "inferer.npy").is_file():
        np.save(folder / "inferer.npy", np.random.default_rng(0).random((1, 1, *SIZE), np.float32))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return torch.nn.Conv3d(1, 2, 3, padding=1).eval()


def compare(soft: np.ndarray, path: Path) -> None:
    """Row by row, and not by a memory map: its pages would count as ours."""
    other = np.load(path, mmap_mode="r")
    row = int(np.prod(SIZE[1:]))
    for n, one in enumerate(soft.reshape(-1, row)):
        theirs = np.fromfile(path, np.float32, row, offset=other.offset + 4 * n * row)
        assert np.abs(one - theirs).max() < 1e-5, "the two sides differ"


def ours(folder: Path) -> float:
    from pipeline.inference.inferer import SlidingWindowInferer

    net, image = network(), torch.from_numpy(np.load(folder / "inferer.npy"))
    began = time.process_time()
    soft = SlidingWindowInferer(**OPTIONS, one_sided=False)(image, net)
    seconds = time.process_time() - began
    if (folder / "inferer_monai.npy").is_file():
        compare(soft.numpy(), folder / "inferer_monai.npy")
    return seconds


def slabs(folder: Path) -> float:
    from pipeline.inference.inferer import SlidingWindowInferer

    net, image = network(), torch.from_numpy(np.load(folder / "inferer.npy"))
    began = time.process_time()
    rows = sum(
        slab.shape[2]
        for _, slab in SlidingWindowInferer(**OPTIONS, one_sided=False).slabs(image, net)
    )
    assert rows == SIZE[0]
    return time.process_time() - began


def monai(folder: Path) -> float:
    from monai.inferers.inferer import SlidingWindowInferer

    net, image = network(), torch.from_numpy(np.load(folder / "inferer.npy"))
    began = time.process_time()
    with torch.no_grad():
        soft = SlidingWindowInferer(**OPTIONS)(image, net)
    seconds = time.process_time() - began
    np.save(folder / "inferer_monai.npy", soft.numpy())
    return seconds


if __name__ == "__main__":
    measure(
        __file__,
        {"ours": ours, "ours, slabs": slabs, "MONAI SlidingWindowInferer": monai},
        prepare,
        "s",
        sys.argv[1:],
    )
