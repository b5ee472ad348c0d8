"""Limits on what a file may declare before memory or time is spent on it.

Free memory, what a codec can make of its bytes, and sizes that no real data set reaches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files.errors import FileError

UNASKED = 2**26
"""Bytes of an array up to which free memory is not read: that takes longer than the array."""

DEFLATE, LZW, RUNS, ZSTD = 1032, 4096, 128, 2**15
"""The most bytes that a codec makes of one.

DEFLATE: 258 bytes of 2 bits; LZW: a string of 4096 of 12 bits; run lengths: 128 of 2 bytes; ZSTD: a
block of 128 KiB of 4 bytes.
"""

SLACK = 2**16
"""Bytes that any file may declare beyond what its codec can make of it."""


def available_memory() -> int:
    """Memory that processes may still take.

    Returns:
        Bytes by the system and the control group (a Slurm job's share), whichever is less; 4 GiB
        where neither says.
    """
    known = [n for n in (_system_memory(), _cgroup_memory()) if n is not None]
    return min(known) if known else 4 << 30


def _system_memory() -> int | None:
    """Available bytes by ``/proc/meminfo``; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration, ValueError):
        return None


def _cgroup_memory() -> int | None:
    """What is left of the limit of this process's control group (version 2); None: no limit."""
    try:
        path = next(
            line[3:].strip()
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if line.startswith("0::")
        )
        folder = Path("/sys/fs/cgroup") / path.lstrip("/")
        limit, used = (
            (folder / name).read_text().strip() for name in ("memory.max", "memory.current")
        )
        return None if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, StopIteration, ValueError):
        return None


AXES = 32
"""Most axes of an array: NumPy allowed no more for years, and images have six at most."""


def check_values(path: Path, shape: Sequence[int], dtype: Any) -> None:
    """Check the dtype and the shape that a file declares.

    Args:
        path: the file.
        shape: declared shape.
        dtype: declared dtype.

    Raises:
        FileError: for a dtype that is no number, for empty axes or those of negative length, and
            for more than AXES axes.
    """
    known = np.dtype(dtype)
    if known.hasobject:
        raise FileError(
            path, "holds Python objects", "Convert it to an integer or real number type"
        )
    if known.kind not in "uifb":
        raise FileError(
            path, f"holds {known.name} values"[:100], "Convert it to an integer or real number type"
        )
    if any(n < 0 for n in shape):
        raise FileError(path, f"announces a negative size, shape {tuple(shape)}")
    if 0 in shape:
        raise FileError(path, f"holds no pixel, shape {tuple(shape)}")
    if len(shape) > AXES:
        raise FileError(
            path, f"has {len(shape)} axes; {AXES} are the most", "Check how it was written"
        )


def check_memory(path: Path, shape: Sequence[int], dtype: Any, what: str = "an array") -> None:
    """Check that an array fits into free memory.

    Args:
        path: file that declares it.
        shape: its shape.
        dtype: its dtype.
        what: what it is, for the message.

    Raises:
        FileError: where it does not fit.
    """
    need = math.prod(shape) * np.dtype(dtype).itemsize
    if need <= UNASKED:
        return
    free = available_memory()
    if need > free:
        size = "x".join(map(str, shape))
        problem = (
            f"announces {what} of {size} {np.dtype(dtype).name}, which needs {_gib(need)},"
            f" {_gib(free)} are free"
        )
        raise FileError(
            path,
            problem,
            "Check its header, cut it into smaller pieces, or use a machine with more memory",
        )


def check_ratio(path: Path, need: int, stored: int, most: int) -> None:
    """Check that compressed bytes can hold what a file declares.

    Args:
        path: the file.
        need: declared bytes of pixels.
        stored: compressed bytes.
        most: largest compression ratio of the codec.

    Raises:
        FileError: where they cannot.
    """
    if need > stored * most + SLACK:
        problem = (
            f"announces {need} bytes of pixels, of which its {stored} compressed bytes can hold"
            f" {stored * most} at most"
        )
        raise FileError(path, problem)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 // 10 else f"{size / 2**20:,.0f} MiB"


def cores() -> int:
    """CPU cores that this process may use.

    Returns:
        Their number, by the CPU affinity where the system has one.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
