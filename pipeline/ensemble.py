"""Fuse the soft predictions of several folds or runs, case by case, and decide.

    python -m pipeline.ensemble --fold-dirs predictions/fold_0 predictions/fold_1 --output predictions/ensemble
    python -m pipeline.ensemble --spec ensembles/NAME.yaml --input DIR --output predictions/ensemble

Members are memory-mapped and summed slab by slab: memory does not depend on their number.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import cli
from pipeline.cli import say
from pipeline.engine.fusion import FUSIONS, fuse
from pipeline.records import DONE, Member, Part, UserError

if TYPE_CHECKING:
    import numpy as np


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
    from pipeline import files, postprocess

    spec = load_spec(arguments.spec) if arguments.spec else Spec(members=tuple(Member(run=d) for d in arguments.fold_dirs))
    spec = dataclasses.replace(spec, fusion=arguments.fusion or spec.fusion)
    if spec.fusion not in FUSIONS:
        raise UserError(f"fusion {spec.fusion!r} is unknown; known: {', '.join(FUSIONS)}.")
    if spec.postprocess is not None:
        postprocess.check(spec.postprocess)
    folders = member_folders(predicted(spec.members, arguments))
    if arguments.output.resolve() in [f.resolve() for f, _ in folders]:
        raise UserError(f"--output {arguments.output} is a member's folder; its answers would be overwritten. Choose another.")
    before = first_summary(folders[0][0])
    steps = spec.postprocess if spec.postprocess is not None else tuple(Part(**p) for p in before.get("postprocess", ()))
    if before.get("task", "labels") == "labels":
        postprocess.check(steps)
    readers = [open_member(folder, spec.fusion) for folder, _ in folders]
    ids = common_ids(readers, [f for f, _ in folders])
    weights = [w for _, w in folders]
    say(f"{len(ids)} cases, {len(readers)} members, fusion {spec.fusion}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for case_id in cli.progress(ids, "cases"):
        cli.stop.check()
        rows.append(_one(case_id, (readers, weights, spec.fusion), steps, arguments))
        files.write_json(
            arguments.output / "summary.json",
            {
                "task": before.get("task", "labels"),
                "members": [{"folder": str(f), "weight": w} for f, w in folders],
                "fusion": spec.fusion,
                "postprocess": [dataclasses.asdict(s) for s in steps],
                **{k: before[k] for k in ("ignore_label",) if k in before},
                "files": rows,
            },
        )
    return DONE


def load_spec(path: Path) -> Spec:
    """Read an ensemble file. Raises ConfigError with every structural fault."""
    from pipeline.config import read_yaml, structure

    if not path.is_file():
        raise UserError(f"--spec {path}: no such file. Ensembles live in ensembles/*.yaml.")
    return structure(read_yaml(path), Spec, str(path))


def member_folders(members: Sequence[Member]) -> list[tuple[Path, float]]:
    """Folders of predictions and their weights; a member's weight is shared equally by its folds. Raises UserError for absent ones."""
    check_weights(members)
    pairs = [(m.run / f"fold_{n}" if m.folds else m.run, m.weight / max(1, len(m.folds))) for m in members for n in (m.folds or (0,))]
    absent = [str(f) for f, _ in pairs if not f.is_dir()]
    if absent:
        raise UserError(f"no such folder of predictions: {', '.join(absent)}. Write them with pipeline.predict --save-soft.")
    return pairs


def check_weights(members: Sequence[Member]) -> None:
    """Raise UserError for weights that make no mean."""
    weights = [m.weight for m in members]
    if any(w < 0 for w in weights) or sum(weights) <= 0:
        raise UserError(f"member weights {weights} must not be negative, and one must be positive.")


# --- members that are runs ---------------------------------------------------------------------------------------------


def predicted(members: Sequence[Member], arguments: argparse.Namespace) -> tuple[Member, ...]:
    """The members, those that are runs replaced by folders of their predictions of ``--input``, made now unless they are there.

    Raises UserError for a run without ``--input``, and for an ``--output`` that is the folder of the inputs.
    """
    check_weights(members)
    data: Sequence[Path] = arguments.input or ()
    runs = [m for m in members if is_run(m)]
    if runs and not data:
        raise UserError(f"{runs[0].run} is a run, which has predicted its own held-out cases only. {_cure(runs[0])}")
    if arguments.output.resolve() in [(p.parent if p.is_file() else p).resolve() for p in data]:
        raise UserError(f"--output {arguments.output} is the folder of the inputs, which would be overwritten. Choose another.")
    out, names = [], collections.Counter()
    for member in members:
        if data and is_run(member):
            name = member.run.resolve().name
            names[name] += 1
            folder = arguments.output / "members" / (name if names[name] == 1 else f"{name}-{names[name]}")
            predict_member(member, data, folder, arguments.device)
            member = Member(run=folder, weight=member.weight)
        out.append(member)
    return tuple(out)


def is_run(member: Member) -> bool:
    """Whether the member is a run, or a fold of one: it holds models, and no predictions lie where they would be looked for."""
    folders = [member.run / f"fold_{n}" for n in member.folds] or [member.run]
    models = [*member.run.glob("*_model.safetensors"), *member.run.glob("fold_*/*_model.safetensors")]
    return bool(models) and not any((f / "soft").is_dir() for f in folders)


