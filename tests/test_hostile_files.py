"""Files that announce what they cannot hold, beside good ones: the good ones are done, the others
have words.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import small_models
import tifffile

from pipeline import files


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rest = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + rest


def empty_pages(count: int) -> bytes:
    return b"II*\0\x08\0\0\0" + b"".join(
        struct.pack("<HI", 0, 8 + 6 * (n + 1)) for n in range(count)
    )


def broken_lzw() -> bytes:
    """A Clear code and then a string: this ended the process."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((64, 64), np.uint8), compression="lzw")
    data = bytearray(stream.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as tif:
        start = tif.pages[0].dataoffsets[0]
    data[start : start + 3] = b"\x80\x4c\x20"
    return bytes(data)


def test_good_images_are_predicted_beside_hostile_ones(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.tif", "z.png"):
        files.write(images / name, rng.integers(0, 255, (1, 24, 24), dtype=np.uint8), dims=2)
    hostile = {
        "b.png": (png(60_000, 60_000), "can hold"),
        "c.png": (png(8, 8, chunk(b"abcd", b"") * 30_000), "chunks"),
        "d.tif": (empty_pages(300_000), "without width"),
        "e.tif": (broken_lzw(), "LZW"),
        "f.png": (b"no picture", "is no PNG"),
    }
    for name, (data, _) in hostile.items():
        (images / name).write_bytes(data)
    model = small_models.model_file(tmp_path, dims=2)
    assert small_models.run_predict(model, images, out) == 3
    found = {row["id"]: row for row in small_models.rows(out)}
    assert {name for name, row in found.items() if not row.get("error")} == {"a", "z"}
    for name, (_, words) in hostile.items():
        assert words in str(found[name[0]]), name


def test_good_volumes_are_predicted_beside_hostile_ones(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("a.mha", "z.nrrd"):
        files.write(images / name, small_models.noise((16, 17, 18)))
    good = (images / "a.mha").read_bytes()
    lines = good.split(b"\n")
    huge = good.replace(b"DimSize = 16 17 18", b"DimSize = 60000 60000 60000")
    assert huge != good
    read = b"\n".join(line for line in lines[:12] if b"Compressed" not in line) + b"\n"
    axes = b"NRRD0004\ntype: uint8\ndimension: 9999999\n"
    mark = bytes(128) + b"DICM"
    hostile = {
        "b.mha": (huge, "can hold"),
        "c.mha": (b"".join(b"A%d = 1\n" % n for n in range(200_000)), "cut off"),
        "d.mha": (
            read.split(b"ElementDataFile")[0] + b"ElementDataFile = /etc/passwd\n",
            "outside",
        ),
        "e.nrrd": (b"NRRD0004\n" + b"#" * 2**21, "header of more than"),
        "f.nrrd": (axes + b"sizes: 1\nencoding: raw\n\n", "9999999 whole numbers"),
        "g.dcm": (
            mark + b"\2\0\x10\0OB\0\0\xff\xff\xff\xff" + bytes(99),
            "an element of 4294967295",
        ),
    }
    for name, (data, _) in hostile.items():
        (images / name).write_bytes(data)
    (images / "h").mkdir()
    (images / "h" / "1").write_bytes(hostile["g.dcm"][0])
    model = small_models.model_file(tmp_path)
    assert small_models.run_predict(model, images, out) == 3
    found = {row["id"]: row for row in small_models.rows(out)}
    assert {name for name, row in found.items() if not row.get("error")} == {"a", "z"}
    assert "an element of" in found["h"]["error"]
    for name, (_, words) in hostile.items():
        assert words in str(found[name[0]]), (name, found[name[0]])


def test_odd_but_good_nifti_are_predicted(tmp_path: Path) -> None:
    """A gzip file may begin with an empty stream or consist of many short ones, and a header may
    end in padding after its extensions.
    """
    image = nibabel.Nifti1Image(small_models.noise((16, 16, 16)), np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"a comment"))
    data = image.to_bytes()
    (start,) = struct.unpack_from("<f", data, 108)
    padded = (
        data[:108]
        + struct.pack("<f", start + 8)
        + data[112 : int(start)]
        + bytes(8)
        + data[int(start) :]
    )
    images = tmp_path / "images"
    images.mkdir()
    (images / "empty.nii.gz").write_bytes(gzip.compress(b"") + gzip.compress(data))
    (images / "short.nii.gz").write_bytes(
        b"".join(gzip.compress(data[n : n + 100]) for n in range(0, len(data), 100))
    )
    (images / "padded.nii").write_bytes(padded)
    (images / "packed.nii.gz").write_bytes(gzip.compress(padded))
    model = small_models.model_file(tmp_path)
    assert small_models.run_predict(model, images, tmp_path / "out") == 0
    answers = {
        row["id"]: files.read(tmp_path / "out" / row["output"], 3)[0]
        for row in small_models.rows(tmp_path / "out")
    }
    assert len(answers) == 4
    assert all(np.array_equal(answer, answers["padded"]) for answer in answers.values())
