"""Everything that training refuses to start on, for a start and for its dry run.

A start ends with the first fault; a dry run goes through all checks and lists every fault.
"""

from pipeline.workflows.checks.dryrun import dry_run
from pipeline.workflows.checks.places import Request, Start
from pipeline.workflows.checks.preflight import (
    DataError,
    Examined,
    check_data,
    check_folds,
    check_names,
    planned_folds,
    refuse,
    require_images,
    with_numbers,
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
    "require_images",
    "with_numbers",
]
