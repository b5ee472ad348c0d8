"""What a planned run began with: the fingerprint of its data, and each decision with its reason."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.reporting.html_tables import table
from pipeline.reporting.page import DASH, Safe, clock, escape, section
from pipeline.reporting.runs import Run, folds_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One value of a plan.

    Args:
        key: dotted key of the config.
        text: the value as it is written.
        value: the value itself.
        reason: why.
        proposed: it is a comment, for a person to decide.
    """

    key: str
    text: str
    value: Any
    reason: str
    proposed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The plan of a run.

    Args:
        header: lines that say what it was made for, and what it would cost.
        rows: its values.
        sheets: title, titles of columns and rows of tables of the data's fingerprint.
        text: the file.
        gaps: what could not be read, in words.
        edited: whether somebody changed the file after it was written.
    """

    header: Sequence[str]
    rows: Sequence[PlanRow]
    sheets: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]
    text: str
    gaps: Sequence[str] = ()
    edited: bool = False


def planned(run: Run, plan: Planned | None) -> str:
    """Sections of data and plan.

    Args:
        run: what was found of a run.
        plan: its plan; None: it was not planned.

    Returns:
        HTML, empty where the run was not planned.
    """
    if plan is None:
        return ""
    run.gaps.extend(plan.gaps)
    return _data(plan) + "\n" + _decisions(run, plan)


def _data(plan: Planned) -> str:
    """The fingerprint; all but the first table folded away."""
    parts = []
    for n, (title, head, rows) in enumerate(plan.sheets):
        body = table(head, [("", row) for row in rows])
        parts.append(
            f"<details{' open' if n == 0 else ''}><summary>{escape(title)}"
            f" ({len(rows)})</summary>{body}</details>"
        )
    note = "What pipeline.plan found when it looked at the training cases."
    return section("Data", *parts, note=note) if parts else ""


def _decisions(run: Run, plan: Planned) -> str:
    """Expected and actual cost, and a table of decisions, folded away."""
    rows, changed = [], 0
    for row in plan.rows:
        now = _changed(run.config, row)
        changed += now is not None
        name = Safe(
            re.sub(r"(?<=[._])", "<wbr>", escape(row.key))
            + (' <span class="badge">proposed</span>' if row.proposed else "")
            + (' <span class="badge stopped">changed</span>' if now is not None else "")
        )
        text = row.text if now is None else f"{row.text}\ntrained with {now}"
        lines = Safe("<br>".join(escape(line) for line in text.splitlines()))
        rows.append(("", [name, lines, row.reason]))
    head = f"Decisions ({len(rows)}, each with its reason)"
    if changed:
        head += f", {changed} changed before training"
    decided = (
        f'<details class="plan"><summary>{escape(head)}</summary>'
        f"{table(['key', 'value', 'reason'], rows)}</details>"
    )
    file = f"<details><summary>plan.yaml</summary><pre>{escape(plan.text)}</pre></details>"
    note = plan.header[0] if plan.header else ""
    if plan.edited:
        note += " The file was edited by hand: a reason may be that of another value."
    return section("Plan", _cost(run, plan, changed), decided, file, note=note)


def _cost(run: Run, plan: Planned, changed: int) -> str:
    """Expected time and memory beside what training took."""
    expected = {
        name: rest.strip()
        for line in plan.header
        for name, colon, rest in [line.partition(":")]
        if colon and name in ("Time", "Memory")
    }
    if not expected:
        return ""
    folds = folds_of(run)
    spent = sum(f.get("seconds") or 0 for f in folds)
    done = f"{clock(spent)} for {len(folds)} folds" if spent else DASH
    if changed:
        done += "; values were changed since"
    actual = {"Time": done, "Memory": "not recorded"}
    rows = [("", [name, text, actual[name]]) for name, text in expected.items()]
    return table(["", "expected", "actual"], rows)


def _changed(config: Mapping[str, Any], row: PlanRow) -> str | None:
    """The value that was trained with, where it is another than the plan's; None: it is not."""
    if row.proposed or not config or isinstance(row.value, Mapping):
        return None
    now: Any = config
    for key in row.key.split("."):
        if not isinstance(now, Mapping) or key not in now:
            return None
        now = now[key]
    if not (_flat(row.value) and _flat(now)) or "\n" in row.text:
        return None
    return None if now == row.value else str(now)


def _flat(value: Any) -> bool:
    """Whether a value is a number, a word or nothing, or a list of such."""
    plain = (str, int, float, bool, type(None))
    return isinstance(value, plain) or (
        isinstance(value, list) and all(isinstance(v, plain) for v in value)
    )
