"""Areas under curves against scikit-learn, frames whose counts can be written down, and pooling
against the concatenation of cases.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.config import ConfigError
from pipeline.metrics import METRICS, better, evaluate, evaluate_frames, pool
from pipeline.metrics.frames import Truth, count
from pipeline.metrics.overlap import specificity
from pipeline.metrics.probability import area_pr, area_roc, pr_auc, roc_auc, tally, tally_halves
from pipeline.records import NamedOptions, UserError

POOLED = [name for name, entry in METRICS.items() if entry.pooled]
ALL = [NamedOptions(name=n) for n in POOLED]


def _case(
    seed: int, shape: tuple[int, ...] = (12, 17), levels: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and a mask that they say something about; few ``levels`` make many ties."""
    draw = np.random.default_rng(seed)
    truth = (draw.random(shape) < 0.3).astype(np.uint8)
    soft = np.clip(0.35 * truth + draw.random(shape) * 0.65, 0, 1).astype(np.float32)
    return (soft if levels is None else np.round(soft * levels) / levels).astype(np.float32), truth


@given(st.integers(0, 10_000), st.sampled_from([None, 3, 20]))
@settings(deadline=None, max_examples=40)
def test_areas_equal_those_of_scikit_learn(seed: int, levels: int | None) -> None:
    soft, truth = _case(seed, levels=levels)
    truth[0, 0], truth[0, 1] = 0, 1
    assert roc_auc(soft, truth)["roc_auc"] == pytest.approx(
        roc_auc_score(truth.ravel(), soft.ravel()), abs=1e-12
    )
    assert pr_auc(soft, truth)["pr_auc"] == pytest.approx(
        average_precision_score(truth.ravel(), soft.ravel()), abs=1e-12
    )


