"""A look at LZW streams before they are decoded (TIFF 6.0 section 13).

imagecodecs takes the first code after a Clear code for a byte without a look at it. In a damaged stream
it may be a string, of which there is none yet: the decoder then reads and writes anywhere, and
the process is gone. Here such streams are found; everything else the decoder reports itself.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CLEAR, END, STRINGS = 256, 257, 258


@njit(cache=True, nogil=True)
def breaks(data: np.ndarray, most: int) -> bool:
    """Whether a Clear code is followed by a string before ``most`` bytes have been made of ``data`` (uint8)."""
    return _breaks(data, np.int64(-1)) and _breaks(data, np.int64(most))


@njit(cache=True, nogil=True)
def _breaks(data: np.ndarray, most: int) -> bool:
    """With ``most`` below 0 of the whole stream, which is quicker: no lengths are kept."""
    end = data.size * 8
    if data.size < 2:
        return False
    old = data[0] == 0 and data[1] & 1  # of before 1988: bits the other way round, codes longer one code later
    early = 0 if old else 1
    lengths = np.ones(4100 if most >= 0 else 1, np.int64)
    place, width, strings, made = 0, 9, STRINGS, 0
    last, fresh = -1, False
    while place + width <= end and (most < 0 or made < most):
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
        if most >= 0:
            if last < 0 or code > strings or strings >= 4097:
                return False  # the decoder says so itself
            known = code < strings
            made += lengths[code] if known else lengths[last] + 1
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
