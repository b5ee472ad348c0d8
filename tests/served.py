"""What the tests of the server share: a small model, a server in a thread, a client."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_models import model_from_yaml

from pipeline import files

httpx = pytest.importorskip("httpx", reason='needs pip install -e ".[dev,serve]"')
for name in ("uvicorn", "fastapi", "python_multipart"):
    pytest.importorskip(name, reason='needs pip install -e ".[serve]"')

from pipeline import serve  # noqa: E402 - after the skips: the server's modules need the extra
from pipeline.inference.options import ModelOptions  # noqa: E402
from pipeline.serving import uploads  # noqa: E402
from pipeline.serving.service import Limits, Service  # noqa: E402
from pipeline.workflows import serve as workflow  # noqa: E402

WAIT = 60
SHARPER = """
name: sharper
task: image
data:
  folders: {image: src, target: dst}
  dims: 2
  normalise: {name: range, options: {low: 0, high: null, to: [-1, 1]}}
  patch: {size: [32, 32], foreground: null}
network: {name: deblur_unet, options: {base: 8, residual: true}}
losses: [{name: l1, target: target}]
predict: {overlap: 8}
"""


def model(folder: Path, text: str) -> Path:
    """A model file for colour images: a server does not care whether it was trained."""
    return model_from_yaml(folder, text, 3)


def photograph(path: Path, size: tuple[int, int] = (45, 67), kind: type = np.uint8) -> Path:
    """A colour image of soft shapes."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = np.stack([np.sin(y / 9 + c) * np.cos(x / (7 + c)) for c in range(3)])
    array = ((waves * 0.45 + 0.5) * np.iinfo(kind).max).astype(kind)
    files.write(path, array, dims=2)
    return path


def built(checkpoint: Path, *more: str) -> Service:
    """The service that the command would run with these options, on the CPU."""
    words = ["--checkpoint", str(checkpoint), "--device", "cpu", *more]
    options = vars(serve.parser().parse_args(words))
    limits = Limits(
        bytes=options.pop("max_bytes"),
        pixels=options.pop("max_pixels"),
        concurrent=options.pop("concurrent"),
        waiting=options.pop("waiting"),
    )
    return workflow.build(
        ModelOptions(**{k: v for k, v in options.items() if k not in ("host", "port", "plugin")}),
        limits,
    )


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The service on a free port, in a thread."""
    server = workflow.server(service)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(WAIT)
            service.abandon(WAIT)


def post(url: str, path: Path, kind: str | None = None, **more: object) -> httpx.Response:
    kind = kind or {v: k for k, v in uploads.TYPES.items()}[path.suffix]
    return httpx.post(
        f"{url}/predict",
        content=path.read_bytes(),
        headers={"Content-Type": kind},
        timeout=WAIT,
        **more,
    )


def refusal(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    reason = response.json()["error"]
    assert "Traceback" not in response.text
    assert "/tmp" not in reason
    assert "access-control-allow-origin" not in response.headers
    return reason


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
