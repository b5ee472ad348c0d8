"""A run that is there already: its metrics version, and whether a start would go on with the same config and data."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, Problem, difference, read_yaml, to_dict
from pipeline.records import METRICS_VERSION, Case, FoldResult, UserError

if TYPE_CHECKING:
    from pipeline.data.store import Facts

HARMLESS = ("data.root", "data.store", "data.workers", "train.preview_every", "train.save_steps", "train.timeout", "predict.batch")
"""Keys that may change between a run and its continuation: they change where things lie or how fast they go, not the result."""


def metrics_version(folder: Path) -> int:
    """Metrics version of a run folder: the one it began with, 1 where it began before there were any, the present one of a new run."""
    from pipeline import files

    if not (folder / "config.yaml").is_file():
        return METRICS_VERSION
    if not (folder / "environment.json").is_file():
        return 1
    path = folder / "environment.json"
    known = files.read_json(path)
    version = known.get("metrics_version", 1) if isinstance(known, dict) else known
    if type(version) is not int or not 1 <= version <= METRICS_VERSION:
        problem = f"holds the metrics version {files.shown(version)}; this package knows 1 to {METRICS_VERSION}"
        raise files.FileError(path, problem, "Continue with the version of the package that made the run, restore the file, or use --fresh")
    return version


def read_result(folder: Path) -> FoldResult | None:
    """The result that a fold left behind, or None. Raises FileError where the file is none."""
    data = _result(folder)
    return None if data is None else FoldResult(**{f.name: data[f.name] for f in dataclasses.fields(FoldResult)})


def read_scores(folder: Path) -> dict[str, Any]:
    """Scores of the held-out cases in a fold's result, by model and case; empty where there are none. Raises FileError as read_result."""
    return (_result(folder) or {}).get("cases", {})


def _result(folder: Path) -> dict[str, Any] | None:
    from pipeline import documents, files

    path = folder / "result.json"
    if not path.is_file():
        return None
    data = files.read_document(path, documents.Result, "Remove it: the fold goes on from its last state", "is no result of a fold")
    number = folder.name.removeprefix("fold_")
    if number.isdecimal() and number.isascii() and folder.name != f"fold_{data['fold']}":
        problem = f"fold is {data['fold']}, but it lies in {folder.name}"
        raise files.FileError(path, problem, "Put it back where it was, or remove it: the fold goes on from its last state")
    return data


def damaged(folder: Path) -> Iterator[Problem]:
    """Files of a run by which it would go on or be summed up, and which cannot be read."""
    folds = sorted(p.parent for p in folder.glob("fold_*/result.json"))
    for read in (functools.partial(metrics_version, folder), *(functools.partial(read_result, fold) for fold in folds)):
        try:
            read()
        except UserError as error:
            yield Problem(str(error))


def case_listing(cases: Sequence[Case], facts: Sequence[Facts]) -> dict[str, Any]:
    """``cases.json``: where each case lies, its group, and the hash of what it holds."""
    return {
        c.id: {
            "image": [str(p.resolve()) for p in c.image],
            "targets": {k: str(p.resolve()) for k, p in c.targets.items()},
            "group": c.group,
            "content": {"image": f.content, **f.target_contents},
        }
        for c, f in zip(cases, facts, strict=True)
    }


def changed_settings(folder: Path, config: Config) -> list[str]:
    """Lines ``key: old -> new`` for what differs from the config of the run in a way that matters."""
    if not (folder / "config.yaml").is_file():
        return []
    changes = difference(json.loads(json.dumps(read_yaml(folder / "config.yaml"))), to_dict(config))
    return [c for c in changes if c.partition(":")[0] not in HARMLESS]


def changed_cases(folder: Path, listing: Mapping[str, Any]) -> list[str]:
    """What happened since to the cases of the run; nothing where there is no run."""
    if not (folder / "config.yaml").is_file() or not (folder / "cases.json").is_file():
        return []
    before = read_listing(folder)
    return [
        *(f"case {i}: removed" for i in before if i not in listing),
        *(f"case {i}: added" for i in listing if i not in before),
        *(f"case {i}: content changed" for i in listing if i in before and before[i]["content"] != listing[i]["content"]),
    ]


def read_listing(folder: Path) -> dict[str, Any]:
    """``cases.json`` of a run. Raises FileError where it is none."""
    from pipeline import documents, files

    cure = "Restore it, or start over with pipeline.train --fresh"
    return files.read_document(folder / "cases.json", documents.Listing, cure, "is no list of a run's cases")


def refusal(folder: Path, changes: Sequence[str]) -> str:
    """What a user is told who would continue a run under other conditions."""
    more = f"\n  ... {len(changes) - 20} more" if len(changes) > 20 else ""
    return (
        f"{folder} holds a run with another config or other data:\n  "
        + "\n  ".join(changes[:20])
        + more
        + "\nUndo the change, choose another --out, or start over with --fresh (the old run is kept)."
    )
