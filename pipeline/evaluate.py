"""Score a folder of answers against a folder of labels, or of images against the images that they should be.

    python -m pipeline.evaluate --predictions DIR --labels DIR --metrics dice surface_dice --out scores.json
    python -m pipeline.evaluate --predictions DIR --labels DST --metrics psnr ssim --inputs SRC --out scores.json
    python -m pipeline.evaluate --predictions DIR --labels DST --metrics psnr ssim retouch --inputs SRC --change by=colour threshold=8

Images are scored as their files have them, each divided by the largest value of its integer type (floats: as they are).
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import cli
from pipeline.cli import say
from pipeline.records import DONE, FAILED, PARTIAL, Part, UserError

if TYPE_CHECKING:
    from pipeline.config import Change
    from pipeline.scoring.folder import Pair, Rules


def parser() -> argparse.ArgumentParser:
    p = cli.parser("evaluate", "Score a folder of answers against a folder of labels, or of images against their targets.")
    p.add_argument("--predictions", type=Path, required=True, help="folder of answers, ID.tif and the like")
    p.add_argument("--labels", type=Path, required=True, help="folder of labels, or of target images, with the same ids")
    p.add_argument(
        "--metrics",
        nargs="+",
        default=["dice", "surface_dice", "components"],
        metavar="NAME",
        help="entries of METRICS, all of labels or all of images (psnr, ssim, mae, retouch); options behind a colon: ssim:kernel=3d",
    )
    p.add_argument(
        "--inputs",
        type=Path,
        help="images: folder of the inputs with the same ids, for the row 'do nothing' and the gain over it; retouch: also for the mask",
    )
    p.add_argument(
        "--change",
        nargs="+",
        metavar="KEY=VALUE",
        help="retouch: how the mask of what was to change is made from input and target, as under data.change of a config",
    )
    p.add_argument(
        "--masks",
        type=Path,
        help="retouch: folder of predicted masks, grey 0..255, for mask_dice; default: PREDICTIONS/masks where it is there",
    )
    p.add_argument("--split", type=Path, metavar="FILE", help="split.json: only the ids under its 'test' are scored")
    p.add_argument("--soft", type=Path, help="folder of probabilities, for roc_auc and pr_auc; default: PREDICTIONS/soft where it is there")
    p.add_argument("--fov", type=Path, help="folder of field-of-view masks with the same ids: metrics inside it and over the full image")
    p.add_argument("--padded", type=int, nargs="+", metavar="N", help="with --fov: also over the image with background up to this size")
    p.add_argument(
        "--binarise",
        type=float,
        metavar="X",
        help="values above X are foreground: labels kept as JPEG or as greys, answers that are probabilities",
    )
    p.add_argument(
        "--partial",
        action="store_true",
        help="score the labels that have an answer, and say how many have none; a fold's oof/ needs no option: its cases are known",
    )
    p.add_argument("--workers", type=int, help="cases scored at a time; default: one a core, fewer where memory is short")
    p.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    p.add_argument(
        "--ignore-label",
        default="auto",
        help="label value that is not counted; none; auto: as the predictions' summary.json or the labels' dataset.json says, else 2 "
        "with the metric competition, else none",
    )
    return p


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What lies beside answers and labels and says more about them.

    Args:
        summary: summary.json of the predictions, or of the run whose fold they are of.
        names: names of classes.
        held_out: ids of the cases that a fold's ``oof`` holds, None of other folders.
    """

    summary: Mapping[str, Any]
    names: Mapping[int, str]
    ignore: int | None
    held_out: frozenset[str] | None


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), evaluate, argv)


