"""PNG, JPEG, GIF and BMP: one image, grey or in colour, of 8 or 16 bits; GIF and BMP are only read.

Pictures are read upright: the orientation that a camera notes in EXIF is carried out, so that an image and a mask drawn over it
agree. Answers are written upright and without EXIF. Greys of fewer than 8 bits are read as they are seen, 0 to 255; as labels they
are the numbers that are stored.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files.errors import FileError, wrong_axes
from pipeline.files.names import READ_ONLY, WRITABLE, suffix
from pipeline.records import Geometry, UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """The one picture of a file, its header read. Raises FileError for other formats and for several frames."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # Pillow's guard of web servers; here a large image is a slide, and memory has its own error
    _picture_problem(path)
    try:
        image = Image.open(path, formats=("PNG", "JPEG", "GIF", "BMP"))
    except UnidentifiedImageError:
        cure = "Copy or export it again; a picture of another format needs converting, not only another name"
        raise FileError(path, "is no PNG, JPEG, GIF or BMP picture, or its header is damaged", cure) from None
    with image:
        # In a JPEG (MPO) the further pictures are previews and second views.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise FileError(path, f"is animated: {frames} frames where one image is needed", "Save each frame as a file of its own")
        yield image


def probe(path: Path, dims: int) -> tuple[tuple[int, ...], str]:
    """Shape ``(C, Y, X)`` and number type from the header; a palette counts as three channels, alpha as none."""
    with _open(path) as image:
        shape, dtype = _described(path, image)
    if dims != 2:
        raise wrong_axes(path, shape[1:], dims)
    return shape, dtype


def _described(path: Path, image: Image.Image) -> tuple[tuple[int, int, int], str]:
    height, width = (image.width, image.height) if _orientation(image) > 4 else (image.height, image.width)
    head = _head(path)
    if _is_deep_png(head):  # Pillow calls grey with alpha a colour
        return (3 if head[25] & 2 else 1, height, width), "uint16"
    bands = 3 if image.mode in ("P", "CMYK", "YCbCr") else len([b for b in image.getbands() if b not in "Aa"])
    return (bands, height, width), "uint8"


def _head(path: Path) -> bytes:
    """The first bytes, padded: in a PNG 24 is the depth and 25 the kind of colour, in a BMP 14 the header's length and 28 the depth."""
    with path.open("rb") as stream:
        return stream.read(32).ljust(32, b"\0")


def _is_deep_png(head: bytes) -> bool:
    return head.startswith(b"\x89PNG") and head[24] == 16


