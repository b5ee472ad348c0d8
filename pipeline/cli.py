"""What every command shares: option names, exit codes, and safe standard output."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from pipeline import invocation, plugins, progress
from pipeline.records import AGAIN, FAILED, WRONG, UserError, printable, remember
from pipeline.stopping import StopRequested, stop


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help texts with the default of each option where that is a value.

    "(default: None)" or "[]" would say nothing.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default is None or action.default is False or action.default in ("", [], ())
        if isinstance(action.default, list | tuple) and not empty:
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return action.help if empty else super()._get_help_string(action)


class RawHelpFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The same below a description that keeps its lines."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors explain how a name with a leading dash is given."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and a message.

        Args:
            message: what is wrong with the arguments.
        """
        dashed = "expected" in message or "unrecognized" in message
        super().error(
            message
            + (" (a file name that begins with a dash is given as ./-NAME)" if dashed else "")
        )


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Make the argument parser of a command, with exact option names (no abbreviations).

    It has ``--plugin``, which every command has and :func:`run` follows.

    Args:
        command: ``python -m pipeline.<command>``, or ``pipeline <command>``,
            as :mod:`pipeline.invocation` says.
        description: one sentence for ``--help``.

    Returns:
        A parser to which the command adds its options.
    """
    made = Parser(
        prog=invocation.called(command),
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
    """Accept both spellings of an option: ``--data_dir=a_b`` -> ``--data-dir=a_b``.

    Args:
        arguments: words of a command line.

    Returns:
        The words with dashes in option names; values stay as they are.

    Example:
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

It imports what it needs after the options were parsed.
"""


def run(options: argparse.ArgumentParser, work: Work, argv: Sequence[str] | None = None) -> int:
    """Parse the options and run a command; failures become a message and an exit code.

    Args:
        options: parser of the command.
        work: what the command does.
        argv: words of the command line; None: those of this process, whose signals and standard
            files are then taken care of, too.

    Returns:
        Exit code, see :mod:`pipeline.records`.
    """
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
            return _exit_code(lambda: _with(named, lambda: work(**arguments)))


def _with(named: Sequence[Path], work: Callable[[], int]) -> int:
    plugins.load_plugins(named)
    return work()


def _exit_code(work: Callable[[], int]) -> int:
    """What ``work`` returns, or the exit code of what it raises, after the message is printed."""
    try:
        return work()
    except UserError as error:
        return _report(f"error: {error}", WRONG)
    except StopRequested as request:
        return _report(
            f"stopped on request ({request}); run the same command again to continue", AGAIN
        )
    # A full disk, a folder that may not be written: no file is half written, see files.whole.
    except OSError as error:
        return _report(f"error: {_os_error_text(error)}", FAILED)
    except MemoryError:
        return _report(
            "error: out of memory. Reduce data.patch.batch or data.patch.size (training),"
            " --patch-size (prediction).",
            FAILED,
        )


def _report(text: str, code: int) -> int:
    with progress.above_bar():
        print(text, file=sys.stderr, flush=True)
    return code


def _os_error_text(error: OSError) -> str:
    """Format an error of the operating system, with its path first.

    Where this process holds too many files open, with what to do about it.
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
    """Open closed standard files (``>&-``) on the null device.

    Otherwise the next file that is opened would get their number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Make standard output and error safe while this context is open.

    Whatever is printed is fit for a terminal, and printing never raises.

    Yields:
        None.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Output(stream) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


class _Output:
    """A standard stream that survives a missing, closed or full file and a poor encoding.

    A reader that has gone does not end the work, whose result lies in files. Other failures are
    reported once, on the other stream.
    """

    def __init__(self, stream: TextIO | None) -> None:
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - stays open for good
        self.stream: Any = stream
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        inner = text.strip("\r")  # a line that is redrawn in place begins or ends with it
        shown = text if _is_bar(text) else text.replace(inner, printable(inner), 1)
        self._try(lambda: self.stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        """Discard what is printed here from now on."""
        name = "standard error" if self.stream is sys.__stderr__ else "standard output"
        lost = self.stream
        self.stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        with contextlib.suppress(OSError, ValueError):
            # Python writes what is left in its buffer when it ends: to the null device.
            os.dup2(self.stream.fileno(), lost.fileno())
        if error.errno != errno.EPIPE and name == "standard output":
            print(
                f"warning: {name} cannot be written ({error.strerror}); the work goes on"
                " without it",
                file=sys.stderr,
            )

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


def _is_bar(text: str) -> bool:
    """Whether a text is what a bar moves the cursor up with."""
    return "\x1b[A" in text and not text.replace("\x1b[A", "").strip("\n")
