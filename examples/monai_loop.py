"""Our losses, metrics and sliding-window inferer in a plain MONAI training loop.

::

    python examples/monai_loop.py                    # makes a small data set first
    python examples/monai_loop.py DIR --epochs 200   # an nnU-Net folder of NIfTI files
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from monai.data import CacheDataset, DataLoader
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandAxisFlipd,
    RandCropByPosNegLabeld,
)
from monai.utils import set_determinism
from small_data import write_folder

import pipeline as pl

KEYS, PATCH = ("image", "label"), (32, 32, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description="A MONAI training loop with parts of ours.")
    parser.add_argument("data", type=Path, nargs="?", help="nnU-Net folder of NIfTI files")
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs is {args.epochs}, must be at least 1")
    if args.data is not None and not (args.data / "dataset.json").is_file():
        parser.error(f"{args.data} has no dataset.json, as nnU-Net's folders have")
    folder = args.data or write_folder(Path("runs/monai_loop/data"))
    set_determinism(0)

    # --- all of this is MONAI's ---
    items = pairs(folder)
    classes = len(json.loads((folder / "dataset.json").read_text())["labels"])
    load = [LoadImaged(KEYS), EnsureChannelFirstd(KEYS), NormalizeIntensityd("image")]
    crop = [RandCropByPosNegLabeld(KEYS, "label", PATCH, num_samples=4), RandAxisFlipd(KEYS, 0.5)]
    train_set = CacheDataset(items[2:], Compose([*load, *crop]), progress=False)
    train = DataLoader(train_set, batch_size=2, shuffle=True)
    held_out = DataLoader(CacheDataset(items[:2], Compose(load), progress=False), batch_size=1)
    network = UNet(3, 1, classes, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)

    # --- ours: called as MONAI's are ---
    overlap = pl.Loss("dice", batch=True)  # logits and class numbers; no softmax, no one-hot
    connected = pl.Loss("cldice", iterations=3)  # costs gaps in the vessels
    inferer = pl.SlidingWindowInferer(PATCH, sw_batch_size=4, overlap=0.25)
    dice = pl.Metric("dice", num_classes=classes)
    surface = pl.Metric("surface_dice", tolerance=1, num_classes=classes)

    for epoch in range(args.epochs):
        network.train()
        for batch in train:
            optimizer.zero_grad()
            logits = network(batch["image"])
            loss = overlap(logits, batch["label"]) + 0.3 * connected(logits, batch["label"])
            loss.backward()
            optimizer.step()
        if (epoch + 1) % 5 and epoch + 1 < args.epochs:
            continue
        network.eval()
        for batch in held_out:
            decided = inferer(batch["image"], network).argmax(1, keepdim=True)
            dice(y_pred=decided, y=batch["label"])
            surface(y_pred=decided, y=batch["label"])
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}", numbers(dice), numbers(surface))

    # The numbers of one case, with distances in millimetres.
    answer, truth = decided[0, 0], batch["label"][0, 0]
    spacing = batch["image"].pixdim[0].tolist()
    print(pl.score(answer, truth, ["hd95", "cldice"], spacing=spacing, num_classes=classes))


def pairs(folder: Path) -> list[dict[str, Path]]:
    """Image and label of each case; of several channels the first."""
    labels = sorted((folder / "labelsTr").glob("*.nii.gz"))
    images = [folder / "imagesTr" / p.name.replace(".nii.gz", "_0000.nii.gz") for p in labels]
    return [{"image": i, "label": p} for i, p in zip(images, labels, strict=True)]


def numbers(metric: pl.Metric) -> str:
    """Means since the last call, of all classes and of each."""
    found = metric.values()
    metric.reset()
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items())


if __name__ == "__main__":
    main()
