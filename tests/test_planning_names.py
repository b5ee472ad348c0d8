"""Groups, channels, objects, left and right: found where they are, and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Folds
from pipeline.data import patterns
from pipeline.planning.arrangement import arrange
from pipeline.planning.fingerprint import CaseFacts, Fingerprint
from pipeline.planning.look import fingerprint_of
from pipeline.planning.names import group_proposals, instances, unknown_channels
from pipeline.planning.sides import name_pairs, sides, swapped

Centre = tuple[float, ...]


def case(
    number: int,
    centres: Mapping[int, Centre],
    codes: str | None = "RAS",
    sizes: Mapping[int, int] | None = None,
    pieces: int = 1,
) -> CaseFacts:
    dims = len(next(iter(centres.values())))
    sizes = sizes or {}
    return CaseFacts(
        id=f"c{number}",
        shape=(100,) * dims,
        box=(100,) * dims,
        dtype="uint8",
        spacing=None,
        codes=codes and codes[:dims],
        family="nifti",
        voxels={0: 10**6, **{v: sizes.get(v, 1000) for v in centres}},
        components=dict.fromkeys(centres, pieces),
        centres=centres,
        extents=dict.fromkeys(centres, (10,) * dims),
        values=len(centres),
    )


def data_set(cases: Sequence[CaseFacts], names: Mapping[int, str] | None = None) -> Fingerprint:
    return Fingerprint(
        root="x",
        layout="nnunet",
        folders={},
        dims=len(cases[0].shape),
        task="labels",
        cases=tuple(cases),
        channels=(),
        class_names=names or {},
    )


# --- groups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "pattern", "groups"),
    [
        (["rat1_data1", "rat3_data9", "rat3_data10", "rat3_data11"], r"^([^_]+)_", 2),
        (["Image_01L", "Image_01R", "Image_02L", "Image_02R"], r"_(\d+)[LR]$", 2),
        (["p1_left", "p1_right", "p2_left"], r"^(.+)[_-](?:[LR]|[Ll]eft|[Rr]ight|OD|OS)$", 2),
        (["a-1", "a-2", "b-1"], r"^([^-]+)-", 2),
        (["s1_p1_a", "s1_p1_b", "s1_p2_a", "s2_p1_a"], r"^(.+)_[^_]+$", 3),
        (["12a", "12b", "13a"], r"^(.*\d)[A-Za-z]$", 2),
    ],
)
def test_groups_are_proposed(ids: list[str], pattern: str, groups: int) -> None:
    best = group_proposals(ids)[0]
    assert (best.pattern, best.groups) == (pattern, groups)
    assert f"{groups} groups in {len(ids)} names, e.g. " in best.text
    Folds(by="group", pattern=best.pattern)


@pytest.mark.parametrize(
    "ids",
    [
        [f"case_{n:03d}" for n in range(1, 41)],
        [f"hippocampus_{n}" for n in range(40)],
        [f"{n:03d}" for n in range(120)],
        [f"BraTS20_Training_{n:03d}" for n in range(50)],
        [f"{n}" for n in range(113625, 113650)],
        ["only"],
        [],
    ],
)
def test_counters_are_no_groups(ids: list[str]) -> None:
    assert group_proposals(ids) == ()


@given(st.lists(st.text("ab1_-L", min_size=1, max_size=8), min_size=2, max_size=12, unique=True))
def test_what_is_proposed_divides_all_ids(ids: list[str]) -> None:
    for found in group_proposals(ids):
        groups = patterns.first_groups(found.pattern, ids)
        assert all(groups)
        assert 2 <= len(set(groups)) == found.groups < len(ids)


# --- channels -------------------------------------------------------------------------------------


def test_channels() -> None:
    assert unknown_channels(["ct", "ZScore", "rescale_to_0_1", "rgb_to_0_1", "noNorm"]) == ()
    found = unknown_channels(["CT", "ct ", "Ct-scan", "MRI", "no_norm", "reactor"])
    assert [text.split(" is called ")[0] for text in found] == [
        "channel 1", "channel 2", "channel 3", "channel 4", "channel 5"
    ]  # fmt: skip
    assert [("call it CT" in t, "noNorm is meant" in t) for t in found] == [
        (True, False), (True, False), (False, False), (False, True), (False, False)
    ]  # fmt: skip


# --- objects --------------------------------------------------------------------------------------


def places(count: int, seed: int) -> dict[int, Centre]:
    rng = np.random.default_rng(seed)
    return {v: tuple(rng.uniform(0, 1, 2).tolist()) for v in range(1, count + 1)}


def test_cells_are_objects() -> None:
    found = instances(data_set([case(n, places(10 + 7 * n, n)) for n in range(8)]))
    assert found is not None
    assert (found.least, found.most, found.values) == (10, 59, 59)
    assert "10 to 59 values" in found.text


def test_objects_whose_numbers_have_gaps() -> None:
    rng = np.random.default_rng(0)
    made = [
        case(n, {int(v): (0.5, 0.5) for v in rng.choice(np.arange(1, 400), 30, replace=False)})
        for n in range(6)
    ]
    assert instances(data_set(made)) is not None


def test_one_stack_of_objects() -> None:
    assert instances(data_set([case(0, places(50, 0))])) is not None


def test_organs_are_classes() -> None:
    def organs(seed: int) -> dict[int, Centre]:
        keep = np.random.default_rng(seed).random(104) < 0.9
        return {v: c for v, c in places(104, 1).items() if keep[v - 1]}

    cases = [case(n, organs(n)) for n in range(20)]
    assert instances(data_set(cases)) is None
    assert instances(data_set(cases, {v: f"organ {v}" for v in range(1, 105)})) is None


@pytest.mark.parametrize("count", range(1, 8))
def test_few_classes_are_no_objects(count: int) -> None:
    cases = [case(n, places(1 + n % count, n)) for n in range(8)]
    assert instances(data_set(cases)) is None


def test_classes_in_pieces_are_no_objects() -> None:
    cases = [case(n, places(10 + n, n), pieces=5) for n in range(8)]
    assert instances(data_set(cases)) is None


# --- left and right -------------------------------------------------------------------------------


def test_names_with_sides() -> None:
    names = {
        1: "LeftParotid", 2: "RightParotid", 3: "lung_L", 4: "lung_R", 5: "Niere links",
        6: "Niere rechts", 7: "rein gauche", 8: "rein droit", 9: "rightkidney", 10: "leftkidney",
        11: "L-Eye", 12: "R-Eye", 13: "bright", 14: "light", 15: "L1", 16: "Liver",
    }  # fmt: skip
    assert name_pairs(names) == [(1, 2), (3, 4), (5, 6), (7, 8), (10, 9), (11, 12)]


def body(seed: int, left: float = 0.3, right: float = 0.7) -> dict[int, Centre]:
    """In RAS: class 1 on the left, 2 on the right, 3 in the middle, 4 in front of it."""
    rng = np.random.default_rng(seed)
    spot = {1: (left, 0.5, 0.4), 2: (right, 0.5, 0.4), 3: (0.5, 0.3, 0.6), 4: (0.5, 0.8, 0.6)}
    return {v: tuple((np.array(c) + rng.normal(0, 0.01, 3)).tolist()) for v, c in spot.items()}


NAMES = {1: "kidney left", 2: "kidney right", 3: "spine", 4: "stomach"}


def test_pairs_by_name_and_by_position() -> None:
    cases = [case(n, body(n)) for n in range(10)]
    both = sides(data_set(cases, NAMES))
    assert [(p.left, p.right, p.axis, p.by, p.odd) for p in both] == [(1, 2, "LR", "both", ())]
    placed = sides(data_set(cases))
    assert [(p.left, p.right, p.axis, p.by) for p in placed] == [(1, 2, "LR", "position")]
    turned = [
        dataclasses.replace(
            c,
            codes="SLA",
            centres={v: (p[2], 1 - p[0], p[1]) for v, p in c.centres.items()},
        )
        for c in cases
    ]
    assert [(p.left, p.right, p.axis) for p in sides(data_set(turned))] == [(1, 2, "LR")]
    alone = [dataclasses.replace(c, codes=None) for c in turned]
    found = {p.axis: {p.left, p.right} for p in sides(data_set(alone))}
    assert found[1] == {1, 2}
    swapped_case = dataclasses.replace(cases[3], centres=body(3, left=0.7, right=0.3))
    odd = data_set([*cases[:3], swapped_case, *cases[4:]], NAMES)
    assert [p.odd for p in sides(odd)] == [("c3",)]
    assert [o.case for o in swapped(sides(odd), odd)] == ["c3"]


def test_names_that_contradict_all_headers() -> None:
    found = data_set([case(n, body(n, 0.7, 0.3)) for n in range(6)], NAMES)
    (oddity,) = swapped(sides(found), found)
    assert oddity.case == ""
    assert "to the right of kidney right in 6 of 6 cases" in oddity.text


def test_names_alone() -> None:
    centres = {1: (0.5, 0.5), 2: (0.5, 0.6)}
    flat = data_set([case(n, centres, None) for n in range(5)], {1: "a_L", 2: "a_R"})
    assert [(p.left, p.right, p.axis, p.by) for p in sides(flat)] == [(1, 2, None, "name")]


def test_what_is_no_pair() -> None:
    unequal = [case(n, body(n), sizes={1: 4000}) for n in range(10)]
    assert sides(data_set(unequal)) == ()
    random = [case(n, places(4, n), None) for n in range(10)]
    assert sides(data_set(random)) == ()
    one_sided = [case(n, body(n, 0.6, 0.9)) for n in range(10)]
    assert sides(data_set(one_sided)) == ()
    few = [case(n, body(n)) for n in range(2)]
    assert sides(data_set(few)) == ()


@pytest.mark.slow
def test_parotids(shared_data: Path) -> None:
    found = fingerprint_of(arrange(shared_data / "openkbp_oar"))
    assert [(p.left, p.right, p.by) for p in sides(found)] == [(4, 3, "both")]
    unnamed = dataclasses.replace(found, class_names={})
    assert [(p.left, p.right, p.by) for p in sides(unnamed)] == [(4, 3, "position")]
    blank = tuple(dataclasses.replace(c, codes=None) for c in found.cases)
    (pair,) = sides(dataclasses.replace(unnamed, cases=blank))
    assert ({pair.left, pair.right}, pair.axis) == ({3, 4}, 0)
