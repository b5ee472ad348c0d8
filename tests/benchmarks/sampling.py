"""What a training sample with nnU-Net's rotation and scaling reads, and how quick that is: the box
that the drawn transform needs against one that holds every transform.

    python tests/benchmarks/sampling.py [FOLDER [ROUNDS]]

First voxels read per sample, mean and maximum, in patches. Then samples per CPU second of ours
beside a loader that always reads the box of nnU-Net's rule, normalises it, and transforms by the
same loops: four memory-mapped volumes of 384³ with a label of three classes, patches of 128³, the
same positions and transforms, one process without workers, no further augmentation. Volumes lie in
the page cache: from a disk what is read counts for more.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sides import measure
from torch.utils.data import DataLoader, Dataset

from pipeline.config import Config, from_dict
from pipeline.data.cache import CachedCase, Volume
from pipeline.data.loaders import Loader, PatchDataset
from pipeline.data.locations import LOCATIONS, class_locations
from pipeline.data.normalise import IntensityScale
from pipeline.data.properties import CaseProperties
from pipeline.data.sampling import crop_scaled
from pipeline.data.spatial import RandSpatiald, Warp, rules
from pipeline.geometry import crop
from pipeline.records import Case

CASES, SIDE, PATCH, SAMPLES, DRAWS = 4, 384, (128, 128, 128), 40, 50_000
PATCHES = [(128, 128, 128), (160, 160, 160), (64, 160, 128), (24, 192, 160)]
LEAST_SCALE = 0.85
"""By which nnU-Net enlarges the box for scaling."""


def fixed_box(size: Sequence[int]) -> tuple[int, ...]:
    """The box that nnU-Net reads for every sample, by its rule.

    Along each axis the most that the far corner of the patch reaches under the largest rotation, at
    most 90 degrees, about one axis, divided by 0.85; of slender patches the shortest axis stays.
    """
    angles, fixed = rules(size, None, None)
    most = np.array(size, float)
    for axis, angle in enumerate(min(a, math.pi / 2) for a in angles):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turned = np.array(size, float)
        turned[a] = math.cos(angle) * size[a] + math.sin(angle) * size[b]
        turned[b] = abs(math.cos(angle) * size[b] - math.sin(angle) * size[a])
        most = np.maximum(most, turned)
    box = (most / LEAST_SCALE).astype(int)
    if fixed is not None:
        box[fixed] = size[fixed]
    return tuple(int(n) for n in box)


def config(spatial: bool) -> Config:
    return from_dict(
        {
            "name": "b",
            "data": {
                "classes": 3,
                "patch": {
                    "size": list(PATCH),
                    "batch": 2,
                    "oversample": 0.33,
                    "steps": SAMPLES // 2,
                },
                "augment": ["spatial"] if spatial else [],
            },
            "network": "unet",
            "losses": ["dice"],
        }
    )


def voxels() -> None:
    """Print what a sample reads."""
    print(f"{'patch':<18}{'fixed box':<18}{'patches':>8}{'ours, mean':>12}{'moved':>8}{'max':>8}")
    for size in PATCHES:
        angles, fixed = rules(size, None, None)
        move = RandSpatiald({"image": "bilinear"}, size, (0.2, 0.2), angles, (0.7, 1.4), fixed)
        state, read = np.random.RandomState(0), []
        for _ in range(DRAWS):
            matrix = move.draw(state)
            box = size if matrix is None else Warp(matrix, (0, 0, 0), size).box()[1]
            read.append(math.prod(box) / math.prod(size))
        box, share = fixed_box(size), np.array(read)
        print(
            f"{'x'.join(map(str, size)):<18}{'x'.join(map(str, box)):<18}"
            f"{math.prod(box) / math.prod(size):>8.2f}{share.mean():>12.2f}"
            f"{share[share != 1].mean():>8.2f}{share.max():>8.2f}"
        )


def prepare(folder: Path) -> None:
    """In a process of its own: what it takes would count as peak memory of all that follow."""
    subprocess.run([sys.executable, __file__, "--prepare", str(folder)], check=True)


def write(folder: Path) -> None:
    """Noise over blocks of three classes."""
    voxels()
    for n in range(CASES):
        if (folder / f"{n}.locations.npy").is_file():
            continue
        rng = np.random.default_rng(n)
        label = rng.choice([0, 0, 0, 1, 2], (24,) * 3).astype(np.uint8)
        label = label.repeat(16, 0).repeat(16, 1).repeat(16, 2)[None]
        image = rng.integers(0, 200, label.shape, np.uint8) + 20 * label
        for name, array in (("image", image), ("label", label)):
            np.save(folder / f"{n}.{name}.npy", array)
        np.save(folder / f"{n}.locations.npy", class_locations(label, config(True).data))


def cached(folder: Path) -> list[CachedCase]:
    def volume(n: int, name: str) -> Volume:
        path = folder / f"{n}.{name}.npy"
        array = np.load(path, mmap_mode="r")
        return Volume(path=path, shape=array.shape, dtype=str(array.dtype))

    return [
        CachedCase(
            case=Case(id=str(n), image=(folder / "none",), targets={"label": folder / "none"}),
            image=volume(n, "image"),
            targets={"label": volume(n, "label")},
            scale=IntensityScale(low=(0.0,), high=(255.0,)),
            properties=CaseProperties(id=str(n), files={}),
            maps={LOCATIONS: volume(n, "locations")},
        )
        for n in range(CASES)
    ]


def rate(batches: Any) -> float:
    began, count = time.process_time(), 0
    for batch in batches:
        count += len(batch["image"])
    return count / (time.process_time() - began)


def warm() -> None:
    """Load the compiled loops."""
    warp, part = Warp(np.eye(3), (0, 0, 0), (2, 2, 2)), np.zeros((1, 2, 2, 2), np.uint8)
    warp.linear(part, (0, 0, 0))
    warp.labels(part, (0, 0, 0), 0)


def ours(folder: Path) -> float:
    torch.set_num_threads(1)
    warm()
    return rate(Loader(cached(folder), config(True), 0, training=True).epoch(0))


def plain(folder: Path) -> float:
    torch.set_num_threads(1)
    return rate(Loader(cached(folder), config(False), 0, training=True).epoch(0))


class FixedBox(Dataset):
    """Samples of our loader, each from a box that holds every transform."""

    def __init__(self, folder: Path) -> None:
        self.loader = Loader(cached(folder), config(True), 0, training=True)
        self.keys = self.loader.batches.keys(0)
        self.box = fixed_box(PATCH)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        dataset, size = self.loader.dataset, PATCH
        start, matrix, data = position(dataset, self.keys[n])
        around = [(b - t) // 2 for b, t in zip(self.box, size, strict=True)]
        low = [s - a for s, a in zip(start, around, strict=True)]
        image = crop_scaled(data["image"].array, low, self.box, data["scale"])
        label = crop(data["label"].array, low, self.box)
        if matrix is None:
            inner = (slice(None), *(slice(a, a + t) for a, t in zip(around, size, strict=True)))
            out = {"image": image[inner].copy(), "label": label[inner].copy()}
        else:
            warp = Warp(matrix, around, size)
            out = {
                "image": warp.linear(image, (0, 0, 0)),
                "label": warp.labels(label, (0, 0, 0), 0),
            }
        return {k: torch.from_numpy(v) for k, v in out.items()}


def position(
    dataset: PatchDataset, key: tuple[int, ...]
) -> tuple[list[int], np.ndarray | None, Any]:
    """Where a sample of our loader begins, and its transform."""
    from pipeline.data.loaders import seed_of, set_random_state
    from pipeline.data.locations import is_forced

    crop_, (epoch, place, case) = dataset.crop, key
    set_random_state(crop_, np.random.RandomState(seed_of(*dataset.seeds, epoch, place)))
    crop_.forced = is_forced(place, dataset.wide, dataset.oversample or 0.0)
    data = dataset.chain.transforms[0]({"stored": dataset.cases[case]})
    start, _ = crop_.randomize(data)
    assert crop_.spatial is not None
    return start, crop_.spatial.draw(crop_.R), data


def fixed(folder: Path) -> float:
    torch.set_num_threads(1)
    warm()
    return rate(DataLoader(FixedBox(folder), batch_size=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        write(Path(sys.argv[2]))
    else:
        measure(
            __file__,
            {"ours": ours, "always the fixed box": fixed, "ours without spatial": plain},
            prepare,
            "samples per CPU second",
            sys.argv[1:],
        )
