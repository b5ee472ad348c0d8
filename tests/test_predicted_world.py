"""Files whose axes are not those of training: brought to them exactly and back, or refused; other
voxel sizes are told.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from small_models import in_codes, model_file, nifti, noise, rows, run_predict

from pipeline import ensemble, files
from pipeline.inference import soft as softs
from pipeline.records import Geometry

SHAPE = (21, 18, 25)
RAS = {
    "layout": "nnunet",
    "family": "nifti",
    "codes": "RAS",
    "spacing": [1.0, 1.0, 1.0],
    "class_names": {"1": "Anterior"},
}
CODES = ["LPS", "PIR", "ASL", "IAR"]


@pytest.fixture(scope="module")
def trained_in_ras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("ras"), trained_on=RAS)


# --- prediction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", CODES)
def test_a_file_of_other_axes_gets_the_answer_of_the_same_file_in_those_of_training(
    codes: str, trained_in_ras: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1])
    affine[:3, 3] = 12, -7, 3
    nifti(tmp_path / "one" / "a.nii.gz", noise(SHAPE), affine)
    nifti(tmp_path / "two" / "a.nii.gz", noise(SHAPE), affine, codes)
    for name in ("one", "two"):
        assert (
            run_predict(trained_in_ras, tmp_path / name, tmp_path / f"{name}_out", "--save-soft")
            == 0
        )
    told = capsys.readouterr().out
    assert told.count(f"Its axes {codes} are brought to those of training, RAS") == 1
    given, answer = (
        nibabel.load(tmp_path / "two" / "a.nii.gz"),
        nibabel.load(tmp_path / "two_out" / "a.nii.gz"),
    )
    assert answer.shape == given.shape
    np.testing.assert_array_equal(answer.affine, given.affine)
    np.testing.assert_array_equal(
        in_codes(tmp_path / "two_out" / "a.nii.gz"), in_codes(tmp_path / "one_out" / "a.nii.gz")
    )
    assert 0 < in_codes(tmp_path / "one_out" / "a.nii.gz").mean() < 1
    one, two = (softs.load(tmp_path / f"{name}_out" / "soft", "a").main for name in ("one", "two"))
    assert two.shape[1:] == given.shape
    order = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt(codes), nibabel.orientations.axcodes2ornt("RAS")
    )
    np.testing.assert_array_equal(nibabel.orientations.apply_orientation(two[0], order), one[0])


@pytest.mark.parametrize("codes", ["RAS", "LPI", "RSP", "LSA"])
def test_blocks_and_shards_give_the_bits_of_memory_where_the_first_axis_stays(
    codes: str, trained_in_ras: Path, tmp_path: Path
) -> None:
    path = nifti(tmp_path / "in" / "a.nii.gz", noise((37, 18, 25)), codes=codes)
    assert (
        run_predict(trained_in_ras, path, tmp_path / "memory", "--save-soft", "--blocks", "never")
        == 0
    )
    assert (
        run_predict(trained_in_ras, path, tmp_path / "blocks", "--save-soft", "--blocks", "always")
        == 0
    )
    for n in (0, 1):
        assert (
            run_predict(
                trained_in_ras, path, tmp_path / "shards", "--save-soft", "--shard", f"{n}/2"
            )
            == 0
        )
    assert run_predict(trained_in_ras, path, tmp_path / "shards", "--save-soft") == 0
    wanted = (tmp_path / "memory" / "soft" / "a.npy").read_bytes()
    for way in ("blocks", "shards"):
        assert (tmp_path / way / "soft" / "a.npy").read_bytes() == wanted
        assert (tmp_path / way / "a.nii.gz").read_bytes() == (
            tmp_path / "memory" / "a.nii.gz"
        ).read_bytes()


@pytest.mark.parametrize("codes", ["PIR", "SAR", "IPL", "ASL"])
def test_by_blocks_rows_may_become_columns(
    codes: str, trained_in_ras: Path, tmp_path: Path
) -> None:
    """The answer is then mapped from a file, and is that of memory."""
    path = nifti(tmp_path / "in" / "a.nii.gz", noise((40, 17, 9)), codes=codes)
    for way in ("never", "always"):
        assert (
            run_predict(trained_in_ras, path, tmp_path / way, "--save-soft", "--blocks", way) == 0
        )
    for name in ("a.nii.gz", "a_visualization.nii.gz", "soft/a.npy"):
        assert (tmp_path / "always" / name).read_bytes() == (tmp_path / "never" / name).read_bytes()
    assert not (tmp_path / "always" / "blocks").exists()


def test_shards_that_change_the_first_axis_agree_on_the_blocks(
    trained_in_ras: Path, tmp_path: Path
) -> None:
    """Small files are finished in memory, so any order of axes can be shared; how many blocks there
    are follows the axes of training.
    """
    path = nifti(tmp_path / "in" / "a.nii.gz", noise((40, 17, 9)), codes="SAR")
    assert run_predict(trained_in_ras, path, tmp_path / "memory", "--save-soft") == 0
    for n in (0, 1, 2):
        assert (
            run_predict(trained_in_ras, path, tmp_path / "out", "--save-soft", "--shard", f"{n}/3")
            == 0
        )
    before = len(list((tmp_path / "out" / "blocks").rglob("0*.npy")))
    assert before == 5  # 40 rows along R, in steps of 8
    assert run_predict(trained_in_ras, path, tmp_path / "out", "--save-soft") == 0
    assert (tmp_path / "out" / "soft" / "a.npy").read_bytes() == (
        tmp_path / "memory" / "soft" / "a.npy"
    ).read_bytes()


@pytest.mark.parametrize("blocks", ["never", "always"])
def test_files_of_another_family_fail_and_the_others_are_done(
    blocks: str, trained_in_ras: Path, tmp_path: Path
) -> None:
    nifti(tmp_path / "in" / "a.nii.gz", noise((16, 16, 16)))
    files.write(tmp_path / "in" / "b.tif", noise((16, 16, 16)))
    assert run_predict(trained_in_ras, tmp_path / "in", tmp_path / "out", "--blocks", blocks) == 3
    done, failed = rows(tmp_path / "out")
    assert done["status"] == "done"
    for word in ("b.tif", "TIFF", "NIfTI", "Convert"):
        assert word in failed["error"]
    on_tiff = model_file(
        tmp_path / "model",
        trained_on={"layout": "folders", "family": "array", "codes": None, "spacing": None},
    )
    assert run_predict(on_tiff, tmp_path / "in" / "a.nii.gz", tmp_path / "out2") == 1
    assert "a.nii.gz" in rows(tmp_path / "out2")[0]["error"]


def test_channels_of_two_families_are_refused_whatever_the_model_says(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "a_0000.nii.gz", noise((16, 16, 16)))
    files.write(tmp_path / "in" / "a_0001.tif", noise((16, 16, 16)))
    assert (
        run_predict(model_file(tmp_path / "model", channels=2), tmp_path / "in", tmp_path / "out")
        == 1
    )
    assert "a_0001.tif" in rows(tmp_path / "out")[0]["error"]
    assert "a_0000.nii.gz" in rows(tmp_path / "out")[0]["error"]


def test_other_voxel_sizes_are_told_with_both(
    trained_in_ras: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def warnings(
        spacing: tuple[float, ...], codes: str = "RAS", trained: tuple[float, ...] = (1, 1, 1)
    ) -> list[str]:
        model = model_file(tmp_path / "m", trained_on={**RAS, "spacing": list(trained)})
        path = nifti(tmp_path / "in" / "a.nii.gz", noise(SHAPE), np.diag([*spacing, 1]), codes)
        assert run_predict(model, path, tmp_path / "out") == 0
        return [
            line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")
        ]

    (line,) = warnings((4, 4, 4))
    assert "4 x 4 x 4 mm" in line
    assert "1 x 1 x 1 mm" in line
    assert rows(tmp_path / "out")[0]["warnings"]
    assert not warnings((1.1, 1, 1))  # a tenth is not more
    assert not warnings((0.5, 0.5, 3), "IPL", (0.5, 0.5, 3))  # compared along the axes of training
    assert warnings((0.5, 3, 0.5), "RAS", (0.5, 0.5, 3))


def test_models_that_say_nothing_predict_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Older model files: the array is taken in the order of its file."""
    old = model_file(tmp_path / "old")
    for codes in ("RAS", "PIR"):
        nifti(tmp_path / codes / "a.nii.gz", noise(SHAPE), np.diag([4.0, 4, 4, 1]), codes)
        files.write(
            tmp_path / f"{codes}.npy",
            np.asarray(nibabel.load(tmp_path / codes / "a.nii.gz").dataobj),
            dims=3,
        )
        assert run_predict(old, tmp_path / codes, tmp_path / f"{codes}_out", "--save-soft") == 0
        assert (
            run_predict(old, tmp_path / f"{codes}.npy", tmp_path / f"{codes}_plain", "--save-soft")
            == 0
        )
        np.testing.assert_array_equal(
            np.load(tmp_path / f"{codes}_out" / "soft" / "a.npy"),
            np.load(tmp_path / f"{codes}_plain" / "soft" / f"{codes}.npy"),
        )
    assert "warning: " not in capsys.readouterr().out


