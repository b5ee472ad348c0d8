"""What two ranks exchange; started by torchrun from test_distributed.py with a task and a folder
for the results.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

import torch

from pipeline.records import UserError
from pipeline.training import distributed

torch.set_num_threads(1)


def talk(context: distributed.DistributedContext, folder: Path) -> None:
    """Call each collective on both ranks and write what this rank received to ``RANK.json``."""
    odd = [0.1 + 0.2, math.inf, -0.0, 1e-310]
    first = folder / "first.txt"
    answers = {
        "agree": context.any_rank(context.rank == 1, False, True),
        "gather": context.all_gather(
            {"rank": context.rank, "numbers": odd, "text": "é" * (1 + 9 * context.rank)}
        ),
        "share": distributed.rank_share(list(range(5)), context),
        "first": context.main_first(
            lambda: (_once(first), first.read_text())[1], "writing the first file"
        ),
        "gradients": gradients(context),
    }
    try:
        context.main_first(lambda: _refuse(context), "refusing")
    except (UserError, distributed.DistributedError) as error:
        answers["refused"] = [type(error).__name__, str(error)]
    (folder / f"{context.rank}.json").write_text(json.dumps(answers))


def _once(path: Path) -> None:
    time.sleep(0.3 if not path.exists() else 0)
    path.write_text(path.read_text() + "again " if path.exists() else "once ")


def _refuse(context: distributed.DistributedContext) -> None:
    if context.is_main:
        raise UserError("the data is wrong")


def gradients(context: distributed.DistributedContext) -> list[list[float]]:
    """Gradients of two steps, the second accumulated over two batches of one sample a rank; they
    must be those of all samples together.
    """
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 1)
    )
    samples = torch.randn(6, 1, 4, 4)
    wrapped = distributed.wrap_ddp(network, context)
    found = []
    for batches in ([0], [1, 2]):
        network.zero_grad()
        for n in batches:
            x = samples[2 * n + context.rank : 2 * n + context.rank + 1]
            with wrapped.no_sync() if n != batches[-1] else _nothing():  # type: ignore[operator]
                (wrapped(x).square().mean() / len(batches)).backward()
        found.append(
            torch.cat(
                [p.grad.flatten() for p in network.parameters() if p.grad is not None]
            ).tolist()
        )
    return found


def _nothing() -> torch.no_grad:
    return torch.enable_grad()  # type: ignore[return-value]


def vanish(context: distributed.DistributedContext, folder: Path) -> None:
    """Rank 1 kills or stops itself; rank 0 must raise an error."""
    context.any_rank(False)
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL if sys.argv[1] == "kill" else signal.SIGSTOP)
    began = time.monotonic()
    try:
        for _ in range(3):
            context.any_rank(False)
    except distributed.DistributedError as error:
        (folder / "0.json").write_text(json.dumps([str(error), time.monotonic() - began]))
        print(f"error: {error}", file=sys.stderr, flush=True)
        if sys.argv[1] == "stop" and (silent := re.search(r"process (\d+)", str(error))):
            os.kill(
                int(silent[1]), signal.SIGKILL
            )  # or torchrun would wait 30 s for it to heed a signal
        os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which would come before the message
    own = distributed.init_distributed("cpu", 4.0 if sys.argv[1] != "talk" else 60.0)
    {"talk": talk}.get(sys.argv[1], vanish)(own, Path(sys.argv[2]))
    distributed.destroy(own)
