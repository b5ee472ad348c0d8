"""How long a training will take, part by part, and the schedule that fits a given time.

Pure arithmetic on a measured :class:`pipeline.planning.cost.Cost`: nothing is run here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.planning.cost import Cost
from pipeline.progress import clock
from pipeline.records import ALL, FoldName, UserError

EPOCHS, STEPS, MOST_EPOCHS = 40, 250, 1000
"""Epochs of a short schedule; steps an epoch of a long one, and its most epochs, as nnU-Net's."""

LEAST = 100
"""Fewest steps of a fold that are worth training."""

SAFETY = 0.15
"""Share of the time that is kept free: steps of a long training take longer than measured ones."""

CHECKS = 3.0
"""Seconds of the checks of a config: each entry is tried on tiny data."""

REPORT, REPORT_CASE = 1.5, 0.02
"""Seconds of summary and report, and of each case in them."""

EFFICIENCY = 0.7
"""Share of each further core that helps to read cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is to be trained.

    Args:
        folds: the folds that are trained, in order; ``all``: the one model of all cases.
        training: training cases of each of them.
        held_out: held-out cases of each of them; 0 for fold ``all``.
        cases: all cases of the data set, which are cached.
        validate_every: epochs between validations.
        per_case: patches of a held-out case in a validation.
        preview_every: epochs between previews; 0: none.
        averages: weights are averaged, so that two models are scored.
        keep_best: the best weights are kept, and written when there are better ones.

    Example:
        >>> workload(12, 5).held_out
        (3, 3, 2, 2, 2)
    """

    folds: tuple[FoldName, ...]
    training: tuple[int, ...]
    held_out: tuple[int, ...]
    cases: int
    validate_every: int = 1
    per_case: int = 1
    preview_every: int = 0
    averages: bool = False
    keep_best: bool = True


