"""NETWORKS: what ``network:`` in a YAML may name. A network returns named heads, each as large as its input."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pipeline.config import OptionTypeError, bind
from pipeline.networks.abpn import abpn
from pipeline.networks.base import HeadedNet
from pipeline.networks.restoration import deblur_unet, image_unet
from pipeline.networks.sa_unet import sa_unet
from pipeline.networks.unet import dynunet, segresnet, unet
from pipeline.records import Part

__all__ = ["NETWORKS", "HeadedNet", "build", "parameters"]

NETWORKS: dict[str, Callable[..., HeadedNet]] = {
    "unet": unet,
    "dynunet": dynunet,
    "segresnet": segresnet,
    "sa_unet": sa_unet,
    "image_unet": image_unet,
    "deblur_unet": deblur_unet,
    "abpn": abpn,
}


def build(part: Part, in_channels: int, out_channels: int, dims: int) -> HeadedNet:
    """The network that ``part`` names, with fresh weights from torch's global generator. ConfigError for a wrong name or option."""
    given = {"in_channels": in_channels, "out_channels": out_channels, "dims": dims}
    try:
        factory = bind(NETWORKS, part, "network", given=tuple(given))
    except OptionTypeError as error:
        raise error.in_own_words(lambda: NETWORKS[part.name](**given, **part.options)) from None
    return factory(**given)


def parameters(module: nn.Module) -> int:
    """Number of weights that training changes."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
