"""Files that announce what they cannot hold, beside good ones: the good ones are done, the others have words."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

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
    return b"II*\0\x08\0\0\0" + b"".join(struct.pack("<HI", 0, 8 + 6 * (n + 1)) for n in range(count))


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