def evaluate(arguments: argparse.Namespace) -> int:
    """The whole command; returns its exit code."""
    from pipeline.inference import outputs
    from pipeline.metrics import bound, in_millimetres
    from pipeline.scoring.folder import Rules

    parts = [_part(text) for text in arguments.metrics]
    for part in parts:
        bound(part, "--metrics")
    _require_distinct(parts)
    _one_kind(arguments, parts)
    _require_json(arguments.out)
    known = look_around(arguments.predictions, arguments.labels)
    only = _listed(arguments.split, arguments.labels)
    only = known.held_out if only is None else only
    pairs = pair(arguments.predictions, arguments.labels, only, arguments.partial)
    if not arguments.partial:
        outputs.require_finished(arguments.predictions, pairs, say)
    dims = _dims(pairs)
    if Rules(metrics=parts, dims=dims).images:
        _require_images(known, parts)
        rules = Rules(metrics=parts, dims=dims, change=_change(arguments.change or ()))
        return _finish(arguments, image_jobs(arguments, pairs, rules), known)
    ignore = ignored(arguments.ignore_label, known, "competition" in [m.name for m in parts])
    if ignore is not None:
        say(f"label value {ignore} is not counted")
    rules = Rules(
        metrics=parts,
        dims=dims,
        ignore=ignore,
        binarise=arguments.binarise,
        padded=_padded(arguments, dims),
        declared=_declared(known),
        millimetres=in_millimetres(parts) and _all_carry_a_unit(pairs, dims),
    )
    return _finish(arguments, jobs(arguments, pairs, rules), known)


def _dims(pairs: Mapping[str, tuple[Path, Path]]) -> int:
    """Space axes of the first case whose two files can be read. Raises FileError, that of the first case, where there is none."""
    from pipeline import files

    first: files.FileError | None = None
    for pair_of_files in pairs.values():
        try:
            return min(map(files.dims_of, pair_of_files))
        except files.FileError as error:
            first = first or error
    raise first or UserError("no case to score. Give --predictions and --labels that share one.")


def _require_distinct(parts: Sequence[Part]) -> None:
    """Raise UserError for a metric that is asked for twice with other options: both would be one column."""
    first: dict[str, Part] = {}
    for part in parts:
        if first.setdefault(part.name, part) != part:
            ways = [dict(p.options) for p in (first[part.name], part)]
            raise UserError(
                f"--metrics names {part.name} twice, with the options {ways[0]} and {ways[1]}: one column cannot hold both. Run twice."
            )


def _require_json(out: Path | None) -> None:
    """Raise UserError where ``--out`` names a file that is no JSON: it would take the place of something else, or may not be written."""
    from pipeline import files
    from pipeline.inference import outputs

    if out is None:
        return
    if out.suffix.lower() != ".json" or (os.path.lexists(out) and not os.path.isfile(out) and not os.path.islink(out)):
        raise UserError(f"--out {out}: the numbers are written as a .json file. Name one, e.g. --out scores.json.")
    files.require_writable("--out", out.parent)
    if problem := outputs.too_long(out.parent, [out.name]):
        raise UserError(f"--out {out}: {problem}. Choose a shorter name.")


def _require_images(known: Known, parts: Sequence[Part]) -> None:
    """Raise UserError for metrics of images where the predictions are label maps."""
    if known.summary.get("task") == "labels":
        names = ", ".join(p.name for p in parts)
        raise UserError(f"--metrics {names}: of images, but these predictions are labels (task in summary.json). Use e.g. --metrics dice.")


def _declared(known: Known) -> int | None:
    """Number of classes of the model that gave the answers; None where it is not known, or instances were numbered."""
    steps = [step.get("name") for step in known.summary.get("postprocess") or () if isinstance(step, Mapping)]
    number = known.summary.get("classes")
    return number if isinstance(number, int) and number >= 2 and "instances" not in steps else None


