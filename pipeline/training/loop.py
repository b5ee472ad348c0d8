"""The training loop of every system: named heads, weighted terms, averaged weights, early stopping,
exact resumption.

A fold is a sequence of epochs, an epoch one of steps. After each epoch, and after any step when the
process is asked to stop, everything that the rest depends on is saved whole; random draws depend on
(seed, fold, epoch, step or sample) only. So a run that was stopped or killed and started again ends
with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from pipeline import colours, files, plugins
from pipeline.config import Config, to_dict
from pipeline.data.loaders import Loader
from pipeline.data.sampling import seed_of
from pipeline.inference import models
from pipeline.losses import WeightedSum
from pipeline.metrics import better
from pipeline.metrics.names import display, from_json
from pipeline.networks import HeadedNet
from pipeline.records import METRICS_VERSION, Checkpoint
from pipeline.runs import FoldFolder
from pipeline.scoring.patches import PatchRules, PatchScores, labelled, measure
from pipeline.tasks import TASKS
from pipeline.training import checkpoint, distributed, optim, tracking
from pipeline.training.distributed import DistributedContext
from pipeline.training.journal import Journal, clock, time_left

logger = logging.getLogger(__name__)

DROPOUT = 0
"""Last word of the seed of a step's random layers, plus the rank: the samples' augmentation has
(seed, fold, epoch, position) for itself.
"""

PREVIEWED = 4
"""Samples in ``training_preview.jpg``, a row each: source, prediction, target."""


SHOWN = 300
"""Letters of another library's words that a message shows."""


class TrainingError(Exception):
    """A fold cannot go on; the message names the cases and the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldJob:
    """Everything that one fold's training is given.

    ``progress(done, total, text)`` shows how many steps of all epochs are done.

    ``raise_if_stopped`` raises when any process of the ``context`` was asked to stop: a
    BaseException that is no Exception, so that nothing takes it for a fault. All ranks call it at
    the same points of their work.
    """

    config: Config
    fold: int
    folder: Path
    device: str
    network: torch.nn.Module
    channels: tuple[int, int]
    losses: WeightedSum
    train: Loader
    val: Loader
    raise_if_stopped: Callable[[], None]
    progress: Callable[[int, int, str], object]
    context: DistributedContext = field(default_factory=DistributedContext)
    version: int = METRICS_VERSION
    """Metrics version by which this fold validates."""
    spacings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Millimetres between voxels by held-out case, where a metric of ``train.validate`` measures
    lengths and all files carry a unit.
    """
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    """What the training data looked like, for the header of model files
    (``Checkpoint.trained_on``).
    """

    @property
    def class_names(self) -> dict[int, str]:
        """Names of the classes, where the data set gives any."""
        return from_json(self.trained_on.get("class_names"))


