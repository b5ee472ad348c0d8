"""One loop for every system: small stand-ins for the five train, resume, predict and score through
the same commands.

A stand-in differs from another in its YAML and its files, never in code: volumes and images, label
maps and intensities, one head or several. Each YAML in configs/ is loaded and its network, losses
and steps are looked up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, competition_folder
from PIL import Image

from pipeline import config as configs
from pipeline import ensemble, losses, networks, predict, train
from pipeline.data.augment import augmentations
from pipeline.postprocess import check

ROOT = Path(__file__).resolve().parents[1]


def picture(seed: int, size: tuple[int, int] = (40, 52)) -> tuple[np.ndarray, np.ndarray]:
    """RGB picture ``(Y, X, 3)`` of discs and bars and its label map (0 nothing, 1 disc, 2 bar)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    label = np.zeros(size, np.uint8)
    label[(y - rng.integers(10, 30)) ** 2 + (x - rng.integers(10, 40)) ** 2 < 50] = 1
    label[:, (x[0] - rng.integers(5, 45)) % 52 < 5] = 2
    colours = np.array([[40, 40, 40], [200, 60, 60], [60, 200, 120]])
    return np.clip(colours[label] + rng.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8), label


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def label_maps(root: Path) -> None:
    for n in range(6):
        image, label = picture(n)
        save(root / "images" / f"c{n}.png", image)
        save(root / "masks" / f"c{n}.png", label)
    save(root / "test_images" / "t0.png", picture(77, (37, 61))[0])


def pairs(root: Path) -> None:
    for n in range(6):
        image, label = picture(n)
        save(root / "src" / f"c{n}.png", image)
        save(root / "dst" / f"c{n}.png", 255 - image)
        save(root / "spots" / f"c{n}.png", (label == 1).astype(np.uint8))
    save(root / "test_images" / "t0.png", picture(77, (37, 61))[0])


def retouched(root: Path) -> None:
    """Photographs without their spots, of which one case has none."""
    for n in range(6):
        image, _ = picture(n)
        spotted = image.copy()
        if n:
            spotted[5 * n : 5 * n + 6, 12:18] = (30, 20, 10)
        save(root / "src" / f"c{n}.png", spotted)
        save(root / "dst" / f"c{n}.png", image)
    save(root / "test_images" / "t0.png", picture(77, (37, 61))[0])


IMAGE_DATA = {
    "dims": 2,
    "layout": "folders",
    "folders": {"image": "src", "target": "dst"},
    "folds": {"count": 2},
    "normalise": {"name": "range", "options": {"to": [-1, 1]}},
    "patch": {"size": [32, 32], "foreground": None, "batch": 2, "per_case": 2},
    "augment": [{"name": "flip", "options": {"axes": "each"}}, "rotate90"],
}
SHORT = {
    "epochs": 3,
    "optimizer": {"name": "adam", "options": {"lr": 0.01}},
    "average": {"start": 1, "lr": None},
    "preview_every": 2,
}

