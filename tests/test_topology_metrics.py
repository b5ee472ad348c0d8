"""Topology metrics worked out on paper in 2D and 3D, against scikit-image, the competition's
answers and published Betti numbers.
"""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import adapted_rand_error, variation_of_information
from test_metrics import competition_volume

from pipeline import morphology
from pipeline.files import read
from pipeline.metrics import METRICS
from pipeline.metrics.topology import voi_of
from pipeline.records import UserError

FEW = settings(max_examples=25, deadline=None)
SHAPES = st.one_of(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 6)] * 3))
MASKS = SHAPES.flatmap(lambda shape: st.tuples(*[arrays(bool, shape, fill=st.booleans())] * 2))
BOTH_DIMENSIONS = pytest.mark.parametrize("dims", [2, 3])


def line(voxels: str, dims: int) -> np.ndarray:
    """A row of voxels, ``"110.."``, with one background voxel around it."""
    row = np.array([[c == "1" for c in voxels]], dtype=np.uint8)
    return np.pad(row if dims == 2 else row[None], 1)


def ring(at: int, dims: int, size: int = 14) -> np.ndarray:
    """A square of 4 voxels an edge with a hole of 2x2 (in 3D it lies in one slice), its corner at
    ``at`` along every axis.
    """
    labels = np.zeros((size,) * dims, dtype=np.uint8)
    image = labels if dims == 2 else labels[at]
    image[at : at + 4, at : at + 4] = 1
    image[at + 1 : at + 3, at + 1 : at + 3] = 0
    return labels


def shell(at: int, size: int = 14) -> np.ndarray:
    """A cube of 4 voxels an edge with a cavity of 2x2x2."""
    labels = np.zeros((size,) * 3, dtype=np.uint8)
    labels[(slice(at, at + 4),) * 3] = 1
    labels[(slice(at + 1, at + 3),) * 3] = 0
    return labels


# two masks and the answer on paper


@BOTH_DIMENSIONS
def test_cldice_of_two_lines(dims):
    """A line one voxel thick is its own skeleton: 6 of 8 predicted voxels are true, 6 of 10 true
    ones are found.
    """
    prediction, target = line("111111110000", dims), line("001111111111", dims)
    scores = METRICS["cldice"].compute(prediction, target)
    assert scores == pytest.approx(
        {"cldice": 2 / 3, "cldice_precision": 6 / 8, "cldice_sensitivity": 6 / 10}
    )


@BOTH_DIMENSIONS
def test_cldice_does_not_see_thickness_but_sees_gaps(dims):
    target = np.zeros((15,) * dims, dtype=np.uint8)
    target[(7,) * (dims - 1)] = 1
    thick = np.zeros_like(target)
    thick[(slice(6, 9),) * (dims - 1)] = 1
    assert METRICS["dice"].compute(thick, target)["dice"] <= 0.5
    whole = METRICS["cldice"].compute(thick, target)
    assert whole["cldice_sensitivity"] == 1
    assert whole["cldice_precision"] > 0.9  # a skeleton may turn to a corner in its last voxel
    thick[..., 5:8] = 0
    assert METRICS["cldice"].compute(thick, target)["cldice_sensitivity"] == pytest.approx(12 / 15)


@pytest.mark.parametrize("edge", [2, 4, 8])
def test_cldice_of_cubes_that_thinning_deletes(edge):
    """scikit-image leaves nothing of these; they must still be missed when they are not found."""
    cube = np.zeros((20, 12, 12), dtype=np.uint8)
    cube[2 : 2 + edge, 2 : 2 + edge, 2 : 2 + edge] = 1
    both = cube.copy()
    both[15, 2:8, 2] = 1
    assert METRICS["cldice"].compute(cube, cube)["cldice"] == 1
    found = METRICS["cldice"].compute(both - cube, both)
    assert found["cldice_precision"] == 1
    assert found["cldice_sensitivity"] == pytest.approx(6 / 7)


