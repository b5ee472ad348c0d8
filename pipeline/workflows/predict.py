"""Whole images or volumes: find them, predict each in memory or by blocks, decide, write, and say what became of every file.

The walk: inference.predictor (networks) -> data.cases (inputs) -> for each: data.store or inference.blocks (read) -> placement ->
sliding_window -> postprocess -> inference.writing -> summary.json.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline import files, postprocess
from pipeline.config import Config, to_dict
from pipeline.data import cases as case_finder
from pipeline.data import normalise, store, streamed
from pipeline.data.normalise import Scale
from pipeline.files import Pixels, Rows
from pipeline.geometry import Tiling
from pipeline.inference import blocks, outputs
from pipeline.inference import soft as softs
from pipeline.inference.blocks import Blocks
from pipeline.inference.placement import Placement, placement
from pipeline.inference.predictor import ModelOptions, Predictor, prepare
from pipeline.inference.sliding_window import Source, settled, tiling
from pipeline.inference.writing import finish
from pipeline.progress import steps
from pipeline.records import DONE, FAILED, PARTIAL, Case, Geometry, Prediction, UserError
from pipeline.stopping import stop
from pipeline.tasks import COMPANIONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictJob:
    """A predictor, and where and how its answers are written.

    Args:
        save_soft: also write probabilities to ``soft/``.
        blocks: when inputs are read and written by blocks: ``auto``, ``always``, ``never``.
    """

    predictor: Predictor
    output: Path
    save_soft: bool = False
    blocks: str = "auto"

    @property
    def config(self) -> Config:
        return self.predictor.config


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What became of each file.

    Args:
        rows: as in ``summary.json``: ``id``, ``file``, ``status`` (``done`` or ``failed``), ``seconds``; of what is done ``output`` (its
            name), ``shape`` and statistics, of what failed ``error``.
    """

    rows: Sequence[dict[str, Any]]

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [r for r in self.rows if r["status"] == "failed"]

    @property
    def code(self) -> int:
        """Exit code: everything failed, or the disk did, is worse than some files."""
        disk = any(row["error"].startswith("DiskError:") for row in self.failed)
        if not self.failed:
            return DONE
        return FAILED if disk or len(self.failed) == len(self.rows) else PARTIAL


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
        options: which networks answer, and how.
        inputs: files and folders.
        output: folder for the answers; nothing of others in it is replaced.
        save_soft: also write probabilities to ``output/soft``, for ensembles.
        blocks: when inputs are read and written by blocks, in memory that does not grow with the volume: ``auto`` (more than 2^27
            numbers), ``always``, ``never``.
        shard: (index, number): compute only that part of the blocks of all inputs and write no answer.

    Returns:
        What became of each file. One bad file does not stop the others.

    Raises:
        UserError: for models, inputs or a folder that cannot be used, before work begins.
    """
    output = Path(output)
    if blocks not in ("auto", "always", "never"):
        raise UserError(f"blocks is {blocks!r}, must be auto, always or never.")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise UserError(f"shard is {shard}, must be (index, number) with an index from 0 to number - 1, such as (0, 4).")
    outputs.require_folder(output)  # before a model is loaded or an image looked at
    job = PredictJob(predictor=prepare(options), output=output, save_soft=save_soft, blocks=blocks)
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    if not given:
        raise UserError("inputs: no file and no folder is named. Name some.")
    cases = find_inputs([Path(p) for p in given], job.predictor)
    require_free(job, cases)
    logger.info(f"Found {len(cases)} files to process")
    require_room(job, cases)
    if shard is not None:  # shards share a folder: they write nothing but blocks, each its own
        return predict_shard(job, cases, *shard)
    with outputs.owned(output):
        return predict_all(job, cases)


def find_inputs(paths: Sequence[Path], predictor: Predictor) -> list[Case]:
    """Cases of all files and folders, in the order given. Raises UserError where one answer would be written over another."""
    config, found = predictor.config, dict[str, Case]()
    for path in paths:
        for case in case_finder.inputs(path, config.data, predictor.channels, predictor.trained_on.get("layout")):
            if case.id in found:
                raise UserError(
                    f"{case.image[0]} and {found[case.id].image[0]} are both called {case.id}, and so would be their answers. "
                    "Predict them in two runs, or rename one."
                )
            found[case.id] = case
    for case_id in found if config.task == "labels" else ():
        for ending in COMPANIONS:
            if case_id + ending in found:
                raise UserError(
                    f"{found[case_id + ending].image[0]} is called like a picture that is written beside the answer for {case_id}. "
                    "Leave it out, or rename it."
                )
    return list(found.values())


def require_free(job: PredictJob, inputs: Sequence[Case]) -> None:
    """Raise UserError where answers would replace an input, or a file in the output folder that is no answer."""
    outputs.require_folder(job.output)
    outputs.require_apart((path for case in inputs for path in case.image), job.output)
    outputs.require_own(job.output, (name for case in inputs for name in _names(job, case)))


def _names(job: PredictJob, case: Case) -> list[str]:
    """Files that the answer to a case may be written to."""
    return outputs.names(case.id, job.config.task, files.suffix(case.image[0]), job.save_soft)


LOOKED_AT = 1000
"""Inputs whose sizes are read before work to tell whether their answers fit; of more, the others come on top."""

FREE_SPACE = "Free space there, choose another --output, or leave --save-soft out"


def require_room(job: PredictJob, inputs: Sequence[Case]) -> None:
    """Warn where the disk has fewer bytes free than the answers to all inputs take; DiskError where they certainly cannot fit."""
    dims, need = job.config.data.dims, 0
    for case in inputs[:LOOKED_AT]:
        found = files.probe(case.image[0], dims)
        if found.problem is None:
            names = (job.output / name for name in _names(job, case))
            need += max(0, _need(job, case, found.shape[1:], found.dtype) - sum(_size(p) for p in names))
    text = files.require_room(job.output, need, f"{FREE_SPACE}.")
    if text is not None:
        logger.warning(text)


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except (OSError, ValueError):
        return 0


def _need(job: PredictJob, case: Case, size: Sequence[int], dtype: str) -> int:
    """Bytes that the answer to a case of ``size`` voxels takes at least: probabilities, and files that are not compressed."""
    config, voxels = job.config, math.prod(size)
    labels = config.task == "labels"
    planes = (1 if config.data.classes == 2 else config.data.classes) if labels else max(1, job.predictor.channels)
    soft = planes * voxels * (2 if labels else 4) if job.save_soft else 0
    plain = files.suffix(case.image[0]) in (".npy", ".nii")
    answer = voxels * (2 if labels else planes * np.dtype(dtype).itemsize)  # labels: and their visualisation
    return soft + (answer if plain else 0)


def _admit_names(job: PredictJob, case: Case) -> None:
    """Raise FileError, before any work, where the disk cannot hold a name that is made of the case's."""
    problem = outputs.too_long(job.output, _names(job, case))
    if problem is not None:
        raise files.FileError(case.image[0], problem, "Rename the input, or choose another --output")


