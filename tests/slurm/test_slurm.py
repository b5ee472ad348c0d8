"""The batch files of slurm/ on a real Slurm of two emulated nodes: requeue, dependencies, refusal,
and the whole way with two accidents.

Most tests put a stand-in in the place of pipeline.train, which stops as the real one does; the last
ones train.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from slurm_cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "slurm"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
BATCH = sorted(FOLDER.glob("*.sbatch"))
WHY_NOT = slurm_cluster.unavailable()
on_slurm = pytest.mark.skipif(WHY_NOT is not None, reason=f"no Slurm on this machine: {WHY_NOT}")


# --- the files themselves -------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_bash_can_read_it(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    names = [p.relative_to(ROOT) for p in SCRIPTS]
    done = subprocess.run(
        ["shellcheck", "--external-sources", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stdout


@pytest.mark.parametrize("path", BATCH, ids=lambda p: p.name)
def test_directives_stand_before_the_first_command(path: Path) -> None:
    """Slurm reads no directive behind a command, and says nothing about it."""
    lines = path.read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]
    directives = {line.split()[1].split("=")[0] for line in lines if line.startswith("#SBATCH")}
    assert {"--signal", "--requeue", "--open-mode", "--time", "--output"} <= directives


def test_settings_that_several_files_name_have_one_default() -> None:
    defaults: dict[str, set[str]] = {}
    for path in [*BATCH, FOLDER / "submit_all.sh"]:
        for name, value in re.findall(r'^: "\$\{(\w+):=(.*)\}"', path.read_text(), re.MULTILINE):
            defaults.setdefault(name, set()).add(value)
    assert {"CONFIG", "DATA", "RUN", "ACTIVATE"} <= set(defaults)
    assert {name: values for name, values in defaults.items() if len(values) > 1} == {}


# --- jobs of a stand-in ---------------------------------------------------------------------------

STAND_IN = """
import os, sys, time
from pathlib import Path
from pipeline import cli

words = dict(zip(sys.argv[1:], sys.argv[2:]))
folder, plan = Path(words["--out"]) / ("fold_" + words["--fold"]), words.get("--plan", "")

def work():
    folder.mkdir(parents=True, exist_ok=True)
    starts = folder / "starts"
    starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
    if plan == "fail":
        return 1
    while starts.read_text() == "x" and plan == "wait":
        time.sleep(0.05)
        try:
            cli.stop.raise_if_stopped()
        except cli.StopRequested:
            (folder / "saving").touch()
            time.sleep(1)  # another signal while it saves
            (folder / "saved").touch()
            raise
    (folder / "result.json").write_text('{"fold": 0, "status": "completed"}')
    return 0

