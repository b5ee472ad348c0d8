"""Folders of ``ID_0000, ID_0001, ...``: channels of one case, or frames of their own; the model and
its training data decide.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from small_models import model_file, noise, rows, run_predict

from pipeline import ensemble, files, predict

FILM = {"layout": "folders", "family": "array", "codes": None, "spacing": None}
NNUNET = {**FILM, "layout": "nnunet"}


def frames(
    folder: Path, count: int = 3, colours: int = 3, name: str = "frame", ending: str = ".png"
) -> Path:
    for n in range(count):
        array = noise((colours, 24, 20) if colours > 1 else (24, 20), n)
        files.write(folder / f"{name}_{n:04d}{ending}", array, dims=2)
    return folder


def model(
    folder: Path, channels: int, trained_on: dict[str, Any] | None = None, **data: Any
) -> Path:
    settings = {"dims": 2, "patch": {"size": [16, 16]}, **data}
    return model_file(folder, dims=2, channels=channels, trained_on=trained_on, data=settings)


def ids(out: Path) -> list[str]:
    return [row["id"] for row in rows(out)]


FRAMES = ["frame_0000", "frame_0001", "frame_0002"]


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("trained_on", [FILM, {}])
def test_frames_of_a_film_are_cases_of_their_own(
    colours: int, trained_on: dict[str, Any], tmp_path: Path
) -> None:
    folder = frames(tmp_path / "in", colours=colours)
    assert run_predict(model(tmp_path, colours, trained_on), folder, tmp_path / "out") == 0
    assert ids(tmp_path / "out") == FRAMES
    for name in FRAMES:
        assert (
            run_predict(
                tmp_path / "best_model.safetensors", folder / f"{name}.png", tmp_path / name
            )
            == 0
        )
        assert (tmp_path / "out" / f"{name}.png").read_bytes() == (
            tmp_path / name / f"{name}.png"
        ).read_bytes()


@pytest.mark.parametrize("trained_on", [NNUNET, {}])
def test_channels_of_a_case_are_taken_together(trained_on: dict[str, Any], tmp_path: Path) -> None:
    frames(tmp_path / "in", 2, 1, "a", ".tif")
    frames(tmp_path / "in", 2, 1, "b", ".tif")
    assert run_predict(model(tmp_path, 2, trained_on), tmp_path / "in", tmp_path / "out") == 0
    assert ids(tmp_path / "out") == ["a", "b"]


@pytest.mark.parametrize("trained_on", [NNUNET, {}])
def test_one_channel_keeps_its_number_off_the_id(
    trained_on: dict[str, Any], tmp_path: Path
) -> None:
    frames(tmp_path / "in", 1, 1, "a")
    frames(tmp_path / "in", 1, 1, "b")
    assert run_predict(model(tmp_path, 1, trained_on), tmp_path / "in", tmp_path / "out") == 0
    assert ids(tmp_path / "out") == ["a", "b"]
    assert (tmp_path / "out" / "a.png").is_file()


def test_a_file_is_called_as_in_its_folder(tmp_path: Path) -> None:
    """Its answer pairs with labels by name, whichever way it was named."""
    folder = frames(tmp_path / "in", 1, 1, "case7")
    made = model(tmp_path, 1, NNUNET)
    file = folder / "case7_0000.png"
    for given, out in (([folder], "a"), ([file], "b"), ([file, folder], "c")):
        words = ["--input", *map(str, given), "--output", str(tmp_path / out)]
        assert predict.main(["--checkpoint", str(made), *words]) == 0
        assert ids(tmp_path / out) == ["case7"]


def test_an_nnunet_model_says_both_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames(tmp_path / "in", 2, 1, "a")
    frames(tmp_path / "in", 1, 1, "b")
    assert run_predict(model(tmp_path, 2, NNUNET), tmp_path / "in", tmp_path / "out") == 2
    told = capsys.readouterr().err
    for word in (str(tmp_path / "in"), "b has 1 files", "1 channels together", "takes 2"):
        assert word in told
    assert (
        run_predict(model(tmp_path, 1, NNUNET), frames(tmp_path / "film", 3, 1), tmp_path / "out")
        == 2
    )
    assert "3 channels together, the model takes 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_fits_neither_way_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_predict(model(tmp_path, 4), frames(tmp_path / "in", 3, 1), tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "3 channels together" in told
    assert "takes 4" in told


def test_the_config_of_an_older_model_file_decides_where_it_names_a_layout(tmp_path: Path) -> None:
    folder = frames(tmp_path / "in", 3, 1)
    assert run_predict(model(tmp_path, 3, layout="nnunet"), folder, tmp_path / "channels") == 0
    assert ids(tmp_path / "channels") == ["frame"]
    assert run_predict(model(tmp_path, 1, layout="folders"), folder, tmp_path / "frames") == 0
    assert ids(tmp_path / "frames") == FRAMES


def test_a_file_that_cannot_be_read_has_no_say(tmp_path: Path) -> None:
    frames(tmp_path / "in", 3, 1)
    (tmp_path / "in" / "frame_0001.png").write_bytes(b"no picture")
    assert run_predict(model(tmp_path, 1, FILM), tmp_path / "in", tmp_path / "out") == 3
    assert [r["status"] for r in rows(tmp_path / "out")] == ["done", "failed", "done"]


@pytest.mark.parametrize("blocks", ["never", "always"])
def test_a_wrong_number_of_channels_is_a_message(blocks: str, tmp_path: Path) -> None:
    """Not torch's words; the other files are done."""
    Image.fromarray(noise((24, 20))).save(tmp_path / "grey.png")
    (tmp_path / "in").mkdir()
    Image.fromarray(noise((24, 20))).save(tmp_path / "in" / "a.png")
    Image.fromarray(noise((24, 20, 3))).save(tmp_path / "in" / "b.png")
    assert (
        run_predict(model(tmp_path, 3), tmp_path / "in", tmp_path / "out", "--blocks", blocks) == 3
    )
    failed, done = rows(tmp_path / "out")
    assert done["status"] == "done"
    assert f"{tmp_path / 'in' / 'a.png'}: has 1 channels, the model takes 3" in failed["error"]
    assert "expected input" not in failed["error"]


def test_volumes_of_a_wrong_number_of_channels(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", noise((18, 2, 17, 16)), imagej=True, metadata={"axes": "ZCYX"}
    )
    assert run_predict(model_file(tmp_path), tmp_path / "a.tif", tmp_path / "out") == 1
    assert "has 2 channels, the model takes 1" in rows(tmp_path / "out")[0]["error"]


def test_members_of_an_ensemble_read_folders_alike(tmp_path: Path) -> None:
    path = model(tmp_path / "run", 3)
    (tmp_path / "e.yaml").write_text(f"members: [{{run: {path.parent}}}]\n")
    words = [
        "--spec",
        str(tmp_path / "e.yaml"),
        "--input",
        str(frames(tmp_path / "in")),
        "--output",
        str(tmp_path / "out"),
    ]
    assert ensemble.main(words) == 0
    assert ids(tmp_path / "out") == FRAMES
    masks = [np.asarray(Image.open(tmp_path / "out" / f"{name}.png")) for name in FRAMES]
    assert {m.shape for m in masks} == {(24, 20)}
