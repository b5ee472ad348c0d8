"""Which data set lies in a folder: every usual layout is found, and others are refused in words."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import competition_folder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from worlds import affine_of, save

from pipeline.data import cases
from pipeline.planning.arrangement import arrange
from pipeline.planning.candidates import paired_suffixes, role_of
from pipeline.planning.contents import flatness, judged
from pipeline.records import UserError

Make = Callable[[int], np.ndarray]


def photograph(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 30, 3), np.uint8)


def grey(seed: int) -> np.ndarray:
    return photograph(seed)[..., 0]


def mask(seed: int, white: int = 255) -> np.ndarray:
    out = np.zeros((24, 30), np.uint8)
    out[5 + seed : 15, 4:20] = white
    return out


def classes(seed: int) -> np.ndarray:
    return np.kron(np.random.default_rng(seed).integers(0, 4, (6, 6)), np.ones((4, 5))).astype("u1")


def pictures(root: Path, folder: str, make: Make, ids: str = "abcd", suffix: str = ".png") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(ids):
        Image.fromarray(make(n)).save(root / folder / f"{name}{suffix}", quality=60)


@pytest.mark.parametrize(
    ("image", "target"),
    [
        ("images", "masks"),
        ("images", "labels"),
        ("image", "label"),
        ("img", "gt"),
        ("train/images", "train/masks"),
        ("images/train", "labels/train"),
        ("training_images", "training_annotations"),
        ("images", "1st_manual"),
        ("raw", "GroundTruth"),
        ("frames", "segmentations"),
    ],
)
def test_folders_of_labels(tmp_path: Path, image: str, target: str) -> None:
    pictures(tmp_path, image, photograph)
    pictures(tmp_path, target, classes)
    found = arrange(tmp_path)
    assert found.config.data.layout == "folders"
    assert dict(found.config.data.folders) == {"image": image, "label": target}
    assert (found.config.task, found.config.data.dims) == ("labels", 2)
    assert len(cases.find(found.config.data, found.config.roles, tmp_path).train) == 4


@pytest.mark.parametrize(
    ("image", "target"),
    [("src", "dst"), ("input", "target"), ("blur", "sharp"), ("low", "high"), ("noisy", "clean"),
     ("train/input", "train/gt")],
)  # fmt: skip
@pytest.mark.parametrize("make", [photograph, grey])
def test_folders_of_pairs(tmp_path: Path, image: str, target: str, make: Make) -> None:
    pictures(tmp_path, image, make)
    pictures(tmp_path, target, make, suffix=".jpg")
    found = arrange(tmp_path)
    assert dict(found.config.data.folders) == {"image": image, "target": target}
    assert found.config.task == "image"
    assert dict(found.config.targets) == {"target": "image"}


def test_black_and_white_masks(tmp_path: Path) -> None:
    pictures(tmp_path, "images", photograph)
    pictures(tmp_path, "masks", mask)
    assert arrange(tmp_path).config.data.binarise is None  # 0 and 255 are read as they are
    for path in (tmp_path / "masks").iterdir():
        path.unlink()
    pictures(tmp_path, "masks", mask, suffix=".jpg")
    found = arrange(tmp_path)
    assert (found.config.task, found.config.data.binarise) == ("labels", 127)


def test_test_folder_field_of_view_and_validation(tmp_path: Path) -> None:
    for side in ("train", "val", "test"):
        pictures(tmp_path, f"{side}/images", photograph)
        pictures(tmp_path, f"{side}/masks", mask)
    pictures(tmp_path, "fov", mask)
    found = arrange(tmp_path)
    assert dict(found.config.data.folders) == {"image": "train/images", "label": "train/masks"}
    assert found.config.data.test == "test/images"
    assert len(cases.find(found.config.data, found.config.roles, tmp_path).test) == 4


def test_tiff_of_one_page_and_of_many(tmp_path: Path) -> None:
    for name, shape, dims in (("flat", (20, 24), 2), ("deep", (5, 20, 24), 3)):
        for folder, top in (("images", 200), ("labels", 3)):
            (tmp_path / name / folder).mkdir(parents=True)
            for n in range(3):
                array = np.random.default_rng(n).integers(0, top, shape, np.uint8)
                tifffile.imwrite(tmp_path / name / folder / f"{n}.tif", array)
        assert arrange(tmp_path / name).config.data.dims == dims


def test_competition(tmp_path: Path) -> None:
    competition_folder(tmp_path, cases=2)
    found = arrange(tmp_path)
    assert (found.config.data.layout, found.config.data.ignore_label) == ("competition", 2)


def test_nnunet_and_its_ignored_label(tmp_path: Path) -> None:
    for n in range(2):
        array = np.zeros((6, 7, 8), np.uint8)
        save(tmp_path / "imagesTr" / f"c{n}_0000.nii.gz", array, affine_of((1, 1, 1)))
        save(tmp_path / "labelsTr" / f"c{n}.nii.gz", array, affine_of((1, 1, 1)))
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "a": 1, "ignore": 2}}')
    data = arrange(tmp_path).config.data
    assert (data.layout, data.dims, data.ignore_label) == ("nnunet", 3, 2)


# --- refused --------------------------------------------------------------------------------------


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        arrange(root)
    return str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none")
    text = refusal(tmp_path)
    assert "holds no image" in text
    assert "imagesTr/ID_0000" in text


def test_images_and_labels_in_one_folder(tmp_path: Path) -> None:
    for name in ("a", "a_seg", "b", "b_seg"):
        save(tmp_path / f"{name}.nii.gz", np.zeros((4, 4, 4), np.uint8), affine_of((1, 1, 1)))
    text = refusal(tmp_path)
    assert "a.nii.gz and a_seg.nii.gz" in text
    assert "masks/a.nii.gz" in text


def test_images_alone_and_labels_alone(tmp_path: Path) -> None:
    pictures(tmp_path / "flat", ".", photograph)
    assert "4 images (a.png, b.png, c.png, d.png) without labels" in refusal(tmp_path / "flat")
    pictures(tmp_path / "one", "images", photograph)
    assert "images in images/ without labels" in refusal(tmp_path / "one")
    pictures(tmp_path / "other", "masks", mask)
    assert "labels without images" in refusal(tmp_path / "other")
    pictures(tmp_path / "nn", "imagesTr", photograph)
    assert "has imagesTr/ and no labelsTr/" in refusal(tmp_path / "nn")


def test_a_choice_is_named_and_can_be_made(tmp_path: Path) -> None:
    pictures(tmp_path, "images", photograph)
    pictures(tmp_path, "masks", mask)
    pictures(tmp_path, "manual_2", classes)
    text = refusal(tmp_path)
    assert "manual_2/, masks/" in text
    assert "--images images --targets manual_2" in text
    for chosen in (arrange(tmp_path, "images", "manual_2/"), arrange(tmp_path, None, "manual_2")):
        assert dict(chosen.config.data.folders) == {"image": "images", "label": "manual_2"}
    with pytest.raises(UserError, match="cannot be both"):
        arrange(tmp_path, "masks", "masks")
    with pytest.raises(UserError, match="no image in other/"):
        arrange(tmp_path, "images", "other")


def test_of_two_folders_of_images_one_is_chosen(tmp_path: Path) -> None:
    pictures(tmp_path, "images", photograph)
    pictures(tmp_path, "raw", photograph)
    pictures(tmp_path, "masks", mask)
    assert "e.g. --images images" in refusal(tmp_path)
    assert dict(arrange(tmp_path, "raw").config.data.folders) == {"image": "raw", "label": "masks"}


def test_stems_that_differ(tmp_path: Path) -> None:
    pictures(tmp_path, "images", photograph, "abc")
    pictures(tmp_path, "masks", mask, ["a_mask", "b_mask", "c_mask"])  # pyright: ignore
    text = refusal(tmp_path)
    assert "a_mask.png" in text
    assert "masks/a.png" in text


def test_classes_as_colours(tmp_path: Path) -> None:
    table = np.array([[0, 0, 0], [255, 0, 0], [0, 200, 40], [9, 9, 250]], np.uint8)
    pictures(tmp_path, "images", photograph)
    pictures(tmp_path, "masks", lambda seed: table[classes(seed)])
    assert "4 colours" in refusal(tmp_path)


def test_targets_that_cannot_be_read(tmp_path: Path) -> None:
    pictures(tmp_path, "images", photograph)
    (tmp_path / "masks").mkdir()
    for name in "abcd":
        (tmp_path / "masks" / f"{name}.png").write_bytes(b"nothing")
    assert "none of the files" in refusal(tmp_path)


def test_folders_of_cases_and_of_data_sets(tmp_path: Path) -> None:
    for n in range(3):
        for name in ("t1", "t2", "seg"):
            path = tmp_path / "cases" / f"p{n}" / f"p{n}_{name}.nii.gz"
            save(path, np.zeros((4, 4, 4), np.uint8), affine_of((1, 1, 1)))
    text = refusal(tmp_path / "cases")
    assert "p0_t1.nii.gz to imagesTr/p0_0000.nii.gz" in text
    assert "p0_seg.nii.gz to labelsTr/p0.nii.gz" in text
    pictures(tmp_path / "raw" / "Dataset001_X", "imagesTr", photograph)
    assert "Dataset001_X" in refusal(tmp_path / "raw")


def test_folders_without_known_names(tmp_path: Path) -> None:
    pictures(tmp_path / "one", "A", classes)
    pictures(tmp_path / "one", "B", photograph)
    assert dict(arrange(tmp_path / "one").config.data.folders) == {"image": "B", "label": "A"}
    pictures(tmp_path / "two", "A", photograph)
    pictures(tmp_path / "two", "B", photograph)
    assert "may be the input: A/, B/" in refusal(tmp_path / "two")


# --- parts ----------------------------------------------------------------------------------------


def test_objects_are_labels_and_smooth_pictures_are_not() -> None:
    cells = np.kron(np.arange(900).reshape(30, 30), np.ones((6, 6))).astype(np.uint16)
    assert judged(cells[None]).kind == "labels"
    y, x = np.mgrid[:90, :90]
    assert judged(((y + x) * 1.4).astype(np.uint8)[None]).kind == "image"
    assert judged(np.full((1, 5, 5), 0.5, np.float32)).kind == "image"
    assert judged(np.full((1, 5, 5), np.nan, np.float32)).kind == "image"


def test_classes_beside_an_ignored_255_are_not_made_binary() -> None:
    for count in (2, 6, 19):
        labels = np.append(np.arange(count), 255).repeat(9).astype(np.uint8)
        found = judged(np.tile(labels, (1, 9, 1)))
        assert (found.kind, found.binarise) == ("labels", None)


@given(st.integers(0, 2**20))
def test_flatness_counts_pairs(seed: int) -> None:
    plane = np.random.default_rng(seed).integers(0, 3, (4, 5))
    pairs = [(a, b) for row in plane.tolist() for a, b in itertools.pairwise(row) if a or b]
    wanted = np.mean([a == b for a, b in pairs]) if pairs else 1.0
    assert flatness(plane) == pytest.approx(wanted)


def test_names_are_words() -> None:
    assert role_of("maskedball") == ("", "")
    assert role_of("trainset_images")[0] == "image"
    assert role_of("ImagesTs") == ("image", "test")
    assert paired_suffixes(["a", "b", "a_b"]) is None
