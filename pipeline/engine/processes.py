"""Worker processes for work on whole cases: one thread in each, as many as cores and memory allow, gone when the command is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def pool(workers: int, first: Callable[..., None] | None = None, *arguments: Any) -> ProcessPoolExecutor:
    """Processes that leave signals to the command and end with it; ``first(*arguments)`` runs in each before its first task."""
    # Read by the libraries as they are loaded, so it has to stand before a worker starts.
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(first, arguments))


def _start(first: Callable[..., None] | None, arguments: tuple) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()
    if first is not None:
        first(*arguments)


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def count(bytes_each: int, asked: int | None = None) -> int:
    """Workers: as many as asked, else one a core as far as memory holds ``bytes_each`` in each; at least one."""
    if asked is not None:
        return asked
    return max(1, min(cores(), available_memory() // max(1, bytes_each)))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that processes may still take, by the system and the control group (a Slurm job's share); 4 GiB where neither says."""
    known = [n for n in (_system(), _group()) if n is not None]
    return min(known) if known else 4 << 30


def _system() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def _group() -> int | None:
    """What is left of the limit of the control group (version 2) that this process is in."""
    try:
        path = next(line[3:].strip() for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = Path("/sys/fs/cgroup") / path.lstrip("/")
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return None if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, StopIteration, ValueError):
        return None
