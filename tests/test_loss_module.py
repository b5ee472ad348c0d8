"""Loss: value and gradient of the term of a config, for every loss and every form of a target."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.losses.dice import DiceLoss
from monai.losses.ds_loss import DeepSupervisionLoss
from monai.networks.utils import one_hot
from torch import Tensor

from pipeline.config import Change, ConfigError, Data
from pipeline.data import change, derived
from pipeline.data.label_tensors import class_numbers
from pipeline.losses import LOSSES, WeightedSum, for_target, reads
from pipeline.losses.module import Loss, takes_range
from pipeline.records import LossTerm

OPTIONS: dict[str, dict[str, Any]] = {
    "ms_ssim": {"levels": 1},
    "perceptual": {"weights": "random", "layers": ["relu1_2"]},
    "betti_matching": {"patch": 8},
    "skeleton_recall": {"radius": 1.0},
}
IGNORED = 9


def scene(name: str, channels: int, space: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logits and a target of two samples; labels: two boxes of other classes, an ignored rim."""
    make = torch.Generator().manual_seed(len(space))
    logits = torch.randn(2, channels, *space, generator=make)
    if "image" in LOSSES[name].targets:
        return logits.tanh(), torch.rand(2, channels, *space, generator=make) * 2 - 1
    target = torch.zeros(2, 1, *space, dtype=torch.int64)
    inner = (slice(None), slice(None), *[slice(2, 7)] * len(space))
    target[inner] = 1
    target[(slice(None), slice(None), *[slice(8, 11)] * len(space))] = max(1, channels - 1)
    target[..., :2] = IGNORED
    return logits, target


