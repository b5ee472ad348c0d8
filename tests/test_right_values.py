"""Scores that are right or refused, through pipeline.evaluate and files: worlds and units, what
labels may hold, classes, instances.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from skimage.metrics import adapted_rand_error

from pipeline import evaluate, files
from pipeline.records import Geometry

SIZE = (12, 10, 8)


def body(shape: tuple[int, ...] = SIZE, at: int = 2) -> np.ndarray:
    """A box that no flip and no order of axes maps onto itself."""
    mask = np.zeros(shape, np.uint8)
    mask[at : at + 5, 1:5, 2:4] = 1
    return mask


def nifti(
    path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1), codes: str = "RAS"
) -> None:
    """An array given in RAS, stored with other axis codes at the same place in the world."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.diag([*spacing, 1]))
    wanted = nibabel.orientations.axcodes2ornt(codes)
    nibabel.save(
        image.as_reoriented(
            nibabel.orientations.io_orientation(image.affine) if codes == "RAS" else _turn(wanted)
        ),
        path,
    )


def _turn(wanted: np.ndarray) -> np.ndarray:
    return nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), wanted)


def score(folder: Path, *options: Any, code: int = 0) -> dict[str, Any]:
    """Scores of ``folder/answers`` against ``folder/labels``, as the JSON holds them."""
    out = folder / "scores.json"
    out.unlink(missing_ok=True)
    words = [
        "--predictions",
        folder / "answers",
        "--labels",
        folder / "labels",
        "--out",
        out,
        "--workers",
        1,
        *options,
    ]
    assert evaluate.main([str(w) for w in words]) == code
    return json.loads(out.read_text()) if out.is_file() else {}


def write(folder: Path, answer: np.ndarray, label: np.ndarray, name: str = "a.tif") -> None:
    for kind, array in (("answers", answer), ("labels", label)):
        files.write(folder / kind / name, array, dims=array.ndim)


# --- worlds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ["LAS", "LPS", "PIR", "SAL", "AIL"])
def test_one_segmentation_in_two_orientations_agrees(codes: str, tmp_path: Path) -> None:
    nifti(tmp_path / "labels/a.nii.gz", body(), (0.8, 1.1, 3.0))
    nifti(tmp_path / "answers/a.nii.gz", body(), (0.8, 1.1, 3.0), codes)
    assert nibabel.aff2axcodes(nibabel.load(tmp_path / "answers/a.nii.gz").affine) == tuple(codes)
    means = score(tmp_path, "--metrics", "dice", "hd95", "surface_dice")["mean"]
    assert means == {"dice": 1, "hd95": 0, "surface_dice": 1}


def test_a_cube_is_brought_by_its_affine_and_not_by_its_shape(tmp_path: Path) -> None:
    cube = body((9, 9, 9))
    nifti(tmp_path / "labels/a.nii.gz", cube)
    nifti(tmp_path / "answers/a.nii.gz", cube, codes="SPL")
    assert score(tmp_path, "--metrics", "dice")["mean"] == {"dice": 1}


def test_grids_that_no_flip_makes_equal_are_refused(tmp_path: Path) -> None:
    nifti(tmp_path / "labels/a.nii.gz", body(), (1, 1, 3))
    nifti(tmp_path / "answers/a.nii.gz", body(), (1, 1, 2))
    failed = score(tmp_path, "--metrics", "dice", code=1)["failed"]["a"]
    assert "answers/a.nii.gz" in failed
    assert "lies elsewhere in the world" in failed
    assert "1 x 1 x 2 mm" in failed
    assert "Resample" in failed


@pytest.mark.parametrize("other", [".tif", ".npy", ".zarr"])
def test_formats_whose_axes_nothing_relates_are_refused(other: str, tmp_path: Path) -> None:
    """Even of equal shape: which axis of a cube is Z?"""
    nifti(tmp_path / "labels/a.nii.gz", body((9, 9, 9)))
    files.write(tmp_path / "answers" / f"a{other}", body((9, 9, 9)).transpose(), dims=3)
    failed = score(tmp_path, "--metrics", "dice", code=1)["failed"]["a"]
    assert "order their axes differently" in failed
    assert "Save both in one format" in failed


def test_a_picture_and_a_flat_nifti_are_refused(tmp_path: Path) -> None:
    nifti(tmp_path / "labels/a.nii.gz", np.eye(9, dtype=np.uint8)[:, :, None])
    files.write(tmp_path / "answers/a.png", np.eye(9, dtype=np.uint8), dims=2)
    assert (
        "order their axes differently"
        in score(tmp_path, "--metrics", "dice", code=1)["failed"]["a"]
    )


