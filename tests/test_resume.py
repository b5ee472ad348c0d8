"""Stopped in the middle of an epoch, or killed, and started again: the same bits, and no step done
twice but those since the last save.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import fingerprint

from pipeline import cli, train
from pipeline.config import ConfigError, Train
from pipeline.data.loaders import EpochBatches
from pipeline.inference import models
from pipeline.records import Checkpoint
from pipeline.runs import FoldFolder
from pipeline.scoring import held_out
from pipeline.training import checkpoint, fold, loop, state, validation

ROOT = Path(__file__).resolve().parents[1]
BASE: dict[str, Any] = {
    "name": "stopped",
    "data": {
        "dims": 2,
        "layout": "folders",
        "folds": {"count": 2},
        "patch": {"size": [16, 16], "batch": 1, "per_case": 2},
        "augment": ["flip", {"name": "noise", "options": {"std": 0.05}}],
    },
    "network": {
        "name": "sa_unet",
        "options": {"channels": [4, 8], "keep": 0.8, "block": 3, "schedule": "linear"},
    },
    "losses": ["dice", "ce"],
    "metrics": ["dice"],
    "predict": {"overlap": 4},
}
TRAIN: dict[str, Any] = {
    "epochs": 3,
    "optimizer": {"name": "adam", "options": {"lr": 0.01}},
    "preview_every": 0,
}
STEPS = 6
"""Batches of an epoch: three training cases, two patches each."""

SYSTEMS: dict[str, dict[str, Any]] = {
    "averaged": {
        **TRAIN,
        "schedule": {"name": "cosine_restarts", "options": {"first": 2}},
        "average": {"start": 1, "lr": 5e-3},
    },
    "accumulated": {
        **TRAIN,
        "accumulate": 4,
        "clip": 1.0,
        "schedule": {"name": "plateau"},
        "validate": {"every": 2},
    },
    "stopping": {**TRAIN, "epochs": 9, "stop": {"monitor": "val_dice", "patience": 2}},
}
Calm = tuple[dict[str, str], dict[str, int], Path]


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six grey images of a disc, with masks."""
    root = tmp_path_factory.mktemp("discs")
    for n in range(6):
        rng = np.random.default_rng(n)
        y, x = np.mgrid[:24, :26]
        label = ((y - rng.integers(6, 18)) ** 2 + (x - rng.integers(6, 18)) ** 2 < 30).astype(
            np.uint8
        )
        image = np.clip(80 + 80 * label + rng.normal(0, 15, label.shape), 0, 255).astype(np.uint8)
        for folder, array in (("images", image), ("masks", label)):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(root / folder / f"c{n}.png")
    return root


def config_file(folder: Path, name: str, **more: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({**BASE, "train": {**SYSTEMS[name], **more}}))  # JSON is YAML
    return path


def words(config: Path, data: Path, out: Path, fold: str = "0") -> list[str]:
    return ["--config", str(config), "--data-dir", str(data), "--out", str(out), "--fold", fold]


@pytest.fixture
def events() -> Iterator[Events]:
    with pytest.MonkeyPatch.context() as patch:
        yield Events(patch)


