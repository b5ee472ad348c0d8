"""A server that nobody holds up: half-sent and slow requests, clients that do not read, and an end
within seconds.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from served import SHARPER, WAIT, built, httpx, model, photograph, post, refusal, serving, until

from pipeline.serving import server as http
from pipeline.serving import service as services
from pipeline.serving import uploads
from pipeline.workflows import serve as workflow

HEAD = (
    b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\nContent-Length: 5000\r\n"
)
"""Of a request whose body does not come."""


@pytest.fixture(scope="module")
def sharper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("sharper"), SHARPER)


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), WAIT)


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection, which an aborted one says with a reset."""
    found = b""
    try:
        while piece := connection.recv(2**16):
            found += piece
    except ConnectionResetError:
        pass
    return found


@contextmanager
def half_sent(url: str, content: bytes, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that have sent ``content`` and say no more."""
    with ExitStack() as stack:
        made = [stack.enter_context(connect(url)) for _ in range(count)]
        for connection in made:
            connection.sendall(content)
        yield made


def still_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    finally:
        connection.settimeout(WAIT)


@pytest.mark.parametrize("content", [b"POST /predict HTTP/1.1\r\nHo", HEAD + b"\r\nbody", b""])
def test_requests_that_are_half_sent_hold_nobody_up(
    sharper: Path, tmp_path: Path, content: bytes
) -> None:
    path = photograph(tmp_path / "a.png")
    service = built(sharper, "--waiting", "7")
    with serving(service) as url, half_sent(url, content, 20) as hung:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: post(url, path), range(8)))
        assert [a.status_code for a in answers] == [200] * 8
        assert all(still_open(c) for c in hung)


def test_heads_that_never_end_are_given_up(sharper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.3)
    with serving(built(sharper)) as url:
        for content in (b"", b"POST /pre", HEAD):
            with half_sent(url, content, 2) as hung:
                assert [rest(c) for c in hung] == [b"", b""]


def test_a_second_request_that_drips_is_given_up(
    sharper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn forgets its own limit with the first byte after an answer."""
    monkeypatch.setattr(http, "HEAD_SECONDS", 1.0)
    with serving(built(sharper)) as url, connect(url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(2**16)
        end = threading.Event()
        thread = threading.Thread(target=drip, args=(connection, end))
        thread.start()
        assert rest(connection) == b""
        end.set()
        thread.join(WAIT)


def drip(connection: socket.socket, end: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not end.wait(0.05):
            connection.sendall(b"X")


@pytest.mark.slow
def test_bodies_that_come_too_slowly_are_told(
    sharper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SLOW_SECONDS", 0.3)
    service = built(sharper)
    with serving(service) as url, half_sent(url, HEAD + b"\r\nbody", 3) as hung:
        for connection in hung:
            answer = rest(connection)
            assert b"408 Request Timeout" in answer
            assert b"4 bytes came in" in answer
        assert not service.workspaces


def test_bodies_that_keep_coming_are_waited_for(
    sharper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the time that a silent one has: every byte gives more."""
    monkeypatch.setattr(uploads, "SLOW_SECONDS", 0.5)
    content = photograph(tmp_path / "a.png", (90, 90)).read_bytes()
    monkeypatch.setattr(uploads, "SLOW_BYTES", len(content) / 5)
    pause = threading.Event()

    def pieces() -> Iterator[bytes]:
        for n in range(10):
            pause.wait(0.1)
            yield content[n * len(content) // 10 : (n + 1) * len(content) // 10]

    with serving(built(sharper)) as url:
        answer = httpx.post(
            f"{url}/predict", content=pieces(), headers={"Content-Type": "image/png"}, timeout=WAIT
        )
    assert answer.status_code == 200, answer.text


@pytest.mark.slow
def test_the_slowest_upload_makes_room_for_another(
    sharper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "UPLOADS", 3)
    path, service = photograph(tmp_path / "a.png"), built(sharper)
    with serving(service) as url, half_sent(url, HEAD + b"\r\nbody", 3) as hung:
        until(lambda: len(service.uploads) == 3)
        until(lambda: post(url, path).status_code == 200)  # within the first second: 503
        until(lambda: len(service.uploads) == 2)
        told = select.select(hung, [], [], WAIT)[0]
        assert len(told) == 1
        assert b"came the slowest" in rest(told[0])


def test_idle_connections_make_room_for_others(
    sharper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CONNECTIONS", 5)
    with serving(built(sharper)) as url, half_sent(url, b"POST /pre", 5) as hung:
        assert httpx.get(f"{url}/health").status_code == 200
        assert rest(hung[0]) == b""
        assert all(still_open(c) for c in hung[1:])


@pytest.mark.slow
def test_clients_that_do_not_read_are_cut_off(
    sharper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of 12 MB, more than the system takes in the client's stead."""
    monkeypatch.setattr(uploads, "SLOW_BYTES", 2**40)
    noise = np.random.default_rng(0).integers(0, 255, (2000, 2000, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    service = built(sharper, "--max-pixels", "4000000")
    service.predict = lambda image, _: image
    monkeypatch.setattr(uploads, "SLOW_SECONDS", 5.0)
    content = (tmp_path / "a.png").read_bytes()
    head = HEAD.replace(b"5000", str(len(content)).encode())
    with serving(service) as url, connect(url) as connection:
        connection.sendall(head + b"\r\n" + content)
        until(lambda: service.answered == 1)
        assert not service.workspaces
        until(lambda: len(closed(connection)) == 0)
        assert httpx.get(f"{url}/health").status_code == 200


def closed(connection: socket.socket) -> list[str]:
    """This machine's ends of the connection that a server still holds, from the system's table."""
    name, peer = connection.getsockname(), connection.getpeername()
    mine = f"{peer[1]:04X}", f"{name[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    held = [r for r in rows if (r[1].split(":")[1], r[2].split(":")[1]) == mine]
    return [r[3] for r in held if r[3] == "01"]


def test_a_client_that_goes_leaves_nothing(sharper: Path, tmp_path: Path) -> None:
    service = built(sharper)
    with serving(service) as url:
        with connect(url) as connection:
            connection.sendall(HEAD + b"\r\nbody")
            until(lambda: len(service.uploads) == 1)
        until(lambda: not service.uploads and not service.workspaces)
        assert post(url, photograph(tmp_path / "a.png")).status_code == 200


def test_a_full_disk_is_no_fault_of_the_image(
    sharper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads, "from_body", full)
    service = built(sharper)
    with serving(service) as url:
        assert "at the moment" in refusal(post(url, photograph(tmp_path / "a.png")), 503)
        assert "No space left" in caplog.text
        assert not service.workspaces


@pytest.mark.parametrize(
    "head",
    [
        b"\x00\xff\x00\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered(sharper: Path, head: bytes) -> None:
    with serving(built(sharper)) as url, connect(url) as connection:
        connection.sendall(head)
        assert b"400 Bad Request" in rest(connection)


def pages(count: int) -> bytes:
    """A TIFF of one picture and ``count`` further pages that hold nothing."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((8, 8, 3), np.uint8), photometric="rgb", metadata=None)
    content = bytearray(stream.getvalue())
    at = int.from_bytes(content[4:8], "little")
    entries = int.from_bytes(content[at : at + 2], "little")
    link = at + 2 + 12 * entries
    content[link : link + 4] = len(content).to_bytes(4, "little")
    for n in range(count):
        following = len(content) + 6 if n < count - 1 else 0
        content += b"\0\0" + following.to_bytes(4, "little")
    return bytes(content)


def test_pages_are_counted_before_anything_is_decoded(sharper: Path, tmp_path: Path) -> None:
    (tmp_path / "pages.tif").write_bytes(pages(500_000))
    with serving(built(sharper)) as url:
        assert "page" in refusal(post(url, tmp_path / "pages.tif"), 400)


# --- the end --------------------------------------------------------------------------------------


@contextmanager
def command(checkpoint: Path, temporary: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as it is typed, and its address."""
    words = [
        sys.executable,
        "-m",
        "pipeline.serve",
        "--checkpoint",
        str(checkpoint),
        "--device",
        "cpu",
        "--port",
        "0",
    ]
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            found = next(
                filter(
                    None,
                    (re.search(r"http://(\S+):(\d+)/predict", line) for line in process.stdout),
                )
            )
            yield process, found[0].removesuffix("/predict")
        finally:
            process.kill()


@pytest.mark.slow
def test_ctrl_c_ends_it_whatever_clients_do(sharper: Path, tmp_path: Path) -> None:
    """Beside half-sent heads and bodies, and an image that takes minutes: 4,000 x 4,000 pixels in
    tiles of 32.
    """
    Image.new("RGB", (4000, 4000)).save(tmp_path / "large.png")
    with (
        command(sharper, tmp_path / "temporary") as (process, url),
        ThreadPoolExecutor(1) as pool,
        half_sent(url, HEAD, 3),
        half_sent(url, HEAD + b"\r\nbody", 3) as bodies,
    ):
        large = pool.submit(post, url, tmp_path / "large.png")
        until(lambda: httpx.get(f"{url}/health", timeout=WAIT).json()["running"] == 1)
        until(lambda: len(list((tmp_path / "temporary").iterdir())) >= 4)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 75  # half-sent bodies have 20 s, the image minutes
        assert process.stdout is not None
        said = process.stdout.read()
        answers = [rest(c) for c in bodies]
        assert large.result().status_code == 503
    assert "stopped serving on request (SIGINT)" in said
    assert "Traceback" not in said
    assert all(b"shutting down" in a for a in answers)
    assert not list((tmp_path / "temporary").iterdir())


SLOW_LOADING = """
import time
from pipeline import serve
from pipeline.workflows import serve as workflow
workflow.build = lambda *_: (print("loading", flush=True), time.sleep(600))
raise SystemExit(serve.main())
"""


@pytest.mark.slow
def test_ctrl_c_while_the_model_is_loaded(sharper: Path) -> None:
    words = [sys.executable, "-c", SLOW_LOADING, "--checkpoint", str(sharper)]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 75
        said = process.stdout.read()
    assert "before anything was served" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_second_ctrl_c_ends_it_at_once(sharper: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4000, 4000)).save(tmp_path / "large.png")
    with command(sharper, tmp_path / "temporary") as (process, url), ThreadPoolExecutor(1) as pool:
        pool.submit(post, url, tmp_path / "large.png")
        until(lambda: httpx.get(f"{url}/health", timeout=WAIT).json()["running"] == 1)
        process.send_signal(signal.SIGTERM)
        until(lambda: refused(url))
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 75  # after SIGTERM alone a request has 30 s
        assert process.stdout is not None
        said = process.stdout.read()
    assert "stopped serving on request" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "temporary").iterdir())


def refused(url: str) -> bool:
    """Whether nobody listens any more."""
    try:
        connect(url).close()
    except OSError:
        return True
    return False


def test_a_thread_that_does_not_end_is_left(sharper: Path, tmp_path: Path) -> None:
    """The command then leaves by the way that does not wait for threads; on disk nothing stays."""
    service, gate = built(sharper), threading.Event()

    def stuck(image: Path, folder: Path) -> Path:
        assert gate.wait(WAIT)
        folder.mkdir(parents=True)
        return Path(shutil.copy(__file__, folder))

    service.predict = stuck
    server = workflow.server(service)
    server.config.timeout_graceful_shutdown = 0
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        answer = pool.submit(post, url, photograph(tmp_path / "a.png"))
        until(lambda: service.workspaces and next(iter(service.workspaces)).job is not None)
        (space,) = service.workspaces
        server.should_exit = True
        thread.join(WAIT)
        assert answer.result().status_code == 503
        assert service.abandon(0.1) is False
        assert not space.path.exists()
        gate.set()
        until(lambda: not service.workspaces)
        assert not space.path.exists()