def _all_carry_a_unit(pairs: Mapping[str, tuple[Path, Path]], dims: int) -> bool:
    """Whether every label file says how far its voxels lie apart. Raises UserError where some do and others do not."""
    from pipeline import files
    from pipeline.grid import grid_of

    spacings: dict[str, tuple[float, ...] | None] = {}
    for i, (_, label) in pairs.items():
        try:
            spacings[i] = grid_of(files.geometry(label, dims), dims).spacing
        except files.FileError:
            continue  # its row will say so
    without = [i for i, spacing in spacings.items() if spacing is None]
    if without and len(without) < len(spacings):
        raise UserError(
            f"distances of these cases have no common unit: {len(without)} label files carry none ({', '.join(without[:10])}), the others "
            "do. Give all of them their spacing, or score them apart."
        )
    return not without and bool(spacings)


def _finish(arguments: argparse.Namespace, work: Sequence[Pair], known: Known) -> int:
    """Score, print the table, write the file; returns the exit code."""
    from pipeline import files
    from pipeline.metrics import units
    from pipeline.scoring.folder import folder

    scores = folder(work, arguments.workers, cli.counter("scoring cases"))
    rules = work[0].rules
    scores |= {"units": found} if (found := units(rules.metrics, rules.millimetres)) else {}
    scores |= {"class_names": {str(k): v for k, v in known.names.items()}} if known.names and "classes" in scores else {}
    say(table(scores))
    for line in remarks(scores):
        say(line)
    if arguments.out is not None:
        files.write_json(arguments.out, scores)
    return DONE if not scores["failed"] else (PARTIAL if scores["cases"] else FAILED)


TINY = 1e-3
"""Numbers below this are shown with four digits of their own."""

MANY = 30
"""Classes from which on they are taken for numbers of instances, and it is said."""


def remarks(scores: Mapping[str, Any]) -> list[str]:
    """Warnings about a table: cases in which nothing was counted, numbers of instances taken for classes."""
    lines = []
    void = [
        i for i, row in scores["cases"].items() if not any(math.isfinite(v) for v in row.values() if not isinstance(v, Mapping)) and row
    ]
    if void:
        lines.append(f"warning: nothing to count in {len(void)} cases, which are in no mean: {', '.join(void[:10])}")
    wide = [i for i, row in scores["cases"].items() if row.get("psnr", 0) < 0 or row.get("mae", 0) > 1]
    if wide:
        lines.append(
            f"warning: the error is larger than the full scale in {len(wide)} cases: {', '.join(wide[:10])}. Integers are divided by the "
            "largest value of their type, floats taken as they are, on 0 to 1: save both sides in one number type, or give the scale of "
            "floats with --metrics psnr:peak=X ssim:peak=X"
        )
    classes = scores.get("classes", ())
    if len(classes) > MANY and any(f"_{classes[0]}" in key for key in scores["mean"]):
        lines.append(
            f"warning: these labels hold {len(classes)} different values. If they number instances, use --metrics voi adapted_rand, "
            "which compare whole labelings: a class by class score compares equal numbers."
        )
    return lines


def _part(text: str) -> Part:
    """``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``, values as in YAML."""
    from pipeline.config import override

    name, _, given = text.partition(":")
    options: dict[str, Any] = {}
    for pair_of_words in given.split(",") if given else ():
        override(options, pair_of_words)
    return Part(name=name, options=options)


def _one_kind(arguments: argparse.Namespace, parts: Sequence[Part]) -> None:
    """Refuse metrics of both kinds together, and options that mean nothing for the kind asked for."""
    from pipeline.metrics import CHANGED, IMAGES

    images = [m.name for m in parts if m.name in IMAGES]
    if images and len(images) < len(parts):
        raise UserError(f"--metrics {' '.join(arguments.metrics)}: {', '.join(images)} are of images, the others of labels. Run twice.")
    if images and arguments.ignore_label != "auto":
        raise UserError("--ignore-label is for metrics of labels. Leave it out.")
    changed = CHANGED & set(images)
    idle = dict.fromkeys(("fov", "padded", "binarise", "soft"), "labels") if images else {"inputs": f"images: {', '.join(sorted(IMAGES))}"}
    idle |= {} if changed else dict.fromkeys(("change", "masks"), f"what was to change: {', '.join(sorted(CHANGED))}")
    for option, what in idle.items():
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option} is for metrics of {what}. Leave it out.")
    if changed and arguments.inputs is None:
        raise UserError(
            f"{', '.join(changed)}: makes the mask of what was to change from input and target. Name the inputs with --inputs DIR."
        )


