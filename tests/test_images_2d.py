"""2D data as it comes: palettes, alpha, bits, turned photographs, greys in masks, damage; the right
answer or a clear fault.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from pipeline import config, files
from pipeline.data import cache, cases, checks, properties, targets
from pipeline.data.transforms import training_chain
from pipeline.records import Fault, UserError

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (12, 10, 3)).astype(np.uint8)
SHAPE = RGB.shape[:2]
MASK = np.zeros(SHAPE, np.uint8)
MASK[3:9, 2:5] = 1
CLASSES = np.arange(MASK.size, dtype=np.uint8).reshape(SHAPE) % 3
VIEW = np.zeros(SHAPE, np.uint8)
VIEW[1:-1, 1:-1] = 1


def palette(path: Path, indices: np.ndarray, colours: Any) -> Path:
    image = Image.frombytes("P", indices.shape[::-1], np.ascontiguousarray(indices).tobytes())
    image.putpalette(np.asarray(colours, np.uint8).ravel().tolist())
    options: dict[str, Any] = {"optimize": False} if path.suffix == ".gif" else {}
    image.save(path, **options)
    return path


def labels(path: Path) -> np.ndarray:
    return files.read(path, 2, labels=True)[0][0]


# --- formats --------------------------------------------------------------------------------------


def agree(path: Path, expected: np.ndarray) -> None:
    """Pixels, probe, geometry and number of axes tell one story."""
    array, geometry = files.read(path, 2)
    np.testing.assert_array_equal(array, expected)
    assert files.probe(path, 2) == files.Probe(
        shape=expected.shape, dtype=array.dtype.name, problem=None
    )
    assert files.geometry(path, 2) == geometry
    assert files.dims_of(path) == 2
    assert "where a volume is needed" in str(files.probe(path, 3).problem)


def test_bmp(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.bmp")
    agree(tmp_path / "a.bmp", RGB.transpose(2, 0, 1))
    Image.fromarray(RGB[..., 0]).save(tmp_path / "b.bmp")
    agree(tmp_path / "b.bmp", RGB[None, ..., 0])
    Image.fromarray(np.dstack([RGB, RGB[..., 0]])).save(tmp_path / "c.bmp")
    agree(tmp_path / "c.bmp", RGB.transpose(2, 0, 1))


def test_gif(tmp_path: Path) -> None:
    few = RNG.integers(0, 256, (4, 3)).astype(np.uint8)
    indices = RNG.integers(0, 4, SHAPE).astype(np.uint8)
    agree(palette(tmp_path / "a.gif", indices, few), few[indices].transpose(2, 0, 1))
    np.testing.assert_array_equal(labels(tmp_path / "a.gif"), indices)
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.GIF")
    np.testing.assert_array_equal(files.read(tmp_path / "grey.GIF", 2)[0][0], RGB[..., 0])


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".gif"])
def test_masks_of_one_bit(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(MASK.astype(bool)).save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(labels(tmp_path / f"a{suffix}") > 0, MASK)
    assert set(np.unique(labels(tmp_path / f"a{suffix}"))) in ({0, 1}, {0, 255})


def test_ink_of_a_scanner_is_dark(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", MASK == 0, photometric="miniswhite")
    np.testing.assert_array_equal(files.read(tmp_path / "a.tif", 2)[0][0], 255 * MASK)
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "a.tif")), MASK
    )  # Pillow sees the same


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.dstack([RGB, RGB[..., :1]])), RGB),
        (Image.fromarray(np.ascontiguousarray(RGB[..., :2]), "LA"), RGB[..., :1]),
    ],
)
def test_alpha_is_dropped_whatever_it_holds(
    image: Image.Image, expected: np.ndarray, tmp_path: Path
) -> None:
    image.save(tmp_path / "a.png")
    agree(tmp_path / "a.png", expected.transpose(2, 0, 1))


@pytest.mark.parametrize("transparency", [2, bytes([0, 128, 255])])
def test_a_transparent_palette_keeps_its_colours(transparency: int | bytes, tmp_path: Path) -> None:
    colours = np.array([[9, 8, 7], [1, 2, 3], [200, 0, 0]], np.uint8)
    image = Image.open(palette(tmp_path / "a.png", CLASSES, colours))
    image.save(tmp_path / "b.png", transparency=transparency)
    agree(tmp_path / "b.png", colours[CLASSES].transpose(2, 0, 1))


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_sixteen_bits_are_kept(samples: int, tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (*SHAPE, samples)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(deep if samples > 1 else deep[..., 0]))
    agree(tmp_path / "a.png", deep[..., : samples - 1 + samples % 2].transpose(2, 0, 1))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", SHAPE[::-1], (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    array, _ = files.read(tmp_path / "a.jpg", 2)
    assert array.shape == (3, *SHAPE)
    assert (array[0] > 200).all()
    assert (array[1:] < 50).all()
    assert files.probe(tmp_path / "a.jpg", 2).shape == array.shape


def turned(path: Path, orientation: int, array: np.ndarray = RGB) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_read_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    path = turned(tmp_path / f"a{suffix}", orientation)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert expected.shape[:2] == (SHAPE if orientation < 5 else SHAPE[::-1])
    agree(path, expected.transpose(2, 0, 1))
    mask = turned(tmp_path / f"mask{suffix}", orientation, MASK * 255)  # masks turn alike
    np.testing.assert_array_equal(
        labels(mask) > 127, np.asarray(ImageOps.exif_transpose(Image.open(mask))) > 127
    )


def test_an_upright_answer_says_nothing_of_turning(tmp_path: Path) -> None:
    array, geometry = files.read(turned(tmp_path / "a.png", 6), 2)
    files.write(tmp_path / "b.png", array, geometry)
    agree(tmp_path / "b.png", array)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0nonsense",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
    ],
)
def test_a_useless_orientation_counts_as_none(exif: bytes, tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif)
    assert files.read(tmp_path / "a.jpg", 2)[0].shape == (3, *SHAPE)


def test_sixteen_bits_are_turned_too(tmp_path: Path) -> None:
    turned(tmp_path / "a.png", 6)
    data = imagecodecs.png_encode(RGB.astype(np.uint16) * 257)
    source = (tmp_path / "a.png").read_bytes()
    at = source.index(b"eXIf") - 4
    chunk = source[at : at + 12 + int.from_bytes(source[at : at + 4], "big")]
    (tmp_path / "b.png").write_bytes(data[:33] + chunk + data[33:])
    agree(tmp_path / "b.png", files.read(tmp_path / "a.png", 2)[0].astype(np.uint16) * 257)


def test_large_images_are_no_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    agree(tmp_path / "a.png", RGB.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_animations_are_refused(suffix: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(RGB[..., n]) for n in range(3)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    for action in (files.read, files.geometry):
        with pytest.raises(files.FileError, match="3 frames where one image is needed"):
            action(tmp_path / f"a{suffix}", 2)
    with pytest.raises(files.FileError, match="3 frames"):
        files.dims_of(tmp_path / f"a{suffix}")
    assert "3 frames" in str(files.probe(tmp_path / f"a{suffix}", 2).problem)


def test_several_pages_and_pyramids(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([RGB[..., 0]] * 3), photometric="minisblack")
    assert "3x12x10) where an image is needed" in str(
        files.probe(tmp_path / "pages.tif", 2).problem
    )
    with tifffile.TiffWriter(tmp_path / "flat.tif") as writer:
        writer.write(RGB, photometric="rgb", metadata=None)
        writer.write(RGB[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    assert "different kinds" in str(files.probe(tmp_path / "flat.tif", 2).problem)
    with tifffile.TiffWriter(tmp_path / "nested.tif") as writer:
        writer.write(RGB, photometric="rgb", subifds=1)
        writer.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
    agree(tmp_path / "nested.tif", RGB.transpose(2, 0, 1))  # its full resolution


@pytest.mark.parametrize("suffix", [".gif", ".bmp"])
def test_what_is_only_read_is_not_written(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{suffix} files are only read. Write .png"):
        files.write(tmp_path / f"a{suffix}", MASK)
    assert not list(tmp_path.iterdir())


def test_another_format_under_a_pictures_name(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "float.tif").rename(tmp_path / "float.png")
    Image.fromarray(RGB).save(tmp_path / "jpeg.png", format="jpeg")
    with pytest.raises(files.FileError, match="no PNG, JPEG, GIF or BMP"):
        files.read(tmp_path / "float.png", 2)
    assert files.read(tmp_path / "jpeg.png", 2)[0].shape == (3, *SHAPE)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", [".gif", ".bmp", ".jpg", ".png"])
def test_a_cut_picture_is_found(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(RNG.integers(0, 256, (60, 50)).astype(np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(files.FileError, match=str(path)):
        files.read(path, 2)


# --- palettes of masks ----------------------------------------------------------------------------

BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 0, 0)
GREYS = [(g, g, g) for g in range(256)]
BW = MASK * 255


@pytest.mark.parametrize(
    ("name", "indices", "colours", "expected"),
    [
        ("black, white", MASK, [BLACK, WHITE], BW),
        ("white, black", 1 - MASK, [WHITE, BLACK], BW),
        ("nothing but white", MASK * 0, [WHITE, BLACK], MASK * 0 + 255),
        ("nothing but black", MASK * 0, [BLACK, WHITE], MASK * 0),
        ("padded with black", MASK, [BLACK, WHITE, BLACK, BLACK], BW),
        ("all greys", BW, GREYS, BW),
        ("classes under greys", CLASSES, GREYS, CLASSES),
        ("a picture's colours", MASK * 215 + 10, [RED] * 10 + [BLACK] + [RED] * 214 + [WHITE], BW),
        ("classes in colour", CLASSES, [BLACK, WHITE, RED], CLASSES),
        ("two of three classes", MASK, [BLACK, WHITE, RED], MASK),
        ("the first and third class", MASK * 2, [BLACK, RED, WHITE], MASK * 2),
        ("one class alone", MASK * 0 + 1, [BLACK, WHITE, RED], MASK * 0 + 1),
        ("classes without colours", MASK * 2, [BLACK, RED, BLACK], MASK * 2),
        ("nothing but black in the palette", MASK, [BLACK, BLACK], MASK),
        (
            "ignored border",
            MASK + (VIEW == 0) * np.uint8(255),
            [BLACK, RED, *[BLACK] * 253, WHITE],
            MASK + (VIEW == 0) * np.uint8(255),
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif", ".bmp"])
def test_a_palette_says_classes_or_black_and_white(
    suffix: str, name: str, indices: np.ndarray, colours: list, expected: np.ndarray, tmp_path: Path
) -> None:
    found = labels(palette(tmp_path / f"a{suffix}", indices.astype(np.uint8), colours))
    if set(np.unique(expected)) == {0, 255}:
        assert set(np.unique(found)) in (
            {0, 255},
            {0, 1},
        )  # writers shorten black and white to one bit
        found = (found > 0) * np.uint8(255)
    np.testing.assert_array_equal(found, expected)


# --- what the check of a data set says ------------------------------------------------------------


def system(root: Path, **data) -> config.Config:
    data = {"root": str(root), "dims": 2, "patch": {"size": [8, 8]}, **data}
    return config.from_dict({"name": "t", "network": "unet", "losses": ["dice"], "data": data})


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def add(
    root: Path,
    name: str,
    mask: np.ndarray = MASK * 255,
    image: np.ndarray | None = None,
    suffix: str = ".png",
) -> None:
    write(
        root / "images" / f"{name}.png",
        RNG.integers(0, 256, RGB.shape).astype(np.uint8) if image is None else image,
    )
    write(root / "masks" / f"{name}{suffix}", mask)


def check(
    root: Path, **data
) -> tuple[cases.Found, list[properties.CaseProperties], list[Fault], config.Config]:
    settings = system(root, **data)
    found = cases.find(settings.data, settings.roles, root)
    facts = properties.examine(found.train, settings, None, workers=1)
    return found, facts, [*found.faults, *checks.faults(facts, found.train, settings)], settings


def only(faults: list[Fault]) -> Fault:
    (fault,) = faults
    return fault


def test_every_bad_file_is_named_at_once(tmp_path: Path) -> None:
    bad: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
        "truncated png": (lambda i, m: i.write_bytes(i.read_bytes()[:-30]), "truncated"),
        "noise": (lambda i, m: i.write_bytes(RNG.bytes(500)), "no PNG"),
        "no bytes": (lambda i, m: i.write_bytes(b""), "is empty (0 bytes)"),
        "noise in a mask": (lambda i, m: m.write_bytes(RNG.bytes(500)), "no PNG"),
        "another size": (
            lambda i, m: write(m, MASK[:-1]),
            "has shape 11x10, its image another size.png has 12x10",
        ),
        "turned": (lambda i, m: write(m, MASK.T), "has shape 10x12"),
        "greys": (lambda i, m: write(m, MASK * 250 + 3), "holds labels outside 0 to 1: 3 ("),
        "mask in colours": (lambda i, m: write(m, RGB), "3 different channels"),
        "hidden": (lambda i, m: write(m, np.dstack([MASK * 0, MASK * 255])), "alpha channel"),
        "deep": (lambda i, m: write(i, RGB[..., 0].astype(np.uint16) * 257), "has 1 channels"),
        "one pixel": (lambda i, m: (write(i, RGB[:1, :1]), write(m, MASK[:1, :1])), "is constant"),
    }
    for name, (spoil, _) in bad.items():
        add(tmp_path, name)
        spoil(tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.png")
    add(tmp_path, "jpeg", suffix=".png")
    write(tmp_path / "jpeg.jpg", RNG.integers(0, 256, (80, 80, 3)).astype(np.uint8))
    (tmp_path / "images" / "jpeg.png").write_bytes((tmp_path / "jpeg.jpg").read_bytes()[:900])
    faults = [f for f in check(tmp_path)[2] if f.severity == "error"]
    assert {f.path.stem for f in faults} == {*bad, "jpeg"}
    for fault in faults:
        word = bad[fault.path.stem][1] if fault.path.stem != "jpeg" else "cannot be read to its end"
        assert word in fault.problem, fault
        assert fault.suggestion
    assert "EXIF" in only([f for f in faults if f.path.stem == "turned"]).suggestion


def test_what_looks_odd_but_is_sound_has_no_fault(tmp_path: Path) -> None:
    alpha = np.full((*SHAPE, 1), 77, np.uint8)
    masks: dict[str, np.ndarray] = {
        "0/1": MASK,
        "0/255": MASK * 255,
        "bool": MASK.astype(bool),
        "grey in colour": np.dstack([MASK * 255] * 3),
        "alpha": np.dstack([MASK * 255, MASK * 255, MASK * 255, alpha]),
        "see-through": np.dstack([np.dstack([MASK * 255] * 3), MASK * 255]),
        "16 bits": MASK.astype(np.uint16) * 65535,
        "16-bit classes": MASK.astype(np.uint16),
    }
    for name, mask in masks.items():
        add(tmp_path, name, mask)
    for name, colours in {"gif": [BLACK, WHITE], "indexed": [BLACK, RED]}.items():
        add(tmp_path, name)
        (tmp_path / "masks" / f"{name}.png").unlink()
        palette(tmp_path / "masks" / f"{name}.{'gif' if name == 'gif' else 'png'}", MASK, colours)
    write(tmp_path / "images" / "alpha.png", np.dstack([RGB, alpha]))
    found, facts, faults, settings = check(tmp_path)
    assert faults == []
    for stored in cache.build(found.train, facts, settings, tmp_path / "store"):
        np.testing.assert_array_equal(
            stored.targets["label"].array, MASK[None], err_msg=stored.case.id
        )
        assert stored.targets["label"].dtype == "uint8"


def test_an_image_of_sixteen_bits_stays_one(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, SHAPE).astype(np.uint16)
    add(tmp_path, "a", image=deep)
    found, facts, faults, settings = check(tmp_path)
    assert faults == []
    (stored,) = cache.build(found.train, facts, settings, tmp_path / "store")
    np.testing.assert_array_equal(stored.image.array[0], deep)


def test_an_empty_mask_is_a_warning(tmp_path: Path) -> None:
    add(tmp_path, "a", MASK * 0)
    fault = only(check(tmp_path)[2])
    assert (fault.severity, fault.problem) == ("warning", "has no foreground")


@pytest.mark.parametrize(("top", "whole"), [(65535, True), (65534, False)])
def test_the_white_of_sixteen_bits(top: int, whole: bool, tmp_path: Path) -> None:
    add(tmp_path, "a", MASK.astype(np.uint16) * top)
    assert (check(tmp_path)[2] == []) == whole


# --- greys in masks -------------------------------------------------------------------------------

BIG = np.kron(MASK, np.ones((7, 7), np.uint8))


def test_a_mask_kept_as_jpeg_is_refused_with_its_cure_and_read_with_it(tmp_path: Path) -> None:
    image = RNG.integers(0, 256, (*BIG.shape, 3)).astype(np.uint8)
    add(tmp_path, "a", BIG * 255, image, ".jpg")
    add(tmp_path, "b", np.dstack([BIG * 255] * 3), image // 2, ".jpg")
    greys = [f for f in check(tmp_path)[2] if "labels outside" in f.problem]
    assert {f.path.stem for f in greys} == {"a", "b"}
    assert all("data.binarise: 127" in f.suggestion for f in greys)
    found, facts, faults, settings = check(tmp_path, binarise=127)
    assert faults == []
    assert [set(f.label_values["label"]) for f in facts] == [{"0", "1"}] * 2
    for stored in cache.build(found.train, facts, settings, tmp_path / "store"):
        np.testing.assert_array_equal(stored.targets["label"].array[0], BIG)
        np.testing.assert_array_equal(
            targets.read_labels(stored.case.targets["label"], settings.data)[0], BIG
        )


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ([3, 250], True),
        ([0, 60, 255], True),
        ([0, 1, 255], False),
        ([0, 2, 3], False),
        ([0, 300], False),
        (list(range(0, 256, 20)), True),
    ],
)
def test_the_hint_is_given_where_it_may_help(values: list[int], hint: bool, tmp_path: Path) -> None:
    mask = np.resize(values, SHAPE).astype(np.uint16)
    add(tmp_path, "a", mask)
    assert ("data.binarise" in only(check(tmp_path)[2]).suggestion) == hint
    if max(values) >= 4:
        assert "data.binarise" not in only(check(tmp_path, classes=4)[2]).suggestion


def test_a_threshold_keeps_the_ignored_value(tmp_path: Path) -> None:
    mask = np.resize(np.array([0, 7, 127, 128, 200, 255], np.uint8), SHAPE)
    add(tmp_path, "a", mask)
    settings = system(tmp_path, binarise=127, ignore_label=255)
    expected = np.where(mask == 255, 255, mask > 127)
    np.testing.assert_array_equal(
        targets.read_labels(tmp_path / "masks" / "a.png", settings.data)[0], expected
    )
    np.testing.assert_array_equal(
        targets.read_labels(tmp_path / "masks" / "a.png", system(tmp_path, binarise=127).data)[0],
        mask > 127,
    )


def test_a_threshold_is_part_of_what_is_kept(tmp_path: Path) -> None:
    mask = np.resize(np.array([0, 50, 255], np.uint8), SHAPE)
    add(tmp_path, "a", mask)

    def labels_of(**data) -> np.ndarray:
        settings = system(tmp_path, **data)
        found = cases.find(settings.data, settings.roles, tmp_path).train
        facts = properties.examine(found, settings, tmp_path / "store")
        assert checks.faults(facts, found, settings) == []
        return np.array(
            cache.build(found, facts, settings, tmp_path / "store")[0].targets["label"].array[0]
        )

    np.testing.assert_array_equal(labels_of(binarise=127), mask > 127)
    np.testing.assert_array_equal(labels_of(binarise=40), mask > 40)
    np.testing.assert_array_equal(
        labels_of(binarise=40, ignore_label=50), np.where(mask == 50, 50, mask > 40)
    )


def test_a_threshold_above_everything_and_values_that_are_none(tmp_path: Path) -> None:
    add(tmp_path, "a", MASK)
    fault = only(check(tmp_path, binarise=127)[2])
    assert (fault.severity, "data.binarise: 127" in fault.suggestion) == ("warning", True)
    files.write(tmp_path / "masks" / "a.npy", np.where(MASK == 1, np.nan, 0.0).astype(np.float32))
    (tmp_path / "masks" / "a.png").unlink()
    assert "values that are NaN" in only(check(tmp_path, binarise=127)[2]).problem


# --- field of view --------------------------------------------------------------------------------

FOLDERS = {"image": "images", "label": "masks", "fov": "fov"}
WITH_VIEW: dict[str, Any] = {"folders": FOLDERS, "frames": {"fov": "fov"}}


def test_a_field_of_view_is_kept_as_zeros_and_ones(tmp_path: Path) -> None:
    views = {
        "a": VIEW,
        "b": VIEW * 255,
        "c": VIEW.astype(bool),
        "d": np.ones_like(VIEW) * 255,
        "e": VIEW.astype(np.uint16) * 65535,
    }
    for name, view in views.items():
        add(tmp_path, name, CLASSES)
        write(tmp_path / "fov" / f"{name}.png", view)
    found, facts, faults, settings = check(tmp_path, classes=3, ignore_label=1, **WITH_VIEW)
    assert faults == []
    for stored in cache.build(found.train, facts, settings, tmp_path / "store"):
        view = stored.targets["fov"].array
        assert (view.dtype, view.shape) == ("uint8", (1, *SHAPE))
        np.testing.assert_array_equal(view[0], views[stored.case.id] > 0)
        np.testing.assert_array_equal(
            targets.read_mask(stored.case.targets["fov"], settings.data), view
        )
        sample = training_chain(settings)({"stored": stored})
        assert "fov" not in sample


def test_a_field_of_view_has_faults_of_its_own(tmp_path: Path) -> None:
    views = {"empty": VIEW * 0, "greys": VIEW * 250, "size": VIEW[:-2], "classes": CLASSES}
    for name, view in views.items():
        add(tmp_path, name)
        write(tmp_path / "fov" / f"{name}.png", view)
    add(tmp_path, "lost")
    words = {
        "empty": "nothing would be counted",
        "greys": "250 (",
        "size": "has shape 10x10",
        "classes": "2 (",
        "lost": "has no fov",
    }
    faults = check(tmp_path, ignore_label=2, **WITH_VIEW)[2]
    assert {f.path.stem for f in faults} == set(words)
    for fault in faults:
        assert fault.severity == "error"
        assert words[fault.path.stem] in fault.problem
    for name in ("empty", "greys", "classes"):
        with pytest.raises(files.FileError, match=words[name].replace("(", r"\(")):
            targets.read_mask(
                tmp_path / "fov" / f"{name}.png", system(tmp_path, ignore_label=2).data
            )
    settings = system(tmp_path, binarise=127)
    np.testing.assert_array_equal(
        targets.read_mask(tmp_path / "fov" / "greys.png", settings.data)[0], VIEW
    )


@pytest.mark.parametrize("layout", ["competition", "nnunet"])
def test_other_layouts_have_no_field_of_view(layout: str, tmp_path: Path) -> None:
    names = {
        "competition": ("train_images/a", "train_labels/a"),
        "nnunet": ("imagesTr/a_0000", "labelsTr/a"),
    }[layout]
    for name in names:
        write(tmp_path / f"{name}.png", RGB[..., 0])
    settings = system(tmp_path, layout=layout, **WITH_VIEW)
    fault = only(list(cases.find(settings.data, settings.roles, tmp_path).faults))
    assert (fault.severity, fault.problem) == ("error", "has no folder for the field of view 'fov'")
    assert "data.layout: folders" in fault.suggestion


# --- real data ------------------------------------------------------------------------------------


def test_chase_db1(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "chase_db1"
    settings = system(root, folds={"by": "group", "pattern": r"_(\d+)[LR]$"}, **WITH_VIEW)
    found = cases.find(settings.data, settings.roles, root)
    assert (found.layout, len(found.train), len(found.test), found.faults) == ("folders", 10, 4, ())
    assert [c.group for c in found.train] == [f"{n:02d}" for n in range(1, 6) for _ in "LR"]
    assert [c.id for c in found.test] == ["Image_06L", "Image_06R", "Image_07L", "Image_07R"]
    assert all(set(c.targets) == {"label", "fov"} for c in (*found.train, *found.test))
    few = found.train[:2]
    facts = properties.examine(few, settings, None, workers=1)
    assert checks.faults(facts, few, settings) == []
    assert [f.shapes for f in facts] == [
        {"image": (3, 960, 999), "label": (1, 960, 999), "fov": (1, 960, 999)}
    ] * 2
