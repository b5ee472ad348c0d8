"""Progress: one bar with the time left on a terminal, plain lines in a file, and what training says
when it ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline import predict, progress, train
from pipeline.training import loop
from pipeline.training.job import FoldJob
from pipeline.training.journal import Journal
from pipeline.training.state import TrainingState

pty = pytest.importorskip("pty")
ROOT = Path(__file__).resolve().parents[1]


def on_terminal(words: Sequence[str], columns: int = 80) -> str:
    """Everything that a command writes to a terminal; one of 0 columns does not know how wide it
    is.
    """
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        raw = b""
        with contextlib.suppress(OSError):  # Linux: the other end is closed
            while piece := os.read(ours, 1 << 16):
                raw += piece
        os.close(ours)
        assert process.wait(60) == 0, raw.decode()
    return raw.decode()


def screen(raw: str) -> tuple[list[str], list[str]]:
    """Lines that stay on a terminal, and all that its current line showed in between; carriage
    returns are all that moves there.
    """
    assert not re.findall(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", raw)
    lines, seen = [""], []
    for piece in re.split(r"(\r\n|\r|\n)", raw):
        if piece == "\r":
            seen.append(lines[-1].rstrip())
            lines.append(lines.pop() + "\0")  # the next piece is written over this line
        elif piece in ("\r\n", "\n"):
            lines = [*lines[:-1], lines[-1].rstrip("\0 "), ""]
        elif piece:
            old, mark, _ = lines[-1].partition("\0")
            lines[-1] = piece + old[len(piece) :] if mark else old + piece
    return [line.rstrip("\0 ") for line in lines], seen


def test_lines_stand_above_the_bar_and_nothing_is_left(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys, time, warnings
import logging
from pipeline.progress import Progress, progress_callback, log_to_file, log_to_console, progress
log = logging.getLogger("pipeline.probe")
show = log_to_console()
show.__enter__()
with log_to_file(pathlib.Path({str(tmp_path)!r}), "probe"), Progress("Fold 0") as bar:
    for n in range(4):
        bar(n, 4, f"epoch {{n + 1}}/4")
        time.sleep(0.11)
        log.info(f"line {{n + 1}}")
        warnings.warn(f"warning {{n + 1}}")
    advance = progress_callback("inside")
    advance(1, 2)
    bar(4, 4, "done")
    advance(2, 2)
for n in progress(range(3), "after"):
    log.info("still above")
log.info("end")
show.__exit__(None, None, None)
"""
    lines, seen = screen(on_terminal(["-c", code]))
    plain = [line for line in lines if line.startswith(("line", "still", "end"))]
    assert plain == ["line 1", "line 2", "line 3", "line 4", *["still above"] * 3, "end"]
    assert [bool(re.fullmatch(r"\S+: UserWarning: warning \d", line)) for line in lines].count(
        True
    ) == 4
    assert not [line for line in lines if "|" in line], "a bar was left behind"
    assert any(re.fullmatch(r"Fold 0:  25%\|█+ +\| epoch 2/4", line) for line in seen)
    assert any(line.startswith("after:  ") for line in seen)
    (log,) = tmp_path.glob("probe_*.log")
    kept = log.read_text()
    assert not re.findall(r"[^\n\x20-\x7e]", kept)
    assert [
        line for line in kept.splitlines() if line.startswith(("line", "still", "end"))
    ] == plain[:4]


