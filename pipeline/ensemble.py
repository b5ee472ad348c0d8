"""Fuse the soft predictions of several folds or runs, case by case, and decide.

    python -m pipeline.ensemble --fold-dirs predictions/fold_0 predictions/fold_1 --output predictions/ensemble
    python -m pipeline.ensemble --spec ensembles/NAME.yaml --input DIR --output predictions/ensemble

Members are memory-mapped and summed slab by slab: memory does not depend on their number.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import cli
from pipeline.cli import say
from pipeline.inference.fusion import FUSIONS, fuse, require_weights
from pipeline.records import DONE, PARTIAL, Geometry, Member, Part, UserError

if TYPE_CHECKING:
    import numpy as np

    from pipeline.grid import Alignment

MADE_FROM = "made_from.json"
"""Of a folder of a member's predictions: models and images that they were made from."""

SHOWN = 10
"""Faults that a message spells out; the rest are counted."""


def parser() -> argparse.ArgumentParser:
    p = cli.parser("ensemble", "Fuse predictions of several folds or runs.")
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--fold-dirs", type=Path, nargs="+", metavar="DIR", help="folders written by pipeline.predict --save-soft")
    which.add_argument("--spec", type=Path, help="ensembles/NAME.yaml: members, weights, fusion, post-processing")
    p.add_argument("--output", type=Path, required=True, help="folder for the answers")
    p.add_argument(
        "--input",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="image files and folders of images that members which are runs predict first, into OUTPUT/members; kept when run again",
    )
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="for --input")
    p.add_argument(
        "--fusion",
        choices=["mean", "logit", "vote"],
        help="weighted mean of probabilities or of logits, or majority vote; default: the spec's, else mean",
    )
    p.add_argument("--save-soft", action="store_true", help="also write the fused probabilities to soft/")
    return p


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What an ``ensembles/*.yaml`` may hold."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic
    members: tuple[Member, ...]
    """Each names a folder of predictions (``run``), or with ``folds: [0, 1]`` its ``fold_0``, ``fold_1``, and its weight.

    ``run`` may also be a run folder (or a fold of one); then ``--input`` says which images it shall predict. It speaks with one
    voice: the mean of its folds' probabilities, as in ``pipeline.predict``.
    """
    fusion: str = "mean"
    """``mean`` of probabilities, ``logit``: mean of logits, ``vote``: weighted majority of the members' own decisions."""
    postprocess: tuple[Part, ...] | None = None
    """Steps from fused prediction to answer; default: those of the first member's summary.json."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), ensemble, argv)


def ensemble(arguments: argparse.Namespace) -> int:
    """The whole command; returns its exit code."""
    from pipeline import postprocess
    from pipeline.inference import outputs

    spec = load_spec(arguments.spec) if arguments.spec else Spec(members=tuple(Member(run=d) for d in arguments.fold_dirs))
    spec = dataclasses.replace(spec, fusion=arguments.fusion or spec.fusion)
    if spec.fusion not in FUSIONS:
        raise UserError(f"fusion {spec.fusion!r} is unknown; known: {', '.join(FUSIONS)}.")
    if spec.postprocess is not None:
        postprocess.check(spec.postprocess)
    check_weights(spec.members)
    _require_apart(spec.members, arguments)
    with outputs.owned(arguments.output, say):
        return _fuse_all(spec, arguments)


def _require_apart(members: Sequence[Member], arguments: argparse.Namespace) -> None:
    """Raise UserError where an image or a prediction that is read could be replaced by what is written."""
    from pipeline import files
    from pipeline.data import cases
    from pipeline.inference import outputs

    data: Sequence[Path] = arguments.input or ()
    outputs.require_folder(arguments.output)
    images = [p for d in data for p in ([d] if not os.path.isdir(d) or files.is_folder(d) else cases.images(d))]
    outputs.require_apart(images, arguments.output)
    own = _own_folders(members, arguments.output) if data else {}
    given = [f for n, m in enumerate(members) if n not in own for f in _folders_of(m) if os.path.isdir(f)]
    read = [p for f in given for p in (*(f / "soft").glob("*.npy"), *cases.images(f))]
    written = (str(f.relative_to(arguments.output)) for f in own.values())
    outputs.require_apart(read, arguments.output, ("soft", "masks", *written))


def _fuse_all(spec: Spec, arguments: argparse.Namespace) -> int:
    """Predict what is missing, look at all that is to be fused, then fuse case by case; returns the exit code."""
    from pipeline import files, postprocess
    from pipeline.inference import outputs

    made = set(_own_folders(spec.members, arguments.output).values()) if arguments.input else set()
    members, failed = predicted(spec.members, arguments)
    folders = member_folders(members)
    before = first_summary(folders[0][0])
    steps = spec.postprocess if spec.postprocess is not None else tuple(Part(**p) for p in before.get("postprocess", ()))
    if before.get("task", "labels") == "labels":
        postprocess.check(steps)
    readers = [open_member(folder, spec.fusion) for folder, _ in folders]
    for reader, (folder, _) in zip(readers, folders, strict=True):
        if folder not in made:
            outputs.require_finished(folder, reader.ids, say)
    ids = common_ids(readers, [f for f, _ in folders], failed)
    weights = [w for _, w in folders]
    say(f"{len(ids)} cases, {len(readers)} members, fusion {spec.fusion}")
    ways, unfit = looked_at(ids, readers)
    _require_free(list(ways), readers[0], arguments)
    failed = failed | unfit
    summary = {
        "task": before.get("task", "labels"),
        "members": [{"folder": str(f), "weight": w} for f, w in folders],
        "fusion": spec.fusion,
        "postprocess": [dataclasses.asdict(s) for s in steps],
        **{k: before[k] for k in ("ignore_label", "classes", "class_names") if k in before},
        "inputs": len(ways) + len(failed),
    }
    rows: list[dict[str, Any]] = [{"id": i, "status": "failed", "error": error} for i, error in failed.items()]
    with outputs.Kept(lambda: files.write_json(arguments.output / "summary.json", {**summary, "files": rows})) as write:
        write()
        for case_id in cli.progress(list(ways), "cases"):
            cli.stop.check()
            rows.append(_one(case_id, (readers, weights, spec.fusion, ways[case_id]), steps, arguments))
            write()
    if failed:
        say(f"\n{len(ways)} cases done, {len(failed)} failed:")
        say("\n".join(f"  {case_id}: {error}" for case_id, error in failed.items()))
    return PARTIAL if failed else DONE


def _require_free(ids: Sequence[str], first: Reader, arguments: argparse.Namespace) -> None:
    """Raise UserError where an answer would replace the image that it was made from, or a file that is no answer."""
    from pipeline.inference import outputs

    seen = {i: first.look(i).facts for i in ids}
    outputs.require_apart((Path(p) for facts in seen.values() for p in facts.get("image", ())), arguments.output)
    names = [n for i, facts in seen.items() for n in outputs.names(i, facts["task"], facts["suffix"], arguments.save_soft)]
    outputs.require_own(arguments.output, names)
    if problem := outputs.too_long(arguments.output, names):
        raise UserError(f"--output {arguments.output}: {problem.removeprefix('its ')}. Rename that image and predict it again.")


def load_spec(path: Path) -> Spec:
    """Read an ensemble file. Raises ConfigError with every structural fault."""
    from pipeline.config import read_yaml, structure

    if not os.path.isfile(path):
        raise UserError(f"--spec {path}: no such file. Ensembles live in ensembles/*.yaml.")
    return structure(read_yaml(path), Spec, str(path))


def member_folders(members: Sequence[Member]) -> list[tuple[Path, float]]:
    """Folders of predictions and their weights; a member's weight is shared equally by its folds. Raises UserError for absent ones."""
    check_weights(members)
    pairs = [(folder, m.weight / max(1, len(m.folds))) for m in members for folder in _folders_of(m)]
    absent = [str(f) for f, _ in pairs if not os.path.isdir(f)]
    if absent:
        raise UserError(f"no such folder of predictions: {', '.join(absent)}. Write them with pipeline.predict --save-soft.")
    return pairs


def _folders_of(member: Member) -> list[Path]:
    return [member.run / f"fold_{n}" for n in member.folds] or [member.run]


def check_weights(members: Sequence[Member]) -> None:
    """Raise UserError for weights that make no mean."""
    if not members:
        raise UserError("the ensemble names no members. Give at least one folder of predictions or run.")
    require_weights([m.weight for m in members])


# --- members that are runs ---------------------------------------------------------------------------------------------


def predicted(members: Sequence[Member], arguments: argparse.Namespace) -> tuple[tuple[Member, ...], dict[str, str]]:
    """The members, those that are runs replaced by folders of their predictions of ``--input``, made now unless they are there.

    Also the ids of images that could not be predicted, with where that is told. Raises UserError for a run without ``--input``.
    """
    check_weights(members)
    data: Sequence[Path] = arguments.input or ()
    runs = [m for m in members if is_run(m)]
    if runs and not data:
        raise UserError(f"{runs[0].run} is a run, which has predicted its own held-out cases only. {_cure(runs[0])}")
    own, out = _own_folders(members, arguments.output), list(members)
    failed: dict[str, str] = {}
    for n, folder in own.items():
        lost = predict_member(members[n], data, folder, arguments.device)
        failed |= {i: f"could not be predicted by {members[n].run}, see {folder / 'summary.json'}" for i in lost if i not in failed}
        out[n] = Member(run=folder, weight=members[n].weight)
    return tuple(out), failed


def _own_folders(members: Sequence[Member], output: Path) -> dict[int, Path]:
    """Where the predictions of those members that are runs go, by the member's number."""
    found, names = {}, collections.Counter()
    for n, member in enumerate(members):
        if is_run(member):
            name = Path(os.path.realpath(member.run)).name
            names[name] += 1
            found[n] = output / "members" / (name if names[name] == 1 else f"{name}-{names[name]}")
    return found


def is_run(member: Member) -> bool:
    """Whether the member is a run, or a fold of one: it holds models, and no predictions lie where they would be looked for."""
    folders = _folders_of(member)
    models = [*member.run.glob("*_model.safetensors"), *member.run.glob("fold_*/*_model.safetensors")]
    return bool(models) and not any(os.path.isdir(f / "soft") for f in folders)


