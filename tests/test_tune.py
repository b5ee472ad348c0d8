"""pipeline.tune on runs written by hand: probabilities are blurred labels with noise.

And ensembles whose members are runs.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import TINY, sheets
from scipy.ndimage import gaussian_filter

from pipeline import config as configs
from pipeline import ensemble, files, networks, postprocess, submit, tune
from pipeline.inference import soft as softs
from pipeline.inference.models import save_model
from pipeline.metrics import METRICS, evaluate_frames
from pipeline.metrics.frames import Truth
from pipeline.records import Checkpoint, NamedOptions, UserError
from pipeline.scoring import core
from pipeline.tuning import search, trials
from pipeline.tuning.search import Candidate, part
from pipeline.tuning.trials import CaseFiles, Measure, ScoringTask, Trials
from pipeline.workflows import fuse, tune_space
from pipeline.workflows import tune as workflow

SHAPE = (16, 20, 20)
SPACE = """
stages:
  - - [{name: threshold, options: {at: 0.5}}]
    - [{name: threshold, options: {at: 0.35}}]
    - [{name: hysteresis, options: {low: 0.3, high: 0.6}}]
  - - []
    - [{name: dust, options: {below: 20}}]
    - [{name: closing, options: {radius: 1.5}}, {name: dust, options: {below: 20}}]
"""
RESULT = {
    "status": "completed",
    "best_epoch": 0,
    "score": 0.5,
    "metrics": {},
    "checkpoint": "best_model.safetensors",
    "chosen": "best",
    "epochs": 1,
    "seconds": 1.0,
    "error": "",
    "cases": {},
}


def faint(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Probabilities that want a lower threshold than 0.5, and dust removed."""
    soft = 0.75 * gaussian_filter((label == 1).astype(np.float32), 0.8) + rng.normal(
        0, 0.03, label.shape
    )
    return np.clip(soft + 0.6 * (rng.random(label.shape) > 0.997), 0, 1)


def any_sheets(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Confident sheets that have nothing to do with the label."""
    return 0.98 * (sheets(label.shape, int(rng.integers(10**6)))[1] == 1) + 0.01


def _scores(metrics: list[NamedOptions], answer, truth) -> dict[str, float]:
    return evaluate_frames(metrics, answer, Truth(label=truth, ignore=2))


def make_run(folder: Path, soft=faint, seed: int = 0, groups: str = "aabbcc") -> Path:
    """A run of two folds, one case for each letter, as pipeline.train leaves it; labels lie beside
    it.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(TINY)
    listing = {}
    for n, group in enumerate(groups):
        name, label = f"{100 + n}", sheets(SHAPE, n)[1]
        path = folder.parent / "labels" / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, label, photometric="minisblack")
        listing[name] = {
            "image": [],
            "targets": {"label": str(path)},
            "group": group,
            "content": {"label": f"hash {n}"},
        }
        prediction = softs.SoftPrediction(
            case_id=name, heads={"main": soft(label, rng)[None].astype(np.float32)}
        )
        softs.save(folder / f"fold_{n % 2}" / "oof" / "soft", prediction)
    files.write_json(folder / "cases.json", listing)
    for fold in (0, 1):
        files.write_json(folder / f"fold_{fold}" / "result.json", {**RESULT, "fold": fold})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "space.yaml").write_text(SPACE)
    return make_run(tmp_path / "faint")


def go(run: Path, *more: str, metric: str = "dice") -> int:
    """Tune in this process, with the small space, into ``e.yaml`` beside the run."""
    beside = run.parent
    options = [
        "--metric",
        metric,
        "--space",
        str(beside / "space.yaml"),
        "--out",
        str(beside / "e.yaml"),
        "--workers",
        "1",
    ]
    return tune.main([str(run), *more, *options])


def result(run: Path, name: str = "result.json") -> dict:
    return json.loads((run / "tuning" / name).read_text())


def row(run: Path, name: str) -> dict:
    return next(r for r in result(run)["rows"] if r["name"] == name)


# --- the command ----------------------------------------------------------------------------------


