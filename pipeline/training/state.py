"""State of a fold's training: made at its start, saved whole, and restored to the same bits."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.inference import models
from pipeline.training import checkpoint, distributed, optim
from pipeline.training.job import FoldJob, TrainingError, memory_format

logger = logging.getLogger(__name__)

SHOWN = 300
"""Characters of torch's message that an error of ours quotes."""


class RunningMeans:
    """Running means by name, weighted by the number of samples.

    Args:
        sums: weighted sums by name.
        counts: weights by name.
    """

    def __init__(
        self, sums: Mapping[str, float] | None = None, counts: Mapping[str, float] | None = None
    ) -> None:
        self.sums: dict[str, float] = dict(sums or {})
        self.counts: dict[str, float] = dict(counts or {})

    def add(self, count: int, values: Mapping[str, float]) -> None:
        """Add values that are means over ``count`` samples.

        Args:
            count: samples.
            values: their means by name.
        """
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + count * value
            self.counts[key] = self.counts.get(key, 0.0) + count

    def add_valid(self, key: str, values: Iterable[float]) -> None:
        """Add values of single samples, but for those that are not finite.

        Args:
            key: name of the mean.
            values: one for each sample.
        """
        for value in values:
            if math.isfinite(value):
                self.add(1, {key: value})

    def result(self) -> dict[str, float]:
        """Compute the means.

        Returns:
            Means by name; NaN where nothing had a weight.
        """
        return {k: self.sums[k] / self.counts[k] if self.counts[k] else math.nan for k in self.sums}


_RESTORE_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
)
"""What a saved state of another optimiser or schedule raises while it is restored."""


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """What changes while a fold trains.

    A checkpoint holds all of it but ``forward``, which is built from the network, and ``spent``,
    which follows from the records; of ``began`` it holds the seconds since then.
    """

    network: torch.nn.Module
    forward: Callable[[torch.Tensor], Mapping[str, torch.Tensor]]
    """The network as it is trained: wrapped for several ranks, and compiled if configured."""
    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    """Averaged weights; None where the config has no average."""
    epoch: int = 0
    """Whole epochs that are done."""
    best_score: float | None = None
    """Best monitored value; None: it was never finite."""
    best_epoch: int = -1
    """Its epoch, counted from 0."""
    stale: int = 0
    """Epochs since the monitored value was best."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Records of the epochs that are done."""
    step: int = 0
    """Batches of the present epoch that the weights have seen, always up to an optimiser step."""
    means: RunningMeans = field(default_factory=RunningMeans)
    """Values of those batches."""
    began: float = 0.0
    """``time.monotonic()`` at which the present epoch would have begun without interruptions."""
    spent: float = 0.0
    """Seconds that earlier processes have trained in all."""


def start(job: FoldJob) -> TrainingState:
    """Build the state before the first step.

    Args:
        job: what is trained.

    Returns:
        Network on its device, optimiser, schedule, and an average where the config has one.

    Raises:
        ConfigError: for an optimiser or a schedule that cannot be built.
        UserError: for ``train.sync_batchnorm`` of several ranks on the CPU.
        TrainingError: for a schedule that follows a monitored value, where no case is held out.
        DistributedError: where another rank is gone.
    """
    train = job.config.train
    network: torch.nn.Module = job.network.to(job.device)
    if train.sync_batchnorm:
        network = distributed.with_sync_batchnorm(network, job.context)
    if train.channels_last:
        layout = memory_format(job.config.data.dims)
        # torch's stub lacks the argument
        network = network.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    optimizer, schedule = optim.make_optimizer(train, network)
    if job.val_loader is None and isinstance(schedule, ReduceLROnPlateau):
        raise TrainingError(
            f"fold {job.fold} holds no case out, so the schedule {train.schedule.name} has no value"
            " to follow. Set train.schedule to another one, such as poly, in a run of its own."
        )
    average = None
    if train.average is not None:
        decay = train.average.decay
        ema = None if decay is None else get_ema_multi_avg_fn(decay)
        average = AveragedModel(network, multi_avg_fn=ema)
    heads = getattr(network, "heads", ())
    idle = bool(set(heads) - {term.head for term in job.losses.terms.values()})
    forward = distributed.wrap_ddp(network, job.context, unused=idle)
    fp16 = train.amp == "fp16" and job.device == "cuda"
    return TrainingState(
        network=network,
        forward=torch.compile(forward) if train.compile else forward,
        optimizer=optimizer,
        schedule=schedule,
        scaler=torch.amp.GradScaler(job.device, enabled=fp16),
        average=average,
    )


