"""ABPN: a blend that can be undone, an untrained network that changes nothing, any size, and bands
that leave no trace.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import ConfigError
from pipeline.networks import build, parameters, receptive
from pipeline.networks.abpn import ABPN, FLOOR, Blend, Gated, abpn
from pipeline.records import NamedOptions

SMALL = (4, 8, 8)
code = importlib.import_module("pipeline.networks.abpn")  # the package has a function of this name


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def net(channels: int = 3, dims: int = 2, out: int | None = None, **options: Any) -> ABPN:
    made = build(
        NamedOptions(name="abpn", options=options), channels, channels if out is None else out, dims
    )
    assert isinstance(made, ABPN)
    return made


def small(**options: Any) -> ABPN:
    return net(**{"widths": SMALL, **options})


def lively(network: ABPN) -> ABPN:
    """As after training: retouch and refinement change the image, the blend is no soft light."""
    last = len(network.low.retouch) - 1
    ends = rf"low\.retouch\.{last}\.conv\.weight|refine\.\d\.last\.weight"
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if re.fullmatch(ends, name):
                weight.normal_(std=0.05)
        network.blend.offset.copy_(torch.tensor([[0.02, -0.05, 0.03], [0.3, 0.2, -0.1]]))
    return network


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


# --- blend and inverse ----------------------------------------------------------------------------


def blend_of(j: list[float], **options: Any) -> Blend:
    """Soft light trained to other scalars ``j``; the neutral answer stays the image."""
    blend = Blend(**options)
    with torch.no_grad():
        blend.offset[1] = torch.tensor(j) - blend.j
    return blend


def positive(raw: list[float]) -> Blend:
    blend = Blend("positive")
    with torch.no_grad():
        blend.offset[1] = torch.tensor(raw)
    return blend


BLENDS = {
    "soft light": lambda: Blend(),
    "negative": lambda: blend_of([-1.0, 0.3, -0.2]),
    "crossing zero once": lambda: blend_of([-0.3, 1.0, 0.0]),
    "crossing zero twice": lambda: blend_of([0.2, -1.1, 1.2]),
    "positive": lambda: Blend("positive"),
    "positive, trained": lambda: positive([-8.0, 0.5, 3.0]),
}
EVERY_BLEND = pytest.mark.parametrize("which", BLENDS)


def divisor(blend: Blend, image: Tensor) -> Tensor:
    j = blend.j.detach()
    return sum((j[i] * image**i for i in range(3)), torch.zeros(()))


@EVERY_BLEND
def test_blend_is_the_polynomial_of_six_scalars(which: str) -> None:
    blend = BLENDS[which]()
    with torch.no_grad():
        blend.offset[0] = torch.tensor([0.1, -0.2, 0.3])
        image, layer = torch.rand(2, 2, 3, 9, 7).unbind()
        j, k = blend.j, blend.k
        wanted = sum((j[i] * layer + k[i]) * image**i for i in range(3))
        torch.testing.assert_close(blend(image, layer), wanted, rtol=0, atol=2e-6)


def test_the_scalars_begin_as_those_of_soft_light() -> None:
    blend = Blend()
    assert blend.j.tolist() == [0, 2, -2]
    assert blend.k.tolist() == [0, 0, 1]
    image, layer = torch.rand(2, 1, 3, 8, 8).unbind()
    torch.testing.assert_close(blend(image, layer), (1 - 2 * layer) * image**2 + 2 * layer * image)


@EVERY_BLEND
def test_one_half_is_neutral(which: str) -> None:
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(BLENDS[which]()(image, torch.full_like(image, 0.5)), image)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), which=st.sampled_from(sorted(BLENDS)))
def test_inverse_undoes_the_blend_for_every_sign_of_the_divisor(seed: int, which: str) -> None:
    blend = BLENDS[which]()
    image, layer, result = torch.rand(
        3, 1, 3, 40, 40, generator=torch.Generator().manual_seed(seed)
    ).unbind()
    safe = divisor(blend, image).abs() >= 1.001 * blend.epsilon
    with torch.no_grad():
        found = blend.inverse(image, blend(image, layer))
        again = blend(image, blend.inverse(image, result))
    assert safe.float().mean() > 0.9
    assert (found - layer)[safe].abs().max() < 1e-5
    assert (again - result)[safe].abs().max() < 1e-5


def test_the_blends_tried_have_every_sign() -> None:
    x = torch.linspace(0, 1, 1001)
    signs = {
        name: set(divisor(make(), x).sign().int().tolist()) - {0} for name, make in BLENDS.items()
    }
    assert signs["negative"] == {-1}
    assert signs["crossing zero once"] == signs["crossing zero twice"] == {-1, 1}
    assert signs["positive"] == signs["positive, trained"] == {1}


@pytest.mark.parametrize("j", [[-0.3, 1.0, 0.0], [0.3, -1.0, 0.0]])
def test_inverse_is_continuous_bounded_and_of_the_right_sign_where_the_divisor_crosses_zero(
    j: list[float],
) -> None:
    """The divisor is +-(I - 0.3).

    Slope of the inverse at most 0.2 / 0.01^2 = 2000; an unguarded quotient jumps by thousands.
    """
    blend = blend_of(j).double()
    image = torch.arange(0.28, 0.32, 1e-6, dtype=torch.float64)
    with torch.no_grad():
        layer = blend.inverse(image, image + 0.2) - 0.5
        d = divisor(blend, image)
        at_zero = Blend().inverse(torch.tensor([0.0, 1.0]), torch.tensor([0.7, 0.2]))
    assert layer.diff().abs().max() < 2000 * 1e-6 * 1.01
    assert layer.abs().max() <= 0.2 / blend.epsilon * (1 + 1e-9)
    assert torch.equal(layer.sign(), d.sign())
    large = d.abs() > blend.epsilon
    torch.testing.assert_close(layer[large], 0.2 / d[large])
    assert at_zero.tolist() == [0.5, 0.5]


def test_soft_light_cannot_change_black_and_white_and_the_positive_form_can() -> None:
    image = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 1, 5, 2)
    layer = 40 * torch.randn(1, 1, 5, 2)
    assert torch.equal(Blend()(image, layer), image)
    moved = Blend("positive")(image, layer) - image
    torch.testing.assert_close(moved, 0.2 * (layer - 0.5))


def test_the_divisor_of_the_positive_form_stays_above_its_floor() -> None:
    x = torch.linspace(0, 1, 101)
    for raw in ([-50.0, -50.0, -50.0], [30.0, -50.0, 5.0], [-50.0, 9.0, -50.0]):
        assert divisor(positive(raw), x).min() >= FLOOR - 1e-5
    torch.testing.assert_close(
        divisor(Blend("positive"), torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.2, 0.6, 0.2])
    )


@EVERY_BLEND
def test_gradients_of_blend_and_inverse_are_those_of_finite_differences(which: str) -> None:
    blend = BLENDS[which]().double()
    image, other = torch.rand(2, 1, 1, 3, 3, dtype=torch.float64).unbind()
    image.requires_grad_()
    other.requires_grad_()
    assert torch.autograd.gradcheck(lambda i, o, _: blend(i, o), (image, other, blend.offset))
    assert torch.autograd.gradcheck(
        lambda i, o, _: blend.inverse(i, o), (image, other, blend.offset)
    )


def test_blend_computes_in_float32_under_autocast() -> None:
    image, layer = torch.rand(2, 1, 3, 8, 8).unbind()
    blend = Blend()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        result = blend(image, layer)
        assert result.dtype == blend.inverse(image, result.bfloat16()).dtype == torch.float32
        assert (blend.inverse(image, result) - layer).abs().median() < 1e-6


@pytest.mark.parametrize("form", ["soft_light", "positive"])
def test_scalars_can_be_kept_from_learning(form: str) -> None:
    fixed, free = small(form=form, learn=False), small(form=form)
    assert parameters(free) - parameters(fixed) == 6
    assert torch.equal(fixed.blend.j, free.blend.j)
    assert fixed.state_dict().keys() == free.state_dict().keys()


# --- the untrained network ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["soft_light", "positive"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_an_untrained_network_returns_its_input(form: str, levels: int) -> None:
    noise = torch.rand(1, 3, 133, 96)
    flat = functional.interpolate(
        torch.rand(1, 3, 5, 4).round(), (133, 96)
    )  # black, white and hard edges
    dark = 0.02 * noise
    for image in (noise, flat, dark):
        with torch.no_grad():
            assert psnr(small(form=form, levels=levels)(image)["main"], image) > 100


def test_the_default_network_untrained_returns_its_input() -> None:
    image = torch.rand(1, 3, 128, 256)
    with torch.no_grad():
        assert psnr(net()(image)["main"], image) > 100


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"levels": 3, "form": "positive"},
        {"norm": "batch"},
        {"norm": "instance", "blend_head": True},
        {"widths": (4,)},
    ],
)
def test_one_pass_takes_gradient_to_every_weight(options: dict[str, Any]) -> None:
    """From the image alone: the mask's decoder is reached through the gates that read the mask, but
    for what the norm after it takes.
    """
    network = small(**options).train()
    x = torch.rand(2, 3, 64, 96)
    (network(x)["main"] - x.roll(3, 2)).square().mean().backward()
    dead = [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()
    ]
    assert dead == []


@pytest.mark.parametrize("form", ["soft_light", "positive"])
def test_learns_a_tone_curve(form: str) -> None:
    network = net(1, widths=(8, 8), form=form).train()
    x = functional.interpolate(torch.rand(4, 1, 4, 4), scale_factor=8.0, mode="bilinear")
    y = x**1.5
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    error = torch.inf
    for _ in range(60):
        optimizer.zero_grad()
        loss = (network(x)["main"] - y).square().mean()
        loss.backward()
        optimizer.step()
        error = float(loss.detach())
    assert error < 0.1 * float((x - y).square().mean())


# --- structure ------------------------------------------------------------------------------------


def weights_by_hand(channels: int, widths: list[int], levels: int, refine: int) -> int:
    """Convolutions of kernel 3 with a bias: encoder, mask decoder, gated decoder (two convolutions,
    one more input), refinement.
    """

    def conv(a: int, b: int) -> int:
        return 9 * a * b + b

    encoder = sum(conv(a, b) for a, b in itertools.pairwise([channels, *widths]))
    skips = [*widths[-2::-1], channels]
    stages = list(zip([widths[-1], *skips[:-1]], skips, strict=True))
    mask = sum(conv(below + skip, skip) for below, skip in stages[:-1]) + conv(sum(stages[-1]), 1)
    retouch = sum(2 * conv(below + skip + 1, skip) for below, skip in stages)
    return (
        encoder
        + mask
        + retouch
        + levels * (conv(2 * channels, refine) + conv(refine, channels))
        + 6
    )


def test_weights_add_up_by_hand() -> None:
    """41.6 million, as counted from the published widths; 1,315 for each level of refinement."""
    wide = [64, 128, 256, 512, 512, 512]
    with torch.device("meta"):
        assert parameters(net(levels=2)) == weights_by_hand(3, wide, 2, 16) == 41_587_270
        assert [parameters(net(levels=n)) for n in (1, 3, 4)] == [
            41_587_270 + 1315 * n for n in (-1, 1, 2)
        ]
    assert parameters(net(2, widths=[5], levels=3, refine=7)) == weights_by_hand(2, [5], 3, 7)
    assert parameters(net(1, widths=[3, 4, 6])) == weights_by_hand(1, [3, 4, 6], 1, 16)


def gmac(size: int, **options: Any) -> tuple[float, float]:
    """Multiply-accumulates in 1e9 of one image: all, and those of the low-resolution layer; counted
    without computing.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net(**options)(torch.zeros(1, 3, size, size))
    flops = counter.get_flop_counts()
    return sum(flops["Global"].values()) / 2e9, sum(flops["ABPN.low"].values()) / 2e9


