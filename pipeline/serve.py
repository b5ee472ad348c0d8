"""Serve one model over HTTP: POST an image, get the very file that ``pipeline.predict`` would write for it.

    python -m pipeline.serve --checkpoint runs/deblur
    curl --data-binary @blurred.jpg -H 'Content-Type: image/jpeg' -o sharp.jpg http://127.0.0.1:8000/predict

The model is loaded once and nothing is kept between requests. There is neither encryption nor a password: beyond this machine
(``--host``) it belongs behind a proxy that has both.

A client that sends or reads too slowly is given up and holds nobody up. The head of a request has to come within 10 s, its body
and its answer within ``SLOW_SECONDS`` and a second more for every ``SLOW_BYTES``. A request waits for the network only when its
body is complete. Bodies and answers lie on disk: memory follows ``--concurrent``, not the number of clients.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import importlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pipeline
from pipeline import cli
from pipeline import predict as predicting
from pipeline.cli import say
from pipeline.records import AGAIN, DONE, Case, UserError

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

    from pipeline.predict import Predictor
    from pipeline.serving import Server

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
ANSWERS = {".png": "image/png", ".jpg": "image/jpeg", ".tif": "image/tiff"}
"""Content type of an answer by the suffix of its file."""
SLOW_SECONDS, SLOW_BYTES = 20.0, 32 * 1024
"""An upload or an answer may take so many seconds, and one more for so many bytes that have passed."""
UPLOADS = 64
"""Bodies that are received at a time. For one more, the slowest of those that take more than a second is given up."""
CHUNK = 64 * 1024
"""Bytes of an answer that are sent at a time."""
THREAD_SECONDS = 1.0
"""How long the end waits for an image that is being computed, which stops after the tile that it is at."""
READERS = 2
"""Threads that look at headers of uploads."""
ENDING = "the server is shutting down; come back later."
LINGER_SECONDS = 2
"""How long an upload that was refused is still read: a client that is cut off while it sends may never see why."""


def parser() -> argparse.ArgumentParser:
    p = cli.parser("serve", "Serve a model of images over HTTP: POST an image to /predict, get the answer; GET /health.")
    predicting.add_model_options(p)
    p.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is reachable from other machines")
    p.add_argument("--port", type=_whole(0), default=8000, help="0: any free one")
    p.add_argument("--max-bytes", type=_whole(1), default=64 * 2**20, help="largest request body")
    p.add_argument("--max-pixels", type=_whole(1), default=16 * 2**20, help="largest image, width times height")
    p.add_argument("--concurrent", type=_whole(1), default=1, help="images computed at a time; they share the processor's threads")
    p.add_argument("--waiting", type=_whole(0), default=8, help="further requests that may wait; more are told to come back (503)")
    return p


def _whole(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may cost."""

    bytes: int
    pixels: int
    concurrent: int
    waiting: int


class Refusal(Exception):  # noqa: N818 - an answer to the client, no fault of the program
    """A request that is answered with an HTTP status of 400 or more and a sentence."""

    def __init__(self, status: int, reason: str, retry: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = {} if retry is None else {"Retry-After": str(retry)}


@dataclass(slots=True, kw_only=True)
class Service:
    """A model that answers requests, and what it has to do at the moment."""

    predictor: Predictor
    channels: int
    limits: Limits
    facts: dict[str, Any]
    pool: ThreadPoolExecutor
    readers: ThreadPoolExecutor
    """Threads that look at headers of uploads, beside those that compute."""
    turn: asyncio.Semaphore
    inside: int = 0
    seconds: float = field(default=1.0)
    """What the last image took: a guess for those who are told to come back."""
    uploads: set[_Body] = field(default_factory=set)
    workspaces: set[_Workspace] = field(default_factory=set)
    answered: int = 0
    turned_away: int = 0
    closing: bool = False

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
    async def receiving(self, body: _Body) -> AsyncIterator[None]:
        """Receive ``body`` within, as long as it comes fast enough. Raises Refusal 408 or 503 where it does not."""
        if self.closing:
            raise Refusal(503, ENDING)
        if len(self.uploads) >= UPLOADS:
            now = asyncio.get_running_loop().time()
            slow = [b for b in self.uploads if now - b.began > 1]
            if not slow:
                raise Refusal(503, f"{UPLOADS} images are being received; come back later.", retry=1)
            slowest = min(slow, key=lambda b: b.seen / (now - b.began))
            slowest.give_up(f"{UPLOADS} images are being received, and this one came the slowest; come back later.")
            self.uploads.discard(slowest)
        self.uploads.add(body)
        try:
            async with body.in_time():
                yield
        finally:
            self.uploads.discard(body)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[_Workspace]:
        """A folder for one request, removed when nobody works in it any more."""
        space = _Workspace(path=Path(tempfile.mkdtemp(prefix="pipeline-serve-")))
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
        """Wait for the threads at the end; whether none works any more. Nothing is left on disk either way."""
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
class _Workspace:
    """A folder that one request has to itself, and what a thread does in it."""

    path: Path
    job: Future[Any] | None = None

    async def run(self, pool: ThreadPoolExecutor, work: Callable[[], Any]) -> Any:
        self.job = pool.submit(work)
        return await asyncio.wrap_future(self.job)

    def close(self, closed: Callable[[], None]) -> None:
        """Remove the folder: at once, or by the thread that still works in it although nobody waits for that."""

        def remove(_: object = None) -> None:
            shutil.rmtree(self.path, ignore_errors=True)
            closed()

        if self.job is None or self.job.cancel():
            remove()
        else:
            self.job.add_done_callback(remove)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), serve, argv)


