"""Submissions: every fault is found and told at once, the bytes depend on the masks alone, and a
file is whole or absent.
"""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_models import zip_contents

from pipeline import files, submit
from pipeline.inference import submission
from pipeline.records import UserError
from pipeline.workflows import submit as workflow
from pipeline.workflows.submit_ensemble import submit_ensemble

SHAPE = (5, 6, 7)


def mask(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < 0.3).astype(np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three test images and their answers: (predictions, test_dir)."""
    predictions, tests = tmp_path / "predictions", tmp_path / "data" / "test_images"
    for n, name in enumerate(["a", "a-b", "c"]):
        files.write(tests / f"{name}.tif", mask(n) * 200)
        files.write(predictions / f"{name}.tif", mask(n))
    return predictions, tests


def command(predictions: Path, tests: Path, out: Path, *more: str) -> int:
    return submit.main(
        ["--predictions", str(predictions), "--test_dir", str(tests), "--out", str(out), *more]
    )


def test_zip_is_flat_sorted_and_holds_the_masks(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "deep" / "submission.zip"
    assert command(*folders, out) == 0
    found = zip_contents(out)
    assert list(found) == ["a.tif", "a-b.tif", "c.tif"]
    assert all(
        np.array_equal(array, mask(n)) and array.dtype == np.uint8
        for n, array in enumerate(found.values())
    )
    with zipfile.ZipFile(out) as archive:
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {i.external_attr >> 16 for i in archive.infolist()} == {0o100644}
        assert archive.testzip() is None
        with tifffile.TiffFile(io.BytesIO(archive.read("c.tif"))) as tif:
            assert [tif.pages.get(n).compression for n in range(5)] == [
                tifffile.COMPRESSION.LZW
            ] * 5
    printed = capsys.readouterr().out
    share = sum(mask(n).sum() for n in range(3)) / (3 * mask(0).size)
    assert f"3 ids, foreground {share:.4%}" in printed
    assert files.sha256(out) in printed


def test_bytes_depend_on_the_masks_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = tmp_path / "first.zip", tmp_path / "second.zip"
    assert command(*folders, first) == 0
    for n, name in enumerate(
        ["a", "a-b", "c"]
    ):  # the same masks, encoded otherwise, at another time
        tifffile.imwrite(folders[0] / f"{name}.tif", mask(n), software="other", datetime=True)
        os.utime(folders[0] / f"{name}.tif", (1, 1))
    assert command(*folders, second) == 0
    assert first.read_bytes() == second.read_bytes()
    files.write(folders[0] / "c.tif", 1 - mask(2))
    assert command(*folders, second) == 0
    assert first.read_bytes() != second.read_bytes()


def test_what_else_lies_there_is_no_prediction(folders: tuple[Path, Path], tmp_path: Path) -> None:
    files.write(folders[0] / "a_visualization.tif", mask(0) * 255)
    files.write(folders[0] / "soft" / "extra.tif", mask(0))
    (folders[0] / "summary.json").write_text("{}")
    (folders[0] / "._a.tif").write_bytes(b"macOS")
    assert command(*folders, tmp_path / "s.zip") == 0
    assert list(zip_contents(tmp_path / "s.zip")) == ["a.tif", "a-b.tif", "c.tif"]


def test_an_id_may_end_like_a_visualisation(folders: tuple[Path, Path], tmp_path: Path) -> None:
    files.write(folders[1] / "x_visualization.tif", mask(9))
    assert command(*folders, tmp_path / "s.zip") == 2
    files.write(folders[0] / "x_visualization.tif", mask(9))
    assert command(*folders, tmp_path / "s.zip") == 0


def refuse(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> str:
    out = tmp_path / "submission.zip"
    out.write_bytes(b"an older submission")
    assert command(*folders, out) == 2
    assert out.read_bytes() == b"an older submission"
    assert not list(tmp_path.glob(".tmp*"))
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    return error


def test_all_faults_are_told_at_once(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    predictions, tests = folders
    for name in ["short", "real", "grey", "torn", "twice", "gone", "blind"]:
        files.write(tests / f"{name}.tif", mask(5))
    files.write(predictions / "short.tif", mask(5)[1:])
    files.write(predictions / "real.tif", mask(5).astype(np.float32))
    files.write(predictions / "grey.tif", mask(5) * 255)
    files.write(predictions / "twice.tif", mask(5))
    files.write(predictions / "twice.tiff", mask(5))
    files.write(predictions / "stranger.tif", mask(5))
    (predictions / "torn.tif").write_bytes((predictions / "a.tif").read_bytes()[:200])
    files.write(predictions / "blind.tif", mask(5))
    (tests / "blind.tif").write_bytes(b"")
    error = refuse(folders, tmp_path, capsys)
    for line in [
        "missing: 1: gone.",
        "extra: 1: stranger.",
        "ids twice: 1: twice (twice.tif, twice.tiff).",
        "wrong shape: 1: short (is 4x6x7, test image 5x6x7).",
        "wrong type: 1: real (float32).",
        "wrong values: 1: grey (holds 0, 255).",
        "unreadable: 1: torn (",
        "test images unreadable: 1: blind (is empty",
    ]:
        assert line in error
    assert "10 test images" in error


def test_many_faults_are_counted_and_ten_are_named(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for n in range(13):
        files.write(folders[1] / f"m{n:02}.tif", mask(n))
    error = refuse(folders, tmp_path, capsys)
    assert "missing: 13: m00, m01, m02, m03, m04, m05, m06, m07, m08, m09 ... (3 more)" in error
    assert "m10" not in error


def test_test_ids_twice_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files.write(folders[1] / "c.nii.gz", mask(2))
    assert "test ids twice: 1: c (c.nii.gz, c.tif)" in refuse(folders, tmp_path, capsys)


def test_folders_that_cannot_be_right(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert "no such folder" in refuse((tmp_path / "nowhere", folders[1]), tmp_path, capsys)
    hint = refuse((folders[0], folders[1].parent), tmp_path, capsys)
    assert f"Did you mean {folders[1]}?" in hint
    assert command(*folders, tmp_path / "s.csv") == 2
    assert "tiff-zip is a .zip file" in capsys.readouterr().err


def test_table_is_compared_but_the_files_decide(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (folders[1].parent / "test.csv").write_text("id,scroll_id\na,1\nc,1\nold,1\n")
    assert command(*folders, tmp_path / "s.zip") == 0
    printed = capsys.readouterr().out
    assert "names ids without a test image: 1: old" in printed
    assert "lacks ids of test images: 1: a-b" in printed
    assert len(zip_contents(tmp_path / "s.zip")) == 3


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the ensemble was asked for, in whose stead ``a`` and ``c`` are answered and ``a-b``
    fails.
    """
    found: dict[str, Any] = {}

    def answer(
        spec: str,
        output: Path,
        *,
        inputs: Sequence[Path] = (),
        device: str = "auto",
        save_soft: bool = False,
    ) -> SimpleNamespace:
        found.update(
            spec=spec, output=output, inputs=tuple(inputs), device=device, save_soft=save_soft
        )
        for n, name in ((0, "a"), (2, "c")):
            files.write(output / f"{name}.tif", mask(n))
        return SimpleNamespace(failed={"a-b": "is empty"})

    monkeypatch.setattr(
        "pipeline.workflows.ensemble.load_spec", lambda path: f"spec of {path.name}"
    )
    monkeypatch.setattr("pipeline.workflows.ensemble.ensemble", answer)
    return found


def test_an_ensemble_answers_first(
    folders: tuple[Path, Path], tmp_path: Path, asked: dict[str, Any]
) -> None:
    tests, out = folders[1], tmp_path / "s.zip"
    (tests / "a-b.tif").unlink()
    words = [
        "--spec",
        str(tmp_path / "both.yaml"),
        "--test-dir",
        str(tests),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    assert submit.main(words) == 0
    wanted = {"spec": "spec of both.yaml", "inputs": (tests,), "device": "cpu", "save_soft": False}
    assert asked == {**wanted, "output": tmp_path / "s_predictions"}
    assert list(zip_contents(out)) == ["a.tif", "c.tif"]
    assert submit.main([*words, "--work", str(tmp_path / "own")]) == 0
    assert asked["output"] == tmp_path / "own"


def test_what_an_ensemble_fails_for_is_missing(
    folders: tuple[Path, Path], tmp_path: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    words = [
        "--spec",
        str(tmp_path / "both.yaml"),
        "--test-dir",
        str(folders[1]),
        "--out",
        str(tmp_path / "s.zip"),
    ]
    assert submit.main(words) == 2
    assert asked
    assert "missing: 1: a-b." in capsys.readouterr().err
    assert not (tmp_path / "s.zip").exists()


def test_what_is_no_submission_is_found_before_an_ensemble_works(
    folders: tuple[Path, Path], tmp_path: Path, asked: dict[str, Any]
) -> None:
    (tmp_path / "s.zip").write_text("somebody's own file")
    with pytest.raises(UserError, match="no submission, which could be replaced"):
        submit_ensemble(tmp_path / "both.yaml", folders[1], tmp_path / "s.zip")
    assert not asked


def test_a_submission_says_what_was_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    made = workflow.write_submission(*folders, tmp_path / "s.csv", "rle-csv")
    assert made.path == tmp_path / "s.csv"
    assert [(a.id, a.shape, a.foreground) for a in made.answers] == [
        (name, SHAPE, int(mask(n).sum())) for n, name in enumerate(["a", "a-b", "c"])
    ]
    assert made.sha256 == files.sha256(made.path)
    with pytest.raises(UserError, match="Choose one of tiff-zip, rle-csv"):
        workflow.write_submission(*folders, tmp_path / "s.tar", "tar")


def test_empty_answers_are_told(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files.write(folders[0] / "c.tif", np.zeros(SHAPE, np.uint8))
    assert command(*folders, tmp_path / "s.zip") == 0
    assert "no foreground at all in 1 answers: c" in capsys.readouterr().out


def test_nifti_and_images_of_two_axes(tmp_path: Path) -> None:
    files.write(tmp_path / "tests" / "n.nii.gz", mask(1).astype(np.int16))
    files.write(tmp_path / "tests" / "é.png", np.zeros((3, 8, 9), np.uint8), dims=2)
    files.write(tmp_path / "answers" / "n.nii.gz", mask(1))
    files.write(tmp_path / "answers" / "é.png", mask(2, (8, 9)))
    assert command(tmp_path / "answers", tmp_path / "tests", tmp_path / "s.zip") == 0
    found = zip_contents(tmp_path / "s.zip")
    assert np.array_equal(found["n.tif"], mask(1))
    assert np.array_equal(found["é.tif"], mask(2, (8, 9)))


def test_answer_that_changes_meanwhile_is_noticed(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    answers = workflow.check(*folders)
    files.write(folders[0] / "c.tif", 1 - mask(2))
    with pytest.raises(UserError, match="changed while"):
        submission.write_zip(tmp_path / "s.zip", answers)
    assert not (tmp_path / "s.zip").exists()
    assert not list(tmp_path.glob(".tmp*"))


@pytest.mark.parametrize(("form", "name"), [("tiff-zip", "s.zip"), ("rle-csv", "s.csv")])
def test_damaged_writing_is_noticed(
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    name: str,
) -> None:
    tiff, rle = submission.encode_tiff, submission.encode_rle
    monkeypatch.setattr(submission, "encode_tiff", lambda m: tiff(1 - m))
    monkeypatch.setattr(submission, "encode_rle", lambda m: rle(1 - m))
    assert command(*folders, tmp_path / name, "--format", form) == 2
    assert not (tmp_path / name).exists()


def test_killed_while_writing_leaves_no_zip(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "submission.zip"
    predictions, images = map(str, folders)
    words = ["--predictions", predictions, "--test-dir", images, "--out", str(out)]
    code = f"""
import os, signal
from pipeline import submit
from pipeline.inference import submission

keep = submission.encode_tiff
count = []

def encode(mask):
    count.append(1)
    if len(count) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return keep(mask)

submission.encode_tiff = encode
submit.main({words})
"""
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode
        == -signal.SIGKILL
    )
    assert not out.exists()
    assert list(tmp_path.glob(".tmp-*"))
    assert command(*folders, out) == 0
    assert len(zip_contents(out)) == 3
    assert not list(tmp_path.glob(".tmp-*"))


def test_rle_table(folders: tuple[Path, Path], tmp_path: Path) -> None:
    files.write(folders[0] / "c.tif", np.zeros(SHAPE, np.uint8))
    out = tmp_path / "s.csv"
    assert command(*folders, out, "--format", "rle-csv") == 0
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == ["a", "a-b", "c"]
    assert rows[2]["rle"] == ""
    assert np.array_equal(submission.decode_rle(rows[0]["rle"], SHAPE), mask(0))
    assert b"\r" not in out.read_bytes()


def test_rle_of_a_large_mask_passes_the_csv_reader(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    chequer = (np.indices((40, 60, 60)).sum(axis=0) % 2).astype(np.uint8)
    files.write(tmp_path / "tests" / "x.tif", chequer)
    assert (
        command(tmp_path / "tests", tmp_path / "tests", tmp_path / "s.csv", "--format", "rle-csv")
        == 0
    )
    assert (tmp_path / "s.csv").stat().st_size > before
    assert csv.field_size_limit() == before


def naive_rle(array: np.ndarray) -> str:
    """Voxel by voxel."""
    runs: list[list[int]] = []
    for n, value in enumerate(array.ravel().tolist(), 1):
        if value and runs and sum(runs[-1]) == n:
            runs[-1][1] += 1
        elif value:
            runs.append([n, 1])
    return " ".join(f"{a} {b}" for a, b in runs)


MASKS = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.integers(0, 1)
)


@settings(deadline=None, max_examples=60)
@given(MASKS)
def test_rle_round_trip(array: np.ndarray) -> None:
    text = submission.encode_rle(array)
    assert text == naive_rle(array)
    back = submission.decode_rle(text, array.shape)
    assert back.dtype == np.uint8
    assert np.array_equal(back, array)


@settings(deadline=None, max_examples=30)
@given(MASKS)
def test_tiff_round_trip(array: np.ndarray) -> None:
    data = submission.encode_tiff(array)
    assert data == submission.encode_tiff(array.copy(order="F"))
    assert np.array_equal(submission.decode_tiff(data, array.shape), array)


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "0 1",
        "1 0",
        "1 2 2 1",
        "1 2 3 1",
        "5 1 1 1",
        "6 2",
        "1 -1",
        "a b",
        "1.0 2",
        "9" * 30 + " 1",
    ],
)
def test_malformed_run_lengths_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="run lengths"):
        submission.decode_rle(text, (2, 3))
