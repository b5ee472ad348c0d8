"""Stopping on request: a flag that signals set, and that work asks at every point where nothing is
half done.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals by which users and schedulers ask a process to stop."""


class StopRequested(BaseException):
    """A signal asked this process to stop; raised at the next safe point, never inside a write.

    No Exception, so that nothing takes it for a fault. Commands end with exit code 75.
    """


class Stop:
    """Flag that signal handlers set. A second Ctrl-C ends the process at once.

    A library that nobody gave handlers to never raises: there Ctrl-C is Python's KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def install(self) -> None:
        """Take the process's signals; for commands."""
        for number in NUMBERS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: object) -> None:
        self.signal = number
        if (
            number == signal.SIGINT
            # an impatient user; schedulers and torchrun send theirs twice, which must not cut a save
            # short
        ):
            signal.signal(number, signal.SIG_DFL)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a signal raises StopRequested wherever it comes: for work that writes nothing,
        such as loading a model.
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
        """Raise StopRequested if a signal has come."""
        if self.signal is not None:
            raise StopRequested(signal.Signals(self.signal).name)


stop = Stop()
"""That of this process."""
