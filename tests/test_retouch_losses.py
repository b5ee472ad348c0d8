"""Losses of retouching: values by hand inside and outside a mask, edges and detail by geometry,
soft targets, heads of half the size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from pipeline import config
from pipeline.config import ConfigError
from pipeline.losses import LOSSES, WeightedSum, check, for_target
from pipeline.records import LossTerm

MASKED = ("masked_l1", "masked_sobel", "masked_laplacian")
EVERY = pytest.mark.parametrize("name", [*MASKED, "total_variation"])
EVERY_MASKED = pytest.mark.parametrize("name", MASKED)
KINDS = {"target": "image", "mask": "soft"}


def ones(x: Tensor) -> Tensor:
    return torch.ones_like(x[:, :1], dtype=torch.float32)


def scene(channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random float64 output and target ``(2, C, 6, 7)``, a mask that ignores a tenth, and a soft
    mask.
    """
    make = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(2, channels, 6, 7, generator=make, dtype=torch.float64) for _ in range(2))
    return (
        x,
        y,
        (torch.rand(2, 1, 6, 7, generator=make) > 0.1).float(),
        torch.rand(2, 1, 6, 7, generator=make),
    )


def run(name: str, x: Tensor, y: Tensor, valid: Tensor, mask: Tensor) -> Tensor:
    return LOSSES[name].make()(x, y, valid, *([mask] if name in MASKED else []))


def masked(name: str, x: Tensor, y: Tensor, mask: Tensor) -> float:
    return float(run(name, x, y, ones(x), mask))


# ---------------------------------------------------------------- values by hand


SPOT = {"masked_l1": 0.5, "masked_sobel": 0.5 * (8 + 8) / 8, "masked_laplacian": 0.5 * (4 + 4)}
"""Sum of what one pixel that is 0.5 off makes: the absolute sums of the kernels."""


@EVERY_MASKED
@pytest.mark.parametrize("channels", [1, 3])
def test_one_changed_pixel_inside_and_outside_the_mask(name: str, channels: int) -> None:
    y = torch.full((1, channels, 9, 9), 0.25)
    x = y.clone()
    x[:, 0, 4, 4] += 0.5
    everywhere, there, elsewhere = (torch.zeros(1, 1, 9, 9) for _ in range(3))
    everywhere[:], there[..., 3:6, 3:6], elsewhere[..., 7:, :] = 1, 1, 1
    total = SPOT[name]
    assert masked(name, x, y, everywhere) == pytest.approx(total / 81 / channels)
    assert masked(name, x, y, there) == pytest.approx(total / 9 / channels)
    assert masked(name, x, y, elsewhere) == 0
    assert masked(name, x, y, there / 2) == pytest.approx(
        total / 9 / channels
    )  # a mean: half a mask weighs as much


@EVERY_MASKED
def test_the_divisor_is_the_sum_of_the_mask_over_the_batch_but_at_least_one(name: str) -> None:
    x, y, _, mask = scene()
    unit = torch.zeros(2, 1, 6, 7)
    unit[0, 0, 2, 3] = 1
    assert masked(name, x, y, unit / 4) == pytest.approx(masked(name, x, y, unit) / 4)
    parts = [masked(name, x[i : i + 1], y[i : i + 1], mask[i : i + 1]) for i in range(2)]
    weights = mask.sum((1, 2, 3)).tolist()
    assert masked(name, x, y, mask) == pytest.approx(np.average(parts, weights=weights))


@EVERY_MASKED
@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_of_label_masks_every_one_above_zero_is_one(name: str, kind: torch.dtype) -> None:
    x, y, _, _ = scene()
    labels = torch.randint(0, 3, (2, 1, 6, 7), generator=torch.Generator().manual_seed(1))
    wanted = masked(name, x, y, (labels > 0).float())
    assert masked(name, x, y, labels.to(kind)) == wanted
    assert masked(name, x, y, (labels * 127).to(kind)) == wanted


@EVERY_MASKED
def test_an_empty_mask_costs_nothing_and_pulls_nowhere(name: str) -> None:
    x, y, valid, mask = scene()
    value = run(name, x.requires_grad_(), y, valid, mask * 0)
    (gradient,) = torch.autograd.grad(value, x)
    assert value == 0
    assert not gradient.any()


