"""Latency and throughput of ``pipeline.serve`` over HTTP on this machine: p50, p95 and images a
second, one and two clients at a time.

    python tests/benchmarks/serve.py [--checkpoint FILE | --network deblur_unet] [--size 512]
        [--requests 20] [--clients 1 2] [--half-sent 20]
        [--server --backend onnx --concurrent 2 --patch-size 512]

What follows ``--server`` is handed to pipeline.serve, a process of its own. Every client sends its
next image when it has the answer to the one before. The image is a JPEG; latency is from the
client's first byte to the answer's last. One request warms up. ``--half-sent N`` measures each
number of clients twice, in turn: alone, and beside N connections that have sent half of the head or
half of the body of a request and say no more. At the end a Ctrl-C comes beside as many; the time to
the process's end is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
from backends import fresh, photograph
from PIL import Image


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument(
        "--checkpoint",
        type=Path,
        help="model file of a 2D image system; default: fresh weights of --network",
    )
    p.add_argument("--network", default="deblur_unet")
    p.add_argument(
        "--image", type=Path, help="photograph, resized to --size; default: a synthetic one"
    )
    p.add_argument("--size", type=int, default=512)
    p.add_argument("--requests", type=int, default=20, help="at each number of clients")
    p.add_argument("--clients", type=int, nargs="+", default=[1, 2])
    p.add_argument(
        "--half-sent", type=int, default=0, help="connections that hang in the middle of a request"
    )
    p.add_argument("--folder", type=Path, default=Path("/tmp/pipeline_serve"))
    p.add_argument(
        "--server", nargs=argparse.REMAINDER, default=[], help="further options of pipeline.serve"
    )
    return p


def main() -> None:
    arguments = parser().parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "photograph.jpg"
    Image.fromarray(photograph(arguments.image, arguments.size).transpose(1, 2, 0)).save(
        path, quality=95
    )
    checkpoint = arguments.checkpoint or fresh(
        arguments.network, arguments.folder / "fresh.safetensors"
    )
    command = [
        sys.executable,
        "-m",
        "pipeline.serve",
        "--checkpoint",
        str(checkpoint),
        "--device",
        "cpu",
        "--port",
        "0",
        *arguments.server,
    ]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = next(
            filter(None, (re.search(r"http://\S+/predict", line) for line in process.stdout))
        )
        ready = time.perf_counter() - began
        with ThreadPoolExecutor(1) as reader:  # a full pipe would hold the server up
            reader.submit(process.stdout.read)
            measured(arguments, found[0], path.read_bytes(), ready, process.pid)
            with half_sent(found[0], arguments.half_sent):
                time.sleep(0.5)
                began = time.perf_counter()
                process.send_signal(signal.SIGINT)
                process.wait()
            print(f"ended {time.perf_counter() - began:.1f} s after Ctrl-C")


def measured(
    arguments: argparse.Namespace, url: str, content: bytes, ready: float, pid: int
) -> None:
    first = ask(url, content)
    print(
        f"{arguments.size} x {arguments.size}, options {' '.join(arguments.server) or 'none'};"
        f" ready after {ready:.1f} s, first answer {first:.2f} s"
    )
    print(
        "| clients | half-sent | p50, s | p95, s | images a second | peak memory so far, MiB |\n"
        "|---|---|---|---|---|---|"
    )
    for clients in arguments.clients:
        for hung in (0, arguments.half_sent) if arguments.half_sent else (0,):
            row(arguments.requests, clients, hung, (url, content, pid))


def row(requests: int, clients: int, hung: int, server: tuple[str, bytes, int]) -> None:
    url, content, pid = server
    with half_sent(url, hung), ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        seconds = list(pool.map(lambda _: ask(url, content), range(requests)))
        total = time.perf_counter() - began
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    most = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    p50, p95 = statistics.median(seconds), np.percentile(seconds, 95)
    print(f"| {clients} | {hung} | {p50:.2f} | {p95:.2f} | {requests / total:.2f} | {most:,.0f} |")


@contextlib.contextmanager
def half_sent(url: str, count: int) -> Iterator[None]:
    """So many connections that have sent a part of a request: of its head, and of its body, in
    turn.
    """
    parts = httpx.URL(url)
    head = (
        b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/jpeg\r\nContent-Length:"
        b" 500000\r\n"
    )
    with contextlib.ExitStack() as stack:
        for n in range(count):
            connection = stack.enter_context(socket.create_connection((parts.host, parts.port)))
            connection.sendall(head if n % 2 else head + b"\r\n" + bytes(1000))
        yield


def ask(url: str, content: bytes) -> float:
    began = time.perf_counter()
    response = httpx.post(url, content=content, headers={"Content-Type": "image/jpeg"}, timeout=600)
    assert response.status_code == 200, response.text
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
