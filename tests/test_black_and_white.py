"""Pictures of few bits, TIFF of bool values tagged MINISWHITE, TIFF in other colours than RGB: what
is seen and which numbers are taken.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import do_nothing_model
from PIL import Image
from small_models import model_file, rows, run_predict

from pipeline import evaluate, files, predict, train

RNG = np.random.default_rng(8)
MASK = RNG.random((37, 53)) < 0.3


def png(path: Path, numbers: np.ndarray, bits: int) -> Path:
    """A grey PNG of 1, 2 or 4 bits that stores these numbers, made by hand."""
    steps = 8 // bits
    wide = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % steps)))
    packed = sum(
        (wide[:, k::steps].astype(np.uint8) << (8 - bits * (k + 1)) for k in range(steps)),
        np.zeros((), np.uint8),
    )
    raw = b"".join(b"\0" + row.tobytes() for row in np.asarray(packed, np.uint8))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", *numbers.shape[::-1], bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def by_pillow(path: Path) -> Path:
    Image.fromarray(MASK).save(path)
    return path


def by_tifffile(path: Path, photometric: str) -> Path:
    """As a scanner stores it: for MINISWHITE black is 1."""
    tifffile.imwrite(path, ~MASK if photometric == "miniswhite" else MASK, photometric=photometric)
    return path


ONE_BIT: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "png": (".png", by_pillow),
    "png by hand": (".png", lambda path: png(path, MASK, 1)),
    "bmp": (".bmp", by_pillow),
    "tif by pillow": (".tif", by_pillow),
    "black is zero": (".tif", lambda path: by_tifffile(path, "minisblack")),
    "white is zero": (".tif", lambda path: by_tifffile(path, "miniswhite")),
}


@pytest.mark.parametrize("kind", ONE_BIT)
def test_white_of_one_bit_is_255_of_an_image(kind: str, tmp_path: Path) -> None:
    suffix, make = ONE_BIT[kind]
    path = make(tmp_path / f"a{suffix}")
    array, geometry = files.read(path, 2)
    np.testing.assert_array_equal(array[0], 255 * MASK)
    assert (files.probe(path, 2).dtype, geometry.notes) == ("uint8", ())
    with files.view(path, 2) as (pixels, _):
        np.testing.assert_array_equal(pixels[:], array)
    model = do_nothing_model(tmp_path / "m.safetensors")
    assert (
        predict.main(
            ["--checkpoint", str(model), "--input", str(path), "--output", str(tmp_path / "out")]
        )
        == 0
    )
    (answer,) = [p for p in (tmp_path / "out").glob("a.*") if files.suffix(p)]
    np.testing.assert_array_equal(files.read(answer, 2)[0][0], 255 * MASK)


@pytest.mark.parametrize("kind", [k for k in ONE_BIT if k != "white is zero"])
def test_labels_of_one_bit_are_0_and_1(kind: str, tmp_path: Path) -> None:
    suffix, make = ONE_BIT[kind]
    np.testing.assert_array_equal(
        files.read(make(tmp_path / f"a{suffix}"), 2, labels=True)[0][0], MASK
    )


@pytest.mark.parametrize("bits", [2, 4])
def test_a_grey_png_of_few_bits_is_scaled_as_an_image_and_a_number_as_a_label(
    bits: int, tmp_path: Path
) -> None:
    numbers = RNG.integers(0, 2**bits, MASK.shape).astype(np.uint8)
    path = png(tmp_path / "a.png", numbers, bits)
    np.testing.assert_array_equal(files.read(path, 2)[0][0], numbers * (255 // (2**bits - 1)))
    np.testing.assert_array_equal(files.read(path, 2)[0][0], np.asarray(Image.open(path)))
    np.testing.assert_array_equal(files.read(path, 2, labels=True)[0][0], numbers)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_grey_tiff_of_few_bits_is_read_like_the_png(bits: int, tmp_path: Path) -> None:
    numbers = RNG.integers(0, 2**bits, MASK.shape).astype(np.uint8)
    _tiff_by_hand(tmp_path / "a.tif", numbers, bits)
    path = tmp_path / "a.tif"
    np.testing.assert_array_equal(files.read(path, 2)[0][0], numbers * (255 // (2**bits - 1)))
    np.testing.assert_array_equal(files.read(path, 2, labels=True)[0][0], numbers)
    with files.view(path, 2) as (pixels, _):
        np.testing.assert_array_equal(pixels[:], files.read(path, 2)[0])


def _tiff_by_hand(path: Path, numbers: np.ndarray, bits: int) -> None:
    steps = 8 // bits
    wide = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % steps)))
    packed = np.zeros((wide.shape[0], wide.shape[1] // steps), np.uint8)
    for k in range(steps):
        packed |= wide[:, k::steps] << (8 - bits * (k + 1))
    height, width = numbers.shape
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, packed.size),
    ]
    where = 8 + packed.size + packed.size % 2
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags
    )
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, where)
        + packed.tobytes().ljust(where - 8, b"\0")
        + directory
        + bytes(4)
    )


def test_classes_in_a_png_of_four_bits_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for n in range(4):
        Image.fromarray(RNG.integers(0, 256, MASK.shape).astype(np.uint8)).save(
            tmp_path / "images" / f"{n}.png"
        )
        png(tmp_path / "masks" / f"{n}.png", RNG.integers(0, 5, MASK.shape).astype(np.uint8), 4)
    text = (
        "{name: t, network: unet, losses: [dice], data: {layout: folders, dims: 2, classes:"
        " CLASSES, folds: {count: 2},"
    )
    (tmp_path / "t.yaml").write_text(text + " patch: {size: [16, 16], foreground: null}}}")
    words = [
        "--config",
        str(tmp_path / "t.yaml"),
        "--data-dir",
        str(tmp_path),
        "--dry-run",
        "--set",
    ]
    assert train.main([*words, "data.classes=5"]) == 0
    assert train.main([*words, "data.classes=4"]) == 2
    assert "holds labels outside 0 to 3: 4 (" in capsys.readouterr().out


# --- bool volumes as tifffile writes them ---------------------------------------------------------


@pytest.fixture
def volumes(surfaces: Path, tmp_path: Path) -> Path:
    """The small volumes with labels of bool values: tifffile tags those MINISWHITE by itself."""
    root = tmp_path / "data"
    shutil.copytree(surfaces, root)
    for path in (root / "train_labels").glob("*.tif"):
        tifffile.imwrite(path, tifffile.imread(path) == 1)
        with tifffile.TiffFile(path) as tif:
            assert tif.pages.first.photometric == 0  # else this tests nothing
    return root


def test_a_bool_volume_is_taken_by_its_numbers_and_it_is_said(
    volumes: Path, surfaces: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(tiny), "--data-dir", str(volumes), "--out", str(tmp_path / "run")]
    assert train.main([*words, "--dry-run", "--set", "data.ignore_label=null"]) == 0
    said = capsys.readouterr().out
    path = volumes / "train_labels" / "100.tif"
    (line,) = [line for line in said.splitlines() if "is a TIFF tagged MINISWHITE" in line]
    assert line.startswith(f"warning: {volumes / 'train_labels'}")
    for n in range(100, 106):
        numbers = tifffile.imread(surfaces / "train_labels" / f"{n}.tif") == 1
        array, geometry = files.read(volumes / "train_labels" / f"{n}.tif", 3, labels=True)
        np.testing.assert_array_equal(array[0], numbers)
        with files.view(volumes / "train_labels" / f"{n}.tif", 3) as (pixels, place):
            np.testing.assert_array_equal(pixels[:], array)
            assert place.notes == geometry.notes == files.geometry(path, 3).notes
        assert len(geometry.notes) == 1


def test_a_bool_label_scores_as_the_mask_that_it_holds(
    volumes: Path, surfaces: Path, tmp_path: Path
) -> None:
    (tmp_path / "answers").mkdir()
    for path in sorted((surfaces / "train_labels").glob("*.tif")):
        tifffile.imwrite(
            tmp_path / "answers" / path.name, (tifffile.imread(path) == 1).astype(np.uint8)
        )
    words = [
        "--predictions",
        str(tmp_path / "answers"),
        "--labels",
        str(volumes / "train_labels"),
        "--metrics",
        "dice",
    ]
    assert evaluate.main([*words, "--out", str(tmp_path / "scores.json")]) == 0
    cases = files.read_json(tmp_path / "scores.json")["cases"]
    assert [row["dice"] for row in cases.values()] == [1.0] * 6


def test_a_bool_picture_given_as_a_label_is_said_to_look_otherwise(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", MASK)
    array, geometry = files.read(tmp_path / "a.tif", 2, labels=True)
    np.testing.assert_array_equal(array[0], MASK)
    assert len(geometry.notes) == 1
    image, geometry = files.read(tmp_path / "a.tif", 2)
    np.testing.assert_array_equal(image[0], 255 * ~MASK)
    assert geometry.notes == ()


def test_other_numbers_under_that_tag_stay_and_are_said(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, MASK.shape).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite")
    array, geometry = files.read(tmp_path / "a.tif", 2)
    np.testing.assert_array_equal(array[0], grey)
    assert "MINISWHITE" in geometry.notes[0]


@pytest.mark.parametrize(
    ("colours", "told"), [("cielab", "CIELab"), ("ycbcr", "YCbCr"), ("separated", "CMYK")]
)
@pytest.mark.parametrize("blocks", ["never", "always"])
def test_colours_that_are_no_rgb_are_said(
    colours: str, told: str, blocks: str, tmp_path: Path
) -> None:
    """Their numbers are taken, as they were before."""
    channels = 4 if told == "CMYK" else 3
    picture = RNG.integers(0, 256, (*MASK.shape, channels)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric=colours, metadata=None)
    model = model_file(tmp_path / "model", dims=2, channels=channels)
    assert run_predict(model, tmp_path / "a.tif", tmp_path / "out", "--blocks", blocks) == 0
    (warning,) = rows(tmp_path / "out")[0]["warnings"]
    assert f"is a TIFF in {told} colours" in warning
    np.testing.assert_array_equal(files.read(tmp_path / "a.tif", 2)[0], picture.transpose(2, 0, 1))


def test_jpeg_in_a_tiff_is_rgb_and_nothing_is_said(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 48).astype(np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(90)), -1)
    Image.fromarray(picture).convert("YCbCr").save(tmp_path / "a.tif", compression="jpeg")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.pages.first.photometric == 6  # else this tests nothing
    array, geometry = files.read(tmp_path / "a.tif", 2)
    assert geometry.notes == ()
    assert np.abs(array.astype(int) - picture.transpose(2, 0, 1)).mean() < 8
