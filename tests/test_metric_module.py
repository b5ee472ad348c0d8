"""Metric: the package's numbers, collected as MONAI collects, MONAI's where both mean the same."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics.hausdorff_distance import HausdorffDistanceMetric
from monai.metrics.meandice import DiceMetric
from monai.metrics.regression import PSNRMetric, SSIMMetric
from monai.metrics.surface_dice import SurfaceDiceMetric
from monai.networks.utils import one_hot
from torch import Tensor

from pipeline.config import Change, ConfigError
from pipeline.data import change
from pipeline.metrics import METRICS, evaluate
from pipeline.metrics.context import MetricContext
from pipeline.metrics.module import Metric
from pipeline.metrics.retouch import Retouched
from pipeline.records import NamedOptions, UserError

LABELS = [name for name, entry in METRICS.items() if entry.task == "labels" and not entry.needs]
RANKING = [name for name, entry in METRICS.items() if "probabilities" in entry.needs]
BY_CLASS = [
    "dice",
    "iou",
    "precision",
    "recall",
    "specificity",
    "cldice",
    "surface_dice",
    "hd95",
    "assd",
    "betti_matching_error",
]


def balls(
    seed: int, classes: int = 2, shape: tuple[int, ...] = (14, 15, 16), count: int = 2
) -> Tensor:
    """Label maps ``(count, 1, *shape)`` with a ball of every class, away from the border."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    out = np.zeros((count, 1, *shape), np.int64)
    for item in out[:, 0]:
        for c in range(1, classes):
            centre = rng.uniform(4, np.array(shape) - 5).reshape(-1, *[1] * len(shape))
            item[((grid - centre) ** 2).sum(0) < rng.uniform(4, 10)] = c
    return torch.from_numpy(out)


def by_package(
    name: str,
    pred: Tensor,
    true: Tensor,
    ignore: int | None = None,
    context: MetricContext | None = None,
    **options: Any,
) -> Tensor:
    """Numbers of every item ``(B, V)`` as the package scores a case."""
    rows = []
    for p, t in zip(pred[:, 0].numpy(), true[:, 0].numpy(), strict=True):
        valid = None if ignore is None else t != ignore
        known = t if valid is None else np.where(valid, t, 0)
        found = evaluate(
            [NamedOptions(name=name, options=options)], p, known, valid, context=context
        )
        rows.append([v for v in found.values() if not isinstance(v, dict)])
    return torch.tensor(rows, dtype=torch.float64)


def assert_equal(one: Tensor, other: Tensor) -> None:
    assert one.dtype == torch.float64
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", LABELS)
def test_masks_score_as_the_package_scores_them(name: str) -> None:
    pred, true = balls(0), balls(1)
    true[0, ..., :3] = 2
    wanted = by_package(name, pred, true, ignore=2)
    metric = Metric(name, ignore_label=2)
    assert_equal(metric(y_pred=pred, y=true), wanted)
    assert metric.names[0] == name
    assert len(metric.names) == wanted.shape[1]
    assert float(metric.aggregate()) == pytest.approx(wanted[:, 0].mean().item())
    assert list(metric.values().values()) == pytest.approx(wanted.mean(0).tolist())


@pytest.mark.parametrize("name", BY_CLASS)
def test_every_form_of_several_classes_gives_one_answer(name: str) -> None:
    pred, true = balls(2, 4), balls(3, 4)
    true[0, ..., :3] = 255
    counted = true != 255
    wanted = by_package(name, pred, true, ignore=255, context=MetricContext(classes=(1, 2, 3)))
    hot = one_hot(pred, 4), one_hot(true * counted, 4) * counted
    forms: list[tuple[Any, Any, int | None]] = [
        (pred, true, 4),
        (pred.float(), MetaTensor(true.float()), 4),
        (hot[0], hot[1], None),
        (hot[0].bool(), hot[1].to(torch.uint8), 4),
        (pred, hot[1], None),
        (list(hot[0]), list(true), None),
    ]
    for one, other, classes in forms:
        metric = Metric(name, num_classes=classes, ignore_label=255)
        assert_equal(metric(y_pred=one, y=other), wanted)
        assert metric.names == (name, f"{name}_1", f"{name}_2", f"{name}_3")


