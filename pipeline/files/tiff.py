"""TIFF: volumes as pages, LZW, zlib, BigTIFF, ImageJ and OME.

Every page is checked, because tifffile only logs what is missing. A 2D image is read as it is
displayed: turned as its orientation says, 1-bit black and white as 0 and 255. The values of labels
and of volumes are read as stored, and :attr:`Geometry.notes` says where that differs.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from pipeline.files import tiff_pages
from pipeline.files.errors import FileError, silence, wrong_axes
from pipeline.files.limits import DEFLATE, LZW, RUNS, SLACK, ZSTD, check_memory
from pipeline.files.pictures import as_seen, palette_labels, upright
from pipeline.files.pixels import LazyArray, Rows, slabs
from pipeline.records import MILLIMETRES, Geometry


@contextlib.contextmanager
def _open(path: Path, dims: int) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF whose pages, strips and declared size were compared with the file."""
    # What tifffile would log about a damaged file is raised here instead.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    silence("tifffile", "imagecodecs")
    most = tiff_pages.PAGES if dims == 3 else PICTURE + 1
    with path.open("rb") as stream:
        try:
            chain = tiff_pages.walk(stream, path.stat().st_size, most)
        except tiff_pages.Damage as damage:
            raise FileError(path, str(damage)) from None
    if chain.pages >= most > PICTURE and dims == 2:
        problem = f"is a volume or a series (more than {PICTURE} pages) where an image is needed"
        raise FileError(path, problem, "Set data.dims, or give an image with 2 space axes")
    # Neighbouring files of a multi-file OME series stay closed: one file is one case.
    with tifffile.TiffFile(path, _multifile=False) as tif:
        problem = _ome_problem(tif) or _page_problem(tif, chain)
        if problem:
            raise FileError(path, problem)
        yield tif


PICTURE = 10_000
"""Most pages of a 2D image: each may be a channel, and a spectrum has some 1,000."""


def _ome_problem(tif: tifffile.TiffFile) -> str | None:
    """What an OME description declares that its file cannot hold, None where it fits.

    tifffile makes a list of as many planes as it declares.
    """
    if not tif.is_ome:
        return None
    try:
        root = ElementTree.fromstring(tif.ome_metadata or "")
    except ElementTree.ParseError:
        return None  # tifffile ignores it
    pages, planes = len(tif.pages), 0
    for element in root.iter():
        name, given = element.tag.rsplit("}", 1)[-1], element.attrib
        if name.endswith("Pixels"):
            if (
                math.prod(_parse_count(given.get(f"Size{axis}", "1")) for axis in "ZCT")
                > tiff_pages.PAGES
            ):
                return f"announces more than {tiff_pages.PAGES} planes in its OME description"
        elif name.endswith("TiffData"):
            planes += _parse_count(
                given.get("PlaneCount")
                or given.get("NumPlanes")
                or ("1" if "IFD" in given else str(pages))
            )
        elif "Along" in name and "Start" in given and _axis_length(given) > tiff_pages.PAGES:
            return f"announces more than {tiff_pages.PAGES} steps of an axis in its OME description"
    if planes > 10 * pages + PICTURE:
        return f"announces {planes} planes in its OME description and holds {pages} pages"
    return None


