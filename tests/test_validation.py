"""Validation over an epoch: voxels are counted, not scores averaged; nothing to count is NaN; old
runs keep their rule.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import sheets
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline import evaluate as scoring
from pipeline import train
from pipeline.config import Config, from_dict
from pipeline.metrics import evaluate
from pipeline.metrics.context import MetricContext
from pipeline.records import NamedOptions
from pipeline.scoring.patches import PatchRules, PatchScores, measure

PATCHES = st.integers(1, 5).flatmap(
    lambda n: st.tuples(*[arrays(np.uint8, (n, 4, 5), elements=st.integers(0, 3))] * 2)
)
"""Answers of classes 0 to 2 (3 is read as 2) and labels, of which 3 is ignored."""
COUNTED = ("dice", "iou", "precision", "recall", "specificity", "accuracy")


def config(classes: int, metrics: tuple[str, ...] = COUNTED) -> Config:
    data = {
        "dims": 2,
        "layout": "folders",
        "classes": classes,
        "ignore_label": 3,
        "patch": {"size": [4, 5]},
    }
    validate = {"metrics": list(metrics)}
    return from_dict(
        {
            "name": "t",
            "data": data,
            "network": "unet",
            "losses": ["dice"],
            "train": {"validate": validate},
        }
    )


def fail(case_id: str) -> None:
    raise AssertionError(case_id)


def scored(
    rules: PatchRules, answers: np.ndarray, labels: np.ndarray, batch: int = 2
) -> dict[str, float]:
    """Values of patches whose network answers ``answers``, in batches, by way of JSON as between
    ranks.
    """
    channels = 1 if rules.config.data.classes == 2 else rules.config.data.classes
    total = PatchScores(rules)
    for first in range(0, len(answers), batch):
        part = slice(first, first + batch)
        logits = (
            np.stack(
                (
                    [answers[part] > 0]
                    if channels == 1
                    else [answers[part] == k for k in range(channels)]
                ),
                1,
            )
            * 8.0
            - 4
        )
        truth = torch.from_numpy(labels[part, None])
        found = measure(
            rules,
            torch.from_numpy(logits),
            {"id": [str(n) for n in range(len(truth))], "label": truth},
        )
        total.add(json.loads(json.dumps(found)))
    return total.result()


@settings(max_examples=60)
@given(PATCHES, st.booleans(), st.integers(1, 3))
def test_an_epoch_is_one_large_patch(
    maps: tuple[np.ndarray, np.ndarray], binary: bool, batch: int
) -> None:
    """Of counted metrics, whatever the batches: Dice of several classes is that of all voxels
    together, class by class.
    """
    top = 1 if binary else 2
    answers, labels = np.minimum(maps[0], top), np.where(maps[1] == 3, 3, np.minimum(maps[1], top))
    rules = PatchRules(config=config(top + 1), version=2, fail=fail)
    found = scored(rules, answers, labels, batch)
    valid = labels != 3
    classes = tuple(range(1, top + 1))
    whole = evaluate(
        [NamedOptions(name=n) for n in COUNTED],
        answers,
        np.where(valid, labels, 0),
        valid,
        context=MetricContext(classes=classes),
    )
    assert list(found) == [f"val_{k}" for k in whole]
    nothing = not (valid & ((answers > 0) | (labels > 0))).any()
    for key, value in whole.items():
        counted_nowhere = math.isnan(value) or (binary and nothing and key in COUNTED[:4])
        # A class that occurs nowhere has no specificity, but its background may have been counted.
        if not counted_nowhere and not key.startswith("specificity"):
            assert found[f"val_{key}"] == pytest.approx(value), key
        elif key in COUNTED[:4]:
            assert math.isnan(found[f"val_{key}"]), key


def test_columns_stay_and_absent_classes_are_nan() -> None:
    rules = PatchRules(config=config(3, ("dice", "surface_dice")), version=2, fail=fail)
    empty, one = np.zeros((2, 4, 5), np.uint8), np.ones((2, 4, 5), np.uint8)
    keys = [
        "val_dice",
        "val_dice_1",
        "val_dice_2",
        "val_surface_dice",
        "val_surface_dice_1",
        "val_surface_dice_2",
    ]
    for answers, labels in ((empty, empty), (one, one), (one * 2, one), (empty, one * 3)):
        assert list(scored(rules, answers, labels)) == keys
    found = scored(rules, one, one)
    assert (found["val_dice"], found["val_dice_1"]) == (1, 1)
    assert math.isnan(found["val_dice_2"])
    assert all(math.isnan(v) for v in scored(rules, empty, one * 3).values())


def test_old_runs_average_patches() -> None:
    """Metrics version 1: an empty side of one patch counts 0, whatever the others hold."""
    answers, labels = np.zeros((2, 2, 4, 5), np.uint8)
    answers[0], labels[0] = 2, 2
    answers[1, 0, 0] = 2
    old, new = (PatchRules(config=config(3, ("dice",)), version=v, fail=fail) for v in (1, 2))
    assert scored(old, answers, labels) == {"val_dice": 0.5, "val_dice_2": 0.5}
    assert scored(new, answers, labels)["val_dice_2"] == pytest.approx(40 / 41)


def test_probabilities_of_an_epoch_are_ranked_together() -> None:
    """Each patch ranks perfectly by itself, the two together do not."""
    rules = PatchRules(config=config(2, ("roc_auc",)), version=2, fail=fail)
    logits = torch.tensor([[[[-2.0, -1.0]]], [[[1.0, 2.0]]]], dtype=torch.float64)
    labels = torch.tensor([[[[0, 1]]], [[[0, 1]]]], dtype=torch.uint8)
    total = PatchScores(rules)
    total.add(measure(rules, logits, {"id": ["a", "b"], "label": labels}))
    assert total.result() == {"val_roc_auc": 0.75}


# --- through the command --------------------------------------------------------------------------

THREE = """
name: three
data:
  layout: folders
  classes: 3
  ignore_label: 3
  folds: {count: 2}
  patch: {size: [16, 16, 16], foreground: null, batch: 2}
  augment: []
