"""PNG and JPEG: one image, grey or in colour, of 8 or 16 bits."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files.errors import FileError, wrong_axes
from pipeline.records import Geometry, UserError

if TYPE_CHECKING:
    import numpy as np


def probe(path: Path, dims: int) -> tuple[tuple[int, ...], str]:
    """Shape ``(C, Y, X)`` and number type from the header; a palette counts as three channels, alpha as none."""
    from PIL import Image

    _picture_problem(path)
    with Image.open(path) as image:
        bands = 3 if image.mode in ("P", "PA", "CMYK", "YCbCr") else len([b for b in image.getbands() if b not in "Aa"])
        shape, deep = (bands, image.height, image.width), image.mode.startswith("I") or _png_depth(path) == 16
    if dims != 2:
        raise wrong_axes(path, shape[1:], dims)
    return shape, "uint16" if deep else "uint8"


def _png_depth(path: Path) -> int:
    """Bits per sample of a PNG, 8 for everything else."""
    with path.open("rb") as stream:
        head = stream.read(26)
    return head[24] if head.startswith(b"\x89PNG") and len(head) == 26 else 8


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


def geometry(path: Path, dims: int) -> Geometry:
    """No place in the world, only the number of axes."""
    probe(path, dims)
    return Geometry(format="image", meta={"dims": 2})


def read(path: Path, dims: int, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Array ``(C, Y, X)``; with ``labels`` a palette image gives its indices."""
    import numpy as np
    from PIL import Image

    shape, dtype = probe(path, dims)
    if _png_depth(path) == 16:
        import imagecodecs

        # Pillow reduces colours of 16 bits to 8.
        array = imagecodecs.png_decode(path.read_bytes())
    else:
        with Image.open(path) as image:
            keep = image.mode in ("1", "L", "LA", "RGB", "RGBA") or image.mode.startswith("I") or (labels and image.mode == "P")
            array = np.asarray(image if keep else image.convert("RGB"))
    array = array[..., None] if array.ndim == 2 else array
    bands = 1 if labels and array.shape[-1] == 1 else shape[0]
    return np.moveaxis(array[..., :bands], -1, 0).astype(dtype), Geometry(format="image", meta={"dims": 2})


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write ``(1, Y, X)`` as grey and ``(3, Y, X)`` as colour: uint8, PNG also uint16. Raises UserError for other arrays."""
    import imagecodecs
    from PIL import Image

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
