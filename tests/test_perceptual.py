"""MS-SSIM and the VGG16 loss: values by hand and against scikit-image, gradients, weights that are
found or refused but never made up.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slim_vgg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from scipy.ndimage import gaussian_filter
from skimage.measure import block_reduce
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from pipeline.config import ConfigError
from pipeline.losses import LOSSES, WeightedSum, vgg
from pipeline.losses.masked import Loss
from pipeline.records import LossTerm, UserError

perceptual_module: Any = importlib.import_module("pipeline.losses.perceptual")
"""By its full name: ``pipeline.losses.perceptual`` is the loss as an attribute of its package."""

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ones(x: Tensor) -> Tensor:
    return torch.ones_like(x[:, :1], dtype=torch.float32)


def photograph(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Smooth random structure on all scales, float64, in ``[low, high]``."""
    draw = np.random.default_rng(seed)
    x = sum(
        gaussian_filter(draw.normal(size=shape), (0, 0, *(s,) * (len(shape) - 2))) * s
        for s in (1.0, 3.0, 8.0)
    )
    x = np.asarray(x)
    return torch.from_numpy((x - x.min()) / (x.max() - x.min()) * (high - low) + low)


def value(loss: Loss, x: Tensor, y: Tensor) -> float:
    return float(loss(x, y, ones(x)))


def slope(loss: Loss, x: Tensor, y: Tensor, valid: Tensor | None = None) -> tuple[float, Tensor]:
    x = x.clone().requires_grad_()
    result = loss(x, y, ones(x) if valid is None else valid)
    return float(result.detach()), torch.autograd.grad(result, x)[0]


# ------------------------------------------------------------------ MS-SSIM: values


def reference(x: np.ndarray, y: np.ndarray, powers: list[float]) -> float:
    """MS-SSIM of one channel in 0..1 by scikit-image; an enormous K1 makes its brightness term 1
    and leaves contrast and structure.
    """
    result = 1.0
    for level, power in enumerate(powers):
        if level:
            even = tuple(slice(n // 2 * 2) for n in x.shape)
            x, y = (block_reduce(t[even], 2, np.mean) for t in (x, y))
        k1 = 0.01 if level == len(powers) - 1 else 1e6
        options: dict[str, Any] = {
            "data_range": 1,
            "gaussian_weights": True,
            "sigma": 1.5,
            "use_sample_covariance": False,
            "K1": k1,
        }
        result *= float(np.asarray(structural_similarity(x, y, **options))) ** power
    return result


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ms_ssim_is_that_of_scikit_image(levels: int) -> None:
    x = photograph(2, 3, 190, 177)
    y = x * 0.7 + 0.3 * photograph(2, 3, 190, 177, seed=1) + 0.05
    powers = [p / sum(SCALES[:levels]) for p in SCALES[:levels]]
    wanted = [
        reference(((a + 1) / 2).numpy(), ((b + 1) / 2).numpy(), powers)
        for a, b in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)
    ]
    assert value(LOSSES["ms_ssim"].make(levels=levels), x, y) == pytest.approx(
        1 - np.mean(wanted), abs=1e-9
    )
    assert value(LOSSES["ms_ssim"].make(levels=levels), x.float(), y.float()) == pytest.approx(
        1 - np.mean(wanted), abs=1e-5
    )


def test_ms_ssim_of_volumes_is_that_of_scikit_image() -> None:
    x = photograph(1, 1, 24, 23, 27, low=0)
    y = x * 0.5 + 0.5 * photograph(1, 1, 24, 23, 27, seed=1, low=0)
    powers = [p / sum(SCALES[:2]) for p in SCALES[:2]]
    wanted = 1 - reference(x[0, 0].numpy(), y[0, 0].numpy(), powers)
    assert value(LOSSES["ms_ssim"].make(levels=2, range=[0, 1]), x, y) == pytest.approx(
        wanted, abs=1e-9
    )


@pytest.mark.parametrize(("levels", "power"), [(5, 0.1333), (1, 1.0)])
def test_two_flat_images_differ_in_brightness_only(levels: int, power: float) -> None:
    """In 0..1 they are 0.75 and 0.25, contrast and structure are equal on every scale."""
    x = torch.full((1, 1, 176, 176), 0.5, dtype=torch.float64)
    brightness = (2 * 0.75 * 0.25 + 1e-4) / (0.75**2 + 0.25**2 + 1e-4)
    whole = sum(SCALES) if levels == 5 else 1
    assert value(LOSSES["ms_ssim"].make(levels=levels), x, -x) == pytest.approx(
        1 - brightness ** (power / whole), abs=1e-12
    )


def test_ms_ssim_range_says_what_is_black_and_white() -> None:
    x, y = photograph(1, 3, 24, 24), photograph(1, 3, 24, 24, seed=1)
    wanted = value(LOSSES["ms_ssim"].make(levels=2), x, y)
    for low, high in ((0, 1), (0, 255), (-3.0, 0.5)):
        moved = [(t + 1) / 2 * (high - low) + low for t in (x, y)]
        assert value(LOSSES["ms_ssim"].make(levels=2, range=[low, high]), *moved) == pytest.approx(
            wanted, abs=1e-9
        )
    assert value(LOSSES["ms_ssim"].make(levels=2, range=[0, 1]), x, y) != pytest.approx(
        wanted, abs=1e-3
    )


def test_equal_images_cost_nothing_and_pull_nowhere() -> None:
    for kind in (torch.float32, torch.float64):
        x = photograph(2, 1, 180, 176).to(kind)
        x[1] = -1  # black, without any contrast
        cost, gradient = slope(LOSSES["ms_ssim"].make(), x, x)
        assert cost == pytest.approx(0, abs=1e-6)
        assert float(gradient.abs().max()) < 1e-6


def test_opposite_images_have_a_finite_cost_and_slope() -> None:
    x = (
        torch.rand(1, 1, 44, 44, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        * 2
        - 1
    )
    cost, gradient = slope(LOSSES["ms_ssim"].make(levels=3), x, -x)
    assert 0.9 < cost <= 1
    assert torch.isfinite(gradient).all()


@given(seed=st.integers(0, 99), blur=st.floats(0.3, 3))
@settings(deadline=None, max_examples=10)
def test_blur_costs_more_the_stronger_it_is(seed: int, blur: float) -> None:
    x = photograph(1, 1, 48, 48, seed=seed)
    softer = [
        torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, s, s))) for s in (blur, 1.5 * blur)
    ]
    costs = [value(LOSSES["ms_ssim"].make(levels=2), s, x) for s in softer]
    assert 0 < costs[0] < costs[1] <= 1


