"""TIFF's orientation tag: pictures are read and answered upright, as JPEG and PNG are; volumes with
such a tag are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import do_nothing_model
from PIL import Image, ImageOps

from pipeline import files, predict, train

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (37, 53)).astype(np.uint8)
RGB = RNG.integers(0, 256, (37, 53, 3)).astype(np.uint8)


def tagged(path: Path, array: np.ndarray, orientation: int, **options: Any) -> Path:
    options = {"photometric": "minisblack", **options}
    tifffile.imwrite(path, array, extratags=[(274, "H", 1, orientation, False)], **options)
    return path


def seen(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels ``(Y, X, ...)`` as Pillow turns a picture of this orientation, an implementation of
    its own.
    """
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


KINDS = {
    "grey": (GREY, {}, lambda o: seen(GREY, o)[None]),
    "compressed": (GREY, {"compression": "zlib", "rowsperstrip": 8}, lambda o: seen(GREY, o)[None]),
    "16 bits": (
        GREY.astype(np.uint16) * 257,
        {},
        lambda o: seen(GREY, o)[None].astype(np.uint16) * 257,
    ),
    "colour": (RGB, {"photometric": "rgb"}, lambda o: seen(RGB, o).transpose(2, 0, 1)),
    "planar": (
        RGB.transpose(2, 0, 1),
        {"photometric": "rgb", "planarconfig": "separate"},
        lambda o: seen(RGB, o).transpose(2, 0, 1),
    ),
    "one bit": (GREY > 99, {}, lambda o: 255 * (seen(GREY, o) > 99)[None].astype(np.uint8)),
    "palette": (
        GREY,
        {
            "photometric": "palette",
            "colormap": np.stack([np.arange(256) * 257] * 3).astype(np.uint16),
        },
        lambda o: np.stack([seen(GREY, o)] * 3),
    ),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_reading_gives_the_upright_picture(
    kind: str, orientation: int, tmp_path: Path
) -> None:
    stored, options, expected = KINDS[kind]
    path = tagged(tmp_path / "a.tif", stored, orientation, **options)
    array, geometry = files.read(path, 2)
    np.testing.assert_array_equal(array, expected(orientation))
    probed = files.probe(path, 2)
    assert (probed.shape, probed.dtype) == (array.shape, str(array.dtype))
    assert files.geometry(path, 2) == geometry
    with files.view(path, 2) as (pixels, place):
        assert (pixels.shape, pixels.dtype, place) == (array.shape, array.dtype, geometry)
        rows = [pixels[:, first : first + 10] for first in range(0, array.shape[1], 10)]
        np.testing.assert_array_equal(np.concatenate(rows, 1), array)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_a_damaged_orientation_stands_for_none(orientation: int, tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        files.read(tagged(tmp_path / "a.tif", GREY, orientation), 2)[0][0], GREY
    )


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("blocks", ["never", "always"])
def test_answers_lie_upright_and_without_the_tag(
    blocks: str, orientation: int, tmp_path: Path
) -> None:
    tagged(tmp_path / "a.tif", GREY, orientation, resolution=(300, 100), resolutionunit="INCH")
    model = do_nothing_model(tmp_path / "m.safetensors")
    words = [
        "--checkpoint",
        str(model),
        "--input",
        str(tmp_path / "a.tif"),
        "--output",
        str(tmp_path / "out"),
        "--blocks",
        blocks,
    ]
    assert predict.main(words) == 0
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as answer:
        tags: Any = answer.pages.first.tags
        np.testing.assert_array_equal(answer.asarray(), seen(GREY, orientation))
        assert tags.valueof("Orientation", default=1) == 1
        resolution = [tags[name].value for name in ("XResolution", "YResolution")]
    assert resolution == ([(300, 1), (100, 1)] if orientation == 3 else [(100, 1), (300, 1)])


SYSTEM = """
name: t
network: unet
losses: [dice]
data:
  layout: folders
  dims: 2
  classes: 3
  folds: {count: 2}
  patch: {size: [16, 16], foreground: null}
"""


@pytest.mark.parametrize("turned", ["image", "mask", "both"])
def test_a_turned_image_and_a_mask_over_the_seen_picture_are_pairs(
    turned: str, tmp_path: Path
) -> None:
    from pipeline import config as configs
    from pipeline.data import cache, cases, properties

    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    classes = (GREY % 3).astype(np.uint8)
    for n, orientation in enumerate((6, 3, 8, 5)):
        image, mask = (seen(a, orientation) for a in (GREY + np.uint8(n), classes))
        if turned == "mask":
            Image.fromarray(image).save(tmp_path / "images" / f"{n}.png")
        else:
            tagged(tmp_path / "images" / f"{n}.tif", GREY + np.uint8(n), orientation)
        if turned == "image":
            Image.fromarray(mask).save(tmp_path / "masks" / f"{n}.png")
        else:
            tagged(tmp_path / "masks" / f"{n}.tif", classes, orientation)
    (tmp_path / "t.yaml").write_text(SYSTEM)
    assert (
        train.main(["--config", str(tmp_path / "t.yaml"), "--data-dir", str(tmp_path), "--dry-run"])
        == 0
    )
    settings = configs.load(tmp_path / "t.yaml", [f"data.root={tmp_path}"])
    found = cases.find(settings.data, settings.roles, tmp_path).train
    for stored in cache.build(
        found, properties.examine(found, settings, None), settings, tmp_path / "store"
    ):
        n = int(stored.case.id)
        np.testing.assert_array_equal(
            (stored.image.array[0] - np.uint8(n)) % 3, stored.targets["label"].array[0]
        )
        np.testing.assert_array_equal(
            stored.image.array[0] - np.uint8(n), seen(GREY, (6, 3, 8, 5)[n])
        )


def test_volumes_with_the_tag_are_refused(
    surfaces: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(surfaces, tmp_path / "data")
    path = tmp_path / "data" / "train_images" / "101.tif"
    tagged(path, tifffile.imread(path), 3)
    words = [
        "--config",
        str(tiny),
        "--data-dir",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "run"),
        "--dry-run",
    ]
    assert train.main(words) == 2
    said = capsys.readouterr().out
    assert f"error: {path}: is a volume whose pages have the orientation 3 (tag 274)" in said
    assert "Save it upright, without that tag" in said
    for look in (
        lambda: files.read(path, 3),
        lambda: files.geometry(path, 3),
        lambda: files.view(path, 3).__enter__(),
    ):
        with pytest.raises(files.FileError, match="orientation 3"):
            look()
    assert "orientation 3" in str(files.probe(path, 3).problem)
    tagged(path, tifffile.imread(path), 1)
    assert train.main(words) == 0


def test_pages_that_are_turned_in_different_ways_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for orientation in (1, 1, 3):
            writer.write(
                GREY,
                extratags=[(274, "H", 1, orientation, True)],
                metadata=None,
                contiguous=False,
                photometric="minisblack",
            )
    found = files.probe(tmp_path / "a.tif", 3).problem
    assert found == "has pages of different orientation (tag 274): 1 on page 1, 3 on page 3"


def test_one_file_that_is_refused_leaves_the_others_done(tmp_path: Path) -> None:
    model = do_nothing_model(tmp_path / "m.safetensors")
    (tmp_path / "in").mkdir()
    tagged(tmp_path / "in" / "a.tif", GREY, 2)
    tagged(tmp_path / "in" / "b.tif", np.stack([GREY] * 4), 2)
    assert (
        predict.main(
            [
                "--checkpoint",
                str(model),
                "--input",
                str(tmp_path / "in"),
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 3
    )
    rows = {
        row["id"]: row
        for row in json.loads((tmp_path / "out" / "summary.json").read_text())["files"]
    }
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "a.tif"), GREY[:, ::-1])
    assert "b" in rows
    assert not (tmp_path / "out" / "b.tif").exists()