def _cure(member: Member) -> str:
    where = _folders_of(member)
    commands = [f"python -m pipeline.predict --checkpoint {w} --input DIR --output PREDICTIONS/{w.name} --save-soft" for w in where]
    return "Add --input DIR to predict those images first, or do it yourself and name PREDICTIONS as the member:\n  " + "\n  ".join(
        commands
    )


def predict_member(member: Member, data: Sequence[Path], folder: Path, device: str) -> list[str]:
    """Predict the images of ``data`` with a run's folds into ``folder``; what is there from the same models and files is kept.

    Returns the ids of those that could not be predicted. Raises UserError where none could.
    """
    from pipeline import files, predict
    from pipeline.checks import limits
    from pipeline.config import to_dict
    from pipeline.inference import outputs, soft
    from pipeline.inference.models import load_facts
    from pipeline.inference.sliding_window import voice

    paths = [path for n in member.folds for path in predict.find_models(member.run / f"fold_{n}", None)]
    paths = paths or predict.find_models(member.run, None)
    networks, config = predict.load_models(paths)
    limits.of_prediction(config, paths[0])
    where, facts = cli.device(device), load_facts(paths[0])
    predictor = predict.Predictor(
        config=config,
        speak=voice([n.to(where) for n in networks], config, where),
        models=tuple(str(p) for p in paths),
        device=where,
        output=folder,
        save_soft=True,
        channels=facts.channels[0],
        trained_on=facts.trained_on,
    )
    inputs = predict.find_inputs(data, predictor)
    if not (folder / MADE_FROM).is_file():  # else it is ours, though the first answer may have been its last
        predict.require_free(predictor, inputs)
    record = {
        "models": {str(p): files.sha256(p) for p in paths},
        "predict": to_dict(config)["predict"],
        "inputs": {c.id: [_stamp(p) for p in c.image] for c in inputs},
    }
    with outputs.owned(folder, say):
        done = _still_good(folder, record)
        say(f"{member.run}: {len(done)} of {len(inputs)} images are predicted already")
        todo = [c for c in inputs if c.id not in done]
        if todo:
            predict.predict_all(predictor, todo)
        present = set(soft.ids(folder / "soft"))
    if not present:
        raise UserError(f"{folder}: no image could be predicted, see above. Mend or remove them, then run again.")
    return [c.id for c in inputs if c.id not in present]


