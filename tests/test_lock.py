"""One owner of a folder: told, waited for, taken over when dead; and training commands that share a
run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import competition_folder

from pipeline import files, train
from pipeline.files import lock
from pipeline.runs import FoldFolder
from pipeline.stopping import stop

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

HOLDER = """
import os, sys, time
from pathlib import Path
from pipeline.files import lock

with lock.held(Path(sys.argv[1])):
    if sys.argv[2] == "fork" and os.fork() == 0:
        # In one piece, beside the other process's line.
        os.write(1, f"forked {os.getpid()}\\n".encode())
        time.sleep(60)
        os._exit(0)
    os.write(1, b"holds\\n")
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its standard input is closed."""
    words = [sys.executable, "-c", HOLDER, str(path), "plain"]
    with subprocess.Popen(
        words, env=ENVIRONMENT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        while "holds" not in process.stdout.readline():
            pass
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What locks log."""
    caplog.set_level(logging.INFO, "pipeline.files.lock")
    return caplog


def test_the_second_process_is_told_who_owns_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    with holder(path) as first:
        with (
            pytest.raises(
                lock.BusyError, match=f"process {first.pid} on {socket.gethostname()}, since 20.*-c"
            ) as told,
            lock.held(path),
        ):
            pass
        assert str(path.parent) in str(told.value)
        first.communicate()  # closes its input: it gives the lock back
        assert path.read_bytes() == b""
    with lock.held(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_killed_owner_is_replaced_and_it_is_said(
    tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ".lock"
    with holder(path) as first:
        first.kill()
        first.wait()
        with lock.held(path):
            pass
    assert len(heard.messages) == 1
    assert f"taken over from process {first.pid}" in heard.messages[0]
    with lock.held(path):
        pass
    assert len(heard.messages) == 1


def test_children_of_a_killed_owner_do_not_keep_it(tmp_path: Path) -> None:
    """Loader workers outlive a killed trainer by seconds; the next one does not wait for them."""
    path = tmp_path / ".lock"
    words = [sys.executable, "-c", HOLDER, str(path), "fork"]
    with subprocess.Popen(
        words, env=ENVIRONMENT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        lines = sorted([first.stdout.readline(), first.stdout.readline()])
        child = int(lines[0].split()[1])
        try:
            first.kill()
            first.wait()
            os.kill(child, 0)  # it lives
            with lock.held(path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_waiting_ends_when_the_owner_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "POLL", 0.0)
    path, waited = tmp_path / ".lock", []
    with contextlib.ExitStack() as first:
        first.enter_context(lock.held(path))

        def wait(busy: lock.BusyError, seconds: float) -> None:
            assert busy.owner is not None
            assert busy.owner.pid == os.getpid()
            waited.append(seconds)
            if len(waited) == 3:
                first.close()

        with lock.held(path, wait):
            assert len(waited) == 3


def test_a_waiter_notices_that_the_folder_was_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It owns the folder of that name, not the one that was set aside while it waited."""
    monkeypatch.setattr(lock, "POLL", 0.0)
    path = tmp_path / "run" / ".lock"
    with contextlib.ExitStack() as first:
        first.enter_context(lock.held(path))

        def wait(busy: lock.BusyError, seconds: float) -> None:
            (tmp_path / "run").rename(tmp_path / "run.old-1")

        with lock.held(path, wait):
            assert json.loads(path.read_text())["pid"] == os.getpid()


def test_what_ends_the_waiting_is_raised(tmp_path: Path) -> None:
    def stop(busy: lock.BusyError, seconds: float) -> None:
        raise KeyboardInterrupt

    with lock.held(tmp_path / ".lock"):
        handles = len(os.listdir("/proc/self/fd"))
        with pytest.raises(KeyboardInterrupt), lock.held(tmp_path / ".lock", stop):
            pass
        assert len(os.listdir("/proc/self/fd")) == handles


@pytest.mark.parametrize(
    ("host", "alive", "free"),
    [
        ("here", True, False),
        ("here", False, True),
        ("elsewhere", False, False),
        ("elsewhere", True, False),
    ],
)
def test_without_locks_the_facts_decide(
    host: str, alive: bool, free: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that has no flock: a living owner or one of another host is respected, a
    dead one of this host replaced.
    """

    def missing(handle: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner = {
        "pid": os.getpid() if alive else dead.pid,
        "host": socket.gethostname() if host == "here" else host,
    }
    (tmp_path / ".lock").write_text(
        json.dumps({**owner, "since": "2026-01-01 00:00:00", "command": "train.py"})
    )
    expected = (
        contextlib.nullcontext() if free else pytest.raises(lock.BusyError, match=str(owner["pid"]))
    )
    with expected, lock.held(tmp_path / ".lock"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_an_unreadable_owner_is_another_process(tmp_path: Path) -> None:
    with lock.held(tmp_path / ".lock"):
        (tmp_path / ".lock").write_text('{"pid": 1')
        with pytest.raises(lock.BusyError, match="another process"), lock.held(tmp_path / ".lock"):
            pass


# --- training -------------------------------------------------------------------------------------


def words(config: Path, data: Path, out: Path, *more: str) -> list[str]:
    short = ["train.epochs=2", "metrics=[dice]", "train.average=null"]
    return [
        "--config",
        str(config),
        "--data-dir",
        str(data),
        "--out",
        str(out),
        *more,
        "--set",
        *short,
    ]


@pytest.mark.slow
def test_a_fold_in_work_is_left_to_its_owner(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for that fold alone: 2 at once.

    Asked for all: the others are trained, the code is 1, and it is said whose the fold is.
    """
    out = tmp_path / "run"
    with holder(out / "fold_1" / ".lock") as other:
        owner = f"process {other.pid} on {socket.gethostname()}"
        assert train.main(words(tiny, surfaces, out, "--fold", "1")) == 2
        assert owner in capsys.readouterr().err
        assert not (out / "splits.json").exists()
        assert train.main(words(tiny, surfaces, out)) == 1
        told = capsys.readouterr().out
        assert "Fold 1 is left out" in told
        assert (
            f"Fold 1 is not complete and was not trained here: {out / 'fold_1'} belongs to {owner}"
            in told
        )
        assert FoldFolder(out / "fold_0").completed
        assert not (out / "fold_1" / "result.json").exists()
        assert train.main(words(tiny, surfaces, out, "--fresh")) == 2
        assert owner in capsys.readouterr().err
        assert FoldFolder(out / "fold_0").completed
        assert not (tmp_path / "run.old-1").exists()
    assert train.main(words(tiny, surfaces, out)) == 0
    assert f"taken over from {owner}" in capsys.readouterr().out


def test_waiting_for_the_run_folder_is_said_and_can_be_stopped(
    tiny: Path,
    surfaces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipeline.workflows.locking.SILENT", 0.0)
    monkeypatch.setattr(lock, "POLL", 0.05)
    monkeypatch.setattr(stop, "signal", None)
    out = tmp_path / "run"
    with holder(out / ".lock") as other:
        polls = iter([None, None, None, signal.SIGTERM])
        monkeypatch.setattr(lock.time, "sleep", lambda _: setattr(stop, "signal", next(polls)))
        assert train.main(words(tiny, surfaces, out)) == 75
    told = capsys.readouterr()
    assert told.out.count("Waiting:") == 1
    assert str(other.pid) in told.out


TOGETHER = """
import sys
from pipeline import files, train
from pipeline.data import cache

log = sys.argv.pop(1)
save = cache.save

def write(path, array):
    if path.name.endswith(".image.npy"):
        with open(log, "a") as file:
            file.write(path.name.removesuffix(".image.npy") + "\\n")
    return save(path, array)

cache.save = write
raise SystemExit(train.main())
"""


@pytest.mark.slow
def test_tasks_of_one_run_start_together(tiny: Path, tmp_path: Path) -> None:
    """Two array tasks and a third one on the same fold, in the same moment: each case is stored
    once, both folds end, the third is refused.
    """
    data, out, log = (
        competition_folder(tmp_path / "data", cases=4),
        tmp_path / "run",
        tmp_path / "stored",
    )
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(log), *words(tiny, data, out, "--fold", fold)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for fold in ("0", "1", "1")
    ]
    ends = [(*task.communicate(), task.returncode) for task in tasks]
    codes = [code for _, _, code in ends]
    # The third may find its fold in work, or complete where it was slow to start.
    assert codes[0] == 0, ends[0]
    assert sorted(codes[1:]) in ([0, 2], [0, 0]), ends[1:]
    assert sorted(log.read_text().split()) == ["100", "101", "102", "103"]
    assert train.main(words(tiny, data, out)) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [f["status"] for f in summary["folds"]] == ["completed", "completed"]
    assert not list(out.rglob(".tmp-*"))


def test_sweeping_spares_the_temporary_files_of_the_living(
    tiny: Path, surfaces: Path, tmp_path: Path
) -> None:
    """What another process is writing into the run stays; what a dead one left goes, when the run
    is prepared.
    """
    out = tmp_path / "run"
    (out / "fold_1").mkdir(parents=True)
    with files.whole(tmp_path / "a.npy") as temp:
        temp.write_bytes(b"")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        living, dead = (
            out / "fold_1" / temp.name.replace(f"-{os.getpid()}-", f"-{pid}-")
            for pid in (other.pid, _dead_pid())
        )
        for path in (living, dead):
            path.write_bytes(b"half")
        assert train.main(words(tiny, surfaces, out, "--fold", "0")) == 0
        assert (living.exists(), dead.exists()) == (True, False)


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid
