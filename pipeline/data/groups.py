"""Groups of cases, which folds keep together: from a pattern of ids or a CSV file."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from pipeline import files
from pipeline.data import patterns
from pipeline.data.layouts import Search
from pipeline.data.listing import SHOWN, first_names, is_empty
from pipeline.records import Case


def groups_by_pattern(search: Search, cases: Sequence[Case], pattern: str) -> list[Case]:
    """The cases with the group that ``data.folds.pattern`` finds in their ids.

    Args:
        search: takes what is wrong.
        cases: the training cases.
        pattern: a regular expression; the group is what its first capturing group matches.

    Returns:
        The cases in their order, each with a group.
    """
    try:
        groups = dict(
            zip(
                [c.id for c in cases],
                patterns.first_groups(pattern, [c.id for c in cases]),
                strict=True,
            )
        )
    except TimeoutError:
        problem = (
            f"has ids for which data.folds.pattern {pattern!r} takes more than"
            f" {patterns.SECONDS:g} s"
        )
        search.fault(
            search.root, problem, "Write it without a repetition inside a repetition, such as (a+)+"
        )
        return list(cases)
    for case in [c for c in cases if not groups[c.id]]:
        problem = f"has the id {case.id}, in which data.folds.pattern {pattern!r} finds no group"
        search.fault(
            case.image[0],
            problem,
            "Rename the file, or correct the pattern so that its first bracket fits every id",
        )
    return [dataclasses.replace(c, group=groups[c.id] or None) for c in cases]


def groups_from_csv(
    search: Search, cases: Sequence[Case], tests: Sequence[str], optional: bool
) -> list[Case]:
    """The cases with their group from train.csv, where there is one.

    Args:
        search: takes what is wrong.
        cases: the training cases.
        tests: ids of test cases, whose rows are nothing to warn of.
        optional: whether the layout does not know that file.

    Returns:
        The cases in their order; without groups where there is no such file.
    """
    path = search.root / "train.csv"
    if not os.path.lexists(path):
        return list(cases)
    groups = _read_groups(search, path, optional)
    present = {*tests, *(case.id for case in cases)} if optional else {case.id for case in cases}
    _report_rows(
        search,
        path,
        [name for name in groups if name not in present],
        [c.id for c in cases if groups and c.id not in groups],
    )
    return [dataclasses.replace(c, group=groups.get(c.id)) for c in cases]


def _report_rows(
    search: Search, path: Path, deprecated: Sequence[str], unlisted: Sequence[str]
) -> None:
    """Warn of rows without files and of files without a row."""
    if deprecated:
        search.fault(
            path,
            f"names {len(deprecated)} ids without any file ({first_names(deprecated)})",
            "These deprecated rows are skipped",
            warning=True,
        )
    if unlisted:
        suggestion = "They are used, but have no group: add rows if folds go by group"
        search.fault(
            path,
            f"lacks {len(unlisted)} ids that have files ({first_names(unlisted)})",
            suggestion,
            warning=True,
        )


def _read_groups(search: Search, path: Path, optional: bool) -> dict[str, str | None]:
    """Column scroll_id (or group) of train.csv by id.

    Empty where the file cannot be used, which is a fault.
    """
    try:
        header, rows = (
            files.read_table(path, ("id", "scroll_id", "group")) if not is_empty(path) else ((), [])
        )
    except files.FileError as error:
        suggestion = f"{error.suggestion}; it should have the columns id,scroll_id"
        search.fault(path, f"cannot be read: it {error.problem}", suggestion, warning=optional)
        return {}
    if "id" not in header or not rows:
        have = (", ".join(header)[:SHOWN] or "nothing") + (
            "" if rows or not header else ", and no row"
        )
        search.fault(
            path,
            f"has no column 'id', but {have}",
            "It should begin with id,scroll_id",
            warning=optional,
        )
        return {}
    table: dict[str, str | None] = {}
    for row in rows:
        name = unicodedata.normalize("NFC", row.values["id"])
        group = row.values.get("scroll_id") or row.values.get("group") or None
        if not name:
            search.fault(
                path, f"has no id in line {row.line}", "Correct that line", warning=optional
            )
        elif table.setdefault(name, group) != group:
            problem = f"puts {name} into two groups, {table[name]} and {group} (line {row.line})"
            search.fault(path, problem, "Keep one row per id")
    return table
