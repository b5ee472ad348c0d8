"""Whatever can be predicted can be submitted: Zarr, numbered channels, names in decomposed Unicode;
and answers that lie as their images.
"""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import nibabel
import numpy as np
import pytest
from small_models import model_file, nifti, noise, rows, run_predict, zip_contents

from pipeline import ensemble, evaluate, files, submit

SHAPE = (16, 17, 18)


def command(predictions: Path, tests: Path, out: Path, *more: str) -> int:
    return submit.main(
        ["--predictions", str(predictions), "--test-dir", str(tests), "--out", str(out), *more]
    )


def mask(seed: int) -> np.ndarray:
    return (noise(SHAPE, seed) > 120).astype(np.uint8)


# --- every kind of input --------------------------------------------------------------------------


def test_zarr_volumes_beside_tiff_are_in_the_zip(tmp_path: Path) -> None:
    for n, name in enumerate(("a.tif", "b.zarr", "c.ome.zarr", "d.npy")):
        files.write(tmp_path / "tests" / name, noise(SHAPE, n))
    (tmp_path / "tests" / "notes").mkdir()
    assert (
        run_predict(model_file(tmp_path / "m"), tmp_path / "tests", tmp_path / "p", "--save-soft")
        == 0
    )
    assert command(tmp_path / "p", tmp_path / "tests", tmp_path / "s.zip") == 0
    found = zip_contents(tmp_path / "s.zip")
    assert list(found) == ["a.tif", "b.tif", "c.tif", "d.tif"]
    for name, ending in (("a", ".tif"), ("b", ".zarr"), ("c", ".ome.zarr"), ("d", ".npy")):
        np.testing.assert_array_equal(
            found[f"{name}.tif"], files.read(tmp_path / "p" / f"{name}{ending}", 3)[0][0]
        )
    assert (
        command(tmp_path / "p", tmp_path / "tests", tmp_path / "s.csv", "--format", "rle-csv") == 0
    )
    with (tmp_path / "s.csv").open() as stream:
        assert [row["id"] for row in csv.DictReader(stream)] == ["a", "b", "c", "d"]


def test_a_zarr_without_an_answer_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write(tmp_path / "tests" / "a.tif", noise(SHAPE))
    files.write(tmp_path / "tests" / "b.zarr", noise(SHAPE))
    files.write(tmp_path / "p" / "a.tif", mask(0))
    assert command(tmp_path / "p", tmp_path / "tests", tmp_path / "s.zip") == 2
    assert "missing: 1: b." in capsys.readouterr().err
    files.write(tmp_path / "p" / "b.zarr", mask(1)[1:])
    assert command(tmp_path / "p", tmp_path / "tests", tmp_path / "s.zip") == 2
    assert "wrong shape: 1: b" in capsys.readouterr().err


def test_zarr_answers_vote_and_are_scored(tmp_path: Path) -> None:
    for n in range(3):
        files.write(tmp_path / f"m{n}" / "a.zarr", mask(n % 2))
        files.write(tmp_path / f"m{n}" / "a_visualization.zarr", mask(n % 2) * 255)
    files.write(tmp_path / "labels" / "a.zarr", mask(0))
    folders = [str(tmp_path / f"m{n}") for n in range(3)]
    assert (
        ensemble.main(
            ["--fold-dirs", *folders, "--output", str(tmp_path / "e"), "--fusion", "vote"]
        )
        == 0
    )
    np.testing.assert_array_equal(files.read(tmp_path / "e" / "a.zarr", 3)[0][0], mask(0))
    words = [
        "--predictions",
        str(tmp_path / "e"),
        "--labels",
        str(tmp_path / "labels"),
        "--metrics",
        "dice",
    ]
    assert evaluate.main([*words, "--out", str(tmp_path / "s.json")]) == 0
    assert files.read_json(tmp_path / "s.json")["mean"]["dice"] == 1.0


@pytest.mark.parametrize("channels", [1, 2])
def test_numbered_channels_are_submitted_under_the_id_of_their_case(
    channels: int, tmp_path: Path
) -> None:
    for case in ("a", "b"):
        for n in range(channels):
            nifti(tmp_path / "imagesTs" / f"{case}_{n:04d}.nii.gz", noise(SHAPE, n))
    model = model_file(tmp_path / "m", channels=channels)
    assert run_predict(model, tmp_path / "imagesTs", tmp_path / "p") == 0
    assert [r["id"] for r in rows(tmp_path / "p")] == ["a", "b"]
    assert command(tmp_path / "p", tmp_path / "imagesTs", tmp_path / "s.zip") == 0
    found = zip_contents(tmp_path / "s.zip")
    assert list(found) == ["a.tif", "b.tif"]
    np.testing.assert_array_equal(
        found["a.tif"], np.asarray(nibabel.load(tmp_path / "p" / "a.nii.gz").dataobj)
    )
    (tmp_path / "e.yaml").write_text(f"members: [{{run: {model.parent}}}]\n")
    words = [
        "--spec",
        str(tmp_path / "e.yaml"),
        "--test-dir",
        str(tmp_path / "imagesTs"),
        "--out",
        str(tmp_path / "t.zip"),
    ]
    assert submit.main(words) == 0
    found = zip_contents(tmp_path / "t.zip")  # of probabilities that were rounded to half precision
    np.testing.assert_array_equal(
        found["b.tif"], np.asarray(nibabel.load(tmp_path / "t_predictions" / "b.nii.gz").dataobj)
    )


