"""The two image-to-image U-Nets: published sizes, layers in order, any size in is the size out, and
what a tile can know of the whole.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import ConfigError
from pipeline.networks import HeadedNet, build, parameters
from pipeline.records import NamedOptions

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("image_unet", {"base": 2}),
    "image-tiles": ("image_unet", {"base": 2, "depth": 2, "norm": "none", "align_corners": False}),
    "image-group": (
        "image_unet",
        {"base": 4, "depth": 1, "norm": {"name": "group", "options": {"num_groups": 2}}},
    ),
    "deblur": ("deblur_unet", {"base": 4, "groups": 2}),
    "deblur-residual": ("deblur_unet", {"base": 2, "norm": "none", "residual": True}),
    "deblur-batch": ("deblur_unet", {"base": 2, "norm": "batch"}),
}
EVERY = pytest.mark.parametrize("which", TINY)


def net(
    name: str, channels: int = 3, dims: int = 2, out: int | None = None, **options: Any
) -> HeadedNet:
    return build(
        NamedOptions(name=name, options=options), channels, channels if out is None else out, dims
    )


def tiny(which: str) -> HeadedNet:
    name, options = TINY[which]
    return net(name, 2, **options)


# --- sizes as published ---------------------------------------------------------------------------


def gmac(name: str, size: int, **options: Any) -> float:
    """Multiply-accumulates of one image, counted by torch without computing anything."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net(name, **options)(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 2e9


def test_image_unet_has_the_published_size() -> None:
    with torch.device("meta"):
        assert parameters(net("image_unet")) == 31_384_963
        assert parameters(net("image_unet", base=128)) == 125_512_451
    assert gmac("image_unet", 512) == pytest.approx(222.8, abs=0.05)


def test_deblur_unet_has_the_published_size() -> None:
    with torch.device("meta"):
        assert parameters(net("deblur_unet")) == 8_636_451
        assert parameters(net("deblur_unet", residual=True)) == 8_636_451
    assert gmac("deblur_unet", 256) == pytest.approx(16.4, abs=0.05)
    assert gmac("deblur_unet", 2048) == pytest.approx(1048, abs=0.5)


def double(inside: int, outside: int, bias: bool) -> int:
    """Weights of (convolution, norm) twice, by hand."""
    return 9 * outside * (inside + outside) + (2 + bias) * 2 * outside


def test_weights_add_up_by_hand() -> None:
    """The decoder of image_unet takes the width below as it is; that of deblur_unet brings it to
    its own by a convolution.
    """
    w = [3, 6, 12, 24, 48]
    down = [(2, 3), *itertools.pairwise(w)]
    image = sum(double(a, b, False) for a, b in down) + sum(
        double(a + b, b, False) for b, a in itertools.pairwise(w)
    )
    assert parameters(net("image_unet", 2, out=5, base=3)) == image + 5 * 3 + 5
    up = sum(9 * a * b + b + double(2 * b, b, True) for b, a in itertools.pairwise(w))
    assert (
        parameters(net("deblur_unet", 2, out=5, base=3, groups=3))
        == sum(double(a, b, True) for a, b in down) + up + 5 * 3 + 5
    )


# --- layers ---------------------------------------------------------------------------------------


def trace(network: nn.Module, x: Tensor) -> list[str]:
    """Names of the innermost layers in the order in which they run."""
    order: list[str] = []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, _i, _o: order.append(type(m).__name__))
    network(x)
    return order


def test_layers_run_in_the_published_order() -> None:
    image, deblur = ["Conv2d", "BatchNorm2d", "ReLU"] * 2, ["Conv2d", "GroupNorm", "ReLU"] * 2
    x = torch.randn(1, 3, 32, 32)
    assert trace(net("image_unet", base=2), x) == image * 5 + ["Upsample", *image] * 4 + ["Conv2d"]
    assert trace(net("deblur_unet", base=2, groups=2), x) == deblur * 5 + [
        "Upsample",
        "Conv2d",
        *deblur,
    ] * 4 + ["Conv2d"]


