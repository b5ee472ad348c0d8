"""``--fold all``: one model on every case, beside the folds and not among them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, competition_folder
from small_runs import (
    CASES,
    config_file,
    fingerprint,
    make_discs,
    run,
    same,
    stop_after,
    timeless,
)
from test_ranks import end, start

import pipeline as pl
from pipeline import config as configs
from pipeline import files, limits, networks, predict, report, train
from pipeline.data.loaders import PatchDataset
from pipeline.files import FileError, lock
from pipeline.inference import models
from pipeline.records import ALL, Member
from pipeline.runs import FoldFolder, RunFolder, fold_names
from pipeline.training import checkpoint, fold
from pipeline.workflows import ensemble, fuse
from pipeline.workflows.train import what_next


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_discs(tmp_path_factory.mktemp("discs"))


@pytest.fixture(scope="module")
def folds_then_all(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of two folds, its summary, and after it fold all in the same folder."""
    folder = tmp_path_factory.mktemp("both")
    config = config_file(folder)
    assert run(config, discs, folder / "run", -1) == 0
    before = RunFolder(folder / "run").summary()
    assert not (folder / "run" / "fold_all").exists(), "-1 are the folds alone"
    assert run(config, discs, folder / "run", "all") == 0
    return folder / "run", before


@pytest.fixture(scope="module")
def averaged(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which only fold all was trained, with averaged weights and impatience."""
    folder = tmp_path_factory.mktemp("averaged")
    config = config_file(folder, average={"start": 1}, stop={"patience": 1})
    assert run(config, discs, folder / "run", "all") == 0
    return folder / "run"


def test_every_case_is_trained_on_to_the_last_epoch(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its samples are drawn with seeds that no fold has."""
    seen: list[tuple[bool, tuple[int, ...], list[str]]] = []
    original = PatchDataset.__init__

    def spied(self: PatchDataset, cases: Any, config: Any, number: int, training: bool, *m: Any):
        original(self, cases, config, number, training, *m)
        seen.append((training, (config.seed, number), [c.case.id for c in cases]))

    monkeypatch.setattr(PatchDataset, "__init__", spied)
    assert run(config_file(tmp_path), discs, tmp_path / "run", "all") == 0
    assert seen == [(True, (42, -1), CASES)]


def test_what_fold_all_leaves(folds_then_all: tuple[Path, Any], averaged: Path) -> None:
    every = RunFolder(folds_then_all[0]).fold(ALL)
    result = every.result()
    assert result is not None
    assert (result.fold, result.status, result.chosen) == ("all", "completed", "last")
    assert (result.epochs, result.best_epoch, result.score) == (3, -1, None)
    assert result.checkpoint == "last_model.safetensors"
    assert result.metrics == {}
    assert every.scores() == {}
    assert list(every.model_files()) == ["last"]
    assert not every.answers.exists()
    assert not every.previews.exists()
    header = models.load_header(every.model())
    assert (header.fold, header.kind, header.epoch, header.score) == ("all", "last", 2, None)
    log, torn = every.epochs()
    assert [r["epoch"] for r in log] == [0, 1, 2]
    assert torn == 0
    assert not any(key.startswith("val") for r in log for key in r)
    own = FoldFolder(averaged / "fold_all")
    assert list(own.model_files()) == ["last", "swa"]
    result = own.result()
    assert result is not None
    assert (result.chosen, result.epochs) == ("swa", 3), "patience of 1 stops nothing here"
    assert own.model().name == "swa_model.safetensors" == result.checkpoint


def test_last_weights_are_those_of_the_last_state(averaged: Path) -> None:
    every = FoldFolder(averaged / "fold_all")
    tensors, _ = checkpoint.load_fold(every.states) or pytest.fail("no state")
    last = models.load_model(every.model_file("last")).weights
    assert same(last, checkpoint.with_prefix("network/", tensors))
    swa = models.load_model(every.model_file("swa")).weights
    assert not same(last, swa)


def test_without_folds_the_table_has_no_line_of_them(averaged: Path) -> None:
    text = next(averaged.glob("train_fold_all_*.log")).read_text()
    assert "no case is held out to score it" in text
    assert "out of fold " not in text


def test_the_summary_of_the_folds_stays(folds_then_all: tuple[Path, Any]) -> None:
    """Only one key is new; the table, the report and the next steps name the model."""
    folder, before = folds_then_all
    found = RunFolder(folder).summary()
    every = found.pop("all_cases")
    assert timeless(found) == timeless(before)
    assert (every["status"], every["epochs"], every["chosen"]) == ("completed", 3, "last")
    assert RunFolder(folder).completed() == [0, 1]
    assert [f.path.name for f in RunFolder(folder).fold_folders()] == ["fold_0", "fold_1"]
    text = next(folder.glob("train_fold_all_*.log")).read_text()
    assert "no case is held out to score it" in text
    assert "2 of 2 folds are complete" in text
    assert "--folds all" in text
    assert report.main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "one model of all cases: completed" in page
    assert "fold all" in page


def test_a_run_of_fold_all_alone(
    averaged: Path, discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has a summary and a report, and predicts only where it is named."""
    assert RunFolder(averaged).summary()["folds"] == []
    assert "--folds all --input" in next(averaged.glob("train_fold_all_*.log")).read_text()
    assert report.main([str(averaged)]) == 0
    words = ["--input", str(discs / "test_images"), "--output", str(tmp_path)]
    for more in ([], ["--allow-missing-folds"]):
        assert predict.main(["--checkpoint", str(averaged), *words, *more]) == 2
        assert "only the model of all cases is there: use --folds all" in capsys.readouterr().err
    assert predict.main(["--checkpoint", str(averaged), "--folds", "all", *words]) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())["files"]
    assert [row["id"] for row in rows] == ["c6", "c7"]


def by_hand(path: Path, image: np.ndarray, config: pl.Config) -> np.ndarray:
    """Probabilities of one model file, in one tile."""
    model = models.load_model(path)
    settings = configs.from_dict(model.config, "here")
    network = networks.build(settings.network, *model.channels, 2)
    network.load_state_dict(dict(model.weights))
    low, high = np.percentile(image, (0.5, 99.5))
    scaled = np.clip((image - low) / (high - low), 0, 1).astype(np.float32)
    with torch.no_grad():
        return network.eval()(torch.from_numpy(scaled)[None, None])["main"].sigmoid()[0].numpy()


def test_folds_all_predicts_with_the_last_weights(
    folds_then_all: tuple[Path, Any], discs: Path
) -> None:
    """To the bit as the file itself, and by the network run by hand."""
    folder, _ = folds_then_all
    path = folder / "fold_all" / "last_model.safetensors"
    predictor = pl.Predictor.load(folder, folds="all", whole=True)
    assert predictor.models == (str(path),)
    image = discs / "test_images" / "c6.png"
    found = predictor.predict_heads(image)["main"]
    for other in (path, folder / "fold_all"):
        alone = pl.Predictor.load(other, whole=True)
        assert np.array_equal(found, alone.predict_heads(image)["main"])
    array = np.asarray(files.read(image, 2)[0], np.float64)[0]
    expected = by_hand(path, array[:24, :24], predictor.config)
    cropped = predictor.predict_heads(array[:24, :24].astype(np.uint8))["main"]
    assert np.allclose(cropped, expected, atol=1e-4)


def test_a_default_prediction_ignores_fold_all(folds_then_all: tuple[Path, Any]) -> None:
    folder, _ = folds_then_all
    names = ["fold_0", "fold_1"]
    assert [p.parent.name for p in models.find_models(folder)] == names
    assert [Path(p).parent.name for p in pl.Predictor.load(folder).models] == names
    assert [p.parent.name for p in models.find_models(folder, names=[1])] == ["fold_1"]
    assert [p.parent.name for p in models.find_models(folder, names=[ALL])] == ["fold_all"]


def test_folds_that_are_not_complete_are_named(
    folds_then_all: tuple[Path, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(folds_then_all[0], folder, ignore=shutil.ignore_patterns("store"))
    shutil.rmtree(folder / "fold_all")
    (folder / "fold_1" / "result.json").unlink()
    with pytest.raises(pl.UserError, match=r"fold_all not complete.*pipeline.train ... --fold all"):
        pl.Predictor.load(folder, folds="all")
    with pytest.raises(pl.UserError, match="fold_1 not complete"):
        pl.Predictor.load(folder, folds=[0, 1])
    with pytest.raises(pl.UserError, match=r"fold_1.* not complete.*--checkpoint \S+/fold_0\)"):
        models.find_models(folder)
    predictor = pl.Predictor.load(folder)
    assert [Path(m).parent.name for m in predictor.models] == ["fold_0"]
    assert "fold_1 not complete; predicting with fold_0 alone." in caplog.text
    with pytest.raises(pl.UserError, match="has no fold 7, -1: its folds are 0 to"):
        pl.Predictor.load(folder, folds=[0, 1, 7, -1])
    for path in (folder / "fold_0", folder / "fold_0" / "best_model.safetensors"):
        with pytest.raises(pl.UserError, match="Leave --folds out"):
            pl.Predictor.load(path, folds=[0])
    shutil.move(folder / "fold_0", folder / "fold_all")
    with pytest.raises(FileError, match="fold is 0, but it lies in fold_all"):
        pl.Predictor.load(folder, folds="all")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("most", "whole numbers, such as .* or 'all'"),
        ([0, "all"], "stands alone.*ensemble file"),
        (["all", "all"], "stands alone"),
        ([], "none is named"),
    ],
)
def test_names_of_folds_that_are_none(given: Any, told: str) -> None:
    with pytest.raises(pl.UserError, match=told):
        fold_names(given)
    with pytest.raises(pl.UserError, match=told):
        pl.ModelOptions(checkpoint="run", folds=given)
    with pytest.raises(pl.UserError, match=told):
        pl.train_folds("configs/demo.yaml", folds=given)


def test_a_member_of_an_ensemble(
    folds_then_all: tuple[Path, Any], discs: Path, tmp_path: Path
) -> None:
    """``folds: all`` in the YAML is that one model; other words are refused."""
    folder, _ = folds_then_all
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps({"members": [{"run": str(folder), "folds": "all"}]}))
    member = fuse.load_spec(spec).members[0]
    assert member == Member(run=folder, folds="all")
    failed = ensemble.predict_member(member, [discs / "test_images"], tmp_path / "out", "cpu")
    assert failed == []
    record = json.loads((tmp_path / "out" / ensemble.MADE_FROM).read_text())
    assert [Path(p).parent.name for p in record["models"]] == ["fold_all"]
    soft = tmp_path / "predicted"
    (soft / "fold_all").mkdir(parents=True)
    assert fuse.member_folders([Member(run=soft, folds="all", weight=2.0)]) == [
        (soft / "fold_all", 2.0)
    ]
    spec.write_text(json.dumps({"members": [{"run": str(folder), "folds": "most"}]}))
    with pytest.raises(pl.UserError, match="folds"):
        fuse.load_spec(spec)


@pytest.mark.parametrize("steps", [(4,), pytest.param((7, 3), marks=pytest.mark.slow)])
def test_a_stopped_fold_all_ends_with_the_same_bits(
    steps: tuple[int, ...],
    averaged: Path,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In its first epoch of six steps; and twice, in the second and the third."""
    config = config_file(tmp_path, average={"start": 1}, stop={"patience": 1})
    for count in steps:
        stop_after(monkeypatch, count)
        assert run(config, discs, tmp_path / "run", "all") == 75
        assert not (tmp_path / "run" / "fold_all" / "last_model.safetensors").exists()
    stop_after(monkeypatch, 0)
    assert run(config, discs, tmp_path / "run", "all") == 0
    expected = fingerprint(averaged / "fold_all")
    assert {"last_model.safetensors", "swa_model.safetensors", "result.json"} <= expected.keys()
    assert fingerprint(tmp_path / "run" / "fold_all") == expected


def test_killed_after_its_last_epoch(
    averaged: Path, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last state and the model files: they are written by the next start."""
    config = config_file(tmp_path, average={"start": 1}, stop={"patience": 1})

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.loop.keep_last_model", killed)
        with pytest.raises(Killed):
            run(config, discs, tmp_path / "run", "all")
    assert run(config, discs, tmp_path / "run", "all") == 0
    assert fingerprint(tmp_path / "run" / "fold_all") == fingerprint(averaged / "fold_all")


def test_finished_failed_and_locked(
    averaged: Path,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_file(tmp_path, average={"start": 1}, stop={"patience": 1})
    again = tmp_path / "again"
    shutil.copytree(averaged, again)
    assert run(config, discs, again, "all") == 0
    assert "Fold all is already complete; remove" in capsys.readouterr().out
    (again / "fold_all" / "result.json").unlink()
    with lock.held(again / "fold_all" / lock.NAME):
        assert run(config, discs, again, "all") == 2
        assert run(config, discs, again, "all", "--dry-run") == 2
        assert "fold_all belongs to" in capsys.readouterr().out

    def broken(*_: Any) -> None:
        raise ValueError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(fold.loop, "fit", broken)
        assert run(config, discs, again, "all") == 1
        with pytest.raises(pl.FoldError, match="fold all failed: ValueError: no luck"):
            pl.train_folds(config, discs, folds="all", out=again)
    assert "no luck" in (again / "fold_all" / "error.txt").read_text()
    assert RunFolder(again).summary()["all_cases"]["status"] == "failed"
    assert run(config, discs, again, "all") == 0, "the states are still there"
    assert fingerprint(again / "fold_all") == fingerprint(averaged / "fold_all")


def test_fresh_puts_fold_all_aside(averaged: Path, discs: Path, tmp_path: Path) -> None:
    shutil.copytree(averaged, tmp_path / "run")
    config = config_file(tmp_path, epochs=1)
    assert run(config, discs, tmp_path / "run", "all") == 2, "another config"
    assert run(config, discs, tmp_path / "run", "all", "--fresh") == 0
    result = RunFolder(tmp_path / "run").fold(ALL).result()
    assert result is not None
    assert result.epochs == 1
    assert (tmp_path / "run.old-1" / "fold_all" / "swa_model.safetensors").is_file()


def test_a_schedule_without_its_value_is_refused(
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_file(tmp_path, schedule={"name": "plateau"})
    for more in ([], ["--dry-run"]):
        assert run(config, discs, tmp_path / "run", "all", *more) == 2
        told = capsys.readouterr()
        assert "plateau has no value to follow" in told.out + told.err
        assert "poly" in told.out + told.err
    assert not (tmp_path / "run").exists()
    assert run(config, discs, tmp_path / "run", 0, "--dry-run") == 0
    # One that only its own optimiser knows, as of a plugin or of an old run.
    monkeypatch.setattr("pipeline.workflows.checks.places._unmonitored", lambda *_: ())
    assert run(config, discs, tmp_path / "run", "all") == 1
    assert "fold all holds no case out" in capsys.readouterr().out


def test_a_dry_run_and_names(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path)
    assert run(config, discs, tmp_path / "run", "all", "--dry-run") == 0
    assert "6 cases" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        run(config, discs, tmp_path / "run", "most")
    assert "'most' is no fold: give its number, or all" in capsys.readouterr().err


def test_the_function(discs: Path, tmp_path: Path, folds_then_all: tuple[Path, Any]) -> None:
    """The same bits as the command; called again it trains nothing."""
    config = config_file(tmp_path)
    found = pl.train_folds(config, discs, folds="all", out=tmp_path / "run")
    assert fingerprint(found.path / "fold_all") == fingerprint(folds_then_all[0] / "fold_all")
    assert pl.train_folds(config, discs, folds=["all"], out=tmp_path / "run") == found  # type: ignore[list-item]


def test_a_fold_is_trained_beside_it(averaged: Path, discs: Path, tmp_path: Path) -> None:
    """The lock of one does not bar the other."""
    shutil.copytree(averaged, tmp_path / "run")
    (tmp_path / "run" / "fold_all" / "result.json").unlink()
    config = config_file(tmp_path, average={"start": 1}, stop={"patience": 1})
    (tmp_path / "run" / "fold_0").mkdir()
    with lock.held(tmp_path / "run" / "fold_0" / lock.NAME):
        assert run(config, discs, tmp_path / "run", "all") == 0
    with lock.held(tmp_path / "run" / "fold_all" / lock.NAME):
        assert run(config, discs, tmp_path / "run", 0) == 0
    assert RunFolder(tmp_path / "run").completed() == [0]
    with pytest.raises(pl.UserError, match="fold_1 not complete"):
        models.find_models(tmp_path / "run")


@pytest.mark.slow
def test_two_ranks_train_it_as_one_does(tmp_path: Path) -> None:
    """And average by step alike, to the rounding of sums in another order."""
    data = competition_folder(tmp_path / "data", cases=4)
    (tmp_path / "tiny.yaml").write_text(TINY)
    changes = ["--fold", "all", "--set", "train.average={start: 1, by: step, decay: 0.9}"]
    changes += ["network.options.dropout=0", "losses=[{name: dice}]"]
    changes += ["train.optimizer={name: sgd, options: {lr: 0.1}}"]
    files_ = tmp_path / "tiny.yaml", data
    code, out = end(start(*files_, tmp_path / "two", *changes, "data.patch.batch=1"))
    assert code == 0, out[-3000:]
    words = ["--config", str(files_[0]), "--data-dir", str(data), "--out", str(tmp_path / "one")]
    assert train.main([*words, *changes, "data.patch.batch=2"]) == 0
    for kind in ("last", "swa"):
        one, two = (
            models.load_model(RunFolder(tmp_path / n).fold(ALL).model_file(kind)).weights
            for n in ("one", "two")
        )
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def test_the_log_says_how_samples_are_drawn_and_weights_averaged() -> None:
    base = configs.load("configs/nnunet_cpu.yaml")
    (samples,) = fold._about_samples(base, ranks=1)
    assert "1 of 2 in a batch centred on foreground" in samples
    assert "15 batches an epoch" in samples
    ema = ["train.average={decay: 0.9, by: step, start: 0}"]
    trapped = configs.load("configs/nnunet_cpu.yaml", ema)
    assert "5e-05 from then on, not the schedule's" in list(fold._about_samples(trapped, 1))[1]
    kinds = [(p.keys, p.severity) for p in limits.problems(trapped)]
    assert kinds == [(("train.average.lr",), "warning")]
    free = configs.load("configs/nnunet_cpu.yaml", [*ema, "train.average.lr=null"])
    assert list(fold._about_samples(free, 1))[1].endswith("follows the schedule")
    assert not list(limits.problems(free))


def test_the_model_of_all_cases_predicts_where_folds_are_missing(
    averaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configs.load(averaged / "config.yaml")
    told = what_next(config, RunFolder(averaged))
    assert f"--checkpoint {averaged} --folds all" in told
    with caplog.at_level("INFO", logger="pipeline"):
        pl.Predictor.load(averaged, folds="all")
    assert "not validated" in caplog.text
    assert "None" not in caplog.text
