"""Runs of a tiny 2D system on six discs: trained in a second, stopped where a test wants it."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import cli, train

BASE: dict[str, Any] = {
    "name": "discs",
    "data": {
        "dims": 2,
        "layout": "folders",
        "folds": {"count": 2},
        "patch": {"size": [16, 16], "batch": 2, "per_case": 2},
        "augment": ["flip", {"name": "noise", "options": {"std": 0.05}}],
    },
    "network": {"name": "sa_unet", "options": {"channels": [2, 4], "keep": 0.8, "block": 3}},
    "losses": ["dice", "ce"],
    "metrics": ["dice"],
    "predict": {"overlap": 4},
}
TRAIN: dict[str, Any] = {
    "epochs": 3,
    "optimizer": {"name": "adam", "options": {"lr": 0.01}},
    "preview_every": 2,
}
CASES = [f"c{n}" for n in range(6)]


def make_discs(root: Path) -> Path:
    """Six grey images of a disc, with masks, and two test images."""
    for n in range(8):
        rng = np.random.default_rng(n)
        y, x = np.mgrid[:24, :26]
        label = ((y - rng.integers(6, 18)) ** 2 + (x - rng.integers(6, 18)) ** 2 < 30).astype(
            np.uint8
        )
        image = np.clip(80 + 80 * label + rng.normal(0, 15, label.shape), 0, 255).astype(np.uint8)
        pairs = (("images", image), ("masks", label)) if n < 6 else (("test_images", image),)
        for folder, array in pairs:
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"c{n}.png")
    return root


def config_file(folder: Path, **more: Any) -> Path:
    """The config with ``more`` keys of section train."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "discs.yaml"
    path.write_text(json.dumps({**BASE, "train": {**TRAIN, **more}}))  # JSON is YAML
    return path


def run(config: Path, data: Path, out: Path, fold: object, *more: str) -> int:
    words = ["--config", str(config), "--data-dir", str(data), "--out", str(out)]
    return train.main([*words, f"--fold={fold}", *more])


def fingerprint(folder: Path) -> dict[str, str]:
    """Everything that must not depend on interruptions: models and every number that is no time."""
    out = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "store" in path.parts or "checkpoint_latest" in path.parts:
            continue
        if path.suffix in (".safetensors", ".png", ".npy"):
            out[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.name == "log.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            out[name] = json.dumps(timeless(lines))
        if path.name in ("result.json", "summary.json"):
            out[name] = json.dumps(timeless(json.loads(path.read_text())))
    return out


def timeless(found: Any) -> Any:
    """A document without its times."""
    if isinstance(found, dict):
        return {k: timeless(v) for k, v in found.items() if k != "seconds"}
    return [timeless(v) for v in found] if isinstance(found, list) else found


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Ask the process to stop at this optimiser step, as its signal handler does; 0: never."""
    done, work = 0, STEP

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal done
        done += 1
        if done == steps:
            cli.stop.signal = signal.SIGUSR1
        return work(*arguments, **more)

    patch.setattr(cli.stop, "signal", None)
    patch.setattr(torch.amp.GradScaler, "step", counted)


STEP: Callable[..., Any] = torch.amp.GradScaler.step


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Whether two networks have the same bits."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
