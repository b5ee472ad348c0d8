"""One bad file among the members of an ensemble: its case fails by name, the others are fused."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import model_file, noise, rows, run_predict

from pipeline import ensemble, files, submit


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(3):
        files.write(folder / f"{n}.tif", noise((12, 16, 16), n))
    return folder


def test_a_damaged_soft_file_fails_its_case(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_file(tmp_path)
    for member in ("a", "b"):
        assert run_predict(model, images, tmp_path / member, "--save-soft") == 0
    members = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert ensemble.main(["--fold-dirs", *members, "--output", str(tmp_path / "whole")]) == 0
    bad = tmp_path / "b" / "soft" / "1.npy"
    bad.write_bytes(bad.read_bytes()[:-100])
    assert ensemble.main(["--fold-dirs", *members, "--output", str(tmp_path / "fused")]) == 3
    found = {row["id"]: row for row in rows(tmp_path / "fused")}
    assert {i for i, row in found.items() if row["status"] == "done"} == {"0", "2"}
    assert str(bad) in found["1"]["error"]
    assert "--save-soft again" in capsys.readouterr().out
    assert not (tmp_path / "fused" / "1.tif").exists()
    for n in (0, 2):
        assert (tmp_path / "fused" / f"{n}.tif").read_bytes() == (
            tmp_path / "whole" / f"{n}.tif"
        ).read_bytes()
    assert (
        submit.main(
            [
                "--predictions",
                str(tmp_path / "fused"),
                "--test-dir",
                str(images),
                "--out",
                str(tmp_path / "s.zip"),
            ]
        )
        == 2
    )
    assert "1" in capsys.readouterr().err
    assert not (tmp_path / "s.zip").exists()


def test_where_no_case_is_left_nothing_is_begun(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_file(tmp_path)
    assert run_predict(model, images, tmp_path / "a", "--save-soft") == 0
    for path in (tmp_path / "a" / "soft").glob("*.npy"):
        path.write_bytes(b"x")
    assert (
        ensemble.main(["--fold-dirs", str(tmp_path / "a"), "--output", str(tmp_path / "fused")])
        == 2
    )
    assert "cannot be fused" in capsys.readouterr().err


def test_an_image_that_no_member_can_read_fails_alone(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "1.tif").write_bytes(b"no image")
    run = tmp_path / "run"
    run.mkdir()
    model_file(run)
    (tmp_path / "e.yaml").write_text(f"members: [{{run: {run}}}]\n")
    arguments = [
        "--spec",
        str(tmp_path / "e.yaml"),
        "--input",
        str(images),
        "--output",
        str(tmp_path / "fused"),
    ]
    for _ in range(2):  # what is there is kept, what failed is tried again
        assert ensemble.main(arguments) == 3
        found = {row["id"]: row["status"] for row in rows(tmp_path / "fused")}
        assert found == {"0": "done", "1": "failed", "2": "done"}
    assert "1.tif" in capsys.readouterr().out
    whole = [
        "--spec",
        str(tmp_path / "e.yaml"),
        "--test-dir",
        str(images),
        "--out",
        str(tmp_path / "s.zip"),
    ]
    assert submit.main(whole) == 2
    assert not (tmp_path / "s.zip").exists()
