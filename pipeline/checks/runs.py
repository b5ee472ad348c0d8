"""A run that is there already: its metrics version, and whether a start would go on with the same config and data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, difference, read_yaml, to_dict
from pipeline.records import METRICS_VERSION, Case

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
    known = files.read_json(folder / "environment.json")
    return int(known.get("metrics_version", 1)) if isinstance(known, dict) else 1


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
    from pipeline import files

    if not (folder / "config.yaml").is_file() or not (folder / "cases.json").is_file():
        return []
    before = files.read_json(folder / "cases.json")
    return [
        *(f"case {i}: removed" for i in before if i not in listing),
        *(f"case {i}: added" for i in listing if i not in before),
        *(f"case {i}: content changed" for i in listing if i in before and before[i]["content"] != listing[i]["content"]),
    ]


def refusal(folder: Path, changes: Sequence[str]) -> str:
    """What a user is told who would continue a run under other conditions."""
    more = f"\n  ... {len(changes) - 20} more" if len(changes) > 20 else ""
    return (
        f"{folder} holds a run with another config or other data:\n  "
        + "\n  ".join(changes[:20])
        + more
        + "\nUndo the change, choose another --out, or start over with --fresh (the old run is kept)."
    )