SYSTEMS: dict[str, dict] = {
    "surface": {},
    "label_maps_2d": {
        "task": "labels",
        "data": {
            "dims": 2,
            "layout": "folders",
            "classes": 3,
            "folds": {"count": 2},
            "normalise": {"name": "range"},
            "patch": {"size": [32, 32], "batch": 2},
            "augment": ["flip", "rotate90", "gamma"],
        },
        "network": {"name": "unet", "options": {"channels": [4, 4, 8, 8, 8]}},
        "losses": ["dice", "ce"],
        "metrics": ["dice", "iou"],
        "train": {**SHORT, "stop": {"monitor": "val_dice"}},
        "predict": {"overlap": 8},
        "postprocess": ["argmax", {"name": "dust", "options": {"below": 3}}],
    },
    "image_to_image": {
        "task": "image",
        "data": IMAGE_DATA,
        "network": {"name": "unet", "options": {"channels": [4, 4, 8, 8, 8]}},
        "losses": [{"name": "l1", "target": "target"}],
        "metrics": ["psnr", "mae"],
        "train": SHORT,
        "predict": {"overlap": 8, "window": "feather"},
    },
    "mask_head": {
        "task": "image",
        "data": {
            **IMAGE_DATA,
            "folders": {"image": "src", "target": "dst", "mask": "spots"},
            "targets": {"target": "image", "mask": "labels"},
        },
        "network": {"name": "unet", "options": {"channels": [4, 4, 8, 8, 8], "heads": {"mask": 1}}},
        "losses": [
            {"name": "charbonnier", "target": "target"},
            {"name": "dice", "head": "mask", "target": "mask", "weight": 0.5},
        ],
        "train": SHORT,
        "predict": {"overlap": 8},
    },
    "retouch": {
        "task": "image",
        "data": {
            **IMAGE_DATA,
            "normalise": {"name": "range", "options": {"to": [0, 1]}},
            "change": {"dilation": 1, "blur": 1},
            "patch": {**IMAGE_DATA["patch"], "changed": 0.5, "border": "mirror"},
        },
        "network": {"name": "abpn", "options": {"widths": [4, 8], "refine": 4, "form": "positive"}},
        "losses": [
            {"name": "masked_l1", "target": "target", "weight": 1.3},
            {"name": "masked_sobel", "target": "target"},
            {"name": "masked_laplacian", "target": "target", "weight": 0.7},
            {"name": "dice", "head": "mask", "target": "mask", "options": {"batch": True}},
        ],
        "metrics": ["psnr", "retouch"],
        "train": SHORT,
        "predict": {"patch": "whole"},
    },
    "deep_supervision": {
        "task": "labels",
        "data": {
            "layout": "competition",
            "ignore_label": 2,
            "folds": {"count": 2},
            "patch": {"size": [16, 16, 16]},
        },
        "network": {"name": "dynunet", "options": {"channels": [4, 8, 8], "deep_supervision": 1}},
        "losses": ["dice", {"name": "ce", "head": "deep1", "weight": 0.5}],
        "train": {
            **SHORT,
            "schedule": {"name": "plateau"},
            "optimizer": {"name": "sgd"},
            "clip": 1.0,
            "accumulate": 2,
        },
        "predict": {"overlap": 4},
    },
}
DATA: dict[str, Callable[[Path], object]] = {
    "surface": competition_folder,
    "label_maps_2d": label_maps,
    "image_to_image": pairs,
    "mask_head": pairs,
    "retouch": retouched,
    "deep_supervision": competition_folder,
}


@dataclass(frozen=True)
class Trained:
    name: str
    config: Path
    data: Path
    run: Path


