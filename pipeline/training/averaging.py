"""Averaged weights (SWA, EMA) over epochs or steps: which, learning rate and model file.

Source: SWA, Izmailov et al., UAI 2018; torch.optim.swa_utils does the averaging.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.optim.swa_utils import update_bn

from pipeline.config import Config
from pipeline.inference import models
from pipeline.training import freezing
from pipeline.training.job import FoldJob
from pipeline.training.model_files import fold_model
from pipeline.training.state import TrainingState, set_training_progress
from pipeline.training.validation import validate


def is_averaging(config: Config, epoch: int) -> bool:
    """Whether the weights of an epoch enter the average: at its end, or after each of its steps.

    Args:
        config: ``train.average.start`` is the first epoch whose weights do.
        epoch: counted from 0.

    Returns:
        False where the config has no average.
    """
    return config.train.average is not None and epoch >= config.train.average.start


def averages_steps(config: Config, epoch: int) -> bool:
    """Whether the weights after each optimiser step of an epoch enter the average.

    Args:
        config: ``train.average.by`` and ``start``.
        epoch: counted from 0.

    Returns:
        False where only the weights at the end of epochs do.
    """
    average = config.train.average
    return average is not None and average.by == "step" and is_averaging(config, epoch)


def averaging_rate(config: Config) -> float | None:
    """The learning rate while weights are averaged.

    Args:
        config: ``train.average.lr``.

    Returns:
        The rate; None where the schedule goes on.
    """
    return config.train.average.lr if config.train.average is not None else None


def finish_average(job: FoldJob, state: TrainingState) -> dict[str, float]:
    """Recompute BatchNorm statistics of the averaged network, validate it, and write ``swa_model``.

    Without held-out cases nothing is validated.

    Args:
        job: what is trained.
        state: after its last epoch.

    Returns:
        Validation values of the averaged weights; empty where nothing was averaged or validated.
    """
    average = state.average
    if average is None or int(average.n_averaged) == 0:
        return {}
    steps = job.config.train.epochs * len(job.train_loader)
    job.progress(steps, steps, "validating averaged weights")
    if any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in average.modules()):
        set_training_progress(average, state.epoch - 1, job.config.train.epochs)
        with freezing.kept_statistics(average.module, job.config.train.freeze):
            update_bn(_training_images(job, state.epoch), average)
    held_out = job.val_loader is not None
    values = dict(validate(job, average.module).values) if held_out else {}
    score = values.get(job.config.train.stop.monitor)
    if job.context.is_main:
        model = fold_model(job, average.module, "swa", state.epoch - 1, score)
        models.save_model(job.files.model_file("swa"), model)
    return values


def _training_images(job: FoldJob, epoch: int) -> Iterator[torch.Tensor]:
    """Yield the images of a training epoch, and seed random layers before each batch.

    Every rank yields all of them, so that their statistics are those of a single process.
    """
    for step, batch in enumerate(job.train_loader.epoch(epoch, whole=True)):
        job.raise_if_stopped()
        job.seed_layers(epoch, step)
        yield job.images(batch)