def test_a_gain_that_is_there_is_found_and_written(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(run) == 0
    gain = row(run, workflow.NESTED)["gains"][workflow.OWN]
    assert gain["low"] > 0
    assert gain["cases"] == 6
    assert gain["better"] == 6
    names = [r["name"] for r in result(run)["rows"]]
    assert names == [workflow.OWN, *search.BASELINES, workflow.NESTED, workflow.OPTIMISTIC]
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    spec = fuse.load_spec(run.parent / "e.yaml")
    assert spec.members[0].run == run
    assert spec.members[0].folds == (0, 1)
    assert spec.postprocess is not None
    assert postprocess.decides(spec.postprocess[0])
    assert (
        str(Candidate(steps=spec.postprocess))
        == row(run, workflow.OPTIMISTIC)["chosen"]["all"]["text"]
    )


def test_rows_are_the_scores_of_their_steps(run: Path) -> None:
    """Computed again, step by step, by the functions that training and pipeline.evaluate use."""
    assert go(run) == 0
    config = configs.load(run / "config.yaml")
    for name, steps in {workflow.OWN: config.postprocess, **search.BASELINES}.items():
        for n in range(6):
            truth = tifffile.imread(run.parent / "labels" / f"{100 + n}.tif")
            soft = softs.load(run / f"fold_{n % 2}" / "oof" / "soft", f"{100 + n}").main.astype(
                np.float32
            )
            expected = _scores([NamedOptions(name="dice")], postprocess.apply(steps, soft), truth)[
                "dice"
            ]
            assert row(run, name)["cases"][f"{100 + n}"]["dice"] == pytest.approx(expected)
    nested = row(run, workflow.NESTED)
    assert set(nested["chosen"]) == {"a", "b", "c"}
    assert nested["mean"]["dice"] == pytest.approx(
        np.mean([s["dice"] for s in nested["cases"].values()])
    )


def test_random_predictions_gain_nothing(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    run = make_run(tmp_path / "random", any_sheets, groups="aabbccddee")
    assert go(run) == 0
    assert result(run)["bootstrap"]["unit"] == "group"
    for gain in row(run, workflow.NESTED)["gains"].values():
        assert gain["low"] <= 0 <= gain["high"]
        assert abs(gain["mean"]) < 0.01


def test_the_built_in_space_and_the_competition_score(tmp_path: Path) -> None:
    """Every step of the space runs on real arrays; the parts of the score are in the table."""
    run = make_run(tmp_path / "faint", groups="abc")
    assert tune.main([str(run), "--out", str(run.parent / "e.yaml"), "--workers", "1"]) == 0
    assert result(run)["metric"]["name"] == "competition"
    assert {"competition", "toposcore", "surface_dice", "voi_score", "dice"} <= set(
        row(run, workflow.NESTED)["mean"]
    )
    assert (
        row(run, workflow.OPTIMISTIC)["mean"]["competition"]
        > row(run, workflow.OWN)["mean"]["competition"]
    )


def test_lower_may_be_better(run: Path) -> None:
    assert go(run, metric="betti_error") == 0
    assert result(run)["better"] == "lower"
    assert (
        row(run, workflow.OPTIMISTIC)["mean"]["betti_error"]
        <= row(run, workflow.OWN)["mean"]["betti_error"]
    )
    assert row(run, workflow.OPTIMISTIC)["gains"][workflow.OWN]["mean"] >= 0


def test_folds_are_held_out_where_there_are_no_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    run = make_run(tmp_path / "one", groups="aaaa")
    assert go(run) == 0
    assert set(result(run)["parts"]) == {"fold 0", "fold 1"}
    assert go(run, "--by", "group") == 2
    assert "Use --by fold" in capsys.readouterr().err
    (run / "fold_1" / "result.json").unlink()
    assert go(run) == 2
    assert "Train another fold" in capsys.readouterr().err


def test_several_runs_are_weighted(run: Path) -> None:
    """The second run knows nothing: it gets no weight, or little; both runs' rows are told."""
    other = make_run(run.parent / "random", any_sheets, seed=1)
    assert go(run, str(other)) == 0
    found = result(run, "result_faint+random.json")
    assert {"faint alone", "random alone"} <= {r["name"] for r in found["rows"]}
    spec = fuse.load_spec(run.parent / "e.yaml")
    weights = {m.run: m.weight for m in spec.members}
    assert weights.get(run, 0) > 2 * weights.get(other, 0)


def test_runs_of_other_cases_do_not_mix(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_run(run.parent / "fewer", groups="aabb")
    assert go(run, str(other)) == 2
    assert "only one of them predicted 104" in capsys.readouterr().err
    assert go(run, str(run)) == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "cases.json").unlink(), "no run folder"),
        (lambda run: [p.unlink() for p in run.glob("fold_*/result.json")], "no finished fold"),
        (lambda run: shutil.rmtree(run.parent / "labels"), "--data-dir"),
        (
            lambda run: (run / "config.yaml").write_text(
                TINY.replace("task: labels", "task: image")
            ),
            "only labels",
        ),
        (
            lambda run: (run.parent / "space.yaml").write_text("stages: [[[dust]], [[threshold]]]"),
            "Move it to the first stage",
        ),
        (lambda run: (run.parent / "space.yaml").write_text("stages: [[[treshold]]]"), "threshold"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    run: Path, damage, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run)
    assert go(run) == 2
    assert words in capsys.readouterr().err


def test_labels_may_have_moved(run: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "train_images").mkdir(parents=True)
    (run.parent / "labels").rename(tmp_path / "data" / "train_labels")
    for path in (tmp_path / "data" / "train_labels").iterdir():
        shutil.copy(path, tmp_path / "data" / "train_images")
    assert go(run) == 2
    assert go(run, "--data-dir", str(tmp_path / "data")) == 0


def test_metrics_without_direction_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(run, metric="components") == 2
    assert go(run, metric="dize") == 2
    assert go(run, metric="psnr") == 2, "of images"
    assert "Did you mean 'dice'" in capsys.readouterr().err


def test_a_foreign_ensemble_is_not_overwritten(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.parent / "e.yaml"
    assert go(run) == 0
    assert go(run) == 0, "its own file is replaced"
    out.write_text(out.read_text() + "# a note\n")
    assert go(run) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_text().endswith("# a note\n")
    assert go(run, "--force") == 0
    assert "a note" not in out.read_text()


# --- scores are computed once ---------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each score that is computed in this process."""
    calls: list[int] = []

    def scored(*arguments, **options):
        calls.append(1)
        return core.score_in(*arguments, **options)

    monkeypatch.setattr(trials, "score_in", scored)
    return calls


def test_nothing_is_computed_twice(run: Path, counted: list[int]) -> None:
    assert go(run) == 0
    lines = (run / "tuning" / "scores.jsonl").read_text().splitlines()
    assert len(counted) == len(lines) == len({json.loads(line)["key"] for line in lines})
    first, before = result(run), len(counted)
    assert go(run) == 0
    assert len(counted) == before
    assert result(run) == first


def test_a_killed_search_goes_on_where_it_was(run: Path, counted: list[int]) -> None:
    assert go(run) == 0
    expected, total = result(run), len(counted)
    kept = run / "tuning" / "scores.jsonl"
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:20]) + lines[20][:30])  # the last line is torn
    counted.clear()
    assert go(run) == 0
    assert len(counted) == total - 20
    assert result(run) == expected
    counted.clear()
    assert go(run) == 0, "the torn line does not swallow the one after it"
    assert not counted


