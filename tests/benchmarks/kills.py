"""Kill a small run at random moments, start it again, compare its end to the undisturbed run's.

    python tests/benchmarks/kills.py [--kills 50] [--seed 0] [--signals KILL USR1 TERM]
        [--moments phase] [--save-steps 2] [--workers 0]

The run is the chain train (two folds) → predict --save-soft → submit on synthetic scrolls. Each
round starts it in a process group of its own, sends the group a signal at a random moment, and
starts it again until it ends by itself. ``--moments time`` draws from the duration of the
undisturbed run, ``phase`` takes its phases (training, saving, zipping …) in turn and draws within
them, so that the short ones are hit, too. Compared to the last bit are models, held-out and test
answers, probabilities, logs and results without times, and submission.zip. Processes are forked
from one that has loaded all libraries, so that the moments lie in the work and not in the imports.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import itertools
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402 - after the number of its threads is set

from pipeline import cli, predict, submit, train  # noqa: E402
from pipeline.inference import models, submission  # noqa: E402
from pipeline.scoring import held_out  # noqa: E402
from pipeline.training import checkpoint, fold, loop  # noqa: E402
from pipeline.workflows import predict as workflows_predict  # noqa: E402
from pipeline.workflows import submit as workflows_submit  # noqa: E402
from pipeline.workflows import train as workflows_train  # noqa: E402

CONFIG = """
name: kills
task: labels
data:
  layout: competition
  ignore_label: 2
  folds: {{count: 2}}
  workers: {workers}
  patch: {{size: [16, 16, 16], foreground: [0.3, 0.7], tries: 3, batch: 1, per_case: 3}}
  augment: [flip, rotate90, {{name: noise, options: {{std: 0.01}}}}]
network: {{name: unet, options: {{channels: [4, 4, 8, 8, 8], dropout: 0.1}}}}
losses: [{{name: dice, weight: 0.4}}, {{name: focal, weight: 0.2}}]
metrics: [dice]
train:
  epochs: 3
  optimizer: {{name: adam, options: {{lr: 1.0e-2}}}}
  schedule: {{name: cosine_restarts, options: {{first: 2}}}}
  average: {{start: 1, lr: 5.0e-3}}
  preview_every: 0
  save_steps: {save_steps}