def serve(arguments: argparse.Namespace) -> int:
    """The whole command; returns when it is asked to stop and the requests that it works on are answered or given up."""
    try:
        with cli.stop.at_once():
            _packages()
            service = build(arguments)
    except cli.StopRequested as request:
        say(f"stopped on request ({request}) before anything was served; the same command serves")
        return AGAIN
    with _listen(arguments.host, arguments.port) as listener:
        host, port = listener.getsockname()[:2]
        say(f"Serving {service.facts['config']} on http://{f'[{host}]' if ':' in host else host}:{port}/predict")
        if not _is_local(host):
            say("WARNING: other machines can reach this address; there is neither encryption nor a password.")
        made = server(service)
        made.run(sockets=[listener])
    return _ended(service, made.ended_by)


def _ended(service: Service, number: int | None) -> int:
    """Say how the server ended, leave nothing behind, and return the exit code."""
    cli.stop.signal = number  # an image that is being computed ends after its tile
    idle = service.abandon(THREAD_SECONDS)
    if number is None:
        return DONE
    away = f", {service.turned_away} turned away" if service.turned_away else ""
    say(
        f"stopped serving on request ({signal.Signals(number).name}): {service.answered} requests "
        f"answered{away}; the same command serves again"
    )
    if not idle:  # a thread cannot be ended, and the interpreter would wait for it
        sys.stdout.flush()
        os._exit(AGAIN)
    return AGAIN


def _packages() -> None:
    """Raise UserError where the extra is not installed; python_multipart is looked for by starlette only when a form comes."""
    for name in ("fastapi", "uvicorn", "python_multipart"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f'pipeline.serve needs the package {name}: pip install "pipeline[serve]".') from None


def server(service: Service) -> Server:
    """A server that ends on a signal, within a bounded time, after the requests that it works on are answered."""
    from pipeline.serving import Server

    return Server(application(service), service.close, lambda: cli.stop.signal)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. Raises UserError where that cannot be."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # whoever comes between the line that says "Serving" and the first turn of the loop waits
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise UserError(
            f"cannot listen on {host}, port {port}: {error}. Choose another --host or --port; --port 0 takes a free one."
        ) from None
    return listener


def _is_local(host: str) -> bool:
    return host == "::1" or host.startswith("127.")


