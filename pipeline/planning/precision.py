"""Which number type and memory layout train a network fastest on the CPU at hand."""

from __future__ import annotations

import json
import logging
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline import networks
from pipeline.config import Config
from pipeline.records import NamedOptions

logger = logging.getLogger(__name__)

WORTH = 0.85
"""Share of the time of float32 below which another way is taken: what is merely as fast is not."""

FLAT = 2048
"""Pixels of a slice over slices of a 3D patch from which bfloat16 is not tried: torch 2.13 (oneDNN)
writes beyond its memory in the backward pass of such convolutions, and the process dies."""

STEPS = 5
"""Steps of which the median counts, after one that is not counted."""

LONGER = 4.0
"""A way is given up after so many times as long as float32 takes, and some seconds to start."""

START = 30.0
"""Seconds in which a process imports what it needs."""

WAYS = (("none", False), ("bf16", False), ("bf16", True))
"""Number type (``train.amp``) and whether channels are last (``train.channels_last``)."""


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
        return (
            f"measured here: forward and backward take {self.seconds:.2f} s, in float32"
            f" {self.plain:.2f} s"
        )


def fastest(
    config: Config, channels: int, outputs: int, progress: Callable[[str], object] | None = None
) -> Precision:
    """Time some steps of the network in each way.

    Processors with instructions for bfloat16 (AMX, AVX-512 BF16) take about half the time, others
    longer than in float32, so it has to be measured. Each way has a process of its own, which is
    ended where it takes too long: some convolutions take minutes in bfloat16, or end the process.

    Args:
        config: network, patch and batch.
        channels: of the image.
        outputs: of the network.
        progress: called with what is measured next.

    Returns:
        The fastest way; float32 unless another one saves 15 %.
    """
    tell, safe = progress or (lambda text: None), is_safe(config.data.patch.size)
    tell(f"{STEPS + 1} steps in float32{', then in bfloat16' if safe else ''}")
    plain = _measured(config, (channels, outputs), WAYS[0], None)
    if plain is None:
        return Precision(amp="none", channels_last=False, seconds=0.0, plain=0.0)
    best, seconds = WAYS[0], plain
    for way in WAYS[1:] if safe else ():
        tell(f"bfloat16{', channels last' if way[1] else ''} (float32: {plain:.2f} s a step)")
        found = _measured(config, (channels, outputs), way, LONGER * (STEPS + 1) * plain)
        if found is not None and found < min(seconds, WORTH * plain):
            best, seconds = way, found
    return Precision(amp=best[0], channels_last=best[1], seconds=seconds, plain=plain)


def is_safe(patch: Sequence[int]) -> bool:
    """Whether nnU-Net's networks can be trained in bfloat16 on a CPU without broken memory.

    Args:
        patch: pixels, or voxels with the slices first.

    Returns:
        False for few and large slices; single ones are computed as images
        (:mod:`pipeline.networks.slices`).

    Example:
        >>> is_safe((256, 256)), is_safe((1, 256, 256)), is_safe((4, 256, 256))
        (True, True, False)
    """
    return len(patch) == 2 or patch[0] == 1 or math.prod(patch[1:]) < FLAT * patch[0]


def _measured(
    config: Config, ends: tuple[int, int], way: tuple[str, bool], limit: float | None
) -> float | None:
    """Seconds of a step in a process of its own; None where it ended early or took too long."""
    patch = config.data.patch
    asked = {
        "network": {"name": config.network.name, "options": dict(config.network.options)},
        "ends": ends,
        "size": patch.size,
        "batch": patch.batch,
        "way": way,
        "threads": torch.get_num_threads(),
    }
    code = (
        f"from pipeline.planning.precision import child; child({json.dumps(asked, default=list)!r})"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            timeout=None if limit is None else START + limit,
        )
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        logger.debug("%s is not used: %s", way, error)
        return None


def child(asked: str) -> None:
    """Print the seconds of a step: the program of the processes that :func:`fastest` starts.

    Args:
        asked: JSON of network, patch and way.
    """
    found = json.loads(asked)
    torch.set_num_threads(found["threads"])
    sys.stdout.write(f"{step_seconds(found)}\n")


def step_seconds(asked: Mapping[str, Any]) -> float:
    """Median seconds of a step.

    Args:
        asked: ``network``, ``ends`` (channels in and out), ``size``, ``batch`` and ``way``.

    Returns:
        Forwards and backwards.
    """
    dims, (amp, last) = len(asked["size"]), asked["way"]
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    inputs, outputs = asked["ends"]
    network = networks.build(NamedOptions(**asked["network"]), inputs, outputs, dims).train()
    images = torch.randn(asked["batch"], inputs, *asked["size"])
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
