"""The 2D system from folders to scores: colour images with a field of view, SA-UNet, frames,
pooling, tuning inside the field of view.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import ensemble, evaluate, files, predict, train, tune
from pipeline.config import ConfigError, load
from pipeline.data.properties import CaseProperties
from pipeline.metrics import evaluate_frames
from pipeline.metrics.frames import Truth
from pipeline.records import NamedOptions
from pipeline.reporting import tables
from pipeline.workflows.checks import check_names

SHAPE = (40, 45)
NAMES = [f"Image_{child:02}{eye}" for child in (1, 2, 3) for eye in "LR"]
SMALL = """
name: small
task: labels
data:
  layout: folders
  folders: {image: images, label: masks, fov: fov}
  dims: 2
  frames: {fov: fov, padded: [48, 48]}
  folds: {count: 2, by: group, pattern: '_(\\d+)[LR]$'}
  patch: {size: [24, 24], foreground: [0.05, 0.5], tries: 3, batch: 4, per_case: 8}
  augment: [flip, rotate90, colour]
network: {name: sa_unet, options: {channels: [4, 4, 8, 8], block: 3, keep: 0.95, momentum: 0.1}}
losses: [{name: ce}, {name: dice}]
metrics: [dice, specificity, accuracy, roc_auc, pr_auc]
train:
  epochs: 10
  optimizer: {name: adam, options: {lr: 2.0e-2}}
  stop: {monitor: val_dice, patience: 10}
  validate: {every: 2, metrics: [dice, roc_auc]}
  preview_every: 10
predict: {patch: [32, 32], overlap: 8}
postprocess: [threshold]
"""


def eye(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ``(3, Y, X)``, vessels and field of view ``(Y, X)``: wavy dark green lines on a bright
    disc in a black frame.

    Four annotated pixels lie in a corner outside the disc, where nothing can be seen (CHASE_DB1 has
    such).
    """
    draw = np.random.default_rng(seed)
    y, x = np.indices(SHAPE)
    fov = (y - SHAPE[0] / 2) ** 2 + (x - SHAPE[1] / 2) ** 2 < 18**2
    vessels = fov & ((y + 3 * np.sin(x / 6 + draw.uniform(0, 6)) + draw.uniform(0, 9)) % 9 < 2)
    image = (
        np.stack([160 * fov, (120 - 60 * vessels) * fov, 60 * fov])
        + draw.normal(0, 6, (3, *SHAPE)) * fov
    )
    vessels[0, :4] = True
    return (
        np.clip(image, 0, 255).astype(np.uint8),
        (255 * vessels).astype(np.uint8),
        (255 * fov).astype(np.uint8),
    )


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("eyes")
    for n, name in enumerate([*NAMES, "Image_09L"]):
        for role, array in zip(("images", "masks", "fov"), eye(n), strict=True):
            files.write(root / role / f"{name}.png", array)
    (root / "split.json").write_text(json.dumps({"train": NAMES, "test": ["Image_09L"]}))
    (root / "small.yaml").write_text(SMALL)
    return root


@pytest.fixture(scope="module")
def run(eyes: Path) -> Path:
    """A trained run; the folder beside it holds its data."""
    assert (
        train.main(
            [
                "--config",
                str(eyes / "small.yaml"),
                "--data-dir",
                str(eyes),
                "--out",
                str(eyes / "run"),
                "--fold",
                "-1",
            ]
        )
        == 0
    )
    return eyes / "run"


def test_both_eyes_of_a_child_stay_on_one_side_and_test_images_are_not_trained_on(
    run: Path,
) -> None:
    cases = files.read_json(run / "summary.json")["cases"]
    assert sorted(cases) == NAMES
    assert {name: case["group"] for name, case in cases.items()} == {
        name: name[6:8] for name in NAMES
    }
    for child in ("01", "02", "03"):
        assert len({case["fold"] for case in cases.values() if case["group"] == child}) == 1


def test_summary_holds_every_frame_as_mean_and_pooled(run: Path) -> None:
    summary = files.read_json(run / "summary.json")
    names = {
        f"{m}_{f}"
        for m in ("dice", "specificity", "accuracy", "roc_auc", "pr_auc")
        for f in ("fov", "full", "padded")
    }
    assert set(summary["out_of_fold"]) == set(summary["pooled"]) == names
    assert next(iter(summary["out_of_fold"])) == "dice_fov"
    assert summary["out_of_fold"]["dice_fov"] > 0.7
    assert (
        summary["pooled"]["accuracy_padded"]
        > summary["pooled"]["accuracy_full"]
        > summary["pooled"]["accuracy_fov"]
    )