def _stamp(path: Path) -> list[Any]:
    """What changes when an image does. Of one that is a folder all that is in it counts."""
    from pipeline.inference import blocks

    return blocks.stamp(path) if path.is_dir() else [path.name, path.stat().st_size, path.stat().st_mtime_ns]


def _still_good(folder: Path, record: Mapping[str, Any]) -> set[str]:
    """Ids of ``folder`` that were predicted from the same models and files; all other predictions are removed and ``record`` is written."""
    from pipeline import files
    from pipeline.inference import soft

    path = folder / MADE_FROM
    before = _made_from(path) if path.is_file() and (folder / "summary.json").is_file() else {}
    same = all(before.get(k) == record[k] for k in ("models", "predict"))
    present = soft.ids(folder / "soft")
    good = {i for i in present if same and before["inputs"].get(i, ()) == record["inputs"].get(i)}
    for case_id in set(present) - good:
        soft.array_path(folder / "soft", case_id).unlink()
    files.write_json(path, record)
    return good


def _made_from(path: Path) -> dict[str, Any]:
    """What is there was made from this; where that cannot be read nothing is known, and all is predicted again."""
    from pipeline import documents, files

    try:
        return files.read_document(path, documents.MadeFrom, "All is predicted again")
    except files.FileError as error:
        say(f"warning: {error}")
        return {}


