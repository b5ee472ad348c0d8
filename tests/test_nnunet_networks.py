"""nnU-Net's networks and MedNeXt: published counts, nnU-Net's names of weights and its outputs for
the same weights, heads at the size of their level, and their weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import model_file, noise, run_predict
from torch import nn

from pipeline import files
from pipeline.config import ConfigError
from pipeline.networks import HeadedNet, build, parameters, receptive
from pipeline.networks.outline import bounded
from pipeline.records import NamedOptions

NAMES = ("plain_unet", "resenc_unet")
DEFAULTS = {"plain_unet": {"convs": 1, "decoder_convs": 1}, "resenc_unet": {"blocks": 1}}
WEIGHTS = [8 / 15, 4 / 15, 2 / 15, 1 / 15, 0]

Options = dict[str, Any]


def made(name: str, dims: int, inputs: int = 1, outputs: int = 2, **options: Any) -> HeadedNet:
    return build(NamedOptions(name=name, options=options), inputs, outputs, dims)


def randomised(net: nn.Module) -> nn.Module:
    """Norms with random weights: as they are born, each residual block is its skip connection."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if ".norm." in name or name.endswith("bias"):
                p.copy_(torch.rand(p.shape, generator=generator) + 0.5)
    return net


# --- counts, weights of heads, names --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"), [("plain_unet", 31_196_399), ("resenc_unet", 102_350_575)]
)
def test_the_published_number_of_weights(name: str, count: int) -> None:
    assert parameters(bounded(NamedOptions(name=name), 1, 3, 3)) == count


@pytest.mark.parametrize(
    ("size", "kernel", "count", "published"),
    [
        ("S", 3, 5_564_806, 5.6),
        ("B", 3, 10_524_742, 10.5),
        ("M", 3, 17_547_398, 17.6),
        ("L", 3, 61_740_646, 61.8),
        ("S", 5, 5_994_438, 5.9),
        ("B", 5, 10_954_374, 11.0),
        ("M", 5, 18_259_270, 18.3),
        ("L", 5, 62_954_278, 63.0),
    ],
)
def test_mednext_has_the_published_number_of_weights(
    size: str, kernel: int, count: int, published: float
) -> None:
    net = bounded(NamedOptions(name="mednext", options={"size": size, "kernel": kernel}), 1, 14, 3)
    assert parameters(net) == count
    assert abs(count / 1e6 - published) <= 0.1


@pytest.mark.parametrize("name", [*NAMES, "mednext"])
def test_weights_and_strides_of_heads(name: str) -> None:
    net = bounded(NamedOptions(name=name), 1, 3, 3)
    assert list(net.deep) == list(net.heads) == ["main", "deep1", "deep2", "deep3", "deep4"]
    assert [h.weight for h in net.deep.values()] == pytest.approx(WEIGHTS)
    assert [h.stride for h in net.deep.values()] == [(2**i,) * 3 for i in range(5)]
    alone = bounded(NamedOptions(name=name, options={"deep_supervision": False}), 1, 3, 3)
    assert (alone.heads, dict(alone.deep)) == (("main",), {})


def test_two_and_three_levels_weigh_main_alone() -> None:
    assert {k: v.weight for k, v in made("plain_unet", 2, channels=[2, 2]).deep.items()} == {
        "main": 1.0
    }
    three = made("plain_unet", 2, channels=[2, 2, 2]).deep
    assert {k: v.weight for k, v in three.items()} == {"main": 1.0, "deep1": 0.0}


def names_of(name: str, levels: int, convs: int, decoder: int) -> set[str]:
    """Names of nnU-Net's weights, written out from its rules; blocks whose channels change."""
    unit = [f"{part}.{what}" for part in ("conv", "norm") for what in ("weight", "bias")]
    found = {
        f"decoder.stages.{d}.convs.{i}.{u}"
        for d in range(levels - 1)
        for i in range(decoder)
        for u in unit
    }
    for d in range(levels - 1):
        for part in ("transpconvs", "seg_layers"):
            found |= {f"decoder.{part}.{d}.weight", f"decoder.{part}.{d}.bias"}
    if name == "plain_unet":
        return found | {
            f"encoder.stages.{e}.0.convs.{i}.{u}"
            for e in range(levels)
            for i in range(convs)
            for u in unit
        }
    found |= {f"encoder.stem.convs.0.{u}" for u in unit}
    for e in range(levels):
        at = f"encoder.stages.{e}.blocks"
        found |= {f"{at}.{b}.conv{n}.{u}" for b in range(convs) for n in (1, 2) for u in unit}
        if e:
            found |= {f"{at}.0.skip.1.{u}" for u in unit if u != "conv.bias"}
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("deep", [True, False])
def test_weights_have_nnunets_names(name: str, deep: bool) -> None:
    convs = {"plain_unet": {"convs": 3}, "resenc_unet": {"blocks": 3}}[name]
    net = made(name, 3, channels=[2, 4, 6, 8], decoder_convs=2, deep_supervision=deep, **convs)
    assert set(net.state_dict()) == names_of(name, 4, 3, 2)


