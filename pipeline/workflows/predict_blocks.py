"""Volumes predicted by blocks: slabs of probabilities on disk, each computed once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.data import normalise, reading
from pipeline.data.model_space import ModelSpace
from pipeline.data.spaces import space_for, space_of
from pipeline.files import LazyArray
from pipeline.geometry import Tiling
from pipeline.grid import grid_of
from pipeline.inference import blocks
from pipeline.inference.blocks import Blocks
from pipeline.inference.sliding_window import Source, TileRun, with_fixed_norms
from pipeline.progress import progress_steps
from pipeline.records import Case
from pipeline.tasks import TASKS
from pipeline.workflows.predict_job import PredictJob, channels_of


def count_blocks(job: PredictJob, case: Case) -> int:
    """Number of blocks of a case, from the headers of its files.

    Args:
        job: the predictor and where its predictions go.
        case: the case.

    Returns:
        At least 1; 1 for an unreadable file, so that one shard reports it.
    """
    dims = job.config.data.dims
    found = files.probe(case.image[0], dims)
    if found.problem is not None:
        return 1
    size = found.shape[1:]
    try:
        own = grid_of(files.geometry(case.image[0], dims), dims)
        with reading.opened(case, dims) if job.config.data.crop else _unread(size) as (array, _):
            space = space_of(case.image[0], own, array, job.config, job.predictor.trained_on)
        size = space.size(size)
    except files.FileError:
        return 1
    return -(-size[0] // job.predictor.tiles(size).step)


@contextlib.contextmanager
def _unread(size: Sequence[int]) -> Iterator[tuple[LazyArray, None]]:
    """An array of this size whose values nobody looks at."""
    yield np.broadcast_to(np.uint8(0), (1, *size)), None


def goes_by_blocks(job: PredictJob, case: Case) -> bool:
    """Whether a case is read and written by blocks.

    Args:
        job: the predictor and where its predictions go.
        case: the case.

    Returns:
        True where ``job.blocks`` is ``always``, False where it is ``never``; for ``auto`` whether
        the case is large or has blocks already.
    """
    if job.blocks != "auto":
        return job.blocks == "always"
    if blocks.folders(job.output, case.id):
        return True
    found = files.probe(case.image[0], job.config.data.dims)
    if found.problem is not None:
        return False
    channels, size = found.shape[0] * len(case.image), tuple(found.shape[1:])
    return _is_large(job, size, channels) or _is_large(job, _size_seen(job, case, size), channels)


def _size_seen(job: PredictJob, case: Case, size: tuple[int, ...]) -> tuple[int, ...]:
    """Voxels of a case along each axis in model space, were it not cropped, from its headers.

    Those of the file where that says too little: the error comes where it is read.
    """
    config, dims = job.config, job.config.data.dims
    if config.data.spacing is None:
        return size
    try:
        own = grid_of(files.geometry(case.image[0], dims), dims)
        found = space_for(case.image[0], own, size, config, job.predictor.trained_on)
    except files.FileError:
        return size
    return found.size(size)


def _is_large(job: PredictJob, size: Sequence[int], channels: int) -> bool:
    """Whether image or probabilities hold more numbers than should be in memory."""
    return math.prod(size) * max(channels, channels_of(job)) > normalise.WHOLE


def is_streamed(job: PredictJob, array: LazyArray, size: Sequence[int]) -> bool:
    """Whether the prediction, too, is decided and written by slabs.

    Args:
        job: the predictor and where its predictions go.
        array: the image ``(C, *S)``.
        size: voxels along each axis in model space.

    Returns:
        True for images that should not be held in memory, in one space or the other.
    """
    return job.blocks == "always" or any(
        _is_large(job, s, len(array)) for s in (array.shape[1:], size)
    )


def blocks_of(job: PredictJob, case: Case, size: tuple[int, ...], tiles: Tiling) -> Blocks:
    """Where the blocks of a case lie.

    Args:
        job: the predictor and where its predictions go.
        case: the case.
        size: voxels along each axis in model space.
        tiles: how the case is tiled.

    Returns:
        The blocks, each one step of tiles high; none is computed here.
    """
    models = {path: files.sha256(Path(path)) for path in job.predictor.models}
    name = f"{case.id}.{blocks.key(models, job.config, case, job.predictor.backend)}"
    return Blocks(folder=job.output / blocks.FOLDER / name, size=size, step=tiles.step)


def require_room_for_blocks(
    job: PredictJob, parts: Blocks, which: range | None, space: ModelSpace
) -> None:
    """Refuse, before any work, where missing blocks certainly do not fit on the disk.

    Args:
        job: the predictor and where its predictions go.
        parts: the blocks of the case.
        which: numbers of the blocks that are wanted; None: all of them, and the prediction.
        space: the way to the file's own axes, which may need a scratch file.

    Raises:
        DiskError: the disk has fewer bytes free.
    """
    rows = sum(end - first for first, end in parts.missing(parts.wanted(which)))
    back = math.prod(parts.size) if which is None and space.needs_scratch else 0
    need = 4 * channels_of(job) * (rows * math.prod(parts.size[1:]) + back)
    files.require_room(
        job.output,
        need,
        "Blocks lie there until the answer is written. Free space, or choose another --output.",
    )


def predict_by_blocks(
    job: PredictJob, source: Source, tiles: Tiling, parts: Blocks, which: range | None
) -> Mapping[str, LazyArray]:
    """Compute and write the blocks that do not exist, and read the heads from all of them.

    Args:
        job: the predictor and where its predictions go.
        source: the image in model space.
        tiles: how it is tiled.
        parts: its blocks.
        which: numbers of the blocks that are wanted; None: all of them.

    Returns:
        Heads ``(K, *S)`` by name, read as they are sliced; empty where only some were wanted.
    """
    ranges = parts.missing(parts.wanted(which))
    if ranges:
        job.predictor.warn_of_tiles(source, tiles)
        predict_tile = with_fixed_norms(job.predictor.predict_tile, source, tiles)
        needed = sum(any(tiles.reaches(o, *rows) for rows in ranges) for o in tiles.origins())
        with progress_steps("Predicting", needed) as advance:
            run = TileRun(
                source=source,
                predict_tile=predict_tile,
                tiles=tiles,
                batch=job.config.predict.batch,
                device=job.predictor.device,
                advance=advance,
            )
            blocks.compute(run, parts, ranges)
    return {} if which is not None else parts.soft(TASKS[job.config.rules], channels_of(job))
