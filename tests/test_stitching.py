"""Stitching, proved: tiles with a halo as wide as the network sees equal the whole image, and what
must fail does fail.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiles import main, tiled
from torch import nn

from pipeline import predict
from pipeline.config import Config, from_dict
from pipeline.data.normalise import IntensityScale
from pipeline.geometry import WINDOWS, Tiling, up
from pipeline.inference import norms
from pipeline.inference.models import save_model
from pipeline.inference.sliding_window import (
    Source,
    cut,
    network_ensemble,
    tiling,
    with_fixed_norms,
)
from pipeline.inference.stitching import mismatch, warning, with_halo
from pipeline.networks import HeadedNet, build, receptive
from pipeline.records import Checkpoint, NamedOptions, UserError

IMAGE_NET: dict[str, Any] = {"base": 4, "depth": 2, "align_corners": False}
"""With batch norm."""


def network(name: str, dims: int, inputs: int = 1, **options: Any) -> HeadedNet:
    """Evaluation mode, after some steps of training mode, so that running statistics are not 0 and
    1.
    """
    torch.manual_seed(0)
    net = build(NamedOptions(name=name, options=options), inputs, 1, dims)
    net.train()(torch.rand(2, inputs, *[2 * d for d in net.divisor]))
    return net.eval()


def config(dims: int, **asked: Any) -> Config:
    patch = asked.get("patch", 16)
    size = patch if isinstance(patch, list) else [16] * dims
    return from_dict(
        {
            "name": "t",
            "task": "image",
            "data": {"dims": dims, "patch": {"size": size}},
            "network": "unet",
            "losses": [{"name": "l1", "target": "target"}],
            "predict": {"overlap": 0, **asked},
        }
    )


def source(*shape: int, channels: int = 1) -> Source:
    """Noise on a ramp: statistics differ from place to place."""
    noise = np.random.default_rng(sum(shape)).random((channels, *shape), np.float32)
    ramp = np.linspace(-1, 1, shape[-1], dtype=np.float32)
    return Source(
        array=noise + ramp,
        scale=IntensityScale(low=(0.0,) * channels, high=(1.0,) * channels, clip=False),
    )


def answer(net: nn.Module, image: Source, **asked: Any) -> np.ndarray:
    settings_ = config(image.array.ndim - 1, **asked)
    predict_tile = network_ensemble([net], settings_, "cpu")
    tiles = tiling(settings_, image.array.shape[1:], predict_tile)
    return tiled(image, with_fixed_norms(predict_tile, image, tiles), tiles)


# --- T1, T2, T4: any network ----------------------------------------------------------------------


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 47, 64, 97])
@pytest.mark.parametrize("halo", [0, 8])
def test_identity_to_the_last_pixel(window: str, n: int, halo: int) -> None:
    image = source(n, 53)
    tiles = Tiling(
        size=(n, 53), tile=(32, 32), overlap=8, window=window, halo=halo, multiple=(8, 8)
    )
    error = np.abs(tiled(image, lambda x: x, tiles) - image.array)
    assert error.max() < 1e-6
    assert (
        max(error[:, 0].max(), error[:, -1].max(), error[..., 0].max(), error[..., -1].max()) < 1e-6
    )


@pytest.mark.parametrize("window", WINDOWS)
def test_weights_are_positive_and_share_out_one(window: str) -> None:
    tiles = Tiling(size=(61, 100), tile=(32, 48), overlap=8, window=window, halo=4, multiple=(8, 8))
    total = np.zeros(tiles.padded)
    boxes = [
        (tiles.weights(p), tuple(slice(a, a + t) for a, t in zip(p, tiles.tile, strict=True)))
        for p in tiles.origins()
    ]
    for weights, box in boxes:
        assert weights.min() >= 0
        total[box] += weights
    assert total.min() > 0
    shares = np.zeros(tiles.padded)
    for weights, box in boxes:
        shares[box] += weights / total[box]
    np.testing.assert_allclose(shares, 1, atol=1e-6)


class Backwards(Tiling):
    """The tiles of each band from right to left."""

    def origins(self) -> Iterator[tuple[int, ...]]:
        return iter(sorted(super().origins(), key=lambda p: (p[0], *(-x for x in p[1:]))))


def test_order_and_batch_change_nothing() -> None:
    net, image = network("image_unet", 2, **IMAGE_NET), source(90, 77)
    options: dict[str, Any] = {"size": (90, 77), "tile": (32, 32), "overlap": 8, "multiple": (4, 4)}
    expected = tiled(image, lambda x: net(x)["main"], Tiling(**options))
    for tiles, batch in [
        (Tiling(**options), 5),
        (Backwards(**options), 1),
        (Backwards(**options), 3),
    ]:
        assert [*tiles.origins()] != [*Tiling(**options).origins()] or batch > 1
        np.testing.assert_allclose(
            tiled(image, lambda x: net(x)["main"], tiles, batch=batch), expected, atol=1e-6
        )


# --- how far a network sees -----------------------------------------------------------------------


KINDS = [
    ("unet", 2, {"channels": [2] * 5, "norm": "batch"}, 94),
    ("unet", 2, {"channels": [2] * 5, "norm": "instance"}, 94),
    ("dynunet", 2, {"channels": [2, 2, 2], "norm": "batch"}, 18),
    ("dynunet", 2, {"channels": [2, 2, 2], "block": 2}, 36),
    ("dynunet", 3, {"channels": [2, 2, 2]}, 18),
    ("segresnet", 2, {"filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}, None),
    ("sa_unet", 2, {"channels": [2, 2, 2, 2]}, 77),
    ("deblur_unet", 2, {"base": 8}, 124),
    ("image_unet", 2, {"base": 2, "align_corners": False}, 109),
]


@pytest.mark.parametrize(("name", "dims", "options", "expected"), KINDS)
def test_radius_is_what_a_change_beyond_an_edge_reaches(
    name: str, dims: int, options: dict[str, Any], expected: int | None
) -> None:
    """An independent count: change everything beyond an edge on the stride and look where the
    answer moves, norms standing still.
    """
    net = network(name, dims, **options)
    radius = receptive.radius(net, 1, dims)
    assert expected is None or radius == (expected,) * dims
    grid = net.divisor[-1]
    edge = up(radius[-1], grid) + grid
    x = torch.rand(1, 1, *net.divisor[:-1], 2 * edge)
    known = norms.frozen(net, x)
    for side in (slice(edge, None), slice(0, edge)):
        other = x.clone()
        other[..., side] += 10 * torch.rand_like(other[..., side])
        with torch.inference_mode():
            moved = (
                (
                    norms.with_moments(net, x, known)["main"]
                    - norms.with_moments(net, other, known)["main"]
                )
                .abs()
                .flatten(0, -2)
                .amax(0)
            )
        untouched = moved[: edge - radius[-1]] if side.start else moved[edge + radius[-1] :]
        near = moved[edge - radius[-1] : edge] if side.start else moved[edge : edge + radius[-1]]
        assert untouched.max() == 0
        assert near.max() > 0


def test_radius_is_tight() -> None:
    """Positive weights pass every change on: the outermost pixel within the radius moves, on one
    side of the edge at least.
    """
    net = network("image_unet", 2, base=2, depth=2, norm="none", align_corners=False).double()
    for weights in net.parameters():
        weights.data.abs_()
    radius = receptive.radius(net, 1, 2)[0]
    x = torch.rand(1, 1, 4, 128, dtype=torch.float64)
    reached = 0
    for side in (slice(64, None), slice(0, 64)):
        other = x.clone()
        other[..., side] += 1e3
        with torch.inference_mode():
            places = (net(x)["main"] != net(other)["main"]).any(2).flatten().nonzero()
        reached = max(reached, 64 - int(places.min()) if side.start else int(places.max()) + 1 - 64)
    assert reached == radius


def test_anisotropic_networks_have_a_radius_for_each_axis() -> None:
    net = network(
        "dynunet",
        3,
        channels=[2, 2, 2],
        strides=[1, [1, 2, 2], [1, 2, 2]],
        kernel=[[1, 3, 3], 3, 3],
    )
    assert receptive.radius(net, 1, 3) == (8, 18, 18)
    assert receptive.halo(net, 1, 3) == 20


def test_tracing_leaves_the_network_alone() -> None:
    net = network("dynunet", 2, channels=[2, 2, 2]).train()
    x = torch.rand(1, 1, 16, 16)
    before = net(x)["main"]
    receptive.reach(net, 1, 2)
    assert net.training
    assert torch.equal(net(x)["main"], before)


def test_a_network_that_sees_everything_says_so() -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"main": x + x.mean((2, 3), keepdim=True)}

    with pytest.raises(UserError, match="--whole"):
        receptive.radius(Mean(), 1, 2)


@pytest.mark.parametrize(
    ("layer", "dependent", "mendable"),
    [
        (nn.GroupNorm(1, 4), True, True),
        (nn.InstanceNorm2d(4), True, True),
        (nn.InstanceNorm2d(4, track_running_stats=True), False, True),
        (nn.BatchNorm2d(4), False, True),
        (nn.BatchNorm2d(4, track_running_stats=False), True, True),
        (nn.LayerNorm(4), False, True),
        (nn.LayerNorm([4, 8, 8]), True, False),
        (nn.AdaptiveAvgPool2d(1), True, False),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), True, False),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), False, True),
    ],
)
def test_layers_that_see_the_whole_tile_are_found(
    layer: nn.Module, dependent: bool, mendable: bool
) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), layer)
    assert receptive.tile_dependent(net) == ((f"1 ({type(layer).__name__})",) if dependent else ())
    assert bool(receptive.beyond_statistics(net)) == (not mendable)


# --- T3: equal to the whole image -----------------------------------------------------------------


TILE_2D = 48
SIZES = st.one_of(
    st.sampled_from([1, 2, TILE_2D - 1, TILE_2D, TILE_2D + 1, 53, 97, 101]), st.integers(1, 120)
)


@settings(deadline=None, max_examples=20)
@given(SIZES, SIZES, st.sampled_from(sorted(WINDOWS)), st.sampled_from([0, 16]), st.booleans())
def test_tiles_equal_the_whole_image(
    h: int, w: int, window: str, overlap: int, flipped: bool
) -> None:
    net = network("image_unet", 2, **(IMAGE_NET | {"depth": 1}))
    halo = receptive.halo(net, 1, 2)
    image = source(h, w)
    tiled = answer(
        net, image, patch=[TILE_2D] * 2, halo=halo, window=window, overlap=overlap, flips=flipped
    )
    np.testing.assert_allclose(tiled, answer(net, image, patch="whole", flips=flipped), atol=1e-5)


@settings(deadline=None, max_examples=3)
@given(st.permutations([7, 45, 53]) | st.permutations([1, 44, 61]) | st.permutations([2, 23, 67]))
def test_tiles_equal_the_whole_volume(size: list[int]) -> None:
    net = network("dynunet", 3, channels=[2, 2, 2], norm="batch")
    image, halo = source(*size), receptive.halo(net, 1, 3)
    assert halo == 20
    np.testing.assert_allclose(
        answer(net, image, patch=[44] * 3, halo=halo), answer(net, image, patch="whole"), atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "options", "patch"),
    [
        ("unet", {"channels": [2] * 5, "norm": "batch"}, 224),
        ("sa_unet", {"channels": [4, 4, 4, 4]}, 168),
        ("deblur_unet", {"base": 4, "norm": "batch"}, 288),
    ],
)
def test_systems_equal_the_whole_image(name: str, options: dict[str, Any], patch: int) -> None:
    net, image = network(name, 2, inputs=3, **options), source(patch + 61, 37, channels=3)
    settings_, told = with_halo(config(2, patch=[patch] * 2), net, 3)
    assert str(settings_.predict.halo) in told
    tiled = answer(net, image, patch=[patch] * 2, halo=settings_.predict.halo)
    np.testing.assert_allclose(tiled, answer(net, image, patch="whole"), atol=1e-5)
    assert (
        np.abs(answer(net, image, patch=[64] * 2) - answer(net, image, patch="whole")).max() > 1e-5
    )


def test_flips_of_odd_sizes_equal_those_of_the_whole_image() -> None:
    """The stride is counted from one end; a flipped image is padded before it is flipped, as its
    tiles are.
    """
    net, image = network("image_unet", 2, **IMAGE_NET), source(83, 101)
    halo = receptive.halo(net, 1, 2)
    tiled = answer(net, image, patch=[64] * 2, halo=halo, flips=True)
    np.testing.assert_allclose(tiled, answer(net, image, patch="whole", flips=True), atol=1e-5)


# --- T5: what must fail ---------------------------------------------------------------------------


def blend(image: np.ndarray, tiles: Tiling, profile: Any, net: Any = lambda x: x) -> np.ndarray:
    """A plain stitcher as they are commonly written: one profile in all tiles, sums divided by the
    weights, which are clamped.
    """
    total, weight = np.zeros(tiles.padded), np.zeros(tiles.padded)
    window = np.multiply.outer(profile, profile)
    for y, x in tiles.origins():
        box = (slice(y, y + len(profile)), slice(x, x + len(profile)))
        total[box] += window * net(image[box])
        weight[box] += window
    return total / np.maximum(weight, 1e-8)


def reversed_feather(n: int, overlap: int) -> np.ndarray:
    ramp = np.ones(n)
    ramp[:overlap] = np.linspace(1, 1e-3, overlap)
    ramp[-overlap:] = ramp[:overlap][::-1]
    return ramp


def test_a_zero_ended_hann_loses_the_border() -> None:
    tiles = Tiling(size=(96, 96), tile=(32, 32), overlap=16)
    image = np.random.default_rng(0).random((96, 96)) + 1
    error = np.abs(blend(image, tiles, np.hanning(32)) - image)
    assert error[0].min() > 0.9
    assert np.abs(blend(image, tiles, WINDOWS["hann"](32, 16)) - image).max() < 1e-9


def unsharp(x: np.ndarray) -> np.ndarray:
    """Radius 4, zeros beyond the tile."""
    kernel = np.ones(9) / 9
    for axis in (0, 1):
        x = np.apply_along_axis(np.convolve, axis, x, kernel, "same")
    return x


def seam_index(error: np.ndarray, lines: list[int], overlap: int) -> float:
    """Mean gradient of the error across the tiles' edges over that elsewhere, along the last axis;
    1 where both are nought.
    """
    jump = np.abs(np.diff(error, axis=-1)).mean(0)
    edges = np.zeros(len(jump), bool)
    edges[[line - 1 for start in lines for line in (start, start + overlap)]] = True
    on, off = jump[edges].mean(), jump[~edges].mean()
    return 1.0 if on == off == 0 else on / max(off, 1e-12)


def test_a_reversed_feather_passes_the_identity_and_shows_its_seams() -> None:
    tiles = Tiling(size=(112, 112), tile=(32, 32), overlap=12)
    image = np.random.default_rng(0).random((112, 112))
    assert np.abs(blend(image, tiles, reversed_feather(32, 12)) - image).max() < 1e-9
    whole, lines = unsharp(image), tiles.starts(1)[1:]
    index = {
        name: seam_index(blend(image, tiles, profile, unsharp) - whole, lines, 12)
        for name, profile in [
            ("feather", WINDOWS["feather"](32, 12)),
            ("reversed", reversed_feather(32, 12)),
            ("constant", np.ones(32)),
        ]
    }
    assert index["feather"] < index["constant"] < index["reversed"]
    assert index["reversed"] > 2 * index["feather"]


def test_a_halo_has_no_seams_at_all() -> None:
    net, image = network("image_unet", 2, **IMAGE_NET), source(97, 130)
    whole, halo = answer(net, image, patch="whole"), receptive.halo(net, 1, 2)
    tiles = Tiling(size=(97, 130), tile=(72, 72), halo=halo, multiple=(4, 4))
    lines = [s + halo for s in tiles.starts(1)[1:]]
    exact = np.abs(answer(net, image, patch=[72] * 2, halo=halo) - whole)[0]
    assert exact.max() < 1e-5
    assert seam_index(np.round(exact, 5), lines, 0) == 1
    cut_short = (answer(net, image, patch=[32] * 2, window="constant") - whole)[0]
    assert seam_index(cut_short, [32, 64, 96], 0) > 3


def test_tiles_off_the_stride_are_not_the_whole_image() -> None:
    net, image = network("image_unet", 2, **IMAGE_NET), source(131, 98)
    whole, halo = answer(net, image, patch="whole"), receptive.halo(net, 1, 2)
    options: dict[str, Any] = {"size": (131, 98), "tile": (72, 72), "halo": halo}
    on, off = (
        np.abs(
            tiled(image, lambda x: net(x)["main"], Tiling(**options, multiple=grid)) - whole
        ).max()
        for grid in ((4, 4), (1, 1))
    )
    assert on < 1e-5
    assert off > 1e-3


# --- T6: networks whose layers see the whole tile -------------------------------------------------


NORMED = [
    ("image_unet", {"base": 8, "depth": 2, "norm": "group", "align_corners": False}),
    ("image_unet", {"base": 4, "depth": 2, "norm": "instance", "align_corners": False}),
    (
        "dynunet",
        {"channels": [4, 4, 4], "norm": {"name": "instance", "options": {"affine": False}}},
    ),
    ("dynunet", {"channels": [4, 4, 4], "block": 2}),
    ("segresnet", {"filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}),
    ("plain_unet", {"channels": [4, 4, 4]}),
    ("resenc_unet", {"channels": [4, 6], "blocks": 1}),
]


@pytest.mark.parametrize(("name", "options"), NORMED)
@pytest.mark.parametrize("size", [(121, 98), (163, 41)])
def test_exact_statistics_equal_the_whole_image(
    name: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    net, image = network(name, 2, **options), source(*size)
    for weights in (p for p in net.parameters() if p.ndim == 1):
        weights.data.uniform_(0.5, 1.5)  # so that scales and shifts of the norms are seen
    halo, patch = receptive.halo(net, 1, 2), up(2 * receptive.halo(net, 1, 2) + 24, 8)
    whole = answer(net, image, patch="whole")
    exact = answer(net, image, patch=[patch] * 2, halo=halo, norms="exact")
    np.testing.assert_allclose(exact, whole, atol=1e-5 * max(1, np.abs(whole).max()))
    tiled, frozen = (
        answer(net, image, patch=[patch] * 2, halo=halo, norms=n) for n in ("tile", "frozen")
    )
    assert np.abs(tiled - whole).max() > 1e-3
    np.testing.assert_allclose(
        frozen, whole, atol=1e-5 * max(1, np.abs(whole).max())
    )  # small enough not to be reduced


def test_exact_statistics_of_the_deblurring_network() -> None:
    net, image = network("deblur_unet", 2, inputs=3, base=8), source(331, 67, channels=3)
    whole = answer(net, image, patch="whole")
    np.testing.assert_allclose(
        answer(net, image, patch=[288] * 2, halo=128, norms="exact"), whole, atol=1e-5
    )
    assert np.abs(answer(net, image, patch=[288] * 2, halo=128) - whole).max() > 1e-4


def test_exact_statistics_in_3d() -> None:
    net, image = network("dynunet", 3, channels=[2, 2, 2], norm="instance"), source(5, 9, 61)
    exact = answer(net, image, patch=[44] * 3, halo=20, norms="exact")
    np.testing.assert_allclose(exact, answer(net, image, patch="whole"), atol=1e-5)


@pytest.mark.parametrize("way", ["exact", "frozen"])
def test_statistics_of_each_flip_and_network_are_its_own(way: str) -> None:
    nets = [network("dynunet", 2, channels=[2, 2, 2], norm="instance") for _ in range(2)]
    for weights in nets[1].parameters():
        weights.data.mul_(0.7)
    image = source(22, 61)
    answers = []
    for asked in ({"patch": "whole"}, {"patch": [44] * 2, "halo": 20, "norms": way}):
        settings_ = config(2, flips=True, **asked)
        predict_tile = network_ensemble(nets, settings_, "cpu", [1, 2])
        tiles = tiling(settings_, image.array.shape[1:], predict_tile)
        answers.append(tiled(image, with_fixed_norms(predict_tile, image, tiles), tiles))
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)


def test_frozen_statistics_of_a_reduced_image_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("image_unet", 2, **IMAGE_NET, norm="instance")
    y, x = np.mgrid[:150, :170].astype(np.float32)
    image = Source(
        array=(np.sin(y / 15) * np.cos(x / 20))[None] + x[None] / 170,
        scale=IntensityScale(low=(0.0,), high=(1.0,), clip=False),
    )
    whole, halo = answer(net, image, patch="whole"), receptive.halo(net, 1, 2)
    monkeypatch.setitem(norms.LARGEST, 2, 150 * 170 // 3)
    frozen, tiled = (
        np.abs(answer(net, image, patch=[72] * 2, halo=halo, norms=n) - whole)
        for n in ("frozen", "tile")
    )
    assert 1e-5 < frozen.mean() < 0.7 * tiled.mean()


def test_reduction_is_the_mean_of_blocks() -> None:
    image = source(16, 24, channels=2)
    space = norms.Space(
        size=(16, 24), read=lambda start, size: torch.from_numpy(cut(image, start, size)[None])
    )
    blocks = image.array.reshape(2, 8, 2, 12, 2).mean((2, 4))
    np.testing.assert_allclose(norms.reduced(space, 16 * 24 // 4)[0].numpy(), blocks, atol=1e-6)
    np.testing.assert_array_equal(norms.reduced(space)[0].numpy(), image.array)


def test_boxes_beyond_the_far_ends_repeat_the_border() -> None:
    image = source(6, 9)
    padded = np.pad(image.array, [(0, 0), (0, 10), (0, 7)], mode="edge")
    for y, x in [(0, 0), (4, 7), (6, 3), (9, 8), (8, 11)]:
        np.testing.assert_array_equal(cut(image, [y, x], [5, 4]), padded[:, y : y + 5, x : x + 4])


def test_turned_spaces_are_flipped() -> None:
    image = source(16, 24)
    space = norms.Space(
        size=(16, 24), read=lambda start, size: torch.from_numpy(cut(image, start, size)[None])
    )
    for axes in itertools.chain([(), (-1,), (-2,), (-2, -1)]):
        part = space.flipped(axes).read([2, 3], [5, 7]).numpy()[0]
        np.testing.assert_array_equal(part, np.flip(image.array, axes)[:, 2:7, 3:10])


def test_the_network_is_restored_also_after_an_error() -> None:
    net = network("image_unet", 2, **(IMAGE_NET | {"norm": "group", "base": 8}))
    x = torch.rand(1, 1, 32, 32)
    before = net(x)["main"]

    def fail(*_: object) -> norms.Moments:
        raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"), norms.holding(net, fail):
        net(x)
    assert torch.equal(net(x)["main"], before)
    assert all("forward" not in vars(m) for m in net.modules())
    answer(net, source(90, 61), patch=[72] * 2, halo=20, norms="exact")
    assert torch.equal(net(x)["main"], before)


@pytest.mark.parametrize(
    ("options", "asked", "words"),
    [
        ({"norm": "group", "base": 8}, {"norms": "exact", "patch": [32] * 2}, "at least"),
        (
            {"norm": "group", "base": 8},
            {"norms": "exact", "patch": [72] * 2, "scales": [1, 0.5]},
            "scale 1 only",
        ),
        (
            {"norm": "group", "base": 8, "align_corners": True},
            {"norms": "frozen", "patch": [72] * 2},
            "--whole",
        ),
        ({"norm": "none"}, {"halo": 20, "patch": [41] * 2}, None),
        ({"norm": "none"}, {"halo": 15, "patch": [33] * 2}, None),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any], asked: dict[str, Any], words: str | None
) -> None:
    net = network("image_unet", 2, **(IMAGE_NET | options))
    if words is None:  # the stride gives such tiles room enough
        assert answer(net, source(61, 50), **asked).shape == (1, 61, 50)
        return
    with pytest.raises(UserError, match=words):
        answer(net, source(150, 150), **asked)


def test_a_halo_without_room_is_refused_with_the_least_tile() -> None:
    net = network("unet", 2, channels=[2] * 5, norm="batch")
    with pytest.raises(UserError, match="at least 208 x 208, not 128 x 128"):
        with_halo(config(2, patch=[128] * 2), net, 1)
    assert with_halo(config(2, patch="whole"), net, 1)[0].predict.halo == 0
    with pytest.raises(UserError, match="at least 112"):
        answer(net, source(300, 300), patch=[96] * 2, halo=47)


def warned(net: HeadedNet, image: Source, trained: int = 32, **asked: Any) -> str | None:
    """What is told of a network that was trained on patches of ``trained``."""
    settings_ = config(2, **asked)
    patch = replace(settings_.data.patch, size=(trained, trained))
    settings_ = replace(settings_, data=replace(settings_.data, patch=patch))
    predict_tile = network_ensemble([net], settings_, "cpu")
    return warning(predict_tile, image, tiling(settings_, image.array.shape[1:], predict_tile))


def test_group_norm_is_told_with_a_number_and_what_helps() -> None:
    net, image = (
        network("image_unet", 2, **(IMAGE_NET | {"norm": "group", "base": 8})),
        source(150, 170),
    )
    text = warned(net, image, patch=[64] * 2, flips=True)
    assert text is not None
    words = (
        "10 layers",
        "GroupNorm",
        "64 x 96",
        "64 x 64",
        "--norms frozen",
        "--norms exact",
        "--patch-size 32 32",
        "--whole",
    )
    assert not [word for word in words if word not in text], text
    predict_tile = network_ensemble([net], config(2), "cpu")
    found = mismatch(predict_tile, image, Tiling(size=(150, 170), tile=(64, 64), multiple=(4, 4)))
    assert found.most > found.mean > 0
    assert f"{found.most:.2g}" in text


def test_only_what_can_be_done_here_is_named() -> None:
    net, image = (
        network("image_unet", 2, **(IMAGE_NET | {"norm": "group", "base": 8})),
        source(150, 170),
    )
    scaled = warned(net, image, patch=[64] * 2, scales=[1, 0.5])
    assert scaled is not None
    assert "--norms frozen" in scaled
    assert "--norms exact" not in scaled  # it goes with scale 1 only
    settings_ = config(2, patch=[64] * 2)
    patch = replace(settings_.data.patch, size=(32, 32))
    predict_tile = network_ensemble(
        [net], replace(settings_, data=replace(settings_.data, patch=patch)), "cpu"
    )
    other = warning(
        predict_tile, image, tiling(settings_, image.array.shape[1:], predict_tile), "onnx"
    )
    assert other is not None
    assert "--backend torch --norms frozen" in other
    assert "a smaller --halo" in (warned(net, image, patch=[64] * 2, halo=16) or "")


def test_tiles_of_the_training_size_are_neither_measured_nor_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, image = (
        network("image_unet", 2, **(IMAGE_NET | {"norm": "group", "base": 8})),
        source(150, 170),
    )
    monkeypatch.setattr("pipeline.inference.stitching.mismatch", lambda *_: pytest.fail("measured"))
    assert warned(net, image, trained=64, patch=[64] * 2) is None
    assert warned(net, image, trained=62, patch=[64] * 2) is None  # on the network's stride
    assert (
        warned(net, source(40, 170), trained=64, patch=[64] * 2) is None
    )  # a tile no longer than the image


def test_silence_where_nothing_is_to_be_told() -> None:
    image = source(150, 170)
    grouped = network("image_unet", 2, **(IMAGE_NET | {"norm": "group", "base": 8}))
    assert warned(network("image_unet", 2, **IMAGE_NET), image, patch=[64] * 2) is None
    assert warned(grouped, image, patch="whole") is None
    assert warned(grouped, image, patch=[64] * 2, norms="frozen") is None
    assert warning(main(lambda x: x), image, Tiling(size=(150, 170), tile=(64, 64))) is None


def test_aligned_corners_are_told_without_statistics_as_a_cure() -> None:
    net = network("image_unet", 2, **(IMAGE_NET | {"align_corners": True}))
    text = warned(net, source(150, 170), patch=[64] * 2)
    assert text is not None
    assert "--whole" in text
    assert "--norms" not in text


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def blurry(tmp_path: Path) -> tuple[Path, Path]:
    """A model file with instance norm, and an image of several tiles."""
    system = {
        "name": "t",
        "task": "image",
        "data": {"dims": 2, "patch": {"size": [16, 16]}, "normalise": {"name": "range"}},
        "network": {"name": "dynunet", "options": {"channels": [2, 2, 2]}},
        "losses": [{"name": "l1", "target": "target"}],
        "predict": {"overlap": 0},
    }
    torch.manual_seed(0)
    weights = build(
        NamedOptions(name="dynunet", options={"channels": [2, 2, 2]}), 3, 3, 2
    ).state_dict()
    save_model(
        tmp_path / "m.safetensors",
        Checkpoint(config=system, channels=(3, 3), fold=0, epoch=0, score=None, weights=weights),
    )
    pixels = (
        np.random.default_rng(0).integers(0, 255, (101, 83, 3), np.uint8)
        // np.linspace(1, 4, 83)[:, None]
    )
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "m.safetensors", tmp_path / "a.png"


def test_command_makes_tiles_equal_to_the_whole(
    blurry: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given_ = [
        "--checkpoint",
        str(blurry[0]),
        "--input",
        str(blurry[1]),
        "--save-soft",
        "--device",
        "cpu",
    ]
    runs = {
        "whole": ["--whole", "--halo", "auto"],
        "exact": ["--patch-size", "48", "--halo", "auto", "--norms", "exact"],
        "tile": ["--patch-size", "48", "--halo", "auto"],
    }
    told, answers = {}, {}
    for name, options in runs.items():
        assert predict.main([*given_, "--output", str(tmp_path / name), *options]) == 0
        told[name] = capsys.readouterr().out
        answers[name] = np.load(tmp_path / name / "soft" / "a.npy").astype(np.float32)
    assert "in one piece" in told["whole"]
    assert "Halo: 20; the network sees 18 x 18 voxels" in told["exact"]
    assert "97% of its work" in told["exact"]
    assert told["tile"].count("warning: 10 layers see their whole tile") == 1
    assert not [name for name in ("whole", "exact") if "warning: " in told[name]]
    np.testing.assert_allclose(
        answers["exact"], answers["whole"], atol=1e-3, rtol=1e-3
    )  # kept as halves
    assert np.abs(answers["tile"] - answers["whole"]).max() > 1e-2


def test_command_refuses_tiles_without_room_for_the_halo(
    blurry: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = [
        "--checkpoint",
        str(blurry[0]),
        "--input",
        str(blurry[1]),
        "--output",
        str(tmp_path / "out"),
        "--halo",
        "auto",
    ]
    assert predict.main(options) == 2
    assert "--patch-size 80 80" in "".join(capsys.readouterr())


# --- memory ---------------------------------------------------------------------------------------


def test_sums_are_as_high_as_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the answer itself, nothing that is allocated grows with the height of the image."""
    import tracemalloc

    def peak(height: int) -> int:
        image = Source(
            array=np.zeros((1, height, 512), np.uint8),
            scale=IntensityScale(low=(0.0,), high=(1.0,)),
        )
        tiles = Tiling(size=(height, 512), tile=(64, 64), overlap=16)
        shapes: list[int] = []
        zeros = torch.zeros
        monkeypatch.setattr(
            torch, "zeros", lambda *a, **k: shapes.append(int(np.prod(a[0]))) or zeros(*a, **k)
        )
        tracemalloc.start()
        soft = tiled(image, lambda x: x, tiles)
        most = tracemalloc.get_traced_memory()[1] - soft.nbytes
        tracemalloc.stop()
        monkeypatch.undo()
        assert sum(shapes) == 2 * 64 * 512
        return most

    low, high = peak(256), peak(2048)
    assert high < low + 2**20


def test_bands_of_a_large_image_are_whole() -> None:
    image = source(1031, 40)
    tiles = Tiling(size=(1031, 40), tile=(64, 32), overlap=16, multiple=(16, 16))
    np.testing.assert_allclose(tiled(image, lambda x: x, tiles, batch=3), image.array, atol=2e-6)
    assert replace(tiles, size=(64, 32)).count() == 1
