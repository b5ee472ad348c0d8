"""Adaptive Blend Pyramid Network (ABPN) for retouching photographs of any size.

The retouch is computed on a small copy of the image and carried to full resolution as a blend
layer. After Lei et al., "ABPN: Adaptive Blend Pyramid Network for Real-Time Local Retouching of
Ultra High-Resolution Photos" (CVPR 2022), whose code was never published; the widths are those of
the weights that its authors released. Images are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.base import (
    HeadedNet,
    Spec,
    are_whole,
    choice,
    fraction,
    is_whole,
    norm_layer,
    require,
)

SLOPE = 0.2
"""Negative slope of every leaky ReLU."""

LAST_STD = 1e-7
"""Standard deviation of the weights of last convolutions.

The output begins as the input, yet gradient passes from the first step.
"""

BAND = 2**22
"""Values of the widest map that :func:`in_bands` computes at once: 16 MiB in float32.

Bands have at least ``ROWS`` rows even where that is more.
"""

ROWS = 32
"""Fewest rows in a band: rows around a band are computed twice, so thin bands would cost much."""

HALO = 4
"""Rows that a band has more at each end.

Two convolutions of kernel 3 and a bilinear enlargement see less than four.
"""

FORMS = ("soft_light", "positive")
FLOOR = 0.1
"""Lower bound of the divisor of ``form: positive`` on [0, 1]."""


# --- blending -------------------------------------------------------------------------------------


class Blend(nn.Module):
    """Adaptive blend and its inverse: ``R = sum_i (j_i B + k_i) g_i`` with g = (1, I, I²).

    I is the image, B the blend layer and R the result; the six scalars j and k serve all channels
    and levels.

    Written about the neutral layer, B = 1/2: ``R = A(I) + (B - 1/2) D(I)`` with ``D = sum j_i g_i``
    and ``A = sum (j_i / 2 + k_i) g_i``, which is I at the start. ``form`` says how D is made:

    - ``soft_light``: j is free and starts as (0, 2, -2), so ``D = 2 I (1 - I)``: soft light (W3C
      compositing as simplified by Pegtop), which cannot change pure black and pure white.
    - ``positive``: Bernstein polynomial of degree 2 with coefficients ``0.1 + softplus(.)``, hence
      ``D >= 0.1`` on [0, 1] however it is trained. They start as (0.2, 1, 0.2): soft light with a
      fifth of its greatest coefficient at both ends.

    The weights are offsets from these starts, so that weight decay pulls towards them. Computes in
    float32 (or float64) with autocast off: a quotient in half precision would be wrong in every
    digit that counts.

    Args:
        form: ``soft_light`` or ``positive``.
        learn: whether the six scalars are trained.
        epsilon: least ``|D|`` by which :meth:`inverse` divides, above 0.

    Source: Lei et al., CVPR 2022.

    Example:
        >>> blend, image = Blend(), torch.full((1, 1, 1, 1), 0.5)
        >>> result = blend(image, torch.full((1, 1, 1, 1), 0.7))
        >>> round(result.item(), 4), round(blend.inverse(image, result).item(), 4)
        (0.6, 0.7)
    """

    start: Tensor

    def __init__(self, form: str = "soft_light", learn: bool = True, epsilon: float = 1e-2) -> None:
        super().__init__()
        self.form, self.epsilon = form, epsilon
        soft_light = form == "soft_light"
        raw = (
            [0.0, 2.0, -2.0]
            if soft_light
            else [math.log(math.expm1(b - FLOOR)) for b in (0.2, 1.0, 0.2)]
        )
        self.register_buffer("start", torch.tensor([[0.0, 1.0, 0.0], raw]), persistent=False)
        self.offset = nn.Parameter(torch.zeros(2, 3), requires_grad=learn)

    def _scalars(self) -> tuple[Tensor, Tensor]:
        """Coefficients of A and of D for 1, I and I²."""
        neutral, raw = (self.start + self.offset).unbind()
        if self.form == "soft_light":
            return neutral, raw
        b0, b1, b2 = (functional.softplus(raw) + FLOOR).unbind()
        return neutral, torch.stack([b0, 2 * (b1 - b0), b0 - 2 * b1 + b2])

    @property
    def j(self) -> Tensor:
        """Scalars ``(3,)`` that multiply B."""
        return self._scalars()[1]

    @property
    def k(self) -> Tensor:
        """Scalars ``(3,)`` that do not multiply B."""
        neutral, slope = self._scalars()
        return neutral - slope / 2

    def forward(self, image: Tensor, blend: Tensor) -> Tensor:
        """Lay a blend layer on an image.

        Args:
            image: ``(B, C, Y, X)`` in [0, 1].
            blend: layer of the same shape; 1/2 is neutral.

        Returns:
            The result R ``(B, C, Y, X)``, float32 or float64.
        """
        with _without_autocast(image):
            image, blend = _at_least_float32(image), _at_least_float32(blend)
            neutral, slope = self._scalars()
            return _quadratic(neutral, image) + (blend - 0.5) * _quadratic(slope, image)

    def inverse(self, image: Tensor, result: Tensor) -> Tensor:
        """Compute the layer that turns an image into a given result: ``1/2 + (R - A) / D``.

        Exact up to rounding where ``|D| >= epsilon``. Where D is nearer to zero it is
        ``1/2 + (R - A) D / epsilon²``: continuous, of the right sign, 1/2 where D is 0, and never
        further from 1/2 than ``|R - A| / epsilon``.

        Args:
            image: ``(B, C, Y, X)`` in [0, 1].
            result: the wanted result, of the same shape.

        Returns:
            The blend layer ``(B, C, Y, X)``, float32 or float64.
        """
        with _without_autocast(image):
            image, result = _at_least_float32(image), _at_least_float32(result)
            neutral, slope = self._scalars()
            divisor = _quadratic(slope, image)
            return 0.5 + (result - _quadratic(neutral, image)) * divisor / divisor.square().clamp(
                min=self.epsilon**2
            )


def _quadratic(scalars: Tensor, x: Tensor) -> Tensor:
    return (scalars[2] * x + scalars[1]) * x + scalars[0]


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off on the device of ``x``, where that has autocast at all."""
    kind = x.device.type
    return (
        torch.autocast(kind, enabled=False)
        if torch.amp.is_autocast_available(kind)
        else nullcontext()
    )


