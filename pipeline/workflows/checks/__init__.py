"""All that a start of training refuses, for the start and for its dry run: names first, within a second, and then the data.

A start ends with the first of the two that is wrong; a dry run goes through both and lists everything. Nothing is written here but the
facts of the data, and those by a start only.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline import limits
from pipeline.config import Config, ConfigError, Problem, Reading, examine
from pipeline.data import cache, checks, folds, world
from pipeline.data import cases as case_finder
from pipeline.data import properties as case_properties
from pipeline.data.folds import Split
from pipeline.data.properties import CaseProperties
from pipeline.progress import progress_callback
from pipeline.records import Case, Fault, UserError
from pipeline.runs import RunFolder, load_named_plugins, present
from pipeline.tasks import TASKS
from pipeline.training import checkpoint
from pipeline.workflows.checks import entries, places
from pipeline.workflows.checks.grouping import grouped
from pipeline.workflows.checks.places import Request, Start

__all__ = ["DataError", "Examined", "Request", "Start", "check_data", "check_folds", "check_names", "dry_run", "planned_folds", "refuse"]

logger = logging.getLogger(__name__)

NOTED = ("task", "data.dims", "data.classes", "data.targets", "data.folders", "data.ignore_label", "data.binarise", "data.frames")
"""Keys by which data are judged."""


class DataError(UserError):
    """Data that cannot be used; ``faults`` are the lines that were logged."""

    def __init__(self, message: str, faults: Sequence[str]) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class Examined(NamedTuple):
    """The cases of a data set, what was found in them, and how their files lie."""

    cases: tuple[Case, ...]
    properties: Sequence[CaseProperties]
    layout: str
    tests: int
    """Number of test images."""


# --- names ----------------------------------------------------------------------------------------------------------------


def refuse(config: Config, start: Start, source: str) -> None:
    """What a start does before it looks at data: warnings are printed, and ConfigError lists all that is wrong with names and places."""
    found = [*_names(config, start), *places.unwritable(config, start)]
    errors = [p for p in found if p.severity == "error"]
    if os.environ.get("RANK", "0") == "0":
        for problem in found:
            if problem.severity == "warning" or "\n" in problem.text:  # long listings do not belong into the error itself
                _log(problem.severity, f"{source}: {problem.text}")
    if errors:
        raise ConfigError(f"{source}:\n  " + "\n  ".join(p.text.splitlines()[-1] for p in errors))


def _names(config: Config, start: Start) -> Iterator[Problem]:
    """Everything that is known without data, cheap things first. What a run began with before it was refused is a warning."""
    if start.continues:
        yield from start.run.damaged()
    yield from _eased((*limits.problems(config), *places.problems(config, start)), start)
    yield from places.device(start.device)
    yield from _eased(entries.problems(limits.clipped(config), None), start)


def _eased(problems: Iterable[Problem], start: Start) -> Iterator[Problem]:
    """As warnings where a run that began before such things were looked for goes on by its own rules."""
    old = _is_old(start)
    for problem in problems:
        yield dataclasses.replace(problem, severity="warning") if old else problem


def _is_old(start: Start) -> bool:
    try:
        return start.continues and start.run.metrics_version() < 2
    except UserError:
        return False  # said by RunFolder.damaged


def check_names(config: Config, properties: Sequence[CaseProperties], start: Start | None = None) -> tuple[int, int]:
    """Check every name and option once the images' channels are known, and return input and output channels. Raises ConfigError.

    Of a ``start`` that goes on with an old run, :func:`refuse` has said as warnings what is wrong.
    """
    channels = sorted({f.shapes["image"][0] for f in properties})
    if len(channels) != 1:
        raise UserError(f"images have different numbers of channels: {channels}. Bring them to the same number.")
    known = start is not None and entries.is_guessed(config, channels[0])
    found = [*(() if known else entries.problems(config, channels[0])), *entries.for_cases(config, properties)]
    errors = [p.text for p in found if p.severity == "error"]
    if errors and not (start is not None and _is_old(start)):
        raise ConfigError("\n  ".join(errors))
    return channels[0], TASKS[config.task].channels(config, channels[0])


# --- data -----------------------------------------------------------------------------------------------------------------


def check_data(config: Config, run: Path, write: bool, fresh: bool = False) -> Examined:
    """Find and examine every training case; print every fault. Raises UserError when any is an error."""
    found, faults = _examined(config, Start(folder=run, folds=(), fresh=fresh), write)
    errors = _printed(faults)
    if errors:
        raise DataError(_count(errors, "the data"), [str(f) for f in faults if f.severity == "error"])
    _say_found(config, found)
    return found


def _examined(config: Config, start: Start, write: bool) -> tuple[Examined, list[Fault]]:
    root, place = Path(config.data.root), cache.cache_folder(config.data, start.folder)
    found = case_finder.find(config.data, config.roles, root)
    properties = case_properties.examine(found.train, config, place, write=write, progress=progress_callback("checking cases"))
    faults = [
        *found.faults,
        *checks.faults(properties, found.train, config),
        *world.faults(properties, found.train, root, start.continues),
        *_large_patch(config, properties, root),
        *_other_classes(config, root),
    ]
    return Examined(found.train, properties, found.layout, len(found.test)), grouped(faults, found.train)


def _say_found(config: Config, found: Examined) -> None:
    logger.info(f"Found {len(found.cases)} image-label pairs in {config.data.root} (layout {found.layout}), {found.tests} test images")


def _large_patch(config: Config, properties: Sequence[CaseProperties], root: Path) -> Iterator[Fault]:
    """A patch of which most would be padding in every case."""
    sizes = [f.shapes["image"][1:] for f in properties if "image" in f.shapes]
    largest = [max(axis) for axis in zip(*sizes, strict=True)] if len({len(s) for s in sizes}) == 1 else []
    if any(wanted > 2 * have for wanted, have in zip(config.data.patch.size, largest, strict=False)):
        by = "x".join(map(str, largest))
        problem = f"holds no image larger than {by}; data.patch.size {list(config.data.patch.size)} is more than twice as long"
        yield Fault(path=root, problem=problem, suggestion="Most of a patch would be padding: lower data.patch.size", severity="warning")


def _other_classes(config: Config, root: Path) -> Iterator[Fault]:
    """What a dataset.json calls classes or ignored, and the config otherwise; labels alone do not show it."""
    data, path = config.data, root / "dataset.json"
    names, void = case_finder.class_names(root), case_finder.ignore_label(root)
    if not TASKS[config.task].decides or data.binarise is not None or not names:
        return

    def told(problem: str, suggestion: str) -> Fault:
        return Fault(path=path, problem=problem, suggestion=suggestion, severity="warning")

    if data.ignore_label in names:
        problem = f"calls {data.ignore_label} {names[data.ignore_label]!r}, but data.ignore_label is {data.ignore_label}: it is not learned"
        yield told(problem, f"To learn it set data.ignore_label=null data.classes={max(names) + 1}")
    if void is not None and data.ignore_label != void and void < data.classes:
        problem = f"calls {void} 'ignore', but data.ignore_label is {data.ignore_label}: it is learned as a class"
        yield told(problem, f"To ignore it set data.ignore_label={void} data.classes={max(names) + 1}")
    elif data.classes > max(names) + 1:
        yield told(f"names classes up to {max(names)}, but data.classes is {data.classes}", f"Set data.classes={max(names) + 1}")


def planned_folds(config: Config, run: Path, data: Examined, write: bool) -> list[Split]:
    """The folds of the run, those that it has where it is there. Raises UserError where the cases cannot be split so."""
    rules = config.data.folds
    return (folds.load_or_make if write else folds.load_or_plan)(
        RunFolder(run).splits_file,
        lambda: folds.split(data.cases, {f.id: f.content for f in data.properties}, rules, config.seed),
        [c.id for c in data.cases],
        {"seed": config.seed, "by": rules.by, "count": rules.count},
    )


def _of_run(start: Start, found: Examined) -> Iterator[Problem]:
    try:
        changes = start.run.changed_cases(case_properties.case_listing(found.cases, found.properties))
    except UserError as error:
        yield Problem(str(error))
        return
    if changes:
        yield Problem(start.run.refusal(changes))


def check_folds(config: Config, found: Examined, start: Start) -> None:
    """Raise UserError where the cases are not those of a run that goes on, cannot be split, or leave a fold nothing to learn from."""
    changed = list(_of_run(start, found)) if start.continues else []
    problems = [p.text for p in changed or _of_folds(config, start, found) if p.severity == "error"]
    if problems:
        raise UserError("\n  ".join(problems))


def _of_folds(config: Config, start: Start, found: Examined) -> Iterator[Problem]:
    try:
        plan = planned_folds(config, Path(os.devnull) if start.fresh else start.folder, found, write=False)
    except UserError as error:
        yield Problem(str(error), ("data.folds.count", "data.folds.by"))
        return
    void = {f.id for f in found.properties if _is_void(config, f)}
    for fold in (n for n in start.folds if n < len(plan)):
        for ids, side in ((plan[fold].train, "learn from"), (plan[fold].val, "validate on")):
            if set(ids) <= void:
                text = f"fold {fold} has nothing to {side}: all voxels of its cases are ignored ({', '.join(ids[:5])})."
                severity = "warning" if _is_old(start) else "error"
                yield Problem(f"{text} Label some, look at data.ignore_label, or train other folds.", ("data.ignore_label",), severity)


def _is_void(config: Config, properties: CaseProperties) -> bool:
    """Whether every label of a case is ignored; an image beside the labels never is."""
    if config.data.ignore_label is None or "image" in config.targets.values():
        return False
    return all(set(properties.label_values.get(name, ("",))) == {str(config.data.ignore_label)} for name in config.targets)


# --- dry run --------------------------------------------------------------------------------------------------------------


class _Report:
    """Prints each problem when it is found, once, and counts the errors."""

    def __init__(self, path: Path) -> None:
        self.path, self.errors, self.said = path, 0, set[str]()

    def __call__(self, problems: Iterable[Problem], reading: Reading | None = None) -> None:
        for problem in problems:
            replaced = reading is not None and any(reading.relies_on(key) for key in problem.keys)
            if not replaced and problem.text not in self.said:
                self.said.add(problem.text)
                self.errors += problem.severity == "error"
                _log(problem.severity, f"{self.path}: {problem.text}")


def dry_run(path: Path, overrides: Sequence[str], request: Request) -> None:
    """Everything that a start would do except starting: lists all faults of config and data.

    Args:
        path: file of the config.
        overrides: ``KEY=VALUE`` laid over it.
        request: what training would be asked for.

    Raises:
        UserError: where there is an error.
    """
    reading, told = examine(path, overrides), _Report(path)
    told(reading.problems)
    if reading.config is None:
        raise UserError(_count(told.errors, "the config, which has to be mended before the rest can be checked"))
    config = request.on_data(reading.config)
    told(_caught(lambda: load_named_plugins(path, config)), reading)
    try:
        start = request.start(config)
    except UserError as error:
        told([Problem(str(error))])
        start = dataclasses.replace(request, folds=None).start(config)
    told(_caught(start.run.require_plugins) if start.continues else ())
    for found in (_names, places.unwritable):
        told(found(config, start), reading)
    told(places.taken(start))
    told(_of_states(start))
    told(places.another_config(config, start) if not reading.problems else ())
    cases = _dry_data(limits.clipped(config), start, reading, told)
    if told.errors:
        raise UserError(_count(told.errors, "config and data"))
    logger.info(f"Dry run: {cases} cases, config and data are good; nothing was started.")


def _caught(work: Callable[[], None]) -> Iterator[Problem]:
    try:
        work()
    except UserError as error:
        yield Problem(str(error), ("plugins",))


def _of_states(start: Start) -> Iterator[Problem]:
    """Folds that would go on from a saved state, of which all are damaged."""
    there = [fold.path.name for fold in start.run.fold_folders()] if start.continues else []
    for fold in (start.run.fold(n) for n in present(start.folds, there)):
        try:
            if not fold.completed:
                checkpoint.load_fold(fold.states, warn=False)
        except checkpoint.CheckpointError as error:
            yield Problem(str(error))
        except UserError:
            continue  # said by RunFolder.damaged


def _dry_data(config: Config, start: Start, reading: Reading, told: _Report) -> int:
    """The data's part of a dry run; returns the number of cases."""
    noted = [key for key in NOTED if reading.relies_on(key)]
    if noted:
        told([Problem(f"{', '.join(noted)}: the data are checked with the default, faults below may come from that.", severity="warning")])
    found, faults = _examined(entries.readable(config), start, write=False)
    told.errors += _printed(faults)
    _say_found(config, found)
    told(_of_cases(config, start, found), reading)
    channels = {f.shapes["image"][0] for f in found.properties if "image" in f.shapes}
    if len(channels) == 1:
        number = channels.pop()
        told(() if entries.is_guessed(config, number) else _eased(entries.problems(config, number), start), reading)
        told(_eased(entries.for_cases(config, found.properties), start), reading)
    return len(found.cases)