@BOTH_DIMENSIONS
def test_voi_and_adapted_rand_of_a_bridged_gap(dims):
    """One line of 9 voxels for two of 4 with a gap between them."""
    whole, cut = line("111111111", dims), line("111101111", dims)
    bits = 8 / 9 * math.log2(9 / 4) + 1 / 9 * math.log2(9)
    assert METRICS["voi"].compute(whole, cut) == pytest.approx(
        {"voi": bits, "voi_split": 0, "voi_merge": bits}
    )
    assert METRICS["voi"].compute(cut, whole) == pytest.approx(
        {"voi": bits, "voi_split": bits, "voi_merge": 0}
    )
    # ordered pairs of 8 true voxels: 56 predicted together, of which 2 * 12 belong together
    merged = {
        "adapted_rand": 1 - 48 / 80,
        "adapted_rand_precision": 24 / 56,
        "adapted_rand_recall": 1,
    }
    assert METRICS["adapted_rand"].compute(whole, cut) == pytest.approx(merged)
    # of 9 true voxels: 72 belong together, of which 2 * 12 were predicted together; the missed
    # voxel is alone
    split = {
        "adapted_rand": 1 - 48 / 96,
        "adapted_rand_precision": 1,
        "adapted_rand_recall": 24 / 72,
    }
    assert METRICS["adapted_rand"].compute(cut, whole) == pytest.approx(split)


@BOTH_DIMENSIONS
def test_betti_errors_of_a_bridged_gap(dims):
    whole, cut = line("111111111", dims), line("111101111", dims)
    assert METRICS["betti_error"].compute(whole, cut)["betti_error"] == 1
    rest = {f"betti_matching_error_b{k}": 0 for k in range(1, dims)}
    for pair in ((whole, cut), (cut, whole)):
        assert METRICS["betti_matching_error"].compute(*pair) == {
            "betti_matching_error": 1,
            "betti_matching_error_b0": 1,
            **rest,
        }


@BOTH_DIMENSIONS
def test_a_hole_in_another_place_is_an_error_of_matching_only(dims):
    here, there = ring(2, dims), ring(8, dims)
    assert morphology.betti_numbers(here) == (1, 1, 0)[:dims]
    assert METRICS["betti_error"].compute(here, there)["betti_error"] == 0
    error = METRICS["betti_matching_error"].compute(here, there)
    assert (
        error["betti_matching_error"],
        error["betti_matching_error_b0"],
        error["betti_matching_error_b1"],
    ) == (2, 0, 2)
    narrower = here.copy()
    narrower[ring_hole(2, dims)] = 1
    assert morphology.betti_numbers(narrower) == morphology.betti_numbers(here)
    assert METRICS["betti_matching_error"].compute(narrower, here)["betti_matching_error"] == 0


def ring_hole(at: int, dims: int) -> tuple[int | slice, ...]:
    """Two of the four voxels of the hole of a ring."""
    return (*[at] * (dims - 2), at + 1, slice(at + 1, at + 3))


def test_a_cavity_in_another_place_is_an_error_of_matching_only():
    here, there = shell(2), shell(8)
    assert morphology.betti_numbers(here) == (1, 0, 1)
    assert METRICS["betti_error"].compute(here, there)["betti_error"] == 0
    error = METRICS["betti_matching_error"].compute(here, there)
    assert (error["betti_matching_error"], error["betti_matching_error_b2"]) == (2, 2)
    assert METRICS["betti_matching_error"].compute(here, here)["betti_matching_error"] == 0


@BOTH_DIMENSIONS
def test_surface_metrics_of_two_points(dims):
    """3 voxels apart: the facing half of each point's corners lies 2 from the other point's
    corners, the other half 3.
    """
    a, b = (np.zeros((8,) * dims, dtype=np.uint8) for _ in range(2))
    a[(2,) * dims] = b[(5, *(2,) * (dims - 1))] = 1
    shares = [
        METRICS["surface_dice"].compute(a, b, tolerance=t)["surface_dice"] for t in (1.9, 2, 3)
    ]
    assert shares == pytest.approx([0, 0.5, 1])
    assert METRICS["hd95"].compute(a, b) == {"hd95": 3}
    assert METRICS["assd"].compute(a, b) == {"assd": 3}


@BOTH_DIMENSIONS
def test_distances_of_a_line_with_a_stray_point(dims):
    """9 of 10 predicted voxels lie on the target's line, one 4 beside it; of the true voxels all
    are found.
    """
    target = np.zeros((9,) * dims, dtype=np.uint8)
    target[(2,) * (dims - 1)] = 1
    prediction = target.copy()
    prediction[(*(2,) * (dims - 2), 6, 4)] = 1
    assert METRICS["assd"].compute(prediction, target)["assd"] == pytest.approx(4 / (10 + 9))
    # position 0.95 * 9 = 8.55 among the sorted distances 0 x 9, 4
    assert METRICS["hd95"].compute(prediction, target)["hd95"] == pytest.approx(0.55 * 4)


