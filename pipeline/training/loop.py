"""The training loop of every system: named heads, weighted terms, early stopping, exact resumption.

A fold is a sequence of epochs, an epoch one of steps. After each epoch, and after any step when the
process is asked to stop, everything that the rest depends on is saved whole; random draws depend on
(seed, fold, epoch, step or sample) only. So a run that was stopped or killed and started again ends
with the same bits as one that was not.

Several ranks run the same code: the first one writes files, all take the same decisions.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from pipeline.config import Config
from pipeline.inference import models
from pipeline.metrics import better
from pipeline.progress import clock
from pipeline.training import averaging, distributed, freezing, optim
from pipeline.training.job import FoldJob, TrainingError
from pipeline.training.journal import time_left
from pipeline.training.model_files import fold_model, keep_epoch_model, keep_last_model
from pipeline.training.monitor import Monitor, monitored
from pipeline.training.state import (
    RunningMeans,
    TrainingState,
    resume,
    save,
    set_training_progress,
    start,
)
from pipeline.training.validation import labelled_samples, loss_values, validate

logger = logging.getLogger(__name__)


def fit(job: FoldJob) -> TrainingState:
    """Train one fold to its end, from its newest saved state on.

    Writes the model files best_model (or last_model) and, where weights are averaged, swa_model,
    and the state.

    Args:
        job: what is trained.

    Returns:
        The state after the last epoch.

    Raises:
        TrainingError: where the fold cannot go on, as with a loss that is not finite.
        CheckpointError: where the saved state cannot be restored.
        DistributedError: where another rank is gone.
    """
    with job.context.named_errors(f"training fold {job.fold}"):
        job, state = resume(job, start(job))
        with monitored(job, state) as monitor:
            while not is_finished(job.config, state):
                train_epoch(job, state, monitor)
                monitor.epoch(state)
                keep_epoch_model(job, state)
                save(job, state)
            monitor.early_stop(state)
            keep_last_model(job, state)
            monitor.finish(averaging.finish_average(job, state))
        job.context.barrier("finishing the fold")
    return state


def is_finished(config: Config, state: TrainingState) -> bool:
    """Whether nothing is left to train.

    Args:
        config: its epochs and patience.
        state: after an epoch.

    Returns:
        True after the last epoch, or where the monitored value has not improved for
        ``train.stop.patience`` epochs.
    """
    patience = config.train.stop.patience
    return state.epoch >= config.train.epochs or (patience is not None and state.stale >= patience)


def train_epoch(job: FoldJob, state: TrainingState, monitor: Monitor) -> None:
    """Do the rest of an epoch: train, validate, keep the best weights, average, set the rate.

    From the last step to the end of validation nothing in ``state`` changes: a fold that is stopped
    there resumes with the validation.

    Args:
        job: what is trained.
        state: changed in place; its history gains the epoch's record.
        monitor: called after every step.
    """
    config = job.config
    if state.step == 0:
        state.began = time.monotonic()
    rate = _set_learning_rate(config, state)
    _train_steps(job, state, monitor)
    record: dict[str, Any] = {"epoch": state.epoch, "lr": rate, **state.means.result()}
    if job.val_loader is not None and _is_validation_epoch(config, state.epoch):
        record |= _validate(job, state)
        _keep_best(job, state, record[config.train.stop.monitor])
    by_steps = averaging.averages_steps(config, state.epoch)
    if averaging.is_averaging(config, state.epoch) and not by_steps:
        _average(state)
    own_rate = averaging.averaging_rate(config) is not None
    if not (own_rate and averaging.is_averaging(config, state.epoch + 1)):
        optim.step_schedule(state.schedule, _plateau_value(config, record))
    state.epoch, state.step, state.means = state.epoch + 1, 0, RunningMeans()
    record["seconds"] = time.monotonic() - state.began
    state.history.append(record)


def _average(state: TrainingState) -> None:
    """Let the present weights enter the average."""
    assert state.average is not None
    state.average.update_parameters(state.network)


def _train_steps(job: FoldJob, state: TrainingState, monitor: Monitor) -> None:
    """Do the steps of the epoch that are not done yet; ``state.means`` gathers their values."""
    freezing.train_mode(state.network, job.config.train.freeze)
    set_training_progress(state.network, state.epoch, job.config.train.epochs)
    state.optimizer.zero_grad(set_to_none=True)
    job.raise_if_stopped()  # all that is done so far is saved
    _show_progress(job, state, state.step)
    by_steps = averaging.averages_steps(job.config, state.epoch)
    for step, batch in enumerate(job.train_loader.epoch(state.epoch, state.step), state.step):
        is_update = training_step(job, state, step, batch)
        monitor.step(state, step)
        if is_update and by_steps:
            _average(state)
        if is_update:
            _save_if_due(job, state)
        _show_progress(job, state, step + 1)


def training_step(job: FoldJob, state: TrainingState, step: int, batch: Mapping[str, Any]) -> bool:
    """Do one step of training: forward, loss, backward, clip, update.

    Gradients of ``train.accumulate`` batches are summed before the weights change.

    Args:
        job: what is trained.
        state: changed in place.
        step: number of the batch in its epoch, counted from 0.
        batch: ``image`` ``(B, C, *S)``, targets and ids.

    Returns:
        Whether the weights were updated: only then can the state be saved.

    Raises:
        TrainingError: on all ranks, where a loss is not finite on one of them; no weight has
            changed then.
    """
    train = job.config.train
    is_update = (step + 1) % train.accumulate == 0 or step + 1 == len(job.train_loader)
    share = job.train_loader.share(step)
    job.seed_layers(state.epoch, step)
    with _gradient_sync(job, state, is_update):
        with job.autocast():
            outputs = state.forward(job.images(batch))
        loss, terms = job.losses(outputs, job.targets(batch), training=True)
        del outputs  # not needed by backward: frees the deep heads before gradients are allocated
        state.scaler.scale(loss * share / train.accumulate).backward()
    # Only here a step waits for the device (with fp16 once more, in scaler.step): after backward,
    # so that gradients are queued already.
    values = loss_values("train", loss, terms)
    _record_values(job, state, step, batch, values)
    if is_update:
        if train.clip is not None:
            state.scaler.unscale_(state.optimizer)
            torch.nn.utils.clip_grad_norm_(state.network.parameters(), train.clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step = step + 1
    return is_update


def _gradient_sync(
    job: FoldJob, state: TrainingState, is_update: bool
) -> contextlib.AbstractContextManager[None]:
    """Average gradients over the ranks inside, which only the last batch of an update needs."""
    if is_update or job.context.is_single:
        return contextlib.nullcontext()
    return state.forward.no_sync()  # type: ignore[attr-defined]


def _record_values(
    job: FoldJob,
    state: TrainingState,
    step: int,
    batch: Mapping[str, Any],
    values: Mapping[str, float],
) -> None:
    """Add the values of a batch, of all ranks, to the epoch's means."""
    count = labelled_samples(job, batch) if job.train_loader.share(step) else 0
    shares = {name: batch[name].tolist() for name in ("foreground_share", "changed")}
    for ids, weight, found, measured in job.context.all_gather(
        [batch["id"], count, dict(values), shares]
    ):
        _require_finite(found, ids, state.epoch, step)
        state.means.add(weight, found)
        for name, numbers in measured.items() if weight else ():
            state.means.add_valid(name, numbers)


