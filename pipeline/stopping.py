"""Stopping on request: a flag that signal handlers set and work checks at its safe points.

A safe point is one where nothing is half done.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals by which users and schedulers ask a process to stop."""


class StopRequested(BaseException):
    """A signal asked this process to stop; raised at the next safe point, never inside a write.

    A BaseException and no Exception, so that no handler takes it for a failure. Commands end with
    exit code 75.
    """


class Stop:
    """Flag that signal handlers set; a second Ctrl-C ends the process at once.

    Unless :meth:`install` was called (in a library, say) it never raises: there Ctrl-C is Python's
    KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def install(self) -> None:
        """Install handlers for the process's signals; for commands."""
        for number in NUMBERS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: object) -> None:
        self.signal = number
        # A second Ctrl-C comes from an impatient user and ends the process. Schedulers and torchrun
        # send their signals twice, which must not cut a save short.
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise StopRequested wherever a signal arrives, while this context is open.

        For work that writes nothing, such as loading a model.

        Yields:
            None.

        Raises:
            StopRequested: if a signal has come before, or comes inside.
        """

        def raise_now(number: int, _frame: object) -> None:
            raise StopRequested(signal.Signals(number).name)

        numbers = [n for n in NUMBERS if signal.getsignal(n) == self._handle]
        self.raise_if_stopped()
        try:
            for number in numbers:
                signal.signal(number, raise_now)
            yield
        finally:
            for number in numbers:
                signal.signal(number, self._handle)

    def raise_if_stopped(self) -> None:
        """Raise StopRequested if a signal has come.

        Raises:
            StopRequested: with the signal's name.
        """
        if self.signal is not None:
            raise StopRequested(signal.Signals(self.signal).name)


stop = Stop()
"""The flag of this process."""
