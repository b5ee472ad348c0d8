"""A run, and each fold of it, finishes by the metrics version that it began with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import train
from pipeline.records import METRICS_VERSION
from pipeline.training import checkpoint, loop
from pipeline.training.job import FoldJob
from pipeline.training.state import TrainingState

QUICK = ("--fold", "0", "--set", "train.epochs=2", "train.average=null", "metrics=[dice]")


def run(config: Path, data: Path, out: Path, *more: str) -> int:
    return train.main(
        ["--config", str(config), "--data-dir", str(data), "--out", str(out), *QUICK, *more]
    )


def kept(out: Path) -> Any:
    return json.loads((out / "environment.json").read_text()).get("metrics_version")


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The version by which each validation was asked for."""
    seen: list[int] = []
    original = loop.validate

    def spy(job: FoldJob, network: Any) -> dict[str, float]:
        seen.append(job.version)
        return original(job, network)

    monkeypatch.setattr(loop, "validate", spy)
    return seen


def test_a_new_run_has_the_present_version(
    tiny: Path, surfaces: Path, tmp_path: Path, versions: list[int]
) -> None:
    assert run(tiny, surfaces, tmp_path / "run") == 0
    assert kept(tmp_path / "run") == METRICS_VERSION
    state = checkpoint.load_state(tmp_path / "run" / "fold_0" / "checkpoint_latest")
    assert state is not None
    assert state[1]["metrics_version"] == METRICS_VERSION
    assert versions == [METRICS_VERSION] * 2


@pytest.mark.slow
def test_a_run_without_a_version_stays_at_the_first(
    tiny: Path, surfaces: Path, tmp_path: Path, versions: list[int]
) -> None:
    out = tmp_path / "run"
    assert run(tiny, surfaces, out) == 0
    known = json.loads((out / "environment.json").read_text())
    del known["metrics_version"]
    (out / "environment.json").write_text(json.dumps(known))
    versions.clear()
    assert run(tiny, surfaces, out, "--fold", "1") == 0
    assert (kept(out), versions) == (1, [1, 1])
    assert run(tiny, surfaces, out, "--fold", "1") == 0  # and at the next start
    assert kept(out) == 1
    assert run(tiny, surfaces, out, "--fresh") == 0  # a new run in its place
    assert kept(out) == METRICS_VERSION


def test_a_state_finishes_by_its_own_version(
    tiny: Path, surfaces: Path, tmp_path: Path, versions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state of before versions, in a run that has one: what is left of its fold is validated as
    it began.
    """
    out = tmp_path / "run"
    original = checkpoint.save_state

    def old(folder: Path, done: tuple[int, int], tensors: Any, facts: dict) -> Path:
        return original(
            folder, done, tensors, {k: v for k, v in facts.items() if k != "metrics_version"}
        )

    def stop(job: FoldJob, state: TrainingState) -> None:
        original_keep(job, state)
        if state.epoch == 2:
            raise RuntimeError("stopped")

    original_keep = loop.keep_epoch_model
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", old)
        patch.setattr(loop, "keep_epoch_model", stop)
        assert run(tiny, surfaces, out) == 1
    assert versions == [METRICS_VERSION] * 2
    assert run(tiny, surfaces, out) == 0
    assert versions[2:] == [1]
    state = checkpoint.load_state(out / "fold_0" / "checkpoint_latest")
    assert state is not None
    assert state[1]["metrics_version"] == 1
