"""Betti matching: known barcodes, Betti numbers at every threshold, the definition by plain
matrices, the official scorer's answers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.morphology import betti_numbers
from pipeline.morphology.counts import matching_counts
from pipeline.morphology.matching import Pairs, lowest_ones, match
from pipeline.records import UserError

FEW = settings(max_examples=30, deadline=None)


def bars(pairs: Pairs, side: int) -> np.ndarray:
    """All features of the first (0) or second (1) array, matched or not: ``(F, 2)``."""
    return np.concatenate(
        [pairs.matched[:, 2 * side : 2 * side + 2], (pairs.first, pairs.second)[side]]
    )


def counts(pairs: tuple[Pairs, ...]) -> list[list[int]]:
    return [[len(p.matched), len(bars(p, 0)), len(bars(p, 1))] for p in pairs]


def same(a: tuple[Pairs, ...], b: tuple[Pairs, ...]) -> bool:
    return all(
        np.array_equal(getattr(x, n), getattr(y, n))
        for x, y in zip(a, b, strict=True)
        for n in Pairs.__slots__
    )


@st.composite
def couples(
    draw: st.DrawFn, axes: int | None = None, longest: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of one small shape: random reals, or few levels and therefore many ties."""
    shape = draw(st.lists(st.integers(1, longest), min_size=axes or 2, max_size=axes or 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([0, 2, 4]))
    pair = (
        rng.integers(levels, size=(2, *shape)).astype(float)
        if levels
        else rng.normal(size=(2, *shape))
    )
    return pair[0], pair[1]


# ---------------------------------------------------------------- known barcodes


def test_two_valleys_and_a_pass() -> None:
    terrain = np.array([[3.0, 0.0, 5.0, 1.0, 7.0]])
    components, holes = match(terrain, terrain)
    assert components.matched.tolist() == [
        [3, 2, 3, 2]
    ]  # the valley of depth 1 dies at the pass of height 5
    assert components.essential.tolist() == [[1, 1]]
    assert len(holes.matched) == len(holes.essential) == 0


def ring() -> np.ndarray:
    """A ring of 0, its weakest voxel 2 high, around a peak of 7."""
    return np.array([[0.0, 0.0, 0.0], [0.0, 7.0, 2.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("axis", [None, 0, 1, 2], ids=["image", "flat 0", "flat 1", "flat 2"])
def test_a_ring(axis: int | None) -> None:
    x = ring() if axis is None else np.expand_dims(ring(), axis)
    found = match(x, x)
    assert counts(found) == [[0, 0, 0], [1, 1, 1], [0, 0, 0]][: x.ndim]
    assert found[1].matched.tolist() == [[5, 4, 5, 4]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tube_has_the_tunnel_of_its_ring(axis: int) -> None:
    x = np.stack([ring(), ring()], axis)
    found = match(x, x)
    voxels = np.stack(
        [np.arange(9).reshape(3, 3)] * 2, axis
    ).ravel()  # place in the ring of each voxel of the tube
    assert counts(found) == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert voxels[bars(found[1], 0)].tolist() == [[5, 4]]


def test_a_hollow_ball() -> None:
    x = np.zeros((3, 3, 3))
    x[1, 1, 1], x[0, 1, 1] = 9, 3
    found = match(x, x)
    assert counts(found) == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert found[2].matched.tolist() == [[4, 13, 4, 13]]


def test_features_in_different_places_do_not_match() -> None:
    left, right = (
        np.pad(ring(), ((0, 0), (0, 4)), constant_values=9),
        np.pad(ring(), ((0, 0), (4, 0)), constant_values=9),
    )
    _, holes = match(left, right)
    assert (len(holes.matched), holes.first.tolist(), holes.second.tolist()) == (
        0,
        [[9, 8]],
        [[13, 12]],
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (1, 5), (1, 1, 5), (2, 1, 1), (4, 4, 4)])
def test_a_constant_has_no_features(shape: tuple[int, ...]) -> None:
    found = match(np.ones(shape), np.zeros(shape))
    assert counts(found) == [[0, 0, 0]] * len(shape)
    assert [p.essential.tolist() for p in found] == [[[0, 0]]] + [[]] * (len(shape) - 1)
    assert all(getattr(p, name).dtype == np.int64 for p in found for name in Pairs.__slots__)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, np.float64])
def test_any_type_of_number(kind: type) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(2, size=(2, 6, 6, 6))
    assert same(match(a.astype(kind), b.astype(kind)), match(a, b))


def test_nan_is_the_largest_value() -> None:
    a, b = np.random.default_rng(0).random((2, 5, 6))
    a[2, 2] = np.nan
    b[1, 4] = np.nan
    assert same(match(a, b), match(np.nan_to_num(a, nan=2), np.nan_to_num(b, nan=2)))


@pytest.mark.parametrize(
    "shapes", [((3, 3), (3, 4)), ((3,), (3,)), ((2, 2, 2, 2), (2, 2, 2, 2)), ((0, 3), (0, 3))]
)
def test_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(UserError, match=r"of one shape, \(Y, X\) or \(Z, Y, X\), not empty"):
        match(*map(np.zeros, shapes))


# ---------------------------------------------------------------- properties


@FEW
@given(couples())
def test_bars_are_the_betti_numbers_at_every_threshold(
    couple: tuple[np.ndarray, np.ndarray],
) -> None:
    found = match(*couple)
    for side, x in enumerate(couple):
        values = x.ravel()
        for level in np.unique(values):
            alive = [
                int(((values[b[:, 0]] <= level) & (level < values[b[:, 1]])).sum())
                for b in (bars(p, side) for p in found)
            ]
            alive[0] += int(values[found[0].essential[0, side]] <= level)
            assert tuple(alive) == betti_numbers(x <= level, connectivity=6)


@FEW
@given(couples(longest=9))
def test_binary_masks_have_the_counts_of_the_mask_matcher(
    couple: tuple[np.ndarray, np.ndarray],
) -> None:
    a, b = (x > 0.5 for x in couple)
    assert counts(match(~a, ~b)) == [list(row) for row in matching_counts(a, b)]


@FEW
@given(couples())
def test_an_array_matches_itself(couple: tuple[np.ndarray, np.ndarray]) -> None:
    for pairs in match(couple[0], couple[0]):
        assert len(pairs.first) == len(pairs.second) == 0
        assert np.array_equal(pairs.matched[:, :2], pairs.matched[:, 2:])


@FEW
@given(
    couples(),
    st.sampled_from(
        [lambda x: x + 3, lambda x: 0.5 * x - 1, np.arctan, lambda x: np.sign(x) * x**2]
    ),
)
def test_only_the_order_of_values_counts(
    couple: tuple[np.ndarray, np.ndarray], change: Callable[[Any], Any]
) -> None:
    assert same(match(*couple), match(*map(change, couple)))


@FEW
@given(couples())
def test_swapped_arguments_swap_roles(couple: tuple[np.ndarray, np.ndarray]) -> None:
    for there, back in zip(match(*couple), match(*couple[::-1]), strict=True):
        assert np.array_equal(there.matched, back.matched[:, [2, 3, 0, 1]])
        assert np.array_equal(there.first, back.second)
        assert np.array_equal(there.second, back.first)
        assert np.array_equal(there.essential, back.essential[:, ::-1])


@FEW
@given(couples(axes=2), st.integers(0, 2))
def test_a_flat_volume_is_an_image(couple: tuple[np.ndarray, np.ndarray], axis: int) -> None:
    volume = match(*(np.expand_dims(x, axis) for x in couple))
    assert same(match(*couple), volume[:2])
    assert counts(volume)[2] == [0, 0, 0]


# ---------------------------------------------------------------- the definition, by matrices over

Cell = tuple[tuple[int, ...], tuple[int, ...]]
"""Smallest corner, and the axes along which the cell extends."""


class Plain:
    """A volume's cells and their order, each looked up on its own."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def vertices(self, cell: Cell) -> Iterator[tuple[int, ...]]:
        corner, axes = cell
        for on in itertools.product((0, 1), repeat=len(axes)):
            yield tuple(
                c + sum(o for o, a in zip(on, axes, strict=True) if a == axis)
                for axis, c in enumerate(corner)
            )

    def creator(self, cell: Cell) -> int:
        return max(
            (self.values[v], int(np.ravel_multi_index(v, self.values.shape)))
            for v in self.vertices(cell)
        )[1]

    def value(self, cell: Cell) -> float:
        return max(self.values[v] for v in self.vertices(cell))

    def key(self, cell: Cell) -> tuple[float, tuple[int, ...], tuple[int, ...]]:
        corner, axes = cell
        return (
            self.value(cell),
            corner,
            tuple(sorted({0, 1, 2} - set(axes))) if len(axes) == 2 else axes,
        )

    def cells(self, dimension: int) -> list[Cell]:
        corners = itertools.product(*map(range, self.values.shape))
        both = itertools.product(corners, itertools.combinations(range(3), dimension))
        return [(c, axes) for c, axes in both if all(c[a] + 1 < self.values.shape[a] for a in axes)]


def faces(cell: Cell) -> set[Cell]:
    corner, axes = cell
    rest = [(a, tuple(b for b in axes if b != a)) for a in axes]
    return {
        (tuple(c + far * (i == a) for i, c in enumerate(corner)), others)
        for a, others in rest
        for far in (0, 1)
    }


def reduction(columns: Plain, rows: Plain, dimension: int) -> dict[Cell, Cell]:
    """Which cell one lower each cell of ``dimension`` is paired with."""
    owners: dict[Cell, set[Cell]] = {}
    pairs = {}
    for cell in sorted(columns.cells(dimension), key=columns.key):
        column = faces(cell)
        while column and (pivot := max(column, key=rows.key)) in owners:
            column = column ^ owners[pivot]
        if column:
            owners[pivot], pairs[cell] = column, pivot
    return pairs


def by_definition(
    first: np.ndarray, second: np.ndarray, dimension: int
) -> list[list[tuple[int, ...]]]:
    """Matched, first's and second's features as in ``Pairs``."""
    arrays, union = [Plain(first), Plain(second)], Plain(np.minimum(first, second))
    features: list[dict[Cell, tuple[int, int]]] = []
    for x in arrays:
        pairs = reduction(x, x, dimension + 1)
        features.append(
            {b: (x.creator(b), x.creator(d)) for d, b in pairs.items() if x.value(b) != x.value(d)}
        )
    image = [reduction(union, x, dimension + 1) for x in arrays]
    matched = []
    for death, birth in reduction(union, union, dimension + 1).items():
        a, b = (pairs[death] for pairs in image)
        if union.value(birth) != union.value(death) and a in features[0] and b in features[1]:
            matched.append(features[0].pop(a) + features[1].pop(b))
    return [sorted(matched), *(sorted(f.values()) for f in features)]


@settings(max_examples=25, deadline=None)
@given(couples(axes=3, longest=3), st.integers(0, 2))
def test_small_volumes_against_the_definition(
    couple: tuple[np.ndarray, np.ndarray], dimension: int
) -> None:
    found = match(*couple)[dimension]
    got = [
        sorted(map(tuple, getattr(found, name).tolist())) for name in ("matched", "first", "second")
    ]
    assert got == by_definition(*couple, dimension)


@settings(max_examples=15, deadline=None)
@given(couples(axes=2, longest=6))
def test_holes_of_an_image_are_those_of_the_reduction(
    couple: tuple[np.ndarray, np.ndarray],
) -> None:
    found = match(*couple)[1]
    got = [
        sorted(map(tuple, getattr(found, name).tolist())) for name in ("matched", "first", "second")
    ]
    assert got == by_definition(couple[0][None], couple[1][None], 1)


def test_columns_that_fill_up() -> None:
    """Random sparse matrices, unlike the cells of volumes, soon become dense."""
    rng, size = np.random.default_rng(0), 200
    owners: dict[int, set[int]] = {}
    columns, pivots = [], []
    while len(columns) < size:
        column = set(rng.choice(size, rng.integers(3, 5), replace=False).tolist())
        plain = [*column, -1][:4]
        while column and max(column) in owners:
            column = column ^ owners[max(column)]
        if column:
            owners[max(column)] = column
            columns.append(plain)
            pivots.append(max(column))
    assert sum(map(len, owners.values())) > 8 * size
    assert lowest_ones(np.array(columns)).tolist() == pivots


# ---------------------------------------------------------------- the official scorer


def octants(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    halves = [[slice(0, (n + 1) // 2), slice((n + 1) // 2, n)][: min(n, 2)] for n in shape]
    return itertools.product(*halves)


@pytest.mark.parametrize(
    "family", ["random_fields", "sparse_blobs", "salt", "sheets", "tubes", "hollow", "degenerate"]
)
def test_official_counts(shared_data: Path, family: str) -> None:
    folder = shared_data / "competition_metric"
    expected = json.loads((folder / "expected.json").read_text())
    with np.load(folder / f"{family}.npz") as arrays:
        names = sorted({key.split(".")[0] for key in arrays.files})
        shapes = {name: tuple(arrays[f"{name}.shape"]) for name in names}
        for name in sorted(names, key=lambda name: np.prod(shapes[name]))[2:20:6]:
            masks = {
                k: np.unpackbits(arrays[f"{name}.{k}"], count=np.prod(shapes[name])) > 0
                for k in ("pred", "fg", "ignore")
            }
            pred, label = (
                (masks[k] & ~masks["ignore"]).reshape(shapes[name]) for k in ("pred", "fg")
            )
            got = [counts(match(~pred[octant], ~label[octant])) for octant in octants(pred.shape)]
            assert got == expected[name]["octant_counts_mpg"], name
