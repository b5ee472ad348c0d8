"""Masks written as pictures: those that training makes, nothing else, and no input touched."""

from __future__ import annotations

import re
from pathlib import Path

import change_masks
import numpy as np
import pytest

from pipeline import colours, files
from pipeline.config import Change
from pipeline.data import change

YAML = """
name: t
task: image
data:
  dims: 2
  layout: folders
  folders: {image: src, target: dst}
  patch: {size: [16, 16], foreground: null}
  change: CHANGE
network: unet
losses: [{name: l1, target: target}]
"""


def pair(seed: int, channels: int = 3, dtype: str = "uint8") -> tuple[np.ndarray, np.ndarray]:
    """A picture with a dark disc (seed 0: without), and the same without it: ``(C, 60, 80)``."""
    y, x = np.mgrid[:60, :80]
    target = np.stack([110 + 40 * np.sin(y / 9 + k) + x for k in range(channels)])
    image = np.where((y - 25) ** 2 + (x - 40) ** 2 <= (6 * seed) ** 2 - 1, 0.7 * target, target)
    factor = 257 if dtype == "uint16" else 1
    return (np.rint(image) * factor).astype(dtype), (np.rint(target) * factor).astype(dtype)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for name, images in {
        "a": pair(1),
        "b": pair(2, dtype="uint16"),
        "clean": pair(0),
        "grey": pair(1, channels=1),
    }.items():
        for side, image in zip(("src", "dst"), images, strict=True):
            files.write(tmp_path / side / f"{name}.png", image)
    return tmp_path


def run(root: Path, *words: object, out: str = "out") -> int:
    return change_masks.main([str(w) for w in (root / "src", root / "dst", root / out, *words)])


def picture(path: Path) -> np.ndarray:
    return files.read(path, 2)[0]


def expected(root: Path, name: str, settings: Change) -> np.ndarray:
    return np.rint(
        255
        * change.difference_mask(
            picture(root / "src" / f"{name}.png"), picture(root / "dst" / f"{name}.png"), settings
        )
    ).astype(np.uint8)