def _parse_count(text: str) -> int:
    """The integer of a description; 0 where it is none: tifffile refuses that itself."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) < 19 else 0 if len(text) < 19 else 10**18


def _axis_length(given: Mapping[str, str]) -> float:
    """Length of the axis of a modulo annotation; infinite where its numbers give none."""
    try:
        start, end, step = (float(given.get(key, "1")) for key in ("Start", "End", "Step"))
        steps = (end - start) / step
    except (ValueError, ZeroDivisionError):
        return math.inf
    return steps if math.isfinite(steps) else math.inf


def _page_problem(tif: tifffile.TiffFile, chain: tiff_pages.Chain) -> str | None:
    """What is wrong with the pages, None for a sound file.

    The strips or tiles of each are compared with the file's size, and all pages with the first and
    the declared number.
    """
    first: Any = tif.pages.get(0)
    count, size = len(tif.pages), tif.filehandle.size
    problem = _segment_problem(first, size)
    if first.dtype is None or not first.shape or 0 in first.shape:
        return f"is truncated or damaged at page 1 of {count}: {problem or 'it holds no pixel'}"
    announced = _announced_pages(tif, first)
    if count == 1 < announced and first.is_contiguous and not tif.is_ome:
        # ImageJ and 'truncate' write one directory for a whole uncompressed stack.
        need = first.dataoffsets[0] + announced * first.nbytes
        return (
            None
            if need <= size
            else f"is truncated: {announced} pages need {need} bytes, the file has {size}"
        )
    if count < announced:
        return f"is truncated: it announces {announced} pages and holds {count}"
    if 0 < announced < count:
        return f"announces {announced} pages and holds {count}"
    if problem:
        return f"is truncated or damaged at page 1 of {count}: {problem}"
    # Pages with the tags of the first are like it; others are decoded by tifffile and compared.
    plain = tiff_pages.is_plain(tif, chain) and _stored_problem(first, chain.least) is None
    for number in chain.others if plain else range(2, count + 1):
        page: Any = tif.pages.get(number - 1)  # not kept: a long stack has many
        if page.shape != first.shape or page.dtype != first.dtype:
            return (
                f"has pages of different kinds: page 1 is {first.shape} {first.dtype}, page"
                f" {number} is {page.shape} {page.dtype}"
            )
        if _orientation(page) != _orientation(first):
            return (
                f"has pages of different orientation (tag 274): {_orientation(first)} on page 1,"
                f" {_orientation(page)} on page {number}"
            )
        problem = _segment_problem(page, size)
        if problem:
            return f"is truncated or damaged at page {number} of {count}: {problem}"
    return None


def _segment_problem(page: Any, size: int) -> str | None:
    """What is wrong with the tags, strips or tiles of a page; None for a sound one."""
    if page.dtype is None or not page.shape or 0 in page.shape:
        return "its directory is incomplete"
    if not all(
        isinstance(value, int)
        for value in (page.photometric, page.compression, page.samplesperpixel)
    ):
        return (
            "its colours, its compression or its number of samples (tags 262, 259, 277) are no"
            " numbers"
        )
    if (opaque := _colour_samples(page)) is not None and opaque < 1:
        return (
            f"it announces {len(page.extrasamples)} samples beside the colours (tag 338) of"
            f" {page.samplesperpixel} in all"
        )
    offsets, counts = page.dataoffsets, page.databytecounts
    wanted = math.prod(page.chunked)
    if page.planarconfig not in (1, 2):
        return f"its samples are stored in an unknown order (tag 284 is {int(page.planarconfig)})"
    if len(offsets) != len(counts) or len(counts) < wanted:
        return f"{min(len(offsets), len(counts))} of {wanted} strips or tiles are there"
    if min(offsets) <= 0 or min(counts) <= 0:
        return "a strip or tile has no data"
    end = max(o + c for o, c in zip(offsets, counts, strict=True))
    if end > size:
        return f"its pixels end at byte {end}, the file has {size}"
    return _size_problem(page, wanted) or _stored_problem(page, sum(counts))


_RATIOS = {
    5: LZW,
    8: DEFLATE,
    32946: DEFLATE,
    32773: RUNS,
    50000: ZSTD,
    34926: ZSTD,
    50013: DEFLATE,
}
"""Most bytes that one byte can give, of the compressions for which that is known."""

TILE = 2**28
"""Most bytes of a tile of a small image.

A tile of a large image may have up to four times the bytes of the image.
"""


def _size_problem(page: Any, wanted: int) -> str | None:
    """Compare the size of a page's strips and tiles with the page."""
    if 0 in page.shape or wanted < 1:
        return f"it announces a size of {page.shape}"
    tile = math.prod(page.chunks) * page.dtype.itemsize
    if tile > max(TILE, 4 * page.nbytes):
        return f"a tile of {tile} bytes is many times as large as the page, {page.nbytes} bytes"
    return None


def _stored_problem(page: Any, stored: int) -> str | None:
    """Compare the pixels of a page with their stored bytes."""
    need, ratio = (
        page.nbytes * page.bitspersample // (8 * page.dtype.itemsize),
        _RATIOS.get(int(page.compression)),
    )
    if page.compression == 1 and stored < need:
        return f"{stored} bytes of pixels are there"
    if ratio is not None and need > ratio * stored + SLACK:
        return (
            f"it announces {need} bytes of pixels, of which {stored} compressed bytes can hold"
            f" {ratio * stored} at most"
        )
    return None