network: {name: unet, options: {channels: [4, 4, 8, 8, 8]}}
losses: [dice, ce]
metrics: [dice, hd95, {name: surface_dice, options: {tolerance_mm: 3.0}}]
train:
  epochs: 2
  optimizer: {name: adam, options: {lr: 1.0e-2}}
  stop: {monitor: val_dice}
  validate: {metrics: [dice, hd95], per_case: 2}
predict: {overlap: 4}
"""


def data_set(
    root: Path, ignored: tuple[int, ...] = (), spacing: tuple[float, ...] = (1, 1, 3)
) -> Path:
    """Four NIfTI cases of two classes, of which half lack class 2; those of ``ignored`` are not
    labelled at all.
    """
    for n in range(4):
        image, label = sheets((20, 20, 20), n)
        label[label == 2] = 0
        label[12:] *= 1 + n % 2
        label = np.full_like(label, 3) if n in ignored else label
        for folder, array in (("images", image), ("masks", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nibabel.save(
                nibabel.Nifti1Image(array, np.diag([*spacing, 1])), root / folder / f"c{n}.nii.gz"
            )
    return root


def run(tmp_path: Path, *options: str, code: int = 0) -> list[dict[str, Any]]:
    """Train on ``tmp_path/data``; the epochs of the fold asked for, which is 0 unless said."""
    (tmp_path / "c.yaml").write_text(THREE)
    words = [
        "--config",
        str(tmp_path / "c.yaml"),
        "--data-dir",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "run"),
        *options,
    ]
    assert train.main([*words, *(() if "--fold" in options else ("--fold", "0"))]) == code
    log = tmp_path / "run/fold_0/log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def test_a_run_has_the_same_columns_in_every_epoch_and_lengths_in_millimetres(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_set(tmp_path / "data")
    epochs = run(tmp_path, "--fold", "-1")
    columns = {"val_dice", "val_dice_1", "val_dice_2", "val_hd95", "val_hd95_1", "val_hd95_2"}
    assert all(columns <= set(epoch) for epoch in epochs)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["units"] == {"hd95": "mm"}
    assert "hd95 [mm]" in capsys.readouterr().out
    assert len({tuple(case["metrics"]) for case in summary["cases"].values()}) == 1
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["metrics_version"] == 2


@pytest.mark.slow
def test_the_answers_of_a_fold_score_as_they_did_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cases are known without an option: the other labels are not missing. (Kept answers come
    from probabilities in half precision.)
    """
    data_set(tmp_path / "data")
    run(tmp_path, "--fold", "-1")
    for fold in (0, 1):
        oof, out = tmp_path / f"run/fold_{fold}/oof", tmp_path / "scores.json"
        words = [
            "--predictions",
            oof,
            "--labels",
            tmp_path / "data/masks",
            "--metrics",
            "dice",
            "hd95",
            "--out",
            out,
        ]
        assert scoring.main([str(w) for w in words]) == 0
        found = json.loads(out.read_text())
        assert found["units"] == {"hd95": "mm"}
        known = json.loads((tmp_path / f"run/fold_{fold}/result.json").read_text())
        for case, scores in found["cases"].items():
            then = known["cases"][known["chosen"]][case]
            assert scores == pytest.approx({k: then[k] for k in scores}, abs=0.01)
        assert set(found["cases"]) == set(known["cases"][known["chosen"]])
    assert "label value 3 is not counted" in capsys.readouterr().out