# ------------------------------------------------------------------ MS-SSIM: gradient, ignored voxe


@pytest.mark.parametrize(
    ("levels", "shape"), [(1, (1, 2, 12, 13)), (2, (1, 1, 24, 25)), (1, (1, 1, 11, 12, 11))]
)
def test_ms_ssim_gradient_is_that_of_finite_differences(
    levels: int, shape: tuple[int, ...]
) -> None:
    x, y = photograph(*shape), photograph(*shape) * 0.8 + 0.1 * photograph(*shape, seed=1)
    valid = ones(x)
    valid[..., 0, 0] = 0
    loss = LOSSES["ms_ssim"].make(levels=levels)
    assert slope(loss, x, y, valid)[1].any()
    assert torch.autograd.gradcheck(lambda z: loss(z, y, valid), x.requires_grad_(), fast_mode=True)


def test_windows_with_ignored_voxels_do_not_count() -> None:
    """Ignoring a margin of whole blocks is cutting it off, whatever stands in it."""
    x, y = photograph(2, 3, 40, 48), photograph(2, 3, 40, 48, seed=1)
    valid = ones(x)
    valid[..., 32:] = 0
    loss = LOSSES["ms_ssim"].make(levels=2)
    wanted, inner = slope(loss, x[..., :32], y[..., :32])
    for fill in (0.0, 1e30, math.nan):
        cost, gradient = slope(loss, x.masked_fill(valid == 0, fill), y, valid)
        assert cost == pytest.approx(wanted, abs=1e-12)
        torch.testing.assert_close(gradient[..., :32], inner)
        assert not gradient[..., 32:].any()


def test_samples_without_a_window_do_not_dilute_the_rest() -> None:
    x, y, valid = (
        photograph(2, 1, 24, 24),
        photograph(2, 1, 24, 24, seed=1),
        torch.ones(2, 1, 24, 24),
    )
    loss = LOSSES["ms_ssim"].make(levels=2)
    valid[1, :, 10:14, 10:14] = 0  # no window of 11 fits beside it on the coarse scale
    assert float(loss(x, y, valid)) == pytest.approx(
        float(loss(x[:1], y[:1], valid[:1])), abs=1e-12
    )
    cost, gradient = slope(loss, x, y, valid * 0)
    assert cost == 0
    assert not gradient.any()


