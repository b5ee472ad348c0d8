"""Morphology against shapes whose topology is known, against scipy and scikit-image, and against
its own algebra.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.measure import euler_number as reference_euler_number
from skimage.morphology import remove_small_objects

from pipeline import morphology
from pipeline.records import UserError

FEW = settings(max_examples=25, deadline=None)
SHAPES = st.one_of(st.tuples(*[st.integers(1, 8)] * 2), st.tuples(*[st.integers(1, 7)] * 3))
MASKS = arrays(bool, SHAPES)
RADII = st.sampled_from([0, 0.5, 1, 1.5, 2, 2.9, 4])


def solid(n: int = 9) -> np.ndarray:
    mask = np.zeros((n, n, n), dtype=bool)
    mask[2:-2, 2:-2, 2:-2] = True
    return mask


def hollow_ball() -> np.ndarray:
    z, y, x = np.mgrid[-8:9, -8:9, -8:9]
    distance = np.sqrt(z**2 + y**2 + x**2)
    return (distance <= 7) & (distance >= 4)


def torus() -> np.ndarray:
    z, y, x = np.mgrid[-4:5, -10:11, -10:11]
    return (np.hypot(y, x) - 6) ** 2 + z**2 <= 2.5**2


def sheet(pinholes: int = 0, thickness: int = 2) -> np.ndarray:
    """A plane from face to face of a volume, with holes of one voxel's width through it."""
    mask = np.zeros((12, 24, 24), dtype=bool)
    mask[5 : 5 + thickness] = True
    for i in range(pinholes):
        mask[:, 4, 3 + 4 * i] = False
    return mask


SOLIDS = {
    "nothing": (np.zeros((4, 4, 4), dtype=bool), (0, 0, 0)),
    "everything": (np.ones((4, 4, 4), dtype=bool), (1, 0, 0)),
    "one voxel": (np.ones((1, 1, 1), dtype=bool), (1, 0, 0)),
    "block": (solid(), (1, 0, 0)),
    "hollow ball": (hollow_ball(), (1, 0, 1)),
    "torus": (torus(), (1, 1, 0)),
    "sheet": (sheet(), (1, 0, 0)),
    "sheet with pinholes": (sheet(pinholes=5), (1, 5, 0)),
    "two balls": (np.concatenate([hollow_ball(), hollow_ball()]), (2, 0, 2)),
}


@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize("name", SOLIDS)
def test_betti_numbers_of_known_solids(name, connectivity):
    mask, expected = SOLIDS[name]
    assert morphology.betti_numbers(mask, connectivity) == expected


def test_betti_numbers_in_2d():
    ring = np.ones((5, 5), dtype=bool)
    ring[2, 2] = False
    assert morphology.betti_numbers(ring) == (1, 1)
    assert morphology.betti_numbers(np.eye(3, dtype=bool), connectivity=6) == (3, 0)
    assert morphology.betti_numbers(np.eye(3, dtype=bool), connectivity=26) == (1, 0)


def test_a_diagonal_gap_opens_a_cavity_only_for_the_26_connected_background():
    shell = solid()
    shell[4, 4, 4] = False
    shell[3, 3, 4] = shell[2, 2, 4] = False  # diagonal steps out to the surface
    assert morphology.betti_numbers(shell, connectivity=6)[2] == 0
    assert morphology.betti_numbers(shell, connectivity=26)[2] == 2


def test_a_dent_in_a_face_is_no_cavity_and_a_shaft_between_faces_is_a_tunnel():
    block = np.ones((6, 6, 6), dtype=bool)
    block[:3, 2, 2] = False
    assert morphology.betti_numbers(block) == (1, 0, 0)
    block[:, 2, 2] = False
    assert morphology.betti_numbers(block) == (1, 1, 0)


@FEW
@given(MASKS)
def test_euler_number_is_that_of_scikit_image_and_of_the_complement(mask):
    assert morphology.euler_number(mask, 6) == reference_euler_number(mask, 1)
    assert morphology.euler_number(mask, 26) == reference_euler_number(mask, mask.ndim)


@FEW
@given(MASKS)
def test_betti_numbers_obey_alexander_duality(mask):
    """The background sees components as cavities (2D: holes) and tunnels as tunnels; it has one
    component more, the outside.
    """
    outside = np.pad(~mask, 1, constant_values=True)
    framed = np.pad(
        outside, 1
    )  # a wall around, whose own inner side is one more cavity for what follows
    back = morphology.betti_numbers(framed, connectivity=26)
    front = morphology.betti_numbers(mask, connectivity=6)
    if mask.ndim == 2:
        assert back == (front[1] + 1, front[0])
    else:
        assert back == (front[2] + 1, front[1], front[0])