def _announced_pages(tif: tifffile.TiffFile, first: Any) -> int:
    """Number of pages that the file's description declares; 0 where it declares none."""
    if tif.is_ome:
        total = 0
        for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^<>]*>", tif.ome_metadata or ""):
            total += math.prod(int(n) for n in re.findall(r"\bSize[ZCT]=\"(\d+)\"", pixels))
        return total // max(first.samplesperpixel, 1)
    if tif.is_imagej:
        found: Mapping[str, Any] = tif.imagej_metadata or {}
        return max(
            int(found.get("images", 0)),
            int(found.get("slices", 1)) * int(found.get("frames", 1)) if "images" in found else 0,
        )
    shapes = [entry.get("shape", ()) for entry in tif.shaped_metadata or ()]
    if not shapes and first.shaped_description:
        # tifffile ignores a description that does not fit; that of one page among others says
        # nothing about those.
        whole, single = (
            math.prod(_described_shape(first.shaped_description)),
            math.prod(first.shape),
        )
        return whole // single if whole > single else 0
    return sum(math.prod(shape) for shape in shapes) // math.prod(first.shape)


def _described_shape(description: str) -> tuple[int, ...]:
    """The shape in tifffile's own description, JSON or the older ``shape=(4, 24, 28)``."""
    found = re.search(r"shape\"?\s*[:=]\s*[\[(]([\d, ]*)", description)
    return tuple(int(n) for n in re.findall(r"\d+", found[1])) if found else (0,)


def _series_problem(tif: tifffile.TiffFile) -> str | None:
    """What is wrong with the one series; None where it holds every page and no missing one.

    tifffile leaves out some pages and fills missing ones with 0.
    """
    series, first, count = tif.series[0], tif.pages.first, len(tif.pages)
    planes = math.prod(series.get_shape(squeeze=False)) // math.prod(first.shape)
    held = max(_announced_pages(tif, first), 1) if count == 1 and first.is_contiguous else count
    if planes != held:
        return f"announces {planes} slices and holds {held} pages"
    missing = (
        sum(series.pages[n] is None for n in range(planes))
        if series.kind == "ome" and series.dataoffset is None
        else 0
    )
    return (
        f"announces {planes} slices and says where {planes - missing} of them are"
        if missing
        else None
    )


def _orientation(page: Any) -> int:
    """Orientation (tag 274), 1 to 8; 1 (upright) where it is missing or damaged."""
    value = page.tags.valueof(274, default=1)
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def _layout(path: Path, tif: tifffile.TiffFile, dims: int) -> tuple[list[int], tuple[int, ...]]:
    """Order of the series' axes that puts channels first, and the stored shape ``(C, *S)``."""
    if len(tif.series) != 1:
        raise FileError(
            path, f"holds {len(tif.series)} separate images", "Save one image or volume per file"
        )
    problem = _series_problem(tif)
    if problem:
        raise FileError(path, problem)
    axes, shape = tif.series[0].get_axes(squeeze=False), tif.series[0].get_shape(squeeze=False)
    channel = [i for i, a in enumerate(axes) if a in "CS"]
    plane = [axes.index("Y"), axes.index("X")]
    others = [i for i in range(len(axes)) if i not in channel + plane]
    depth = [i for i in others if shape[i] > 1]
    if dims == 3 and not depth and tif.series[0].kind == "shaped":
        # A stack of one slice; only this kind of description declares it.
        depth = others[-1:]
    if len(depth) != dims - 2:
        raise wrong_axes(path, tif.series[0].shape, dims)
    if dims == 3 and _orientation(tif.pages.first) != 1:
        problem = (
            f"is a volume whose pages have the orientation {_orientation(tif.pages.first)} (tag"
            " 274) and so are not seen as they lie"
        )
        raise FileError(
            path,
            problem,
            "Save it upright, without that tag, and check that it lies as its labels do",
        )
    flat = [i for i in others if i not in depth]
    size = math.prod(shape[i] for i in channel)
    return flat + channel + depth + plane, (size, *(shape[i] for i in depth + plane))