def test_ms_ssim_is_computed_in_single_precision() -> None:
    x, y = (photograph(1, 1, 48, 48, seed=s).bfloat16() for s in (0, 1))
    loss = LOSSES["ms_ssim"].make(levels=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(x, y, ones(x))
    assert result.dtype == torch.float32
    assert float(result) == pytest.approx(value(loss, x.double(), y.double()), abs=1e-4)


MIX = [
    LossTerm(name="ms_ssim", target="target", weight=0.84, options={"levels": 2}),
    LossTerm(name="charbonnier", target="target", weight=0.16),
]
PERCEPTUAL = [
    LossTerm(
        name="perceptual",
        target="target",
        options={"weights": "random", "layers": ["relu1_2", "relu2_2"]},
    )
]


@pytest.mark.parametrize("terms", [MIX, PERCEPTUAL], ids=["mix", "perceptual"])
def test_drives_an_image_towards_its_target(terms: list[LossTerm]) -> None:
    total = WeightedSum(terms, {"target": "image"})
    y = photograph(1, 3, 24, 24).float()
    x = (
        torch.zeros_like(y) + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.03)
    before = float((x - y).square().mean().detach())
    for _ in range(60):
        optimizer.zero_grad()
        total({"main": x}, {"target": y})[0].backward()
        optimizer.step()
    assert float((x - y).square().mean().detach()) < 0.2 * before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": 0}, ["levels", "0", "1 to 5"]),
        ({"levels": 6}, ["6"]),
        ({"levels": True}, ["True"]),
        ({"range": [1, 1]}, ["[1, 1]", "rising"]),
        ({"range": [0, 1, 2]}, ["[0, 1, 2]"]),
        ({"range": 255}, ["255", "[-1, 1]"]),
        ({"range": [0, math.inf]}, ["inf"]),
        ({"peak": 1}, ["peak", "range"]),
    ],
)
def test_wrong_options_of_ms_ssim_are_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        WeightedSum(
            [LossTerm(name="ms_ssim", target="target", options=options)], {"target": "image"}
        )
    assert [word for word in words if word not in str(caught.value)] == []


def test_images_too_small_for_ms_ssim_name_what_fits() -> None:
    x = torch.zeros(1, 1, 128, 300)
    with pytest.raises(ConfigError, match=r"\(128, 300\); 5 levels need at least 176.*levels: 4"):
        LOSSES["ms_ssim"].make()(x, x, ones(x))
    assert value(LOSSES["ms_ssim"].make(levels=4), x, x) == pytest.approx(0, abs=1e-6)
    with pytest.raises(
        ConfigError, match=r"1 levels need at least 11 along each side. Take larger"
    ):
        LOSSES["ms_ssim"].make(levels=1)(x[..., :10], x[..., :10], ones(x[..., :10]))
    for name, options in (("ms_ssim", {"levels": 1}), ("perceptual", {"weights": "random"})):
        with pytest.raises(ValueError, match="same shape"):
            LOSSES[name].make(**options)(x.expand(-1, 3, -1, -1), x, ones(x))


# ------------------------------------------------------------------ VGG16


def by_the_book(weights: dict[str, Tensor]) -> nn.Sequential:
    """The feature part of VGG16 as one chain, numbered as published."""
    layers: list[nn.Module] = []
    inside = 3
    for width in (
        64,
        64,
        "M",
        128,
        128,
        "M",
        256,
        256,
        256,
        "M",
        512,
        512,
        512,
        "M",
        512,
        512,
        512,
    ):
        if isinstance(width, int):
            layers += [nn.Conv2d(inside, width, 3, padding=1), nn.ReLU()]
            inside = width
        else:
            layers.append(nn.MaxPool2d(2, 2))
    chain = nn.Sequential(*layers)
    chain.load_state_dict(
        {name.removeprefix("features."): w for name, w in weights.items()}, strict=True
    )
    return chain


PLACES = {
    "relu1_1": 1,
    "relu1_2": 3,
    "relu2_2": 8,
    "relu3_1": 11,
    "relu3_3": 15,
    "relu4_3": 22,
    "relu5_1": 25,
    "relu5_3": 29,
}


