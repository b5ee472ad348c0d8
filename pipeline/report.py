"""Turn a run, or a folder of predictions, into one self-contained page, ``report.html``.

Of a run scores with intervals, curves, and the cases with the worst scores as pictures; of
predictions, which have no truth, volumes of each class, pictures, and the files that failed::

    python -m pipeline.report FOLDER

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
    p = cli.parser(
        "report", "Turn a run or predictions into one self-contained page, FOLDER/report.html."
    )
    p.add_argument(
        "run",
        type=Path,
        metavar="FOLDER",
        help="folder that pipeline.train, pipeline.predict or pipeline.ensemble wrote",
    )
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
    """Write the report of a folder, and print its path and size.

    Args:
        run: folder that ``pipeline.train``, ``pipeline.predict`` or ``pipeline.ensemble`` wrote.

    Returns:
        Exit code.
    """
    from pipeline.workflows.report import write_report

    page = write_report(run)
    size = page.stat().st_size / 2**20
    print(f"{page}: {size:.1f} MiB" if size >= 0.1 else f"{page}: {1024 * size:.0f} KiB")
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
