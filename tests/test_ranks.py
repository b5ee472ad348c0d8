"""Two gloo ranks train as one process does: the same samples, the same weights to float tolerance,
the same end after a stop or a death.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, competition_folder
from safetensors.numpy import load_file

from pipeline import train
from pipeline.data.loaders import EpochBatches

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "pipeline.train",
]


def start(config: Path, data: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    words = ["--config", str(config), "--data-dir", str(data), "--out", str(run), "--fold", "0"]
    return subprocess.Popen(
        [*TRAIN, *words, *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        out, _ = process.communicate(timeout=180)
        return process.returncode, out
    finally:
        for number in (*ranks_of(process), process.pid) if process.poll() is None else ():
            os.kill(number, signal.SIGKILL)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Process numbers of the ranks, in their order: torchrun's children, each in a session of its
    own.
    """
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", (path / "environ").read_bytes())
            if parent == process.pid and rank:
                found[int(rank[1])] = int(path.name)
    return [found[n] for n in sorted(found)]


def wait_for(path: Path, words: str, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None:
        if path.is_file() and words in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} never said {words!r}: {end(process)[1][-2000:]}")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny system and its data: four cases to train on, of each three patches."""
    folder = tmp_path_factory.mktemp("ranks")
    competition_folder(folder / "data", cases=5)
    (folder / "system.yaml").write_text(TINY)
    return folder / "system.yaml", folder / "data"


SET = [
    "--set",
    "train.epochs=3",
    "data.folds.count=5",
    "network.options.dropout=0",
    "losses=[{name: dice}]",
]
SET += [
    "train.optimizer={name: sgd, options: {lr: 0.1}}",
    "train.average.lr=0.1",
]  # Adam would enlarge differences of rounding


@pytest.fixture(scope="module")
def undisturbed(system: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("two") / "run"
    code, out = end(start(*system, run, *SET, "data.patch.batch=1", "data.patch.per_case=3"))
    assert code == 0, out[-3000:]
    return run


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "fold_0" / "best_model.safetensors")


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "fold_0" / "log.jsonl").read_text().splitlines()]


def alone(system: tuple[Path, Path], run: Path, *more: str) -> Path:
    """The run of one process, this one."""
    words = [
        "--config",
        str(system[0]),
        "--data-dir",
        str(system[1]),
        "--out",
        str(run),
        "--fold",
        "0",
        *SET,
    ]
    assert train.main([*words, *more]) == 0
    return run


def require_alike(run: Path, other: Path) -> None:
    """The same weights, values and scored cases, to the rounding of sums in another order."""
    one, two = weights(run), weights(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    for a, b in zip(log(run), log(other), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds"}:
            assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-6), key
    scores = [json.loads((r / "summary.json").read_text()) for r in (run, other)]
    assert scores[0]["cases"].keys() == scores[1]["cases"].keys()


@pytest.mark.slow
def test_two_ranks_with_one_sample_are_one_rank_with_two(
    system: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    require_alike(
        alone(system, tmp_path / "run", "data.patch.batch=2", "data.patch.per_case=3"), undisturbed
    )


@pytest.mark.slow
def test_uneven_parts_of_a_batch_weigh_by_their_samples(
    system: tuple[Path, Path], tmp_path: Path
) -> None:
    """Four samples, of which the ranks have three and one, are one batch of four."""
    code, out = end(
        start(*system, tmp_path / "two", *SET, "data.patch.batch=3", "data.patch.per_case=1")
    )
    assert code == 0, out[-3000:]
    require_alike(
        alone(system, tmp_path / "one", "data.patch.batch=6", "data.patch.per_case=1"),
        tmp_path / "two",
    )


@pytest.mark.slow
def test_only_the_first_rank_writes_and_logs(undisturbed: Path) -> None:
    assert not list(undisturbed.rglob(".tmp-*"))
    assert len(list(undisturbed.glob("train_fold_0_*.log"))) == 1
    text = next(undisturbed.glob("train_fold_0_*.log")).read_text()
    assert text.count("STARTING FOLD 0") == 1
    assert text.count("Epoch 1/3") == 1
    assert json.loads((undisturbed / "fold_0" / "result.json").read_text())["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_signal_to_one_rank_stops_all_and_nothing_is_lost(
    which: int, system: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    run, more = tmp_path / "run", [*SET, "data.patch.batch=1", "data.patch.per_case=3"]
    process = start(*system, run, *more)
    wait_for(run / "fold_0" / "log.jsonl", '"epoch": 0', process)
    os.kill(ranks_of(process)[which], signal.SIGUSR1)
    code, out = end(process)
    assert code != 0
    assert "stopped and saved" in out or "stopped on request" in out
    code, out = end(start(*system, run, *more))
    assert code == 0, out[-3000:]
    assert "continuing after epoch" in out
    for name, value in weights(undisturbed).items():
        np.testing.assert_array_equal(weights(run)[name], value, err_msg=name)


@pytest.mark.slow
def test_a_dead_rank_ends_the_job_and_the_next_one_goes_on(
    system: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    run, more = tmp_path / "run", [*SET, "data.patch.batch=1", "data.patch.per_case=3"]
    process = start(*system, run, *more)
    wait_for(run / "fold_0" / "log.jsonl", '"epoch": 0', process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    code, out = end(process)
    assert code != 0
    assert re.search(r"rank +: 1 \(local_rank: 1\)\s+exitcode +: -9", out), out[
        -3000:
    ]  # torchrun's report
    assert not (run / "fold_0" / "result.json").exists()
    code, out = end(start(*system, run, *more))
    assert code == 0, out[-3000:]
    for name, value in weights(undisturbed).items():
        np.testing.assert_array_equal(weights(run)[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("samples", "batch", "ranks"), [(5, 1, 2), (7, 2, 3), (1, 4, 2), (12, 3, 4), (13, 2, 5)]
)
def test_ranks_share_every_epoch_without_a_rest(samples: int, batch: int, ranks: int) -> None:
    ends = [(n,) for n in range(samples)]
    parts = []
    for rank in range(ranks):
        part = EpochBatches(ends, batch, (1, 0))
        part.epoch, part.rank, part.size = 4, rank, ranks
        parts.append(part)
    alone = EpochBatches(ends, batch * ranks, (1, 0))
    alone.epoch = 4
    steps = [list(p) for p in parts]
    assert {len(s) for s in steps} == {len(alone), len(parts[0])}
    for step, whole in enumerate(alone):
        shares = [p.share(step) for p in parts]
        assert np.mean(shares) == pytest.approx(1)
        assert [
            key for s, share in zip(steps, shares, strict=True) if share for key in s[step]
        ] == whole
        for s, share in zip(steps, shares, strict=True):
            assert share == pytest.approx(len(s[step]) * ranks / len(whole)) or (
                share == 0 and s[step] == whole[:1]
            )


def test_validation_batches_are_dealt_once() -> None:
    ends = [(n,) for n in range(11)]
    alone, dealt = EpochBatches(ends, 2, None), []
    for rank in range(3):
        part = EpochBatches(ends, 2, None)
        part.rank, part.size, part.dealt = rank, 3, True
        assert len(part) == len(list(part))
        dealt.append(list(part))
    assert [b for n in range(2) for d in dealt for b in d[n : n + 1]] == list(alone)
