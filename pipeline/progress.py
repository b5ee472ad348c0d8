"""Logging and progress bars of long work.

Every module logs to ``logging.getLogger(__name__)``, below the logger ``pipeline``. In a program or
a notebook that has not configured logging, warnings appear on standard error and nothing else does;
``logging.getLogger("pipeline")`` silences, captures or forwards all of it. Commands print the
records of level INFO and above. Bars are shown only on a terminal, and only where a caller wants
them.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from pipeline.records import printable
from pipeline.stopping import stop

T = TypeVar("T")

ROOT = logging.getLogger("pipeline")
"""The logger above those of all modules."""

logger = logging.getLogger(__name__)

QUIET = 300.0
"""Seconds between two log lines about the same work where no bar is shown."""


_TRACEBACK = logging.Formatter()


# --- log records ----------------------------------------------------------------------------------


def line_of(record: logging.LogRecord) -> str:
    """Format a log record for people.

    Args:
        record: the record.

    Returns:
        Its message, after its level where that is a warning or more, and with its traceback where
        there is one.
    """
    level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
    text = level + record.getMessage()
    return f"{text}\n{_TRACEBACK.formatException(record.exc_info)}" if record.exc_info else text


class Console(logging.Handler):
    """Handler that prints records to standard output, above a bar where one is shown.

    It keeps the last lines for a log file.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: collections.deque[str] = collections.deque(maxlen=10_000)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record.

        Args:
            record: the record.
        """
        line = line_of(record)
        self.lines.append(line)
        with above_bar():
            print(line, flush=True)


@contextlib.contextmanager
def log_to_console() -> Iterator[None]:
    """Print records of the package, and show bars on a terminal, while this context is open.

    For commands. Warnings of other libraries are printed as well.

    Yields:
        None.
    """
    console, level, propagates = Console(), ROOT.level, ROOT.propagate
    ROOT.addHandler(console)
    ROOT.setLevel(logging.INFO)
    ROOT.propagate = False  # a command prints each line once, whatever a caller has configured
    try:
        with bars_shown():
            yield
    finally:
        ROOT.removeHandler(console)
        ROOT.setLevel(level)
        ROOT.propagate = propagates


class _ToParents(logging.Handler):
    """Hands records to the handlers of the parent loggers.

    As if the level of ``pipeline`` had not been lowered for a log file.
    """

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().callHandlers(record)


class _File(logging.Handler):
    """Handler that appends records to a log file as lines.

    Where the file can no longer be written, the work goes on without it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.stream = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def write(self, line: str) -> None:
        try:
            self.stream.write(f"{printable(line)}\n")
        except OSError as error:
            with contextlib.suppress(OSError):
                self.stream.close()
            self.stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for good
            logger.warning(
                f"the log cannot be written any more ({error.strerror}); the work goes on"
            )

    def emit(self, record: logging.LogRecord) -> None:
        self.write(line_of(record))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.close()
        super().close()


@contextlib.contextmanager
def log_to_file(folder: Path, command: str) -> Iterator[Path]:
    """Append every record to a log file as well, while this context is open.

    The file begins with what this command has printed before: checks print before the run folder,
    and so its log, exists. Warnings of other libraries (``warnings.warn``) are kept, too.

    Args:
        folder: folder of the file.
        command: the file is named ``<command>_DATE_TIME.log``.

    Yields:
        Path of the file.
    """
    path = folder / f"{command}_{time.strftime('%Y%m%d_%H%M%S')}.log"
    file = _File(path)
    for console in [h for h in ROOT.handlers if isinstance(h, Console)]:
        for line in console.lines:
            file.write(line)
    level, propagates = ROOT.level, ROOT.propagate
    above = _ToParents(ROOT.getEffectiveLevel()) if propagates else None
    handlers: list[logging.Handler] = [file, *([above] if above else [])]
    for handler in handlers:
        ROOT.addHandler(handler)
    ROOT.setLevel(min(ROOT.getEffectiveLevel(), logging.INFO))
    ROOT.propagate = False
    try:
        with _warnings_in(file):
            yield path
    finally:
        for handler in handlers:
            ROOT.removeHandler(handler)
        ROOT.setLevel(level)
        ROOT.propagate = propagates
        file.close()


