"""From training to the answer: a model that was trained on an nnU-Net folder knows its axes, voxels
and numbered channels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, sheets
from small_models import in_codes, nifti, rows, run_predict

from pipeline import files, submit, train
from pipeline.inference.models import load_model

SHAPE = (20, 24, 24)


def test_a_run_on_nnunet_files_predicts_files_of_other_axes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "Dataset001"
    affine = np.diag([0.8, 0.8, 2.0, 1])
    for n in range(4):
        image, label = sheets(SHAPE, n)
        nifti(data / "imagesTr" / f"c{n}_0000.nii.gz", image, affine, "LPS")
        nifti(data / "labelsTr" / f"c{n}.nii.gz", label, affine, "LPS")
    image = sheets(SHAPE, 9)[0]
    for codes in ("LPS", "RAS", "SLP"):
        nifti(data / codes / "t_0000.nii.gz", image, affine, codes)
    nifti(data / "coarse" / "t_0000.nii.gz", image, np.diag([2.0, 2, 2, 1]), "LPS")
    (tmp_path / "c.yaml").write_text(
        TINY.replace("layout: competition", "layout: nnunet").replace("epochs: 3", "epochs: 1")
    )
    words = [
        "--config",
        str(tmp_path / "c.yaml"),
        "--data-dir",
        str(data),
        "--out",
        str(tmp_path / "run"),
        "--fold",
        "0",
    ]
    assert train.main([*words, "--set", "train.average=null"]) == 0
    model = next((tmp_path / "run").rglob("best_model.safetensors"))
    known = load_model(model).trained_on
    assert (known["layout"], known["family"], known["codes"]) == ("nnunet", "nifti", "LPS")
    capsys.readouterr()
    for codes in ("LPS", "RAS", "SLP"):
        assert run_predict(model, data / codes, tmp_path / codes) == 0
        assert [r["id"] for r in rows(tmp_path / codes)] == ["t"]
        np.testing.assert_array_equal(
            in_codes(tmp_path / codes / "t.nii.gz"), in_codes(tmp_path / "LPS" / "t.nii.gz")
        )
    assert "its voxels" not in capsys.readouterr().out
    assert run_predict(model, data / "coarse", tmp_path / "coarse") == 0
    assert (
        "its voxels are 2 x 2 x 2 mm, those that the model was trained on 0.8 x 0.8 x 2 mm"
        in capsys.readouterr().out
    )
    words = [
        "--predictions",
        str(tmp_path / "RAS"),
        "--test-dir",
        str(data / "RAS"),
        "--out",
        str(tmp_path / "s.zip"),
    ]
    assert submit.main(words) == 0
    files.write(data / "other" / "t.tif", image)
    assert run_predict(model, data / "other", tmp_path / "other") == 1
