"""One model for many clients: queue, a folder for each request, threads, and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.serving.uploads import Body, Refusal

Predict = Callable[[Path, Path], Path]
"""Predicts an image: takes its file and a folder to write into, returns the path of the prediction.

Raises FileError for an image that cannot be decoded to its end.
"""

UPLOADS = 64
"""Most bodies that are received at a time.

For one more, the slowest of those that take more than a second is given up.
"""

READERS = 2
"""Threads that check headers of uploads."""

ENDING = "the server is shutting down; come back later."
"""Reason of requests that are refused during shutdown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the service and of a request."""

    bytes: int
    """Most bytes of a body."""
    pixels: int
    """Most pixels of an image, width times height."""
    concurrent: int
    """Most predictions at a time."""
    waiting: int
    """Most requests that wait for a prediction."""


@dataclass(slots=True, kw_only=True)
class Service:
    """A model that answers requests, and its current load.

    Args:
        predict: predicts an image file.
        channels: channels of the images that it takes.
        limits: limits of the service and of a request.
        facts: what ``GET /health`` says about the model: ``config``, ``model``, ``version`` and
            more.
    """

    predict: Predict
    channels: int
    limits: Limits
    facts: Mapping[str, Any]
    pool: ThreadPoolExecutor = field(init=False)
    """Threads that predict."""
    readers: ThreadPoolExecutor = field(init=False)
    """Threads that check headers of uploads."""
    semaphore: asyncio.Semaphore = field(init=False)
    """Limits the predictions at a time."""
    admitted: int = 0
    """Requests that compute or wait."""
    seconds: float = field(default=1.0)
    """Duration of the last prediction: the waiting time that refused clients are given."""
    uploads: set[Body] = field(default_factory=set)
    """Bodies that are being received."""
    workspaces: set[Workspace] = field(default_factory=set)
    """Folders in use."""
    answered: int = 0
    """Requests with another status than 503."""
    turned_away: int = 0
    """Requests refused with status 503."""
    closing: bool = False
    """Whether the shutdown has begun."""

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(self.limits.concurrent, thread_name_prefix="predict")
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self.semaphore = asyncio.Semaphore(self.limits.concurrent)

    def require_place(self) -> None:
        """Check that another request may compute or wait.

        Raises:
            Refusal: 503 where as many do as may.
        """
        if self.admitted >= self.limits.concurrent + self.limits.waiting:
            reason = f"{self.admitted} requests are being worked on or wait; come back later."
            raise Refusal(503, reason, retry=max(1, round(self.seconds)))

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Count a request among those that compute or wait.

        Yields:
            Nothing.

        Raises:
            Refusal: 503 where as many do as may.
        """
        self.require_place()
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1

    @contextlib.asynccontextmanager
    async def receiving(self, body: Body) -> AsyncIterator[None]:
        """Receive a body within the context, as long as it comes fast enough.

        Args:
            body: body of the request.

        Yields:
            Nothing.

        Raises:
            Refusal: 408 where it comes too slowly; 503 where it is given up, where too many bodies
                are being received, and during shutdown.
        """
        if self.closing:
            raise Refusal(503, ENDING)
        if len(self.uploads) >= UPLOADS:
            now = asyncio.get_running_loop().time()
            slow = [b for b in self.uploads if now - b.began > 1]
            if not slow:
                raise Refusal(
                    503, f"{UPLOADS} images are being received; come back later.", retry=1
                )
            slowest = min(slow, key=lambda b: b.seen / (now - b.began))
            slowest.give_up(
                f"{UPLOADS} images are being received, and this one came the slowest; come back"
                " later."
            )
            self.uploads.discard(slowest)
        self.uploads.add(body)
        try:
            async with body.in_time():
                yield
        finally:
            self.uploads.discard(body)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Workspace]:
        """Make a folder for one request, removed when no thread works in it any more.

        Yields:
            The folder.
        """
        workspace = Workspace(path=Path(tempfile.mkdtemp(prefix="pipeline-serve-")))
        self.workspaces.add(workspace)
        try:
            yield workspace
        finally:
            workspace.close(lambda: self.workspaces.discard(workspace))

    def close(self) -> None:
        """Give up the bodies that are being received: they could take too long, or for ever."""
        self.closing = True
        for body in self.uploads:
            body.give_up(ENDING)

    def abandon(self, seconds: float) -> bool:
        """Wait for the threads at shutdown, and remove all folders.

        Args:
            seconds: how long to wait.

        Returns:
            Whether no thread works any more.
        """
        for pool in (self.pool, self.readers):
            pool.shutdown(wait=False, cancel_futures=True)
        jobs = [workspace.job for workspace in self.workspaces if workspace.job is not None]
        idle = not wait_for(jobs, seconds).not_done
        for workspace in list(self.workspaces):
            shutil.rmtree(workspace.path, ignore_errors=True)
        return idle

    async def health(self) -> dict[str, Any]:
        """State of the service for ``GET /health``.

        Returns:
            ``status``, the facts of the model, and the numbers ``running`` and ``waiting``.
        """
        running = min(self.admitted, self.limits.concurrent)
        return {
            "status": "ok",
            **self.facts,
            "running": running,
            "waiting": self.admitted - running,
        }


@dataclass(slots=True, eq=False)
class Workspace:
    """The folder of one request, and what a thread does in it."""

    path: Path
    """The folder."""
    job: Future[Any] | None = None
    """The last work of a thread in the folder; None: none yet."""

    async def run(self, pool: ThreadPoolExecutor, work: Callable[[], Any]) -> Any:
        """Run a function in a thread that may use the folder.

        Args:
            pool: threads.
            work: function without arguments.

        Returns:
            What it returns.
        """
        self.job = pool.submit(work)
        return await asyncio.wrap_future(self.job)

    def close(self, closed: Callable[[], None]) -> None:
        """Remove the folder: at once, or when the thread that still works in it has ended.

        Args:
            closed: called after the removal.
        """

        def remove(_: object = None) -> None:
            shutil.rmtree(self.path, ignore_errors=True)
            closed()

        if self.job is None or self.job.cancel():
            remove()
        else:
            self.job.add_done_callback(remove)
