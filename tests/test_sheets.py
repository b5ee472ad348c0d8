"""Repairs of sheets on shapes of known topology: what they mend, and that they never join, break or
leave a face of the array.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.measure import label

from pipeline import morphology, postprocess
from pipeline.config import ConfigError
from pipeline.morphology import sheets
from pipeline.records import NamedOptions, UserError

FEW = settings(max_examples=25, deadline=None)
SHAPES = st.one_of(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 7)] * 3))
MASKS = arrays(bool, SHAPES)
FLIPS = [flips for n in range(4) for flips in itertools.combinations(range(3), n)]

REPAIRS = {
    "close": lambda m, free=None: sheets.close_sheets(m, 1.5, free),
    "watertight": sheets.watertight,
    "patch": lambda m, free=None: sheets.patch_sheets(m, 50, free) if m.ndim == 3 else m != 0,
    "thin": lambda m, free=None: sheets.set_thickness(m, 1.0, "class", free),
    "thick": lambda m, free=None: sheets.set_thickness(m, 4.0, "class", free),
}
"""Each with small limits, so that random masks of a few voxels are changed at all."""


def pieces(mask: np.ndarray) -> int:
    return morphology.components(mask)[1]


def wave(
    shape: tuple[int, int, int] = (32, 44, 44), height: float = 12, thickness: int = 3
) -> np.ndarray:
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    lowest = np.round(height + 3 * np.sin(x / 7) + 2 * np.cos(y / 9))
    return (z >= lowest) & (z < lowest + thickness)


def torn(mask: np.ndarray, radii: tuple[float, ...] = (0.5, 1, 2, 3, 4)) -> np.ndarray:
    """The mask with one round hole for each radius, straight through along the first axis."""
    y, x = np.indices(mask.shape[1:])
    out = mask.copy()
    for place, radius in zip(itertools.product((10, 22, 34), repeat=2), radii, strict=False):
        out[:, (y - place[0]) ** 2 + (x - place[1]) ** 2 <= radius**2] = False
    return out


def oblique(a: float, b: float, shift: float = 0.0) -> np.ndarray:
    """One voxel in each column: 26-connected when no slope is above 1, in pieces for
    6-connectivity.
    """
    z, y, x = np.ogrid[-20:21, -8:9, -8:9]
    return z == np.round(a * x + b * y + shift)


# What holds for all


@pytest.mark.slow
@pytest.mark.parametrize("name", REPAIRS)
@FEW
@given(mask=MASKS)
def test_sheets_are_never_joined_broken_or_lost(name, mask):
    before = mask.copy()
    result = REPAIRS[name](mask)
    assert result.dtype == bool
    np.testing.assert_array_equal(mask, before)
    assert pieces(result) == pieces(mask)
    numbers, count = morphology.components(mask)
    assert len(np.unique(numbers[result & mask])) == count
    if name in ("close", "watertight", "patch"):
        assert (result >= mask).all()


@pytest.mark.parametrize("name", REPAIRS)
@FEW
@given(data=st.data())
def test_only_free_voxels_are_filled(name, data):
    mask = data.draw(MASKS)
    free = data.draw(arrays(bool, mask.shape))
    result = REPAIRS[name](mask, free)
    assert not (result & ~mask & ~free).any()
    assert pieces(result) == pieces(mask)


@pytest.mark.parametrize("name", REPAIRS)
@pytest.mark.parametrize("shape", [(6, 6, 6), (1, 1, 1), (1, 8, 8), (8, 1, 3), (5, 7), (1, 6)])
def test_nothing_and_everything_stay_as_they_are(name, shape):
    for mask in (np.zeros(shape, bool), np.ones(shape, bool)):
        np.testing.assert_array_equal(REPAIRS[name](mask), mask)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("start", [0, 1, 5, 10])
@pytest.mark.parametrize("name", ["close", "watertight", "patch"])
def test_a_plate_at_or_near_a_face_stays_as_it_is(name, axis, start):
    mask = np.zeros((12, 12, 12), bool)
    np.moveaxis(mask, axis, 0)[start : start + 2] = True
    np.testing.assert_array_equal(REPAIRS[name](mask), mask)


def test_the_layout_in_memory_does_not_matter():
    mask = torn(wave()) & ~(np.random.default_rng(0).random(wave().shape) < 0.1)
    for repair in REPAIRS.values():
        np.testing.assert_array_equal(repair(np.asfortranarray(mask)), repair(mask))
        np.testing.assert_array_equal(repair(mask.astype(np.uint8) * 7), repair(mask))


# Closing sheet by sheet


@FEW
@given(MASKS, st.sampled_from([1, 1.5, 2.5]))
def test_closing_one_sheet_is_closing(mask, radius):
    one = morphology.components(mask)[0] == 1
    enough = one.sum() >= sheets.ball_size(radius, mask.ndim)
    expected = morphology.closing(one, radius) if enough else one
    result = sheets.close_sheets(one, radius)
    np.testing.assert_array_equal(result, morphology.hysteresis(expected, one))
    np.testing.assert_array_equal(sheets.close_sheets(result, radius), result)


@pytest.mark.parametrize("radius", [0, 0.5, 1, 1.5, 2.5])
def test_the_smallest_component_to_be_closed_is_a_ball(radius):
    point = np.zeros((7, 7, 7), bool)
    point[3, 3, 3] = True
    assert sheets.ball_size(radius, 3) == morphology.dilate(point, radius).sum()
    assert sheets.ball_size(radius, 2) == morphology.dilate(point[3], radius).sum()


@pytest.mark.parametrize("gap", [2, 3, 7])
def test_neighbours_are_closed_but_stay_apart_where_closing_joins_them(gap):
    holes = torn(wave(), (0.5, 0.5, 1)) | wave(height=15 + gap)
    assert morphology.betti_numbers(holes) == (2, 3, 0)
    assert morphology.betti_numbers(sheets.close_sheets(holes, 2.5)) == (2, 0, 0)
    assert pieces(morphology.closing(holes, 2.5)) == (2 if gap == 7 else 1)


def test_what_two_sheets_would_fill_neither_gets():
    mask = np.zeros((10, 20), bool)
    mask[[0, 6], :17] = mask[0:7, 0] = True  # two forks, one arm of each between the other's
    mask[[3, 9], 3:] = mask[3:10, 19] = True
    assert pieces(mask) == 2
    closed = sheets.close_sheets(mask, 3.5)
    assert pieces(closed) == 2
    added = (closed & ~mask)[:, 4:15]
    np.testing.assert_array_equal(added.all(1), [False, True, *[False] * 6, True, False])
    assert not added[[2, 4, 5, 7]].any()
    assert morphology.closing(mask, 3.5)[:, 4:15].all()


@pytest.mark.parametrize("flips", FLIPS)
def test_closing_turns_with_the_volume(flips):
    mask = torn(wave(thickness=2)) | wave(height=17, thickness=2)
    mask &= np.random.default_rng(1).random(mask.shape) > 0.1
    np.testing.assert_array_equal(
        sheets.close_sheets(np.flip(mask, flips)), np.flip(sheets.close_sheets(mask), flips)
    )
    turned = np.rot90(mask, axes=(0, 2))
    np.testing.assert_array_equal(
        sheets.close_sheets(turned), np.rot90(sheets.close_sheets(mask), axes=(0, 2))
    )


# Watertight


def test_the_table_has_an_entry_for_exactly_the_blocks_in_pieces():
    table = sheets.contact_table()
    for code in range(256):
        block = np.array([code >> k & 1 for k in range(8)], bool).reshape(2, 2, 2)
        whole = all(np.asarray(label(side, connectivity=1)).max() <= 1 for side in (block, ~block))
        assert (table[code] == 0) == whole
        assert table[code] & code == 0


@settings(max_examples=60, deadline=None)
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1), st.permutations([0, 1, 2]))
def test_an_oblique_plane_becomes_one_sheet_without_tunnels(a, b, shift, order):
    plane = oblique(a, b, shift).transpose(order)
    assert pieces(plane) == 1
    mended = sheets.watertight(plane)
    assert morphology.betti_numbers(mended, 6) == morphology.betti_numbers(mended, 26) == (1, 0, 0)
    assert mended.sum() <= 3 * plane.sum()


def test_an_oblique_plane_was_in_pieces():
    assert morphology.betti_numbers(oblique(0.7, 0.4), 6)[0] > 20
    assert morphology.betti_numbers(oblique(0, 0), 6)[0] == 1


@settings(max_examples=50, deadline=None)
@given(MASKS)
def test_a_watertight_sheet_has_the_same_topology_for_either_connectivity(mask):
    one = morphology.components(mask)[0] == 1
    mended = sheets.watertight(one)
    assert morphology.betti_numbers(mended, 6) == morphology.betti_numbers(mended, 26)
    np.testing.assert_array_equal(sheets.watertight(mended), mended)
    box = tuple(slice(i.min(), i.max() + 1) for i in np.nonzero(one)) if one.any() else ()
    assert mended.sum() == mended[box].sum()


@FEW
@given(MASKS)
def test_watertight_is_a_fixed_point_for_many_sheets_too(mask):
    mended = sheets.watertight(mask)
    np.testing.assert_array_equal(sheets.watertight(mended), mended)


def test_diagonal_pinholes_are_plugged():
    plate = np.zeros((9, 12, 12), bool)
    plate[3:6] = True
    plate[[3, 4, 5], [4, 5, 6], [4, 4, 4]] = False  # through the plate in two steps over edges
    plate[[3, 4, 5], [7, 8, 9], [7, 8, 9]] = False  # and over corners
    assert morphology.betti_numbers(plate, 6) == (1, 2, 0)
    mended = sheets.watertight(plate)
    assert morphology.betti_numbers(mended, 6) == (1, 0, 0)
    assert 2 <= (mended & ~plate).sum() <= 6


def test_a_step_between_two_other_sheets_stays_open():
    mask = np.zeros((1, 2, 4), bool)
    mask[0, [0, 1], [1, 2]] = True  # a contact whose two voxels between are ...
    guarded = np.zeros((3, 4, 6), bool)
    guarded[1:2, 1:3, 1:5] = mask
    assert sheets.watertight(guarded).sum() == 3
    assert sheets.watertight(guarded, free=np.zeros_like(guarded)).sum() == 2  # ... not free
    guarded[1, 0, 4] = guarded[1, 3, 1] = True  # ... each beside a component of its own
    assert pieces(guarded) == 3
    np.testing.assert_array_equal(sheets.watertight(guarded), guarded)


def test_watertight_lines_in_2d():
    mended = sheets.watertight(np.eye(6, dtype=bool))
    assert morphology.betti_numbers(mended, 6) == (1, 0)
    assert mended.sum() == 11


# Patches


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("thickness", [2, 3])
def test_holes_are_patched_and_the_neighbour_stays_apart(thickness, order):
    sheet, neighbour = wave(thickness=thickness), wave(height=15 + thickness, thickness=2)
    holes = torn(sheet)
    assert morphology.betti_numbers(holes) == (1, 5, 0)
    mask = (holes | neighbour).transpose(order)
    patched = sheets.patch_sheets(mask).transpose(np.argsort(order))
    assert morphology.betti_numbers(patched) == (2, 0, 0)
    patch = patched & ~(holes | neighbour)
    assert (patch & sheet).sum() >= 0.85 * (sheet & ~holes).sum()
    assert (patch & ~morphology.dilate(sheet, 1)).sum() == 0
    np.testing.assert_array_equal(sheets.patch_sheets(patched), patched)


def test_patches_continue_planes_exactly():
    z, y, x = np.ogrid[:40, :30, :30]
    plane = (z >= 5 + y // 2 + x // 3) & (z < 9 + y // 2 + x // 3)
    holes = plane.copy()
    holes[:, 12:16, 12:18] = False
    patched = sheets.patch_sheets(holes)
    assert morphology.betti_numbers(patched) == (1, 0, 0)
    np.testing.assert_array_equal(np.diff(patched.sum(0)[10:18, 10:20]), 0)
    assert (patched ^ plane).sum() <= 12  # rounding, at most half of the 24 columns by one voxel


def test_holes_that_are_too_large_or_open_to_a_face_stay():
    holes = torn(wave())
    areas = sorted(
        np.bincount(morphology.components(np.asarray(~holes.any(0)), 26)[0].ravel())[1:].tolist()
    )
    assert areas == [1, 5, 13, 29, 49]
    assert morphology.betti_numbers(sheets.patch_sheets(holes, largest=13)) == (1, 2, 0)
    assert morphology.betti_numbers(sheets.patch_sheets(holes, largest=12)) == (1, 3, 0)
    notch = wave()
    notch[:, 20:24, :3] = False
    np.testing.assert_array_equal(sheets.patch_sheets(notch), notch)


@pytest.mark.parametrize(("top", "patched"), [(12, False), (5, False), (4, True)])
def test_no_patch_through_or_beside_another_sheet(top, patched):
    mask = np.zeros((12, 20, 20), bool)
    mask[5:7] = True
    mask[:, 6:13, 6:13] = False
    mask[:top, 9, 9] = True
    assert morphology.betti_numbers(mask) == (2, 1, 0)
    result = sheets.patch_sheets(mask)
    assert morphology.betti_numbers(result) == (2, 1 - patched, 0)
    assert (result == mask).all() != patched


def test_a_hole_in_a_sheet_in_pieces_is_patched_once_it_is_watertight():
    mask = oblique(0.7, 0.4)
    mask[:, 6:10, 7:11] = False
    np.testing.assert_array_equal(
        sheets.patch_sheets(mask), mask
    )  # 6-connected it has no tunnel that could be closed
    mended = sheets.watertight(mask)
    assert morphology.betti_numbers(mended) == (1, 1, 0)
    assert morphology.betti_numbers(sheets.patch_sheets(mended)) == (1, 0, 0)


def test_shapes_that_are_no_height_map_stay():
    z, y, x = np.mgrid[-7:8, -14:15, -14:15]
    tube = abs(np.hypot(np.hypot(y, x) - 9, z) - 4) <= 1  # the wall of a ring
    assert morphology.betti_numbers(tube) == (1, 2, 1)
    np.testing.assert_array_equal(sheets.patch_sheets(tube), tube)


@FEW
@given(MASKS)
def test_patches_never_add_tunnels_or_cavities(mask):
    if mask.ndim == 3:
        before, after = (
            morphology.betti_numbers(m, 6) for m in (mask, sheets.patch_sheets(mask, 50))
        )
        assert all(a <= b for a, b in zip(after, before, strict=True))


def test_images_have_no_holes_to_patch():
    with pytest.raises(UserError, match="volumes"):
        sheets.patch_sheets(np.eye(4, dtype=bool))
    with pytest.raises(ConfigError, match="volumes"):
        postprocess.check([NamedOptions(name="patch_sheets")], dims=2)


# Thickness


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness", range(1, 7))
def test_the_thickness_of_a_plate_between_faces_is_exact(thickness, axis):
    mask = np.zeros((12, 12, 12), bool)
    np.moveaxis(mask, axis, 0)[3 : 3 + thickness] = True
    assert sheets.mean_thickness(mask) == pytest.approx(thickness)
    assert sheets.mean_thickness(mask[3]) == pytest.approx(thickness if axis else np.inf)
    np.moveaxis(mask, axis, 0)[:3] = True  # lies on a face, which is no surface
    assert sheets.mean_thickness(mask) == pytest.approx(2 * (thickness + 3))


@pytest.mark.parametrize(
    "normal", [(1, 1, 0), (1, 1, 1), (2, 1, 0), (1, 0.4, 0.3), (2, 1, 1), (3, 2, 1)]
)
def test_the_thickness_of_slanting_plates(normal):
    z, y, x = np.mgrid[-20:21, -20:21, -20:21]
    distance: np.ndarray = np.abs(np.tensordot(normal, [z, y, x], 1)) / np.linalg.norm(normal)
    assert sheets.mean_thickness(distance <= 4) / 8 == pytest.approx(0.97, abs=0.09)


def test_the_thickness_of_nothing_and_of_everything():
    assert sheets.mean_thickness(np.zeros((3, 3, 3), bool)) == 0
    assert sheets.mean_thickness(np.ones((3, 3), bool)) == np.inf


@settings(max_examples=60, deadline=None)
@given(MASKS, st.sampled_from([0.5, 1, 2, 5]))
def test_a_change_of_thickness_keeps_the_topology(mask, target):
    changed = sheets.set_thickness(mask, target, per="class")
    for connectivity in (6, 26):
        assert morphology.betti_numbers(changed, connectivity) == morphology.betti_numbers(
            mask, connectivity
        )


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("before", "target", "after"),
    [(1, 3, 3), (2, 3, 3), (3, 3, 3), (5, 3, 3), (6, 1, 1), (2, 4.4, 4), (4, 2.6, 3)],
)
def test_plates_come_nearest_to_the_target(before, target, after, axis):
    mask = np.zeros((16, 16, 16), bool)
    np.moveaxis(mask, axis, 0)[6 : 6 + before] = True
    for per in ("component", "class"):
        changed = sheets.set_thickness(mask, target, per)
        assert sheets.mean_thickness(changed) == pytest.approx(after)
        np.testing.assert_array_equal(sheets.set_thickness(changed, target, per), changed)


@pytest.mark.parametrize("target", [2.0, 3.0, 5.0])
def test_waves_with_holes_come_near_the_target_and_keep_their_rims(target):
    mask = torn(wave(thickness=4), (2, 3))
    mask[:, :5] = False
    changed = sheets.set_thickness(mask, target)
    assert morphology.betti_numbers(changed) == morphology.betti_numbers(mask) == (1, 2, 0)
    assert abs(sheets.mean_thickness(changed) - target) <= 0.5
    assert (changed.any(0) ^ mask.any(0)).mean() < 0.03


def test_sheets_grow_towards_each_other_without_touching():
    mask = np.zeros((20, 16, 16), bool)
    mask[8:10] = mask[12:14] = True
    grown = sheets.set_thickness(mask, 4.0)
    assert pieces(grown) == 2
    assert not grown[10:12].all(0).any()
    assert sheets.mean_thickness(grown) > 3


def test_measured_together_sheets_keep_their_differences():
    mask = np.zeros((24, 16, 16), bool)
    mask[4:6] = mask[14:18] = True
    each, all_ = (sheets.set_thickness(mask, 3.0, per) for per in ("component", "class"))
    np.testing.assert_array_equal([m[:10].sum() // 256 for m in (each, all_)], [3, 2])
    np.testing.assert_array_equal([m[10:].sum() // 256 for m in (each, all_)], [3, 4])


def test_fragments_are_no_sheets():
    mask = np.zeros((12, 12, 12), bool)
    mask[2:4, 2:7, 2:7] = mask[9, 9, 9] = True
    np.testing.assert_array_equal(sheets.set_thickness(mask, 4.0), mask)
    assert sheets.set_thickness(mask, 4.0, per="class").sum() > mask.sum()


def test_lines_in_2d_get_thicker():
    mask = np.zeros((12, 30), bool)
    mask[5] = True
    np.testing.assert_array_equal(np.flatnonzero(sheets.set_thickness(mask, 3.0).all(1)), [4, 5, 6])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"target": 0}, "positive"), ({"target": np.nan}, "positive"), ({"per": "all"}, "'class'")],
)
def test_a_thickness_that_means_nothing_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        sheets.set_thickness(np.eye(3, dtype=bool), **options)


# Ellipsoids


@FEW
@given(MASKS, st.sampled_from([0, 1, 1.5, 2, 2.5]))
def test_an_ellipsoid_of_equal_radii_is_a_ball(mask, radius):
    radii = [radius] * mask.ndim
    np.testing.assert_array_equal(
        sheets.closing_by_ellipsoid(mask, radii), morphology.closing(mask, radius)
    )
    np.testing.assert_array_equal(
        sheets.opening_by_ellipsoid(mask, radii), morphology.opening(mask, radius)
    )


@FEW
@given(
    arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)),
    st.tuples(*[st.sampled_from([0, 1, 1.5, 2, 3])] * 3),
)
def test_closing_by_an_ellipsoid_is_that_of_scipy_in_unbounded_space(mask, radii):
    axes = np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij")
    kernel = (
        sum(np.where(a == 0, 0, (a / max(r, 1e-9)) ** 2) for a, r in zip(axes, radii, strict=True))
        <= 1 + 1e-9
    )
    wide = ndimage.binary_closing(np.pad(mask, 8), kernel)
    np.testing.assert_array_equal(sheets.closing_by_ellipsoid(mask, radii), wide[8:-8, 8:-8, 8:-8])
    opened = sheets.opening_by_ellipsoid(mask, radii)
    assert (opened <= mask).all()
    np.testing.assert_array_equal(sheets.opening_by_ellipsoid(opened, radii), opened)


@pytest.mark.parametrize("radii", [(1, 2), (1, 2, -1), (1, 2, np.inf)])
def test_radii_that_fit_no_ellipsoid_are_refused(radii):
    with pytest.raises(UserError, match="radii"):
        sheets.closing_by_ellipsoid(np.ones((3, 3, 3), bool), radii)


# As steps


def test_a_chain_of_steps_mends_a_torn_scroll():
    rng = np.random.default_rng(3)
    lower, upper = wave(thickness=3), wave(height=19, thickness=3)
    soft = np.where(torn(lower) | upper, 0.9, 0.1) - 0.8 * (rng.random(lower.shape) < 0.02)
    steps = [
        NamedOptions(name="threshold"),
        NamedOptions(name="dust", options={"below": 50}),
        NamedOptions(name="sheet_closing"),
        NamedOptions(name="patch_sheets"),
        NamedOptions(name="watertight"),
        NamedOptions(name="fill_holes", options={"below": None}),
        NamedOptions(name="thickness"),
    ]
    postprocess.check(steps, channels=1)
    assert morphology.betti_numbers(soft >= 0.5)[1] >= 5
    assert morphology.betti_numbers(
        postprocess.apply(steps, soft[None].astype(np.float32)) > 0
    ) == (2, 0, 0)


def crowded() -> np.ndarray:
    labels = np.ones((5, 4, 5), np.uint8)
    labels[1, 3, 1], labels[2, 3, 2] = 2, 0
    return labels


@pytest.mark.parametrize("step", ["sheet_closing", "patch_sheets", "watertight", "thickness"])
@FEW
@given(labels=arrays(np.uint8, st.tuples(*[st.integers(1, 7)] * 3), elements=st.integers(0, 2)))
@example(labels=crowded())  # what one class loses, no other gains
def test_steps_keep_classes_and_their_sheets_apart(step, labels):
    options = {"sheet_closing": {"radius": 1}, "thickness": {"target": 4.0, "per": "class"}}.get(
        step, {}
    )
    result = postprocess.POSTPROCESS[step].run(labels, **options)
    assert result.dtype == labels.dtype
    for value in (1, 2):
        assert not ((labels == value) & (result == 3 - value)).any()
        assert pieces(result == value) == pieces(labels == value)


def test_a_list_of_sizes_or_radii_is_an_ellipsoid():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[[3, 5], 2:7, 2:7] = 1
    joined = labels.copy()
    joined[4, 2:7, 2:7] = 1
    np.testing.assert_array_equal(postprocess.closing(labels, radius=[1, 0, 0]), joined)
    np.testing.assert_array_equal(postprocess.closing(labels, size=[3, 1, 1]), joined)
    np.testing.assert_array_equal(postprocess.closing(labels, size=(1, 3, 3)), labels)
    np.testing.assert_array_equal(postprocess.opening(joined, radius=[1, 0, 0]), joined)
    assert not postprocess.opening(labels, radius=[1, 0, 0]).any()
    np.testing.assert_array_equal(
        postprocess.closing(labels, size=[3, 3, 3]), postprocess.closing(labels, size=3)
    )


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("closing", {"radius": [1, 2]}, "2 numbers for 3 axes"),
        ("opening", {"size": [3, 3, 0]}, "at least 1"),
        ("closing", {"radius": [1, 1, -1]}, "radii"),
        ("closing", {"radius": [1, 1, 1], "size": [3, 3, 3]}, "radius or size"),
        ("sheet_closing", {"radius": -1}, "radius"),
        ("patch_sheets", {"largest": -5}, "-5"),
        ("thickness", {"target": 0}, "positive"),
        ("thickness", {"per": "sheet"}, "'component'"),
    ],
)
def test_options_are_checked_before_any_work(name, options, words):
    with pytest.raises(ConfigError, match=words):
        postprocess.check([NamedOptions(name=name, options=options)])