@EVERY_MASKED
def test_equal_images_cost_nothing(name: str) -> None:
    x, _, _, mask = scene()
    assert masked(name, x, x.clone(), mask) == 0


# ---------------------------------------------------------------- edges and detail


def ramp(slope_y: float, slope_x: float, bend: float = 0.0) -> Tensor:
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    return (slope_y * y + slope_x * x + bend * x * x)[None, None]


def inner(image: Tensor) -> Tensor:
    mask = torch.zeros_like(image)
    mask[..., 1:-1, 1:-1] = 1
    return mask


@given(a=st.floats(-2, 2), b=st.floats(-2, 2), lift=st.floats(-1, 1))
@settings(deadline=None, max_examples=20)
def test_sobel_of_a_ramp_is_its_slope_and_laplacian_its_bend(
    a: float, b: float, lift: float
) -> None:
    x = ramp(a, b) + lift
    zero = torch.zeros_like(x)
    assert masked("masked_sobel", x, zero, inner(x)) == pytest.approx(abs(a) + abs(b), abs=1e-5)
    assert masked("masked_laplacian", x, zero, inner(x)) == pytest.approx(0, abs=1e-5)
    assert masked("masked_laplacian", ramp(0, b, a), zero, inner(x)) == pytest.approx(
        abs(2 * a), abs=1e-4
    )


@pytest.mark.parametrize("name", ["masked_sobel", "masked_laplacian"])
def test_a_constant_has_no_edge_not_even_at_the_border(name: str) -> None:
    x = torch.full((1, 3, 5, 6), 0.7)
    assert masked(name, x, torch.zeros_like(x), ones(x)) == 0
    assert masked(name, x[..., :1, :1], torch.zeros(1, 3, 1, 1), ones(x)[..., :1, :1]) == 0


def test_an_edge_in_the_wrong_direction_is_an_error() -> None:
    """Both have the same length of gradient everywhere."""
    x, y = ramp(1, 0), ramp(-1, 0)
    assert masked("masked_sobel", x, y, inner(x)) == pytest.approx(2)


def test_filters_are_those_of_scipy() -> None:
    x, y, _, mask = scene()
    d, m = (x - y).numpy(), mask.double().numpy()
    each = [
        [ndimage.sobel(plane, axis, mode="nearest") / 8 for axis in (0, 1)]
        for plane in d.reshape(-1, 6, 7)
    ]
    strength = np.abs(np.array(each)).sum(1).reshape(d.shape)
    assert masked("masked_sobel", x, y, mask) == pytest.approx(
        (strength * m).sum() / m.sum() / 3, rel=1e-9
    )
    detail = np.abs(
        [ndimage.laplace(plane, mode="nearest") for plane in d.reshape(-1, 6, 7)]
    ).reshape(d.shape)
    assert masked("masked_laplacian", x, y, mask) == pytest.approx(
        (detail * m).sum() / m.sum() / 3, rel=1e-9
    )


def test_only_l1_reads_volumes() -> None:
    x = torch.rand(1, 1, 4, 5, 6)
    assert masked("masked_l1", x, x * 0, ones(x)) == pytest.approx(float(x.mean()))
    for name in ("masked_sobel", "masked_laplacian"):
        with pytest.raises(ConfigError, match=rf"{name}.*not volumes"):
            masked(name, x, x, ones(x))
    with pytest.raises(ValueError, match="same shape"):
        masked("masked_l1", x, x.expand(-1, 3, -1, -1, -1), ones(x))
    with pytest.raises(ValueError, match="share batch and space"):
        masked("masked_l1", x, x, ones(x)[..., :3])


# ---------------------------------------------------------------- total variation


@pytest.mark.parametrize("space", [(7,), (5, 6), (3, 4, 5)])
def test_total_variation_of_a_ramp_is_the_sum_of_its_slopes(space: tuple[int, ...]) -> None:
    slopes = (0.5, -2.0, 0.25)[: len(space)]
    grids = torch.meshgrid(*[torch.arange(float(n)) for n in space], indexing="ij")
    x = sum((s * g for s, g in zip(slopes, grids, strict=True)), torch.zeros(space)).expand(
        2, 3, *space
    )
    assert float(LOSSES["total_variation"].make()(x, x * 7, ones(x))) == pytest.approx(
        sum(map(abs, slopes))
    )
    assert float(LOSSES["total_variation"].make()(x * 0 + 0.3, x, ones(x))) == 0


