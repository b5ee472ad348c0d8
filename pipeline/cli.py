"""What every command shares: argument spelling, exit codes, and what becomes of what it prints."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from pipeline import plugins, progress
from pipeline.records import AGAIN, FAILED, WRONG, UserError, printable, remember
from pipeline.stopping import StopRequested, stop


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help texts with the default of each option, where it is a value: "(default: None)" or "[]"
    would say nothing.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default is None or action.default is False or action.default in ("", [], ())
        if isinstance(action.default, list | tuple) and not empty:
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return action.help if empty else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose refusals say how a name with a leading dash is given."""

    def error(self, message: str) -> NoReturn:
        dashed = "expected" in message or "unrecognized" in message
        super().error(
            message
            + (" (a file name that begins with a dash is given as ./-NAME)" if dashed else "")
        )


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Argument parser of ``python -m pipeline.<command>`` with exact option names (no
    abbreviations).

    ``--plugin``, which every command has, is followed by :func:`run`.
    """
    made = Parser(
        prog=f"python -m pipeline.{command}",
        description=description,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    text = (
        "Python file that adds entries to the tables (docs/extending.md); may be given several"
        " times"
    )
    made.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE", help=text)
    return made


def dashes(arguments: Sequence[str]) -> list[str]:
    """``--data_dir=a_b`` -> ``--data-dir=a_b``: both spellings of an option are accepted, values
    stay as they are.

    >>> dashes(["--data_dir=a_b", "c_d"])
    ['--data-dir=a_b', 'c_d']
    """
    out = []
    for text in arguments:
        name, equals, value = text.partition("=")
        out.append((name.replace("_", "-") + equals + value) if text.startswith("--") else text)
    return out


Work = Callable[..., int]
"""What a command does: takes its options by name and returns the exit code.

It imports what it needs, after the options were parsed.
"""


def run(options: argparse.ArgumentParser, work: Work, argv: Sequence[str] | None = None) -> int:
    """Parse, work, and turn what went wrong into a message and an exit code."""
    words = sys.argv[1:] if argv is None else argv
    for word in words:
        for name in (word, *word.split(os.sep)):
            remember(name)
    if argv is None:
        _open_standard_files()
    with printing():
        arguments = vars(options.parse_args(dashes(words)))
        named = arguments.pop("plugin", [])
        if argv is None:
            stop.install()
        with progress.log_to_console():
            return _answered(lambda: _with(named, lambda: work(**arguments)))


def _with(named: Sequence[Path], work: Callable[[], int]) -> int:
    plugins.load_plugins(named)
    return work()


def _answered(work: Callable[[], int]) -> int:
    """What ``work`` returns, or the exit code of what it raised, which is told."""
    try:
        return work()
    except UserError as error:
        return _told(f"error: {error}", WRONG)
    except StopRequested as request:
        return _told(
            f"stopped on request ({request}); run the same command again to continue", AGAIN
        )
    # a full disk, a folder that may not be written: nothing is half written, see files.whole
    except OSError as error:
        return _told(f"error: {_disk_words(error)}", FAILED)
    except MemoryError:
        return _told(
            "error: out of memory. Reduce data.patch.batch or data.patch.size (training),"
            " --patch-size (prediction).",
            FAILED,
        )


def _told(text: str, code: int) -> int:
    with progress.above_bar():
        print(text, file=sys.stderr, flush=True)
    return code


def _disk_words(error: OSError) -> str:
    """An error of the system with its path first; where this process holds too many files open,
    with the way out.
    """
    words = (
        f"{error.filename}: {error.strerror}"
        if error.filename is not None and error.strerror
        else str(error)
    )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        words += ". Raise the limit of open files, e.g. with: ulimit -n 4096"
    return words


# --- standard output and error --------------------------------------------------------------------


def _open_standard_files() -> None:
    """Give closed standard files (``>&-``) a place that takes everything: the next file that is
    opened would get their number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """While open, whatever is printed is fit for a terminal, and printing never raises."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Output(stream) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


class _Output:
    """A standard stream that may be missing, closed by its reader or full, and whose encoding may
    know few letters.

    A reader that has gone does not end the work, whose result lies in files. Other failures are
    told once, on the other stream.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream: Any = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for good
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        inner = text.strip("\r")  # what is redrawn on one line begins or ends so
        shown = text if _is_bar(text) else text.replace(inner, printable(inner), 1)
        self._try(lambda: self.stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """From now on what is printed here goes nowhere."""
        name = "standard error" if self.stream is sys.__stderr__ else "standard output"
        self.stream, lost = (
            open(os.devnull, "w", encoding="utf-8"),
            self.stream,
        )
        with contextlib.suppress(OSError, ValueError):
            os.dup2(
                self.stream.fileno(), lost.fileno()
            )  # what is left in its buffer is written when Python ends
        if error.errno != errno.EPIPE and name == "standard output":
            print(
                f"warning: {name} cannot be written ({error.strerror}); the work goes on"
                " without it",
                file=sys.stderr,
            )

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


def _is_bar(text: str) -> bool:
    """Whether it is what a bar moves the cursor up with."""
    return "\x1b[A" in text and not text.replace("\x1b[A", "").strip("\n")
