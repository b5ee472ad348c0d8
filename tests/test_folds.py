"""Folds: the source's split to the letter, nobody on both sides, nobody lost, equal images
together, one file for ever.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from pipeline import config, files
from pipeline.data import folds
from pipeline.records import Case, UserError


def make(ids: list[str], groups: list[str] | None = None) -> list[Case]:
    return [
        Case(id=name, image=(Path(f"{name}.tif"),), group=groups[i] if groups else None)
        for i, name in enumerate(ids)
    ]


def test_786_cases_split_as_in_the_source() -> None:
    ids = [str(n) for n in np.random.default_rng(0).permutation(10**6)[:786]]
    result = folds.split(make(ids), {name: f"sha{name}" for name in ids}, config.Folds(), seed=42)
    assert [(len(s.train), len(s.val)) for s in result] == [(628, 158)] + [(629, 157)] * 4
    paths = sorted(ids)
    for (train, val), mine in zip(
        KFold(n_splits=5, shuffle=True, random_state=42).split(paths), result, strict=True
    ):
        assert mine == folds.Split(
            train=tuple(paths[i] for i in train), val=tuple(paths[i] for i in val)
        )


def inseparable_sets(members: list[tuple[int, int]], by: str) -> int:
    """Merge sets that share a group (where that counts) or an image, until nothing changes."""
    sets = [({("g", g)} if by == "group" else set()) | {("c", c)} for g, c in members]
    merged: list[set] = []
    for ties in sets:
        touching = [s for s in merged if s & ties]
        merged = [s for s in merged if not s & ties] + [ties.union(*touching)]
    return len(merged)


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(2, 5),
    by=st.sampled_from(["case", "group"]),
    seed=st.integers(0, 5),
    members=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 30)), min_size=1, max_size=40),
)
def test_every_split_is_a_partition_that_keeps_ties_together(
    count: int, by: str, seed: int, members: list[tuple[int, int]]
) -> None:
    ids = [f"c{i}" for i in range(len(members))]
    group = {name: f"g{g}" for name, (g, _) in zip(ids, members, strict=True)}
    content = {name: f"sha{c}" for name, (_, c) in zip(ids, members, strict=True)}
    every = make(ids, [group[name] for name in ids])
    rules = config.Folds(count=count, by=by)  # type: ignore[arg-type]
    if inseparable_sets(members, by) < count:
        with pytest.raises(UserError, match="count is"):
            folds.split(every, content, rules, seed)
        return
    result = folds.split(every, content, rules, seed)
    assert Counter(name for s in result for name in s.val) == Counter(ids)
    for s in result:
        assert sorted(s.train + s.val) == sorted(ids)
        assert s.val
        assert not {content[n] for n in s.train} & {content[n] for n in s.val}
        assert by == "case" or not {group[n] for n in s.train} & {group[n] for n in s.val}
    assert result == folds.split(every[::-1], content, rules, seed)


def test_the_seed_matters_and_groups_are_shuffled() -> None:
    ids = [f"c{i}" for i in range(40)]
    every = make(ids, [f"g{i % 10}" for i in range(40)])
    for by in ("case", "group"):
        rules = config.Folds(by=by)
        assert (
            len({tuple(s.val for s in folds.split(every, {}, rules, seed)) for seed in range(5)})
            == 5
        )


def test_too_little_to_split_is_told_with_counts() -> None:
    with pytest.raises(UserError, match=r"count is 5, but there are only 3 cases.*at most 3"):
        folds.split(make(["a", "b", "c"]), {}, config.Folds(), 0)
    with pytest.raises(UserError, match="only 2 cases with different images"):
        folds.split(make(["a", "b", "c"]), {"a": "x", "b": "x", "c": "y"}, config.Folds(count=3), 0)
    with pytest.raises(UserError, match=r"only 2 groups \(4 cases\).*by=case"):
        folds.split(make(list("abcd"), list("1122")), {}, config.Folds(count=3, by="group"), 0)
    every = make(["b"], ["1"]) + make(["c", "a"])
    with pytest.raises(UserError, match=r"2 of 3 cases have no group: a, c.*data.folds.pattern="):
        folds.split(every, {}, config.Folds(by="group"), 0)
    with pytest.raises(UserError, match="Add cases"):
        folds.split([], {}, config.Folds(), 0)


def test_the_file_is_written_once_and_read_ever_after(tmp_path: Path) -> None:
    path, ids = tmp_path / "run" / "splits.json", ["a", "b", "ü 1"]
    first = folds.load_or_make(
        path,
        lambda: folds.split(make(ids), {}, config.Folds(count=3), 1),
        ids,
        {"seed": 1, "by": "case", "count": 3},
    )
    assert files.read_json(path)["seed"] == 1

    def never() -> list[folds.Split]:
        raise AssertionError("made again")

    assert (
        folds.load_or_make(path, never, ids[::-1], {"seed": 1, "by": "case", "count": 3}) == first
    )
    with pytest.raises(UserError, match=r"1 added since: c.*1 removed since: b.*--fresh"):
        folds.load_or_make(path, never, ["a", "c", "ü 1"])
    with pytest.raises(UserError, match="seed was 1, is 2"):
        folds.load_or_make(path, never, ids, {"seed": 2})


def test_an_unreadable_file_is_an_error_not_another_split(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    for text in ('{"folds": [{"train": ["a"', '{"folds": 3}', "{}"):
        path.write_text(text)
        with pytest.raises(files.FileError):
            folds.load_or_make(path, lambda: [], ["a"])
