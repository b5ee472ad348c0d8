"""Cases larger than memory: soft answers kept in blocks on disk, computed by one process or shared
by many.

A block is some rows along the first space axis, one float32 file ``OUTPUT/blocks/ID.KEY/ROW.npy``,
whole or absent: the file is its own marker, and no two processes write one; further heads lie
beside it, ``ROW.HEAD.npy``. ``KEY`` is a hash of all that the answer depends on, so blocks of other
models, settings or inputs are never taken for these. Every block has the bits that it has in the
answer of one process (:func:`pipeline.inference.sliding_window.stream`), on machines that compute
alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.config import Config, to_dict
from pipeline.files import Rows
from pipeline.geometry import Tiling
from pipeline.inference.sliding_window import Advance, SlabWriter, Source, TilePredictor, stream
from pipeline.inference.soft import MAIN
from pipeline.records import Case
from pipeline.tasks import Task

FOLDER = "blocks"
"""Of the output folder: where blocks lie until the answer is written."""

SHARD = "shard_{}_of_{}.json"
"""What a shard says of its part, in that folder."""

FORMAT = 1
"""Raised when blocks change their meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The blocks of a case of ``size`` voxels in ``folder``, ``step`` rows in each."""

    folder: Path
    size: tuple[int, ...]
    step: int

    def count(self) -> int:
        """Number of blocks."""
        return -(-self.size[0] // self.step)

    def rows(self, number: int) -> tuple[int, int]:
        """First row of a block, and the row after its last."""
        return number * self.step, min((number + 1) * self.step, self.size[0])

    def path(self, number: int) -> Path:
        return self.folder / f"{number * self.step:08d}.npy"

    def wanted(self, which: range | None) -> range:
        """The blocks ``which``, all of them for None."""
        return range(self.count()) if which is None else which

    def missing(self, which: range) -> list[tuple[int, int]]:
        """Rows (first, end) of those blocks that are not there, neighbours taken together."""
        runs: list[tuple[int, int]] = []
        for number in which:
            if self.path(number).is_file():
                continue
            first, end = self.rows(number)
            before = runs.pop()[0] if runs and runs[-1][1] == first else first
            runs.append((before, end))
        return runs

    def writer(self) -> SlabWriter:
        """A sink that writes each block as soon as its last row has come; it must be given whole
        blocks.
        """
        held: dict[str, np.ndarray] = {}

        def take(first: int, heads: Mapping[str, np.ndarray]) -> None:
            count = heads[MAIN].shape[1]
            for number in range(first // self.step, -(-(first + count) // self.step)):
                start, end = self.rows(number)
                low, high = max(first, start), min(first + count, end)
                for name, rows in heads.items():
                    if name not in held:
                        held[name] = np.empty((len(rows), end - start, *rows.shape[2:]), np.float32)
                    held[name][:, low - start : high - start] = rows[:, low - first : high - first]
                if high == end:
                    self._write(number, held)
                    held.clear()

        return take

    def _write(self, number: int, heads: Mapping[str, np.ndarray]) -> None:
        """The main head last: its file says that the block is there."""
        for name in sorted(heads, key=lambda name: name == MAIN):
            files.write(self._place(number, name), heads[name], dims=len(self.size))

    def _place(self, number: int, head: str) -> Path:
        path = self.path(number)
        return path if head == MAIN else path.with_name(f"{path.stem}.{head}.npy")

    def soft(self, task: Task, channels: int) -> dict[str, Rows]:
        """The soft answer ``(K, *S)`` float32 by head, read as it is sliced.

        All blocks must be there.

        ``channels``: of the main head; blocks of before heads had names hold a further one behind
        it.
        """
        return {
            name: self._head(name, count, channels)
            for name, count in self._found(0, task, channels).items()
        }

    def _found(self, number: int, task: Task, channels: int) -> dict[str, int]:
        """Heads of a block, and K of each."""
        more = {
            h: 1
            for h in task.further
            if self._place(number, h).is_file() or len(_mapped(self.path(number))) > channels
        }
        return {MAIN: channels, **more}

    def _head(self, head: str, count: int, channels: int) -> Rows:
        def block(number: int) -> np.ndarray:
            own = self._place(number, head)
            return _mapped(own)[:count] if own.is_file() else _mapped(self.path(number))[channels:]

        def make(first: int, end: int) -> np.ndarray:
            out = np.empty((count, end - first, *self.size[1:]), np.float32)
            for number in range(first // self.step, -(-end // self.step)):
                start, stop = self.rows(number)
                low, high = max(first, start), min(end, stop)
                out[:, low - first : high - first] = block(number)[:, low - start : high - start]
            return out

        return Rows((count, *self.size), np.dtype(np.float32), make)


def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def key(models: Mapping[str, str], config: Config, case: Case, backend: str = "torch") -> str:
    """Twelve hexadecimal digits that differ between soft answers.

    Args:
        models: SHA-256 of the model files by path.
        backend: what computes the networks: answers of another one have other last bits.
    """
    settings = to_dict(config)
    record = {
        "format": FORMAT,
        "models": list(models.values()),
        "config": [
            settings["task"],
            settings["predict"],
            settings["data"]["normalise"],
            settings["data"]["patch"]["size"],
        ],
        "files": [stamp(path) for path in case.image],
        **(
            {} if backend == "torch" else {"backend": backend}
        ),  # so that blocks of before it was recorded are still good
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:12]


def stamp(path: Path) -> list[Any]:
    """Name, bytes and time of change; of a folder those of all its files together."""
    inside = [
        p.stat() for p in ([path] if path.is_file() else sorted(path.rglob("*"))) if p.is_file()
    ]
    return [
        path.name,
        len(inside),
        sum(s.st_size for s in inside),
        max((s.st_mtime_ns for s in inside), default=0),
    ]


def folders(output: Path, case_id: str) -> list[Path]:
    """Folders of blocks of a case, whatever their key."""
    inside = (output / FOLDER).iterdir() if (output / FOLDER).is_dir() else ()
    return [
        p
        for p in inside
        if re.fullmatch(re.escape(case_id) + r"\.[0-9a-f]{12}", p.name) and p.is_dir()
    ]


def remove(output: Path, case_id: str) -> None:
    """Take away a case's blocks, current and stale, and the folder of blocks when no other case has
    any.
    """
    for folder in folders(output, case_id):
        shutil.rmtree(folder, ignore_errors=True)
    home = output / FOLDER
    if home.is_dir() and not any(p.is_dir() for p in home.iterdir()):
        for path in home.glob(SHARD.format("*", "*")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            home.rmdir()  # what others put there stays


def share(counts: Sequence[int], index: int, number: int) -> list[range]:
    """The blocks of each case that task ``index`` of ``number`` computes, given how many blocks
    each case has.

    The blocks of all cases in a row are cut into ``number`` runs of equal length (to one block):
    neighbours need the same tiles.

    >>> share([4, 1], 0, 2), share([4, 1], 1, 2)
    ([range(0, 2), range(0, 0)], [range(2, 4), range(0, 1)])
    """
    total, out, before = sum(counts), [], 0
    first, end = total * index // number, total * (index + 1) // number
    for count in counts:
        low = min(max(first - before, 0), count)
        out.append(range(low, max(low, min(end - before, count))) if low < count else range(0))
        before += count
    return out


def compute(
    source: Source,
    predict_tile: TilePredictor,
    tiles: Tiling,
    blocks: Blocks,
    runs: Sequence[tuple[int, int]],
    batch: int,
    device: str,
    advance: Advance | None = None,
) -> None:
    """Compute and write the blocks of ``runs``, as :meth:`Blocks.missing` lists them."""
    for run in runs:
        stream(source, predict_tile, tiles, blocks.writer(), batch, device, run, advance)
