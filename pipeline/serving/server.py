"""HTTP server: uvicorn with deadlines, which it lacks, for heads of requests and for its shutdown.

The application limits bodies and responses (:mod:`pipeline.serving.application`); through
``scope["state"]["abort"]`` it can cut the connection of a client that does not read.
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
"""Time for the head of a request.

It runs from the opening of the connection, or from the end of the previous response.
"""

CONNECTIONS = 512
"""Most open connections.

For one more, the one that has waited longest for the head of a request is closed; where all are at
work, the new one is.
"""

INTERRUPT_SECONDS, TERMINATE_SECONDS = 1, 30
"""Time for requests in progress to end after Ctrl-C, and after SIGTERM."""


class DeadlineProtocol(H11Protocol):
    """One connection, closed where the head of its next request does not arrive in time.

    uvicorn closes a connection that is idle after a response, but neither one that never sends
    anything nor one that sends byte by byte.
    """

    head_timer: asyncio.TimerHandle | None = None
    """Closes the connection; None while a request is in progress."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline, and close the longest waiting connection where there are too many.

        Args:
            transport: the new connection.
        """
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        waiting = [c for c in self.connections if isinstance(c, DeadlineProtocol) and c.head_timer]
        self._start_head_timer()
        if len(self.connections) > CONNECTIONS:
            oldest = min(waiting, key=lambda c: c.head_timer.when(), default=self)  # type: ignore[union-attr]
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Stop the deadline when the head of a request is complete.

        Args:
            data: bytes received.
        """
        super().data_received(data)
        if (
            self.head_timer is not None
            and self.cycle is not None
            and not self.cycle.response_complete
        ):
            self.head_timer.cancel()
            self.head_timer = None

    def on_response_complete(self) -> None:
        """Start the deadline of the next request."""
        self._start_head_timer()
        super().on_response_complete()  # starts the next request, if it has arrived

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline.

        Args:
            exc: why the connection was lost; None: closed.
        """
        super().connection_lost(exc)
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _start_head_timer(self) -> None:
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)


class Server(uvicorn.Server):
    """Server that stops in bounded time on SIGINT, SIGTERM or SIGUSR1, at once on a second one.

    Args:
        application: ASGI application.
        before_end: called when the shutdown begins.
        pending_signal: returns the signal that arrived before the server handles signals; None:
            none.
    """

    ended_by: int | None = None
    """The signal that ended the server; None: none yet."""

    def __init__(
        self,
        application: Any,
        before_end: Callable[[], None],
        pending_signal: Callable[[], int | None],
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
        self.before_end, self.pending_signal = before_end, pending_signal

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals within the context.

        uvicorn would raise them again at its end, where the command has to clean up.

        Yields:
            Nothing; outside the main thread no signal is handled.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            n: signal.signal(n, self.handle_exit)
            for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        }
        pending = self.pending_signal()
        if pending is not None:
            self.handle_exit(pending, None)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown, force it on a second signal.

        Args:
            sig: signal number.
            frame: not used.
        """
        self.force_exit = self.should_exit
        self.should_exit, self.ended_by = True, sig
        if sig == signal.SIGINT:
            self.config.timeout_graceful_shutdown = INTERRUPT_SECONDS

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # The command reports interrupted requests itself.
        """Stop receiving, and wait for the requests in progress.

        Args:
            sockets: listening sockets to close.
        """
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.before_end()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Args:
        host: name or address.
        port: port number; 0: any free one.

    Returns:
        The socket.

    Raises:
        UserError: where the address cannot be used.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Clients between the line "Serving" and the start of the event loop wait in the backlog.
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

    Args:
        host: address.

    Returns:
        True for loopback addresses.

    Example:
        >>> is_local("127.0.0.1"), is_local("::1"), is_local("0.0.0.0")
        (True, True, False)
    """
    return host == "::1" or host.startswith("127.")