parser = cli.parser("train", "a stand-in")
cli.stop.install()
sys.argv = sys.argv[:1]
raise SystemExit(cli.run(parser, work))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster.running() as running:
        yield running


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """Settings for :func:`submit` whose ``python -m pipeline.train`` is the stand-in."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f"#!/bin/bash\nif [[ $2 == pipeline.train ]]; then shift 2; exec {sys.executable}"
        f' {tmp_path}/stand_in.py "$@"; fi\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    activate = tmp_path / "activate"
    activate.write_text(f"PATH={python.parent}:$PATH\nexport PYTHONPATH={ROOT}\n")
    return {"ACTIVATE": str(activate), "RUN": str(tmp_path / "run"), "SBATCH_GPUS_PER_NODE": "0"}


def submit(cluster: Cluster, site: dict[str, str], *words: object) -> str:
    output = Path(site["ACTIVATE"]).with_name("%x_%A_%a.log")
    return cluster.run(
        "sbatch", "--parsable", f"--chdir={ROOT}", f"--output={output}", *words, **site
    )


def log(site: dict[str, str]) -> str:
    return "\n".join(p.read_text() for p in sorted(Path(site["ACTIVATE"]).parent.glob("*.log")))


@pytest.mark.slow
@on_slurm
def test_usr1_saves_requeues_and_holds_back_what_depends_on_it(
    cluster: Cluster, site: dict[str, str]
) -> None:
    fold = Path(site["RUN"]) / "fold_0"
    job = submit(
        cluster, site | {"TRAIN_OPTIONS": "--plan wait"}, "--array=0", FOLDER / "train_folds.sbatch"
    )
    after = fold / "seen_by_the_next"
    next_job = submit(
        cluster, site, f"--dependency=afterany:{job}", f"--wrap=cp {fold}/result.json {after}"
    )
    cluster.wait((fold / "starts").exists, "the task starts")
    cluster.run("scancel", "--signal=USR1", "--batch", f"{job}_0")
    cluster.wait((fold / "saving").exists, "the task is asked to save")
    cluster.run("scancel", "--signal=USR1", "--batch", f"{job}_0")
    cluster.wait(lambda: cluster.ended(job, next_job), "both jobs end")
    assert (fold / "saved").exists()
    assert (fold / "starts").read_text() == "xx"
    assert cluster.facts(f"{job}_0")["Restarts"] == "1"
    assert cluster.state(f"{job}_0") == "COMPLETED"
    assert after.exists(), "what depends on the task ran before the task was complete"
    assert "start 0" in log(site), "the log of the first start was overwritten by the second"
    assert "start 1" in log(site)


@on_slurm
def test_a_cancelled_task_saves_and_stays_cancelled(cluster: Cluster, site: dict[str, str]) -> None:
    fold = Path(site["RUN"]) / "fold_0"
    job = submit(
        cluster, site | {"TRAIN_OPTIONS": "--plan wait"}, "--array=0", FOLDER / "train_folds.sbatch"
    )
    cluster.wait((fold / "starts").exists, "the task starts")
    cluster.run("scancel", job)
    cluster.wait(lambda: cluster.ended(job), "the task ends")
    assert (fold / "saved").exists()
    assert cluster.state(f"{job}_0") == "CANCELLED"
    assert (fold / "starts").read_text() == "x"


@on_slurm
def test_other_exit_codes_are_passed_on_and_not_tried_again(
    cluster: Cluster, site: dict[str, str]
) -> None:
    job = submit(
        cluster, site | {"TRAIN_OPTIONS": "--plan fail"}, "--array=0", FOLDER / "train_folds.sbatch"
    )
    cluster.wait(lambda: cluster.ended(job), "the task ends")
    facts = cluster.facts(f"{job}_0")
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "1:0", "0")


def run_without(site: dict[str, str], *missing: int) -> None:
    """A run folder of five folds, all complete but these."""
    run = Path(site["RUN"])
    for fold in range(5):
        (run / f"fold_{fold}").mkdir(parents=True)
        status = "failed" if fold in missing else "completed"
        (run / f"fold_{fold}" / "result.json").write_text(
            f'{{"fold": {fold}, "status": "{status}", "best_epoch": 0, "score": 0.5, "metrics":'
            ' {}, "checkpoint": null, "chosen": "best", "epochs": 1, "seconds": 1.0, "error":'
            " null}"
        )
    shutil.copy(ROOT / "configs" / "demo.yaml", run / "config.yaml")


@on_slurm
def test_the_ensemble_refuses_and_says_what_to_submit(
    cluster: Cluster, site: dict[str, str]
) -> None:
    run_without(site, 1, 3)
    job = submit(cluster, site, FOLDER / "ensemble.sbatch")
    cluster.wait(lambda: cluster.ended(job), "the ensemble ends")
    assert cluster.facts(job)["ExitCode"] == "2:0"
    assert "folds 1,3" in log(site)
    assert "sbatch --array=1,3 slurm/train_folds.sbatch" in log(site)


@pytest.mark.slow
@on_slurm
def test_the_ensemble_waits_for_folds_that_are_in_the_queue_again(
    cluster: Cluster, site: dict[str, str]
) -> None:
    """As after a node's failure or an administrator's requeue, when what depends on the array may
    have been released already.
    """
    run_without(site, 1)
    training = submit(cluster, site, "--hold", "--array=1", FOLDER / "train_folds.sbatch")
    job = submit(cluster, site | {"TRAIN_JOB": training}, FOLDER / "ensemble.sbatch")
    cluster.wait(
        lambda: cluster.facts(job)["Restarts"] == "1", "the ensemble goes back into the queue"
    )
    assert not cluster.ended(job)
    cluster.run("scancel", training)
    cluster.wait(lambda: cluster.ended(training, job), "the ensemble ends")
    assert cluster.facts(job)["ExitCode"] == "2:0", (
        "nothing is in the queue that could complete fold 1"
    )


# --- the real thing -------------------------------------------------------------------------------

OPTIONS = (
    "--set train.epochs=5 train.average.start=2 data.patch.per_case=4"
    " network.options.channels=[8,16,32] train.preview_every=0 metrics=[dice]"
)


@pytest.fixture(scope="module")
def scrolls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slurm") / "data"
    python("data_prep/synthetic_scroll.py", folder, "--size", 32, "--train", 5, "--test", 2)
    return folder


def python(*words: object) -> str:
    """Output of one of the package's commands, run as a user does.

    Raises AssertionError with what it said.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def undisturbed(data: Path, out: Path) -> bytes:
    """The submission of the same configuration, trained by one process that nobody disturbs."""
    run, tests = out / "run", data / "test_images"
    where = ("--data-dir", data, "--out", run)
    python(
        "-m",
        "pipeline.train",
        "--config",
        "configs/demo.yaml",
        *where,
        "--fold",
        -1,
        *OPTIONS.split(),
    )
    python(
        "-m",
        "pipeline.predict",
        "--checkpoint",
        run,
        "--input",
        tests,
        "--output",
        out / "predictions",
    )
    python(
        "-m",
        "pipeline.submit",
        "--predictions",
        out / "predictions",
        "--test-dir",
        tests,
        "--out",
        out / "submission.zip",
    )
    return (out / "submission.zip").read_bytes()


