"""The image systems from pairs to scores: what a run leaves beside its models, and that none of it
changes the training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import files, predict, train
from pipeline.inference.models import load_model
from pipeline.metrics import evaluate
from pipeline.metrics.image import intensities
from pipeline.records import NamedOptions
from pipeline.reporting import tables

SHAPE = (41, 52)
SMALL = """
name: small
task: image
data:
  layout: folders
  folders: {image: src, target: dst}
  dims: 2
  folds: {count: 2, by: group, pattern: '^(.+)_'}
  normalise: {name: range, options: {low: 0, high: null, to: [-1, 1]}}
  patch: {size: [32, 32], foreground: null, batch: 2, grid: 0.25}
  augment: [{name: flip, options: {axes: each}}, {name: rotate90, options: {p: 0.75}}]
network: {name: deblur_unet, options: {base: 8, groups: 4, residual: true}}
losses: [{name: charbonnier, target: target}]
metrics: [psnr, ssim]
train:
  epochs: 4
  optimizer: {name: adamw, options: {lr: 3.0e-3}}
  stop: {monitor: val_psnr, patience: 4}
  preview_every: 0
predict: {overlap: 8, window: feather}
"""


def pair(seed: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """A dim picture and the bright one that it should be, ``(3, Y, X)`` over the whole range of
    their type.
    """
    draw = np.random.default_rng(seed)
    coarse = np.kron(draw.random((3, 11, 13)), np.ones((4, 4)))[:, : SHAPE[0], : SHAPE[1]]
    most = np.iinfo(dtype).max
    return (most * (0.1 + 0.5 * coarse)).astype(dtype), (most * (0.2 + 0.7 * coarse)).astype(dtype)


@pytest.fixture(
    scope="module",
    params=[np.uint8, pytest.param(np.uint16, marks=pytest.mark.slow)],
    ids=["8 bits", "16 bits"],
)
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    for n in range(4):
        for folder, array in zip(("src", "dst"), pair(n, request.param), strict=True):
            files.write(root / folder / f"{'ab'[n // 2]}_{n}.png", array)
    (root / "small.yaml").write_text(SMALL)
    return root


def go(root: Path, name: str, *settings: str) -> Path:
    words = [
        "--config",
        str(root / "small.yaml"),
        "--data-dir",
        str(root),
        "--out",
        str(root / name),
        "--fold",
        "-1",
    ]
    assert train.main([*words, *(["--set", *settings] if settings else [])]) == 0
    return root / name


@pytest.fixture(scope="module")
def run(pairs: Path) -> Path:
    return go(pairs, "run", "train.keep_every=2", "train.preview_steps=3")


def test_models_stay_at_the_asked_epochs(run: Path) -> None:
    assert sorted(p.name for p in (run / "fold_0").glob("epoch_*")) == [
        "epoch_0002.safetensors",
        "epoch_0004.safetensors",
    ]
    model = load_model(run / "fold_0" / "epoch_0002.safetensors")
    assert (model.kind, model.epoch) == ("epoch", 1)
    assert model.score is not None


def test_the_preview_shows_a_fixed_batch_and_changes_nothing(run: Path, pairs: Path) -> None:
    picture = files.read(run / "fold_0" / "previews" / "training_preview.jpg", 2)[0]
    assert picture.shape == (3, 4 * 32, 3 * 32)
    plain = go(pairs, "plain")
    for fold in ("fold_0", "fold_1"):
        ours, theirs = (
            load_model(r / fold / "best_model.safetensors").weights for r in (run, plain)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_doing_nothing_is_a_row_to_beat_and_is_beaten(run: Path, pairs: Path) -> None:
    summary = files.read_json(run / "summary.json")
    row = summary["baselines"]["do nothing (the input)"]
    names = sorted(p.name for p in (pairs / "src").glob("*.png"))
    images = [[intensities(files.read(pairs / f / n, 2)[0]) for f in ("src", "dst")] for n in names]
    assert row["psnr"] == pytest.approx(
        np.mean([evaluate([NamedOptions(name="psnr")], *two)["psnr"] for two in images])
    )
    assert summary["out_of_fold"]["psnr"] > row["psnr"] + 2
    assert "do nothing" in tables.of_training(summary)


def test_saved_answers_reproduce_their_scores(run: Path, pairs: Path) -> None:
    for name, case in files.read_json(run / "summary.json")["cases"].items():
        answer, _ = files.read(run / f"fold_{case['fold']}" / "oof" / f"{name}.png", 2)
        truth, _ = files.read(pairs / "dst" / f"{name}.png", 2)
        assert answer.dtype == truth.dtype
        found = evaluate(
            [NamedOptions(name="psnr"), NamedOptions(name="ssim")],
            intensities(answer),
            intensities(truth),
        )
        assert found == pytest.approx(case["metrics"], abs=1e-9)


def test_patches_are_scored_on_the_scale_from_0_to_1(run: Path) -> None:
    """On [-1, 1] with a peak of 1 the same error would read 6 dB worse; whole images and patches
    agree within a few.
    """
    log = [
        line
        for line in (run / "fold_0" / "training_log.txt").read_text().splitlines()
        if "Val Psnr" in line
    ]
    last = float(log[-1].split("Val Psnr: ")[1].split(",")[0])
    whole = files.read_json(run / "fold_0" / "result.json")["metrics"]["best"]["psnr"]
    assert abs(last - whole) < 4


def test_prediction_keeps_number_type_and_size(run: Path, pairs: Path, tmp_path: Path) -> None:
    source = pairs / "src" / "a_0.png"
    assert (
        predict.main(["--checkpoint", str(run), "--input", str(source), "--output", str(tmp_path)])
        == 0
    )
    given, answer = (files.read(p, 2)[0] for p in (source, tmp_path / "a_0.png"))
    assert (answer.dtype, answer.shape) == (given.dtype, given.shape)


def test_pairs_of_two_number_types_are_a_fault_before_training(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for n in range(4):
        name = f"{'ab'[n // 2]}_{n}.png"
        files.write(tmp_path / "src" / name, pair(n, np.uint8)[0])
        files.write(tmp_path / "dst" / name, pair(n, np.uint16)[1])
    assert (
        train.main(
            ["--config", str(pairs / "small.yaml"), "--data-dir", str(tmp_path), "--dry-run"]
        )
        == 2
    )
    assert "holds uint16, its image a_0.png uint8" in capsys.readouterr().out


def test_shipped_configs_are_valid_and_their_networks_have_the_published_size() -> None:
    from pipeline import networks
    from pipeline.config import load

    root = Path(__file__).resolve().parents[1] / "configs"
    for name, size in (("deblur", 8_636_451), ("image_to_image", 31_384_963)):
        config = load(root / f"{name}.yaml")
        with torch.device("meta"):
            assert networks.parameters(networks.build(config.network, 3, 3, 2)) == size
