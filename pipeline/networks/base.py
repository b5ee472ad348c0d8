"""What all networks share: named heads, any input size, and checked options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import ConfigError, bind
from pipeline.records import DeepHead, NamedOptions


class HeadedNet(nn.Module):
    """A network that takes ``(B, C, *S)`` of any size and returns ``{head: (B, K, *S)}``, logits.

    Heads of ``deep`` have S divided by their stride, rounded up. Subclasses write :meth:`run`,
    which may rely on every axis being a multiple of ``divisor``.

    Args:
        heads: names of all heads that it can return: ``main`` always, ``deep1`` ... (deep
            supervision) in training mode only.
        divisor: for each space axis the number of voxels that the input is padded to a multiple of.

    Example:
        >>> import torch
        >>> class Sharp(HeadedNet):
        ...     def __init__(self) -> None:
        ...         super().__init__(("main",), (4, 4))
        ...         self.conv = nn.Conv2d(1, 2, 3, padding=1)
        ...     def run(self, x: Tensor) -> dict[str, Tensor]:
        ...         return {"main": self.conv(x)}
        >>> Sharp()(torch.zeros(1, 1, 5, 7))["main"].shape
        torch.Size([1, 2, 5, 7])
    """

    deep: Mapping[str, DeepHead] = MappingProxyType({})
    """Weight and stride of heads that are coarser than the input, ``main`` among them.

    Empty: all heads have full size, and deep ones count ``0.5**N`` times.
    """
    outputs: tuple[str, ...] = ()
    """Names of the modules that make the heads, for ``train.init_from.fresh_heads``."""
    levels: tuple[tuple[str, ...], ...] = ()
    """Names of modules, or their beginnings up to a dot, from the input to the outputs.

    Together they hold every weight but those of ``outputs``; for ``train.layer_decay``.
    """

    def __init__(self, heads: Sequence[str], divisor: Sequence[int]) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.divisor = tuple(divisor)

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Compute all heads of an input whose axes are multiples of ``divisor``.

        Args:
            x: ``(B, C, *S)``.

        Returns:
            ``{head: (B, K, *S)}``, logits.

        Raises:
            NotImplementedError: unless a subclass defines it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run().")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Run on an input of any size.

        It is padded at the far ends by repeating the border; every head is cut back to its size.

        Args:
            x: ``(B, C, *S)`` of any size.

        Returns:
            ``{head: (B, K, *S)}``, logits.

        Raises:
            ValueError: for an input with another number of axes.
        """
        dims = len(self.divisor)
        if x.ndim != dims + 2:
            raise ValueError(
                f"input has shape {tuple(x.shape)}; a network of {dims} space axes takes"
                f" (B, C, *S), {dims + 2} axes."
            )
        size = x.shape[2:]
        margin = [m - n for m, n in zip(self.padded_size(size), size, strict=True)]
        if any(margin):
            x = functional.pad(x, [p for m in reversed(margin) for p in (0, m)], mode="replicate")
        return self.cut(self.run(x), size)

    def cut(self, heads: Mapping[str, Tensor], size: Sequence[int]) -> dict[str, Tensor]:
        """Cut heads of a padded input to what belongs to the input.

        Args:
            heads: output of :meth:`run`.
            size: voxels of the input along each axis.

        Returns:
            The heads, each ``(B, K, *size)``; those of ``deep`` have ``size`` divided by their
            stride, rounded up.
        """
        found = {}
        for name, y in heads.items():
            steps = self.deep[name].stride if name in self.deep else (1,) * len(size)
            window = (slice(-(-n // step)) for n, step in zip(size, steps, strict=True))
            found[name] = y[(..., *window)]
        return found

    def padded_size(self, size: Sequence[int]) -> list[int]:
        """Round a size up to the next multiples of ``divisor``.

        Args:
            size: voxels along each axis.

        Returns:
            The size that the input is padded to; where the bottom of the network would hold one
            voxel, the last axis is doubled.
        """
        padded = [-(-n // d) * d for n, d in zip(size, self.divisor, strict=True)]
        if padded == list(self.divisor):
            # One voxel at the bottom has no variance: instance and batch norm would refuse it.
            padded[-1] *= 2
        return padded


def require(good: bool, message: str) -> None:
    """Raise a ConfigError unless a condition holds.

    Args:
        good: the condition.
        message: text of the error.

    Raises:
        ConfigError: unless ``good``.
    """
    if not good:
        raise ConfigError(message)


def is_whole(value: Any, least: int = 1) -> bool:
    """Check for an int of at least ``least``.

    Args:
        value: any value.
        least: smallest number allowed.

    Returns:
        Whether it is one; a bool is not.
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def are_whole(values: Any, least: int = 1) -> bool:
    """Check for a non-empty list or tuple of ints of at least ``least``.

    Args:
        values: any value.
        least: smallest number allowed.

    Returns:
        Whether it is one.
    """
    return (
        isinstance(values, list | tuple)
        and len(values) > 0
        and all(is_whole(v, least) for v in values)
    )


def choice(value: Any, known: Sequence[str], where: str) -> str:
    """Check that an option is one of the known words.

    Args:
        value: the option.
        known: words allowed.
        where: name of the option in the message.

    Returns:
        ``value``.

    Raises:
        ConfigError: if it is none of ``known``.
    """
    require(value in known, f"{where} is {value!r}, must be one of: {', '.join(known)}.")
    return value


def fraction(value: Any, where: str) -> float:
    """Check that an option is a number in [0, 1).

    Args:
        value: the option.
        where: name of the option in the message.

    Returns:
        ``value`` as a float.

    Raises:
        ConfigError: if it is no such number.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    require(good, f"{where} is {value!r}, must be a number in [0, 1), e.g. 0.1.")
    return float(value)


Spec = tuple[str, dict[str, Any]]
"""A layer as MONAI takes it: type and arguments."""


def _instance(*, affine: bool = True) -> Spec:
    require(
        isinstance(affine, bool), f"norm 'instance': affine is {affine!r}, must be true or false."
    )
    return "instance", {"affine": affine}


def _batch() -> Spec:
    return "batch", {}


def _group(*, num_groups: int = 8) -> Spec:
    require(
        is_whole(num_groups),
        f"norm 'group': num_groups is {num_groups!r}, must be a whole number of at least 1.",
    )
    return "group", {"num_groups": num_groups}


def _leaky_relu(*, negative_slope: float = 0.01) -> Spec:
    return "leakyrelu", {
        "negative_slope": fraction(negative_slope, "activation 'leaky_relu': negative_slope"),
        "inplace": True,
    }


NORMS: dict[str, Callable[..., Spec]] = {"instance": _instance, "batch": _batch, "group": _group}
ACTIVATIONS: dict[str, Callable[..., Spec]] = {
    "leaky_relu": _leaky_relu,
    "relu": lambda: ("relu", {"inplace": True}),
    "prelu": lambda: ("prelu", {}),
    "elu": lambda: ("elu", {"inplace": True}),
    "gelu": lambda: ("gelu", {}),
}


def norm_layer(value: str | Mapping[str, Any], widths: Sequence[int], where: str) -> Spec:
    """Check the option that names a normalisation.

    Args:
        value: ``group``, or ``{name: group, options: {num_groups: 4}}``; names are those of
            ``NORMS``.
        widths: channels of the layers that get it.
        where: name of the option in the message.

    Returns:
        Type and arguments for MONAI.

    Raises:
        ConfigError: for an unknown name or option, or groups that do not divide ``widths``.

    Example:
        >>> norm_layer({"name": "group", "options": {"num_groups": 4}}, [8, 16], "norm")
        ('group', {'num_groups': 4})
    """
    kind, options = _layer(NORMS, value, where)
    if kind == "group":
        groups = options["num_groups"]
        odd = [n for n in widths if n % groups]
        require(
            not odd,
            f"{where}: {groups} groups do not divide the channel counts {odd}. Set {{name: group,"
            " options: {num_groups: N}} or change the channels.",
        )
    return kind, options


def activation_layer(value: str | Mapping[str, Any], where: str) -> Spec:
    """Check the option that names an activation.

    Args:
        value: ``relu``, or ``{name: leaky_relu, options: {negative_slope: 0.1}}``; names are those
            of ``ACTIVATIONS``.
        where: name of the option in the message.

    Returns:
        Type and arguments for MONAI.

    Raises:
        ConfigError: for an unknown name or option.
    """
    return _layer(ACTIVATIONS, value, where)


def _layer(table: Mapping[str, Callable[..., Spec]], value: Any, where: str) -> Spec:
    layer: Any = {"name": value} if isinstance(value, str) else value
    good = (
        isinstance(layer, Mapping)
        and set(layer) <= {"name", "options"}
        and isinstance(layer.get("name"), str)
    )
    good = good and isinstance(layer.get("options", {}), Mapping)
    require(
        good,
        f"{where} is {value!r}, must be a name or {{name: ..., options: {{...}}}}. Known:"
        f" {', '.join(sorted(table))}.",
    )
    return bind(table, NamedOptions(name=layer["name"], options=layer.get("options", {})), where)()