def _admit_size(job: PredictJob, case: Case, size: Sequence[int], dtype: str) -> None:
    """Raise DiskError, before any work, where the answer to a case certainly does not fit on the disk."""
    files.require_room(job.output, _need(job, case, size, dtype), f"{FREE_SPACE}.")


def predict_all(job: PredictJob, inputs: Sequence[Case]) -> Predicted:
    """Predict every case; write summary.json with one row a file, failures included."""
    job.output.mkdir(parents=True, exist_ok=True)
    files.sweep(job.output)
    rows, began = [], time.monotonic()
    with outputs.Kept(lambda: _write_summary(job, rows, len(inputs))) as write:
        write()  # before any answer: what is killed can be run again, since it is known whose answers these are
        for n, case in enumerate(inputs):
            stop.check()
            logger.info(f"\nProcessing {case.image[0].name} ({n + 1} of {len(inputs)})")
            rows.append(_guarded(job, case, lambda case=case: predict_case(job, case)))
            write()
    return _told(rows, began)


def predict_shard(job: PredictJob, inputs: Sequence[Case], index: int, number: int) -> Predicted:
    """Compute part ``index`` of ``number`` of the blocks of all cases; writes ``blocks/shard_I_of_N.json``."""
    counts = [_count_blocks(job, case) for case in inputs]
    mine = [(case, which) for case, which in zip(inputs, blocks.share(counts, index, number), strict=True) if which]
    logger.info(f"Shard {index} of {number}: {sum(len(which) for _, which in mine)} of {sum(counts)} blocks, in {len(mine)} files")
    rows, began = [], time.monotonic()
    facts = job.output / blocks.FOLDER / blocks.SHARD.format(index, number)
    with outputs.Kept(lambda: files.write_json(facts, {"files": rows})) as write:
        for case, which in mine:
            stop.check()
            logger.info(f"\nProcessing {case.image[0].name}, blocks {which.start} to {which.stop - 1}")
            rows.append(_guarded(job, case, lambda case=case, which=which: predict_blocks(job, case, which)))
            write()
    return _told(rows, began)


