"""Print the incomplete folds of a run as Slurm writes array tasks ("1,3").

Nothing is printed when all are complete.

    python slurm/missing_folds.py runs/surface

Exit code 2 where there is no run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.records import WRONG, UserError
from pipeline.runs import RunFolder


def missing(path: Path) -> list[int]:
    """Folds without a result that says ``completed``. Raises UserError where ``path`` is no run."""
    run = RunFolder(path)
    if not run.exists:
        raise UserError(
            f"{path}: no run is there, for it holds no config.yaml. No training task has begun, or"
            " RUN is another folder."
        )
    return [n for n in range(run.fold_count()) if not run.fold(n).completed]


def main() -> int:
    try:
        print(",".join(map(str, missing(Path(sys.argv[1])))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
