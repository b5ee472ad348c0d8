"""Score a folder of predictions against a folder of labels or target images.

Data flow: files beside them (summary.json, splits.json, dataset.json) -> pairs of files
-> scoring.folder.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import documents, files
from pipeline.config import Change, override, structure, to_dict
from pipeline.data.cases import class_names, ignore_label
from pipeline.data.layouts import listed_id
from pipeline.inference import outputs
from pipeline.inference import soft as softs
from pipeline.inference.outputs import answer_files, read_summary
from pipeline.metrics import METRICS, bound, names_of, needing, of_images, units
from pipeline.metrics.names import from_json
from pipeline.progress import progress_callback
from pipeline.records import DONE, FAILED, PARTIAL, NamedOptions, UserError
from pipeline.runs import RunFolder, fold_of
from pipeline.scoring import worlds
from pipeline.scoring.arrays import parts_of
from pipeline.scoring.core import Rules
from pipeline.scoring.folder import folder
from pipeline.scoring.pairs import Pair, Reading
from pipeline.tasks import TASKS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be scored, and with which metrics.

    Args:
        predictions: folder of predicted label maps or images.
        labels: folder of labels, or of target images, with the same ids.
        metrics: all of labels or all of images.
        inputs: for images: folder of the inputs, for the row "do nothing" and the gain over it.
        change: how the mask of what was to change is made from input and target.
        masks: folder of predicted masks, for ``retouch``; None: ``predictions/masks`` where
            it exists.
        split: split.json: only the ids under its ``test`` are scored.
        soft: folder of probabilities; None: ``predictions/soft`` where it exists.
        fov: folder of field-of-view masks.
        padded: with ``fov``: also over the image with background up to this size, in voxels.
        binarise: values above it are foreground.
        partial: score only the labels that have a prediction.
        workers: cases scored at a time; None: one per core, fewer where memory is short.
        out: JSON file for all numbers.
        ignore_label: label value that is not counted, ``none``, or ``auto``: as the files beside
            predictions and labels say.
    """

    predictions: Path
    labels: Path
    metrics: Sequence[NamedOptions]
    inputs: Path | None = None
    change: Change | Sequence[str] | None = None
    masks: Path | None = None
    split: Path | None = None
    soft: Path | None = None
    fov: Path | None = None
    padded: Sequence[int] | None = None
    binarise: float | None = None
    partial: bool = False
    workers: int | None = None
    out: Path | None = None
    ignore_label: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the files beside predictions and labels say about them.

    Args:
        summary: summary.json of the predictions, or of the run whose fold they are of.
        names: names of classes.
        ignore: label value that is not counted; None: none.
        held_out: ids of the cases that a fold's ``oof`` holds, None for other folders.
    """

    summary: Mapping[str, Any]
    names: Mapping[int, str]
    ignore: int | None
    held_out: frozenset[str] | None


def score_folder(
    predictions: Path | str,
    labels: Path | str,
    metrics: Sequence[str | NamedOptions] | str,
    *,
    ignore_label: int | str | None = "auto",
    workers: int | None = 1,
    **options: Any,
) -> dict[str, Any]:
    """Score a folder of predictions.

    Args:
        predictions: folder of label maps or images, ``ID.tif`` and the like.
        labels: folder of labels, or of target images, with the same ids.
        metrics: names, also with options as on the command line (``surface_dice:tolerance=2``).
        ignore_label: label value that is not counted; None: none; ``"auto"``: as the files beside
            predictions and labels say.
        workers: cases scored at a time. More than 1 starts processes, which a script has to allow
            for with ``if __name__ == "__main__":``; None: one per core.
        **options: ``inputs``, ``masks``, ``split``, ``soft``, ``fov``, ``out`` (paths), ``change``,
            ``padded``, ``binarise``, ``partial``, as the options of ``pipeline.evaluate``.

    Returns:
        ``cases`` (numbers by id), ``mean``, ``pooled``, ``failed`` (reasons by id) and what else
        the file of ``out`` holds.

    Raises:
        UserError: for folders that do not fit each other, options without meaning here, and where
            no case could be scored.
        TypeError: for options that it does not have.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as name:
        ...     for folder, labels in (("predictions", [[0, 1]]), ("labels", [[1, 1]])):
        ...         (Path(name) / folder).mkdir()
        ...         np.save(Path(name) / folder / "case.npy", np.array(labels, np.uint8))
        ...     scores = score_folder(f"{name}/predictions", f"{name}/labels", "dice")
        >>> round(scores["mean"]["dice"], 3)
        0.667
    """
    known = {f.name for f in dataclasses.fields(Request)} - {"predictions", "labels", "metrics"}
    if unknown := sorted(set(options) - known):
        raise TypeError(
            f"score_folder takes no {', '.join(unknown)}; further options are"
            f" {', '.join(sorted(known))}."
        )
    parts = parts_of(metrics)
    for name in ("inputs", "masks", "split", "soft", "fov", "out"):
        if isinstance(options.get(name), str):
            options[name] = Path(options[name])
    ignored_label = "none" if ignore_label is None else str(ignore_label)
    folders = {"predictions": Path(predictions), "labels": Path(labels)}
    scores = evaluate(
        Request(**folders, metrics=parts, ignore_label=ignored_label, workers=workers, **options)
    )
    if not scores["cases"]:
        raise UserError(
            "no case could be scored:\n  "
            + "\n  ".join(f"{i}: {why}" for i, why in list(scores["failed"].items())[:10])
        )
    return scores


def evaluate(request: Request) -> dict[str, Any]:
    """Score a folder of predictions, as :func:`score_folder`.

    Args:
        request: what is to be scored, and with which metrics.

    Returns:
        The numbers, also where no case could be scored.

    Raises:
        UserError: for folders that do not fit each other, and options without meaning here.
    """
    parts = list(request.metrics)
    for part in parts:
        bound(part, "--metrics")
    _require_distinct(parts)
    _require_one_kind(request, parts)
    _require_json(request.out)
    known = look_around(request.predictions, request.labels)
    only = _split_ids(request.split, request.labels)
    only = known.held_out if only is None else only
    pairs = pair(request.predictions, request.labels, only, request.partial)
    if not request.partial:
        outputs.require_finished(request.predictions, pairs)
    dims = _dims(pairs)
    if of_images(parts):
        _require_images(known, parts)
        rules = Rules(metrics=tuple(parts))
        reading = Reading(dims=dims, change=read_change(request.change))
        return _finish(request, image_jobs(request, pairs, rules, reading), known)
    ignore = ignored(request.ignore_label, known, "competition" in [m.name for m in parts])
    if ignore is not None:
        logger.info(f"label value {ignore} is not counted")
    rules = Rules(
        metrics=tuple(parts),
        ignore=ignore,
        regions=_regions(known),
        padded=_padded(request, dims),
    )
    _require_one_region(rules)
    reading = Reading(dims=dims, binarise=request.binarise, declared=_declared(known))
    spacings = worlds.common_spacings(parts, {i: label for i, (_, label) in pairs.items()}, dims)
    work = [
        dataclasses.replace(pair, spacing=spacings.get(pair.id))
        for pair in jobs(request, pairs, rules, reading)
    ]
    return _finish(request, work, known)


def _regions(known: Known) -> tuple[tuple[int, ...], ...] | None:
    """Label values of each region of the model that made the predictions.

    None where it has none, it is not known, or instances were numbered.
    """
    found = known.summary.get("regions")
    if not found or _declared(known) is None:
        return None
    return tuple(tuple(values) for values in found.values())


def _require_one_region(rules: Rules) -> None:
    """Raise UserError for metrics of probabilities where there are several regions."""
    wanted = needing(rules.metrics, "probabilities")
    if wanted and rules.regions is not None and len(rules.regions) > 1:
        raise UserError(
            f"--metrics {', '.join(wanted)}: needs probabilities of one foreground, and these"
            f" predictions have {len(rules.regions)} regions. Leave it out."
        )


def _dims(pairs: Mapping[str, tuple[Path, Path]]) -> int:
    """Number of space axes of the first case whose two files can be read.

    Raises FileError, that of the first case, where there is none.
    """
    first: files.FileError | None = None
    for pair_of_files in pairs.values():
        try:
            return min(map(files.dims_of, pair_of_files))
        except files.FileError as error:
            first = first or error
    raise first or UserError("no case to score. Give --predictions and --labels that share one.")


def _require_distinct(parts: Sequence[NamedOptions]) -> None:
    """Raise UserError for a metric that is named twice with different options.

    Both would fill one column.
    """
    first: dict[str, NamedOptions] = {}
    for part in parts:
        if first.setdefault(part.name, part) != part:
            both = [dict(p.options) for p in (first[part.name], part)]
            raise UserError(
                f"--metrics names {part.name} twice, with the options {both[0]} and {both[1]}: one"
                " column cannot hold both. Run twice."
            )


def _require_json(out: Path | None) -> None:
    """Raise UserError where ``--out`` is no JSON file or may not be written.

    Another kind of file would be replaced.
    """
    if out is None:
        return
    if out.suffix.lower() != ".json" or (
        os.path.lexists(out) and not os.path.isfile(out) and not os.path.islink(out)
    ):
        raise UserError(
            f"--out {out}: the numbers are written as a .json file. Name one, e.g. --out"
            " scores.json."
        )
    files.require_writable("--out", out.parent)
    if problem := outputs.too_long(out.parent, [out.name]):
        raise UserError(f"--out {out}: {problem}. Choose a shorter name.")


def _require_images(known: Known, parts: Sequence[NamedOptions]) -> None:
    """Raise UserError for metrics of images where the predictions are label maps."""
    if known.summary.get("task") in ("labels", "regions"):
        names = ", ".join(p.name for p in parts)
        raise UserError(
            f"--metrics {names}: of images, but these predictions are labels (task in"
            " summary.json). Use e.g. --metrics dice."
        )


def _declared(known: Known) -> int | None:
    """Number of classes of the model that made the predictions.

    None where it is not known, or instances were numbered.
    """
    steps = [
        step.get("name")
        for step in known.summary.get("postprocess") or ()
        if isinstance(step, Mapping)
    ]
    number = known.summary.get("classes")
    return number if isinstance(number, int) and number >= 2 and "instances" not in steps else None


def _finish(request: Request, work: Sequence[Pair], known: Known) -> dict[str, Any]:
    """Score, write the file, and warn."""
    scores = folder(work, request.workers, progress_callback("scoring cases"))
    rules = work[0].rules
    scores |= (
        {"units": found}
        if (found := units(rules.metrics, any(pair.spacing for pair in work), work[0].reading.dims))
        else {}
    )
    scores |= (
        {"class_names": {str(k): v for k, v in known.names.items()}}
        if known.names and ("classes" in scores or rules.regions)
        else {}
    )
    scores |= {"regions": known.summary["regions"]} if rules.regions else {}
    if request.out is not None:
        files.write_json(request.out, scores)
    _warn(scores)
    return scores


def code_of(scores: Mapping[str, Any]) -> int:
    """Exit code of an evaluation: all cases done, some failed, or all failed.

    Args:
        scores: as :func:`evaluate` returns them.

    Returns:
        ``DONE``, ``PARTIAL`` or ``FAILED``.
    """
    return DONE if not scores["failed"] else (PARTIAL if scores["cases"] else FAILED)


MANY = 30
"""Number of classes above which a warning asks whether they are instance numbers."""


def _warn(scores: Mapping[str, Any]) -> None:
    """Warn of cases with nothing to count, of wrong intensity scales, and of instance numbers."""
    empty = [
        i
        for i, row in scores["cases"].items()
        if not any(math.isfinite(v) for v in row.values() if not isinstance(v, Mapping)) and row
    ]
    if empty:
        logger.warning(
            f"nothing to count in {len(empty)} cases, which are in no mean: {', '.join(empty[:10])}"
        )
    untrue = [i for i, row in scores["cases"].items() if any(_without_true_volume(row))]
    if untrue:
        logger.warning(
            "volume_error has no value where the truth is empty and something is predicted (see"
            f" volume_predicted): its mean lacks {len(untrue)} cases: {', '.join(untrue[:10])}"
        )
    wide = [
        i for i, row in scores["cases"].items() if row.get("psnr", 0) < 0 or row.get("mae", 0) > 1
    ]
    if wide:
        logger.warning(
            f"the error is larger than the full scale in {len(wide)} cases: {', '.join(wide[:10])}."
            " Integers are divided by the largest value of their type, floats taken as they are,"
            " on 0 to 1: save both sides in one number type, or give the scale of floats with"
            " --metrics psnr:peak=X ssim:peak=X"
        )
    classes = scores.get("classes", ())
    if len(classes) > MANY and any(f"_{classes[0]}" in key for key in scores["mean"]):
        logger.warning(
            f"these labels hold {len(classes)} different values. If they number instances, use"
            " --metrics voi adapted_rand, which compare whole labelings: a class by class score"
            " compares equal numbers."
        )


def _without_true_volume(row: Mapping[str, Any]) -> Iterator[str]:
    """Keys of volumes that were predicted where there is none in truth."""
    for key, value in row.items():
        if key.startswith("volume_true") and value == 0:
            predicted = key.replace("volume_true", "volume_predicted")
            if row.get(predicted, 0) > 0:
                yield predicted


def _require_one_kind(request: Request, parts: Sequence[NamedOptions]) -> None:
    """Raise UserError for metrics of both kinds, and options without meaning for their kind."""
    images = [m.name for m in parts if METRICS[m.name].task == "image"]
    if images and len(images) < len(parts):
        raise UserError(
            f"--metrics {' '.join(p.name for p in parts)}: {', '.join(images)} are of images, the"
            " others of labels. Run twice."
        )
    if images and request.ignore_label != "auto":
        raise UserError("--ignore-label is for metrics of labels. Leave it out.")
    changed = needing(parts, "change")
    idle = (
        dict.fromkeys(("fov", "padded", "binarise", "soft"), "labels")
        if images
        else {"inputs": f"images: {', '.join(names_of('image'))}"}
    )
    of_change = ", ".join(name for name, entry in METRICS.items() if "change" in entry.needs)
    idle |= (
        {} if changed else dict.fromkeys(("change", "masks"), f"what was to change: {of_change}")
    )
    for option, what in idle.items():
        if getattr(request, option) is not None:
            raise UserError(f"--{option} is for metrics of {what}. Leave it out.")
    if changed and request.inputs is None:
        raise UserError(
            f"{', '.join(changed)}: makes the mask of what was to change from input and target."
            " Name the inputs with --inputs DIR."
        )


def read_change(words: Change | Sequence[str] | None) -> Change:
    """Read the settings of the mask of change; those not given are at their defaults.

    Args:
        words: ``KEY=VALUE`` texts, settings, or None.

    Returns:
        The settings.

    Raises:
        UserError: for a text that is no ``KEY=VALUE``.
        ConfigError: for keys and values that do not exist.

    Example:
        >>> read_change(["threshold=8"]).threshold
        8.0
    """
    if isinstance(words, Change):
        return words
    words = words or ()
    given: dict[str, Any] = {}
    for word in words:
        if "=" not in word:
            raise UserError(
                f"--change {word}: give KEY=VALUE, e.g. --change by=colour threshold=8."
            )
        override(given, word)
    return structure(given, Change, "--change")


def image_jobs(
    request: Request, pairs: Mapping[str, tuple[Path, Path]], rules: Rules, reading: Reading
) -> list[Pair]:
    """Cases of images, with their inputs and predicted masks where such folders are given.

    Args:
        request: the folders.
        pairs: prediction and target file by id.
        rules: metrics.
        reading: how files are read.

    Returns:
        One record per case.

    Raises:
        UserError: where an input or a mask is missing, and where the mask of change is needed
            for volumes.
    """
    if rules.need_change and reading.dims != 2:
        raise UserError(
            f"{', '.join(needing(rules.metrics, 'change'))} compares photographs;"
            f" {next(iter(pairs.values()))[1]} is a volume. Leave it out."
        )
    usual = request.predictions / "masks"
    masks = request.masks or (usual if rules.need_change and os.path.isdir(usual) else None)
    inputs = _companions("--inputs", "input", request.inputs, pairs)
    predicted = _companions("--masks", "predicted mask", masks, pairs)
    return [
        Pair(
            id=i,
            prediction=p,
            label=t,
            rules=rules,
            reading=reading,
            input=inputs.get(i),
            mask=predicted.get(i),
        )
        for i, (p, t) in pairs.items()
    ]


def _companions(
    option: str, what: str, folder: Path | None, ids: Collection[str]
) -> dict[str, Path]:
    """Files of a folder by id, none without a folder.

    Raises UserError unless every id has its file; ``what`` names them in the message.
    """
    if folder is None:
        return {}
    if not os.path.isdir(folder):
        raise UserError(f"{option} {folder}: no such folder.")
    found = answer_files(folder)
    missing = sorted(set(ids) - set(found))
    if missing:
        raise UserError(
            f"{option} {folder}: no {what} for {len(missing)} cases: {', '.join(missing[:10])}. Add"
            " them, or do without that folder."
        )
    return found


def _padded(request: Request, dims: int) -> tuple[int, ...] | None:
    """Size ``(*S)`` that images are padded to; None: they are not."""
    if request.padded is None:
        return None
    if request.fov is None:
        raise UserError("--padded stands without --fov; give the folder of field-of-view masks.")
    size = tuple(request.padded) * (dims if len(request.padded) == 1 else 1)
    if len(size) != dims or min(size) < 1:
        raise UserError(f"--padded {list(request.padded)}: give one positive number, or {dims}.")
    return size


def jobs(
    request: Request, pairs: Mapping[str, tuple[Path, Path]], rules: Rules, reading: Reading
) -> list[Pair]:
    """Cases with all files that their metrics read.

    Args:
        request: the folders.
        pairs: prediction and label file by id.
        rules: metrics.
        reading: how files are read.

    Returns:
        One record per case.

    Raises:
        UserError: where probabilities or a field of view is missing.
    """
    soft = request.soft or request.predictions / "soft"
    wanted = sorted(needing(rules.metrics, "probabilities"))
    known = set(softs.ids(soft)) if os.path.isdir(soft) else set()
    if wanted and set(pairs) - known:
        missing = sorted(set(pairs) - known)
        raise UserError(
            f"{', '.join(wanted)} need probabilities, but {soft} has none for {len(missing)} cases:"
            f" {', '.join(missing[:10])}. Predict with --save-soft, or name"
            " their folder with --soft."
        )
    if request.binarise is not None and not math.isfinite(request.binarise):
        raise UserError(
            f"--binarise {request.binarise}: give a finite number; values above it are foreground."
        )
    if request.fov is not None and not os.path.isdir(request.fov):
        raise UserError(f"--fov {request.fov}: no such folder.")
    views = answer_files(request.fov) if request.fov is not None else {}
    uncovered = sorted(set(pairs) - set(views)) if request.fov is not None else []
    if uncovered:
        raise UserError(
            f"--fov {request.fov}: no mask for {len(uncovered)} cases: {', '.join(uncovered[:10])}."
            " Add them, or leave --fov out."
        )
    where = soft if wanted else None
    return [
        Pair(
            id=i, prediction=p, label=t, rules=rules, reading=reading, soft=where, fov=views.get(i)
        )
        for i, (p, t) in pairs.items()
    ]


def _split_ids(path: Path | None, labels: Path) -> frozenset[str] | None:
    """The ids under ``test`` of a split.json, as training reads them; None without one."""
    if path is None:
        return None
    suggestion = 'It should read {"train": [ID, ...], "test": [ID, ...]}'
    ids = files.read_document(path, documents.TestSplit, suggestion).get("test")
    if not ids:
        raise UserError(
            f'--split {path}: lists nothing under "test"; it should read {{"train": [ID, ...],'
            ' "test": [ID, ...]}.'
        )
    known = answer_files(labels) if os.path.isdir(labels) else {}
    return frozenset(listed_id(entry, known) for entry in ids)


def look_around(predictions: Path, labels: Path) -> Known:
    """Read the files beside predictions and labels: summary.json, splits.json, dataset.json.

    Args:
        predictions: folder of predictions, or the ``oof`` of a fold.
        labels: folder of labels.

    Returns:
        What they say.
    """
    found = fold_of(predictions)
    held_out = None if found is None else frozenset(found[0].splits()[found[1]]["val"])
    beside = Path(os.path.realpath(labels)).parent
    summary = read_summary(predictions) if found is None else _of_run(found[0])
    names = from_json(summary.get("class_names")) or class_names(beside)
    return Known(summary=summary, names=names, ignore=ignore_label(beside), held_out=held_out)


def _of_run(run: RunFolder) -> dict[str, Any]:
    """What a run's config says about its folds' predictions, with the keys of a summary.json."""
    config = run.config()
    named = {k: v for k, v in read_summary(run.path).items() if k == "class_names"}
    known = {
        "task": config.rules,
        "ignore_label": config.data.ignore_label,
        "postprocess": to_dict(config)["postprocess"],
    }
    return known | named | TASKS[config.rules].facts(config)


def pair(
    predictions: Path, labels: Path, only: Collection[str] | None = None, partial: bool = False
) -> dict[str, tuple[Path, Path]]:
    """Pair predictions and labels with equal ids.

    Args:
        predictions: folder of predictions.
        labels: folder of labels.
        only: ids to take; None: all.
        partial: leave out labels without a prediction.

    Returns:
        Prediction and label file by id.

    Raises:
        UserError: when a label has no prediction, unless ``partial``: a mean over fewer cases
            would flatter.
    """
    for option, path in (("--predictions", predictions), ("--labels", labels)):
        if not os.path.isdir(path):
            raise UserError(f"{option} {path}: no such folder.")
    answers, targets = answer_files(predictions), answer_files(labels)
    if only is not None:
        answers, targets = (
            {i: p for i, p in found.items() if i in only} for found in (answers, targets)
        )
        unknown = sorted(set(only) - set(targets))
        if unknown:
            raise UserError(
                f"{len(unknown)} ids of the split are without a file in {labels}:"
                f" {', '.join(unknown[:10])}. Correct one of the two."
            )
    missing = [i for i in targets if i not in answers]
    if partial and missing and len(missing) < len(targets):
        logger.warning(
            f"{len(missing)} of {len(targets)} labels have no answer and are not scored:"
            f" {', '.join(missing[:10])}"
        )
        targets = {i: p for i, p in targets.items() if i in answers}
        missing = []
    if not targets or missing:
        what = (
            f"no answer for {len(missing)} of {len(targets)} labels: {', '.join(missing[:10])}"
            if targets
            else "no label files"
        )
        raise UserError(
            f"{predictions} against {labels}: {what}. Predict the missing cases, point --labels to"
            " the matching ones, or score those that are there with --partial."
        )
    extra = [i for i in answers if i not in targets]
    if extra:
        logger.warning(
            f"{len(extra)} answers have no label and are not scored: {', '.join(extra[:10])}"
        )
    return {i: (answers[i], targets[i]) for i in targets}


def ignored(option: str, known: Known, competition: bool = False) -> int | None:
    """The label value that is not counted, see ``--ignore-label``.

    It is never one that only the labels themselves suggest.

    Args:
        option: a whole number, ``none`` or ``auto``.
        known: what the files beside predictions and labels say.
        competition: whether the competition's metric is computed, which ignores 2.

    Returns:
        The value; None: none.

    Raises:
        UserError: for an option that is none of these.
    """
    if option == "none":
        return None
    if option != "auto":
        if not re.fullmatch(r"-?\d{1,9}", option):
            raise UserError(f"--ignore-label {option!r}: give a whole number, none or auto.")
        return int(option)
    if known.summary.get("ignore_label") is not None:
        return known.summary["ignore_label"]
    if competition:
        return 2  # by its definition, even where a prediction holds a 2
    return None if "ignore_label" in known.summary else known.ignore