def test_total_variation_of_a_single_row_has_no_neighbours_across() -> None:
    x = torch.tensor([[[[0.0, 1.0, 3.0, 3.0]]]])
    assert float(LOSSES["total_variation"].make()(x, x, ones(x))) == pytest.approx(1)


# ---------------------------------------------------------------- gradient, invalid pixels, precisi


@EVERY
@pytest.mark.parametrize("channels", [1, 3])
def test_gradient_is_that_of_finite_differences(name: str, channels: int) -> None:
    x, y, valid, mask = scene(channels)
    assert torch.autograd.gradcheck(lambda z: run(name, z, y, valid, mask), x.requires_grad_())


@EVERY
def test_invalid_pixels_reach_neither_value_nor_gradient(name: str) -> None:
    x, y, valid, mask = scene()
    out, results = valid == 0, []
    for fill, other in ((0.0, 0.5), (1e30, 1.0), (math.nan, math.nan), (-math.inf, 0.0)):
        z = x.masked_fill(out, fill).requires_grad_()
        value = run(name, z, y.masked_fill(out, other), valid, mask.masked_fill(out, min(other, 1)))
        results.append((value.detach(), torch.autograd.grad(value, z)[0]))
    assert results[0][1].any()
    for value, gradient in results:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])
        assert not gradient[out.expand_as(gradient)].any()


@pytest.mark.parametrize("name", ["masked_sobel", "masked_laplacian", "total_variation"])
def test_an_invalid_pixel_makes_no_edge(name: str) -> None:
    """Images that differ by a constant have no edge between them; a hole in both must not become
    one.
    """
    x = torch.full((1, 1, 8, 8), 0.9)
    valid = ones(x)
    valid[..., 4, 4] = 0
    assert run(name, x, x * 0, valid, ones(x)) == 0
    assert run(name, x, x * 0, valid * 0, ones(x)) == 0


def test_windows_with_an_invalid_pixel_leave_the_divisor_too() -> None:
    x, zero = ramp(0, 1), torch.zeros(1, 1, 8, 9)
    valid = ones(x)
    valid[..., 4, 4] = 0
    assert float(run("masked_sobel", x, zero, valid, inner(x))) == pytest.approx(1)


@EVERY
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_inputs_are_summed_in_single_precision(name: str, kind: torch.dtype) -> None:
    """90,000 differences near 4 overflow a float16 sum (65,504)."""
    x = (4 * torch.rand(1, 1, 300, 300, generator=torch.Generator().manual_seed(0))).to(kind)
    y, mask = torch.zeros_like(x), ones(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = run(name, x, y, ones(x), mask)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(run(name, x.double(), y, ones(x), mask)), rel=1e-5)


# ---------------------------------------------------------------- soft targets


SOFT_VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("dice", {}),
    ("dice", {"batch": True, "smooth": 1.0}),
    ("tversky", {"alpha": 0.2, "beta": 0.9}),
    ("ce", {}),
    ("ce", {"positive_weight": 3.0}),
]
EVERY_SOFT = pytest.mark.parametrize(
    ("name", "options"), SOFT_VARIANTS, ids=[f"{n}{i}" for i, (n, _) in enumerate(SOFT_VARIANTS)]
)


