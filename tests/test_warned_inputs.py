"""What prediction says of an image that its normalisation or its file makes doubtful, in memory and
by blocks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from small_models import model_file, noise, rows, run_predict

from pipeline import files
from pipeline.inference import soft as softs

BLOCKS = pytest.mark.parametrize("blocks", ["never", "always"])


@BLOCKS
def test_a_dark_image_of_a_few_bright_voxels_is_told(
    blocks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = np.zeros((20, 18, 17), np.uint8)
    array[4:6, 5:8, 3:5] = 200  # 0.2 % of the voxels: both percentiles are 0
    files.write(tmp_path / "a.tif", array)
    assert (
        run_predict(
            model_file(tmp_path / "m"),
            tmp_path / "a.tif",
            tmp_path / "out",
            "--save-soft",
            "--blocks",
            blocks,
        )
        == 0
    )
    assert "warning: a.tif: percentiles 0.5 and 99.5" in capsys.readouterr().out
    assert "minimum to its maximum" in rows(tmp_path / "out")[0]["warnings"][0]
    soft = softs.load(tmp_path / "out" / "soft", "a").main
    files.write(tmp_path / "b.tif", array // 200)  # the same image on another scale
    assert (
        run_predict(
            tmp_path / "m" / "best_model.safetensors",
            tmp_path / "b.tif",
            tmp_path / "out",
            "--save-soft",
            "--blocks",
            blocks,
        )
        == 0
    )
    np.testing.assert_allclose(softs.load(tmp_path / "out" / "soft", "b").main, soft, atol=1e-3)
    assert soft.std() > 0


@BLOCKS
def test_an_image_that_the_range_would_cut_off_fails(blocks: str, tmp_path: Path) -> None:
    normalise = {"name": "range", "options": {"low": 0, "high": None}}
    model = model_file(tmp_path / "m", data={"patch": {"size": [16] * 3}, "normalise": normalise})
    files.write(tmp_path / "in" / "a.tif", noise((20, 18, 17)).astype(np.float32) + 2)
    files.write(tmp_path / "in" / "b.tif", noise((20, 18, 17)).astype(np.float32) / 250)
    files.write(tmp_path / "in" / "c.tif", noise((20, 18, 17)))
    assert run_predict(model, tmp_path / "in", tmp_path / "out", "--blocks", blocks) == 3
    failed, *done = rows(tmp_path / "out")
    assert [r["status"] for r in done] == ["done", "done"]
    for word in ("a.tif", "outside the range 0 to 1", "data.normalise"):
        assert word in failed["error"]


@BLOCKS
def test_notes_of_a_file_are_told_with_those_of_its_channels(
    blocks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(2):
        (tmp_path / "in").mkdir(exist_ok=True)
        tifffile.imwrite(
            tmp_path / "in" / f"a_{n:04d}.tif", noise((20, 18, 17)) > 100, photometric="miniswhite"
        )
    model = model_file(tmp_path / "m", channels=2)
    assert run_predict(model, tmp_path / "in", tmp_path / "out", "--blocks", blocks) == 0
    told = rows(tmp_path / "out")[0]["warnings"]
    assert len(told) == 2
    assert told[1].startswith("(file a_0001.tif)")
    assert capsys.readouterr().out.count("warning: ") == 2


def test_images_without_doubts_have_no_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write(tmp_path / "a.tif", noise((20, 18, 17)))
    assert run_predict(model_file(tmp_path / "m"), tmp_path / "a.tif", tmp_path / "out") == 0
    assert "warnings" not in rows(tmp_path / "out")[0]
    assert "warning: " not in capsys.readouterr().out
