"""Predict whole images or volumes, in memory or by blocks, and record the result of every file.

Data flow: inference.predictor (networks) -> data.cases (inputs) -> for each: data.reading ->
data.model_space -> data.normalise -> inference.sliding_window, or inference.blocks around it ->
back -> inference.writing -> summary.json.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, plugins, postprocess
from pipeline.config import to_dict
from pipeline.data import reading
from pipeline.data.model_space import ModelSpace
from pipeline.data.scales import IntensityScale
from pipeline.data.spaces import space_of
from pipeline.files import LazyArray
from pipeline.geometry import Tiling
from pipeline.grid import by_mm, grid_of
from pipeline.inference import blocks, outputs
from pipeline.inference import soft as softs
from pipeline.inference.options import ModelOptions
from pipeline.inference.predictor import prepare
from pipeline.inference.sliding_window import Source
from pipeline.inference.soft import SoftMeta, SoftPrediction
from pipeline.inference.writing import Target, log_written, write_answer
from pipeline.metrics.names import from_json
from pipeline.progress import progress_steps
from pipeline.records import Case, Geometry, UserError
from pipeline.stopping import stop
from pipeline.tasks import TASKS
from pipeline.workflows.predict_blocks import (
    blocks_of,
    count_blocks,
    goes_by_blocks,
    is_streamed,
    predict_by_blocks,
    require_room_for_blocks,
)
from pipeline.workflows.predict_job import (
    Predicted,
    PredictJob,
    channels_of,
    find_inputs,
    require_free,
    require_names_fit,
    require_room,
    require_room_for,
)

logger = logging.getLogger(__name__)


def predict_files(
    options: ModelOptions,
    inputs: Sequence[Path | str] | Path | str,
    output: Path | str,
    *,
    save_soft: bool = False,
    blocks: str = "auto",
    shard: tuple[int, int] | None = None,
) -> Predicted:
    """Predict image files and folders of images into a folder.

    Args:
        options: which networks predict, and how.
        inputs: files and folders.
        output: folder for the predictions; no file of others in it is replaced.
        save_soft: also write probabilities to ``output/soft``, for ensembles.
        blocks: when inputs are read and written by blocks, in memory that does not grow with the
            volume: ``auto`` (more than 2^27 numbers), ``always``, ``never``.
        shard: (index, number): compute only that part of the blocks of all inputs and write
            no prediction.

    Returns:
        What became of each file. One bad file does not stop the others.

    Raises:
        UserError: for models, inputs or a folder that cannot be used, before work begins.

    Example:
        >>> predict_files(ModelOptions(checkpoint=Path("run")), "images", "out", blocks="often")
        Traceback (most recent call last):
        ...
        pipeline.records.UserError: blocks is 'often', must be auto, always or never.
    """
    output = Path(output)
    if blocks not in ("auto", "always", "never"):
        raise UserError(f"blocks is {blocks!r}, must be auto, always or never.")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise UserError(
            f"shard is {shard}, must be (index, number) with an index from 0 to number - 1, such as"
            " (0, 4)."
        )
    outputs.require_folder(output)  # before a model or an image is read
    job = PredictJob(predictor=prepare(options), output=output, save_soft=save_soft, blocks=blocks)
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    if not given:
        raise UserError("inputs: no file and no folder is named. Name some.")
    cases = find_inputs([Path(p) for p in given], job.predictor)
    require_free(job, cases)
    logger.info(f"Found {len(cases)} files to process")
    require_room(job, cases)
    if shard is not None:  # shards share a folder: each writes only its own blocks
        return predict_shard(job, cases, *shard)
    with outputs.owned(output):
        _warn_of_other_models(job)
        found = predict_all(job, cases)
    log_written(output, found.rows)
    return found


def _warn_of_other_models(job: PredictJob) -> None:
    """Warn where the folder holds answers of other models, which these replace."""
    try:
        before = outputs.read_summary(job.output).get("models")
    except UserError:
        return
    names = before if isinstance(before, list) and all(isinstance(m, str) for m in before) else []
    if names and names != list(job.predictor.models):
        logger.warning(
            f"{job.output} holds answers of other models ({names[0]}): those of the same names are"
            " replaced. To keep them, stop and choose another --output."
        )


def predict_all(job: PredictJob, inputs: Sequence[Case]) -> Predicted:
    """Predict every case, and write summary.json with one row per file, failures included.

    Args:
        job: the networks, and where and how predictions are written.
        inputs: the cases.

    Returns:
        What became of each file.
    """
    job.output.mkdir(parents=True, exist_ok=True)
    files.remove_stale_temps(job.output)
    rows, began = [], time.monotonic()
    with outputs.ThrottledWriter(lambda: _write_summary(job, rows, len(inputs))) as write:
        # Before any prediction: the summary marks the folder as ours, so that a killed command can
        # be run again.
        write()
        for n, case in enumerate(inputs):
            stop.raise_if_stopped()
            logger.info(f"\nProcessing {case.image[0].name} ({n + 1} of {len(inputs)})")
            rows.append(_row_of(job, case, lambda case=case: predict_case(job, case)))
            write()
    return _log_totals(rows, began)


def predict_shard(job: PredictJob, inputs: Sequence[Case], index: int, number: int) -> Predicted:
    """Compute one of several parts of the blocks of all cases.

    Writes ``blocks/shard_I_of_N.json``.

    Args:
        job: the networks, and where the blocks are written.
        inputs: the cases; every shard needs the same, in the same order.
        index: which part, from 0.
        number: number of parts.

    Returns:
        What became of each file that has blocks in this part.
    """
    counts = [count_blocks(job, case) for case in inputs]
    own_part = [
        (case, which)
        for case, which in zip(inputs, blocks.share(counts, index, number), strict=True)
        if which
    ]
    logger.info(
        f"Shard {index} of {number}: {sum(len(which) for _, which in own_part)} of {sum(counts)}"
        f" blocks, in {len(own_part)} files"
    )
    rows, began = [], time.monotonic()
    facts = job.output / blocks.FOLDER / blocks.SHARD.format(index, number)
    with outputs.ThrottledWriter(lambda: files.write_json(facts, {"files": rows})) as write:
        for case, which in own_part:
            stop.raise_if_stopped()
            logger.info(
                f"\nProcessing {case.image[0].name}, blocks {which.start} to {which.stop - 1}"
            )
            rows.append(
                _row_of(job, case, lambda case=case, which=which: predict_case(job, case, which))
            )
            write()
    return _log_totals(rows, began)


def _log_totals(rows: list[dict[str, Any]], began: float) -> Predicted:
    """The rows, after the totals and failures were logged."""
    found = Predicted(rows=rows)
    done, seconds = len(rows) - len(found.failed), time.monotonic() - began
    logger.info(f"\nInference complete: {done} done, {len(found.failed)} failed, {seconds:.1f} s")
    for row in found.failed:
        logger.info(f"  failed: {row['file']}: {row['error']}")
    return found


def _row_of(job: PredictJob, case: Case, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run ``work`` and return the row of a file; an error becomes a failed row."""
    began = time.monotonic()
    row: dict[str, Any] = {"id": case.id, "file": str(case.image[0])}
    try:
        require_names_fit(job, case)
        row |= {"status": "done", **work()}
    except Exception as error:
        logger.info(f"  FAILED: {type(error).__name__}: {error}")
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return row | {"seconds": round(time.monotonic() - began, 2)}


