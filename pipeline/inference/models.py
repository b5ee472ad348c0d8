"""Model files: safetensors with a JSON header that rebuilds their network, whole or absent, never
pickle; where a run keeps them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from pipeline import documents, files, networks, plugins
from pipeline.config import Config, ConfigError, difference, from_dict, to_dict
from pipeline.data import normalise
from pipeline.files.documents import problem as documents_problem
from pipeline.networks import outline as outlines
from pipeline.records import Checkpoint, UserError
from pipeline.runs import FoldFolder, RunFolder
from pipeline.tasks import TASKS

logger = logging.getLogger(__name__)

HEADER = "pipeline"
FACTS = ("config", "channels", "fold", "epoch", "score", "kind")
TRAINED_ON = "trained_on"
"""Key of the header that older files lack."""
PLUGINS = "plugins"
"""Key of the header of files whose config needs plugins."""

SHOWN = 300
"""Letters of another library's words that a message shows."""

ENTRIES = 2**14
"""Entries of the config in a model's header, all levels together; one that training takes has some
hundreds, and each costs time.
"""

KINDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of numbers that are read, as safetensors calls them."""


class CheckpointError(UserError):
    """A model file or state that cannot be used."""


def save_model(path: Path, checkpoint: Checkpoint) -> None:
    """Write a model file; equal contents give equal bytes."""
    header = {name: getattr(checkpoint, name) for name in (*FACTS, TRAINED_ON)}
    if checkpoint.plugins:
        header[PLUGINS] = checkpoint.plugins
    files.write_bytes(path, encode(checkpoint.weights, header))


def load_model(path: Path, own: bool = True) -> Checkpoint:
    """Read a model file.

    Raises CheckpointError for a missing, foreign or damaged file, and for weights that are no
    finite numbers.

    ``own``: weights are read only if they are those of the network that the header describes. Off,
    they are for another network, with which the caller has compared :func:`load_shapes`.
    """
    model = load_facts(path)
    if own:
        _require_own(path, model)
    weights = _tensors(path)
    model = dataclasses.replace(model, weights=weights)
    problem = nonfinite(weights)
    if problem is not None:
        raise CheckpointError(
            f"{path}: {problem}. Its training diverged, or the file was damaged: take another model"
            " of the run (--model best or swa, another fold, an epoch kept before), copy it again,"
            " or train it again, e.g. with a lower learning rate."
        )
    return model


def load_facts(path: Path) -> Checkpoint:
    """The header of a model file, without its weights.

    Raises CheckpointError like :func:`load_model`, but for what is wrong with weights.
    """
    return _checkpoint(path, _header(path))


def load_shapes(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a model file or a state without their values, on torch's meta device; nothing
    of them is read.
    """
    with _opened(path) as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        kinds = {name: (part.get_shape(), part.get_dtype()) for name, part in found.items()}
    odd = [f"{name} ({kind})" for name, (_, kind) in kinds.items() if kind not in KINDS]
    if odd:
        raise CheckpointError(
            f"{path}: holds numbers of a type that no network here has: {', '.join(odd[:5])}."
            " Convert them to float32, or train it again."
        )
    return {
        name: torch.empty(shape, dtype=KINDS[kind], device="meta")
        for name, (shape, kind) in kinds.items()
    }


def _require_own(path: Path, model: Checkpoint) -> None:
    """Raise UserError unless the file holds the weights of the network that its header describes,
    which is not built for that.
    """
    run = RunFolder(path.parent.parent)
    plugins.require(model.plugins, path, run.plugins if run.plugins_file.is_file() else None)
    config = from_dict(model.config, str(path))
    normal = config.data.normalise
    try:
        normalise.check(normal)
        wanted = TASKS[config.task].channels(config, model.channels[0])
        outline = outlines.bounded(config.network, *model.channels, config.data.dims)
    except ConfigError as error:
        raise CheckpointError(
            f"{path}: its header describes no model: {error} Take another model of the run, or"
            " train it again."
        ) from None
    if wanted != model.channels[1]:
        raise CheckpointError(
            f"{path}: its header says channels {list(model.channels)}, but its config gives"
            f" {wanted} output channels. Take another model of the run, or train it again."
        )
    require_fit(outline.state_dict(), load_shapes(path), str(path))


