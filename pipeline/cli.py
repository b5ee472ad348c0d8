"""What every command shares: argument spelling, exit codes, log lines, progress, and stopping on request."""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from pipeline.records import AGAIN, FAILED, WRONG, UserError, printable, remember

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")


class StopRequested(BaseException):
    """A signal asked this process to stop; raised at the next safe point, never inside a write. Ends in exit code 75."""


class _Stop:
    """Flag that signal handlers set. A second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: object) -> None:
        self.signal = number
        if number == signal.SIGINT:  # an impatient user; schedulers and torchrun send theirs twice, which must not cut a save short
            signal.signal(number, signal.SIG_DFL)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a signal raises StopRequested wherever it comes: for work that writes nothing, such as loading a model."""

        def raise_now(number: int, _frame: object) -> None:
            raise StopRequested(signal.Signals(number).name)

        numbers = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) if signal.getsignal(n) == self._handle]
        self.check()
        try:
            for number in numbers:
                signal.signal(number, raise_now)
            yield
        finally:
            for number in numbers:
                signal.signal(number, self._handle)

    def check(self) -> None:
        """Raise StopRequested if a signal has come."""
        if self.signal is not None:
            raise StopRequested(signal.Signals(self.signal).name)


stop = _Stop()


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help texts with the default of each option, where it is a value: "(default: None)" or "[]" would say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default is None or action.default is False or action.default in ("", [], ())
        if isinstance(action.default, list | tuple) and not empty:
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return action.help if empty else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose refusals say how a name with a leading dash is given."""

    def error(self, message: str) -> NoReturn:
        dashed = "expected" in message or "unrecognized" in message
        super().error(message + (" (a file name that begins with a dash is given as ./-NAME)" if dashed else ""))


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Argument parser of ``python -m pipeline.<command>`` with exact option names (no abbreviations)."""
    return Parser(
        prog=f"python -m pipeline.{command}",
        description=description,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )


def dashes(arguments: Sequence[str]) -> list[str]:
    """``--data_dir=a_b`` -> ``--data-dir=a_b``: both spellings of an option are accepted, values stay as they are.

    >>> dashes(["--data_dir=a_b", "c_d"])
    ['--data-dir=a_b', 'c_d']
    """
    out = []
    for text in arguments:
        name, equals, value = text.partition("=")
        out.append((name.replace("_", "-") + equals + value) if text.startswith("--") else text)
    return out


def run(arguments_parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], int], argv: Sequence[str] | None = None) -> int:
    """Parse, work, and turn what went wrong into a message and an exit code."""
    words = sys.argv[1:] if argv is None else argv
    for word in words:
        for name in (word, *word.split(os.sep)):
            remember(name)
    if argv is None:
        _open_standard_files()
    with printing():
        arguments = arguments_parser.parse_args(dashes(words))
        _said.clear()
        _hear_warnings()
        if argv is None:
            stop.install()
        return _answered(work, arguments)