def build(arguments: argparse.Namespace) -> Service:
    """The model loaded, and the limits. Raises UserError for a model of volumes, and where the options cannot be followed."""
    import torch

    from pipeline import files

    torch.set_num_threads(max(1, torch.get_num_threads() // arguments.concurrent))
    predictor = predicting.prepare(arguments, Path())
    config, first = predictor.config, Path(predictor.models[0])
    if config.data.dims != 2:
        raise UserError(f"{first} answers volumes; pipeline.serve takes models of images (data.dims: 2). Use pipeline.predict.")
    if predictor.trained_on.get("family") == "nifti":
        raise UserError(f"{first} was trained on NIfTI, whose axes lie in another order than those of pictures. Use pipeline.predict.")
    if config.predict.norms != "tile" and arguments.concurrent > 1:
        raise UserError(
            f"--concurrent {arguments.concurrent} does not go with predict.norms {config.predict.norms}, which sets the network up for one image. Use --concurrent 1."
        )
    channels = predictor.channels
    facts = {
        "config": config.name,
        "model": files.sha256(first)[:16],
        "networks": len(predictor.models),
        "task": config.task,
        "channels": channels,
        "backend": arguments.backend,
        "version": pipeline.__version__,
    }
    limits = Limits(bytes=arguments.max_bytes, pixels=arguments.max_pixels, concurrent=arguments.concurrent, waiting=arguments.waiting)
    pool = ThreadPoolExecutor(limits.concurrent, thread_name_prefix="predict")
    turn = asyncio.Semaphore(limits.concurrent)
    readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
    return Service(predictor=predictor, channels=channels, limits=limits, facts=facts, pool=pool, readers=readers, turn=turn)


def application(service: Service) -> FastAPI:
    """The two addresses, ``POST /predict`` and ``GET /health``."""
    from fastapi import FastAPI, Request, Response

    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings of forms that are none are for the client
    app = FastAPI(title=service.facts["config"], version=service.facts["version"], docs_url=None, redoc_url=None)

    async def predict(request: Request) -> Response:
        return await respond(service, request)

    # Types as objects: the annotations above are strings, whose names only this function knows.
    predict.__annotations__ = {"request": Request, "return": Response}
    types = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in TYPES}
    app.post("/predict", response_class=Response, openapi_extra={"requestBody": {"content": types, "required": True}})(predict)
    app.api_route("/health", methods=["GET", "HEAD"])(service.health)
    return app


class _Body:
    """The body of a request on its way in: counts its bytes, refuses more than ``most``, and what comes too slowly."""

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
            slow = f"{self.seen} bytes came in {asyncio.get_running_loop().time() - self.began:.0f} s"
            rule = f"{SLOW_SECONDS:.0f} s are given, and one more for every {SLOW_BYTES} bytes"
            raise self.reason or Refusal(408, f"the body came too slowly: {slow}; {rule}.") from None
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


async def respond(service: Service, request: Request) -> Response:
    """The answer to a request, or why there is none; what went wrong inside is told to the log only."""
    began = time.perf_counter()
    body = _Body(request, service.limits.bytes)
    response = await _outcome(service, request, body)
    seconds = time.perf_counter() - began
    response.headers.update(_headers(service, seconds))
    service.answered += response.status_code != 503
    service.turned_away += response.status_code == 503
    say(f"{request.method} {request.url.path} {response.status_code} {body.seen} bytes {seconds:.3f} s")
    return response


async def _outcome(service: Service, request: Request, body: _Body) -> Response:
    """The answer, or the refusal that stands for whatever went wrong."""
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    linger = body.linger

    async def leave() -> None:
        if not service.closing:
            await linger()

    try:
        return await _answer(service, request, body)
    except Refusal as refusal:
        status, reason, headers = refusal.status, str(refusal), refusal.headers
    except HTTPException as error:  # a form that is none
        status, reason, headers = error.status_code, str(error.detail), {}
    except ClientDisconnect:
        status, reason, headers = 400, "the client has gone.", {}
    except asyncio.CancelledError:
        if not service.closing:
            raise
        status, reason, headers = 503, ENDING, {}
    except OSError as error:  # a full disk, say
        say(f"error: {type(error).__name__}: {error}")
        status, reason, headers = 503, "the server cannot keep this image at the moment; come back later.", {"Retry-After": "60"}
    except Exception:
        traceback.print_exc()
        status, reason, headers = 500, "the image could not be processed; the server's log says why.", {}
    return _refused(status, reason, headers if body.complete else {**headers, "Connection": "close"}, leave)


def _headers(service: Service, seconds: float) -> dict[str, str]:
    facts = service.facts
    return {
        "X-Model": f"{facts['config'].encode('ascii', 'replace').decode()} {facts['model']}",
        "X-Processing-Seconds": f"{seconds:.4f}",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }


def _refused(status: int, reason: str, headers: dict[str, str], linger: Callable[[], Awaitable[None]]) -> Response:
    """A reason as JSON, whole before the rest of the upload is read and forgotten."""
    from fastapi.responses import JSONResponse

    class Lingering(JSONResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
            await linger()
            await send({"type": "http.response.body", "body": b""})

    return Lingering({"error": reason}, status, headers)


async def _answer(service: Service, request: Request, body: _Body) -> Response:

    announced = int(request.headers.get("content-length", 0))
    if announced > service.limits.bytes:
        raise Refusal(413, f"the body has {announced} bytes; at most {service.limits.bytes} are taken.")
    form = _kind(request.headers.get("content-type")) == "multipart/form-data"
    ending = "" if form else _suffix(request.headers.get("content-type"), None)
    service.require_place()  # before the body comes, and again when it is there
    with service.workspace() as space:
        image = space.path / f"image{ending}"
        async with service.receiving(body):
            image = await (_from_form(body.request, image) if form else _from_body(body.request, image))
        with service.place():
            await space.run(service.readers, lambda: _admit(service, image))
            async with service.turn:
                if await request.is_disconnected():
                    raise Refusal(400, "the client has gone.")
                began = time.perf_counter()
                path = await space.run(service.pool, lambda: _predict(service.predictor, image))
                service.seconds = time.perf_counter() - began
        return _file_response(path)


def _file_response(path: Path) -> Response:
    """The content of a file, which may be unlinked meanwhile, sent no faster than the client reads; one that does not is cut off."""
    from fastapi import Response

    stream = path.open("rb")
    size = os.fstat(stream.fileno()).st_size

    class Sent(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            with stream:
                try:
                    async with asyncio.timeout(SLOW_SECONDS + size / SLOW_BYTES):
                        await _send(stream, size, send)
                except TimeoutError:
                    scope["state"]["abort"]()

    return Sent(headers={"Content-Length": str(size)}, media_type=ANSWERS[path.suffix])


async def _send(stream: BinaryIO, size: int, send: Callable[[MutableMapping[str, Any]], Awaitable[None]]) -> None:
    for start in range(0, size, CHUNK):
        await send({"type": "http.response.body", "body": stream.read(CHUNK), "more_body": start + CHUNK < size})


async def _from_body(request: Request, path: Path) -> Path:
    """The body as a file."""
    with path.open("wb") as stream:
        async for chunk in request.stream():
            stream.write(chunk)
    return path


async def _from_form(request: Request, path: Path) -> Path:
    """The one file of a form, with the suffix that its type or name has."""
    from starlette.datastructures import UploadFile

    async with request.form(max_files=1, max_fields=16) as form:
        file = next((v for v in form.values() if isinstance(v, UploadFile)), None)
        if file is None:
            raise Refusal(400, "the form holds no file. Send one, e.g. curl -F image=@photo.png.")
        path = path.with_suffix(_suffix(file.content_type, file.filename))
        with path.open("wb") as stream:
            while chunk := await file.read(2**20):
                stream.write(chunk)
        return path


def _kind(content_type: str | None) -> str:
    """``image/png; q=1`` -> ``image/png``."""
    return (content_type or "").partition(";")[0].strip().lower()


def _suffix(content_type: str | None, filename: str | None) -> str:
    """Suffix of an image by its content type, else by its name. Raises Refusal 415 for another kind of file."""
    from pipeline.files import suffix

    kind, named = _kind(content_type), suffix(filename or "").replace(".jpeg", ".jpg").replace(".tiff", ".tif")
    ending = TYPES.get(kind) or (named if named in TYPES.values() else None)
    if ending is None:
        raise Refusal(415, f"content type {kind or 'unsaid'} is not taken, only {', '.join(TYPES)}, as the body or as the file of a form.")
    return ending


def _admit(service: Service, path: Path) -> None:
    """Look at the header of an upload. Raises Refusal where it is damaged, too large or has the wrong channels."""
    from pipeline import files

    probe = files.probe(path, 2)
    if probe.problem is not None:
        raise Refusal(400, f"the image {probe.problem}. {probe.cure}.".replace(str(path.parent), ""))
    channels, height, width = probe.shape
    if height * width > service.limits.pixels:
        raise Refusal(413, f"the image has {width} x {height} pixels; at most {service.limits.pixels} are taken.")
    if channels != service.channels:
        raise Refusal(422, f"the image has {channels} channels; this model takes {service.channels}.")


def _predict(predictor: Predictor, image: Path) -> Path:
    """Predict an image file; the answer lies in a folder beside it. Raises Refusal 400 where it cannot be decoded to its end."""
    from pipeline.files import FileError

    output = image.parent / "answer"
    try:
        row = predicting.predict_case(dataclasses.replace(predictor, output=output), Case(id="image", image=(image,)))
    except FileError as error:
        raise Refusal(400, f"the image {error.problem}. {error.cure}.".replace(str(image.parent), "")) from None
    return output / row["output"]


if __name__ == "__main__":
    raise SystemExit(main())
