"""A plan: settings with their reasons, what is said beside them, and what they cost."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.planning import data_settings, names, plan_file, schedule, training_settings
from pipeline.planning.cost import Cost
from pipeline.planning.fingerprint import Fingerprint
from pipeline.planning.ground import Ground, PlanRequest, channel_names, ground, share_below_patch
from pipeline.planning.memory import elements_to_bytes
from pipeline.planning.precision import Precision
from pipeline.planning.schedule import Schedule
from pipeline.planning.settings import Setting, as_config
from pipeline.planning.topology import shape_text

WIDTH, LONGEST = 100, 60
"""Columns of a line of a table, and most characters of a value in one."""

MINUTES = 60.0
"""Length of a training on a CPU that nobody gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetPlan:
    """A planned config with everything that it stands on."""

    ground: Ground
    settings: tuple[Setting, ...]
    remarks: tuple[str, ...]
    """What a person should know, in sentences."""
    cost: Cost | None = None
    """Measured on the device at hand; None: not measured."""
    schedule: Schedule | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        """The facts of the data set."""
        return self.ground.fingerprint

    @property
    def config(self) -> Config:
        """The config, ready to train."""
        return as_config(self.settings, f"the plan of {self.fingerprint.root}")

    def text(self, date: str) -> str:
        """The YAML of the plan.

        Args:
            date: day of the plan.

        Returns:
            Text with a reason beside each value.
        """
        return plan_file.text(self.settings, list(_header(self, date)))


def decide(fingerprint: Fingerprint, request: PlanRequest) -> DatasetPlan:
    """Decide everything that facts and rules say; nothing is measured.

    Args:
        fingerprint: of the data set.
        request: what was asked for.

    Returns:
        A plan with nnU-Net's schedule of 1000 epochs of 250 steps.

    Raises:
        UserError: where rules and request do not go together.
    """
    found = ground(fingerprint, request)
    return DatasetPlan(
        ground=found, settings=tuple(_settings(found, None)), remarks=tuple(_remarks(found))
    )


def _settings(found: Ground, steps: int | None) -> Iterator[Setting]:
    yield Setting("name", found.request.name)
    yield Setting("task", found.fingerprint.task)
    yield Setting("seed", 42)
    yield from data_settings.settings(found)
    yield from training_settings.settings(found, steps)


def with_precision(plan: DatasetPlan, precision: Precision) -> DatasetPlan:
    """The plan with the number type and memory layout that were measured to be fastest.

    Args:
        plan: a plan.
        precision: measured.

    Returns:
        A new plan; the same where plain float32 was the fastest.
    """
    if precision.is_plain:
        return plan
    new = [Setting("train.amp", precision.amp, precision.reason)]
    if precision.channels_last:
        new.append(Setting("train.channels_last", True, "faster with it, measured"))
    return dataclasses.replace(plan, settings=_placed(plan.settings, new))


def _placed(settings: tuple[Setting, ...], new: list[Setting]) -> tuple[Setting, ...]:
    """Settings with others in their place, or behind the last of section train."""
    keys = {s.key for s in settings}
    given = {s.key: s for s in new}
    found = [given.get(s.key, s) for s in settings]
    last = max(n for n, s in enumerate(found) if s.key.startswith("train."))
    more = [s for s in new if s.key not in keys]
    return (*found[: last + 1], *more, *found[last + 1 :])


def with_schedule(plan: DatasetPlan, cost: Cost, made: Schedule) -> DatasetPlan:
    """The plan with a schedule that fits its minutes.

    Args:
        plan: a plan.
        cost: what was measured.
        made: epochs and steps.

    Returns:
        A plan whose settings follow from the number of steps, too.
    """
    steps = made.epochs * made.steps
    kept = {s.key: s for s in plan.settings if s.key in ("train.amp", "train.channels_last")}
    found = list(_settings(plan.ground, steps))
    fit = made.seconds is not None
    reason = f"{steps} steps a fold, {'as many as fit' if fit else 'the fewest that are worth it'}"
    settings = training_settings.scheduled(found, made.steps, made.epochs, reason)
    return dataclasses.replace(
        plan, settings=_placed(tuple(settings), list(kept.values())), cost=cost, schedule=made
    )


# --- words ----------------------------------------------------------------------------------------


