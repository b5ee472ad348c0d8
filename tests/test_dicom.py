"""DICOM: a series is the array that it was made from, in its place; what makes no even block of one
series is refused with what is wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_series import write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import model_file, noise, rows, run_predict

import pipeline as pl
from pipeline import files, grid
from pipeline.config import from_dict
from pipeline.data import cases

draw = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VOLUME = np.random.default_rng(0).integers(-1000, 3000, (9, 8, 6)).astype(np.int16)


@draw
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["int16", "uint16", "uint8", "int32"]),
    straight=st.booleans(),
)
def test_a_series_is_the_array_that_it_was_made_from(
    tmp_path: Path, seed: int, kind: str, straight: bool
) -> None:
    """Slices are sorted by their positions; names and numbers run the other way."""
    rng = np.random.default_rng(seed)
    shutil.rmtree(tmp_path / "s", ignore_errors=True)
    low = -500 if kind.startswith("int") else 0
    volume = rng.integers(low, 250, tuple(rng.integers(2, 8, 3))).astype(kind)
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], (3, 1)) if straight else axes
    axes[2] = np.cross(axes[0], axes[1])
    spacing = tuple(np.round(rng.uniform(0.3, 4, 3), 3).tolist())
    origin = tuple(np.round(rng.normal(size=3) * 100, 3).tolist())
    write_series(tmp_path / "s", volume, spacing=spacing, origin=origin, directions=axes)
    array, geometry = files.read(tmp_path / "s", 3)
    np.testing.assert_array_equal(array[0], volume)
    assert files.probe(tmp_path / "s", 3).shape == array.shape
    assert files.probe(tmp_path / "s", 3).dtype == array.dtype.name
    assert files.geometry(tmp_path / "s", 3) == geometry
    affine = np.eye(4)
    affine[:3, :3] = axes.T * spacing
    affine[:3, 3] = origin
    affine[:2] *= -1
    np.testing.assert_allclose(grid.grid_of(geometry, 3).affine, affine, atol=1e-5)


def test_itk_reads_the_same_series_at_the_same_place(tmp_path: Path) -> None:
    write_series(tmp_path / "s", VOLUME, directions=np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]]))
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(os.fspath(tmp_path / "s"))
    image = sitk.ReadImage(names)
    array, geometry = files.read(tmp_path / "s", 3)
    np.testing.assert_array_equal(array[0], sitk.GetArrayFromImage(image).T)
    sitk.WriteImage(image, os.fspath(tmp_path / "a.nii.gz"))
    other, there = files.read(tmp_path / "a.nii.gz", 3)
    found = grid.alignment(
        grid.grid_of(geometry, 3), array.shape[1:], grid.grid_of(there, 3), other.shape[1:]
    )
    assert found is not None
    assert found.identity


@pytest.mark.parametrize("codec", ["JPEG2000", "JPEGLS"])
def test_compressed_slices(tmp_path: Path, codec: str) -> None:
    volume = VOLUME.clip(0).astype(np.uint16)
    write_series(tmp_path / "s", volume, codec=codec)
    np.testing.assert_array_equal(files.read(tmp_path / "s", 3)[0][0], volume)


def test_values_are_rescaled_slice_by_slice(tmp_path: Path) -> None:
    """As of PET, where each slice has a slope of its own, which may be no whole number."""
    made = write_series(
        tmp_path / "s", VOLUME // 2 * 2, tags={"0028|1053": "2", "0028|1052": "-1024"}
    )
    slope = b"\x28\x00\x53\x10\x02\x00\x00\x00"
    expected = (VOLUME // 2 * 2).astype(np.float64)
    np.testing.assert_array_equal(files.read(tmp_path / "s", 3)[0][0], expected)
    data = made[4].read_bytes()
    assert data.count(slope + b"2 ") == 1
    made[4].write_bytes(data.replace(slope + b"2 ", slope + b".5"))
    expected[:, :, 4] = (expected[:, :, 4] + 1024) / 4 - 1024
    array, _ = files.read(tmp_path / "s", 3)
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array[0], expected)


def test_what_makes_no_volume_is_refused(tmp_path: Path) -> None:
    root = tmp_path
    write_series(root / "two", VOLUME[:, :, :3])
    for path in write_series(root / "more", VOLUME[:, :, :2], uid="1.2.3.9"):
        path.rename(root / "two" / f"b{path.name}")
    shutil.rmtree(root / "more")
    write_series(root / "gap", VOLUME)[3].unlink()
    made = write_series(root / "uneven", VOLUME)
    for path in write_series(root / "late", VOLUME, origin=(-10, -20, 30.2))[5:]:
        path.replace(made[5])
    write_series(root / "tilt", VOLUME, step=np.array([0, 0.4, 2.5]))
    write_series(root / "twice", VOLUME[:, :, :3])
    for path in write_series(root / "again", VOLUME[:, :, :3]):
        path.rename(root / "twice" / f"b{path.name}")
    mixed = write_series(root / "mixed", VOLUME)
    turned = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
    write_series(root / "turned", VOLUME, directions=turned)[0].replace(mixed[0])
    sizes = write_series(root / "sizes", VOLUME)
    write_series(root / "small", VOLUME[:5])[0].replace(sizes[0])
    cut = write_series(root / "cut", VOLUME)
    cut[2].write_bytes(cut[2].read_bytes()[:-40])
    for name, words in {
        "two": ("2 series", "1.2.3.9", "'thin slices' of 3 slices", "folder of its own"),
        "gap": ("lacks slices", "5 mm", "2.5 mm", "1%"),
        "uneven": ("uneven", "2.7 mm", "2.5 mm"),
        "tilt": ("gantry tilt", "0.4 mm", "9.09 degrees", "Resample"),
        "twice": ("several slices at one position", "30 mm"),
        "mixed": ("several orientations", "ImageOrientationPatient"),
        "sizes": ("several sizes: 5 of 9x8x1, 1 of 5x8x1",),
        "cut": ("cut off",),
    }.items():
        found = files.probe(root / name, 3)
        text = f"{found.problem}. {found.suggestion}"
        assert all(word in text for word in words), text
        assert "Secret" not in text


def test_small_differences_are_no_fault(tmp_path: Path) -> None:
    """Positions are written with few decimals."""
    made = write_series(tmp_path / "s", VOLUME)
    for path in write_series(tmp_path / "t", VOLUME, origin=(-10, -20, 30.01))[2:3]:
        path.replace(made[2])
    geometry = files.geometry(tmp_path / "s", 3)
    assert grid.grid_of(geometry, 3).spacing == pytest.approx((0.7, 0.8, 2.5))


def test_which_folders_are_series(tmp_path: Path) -> None:
    write_series(tmp_path / "patient.1", VOLUME)
    for path in (tmp_path / "patient.1").iterdir():
        path.rename(path.with_suffix(""))  # as scanners export them
    (tmp_path / "patient.1" / "LICENSE").write_text("no image")
    (tmp_path / "patient.1" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert files.is_dicom_folder(tmp_path / "patient.1")
    assert files.case_id(tmp_path / "patient.1") == "patient.1"
    assert files.probe(tmp_path / "patient.1", 3).shape == (1, 9, 8, 6)
    write_series(tmp_path / "images", VOLUME)
    files.write(tmp_path / "images" / "a.nii.gz", VOLUME)
    assert not files.is_dicom_folder(tmp_path / "images")
    assert not files.is_dicom_folder(tmp_path)
    assert not files.is_dicom_folder(tmp_path / "none")
    (tmp_path / "odd").mkdir()
    os.mkfifo(tmp_path / "odd" / "pipe")
    assert not files.is_dicom_folder(tmp_path / "odd")
    data = from_dict({"name": "t", "network": "unet", "losses": ["dice"]}).data
    found = cases.inputs(tmp_path / "patient.1", data)
    assert [(c.id, c.image) for c in found] == [("patient.1", (tmp_path / "patient.1",))]
    shutil.rmtree(tmp_path / "images")
    write_series(tmp_path / "patient.2", VOLUME)
    assert [c.id for c in cases.inputs(tmp_path, data)] == ["patient.1", "patient.2"]


def test_files_of_images_in_2d(tmp_path: Path) -> None:
    """Slices in a folder are cases of their own for a 2D model."""
    write_series(tmp_path / "s", VOLUME[:, :, :2])
    data = from_dict(
        {
            "name": "t",
            "network": "unet",
            "losses": ["dice"],
            "data": {"dims": 2, "patch": {"size": [16, 16]}},
        }
    ).data
    found = cases.inputs(tmp_path / "s", data)
    assert [c.id for c in found] == ["im001", "im002"]
    array, geometry = files.read(found[1].image[0], 2)
    np.testing.assert_array_equal(array[0], VOLUME[:, :, 0])
    assert grid.grid_of(geometry, 2).spacing == pytest.approx((0.7, 0.8))
    assert "is a volume" in str(files.probe(tmp_path / "s", 2).problem)


def test_many_frames_in_one_file(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.ascontiguousarray(VOLUME.T.clip(0).astype(np.uint8)))
    sitk.WriteImage(image, os.fspath(tmp_path / "a.dcm"))
    array, geometry = files.read(tmp_path / "a.dcm", 3)
    np.testing.assert_array_equal(array[0], VOLUME.clip(0).astype(np.uint8))
    assert any("many frames" in note for note in geometry.notes)


def test_colours_are_channels(tmp_path: Path) -> None:
    colour = noise((1, 6, 7, 3), seed=4)
    image = sitk.GetImageFromArray(colour, isVector=True)
    sitk.WriteImage(image, os.fspath(tmp_path / "a.dcm"))
    array, _ = files.read(tmp_path / "a.dcm", 2)
    np.testing.assert_array_equal(array, colour[0].T)


def test_without_the_extra_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "s", VOLUME)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    found = files.probe(tmp_path / "s", 3)
    assert "SimpleITK" in str(found.problem)
    assert 'pip install -e ".[medical]"' in found.suggestion


def test_series_are_predicted_and_answered_as_nifti(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answers lie on the series, and nothing of the patient is anywhere."""
    volume = np.random.default_rng(2).integers(-500, 500, (20, 19, 18)).astype(np.int16)
    for name in ("case_1", "case_2"):
        write_series(tmp_path / "in" / name, volume)
    trained = {"layout": "folders", "family": "nifti", "codes": "RAS", "spacing": [0.7, 0.8, 2.5]}
    model = model_file(tmp_path / "m", trained_on=trained)
    assert run_predict(model, tmp_path / "in", tmp_path / "out", "--save-soft") == 0
    assert [row["output"] for row in rows(tmp_path / "out")] == ["case_1.nii.gz", "case_2.nii.gz"]
    text = capsys.readouterr().out
    assert text.count("DICOM is only read: answers are written as .nii.gz") == 1
    answer = nibabel.load(tmp_path / "out" / "case_1.nii.gz")
    geometry = files.geometry(tmp_path / "in" / "case_1", 3)
    np.testing.assert_allclose(answer.affine, grid.grid_of(geometry, 3).affine, atol=1e-5)
    np.testing.assert_allclose(answer.get_qform(), answer.affine, atol=1e-5)
    one = pl.Predictor.load(model, device="cpu").predict(tmp_path / "in" / "case_1")
    np.testing.assert_array_equal(one, np.asarray(answer.dataobj))
    assert run_predict(model, tmp_path / "in" / "case_1", tmp_path / "out2") == 0
    assert [row["id"] for row in rows(tmp_path / "out2")] == ["case_1"]
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert not [p for p in written if b"Secret" in p.read_bytes()]