def gmac_by_hand(size: int, levels: int) -> tuple[float, float, float]:
    """All, those of the low-resolution layer, and those that the mask's channel into the gated
    stages causes.
    """
    at = [(size >> (levels + n)) ** 2 * 9 / 1e9 for n in range(7)]
    w = [3, 64, 128, 256, 512, 512, 512]
    encoder = sum(at[n + 1] * w[n] * w[n + 1] for n in range(6))
    decoder = sum(at[n] * (w[n + 1] + w[n]) * w[n] for n in range(1, 6))
    ends = at[0] * (64 + 3) * (1 + 2 * 3)
    mask = sum(at[n] * 2 * w[n] for n in range(6))
    low = encoder + 3 * decoder + ends + mask
    return (
        low + sum((size >> n) ** 2 * 9 / 1e9 * (6 * 16 + 16 * 3) for n in range(levels)),
        low,
        mask,
    )


@pytest.mark.parametrize(
    ("levels", "whole", "low"),
    [(1, 361.9, 356.4), (2, 95.9, 89.1), (3, 29.4, 22.3), (4, 12.8, 5.6)],
)
def test_cost_by_level(levels: int, whole: float, low: float) -> None:
    """At 2048 squared; each level quarters the low-resolution layer.

    Counts from the published widths give 95.8 and 89.0 for two levels. The 0.1 more is the mask as
    a channel of both convolutions of every gated stage, which costs 0.16; without it the layer
    would take 88.95.
    """
    found, by_hand = gmac(2048, levels=levels), gmac_by_hand(2048, levels)
    assert found == pytest.approx((whole, low), abs=0.06)
    assert found == pytest.approx(by_hand[:2], rel=1e-9)
    if levels == 2:
        assert found[1] - by_hand[2] == pytest.approx(88.95, abs=0.01)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("form", ["soft_light", "positive"])