def test_columns_do_not_depend_on_what_a_case_holds() -> None:
    true, pred = (
        torch.zeros(2, 1, 4, 4, dtype=torch.int64),
        torch.zeros(2, 1, 4, 4, dtype=torch.int64),
    )
    true[0, ..., :2], pred[0, ..., :2] = 1, 1
    true[1, ..., 3:] = 2
    metric = Metric("dice", num_classes=3)
    table = metric(pred, true)
    assert_equal(table, torch.tensor([[1, 1, math.nan], [0, math.nan, 0]], dtype=torch.float64))
    assert metric.values() == {"dice": 0.5, "dice_1": 1.0, "dice_2": 0.0}
    assert metric.aggregate("mean_batch").tolist() == [0.5, 1.0, 0.0]
    assert metric.aggregate("mean_channel").tolist() == [1.0, 0.0]
    assert_equal(torch.as_tensor(metric.aggregate("none")), table)


def test_collecting_over_batches_and_lists_of_other_sizes() -> None:
    metric = Metric("dice", get_not_nans=True)
    first, second = (
        (balls(0, count=3), balls(1, count=3)),
        (balls(2, shape=(9, 12), count=1), balls(3, shape=(9, 12), count=1)),
    )
    parts = [metric(y_pred=list(p), y=list(t)) for p, t in (first, second)]
    assert [len(x) for x in parts] == [3, 1]
    value, count = metric.aggregate()
    assert (float(value), int(count), len(metric)) == (
        pytest.approx(float(torch.cat(parts).mean())),
        4,
        4,
    )
    twin = pickle.loads(pickle.dumps(metric))
    assert torch.equal(twin.aggregate()[0], value)
    metric.reset()
    assert (len(metric), metric.names) == (0, ())
    with pytest.raises(ValueError, match="nothing to aggregate"):
        metric.aggregate()
    assert len(twin) == 4


def test_nothing_to_count_is_nan_and_left_out_of_means() -> None:
    pred, true = balls(0), balls(1)
    true[1] = 7
    metric = Metric("iou", ignore_label=7, get_not_nans=True)
    assert torch.isnan(metric(pred, true)[1, 0])
    value, count = metric.aggregate()
    assert float(value) == float(by_package("iou", pred[:1], true[:1]))
    assert int(count) == 1
    metric.reset()
    metric(pred[1:], true[1:])
    assert math.isnan(metric.aggregate()[0])
    assert math.isnan(metric.values()["iou"])


@pytest.mark.parametrize("name", sorted(RANKING))
def test_scores_of_probabilities(name: str) -> None:
    true = balls(1)
    p = (true * 0.3 + torch.rand(true.shape)).clamp(0, 1)
    true[0, ..., :3] = 2
    wanted = []
    for scores, label in zip(p[:, 0].numpy(), true[:, 0].numpy(), strict=True):
        known = np.where(label == 2, 0, label)
        wanted.append(
            list(evaluate([NamedOptions(name=name)], known, known, label != 2, scores).values())
        )
    assert_equal(Metric(name, ignore_label=2)(p, true), torch.tensor(wanted, dtype=torch.float64))
    assert_equal(
        Metric(name, ignore_label=2)(torch.cat([1 - p, p], 1), true),
        torch.tensor(wanted, dtype=torch.float64),
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("mae", {}), ("psnr", {"peak": 2.0}), ("ssim", {}), ("ssim", {"kernel": "3d"})],
)
def test_scores_of_images(name: str, options: dict[str, Any]) -> None:
    true = torch.rand(2, 3, 16, 17)
    pred = (true + 0.1 * torch.randn(true.shape)).clamp(0, 1)
    wanted = [
        list(evaluate([NamedOptions(name=name, options=options)], p.numpy(), t.numpy()).values())
        for p, t in zip(pred, true, strict=True)
    ]
    assert_equal(Metric(name, **options)(pred, true), torch.tensor(wanted, dtype=torch.float64))


def test_retouching_reads_the_image_before() -> None:
    before = torch.rand(2, 3, 32, 32) * 0.5
    true = before.clone()
    true[:, :, 8:16, 8:16] = 0.9
    pred, predicted = true + 0.01, torch.rand(2, 1, 32, 32)
    mask = torch.from_numpy(
        np.stack(
            [
                change.difference_mask(a, b, Change())
                for a, b in zip(before.numpy(), true.numpy(), strict=True)
            ]
        )
    )
    wanted = []
    for p, t, s, m, q in zip(
        pred.numpy(), true.numpy(), before.numpy(), mask.numpy(), predicted.numpy(), strict=True
    ):
        record = Retouched(source=s, mask=m[0] >= change.LEVEL, predicted=q[0])
        wanted.append(list(evaluate([NamedOptions(name="retouch")], p, t, change=record).values()))
    for further in ({}, {"mask": mask}):
        metric = Metric("retouch")
        table = metric(pred, true, source=before, predicted=predicted, **further)
        assert_equal(table, torch.tensor(wanted, dtype=torch.float64))
        assert "mask_dice" in metric.names
    with pytest.raises(ValueError, match="reset"):
        metric(pred, true, source=before)
    with pytest.raises(ValueError, match="source=images"):
        Metric("retouch")(pred, true)