def test_tiff_zarr_and_npy_share_their_order(tmp_path: Path) -> None:
    for n, kind in enumerate((".zarr", ".npy", ".tif")):
        files.write(tmp_path / "labels" / f"{n}.tif", body(), dims=3)
        files.write(tmp_path / "answers" / f"{n}{kind}", body(), dims=3)
    assert score(tmp_path, "--metrics", "dice")["mean"] == {"dice": 1}


# --- units ----------------------------------------------------------------------------------------


def test_a_shift_of_two_slices_of_three_millimetres_is_six(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nifti(tmp_path / "labels/a.nii.gz", body(), (3, 1, 1))
    nifti(tmp_path / "answers/a.nii.gz", body(at=4), (3, 1, 1))
    scores = score(tmp_path, "--metrics", "hd95", "assd")
    assert scores["mean"]["hd95"] == pytest.approx(6)
    assert scores["units"] == {"hd95": "mm", "assd": "mm"}
    table = capsys.readouterr().out
    assert "hd95 [mm]" in table
    assert "assd [mm]" in table


def imagej(path: Path, array: np.ndarray, unit: str, pixel: float, slice_: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path,
        array,
        imagej=True,
        resolution=(1 / pixel, 1 / pixel),
        metadata={"axes": "ZYX", "unit": unit, "spacing": slice_},
    )


def ome(path: Path, array: np.ndarray, unit: str, pixel: float, slice_: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = {f"PhysicalSize{a}": s for a, s in zip("XYZ", (pixel, pixel, slice_), strict=True)}
    tifffile.imwrite(
        path,
        array,
        ome=True,
        metadata={"axes": "ZYX", **sizes, **{f"PhysicalSize{a}Unit": unit for a in "XYZ"}},
    )


def zarr(path: Path, array: np.ndarray, unit: str, pixel: float, slice_: float) -> None:
    meta = {"dims": 3, "version": "0.4", "scale": [slice_, pixel, pixel], "units": [unit] * 3}
    files.write(path, array, Geometry(format="zarr", meta=meta))


@pytest.mark.parametrize(
    ("writer", "name", "unit", "factor"),
    [
        (imagej, "a.tif", "mm", 1),
        (imagej, "a.tif", "micron", 1e-3),
        (imagej, "a.tif", "\\u00B5m", 1e-3),
        (ome, "a.ome.tif", "\u00b5m", 1e-3),
        (ome, "a.ome.tif", "nm", 1e-6),
        (zarr, "a.zarr", "micrometer", 1e-3),
    ],
)
def test_formats_that_carry_a_unit_give_millimetres(
    writer: Any, name: str, unit: str, factor: float, tmp_path: Path
) -> None:
    writer(tmp_path / "labels" / name, body(), unit, 0.5, 2.0)
    writer(tmp_path / "answers" / name, body(at=3), unit, 0.5, 2.0)
    scores = score(tmp_path, "--metrics", "hd95")
    assert scores["mean"]["hd95"] == pytest.approx(2.0 * factor, rel=1e-4)
    assert scores["units"] == {"hd95": "mm"}


def test_dots_per_inch_and_files_without_a_unit_give_voxels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, at in (("labels", 2), ("answers", 3)):
        path = tmp_path / kind / "a.tif"
        path.parent.mkdir()
        tifffile.imwrite(
            path, body((30, 30, 4), at)[..., 3], resolution=(300, 300), resolutionunit=2
        )
    scores = score(tmp_path, "--metrics", "hd95")
    assert scores["mean"] == {"hd95": 1}
    assert scores["units"] == {"hd95": "voxels"}
    assert "hd95 [voxels]" in capsys.readouterr().out


def test_a_set_of_which_some_carry_a_unit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("labels", "answers"):
        imagej(tmp_path / kind / "a.tif", body(), "mm", 1, 1)
        files.write(tmp_path / kind / "b.tif", body(), dims=3)
    score(tmp_path, "--metrics", "hd95", code=2)
    assert "carry none (b)" in capsys.readouterr().err
    assert score(tmp_path, "--metrics", "dice")["mean"] == {"dice": 1}


def test_tolerances_in_voxels_and_in_millimetres(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nifti(tmp_path / "labels/a.nii.gz", body(), (3, 1, 1))
    nifti(tmp_path / "answers/a.nii.gz", body(at=3), (3, 1, 1))
    assert score(tmp_path, "--metrics", "surface_dice:tolerance=1")["mean"] == {"surface_dice": 1}
    assert score(tmp_path, "--metrics", "surface_dice:tolerance_mm=1")["mean"]["surface_dice"] < 0.9
    assert score(tmp_path, "--metrics", "surface_dice:tolerance_mm=3")["mean"] == {
        "surface_dice": 1
    }
    assert (
        "Give one of them"
        in score(tmp_path, "--metrics", "surface_dice:tolerance_mm=3,tolerance=1", code=1)[
            "failed"
        ]["a"]
    )
    write(tmp_path / "bare", body(), body())
    assert (
        "carry no unit"
        in score(tmp_path / "bare", "--metrics", "surface_dice:tolerance_mm=1", code=1)["failed"][
            "a"
        ]
    )


def test_surfaces_weigh_their_area_in_the_world(tmp_path: Path) -> None:
    """A slab of which one face is right and the other is not: with voxels of 4 x 1 x 1 mm the sides
    weigh more.
    """
    truth, longer = np.zeros((2, 14, 20, 20), np.uint8)
    truth[2:6, 5:15, 5:15] = longer[2:10, 5:15, 5:15] = 1
    nifti(tmp_path / "labels/a.nii.gz", truth, (4, 1, 1))
    nifti(tmp_path / "answers/a.nii.gz", longer, (4, 1, 1))
    faces, short, long = 2 * 100, 4 * 10 * 4 * 4, 8 * 10 * 4 * 4
    expected = (faces / 2 + short + faces / 2 + short) / (2 * faces + short + long)
    assert score(tmp_path, "--metrics", "surface_dice:tolerance_mm=0.01")["mean"][
        "surface_dice"
    ] == pytest.approx(expected, abs=0.06)


# --- what labels may hold -------------------------------------------------------------------------


def test_labels_that_are_nearly_whole_numbers_are_rounded(tmp_path: Path) -> None:
    for kind, factor in (("labels", 1), ("answers", 1.0000152588)):
        path = tmp_path / kind / "b.nii.gz"
        nifti(path, (body() * np.float32(factor)).astype(np.float32))
        image = nibabel.Nifti1Image(body() * 255, np.eye(4))
        image.header.set_slope_inter(1 / 255, 0)
        header = image.header.copy()
        scaled = nibabel.Nifti1Image(np.asarray(image.dataobj, np.float64) / 255, np.eye(4), header)
        scaled.header.set_data_dtype(np.uint8)
        nibabel.save(scaled, tmp_path / kind / "a.nii.gz")
    assert score(tmp_path, "--metrics", "dice")["cases"] == {"a": {"dice": 1}, "b": {"dice": 1}}


PROBABILITIES = np.linspace(0, 1, body().size, dtype=np.float32).reshape(SIZE)
FLAT = np.kron(body()[:, :, 3], np.ones((4, 4), np.uint8))


@pytest.mark.parametrize("side", ["answers", "labels"])
@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("a.tif", PROBABILITIES, "no class numbers"),
        ("a.nii.gz", np.where(body() > 0, np.float32(0.7), 0), "no class numbers"),
        ("a.tif", np.where(body() > 0, np.float32(np.nan), 0), "no class numbers"),
        ("a.npy", body().astype(np.int16) - 1, "below 0"),
        ("a.png", np.where(FLAT > 0, 200, 30).astype(np.uint8), "no background"),
        ("a.jpg", (np.hypot(*np.mgrid[:48, :40]) * 4).clip(0, 255).astype(np.uint8), "JPEG"),
        (
            "a.png",
            np.linspace(0, 255, 48 * 40).reshape(48, 40).astype(np.uint8),
            "resized or smoothed",
        ),
    ],
)
def test_what_is_no_label_map_is_refused_with_the_way_out(
    side: str, name: str, array: np.ndarray, says: str, tmp_path: Path
) -> None:
    good = np.zeros(array.shape, np.uint8)
    good[1:4, 1:4] = 1
    write(tmp_path, *((array, good) if side == "answers" else (good, array)), name=name)
    failed = score(tmp_path, "--metrics", "dice", code=1)["failed"]["a"]
    assert f"{side}/{name}" in failed
    assert says in failed
    assert "--binarise" in failed


def test_greys_on_one_side_alone_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, FLAT, FLAT * 200, "a.png")
    score(tmp_path, "--metrics", "dice", code=2)
    assert "the labels hold 200 where the answers hold 1" in capsys.readouterr().err
    assert score(tmp_path, "--metrics", "dice", "--binarise", 100)["mean"] == {"dice": 1}


