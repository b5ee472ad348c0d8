"""Scores of images: of the answer as it is saved, on 0..1, the same in training and in
pipeline.evaluate, beside "do nothing".
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio
from small_models import run_evaluate
from tiles import soft_of

from pipeline import evaluate as command
from pipeline import files
from pipeline.config import Config, from_dict
from pipeline.data import cache, cases, properties
from pipeline.data.cache import CachedCase
from pipeline.records import UserError
from pipeline.scoring import baselines, held_out
from pipeline.tasks import TASKS

DRAW = np.random.default_rng(5)


def setting(**data: Any) -> Config:
    return from_dict(
        {
            "name": "t",
            "task": "image",
            "data": {
                "dims": 2,
                "layout": "folders",
                "folders": {"image": "src", "target": "dst"},
                "normalise": {"name": "range", "options": {"low": 0, "high": None, "to": [-1, 1]}},
                "patch": {"size": [16, 16], "foreground": None},
                **data,
            },
            "network": "unet",
            "losses": [{"name": "l1", "target": "target"}],
            "metrics": ["psnr", "mae", {"name": "ssim", "options": {"kernel": "3d"}}],
        }
    )


def pair(dtype: str, shape: tuple[int, ...] = (3, 20, 24)) -> tuple[np.ndarray, np.ndarray]:
    """Target and a noisy version of it, over the type's whole range."""
    most = np.iinfo(dtype).max if dtype[0] in "ui" else 1
    y, x = np.mgrid[: shape[1], : shape[2]]
    target = np.clip(
        0.5 + 0.6 * np.sin(y / 3 + np.arange(shape[0])[:, None, None]) * np.cos(x / 5), 0, 1
    )
    noisy = np.clip(target + DRAW.normal(0, 0.05, target.shape), 0, 1)
    kind = np.dtype(dtype)
    return tuple(
        np.rint(a * most).astype(kind) if kind.kind == "u" else a.astype(kind)
        for a in (target, noisy)
    )  # type: ignore[return-value]


def stored(root: Path, target: np.ndarray, image: np.ndarray, suffix: str = ".png") -> CachedCase:
    files.write(root / "src" / f"one{suffix}", image, dims=2)
    files.write(root / "dst" / f"one{suffix}", target, dims=2)
    found = cases.find(setting().data, setting().targets, root).train
    return cache.build(
        found, properties.examine(found, setting(), None, write=False), setting(), root / "store"
    )[0]


@pytest.mark.parametrize(
    ("dtype", "suffix"),
    [("uint8", ".png"), ("uint16", ".png"), ("uint16", ".tif"), ("float32", ".tif")],
)
def test_a_score_is_that_of_the_saved_file_on_its_own_scale(
    dtype: str, suffix: str, tmp_path: Path
) -> None:
    """scikit-image on the file's integers says the same, although the network works on [-1, 1]."""
    target, image = pair(dtype)
    case = stored(tmp_path, target, image, suffix)
    soft = case.scale.apply(image) + DRAW.normal(0, 0.02, image.shape).astype(
        np.float32
    )  # reaches beyond [-1, 1]
    scores = held_out.score(setting(), soft_of(setting(), soft, case), case)
    answer = TASKS["image"].decide(soft, case.scale, dtype)
    most = np.iinfo(dtype).max if dtype != "float32" else 1
    assert scores["psnr"] == pytest.approx(
        peak_signal_noise_ratio(target, answer, data_range=most), rel=1e-5
    )
    assert scores["mae"] == pytest.approx(
        np.abs(target.astype(float) - answer).mean() / most, rel=1e-5
    )
    assert set(scores) == {"psnr", "mae", "ssim"}
    files.write(tmp_path / "answers" / f"one{suffix}", answer, dims=2)
    out = tmp_path / "scores.json"
    words = [
        "--predictions",
        tmp_path / "answers",
        "--labels",
        tmp_path / "dst",
        "--metrics",
        "psnr",
        "mae",
        "ssim:kernel=3d",
        "--out",
        out,
    ]
    assert command.main([str(w) for w in words]) == 0
    assert json.loads(out.read_text())["cases"]["one"] == pytest.approx(scores, rel=1e-9)


def test_what_lies_beyond_the_range_is_clipped_before_it_is_scored(tmp_path: Path) -> None:
    target = np.where(np.arange(400).reshape(1, 20, 20) % 2, 255, 0).astype(np.uint8)
    case = stored(tmp_path, target, target)
    assert (
        held_out.score(setting(), soft_of(setting(), 3 * case.scale.apply(target), case), case)[
            "psnr"
        ]
        == 100
    )
    near = case.scale.apply(target) + np.float32(0.4 / 127.5)
    assert held_out.score(setting(), soft_of(setting(), near, case), case) == {
        "psnr": 100,
        "mae": 0,
        "ssim": 1,
    }  # rounding gives the very values back


def test_a_prediction_that_is_no_number_names_the_case(tmp_path: Path) -> None:
    target, image = pair("uint8")
    case = stored(tmp_path, target, image)
    soft = case.scale.apply(image)
    soft[0, 3, 3] = np.nan
    with pytest.raises(UserError, match="case one: the prediction holds NaN"):
        held_out.score(setting(), soft_of(setting(), soft, case), case)


def test_a_target_of_another_number_type_is_refused(tmp_path: Path) -> None:
    case = stored(tmp_path, pair("uint16")[0], pair("uint8")[1])
    with pytest.raises(UserError, match="case one: the input holds uint8, its target uint16"):
        held_out.score(
            setting(),
            soft_of(setting(), case.scale.apply(np.asarray(case.image.array)), case),
            case,
        )