def test_a_new_prediction_is_scored_anew(run: Path, counted: list[int]) -> None:
    assert go(run) == 0
    path = run / "fold_0" / "oof" / "soft" / "100.npy"
    np.save(path, np.load(path)[:, ::-1])
    counted.clear()
    assert go(run) == 0
    assert {
        json.loads(x)["case"]
        for x in (run / "tuning" / "scores.jsonl").read_text().splitlines()[-len(counted) :]
    } == {"100"}


def task_of(run: Path, *candidates: Candidate) -> ScoringTask:
    case = CaseFiles(
        id="100",
        soft=(run / "fold_0" / "oof" / "soft",),
        label=run.parent / "labels" / "100.tif",
        content="x",
    )
    measure = Measure.of(configs.load(run / "config.yaml").data, [NamedOptions(name="dice")])
    return ScoringTask(case=case, measure=measure, candidates=candidates)


def test_shared_first_steps_change_nothing(run: Path) -> None:
    """Every score equals that of the candidate alone, in whatever order they come."""
    tails = [
        (),
        (part("dust", below=5),),
        (part("closing", radius=1.5),),
        (part("closing", radius=1.5), part("dust", below=5)),
    ]
    heads = [(), (part("threshold", at=0.3),), (part("hysteresis", low=0.2, high=0.5),)]
    candidates = [Candidate(steps=(*head, *tail)) for head in heads for tail in tails]
    together = dict(trials.score_case(task_of(run, *candidates)))
    assert list(together) == sorted(together)
    for candidate in candidates:
        assert together[candidate.key] == next(trials.score_case(task_of(run, candidate)))[1]
    soft = softs.load(run / "fold_0" / "oof" / "soft", "100").main.astype(np.float32)
    truth = tifffile.imread(run.parent / "labels" / "100.tif")
    for candidate in candidates:
        alone = _scores(
            [NamedOptions(name="dice")], postprocess.apply(candidate.steps, soft), truth
        )
        assert together[candidate.key]["dice"] == alone["dice"]