def blob(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random float64 logits and soft target ``(2, 1, 5, 6)``, and which voxels count."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 1, 5, 6, generator=make, dtype=torch.float64)
    return (
        x,
        torch.rand(2, 1, 5, 6, generator=make, dtype=torch.float64),
        (torch.rand(2, 1, 5, 6, generator=make) > 0.2).float(),
    )


def test_every_soft_loss_is_exercised() -> None:
    assert {name for name, _ in SOFT_VARIANTS} == set(for_target("soft"))


@EVERY_SOFT
def test_soft_targets_of_zero_and_one_cost_what_labels_do(
    name: str, options: dict[str, Any]
) -> None:
    x, t, valid = blob()
    labels, loss = (t > 0.5).long(), LOSSES[name].make(**options)
    assert float(loss(x, labels.double(), valid)) == pytest.approx(
        float(loss(x, labels, valid)), abs=1e-12
    )


@EVERY_SOFT
@pytest.mark.parametrize("seed", range(3))
def test_the_best_answer_to_a_soft_target_is_the_target(
    name: str, options: dict[str, Any], seed: int
) -> None:
    x, t, valid = blob(seed)
    t = t.clamp(0.02, 0.98)
    loss, best = LOSSES[name].make(**options), t.logit()
    least = float(loss(best, t, valid))
    if name != "ce":
        assert least == pytest.approx(0, abs=1e-12)
    for step in (1e-3, 0.1, 3.0):
        assert float(loss(best + step * x, t, valid)) > least


@EVERY_SOFT
def test_soft_gradient_is_that_of_finite_differences(name: str, options: dict[str, Any]) -> None:
    x, t, valid = blob()
    assert torch.autograd.gradcheck(
        lambda z: LOSSES[name].make(**options)(z, t, valid), x.requires_grad_()
    )


@EVERY_SOFT
def test_invalid_voxels_of_a_soft_target_are_not_felt(name: str, options: dict[str, Any]) -> None:
    x, t, valid = blob()
    out, results = valid == 0, []
    for fill, other in ((0.0, 0.0), (1e30, 1.0), (math.nan, math.nan)):
        z = x.masked_fill(out, fill).requires_grad_()
        value = LOSSES[name].make(**options)(z, t.masked_fill(out, other), valid)
        results.append((value.detach(), torch.autograd.grad(value, z)[0]))
    assert all(torch.equal(v, results[0][0]) and torch.equal(g, results[0][1]) for v, g in results)
    assert not results[0][1][out].any()


def test_soft_values_by_hand() -> None:
    x, t = (
        torch.tensor([[[[0.8, 0.4]]]]).logit(),
        torch.tensor([[[[0.5, 1.0]]]]),
    )  # TP 0.9, FP 0.3, FN 0.6
    loss = {
        name: float(LOSSES[name].make(**({} if name == "ce" else {"smooth": 1e-9}))(x, t, ones(x)))
        for name in for_target("soft")
    }
    assert loss["dice"] == pytest.approx(1 - 1.8 / 2.7)
    assert loss["tversky"] == pytest.approx(1 - 0.9 / (0.9 + 0.3 * 0.3 + 0.7 * 0.6))
    assert loss["ce"] == pytest.approx(
        -(0.5 * math.log(0.8) + 0.5 * math.log(0.2) + math.log(0.4)) / 2
    )
    weighted = float(LOSSES["ce"].make(positive_weight=3)(x, t, ones(x)))
    assert weighted == pytest.approx(
        -(2 * 0.5 * math.log(0.8) + 2 * 0.5 * math.log(0.2) + 3 * math.log(0.4)) / 2
    )


@pytest.mark.parametrize("batch", [False, True])
def test_dice_of_two_empty_masks_is_zero(batch: bool) -> None:
    x, t = torch.full((2, 1, 8, 8), -50.0), torch.zeros(2, 1, 8, 8)
    assert float(LOSSES["dice"].make(batch=batch)(x, t, ones(x))) == pytest.approx(0, abs=1e-6)
    t[0, :, :4] = 0.6
    x[0, :, :4] = math.log(0.6 / 0.4)
    assert float(LOSSES["dice"].make(batch=batch)(x, t, ones(x))) == pytest.approx(0, abs=1e-6)


def test_a_small_mask_does_not_drown_in_a_large_image() -> None:
    """In float32, TP as a difference of sums over the image would be off by a few per cent."""
    x = 0.5 * torch.randn(1, 1, 1024, 1024, generator=torch.Generator().manual_seed(0)) - 4
    t = torch.zeros_like(x)
    t[..., 500:510, 500:510] = 0.7
    loss = LOSSES["dice"].make()
    assert 1 - float(loss(x, t, ones(x))) == pytest.approx(
        1 - float(loss(x.double(), t.double(), ones(x))), rel=1e-4
    )


@EVERY_SOFT
def test_a_soft_target_needs_one_channel(name: str, options: dict[str, Any]) -> None:
    t = torch.rand(1, 1, 4, 4)
    for x, y in ((t.expand(-1, 2, -1, -1), t), (t.expand(-1, 2, -1, -1), t.expand(-1, 2, -1, -1))):
        with pytest.raises(ValueError, match=r"soft target.*one channel each.*need labels"):
            LOSSES[name].make(**options)(x, y, ones(x))


# ---------------------------------------------------------------- weighted sum


def terms(*specs: dict[str, Any]) -> list[LossTerm]:
    return [LossTerm(**spec) for spec in specs]


DICE = terms({"name": "dice", "head": "mask", "target": "mask"})


@pytest.mark.parametrize("space", [(6, 8), (4, 6, 2)])
def test_a_soft_target_comes_down_to_a_head_of_half_the_size(space: tuple[int, ...]) -> None:
    t, half = torch.rand(2, 1, *space), tuple(n // 2 for n in space)
    x = torch.randn(2, 1, *half)
    pool = functional.avg_pool2d if len(space) == 2 else functional.avg_pool3d
    for name in for_target("soft"):
        total, _ = WeightedSum(terms({"name": name, "head": "mask", "target": "mask"}), KINDS)(
            {"mask": x}, {"mask": t}
        )
        assert float(total) == float(LOSSES[name].make()(x, pool(t, 2), ones(x)))
    full, _ = WeightedSum(DICE, KINDS)({"mask": t.logit()}, {"mask": t})
    assert float(full) == pytest.approx(0, abs=1e-5)


def test_a_last_row_that_is_left_over_is_a_smaller_block() -> None:
    t = torch.zeros(1, 1, 5, 3)
    t[..., 4, :], t[..., :2, 2] = 0.5, 1.0
    wanted = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.5, 0.5]])[None, None]
    ce = terms({"name": "ce", "head": "mask", "target": "mask"})
    x = torch.randn(1, 1, 3, 2, generator=torch.Generator().manual_seed(0))
    assert float(WeightedSum(ce, KINDS)({"mask": x}, {"mask": t})[0]) == pytest.approx(
        float(LOSSES["ce"].make()(x, wanted, ones(x)))
    )


