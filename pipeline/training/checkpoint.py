"""Resumable states: everything that training needs to go on as if it had never stopped, in files
that are whole or absent.

A state's file name carries the epoch (and within one the step) and the hash of its bytes, so that a
damaged one is recognised and passed over.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline import documents, files
from pipeline.files.documents import problem as documents_problem
from pipeline.inference.models import CheckpointError, decode, encode

logger = logging.getLogger(__name__)

STATE = re.compile(r"epoch_(\d{5,})(?:_step_(\d{6,}))?-[0-9a-f]{16}")
"""Name of a state file: whole epochs done, within the next one the steps done, the beginning of the
SHA-256 of its bytes.
"""

STATE_SUGGESTION = "Remove it, so that the one before it is taken, or start over with --fresh."

KEEP = 2
"""Newest states kept; the older one is the way back when the newest is damaged."""


def save_state(
    folder: Path,
    done: tuple[int, int],
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
) -> Path:
    """Add the state after ``done`` (whole epochs, steps of the next one) to ``folder``; of the
    others only the ``KEEP - 1`` before it stay.

    States as far or further were passed over when the run was continued, so they are damaged.
    """
    content = encode(tensors, facts)
    epoch, step = done
    name = f"epoch_{epoch:05d}" + (f"_step_{step:06d}" if step else "")
    path = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, content)
    others = {p: reached for p, reached in _states(folder).items() if p != path}
    before = [p for p, reached in others.items() if reached < done][: KEEP - 1]
    for old in others.keys() - before:
        old.unlink()
    return path


def load_state(
    folder: Path, warn: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The newest undamaged state, or None where there is none at all.

    Raises CheckpointError when states exist but all are damaged: starting over silently would lose
    the user's hours.
    """
    states = _states(folder)
    for path in states:
        digest = path.stem.rpartition("-")[2]
        if files.sha256(path)[:16] == digest:
            return decode(path)
        if warn:
            logger.warning(
                f"{path} is damaged (its bytes do not match its name); trying the state before it"
            )
    if states:
        raise CheckpointError(
            f"{folder}: all {len(states)} saved states are damaged. Restore one from a backup, or"
            " start over with --fresh."
        )
    return None


def load_fold(
    folder: Path, warn: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """As :func:`load_state`, of a fold's training.

    Raises CheckpointError for what no training wrote, too.
    """
    loaded = load_state(folder, warn)
    found = None if loaded is None else documents_problem(loaded[1], documents.StateHeader)
    if found is not None:
        raise CheckpointError(
            f"{folder}: the newest state is none of a fold: its header: {found}. {STATE_SUGGESTION}"
        )
    return loaded


def _states(folder: Path) -> dict[Path, tuple[int, int]]:
    """State files and what each has done, the one that came furthest first; among equals the name
    decides, never the clock.
    """
    names = [(p, STATE.fullmatch(p.stem)) for p in folder.glob("epoch_*.safetensors")]
    done = [(p, (int(name[1]), int(name[2] or 0))) for p, name in names if name]
    return dict(sorted(done, key=lambda entry: (entry[1], entry[0].name), reverse=True))


def with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """``optimizer.state_dict()`` as flat tensors ``optimizer/<index>/<name>`` and JSON-able rest."""
    tensors, rest = {}, {}
    for index, entry in state["state"].items():
        for name, value in entry.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                rest.setdefault(str(index), {})[name] = value
    return tensors, {"state": rest, "groups": state["param_groups"]}


def restore_optimizer(
    tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]
) -> dict[str, Any]:
    """Inverse of :func:`flatten_optimizer`."""
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in rest["state"].items()}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/", 2)
            state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": rest["groups"]}