def save(job: FoldJob, state: TrainingState) -> None:
    """Write the state on the first rank, while the others wait.

    A rank that went on and ended would have torchrun end the first one in the middle of writing.

    Args:
        job: whose fold folder it is written to.
        state: between two optimiser steps.

    Raises:
        DistributedError: where another rank is gone.
    """
    if job.context.is_main:
        _write(job, state)
    job.context.barrier("saving the state")


def _write(job: FoldJob, state: TrainingState) -> None:
    tensors, rest = checkpoint.flatten_optimizer(state.optimizer.state_dict())
    tensors |= {f"network/{k}": v for k, v in state.network.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average/{k}": v for k, v in state.average.state_dict().items()}
    header = {
        "epoch": state.epoch,
        "best_score": state.best_score,
        "best_epoch": state.best_epoch,
        "stale": state.stale,
        "history": state.history,
        "step": state.step,
        "means": {"sums": state.means.sums, "counts": state.means.counts},
        "seconds": time.monotonic() - state.began if state.step else 0.0,
        "optimizer": rest,
        "schedule": plain_schedule(state.schedule.state_dict()),
        "scaler": state.scaler.state_dict(),
        "metrics_version": job.version,
    }
    checkpoint.save_state(job.files.states, (state.epoch, state.step), tensors, header)


def plain_schedule(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """Strip a scheduler's state of what JSON cannot hold.

    Args:
        schedule: ``scheduler.state_dict()``; SequentialLR holds a list of states.

    Returns:
        The same without functions.
    """
    return {
        k: [plain_schedule(s) for s in v] if k == "_schedulers" else v
        for k, v in schedule.items()
        if not callable(v) and k != "anneal_func"
    }


def resume(job: FoldJob, state: TrainingState) -> tuple[FoldJob, TrainingState]:
    """Restore the newest saved state of a fold.

    Args:
        job: whose fold folder may hold saved states.
        state: as :func:`start` makes it; changed in place.

    Returns:
        The job with the metrics version of the saved state, and the state; both unchanged where
        nothing was saved.

    Raises:
        CheckpointError: where the saved states are damaged, or of another network, optimiser or
            schedule.
    """
    folder = job.files.states
    loaded = checkpoint.load_fold(folder)
    if loaded is None:
        return job, state
    tensors, header = loaded
    models.load_weights(
        state.network, checkpoint.with_prefix("network/", tensors), f"{folder}: network"
    )
    if state.average is not None:
        models.load_weights(
            state.average, checkpoint.with_prefix("average/", tensors), f"{folder}: average"
        )
    try:
        _restore_optimizer(state, tensors, header)
    except _RESTORE_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"[:SHOWN]
        raise models.CheckpointError(
            f"{folder}: optimizer or schedule of the newest state cannot be continued ({reason})."
            f" {checkpoint.STATE_SUGGESTION}"
        ) from None
    for name in ("epoch", "best_score", "best_epoch", "stale", "history"):
        setattr(state, name, header[name])
    if header.get("step"):  # old states have no steps: they are of the end of an epoch
        state.step, state.means = header["step"], RunningMeans(**header["means"])
        state.began = time.monotonic() - header["seconds"]
    earlier = sum(record["seconds"] for record in state.history)
    state.spent = earlier + header.get("seconds", 0.0)
    within = f" and step {state.step} of the next" if state.step else ""
    logger.info(f"Fold {job.fold}: continuing after epoch {state.epoch}{within}")
    return dataclasses.replace(job, version=header.get("metrics_version", 1)), state


def _restore_optimizer(
    state: TrainingState, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]
) -> None:
    """Restore optimiser, schedule and scaler; raise any error for a saved state of others."""
    restored = checkpoint.restore_optimizer(tensors, header["optimizer"])
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
        "optimizer", header["optimizer"]["groups"], state.optimizer.state_dict()["param_groups"]
    )
    _require_alike("schedule", header["schedule"], plain_schedule(state.schedule.state_dict()))
    _require_alike("scaler", header["scaler"], state.scaler.state_dict())
    state.optimizer.load_state_dict(restored)
    state.schedule.load_state_dict(header["schedule"])
    state.scaler.load_state_dict(header["scaler"])


def _require_alike(where: str, saved: Any, present: Any) -> None:
    """Raise ValueError where a saved setting is of another type than the present one.

    Keys that only one of them has are passed over: they differ between versions of torch.
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


def set_training_progress(network: torch.nn.Module, epoch: int, epochs: int) -> None:
    """Pass the progress of training to layers with a schedule of their own, such as DropBlock.

    Args:
        network: layers with a method ``progress`` receive the fraction that is done, in [0, 1].
        epoch: the epoch that begins, counted from 0.
        epochs: all epochs; when the last one begins, the fraction is 1.
    """
    for module in network.modules():
        progress = getattr(module, "progress", None)
        if callable(progress):
            progress(epoch / max(epochs - 1, 1))
