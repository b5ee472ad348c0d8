"""Scores of unusual files: voxels of micrometres, ids of instances that differ, what stands under
an ignored label, units by axis.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import competition_folder
from scipy.ndimage import binary_erosion, distance_transform_edt
from skimage.metrics import adapted_rand_error, variation_of_information
from small_models import nifti

from pipeline import ensemble, evaluate, files, train, tune

CUBE = (12, 12, 12)


def box(
    first: tuple[int, int, int], size: tuple[int, int, int], shape: tuple[int, ...] = CUBE
) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(a, a + n) for a, n in zip(first, size, strict=True))] = 1
    return mask


def score(root: Path, *more: object, code: int = 0) -> dict[str, Any]:
    words = [
        "--predictions",
        root / "answers",
        "--labels",
        root / "labels",
        "--workers",
        1,
        *more,
        "--out",
        root / "scores.json",
    ]
    assert evaluate.main([str(w) for w in words]) == code
    return (
        json.loads((root / "scores.json").read_text()) if (root / "scores.json").is_file() else {}
    )


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return (
        2
        * np.count_nonzero((one > 0) & (other > 0))
        / (np.count_nonzero(one) + np.count_nonzero(other))
    )


# --- places ---------------------------------------------------------------------------------------

ANSWER, LABEL = box((1, 3, 2), (5, 7, 4)), box((2, 2, 2), (6, 5, 6))


def micrometres(offset: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """Voxels of half a micrometre, in millimetres."""
    affine = np.diag([5e-4, 5e-4, 5e-4, 1])
    affine[:3, 3] = offset
    return affine


@pytest.mark.parametrize("offset", [(0, 0, 0), (64.1, 33.3, 12.9)])
@pytest.mark.parametrize("codes", ["RAS", "ARS", "LPS", "SLA"])
def test_tiny_voxels_are_compared_in_the_world(
    codes: str, offset: tuple[float, float, float], tmp_path: Path
) -> None:
    nifti(tmp_path / "answers/a.nii.gz", ANSWER, micrometres(offset), codes)
    nifti(tmp_path / "labels/a.nii.gz", LABEL, micrometres(offset))
    assert score(tmp_path, "--metrics", "dice")["mean"]["dice"] == pytest.approx(
        dice(ANSWER, LABEL)
    )


def test_a_shift_of_one_tiny_voxel_is_a_place_of_its_own(tmp_path: Path) -> None:
    nifti(tmp_path / "answers/a.nii.gz", ANSWER, micrometres((5e-4, 0, 0)))
    nifti(tmp_path / "labels/a.nii.gz", LABEL, micrometres())
    assert (
        "lies elsewhere in the world" in score(tmp_path, "--metrics", "dice", code=1)["failed"]["a"]
    )


def test_training_sees_where_tiny_voxels_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for n in range(4):
        image = np.random.default_rng(n).integers(0, 200, CUBE).astype(np.uint8)
        nifti(data / f"imagesTr/c{n}_0000.nii.gz", image, micrometres())
        nifti(data / f"labelsTr/c{n}.nii.gz", LABEL, micrometres((5e-4 * (n == 2), 0, 0)))
    (data / "dataset.json").write_text(
        '{"labels": {"background": 0, "a": 1}, "channel_names": {"0": "x"}, "file_ending":'
        ' ".nii.gz"}'
    )
    (tmp_path / "c.yaml").write_text(
        "name: t\n"
        "data: {layout: nnunet, folds: {count: 2}, patch: {size: [16, 16, 16]}}\n"
        "network: unet\n"
        "losses: [dice]\n"
    )
    assert (
        train.main(
            [
                "--config",
                str(tmp_path / "c.yaml"),
                "--data-dir",
                str(data),
                "--out",
                str(tmp_path / "run"),
                "--dry-run",
            ]
        )
        == 2
    )
    said = capsys.readouterr()
    assert "c2.nii.gz: lies elsewhere in the world than its image" in said.out + said.err
    assert "c1.nii.gz: lies elsewhere" not in said.out + said.err


# --- lengths --------------------------------------------------------------------------------------


def surface_distance(one: np.ndarray, other: np.ndarray, spacing: tuple[float, ...]) -> float:
    edges = [m.astype(bool) & ~binary_erosion(m) for m in (one, other)]
    apart = [distance_transform_edt(~edges[1 - i], spacing)[edges[i]] for i in (0, 1)]
    return max(float(np.percentile(d, 95)) for d in apart)


def test_an_ome_file_may_give_each_axis_its_own_unit(tmp_path: Path) -> None:
    for kind, mask in (("answers", ANSWER), ("labels", LABEL)):
        (tmp_path / kind).mkdir()
        sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 3000}
        units = {
            "PhysicalSizeXUnit": "mm",
            "PhysicalSizeYUnit": "mm",
            "PhysicalSizeZUnit": "\u00b5m",
        }
        tifffile.imwrite(
            tmp_path / kind / "a.ome.tif",
            mask,
            ome=True,
            metadata={"axes": "ZYX", **sizes, **units},
        )
    scores = score(tmp_path, "--metrics", "hd95")
    assert scores["mean"]["hd95"] == pytest.approx(surface_distance(ANSWER, LABEL, (3, 0.25, 0.5)))
    assert scores["units"] == {"hd95": "mm"}


def test_an_axis_without_a_known_unit_leaves_voxels(tmp_path: Path) -> None:
    for kind, mask in (("answers", ANSWER), ("labels", LABEL)):
        (tmp_path / kind).mkdir()
        meta = {
            "PhysicalSizeX": 0.5,
            "PhysicalSizeY": 0.5,
            "PhysicalSizeZ": 3,
            "PhysicalSizeXUnit": "mm",
            "PhysicalSizeYUnit": "mm",
        }
        tifffile.imwrite(
            tmp_path / kind / "a.ome.tif",
            mask,
            ome=True,
            metadata={"axes": "ZYX", **meta, "PhysicalSizeZUnit": "pixel"},
        )
    assert score(tmp_path, "--metrics", "hd95")["units"] == {"hd95": "voxels"}


def test_small_lengths_are_shown_with_their_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nifti(
        tmp_path / "answers/a.nii.gz",
        box((2, 3, 3), (5, 5, 5)),
        micrometres() @ np.diag([0.1, 0.1, 0.1, 1]),
    )
    nifti(
        tmp_path / "labels/a.nii.gz",
        box((3, 3, 3), (5, 5, 5)),
        micrometres() @ np.diag([0.1, 0.1, 0.1, 1]),
    )
    score(tmp_path, "--metrics", "hd95")
    assert "5e-05" in capsys.readouterr().out


def test_one_metric_with_two_options_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nifti(tmp_path / "answers/a.nii.gz", ANSWER)
    nifti(tmp_path / "labels/a.nii.gz", LABEL)
    score(tmp_path, "--metrics", "surface_dice:tolerance=1", "surface_dice:tolerance_mm=2", code=2)
    assert "names surface_dice twice" in capsys.readouterr().err


# --- values ---------------------------------------------------------------------------------------


def cells(seed: int, count: int) -> np.ndarray:
    """Labels of Voronoi cells, an outer part background."""
    points = np.random.default_rng(seed).uniform(0, 12, (count, 3))
    apart = np.linalg.norm(np.stack(np.indices(CUBE), -1)[..., None, :] - points, axis=-1)
    return np.where(apart.min(-1) < 3.5, apart.argmin(-1) + 1, 0)


@pytest.mark.parametrize(
    ("dtype", "most", "name"),
    [("uint16", 2**16, "a.nii.gz"), ("uint32", 2**32, "a.tif"), ("uint64", 2**62, "a.npy")],
)
def test_ids_of_instances_need_not_meet(dtype: str, most: int, name: str, tmp_path: Path) -> None:
    """No id of the answers occurs in the labels, as after two runs of a watershed."""
    random = np.random.default_rng(0)
    answer, label = cells(1, 20), cells(2, 14)
    for kind, numbers, parity in (("answers", answer, 0), ("labels", label, 1)):
        ids = np.concatenate(
            [
                [0],
                random.choice(10**4, numbers.max(), replace=False).astype(np.uint64)
                * (most // 10**4 // 2)
                * 2
                + 2
                + parity,
            ]
        )
        array = ids.astype(dtype)[numbers]
        (
            nifti(tmp_path / kind / name, array)
            if name.endswith(".nii.gz")
            else files.write(tmp_path / kind / name, array, dims=3)
        )
    found = score(tmp_path, "--metrics", "voi", "adapted_rand")["mean"]
    either = (answer > 0) | (label > 0)
    split, merge = variation_of_information(label[either], answer[either])
    assert sorted([found["voi_split"], found["voi_merge"]]) == pytest.approx(sorted([split, merge]))
    assert found["adapted_rand"] == pytest.approx(adapted_rand_error(label, answer)[0])


def test_one_grey_against_another_is_refused_for_instances_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write(tmp_path / "answers/a.tif", ANSWER, dims=3)
    files.write(tmp_path / "labels/a.tif", LABEL * 200, dims=3)
    score(tmp_path, "--metrics", "voi", code=2)
    assert "no value is foreground in both" in capsys.readouterr().err


@pytest.mark.parametrize("ignored", [2, 255, -1])
def test_what_stands_under_an_ignored_label_is_no_class(ignored: int, tmp_path: Path) -> None:
    answer, label = ANSWER.astype(np.int16), LABEL.astype(np.int16)
    label[:3] = ignored
    for number, under in enumerate((ignored, 1, 7)):
        root = tmp_path / str(number)
        answer[:3] = under
        files.write(root / "answers/a.tif", answer, dims=3)
        files.write(root / "labels/a.tif", label, dims=3)
        scores = score(root, "--metrics", "dice", "voi", f"--ignore-label={ignored}")
        assert "classes" not in scores
        assert (
            scores["mean"]["dice"]
            == scores["pooled"]["dice"]
            == pytest.approx(dice(ANSWER[3:], LABEL[3:]))
        )


def test_an_ignored_value_where_the_label_counts_is_refused(tmp_path: Path) -> None:
    files.write(tmp_path / "answers/a.tif", np.where(ANSWER == 0, -1, 1).astype(np.int16), dims=3)
    files.write(tmp_path / "labels/a.tif", LABEL, dims=3)
    assert (
        "holds the ignored value -1"
        in score(tmp_path, "--metrics", "dice", "--ignore-label=-1", code=1)["failed"]["a"]
    )
    assert (
        "or --ignore-label=-1 if that is void"
        in score(tmp_path, "--metrics", "dice", code=1)["failed"]["a"]
    )


def test_images_beyond_the_full_scale_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.random.default_rng(0).integers(0, 4000, CUBE).astype(np.int16)
    nifti(tmp_path / "answers/a.nii.gz", image)
    nifti(tmp_path / "labels/a.nii.gz", image.astype(np.float32))
    score(tmp_path, "--metrics", "psnr")
    assert "larger than the full scale in 1 cases: a" in capsys.readouterr().out


@pytest.mark.parametrize(
    "entry", ["z\u00fcrich", "zu\u0308rich", "z\u00fcrich.tif", "images/z\u00fcrich.tif"]
)
def test_a_split_names_cases_as_in_training(entry: str, tmp_path: Path) -> None:
    for kind in ("answers", "labels"):
        for name in ("z\u00fcrich", "other"):
            files.write(tmp_path / kind / f"{name}.tif", LABEL, dims=3)
    (tmp_path / "split.json").write_text(json.dumps({"test": [entry]}))
    assert list(
        score(tmp_path, "--metrics", "dice", "--split", tmp_path / "split.json")["cases"]
    ) == ["z\u00fcrich"]


@pytest.mark.parametrize("white", [np.uint8(255), np.uint16(65535), np.float32(1.0000001)])
def test_masks_of_black_and_white_can_vote(white: Any, tmp_path: Path) -> None:
    masks = [box((1, 1, n), (5, 5, 5)) for n in (1, 2, 3)]
    for n, mask in enumerate(masks):
        files.write(tmp_path / f"{n}/a.tif", mask * white, dims=3)
    words = [
        "--fold-dirs",
        *(str(tmp_path / str(n)) for n in range(3)),
        "--output",
        str(tmp_path / "out"),
        "--fusion",
        "vote",
    ]
    assert ensemble.main(words) == 0
    np.testing.assert_array_equal(
        files.read(tmp_path / "out/a.tif", 3)[0][0], np.sum(masks, 0) >= 2
    )


# --- tuning ---------------------------------------------------------------------------------------


def test_tuning_names_the_unit_of_a_length(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    competition_folder(tmp_path / "data", cases=4)
    words = [
        "--config",
        str(tiny),
        "--data-dir",
        str(tmp_path / "data"),
        "--out",
        str(run),
        "--fold",
        "-1",
        "--set",
        "train.epochs=2",
    ]
    assert train.main(words) == 0
    (tmp_path / "space.yaml").write_text(
        "stages:\n  - [[threshold]]\n  - [[], [{name: dust, options: {below: 20}}]]\n"
    )
    more = [
        "--metric",
        "hd95",
        "--space",
        str(tmp_path / "space.yaml"),
        "--workers",
        "1",
        "--out",
        str(tmp_path / "out.yaml"),
    ]
    assert tune.main([str(run), *more]) == 0
    assert "hd95 [voxels]" in capsys.readouterr().out
    assert json.loads((run / "tuning/result.json").read_text())["units"] == {"hd95": "voxels"}
