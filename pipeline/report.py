"""Turn a run into one self-contained page, ``report.html``.

Scores with intervals, curves, and the cases with the worst scores as pictures::

    python -m pipeline.report RUN

The page needs no network and no script. What a run lacks (a failed fold, missing predictions) is
stated, never an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.records import DONE


def parser() -> argparse.ArgumentParser:
    """Make the parser of ``python -m pipeline.report``.

    Returns:
        A parser whose options are the arguments of :func:`report`.
    """
    p = cli.parser("report", "Turn a run into one self-contained page, RUN/report.html.")
    p.add_argument("run", type=Path, metavar="RUN", help="folder that pipeline.train wrote")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: words of the command line; None: ``sys.argv``.

    Returns:
        Exit code.
    """
    return cli.run(parser(), report, argv)


def report(*, run: Path) -> int:
    """Write the report of a run, and print its path and size.

    Args:
        run: folder that ``pipeline.train`` wrote.

    Returns:
        Exit code.
    """
    from pipeline.workflows.report import write_report

    page = write_report(run)
    print(f"{page}: {page.stat().st_size / 2**20:.1f} MiB")
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
