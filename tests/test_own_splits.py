"""Folds from a file: nnU-Net's format and our own, every fault at once, and a run whose folds hold
out a part of the cases only.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import competition_folder
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config, evaluate, files, report, train, tune
from pipeline.data import cases as case_finder
from pipeline.data import folds, own_splits
from pipeline.inference.models import load_model
from pipeline.records import Case, UserError

Output = pytest.CaptureFixture[str]
Folds = list[dict[str, list[str]]]

PART: Folds = [{"train": ["101", "104"], "val": ["100"]}, {"val": ["101"], "train": ["104", "100"]}]
"""104 is never held out, 102 and 103 are in no fold."""

QUICK = ("--set", "train.epochs=1", "train.average=null", "metrics=[dice]")


def case(name: str, group: str | None = None) -> Case:
    return Case(id=name, image=(Path(f"{name}.tif"),), group=group)


def written(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def faults(
    tmp_path: Path, found: Folds, cases: list[Case], contents: dict[str, str] | None = None, **more
) -> list[str]:
    rules = config.Folds(count=len(found), **more)
    with pytest.raises(UserError) as error:
        own_splits.splits(written(tmp_path / "f.json", found), cases, contents or {}, rules)
    return str(error.value).split("\n  ")


@given(draws=st.data())
def test_any_partition_is_read_as_it_is(
    draws: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ids = draws.draw(st.lists(st.text("abcü 1", min_size=1), min_size=4, max_size=9, unique=True))
    order = draws.draw(st.permutations(ids))
    count = draws.draw(st.integers(2, 4))
    vals = [order[n::count] for n in range(count)]
    found = [{"train": [i for i in ids if i not in val], "val": val} for val in vals]
    path = tmp_path_factory.mktemp("own") / "splits_final.json"
    rules = config.Folds(count=count)
    cases = [case(i) for i in ids]
    for document in (found, {"folds": found, "seed": 3}):
        got = own_splits.splits(written(path, document), cases, {}, rules)
        assert [(list(s.train), list(s.val)) for s in got] == [
            (sorted(f["train"]), sorted(f["val"])) for f in found
        ]
    assert list(own_splits.notes(path, got, cases)) == []


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", ["cannot be decoded"]),
        ([], ["holds 0 folds", "at least two"]),
        ({}, ["lacks the key folds", "splits_final.json"]),
        (3, ["must be a list or a mapping"]),
        ([{"train": ["a"]}], ["lacks the key 0.val"]),
        ([{"train": ["a"], "val": "b"}], ["0.val is 'b', must be a list"]),
        ([{"train": [1], "val": ["b"]}], ["0.train.0 is 1, must be a text"]),
        ([{"train": ["a"], "val": ["b"]}] * 3, ["holds 3 folds", "data.folds.count=3"]),
    ],
)
def test_other_documents_are_refused(document: Any, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(files.FileError) as error:
        own_splits.read(path, 2)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "nowhere.json", "below data.root"),
        (tmp_path, "is a folder"),
        (tmp_path / "a\0b", "is not there"),
    ):
        with pytest.raises(files.FileError, match=words):
            own_splits.read(path, 2)


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    cases = [case(f"case_{n:02d}") for n in range(10)]
    a, b, c, d, e, f, *_ = (one.id for one in cases)
    found: Folds = [
        {"train": [a, b, b], "val": [b, "case_02_0000", "xyz"]},
        {"train": [c], "val": [b, d]},
        {"train": [e], "val": []},
        {"train": [e], "val": [f]},
    ]
    lines = faults(tmp_path, found, cases, {e: "same", f: "same"})
    expected = [
        [
            "2 of the ids are of no case",
            "case_02_0000 (did you mean case_02?)",
            "xyz (no id is like it)",
        ],
        ["fold 0 names under 'train' twice: case_01"],
        ["fold 0 has on both sides: case_01"],
        ["fold 2 has no case under 'val'"],
        ["case_01 (folds 0, 1)", "one model"],
        ["fold 3 has equal images on both sides: case_04 and case_05"],
    ]
    assert len(lines) == len(expected), lines
    for line, words in zip(lines, expected, strict=True):
        assert all(word in line for word in words), line
        assert line.startswith(str(tmp_path / "f.json"))


def test_a_file_name_in_place_of_an_id_is_answered_with_its_own_id(tmp_path: Path) -> None:
    """Also where another id is as near by its letters."""
    cases = [case("hip_004"), case("hip_040")]
    one = {"train": ["hip_004_0000"], "val": ["hip_040.nii.gz"]}
    found: Folds = [one, {"train": ["hip_040"], "val": ["hip_004"]}]
    text = " ".join(faults(tmp_path, found, cases))
    assert "hip_004_0000 (did you mean hip_004?)" in text
    assert "hip_040.nii.gz (did you mean hip_040?)" in text


def test_ids_do_not_break_the_lines_of_a_message(tmp_path: Path) -> None:
    cases = [case("a"), case("b")]
    odd, long = "a\nerror: all is lost\x1b[31m", "x" * 5000
    found: Folds = [
        {"train": [odd, odd], "val": [long, "b"]},
        {"train": ["b"], "val": [long, odd]},
    ]
    lines = faults(tmp_path, found, cases)
    assert all(line.startswith(f"{tmp_path}") and line.isprintable() for line in lines)
    assert len(lines) == 3
    assert max(map(len, lines)) < 1000


def test_groups_count_where_they_are_asked_for(tmp_path: Path) -> None:
    cases = [case("a", "1"), case("b", "1"), case("c", "2"), case("d", "3"), case("e")]
    found: Folds = [{"train": ["a", "c"], "val": ["b"]}, {"train": ["a"], "val": ["d"]}]
    (line,) = faults(tmp_path, found, cases, by="group")
    assert "fold 0 has cases of one group on both sides: a and b" in line
    assert "data.folds.by=case" in line
    found[0]["val"] = ["e"]
    (line,) = faults(tmp_path, found, cases, by="group")
    assert "1 of 4 cases have no group: e" in line
    own_splits.splits(tmp_path / "f.json", cases, {}, config.Folds(count=2))


def test_a_changed_file_is_refused_and_unused_cases_are_not(tmp_path: Path) -> None:
    path, about = tmp_path / "splits.json", {"count": 2, "file": "1"}
    own = [
        folds.Split(train=("a",), val=("b",)),
        folds.Split(train=("b",), val=("a",)),
    ]
    assert folds.load_or_make(path, lambda: own, ["a", "b", "c"], about) == own
    assert folds.load_or_make(path, lambda: [], ["a", "b", "c"], about) == own
    with pytest.raises(UserError, match=r"data.folds.file has changed.*--fresh"):
        folds.load_or_make(path, lambda: [], ["a", "b", "c"], {**about, "file": "2"})
    with pytest.raises(UserError, match="1 removed since: b"):
        folds.load_or_make(path, lambda: [], ["a"], about)
    with pytest.raises(UserError, match="1 added since: c"):
        folds.load_or_make(path, lambda: [], ["a", "b", "c"], {"count": 2})


def test_ids_of_nnunet_data_are_those_of_its_splits(tmp_path: Path) -> None:
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (tmp_path / folder).mkdir()
        for n in range(3):
            (tmp_path / folder / f"BRATS_{n:03d}{ending}").touch()
    settings = config.Data(layout="nnunet")
    found = case_finder.find(settings, {"label": "labels"}, tmp_path).train
    assert [one.id for one in found] == ["BRATS_000", "BRATS_001", "BRATS_002"]
    document = [
        {"train": ["BRATS_000", "BRATS_001"], "val": ["BRATS_002"]},
        {"train": ["BRATS_002"], "val": ["BRATS_000", "BRATS_001"]},
    ]
    path = written(tmp_path / "splits_final.json", document)
    assert len(own_splits.splits(path, found, {}, config.Folds(count=2))) == 2


# --- commands -------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = competition_folder(tmp_path / "data", cases=5)
    written(root / "splits_final.json", PART)
    return root


def start(tiny: Path, data: Path, out: Path, *more: str) -> int:
    words = ["--config", tiny, "--data-dir", data, "--out", out, *QUICK]
    return train.main([*map(str, words), "data.folds.file=splits_final.json", *more])


def test_a_dry_run_lists_faults_and_what_is_not_used(
    tiny: Path, data: Path, tmp_path: Path, capsys: Output
) -> None:
    assert start(tiny, data, tmp_path / "run", "--dry-run") == 0
    told = capsys.readouterr()
    text = told.out + told.err
    assert "2 of 5 cases are in no fold: 102, 103" in text
    assert "1 of 5 cases are never held out: 104" in text
    written(data / "splits_final.json", [PART[0], {"train": ["109"], "val": ["100"]}])
    assert start(tiny, data, tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert "109 (did you mean 10" in told
    assert "held out by several folds: 100 (folds 0, 1)" in told
    assert not (tmp_path / "run" / "splits.json").exists()
    assert start(tiny, data, tmp_path / "more", "data.folds.count=3", "--dry-run") == 2
    assert capsys.readouterr().out.count("Set data.folds.count=2") == 1
    assert not (tmp_path / "more").exists()


def test_folds_of_a_part_of_the_cases_from_end_to_end(
    tiny: Path, data: Path, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "run"
    assert start(tiny, data, out) == 0
    assert "in no fold: 102, 103" in capsys.readouterr().out
    kept = json.loads((out / "splits.json").read_text())
    assert kept["file"] == files.sha256(data / "splits_final.json")
    assert kept["folds"] == [{side: sorted(fold[side]) for side in fold} for fold in PART]
    summary = json.loads((out / "summary.json").read_text())
    assert {name: row["fold"] for name, row in summary["cases"].items()} == {"100": 0, "101": 1}
    assert set(summary["baselines"]) == {"empty answer", "best global threshold"}
    answers = sorted(p.stem for p in out.glob("fold_*/oof/*.tif"))
    assert answers == ["100", "101"]
    words = ["--predictions", out / "fold_0" / "oof", "--labels", data / "train_labels"]
    assert evaluate.main([*map(str, words), "--workers", "1"]) == 0
    assert report.main([str(out)]) == 0
    words = [out, "--by", "fold", "--metric", "dice", "--workers", "1"]
    words += ["--out", tmp_path / "tuned.yaml", "--space", space(tmp_path)]
    assert tune.main([*map(str, words)]) == 0
    # The same file again goes on; another one does not.
    capsys.readouterr()
    assert start(tiny, data, out, "--fold", "1") == 0
    assert "already complete" in capsys.readouterr().out
    written(data / "splits_final.json", [PART[1], PART[0]])
    assert start(tiny, data, out) == 2
    told = capsys.readouterr().err
    assert "data.folds.file has changed" in told
    assert "--fresh" in told


def space(folder: Path) -> Path:
    path = folder / "space.yaml"
    path.write_text("stages:\n  - - [{name: threshold, options: {at: 0.5}}]\n")
    return path


@pytest.mark.slow
def test_the_splits_of_another_run_give_the_same_folds(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    """And a run without a file keeps what its splits.json holds."""
    out, again = tmp_path / "run", tmp_path / "again"
    words = ["--config", tiny, "--data-dir", data, "--out", out, "--fold", "0", *QUICK]
    assert train.main([*map(str, words)]) == 0
    first = json.loads((out / "splits.json").read_text())
    assert sorted(first) == ["by", "count", "folds", "seed"]
    shutil.copy(out / "splits.json", data / "splits_final.json")
    assert start(tiny, data, again, "--fold", "0") == 0
    second = json.loads((again / "splits.json").read_text())
    assert second["folds"] == first["folds"]
    model = Path("fold_0") / "best_model.safetensors"
    one, other = (load_model(root / model).weights for root in (out, again))
    assert all(one[name].equal(other[name]) for name in one)