def test_slices_of_other_planes_are_refused(tmp_path: Path) -> None:
    model = model_file(
        tmp_path / "m", dims=2, trained_on={**RAS, "codes": "RA", "spacing": [1.0, 1.0]}
    )
    image = nibabel.Nifti1Image(
        noise((24, 20, 1)), np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    )  # AS
    image.set_sform(image.affine, 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert run_predict(model, tmp_path / "a.nii.gz", tmp_path / "out") == 1
    assert "AS" in rows(tmp_path / "out")[0]["error"]
    turned = nibabel.Nifti1Image(noise((24, 20, 1)), np.diag([-1.0, -1, 1, 1]))  # LP
    turned.set_sform(turned.affine, 1)
    nibabel.save(turned, tmp_path / "b.nii.gz")
    assert run_predict(model, tmp_path / "b.nii.gz", tmp_path / "out") == 0
    assert (tmp_path / "out" / "b_overlay.png").is_file()


def test_models_of_several_worlds_do_not_answer_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n, codes in enumerate(["RAS", "LPS"]):
        model_file(tmp_path / "run" / f"fold_{n}", trained_on={**RAS, "codes": codes})
        files.write_json(tmp_path / "run" / f"fold_{n}" / "result.json", RESULT | {"fold": n})
    path = nifti(tmp_path / "a.nii.gz", noise(SHAPE))
    assert run_predict(tmp_path / "run", path, tmp_path / "out", "--allow-missing-folds") == 2
    told = capsys.readouterr().err
    assert "codes: RAS -> LPS" in told


RESULT = {
    "status": "completed",
    "best_epoch": 3,
    "score": 0.5,
    "metrics": {},
    "checkpoint": "best_model.safetensors",
    "chosen": "best",
    "epochs": 4,
    "seconds": 1.0,
    "error": "",
    "cases": {},
}


def test_the_summary_names_the_classes(trained_in_ras: Path, tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", noise((16, 16, 16)))
    assert run_predict(trained_in_ras, path, tmp_path / "out", "--save-soft") == 0
    assert (
        ensemble.main(["--fold-dirs", str(tmp_path / "out"), "--output", str(tmp_path / "e")]) == 0
    )
    for folder in ("out", "e"):
        summary = files.read_json(tmp_path / folder / "summary.json")
        assert summary["classes"] == 2
        assert summary["class_names"] == {"1": "Anterior"}


# --- ensembles ------------------------------------------------------------------------------------


def soft_member(folder: Path, image: Path, soft: np.ndarray) -> Path:
    """A folder of one soft prediction of an image file."""
    place: Geometry = files.geometry(image, soft.ndim - 1)
    meta = softs.SoftMeta(task="labels", suffix=files.suffix(image), dtype="uint8")
    softs.save(
        folder / "soft",
        softs.SoftPrediction(case_id="a", heads={"main": soft}, geometry=place, meta=meta),
    )
    return folder


def fuse(out: Path, *members: Path) -> int:
    return ensemble.main(["--fold-dirs", *map(str, members), "--output", str(out), "--save-soft"])


@pytest.mark.parametrize("codes", CODES)
def test_members_of_other_axes_are_fused_in_the_world(codes: str, tmp_path: Path) -> None:
    """The mean of a prediction with itself, stored in other axes, is that prediction, on the first
    member's grid.
    """
    soft = np.random.default_rng(0).random((1, *SHAPE)).astype(np.float16).astype(np.float32)
    first = nifti(tmp_path / "first.nii.gz", noise(SHAPE))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    other = nifti(tmp_path / "other.nii.gz", noise(SHAPE), codes=codes)
    one = soft_member(tmp_path / "one", first, soft)
    two = soft_member(
        tmp_path / "two", other, nibabel.orientations.apply_orientation(soft[0], turn)[None]
    )
    assert fuse(tmp_path / "e", one, two) == 0
    np.testing.assert_array_equal(softs.load(tmp_path / "e" / "soft", "a").main, soft)
    answer = nibabel.load(tmp_path / "e" / "a.nii.gz")
    np.testing.assert_array_equal(answer.affine, nibabel.load(first).affine)
    assert fuse(tmp_path / "turned", two, one) == 0
    np.testing.assert_array_equal(
        in_codes(tmp_path / "turned" / "a.nii.gz"), in_codes(tmp_path / "e" / "a.nii.gz")
    )


def test_answers_of_other_axes_vote_in_the_world(tmp_path: Path) -> None:
    mask = (noise(SHAPE) > 120).astype(np.uint8)
    for n, codes in enumerate(["RAS", "LPS", "PIR"]):
        nifti(tmp_path / f"m{n}" / "a.nii.gz", mask, codes=codes)
    folders = [str(tmp_path / f"m{n}") for n in range(3)]
    assert (
        ensemble.main(
            ["--fold-dirs", *folders, "--output", str(tmp_path / "e"), "--fusion", "vote"]
        )
        == 0
    )
    np.testing.assert_array_equal(in_codes(tmp_path / "e" / "a.nii.gz"), mask)


def test_members_of_other_places_or_families_are_refused_with_both_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft = np.full((1, 16, 16, 16), 0.5, np.float32)
    one = soft_member(tmp_path / "one", nifti(tmp_path / "a.nii.gz", noise((16, 16, 16))), soft)
    moved = np.eye(4)
    moved[0, 3] = 5
    two = soft_member(
        tmp_path / "two", nifti(tmp_path / "b.nii.gz", noise((16, 16, 16)), moved), soft
    )
    files.write(tmp_path / "c.tif", noise((16, 16, 16)))
    three = soft_member(tmp_path / "three", tmp_path / "c.tif", soft)
    for other, word in ((two, "world"), (three, "order")):
        assert fuse(tmp_path / "e", one, other) == 2
        told = capsys.readouterr().err
        assert str(one / "soft" / "a.npy") in told
        assert str(other / "soft" / "a.npy") in told
        assert word in told
        assert not (tmp_path / "e").exists()
