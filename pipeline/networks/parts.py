"""Parts of a network by the names of its weights: output layers, levels, what is frozen."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from torch import nn

from pipeline.config import ConfigError, nearest

DEPTH = 2
"""Names of modules that a message suggests have at most so many parts."""


def is_within(name: str, parts: Iterable[str]) -> bool:
    """Whether a weight belongs to one of some parts.

    Args:
        name: of a weight or a module.
        parts: names of modules or weights, or their beginnings up to a dot.

    Returns:
        Whether the name is one of them or begins with one and a dot.

    Example:
        >>> is_within("up.1.weight", ["up.1"]), is_within("up.10.weight", ["up.1"])
        (True, False)
    """
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def frozen_by(network: nn.Module, names: Collection[str]) -> list[str]:
    """Find the weights that ``train.freeze`` names.

    Args:
        network: it may be on torch's meta device.
        names: ``train.freeze`` of a config.

    Returns:
        Names of weights that are trained otherwise, in the network's order.

    Raises:
        ConfigError: for a name that no weight has or begins with, and where nothing is left to
            train.

    Example:
        >>> frozen_by(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), ["0"])
        ['0.weight', '0.bias']
    """
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    every = [name for name, _ in network.named_parameters()]
    unknown = [part for part in names if not any(is_within(name, [part]) for name in every)]
    if unknown:
        known = sorted(
            {".".join(name.split(".")[:n]) for name in every for n in range(1, 1 + DEPTH)}
        )
        raise ConfigError(
            f"train.freeze: no weight of the network is called {unknown[0]!r} or begins with"
            f" {unknown[0] + '.'!r}"
            + (f" (nor {', '.join(map(repr, unknown[1:]))})" if unknown[1:] else "")
            + f". {nearest(unknown[0], known)}"
        )
    found = [name for name in trained if is_within(name, names)]
    if names and len(found) == len(trained):
        raise ConfigError(
            f"train.freeze: {', '.join(names)}: these are all weights of the network, so nothing"
            " would be trained. Name fewer parts."
        )
    return found


def by_level(network: nn.Module) -> list[list[nn.Parameter]]:
    """Sort the weights of a network into its output layers and its levels, from there to the input.

    Args:
        network: declares ``outputs`` and ``levels``, see
            :class:`~pipeline.networks.base.HeadedNet`.

    Returns:
        Weights of the output layers first, those of the first level last.

    Raises:
        ConfigError: for a network without levels, and for weights that belong to no part or to
            several.
    """
    levels = [*getattr(network, "levels", ())]
    if not levels:
        raise ConfigError(
            f"train.layer_decay: the network {type(network).__name__} declares no levels. Set null."
        )
    parts = [tuple(getattr(network, "outputs", ())), *reversed(levels)]
    sorted_: list[list[nn.Parameter]] = [[] for _ in parts]
    for name, parameter in network.named_parameters():
        found = [n for n, part in enumerate(parts) if is_within(name, part)]
        if len(found) != 1:
            raise ConfigError(
                f"train.layer_decay: weight {name!r} of the network {type(network).__name__} lies"
                f" in {len(found)} of its levels and outputs, must lie in one. Set null, or correct"
                " the network."
            )
        sorted_[found[0]].append(parameter)
    return sorted_


def with_statistics(network: nn.Module, names: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """Modules with running statistics, such as batch norm, among the frozen ones.

    Args:
        network: the network.
        names: ``train.freeze`` of a config.

    Yields:
        Name and module.
    """
    for name, module in network.named_modules():
        if getattr(module, "running_mean", None) is not None and is_within(name, names):
            yield name, module