# ---------------------------------------------------------------- beside MONAI


@pytest.mark.parametrize("shape", [(14, 15, 16), (20, 21)], ids=["3D", "2D"])
def test_dice_is_monai_s_with_ignore_empty_false(shape: tuple[int, ...]) -> None:
    pred, true = balls(4, shape=shape, count=3), balls(5, shape=shape, count=3)
    pred[0], true[:2] = 0, 0
    theirs = DiceMetric(include_background=False, ignore_empty=False, num_classes=2)
    ours = Metric("dice")
    assert torch.allclose(ours(pred, true).float(), theirs(pred, true))
    assert float(ours.aggregate()) == pytest.approx(float(theirs.aggregate()))
    assert ours(pred, true)[:2, 0].tolist() == [1, 0]
    several = balls(6, 4, shape, 3), balls(7, 4, shape, 3)
    theirs = DiceMetric(include_background=False, num_classes=4)(*several)
    assert torch.allclose(Metric("dice", num_classes=4)(*several)[:, 1:].float(), theirs)


@pytest.mark.parametrize("shape", [(14, 15, 16), (20, 21)], ids=["3D", "2D"])
@pytest.mark.parametrize("spacing", [None, 0.5, "each"])
def test_hd95_is_monai_s_percentile(shape: tuple[int, ...], spacing: Any) -> None:
    pred, true = balls(8, 3, shape), balls(9, 3, shape)
    apart = [0.5, 2.0, 1.25][: len(shape)] if spacing == "each" else spacing
    theirs = HausdorffDistanceMetric(percentile=95)(
        one_hot(pred, 3), one_hot(true, 3), spacing=apart
    )
    ours = Metric("hd95", num_classes=3)(pred, true, spacing=apart)
    assert torch.allclose(ours[:, 1:].float(), theirs, rtol=1e-5)
    assert torch.equal(Metric("hd95", num_classes=3, spacing=apart)(pred, true), ours)
    assert torch.equal(Metric("hd95", num_classes=3)(list(pred), list(true), spacing=apart), ours)


@pytest.mark.parametrize("shape", [(14, 15, 16), (20, 21)], ids=["3D", "2D"])
def test_surface_dice_is_monai_s_with_subvoxels(shape: tuple[int, ...]) -> None:
    pred, true = balls(10, 3, shape), balls(11, 3, shape)
    theirs = SurfaceDiceMetric(class_thresholds=[2, 2], use_subvoxels=True)(
        one_hot(pred, 3), one_hot(true, 3)
    )
    ours = Metric("surface_dice", num_classes=3, tolerance=2)(pred, true)
    assert torch.allclose(ours[:, 1:].float(), theirs, rtol=1e-5)
    assert 0.01 < float(ours[:, 0].mean()) < 0.99
    apart = (0.5, 2.0, 1.25)[: len(shape)]
    theirs = SurfaceDiceMetric(class_thresholds=[2, 2], use_subvoxels=True)(
        one_hot(pred, 3), one_hot(true, 3), spacing=apart
    )
    ours = Metric("surface_dice", num_classes=3, tolerance_mm=2, spacing=apart)(pred, true)
    assert torch.allclose(ours[:, 1:].float(), theirs, rtol=1e-4)


def test_spacing_may_differ_between_items() -> None:
    pred, true = balls(8), balls(9)
    apart = [[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]]
    ours = Metric("assd")(pred, true, spacing=apart)
    alone = [
        Metric("assd", spacing=s)(pred[i : i + 1], true[i : i + 1]) for i, s in enumerate(apart)
    ]
    assert torch.equal(ours, torch.cat(alone))
    assert torch.equal(Metric("assd")(list(pred), list(true), spacing=apart), ours)
    assert float(ours[1, 0]) == pytest.approx(3 * float(Metric("assd")(pred, true)[1, 0]))


