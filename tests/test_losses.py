"""Losses: hand-made values, gradients against finite differences, ignored voxels that cannot be
felt, sums that do not overflow.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses.dice import DiceLoss
from monai.losses.focal_loss import FocalLoss
from monai.losses.tversky import TverskyLoss
from torch import Tensor
from torch.nn import functional

from pipeline.config import ConfigError
from pipeline.losses import LOSSES, LossEntry, WeightedSum, check, for_target
from pipeline.losses.masked import masked
from pipeline.records import LossTerm

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("dice", {}),
    ("dice", {"batch": True, "background": True, "smooth": 1.0}),
    ("tversky", {"alpha": 0.2, "beta": 0.9}),
    ("ce", {"positive_weight": 3.0}),
    ("focal", {}),
    ("focal", {"gamma": 0, "alpha": 0.25}),
    ("variance", {}),
    ("l1", {}),
    ("mse", {}),
    ("charbonnier", {}),
]
BY_MAP_OR_SHAPE = {
    "cldice",
    "skeleton_recall",
    "surface_recall",
    "boundary",
    "connectivity",
    "betti_matching",
    "ms_ssim",
    "perceptual",
}
BY_MAP_OR_SHAPE |= {"masked_l1", "masked_sobel", "masked_laplacian", "total_variation"}
"""Tested in files of their own: they read maps, or look at shapes and windows that small random
fields do not have.
"""
VOXELWISE = [name for name in for_target("labels") if name not in BY_MAP_OR_SHAPE]
EVERY = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=[f"{n}{i}" for i, (n, _) in enumerate(VARIANTS)]
)
SHAPES = pytest.mark.parametrize("space", [(4, 5), (3, 4, 2)], ids=["2D", "3D"])
CHANNELS = pytest.mark.parametrize("channels", [1, 3])


def scene(
    name: str, channels: int, space: tuple[int, ...], seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Random float64 logits, a target of the loss's kind, and a mask that ignores about a third;
    both classes stay valid.
    """
    make = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, channels, *space, generator=make, dtype=torch.float64)
    valid = (torch.rand(2, 1, *space, generator=make) > 0.3).float()
    if "image" in LOSSES[name].targets:
        return logits, torch.randn(2, channels, *space, generator=make, dtype=torch.float64), valid
    target = torch.randint(0, max(channels, 2), (2, 1, *space), generator=make)
    corner = (slice(None), slice(None), *[0] * (len(space) - 1))
    valid[corner], target[corner] = 1, torch.arange(space[-1]) % 2
    return logits, target, valid


def binary(rows: list[list[float]]) -> Tensor:
    """Probabilities of a 2D picture as logits ``(1, 1, H, W)``."""
    return torch.tensor(rows)[None, None].logit()


def labels(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows)[None, None]


def ones(x: Tensor) -> Tensor:
    return torch.ones_like(x[:, :1], dtype=torch.float32)


def test_every_loss_is_exercised() -> None:
    assert {name for name, _ in VARIANTS} == set(LOSSES) - BY_MAP_OR_SHAPE


# ---------------------------------------------------------------- values by hand


def by_hand(name: str, x: Tensor, target: Tensor, **options: Any) -> float:
    return float(LOSSES[name].make(**options)(x, target, ones(x)))


PICTURE = [[0.8, 0.6], [0.3, 0.1]]
TRUTH = [[1, 1], [1, 0]]  # TP = 1.7, FP = 0.1, FN = 1.3


