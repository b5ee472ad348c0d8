"""Networks: every size in is the size out, every weight is reached, counts are the published ones,
wrong options are refused.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets.basic_unet import BasicUNet

from pipeline.config import ConfigError
from pipeline.networks import NETWORKS, HeadedNet, build, parameters
from pipeline.records import NamedOptions

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {"channels": [4, 4, 4, 4, 4], "heads": {"mask": 1}}),
    "unet-linear": (
        "unet",
        {"channels": [4, 4, 4, 4, 4], "upsample": "nontrainable", "norm": "batch", "last": 2},
    ),
    "unet-group": (
        "unet",
        {
            "channels": [4, 4, 4, 4, 4],
            "norm": {"name": "group", "options": {"num_groups": 2}},
            "activation": "gelu",
        },
    ),
    "dynunet": ("dynunet", {"channels": [4, 6, 8, 8], "deep_supervision": 2}),
    "dynunet-residual": (
        "dynunet",
        {"channels": [4, 4, 4], "residual": True, "strides": [1, 2, 1], "kernel": [3, 1, 5]},
    ),
    "dynunet-block": ("dynunet", {"channels": [4, 4, 4], "deep_supervision": 1, "block": 2}),
    "segresnet": (
        "segresnet",
        {"filters": 4, "blocks_down": [1, 1, 2], "blocks_up": [1, 1], "norm": "instance"},
    ),
}


def tiny(which: str, dims: int, in_channels: int = 2, out_channels: int = 3) -> HeadedNet:
    name, options = TINY[which]
    return build(NamedOptions(name=name, options=options), in_channels, out_channels, dims)


def test_every_network_is_exercised() -> None:
    images_only = {
        "sa_unet",
        "image_unet",
        "deblur_unet",
        "abpn",
    }  # test_sa_unet.py, test_restoration.py, test_abpn.py
    coarse = {"plain_unet", "resenc_unet", "mednext"}  # heads of several sizes: own files
    assert {name for name, _ in TINY.values()} | images_only | coarse == set(NETWORKS)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("which", TINY)
def test_any_size_comes_back_whole(which: str, dims: int) -> None:
    net = tiny(which, dims)
    for size in [(1, 1, 1), (16, 16, 16), (7, 19, 2), (32, 3, 17)]:
        x = torch.randn(2, 2, *size[:dims])
        for mode in (True, False):
            outputs = net.train(mode)(x)
            wanted = set(net.heads) if mode else {h for h in net.heads if not h.startswith("deep")}
            assert set(outputs) == wanted
            for name, y in outputs.items():
                assert y.shape == (2, 1 if name == "mask" else 3, *size[:dims])
                assert torch.isfinite(y).all()


@settings(deadline=None, max_examples=10)
@given(
    size=st.lists(st.integers(1, 40), min_size=2, max_size=2), which=st.sampled_from(sorted(TINY))
)
def test_padding_is_the_smallest_that_fits(size: list[int], which: str) -> None:
    net = tiny(which, 2)
    padded = net.padded_size(size)
    assert all(p % d == 0 and p >= n for p, n, d in zip(padded, size, net.divisor, strict=True))
    assert all(p - n < d for p, n, d in zip(padded, size, net.divisor, strict=True)) or padded == [
        net.divisor[0],
        2 * net.divisor[1],
    ]
    assert net.eval()(torch.randn(1, 2, *size))["main"].shape == (1, 3, *size)


@pytest.mark.parametrize("dims", [2, 3])
def test_padding_at_the_far_end_leaves_a_fitting_size_alone(dims: int) -> None:
    net = tiny("unet", dims).eval()
    x = torch.randn(1, 2, *(32, 16, 16)[:dims])
    assert torch.equal(net(x)["main"], net.run(x)["main"])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("which", TINY)
def test_gradient_reaches_every_weight(which: str, dims: int) -> None:
    net = tiny(which, dims).train()
    total = sum(y.square().mean() for y in net(torch.randn(2, 2, *(24, 16, 20)[:dims])).values())
    assert isinstance(total, torch.Tensor)
    total.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    dead = [
        name
        for name, p in net.named_parameters()
        if p.grad is not None and not p.grad.any() and not name.endswith("bias")
    ]
    assert dead == []


def test_a_head_without_a_loss_gets_no_gradient() -> None:
    net = tiny("unet", 2)
    net(torch.randn(1, 2, 32, 32))["main"].sum().backward()
    assert all(p.grad is None for name, p in net.named_parameters() if name.startswith("head_mask"))


def test_unet_has_the_published_number_of_weights() -> None:
    assert parameters(build(NamedOptions(name="unet"), 1, 1, 3)) == 22_625_281


def test_a_head_costs_one_convolution() -> None:
    plain = parameters(
        build(NamedOptions(name="unet", options={"channels": [4, 4, 4, 4, 4]}), 2, 3, 2)
    )
    assert parameters(tiny("unet", 2)) == plain + 4 * 1 + 1


def test_frozen_weights_are_not_counted() -> None:
    net = tiny("unet", 2)
    before = parameters(net)
    bias = net.get_parameter("head_mask.bias")
    bias.requires_grad = False
    assert parameters(net) == before - 1


def test_unet_without_further_heads_is_monais() -> None:
    torch.manual_seed(5)
    net = build(NamedOptions(name="unet", options={"channels": [4, 4, 4, 4, 4]}), 1, 2, 2).eval()
    torch.manual_seed(5)
    reference = BasicUNet(
        2, 1, 2, features=(4, 4, 4, 4, 4, 4), act=("leakyrelu", {"negative_slope": 0.01})
    ).eval()
    x = torch.randn(1, 1, 32, 48)
    assert torch.equal(net(x)["main"], reference(x))


@pytest.mark.parametrize("which", TINY)
def test_weights_follow_the_global_seed(which: str) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(tiny(which, 2).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


@pytest.mark.parametrize("which", TINY)
def test_each_weight_has_one_name(which: str) -> None:
    """safetensors refuses a state in which two names share memory."""
    tensors = [t for t in tiny(which, 3).state_dict().values() if t.numel()]
    assert len({t.data_ptr() for t in tensors}) == len(tensors)


@pytest.mark.parametrize("which", TINY)
def test_a_used_network_can_be_copied(which: str) -> None:
    """Weight averaging deep-copies the network in mid-training; the copy works by itself."""
    net = tiny(which, 2).train()
    x = torch.randn(2, 2, 16, 32)
    net(x)["main"].sum().backward()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert set(twin(x)) == set(net.heads)
    assert all(y.any() for y in twin(x).values())


def test_deep_heads_are_ordered_from_fine_to_coarse() -> None:
    """deepN is made at 1 / 2^N of the size and repeated: constant on blocks of 2^N voxels."""
    net = tiny("dynunet", 2).train()
    outputs = net(torch.randn(1, 2, 32, 32))
    for name, block in {"deep1": 2, "deep2": 4}.items():
        y = outputs[name]
        coarse = y[..., ::block, ::block].repeat_interleave(block, -1).repeat_interleave(block, -2)
        assert torch.equal(y, coarse)
        assert not torch.equal(y[..., :-block:block, :], y[..., block::block, :])


def test_anisotropic_strides_give_the_divisor_of_each_axis() -> None:
    options = {
        "channels": [4, 4, 4],
        "strides": [1, [1, 2, 2], [2, 2, 2]],
        "kernel": [[1, 3, 3], 3, 3],
    }
    net = build(NamedOptions(name="dynunet", options=options), 1, 1, 3)
    assert net.divisor == (2, 4, 4)
    assert net(torch.randn(1, 1, 5, 9, 10))["main"].shape == (1, 1, 5, 9, 10)


@pytest.mark.parametrize("upsample", ["deconv", "nontrainable", "pixelshuffle"])
@pytest.mark.parametrize("name", ["unet", "segresnet"])
def test_every_way_of_upsampling(name: str, upsample: str) -> None:
    small = (
        {"channels": [4, 4, 4, 4, 4]}
        if name == "unet"
        else {"filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
    )
    net = build(NamedOptions(name=name, options={**small, "upsample": upsample}), 1, 2, 2)
    assert net(torch.randn(1, 1, 21, 18))["main"].shape == (1, 2, 21, 18)


def test_dropout_acts_in_training_only() -> None:
    net = build(
        NamedOptions(name="unet", options={"channels": [4, 4, 4, 4, 4], "dropout": 0.5}), 1, 1, 2
    )
    x = torch.randn(1, 1, 32, 32)
    assert not torch.equal(net.train()(x)["main"], net(x)["main"])
    assert torch.equal(net.eval()(x)["main"], net(x)["main"])


def test_wrong_number_of_axes_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 8, 8, 8\).*2 space axes"):
        tiny("unet", 2)(torch.randn(1, 2, 8, 8, 8))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("unett", {}, ["unett", "unet"]),
        ("unet", {"chanels": [1]}, ["chanels", "channels"]),
        ("unet", {"in_channels": 1}, ["in_channels"]),
        ("unet", {"channels": [4, 4]}, ["[4, 4]", "five", "dynunet"]),
        ("unet", {"channels": 32}, ["32", "five"]),
        ("unet", {"channels": [4, 4, 4, 4, True]}, ["True", "five"]),
        ("unet", {"last": 0}, ["last", "0"]),
        ("unet", {"dropout": 1.0}, ["dropout", "1.0", "[0, 1)"]),
        ("unet", {"norm": "grup"}, ["grup", "group"]),
        ("unet", {"norm": ["group"]}, ["['group']", "name"]),
        ("unet", {"norm": {"name": "group", "options": 3}}, ["options"]),
        (
            "unet",
            {"norm": {"name": "group", "options": {"num_groups": 5}}},
            ["5 groups", "[32, 64, 128, 256, 512, 32]"],
        ),
        ("unet", {"norm": {"name": "group", "options": {"num_groups": 0}}}, ["num_groups", "0"]),
        ("unet", {"norm": {"name": "instance", "options": {"affine": "no"}}}, ["affine", "no"]),
        (
            "unet",
            {"activation": {"name": "leaky_relu", "options": {"negative_slope": "x"}}},
            ["negative_slope", "'x'"],
        ),
        ("unet", {"upsample": "bilinear"}, ["bilinear", "deconv"]),
        ("unet", {"heads": ["mask"]}, ["mask", "channel counts"]),
        ("unet", {"heads": {"main": 1}}, ["main"]),
        ("unet", {"heads": {"deep1": 1}}, ["deep1"]),
        ("unet", {"heads": {"mask": 0}}, ["mask", "0 channels"]),
        ("dynunet", {"channels": [4, 4]}, ["[4, 4]", "three"]),
        ("dynunet", {"channels": [4, 4, 4], "kernel": 2}, ["kernel", "2", "odd"]),
        ("dynunet", {"channels": [4, 4, 4], "kernel": [3, 3]}, ["kernel", "3 entries"]),
        ("dynunet", {"channels": [4, 4, 4], "strides": [2, 2, 2]}, ["strides", "begin with 1"]),
        ("dynunet", {"channels": [4, 4, 4], "strides": [1, 3, 2]}, ["strides", "1 and 2"]),
        (
            "dynunet",
            {"channels": [4, 4, 4], "strides": [1, [2, 2, 2], 2]},
            ["strides", "2 of them"],
        ),
        ("dynunet", {"channels": [4, 4, 4], "deep_supervision": 2}, ["deep_supervision", "0 to 1"]),
        ("dynunet", {"residual": "yes"}, ["residual", "yes"]),
        ("segresnet", {"filters": -1}, ["filters", "-1"]),
        ("segresnet", {"filters": 12}, ["8 groups", "12"]),
        ("segresnet", {"blocks_down": [1]}, ["blocks_down", "[1]"]),
        ("segresnet", {"blocks_up": [1, 1]}, ["blocks_up", "3 whole numbers"]),
    ],
)
def test_wrong_options_are_refused_with_value_and_cure(
    name: str, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(NamedOptions(name=name, options=options), 1, 1, 2)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("dims", [2, 3])
def test_folding_blocks_into_channels_moves_no_voxel(dims: int) -> None:
    """With the trunk replaced by the identity, folding and unfolding give the input back; sizes
    need not be multiples.
    """
    network = build(
        NamedOptions(name="dynunet", options={"channels": [4, 4, 4], "block": 2}), 1, 1, dims
    )
    network.trunk = _Identity()
    x = torch.rand(2, 1, *(7, 10, 13)[:dims])
    torch.testing.assert_close(network(x)["main"], x, rtol=0, atol=0)


class _Identity(torch.nn.Module):
    heads: ClassVar[list] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x
