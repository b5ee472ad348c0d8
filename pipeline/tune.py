"""Choose post-processing on out-of-fold predictions, and report its gain on unseen groups.

::

    python -m pipeline.tune runs/surface
    python -m pipeline.tune runs/surface runs/other  # weights and fusion of several runs too

Settings are chosen on some groups and scored on the others; the result is an ``ensembles/*.yaml``.
The same command again continues where it stopped.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import cli
from pipeline.invocation import called
from pipeline.records import DONE


def parser() -> argparse.ArgumentParser:
    """Make the parser of ``python -m pipeline.tune``.

    Returns:
        A parser whose options are the arguments of :func:`tune`.
    """
    p = cli.parser("tune", "Choose post-processing on out-of-fold predictions, nested by group.")
    p.add_argument(
        "run",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run folder; several of the same cases: their weights are chosen too",
    )
    p.add_argument(
        "--metric",
        help=(
            "entry of METRICS with a direction; default: competition for binary volumes, else the"
            " config's first"
        ),
    )
    p.add_argument(
        "--space",
        type=Path,
        metavar="FILE",
        help="YAML with stages: a list of stages of alternatives of steps; default: built in",
    )
    p.add_argument(
        "--by",
        choices=["group", "fold"],
        help="what is held out from each choice; default: group where there are two or more",
    )
    p.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="ensemble to write; default: ensembles/<run>_tuned.yaml",
    )
    p.add_argument(
        "--force",
        action="store_true",
        help="replace --out although somebody else wrote or changed it",
    )
    p.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes; default: one a core, as far as memory holds the cases",
    )
    p.add_argument(
        "--data-dir", type=Path, help="data set folder, where the labels have moved since training"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: words of the command line; None: ``sys.argv``.

    Returns:
        Exit code.
    """
    return cli.run(parser(), tune, argv)


def tune(*, run: list[Path], **options: Any) -> int:
    """Tune post-processing, and print the command that applies it.

    Args:
        run: run folders with the same cases.
        **options: further arguments of :func:`pipeline.workflows.tune.tune_postprocessing`.

    Returns:
        Exit code.
    """
    from pipeline.workflows import tune as workflow

    tuned = workflow.tune_postprocessing(run, **options)
    words = ["--spec", str(tuned.spec), "--input", "DIR", "--output", "PREDICTIONS", *tuned.plugins]
    print(f"Wrote {tuned.spec}; try it: {called('ensemble')} {shlex.join(words)}")
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
