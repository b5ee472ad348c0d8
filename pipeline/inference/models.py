"""Model files: safetensors with a JSON header that rebuilds the network, never pickle.

A model file is whole or absent. The last part of the module finds the models of a run.
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
from pipeline.records import ALL, Checkpoint, FoldName, UserError
from pipeline.runs import FoldFolder, RunFolder
from pipeline.tasks import TASKS

logger = logging.getLogger(__name__)

HEADER = "pipeline"
"""Key of safetensors' metadata under which the header of this package lies."""

FACTS = ("config", "channels", "fold", "epoch", "score", "kind")
TRAINED_ON = "trained_on"
"""Key of the header that older files lack."""
PLUGINS = "plugins"
"""Key of the header of files whose config needs plugins."""

SHOWN = 300
"""Letters of another library's error that a message shows."""

ENTRIES = 2**14
"""Most entries of the config in a model's header, all levels together.

Configs have some hundreds; checking each entry costs time.
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
"""Number types that are read, by their names in safetensors."""


class CheckpointError(UserError):
    """A model file or state that cannot be used."""


def save_model(path: Path, checkpoint: Checkpoint) -> None:
    """Write a model file; equal contents give equal bytes.

    Args:
        path: the file, ``.safetensors``.
        checkpoint: weights and metadata.
    """
    header = {name: getattr(checkpoint, name) for name in (*FACTS, TRAINED_ON)}
    if checkpoint.plugins:
        header[PLUGINS] = checkpoint.plugins
    files.write_bytes(path, encode(checkpoint.weights, header))


def load_model(path: Path, own: bool = True) -> Checkpoint:
    """Read a model file.

    Args:
        path: the file.
        own: read the weights only if they fit the network which the header describes. Off, they are
            for another network, and the caller has compared it with :func:`load_shapes`.

    Returns:
        Weights on the CPU, and metadata.

    Raises:
        CheckpointError: the file is missing, foreign or damaged, or a weight is NaN or infinite.
    """
    model = load_header(path)
    if own:
        _require_own(path, model)
    weights = _tensors(path)
    model = dataclasses.replace(model, weights=weights)
    problem = nonfinite(weights)
    if problem is not None:
        raise CheckpointError(
            f"{path}: {problem}. Its training diverged, or the file was damaged: take another model"
            " of the run (--model, another fold, an epoch kept before), copy it again,"
            " or train it again, e.g. with a lower learning rate."
        )
    return model


def load_header(path: Path) -> Checkpoint:
    """Read the header of a model file.

    Args:
        path: the file.

    Returns:
        Its metadata; ``weights`` is empty.

    Raises:
        CheckpointError: as :func:`load_model`, but for what is wrong with weights.
    """
    return _checkpoint(path, _header(path))


def load_shapes(path: Path) -> dict[str, torch.Tensor]:
    """Read the shapes and types of the weights in a model file or a training state.

    Args:
        path: the file.

    Returns:
        Tensors without values, on torch's meta device, by name.

    Raises:
        CheckpointError: the file is missing or damaged, or holds a number type that networks do not
            use.
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
    """Raise UserError unless the weights fit the header's network, which is not built for it."""
    run = RunFolder(path.parent.parent)
    plugins.require(model.plugins, path, run.plugins if run.plugins_file.is_file() else None)
    config = from_dict(model.config, str(path))
    normal = config.data.normalise
    try:
        normalise.check(normal)
        normalise.require_numbers(normal)
        wanted = TASKS[config.rules].channels(config, model.channels[0])
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
    """Describe weights that are NaN or infinite.

    Args:
        weights: tensors by name.

    Returns:
        How many values of which tensors; None where all are finite.

    Example:
        >>> nonfinite({"a": torch.zeros(2), "b": torch.tensor([1.0, float("nan")])})
        '1 weights in 1 of 2 tensors are NaN or infinite: b (1)'
    """
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
    """The header of a model file as a record, without weights. Raises CheckpointError."""
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
    """Number of entries of all lists and mappings in a value."""
    if not isinstance(value, list | Mapping):
        return 0
    return len(value) + sum(
        _entries(item) for item in (value.values() if isinstance(value, Mapping) else value)
    )