def test_features_are_those_of_the_published_chain() -> None:
    weights = vgg.random_weights("relu5_3")
    chain, x = by_the_book(weights), torch.randn(1, 3, 35, 33)
    found = vgg.features(x, weights, list(PLACES))
    for layer, place in PLACES.items():
        torch.testing.assert_close(found[layer], chain[: place + 1](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("last", "count"),
    [("relu2_2", 260_160), ("relu3_3", 1_735_488), ("relu4_3", 7_635_264), ("relu5_3", 14_714_688)],
)
def test_weights_are_as_many_as_published(last: str, count: int) -> None:
    assert sum(math.prod(shape) for shape in vgg.shapes(last).values()) == count


def test_perceptual_value_by_the_book() -> None:
    chain = by_the_book(vgg.random_weights("relu5_3"))
    x, y = photograph(2, 3, 20, 24).float(), photograph(2, 3, 20, 24, seed=1).float()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    a, b = (((t + 1) / 2 - mean[:, None, None]) / std[:, None, None] for t in (x, y))
    wanted = 0.0
    for layer, weight in {"relu1_2": 1, "relu2_1": 0.5, "relu3_3": 2}.items():
        part = chain[: {"relu1_2": 3, "relu2_1": 6, "relu3_3": 15}[layer] + 1]
        wanted += weight * float((part(a) - part(b)).abs().mean().detach())
    # The weights of one seed do not depend on how many are drawn.
    loss = LOSSES["perceptual"].make(
        weights="random", layers={"relu1_2": 1, "relu2_1": 0.5, "relu3_3": 2}
    )
    assert value(loss, x, y) == pytest.approx(wanted, rel=1e-5)
    unit = LOSSES["perceptual"].make(
        weights="random", layers={"relu1_2": 1, "relu2_1": 0.5, "relu3_3": 2}, range=[0, 1]
    )
    assert value(unit, (x + 1) / 2, (y + 1) / 2) == pytest.approx(wanted, rel=1e-5)


def test_equal_images_look_equal_and_blurred_ones_ever_less_so() -> None:
    loss, x = LOSSES["perceptual"].make(weights="random"), photograph(1, 3, 32, 32).float()
    x = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    blurred = [torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, s, s))) for s in (0.5, 1, 2)]
    costs = [value(loss, b, x) for b in (x, *blurred)]
    assert costs[0] == 0
    assert costs == sorted(costs)
    assert len(set(costs)) == 4


def test_grey_images_are_seen_as_colour_images_without_colour() -> None:
    loss = LOSSES["perceptual"].make(weights="random", layers=["relu2_1"])
    x, y = photograph(2, 1, 16, 16).float(), photograph(2, 1, 16, 16, seed=1).float()
    assert value(loss, x, y) == pytest.approx(
        value(loss, x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)), rel=1e-6
    )


@pytest.mark.parametrize(
    "options", [{}, {"checkpoint": True}, {"size": 8}, {"size": 8, "reduce": "centre"}], ids=str
)
def test_perceptual_gradient_is_that_of_finite_differences(options: dict[str, Any]) -> None:
    loss = LOSSES["perceptual"].make(weights="random", layers=["relu1_2", "relu2_2"], **options)
    x, y = photograph(1, 3, 10, 12), photograph(1, 3, 10, 12, seed=1)
    valid = ones(x)
    valid[..., 3:5, 4] = 0
    assert slope(loss, x, y, valid)[1].any()
    assert torch.autograd.gradcheck(lambda z: loss(z, y, valid), x.requires_grad_(), fast_mode=True)


def test_checkpointing_changes_neither_value_nor_gradient_but_what_is_kept() -> None:
    x, y = photograph(1, 3, 32, 32).float(), photograph(1, 3, 32, 32, seed=1).float()
    plain, again = (
        LOSSES["perceptual"].make(weights="random", layers=["relu3_3"], checkpoint=c)
        for c in (False, True)
    )
    (cost, gradient), (cost_again, gradient_again) = slope(plain, x, y), slope(again, x, y)
    assert cost == cost_again
    torch.testing.assert_close(gradient, gradient_again)
    kept = []
    for loss in (plain, again):
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=saved: (s.append(t.numel()), t)[1], lambda t: t
        ):
            loss(x.clone().requires_grad_(), y, ones(x))
        kept.append(sum(saved))
    assert kept[1] < 0.5 * kept[0]


