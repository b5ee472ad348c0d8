"""Finding cases: every layout, natural order, and every way in which files can be missing, double
or foreign.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import config
from pipeline.data import cases, listing
from pipeline.records import Fault, UserError

LABELS = {"label": "labels"}


def touch(root: Path, names: Iterable[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def competition(root: Path, ids: Iterable[str], csv: str | None = None) -> None:
    touch(
        root,
        [f"{folder}/{name}.tif" for name in ids for folder in ("train_images", "train_labels")],
    )
    if csv is not None:
        (root / "train.csv").write_text(csv, encoding="utf-8")


def find(root: Path, targets: Mapping[str, str] = LABELS, **data) -> cases.Found:
    return cases.find(config.Data(root=str(root), **data), targets, root)


def errors(found: cases.Found) -> list[Fault]:
    return [fault for fault in found.faults if fault.severity == "error"]


def test_competition(tmp_path: Path) -> None:
    competition(tmp_path, ["10", "9", "100"], "id,scroll_id\n9,A\n10,B\n100,A\n55,B\n")
    touch(tmp_path, ["test_images/7.tif"])
    found = find(tmp_path)
    assert found.layout == "competition"
    assert [(c.id, c.group) for c in found.train] == [("9", "A"), ("10", "B"), ("100", "A")]
    assert found.train[0].image == (tmp_path / "train_images" / "9.tif",)
    assert found.train[0].targets == {"label": tmp_path / "train_labels" / "9.tif"}
    assert [c.id for c in found.test] == ["7"]
    (deprecated,) = found.faults
    assert deprecated.severity == "warning"
    assert "1 ids without any file (55)" in deprecated.problem


def test_missing_and_orphan_labels_are_all_listed(tmp_path: Path) -> None:
    competition(tmp_path, ["1", "2", "3", "4"])
    for name in ("train_labels/1.tif", "train_labels/2.tif", "train_images/4.tif"):
        (tmp_path / name).unlink()
    found = find(tmp_path)
    assert [(f.path.name, f.path.parent.name) for f in errors(found)] == [
        ("1.tif", "train_images"),
        ("2.tif", "train_images"),
        ("4.tif", "train_labels"),
    ]


def test_an_empty_folder_of_labels_is_an_error_for_each_case(tmp_path: Path) -> None:
    competition(tmp_path, ["1", "2"])
    for name in "12":
        (tmp_path / "train_labels" / f"{name}.tif").unlink()
    assert len(errors(find(tmp_path))) == 2


def test_groups_in_other_layouts(tmp_path: Path) -> None:
    touch(tmp_path, [f"{folder}/{i}.png" for folder in ("images", "masks") for i in "ab"])
    (tmp_path / "train.csv").write_text("id,group\na,eye 1\nb,eye 1\n")
    assert [c.group for c in find(tmp_path).train] == ["eye 1", "eye 1"]
    (tmp_path / "train.csv").write_text("something,else\n1,2\n")
    assert [f.severity for f in find(tmp_path).faults] == ["warning"]


def test_junk_is_skipped_and_strangers_are_named(tmp_path: Path) -> None:
    competition(tmp_path, ["1", "2"])
    touch(
        tmp_path,
        [
            f"train_images/{n}"
            for n in (".DS_Store", "._1.tif", "Thumbs.db", "desktop.ini", "sub/3.tif", "readme.txt")
        ],
    )
    found = find(tmp_path)
    assert [c.id for c in found.train] == ["1", "2"]
    (stranger,) = found.faults
    assert (stranger.severity, "readme.txt" in stranger.problem) == ("warning", True)


def test_two_files_of_one_id_are_an_error(tmp_path: Path) -> None:
    competition(tmp_path, ["1", "2"])
    touch(tmp_path, ["train_images/1.nii.gz"])
    (fault,) = errors(find(tmp_path))
    assert "same id as" in fault.problem
    assert {"1.tif", "1.nii.gz"} <= {fault.path.name, *fault.problem.split()}


def test_other_formats_in_the_competition_layout(tmp_path: Path) -> None:
    touch(tmp_path, ["train_images/a.nii.gz", "train_labels/a.tif"])
    (case,) = find(tmp_path).train
    assert (case.id, case.image[0].name, case.targets["label"].name) == ("a", "a.nii.gz", "a.tif")


def test_composed_and_decomposed_names_are_one_id(tmp_path: Path) -> None:
    name = "vólume №1 é"
    touch(
        tmp_path,
        [
            f"train_images/{unicodedata.normalize('NFD', name)}.tif",
            f"train_labels/{unicodedata.normalize('NFC', name)}.tif",
        ],
    )
    (tmp_path / "train.csv").write_text(
        f"id,scroll_id\n{unicodedata.normalize('NFD', name)},7\n", encoding="utf-8-sig"
    )
    found = find(tmp_path)
    assert found.faults == ()
    assert (found.train[0].id, found.train[0].group) == (unicodedata.normalize("NFC", name), "7")


@pytest.mark.parametrize(
    ("csv", "word"),
    [
        ("", "no column 'id'"),
        ("name,scroll\n1,A\n", "no column 'id'"),
        ("id,scroll_id\n1,A\n1,B\n2,A\n", "two groups"),
        ("id,scroll_id\n1,\xff\n", "cannot be read"),
    ],
)
def test_unusable_tables_are_an_error(csv: str, word: str, tmp_path: Path) -> None:
    competition(tmp_path, ["1", "2"])
    (tmp_path / "train.csv").write_bytes(csv.encode("latin-1"))
    found = find(tmp_path)
    assert len(found.train) == 2
    assert word in errors(found)[0].problem


def test_ids_that_the_table_lacks_are_a_warning(tmp_path: Path) -> None:
    competition(tmp_path, ["1", "2"], "id,scroll_id\n1,A\n")
    found = find(tmp_path)
    assert [c.group for c in found.train] == ["A", None]
    assert [(f.severity, "lacks 1 ids" in f.problem) for f in found.faults] == [("warning", True)]


def test_nnunet(tmp_path: Path) -> None:
    touch(tmp_path, [f"imagesTr/case_{i}_000{c}.nii.gz" for i in (10, 9) for c in (1, 0)])
    touch(
        tmp_path,
        [f"labelsTr/case_{i}.nii.gz" for i in (9, 10)]
        + ["imagesTs/case_11_0000.nii.gz", "imagesTs/case_11_0001.nii.gz"],
    )
    touch(tmp_path, ["imagesTr/case_9_0000.tif"])  # another ending: not counted
    (tmp_path / "dataset.json").write_text(
        json.dumps({"file_ending": ".nii.gz", "channel_names": {"0": "T1", "1": "T2"}})
    )
    found = find(tmp_path)
    assert found.layout == "nnunet"
    assert errors(found) == []
    assert [(c.id, [p.name for p in c.image]) for c in found.train] == [
        ("case_9", ["case_9_0000.nii.gz", "case_9_0001.nii.gz"]),
        ("case_10", ["case_10_0000.nii.gz", "case_10_0001.nii.gz"]),
    ]
    assert [c.id for c in found.test] == ["case_11"]


@pytest.mark.parametrize("announced", [True, False])
def test_a_missing_channel_is_an_error(announced: bool, tmp_path: Path) -> None:
    touch(
        tmp_path,
        [f"imagesTr/{i}_000{c}.nii.gz" for i in "ab" for c in (0, 1)]
        + [f"labelsTr/{i}.nii.gz" for i in "ab"],
    )
    (tmp_path / "imagesTr" / "b_0001.nii.gz").unlink()
    if announced:
        (tmp_path / "dataset.json").write_text(
            json.dumps({"channel_names": {"0": "T1", "1": "T2"}})
        )
    (fault,) = errors(find(tmp_path))
    assert (fault.path.name, fault.problem) == ("b_0001", "has no channel 0001")


def test_names_and_descriptions_that_nnunet_would_not_know(tmp_path: Path) -> None:
    touch(tmp_path, ["imagesTr/a_0000.nii.gz", "imagesTr/b.nii.gz", "labelsTr/a.nii.gz"])
    (tmp_path / "dataset.json").write_text("[1, 2")
    problems = " ".join(f.problem for f in errors(find(tmp_path)))
    assert "no nnU-Net description" in problems
    assert "no channel number" in problems


def test_folders_with_two_targets(tmp_path: Path) -> None:
    touch(
        tmp_path,
        [f"{folder}/{i}.png" for folder in ("in", "out", "mask") for i in "ab"] + ["extra/c.png"],
    )
    folders = {"image": "in", "target": "out", "mask": "mask"}
    found = find(
        tmp_path,
        {"target": "image", "mask": "labels"},
        layout="folders",
        folders=folders,
        test="extra",
    )
    assert found.faults == ()
    assert found.train[1].targets == {
        "target": tmp_path / "out" / "b.png",
        "mask": tmp_path / "mask" / "b.png",
    }
    assert [c.id for c in found.test] == ["c"]


def test_a_target_without_a_folder_is_one_error(tmp_path: Path) -> None:
    touch(tmp_path, ["images/a.png", "images/b.png"])
    assert ["masks" in str(f.path) for f in errors(find(tmp_path))] == [True]
    (fault,) = errors(find(tmp_path, {"target": "image"}))
    assert "data.folders" in fault.suggestion
    competition(tmp_path, ["1"])
    assert [f.problem for f in errors(find(tmp_path, {"label": "labels", "mask": "labels"}))] == [
        "has no folder for the target 'mask'"
    ]


@pytest.mark.parametrize("layout", ["auto", "competition", "nnunet", "folders"])
def test_an_empty_or_missing_root_shows_the_expected_tree(layout: str, tmp_path: Path) -> None:
    tree = {
        "competition": "train_images",
        "nnunet": "imagesTr",
        "folders": "masks",
        "auto": "train_labels",
    }
    for root in (tmp_path, tmp_path / "gone"):
        (fault,) = find(root, layout=layout).faults
        assert (fault.severity, fault.path) == ("error", root)
        assert tree[layout] in fault.suggestion
    for folder in ("train_images", "imagesTr", "images", "train_labels", "labelsTr", "masks"):
        (tmp_path / folder).mkdir()
    (fault,) = errors(find(tmp_path, layout=layout))
    assert fault.problem == "holds no training images"


def test_broken_links_are_cases_for_the_check_to_report(tmp_path: Path) -> None:
    competition(tmp_path, ["1"])
    (tmp_path / "train_images" / "2.tif").symlink_to(tmp_path / "gone.tif")
    (tmp_path / "train_images" / "3.tif").symlink_to(tmp_path / "train_images" / "3.tif")
    touch(tmp_path, ["train_labels/2.tif", "train_labels/3.tif"])
    assert [c.id for c in find(tmp_path).train] == ["1", "2", "3"]


def test_natural_order() -> None:
    names = ["case10", "case2", "case02", "Case1", "b", "10", "9", "é", "case2a"]
    assert sorted(names, key=listing.natural) == [
        "9",
        "10",
        "Case1",
        "b",
        "case02",
        "case2",
        "case2a",
        "case10",
        "é",
    ]


def test_inputs_from_a_file_and_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, ["v10.tif", "v9.nii.gz", ".hidden.tif", "notes.txt", "sub/x.tif"])
    data = config.Data()
    assert [c.id for c in cases.inputs(tmp_path, data)] == ["v9", "v10"]
    assert cases.inputs(tmp_path / "v10.tif", data)[0].image == (tmp_path / "v10.tif",)
    with pytest.raises(UserError, match="does not exist"):
        cases.inputs(tmp_path / "gone", data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        cases.inputs(tmp_path / "empty", data)


def test_inputs_with_channel_numbers(tmp_path: Path) -> None:
    touch(tmp_path, ["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz"])
    found = cases.inputs(tmp_path, config.Data())
    assert [(c.id, len(c.image)) for c in found] == [("a", 2), ("b", 2)]
    assert len(cases.inputs(tmp_path, config.Data(layout="competition"))) == 4
    (tmp_path / "b_0001.nii.gz").unlink()
    with pytest.raises(UserError, match="no channel 0001"):
        cases.inputs(tmp_path, config.Data())
    touch(tmp_path, ["plain.nii.gz"])
    assert len(cases.inputs(tmp_path, config.Data())) == 4


def test_inputs_that_would_give_one_answer_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, ["a.tif", "a.png"])
    with pytest.raises(UserError, match="same id"):
        cases.inputs(tmp_path, config.Data())


def test_real_data_sets(shared_data: Path) -> None:
    found = find(shared_data / "fib25_surfaces")
    assert (found.layout, len(found.train), len(found.test), found.faults) == (
        "competition",
        22,
        5,
        (),
    )
    assert {c.group for c in found.train} == {"26001", "26002", "26003"}
    found = find(shared_data / "hippocampus")
    assert (found.layout, len(found.train), len(found.test), found.faults) == ("nnunet", 40, 20, ())
    assert found.train[0].id == "hippocampus_001"


# --- split.json and groups by name ----------------------------------------------------------------


def folders(root: Path, ids: str = "abcd", split: object = None, masks: str | None = None) -> None:
    touch(
        root,
        [f"images/{i}.png" for i in ids]
        + [f"masks/{i}.png" for i in (ids if masks is None else masks)],
    )
    if split is not None:
        (root / "split.json").write_text(
            split if isinstance(split, str) else json.dumps(split), encoding="utf-8"
        )


def ids(found: cases.Found) -> tuple[str, str]:
    return "".join(c.id for c in found.train), "".join(c.id for c in found.test)


@pytest.mark.parametrize("layout", ["auto", "folders"])
@pytest.mark.parametrize(
    "split",
    [
        {"train": ["a", "b"], "test": ["c", "d"]},
        {"test": ["d", "c", "c"]},
        {"test": ["c.png", "images/d.png"]},
        {"train": ["a.png", "b"], "test": ["c", "d.tif"]},
    ],
)
def test_a_split_holds_images_out(
    split: Mapping[str, list[str]], layout: str, tmp_path: Path
) -> None:
    folders(
        tmp_path, split=split, masks="abc"
    )  # a test image needs no target, and keeps the one it has
    found = find(tmp_path, layout=layout)
    assert (ids(found), found.faults) == (("ab", "cd"), ())
    assert [set(c.targets) for c in found.test] == [{"label"}, set()]


def test_a_split_and_a_folder_of_test_images(tmp_path: Path) -> None:
    folders(tmp_path, split={"test": ["d", "x"]})
    touch(tmp_path, ["test_images/x.png"])
    found = find(tmp_path)
    assert (ids(found), found.faults) == (("abc", "dx"), ())
    touch(tmp_path, ["test_images/d.png"])
    assert ["same id as d.png" in f.problem for f in errors(find(tmp_path))] == [True]


def test_ids_of_a_split_with_dots_and_accents(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFC", "é.v2")
    touch(tmp_path, [f"{folder}/{i}.png" for folder in ("images", "masks") for i in (name, "a")])
    (tmp_path / "split.json").write_text(
        json.dumps({"train": ["a"], "test": [unicodedata.normalize("NFD", name)]})
    )
    found = find(tmp_path)
    assert (ids(found), found.faults) == (("a", name), ())


@pytest.mark.parametrize(
    ("split", "severity", "words"),
    [
        ({"test": ["d", "lost"]}, "warning", "names lost, of which there is no image"),
        ({"train": ["a", "b", "c", "lost"], "test": ["d"]}, "warning", "names lost"),
        (
            {"train": ["a", "b", "d"], "test": ["c", "d"]},
            "error",
            "1 ids under both train and test: d",
        ),
        (
            {"train": ["a"], "test": ["d"]},
            "error",
            "2 images neither under train nor under test: b, c",
        ),
        ({"test": list("abcd")}, "error", "leaves no image to train on"),
        ({"train": list("abc"), "val": ["d"]}, "error", "the key 'val'"),
        ({"test": "d"}, "error", "something else than a list of texts"),
        ({"test": [1]}, "error", "something else than a list of texts"),
        (["d"], "error", "holds list and no lists of ids"),
        ("{}", "error", "holds nothing"),
        ('{"test": [', "error", "JSON"),
    ],
)
def test_faults_of_a_split(split: object, severity: str, words: str, tmp_path: Path) -> None:
    folders(tmp_path, split=split)
    (fault,) = find(tmp_path).faults
    assert (fault.severity, fault.path.name) == (severity, "split.json")
    assert words in fault.problem
    assert fault.suggestion


def test_a_split_belongs_to_the_layout_of_folders(tmp_path: Path) -> None:
    competition(tmp_path, ["1", "2"])
    (tmp_path / "split.json").write_text('{"test": ["1"]}')
    assert ids(find(tmp_path)) == ("12", "")


def test_rows_of_held_out_images_are_no_surprise(tmp_path: Path) -> None:
    folders(tmp_path, split={"test": ["d"]})
    (tmp_path / "train.csv").write_text("id,group\na,1\nb,1\nc,2\nd,2\n")
    found = find(tmp_path)
    assert ([c.group for c in found.train], found.faults) == (["1", "1", "2"], ())


def test_groups_by_name(tmp_path: Path) -> None:
    names = ["eye_01L", "eye_01R", "eye_02L"]
    touch(tmp_path, [f"{folder}/{i}.png" for folder in ("images", "masks") for i in names])
    (tmp_path / "train.csv").write_text("id,group\n" + "".join(f"{n},all\n" for n in names))
    data: dict[str, Any] = {"folds": config.Folds(by="group", pattern=r"_(\d+)[LR]$")}
    found = find(tmp_path, **data)
    assert ([c.group for c in found.train], found.faults) == (["01", "01", "02"], ())
    touch(tmp_path, ["images/odd.png", "masks/odd.png"])
    (fault,) = errors(find(tmp_path, **data))
    assert fault.path.name == "odd.png"
    assert repr(r"_(\d+)[LR]$") in fault.problem
