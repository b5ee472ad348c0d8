"""Latency and throughput of ``pipeline.serve`` over HTTP on this machine: p50, p95 and images a second, one and two clients at a time.

    python tests/benchmarks/serve.py [--checkpoint FILE | --network deblur_unet] [--size 512] [--requests 20] [--clients 1 2]
        [--server --backend onnx --concurrent 2 --patch-size 512]

What follows ``--server`` is handed to pipeline.serve, a process of its own. Every client sends its next image when it has the answer
to the one before. The image is a JPEG; latency is from the client's first byte to the answer's last. One request warms up.
"""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
from backends import fresh, photograph
from PIL import Image


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--checkpoint", type=Path, help="model file of a 2D image system; default: fresh weights of --network")
    p.add_argument("--network", default="deblur_unet")
    p.add_argument("--image", type=Path, help="photograph, resized to --size; default: a synthetic one")
    p.add_argument("--size", type=int, default=512)
    p.add_argument("--requests", type=int, default=20, help="at each number of clients")
    p.add_argument("--clients", type=int, nargs="+", default=[1, 2])
    p.add_argument("--folder", type=Path, default=Path("/tmp/pipeline_serve"))
    p.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="further options of pipeline.serve")
    return p


def main() -> None:
    arguments = parser().parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "photograph.jpg"
    Image.fromarray(photograph(arguments.image, arguments.size).transpose(1, 2, 0)).save(path, quality=95)
    checkpoint = arguments.checkpoint or fresh(arguments.network, arguments.folder / "fresh.safetensors")
    command = [sys.executable, "-m", "pipeline.serve", "--checkpoint", str(checkpoint), "--device", "cpu", "--port", "0", *arguments.server]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = next(filter(None, (re.search(r"http://\S+/predict", line) for line in process.stdout)))
        ready = time.perf_counter() - began
        with ThreadPoolExecutor(1) as reader:  # a full pipe would hold the server up
            reader.submit(process.stdout.read)
            measured(arguments, found[0], path.read_bytes(), ready, process.pid)
            process.send_signal(signal.SIGTERM)


def measured(arguments: argparse.Namespace, url: str, content: bytes, ready: float, pid: int) -> None:
    first = ask(url, content)
    print(
        f"{arguments.size} x {arguments.size}, options {' '.join(arguments.server) or 'none'}; ready after {ready:.1f} s, first answer {first:.2f} s"
    )
    print("| clients | p50, s | p95, s | images a second |\n|---|---|---|---|")
    for clients in arguments.clients:
        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            seconds = list(pool.map(lambda _: ask(url, content), range(arguments.requests)))
        total = time.perf_counter() - began
        print(f"| {clients} | {statistics.median(seconds):.2f} | {np.percentile(seconds, 95):.2f} | {arguments.requests / total:.2f} |")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    most = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    print(f"peak memory of the server {most:,.0f} MiB")


def ask(url: str, content: bytes) -> float:
    began = time.perf_counter()
    response = httpx.post(url, content=content, headers={"Content-Type": "image/jpeg"}, timeout=600)
    assert response.status_code == 200, response.text
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
