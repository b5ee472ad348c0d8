"""Initial weights from another model file, with a listing of those loaded, skipped and left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config import ConfigError, InitFrom, from_dict
from pipeline.inference.models import CheckpointError, load_model
from pipeline.networks import HeadedNet, outline
from pipeline.networks.parts import is_within
from pipeline.records import Checkpoint, UserError

SHOWN = 12
"""Most weights of a kind that a refusal lists."""
NETWORK = 500
"""Most characters of the file's network in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """How weights of a file and of a network fit, by name."""

    fitting: list[str]
    """Loaded."""
    fresh: list[str]
    """Of output layers that are to stay fresh."""
    missing: list[str]
    """Only in the network."""
    shape: list[str]
    """Of another shape in the file."""
    unused: list[str]
    """Only in the file."""
    heads: list[str]
    """Only in the file, of output layers that are not wanted."""


def load(network: HeadedNet, wanted: InitFrom) -> str:
    """Copy matching weights of a model file into a network.

    Args:
        network: changed in place.
        wanted: path of the file, and which mismatches are allowed.

    Returns:
        Listing of the weights that were loaded, skipped and left as they were.

    Raises:
        CheckpointError: where the file cannot be read, or for a mismatch that is not allowed.
        ConfigError: for ``fresh_heads`` of a network that does not name its output layers.
    """
    model, own = load_model(Path(wanted.path), own=False), network.state_dict()
    listing = compare(model, network, wanted)
    fitting = _match(model, network, wanted).fitting
    network.load_state_dict({**own, **{k: model.weights[k] for k in fitting}})
    return listing


def compare(model: Checkpoint, network: HeadedNet, wanted: InitFrom) -> str:
    """List which weights of a file fit a network.

    Args:
        model: content of the file.
        network: it may be on torch's meta device.
        wanted: path of the file, for the listing, and which mismatches are allowed.

    Returns:
        Lines of text.

    Raises:
        CheckpointError: for a mismatch that is not allowed.
        ConfigError: for ``fresh_heads`` of a network that does not name its output layers.
    """
    if wanted.fresh_heads and not network.outputs:
        known = ", ".join(outline.declaring("outputs", len(network.divisor)))
        raise ConfigError(
            f"train.init_from.fresh_heads: the network {type(network).__name__} does not name its"
            f" output layers. Set false and accept what differs with allow_shape, or take one of:"
            f" {known}."
        )
    given, own, match = model.weights, network.state_dict(), _match(model, network, wanted)
    head = f"Initial weights from {wanted.path}: {len(match.fitting)} of {len(own)} loaded"
    kinds = [
        [f"  left fresh (output layer): {k}" for k in match.fresh],
        [f"  left fresh (not in the file): {k}" for k in match.missing],
        [
            f"  left fresh (shape {tuple(given[k].shape)} in the file, {tuple(own[k].shape)}"
            f" here): {k}"
            for k in match.shape
        ],
        [f"  skipped (output layer): {k}" for k in match.heads],
        [f"  skipped (not in this network): {k}" for k in match.unused],
    ]
    for names, allowed, option in (
        (match.missing, wanted.allow_missing, "allow_missing"),
        (match.unused, wanted.allow_unused, "allow_unused"),
        (match.shape, wanted.allow_shape, "allow_shape"),
    ):
        if names and not allowed:
            hints = " ".join(_hints(names, network, model, wanted))
            listing = "\n".join([head, *(line for kind in kinds for line in _shortened(kind))])
            raise CheckpointError(
                f"{listing}\ntrain.init_from: {len(names)} weights do not match; accept this with"
                f" train.init_from.{option}: true.{hints and ' '}{hints}"
            )
    return "\n".join([head, *(line for kind in kinds for line in kind)])


def _shortened(lines: Sequence[str]) -> list[str]:
    """The first lines of a kind, with the number of the others."""
    others = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"  ... and {others} more of this kind"] if others > 0 else [])]


def fresh_names(model: Checkpoint, network: HeadedNet, wanted: InitFrom) -> list[str]:
    """Weights that a file leaves as they are.

    Args:
        model: content of the file.
        network: it may be on torch's meta device.
        wanted: which mismatches are allowed.

    Returns:
        Their names.
    """
    match = _match(model, network, wanted)
    return [*match.fresh, *match.missing, *match.shape]


def _match(model: Checkpoint, network: HeadedNet, wanted: InitFrom) -> _Match:
    """Sort the weights of file and network."""
    given, own = model.weights, network.state_dict()
    outputs = network.outputs if wanted.fresh_heads else ()
    theirs = (*outputs, *_outputs_of(model)) if wanted.fresh_heads else ()
    fresh = [k for k in own if is_within(k, outputs)]
    others = [k for k in own if not is_within(k, outputs)]
    surplus = [k for k in given if k not in own]
    return _Match(
        fitting=[k for k in others if k in given and own[k].shape == given[k].shape],
        fresh=fresh,
        missing=[k for k in others if k not in given],
        shape=[k for k in others if k in given and own[k].shape != given[k].shape],
        unused=[k for k in surplus if not is_within(k, theirs)],
        heads=[k for k in surplus if is_within(k, theirs)],
    )


def _outputs_of(model: Checkpoint) -> tuple[str, ...]:
    """Output layers of the network that a file is of; none where it is not known here."""
    try:
        config = from_dict(model.config)
        return outline.bounded(config.network, *model.channels, config.data.dims).outputs
    except UserError:
        return ()


def _hints(
    names: Iterable[str], network: HeadedNet, model: Checkpoint, wanted: InitFrom
) -> Iterator[str]:
    """What else can be done about weights that do not match."""
    given: Mapping[str, torch.Tensor] = model.weights
    own = network.state_dict()
    if len(_match(model, network, wanted).fitting) < len(own) / 2:
        yield (
            "Few weights match. The file's network is"
            f" {json.dumps(model.config.get('network'))[:NETWORK]}: set the same in this config."
        )
    outputs = (*network.outputs, *(() if wanted.fresh_heads else _outputs_of(model)))
    heads = [k for k in names if is_within(k, outputs)]
    if heads and network.outputs and not wanted.fresh_heads:
        yield (
            f"{len(heads)} of them are of output layers, as with other classes: to leave these"
            " fresh and nothing else, set train.init_from.fresh_heads: true."
        )
    shapes = [(given[k].shape, own[k].shape) for k in names if k in given and k in own]
    inputs = [
        (there[1], here[1])
        for there, here in shapes
        if len(there) == len(here) > 1
        and there[1] == model.channels[0] != here[1]
        and (there[0], *there[2:]) == (here[0], *here[2:])
    ]
    if inputs:
        yield (
            f"The file's network takes images of {inputs[0][0]} channels, this one of"
            f" {inputs[0][1]}: with allow_shape its first convolution alone starts afresh; or"
            " bring the images to the same channels."
        )
