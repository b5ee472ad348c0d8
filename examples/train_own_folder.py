"""Plan, train, predict and score on a folder of images and labels.

::

    python examples/train_own_folder.py                    # makes a small data set first
    python examples/train_own_folder.py DIR --minutes 600  # nnU-Net's folders, or images and labels
"""

from __future__ import annotations

import argparse
from pathlib import Path

from small_data import write_folder

import pipeline as pl

SHORT = ["train.epochs=6", "data.patch.steps=10", "train.validate.every=6"]
"""Changes of a plan for the small data set, so that the example takes a minute and not an hour."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Plan, train, predict, score.")
    parser.add_argument("data", type=Path, nargs="?", help="data set folder")
    parser.add_argument("--out", type=Path, help="where results go: runs/NAME of the folder")
    parser.add_argument("--minutes", type=float, default=120, help="time for all five folds")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="those to train now")
    args = parser.parse_args()
    args.out = args.out or Path("runs") / (args.data.resolve().name if args.data else "own_folder")
    folder = args.data or write_folder(args.out / "data")

    # Look at every file, decide, and measure a training step on this machine. The plan is a config
    # with a reason beside each value; a plan that is there already is taken as it is.
    plan_file = args.out / "plan.yaml"
    if not plan_file.is_file():
        pl.write_plan(pl.plan_dataset(folder, minutes=args.minutes, name="example"), plan_file)
    config = pl.load_config(plan_file, [] if args.data else SHORT)
    print(f"{plan_file}: {config.network.name}, {config.train.epochs} epochs")

    # Train. The same call again goes on where it was stopped, and skips folds that are finished.
    # Each fold is scored on the cases that were held out from it.
    run = pl.train_folds(config, folder, folds=args.folds, out=args.out / "run", progress=True)
    print("held-out cases:", rounded(run.summary()["out_of_fold"]))
    print("report:", pl.write_report(run))

    # Predict files with the mean of the folds that are trained. Answers have the format and the
    # geometry of their images.
    images, labels, answers = folder / "imagesTs", folder / "labelsTs", args.out / "answers"
    if images.is_dir():
        models = pl.ModelOptions(checkpoint=run, folds=args.folds)
        done = pl.predict_files(models, images, answers)
        print(f"{len(done.rows)} images predicted, {len(done.failed)} failed: {answers}")

    # Score them. Distances are millimetres, since these files say how large a voxel is.
    if images.is_dir() and labels.is_dir():
        scores = pl.score_folder(answers, labels, ["dice", "surface_dice:tolerance=1", "hd95"])
        print("test images:", rounded(scores["mean"]))


def rounded(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())


if __name__ == "__main__":
    main()