def _cure(member: Member) -> str:
    where = [member.run / f"fold_{n}" for n in member.folds] or [member.run]
    commands = [f"python -m pipeline.predict --checkpoint {w} --input DIR --output PREDICTIONS/{w.name} --save-soft" for w in where]
    return "Add --input DIR to predict those images first, or do it yourself and name PREDICTIONS as the member:\n  " + "\n  ".join(
        commands
    )


def predict_member(member: Member, data: Sequence[Path], folder: Path, device: str) -> None:
    """Predict the images of ``data`` with a run's folds into ``folder``; what is there from the same models and files is kept.

    Raises UserError where an image could not be predicted.
    """
    from pipeline import files, predict
    from pipeline.config import to_dict
    from pipeline.engine.inference import voice

    paths = [path for n in member.folds for path in predict.find_models(member.run / f"fold_{n}", None)]
    paths = paths or predict.find_models(member.run, None)
    networks, config = predict.load_models(paths)
    inputs = predict.find_inputs(data, config)
    record = {
        "models": {str(p): files.sha256(p) for p in paths},
        "predict": to_dict(config)["predict"],
        "inputs": {c.id: [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in c.image] for c in inputs},
    }
    done = _still_good(folder, record)
    say(f"{member.run}: {len(done)} of {len(inputs)} images are predicted already")
    where = cli.device(device)
    predictor = predict.Predictor(
        config=config,
        speak=voice([n.to(where) for n in networks], config, where),
        models=tuple(str(p) for p in paths),
        device=where,
        output=folder,
        save_soft=True,
    )
    todo = [c for c in inputs if c.id not in done]
    if todo and predict.predict_all(predictor, todo) != DONE:
        raise UserError(f"{folder}: some images could not be predicted, see above. Mend or remove them, then run again.")


def _still_good(folder: Path, record: Mapping[str, Any]) -> set[str]:
    """Ids of ``folder`` that were predicted from the same models and files; all other predictions are removed and ``record`` is written."""
    from pipeline import files
    from pipeline.engine import soft

    path = folder / "made_from.json"
    before = files.read_json(path) if path.is_file() and (folder / "summary.json").is_file() else {}
    same = all(before.get(k) == record[k] for k in ("models", "predict"))
    present = soft.ids(folder / "soft")
    good = {i for i in present if same and before["inputs"].get(i, ()) == record["inputs"].get(i)}
    for case_id in set(present) - good:
        (folder / "soft" / f"{case_id}.npy").unlink()
    files.write_json(path, record)
    return good


# --- members that are folders of predictions ---------------------------------------------------------------------------


def first_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a prediction folder, or nothing."""
    from pipeline import files

    return files.read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Cases of one member: ids, and a function from id to (array ``(K, *S)`` soft or ``(1, *S)`` hard, its facts)."""

    ids: tuple[str, ...]
    load: Callable[[str], tuple[Any, dict[str, Any]]]


def open_member(folder: Path, fusion: str) -> Reader:
    """Soft predictions where there are any; otherwise, for votes, the answers themselves."""
    from pipeline.engine import soft

    found = soft.ids(folder / "soft")
    if found:
        return Reader(ids=tuple(found), load=lambda case_id: _soft(folder / "soft", case_id))
    answers = answer_files(folder)
    if fusion != "vote":
        cure = "Run pipeline.predict with --save-soft" + (", or fuse the answers with --fusion vote." if answers else ".")
        raise UserError(f"{folder}: holds no soft predictions. {cure}")
    return Reader(ids=tuple(answers), load=lambda case_id: _hard(answers[case_id]))


def answer_files(folder: Path) -> dict[str, Path]:
    """Answers in a prediction folder by id, visualisations and overlays left out."""
    from pipeline import files
    from pipeline.tasks import is_companion

    found = [p for p in sorted(folder.iterdir()) if p.is_file() and files.is_image(p)]
    return {files.stem(p): p for p in found if not is_companion(files.stem(p))}


def _soft(folder: Path, case_id: str) -> tuple[Any, dict[str, Any]]:
    from pipeline.engine import soft

    prediction, facts = soft.load(folder, case_id)
    return prediction.soft, {**facts, "geometry": prediction.geometry}


def _hard(path: Path) -> tuple[Any, dict[str, Any]]:
    from pipeline import files

    array, geometry = files.read(path, files.dims_of(path))
    if int(array.max()) > 1:
        raise UserError(
            f"{path}: a vote over answer files takes 0/1 masks, this one holds {int(array.max())}. Save soft predictions instead."
        )
    return array, {"geometry": geometry, "suffix": files.suffix(path), "task": "labels"}


def common_ids(readers: Sequence[Reader], folders: Sequence[Path]) -> list[str]:
    """The ids that all members hold. Raises UserError naming every member that lacks or adds one."""
    union = set().union(*(r.ids for r in readers))
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
    return list(readers[0].ids)


def _one(
    case_id: str, members: tuple[Sequence[Reader], Sequence[float], str], steps: Sequence[Part], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Fuse, decide and write one case."""
    from pipeline.engine import soft as softs
    from pipeline.predict import finish
    from pipeline.records import Prediction

    readers, weights, fusion = members
    loaded = [r.load(case_id) for r in readers]
    facts: Mapping[str, Any] = loaded[0][1]
    say(f"\nProcessing {case_id}")
    fused = fuse([a for a, _ in loaded], weights, fusion, case_id)
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
