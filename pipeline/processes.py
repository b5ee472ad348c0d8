"""Worker processes for work on whole cases: one thread in each, as many as cores and memory allow,
gone when the command is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from pipeline import plugins
from pipeline.files.limits import available_memory, cores

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def pool(
    workers: int, first: Callable[..., None] | None = None, *arguments: Any
) -> ProcessPoolExecutor:
    """Processes that leave signals to the command and end with it; ``first(*arguments)`` runs in
    each before its first task.
    """
    # Read by the libraries as they are loaded, so it has to stand before a worker starts.
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    return ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(plugins.carried(), first, arguments),
    )


def _start(_plugins: plugins.Carried, first: Callable[..., None] | None, arguments: tuple) -> None:
    # Plugins come first, because what follows them may be theirs: they are loaded where they are
    # unpickled.
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
    """Workers: as many as asked, else one a core as far as memory holds ``bytes_each`` in each; at
    least one.
    """
    if asked is not None:
        return asked
    return max(1, min(cores(), available_memory() // max(1, bytes_each)))
