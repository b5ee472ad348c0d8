"""Training on files of different origin: what does not lie alike is refused, by path, rule and way
out; what it saw stands in its models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from conftest import TINY, sheets
from PIL import Image

from pipeline import train
from pipeline.data import world
from pipeline.inference.models import load_model

Output = pytest.CaptureFixture[str]
SHAPE = (20, 20, 20)
RAS = np.diag([1.0, 1, 1, 1])
LPS = np.diag([-1.0, -1, 1, 1])
PIR = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = RAS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)  # pyright: ignore[reportPrivateImportUsage]


def case(root: Path, number: int, affine: np.ndarray = RAS) -> None:
    image, label = sheets(SHAPE, number)
    nifti(root / "imagesTr" / f"c{number}_0000.nii.gz", image, affine)
    nifti(root / "labelsTr" / f"c{number}.nii.gz", label, affine)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    text = (
        TINY.replace("competition", "auto")
        .replace("epochs: 3", "epochs: 1")
        .replace("average: {start: 1, lr: 5.0e-3}", "average: null")
    )
    (tmp_path / "tiny.yaml").write_text(text)
    return tmp_path / "tiny.yaml"


def start(config: Path, data: Path, *more: str) -> int:
    return train.main(
        [
            "--config",
            str(config),
            "--data-dir",
            str(data),
            "--out",
            str(config.parent / "run"),
            "--fold",
            "0",
            *more,
        ]
    )


def refused(config: Path, data: Path, capsys: Output) -> list[str]:
    """Lines of errors, the same from a dry run and from a start."""
    told = []
    for more in (["--dry-run"], []):
        assert start(config, data, *more) == 2
        told.append(
            [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
        )
    assert told[0] == told[1]
    assert not (config.parent / "run" / "config.yaml").exists()
    return told[0]


def test_a_tiff_image_with_a_nifti_label_is_refused(
    config: Path, tmp_path: Path, capsys: Output
) -> None:
    """Cubic, so that no shape betrays it; one case of three, which keeps its own line."""
    for n in range(3):
        case(tmp_path / "data", n)
    path = tmp_path / "data" / "imagesTr" / "c1_0000.nii.gz"
    path.unlink()
    tifffile.imwrite(path.with_name("c1_0000.tif"), sheets(SHAPE, 1)[0])
    lines = refused(config, tmp_path / "data", capsys)
    (line,) = (line for line in lines if "labelsTr" in line)
    assert str(tmp_path / "data" / "labelsTr" / "c1.nii.gz") in line
    assert "(X, Y, Z)" in line
    assert "(Z, Y, X)" in line
    assert "Save both in one format" in line
    assert any("axes lie differently" in line for line in lines)  # and the cases among each other


def test_a_picture_with_a_flat_nifti_mask_is_refused_in_one_line(
    tmp_path: Path, capsys: Output
) -> None:
    for n in range(4):
        image, label = sheets((24, 24), n)
        (tmp_path / "data" / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"{n}.png")
        nifti(tmp_path / "data" / "masks" / f"{n}.nii.gz", label)
    text = (
        TINY.replace("competition", "folders")
        .replace("[16, 16, 16]", "[16, 16]")
        .replace("ignore_label: 2", "ignore_label: 2\n  dims: 2")
    )
    (tmp_path / "flat.yaml").write_text(text)
    (line,) = refused(tmp_path / "flat.yaml", tmp_path / "data", capsys)
    assert "all 4 cases" in line
    assert "nothing says which axis is which" in line


def test_channels_of_different_families_are_refused(
    config: Path, tmp_path: Path, capsys: Output
) -> None:
    for n in range(3):
        case(tmp_path / "data", n)
        tifffile.imwrite(tmp_path / "data" / "imagesTr" / f"c{n}_0001.tif", sheets(SHAPE, n)[0])
    (line,) = refused(config, tmp_path / "data", capsys)
    assert "c0_0001.tif" in line
    assert "the first channel c0_0000.nii.gz" in line
    assert "Save all channels in one format" in line


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    for n, affine in enumerate([RAS, RAS, LPS, PIR, RAS]):
        case(tmp_path / "data", n, affine)
    return tmp_path / "data"


def test_mixed_orientations_are_refused_at_a_new_start(
    mixed: Path, config: Path, capsys: Output
) -> None:
    (line,) = refused(config, mixed, capsys)
    assert str(mixed) in line
    for words in (
        "3 NIfTI RAS (c0, c1, c4)",
        "1 NIfTI LPS (c2)",
        "1 NIfTI PIR (c3)",
        "as_closest_canonical",
    ):
        assert words in line


def test_a_run_that_began_on_mixed_data_goes_on_with_a_warning(
    mixed: Path, config: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(world, "faults", lambda *_: [])  # as before anybody looked
        assert start(config, mixed) == 0
    capsys.readouterr()
    for more in (["--dry-run"], []):
        assert start(config, mixed, *more) == 0
        told = capsys.readouterr().out
        assert "warning: " in told
        assert "3 NIfTI RAS" in told
    assert start(config, mixed, "--fresh") == 2


def test_nifti_among_arrays_is_refused(config: Path, tmp_path: Path, capsys: Output) -> None:
    for n in range(2):
        case(tmp_path / "data", n)
    for n in range(2, 4):
        image, label = sheets(SHAPE, n)
        tifffile.imwrite(tmp_path / "data" / "imagesTr" / f"c{n}_0000.tif", image)
        tifffile.imwrite(tmp_path / "data" / "labelsTr" / f"c{n}.tif", label)
    (line,) = refused(config, tmp_path / "data", capsys)
    assert "2 NIfTI RAS (c0, c1)" in line
    assert "(c2, c3)" in line


def test_different_spacings_are_a_warning_with_cases(
    config: Path, tmp_path: Path, capsys: Output
) -> None:
    for n, spacing in enumerate([(0.5, 0.5, 3), (0.8, 0.8, 5), (1, 1, 1)]):
        case(tmp_path / "data", n, np.diag([*spacing, 1.0]))
    assert start(config, tmp_path / "data", "--dry-run") == 0
    (line,) = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")
    )
    assert "c2 has 1 x 1 x 1 mm, c1 has 0.8 x 0.8 x 5 mm" in line
    assert "resample" in line


def test_spacings_within_a_tenth_are_nothing_to_say(
    config: Path, tmp_path: Path, capsys: Output
) -> None:
    for n, spacing in enumerate([1.0, 1.05, 1.09]):
        case(tmp_path / "data", n, np.diag([spacing, 1, 1, 1.0]))
    assert start(config, tmp_path / "data", "--dry-run") == 0
    assert "warning" not in capsys.readouterr().out


def test_models_say_what_they_were_trained_on(config: Path, tmp_path: Path) -> None:
    for n, spacing in enumerate([0.8, 0.82, 0.84]):
        case(tmp_path / "data", n, np.diag([-spacing, -0.5, 3.0, 1.0]))
    assert start(config, tmp_path / "data") == 0
    known: Any = load_model(tmp_path / "run" / "fold_0" / "best_model.safetensors").trained_on
    assert (known["layout"], known["family"], known["codes"]) == ("nnunet", "nifti", "LPS")
    assert known["spacing"] == pytest.approx([0.82, 0.5, 3.0])


def test_models_trained_on_plain_volumes_say_so(tiny: Path, surfaces: Path, tmp_path: Path) -> None:
    words = [
        "--config",
        str(tiny),
        "--data-dir",
        str(surfaces),
        "--out",
        str(tmp_path / "run"),
        "--fold",
        "0",
    ]
    assert train.main([*words, "--set", "train.epochs=1", "train.average=null"]) == 0
    known: Any = load_model(tmp_path / "run" / "fold_0" / "best_model.safetensors").trained_on
    assert {k: known[k] for k in ("layout", "family", "codes", "spacing")} == {
        "layout": "competition",
        "family": "array",
        "codes": None,
        "spacing": None,
    }


def test_facts_of_before_grids_are_looked_at_again(
    mixed: Path, config: Path, tmp_path: Path, capsys: Output
) -> None:
    """A store that an older version made does not hide the mix."""
    kept = f"data.store={tmp_path / 'kept'}"
    assert start(config, mixed, "--set", kept) == 2  # leaves the facts
    paths = sorted((tmp_path / "kept" / "facts").glob("*.json"))
    assert len(paths) == 5
    for path in paths:
        document = json.loads(path.read_text())
        document["key"]["format"] = 2
        for name in ("grids", "notes", "scale_notes"):
            document["facts"].pop(name, None)
        path.write_text(json.dumps(document))
    capsys.readouterr()
    assert start(config, mixed, "--set", kept) == 2
    assert "3 NIfTI RAS" in capsys.readouterr().out
