"""Metrics worked out on paper, against scikit-image and MONAI, and against the competition's own
answers.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.config import ConfigError
from pipeline.metrics import METRICS, better, directions, evaluate, names_of, surface
from pipeline.metrics.context import MetricContext
from pipeline.metrics.image import intensities
from pipeline.records import NamedOptions, UserError

FEW = settings(max_examples=20, deadline=None)
SHAPES = st.one_of(st.tuples(*[st.integers(1, 8)] * 2), st.tuples(*[st.integers(1, 6)] * 3))
TOPOLOGY = ("components", "betti_error", "betti_matching_error", "cldice", "voi", "adapted_rand")
LABELS = (
    "dice",
    "iou",
    "precision",
    "recall",
    "accuracy",
    *TOPOLOGY,
    "surface_dice",
    "hd95",
    "assd",
)
IMAGES = ("mae", "psnr", "ssim")


def pairs(largest: int) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Prediction, target and valid mask of one shape."""

    def of_shape(shape):
        labels = arrays(np.uint8, shape, elements=st.integers(0, largest))
        return st.tuples(labels, labels, arrays(bool, shape))

    return SHAPES.flatmap(of_shape)


def score(name: str, *args: np.ndarray, **options: float | str) -> float:
    return METRICS[name].compute(*args, **options)[name]


def plane(at: int, n: int = 24, dims: int = 3, thickness: int = 1) -> np.ndarray:
    labels = np.zeros((n,) * dims, dtype=np.uint8)
    labels[at : at + thickness] = 1
    return labels


@pytest.mark.parametrize("name", [*LABELS, *IMAGES])
def test_a_metric_s_own_name_is_its_first_key_and_begins_all_others(name):
    shape = (12, 12, 12) if name in LABELS else (2, 12, 12)
    truth = np.zeros(shape, dtype=np.float32 if name in IMAGES else np.uint8)
    truth[..., 3:5] = 1
    scores = METRICS[name].compute(truth, truth)
    assert next(iter(scores)) == name
    assert all(key.startswith(name) for key in scores)
    assert all(type(value) is float for value in scores.values())


# regions


def test_region_metrics_of_two_bars_on_paper():
    prediction, target = np.zeros((2, 1, 10), dtype=np.uint8)
    prediction[0, :4] = 1  # 4 voxels, 3 of them right
    target[0, 1:7] = 1  # 6 voxels
    expected = {
        "dice": 6 / 10,
        "iou": 3 / 7,
        "precision": 3 / 4,
        "recall": 3 / 6,
        "accuracy": 6 / 10,
    }
    parts = [NamedOptions(name=name) for name in expected]
    assert evaluate(parts, prediction, target) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "both_empty", "one_empty"),
    [
        ("dice", 1, 0),
        ("iou", 1, 0),
        ("precision", 1, 0),
        ("recall", 1, 0),
        ("surface_dice", 1, 0),
        ("hd95", 0, math.sqrt(3 * 16)),
        ("assd", 0, math.sqrt(3 * 16)),
    ],
)
def test_empty_cases(name, both_empty, one_empty):
    empty, point = np.zeros((2, 5, 5, 5), dtype=np.uint8)
    point[2, 2, 2] = 1
    assert score(name, empty, empty) == both_empty
    assert score(name, empty, point) == pytest.approx(one_empty)
    assert score(name, point, empty) == pytest.approx(one_empty)
    assert score(name, point, empty, np.zeros(empty.shape, dtype=bool)) == both_empty
    assert score("accuracy", point, empty, np.zeros(empty.shape, dtype=bool)) == 1


def test_several_classes_are_averaged_over_those_that_occur():
    prediction = np.array([[1, 1, 2, 4]], dtype=np.uint8)
    target = np.array([[1, 0, 2, 0]], dtype=np.uint8)
    scores = METRICS["dice"].compute(prediction, target)
    assert scores == pytest.approx(
        {"dice": (2 / 3 + 1 + 0) / 3, "dice_1": 2 / 3, "dice_2": 1, "dice_4": 0}
    )
    assert METRICS["accuracy"].compute(prediction, target) == {"accuracy": 0.5}
    surface = METRICS["surface_dice"].compute(prediction, target, tolerance=0)
    assert list(surface) == ["surface_dice", "surface_dice_1", "surface_dice_2", "surface_dice_4"]
    assert (surface["surface_dice_2"], surface["surface_dice_4"]) == (1, 0)