@pytest.mark.parametrize("depth", [0, 2], ids=["2D", "3D"])
@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("dice", {"smooth": 1e-9}, 1 - 3.4 / 4.8),
        ("dice", {"smooth": 0.2, "batch": True}, None),
        ("tversky", {"smooth": 1e-9, "alpha": 0.3, "beta": 0.7}, 1 - 1.7 / (1.7 + 0.03 + 0.91)),
        ("tversky", {"smooth": 1e-9, "alpha": 1.0, "beta": 0.0}, 1 - 1.7 / 1.8),
        ("tversky", {"smooth": 1e-9, "alpha": 0.0, "beta": 1.0}, 1 - 1.7 / 3.0),
        ("ce", {}, -(math.log(0.8) + math.log(0.6) + math.log(0.3) + math.log(0.9)) / 4),
        (
            "ce",
            {"positive_weight": 2},
            -(2 * (math.log(0.8) + math.log(0.6) + math.log(0.3)) + math.log(0.9)) / 4,
        ),
        (
            "focal",
            {},
            -(
                0.04 * math.log(0.8)
                + 0.16 * math.log(0.6)
                + 0.49 * math.log(0.3)
                + 0.01 * math.log(0.9)
            )
            / 4,
        ),
        (
            "focal",
            {"gamma": 0, "alpha": 0.75},
            -(0.75 * math.log(0.8 * 0.6 * 0.3) + 0.25 * math.log(0.9)) / 4,
        ),
        ("variance", {}, 1 - math.sqrt(0.0725 / (3 / 16))),
    ],
)
def test_binary_values(name: str, options: dict[str, Any], value: float | None, depth: int) -> None:
    x, y = binary(PICTURE), labels(TRUTH)
    if depth:
        x, y = (t[:, :, None].expand(-1, -1, depth, -1, -1) for t in (x, y))
    if value is None:
        n = max(depth, 1)
        value = 1 - (3.4 * n + 0.2) / (4.8 * n + 0.2)
    assert by_hand(name, x, y, **options) == pytest.approx(value, abs=1e-6)


@SHAPES
def test_three_class_values(space: tuple[int, ...]) -> None:
    """Every voxel says (0.5, 0.3, 0.2); half of them are class 0, half class 2."""
    p = torch.tensor([0.5, 0.3, 0.2]).reshape(1, 3, *[1] * len(space)).expand(1, 3, *space)
    y = (torch.arange(math.prod(space)) % 2 * 2).reshape(1, 1, *space)
    x = p.log()
    class0, class2 = 1 - 0.5 / (0.5 + 0.5), 1 - 0.2 / (0.2 + 0.5)
    assert by_hand("dice", x, y, smooth=1e-9) == pytest.approx((1 + class2) / 2, abs=1e-6)
    assert by_hand("dice", x, y, smooth=1e-9, background=True) == pytest.approx(
        (class0 + 1 + class2) / 3, abs=1e-6
    )
    assert by_hand("tversky", x, y, smooth=1e-9, alpha=1, beta=0) == pytest.approx(
        (1 + 0.5) / 2, abs=1e-6
    )
    assert by_hand("ce", x, y) == pytest.approx(-math.log(0.5 * 0.2) / 2, abs=1e-6)
    assert by_hand("ce", x, y, positive_weight=3) == pytest.approx(
        -(math.log(0.5) + 3 * math.log(0.2)) / 2, abs=1e-6
    )
    assert by_hand("focal", x, y) == pytest.approx(
        -(0.25 * math.log(0.5) + 0.64 * math.log(0.2)) / 2, abs=1e-6
    )
    assert by_hand("variance", x, y) == pytest.approx(1, abs=1e-3)


@SHAPES
@CHANNELS
def test_image_values(space: tuple[int, ...], channels: int) -> None:
    x = torch.full((2, channels, *space), 0.7)
    x[1] = 0.1
    y = torch.full_like(x, 0.4)
    assert by_hand("l1", x, y) == pytest.approx(0.3)
    assert by_hand("mse", x, y) == pytest.approx(0.09)
    assert by_hand("charbonnier", x, y) == pytest.approx(math.hypot(0.3, 1e-3))
    assert by_hand("charbonnier", y, y, epsilon=0.01) == pytest.approx(0.01)


# ---------------------------------------------------------------- independent references


@CHANNELS
def test_losses_agree_with_monai_when_nothing_is_ignored(channels: int) -> None:
    x, y, _ = scene("dice", channels, (4, 5, 3))
    x = x.float()
    how: dict[str, Any] = (
        {"sigmoid": True} if channels == 1 else {"softmax": True, "to_onehot_y": True}
    )
    for batch in (False, True):
        assert by_hand("dice", x, y, batch=batch, background=True) == pytest.approx(
            float(DiceLoss(batch=batch, **how)(x, y)), abs=1e-6
        )
    reference = TverskyLoss(alpha=0.3, beta=0.7, **how)
    assert by_hand("tversky", x, y, background=True) == pytest.approx(
        float(reference(x, y)), abs=1e-6
    )
    focal = FocalLoss(gamma=2, alpha=0.25, use_softmax=channels > 1, to_onehot_y=channels > 1)
    assert by_hand("focal", x, y, alpha=0.25) == pytest.approx(
        channels * float(focal(x, y)), abs=1e-6
    )


