"""Does a topology loss help? The same network, seed and budget with one more term each, out of fold
by the competition's score.

    python tests/benchmarks/losses.py --data DIR [--config configs/surface_cpu.yaml]
        [--out runs/losses] [--epochs 8] [--folds 0 1 2 3 4] [--jobs 2] [--only NAME ...]

Trains the folds once for each variant through ``pipeline.train`` (finished folds are not trained
again), with a smaller network than the config's unless ``--set`` says otherwise, then scores the
out-of-fold probabilities cut at 0.5 and after the config's own post-processing, and prints for each
the mean of Dice and competition score, the paired difference to Dice + CE with its 95 % interval
over cases, and the rank correlation of Dice and score.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

PLAIN = ({"name": "dice", "options": {"batch": True}}, {"name": "ce"})
VARIANTS: dict[str, tuple[dict, ...]] = {
    "dice_ce": PLAIN,
    "cldice": (*PLAIN, {"name": "cldice", "weight": 0.5, "options": {"iterations": 2}}),
    "skeleton_recall": (*PLAIN, {"name": "skeleton_recall", "weight": 0.5}),
    "surface_recall": (*PLAIN, {"name": "surface_recall", "weight": 0.5}),
    "boundary": (*PLAIN, {"name": "boundary", "weight": 5.0}),
    "connectivity": (*PLAIN, {"name": "connectivity", "weight": 0.5}),
    "betti_matching": (*PLAIN, {"name": "betti_matching", "weight": 0.003}),
}
METRICS = ("competition", "dice", "surface_dice")


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--config", type=Path, default=Path("configs/surface_cpu.yaml"))
    p.add_argument("--out", type=Path, default=Path("runs/losses"))
    p.add_argument("--epochs", type=int, default=8)
    p.add_argument(
        "--set",
        nargs="+",
        default=["network.options.channels=[16,32,64]"],
        metavar="KEY=VALUE",
        help="further overrides",
    )
    p.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    p.add_argument(
        "--jobs", type=int, default=2, help="variants trained at a time, one thread each"
    )
    p.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = p.parse_args()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(
            pool.map(lambda name: train(arguments, name), reversed(arguments.only))
        )  # the slowest first
    report({name: score(arguments.out / name) for name in arguments.only})


def train(arguments: argparse.Namespace, name: str) -> None:
    """The folds of one variant; a fold that failed stops the script."""
    settings = [
        f"losses={json.dumps(VARIANTS[name])}",
        f"train.epochs={arguments.epochs}",
        "predict.flips=false",
        "train.preview_every=0",
        'metrics=["dice"]',
        *arguments.set,
    ]
    command = [
        sys.executable,
        "-m",
        "pipeline.train",
        "--config",
        arguments.config,
        "--data-dir",
        arguments.data,
    ]
    command += ["--out", arguments.out / name, "--set", *settings]
    with (arguments.out.parent / f"{arguments.out.name}_{name}.log").open("a") as log:
        for fold in arguments.folds:
            words = [str(word) for word in (*command, "--fold", fold)]
            done = subprocess.run(
                words,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                check=False,
            )
            if done.returncode:
                raise SystemExit(
                    f"{name}, fold {fold}: training ended with {done.returncode}; see {log.name}"
                )
    print(f"trained {name}", flush=True)


def score(run: Path) -> dict[str, dict[str, dict[str, float]]]:
    """``{post-processing: {case: scores}}`` of the out-of-fold probabilities."""
    from pipeline import processes
    from pipeline.config import load
    from pipeline.records import NamedOptions
    from pipeline.tuning.trials import Measure

    config = load(run / "config.yaml")
    measure = Measure.of(config.data, [NamedOptions(name=m) for m in METRICS])
    steps = {"threshold 0.5": (NamedOptions(name="threshold"),), "own steps": config.postprocess}
    cases = json.loads((run / "cases.json").read_text())
    softs = {path.stem: path.parent for path in run.glob("fold_*/oof/soft/*.npy")}
    with processes.pool(processes.cores()) as pool:
        jobs = {
            i: pool.submit(one, i, softs[i], Path(cases[i]["targets"]["label"]), measure, steps)
            for i in sorted(softs)
        }
        rows = {i: job.result() for i, job in jobs.items()}
    return {name: {i: row[name] for i, row in rows.items()} for name in steps}


def one(
    case_id: str, folder: Path, label: Path, measure, steps: Mapping
) -> dict[str, dict[str, float]]:
    from pipeline import postprocess
    from pipeline.data.targets import read_labels
    from pipeline.inference import soft
    from pipeline.scoring.core import CaseArrays, score

    probability = np.asarray(soft.load(folder, case_id).main, np.float32)
    target = read_labels(label, measure.data)[0]
    answers = {name: postprocess.apply(parts, probability) for name, parts in steps.items()}
    return {
        name: score(CaseArrays(answer=answer, target=target), measure.rules)
        for name, answer in answers.items()
    }


def report(scores: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> None:
    from scipy.stats import spearmanr

    from pipeline.tuning.search import gain

    first = next(iter(scores))
    for steps in scores[first]:
        cases = sorted(scores[first][steps])
        values = {
            v: {
                m: np.array([scores[v][steps][i][m] for i in cases])
                for m in (*METRICS, "toposcore", "voi_score")
            }
            for v in scores
        }
        print(
            f"\n{steps} ({len(cases)} cases){'':<10}score    Dice  SurfD   topo    VOI   score "
            f"minus {first}           Dice minus {first}"
        )
        for name, found in values.items():
            means = "".join(
                f"{found[m].mean():>8.4f}"
                for m in ("competition", "dice", "surface_dice", "toposcore", "voi_score")
            )
            gains = [str(gain(found[m] - values[first][m], cases)) for m in ("competition", "dice")]
            print(f"{name:<28}{means}   {gains[0]}   {gains[1]}")
        print("rank correlation (Spearman) of Dice and score:", end=" ")
        means = [[v[m].mean() for v in values.values()] for m in ("dice", "competition")]
        print(f"over variants {spearmanr(*means).statistic:.2f},", end=" ")
        within = [spearmanr(v["dice"], v["competition"]).statistic for v in values.values()]
        print(
            f"over the cases of a variant {np.mean(within):.2f} ({min(within):.2f} to"
            f" {max(within):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