def _answered(work: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """What ``work`` returns, or the exit code of what it raised, which is told."""
    try:
        return _worked(work, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return WRONG
    except StopRequested as request:
        print(f"stopped on request ({request}); run the same command again to continue", file=sys.stderr, flush=True)
        return AGAIN
    except OSError as error:  # a full disk, a folder that may not be written: nothing is half written, see files.whole
        print(f"error: {_disk_words(error)}", file=sys.stderr, flush=True)
        return FAILED
    except MemoryError:
        print("error: out of memory. Reduce data.patch.batch or data.patch.size (training), --patch-size (prediction).", file=sys.stderr)
        return FAILED


def _disk_words(error: OSError) -> str:
    """An error of the system with its path first; where this process holds too many files open, with the way out."""
    words = f"{error.filename}: {error.strerror}" if error.filename is not None and error.strerror else str(error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        words += ". Raise the limit of open files, e.g. with: ulimit -n 4096"
    return words


# --- standard output and error -----------------------------------------------------------------------------------------


def _open_standard_files() -> None:
    """Give closed standard files (``>&-``) a place that takes everything: the next file that is opened would get their number."""
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
    """A standard stream that may be missing, closed by its reader or full, and whose encoding may know few letters.

    A reader that has gone does not end the work, whose result lies in files. Other failures are told once, on the other stream.
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
        self.stream, lost = open(os.devnull, "w", encoding="utf-8"), self.stream  # noqa: SIM115 - for good
        with contextlib.suppress(OSError, ValueError):
            os.dup2(self.stream.fileno(), lost.fileno())  # what is left in its buffer is written when Python ends
        if error.errno != errno.EPIPE and name == "standard output":
            print(f"warning: {name} cannot be written ({error.strerror}); the work goes on without it", file=sys.stderr)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


def _is_bar(text: str) -> bool:
    """Whether it is what a bar moves the cursor up with."""
    return "\x1b[A" in text and not text.replace("\x1b[A", "").strip("\n")


class _Said(logging.Handler):
    """Warnings of the package's loggers as lines like all others, which also stand in the log of the run."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def _hear_warnings() -> None:
    log = logging.getLogger("pipeline")
    if not any(isinstance(h, _Said) for h in log.handlers):
        log.addHandler(_Said(logging.WARNING))


def _worked(work: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """What ``work`` returns; however it ends, no bar is left in the way of the last message."""
    try:
        return work(arguments)
    finally:
        if Progress.shown is not None:
            Progress.shown.close()


class _Tee:
    """A text stream that also writes whole lines to a file, without the redrawn progress lines of a terminal."""

    def __init__(self, stream: TextIO, copy: TextIO) -> None:
        self.stream, self.copy = stream, copy

    def write(self, text: str) -> int:
        if text.startswith("\r") or text.endswith("\r") or _is_bar(text):
            return self.stream.write(text)
        self._copy(text)
        whole = len(text) > 1 and text.endswith("\n")  # a warning, say: print gives the end of its line by itself
        with _above_bar() if whole else contextlib.nullcontext():
            return self.stream.write(text)

    def _copy(self, text: str) -> None:
        try:
            self.copy.write(printable(text))
        except OSError as error:  # a line of a log is not worth hours of work
            self.copy = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for good
            self.stream.write(f"warning: the log cannot be written any more ({error.strerror}); the work goes on\n")

    def flush(self) -> None:
        self.stream.flush()
        self.copy.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


@contextlib.contextmanager
def kept_log(folder: Path, command: str) -> Iterator[Path]:
    """While open, everything printed also goes to ``folder/<command>_DATE_TIME.log``, line by line, after what was said before."""
    path = folder / f"{command}_{time.strftime('%Y%m%d_%H%M%S')}.log"
    streams = sys.stdout, sys.stderr
    with path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as copy:
        copy.writelines(f"{printable(line)}\n" for line in _said)
        sys.stdout, sys.stderr = _Tee(sys.stdout, copy), _Tee(sys.stderr, copy)  # type: ignore[assignment]
        try:
            yield path
        finally:
            sys.stdout, sys.stderr = streams


_said: collections.deque[str] = collections.deque(maxlen=10_000)
"""Lines of this command so far: checks speak before the run folder, and so its log, exists."""


_muted = False


def mute() -> None:
    """From now on this process says nothing and shows no progress: it is not the first of its team. Errors are still told."""
    global _muted
    _muted = True


def say(text: str = "") -> None:
    """One line to standard output, flushed; above the bar where one is shown."""
    if _muted:
        return
    _said.append(text)
    with _above_bar():
        print(text, flush=True)


QUIET = 300.0
"""Seconds between two lines about the same work in a file."""


class Progress:
    """How far a piece of work is: on a terminal a bar that lines are printed above, in a file a line at most every five minutes.

    A context, at whose end the bar is gone. Only one bar is shown at a time, and none by a process that is muted.
    """

    shown: Progress | None = None

    def __init__(self, what: str) -> None:
        self.what, self.last = what, time.monotonic()
        self.bar: tqdm | None = None

    def __call__(self, done: float, total: float | None, text: str = "") -> None:
        """``done`` of ``total`` (None: unknown). ``text`` stands in place of the counts, where they do not say enough."""
        if _muted:
            return
        if sys.stderr.isatty():
            self._draw(done, total, text)
        elif time.monotonic() - self.last > QUIET:
            self.last = time.monotonic()
            say(f"{self.what}: {text or f'{done:g}' + (f' of {total:g}' if total else '')}")

    def _draw(self, done: float, total: float | None, text: str) -> None:
        bar = self._bar(done, total, text)
        bar.total, bar.unit = total, text or bar.unit
        if done == bar.n:  # only the text is new
            bar.refresh()
        else:
            bar.update(done - bar.n)

    def _bar(self, done: float, total: float | None, text: str) -> tqdm:
        if self.bar is None:
            from tqdm import tqdm

            if Progress.shown is not None:
                Progress.shown.close()
            # A bar of one width, whatever the text behind it: it should not jump.
            options: dict[str, Any] = {"bar_format": "{desc}: {percentage:3.0f}%|{bar:20}| {unit}", "unit": text} if text else {}
            options |= {"leave": False, "miniters": 0, **_width()}
            self.bar = tqdm(desc=self.what, total=total, initial=done, **options)
            Progress.shown = self
        return self.bar

    def close(self) -> None:
        """Take the bar away; a later call shows a new one."""
        if self.bar is not None:
            self.bar.close()
            self.bar, Progress.shown = None, None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _width() -> dict[str, Any]:
    """How wide a bar is: as the terminal, 80 where that does not say (0 columns, in which tqdm would show nothing)."""
    try:
        unknown = os.get_terminal_size(sys.stderr.fileno()).columns == 0
    except (OSError, ValueError):
        unknown = False
    return {"ncols": 80} if unknown else {"dynamic_ncols": True}


def _above_bar() -> contextlib.AbstractContextManager[object]:
    """While open, a bar is out of the way of what is printed."""
    loaded = sys.modules.get("tqdm")
    bars = loaded is not None and len(getattr(loaded.tqdm, "_instances", ())) > 0
    return loaded.tqdm.external_write_mode(sys.stderr) if loaded and bars else contextlib.nullcontext()


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, with :class:`Progress` of those that are done."""
    total = total if total is not None else (len(items) if hasattr(items, "__len__") else None)  # type: ignore[arg-type]
    with Progress(what) as bar:
        bar(0, total)
        for n, item in enumerate(items, 1):
            yield item
            bar(n, total)


def counter(what: str) -> Callable[[int, int], None]:
    """A callback ``(done, total)`` with :class:`Progress` of work that runs elsewhere; stops that work on request."""
    bar = Progress(what)

    def advance(done: int, total: int) -> None:
        stop.check()
        bar(done, total)
        if done >= total:
            bar.close()

    return advance


def device(name: str) -> str:
    """``auto`` -> ``cuda`` where there is one, else ``cpu``; asking for an absent CUDA device is an error."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: no CUDA device is visible to torch. Use --device cpu, or check nvidia-smi and CUDA_VISIBLE_DEVICES."
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def environment() -> dict[str, object]:
    """Versions and machine, for ``environment.json``."""
    import importlib.metadata
    import platform

    names = ("pipeline", "torch", "monai", "numpy", "scipy", "scikit-learn", "tifffile", "nibabel", "safetensors")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": {n: importlib.metadata.version(n) for n in names},
        "command": sys.argv,
    }