@FEW
@given(MASKS, st.sampled_from([6, 18, 26]))
def test_components_are_those_of_scipy(mask, connectivity):
    reach = {6: 1, 18: 2, 26: 3}[connectivity]
    expected = np.zeros(mask.shape, dtype=np.int32)
    count = ndimage.label(
        mask, ndimage.generate_binary_structure(mask.ndim, min(reach, mask.ndim)), output=expected
    )
    labels, found = morphology.components(mask, connectivity)
    assert found == count
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    "shape", [(1, 4), (1, 8), (3, 3), (5, 3), (7, 7), (1, 1, 7), (1, 3, 5), (3, 3, 3), (5, 1, 5)]
)
@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_as_many_components_as_an_odd_shape_can_hold(shape, connectivity):
    mask = np.zeros(shape, dtype=bool)
    mask[(slice(None, None, 2),) * len(shape)] = (
        True  # cc3d runs out of labels here when told that the array is binary
    )
    labels, count = morphology.components(mask, connectivity)
    assert count == mask.sum()
    np.testing.assert_array_equal(labels[mask], np.arange(1, count + 1))
    assert not labels[~mask].any()


@FEW
@given(MASKS, st.integers(0, 6), st.sampled_from([6, 26]))
def test_dust_is_remove_small_objects(mask, below, connectivity):
    reach = 1 if connectivity == 6 else mask.ndim
    # scikit-image removes sizes up to its limit, this package sizes below its own
    expected = remove_small_objects(mask, max_size=below - 1, connectivity=reach) if below else mask
    np.testing.assert_array_equal(
        morphology.remove_small_components(mask, below, connectivity), expected
    )


@FEW
@given(MASKS)
def test_fill_holes_without_a_limit_is_binary_fill_holes(mask):
    np.testing.assert_array_equal(morphology.fill_holes(mask), ndimage.binary_fill_holes(mask))
    if mask.ndim == 3:
        for axis in range(3):
            slices = [np.asarray(ndimage.binary_fill_holes(m)) for m in np.moveaxis(mask, axis, 0)]
            np.testing.assert_array_equal(
                morphology.fill_holes(mask, per_slice=axis), np.stack(slices, axis)
            )


