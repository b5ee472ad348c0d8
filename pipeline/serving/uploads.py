"""Uploads on their way in: how much may come, how slowly, of which kinds; all others are refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from pipeline import files

TYPES = {
    "image/png": ".png",
    "image/jpg": ".jpg",
    "image/pjpeg": ".jpg",
    "image/jpeg": ".jpg",
    "image/tiff": ".tif",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/x-ms-bmp": ".bmp",
}
"""Content types that are taken, and the suffix under which such an image is read."""

SLOW_SECONDS, SLOW_BYTES = 20.0, 32 * 1024
"""An upload or an answer may take so many seconds, and one more for so many bytes that have passed."""

LINGER_SECONDS = 2
"""How long an upload that was refused is still read: a client that is cut off while it sends may
never see why.
"""


class Refusal(Exception):  # noqa: N818 - an answer to the client, no fault of the program
    """A request that is answered with an HTTP status of 400 or more and a sentence."""

    def __init__(self, status: int, reason: str, retry: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = {} if retry is None else {"Retry-After": str(retry)}


class Body:
    """The body of a request on its way in: counts its bytes, refuses more than ``most``, and what
    comes too slowly.
    """

    def __init__(self, request: Request, most: int) -> None:
        self.source, self.most, self.seen, self.complete = request.receive, most, 0, False
        self.request = type(request)(request.scope, self.receive)
        self.began = asyncio.get_running_loop().time()
        self.deadline: asyncio.Timeout | None = None
        self.reason: Refusal | None = None

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self.source()
        self.seen += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        if self.seen > self.most:
            raise Refusal(413, f"the body is larger than {self.most} bytes.")
        if self.deadline is not None and self.reason is None:
            self.deadline.reschedule(self.began + SLOW_SECONDS + self.seen / SLOW_BYTES)
        return message

    @contextlib.asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Raise Refusal 408 where the body comes too slowly, and 503 where it was given up."""
        try:
            async with asyncio.timeout_at(self.began + SLOW_SECONDS) as self.deadline:
                yield
        except TimeoutError:
            slow = (
                f"{self.seen} bytes came in {asyncio.get_running_loop().time() - self.began:.0f} s"
            )
            rule = f"{SLOW_SECONDS:.0f} s are given, and one more for every {SLOW_BYTES} bytes"
            raise self.reason or Refusal(
                408, f"the body came too slowly: {slow}; {rule}."
            ) from None
        finally:
            self.deadline = None

    def give_up(self, reason: str) -> None:
        """Stop receiving; the client is told the reason (503)."""
        self.reason = Refusal(503, reason, retry=1)
        if self.deadline is not None:
            with contextlib.suppress(RuntimeError):  # it has just passed
                self.deadline.reschedule(0)

    async def linger(self) -> None:
        """Read and forget what is still coming, for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.complete:
                    self.complete = not (await self.source()).get("more_body", False)


async def from_body(request: Request, path: Path) -> Path:
    """The body as a file."""
    with path.open("wb") as stream:
        async for chunk in request.stream():
            stream.write(chunk)
    return path


async def from_form(request: Request, path: Path) -> Path:
    """The one file of a form, with the suffix that its type or name has."""
    async with request.form(max_files=1, max_fields=16) as form:
        file = next((v for v in form.values() if isinstance(v, UploadFile)), None)
        if file is None:
            raise Refusal(400, "the form holds no file. Send one, e.g. curl -F image=@photo.png.")
        path = path.with_suffix(suffix(file.content_type, file.filename))
        with path.open("wb") as stream:
            while chunk := await file.read(2**20):
                stream.write(chunk)
        return path


def media_type(content_type: str | None) -> str:
    """The kind of a content type, without its parameters.

    >>> media_type("Image/PNG; q=1")
    'image/png'
    """
    return (content_type or "").partition(";")[0].strip().lower()


def suffix(content_type: str | None, filename: str | None) -> str:
    """Suffix of an image by its content type, else by its name.

    Raises Refusal 415 for another kind of file.
    """
    kind, named = (
        media_type(content_type),
        files.suffix(filename or "").replace(".jpeg", ".jpg").replace(".tiff", ".tif"),
    )
    ending = TYPES.get(kind) or (named if named in TYPES.values() else None)
    if ending is None:
        raise Refusal(
            415,
            f"content type {kind or 'unsaid'} is not taken, only {', '.join(TYPES)}, as the body or"
            " as the file of a form.",
        )
    return ending


def admit(path: Path, channels: int, pixels: int) -> None:
    """Look at the header of an upload.

    Args:
        path: the image file.
        channels: as many as the model takes.
        pixels: the most that are taken, width times height.

    Raises:
        Refusal: where the image is damaged (400), too large (413) or has other channels (422).
    """
    probe = files.probe(path, 2)
    if probe.problem is not None:
        raise Refusal(
            400, f"the image {probe.problem}. {probe.suggestion}.".replace(str(path.parent), "")
        )
    found, height, width = probe.shape
    if height * width > pixels:
        raise Refusal(413, f"the image has {width} x {height} pixels; at most {pixels} are taken.")
    if found != channels:
        raise Refusal(422, f"the image has {found} channels; this model takes {channels}.")