class Events:
    """Counts optimiser steps, validated patches and predicted cases; asks the process to stop at
    one of them, as its signal handler does.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done: dict[str, int] = {}
        self.until: tuple[str, int] | None = None
        for kind, module, name in (
            ("step", torch.amp.GradScaler, "step"),
            ("patch", validation, "measure"),
            ("case", held_out, "predict_stored"),
        ):
            patch.setattr(module, name, self._counted(kind, getattr(module, name)))
        patch.setattr(cli.stop, "signal", None)
        patch.setattr(
            "pipeline.workflows.train.write_run_report", lambda run: None
        )  # pictures of results that are compared here to the bit

    def _counted(self, kind: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.done[kind] = self.done.get(kind, 0) + 1
            if self.until == (kind, self.done[kind]):
                cli.stop.signal = signal.SIGUSR1
            return work(*arguments)

        return counted

    def run(self, arguments: list[str], until: tuple[str, int] | None = None) -> int:
        """Train; ``until`` counts events of its kind over all runs of this object."""
        self.until, cli.stop.signal = until, None
        return train.main(arguments)


@pytest.fixture(scope="module")
def calm(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Calm]:
    """What the undisturbed run of a system leaves, how often it did what, and its folder; made once
    each.
    """
    made: dict[str, Calm] = {}

    def of(name: str) -> Calm:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                events = Events(patch)
                assert events.run(words(config_file(folder, name), discs, folder / "run")) == 0
            made[name] = fingerprint(folder / "run"), events.done, folder / "run"
        return made[name]

    return of


PLACES = {
    "in the first epoch": ("averaged", [("step", 2)]),
    "after the last step of an epoch": ("averaged", [("step", STEPS)]),
    "while averaging": ("averaged", [("step", 2 * STEPS + 3)]),
    "in validation, before the average takes the weights in": (
        "averaged",
        [("patch", STEPS // 2 + 2)],
    ),
    "in the average's own validation": ("averaged", [("patch", 3 * STEPS // 2 + 2)]),
    "while predicting": ("averaged", [("case", 2)]),
    "three times in a row, once in the same epoch": (
        "averaged",
        [("step", STEPS + 1), ("step", STEPS + 3), ("patch", 5)],
    ),
    "with gradients summed over batches": ("accumulated", [("step", 1), ("step", 4)]),
    "in the epoch that ends by patience": ("stopping", [("step", 2 * STEPS + 2), ("patch", 8)]),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_stopped_run_goes_on_at_the_next_step(
    place: str, calm: Callable[[str], Calm], discs: Path, tmp_path: Path, events: Events
) -> None:
    """Exit 75 each time, then the same files to the bit; every optimiser step and every predicted
    case was done exactly once.
    """
    name, stops = PLACES[place]
    expected, counted, _ = calm(name)
    events.done.clear()  # the calm run may have been made just now
    arguments = words(config_file(tmp_path, name), discs, tmp_path / "run")
    for until in stops:
        assert events.run(arguments, until) == 75
        assert not (tmp_path / "run" / "fold_0" / "result.json").exists()
    assert events.run(arguments) == 0
    assert fingerprint(tmp_path / "run") == expected
    assert {k: events.done[k] for k in ("step", "case")} == {
        k: counted[k] for k in ("step", "case")
    }


def test_the_stand_ins_stop_where_they_should(calm: Callable[[str], Calm]) -> None:
    """Otherwise the test above would not test what it says."""
    logs = {name: json.loads(calm(name)[0]["fold_0/log.jsonl"]) for name in SYSTEMS}
    assert [len(log) for log in logs.values()] == [3, 3, 3]
    assert calm("averaged")[1]["step"] == calm("stopping")[1]["step"] == 3 * STEPS
    assert calm("accumulated")[1]["step"] == 3 * 2
    assert "fold_0/swa_model.safetensors" in calm("averaged")[0]


def test_a_stop_between_steps_waits_for_the_summed_gradients(
    discs: Path, tmp_path: Path, events: Events
) -> None:
    """With ``accumulate: 4`` the state stands after batch 4, never within the four."""
    assert (
        events.run(
            words(config_file(tmp_path, "accumulated"), discs, tmp_path / "run"), ("step", 1)
        )
        == 75
    )
    (state,) = (tmp_path / "run" / "fold_0" / "checkpoint_latest").iterdir()
    assert state.name.startswith("epoch_00000_step_000004-")


def test_records_of_a_stopped_epoch_are_written_once(
    discs: Path, tmp_path: Path, events: Events
) -> None:
    """One line an epoch in both logs and in TensorBoard; an epoch's time is that of its parts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = words(config_file(tmp_path, "averaged"), discs, tmp_path / "run")
    for until in (("step", 3), ("patch", 2), ("step", STEPS + 2)):
        assert events.run(arguments, until) == 75
        # TensorBoard reads its files by name: the second, the process, and a number of the process
        # that sorts as text, 10 before 9. Only here are there several starts of one process.
        time.sleep(1)
    assert events.run(arguments) == 0
    fold = tmp_path / "run" / "fold_0"
    assert [
        json.loads(line)["epoch"] for line in (fold / "log.jsonl").read_text().splitlines()
    ] == [0, 1, 2]
    assert [
        line.split("/")[0] for line in (fold / "training_log.txt").read_text().splitlines()
    ] == ["Epoch 1", "Epoch 2", "Epoch 3"] + [
        line
        for line in (fold / "training_log.txt").read_text().splitlines()
        if line.startswith("SWA")
    ]
    board = EventAccumulator(str(fold / "tensorboard"))
    board.Reload()
    assert [e.step for e in board.Scalars("train_loss")] == [0, 1, 2]


