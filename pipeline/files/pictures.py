"""PNG, JPEG, GIF and BMP: one 2D image, grey or RGB, of 8 or 16 bits; GIF and BMP are only read.

Images are read upright: the orientation that a camera stores in EXIF is applied, so that an image
and a mask drawn over it agree. Predictions are written upright and without EXIF. Greys of fewer
than 8 bits are read as they are displayed, 0 to 255; as labels they keep the stored values.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.files.errors import FileError, silence, wrong_axes
from pipeline.files.limits import DEFLATE, LZW, SLACK, check_memory, check_ratio
from pipeline.files.names import READ_ONLY, WRITABLE, suffix
from pipeline.records import Geometry, UserError


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[Image.Image, bytes]]:
    """Open the one image of a file: its header, and the first bytes of the file.

    Raises FileError for other formats and for several frames.
    """
    # Pillow's limit protects web servers; here a large image is a slide, and memory is checked.
    Image.MAX_IMAGE_PIXELS = None
    silence("PIL")
    head = _check_blocks(path)
    try:
        image = Image.open(path, formats=("PNG", "JPEG", "GIF", "BMP"))
    except UnidentifiedImageError:
        suggestion = (
            "Copy or export it again; a picture of another format needs converting, not only"
            " another name"
        )
        raise FileError(
            path, "is no PNG, JPEG, GIF or BMP picture, or its header is damaged", suggestion
        ) from None
    with image:
        # Further images of a JPEG (MPO) are previews and second views. Frames of a GIF were counted
        # before, without decoding them.
        frames = getattr(image, "n_frames", 1) if image.format == "PNG" else 1
        if frames > 1:
            raise _animated(path, frames)
        _check_size(path, image, head)
        _check_exif(path, image.info.get("exif", b""))
        yield image, head


def _animated(path: Path, frames: int) -> FileError:
    return FileError(
        path,
        f"is animated: {frames} frames where one image is needed",
        "Save each frame as a file of its own",
    )


_RATIOS = {"PNG": DEFLATE, "GIF": LZW, "BMP": LZW, "JPEG": 2**11, "MPO": 2**11}
"""Most pixels that one byte can give.

A JPEG spends a bit or more on each block of 64 pixels; a run of a BMP may skip 255 rows.
"""


def _check_size(path: Path, image: Image.Image, head: bytes) -> None:
    """Compare the declared pixels with the bytes of the file, before any is decoded."""
    if min(image.size) < 1:
        raise FileError(path, f"announces {image.width}x{image.height} pixels")
    bits = 8
    if image.format == "PNG":
        bits = head[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(head[25], 1)
    check_ratio(
        path,
        (image.width * bits + 7) // 8 * image.height,
        path.stat().st_size,
        _RATIOS[str(image.format)],
    )


def probe(path: Path, dims: int) -> tuple[tuple[int, ...], str]:
    """Check the header of an image.

    Args:
        path: PNG, JPEG, GIF or BMP file.
        dims: number of space axes; only 2 is valid.

    Returns:
        Shape ``(C, Y, X)`` and name of the dtype; a palette counts as three channels, alpha as
        none.

    Raises:
        FileError: where the file is damaged, or an image is not what is needed.
    """
    with _open(path) as (image, head):
        shape, dtype = _describe(image, head)
    if dims != 2:
        raise wrong_axes(path, shape[1:], dims)
    return shape, dtype


def _describe(image: Image.Image, head: bytes) -> tuple[tuple[int, int, int], str]:
    """Shape ``(C, Y, X)`` of the upright image without alpha, and its dtype."""
    height, width = (
        (image.width, image.height) if _orientation(image) > 4 else (image.height, image.width)
    )
    if _is_png16(head):  # Pillow reports grey with alpha as colour
        return (3 if head[25] & 2 else 1, height, width), "uint16"
    bands = (
        3
        if image.mode in ("P", "CMYK", "YCbCr")
        else len([b for b in image.getbands() if b not in "Aa"])
    )
    return (bands, height, width), "uint8"


def _is_png16(head: bytes) -> bool:
    """Whether the first bytes are those of a PNG of 16 bits."""
    return head.startswith(b"\x89PNG") and head[24] == 16


FEWEST = 10_000
"""Chunks, blocks or segments that a file of any size may have."""

CHUNK = 256
"""Bytes that a chunk must have on average, where there are more than FEWEST.

