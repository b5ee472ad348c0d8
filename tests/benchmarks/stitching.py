"""Seams: tiles beside the whole image, ours and MONAI's SlidingWindowInferer on the same network,
and time and memory of both.

    python tests/benchmarks/stitching.py [--size 4096] [--rounds 3] [--quick]

A U-Net with batch norm and random weights (three levels) answers a noisy photograph-like image
whole and in tiles of 256 that share 64. Table: largest ``|tiled - whole|`` in standard deviations
of the answer (``nan``: pixels without a value) and seam index, the mean gradient of the error
across the edges of what is used of the tiles over that elsewhere, along the last axis. Then both
sides with gaussian blending on an image of ``--size`` squared, each in a process of its own.
``--quick``: smaller images, one round.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sides import measure

TILE, OVERLAP = 256, 64
OPTIONS = {"base": 8, "depth": 2, "norm": "batch", "align_corners": False}
FOLDER = Path("/tmp/pipeline_benchmark_stitching")


def network() -> torch.nn.Module:
    from pipeline import networks
    from pipeline.records import NamedOptions

    torch.manual_seed(0)
    net = networks.build(NamedOptions(name="image_unet", options=OPTIONS), 3, 3, 2)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            # statistics of the one pass that follows: every layer passes on what it gets at full
            # strength
            layer.momentum = None
    net.train()(unit(image(256, 256)))
    return net.eval()


def image(height: int, width: int) -> np.ndarray:
    """Slow waves and noise, uint8 ``(3, height, width)``."""
    rng = np.random.default_rng(0)
    y, x = np.arange(height)[:, None] / 40, np.arange(width) / 55
    waves = (90 + 60 * np.sin(y) * np.cos(x)).astype(np.uint8)
    return np.stack([waves + rng.integers(0, 90, waves.shape, np.uint8) for _ in range(3)])


def unit(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) / np.float32(255))[None]


# --- seams ----------------------------------------------------------------------------------------


def ours_tiled(
    net: torch.nn.Module, array: np.ndarray, window: str, halo: int
) -> tuple[np.ndarray, list[int]]:
    from pipeline.data.normalise import IntensityScale
    from pipeline.geometry import Tiling
    from pipeline.inference.sliding_window import Source, TileRun, sliding_window
    from pipeline.networks.receptive import stride

    tiles = Tiling(
        size=array.shape[1:],
        tile=(TILE, TILE),
        overlap=OVERLAP,
        window=window,
        halo=halo,
        multiple=stride(net, 2),
    )
    source = Source(array=array, scale=IntensityScale(low=(0.0,) * 3, high=(255.0,) * 3))
    starts = tiles.starts(1)
    lines = [s + halo for s in starts[1:]] + [s + TILE - halo for s in starts[:-1]]
    run = TileRun(source=source, predict_tile=lambda x: {"main": net(x)["main"]}, tiles=tiles)
    return sliding_window(run)["main"], lines


def monai_tiled(
    net: torch.nn.Module, array: np.ndarray, window: str
) -> tuple[np.ndarray, list[int]]:
    from monai.data.utils import dense_patch_slices
    from monai.inferers.inferer import SlidingWindowInferer

    inferer = SlidingWindowInferer(
        (TILE, TILE),
        overlap=OVERLAP / TILE,
        mode="gaussian" if window == "gaussian" else "constant",
    )
    if window == "hann":
        inferer.roi_weight_map = torch.outer(*[torch.hann_window(TILE, periodic=False)] * 2)[
            None, None
        ]
    with torch.inference_mode():
        soft = inferer(unit(array), lambda t: net(t.clone())["main"])[0].numpy()
    starts = sorted(
        {
            s[1].start
            for s in dense_patch_slices(array.shape[1:], (TILE, TILE), (TILE - OVERLAP,) * 2)
        }
    )
    return soft, starts[1:] + [s + TILE for s in starts[:-1]]


def seam_index(error: np.ndarray, lines: Sequence[int]) -> float:
    jump = np.ma.masked_invalid(np.abs(np.diff(error, axis=-1))).mean(axis=(0, 1)).filled(np.nan)
    edges = np.zeros(len(jump), bool)
    edges[[line - 1 for line in lines]] = True
    return float(np.nanmean(jump[edges]) / max(np.nanmean(jump[~edges]), 1e-12))


def table(size: int) -> None:
    from pipeline.networks.receptive import halo

    net, array = network(), image(size, size)
    with torch.inference_mode():
        whole = net(unit(array))["main"][0].numpy()
    enough = halo(net, 3, 2)
    rows = [
        (f"ours, {w}, halo {h}", *ours_tiled(net, array, w, h))
        for h in (0, enough // 2, enough)
        for w in ("gaussian", "hann", "feather", "constant")
    ]
    rows += [(f"MONAI, {w}", *monai_tiled(net, array, w)) for w in ("constant", "gaussian", "hann")]
    print(f"{size} x {size}, tiles {TILE}, overlap {OVERLAP}; the network needs a halo of {enough}")
    print(f"{'':<28}{'largest error':>16}{'seam index':>14}")
    for name, soft, lines in rows:
        error = (soft - whole) / whole.std()
        lost = (
            f"  ({int(np.isnan(error).any(0).sum())} pixels nan)" if np.isnan(error).any() else ""
        )
        print(f"{name:<28}{np.nanmax(np.abs(error)):>16.1e}{seam_index(error, lines):>14.2f}{lost}")


# --- time and memory ------------------------------------------------------------------------------


def ours(folder: Path) -> float:
    from pipeline.data.normalise import IntensityScale
    from pipeline.geometry import Tiling
    from pipeline.inference.sliding_window import Source, TileRun, sliding_window

    net = network()
    began = time.perf_counter()
    array = np.load(folder / "image.npy", mmap_mode="r")
    tiles = Tiling(size=array.shape[1:], tile=(TILE, TILE), overlap=OVERLAP, multiple=(4, 4))
    run = TileRun(
        source=Source(array=array, scale=IntensityScale(low=(0.0,) * 3, high=(255.0,) * 3)),
        predict_tile=lambda x: {"main": net(x)["main"]},
        tiles=tiles,
    )
    sliding_window(run)
    return time.perf_counter() - began


def monai(folder: Path) -> float:
    net = network()
    began = time.perf_counter()
    monai_tiled(net, np.load(folder / "image.npy"), "gaussian")
    return time.perf_counter() - began


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args(argv)
    size, rounds = (min(asked.size, 1024), 1) if asked.quick else (asked.size, asked.rounds)
    for edge in (
        (448, 523) if asked.quick else (832, 811)
    ):  # the first is met by MONAI's tiles without leaving the stride, the second is not
        table(edge)
    print(f"\n{size} x {size}, gaussian:")

    def prepare(folder: Path) -> None:
        np.save(folder / "image.npy", image(size, size))

    measure(__file__, SIDES, prepare, "s", [str(FOLDER), str(rounds)])


SIDES = {"ours": ours, "MONAI SlidingWindowInferer": monai}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        measure(__file__, SIDES, lambda folder: None, "s", sys.argv[1:])
    else:
        main(sys.argv[1:])
