"""Reports of a fold while it trains: log, TensorBoard, trackers and pictures."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

from pipeline.config import to_dict
from pipeline.metrics.names import display
from pipeline.training import tracking
from pipeline.training.job import FoldJob
from pipeline.training.journal import Journal
from pipeline.training.previews import preview_batch, preview_panels
from pipeline.training.state import TrainingState

logger = logging.getLogger(__name__)


class Monitor:
    """Reports the progress of a fold; on ranks other than the first it does nothing.

    Args:
        job: what is trained.
        state: before training; the log files of a resumed fold are rewritten from its history.
    """

    def __init__(self, job: FoldJob, state: TrainingState) -> None:
        self.job, self.is_main = job, job.context.is_main
        if not self.is_main:
            return
        config = job.config
        self.journal = Journal(job.folder, config.train.epochs, state.history, job.class_names)
        run = tracking.TrackedRun(
            name=config.name,
            run=job.folder.parent,
            fold=job.fold,
            settings=tracking.flat(to_dict(config)),
            known=None,
        )
        self.trackers = tracking.Trackers(config.train.track, run, job.folder)

    def step(self, state: TrainingState, step: int) -> None:
        """Report that a batch is done.

        Args:
            state: after the batch.
            step: its number in the epoch, counted from 0.
        """
        if self.is_main:
            done = state.epoch * len(self.job.train_loader) + step + 1
            preview_batch(self.job, state.network, done)

    def epoch(self, state: TrainingState) -> None:
        """Report that an epoch is done: log its record, and draw a preview when one is due.

        Args:
            state: after the epoch, whose record is the last of its history.
        """
        if not self.is_main:
            return
        record, train = state.history[-1], self.job.config.train
        logger.info(self.journal.epoch(record))
        self.trackers.metrics(record)
        if self.job.val_loader is None:  # previews are of a held-out case
            return
        due = train.preview_every and state.epoch % train.preview_every == 0
        if due or (train.preview_every and state.epoch == train.epochs):
            self.journal.preview(state.epoch - 1, preview_panels(self.job, state.network))

    def early_stop(self, state: TrainingState) -> None:
        """Report that the training ended before its last epoch, if it did.

        Args:
            state: after the last epoch that was trained.
        """
        train = self.job.config.train
        patience = train.stop.patience
        if patience is None or state.stale < patience or state.epoch >= train.epochs:
            return
        if self.is_main:
            self._note(f"Early stopping triggered at epoch {state.epoch} (patience: {patience})")

    def finish(self, averaged: Mapping[str, float]) -> None:
        """Report that the fold is trained, and pass its best or last model to the trackers.

        Args:
            averaged: validation values of the averaged weights; empty where there are none.
        """
        if not self.is_main:
            return
        if averaged:
            names = self.job.class_names
            values = [f"{display(k, names)}: {v:.4f}" for k, v in averaged.items() if "/" not in k]
            self._note("SWA: " + ", ".join(values))
        self.trackers.model(self.job.files.model_file(self.job.kept))

    def close(self) -> None:
        """Close all files and trackers."""
        if self.is_main:
            self.journal.close()
            self.trackers.close()

    def _note(self, line: str) -> None:
        self.journal.note(line)
        logger.info(line)


@contextlib.contextmanager
def monitored(job: FoldJob, state: TrainingState) -> Iterator[Monitor]:
    """Open a monitor, and close it however the training ends.

    Args:
        job: what is trained.
        state: before training.

    Yields:
        The monitor.
    """
    monitor = Monitor(job, state)
    try:
        yield monitor
    finally:
        monitor.close()
