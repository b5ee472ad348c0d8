"""Model files of a fold: the best, the last, the averaged, and those kept every few epochs."""

from __future__ import annotations

import math

import torch

from pipeline import plugins
from pipeline.config import to_dict
from pipeline.inference import models
from pipeline.records import Checkpoint
from pipeline.training.job import FoldJob
from pipeline.training.state import TrainingState


def fold_model(
    job: FoldJob, network: torch.nn.Module, kind: str, epoch: int, score: float | None
) -> Checkpoint:
    """Build the content of a model file.

    Args:
        job: what was trained.
        network: whose weights it holds.
        kind: ``best``, ``last``, ``swa`` or ``epoch``.
        epoch: the last one that the weights have seen, counted from 0.
        score: the monitored value, None where it is not known.

    Returns:
        Weights and header.
    """
    return Checkpoint(
        config=to_dict(job.config),
        channels=job.channels,
        fold=job.fold,
        epoch=epoch,
        score=score,
        weights={k: v.detach() for k, v in network.state_dict().items()},
        kind=kind,
        trained_on=job.trained_on,
        plugins=tuple(plugin.record for plugin in plugins.used_by(job.config)),
    )


def keep_last_model(job: FoldJob, state: TrainingState) -> None:
    """Write the last weights where the fold keeps those, on the first rank.

    A process that is killed before or within it writes the same file when it comes again: the state
    of the last epoch is saved by then.

    Args:
        job: what was trained.
        state: after its last epoch.
    """
    if job.context.is_main and job.kept == "last":
        score = state.history[-1].get(job.config.train.stop.monitor)
        known = score is not None and math.isfinite(score)
        model = fold_model(job, state.network, "last", state.epoch - 1, score if known else None)
        models.save_model(job.files.model_file("last"), model)


def keep_epoch_model(job: FoldJob, state: TrainingState) -> None:
    """Write a model file of its own every ``train.keep_every`` epochs, on the first rank.

    To be called before the state of the epoch is saved, so that a killed process loses none.

    Args:
        job: what is trained.
        state: after an epoch.
    """
    every = job.config.train.keep_every
    if job.context.is_main and every and state.epoch % every == 0:
        score = state.history[-1].get(job.config.train.stop.monitor)
        model = fold_model(job, state.network, "epoch", state.epoch - 1, score)
        models.save_model(job.files.epoch_model(state.epoch), model)