def _upright_shape(shape: tuple[int, ...], page: Any) -> tuple[int, ...]:
    """Shape ``(C, *S)`` of the upright image.

    That of a volume is unchanged, for its orientation is 1.
    """
    return (*shape[:-2], shape[-1], shape[-2]) if _orientation(page) > 4 else shape


def probe(path: Path, dims: int) -> tuple[tuple[int, ...], str]:
    """Check the structure of a TIFF file.

    Args:
        path: TIFF file.
        dims: number of space axes, 2 or 3.

    Returns:
        Shape ``(C, *S)`` and name of the dtype; a palette image counts as RGB.

    Raises:
        FileError: where the file is damaged, truncated, holds several images or has other axes.
    """
    with _open(path, dims) as tif:
        page: Any = tif.pages.first
        shape = _upright_shape(_layout(path, tif, dims)[1], page)
        if _is_palette(page, dims):
            return (3, *shape[1:]), "uint8"
        return (
            len(range(shape[0])[: _colour_samples(page)]),
            *shape[1:],
        ), ("uint8" if page.dtype == bool else page.dtype.name)


def geometry(path: Path, dims: int) -> Geometry:
    """Read resolution, spacing and unit.

    Args:
        path: TIFF file.
        dims: number of space axes, 2 or 3.

    Returns:
        Geometry of format ``tiff``.

    Raises:
        FileError: as :func:`probe`.
    """
    with _open(path, dims) as tif:
        _layout(path, tif, dims)
        return _geometry(tif, dims)


def read(path: Path, dims: int, labels: bool) -> tuple[np.ndarray, Geometry]:
    """Read a TIFF file upright and without alpha.

    Args:
        path: TIFF file.
        dims: number of space axes, 2 or 3.
        labels: read a label map: a palette image gives :func:`palette_labels` instead of RGB, greys
            keep the stored values.

    Returns:
        Array ``(C, *S)`` and its geometry.

    Raises:
        FileError: as :func:`probe`, and where pixels cannot be decoded or do not fit into memory.
    """
    with _open(path, dims) as tif:
        order, shape = _layout(path, tif, dims)
        series, page = tif.series[0], tif.pages.first
        check_memory(path, shape, series.dtype)
        _check_lzw(path, series.pages)
        array = (
            series.asarray()
            .reshape(series.get_shape(squeeze=False))
            .transpose(order)
            .reshape(shape)
        )
        if _is_palette(page, dims):
            colours = (page.colormap.T >> 8).astype("uint8")  # type: ignore[union-attr]
            indices = _without_bool(array[0])
            array = (
                palette_labels(indices, colours)[None]
                if labels
                else colours[indices].transpose(2, 0, 1)
            )
        else:
            array = (_without_bool(array) if dims == 3 or labels else _as_displayed(array, page))[
                : _colour_samples(page)
            ]
        if _orientation(page) != 1:
            array = upright(array.transpose(1, 2, 0), _orientation(page)).transpose(2, 0, 1)
        return array, _geometry(tif, dims, labels)


def _check_lzw(path: Path, pages: Iterable[Any]) -> None:
    """Raise FileError for LZW streams that crash the decoder, see :mod:`pipeline.files.lzw`."""
    found = [page for page in pages if page is not None and page.keyframe.compression == 5]
    if not found:
        return
    from pipeline.files import lzw  # numba takes 0.3 s to import, and only these files need it

    stored = np.memmap(path, np.uint8, "r")

    def breaks(page: Any) -> bool:
        kind = page.keyframe
        most = math.prod(kind.chunks) * kind.dtype.itemsize
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            data = np.asarray(stored[offset : offset + count])
            if kind.fillorder == 2:
                data = np.packbits(np.unpackbits(data, bitorder="little"))
            if lzw.breaks(data, most):
                return True
        return False

    with ThreadPoolExecutor(2) as pool:
        for number, broken in enumerate(pool.map(breaks, found), 1):
            if broken:
                raise FileError(
                    path,
                    f"is damaged: the LZW codes of a strip or tile of page {number} of {len(found)}"
                    " make no sense",
                )


def _without_bool(array: np.ndarray) -> np.ndarray:
    """Stored values; those of one bit as uint8, 0 and 1."""
    return array.view("uint8") if array.dtype == bool else array


