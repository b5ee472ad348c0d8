"""Memory of a training step: estimated from what torch keeps for backward, without a device."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from pipeline import networks
from pipeline.config import Config
from pipeline.inference import devices

logger = logging.getLogger(__name__)

PER_ELEMENT = {"none": 10.5, "bf16": 5.5, "fp16": 5.5}
"""Bytes that a training step takes for each element of all feature maps, by ``train.amp``.

Of a convolution torch keeps the output before and after the norm; nnU-Net's networks, its presets
and patches of 2D and 3D give 9.2 to 11.3 in full precision. nnU-Net itself counts with 7.1.
"""


def elements_to_bytes(elements: float, batch: int, amp: str = "none") -> float:
    """Estimate the memory of a training step from the size by which nnU-Net plans.

    Args:
        elements: of all feature maps of one sample (:func:`pipeline.planning.topology.elements`).
        batch: samples of a step.
        amp: ``train.amp``.

    Returns:
        Bytes.

    Example:
        >>> elements_to_bytes(5e8, 2, "bf16") / 1e9
        5.5
    """
    return elements * batch * PER_ELEMENT[amp]


def estimated_memory(
    config: Config, channels: int, outputs: int, device: str = "cpu"
) -> int | None:
    """Estimate the bytes of a training step of a network without computing it.

    The network runs on torch's device ``meta``, which has shapes and no values. Losses are left
    out.

    Args:
        config: network, patch, batch, precision.
        channels: of the image.
        outputs: channels of the main head.
        device: on which it will be trained; fp16 has no effect on the CPU.

    Returns:
        Weights, gradients, momentum, and what is kept for backward; None where a network cannot run
        without values.

    Example:
        >>> from pipeline.config import from_dict
        >>> small = {"data": {"patch": {"size": [8, 8, 8]}}, "losses": ["dice"], "name": "small"}
        >>> config = from_dict({**small, "network": {"name": "plain_unet"}})
        >>> 10**6 < (estimated_memory(config, 1, 2) or 0) < 10**10
        True
    """
    patch, amp = config.data.patch, config.train.amp
    halves = amp == "bf16" or (amp == "fp16" and devices.kind(device) == "cuda")
    kept = torch.bfloat16 if halves else torch.float32
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.device("meta"):
                network = networks.build(config.network, channels, outputs, config.data.dims)
            weights = sum(p.numel() * p.element_size() for p in network.parameters())
            # Autocast knows no device meta: all of the network is cast.
            network = network.to("meta", kept).train()
            images = torch.zeros((patch.batch, channels, *patch.size), device="meta", dtype=kept)
            with SavedTensors() as saved:
                outputs_of = network(images)
    except Exception as error:  # a network may look at its values, or build from files
        logger.debug("no estimate of memory: %s", error)
        return None
    del outputs_of
    return saved.bytes + saved.passing + 3 * weights


class SavedTensors:
    """Counts the bytes that torch keeps for backward while it is open."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.held: list[Any] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self.sizes[storage._cdata] = storage.nbytes()
        return tensor

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    @property
    def bytes(self) -> int:
        """Bytes of all storages, each counted once."""
        return sum(self.sizes.values())

    @property
    def passing(self) -> int:
        """Bytes that come and go during backward: about two of the largest tensors."""
        return 2 * max(self.sizes.values(), default=0)


@contextlib.contextmanager
def saved_tensors(device: str) -> Iterator[SavedTensors | None]:
    """Count saved tensors on the CPU; a CUDA device counts its memory itself."""
    if device == "cuda":
        yield None
        return
    with SavedTensors() as saved:
        yield saved