def test_the_layer_handed_up_gives_the_retouched_low_resolution_image(
    levels: int, form: str
) -> None:
    network = lively(small(levels=levels, form=form))
    seen: dict[str, Any] = {}
    network.low.register_forward_hook(lambda _m, i, o: seen.update(image=i[0], retouched=o[0]))
    network.refine[-1].register_forward_pre_hook(
        lambda _m, i: seen.update(smaller=i[1], layer=i[2])
    )
    x = torch.rand(1, 3, 2 ** (levels + 3), 2 ** (levels + 4))
    with torch.no_grad():
        network(x)
        again = network.blend(seen["image"], seen["layer"])
    assert torch.equal(seen["image"], seen["smaller"])
    torch.testing.assert_close(
        seen["image"],
        functional.interpolate(x, scale_factor=0.5**levels, mode="area"),
        rtol=0,
        atol=1e-6,
    )
    assert seen["retouched"].shape == seen["image"].shape == (1, 3, 8, 16)
    assert (seen["retouched"] - seen["image"]).abs().max() > 0.01
    safe = divisor(network.blend, seen["image"]).abs() >= 0.0101
    assert (again - seen["retouched"])[safe].abs().max() < 1e-5


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("form", ["soft_light", "positive"])
def test_an_even_change_of_an_even_image_arrives_unchanged_at_full_resolution(
    levels: int, form: str
) -> None:
    network = small(levels=levels, form=form)
    nn.init.zeros_(network.get_parameter("low.retouch.2.conv.weight"))
    with torch.no_grad():
        network.get_parameter("low.retouch.2.conv.bias").copy_(
            torch.tensor([0.2, -0.2, 0.1, 0, 0, 0])
        )  # features, then gates: sigmoid(0) = 1/2
    image = torch.tensor([0.3, 0.6, 0.8]).view(1, 3, 1, 1).expand(1, 3, 50, 70)
    with torch.no_grad():
        change = network(image)["main"] - image
    torch.testing.assert_close(
        change,
        torch.tensor([0.1, -0.1, 0.05]).view(1, 3, 1, 1).expand_as(change),
        rtol=0,
        atol=1e-5,
    )