# --- members that are folders of predictions ---------------------------------------------------------------------------


def first_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a prediction folder, or nothing. Raises UserError for one that no command of this package writes."""
    from pipeline import documents, files

    path = folder / "summary.json"
    if not path.is_file():
        return {}
    cure = "Predict again, or take it away: then --spec names the post-processing"
    try:
        found = files.read_document(path, documents.Predictions, cure)
    except files.FileError as error:
        raise files.FileError(path, f"is no summary of predictions ({error.problem})", cure) from None
    for n, step in enumerate(found.get("postprocess", ())):
        if unknown := sorted(set(step) - {"name", "options"}):
            problem = f"postprocess.{n} has the key {files.shown(unknown[0])}"
            raise files.FileError(path, f"is no summary of predictions ({problem}, which means nothing here)", cure)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a member's case before it is fused: its file, shape ``(K, *S)``, geometry and facts."""

    path: Path
    shape: tuple[int, ...]
    geometry: Geometry
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Cases of one member: ids, and a function from id to (array ``(K, *S)`` soft or ``(1, *S)`` hard, its facts)."""

    ids: tuple[str, ...]
    load: Callable[[str], tuple[Any, dict[str, Any]]]
    look: Callable[[str], Seen]
    """Without the values of answer files; those of soft predictions are checked. Raises UserError where they cannot be used."""


def open_member(folder: Path, fusion: str) -> Reader:
    """Soft predictions where there are any; otherwise, for votes, the answers themselves."""
    from pipeline.inference import soft

    found = soft.ids(folder / "soft")
    if found:
        place = folder / "soft"
        return Reader(ids=tuple(found), load=lambda case_id: _soft(place, case_id), look=lambda case_id: _look_at_soft(place, case_id))
    answers = answer_files(folder)
    if fusion != "vote":
        cure = "Run pipeline.predict with --save-soft" + (", or fuse the answers with --fusion vote." if answers else ".")
        raise UserError(f"{folder}: holds no soft predictions. {cure}")
    return Reader(ids=tuple(answers), load=lambda case_id: _hard(answers[case_id]), look=lambda case_id: _look_at_answer(answers[case_id]))


def answer_files(folder: Path) -> dict[str, Path]:
    """Answers in a prediction folder by id, visualisations and overlays left out. Raises UserError where two have one id."""
    from pipeline import files
    from pipeline.data import cases
    from pipeline.tasks import is_companion

    found: dict[str, Path] = {}
    for path in sorted(cases.images(folder)):
        name = files.case_id(path)
        if is_companion(name):
            continue
        if name in found:
            raise UserError(f"{folder}: {found[name].name} and {path.name} are both called {name}. Keep one file per id.")
        found[name] = path
    return found


def _soft(folder: Path, case_id: str) -> tuple[Any, dict[str, Any]]:
    from pipeline.inference import soft

    prediction, facts = soft.load(folder, case_id)
    usual = {"task": "labels", "suffix": ".nii.gz" if prediction.geometry.format == "nifti" else ".tif"}  # of what training wrote
    return prediction.soft, {**usual, **facts, "geometry": prediction.geometry}


def _look_at_soft(folder: Path, case_id: str) -> Seen:
    from pipeline.inference import soft

    soft.require_sound(folder, case_id)
    array, facts = _soft(folder, case_id)
    lost = [key for key in ("scale", "dtype") if facts["task"] == "image" and facts.get(key) is None]
    if lost:
        path = soft.array_path(folder, case_id).with_suffix(".json")
        raise UserError(f"{path}: lacks {' and '.join(lost)}, without which no image can be written. Predict it with pipeline.predict.")
    return Seen(path=soft.array_path(folder, case_id), shape=tuple(array.shape), geometry=facts["geometry"], facts=facts)


def _hard(path: Path) -> tuple[Any, dict[str, Any]]:
    from pipeline import files
    from pipeline.data import labels

    array, geometry = files.read(path, files.dims_of(path), labels=True)
    try:
        array = labels.class_numbers(path, array)
        wrong = array[(array != 0) & (array != 1)]
        problem = f"holds {wrong[0]}" if wrong.size else None
    except files.FileError as error:
        problem = error.problem
    if problem is not None:
        raise UserError(f"{path}: {problem}. A vote over answer files takes 0/1 masks; save soft predictions instead.")
    return array, {"geometry": geometry, "suffix": files.suffix(path), "task": "labels"}


def _look_at_answer(path: Path) -> Seen:
    from pipeline import files

    dims = files.dims_of(path)
    facts = {"suffix": files.suffix(path), "task": "labels"}
    return Seen(path=path, shape=files.probe(path, dims).shape, geometry=files.geometry(path, dims), facts=facts)


def looked_at(ids: Sequence[str], readers: Sequence[Reader]) -> tuple[dict[str, list[Alignment]], dict[str, str]]:
    """How each member's array is laid onto the first member's grid, by case: flips and axis order, exactly.

    Also the cases of which a file cannot be used, with what is wrong. Raises UserError, with all that is wrong, where members do not fit
    each other, and where no case is left.
    """
    ways: dict[str, list[Alignment]] = {}
    damaged: dict[str, str] = {}
    faults: dict[str, str] = {}
    moved: collections.Counter[Path] = collections.Counter()
    for case_id in cli.progress(ids, "looking at members"):
        cli.stop.check()
        try:
            first, *others = [reader.look(case_id) for reader in readers]
        except UserError as error:
            damaged[case_id] = str(error)
            continue
        try:
            ways[case_id] = [_laid_onto(first, seen) for seen in (first, *others)]
        except UserError as error:
            faults[case_id] = str(error)
            continue
        moved.update(seen.path.parent for seen, way in zip((first, *others), ways[case_id], strict=True) if not way.identity)
    if faults or not ways:
        faults |= damaged
        more = f"\n  ... {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        shown = [f"case {case_id}: {error}" for case_id, error in list(faults.items())[:SHOWN]]
        raise UserError("members cannot be fused:\n  " + "\n  ".join(shown) + more)
    for folder, count in moved.items():
        say(f"{folder}: {count} cases have other axes than the first member's; they are brought to those exactly")
    return ways, damaged


def _laid_onto(first: Seen, other: Seen) -> Alignment:
    """The flips and axis order from one member's grid to the first one's. Raises UserError, naming both files, where there are none."""
    from pipeline.grid import alignment, grid_of

    pair = f"{other.path} and {first.path}"
    tasks = [seen.facts.get("task", "labels") for seen in (other, first)]
    if tasks[0] != tasks[1] or other.shape[0] != first.shape[0]:
        raise UserError(f"{pair} hold other things: {tasks[0]} of {other.shape[0]} channels and {tasks[1]} of {first.shape[0]}.")
    if tasks[0] == "image" and not _same_scale(other.facts.get("scale"), first.facts.get("scale")):
        raise UserError(f"{pair} hold intensities on different scales (data.normalise). Fuse networks that were trained alike.")
    dims = len(first.shape) - 1
    here, there = grid_of(other.geometry, dims), grid_of(first.geometry, dims)
    if here.family != there.family:
        raise UserError(f"{pair} are answers to {here.family} and {there.family} files, whose axes lie in different orders. {FROM_ONE}")
    way = alignment(here, other.shape[1:], there, first.shape[1:]) if len(other.shape) == len(first.shape) else None
    if way is None:
        what = "lie in different places of the world" if sorted(other.shape) == sorted(first.shape) else "disagree in shape"
        raise UserError(f"{pair} {what} ({_size(other)} and {_size(first)} voxels). {FROM_ONE}")
    return way


FROM_ONE = "They were made from different inputs: predict the same files with every member."


def _size(seen: Seen) -> str:
    return " x ".join(map(str, seen.shape[1:]))


def _same_scale(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether intensities mean the same; those of older files, which do not say, are taken to."""
    import numpy as np

    if not one or not other:
        return True
    return all(np.shape(one[k]) == np.shape(other[k]) and np.allclose(one[k], other[k], rtol=1e-3) for k in ("low", "high", "to"))