def _write_summary(job: PredictJob, rows: Sequence[dict[str, Any]], inputs: int) -> None:
    """Write summary.json, with the rows so far and the number of all inputs."""
    config, names = to_dict(job.config), job.predictor.trained_on.get("class_names")
    summary = {
        "models": job.predictor.models,
        "task": job.config.rules,
        **TASKS[job.config.rules].facts(job.config),
        **({"class_names": names} if names else {}),
        "ignore_label": job.config.data.ignore_label,
        "backend": job.predictor.backend,
        **({"plugins": [p.record for p in used]} if (used := plugins.used_by(job.config)) else {}),
        "predict": config["predict"],
        "postprocess": config["postprocess"],
        "inputs": inputs,
        "files": rows,
    }
    files.write_json(job.output / "summary.json", summary)


def predict_case(job: PredictJob, case: Case, which: range | None = None) -> dict[str, Any]:
    """Read, predict, decide and write one case, in memory or by blocks.

    Args:
        job: the networks, and where and how predictions are written.
        case: the image.
        which: compute these blocks, as far as they do not exist yet, and write no prediction; None:
            predict the whole case.

    Returns:
        Shape, number of tiles, warnings, and where it was written its name and statistics.

    Raises:
        FileError: for an image that cannot be read, or not predicted by these networks.
        DiskError: before any work, where the prediction certainly does not fit on the disk.
    """
    by_blocks = which is not None or goes_by_blocks(job, case)
    with reading.opened(case, job.config.data.dims, whole=not by_blocks) as (given, geometry):
        shape = tuple(given.shape[1:])
        logger.info(
            f"  Loaded volume: {shape}, dtype: {given.dtype}" + (", by blocks" if by_blocks else "")
        )
        require_room_for(job, case, shape, str(given.dtype))
        if TASKS[job.config.rules].decides:
            spacing = grid_of(geometry, job.config.data.dims).spacing
            postprocess.require_spacing(case.image[0], job.config.postprocess, spacing)
        space, notes = _to_model_space(job, case, given, geometry)
        size = space.size(shape)
        tiles = job.predictor.tiles(size)
        parts = blocks_of(job, case, size, tiles) if by_blocks else None
        streams = parts is not None and is_streamed(job, given, size)
        if streams and which is None and TASKS[job.config.rules].decides:
            postprocess.check_memory(job.config.postprocess, channels_of(job), shape)
        if parts is not None:
            require_room_for_blocks(job, parts, which, space)
        work = None if parts is None else parts.folder
        scratch = None if work is None else work / "input.npy"
        source, found = job.predictor.source(case.image[0], given, space, scratch)
        notes += _log_notes(case, found)
        heads = (
            _predict_in_memory(job, source, tiles)
            if parts is None
            else predict_by_blocks(job, source, tiles, parts, which)
        )
        counts = {} if parts is None else {"blocks": len(parts.wanted(which))}
        row = {
            "shape": list(shape),
            "tiles": tiles.count(),
            **counts,
            **({"warnings": notes} if notes else {}),
        }
        if which is not None:
            return row
        if not streams:
            heads = {name: head[:] for name, head in heads.items()}
        soft = SoftPrediction(
            case_id=case.id,
            heads=heads,
            geometry=geometry,
            meta=_meta(job, case, source.scale, given),
            space=space,
        )
        if not space.changes_grid:  # then soft files lie in the order of the file, as ever
            soft = soft.on_file_grid(work)
        image = None if streams or len(shape) != 2 else np.asarray(given[:])
        if job.save_soft:
            softs.save(job.output / "soft", soft)
        row |= write_answer(
            soft,
            Target(
                output=job.output,
                steps=job.config.postprocess,
                image=image,
                work=work,
                names=from_json(job.predictor.trained_on.get("class_names")),
            ),
        )
    if parts is not None:
        blocks.remove(job.output, case.id)
    return row