def test_the_mask_enters_every_gated_stage() -> None:
    network = small()
    stages = [m for m in network.modules() if isinstance(m, Gated)]
    assert [s.conv.in_channels for s in stages] == [8 + 8 + 1, 8 + 4 + 1, 4 + 3 + 1]
    seen: list[list[Tensor]] = []
    for stage in stages:
        stage.register_forward_pre_hook(lambda _m, i: seen[-1].append(i[0][:, -1]))
    x = torch.rand(1, 3, 32, 48)
    for bias in (0.0, 3.0):
        nn.init.constant_(network.get_parameter("low.mask.2.conv.bias"), bias)
        seen.append([])
        with torch.no_grad():
            network(x)
    assert [m.shape[1:] for m in seen[0]] == [(4, 6), (8, 12), (16, 24)]
    assert all((b - a).min() > 0.01 for a, b in zip(*seen, strict=True))
    for finer, coarser in itertools.pairwise(reversed(seen[0])):
        torch.testing.assert_close(coarser, functional.avg_pool2d(finer, 2))


def test_the_retouch_sees_the_mask() -> None:
    network = lively(small())
    x = torch.rand(1, 3, 32, 48)
    before = network(x)["main"]
    nn.init.constant_(network.get_parameter("low.mask.2.conv.bias"), 3.0)
    assert (network(x)["main"] - before).abs().max() > 1e-4