def test_ce_agrees_with_torch() -> None:
    x, y, _ = scene("ce", 3, (4, 5))
    assert by_hand("ce", x, y) == pytest.approx(
        float(functional.cross_entropy(x, y[:, 0])), abs=1e-12
    )
    assert by_hand("focal", x, y, gamma=0) == pytest.approx(by_hand("ce", x, y), abs=1e-12)


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_ignoring_voxels_is_leaving_them_out(seed: int) -> None:
    """Every loss is blind to position, so ignoring voxels must equal a smaller picture without
    them.
    """
    for (name, options), channels in itertools.product(VARIANTS, (1, 3)):
        x, y, valid = (t[:1] for t in scene(name, channels, (4, 5), seed))
        keep = valid[0, 0] > 0
        fewer_x, fewer_y = x[:, :, keep][..., None], y[:, :, keep][..., None]
        loss = LOSSES[name].make(**options)
        assert float(loss(x, y, valid)) == pytest.approx(
            float(loss(fewer_x, fewer_y, ones(fewer_x))), abs=1e-9
        )


# ---------------------------------------------------------------- gradients and ignored voxels


@EVERY
@SHAPES
@CHANNELS
def test_gradient_is_that_of_finite_differences(
    name: str, options: dict[str, Any], space: tuple[int, ...], channels: int
) -> None:
    x, y, valid = scene(name, channels, space)
    loss = LOSSES[name].make(**options)
    assert torch.autograd.gradcheck(lambda z: loss(z, y, valid), x.requires_grad_())


@EVERY
@CHANNELS
def test_ignored_voxels_change_neither_value_nor_gradient(
    name: str, options: dict[str, Any], channels: int
) -> None:
    x, y, valid = scene(name, channels, (4, 5))
    loss, out = LOSSES[name].make(**options), valid == 0
    results = []
    for fill, other in ((0.0, 0), (1e30, 1), (math.nan, 1), (-math.inf, 0)):
        z = x.masked_fill(out, fill).requires_grad_()
        value = loss(z, y.masked_fill(out, other), valid)
        (gradient,) = torch.autograd.grad(value, z)
        assert not gradient[out.expand_as(gradient)].any()
        results.append((value.detach(), gradient))
    assert all(torch.equal(v, results[0][0]) and torch.equal(g, results[0][1]) for v, g in results)
    assert results[0][1].any()


@EVERY
@CHANNELS
def test_without_a_valid_voxel_the_value_and_gradient_are_zero(
    name: str, options: dict[str, Any], channels: int
) -> None:
    x, y, valid = scene(name, channels, (4, 5))
    value = LOSSES[name].make(**options)(x.requires_grad_(), y, torch.zeros_like(valid))
    (gradient,) = torch.autograd.grad(value, x)
    assert value == 0
    assert not gradient.any()


@EVERY
def test_a_sample_without_valid_voxels_does_not_dilute_the_rest(
    name: str, options: dict[str, Any]
) -> None:
    x, y, valid = scene(name, 3, (4, 5))
    alone = LOSSES[name].make(**options)(x[:1], y[:1], valid[:1])
    valid[1] = 0
    assert float(LOSSES[name].make(**options)(x, y, valid)) == pytest.approx(
        float(alone), abs=1e-12
    )


@pytest.mark.parametrize("name", VOXELWISE)
@pytest.mark.parametrize("label", [0, 1], ids=["empty", "full"])
@pytest.mark.parametrize("logit", [-50.0, 0.0, 50.0])
@CHANNELS
def test_uniform_labels_and_saturated_logits_stay_finite(
    name: str, label: int, logit: float, channels: int
) -> None:
    x = torch.full((2, channels, 4, 4), logit)
    x[:, 1:] *= -1
    x[:, 2:] = 0
    y = torch.full((2, 1, 4, 4), label, dtype=torch.uint8)
    value = LOSSES[name].make()(x.requires_grad_(), y, ones(x))
    (gradient,) = torch.autograd.grad(value, x)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    right = (
        {0: logit < 0, 1: logit > 0}[label]
        if channels == 1
        else {0: logit > 0, 1: logit < 0}[label]
    )
    if right:
        assert value < 1e-4
    elif logit and name in ("ce", "dice"):
        assert value > 0.4


