"""The dry run: every fault that a start of training would refuse, listed at once.

Nothing is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pipeline import limits
from pipeline.config import Config, Problem, Reading, examine
from pipeline.data import cache
from pipeline.records import UserError
from pipeline.runs import load_named_plugins, present
from pipeline.training import checkpoint
from pipeline.workflows.checks import entries, places
from pipeline.workflows.checks.grouping import count_errors, log_fault, log_faults
from pipeline.workflows.checks.places import Request, Start
from pipeline.workflows.checks.preflight import (
    NOTED,
    Examined,
    as_warnings_if_old,
    examine_data,
    fold_problems,
    log_found,
    logger,
    name_problems,
    run_problems,
    with_numbers,
)


class _Report:
    """Log each problem once, when it is found, and count the errors."""

    def __init__(self, path: Path) -> None:
        self.path, self.errors, self.reported = path, 0, set[str]()

    def __call__(self, problems: Iterable[Problem], reading: Reading | None = None) -> None:
        for problem in problems:
            replaced = reading is not None and any(reading.relies_on(key) for key in problem.keys)
            if not replaced and problem.text not in self.reported:
                self.reported.add(problem.text)
                self.errors += problem.severity == "error"
                log_fault(problem.severity, f"{self.path}: {problem.text}")


def dry_run(path: Path, overrides: Sequence[str], request: Request) -> None:
    """Run all checks of a start without starting: list every fault of config and data.

    Args:
        path: file of the config.
        overrides: ``KEY=VALUE`` texts that replace values of it.
        request: folds, device and folders that training would be asked for.

    Raises:
        UserError: where there is an error.
    """
    reading, report = examine(path, overrides), _Report(path)
    report(reading.problems)
    if reading.config is None:
        raise UserError(
            count_errors(
                report.errors, "the config, which has to be mended before the rest can be checked"
            )
        )
    config = request.on_data(reading.config)
    report(_caught(lambda: load_named_plugins(path, config)), reading)
    try:
        start = request.start(config)
    except UserError as error:
        report([Problem(str(error))])
        start = dataclasses.replace(request, folds=None).start(config)
    report(_caught(start.run.require_plugins) if start.continues else ())
    for found in (name_problems, places.unwritable):
        report(found(config, start), reading)
    report(places.taken(start))
    report(_state_problems(start))
    report(places.another_config(config, start) if not reading.problems else ())
    cases = _check_data(limits.clipped(config), start, reading, report)
    if report.errors:
        raise UserError(count_errors(report.errors, "config and data"))
    logger.info(f"Dry run: {cases} cases, config and data are good; nothing was started.")


def _caught(work: Callable[[], None]) -> Iterator[Problem]:
    """The UserError of ``work``, if it raises one, as a problem."""
    try:
        work()
    except UserError as error:
        yield Problem(str(error), ("plugins",))


def _state_problems(start: Start) -> Iterator[Problem]:
    """Folds to be resumed of which all saved states are damaged."""
    existing = [fold.path.name for fold in start.run.fold_folders()] if start.continues else []
    for fold in (start.run.fold(n) for n in present(start.folds, existing)):
        try:
            if not fold.completed:
                checkpoint.load_fold(fold.states, warn=False)
        except checkpoint.CheckpointError as error:
            yield Problem(str(error))
        except UserError:
            continue  # reported by RunFolder.damaged


def _check_data(config: Config, start: Start, reading: Reading, report: _Report) -> int:
    """Check the data; return the number of cases."""
    replaced = [key for key in NOTED if reading.relies_on(key)]
    if replaced:
        report(
            [
                Problem(
                    f"{', '.join(replaced)}: the data are checked with the default, faults below"
                    " may come from that.",
                    severity="warning",
                )
            ]
        )
    readable = entries.readable(config)
    found, faults = examine_data(readable, start, write=False)
    report.errors += log_faults(faults)
    log_found(config, found)
    report(_case_problems(config, start, found), reading)
    channels = {f.shapes["image"][0] for f in found.properties if "image" in f.shapes}
    if len(channels) == 1:
        number = channels.pop()
        if not any(f.problems for f in found.properties):
            report(_number_problems(readable, start, found), reading)
        report(
            (
                ()
                if entries.is_guessed(config, number)
                else as_warnings_if_old(entries.problems(config, number), start)
            ),
            reading,
        )
        report(as_warnings_if_old(entries.for_cases(config, found.properties), start), reading)
    return len(found.cases)


def _number_problems(config: Config, start: Start, found: Examined) -> Iterator[Problem]:
    """Whether the normalisation finds its numbers in the data."""
    try:
        with_numbers(config, found, start)
    except UserError as error:
        yield Problem(str(error), ("data.normalise",))


def _case_problems(config: Config, start: Start, found: Examined) -> Iterator[Problem]:
    """Whether the cases can be split, are those of an existing run, and fit into the cache.

    A cache that may not be written has to hold all of them already.
    """
    if not found.cases:
        return
    yield from fold_problems(config, start, found)
    sound = all(f.content and not f.problems for f in found.properties)
    if sound and start.continues:
        yield from run_problems(start, found)
    cache_path = cache.cache_folder(config.data, start.folder)
    if sound:
        yield from _room_problems(config, cache_path, found)
    if sound and cache_path.is_dir() and (reason := places.refused(cache_path)):
        lacking = cache.missing_cases(found.cases, found.properties, config, cache_path)
        if lacking:
            text = (
                f"{cache_path}: the store may not be written ({reason}), and lacks"
                f" {len(lacking)} cases, e.g. {lacking[0]}."
            )
            yield Problem(f"{text} Set data.store to another folder.", ("data.store",))


def _room_problems(config: Config, cache_path: Path, found: Examined) -> Iterator[Problem]:
    """Whether the cache fits on its disk."""
    try:
        text = cache.require_room(found.cases, found.properties, config, cache_path)
    except OSError as error:
        yield Problem(str(error))
    else:
        yield from [Problem(text, severity="warning")] if text is not None else ()
