"""A look at LZW streams before they are decoded (TIFF 6.0 section 13).

imagecodecs takes the first code after a Clear code for a byte without a look at it. In a damaged
stream it may be a string, of which there is none yet: the decoder then reads and writes anywhere,
and the process is gone. Here such streams are found; everything else the decoder reports itself.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CLEAR, END, STRINGS = 256, 257, 258


@njit(cache=True, nogil=True)
def breaks(data: np.ndarray, most: int) -> bool:
    """Whether a Clear code is followed by a string before ``most`` bytes have been made of ``data``
    (uint8).
    """
    return _may_break(data) and _breaks(data, most)


@njit(cache=True, nogil=True)
def _may_break(data: np.ndarray) -> bool:  # noqa: C901
    """The same, however much has been made: no lengths are kept, and four bytes are read at a time."""
    if data.size < 8 or data[0] == 0:
        return True
    three, seven, eight = np.uint64(3), np.uint64(7), np.uint32(8)
    place, safe, end = np.uint64(0), np.uint64(data.size - 4) << three, data.size * 8
    width, left = 9, 254
    while place <= safe:
        code, wide, shift = np.uint32(0), np.uint64(width), np.uint32(32 - width)
        for _ in range(left):
            at = place >> three
            four = np.uint32(data[at]) << eight | np.uint32(data[at + np.uint64(1)])
            four = four << eight | np.uint32(data[at + np.uint64(2)])
            four = four << eight | np.uint32(data[at + np.uint64(3)])
            code = np.uint32(four << np.uint32(place & seven)) >> shift
            place += wide
            if code | np.uint32(1) == END or place > safe:
                break
        if code == END:
            return False
        if code != CLEAR:
            if place <= safe:
                left = 512 if width == 9 else 1024 if width == 10 else 1 << 40
                width = min(width + 1, 12)
            continue
        while code == CLEAR and np.int64(place) + 9 <= end:
            code = np.uint32(_code(data, np.int64(place), 9))
            place += np.uint64(9)
        if code >= STRINGS:
            return True
        if code == END:
            return False
        width, left = 9, 253
    # The last codes: one more table can begin, and no string belongs there.
    return _ends_badly(data, np.int64(place))  # type: ignore[arg-type]


@njit(cache=True, nogil=True)
def _ends_badly(data: np.ndarray, place: int) -> bool:
    """Whether the last bytes may hold a Clear code and a string, of whatever width."""
    for start in range(place, data.size * 8 - 17):
        if _code(data, start, 9) == CLEAR and _code(data, start + 9, 9) >= STRINGS:
            return True
    return False


@njit(cache=True, nogil=True)
def _code(data: np.ndarray, place: int, width: int) -> np.int64:
    first = place >> 3
    code = np.int64(0)
    for i in range(3):
        code = code << 8 | (np.int64(data[first + i]) if first + i < data.size else np.int64(0))
    return code >> (24 - width - (place & 7)) & ((1 << width) - 1)


@njit(cache=True, nogil=True)
def _breaks(data: np.ndarray, most: int) -> bool:  # noqa: C901
    end = data.size * 8
    if data.size < 2:
        return False
    old = (
        data[0] == 0 and data[1] & 1
    )  # of before 1988: bits the other way round, codes longer one code later
    early = 0 if old else 1
    lengths = np.ones(4100, np.int64)
    place, width, strings, made = 0, 9, STRINGS, 0
    last, fresh = -1, False
    while place + width <= end and made < most:
        first = place >> 3
        code = np.int64(0)
        for i in range(3):
            byte = np.int64(data[first + i]) if first + i < data.size else np.int64(0)
            code |= byte << (8 * i if old else 16 - 8 * i)
        code = code >> (place & 7) if old else code >> (24 - width - (place & 7))
        code &= (1 << width) - 1
        place += width
        if code == END:
            return False
        if code == CLEAR:
            width, strings, fresh = 9, STRINGS, True
            continue
        if fresh:
            if code >= STRINGS:
                return True
            fresh, last = False, code
            made += 1
            continue
        if last < 0 or code > strings or strings >= 4097:
            return False  # the decoder says so itself
        made += lengths[code] if code < strings else lengths[last] + 1
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