def _of_cases(config: Config, start: Start, found: Examined) -> Iterator[Problem]:
    """Whether the cases can be split, are those of the run that is there, and are in a store that cannot be written."""
    if not found.cases:
        return
    yield from _of_folds(config, start, found)
    sound = all(f.content and not f.problems for f in found.properties)
    if sound and start.continues:
        yield from _of_run(start, found)
    place = cache.cache_folder(config.data, start.folder)
    if sound:
        yield from _of_room(config, place, found)
    if sound and place.is_dir() and (reason := places.refused(place)):
        lacking = cache.missing_cases(found.cases, found.properties, config, place)
        if lacking:
            text = f"{place}: the store may not be written ({reason}), and lacks {len(lacking)} cases, e.g. {lacking[0]}."
            yield Problem(f"{text} Set data.store to another folder.", ("data.store",))


def _of_room(config: Config, place: Path, found: Examined) -> Iterator[Problem]:
    """Whether the store fits on its disk."""
    try:
        text = cache.require_room(found.cases, found.properties, config, place)
    except OSError as error:
        yield Problem(str(error))
    else:
        yield from [Problem(text, severity="warning")] if text is not None else ()


# --- words ----------------------------------------------------------------------------------------------------------------


def _log(severity: str, text: str) -> None:
    logger.log(logging.ERROR if severity == "error" else logging.WARNING, text)


def _printed(faults: Sequence[Fault]) -> int:
    """Print all faults, warnings first; returns how many are errors."""
    errors = [f for f in faults if f.severity == "error"]
    for fault in [f for f in faults if f.severity == "warning"] + errors:
        _log(fault.severity, f"{fault.path}: {fault.problem}. {fault.suggestion}")
    return len(errors)


def _count(errors: int, where: str) -> str:
    return f"{errors} fault{'s' if errors > 1 else ''} in {where}; each line above says what to do. Nothing was started."
