"""Log faults of data; one that all cases of a data set share is one line."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pipeline import files
from pipeline.records import Case, Fault

logger = logging.getLogger(__name__)

FEW = 3
"""Number of cases up to which each keeps its line, and of examples in a line for all."""


NUMBER = re.compile(r"(?<![\w.])\d+(?:[x.,]\d+)*")
"""Numbers and shapes in a text, but not those of a name such as uint16."""


def grouped(faults: Sequence[Fault], cases: Sequence[Case]) -> list[Fault]:
    """Merge a fault that every case has, whatever names and numbers it holds, into one.

    The merged fault keeps the position of the first. Where no case could be made of the files,
    every file that has the fault counts.

    Args:
        faults: in the order in which they were found.
        cases: all cases of the data set.

    Returns:
        The faults, in the same order.
    """
    owners = {path: case.id for case in cases for path in (*case.image, *case.targets.values())}
    same: dict[tuple[str, ...], list[Fault]] = defaultdict(list)
    for fault in faults:
        same[_template(fault, owners.get(fault.path, ""))].append(fault)
    out = []
    for fault in faults:
        group = same[_template(fault, owners.get(fault.path, ""))]
        affected = {owners.get(f.path, str(f.path)) for f in group}
        shared = len(affected) >= max(len(cases), FEW) and (
            not cases or all(f.path in owners for f in group)
        )
        if not shared:
            out.append(fault)
        elif fault is group[0]:
            out.append(_one_line(group, len(affected)))
    return out


def _template(fault: Fault, case_id: str) -> tuple[str, ...]:
    """Text of a fault without the names and numbers of its own case."""
    names = {n for n in (case_id, fault.path.name, files.stem(fault.path)) if n}
    pattern = "|".join(rf"\S*{re.escape(n)}\S*" for n in sorted(names, key=len, reverse=True))
    texts = (
        NUMBER.sub("#", re.sub(pattern, "*", t) if pattern else t)
        for t in (fault.problem, fault.suggestion)
    )
    return (fault.severity, *texts)


def _one_line(group: Sequence[Fault], count: int) -> Fault:
    """One fault that stands for all of a group."""
    first = group[0]
    others = ", ".join(f.path.name for f in group[1:FEW])
    return dataclasses.replace(
        first,
        path=Path(os.path.commonpath([f.path.parent for f in group])),
        problem=(
            f"all {count} cases have this fault: {first.path.name} {first.problem} (and"
            f" {others}{', ...' if count > FEW else ''})"
        ),
    )


def log_fault(severity: str, text: str) -> None:
    """Log one fault at the level of its severity.

    Args:
        severity: ``error`` or ``warning``.
        text: the line.
    """
    logger.log(logging.ERROR if severity == "error" else logging.WARNING, text)


def log_faults(faults: Sequence[Fault]) -> int:
    """Log all faults, warnings first.

    Args:
        faults: of the data.

    Returns:
        Number of errors among them.
    """
    errors = [f for f in faults if f.severity == "error"]
    for fault in [f for f in faults if f.severity == "warning"] + errors:
        log_fault(fault.severity, f"{fault.path}: {fault.problem}. {fault.suggestion}")
    return len(errors)


def count_errors(errors: int, where: str) -> str:
    """The closing sentence of a list of errors.

    Args:
        errors: their number.
        where: what was checked.

    Returns:
        Text for an exception.

    Example:
        >>> count_errors(1, "the data")
        '1 fault in the data; each line above says what to do. Nothing was started.'
    """
    return (
        f"{errors} fault{'s' if errors > 1 else ''} in {where}; each line above says what to do."
        " Nothing was started."
    )