def encode(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> bytes:
    """Encode a safetensors file with a header of this package; equal contents give equal bytes.

    Args:
        tensors: by name; they are copied to the CPU.
        header: metadata that JSON can hold.

    Returns:
        Bytes of the file.
    """
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    return to_bytes(plain, metadata={HEADER: json.dumps(header)})


def _models_near(path: Path) -> str:
    """The model files of a run or fold that is named in place of one, as a sentence."""
    found = sorted(path.glob("*.safetensors")) or sorted(path.glob("fold_*/*.safetensors"))
    return f" Here are: {', '.join(map(str, found[:5]))}." if found else ""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file, its weights unread. Raises CheckpointError where it is damaged."""
    if not os.path.isfile(path):
        raise CheckpointError(
            f"{path}: no such model file. A run holds fold_N/best_model.safetensors, with"
            f" train.keep: last fold_N/last_model.safetensors.{_models_near(path)}"
        )
    if path.suffix in (".yaml", ".yml"):
        raise CheckpointError(
            f"{path}: is a config, no model. Name the run that it trained (runs/NAME), or a"
            f" .safetensors file.{_models_near(path)}"
        )
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: only .safetensors files are read; pickled files ({path.suffix}) can run code."
            " Convert it first."
        )
    try:
        with files.as_text(path) as name, safe_open(name, framework="pt") as file:
            yield file
    # torch raises the RuntimeError where it maps the file itself.
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if os.strerror(errno.EMFILE) in str(error):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path)) from None
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    text = str(error)[:SHOWN]
    return CheckpointError(
        f"{path}: damaged or not a safetensors file ({text}). Copy it again, or train the fold"
        " again."
    )


def _header(path: Path) -> dict[str, Any]:
    """The metadata that this package wrote into a file beside its tensors."""
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
    """Read a file that :func:`encode` made.

    Args:
        path: the file.

    Returns:
        Tensors on the CPU by name, and the header.

    Raises:
        CheckpointError: the file is missing, damaged, or has no header of this package.
    """
    return _tensors(path), _header(path)


def require_fit(
    own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], where: str
) -> None:
    """Check that weights fit a network; only names, shapes and types are read.

    Args:
        own: the network's state dict.
        weights: tensors by name.
        where: where the weights are from, for the message.

    Raises:
        CheckpointError: weights are missing, unexpected, or of another shape or kind of number; it
            lists them.
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
    """Load weights into a network, strictly.

    Args:
        module: the network.
        weights: tensors by name.
        where: where they are from, for messages.

    Raises:
        CheckpointError: as :func:`require_fit`.
    """
    require_fit(module.state_dict(), weights, where)
    module.load_state_dict(dict(weights))


def build(model: Checkpoint, where: str) -> tuple[torch.nn.Module, Config]:
    """Build the network of a model file.

    Args:
        model: weights and metadata.
        where: the file, for messages.

    Returns:
        The network in evaluation mode with its weights, and its config.

    Raises:
        UserError: the config cannot be read, or the weights do not fit.
    """
    config = from_dict(model.config, where)
    network = networks.build(config.network, *model.channels, config.data.dims)
    load_weights(network, model.weights, where)
    return network.eval(), config


# --- the models of a run --------------------------------------------------------------------------

ALIKE = ("data.normalise", "data.classes", "data.regions", "data.dims", "task", "network")
"""Config keys in which the networks of an ensemble agree."""


def find_models(
    path: Path,
    kind: str | None = None,
    allow_missing: bool = False,
    names: Sequence[FoldName] | None = None,
) -> list[Path]:
    """Find the model files of a run folder, a fold folder or a file.

    Args:
        path: the folder or file.
        kind: ``best``, ``last`` or ``swa``; ``auto`` or None: of each fold the one that was better
            on its held-out cases.
        allow_missing: accept a run of which some folds are not complete.
        names: which folds of a run; ``all``: the one model of all cases; None: every complete fold.

    Returns:
        Model files, one for each fold.

    Raises:
        UserError: there are none, or a run lacks folds and that is not allowed.
    """
    if reason := files.absence(path):
        suggestion = (
            "Give a run folder (runs/NAME), a fold folder (runs/NAME/fold_0) or a .safetensors"
            " file."
        )
        raise UserError(f"--checkpoint {path}: {reason}. {suggestion}")
    if os.path.isfile(path):
        if names is not None:
            raise UserError(f"--checkpoint {path}: is one model. {_WITHOUT_FOLDS}")
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
    if names is not None:
        folds = _named(run, names)
    elif run.fold_folders() or run.fold(ALL).exists:
        folds = _complete(run, allow_missing)
    else:
        folds = [FoldFolder(path)]
    return [fold.model(kind or "auto") for fold in folds]


def _complete(run: RunFolder, allow_missing: bool) -> list[FoldFolder]:
    """The complete folds of a run. Raises UserError where some are missing, unless allowed."""
    complete = [f for f in run.fold_folders() if f.completed]
    if not complete and run.fold(ALL).completed:
        raise UserError(
            f"{run.path}: only the model of all cases is there: use --folds all (in Python"
            ' folds="all").'
        )
    count = run.fold_count()
    missing = sorted({f"fold_{n}" for n in range(count)} - {f.path.name for f in complete})
    if not complete:
        raise UserError(
            f"{run.path}: no fold is complete. The command that trained it goes on with it."
        )
    if missing and not allow_missing:
        raise UserError(
            f"{run.path}: {', '.join(missing)} not complete. Train them, predict with one fold"
            f" (--checkpoint {complete[0].path}), or with those that are there"
            " (--allow-missing-folds)."
        )
    if missing:
        logger.warning(
            f"{run.path}: {', '.join(missing)} not complete; predicting with"
            f" {', '.join(f.path.name for f in complete)} alone."
        )
    return complete


_WITHOUT_FOLDS = "Leave --folds out, or name the run folder: --folds chooses folds of a run."


def _named(run: RunFolder, names: Sequence[FoldName]) -> list[FoldFolder]:
    """The folds of a run that were asked for. Raises UserError where one is not complete."""
    folds = [run.fold(name) for name in names]
    if not (run.exists or run.fold_folders() or run.fold(ALL).exists):
        raise UserError(f"--checkpoint {run.path}: is no run folder. {_WITHOUT_FOLDS}")
    missing = [name for name, fold in zip(names, folds, strict=True) if not fold.completed]
    count = run.fold_count()
    unknown = [n for n in missing if not isinstance(n, str) and not 0 <= n < count]
    if unknown and count:
        raise UserError(
            f"{run.path}: has no fold {', '.join(map(str, unknown))}: its folds are 0 to"
            f" {count - 1}, and all for the one model of all cases. Name these with --folds."
        )
    if missing:
        listed = ", ".join(f"fold_{name}" for name in missing)
        raise UserError(
            f"{run.path}: {listed} not complete. Train to the end with pipeline.train ... --fold"
            f" {missing[0]}, or name others with --folds."
        )
    return folds


def load_models(paths: Sequence[Path]) -> tuple[list[torch.nn.Module], Config]:
    """Build all networks of an ensemble.

    Args:
        paths: model files.

    Returns:
        The networks in evaluation mode, and the config of the first one.

    Raises:
        UserError: a file cannot be used, or the models were trained with different configs or on
            other kinds of files.
    """
    networks_, configs, facts = [], [], []
    for path in paths:
        model = load_model(path)
        # Building draws random weights, which must not change the caller's random numbers.
        with torch.random.fork_rng([]):
            network, config = build(model, str(path))
        facts.append(
            {
                "channels": list(model.channels),
                **{k: model.trained_on.get(k) for k in ("family", "codes")},
            }
        )
        monitor = config.train.stop.monitor
        value = "not validated" if model.score is None else f"{monitor}: {model.score:.4g}"
        about = f"Fold: {model.fold}, epoch: {model.epoch + 1}, {value}"
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
                f"{path} and {paths[0]} cannot be averaged together:\n  " + "\n  ".join(changes)
            )
    return networks_, configs[0]