@pytest.mark.slow
def test_training_on_a_terminal(tiny: Path, surfaces: Path, tmp_path: Path) -> None:
    words = [
        "--config",
        str(tiny),
        "--data-dir",
        str(surfaces),
        "--fold",
        "0",
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    lines, seen = screen(on_terminal(["-m", "pipeline", "train", *words]))
    bars = [line for line in seen if "|" in line]
    for wanted in (
        r"Fold 0: .*\| epoch 1/3",
        r"Fold 0:  \d\d%\|█+.*\| epoch 2/3",
        r"Fold 0:  \d\d%\|█+.*\| epoch \d/3.*, step [12]/",  # not each is drawn
        r"Fold 0: .*, validating",
    ):
        assert any(re.match(wanted, line) for line in bars), wanted
    for kind in ("best", "swa"):
        assert any(
            re.match(rf"Fold 0, {kind} weights: .*\| held-out case 1/3", line) for line in bars
        )
    assert not [line for line in lines if "%|" in line], "a bar was left behind"
    assert [line[:9] for line in lines if line.startswith("Epoch")] == [
        "Epoch 1/3",
        "Epoch 2/3",
        "Epoch 3/3",
    ]
    (log,) = (tmp_path / "run").glob("train_*.log")
    assert "%|" not in log.read_text()
    assert "\r" not in log.read_bytes().decode()


def test_a_terminal_of_unknown_width_has_a_bar() -> None:
    """`script`, `docker run -t` and expect open terminals of 0 columns, on which tqdm shows
    nothing.
    """
    code = (
        "from pipeline.progress import progress, bars_shown\n"
        "with bars_shown():\n"
        "    for n in progress(range(3), 'work'): pass"
    )
    _, seen = screen(on_terminal(["-c", code], columns=0))
    assert any(re.match(r"work:   0%\| +\| 0/3 ", line) and 60 < len(line) < 81 for line in seen), (
        seen
    )


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gets a line at every step, as if five minutes had passed."""
    monkeypatch.setattr(progress, "QUIET", -1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("talkative")
def test_a_file_gets_plain_lines(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        train.main(
            [
                "--config",
                str(tiny),
                "--data-dir",
                str(surfaces),
                "--fold",
                "0",
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert re.findall(r"^Fold 0: epoch 2/3.*, step \d/\d$", out, re.MULTILINE)
    assert re.findall(r"^Fold 0, best weights: held-out case 2/3.*$", out, re.MULTILINE)
    assert "\r" not in out
    assert "|" not in out


def test_a_file_hears_of_long_work_every_five_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress.log_to_console():
        bar = progress.Progress("cases")
        for n in range(1, 11):
            now[0] += 61
            bar(n, 10)
    assert capsys.readouterr().out == "cases: 5 of 10\ncases: 10 of 10\n"


def test_the_other_ranks_show_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.log_to_console(), progress.silenced():
        assert list(progress.progress(range(3), "x")) == [0, 1, 2]
        progress.Progress("y")(1, 2, "z")
    assert capsys.readouterr() == ("", "")


def record(epoch: int, seconds: float) -> dict[str, float]:
    return {"epoch": epoch, "train_loss": 0.5, "lr": 1e-3, "seconds": seconds}


def test_epoch_lines_say_what_is_left(tmp_path: Path) -> None:
    """Judged by the last ten epochs; a run that goes on writes the same lines anew."""
    first = Journal(tmp_path, 14)
    for epoch in range(12):
        first.epoch(record(epoch, 900.0 if epoch < 2 else 90.0))
    before = (tmp_path / "training_log.txt").read_text()
    first.close()
    history = [record(epoch, 900.0 if epoch < 2 else 90.0) for epoch in range(12)]
    second = Journal(tmp_path, 14, history)
    assert (tmp_path / "training_log.txt").read_text() == before
    second.epoch(record(12, 90.0))
    second.epoch(record(13, 90.0))
    second.close()
    lines = (tmp_path / "training_log.txt").read_text().splitlines()
    assert lines[0] == "Epoch 1/14: Train Loss: 0.5000, LR: 1.00e-03, 900.0 s, about 3:15:00 left"
    assert lines[11].endswith("90.0 s, about 0:03:00 left")
    assert lines[12].endswith("90.0 s, about 0:01:30 left")
    assert lines[13].endswith("90.0 s")


@pytest.mark.slow
def test_the_end_says_what_to_type_next(
    tiny: Path, surfaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that stands there does predict: with one fold, and with all of them."""
    run = tmp_path / "my run"  # a space has to be quoted
    words = ["--config", str(tiny), "--data-dir", str(surfaces), "--out", str(run)]
    for fold, folds, model in ((1, "1 of 2", run / "fold_1"), (0, "2 of 2", run)):
        assert train.main([*words, "--fold", str(fold)]) == 0
        out = capsys.readouterr().out
        assert f"{folds} folds are complete in {run}." in out
        assert ("Fold 0 is not trained; the same command with --fold 0 trains it." in out) == (
            fold == 1
        )
        assert f"Report: {run / 'report.html'}" in out
        (command,) = re.findall(r"^To predict: (.*)$", out, re.MULTILINE)
        assert shlex.split(command)[:3] == ["python", "-m", "pipeline.predict"]
        given = shlex.split(command)[3:]
        assert given[:4] == ["--checkpoint", str(model), "--input", str(surfaces / "test_images")]
        with contextlib.chdir(tmp_path):
            assert predict.main(given) == 0
            assert (Path(given[-1]) / "900.tif").is_file()
        capsys.readouterr()


def test_the_end_names_what_failed(
    tiny: Path,
    surfaces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(_: FoldJob) -> TrainingState:
        raise RuntimeError("no luck")

    monkeypatch.setattr(loop, "fit", broken)
    assert (
        train.main(
            [
                "--config",
                str(tiny),
                "--data-dir",
                str(surfaces),
                "--fold",
                "0",
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 1
    )
    out = capsys.readouterr().out
    assert "0 of 2 folds are complete" in out
    assert (
        f"Fold 0 failed, see {tmp_path / 'run' / 'fold_0' / 'error.txt'}; the same command with"
        " --fold 0 trains it." in out
    )
    assert "To predict" not in out
