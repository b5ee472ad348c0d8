"""What predicting is given, and what is refused before it starts: names, places, room."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.config import Config
from pipeline.data import cases as case_finder
from pipeline.inference import outputs
from pipeline.inference.predictor import Predictor
from pipeline.records import DONE, FAILED, PARTIAL, Case, UserError
from pipeline.tasks import TASKS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictJob:
    """A predictor, and where and how its predictions are written.

    Args:
        predictor: the networks.
        output: folder to write to.
        save_soft: also write probabilities to ``soft/``.
        blocks: when inputs are read and written by blocks: ``auto``, ``always``, ``never``.
    """

    predictor: Predictor
    output: Path
    save_soft: bool = False
    blocks: str = "auto"

    @property
    def config(self) -> Config:
        """Config of the networks."""
        return self.predictor.config


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What became of each file.

    Args:
        rows: as in ``summary.json``: ``id``, ``file``, ``status`` (``done`` or ``failed``),
            ``seconds``; where done ``output`` (its name), ``shape`` and statistics, where
            failed ``error``.
    """

    rows: Sequence[dict[str, Any]]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Rows of the files that failed."""
        return [r for r in self.rows if r["status"] == "failed"]

    @property
    def code(self) -> int:
        """Exit code; a full or broken disk counts as if every file had failed."""
        disk = any(row["error"].startswith("DiskError:") for row in self.failed)
        if not self.failed:
            return DONE
        return FAILED if disk or len(self.failed) == len(self.rows) else PARTIAL


def find_inputs(paths: Sequence[Path], predictor: Predictor) -> list[Case]:
    """Find the cases of all files and folders, in the order given.

    Args:
        paths: image files and folders of images.
        predictor: says which channels and layout the images have.

    Returns:
        One case per image.

    Raises:
        UserError: where one prediction would be written over another.
    """
    config, found = predictor.config, dict[str, Case]()
    for path in paths:
        for case in case_finder.inputs(
            path, config.data, predictor.channels, predictor.trained_on.get("layout")
        ):
            if case.id in found and found[case.id].image == case.image:
                continue  # a file, and its folder
            if case.id in found:
                raise UserError(
                    f"{case.image[0]} and {found[case.id].image[0]} are both called {case.id}, and"
                    " so would be their answers. Predict them in two runs, or rename one."
                )
            found[case.id] = case
    for case_id in found:
        for ending in TASKS[config.rules].companions:
            if case_id + ending in found:
                raise UserError(
                    f"{found[case_id + ending].image[0]} is called like a picture that is written"
                    f" beside the answer for {case_id}. Leave it out, or rename it."
                )
    _log_other_formats(config.task, found.values())
    return list(found.values())


def _log_other_formats(task: str, inputs: Iterable[Case]) -> None:
    """Log once which volumes get their answers in another format, as theirs is only read."""
    for given in sorted({files.format_suffix(case.image[0]) for case in inputs} & OTHER):
        name = "DICOM" if given == ".dcm" else given
        logger.info(
            f"{name} is only read: answers are written as {TASKS[task].suffix(given)}, at the same"
            " place in the world"
        )


OTHER = frozenset({".dcm", ".mhd", ".nhdr"})
"""Formats of volumes that are only read."""


def require_free(job: PredictJob, inputs: Sequence[Case]) -> None:
    """Check that no prediction would replace an input or a file of others in the output folder.

    Args:
        job: the output folder, and what is written there.
        inputs: the cases.

    Raises:
        UserError: where one would.
    """
    outputs.require_folder(job.output)
    read = (files.split_selection(path)[0] for case in inputs for path in case.image)
    outputs.require_apart(read, job.output)
    outputs.require_own(job.output, (name for case in inputs for name in _names(job, case)))


def _names(job: PredictJob, case: Case) -> list[str]:
    """Files that the prediction of a case may be written to."""
    return outputs.names(
        case.id, job.config.rules, files.format_suffix(case.image[0]), job.save_soft
    )


LOOKED_AT = 1000
"""Number of inputs whose headers are read before work, to tell whether the predictions fit.

Of more inputs, the others need room on top.
"""


FREE_SPACE = "Free space there, choose another --output, or leave --save-soft out"


def require_room(job: PredictJob, inputs: Sequence[Case]) -> None:
    """Warn where the disk has fewer bytes free than the predictions of all inputs take.

    Args:
        job: the output folder, and what is written there.
        inputs: the cases.

    Raises:
        DiskError: where they certainly cannot fit.
    """
    dims, need = job.config.data.dims, 0
    for case in inputs[:LOOKED_AT]:
        found = files.probe(case.image[0], dims)
        if found.problem is None:
            names = (job.output / name for name in _names(job, case))
            need += max(
                0, _need(job, case, found.shape[1:], found.dtype) - sum(_size(p) for p in names)
            )
    text = files.require_room(job.output, need, f"{FREE_SPACE}.")
    if text is not None:
        logger.warning(text)


def _size(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return os.lstat(path).st_size
    except (OSError, ValueError):
        return 0


def _need(job: PredictJob, case: Case, size: Sequence[int], dtype: str) -> int:
    """Lower bound of the bytes that the prediction of a case of ``size`` voxels takes.

    These are probabilities, and files that are not compressed.
    """
    task, planes, voxels = TASKS[job.config.rules], channels_of(job), math.prod(size)
    # On another grid their number is not known before the image is read.
    saved = job.save_soft and not job.config.data.has_space
    soft = planes * voxels * np.dtype(task.soft_type).itemsize if saved else 0
    plain = files.suffix(case.image[0]) in (".npy", ".nii")
    return soft + (voxels * task.bytes_per_voxel(planes, dtype) if plain else 0)


def require_names_fit(job: PredictJob, case: Case) -> None:
    """Refuse, before any work, a case of whose id the disk cannot make a file name.

    Args:
        job: the predictor and where its predictions go.
        case: the case.

    Raises:
        FileError: a name would be too long.
    """
    problem = outputs.too_long(job.output, _names(job, case))
    if problem is not None:
        raise files.FileError(
            case.image[0], problem, "Rename the input, or choose another --output"
        )


def require_room_for(job: PredictJob, case: Case, size: Sequence[int], dtype: str) -> None:
    """Refuse, before any work, a case whose prediction certainly does not fit on the disk.

    Args:
        job: the predictor and where its predictions go.
        case: the case.
        size: voxels along each axis.
        dtype: number type of the image.

    Raises:
        DiskError: the disk has fewer bytes free.
    """
    files.require_room(job.output, _need(job, case, size, dtype), f"{FREE_SPACE}.")


def channels_of(job: PredictJob) -> int:
    """Number of channels K of the main head.

    Args:
        job: the predictor and where its predictions go.

    Returns:
        K, at least 1.
    """
    return TASKS[job.config.rules].channels(job.config, max(1, job.predictor.channels))
