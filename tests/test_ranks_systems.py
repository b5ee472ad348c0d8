"""Two gloo ranks on the systems of images: the same weights as one process where a loss is a mean
of samples, and no rank left waiting.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from test_ranks import end, log, require_alike, start, weights
from test_systems import DATA, SYSTEMS

from pipeline import train

pytestmark = pytest.mark.slow

COMMON = {
    "epochs": 2,
    "optimizer": {"name": "sgd", "options": {"lr": 0.05}},
    "average": None,
    "preview_every": 1,
}
MEANS = {
    "label_maps_2d": ["ce"],
    "retouch": [
        {"name": "l1", "target": "target"}
    ],  # nothing reads the mask's head, though the retouch does
}


def written(name: str, losses: list, folder: Path) -> tuple[Path, Path]:
    """A stand-in with plain SGD, which does not enlarge differences of rounding, and its data."""
    system = copy.deepcopy(SYSTEMS[name]) | {"losses": losses, "train": COMMON}
    DATA[name](folder / "data")
    (folder / "system.yaml").write_text(json.dumps({"name": name, **system}))
    return folder / "system.yaml", folder / "data"


def alone(system: tuple[Path, Path], run: Path, *more: str) -> Path:
    words = [
        "--config",
        str(system[0]),
        "--data-dir",
        str(system[1]),
        "--out",
        str(run),
        "--fold",
        "0",
    ]
    assert train.main([*words, "--set", *more]) == 0
    return run


@pytest.mark.parametrize("name", MEANS)
def test_two_ranks_with_one_sample_are_one_rank_with_two(name: str, tmp_path: Path) -> None:
    system = written(name, MEANS[name], tmp_path)
    code, out = end(start(*system, tmp_path / "two", "--set", "data.patch.batch=1"))
    assert code == 0, out[-3000:]
    require_alike(alone(system, tmp_path / "one", "data.patch.batch=2"), tmp_path / "two")


def test_a_rank_without_any_mask_takes_every_step(tmp_path: Path) -> None:
    """Batches of one: a rank has the photograph that needs no retouch, hence no masked term, while
    the other may have one that does.
    """
    system = written("retouch", SYSTEMS["retouch"]["losses"], tmp_path)
    code, out = end(
        start(
            *system,
            tmp_path / "run",
            "--set",
            "data.patch.batch=1",
            "data.patch.changed=null",
            "train.epochs=3",
            "seed=5",
        )
    )
    assert code == 0, out[-3000:]
    records = log(tmp_path / "run")
    assert len(records) == 3
    assert all(np.isfinite(value) for record in records for value in record.values())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    fold = json.loads((tmp_path / "run" / "splits.json").read_text())["folds"][0]
    assert "c0" in fold["train"]
    assert set(summary["cases"]) == set(fold["val"])
    assert {"psnr_in", "leak", "mask_dice"} <= set(next(iter(summary["cases"].values()))["metrics"])
    assert np.isfinite([np.abs(v).max() for v in weights(tmp_path / "run").values()]).all()
