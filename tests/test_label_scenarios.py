"""Classes, an ignored label, regions, and regions with an ignored label: trained, tuned, predicted,
fused and evaluated, each as a whole.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline import ensemble, evaluate, files, predict, report, train, tune
from pipeline.inference import soft

SIDE = 24
IGNORE = 3
REGIONS = {"hippocampus": [1, 2], "anterior": 1}
ORDER = [2, 1]
SCENARIOS = {
    "classes": {},
    "ignore": {"ignore_label": IGNORE},
    "regions": {"regions": REGIONS, "regions_class_order": ORDER},
    "regions_ignore": {
        "regions": REGIONS,
        "regions_class_order": ORDER,
        "ignore_label": IGNORE,
    },
}
NAMES = {1: "Anterior", 2: "Posterior"}


def truth_of(case: int) -> np.ndarray:
    """A square whose left part is 1 and whose right part is 2."""
    y, x = np.random.default_rng(case).integers(2, 7, 2)
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[y : y + 14, x : x + 7] = 1
    label[y : y + 14, x + 7 : x + 14] = 2
    return label


def made_data(root: Path, ignore: bool, cases: int = 4) -> Path:
    """Grey images whose values follow the labels; with ``ignore`` half of the rows is unlabelled
    and says nothing of the image.
    """
    for case in range(cases):
        rng, truth = np.random.default_rng(case), truth_of(case)
        image = np.clip(truth * 90 + rng.integers(0, 20, truth.shape), 0, 255).astype(np.uint8)
        label = truth.copy()
        if ignore:
            label[::2] = IGNORE
        files.write(root / "imagesTr" / f"case{case}_0000.png", image[None])
        files.write(root / "labelsTr" / f"case{case}.png", label[None])
        files.write(root / "truth" / f"case{case}.png", truth[None])
        files.write(root / "imagesTs" / f"case{case}_0000.png", image[None])
    return root


def config_of(path: Path, scenario: str) -> Path:
    settings = {
        "name": scenario,
        "data": {
            "layout": "nnunet",
            "dims": 2,
            "classes": 3,
            "class_names": NAMES,
            "channel_names": ["grey"],
            "folds": {"count": 2},
            "patch": {"size": [24, 24], "batch": 4, "per_case": 8, "foreground": None},
            **SCENARIOS[scenario],
        },
        "network": {
            "name": "dynunet",
            "options": {"channels": [12, 12, 12], "deep_supervision": 1},
        },
        "losses": ["dice", "ce"],
        "metrics": ["dice", "surface_dice", "betti_error"],
        "train": {
            "epochs": 8,
            "optimizer": {"name": "adam", "options": {"lr": 2e-2}},
            "validate": {"every": 4, "metrics": ["dice", "accuracy", "surface_dice"]},
            "preview_every": 8,
        },
        "predict": {"overlap": 8},
    }
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow if n == "regions" else ()) for n in SCENARIOS],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp(request.param)
    data = made_data(root / "data", "ignore" in request.param)
    config = config_of(root / "config.yaml", request.param)
    words = ["--config", str(config), "--data-dir", str(data), "--out", str(root / "run")]
    assert train.main([*words, "--fold", "-1", "--device", "cpu"]) == 0
    return request.param, root


def shown_names(scenario: str) -> list[str]:
    return list(REGIONS) if "regions" in scenario else list(NAMES.values())


def regions_of(labels: np.ndarray, scenario: str) -> list[np.ndarray]:
    values = [[1, 2], [1]] if "regions" in scenario else [[1], [2]]
    return [np.isin(labels, v) for v in values]


def independent_dice(answer: np.ndarray, truth: np.ndarray, scenario: str, valid=None):
    """Dice of each region or class, by hand."""
    out = []
    for found, true in zip(regions_of(answer, scenario), regions_of(truth, scenario), strict=True):
        v = np.ones(truth.shape, bool) if valid is None else valid
        out.append(2 * (found & true & v).sum() / ((found & v).sum() + (true & v).sum()))
    return out


def test_training_scores_what_was_written(trained) -> None:
    scenario, root = trained
    run = root / "run"
    summary = files.read_json(run / "summary.json")
    assert summary["class_names"] == {"1": "Anterior", "2": "Posterior"}
    for case, row in summary["cases"].items():
        fold = run / f"fold_{row['fold']}"
        answer = files.read(fold / "oof" / f"{case}.png", 2, labels=True)[0][0]
        label = files.read(root / "data" / "labelsTr" / f"{case}.png", 2, labels=True)[0][0]
        valid = label != IGNORE if "ignore" in scenario else None
        wanted = independent_dice(answer, label, scenario, valid)
        got = [row["metrics"][f"dice_{n}"] for n in (1, 2)]
        assert got == pytest.approx(wanted)
        assert row["metrics"]["dice"] == pytest.approx(np.mean(wanted))
        assert "betti_error_1" not in row["metrics"]  # of the foreground, once
        assert set(np.unique(answer)) <= {0, 1, 2}
    # It learns: also what was never labelled.
    assert summary["out_of_fold"]["dice"] > 0.8
    record = json.loads((run / "fold_0" / "log.jsonl").read_text().splitlines()[-1])
    assert {"val_dice", "val_dice_1", "val_dice_2", "val_accuracy"} <= set(record)


def test_soft_files_hold_independent_probabilities(trained) -> None:
    scenario, root = trained
    folder = root / "run" / "fold_0" / "oof" / "soft"
    for case in soft.ids(folder):
        kept = soft.load_sound(folder, case)
        probabilities = np.asarray(kept.main, np.float32)
        regional = "regions" in scenario
        assert kept.meta.task == ("regions" if regional else "labels")
        assert len(probabilities) == (2 if regional else 3)
        ones = bool(np.allclose(probabilities.sum(0), 1, atol=5e-3))
        assert ones is not regional
        answer = files.read(folder.parent / f"{case}.png", 2, labels=True)[0][0]
        wanted = probabilities.argmax(0)
        if regional:  # nnU-Net's rule, written out
            wanted = np.zeros(answer.shape, int)
            for p, value in zip(probabilities, ORDER, strict=True):
                wanted[p > 0.5] = value
        assert (answer == wanted).mean() > 0.999  # files keep 16 bits


def test_names_stand_where_people_read(trained, capsys: pytest.CaptureFixture[str]) -> None:
    scenario, root = trained
    run = root / "run"
    log = (run / "fold_0" / "training_log.txt").read_text()
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    for name in shown_names(scenario):
        assert f"Val Dice {name}: " in log
        assert f"dice {name}" in page
    for name in NAMES.values():  # of the pictures, which show label values
        assert f"</i>{name}<" in page
    assert "dice_1" not in page.partition("<h2>Origin")[0]


def test_tuned_predicted_fused_and_scored(trained, capsys: pytest.CaptureFixture[str]) -> None:
    scenario, root = trained
    run, data, regional = root / "run", root / "data", "regions" in scenario
    spec, space = root / "tuned.yaml", root / "space.yaml"
    space.write_text("stages: [[[]], [[], [{name: dust, options: {below: 9}}]]]")
    words = [str(run), "--out", str(spec), "--space", str(space), "--workers", "1"]
    assert tune.main(words) == 0
    result = files.read_json(run / "tuning" / "result.json")
    assert result["metric"]["name"] == "dice"
    assert ("regions" in result) is regional
    steps = yaml.safe_load(spec.read_text())["postprocess"]
    assert not regional or steps[0]["options"]["order"] == ORDER  # with the threshold found best

    words = ["--input", str(data / "imagesTs"), "--save-soft", "--device", "cpu"]
    for n in (0, 1):
        where = ["--checkpoint", str(run / f"fold_{n}"), "--output", str(root / f"p{n}")]
        assert predict.main([*where, *words]) == 0
    summary = files.read_json(root / "p0" / "summary.json")
    assert summary["task"] == ("regions" if regional else "labels")
    assert summary["class_names"] == {"1": "Anterior", "2": "Posterior"}
    if regional:
        assert summary["postprocess"][0] == {"name": "regions", "options": {"order": ORDER}}
        assert summary["regions"] == {"hippocampus": [1, 2], "anterior": [1]}
    done = next(row for row in summary["files"] if row["id"] == "case0")
    answer = files.read(root / "p0" / "case0.png", 2, labels=True)[0][0]
    assert done["voxels"] == {n: int((answer == v).sum()) for v, n in NAMES.items()}
    for fusion in ("mean", "logit", "vote") if regional else ("mean",):
        folders = ["--fold-dirs", str(root / "p0"), str(root / "p1")]
        fused = root / f"fused_{fusion}"
        assert ensemble.main([*folders, "--output", str(fused), "--fusion", fusion]) == 0
        capsys.readouterr()
        scored = root / f"scores_{fusion}.json"
        assert (
            evaluate.main(
                [
                    *("--predictions", str(fused), "--labels", str(data / "truth")),
                    *("--metrics", "dice", "--out", str(scored)),
                ]
            )
            == 0
        )
        table, scores = capsys.readouterr().out, files.read_json(scored)
        for name in shown_names(scenario):
            assert f"dice {name}" in table
        for case, row in scores["cases"].items():
            answer = files.read(fused / f"{case}.png", 2, labels=True)[0][0]
            wanted = independent_dice(answer, truth_of(int(case[4:])), scenario)
            assert [row["dice_1"], row["dice_2"]] == pytest.approx(wanted)
        assert scores["mean"]["dice"] > (0.5 if "ignore" in scenario else 0.8)
    words = ["--spec", str(spec), "--input", str(data / "imagesTs"), "--device", "cpu"]
    assert ensemble.main([*words, "--output", str(root / "tuned")]) == 0
    assert files.read_json(root / "tuned" / "summary.json")["task"] == summary["task"]
    # A list of steps that decides nothing: regions are decided as their networks say.
    other = root / "other.yaml"
    members = [{"run": str(root / "p0")}, {"run": str(root / "p1")}]
    other.write_text(yaml.safe_dump({"members": members, "postprocess": ["fill_holes"]}))
    assert ensemble.main(["--spec", str(other), "--output", str(root / "other")]) == 0
    plain, mended = (
        files.read(root / n / "case1.png", 2, labels=True)[0] for n in ("fused_mean", "other")
    )
    assert (plain == mended)[plain > 0].all()


def test_the_same_command_finds_everything_done(trained, capsys) -> None:
    _, root = trained
    words = ["--config", str(root / "config.yaml"), "--data-dir", str(root / "data")]
    words += ["--out", str(root / "run"), "--fold", "-1", "--device", "cpu"]
    assert train.main(words) == 0
    assert "Epoch 1/8" not in capsys.readouterr().out