def test_enlargement_is_bilinear_with_the_corners_where_they_were_published() -> None:
    for name, aligned in (("image_unet", True), ("deblur_unet", False)):
        found = [m for m in net(name, base=8).modules() if isinstance(m, nn.Upsample)]
        assert [(m.mode, m.scale_factor, m.align_corners) for m in found] == [
            ("bilinear", 2, aligned)
        ] * 4


@pytest.mark.parametrize(("name", "skip_first"), [("image_unet", True), ("deblur_unet", False)])
def test_skips_are_joined_in_the_published_order(name: str, skip_first: bool) -> None:
    network = net(name, base=2, norm="none")
    seen: dict[str, Any] = {}
    network.get_submodule("down.0").register_forward_hook(
        lambda _m, _i, o: seen.update({"skip": o})
    )
    network.get_submodule("enlarge.3").register_forward_hook(
        lambda _m, _i, o: seen.update({"large": o})
    )
    network.get_submodule("up.3").register_forward_hook(
        lambda _m, i, _o: seen.update({"joined": i[0]})
    )
    network(torch.randn(1, 3, 32, 48))
    order = ("skip", "large") if skip_first else ("large", "skip")
    assert torch.equal(seen["joined"], torch.cat([seen[k] for k in order], 1))


def test_convolutions_of_image_unet_have_a_bias_only_without_a_norm() -> None:
    for norm, count in (("batch", 1), ("none", 19)):
        convolutions = [
            m for m in net("image_unet", base=2, norm=norm).modules() if isinstance(m, nn.Conv2d)
        ]
        assert len(convolutions) == 19
        assert sum(m.bias is not None for m in convolutions) == count


def test_groups_reach_every_norm() -> None:
    groups = [
        m.num_groups
        for m in net("deblur_unet", base=4, groups=2).modules()
        if isinstance(m, nn.GroupNorm)
    ]
    assert groups == [2] * 18
    assert not [
        m for m in net("deblur_unet", base=4, norm="none").modules() if "Norm" in type(m).__name__
    ]


def test_a_residual_network_that_adds_nothing_returns_its_input() -> None:
    network = net("deblur_unet", base=2, norm="none", residual=True)
    nn.init.zeros_(network.get_parameter("head_main.weight"))
    nn.init.zeros_(network.get_parameter("head_main.bias"))
    x = torch.randn(1, 3, 21, 5)
    assert torch.equal(network(x)["main"], x)


def test_a_residual_network_begins_near_its_input() -> None:
    x = torch.randn(1, 3, 32, 32)
    assert (net("deblur_unet", base=8, residual=True)(x)["main"] - x).abs().max() < 0.05


def test_residual_is_the_sum_of_input_and_network() -> None:
    plain, residual = (net("deblur_unet", base=2, norm="none", residual=r) for r in (False, True))
    residual.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 19, 32)
    torch.testing.assert_close(residual(x)["main"], x + plain(x)["main"])


# --- any size, any use ----------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (13, 17), (16, 16), (31, 1), (15, 47)])
def test_any_size_comes_back_whole(which: str, size: tuple[int, int]) -> None:
    x = torch.randn(2, 2, *size)
    for mode in (True, False):
        y = tiny(which).train(mode)(x)
        assert set(y) == {"main"}
        assert y["main"].shape == (2, 2, *size)
        assert torch.isfinite(y["main"]).all()


@settings(deadline=None, max_examples=10)
@given(height=st.integers(1, 70), width=st.integers(1, 70), which=st.sampled_from(sorted(TINY)))
def test_random_sizes_come_back_whole(height: int, width: int, which: str) -> None:
    assert tiny(which).eval()(torch.randn(1, 2, height, width))["main"].shape == (
        1,
        2,
        height,
        width,
    )


@EVERY
def test_gradient_reaches_every_weight(which: str) -> None:
    network = tiny(which).train()
    network(torch.randn(2, 2, 32, 48))["main"].square().mean().backward()
    dead = [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not (p.grad.any() or name.endswith("bias"))
    ]
    assert dead == []


