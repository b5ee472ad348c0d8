"""Files: many ways to store one array read alike, damage is always found, writing is whole,
repeatable and keeps the geometry.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipeline import files
from pipeline.records import Geometry, UserError

quick = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

STACK = np.random.default_rng(0).integers(0, 9, (5, 24, 18)).astype(np.uint8)
PLANE = np.kron(STACK[0], np.ones((3, 3), np.uint8)) * 20
COLOUR = np.stack([PLANE, PLANE[::-1], PLANE[:, ::-1]])

Writer = Callable[[Path], np.ndarray]


def tiff(array: np.ndarray = STACK, suffix: str = ".tif", **options) -> tuple[str, Writer]:
    def write(path: Path) -> np.ndarray:
        tifffile.imwrite(path, array, **options)
        return array

    return suffix, write


def nifti(
    array: np.ndarray = STACK, suffix: str = ".nii.gz", kind: type = nibabel.Nifti1Image
) -> tuple[str, Writer]:
    def write(path: Path) -> np.ndarray:
        nibabel.save(kind(array, np.diag([2, 3, 4, 1]), dtype=array.dtype), path)
        return array

    return suffix, write


def pil_stack(path: Path) -> np.ndarray:
    first, *rest = (Image.fromarray(page) for page in STACK)
    first.save(path, save_all=True, append_images=rest, compression="tiff_lzw")
    return STACK


def big_endian_nifti(path: Path) -> np.ndarray:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nibabel.save(nibabel.Nifti1Image(STACK.astype(">i2"), np.eye(4), header), path)
    return STACK.astype(np.int16)


def load_nifti(path: Path) -> Any:
    return nibabel.load(path)


def scaled_nifti(path: Path) -> np.ndarray:
    image = nibabel.Nifti1Image(STACK.astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    with path.open("wb") as stream:
        block = image.header.copy()
        block["vox_offset"] = 352
        block["magic"] = b"n+1"
        stream.write(block.binaryblock + b"\0" * 4 + STACK.astype(np.int16).tobytes("F"))
    return STACK * 0.5 + 3


def time_axis_of_one(path: Path) -> np.ndarray:
    nibabel.save(nibabel.Nifti1Image(STACK[..., None], np.eye(4)), path)
    return STACK


def npy(path: Path) -> np.ndarray:
    np.save(path, STACK)
    return STACK


plain = {"metadata": None, "photometric": "minisblack"}
VOLUMES: dict[str, tuple[str, Writer]] = {
    "lzw": tiff(compression="lzw", **plain),
    "lzw with predictor": tiff(compression="lzw", predictor=True, **plain),
    "zlib": tiff(compression="zlib", **plain),
    "zstd": tiff(compression="zstd", **plain),
    "uncompressed": tiff(**plain),
    "many strips": tiff(compression="lzw", rowsperstrip=5, **plain),
    "tiles": tiff(np.tile(STACK, (1, 3, 3)), tile=(16, 16), compression="zlib", **plain),
    "tifffile's own description": tiff(photometric="minisblack"),
    "one directory": tiff(truncate=True, photometric="minisblack"),
    "bigtiff": tiff(bigtiff=True, compression="lzw", **plain),
    "big-endian": tiff(STACK.astype(np.uint16) * 300, byteorder=">", compression="lzw", **plain),
    "imagej": tiff(imagej=True, metadata={"axes": "ZYX"}),
    "imagej time": tiff(imagej=True, metadata={"axes": "TYX"}),
    "ome": tiff(ome=True, metadata={"axes": "ZYX"}, photometric="minisblack"),
    "bigtiff ome, big-endian": tiff(
        STACK.astype(np.int32), ome=True, bigtiff=True, byteorder=">", metadata={"axes": "ZYX"}
    ),
    "float32": tiff(STACK.astype(np.float32) / 7, compression="zlib", **plain),
    "float64": tiff(STACK / 7, **plain),
    "int8": tiff(STACK.astype(np.int8) - 4, **plain),
    "pillow": (".tiff", pil_stack),
    "upper case": tiff(suffix=".TIF", compression="lzw", **plain),
    "nii.gz": nifti(),
    "nii": nifti(suffix=".nii"),
    "nifti-2": nifti(kind=nibabel.Nifti2Image),
    "int64 nifti": nifti(STACK.astype(np.int64)),
    "big-endian nifti": (".nii", big_endian_nifti),
    "scaled nifti": (".nii", scaled_nifti),
    "one time point": (".nii.gz", time_axis_of_one),
    "npy": (".npy", npy),
}


def pillow(array: np.ndarray, mode: str = "", **options) -> Writer:
    def write(path: Path) -> np.ndarray:
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(path, **options)
        return array[None] if array.ndim == 2 else np.moveaxis(array[..., :3], -1, 0)

    return write


def palette(path: Path) -> np.ndarray:
    image = Image.frombytes("P", PLANE.shape[::-1], PLANE.tobytes())
    image.putpalette([c for i in range(256) for c in (i, 255 - i, i // 2)])
    image.save(path)
    return np.stack([PLANE, 255 - PLANE, PLANE // 2])


def png16(path: Path, array: np.ndarray) -> np.ndarray:
    import imagecodecs

    path.write_bytes(imagecodecs.png_encode(array))
    return np.moveaxis(array, -1, 0)


RGB = np.moveaxis(COLOUR, 0, -1).copy()
RGBA = np.concatenate([RGB, np.full((*PLANE.shape, 1), 128, np.uint8)], axis=-1)
IMAGES: dict[str, tuple[str, Writer]] = {
    "grey png": (".png", pillow(PLANE)),
    "colour png": (".png", pillow(RGB)),
    "alpha png": (".png", pillow(RGBA)),
    "palette png": (".png", palette),
    "16-bit png": (".png", pillow(PLANE.astype(np.uint16) * 256 + 7)),
    "16-bit colour png": (".png", lambda path: png16(path, RGB.astype(np.uint16) * 257)),
    "black and white png": (".png", lambda path: pillow(PLANE > 60)(path).astype(np.uint8) * 255),
    "grey tiff": tiff(PLANE, compression="lzw", **plain),
    "colour tiff": (
        ".tif",
        lambda path: np.moveaxis(tiff(RGB, photometric="rgb", compression="zlib")[1](path), -1, 0),
    ),
    "planar tiff": tiff(COLOUR, photometric="rgb", planarconfig="separate"),
    "alpha tiff": (
        ".tif",
        lambda path: np.moveaxis(
            tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"])[1](path), -1, 0
        )[:3],
    ),
    "channels of imagej": tiff(COLOUR, imagej=True, metadata={"axes": "CYX"}),
    "palette tiff": (".tif", palette),
    "flat nifti": (".nii.gz", lambda path: nifti(PLANE[..., None])[1](path)[None, ..., 0]),
    "two axes of nifti": nifti(PLANE),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_read_alike_from_every_format(name: str, tmp_path: Path) -> None:
    suffix, write = VOLUMES[name]
    path = tmp_path / f"vólume №1{suffix}"
    expected = write(path)[None]
    array, geometry = files.read(path, 3)
    assert array.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(array, expected)
    assert array.flags.c_contiguous
    assert files.probe(path, 3) == files.Probe(
        shape=expected.shape, dtype=array.dtype.name, problem=None
    )
    assert files.geometry(path, 3) == geometry
    assert files.dims_of(path) == 3
    if suffix != ".npy":  # (5, 24, 18) may as well be an image of five channels there
        with pytest.raises(files.FileError, match="where an image is needed"):
            files.read(path, 2)


@pytest.mark.parametrize("name", IMAGES)
def test_images_read_alike_from_every_format(name: str, tmp_path: Path) -> None:
    suffix, write = IMAGES[name]
    path = tmp_path / f"image{suffix}"
    expected = write(path)
    expected = expected if expected.ndim == 3 else expected[None]
    array, geometry = files.read(path, 2)
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)
    assert files.probe(path, 2) == files.Probe(
        shape=expected.shape, dtype=array.dtype.name, problem=None
    )
    assert files.geometry(path, 2) == geometry
    if name != "flat nifti":  # a volume of one slice, too
        assert files.dims_of(path) == 2
        assert "where a volume is needed" in str(files.probe(path, 3).problem)


def test_channels_of_volumes_come_first(tmp_path: Path) -> None:
    both = np.stack([STACK, STACK[::-1]])
    tifffile.imwrite(
        tmp_path / "a.tif", both.swapaxes(0, 1), imagej=True, metadata={"axes": "ZCYX"}
    )
    tifffile.imwrite(tmp_path / "b.tif", both, metadata={"axes": "CZYX"}, photometric="minisblack")
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(both, 0, -1), np.eye(4)), tmp_path / "c.nii.gz")
    for name in ("a.tif", "b.tif", "c.nii.gz"):
        np.testing.assert_array_equal(files.read(tmp_path / name, 3)[0], both)


def test_a_palette_gives_indices_for_labels(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        palette(tmp_path / name)
        np.testing.assert_array_equal(files.read(tmp_path / name, 2, labels=True)[0], PLANE[None])


@pytest.mark.parametrize("mode", ["L", "P"])
@pytest.mark.parametrize("extra", [1, 2])
def test_more_alpha_than_samples_is_refused(tmp_path: Path, mode: str, extra: int) -> None:
    path = tmp_path / "a.tif"
    Image.frombytes(mode, PLANE.shape[::-1], PLANE.tobytes()).save(
        path, tiffinfo={338: (2,) * extra}
    )
    assert f"{extra} samples beside the colours (tag 338) of 1 in all" in str(
        files.probe(path, 2).problem
    )
    with pytest.raises(files.FileError, match="tag 338"):
        files.read(path, 2)


def test_time_series_and_several_images_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "t.tif", np.stack([STACK] * 2), imagej=True, metadata={"axes": "TZYX"}
    )
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((3, 4, 5, 2, 2), np.uint8), np.eye(4)), tmp_path / "t.nii"
    )
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        writer.write(STACK[0])
        writer.write(STACK[0, :9])
    for name in ("t.tif", "t.nii", "s.tif"):
        with pytest.raises(files.FileError):
            files.read(tmp_path / name, 3)
        assert files.probe(tmp_path / name, 3).problem


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", STACK + 1j)
    with pytest.raises(files.FileError, match="complex128 values"):
        files.read(tmp_path / "a.npy", 3)
    with pytest.raises(UserError, match="complex128"):
        files.write(tmp_path / "b.tif", STACK + 1j)


# --- damage ---------------------------------------------------------------------------------------


def sample(name: str, folder: Path) -> tuple[Path, int, np.ndarray]:
    suffix, write = (VOLUMES | IMAGES)[name]
    path = folder / f"whole{suffix}"
    write(path)
    dims = 3 if name in VOLUMES else 2
    return path, dims, files.read(path, dims)[0]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize(
    "name",
    [n for n in VOLUMES if n not in ("int8", "float64", "imagej time", "upper case")]
    + ["colour png", "colour tiff"],
)
def test_truncated_files_are_found(name: str, share: float, tmp_path: Path) -> None:
    path, dims, _ = sample(name, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(files.FileError) as error:
        files.read(path, dims)
    assert str(path) in str(error.value)
    if not path.name.endswith(".nii.gz"):  # inside a compressed stream only reading finds it
        assert files.probe(path, dims).problem == error.value.problem


@quick
@given(
    name=st.sampled_from(
        ["lzw", "imagej", "ome", "one directory", "tiles", "nii.gz", "nii", "grey png"]
    ),
    share=st.floats(0, 1, exclude_max=True),
)
def test_a_cut_anywhere_is_an_error_or_harmless(name: str, share: float, tmp_path: Path) -> None:
    path, dims, expected = sample(name, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    try:
        array, _ = files.read(path, dims)
    except files.FileError:
        return
    np.testing.assert_array_equal(array, expected)


@quick
@given(
    name=st.sampled_from(["lzw", "zlib", "bigtiff", "ome", "nii.gz", "nii", "npy", "colour png"]),
    data=st.data(),
)
def test_flipped_bytes_never_surprise(name: str, data: st.DataObject, tmp_path: Path) -> None:
    path, dims, _ = sample(name, tmp_path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    files.probe(path, dims)
    with contextlib.suppress(files.FileError):
        files.read(path, dims)


def pages_of(path: Path) -> list[tuple[int, int]]:
    """Offset of each page's directory, and of the link to the next one (classic little-endian
    TIFF).
    """
    data, found = path.read_bytes(), []
    (offset,) = struct.unpack_from("<I", data, 4)
    while offset:
        link = offset + 2 + 12 * struct.unpack_from("<H", data, offset)[0]
        found.append((offset, link))
        (offset,) = struct.unpack_from("<I", data, link)
    return found


def test_a_page_short_with_a_dangling_link_is_found(tmp_path: Path) -> None:
    """The case that tifffile only logs: it returns four pages of five."""
    path, *_ = sample("lzw", tmp_path)
    pages = pages_of(path)
    path.write_bytes(path.read_bytes()[: pages[4][0]])
    assert "page 5 should begin" in str(files.probe(path, 3).problem)
    with pytest.raises(files.FileError, match="truncated"):
        files.read(path, 3)


@pytest.mark.parametrize("name", ["tifffile's own description", "imagej", "ome"])
def test_fewer_pages_than_announced_are_found(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    VOLUMES[name][1](path)
    data = bytearray(path.read_bytes())
    order = "<I" if data[:2] == b"II" else ">I"
    with tifffile.TiffFile(path) as tif:
        page: Any = tif.pages.get(3)
        link = page.offset + 2 + 12 * len(page.tags)
    struct.pack_into(order, data, link, 0)
    path.write_bytes(bytes(data))
    assert "announces 5 pages and holds 4" in str(files.probe(path, 3).problem)
    with pytest.raises(files.FileError, match="announces 5 pages"):
        files.read(path, 3)


def test_a_chain_of_pages_that_turns_back_is_found(tmp_path: Path) -> None:
    path, *_ = sample("lzw", tmp_path)
    data, pages = bytearray(path.read_bytes()), pages_of(path)
    struct.pack_into("<I", data, pages[4][1], pages[2][0])
    path.write_bytes(bytes(data))
    assert "turns back" in str(files.probe(path, 3).problem)


def test_a_corrupt_strip_is_found(tmp_path: Path) -> None:
    path, *_ = sample("lzw", tmp_path)
    with tifffile.TiffFile(path) as tif:
        start, count = tif.pages.get(2).dataoffsets[0], tif.pages.get(2).databytecounts[0]
    data = bytearray(path.read_bytes())
    data[start : start + count] = b"\xff" * count
    path.write_bytes(bytes(data))
    assert files.probe(path, 3).problem is None
    with pytest.raises(files.FileError, match="decoded"):
        files.read(path, 3)


def test_a_wrong_checksum_is_found(tmp_path: Path) -> None:
    path, *_ = sample("nii.gz", tmp_path)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(files.FileError, match="CRC"):
        files.read(path, 3)


def test_pages_of_different_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(STACK[0], **plain)
        writer.write(STACK[1].astype(np.uint16), **plain)
    assert "different kinds" in str(files.probe(path, 3).problem)


def test_hopeless_paths_have_a_name_for_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("no image at all, but long enough for a header")
    (tmp_path / "plain.nii.gz").write_text("not compressed")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "loop.tif").symlink_to(tmp_path / "loop.tif")
    (tmp_path / "broken.tif").symlink_to(tmp_path / "gone.tif")
    words = {
        "empty.tif": "0 bytes",
        "text.tif": "no TIFF file",
        "plain.nii.gz": "cannot be",
        "notes.txt": "suffix",
        "folder.tif": "is a folder",
        "loop.tif": "leads back to itself",
        "broken.tif": "gone.tif, which does not exist",
        "absent.tif": "does not exist",
    }
    for name, word in words.items():
        assert word in str(files.probe(tmp_path / name, 3).problem), name
        with pytest.raises(files.FileError, match=word):
            files.read(tmp_path / name, 3)


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    path, dims, expected = sample("lzw", tmp_path)
    (tmp_path / "link.tif").symlink_to(path)
    np.testing.assert_array_equal(files.read(tmp_path / "link.tif", dims)[0], expected)


# --- names ----------------------------------------------------------------------------------------


def test_names() -> None:
    assert [files.stem(n) for n in ("a.tif", "b.nii.gz", "c.v2.NII.GZ", "d.txt", "e.tar.gz")] == [
        "a",
        "b",
        "c.v2",
        "d",
        "e.tar",
    ]
    images = ("a.tif", "a.TIFF", "a.nii.gz", "a.jpg", "ä b.png")
    assert all(files.is_image(n) for n in images)
    assert not any(
        files.is_image(n) for n in ("a.txt", ".hidden.tif", "._a.tif", ".tif", "Thumbs.db", "a.gz")
    )


# --- writing --------------------------------------------------------------------------------------


@quick
@given(
    suffix=st.sampled_from([".tif", ".tiff", ".nii", ".nii.gz", ".npy"]),
    array=arrays.arrays(
        st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]),
        arrays.array_shapes(min_dims=3, max_dims=4, min_side=1, max_side=6),
        elements=st.integers(0, 100),
    ),
)
def test_what_is_written_is_read(suffix: str, array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    files.write(path, array)
    back, _ = files.read(path, 3)
    np.testing.assert_array_equal(back, array.reshape(-1, *array.shape[-3:]))
    assert back.dtype == array.dtype
    once = path.read_bytes()
    files.write(path, array)
    assert path.read_bytes() == once


@pytest.mark.parametrize("suffix", [".tif", ".png", ".nii.gz", ".npy"])
@pytest.mark.parametrize("array", [PLANE[None], COLOUR, COLOUR.astype(np.uint16) * 9])
def test_images_are_written_in_two_dimensions(
    suffix: str, array: np.ndarray, tmp_path: Path
) -> None:
    files.write(tmp_path / f"a{suffix}", array, dims=2)
    back, geometry = files.read(tmp_path / f"a{suffix}", 2)
    np.testing.assert_array_equal(back, array)
    files.write(tmp_path / f"b{suffix}", back, geometry)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_jpeg_is_close(tmp_path: Path) -> None:
    smooth = np.indices((40, 60)).sum(0).astype(np.uint8)
    files.write(tmp_path / "a.jpg", smooth)
    assert np.abs(files.read(tmp_path / "a.jpg", 2)[0][0].astype(int) - smooth).max() <= 4


def test_arrays_that_a_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    for name, array in {
        "a.png": PLANE / 2,
        "b.jpg": PLANE.astype(np.uint16),
        "c.png": STACK,
        "d.tif": PLANE[0],
        "e.xyz": STACK,
    }.items():
        with pytest.raises(UserError):
            files.write(tmp_path / name, array)
    assert not list(tmp_path.iterdir())


def test_bool_is_written_as_numbers(tmp_path: Path) -> None:
    files.write(tmp_path / "a.tif", STACK > 3)
    assert files.read(tmp_path / "a.tif", 3)[0].dtype == np.uint8


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_geometry_survives_to_the_byte(suffix: str, kind: type, tmp_path: Path) -> None:
    source = kind(STACK.astype(np.int16), None)
    rotation = np.array(
        [[0.6, -0.8, 0, -31.7], [0.8, 0.6, 0, 12.3], [0, 0, 1.1, 1 / 3], [0, 0, 0, 1]]
    ) @ np.diag([0.7, 0.9, 1.3, 1])
    source.set_sform(rotation, code=4)
    source.set_qform(np.diag([-2, 3, 0.1, 1]), code=2)
    source.header.set_xyzt_units("mm", "sec")
    source.header["descrip"] = b"made by a scanner"
    nibabel.save(source, tmp_path / f"in{suffix}")
    _, geometry = files.read(tmp_path / f"in{suffix}", 3)
    geometry = Geometry(
        **json.loads(json.dumps({"format": geometry.format, "meta": geometry.meta}))
    )
    files.write(tmp_path / f"out{suffix}", (STACK > 3).astype(np.uint8), geometry)
    before, after = (load_nifti(tmp_path / f"{name}{suffix}") for name in ("in", "out"))
    assert after.header.get_data_dtype() == np.uint8
    assert type(after) is type(before)
    for field in list(before.header):
        if field not in ("datatype", "bitpix", "scl_slope", "scl_inter"):
            assert before.header[field].tobytes() == after.header[field].tobytes(), field
    assert before.affine.tobytes() == after.affine.tobytes()
    np.testing.assert_array_equal(np.asanyarray(after.dataobj), STACK > 3)


def test_nifti_images_keep_their_number_of_axes(tmp_path: Path) -> None:
    for name, array in {"two.nii": PLANE, "three.nii": PLANE[..., None]}.items():
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / name)
        pixels, geometry = files.read(tmp_path / name, 2)
        files.write(tmp_path / f"out_{name}", pixels, geometry)
        assert load_nifti(tmp_path / f"out_{name}").shape == array.shape


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32])
def test_imagej_scale_is_kept(dtype: type, tmp_path: Path) -> None:
    scale = {"axes": "ZYX", "spacing": 2.5, "unit": "\\u00B5m"}
    tifffile.imwrite(
        tmp_path / "in.tif", STACK, imagej=True, resolution=((2, 3), (7, 5)), metadata=scale
    )
    _, geometry = files.read(tmp_path / "in.tif", 3)
    files.write(tmp_path / "out.tif", STACK.astype(dtype), geometry)
    array, kept = files.read(tmp_path / "out.tif", 3)
    np.testing.assert_array_equal(array[0], STACK)
    assert {k: v for k, v in kept.meta.items() if k != "imagej"} == {
        k: v for k, v in geometry.meta.items() if k != "imagej"
    }
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.is_imagej == (dtype is not np.int32)
        assert tif.pages.first.tags.valueof("XResolution") == (2, 3)


def test_resolution_of_plain_tiff_is_kept(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "in.tif",
        PLANE,
        resolution=((300, 1), (150, 1)),
        resolutionunit="INCH",
        metadata=None,
    )
    array, geometry = files.read(tmp_path / "in.tif", 2)
    files.write(tmp_path / "out.tif", array, geometry)
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        page = tif.pages.first
        assert (
            page.tags.valueof("XResolution"),
            page.tags.valueof("YResolution"),
            page.resolutionunit,
        ) == ((300, 1), (150, 1), 2)


def test_ome_sizes_become_imagej_scale(tmp_path: Path) -> None:
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    tifffile.imwrite(
        tmp_path / "in.tif",
        STACK,
        ome=True,
        metadata={"axes": "ZYX", **sizes},
        photometric="minisblack",
    )
    array, geometry = files.read(tmp_path / "in.tif", 3)
    files.write(tmp_path / "out.tif", array, geometry)
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.imagej_metadata is not None
        assert (tif.imagej_metadata["spacing"], tif.imagej_metadata["unit"]) == (2.0, "\\u00B5m")
        assert tif.pages.first.resolution == (4.0, 2.0)


# --- whole or not at all --------------------------------------------------------------------------


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_text(path, "old")

    def fail(error: BaseException) -> None:
        with files.whole(path) as temp:
            temp.write_text("half of the n")
            raise error

    for error in (ValueError("broken"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail(error)
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_name_comes_after_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def kind(handle: int) -> str:
        return (
            "folder"
            if stat.S_ISDIR(os.fstat(handle).st_mode)
            else f"file of {os.fstat(handle).st_size}"
        )

    monkeypatch.setattr(
        os, "fsync", lambda handle: (steps.append(f"sync {kind(handle)}"), fsync(handle))[1]
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("rename"), replace(a, b))[1])
    files.write_bytes(tmp_path / "a.bin", b"12345")
    assert steps == ["sync file of 5", "rename", "sync folder"]


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        files.write(tmp_path / "a.tif", STACK)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.tif").stat().st_mode) == 0o640


def test_temporary_names_keep_the_suffix_and_fit_long_names(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 120 + ".nii.gz")
    with files.whole(path) as temp:
        assert temp.parent == path.parent
        assert temp.name.startswith(".tmp-")
        assert temp.name.endswith(".nii.gz")
        assert not files.is_image(temp)
        temp.write_text("x")
    assert path.read_text() == "x"


def test_a_full_disk_is_told_with_path_and_bytes(tmp_path: Path) -> None:
    """A real limit on the size of files in a child process: the kernel answers EFBIG."""
    (tmp_path / "a.bin").write_bytes(b"old")
    code = (
        "import resource, sys; from pathlib import Path; from pipeline import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: files.write_bytes(Path(sys.argv[1]), b'x' * 20000)\n"
        "except OSError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.bin")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{tmp_path / 'a.bin'}: File too large after 5000 bytes" in done.stdout
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_writer_leaves_the_old_file_and_a_sweepable_rest(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    code = (
        "import os, signal, sys; from pathlib import Path; from pipeline import files\n"
        "with files.whole(Path(sys.argv[1])) as temp:\n"
        "    temp.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.bin")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    assert len(files.remove_stale_temps(tmp_path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_sweep_leaves_what_is_being_written(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".tmp-not-ours").touch()
    with files.whole(tmp_path / "deep" / "a.tif") as temp:
        temp.write_text("x")
        other = temp.with_name(temp.name.replace(f"-{os.getpid()}-", "-1-"))  # process 1 is alive
        other.touch()
        foreign = temp.with_name(".tmp-ffffffff-99999-abcd.tif")
        foreign.touch()
        assert files.remove_stale_temps(tmp_path) == []
        os.utime(foreign, (0, 0))
        assert files.remove_stale_temps(tmp_path) == [foreign]
    assert (tmp_path / "deep" / "a.tif").is_file()


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(
        path,
        {
            "b": float("nan"),
            "a": [np.float32(0.5), np.int64(3), (1, Path("x"))],
            "ü": np.array([1.0, np.inf]),
        },
    )
    assert files.read_json(path) == {"b": None, "a": [0.5, 3, [1, "x"]], "ü": [1.0, None]}
    assert list(files.read_json(path)) == ["b", "a", "ü"]
    path.write_text("{half")
    with pytest.raises(files.FileError, match="JSONDecodeError"):
        files.read_json(path)


def test_sha256_is_the_standard_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert (
        files.sha256(tmp_path / "a")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_ovule(shared_data: Path) -> None:
    raw, _ = files.read(shared_data / "ovule" / "raw.tif", 3)
    cells, geometry = files.read(shared_data / "ovule" / "cells.tif", 3)
    assert (raw.shape, raw.dtype, int(raw.min()), int(raw.max())) == (
        (1, 32, 128, 128),
        np.uint8,
        13,
        254,
    )
    assert (cells.dtype, len(np.unique(cells)) - 1, geometry.format) == (np.uint16, 50, "tiff")
