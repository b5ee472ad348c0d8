"""Model files of a fold: the best, the averaged, and those kept every few epochs."""

from __future__ import annotations

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
        kind: ``best``, ``swa`` or ``epoch``.
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
