"""Shared fixtures: small data sets of known content, one thread for torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.data.cache import CachedCase

# Small tensors spend their time waiting for the second thread. The variable is for processes that
# tests start; torch is loaded already.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# Whether `make test` passes must not depend on the day, nor on what an earlier run left behind;
# `make slow` and `make fuzz` draw others.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.register_profile("fresh", derandomize=False, deadline=None, database=None, print_blob=True)
settings.load_profile("fixed")


def examples(count: int) -> int:
    """Examples of a target that is fuzzed: so many in `make test`, eight times as many in each
    round of `make slow` and `make fuzz`.
    """
    return count if settings.default is not None and settings.default.derandomize else 8 * count


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Random weights that are the same in every run: a network of two channels can be born with
    every ReLU dead.
    """
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; tests that need it are skipped in a plain clone."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not present: {SHARED}")
    return SHARED


def sheets(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image of wavy bright sheets and its label (0, 1, and 2 on a rim): a task that a small
    network learns in seconds.
    """
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    wave = grid[0] + 1.5 * np.sin(grid[-1] / 5 + rng.uniform(0, 6))
    label = ((wave + rng.uniform(0, 8)) % 8 < 2.5).astype(np.uint8)
    image = np.clip(90 + 60 * label + rng.normal(0, 20, shape), 0, 255).astype(np.uint8)
    rim = np.ones(shape, bool)
    rim[tuple(slice(1, -1) for _ in shape)] = False
    label[rim] = 2
    return image, label


def competition_folder(
    root: Path, cases: int = 6, shape: tuple[int, ...] = (20, 24, 24), tests: int = 2
) -> Path:
    """A data set of ``sheets`` in the competition layout, groups a and b in turn."""
    for folder in ("train_images", "train_labels", "test_images"):
        (root / folder).mkdir(parents=True)
    rows = ["id,scroll_id"]
    for n in range(cases):
        image, label = sheets(shape, n)
        tifffile.imwrite(root / "train_images" / f"{100 + n}.tif", image, compression="lzw")
        tifffile.imwrite(root / "train_labels" / f"{100 + n}.tif", label, compression="lzw")
        rows.append(f"{100 + n},{'ab'[n % 2]}")
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    for n in range(tests):
        tifffile.imwrite(
            root / "test_images" / f"{900 + n}.tif", sheets(shape, 50 + n)[0], compression="lzw"
        )
    (root / "test.csv").write_text(
        "id,scroll_id\n" + "".join(f"{900 + n},c\n" for n in range(tests))
    )
    return root


@pytest.fixture(scope="session")
def surfaces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small labelled volumes and two test volumes; read-only by convention."""
    return competition_folder(tmp_path_factory.mktemp("surfaces"))


TINY = """
name: tiny
task: labels
seed: 42
data:
  layout: competition
  ignore_label: 2
  folds: {count: 2}
  patch: {size: [16, 16, 16], foreground: [0.3, 0.7], tries: 3, batch: 2}
  augment: [flip, rotate90, {name: noise, options: {std: 0.01}}, contrast]
network: {name: unet, options: {channels: [4, 4, 8, 8, 8], dropout: 0.1}}
losses: [{name: dice, weight: 0.4}, {name: focal, weight: 0.2}, {name: variance, weight: 0.2}]
metrics: [dice, surface_dice]
train:
  epochs: 3
  optimizer: {name: adam, options: {lr: 1.0e-2}}
  schedule: {name: cosine_restarts, options: {first: 2}}
  average: {start: 1, lr: 5.0e-3}
  preview_every: 2
predict: {overlap: 4}
postprocess: [threshold, {name: dust, options: {below: 5}}]
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A config that trains in seconds on ``surfaces``."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def opened(root: Path, config: Config, folder: Path) -> list[CachedCase]:
    """The training cases of a data set, cached in ``folder``."""
    from pipeline.data import cache, cases, properties

    found = cases.find(config.data, config.targets, root).train
    facts = properties.examine(found, config, None, write=False)
    return cache.build(found, facts, config, folder)


def do_nothing_model(path: Path, channels: int = 1, **data: object) -> Path:
    """A model file for images that answers with its input, to the last bit: what differs was
    changed by reading or writing.
    """
    from pipeline import config as configs
    from pipeline import networks
    from pipeline.inference.models import save_model
    from pipeline.records import Checkpoint

    normal = {"name": "range", "options": {"low": 0, "high": None}}
    settings = configs.from_dict(
        {
            "name": "nothing",
            "task": "image",
            "data": {
                "dims": 2,
                "layout": "folders",
                "folders": {"image": "images", "target": "targets"},
                "normalise": normal,
                "patch": {"size": [32, 32]},
                **data,
            },
            "network": {
                "name": "deblur_unet",
                "options": {"base": 4, "groups": 4, "residual": True},
            },
            "losses": [{"name": "l1", "target": "target"}],
        }
    )
    network = networks.build(settings.network, channels, channels, 2)
    weights = {name: torch.zeros_like(w) for name, w in network.state_dict().items()}
    save_model(
        path,
        Checkpoint(
            config=configs.to_dict(settings),
            channels=(channels, channels),
            fold=0,
            epoch=0,
            score=0.0,
            weights=weights,
        ),
    )
    return path
