"""TIFF whose description announces more or fewer slices than there are pages is refused with both
numbers; sound files stay.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline import files, train

STACK = np.random.default_rng(3).integers(0, 256, (4, 24, 28)).astype(np.uint8)


def ome(path: Path, array: np.ndarray = STACK, axes: str = "ZYX", **options: object) -> Path:
    tifffile.imwrite(
        path, array, ome=True, metadata={"axes": axes}, **{"photometric": "minisblack", **options}
    )
    return path


def edit(path: Path, old: str, new: str) -> Path:
    """Change the description in place, at equal length."""
    raw = path.read_bytes()
    assert raw.count(old.encode()) == 1
    assert len(old) == len(new)
    path.write_bytes(raw.replace(old.encode(), new.encode()))
    return path


def imagej(path: Path, array: np.ndarray = STACK) -> Path:
    """One page for each slice, unlike tifffile's own, with ImageJ's description."""
    with tifffile.TiffWriter(path) as writer:
        for n, page in enumerate(array):
            text = f"ImageJ=1.54f\nimages={len(array)}\nslices={len(array)}\n" if n == 0 else None
            writer.write(
                page, description=text, metadata=None, contiguous=False, photometric="minisblack"
            )
    return path


def shaped(path: Path, array: np.ndarray = STACK) -> Path:
    tifffile.imwrite(
        path, array, photometric="minisblack", compression="zlib", metadata={"axes": "ZYX"}
    )
    return path


WRONG: dict[str, tuple[Callable[[Path], Path], int, int]] = {
    "ome, fewer": (lambda p: edit(ome(p), 'SizeZ="4"', 'SizeZ="3"'), 3, 4),
    "ome, one": (lambda p: edit(ome(p), 'SizeZ="4"', 'SizeZ="1"'), 1, 4),
    "ome, more": (lambda p: edit(ome(p), 'SizeZ="4"', 'SizeZ="5"'), 5, 4),
    "ome, more channels": (lambda p: edit(ome(p), 'SizeC="1"', 'SizeC="2"'), 8, 4),
    "ome, compressed": (lambda p: edit(ome(p, compression="zlib"), 'SizeZ="4"', 'SizeZ="2"'), 2, 4),
    "ome, colour": (
        lambda p: edit(
            ome(p, np.stack([STACK] * 3, -1), "ZYXS", photometric="rgb"), 'SizeZ="4"', 'SizeZ="3"'
        ),
        3,
        4,
    ),
    "ome, only some are placed": (lambda p: edit(ome(p), 'PlaneCount="4"', 'PlaneCount="3"'), 4, 3),
    "imagej, fewer": (
        lambda p: edit(edit(imagej(p), "images=4", "images=3"), "slices=4", "slices=3"),
        3,
        4,
    ),
    "imagej, more": (
        lambda p: edit(edit(imagej(p), "images=4", "images=5"), "slices=4", "slices=5"),
        5,
        4,
    ),
    "imagej, fewer slices than images": (lambda p: edit(imagej(p), "slices=4", "slices=3"), 3, 4),
    "imagej, more slices than images": (lambda p: edit(imagej(p), "slices=4", "slices=5"), 5, 4),
    "shaped, fewer": (lambda p: edit(shaped(p), "[4, 24, 28]", "[3, 24, 28]"), 3, 4),
    "shaped, more": (lambda p: edit(shaped(p), "[4, 24, 28]", "[5, 24, 28]"), 5, 4),
}


@pytest.mark.parametrize("kind", WRONG)
def test_two_numbers_that_differ_are_refused(kind: str, tmp_path: Path) -> None:
    make, announced, held = WRONG[kind]
    path = make(tmp_path / "a.tif")
    for dims in (2, 3):
        problem = str(files.probe(path, dims).problem)
        assert re.search(r"announces|separate images|copy", problem), problem
        with pytest.raises(files.FileError):
            files.read(path, dims)
    problem = str(files.probe(path, 3).problem)
    assert {str(announced), str(held)} <= set(re.findall(r"\d+", problem)), problem
    with pytest.raises(files.FileError), files.view(path, 3):
        pass


def pyramid(path: Path) -> Path:
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(
            STACK, subifds=1, metadata={"axes": "ZYX"}, photometric="minisblack", tile=(16, 16)
        )
        writer.write(STACK[:, ::2, ::2], subfiletype=1, photometric="minisblack", tile=(16, 16))
    return path


def hyperstack(path: Path, **options: object) -> Path:
    tifffile.imwrite(
        path, np.stack([STACK, 255 - STACK], 1), imagej=True, metadata={"axes": "ZCYX"}, **options
    )
    return path


def first_described(path: Path) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for n, page in enumerate(STACK):
            writer.write(
                page, metadata={} if n == 0 else None, contiguous=False, photometric="minisblack"
            )
    return path


def plain(path: Path, array: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


SOUND: dict[str, tuple[Callable[[Path], Path], np.ndarray]] = {
    "ome": (ome, STACK[None]),
    "ome of channels": (
        lambda p: ome(p, np.stack([STACK, 255 - STACK]), "CZYX"),
        np.stack([STACK, 255 - STACK]),
    ),
    "ome of colours": (
        lambda p: ome(p, np.stack([STACK, 255 - STACK, STACK], -1), "ZYXS", photometric="rgb"),
        np.stack([STACK, 255 - STACK, STACK]),
    ),
    "ome of planar colours": (
        lambda p: ome(
            p,
            np.stack([STACK, 255 - STACK, STACK], 1),
            "ZSYX",
            photometric="rgb",
            planarconfig="separate",
        ),
        np.stack([STACK, 255 - STACK, STACK]),
    ),
    "ome pyramid": (pyramid, STACK[None]),
    "imagej hyperstack in one block": (hyperstack, np.stack([STACK, 255 - STACK])),
    "imagej hyperstack by pages": (
        lambda p: hyperstack(p, compression="zlib"),
        np.stack([STACK, 255 - STACK]),
    ),
    "imagej pages": (imagej, STACK[None]),
    "imagej colours": (
        lambda p: plain(
            p,
            np.stack([STACK, 255 - STACK, STACK], -1),
            imagej=True,
            photometric="rgb",
            metadata={"axes": "ZYXS"},
        ),
        np.stack([STACK, 255 - STACK, STACK]),
    ),
    "shaped": (shaped, STACK[None]),
    "shaped in one block": (
        lambda p: plain(p, STACK, truncate=True, photometric="minisblack"),
        STACK[None],
    ),
    "the first page described, as one": (first_described, STACK[None]),
    "no description": (
        lambda p: plain(p, STACK, metadata=None, photometric="minisblack"),
        STACK[None],
    ),
}


@pytest.mark.parametrize("kind", SOUND)
def test_sound_files_are_read_to_the_last_slice(kind: str, tmp_path: Path) -> None:
    make, expected = SOUND[kind]
    path = make(tmp_path / "a.tif")
    np.testing.assert_array_equal(files.read(path, 3)[0], expected)
    assert files.probe(path, 3).shape == expected.shape
    with files.view(path, 3) as (pixels, _):
        np.testing.assert_array_equal(np.concatenate([pixels[:, :3], pixels[:, 3:]], 1), expected)


def test_training_names_the_file_and_both_numbers(
    surfaces: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(surfaces, tmp_path / "data")
    path = tmp_path / "data" / "train_images" / "102.tif"
    edit(ome(path, tifffile.imread(path)), 'SizeZ="20"', 'SizeZ="19"')
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
    assert (
        f"error: {path}: announces 19 pages and holds 20. The file is incomplete or damaged: copy"
        in capsys.readouterr().out
    )


def test_prediction_fails_that_file_only(tmp_path: Path) -> None:
    from conftest import do_nothing_model

    from pipeline import predict

    (tmp_path / "in").mkdir()
    files.write(tmp_path / "in" / "good.tif", STACK[0])
    edit(ome(tmp_path / "in" / "bad.tif", STACK[:2], "CYX"), 'SizeC="2"', 'SizeC="1"')
    model = do_nothing_model(tmp_path / "m.safetensors")
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
    assert "announces 1 pages and holds 2" in json.dumps(rows["bad"])
    assert (tmp_path / "out" / "good.tif").is_file()
