"""A network on torch's meta device: its heads and the names and shapes of its weights.

It is compared with a checkpoint before anything is allocated. Whatever options say, an outline
takes little memory and a bounded time: options for which it would not are refused by their numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pipeline import networks
from pipeline.config import ConfigError
from pipeline.records import LossTerm, NamedOptions

LARGEST = 2**16
"""Largest absolute value among the options of a network, a loss or an augmentation."""

ENTRIES = 32
"""Most entries of a list among options.

A network halves its image at each level, and 2^32 voxels along an axis are no image.
"""

WEIGHTS = 2**31
"""Most weights of a network: 8 GiB, and four times that in training."""

UNUSABLE = (
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AttributeError,
    MemoryError,
)
"""Errors of a network, or of the library that it is made with, for options that cannot be used."""


class _NoInitialisation(TorchFunctionMode):
    """Within: tensors are not filled with random numbers.

    For tensors without memory that means nothing, and it loads a compiler.
    """

    NAMES = frozenset({"normal_", "uniform_", "trunc_normal_", "log_normal_", "exponential_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.NAMES or name.startswith(("kaiming_", "xavier_", "orthogonal_", "dirac_")):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def vast(
    named: NamedOptions | LossTerm, most_of: Mapping[str, float], largest: float = LARGEST
) -> Iterator[str]:
    """Find options so large that trying the entry would take memory or hours.

    Args:
        named: entry and options.
        most_of: largest absolute value of options that have a limit of their own, by name.
        largest: that of all others.

    Yields:
        For each such option its name, its value and its limit, as a message.
    """
    for option, value in named.options.items():
        most = most_of.get(option, largest)
        text = repr(value)
        shown = text if len(text) <= 200 else text[:200] + "..."
        if any(abs(n) > most for n in _numbers(value)):
            yield f"option {option} is {shown}, must be at most {most} by amount"
        elif (count := _longest(value)) > ENTRIES:
            yield f"option {option} is {shown}, must have at most {ENTRIES} entries, not {count}"


def repeats(named: NamedOptions) -> Mapping[str, int]:
    """List how often a network may do what its options repeat.

    Args:
        named: entry and options.

    Returns:
        Largest value by option, empty for an unknown network.
    """
    return networks.NETWORKS[named.name].repeats if named.name in networks.NETWORKS else {}


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(item)


def _longest(value: Any) -> int:
    """Entries of the longest list or mapping anywhere in a value."""
    if not isinstance(value, list | tuple | Mapping):
        return 0
    return max(
        [
            len(value),
            *(_longest(item) for item in (value.values() if isinstance(value, Mapping) else value)),
        ]
    )


def outline(
    named: NamedOptions, in_channels: int, out_channels: int, dims: int
) -> networks.HeadedNet:
    """Build a network on torch's meta device.

    Args:
        named: entry of ``NETWORKS`` and its options.
        in_channels: channels of the input.
        out_channels: channels of head ``main``.
        dims: space axes, 2 or 3.

    Returns:
        The network; its weights have shapes and no memory.

    Raises:
        ConfigError: as :func:`pipeline.networks.build`.
        Exception: any of ``UNUSABLE`` that the network raises for options that cannot be used.
    """
    with warnings.catch_warnings(), torch.device("meta"), _NoInitialisation():
        warnings.simplefilter("ignore")
        return networks.build(named, in_channels, out_channels, dims)


def declaring(attribute: str, dims: int) -> list[str]:
    """Networks that declare something, for messages.

    Args:
        attribute: ``outputs`` or ``levels`` of :class:`~pipeline.networks.HeadedNet`.
        dims: space axes, 2 or 3.

    Returns:
        Names of entries of ``NETWORKS`` that do so with their default options.

    Example:
        >>> "unet" in declaring("levels", 3)
        True
    """

    def declares(name: str) -> bool:
        try:
            return bool(getattr(outline(NamedOptions(name=name), 1, 1, dims), attribute))
        except (*UNUSABLE, ConfigError):
            return False

    return sorted(name for name in networks.NETWORKS if declares(name))


def bounded(
    named: NamedOptions, in_channels: int, out_channels: int, dims: int
) -> networks.HeadedNet:
    """Build a network on torch's meta device from options that were not checked yet.

    Args:
        named: entry of ``NETWORKS`` and its options.
        in_channels: channels of the input.
        out_channels: channels of head ``main``.
        dims: space axes, 2 or 3.

    Returns:
        The network; its weights have shapes and no memory.

    Raises:
        ConfigError: for all that cannot be used, or is too large.

    Example:
        >>> bounded(NamedOptions(name="segresnet"), 1, 2, 3).heads
        ('main',)
        >>> bounded(NamedOptions(name="unet", options={"last": 100_000}), 1, 2, 3)
        Traceback (most recent call last):
            ...
        pipeline.config.errors.ConfigError: network: 'unet': option last is 100000, ...
    """
    for text in vast(named, repeats(named)):
        raise ConfigError(f"network: {named.name!r}: {text}.")
    try:
        made = outline(named, in_channels, out_channels, dims)
    except UNUSABLE as error:
        raise ConfigError(
            f"network: {named.name!r} cannot be built: {str(error)[:300] or type(error).__name__}."
        ) from None
    if (count := networks.parameters(made)) > WEIGHTS:
        raise ConfigError(
            f"network: {named.name!r} has {count:,} weights, must be at most {WEIGHTS:,}."
        )
    return made
