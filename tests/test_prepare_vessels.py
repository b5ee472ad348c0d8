"""The layouts of DRIVE and CHASE_DB1 as their publishers pack them, drawn small, and what the
training command makes of the result.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import prepare_vessels
import pytest
import tifffile
from PIL import Image

from pipeline import files, morphology, train

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (60, 64)


def photograph(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ``(Y, X, 3)``, vessels and disc ``(Y, X)``."""
    draw = np.random.default_rng(seed)
    y, x = np.indices(SHAPE)
    disc = (y - 30) ** 2 + (x - 32) ** 2 <= 26**2
    vessels = disc & ((y + x // 3 + seed) % 11 < 2)
    image = np.stack([170 * disc, (110 - 50 * vessels) * disc, 50 * disc], -1) + draw.integers(
        0, 10, (*SHAPE, 3)
    )
    return image.astype(np.uint8), vessels, disc


def save_gif(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("P").save(path)


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    root = tmp_path / "DRIVE"
    for n, (part, number) in enumerate(
        [("training", 21), ("training", 22), ("test", 1), ("test", 2)]
    ):
        image, vessels, disc = photograph(n)
        (root / part / "images").mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            root / part / "images" / f"{number:02}_{part}.tif",
            image,
            photometric="rgb",
            compression="lzw",
        )
        save_gif(root / part / "1st_manual" / f"{number:02}_manual1.gif", vessels)
        save_gif(root / part / "mask" / f"{number:02}_{part}_mask.gif", disc)
        if part == "test":
            save_gif(
                root / part / "2nd_manual" / f"{number:02}_manual2.gif",
                np.roll(vessels, 1, 0) & disc,
            )
    return root


@pytest.fixture
def chase(tmp_path: Path) -> Path:
    root = tmp_path / "CHASEDB1"
    root.mkdir()
    for n in range(28):
        name = f"Image_{n // 2 + 1:02}{'LR'[n % 2]}"
        image, vessels, _ = photograph(n)
        Image.fromarray(image).save(root / f"{name}.jpg", quality=98)
        for which in ("1st", "2nd"):
            Image.fromarray(vessels).save(root / f"{name}_{which}HO.png")
    return root


def dry_run(out: Path, *settings: str) -> int:
    words = [
        "--config",
        str(ROOT / "configs" / "vessels.yaml"),
        "--data-dir",
        str(out),
        "--dry-run",
        "--set",
        "data.patch.size=[32, 32]",
    ]
    return train.main([*words, *settings])


def test_drive_gets_equal_names_and_its_own_split(drive: Path, tmp_path: Path) -> None:
    assert prepare_vessels.main([str(drive), str(tmp_path / "out")]) == 0
    assert files.read_json(tmp_path / "out" / "split.json") == {
        "train": ["21", "22"],
        "test": ["01", "02"],
    }
    for n, name in enumerate(["21", "22", "01", "02"]):
        image, vessels, disc = photograph(n)
        assert (
            files.read(tmp_path / "out" / "images" / f"{name}.png", 2)[0]
            == image.transpose(2, 0, 1)
        ).all()
        assert (
            files.read(tmp_path / "out" / "masks" / f"{name}.png", 2)[0][0] == 255 * vessels
        ).all()
        assert (files.read(tmp_path / "out" / "fov" / f"{name}.png", 2)[0][0] == 255 * disc).all()
    assert sorted(p.stem for p in (tmp_path / "out" / "second").iterdir()) == ["01", "02"]
    assert (
        dry_run(
            tmp_path / "out", "data.folds.by=case", "data.folds.count=2", "data.folds.pattern=null"
        )
        == 0
    )


def test_chase_finds_the_field_of_view_and_keeps_children_apart(
    chase: Path, tmp_path: Path
) -> None:
    assert prepare_vessels.main([str(chase), str(tmp_path / "out")]) == 0
    split = files.read_json(tmp_path / "out" / "split.json")
    assert len(split["train"]) == 20
    assert split["test"][0] == "Image_11L"
    found = files.read(tmp_path / "out" / "fov" / "Image_03R.png", 2)[0][0] != 0
    disc = photograph(5)[2]
    assert (disc <= found).all()
    assert (found <= morphology.dilate(disc, 2)).all()  # smoothing by one pixel widens a sharp rim
    assert morphology.betti_numbers(found) == (1, 0)
    assert dry_run(tmp_path / "out") == 0


def test_what_cannot_be_laid_out_is_said_before_anything_is_written(
    chase: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "nothing").mkdir()
    assert prepare_vessels.main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    assert "neither DRIVE" in capsys.readouterr().err
    (chase / "Image_02L_1stHO.png").unlink()
    assert prepare_vessels.main([str(chase), str(tmp_path / "out")]) == 2
    assert "no first observer's mask for Image_02L" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_field_of_view_of_the_real_photographs(shared_data: Path) -> None:
    folder = shared_data / "chase_db1"
    for path in sorted((folder / "images").glob("*.png"))[:2]:
        truth = files.read(folder / "fov" / path.name, 2)[0][0] != 0
        found = prepare_vessels.field_of_view(files.read(path, 2)[0])
        assert 2 * np.count_nonzero(found & truth) / (found.sum() + truth.sum()) > 0.999


def test_a_dark_image_has_no_field_of_view() -> None:
    with pytest.raises(prepare_vessels.UserError, match="no fundus photograph"):
        prepare_vessels.field_of_view(np.zeros((3, 20, 20), np.uint8))
