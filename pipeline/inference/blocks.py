"""Cases larger than memory: probabilities in blocks on disk, computed by one process or several.

A block is some rows along the first space axis, one float32 file ``OUTPUT/blocks/ID.KEY/ROW.npy``,
whole or absent: the file is its own marker, and no two processes write the same one. Further heads
lie beside it, ``ROW.HEAD.npy``. ``KEY`` is a hash of all that the prediction depends on, so blocks
of other models, settings or inputs are never mixed up. Every block has the bits that it has in the
prediction of one process (:func:`pipeline.inference.sliding_window.stream`), on machines that
compute alike.
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
from pipeline.data import spaces
from pipeline.files import Rows
from pipeline.inference.sliding_window import SlabWriter, TileRun, stream
from pipeline.inference.soft import MAIN
from pipeline.records import Case
from pipeline.tasks import Task

FOLDER = "blocks"
"""Folder inside the output folder where blocks lie until the answer is written."""

SHARD = "shard_{}_of_{}.json"
"""Name of the file in that folder in which a shard records its cases."""

FORMAT = 1
"""Part of the key, increased when the format of blocks changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The blocks of one case.

    Args:
        folder: where they lie.
        size: voxels of the case along each axis.
        step: rows of a block along the first axis.
    """

    folder: Path
    size: tuple[int, ...]
    step: int

    def count(self) -> int:
        """Number of blocks.

        Returns:
            At least 1.
        """
        return -(-self.size[0] // self.step)

    def rows(self, number: int) -> tuple[int, int]:
        """Rows of a block.

        Args:
            number: of the block, from 0.

        Returns:
            Its first row, and the row after its last.
        """
        return number * self.step, min((number + 1) * self.step, self.size[0])

    def path(self, number: int) -> Path:
        """File of a block's main head.

        Args:
            number: of the block, from 0.

        Returns:
            Its path, whether it is there or not.
        """
        return self.folder / f"{number * self.step:08d}.npy"

    def wanted(self, which: range | None) -> range:
        """Resolve a choice of blocks.

        Args:
            which: numbers of blocks; None: all of them.

        Returns:
            Numbers of blocks.
        """
        return range(self.count()) if which is None else which

    def missing(self, which: range) -> list[tuple[int, int]]:
        """Rows of the blocks that are not there yet.

        Args:
            which: numbers of the blocks to check.

        Returns:
            (First row, end) of each run of missing blocks; neighbours are merged.
        """
        runs: list[tuple[int, int]] = []
        for number in which:
            if self.path(number).is_file():
                continue
            first, end = self.rows(number)
            before = runs.pop()[0] if runs and runs[-1][1] == first else first
            runs.append((before, end))
        return runs

    def writer(self) -> SlabWriter:
        """A writer for :func:`~pipeline.inference.sliding_window.stream` that saves whole blocks.

        Returns:
            A function that writes each block as soon as its last row has come; the rows that it is
            given must begin and end with blocks.
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
        """Write a block, its main head last: that file says that the block is there."""
        for name in sorted(heads, key=lambda name: name == MAIN):
            files.write(self._head_path(number, name), heads[name], dims=len(self.size))

    def _head_path(self, number: int, head: str) -> Path:
        """File of one head of a block."""
        path = self.path(number)
        return path if head == MAIN else path.with_name(f"{path.stem}.{head}.npy")

    def soft(self, task: Task, channels: int) -> dict[str, Rows]:
        """Probabilities of the whole case, read as they are sliced. All blocks must be there.

        Args:
            task: says which heads there may be.
            channels: K of the main head. Blocks written before heads had names hold a further one
                behind it.

        Returns:
            Arrays ``(K, *S)`` float32 by head.
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
            if self._head_path(number, h).is_file() or len(_mapped(self.path(number))) > channels
        }
        return {MAIN: channels, **more}

    def _head(self, head: str, count: int, channels: int) -> Rows:
        def block(number: int) -> np.ndarray:
            own = self._head_path(number, head)
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
    """Hash of all that the probabilities of a case depend on.

    Args:
        models: SHA-256 of the model files by path.
        config: config of the prediction.
        case: the case; its files are identified by name, size and time of change.
        backend: what computes the networks: results of another one differ in their last bits.

    Returns:
        Twelve hexadecimal digits.
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
        **({"space": spaces.settings_of(config)} if config.data.has_space else {}),
        # Left out for torch, so that blocks written before it was recorded stay valid.
        **({} if backend == "torch" else {"backend": backend}),
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:12]


def stamp(path: Path) -> list[Any]:
    """Identify the state of a file or folder without reading it.

    Args:
        path: the file or folder.

    Returns:
        Name, number of files, bytes, and latest time of change in nanoseconds.
    """
    whole = files.split_selection(path)[0]
    inside = [
        p.stat() for p in ([whole] if whole.is_file() else sorted(whole.rglob("*"))) if p.is_file()
    ]
    return [
        path.name,
        len(inside),
        sum(s.st_size for s in inside),
        max((s.st_mtime_ns for s in inside), default=0),
    ]


def folders(output: Path, case_id: str) -> list[Path]:
    """Folders of blocks of a case, whatever their key.

    Args:
        output: the output folder of the prediction.
        case_id: id of the case.

    Returns:
        Their paths, in no order.
    """
    inside = (output / FOLDER).iterdir() if (output / FOLDER).is_dir() else ()
    return [
        p
        for p in inside
        if re.fullmatch(re.escape(case_id) + r"\.[0-9a-f]{12}", p.name) and p.is_dir()
    ]


def remove(output: Path, case_id: str) -> None:
    """Remove a case's blocks, current and stale.

    The folder of blocks goes as well when no other case has any.

    Args:
        output: the output folder of the prediction.
        case_id: id of the case.
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
    """The blocks of each case that one of several tasks computes.

    The blocks of all cases in a row are cut into ``number`` runs of equal length (to one block),
    since neighbours need the same tiles.

    Args:
        counts: number of blocks of each case.
        index: the task, from 0.
        number: number of tasks.

    Returns:
        Numbers of blocks for each case; empty ranges where the task has none of it.

    Example:
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


def compute(run: TileRun, blocks: Blocks, ranges: Sequence[tuple[int, int]]) -> None:
    """Predict and write blocks.

    Args:
        run: case, networks and tiles.
        blocks: where blocks are written.
        ranges: (first row, end) of the blocks, as :meth:`Blocks.missing` lists them.

    Raises:
        UserError: the device runs out of memory.
    """
    for rows in ranges:
        stream(run, blocks.writer(), rows)