def nonfinite(weights: Mapping[str, torch.Tensor]) -> str | None:
    """How many values of which tensors are NaN or infinite; None where all are finite."""
    bad = {
        name: int((~torch.isfinite(w)).sum())
        for name, w in weights.items()
        if not torch.isfinite(w).all()
    }
    if not bad:
        return None
    named = ", ".join(f"{name} ({count})" for name, count in list(bad.items())[:5])
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return (
        f"{sum(bad.values())} weights in {len(bad)} of {len(weights)} tensors are NaN or infinite:"
        f" {named}{more}"
    )


def _checkpoint(path: Path, header: Mapping[str, Any]) -> Checkpoint:
    """A model's header as a record, without weights. Raises CheckpointError where it is none."""
    found = documents_problem(header, documents.ModelHeader)
    if found is not None:
        raise CheckpointError(
            f"{path}: this is not a model file of this package: its header: {found}. Take another,"
            " or train it again."
        )
    if (count := _entries(header["config"])) > ENTRIES:
        raise CheckpointError(
            f"{path}: its header describes no model: its config has {count:,} entries, must have at"
            f" most {ENTRIES:,}. Take another model of the run, or train it again."
        )
    facts: dict[str, Any] = {name: header[name] for name in FACTS}
    facts["channels"] = tuple(facts["channels"])
    made_with = tuple(header.get(PLUGINS, ()))
    return Checkpoint(
        weights={}, trained_on=header.get(TRAINED_ON) or {}, plugins=made_with, **facts
    )


def _entries(value: Any) -> int:
    """Entries of all lists and mappings in a value."""
    if not isinstance(value, list | Mapping):
        return 0
    return len(value) + sum(
        _entries(item) for item in (value.values() if isinstance(value, Mapping) else value)
    )


def encode(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> bytes:
    """A safetensors file with a header of this package; equal contents give equal bytes."""
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    return to_bytes(plain, metadata={HEADER: json.dumps(header)})


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, of which nothing but the header is read yet.

    Raises CheckpointError for whatever cannot be read of it.
    """
    if not os.path.isfile(path):
        raise CheckpointError(
            f"{path}: no such model file. Check --checkpoint; a run holds"
            " fold_N/best_model.safetensors."
        )
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: only .safetensors files are read; pickled files ({path.suffix}) can run code."
            " Convert it first."
        )
    try:
        with files.as_text(path) as name, safe_open(name, framework="pt") as file:
            yield file
    except (
        SafetensorError,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # the last is torch's, of its own mapping
        if os.strerror(errno.EMFILE) in str(error):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path)) from None
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    words = str(error)[:SHOWN]
    return CheckpointError(
        f"{path}: damaged or not a safetensors file ({words}). Copy it again, or train the fold"
        " again."
    )


def _header(path: Path) -> dict[str, Any]:
    """What this package wrote into a file beside its tensors."""
    try:
        with _opened(path) as file:
            text = (file.metadata() or {}).get(HEADER, "null")
        header = files.parse(text)
    except ValueError as error:
        raise _damaged(path, error) from None
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path}: holds weights but no {HEADER!r} header; this package did not write it."
        )
    return header


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    load_shapes(path)  # refuses numbers that torch cannot test
    with _opened(path) as file:
        return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict


def decode(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header of a file that :func:`encode` made. Raises CheckpointError for another."""
    return _tensors(path), _header(path)


def require_fit(
    own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], where: str
) -> None:
    """Raise CheckpointError, with a list, for every missing, unexpected or misshapen weight; only
    names, shapes and types are read.
    """
    faults = [f"missing: {k}" for k in own if k not in weights] + [
        f"unexpected: {k}" for k in weights if k not in own
    ]
    faults += [
        f"shape: {k} is {tuple(weights[k].shape)}, the network wants {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    faults += [
        f"type: {k} holds {weights[k].dtype}, the network wants {own[k].dtype}"
        for k in own
        if k in weights and weights[k].dtype.is_floating_point != own[k].dtype.is_floating_point
    ]
    if faults:
        more = f"\n  ... {len(faults) - 10} more" if len(faults) > 10 else ""
        raise CheckpointError(
            f"{where}: weights do not fit the network:\n  "
            + "\n  ".join(faults[:10])
            + more
            + "\nUse the config that trained them."
        )


