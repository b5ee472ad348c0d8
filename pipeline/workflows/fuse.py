"""Fuse the soft predictions of several folds or runs, case by case, and decide.

Data flow: inference.members (inspected, aligned onto one grid) -> inference.fusion ->
inference.writing. Members that are runs are predicted first by :mod:`pipeline.workflows.ensemble`,
which needs the networks; fusing existing predictions does not.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, plugins, postprocess
from pipeline.config import read_yaml, structure
from pipeline.data import listing
from pipeline.data.normalise import WHOLE
from pipeline.data.reading import load_image
from pipeline.files import FileError, LazyArray, Rows
from pipeline.grid import Alignment
from pipeline.inference import outputs
from pipeline.inference import soft as softs
from pipeline.inference.fusion import FUSIONS, require_weights
from pipeline.inference.fusion import fuse as fused_arrays
from pipeline.inference.members import Reader, common_ids, looked_at, open_member
from pipeline.inference.outputs import read_summary
from pipeline.inference.soft import SoftPrediction
from pipeline.inference.writing import Target, log_written, suffix_of, write_answer
from pipeline.invocation import called
from pipeline.metrics.names import from_json
from pipeline.progress import progress
from pipeline.records import Case, Member, NamedOptions, UserError
from pipeline.runs import RunFolder
from pipeline.stopping import stop
from pipeline.tasks import TASKS

logger = logging.getLogger(__name__)

PredictMember = Callable[[Member, Sequence[Path], Path, str], list[str]]
"""(run, inputs, folder, device) -> ids of the images that could not be predicted."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What an ``ensembles/*.yaml`` may hold."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic
    members: tuple[Member, ...]
    """The members of the ensemble and their weights.

    Each names a folder of predictions (``run``), or with ``folds: [0, 1]`` its ``fold_0``,
    ``fold_1``, and its weight. ``run`` may also be a run folder (or a fold of one); then
    ``--input`` says which images it shall predict. It counts as one member: the mean of its folds'
    probabilities, as in ``pipeline.predict``. ``folds: all`` is ``fold_all``, the one model of
    all cases.
    """
    fusion: str = "mean"
    """How predictions are combined.

    ``mean``: mean of probabilities; ``logit``: mean of logits; ``vote``: weighted majority of the
    members' own decisions.
    """
    postprocess: tuple[NamedOptions, ...] | None = None
    """Steps from fused prediction to output; None: those of the first member's summary.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """What an ensemble leaves.

    Args:
        output: its folder.
        done: ids of the cases that are done.
        failed: reasons by id of the cases that failed.
    """

    output: Path
    done: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


def of_folders(folders: Sequence[Path]) -> Spec:
    """An ensemble of folders of predictions with equal weights.

    Args:
        folders: one per member.

    Returns:
        The ensemble, fused by ``mean``.
    """
    return Spec(members=tuple(Member(run=folder) for folder in folders))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleJob:
    """Where the outputs of an ensemble go, and what its members that are runs predict first.

    Args:
        spec: members, fusion and post-processing.
        output: folder to write to.
        inputs: image files and folders that members which are runs predict.
        device: for ``inputs``: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        save_soft: also write the fused probabilities to ``output/soft``.
    """

    spec: Spec
    output: Path
    inputs: Sequence[Path] = ()
    device: str = "auto"
    save_soft: bool = False


def fuse(job: EnsembleJob, predict: PredictMember | None = None) -> Fused:
    """Fuse members case by case, and decide.

    Args:
        job: the members, and where the outputs go.
        predict: what predicts members that are runs; needed where ``job.inputs`` names images.

    Returns:
        Which cases are done, and which failed.

    Raises:
        UserError: for members that do not fit each other, or a folder that cannot be used, before
            anything is fused.
    """
    if job.spec.fusion not in FUSIONS:
        raise UserError(f"fusion {job.spec.fusion!r} is unknown; known: {', '.join(FUSIONS)}.")
    if job.spec.postprocess is not None:
        postprocess.check(job.spec.postprocess)
    check_weights(job.spec.members)
    _require_apart(job)
    with outputs.owned(job.output):
        return _fuse_all(job, predict)


def _require_apart(job: EnsembleJob) -> None:
    """Raise UserError where an output could replace an image or a prediction that is read."""
    members, data = job.spec.members, job.inputs
    outputs.require_folder(job.output)
    images = [p for d in data for p in listing.images(d, itself=True)]
    outputs.require_apart(images, job.output)
    run_folders = _own_folders(members, job.output) if data else {}
    given = [
        f
        for n, m in enumerate(members)
        if n not in run_folders
        for f in _folders_of(m)
        if os.path.isdir(f)
    ]
    read = [p for f in given for p in (*(f / "soft").glob("*.npy"), *listing.images(f))]
    written = (str(f.relative_to(job.output)) for f in run_folders.values())
    outputs.require_apart(read, job.output, ("soft", "masks", *written))


def _fuse_all(job: EnsembleJob, predict: PredictMember | None) -> Fused:
    """Predict what is missing, inspect everything that is to be fused, then fuse case by case."""
    spec = job.spec
    predicted_now = set(_own_folders(spec.members, job.output).values()) if job.inputs else set()
    members, failed = predicted(job, predict)
    folders = member_folders(members)
    before = read_summary(folders[0][0])
    plugins.require(before.get("plugins", ()) if spec.postprocess is None else (), folders[0][0])
    steps = (
        spec.postprocess
        if spec.postprocess is not None
        else tuple(NamedOptions(**p) for p in before.get("postprocess", ()))
    )
    steps = _with_regions(steps, before)
    if TASKS[before.get("task", "labels")].decides:
        postprocess.check(steps)
    elif FUSIONS[spec.fusion].probabilities:
        raise UserError(
            f"fusion {spec.fusion!r} is of probabilities, and {folders[0][0]} holds intensities of"
            " images. Use mean."
        )
    _require_same_regions([f for f, _ in folders], before)
    readers = [open_member(folder, spec.fusion) for folder, _ in folders]
    for reader, (folder, _) in zip(readers, folders, strict=True):
        if folder not in predicted_now:
            outputs.require_finished(folder, reader.ids)
    ids = common_ids(readers, [f for f, _ in folders], failed)
    weights = [w for _, w in folders]
    logger.info(f"{len(ids)} cases, {len(readers)} members, fusion {spec.fusion}")
    alignments, unfit = looked_at(ids, readers)
    unfit |= (unmeasured := _without_unit(list(alignments), readers[0], steps))
    alignments = {i: found for i, found in alignments.items() if i not in unmeasured}
    _require_free(list(alignments), readers[0], job)
    failed = failed | unfit
    summary = {
        "task": before.get("task", "labels"),
        "members": [{"folder": str(f), "weight": w} for f, w in folders],
        "fusion": spec.fusion,
        "postprocess": [dataclasses.asdict(s) for s in steps],
        **{k: before[k] for k in KEPT if k in before},
        **(
            {"plugins": [p.record for p in used]} if (used := plugins.used_by(tuple(steps))) else {}
        ),
        "inputs": len(alignments) + len(failed),
    }
    rows: list[dict[str, Any]] = [
        {"id": i, "status": "failed", "error": error} for i, error in failed.items()
    ]
    with outputs.ThrottledWriter(
        lambda: files.write_json(job.output / "summary.json", {**summary, "files": rows})
    ) as write:
        write()
        for case_id in progress(list(alignments), "cases"):
            stop.raise_if_stopped()
            rows.append(
                _fuse_case(
                    case_id,
                    (readers, weights, spec.fusion, alignments[case_id]),
                    steps,
                    job,
                    from_json(before.get("class_names")),
                )
            )
            write()
    if failed:
        logger.info(f"\n{len(alignments)} cases done, {len(failed)} failed:")
        logger.info("\n".join(f"  {case_id}: {error}" for case_id, error in failed.items()))
    log_written(job.output, rows)
    return Fused(output=job.output, done=tuple(alignments), failed=failed)


KEPT = ("ignore_label", "classes", "class_names", "regions", "regions_class_order")
"""What the summary of an ensemble says as that of its first member does."""


def _require_same_regions(folders: Sequence[Path], before: Mapping[str, Any]) -> None:
    """Raise UserError where channels of members, by their summaries, stand for other regions."""
    first = list((before.get("regions") or {}).items())
    for folder in folders[1:]:
        other = read_summary(folder).get("regions")
        if other is not None and list(other.items()) != first:
            raise UserError(
                f"{folder} predicts the regions {other}, {folders[0]} {before.get('regions')}. Fuse"
                " networks that were trained alike."
            )


def _with_regions(
    steps: tuple[NamedOptions, ...], before: Mapping[str, Any]
) -> tuple[NamedOptions, ...]:
    """The steps, where none decides regions begun with the step that writes their labels."""
    if before.get("task") != "regions" or (steps and postprocess.decides(steps[0])):
        return steps
    own = [NamedOptions(**p) for p in before.get("postprocess", ())][:1]
    if own and own[0].name == "regions":
        return (*own, *steps)
    order = list(before.get("regions_class_order") or ())
    return (NamedOptions(name="regions", options={"order": order}), *steps)


def _without_unit(
    ids: Sequence[str], first: Reader, steps: Sequence[NamedOptions]
) -> dict[str, str]:
    """Why cases cannot be post-processed by sizes in mm³, by case.

    Raises UserError where none can.
    """
    found: dict[str, str] = {}
    for case_id in ids if postprocess.in_mm3(steps) else ():
        problem = postprocess.problem_of(steps, first.inspect(case_id).spacing)
        if problem is not None:
            found[case_id] = str(FileError(first.path(case_id), *problem))
    if found and len(found) == len(ids):
        raise UserError(next(iter(found.values())))
    return found


def _require_free(ids: Sequence[str], first: Reader, job: EnsembleJob) -> None:
    """Raise UserError where an output would replace its own input image, or a file of others."""
    inspected = {i: first.inspect(i) for i in ids}
    outputs.require_apart(
        (Path(p) for soft in inspected.values() for p in soft.meta.image), job.output
    )
    names = [
        n
        for i, soft in inspected.items()
        for n in outputs.names(i, soft.meta.task, suffix_of(soft), job.save_soft)
    ]
    outputs.require_own(job.output, names)
    if problem := outputs.too_long(job.output, names):
        raise UserError(
            f"--output {job.output}: {problem.removeprefix('its ')}. Rename that image and predict"
            " it again."
        )


def load_spec(path: Path) -> Spec:
    """Read an ensemble file.

    Args:
        path: an ``ensembles/*.yaml``.

    Returns:
        The ensemble.

    Raises:
        UserError: where there is no such file.
        ConfigError: with every structural fault.
    """
    if not os.path.isfile(path):
        raise UserError(f"--spec {path}: no such file. Ensembles live in ensembles/*.yaml.")
    return structure(read_yaml(path), Spec, str(path))


def member_folders(members: Sequence[Member]) -> list[tuple[Path, float]]:
    """Folders of predictions and their weights; the folds of a member share its weight equally.

    Args:
        members: with their weights.

    Returns:
        Pairs of folder and weight.

    Raises:
        UserError: for folders that are not there, and weights that make no mean.
    """
    check_weights(members)
    pairs = [
        (folder, m.weight / max(1, len(m.fold_names))) for m in members for folder in _folders_of(m)
    ]
    absent = [str(f) for f, _ in pairs if not os.path.isdir(f)]
    if absent:
        raise UserError(
            f"no such folder of predictions: {', '.join(absent)}. Write them with pipeline.predict"
            " --save-soft."
        )
    return pairs


def _folders_of(member: Member) -> list[Path]:
    return [member.run / f"fold_{n}" for n in member.fold_names] or [member.run]


def check_weights(members: Sequence[Member]) -> None:
    """Check that there are members and that their weights make a mean.

    Args:
        members: with their weights.

    Raises:
        UserError: where there is none, or the weights make no mean.
    """
    if not members:
        raise UserError(
            "the ensemble names no members. Give at least one folder of predictions or run."
        )
    require_weights([m.weight for m in members])


# --- members that are runs ------------------------------------------------------------------------


def predicted(
    job: EnsembleJob, predict: PredictMember | None
) -> tuple[tuple[Member, ...], dict[str, str]]:
    """Replace members that are runs by folders of their predictions of ``--input``.

    The predictions are made now unless they are there already.

    Args:
        job: the members, and the images to predict.
        predict: what predicts a member that is a run.

    Returns:
        The members, and the ids of images that could not be predicted, with the file that says why.

    Raises:
        UserError: for a run without ``--input``.
    """
    members, data = job.spec.members, job.inputs
    runs = [m for m in members if is_run(m)]
    if runs and not data:
        raise UserError(
            f"{runs[0].run} is a run, which has predicted its own held-out cases only."
            f" {_suggestion(runs[0])}"
        )
    run_folders, out = _own_folders(members, job.output), list(members)
    failed: dict[str, str] = {}
    for n, folder in run_folders.items():
        assert predict is not None, (
            "fuse(job, predict) is given what predicts runs where there are inputs"
        )
        failed_ids = predict(members[n], data, folder, job.device)
        failed |= {
            i: f"could not be predicted by {members[n].run}, see {folder / 'summary.json'}"
            for i in failed_ids
            if i not in failed
        }
        out[n] = Member(run=folder, weight=members[n].weight)
    return tuple(out), failed


def _own_folders(members: Sequence[Member], output: Path) -> dict[int, Path]:
    """Where the predictions of members that are runs go, by the member's index."""
    found, names = {}, collections.Counter()
    for n, member in enumerate(members):
        if is_run(member):
            name = Path(os.path.realpath(member.run)).name
            names[name] += 1
            found[n] = output / "members" / (name if names[name] == 1 else f"{name}-{names[name]}")
    return found


def is_run(member: Member) -> bool:
    """Whether a member is a run, or a fold of one.

    It is where it holds models, and no predictions lie where they would be read from.

    Args:
        member: a member of an ensemble.

    Returns:
        False for a folder of predictions.
    """
    folders = _folders_of(member)
    return RunFolder(member.run).holds_models and not any(
        os.path.isdir(f / "soft") for f in folders
    )


def _suggestion(member: Member) -> str:
    """What to do about a member that is a run, with the commands."""
    where = _folders_of(member)
    commands = [
        f"{called('predict')} --checkpoint {w} --input DIR --output PREDICTIONS/{w.name}"
        " --save-soft"
        for w in where
    ]
    return (
        "Add --input DIR to predict those images first, or do it yourself and name PREDICTIONS as"
        " the member:\n  " + "\n  ".join(commands)
    )


# --- one case -------------------------------------------------------------------------------------


def _fuse_case(
    case_id: str,
    members: tuple[Sequence[Reader], Sequence[float], str, Sequence[Alignment]],
    steps: Sequence[NamedOptions],
    job: EnsembleJob,
    names: Mapping[int, str],
) -> dict[str, Any]:
    """Fuse, decide and write one case; return its row of summary.json."""
    readers, weights, fusion, alignments = members
    logger.info(f"\nProcessing {case_id}")
    loaded = [reader.load(case_id) for reader in readers]
    with files.scratch(job.output) as work:
        loaded = _on_one_grid(loaded, alignments, work)
        first = loaded[0]
        # The overlay of a picture, and the missing channel axis of .npy, need the array in memory.
        streams = (
            math.prod(first.main.shape) > WHOLE
            and len(first.main.shape) == 4
            and suffix_of(first) != ".npy"
        )
        heads: dict[str, LazyArray] = {}
        for name in first.heads:
            arrays = [soft.heads[name] for soft in loaded]  # of memory-mapped files
            independent = first.meta.task == "regions"
            fused = fused_arrays(arrays, weights, fusion, case_id, independent)
            heads[name] = fused if streams else fused[:]
        soft = dataclasses.replace(first, heads=heads)
        if job.save_soft:
            softs.save(job.output / "soft", soft)
        size = tuple(soft.on_file_grid().main.shape[1:])
        row = write_answer(
            soft,
            Target(
                output=job.output,
                steps=steps,
                image=_image(soft.meta, size),
                work=work,
                names=names,
            ),
        )
    return {"id": case_id, "status": "done", "shape": list(size), **row}


def _on_one_grid(
    loaded: Sequence[SoftPrediction], alignments: Sequence[Alignment], work: Path
) -> list[SoftPrediction]:
    """The members on one grid: their model space where all share it, else that of their input."""
    if all(soft.space == loaded[0].space for soft in loaded) and all(
        a.identity for a in alignments
    ):
        return list(loaded)
    out = []
    for number, (alignment, soft) in enumerate(zip(alignments, loaded, strict=True)):
        given = soft.on_file_grid()
        heads = {
            name: _aligned(head, alignment, work / f"member_{number}_{name}.npy")
            for name, head in given.heads.items()
        }
        out.append(dataclasses.replace(given, heads=heads))
    return out


def _aligned(head: LazyArray, alignment: Alignment, scratch: Path) -> LazyArray:
    """A head with other axes: a view of its file, or of a scratch file where it has none."""
    if alignment.identity:
        return head
    if isinstance(head, Rows):
        files.stored(head, scratch)
        head = np.load(scratch, mmap_mode="r", allow_pickle=False)
    return alignment.apply(np.asarray(head))


def _image(meta: softs.SoftMeta, size: tuple[int, ...]) -> np.ndarray | None:
    """The 2D input that an overlay is drawn on, read again.

    None where its files are not named, gone or of another size.
    """
    paths = tuple(Path(p) for p in meta.image)
    if len(size) != 2 or not meta.rules.companions or not paths:
        return None
    try:
        image, _ = load_image(Case(id="", image=paths), 2)
    except FileError:
        return None
    return image if image.shape[1:] == size else None