@BOTH_DIMENSIONS
@pytest.mark.parametrize(
    ("name", "both_empty", "one_empty"),
    [
        ("betti_error", 0, 2),
        ("betti_matching_error", 0, 2),
        ("cldice", 1, 0),
        ("voi", 0, 1),
        ("adapted_rand", 0, 1),
        ("surface_dice", 1, 0),
        ("hd95", 0, 4),
        ("assd", 0, 4),
    ],
)
def test_empty_cases(name, both_empty, one_empty, dims):
    empty, points = (np.zeros((5,) * dims, dtype=np.uint8) for _ in range(2))
    points[(0,) * dims] = points[(3,) * dims] = 1
    worst = one_empty * math.sqrt(dims) if one_empty == 4 else one_empty  # distances: the diagonal
    assert METRICS[name].compute(empty, empty)[name] == both_empty
    assert METRICS[name].compute(points, points)[name] == both_empty
    assert METRICS[name].compute(empty, points)[name] == pytest.approx(worst)
    assert METRICS[name].compute(points, empty)[name] == pytest.approx(worst)
    assert (
        METRICS[name].compute(points, empty, np.zeros(empty.shape, dtype=bool))[name] == both_empty
    )


def test_the_parts_of_empty_cases():
    empty, points = np.zeros((2, 1, 3), dtype=np.uint8)
    points[0, ::2] = 1
    assert METRICS["voi"].compute(points, empty) == {"voi": 1, "voi_split": 1, "voi_merge": 0}
    assert METRICS["voi"].compute(empty, points) == {"voi": 1, "voi_split": 0, "voi_merge": 1}
    assert METRICS["cldice"].compute(points, empty) == {
        "cldice": 0,
        "cldice_precision": 0,
        "cldice_sensitivity": 0,
    }
    assert METRICS["adapted_rand"].compute(points, empty) == {
        "adapted_rand": 1,
        "adapted_rand_precision": 0,
        "adapted_rand_recall": 0,
    }
    assert METRICS["adapted_rand"].compute(points, points) == {
        "adapted_rand": 0,
        "adapted_rand_precision": 1,
        "adapted_rand_recall": 1,
    }


def two_classes():
    """A line of class 1, cut in the target, and a line of class 2 that is the same in both."""
    whole, cut = line("111111111", 2), line("111101111", 2)
    return (np.concatenate([first, 2 * second]) for first, second in ((whole, whole), (cut, whole)))


@pytest.mark.parametrize("name", ["cldice", "voi", "adapted_rand", "betti_matching_error"])
def test_several_classes_are_averaged(name):
    """voi and adapted_rand in metrics version 1 only."""
    metric = METRICS[name].version_1 or METRICS[name].compute
    whole, cut = line("111111111", 2), line("111101111", 2)
    of_cut, of_whole = metric(whole, cut)[name], metric(whole, whole)[name]
    expected = {name: (of_cut + of_whole) / 2, f"{name}_1": of_cut, f"{name}_2": of_whole}
    assert metric(*two_classes()) == pytest.approx(expected)


@FEW
@given(
    SHAPES.flatmap(
        lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, 6))] * 2)
    ),
    st.randoms(),
)
def test_numbers_of_instances_are_names(maps, random):
    """Any renumbering of either labeling leaves voi and adapted_rand as they are; scikit-image
    counts the same.
    """
    prediction, target = maps
    names = [np.array([0, *random.sample(range(1, 60000), 6)]) for _ in range(2)]
    renamed = [name[labels] for name, labels in zip(names, maps, strict=True)]
    several = {"classes": (1, 2)}  # of one instance, too
    for name in ("voi", "adapted_rand"):
        assert METRICS[name].compute(*renamed, **several) == pytest.approx(
            METRICS[name].compute(prediction, target, **several)
        )
    counted = (prediction != 0) | (target != 0)
    if counted.any():
        split_merge = variation_of_information(target[counted], prediction[counted])
        found = METRICS["voi"].compute(prediction, target, **several)
        assert [found["voi_split"], found["voi_merge"]] == pytest.approx(split_merge)
    if target.any() and prediction.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            error, _, _ = adapted_rand_error(target, prediction)
        if math.isfinite(error):
            assert METRICS["adapted_rand"].compute(prediction, target, **several)[
                "adapted_rand"
            ] == pytest.approx(error)


