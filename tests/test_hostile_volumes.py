"""Volumes that announce more than they hold, and things that are no files, beside good ones:
through predict and the dry run.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from conftest import TINY, competition_folder
from small_models import model_file, noise, rows, run_predict

from pipeline import files, train
from pipeline.files import tiff_pages


def empty_pages(path: Path) -> None:
    """Two million pages of which none has a picture: 12 MB."""
    pages = b"".join(struct.pack("<HI", 0, 8 + 6 * (n + 1)) for n in range(2_000_000))
    path.write_bytes(b"II*\0\x08\0\0\0" + pages)


def small_pages(path: Path) -> None:
    """Twenty-one thousand pages of one pixel, all of the same one."""
    entries = [
        (256, 1),
        (257, 1),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, 1),
    ]
    body = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHIHxx", t, 3, 1, v) for t, v in entries
    )
    size = len(body) + 4
    pages = b"".join(body + struct.pack("<I", 16 + size * (n + 1)) for n in range(21_000))
    path.write_bytes(b"II*\0\x10\0\0\0" + bytes(8) + pages)


def header(path: Path) -> None:
    """An npy file of 10^12 bytes, of which a hundred are there."""
    text = (
        repr({"descr": "|u1", "fortran_order": False, "shape": (10_000, 10_000, 10_000)})
        .encode()
        .ljust(117)
        + b"\n"
    )
    path.write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(100))


def objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)


def axes(path: Path) -> None:
    """A NIfTI of 32767^3 voxels, gzipped, of which a hundred are there."""
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    content = bytearray(image.to_bytes())
    content[40:48] = struct.pack("<4h", 3, 32767, 32767, 32767)
    path.write_bytes(gzip.compress(bytes(content)))


def longer(path: Path) -> None:
    """A gzipped NIfTI of 64 voxels with 300 MB of zeros behind them."""
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    path.write_bytes(gzip.compress(image.to_bytes() + bytes(300_000_000), 1))


def chunks(path: Path) -> None:
    """A Zarr of 10^15 voxels that holds none."""
    files.write(path, np.zeros((4, 4, 4), np.uint8))
    found = next(p for p in path.rglob(".zarray"))
    document = json.loads(found.read_text())
    found.write_text(json.dumps({**document, "shape": [100_000] * 3}))


def outside(path: Path) -> None:
    """A Zarr whose image would lie in another folder."""
    files.write(path, np.zeros((4, 4, 4), np.uint8))
    document = json.loads((path / ".zattrs").read_text())
    document["multiscales"][0]["datasets"][0]["path"] = "../good.zarr/0"
    (path / ".zattrs").write_text(json.dumps(document))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.tif": (empty_pages, "page 1"),
    "pages.tif": (small_pages, "strips or tiles"),
    "header.npy": (header, "announces"),
    "objects.npy": (objects, "Python objects"),
    "axes.nii.gz": (axes, "announces"),
    "longer.nii.gz": (longer, "behind"),
    "chunks.zarr": (chunks, "chunks of"),
    "outside.zarr": (outside, "outside"),
    "pipe.tif": (os.mkfifo, "pipe"),
    "device.tif": (lambda path: path.symlink_to("/dev/zero"), "device"),
    "loop.tif": (lambda path: path.symlink_to(path), "leads back"),
    "gone.tif": (lambda path: path.symlink_to("nowhere"), "does not exist"),
    "folder.tif": (lambda path: path.mkdir(), "folder"),
    "file.zarr": (lambda path: path.write_bytes(b"x"), "folder"),
}


def test_good_volumes_are_predicted_beside_hostile_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_pages, "SEGMENTS", 20_000)
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("a.tif", "z.npy", "good.zarr"):
        files.write(images / name, noise((12, 16, 16)))
    for name, (make, _) in HOSTILE.items():
        make(images / name)
    assert run_predict(model_file(tmp_path), images, out) == 3
    found = {row["id"]: row for row in rows(out)}
    assert {name for name, row in found.items() if row["status"] == "done"} == {"a", "z", "good"}
    for name, (_, words) in HOSTILE.items():
        error = found[name.partition(".")[0]]["error"]
        assert words in error, (name, error)
        assert len(error) < 1000


@pytest.mark.parametrize("name", ["empty.tif", "pipe.tif", "device.tif", "loop.tif"])
@pytest.mark.parametrize("kind", ["train_images", "train_labels"])
def test_training_names_them_before_it_starts(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = competition_folder(tmp_path / "data", cases=4)
    (tmp_path / "tiny.yaml").write_text(TINY)
    place = data / kind / "100.tif"
    place.unlink()
    make, words = HOSTILE[name]
    make(place)
    arguments = [
        "--config",
        str(tmp_path / "tiny.yaml"),
        "--data-dir",
        str(data),
        "--out",
        str(tmp_path / "run"),
        "--dry-run",
    ]
    assert train.main(arguments) == 2
    said = capsys.readouterr()
    assert f"{kind}/100.tif" in said.out + said.err
    assert words in said.out + said.err


@pytest.mark.parametrize(
    ("compression", "pages"),
    [
        ("lzw", 10_000),
        pytest.param(None, 100_000, marks=pytest.mark.slow),
        pytest.param("lzw", 100_000, marks=pytest.mark.slow),
    ],
)
def test_long_stacks_are_real(tmp_path: Path, compression: str | None, pages: int) -> None:
    """A hundred thousand pages, as light-sheet microscopes write them."""
    stack = np.arange(pages, dtype=np.uint32).reshape(-1, 1, 1) + np.zeros((1, 2, 2), np.uint32)
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True) as tif:
        tif.write(stack, photometric="minisblack", compression=compression, metadata=None)
    array, _ = files.read(tmp_path / "a.tif", 3)
    assert np.array_equal(array[0], stack)


@pytest.mark.parametrize("announced", [15, 0, 10**6])
def test_blosc_chunks_shorter_than_they_say_are_refused_every_time(
    tmp_path: Path, announced: int
) -> None:
    """The decoder reads as far as the header says: what lay behind in memory was taken for the end
    of the chunk.
    """
    path, volume = tmp_path / "a.zarr", np.arange(2880, dtype=np.uint16).reshape(6, 20, 24)
    zarr.create_array(
        path, data=volume, chunks=volume.shape, zarr_format=2, compressors=numcodecs.Blosc()
    )
    chunk = path / "0.0.0"
    whole = chunk.read_bytes()
    damaged = whole[:12] + announced.to_bytes(4, "little") + whole[16:]
    for data in (damaged, whole[:-14], whole[:15], b""):
        chunk.write_bytes(data)
        for _ in range(3):
            with pytest.raises(files.FileError):
                files.read(path, 3)
    chunk.write_bytes(whole + bytes(7))  # as before: what is behind is not looked at
    np.testing.assert_array_equal(files.read(path, 3)[0][0], volume)
