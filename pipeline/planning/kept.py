"""Plans as the texts of their files: those of a new plan, and those of a file that is one."""

from __future__ import annotations

import json
import time
from pathlib import Path

from pipeline.planning import plan_file, stored
from pipeline.planning.decide import DatasetPlan
from pipeline.runs import KeptPlan, RunFolder


def as_kept(plan: DatasetPlan) -> KeptPlan:
    """A plan as the texts of its files.

    Args:
        plan: the plan.

    Returns:
        YAML and JSON.
    """
    return KeptPlan(
        text=plan.text(time.strftime("%Y-%m-%d")),
        fingerprint=json.dumps(stored.as_json(plan.fingerprint), indent=1, ensure_ascii=False),
    )


def read_kept(config: Path) -> KeptPlan | None:
    """The plan that a config file is, edited or not, with the fingerprint beside it.

    Args:
        config: the file; anything else (a pipe, a device) is not opened.

    Returns:
        Its texts; None where it is no plan.
    """
    try:
        if not config.is_file() or not _begins_as_plan(config):
            return None
        text = config.read_text(encoding="utf-8")
        run, beside = RunFolder(config.parent), plan_file.fingerprint_path(config)
        if config.name == run.plan_file.name and not beside.is_file():  # the plan that a run keeps
            beside = run.fingerprint_file
        fingerprint = beside.read_text(encoding="utf-8") if beside.is_file() else None
    except (OSError, UnicodeDecodeError):
        return None
    return KeptPlan(text=text, fingerprint=fingerprint)


def _begins_as_plan(path: Path) -> bool:
    """Whether a file begins as plans do; of others nothing more is read."""
    with path.open("rb") as file:
        return plan_file.is_plan(file.read(len(plan_file.MARK)).decode(errors="replace"))
