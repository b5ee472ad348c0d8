"""``train.keep: last``, ``train.stop.patience: null`` and averages by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import config_file, fingerprint, make_discs, run, same, stop_after

import pipeline as pl
from pipeline import report
from pipeline.inference import models
from pipeline.runs import FoldFolder, RunFolder
from pipeline.scoring import held_out
from pipeline.training import checkpoint, loop, validation
from pipeline.training.state import TrainingState


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_discs(tmp_path_factory.mktemp("discs"))


@pytest.fixture(autouse=True)
def _without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.workflows.train.write_run_report", lambda run: None)


@pytest.fixture(scope="module")
def kept(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both folds, last and averaged weights."""
    folder = tmp_path_factory.mktemp("kept")
    config = config_file(folder, keep="last", average={"start": 1, "decay": 0.5})
    assert run(config, discs, folder / "run", -1) == 0
    return folder / "run"


def test_the_last_weights_are_kept(kept: Path) -> None:
    one = FoldFolder(kept / "fold_0")
    assert list(one.model_files()) == ["last", "swa"]
    tensors, header = checkpoint.load_fold(one.states) or pytest.fail("no state")
    model = models.load_model(one.model_file("last"))
    assert same(model.weights, checkpoint.with_prefix("network/", tensors))
    assert (model.kind, model.epoch, model.fold) == ("last", 2, 0)
    log, _ = one.epochs()
    assert model.score == pytest.approx(log[-1]["val_loss"])
    result = one.result()
    assert result is not None
    assert result.best_epoch == min(log, key=lambda r: r["val_loss"])["epoch"]
    assert result.score == min(r["val_loss"] for r in log) == header["best_score"]
    assert result.metrics.keys() == {"last", "swa"} == one.scores().keys()
    assert result.chosen == held_out.choose({k: dict(v) for k, v in result.metrics.items()})
    assert one.model().name == f"{result.chosen}_model.safetensors" == result.checkpoint


def test_choosing_between_last_and_averaged() -> None:
    assert held_out.choose({"last": {"dice": 0.5}, "swa": {"dice": 0.5}}) == "last"
    assert held_out.choose({"last": {"dice": 0.5}, "swa": {"dice": 0.6}}) == "swa"
    assert held_out.choose({"last": {"dice": math.nan}, "swa": {"dice": 0.1}}) == "swa"
    assert held_out.choose({"last": {"dice": math.nan}, "swa": {"dice": math.nan}}) == "last"


def test_prediction_and_report_know_them(kept: Path) -> None:
    found = pl.Predictor.load(kept, model="last").models
    assert [Path(p).name for p in found] == ["last_model.safetensors"] * 2
    with pytest.raises(pl.UserError, match="has no best weights, only last, swa"):
        pl.Predictor.load(kept, model="best")
    assert report.main([str(kept)]) == 0
    page = (kept / "report.html").read_text()
    assert "last ✓" in page or "swa ✓" in page
    text = next(kept.glob("train_2*.log")).read_text()
    assert "last" in text.partition("TRAINING SUMMARY")[2]