@EVERY
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_inputs_are_summed_in_single_precision(
    name: str, options: dict[str, Any], kind: torch.dtype
) -> None:
    """90,000 voxels near 1 overflow a float16 sum (65,504); bfloat16 would round the sum to two
    digits.
    """
    x = torch.linspace(0.5, 4, 90_000).reshape(1, 1, 300, 300).to(kind)
    y = (torch.arange(90_000) % 2).reshape(1, 1, 300, 300)
    y = y.to(kind) if "image" in LOSSES[name].targets else y
    loss = LOSSES[name].make(**options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, y, ones(x))
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(loss(x.double(), y, ones(x))), rel=1e-4)


def test_autocast_does_not_reach_inside_a_loss() -> None:
    seen: list[torch.dtype] = []

    @masked
    def product(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
        seen.append((x[0, 0] @ x[0, 0].T).dtype)
        return x.sum()

    x = torch.ones(1, 1, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x[0, 0] @ x[0, 0].T).dtype == torch.bfloat16
        product(x, x, ones(x))
    assert seen == [torch.float32]


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_label_targets_of_any_integer_type(kind: torch.dtype) -> None:
    for name in VOXELWISE:
        x, y, valid = scene(name, 3, (4, 5))
        assert torch.equal(
            LOSSES[name].make()(x, y.to(kind), valid), LOSSES[name].make()(x, y, valid)
        )


def test_perfect_answers_cost_nothing() -> None:
    y = torch.zeros(1, 1, 6, 6, dtype=torch.long)
    y[..., 2:4] = 1
    x = (y * 2 - 1) * 40.0
    assert all(by_hand(name, x, y) == pytest.approx(0, abs=1e-6) for name in VOXELWISE)


# ---------------------------------------------------------------- variance


@given(p=st.floats(0.01, 0.99), share=st.integers(1, 63))
@settings(deadline=None, max_examples=20)
def test_variance_is_one_for_a_uniform_answer(p: float, share: int) -> None:
    y = (torch.arange(64) < share).long().reshape(1, 1, 8, 8)
    assert by_hand("variance", torch.full((1, 1, 8, 8), math.log(p / (1 - p))), y) == pytest.approx(
        1, abs=1e-3
    )


def test_variance_looks_at_spread_and_not_at_place() -> None:
    y = (torch.arange(64) < 20).long().reshape(1, 1, 8, 8)
    x = (y * 2 - 1) * 40.0
    assert by_hand("variance", x, y) == 0
    assert by_hand("variance", x.flip(-1), y) == 0


def test_variance_of_a_uniform_label_is_zero_and_counts_as_a_sample() -> None:
    y = (torch.arange(16) < 8).long().reshape(1, 1, 4, 4)
    x = torch.zeros(1, 1, 4, 4)
    pair_x, pair_y = torch.cat([x, x]), torch.cat([y, torch.ones_like(y)])
    assert by_hand("variance", x, torch.ones_like(y)) == 0
    assert by_hand("variance", pair_x, pair_y) == pytest.approx(by_hand("variance", x, y) / 2)


@CHANNELS
def test_variance_pulls_an_almost_uniform_answer_apart(channels: int) -> None:
    """One small step raises the spread, and the gradient there is as strong as for an answer that
    is well spread.
    """
    y = (torch.arange(64) < 10).long().reshape(1, 1, 8, 8)
    noise = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    loss, strength, spread = LOSSES["variance"].make(), [], []
    for scale in (1e-2, 0.5):
        x = (noise * scale).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, y, ones(x)), x)
        strength.append(gradient.norm())
        for z in (x.detach(), x.detach() - 0.5 * gradient):
            spread.append(
                float(z.sigmoid().std() if channels == 1 else z.softmax(1)[:, 1:].sum(1).std())
            )
    assert spread[1] > 1.2 * spread[0]
    assert 0.5 < float(strength[0] / strength[1]) < 2


