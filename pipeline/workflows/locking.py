"""The lock of a run folder: held while a run is planned, prepared or summed up."""

from __future__ import annotations

import contextlib
import logging

from pipeline.files import lock
from pipeline.runs import RunFolder
from pipeline.stopping import stop

logger = logging.getLogger(__name__)

SILENT = 3.0
"""Seconds of waiting for another process before a line is logged."""


def run_lock(run: RunFolder) -> contextlib.AbstractContextManager[None]:
    """Lock a run folder for this process alone, to plan, prepare or summarise the run.

    Waits for other processes that do, and stops waiting on request.

    Args:
        run: the run folder; it is created.

    Returns:
        A context manager.
    """
    warned = False

    def wait(busy: lock.BusyError, seconds: float) -> None:
        nonlocal warned
        stop.raise_if_stopped()
        if seconds > SILENT and not warned:
            warned = True
            logger.info(
                f"Waiting: {run.path} is being prepared or summed up by"
                f" {busy.owner or 'another process'}"
            )

    return lock.held(run.lock, wait)