@FEW
@given(pairs(largest=1))
def test_region_metrics_agree_with_each_other(maps):
    prediction, target, valid = maps
    dice, iou = score("dice", *maps), score("iou", *maps)
    assert dice == pytest.approx(2 * iou / (1 + iou))
    p, r = score("precision", *maps), score("recall", *maps)
    assert dice == pytest.approx(2 * p * r / (p + r) if p + r else 0)
    assert score("precision", *maps) == score("recall", target, prediction, valid)


@pytest.mark.parametrize("name", LABELS)
@FEW
@given(maps=pairs(largest=3), garbage=st.integers(0, 9))
def test_ignored_voxels_change_nothing(name, maps, garbage):
    prediction, target, valid = maps
    expected = METRICS[name].compute(prediction, target, valid)
    noise = np.random.default_rng(garbage).integers(0, 5, (2, *valid.shape), dtype=np.uint8)
    spoilt = [
        np.where(valid, labels, other)
        for labels, other in zip((prediction, target), noise, strict=True)
    ]
    assert METRICS[name].compute(*spoilt, valid) == expected


@pytest.mark.parametrize(
    "name", sorted(set(LABELS) - {"precision", "recall", "components", "adapted_rand"})
)
@FEW
@given(maps=pairs(largest=2))
def test_symmetric_metrics_and_the_best_value(name, maps):
    prediction, target, valid = maps
    assert score(name, prediction, target, valid) == pytest.approx(
        score(name, target, prediction, valid), rel=1e-12
    )
    best = 1 if better(name) == "higher" else 0
    assert score(name, target, target, valid) == best
    assert score(name, prediction, target, valid) >= 0
    assert best == 0 or score(name, prediction, target, valid) <= 1


def test_components_and_betti_numbers_of_both():
    sheet = plane(10, thickness=2)
    pierced = sheet.copy()
    pierced[:, 5, 5] = pierced[:, 9, 9] = 0
    pierced[0, 0, 0] = 1
    assert METRICS["components"].compute(pierced, sheet) == {"components": 2, "components_true": 1}
    assert METRICS["betti_error"].compute(pierced, sheet) == {
        "betti_error": 3,
        "betti_error_b0": 2,
        "betti_error_b0_true": 1,
        "betti_error_b1": 2,
        "betti_error_b1_true": 0,
        "betti_error_b2": 0,
        "betti_error_b2_true": 0,
    }
    assert score("betti_error", pierced[10], sheet[10]) == 2


# surfaces


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("distance", [1, 2, 3, 5])
def test_surface_dice_of_parallel_planes(dims, distance):
    """Planes from face to face, ``distance`` apart: away from their rims every element lies exactly
    that far from the other.
    """
    a, b = plane(10, dims=dims), plane(10 + distance, dims=dims)
    reach = distance - 0.01
    if distance == 1:
        # the two planes share the elements between them, so half of each surface is at distance 0
        assert score("surface_dice", a, b, tolerance=reach) == pytest.approx(0.5, abs=0.1)
    else:
        # of the near sides, distance - 1 apart, both are within reach; of the far sides none is
        assert score("surface_dice", a, b, tolerance=distance - 1) == pytest.approx(0.5, abs=0.1)
        assert score("surface_dice", a, b, tolerance=distance - 1.01) < 0.1
    assert score("surface_dice", a, b, tolerance=distance) == 1
    assert score("surface_dice", a, b, tolerance=reach) < 0.7


