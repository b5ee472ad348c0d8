"""Write the report of a run or of a folder of predictions: one self-contained HTML page."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pipeline import files, reporting
from pipeline.files import lock
from pipeline.inference import outputs
from pipeline.records import UserError
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
    page = reporting.build_predictions if predicted else reporting.build
    files.write_text(folder.report_file, page(folder.path))
    return folder.report_file


def _require_ended(folder: Path) -> None:
    """Refuse a folder of predictions that a command is writing to."""
    owner = lock.owner(folder / lock.NAME)
    if owner is not None:
        raise UserError(f"{folder} is being written by {owner}. Wait until that is done.")