def by_config(
    name: str, logits: Tensor, target: Tensor, ignore: int | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Value and gradient of the term in a config, whose maps the loader makes from whole labels."""
    term = LossTerm(name=name, target="y", options=options)
    kind = "image" if "image" in LOSSES[name].targets else "labels"
    batch, kinds = {"y": target}, {"y": kind}
    wish = next(iter(reads([term])), None)
    if isinstance(wish, derived.Map):
        data = Data(classes=max(2, logits.shape[1]), ignore_label=ignore)
        batch[wish.key] = torch.from_numpy(
            np.stack([derived.derive(y.numpy(), wish, data) for y in target])
        )
    elif wish is not None:
        batch["mask"], kinds["mask"] = some_mask(target), "soft"
    x = logits.clone().requires_grad_()
    value = WeightedSum([term], kinds, ignore)({"main": x}, batch)[0]
    return value.detach(), torch.autograd.grad(value, x)[0]


def by_module(loss: Loss, logits: Tensor, target: Tensor, **maps: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.clone().requires_grad_()
    value = loss(x, target, **maps)
    return value.detach(), torch.autograd.grad(value, x)[0]


def some_mask(target: Tensor) -> Tensor:
    mask = torch.zeros_like(target[:, :1], dtype=torch.float32)
    mask[..., 3:9, 4:8] = 0.7
    return mask


def assert_same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("space", [(12, 14), (12, 11, 13)], ids=["2D", "3D"])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_a_config(name: str, space: tuple[int, ...]) -> None:
    if len(space) == 3 and name in ("perceptual", "masked_sobel", "masked_laplacian"):
        pytest.skip("2D only")
    options, ignore = OPTIONS.get(name, {}), IGNORED if "labels" in LOSSES[name].targets else None
    for channels in (1, 3):
        logits, target = scene(name, channels, space)
        maps = {"mask": some_mask(target)} if takes_range(name) else {}
        wanted = by_config(name, logits, target, ignore, **options)
        assert torch.isfinite(wanted[0])
        assert wanted[1].any(), "a scene in which this loss has nothing to do proves nothing"
        assert_same(
            by_module(
                Loss(name, **options, **({} if ignore is None else {"ignore_label": ignore})),
                logits,
                target,
                **maps,
            ),
            wanted,
        )


@pytest.mark.parametrize("name", sorted(for_target("soft")))
def test_soft_targets_are_those_of_a_config(name: str) -> None:
    logits = torch.randn(2, 1, 6, 7)
    target = torch.rand(2, 1, 6, 7)
    x = logits.clone().requires_grad_()
    value = WeightedSum([LossTerm(name=name, target="y")], {"y": "soft"})(
        {"main": x}, {"y": target}
    )[0]
    assert_same(
        by_module(Loss(name, soft=True), logits, target),
        (value.detach(), torch.autograd.grad(value, x)[0]),
    )
    binary = (target > 0.5).to(torch.uint8)
    assert float(Loss(name, soft=True)(logits, binary)) == pytest.approx(
        float(Loss(name)(logits, binary)), rel=1e-5
    )


@pytest.mark.parametrize("name", for_target("labels"))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_form_of_a_target_gives_one_value(name: str, channels: int) -> None:
    logits, target = scene(name, channels, (12, 14))
    loss = Loss(name, ignore_label=IGNORED, **OPTIONS.get(name, {}))
    wanted = by_module(loss, logits, target)
    forms = [target.float(), target.half(), target.to(torch.uint8), MetaTensor(target.float())]
    if channels > 1:
        counted = target != IGNORED
        forms += [
            (one_hot(target * counted, channels) * counted).to(kind)
            for kind in (torch.float32, torch.uint8, torch.bool)
        ]
    for form in forms:
        assert_same(by_module(loss, logits, form), wanted)
    meta = loss(MetaTensor(logits), MetaTensor(target.float()))
    assert type(meta) is Tensor
    assert torch.equal(meta, wanted[0])


def test_monai_dice_agrees_where_both_mean_the_same() -> None:
    logits, target = torch.randn(2, 3, 6, 7), torch.randint(0, 3, (2, 1, 6, 7)).float()
    theirs = DiceLoss(softmax=True, to_onehot_y=True, include_background=False)(logits, target)
    assert torch.allclose(Loss("dice")(logits, target), theirs)
    plain = DiceLoss(softmax=True, include_background=False)(logits, one_hot(target, 3))
    assert torch.allclose(Loss("dice")(logits, one_hot(target, 3)), plain)


@pytest.mark.parametrize("ignore", [0, 2, 255, -1])
def test_ignored_voxels_cannot_be_felt(ignore: int) -> None:
    target = torch.randint(0, 3, (2, 1, 6, 7)).float()
    target[..., :3] = ignore
    loss = Loss("ce", ignore_label=ignore)
    logits = torch.randn(2, 3, 6, 7)
    value, slope = by_module(loss, logits, target)
    counted = (target != ignore).expand_as(logits)
    assert not slope[~counted].any()
    assert slope[counted].any()
    changed = torch.where(counted, logits, torch.tensor(torch.nan))
    assert torch.equal(loss(changed, target), value)


def test_deep_supervision_of_monai() -> None:
    target = torch.randint(0, 3, (2, 1, 16, 16)).float()
    outputs = [torch.randn(2, 3, n, n, requires_grad=True) for n in (16, 8, 4)]
    loss = Loss("dice")
    total = DeepSupervisionLoss(loss)(outputs, target)
    smaller = [
        target,
        *(
            torch.nn.functional.interpolate(target, size=(n, n), mode="nearest-exact")
            for n in (8, 4)
        ),
    ]
    by_hand = sum(
        0.5**n * loss(x, y) for n, (x, y) in enumerate(zip(outputs, smaller, strict=True))
    )
    assert torch.allclose(total, torch.as_tensor(by_hand))
    total.backward()
    assert all(x.grad is not None and x.grad.any() for x in outputs)


def test_autocast_and_half_precision_are_computed_in_float32() -> None:
    logits, target = 20 * torch.randn(1, 1, 64, 64), torch.randint(0, 2, (1, 1, 64, 64)).float()
    for kind in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=kind):
            value = Loss("dice")(logits.to(kind), target)
        assert value.dtype == torch.float32
        assert torch.equal(value, Loss("dice")(logits.to(kind).float(), target))


def test_it_is_a_module_that_is_kept_copied_and_sent() -> None:
    logits, target = torch.randn(1, 1, 8, 8), torch.randint(0, 2, (1, 1, 8, 8))
    loss = Loss("tversky", alpha=0.2, beta=0.8, ignore_label=255)
    terms = torch.nn.ModuleDict({"a": loss, "b": Loss("boundary")}).to("cpu").eval()
    assert not list(terms.parameters())
    assert not terms.state_dict()
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(logits, target), loss(logits, target))
        assert repr(twin) == repr(loss) == "Loss('tversky', alpha=0.2, beta=0.8, ignore_label=255)"


@pytest.mark.parametrize("name", [n for n, entry in LOSSES.items() if entry.map in derived.DERIVED])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_map_that_is_given_is_used(name: str, channels: int) -> None:
    logits, target = scene(name, channels, (12, 14))
    loss = Loss(name, ignore_label=IGNORED)
    (wish,) = reads([LossTerm(name=name, target="y")])
    assert isinstance(wish, derived.Map)
    data = Data(classes=max(2, channels), ignore_label=IGNORED)
    made = torch.from_numpy(np.stack([derived.derive(y.numpy(), wish, data) for y in target]))
    assert torch.equal(loss(logits, target, **{wish.name: MetaTensor(made)}), loss(logits, target))
    assert not torch.equal(loss(logits, target, **{wish.name: made.flip(-1)}), loss(logits, target))
    with pytest.raises(ValueError, match=rf"'mask', which it does not read\. .*{wish.name}"):
        loss(logits, target, mask=made)


def test_a_mask_of_change_is_made_from_the_images_before() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(60, 200, (2, 3, 32, 32)).astype(np.uint8)
    after = before.copy()
    after[0, :, 8:16, 8:16] = 20
    mask = torch.from_numpy(
        np.stack(
            [change.difference_mask(a, b, Change()) for a, b in zip(before, after, strict=True)]
        )
    )
    assert 0 < mask[0].mean() < 0.6
    assert not mask[1].any()
    for low, high in ((-1.0, 1.0), (0.0, 1.0)):
        source, target = (
            torch.from_numpy(x).float() / 255 * (high - low) + low for x in (before, after)
        )
        output = source + 0.05 * torch.randn_like(source)
        for loss in (Loss("masked_l1", range=[low, high]), seen_inside(low, high)):
            assert torch.equal(loss(output, target, source=source), loss(output, target, mask=mask))
    assert repr(Loss("masked_l1", range=[0, 1])) == "Loss('masked_l1', range=[0, 1])"


def seen_inside(low: float, high: float) -> Loss:
    return Loss(
        "perceptual",
        weights="random",
        layers=["relu1_1"],
        size=16,
        reduce="mask",
        range=[low, high],
    )


def test_a_mask_of_change_that_is_missing_is_said() -> None:
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="Pass mask="):
        Loss("masked_sobel")(x, x)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("cldcie", {}, "'cldcie' is unknown. Did you mean 'cldice'"),
        ("cldice", {"iteration": 3}, "no option 'iteration'. Did you mean 'iterations'"),
        ("dice", {"ignore_lable": 2}, "Did you mean 'ignore_label'"),
        ("mse", {"reduction": "sum"}, "It takes none"),
        ("cldice", {"iterations": 1.5}, "iterations"),
        ("focal", {"gamma": 0.5}, "must be 0 or at least 1"),
        ("l1", {"ignore_label": 2}, "no labels to ignore"),
        ("focal", {"soft": True}, "ce, dice, tversky"),
        ("dice", {"soft": True, "ignore_label": 2}, "no label to ignore"),
        ("dice", {"ignore_label": "2"}, "whole number"),
        ("masked_l1", {"range": [1, 0]}, "two rising numbers"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Loss(name, **options)
    assert said in str(error.value)


X1, X3 = torch.zeros(1, 1, 4, 4), torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize(
    ("logits", "target", "options", "said"),
    [
        (X1, torch.zeros(1, 4, 4), {}, "target\\[:, None\\]"),
        (X1, torch.zeros(1, 1, 4, 5), {}, "same space"),
        (X1, X1 + 0.5, {}, "holds 0.5.*soft=True"),
        (X1, X1 + torch.nan, {}, "holds nan"),
        (X1, X1 - 1, {}, "holds -1.*ignore_label="),
        (X1, X3, {}, "class numbers \\(B, 1"),
        (X3, X1 + 3, {}, "holds 3.*from 0 to 2"),
        (X3, X1 + 3, {"ignore_label": 4}, "holds 3"),
        (X3, X1 + 2.5, {"ignore_label": 2}, "holds 2.5"),
        (X3, X3, {}, "16 voxels not exactly one"),
        (X3, X3 + 1, {"ignore_label": 3}, "not one-hot"),
        (X3, X3 + 0.3, {"ignore_label": 3}, "not one-hot"),
        (X3, torch.zeros(1, 2, 4, 4), {}, "one-hot \\(B, 3"),
        (X1, X1 + 2, {"soft": True}, "0..1"),
        (X3, X1, {"soft": True}, "one channel each"),
    ],
)
def test_targets_that_mean_nothing_are_refused(
    logits: Tensor, target: Tensor, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Loss("dice", **options)(logits, target)


def test_all_voxels_ignored_cost_nothing() -> None:
    assert float(Loss("dice", ignore_label=1)(X3, X1 + 1)) == 0
    assert class_numbers(X3, 3, ignore_label=-1).unique().tolist() == [-1]
