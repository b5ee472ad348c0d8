"""NETWORKS: what ``network:`` in a YAML may name.

A network returns named heads, each as large as its input unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from pipeline.config import OptionTypeError, bind
from pipeline.networks.abpn import abpn
from pipeline.networks.base import HeadedNet
from pipeline.networks.mednext import mednext
from pipeline.networks.nnunet import plain_unet, resenc_unet
from pipeline.networks.restoration import deblur_unet, image_unet
from pipeline.networks.sa_unet import sa_unet
from pipeline.networks.unet import dynunet, segresnet, unet
from pipeline.records import NamedOptions
from pipeline.registry import Registry

__all__ = ["NETWORKS", "HeadedNet", "NetworkEntry", "build", "parameters"]


@dataclass(frozen=True, slots=True)
class NetworkEntry:
    """A network.

    Args:
        build: ``build(in_channels, out_channels, dims, **options)`` returns a :class:`HeadedNet`.
            Its size needs no estimate: it is first built on torch's meta device, where weights have
            a shape and no memory, and counted there (:mod:`pipeline.networks.outline`).
        repeats: options that say how often something is repeated, with the largest value of each,
            for layers take time even without memory. Other numbers may be up to 65,536.

    Example:
        >>> from pipeline.networks import NETWORKS
        >>> net = NETWORKS["segresnet"].build(in_channels=1, out_channels=2, dims=3, filters=8)
        >>> net.heads, net.divisor
        (('main',), (8, 8, 8))
    """

    build: Callable[..., HeadedNet]
    repeats: Mapping[str, int] = field(default_factory=dict)


NETWORKS: Registry[NetworkEntry] = Registry(
    "network",
    {
        "unet": NetworkEntry(unet),
        "dynunet": NetworkEntry(dynunet, {"block": 256}),
        "plain_unet": NetworkEntry(plain_unet, {"convs": 64, "decoder_convs": 64}),
        "resenc_unet": NetworkEntry(resenc_unet, {"blocks": 32, "decoder_convs": 64}),
        "mednext": NetworkEntry(mednext),
        "segresnet": NetworkEntry(segresnet, {"blocks_down": 64, "blocks_up": 64}),
        "sa_unet": NetworkEntry(sa_unet, {"block": 256}),
        "image_unet": NetworkEntry(image_unet, {"depth": 16}),
        "deblur_unet": NetworkEntry(deblur_unet),
        "abpn": NetworkEntry(abpn, {"levels": 16}),
    },
    record=NetworkEntry,
)


def build(named: NamedOptions, in_channels: int, out_channels: int, dims: int) -> HeadedNet:
    """Build a network by name, with fresh weights from torch's global generator.

    Args:
        named: entry of :data:`NETWORKS` and its options.
        in_channels: channels of the input.
        out_channels: channels of head ``main``.
        dims: space axes, 2 or 3.

    Returns:
        The network, on torch's default device and in training mode.

    Raises:
        ConfigError: for an unknown name, or an option that is unknown or has a wrong value.

    Example:
        >>> named = NamedOptions(name="sa_unet", options={"channels": [4, 8]})
        >>> parameters(build(named, in_channels=3, out_channels=1, dims=2))
        2039
    """
    given = {"in_channels": in_channels, "out_channels": out_channels, "dims": dims}
    try:
        factory = bind(NETWORKS, named, "network", given=tuple(given))
    except OptionTypeError as error:
        raise error.in_own_words(
            lambda: NETWORKS[named.name].build(**given, **named.options)
        ) from None
    return factory(**given)


def parameters(module: nn.Module) -> int:
    """Count the weights that training changes.

    Args:
        module: any module.

    Returns:
        Number of elements of all parameters that require a gradient.
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