@EVERY
def test_weights_follow_the_seed_and_have_one_name_each(which: str) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(tiny(which).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])
    assert len({t.data_ptr() for t in states[0].values()}) == len(states[0])


@EVERY
def test_a_used_network_can_be_copied(which: str) -> None:
    network = tiny(which)
    x = torch.randn(2, 2, 32, 32)
    network(x)["main"].sum().backward()
    twin = copy.deepcopy(network)
    assert torch.equal(twin.eval()(x)["main"], network.eval()(x)["main"])


@pytest.mark.parametrize(
    ("name", "options"),
    [("image_unet", {}), ("deblur_unet", {"groups": 2}), ("deblur_unet", {"residual": True})],
)
def test_learns_a_tone_curve(name: str, options: dict[str, Any]) -> None:
    """A few steps of Adam bring the error of a gain and an offset far below the identity's."""
    torch.manual_seed(0)
    network = net(name, 1, base=8, **options).train()
    x = functional.interpolate(torch.rand(4, 1, 4, 4) * 2 - 1, scale_factor=4.0, mode="bilinear")
    y = 0.6 * x + 0.5
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    error = torch.inf
    for _ in range(25):
        optimizer.zero_grad()
        loss = (network(x)["main"] - y).square().mean()
        loss.backward()
        optimizer.step()
        error = float(loss.detach())
    assert error < 0.1 * float((x - y).square().mean())


# --- what a tile can know -------------------------------------------------------------------------


def tile_error(network: HeadedNet, halo: int, size: int) -> float:
    """Largest difference between a whole image and its left tile of ``size`` columns, ``halo`` and
    more from the cut.
    """
    network = network.double().eval()
    x = torch.rand(1, 3, 64, size + 2 * halo, dtype=torch.float64)
    with torch.no_grad():
        whole, tile = network(x)["main"], network(x[..., :size])["main"]
    return float((whole[..., : size - halo] - tile[..., : size - halo]).abs().max())


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_tiles_are_exact_without_aligned_corners_and_without_statistics_of_the_tile(
    norm: str,
) -> None:
    """Radius of four halvings: at most 137 for image_unet, 152 for deblur_unet; the halo is the
    next multiple of the stride.
    """
    torch.manual_seed(1)
    assert tile_error(net("image_unet", base=2, norm=norm, align_corners=False), 144, 192) < 1e-12
    assert tile_error(net("deblur_unet", base=2, norm=norm), 160, 192) < 1e-12


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("image_unet", {"norm": "none", "align_corners": True}),
        ("image_unet", {"norm": "instance", "align_corners": False}),
        ("deblur_unet", {"groups": 2}),
    ],
)
def test_no_halo_helps_otherwise(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    assert tile_error(net(name, base=2, **options), 160, 192) > 1e-6


# --- wrong options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("image_unet", {"base": 0}, ["base", "0"]),
        ("image_unet", {"depth": 2.5}, ["depth", "2.5"]),
        ("image_unet", {"norm": "bach"}, ["bach", "batch"]),
        (
            "image_unet",
            {"norm": {"name": "group", "options": {"num_groups": 7}}},
            ["7 groups", "64"],
        ),
        ("image_unet", {"align_corners": 1}, ["align_corners", "1", "true or false"]),
        ("image_unet", {"aligned": True}, ["aligned", "align_corners"]),
        ("deblur_unet", {"base": "x"}, ["base", "'x'"]),
        ("deblur_unet", {"groups": True}, ["groups", "True"]),
        ("deblur_unet", {"base": 12}, ["8 groups", "12"]),
        ("deblur_unet", {"residual": "yes"}, ["residual", "yes"]),
    ],
)
def test_wrong_options_are_refused_with_value_and_cure(
    name: str, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        net(name, **options)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("name", ["image_unet", "deblur_unet"])
def test_volumes_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.dims is 3.*data\.dims: 2"):
        net(name, dims=3)


def test_residual_needs_as_many_channels_out_as_in() -> None:
    with pytest.raises(ConfigError, match="3 channels to an output of 1"):
        net("deblur_unet", out=1, residual=True)
