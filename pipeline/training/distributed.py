"""Distributed training: process groups, collectives, and errors that name the rank that is gone.

Started by ``torchrun`` (or anything else that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT),
each process is a rank of one :class:`DistributedContext`. Started plainly, a process has a context
of one rank, in which nothing here costs anything. Gradients go over NCCL between CUDA devices and
over gloo between CPUs. Everything else that ranks exchange (flags, losses, scores) goes over gloo
in a group of its own, as numbers or JSON, so that it waits for no device.
"""

from __future__ import annotations

import gc
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
"""Seconds in which other ranks can report the error that one has met; then it names the silent."""

SLACK = 1.25
"""Factor of NCCL's time limit over gloo's.

NCCL ends a process without a message; gloo raises an error first, so that we can name the rank.
"""


class DistributedError(RuntimeError):
    """Another rank is dead, hangs or has failed; the message names it.

    This process can only end: what is saved is whole.
    """


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """The processes that train together, as one of them sees them.

    ``DistributedContext()`` is that of a single process.
    """

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    device: str = "cpu"
    """``cpu`` or ``cuda``."""
    control: Any = None
    """Group over gloo for everything but gradients."""
    store: Any = None
    """Key-value store in which ranks write who they are and that they have met an error."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """Whether there is only this process."""
        return self.size == 1

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """Find out for each flag whether any rank has set it.

        All ranks call it at the same point of their work.

        Args:
            flags: this rank's.

        Returns:
            One for each flag, equal on all ranks.

        Raises:
            DistributedError: where another rank is gone.
        """
        if self.is_single:
            return flags
        found = torch.tensor([int(f) for f in flags])
        with self.named_errors("agreeing to go on or to stop"):
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return tuple(bool(f) for f in found.tolist())

    def all_gather(self, value: Any) -> list[Any]:
        """Gather a value from every rank, on every rank.

        Args:
            value: what JSON can hold; numbers come back with the same bits.

        Returns:
            The values in the order of ranks.

        Raises:
            DistributedError: where another rank is gone.
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

    def barrier(self, what: str) -> None:
        """Wait until every rank has come here.

        Args:
            what: the work that it belongs to, for the message of an error.

        Raises:
            DistributedError: where another rank is gone.
        """
        if not self.is_single:
            with self.named_errors(what):
                dist.all_reduce(torch.zeros(1), group=self.control)

    def main_first(self, work: Callable[[], T], what: str) -> T:
        """Do work on rank 0, however long it takes, then on the others, which find its results.

        Args:
            work: called on each rank.
            what: what the work is, for messages; different for each use.

        Returns:
            What ``work`` returns on this rank.

        Raises:
            DistributedError: on the other ranks, where ``work`` raises on rank 0.
        """
        if self.is_single:
            return work()
        if not self.is_main:
            self._await_main(what)
            return work()
        outcome = "failed"
        try:
            result = work()
            outcome = "done"
        finally:
            self.store.set(f"first/{what}", outcome)
        return result

    def _await_main(self, what: str) -> None:
        # Not a collective: those have a time limit, and rank 0 may prepare a large data set for
        # hours. If it dies, torchrun ends this process.
        key = f"first/{what}"
        while not self.store.check([key]):
            time.sleep(0.1)
        if self.store.get(key) != b"done":
            raise DistributedError(f"{what}: rank 0 cannot go on; its message says why.")

    @contextmanager
    def named_errors(self, what: str) -> Iterator[None]:
        """Turn errors of communication into a DistributedError that names the silent ranks.

        Args:
            what: the work inside, for the message.

        Yields:
            Nothing.

        Raises:
            DistributedError: where communication fails inside; other errors pass unchanged.
        """
        try:
            yield
        except RuntimeError as error:
            if (
                self.is_single
                or isinstance(error, DistributedError)
                or not _is_communication_error(error)
            ):
                raise
            first = str(error).splitlines()[0]
            raise DistributedError(
                f"{what}: {self._describe_silent()}. (rank {self.rank}: {first})"
            ) from None

    def _describe_silent(self) -> str:
        """Name the ranks that do not report the error within ``GRACE``: they are dead or hang."""
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