@pytest.mark.parametrize(
    ("offset", "tolerance"),
    [((3, 0, 0), 2), ((3, 3, 0), math.sqrt(8)), ((3, 3, 3), math.sqrt(12)), ((0, 4, 0), 3)],
)
def test_surface_dice_of_two_single_voxels(offset, tolerance):
    """A voxel has 8 elements, at its corners; those that face the other voxel lie one edge nearer
    along every axis between them.
    """
    a, b = np.zeros((2, 9, 9, 9), dtype=np.uint8)
    a[2, 2, 2] = 1
    b[tuple(2 + d for d in offset)] = 1
    facing = 2 ** -sum(d > 0 for d in offset)
    assert score("surface_dice", a, b, tolerance=tolerance) == pytest.approx(facing)
    assert score("surface_dice", a, b, tolerance=tolerance - 0.01) == 0
    assert score("surface_dice", a, b, tolerance=math.hypot(*offset)) == 1


@pytest.mark.parametrize("dims", [2, 3])
def test_the_inside_of_a_body_is_no_surface(dims):
    outer, inner = (np.zeros((20,) * dims, dtype=np.uint8) for _ in range(2))
    outer[(slice(2, 18),) * dims] = 1
    inner[(slice(8, 12),) * dims] = 1
    assert score("surface_dice", inner, outer, tolerance=5.9) == 0


def test_surface_dice_weighs_elements_by_area():
    """A block beside a far voxel of its own: 8 corners of sqrt(3) / 8 each are missed, in 2D 4 of
    sqrt(1/2).
    """
    for dims, corner, count in ((3, math.sqrt(3) / 8, 8), (2, math.sqrt(0.5), 4)):
        target = np.zeros((30,) * dims, dtype=np.uint8)
        target[(slice(2, 6),) * dims] = 1
        speckled = target.copy()
        speckled[(25,) * dims] = 1
        missed = corner * count
        plain = METRICS["surface_dice"].compute(target, speckled)["surface_dice"]
        block = _surface_of_a_block(4, dims)
        assert plain == pytest.approx(2 * block / (2 * block + missed), rel=1e-12)


def _surface_of_a_block(n: int, dims: int) -> float:
    """n voxels on an edge, on the dual grid: (n - 1)^2 a face, n - 1 bevelled pieces an edge, a
    bevelled triangle a corner.
    """
    if dims == 2:
        return 4 * (n - 1) + 4 * math.sqrt(0.5)
    return 6 * (n - 1) ** 2 + 12 * (n - 1) * math.sqrt(0.5) + 8 * math.sqrt(3) / 8


