"""Optimisers and learning-rate schedules by name.

Schedules step once an epoch, and their states can be saved as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.optim import lr_scheduler

from pipeline.config import ConfigError, Train, bind
from pipeline.networks import parts
from pipeline.registry import Registry


def _adam(
    parameters: Iterable[torch.Tensor],
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Adam, with weight decay as a part of the gradient."""
    return torch.optim.Adam(
        parameters, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay
    )


def _adamw(
    parameters: Iterable[torch.Tensor],
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay."""
    return torch.optim.AdamW(
        parameters, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay
    )


def _sgd(
    parameters: Iterable[torch.Tensor],
    lr: float = 1e-2,
    momentum: float = 0.99,
    nesterov: bool = True,
    weight_decay: float = 3e-5,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov momentum, by default as in nnU-Net."""
    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
        weight_decay=weight_decay,
    )


FACTOR = "lr_factor"
"""Key of a parameter group: its learning rate as a share of the output layers' (layer decay)."""

Optimizer: TypeAlias = torch.optim.Optimizer
Schedule: TypeAlias = lr_scheduler.LRScheduler


@dataclass(frozen=True, slots=True)
class OptimizerEntry:
    """An entry of the table of optimisers.

    The optimiser's whole state has to be in its ``state_dict()``: a resumed fold goes on from that.
    """

    make: Callable[..., Optimizer]
    """``make(parameters, **options)`` gives one of torch's optimisers.

    ``parameters`` are tensors, or with ``train.layer_decay`` groups as torch takes them.
    """


OPTIMIZERS: Registry[OptimizerEntry] = Registry(
    "optimizer",
    {"adam": OptimizerEntry(_adam), "adamw": OptimizerEntry(_adamw), "sgd": OptimizerEntry(_sgd)},
    record=OptimizerEntry,
)


def _cosine_restarts(
    optimizer: Optimizer, epochs: int, first: int = 10, factor: int = 2, min_lr: float = 1e-6
) -> Schedule:
    """Cosine to ``min_lr`` over ``first`` epochs, then over ``factor`` times as many, and so on."""
    return lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=first, T_mult=factor, eta_min=min_lr
    )


def _cosine(optimizer: Optimizer, epochs: int, min_lr: float = 0.0, warmup: int = 0) -> Schedule:
    """One cosine to ``min_lr`` at the last epoch, after ``warmup`` epochs of linear rise."""
    if warmup >= epochs:
        raise ConfigError(
            f"train.schedule: cosine warmup is {warmup}, must be below train.epochs ({epochs})."
        )
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs - warmup, eta_min=min_lr)
    if not warmup:
        return cosine
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, cosine], milestones=[warmup])


def _step(optimizer: Optimizer, epochs: int, every: int = 30, factor: float = 0.1) -> Schedule:
    """Multiply the rate by ``factor`` every ``every`` epochs."""
    return lr_scheduler.StepLR(optimizer, step_size=every, gamma=factor)


def _plateau(
    optimizer: Optimizer, epochs: int, factor: float = 0.5, patience: int = 10, min_lr: float = 0.0
) -> Schedule:
    """Lower the rate when the monitored value has not improved for ``patience`` epochs."""
    return lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="min", factor=factor, patience=patience, min_lr=min_lr
    )


def _poly(optimizer: Optimizer, epochs: int, power: float = 0.9) -> Schedule:
    """Polynomial decay ``(1 - epoch / epochs) ** power``, as in nnU-Net."""
    return lr_scheduler.PolynomialLR(optimizer, total_iters=epochs, power=power)


def _one_cycle(
    optimizer: Optimizer, epochs: int, rise: float = 0.3, start: float = 0.04, end: float = 1e-4
) -> Schedule:
    """Rise from ``start`` times the rate for a fraction ``rise`` of the epochs, then cosine down.

    It ends at ``end`` times the rate. Source: Smith 2018.
    """
    lr = optimizer.param_groups[0]["lr"]
    return lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=lr,
        total_steps=epochs + 1,
        pct_start=rise,
        div_factor=1 / start,
        final_div_factor=start / end,
        cycle_momentum=False,
    )


def _constant(optimizer: Optimizer, epochs: int) -> Schedule:
    """The same rate in all epochs."""
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


@dataclass(frozen=True, slots=True)
class ScheduleEntry:
    """An entry of the table of learning-rate schedules."""

    make: Callable[..., Schedule]
    """``make(optimizer, epochs, **options)`` gives one of torch's schedulers, stepped by epoch.

    With ``train.layer_decay`` the rate of the first group counts; the others follow it.
    """


SCHEDULES: Registry[ScheduleEntry] = Registry(
    "schedule",
    {
        "cosine_restarts": ScheduleEntry(_cosine_restarts),
        "cosine": ScheduleEntry(_cosine),
        "step": ScheduleEntry(_step),
        "plateau": ScheduleEntry(_plateau),
        "poly": ScheduleEntry(_poly),
        "one_cycle": ScheduleEntry(_one_cycle),
        "constant": ScheduleEntry(_constant),
    },
    record=ScheduleEntry,
)


def make_optimizer(train: Train, network: torch.nn.Module) -> tuple[Optimizer, Schedule]:
    """Build optimiser and schedule of a config.

    Args:
        train: its ``optimizer``, ``schedule``, ``epochs`` and ``layer_decay``.
        network: whose parameters with gradients are optimised.

    Returns:
        Optimiser and schedule. With ``layer_decay`` the optimiser has a group for each level, the
        output layers first, whose ``lr_factor`` :func:`set_rates` applies.

    Raises:
        ConfigError: for unknown names and impossible options.
    """
    optimizer = bind(OPTIMIZERS, train.optimizer, "train.optimizer", ("parameters",))
    schedule = bind(SCHEDULES, train.schedule, "train.schedule", ("optimizer", "epochs"))
    try:
        made = optimizer(_weights(train, network))
        for group in made.param_groups if train.layer_decay is not None else ():
            group["lr"] *= group[FACTOR]
        made_schedule = schedule(optimizer=made, epochs=train.epochs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.optimizer or train.schedule: {error}") from None
    _follow_first(made)
    return made, made_schedule


def _weights(train: Train, network: torch.nn.Module) -> list[Any]:
    """Weights to be trained; with ``layer_decay`` in groups, the output layers first."""
    if train.layer_decay is None:
        return [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in level if p.requires_grad], FACTOR: train.layer_decay**n}
        for n, level in enumerate(parts.by_level(network))
    ]
    return [group for group in groups if group["params"]]


def set_rates(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of all groups, whatever the schedule says.

    Args:
        optimizer: changed in place.
        rate: of output layers, or of all; with layer decay the other groups follow by their
            factors.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group[FACTOR] if FACTOR in group else rate


def _follow_first(optimizer: Optimizer) -> None:
    """With layer decay: give each group its share of the rate that a schedule gave the first one.

    So every schedule keeps the factors, at its ``min_lr``, too.
    """
    first, *others = optimizer.param_groups
    for group in others if FACTOR in first else ():
        group["lr"] = first["lr"] * (group[FACTOR] / first[FACTOR])


def step_schedule(schedule: Schedule, monitored: float) -> None:
    """Advance a schedule by one epoch.

    Args:
        schedule: changed in place.
        monitored: the value that ``plateau`` monitors, lower is better; others ignore it.
    """
    if isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
        schedule.step(monitored)
    else:
        schedule.step()
    _follow_first(schedule.optimizer)
