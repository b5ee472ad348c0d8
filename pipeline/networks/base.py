"""What every network here shares: named heads, any input size, and options that are checked before
a weight is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import ConfigError, bind
from pipeline.records import NamedOptions


class HeadedNet(nn.Module):
    """A network that takes ``(B, C, *S)`` of any size and returns ``{head: (B, K, *S)}``, logits.

    ``heads`` names all that it can return: ``main`` always, ``deep1`` ... (deep supervision) in
    training mode only. Subclasses write :meth:`run`, which may rely on every axis being a multiple
    of ``divisor``.
    """

    def __init__(self, heads: Sequence[str], divisor: Sequence[int]) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.divisor = tuple(divisor)

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """All heads for an input whose axes are multiples of ``divisor``."""
        raise NotImplementedError(f"{type(self).__name__} must define run().")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Pad at the far ends by repeating the border, run, and cut every head back to the size of
        ``x``.
        """
        dims = len(self.divisor)
        if x.ndim != dims + 2:
            raise ValueError(
                f"input has shape {tuple(x.shape)}; a network of {dims} space axes takes (B, C,"
                f" *S), {dims + 2} axes."
            )
        size = x.shape[2:]
        margin = [m - n for m, n in zip(self.padded_size(size), size, strict=True)]
        if any(margin):
            x = functional.pad(x, [p for m in reversed(margin) for p in (0, m)], mode="replicate")
        return self.cut(self.run(x), size)

    def cut(self, heads: Mapping[str, Tensor], size: Sequence[int]) -> dict[str, Tensor]:
        """Heads of a padded input, cut to what belongs to an input of ``size``."""
        window = (..., *(slice(n) for n in size))
        return {name: y[window] for name, y in heads.items()}

    def padded_size(self, size: Sequence[int]) -> list[int]:
        """The size that an input of ``size`` is computed at: the next multiples of ``divisor``."""
        padded = [-(-n // d) * d for n, d in zip(size, self.divisor, strict=True)]
        if padded == list(self.divisor):
            padded[-1] *= (
                # one voxel at the bottom has no variance: instance and batch norm would refuse it
                2
            )
        return padded


def require(good: bool, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``good``."""
    if not good:
        raise ConfigError(message)


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether ``value`` is an int (not a bool) of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def are_whole(values: Any, least: int = 1) -> bool:
    """Whether ``values`` is a non-empty list of ints of at least ``least``."""
    return (
        isinstance(values, list | tuple)
        and len(values) > 0
        and all(is_whole(v, least) for v in values)
    )


def choice(value: Any, known: Sequence[str], where: str) -> str:
    """``value`` if it is one of ``known``; else ConfigError."""
    require(value in known, f"{where} is {value!r}, must be one of: {', '.join(known)}.")
    return value


def fraction(value: Any, where: str) -> float:
    """``value`` as a float in [0, 1); else ConfigError."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    require(good, f"{where} is {value!r}, must be a number in [0, 1), e.g. 0.1.")
    return float(value)


Spec = tuple[str, dict[str, Any]]
"""A layer in MONAI's words: type and arguments."""


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
    """Normalisation named by ``group`` or ``{name: group, options: {num_groups: 4}}`` for layers of
    ``widths`` channels.
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
    """Activation named by ``relu`` or ``{name: leaky_relu, options: {negative_slope: 0.1}}``."""
    return _layer(ACTIVATIONS, value, where)


def _layer(table: Mapping[str, Callable[..., Spec]], value: Any, where: str) -> Spec:
    part: Any = {"name": value} if isinstance(value, str) else value
    good = (
        isinstance(part, Mapping)
        and set(part) <= {"name", "options"}
        and isinstance(part.get("name"), str)
    )
    good = good and isinstance(part.get("options", {}), Mapping)
    require(
        good,
        f"{where} is {value!r}, must be a name or {{name: ..., options: {{...}}}}. Known:"
        f" {', '.join(sorted(table))}.",
    )
    return bind(table, NamedOptions(name=part["name"], options=part.get("options", {})), where)()