def _to_model_space(
    job: PredictJob, case: Case, array: LazyArray, geometry: Geometry
) -> tuple[ModelSpace, list[str]]:
    """How the array is brought to model space, and warnings about it.

    Raises FileError where it cannot be predicted by these networks.
    """
    job.predictor.require_channels(case.image[0], len(array))
    own = grid_of(geometry, job.config.data.dims)
    space = space_of(case.image[0], own, array, job.config, job.predictor.trained_on)
    if space.codes[1]:
        logger.info(
            f"  Its axes {space.codes[0]} are brought to those of training, {space.codes[1]}, and"
            " its answer back"
        )
    if space.changes_grid:
        size = " x ".join(map(str, space.size(array.shape[1:])))
        voxels = f" of {by_mm(space.spacing)}" if space.spacing else ""
        logger.info(f"  The model sees it as {size} voxels{voxels}")
    return space, _log_notes(case, [*geometry.notes, *space.notes])


def _log_notes(case: Case, notes: Sequence[str]) -> list[str]:
    """Log notes as warnings, and return them."""
    for note in notes:
        logger.warning(f"{case.image[0].name}: {note}.")
    return list(notes)


def _predict_in_memory(job: PredictJob, source: Source, tiles: Tiling) -> Mapping[str, LazyArray]:
    """Heads ``(K, *S)`` of a whole case, computed in memory."""
    with progress_steps("Predicting", tiles.count()) as advance:
        return job.predictor.heads_of(source, advance)


def _meta(job: PredictJob, case: Case, scale: IntensityScale, given: LazyArray) -> SoftMeta:
    """The record that is stored with probabilities."""
    return SoftMeta(
        task=job.config.rules,
        suffix=files.format_suffix(case.image[0]),
        scale=scale,
        dtype=str(given.dtype),
        channels=len(given),
        image=tuple(str(p.absolute()) for p in case.image),
    )
