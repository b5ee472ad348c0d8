"""Pictures beside results: the right case, the right pixels, curves, files that stay small."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import test_report
from documents import ROOT
from PIL import Image
from test_report import flat_run

from pipeline import colours, files
from pipeline.records import UserError
from pipeline.reporting import figures
from pipeline.reporting.canvas import shortened, text_width
from pipeline.runs import RunFolder

original = test_report.original


def pixels(path: Path) -> np.ndarray:
    image = Image.open(path)
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def share(picture: np.ndarray, colour: tuple[int, ...], strength: float = 1.0) -> int:
    """Pixels that are nearly of a colour."""
    return int((np.abs(picture - np.array(colour) * strength).max(axis=-1) < 12).sum())


def test_a_run_in_one_picture(original: Path, tmp_path: Path) -> None:
    out = figures.summary_picture(RunFolder(original), tmp_path / "deep" / "run.png")
    seen = pixels(out)
    assert seen.shape[1] == 1200
    assert out.stat().st_size < 300_000
    assert (seen[0] == 255).all(), "light background"
    assert share(seen[100:460, 880:], colours.FOUND, 0.85) > 20_000, "in this slice all is found"
    for colour in (colours.FALSE_POSITIVE, colours.FALSE_NEGATIVE):
        assert share(seen[100:-330], colour) > 300, "in the legend"
    curves = seen[-330:]
    assert share(curves, figures.TRAIN) > 300
    assert share(curves[:, 600:], figures.VALIDATION) > 300
    assert share(curves[:, 600:], figures.TRAIN) == 0, "training has no validation metric"


def test_the_case_is_the_typical_one_or_the_one_asked_for(
    original: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    text = figures.Canvas.text
    monkeypatch.setattr(
        figures.Canvas, "text", lambda *a, **k: (said.append(a[2]), text(*a, **k))[1]
    )
    run = RunFolder(original)
    figures.summary_picture(run, tmp_path / "a.png")
    assert "surface: held-out case case2, dice 0.600" in said
    assert {"image", "truth", "prediction", "errors", "loss", "validation dice", "epoch"} <= {*said}
    figures.summary_picture(run, tmp_path / "a.png", "case5")
    assert "surface: held-out case case5, dice 0.750" in said
    said.clear()
    figures.strip_picture(run, tmp_path / "b.png", 2)
    assert [s for s in said if "held-out" in s] == [
        "held-out case case2, dice 0.600",
        "held-out case case3, dice 0.650",
    ]


def test_a_case_that_is_not_there_is_refused(original: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'nobody' is no held-out case\. There are case0"):
        figures.summary_picture(RunFolder(original), tmp_path / "a.png", "nobody")
    with pytest.raises(UserError, match="--crop -1 must be 0"):
        figures.strip_picture(RunFolder(original), tmp_path / "a.png", crop=-1)


def test_a_run_without_logs_is_still_drawn(original: Path, tmp_path: Path) -> None:
    run = shutil.copytree(original, tmp_path / "run", ignore=shutil.ignore_patterns("data"))
    for log in run.glob("fold_*/log.jsonl"):
        log.unlink()
    assert figures.summary_picture(RunFolder(run), tmp_path / "a.png").is_file()


def image_run(folder: Path, size: int) -> tuple[Path, np.ndarray]:
    """A restored picture of which one place was blurred, with a true and a predicted mask."""
    target = np.full((3, size, size), 128, np.uint8)
    target[:, size // 2 : size // 2 + 40, 100:140] = 250
    damaged = np.full_like(target, 128)
    run = flat_run(folder, "image", target, target, damaged)
    mask = (target[:1] == 250).astype(np.uint8) * 255
    files.write(run / "mask.png", mask, dims=2)
    files.write(run / "fold_0" / "oof" / "masks" / "x.png", mask, dims=2)
    places = files.read_json(run / "cases.json")
    places["x"]["targets"]["mask"] = str(run / "mask.png")
    files.write_json(run / "cases.json", places)
    return run, target


def test_a_strip_of_images_shows_where_they_differ(tmp_path: Path) -> None:
    run, target = image_run(tmp_path / "run", 900)
    out = figures.strip_picture(RunFolder(run), tmp_path / "s.png", 1, crop=200)
    seen = pixels(out)
    side = (1200 - 2 * figures.EDGE - 5 * figures.GAP) // 6
    top = int(np.flatnonzero((seen[:, figures.EDGE + 5] == 128).all(axis=-1))[0])
    lefts = [figures.EDGE + n * (side + figures.GAP) for n in range(6)]
    found = [seen[top : top + side, x : x + side] for x in lefts]
    damaged, true, output, error, mask, predicted = found
    assert (damaged == 128).all()
    assert share(true, (250, 250, 250)) > 300, "the window holds the place that differs"
    assert np.array_equal(true, output)
    assert (error == 0).all()
    assert share(mask, (255, 255, 255)) == share(predicted, (255, 255, 255)) > 300
    assert target.shape == (3, 900, 900)


def test_answers_to_images_that_no_fold_has_seen(tmp_path: Path) -> None:
    pictures = {"src": 100, "dst": 200, "answers": 200, "answers/masks": 255}
    for folder, value in pictures.items():
        (tmp_path / folder).mkdir()
        shape = (40, 40) if "masks" in folder else (40, 40, 3)
        Image.fromarray(np.full(shape, value, np.uint8)).save(tmp_path / folder / "a.png")
    where = tmp_path / "src", tmp_path / "dst", tmp_path / "answers"
    seen = pixels(figures.pairs_picture(*where, ["a"], tmp_path / "s.png"))
    side = (1200 - 2 * figures.EDGE - 4 * figures.GAP) // 5
    middle = seen[seen.shape[0] * 2 // 3, figures.EDGE + side // 2 :: side + figures.GAP]
    assert middle[:5, 0].tolist() == [100, 200, 200, 0, 255]
    with pytest.raises(UserError, match="has no image called 'b'"):
        figures.pairs_picture(*where, ["b"], tmp_path / "s.png")


def test_windows_hold_the_most() -> None:
    interest = np.zeros((100, 80))
    interest[70:80, 50:60] = 1
    part = figures.window(interest, 32)
    assert interest[part[1:]].shape == (32, 32)
    assert interest[part[1:]].sum() == 100
    assert figures.window(interest, 0) == (slice(None),) * 3
    assert interest[figures.window(interest, 90)[1:]].shape == (90, 80)


def test_long_names_are_shortened_in_their_middle() -> None:
    name = "a_very_long_name_of_a_case_" * 8 + "end"
    short = shortened(name, 24, 300)
    assert text_width(short, 24) <= 300
    assert short.startswith("a_very")
    assert short.endswith("end")
    assert shortened("short", 24, 300) == "short"


def test_pictures_of_noise_stay_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3, 700, 700)).astype(np.uint8)
    run = flat_run(tmp_path / "run", "image", noise, noise[:, ::-1], 255 - noise)
    out = figures.strip_picture(RunFolder(run), tmp_path / "s.png", 1, crop=0)
    assert out.stat().st_size < 600_000


def test_the_script_draws_a_strip(
    original: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "strip.png"
    for words, code in ((["--cases", "3"], 0), (["--ids", "case1"], 0), (["--ids", "none"], 2)):
        monkeypatch.setattr(sys, "argv", ["strip.py", str(original), *words, "--out", str(out)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "data_prep" / "strip.py"), run_name="__main__")
        assert ended.value.code == code
    assert pixels(out).shape[1] == 1200
    assert "is no held-out case" in capsys.readouterr().err


def test_the_picture_of_the_demo_is_small_and_wide() -> None:
    picture = ROOT / "docs" / "images" / "demo.png"
    assert picture.stat().st_size <= 300_000
    assert pixels(picture).shape[1] == 1200