def test_seconds_add_up_over_stops(
    discs: Path, tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that counts optimiser steps: an epoch of six steps takes six, in however many
    processes.
    """
    clock = SimpleNamespace(
        monotonic=lambda: float(events.done.get("step", 0)), strftime=time.strftime
    )
    for module in (loop, fold, state):
        monkeypatch.setattr(module, "time", clock)
    arguments = words(config_file(tmp_path, "averaged"), discs, tmp_path / "run")
    for until in (("step", 2), ("step", STEPS + 5)):
        assert events.run(arguments, until) == 75
    assert events.run(arguments) == 0
    rows = [
        json.loads(line)
        for line in (tmp_path / "run" / "fold_0" / "log.jsonl").read_text().splitlines()
    ]
    assert [row["seconds"] for row in rows] == [STEPS] * 3
    result = FoldFolder(tmp_path / "run" / "fold_0").result()
    assert result is not None
    assert result.seconds == 3 * STEPS


# --- real processes and signals -------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from pipeline import train
from pipeline.training import loop

number, at, log = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
del sys.argv[1:4]
original, done = loop.training_step, 0

def step(*arguments):
    global done
    whole = original(*arguments)
    if whole:
        done += 1
        with open(log, "a") as file:
            file.write("step\\n")
        if done == at:
            os.killpg(0, number)
    return whole

loop.training_step = step
raise SystemExit(train.main())
"""


def killed(
    arguments: list[str], number: int, at: int, log: Path
) -> subprocess.CompletedProcess[str]:
    """Train in a process group of its own, which gets a signal after the process's step ``at``,
    workers and all.
    """
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(int(number)), str(at), str(log), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_signals_to_the_whole_group_lose_no_step(
    calm: Callable[[str], Calm], discs: Path, tmp_path: Path, events: Events
) -> None:
    """USR1, then TERM, amid epochs, with two loader workers, as a scheduler sends them."""
    expected, counted, undisturbed = calm("averaged")
    events.done.clear()
    out, log = tmp_path / "run", tmp_path / "steps"
    arguments = [*words(config_file(tmp_path, "averaged"), discs, out), "--set", "data.workers=2"]
    ends = [
        killed(arguments, number, at, log)
        for number, at in ((signal.SIGUSR1, 2), (signal.SIGTERM, STEPS + 1))
    ]
    assert [end.returncode for end in ends] == [75, 75], [end.stderr[-500:] for end in ends]
    assert "saved in epoch 1 after step 2" in ends[0].stdout
    assert events.run(arguments) == 0
    found = fingerprint(out)
    for name in (
        "fold_0/log.jsonl",
        "fold_0/result.json",
        *(n for n in expected if n.endswith(".png")),
    ):
        assert found[name] == expected[name], name
    for kind in ("best", "swa"):  # the files' headers hold the config, in which the workers differ
        assert _weights(out, kind) == _weights(undisturbed, kind)
    assert len(log.read_text().splitlines()) + events.done["step"] == counted["step"]


def _weights(run: Path, kind: str) -> str:
    weights = models.load_model(run / "fold_0" / f"{kind}_model.safetensors").weights
    return hashlib.sha256(
        b"".join(weights[k].numpy().tobytes() for k in sorted(weights))
    ).hexdigest()


@pytest.mark.slow
def test_a_kill_loses_no_more_than_the_steps_since_the_last_save(
    discs: Path, tmp_path: Path, events: Events, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL twice with ``save_steps: 2``: no kill costs more than two steps, and the end is that
    of a calm run.
    """
    config = config_file(tmp_path, "averaged", save_steps=2)
    assert events.run(words(config, discs, tmp_path / "calm")) == 0
    events.done.clear()
    out, log = tmp_path / "run", tmp_path / "steps"
    ends = [killed(words(config, discs, out), signal.SIGKILL, at, log) for at in (3, 2)]
    assert [end.returncode for end in ends] == [-signal.SIGKILL] * 2, [
        end.stderr[-500:] for end in ends
    ]
    capsys.readouterr()
    assert events.run(words(config, discs, out)) == 0
    told = ends[1].stdout + capsys.readouterr().out
    assert (
        told.count("taken over from process")
        == told.count("continuing after epoch 0 and step 2 of the next")
        == 2
    )
    assert fingerprint(out) == fingerprint(tmp_path / "calm")
    # Killed after step 3, then before step 4 was saved: one step, then two are done again.
    assert len(log.read_text().splitlines()) + events.done["step"] == 3 * STEPS + 3


# --- parts ----------------------------------------------------------------------------------------


def test_an_epoch_begins_at_any_batch() -> None:
    batches = EpochBatches([(n,) for n in range(7)], 2, (1, 2))
    batches.epoch = 3
    whole = list(batches)
    for first in range(5):
        batches.first = first
        assert list(batches) == whole[first:]


def test_states_are_ordered_by_what_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Newest by (epoch, step), not by name or clock; a state that a later one overtakes from behind
    is a damaged one and goes.
    """
    for done in ((9, 0), (9, 12), (10, 0), (10, 3)):
        checkpoint.save_state(
            tmp_path,
            done,
            {"w": torch.tensor([float(done[0]), float(done[1])])},
            {"epoch": done[0]},
        )
    assert [p.name.partition("-")[0] for p in sorted(tmp_path.iterdir())] == [
        "epoch_00010",
        "epoch_00010_step_000003",
    ]
    newest = next(tmp_path.glob("*step*"))
    newest.write_bytes(b"torn")
    loaded = checkpoint.load_state(tmp_path)
    assert loaded is not None
    assert loaded[0]["w"].tolist() == [10.0, 0.0]
    assert "damaged" in caplog.messages[0]
    checkpoint.save_state(tmp_path, (10, 1), {"w": torch.zeros(1)}, {"epoch": 10})
    assert [p.name.partition("-")[0] for p in sorted(tmp_path.iterdir())] == [
        "epoch_00010",
        "epoch_00010_step_000001",
    ]


def test_file_times_do_not_matter(
    calm: Callable[[str], Calm],
    discs: Path,
    tmp_path: Path,
    events: Events,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The older state claims to be of the year 2100: the newer one is continued, and the end is the
    same.
    """
    expected = calm("averaged")[0]
    events.done.clear()
    arguments = words(config_file(tmp_path, "averaged"), discs, tmp_path / "run")
    assert events.run(arguments, ("step", STEPS + 1)) == 75
    older, newer = sorted((tmp_path / "run" / "fold_0" / "checkpoint_latest").iterdir())
    os.utime(older, (4102444800, 4102444800))
    assert older.stat().st_mtime > newer.stat().st_mtime
    capsys.readouterr()
    assert events.run(arguments) == 0
    assert "continuing after epoch 1 and step 1 of the next" in capsys.readouterr().out
    assert fingerprint(tmp_path / "run") == expected


def test_states_and_models_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        state = checkpoint.save_state(tmp_path, (1, 0), {"w": torch.zeros(1)}, {"epoch": 1})
        model = Checkpoint(
            config={},
            channels=(1, 1),
            fold=0,
            epoch=0,
            score=None,
            weights={"w": torch.zeros(1)},
            kind="best",
        )
        models.save_model(tmp_path / "model.safetensors", model)
    finally:
        os.umask(before)
    assert [
        stat.S_IMODE(path.stat().st_mode) for path in (state, tmp_path / "model.safetensors")
    ] == [0o640, 0o640]


def test_states_without_steps_are_read(
    calm: Callable[[str], Calm], discs: Path, tmp_path: Path, events: Events
) -> None:
    """A state of the older kind, which knew whole epochs only, leads to the same end."""
    arguments = words(config_file(tmp_path, "averaged"), discs, tmp_path / "run")
    assert events.run(arguments, ("step", STEPS + 1)) == 75
    folder = tmp_path / "run" / "fold_0" / "checkpoint_latest"
    next(folder.glob("*_step_*")).unlink()
    (state,) = folder.iterdir()
    tensors, facts = models.decode(state)
    state.unlink()
    checkpoint.save_state(
        folder,
        (1, 0),
        tensors,
        {k: v for k, v in facts.items() if k not in ("step", "means", "seconds")},
    )
    assert events.run(arguments) == 0
    assert fingerprint(tmp_path / "run") == calm("averaged")[0]


def test_save_steps_must_not_be_negative() -> None:
    with pytest.raises(ConfigError, match="save_steps"):
        Train(save_steps=-1)
