r"""Train the folds of a system by cross-validation.

Check everything, split once, train each fold to its end, score it on its held-out cases::

    python -m pipeline.train --config surface --data-dir DIR --fold -1

``--config`` takes a file, or the name of a config that comes with the package (``python -m
pipeline.list configs``), from any folder; a file of that name below the working folder wins.

Without ``--config``, a folder of ``--data-dir`` that is not the competition's is planned first, as
``python -m pipeline.plan DIR`` does; the plan lies in the run folder.

Running the same command again continues where it stopped; a finished fold is not trained again.
Several such commands may work on one run at the same time, on one host or many, each on its own
folds: a fold belongs to the process that trains it, and the run folder to one process at a time
while it is prepared and summed up.

``--fold all`` trains one model on every case instead, into ``RUN/fold_all``: all epochs, nothing
held out and nothing scored. It predicts with ``pipeline.predict --folds all``.

Under torchrun the ranks train one fold together; the first of them prepares, writes and logs::

    torchrun --standalone --nproc-per-node 4 -m pipeline.train \
        --config surface --data-dir DIR --fold 0
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import cli, model_options
from pipeline.records import DONE, FAILED, FoldName


def parser() -> argparse.ArgumentParser:
    """Make the parser of ``python -m pipeline.train``.

    Returns:
        A parser whose options are the arguments of :func:`train`.
    """
    p = cli.parser("train", "Train the folds of a system by cross-validation.")
    p.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the system's YAML file, or the name of a config that comes with the package (pipeline"
        " list configs); default: surface for the competition's data, a plan for any other"
        " --data-dir",
    )
    p.add_argument(
        "--data-dir", type=Path, help="data set folder; default: data.root of the config"
    )
    p.add_argument(
        "--fold",
        type=model_options.fold,
        default=-1,
        metavar="N|all",
        help="-1: all folds in order; N: only fold N; all: one model on every case, not scored",
    )
    p.add_argument("--out", type=Path, help="run folder; default: runs/NAME")
    p.add_argument(
        "--continue-on-error", action="store_true", help="go on with the next fold when one fails"
    )
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="check config and data, print every fault, start nothing",
    )
    p.add_argument(
        "--fresh",
        action="store_true",
        help="start over; an existing run folder is renamed, not deleted",
    )
    p.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override config values, e.g. train.epochs=10",
    )
    p.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help=model_options.DEVICE
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: words of the command line; None: ``sys.argv``.

    Returns:
        Exit code.
    """
    return cli.run(parser(), train, argv)


def train(
    *,
    config: Path | None,
    data_dir: Path | None,
    fold: FoldName,
    out: Path | None,
    continue_on_error: bool,
    dry_run: bool,
    fresh: bool,
    set: list[str],  # noqa: A002 - the option's name
    device: str,
) -> int:
    """Check a system, or train its folds.

    Args:
        config: YAML file of the system, or the name of a shipped one; None: that of the
            competition, or a plan for ``data_dir``.
        data_dir: folder of the data set; None: ``data.root`` of the config.
        fold: number of the fold; -1: all folds in order; ``all``: one model on every case.
        out: run folder; None: ``runs/NAME``.
        continue_on_error: go on with the next fold when one fails.
        dry_run: check config and data and print every fault, but start nothing.
        fresh: start over; an existing run folder is renamed.
        set: ``KEY=VALUE`` overrides of the config.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        Exit code.
    """
    from pipeline.planning.kept import read_kept
    from pipeline.runs import load_config
    from pipeline.workflows import checks
    from pipeline.workflows import plan as plans
    from pipeline.workflows import train as workflow

    folds = None if fold == -1 else (fold,)
    asked = checks.Request(data_dir=data_dir, out=out, folds=folds, device=device, fresh=fresh)
    with plans.config_for(config, asked, dry_run) as path:
        request = replace(asked, source=str(path), plan=read_kept(path))
        if dry_run:
            checks.dry_run(path, set, request)
            return DONE
        trained = workflow.train(load_config(path, set), request, continue_on_error)
    return FAILED if trained.failed or trained.busy else DONE


if __name__ == "__main__":
    raise SystemExit(main())
