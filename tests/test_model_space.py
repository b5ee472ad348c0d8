"""The way to model space and back is exact, in memory and for what is read as it is sliced."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.model_space import ModelSpace
from pipeline.files import Rows
from pipeline.grid import Alignment

WAYS = [
    Alignment(axes=axes, flips=flips)
    for axes in itertools.permutations(range(3))
    for flips in itertools.chain.from_iterable(
        itertools.combinations(range(3), n) for n in range(4)
    )
]


def lazy(array: np.ndarray, seen: list[int] | None = None) -> Rows:
    def make(first: int, end: int) -> np.ndarray:
        (seen if seen is not None else []).append(end - first)
        return array[:, first:end].copy()

    return Rows(array.shape, array.dtype, make)


def test_there_are_48_ways_and_each_has_its_inverse() -> None:
    array = np.random.default_rng(0).random((2, 3, 4, 5))
    assert len(WAYS) == len(set(WAYS)) == 48
    for way in WAYS:
        moved = way.apply(array)
        assert moved.shape[1:] == way.size(array.shape[1:])
        np.testing.assert_array_equal(way.inverse.apply(moved), array)
        assert way.inverse.inverse == way


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    way=st.sampled_from(WAYS),
    size=st.tuples(*[st.integers(1, 9)] * 3),
    kind=st.sampled_from(["uint8", "float32", "int16"]),
    channels=st.integers(1, 3),
)
def test_there_and_back_is_the_array(
    way: Alignment, size: tuple[int, int, int], kind: str, channels: int, tmp_path_factory: Any
) -> None:
    array = (np.random.default_rng(0).random((channels, *size)) * 100).astype(kind)
    space = ModelSpace(alignment=way)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.files.pixels.ROWS", 2)
        patch.setattr("pipeline.files.pixels.SLAB", 40)
        there = space.to_model(array)
        assert there.shape[1:] == space.size(size)
        np.testing.assert_array_equal(space.to_file(there), array)
        folder: Path = tmp_path_factory.mktemp("scratch")
        other = space.to_model(lazy(array), folder / "input.npy")
        np.testing.assert_array_equal(other[:], there)
        assert (other.shape, np.dtype(other.dtype)) == (there.shape, there.dtype)
        back = space.to_file(other, folder / "main.npy")
        np.testing.assert_array_equal(back[:, 1:], array[:, 1:])


def test_identity_costs_nothing() -> None:
    array = np.zeros((1, 2, 3, 4))
    rows = lazy(array)
    assert ModelSpace().to_model(array) is array
    assert ModelSpace().to_file(rows) is rows


def test_rows_are_made_as_they_are_needed(tmp_path: Path) -> None:
    """Where the first axis stays nothing is read beforehand and no file is made."""
    seen: list[int] = []
    space = ModelSpace(alignment=Alignment(axes=(0, 2, 1), flips=(0, 2)))
    rows = space.to_model(lazy(np.zeros((1, 20, 3, 4)), seen), tmp_path / "x.npy")
    assert (seen, list(tmp_path.iterdir())) == ([], [])
    assert rows[:, 4:6].shape == (1, 2, 4, 3)
    assert seen == [2]
