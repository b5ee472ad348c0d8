"""A run, or a folder of predictions, as one self-contained page.

Of a run: scores with intervals, curves, and the worst cases as pictures. Of predictions without
truth: volumes of each class, pictures, and what failed. The page needs no network and no script.
What a folder lacks (a failed fold, missing predictions) is listed, never an error.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.reporting import prediction_page, predictions, sections
from pipeline.reporting.page import document, footer
from pipeline.reporting.pictures import gallery
from pipeline.reporting.planned import Planned, planned
from pipeline.reporting.runs import load


def build(run: Path, plan: Planned | None = None) -> str:
    """Build the page of a run.

    Args:
        run: a run folder of which a fold has ended.
        plan: what the run was planned with; None: it was not planned.

    Returns:
        The page as HTML.

    Raises:
        UserError: where there is no summary.json, without which there is nothing to report.
    """
    found = load(run)
    # The sections come first: they add to the gaps that the head lists.
    parts = [
        sections.scores(found),
        sections.classes(found),
        sections.frames(found),
        sections.tuned(found),
        sections.curves(found),
        sections.groups(found),
        sections.distributions(found),
        gallery(found),
        planned(found, plan),
        sections.origin(found),
    ]
    return document(
        f"{found.summary.get('name', run.name)}: report",
        sections.headline(found) + "\n".join(parts) + footer(run),
    )


def build_predictions(folder: Path) -> str:
    """Build the page of a folder of predictions.

    Args:
        folder: what pipeline.predict or pipeline.ensemble wrote.

    Returns:
        The page as HTML.

    Raises:
        UserError: where its summary.json is none of this package.
    """
    found = predictions.load(folder)
    body = prediction_page.body(found)
    return document(f"{folder.resolve().name}: predictions", body + footer(folder))