@pytest.mark.parametrize("layout", ["nnunet", "folders"])
def test_series_are_trained_on(tmp_path: Path, layout: str) -> None:
    """With labels as NIfTI on the same grid."""
    from pipeline.data.properties import examine

    names = ("imagesTr", "labelsTr") if layout == "nnunet" else ("images", "masks")
    for n in range(2):
        end = "_0000" if layout == "nnunet" else ""
        folder = tmp_path / names[0] / f"case_{n}{end}"
        write_series(folder, VOLUME)
        label = (VOLUME > 0).astype(np.uint8)
        files.write(
            tmp_path / names[1] / f"case_{n}.nii.gz", label, files.geometry(folder, 3), dims=3
        )
    if layout == "nnunet":
        document = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "bright": 1},
            "numTraining": 2,
            "file_ending": ".nii.gz",
        }
        (tmp_path / "dataset.json").write_text(json.dumps(document))
    settings_ = from_dict({"name": "t", "network": "unet", "losses": ["dice"]})
    found = cases.find(settings_.data, settings_.roles, tmp_path)
    assert not found.faults
    assert [c.id for c in found.train] == ["case_0", "case_1"]
    for props in examine(found.train, settings_, None):
        assert not props.problems
        assert props.grids["image"]["codes"] == "LPS"
        assert props.grids["label"]["codes"] == "LPS"