@pytest.mark.parametrize(
    ("levels", "blocks"),
    [(2, [1, 3]), (6, [1, 3, 4, 6, 6, 6]), (8, [1, 3, 4, 6, 6, 6, 6, 6])],
)
def test_blocks_of_the_residual_encoder(levels: int, blocks: list[int]) -> None:
    net = bounded(NamedOptions(name="resenc_unet", options={"channels": [2] * levels}), 1, 1, 2)
    stages = net.get_submodule("encoder.stages").children()
    assert [len(list(s.get_submodule("blocks").children())) for s in stages] == blocks


@pytest.mark.parametrize("name", [*NAMES, "mednext"])
@pytest.mark.parametrize("deep", [True, False])
def test_levels_and_outputs_hold_every_weight_once(name: str, deep: bool) -> None:
    net = bounded(NamedOptions(name=name, options={"deep_supervision": deep}), 1, 2, 3)
    groups = [*net.levels, net.outputs]
    for weight, _ in net.named_parameters():
        owners = [g for g in groups if any(weight.startswith(f"{part}.") for part in g)]
        assert len(owners) == 1, weight
    for part in (part for g in groups for part in g):
        assert list(net.get_submodule(part).parameters()), part


@pytest.mark.parametrize("name", NAMES)
def test_weights_at_the_start(name: str) -> None:
    net = made(name, 3, channels=[32, 48, 64])
    for key, p in net.named_parameters():
        if key.endswith("bias") or ".conv2.norm." in key:
            assert not p.any(), key
        elif ".norm." in key:
            assert (p == 1).all(), key
        elif p.numel() > 5000:
            wanted = math.sqrt(2 / (1 + 1e-4) / p[0].numel())  # also of transposed convolutions
            assert float(p.detach().std()) == pytest.approx(wanted, rel=0.05), key


# --- shapes ---------------------------------------------------------------------------------------


@st.composite
def architectures(draw: st.DrawFn) -> tuple[str, int, Options]:
    dims = draw(st.sampled_from([2, 3]))
    levels = draw(st.integers(2, 4))
    axis = st.tuples(*[st.sampled_from([1, 3, 5])] * dims)
    steps = st.tuples(*[st.sampled_from([1, 2, 3])] * dims)
    name = draw(st.sampled_from(NAMES))
    many = st.integers(1, 2)
    options: Options = {
        "channels": draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels)),
        "kernel": draw(st.lists(axis, min_size=levels, max_size=levels)),
        "strides": [1, *draw(st.lists(steps, min_size=levels - 1, max_size=levels - 1))],
        "decoder_convs": draw(st.lists(many, min_size=levels - 1, max_size=levels - 1)),
        "convs" if name == "plain_unet" else "blocks": draw(
            st.lists(many, min_size=levels, max_size=levels)
        ),
    }
    return name, dims, options


def totals(options: Options, dims: int) -> list[tuple[int, ...]]:
    rows = [(s,) * dims if isinstance(s, int) else s for s in options["strides"]]
    return list(accumulate(rows, lambda a, b: tuple(x * y for x, y in zip(a, b, strict=True))))