def test_pooled_numbers_are_those_of_all_answers_side_by_side(run: Path, eyes: Path) -> None:
    answers, softs, labels, fovs = [], [], [], []
    for fold in (0, 1):
        for path in sorted((run / f"fold_{fold}" / "oof").glob("*.png")):
            answers.append(files.read(path, 2, labels=True)[0][0])
            softs.append(
                np.load(run / f"fold_{fold}" / "oof" / "soft" / f"{path.stem}.npy")[0].astype(
                    np.float32
                )
            )
            labels.append(files.read(eyes / "masks" / path.name, 2)[0][0] // 255)
            fovs.append(files.read(eyes / "fov" / path.name, 2)[0][0])
    parts = [NamedOptions(name=n) for n in ("dice", "specificity", "accuracy", "roc_auc", "pr_auc")]
    whole = Truth(label=np.concatenate(labels), fov=np.concatenate(fovs))
    expected = evaluate_frames(parts, np.concatenate(answers), whole, np.concatenate(softs))
    pooled = files.read_json(run / "summary.json")["pooled"]
    assert {k: v for k, v in pooled.items() if not k.endswith("_padded")} == pytest.approx(
        expected, abs=1e-9
    )


def test_rows_to_beat_name_the_channel_that_they_use(run: Path) -> None:
    rows = files.read_json(run / "summary.json")["baselines"]
    assert list(rows) == ["empty answer", "best global threshold (channel 1, dark)"]
    assert rows["empty answer"]["roc_auc_fov"] == 0.5
    assert (
        rows["best global threshold (channel 1, dark)"]["dice_fov"] > 0.9
    )  # the drawn lines are this easy inside the disc


def test_table_has_a_line_for_each_frame(run: Path) -> None:
    text = tables.of_training(files.read_json(run / "summary.json"))
    head, frames = text.split("frame ")
    assert "dice_fov" in head
    assert "dice_full" not in head
    assert [line.split()[-6] for line in frames.splitlines()[1:4]] == ["fov", "full", "padded"]


def test_evaluate_counts_predictions_in_frames_and_pools_them(
    run: Path, eyes: Path, tmp_path: Path
) -> None:
    words = [
        "--checkpoint",
        run,
        "--input",
        *(eyes / "images" / f"{n}.png" for n in NAMES[:2]),
        "--output",
        tmp_path / "p",
        "--save-soft",
    ]
    assert predict.main([str(w) for w in words]) == 0
    for role in ("masks", "fov"):
        (tmp_path / role).mkdir()
        for name in NAMES[:2]:
            (tmp_path / role / f"{name}.png").write_bytes(
                (eyes / role / f"{name}.png").read_bytes()
            )
    names = ["dice", "accuracy", "roc_auc"]
    words = [
        "--predictions",
        tmp_path / "p",
        "--labels",
        tmp_path / "masks",
        "--metrics",
        *names,
        "--out",
        tmp_path / "out.json",
    ]
    assert (
        evaluate.main([str(w) for w in [*words, "--fov", tmp_path / "fov", "--padded", "48"]]) == 0
    )
    scores = files.read_json(tmp_path / "out.json")
    assert list(scores["cases"]) == NAMES[:2]
    assert (
        set(scores["pooled"])
        == set(scores["mean"])
        == {f"{n}_{f}" for n in names for f in ("fov", "full", "padded")}
    )
    assert evaluate.main([str(w) for w in words]) == 0
    assert set(files.read_json(tmp_path / "out.json")["mean"]) == set(names)


def test_evaluate_says_what_is_missing(
    run: Path, eyes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--predictions", str(eyes / "masks"), "--labels", str(eyes / "masks")]
    assert evaluate.main([*words, "--metrics", "roc_auc"]) == 2
    assert "--save-soft" in capsys.readouterr().err
    assert evaluate.main([*words, "--metrics", "dice", "--padded", "48"]) == 2
    assert "--padded stands without --fov" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert evaluate.main([*words, "--metrics", "dice", "--fov", str(tmp_path / "none")]) == 2
    assert "no mask for 7 cases" in capsys.readouterr().err


def test_tuning_counts_inside_the_field_of_view(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "stages:\n"
        + "  - "
        + "\n    ".join(
            f"- [{{name: threshold, options: {{at: {t}}}}}]" for t in (0.3, 0.4, 0.5, 0.6)
        )
    )
    assert (
        tune.main(
            [
                str(run),
                "--space",
                str(space),
                "--metric",
                "dice",
                "--out",
                str(tmp_path / "tuned.yaml"),
                "--workers",
                "1",
            ]
        )
        == 0
    )
    assert "inside the field of view" in capsys.readouterr().out
    rows = {r["name"]: r for r in files.read_json(run / "tuning" / "result.json")["rows"]}
    own = files.read_json(run / "summary.json")["out_of_fold"]
    assert rows["the run's own"]["mean"]["dice"] == pytest.approx(
        own["dice_fov"], abs=2e-3
    )  # halves on disk
    assert own["dice_fov"] > own["dice_full"] + 0.005
    words = [
        "--spec",
        str(tmp_path / "tuned.yaml"),
        "--input",
        str(eyes_of(run) / "images" / "Image_09L.png"),
        "--output",
        str(tmp_path / "q"),
    ]
    assert ensemble.main(words) == 0
    assert (tmp_path / "q" / "Image_09L.png").is_file()


def eyes_of(run: Path) -> Path:
    return run.parent


def test_probability_metrics_are_refused_for_more_classes(eyes: Path) -> None:
    config = load(eyes / "small.yaml", ["data.classes=3", "train.validate.metrics=[dice]"])
    with pytest.raises(
        ConfigError, match=r"metrics\.3: 'roc_auc' is for task labels with data.classes: 2"
    ):
        check_names(config, [CaseProperties(id="a", files={}, shapes={"image": (3, *SHAPE)})])


def test_tuning_by_a_metric_of_probabilities_is_refused(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    assert tune.main([str(run), "--metric", "roc_auc"]) == 2
    assert "not a metric of label maps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("data.frames.fov=label", "is a target"),
        ("data.frames={padded: [48, 48]}", "stands without fov"),
        ("data.frames.padded=[48]", "needs 2 numbers"),
        ("data.folds.pattern=Image", "one bracket"),
        ("data.folds.pattern='('", "one bracket"),
        ("predict.scales=[0]", "0.1 to 10"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(eyes: Path, change: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(eyes / "small.yaml", [change])


def test_the_shipped_config_finds_the_real_images(
    shared_data: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [
        "--config",
        "configs/vessels.yaml",
        "--data-dir",
        str(shared_data / "chase_db1"),
        "--dry-run",
    ]
    assert train.main(words) == 0
    assert "Found 10 image-label pairs" in capsys.readouterr().out
