"""Normalisations that do not fit an image: equal percentiles of an image that is not constant, a
range that cuts off most values.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline import train
from pipeline.config import ConfigError
from pipeline.data import normalise
from pipeline.files import Rows
from pipeline.records import NamedOptions

RNG = np.random.default_rng(11)
PERCENTILE = NamedOptions(name="percentile", options={"low": 0.5, "high": 99.5})


def spots(dtype: str, channels: int = 1) -> np.ndarray:
    """Dark but for 0.2 % of the voxels; of several channels only the second is."""
    image = RNG.integers(1, 200, (channels, 20, 50, 50)).astype(dtype)
    dark = image[min(1, channels - 1)]
    dark[:] = 0
    dark.flat[RNG.choice(dark.size, dark.size // 500, replace=False)] = 120
    return image


def rows(array: np.ndarray) -> Rows:
    return Rows(array.shape, array.dtype, lambda first, end: array[:, first:end])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_few_bright_voxels_are_not_lost(
    channels: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = spots(dtype, channels)
    scale, notes = normalise.fit_with_notes(PERCENTILE, image)
    (note,) = notes
    assert "are both 0, though its values reach from 0 to 120" in note
    assert ("of channel 1" in note) == (channels == 3)
    dark = min(1, channels - 1)
    np.testing.assert_array_equal(scale.apply(image)[dark], (image[dark] > 0).astype(np.float32))
    assert normalise.fit(PERCENTILE, image) == scale
    assert normalise.fit_with_notes(PERCENTILE, image)[1] == notes
    for channel in set(range(channels)) - {dark}:  # the others are scaled as ever
        assert (scale.low[channel], scale.high[channel]) == pytest.approx(
            np.percentile(image[channel], (0.5, 99.5))
        )
    monkeypatch.setattr(normalise, "WHOLE", 10)
    assert normalise.fit_with_notes(PERCENTILE, rows(image)) == (scale, notes)
    assert normalise.fit(PERCENTILE, rows(image)) == scale


def test_constant_channels_and_channels_without_numbers_stay_as_they_were() -> None:
    for image in (np.full((1, 9, 9), 7, np.uint8), np.full((1, 9, 9), np.nan, np.float32)):
        scale, notes = normalise.fit_with_notes(PERCENTILE, image)
        assert notes == ()
        assert (scale.apply(image) == 0).all()


@pytest.mark.parametrize(
    ("image", "options", "share"),
    [
        (np.linspace(2, 252, 1000, dtype=np.float32), {"low": 0, "high": None}, "100 %"),
        (np.arange(1000, dtype=np.uint16) + 300, {}, "100 %"),
        (np.arange(1000, dtype=np.int16) - 700, {}, "74 %"),
        (np.full(1000, -5, np.float32), {"low": 0, "high": 1}, "100 %"),
    ],
)
def test_a_range_that_cuts_off_most_values_is_a_problem(
    image: np.ndarray, options: dict, share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = NamedOptions(name="range", options=options)
    array = np.stack([image.reshape(20, 50)] * 2)
    found = normalise.problem_of(part, array)
    assert found is not None
    assert f"has {share} of its values of channel 0 outside the range" in found[0]
    assert f"they reach from {image.min():g} to {image.max():g}" in found[0]
    assert "max_outside (now 0.5)" in found[1]
    assert normalise.problem_of(part, rows(array)) == found
    monkeypatch.setattr(normalise, "WHOLE", 10)
    assert normalise.problem_of(part, rows(array)) == found
    wider = NamedOptions(name="range", options={**options, "max_outside": 1})
    assert normalise.problem_of(wider, array) is None
    assert (
        normalise.fit(wider, rows(array))
        == normalise.fit(wider, array)
        == normalise.fit(part, array)
    )


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (np.arange(256, dtype=np.uint8), {}),
        (np.arange(256, dtype=np.uint16) * 256, {"high": None}),
        (np.linspace(0, 1, 256, dtype=np.float32), {"high": None}),
        (
            np.r_[np.full(128, 5.0), np.linspace(0, 1, 128)].astype(np.float32),
            {"high": None},
        ),  # half of it
        (
            np.full(256, -1e-6, np.float32),
            {"high": None},
        ),  # what resampling leaves of a background of 0
        (
            np.r_[np.full(200, np.nan), np.full(20, np.inf), np.linspace(0, 1, 36)].astype(
                np.float32
            ),
            {"high": None},
        ),
        (np.full(256, np.nan, np.float32), {"high": None}),
    ],
)
def test_images_inside_the_range_are_none(image: np.ndarray, options: dict) -> None:
    assert (
        normalise.problem_of(NamedOptions(name="range", options=options), image.reshape(1, 16, 16))
        is None
    )


def test_integers_whose_type_lies_inside_are_not_looked_at() -> None:
    class Unread:
        dtype, shape = np.dtype(np.uint8), (1, 4, 4)

        def __len__(self) -> int:
            return 1

        def __getitem__(self, key: object) -> np.ndarray:
            raise AssertionError("read")

    for options in ({}, {"high": None}, {"low": -5, "high": 999}):
        assert normalise.problem_of(NamedOptions(name="range", options=options), Unread()) is None  # type: ignore[arg-type]


def test_a_share_is_between_0_and_1() -> None:
    with pytest.raises(ConfigError, match="max_outside=3 must be a share"):
        normalise.fit(
            NamedOptions(name="range", options={"max_outside": 3}), np.zeros((1, 4, 4), np.uint8)
        )


# --- at the door of training ----------------------------------------------------------------------


def go(config: Path, data: Path, out: Path, *settings: str) -> int:
    words = [
        "--config",
        str(config),
        "--data-dir",
        str(data),
        "--out",
        str(out),
        "--dry-run",
        "--set",
    ]
    return train.main([*words, "train.epochs=2", *settings])


def test_training_warns_of_an_image_of_few_bright_voxels(
    surfaces: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(surfaces, tmp_path / "data")
    path = tmp_path / "data" / "train_images" / "104.tif"
    image = np.zeros((20, 24, 24), np.uint8)
    image.flat[::600] = 200
    tifffile.imwrite(path, image)
    assert go(tiny, tmp_path / "data", tmp_path / "run") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "percentile" in line]
    assert lines == [
        f"warning: {path}: percentiles 0.5 and 99.5 are both 0, though its values reach from 0 to"
        " 200: it is scaled from its minimum to its maximum instead. Check the image;"
        " data.normalise can set other percentiles, or range with limits of its own"
    ]


def test_training_refuses_images_that_its_range_would_cut_off(
    surfaces: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(surfaces, tmp_path / "data")
    path = tmp_path / "data" / "train_images" / "103.tif"
    tifffile.imwrite(path, tifffile.imread(path).astype(np.float32))
    settings = ["data.normalise.name=range", "data.normalise.options={low: 0, high: null}"]
    assert go(tiny, tmp_path / "data", tmp_path / "run", *settings) == 2
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {path}: has ")
    assert "outside the range 0 to 1 of data.normalise, where they would be cut off" in errors[0]
    assert "Set low and high of data.normalise to limits that hold the values" in errors[0]
    settings[1] = "data.normalise.options={low: 0, high: 255}"
    assert go(tiny, tmp_path / "data", tmp_path / "run", *settings) == 0


PAIRS = """
name: t
task: image
data:
  layout: folders
  folders: {image: src, target: dst}
  dims: 2
  folds: {count: 2}
  patch: {size: [16, 16], foreground: null}
  normalise: {name: range, options: {low: 0, high: null}}