def _change(words: Sequence[str]) -> Change:
    """The settings of the mask of change: the usual ones, but for ``KEY=VALUE``."""
    from pipeline.config import Change, override, structure

    given: dict[str, Any] = {}
    for word in words:
        if "=" not in word:
            raise UserError(f"--change {word}: give KEY=VALUE, e.g. --change by=colour threshold=8.")
        override(given, word)
    return structure(given, Change, "--change")


def image_jobs(arguments: argparse.Namespace, pairs: Mapping[str, tuple[Path, Path]], rules: Rules) -> list[Pair]:
    """Cases of images, with their inputs and predicted masks where such folders are given.

    Raises UserError where one is missing, and where the mask of change is asked for of volumes.
    """
    from pipeline.scoring.folder import Pair

    if rules.changed and rules.dims != 2:
        raise UserError(f"retouch compares photographs; {next(iter(pairs.values()))[1]} is a volume. Leave it out.")
    usual = arguments.predictions / "masks"
    masks = arguments.masks or (usual if rules.changed and os.path.isdir(usual) else None)
    inputs = _companions("--inputs", "input", arguments.inputs, pairs)
    predicted = _companions("--masks", "predicted mask", masks, pairs)
    return [Pair(id=i, prediction=p, label=t, rules=rules, input=inputs.get(i), mask=predicted.get(i)) for i, (p, t) in pairs.items()]


def _companions(option: str, what: str, folder: Path | None, ids: Collection[str]) -> dict[str, Path]:
    """Files of a folder by id, none without a folder. Raises UserError unless every id has its file; ``what`` says what they are."""
    from pipeline.ensemble import answer_files

    if folder is None:
        return {}
    if not os.path.isdir(folder):
        raise UserError(f"{option} {folder}: no such folder.")
    found = answer_files(folder)
    missing = sorted(set(ids) - set(found))
    if missing:
        raise UserError(
            f"{option} {folder}: no {what} for {len(missing)} cases: {', '.join(missing[:10])}. Add them, or do without that folder."
        )
    return found


def _padded(arguments: argparse.Namespace, dims: int) -> tuple[int, ...] | None:
    if arguments.padded is None:
        return None
    if arguments.fov is None:
        raise UserError("--padded stands without --fov; give the folder of field-of-view masks.")
    size = tuple(arguments.padded) * (dims if len(arguments.padded) == 1 else 1)
    if len(size) != dims or min(size) < 1:
        raise UserError(f"--padded {list(arguments.padded)}: give one positive number, or {dims}.")
    return size


def jobs(arguments: argparse.Namespace, pairs: Mapping[str, tuple[Path, Path]], rules: Rules) -> list[Pair]:
    """Cases with everything that their metrics read. Raises UserError where probabilities or a field of view is missing."""
    from pipeline.ensemble import answer_files
    from pipeline.inference import soft as softs
    from pipeline.metrics import SOFT
    from pipeline.scoring.folder import Pair

    soft, wanted = arguments.soft or arguments.predictions / "soft", sorted(SOFT & {m.name for m in rules.metrics})
    known = set(softs.ids(soft)) if os.path.isdir(soft) else set()
    if wanted and set(pairs) - known:
        lost = sorted(set(pairs) - known)
        raise UserError(
            f"{', '.join(wanted)} need probabilities, but {soft} has none for {len(lost)} cases: {', '.join(lost[:10])}. "
            "Predict with --save-soft, or name their folder with --soft."
        )
    if arguments.binarise is not None and not math.isfinite(arguments.binarise):
        raise UserError(f"--binarise {arguments.binarise}: give a finite number; values above it are foreground.")
    if arguments.fov is not None and not os.path.isdir(arguments.fov):
        raise UserError(f"--fov {arguments.fov}: no such folder.")
    views = answer_files(arguments.fov) if arguments.fov is not None else {}
    blind = sorted(set(pairs) - set(views)) if arguments.fov is not None else []
    if blind:
        raise UserError(f"--fov {arguments.fov}: no mask for {len(blind)} cases: {', '.join(blind[:10])}. Add them, or leave --fov out.")
    where = soft if wanted else None
    return [Pair(id=i, prediction=p, label=t, rules=rules, soft=where, fov=views.get(i)) for i, (p, t) in pairs.items()]