def _is_communication_error(error: RuntimeError) -> bool:
    """Whether gloo, which has no error class of its own, or NCCL reports a peer gone or late."""
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


def is_launched() -> bool:
    """Whether this process was started as one of several.

    Returns:
        True where WORLD_SIZE is above 1.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def init_distributed(device: str, timeout: float) -> DistributedContext:
    """Join the process group that this process was started in.

    On CUDA each rank takes the device of its local number.

    Args:
        device: ``cpu`` or ``cuda``.
        timeout: seconds after which a silent rank is given up.

    Returns:
        The context of this rank; that of a single process where it was started plainly.

    Raises:
        UserError: where this machine has fewer devices than ranks, or the ranks do not find each
            other in time.
        DistributedError: where a rank dies while they join.
    """
    if not is_launched():
        return DistributedContext(device=device)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"rank {local} on this machine finds {torch.cuda.device_count()} CUDA devices."
                " Start one process a device (torchrun --nproc-per-node), or train on"
                " --device cpu."
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
            f" {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} within"
            f" {timeout:.0f} s: {str(error).splitlines()[0]}. Start them all by torchrun,"
            " with one --rdzv-endpoint."
        ) from None
    own.set(f"who/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
    context = DistributedContext(rank=rank, size=size, device=device, control=control, store=own)
    context.barrier("meeting the other ranks")
    return context


def destroy(context: DistributedContext) -> None:
    """Destroy the process group; harmless where there is none or where it is broken already.

    Args:
        context: whose group it is.
    """
    if not context.is_single and dist.is_initialized():
        gc.collect()  # a wrapped network in a cycle keeps threads of the group, which abort an exit
        dist.destroy_process_group()


def wrap_ddp(
    network: torch.nn.Module, context: DistributedContext, unused: bool = False
) -> torch.nn.Module:
    """Wrap a network in DistributedDataParallel.

    Gradients are averaged over the ranks in every backward pass outside ``no_sync``.

    Args:
        network: on its device.
        context: the ranks.
        unused: some parameters may have no part in the loss (a head that no term reads); they are
            searched for in each step.

    Returns:
        The wrapped network; of a single process the network itself.

    Raises:
        DistributedError: where another rank is gone.
    """
    if context.is_single:
        return network
    devices = [torch.cuda.current_device()] if context.device == "cuda" else None
    with context.named_errors("setting up the network on all ranks"):
        return torch.nn.parallel.DistributedDataParallel(
            network, device_ids=devices, find_unused_parameters=unused
        )


def broadcast_buffers(network: torch.nn.Module, context: DistributedContext) -> None:
    """Give all ranks the buffers of rank 0.

    Such are running statistics of batch norm, which each rank has updated by its own samples.

    Args:
        network: changed in place on all ranks but the first.
        context: the ranks.

    Raises:
        DistributedError: where another rank is gone.
    """
    if not context.is_single:
        with context.named_errors("sharing buffers"):
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


def with_sync_batchnorm(network: torch.nn.Module, context: DistributedContext) -> torch.nn.Module:
    """Make batch norm normalise over the samples of all ranks.

    Args:
        network: on its device.
        context: the ranks.

    Returns:
        The network with torch's SyncBatchNorm; of a single process the network as it is.

    Raises:
        UserError: for several ranks on the CPU, where torch has none.
    """
    if context.is_single:
        return network
    if context.device != "cuda":
        raise UserError(
            "train.sync_batchnorm needs CUDA: torch has no batch norm over several CPU processes."
            " Set it to false."
        )
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)


def rank_share(items: Sequence[T], context: DistributedContext) -> list[T]:
    """Select the items of this rank.

    Args:
        items: the same on all ranks.
        context: the ranks.

    Returns:
        Every ``size``-th item, from that of the rank's number on.

    Example:
        >>> rank_share("abcde", DistributedContext(rank=1, size=2))
        ['b', 'd']
    """
    return list(items[context.rank :: context.size])