def test_confined_nothing_changes_where_the_mask_is_empty() -> None:
    torch.manual_seed(1)
    free, confined = (
        abpn(in_channels=3, out_channels=3, dims=2, widths=(8, 8), refine=4, confine=c).eval()
        for c in (False, True)
    )
    for parameter in free.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    free.low.mask[-1].conv.weight.data.zero_()  # the mask follows from its bias
    x = 0.2 + 0.6 * torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        for bias, share in ((-60.0, 0.0), (60.0, 1.0)):
            free.low.mask[-1].conv.bias.fill_(bias)
            confined.load_state_dict(free.state_dict())
            wanted, found = free.low(x)[0] - x, confined.low(x)[0] - x
            assert wanted.abs().max() > 0.01
            torch.testing.assert_close(found, share * wanted, atol=1e-6, rtol=1e-5)


def test_a_spot_of_one_pixel_reaches_the_last_stage_of_the_retouch() -> None:
    """What cannot be seen cannot be removed: the image itself is the last skip of both decoders."""
    network = small()
    seen: list[Tensor] = []
    for stage in (network.low.mask[-1], network.low.retouch[-1]):
        stage.register_forward_pre_hook(lambda _m, i: seen.append(i[0][:, :3]))
    x = torch.rand(1, 3, 16, 32)
    with torch.no_grad():
        network(x)
    for skip in seen:
        assert torch.equal(skip, functional.avg_pool2d(x, 2))