def _listed(path: Path | None, labels: Path) -> frozenset[str] | None:
    """The ids under ``test`` of a split.json, as training reads them; None without one."""
    from pipeline import documents, files
    from pipeline.data.cases import listed_id
    from pipeline.ensemble import answer_files

    if path is None:
        return None
    cure = 'It should read {"train": [ID, ...], "test": [ID, ...]}'
    ids = files.read_document(path, documents.TestSplit, cure).get("test")
    if not ids:
        raise UserError(f'--split {path}: lists nothing under "test"; it should read {{"train": [ID, ...], "test": [ID, ...]}}.')
    known = answer_files(labels) if os.path.isdir(labels) else {}
    return frozenset(listed_id(entry, known) for entry in ids)


def look_around(predictions: Path, labels: Path) -> Known:
    """What the files beside answers and labels say: summary.json, a run's splits.json, dataset.json."""
    from pipeline.data.cases import class_names, ignore_label
    from pipeline.ensemble import first_summary
    from pipeline.metrics.names import from_json

    run, held_out = _run_of(predictions)
    beside = Path(os.path.realpath(labels)).parent
    summary = first_summary(predictions) if run is None else _of_run(run)
    names = from_json(summary.get("class_names")) or class_names(beside)
    return Known(summary=summary, names=names, ignore=ignore_label(beside), held_out=held_out)


def _run_of(predictions: Path) -> tuple[Path | None, frozenset[str] | None]:
    """The run and the held-out cases, where a folder is ``RUN/fold_N/oof``; else None twice."""
    from pipeline import documents, files

    folder = Path(os.path.realpath(predictions))
    number = folder.parent.name.removeprefix("fold_")
    splits = folder.parent.parent / "splits.json"
    if folder.name != "oof" or not number.isdecimal() or not os.path.isfile(splits):
        return None, None
    folds = files.read_document(splits, documents.Splits, "Restore it: it names the cases of each fold")["folds"]
    if len(number) > len(str(len(folds))) or int(number) >= len(folds):
        return None, None
    return splits.parent, frozenset(folds[int(number)]["val"])


def _of_run(run: Path) -> dict[str, Any]:
    """What the config of a run says of the answers of its folds, in the words of a summary.json."""
    from pipeline.config import load, to_dict
    from pipeline.ensemble import first_summary

    config = load(run / "config.yaml")
    named = {k: v for k, v in first_summary(run).items() if k == "class_names"}
    known = {"task": config.task, "ignore_label": config.data.ignore_label, "postprocess": to_dict(config)["postprocess"]}
    return known | named | ({"classes": config.data.classes} if config.task == "labels" else {})