def competition_volume(archive, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = tuple(archive[f"{name}.shape"])
    prediction, foreground, ignored = (
        np.unpackbits(archive[f"{name}.{key}"], count=int(np.prod(shape))).reshape(shape)
        for key in ("pred", "fg", "ignore")
    )
    return prediction, np.where(ignored, 2, foreground).astype(np.uint8), ignored == 0


@pytest.mark.parametrize(
    "family",
    ["random_fields", "sparse_blobs", "salt", "sheets", "tubes", "hollow", "degenerate", "large"],
)
def test_surface_dice_is_the_competition_s(shared_data, family):
    folder = shared_data / "competition_metric"
    expected = json.loads((folder / "expected.json").read_text())
    names = [name for name in expected if name.startswith(family)]
    assert names
    for name in names[:12]:
        with np.load(folder / f"{name if family == 'large' else family}.npz") as archive:
            prediction, target, valid = competition_volume(archive, name)
        assert score("surface_dice", prediction, target, valid) == pytest.approx(
            expected[name]["surface_dice"], abs=1e-9, rel=0
        )


def test_distances_between_surfaces_on_paper():
    a, b = plane(5), plane(9)
    assert METRICS["hd95"].compute(a, b) == {"hd95": 4}
    assert METRICS["assd"].compute(a, b) == {"assd": 4}
    thick = plane(
        5, thickness=3
    )  # its surface voxels are two planes and the rim between them: 0 and 2 away from a, the rim 1
    rim = 4 * (24 - 1)
    away = 24 * 24 * 2 + rim * 1
    assert score("assd", thick, a) == pytest.approx(away / (3 * 24 * 24 + rim))
    assert score("hd95", thick, a) == 2


@FEW
@given(pairs(largest=1))
def test_distances_are_those_of_monai(maps):
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_distance import compute_average_surface_distance

    prediction, target, _ = maps
    if not (prediction.any() and target.any()):
        return
    ours = [torch.from_numpy(m)[None, None] for m in (prediction, target)]
    hausdorff = compute_hausdorff_distance(*ours, include_background=True, percentile=95)
    average = compute_average_surface_distance(*ours, include_background=True, symmetric=True)
    # MONAI finds a percentile's place among the distances in float32, so a value near 0 is off by
    # more than its own rounding.
    assert score("hd95", prediction, target) == pytest.approx(hausdorff.item(), rel=1e-5, abs=1e-5)
    assert score("assd", prediction, target) == pytest.approx(average.item(), rel=1e-5)


# images


def picture(shape: tuple[int, ...] = (3, 24, 30), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def test_errors_of_a_constant_offset():
    target = picture() * 0.5
    assert score("mae", target + 0.1, target) == pytest.approx(0.1, rel=1e-5)
    assert score("psnr", target + 0.1, target) == pytest.approx(20, rel=1e-5)
    assert score("psnr", (target + 0.1) * 255, target * 255, peak=255) == pytest.approx(
        20, rel=1e-5
    )
    assert score("psnr", target, target) == 100
    assert score("ssim", target, target) == 1


def test_image_metrics_are_those_of_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    prediction, target = picture(seed=1), picture(seed=2)
    assert score("psnr", prediction, target) == pytest.approx(
        peak_signal_noise_ratio(target, prediction, data_range=1), rel=1e-5
    )
    options = {
        "data_range": 1,
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
    }
    channels = [
        structural_similarity(p.astype(float), t.astype(float), **options)
        for p, t in zip(prediction, target, strict=True)
    ]
    assert score("ssim", prediction, target) == pytest.approx(np.mean(channels))
    volume = picture((1, 12, 13, 14))
    assert score("ssim", volume, volume * 0.9) == pytest.approx(
        structural_similarity(volume[0].astype(float), volume[0].astype(float) * 0.9, **options),
        rel=1e-5,
    )


def natural(seed: int = 0) -> np.ndarray:
    """Smooth colours with edges, whose channels resemble each other, as those of photographs do."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :48] / 10
    grey = 0.5 + 0.2 * np.sin(y * 2 + x) + 0.2 * ((x - 2) ** 2 + (y - 2) ** 2 < 1.5)
    return np.clip(
        grey * np.array([1.0, 0.9, 0.7])[:, None, None] + draw.normal(0, 0.01, (3, *grey.shape)),
        0,
        1,
    ).astype(np.float32)


def spoilt(target: np.ndarray, strength: float = 0.08) -> np.ndarray:
    return np.clip(
        target + np.random.default_rng(9).normal(0, strength, target.shape), 0, 1
    ).astype(np.float32)


@pytest.mark.parametrize("shape", [(3, 24, 30), (1, 15, 13), (3, 5, 7)])
@pytest.mark.parametrize("peak", [1.0, 255.0])
def test_the_3d_kernel_is_scikit_images_on_borders_repeated_outwards(shape, peak):
    from skimage.metrics import structural_similarity

    prediction, target = (picture(shape, seed).astype(float) * peak for seed in (1, 2))
    wide = [np.pad(a, 5, mode="edge") for a in (prediction, target)]
    options = {
        "data_range": peak,
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "full": True,
    }
    expected = structural_similarity(*wide, **options)[1][5:-5, 5:-5, 5:-5].mean()
    assert score("ssim", prediction, target, peak=peak, kernel="3d") == pytest.approx(
        expected, rel=1e-9
    )


def test_the_two_conventions_of_ssim_differ():
    """The trap: the same two images, and a table's difference between good and better methods."""
    target = natural()
    for strength in (0.03, 0.08):
        by_channel, over_channels = (
            score("ssim", spoilt(target, strength), target, kernel=k) for k in ("channel", "3d")
        )
        assert abs(by_channel - over_channels) > 0.01
    assert score("ssim", spoilt(target), target) == score(
        "ssim", spoilt(target), target, kernel="channel"
    )
    assert score("ssim", target, target, kernel="3d") == 1


@pytest.mark.parametrize(
    ("kernel", "shape", "word"),
    [("2d", (3, 24, 30), "'channel'"), ("3d", (1, 12, 12, 12), "for images")],
)
def test_unknown_kernels_and_volumes_are_refused(kernel, shape, word):
    with pytest.raises(UserError, match=word):
        METRICS["ssim"].compute(picture(shape), picture(shape), kernel=kernel)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_a_pixel_that_is_no_number_is_an_error(name, bad, where):
    images = [picture(seed=1), picture(seed=2)]
    images[where][1, 12, 12] = bad
    with pytest.raises(ValueError, match="1 of 2160 pixels are NaN or infinite"):
        METRICS[name].compute(*images)


def test_intensities_are_the_share_of_the_types_largest_value():
    for dtype in ("uint8", "uint16", "int16", "uint32"):
        most = np.iinfo(dtype).max
        np.testing.assert_allclose(
            intensities(np.array([0, most // 2, most], dtype)), [0, 0.5, 1], atol=0.003
        )
    floats = picture() * 7
    assert intensities(floats) is floats
    deep = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256)
    off = np.where(deep < 65535, deep + 1, deep - 1).astype(np.uint16)
    assert score("psnr", intensities(off), intensities(deep)) == pytest.approx(
        20 * np.log10(65535), rel=1e-5
    )


def test_metrics_of_images_are_those_of_their_modules():
    modules = {"pipeline.metrics.image", "pipeline.metrics.retouch"}
    assert (
        {n for n, entry in METRICS.items() if entry.compute.__module__ in modules}
        == {*names_of("image")}
        == {*IMAGES, "retouch"}
    )


def test_ssim_is_worse_for_worse_images():
    target = picture()
    noise = np.random.default_rng(5).normal(size=target.shape).astype(np.float32)
    values = [score("ssim", target + level * noise, target) for level in (0, 0.05, 0.1, 0.3)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.9


@pytest.mark.parametrize("name", IMAGES)
def test_ignored_pixels_change_no_image_metric(name):
    valid = np.ones(picture().shape[1:], dtype=bool)
    valid[8:20, 5:9] = False
    for options in ({}, {"kernel": "3d"}) if name == "ssim" else ({},):
        prediction, target = picture(seed=1), picture(seed=2)
        expected = METRICS[name].compute(prediction, target, valid, **options)
        prediction[:, ~valid], target[:, ~valid] = 7, np.nan
        assert METRICS[name].compute(prediction, target, valid, **options) == expected
    nothing = METRICS[name].compute(prediction, target, np.zeros_like(valid))
    assert nothing == {name: {"mae": 0, "psnr": 100, "ssim": 1}[name]}


# the table


def test_evaluate_merges_metrics_and_binds_their_options():
    a, b = plane(5), plane(8)
    scores = evaluate(
        [NamedOptions(name="dice"), NamedOptions(name="surface_dice", options={"tolerance": 3})],
        a,
        b,
    )
    assert scores == {"dice": 0, "surface_dice": 1}
    assert evaluate([], a, b) == {}
    valid = np.zeros(a.shape, dtype=bool)
    assert math.isnan(evaluate([NamedOptions(name="dice")], a, b, valid)["dice"])
    assert evaluate([NamedOptions(name="dice")], a, b, valid, context=MetricContext(version=1)) == {
        "dice": 1
    }


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (NamedOptions(name="dise"), "metrics.0.*Did you mean 'dice'"),
        (NamedOptions(name="surface_dice", options={"tolerence": 1}), "Did you mean 'tolerance'"),
        (NamedOptions(name="dice", options={"valid": None}), "no option 'valid'"),
    ],
)
def test_unknown_metrics_and_options_are_refused(part, words):
    with pytest.raises(ConfigError, match=words):
        evaluate([part], plane(5), plane(5))


def test_better_knows_every_metric_that_has_a_direction():
    parts_of_the_competition = {"toposcore", "voi_score"}
    parts_of_retouch = {"psnr_in", "psnr_out", "ssim_in", "ssim_out", "leak", "mask_dice"}
    parts_of_lesions = {"lesion_precision", "lesion_recall"}
    parts = {*parts_of_the_competition, *parts_of_retouch, *parts_of_lesions}
    assert set(directions()) == {*METRICS, "loss", *parts} - {"components", "retouch"}
    assert [better(name) for name in ("val_loss", "dice", "val_dice_2", "hd95", "psnr")] == [
        "lower",
        "higher",
        "higher",
        "lower",
        "higher",
    ]
    for name in ("components", "val_betti_error_b0", "dise", "lesions_true", "volume_bias_1"):
        with pytest.raises(ConfigError, match=name):
            better(name)


@pytest.mark.parametrize("name", [*LABELS, *IMAGES])
def test_shapes_that_do_not_match_are_refused(name):
    good = np.zeros((2, 12, 12), dtype=np.uint8)
    with pytest.raises(UserError, match="shape"):
        METRICS[name].compute(good, good[:, :, :11])
    with pytest.raises(UserError, match="shape"):
        METRICS[name].compute(good, good[:1])
    valid_of_the_other_kind = np.ones(good.shape[1:] if name in LABELS else good.shape, dtype=bool)
    with pytest.raises(UserError, match="valid"):
        METRICS[name].compute(good, good, valid_of_the_other_kind)


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("surface_dice", {"tolerance": -1}, "tolerance"),
        ("psnr", {"peak": 0}, "peak"),
        ("ssim", {"peak": -1}, "peak"),
        ("ssim", {}, "at least 11"),
    ],
)
def test_options_out_of_range_are_refused(name, options, word):
    with pytest.raises(UserError, match=word):
        METRICS[name].compute(np.zeros((1, 5, 5)), np.zeros((1, 5, 5)), **options)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.5, 2.0, 1.25)])
