"""Which number type and memory layout train a network fastest on the CPU at hand."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline import networks
from pipeline.config import Config

WORTH = 0.85
"""Share of the time of float32 below which another way is taken: what is merely as fast is not."""

FLAT = 2048
"""Pixels of a slice over slices of a 3D patch from which bfloat16 is not tried: torch 2.13 (oneDNN)
writes beyond its memory in the backward pass of such convolutions, and the process dies."""

STEPS = 3
"""Steps of which the median counts, after one that is not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A way to compute.

    Args:
        amp: ``none`` or ``bf16``.
        channels_last: memory layout of images and weights.
        seconds: of a step, forwards and backwards.
        plain: the same in float32.
    """

    amp: str
    channels_last: bool
    seconds: float
    plain: float

    @property
    def is_plain(self) -> bool:
        """Whether it is float32 in the usual layout."""
        return self.amp == "none" and not self.channels_last

    @property
    def reason(self) -> str:
        """Why it was taken, with numbers."""
        return f"measured here: a step takes {self.seconds:.2f} s, in float32 {self.plain:.2f} s"


def fastest(config: Config, channels: int, outputs: int) -> Precision:
    """Time some steps of the network in each way.

    Processors with matrix units (AMX) compute bfloat16 several times faster than float32; on others
    it is slower, so it has to be measured.

    Args:
        config: network, patch and batch.
        channels: of the image.
        outputs: of the network.

    Returns:
        The fastest way; float32 unless another one saves 15 %.
    """
    types = ("none", "bf16") if is_safe(config.data.patch.size) else ("none",)
    seconds = {
        (amp, last): _step_seconds(config, (channels, outputs), amp, last)
        for amp in types
        for last in ((False, True) if amp == "bf16" else (False,))
    }
    plain = seconds["none", False]
    best = min(seconds, key=lambda way: seconds[way])
    if seconds[best] > WORTH * plain:
        best = ("none", False)
    return Precision(amp=best[0], channels_last=best[1], seconds=seconds[best], plain=plain)


def is_safe(patch: Sequence[int]) -> bool:
    """Whether a patch can be trained in bfloat16 on a CPU without broken memory.

    Args:
        patch: pixels, or voxels with the slices first.

    Returns:
        False for few and large slices.

    Example:
        >>> is_safe((256, 256)), is_safe((1, 256, 256)), is_safe((40, 56, 40))
        (True, False, True)
    """
    return len(patch) == 2 or math.prod(patch[1:]) < FLAT * patch[0]


def _step_seconds(config: Config, ends: tuple[int, int], amp: str, last: bool) -> float:
    """Median seconds of a step in one way."""
    patch, dims = config.data.patch, config.data.dims
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = networks.build(config.network, *ends, dims).train()
        images = torch.randn(patch.batch, ends[0], *patch.size)
    if last:
        network, images = network.to(memory_format=layout), images.to(memory_format=layout)  # type: ignore[call-overload]
    seconds = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp == "bf16"):
            heads = network(images)
        torch.stack([head.float().square().mean() for head in heads.values()]).sum().backward()
        network.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
