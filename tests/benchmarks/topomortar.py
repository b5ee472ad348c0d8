"""Do topology losses help? CE + Dice, with clDice and with skeleton recall, on the mortar of
TopoMortar (Valverde et al., BMVC 2025).

    python tests/benchmarks/topomortar.py --data DIR [--seeds 3] [--out runs/topomortar]
        [--epochs N]

Trains fold 0 of configs/topomortar.yaml once for each loss and seed, predicts test/images, and
prints Dice and the Betti errors in the convention of the published numbers (mortar 8-connected,
brick that meets the border is no hole). Runs that are finished are not repeated; the same command
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "topomortar.yaml"
FIRST = "CE+Dice"
PLAIN = ({"name": "ce"}, {"name": "dice", "options": {"batch": True}})
VARIANTS: dict[str, tuple[dict, ...]] = {
    FIRST: PLAIN,
    "+ clDice": (
        *PLAIN,
        {"name": "cldice", "weight": 0.5, "options": {"iterations": 8}},
    ),  # mortar is up to 18 wide, mostly 8 to 11
    "+ skeleton recall": (*PLAIN, {"name": "skeleton_recall", "weight": 1.0}),
}
COLUMNS = {"Dice": 4, "|b0 error|": 2, "|b1 error|": 2, "Betti error": 2}
RESAMPLES = 10_000

Numbers = dict[str, tuple[int, int]]
"""Components and holes of each image, by id."""


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--data", type=Path, required=True, help="folder with train/, test/ and betti_numbers.csv"
    )
    p.add_argument("--seeds", type=int, default=3, help="trainings for each loss")
    p.add_argument("--out", type=Path, default=Path("runs/topomortar"))
    p.add_argument("--epochs", type=int, help="other than the config's, to try the script")
    arguments = p.parse_args(argv)
    truth = read_masks(arguments.data / "test" / "masks")
    published = published_numbers(arguments.data / "betti_numbers.csv", truth)
    scores = {name: [] for name in VARIANTS}
    for seed in range(arguments.seeds):
        for name, losses in VARIANTS.items():
            run = arguments.out / f"{slug(name)}_seed{seed}"
            train(arguments, run, seed, losses)
            predictions = predict(arguments.data, run)
            scores[name].append(
                np.array([score(predictions[i], truth[i], published[i]) for i in sorted(truth)])
            )
            print(f"{name}, seed {seed}: {row(scores[name][-1].mean(0))}", flush=True)
    report({name: np.stack(values) for name, values in scores.items()})
    return 0


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_")


def read_masks(folder: Path) -> dict[str, np.ndarray]:
    from pipeline import files

    return {
        path.stem: files.read(path, 2, labels=True)[0][0] > 0
        for path in sorted(folder.glob("*.png"))
    }


def published_numbers(path: Path, truth: Mapping[str, np.ndarray]) -> Numbers:
    """Betti numbers of the test masks from the data set's table.

    Stops where our count of a mask is another.
    """
    with path.open(newline="") as stream:
        table = {r["ID"]: (int(r["Betti0"]), int(r["Betti1"])) for r in csv.DictReader(stream)}
    for name, mask in truth.items():
        if count(mask) != table[name]:
            raise SystemExit(
                f"{name}: published Betti numbers {table[name]}, counted {count(mask)}. Are masks"
                " and table of one release?"
            )
    return {name: table[name] for name in truth}


def count(mask: np.ndarray) -> tuple[int, int]:
    from pipeline import morphology

    b0, b1 = morphology.betti_numbers(mask, connectivity=26)
    return b0, b1


def train(arguments: argparse.Namespace, run: Path, seed: int, losses: Sequence[dict]) -> None:
    """Fold 0; a finished fold returns at once."""
    settings = [f"seed={seed}", f"losses={json.dumps(losses)}"]
    if arguments.epochs:
        settings += [f"train.epochs={arguments.epochs}"]
    command(
        "train",
        "--config",
        CONFIG,
        "--data-dir",
        arguments.data,
        "--fold",
        0,
        "--out",
        run,
        "--set",
        *settings,
    )


def predict(data: Path, run: Path) -> dict[str, np.ndarray]:
    """Masks by id, predicted now or by an earlier call."""
    output = run / "test"
    if not finished(output / "summary.json", len(list((data / "test" / "images").glob("*.png")))):
        command(
            "predict",
            "--checkpoint",
            run / "fold_0",
            "--input",
            data / "test" / "images",
            "--output",
            output,
        )
    from pipeline.tasks import is_companion

    return {name: mask for name, mask in read_masks(output).items() if not is_companion(name)}


def finished(summary: Path, files: int) -> bool:
    rows = json.loads(summary.read_text())["files"] if summary.is_file() else []
    return len(rows) == files and all(r["status"] == "done" for r in rows)


def command(name: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"pipeline.{name}", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(
            f"pipeline.{name} {' '.join(map(str, arguments))}: exit code {done.returncode}\n"
            f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )


def score(
    prediction: np.ndarray, truth: np.ndarray, published: tuple[int, int]
) -> tuple[float, ...]:
    """One number for each of ``COLUMNS``."""
    total = int(prediction.sum()) + int(truth.sum())
    dice = 2 * int((prediction & truth).sum()) / total if total else 1.0
    errors = [abs(found - true) for found, true in zip(count(prediction), published, strict=True)]
    return dice, *errors, sum(errors)


def row(values: np.ndarray) -> str:
    return ", ".join(
        f"{name} {value:.{digits}f}"
        for (name, digits), value in zip(COLUMNS.items(), values, strict=True)
    )


def report(scores: Mapping[str, np.ndarray]) -> None:
    """Table of means over images and seeds from scores (seeds, images, columns), and 95 % intervals
    of the difference to the first.
    """
    seeds, images, _ = scores[FIRST].shape
    print(
        f"\nMean over {images} test images and {seeds} seeds (standard deviation of the seeds' "
        "means)"
    )
    for name, values in scores.items():
        means = values.mean(1)
        cells = [
            f"{m:.{d}f} ({s:.{d}f})"
            for m, s, d in zip(means.mean(0), means.std(0), COLUMNS.values(), strict=True)
        ]
        print(
            "  ".join(
                [
                    f"{name:<20}",
                    *(f"{column} {cell:<16}" for column, cell in zip(COLUMNS, cells, strict=True)),
                ]
            )
        )
    print(f"\nDifference to {FIRST}: mean [95 % interval, paired bootstrap over images]")
    for name, values in scores.items():
        if name != FIRST:
            difference = (values - scores[FIRST]).mean(0)
            low, high = interval(difference)
            cells = [
                f"{m:+.{d}f} [{a:+.{d}f}, {b:+.{d}f}]"
                for m, a, b, d in zip(difference.mean(0), low, high, COLUMNS.values(), strict=True)
            ]
            print(
                "  ".join(
                    [
                        f"{name:<20}",
                        *(
                            f"{column} {cell:<26}"
                            for column, cell in zip(COLUMNS, cells, strict=True)
                        ),
                    ]
                )
            )


def interval(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean over images of (images, columns)."""
    draws = np.random.default_rng(0).integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.percentile(difference[draws].mean(1), [2.5, 97.5], axis=0)
    return low, high


if __name__ == "__main__":
    raise SystemExit(main())
