"""Initial weights from another model file, with a listing of those loaded, skipped and left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.config import InitFrom
from pipeline.inference.models import CheckpointError, load_model


def load(network: torch.nn.Module, wanted: InitFrom) -> str:
    """Copy matching weights of a model file into a network.

    Args:
        network: changed in place.
        wanted: path of the file, and which mismatches are allowed.

    Returns:
        Listing of the weights that were loaded, skipped and left as they were.

    Raises:
        CheckpointError: where the file cannot be read, or for a mismatch that is not allowed.
    """
    given, own = load_model(Path(wanted.path), own=False).weights, network.state_dict()
    listing = compare(given, own, wanted)
    fitting = {k: given[k] for k in own if k in given and own[k].shape == given[k].shape}
    network.load_state_dict({**own, **fitting})
    return listing


def compare(
    given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], wanted: InitFrom
) -> str:
    """List which weights of a file fit a network.

    Args:
        given: weights of the file by name.
        own: weights of the network by name; they may be on torch's meta device.
        wanted: path of the file, for the listing, and which mismatches are allowed.

    Returns:
        Lines of text.

    Raises:
        CheckpointError: for a mismatch that is not allowed.
    """
    shape = [k for k in own if k in given and own[k].shape != given[k].shape]
    missing = [k for k in own if k not in given]
    unused = [k for k in given if k not in own]
    listing = "\n".join(
        [
            (
                f"Initial weights from {wanted.path}: {len(own) - len(missing) - len(shape)} of"
                f" {len(own)} loaded"
            ),
            *(f"  left fresh (not in the file): {k}" for k in missing),
            *(
                f"  left fresh (shape {tuple(given[k].shape)} in the file, {tuple(own[k].shape)}"
                f" here): {k}"
                for k in shape
            ),
            *(f"  skipped (not in this network): {k}" for k in unused),
        ]
    )
    for names, allowed, option in (
        (missing, wanted.allow_missing, "allow_missing"),
        (unused, wanted.allow_unused, "allow_unused"),
        (shape, wanted.allow_shape, "allow_shape"),
    ):
        if names and not allowed:
            raise CheckpointError(
                f"{listing}\ntrain.init_from: {len(names)} weights do not match; accept this with"
                f" train.init_from.{option}: true."
            )
    return listing