def test_ignored_patches_weigh_nothing_and_it_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss of the fold is that of the labelled case alone."""
    splits = {}
    for name, ignored in (("all", ()), ("part", (0, 1))):
        data_set(tmp_path / name / "data", ignored)
        run(tmp_path / name)
        splits[name] = json.loads((tmp_path / name / "run/splits.json").read_text())["folds"][0][
            "val"
        ]
    out = capsys.readouterr().out
    held = splits["part"]
    unlabelled = 2 * len({"c0", "c1"} & set(held))
    assert splits["all"] == held
    assert 0 < unlabelled < 2 * len(held)
    assert (
        out.count(f"{unlabelled} validation patches hold no labelled voxel; they are left out") == 1
    )


def test_a_fold_with_nothing_to_validate_on_fails_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_set(tmp_path / "data")
    run(tmp_path)
    held = json.loads((tmp_path / "run/splits.json").read_text())["folds"][0]["val"]
    data_set(tmp_path / "data", tuple(int(name[1]) for name in held))
    run(tmp_path, "--fresh", code=2)
    assert (
        "fold 0 has nothing to validate on: all voxels of its cases are ignored"
        in capsys.readouterr().err
    )


def test_patches_of_which_none_is_labelled_fail_the_fold_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A single labelled voxel in a corner, which no patch of these seeds meets."""
    data_set(tmp_path / "data", (0, 1, 2, 3))
    for path in (tmp_path / "data/masks").iterdir():
        label = np.full((20, 20, 20), 3, np.uint8)
        label[0, 0, 0] = 1
        nibabel.save(nibabel.Nifti1Image(label, np.diag([1, 1, 3, 1])), path)
    run(tmp_path, code=1)
    assert (
        "validation patches of fold 0 holds a labelled voxel, so there is nothing to validate on"
        in capsys.readouterr().out
    )


def test_a_tolerance_in_millimetres_needs_spacing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import files

    data_set(tmp_path / "data")
    for path in sorted((tmp_path / "data").glob("*/*.nii.gz")):
        files.write(
            path.with_name(f"{files.stem(path)}.tif"),
            np.asarray(nibabel.load(path).dataobj),
            dims=3,
        )
        path.unlink()
    run(tmp_path, code=2)
    assert "tolerance_mm needs the distance between voxels" in capsys.readouterr().err
