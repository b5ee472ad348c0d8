"""The table of post-processing steps: a step is added in one place, an alias is the entry it stands
for, tuning tries what it did.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_blocks import compare_by_slabs

from pipeline import morphology, postprocess
from pipeline.config import ConfigError
from pipeline.postprocess import POSTPROCESS, PostprocessStep, StepSearch, each_class
from pipeline.records import NamedOptions, UserError
from pipeline.tuning import search

FIXTURE = Path(__file__).parent / "fixtures" / "search_space.json"


def part(name: str, **options: Any) -> NamedOptions:
    return NamedOptions(name=name, options=options)


# --- a step that somebody adds --------------------------------------------------------------------


def foreground(array: np.ndarray, at: float = 0.5) -> np.ndarray:
    """Everything that is probably no background, in wide numbers."""
    return (1 - array[0] >= at).astype(np.uint16)


def mark_ends(array: np.ndarray, value: int = 2) -> np.ndarray:
    """The first foreground voxel of each row along the last axis as a class of its own."""
    out = array.copy()
    seen = (array > 0).cumsum(-1) == 1
    out[seen & (array > 0)] = value
    return out


def tidy(array: Any, below: int = 4) -> Any:
    """Without specks, then without holes."""
    return each_class(
        array, lambda mask: morphology.fill_holes(morphology.remove_small_components(mask, below))
    )


def upside_down(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array[::-1])


ADDED = {
    "foreground": PostprocessStep(
        run=foreground,
        decides="several",
        sees="local",
        search=StepSearch(
            position=0,
            options=lambda _: [{"at": 0.3}],
            vary={"at": lambda old: [old - 0.1, old + 0.1, old + 1]},
        ),
    ),
    "mark_ends": PostprocessStep(run=mark_ends, sees="local"),
    "tidy": PostprocessStep(
        run=tidy,
        sees="components",
        search=StepSearch(
            position=2.5, options=lambda setting: [{"below": n} for n in setting.voxels(10, 40)]
        ),
    ),
    "upside_down": PostprocessStep(run=upside_down, bytes_per_voxel=3),
}


@pytest.fixture(autouse=True)
def added() -> Iterator[Mapping[str, PostprocessStep]]:
    """The table as a plugin leaves it, taken back after the test."""
    with POSTPROCESS.restored():
        for name, entry in ADDED.items():
            POSTPROCESS.add(name, entry)
        yield ADDED


def test_an_added_step_is_checked() -> None:
    postprocess.check(
        [part("foreground", at=0.4), part("tidy"), part("mark_ends"), part("upside_down")],
        channels=3,
    )
    postprocess.check([part("foreground")])  # of several channels, where nobody says how many
    for steps, words in (
        ([part("tidyy")], "Did you mean 'tidy'"),
        ([part("tidy", size=3)], "no option 'size'.*below"),
        ([part("tidy", below="many")], "below"),
        ([part("tidy"), part("foreground")], "postprocess.1.*'foreground' takes a soft prediction"),
    ):
        with pytest.raises(ConfigError, match=words):
            postprocess.check(steps)
    with pytest.raises(
        ConfigError,
        match="'foreground' decides predictions of two channels or more, this one has 1",
    ):
        postprocess.check([part("foreground")], channels=1)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_step_that_is_not_local_cannot_say_so(dims: int) -> None:
    """By slabs it would give another answer, which nobody would see."""
    POSTPROCESS.add(
        "numbered",
        PostprocessStep(
            lambda array: array * np.arange(len(array)).reshape(-1, *[1] * (dims - 1)), sees="local"
        ),
    )
    POSTPROCESS.add("again", PostprocessStep(upside_down, sees="local"))
    for name in ("numbered", "again"):
        (fault,) = postprocess.faults([part("threshold"), part(name)], 1, dims)
        assert f"{name!r} says that it changes each row by itself" in fault
    assert (
        list(
            postprocess.faults(
                [part("threshold"), part("fill_holes", per_slice=0)][: dims - 1], 1, dims
            )
        )
        == []
    )


def test_an_added_deciding_step_is_one() -> None:
    steps = (part("foreground"), part("dust"))
    assert postprocess.decided(steps, 3) == steps
    assert postprocess.adjust(steps, threshold=0.3)[0] == part("threshold", at=0.3)
    assert postprocess.adjust((part("upside_down"),), min_component_size=5) == (
        part("dust", below=5),
        part("upside_down"),
    )


@settings(max_examples=40, deadline=None)
@given(
    shape=st.one_of(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 12)] * 2)),
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 10),
    names=st.lists(st.sampled_from(["tidy", "mark_ends", "upside_down", "dust"]), max_size=4),
)
def test_added_steps_by_slabs_give_what_memory_gives(
    shape: tuple[int, ...],
    seed: int,
    rows: int,
    names: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    soft = np.random.default_rng(seed).dirichlet(np.ones(3), shape).astype(np.float32)
    steps = [
        part("foreground"),
        *(part(name, below=3) if name == "dust" else part(name) for name in names),
    ]
    compare_by_slabs(
        steps, np.ascontiguousarray(np.moveaxis(soft, -1, 0)), tmp_path_factory.mktemp("work"), rows
    )


def test_memory_is_that_of_the_record() -> None:
    steps = (part("threshold"), part("tidy"), part("mark_ends"))
    postprocess.check_memory(steps, 1, (100, 100, 100), available=1)
    with pytest.raises(
        UserError,
        match=r"'upside_down' .*Only .*fill_holes, foreground, mark_ends, tidy work block by block",
    ):
        postprocess.check_memory(
            (*steps, part("upside_down")), 1, (100, 100, 100), available=2_999_999
        )
    postprocess.check_memory((*steps, part("upside_down")), 1, (100, 100, 100), available=3_000_000)


def test_an_added_step_is_searched() -> None:
    stages = search.space((part("argmax"),), 160, channels=3, dims=3)
    assert stages[0] == ((part("argmax"),), (part("foreground", at=0.3),))
    names = [{step.name for steps in stage for step in steps} for stage in stages]
    assert names[2:5] == [{"dust", "largest_component"}, {"tidy"}, {"closing", "sheet_closing"}]
    assert stages[3] == ((), (part("tidy", below=40),), (part("tidy", below=160),))
    own = search.space((part("foreground"),), 160, channels=3, dims=3)[0]
    assert own == tuple(
        (part("foreground", **o),) for o in ({}, {"at": 0.4}, {"at": 0.6}, {"at": 1.5}, {"at": 0.3})
    )
    assert all(s[0].name != "foreground" for s in search.space((), 160, channels=1, dims=3)[0])


# --- names that stand for others ------------------------------------------------------------------

ALIAS = part("remove_small_components", min_size=4, connectivity=6)


def test_an_alias_is_the_step_that_it_stands_for() -> None:
    soft = np.random.default_rng(1).random((1, 9, 9, 9), np.float32)
    postprocess.check([ALIAS])
    np.testing.assert_array_equal(
        postprocess.apply([ALIAS], soft),
        postprocess.apply([part("dust", below=4, connectivity=6)], soft),
    )
    assert POSTPROCESS["remove_small_components"] is POSTPROCESS["dust"]
    assert "remove_small_components" not in list(POSTPROCESS)
    assert postprocess.resolved(ALIAS) == part("dust", below=4, connectivity=6)
    other = postprocess.resolved(part("watershed_boundaries", low=0.3, depth=2.0))
    assert other == part("walls", low=0.3, depth=2.0)
    postprocess.check_memory((ALIAS,), 1, (1000, 1000, 1000), available=1)
    with pytest.raises(ConfigError, match="no option 'most'"):
        postprocess.check([part("remove_small_components", most=3)])


def test_the_command_line_finds_a_step_under_its_alias() -> None:
    steps = (part("threshold"), ALIAS)
    assert postprocess.adjust(steps) == steps
    assert postprocess.adjust(steps, min_component_size=9) == (
        steps[0],
        part("dust", below=9, connectivity=6),
    )
    assert postprocess.adjust(steps, min_component_size=0) == steps[:1]
    assert postprocess.adjust(steps, kernel_size=3) == (steps[0], part("closing", size=3), ALIAS)


# --- what tuning tries ----------------------------------------------------------------------------


def words(steps: tuple[NamedOptions, ...]) -> str:
    return " | ".join(
        " ".join([s.name, *(f"{k}={v}" for k, v in s.options.items())]) for s in steps
    )


@pytest.mark.parametrize(
    "row",
    json.loads(FIXTURE.read_text()),
    ids=lambda row: f"{row['own'] or 'none'} {row['edge']}^{row['dims']}",
)
def test_the_search_space_is_what_it_was(
    row: dict[str, Any], added: Mapping[str, PostprocessStep]
) -> None:
    own = tuple(part(name, **options) for name, options in row["own"])
    with POSTPROCESS.restored() as entries:
        for name in (*added, "largest_component"):  # which was not tried then
            del entries[name]
        stages = search.space(own, row["edge"], row["channels"], row["dims"])
    assert [[words(steps) for steps in stage] for stage in stages] == row["stages"]


@pytest.mark.parametrize("channels", [1, 4])
def test_the_largest_component_is_an_alternative_to_small_ones(channels: int) -> None:
    stages = search.space((), 80, channels, 3)
    (stage,) = (s for s in stages if any(w and w[0].name == "dust" for w in s))
    assert stage[0] == ()
    assert stage[-1] == (part("largest_component"),)
    assert len(stage) == 6
