"""Serve one model over HTTP: POST an image, get the very file that ``pipeline.predict`` would write for it.

    python -m pipeline.serve --checkpoint runs/deblur
    curl --data-binary @blurred.jpg -H 'Content-Type: image/jpeg' -o sharp.jpg http://127.0.0.1:8000/predict

The model is loaded once and nothing is kept between requests. There is neither encryption nor a password: beyond this machine
(``--host``) it belongs behind a proxy that has both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import importlib
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pipeline
from pipeline import cli
from pipeline import predict as predicting
from pipeline.cli import say
from pipeline.records import DONE, Case, UserError

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import uvicorn
    from fastapi import FastAPI, Request, Response

    from pipeline.predict import Predictor

TYPES = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/tiff": ".tif",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/x-ms-bmp": ".bmp",
}
"""Content types that are taken, and the suffix under which such an image is read."""
ANSWERS = {".png": "image/png", ".jpg": "image/jpeg", ".tif": "image/tiff"}
"""Content type of an answer by the suffix of its file."""
RECEIVE_SECONDS = 60
"""An upload that takes longer is given up: it holds a place in the queue."""
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
    """A model that answers requests, and how many of them it has at the moment."""

    predictor: Predictor
    channels: int
    limits: Limits
    facts: dict[str, Any]
    pool: ThreadPoolExecutor
    turn: asyncio.Semaphore
    inside: int = 0
    seconds: float = field(default=1.0)
    """What the last image took: a guess for those who are told to come back."""

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among those that compute or wait. Raises Refusal 503 where all are taken."""
        if self.inside >= self.limits.concurrent + self.limits.waiting:
            raise Refusal(503, f"{self.inside} requests are being worked on or wait; come back later.", retry=max(1, round(self.seconds)))
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def health(self) -> dict[str, Any]:
        running = min(self.inside, self.limits.concurrent)
        return {"status": "ok", **self.facts, "running": running, "waiting": self.inside - running}


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), serve, argv)


def serve(arguments: argparse.Namespace) -> int:
    """The whole command; returns when it is asked to stop and the last request is answered."""
    _packages()
    service = build(arguments)
    with _listen(arguments.host, arguments.port) as listener, service.pool:
        host, port = listener.getsockname()[:2]
        say(f"Serving {service.facts['config']} on http://{f'[{host}]' if ':' in host else host}:{port}/predict")
        if not _is_local(host):
            say("WARNING: other machines can reach this address; there is neither encryption nor a password.")
        cli.stop.check()
        server(service).run(sockets=[listener])
    cli.stop.check()  # uvicorn hands on the signal that ended it
    return DONE


def _packages() -> None:
    """Raise UserError where the extra is not installed; python_multipart is looked for by starlette only when a form comes."""
    for name in ("fastapi", "uvicorn", "python_multipart"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f'pipeline.serve needs the package {name}: pip install "pipeline[serve]".') from None


def server(service: Service) -> uvicorn.Server:
    """A server that ends on SIGTERM or SIGINT, after the requests that it has taken are answered."""
    import uvicorn

    config = uvicorn.Config(application(service), loop="asyncio", lifespan="off", log_config=None, access_log=False, server_header=False)
    return uvicorn.Server(config)


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
    from concurrent.futures import ThreadPoolExecutor

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
    return Service(predictor=predictor, channels=channels, limits=limits, facts=facts, pool=pool, turn=turn)


def application(service: Service) -> FastAPI:
    """The two addresses, ``POST /predict`` and ``GET /health``."""
    from fastapi import FastAPI, Request, Response

    app = FastAPI(title=service.facts["config"], version=service.facts["version"], docs_url=None, redoc_url=None)

    async def predict(request: Request) -> Response:
        return await respond(service, request)

    # Types as objects: the annotations above are strings, whose names only this function knows.
    predict.__annotations__ = {"request": Request, "return": Response}
    types = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in TYPES}
    app.post("/predict", response_class=Response, openapi_extra={"requestBody": {"content": types, "required": True}})(predict)
    app.get("/health")(service.health)
    return app


