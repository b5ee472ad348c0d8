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
        config: the file.

    Returns:
        Its texts; None where it is no plan.
    """
    try:
        text = config.read_text(encoding="utf-8")
        beside = plan_file.fingerprint_path(config)
        if config.name == RunFolder(config.parent).plan_file.name:
            beside = RunFolder(config.parent).fingerprint_file
        fingerprint = beside.read_text(encoding="utf-8") if beside.is_file() else None
    except (OSError, UnicodeDecodeError):
        return None
    return KeptPlan(text=text, fingerprint=fingerprint) if plan_file.is_plan(text) else None