def common_ids(readers: Sequence[Reader], folders: Sequence[Path], failed: Collection[str] = ()) -> list[str]:
    """The ids that all members hold, without the ``failed`` ones. Raises UserError naming every member that lacks or adds another one."""
    union = set().union(*(r.ids for r in readers)) - set(failed)
    faults = [
        f"{folder}: lacks {', '.join(sorted(union - set(r.ids))[:10])}"
        for r, folder in zip(readers, folders, strict=True)
        if union - set(r.ids)
    ]
    if faults or not union:
        raise UserError(
            "members do not hold the same cases:\n  "
            + "\n  ".join(faults or ["no predictions at all"])
            + "\nPredict the missing ones, or leave the member out."
        )
    return [i for i in readers[0].ids if i in union]


def _one(
    case_id: str,
    members: tuple[Sequence[Reader], Sequence[float], str, Sequence[Alignment]],
    steps: Sequence[Part],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Fuse, decide and write one case."""
    from pipeline.inference import soft as softs
    from pipeline.predict import finish
    from pipeline.records import Prediction

    readers, weights, fusion, ways = members
    loaded = [r.load(case_id) for r in readers]
    facts: Mapping[str, Any] = loaded[0][1]
    say(f"\nProcessing {case_id}")
    fused = fuse([way.apply(a) for way, (a, _) in zip(ways, loaded, strict=True)], weights, fusion, case_id)
    prediction = Prediction(case_id=case_id, soft=fused, geometry=facts["geometry"])
    if arguments.save_soft:
        softs.save(arguments.output / "soft", prediction, {k: v for k, v in facts.items() if k != "geometry"})
    answer = finish(steps, prediction, arguments.output, facts, _image(facts, fused.shape[1:]))
    return {"id": case_id, "status": "done", "shape": list(fused.shape[1:]), **answer}


def _image(facts: Mapping[str, Any], size: tuple[int, ...]) -> np.ndarray | None:
    """The 2D input that a label answer is shown over, read again; None where ``facts`` do not name its files, or these are gone or of another size."""
    from pipeline.data.store import load_image
    from pipeline.files import FileError
    from pipeline.records import Case

    paths = tuple(Path(p) for p in facts.get("image", ()))
    if len(size) != 2 or facts["task"] != "labels" or not paths:
        return None
    try:
        image, _ = load_image(Case(id="", image=paths), 2)
    except FileError:
        return None
    return image if image.shape[1:] == size else None


if __name__ == "__main__":
    raise SystemExit(main())
