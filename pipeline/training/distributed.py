"""Several processes train one fold together: who they are, what they agree on, and who is named
when one of them is gone.

Started by ``torchrun`` (or anything else that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT),
each process is a rank of one :class:`DistributedContext`; started plainly, a process is a team of
its own and nothing here costs anything. Gradients go over NCCL between CUDA devices and over gloo
between CPUs; everything else that is said (flags, losses, scores) goes over gloo in a group of its
own, as numbers or JSON, so that it waits for no device.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipeline.records import UserError

T = TypeVar("T")

GRACE = 5.0
"""Seconds that a rank which has met an error waits for the others to say that they have met it,
too, before it names the silent ones.
"""

SLACK = 1.25
"""NCCL, which ends a process without a word, gets this much longer than gloo, which lets us say who
is missing.
"""


class DistributedError(RuntimeError):
    """Another rank is dead, hangs or has failed.

    The message names it. This process can only end: what is saved is whole.
    """


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """The processes that train together, as one of them sees it.

    ``DistributedContext()`` is a process by itself.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    control: Any = None
    """Group over gloo for everything but gradients."""
    store: Any = None
    """Key-value store in which ranks say who they are and that they have met an error."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        return self.size == 1

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether any rank has raised it: the same answer on all ranks, at the same
        point of their work.
        """
        if self.is_single:
            return flags
        found = torch.tensor([int(f) for f in flags])
        with self.named_errors("agreeing to go on or to stop"):
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return tuple(bool(f) for f in found.tolist())

    def all_gather(self, value: Any) -> list[Any]:
        """What each rank gives, in the order of ranks, on every rank.

        Values are JSON; numbers come back with the same bits.
        """
        if self.is_single:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with self.named_errors("gathering results"):
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(text)]), group=self.control)
            longest = int(max(s.item() for s in sizes))
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(
                texts, torch.nn.functional.pad(text, (0, longest - len(text))), group=self.control
            )
        return [json.loads(bytes(t[: int(n)].tolist())) for t, n in zip(texts, sizes, strict=True)]

    def wait(self, what: str) -> None:
        """Go on when every rank has come here."""
        if not self.is_single:
            with self.named_errors(what):
                dist.all_reduce(torch.zeros(1), group=self.control)

    def main_first(self, work: Callable[[], T], what: str) -> T:
        """``work`` on rank 0, however long it takes, then on the others, which find what it has
        left.

        What rank 0 raises ends the others with a DistributedError. ``what`` must be another one for
        each use.
        """
        if self.is_single:
            return work()
        if not self.is_main:
            self._await_main(what)
            return work()
        verdict = "failed"
        try:
            result = work()
            verdict = "done"
        finally:
            self.store.set(f"first/{what}", verdict)
        return result

    def _await_main(self, what: str) -> None:
        # No collective: those have a time limit, and rank 0 may prepare a large data set for hours.
        # Were it to die, torchrun ends us.
        key = f"first/{what}"
        while not self.store.check([key]):
            time.sleep(0.1)
        if self.store.get(key) != b"done":
            raise DistributedError(f"{what}: rank 0 cannot go on; its message says why.")

    @contextmanager
    def named_errors(self, what: str) -> Iterator[None]:
        """Within: an error of communication becomes a DistributedError that names the ranks which
        do not answer.
        """
        try:
            yield
        except RuntimeError as error:
            if (
                self.is_single
                or isinstance(error, DistributedError)
                or not _is_communication(error)
            ):
                raise
            first = str(error).splitlines()[0]
            raise DistributedError(
                f"{what}: {self._silent()}. (rank {self.rank}: {first})"
            ) from None

    def _silent(self) -> str:
        """Which ranks have not noticed within a grace period what this one has: those that are dead
        or hang.
        """
        others = [n for n in range(self.size) if n != self.rank]
        try:
            self.store.set(f"noticed/{self.rank}", "yes")
            end = time.monotonic() + GRACE
            silent = others
            while silent and time.monotonic() < end:
                time.sleep(0.1)
                silent = [n for n in silent if not self.store.check([f"noticed/{n}"])]
            names = [f"rank {n} ({self.store.get(f'who/{n}').decode()})" for n in silent]
        except RuntimeError:  # the store lives in a process that is gone, too
            return "the process that keeps the ranks together is gone"
        verb = "is" if len(names) == 1 else "are"
        return (
            f"{', '.join(names)} {verb} dead or does not answer"
            if names
            else "the connection between ranks broke"
        )


