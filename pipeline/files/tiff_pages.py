"""Check the directories of a TIFF (TIFF 6.0 section 2, BigTIFF) before a library loads them.

What they declare is compared with the size of the file, and with what real files hold: an empty
page costs its writer 6 bytes and its reader a hundred times that.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

PAGES = 1_000_000
"""Most pages of a file: the longest stacks of microscopes and scanners have some 100,000."""

ENTRIES = 4096
"""Most entries of a directory, by tifffile's own limit: real ones have about 20."""

INNER = 10_000
"""Most directories inside pages, such as reduced copies and camera data."""

SEGMENTS = 200_000
"""Strips and tiles of any size that a file may have."""

TINY = 32
"""Pixels that a strip or tile must have on average, where there are more than SEGMENTS.

The smallest tile of the standard has 256.
"""

SHARED = 2**24
"""Bytes of values outside the directories that pages may share, such as a palette."""

TEXT = 2**27
"""Most bytes of a description: OME-XML of 100,000 planes has 20 MiB."""

KINDS = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
"""Bytes of one value of each TIFF type."""

_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""``struct`` codes of the integer TIFF types."""

OFFSETS, COUNTS = (273, 324), (279, 325)
"""Tags of the offsets and of the byte counts of strips and of tiles."""

_KIND = frozenset(
    (
        254,
        255,
        256,
        257,
        258,
        259,
        262,
        266,
        274,
        277,
        278,
        284,
        292,
        317,
        322,
        323,
        338,
        339,
        32997,
        32998,
    )
)
"""Tags of a page's shape, dtype, colours and storage."""

_DIRECTORIES = frozenset((330, 34665, 34853, 40965))
"""Tags that point to further directories."""


class Damage(Exception):  # noqa: N818
    """What is wrong with the directories; the message follows the path of the file."""


@dataclass(slots=True)
class Page:
    """What the directory of a page says about its shape, dtype and strips or tiles."""

    offsets: tuple[int, ...] | None = None
    """First byte of each strip or tile."""
    counts: tuple[int, ...] | None = None
    """Bytes of each strip or tile."""
    kind: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)
    """Type, count and value of the entries that describe the page, by tag."""


@dataclass(slots=True)
class Chain:
    """The pages of a file."""

    first: Page
    """The first page."""
    pages: int = 0
    """Number of pages."""
    others: list[int] = field(default_factory=list)
    """Numbers, from 1, of pages unlike the first: other tags, or strips outside the file."""
    least: int = 0
    """Fewest bytes of pixels among pages with the tags of the first."""


@dataclass(slots=True)
class _Walk:
    """State of one walk through the directories: the file, and running totals."""

    stream: BinaryIO
    size: int
    order: str
    big: bool
    values: int = 0
    inner: int = 0
    segments: int = 0
    pixels: int = 0
    planes: int = 0

    @property
    def entry(self) -> str:
        """``struct`` format of an entry."""
        return self.order + ("HHQQ" if self.big else "HHII")

    @property
    def link(self) -> str:
        """``struct`` format of an offset."""
        return self.order + ("Q" if self.big else "I")


def walk(stream: BinaryIO, size: int, most: int = PAGES) -> Chain:
    """Follow the chain of pages and check each.

    Args:
        stream: TIFF file, open for reading.
        size: its size in bytes.
        most: pages after which the walk stops.

    Returns:
        The pages that were visited.

    Raises:
        Damage: where the file is truncated or damaged, or declares more than it can hold.
    """
    head = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    version = struct.unpack(order + "H", head[2:4])[0] if order and len(head) >= 16 else 0
    if version not in (42, 43):
        raise Damage("is no TIFF file, or its header is cut off")
    state = _Walk(stream, size, order, version == 43)
    (offset,) = struct.unpack_from(state.link, head, 8 if state.big else 4)
    seen: set[int] = set()
    chain: Chain | None = None
    while offset:
        number = len(seen) + 1
        if offset in seen:
            raise Damage(f"has a chain of pages that turns back after page {len(seen)}")
        if number > most:
            break
        seen.add(offset)
        entries, offset = _directory(state, offset, f"page {number}")
        page = _page(state, entries, number)
        stored = sum(page.counts or ())
        if chain is None:
            chain = Chain(page, least=stored)
        elif _matches(page, chain.first, size):
            chain.least = min(chain.least, stored)
        else:
            chain.others.append(number)
        chain.pages = number
    if chain is None:
        raise Damage("holds no page")
    if offset and most == PAGES:
        raise Damage(f"has more than {PAGES} pages")
    return chain