def load_weights(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Strict load. Raises CheckpointError as :func:`require_fit`."""
    require_fit(module.state_dict(), weights, where)
    module.load_state_dict(dict(weights))


def build(model: Checkpoint, where: str) -> tuple[torch.nn.Module, Config]:
    """The network of a model file with its weights, ready for prediction."""
    config = from_dict(model.config, where)
    network = networks.build(config.network, *model.channels, config.data.dims)
    load_weights(network, model.weights, where)
    return network.eval(), config


# --- the models of a run --------------------------------------------------------------------------

ALIKE = ("data.normalise", "data.classes", "data.dims", "task", "network")
"""Keys in which networks that answer together agree."""


def find_models(path: Path, kind: str | None = None, allow_missing: bool = False) -> list[Path]:
    """Model files behind a run folder, a fold folder or a file.

    Args:
        kind: ``best``, ``swa``; ``auto`` or None: of each fold the one that was better on its
            held-out cases.
        allow_missing: take a run of which some folds are not complete.

    Raises:
        UserError: when there are none, or when a run lacks folds and that is not allowed.
    """
    if reason := files.absence(path):
        suggestion = (
            "Give a run folder (runs/NAME), a fold folder (runs/NAME/fold_0) or a .safetensors"
            " file."
        )
        raise UserError(f"--checkpoint {path}: {reason}. {suggestion}")
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise UserError(
            f"--checkpoint {path}: is no file but a pipe, a socket or a device. Give a run folder"
            " or a .safetensors file."
        )
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(
            f"--checkpoint {path}: the folder may not be read. Give this user the right to read it."
        )
    run = RunFolder(path)
    folds = run.fold_folders()
    if not folds:
        return [FoldFolder(path).model(kind or "auto")]
    complete = [f for f in folds if f.completed]
    count = run.fold_count()
    if len(complete) < count and not allow_missing:
        missing = sorted({f"fold_{n}" for n in range(count)} - {f.path.name for f in complete})
        raise UserError(
            f"{path}: {', '.join(missing)} not complete. Finish them with pipeline.train, or accept"
            " it with --allow-missing-folds."
        )
    if not complete:
        raise UserError(f"{path}: no fold is complete.")
    return [f.model(kind or "auto") for f in complete]


def load_models(paths: Sequence[Path]) -> tuple[list[torch.nn.Module], Config]:
    """Rebuild every network.

    Raises UserError when the models were trained under different configs, or on other kinds of
    files.
    """
    networks_, configs, facts = [], [], []
    for path in paths:
        model = load_model(path)
        with torch.random.fork_rng(
            []
        ):  # a network is born with random weights, which a caller's own numbers should not notice
            network, config = build(model, str(path))
        facts.append(
            {
                "channels": list(model.channels),
                **{k: model.trained_on.get(k) for k in ("family", "codes")},
            }
        )
        about = (
            f"Fold: {model.fold}, epoch: {model.epoch + 1}, {config.train.stop.monitor}:"
            f" {model.score}"
        )
        logger.info(f"Loaded model from {path}\n  {about}")
        networks_.append(network)
        configs.append(config)
    for path, config, own in zip(paths, configs, facts, strict=True):
        changes = [
            c for c in difference(to_dict(configs[0]), to_dict(config)) if c.startswith(ALIKE)
        ]
        changes += [
            f"{k}: {facts[0][k]} -> {v}"
            for k, v in own.items()
            if None not in (v, facts[0][k]) and v != facts[0][k]
        ]
        if changes:
            raise UserError(
                f"{path} and {paths[0]} cannot speak together:\n  " + "\n  ".join(changes)
            )
    return networks_, configs[0]