@contextlib.contextmanager
def _warnings_in(file: _File) -> Iterator[None]:
    """Also write to the file what ``warnings.warn`` prints, while this context is open."""
    before = warnings.showwarning

    def show(
        message: Any,
        category: Any,
        filename: str,
        lineno: int,
        stream: Any = None,
        line: str | None = None,
    ) -> None:
        if stream is None:
            file.write(
                warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n")
            )
        with above_bar():
            before(message, category, filename, lineno, stream, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


@contextlib.contextmanager
def silenced(when: bool = True) -> Iterator[None]:
    """Log nothing and show no bar in this process, while this context is open.

    For all ranks but the first. Errors are still raised.

    Args:
        when: False: change nothing.

    Yields:
        None.
    """
    if not when:
        yield
        return
    level = ROOT.level
    ROOT.setLevel(logging.CRITICAL + 1)
    try:
        with bars_shown(False):
            yield
    finally:
        ROOT.setLevel(level)


def audible(tell: Callable[[str], object]) -> Callable[[str], object]:
    """A function that logs as it would now, also where it is called while :func:`silenced` is on.

    Args:
        tell: what logs a text.

    Returns:
        The same with the present level.
    """
    level = ROOT.level

    def loud(text: str) -> None:
        before = ROOT.level
        ROOT.setLevel(level)
        try:
            tell(text)
        finally:
            ROOT.setLevel(before)

    return loud


# --- bars -----------------------------------------------------------------------------------------

_bars_wanted = False


@contextlib.contextmanager
def bars_shown(on: bool = True) -> Iterator[None]:
    """Show bars on a terminal, or do not, while this context is open.

    Args:
        on: whether bars are shown.

    Yields:
        None.
    """
    global _bars_wanted
    before, _bars_wanted = _bars_wanted, on
    try:
        yield
    finally:
        _bars_wanted = before
        # However the work ended, no bar is left in the way of its last message.
        if Progress.shown is not None:
            Progress.shown.close()


class Progress:
    """Progress of a piece of work: a bar on a terminal, else a log record every five minutes.

    Lines are printed above the bar. A context manager, at whose end the bar is gone. Only one bar
    is shown at a time, and only within :func:`bars_shown`.

    Args:
        what: name of the work.
    """

    shown: Progress | None = None
    """The bar that is on the terminal; None where there is none."""

    def __init__(self, what: str) -> None:
        self.what, self.last = what, time.monotonic()
        self.bar: tqdm | None = None

    def __call__(self, done: float, total: float | None, text: str = "") -> None:
        """Report that ``done`` of ``total`` is done.

        Args:
            done: amount that is done.
            total: amount of all work; None: unknown.
            text: shown instead of the counts, where they do not say enough.
        """
        if _bars_wanted and sys.stderr.isatty():
            self._draw(done, total, text)
        elif time.monotonic() - self.last > QUIET:
            self.last = time.monotonic()
            logger.info(f"{self.what}: {text or f'{done:g}' + (f' of {total:g}' if total else '')}")

    def _draw(self, done: float, total: float | None, text: str) -> None:
        bar = self._bar(done, total, text)
        bar.total, bar.unit = total, text or bar.unit
        if done == bar.n:  # only the text is new
            bar.refresh()
        else:
            bar.update(done - bar.n)

    def _bar(self, done: float, total: float | None, text: str) -> tqdm:
        if self.bar is None:
            if Progress.shown is not None:
                Progress.shown.close()
            # A bar of one width, whatever the text behind it: it should not jump.
            options: dict[str, Any] = (
                {"bar_format": "{desc}: {percentage:3.0f}%|{bar:20}| {unit}", "unit": text}
                if text
                else {}
            )
            options |= {"leave": False, "miniters": 0, **_width()}
            self.bar = tqdm(desc=self.what, total=total, initial=done, **options)
            Progress.shown = self
        return self.bar

    def close(self) -> None:
        """Remove the bar; a later call shows a new one."""
        if self.bar is not None:
            self.bar.close()
            self.bar, Progress.shown = None, None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _width() -> dict[str, Any]:
    """Options of tqdm for the width of a bar: that of the terminal.

    80 where the terminal reports 0 columns, in which tqdm would show nothing.
    """
    try:
        unknown = os.get_terminal_size(sys.stderr.fileno()).columns == 0
    except (OSError, ValueError):
        unknown = False
    return {"ncols": 80} if unknown else {"dynamic_ncols": True}


def above_bar() -> contextlib.AbstractContextManager[object]:
    """Move a bar out of the way of what is printed, while this context is open.

    Returns:
        A context manager.
    """
    return (
        tqdm.external_write_mode(sys.stderr)
        if Progress.shown is not None
        else contextlib.nullcontext()
    )


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate over items and report how many are done.

    Args:
        items: the items.
        what: name of the work.
        total: number of items; None: their length, where they have one.

    Yields:
        The items.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with Progress(what) as bar:
        bar(0, total)
        for n, item in enumerate(items, 1):
            yield item
            bar(n, total)


def progress_callback(what: str) -> Callable[[int, int], None]:
    """Make a callback that reports work which runs elsewhere, and stops it on request.

    Args:
        what: name of the work.

    Returns:
        ``callback(done, total)``; it raises StopRequested where a signal has come.
    """
    bar = Progress(what)

    def advance(done: int, total: int) -> None:
        stop.raise_if_stopped()
        bar(done, total)
        if done >= total:
            bar.close()

    return advance


@contextlib.contextmanager
def progress_steps(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Make a callback that adds up steps and reports them, and stops the work on request.

    Args:
        what: name of the work.
        total: number of all steps.

    Yields:
        ``callback(number)``, to be called after ``number`` more steps; it raises StopRequested
        where a signal has come.
    """
    done = 0
    with Progress(what) as bar:

        def advance(number: int) -> None:
            nonlocal done
            done += number
            bar(done, total)
            stop.raise_if_stopped()

        yield advance


def clock(seconds: float) -> str:
    """Format a duration as hours, minutes and seconds.

    Args:
        seconds: the duration.

    Returns:
        ``H:MM:SS``.

    Example:
        >>> clock(3731.4), clock(0), clock(90_000)
        ('1:02:11', '0:00:00', '25:00:00')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