def _directory(state: _Walk, offset: int, name: str) -> tuple[bytes, int]:
    """The entries of the directory at ``offset``, and the offset of the next one."""
    stream, size = state.stream, state.size
    form = state.order + ("Q" if state.big else "H")
    stream.seek(min(offset, size))
    start = stream.read(struct.calcsize(form))
    if len(start) < struct.calcsize(form):
        raise Damage(f"is truncated: {name} should begin at byte {offset}, the file has {size}")
    (count,) = struct.unpack(form, start)
    length = count * struct.calcsize(state.entry)
    following = struct.calcsize(state.link)
    if length > size:
        raise Damage(f"is truncated inside the directory of {name}")
    if count > ENTRIES:
        raise Damage(f"has a directory of {count} entries at {name}; {ENTRIES} are the most")
    body = stream.read(length + following)
    if len(body) < length + following:
        raise Damage(f"is truncated inside the directory of {name}")
    return body[:length], struct.unpack_from(state.link, body, length)[0]


def _page(state: _Walk, entries: bytes, number: int) -> Page:  # noqa: C901
    """The tags of a page, after values outside its directory were compared with the file."""
    page, inline, text = Page(), struct.calcsize(state.link), 0
    start = struct.calcsize(state.entry) - inline
    for tag, kind, count, offset, raw in _entries(state, entries, start):
        length = count * KINDS.get(kind, 1)
        # Private tags (32768 and above) may be damaged: some writers do that, readers skip them.
        if tag < 32768 and length > inline and offset + length > state.size:
            raise Damage(f"is truncated: the description of page {number} lies beyond its end")
        if tag in (270, 700) and length > TEXT:
            raise Damage(
                f"has a description of {length} bytes at page {number}; {TEXT} are the most"
            )
        _add_values(state, min(length, state.size) if length > inline else 0, number)
        if tag == 270 and length > inline:
            text = offset
        if tag in OFFSETS or tag in COUNTS:
            numbers = _integers(state, kind, count, offset if length > inline else None, raw)
            if tag in OFFSETS:
                page.offsets = numbers
            else:
                page.counts = numbers
        if tag in _KIND:
            value = raw
            if inline < length <= SHARED and offset + length <= state.size:
                state.stream.seek(offset)
                value = state.stream.read(length)
            page.kind[tag] = (kind, count, value)
        if tag in _DIRECTORIES:
            _check_subdirectories(
                state,
                _integers(state, kind, count, offset if length > inline else None, raw) or (),
                number,
            )
    _check_segments(state, page, number)
    if text:
        _check_text(state, page, text, number)
    return page


def _check_text(state: _Walk, page: Page, offset: int, number: int) -> None:
    """Bound the planes that tifffile's own description declares.

    tifffile makes a list of as many.
    """
    state.stream.seek(offset)
    found = re.match(
        rb"[^\[(]{0,200}shape\"?\s*[:=]\s*[\[(]([\d, ]{1,200})", state.stream.read(512)
    )
    if found is None:
        return
    width, height = (_scalar(state, page.kind.get(tag)) for tag in (256, 257))
    state.planes += math.prod(int(n) for n in re.findall(rb"\d+", found[1])) // max(
        1, width * height
    )
    if state.planes > 2 * PAGES:
        raise Damage(
            f"announces {state.planes} planes in its descriptions up to page {number}; {PAGES} are"
            " the most"
        )