Encoders write 8192 and more.
"""

SCANS = 500
"""Most scans of a JPEG, each a pass over all pixels: progressive ones have about ten."""


def _check_blocks(path: Path) -> bytes:
    """The first 32 bytes, padded with zeros, of a file whose structure was checked.

    In a PNG byte 24 is the bit depth and 25 the colour type, in a BMP 14 is the header's length and
    28 the bit depth. Raises FileError where a PNG ends before its last chunk, a file consists of
    countless small parts, or a GIF is animated.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(32).ljust(32, b"\0")
        stream.seek(0)
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            _check_png(path, stream, size)
        elif head.startswith(b"GIF8"):
            _check_gif(path, stream)
        elif head.startswith(b"\xff\xd8"):
            _check_jpeg(path, stream)
    return head


def _check_png(path: Path, stream: BinaryIO, size: int) -> None:
    """Bound the number of chunks, and find the last one."""
    most = FEWEST + size // CHUNK
    stream.seek(8)
    for _ in range(most):
        head = stream.read(8)
        if len(head) < 8:
            raise FileError(path, f"is truncated: {size} bytes without a final IEND chunk")
        if head[4:] == b"IEND":
            return
        stream.seek(struct.unpack(">I", head[:4])[0] + 4, os.SEEK_CUR)
    raise FileError(path, f"consists of more than {most} chunks, the most for {size} bytes")


def _check_gif(path: Path, stream: BinaryIO) -> None:
    """Count the frames by the lengths of their blocks."""
    head = stream.read(13)
    if len(head) < 13:
        raise FileError(path, "is truncated inside its header")
    width, height = struct.unpack("<HH", head[6:10])
    stream.seek(_colour_table_bytes(head[10]), os.SEEK_CUR)
    # Each byte of a block gives at least one pixel, or clears the string table.
    most, frames, stray = FEWEST + 2 * width * height, 0, 0
    for _ in range(FEWEST):
        kind = stream.read(1)
        if kind == b",":
            frames += 1
            descriptor = stream.read(9)
            stream.seek(
                _colour_table_bytes(descriptor[8] if len(descriptor) == 9 else 0) + 1, os.SEEK_CUR
            )
        elif kind == b"!":
            stream.seek(1, os.SEEK_CUR)
        elif kind in (b";", b""):
            break
        else:
            stray += 1  # readers skip it
            continue
        most -= _skip_blocks(stream, most)
        if most <= 0:
            raise FileError(path, f"has more blocks of data than {width}x{height} pixels can need")
    else:
        if stray < FEWEST // 2:
            raise FileError(
                path,
                f"consists of more than {FEWEST} blocks",
                "Save it again, each frame as a file of its own",
            )
    if frames > 1:
        raise _animated(path, frames)


def _colour_table_bytes(flags: int) -> int:
    """Bytes of the colour table that follows, by its flags."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _skip_blocks(stream: BinaryIO, most: int) -> int:
    """Skip a chain of sub-blocks; their number, ``most`` where there are more."""
    for count in range(most):
        length = stream.read(1)
        if length in (b"", b"\0"):
            return count
        stream.seek(length[0], os.SEEK_CUR)
    return most


def _check_jpeg(path: Path, stream: BinaryIO) -> None:
    """Bound the segments before the pixels, their fill bytes, and the values of EXIF."""
    stream.seek(2)
    exif = b""
    for _ in range(FEWEST):
        marker = stream.read(2)
        if len(marker) < 2 or marker[1] in (0xDA, 0xD9):
            break
        if marker[0] != 0xFF or marker[1] in (0, 0xFF, 1) or 0xD0 <= marker[1] <= 0xD8:
            stream.seek(-1 if marker[1] == 0xFF else 0, os.SEEK_CUR)
            continue
        length = max(0, int.from_bytes(stream.read(2), "big") - 2)
        if marker[1] != 0xE1:
            stream.seek(length, os.SEEK_CUR)
        elif (part := stream.read(length)).startswith(b"Exif\0\0"):
            exif += part[6:] if exif else part  # Pillow joins them, too
    else:
        raise FileError(path, f"consists of more than {FEWEST} segments before its pixels")
    _check_exif(path, exif)


_EXIF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes of one value by its EXIF type, where these are not 1."""


