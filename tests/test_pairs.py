"""Pairs made of photographs, and the layout of GoPro: what is written is what was said, and nothing is paired by accident."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.ndimage import shift

from pipeline import files
from pipeline.config import from_dict
from pipeline.data import cases

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "data_prep" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make = script("make_pairs")
gopro = script("prepare_gopro")


def photograph(seed: int, shape: tuple[int, int] = (90, 100)) -> np.ndarray:
    """Smooth colours with edges, ``(3, Y, X)`` uint8."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] / 12
    grey = 0.5 + 0.3 * np.sin(y * draw.uniform(1, 2) + x) + 0.15 * (np.sin(3 * x + seed) > 0)
    return np.rint(255 * np.clip(grey * draw.uniform(0.5, 1, (3, 1, 1)), 0, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for n, name in enumerate(["cat", "cup", "disc", "moon", "boat"]):
        files.write(root / f"{name}.png", photograph(n))
    files.write(root / "grey.png", photograph(9)[:1])
    (root / "README.md").write_text("not a photograph")
    return root


def run(photographs: Path, out: Path, *words: object) -> int:
    return make.main([str(w) for w in (photographs, out, "--length", 3, 9, "--frames", 15, *words)])


def picture(path: Path) -> np.ndarray:
    return files.read(path, 2)[0]


def listing(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


# --- made pairs -----------------------------------------------------------------------------------------------------------


def test_blur_is_the_mean_of_shifted_frames_in_linear_light(photographs: Path, tmp_path: Path) -> None:
    """Done again frame by frame with scipy's shift, from the parameters written beside the pairs."""
    assert run(photographs, tmp_path, "--kind", "blur", "--variants", 2, "--crop", 40, 50) == 0
    facts = json.loads((tmp_path / "pairs.json").read_text())
    margin = 9 + make.SPLINE_REACH
    for name in ("cat_00", "cat_01", "boat_00"):
        pair = facts["pairs"][name]
        (top, bottom), (left, right) = pair["box"]
        whole = picture(photographs / f"{pair['photograph']}.png") / 255
        frames = [np.stack([shift(c**2.2, step, order=3, mode="mirror") for c in whole]) for step in pair["path"]]
        inner = np.s_[:, top + margin : bottom - margin, left + margin : right - margin]
        expected = 255 * np.clip(np.mean(frames, axis=0)[inner], 0, 1) ** (1 / 2.2)
        source, target = picture(tmp_path / "src" / f"{name}.png"), picture(tmp_path / "dst" / f"{name}.png")
        assert source.shape == target.shape == (3, 40, 50)
        assert source.dtype == target.dtype == np.uint8
        # 0.5 is rounding; the rest is the spline's far reach, which a part of the photograph cuts off.
        assert np.abs(source - expected).max() < 0.75
        np.testing.assert_array_equal(target, np.rint(whole[inner] * 255))  # the sharp one is the middle frame


def test_a_camera_path_is_smooth_as_long_as_said_and_passes_its_middle() -> None:
    for seed in range(20):
        path = make.camera_path(np.random.default_rng(seed), 401, 12.0)
        steps = np.diff(path, axis=0)
        assert np.linalg.norm(steps, axis=1).sum() == pytest.approx(12, rel=1e-3)
        np.testing.assert_array_equal(path[200], 0)
        assert np.abs(np.diff(steps, axis=0)).max() < 0.25 * np.abs(steps).max()
        assert np.abs(path).max() <= 12


def test_the_kernel_of_a_path_keeps_light_and_lies_where_the_path_does() -> None:
    path = make.camera_path(np.random.default_rng(3), 31, 7.5)
    kernel = make.spline_kernel(path)
    at = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1)
    centre = (kernel.sum(1) @ at, kernel.sum(0) @ at)
    np.testing.assert_allclose(centre, path.mean(0), atol=1e-9)


def test_pairs_depend_on_seed_name_and_variant_alone(photographs: Path, tmp_path: Path) -> None:
    words = ("--kind", "blur", "--variants", 2, "--crop", 32)
    assert run(photographs, tmp_path / "a", *words) == run(photographs, tmp_path / "b", *words) == 0
    assert listing(tmp_path / "a") == listing(tmp_path / "b")
    assert run(photographs / "cat.png", tmp_path / "c", *words) == 0
    assert (tmp_path / "c/src/cat_01.png").read_bytes() == (tmp_path / "a/src/cat_01.png").read_bytes()
    assert run(photographs, tmp_path / "d", *words, "--seed", 1) == 0
    names = [f"src/cat_{n:02}.png" for n in (0, 1)]
    assert len({(tmp_path / side / name).read_bytes() for side in "ad" for name in names}) == 4


def test_tone_is_one_function_for_all_and_no_trivial_one(photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, tmp_path / "whole", "--kind", "tone") == 0
    assert run(photographs, tmp_path / "parts", "--kind", "tone", "--crop", 30, "--variants", 3) == 0
    facts = json.loads((tmp_path / "parts/pairs.json").read_text())["pairs"]
    for name, pair in facts.items():
        (top, bottom), (left, right) = pair["box"]
        for side in ("src", "dst"):
            whole = picture(tmp_path / "whole" / side / f"{pair['photograph']}_00.png")
            np.testing.assert_array_equal(picture(tmp_path / "parts" / side / f"{name}.png"), whole[:, top:bottom, left:right])
    source = picture(tmp_path / "whole/src/cat_00.png")
    np.testing.assert_array_equal(source, photograph(0))
    change = np.abs(source.astype(float) - picture(tmp_path / "whole/dst/cat_00.png")).mean()
    assert change > 10
    flat = np.full((3, 40, 40), 0.3)
    out = make.toned(flat)
    np.testing.assert_allclose(out, np.broadcast_to(out[0, 0, 0], out.shape), atol=1e-12)  # grey stays grey, flat stays flat
    edge = np.where(np.arange(40) < 20, 0.3, 0.5) * np.ones((3, 40, 1))
    tones = make.toned(edge)[0, 20]
    assert tones[19] < tones[0]  # detail is raised: an undershoot
    assert tones[20] > tones[39]


def test_hues_turn_by_the_angle_and_greys_stay() -> None:
    matrix = make.hue_matrix(120)
    np.testing.assert_allclose(matrix @ np.ones(3), np.ones(3), atol=1e-12)
    np.testing.assert_allclose(np.eye(3) @ matrix, np.roll(np.eye(3), 1, axis=0), atol=1e-12)  # red becomes green
    np.testing.assert_allclose(make.hue_matrix(25) @ make.hue_matrix(-25), np.eye(3), atol=1e-12)


def test_no_photograph_is_on_both_sides_and_training_reads_the_layout(photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, tmp_path, "--kind", "blur", "--variants", 3, "--crop", 32) == 0
    split = json.loads((tmp_path / "split.json").read_text())
    sides = [{i.rpartition("_")[0] for i in split[side]} for side in ("train", "test")]
    assert not sides[0] & sides[1]
    assert (len(sides[0]), len(sides[1])) == (5, 1)
    setting = from_dict(
        {
            "name": "t",
            "task": "image",
            "data": {
                "dims": 2,
                "layout": "folders",
                "folders": {"image": "src", "target": "dst"},
                "folds": {"count": 2, "by": "group", "pattern": r"^(.+)_\d+$"},
                "patch": {"size": [16, 16], "foreground": None},
            },
            "network": "unet",
            "losses": [{"name": "l1", "target": "target"}],
        }
    )
    found = cases.find(setting.data, setting.targets, tmp_path)
    assert not found.faults
    assert [c.id for c in found.train] == sorted(split["train"])
    assert sorted(c.id for c in found.test) == sorted(split["test"])
    assert {c.group for c in found.train} == sides[0]


def test_named_photographs_are_held_out(photographs: Path, tmp_path: Path) -> None:
    assert run(photographs, tmp_path, "--kind", "tone", "--held-out", "cup", "moon") == 0
    split = json.loads((tmp_path / "split.json").read_text())
    assert split == {"train": ["boat_00", "cat_00", "disc_00", "grey_00"], "test": ["cup_00", "moon_00"]}
    grey = picture(tmp_path / "src/grey_00.png")
    assert grey.shape == (3, 90, 100)
    assert (grey == grey[:1]).all()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--kind", "tone", "--variants", 2], "needs --crop"),
        (["--kind", "blur", "--frames", 4], "an odd number"),
        (["--kind", "blur", "--length", 9, 3], "LOW <= HIGH"),
        (["--kind", "blur", "--length", 3, 60], "leave nothing inside a rim of 64"),
        (["--kind", "tone", "--held-out", "cst"], "Did you mean 'cat'"),
        (["--kind", "tone", "--crop", 0], "--crop"),
        (["--kind", "tone", "--held-out", "cat", "cup", "disc", "moon", "boat", "grey"], "nothing is left"),
    ],
)
def test_wrong_options_are_refused(photographs: Path, tmp_path: Path, words: list, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(photographs, tmp_path, *words) == 2
    assert told in capsys.readouterr().err


def test_two_photographs_of_one_name_are_refused(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write(tmp_path / "more" / "cat.tif", photograph(0), dims=2)
    assert make.main([str(w) for w in (photographs, tmp_path / "more", tmp_path / "out", "--kind", "tone")]) == 2
    assert "same name" in capsys.readouterr().err


# --- GoPro and other folders -----------------------------------------------------------------------------------------------

SCENES = {"train/GOPR0372_07_00": 3, "train/GOPR0372_07_01": 2, "test/GOPR0384_11_00": 2}


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "GOPRO_Large"
    for n, (scene, frames) in enumerate(SCENES.items()):
        for frame in range(1, frames + 1):
            sharp = photograph(10 * n + frame, (12, 14))
            for folder, image in (("sharp", sharp), ("blur", sharp // 2), ("blur_gamma", sharp // 3)):
                files.write(root / scene / folder / f"{frame:06}.png", image)
    return root


def lay(*words: object) -> int:
    return gopro.main([str(w) for w in words])


def test_gopro_is_laid_out_by_scene(download: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert lay(download, out) == 0
    split = json.loads((out / "split.json").read_text())
    assert split["test"] == ["GOPR0384_11_00_000001", "GOPR0384_11_00_000002"]
    assert len(split["train"]) == 5
    for case_id in (*split["train"], *split["test"]):
        scene, _, frame = case_id.rpartition("_")
        inside = next(p for p in (download / "train" / scene, download / "test" / scene) if p.is_dir())
        assert (out / "src" / f"{case_id}.png").samefile(inside / "blur_gamma" / f"{frame}.png")
        assert (out / "dst" / f"{case_id}.png").samefile(inside / "sharp" / f"{frame}.png")
    assert lay(download.parent, out, "--blur", "blur") == 0  # again, from the folder above, with the other blur
    assert (out / "src/GOPR0372_07_01_000002.png").samefile(download / "train/GOPR0372_07_01/blur/000002.png")
    assert not list(out.rglob(".tmp*"))


def test_files_are_copied_where_there_are_no_links(download: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(gopro.os, "link", refuse)
    assert lay(download, tmp_path / "out") == 0
    source, target = download / "test/GOPR0384_11_00/sharp/000001.png", tmp_path / "out/dst/GOPR0384_11_00_000001.png"
    assert source.read_bytes() == target.read_bytes()
    assert not source.samefile(target)


def test_everything_unpaired_is_listed_and_nothing_written(download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (download / "train/GOPR0372_07_00/sharp/000002.png").unlink()
    (download / "test/GOPR0384_11_00/blur_gamma/000001.png").unlink()
    assert lay(download, tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "2 faults" in told
    assert "GOPR0372_07_00/blur_gamma/000002.png: no file of this name" in told
    assert "GOPR0384_11_00/sharp/000001.png: no file of this name" in told
    assert not (tmp_path / "out").exists()


def test_any_two_folders_are_paired_by_name_never_by_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        files.write(tmp_path / "in" / f"{name}.png", photograph(1))
        files.write(tmp_path / "to" / f"{name}.tif", photograph(2), dims=2)
    words = ("--src", tmp_path / "in", "--dst", tmp_path / "to", tmp_path / "out")
    assert lay(*words) == 0
    assert json.loads((tmp_path / "out/split.json").read_text()) == {"train": ["a", "b"], "test": []}
    assert (tmp_path / "out/dst/b.tif").samefile(tmp_path / "to/b.tif")
    (tmp_path / "to/b.tif").rename(tmp_path / "to/c.tif")  # as many files as before
    assert lay(*words) == 2
    told = capsys.readouterr().err
    assert "in/b.png: no file of this name" in told
    assert "to/c.tif: no file of this name" in told


def test_pairs_of_two_sizes_and_damaged_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, shape in (("in", (20, 20)), ("to", (20, 21))):
        files.write(tmp_path / side / "a.png", photograph(1, shape))
        files.write(tmp_path / side / "b.png", photograph(1))
    (tmp_path / "to/b.png").write_bytes((tmp_path / "to/b.png").read_bytes()[:-20])
    assert lay("--src", tmp_path / "in", "--dst", tmp_path / "to", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "in/a.png: has shape (3, 20, 20)" in told
    assert "to/b.png: is truncated" in told


@pytest.mark.parametrize("words", [["only"], ["--src", "a", "out"], ["--src", "a", "--dst", "b", "c", "out"]])
def test_half_given_folders_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert lay(*words) == 2
    assert "Give DOWNLOAD and OUT" in capsys.readouterr().err


def test_another_folder_is_not_taken_for_gopro(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lay(tmp_path, tmp_path / "out") == 2
    assert "GOPRO_Large" in capsys.readouterr().err