def test_size_looks_at_means_of_areas_or_at_the_middle() -> None:
    x, y = photograph(1, 3, 32, 16).float(), photograph(1, 3, 32, 16, seed=1).float()
    options = {"weights": "random", "layers": ["relu1_2"]}
    whole = LOSSES["perceptual"].make(**options)
    halves = [torch.nn.functional.avg_pool2d(t, 2) for t in (x, y)]
    assert value(LOSSES["perceptual"].make(**options, size=16), x, y) == pytest.approx(
        value(whole, *halves), rel=1e-5
    )
    middle = [t[..., 8:24, :].contiguous() for t in (x, y)]
    assert value(
        LOSSES["perceptual"].make(**options, size=16, reduce="centre"), x, y
    ) == pytest.approx(value(whole, *middle), rel=1e-5)
    assert value(LOSSES["perceptual"].make(**options, size=32), x, y) == value(whole, x, y)


def blemished(
    *corners: tuple[int, int], shape: tuple[int, int] = (40, 56), edge: int = 4
) -> Tensor:
    """Masks ``(B, 1, Y, X)`` with a square of 1 at each corner; none for a negative one."""
    mask = torch.zeros(len(corners), 1, *shape)
    for one, (y, x) in zip(mask, corners, strict=True):
        if y >= 0:
            one[:, y : y + edge, x : x + edge] = 1
    return mask


@given(y=st.integers(0, 36), x=st.integers(0, 52), size=st.integers(8, 32))
@settings(deadline=None, max_examples=30)
def test_the_window_lies_around_the_blemish(y: int, x: int, size: int) -> None:
    mask = blemished((y, x))
    ((top, left),) = perceptual_module.window_corners(mask, size, [(0, 0)])
    assert 0 <= top <= max(40 - size, 0)
    assert 0 <= left <= 56 - size
    assert mask[..., top : top + size, left : left + size].sum() == 16
    cell = max(1, size // 16)
    if size // 2 <= y < 36 - size // 2:
        assert abs(top + size / 2 - (y + 2)) <= cell + 1  # in its middle, not at its edge


def test_of_two_blemishes_the_window_takes_the_larger_and_of_none_the_middle() -> None:
    mask = blemished((2, 2), (-1, -1), (30, 45), (2, 2))
    mask[3, :, 26:38, 40:52] = 0.5  # soft, but much larger
    corners = perceptual_module.window_corners(mask, 16, [(12, 20)] * 4)
    assert corners[0] == (0, 0)
    assert corners[1] == (12, 20)
    assert corners[2] == pytest.approx((24, 39), abs=2)
    assert corners[3] == pytest.approx((24, 38), abs=2)
    assert corners == [
        perceptual_module.window_corners(mask[i : i + 1], 16, [(12, 20)])[0] for i in range(4)
    ]


def test_the_mask_says_where_each_sample_is_looked_at() -> None:
    x, y = photograph(2, 3, 40, 56).float(), photograph(2, 3, 40, 56, seed=1).float()
    mask = blemished((30, 45), (-1, -1))
    options = {"weights": "random", "layers": ["relu1_2"]}
    corners = perceptual_module.window_corners(mask, 16, [(12, 20)] * 2)
    cut = [
        torch.stack([t[i, :, a : a + 16, b : b + 16] for i, (a, b) in enumerate(corners)])
        for t in (x, y)
    ]
    wanted = value(LOSSES["perceptual"].make(**options), *cut)
    loss = LOSSES["perceptual"].make(**options, size=16, reduce="mask")
    assert float(loss(x, y, ones(x), mask)) == pytest.approx(wanted, rel=1e-5)
    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z, y, ones(x), mask), z)
    felt = gradient.abs().sum((0, 1)) > 0
    (top, left), (middle, across) = corners
    assert felt[top : top + 16, left : left + 16].any()
    assert felt.sum() <= 2 * 16 * 16
    assert not gradient[1, :, : middle - 1].any()
    assert not gradient[1, :, :, : across - 1].any()
    small = LOSSES["perceptual"].make(**options, size=64, reduce="mask")
    assert float(small(x, y, ones(x), mask)) == value(LOSSES["perceptual"].make(**options), x, y)
    with pytest.raises(ValueError, match="fourth argument"):
        loss(x, y, ones(x))