@pytest.mark.slow
def test_processes_give_what_one_gives_and_stop_on_request(run: Path) -> None:
    """Two workers; a stop in the middle keeps what was computed."""
    task = task_of(
        run,
        *(
            Candidate(steps=(part("threshold", at=at),))
            for at in np.linspace(0.1, 0.9, 12).tolist()
        ),
    )
    expected = dict(trials.score_case(task))
    wanted = {"100": task.candidates}

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    kept = run / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt), Trials([task.case], task.measure, kept, 2, stop) as some:
        some.scores(wanted)
    early = len(kept.read_text().splitlines())
    assert early >= trials.LEAST
    with Trials([task.case], task.measure, kept, 2, lambda done, total: None) as rest:
        assert rest.missing(wanted) == 12 - early
        assert {key: scores for (_, key), scores in rest.scores(wanted).items()} == expected
        assert rest.computed == 12 - early


@pytest.mark.slow
def test_stopped_by_a_signal_ends_with_75(run: Path) -> None:
    """As a command, with processes of its own; the same command again finishes."""
    code = (
        "import os, signal, sys\n"
        "from pipeline import tune\n"
        "from pipeline.stopping import stop\n"
        "from pipeline.workflows import tune as workflow\n"
        "workflow.progress_callback = lambda what: (lambda done, total: (os.kill(os.getpid(), "
        "signal.SIGTERM) if not stop.signal else None, stop.raise_if_stopped()))\n"
        "raise SystemExit(tune.main())\n"
    )
    words = [
        str(run),
        "--metric",
        "dice",
        "--space",
        str(run.parent / "space.yaml"),
        "--out",
        str(run.parent / "e.yaml"),
        "--workers",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 75, done.stderr
    assert "run the same command again" in done.stderr
    assert len((run / "tuning" / "scores.jsonl").read_text().splitlines()) == 1
    assert go(run) == 0


# --- parts ----------------------------------------------------------------------------------------


def test_mixtures_lie_on_the_simplex() -> None:
    assert tune_space.mixtures(1) == (((1.0,), "mean"),)
    for members in (2, 3, 4, 5):
        found = tune_space.mixtures(members)
        assert found[0] == ((1.0,) * members, "mean")
        assert len(set(found)) == len(found)
        assert all(sum(w) in (1.0, float(members)) or abs(sum(w) - 1) < 1e-9 for w, _ in found)
        single = [(w, f) for w, f in found if sum(x > 0 for x in w) == 1]
        assert len(single) == members, "one member alone needs one fusion"


def test_cases_without_a_value_are_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def dice(
        prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None
    ) -> dict[str, float]:
        return {"dice": 0.5 if target.any() else float("nan")}

    tifffile.imwrite(
        run.parent / "labels" / "100.tif", np.zeros(SHAPE, np.uint8), photometric="minisblack"
    )
    with METRICS.restored() as entries:
        entries["dice"] = dataclasses.replace(METRICS["dice"], compute=dice)
        assert go(run) == 0
    assert "has no value for 1 cases" in capsys.readouterr().out
    assert "100" not in row(run, workflow.NESTED)["cases"]
    assert (
        row(run, workflow.OPTIMISTIC)["chosen"]["all"]["text"]
        == row(run, workflow.OWN)["chosen"]["all"]["text"]
    ), "no gain, no change"


# --- ensembles of runs ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds with random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    (folder / "config.yaml").write_text(TINY)
    config = configs.load(folder / "config.yaml")
    for fold in (0, 1):
        torch.manual_seed(fold)
        weights = networks.build(config.network, 1, 1, 3).state_dict()
        model = Checkpoint(
            config=configs.to_dict(config),
            channels=(1, 1),
            fold=fold,
            epoch=0,
            score=0.5,
            weights=weights,
        )
        save_model(folder / f"fold_{fold}" / "best_model.safetensors", model)
        files.write_json(folder / f"fold_{fold}" / "result.json", {**RESULT, "fold": fold})
    return folder


def spec_of(models: Path, tmp_path: Path, *folds: int) -> Path:
    spec = tmp_path / "e.yaml"
    spec.write_text(
        f"members: [{{run: {models}, folds: {list(folds)}}}]\n"
        "postprocess: [{name: threshold, options: {at: 0.4}}]\n"
    )
    return spec


def test_a_run_as_member_predicts_first(
    models: Path, surfaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import predict

    spec, out, tests = spec_of(models, tmp_path, 0, 1), tmp_path / "o", surfaces / "test_images"
    words = ["--spec", str(spec), "--output", str(out)]
    assert ensemble.main(words) == 2
    assert f"python -m pipeline.predict --checkpoint {models}/fold_1" in capsys.readouterr().err
    assert ensemble.main([*words, "--input", str(tests)]) == 0
    assert (
        predict.main(
            [
                "--checkpoint",
                str(models),
                "--input",
                str(tests),
                "--output",
                str(tmp_path / "p"),
                "--save-soft",
            ]
        )
        == 0
    )
    for case_id in ("900", "901"):
        soft = softs.load(tmp_path / "p" / "soft", case_id).main
        np.testing.assert_array_equal(
            soft, softs.load(out / "members" / "tiny" / "soft", case_id).main
        )
        np.testing.assert_array_equal(
            tifffile.imread(out / f"{case_id}.tif"), soft[0] >= np.float32(0.4)
        )


def test_predictions_of_members_are_kept_as_long_as_they_are_right(
    models: Path, surfaces: Path, tmp_path: Path
) -> None:
    tests = tmp_path / "tests"
    shutil.copytree(surfaces / "test_images", tests)
    words = [
        "--spec",
        str(spec_of(models, tmp_path, 0)),
        "--output",
        str(tmp_path / "o"),
        "--input",
        str(tests),
    ]

    def times() -> dict[str, int]:
        assert ensemble.main(words) == 0
        return {
            p.stem: p.stat().st_mtime_ns
            for p in (tmp_path / "o" / "members" / "tiny" / "soft").glob("*.npy")
        }

    first = times()
    assert times() == first
    tifffile.imwrite(tests / "900.tif", sheets((20, 24, 24), 7)[0])
    second = times()
    assert second["901"] == first["901"]
    assert second["900"] != first["900"]
    (tests / "900.tif").unlink()
    assert times() == {"901": first["901"]}
    spec_of(models, tmp_path, 1)
    assert times()["901"] != first["901"], "another model"


def test_inputs_are_never_overwritten(models: Path, surfaces: Path, tmp_path: Path) -> None:
    tests = surfaces / "test_images"
    assert (
        ensemble.main(
            [
                "--spec",
                str(spec_of(models, tmp_path, 0)),
                "--output",
                str(tests),
                "--input",
                str(tests),
            ]
        )
        == 2
    )
    assert not (tests / "members").exists()


def test_submit_runs_the_ensemble(models: Path, surfaces: Path, tmp_path: Path) -> None:
    import zipfile

    spec, out = spec_of(models, tmp_path, 0), tmp_path / "s.zip"
    assert (
        submit.main(
            ["--spec", str(spec), "--test-dir", str(surfaces / "test_images"), "--out", str(out)]
        )
        == 0
    )
    assert zipfile.ZipFile(out).namelist() == ["900.tif", "901.tif"]
    assert (tmp_path / "s_predictions" / "900.tif").is_file()
    with pytest.raises(SystemExit):
        submit.main(
            [
                "--spec",
                str(spec),
                "--predictions",
                str(tmp_path),
                "--test-dir",
                str(tmp_path),
                "--out",
                str(out),
            ]
        )


def test_what_tune_writes_can_be_submitted(run: Path, models: Path, surfaces: Path) -> None:
    """From out-of-fold predictions to a zip, through the file between them."""
    for fold in (0, 1):
        shutil.copy(models / f"fold_{fold}" / "best_model.safetensors", run / f"fold_{fold}")
    assert go(run) == 0
    spec = run.parent / "e.yaml"
    assert (
        submit.main(
            [
                "--spec",
                str(spec),
                "--test-dir",
                str(surfaces / "test_images"),
                "--out",
                str(run.parent / "s.zip"),
            ]
        )
        == 0
    )
    summary = json.loads((run.parent / "s_predictions" / "summary.json").read_text())
    steps = fuse.load_spec(spec).postprocess
    assert steps is not None
    assert [s["name"] for s in summary["postprocess"]] == [s.name for s in steps]


def test_records_travel_to_processes(run: Path) -> None:
    import multiprocessing.reduction

    task = task_of(run, Candidate(steps=(part("threshold", at=0.5),)))
    assert len(multiprocessing.reduction.ForkingPickler.dumps(task)) > 0
    assert dataclasses.is_dataclass(task)
    with pytest.raises(UserError, match="names no members"):
        fuse.check_weights([])