class RunningMeans:
    """Running means by name, weighted by the number of samples; NaN values of ``add_valid`` are
    left out.
    """

    def __init__(
        self, sums: Mapping[str, float] | None = None, counts: Mapping[str, float] | None = None
    ) -> None:
        self.sums: dict[str, float] = dict(sums or {})
        self.counts: dict[str, float] = dict(counts or {})

    def add(self, count: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + count * value
            self.counts[key] = self.counts.get(key, 0.0) + count

    def add_valid(self, key: str, values: Iterable[float]) -> None:
        for value in values:
            if math.isfinite(value):
                self.add(1, {key: value})

    def result(self) -> dict[str, float]:
        """The means; NaN where nothing had a weight."""
        return {k: self.sums[k] / self.counts[k] if self.counts[k] else math.nan for k in self.sums}


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Values of one validation by name, and how many patches were left out because they hold no
    labelled voxel.
    """

    values: Mapping[str, float]
    unlabelled: int


@dataclass(slots=True, kw_only=True)
class State:
    """What changes while a fold trains, and nothing else: it is what a checkpoint holds.

    ``epoch`` counts whole epochs, ``step`` the batches of the next one that the weights have seen,
    always up to an optimiser step; ``means`` are those batches' values. ``began`` is the clock's
    time at which that epoch would have begun without interruptions, ``spent`` the seconds of
    earlier processes in all.
    """

    network: torch.nn.Module
    forward: Callable[[torch.Tensor], Mapping[str, torch.Tensor]]
    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    epoch: int = 0
    best_score: float | None = None
    best_epoch: int = -1
    stale: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    means: RunningMeans = field(default_factory=RunningMeans)
    began: float = 0.0
    spent: float = 0.0


def fit(job: FoldJob) -> State:
    """Train one fold to its end, from where it stands.

    Leaves best_model, swa_model (if averaging began) and checkpoint_latest.

    Of several ranks, which all do the same, the first writes.
    """
    with job.context.named_errors(f"training fold {job.fold}"):
        job, state = _resume(job, _start(job))
        if job.context.is_main:
            _fit(job, state)
        else:
            _follow(job, state)
        job.context.wait("finishing the fold")
    return state


def _follow(job: FoldJob, state: State) -> None:
    """What a rank that does not write does: every step and every decision, and nothing else."""
    while not finished(job.config, state):
        _epoch(job, state)
        _save(job, state)
    _finish_average(job, state)


def _fit(job: FoldJob, state: State) -> None:
    journal = Journal(job.folder, job.config.train.epochs, state.history, job.class_names)
    tracked = tracking.TrackedRun(
        name=job.config.name,
        run=job.folder.parent,
        fold=job.fold,
        settings=tracking.flat(to_dict(job.config)),
        known=None,
    )
    trackers = tracking.Trackers(job.config.train.track, tracked, job.folder)
    try:
        while not finished(job.config, state):
            record = _epoch(job, state)
            logger.info(journal.epoch(record))
            trackers.metrics(record)
            _preview(job, state, journal)
            _keep(job, state)
            _save(job, state)
        if state.stale >= job.config.train.stop.patience and state.epoch < job.config.train.epochs:
            logger.info(
                _note(
                    journal,
                    f"Early stopping triggered at epoch {state.epoch} (patience:"
                    f" {job.config.train.stop.patience})",
                )
            )
        record = _finish_average(job, state)
        if record:
            values = [
                f"{display(k, job.class_names)}: {v:.4f}" for k, v in record.items() if "/" not in k
            ]
            logger.info(_note(journal, "SWA: " + ", ".join(values)))
        trackers.model(FoldFolder(job.folder).model_file("best"))
    finally:
        journal.close()
        trackers.close()


def _keep(job: FoldJob, state: State) -> None:
    """A model file of its own every ``train.keep_every`` epochs; written before the epoch counts as
    done, so a kill loses none.
    """
    every = job.config.train.keep_every
    if every and state.epoch % every == 0:
        model = _model(
            job,
            state.network,
            "epoch",
            state.epoch - 1,
            state.history[-1].get(job.config.train.stop.monitor),
        )
        models.save_model(FoldFolder(job.folder).epoch_model(state.epoch), model)


def finished(config: Config, state: State) -> bool:
    """All epochs are done, or the monitored value has not improved for ``patience`` epochs."""
    return state.epoch >= config.train.epochs or state.stale >= config.train.stop.patience


def _start(job: FoldJob) -> State:
    train = job.config.train
    network = job.network.to(job.device)
    if train.sync_batchnorm:
        network = distributed.with_sync_batchnorm(network, job.context)
    if train.channels_last:
        network = network.to(memory_format=_format(job.config.data.dims))  # pyright: ignore[reportCallIssue] - torch's stub lacks it
    optimizer, schedule = optim.make(train, network)
    average = None
    if train.average is not None:
        decay = train.average.decay
        average = AveragedModel(
            network, multi_avg_fn=None if decay is None else get_ema_multi_avg_fn(decay)
        )
    idle = isinstance(network, HeadedNet) and bool(
        set(network.heads) - {term.head for term in job.losses.terms.values()}
    )
    forward = distributed.parallel(network, job.context, unused=idle)
    return State(
        network=network,
        forward=torch.compile(forward) if train.compile else forward,
        optimizer=optimizer,
        schedule=schedule,
        scaler=torch.amp.GradScaler(
            job.device, enabled=train.amp == "fp16" and job.device == "cuda"
        ),
        average=average,
    )


def _epoch(job: FoldJob, state: State) -> dict[str, Any]:
    """What is left of the epoch: train, validate, remember the best, step average and schedule.

    Returns the epoch's record.

    From the last step to the end of validation nothing in ``state`` changes: stopped there, the
    epoch goes on with its validation.
    """
    if state.step == 0:
        state.began = time.monotonic()
    rate = _learning_rate(job.config, state)
    _train(job, state)
    record: dict[str, Any] = {"epoch": state.epoch, "lr": rate, **state.means.result()}
    last = state.epoch + 1 == job.config.train.epochs
    if last or (state.epoch + 1) % job.config.train.validate.every == 0:
        _show(job, state, len(job.train), "validating")
        with _saved_if_stopped(job, state):
            distributed.broadcast_buffers(state.network, job.context)
            found = validate(job, state.network)
        record |= found.values
        if found.unlabelled and not any("val_loss" in old for old in state.history):
            logger.info(
                f"{found.unlabelled} validation patches hold no labelled voxel; they are left out"
            )
        _judge(job, state, record)
    if _averaging(job.config, state.epoch):
        assert state.average is not None
        state.average.update_parameters(state.network)
    if not _averaging(job.config, state.epoch + 1) or _swa_lr(job.config) is None:
        optim.step(state.schedule, _lower(job.config, record))
    state.epoch, state.step, state.means = state.epoch + 1, 0, RunningMeans()
    record["seconds"] = time.monotonic() - state.began
    state.history.append(record)
    return record


def _train(job: FoldJob, state: State) -> None:
    """The steps of the epoch that are not done yet; ``state.means`` gathers their values."""
    train = job.config.train
    state.network.train()
    _tell_progress(state.network, state.epoch, train.epochs)
    state.optimizer.zero_grad(set_to_none=True)
    job.raise_if_stopped()  # what is done so far is on the disk
    _show(job, state, state.step)
    for step, batch in enumerate(job.train.epoch(state.epoch, state.step), state.step):
        _seed_layers(job, state.epoch, step)
        whole = (step + 1) % train.accumulate == 0 or step + 1 == len(job.train)
        with (
            contextlib.nullcontext() if whole or job.context.is_single else state.forward.no_sync()
        ):  # type: ignore[attr-defined]
            _backward(job, state, step, batch)
        if whole:
            _step(train.clip, state)
            state.step = step + 1
        if job.context.is_main:
            _preview_step(job, state, step)
        if whole:
            _step_done(job, state)
        _show(job, state, step + 1)


def _show(job: FoldJob, state: State, step: int, doing: str = "") -> None:
    """How far the fold is after ``step`` steps of an epoch, and about how long the epochs take from
    here.
    """
    epochs, steps = job.config.train.epochs, len(job.train)
    left = _seconds_left(state, epochs, step / steps)
    more = f", about {clock(left)} left" if left >= 0.5 else ""
    text = f"epoch {state.epoch + 1}/{epochs}{more}, {doing or f'step {step}/{steps}'}"
    job.progress(state.epoch * steps + step, epochs * steps, text)


def _seconds_left(state: State, epochs: int, share: float) -> float:
    """Seconds until the last epoch ends, at a ``share`` of the present one; NaN where nothing is
    known yet.
    """
    spent = time.monotonic() - state.began
    if state.history:
        past = time_left([record["seconds"] for record in state.history], epochs)
        return past - min(spent, past / (epochs - state.epoch))
    return spent / share * (epochs - share) if share else math.nan


def _backward(job: FoldJob, state: State, step: int, batch: Mapping[str, Any]) -> None:
    """Add the gradient of one batch, and note its values.

    Raises TrainingError, on all ranks, where a loss is not finite on one.
    """
    with _autocast(job):
        outputs = state.forward(_image(batch, job))
    total, terms = job.losses(outputs, _targets(batch, job), training=True)
    del outputs  # not needed by backward: frees the deep heads before the gradients are allocated
    share = job.train.share(step)
    values = {"train_loss": total.item()} | {
        f"train/{k}": float(v) for k, v in terms.items()
    }  # waits for the device
    shares = {name: batch[name].tolist() for name in ("foreground_share", "changed")}
    for ids, count, found, places in job.context.all_gather(
        [batch["id"], _weight(job, batch) if share else 0, values, shares]
    ):
        _require_finite(found, ids, state.epoch, step)
        state.means.add(count, found)
        for name, numbers in places.items() if count else ():
            state.means.add_valid(name, numbers)
    state.scaler.scale(total * share / job.config.train.accumulate).backward()


def _require_finite(values: Mapping[str, float], ids: Iterable[str], epoch: int, step: int) -> None:
    if not math.isfinite(values["train_loss"]):
        bad = (
            ", ".join(
                k[6:] for k, v in values.items() if k.startswith("train/") and not math.isfinite(v)
            )
            or "their sum"
        )
        raise TrainingError(
            f"loss is {values['train_loss']} ({bad}) in epoch {epoch + 1}, step {step + 1}, cases"
            f" {', '.join(ids)}. Lower train.optimizer lr, set train.clip, or look at these cases."
        )


def _seed_layers(job: FoldJob, epoch: int, step: int) -> None:
    torch.manual_seed(seed_of(job.config.seed, job.fold, epoch, step, DROPOUT + job.context.rank))


def _step_done(job: FoldJob, state: State) -> None:
    """Between two optimiser steps, the only place within an epoch's training where the state is
    whole: save it when due, or to stop.
    """
    with _saved_if_stopped(job, state):
        job.raise_if_stopped()
    every, steps = job.config.train.save_steps, -(-state.step // job.config.train.accumulate)
    if every and steps % every == 0:
        _save(job, state)


@contextlib.contextmanager
def _saved_if_stopped(job: FoldJob, state: State) -> Iterator[None]:
    """Where ``job.raise_if_stopped`` stops the process inside, the state is saved first, in the
    middle of its epoch.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException:
        _save(job, state)
        logger.info(
            f"Fold {job.fold}: stopped and saved in epoch {state.epoch + 1} after step {state.step}"
            f" of {len(job.train)}"
        )
        raise


def _tell_progress(network: torch.nn.Module, epoch: int, epochs: int) -> None:
    """Tell parts with a schedule of their own (DropBlock) the share of the training that is done
    when ``epoch`` begins, at the last 1.
    """
    for module in network.modules():
        progress = getattr(module, "progress", None)
        if callable(progress):
            progress(epoch / max(epochs - 1, 1))


def _step(clip: float | None, state: State) -> None:
    if clip is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def validate(job: FoldJob, network: torch.nn.Module) -> Validation:
    """Loss, its terms and the metrics of ``train.validate`` over the fixed patches of the held-out
    cases.

    Losses are means over the patches that hold a labelled voxel, metrics are :class:`PatchScores`.
    Raises TrainingError, on all ranks, where no patch holds a labelled voxel.
    """
    network.eval()
    found = []
    rules = PatchRules(
        config=job.config, version=job.version, spacings=job.spacings, fail=_refuse_answer
    )
    for batch in job.val.epoch(-1):
        if job.context.is_single:  # with others, all have to ask at the same point
            job.raise_if_stopped()
        with _autocast(job):
            outputs = network(_image(batch, job))
        total, terms = job.losses(outputs, _targets(batch, job), training=False)
        values = {"val_loss": total.item()} | {f"val/{k}": float(v) for k, v in terms.items()}
        found.append(
            [_weight(job, batch), len(batch["id"]), values, measure(rules, outputs["main"], batch)]
        )
    means, patches, unlabelled = RunningMeans(), PatchScores(rules), 0
    for one in itertools.zip_longest(
        *job.context.all_gather(found)
    ):  # as dealt: batch 0 to rank 0, batch 1 to rank 1, ...
        for weight, count, values, scores in (batch for batch in one if batch is not None):
            means.add(weight, values)
            patches.add(scores)
            unlabelled += count - weight
    if not any(means.counts.values()):
        raise TrainingError(
            f"none of the {unlabelled} validation patches of fold {job.fold} holds a labelled"
            " voxel, so there is nothing to validate on. Raise train.validate.per_case or"
            " data.patch.size, or look at data.ignore_label."
        )
    return Validation(values={**means.result(), **patches.result()}, unlabelled=unlabelled)


def _weight(job: FoldJob, batch: Mapping[str, Any]) -> int:
    """Samples of a batch that have a say in means: a wholly ignored one has no loss (in metrics
    version 1 its 0 counts).
    """
    return len(batch["id"]) if job.version < 2 else labelled(job.config, batch)


def _refuse_answer(case_id: str) -> None:
    raise TrainingError(
        f"the network's answer to a patch of {case_id} is not finite. Lower train.optimizer lr or"
        " set train.clip."
    )


def _judge(job: FoldJob, state: State, record: Mapping[str, Any]) -> None:
    """Keep the weights if the monitored value is the best so far; a NaN never is."""
    monitor = job.config.train.stop.monitor
    score = record[monitor]
    sign = 1 if direction(monitor) == "lower" else -1
    if math.isfinite(score) and (
        state.best_score is None or sign * score < sign * state.best_score
    ):
        state.best_score, state.best_epoch, state.stale = score, state.epoch, 0
        if job.context.is_main:
            models.save_model(
                FoldFolder(job.folder).model_file("best"),
                _model(job, state.network, "best", state.epoch, score),
            )
    else:
        state.stale += job.config.train.validate.every


def direction(monitor: str) -> str:
    """Whether a lower or a higher value of ``val_loss``, ``val_dice``, ... is better."""
    name = monitor.removeprefix("val_")
    return "lower" if name == "loss" else better(name)


def _lower(config: Config, record: Mapping[str, Any]) -> float:
    """The monitored value, negated where higher is better, for the plateau schedule."""
    value = record.get(config.train.stop.monitor, float("nan"))
    return value if direction(config.train.stop.monitor) == "lower" else -value


def _averaging(config: Config, epoch: int) -> bool:
    return config.train.average is not None and epoch >= config.train.average.start


def _swa_lr(config: Config) -> float | None:
    return config.train.average.lr if config.train.average is not None else None


def _learning_rate(config: Config, state: State) -> float:
    """Set and return this epoch's rate: the schedule's, or the averaging phase's own."""
    lr = _swa_lr(config)
    if lr is not None and _averaging(config, state.epoch):
        for group in state.optimizer.param_groups:
            group["lr"] = lr
    return state.optimizer.param_groups[0]["lr"]


def _finish_average(job: FoldJob, state: State) -> dict[str, float]:
    """Recompute BatchNorm statistics where there are any, validate and write swa_model; its values,
    none where there is no average.
    """
    path = FoldFolder(job.folder).model_file("swa")
    if state.average is None or int(state.average.n_averaged) == 0:
        return {}
    average = state.average
    steps = job.config.train.epochs * len(job.train)
    job.progress(steps, steps, "validating averaged weights")
    if any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in average.modules()):
        _tell_progress(average, state.epoch - 1, job.config.train.epochs)
        update_bn(_images(job, state.epoch), average)
    record = dict(validate(job, average.module).values)
    score = record[job.config.train.stop.monitor]
    if job.context.is_main:
        models.save_model(path, _model(job, average.module, "swa", state.epoch - 1, score))
    return record