def test_class_numbers_of_an_atlas_are_scored(tmp_path: Path) -> None:
    atlas = body().astype(np.int32) * 1017
    atlas[8:11, 6:9, 5:7] = 53
    write(tmp_path, atlas, atlas)
    assert score(tmp_path, "--metrics", "dice")["mean"] == {"dice": 1, "dice_53": 1, "dice_1017": 1}


def test_probabilities_can_be_cut(tmp_path: Path) -> None:
    write(tmp_path, PROBABILITIES, (PROBABILITIES > 0.5).astype(np.uint8))
    assert score(tmp_path, "--metrics", "dice", "--binarise", 0.5)["mean"] == {"dice": 1}


def test_values_that_the_answers_model_does_not_know_are_refused(tmp_path: Path) -> None:
    write(tmp_path, body(), body() * 3)
    (tmp_path / "answers/summary.json").write_text(
        '{"task": "labels", "classes": 2, "ignore_label": null, "files": []}'
    )
    assert (
        "outside 0 to 1, which the answers' model knows: 3"
        in score(tmp_path, "--metrics", "dice", code=1)["failed"]["a"]
    )


# --- classes, ignored voxels ----------------------------------------------------------------------


def test_classes_are_those_of_the_set(tmp_path: Path) -> None:
    """A case without class 2 in both files keeps its class 1: the mean is that of both cases."""
    label = np.zeros((10, 10), np.uint8)
    label[:4], label[6:] = 1, 2
    half = np.where(label == 1, (np.arange(10) < 5)[None], label).astype(np.uint8)
    write(tmp_path, half, label, "a.png")
    write(tmp_path, (label == 1).astype(np.uint8), (label == 1).astype(np.uint8), "b.png")
    write(tmp_path, np.zeros_like(label), np.zeros_like(label), "c.png")
    scores = score(tmp_path, "--metrics", "dice", "iou")
    assert scores["classes"] == [1, 2]
    assert scores["cases"]["a"]["dice_1"] == pytest.approx(2 / 3)
    assert scores["cases"]["b"] == {
        "dice": 1,
        "dice_1": 1,
        "dice_2": None,
        "iou": 1,
        "iou_1": 1,
        "iou_2": None,
    }
    assert set(scores["cases"]["c"].values()) == {None}
    assert scores["mean"]["dice_1"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["mean"]["dice_2"] == 1


def test_nothing_is_ignored_that_nobody_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = np.zeros((10, 10), np.uint8)
    label[:4], label[6:] = 1, 2
    write(tmp_path, (label == 1).astype(np.uint8), label, "a.png")
    assert score(tmp_path, "--metrics", "dice")["mean"] == {"dice": 0.5, "dice_1": 1, "dice_2": 0}
    assert "not counted" not in capsys.readouterr().out
    assert score(tmp_path, "--metrics", "dice", "--ignore-label", 2)["mean"] == {"dice": 1}
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "wall": 1, "ignore": 2}}')
    assert score(tmp_path, "--metrics", "dice")["mean"] == {"dice": 1}
    (tmp_path / "answers/summary.json").write_text(
        '{"task": "labels", "ignore_label": null, "files": []}'
    )
    assert score(tmp_path, "--metrics", "dice")["mean"]["dice"] == 0.5


