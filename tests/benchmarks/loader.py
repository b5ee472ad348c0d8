"""Patches per second of the training loader beside a plain MONAI chain over CacheDataset: eight
volumes of 320³, patches of 128³.

    python tests/benchmarks/loader.py [FOLDER [ROUNDS]]

Both sides load the same NIfTI files, normalise by the same percentiles and apply the same
augmentations, in one process without workers. Preparing (caching, building the cache) is not timed;
peak memory is of the whole process, preparation included.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nibabel
import numpy as np
from sides import measure

CASES, SIZE, PATCH, PATCHES = 8, 320, 128, 40
AUGMENT = ["flip", "rotate90", {"name": "noise", "options": {"std": 0.01}}, "brightness"]


def prepare(folder: Path) -> None:
    """Wavy sheets about 5 % of the volume, with a rim of label 2."""
    if (folder / f"masks/{CASES - 1}.nii").is_file():
        return
    grid = np.arange(SIZE, dtype=np.float32)
    for n in range(CASES):
        rng = np.random.default_rng(n)
        wave = (
            grid[:, None, None]
            + 6 * np.sin(grid[None, :, None] / 25 + n)
            + 5 * np.cos(grid[None, None, :] / 31)
        )
        label = (wave % 40 < 2.5).astype(np.uint8)
        image = (90 + 70 * label + rng.normal(0, 20, label.shape)).clip(0, 255).astype(np.uint8)
        label[[0, -1]] = 2
        for name, array in (("images", image), ("masks", label)):
            (folder / name).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / name / f"{n}.nii")


def ours(folder: Path) -> float:
    from pipeline.config import from_dict
    from pipeline.data import cache, cases, properties
    from pipeline.data.loaders import Loader

    patch = {
        "size": [PATCH] * 3,
        "foreground": [0.3, 0.7],
        "tries": 10,
        "batch": 2,
        "per_case": PATCHES // CASES,
    }
    config = from_dict(
        {
            "name": "b",
            "data": {"layout": "folders", "ignore_label": 2, "patch": patch, "augment": AUGMENT},
            "network": "unet",
            "losses": ["dice"],
        }
    )
    found = cases.find(config.data, config.targets, folder).train
    facts = properties.examine(found, config, folder / "store")
    loader = Loader(cache.build(found, facts, config, folder / "store"), config, 0, training=True)
    next(loader.epoch(99))
    began = time.perf_counter()
    count = sum(len(batch["id"]) for batch in loader.epoch(0))
    return count / (time.perf_counter() - began)


def monai(folder: Path) -> float:
    import torch
    from monai.data.dataset import CacheDataset
    from monai.transforms import (
        Compose,
        LoadImaged,
        OneOf,
        RandAxisFlipd,
        RandCropByPosNegLabeld,
        RandGaussianNoised,
        RandRotate90d,
        RandScaleIntensityd,
        ScaleIntensityRangePercentilesd,
    )
    from torch.utils.data import DataLoader

    both = ["image", "label"]
    chain = Compose(
        [
            LoadImaged(both, ensure_channel_first=True),
            ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True),
            RandCropByPosNegLabeld(both, "label", (PATCH,) * 3, pos=1, neg=1, num_samples=1),
            RandAxisFlipd(both, prob=0.5),
            OneOf(
                [
                    RandRotate90d(both, prob=0.5, spatial_axes=axes)
                    for axes in ((0, 1), (0, 2), (1, 2))
                ]
            ),
            RandGaussianNoised("image", prob=0.5, std=0.01, sample_std=False),
            RandScaleIntensityd("image", factors=0.2, prob=0.5),
        ]
    )
    records = [
        {"image": folder / f"images/{n}.nii", "label": folder / f"masks/{n}.nii"}
        for n in range(CASES)
    ]
    cache = CacheDataset(records, chain, num_workers=1, progress=False)
    loader = DataLoader(
        cache,
        batch_size=2,
        shuffle=True,
        collate_fn=lambda rows: torch.stack([r[0]["image"].as_tensor() for r in rows]),
    )
    began = time.perf_counter()
    count = sum(len(batch) for _ in range(PATCHES // CASES) for batch in loader)
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    measure(__file__, {"ours": ours, "plain MONAI": monai}, prepare, "patches/s", sys.argv[1:])
