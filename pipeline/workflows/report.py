"""Write the report of a run or of a folder of predictions: one self-contained HTML page."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from pipeline import files, reporting
from pipeline.config import ConfigError, parse_yaml
from pipeline.files import FileError, lock
from pipeline.inference import outputs
from pipeline.planning import annotated, plan_file, sheets, stored
from pipeline.records import UserError
from pipeline.reporting.planned import Planned, PlanRow
from pipeline.runs import RunFolder

logger = logging.getLogger(__name__)


def write_report(run: Path | str | RunFolder) -> Path:
    """Write ``report.html`` into a folder; it needs no network and no script to be read.

    Args:
        run: a run folder of which a fold has ended, or a folder of predictions.

    Returns:
        The page's path.

    Raises:
        UserError: where the folder has no summary.json, without which there is nothing to report,
            or may not be written, or a command is writing there.

    Example:
        >>> write_report("nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        pipeline.records.UserError: nowhere: no summary.json, so this is no run of which ...
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    predicted = outputs.is_prediction(folder.path)
    if not predicted:
        folder.require_plugins()
    if os.path.isdir(folder.path):
        files.require_writable("", folder.path)
    if predicted:
        _require_ended(folder.path)
        page = reporting.build_predictions(folder.path)
    else:
        page = reporting.build(folder.path, plan_of(folder))
    files.write_text(folder.report_file, page)
    return folder.report_file


def _require_ended(folder: Path) -> None:
    """Refuse a folder of predictions that a command is writing to."""
    owner = lock.owner(folder / lock.NAME)
    if owner is not None:
        raise UserError(f"{folder} is being written by {owner}. Wait until that is done.")


def plan_of(run: RunFolder) -> Planned | None:
    """Read the plan that a run keeps, with the fingerprint beside it.

    Args:
        run: the run folder.

    Returns:
        Its values and tables; what cannot be read is in its gaps. None where the run was not
        planned.
    """
    if not run.plan_file.is_file():
        return None
    text = run.plan_file.read_text(encoding="utf-8", errors="replace")
    rows = [
        PlanRow(
            key=d.key, text=d.value, value=_value(d.value), reason=d.reason, proposed=d.proposed
        )
        for d in annotated.decisions(text)
    ]
    gaps = [] if rows else ["plan.yaml holds no values that can be read"]
    facts: list[sheets.Sheet] = []
    try:
        facts = sheets.sheets(stored.read(run.fingerprint_file))
    except FileError as error:
        gaps.append(f"fingerprint.json: {error.problem}")
    return Planned(
        header=annotated.header(text),
        rows=rows,
        sheets=facts,
        text=text,
        gaps=tuple(gaps),
        edited=not files.is_unchanged(plan_file.MARK, text),
    )


def _value(text: str) -> Any:
    """The value of a text of YAML; the text where it is none."""
    try:
        return parse_yaml(text)
    except ConfigError:
        return text
