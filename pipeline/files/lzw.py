"""Check LZW streams before they are decoded (TIFF 6.0 section 13).

imagecodecs takes the first code after a Clear code for a byte without checking it. In a damaged
stream it may be the code of a string, while the table holds none yet: the decoder then reads and
writes out of bounds and the process crashes. Such streams are found here; all other damage the
decoder reports itself.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CLEAR, END, STRINGS = 256, 257, 258
"""Codes: clear the table, end of the stream, and the first string of the table."""


@njit(cache=True, nogil=True)
def breaks(data: np.ndarray, most: int) -> bool:
    """Whether decoding an LZW stream would read out of bounds.

    Args:
        data: compressed bytes (uint8); streams of before 1988, with reversed bits, are recognised.
        most: bytes after which the decoder stops.

    Returns:
        True where the code of a string follows a Clear code before ``most`` bytes are decoded.

    Source: TIFF 6.0, section 13.
    """
    return _may_break(data) and _breaks(data, most)


@njit(cache=True, nogil=True)
def _may_break(data: np.ndarray) -> bool:  # noqa: C901
    """The same check, however many bytes are decoded; fast, and never False by mistake.

    No string lengths are kept, and four bytes are read at a time.
    """
    if data.size < 8 or data[0] == 0:
        return True
    three, seven, eight = np.uint64(3), np.uint64(7), np.uint32(8)
    position, safe, end = np.uint64(0), np.uint64(data.size - 4) << three, data.size * 8
    width, left = 9, 254
    while position <= safe:
        code, wide, shift = np.uint32(0), np.uint64(width), np.uint32(32 - width)
        for _ in range(left):
            at = position >> three
            four = np.uint32(data[at]) << eight | np.uint32(data[at + np.uint64(1)])
            four = four << eight | np.uint32(data[at + np.uint64(2)])
            four = four << eight | np.uint32(data[at + np.uint64(3)])
            code = np.uint32(four << np.uint32(position & seven)) >> shift
            position += wide
            if code | np.uint32(1) == END or position > safe:
                break
        if code == END:
            return False
        if code != CLEAR:
            if position <= safe:
                left = 512 if width == 9 else 1024 if width == 10 else 1 << 40
                width = min(width + 1, 12)
            continue
        while code == CLEAR and np.int64(position) + 9 <= end:
            code = np.uint32(_code(data, np.int64(position), 9))
            position += np.uint64(9)
        if code >= STRINGS:
            return True
        if code == END:
            return False
        width, left = 9, 253
    # In the last codes one more table may begin.
    return _ends_badly(data, np.int64(position))  # type: ignore[arg-type]


@njit(cache=True, nogil=True)
def _ends_badly(data: np.ndarray, position: int) -> bool:
    """Whether the last bytes may hold a Clear code and a string, whatever the code width."""
    for start in range(position, data.size * 8 - 17):
        if _code(data, start, 9) == CLEAR and _code(data, start + 9, 9) >= STRINGS:
            return True
    return False


@njit(cache=True, nogil=True)
def _code(data: np.ndarray, position: int, width: int) -> np.int64:
    """The code of ``width`` bits (at most 12) at bit ``position``."""
    first = position >> 3
    code = np.int64(0)
    for i in range(3):
        code = code << 8 | (np.int64(data[first + i]) if first + i < data.size else np.int64(0))
    return code >> (24 - width - (position & 7)) & ((1 << width) - 1)


@njit(cache=True, nogil=True)
def _breaks(data: np.ndarray, most: int) -> bool:  # noqa: C901
    """The exact check: it follows the code width and the length of every string."""
    end = data.size * 8
    if data.size < 2:
        return False
    # Streams of before 1988: bits in reverse order, and codes grow one code later.
    old = data[0] == 0 and data[1] & 1
    early = 0 if old else 1
    lengths = np.ones(4100, np.int64)
    position, width, strings, decoded = 0, 9, STRINGS, 0
    last, after_clear = -1, False
    while position + width <= end and decoded < most:
        first = position >> 3
        code = np.int64(0)
        for i in range(3):
            byte = np.int64(data[first + i]) if first + i < data.size else np.int64(0)
            code |= byte << (8 * i if old else 16 - 8 * i)
        code = code >> (position & 7) if old else code >> (24 - width - (position & 7))
        code &= (1 << width) - 1
        position += width
        if code == END:
            return False
        if code == CLEAR:
            width, strings, after_clear = 9, STRINGS, True
            continue
        if after_clear:
            if code >= STRINGS:
                return True
            after_clear, last = False, code
            decoded += 1
            continue
        if last < 0 or code > strings or strings >= 4097:
            return False  # the decoder reports this itself
        decoded += lengths[code] if code < strings else lengths[last] + 1
        lengths[strings] = lengths[last] + 1
        last = code
        strings += 1
        if strings == 512 - early:
            width = 10
        elif strings == 1024 - early:
            width = 11
        elif strings == 2048 - early:
            width = 12
    return False