def test_frames_are_submitted_under_their_own_names(tmp_path: Path) -> None:
    for n in range(3):
        files.write(tmp_path / "tests" / f"f_{n:04d}.tif", noise(SHAPE, n))
    assert run_predict(model_file(tmp_path / "m"), tmp_path / "tests", tmp_path / "p") == 0
    assert command(tmp_path / "p", tmp_path / "tests", tmp_path / "s.zip") == 0
    assert list(zip_contents(tmp_path / "s.zip")) == ["f_0000.tif", "f_0001.tif", "f_0002.tif"]


# --- the world ------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["LPS", "moved", "tiff"])
def test_answers_that_lie_otherwise_than_their_image_are_refused(
    other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = (noise((16, 16, 16)) > 120).astype(np.uint8)
    nifti(tmp_path / "tests" / "a.nii.gz", noise((16, 16, 16)))
    if other == "tiff":
        files.write(tmp_path / "p" / "a.tif", cube)
    else:
        affine = np.eye(4)
        affine[0, 3] = 4 if other == "moved" else 0
        nifti(tmp_path / "p" / "a.nii.gz", cube, affine, "RAS" if other == "moved" else other)
    assert command(tmp_path / "p", tmp_path / "tests", tmp_path / "s.zip") == 2
    assert "wrong axes: 1: a (" in capsys.readouterr().err


# --- names ----------------------------------------------------------------------------------------

NAMES = ["Zürich", "café 2", "n"]


def decomposed(name: str) -> str:
    other = unicodedata.normalize("NFD", name)
    assert (other != name) == (name != "n")
    return other


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".tif", ".zarr"])
def test_decomposed_names_work_like_composed_ones(ending: str, tmp_path: Path) -> None:
    """As macOS writes them: predict, ensemble, evaluate and submit read the same ids, whichever
    file has which spelling.
    """
    for n, name in enumerate(NAMES):
        files.write(tmp_path / "tests" / f"{decomposed(name)}{ending}", noise(SHAPE, n))
        files.write(tmp_path / "labels" / f"{decomposed(name)}{ending}", mask(n))
    (tmp_path / "tests" / "test.csv").write_text(
        "id\n" + "".join(f"{decomposed(name)}\n" for name in NAMES), encoding="utf-8"
    )
    model = model_file(tmp_path / "m")
    for folder in ("p", "q"):
        assert run_predict(model, tmp_path / "tests", tmp_path / folder, "--save-soft") == 0
    for path in [
        p for p in (tmp_path / "q").rglob("*") if p.suffix in (".npy", ".json", ".tif", ".zarr")
    ]:
        path.rename(
            path.with_name(unicodedata.normalize("NFD", path.name))
        )  # as a copy by way of a Mac leaves them
    assert (
        ensemble.main(
            [
                "--fold-dirs",
                str(tmp_path / "p"),
                str(tmp_path / "q"),
                "--output",
                str(tmp_path / "e"),
            ]
        )
        == 0
    )
    assert [r["id"] for r in rows(tmp_path / "e")] == sorted(NAMES)
    for folder in ("p", "q", "e"):
        words = [
            "--predictions",
            str(tmp_path / folder),
            "--labels",
            str(tmp_path / "labels"),
            "--metrics",
            "dice",
        ]
        assert evaluate.main([*words, "--out", str(tmp_path / f"{folder}.json")]) == 0
        assert sorted(files.read_json(tmp_path / f"{folder}.json")["cases"]) == sorted(NAMES)
        assert command(tmp_path / folder, tmp_path / "tests", tmp_path / f"{folder}.zip") == 0
        assert sorted(zip_contents(tmp_path / f"{folder}.zip")) == sorted(
            f"{name}.tif" for name in NAMES
        )
    assert (tmp_path / "p.zip").read_bytes() == (tmp_path / "q.zip").read_bytes()


def test_the_table_of_test_ids_is_compared_in_one_spelling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write(tmp_path / "tests" / "é.tif", noise(SHAPE))
    files.write(tmp_path / "p" / "é.tif", mask(0))
    (tmp_path / "tests" / "test.csv").write_text(f"id\n{decomposed('é')}\n", encoding="utf-8")
    assert command(tmp_path / "p", tmp_path / "tests", tmp_path / "s.zip") == 0
    assert "warning" not in capsys.readouterr().out


def test_two_spellings_of_one_id_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("tests", "p"):
        files.write(tmp_path / folder / "é.tif", mask(0))
        files.write(tmp_path / folder / f"{decomposed('é')}.tif", mask(0))
    assert command(tmp_path / "p", tmp_path / "tests", tmp_path / "s.zip") == 2
    told = capsys.readouterr().err
    assert "test ids twice: 1" in told
    assert "ids twice: 1" in told
    assert (
        ensemble.main(
            [
                "--fold-dirs",
                str(tmp_path / "p"),
                "--output",
                str(tmp_path / "e"),
                "--fusion",
                "vote",
            ]
        )
        == 2
    )
    assert "both called é" in capsys.readouterr().err
