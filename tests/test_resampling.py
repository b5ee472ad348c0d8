"""Resampling against scikit-image, scipy and rules written down again; its bits slab by slab."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import resize as reference_resize

from pipeline.data import resampling
from pipeline.data.resampling import AxisResize, axes_of, coarse_axis, new_size, resize, resized
from pipeline.files import Rows

ORDERS = st.sampled_from([0, 1, 3])
KINDS = {
    "float64": 1e-12,
    "float32": 1e-6,
    "uint8": 1e-6,
    "uint16": 1e-6,
    "int16": 1e-6,
}
FAR = {"float64": 1000.0, "float32": 1000.0, "uint8": 0, "uint16": 20000, "int16": 1000}
WIDE = {"float64": 3071.0, "float32": 3071.0, "uint8": 255, "uint16": 40000, "int16": 3071}


def sizes(dims: int, most: int = 13) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(1, most)] * dims)


def volume(shape: tuple[int, ...], kind: str, seed: int = 0, offset: float | None = None) -> Any:
    """Random values of a type, on a large offset (as CT has) where the type holds one."""
    values = np.random.default_rng(seed).random(shape)
    return (values * WIDE[kind] + (FAR[kind] if offset is None else offset)).astype(kind)


def by_skimage(array: np.ndarray, new: tuple[int, ...], order: int) -> np.ndarray:
    """Each channel by skimage, in float64."""
    return np.stack(
        [
            np.asarray(
                reference_resize(
                    c.astype(np.float64),
                    new,
                    order=order,
                    mode="edge",
                    anti_aliasing=False,
                    preserve_range=True,
                    clip=True,
                )
            )
            for c in array
        ]
    )


def by_slices(array: np.ndarray, new: tuple[int, ...], order: int, coarse: int) -> np.ndarray:
    """Each slice across the coarse axis by skimage, then the nearest slice by scipy."""
    plane = tuple(n for axis, n in enumerate(new) if axis != coarse)
    out = []
    for channel in np.moveaxis(array, coarse + 1, 1):
        flat = by_skimage(channel, plane, order)
        scale = len(flat) / new[coarse]
        at = scale * (np.arange(new[coarse]) + 0.5) - 0.5
        numbers = ndimage.map_coordinates(
            np.arange(len(flat), dtype=float), [at], order=0, mode="nearest"
        )
        out.append(np.moveaxis(flat[numbers.astype(int)], 0, coarse))
    return np.stack(out)


def lazy(array: np.ndarray, seen: list[tuple[int, int]] | None = None) -> Rows:
    def make(first: int, end: int) -> np.ndarray:
        if seen is not None:
            seen.append((first, end))
        return array[:, first:end].copy()

    return Rows(array.shape, array.dtype, make)


# --- values ---------------------------------------------------------------------------------------


@settings(max_examples=examples(150), deadline=None)
@given(
    data=st.data(), order=ORDERS, kind=st.sampled_from(sorted(KINDS)), dims=st.sampled_from([2, 3])
)
def test_as_skimage(data: st.DataObject, order: int, kind: str, dims: int) -> None:
    old, new = data.draw(sizes(dims)), data.draw(sizes(dims))
    array = volume((data.draw(st.integers(1, 3)), *old), kind)
    found = resize(array, axes_of(old, new, order, None))
    wanted = by_skimage(array, new, order)
    assert found.shape == wanted.shape
    if old != new:
        assert found.dtype == (array.dtype if order == 0 or kind == "float64" else np.float32)
    limit = KINDS[kind] * float(WIDE[kind])
    limit += 4 * np.finfo(found.dtype if found.dtype.kind == "f" else np.float32).eps * FAR[kind]
    np.testing.assert_allclose(found.astype(np.float64), wanted, rtol=0, atol=limit)
    low, high = (f(array, axis=tuple(range(1, dims + 1)), keepdims=True) for f in (np.min, np.max))
    slack = 0 if order != 1 else limit
    assert ((found >= low - slack) & (found <= high + slack)).all()


@settings(max_examples=examples(120), deadline=None)
@given(
    data=st.data(),
    order=ORDERS,
    coarse=st.integers(0, 2),
    kind=st.sampled_from(["float64", "float32", "int16"]),
)
def test_apart_slices_are_resampled_each_by_itself(
    data: st.DataObject, order: int, coarse: int, kind: str
) -> None:
    old, new = data.draw(sizes(3)), data.draw(sizes(3))
    array = volume((2, *old), kind)
    array[:, 0] = array[:, 0] // 2  # slices have ranges of their own
    found = resize(array, axes_of(old, new, order, coarse), coarse)
    limit = KINDS[kind] * float(WIDE[kind] + FAR[kind])
    np.testing.assert_allclose(
        found.astype(np.float64), by_slices(array, new, order, coarse), rtol=0, atol=limit
    )


@pytest.mark.parametrize("order", [0, 3])
@pytest.mark.parametrize(("kind", "value"), [("int16", 4071), ("uint16", 65535), ("float32", 0.1)])
def test_a_constant_image_stays_constant(order: int, kind: str, value: float) -> None:
    array = np.full((1, 7, 5, 9), value, kind)
    for coarse in (None, 0, 1, 2):
        found = resize(array, axes_of((7, 5, 9), (3, 11, 4), order, coarse), coarse)
        assert (found == np.asarray(value, kind).astype(found.dtype)).all()


def test_a_linear_map_of_a_constant_stays_within_rounding() -> None:
    found = resize(np.full((1, 7, 5, 9), 4071, np.int16), axes_of((7, 5, 9), (3, 11, 4), 1, None))
    np.testing.assert_allclose(found, 4071, rtol=1e-6)


@settings(max_examples=examples(15), deadline=None)
@given(old=st.integers(257, 420), new=st.integers(1, 500), at=st.integers(0, 2))
def test_long_axes_are_as_short_ones(old: int, new: int, at: int) -> None:
    """The two nearest voxels give what the whole matrix gives."""
    shape = [2, 3, 2]
    target = [3, 3, 2]
    shape[at], target[at] = old, new
    array = volume((1, *shape), "float64")
    axes = axes_of(shape, target, 1, None)
    found = resize(array, axes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "DENSE", 10**6)
        dense = resize(array, axes)
    np.testing.assert_allclose(found, dense, rtol=0, atol=1e-12 * 3071)
    np.testing.assert_allclose(found, by_skimage(array, tuple(target), 1), rtol=0, atol=4e-9)


@settings(max_examples=examples(60), deadline=None)
@given(old=st.integers(1, 60), new=st.integers(1, 60), order=ORDERS)
def test_flipped_axes_give_the_flipped_result(old: int, new: int, order: int) -> None:
    array = volume((1, 2, old), "float64")
    plain = resize(array, [AxisResize(2, 2, order), AxisResize(old, new, order)])
    turned = resize(
        array[..., ::-1], [AxisResize(2, 2, order), AxisResize(old, new, order, flipped=True)]
    )
    limit = 0 if order == 0 else 1e-9
    np.testing.assert_allclose(turned[..., ::-1], plain, rtol=0, atol=limit)


# --- slabs ----------------------------------------------------------------------------------------


@settings(max_examples=examples(120), deadline=None)
@given(
    data=st.data(),
    order=ORDERS,
    coarse=st.sampled_from([None, 0, 1, 2]),
    kind=st.sampled_from(["float64", "float32", "float16", "uint8"]),
    flips=st.tuples(*[st.booleans()] * 3),
)
def test_any_rows_have_the_bits_of_the_whole(
    data: st.DataObject, order: int, coarse: int | None, kind: str, flips: tuple[bool, ...]
) -> None:
    old, new = data.draw(sizes(3, 24)), data.draw(sizes(3, 24))
    array = (np.random.default_rng(0).random((2, *old)) * 200).astype(kind)
    axes = [
        AxisResize(a.old, a.new, a.order, f)
        for a, f in zip(axes_of(old, new, order, coarse), flips, strict=True)
    ]
    whole = resize(array, axes, coarse)
    first = data.draw(st.integers(0, new[0] - 1))
    end = data.draw(st.integers(first + 1, new[0]))
    for source in (array, lazy(array)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.files.pixels.ROWS", 3)
            patch.setattr("pipeline.files.pixels.SLAB", 500)
            part = resized(source, axes, coarse)
            assert part.shape == whole.shape
            np.testing.assert_array_equal(part[:, first:end], whole[:, first:end])
            fresh = resized(source, axes, coarse)
            for start in range(0, new[0], 5):
                np.testing.assert_array_equal(
                    fresh[:, start : start + 5], whole[:, start : start + 5]
                )


@pytest.mark.parametrize("size", [(33, 20, 30), (40, 300, 270)])
def test_rows_of_usual_sizes_have_the_bits_of_the_whole(size: tuple[int, ...]) -> None:
    """Larger planes go through other kernels of the linear algebra."""
    array = volume((1, *size), "float32")
    for order, new in itertools.product((1, 3), [(50, 31, 19), (21, 120, 310)]):
        axes = axes_of(size, new, order, None)
        whole, rows = resize(array, axes), resized(lazy(array), axes)
        for first, end in ((0, 1), (7, 18), (new[0] - 1, new[0])):
            np.testing.assert_array_equal(rows[:, first:end], whole[:, first:end])


def test_only_a_band_is_read() -> None:
    seen: list[tuple[int, int]] = []
    array = volume((1, 400, 6, 6), "float32")
    axes = axes_of((400, 6, 6), (200, 9, 3), 1, None)
    rows = resized(lazy(array, seen), axes)
    assert seen == []
    rows[:, 100:108]
    assert min(a for a, _ in seen) >= 190
    assert max(b for _, b in seen) <= 230
    seen.clear()
    for first in range(0, 200, 8):
        rows[:, first : first + 8]
    assert max(b - a for a, b in seen) <= 40
    cubic = resized(lazy(array, seen), axes_of((400, 6, 6), (200, 9, 3), 3, 0), 0)
    seen.clear()
    cubic[:, 100:108]
    assert min(a for a, _ in seen) >= 190
    assert max(b for _, b in seen) <= 226


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        resize(np.zeros((1, 3, 3)), axes_of((3, 4), (2, 2), 1, None))
    with pytest.raises(ValueError, match="order is 2"):
        resampling.operator(3, 4, 2)


# --- rules ----------------------------------------------------------------------------------------


@settings(max_examples=examples(200), deadline=None)
@given(
    pair=st.tuples(*[st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 1.5, 3.0, 3.1, 5.0])] * 3)] * 2)
)
def test_the_coarse_axis_is_that_of_nnunet(pair: tuple[tuple[float, ...], ...]) -> None:
    current, wanted = pair
    decisive = next((s for s in (current, wanted) if max(s) / min(s) > 3), None)
    rule = None if decisive is None else np.flatnonzero(np.array(decisive) == max(decisive))
    expected = None if rule is None or len(rule) > 1 else int(rule[0])
    assert coarse_axis(current, wanted, 3.0) == expected


def test_special_cases_of_the_coarse_axis() -> None:
    assert coarse_axis((1, 5), (1, 1), 3.0) is None  # pictures have no slices
    assert coarse_axis((1, 1, 9), (1, 1, 1), None) is None
    assert coarse_axis((1, 9, 9), (1, 1, 9), 3.0) is None  # a tie is not resolved by the other
    assert coarse_axis((3, 1, 1), (1, 1, 1), 3.0) is None  # not above 3


@settings(max_examples=examples(200), deadline=None)
@given(n=st.integers(1, 500), own=st.floats(0.01, 20), new=st.floats(0.01, 20))
def test_new_sizes_are_the_rounded_quotient(n: int, own: float, new: float) -> None:
    (found,) = new_size((n,), (own,), (new,))
    assert found >= 1
    assert found == 1 or abs(found - n * own / new) <= 0.501


# --- labels ---------------------------------------------------------------------------------------


def blobs(shape: tuple[int, ...], values: tuple[int, ...], seed: int) -> np.ndarray:
    """Labels of regions that touch each other."""
    rng = np.random.default_rng(seed)
    seeds = [rng.random(len(shape)) * shape for _ in range(2 * len(values))]
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    nearest = np.argmin([((grid - s) ** 2).sum(-1) for s in seeds], 0)
    return np.array(values)[nearest % len(values)][None].astype(np.uint8)


def shares(labels: np.ndarray, new: tuple[int, ...], coarse: int | None) -> dict[int, np.ndarray]:
    """Each class as a mask, by skimage."""
    out = {}
    for value in np.unique(labels):
        mask = (labels == value).astype(float)
        found = by_skimage(mask, new, 1) if coarse is None else by_slices(mask, new, 1, coarse)
        out[int(value)] = found[0]
    return out


@settings(max_examples=examples(80), deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 99),
    coarse=st.sampled_from([None, 0, 1, 2]),
    rule=st.sampled_from(["argmax", "half"]),
)
def test_labels_follow_their_rule(
    data: st.DataObject, seed: int, coarse: int | None, rule: str
) -> None:
    old, new = data.draw(sizes(3)), data.draw(sizes(3))
    labels = blobs(old, data.draw(st.sampled_from([(0, 1), (0, 1, 2), (3, 7, 250), (5,)])), seed)
    found = resampling.resize_labels(labels, axes_of(old, new, 1, coarse), rule)
    assert (found.dtype, found.shape) == (labels.dtype, (1, *new))
    assert set(np.unique(found)) <= set(np.unique(labels)) | ({0} if rule == "half" else set())
    by_class = shares(labels, new, coarse)
    stacked = np.stack(list(by_class.values()))
    if rule == "half":
        wanted = np.zeros(new, np.uint8)
        for value, share in by_class.items():
            wanted[share > 0.5] = value
        clear = (np.abs(stacked - 0.5) > 1e-5).all(0)
    else:
        wanted = np.array(list(by_class))[stacked.argmax(0)]
        ordered = np.sort(stacked, 0)
        clear = np.ones(new, bool) if len(ordered) < 2 else ordered[-1] - ordered[-2] > 1e-5
    np.testing.assert_array_equal(found[0][clear], wanted[clear])
    if rule == "argmax":  # of equals, the lowest number
        best = stacked >= stacked.max(0) - 1e-7
        tied = ~clear & (best.sum(0) > 1)
        np.testing.assert_array_equal(
            found[0][tied], np.array(list(by_class))[best.argmax(0)][tied]
        )


@pytest.mark.parametrize(
    ("old", "new", "values"),
    [
        ((2, 2, 3), (8, 1, 7), [0, 1, 1, 2, 1, 0, 2, 0, 2, 0, 1, 2]),
        ((3, 1, 5), (5, 7, 3), [0, 2, 1, 0, 2, 0, 2, 2, 1, 1, 1, 1, 1, 1, 1]),
        ((2, 3, 2), (8, 5, 6), [0, 0, 0, 0, 2, 1, 1, 1, 2, 1, 0, 0]),
    ],
)
def test_equal_shares_go_to_the_lowest_class_whatever_their_last_digits(
    old: tuple[int, ...], new: tuple[int, ...], values: list[int]
) -> None:
    labels = np.array(values, np.uint8).reshape(1, *old)
    stacked = np.stack(list(shares(labels, new, None).values()))
    wanted = (stacked >= stacked.max(0) - 1e-7).argmax(0)
    np.testing.assert_array_equal(
        resampling.resize_labels(labels, axes_of(old, new, 1, None))[0], wanted
    )


def test_where_three_classes_meet_no_hole_is_left() -> None:
    labels = np.array([[[1, 2], [3, 3]]], np.uint8)
    axes = axes_of((2, 2), (5, 5), 1, None)
    assert (resampling.resize_labels(labels, axes) > 0).all()
    assert (resampling.resize_labels(labels, axes, "half") == 0).any()


@pytest.mark.parametrize("rule", ["argmax", "half"])
@pytest.mark.parametrize("value", [0, 4])
def test_constant_labels_stay(rule: str, value: int) -> None:
    labels = np.full((1, 5, 4, 3), value, np.uint8)
    found = resampling.resize_labels(labels, axes_of((5, 4, 3), (2, 9, 7), 1, None), rule)
    assert (found == value).all()


@settings(max_examples=examples(60), deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 99),
    flips=st.tuples(*[st.booleans()] * 3),
    order=st.permutations(range(3)),
    rule=st.sampled_from(["argmax", "half"]),
)
def test_labels_turn_with_their_axes(
    data: st.DataObject, seed: int, flips: tuple[bool, ...], order: list[int], rule: str
) -> None:
    """Mirrored and permuted labels give the mirrored and permuted result, voxel by voxel."""
    old, new = data.draw(sizes(3, 10)), data.draw(sizes(3, 10))
    labels = blobs(old, (0, 1, 2, 5), seed)
    along = tuple(n + 1 for n, f in enumerate(flips) if f)

    def turned(array: np.ndarray) -> np.ndarray:
        return np.flip(array, along).transpose(0, *(a + 1 for a in order))

    plain = resampling.resize_labels(labels, axes_of(old, new, 1, None), rule)
    moved = resampling.resize_labels(
        np.ascontiguousarray(turned(labels)),
        axes_of([old[a] for a in order], [new[a] for a in order], 1, None),
        rule,
    )
    if rule == "argmax":
        np.testing.assert_array_equal(moved, turned(plain))
    else:  # shares of exactly one half are decided by rounding
        stacked = np.stack(list(shares(labels, new, None).values()))
        clear = np.asarray((np.abs(stacked - 0.5) > 1e-5).all(0))[None]
        np.testing.assert_array_equal(moved[turned(clear)], turned(plain)[turned(clear)])


def test_a_class_that_no_voxel_samples_is_lost_without_an_error() -> None:
    labels = np.zeros((1, 9, 1, 9), np.uint8)
    labels[:, 3] = 7
    labels[..., 6] = 9
    assert (resampling.resize_labels(labels, axes_of((9, 1, 9), (3, 1, 3), 1, None)) == 0).all()


def test_nearest_labels_keep_their_type() -> None:
    labels = blobs((6, 7, 8), (0, 1, 9), 0)
    found = resampling.resize_labels(labels, axes_of((6, 7, 8), (4, 9, 3), 0, None))
    np.testing.assert_array_equal(found, by_skimage(labels, (4, 9, 3), 0).astype(np.uint8))