def _picture_problem(path: Path) -> None:
    """Raise FileError where a PNG ends before its last chunk; other formats show it when they are decoded."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(8) != b"\x89PNG\r\n\x1a\n":
            return
        while True:
            head = stream.read(8)
            if len(head) < 8:
                raise FileError(path, f"is truncated: {size} bytes without a final IEND chunk")
            if head[4:] == b"IEND":
                return
            stream.seek(struct.unpack(">I", head[:4])[0] + 4, os.SEEK_CUR)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation (CIPA DC-008, tag 0x0112), 1 to 8; 1 is upright, and stands for none and for a damaged one.

    A PNG may carry it behind its pixels, where it is not looked for: a header is all that :func:`probe` reads.
    """
    value = 1
    if "exif" in image.info:
        with contextlib.suppress(SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
            value = int(image.getexif().get(0x0112, 1))
    return value if 1 <= value <= 8 else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels ``(Y, X, ...)`` stored in one of EXIF's eight orientations, as they are to be seen."""
    pixels = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def geometry(path: Path, dims: int) -> Geometry:
    """No place in the world, only the number of axes."""
    probe(path, dims)
    return Geometry(format="image", meta={"dims": 2})


def read(path: Path, dims: int, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Array ``(C, Y, X)``, upright, without alpha; with ``labels`` a palette image gives what :func:`palette_labels` says."""
    import numpy as np

    with _open(path) as image:
        (bands, *space), dtype = _described(path, image)
        if dims != 2:
            raise wrong_axes(path, tuple(space), dims)
        array, orientation = _pixels(path, image, labels), _orientation(image)
    array = array[..., None] if array.ndim == 2 else array
    if labels and _hidden_in_alpha(array):
        cure = "Flatten it onto black, or save the alpha channel as the mask"
        raise FileError(path, "has one colour everywhere and keeps its shape in the alpha channel", cure)
    array = upright(array[..., : 1 if array.shape[-1] == 1 else bands], orientation)
    return np.moveaxis(array, -1, 0).astype(dtype), Geometry(format="image", meta={"dims": 2})


def _pixels(path: Path, image: Image.Image, labels: bool) -> np.ndarray:
    """Decoded pixels as they lie in the file, ``(Y, X)`` or ``(Y, X, samples)`` with alpha last; greys of images on 0..255."""
    import numpy as np

    head = _head(path)
    if _is_deep_png(head):  # Pillow reduces colours of 16 bits to 8
        import imagecodecs

        return imagecodecs.png_decode(path.read_bytes())
    if image.format == "BMP" and image.mode == "1" and head[14] >= 40 and head[28] > 1:
        import imagecodecs

        # Pillow 13 takes the bytes for bits where a palette is black and white.
        return imagecodecs.bmp_decode(path.read_bytes())[..., 0]
    if image.mode == "P":
        indices, colours = np.asarray(image), np.zeros((256, 3), np.uint8)
        given = image.getpalette() or []
        colours.ravel()[: len(given)] = given
        return palette_labels(indices, colours) if labels else colours[indices]
    pixels = np.asarray(image if image.mode in ("1", "L", "LA", "RGB", "RGBA") else image.convert("RGB"))
    if pixels.dtype == bool:
        return pixels if labels else as_seen(pixels.astype(np.uint8), 1)
    if labels and image.mode == "L" and head.startswith(b"\x89PNG") and head[24] < 8:
        return pixels // (255 // (2 ** head[24] - 1))  # Pillow has multiplied what is stored
    return pixels


def as_seen(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Grey numbers of 1, 2 or 4 bits, uint8, on 0..255: white is 255 however few bits it has.

    >>> import numpy as np
    >>> as_seen(np.array([0, 1, 3], np.uint8), 2).tolist()
    [0, 85, 255]
    """
    import numpy as np

    return numbers * np.uint8(255 // (2**bits - 1))


def palette_labels(indices: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Labels of a palette picture: its indices ``(Y, X)``, which are classes, or for a black and white picture 0 and 255 as seen.

    ``colours`` is ``(N, 3)``. A picture is black and white where it uses no other colour, none of the two twice, and its palette
    is not one that colours classes: it holds nothing but greys, black and white among them; or both are used and black is not
    index 0, the background.
    """
    import numpy as np

    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=len(colours)))
    black, white = (colours == 0).all(1), (colours == 255).all(1)
    pure = (black | white)[used].all() and black[used].sum() <= 1 and white[used].sum() <= 1
    if (colours == colours[:, :1]).all():
        seen = pure and black.any() and white.any()
    else:
        seen = pure and len(used) == 2 and not (used[0] == 0 and black[0])
    return np.where(white, 255, 0).astype(np.uint8)[indices] if seen else indices


def _hidden_in_alpha(pixels: np.ndarray) -> bool:
    """Whether ``(Y, X, samples)`` has alpha, and nothing but that says anything."""
    if pixels.shape[-1] not in (2, 4):
        return False
    same = (pixels == pixels[0, 0]).all(axis=(0, 1))
    return bool(same[:-1].all() and not same[-1])


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write ``(1, Y, X)`` as grey and ``(3, Y, X)`` as colour: uint8, PNG also uint16. Raises UserError for other arrays and formats."""
    import imagecodecs
    from PIL import Image

    if suffix(path) in READ_ONLY:
        raise UserError(f"{path.suffix} files are only read. Write .png instead; all that can be written: {', '.join(WRITABLE)}.")
    png = path.suffix.lower() == ".png"
    kinds = ("uint8", "uint16") if png else ("uint8",)
    if array.ndim != 3 or array.shape[0] not in (1, 3) or str(array.dtype) not in kinds:
        wanted = f"1 or 3 channels of {' or '.join(kinds)}, (C, Y, X)"
        raise UserError(f"a {path.suffix} file holds {wanted}; got {array.dtype} of shape {array.shape}. Write .tif or .npy instead.")
    pixels = array[0].copy() if array.shape[0] == 1 else array.transpose(1, 2, 0).copy()
    if png:  # Pillow knows no colours of 16 bits
        path.write_bytes(imagecodecs.png_encode(pixels))
    else:
        Image.fromarray(pixels).save(path, quality=95)
