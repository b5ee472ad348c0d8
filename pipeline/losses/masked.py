"""What all losses share: float32 under autocast, ignored voxels, and checked options."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.config import ConfigError

Loss = Callable[..., Tensor]
"""``loss(logits (B, K, *S), target, valid (B, 1, *S))`` gives a scalar.

``valid`` is 1 where a voxel counts and 0 where not. A loss that reads a map made from the label
(``pipeline.data.derived``) takes it as a fourth argument.
"""


def masked(loss: Loss) -> Loss:
    """Run a loss outside autocast in at least float32, with ignored voxels set to 0.

    Logits, target and maps are set to 0 wherever ``valid`` is 0. Replacing beats multiplying: a NaN
    or a huge logit in an ignored voxel reaches neither the value nor the gradient.

    Args:
        loss: function to decorate.

    Returns:
        The function of the same arguments; it raises a ValueError for shapes that do not fit
        together.

    Example:
        >>> mean = masked(lambda logits, target, valid: masked_mean(logits, valid))
        >>> logits, valid = torch.tensor([[[2.0, torch.nan]]]), torch.tensor([[[1.0, 0.0]]])
        >>> mean(logits, torch.zeros(1, 1, 2), valid).item()
        2.0
    """

    @functools.wraps(loss)
    def run(logits: Tensor, target: Tensor, valid: Tensor, *maps: Tensor) -> Tensor:
        _same_space(logits, target, valid, *maps)
        with torch.autocast(logits.device.type, enabled=False):
            wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            out = valid == 0
            extra = [m.to(wide.dtype).masked_fill(out, 0) for m in maps]
            return loss(
                wide.masked_fill(out, 0), target.masked_fill(out, 0), valid.to(wide.dtype), *extra
            )

    return run


def _same_space(logits: Tensor, target: Tensor, valid: Tensor, *maps: Tensor) -> None:
    space, batch = logits.shape[2:], len(logits)
    good = (
        all(len(x) == batch and x.shape[2:] == space for x in (target, valid, *maps))
        and valid.shape[1] == 1
    )
    if not good:
        further = "".join(f", map {tuple(m.shape)}" for m in maps)
        raise ValueError(
            f"a loss got logits {tuple(logits.shape)}, target {tuple(target.shape)} and valid"
            f" {tuple(valid.shape)}{further}; all must share batch and space, and valid has one"
            " channel."
        )


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid voxels and channels; 0 if no voxel is valid.

    Args:
        values: ``(B, C, *S)``.
        valid: ``(B, 1, *S)``, 0 or 1.

    Returns:
        Tensor ``()``.
    """
    return (values * valid).sum() / (valid.sum() * values.shape[1]).clamp(min=1)


def sample_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the samples that have a valid voxel; 0 if none has.

    Args:
        values: ``(B,)`` or ``(B, K)``, one for each sample or each sample and class.
        valid: ``(B, 1, *S)``, 0 or 1.

    Returns:
        Tensor ``()``.
    """
    counts = valid.flatten(1).amax(1)
    return (values.reshape(len(values), -1).mean(1) * counts).sum() / counts.sum().clamp(min=1)


def number(value: Any, where: str, least: float = 0.0, most: float = math.inf) -> float:
    """Check that an option is a finite number within limits.

    Args:
        value: the option.
        where: loss and name of the option in the message.
        least: smallest number allowed.
        most: largest number allowed.

    Returns:
        ``value`` as a float.

    Raises:
        ConfigError: if it is no such number.
    """
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not least <= value <= most
        or math.isinf(value)
    ):
        limit = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
        raise ConfigError(f"loss {where} is {value!r}, must be a number {limit}.")
    return float(value)


def switch(value: Any, where: str) -> bool:
    """Check that an option is a bool.

    Args:
        value: the option.
        where: loss and name of the option in the message.

    Returns:
        ``value``.

    Raises:
        ConfigError: if it is no bool.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"loss {where} is {value!r}, must be true or false.")
    return value
