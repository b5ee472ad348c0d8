"""What a file may announce before memory or time is taken for it: free memory, what a codec can
make of its bytes, and numbers that no real data set meets."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files.errors import FileError

UNASKED = 2**26
"""Bytes of an array for which nobody asks how much memory is free: asking takes longer than it."""

DEFLATE, LZW, RUNS, ZSTD = 1032, 4096, 128, 2**15
"""The most bytes that a codec makes of one: 258 of 2 bits; a string of 4096 of 12 bits; 128 of 2;
a block of 128 KiB of 4."""

SLACK = 2**16
"""Bytes that any file may announce beyond what its codec can make of it."""


def available_memory() -> int:
    """Bytes that processes may still take, by the system and the control group (a Slurm job's
    share); 4 GiB where neither says.
    """
    known = [n for n in (_system(), _group()) if n is not None]
    return min(known) if known else 4 << 30


def _system() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration, ValueError):
        return None


def _group() -> int | None:
    """What is left of the limit of the control group (version 2) that this process is in."""
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
"""Axes of an array: NumPy held that many for years, and images have six at most."""


def check_values(path: Path, shape: Sequence[int], dtype: Any) -> None:
    """Raise FileError for values that are no numbers of pixels, and for axes without one or of a
    negative length.
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
    """Raise FileError where an array of ``shape`` does not fit into the memory that is free."""
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
    """Raise FileError where ``stored`` compressed bytes cannot hold ``need``: ``most`` is the
    codec's ratio.
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
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