def listing(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def test_masks_are_those_of_training_and_inputs_stay(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(pairs)
    assert run(pairs) == 0
    names = ["a", "b", "clean", "grey"]
    assert sorted(p.name for p in (pairs / "out").iterdir()) == sorted(
        f"{n}{end}" for n in names for end in (".png", "_overlay.jpg")
    )
    told = capsys.readouterr().out
    for name in names:
        mask = picture(pairs / "out" / f"{name}.png")
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected(pairs, name, Change()))
        share = re.search(rf"^{name}: (empty|[\d.]+ %)$", told, re.MULTILINE)
        assert share is not None
        assert share[1] == ("empty" if name == "clean" else f"{100 * (mask >= 128).mean():.2f} %")
    assert {
        key: value for key, value in listing(pairs).items() if not key.startswith("out/")
    } == before
    once = listing(pairs)
    assert run(pairs) == 0
    assert listing(pairs) == once


def test_the_table_counts_pairs_empty_masks_and_shares(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(pairs) == 0
    table = dict(
        re.findall(
            r"^(pairs|empty masks|changed, \w+) +([\d.]+)", capsys.readouterr().out, re.MULTILINE
        )
    )
    shares = [
        100 * (picture(pairs / "out" / f"{name}.png") >= 128).mean()
        for name in ("a", "b", "clean", "grey")
    ]
    assert (table["pairs"], table["empty masks"]) == ("4", "1")
    for name, value in (
        ("least", 0),
        ("median", np.median(shares)),
        ("mean", np.mean(shares)),
        ("most", max(shares)),
    ):
        assert float(table[f"changed, {name}"]) == pytest.approx(value, abs=0.006)


@pytest.mark.parametrize("name", ["a", "b", "grey"])
def test_an_overlay_shows_the_source_and_tints_the_mask(pairs: Path, name: str) -> None:
    assert run(pairs) == 0
    source = picture(pairs / "src" / f"{name}.png")
    levels = np.broadcast_to(source / (257 if source.dtype == np.uint16 else 1), (3, 60, 80))
    mask = picture(pairs / "out" / f"{name}.png")[0]
    shown = picture(pairs / "out" / f"{name}_overlay.jpg")
    far = np.s_[:, 48:, :]  # blocks of a JPEG that the mask does not reach
    assert not mask[48:].any()
    assert np.abs(shown - levels)[far].mean() < 2
    centre = 0.4 * levels[:, 25, 40] + 0.6 * np.array(colours.GREEN)
    np.testing.assert_allclose(shown[:, 25, 40], centre, atol=6)


def test_settings_come_from_the_config_and_options_replace_them(pairs: Path) -> None:
    (pairs / "c.yaml").write_text(YAML.replace("CHANGE", "{threshold: 50, dilation: 1, blur: 0}"))
    assert run(pairs, "--config", pairs / "c.yaml") == 0
    np.testing.assert_array_equal(
        picture(pairs / "out/b.png"), expected(pairs, "b", Change(threshold=50, dilation=1, blur=0))
    )
    assert (
        run(pairs, "--config", pairs / "c.yaml", "--threshold", 5, "--by", "colour", "--opening", 2)
        == 0
    )
    replaced = Change(by="colour", threshold=5, opening=2, dilation=1, blur=0)
    np.testing.assert_array_equal(picture(pairs / "out/b.png"), expected(pairs, "b", replaced))
    assert run(pairs, "--magnifier", 0.06, "--blur", 0, "--dilation", 0) == 0
    weak = expected(pairs, "b", Change(magnifier=0.06, blur=0, dilation=0))
    np.testing.assert_array_equal(picture(pairs / "out/b.png"), weak)
    assert 0 < weak.mean() < expected(pairs, "b", Change(blur=0, dilation=0)).mean()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--magnifier", "0"], "data.change.magnifier is 0.0, must be above 0"),
        (["--blur", "-1"], "must not be negative"),
        (["--config", "null.yaml"], "data.change is null"),
        (["--config", "none.yaml"], "no such config file"),
    ],
)
def test_wrong_settings_are_refused(
    pairs: Path,
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (pairs / "null.yaml").write_text(YAML.replace("CHANGE", "null"))
    monkeypatch.chdir(pairs)
    assert run(pairs, *words) == 2
    assert told in capsys.readouterr().err
    assert not (pairs / "out").exists()


def test_all_faults_are_listed_and_nothing_is_written(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pairs / "dst/a.png").unlink()
    files.write(pairs / "dst/b.png", pair(1)[1][:, 1:])
    files.write(pairs / "dst/clean.png", pair(1)[1][:1])
    (pairs / "src/grey.png").write_bytes((pairs / "src/grey.png").read_bytes()[:-9])
    assert run(pairs) == 2
    told = capsys.readouterr().err
    assert "4 faults, nothing was written" in told
    for path, problem in (
        ("src/a.png", "no file of this name"),
        ("src/b.png", "has shape"),
        ("src/clean.png", "has shape"),
    ):
        assert re.search(rf"{path}: {problem}", told)
    assert "src/grey.png: is truncated" in told
    assert not (pairs / "out").exists()


@pytest.mark.parametrize("side", ["src", "dst", "link"])
def test_inputs_are_never_overwritten(
    pairs: Path, side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (pairs / "link").symlink_to(pairs / "src")
    before = listing(pairs)
    assert run(pairs, out=side) == 2
    assert "is a folder of inputs" in capsys.readouterr().err
    assert listing(pairs) == before


def test_real_pairs_of_two_photographs(shared_data: Path, tmp_path: Path) -> None:
    """A photograph and its negative differ almost everywhere: the mask and the tint do too."""
    image = picture(shared_data / "free_images" / "coffee.png")
    files.write(tmp_path / "src/coffee.png", image)
    files.write(tmp_path / "dst/coffee.png", 255 - image)
    assert run(tmp_path) == 0
    assert (picture(tmp_path / "out/coffee.png") >= 128).mean() > 0.9
