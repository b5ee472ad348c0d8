"""Worker processes for work on whole cases.

One thread in each, as many as cores and memory allow, gone when the command is gone.
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
    """Create a pool of worker processes that ignore stop signals and end with the command.

    Args:
        workers: number of processes.
        first: runs in each before its first task; None: nothing does.
        *arguments: arguments of ``first``.

    Returns:
        An executor of single-threaded processes in which the plugins of this one are loaded.
    """
    # The libraries read this as they are loaded, so it is set before a worker starts.
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    return ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(plugins.carried(), first, arguments),
    )


def _start(_plugins: plugins.Carried, first: Callable[..., None] | None, arguments: tuple) -> None:
    # Plugins are loaded where they are unpickled; they come first because the arguments after them
    # may hold their classes.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if first is not None:
        first(*arguments)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def count(bytes_each: int, asked: int | None = None) -> int:
    """Number of worker processes to start.

    Args:
        bytes_each: memory that each takes, in bytes.
        asked: number that the user wants; None: one per core, as far as memory allows.

    Returns:
        ``asked``, else at least 1.
    """
    if asked is not None:
        return asked
    return max(1, min(cores(), available_memory() // max(1, bytes_each)))
