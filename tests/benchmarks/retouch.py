"""One photograph of 24 megapixels on the CPU: ABPN whole beside the image-to-image U-Net in tiles
of 512, time, peak memory, arithmetic.

    python tests/benchmarks/retouch.py [--size 4000 6000] [--levels 3] [--tiles 12] [--rounds 1]
    python tests/benchmarks/retouch.py --table

Both have their default widths and random weights, and answer through
``pipeline.inference.sliding_window.sliding_window``, each in a process of its own. ABPN is timed in
full. Of the U-Net (base 64, overlap 128) only the first ``--tiles`` tiles are computed; the others
answer with their input, so that its memory is that of the whole image, and its time is the median
of a computed tile times the number of tiles, plus what cutting and blending took. ``--table``:
weights and arithmetic of ABPN by number of levels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sides import measure
from torch.utils.flop_counter import FlopCounterMode

TILE, OVERLAP = 512, 128
FOLDER = Path("/tmp/pipeline_benchmark_retouch")


def network(name: str, **options: object) -> torch.nn.Module:
    from pipeline import networks
    from pipeline.records import NamedOptions

    torch.manual_seed(0)
    return networks.build(NamedOptions(name=name, options=options), 3, 3, 2).eval()


def tiling(size: Sequence[int], tiled: bool):
    from pipeline.geometry import Tiling

    if not tiled:
        return Tiling(size=tuple(size), tile=tuple(size))
    return Tiling(size=tuple(size), tile=(TILE, TILE), overlap=OVERLAP, multiple=(16, 16))


def gmac(size: Sequence[int], name: str, part: str = "Global", **options: object) -> float:
    """Multiply-accumulates in 1e9 for one image of ``size``, or of one part of the network; nothing
    is computed.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(name, **options)(torch.zeros(1, 3, *size))
    return sum(counter.get_flop_counts()[part].values()) / 2e9


def table() -> None:
    from pipeline.networks import parameters

    print(
        f"{'levels':>6}{'weights':>14}{'I_l at 2048²':>14}{'GMAC at 2048²':>15}"
        f"{'of it at I_l':>14}{'GMAC at 4000 x 6000':>21}"
    )
    for levels in (1, 2, 3, 4):
        with torch.device("meta"):
            weights = parameters(network("abpn", levels=levels))
        square, low = (
            gmac((2048, 2048), "abpn", part, levels=levels) for part in ("Global", "ABPN.low")
        )
        photograph = gmac((4000, 6000), "abpn", levels=levels)
        print(
            f"{levels:>6}{weights:>14,}{f'{2048 >> levels}²':>14}{square:>15.1f}"
            f"{low:>14.1f}{photograph:>21.1f}"
        )


def prepare(folder: Path) -> None:
    """Slow waves and noise, uint8, with patches of pure black and white."""
    asked = json.loads((folder / "settings.json").read_text())
    high, wide = asked["size"]
    rng = np.random.default_rng(0)
    y, x = np.arange(high)[:, None] / 140, np.arange(wide) / 155
    waves = 128 + 140 * np.sin(y) * np.cos(x)
    image = np.stack(
        [
            (waves + rng.integers(-20, 20, waves.shape)).clip(0, 255).astype(np.uint8)
            for _ in range(3)
        ]
    )
    np.save(folder / "image.npy", image)


def _source(folder: Path):
    from pipeline.data.normalise import IntensityScale
    from pipeline.inference.sliding_window import Source

    array = np.load(folder / "image.npy", mmap_mode="r")
    return Source(array=array, scale=IntensityScale(low=(0.0,) * 3, high=(255.0,) * 3))


def whole(folder: Path) -> float:
    from pipeline.inference.sliding_window import TileRun, sliding_window

    asked = json.loads((folder / "settings.json").read_text())
    net = network("abpn", levels=asked["levels"])
    began = time.perf_counter()
    run = TileRun(
        source=_source(folder),
        predict_tile=lambda x: {"main": net(x)["main"]},
        tiles=tiling(asked["size"], tiled=False),
    )
    soft = sliding_window(run)["main"]
    seconds = time.perf_counter() - began
    assert np.isfinite(soft[:, ::97]).all()
    return seconds


def tiled(folder: Path) -> float:
    from pipeline.inference.sliding_window import TileRun, sliding_window

    asked = json.loads((folder / "settings.json").read_text())
    net, tiles = network("image_unet"), tiling(asked["size"], tiled=True)
    taken: list[float] = []

    def predict_tile(x: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(taken) == asked["tiles"]:
            return {"main": x}
        began = time.perf_counter()
        soft = net(x)["main"]
        taken.append(time.perf_counter() - began)
        return {"main": soft}

    began = time.perf_counter()
    sliding_window(TileRun(source=_source(folder), predict_tile=predict_tile, tiles=tiles))
    around = time.perf_counter() - began - sum(taken)
    return statistics.median(taken) * tiles.count() + around


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, nargs=2, default=(4000, 6000), metavar=("HIGH", "WIDE"))
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument(
        "--tiles", type=int, default=12, help="tiles of the U-Net that are computed"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args(argv)
    if asked.table:
        table()
        return
    tiles = tiling(asked.size, tiled=True)
    ours, other = (
        gmac(asked.size, "abpn", levels=asked.levels),
        gmac(tiles.tile, "image_unet") * tiles.count(),
    )
    print(
        f"{asked.size[0]} x {asked.size[1]}; ABPN of {asked.levels} levels whole: {ours:,.1f} GMAC"
    )
    print(
        f"U-Net of base 64 in {tiles.count()} tiles of {tiles.tile[0]} x {tiles.tile[1]}:"
        f" {other:,.1f} GMAC, {other / ours:.0f} times as many"
    )
    print(
        f"Time of the U-Net: from {min(asked.tiles, tiles.count())} of its tiles, scaled to"
        f" {tiles.count()}"
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "settings.json").write_text(json.dumps(vars(asked)))
    measure(__file__, SIDES, prepare, "s", [str(FOLDER), str(asked.rounds)])


SIDES = {"U-Net, tiled": tiled, "ABPN, whole": whole}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        measure(__file__, SIDES, prepare, "s", sys.argv[1:])
    else:
        main(sys.argv[1:])
