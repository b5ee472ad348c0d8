"""Write the report of a run: one self-contained HTML page."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pipeline import files, reporting
from pipeline.runs import RunFolder

logger = logging.getLogger(__name__)


def write_report(run: Path | str | RunFolder) -> Path:
    """Write ``RUN/report.html``, which needs no network and no script to be read.

    Args:
        run: a run folder of which a fold has ended.

    Returns:
        The page's path.

    Raises:
        UserError: where the folder has no summary.json, without which there is nothing to report,
            or may not be written.

    Example:
        >>> write_report("nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        pipeline.records.UserError: nowhere: no summary.json, so this is no run of which ...
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    folder.require_plugins()
    if os.path.isdir(folder.path):
        files.require_writable("", folder.path)
    files.write_text(folder.report_file, reporting.build(folder.path))
    return folder.report_file
