"""Cases larger than memory: soft answers kept in blocks on disk, computed by one process or shared by many, and decided slab by slab.

A block is some rows along the first space axis, one float32 file ``OUTPUT/blocks/ID.KEY/ROW.npy``, whole or absent: the file is its own
marker, and no two processes write one. ``KEY`` is a hash of all that the answer depends on, so blocks of other models, settings or
inputs are never taken for these. Every block has the bits that it has in the answer of one process
(:func:`pipeline.inference.sliding_window.stream`), on machines that compute alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, grid, postprocess
from pipeline.config import Config, to_dict
from pipeline.data import store
from pipeline.data.normalise import Scale
from pipeline.files import FileError, Pixels, Rows, slabs
from pipeline.geometry import Tiling
from pipeline.inference.sliding_window import Advance, Sink, Source, Voice, stream
from pipeline.records import Case, Geometry, Part
from pipeline.tasks import TASKS, answer_suffix

FOLDER = "blocks"
"""Of the output folder: where blocks lie until the answer is written."""

SHARD = "shard_{}_of_{}.json"
"""What a shard says of its part, in that folder."""

FORMAT = 1
"""Raised when blocks change their meaning."""


# --- the input ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def image(case: Case, dims: int) -> Iterator[tuple[Pixels, Geometry]]:
    """All channels of a case, read as they are sliced: what :func:`pipeline.data.store.load_image` gives. Raises FileError like it.

    Values that are NaN or infinite are a FileError, too, from the slice that meets them.
    """
    with contextlib.ExitStack() as stack:
        opened = [(path, *stack.enter_context(files.view(path, dims))) for path in case.image]
        found = [(_finite(path, array), place) for path, array, place in opened]
        for path, (array, place) in zip(case.image[1:], found[1:], strict=True):
            _check_fit(path, array, place, found[0])
        first, geometry = found[0]
        notes = [f"(file {p.name}) {note}" if n else note for n, (p, _, place) in enumerate(opened) for note in place.notes]
        geometry = dataclasses.replace(geometry, notes=tuple(notes))
        dtype = np.result_type(*(array.dtype for array, _ in found))
        if len(found) == 1 and dtype != np.float64:
            yield first, geometry
            return
        kind = np.dtype(np.float32) if dtype == np.float64 else dtype
        shape = (sum(array.shape[0] for array, _ in found), *first.shape[1:])
        yield Rows(shape, kind, lambda a, b: np.concatenate([array[:, a:b] for array, _ in found]).astype(kind)), geometry


def _finite(path: Path, array: Pixels) -> Pixels:
    """The same, float64 as float32, whose rows are looked through for NaN and infinity when they are read."""
    if np.dtype(array.dtype).kind != "f":
        return array
    if not isinstance(array, Rows):
        whole = store.single(path, np.asarray(array))
        _require_finite(path, whole, "")
        return whole
    make = array.make

    def checked(first: int, end: int) -> np.ndarray:
        rows = store.single(path, make(first, end))
        _require_finite(path, rows, f" among its rows {first} to {end - 1}")
        return rows

    dtype = np.dtype(np.float32) if array.dtype == np.float64 else array.dtype
    return dataclasses.replace(array, dtype=dtype, make=checked)


def _require_finite(path: Path, rows: np.ndarray, where: str) -> None:
    count = store.nonfinite(rows)
    if count:
        raise FileError(path, store.nonfinite_problem(count) + where, store.NONFINITE)


def _check_fit(path: Path, array: Pixels, place: Geometry, first: tuple[Pixels, Geometry]) -> None:
    if array.shape[1:] != first[0].shape[1:]:
        raise FileError(path, f"has shape {array.shape[1:]}, the first channel {first[0].shape[1:]}", "Resample the channels to one grid")
    one, other = (g.meta.get("affine") for g in (first[1], place))
    if one and other and not grid.near(one, other):
        raise FileError(path, "lies elsewhere in the world than the first channel (affine)", "Resample the channels to one grid")


# --- blocks ------------------------------------------------------------------------------------------------------------


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

    def writer(self) -> Sink:
        """A sink that writes each block as soon as its last row has come; it must be given whole blocks."""
        held: np.ndarray | None = None

        def take(first: int, rows: np.ndarray) -> None:
            nonlocal held
            while rows.shape[1]:
                number = first // self.step
                start, end = self.rows(number)
                held = np.empty((len(rows), end - start, *rows.shape[2:]), np.float32) if held is None else held
                part = rows[:, : end - first]
                held[:, first - start : first - start + part.shape[1]] = part
                first, rows = first + part.shape[1], rows[:, part.shape[1] :]
                if first == end:
                    files.write(self.path(number), held, dims=len(self.size))
                    held = None

        return take

    def soft(self) -> Rows:
        """The soft answer ``(K, *S)`` float32, read as it is sliced. All blocks must be there."""
        channels = len(np.load(self.path(0), mmap_mode="r", allow_pickle=False))

        def make(first: int, end: int) -> np.ndarray:
            out = np.empty((channels, end - first, *self.size[1:]), np.float32)
            for number in range(first // self.step, -(-end // self.step)):
                start, stop = self.rows(number)
                low, high = max(first, start), min(end, stop)
                block = np.load(self.path(number), mmap_mode="r", allow_pickle=False)
                out[:, low - first : high - first] = block[:, low - start : high - start]
            return out

        return Rows((channels, *self.size), np.dtype(np.float32), make)


def key(models: Mapping[str, str], config: Config, case: Case) -> str:
    """Twelve hexadecimal digits that differ between soft answers; ``models`` are the SHA-256 of the model files by path."""
    settings = to_dict(config)
    record = {
        "format": FORMAT,
        "models": list(models.values()),
        "config": [settings["task"], settings["predict"], settings["data"]["normalise"], settings["data"]["patch"]["size"]],
        "files": [stamp(path) for path in case.image],
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:12]


def stamp(path: Path) -> list[Any]:
    """Name, bytes and time of change; of a folder those of all its files together."""
    inside = [p.stat() for p in ([path] if path.is_file() else sorted(path.rglob("*"))) if p.is_file()]
    return [path.name, len(inside), sum(s.st_size for s in inside), max((s.st_mtime_ns for s in inside), default=0)]


def folders(output: Path, case_id: str) -> list[Path]:
    """Folders of blocks of a case, whatever their key."""
    inside = (output / FOLDER).iterdir() if (output / FOLDER).is_dir() else ()
    return [p for p in inside if re.fullmatch(re.escape(case_id) + r"\.[0-9a-f]{12}", p.name) and p.is_dir()]


def remove(output: Path, case_id: str) -> None:
    """Take away a case's blocks, current and stale, and the folder of blocks when no other case has any."""
    for folder in folders(output, case_id):
        shutil.rmtree(folder, ignore_errors=True)
    home = output / FOLDER
    if home.is_dir() and not any(p.is_dir() for p in home.iterdir()):
        for path in home.glob(SHARD.format("*", "*")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            home.rmdir()  # what others put there stays


def share(counts: Sequence[int], index: int, number: int) -> list[range]:
    """The blocks of each case that task ``index`` of ``number`` computes, given how many blocks each case has.

    The blocks of all cases in a row are cut into ``number`` runs of equal length (to one block): neighbours need the same tiles.

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
    speak: Voice,
    tiles: Tiling,
    blocks: Blocks,
    runs: Sequence[tuple[int, int]],
    batch: int,
    device: str,
    advance: Advance | None = None,
) -> None:
    """Compute and write the blocks of ``runs``, as :meth:`Blocks.missing` lists them."""
    for run in runs:
        stream(source, speak, tiles, blocks.writer(), batch, device, run, advance)


# --- the answer --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Soft:
    """A soft answer on disk: its case, array and geometry, and ``facts`` as in :func:`pipeline.inference.soft.save`; ``work`` takes scratch files."""

    case_id: str
    array: Rows
    geometry: Geometry
    facts: Mapping[str, Any]
    work: Path


def write_labels(steps: Sequence[Part], soft: Soft, output: Path) -> tuple[Path, dict[str, int]]:
    """Decide and write a case's labels and their visualisation, as ``TASKS["labels"].write`` does; returns the path and statistics."""
    labels = postprocess.apply(steps, soft.array, soft.work)
    labels = postprocess.stored(labels, soft.work / "labels.npy")
    suffix = answer_suffix("labels", soft.facts["suffix"])
    path = output / f"{soft.case_id}{suffix}"
    files.write(path, labels, soft.geometry)
    factor = 255 / max(1, max(int(labels[0, a:b].max()) for a, b in slabs(labels)))
    grey = Rows(labels.shape, np.dtype(np.uint8), lambda a, b: (labels[:, a:b].astype(np.float32) * factor).astype(np.uint8))
    files.write(output / f"{soft.case_id}_visualization{suffix}", grey, soft.geometry)
    return path, postprocess.statistics(labels)


def write_image(soft: Soft, output: Path, scale: Scale) -> tuple[Path, dict[str, float]]:
    """Write a case's image, and the mask of a network that has such a head; returns the path and the mask's share of the image."""
    count, dtype = int(soft.facts.get("channels", len(soft.array))), np.dtype(soft.facts["dtype"])
    size = soft.array.shape[1:]
    task = TASKS["image"]
    answer = Rows((count, *size), dtype, lambda a, b: task.hard(soft.array[:count, a:b], scale, str(dtype)))
    path = output / f"{soft.case_id}{answer_suffix('image', soft.facts['suffix'])}"
    files.write(path, answer, soft.geometry)
    if len(soft.array) == count:
        return path, {}
    mask = Rows((1, *size), np.dtype(np.uint8), lambda a, b: (soft.array[count:, a:b][:1] * 255).round().astype(np.uint8))
    files.write(output / "masks" / f"{soft.case_id}{'.png' if len(size) == 2 else '.tif'}", mask, dims=len(size))
    inside = sum(int((soft.array[count, a:b] >= 0.5).sum()) for a, b in slabs(soft.array))
    return path, {"mask_share": round(inside / math.prod(size), 6)}


def save_soft(folder: Path, soft: Soft) -> None:
    """What :func:`pipeline.inference.soft.save` writes, slab by slab."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / f"{soft.case_id}.json", {**soft.facts, "geometry": asdict(soft.geometry)})
    dtype = np.dtype(np.float32 if soft.facts.get("task") == "image" else np.float16)
    array = Rows(soft.array.shape, dtype, lambda a, b: soft.array[:, a:b].astype(dtype))
    files.write(folder / f"{soft.case_id}.npy", array)
