"""The network ``attention_unet``: MONAI's, for any number of levels, in 2D and 3D.

::

    network: {name: attention_unet, options: {channels: [16, 32, 64], dropout: 0.1}}
"""

from collections.abc import Sequence

from monai.networks.nets.attentionunet import AttentionUnet
from torch import Tensor

import pipeline as pl


class HeadedAttentionUnet(pl.HeadedNet):
    """MONAI's ``AttentionUnet`` as a network with one head."""

    outputs = ("network.model.2",)  # what train.init_from.fresh_heads makes anew

    def __init__(self, network: AttentionUnet, dims: int, levels: int) -> None:
        # Every level but the first halves the axes; inputs are padded to multiples of that.
        super().__init__(heads=["main"], divisor=[2 ** (levels - 1)] * dims)
        self.network = network

    def run(self, x: Tensor) -> dict[str, Tensor]:
        return {"main": self.network(x)}


def attention_unet(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    channels: Sequence[int] = (16, 32, 64, 128, 256),
    dropout: float = 0.0,
) -> HeadedAttentionUnet:
    """U-Net whose skip connections are weighted by attention gates.

    Args:
        in_channels: channels of the image; given by the package, as the next two.
        out_channels: channels of the head ``main``.
        dims: space axes, 2 or 3.
        channels: width of each level, at least two.
        dropout: rate after every convolution, from 0 to below 1.

    Returns:
        The network: ``(B, C, *S)`` to ``{"main": (B, K, *S)}``, logits.

    Source: Oktay et al., MIDL 2018.
    """
    if len(channels) < 2:
        raise ValueError(f"channels is {list(channels)}, must have at least two entries.")
    strides = (2,) * (len(channels) - 1)
    network = AttentionUnet(dims, in_channels, out_channels, channels, strides, dropout=dropout)
    return HeadedAttentionUnet(network, dims, len(channels))


pl.register("attention_unet", pl.NetworkEntry(attention_unet))