# ---------------------------------------------------------------- options and shapes


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dice", {"smooth": 0}, ["smooth", "0", "1e-12"]),
        ("dice", {"smooth": "x"}, ["smooth", "'x'"]),
        ("dice", {"batch": "no"}, ["batch", "'no'"]),
        ("tversky", {"alpha": -1}, ["alpha", "-1"]),
        ("tversky", {"beta": math.inf}, ["beta", "inf"]),
        ("tversky", {"background": 1}, ["background", "1"]),
        ("ce", {"positive_weight": math.nan}, ["positive_weight", "nan"]),
        ("focal", {"gamma": 0.5}, ["gamma", "0.5", "infinite"]),
        ("focal", {"alpha": 2}, ["alpha", "2", "from 0 to 1"]),
        ("variance", {"eps": 0}, ["eps", "0"]),
        ("charbonnier", {"epsilon": True}, ["epsilon", "True"]),
        ("focal", {"gama": 2}, ["gama", "gamma"]),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        WeightedSum(
            [LossTerm(name=name, options=options)],
            {"label": "labels" if "labels" in LOSSES[name].targets else "image"},
        )
    assert [word for word in words if word not in str(caught.value)] == []


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="share batch and space"):
        LOSSES["ce"].make()(x, torch.zeros(2, 1, 4, 5), ones(x))
    with pytest.raises(ValueError, match="share batch and space"):
        LOSSES["l1"].make()(x, x, x)
    with pytest.raises(ValueError, match="same shape"):
        LOSSES["l1"].make()(x, x[:, :1], ones(x))
    with pytest.raises(ValueError, match="one channel"):
        LOSSES["dice"].make()(x, x, ones(x))


# ---------------------------------------------------------------- weighted sum


def terms(*specs: dict[str, Any]) -> list[LossTerm]:
    return [LossTerm(**spec) for spec in specs]


KINDS = {"label": "labels", "vessel": "labels", "target": "image"}


def test_total_is_the_weighted_sum_and_values_are_unweighted() -> None:
    x, y, valid = scene("dice", 1, (4, 5))
    image = torch.randn(2, 1, 4, 5, dtype=torch.float64)
    outputs = {"main": x.requires_grad_(), "mask": (x * 2).detach().requires_grad_()}
    batch = {"label": y.masked_fill(valid == 0, 7), "target": image}
    total = WeightedSum(
        terms(
            {"name": "dice", "weight": 0.4},
            {"name": "focal", "head": "mask", "weight": 2.0},
            {"name": "l1", "target": "target", "weight": 0.5},
        ),
        KINDS,
        ignore_label=7,
    )
    value, parts = total(outputs, batch)
    expected = {
        "dice": LOSSES["dice"].make()(x, y, valid),
        "focal@mask": LOSSES["focal"].make()(outputs["mask"], y, valid),
        "l1": LOSSES["l1"].make()(x, image, ones(x)),
    }
    assert list(parts) == list(expected)
    assert all(
        torch.equal(parts[key], expected[key].detach()) and not parts[key].requires_grad
        for key in parts
    )
    weighted = 0.4 * expected["dice"] + 2 * expected["focal@mask"] + 0.5 * expected["l1"]
    assert value.shape == ()
    assert torch.allclose(value, weighted)
    value.backward()
    assert outputs["main"].grad is not None
    assert outputs["mask"].grad is not None


def test_no_component_is_lost_when_names_repeat() -> None:
    specs = terms(
        {"name": "dice"},
        {"name": "dice", "target": "vessel"},
        {"name": "dice", "options": {"batch": True}},
        {"name": "dice"},
    )
    total = WeightedSum(
        [*specs, *terms({"name": "dice", "head": "mask"}, {"name": "dice", "head": "mask"})], KINDS
    )
    assert list(total.terms) == [
        "dice",
        "dice:vessel",
        "dice:label",
        "dice:2",
        "dice@mask",
        "dice@mask:label",
    ]


@pytest.mark.parametrize(
    ("ignore", "kind"), [(2, torch.uint8), (255, torch.uint8), (-1, torch.int64), (0, torch.uint8)]
)
def test_ignored_label_counts_nowhere(ignore: int, kind: torch.dtype) -> None:
    y = torch.tensor([[[[0, 1, 0, 1]]]], dtype=torch.int64)
    marked = y.clone()
    marked[..., 2:] = ignore
    x = torch.tensor([[[[1.0, -2.0, 3.0, 4.0]]]])
    value, _ = WeightedSum(terms({"name": "ce"}), KINDS, ignore_label=ignore)(
        {"main": x}, {"label": marked.to(kind)}
    )
    keep = ones(x) * (marked != ignore)
    assert float(value) == pytest.approx(float(LOSSES["ce"].make()(x, y, keep)))
    assert 0 < keep.sum() < 4