@settings(max_examples=40)
@given(which=architectures(), size=st.lists(st.integers(1, 13), min_size=3, max_size=3))
def test_heads_have_the_size_of_their_level(
    which: tuple[str, int, Options], size: list[int]
) -> None:
    name, dims, options = which
    net = made(name, dims, 2, 3, **options)
    strides = totals(options, dims)
    assert net.divisor == strides[-1]
    assert [head.stride for head in net.deep.values()] == strides[:-1]
    x = torch.randn(2, 2, *size[:dims])
    outputs = net.train()(x)
    assert list(outputs) == ["main", *(f"deep{i}" for i in range(1, len(strides) - 1))]
    for (_, y), stride in zip(outputs.items(), strides, strict=False):
        wanted = [-(-n // s) for n, s in zip(size, stride, strict=False)]
        assert y.shape == (2, 3, *wanted)
        assert torch.isfinite(y).all()
    alone = net.eval()(x)
    assert list(alone) == ["main"]
    torch.testing.assert_close(alone["main"], outputs["main"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_heads_of_mednext_are_ordered_from_fine_to_coarse(dims: int) -> None:
    net = made("mednext", dims, 2, 3)
    size = (19, 16, 33)[:dims]
    outputs = net.train()(torch.randn(1, 2, *size))
    for i, y in enumerate(outputs.values()):
        assert y.shape == (1, 3, *(-(-n // 2**i) for n in size))
    assert set(net.eval()(torch.randn(1, 2, *size))) == {"main"}


@settings(max_examples=6)
@given(which=architectures())
def test_receptive_radius_of_the_plain_network(which: tuple[str, int, Options]) -> None:
    """Kernels and strides say how far a voxel of the output sees, on either side of an edge."""
    _, dims, options = which
    options = {**{k: v for k, v in options.items() if k != "blocks"}, "convs": 2}
    net = made("plain_unet", dims, **options)
    rows = [(s,) * dims if isinstance(s, int) else s for s in options["strides"]]
    wanted = []
    for axis in range(dims):
        reach = [k[axis] // 2 for k in options["kernel"]]
        step = [row[axis] for row in rows]
        wanted.append(max(spread(reach, step, options["decoder_convs"], far) for far in (0, 1)))
    assert receptive.radius(net, 1, dims) == tuple(wanted)


def spread(reach: Sequence[int], step: Sequence[int], decoder: Sequence[int], far: int) -> int:
    """Voxels that an unknown voxel before (``far`` 1: behind) an edge changes beyond the edge.

    In cells of each level: a convolution adds its reach; a stride divides, rounded up, or down
    where the cells are counted from their far end; enlarging multiplies.
    """
    levels, grown = [], 0
    for r, s in zip(reach, step, strict=True):
        grown = (grown + r) // s if far else -(-(grown + r) // s)
        grown += r
        levels.append(grown)
    for d, e in enumerate(range(len(step) - 2, -1, -1)):
        grown = max(levels[e], grown * step[e + 1]) + decoder[d] * reach[e]
    return grown


# --- gradients, copies, options -------------------------------------------------------------------


def trained_by_main_and_deep(net: HeadedNet) -> None:
    outputs = net.train()(torch.randn(2, 1, *[2 * d for d in net.divisor]))
    total = sum(
        (
            head.weight * outputs[name].square().mean()
            for name, head in net.deep.items()
            if head.weight
        ),
        torch.zeros(()),
    )
    total.backward()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", [*NAMES, "mednext"])
def test_gradient_reaches_every_weight_but_the_coarsest_head(name: str, dims: int) -> None:
    small: Options = {} if name == "mednext" else {"channels": [3, 4, 5, 6]}
    net = made(name, dims, **small)
    randomised(net)
    trained_by_main_and_deep(net)
    layer = "trunk.out_blocks.0." if name == "mednext" else "decoder.seg_layers.0."
    without = {key for key, p in net.named_parameters() if p.grad is None}
    assert without == {key for key, _ in net.named_parameters() if key.startswith(layer)}
    dead = [
        key
        for key, p in net.named_parameters()
        if p.grad is not None and not p.grad.any() and not key.endswith("bias")
    ]
    assert dead == []


@pytest.mark.parametrize("name", NAMES)
def test_without_deep_supervision_all_that_is_trained_is_used(name: str) -> None:
    """DistributedDataParallel would wait for the gradient of a weight that has no part."""
    net = made(name, 2, channels=[3, 4, 5, 6], deep_supervision=False)
    net(torch.randn(2, 1, 16, 16))["main"].sum().backward()
    idle = {key for key, p in net.named_parameters() if p.grad is None}
    assert idle == {key for key, p in net.named_parameters() if not p.requires_grad}
    assert idle == {f"decoder.seg_layers.{d}.{w}" for d in (0, 1) for w in ("weight", "bias")}
    full = made(name, 2, channels=[3, 4, 5, 6])
    full.load_state_dict(net.state_dict())


@pytest.mark.parametrize("name", [*NAMES, "mednext"])
def test_copies_seeds_and_one_name_for_each_weight(name: str) -> None:
    small: Options = {} if name == "mednext" else {"channels": [2, 3, 4]}
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(made(name, 2, **small).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])
    assert len({t.data_ptr() for t in states[0].values()}) == len(states[0])
    net = made(name, 2, **small).train()
    x = torch.randn(2, 1, 32, 32)
    net(x)["main"].sum().backward()
    twin = copy.deepcopy(net)
    assert (twin.deep, twin.levels, twin.outputs) == (net.deep, net.levels, net.outputs)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert all(y.any() for y in twin(x).values())


@pytest.mark.parametrize("activation", ["relu", "prelu", {"name": "leaky_relu"}])
@pytest.mark.parametrize("norm", ["batch", {"name": "group", "options": {"num_groups": 2}}])
@pytest.mark.parametrize("name", NAMES)
def test_other_norms_and_activations(name: str, norm: Any, activation: Any) -> None:
    net = made(name, 2, channels=[2, 4, 4], norm=norm, activation=activation)
    assert net(torch.randn(2, 1, 9, 11))["main"].shape == (2, 2, 9, 11)


SMALL = {"channels": [4, 4, 4]}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": [4]}, ["[4]", "at least two"]),
        ({"channels": 4}, ["4", "at least two"]),
        ({**SMALL, "kernel": 2}, ["kernel", "2", "odd"]),
        ({**SMALL, "kernel": 65}, ["kernel", "65", "at most 63"]),
        ({**SMALL, "kernel": [3, 3]}, ["kernel", "3 entries"]),
        ({**SMALL, "kernel": [3, [3, 3, 3], 3]}, ["kernel", "2 of them"]),
        ({**SMALL, "strides": [2, 2, 2]}, ["strides", "begin with 1", "[1, 2, 2]"]),
        ({**SMALL, "strides": [1, 0, 2]}, ["strides", "whole number"]),
        ({**SMALL, "strides": [1, 64, 32]}, ["strides", "2048", "at most 1024"]),
        ({**SMALL, "decoder_convs": [1, 1, 1]}, ["decoder_convs", "list of 2"]),
        ({**SMALL, "decoder_convs": 0}, ["decoder_convs", "0", "at least 1"]),
        ({**SMALL, "norm": "grup"}, ["grup", "group"]),
        ({**SMALL, "norm": "group"}, ["8 groups", "[4, 4, 4]"]),
        ({**SMALL, "activation": "gulu"}, ["gulu", "gelu"]),
        ({**SMALL, "deep_supervision": 2}, ["deep_supervision", "2", "true or false"]),
        ({**SMALL, "chanels": [4, 4]}, ["chanels", "channels"]),
    ],
)
def test_wrong_options_are_refused_with_value_and_cure(
    name: str, options: Options, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        made(name, 2, **options)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("plain_unet", {**SMALL, "convs": [1, 2]}, ["convs", "[1, 2]", "list of 3"]),
        ("plain_unet", {**SMALL, "convs": True}, ["convs", "True"]),
        ("resenc_unet", {**SMALL, "blocks": [1, 2]}, ["blocks", "[1, 2]", "list of 3"]),
        ("mednext", {"size": "XL"}, ["size", "XL", "S, B, M, L"]),
        ("mednext", {"kernel": 7}, ["kernel", "7", "3 or 5"]),
        ("mednext", {"kernel": [3, 3]}, ["kernel", "[3, 3]", "3 or 5"]),
        ("mednext", {"deep_supervision": 1}, ["deep_supervision", "true or false"]),
    ],
)
def test_wrong_options_of_one_network(name: str, options: Options, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        made(name, 2, **options)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("name", "options", "option"),
    [
        ("plain_unet", {"convs": 65}, "convs"),
        ("plain_unet", {"decoder_convs": [1, 1, 1, 1, 65]}, "decoder_convs"),
        ("resenc_unet", {"blocks": 33}, "blocks"),
    ],
)
def test_too_many_repetitions_are_refused_by_their_number(
    name: str, options: Options, option: str
) -> None:
    with pytest.raises(ConfigError, match=f"option {option} is .*must be at most"):
        bounded(NamedOptions(name=name, options=options), 1, 1, 2)


# --- against nnU-Net's own package ----------------------------------------------------------------

REFERENCE = [
    (2, {"channels": [8, 16, 24], "inputs": 1}),
    (3, {"channels": [4, 8, 12, 12], "inputs": 2}),
    (
        3,
        {
            "channels": [4, 8, 12, 12],
            "inputs": 1,
            "kernel": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
        },
    ),
    (
        2,
        {
            "channels": [6, 6, 10, 10, 10],
            "inputs": 3,
            "kernel": [[3, 5], [3, 3], [1, 3], [3, 3], [3, 3]],
            "strides": [[1, 1], [2, 2], [1, 3], [2, 1], [2, 2]],
        },
    ),
]


def reference_of(name: str, dims: int, options: Mapping[str, Any]) -> nn.Module:
    """The network of nnU-Net's own package."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    levels = len(options["channels"])
    kind = {"plain_unet": unet.PlainConvUNet, "resenc_unet": unet.ResidualEncoderUNet}[name]
    many = {
        "plain_unet": {"n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2},
        "resenc_unet": {
            "n_blocks_per_stage": [1, 3, 4, 6, 6][:levels],
            "n_conv_per_stage_decoder": 1,
        },
    }[name]
    return kind(
        input_channels=options["inputs"],
        n_stages=levels,
        features_per_stage=options["channels"],
        conv_op={2: nn.Conv2d, 3: nn.Conv3d}[dims],
        kernel_sizes=options.get("kernel", [[3] * dims] * levels),
        strides=options.get("strides", [[1] * dims] + [[2] * dims] * (levels - 1)),
        num_classes=3,
        conv_bias=True,
        norm_op={2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims],
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **many,
    )


@pytest.mark.slow
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("case", range(len(REFERENCE)))
@pytest.mark.parametrize("name", NAMES)
def test_all_heads_equal_nnunets_own_for_its_weights(name: str, case: int, affine: bool) -> None:
    """Weights are loaded by their names alone; only second names are dropped."""
    dims, options = REFERENCE[case]
    theirs = reference_of(name, dims, options)
    if affine:
        randomised(theirs)
    ours = made(
        name, dims, options["inputs"], 3, **{k: v for k, v in options.items() if k != "inputs"}
    )
    state = {
        key: value
        for key, value in theirs.state_dict().items()
        if ".all_modules." not in key and not key.startswith("decoder.encoder.")
    }
    ours.load_state_dict(state, strict=True)
    x = torch.randn(2, options["inputs"], *[3 * d for d in ours.divisor])
    with torch.no_grad():
        wanted, found = theirs.train()(x), ours.train()(x)
        assert len(wanted) == len(found) == len(options["channels"]) - 1
        for right, y in zip(wanted, found.values(), strict=True):
            assert y.shape == right.shape
            assert float((y - right).abs().max()) <= 1e-5 * float(right.abs().max())


# --- prediction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_model_file_predicts(name: str, tmp_path: Path) -> None:
    part = {"name": name, "options": {"channels": [2, 4, 4, 4]}}
    checkpoint = model_file(tmp_path, dims=3, network=part)
    (tmp_path / "in").mkdir()
    files.write(tmp_path / "in" / "a.tif", noise((13, 20, 17)), dims=3)
    assert run_predict(checkpoint, tmp_path / "in", tmp_path / "out") == 0
    answer, _ = files.read(tmp_path / "out" / "a.tif", dims=3)
    assert np.squeeze(answer).shape == (13, 20, 17)


@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet"])
def test_single_slices_are_computed_as_images(name: str) -> None:
    """The network of a 2D configuration of volumes: the 2D one's outputs, and the 3D one's."""
    deep = [[1, 3, 3]] * 3
    options = {"channels": [4, 8, 8], "kernel": deep, "strides": [1, [1, 2, 2], [1, 2, 2]]}
    net = build(NamedOptions(name=name, options=options), 1, 3, 3).eval()
    flat = build(NamedOptions(name=name, options={"channels": [4, 8, 8]}), 1, 3, 2).eval()
    state = {k: v[:, :, 0] if v.dim() == 5 else v for k, v in net.state_dict().items()}
    flat.load_state_dict(state)
    image = torch.randn(2, 1, 1, 16, 24)
    found = net(image)["main"]
    torch.testing.assert_close(found[:, :, 0], flat(image[:, :, 0])["main"])
    thick = net(image.expand(-1, -1, 3, -1, -1))["main"]  # convolved in 3D
    torch.testing.assert_close(thick[:, :, 1:2], found, atol=1e-5, rtol=1e-4)
