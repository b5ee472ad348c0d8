"""Ensembles whose members may be runs: these predict the images first, then all members are fused.

Data flow: workflows.predict (members that are runs) -> workflows.fuse.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import documents, files
from pipeline.config import ConfigError, Predict, plain, structure, to_dict
from pipeline.inference import blocks, outputs
from pipeline.inference import soft as softs
from pipeline.inference.models import find_models
from pipeline.inference.options import ModelOptions
from pipeline.inference.predictor import prepare
from pipeline.records import Member, UserError
from pipeline.workflows import predict
from pipeline.workflows.fuse import EnsembleJob, Fused, Spec, fuse, load_spec, of_folders

logger = logging.getLogger(__name__)

MADE_FROM = "made_from.json"
"""File in a folder of a member's predictions: the models and images that they were made from."""


def ensemble(
    spec: Spec,
    output: Path,
    *,
    inputs: Sequence[Path] = (),
    device: str = "auto",
    fusion: str | None = None,
    save_soft: bool = False,
) -> Fused:
    """Fuse the members of an ensemble case by case, and decide.

    Args:
        spec: members with weights, fusion and post-processing (:func:`load_spec`,
            :func:`of_folders`).
        output: folder for the outputs; no file of others in it is replaced.
        inputs: image files and folders that members which are runs predict first, into
            ``output/members``.
        device: for ``inputs``: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        fusion: ``mean`` of probabilities, ``logit``: mean of logits, ``vote``; None: the spec's.
        save_soft: also write the fused probabilities to ``output/soft``.

    Returns:
        Which cases are done, and which failed.

    Raises:
        UserError: for members that do not fit each other, or a folder that cannot be used, before
            anything is fused.
    """
    spec = dataclasses.replace(spec, fusion=fusion or spec.fusion)
    return fuse(
        EnsembleJob(spec=spec, output=output, inputs=inputs, device=device, save_soft=save_soft),
        predict_member,
    )


def fuse_predictions(
    members: Sequence[Path | str] | Path | str | Spec,
    output: Path | str,
    *,
    inputs: Sequence[Path | str] | Path | str = (),
    device: str = "auto",
    fusion: str | None = None,
    save_soft: bool = False,
) -> Fused:
    """Fuse folders of predictions, or the members of an ``ensembles/*.yaml``.

    Args:
        members: folders written with ``save_soft``, an ensemble file, or what
            :func:`load_spec` read.
        output: folder for the outputs; no file of others in it is replaced.
        inputs: images and folders of images that members which are runs predict first.
        device: for ``inputs``: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        fusion: ``mean`` of probabilities, ``logit``: mean of logits, ``vote``; None: the file's,
            else mean.
        save_soft: also write the fused probabilities to ``output/soft``.

    Returns:
        Which cases are done, and which failed.

    Raises:
        UserError: for members that do not fit each other, before anything is fused.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folders = [Path(name) / member for member in "abc"]
        ...     for folder, label in zip(folders, (0, 1, 1), strict=True):
        ...         folder.mkdir()
        ...         np.save(folder / "case.npy", np.full((4, 4), label, np.uint8))
        ...     fused = fuse_predictions(folders, Path(name) / "fused", fusion="vote")
        ...     int(np.load(fused.output / "case.npy").min())
        1
    """
    if isinstance(members, str | Path):
        members = load_spec(Path(members))
    spec = members if isinstance(members, Spec) else of_folders([Path(m) for m in members])
    images = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(p) for p in inputs]
    return ensemble(
        spec, Path(output), inputs=images, device=device, fusion=fusion, save_soft=save_soft
    )


def predict_member(member: Member, data: Sequence[Path], folder: Path, device: str) -> list[str]:
    """Predict images with a run's folds.

    What the same models have predicted from the same files already is kept.

    Args:
        member: the run, and which folds of it.
        data: image files and folders.
        folder: where the predictions go.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.

    Returns:
        Ids of the images that could not be predicted.

    Raises:
        UserError: where no image could be predicted.
    """
    paths = find_models(member.run, names=member.fold_names or None)
    predictor = prepare(ModelOptions(checkpoint=member.run, device=device), paths)
    job = predict.PredictJob(predictor=predictor, output=folder, save_soft=True)
    inputs = predict.find_inputs(data, predictor)
    # A folder with that file is ours, even if it was killed before its first output.
    if not (folder / MADE_FROM).is_file():
        predict.require_free(job, inputs)
    record = {
        "models": {str(p): files.sha256(p) for p in paths},
        "predict": to_dict(predictor.config)["predict"],
        "inputs": {c.id: [_stamp(p) for p in c.image] for c in inputs},
    }
    with outputs.owned(folder):
        done = _still_good(folder, record)
        logger.info(f"{member.run}: {len(done)} of {len(inputs)} images are predicted already")
        todo = [c for c in inputs if c.id not in done]
        if todo:
            predict.predict_all(job, todo)
        present = set(softs.ids(folder / "soft"))
    if not present:
        raise UserError(
            f"{folder}: no image could be predicted, see above. Mend or remove them, then run"
            " again."
        )
    return [c.id for c in inputs if c.id not in present]


def _stamp(path: Path) -> list[Any]:
    """What changes when an image file does; of a folder everything in it counts."""
    return (
        blocks.stamp(path)
        if path.is_dir()
        else [path.name, path.stat().st_size, path.stat().st_mtime_ns]
    )


def _still_good(folder: Path, record: Mapping[str, Any]) -> set[str]:
    """Ids in ``folder`` that were predicted from the same models and files.

    All other predictions are removed, and ``record`` is written.
    """
    path = folder / MADE_FROM
    before = _made_from(path) if path.is_file() and (folder / "summary.json").is_file() else {}
    same = before.get("models") == record["models"] and _settings(before, path) == record["predict"]
    present = softs.ids(folder / "soft")
    good = {i for i in present if same and before["inputs"].get(i, ()) == record["inputs"].get(i)}
    for case_id in set(present) - good:
        softs.remove(folder / "soft", case_id)
    files.write_json(path, record)
    return good


def _settings(before: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """How a folder was predicted, newer keys at their defaults; None for settings unknown here."""
    try:
        return plain(structure(before.get("predict", {}), Predict, str(path)))
    except ConfigError:
        return None


def _made_from(path: Path) -> dict[str, Any]:
    """What the predictions in a folder were made from; nothing where the file cannot be read.

    Then everything is predicted again.
    """
    try:
        return files.read_document(path, documents.MadeFrom, "All is predicted again")
    except files.FileError as error:
        logger.warning(str(error))
        return {}
