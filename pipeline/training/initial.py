"""Start a network from another model file, saying what was taken, skipped and left fresh."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.config import InitFrom
from pipeline.inference.models import CheckpointError, load_model


def load(network: torch.nn.Module, wanted: InitFrom) -> str:
    """Copy matching weights into ``network``; returns the listing.

    Raises CheckpointError for a mismatch that was not allowed.
    """
    given, own = load_model(Path(wanted.path), own=False).weights, network.state_dict()
    listing = compare(given, own, wanted)
    fitting = {k: given[k] for k in own if k in given and own[k].shape == given[k].shape}
    network.load_state_dict({**own, **fitting})
    return listing


def compare(
    given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], wanted: InitFrom
) -> str:
    """Listing of what of the ``given`` weights fits a network's ``own``, which may have no memory
    (meta).

    Raises CheckpointError for a mismatch that was not allowed.
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