def _remarks(found: Ground) -> Iterator[str]:
    """What a person should know besides the values."""
    facts = found.fingerprint
    if found.instances is not None:
        yield (
            f"{found.instances.text} Planned is one class, foreground, whose answers are cut into"
            " numbered objects by the step 'instances'; objects that touch along a face stay"
            " together. Networks that learn borders or flows come later."
        )
    if facts.layout == "competition":
        yield (
            "This is the layout of the surface competition, for which configs/surface.yaml was"
            " made: topology-aware losses, its score as a metric."
        )
    if found.labels and not found.small:
        yield from names.unknown_channels(channel_names(facts))
    yield from (
        f"{pair.text}: no sample is mirrored so that they change places" for pair in found.pairs
    )
    mixed = share_below_patch(found)
    if mixed:
        yield mixed
    if found.rules.cascade and not found.small:
        yield (
            "nnU-Net would also train a cascade (full resolution on the answers of the low one),"
            " which is not offered here."
        )
    if found.spacing is None and facts.dims == 3 and any(c.spacing for c in facts.cases):
        without = [c.id for c in facts.cases if c.spacing is None]
        yield (
            f"{len(without)} of {len(facts.cases)} files do not say their spacing (e.g."
            f" {without[0]}), so nothing is resampled and a network sees voxels of any size."
        )


def configurations(plan: DatasetPlan) -> list[str]:
    """Table of the configurations that were looked at.

    Args:
        plan: a plan.

    Returns:
        Lines; the one that was taken is marked with ``*``.
    """
    spaced = "spacing (mm)" if plan.ground.spacing else "spacing"
    lines = [f"  {'':<13}{'patch':<16}{'batch':>5}  {spaced:<20}why"]
    for row in plan.ground.rows:
        name = f"{'*' if row.taken else ' '} {row.name}"
        if row.planned is None:
            lines += _beside(f"  {name:<13}{'-':<16}{'-':>5}  {'-':<20}", row.why)
            continue
        spacing = (
            " x ".join(f"{s:.3g}" for s in row.planned.spacing) if plan.ground.spacing else "-"
        )
        shape = f"{shape_text(row.planned.patch):<16}{row.planned.batch:>5}"
        lines += _beside(f"  {name:<13}{shape}  {spacing:<20}", row.why)
    return lines


def _beside(left: str, text: str) -> list[str]:
    """Text in a column of its own, broken at words."""
    column = " " * len(left)
    return textwrap.wrap(text, WIDTH, initial_indent=left, subsequent_indent=column) or [left]


def decisions(plan: DatasetPlan) -> list[str]:
    """Table of the values and why they were chosen.

    Args:
        plan: a plan.

    Returns:
        Lines; a proposal begins with ``#``, a reason that does not fit has lines of its own.
    """
    lines = []
    for setting in plan.settings:
        if not setting.reason:
            continue
        text = json.dumps(setting.value, ensure_ascii=False)
        short = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
        head = f"  {'# ' if setting.proposed else ''}{setting.key}: {short}"
        if len(head) + len(setting.reason) + 3 <= WIDTH:
            lines.append(f"{head}   {setting.reason}")
            continue
        lines += [head, *_beside("      ", setting.reason)]
    return lines


def costs(plan: DatasetPlan) -> list[str]:
    """Expected memory and time, in words.

    Args:
        plan: a plan.

    Returns:
        Lines of text.
    """
    made = plan.ground.configuration
    expected = None
    if made.elements:
        expected = elements_to_bytes(made.elements, made.batch, plan.config.train.amp)
    if plan.cost is None:
        text = "not measured: this machine has no CUDA device; plan again where it is trained"
        known = "" if expected is None else f"expected {expected / 1e9:.1f} GB; "
        return [f"Memory and time: {known}{text}"]
    return schedule.lines(plan.cost, plan.schedule, expected)


def _header(plan: DatasetPlan, date: str) -> Iterator[str]:
    facts, request = plan.fingerprint, plan.ground.request
    rules = (
        f"nnU-Net's rules, preset {plan.ground.preset}" if plan.ground.preset else "our own rules"
    )
    memory = f" for {request.gigabytes:g} GB" if request.gigabytes else ""
    minutes = f", {request.minutes:g} minutes" if request.minutes else ""
    yield f"{date}: {len(facts.cases)} cases of {facts.root}, {rules}{memory}{minutes}."
    yield "Change what you like: docs/reference/config.md is the manual of every key."
    yield from (line.strip() for line in costs(plan))
    yield from (f"Note: {text}" for text in plan.remarks)