# --- any size, any use ----------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 40), (13, 17), (31, 97), (64, 64), (65, 33)])
def test_any_size_comes_back_whole(levels: int, size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    for mode in (True, False):
        heads = lively(small(levels=levels, blend_head=True)).train(mode)(x)
        half = tuple(-(-n // 2) for n in size)
        assert {k: v.shape for k, v in heads.items()} == {
            "main": (2, 3, *size),
            "mask": (2, 1, *half),
            "blend": (2, 3, *size),
        }
        assert all(v.isfinite().all() for v in heads.values())


@settings(deadline=None, max_examples=10)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    levels=st.integers(1, 3),
    channels=st.integers(1, 4),
)
def test_random_sizes_and_channels_come_back_whole(
    height: int, width: int, levels: int, channels: int
) -> None:
    network = net(channels, widths=(2, 3), levels=levels)
    heads = network(torch.rand(1, channels, height, width))
    assert network.heads == tuple(heads) == ("main", "mask")
    assert heads["main"].shape == (1, channels, height, width)
    assert heads["mask"].shape == (1, 1, -(-height // 2), -(-width // 2))


def test_the_mask_lies_where_the_image_does() -> None:
    """At one level it is the decoder's own; at two it is that enlarged by interpolation between
    pixel centres.
    """
    for levels in (1, 2):
        network = small(levels=levels)
        x = torch.rand(1, 3, 30, 61)
        with torch.no_grad():
            mask = network(x)["mask"]
            padded = functional.pad(
                x, [0, -61 % network.divisor[1], 0, -30 % network.divisor[0]], mode="replicate"
            )
            own = network.low(
                functional.interpolate(padded, scale_factor=0.5**levels, mode="area")
            )[1]
        own = own if levels == 1 else functional.interpolate(own, scale_factor=2.0, mode="bilinear")
        torch.testing.assert_close(mask, own[:, :, :15, :31], rtol=0, atol=1e-6)


def test_the_blend_head_is_what_was_laid_on_the_image() -> None:
    network = lively(small(blend_head=True))
    x = torch.rand(1, 3, 37, 20)
    heads = network(x)
    torch.testing.assert_close(network.blend(x, heads["blend"]), heads["main"])
    plain = lively(small())
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(plain(x)["main"], heads["main"])


def test_a_small_image_is_padded_twice_only_for_a_norm() -> None:
    assert small().padded_size((3, 16)) == [16, 16]
    assert small(norm="instance").padded_size((3, 16)) == [16, 32]
    assert small().padded_size((17, 1)) == [32, 16]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_finite_answers_near_those_of_single(dtype: torch.dtype) -> None:
    network = lively(small(levels=2))
    x = torch.rand(1, 3, 40, 70)
    x[..., :20] = x[..., :20].round()  # black and white, where the divisor is smallest
    wanted = network(x)
    with torch.autocast("cpu", dtype):
        found = network(x)
        (found["main"].float().square().mean() + found["mask"].float().square().mean()).backward()
    assert found["main"].dtype == torch.float32
    assert all(v.isfinite().all() for v in found.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    torch.testing.assert_close(found["main"], wanted["main"], rtol=0, atol=0.05)


def test_a_used_network_can_be_copied() -> None:
    network = small()
    x = torch.rand(1, 3, 32, 32)
    network(x)["main"].sum().backward()
    twin = copy.deepcopy(network)
    assert torch.equal(twin.eval()(x)["main"], network.eval()(x)["main"])


def test_tiles_are_exact_without_norms() -> None:
    network = lively(net(widths=(2, 3))).double().eval()
    halo = receptive.halo(network, 3, 2)
    assert halo < 64
    x = torch.rand(1, 3, 64, 128 + 2 * halo, dtype=torch.float64)
    with torch.no_grad():
        whole, tile = network(x)["main"], network(x[..., :128])["main"]
    assert (whole - x).abs().max() > 0.01
    assert (whole[..., : 128 - halo] - tile[..., : 128 - halo]).abs().max() < 1e-12
    assert receptive.tile_dependent(network) == ()
    assert receptive.tile_dependent(net(widths=(2, 3), norm="instance")) != ()


# --- bands ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"levels": 2, "blend_head": True}, {"levels": 3, "form": "positive"}]
)
def test_bands_leave_no_trace(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    network = lively(small(**options)).eval()
    x = torch.rand(2, 3, 163, 45)
    calls: list[int] = []
    network.refine[0].register_forward_hook(lambda _m, _i, o: calls.append(o.shape[2]))
    whole = network(x)
    assert len(calls) == 1
    monkeypatch.setattr(code, "BAND", 1)
    monkeypatch.setattr(code, "ROWS", 10)
    with torch.no_grad():
        banded = network(x)
    assert len(calls) > 16
    assert max(calls[1:]) == 10 + 2 * code.HALO
    for name, wanted in whole.items():
        torch.testing.assert_close(banded[name], wanted, rtol=0, atol=1e-6)


def test_bands_with_too_few_rows_around_them_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    network = lively(small()).eval()
    x = torch.rand(1, 3, 80, 48)
    whole = network(x)["main"]
    monkeypatch.setattr(code, "BAND", 1)
    monkeypatch.setattr(code, "ROWS", 10)
    monkeypatch.setattr(code, "HALO", 2)
    with torch.no_grad():
        assert (network(x)["main"] - whole).abs().max() > 1e-4


# --- export ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"levels": 2}, {"form": "positive", "blend_head": True}])
def test_an_export_says_the_same_at_any_size(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx", reason='needs pip install -e ".[cpu]"')
    pytest.importorskip("onnxruntime", reason='needs pip install -e ".[cpu]"')
    from pipeline.inference import backends

    network = lively(small(**options)).eval()
    with monkeypatch.context() as patch:
        patch.setattr(code, "BAND", 1)  # bands would be written into the export
        content = backends.export(network, 3)
    convolutions = sum(n.op_type == "Conv" for n in onnx.load_from_string(content).graph.node)
    assert convolutions == sum(isinstance(m, nn.Conv2d) for m in network.modules())
    exported = backends.proved(content, network, 3, "onnx")
    for size in ((64, 96), (131, 45)):
        x = torch.rand(2, 3, *size)
        with torch.inference_mode():
            torch.testing.assert_close(exported(x)["main"], network(x)["main"], rtol=0, atol=1e-4)


# --- wrong options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": 0}, ["levels", "0"]),
        ({"levels": True}, ["levels", "True"]),
        ({"widths": []}, ["widths", "[]"]),
        ({"widths": [64, "x"]}, ["widths", "'x'"]),
        ({"refine": 1.5}, ["refine", "1.5"]),
        ({"norm": "bach"}, ["bach", "batch"]),
        ({"norm": {"name": "group", "options": {"num_groups": 7}}}, ["7 groups", "64"]),
        ({"form": "overlay"}, ["form", "overlay", "soft_light", "positive"]),
        ({"learn": 1}, ["learn", "1", "true or false"]),
        ({"blend_head": "yes"}, ["blend_head", "yes"]),
        ({"epsilon": 0}, ["epsilon", "0", "0.01"]),
        ({"epsilon": -0.1}, ["epsilon", "-0.1"]),
        ({"level": 2}, ["level", "levels"]),
    ],
)
def test_wrong_options_are_refused_with_value_and_cure(
    options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        net(**options)
    assert [word for word in words if word not in str(caught.value)] == []


def test_volumes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.dims is 3.*data\.dims: 2"):
        net(dims=3)


def test_input_and_target_need_one_number_of_channels() -> None:
    with pytest.raises(ConfigError, match="3 and 1"):
        net(out=1)
