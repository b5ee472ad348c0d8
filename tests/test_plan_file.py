"""The YAML of a plan: it reads back as what was decided, whatever stands in it."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import files
from pipeline.config import dump_yaml, parse_yaml
from pipeline.planning.plan_file import MARK, fingerprint_path, is_plan, text
from pipeline.planning.settings import Setting, as_dict

KEYS = st.text(string.ascii_lowercase + "_", min_size=1, max_size=8)
LETTERS = st.characters(exclude_categories=("Cc", "Cs"))  # YAML values hold no control characters
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(LETTERS, max_size=20),
)
NAMES = st.text(LETTERS, max_size=8)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(LETTERS, max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
WORDS = st.text(max_size=200)


@st.composite
def plans(draw: st.DrawFn) -> list[Setting]:
    """Settings whose keys do not contradict each other: no section is a value, too."""
    sections = draw(st.lists(KEYS, min_size=1, max_size=3, unique=True))
    found = []
    for section in sections:
        depth = draw(st.integers(0, 2))
        names = draw(st.lists(KEYS, min_size=1, max_size=3, unique=True))
        parents = ".".join([section, *(["deeper"] * depth)])
        for name in names:
            key = f"{parents}.{name}x"
            found.append(Setting(key, draw(VALUES), draw(WORDS), draw(st.booleans())))
    return found


ODD = ("1e3", "-1E5", "a\x85seed: 7", "a\u2028seed: 7", "a\u2029# b", "x\u00a0", "\ufeffx",
       "a\nb: 1", "é 漢", "12:30", "yes", "- a", "!!python/name:os", "&a", "*a", "# a", "\t", " ",
       "")  # fmt: skip
"""Names of folders and regions that YAML could take for something else."""


@pytest.mark.parametrize("name", ODD)
def test_odd_names_read_back(name: str) -> None:
    found = [Setting("name", name), Setting("data.folders", {name: [name]}, name), Setting("z", 1)]
    assert parse_yaml(text(found, [name])) == as_dict(found)
    assert parse_yaml(dump_yaml({"a": [name], name: 1})) == {"a": [name], name: 1}


@given(plans(), st.lists(WORDS, max_size=3))
@settings(max_examples=examples(60), deadline=None)
def test_reads_back_as_decided(found: list[Setting], header: list[str]) -> None:
    made = text(found, header)
    assert (parse_yaml(made) or {}) == as_dict(found)
    assert is_plan(made)
    assert files.is_unchanged(MARK, made)


def test_reasons_stand_at_their_values() -> None:
    long = "because " * 30
    made = text(
        [
            Setting("name", "x"),
            Setting("data.dims", 2, "pictures"),
            Setting("data.augment", ["spatial", {"name": "flip", "options": {"axes": [1] * 60}}]),
            Setting("train.epochs", 3, long),
            Setting("data.folds.by", "group", "rat3 has three", True),
        ],
        ["A header."],
    )
    lines = made.splitlines()
    assert "  dims: 2  # pictures" in lines
    assert "  # data.folds.by: group  # rat3 has three" in lines, "a section of proposals alone"
    assert lines[lines.index("  augment:") + 1] == "    - spatial"
    at = lines.index("  epochs: 3")
    assert lines[at - 1].startswith("  # because")
    assert max(map(len, lines)) <= 260


def test_a_change_is_noticed() -> None:
    made = text([Setting("name", "x"), Setting("data.dims", 2, "pictures")], [])
    assert not files.is_unchanged(MARK, made.replace("dims: 2", "dims: 3"))
    assert is_plan(made.replace("dims: 2", "dims: 3"))
    assert not is_plan("name: x\n")
    assert fingerprint_path(Path("a/b.yaml")) == Path("a/b.fingerprint.json")