def _as_displayed(array: np.ndarray, page: Any) -> np.ndarray:
    """Greys as they are displayed, those of few bits on 0..255.

    1-bit scans store ink as 1. With more bits, MINISWHITE values are kept: ImageJ means the values
    and not their display.
    """
    array = _without_bool(~array if _is_inverted_bilevel(page) else array)
    return (
        as_seen(array, page.bitspersample)
        if page.bitspersample in (1, 2, 4) and page.photometric in (0, 1)
        else array
    )


def _is_inverted_bilevel(page: Any) -> bool:
    """Whether a 1-bit image is black where it holds 1."""
    return page.photometric == 0 and page.dtype == bool


_COLOURS = {5: "CMYK", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab"}
"""Values of PhotometricInterpretation that are neither grey nor RGB."""

_JPEG = (6, 7, 34892)
"""Compressions whose decoder converts YCbCr to RGB."""


def _notes(page: Any, dims: int, labels: bool) -> tuple[str, ...]:
    """Notes for values that are read as stored although their tag says to display others."""
    colours = _COLOURS.get(int(page.photometric))
    if colours and not (colours == "YCbCr" and page.compression in _JPEG):
        return (
            f"is a TIFF in {colours} colours; its numbers are taken as they are, not turned into"
            " RGB",
        )
    if page.photometric != 0 or (_is_inverted_bilevel(page) and dims == 2 and not labels):
        return ()
    return (
        "is a TIFF tagged MINISWHITE, which is seen with 0 as white; its numbers are taken as they"
        " are, not turned round",
    )


def view(path: Path, dims: int, stack: contextlib.ExitStack) -> tuple[LazyArray, Geometry]:
    """Open a TIFF file for reading slab by slab.

    Uncompressed contiguous pixels are mapped, one slab at a time; of others each page is decoded
    once for each slab that it lies in. A compressed 2D image (one page) is decoded whole, one with
    a palette or another orientation than upright is read whole.

    Args:
        path: TIFF file.
        dims: number of space axes, 2 or 3.
        stack: closes the file at its end.

    Returns:
        The array ``(C, *S)`` of :func:`read`, of which rows are read as they are sliced, and its
        geometry.

    Raises:
        FileError: as :func:`read`, also from a slice.
    """
    tif = stack.enter_context(_open(path, dims))
    order, shape = _layout(path, tif, dims)
    series, page = tif.series[0], tif.pages.first
    if _is_palette(page, dims) or _orientation(page) != 1:
        return read(path, dims, labels=False)
    source, opaque = _Pages(path, series, order[-dims]), _colour_samples(page)

    def make(first: int, end: int) -> np.ndarray:
        part = (
            source.rows(first, end)
            .transpose(order)
            .reshape(shape[0], end - first, *shape[2:])[:opaque]
        )
        return _without_bool(part) if dims == 3 else _as_displayed(part, page)

    channels, stored = len(range(shape[0])[:opaque]), np.dtype(series.dtype)
    dtype = np.dtype(np.uint8) if stored.kind == "b" else stored.newbyteorder("=")
    return Rows((channels, *shape[1:]), dtype, make), _geometry(tif, dims)


class _Pages:
    """Rows of a series along one of its axes, in the axis order of the series."""

    def __init__(self, path: Path, series: Any, axis: int) -> None:
        self.path, self.series, self.axis = path, series, axis
        self.shape = series.get_shape(squeeze=False)
        self.lead = len(self.shape)
        while self.lead and math.prod(self.shape[: self.lead]) > len(series.pages):
            self.lead -= 1

    def rows(self, first: int, end: int) -> np.ndarray:
        """Rows ``first`` to ``end`` along the axis, all other axes whole."""
        box = tuple(
            slice(first, end) if i == self.axis else slice(None) for i in range(len(self.shape))
        )
        if self.series.dataoffset is not None:
            # Mapped anew for each slab: pages of a mapping count as memory of this process until it
            # is closed.
            stored = self.series.dtype.newbyteorder(self.series.parent.byteorder)
            check_memory(
                self.path,
                [end - first, math.prod(self.shape) // self.shape[self.axis]],
                stored,
                "rows",
            )
            return np.array(
                np.memmap(self.path, stored, "r", self.series.dataoffset, self.shape)[box]
            )
        check_memory(
            self.path,
            [end - first, math.prod(self.shape) // self.shape[self.axis]],
            self.series.dtype,
            "rows",
        )
        check_memory(self.path, self.shape[self.lead :], self.series.dtype, "pages")
        numbers = np.arange(math.prod(self.shape[: self.lead])).reshape(self.shape[: self.lead])
        wanted = numbers[box[: self.lead]]
        inner = self.shape[self.lead :]
        pages = [self._page(int(n)).reshape(inner)[box[self.lead :]] for n in wanted.ravel()]
        return np.stack(pages).reshape(*wanted.shape, *pages[0].shape)

    def _page(self, number: int) -> np.ndarray:
        page = self.series.pages[number]
        if page is None:  # missing from a sparse series
            return np.zeros(self.shape[self.lead :], self.series.dtype)
        _check_lzw(self.path, [page])
        return page.asarray()


def _is_palette(page: Any, dims: int) -> bool:
    """Whether the values are indices of colours.

    Those of a volume are not: ImageJ saves label stacks with a palette.
    """
    return page.photometric == 3 and page.colormap is not None and dims == 2


def _colour_samples(page: Any) -> int | None:
    """Number of samples of a pixel that are not alpha; None: all of them."""
    alpha = any(kind in (1, 2) for kind in page.extrasamples)
    return page.samplesperpixel - len(page.extrasamples) if alpha else None


def _geometry(tif: tifffile.TiffFile, dims: int, labels: bool = False) -> Geometry:
    """Scale of the upright array, and notes for the reader."""
    meta, page = _scale(tif), tif.pages.first
    if "resolution" in meta and _orientation(page) > 4:
        meta["resolution"] = meta["resolution"][::-1]
    return Geometry(format="tiff", meta={"dims": dims, **meta}, notes=_notes(page, dims, labels))


def _scale(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Resolution tags as stored, and slice spacing and unit from the description.

    The description is that of ImageJ, OME or this package. Values that are no numbers are ignored:
    pixels can be read without them.
    """
    tags: Any = tif.pages.first.tags
    meta: dict[str, Any] = {}
    resolution = [
        _fraction(tags.valueof(name)) for name in ("XResolution", "YResolution") if name in tags
    ]
    unit = tags.valueof("ResolutionUnit", 2)
    if (
        len(resolution) == 2
        and None not in resolution
        and resolution != [[1, 1], [1, 1]]
        and isinstance(unit, int)
    ):
        meta = {"resolution": resolution, "resolution_unit": int(unit)}
    described: Mapping[str, Any] = (
        tif.imagej_metadata if tif.is_imagej else (tif.shaped_metadata or ({},))[0]
    ) or {}
    kinds = {"spacing": int | float, "unit": str}
    meta |= {
        key: described[key] for key, kind in kinds.items() if isinstance(described.get(key), kind)
    }
    return meta | {"imagej": True} if tif.is_imagej else meta | _ome_scale(tif)


def _fraction(value: Any) -> list[int] | None:
    """Numerator and denominator of a resolution; None where it is none."""
    pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(n, int) for n in value)
    return list(value) if pair else None


def _ome_scale(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Pixel sizes in the unit of the first axis: OME gives each axis its own unit."""
    text = (tif.ome_metadata if tif.is_ome else None) or ""
    sizes = {
        axis: _positive(size) for axis, size in re.findall(r'\bPhysicalSize([XYZ])="([^"]+)"', text)
    }
    units = dict.fromkeys("XYZ", "\u00b5m") | dict(
        re.findall(r'\bPhysicalSize([XYZ])Unit="([^"]+)"', text)
    )
    sizes = {
        axis: known
        for axis, size in sizes.items()
        if size and (known := _in_unit(size, units[axis], units["X"]))
    }
    meta: dict[str, Any] = {}
    if "X" in sizes and "Y" in sizes:
        resolution = [Fraction(1 / sizes[axis]).limit_denominator(10**6) for axis in "XY"]
        meta = {
            "imagej": True,
            "resolution": [list(r.as_integer_ratio()) for r in resolution],
            "resolution_unit": 1,
        }
        meta["unit"] = units["X"]
    if "Z" in sizes:
        meta["spacing"] = sizes["Z"]
    return meta


def _positive(text: str) -> float | None:
    """A length that has a finite inverse, else None."""
    try:
        size = float(text)
    except ValueError:
        return None
    return size if 1e-300 < size < 1e300 else None


def _in_unit(size: float, unit: str, wanted: str) -> float | None:
    """A length in another unit; None where the units cannot be converted."""
    if unit == wanted:
        return size
    factors = [MILLIMETRES.get(u.lower()) for u in (unit, wanted)]
    return size * factors[0] / factors[1] if factors[0] and factors[1] else None


def write(path: Path, array: LazyArray, geometry: Geometry) -> None:
    """Write a zlib-compressed TIFF, one page for each slice.

    :class:`Rows` of volumes are written slab by slab, with the same bytes as the array would give.

    Args:
        path: file to write.
        array: ``(C, *S)``.
        geometry: scale of a TIFF file; where that was written for ImageJ, so is this one. Others:
            none.
    """
    meta = geometry.meta if geometry.format == "tiff" else {}
    # ImageJ reads only these dtypes; others keep the scale in the description that tifffile and
    # this package read.
    dtype, nbytes = np.dtype(array.dtype), math.prod(array.shape) * array.dtype.itemsize
    imagej = (
        bool(meta.get("imagej"))
        and dtype in (np.uint8, np.uint16, np.float32)
        and nbytes < 2**32 - 2**25
    )
    described = {key: _ascii(meta[key]) for key in ("spacing", "unit") if key in meta}
    resolution = tuple(tuple(r) for r in meta["resolution"]) if "resolution" in meta else None
    data, axes, given = _pages(array, imagej)
    tifffile.imwrite(
        path,
        data,
        **given,
        imagej=imagej,
        bigtiff=nbytes >= 2**32 - 2**25,
        ome=False,
        photometric="rgb" if axes == "YXS" else "minisblack",
        compression="zlib",
        # Floats hardly compress, whatever the level.
        compressionargs={"level": 1 if dtype.kind == "f" else 6},
        metadata={"axes": axes, **described},
        resolution=resolution,  # type: ignore[arg-type]
        resolutionunit=meta.get("resolution_unit"),
        software=False,
    )


def _pages(array: LazyArray, imagej: bool) -> tuple[Any, str, dict[str, Any]]:
    """What tifffile is to write, the letters of its axes, and further arguments.

    The arguments are shape and dtype of pages that come one by one.
    """
    if not isinstance(array, Rows) or len(array.shape) == 3:
        data, axes = _axes(array[:], imagej)
        return data, axes, {}
    channels, *space = array.shape
    if channels == 1:
        return (
            (page for first, end in slabs(array) for page in array[0, first:end]),
            "ZYX",
            {"shape": tuple(space), "dtype": array.dtype},
        )
    if imagej:
        pages = (
            page
            for first, end in slabs(array)
            for row in array[:, first:end].swapaxes(0, 1)
            for page in row
        )
        return pages, "ZCYX", {"shape": (space[0], channels, *space[1:]), "dtype": array.dtype}
    pages = (
        page for c in range(channels) for first, end in slabs(array) for page in array[c, first:end]
    )
    return pages, "CZYX", {"shape": tuple(array.shape), "dtype": array.dtype}


def _axes(array: np.ndarray, imagej: bool) -> tuple[np.ndarray, str]:
    """``(C, *S)`` in the order that TIFF readers expect, with the letters of its axes."""
    space = "ZYX"[-(array.ndim - 1) :]
    if array.shape[0] == 1:
        return array[0], space
    if space == "YX" and array.shape[0] == 3 and array.dtype.kind == "u":
        return array.transpose(1, 2, 0), "YXS"
    if space == "ZYX" and imagej:
        return array.swapaxes(0, 1), "ZCYX"
    return array, "C" + space


def _ascii(value: Any) -> Any:
    """Text as ImageJ stores it: ASCII with escapes such as backslash-u00B5 for the micro sign."""
    return (
        "".join(c if ord(c) < 128 else f"\\u{ord(c):04X}" for c in value)
        if isinstance(value, str)
        else value
    )
