"""Tiling is exact: identity through every window at awkward sizes, positive weights, one-sided
borders, flips undone.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.geometry import FLOOR, WINDOWS, Tiling, crop, flips, up


def blend(array: np.ndarray, tiling: Tiling) -> np.ndarray:
    """Reference: cut, weight, add, divide, in float64."""
    total = np.zeros(tiling.padded)
    weight = np.zeros(tiling.padded)
    for place in tiling.origins():
        box = tuple(slice(p, p + t) for p, t in zip(place, tiling.tile, strict=True))
        w = tiling.weights(place)
        tile = crop(array, list(place), tiling.tile)
        total[box] += w * tile
        weight[box] += w
    assert weight.min() > 0
    return (total / weight)[tuple(map(slice, tiling.size))]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 37])
def test_identity_at_awkward_sizes(window: str, size: int) -> None:
    array = np.random.default_rng(size).normal(size=(size, 23))
    for halo in (0, 3):
        tiling = Tiling(size=array.shape, tile=(16, 12), overlap=5, window=window, halo=halo)
        np.testing.assert_allclose(blend(array, tiling), array, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    size=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    tile=st.integers(3, 20),
    overlap=st.integers(0, 30),
    halo=st.integers(0, 1),
    window=st.sampled_from(sorted(WINDOWS)),
    one_sided=st.booleans(),
)
def test_tiles_cover_everything(
    size: list[int], tile: int, overlap: int, halo: int, window: str, one_sided: bool
) -> None:
    tiling = Tiling(
        size=tuple(size),
        tile=(tile,) * len(size),
        overlap=overlap,
        window=window,
        one_sided=one_sided,
        halo=halo,
    )
    array = np.random.default_rng(0).normal(size=size)
    np.testing.assert_allclose(blend(array, tiling), array, atol=1e-12)
    assert tiling.tile == tuple(min(tile, n) for n in size)
    for axis in range(len(size)):
        starts = tiling.starts(axis)
        assert starts[0] == 0
        assert starts[-1] == tiling.padded[axis] - tiling.tile[axis]
        assert starts == sorted(set(starts))
    assert tiling.count() == len(list(tiling.origins()))


@pytest.mark.parametrize("window", WINDOWS)
def test_weights_are_positive_and_taper_only_inwards(window: str) -> None:
    tiling = Tiling(size=(64,), tile=(24,), overlap=8, window=window)
    first, middle, last = (tiling.weights((s,)) for s in (0, 16, 40))
    assert min(first.min(), middle.min(), last.min()) >= FLOOR
    assert first[:12].min() == first.max()
    assert last[12:].min() == last.max()
    np.testing.assert_allclose(middle, middle[::-1], rtol=1e-6)


def test_halo_is_not_used_inside_but_is_at_the_border() -> None:
    tiling = Tiling(size=(64,), tile=(24,), overlap=0, window="constant", halo=4)
    assert tiling.weights((0,)).tolist() == [1.0] * 20 + [0.0] * 4
    assert tiling.weights((16,)).tolist() == [0.0] * 4 + [1.0] * 16 + [0.0] * 4


def test_a_zero_ended_window_would_fail() -> None:
    """Negative control: without the floor and the shifted Hann the border would have weight 0."""
    assert np.hanning(16)[0] == 0
    assert WINDOWS["hann"](16, 0)[0] > 0


def test_starts_are_those_of_monai() -> None:
    from monai.data.utils import dense_patch_slices

    for n in (16, 17, 40, 63, 320):
        expected = sorted({s[0].start for s in dense_patch_slices((n,), (16,), (12,))})
        assert Tiling(size=(n,), tile=(16,), overlap=4).starts(0) == expected


@settings(max_examples=80, deadline=None)
@given(
    size=st.lists(st.integers(1, 70), min_size=1, max_size=2),
    tile=st.integers(1, 40),
    grid=st.sampled_from([1, 2, 4, 8, 16]),
    overlap=st.integers(0, 30),
    halo=st.integers(0, 8),
)
def test_tiles_lie_on_the_grid_and_cover_everything(
    size: list[int], tile: int, grid: int, overlap: int, halo: int
) -> None:
    tile = max(tile, 2 * halo + grid)
    tiling = Tiling(
        size=tuple(size),
        tile=(tile,) * len(size),
        overlap=overlap,
        halo=halo,
        multiple=(grid,) * len(size),
    )
    array = np.random.default_rng(0).normal(size=size)
    np.testing.assert_allclose(blend(array, tiling), array, atol=1e-12)
    for axis, n in enumerate(size):
        assert tiling.padded[axis] == up(n, grid) < n + grid
        assert tiling.tile[axis] == min(up(tile, grid), up(n, grid))
        starts = tiling.starts(axis)
        assert all(s % grid == 0 for s in [*starts, tiling.tile[axis]])
        assert starts[-1] + tiling.tile[axis] == tiling.padded[axis]
        assert starts == sorted(set(starts))


def test_what_fits_lies_where_it_lay_without_a_grid() -> None:
    """Multiples of the stride throughout, the usual case: nothing moves."""
    for n, tile, overlap, grid in [
        (320, 128, 32, 16),
        (320, 64, 32, 16),
        (256, 256, 32, 16),
        (80, 48, 16, 8),
    ]:
        plain = Tiling(size=(n,), tile=(tile,), overlap=overlap)
        assert Tiling(size=(n,), tile=(tile,), overlap=overlap, multiple=(grid,)).starts(
            0
        ) == plain.starts(0)


def test_crop_outside_is_filled() -> None:
    array = np.arange(12).reshape(3, 4)
    out = crop(array, (-1, 2), (3, 4), fill=-1)
    assert out.tolist() == [[-1, -1, -1, -1], [2, 3, -1, -1], [6, 7, -1, -1]]
    assert crop(array, (9, 9), (2, 2), fill=7).tolist() == [[7, 7], [7, 7]]


def test_crop_is_a_copy() -> None:
    array = np.zeros((4, 4))
    crop(array, (0, 0), (4, 4))[:] = 1
    assert array.sum() == 0


def test_flips_are_their_own_inverse_and_all_different() -> None:
    array = np.random.default_rng(0).normal(size=(3, 4, 5))
    seen = set()
    for axes in flips(3):
        np.testing.assert_array_equal(np.flip(np.flip(array, axes), axes), array)
        seen.add(np.ascontiguousarray(np.flip(array, axes)).tobytes())
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"halo": 8}, "halo"),
        ({"halo": 5, "multiple": (8,)}, "at least 24"),
        ({"window": "box"}, "unknown"),
        ({"tile": (4, 4)}, "axes"),
        ({"multiple": (4, 4)}, "axes"),
    ],
)
def test_impossible_tilings_are_refused(kwargs: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Tiling(**{"size": (32,), "tile": (16,), **kwargs})