def test_fill_holes_of_many_small_volumes_is_binary_fill_holes():
    """Of such masks the package fill_voids fills 2 of 100 differently."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        mask = rng.random(tuple(rng.integers(2, 9, 3))) < rng.uniform(0.3, 0.9)
        np.testing.assert_array_equal(morphology.fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_fill_holes_fills_up_to_its_limit_and_nothing_open_to_the_border():
    mask = np.ones((9, 9, 9), dtype=bool)
    mask[2, 2, 2:5] = False  # 3 voxels
    mask[6, 6, 3:7] = False  # 4 voxels
    mask[0, 4, 4] = False
    filled = morphology.fill_holes(mask, max_size=3)
    assert filled[2, 2, 2:5].all()
    assert not filled[6, 6, 3:7].any()
    assert not morphology.fill_holes(mask)[0, 4, 4]
    assert morphology.betti_numbers(filled) == (1, 0, 1)
    np.testing.assert_array_equal(morphology.fill_holes(mask, max_size=0), mask)


def test_fill_holes_per_slice_closes_the_tunnel_that_fill_holes_leaves():
    mask = sheet(pinholes=3)
    np.testing.assert_array_equal(morphology.fill_holes(mask), mask)
    assert morphology.betti_numbers(morphology.fill_holes(mask, max_size=1, per_slice=0)) == (
        1,
        0,
        0,
    )
    np.testing.assert_array_equal(
        morphology.fill_holes(mask, per_slice=-3), morphology.fill_holes(mask, per_slice=0)
    )


@FEW
@given(
    arrays(np.uint8, st.tuples(*[st.integers(2, 6)] * 3), elements=st.integers(0, 2)),
    st.sampled_from([6, 26]),
)
def test_hysteresis_is_binary_propagation(levels, connectivity):
    structure = ndimage.generate_binary_structure(3, 1 if connectivity == 6 else 3)
    expected = ndimage.binary_propagation(levels == 2, structure, mask=levels >= 1)
    np.testing.assert_array_equal(
        morphology.hysteresis(levels >= 1, levels == 2, connectivity), expected
    )


def test_hysteresis_ignores_what_is_high_but_not_low():
    low, high = np.zeros((2, 4, 4), dtype=bool)
    low[0, 0] = True
    high[3, 3] = True
    assert not morphology.hysteresis(low, high).any()


@FEW
@given(MASKS, st.sampled_from([0, 0.5, 1, 1.5, 2, 2.5, 3, 5, 9.5, 10.5, 12]))
def test_dilation_by_a_ball_is_a_distance(mask, radius):
    near = ndimage.distance_transform_edt(~mask) <= radius + 1e-9 if mask.any() else mask
    np.testing.assert_array_equal(morphology.dilate(mask, radius), near)


@FEW
@given(MASKS, RADII)
def test_erosion_and_dilation_are_dual_and_adjoint(mask, radius):
    np.testing.assert_array_equal(morphology.erode(mask, radius), ~morphology.dilate(~mask, radius))
    assert (morphology.dilate(morphology.erode(mask, radius), radius) <= mask).all()
    assert (morphology.erode(morphology.dilate(mask, radius), radius) >= mask).all()


@FEW
@given(MASKS, RADII)
def test_closing_only_adds_opening_only_removes_and_both_are_idempotent(mask, radius):
    closed, opened = morphology.closing(mask, radius), morphology.opening(mask, radius)
    assert (closed >= mask).all()
    assert (opened <= mask).all()
    np.testing.assert_array_equal(morphology.closing(closed, radius), closed)
    np.testing.assert_array_equal(morphology.opening(opened, radius), opened)


@FEW
@given(MASKS, RADII)
def test_closing_is_that_of_unbounded_space(mask, radius):
    margin = 12
    wide = np.pad(mask, margin)
    expected = ~morphology.dilate(~morphology.dilate(wide, radius), radius)
    inside = (slice(margin, -margin),) * mask.ndim
    np.testing.assert_array_equal(morphology.closing(mask, radius), expected[inside])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("start", [0, 1, 5, 10])
def test_a_sheet_at_or_near_a_face_survives_closing_unchanged(axis, start):
    mask = np.zeros((12, 12, 12), dtype=bool)
    np.moveaxis(mask, axis, 0)[start : start + 2] = True
    np.testing.assert_array_equal(morphology.closing(mask, 3), mask)
    assert ndimage.binary_closing(mask, iterations=3).sum() < mask.sum()  # what this guards against


def test_opening_keeps_a_thick_sheet_whole_up_to_the_faces_and_removes_a_thin_one():
    thick, thin = sheet(thickness=5), sheet(thickness=2)
    np.testing.assert_array_equal(morphology.opening(thick, 2), thick)
    assert not morphology.opening(thin, 2).any()


@pytest.mark.parametrize("thickness", [1, 2, 3])
@pytest.mark.parametrize("radius", [1.5, 2.5, 3.5])
def test_closing_by_half_integer_radii_mends_pinholes(radius, thickness):
    mask = sheet(5, thickness)
    assert morphology.betti_numbers(mask) == (1, 5, 0)
    np.testing.assert_array_equal(morphology.closing(mask, radius), sheet(0, thickness))


def test_the_poles_of_a_ball_of_integer_radius_reach_into_pinholes():
    np.testing.assert_array_equal(morphology.closing(sheet(5), 2), sheet(5))


@pytest.mark.parametrize(
    "layout", [np.asfortranarray, lambda a: a[::-1, :, ::-1], lambda a: a.astype(np.float32) * 7]
)
def test_memory_layout_and_type_do_not_matter_and_arguments_stay_as_they_are(layout):
    mask = layout(np.random.default_rng(0).random((6, 7, 8)) < 0.5)
    before = mask.copy()
    plain = np.ascontiguousarray(mask != 0)
    for function in (
        lambda m: morphology.remove_small_components(m, 4),
        morphology.fill_holes,
        lambda m: morphology.fill_holes(m, 2, per_slice=1),
        lambda m: morphology.closing(m, 1.5),
        lambda m: morphology.opening(m, 1),
        lambda m: morphology.components(m)[0],
        lambda m: np.array(morphology.betti_numbers(m)),
        lambda m: morphology.hysteresis(m, m),
    ):
        np.testing.assert_array_equal(function(mask), function(plain))
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda m: morphology.components(m, 8), "connectivity"),
        (lambda m: morphology.betti_numbers(m, 18), "connectivity"),
        (lambda m: morphology.dilate(m, -1), "radius"),
        (lambda m: morphology.closing(m, float("nan")), "radius"),
        (lambda m: morphology.fill_holes(m, per_slice=3), "per_slice"),
        (lambda m: morphology.fill_holes(m[0], per_slice=0), "per_slice"),
        (lambda m: morphology.components(m[0, 0]), "axes"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(call, word):
    with pytest.raises(UserError, match=word):
        call(np.ones((3, 3, 3), dtype=bool))


def foam(seed: int, size: int = 40, cells: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Voronoi cells, and the voxels with a 6-neighbour in another cell: the surfaces as FIB-SEM
    labels define them.
    """
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, size, (cells, 3))
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1)
    bodies = ((grid[..., None, :] - points) ** 2).sum(-1).argmin(-1)
    label = np.zeros(bodies.shape, bool)
    for axis in range(3):
        step = np.diff(bodies, axis=axis) != 0
        label |= np.pad(step, [(0, int(a == axis)) for a in range(3)]) | np.pad(
            step, [(int(a == axis), 0) for a in range(3)]
        )
    return bodies, label