def _count_blocks(job: PredictJob, case: Case) -> int:
    """Blocks of a case; 1 for a file that cannot be read, so that somebody meets it."""
    dims = job.config.data.dims
    found = files.probe(case.image[0], dims)
    if found.problem is not None:
        return 1
    size = found.shape[1:]
    if job.predictor.trained_on:
        try:
            size = _placement(job, case, files.geometry(case.image[0], dims)).size(size)
        except files.FileError:
            return 1
    return -(-size[0] // tiling(job.config, size, job.predictor.speak).step)


def _told(rows: list[dict[str, Any]], began: float) -> Predicted:
    """The rows, and a word on how it went."""
    found = Predicted(rows=rows)
    done, seconds = len(rows) - len(found.failed), time.monotonic() - began
    logger.info(f"\nInference complete: {done} done, {len(found.failed)} failed, {seconds:.1f} s")
    for row in found.failed:
        logger.info(f"  failed: {row['file']}: {row['error']}")
    return found


def _guarded(job: PredictJob, case: Case, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    began = time.monotonic()
    row: dict[str, Any] = {"id": case.id, "file": str(case.image[0])}
    try:
        _admit_names(job, case)
        row |= {"status": "done", **work()}
    except Exception as error:
        logger.info(f"  FAILED: {type(error).__name__}: {error}")
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return row | {"seconds": round(time.monotonic() - began, 2)}


def _write_summary(job: PredictJob, rows: Sequence[dict[str, Any]], inputs: int) -> None:
    config, names = to_dict(job.config), job.predictor.trained_on.get("class_names")
    summary = {
        "models": job.predictor.models,
        "task": job.config.task,
        **({"classes": job.config.data.classes} if job.config.task == "labels" else {}),
        **({"class_names": names} if names else {}),
        "ignore_label": job.config.data.ignore_label,
        "predict": config["predict"],
        "postprocess": config["postprocess"],
        "inputs": inputs,
        "files": rows,
    }
    files.write_json(job.output / "summary.json", summary)


def predict_case(job: PredictJob, case: Case) -> dict[str, Any]:
    """Read, predict, finish and write one case; returns its facts and statistics."""
    config = job.config
    if _by_blocks(job, case):
        return predict_blocks(job, case)
    array, geometry = store.load_image(case, config.data.dims)
    size = array.shape[1:]
    logger.info(f"  Loaded volume: {size}, dtype: {array.dtype}")
    _require_finite(case, array)
    _admit_size(job, case, size, str(array.dtype))
    place, notes = _admitted(job, case, array, geometry)
    array = place.apply(array)
    source = Source(array=array, scale=_fitted(job, case, array, normalise, notes))
    tiles = tiling(config, array.shape[1:], job.predictor.speak)
    with steps("Predicting", tiles.count()) as advance:
        soft = job.predictor.soft_of(source, advance)
    prediction = Prediction(case_id=case.id, soft=place.restore(soft), geometry=geometry)
    image = place.restore(source.array[:]) if config.data.dims == 2 else None
    return {"shape": list(size), "tiles": tiles.count(), **_warned(notes), **_finish_case(job, case, source, prediction, image)}


def _require_finite(case: Case, array: np.ndarray) -> None:
    """Raise FileError for a case in memory that holds NaN or infinity, naming the file that does."""
    for number, count in store.nonfinite_files(case, array).items():
        raise files.FileError(case.image[number], store.nonfinite_problem(count), store.NONFINITE)


def _placement(job: PredictJob, case: Case, geometry: Geometry) -> Placement:
    return placement(case, geometry, job.config.data.dims, job.predictor.trained_on)


def _admitted(job: PredictJob, case: Case, array: Pixels, geometry: Geometry) -> tuple[Placement, list[str]]:
    """How the array goes to the axes of training, and what was said of it.

    Raises FileError where it cannot be predicted by these networks.
    """
    job.predictor.require_channels(case.image[0], len(array))
    place = _placement(job, case, geometry)
    if place.alignment is not None:
        logger.info(f"  Its axes {place.codes[0]} are brought to those of training, {place.codes[1]}, and its answer back")
    return place, _noted(case, [*geometry.notes, *place.notes])


def _fitted(job: PredictJob, case: Case, array: Pixels, limits: ModuleType, notes: list[str]) -> Scale:
    """The scale of an array by ``limits``, :mod:`normalise` or :mod:`streamed`; what is to be said of it is added to ``notes``.

    Raises FileError where the normalisation would cut off most of the image.
    """
    part = job.config.data.normalise
    problem = limits.problem_of(part, array)
    if problem is not None:
        raise files.FileError(case.image[0], *problem)
    scale, found = limits.fit_with_notes(part, array)
    notes += _noted(case, found)
    return scale


def _noted(case: Case, notes: Sequence[str]) -> list[str]:
    for note in notes:
        logger.warning(f"{case.image[0].name}: {note}.")
    return list(notes)


def _warned(notes: list[str]) -> dict[str, Any]:
    """For the row of a case: only where there is something."""
    return {"warnings": notes} if notes else {}


def _finish_case(job: PredictJob, case: Case, source: Source, prediction: Prediction, image: np.ndarray | None) -> dict[str, Any]:
    """Save the soft answer where that is asked for, and finish it, all in memory; ``image`` is the input as its file has it."""
    facts = _facts(job, case, source)
    if job.save_soft:
        softs.save(job.output / "soft", prediction, facts)
    return finish(job.config.postprocess, prediction, job.output, facts, image)


def _facts(job: PredictJob, case: Case, source: Source) -> dict[str, Any]:
    """What travels with a soft prediction."""
    return {
        "task": job.config.task,
        "suffix": files.suffix(case.image[0]),
        "scale": asdict(source.scale),
        "dtype": str(source.array.dtype),
        "channels": len(source.array),
        "image": [str(p.absolute()) for p in case.image],
    }


# --- by blocks ---------------------------------------------------------------------------------------------------------


def _by_blocks(job: PredictJob, case: Case) -> bool:
    """Whether a case is read and written by blocks: it is large, that is wanted, or a shard has begun with it."""
    if job.blocks != "auto":
        return job.blocks == "always"
    if blocks.folders(job.output, case.id):
        return True
    found = files.probe(case.image[0], job.config.data.dims)
    return found.problem is None and math.prod(found.shape) * len(case.image) > streamed.WHOLE


def predict_blocks(job: PredictJob, case: Case, which: range | None = None) -> dict[str, Any]:
    """Compute those of the blocks ``which`` that are not there yet; ``None``: all, then finish the case, write it and take the blocks away."""
    config = job.config
    with blocks.image(case, config.data.dims) as (given, geometry):
        shape = tuple(given.shape[1:])
        logger.info(f"  Volume: {shape}, dtype: {given.dtype}, by blocks")
        _admit_size(job, case, shape, str(given.dtype))
        place, notes = _admitted(job, case, given, geometry)
        if _streams(job, given):
            _require_rows(case, place)
            if which is None and config.task == "labels":
                postprocess.check_memory(config.postprocess, 1 if config.data.classes == 2 else config.data.classes, shape)
        array = place.apply(given)
        size = tuple(array.shape[1:])
        tiles = tiling(config, size, job.predictor.speak)
        name = f"{case.id}.{blocks.key(_digests(job.predictor.models), config, case)}"
        parts = blocks.Blocks(folder=job.output / blocks.FOLDER / name, size=size, step=tiles.step)
        wanted = range(parts.count()) if which is None else which
        _admit_blocks(job, parts, wanted)
        source = Source(array=array, scale=_fitted(job, case, array, streamed, notes))
        _compute(job, source, tiles, parts, wanted)
        row = {"shape": list(shape), "tiles": tiles.count(), "blocks": len(wanted), **_warned(notes)}
        if which is not None:
            return row
        answer = _finish_blocks(job, case, source, (parts.soft(), geometry, place, parts.folder))
    blocks.remove(job.output, case.id)
    return row | answer


def _admit_blocks(job: PredictJob, parts: Blocks, which: range) -> None:
    """Raise DiskError, before any work, where the blocks that are still to be computed certainly do not fit on the disk."""
    rows = sum(end - first for first, end in parts.missing(which))
    planes = 1 if job.config.task == "labels" and job.config.data.classes == 2 else job.config.data.classes
    planes = planes if job.config.task == "labels" else max(1, job.predictor.channels)
    need = 4 * planes * rows * math.prod(parts.size[1:])
    files.require_room(job.output, need, "Blocks lie there until the answer is written. Free space, or choose another --output.")


def _require_rows(case: Case, place: Placement) -> None:
    """Raise FileError where an answer in the file's axes cannot be written slab by slab."""
    if not place.first_axis_stays:
        problem = f"has axes {place.codes[0]}, the model was trained on {place.codes[1]}: its first axis is another one"
        cure = f"By blocks, the first axis has to stay. Save the file with axes {place.codes[1]}, or predict it in memory (--blocks never)"
        raise files.FileError(case.image[0], problem, cure)


def _compute(job: PredictJob, source: Source, tiles: Tiling, parts: Blocks, which: range) -> None:
    """Compute and write those of the blocks ``which`` that are not there."""
    runs = parts.missing(which)
    if not runs:
        return
    job.predictor.warn_of_tiles(source, tiles)
    speak = settled(job.predictor.speak, source, tiles)
    needed = sum(any(tiles.speaks(place, *run) for run in runs) for place in tiles.places())
    with steps("Predicting", needed) as advance:
        blocks.compute(source, speak, tiles, parts, runs, job.config.predict.batch, job.predictor.device, advance)


def _streams(job: PredictJob, array: Pixels) -> bool:
    """Whether the answer, too, is written by blocks."""
    return job.blocks == "always" or math.prod(array.shape) > streamed.WHOLE


def _finish_blocks(job: PredictJob, case: Case, source: Source, found: tuple[Rows, Geometry, Placement, Path]) -> dict[str, Any]:
    """Decide and write a case whose blocks are all there: in memory where it is small, as it would be without blocks.

    ``found`` are its soft answer on the axes of training, where the file lies, how it came to those axes, and a folder for scratch files.
    """
    array, geometry, place, work = found
    if not _streams(job, source.array):
        prediction = Prediction(case_id=case.id, soft=place.restore(array[:]), geometry=geometry)
        image = place.restore(source.array[:]) if job.config.data.dims == 2 else None
        return _finish_case(job, case, source, prediction, image)
    soft = blocks.Soft(case_id=case.id, array=place.restore_rows(array), geometry=geometry, facts=_facts(job, case, source), work=work)
    if job.save_soft:
        blocks.save_soft(job.output / "soft", soft)
    if job.config.task == "labels":
        path, statistics = blocks.write_labels(job.config.postprocess, soft, job.output)
        logger.info("  " + ", ".join(f"{k}: {v}" for k, v in statistics.items()))
    else:
        path, statistics = blocks.write_image(soft, job.output, source.scale)
    logger.info(f"  Saved {path}")
    return {"output": path.name, **statistics}


def _digests(models: Sequence[str]) -> dict[str, str]:
    return {path: files.sha256(Path(path)) for path in models}
