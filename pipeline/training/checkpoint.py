"""Resumable states: all that training needs to go on as if it had never stopped.

A state is a file that is whole or absent. Its name carries the epoch (and within one the step) and
the hash of its bytes, so that a damaged one is recognised and passed over.
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
"""Stem of a state file: epochs done, steps done of the next one, first digits of its SHA-256."""

STATE_SUGGESTION = "Remove it, so that the one before it is taken, or start over with --fresh."
"""Last sentence of errors about a state that cannot be used."""

KEEP = 2
"""Number of newest states kept; the older one is used when the newest is damaged."""


def save_state(
    folder: Path,
    done: tuple[int, int],
    tensors: Mapping[str, torch.Tensor],
    header: Mapping[str, Any],
) -> Path:
    """Write a state into a folder of states, and remove those that it replaces.

    Of the others only the ``KEEP - 1`` before it stay. States as far or further were passed over
    when the run was continued, so they are damaged.

    Args:
        folder: is created where it is missing.
        done: whole epochs that are done, and steps of the next one.
        tensors: tensors by name.
        header: the rest, as JSON holds it.

    Returns:
        Path of the new state.
    """
    content = encode(tensors, header)
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
    """Load the newest undamaged state.

    Args:
        folder: holds the states; it may be missing.
        warn: log a warning for each damaged state that is passed over.

    Returns:
        Tensors by name and the rest; None where there is no state at all.

    Raises:
        CheckpointError: where states exist but all are damaged: starting over silently would lose
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
    """Load the newest undamaged state of a fold's training.

    Args:
        folder: holds the states; it may be missing.
        warn: log a warning for each damaged state that is passed over.

    Returns:
        As :func:`load_state`.

    Raises:
        CheckpointError: where all states are damaged, or the newest is no state of a fold.
    """
    loaded = load_state(folder, warn)
    found = None if loaded is None else documents_problem(loaded[1], documents.StateHeader)
    if found is not None:
        raise CheckpointError(
            f"{folder}: the newest state is none of a fold: its header: {found}. {STATE_SUGGESTION}"
        )
    return loaded


def _states(folder: Path) -> dict[Path, tuple[int, int]]:
    """State files with the epochs and steps done, furthest first; ties by name, never by time."""
    names = [(p, STATE.fullmatch(p.stem)) for p in folder.glob("epoch_*.safetensors")]
    done = [(p, (int(name[1]), int(name[2] or 0))) for p, name in names if name]
    return dict(sorted(done, key=lambda entry: (entry[1], entry[0].name), reverse=True))


def with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Select tensors by the beginning of their names.

    Args:
        prefix: beginning of the names.
        tensors: tensors by name.

    Returns:
        The tensors whose names begin with ``prefix``, by the rest of their names.
    """
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors and what JSON can hold.

    Args:
        state: ``optimizer.state_dict()``.

    Returns:
        Tensors by ``optimizer/<index>/<name>``, and the rest: ``state`` by index as text, and
        ``groups``, the parameter groups.
    """
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
    """Undo :func:`flatten_optimizer`.

    Args:
        tensors: tensors by name; others than the optimiser's are left out.
        rest: what JSON held.

    Returns:
        A state for ``optimizer.load_state_dict()``.
    """
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in rest["state"].items()}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/", 2)
            state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": rest["groups"]}