def workload(
    cases: int,
    count: int,
    config: Config | None = None,
    folds: Sequence[FoldName] | None = None,
) -> Workload:
    """What training some folds of a config is.

    Args:
        cases: of the data set.
        count: number of folds.
        config: how it validates, averages and draws; None: as the defaults of :class:`Workload`.
        folds: those that are trained; None: all numbered ones.

    Returns:
        The workload; cases are divided evenly, as by shuffled folds.
    """
    trained = tuple(range(count)) if folds is None else tuple(folds)
    held = tuple(0 if f == ALL else cases // count + (f < cases % count) for f in trained)  # type: ignore[operator]
    work = Workload(
        folds=trained,
        training=tuple(cases - n for n in held),
        held_out=held,
        cases=cases,
    )
    if config is None:
        return work
    train = config.train
    return dataclasses.replace(
        work,
        validate_every=train.validate.every,
        per_case=train.validate.per_case,
        preview_every=train.preview_every,
        averages=train.average is not None,
        keep_best=train.keep == "best",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Epochs and steps, and the seconds that the whole command is expected to take.

    Args:
        epochs: of each fold.
        steps: of each epoch; of a config that passes over its cases, those of the first fold.
        parts: seconds by part, all folds together, in the order of a run.
        folds: seconds by part of each fold.
        total: expected seconds of the command.
        seconds: those that were given; None: no limit.
        safety: share of them that is kept free.
    """

    epochs: int
    steps: int
    parts: Mapping[str, float]
    folds: Mapping[str, Mapping[str, float]]
    total: float
    seconds: float | None = None
    safety: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The record as JSON.

        Returns:
            All fields, seconds to one digit behind the point.
        """
        found = dataclasses.asdict(self)
        found["parts"] = {k: round(v, 1) for k, v in self.parts.items()}
        found["folds"] = {
            fold: {k: round(v, 1) for k, v in parts.items()} for fold, parts in self.folds.items()
        }
        return found | {"total": round(self.total, 1)}


class TooShortError(UserError):
    """A time in which not even the fewest steps fit.

    Args:
        message: what takes how long, and the ways out.
        shortest: the schedule that takes the least time, which is more than was given.
    """

    def __init__(self, message: str, shortest: Schedule) -> None:
        super().__init__(message)
        self.shortest = shortest


def schedule_for(
    minutes: float, cost: Cost, work: Workload, *, safety: float = SAFETY, least: int = LEAST
) -> Schedule:
    """The longest schedule that fits a time: whole numbers of epochs and steps.

    About 40 epochs, so that a learning rate that falls by epochs falls smoothly; from 10,000 steps
    on epochs of 250, at most 1000 of them.

    Args:
        minutes: of the whole command, from its start to its report.
        cost: measured on the device that will train.
        work: what is trained.
        safety: share of the time that is kept free.
        least: fewest steps of a fold.

    Returns:
        The schedule; its total is at most ``minutes * (1 - safety)``.

    Raises:
        UserError: the config does not fit into memory.
        TooShortError: the time is too short even for ``least`` steps; the message says what takes
            how long, and what to do.

    Example:
        >>> cost = Cost(device="cpu", batch=2, draw=0.1, step=0.4, predict=1.0)
        >>> found = schedule_for(10, cost, workload(20, 5))
        >>> found.epochs, found.steps, round(found.total)
        (48, 4, 505)
    """
    _require_fit(cost)
    if not (math.isfinite(minutes) and minutes > 0):
        raise UserError(f"--minutes is {minutes:g}, must be a positive number of minutes.")
    budget = 60 * minutes * (1 - safety)
    fitting = (pair for pair in _candidates(least) if seconds_of(cost, work, *pair) <= budget)
    best = next(fitting, None)
    if best is None:
        raise _too_short(minutes, cost, work, safety, least)
    found = broken_down(cost, work, best[0], [best[1]] * len(work.folds))
    return dataclasses.replace(found, seconds=60 * minutes, safety=safety)


def expected(config: Config, cost: Cost, work: Workload) -> Schedule:
    """The time of a config as it stands, such as nnU-Net's 1000 epochs of 250 steps.

    Args:
        config: its epochs and patches; early stopping is not foreseen.
        cost: measured on the device that will train.
        work: what is trained.

    Returns:
        The schedule of the config.

    Raises:
        UserError: the config does not fit into memory.
    """
    _require_fit(cost)
    patch = config.data.patch
    steps = [
        patch.steps or math.ceil(max(1, n) * patch.per_case / patch.batch) for n in work.training
    ]
    return broken_down(cost, work, config.train.epochs, steps)


def _require_fit(cost: Cost) -> None:
    if not cost.fits:
        raise UserError(
            f"One training step does not fit into the memory of {cost.device}: {cost.problem}."
            " Reduce data.patch.batch or data.patch.size, or plan with a smaller --budget."
        )


@functools.cache
def _candidates(least: int) -> tuple[tuple[int, int], ...]:
    """Epochs and steps of all schedules with at least so many steps, the longest first."""
    found = [(epochs, STEPS) for epochs in range(EPOCHS, MOST_EPOCHS + 1)]
    for steps in range(max(1, least // EPOCHS), STEPS):
        # Up to the number of epochs from which one more step would fit into each of 40.
        epochs = range(EPOCHS, (EPOCHS * (steps + 1) - 1) // steps + 1)
        found += [(n, steps) for n in epochs if n * steps >= least]
    return tuple(sorted(found, key=lambda pair: -pair[0] * pair[1]))


def fold_seconds(
    cost: Cost, work: Workload, number: int, epochs: int, steps: int
) -> dict[str, float]:
    """Seconds of one fold by part.

    Args:
        cost: of one thing each.
        work: what is trained.
        number: which of its folds, from 0.
        epochs: of the fold.
        steps: of each epoch.

    Returns:
        ``setup``, ``training``, ``validation``, ``saving``, ``prediction``, ``scoring``.
    """
    held = work.held_out[number]
    patches = held * work.per_case
    times = math.ceil(epochs / work.validate_every) if held else 0
    pictures = math.ceil(epochs / work.preview_every) if work.preview_every and held else 0
    kinds = 2 if work.averages else 1
    written = times if work.keep_best else 1
    return {
        "setup": cost.setup,
        "training": epochs * steps * cost.batch_seconds,
        "validation": (times + kinds - 1) * patches * cost.validate,
        "saving": epochs * cost.epoch + pictures * cost.preview + written * cost.model,
        # Of averaged weights batch norms are measured anew, in an epoch without backward passes.
        "averaging": steps * (cost.draw + cost.step / 2) if work.averages else 0.0,
        "prediction": kinds * held * cost.predict,
        "scoring": held * (kinds * (cost.score + cost.keep) + cost.back + cost.keep),
    }


def _once(cost: Cost, work: Workload) -> dict[str, float]:
    """Seconds of what is done once, by part."""
    threads = 1 + EFFICIENCY * (min(cost.cores, max(1, work.cases)) - 1)
    every = sum(work.held_out)
    return {
        "start": cost.start + CHECKS + cost.first,
        "caching": work.cases * cost.prepare / threads,
        "report": REPORT + REPORT_CASE * every + every * cost.baseline,
    }


def seconds_of(cost: Cost, work: Workload, epochs: int, steps: int) -> float:
    """Expected seconds of the whole command.

    Args:
        cost: of one thing each.
        work: what is trained.
        epochs: of each fold.
        steps: of each epoch.

    Returns:
        Their sum.
    """
    alike = Counter(work.held_out)  # folds with as many held-out cases take as long
    folds = sum(
        count * sum(fold_seconds(cost, work, work.held_out.index(held), epochs, steps).values())
        for held, count in alike.items()
    )
    return sum(_once(cost, work).values()) + folds


def broken_down(cost: Cost, work: Workload, epochs: int, steps: Sequence[int]) -> Schedule:
    """The seconds of given epochs and steps, part by part.

    Args:
        cost: of one thing each.
        work: what is trained.
        epochs: of each fold.
        steps: of an epoch, one number for each fold.

    Returns:
        The schedule, without a limit.
    """
    folds = {
        str(fold): fold_seconds(cost, work, n, epochs, steps[n])
        for n, fold in enumerate(work.folds)
    }
    once = _once(cost, work)
    names = dict.fromkeys(name for fold in folds.values() for name in fold)
    summed = {name: sum(fold[name] for fold in folds.values()) for name in names}
    parts = {"start": once["start"], "caching": once["caching"], **summed, "report": once["report"]}
    return Schedule(
        epochs=epochs, steps=steps[0], parts=parts, folds=folds, total=sum(parts.values())
    )


def _too_short(
    minutes: float, cost: Cost, work: Workload, safety: float, least: int
) -> TooShortError:
    """Why a time is too short, and the ways out."""
    epochs, steps = min(
        _candidates(least), key=lambda pair: seconds_of(cost, work, pair[0], pair[1])
    )
    found = broken_down(cost, work, epochs, [steps] * len(work.folds))
    need = found.total / (1 - safety)
    largest = sorted(found.parts.items(), key=lambda part: -part[1])[:4]
    parts = ", ".join(f"{name} {clock(seconds)}" for name, seconds in largest)
    few = next(
        (
            n
            for n in range(len(work.folds) - 1, 0, -1)
            if seconds_of(cost, _first(work, n), epochs, steps) <= 60 * minutes * (1 - safety)
        ),
        0,
    )
    folds = "1 fold" if len(work.folds) == 1 else f"{len(work.folds)} folds"
    some = " and ".join(f"--fold {fold}" for fold in work.folds[:few])
    fewer = f"train fewer folds ({some}), " if few else ""
    return TooShortError(
        f"--minutes {minutes:g} is too short for {folds}: even {epochs * steps} steps a fold take"
        f" about {clock(found.total)} ({parts}), with {safety:.0%} kept free {clock(need)}."
        f" Give at least --minutes {math.ceil(need / 60)}, {fewer}or take a smaller"
        " data.patch.size.",
        found,
    )


def _first(work: Workload, count: int) -> Workload:
    """The first folds alone."""
    return dataclasses.replace(
        work,
        folds=work.folds[:count],
        training=work.training[:count],
        held_out=work.held_out[:count],
    )


# --- words ----------------------------------------------------------------------------------------


def lines(
    cost: Cost, schedule: Schedule | None = None, expected_bytes: float | None = None
) -> list[str]:
    """What a printed plan says of memory and time.

    Args:
        cost: measured.
        schedule: the time; None where a step does not fit.
        expected_bytes: what the rules of planning foresaw; None: they say nothing.

    Returns:
        Lines of text.

    Example:
        >>> cost = Cost(device="cuda", batch=2, memory=4_900_000_000, draw=0.03, step=0.2)
        >>> lines(cost, expected_bytes=5.1e9)[0]
        'Memory: expected 5.1 GB, measured 4.9 GB for one step of 2 samples (0.96 times)'
    """
    return [_memory_line(cost, expected_bytes), *(_time_lines(cost, schedule) if cost.fits else ())]


def _memory_line(cost: Cost, expected_bytes: float | None) -> str:
    foreseen = "" if expected_bytes is None else f"expected {size(expected_bytes)}, "
    if not cost.fits:
        return (
            f"Memory: {foreseen}one step of {cost.batch} samples does not fit into"
            f" {cost.device} ({size(cost.available)}): {cost.problem}"
        )
    ratio = "" if not expected_bytes else f" ({cost.memory / expected_bytes:.2f} times)"
    text = (
        f"Memory: {foreseen}{cost.memory_is} {size(cost.memory)} for one step of"
        f" {cost.batch} samples{ratio}"
    )
    return f"{text}; torch holds {size(cost.reserved)}" if cost.reserved else text


def _time_lines(cost: Cost, schedule: Schedule | None) -> Iterator[str]:
    made_up = "" if cost.real else ", on a made-up case"
    yield (
        f"Step: {short(cost.step)} network, {short(cost.draw)} drawing and augmenting;"
        f" a case: {short(cost.prepare)} to the cache, {short(cost.predict)} prediction,"
        f" {short(cost.score)} scoring ({cost.device}{made_up})"
    )
    if schedule is None:
        return
    text = f"Time: about {clock(schedule.total)}"
    if schedule.seconds is not None:
        text += f" of {clock(schedule.seconds)} ({schedule.safety:.0%} kept free)"
    folds = len(schedule.folds)
    text += f" for {folds} fold{'s' * (folds != 1)} of {schedule.epochs} epochs of"
    yield f"{text} {schedule.steps} steps"
    parts = [f"{name} {clock(s)}" for name, s in schedule.parts.items() if s >= 0.5]
    yield f"  {', '.join(parts)}"


def short(seconds: float) -> str:
    """A duration with its unit.

    Args:
        seconds: how long.

    Returns:
        Milliseconds where it is short, else seconds, else as a clock.

    Example:
        >>> short(0.0321), short(2.34), short(75)
        ('32 ms', '2.3 s', '0:01:15')
    """
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.0995 else f"{seconds:.2f} s"
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


def size(number: float) -> str:
    """A number of bytes with its unit.

    Args:
        number: of bytes.

    Returns:
        Gigabytes to a tenth, or megabytes where that says little.

    Example:
        >>> size(4_920_000_000), size(41_000_000)
        ('4.9 GB', '41 MB')
    """
    return f"{number / 1e9:.1f} GB" if number >= 5e8 else f"{number / 1e6:.0f} MB"
