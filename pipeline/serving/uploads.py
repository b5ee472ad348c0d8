"""Uploads: limits of size, time and type."""

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
"""Content types that are accepted, and the suffix under which such an image is read."""

SLOW_SECONDS, SLOW_BYTES = 20.0, 32 * 1024
"""Time limit of an upload or a response.

That is SLOW_SECONDS, and one more second for every SLOW_BYTES that have passed.
"""

LINGER_SECONDS = 2
"""How long a refused upload is still read.

A client that is cut off while it sends may never see the reason.
"""


class Refusal(Exception):  # noqa: N818 - an answer to the client, no fault of the program
    """A request that is answered with an HTTP status of 400 or more and a sentence.

    Args:
        status: HTTP status.
        reason: sentence for the client.
        retry: seconds after which the client may try again; None: not said.
    """

    def __init__(self, status: int, reason: str, retry: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = {} if retry is None else {"Retry-After": str(retry)}


class Body:
    """The body of a request while it is received: counts its bytes, limits size and time.

    Args:
        request: the request; its body must be read from the attribute ``request`` of this object.
        most: bytes that are accepted.
    """

    def __init__(self, request: Request, most: int) -> None:
        self.source, self.most, self.seen, self.complete = request.receive, most, 0, False
        self.request = type(request)(request.scope, self.receive)
        self.began = asyncio.get_running_loop().time()
        self.deadline: asyncio.Timeout | None = None
        self.reason: Refusal | None = None

    async def receive(self) -> MutableMapping[str, Any]:
        """Receive the next ASGI message, and move the deadline by its bytes.

        Returns:
            The message.

        Raises:
            Refusal: 413 where more than ``most`` bytes have come.
        """
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
        """Limit the time of receiving the body within the context.

        Yields:
            Nothing.

        Raises:
            Refusal: 408 where the body comes too slowly, and 503 where it was given up.
        """
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
        """Stop receiving with status 503.

        Args:
            reason: sentence for the client.
        """
        self.reason = Refusal(503, reason, retry=1)
        if self.deadline is not None:
            with contextlib.suppress(RuntimeError):  # it has just passed
                self.deadline.reschedule(0)

    async def linger(self) -> None:
        """Read and discard what is still being sent, for at most LINGER_SECONDS."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.complete:
                    self.complete = not (await self.source()).get("more_body", False)


async def from_body(request: Request, path: Path) -> Path:
    """Save the body of a request as a file.

    Args:
        request: request whose body is an image.
        path: file to write.

    Returns:
        ``path``.
    """
    with path.open("wb") as stream:
        async for chunk in request.stream():
            stream.write(chunk)
    return path


async def from_form(request: Request, path: Path) -> Path:
    """Save the one file of a form.

    Args:
        request: request whose body is a multipart form.
        path: file to write; its suffix is replaced by that of the form's file.

    Returns:
        The path that was written.

    Raises:
        Refusal: 400 where the form holds no file, 415 where it is no image.
    """
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
    """The media type of a ``Content-Type`` header, without its parameters.

    Args:
        content_type: value of the header; None: no header.

    Returns:
        The type in lower case; may be empty.

    Example:
        >>> media_type("Image/PNG; q=1")
        'image/png'
    """
    return (content_type or "").partition(";")[0].strip().lower()


def suffix(content_type: str | None, filename: str | None) -> str:
    """Suffix of an image by its content type, else by its name.

    Args:
        content_type: value of the ``Content-Type`` header; None: no header.
        filename: name of the file; None: no name.

    Returns:
        One of the suffixes of TYPES.

    Raises:
        Refusal: 415 for another kind of file.
    """
    kind = media_type(content_type)
    named = files.suffix(filename or "").replace(".jpeg", ".jpg").replace(".tiff", ".tif")
    ending = TYPES.get(kind) or (named if named in TYPES.values() else None)
    if ending is None:
        raise Refusal(
            415,
            f"content type {kind or 'unsaid'} is not taken, only {', '.join(TYPES)}, as the body or"
            " as the file of a form.",
        )
    return ending


def admit(path: Path, channels: int, pixels: int) -> None:
    """Check the header of an uploaded image.

    Args:
        path: the image file.
        channels: channels that the model takes.
        pixels: most pixels, width times height.

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