network: {name: deblur_unet, options: {base: 4, groups: 4}}
losses: [{name: l1, target: target}]
metrics: [psnr]
train: {stop: {monitor: val_loss}}
"""


def test_training_refuses_targets_that_its_range_would_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(4):
        for folder in ("src", "dst"):
            (tmp_path / folder).mkdir(exist_ok=True)
            image = RNG.random((24, 30)).astype(np.float32)
            tifffile.imwrite(
                tmp_path / folder / f"{n}.tif", image * 255 if (folder, n) == ("dst", 2) else image
            )
    (tmp_path / "t.yaml").write_text(PAIRS)
    assert go(tmp_path / "t.yaml", tmp_path, tmp_path / "run") == 2
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {tmp_path / 'dst' / '2.tif'}: has 99")


def test_facts_remember_what_was_found(
    surfaces: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import config as configs
    from pipeline.data import cases, properties

    shutil.copytree(surfaces, tmp_path / "data")
    for n in (101, 102):
        tifffile.imwrite(
            tmp_path / "data" / "train_images" / f"{n}.tif", spots("float32")[0, :, :24, :24]
        )
    settings = configs.load(
        tiny, [f"data.root={tmp_path / 'data'}", "data.normalise.name=percentile"]
    )
    found = cases.find(settings.data, settings.roles, tmp_path / "data").train
    first = properties.examine(found, settings, tmp_path / "store")
    assert len(list((tmp_path / "store" / "facts").glob("*.json"))) == 6
    assert properties.examine(found, settings, tmp_path / "store") == first
    assert [f.id for f in first if f.scale_notes] == ["101", "102"]
    old = tmp_path / "store" / "facts" / "101.json"
    old.write_text(old.read_text().replace(f'"format": {properties.FORMAT}', '"format": 2'))
    assert properties.examine(found, settings, tmp_path / "store") == first
    assert f'"format": {properties.FORMAT}' in old.read_text()