# independent references


@FEW
@given(MASKS)
def test_voi_and_adapted_rand_are_those_of_scikit_image(masks):

    prediction, target = masks
    union = prediction | target
    if not union.any():
        return
    labels = [morphology.components(mask)[0] for mask in (target, prediction)]
    split, merge = variation_of_information(*(side[union].astype(int) for side in labels))
    assert voi_of(prediction, target) == pytest.approx((split, merge), abs=1e-12)
    if np.count_nonzero(target) > 1 and prediction.any():
        # Its pairs within predicted segments and within true ones are interchanged, and 0 / 0 is
        # nan.
        with np.errstate(invalid="ignore", divide="ignore"):
            error, recall, precision = adapted_rand_error(*(side.astype(int) for side in labels))
        scores = METRICS["adapted_rand"].compute(prediction, target)
        for key, value in {"": error, "_precision": precision, "_recall": recall}.items():
            assert np.isnan(value) or scores[f"adapted_rand{key}"] == pytest.approx(
                value, abs=1e-12
            )


@FEW
@given(MASKS)
def test_split_and_merge_change_places_with_the_masks(masks):
    prediction, target = masks
    assert voi_of(prediction, target) == pytest.approx(voi_of(target, prediction)[::-1], abs=1e-12)
    assert voi_of(target, target) == (0, 0)


def test_overlaps_are_counted_alike_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    masks = rng.random((2, 12, 9, 7)) < 0.2
    whole = voi_of(*masks)
    monkeypatch.setattr("pipeline.metrics.segments.CHUNK", 150)
    assert voi_of(*masks) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    "family",
    ["random_fields", "sparse_blobs", "salt", "sheets", "tubes", "hollow", "degenerate", "large"],
)
def test_voi_is_the_competition_s(shared_data, family):
    folder = shared_data / "competition_metric"
    expected = json.loads((folder / "expected.json").read_text())
    names = [name for name in expected if name.startswith(family)]
    assert names
    for name in names[:12]:
        with np.load(folder / f"{name if family == 'large' else family}.npz") as archive:
            scores = METRICS["voi"].compute(*competition_volume(archive, name))
        assert scores["voi_split"] == pytest.approx(expected[name]["voi_split"], abs=1e-9, rel=0)
        assert scores["voi_merge"] == pytest.approx(expected[name]["voi_merge"], abs=1e-9, rel=0)


@FEW
@given(MASKS)
def test_betti_matching_error_lies_between_betti_error_and_the_sum_of_all_features(masks):
    """A match takes one feature from each side, so no fewer than the difference of the numbers can
    be left over.
    """
    prediction, target = masks
    least = METRICS["betti_error"].compute(prediction, target)["betti_error"]
    most = sum(map(sum, (morphology.betti_numbers(mask) for mask in masks)))
    assert (
        least
        <= METRICS["betti_matching_error"].compute(prediction, target)["betti_matching_error"]
        <= most
    )


def test_betti_numbers_of_the_mortar_masks_are_the_published_ones(shared_data):
    """8 neighbours for mortar, 4 for brick; brick that meets the border of the image is no hole."""
    folder = shared_data / "topomortar"
    with (folder / "betti_numbers.csv").open(newline="") as stream:
        published = {
            row["ID"]: (int(row["Betti0"]), int(row["Betti1"])) for row in csv.DictReader(stream)
        }
    masks = sorted((folder / "test" / "masks").glob("*.png"))
    assert len(masks) == 25
    empty = np.zeros((512, 512), dtype=np.uint8)
    four_neighbours_differ = False
    for path in masks:
        mask = read(path, 2, labels=True)[0][0]
        numbers = METRICS["betti_error"].compute(mask, empty, connectivity=26)
        assert (numbers["betti_error_b0"], numbers["betti_error_b1"]) == published[path.stem]
        four_neighbours_differ |= morphology.betti_numbers(mask, 6) != published[path.stem]
    assert four_neighbours_differ


def test_connectivities_without_betti_numbers_are_refused():
    with pytest.raises(UserError, match="connectivity is 18"):
        METRICS["betti_error"].compute(line("1", 2), line("1", 2), connectivity=18)