def test_psnr_and_ssim_are_monai_s() -> None:
    true = torch.rand(2, 3, 24, 25)
    pred = (true + 0.1 * torch.randn(true.shape)).clamp(0, 1)
    assert torch.allclose(
        Metric("psnr")(pred, true).float(), PSNRMetric(max_val=1)(pred, true), rtol=1e-5
    )
    theirs = SSIMMetric(spatial_dims=2, data_range=1.0)(pred, true)
    assert torch.allclose(Metric("ssim")(pred, true).float(), theirs, atol=1e-5)
    volumes = torch.rand(1, 1, 12, 13, 14), torch.rand(1, 1, 12, 13, 14)
    assert torch.allclose(
        Metric("ssim")(*volumes).float(), SSIMMetric(spatial_dims=3)(*volumes), atol=1e-5
    )
    assert float(Metric("psnr")(true, true)[0, 0]) == 100


def test_what_differs_from_monai_on_purpose() -> None:
    empty, full = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)
    full[..., 1:3, 1:3] = 1
    assert float(Metric("hd95")(empty, full)[0, 0]) == pytest.approx(math.hypot(4, 4))
    assert float(Metric("surface_dice")(empty, empty)[0, 0]) == 1
    assert Metric("dice", num_classes=3)(empty, empty)[0].isnan().all()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dise", {}, "'dise' is unknown. Did you mean 'dice'"),
        ("surface_dice", {"tolerence": 2}, "Did you mean 'tolerance'"),
        ("dice", {"ignore_lable": 2}, "Did you mean 'ignore_label'"),
        ("dice", {"classes": 2}, "no option 'classes'. Did you mean 'num_classes'"),
        ("dice", {"spacing": 2}, "Leave spacing out"),
        ("psnr", {"ignore_label": 2}, "Leave ignore_label out"),
        ("dice", {"num_classes": 1}, "at least 2"),
        ("dice", {"ignore_label": True}, "whole number"),
        ("dice", {"reduction": "mean_batches"}, "Did you mean 'mean_batch'"),
        ("betti_error", {"connectivity": "six"}, "must be a whole number"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Metric(name, **options)
    assert said in str(error.value)


ONE, THREE = torch.zeros(1, 1, 4, 4), torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize(
    ("name", "options", "pred", "true", "said"),
    [
        ("dice", {}, ONE + 0.5, ONE, "y_pred holds 0.5.*Decide first"),
        ("dice", {}, ONE, ONE + 2, "y holds 2.*num_classes="),
        ("dice", {}, ONE + 255, ONE, "y_pred holds 255.*x > 0"),
        ("dice", {"num_classes": 3}, ONE, ONE + 3, "from 0 to 2"),
        ("dice", {}, ONE, ONE - 1, "y holds -1.*ignore_label="),
        ("dice", {}, THREE, ONE, "not one-hot"),
        ("dice", {}, THREE + 1 / 3, ONE, "argmax"),
        ("dice", {"num_classes": 4}, one_hot(ONE, 3), ONE, "num_classes=4"),
        ("dice", {}, one_hot(ONE, 3), one_hot(ONE, 4), "as many in both"),
        ("dice", {}, ONE, torch.zeros(1, 1, 4, 5), "same space"),
        ("dice", {}, ONE, torch.zeros(2, 1, 4, 4), "as many of both"),
        ("dice", {}, ONE, None, "0 of y"),
        ("roc_auc", {}, THREE, ONE, "at most 2"),
        ("roc_auc", {}, ONE, ONE + 2, "y holds 2"),
        ("roc_auc", {}, ONE + torch.nan, ONE, "NaN"),
        ("psnr", {}, THREE + torch.nan, THREE, "NaN"),
        ("hd95", {"spacing": (1, 2, 3)}, ONE, ONE, "2 space axes"),
        ("hd95", {"spacing": 0}, ONE, ONE, "above 0"),
    ],
)
def test_what_means_nothing_is_refused(
    name: str, options: dict[str, Any], pred: Tensor, true: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Metric(name, **options)(y_pred=pred, y=true)


def test_keywords_of_a_call_are_known_or_refused() -> None:
    with pytest.raises(ValueError, match="reads no 'spacing'"):
        Metric("dice")(ONE, ONE, spacing=2)
    with pytest.raises(ValueError, match=r"'spaceing'.*Did you mean 'spacing'"):
        Metric("hd95")(ONE, ONE, spaceing=2)
    with pytest.raises(ValueError, match="got 2 of spacing for 1 items"):
        Metric("hd95")(ONE, ONE, spacing=[[1, 1], [2, 2]])
    with pytest.raises(UserError, match="tolerance_mm"):
        Metric("surface_dice", tolerance_mm=1)(ONE, ONE)
