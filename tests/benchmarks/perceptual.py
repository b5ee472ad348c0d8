"""Peak memory and time of the perceptual loss, forward and backward, for one square RGB image:
plain, and with what saves memory.

    python tests/benchmarks/perceptual.py [--size 2048] [--rounds 3] [--only NAME ...]

VGG16 up to relu3_3 with random weights, features relu1_2, relu2_2 and relu3_3. Each variant runs in
a process of its own; its peak is what the process holds at most beyond what it held before, after a
first step on a small image.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpoint": {"checkpoint": True},
    "size 512, area": {"size": 512},
    "size 512, mask": {"size": 512, "reduce": "mask"},
    "size 512, mask, checkpoint": {"size": 512, "reduce": "mask", "checkpoint": True},
}


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--size", type=int, default=2048, help="side of the image in pixels")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    p.add_argument("--side", choices=list(VARIANTS), help=argparse.SUPPRESS)
    arguments = p.parse_args()
    if arguments.side:
        print(json.dumps(one(VARIANTS[arguments.side], arguments.size)))
        return
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.only}
    for _ in range(arguments.rounds):
        for name in rows:
            command = [sys.executable, __file__, "--size", str(arguments.size), "--side", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(
        f"one image of {arguments.size} x {arguments.size}, medians of {arguments.rounds} rounds in"
        " turn"
    )
    for name, found in rows.items():
        peak, seconds = (
            statistics.median(row[key] for row in found) for key in ("peak", "seconds")
        )
        print(f"{name:<28}peak {peak:>8,.0f} MiB{seconds:>9.2f} s")


def one(options: dict[str, Any], size: int) -> dict[str, float]:
    import torch

    from pipeline.losses import LOSSES

    loss = LOSSES["perceptual"].make(weights="random", range=[0, 1], **options)

    def step(side: int) -> float:
        make = torch.Generator().manual_seed(0)
        x, y = (torch.rand(1, 3, side, side, generator=make) for _ in range(2))
        mask = torch.zeros(1, 1, side, side)
        mask[..., side // 4 : side // 4 + 32, side // 3 : side // 3 + 32] = 1
        began = time.perf_counter()
        loss(
            x.requires_grad_(),
            y,
            torch.ones_like(mask),
            *([mask] if options.get("reduce") == "mask" else []),
        ).backward()
        return time.perf_counter() - began

    step(64)
    before = _peak()
    seconds = step(size)
    return {"seconds": seconds, "peak": _peak() - before}


def _peak() -> float:
    """Most MiB that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