def test_surface_elements_in_the_world_are_marching_cubes(spacing):
    """The area of a ball is that of its mesh by scikit-image, whatever the voxel spacing."""
    from skimage.measure import marching_cubes, mesh_surface_area

    ball = np.pad(np.linalg.norm(np.mgrid[-9:10, -9:10, -9:10], axis=0) < 8.3, 1)
    codes = surface.neighbour_codes(ball)
    points, faces, *_ = marching_cubes(
        np.pad(ball, 1).astype(float), 0.5, spacing=spacing, method="lorensen"
    )
    sizes = surface.element_sizes(spacing)
    assert sizes[codes].sum() == pytest.approx(mesh_surface_area(points, faces), rel=1e-6)
    np.testing.assert_allclose(
        surface.element_sizes((1.0, 1.0, 1.0)), surface.unit_element_sizes(3), atol=1e-9
    )
    np.testing.assert_allclose(
        surface.element_sizes(tuple(2 * s for s in spacing)), 4 * sizes, atol=1e-9
    )


@pytest.mark.parametrize("name", ["hd95", "assd"])
def test_distances_follow_the_spacing_axis_by_axis(name):
    """As SciPy measures them, and as the same bodies give that are repeated to cubic voxels."""
    from scipy.ndimage import binary_erosion, distance_transform_edt

    random = np.random.default_rng(3)
    a, b = (np.pad(random.random((7, 6, 5)) < 0.4, 2) for _ in range(2))
    spacing = (3.0, 1.0, 0.5)
    edges = [m & ~binary_erosion(m) for m in (a, b)]
    there, back = (
        distance_transform_edt(~edges[1 - i], sampling=spacing)[edges[i]] for i in (0, 1)
    )
    expected = {
        "hd95": max(np.percentile(there, 95), np.percentile(back, 95)),
        "assd": np.concatenate([there, back]).mean(),
    }
    assert METRICS[name].compute(a.astype(np.uint8), b.astype(np.uint8), spacing=spacing)[
        name
    ] == pytest.approx(expected[name], rel=1e-6)
