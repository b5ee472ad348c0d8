"""Trackers get what an epoch's record holds, survive a continued fold, and never stop a training,
whatever they raise.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from pipeline import files, train
from pipeline.training.tracking import TRACKERS, TrackedRun, Trackers, flat


class Notebook:
    """A tracker that remembers; ``fails`` names the method that raises."""

    def __init__(self, tracked: TrackedRun, fails: str = "") -> None:
        self.tracked, self.fails, self.lines = tracked, fails, []
        self.id = tracked.known or "first"
        if fails == "start":
            raise RuntimeError("no server")

    def _note(self, name: str, *what: object) -> None:
        if self.fails == name:
            raise ConnectionError("server gone")
        self.lines.append((name, *what))

    def metrics(self, values, epoch) -> None:
        self._note("metrics", dict(values), epoch)

    def model(self, path) -> None:
        self._note("model", path.name)

    def close(self) -> None:
        self._note("close")


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch) -> list[Notebook]:
    """Every tracker that is started, in order."""
    made: list[Notebook] = []

    def start(tracked: TrackedRun) -> Notebook:
        made.append(Notebook(tracked))
        return made[-1]

    monkeypatch.setitem(TRACKERS, "mlflow", start)
    return made


def tracked(folder: Path) -> TrackedRun:
    return TrackedRun(name="x", run=folder, fold=0, settings={"a.b": 1}, known=None)


@pytest.mark.slow
def test_a_fold_tells_settings_epochs_and_its_best_model(
    tiny: Path, surfaces: Path, tmp_path: Path, notebooks: list[Notebook]
) -> None:
    words = [
        "--config",
        tiny,
        "--data-dir",
        surfaces,
        "--out",
        tmp_path / "run",
        "--fold",
        "0",
        "--set",
        "train.track=[mlflow]",
    ]
    assert train.main([str(w) for w in words]) == 0
    book = notebooks[0]
    assert book.tracked.settings["train.optimizer.options.lr"] == 0.01
    assert [line[0] for line in book.lines] == ["metrics"] * 3 + ["model", "close"]
    assert [line[2] for line in book.lines[:3]] == [1, 2, 3]
    assert all(
        math.isfinite(line[1]["val_loss"]) and "epoch" not in line[1] for line in book.lines[:3]
    )
    assert files.read_json(tmp_path / "run" / "fold_0" / "tracking.json") == {"mlflow": "first"}


@pytest.mark.parametrize("fails", ["start", "metrics", "model", "close"])
def test_a_tracker_that_fails_is_dropped_once_and_nothing_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(TRACKERS, "mlflow", lambda s: Notebook(s, fails))
    monkeypatch.setitem(TRACKERS, "wandb", Notebook)
    trackers = Trackers(["mlflow", "wandb"], tracked(tmp_path), tmp_path)
    good = trackers.active["wandb"]
    (tmp_path / "best.safetensors").touch()
    for epoch in (0, 1):
        trackers.metrics({"epoch": epoch, "val_loss": 0.5, "lr": math.nan})
    trackers.model(tmp_path / "best.safetensors")
    trackers.close()
    assert len(caplog.messages) == 1
    assert "tracker mlflow failed and is dropped" in caplog.messages[0]
    assert good.lines == [
        ("metrics", {"val_loss": 0.5}, 1),
        ("metrics", {"val_loss": 0.5}, 2),
        ("model", "best.safetensors"),
        ("close",),
    ]


def test_a_continued_fold_continues_its_entry(
    tmp_path: Path, notebooks: list[Notebook], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        Trackers(["mlflow"], tracked(tmp_path), tmp_path).close()
    assert [book.tracked.known for book in notebooks] == [None, "first"]
    assert not caplog.messages


def test_a_tracker_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    trackers = Trackers(["wandb"], tracked(tmp_path), tmp_path)
    assert not trackers.active
    assert 'pip install -e ".[tracking]"' in caplog.messages[0]


def test_mlflow_itself_holds_parameters_metrics_and_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = pytest.importorskip(
        "mlflow.tracking", reason="the extra 'tracking' is not installed"
    ).MlflowClient
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for epoch in (0, 1):  # the second time as a continued fold
        trackers = Trackers(["mlflow"], tracked(tmp_path), tmp_path)
        trackers.metrics({"epoch": epoch, "val_loss": 0.5 - epoch / 10})
        trackers.close()
    (tmp_path / "best.safetensors").write_bytes(b"weights")
    trackers = Trackers(["mlflow"], tracked(tmp_path), tmp_path)
    trackers.model(tmp_path / "best.safetensors")
    trackers.close()
    store = client(tracking_uri=(tmp_path / "mlruns").as_uri())
    (run,) = store.search_runs([store.get_experiment_by_name("x").experiment_id])
    assert run.data.params == {"a.b": "1"}
    assert [(m.step, m.value) for m in store.get_metric_history(run.info.run_id, "val_loss")] == [
        (1, 0.5),
        (2, 0.4),
    ]
    assert [f.path for f in store.list_artifacts(run.info.run_id, "model")] == [
        "model/best.safetensors"
    ]
    assert run.info.status == "FINISHED"
    assert not [m for m in caplog.messages if "tracker" in m]


def test_flat_keeps_lists_and_empty_settings() -> None:
    assert flat({"a": {"b": [1, 2], "c": {}}, "d": None}) == {"a.b": [1, 2], "d": None}
