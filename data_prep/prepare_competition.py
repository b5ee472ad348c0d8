"""Check the unpacked download of the surface detection competition and build its store.

    python data_prep/prepare_competition.py DIR

DIR is what Kaggle calls "Vesuvius Challenge - Surface Detection". Prints every fault with its path
and what to do about it. Exit code 2: something must be mended first; 0: DIR/store is ready, and
training with data.root=DIR uses it. Running it again costs nothing but a look at names and dates;
an interrupted run continues.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import cli
from pipeline.progress import progress_callback
from pipeline.records import DONE, WRONG, Case, Fault
from pipeline.stopping import stop

logger = logging.getLogger(f"pipeline.{Path(__file__).stem}")

if TYPE_CHECKING:
    from pipeline.config import Config

ROWS, USED = 806, 786
"""Rows of the published train.csv, and those that have files; the other 20 are deprecated."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=str(__doc__),
        formatter_class=cli.RawHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "directory",
        metavar="DIR",
        type=Path,
        help="folder that holds train_images, train_labels, test_images and train.csv",
    )
    p.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="threads that decode; default: one per core, at most 16",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), lambda directory, workers: prepare(directory, workers), argv)


def prepare(root: Path, workers: int | None = None) -> int:
    """Check ``root`` and, if nothing is wrong, build ``root/store``. Returns the exit code."""
    from pipeline import files
    from pipeline.data import cache, cases, checks, properties

    settings, folder = competition_config(root), root / "store"
    found = cases.find(settings.data, settings.roles, root)
    logger.info(_counts(root, len(found.train), len(found.test)))
    if folder.is_dir():
        files.remove_stale_temps(folder)
    facts = properties.examine(
        found.train,
        settings,
        folder,
        write=root.is_dir(),
        progress=_progress("checking"),
        workers=workers,
    )
    faults = [
        *found.faults,
        *checks.faults(facts, found.train, settings),
        *_test_faults(found.test),
    ]
    errors = sum(fault.severity == "error" for fault in faults)
    for fault in faults:
        logger.info(str(fault))
    if errors:
        logger.info(
            f"{errors} errors and {len(faults) - errors} warnings; the store was not built. Mend"
            " the errors and run again."
        )
        return WRONG
    cache.build(
        found.train, facts, settings, folder, progress=_progress("storing"), workers=workers
    )
    logger.info(f"{len(found.train)} cases are ready in {folder}; {len(faults)} warnings.")
    return DONE


def competition_config(root: Path) -> Config:
    """The settings on which checks and store depend; the network is not used."""
    from pipeline import config

    data = {
        "root": str(root),
        "layout": "competition",
        "ignore_label": 2,
        "normalise": {"name": "percentile", "options": {"low": 0.5, "high": 99.5}},
    }
    return config.from_dict(
        {"name": "surface", "data": data, "network": "unet", "losses": ["dice"]}
    )


def _counts(root: Path, train: int, test: int) -> str:
    """One line on how many cases there are, beside the numbers of the published data set."""
    table = root / "train.csv"
    lines = (
        table.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        if table.is_file()
        else []
    )
    rows = max(sum(bool(line.strip()) for line in lines) - 1, 0)
    text = f"{rows} rows in train.csv, {train} training images, {test} test images"
    return text + (
        "."
        if (rows, train) == (ROWS, USED)
        else f". The published data set has {ROWS} rows and {USED} training images."
    )


def _test_faults(test: Sequence[Case]) -> list[Fault]:
    """Test images whose structure is broken; they are not decoded."""
    from pipeline import files

    probes = [(path, files.probe(path, dims=3)) for case in test for path in case.image]
    return [
        Fault(path=path, problem=probe.problem, suggestion=probe.suggestion)
        for path, probe in probes
        if probe.problem
    ]


def _progress(what: str) -> Callable[[int, int], None]:
    advance = progress_callback(what)

    def step(done: int, total: int) -> None:
        stop.raise_if_stopped()
        advance(done, total)

    return step


if __name__ == "__main__":
    sys.exit(main())
