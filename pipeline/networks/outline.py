"""A network without memory: its heads and the names and shapes of its weights, to be compared
before anything is allocated.

Whatever options say, an outline takes little memory and a bounded time: what would not is refused
by its numbers.
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
"""Largest number, by amount, among the options of a network, a loss or an augmentation."""

ENTRIES = 32
"""Entries of a list among options: a network halves its image at each level, and 2^32 voxels along
an axis are no image.
"""

WEIGHTS = 2**31
"""Weights of a network that are too many: 8 GiB, and four times that in training."""

UNUSABLE = (
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AttributeError,
    MemoryError,
)
"""What a network raises, here or in the library that it is made with, for options that cannot be
used.
"""


class _NoDraws(TorchFunctionMode):
    """Within: tensors are not filled with random numbers, which for tensors without memory means
    nothing and loads a compiler.
    """

    NAMES = frozenset({"normal_", "uniform_", "trunc_normal_", "log_normal_", "exponential_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.NAMES or name.startswith(("kaiming_", "xavier_", "orthogonal_", "dirac_")):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def vast(
    part: NamedOptions | LossTerm, most_of: Mapping[str, float], largest: float = LARGEST
) -> Iterator[str]:
    """Options so large that an entry would take memory or hours to be tried, each with its rule;
    ``most_of`` has rules by name.
    """
    for option, value in part.options.items():
        most = most_of.get(option, largest)
        text = repr(value)
        shown = text if len(text) <= 200 else text[:200] + "..."
        if any(abs(n) > most for n in _numbers(value)):
            yield f"option {option} is {shown}, must be at most {most} by amount"
        elif (count := _longest(value)) > ENTRIES:
            yield f"option {option} is {shown}, must have at most {ENTRIES} entries, not {count}"


def repeats(part: NamedOptions) -> Mapping[str, int]:
    """How often the network that ``part`` names may do what its options repeat."""
    return networks.NETWORKS[part.name].repeats if part.name in networks.NETWORKS else {}


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
    part: NamedOptions, in_channels: int, out_channels: int, dims: int
) -> networks.HeadedNet:
    """The network that ``part`` names, on torch's meta device.

    Raises what the network raises for options that cannot be used.
    """
    with warnings.catch_warnings(), torch.device("meta"), _NoDraws():
        warnings.simplefilter("ignore")
        return networks.build(part, in_channels, out_channels, dims)


def bounded(
    part: NamedOptions, in_channels: int, out_channels: int, dims: int
) -> networks.HeadedNet:
    """As :func:`outline`, for options that nobody looked at yet.

    Raises ConfigError for all that cannot be used, or is too large.
    """
    for text in vast(part, repeats(part)):
        raise ConfigError(f"network: {part.name!r}: {text}.")
    try:
        made = outline(part, in_channels, out_channels, dims)
    except UNUSABLE as error:
        raise ConfigError(
            f"network: {part.name!r} cannot be built: {str(error)[:300] or type(error).__name__}."
        ) from None
    if (count := networks.parameters(made)) > WEIGHTS:
        raise ConfigError(
            f"network: {part.name!r} has {count:,} weights, must be at most {WEIGHTS:,}."
        )
    return made