def test_heads_of_two_sizes_read_one_mask() -> None:
    t = torch.rand(1, 1, 8, 8)
    small, large = functional.avg_pool2d(t, 4).logit(), t.logit()
    both = WeightedSum(
        terms(
            {"name": "dice", "head": "a", "target": "mask"},
            {"name": "dice", "head": "b", "target": "mask"},
        ),
        KINDS,
    )
    total, parts = both({"a": small, "b": large}, {"mask": t})
    assert len(parts) == 2
    assert float(total) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (7, 7), (4, 5)])
def test_other_sizes_stay_errors(size: tuple[int, int]) -> None:
    t = torch.rand(1, 1, 9, 9)
    with pytest.raises(ValueError, match="share batch and space"):
        WeightedSum(DICE, KINDS)({"mask": torch.zeros(1, 1, *size)}, {"mask": t})


def test_the_size_of_labels_and_images_is_not_changed() -> None:
    kinds = {"label": "labels", "target": "image"}
    for spec, y in (
        ({"name": "dice"}, torch.ones(1, 1, 8, 8).long()),
        ({"name": "l1", "target": "target"}, torch.ones(1, 1, 8, 8)),
    ):
        with pytest.raises(ValueError, match="share batch and space"):
            WeightedSum(terms(spec), kinds)(
                {"main": torch.zeros(1, 1, 4, 4)}, {"label": y, "target": y}
            )


def test_a_mask_of_labels_is_compared_with_a_coarser_head_by_its_means() -> None:
    drawn = torch.zeros(1, 1, 7, 8, dtype=torch.int64)
    drawn[..., 2:5, 3:6] = 1
    logits = torch.randn(1, 1, 4, 4)
    means = torch.nn.functional.avg_pool2d(drawn.float(), 2, ceil_mode=True)
    spec = {"name": "dice", "head": "mask", "target": "mask"}
    value, _ = WeightedSum(terms(spec), {"mask": "labels"})({"mask": logits}, {"mask": drawn})
    wanted, _ = WeightedSum(terms(spec), {"mask": "soft"})({"mask": logits}, {"mask": means})
    assert float(value) == pytest.approx(float(wanted))