# --- sizes ----------------------------------------------------------------------------------------


def halved(x: Tensor) -> Tensor:
    """Halve a map by the means of 2 x 2 pixels.

    Args:
        x: ``(B, C, Y, X)``; an odd last row or column is left out.

    Returns:
        ``(B, C, Y // 2, X // 2)``.
    """
    return functional.avg_pool2d(x, 2)


def doubled(x: Tensor) -> Tensor:
    """Double a map by bilinear interpolation between pixel centres.

    Args:
        x: ``(B, C, Y, X)``.

    Returns:
        ``(B, C, 2 Y, 2 X)``.
    """
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


Step = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Computes a map of one size from maps of that size and maps of half that size.

It must be local: a row may depend on fewer than ``HALO`` rows around it.
"""


def in_bands(step: Step, fine: Sequence[Tensor], coarse: Sequence[Tensor], widest: int) -> Tensor:
    """Compute ``step(fine, coarse)`` in bands of rows, so that its inner maps are never whole.

    The result equals that of the whole maps up to rounding. Not banded where a gradient is wanted,
    nor while an export is traced, which would write the number of bands into the export.

    Args:
        step: function to compute.
        fine: maps ``(B, C, Y, X)``.
        coarse: maps ``(B, C, Y / 2, X / 2)``; may be empty.
        widest: channels of the widest inner map of ``step``.

    Returns:
        The map ``(B, C, Y, X)``.
    """
    if torch.is_grad_enabled() or torch.jit.is_tracing():
        return step(fine, coarse)
    batch, _, high, wide = fine[0].shape
    rows = max(ROWS, BAND // (batch * widest * wide) // 2 * 2)
    if rows >= high:
        return step(fine, coarse)
    whole: Tensor | None = None
    for start in range(0, high, rows):
        top, bottom = max(0, start - HALO), min(high, start + rows + HALO)
        part = step(
            [m[:, :, top:bottom] for m in fine], [m[:, :, top // 2 : bottom // 2] for m in coarse]
        )
        part = part[:, :, start - top :][:, :, :rows]
        if whole is None:
            whole = part.new_empty((*part.shape[:2], high, wide))
        whole[:, :, start : start + rows] = part
    assert whole is not None
    return whole


# --- layers ---------------------------------------------------------------------------------------


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, SLOPE)


def _normalise(norm: Spec | None, channels: int) -> nn.Module:
    return (
        nn.Identity() if norm is None else get_norm_layer(norm, spatial_dims=2, channels=channels)
    )


def _initialised(conv: nn.Conv2d, faint: slice = slice(0)) -> nn.Conv2d:
    """He's initialisation for leaky ReLU (ICCV 2015), no bias, outputs ``faint`` almost zero."""
    nn.init.kaiming_normal_(conv.weight, a=SLOPE, nonlinearity="leaky_relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    with torch.no_grad():
        conv.weight[faint].normal_(std=LAST_STD)
    return conv


class Plain(nn.Module):
    """Convolution of kernel 3, norm, leaky ReLU.

    Args:
        inside: channels in.
        outside: channels out.
        norm: normalisation; None: none, and the convolution has a bias.
        stride: stride of the convolution.
        last: end of a decoder: no leaky ReLU.
    """

    def __init__(
        self,
        inside: int,
        outside: int,
        norm: Spec | None = None,
        stride: int = 1,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.last = last
        self.conv = _initialised(
            nn.Conv2d(inside, outside, 3, stride, padding=1, bias=norm is None)
        )
        self.norm = _normalise(norm, outside)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block.

        Args:
            x: ``(B, inside, Y, X)``.

        Returns:
            ``(B, outside, ceil(Y / stride), ceil(X / stride))``.
        """
        y = self.norm(self.conv(x))
        return y if self.last else _leaky(y)


class Gated(nn.Module):
    """Gated convolution ``phi(W_f x) * sigmoid(W_g x)`` of kernel 3 (Yu et al., ICCV 2019).

    One convolution computes both, features before gates.

    Args:
        inside: channels in.
        outside: channels out.
        norm: normalisation of the features; None: none.
        last: end of a decoder: no phi, for it has to darken as well as lighten, and it starts
            almost at zero.
    """

    def __init__(
        self, inside: int, outside: int, norm: Spec | None = None, last: bool = False
    ) -> None:
        super().__init__()
        self.last = last
        self.conv = _initialised(
            nn.Conv2d(inside, 2 * outside, 3, padding=1), slice(outside if last else 0)
        )
        self.norm = _normalise(norm, outside)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block.

        Args:
            x: ``(B, inside, Y, X)``.

        Returns:
            ``(B, outside, Y, X)``.
        """
        features, gates = self.conv(x).chunk(2, 1)
        features = self.norm(features)
        return (features if self.last else _leaky(features)) * gates.sigmoid()


class LowResolution(nn.Module):
    """Low-resolution layer: an encoder, a decoder for the mask and one for the retouch.

    The retouch decoder consists of gated convolutions and sees the mask. Both decoders enlarge by
    repeating pixels (as the authors do) and end at the image itself as last skip. The mask enters
    each gated stage as the mean probability over its pixels; gradient of the retouch reaches the
    mask through it.

    Args:
        channels: channels of the image.
        widths: channels of each level of the encoder, finest first.
        norm: normalisation; None: none. The first block and the ends of the decoders never have
            one.
        confine: multiply the change by the mask, too.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], norm: Spec | None, confine: bool = False
    ) -> None:
        super().__init__()
        self.confine = confine
        before = [channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            Plain(a, b, norm if n else None, stride=2)
            for n, (a, b) in enumerate(zip(before, widths, strict=True))
        )
        self.mask, self.retouch = nn.ModuleList(), nn.ModuleList()
        below = widths[-1]
        for n, skip in reversed(list(enumerate(before))):
            last = n == 0
            here = None if last else norm
            self.mask.append(Plain(below + skip, 1 if last else skip, here, last=last))
            self.retouch.append(Gated(below + skip + 1, skip, here, last=last))
            below = skip

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Retouch a small image.

        Args:
            image: ``(B, C, Y, X)``, axes multiples of ``2 ** len(widths)``.

        Returns:
            The retouched image ``(B, C, Y, X)`` and the mask's logits ``(B, 1, Y, X)``.
        """
        skips = [image]
        for block in self.encoder:
            skips.append(block(skips[-1]))
        bottom = skips.pop()
        logits = _decode(self.mask, [[s] for s in skips], bottom)
        probability = [logits.sigmoid()]
        for _ in skips[1:]:
            probability.append(halved(probability[-1]))
        change = _decode(
            self.retouch, [[s, m] for s, m in zip(skips, probability, strict=True)], bottom
        )
        return image + (change * probability[0] if self.confine else change), logits


def _decode(stages: nn.ModuleList, sides: Sequence[Sequence[Tensor]], bottom: Tensor) -> Tensor:
    """Run a decoder from the bottom up.

    Each stage takes the map below, enlarged, and its ``sides``, which are listed finest first.
    """
    *inner, last = stages
    for stage, side in zip(inner, reversed(sides), strict=False):
        bottom = _run_stage(stage, side, [bottom])
    widest = bottom.shape[1] + sum(s.shape[1] for s in sides[0])
    return in_bands(lambda fine, coarse: _run_stage(last, fine, coarse), sides[0], [bottom], widest)


def _run_stage(stage: nn.Module, side: Sequence[Tensor], below: Sequence[Tensor]) -> Tensor:
    first, *others = side
    return stage(
        torch.cat(
            [first, functional.interpolate(below[0], scale_factor=2.0, mode="nearest"), *others], 1
        )
    )


class Refinement(nn.Module):
    """A blend layer at twice its resolution: ``u + conv(leaky(conv([u, H])))``.

    u is the enlarged layer and H the image's detail.

    Args:
        channels: channels of the image.
        width: channels between the two convolutions.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = _initialised(nn.Conv2d(2 * channels, width, 3, padding=1))
        self.last = _initialised(nn.Conv2d(width, channels, 3, padding=1), slice(channels))

    def forward(self, image: Tensor, smaller: Tensor, blend: Tensor) -> Tensor:
        """Refine the blend layer of the level below.

        Args:
            image: ``(B, C, Y, X)``.
            smaller: the image halved, ``(B, C, Y / 2, X / 2)``.
            blend: layer of the level below, ``(B, C, Y / 2, X / 2)``.

        Returns:
            The layer for ``image``, ``(B, C, Y, X)``.
        """
        enlarged = doubled(blend)
        detail = image - doubled(smaller)
        return enlarged + self.last(_leaky(self.first(torch.cat([enlarged, detail], 1))))


# --- the network ----------------------------------------------------------------------------------


class ABPN(HeadedNet):
    """Pyramid, low-resolution layer, inverse blend, refinement level by level, blend.

    Heads: ``main``, ``mask`` and perhaps ``blend``. ``mask`` has half the input's resolution,
    ``(B, 1, ceil(Y / 2), ceil(X / 2))``: the retouch is trained on soft masks of that size. It is
    enlarged from the low-resolution layer where that is smaller still. ``blend`` is the
    full-resolution layer ``(B, C, Y, X)``; 1/2 changes nothing.

    Args:
        low: the low-resolution layer.
        refine: refinement of each level, finest first.
        blend: the blend and its inverse.
        blend_head: whether to return the head ``blend``.
        normed: whether ``low`` has normalisations.
    """

    def __init__(
        self,
        low: LowResolution,
        refine: Sequence[Refinement],
        blend: Blend,
        blend_head: bool,
        normed: bool,
    ) -> None:
        super().__init__(
            ("main", "mask", *(["blend"] if blend_head else [])),
            (2 ** (len(refine) + len(low.encoder)),) * 2,
        )
        self.low, self.blend, self.normed = low, blend, normed
        self.refine = nn.ModuleList(refine)
        last = len(low.mask) - 1
        self.outputs = (
            f"low.mask.{last}",
            f"low.retouch.{last}",
            *(f"refine.{n}.last" for n in range(len(refine))),
        )
        self.widest = max(max(r.first.in_channels, r.first.out_channels) for r in refine)

    def padded_size(self, size: Sequence[int]) -> list[int]:
        """Round a size up to the next multiples of ``divisor``.

        Unlike in other networks a bottom of one pixel is doubled only where a norm would refuse it.

        Args:
            size: pixels along each axis.

        Returns:
            The size that the input is padded to.
        """
        return (
            super().padded_size(size)
            if self.normed
            else [-(-n // d) * d for n, d in zip(size, self.divisor, strict=True)]
        )

    def cut(self, heads: Mapping[str, Tensor], size: Sequence[int]) -> dict[str, Tensor]:
        """Cut heads of a padded input to what belongs to the input, the mask to half its size.

        Args:
            heads: output of :meth:`run`.
            size: pixels of the input along each axis.

        Returns:
            The heads; the mask has half of ``size``, rounded up.
        """
        half = (-(-n // 2) for n in size)
        return {**super().cut(heads, size), "mask": heads["mask"][(..., *(slice(n) for n in half))]}

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Compute all heads of an input whose axes are multiples of ``divisor``.

        Args:
            x: images ``(B, C, Y, X)`` in [0, 1].

        Returns:
            ``main`` ``(B, C, Y, X)``, ``mask`` ``(B, 1, Y / 2, X / 2)``, logits, and perhaps
            ``blend``.
        """
        images = [x]
        for _ in self.refine:
            images.append(halved(images[-1]))
        retouched, mask = self.low(images[-1])
        layer = self.blend.inverse(images[-1], retouched)
        for level in range(len(self.refine) - 1, 0, -1):
            layer = self._refined(level, images, layer)
        for _ in self.refine[1:]:
            mask = doubled(mask)
        if "blend" not in self.heads:
            return {"main": self._refined(0, images, layer, finish=True), "mask": mask}
        layer = self._refined(0, images, layer)
        return {
            "main": in_bands(lambda fine, _: self.blend(*fine), [x, layer], [], layer.shape[1]),
            "mask": mask,
            "blend": layer,
        }

    def _refined(
        self, level: int, images: Sequence[Tensor], layer: Tensor, finish: bool = False
    ) -> Tensor:
        """The blend layer of ``level`` from that of the level below.

        With ``finish`` it is laid on the image at once, and never whole.
        """
        refine = self.refine[level]

        def step(fine: Sequence[Tensor], coarse: Sequence[Tensor]) -> Tensor:
            refined = refine(fine[0], *coarse)
            return self.blend(fine[0], refined) if finish else refined

        return in_bands(step, [images[level]], [images[level + 1], layer], self.widest)


def abpn(
    *,
    in_channels: int,
    out_channels: int,
    dims: int,
    levels: int = 1,
    widths: Sequence[int] = (64, 128, 256, 512, 512, 512),
    refine: int = 16,
    norm: str | Mapping[str, Any] = "none",
    form: str = "soft_light",
    learn: bool = True,
    epsilon: float = 1e-2,
    blend_head: bool = False,
    confine: bool = False,
) -> HeadedNet:
    """Adaptive Blend Pyramid Network with a branch that predicts where to retouch.

    Images are in [0, 1]. Untrained, the network returns its input (to about 1e-6). The default has
    41,585,955 weights for three channels. (Doubling is not bitwise reproducible on CUDA.)

    Args:
        in_channels: channels of the images.
        out_channels: the same number.
        dims: 2.
        levels: halvings between the image and the low-resolution layer, which does most of the
            work: each more quarters its cost.
        widths: channels of the low-resolution encoder, one entry for each further halving; both
            decoders mirror them.
        refine: width of the refinement of each level.
        norm: of the low-resolution layer: none, or batch, group, instance (group and instance make
            a tile depend on all of its pixels); the first block and the ends of the decoders never
            have one.
        form: form of the blend, see :class:`Blend`.
        learn: whether the blend's scalars are trained.
        epsilon: least divisor of the inverse blend, above 0 and below 1.
        blend_head: also return the full-resolution blend layer, e.g. for a loss of total variation.
        confine: multiply the change by the mask, so that what the network takes for clean stays as
            it is; not in the paper.

    Returns:
        The network, with heads ``main``, ``mask`` and perhaps ``blend``; see :class:`ABPN`.

    Raises:
        ConfigError: for ``dims`` other than 2, different channel counts, or an option that cannot
            be used.

    Source: Lei et al., CVPR 2022.

    Example:
        >>> net = abpn(in_channels=3, out_channels=3, dims=2, levels=2, widths=[4, 8], refine=4)
        >>> {name: tuple(y.shape) for name, y in net(torch.rand(1, 3, 50, 60)).items()}
        {'main': (1, 3, 50, 60), 'mask': (1, 1, 25, 30)}
    """
    where = "network 'abpn'"
    require(
        dims == 2,
        f"{where} is a network for images, but data.dims is {dims}. Set data.dims: 2, or take the"
        " network 'unet'.",
    )
    require(
        in_channels == out_channels,
        f"{where} lays a layer of blending on its input, so both have as many channels, but they"
        f" are {in_channels} and {out_channels}. Bring input and target to one number, or take the"
        " network 'image_unet'.",
    )
    require(
        is_whole(levels),
        f"{where}: levels is {levels!r}, must be a whole number of at least 1, e.g. 3 for"
        " photographs of 24 megapixels.",
    )
    require(
        are_whole(widths),
        f"{where}: widths is {widths!r}, must be whole numbers of at least 1, one for each halving,"
        " e.g. [64, 128, 256, 512, 512, 512].",
    )
    require(
        is_whole(refine),
        f"{where}: refine is {refine!r}, must be a whole number of at least 1, e.g. 16.",
    )
    choice(form, FORMS, f"{where}: form")
    for name, value in (("learn", learn), ("blend_head", blend_head), ("confine", confine)):
        require(isinstance(value, bool), f"{where}: {name} is {value!r}, must be true or false.")
    epsilon = fraction(epsilon, f"{where}: epsilon")
    require(
        epsilon > 0,
        f"{where}: epsilon is 0, so the blend would divide by nothing at black and white. Set e.g."
        " 0.01.",
    )
    spec = None if norm == "none" else norm_layer(norm, widths, f"{where}: norm (besides 'none')")
    return ABPN(
        LowResolution(in_channels, widths, spec, confine),
        [Refinement(in_channels, refine) for _ in range(levels)],
        Blend(form, learn, epsilon),
        blend_head,
        normed=spec is not None,
    )