def test_do_nothing_is_the_score_of_the_input(tmp_path: Path) -> None:
    several = []
    for n in range(2):
        target, image = pair("uint8")
        several.append(stored(tmp_path / str(n), target, image))
    rows = baselines.of_images(setting(), several)
    each = [
        held_out.score(
            setting(), soft_of(setting(), c.scale.apply(np.asarray(c.image.array)), c), c
        )
        for c in several
    ]
    assert list(rows) == [baselines.DO_NOTHING] == ["do nothing (the input)"]
    assert rows[baselines.DO_NOTHING] == pytest.approx(
        {k: np.mean([e[k] for e in each]) for k in each[0]}
    )
    assert 20 < rows[baselines.DO_NOTHING]["psnr"] < 35


def test_do_nothing_needs_an_input_of_the_targets_shape(tmp_path: Path) -> None:
    target, image = pair("uint8")
    case = stored(tmp_path, target, image)
    grey = dataclasses.replace(case, image=dataclasses.replace(case.image, shape=(1, 20, 24)))
    assert baselines.of_images(setting(), [case, grey]) == {}
    assert baselines.of_images(setting(), []) == {}


# --- pipeline.evaluate ----------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Targets, answers that are better than their inputs, and inputs: 8 bits, 16 bits, floats."""
    for name, dtype, suffix in (
        ("a", "uint8", ".png"),
        ("b", "uint16", ".png"),
        ("c", "float32", ".tif"),
    ):
        target, noisy = pair(dtype)
        better = ((target.astype(float) + noisy) / 2).astype(dtype)
        for folder, image in (("dst", target), ("src", noisy), ("answers", better)):
            files.write(tmp_path / folder / f"{name}{suffix}", image, dims=2)
    return tmp_path


def test_images_of_every_type_beside_do_nothing(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_evaluate(
            folders, "--metrics", "psnr", "ssim", "--inputs", folders / "src", "--workers", 2
        )
        == 0
    )
    scores = json.loads((folders / "out.json").read_text())
    assert list(scores["cases"]) == ["a", "b", "c"]
    assert scores["mean"]["psnr"] == pytest.approx(
        np.mean([s["psnr"] for s in scores["cases"].values()])
    )
    # Half the error is 6.02 dB more, whatever the number type.
    assert scores["difference"]["psnr"] == pytest.approx(20 * math.log10(2), abs=0.1)
    assert scores["difference"]["psnr"] == pytest.approx(
        scores["mean"]["psnr"] - scores["do_nothing"]["psnr"]
    )
    assert scores["difference"]["ssim"] > 0
    assert max(abs(s["psnr"] - scores["mean"]["psnr"]) for s in scores["cases"].values()) < 1
    told = capsys.readouterr().out
    assert [line.split("  ")[0] for line in told.splitlines()][-3:] == [
        "mean",
        "do nothing",
        "difference",
    ]


def test_without_inputs_there_is_no_such_row(folders: Path) -> None:
    assert run_evaluate(folders, "--metrics", "mae") == 0
    assert set(json.loads((folders / "out.json").read_text())) == {"cases", "mean", "failed"}


def test_an_answer_that_cannot_be_scored_fails_by_name(folders: Path) -> None:
    broken = files.read(folders / "answers/c.tif", 2)[0].copy()
    broken[0, 5, 5] = np.nan
    files.write(folders / "answers/c.tif", broken, dims=2)
    files.write(folders / "answers/b.png", files.read(folders / "answers/b.png", 2)[0][:1])
    assert run_evaluate(folders, "--metrics", "psnr", "--inputs", folders / "src") == 3
    scores = json.loads((folders / "out.json").read_text())
    assert list(scores["cases"]) == ["a"]
    assert "NaN or infinite" in scores["failed"]["c"]
    assert "shape (1, 20, 24), its target (3, 20, 24)" in scores["failed"]["b"]
    assert set(scores["do_nothing"]) == {"psnr"}


def test_the_test_side_of_a_split_alone_is_scored(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders / "answers/a.png").unlink()
    assert run_evaluate(folders, "--metrics", "psnr") == 2
    assert "no answer for 1 of 3 labels: a" in capsys.readouterr().err
    files.write_json(folders / "split.json", {"train": ["a"], "test": ["b", "c"]})
    assert run_evaluate(folders, "--metrics", "psnr", "--split", folders / "split.json") == 0
    assert list(json.loads((folders / "out.json").read_text())["cases"]) == ["b", "c"]
    files.write_json(folders / "split.json", {"test": ["b", "z"]})
    assert run_evaluate(folders, "--metrics", "psnr", "--split", folders / "split.json") == 2
    assert "without a file" in capsys.readouterr().err
    files.write_json(folders / "split.json", {"train": ["b"]})
    assert run_evaluate(folders, "--metrics", "psnr", "--split", folders / "split.json") == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--metrics", "psnr", "dice"], "psnr are of images, the others of labels"),
        (["--metrics", "psnr", "--fov", "x"], "--fov is for metrics of labels"),
        (["--metrics", "psnr", "--ignore-label", "2"], "--ignore-label is for metrics of labels"),
        (["--metrics", "dice", "--inputs", "x"], "--inputs is for metrics of images"),
        (["--metrics", "psnr", "--inputs", "none"], "no such folder"),
        (["--metrics", "ssim:kernal=3d"], "Did you mean 'kernel'"),
        (["--metrics", "ssim:kernel"], "not KEY=VALUE"),
    ],
)
def test_wrong_options_are_refused(
    folders: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_evaluate(folders, *words) == 2
    assert told in capsys.readouterr().err


def test_a_missing_input_is_named(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "src/b.png").unlink()
    assert run_evaluate(folders, "--metrics", "psnr", "--inputs", folders / "src") == 2
    assert "no input for 1 cases: b" in capsys.readouterr().err