def test_a_loss_receives_the_target_cleaned_once() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
        seen.append((y, valid))
        return x.sum()

    y = torch.tensor([[[[0, 1, 2, 2]]]], dtype=torch.uint8)
    with LOSSES.restored() as entries:
        entries["dice"] = LossEntry(lambda: spy, ("labels",))
        WeightedSum(terms({"name": "dice"}, {"name": "dice"}), KINDS, ignore_label=2)(
            {"main": y.float()}, {"label": y}
        )
    assert seen[0][0].tolist() == [[[[0, 1, 0, 0]]]]
    assert seen[0][1].tolist() == [[[[1.0, 1.0, 0.0, 0.0]]]]
    assert seen[0][0].dtype == y.dtype
    assert all(a is b for a, b in zip(*seen, strict=True))
    assert y.tolist() == [[[[0, 1, 2, 2]]]]


@pytest.mark.parametrize("ignore", [-1, 256])
def test_an_ignore_label_outside_uint8_matches_nothing(ignore: int) -> None:
    """torch compares uint8 modulo 256: -1 would ignore 255 and 256 would ignore the background."""
    y = torch.tensor([[[[0, 255, 1, 0]]]], dtype=torch.uint8)
    x = torch.tensor([[[[1.0, -2.0, 3.0, 4.0]]]])
    value, _ = WeightedSum(terms({"name": "ce"}), KINDS, ignore_label=ignore)(
        {"main": x}, {"label": y}
    )
    assert float(value) == pytest.approx(float(LOSSES["ce"].make()(x, y, ones(x))))


def test_the_ignore_label_does_not_touch_image_targets() -> None:
    image = torch.tensor([[[[2.0, 2.0, 0.0, 0.0]]]])
    value, _ = WeightedSum(terms({"name": "l1", "target": "target"}), KINDS, ignore_label=2)(
        {"main": image * 0}, {"target": image}
    )
    assert float(value) == 1.0


def test_deep_heads_are_needed_in_training_only() -> None:
    x, y, _ = scene("dice", 1, (4, 5))
    total = WeightedSum(
        terms({"name": "dice"}, {"name": "dice", "head": "deep1", "weight": 0.5}), KINDS
    )
    with pytest.raises(KeyError, match=r"dice@deep1.*main"):
        total({"main": x}, {"label": y})
    value, parts = total({"main": x}, {"label": y}, training=False)
    assert list(parts) == ["dice"]
    assert float(value) == float(parts["dice"])
    assert list(total({"main": x, "deep1": x}, {"label": y}, training=False)[1]) == [
        "dice",
        "dice@deep1",
    ]


def test_other_absent_heads_and_targets_are_errors_always() -> None:
    x, y, _ = scene("dice", 1, (4, 5))
    with pytest.raises(KeyError, match="mask"):
        WeightedSum(terms({"name": "dice", "head": "mask"}), KINDS)(
            {"main": x}, {"label": y}, training=False
        )
    with pytest.raises(KeyError, match="vessel"):
        WeightedSum(terms({"name": "dice", "target": "vessel"}), KINDS)({"main": x}, {"label": y})
    with pytest.raises(KeyError, match="deep-supervision"):
        WeightedSum(terms({"name": "dice", "head": "deep1"}), KINDS)(
            {"main": x}, {"label": y}, training=False
        )


def test_check_accepts_what_fits() -> None:
    check(
        terms(
            {"name": "dice"}, {"name": "dice", "head": "deep1"}, {"name": "l1", "target": "target"}
        ),
        ("main", "deep1"),
        KINDS,
    )


def test_check_lists_every_fault_with_the_nearest_name() -> None:
    wrong = terms(
        {"name": "dise"},
        {"name": "dice", "head": "msak"},
        {"name": "dice", "target": "vesel"},
        {"name": "dice", "target": "target"},
        {"name": "l1"},
        {"name": "ce", "weight": math.nan},
    )
    with pytest.raises(ConfigError) as caught:
        check(wrong, ("main", "mask"), KINDS)
    lines = str(caught.value).splitlines()
    hints = ["'dice'", "'mask'", "'vessel'", "l1", "tversky", "nan"]
    assert len(lines) == len(hints)
    assert all(
        f"losses.{i}" in line and hint in line
        for i, (line, hint) in enumerate(zip(lines, hints, strict=True))
    )


def test_check_wants_a_term_that_validation_can_compute() -> None:
    with pytest.raises(ConfigError, match="head main"):
        check(terms({"name": "dice", "head": "deep1"}), ("main", "deep1"), KINDS)


@pytest.mark.parametrize(
    "spec",
    [{"name": "dise"}, {"name": "dice", "weight": -1.0}, {"name": "dice", "target": "target"}],
)
def test_a_wrong_term_never_becomes_a_sum(spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"losses\.0"):
        WeightedSum(terms(spec), KINDS)
