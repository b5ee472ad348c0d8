"""Small sound files of every format that is read, and ways to damage them: at any byte, and where
their structure says something.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import random
import re
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import tifffile
import zarr
from PIL import Image

ODD = (
    0,
    1,
    2,
    3,
    7,
    8,
    13,
    16,
    255,
    256,
    4096,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
"""Numbers at which formats and readers change their minds."""

VOLUME = np.arange(6 * 20 * 24, dtype=np.uint16).reshape(6, 20, 24)
PICTURE = (np.arange(20 * 24 * 3) % 251).astype(np.uint8).reshape(20, 24, 3)


TIFFS = (
    "classic",
    "big",
    "motorola",
    "tiled",
    "lzw",
    "zstd",
    "jpeg",
    "jpeg2000",
    "webp",
    "png",
    "imagej",
    "ome",
    "rgb",
    "palette",
    "bits",
)


def tiff_seeds() -> dict[str, bytes]:
    kinds: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "classic": (VOLUME, {"metadata": None}),
        "big": (VOLUME, {"bigtiff": True}),
        "motorola": (VOLUME[0], {"byteorder": ">", "compression": "packbits"}),
        "tiled": (VOLUME, {"tile": (16, 16), "compression": "zlib", "metadata": None}),
        "lzw": (VOLUME, {"compression": "lzw", "predictor": True}),
        "zstd": (VOLUME, {"compression": "zstd", "rowsperstrip": 4}),
        "jpeg": (PICTURE, {"compression": "jpeg", "photometric": "rgb"}),
        "jpeg2000": (PICTURE, {"compression": "jpeg2000"}),
        "webp": (PICTURE, {"compression": "webp"}),
        "png": (PICTURE, {"compression": "png"}),
        "imagej": (VOLUME, {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 2.0}}),
        "ome": (
            VOLUME,
            {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}},
        ),
        "rgb": (PICTURE, {"photometric": "rgb", "planarconfig": "contig"}),
        "palette": (
            PICTURE[..., 0],
            {"photometric": "palette", "colormap": np.arange(768, dtype=np.uint16).reshape(3, 256)},
        ),
        "bits": (PICTURE[..., 0] > 99, {"metadata": None}),
    }
    seeds = {}
    for name, (array, options) in kinds.items():
        stream = io.BytesIO()
        tifffile.imwrite(stream, array, **options)
        seeds[name] = stream.getvalue()
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(VOLUME[0], subifds=1, metadata=None)
        writer.write(VOLUME[0, ::2, ::2], subfiletype=1, metadata=None)
    return seeds | {"reduced copy": stream.getvalue()}


def nifti_seeds() -> dict[str, bytes]:
    first = nibabel.Nifti1Image(VOLUME.T.copy(), np.eye(4))
    first.header.set_slope_inter(2.0, 1.0)
    noted = nibabel.Nifti1Image(VOLUME.T.copy(), np.eye(4))
    noted.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a comment"))
    return {
        "one": nibabel.Nifti1Image(VOLUME.T.copy(), np.eye(4)).to_bytes(),
        "scaled": first.to_bytes(),
        "extended": noted.to_bytes(),
        "two": nibabel.Nifti2Image(VOLUME.T.astype(np.float32), np.eye(4)).to_bytes(),
    }


def placed_seeds() -> dict[str, dict[str, bytes]]:
    """Of MetaImage, NRRD and DICOM as ITK writes them, by suffix, then by name."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    grey = sitk.GetImageFromArray(VOLUME)
    vectors = sitk.GetImageFromArray(PICTURE[None], isVector=True)
    floats = sitk.Cast(grey, sitk.sitkFloat32)
    flat = sitk.GetImageFromArray(VOLUME[0])
    slices = sitk.GetImageFromArray(VOLUME[:1])
    kinds: dict[str, dict[str, tuple[sitk.Image, bool]]] = {
        suffix: {
            "plain": (grey, False),
            "packed": (floats, True),
            "vectors": (vectors, True),
            "flat": (flat, False),
        }
        for suffix in (".mha", ".nrrd")
    }
    kinds[".dcm"] = {"implicit": (slices, False), "jpeg2000": (slices, True)}
    kinds[".dcm"] |= {"frames": (sitk.Cast(grey, sitk.sitkUInt8), False)}
    found: dict[str, dict[str, bytes]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix, images in kinds.items():
            for name, (image, packed) in images.items():
                path = Path(folder) / f"a{suffix}"
                sitk.WriteImage(image, os.fspath(path), useCompression=packed)
                found.setdefault(suffix, {})[name] = path.read_bytes()
    return found


def damage_header(rng: random.Random, data: bytes) -> bytes:
    """One to three numbers or words of the first 600 bytes changed, repeated or taken away."""
    head, rest = data[:600], data[600:]
    for _ in range(rng.randint(1, 3)):
        words = list(re.finditer(rb"-?[0-9.]+|[A-Za-z_]+|\n", head))
        if not words:
            break
        word = rng.choice(words)
        new = rng.choice(
            [str(rng.choice(ODD)).encode(), b"-1", b"nan", b"1e400", b"", b"LOCAL", b"none", b"%d"]
            + [other[0] for other in rng.sample(words, min(3, len(words)))]
        )
        head = head[: word.start()] + new + head[word.end() :]
    return head + rest


def picture_seeds() -> dict[str, dict[str, bytes]]:
    """By suffix, then by name."""
    import imagecodecs

    grey, colour = Image.fromarray(PICTURE[..., 0]), Image.fromarray(PICTURE)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {"exif": exif.tobytes()}
    return {
        ".png": {
            "grey": _saved(grey, "PNG"),
            "colour": _saved(colour, "PNG", **turned),
            "palette": _saved(colour.quantize(16), "PNG"),
            "bit": _saved(grey.convert("1"), "PNG"),
            "deep": imagecodecs.png_encode(VOLUME[0]),
            "deep colour": imagecodecs.png_encode(PICTURE.astype(np.uint16) * 200),
        },
        ".jpg": {
            "baseline": _saved(colour, "JPEG", **turned),
            "progressive": _saved(colour, "JPEG", progressive=True),
            "cmyk": _saved(colour.convert("CMYK"), "JPEG"),
            "several": _saved(colour, "MPO", save_all=True, append_images=[colour]),
        },
        ".gif": {
            "one": _saved(colour.quantize(64), "GIF"),
            "two": _saved(grey, "GIF", save_all=True, append_images=[colour]),
        },
        ".bmp": {
            "grey": _saved(grey, "BMP"),
            "colour": _saved(colour, "BMP"),
            "bit": _saved(grey.convert("1"), "BMP"),
        },
    }


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def npy_seeds() -> dict[str, bytes]:
    seeds = {}
    for name, array in {
        "c": VOLUME,
        "fortran": np.asfortranarray(VOLUME[:, :5]),
        "float": VOLUME.astype(">f4"),
    }.items():
        stream = io.BytesIO()
        np.save(stream, array)
        seeds[name] = stream.getvalue()
    stream = io.BytesIO()
    np.lib.format.write_array(stream, VOLUME, (2, 0))
    return seeds | {"second": stream.getvalue()}


def write_zarrs(root: Path) -> list[Path]:
    """Arrays and images of both formats, with the codecs of each."""
    import numcodecs

    two = [
        numcodecs.Zlib(),
        numcodecs.GZip(),
        numcodecs.Blosc(),
        numcodecs.Zstd(),
        numcodecs.LZ4(),
        numcodecs.BZ2(),
        numcodecs.LZMA(),
        None,
    ]
    made = []
    for number, codec in enumerate(two):
        path = root / f"two{number}.zarr"
        filters = [numcodecs.Delta("<u2")] if number == 0 else None
        zarr.create_array(
            path, data=VOLUME, chunks=(4, 16, 16), zarr_format=2, compressors=codec, filters=filters
        )
        made.append(path)
    three = [zarr.codecs.GzipCodec(), zarr.codecs.BloscCodec(), zarr.codecs.ZstdCodec(), None]
    for number, codec in enumerate(three):
        path = root / f"three{number}.zarr"
        shards = (4, 16, 16) if number > 1 else None
        zarr.create_array(
            path, data=VOLUME, chunks=(2, 8, 8), shards=shards, zarr_format=3, compressors=codec
        )
        made.append(path)
    from pipeline import files
    from pipeline.records import Geometry

    for version in ("0.4", "0.5"):
        path = root / f"ome{version}.ome.zarr"
        meta = {
            "dims": 3,
            "version": version,
            "scale": [2.0, 1.0, 1.0],
            "units": ["micrometer"] * 3,
            "translation": [1.0, 0.0, 0.0],
        }
        files.write(path, VOLUME, Geometry(format="zarr", meta=meta), dims=3)
        made.append(path)
    return made


Damage = Callable[[random.Random, bytes], bytes]


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to four changes at any place: a bit, a number of 1 to 8 bytes, a cut, a piece put in,
    moved or repeated.
    """
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(ODD) % 256**size
            out[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 2:
            del out[place:]
        elif kind == 3:
            out[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
        elif kind == 4:
            del out[place : place + rng.randint(1, 64)]
        else:
            first = rng.randrange(len(out) + 1)
            out[place:place] = out[first : first + rng.randint(1, 512)]
    return bytes(out)


def damage_tiff(rng: random.Random, data: bytes) -> bytes:
    """Other tags, types, counts, values and links in one of its directories."""
    out = bytearray(data)
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack(order + "H", data[2:4])[0] == 43
    number, entry, link = ("Q", "HHQQ", "Q") if big else ("H", "HHII", "I")
    (offset,) = struct.unpack_from(order + link, data, 8 if big else 4)
    places = []
    while offset and len(places) < 10:
        places.append(offset)
        (count,) = struct.unpack_from(order + number, data, offset)
        following = offset + struct.calcsize(number) + count * struct.calcsize(order + entry)
        (offset,) = struct.unpack_from(order + link, data, following)
    for _ in range(rng.randint(1, 3)):
        start = rng.choice(places)
        (count,) = struct.unpack_from(order + number, data, start)
        at = (
            start
            + struct.calcsize(number)
            + rng.randrange(count + 1) * struct.calcsize(order + entry)
        )
        if at >= start + struct.calcsize(number) + count * struct.calcsize(order + entry):
            other = rng.choice(
                [*places, start + 2, len(data), rng.choice(ODD)]
            ) % 256 ** struct.calcsize(link)
            out[at : at + struct.calcsize(link)] = struct.pack(order + link, other)
            continue
        fields = list(struct.unpack_from(order + entry, out, at))
        which = rng.randrange(4)
        tags = (
            254,
            256,
            257,
            258,
            259,
            262,
            266,
            270,
            273,
            274,
            277,
            278,
            279,
            284,
            317,
            322,
            323,
            324,
            325,
            330,
            338,
            339,
            347,
        )
        more = (32997, 33628, 33629, 34412, 34665, 34853, 50838, 50839, 51123, 65000, 65426)
        pools = (tags + more, tuple(range(20)), ODD, (*ODD, *places))
        width = (2, 2, struct.calcsize(link), struct.calcsize(link))[which]
        fields[which] = rng.choice(pools[which]) % 256**width
        out[at : at + struct.calcsize(order + entry)] = struct.pack(order + entry, *fields)
    return bytes(out)


def damage_text(rng: random.Random, data: bytes) -> bytes:
    """Other numbers in the text of a description; lengths stay."""
    import re

    found = list(re.finditer(rb"\d+", data[: 2**16]))
    if not found:
        return damage_bytes(rng, data)
    out = bytearray(data)
    for match in rng.sample(found, min(len(found), rng.randint(1, 3))):
        length = match.end() - match.start()
        out[match.start() : match.end()] = (
            rng.choice((b"9", b"0", b"1", b"-", b"e", b'"', b"<", b" ")) * length
        )
    return bytes(out)


def damage_nifti(rng: random.Random, data: bytes) -> bytes:
    """Other values in fields of the header."""
    kind = nibabel.Nifti1Header if data[344:347] == b"n+1" else nibabel.Nifti2Header
    size = kind.sizeof_hdr
    header = np.frombuffer(data[:size], kind.template_dtype).copy()
    for _ in range(rng.randint(1, 3)):
        field = header[
            rng.choice(
                [
                    "dim",
                    "pixdim",
                    "vox_offset",
                    "scl_slope",
                    "scl_inter",
                    "datatype",
                    "bitpix",
                    *header.dtype.names,
                ]
            )
        ]
        flat = field.reshape(-1)
        if flat.dtype.kind == "f":
            flat[rng.randrange(flat.size)] = rng.choice(
                [0, -1, 1e30, np.nan, np.inf, -np.inf, 352, 1e9]
            )
        elif flat.dtype.kind in "iu":
            bits = flat.dtype.itemsize * 8
            flat.view(f"u{flat.dtype.itemsize}")[rng.randrange(flat.size)] = (
                rng.choice([*ODD, 4, 64, 128, 512, 1792, 2304]) % 2**bits
            )
        else:
            flat.view("u1")[rng.randrange(flat.nbytes)] = rng.randrange(256)
    rest = bytearray(data[size:])
    if rng.random() < 0.3:
        rest[:12] = struct.pack(
            "<4sii", b"\1\0\0\0", rng.choice([0, 8, 16, 2**31 - 1, -8]), rng.choice([0, 4, 32])
        )
    return header.tobytes() + bytes(rest)


def damage_packed(rng: random.Random, data: bytes) -> bytes:
    """A damaged NIfTI in sound gzip, a sound one in damaged gzip, members one behind the other."""
    kind = rng.randrange(4)
    if kind == 0:
        return damage_bytes(rng, gzip.compress(data))
    if kind == 1:
        return gzip.compress(data) + gzip.compress(bytes(rng.randrange(2**20)))
    if kind == 2:
        return gzip.compress(data[: rng.randrange(len(data))])
    return gzip.compress(damage_nifti(rng, data))


def damage_png(rng: random.Random, data: bytes) -> bytes:
    """Other lengths, kinds and contents of chunks, with the checksums that fit them; chunks left
    out and repeated.
    """
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append([data[at + 4 : at + 8], bytearray(data[at + 8 : at + 8 + length]), None])
        at += 12 + length
    for _ in range(rng.randint(1, 3)):
        chunk = rng.choice(chunks)
        kind = rng.randrange(6)
        if kind < 2 and chunk[1]:
            size = rng.choice((1, 4))
            place = rng.randrange(len(chunk[1]))
            chunk[1][place : place + size] = (rng.choice(ODD) % 256**size).to_bytes(size, "big")
        elif kind == 2:
            chunk[2] = rng.choice(ODD) % 2**32
        elif kind == 3:
            chunk[0] = rng.choice(
                (
                    b"IDAT",
                    b"PLTE",
                    b"tRNS",
                    b"eXIf",
                    b"acTL",
                    b"fcTL",
                    b"zTXt",
                    b"iCCP",
                    b"IEND",
                    b"abcd",
                )
            )
        elif kind == 4:
            chunks.insert(rng.randrange(len(chunks) + 1), [chunk[0], bytearray(chunk[1]), None])
        else:
            chunks.remove(chunk)
            chunks = chunks or [chunk]
    out = bytearray(data[:8])
    for name, body, length in chunks:
        out += struct.pack(">I", len(body) if length is None else length) + name + body
        out += struct.pack(">I", zlib.crc32(name + body))
    return bytes(out)


def damage_npy(rng: random.Random, data: bytes) -> bytes:
    """Other shapes, types and orders in the header, of which the length fits."""
    length = struct.unpack_from("<H" if data[6] == 1 else "<I", data, 8)[0]
    start = (10 if data[6] == 1 else 12) + length
    shape = rng.choice(
        [
            "(6, 20, 24)",
            "(-6, 20, 24)",
            "(10**9,)",
            f"({10**12}, 2, 2)",
            "()",
            "(0, 3, 3)",
            "(1,)" * 3,
            "(6, 20)",
            "[6]",
            "None",
        ]
    )
    kind = rng.choice(
        [
            "<u2",
            "|O",
            ">f8",
            "<c8",
            "|S9",
            "|V4",
            "<M8[s]",
            "<U1000000",
            "<f2",
            "?",
            "|b1",
            [("a", "<u2")],
            3,
        ]
    )
    head = (
        f"{{'descr': {kind!r}, 'fortran_order': {rng.choice(['True', 'False', '2'])}, 'shape':"
        f" {shape}, }}".encode()
    )
    return data[: start - length] + head.ljust(length - 1)[: length - 1] + b"\n" + data[start:]


VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    10**6,
    10**12,
    2**63,
    1e308,
    "",
    "x",
    "../..",
    "/",
    "pickle",
    "|O",
    "<U9",
    "<f8",
    "string",
    [],
    [0],
    [-1, 1, 1],
    [1, 1, 1],
    [10**12] * 3,
    {},
    {"a": 1},
    {"id": "pickle"},
    {"id": "json2"},
    {"name": "vlen-utf8"},
    [{"id": "pickle"}],
    [[[[]]]],
)


def damage_json(rng: random.Random, text: str) -> str:
    """Another value somewhere in a document, a key less, or a number written as no JSON number."""
    document = json.loads(text)
    for _ in range(rng.randint(1, 2)):
        owner, key = rng.choice(_places(document))
        if owner is None:
            continue
        if rng.random() < 0.15:
            del owner[key]
            break
        owner[key] = copy.deepcopy(rng.choice(VALUES))
    out = json.dumps(document)
    return (
        out.replace("1.0", rng.choice(("NaN", "Infinity", "1" * 5000)))
        if rng.random() < 0.1
        else out
    )


def _places(node: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = [(None, None)]
    for key, value in (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    ):
        found += [(node, key), *_places(value)[1:]]
    return found