predict: {{overlap: 4}}
postprocess: [threshold, {{name: dust, options: {{below: 5}}}}]
"""
PHASES = {
    (workflows_train, "check_data"): "checking",
    (workflows_train, "_prepare"): "preparing",
    (loop, "training_step"): "training",
    (loop, "validate"): "validating",
    (checkpoint, "save_state"): "saving state",
    (models, "save_model"): "saving model",
    (held_out, "evaluate_fold"): "held-out cases",
    (fold, "_write_predictions"): "keeping answers",
    (workflows_train, "summarise"): "summing up",
    (workflows_train, "write_run_report"): "report",
    (workflows_predict, "predict_all"): "predicting",
    (workflows_submit, "write_submission"): "submission",
    (submission, "write_zip"): "zipping",
}
"""Functions during which a run is in a phase; the innermost one counts."""

LOADED = (
    "imagecodecs",
    "scipy.sparse.csgraph",
    "sklearn.model_selection",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "pipeline.reporting",
    "pipeline.files.lock",
    "pipeline.data.cases",
    "pipeline.data.augment",
    "pipeline.data.transforms",
    "pipeline.data.derived",
    "pipeline.data.folds",
    "pipeline.inference.stitching",
    "pipeline.training.initial",
    "pipeline.inference.backends",
)
"""Modules that the commands load where they need them, beside those above."""

WIDTH = 32
POLL = 0.0005
"""Seconds between two looks at a running chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """``wait`` seconds after the chain's change number ``change`` from phase to phase; 0 is its
    start.
    """

    change: int
    wait: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chain works, and the memory in which it tells its phase, its optimiser steps and how
    often the phase changed.
    """

    data: Path
    out: Path
    told: mmap.mmap

    @property
    def phase(self) -> str:
        return self.told[:WIDTH].rstrip(b"\0 ").decode() or "start"

    @property
    def steps(self) -> int:
        return int.from_bytes(self.told[WIDTH : WIDTH + 8], "little")

    @property
    def changes(self) -> int:
        return int.from_bytes(self.told[WIDTH + 8 : WIDTH + 16], "little")

    def count(self) -> None:
        self.told[WIDTH : WIDTH + 8] = (self.steps + 1).to_bytes(8, "little")

    def name(self, phase: str) -> None:
        self.told[:WIDTH] = phase.encode().ljust(WIDTH)
        self.told[WIDTH + 8 : WIDTH + 16] = (self.changes + 1).to_bytes(8, "little")

    def again(self) -> None:
        """As before the start, but for the steps, which add up over all starts of a round."""
        self.told[:WIDTH] = bytes(WIDTH)
        self.told[WIDTH + 8 : WIDTH + 16] = bytes(8)


def chain(place: Place) -> int:
    """The three commands, one after the other, as a shell script would call them."""
    out, test = str(place.out), str(place.data / "test_images")
    commands = [
        (
            train.main,
            [
                "--config",
                str(place.data / "config.yaml"),
                "--data-dir",
                str(place.data),
                "--out",
                f"{out}/run",
                "--fold",
                "-1",
            ],
        ),
        (
            predict.main,
            [
                "--checkpoint",
                f"{out}/run",
                "--input",
                test,
                "--output",
                f"{out}/answers",
                "--save-soft",
            ],
        ),
        (
            submit.main,
            [
                "--predictions",
                f"{out}/answers",
                "--test-dir",
                test,
                "--out",
                f"{out}/submission.zip",
            ],
        ),
    ]
    for command, arguments in commands:
        code = command(arguments)
        if code:
            return code
    return 0


def tell(place: Place) -> None:
    """Wrap the functions of PHASES and the optimiser step, in a forked process only."""

    def within(work: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(work)
        def told(*arguments: Any, **options: Any) -> Any:
            before = place.phase
            place.name(phase)
            try:
                return work(*arguments, **options)
            finally:
                place.name(before)

        return told

    for (module, name), phase in PHASES.items():
        setattr(module, name, within(getattr(module, name), phase))
    original = loop.training_step

    def step(*arguments: Any) -> bool:
        whole = original(*arguments)
        place.count()
        return whole

    loop.training_step = step


def start(place: Place) -> int:
    """Fork a process that runs the chain as leader of its own group; returns its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(child, child)  # both sides do it: neither may go on before it is done
        return child
    os.setpgid(0, 0)
    place.out.mkdir(parents=True, exist_ok=True)
    with (place.out / "log.txt").open("a", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    cli.stop.install()
    tell(place)
    code = 1
    try:
        code = chain(place)
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(child: int) -> int:
    """Exit code (negative: the signal that ended it), once nothing of its group is left."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    deadline = time.monotonic() + 20
    while _living(child):
        if time.monotonic() > deadline:
            raise SystemExit(f"processes of group {child} are left: {_living(child)}")
        time.sleep(0.05)
    return code


def _living(group: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


def watched(place: Place) -> tuple[int, list[tuple[str, float]]]:
    """Run the chain undisturbed; returns its exit code, and of each time between two changes of
    phase the phase and the seconds.
    """
    child, seen, at = start(place), [("start", time.monotonic())], 0
    while not _ended(child):
        if place.changes != at:
            # Changes closer to each other than a look have no length: none of them is drawn.
            seen += [(place.phase, time.monotonic())] * (place.changes - at)
            at = len(seen) - 1
        time.sleep(POLL)
    ends = [*(moment for _, moment in seen[1:]), time.monotonic()]
    return finish(child), [
        (phase, end - began) for (phase, began), end in zip(seen, ends, strict=True)
    ]


def moments(how: str, spans: list[tuple[str, float]], draw: random.Random) -> Iterator[Moment]:
    """Endless random moments: evenly over time, or evenly over the phases and within each over its
    time.
    """
    if how == "time":
        while True:
            yield Moment(change=0, wait=draw.uniform(0, sum(seconds for _, seconds in spans)))
    phases = sorted({phase for phase, seconds in spans if seconds})
    for phase in itertools.cycle(phases):
        (change,) = draw.choices(
            range(len(spans)), [seconds if name == phase else 0 for name, seconds in spans]
        )
        yield Moment(change=change, wait=draw.uniform(0, spans[change][1]))


def interrupt(place: Place, moment: Moment, number: int) -> tuple[str, int]:
    """Start the chain and send its group a signal at ``moment``, sooner where it ends by itself
    before. Returns phase and code.
    """
    child = start(place)
    while place.changes < moment.change and not _ended(child):
        time.sleep(POLL)
    deadline = time.monotonic() + moment.wait
    while time.monotonic() < deadline and not _ended(child):
        time.sleep(POLL)
    phase = place.phase
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, number)
    return phase, finish(child)


def _ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def fingerprint(out: Path) -> dict[str, str]:
    """Hashes of all that must not depend on interruptions."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if (
            path.suffix in (".safetensors", ".tif", ".npy", ".zip")
            and "checkpoint_latest" not in name
        ):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name in ("result.json", "splits.json") or name == "run/summary.json":
            found[name] = json.dumps(_timeless(json.loads(path.read_text())))
        elif path.name == "log.jsonl":
            found[name] = json.dumps(
                [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
            )
        elif path.name.startswith(".tmp-"):
            found[name] = "left behind"
    return found


def _timeless(found: Any) -> Any:
    if isinstance(found, dict):
        return {k: _timeless(v) for k, v in found.items() if k != "seconds"}
    return [_timeless(v) for v in found] if isinstance(found, list) else found


def memory() -> mmap.mmap:
    return mmap.mmap(
        -1, mmap.PAGESIZE
    )  # anonymous and shared: a killed child's last words stay readable


def round_of(
    place: Place, moment: Moment, number: int, calm: tuple[dict[str, str], int]
) -> tuple[str, int, int, bool]:
    """Interrupt, run on to the end, compare; returns phase, code of the interrupted process, steps
    done twice, equal or not.
    """
    phase, code = interrupt(place, moment, number)
    while (
        code == 0 and phase == "start" and moment.wait > 0.01
    ):  # it was faster than the undisturbed run
        shutil.rmtree(place.out)
        place.told[:] = bytes(len(place.told))
        moment = replace(moment, wait=moment.wait / 2)
        phase, code = interrupt(place, moment, number)
    place.again()
    last = finish(start(place))
    found = fingerprint(place.out)
    if last or found != calm[0]:
        differing = [k for k in {**found, **calm[0]} if found.get(k) != calm[0].get(k)]
        print(
            f"exit code {last}; differing: {', '.join(differing) or 'nothing'}; kept in {place.out}"
        )
        return phase, code, place.steps - calm[1], False
    shutil.rmtree(place.out)
    return phase, code, place.steps - calm[1], True


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--kills", type=int, default=50)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--signals",
        nargs="+",
        default=["KILL"],
        choices=["KILL", "USR1", "TERM", "INT"],
        help="one is drawn for each round",
    )
    p.add_argument("--moments", choices=["time", "phase"], default="time")
    p.add_argument("--save-steps", type=int, default=2, help="train.save_steps")
    p.add_argument("--workers", type=int, default=0, help="data.workers")
    arguments = p.parse_args()
    torch.set_num_threads(1)
    for module in LOADED:
        importlib.import_module(module)
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    data = work / "data"
    script = str(ROOT / "data_prep" / "synthetic_scroll.py")
    sizes = ["--size", "24", "--train", "4", "--test", "2", "--scrolls", "2"]
    if subprocess.run([sys.executable, script, str(data), *sizes], check=False).returncode:
        return 1
    (data / "config.yaml").write_text(
        CONFIG.format(workers=arguments.workers, save_steps=arguments.save_steps)
    )
    place = Place(data, work / "calm", memory())
    for _ in range(2):  # the first one fills the caches of compiled code
        shutil.rmtree(place.out, ignore_errors=True)
        place.told[:] = bytes(len(place.told))
        code, spans = watched(place)
        if code:
            print((place.out / "log.txt").read_text())
            return 1
    calm = fingerprint(place.out), place.steps
    print(
        f"undisturbed: {sum(seconds for _, seconds in spans):.1f} s, {calm[1]} optimiser steps,"
        f" {len(calm[0])} files and results compared"
    )
    print(
        f"{'round':>5} {'signal':<6} {'moment':>13}  {'phase':<16} {'code':>4} {'steps lost':>10} "
        " equal"
    )
    draw = random.Random(arguments.seed)
    phases, lost, equal = Counter[str](), [], 0
    drawn = moments(arguments.moments, spans, draw)
    for n in range(arguments.kills):
        moment, name = next(drawn), draw.choice(arguments.signals)
        this = Place(data, work / f"round_{n}", memory())
        phase, code, again, same = round_of(this, moment, signal.Signals[f"SIG{name}"], calm)
        print(
            f"{n:>5} {name:<6} {moment.change:>4} + {moment.wait:>5.3f}s  {phase:<16} {code:>4}"
            f" {again:>10}  {'yes' if same else 'NO'}",
            flush=True,
        )
        phases[phase] += 1
        lost.append((name, again))
        equal += same
    print("phases hit: " + ", ".join(f"{k} {v}" for k, v in phases.most_common()))
    for name in dict.fromkeys(arguments.signals):
        these = [again for kind, again in lost if kind == name]
        print(
            f"steps lost by {name}: {sum(these)} in {len(these)} rounds, at most"
            f" {max(these, default=0)}"
        )
    if equal == arguments.kills:
        shutil.rmtree(work)
    print(f"{equal} of {arguments.kills} equal")
    return 0 if equal == arguments.kills else 1


if __name__ == "__main__":
    raise SystemExit(main())