def test_a_stopped_fold_ends_with_the_same_bits(
    kept: Path, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_file(tmp_path, keep="last", average={"start": 1, "decay": 0.5})
    stop_after(monkeypatch, 5)
    assert run(config, discs, tmp_path / "run", 0) == 75
    stop_after(monkeypatch, 0)
    assert run(config, discs, tmp_path / "run", 0) == 0
    assert fingerprint(tmp_path / "run" / "fold_0") == fingerprint(kept / "fold_0")


def test_the_first_epochs_are_those_of_keep_best(kept: Path, discs: Path, tmp_path: Path) -> None:
    """What is kept changes nothing in training: same log, same averaged weights."""
    config = config_file(tmp_path, average={"start": 1, "decay": 0.5})
    assert run(config, discs, tmp_path / "run", 0) == 0
    best, last = fingerprint(tmp_path / "run" / "fold_0"), fingerprint(kept / "fold_0")
    assert best["log.jsonl"] == last["log.jsonl"]
    swa = [
        models.load_model(f / "fold_0" / "swa_model.safetensors").weights
        for f in (tmp_path / "run", kept)
    ]
    assert same(*swa)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_value_that_is_never_finite(
    keep: str,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is chosen by it where the last weights are kept: a warning, no error."""
    original = validation.validate

    def without(*arguments: Any) -> validation.Validation:
        found = original(*arguments)
        values = {**found.values, "val_loss": math.nan}
        return validation.Validation(values=values, unlabelled=found.unlabelled)

    monkeypatch.setattr(loop, "validate", without)
    code = run(config_file(tmp_path, keep=keep), discs, tmp_path / "run", 0)
    assert "was never finite" in capsys.readouterr().out
    result = RunFolder(tmp_path / "run").fold(0).result()
    assert result is not None
    if keep == "best":
        assert (code, result.status) == (1, "failed")
        return
    assert (code, result.status, result.chosen) == (0, "completed", "last")
    assert (result.best_epoch, result.score) == (-1, None)
    assert models.load_header(tmp_path / "run" / "fold_0" / "last_model.safetensors").score is None


def test_without_patience_all_epochs_are_trained(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitored value only gets worse; a patience of 1 ends after the second epoch."""
    original = validation.validate

    def worse(job: Any, network: Any) -> validation.Validation:
        found = original(job, network)
        worse.calls += 1  # type: ignore[attr-defined]
        values = {**found.values, "val_loss": float(worse.calls)}  # type: ignore[attr-defined]
        return validation.Validation(values=values, unlabelled=found.unlabelled)

    monkeypatch.setattr(loop, "validate", worse)
    for patience, epochs in ((1, 2), (None, 3)):
        worse.calls = 0  # type: ignore[attr-defined]
        folder = tmp_path / str(patience)
        config = config_file(folder, stop={"patience": patience}, keep="last")
        assert run(config, discs, folder / "run", 0) == 0
        result = RunFolder(folder / "run").fold(0).result()
        assert result is not None
        assert (result.epochs, result.best_epoch) == (epochs, 0)
        told = (folder / "run" / "fold_0" / "training_log.txt").read_text()
        assert ("Early stopping" in told) == (patience is not None)
        header = models.load_header(folder / "run" / "fold_0" / "last_model.safetensors")
        assert header.epoch == epochs - 1


@pytest.mark.parametrize(
    "change", ["train.keep=best", "train.stop.patience=null", "train.average.by=step"]
)
def test_a_run_goes_on_only_as_it_began(
    change: str, kept: Path, discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, keep="last", average={"start": 1, "decay": 0.5})
    assert run(config, discs, kept, 0, "--dry-run") == 0
    assert run(config, discs, kept, 0, "--set", change) == 2
    assert change.partition("=")[0] in capsys.readouterr().err


# --- averages by step -----------------------------------------------------------------------------

STEPS = 3
"""Optimiser steps of an epoch: three cases, two patches each, batches of two."""


@pytest.mark.parametrize(
    ("decay", "lr"), [(0.75, None), (None, None), (0.75, 5e-3)], ids=["ema", "equal", "rate"]
)
def test_an_average_by_step_is_that_of_all_steps(
    decay: float | None,
    lr: float | None,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against an average over the weights after each step, in float64."""
    seen: list[tuple[int, dict[str, torch.Tensor]]] = []
    original = loop.training_step

    def spied(job: Any, state: TrainingState, step: int, batch: Any) -> bool:
        updated = original(job, state, step, batch)
        weights = {k: v.detach().double().clone() for k, v in state.network.named_parameters()}
        seen.append((state.epoch, weights))
        return updated

    monkeypatch.setattr(loop, "training_step", spied)
    average = {"start": 1, "decay": decay, "by": "step", "lr": lr}
    config = config_file(tmp_path, average=average, schedule={"name": "poly"})
    assert run(config, discs, tmp_path / "run", 0) == 0
    averaged = [weights for epoch, weights in seen if epoch >= 1]
    assert len(averaged) == 2 * STEPS
    expected = averaged[0]
    for n, weights in enumerate(averaged[1:], 1):
        share = 1 / (n + 1) if decay is None else 1 - decay
        expected = {k: v + share * (weights[k] - v) for k, v in expected.items()}
    found = models.load_model(tmp_path / "run" / "fold_0" / "swa_model.safetensors").weights
    for name, value in expected.items():
        assert torch.allclose(found[name].double(), value, atol=1e-6), name
    assert not all(torch.allclose(found[k].double(), averaged[-1][k], atol=1e-5) for k in expected)
    log, _ = FoldFolder(tmp_path / "run" / "fold_0").epochs()
    rates = [record["lr"] for record in log]
    poly = [0.01 * (1 - n / 3) ** 0.9 for n in range(3)]
    assert rates == pytest.approx(poly if lr is None else [0.01, lr, lr])


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_average_by_step_resumes_in_an_epoch(
    accumulate: int, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before, at and after the first averaged step: no step enters twice, none is lost."""
    more = {"average": {"start": 1, "decay": 0.9, "by": "step"}, "accumulate": accumulate}
    config = config_file(tmp_path, **more)
    assert run(config, discs, tmp_path / "calm", 0) == 0
    expected = fingerprint(tmp_path / "calm" / "fold_0")
    updates = -(-STEPS // accumulate)
    for count in (updates, 1, 1):
        stop_after(monkeypatch, count)
        assert run(config, discs, tmp_path / "run", 0) == 75
    stop_after(monkeypatch, 0)
    assert run(config, discs, tmp_path / "run", 0) == 0
    assert fingerprint(tmp_path / "run" / "fold_0") == expected
