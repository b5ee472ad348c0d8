"""An HTTP server that waits for nobody: uvicorn with deadlines for the heads of requests and for
its own end, which it lacks.

The application sees to bodies and answers (:mod:`pipeline.serving.application`); through
``scope["state"]["abort"]`` it can cut a connection whose client does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.records import UserError

HEAD_SECONDS = 10.0
"""From the opening of a connection, or the end of the answer before, to the end of the next
request's head.
"""

CONNECTIONS = 512
"""Open at a time. For one more, that which has waited longest for the head of a request is closed;
all at work: the new one is.
"""

INTERRUPT_SECONDS, TERMINATE_SECONDS = 1, 30
"""After Ctrl-C, and after SIGTERM: how long requests that are being worked on may take to end."""


class DeadlineProtocol(H11Protocol):
    """One connection, closed where the head of its next request does not come in time.

    uvicorn ends a connection that says nothing after an answer, but neither one that never says
    anything nor one that drips.
    """

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        waiting = [c for c in self.connections if isinstance(c, DeadlineProtocol) and c.late]
        self._await_head()
        if len(self.connections) > CONNECTIONS:
            oldest = min(waiting, key=lambda c: c.late.when(), default=self)  # type: ignore[union-attr]
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.late is not None and self.cycle is not None and not self.cycle.response_complete:
            self.late.cancel()
            self.late = None

    def on_response_complete(self) -> None:
        self._await_head()
        super().on_response_complete()  # begins with the next request, if that has come

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.late is not None:
            self.late.cancel()
            self.late = None

    def _await_head(self) -> None:
        if self.late is None:
            self.late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)


class Server(uvicorn.Server):
    """Ends within a bounded time on SIGINT, SIGTERM or SIGUSR1, and at once on a second one.

    Args:
        application: ASGI application.
        before_end: called when the end begins.
        asked: the signal that has come before the server listens to them, None where none has.
    """

    ended_by: int | None = None

    def __init__(
        self, application: Any, before_end: Callable[[], None], asked: Callable[[], int | None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                loop="asyncio",
                http=DeadlineProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=TERMINATE_SECONDS,
            )
        )
        self.before_end, self.asked = before_end, asked

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Listen to signals; uvicorn's own way raises them again at its end, where the command has
        to tidy up.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            n: signal.signal(n, self.handle_exit)
            for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        }
        early = self.asked()
        if early is not None:
            self.handle_exit(early, None)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit, self.ended_by = True, sig
        if sig == signal.SIGINT:
            self.config.timeout_graceful_shutdown = INTERRUPT_SECONDS

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # What is cut off now is told by the command in a word of its own.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.before_end()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address (port 0: any free one).

    Raises UserError where none can.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # whoever comes between the line that says "Serving" and the first turn of the loop waits
        listener.listen()
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise UserError(
            f"cannot listen on {host}, port {port}: {error}. Choose another --host or --port;"
            " --port 0 takes a free one."
        ) from None
    return listener


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine only.

    >>> is_local("127.0.0.1"), is_local("::1"), is_local("0.0.0.0")
    (True, True, False)
    """
    return host == "::1" or host.startswith("127.")