def test_names_of_classes_stand_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset.json").write_text(
        '{"labels": {"background": 0, "Anterior": 1, "Posterior": 2}}'
    )
    write(tmp_path, body() * 2, body() * 2)
    write(tmp_path, body(), body(), "b.tif")
    scores = score(tmp_path, "--metrics", "dice")
    assert scores["class_names"] == {"1": "Anterior", "2": "Posterior"}
    assert list(scores["mean"]) == ["dice", "dice_2", "dice_1"] or set(scores["mean"]) == {
        "dice",
        "dice_1",
        "dice_2",
    }
    assert "dice Anterior" in capsys.readouterr().out


def test_a_wholly_ignored_case_has_no_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, np.zeros_like(body()), np.full_like(body(), 2))
    write(tmp_path, body(at=3), body(), "b.tif")
    scores = score(
        tmp_path,
        "--metrics",
        "dice",
        "accuracy",
        "surface_dice",
        "competition",
        "voi",
        "--ignore-label",
        2,
    )
    assert all(v is None for k, v in scores["cases"]["a"].items() if k != "counts")
    assert scores["mean"]["dice"] == pytest.approx(0.8)
    assert (
        capsys.readouterr().out.count("nothing to count in 1 cases, which are in no mean: a") == 1
    )


# --- instances, other kinds -----------------------------------------------------------------------


