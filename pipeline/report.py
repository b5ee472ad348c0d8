"""Turn a run into one self-contained page, report.html: scores with intervals, curves, and the
cases that went worst as pictures.

python -m pipeline.report RUN

The page needs no network and no script. What a run lacks (a failed fold, missing answers) is
stated, never an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.records import DONE


def parser() -> argparse.ArgumentParser:
    p = cli.parser("report", "Turn a run into one self-contained page, RUN/report.html.")
    p.add_argument("run", type=Path, metavar="RUN", help="folder that pipeline.train wrote")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), report, argv)


def report(*, run: Path) -> int:
    from pipeline.workflows.report import write_report

    page = write_report(run)
    print(f"{page}: {page.stat().st_size / 2**20:.1f} MiB")
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