@pytest.fixture(scope="module", params=list(SYSTEMS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A stand-in trained on both folds by the command itself."""
    folder = tmp_path_factory.mktemp(request.param)
    data, run, path = folder / "data", folder / "run", folder / "system.yaml"
    DATA[request.param](data)
    # JSON is YAML.
    path.write_text(
        json.dumps({"name": request.param, **SYSTEMS[request.param]})
        if SYSTEMS[request.param]
        else TINY
    )
    assert train.main(["--config", str(path), "--data-dir", str(data), "--out", str(run)]) == 0
    return Trained(request.param, path, data, run)


def test_every_fold_left_its_files(trained: Trained) -> None:
    for fold in (0, 1):
        folder = trained.run / f"fold_{fold}"
        for name in (
            "best_model.safetensors",
            "swa_model.safetensors",
            "training_log.txt",
            "log.jsonl",
            "result.json",
        ):
            assert (folder / name).is_file(), name
        for name in ("checkpoint_latest", "tensorboard", "previews", "oof/soft"):
            assert any((folder / name).iterdir()), name
        assert not (folder / "oof" / "work").exists()
    for name in ("config.yaml", "environment.json", "splits.json", "summary.json", "report.html"):
        assert (trained.run / name).is_file(), name
    assert not list(trained.run.rglob(".tmp-*"))


def test_every_case_is_held_out_once(trained: Trained) -> None:
    summary = json.loads((trained.run / "summary.json").read_text())
    assert len(summary["cases"]) == 6
    assert {c["fold"] for c in summary["cases"].values()} == {0, 1}
    assert summary["out_of_fold"]
    for fold in summary["folds"]:
        assert fold["status"] == "completed"
        assert set(fold["metrics"]) == {"best", "swa"}
        assert fold["chosen"] in fold["metrics"]


def test_each_term_is_logged_by_itself(trained: Trained) -> None:
    lines = [json.loads(x) for x in (trained.run / "fold_0" / "log.jsonl").read_text().splitlines()]
    assert [x["epoch"] for x in lines] == [0, 1, 2]
    terms = [k for k in lines[0] if k.startswith("train/")]
    assert len(terms) == len(configs.load(trained.config).losses)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] * 1.05


def test_a_finished_run_is_left_alone(trained: Trained) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.run.rglob("*.safetensors")}
    assert (
        train.main(
            [
                "--config",
                str(trained.config),
                "--data-dir",
                str(trained.data),
                "--out",
                str(trained.run),
            ]
        )
        == 0
    )
    assert before == {p: p.stat().st_mtime_ns for p in trained.run.rglob("*.safetensors")}


def test_prediction_keeps_shape_and_type(trained: Trained, tmp_path: Path) -> None:
    tests = trained.data / "test_images"
    code = predict.main(
        [
            "--checkpoint",
            str(trained.run),
            "--input",
            str(tests),
            "--output",
            str(tmp_path / "p"),
            "--save-soft",
        ]
    )
    assert code == 0
    rows = json.loads((tmp_path / "p" / "summary.json").read_text())["files"]
    assert [r["status"] for r in rows] == ["done"] * len(list(tests.iterdir()))
    for row in rows:
        from pipeline import files

        dims = configs.load(trained.config).data.dims
        given, _ = files.read(Path(row["file"]), dims)
        answer, _ = files.read(tmp_path / "p" / row["output"], dims)
        assert answer.shape[1:] == given.shape[1:]
        assert answer.dtype == np.uint8
        if configs.load(trained.config).task == "image":
            assert answer.shape == given.shape


def test_retouching_is_scored_inside_and_outside_and_leaves_its_masks(tmp_path: Path) -> None:
    path, data, run = tmp_path / "system.yaml", tmp_path / "data", tmp_path / "run"
    retouched(data)
    path.write_text(json.dumps({"name": "retouch", **SYSTEMS["retouch"]}))
    assert train.main(["--config", str(path), "--data-dir", str(data), "--out", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert {"psnr", "psnr_in", "psnr_out", "leak", "mask_dice", "empty_mask"} <= set(
        summary["out_of_fold"]
    )
    idle = next(scores for name, scores in summary["baselines"].items() if "nothing" in name)
    assert idle["leak"] == 0
    assert idle["psnr_in"] < idle["psnr_out"]
    strip = np.asarray(Image.open(sorted((run / "fold_0" / "previews").glob("epoch_*.png"))[-1]))
    assert strip.shape[1] > 4 * strip.shape[0] / 2  # five columns, two rows
    words = [
        "--checkpoint",
        str(run / "fold_0"),
        "--input",
        str(data / "src"),
        "--output",
        str(tmp_path / "p"),
        "--save-soft",
    ]
    assert predict.main(words) == 0
    masks = sorted((tmp_path / "p" / "masks").glob("*.png"))
    assert [m.stem for m in masks] == [f"c{n}" for n in range(6)]
    assert (
        np.asarray(Image.open(masks[0])).shape
        == np.asarray(Image.open(data / "src" / "c0.png")).shape[:2]
    )
    words = [
        "--fold-dirs",
        str(tmp_path / "p"),
        str(tmp_path / "p"),
        "--output",
        str(tmp_path / "e"),
    ]
    assert ensemble.main(words) == 0
    for name in ("c1.png", "masks/c1.png"):  # the mean of two equal predictions is the same
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / "e" / name)),
            np.asarray(Image.open(tmp_path / "p" / name)),
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "change",
    [
        [],
        ["train.amp=bf16"],
        ["train.amp=fp16"],
        ["train.compile=true"],
        ["train.channels_last=true"],
    ],
    ids=str,
)
def test_cuda_trains_and_resumes(change: list[str], tmp_path: Path) -> None:
    path, data = tmp_path / "system.yaml", competition_folder(tmp_path / "data")
    path.write_text(TINY)
    words = [
        "--config",
        str(path),
        "--data-dir",
        str(data),
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cuda",
        "--fold",
        "0",
    ]
    assert train.main([*words, "--set", "data.workers=2", *change]) == 0
    (tmp_path / "run" / "fold_0" / "result.json").unlink()
    assert train.main([*words, "--set", "data.workers=2", *change]) == 0


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_names_what_exists(path: Path) -> None:
    config = configs.load(path)
    assert configs.from_dict(configs.to_dict(config)) == config
    network = networks.build(config.network, 1, 1, config.data.dims)
    losses.check(config.losses, network.heads, config.kinds)
    augmentations(config)
    if config.task == "labels":
        check(config.postprocess)
    first = path.read_text().splitlines()[0]
    assert first.startswith("#"), "the first line says what the system is"