@pytest.mark.parametrize("seed", range(3))
def test_walls_of_a_torn_foam_are_whole_again(seed: int) -> None:
    """Weak spots open a threshold and let cells run together; the walls keep every cell apart."""
    bodies, label = foam(seed)
    rng = np.random.default_rng(seed)
    weak = morphology.dilate(rng.random(label.shape) < 0.002, 2)
    soft = np.where(label, np.where(weak, 0.35, 0.9), 0.05).astype(np.float32)
    torn = soft >= 0.5
    walls = morphology.watershed_boundaries(soft, low=0.3, depth=2.0)
    overlap = 2 * (walls & label).sum() / (walls.sum() + label.sum())
    assert overlap > 0.97
    assert 2 * (torn & label).sum() / (torn.sum() + label.sum()) < overlap
    cells, apart, together = (
        morphology.components(morphology.remove_small_components(~m, 50, 6), 6)[1]
        for m in (label, walls, torn)
    )
    assert cells == apart == len(np.unique(bodies))
    assert together < cells


def test_walls_need_two_seeds() -> None:
    soft = np.full((12, 12, 12), 0.1, np.float32)
    soft[5:7, :6] = 0.9  # a sheet that ends freely does not part the space
    assert not morphology.watershed_boundaries(soft, 0.3, 1.0).any()
    soft[5:7] = 0.9
    soft[5:7, 4, 4] = soft[5:7, 8, 2] = 0.4
    assert morphology.betti_numbers(soft >= 0.5) == (1, 2, 0)  # two pinholes
    walls = morphology.watershed_boundaries(soft, 0.3, 1.0)
    assert walls.sum() == 2 * 12 * 12
    assert morphology.betti_numbers(walls) == (1, 0, 0)
    assert morphology.watershed_boundaries(soft[:, 0], 0.3, 1.0).sum() == 2 * 12


def test_walls_of_nothing_are_nothing() -> None:
    for value in (0.0, 1.0):
        assert not morphology.watershed_boundaries(
            np.full((8, 8, 8), value, np.float32), 0.3, 2.0
        ).any()


def test_weak_boundaries_are_dissolved() -> None:
    """Three slabs, the first boundary strong (0.9), the second weak (0.3): merging at 0.5 keeps the
    first alone.
    """
    soft = np.full((30, 10, 10), 0.02, np.float32)
    soft[9:11], soft[19:21] = 0.9, 0.3
    both = morphology.watershed_boundaries(soft, 0.1, 1.0)
    assert sorted(set(np.flatnonzero(both.any((1, 2))))) == [9, 10, 19, 20]
    one = morphology.watershed_boundaries(soft, 0.1, 1.0, merge=0.5)
    assert sorted(set(np.flatnonzero(one.any((1, 2))))) == [9, 10]
    assert not morphology.watershed_boundaries(soft, 0.1, 1.0, merge=1.0).any()


@pytest.mark.parametrize("seed", range(3))
def test_merging_mends_what_small_seeds_split(seed: int) -> None:
    """Noise gives many seeds a cell; merged, there are as many bodies as cells again."""
    bodies, label = foam(seed)
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=label.shape), 1.5)
    soft = np.clip(np.where(label, 0.8, 0.06) + noise / noise.std() * 0.04, 0, 1).astype(np.float32)

    def cells(mask: np.ndarray) -> int:
        return morphology.components(morphology.remove_small_components(~mask, 30, 6), 6)[1]

    assert cells(morphology.watershed_boundaries(soft, 0.05, 1.0, least=5)) > len(np.unique(bodies))
    merged = morphology.watershed_boundaries(soft, 0.05, 1.0, least=5, merge=0.5)
    assert cells(merged) == len(np.unique(bodies))
    assert 2 * (merged & label).sum() / (merged.sum() + label.sum()) > 0.97
