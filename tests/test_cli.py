"""What commands share: spelling of options, exit codes, the kept log, requests to stop."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.progress import log_to_file, progress, progress_callback
from pipeline.records import UserError

ROOT = Path(__file__).resolve().parents[1]


def parser() -> argparse.ArgumentParser:
    p = cli.parser("probe", "Test.")
    p.add_argument("--data-dir")
    return p


@pytest.mark.parametrize(
    "spelling", [["--data-dir", "a_b"], ["--data_dir", "a_b"], ["--data_dir=a_b"]]
)
def test_dash_and_underscore_are_the_same(spelling: list[str]) -> None:
    seen = []
    cli.run(parser(), lambda data_dir, **_: seen.append(data_dir) or 0, spelling)
    assert seen == ["a_b"]


def test_options_are_not_abbreviated() -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(parser(), lambda **_: 0, ["--data", "x"])
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("mend this"), 2),
        (OSError(28, "No space left on device"), 1),
        (MemoryError(), 1),
        (cli.StopRequested("SIGTERM"), 75),
    ],
)
def test_errors_become_messages_and_exit_codes(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(**_: object) -> int:
        raise error

    assert cli.run(parser(), work, []) == code
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "Traceback" not in told


def test_a_programming_error_keeps_its_traceback() -> None:
    def work(**_: object) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(parser(), work, [])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands' signal handlers, with no request so far."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    monkeypatch.setattr(cli.stop, "signal", None)
    cli.stop.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("installed")
def test_a_signal_only_sets_a_flag() -> None:
    cli.stop.raise_if_stopped()
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(cli.StopRequested, match="SIGUSR1"):
        cli.stop.raise_if_stopped()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_may_signal_twice(number: signal.Signals) -> None:
    for _ in range(2):
        os.kill(os.getpid(), number)
        with pytest.raises(cli.StopRequested, match=number.name):
            cli.stop.raise_if_stopped()


@pytest.mark.usefixtures("installed")
def test_the_first_interrupt_asks_and_the_second_ends() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(cli.StopRequested, match="SIGINT"):
        cli.stop.raise_if_stopped()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    twice = (
        "import os, signal; from pipeline import cli; cli.stop.install(); [(os.kill(os.getpid(),"
        " signal.SIGINT), print(n)) for n in (1, 2)]"
    )
    done = subprocess.run(
        [sys.executable, "-uc", twice], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("1\n", -signal.SIGINT)


def test_the_log_holds_what_was_said_before_it_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("pipeline.probe")

    def work(**_: object) -> int:
        log.info("first")
        with log_to_file(tmp_path, "probe") as path:
            log.info("second")
            print("third\r", end="")
        log.info("fourth")
        assert path.read_text() == "first\nsecond\n"
        return 0

    assert cli.run(parser(), work, []) == 0
    assert capsys.readouterr().out == "first\nsecond\nthird\rfourth\n"


def test_progress_yields_everything() -> None:
    assert list(progress(range(3), "x")) == [0, 1, 2]
    advance = progress_callback("x")
    for n in range(3):
        advance(n + 1, 3)
