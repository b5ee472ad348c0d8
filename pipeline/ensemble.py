"""Fuse the soft predictions of several folds or runs, case by case, and decide.

    python -m pipeline.ensemble --fold-dirs predictions/fold_0 predictions/fold_1 --output predictions/ensemble

Members are memory-mapped and summed slab by slab: memory does not depend on their number.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import cli
from pipeline.cli import say
from pipeline.records import DONE, Member, Part, UserError

SLAB = 32
"""Rows along the first space axis that are fused at a time."""


def parser() -> argparse.ArgumentParser:
    p = cli.parser("ensemble", "Fuse predictions of several folds or runs.")
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--fold-dirs", type=Path, nargs="+", metavar="DIR", help="folders written by pipeline.predict --save-soft")
    which.add_argument("--spec", type=Path, help="ensembles/NAME.yaml: members, weights, fusion, post-processing")
    p.add_argument("--output", type=Path, required=True, help="folder for the answers")
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
    """Each names a folder of predictions (``run``), or with ``folds: [0, 1]`` its ``fold_0``, ``fold_1``, and its weight."""
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
    folders = member_folders(spec.members)
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
    pairs = [(m.run / f"fold_{n}" if m.folds else m.run, m.weight / max(1, len(m.folds))) for m in members for n in (m.folds or (0,))]
    absent = [str(f) for f, _ in pairs if not f.is_dir()]
    if absent:
        raise UserError(f"no such folder of predictions: {', '.join(absent)}. Write them with pipeline.predict --save-soft.")
    if any(w < 0 for _, w in pairs) or sum(w for _, w in pairs) <= 0:
        raise UserError(f"member weights {[w for _, w in pairs]} must not be negative, and one must be positive.")
    return pairs


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
    """Answers in a prediction folder by id, visualisations left out."""
    from pipeline import files

    found = [p for p in sorted(folder.iterdir()) if p.is_file() and files.is_image(p)]
    return {files.stem(p): p for p in found if not files.stem(p).endswith("_visualization")}


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
    return {"id": case_id, "status": "done", "shape": list(fused.shape[1:]), **finish(steps, prediction, arguments.output, facts)}


def fuse(arrays: Sequence[Any], weights: Sequence[float], fusion: str, case_id: str) -> Any:
    """Weighted fusion of arrays ``(K, *S)``, float32. Raises UserError when their shapes differ."""
    import numpy as np

    shapes = {tuple(int(n) for n in a.shape) for a in arrays}
    if len(shapes) > 1:
        raise UserError(f"case {case_id}: members disagree in shape: {sorted(shapes)}. They were made from different inputs or configs.")
    shares = np.asarray(weights, np.float32) / np.float32(sum(weights))
    into, back = FUSIONS[fusion]
    out = np.empty(arrays[0].shape, np.float32)
    for first in range(0, arrays[0].shape[1], SLAB):
        rows = slice(first, first + SLAB)
        total = np.zeros(out[:, rows].shape, np.float32)
        for array, share in zip(arrays, shares, strict=True):
            total += share * into(np.asarray(array[:, rows], np.float32))
        out[:, rows] = back(total)
    return out


def _logit(p: Any) -> Any:
    import numpy as np

    # float16 files hold exact 0 and 1; half a step away from them the logit is finite and no vote is absolute.
    p = np.clip(p, 2.0**-12, 1 - 2.0**-12)
    return np.log(p / (1 - p)) if len(p) == 1 else np.log(p)


def _unlogit(x: Any) -> Any:
    import numpy as np

    if len(x) == 1:
        return 1 / (1 + np.exp(-x))
    e = np.exp(x - x.max(0))
    return e / e.sum(0)


def _decision(p: Any) -> Any:
    import numpy as np

    return (
        (p >= 0.5).astype(np.float32)
        if len(p) == 1
        else (np.arange(len(p)).reshape(-1, *[1] * (p.ndim - 1)) == p.argmax(0)).astype(np.float32)
    )


def _same(x: Any) -> Any:
    return x


FUSIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "mean": (_same, _same),
    "logit": (_logit, _unlogit),
    "vote": (_decision, _same),
}


if __name__ == "__main__":
    raise SystemExit(main())
