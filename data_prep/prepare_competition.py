"""Check the unpacked download of the Kaggle competition "Vesuvius Challenge - Surface Detection" and build its store.

    python data_prep/prepare_competition.py data/vesuvius-challenge-surface-detection

Prints every fault with its path and cure. Exit code 2: something must be mended first; 0: DIR/store is ready, and training
with data.root=DIR uses it. Running it again costs nothing but the listing of files; an interrupted run continues.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# As a script this file's own folder is on the path, not the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.records import DONE, WRONG, Case, Fault, UserError

ROWS, USED = 806, 786
"""Rows of train.csv, and those that have files; the other 20 are deprecated (as of the competition's end)."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("directory", metavar="DIR", type=Path, help="folder that holds train_images, train_labels, test_images, train.csv")
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="threads that decode (default: one per core, at most 16)")
    arguments = parser.parse_args(argv)
    try:
        return prepare(arguments.directory, arguments.workers)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG


def prepare(root: Path, workers: int | None = None) -> int:
    """Check ``root`` and build ``root/store``; the exit code."""
    from pipeline.data import cases, store

    settings = competition_config(root)
    found = cases.find(settings.data, settings.targets, root)
    faults = list(found.faults)
    print(_counts(root, len(found.train), len(found.test)))
    facts = store.examine(found.train, settings, root / "store", progress=Progress("check"), workers=workers)
    faults += store.faults(facts, found.train, settings) + _test_faults(found.test)
    for fault in faults:
        print(fault)
    errors = sum(fault.severity == "error" for fault in faults)
    if errors:
        print(f"{errors} errors, {len(faults) - errors} warnings. Nothing was built; mend the errors and run again.")
        return WRONG
    store.build(found.train, facts, settings, root / "store", progress=Progress("store"), workers=workers)
    print(f"{len(found.train)} cases are ready in {root / 'store'}, {len(faults)} warnings.")
    return DONE


def competition_config(root: Path):
    """The settings that checks and store depend on, as in configs/surface.yaml."""
    from pipeline import config

    return config.from_dict(
        {
            "name": "surface",
            "task": "labels",
            "data": {
                "root": str(root),
                "layout": "competition",
                "ignore_label": 2,
                "normalise": {"name": "percentile", "options": {"low": 0.5, "high": 99.5}},
            },
            "network": "unet",
            "losses": ["dice"],
        },
        where="prepare_competition",
    )


def _counts(root: Path, train: int, test: int) -> str:
    """One line on how many cases there are, compared with the published data set."""
    table = root / "train.csv"
    rows = max(sum(1 for line in table.read_text(encoding="utf-8-sig").splitlines() if line.strip()) - 1, 0) if table.is_file() else 0
    line = f"{rows} rows in train.csv, {train} training cases with an image, {test} test images"
    same = (rows, train) == (ROWS, USED)
    return line + ("." if same else f"; the competition's download has {ROWS} rows and {USED} cases.")


def _test_faults(test: tuple[Case, ...]) -> list[Fault]:
    from pipeline import files

    probes = [(path, files.probe(path, dims=3)) for case in test for path in case.image]
    return [Fault(path=path, problem=probe.problem, cure=probe.cure) for path, probe in probes if probe.problem]


class Progress:
    """A bar on a terminal, a line every tenth of the way elsewhere."""

    def __init__(self, name: str) -> None:
        self.name, self.bar = name, None

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            self._bar(done, total)
        elif done == total or done * 10 // total > (done - 1) * 10 // total:
            print(f"{self.name}: {done} of {total}", flush=True)

    def _bar(self, done: int, total: int) -> None:
        from tqdm import tqdm

        self.bar = self.bar or tqdm(total=total, desc=self.name)
        self.bar.update(1)
        if done == total:
            self.bar.close()


if __name__ == "__main__":
    sys.exit(main())