def _is_communication(error: RuntimeError) -> bool:
    """Whether this is how gloo and NCCL say that a peer is gone or late; gloo has no class of its
    own for it.
    """
    words = (
        "gloo",
        "Connection",
        "connection",
        "Timed out",
        "timed out",
        "Timeout",
        "NCCL",
        "Broken pipe",
        "Socket",
    )
    return isinstance(error, dist.DistError) or any(w in str(error) for w in words)


def launched() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: str, timeout: float) -> DistributedContext:
    """The team of this process; ``device`` is ``cpu`` or ``cuda``, ``timeout`` the seconds after
    which a silent rank is given up.

    On CUDA each rank takes the device of its local number. Raises UserError where there are fewer
    devices than ranks on this machine, or the ranks do not find each other in time.
    """
    if not launched():
        return DistributedContext(device=device)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"rank {local} on this machine finds {torch.cuda.device_count()} CUDA devices."
                " Start one process a device (torchrun --nproc-per-node), or train on --device"
                " cpu."
            )
        torch.cuda.set_device(local)
    limit = timedelta(seconds=timeout)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        own = dist.PrefixStore("pipeline", store)
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=size,
            timeout=limit * (SLACK if backend == "nccl" else 1),
        )
        control = dist.new_group(backend="gloo", timeout=limit)
    except RuntimeError as error:
        raise UserError(
            f"the {os.environ['WORLD_SIZE']} ranks did not find each other at"
            f" {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} within {timeout:.0f}"
            f" s: {str(error).splitlines()[0]}. Start them all by torchrun, with one"
            " --rdzv-endpoint."
        ) from None
    own.set(f"who/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
    context = DistributedContext(rank=rank, size=size, device=device, control=control, store=own)
    context.wait("meeting the other ranks")
    return context


def leave(context: DistributedContext) -> None:
    """Take the process group down; harmless where there is none or where it is broken already."""
    if not context.is_single and dist.is_initialized():
        dist.destroy_process_group()


def parallel(
    network: torch.nn.Module, context: DistributedContext, unused: bool = False
) -> torch.nn.Module:
    """``network`` with gradients averaged over the context in every backward pass outside
    ``no_sync``.

    ``unused``: some parameters may have no part in the loss (a head that no term reads), which has
    to be looked for in each step.
    """
    if context.is_single:
        return network
    devices = [torch.cuda.current_device()] if context.device == "cuda" else None
    with context.named_errors("setting up the network on all ranks"):
        return torch.nn.parallel.DistributedDataParallel(
            network, device_ids=devices, find_unused_parameters=unused
        )


def broadcast_buffers(network: torch.nn.Module, context: DistributedContext) -> None:
    """Give all ranks the buffers of rank 0, such as the running statistics of batch norm, which
    each has updated by its own samples.
    """
    if not context.is_single:
        with context.named_errors("sharing buffers"):
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


def with_sync_batchnorm(network: torch.nn.Module, context: DistributedContext) -> torch.nn.Module:
    """``network`` with batch norm over the samples of all ranks.

    Raises UserError on the CPU, where torch has none.
    """
    if context.is_single:
        return network
    if context.device != "cuda":
        raise UserError(
            "train.sync_batchnorm needs CUDA: torch has no batch norm over several CPU processes."
            " Set it to false."
        )
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)


def share(items: Sequence[T], context: DistributedContext) -> list[T]:
    """The items of this rank: every ``size``-th one.

    >>> share("abcde", DistributedContext(rank=1, size=2))
    ['b', 'd']
    """
    return list(items[context.rank :: context.size])
