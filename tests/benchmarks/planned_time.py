"""Seconds of a training as planning foresees them beside those that it takes, part by part.

    python tests/benchmarks/planned_time.py CONFIG DATA [--minutes N] [--fold 0] [--out FOLDER]
        [--cpu-time] [--set data.patch.steps=5 train.epochs=4 ...]

The cost is measured first, then the folds are trained in a process of their own, whose functions
are timed from outside. With ``--minutes`` epochs and steps are those of the schedule. On a machine
that others use, ``--cpu-time`` with OMP_NUM_THREADS=1 counts seconds of the processor instead of
those of the clock on both sides.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

TIMED = {
    "caching": [
        ("pipeline.workflows.train", "check_data"),
        ("pipeline.data.cache", "build"),
        ("pipeline.data.derived", "attach"),
    ],
    "setup": [("pipeline.training.fold", "make_job"), ("pipeline.training.loop", "start")],
    "training": [("pipeline.training.loop", "_train_steps")],
    "validation": [("pipeline.training.loop", "validate")],
    "saving": [
        ("pipeline.training.loop", "save"),
        ("pipeline.training.loop", "keep_last_model"),
        ("pipeline.training.monitor", "Monitor.epoch"),
        ("pipeline.inference.models", "save_model"),
    ],
    "averaging": [("pipeline.training.averaging", "finish_average")],
    "prediction": [("pipeline.scoring.held_out", "predict_stored")],
    "scoring": [
        ("pipeline.scoring.held_out", "score"),
        ("pipeline.inference.soft", "save"),
        ("pipeline.training.fold", "_write_predictions"),
    ],
    "report": [
        ("pipeline.workflows.train", "summarise"),
        ("pipeline.workflows.train", "write_run_report"),
    ],
}
"""Functions of each part, by the module in which they are looked up."""


def child(target: str, words: list[str]) -> None:
    """Train with timed functions, and write the seconds of each part to a JSON file."""
    import importlib

    seconds, inside = dict.fromkeys(TIMED, 0.0), []

    def timed(part: str, function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if inside:  # counted by the outer one
                return function(*args, **kwargs)
            inside.append(part)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside.pop()
                seconds[part] += time.perf_counter() - began

        return wrapper

    for part, functions in TIMED.items():
        for module, name in functions:
            owner: Any = importlib.import_module(module)
            *path, name = name.split(".")
            for step in path:
                owner = getattr(owner, step)
            setattr(owner, name, timed(part, getattr(owner, name)))
    from pipeline import train

    sys.argv = ["train", *words]
    try:
        train.main()
    finally:
        Path(target).write_text(json.dumps(seconds))


def sample_of(config: Any, found: Any, facts: Any) -> Any:
    """The case of median size."""
    from pipeline.planning.sample import SampleCase
    from pipeline.tasks import TASKS

    shapes = [f.model_space.size(f.shapes["image"][1:]) for f in facts]
    order = sorted(range(len(shapes)), key=lambda n: math.prod(shapes[n]))
    middle = order[len(order) // 2]
    channels = facts[middle].shapes["image"][0]
    return SampleCase(
        shape=shapes[middle],
        native=tuple(facts[middle].shapes["image"][1:]),
        channels=channels,
        outputs=TASKS[config.rules].channels(config, channels),
        classes=config.data.classes,
        shapes=tuple(shapes),
        case=found[middle],
    )


def children_seconds() -> float:
    """Processor seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--fold", type=int, default=0, help="-1: all folds")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--set", nargs="*", default=[])
    given = parser.parse_args()
    if given.cpu_time:
        time.perf_counter = time.process_time
    from pipeline.data import cases, properties
    from pipeline.inference import devices
    from pipeline.planning import cost as costs
    from pipeline.planning import schedule as schedules
    from pipeline.runs import load_config

    config = load_config(given.config, given.set)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=given.data))
    found = cases.find(config.data, config.targets, Path(given.data)).train
    facts = properties.examine(found, config, None, write=False)
    sample = sample_of(config, found, facts)
    cost = costs.measure(
        config, sample, devices.resolve(given.device), print, start=not given.cpu_time
    )
    if given.cpu_time:
        began = children_seconds()
        subprocess.run([sys.executable, "-c", "import pipeline.workflows.train"], check=True)
        cost = dataclasses.replace(cost, start=children_seconds() - began)
    folds = None if given.fold == -1 else [given.fold]
    work = schedules.workload(len(found), config.data.folds.count, config, folds)
    words = [*given.set]
    if given.minutes:
        plan = schedules.schedule_for(given.minutes, cost, work)
        words += [f"train.epochs={plan.epochs}", f"data.patch.steps={plan.steps}"]
    else:
        plan = schedules.expected(config, cost, work)
    print(json.dumps(cost.as_json()))
    print("\n".join(schedules.lines(cost, plan)))
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or f"{folder}/run"
        clock = "--child-cpu" if given.cpu_time else "--child"
        command = [sys.executable, __file__, clock, f"{folder}/parts.json"]
        command += ["--config", given.config, "--data-dir", given.data, "--out", out]
        command += ["--fold", str(given.fold), "--device", given.device]
        command += ["--set", *words] if words else []
        now = children_seconds if given.cpu_time else time.perf_counter
        began = now()
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        total = now() - began
        actual = json.loads(Path(folder, "parts.json").read_text())
    actual["start"] = total - sum(actual.values())
    print(f"{'part':12}{'planned':>10}{'actual':>10}{'actual / planned':>20}")
    for part, seconds in [*plan.parts.items(), ("total", plan.total)]:
        real = total if part == "total" else actual[part]
        ratio = f"{real / seconds:.2f}" if seconds else "-"
        print(f"{part:12}{seconds:10.1f}{real:10.1f}{ratio:>20}")
    again = costs.measure(config, sample, devices.resolve(given.device), start=False)
    print(
        f"measured again after it: step {again.step / cost.step:.2f} times, drawing"
        f" {again.draw / cost.draw:.2f} times, prediction {again.predict / cost.predict:.2f} times"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["--child-cpu"]:
        time.perf_counter = time.process_time
    if sys.argv[1:2] in (["--child"], ["--child-cpu"]):
        child(sys.argv[2], sys.argv[3:])
    else:
        main()