def test_areas_by_hand() -> None:
    truth = np.array([[1, 1, 0, 0]])
    soft = np.array([[0.9, 0.4, 0.4, 0.1]], np.float32)
    # Pairs (foreground, background): three are ranked right, one is a tie.
    assert roc_auc(soft, truth) == {"roc_auc": 3.5 / 4}
    # At 0.9: precision 1 for recall 1/2; at 0.4: precision 2/3 for the other half.
    assert pr_auc(soft, truth)["pr_auc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert roc_auc(1 - soft, truth)["roc_auc"] == 0.5 / 4


def test_areas_of_one_class_alone_have_no_value() -> None:
    soft, truth = _case(0)
    for only in (0, 1):
        assert math.isnan(roc_auc(soft, np.full_like(truth, only))["roc_auc"])
    assert math.isnan(pr_auc(soft, np.zeros_like(truth))["pr_auc"])
    assert pr_auc(soft, np.ones_like(truth))["pr_auc"] == 1
    assert math.isnan(roc_auc(soft, truth, np.zeros(truth.shape, bool))["roc_auc"])


def test_areas_count_valid_voxels_only() -> None:
    soft, truth = _case(1)
    valid = np.random.default_rng(2).random(truth.shape) < 0.5
    assert roc_auc(soft, truth, valid) == roc_auc(soft[valid][None], truth[valid][None])
    assert pr_auc(soft, truth, valid) == pr_auc(soft[valid][None], truth[valid][None])


def test_half_precision_changes_an_area_by_little_and_ends_are_kept() -> None:
    soft, truth = _case(3, (200, 200))
    soft = (soft**6).astype(np.float32)  # most of them small, as a network's are
    soft[0, :2], truth[0, :2] = (0, 1), (0, 1)
    for area in (area_roc, area_pr):
        assert area(tally_halves(soft, truth)) == pytest.approx(area(tally(soft, truth)), abs=1e-4)


def test_specificity_by_hand_and_without_background() -> None:
    truth, found = np.array([[1, 1, 0, 0, 0, 0]]), np.array([[1, 0, 1, 0, 0, 0]])
    assert specificity(found, truth) == {"specificity": 3 / 4}
    assert specificity(found, truth, np.array([[True, True, True, True, False, False]])) == {
        "specificity": 1 / 2
    }
    assert specificity(found, np.ones_like(truth)) == {"specificity": 1.0}
    classes = specificity(np.array([[0, 1, 2, 2]]), np.array([[0, 1, 1, 2]]))
    assert classes == {
        "specificity": pytest.approx((1 + 2 / 3) / 2),
        "specificity_1": 1.0,
        "specificity_2": pytest.approx(2 / 3),
    }


# --- frames ---------------------------------------------------------------------------------------


def test_one_frame_without_a_field_of_view_has_no_suffix() -> None:
    soft, truth = _case(4)
    answer = soft > 0.5
    assert evaluate_frames(ALL, answer, Truth(label=truth), soft) == evaluate(
        ALL, answer, truth, None, soft
    )


def test_three_frames_of_a_drawn_case() -> None:
    """6 x 10 pixels, field of view 4 x 5: in it 6 found, 2 missed, 1 too many; outside 3 too many;
    the frame padded to 10 x 10.
    """
    label, answer, fov = (np.zeros((6, 10), np.uint8) for _ in range(3))
    fov[:4, :5] = 1
    label[0, :4] = label[1, :4] = 1
    answer[0, :4] = answer[1, :2] = 1
    answer[3, 0] = 1
    answer[5, 7:10] = 1
    found = evaluate_frames(ALL[:6], answer, Truth(label=label, fov=fov, padded=(10, 10)))
    assert found["dice_fov"] == 12 / 15
    assert found["dice_full"] == found["dice_padded"] == 12 / 18
    assert [found[f"accuracy_{f}"] for f in ("fov", "full", "padded")] == [
        17 / 20,
        54 / 60,
        94 / 100,
    ]
    assert [found[f"specificity_{f}"] for f in ("fov", "full", "padded")] == [
        11 / 12,
        1 - 4 / 52,
        1 - 4 / 92,
    ]
    assert [found[f"recall_{f}"] for f in ("fov", "full", "padded")] == [6 / 8] * 3


def test_ignored_voxels_count_in_no_frame() -> None:
    label = np.array([[1, 1, 2, 0], [0, 2, 0, 0]], np.uint8)
    answer = np.array([[1, 0, 1, 1], [0, 1, 0, 0]], np.uint8)
    fov = np.array([[1, 1, 1, 1], [0, 0, 0, 0]])
    found = evaluate_frames(
        [NamedOptions(name="accuracy"), NamedOptions(name="dice")],
        answer,
        Truth(label=label, ignore=2, fov=fov),
    )
    assert found == {
        "accuracy_fov": 1 / 3,
        "dice_fov": 0.5,
        "accuracy_full": 4 / 6,
        "dice_full": 0.5,
    }


def test_probabilities_are_zero_in_the_padding() -> None:
    soft, truth = _case(5)
    found = evaluate_frames(
        ALL[6:], soft > 0.5, Truth(label=truth, fov=np.ones_like(truth), padded=(12, 40)), soft
    )
    wide = [np.pad(a, [(0, 0), (0, 23)]) for a in (soft, truth)]
    assert (
        found["roc_auc_padded"]
        == roc_auc(*wide)["roc_auc"]
        > found["roc_auc_full"]
        == found["roc_auc_fov"]
    )
    assert found["pr_auc_padded"] == pytest.approx(found["pr_auc_full"])


def test_an_image_larger_than_the_padded_size_is_not_cut() -> None:
    soft, truth = _case(6)
    found = evaluate_frames(
        ALL[:1], soft > 0.5, Truth(label=truth, fov=np.ones_like(truth), padded=(4, 4))
    )
    assert found["dice_padded"] == found["dice_full"]


@pytest.mark.parametrize(
    ("fov", "problem"), [(np.zeros((12, 17)), "empty"), (np.ones((3, 3)), "has the shape")]
)
def test_a_field_of_view_that_cannot_be_used_is_refused(fov: np.ndarray, problem: str) -> None:
    soft, truth = _case(7)
    with pytest.raises(UserError, match=problem):
        evaluate_frames(ALL[:1], soft > 0.5, Truth(label=truth, fov=fov))


def test_probability_metrics_refuse_an_answer() -> None:
    soft, truth = _case(8)
    with pytest.raises(ConfigError, match=r"roc_auc.*save-soft"):
        evaluate([NamedOptions(name="roc_auc")], soft > 0.5, truth)


@pytest.mark.parametrize(
    "name", ["dice_fov", "val_dice", "dice_2_full", "roc_auc_padded", "specificity"]
)
def test_directions_of_framed_names(name: str) -> None:
    assert better(name) == "higher"
    assert better("hd95_2_fov") == "lower"


# --- pooled ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=4))
@settings(deadline=None, max_examples=25)
def test_pooling_equals_one_image_made_of_all(seeds: list[int]) -> None:
    draw = np.random.default_rng(seeds[0])
    cases = [_case(seed, levels=64) for seed in seeds]  # 64ths are exact in half precision
    fovs = [draw.random(truth.shape) < 0.7 for _, truth in cases]
    for fov in fovs:
        fov[0] = True
    answers = [soft > 0.5 for soft, _ in cases]
    counts = [
        count(a, Truth(label=t, fov=f, padded=t.shape), s)
        for a, (s, t), f in zip(answers, cases, fovs, strict=True)
    ]
    soft, truth = (np.concatenate(arrays) for arrays in zip(*cases, strict=True))
    whole = Truth(label=truth, fov=np.concatenate(fovs), padded=truth.shape)
    expected = evaluate_frames(ALL, np.concatenate(answers), whole, soft)
    assert pool(counts, POOLED) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_pooled_is_not_the_mean_of_images() -> None:
    one = count(np.ones((1, 9), int), Truth(label=np.ones((1, 9), np.uint8)))
    other = count(np.zeros((1, 1), int), Truth(label=np.ones((1, 1), np.uint8)))
    assert pool([one, other], ["dice"]) == {"dice": 2 * 9 / 19}
    assert pool([one, other], ["components", "hd95"]) == {}
    assert pool([], ["dice"]) == {}


def test_pooled_empty_cases_are_those_of_one_image() -> None:
    nothing = np.zeros((2, 3), np.uint8)
    found = pool(
        [count(nothing, Truth(label=nothing))],
        ["dice", "iou", "precision", "recall", "specificity", "accuracy"],
    )
    assert found == evaluate([NamedOptions(name=n) for n in found], nothing, nothing)
    everything = nothing + 1
    missed = pool([count(nothing, Truth(label=everything))], ["precision", "recall", "specificity"])
    assert missed == {"precision": 0.0, "recall": 0.0, "specificity": 1.0}
