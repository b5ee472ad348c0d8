"""The ground under every loss: full precision whatever the autocast type, and ignored voxels that
cannot be felt.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.config import ConfigError

Loss = Callable[..., Tensor]
"""``loss(logits (B K *S), target, valid (B 1 *S))`` -> scalar.

``valid`` is 1 where a voxel counts and 0 where not.

A loss that reads a map made from the label (``pipeline.data.derived``) takes it as a fourth
argument.
"""


def masked(loss: Loss) -> Loss:
    """Run ``loss`` outside autocast on at least float32, with logits, target and maps set to 0
    wherever ``valid`` is 0.

    Replacing beats multiplying: a NaN or a huge logit in an ignored voxel reaches neither the value
    nor the gradient.
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
    """Mean of ``values`` ``(B, C, *S)`` over valid voxels and channels; 0 if no voxel is valid."""
    return (values * valid).sum() / (valid.sum() * values.shape[1]).clamp(min=1)


def sample_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``values`` ``(B,)`` or ``(B, K)`` over the samples that have a valid voxel; 0 if none
    has.
    """
    counts = valid.flatten(1).amax(1)
    return (values.reshape(len(values), -1).mean(1) * counts).sum() / counts.sum().clamp(min=1)


def number(value: Any, where: str, least: float = 0.0, most: float = math.inf) -> float:
    """``value`` as a finite float with ``least <= value <= most``; else ConfigError."""
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
    """``value`` if it is a bool; else ConfigError."""
    if not isinstance(value, bool):
        raise ConfigError(f"loss {where} is {value!r}, must be true or false.")
    return value