def cells(count: int, seed: int) -> np.ndarray:
    """Labels ``(60, 60)`` of round cells, numbered at random."""
    random = np.random.default_rng(seed)
    out = np.zeros((60, 60), np.uint16)
    for number in random.permutation(np.arange(1, count + 1)):
        y, x = random.integers(3, 57, 2)
        out[np.hypot(*(np.mgrid[:60, :60] - [[[y]], [[x]]])) < 4] = number
    return out


def test_instances_are_compared_as_whole_labelings(tmp_path: Path) -> None:
    truth = cells(50, 0)
    names = np.concatenate([[0], 1 + np.random.default_rng(1).permutation(50)]).astype(np.uint16)
    write(tmp_path, names[truth], truth, "a.tif")
    write(tmp_path, (cells(50, 0) > 0).astype(np.uint16), cells(50, 0), "b.tif")
    write(
        tmp_path,
        (truth == truth.max()).astype(np.uint16),
        (truth == truth.max()).astype(np.uint16),
        "c.tif",
    )
    scores = score(tmp_path, "--metrics", "voi", "adapted_rand")
    keys = [
        "voi",
        "voi_split",
        "voi_merge",
        "adapted_rand",
        "adapted_rand_precision",
        "adapted_rand_recall",
    ]
    assert list(scores["mean"]) == keys
    assert [scores["cases"]["a"][k] for k in ("voi", "adapted_rand")] == pytest.approx([0, 0])
    assert [scores["cases"]["c"][k] for k in ("voi", "adapted_rand")] == pytest.approx([0, 0])
    error, _, _ = adapted_rand_error(cells(50, 0), (cells(50, 0) > 0).astype(int))
    assert scores["cases"]["b"]["adapted_rand"] == pytest.approx(error)
    assert scores["cases"]["b"]["voi_merge"] > 3
    assert scores["cases"]["b"]["voi_split"] == pytest.approx(0)


def test_class_scores_of_instances_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, cells(50, 0), cells(50, 0), "a.tif")
    score(tmp_path, "--metrics", "dice")
    assert "number instances, use --metrics voi adapted_rand" in capsys.readouterr().out


def test_metrics_of_images_are_refused_for_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, FLAT, FLAT, "a.png")
    assert (
        "holds whole numbers from 0 to 1: labels"
        in score(tmp_path, "--metrics", "psnr", code=1)["failed"]["a"]
    )
    (tmp_path / "answers/summary.json").write_text('{"task": "labels", "files": []}')
    score(tmp_path, "--metrics", "psnr", "ssim", code=2)
    assert "psnr, ssim: of images, but these predictions are labels" in capsys.readouterr().err


# --- which cases ----------------------------------------------------------------------------------


def test_a_part_of_the_labels_is_scored_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, body(), body())
    files.write(tmp_path / "labels/b.tif", body(), dims=3)
    score(tmp_path, "--metrics", "dice", code=2)
    assert "--partial" in capsys.readouterr().err
    assert list(score(tmp_path, "--metrics", "dice", "--partial")["cases"]) == ["a"]
    assert "1 of 2 labels have no answer and are not scored: b" in capsys.readouterr().out


def test_numbers_are_written_as_json_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, body(), body())
    kept = (tmp_path / "labels/a.tif").read_bytes()
    words = [
        "--predictions",
        tmp_path / "answers",
        "--labels",
        tmp_path / "labels",
        "--out",
        tmp_path / "labels/a.tif",
    ]
    assert evaluate.main([str(w) for w in words]) == 2
    assert "written as a .json file" in capsys.readouterr().err
    assert (tmp_path / "labels/a.tif").read_bytes() == kept


def test_cases_that_fail_for_one_reason_share_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(5):
        write(tmp_path, PROBABILITIES, body(), f"case{n}.tif")
    write(tmp_path, body(), body(), "good.tif")
    assert len(score(tmp_path, "--metrics", "dice", code=3)["failed"]) == 5
    out = capsys.readouterr().out
    assert out.count("FAILED") == 1
    assert "5 cases alike: case0, case1, case2, case3, case4" in out