def real_site(data: Path, folder: Path) -> dict[str, str]:
    activate = folder / "activate"
    activate.write_text(
        f"PATH={Path(sys.executable).parent}:$PATH\nexport PYTHONPATH={ROOT} OMP_NUM_THREADS=1\n"
    )
    return {
        "ACTIVATE": str(activate),
        "CONFIG": "configs/demo.yaml",
        "DATA": str(data),
        "RUN": str(folder / "run"),
        "PREDICTIONS": str(folder / "predictions"),
        "TRAIN_OPTIONS": OPTIONS,
        "SBATCH_GPUS_PER_NODE": "0",
    }


def submit_all(cluster: Cluster, site: dict[str, str]) -> dict[str, str]:
    """Job ids by step."""
    said = cluster.run(FOLDER / "submit_all.sh", **site)
    print(f"\n$ slurm/submit_all.sh\n{said}")
    return dict(re.findall(r"^(\w+) +job (\d+)", said, re.MULTILINE))


def in_training(site: dict[str, str], fold: int) -> bool:
    """The fold has ended an epoch, so that there is something to continue."""
    lines = Path(site["RUN"]) / f"fold_{fold}" / "log.jsonl"
    return lines.is_file() and bool(lines.read_text())


def preempt(cluster: Cluster, site: dict[str, str], task: str) -> None:
    """Send USR1 to a task's shell as Slurm does ahead of a preemption.

    While other tasks of the array wait, scancel 22.05 takes the good answer for "try again" and
    repeats the signal after 5 s, 6 s, ..., in the end to the task's next start; so it is ended when
    the signal has arrived.
    """
    path = Path(site["RUN"]) / "slurm" / f"train_folds_{task}.log"
    scancel = subprocess.Popen(
        ["scancel", "--signal=USR1", "--batch", task],
        env=cluster.environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        cluster.wait(lambda: "received USR1" in path.read_text(), f"task {task} receives USR1")
    finally:
        scancel.kill()
        scancel.wait()


def everything(site: dict[str, str]) -> str:
    return "\n".join(
        f"== {p.name}\n{p.read_text()[-3000:]}"
        for p in sorted(Path(site["RUN"]).glob("slurm/*.log"))
    )


@on_slurm
@pytest.mark.slow
def test_a_preempted_and_a_killed_fold_end_in_the_undisturbed_submission(
    cluster: Cluster, scrolls: Path, tmp_path: Path
) -> None:
    site = real_site(scrolls, tmp_path)
    jobs = submit_all(cluster, site)
    train = jobs["train"]
    cluster.wait(lambda: in_training(site, 1) or cluster.ended(train), "fold 1 trains")
    assert not cluster.ended(train), everything(site)
    preempt(cluster, site, f"{train}_1")
    cluster.wait(lambda: in_training(site, 3) or cluster.ended(train), "fold 3 trains")
    assert not cluster.ended(train), everything(site)
    (pid,) = cluster.processes("pipeline.train", "--fold", "3")
    print(
        f"task {train}_1 was sent USR1; killing process {pid} of task {train}_3\n{cluster.queue()}"
    )
    os.kill(pid, signal.SIGKILL)
    cluster.wait(lambda: cluster.ended(*jobs.values()), "the chain ends", 600)
    print(f"{cluster.queue()}\n{everything(site)}")
    preempted, killed = cluster.facts(f"{train}_1"), cluster.facts(f"{train}_3")
    assert (preempted["JobState"], preempted["Restarts"]) == ("COMPLETED", "1"), everything(site)
    assert (killed["JobState"], killed["ExitCode"]) == ("FAILED", "137:0"), everything(site)
    assert cluster.facts(jobs["ensemble"])["ExitCode"] == "2:0", everything(site)
    assert "folds 3 of" in everything(site)
    assert cluster.state(jobs["submission"]) == "CANCELLED"
    assert not (tmp_path / "run" / "submission.zip").exists()

    jobs = submit_all(cluster, site | {"SHARDS": "2"})
    cluster.wait(lambda: cluster.ended(*jobs.values()), "the second chain ends", 600)
    assert cluster.state(jobs["submission"]) == "COMPLETED", everything(site)
    print(f"{cluster.queue()}\n{everything(site)}")
    (tmp_path / "quiet").mkdir()
    quiet, ours = (
        undisturbed(scrolls, tmp_path / "quiet"),
        (tmp_path / "run" / "submission.zip").read_bytes(),
    )
    print(
        "sha256 of submission.zip\n"
        f"  undisturbed  {hashlib.sha256(quiet).hexdigest()}\n"
        f"  on Slurm     {hashlib.sha256(ours).hexdigest()}"
    )
    assert quiet == ours


def trains_distributed() -> bool:
    named = (ROOT / "pipeline" / "train.py").read_text() + (
        ROOT / "pipeline" / "training" / "loop.py"
    ).read_text()
    return (
        importlib.util.find_spec("pipeline.training.distributed") is not None
        and "distributed" in named
    )


@on_slurm
@pytest.mark.slow
@pytest.mark.skipif(not trains_distributed(), reason="this checkout has no distributed training")
def test_a_fold_is_trained_on_two_nodes(cluster: Cluster, scrolls: Path, tmp_path: Path) -> None:
    site = real_site(scrolls, tmp_path) | {"TRAIN_OPTIONS": OPTIONS.replace("epochs=5", "epochs=3")}
    job = submit(cluster, site, "--array=0", FOLDER / "train_multinode.sbatch")
    cluster.wait(lambda: cluster.ended(job), "the fold is trained")
    facts = cluster.facts(f"{job}_0")
    print(log(site))
    assert (facts["JobState"], facts["NumNodes"]) == ("COMPLETED", "2"), log(site)
    assert '"completed"' in (tmp_path / "run" / "fold_0" / "result.json").read_text()
