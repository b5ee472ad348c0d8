"""Milliseconds of the augmentations of docs/nnunet.md for a patch of 128³, beside MONAI's nearest.

    python tests/benchmarks/augmentation.py [--rounds 15] [--edge 128]

Each entry always applies, to two channels, with one thread; sides take turns, and figures are
medians of their rounds. The peak is that of a call, its result included (16 MiB). MONAI's nearest
does not do the same: it draws uniformly, changes all channels alike, and pads a blur with zeros.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

PAGE = Path(__file__).resolve().parents[2] / "docs" / "nnunet.md"
ADDITIVE = {"name": "brightness_additive", "options": {"std": 0.5, "per_channel": True}}


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--edge", type=int, default=128)
    p.add_argument("--child", choices=["time", "memory"], help=argparse.SUPPRESS)
    given = p.parse_args()
    if given.child:
        print(json.dumps(child(given)))
        return
    times = in_child("time", given)
    # Where small arrays are mapped, too, those that are freed do not hide new ones (glibc).
    peaks = in_child("memory", given, MALLOC_MMAP_THRESHOLD_="65536")
    print(f"{'entry':<24}{'ms':>9}{'peak MiB':>10}{'MONAI ms':>11}{'peak MiB':>10}{'ratio':>8}")
    for name, row in times.items():
        (ms, monais), (mib, monais_mib) = row, peaks[name]
        print(
            f"{name:<24}{ms:>9.1f}{mib:>10.0f}{monais:>11.1f}{monais_mib:>10.0f}{monais / ms:>8.2f}"
        )


def entries() -> list[dict[str, Any]]:
    """Entries of the page that change intensities, always applied, and the additive brightness."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Augmentation\n")[1]
    block = section.split("```yaml\n")[1].split("```")[0]
    found = [
        e for e in yaml.safe_load(block)["data"]["augment"] if e["name"] not in ("spatial", "flip")
    ]
    whole = {"p": 1.0}
    return [
        {
            "name": e["name"],
            "options": e["options"]
            | whole
            | ({"per_channel": True} if "per_channel" in e["options"] else {}),
        }
        for e in [*found, ADDITIVE]
    ]


def in_child(
    what: str, given: argparse.Namespace, **variables: str
) -> dict[str, tuple[float, float]]:
    """Ours and MONAI's figure of each entry, from a process of its own."""
    command = [sys.executable, __file__, "--child", what]
    command += ["--rounds", str(given.rounds), "--edge", str(given.edge)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    )
    return json.loads(done.stdout.splitlines()[-1])


def child(given: argparse.Namespace) -> dict[str, list[float]]:
    """Median milliseconds, or the peak in MiB, of both sides of each entry."""
    from pipeline.data.transforms import plain_tensors

    size = (given.edge,) * 3
    image = np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)
    found = {}
    with plain_tensors():
        for entry in entries():
            sides = [ours(entry, size), NEAREST[entry["name"]]()]
            for side in sides:
                side.set_random_state(0)
                side({"image": image})
            name = entry["name"] + (" (inverted)" if entry["options"].get("invert") else "")
            measure = milliseconds if given.child == "time" else grown
            rows = [
                [measure(lambda side=side: side({"image": image})) for side in sides]
                for _ in range(given.rounds)
            ]
            found[name] = [statistics.median(column) for column in zip(*rows, strict=True)]
    return found


def milliseconds(work: Callable[[], Any]) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def ours(entry: dict[str, Any], size: tuple[int, ...]) -> Any:
    from pipeline.config import from_dict
    from pipeline.data.augment import augmentation

    data = {"patch": {"size": list(size), "foreground": None}, "augment": [entry]}
    config = from_dict({"name": "b", "data": data, "network": "unet", "losses": ["dice"]})
    (transform,) = augmentation(config, 0)
    return transform


def grown(work: Callable[[], Any]) -> float:
    """MiB by which the peak of resident memory grew."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held
    before = status("VmHWM")
    work()
    return status("VmHWM") - before


def status(key: str) -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0]) / 1024


def nearest(name: str, **options: Any) -> Callable[[], Any]:
    """MONAI's transform of the image, always applied."""

    def make() -> Any:
        from monai import transforms

        return getattr(transforms, name)("image", prob=1.0, **options)

    return make


NEAREST = {
    "noise": nearest("RandGaussianNoised", std=0.1),
    "blur": nearest("RandGaussianSmoothd", sigma_x=(0.5, 1), sigma_y=(0.5, 1), sigma_z=(0.5, 1)),
    "brightness": nearest("RandScaleIntensityd", factors=0.25),
    "brightness_additive": nearest("RandShiftIntensityd", offsets=0.5),
    "contrast": nearest("RandScaleIntensityFixedMeand", factors=0.25, preserve_range=True),
    "low_resolution": nearest("RandSimulateLowResolutiond", zoom_range=(0.5, 1)),
    "gamma": nearest("RandAdjustContrastd", gamma=(0.7, 1.5), retain_stats=True),
}


if __name__ == "__main__":
    main()