def pair(predictions: Path, labels: Path, only: Collection[str] | None = None, partial: bool = False) -> dict[str, tuple[Path, Path]]:
    """Answers and labels with equal ids, of the ids in ``only`` where that is given.

    Raises UserError when a label has no answer, unless ``partial``: a mean over fewer cases would flatter.
    """
    from pipeline.ensemble import answer_files

    for option, path in (("--predictions", predictions), ("--labels", labels)):
        if not os.path.isdir(path):
            raise UserError(f"{option} {path}: no such folder.")
    answers, truths = answer_files(predictions), answer_files(labels)
    if only is not None:
        answers, truths = ({i: p for i, p in found.items() if i in only} for found in (answers, truths))
        unknown = sorted(set(only) - set(truths))
        if unknown:
            raise UserError(
                f"{len(unknown)} ids of the split are without a file in {labels}: {', '.join(unknown[:10])}. Correct one of the two."
            )
    missing = [i for i in truths if i not in answers]
    if partial and missing and len(missing) < len(truths):
        say(f"warning: {len(missing)} of {len(truths)} labels have no answer and are not scored: {', '.join(missing[:10])}")
        truths = {i: p for i, p in truths.items() if i in answers}
        missing = []
    if not truths or missing:
        what = f"no answer for {len(missing)} of {len(truths)} labels: {', '.join(missing[:10])}" if truths else "no label files"
        raise UserError(
            f"{predictions} against {labels}: {what}. Predict the missing cases, point --labels to the matching ones, or score those that "
            "are there with --partial."
        )
    extra = [i for i in answers if i not in truths]
    if extra:
        say(f"warning: {len(extra)} answers have no label and are not scored: {', '.join(extra[:10])}")
    return {i: (answers[i], truths[i]) for i in truths}


def ignored(option: str, known: Known, competition: bool = False) -> int | None:
    """The label value that is not counted, see ``--ignore-label``: never one that only the labels themselves suggest."""
    if option == "none":
        return None
    if option != "auto":
        if not re.fullmatch(r"-?\d{1,9}", option):
            raise UserError(f"--ignore-label {option!r}: give a whole number, none or auto.")
        return int(option)
    if known.summary.get("ignore_label") is not None:
        return known.summary["ignore_label"]
    if competition:
        return 2  # by its definition, even where an answer holds a 2
    return None if "ignore_label" in known.summary else known.ignore


def table(scores: Mapping[str, Any]) -> str:
    """Scores as text: a row a case, their mean, the metrics of all voxels pooled; of images "do nothing" and the gain over it.

    Classes by their names, lengths with their unit. Cases that failed for one reason share a line.
    """
    from pipeline.metrics.names import display, from_json
    from pipeline.metrics.retouch import note

    names = list(scores["mean"])  # tables, such as the competition's counts, are in the file only
    classes = from_json(scores.get("class_names"))
    titles = [display(n, classes, scores.get("units", {})) for n in names]
    widths = [max(18, len(title) + 2) for title in titles]
    lines = [f"{'case':<24}" + "".join(f"{t:>{w}}" for t, w in zip(titles, widths, strict=True))]
    further = [(key.replace("_", " "), scores[key]) for key in ("pooled", "do_nothing", "difference") if key in scores]
    for case_id, row in [*scores["cases"].items(), ("mean", scores["mean"]), *further]:
        numbers = (f"{_number(row.get(n)):>{w}}" for n, w in zip(names, widths, strict=True))
        lines.append(f"{case_id:<24}" + "".join(numbers))
    return "\n".join([*lines, *note(scores["cases"].values()), *_failures(scores["failed"])])


def _failures(failed: Mapping[str, str]) -> list[str]:
    """A line for each reason, with the cases that share it: file names in it do not count."""
    groups: dict[str, list[str]] = {}
    for i, reason in failed.items():
        groups.setdefault(re.sub(r"\S*" + re.escape(i) + r"\S*", "...", reason), []).append(i)
    lines = []
    for alike in groups.values():
        first = f"{alike[0]:<24}FAILED: {failed[alike[0]]}"
        more = f" ({len(alike)} cases alike: {', '.join(alike[:6])}{', ...' if len(alike) > 6 else ''})"
        lines.append(first + (more if len(alike) > 1 else ""))
    return lines


def _number(value: Any) -> str:
    if isinstance(value, Mapping):
        return "..."
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4g}" if 0 < abs(value) < TINY else f"{value:.4f}"  # lengths under a microscope, in millimetres


if __name__ == "__main__":
    raise SystemExit(main())
