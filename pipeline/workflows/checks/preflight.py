"""Checks before training: names first, within a second, then the data.

Nothing is written but the properties of cases, and those by a start only.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import files, limits
from pipeline.config import Config, ConfigError, Problem, numbers
from pipeline.data import cache, checks, described, folds, own_splits, resolve, world
from pipeline.data import cases as case_finder
from pipeline.data import properties as case_properties
from pipeline.data.folds import Split
from pipeline.data.layouts import layout_of, no_images
from pipeline.data.properties import CaseProperties
from pipeline.progress import progress_callback
from pipeline.records import ALL, Case, Fault, FoldName, UserError
from pipeline.runs import RunFolder
from pipeline.tasks import TASKS
from pipeline.workflows.checks import entries, places
from pipeline.workflows.checks.grouping import count_errors, grouped, log_fault, log_faults
from pipeline.workflows.checks.places import Start

logger = logging.getLogger(__name__)


NOTED = (
    "task",
    "data.dims",
    "data.classes",
    "data.regions",
    "data.targets",
    "data.folders",
    "data.ignore_label",
    "data.binarise",
    "data.frames",
)
"""Config keys that decide how data are checked."""


class DataError(UserError):
    """Data that cannot be used.

    Args:
        message: the closing sentence.
        faults: the lines that were logged.
    """

    def __init__(self, message: str, faults: Sequence[str]) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class Examined(NamedTuple):
    """The cases of a data set and what was found in them.

    Args:
        cases: the training cases.
        properties: theirs, in the same order.
        layout: how the files are arranged in folders.
    """

    cases: tuple[Case, ...]
    properties: Sequence[CaseProperties]
    layout: str
    tests: int
    """Number of test images."""


def refuse(config: Config, start: Start, source: str) -> None:
    """Check what is known before data are read, and log warnings.

    Args:
        config: the resolved config.
        start: folder, folds and device of the run.
        source: what messages call the config.

    Raises:
        ConfigError: with everything that is wrong with names and paths.
    """
    found = [*name_problems(config, start), *places.unwritable(config, start)]
    errors = [p for p in found if p.severity == "error"]
    if os.environ.get("RANK", "0") == "0":
        for problem in found:
            # Long listings are logged; the error holds their last line.
            if problem.severity == "warning" or "\n" in problem.text:
                log_fault(problem.severity, f"{source}: {problem.text}")
    if errors:
        raise ConfigError(f"{source}:\n  " + "\n  ".join(p.text.splitlines()[-1] for p in errors))


def name_problems(config: Config, start: Start) -> Iterator[Problem]:
    """Check everything that is known without data, cheap things first.

    A fault that an old run began with, before it was refused, is a warning.

    Args:
        config: the resolved config.
        start: folder, folds and device of the run.

    Yields:
        Errors and warnings.
    """
    if start.continues:
        yield from start.run.damaged()
    yield from as_warnings_if_old(
        (*limits.problems(config), *places.problems(config, start)), start
    )
    yield from places.device(start.device)
    yield from as_warnings_if_old(places.broken_types(config, start.device), start)
    yield from as_warnings_if_old(entries.problems(limits.clipped(config), None), start)


def as_warnings_if_old(problems: Iterable[Problem], start: Start) -> Iterator[Problem]:
    """Turn problems into warnings where a run goes on that began before they were checked.

    Args:
        problems: errors and warnings.
        start: the run.

    Yields:
        The problems, in the same order.
    """
    old = _is_old(start)
    for problem in problems:
        yield dataclasses.replace(problem, severity="warning") if old else problem


def _is_old(start: Start) -> bool:
    """Whether a run goes on that began with metrics version 1."""
    try:
        return start.continues and start.run.metrics_version() < 2
    except UserError:
        return False  # reported by RunFolder.damaged


def check_names(
    config: Config, properties: Sequence[CaseProperties], start: Start | None = None
) -> tuple[int, int]:
    """Check every name and option once the images' channels are known.

    Of a ``start`` that continues an old run, :func:`refuse` has logged the faults as warnings.

    Args:
        config: the resolved config.
        properties: of all training cases.
        start: the run; None: every fault is an error.

    Returns:
        Input and output channels of the network.

    Raises:
        UserError: where images have different numbers of channels.
        ConfigError: for names and options that cannot be used.
    """
    channels = sorted({f.shapes["image"][0] for f in properties})
    if len(channels) != 1:
        raise UserError(
            f"images have different numbers of channels: {channels}. Bring them to the same number."
        )
    known = start is not None and entries.is_guessed(config, channels[0])
    found = [
        *(() if known else entries.problems(config, channels[0])),
        *entries.for_cases(config, properties),
    ]
    errors = [p.text for p in found if p.severity == "error"]
    if errors and not (start is not None and _is_old(start)):
        raise ConfigError("\n  ".join(errors))
    return channels[0], TASKS[config.rules].channels(config, channels[0])


def with_numbers(config: Config, found: Examined, start: Start) -> tuple[Config, Examined]:
    """Put the numbers that the normalisation takes from the data into config and properties.

    Of a run that goes on they are those of the run.

    Args:
        config: the user's config.
        found: the cases, of one number of channels.
        start: the run.

    Returns:
        The config, and the cases with complete scales.

    Raises:
        UserError: where the run's config cannot be read, or no foreground was found.
    """
    if start.continues:
        config = numbers.filled(config, start.run.config())
    config = resolve.resolved(config, found.properties)
    properties = [case_properties.completed(p, config) for p in found.properties]
    return config, found._replace(properties=properties)


def check_data(config: Config, run: Path, write: bool, fresh: bool = False) -> Examined:
    """Find and check every training case; log every fault.

    Args:
        config: the resolved config.
        run: the run folder.
        write: keep the properties of cases in the cache.
        fresh: an existing run is put aside.

    Returns:
        The cases and what was found in them.

    Raises:
        DataError: when any fault is an error.
    """
    found, faults = examine_data(config, Start(folder=run, folds=(), fresh=fresh), write)
    errors = log_faults(faults)
    if errors:
        raise DataError(
            count_errors(errors, "the data"), [str(f) for f in faults if f.severity == "error"]
        )
    log_found(config, found)
    return found


def require_images(config: Config) -> None:
    """Check that the data set's folder holds training images, by its names alone; log a fault.

    Args:
        config: the resolved config.

    Raises:
        DataError: where it holds none.
    """
    root = Path(config.data.root)
    if layout_of(config.data, root) is None:
        fault = no_images(config.data, root)
        raise DataError(count_errors(log_faults([fault]), "the data"), [str(fault)])


def examine_data(config: Config, start: Start, write: bool) -> tuple[Examined, list[Fault]]:
    """Find and check every training case.

    Args:
        config: the resolved config.
        start: the run.
        write: keep the properties of cases in the cache.

    Returns:
        The cases with what was found in them, and the faults.
    """
    root, cache_path = Path(config.data.root), cache.cache_folder(config.data, start.folder)
    found = case_finder.find(config.data, config.roles, root)
    properties = case_properties.examine(
        found.train, config, cache_path, write=write, progress=progress_callback("checking cases")
    )
    faults = [
        *found.faults,
        *checks.faults(properties, found.train, config),
        *world.faults(properties, found.train, root, start.continues, config.data),
        *_large_patch(config, properties, root),
        *_other_classes(config, root),
        *_other_regions(config, root),
        *_other_scans(config, root),
    ]
    return Examined(found.train, properties, found.layout, len(found.test)), grouped(
        faults, found.train
    )


def log_found(config: Config, found: Examined) -> None:
    """Log how many cases and test images there are.

    Args:
        config: names the data set folder.
        found: the cases.
    """
    stacks = sum(case.block == 0 for case in found.cases)
    what = (
        f"blocks of {stacks} {'stack' if stacks == 1 else 'stacks'}"
        if stacks
        else "image-label pairs"
    )
    logger.info(
        f"Found {len(found.cases)} {what} in {config.data.root} (layout {found.layout}),"
        f" {found.tests} test images"
    )


def _large_patch(
    config: Config, properties: Sequence[CaseProperties], root: Path
) -> Iterator[Fault]:
    """Warn of a patch that is mostly padding in every case."""
    sizes = [f.model_size for f in properties if "image" in f.shapes]
    largest = (
        [max(axis) for axis in zip(*sizes, strict=True)]
        if len({len(s) for s in sizes}) == 1
        else []
    )
    if any(
        wanted > 2 * have for wanted, have in zip(config.data.patch.size, largest, strict=False)
    ):
        by = "x".join(map(str, largest))
        problem = (
            f"holds no image larger than {by}; data.patch.size {list(config.data.patch.size)} is"
            " more than twice as long"
        )
        yield Fault(
            path=root,
            problem=problem,
            suggestion="Most of a patch would be padding: lower data.patch.size",
            severity="warning",
        )


def _other_classes(config: Config, root: Path) -> Iterator[Fault]:
    """Warn where a dataset.json names classes or an ignored label that the config treats otherwise.

    The labels alone do not show it.
    """
    data, path = config.data, root / "dataset.json"
    names, ignored = case_finder.class_names(root), case_finder.ignore_label(root)
    if not TASKS[config.rules].decides or data.binarise is not None or not names:
        return
    regions = described.regions(root)
    largest = max(max(names), 0 if regions is None else regions.largest)

    def fault(problem: str, suggestion: str) -> Fault:
        return Fault(path=path, problem=problem, suggestion=suggestion, severity="warning")

    if data.ignore_label in names:
        problem = (
            f"calls {data.ignore_label} {names[data.ignore_label]!r}, but data.ignore_label is"
            f" {data.ignore_label}: it is not learned"
        )
        yield fault(problem, f"To learn it set data.ignore_label=null data.classes={largest + 1}")
    if ignored is not None and data.ignore_label != ignored and ignored < data.classes:
        problem = (
            f"calls {ignored} 'ignore', but data.ignore_label is {data.ignore_label}: it is learned"
            " as a class"
        )
        yield fault(
            problem, f"To ignore it set data.ignore_label={ignored} data.classes={largest + 1}"
        )
    elif data.classes > largest + 1:
        yield fault(
            f"names classes up to {largest}, but data.classes is {data.classes}",
            f"Set data.classes={largest + 1}",
        )


def _other_regions(config: Config, root: Path) -> Iterator[Fault]:
    """Warn where a dataset.json names regions and the config trains classes."""
    found = described.regions(root)
    if not TASKS[config.rules].decides or found is None or config.data.regions is not None:
        return
    names = ", ".join(f"{name} {list(values)}" for name, values in found.members.items())
    yield Fault(
        path=root / "dataset.json",
        problem=f"names regions ({names}), but data.regions is null: label values are learned as"
        " classes",
        suggestion=f"To train regions set {found.snippet}",
        severity="warning",
    )


def _other_scans(config: Config, root: Path) -> Iterator[Fault]:
    """Warn where a dataset.json calls a channel CT, and it is normalised by itself.

    Hounsfield units mean the same in every scan.
    """
    names = case_finder.channel_names(root)
    method = numbers.entries(config.data.normalise)
    each = method * len(names) if len(method) == 1 else method
    scans = [
        n
        for n, (name, entry) in enumerate(zip(names, each, strict=False))
        if name.strip().lower() == "ct" and entry.name not in ("ct", "range", "none")
    ]
    if scans and TASKS[config.rules].decides:
        yield Fault(
            path=root / "dataset.json",
            problem=f"calls channel {', '.join(map(str, scans))} CT, but data.normalise"
            f" {each[scans[0]].name!r} takes the scale of each image from itself",
            suggestion="To keep Hounsfield units apart set data.normalise=ct, or ct for that"
            " channel of a list",
            severity="warning",
        )


def planned_folds(config: Config, run: Path, data: Examined, write: bool) -> list[Split]:
    """The folds of a run; those that it has already where it exists.

    Args:
        config: the resolved config.
        run: the run folder.
        data: the cases.
        write: write splits.json.

    Returns:
        Training and validation ids, by fold.

    Raises:
        UserError: where the cases cannot be split so.
    """
    rules, own = config.data.folds, own_splits.path_of(config.data)
    contents = {f.id: f.content for f in data.properties}
    about: dict[str, Any] = {"seed": config.seed, "by": rules.by, "count": rules.count}
    if rules.by == "block":
        about |= {"margin": rules.margin, "axis": rules.axis}
    if own is not None:
        checked = own_splits.splits(own, data.cases, contents, rules)
        about["file"] = files.sha256(own)
    return (folds.load_or_make if write else folds.load_or_plan)(
        RunFolder(run).splits_file,
        lambda: folds.split(data.cases, contents, rules, config.seed) if own is None else checked,
        [c.id for c in data.cases],
        about,
    )


def run_problems(start: Start, found: Examined, config: Config | None = None) -> Iterator[Problem]:
    """Check that the cases are those of the run that goes on.

    Args:
        start: an existing run.
        found: the cases.
        config: the resolved config, whose own changes are listed first: other blocks of a stack are
            other cases; None: it was compared already.

    Yields:
        At most one problem, which lists all changes.
    """
    try:
        changes = start.run.changed_cases(
            case_properties.case_listing(found.cases, found.properties)
        )
        if changes and config is not None:
            changes = [*start.run.changed_settings(config), *changes]
    except UserError as error:
        yield Problem(str(error))
        return
    if changes:
        yield Problem(start.run.refusal(changes))


def check_folds(config: Config, found: Examined, start: Start) -> None:
    """Check that the folds asked for can be trained on these cases; log warnings.

    Args:
        config: the resolved config.
        found: the cases.
        start: the run.

    Raises:
        UserError: where the cases are not those of a run that goes on, cannot be split, or leave a
            fold nothing to learn from.
    """
    changed = list(run_problems(start, found, config)) if start.continues else []
    problems = changed or list(fold_problems(config, start, found))
    for problem in problems:
        if problem.severity == "warning":
            log_fault(problem.severity, problem.text)
    if errors := [p.text for p in problems if p.severity == "error"]:
        raise UserError("\n  ".join(errors))


def fold_problems(config: Config, start: Start, found: Examined) -> Iterator[Problem]:
    """Check that the cases can be split, and that each fold has something to learn from.

    Args:
        config: the resolved config.
        start: the run, and which of its folds.
        found: the cases.

    Yields:
        Errors; of an old run warnings.
    """
    try:
        plan = planned_folds(
            config, Path(os.devnull) if start.fresh else start.folder, found, write=False
        )
    except UserError as error:
        keys = ("data.folds.count", "data.folds.by", "data.folds.file")
        yield from (Problem(line.strip(), keys) for line in str(error).splitlines())
        return
    if (own := own_splits.path_of(config.data)) is not None:
        for text in own_splits.notes(own, plan, found.cases):
            yield Problem(text, ("data.folds.file",), "warning")
    ignored = {f.id for f in found.properties if _is_void(config, f)}
    sides: dict[FoldName, list[tuple[Sequence[str], str]]] = {
        n: [(split.train, "learn from"), (split.val, "validate on")] for n, split in enumerate(plan)
    }
    sides[ALL] = [([c.id for c in found.cases], "learn from")]
    for fold in start.folds:
        for ids, side in sides.get(fold, ()):
            if set(ids) <= ignored:
                text = (
                    f"fold {fold} has nothing to {side}: all voxels of its cases are ignored"
                    f" ({', '.join(ids[:5])})."
                )
                severity = "warning" if _is_old(start) else "error"
                yield Problem(
                    f"{text} Label some, look at data.ignore_label, or train other folds.",
                    ("data.ignore_label",),
                    severity,
                )


def _is_void(config: Config, properties: CaseProperties) -> bool:
    """Whether every voxel of a case's labels is ignored; an image target never is."""
    if config.data.ignore_label is None or "image" in config.targets.values():
        return False
    return all(
        set(properties.label_values.get(name, ("",))) == {str(config.data.ignore_label)}
        for name in config.targets
    )