def test_the_weighted_sum_hands_the_mask_over() -> None:
    x, y, mask = (
        photograph(1, 3, 40, 56).float(),
        photograph(1, 3, 40, 56, seed=1).float(),
        blemished((30, 45)),
    )
    options = {"weights": "random", "layers": ["relu1_2"], "size": 16, "reduce": "mask"}
    term = LossTerm(name="perceptual", target="target", options=options)
    total, _ = WeightedSum([term], {"target": "image", "mask": "soft"})(
        {"main": x}, {"target": y, "mask": mask}
    )
    assert float(total) == float(LOSSES["perceptual"].make(**options)(x, y, ones(x), mask))
    with pytest.raises(ConfigError, match=r"reads the mask.*data\.change: \{\}"):
        WeightedSum([term], {"target": "image"})


@pytest.mark.parametrize("options", [{}, {"size": 12}], ids=str)
def test_ignored_voxels_are_not_seen(options: dict[str, Any]) -> None:
    loss = LOSSES["perceptual"].make(weights="random", layers=["relu1_2", "relu2_2"], **options)
    x, y = photograph(2, 3, 16, 16), photograph(2, 3, 16, 16, seed=1)
    valid = ones(x)
    valid[..., :5] = 0
    results = [
        slope(loss, x.masked_fill(valid == 0, fill), y.masked_fill(valid == 0, 7), valid)
        for fill in (0.0, 1e30, math.nan)
    ]
    assert results[0][0] > 0
    for cost, gradient in results:
        assert cost == results[0][0]
        assert torch.equal(gradient, results[0][1])
        assert not gradient[..., :5].any()
    cost, gradient = slope(loss, x, y, valid * 0)
    assert cost == 0
    assert not gradient.any()
    alone = float(loss(x[:1], y[:1], valid[:1]))
    valid[1] = 0
    assert float(loss(x, y, valid)) == pytest.approx(alone, rel=1e-9)


def test_perceptual_is_computed_in_single_precision_under_autocast() -> None:
    loss = LOSSES["perceptual"].make(weights="random", layers=["relu1_2"])
    x, y = photograph(1, 3, 16, 16).float(), photograph(1, 3, 16, 16, seed=1).float()
    plain = loss(x, y, ones(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss(x, y, ones(x))
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


def test_a_first_use_in_validation_does_not_spoil_training() -> None:
    loss, x = (
        LOSSES["perceptual"].make(weights="random", layers=["relu1_1"]),
        photograph(1, 3, 8, 8).float(),
    )
    with torch.inference_mode():
        loss(x, x * 0.5, ones(x))
    assert slope(loss, x, x * 0.5)[1].any()


def test_weights_follow_the_images_and_take_no_random_numbers() -> None:
    before = torch.get_rng_state()
    loss = LOSSES["perceptual"].make(weights="random", layers=["relu1_2"])
    x = photograph(1, 3, 8, 8)
    results = [loss(t, t * 0.5, ones(t)) for t in (x.float(), x, x.float())]
    assert [r.dtype for r in results] == [torch.float32, torch.float64, torch.float32]
    assert torch.equal(results[0], results[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["ms_ssim", "perceptual"])
def test_losses_of_both_devices_agree(name: str) -> None:
    loss = LOSSES[name].make(**({"levels": 2} if name == "ms_ssim" else {"weights": "random"}))
    x, y = photograph(1, 3, 32, 32), photograph(1, 3, 32, 32, seed=1)
    (cost, gradient), (cost_cuda, gradient_cuda) = (
        slope(loss, x, y),
        slope(loss, x.cuda(), y.cuda()),
    )
    assert cost_cuda == pytest.approx(cost, rel=1e-9)
    torch.testing.assert_close(gradient_cuda.cpu(), gradient)
    assert value(loss, x, y) == cost  # and back again


def test_vgg_is_fixed() -> None:
    assert not any(w.requires_grad for w in vgg.random_weights("relu3_3").values())
    x = photograph(1, 3, 8, 8).float().requires_grad_()
    y = photograph(1, 3, 8, 8, seed=1).float().requires_grad_()
    LOSSES["perceptual"].make(weights="random", layers=["relu1_2"])(x, y, ones(x)).backward()
    assert x.grad is not None
    assert x.grad.any()
    assert y.grad is None  # the target is a fact, also where it is computed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": []}, ["[]", "relu3_3"]),
        ({"layers": "relu3_3"}, ["'relu3_3'", "list"]),
        ({"layers": ["relu3_4"]}, ["relu3_4", "relu3_3"]),
        ({"layers": ["relu1_1", "relu1_1"]}, ["twice"]),
        ({"layers": {"relu1_1": -1}}, ["relu1_1", "-1"]),
        ({"weights": ""}, ["weights", "''"]),
        ({"weights": 3}, ["weights", "3"]),
        ({"weights": "random", "size": 2}, ["size", "2", "at least 4"]),
        ({"weights": "random", "size": 64.0}, ["64.0"]),
        ({"weights": "random", "reduce": "crop"}, ["crop", "area, centre, mask"]),
        ({"weights": "random", "reduce": "mask"}, ["reduce: mask", "size: 512"]),
        ({"weights": "random", "checkpoint": 1}, ["checkpoint", "1"]),
        ({"range": [1, 0]}, ["[1, 0]"]),
        ({"layer": "relu1_1"}, ["layer", "layers"]),
    ],
)
def test_wrong_options_of_perceptual_are_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        WeightedSum(
            [LossTerm(name="perceptual", target="target", options=options)],
            {"target": "image", "mask": "soft"},
        )
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 8, 8, 8), "not volumes"),
        ((1, 2, 8, 8), "2 channels"),
        ((1, 3, 3, 8), r"\(3, 8\).*at least 4"),
    ],
)
def test_what_vgg_cannot_look_at_is_refused(shape: tuple[int, ...], words: str) -> None:
    x = torch.zeros(shape)
    with pytest.raises(ConfigError, match=words):
        LOSSES["perceptual"].make(weights="random", size=8)(x, x, ones(x))


