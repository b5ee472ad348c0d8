"""Lesion-wise F1 and volume error: shapes of known number and volume, a second implementation by
scipy, and what neither may depend on.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_models import nifti

import pipeline as pl
from pipeline import evaluate as command
from pipeline import files
from pipeline.config import ConfigError
from pipeline.metrics import METRICS, in_millimetres, units
from pipeline.metrics.lesions import lesion_f1, volume_error
from pipeline.metrics.names import display
from pipeline.records import NamedOptions, UserError
from pipeline.scoring import worlds

FEW = settings(max_examples=40, deadline=None)
SPACING = (5.0, 0.5, 0.8)
"""Millimetres; a voxel has 2 mm³."""
SHAPES = st.one_of(st.tuples(*[st.integers(1, 7)] * 2), st.tuples(*[st.integers(1, 5)] * 3))
MASKS = SHAPES.flatmap(lambda s: st.tuples(*[arrays(np.uint8, s, elements=st.integers(0, 1))] * 2))
LABELS = SHAPES.flatmap(lambda s: st.tuples(*[arrays(np.uint8, s, elements=st.integers(0, 2))] * 2))


def boxes(*places: tuple[tuple[int, int], ...], size: tuple[int, ...] = (8, 30, 30)) -> np.ndarray:
    out = np.zeros(size, np.uint8)
    for place in places:
        out[tuple(slice(*side) for side in place)] = 1
    return out


def ball(radius: float, spacing: tuple[float, ...], size: tuple[int, ...]) -> np.ndarray:
    """A ball in millimetres around the middle of an array."""
    axes = [(np.arange(n) - n // 2) * s for n, s in zip(size, spacing, strict=True)]
    square = sum(a**2 for a in np.meshgrid(*axes, indexing="ij"))
    return (square <= radius**2).astype(np.uint8)


FIRST, SECOND, THIRD = ((0, 2), (0, 5), (0, 5)), ((4, 6), (0, 4), (20, 24)), ((7, 8),) * 3


# --- lesions of known number ----------------------------------------------------------------------


def test_found_missed_and_false_lesions_are_counted_whatever_their_size() -> None:
    truth = boxes(FIRST, SECOND, THIRD)
    answer = boxes(((1, 2), (4, 9), (4, 9)), ((4, 6), (0, 4), (20, 24)), ((0, 1), (25, 30), (0, 5)))
    assert lesion_f1(answer, truth) == {
        "lesion_f1": 4 / 6,
        "lesion_precision": 2 / 3,
        "lesion_recall": 2 / 3,
        "lesions_true": 3.0,
        "lesions_predicted": 3.0,
    }
    assert lesion_f1(answer, truth, overlap=0.1)["lesion_f1"] == 2 / 6, "a corner is too little"
    assert lesion_f1(answer, truth, iou=1.0)["lesion_f1"] == 2 / 6
    assert lesion_f1(answer, truth, min_size=2)["lesion_recall"] == 1.0


def test_one_answer_may_find_several_lesions_but_is_one_partner() -> None:
    truth = np.array([[1, 1, 0, 1, 1, 0, 0, 0]])
    answer = np.array([[1, 1, 1, 1, 1, 0, 0, 0]])
    assert lesion_f1(answer, truth)["lesion_f1"] == 1.0
    pair = lesion_f1(answer, truth, iou=0.4)
    assert (pair["lesion_f1"], pair["lesion_recall"]) == (2 / 3, 0.5)
    parts = lesion_f1(truth, answer, overlap=0.8)
    assert (parts["lesion_recall"], parts["lesion_precision"]) == (1.0, 1.0), "together 4 of 5"


def test_pairs_are_as_many_as_can_be() -> None:
    """The best partner of the first true lesion is the only one of the second."""
    truth, answer = np.zeros((2, 1, 16), np.uint8)
    truth[0, 2:10], truth[0, 12:15] = 1, 1
    answer[0, 0:5], answer[0, 6:14] = 1, 1
    assert lesion_f1(answer, truth, iou=0.2)["lesion_f1"] == 1.0
    assert lesion_f1(answer, truth, iou=0.23)["lesion_f1"] == 0.5


def test_connectivity_is_that_of_the_corners_unless_said_otherwise() -> None:
    diagonal = np.eye(3, dtype=np.uint8)
    found = [lesion_f1(diagonal, diagonal, connectivity=c)["lesions_true"] for c in (6, 18, 26)]
    assert found == [3, 1, 1]
    assert lesion_f1(diagonal, diagonal)["lesions_true"] == 1
    with pytest.raises(UserError, match="connectivity is 8"):
        lesion_f1(diagonal, diagonal, connectivity=8)


@pytest.mark.parametrize("iou", [None, 0.5])
def test_empty_maps_are_those_of_dice(iou: float | None) -> None:
    none, one = np.zeros((2, 3, 3), np.uint8), np.ones((2, 3, 3), np.uint8)
    for answer, truth in itertools.product((none, one), repeat=2):
        found = lesion_f1(answer, truth, iou=iou)
        wanted = METRICS["dice"].compute(answer, truth)["dice"]
        shown = [found[k] for k in ("lesion_f1", "lesion_precision", "lesion_recall")]
        assert shown == [wanted] * 3
    assert lesion_f1(one, none, min_size=99)["lesion_f1"] == 1.0, "too small to count"
    classes = lesion_f1(one, one, classes=(1, 2))
    assert classes["lesion_f1"] == classes["lesion_f1_1"] == 1.0
    assert math.isnan(classes["lesion_f1_2"])
    assert classes["lesions_true"] == 1.0


@FEW
@given(LABELS)
def test_keys_are_the_same_in_every_case_of_a_set(maps: tuple[np.ndarray, np.ndarray]) -> None:
    for compute in (lesion_f1, volume_error):
        full = compute(np.array([[1, 0, 2]]), np.array([[1, 0, 2]]), classes=(1, 2))
        assert list(compute(*maps, classes=(1, 2))) == list(full)
        nothing = np.zeros((2, 2), np.uint8)
        assert list(compute(nothing, nothing, classes=(1, 2))) == list(full)


# --- a second implementation ----------------------------------------------------------------------

STRUCTURES = {6: 1, 18: 2, 26: 3}


def reference(answer: np.ndarray, truth: np.ndarray, **options: Any) -> tuple[int, int, int]:
    """TP, FP and FN, lesion by lesion with scipy."""
    structure = scipy.ndimage.generate_binary_structure(
        truth.ndim, min(truth.ndim, STRUCTURES[options["connectivity"]])
    )
    sides = []
    for mask in (answer, truth):
        labels, count = scipy.ndimage.label(mask, structure)
        lesions = [set(np.flatnonzero(labels == n + 1).tolist()) for n in range(count)]
        sides.append([one for one in lesions if len(one) >= options["min_size"]])
    predicted, true = sides
    if options["iou"] is not None:
        good = [[len(p & t) / len(p | t) >= options["iou"] for p in predicted] for t in true]
        tp = most_pairs(good, frozenset())
        return tp, len(predicted) - tp, len(true) - tp
    share = options["overlap"] or 0.0

    def hit(one: set[int], others: list[set[int]]) -> bool:
        shared = len(one & set().union(*others))
        return shared > 0 and shared / len(one) >= share

    found = sum(hit(t, predicted) for t in true)
    return found, sum(not hit(p, true) for p in predicted), len(true) - found


def most_pairs(good: list[list[bool]], taken: frozenset[int]) -> int:
    """Exhaustive."""
    if not good:
        return 0
    first, *rest = good
    free = [p for p, fits in enumerate(first) if fits and p not in taken]
    return max([most_pairs(rest, taken), *(1 + most_pairs(rest, taken | {p}) for p in free)])


@FEW
@given(
    MASKS,
    st.sampled_from([6, 18, 26]),
    st.sampled_from([(None, None), (0.3, None), (0.5, None), (1.0, None)])
    | st.sampled_from([(None, 0.1), (None, 0.25), (None, 0.5), (None, 0.6)]),
    st.integers(0, 4),
)
def test_lesions_are_matched_as_scipy_and_sets_match_them(
    maps: tuple[np.ndarray, np.ndarray],
    connectivity: int,
    by: tuple[float | None, float | None],
    min_size: int,
) -> None:
    options = {
        "connectivity": connectivity,
        "overlap": by[0],
        "iou": by[1],
        "min_size": min_size,
    }
    tp, fp, fn = reference(*maps, **options)
    found = lesion_f1(*maps, **options)
    assert found["lesion_f1"] == (2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0)
    assert found["lesions_true"] == tp + fn
    if tp + fn:
        assert found["lesion_recall"] == tp / (tp + fn)
    if tp + fp:
        assert found["lesion_precision"] == tp / (tp + fp)


@FEW
@given(st.integers(1, 400), st.integers(0, 2**20))
def test_above_one_half_pairs_are_those_of_panoptic_quality(count: int, seed: int) -> None:
    """Unique pairs: a greedy search finds the same number."""
    rng = np.random.default_rng(seed)
    truth, answer = (np.zeros((3, 40), np.uint8) for _ in range(2))
    for start in rng.integers(0, 36, 6):
        truth[1, start : start + 4] = 1
        answer[1, start + rng.integers(-1, 2) : start + 3] = 1
    tp, fp, fn = reference(
        answer, truth, connectivity=26, iou=0.51, overlap=None, min_size=count % 3
    )
    found = lesion_f1(answer, truth, iou=0.51, min_size=count % 3)["lesion_f1"]
    assert found == (2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0)


@FEW
@given(LABELS, st.randoms(use_true_random=False), st.sampled_from([None, 0.4]))
def test_flips_orders_and_names_of_classes_change_nothing(
    maps: tuple[np.ndarray, np.ndarray], random: Any, iou: float | None
) -> None:
    dims = maps[0].ndim
    order, spacing = random.sample(range(dims), dims), SPACING[:dims]
    flipped = tuple(a for a in range(dims) if random.random() < 0.5)
    moved = [np.flip(m, flipped).transpose(order) for m in maps]
    size = {"min_mm3": 4.0} if dims == 3 else {"min_size": 2}
    more = {"classes": (1, 2)}
    for compute, options in ((lesion_f1, {"iou": iou, **size}), (volume_error, {})):
        known = compute(*maps, **options, **more, spacing=spacing)
        found = compute(*moved, **options, **more, spacing=tuple(spacing[a] for a in order))
        assert found == pytest.approx(known, nan_ok=True)
        renamed = [np.array([0, 2, 1], np.uint8)[m] for m in maps]
        swapped = compute(*renamed, **options, **more, spacing=spacing)
        name = next(iter(known))
        assert swapped[f"{name}_1"] == pytest.approx(known[f"{name}_2"], nan_ok=True)
        assert swapped[name] == pytest.approx(known[name], nan_ok=True)


def test_ignored_voxels_are_background() -> None:
    truth = boxes(FIRST, SECOND)
    valid = np.ones(truth.shape, bool)
    valid[4:] = False
    found = lesion_f1(np.ones_like(truth), truth, valid)
    assert found["lesions_true"] == found["lesion_f1"] == 1.0
    assert volume_error(truth, truth, valid)["volume_true"] == 50.0


# --- sizes in millimetres -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_lesion_of_exactly_the_least_volume_counts(kind: Any) -> None:
    spacing = tuple(float(kind(s)) for s in (0.7, 0.3, 1.1))
    truth = boxes(FIRST, SECOND)  # 50 and 32 voxels
    volume = 0.7 * 0.3 * 1.1
    numbers = [
        lesion_f1(truth, truth, min_mm3=n * volume, spacing=spacing)["lesions_true"]
        for n in (0, 31.9, 32, 32.1, 50, 50.1)
    ]
    assert numbers == [2, 2, 2, 1, 1, 0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_mm3": 5.0}, "min_mm3 is 5.0, but the files carry no unit.*Use min_size"),
        ({"min_mm3": 5.0, "min_size": 3}, "min_size is 3 voxels and min_mm3 5.0"),
        ({"min_mm3": -1.0, "spacing": SPACING}, "min_mm3: -1.0 mm³ is no volume"),
        ({"min_mm3": math.inf, "spacing": SPACING}, "inf mm³ is no volume"),
        ({"min_size": -1}, "min_size is -1"),
        ({"overlap": 0.5, "iou": 0.5}, "overlap is 0.5 and iou 0.5. Give one"),
        ({"overlap": 1.5}, "overlap is 1.5"),
        ({"iou": 0.0}, "iou is 0.0"),
    ],
)
def test_options_that_say_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    mask = boxes(FIRST)
    with pytest.raises(UserError, match=words):
        lesion_f1(mask, mask, **options)


def test_a_picture_has_no_volume() -> None:
    mask = np.ones((4, 4), np.uint8)
    with pytest.raises(UserError, match="2 space axes"):
        lesion_f1(mask, mask, min_mm3=1.0, spacing=(1.0, 1.0))
    assert volume_error(mask, mask, spacing=(0.5, 0.5))["volume_true"] == 16.0


# --- volumes --------------------------------------------------------------------------------------


def test_the_volume_of_a_ball_is_in_millilitres() -> None:
    size = (13, 130, 82)
    truth, answer = ball(30.0, SPACING, size), ball(24.0, SPACING, size)
    found = volume_error(answer, truth, spacing=SPACING)
    assert found["volume_true"] == pytest.approx(4 / 3 * math.pi * 3**3, rel=0.02)
    assert found["volume_predicted"] == pytest.approx(4 / 3 * math.pi * 2.4**3, rel=0.02)
    assert found["volume_error"] == pytest.approx(1 - 0.8**3, abs=0.02)
    assert found["volume_bias"] == -found["volume_error"]
    larger = volume_error(truth, answer, spacing=SPACING)
    assert larger["volume_bias"] == larger["volume_error"] > 0
    assert volume_error(answer, truth)["volume_true"] == np.count_nonzero(truth)


def test_volumes_of_classes_are_summed_and_errors_averaged() -> None:
    truth, answer = np.array([[1, 1, 2, 2, 2, 2, 0]]), np.array([[1, 0, 2, 2, 2, 2, 2]])
    found = volume_error(answer, truth, classes=(1, 2, 3))
    shown = [found[f"volume_error{end}"] for end in ("", "_1", "_2")]
    assert shown == [0.375, 0.5, 0.25]
    assert [found[f"volume_bias{end}"] for end in ("", "_1", "_2")] == [-0.125, -0.5, 0.25]
    assert (found["volume_true"], found["volume_predicted"]) == (6.0, 6.0)
    assert math.isnan(found["volume_error_3"])
    assert math.isnan(found["volume_true_3"])


def test_without_true_volume_there_is_no_error() -> None:
    none, one = np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8)
    for answer in (none, one):
        found = volume_error(answer, none)
        assert math.isnan(found["volume_error"])
        assert math.isnan(found["volume_bias"])
        assert found["volume_predicted"] == np.count_nonzero(answer)
    assert volume_error(none, one)["volume_error"] == 1.0


# --- through the doors ----------------------------------------------------------------------------


def test_units_stand_beside_the_numbers() -> None:
    parts = [NamedOptions(name="volume_error"), NamedOptions(name="lesion_f1")]
    assert units(parts, spacing=True) == {"volume_true": "ml", "volume_predicted": "ml"}
    assert set(units(parts, spacing=True, dims=2).values()) == {"voxels"}
    assert display("volume_true_1", {1: "Tumour"}, units(parts, True)) == "volume_true Tumour [ml]"
    assert display("volume_error", {}, units(parts, True)) == "volume_error"
    assert in_millimetres(parts[:1])
    assert not in_millimetres(parts[1:])
    assert in_millimetres([NamedOptions(name="lesion_f1", options={"min_mm3": 3.0})])


def test_a_run_without_units_is_told_of_the_option_in_voxels() -> None:
    with pytest.raises(UserError, match=r"min_mm3 needs .* Use min_size \(voxels\)"):
        worlds.require_millimetres(
            [NamedOptions(name="lesion_f1", options={"min_mm3": 3.0})], ["a"]
        )


def test_the_function_and_the_module_take_spacing() -> None:
    truth = boxes(FIRST, THIRD)
    found = pl.score(truth, truth, "lesion_f1:min_mm3=10", spacing=SPACING)
    assert found["lesions_true"] == 1.0
    metric = pl.Metric("lesion_f1", min_mm3=10, spacing=SPACING)
    batch = torch.from_numpy(truth)[None, None]
    metric(y_pred=batch, y=batch)
    assert metric.values()["lesions_true"] == 1.0
    with pytest.raises(ConfigError, match="Did you mean 'min_mm3'"):
        pl.Metric("lesion_f1", min_mm=10)


def test_the_command_scores_lesions_and_names_cases_without_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    affine = np.diag([0.5, 0.8, 5.0, 1.0])
    truth = boxes(FIRST, THIRD).transpose(1, 2, 0)
    for name, label in (("a", truth), ("b", np.zeros_like(truth))):
        nifti(tmp_path / "dst" / f"{name}.nii.gz", label, affine)
        nifti(tmp_path / "answers" / f"{name}.nii.gz", truth, affine)
    words = ["--predictions", tmp_path / "answers", "--labels", tmp_path / "dst", "--out"]
    words += [tmp_path / "out.json", "--workers", 1, "--metrics", "lesion_f1:min_mm3=10"]
    assert command.main([*map(str, words), "volume_error"]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["units"] == {"volume_true": "ml", "volume_predicted": "ml"}
    first, second = (found["cases"][i] for i in "ab")
    assert (first["lesion_f1"], first["lesions_true"]) == (1.0, 1.0)
    assert first["volume_true"] == pytest.approx(0.102)
    assert (second["lesion_f1"], second["volume_error"]) == (0.0, None)
    assert found["mean"]["volume_error"] == 0.0
    assert "its mean lacks 1 cases: b" in capsys.readouterr().out


def test_the_command_refuses_millimetres_of_files_without(tmp_path: Path) -> None:
    for folder in ("answers", "dst"):
        (tmp_path / folder).mkdir()
        files.write(tmp_path / folder / "a.npy", boxes(FIRST)[None])
    words = ["--predictions", tmp_path / "answers", "--labels", tmp_path / "dst"]
    words += ["--workers", 1, "--metrics", "lesion_f1:min_mm3=10"]
    assert command.main([*map(str, words), "--out", str(tmp_path / "out.json")]) != 0