@EVERY_MASKED
def test_masked_terms_read_the_mask_of_the_batch(name: str) -> None:
    x, y, _, mask = scene()
    total = WeightedSum(terms({"name": name, "target": "target", "weight": 2.0}), KINDS)
    value, parts = total({"main": x}, {"target": y, "mask": mask})
    assert list(parts) == [name]
    assert float(value) == pytest.approx(2 * masked(name, x, y, mask))
    with pytest.raises(KeyError, match=f"'{name}' reads map 'mask'"):
        total({"main": x}, {"target": y})


def test_ignored_voxels_of_a_mask_of_labels_are_no_mask() -> None:
    x, y, _, _ = scene(1)
    labels = torch.randint(0, 2, (2, 1, 6, 7), generator=torch.Generator().manual_seed(0))
    marked = labels.clone()
    marked[..., :3, :] = 255
    total = WeightedSum(
        terms({"name": "masked_l1", "target": "target"}),
        {"target": "image", "mask": "labels"},
        ignore_label=255,
    )
    value, _ = total({"main": x}, {"target": y, "mask": marked.to(torch.uint8)})
    labels[..., :3, :] = 0
    assert float(value) == masked("masked_l1", x, y, labels)


def test_a_mask_that_is_not_there_is_found_before_training() -> None:
    for name in MASKED:
        spec = terms({"name": name, "target": "target"})
        check(spec, ("main",), KINDS)
        check(spec, ("main",), {"target": "image", "mask": "labels"})
        with pytest.raises(
            ConfigError,
            match=(
                rf"losses.0: '{name}' reads the mask, .* Set data\.change: \{{\}}"
                r" .*data\.targets\.$"
            ),
        ):
            check(spec, ("main",), {"target": "image"})


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(for_target("soft"))))
def test_a_soft_mask_is_read_by_few(name: str) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            rf"'{name}' cannot read target 'mask', which holds a soft mask\. Losses for it: ce,"
            r" dice, tversky"
        ),
    ):
        check(terms({"name": name, "target": "mask"}), ("main",), KINDS)


def test_the_new_terms_are_losses_of_images() -> None:
    assert {*MASKED, "total_variation"} <= set(for_target("image")) - set(for_target("labels"))


YAML = """
name: retouch
task: image
data:
  layout: folders
  folders: {image: src, target: dst}
  dims: 2
  change: {}
  patch: {size: [8, 8]}
network: {name: unet}
losses:
  - {name: masked_l1, target: target, weight: 1.3}
  - {name: masked_sobel, target: target}
  - {name: masked_laplacian, target: target, weight: 0.7}
  - name: perceptual
    target: target
    weight: 0.5
    options: {weights: random, range: [0, 1], size: 8, reduce: mask, checkpoint: true}
  - {name: dice, head: mask, target: mask}
  - {name: total_variation, head: blend, target: target, weight: 0.01}
"""


def test_every_term_is_trained_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "retouch.yaml").write_text(YAML)
    settings = config.load(tmp_path / "retouch.yaml")
    check(settings.losses, ("main", "mask", "blend"), settings.kinds)
    total = WeightedSum(settings.losses, settings.kinds, settings.data.ignore_label)
    make = torch.Generator().manual_seed(0)
    heads = {
        n: torch.rand(2, c, s, s, generator=make).requires_grad_()
        for n, c, s in (("main", 3, 15), ("mask", 1, 8), ("blend", 3, 15))
    }
    batch = {
        "target": torch.rand(2, 3, 15, 15, generator=make),
        "mask": torch.rand(2, 1, 15, 15, generator=make),
    }
    value, parts = total(heads, batch)
    assert list(parts) == [
        "masked_l1",
        "masked_sobel",
        "masked_laplacian",
        "perceptual",
        "dice@mask",
        "total_variation@blend",
    ]
    assert value.item() == pytest.approx(
        sum(term.weight * float(parts[key]) for key, term in total.terms.items()), rel=1e-5
    )
    value.backward()
    assert all(head.grad is not None and head.grad.any() for head in heads.values())