def _images(job: FoldJob, epoch: int) -> Iterator[torch.Tensor]:
    """Images of a training epoch, each batch with its own draws: a loader that is made anew takes
    some for itself.

    Every rank sees all of them, so that their statistics are those of one process.
    """
    for step, batch in enumerate(job.train.epoch(epoch, whole=True)):
        job.raise_if_stopped()
        _seed_layers(job, epoch, step)
        yield _image(batch, job)


def _note(journal: Journal, line: str) -> str:
    journal.note(line)
    return line


def _model(
    job: FoldJob, network: torch.nn.Module, kind: str, epoch: int, score: float | None
) -> Checkpoint:
    weights = {k: v.detach() for k, v in network.state_dict().items()}
    return Checkpoint(
        config=to_dict(job.config),
        channels=job.channels,
        fold=job.fold,
        epoch=epoch,
        score=score,
        weights=weights,
        kind=kind,
        trained_on=job.trained_on,
        plugins=tuple(plugin.record for plugin in plugins.used_by(job.config)),
    )


def _save(job: FoldJob, state: State) -> None:
    """The first rank writes the state; the others wait, or their end would be the end of all in the
    middle of it.
    """
    if job.context.is_main:
        _write_state(job, state)
    job.context.wait("saving the state")


def _write_state(job: FoldJob, state: State) -> None:
    tensors, rest = checkpoint.flatten_optimizer(state.optimizer.state_dict())
    tensors |= {f"network/{k}": v for k, v in state.network.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average/{k}": v for k, v in state.average.state_dict().items()}
    facts = {
        "epoch": state.epoch,
        "best_score": state.best_score,
        "best_epoch": state.best_epoch,
        "stale": state.stale,
        "history": state.history,
        "step": state.step,
        "means": {"sums": state.means.sums, "counts": state.means.counts},
        "seconds": time.monotonic() - state.began if state.step else 0.0,
        "optimizer": rest,
        "schedule": _plain(state.schedule.state_dict()),
        "scaler": state.scaler.state_dict(),
        "metrics_version": job.version,
    }
    checkpoint.save_state(FoldFolder(job.folder).states, (state.epoch, state.step), tensors, facts)


def _plain(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's state without what JSON cannot hold; SequentialLR keeps its parts' states in a
    list.
    """
    return {
        k: [_plain(s) for s in v] if k == "_schedulers" else v
        for k, v in schedule.items()
        if not callable(v) and k != "anneal_func"
    }


def _resume(job: FoldJob, state: State) -> tuple[FoldJob, State]:
    """The state that was saved, and the job by that state's metrics version; both as they are where
    nothing was saved.
    """
    folder = FoldFolder(job.folder).states
    loaded = checkpoint.load_fold(folder)
    if loaded is None:
        return job, state
    tensors, facts = loaded
    models.load_weights(
        state.network, checkpoint.with_prefix("network/", tensors), f"{folder}: network"
    )
    if state.average is not None:
        models.load_weights(
            state.average, checkpoint.with_prefix("average/", tensors), f"{folder}: average"
        )
    try:
        _resume_rates(state, tensors, facts)
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        words = f"{type(error).__name__}: {error}"[:SHOWN]
        raise models.CheckpointError(
            f"{folder}: optimizer or schedule of the newest state cannot be continued ({words})."
            f" {checkpoint.STATE_SUGGESTION}"
        ) from None
    for name in ("epoch", "best_score", "best_epoch", "stale", "history"):
        setattr(state, name, facts[name])
    if facts.get("step"):  # states of before steps were counted stand at the end of an epoch
        state.step, state.means, state.began = (
            facts["step"],
            RunningMeans(**facts["means"]),
            time.monotonic() - facts["seconds"],
        )
    state.spent = sum(record["seconds"] for record in state.history) + facts.get("seconds", 0.0)
    logger.info(
        f"Fold {job.fold}: continuing after epoch {state.epoch}"
        + (f" and step {state.step} of the next" if state.step else "")
    )
    return dataclasses.replace(job, version=facts.get("metrics_version", 1)), state


def _resume_rates(
    state: State, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
) -> None:
    """Optimiser, schedule and scaler as they were saved. Raises anything for a state of others."""
    restored = checkpoint.restore_optimizer(tensors, facts["optimizer"])
    shapes = [p.shape for group in state.optimizer.param_groups for p in group["params"]]
    for index, entry in restored["state"].items():
        wrong = [
            k
            for k, v in entry.items()
            if isinstance(v, torch.Tensor) and v.ndim and v.shape != shapes[index]
        ]
        if wrong:
            raise ValueError(
                f"{wrong[0]} of weight {index} has the shape {list(entry[wrong[0]].shape)}, not"
                f" {list(shapes[index])}"
            )
    _require_alike(
        "optimizer", facts["optimizer"]["groups"], state.optimizer.state_dict()["param_groups"]
    )
    _require_alike("schedule", facts["schedule"], _plain(state.schedule.state_dict()))
    _require_alike("scaler", facts["scaler"], state.scaler.state_dict())
    state.optimizer.load_state_dict(restored)
    state.schedule.load_state_dict(facts["schedule"])
    state.scaler.load_state_dict(facts["scaler"])


def _require_alike(where: str, saved: Any, present: Any) -> None:
    """Raise ValueError where a saved setting is of another kind than the present one; keys may come
    and go between versions of torch.
    """
    if isinstance(present, Mapping) and isinstance(saved, Mapping):
        for key in set(saved) & set(present):
            _require_alike(f"{where}.{key}", saved[key], present[key])
    elif isinstance(present, list | tuple) and isinstance(saved, list | tuple):
        if where.endswith(".params") and len(saved) != len(present):
            raise ValueError(f"{where} has {len(saved)} entries, not {len(present)}")
        for n, (one, other) in enumerate(zip(saved, present, strict=False)):
            _require_alike(f"{where}.{n}", one, other)
    elif (
        None not in (saved, present)
        and not (_is_number(saved) and _is_number(present))
        and type(saved) is not type(present)
    ):
        raise ValueError(f"{where} is {type(saved).__name__}, not {type(present).__name__}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _preview(job: FoldJob, state: State, journal: Journal) -> None:
    every = job.config.train.preview_every
    if every and (state.epoch % every == 0 or state.epoch == job.config.train.epochs):
        journal.preview(state.epoch - 1, preview_panels(job, state.network))


def _preview_step(job: FoldJob, state: State, step: int) -> None:
    """``previews/training_preview.jpg`` of a fixed training batch every ``train.preview_steps``
    steps, counted over all epochs.
    """
    every = job.config.train.preview_steps
    done = state.epoch * len(job.train) + step + 1
    if not every or done % every or job.config.task != "image":
        return
    # Without a gradient, in evaluation mode and by a generator of its own: the training that goes
    # on must not notice.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        batch = _fixed_batch(job)
        state.network.eval()
        answer = state.network(_image(batch, job))["main"].float().cpu().numpy()
        state.network.train()
    target = batch[next(iter(job.config.targets))].numpy()
    strips = zip(batch["image"].numpy(), answer, target, strict=True)
    rows = [
        np.concatenate([colours.rgb(_shown(_middle(p), image)) for p in (image, *rest)], axis=1)
        for image, *rest in strips
    ]
    picture = colours.to_bytes(np.concatenate(rows, axis=0))
    files.write(
        FoldFolder(job.folder).previews / "training_preview.jpg", np.moveaxis(picture, -1, 0)
    )


def _fixed_batch(job: FoldJob) -> Mapping[str, Any]:
    """The first training samples of epoch 0, whatever the epoch is now."""
    samples = job.train.first(PREVIEWED)
    return {k: torch.stack([s[k] for s in samples]) for k in ("image", *job.config.targets)}


@torch.no_grad()
def preview_panels(job: FoldJob, network: torch.nn.Module) -> list[np.ndarray]:
    """The first held-out patch as pictures ``(Y, X, 3)`` in [0, 1], of a volume its middle plane.

    Images: input, target, answer; where there is a mask of change, of up to four patches the input,
    answer, target, mask and predicted mask. Labels: image, truth, soft answer (of several classes
    the likeliest), and errors in colours.
    """
    batch = next(iter(job.val.epoch(-1)))
    network.eval()
    heads = TASKS[job.config.task].heads(network(_image(batch, job)))
    found = {name: head.cpu().numpy() for name, head in heads.items()}
    name = next(iter(job.config.targets))
    if job.config.task == "image" and "mask" in batch:
        rows = [
            _strip(batch, n, found, batch[name][n].numpy())
            for n in range(min(PREVIEWED, len(found["main"])))
        ]
        return [np.concatenate(column, axis=0) for column in zip(*rows, strict=True)]
    image, target, soft = (
        _middle(a) for a in (batch["image"][0].numpy(), batch[name][0].numpy(), found["main"][0])
    )
    if job.config.task == "image":
        return [colours.rgb(_shown(plane, image)) for plane in (image, target, soft)]
    return _label_panels(
        colours.rgb(_shown(image, image)), target[0], soft, job.config.data.ignore_label
    )


def _strip(
    batch: Mapping[str, Any], n: int, found: Mapping[str, np.ndarray], target: np.ndarray
) -> list[np.ndarray]:
    """Input, output, target, mask and, where the network has that head, predicted mask of one
    patch, as pictures.
    """
    image, mask = batch["image"][n].numpy(), batch["mask"][n].numpy()
    masks = [
        mask > 0 if mask.dtype.kind in "iu" else mask,
        *([found["mask"][n]] if "mask" in found else []),
    ]
    return [colours.rgb(_shown(a, image)) for a in (image, found["main"][n], target)] + [
        np.repeat(np.clip(m[0], 0, 1)[..., None].astype(np.float64), 3, axis=2) for m in masks
    ]


def _label_panels(
    image: np.ndarray, target: np.ndarray, soft: np.ndarray, ignore: int | None
) -> list[np.ndarray]:
    ignored = np.zeros(target.shape, bool) if ignore is None else target == ignore
    truth = np.where(ignored, 0, target)
    answer = TASKS["labels"].decide(soft)
    black = np.zeros(image.shape)
    if len(soft) == 1:
        real, said = colours.tint(black, truth > 0, colours.WHITE, 1), colours.rgb(soft)
    else:
        real, said = (colours.classes(black, labels, strength=1) for labels in (truth, answer))
    errors = colours.errors(image, truth, np.where(ignored, 0, answer))
    return [
        image,
        colours.tint(real, ignored, colours.GREY, 1),
        said,
        colours.tint(errors, ignored, colours.GREY, 1),
    ]


def _middle(array: np.ndarray) -> np.ndarray:
    """Middle plane ``(C, Y, X)`` of ``(C, *S)``."""
    return array if array.ndim == 3 else array[:, array.shape[1] // 2]


def _shown(panel: np.ndarray, image: np.ndarray) -> np.ndarray:
    """On the grey scale of ``image``, whatever range it was normalised to."""
    low, high = float(image.min()), float(image.max())
    return (panel - low) / max(high - low, 1e-6)


def _autocast(job: FoldJob) -> torch.autocast:
    amp = job.config.train.amp
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp, torch.bfloat16)
    return torch.autocast(
        job.device, dtype, enabled=amp == "bf16" or (amp == "fp16" and job.device == "cuda")
    )


def _image(batch: Mapping[str, Any], job: FoldJob) -> torch.Tensor:
    image = batch["image"].to(job.device, non_blocking=True)
    if job.config.train.channels_last:
        image = image.to(memory_format=_format(image.ndim - 2))
    return image


def _format(dims: int) -> torch.memory_format:
    return torch.channels_last_3d if dims == 3 else torch.channels_last


def _targets(batch: Mapping[str, Any], job: FoldJob) -> dict[str, torch.Tensor]:
    names = dict.fromkeys((*job.config.kinds, *job.losses.maps.values()))
    return {name: batch[name].to(job.device, non_blocking=True) for name in names}