def _entries(
    state: _Walk, entries: bytes, start: int
) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Tag, type, count, offset, and the bytes of the value or offset, of each entry."""
    step = struct.calcsize(state.entry)
    for index, (tag, kind, count, offset) in enumerate(struct.iter_unpack(state.entry, entries)):
        yield tag, kind, count, offset, entries[index * step + start : (index + 1) * step]


def _add_values(state: _Walk, length: int, number: int) -> None:
    """Bound the bytes of all values outside the directories."""
    state.values += length
    if state.values > 2 * state.size + SHARED:
        problem = (
            f"has directories that announce {state.values} bytes of values up to page {number}"
        )
        raise Damage(f"{problem}; the file has {state.size}")


def _integers(
    state: _Walk, kind: int, count: int, offset: int | None, raw: bytes
) -> tuple[int, ...] | None:
    """The integers of an entry; None for another type, or where they lie beyond the file."""
    code = _CODES.get(kind)
    if code is None:
        return None
    if offset is not None:
        if offset + count * KINDS[kind] > state.size:
            return None
        state.stream.seek(offset)
        raw = state.stream.read(count * KINDS[kind])
    return struct.unpack_from(f"{state.order}{count}{code}", raw)


def _check_subdirectories(state: _Walk, offsets: tuple[int, ...], number: int) -> None:
    """Bound the directories inside a page, and the values that they hold.

    Such are reduced copies of the image, and camera data.
    """
    state.inner += len(offsets)
    if state.inner > INNER:
        raise Damage(f"has more than {INNER} directories inside its pages")
    for offset in offsets:
        if not 8 <= offset < state.size:
            continue
        try:
            entries, _ = _directory(state, offset, f"a directory inside page {number}")
        except Damage:
            continue  # readers skip it
        inline = struct.calcsize(state.link)
        for tag, kind, count, _ in struct.iter_unpack(state.entry, entries):
            if tag == 330:  # readers follow it recursively, for ever where it leads back
                raise Damage(
                    f"has directories inside the directories of page {number}, which must not"
                    " have any"
                )
            length = count * KINDS.get(kind, 1)
            _add_values(state, min(length, state.size) if length > inline else 0, number)


def _check_segments(state: _Walk, page: Page, number: int) -> None:
    """Bound the number of strips and tiles by the pixels that they can hold."""
    width, height = (_scalar(state, page.kind.get(tag)) for tag in (256, 257))
    if width == 0 and height == 0 and page.offsets is None:
        raise Damage(f"has a page without width, length and pixels: page {number}")
    state.pixels += (width or 0) * (height or 0)
    state.segments += max(len(page.offsets or ()), len(page.counts or ()))
    if state.segments > SEGMENTS and state.pixels < TINY * state.segments:
        problem = (
            f"has {state.segments} strips or tiles for {state.pixels} pixels up to page {number}"
        )
        raise Damage(f"{problem}; more than {SEGMENTS} must have {TINY} pixels each")


def _scalar(state: _Walk, entry: tuple[int, int, bytes] | None) -> int:
    """The one integer of an entry; 0 where there is none."""
    if entry is None or entry[1] != 1 or entry[0] not in _CODES:
        return 0
    return struct.unpack_from(state.order + _CODES[entry[0]], entry[2])[0]


def _matches(page: Page, first: Page, size: int) -> bool:
    """Whether a page has the tags of the first, and its strips lie inside the file."""
    offsets, counts = page.offsets, page.counts
    if (
        page.kind != first.kind
        or not offsets
        or not counts
        or not first.offsets
        or not len(offsets) == len(counts) == len(first.offsets)
    ):
        return False
    if len(offsets) == 1:
        return offsets[0] > 0 and counts[0] > 0 and offsets[0] + counts[0] <= size
    return (
        min(offsets) > 0
        and min(counts) > 0
        and max(map(sum, zip(offsets, counts, strict=True))) <= size
    )


_FLAVOURS = ("lsm", "stk", "ndpi", "vista", "philips", "indica", "eer", "nih", "mdgel")
"""TIFF flavours whose tags tifffile corrects."""


def is_plain(tif: Any, chain: Chain) -> bool:
    """Whether pages with the same tags have the same shape.

    Args:
        tif: the open ``tifffile.TiffFile``.
        chain: its pages, by :func:`walk`.

    Returns:
        False for TIFF flavours whose tags tifffile corrects page by page, and where tifffile found
        other strips or tiles on the first page.
    """
    odd = any(getattr(tif, f"is_{name}", False) for name in _FLAVOURS)
    first: Any = tif.pages.first
    whole = (first.dataoffsets, first.databytecounts) == (chain.first.offsets, chain.first.counts)
    return whole and not odd
