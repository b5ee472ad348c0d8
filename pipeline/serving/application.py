"""The two routes, ``POST /predict`` and ``GET /health``, and the response to every request."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from pipeline.files import FileError
from pipeline.serving import uploads
from pipeline.serving.service import ENDING, Service
from pipeline.serving.uploads import Body, Refusal

logger = logging.getLogger(__name__)

ANSWERS = {".png": "image/png", ".jpg": "image/jpeg", ".tif": "image/tiff"}
"""Content type of a response by the suffix of its file."""

CHUNK = 64 * 1024
"""Bytes of a response that are sent at a time."""


def application(service: Service) -> FastAPI:
    """Make the ASGI application with its two routes.

    Args:
        service: the model, its limits and its state.

    Returns:
        The application.
    """
    # What python_multipart warns about malformed forms is for the client, not for the log.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    app = FastAPI(
        title=service.facts["config"],
        version=service.facts["version"],
        docs_url=None,
        redoc_url=None,
    )

    async def predict(request: Request) -> Response:
        return await respond(service, request)

    types = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in uploads.TYPES}
    app.post(
        "/predict",
        response_class=Response,
        openapi_extra={"requestBody": {"content": types, "required": True}},
    )(predict)
    app.api_route("/health", methods=["GET", "HEAD"])(service.health)
    return app


async def respond(service: Service, request: Request) -> Response:
    """Answer a request, by a prediction or by the reason why there is none; one log line for each.

    Details of internal errors go to the log only.

    Args:
        service: the model, its limits and its state.
        request: a ``POST /predict`` request.

    Returns:
        The response.
    """
    began = time.perf_counter()
    body = Body(request, service.limits.bytes)
    response = await _outcome(service, request, body)
    seconds = time.perf_counter() - began
    response.headers.update(_headers(service, seconds))
    service.answered += response.status_code != 503
    service.turned_away += response.status_code == 503
    logger.info(
        f"{request.method} {request.url.path} {response.status_code} {body.seen} bytes"
        f" {seconds:.3f} s"
    )
    return response


async def _outcome(service: Service, request: Request, body: Body) -> Response:
    """The response, or the refusal for whatever went wrong."""
    linger = body.linger

    async def drain() -> None:
        if not service.closing:
            await linger()

    try:
        return await _answer(service, request, body)
    except Refusal as refusal:
        status, reason, headers = refusal.status, str(refusal), refusal.headers
    except HTTPException as error:  # a malformed form
        status, reason, headers = error.status_code, str(error.detail), {}
    except ClientDisconnect:
        status, reason, headers = 400, "the client has gone.", {}
    except asyncio.CancelledError:
        if not service.closing:
            raise
        status, reason, headers = 503, ENDING, {}
    except OSError as error:  # such as a full disk
        logger.error(f"{type(error).__name__}: {error}")
        status, reason, headers = (
            503,
            "the server cannot keep this image at the moment; come back later.",
            {"Retry-After": "60"},
        )
    except Exception:
        logger.exception("a request failed")
        status, reason, headers = (
            500,
            "the image could not be processed; the server's log says why.",
            {},
        )
    return Refused(
        status, reason, headers if body.complete else {**headers, "Connection": "close"}, drain
    )


def _headers(service: Service, seconds: float) -> dict[str, str]:
    """Headers of every response."""
    facts = service.facts
    return {
        "X-Model": f"{facts['config'].encode('ascii', 'replace').decode()} {facts['model']}",
        "X-Processing-Seconds": f"{seconds:.4f}",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }


class Refused(JSONResponse):
    """A reason as JSON, sent whole before the rest of the upload is read and discarded.

    Args:
        status: HTTP status.
        reason: sentence for the client.
        headers: further headers.
        linger: reads and discards the rest of the upload.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        headers: Mapping[str, str],
        linger: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__({"error": reason}, status, headers)
        self.linger = linger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await self.linger()
        await send({"type": "http.response.body", "body": b""})


class FileSent(Response):
    """A file as response, sent as fast as the client reads; one that reads too slowly is cut off.

    The file may be unlinked meanwhile.

    Args:
        path: file of one of the suffixes of ANSWERS.
    """

    def __init__(self, path: Path) -> None:
        self.stream = path.open("rb")
        self.size = os.fstat(self.stream.fileno()).st_size
        super().__init__(
            headers={"Content-Length": str(self.size)}, media_type=ANSWERS[path.suffix]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with self.stream:
            try:
                async with asyncio.timeout(uploads.SLOW_SECONDS + self.size / uploads.SLOW_BYTES):
                    await self._send(send)
            except TimeoutError:
                scope["state"]["abort"]()

    async def _send(self, send: Send) -> None:
        """Send the body chunk by chunk."""
        for start in range(0, self.size, CHUNK):
            await send(
                {
                    "type": "http.response.body",
                    "body": self.stream.read(CHUNK),
                    "more_body": start + CHUNK < self.size,
                }
            )


async def _answer(service: Service, request: Request, body: Body) -> Response:
    """Receive an image, wait for a thread, and predict.

    Raises Refusal where the image is not accepted.
    """
    announced = int(request.headers.get("content-length", 0))
    if announced > service.limits.bytes:
        raise Refusal(
            413, f"the body has {announced} bytes; at most {service.limits.bytes} are taken."
        )
    form = uploads.media_type(request.headers.get("content-type")) == "multipart/form-data"
    ending = "" if form else uploads.suffix(request.headers.get("content-type"), None)
    service.require_place()  # before the body is received, and again afterwards
    with service.workspace() as workspace:
        image = workspace.path / f"image{ending}"
        async with service.receiving(body):
            image = await (
                uploads.from_form(body.request, image)
                if form
                else uploads.from_body(body.request, image)
            )
        with service.place():
            await workspace.run(
                service.readers,
                lambda: uploads.admit(image, service.channels, service.limits.pixels),
            )
            async with service.semaphore:
                if await request.is_disconnected():
                    raise Refusal(400, "the client has gone.")
                began = time.perf_counter()
                path = await workspace.run(service.pool, lambda: _predict(service, image))
                service.seconds = time.perf_counter() - began
        return FileSent(path)


def _predict(service: Service, image: Path) -> Path:
    """Predict an image file into a folder beside it; the path of the prediction.

    Raises Refusal 400 where it cannot be decoded to its end.
    """
    try:
        return service.predict(image, image.parent / "answer")
    except FileError as error:
        raise Refusal(
            400, f"the image {error.problem}. {error.suggestion}.".replace(str(image.parent), "")
        ) from None
