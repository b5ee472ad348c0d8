"""What the package tells goes through the standard library's logging: silent in a notebook, printed
by commands, kept with a run.
"""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import progress
from pipeline.progress import log_to_console, log_to_file

LOG = logging.getLogger("pipeline.probe")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def above() -> Iterator[io.StringIO]:
    """A user's own handler on the root logger, which takes warnings and more."""
    stream, root = io.StringIO(), logging.getLogger()
    handler, level, others = logging.StreamHandler(stream), root.level, root.handlers[:]
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    yield stream
    root.handlers[:], root.level = others, level


def tell() -> None:
    LOG.info("a fact")
    LOG.warning("a danger")


def test_a_run_keeps_its_log_and_nobody_else_hears_more(tmp_path: Path, above: io.StringIO) -> None:
    before = progress.ROOT.level, progress.ROOT.propagate, list(progress.ROOT.handlers)
    with log_to_file(tmp_path, "train") as path:
        tell()
    tell()
    assert path.read_text() == "a fact\nwarning: a danger\n"
    assert above.getvalue() == "a danger\na danger\n"
    assert (progress.ROOT.level, progress.ROOT.propagate, progress.ROOT.handlers) == before


def test_a_user_who_asks_for_everything_gets_it(tmp_path: Path, above: io.StringIO) -> None:
    logging.getLogger().setLevel(logging.INFO)
    tell()
    with log_to_file(tmp_path, "train"):
        tell()
    assert above.getvalue() == "a fact\na danger\n" * 2


def test_a_command_prints_once(above: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_console():
        tell()
    LOG.info("later")
    assert capsys.readouterr().out == "a fact\nwarning: a danger\n"
    assert above.getvalue() == ""


def test_an_error_shows_where_it_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_console():
        try:
            raise ValueError("seven")
        except ValueError:
            LOG.exception("a request failed")
    told = capsys.readouterr().out
    assert told.startswith("error: a request failed\nTraceback (most recent call last):\n")
    assert told.endswith("ValueError: seven\n")


def test_warnings_of_other_libraries_are_kept(tmp_path: Path) -> None:
    code = (
        "import pathlib, warnings\n"
        "from pipeline.progress import log_to_file\n"
        f"with log_to_file(pathlib.Path({str(tmp_path)!r}), 'probe') as path: "
        "warnings.warn('theirs')\n"
        "print(path.read_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "UserWarning: theirs" in done.stdout
    assert done.stderr.count("UserWarning: theirs") == 1


def test_muted_ranks_log_nothing(tmp_path: Path, above: io.StringIO) -> None:
    with progress.silenced():
        tell()
    with progress.silenced(False):
        tell()
    assert above.getvalue() == "a danger\n"


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, above: io.StringIO) -> None:
    with log_to_file(tmp_path, "train"):
        (file,) = [h for h in progress.ROOT.handlers if type(h).__name__ == "_File"]
        file.stream.close()  # type: ignore[attr-defined]
        file.stream = open("/dev/full", "w", buffering=1)  # type: ignore[attr-defined] # noqa: SIM115
        tell()
        tell()
    assert above.getvalue().count("the log cannot be written any more") == 1
