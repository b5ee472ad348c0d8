"""Weights that are not trained (``train.freeze``), and the mode of layers that hold them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import nn

from pipeline.networks import parts


def freeze(network: nn.Module, names: Collection[str]) -> str:
    """Exclude parts of a network from training.

    Args:
        network: its weights need no gradient afterwards where they are named.
        names: ``train.freeze`` of a config.

    Returns:
        A line that says how many weights are trained.

    Raises:
        ConfigError: for names that the network lacks, and where nothing is left to train.

    Example:
        >>> freeze(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["0"])
        'Frozen (train.freeze: 0): 6 of 12 weights are trained'
    """
    chosen = set(parts.frozen_by(network, names))
    for name, parameter in network.named_parameters():
        if name in chosen:
            parameter.requires_grad_(False)
    counts = [(p.numel(), p.requires_grad) for p in network.parameters()]
    trained, every = sum(n for n, is_trained in counts if is_trained), sum(n for n, _ in counts)
    return (
        f"Frozen (train.freeze: {', '.join(names)}): {trained:,} of {every:,} weights are trained"
    )


def train_mode(network: nn.Module, names: Collection[str]) -> None:
    """Set training mode, but for frozen layers with running statistics.

    These normalise by the statistics that they have, as in prediction, and do not change them.
    Dropout is as in training, frozen or not: it regularises the layers that follow.

    Args:
        network: the network.
        names: ``train.freeze`` of a config.
    """
    network.train()
    for _, module in parts.with_statistics(network, names):
        module.eval()


class _Constant(nn.Module):
    """Stands for a layer in evaluation mode, and hides it from what changes layers.

    Args:
        layer: it is not registered, so that the network does not hold it.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = (layer.eval(),)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            ``(B, C, *S)``.
        """
        return self.layer[0](x)


@contextlib.contextmanager
def kept_statistics(network: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Keep the running statistics of frozen layers while those of all others are recomputed.

    Args:
        network: inside, its frozen layers with statistics are no batch norm.
        names: ``train.freeze`` of a config.

    Yields:
        Nothing.
    """
    kept = list(parts.with_statistics(network, names))
    try:
        for name, module in kept:
            network.set_submodule(name, _Constant(module))
        yield
    finally:
        for name, module in kept:
            network.set_submodule(name, module)