class _Body:
    """The body of a request on its way in: counts its bytes, and refuses more than ``most``."""

    def __init__(self, request: Request, most: int) -> None:
        self.source, self.most, self.seen, self.complete = request.receive, most, 0, False
        self.request = type(request)(request.scope, self.receive)

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self.source()
        self.seen += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        if self.seen > self.most:
            raise Refusal(413, f"the body is larger than {self.most} bytes.")
        return message

    async def linger(self) -> None:
        """Read and forget what is still coming, for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.complete:
                    self.complete = not (await self.source()).get("more_body", False)


async def respond(service: Service, request: Request) -> Response:
    """The answer to a request, or why there is none; what went wrong inside is told to the log only."""
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    body, began = _Body(request, service.limits.bytes), time.perf_counter()
    try:
        response = await _answer(service, request, body)
    except Refusal as refusal:
        response = _refused(refusal.status, str(refusal), refusal.headers, body)
    except HTTPException as error:  # a form that is none
        response = _refused(error.status_code, str(error.detail), {}, body)
    except TimeoutError:
        response = _refused(408, f"the body did not come within {RECEIVE_SECONDS} seconds.", {}, body)
    except ClientDisconnect:
        response = _refused(400, "the client has gone.", {}, body)
    except Exception:
        traceback.print_exc()
        response = _refused(500, "the image could not be processed; the server's log says why.", {}, body)
    seconds = time.perf_counter() - began
    response.headers.update(_headers(service, seconds))
    say(f"{request.method} {request.url.path} {response.status_code} {body.seen} bytes {seconds:.3f} s")
    return response


def _headers(service: Service, seconds: float) -> dict[str, str]:
    facts = service.facts
    return {
        "X-Model": f"{facts['config'].encode('ascii', 'replace').decode()} {facts['model']}",
        "X-Processing-Seconds": f"{seconds:.4f}",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }


def _refused(status: int, reason: str, headers: dict[str, str], body: _Body) -> Response:
    """A reason as JSON, whole before the rest of the upload is read and forgotten."""
    from fastapi.responses import JSONResponse

    class Lingering(JSONResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
            await body.linger()
            await send({"type": "http.response.body", "body": b""})

    return Lingering({"error": reason}, status, headers)


async def _answer(service: Service, request: Request, body: _Body) -> Response:
    from fastapi import Response

    announced = int(request.headers.get("content-length", 0))
    if announced > service.limits.bytes:
        raise Refusal(413, f"the body has {announced} bytes; at most {service.limits.bytes} are taken.")
    form = _kind(request.headers.get("content-type")) == "multipart/form-data"
    ending = "" if form else _suffix(request.headers.get("content-type"), None)
    with service.place(), tempfile.TemporaryDirectory(prefix="pipeline-serve-") as name:
        async with asyncio.timeout(RECEIVE_SECONDS):
            data, ending = await _from_form(body.request) if form else (await body.request.body(), ending)
        image = Path(name) / f"image{ending}"
        await asyncio.to_thread(_admit, service, image, data)
        del data
        async with service.turn:
            if await request.is_disconnected():
                raise Refusal(400, "the client has gone.")
            began = time.perf_counter()
            path = await asyncio.get_running_loop().run_in_executor(service.pool, _predict, service.predictor, image)
            service.seconds = time.perf_counter() - began
        return Response(path.read_bytes(), media_type=ANSWERS[path.suffix])


async def _from_form(request: Request) -> tuple[bytes, str]:
    """Content and suffix of the one file of a form."""
    from starlette.datastructures import UploadFile

    async with request.form(max_files=1, max_fields=16) as form:
        file = next((v for v in form.values() if isinstance(v, UploadFile)), None)
        if file is None:
            raise Refusal(400, "the form holds no file. Send one, e.g. curl -F image=@photo.png.")
        return await file.read(), _suffix(file.content_type, file.filename)


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


def _admit(service: Service, path: Path, data: bytes) -> None:
    """Write an upload to ``path`` and look at its header. Raises Refusal where it is damaged, too large or has the wrong channels."""
    from pipeline import files

    path.write_bytes(data)
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
