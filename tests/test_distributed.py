"""Two gloo ranks on this machine: they agree, gather and average exactly, and name the one that is
dead or hangs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.training import distributed

TALK = Path(__file__).parent / "distributed" / "talk.py"


def torchrun(
    script: Path | str, *words: str, ranks: int = 2, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Start ranks under torchrun, without leaving one behind that was stopped."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
    ]
    command += ["-m", script] if isinstance(script, str) else [str(script)]
    root = str(Path(__file__).resolve().parents[1])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
        "GLOO_SOCKET_IFNAME": "lo",
    }
    process = subprocess.Popen(
        [*command, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("talk")
    done = torchrun(TALK, "talk", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_ranks_agree_on_every_flag(talk: list[dict]) -> None:
    assert [t["agree"] for t in talk] == [[True, False, True]] * 2


def test_gathered_values_keep_their_bits_and_the_order_of_ranks(talk: list[dict]) -> None:
    wanted = [
        {"rank": r, "numbers": [0.1 + 0.2, float("inf"), -0.0, 1e-310], "text": "é" * (1 + 9 * r)}
        for r in (0, 1)
    ]
    assert [t["gather"] for t in talk] == [wanted, wanted]
    assert str(talk[1]["gather"][0]["numbers"][2]) == "-0.0"


def test_items_are_shared_without_rest(talk: list[dict]) -> None:
    assert [t["share"] for t in talk] == [[0, 2, 4], [1, 3]]


def test_rank_0_works_first_and_its_refusal_ends_the_others(talk: list[dict]) -> None:
    assert [t["first"] for t in talk] == ["once ", "once again "]
    assert talk[0]["refused"] == ["UserError", "the data is wrong"]
    assert talk[1]["refused"][0] == "DistributedError"
    assert "rank 0" in talk[1]["refused"][1]


def test_gradients_are_those_of_all_samples_together(talk: list[dict]) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 1)
    )
    samples = torch.randn(6, 1, 4, 4)
    for n, part in enumerate((samples[:2], samples[2:])):
        network.zero_grad()
        network(part).square().mean().backward()
        whole = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        for rank in (0, 1):
            torch.testing.assert_close(
                torch.tensor(talk[rank]["gradients"][n]), whole, rtol=1e-5, atol=1e-6
            )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_rank_that_is_dead_or_hangs_is_named(how: str, tmp_path: Path) -> None:
    done = torchrun(TALK, how, str(tmp_path))
    assert done.returncode != 0
    message, _ = json.loads((tmp_path / "0.json").read_text())
    assert "rank 1 (" in message
    assert "process" in message
    assert "dead or does not answer" in message


def test_a_process_by_itself_is_a_single_rank() -> None:
    context = distributed.init_distributed("cpu", 1.0)
    assert context.is_single
    assert context.is_main
    assert context.any_rank(True, False) == (True, False)
    assert context.all_gather({"a": 1}) == [{"a": 1}]
    assert context.main_first(lambda: 5, "five") == 5
    network = torch.nn.Linear(1, 1)
    assert distributed.wrap_ddp(network, context) is network
    assert distributed.with_sync_batchnorm(network, context) is network
    distributed.destroy(context)
