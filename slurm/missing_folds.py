"""Print the folds of a run that are not complete, as Slurm writes array tasks ("1,3"); nothing when all are.

    python slurm/missing_folds.py runs/surface

Exit code 2 where there is no run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.config import load
from pipeline.records import WRONG, UserError
from pipeline.train import read_result


def missing(run: Path) -> list[int]:
    """Folds without a result that says ``completed``. Raises UserError where ``run`` is none."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: no run is there, for it holds no config.yaml. No training task has begun, or RUN is another folder.")
    results = {n: read_result(run / f"fold_{n}") for n in range(load(run / "config.yaml").data.folds.count)}
    return [n for n, result in results.items() if result is None or result.status != "completed"]


def main() -> int:
    try:
        print(",".join(map(str, missing(Path(sys.argv[1])))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
