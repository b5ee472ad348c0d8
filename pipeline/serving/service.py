"""One model for many clients: places to wait, a folder for each request, threads, and an end."""

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
"""Answers an image: takes its file and a folder to write into, and returns the path of the answer.

Raises FileError for an image that cannot be decoded to its end.
"""

UPLOADS = 64
"""Bodies that are received at a time.

For one more, the slowest of those that take more than a second is given up.
"""

READERS = 2
"""Threads that look at headers of uploads."""

ENDING = "the server is shutting down; come back later."


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may cost."""

    bytes: int
    pixels: int
    concurrent: int
    waiting: int


@dataclass(slots=True, kw_only=True)
class Service:
    """A model that answers requests, and what it has to do at the moment.

    Args:
        predict: what answers an image.
        channels: channels of the images that it takes.
        limits: what requests may cost.
        facts: what ``GET /health`` tells of the model: ``config``, ``model``, ``version`` and more.
    """

    predict: Predict
    channels: int
    limits: Limits
    facts: Mapping[str, Any]
    pool: ThreadPoolExecutor = field(init=False)
    readers: ThreadPoolExecutor = field(init=False)
    """Threads that look at headers of uploads, beside those that compute."""
    turn: asyncio.Semaphore = field(init=False)
    inside: int = 0
    seconds: float = field(default=1.0)
    """What the last image took: a guess for those who are told to come back."""
    uploads: set[Body] = field(default_factory=set)
    workspaces: set[Workspace] = field(default_factory=set)
    answered: int = 0
    turned_away: int = 0
    closing: bool = False

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(self.limits.concurrent, thread_name_prefix="predict")
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self.turn = asyncio.Semaphore(self.limits.concurrent)

    def require_place(self) -> None:
        """Raise Refusal 503 where as many requests compute or wait as may."""
        if self.inside >= self.limits.concurrent + self.limits.waiting:
            reason = f"{self.inside} requests are being worked on or wait; come back later."
            raise Refusal(503, reason, retry=max(1, round(self.seconds)))

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among those that compute or wait. Raises Refusal 503 where all are taken."""
        self.require_place()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @contextlib.asynccontextmanager
    async def receiving(self, body: Body) -> AsyncIterator[None]:
        """Receive ``body`` within, as long as it comes fast enough.

        Raises Refusal 408 or 503 where it does not.
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
        """A folder for one request, removed when nobody works in it any more."""
        space = Workspace(path=Path(tempfile.mkdtemp(prefix="pipeline-serve-")))
        self.workspaces.add(space)
        try:
            yield space
        finally:
            space.close(lambda: self.workspaces.discard(space))

    def close(self) -> None:
        """Give up what is being received: it would take too long, or for ever."""
        self.closing = True
        for body in self.uploads:
            body.give_up(ENDING)

    def abandon(self, seconds: float) -> bool:
        """Wait for the threads at the end; whether none works any more.

        Nothing is left on disk either way.
        """
        for pool in (self.pool, self.readers):
            pool.shutdown(wait=False, cancel_futures=True)
        jobs = [space.job for space in self.workspaces if space.job is not None]
        idle = not wait_for(jobs, seconds).not_done
        for space in list(self.workspaces):
            shutil.rmtree(space.path, ignore_errors=True)
        return idle

    async def health(self) -> dict[str, Any]:
        running = min(self.inside, self.limits.concurrent)
        return {"status": "ok", **self.facts, "running": running, "waiting": self.inside - running}


@dataclass(slots=True, eq=False)
class Workspace:
    """A folder that one request has to itself, and what a thread does in it."""

    path: Path
    job: Future[Any] | None = None

    async def run(self, pool: ThreadPoolExecutor, work: Callable[[], Any]) -> Any:
        self.job = pool.submit(work)
        return await asyncio.wrap_future(self.job)

    def close(self, closed: Callable[[], None]) -> None:
        """Remove the folder: at once, or by the thread that still works in it although nobody waits
        for that.
        """

        def remove(_: object = None) -> None:
            shutil.rmtree(self.path, ignore_errors=True)
            closed()

        if self.job is None or self.job.cancel():
            remove()
        else:
            self.job.add_done_callback(remove)