def _check_exif(path: Path, exif: bytes) -> None:
    """Raise FileError where EXIF values overlap so much that reading them takes for ever."""
    body = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None or len(body) < 8:
        return
    (start,) = struct.unpack_from(order + "I", body, 4)
    if start + 2 > len(body):
        return
    (count,) = struct.unpack_from(order + "H", body, start)
    entries = body[start + 2 : start + 2 + count * 12]
    entries = entries[: len(entries) // 12 * 12]
    total = sum(
        min(len(body), n * _EXIF_BYTES.get(kind, 1))
        for _, kind, n, _ in struct.iter_unpack(order + "HHII", entries)
    )
    if total > 4 * len(body) + SLACK:
        raise FileError(
            path,
            f"has EXIF data of {len(body)} bytes that announce {total} bytes of values",
            "Save it again without EXIF",
        )


def _check_scans(path: Path) -> None:
    """Raise FileError for a JPEG of so many scans that decoding takes for ever."""
    scans, last = 0, b""
    with path.open("rb") as stream:
        while part := stream.read(2**20):
            scans += (last + part).count(b"\xff\xda")
            last = part[-1:]
    if scans > SCANS:
        raise FileError(
            path,
            f"has {scans} scans; {SCANS} are the most, and progressive pictures have about ten",
            "Save it again as PNG",
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation (CIPA DC-008, tag 0x0112), 1 to 8; 1 (upright) if missing or damaged.

    A PNG may carry it behind its pixels, where it is not read: :func:`probe` reads only the header.
    """
    value = 1
    if "exif" in image.info:
        with contextlib.suppress(
            SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error
        ):
            value = int(image.getexif().get(0x0112, 1))
    return value if 1 <= value <= 8 else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels as they are displayed.

    Args:
        pixels: ``(Y, X, ...)`` as stored.
        orientation: EXIF or TIFF orientation, 1 (upright) to 8.

    Returns:
        A view of the pixels; above 4 the two axes are swapped.

    Source: CIPA DC-008 (EXIF), tag 0x0112.

    Example:
        >>> upright(np.array([[1, 2], [3, 4]]), 6).tolist()
        [[3, 1], [4, 2]]
    """
    pixels = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def geometry(path: Path, dims: int) -> Geometry:
    """The number of space axes: these formats have no other geometry.

    Args:
        path: image file.
        dims: number of space axes; only 2 is valid.

    Returns:
        Geometry of format ``image``.

    Raises:
        FileError: as :func:`probe`.
    """
    probe(path, dims)
    return Geometry(format="image", meta={"dims": 2})


def read(path: Path, dims: int, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Read an image upright and without alpha.

    Args:
        path: PNG, JPEG, GIF or BMP file.
        dims: number of space axes; only 2 is valid.
        labels: read a label map: a palette image gives :func:`palette_labels`, greys keep the
            stored values.

    Returns:
        Array ``(C, Y, X)``, uint8 or uint16, and its geometry.

    Raises:
        FileError: as :func:`probe`, where pixels cannot be decoded or do not fit into memory, and
            for labels that lie in the alpha channel only.
    """
    with _open(path) as (image, head):
        (bands, *space), dtype = _describe(image, head)
        if dims != 2:
            raise wrong_axes(path, tuple(space), dims)
        check_memory(path, (bands, *space), dtype)
        if image.format in ("JPEG", "MPO"):
            _check_scans(path)
        # Before decoding: afterwards Pillow also knows EXIF behind the pixels, but probe does not.
        orientation = _orientation(image)
        array = _pixels(path, image, head, labels)
    array = array[..., None] if array.ndim == 2 else array
    if labels and _is_only_alpha(array):
        suggestion = "Flatten it onto black, or save the alpha channel as the mask"
        raise FileError(
            path, "has one colour everywhere and keeps its shape in the alpha channel", suggestion
        )
    array = upright(array[..., : 1 if array.shape[-1] == 1 else bands], orientation)
    return np.moveaxis(array, -1, 0).astype(dtype), Geometry(format="image", meta={"dims": 2})


def _pixels(path: Path, image: Image.Image, head: bytes, labels: bool) -> np.ndarray:
    """Decoded pixels in stored order, ``(Y, X)`` or ``(Y, X, samples)`` with alpha last.

    Greys of images are scaled to 0..255.
    """
    if _is_png16(head):  # Pillow reduces 16-bit RGB to 8 bits
        return imagecodecs.png_decode(path.read_bytes())
    if image.format == "BMP" and image.mode == "1" and head[14] >= 40 and head[28] > 1:
        # Pillow 13 reads bytes as bits where the palette is black and white.
        return imagecodecs.bmp_decode(path.read_bytes())[..., 0]
    if image.mode == "P":
        indices, colours = np.asarray(image), np.zeros((256, 3), np.uint8)
        given = image.getpalette() or []
        colours.ravel()[: len(given)] = given
        return palette_labels(indices, colours) if labels else colours[indices]
    pixels = np.asarray(
        image if image.mode in ("1", "L", "LA", "RGB", "RGBA") else image.convert("RGB")
    )
    if pixels.dtype == bool:
        return pixels if labels else as_seen(pixels.astype(np.uint8), 1)
    if labels and image.mode == "L" and head.startswith(b"\x89PNG") and head[24] < 8:
        return pixels // (255 // (2 ** head[24] - 1))  # Pillow has scaled the stored values
    return pixels


def as_seen(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Scale greys of few bits to 0..255: white is 255 however few bits it has.

    Args:
        numbers: stored values, uint8.
        bits: bits of each value: 1, 2 or 4.

    Returns:
        The displayed greys, uint8.

    Example:
        >>> import numpy as np
        >>> as_seen(np.array([0, 1, 3], np.uint8), 2).tolist()
        [0, 85, 255]
    """
    return numbers * np.uint8(255 // (2**bits - 1))


def palette_labels(indices: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Labels of a palette image: its indices are classes, unless it is a black and white image.

    An image is black and white where it uses no other colour and neither of the two twice, and
    where its palette does not colour classes. That is so where the palette holds nothing but greys,
    with black and white among them, or where both are used and black is not index 0, the
    background.

    Args:
        indices: ``(Y, X)``, uint8.
        colours: palette ``(N, 3)``, uint8.

    Returns:
        ``(Y, X)``, uint8: the indices, or 0 and 255 of a black and white image.

    Example:
        >>> palette = np.array([[255, 255, 255], [0, 0, 0]], np.uint8)
        >>> palette_labels(np.array([[0, 1]], np.uint8), palette).tolist()
        [[255, 0]]
    """
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=len(colours)))
    black, white = (colours == 0).all(1), (colours == 255).all(1)
    bilevel = (black | white)[used].all() and black[used].sum() <= 1 and white[used].sum() <= 1
    if (colours == colours[:, :1]).all():
        display = bilevel and black.any() and white.any()
    else:
        display = bilevel and len(used) == 2 and not (used[0] == 0 and black[0])
    return np.where(white, 255, 0).astype(np.uint8)[indices] if display else indices


def _is_only_alpha(pixels: np.ndarray) -> bool:
    """Whether ``(Y, X, samples)`` is constant but for its alpha channel."""
    if pixels.shape[-1] not in (2, 4):
        return False
    same = (pixels == pixels[0, 0]).all(axis=(0, 1))
    return bool(same[:-1].all() and not same[-1])


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write a PNG or JPEG image.

    Args:
        path: file to write.
        array: ``(1, Y, X)`` as grey or ``(3, Y, X)`` as RGB; uint8, in a PNG also uint16.
        geometry: not used: the formats hold none.

    Raises:
        UserError: for other arrays, and for formats that are only read.
    """
    if suffix(path) in READ_ONLY:
        raise UserError(
            f"{path.suffix} files are only read. Write .png instead; all that can be written:"
            f" {', '.join(WRITABLE)}."
        )
    png = path.suffix.lower() == ".png"
    kinds = ("uint8", "uint16") if png else ("uint8",)
    if array.ndim != 3 or array.shape[0] not in (1, 3) or str(array.dtype) not in kinds:
        wanted = f"1 or 3 channels of {' or '.join(kinds)}, (C, Y, X)"
        raise UserError(
            f"a {path.suffix} file holds {wanted}; got {array.dtype} of shape {array.shape}. Write"
            " .tif or .npy instead."
        )
    pixels = array[0].copy() if array.shape[0] == 1 else array.transpose(1, 2, 0).copy()
    if png:  # Pillow cannot write 16-bit RGB
        path.write_bytes(imagecodecs.png_encode(pixels))
    else:
        Image.fromarray(pixels).save(path, quality=95)
