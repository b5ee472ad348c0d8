"""All that a start of training refuses, for the start and for its dry run.

A start ends with the first thing that is wrong; a dry run goes through everything and lists it.
"""

from pipeline.workflows.checks.dry_running import dry_run
from pipeline.workflows.checks.places import Request, Start
from pipeline.workflows.checks.starting import (
    DataError,
    Examined,
    check_data,
    check_folds,
    check_names,
    planned_folds,
    refuse,
)

__all__ = [
    "DataError",
    "Examined",
    "Request",
    "Start",
    "check_data",
    "check_folds",
    "check_names",
    "dry_run",
    "planned_folds",
    "refuse",
]