def test_torchvision_is_not_needed(monkeypatch: pytest.MonkeyPatch, published: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # any import of it now fails
    x = photograph(1, 3, 16, 16).float()
    assert value(LOSSES["perceptual"].make(weights=str(published)), x, x * 0.5) > 0


# ------------------------------------------------------------------ weights: found or refused


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the published one, in the old format of that time: deeper and further weights are
    there and must be left out.
    """
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    state = OrderedDict(vgg.random_weights("relu3_3")) | {
        "classifier.6.weight": torch.ones(3),
        "features.17.bias": torch.ones(512),
    }
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture
def published(pickled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same file, taken for the published one."""
    monkeypatch.setattr(vgg, "HASH", hashlib.sha256(pickled.read_bytes()).hexdigest()[:8])
    return pickled


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def offline(url: str, dst: str, hash_prefix: str | None = None) -> None:
        raise OSError(f"no route to {url}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return tmp_path / "torch" / "hub" / "checkpoints"


def same(have: dict[str, Tensor], last: str) -> bool:
    wanted = vgg.random_weights(last)
    return set(have) == set(wanted) and all(
        torch.equal(have[name], wanted[name]) for name in wanted
    )


def test_a_config_is_checked_without_reading_or_fetching_weights(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vgg, "load", lambda *_: pytest.fail("weights were loaded"))
    WeightedSum([LossTerm(name="perceptual", target="target")], {"target": "image"})
    assert not home.exists()


def test_without_weights_the_first_use_names_three_ways(home: Path) -> None:
    loss, x = LOSSES["perceptual"].make(), torch.zeros(1, 3, 8, 8)
    with pytest.raises(UserError, match=r"no route to https.*Three ways") as caught:
        loss(x, x, ones(x))
    text = str(caught.value)
    assert all(word in text for word in ("weights: FILE", "slim_vgg.py", str(home), vgg.URL))


def test_a_missing_path_is_found_before_training(tmp_path: Path) -> None:
    for name in ("none.safetensors", "none.pth"):
        with pytest.raises(UserError, match=rf"{name}: no such file.*slim_vgg"):
            LOSSES["perceptual"].make(weights=str(tmp_path / name))
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"weights.bin: must be a .safetensors"):
        LOSSES["perceptual"].make(weights=str(tmp_path / "weights.bin"))
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(UserError, match=r"torn.safetensors: damaged"):
        LOSSES["perceptual"].make(weights=str(tmp_path / "torn.safetensors"))


def test_a_download_is_made_once_and_kept_slim(
    home: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(url: str, dst: str, hash_prefix: str | None = None) -> None:
        asked.append((url, hash_prefix))
        Path(dst).write_bytes(published.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert same(vgg.load(None, "relu2_2"), "relu2_2")
    assert asked == [(vgg.URL, vgg.HASH)]
    (home / vgg.NAME).unlink()  # from now on only the slim file is there
    assert same(vgg.load(None, "relu3_3"), "relu3_3")
    assert len(asked) == 1
    assert [p.name for p in home.iterdir()] == [f"vgg16-{vgg.HASH}-relu3_3.safetensors"]


def test_a_download_with_the_wrong_hash_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(url: str, dst: str, hash_prefix: str | None = None) -> None:
        raise RuntimeError('invalid hash value (expected "397923af", got "0000")')

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(UserError, match="invalid hash value"):
        vgg.load(None, "relu1_1")


def test_a_foreign_file_in_the_cache_is_refused(home: Path) -> None:
    vgg.write_slim(vgg.slim_path("relu3_3"), vgg.random_weights("relu3_3"), "ab" * 32)
    with pytest.raises(UserError, match="made from another file"):
        vgg.load(None, "relu3_3")
    assert same(vgg.load(vgg.slim_path("relu3_3"), "relu3_3"), "relu3_3")  # by name it is meant


def test_a_slim_file_that_is_too_shallow_says_how_to_make_a_deeper_one(tmp_path: Path) -> None:
    vgg.write_slim(tmp_path / "slim.safetensors", vgg.random_weights("relu2_2"), "00")
    with pytest.raises(
        UserError, match=r"features.10.weight.*up to layer relu3_3.*--deepest relu3_3"
    ):
        LOSSES["perceptual"].make(weights=str(tmp_path / "slim.safetensors"))
    LOSSES["perceptual"].make(weights=str(tmp_path / "slim.safetensors"), layers=["relu2_2"])


def test_another_pickled_file_is_refused(pickled: Path) -> None:
    with pytest.raises(UserError, match=r"SHA-256.*397923af.*--accept-other"):
        vgg.load(pickled, "relu1_2")
    assert same(vgg.read_pickled(pickled, "relu1_2", accept_other=True)[0], "relu1_2")


class _Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"features.0.weight": _Harm(tmp_path / "harm")}, tmp_path / "evil.pth")
    (tmp_path / "noise.pth").write_bytes(b"no pickle at all")
    for name in ("evil.pth", "noise.pth"):
        with pytest.raises(UserError, match="not readable as weights"):
            vgg.read_pickled(tmp_path / name, "relu1_1", accept_other=True)
    assert not (tmp_path / "harm").exists()


# ------------------------------------------------------------------ data_prep/slim_vgg.py


def test_slimming_keeps_the_layers_and_the_hash(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "deep" / "slim.safetensors"
    assert slim_vgg.main([str(published), str(out)]) == 0
    assert "1,735,488 weights, 6.9 MB" in capsys.readouterr().out
    with safe_open(out, framework="pt") as file:
        header = file.metadata()
        assert set(file.keys()) == set(vgg.shapes("relu3_3"))
    assert header["sha256"] == hashlib.sha256(published.read_bytes()).hexdigest()
    assert json.loads(json.dumps(header))["source"] == vgg.NAME
    x, y = photograph(1, 3, 16, 16).float(), photograph(1, 3, 16, 16, seed=1).float()
    costs = {
        value(LOSSES["perceptual"].make(weights=w), x, y)
        for w in (str(out), str(published), "random")
    }
    assert len(costs) == 1


def test_slimming_into_the_cache_is_found_by_the_loss(published: Path, home: Path) -> None:
    assert slim_vgg.main([str(published), "--deepest", "relu2_2"]) == 0
    assert same(vgg.load(None, "relu3_3"), "relu3_3")


def test_another_file_needs_consent_and_a_name(
    pickled: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "slim.safetensors"
    assert slim_vgg.main([str(pickled), str(out)]) == 2
    assert "--accept-other" in capsys.readouterr().err
    assert slim_vgg.main([str(pickled), "--accept-other"]) == 2
    assert not out.exists()
    assert not home.exists()
    assert slim_vgg.main([str(pickled), str(out), "--accept_other", "--deepest", "relu1_2"]) == 0
    assert "warning" in capsys.readouterr().out
    assert same(vgg.load(out, "relu1_2"), "relu1_2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.pth", "out.safetensors"], "no such file"),
        (["none.pth", "out.pth"], "ends in .safetensors"),
        (["none.pth", "out.safetensors", "--deepest", "relu9"], "relu9"),
    ],
)
def test_wrong_arguments_of_slimming_exit_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    assert slim_vgg.main(arguments) == 2
    assert words in capsys.readouterr().err