def _require_finite(values: Mapping[str, float], ids: Iterable[str], epoch: int, step: int) -> None:
    if not math.isfinite(values["train_loss"]):
        terms = [
            k[6:] for k, v in values.items() if k.startswith("train/") and not math.isfinite(v)
        ]
        raise TrainingError(
            f"loss is {values['train_loss']} ({', '.join(terms) or 'their sum'}) in epoch"
            f" {epoch + 1}, step {step + 1}, cases {', '.join(ids)}. Lower train.optimizer lr, set"
            " train.clip, or look at these cases."
        )


def _save_if_due(job: FoldJob, state: TrainingState) -> None:
    """Save the state after an update of the weights, when it is due or the process has to stop."""
    with _saved_if_stopped(job, state):
        job.raise_if_stopped()
    every, steps = job.config.train.save_steps, -(-state.step // job.config.train.accumulate)
    if every and steps % every == 0:
        save(job, state)


@contextlib.contextmanager
def _saved_if_stopped(job: FoldJob, state: TrainingState) -> Iterator[None]:
    """Save the state where ``job.raise_if_stopped`` stops the process inside."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        save(job, state)
        logger.info(
            f"Fold {job.fold}: stopped and saved in epoch {state.epoch + 1} after step {state.step}"
            f" of {len(job.train_loader)}"
        )
        raise


def _is_validation_epoch(config: Config, epoch: int) -> bool:
    is_last = epoch + 1 == config.train.epochs
    return is_last or (epoch + 1) % config.train.validate.every == 0


def _validate(job: FoldJob, state: TrainingState) -> Mapping[str, float]:
    _show_progress(job, state, len(job.train_loader), "validating")
    with _saved_if_stopped(job, state):
        distributed.broadcast_buffers(state.network, job.context)
        found = validate(job, state.network)
    if found.unlabelled and not any("val_loss" in old for old in state.history):
        logger.info(
            f"{found.unlabelled} validation patches hold no labelled voxel; they are left out"
        )
    return found.values


def _keep_best(job: FoldJob, state: TrainingState, score: float) -> None:
    """Keep the monitored value if it is the best so far, and its weights; a NaN never is.

    The weights are not written where the fold keeps the last ones.
    """
    sign = 1 if direction(job.config.train.stop.monitor) == "lower" else -1
    is_best = state.best_score is None or sign * score < sign * state.best_score
    if not (math.isfinite(score) and is_best):
        state.stale += job.config.train.validate.every
        return
    state.best_score, state.best_epoch, state.stale = score, state.epoch, 0
    if job.context.is_main and job.kept == "best":
        model = fold_model(job, state.network, "best", state.epoch, score)
        models.save_model(job.files.model_file("best"), model)


def direction(monitor: str) -> str:
    """Whether a lower or a higher value is better.

    Args:
        monitor: ``val_loss``, ``val_dice`` or another value of validation.

    Returns:
        ``lower`` or ``higher``.
    """
    name = monitor.removeprefix("val_")
    return "lower" if name == "loss" else better(name)


def _plateau_value(config: Config, record: Mapping[str, Any]) -> float:
    """The monitored value, negated where higher is better, for the plateau schedule."""
    value = record.get(config.train.stop.monitor, float("nan"))
    return value if direction(config.train.stop.monitor) == "lower" else -value


def _set_learning_rate(config: Config, state: TrainingState) -> float:
    """Set and return this epoch's rate: the schedule's, or that of the averaging phase."""
    rate = averaging.averaging_rate(config)
    if rate is not None and averaging.is_averaging(config, state.epoch):
        optim.set_rates(state.optimizer, rate)
    return state.optimizer.param_groups[0]["lr"]


def _show_progress(job: FoldJob, state: TrainingState, step: int, doing: str = "") -> None:
    """Show how far the fold is after ``step`` steps of an epoch, and the time that is left."""
    epochs, steps = job.config.train.epochs, len(job.train_loader)
    left = _seconds_left(state, epochs, step / steps)
    more = f", about {clock(left)} left" if left >= 0.5 else ""
    text = f"epoch {state.epoch + 1}/{epochs}{more}, {doing or f'step {step}/{steps}'}"
    job.progress(state.epoch * steps + step, epochs * steps, text)


def _seconds_left(state: TrainingState, epochs: int, share: float) -> float:
    """Seconds until the last epoch ends, ``share`` of the present one done; NaN if unknown."""
    spent = time.monotonic() - state.began
    if state.history:
        past = time_left([record["seconds"] for record in state.history], epochs)
        return past - min(spent, past / (epochs - state.epoch))
    return spent / share * (epochs - share) if share else math.nan
