"""Limits on what a DICOM file may declare.

GDCM takes as much memory as the length of an element says, before it reads it. Here the elements
are walked first, and every length is compared with the bytes that there are.

Source: DICOM PS3.5, sections 7.1 (data elements), 7.5 (sequences) and A.4 (encapsulated pixels).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.files.errors import FileError

LONG = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
"""Value representations whose length has four bytes."""

SHORT = frozenset(
    (
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT"),
        *(b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    )
)
"""Those whose length has two."""

IMPLICIT = b"1.2.840.10008.1.2"
REFUSED = {
    b"1.2.840.10008.1.2.2": "big-endian",
    b"1.2.840.10008.1.2.1.99": "deflated",
    b"1.2.840.113619.5.2": "big-endian",
}
"""Transfer syntaxes that are rare, and not walked here."""

ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
PIXELS, SYNTAX = (0x7FE0, 0x0010), (0x0002, 0x0010)
OPEN = 0xFFFFFFFF
"""Length of what ends with an item of its own."""

DEEPEST, MOST = 16, 2_000_000
"""Sequences in sequences, and elements of a file."""

VALUE = 2**26
"""Most bytes of a value that is no pixels: tables have 128 KiB, documents inside some MiB."""


@dataclass(slots=True)
class _Walk:
    """A walk through the elements of one file."""

    path: Path
    stream: BinaryIO
    explicit: bool = True
    elements: int = 0
    syntax: bytes = b""

    def fail(self, problem: str) -> FileError:
        """The error for damage at the place that was reached."""
        return FileError(
            self.path, f"is damaged or cut off at byte {self.stream.tell()}: {problem}"
        )

    def tag(self) -> tuple[int, int]:
        """The next tag."""
        group, element = struct.unpack("<HH", self.take(4))
        self.elements += 1
        if self.elements > MOST:
            raise self.fail(f"it has more than {MOST} elements")
        return group, element

    def take(self, size: int) -> bytes:
        """The next bytes."""
        data = self.stream.read(size)
        if len(data) < size:
            raise self.fail("it ends inside an element")
        return data

    def length(self, tag: tuple[int, int]) -> tuple[bytes, int]:
        """Value representation (empty where it is implicit) and length of an element."""
        if tag[0] == 0xFFFE or not self.explicit:
            return b"", struct.unpack("<I", self.take(4))[0]
        kind = self.take(2)
        if kind in LONG:
            return kind, struct.unpack("<2xI", self.take(6))[0]
        if kind not in SHORT:
            raise self.fail(f"it has no type {kind!r}")
        return kind, struct.unpack("<H", self.take(2))[0]


def check_elements(path: Path) -> None:
    """Check that every element of a DICOM file has the bytes that it announces.

    Args:
        path: file with DICOM's mark.

    Raises:
        FileError: for lengths beyond the file, and for encodings that are not read.
    """
    size = os.stat(path).st_size
    with path.open("rb") as stream:
        walk = _Walk(path, stream)
        if walk.take(132)[128:] != b"DICM":
            raise FileError(path, "is no DICOM file: it has no mark DICM at byte 128")
        _meta(walk, size)
        walk.explicit = walk.syntax != IMPLICIT
        _elements(walk, size, 0)


def _meta(walk: _Walk, size: int) -> None:
    """Walk the first group, which names the transfer syntax."""
    while walk.stream.tell() < size:
        start = walk.stream.tell()
        tag = walk.tag()
        if tag[0] != 2:
            walk.stream.seek(start)
            break
        _, length = walk.length(tag)
        if length > size - walk.stream.tell() or length > VALUE:
            raise walk.fail(f"an element of {length} bytes")
        value = walk.take(length)
        if tag == SYNTAX:
            walk.syntax = value.rstrip(b"\0 ")
    if not walk.syntax.startswith(b"1.2."):
        raise FileError(walk.path, "does not name its transfer syntax", "Export it again")
    if walk.syntax in REFUSED:
        raise FileError(
            walk.path,
            f"is encoded as {REFUSED[walk.syntax]} DICOM",
            "Export it as explicit or implicit little endian",
        )


def _elements(walk: _Walk, end: int, depth: int, inside: bool = False) -> None:
    """Walk data elements up to ``end``, in an open item up to its last element."""
    while walk.stream.tell() < end:
        tag = walk.tag()
        kind, length = walk.length(tag)
        if tag == ITEM_END and inside:
            return
        if tag[0] == 0xFFFE:
            raise walk.fail("an item outside a sequence")
        if length != OPEN and length > end - walk.stream.tell():
            raise walk.fail(f"an element of {length} bytes")
        if tag == PIXELS and length == OPEN:
            _sequence(walk, end, depth, pixels=True)
        elif length == OPEN:
            before, walk.explicit = walk.explicit, walk.explicit and kind != b"UN"
            _sequence(walk, end, depth)
            walk.explicit = before
        else:
            _value(walk, tag, kind, length, depth)
    if inside:
        raise walk.fail("an item without an end")


def _value(walk: _Walk, tag: tuple[int, int], kind: bytes, length: int, depth: int) -> None:
    """Walk over a value of known length, into it where it is a sequence."""
    start = walk.stream.tell()
    looks = length >= 8 and kind in (b"", b"UN") and walk.take(4) == b"\xfe\xff\x00\xe0"
    walk.stream.seek(start)
    if kind == b"SQ" or looks:
        before, walk.explicit = walk.explicit, walk.explicit and kind != b"UN"
        _sequence(walk, start + length, depth, closed=True)
        walk.explicit = before
    elif tag != PIXELS and length > VALUE:
        raise walk.fail(f"an element of {length} bytes, {VALUE} are the most")
    walk.stream.seek(start + length)


def _sequence(
    walk: _Walk, end: int, depth: int, *, closed: bool = False, pixels: bool = False
) -> None:
    """Walk the items of a sequence: to ``end`` of a closed one, else to its last item."""
    if depth >= DEEPEST:
        raise walk.fail(f"sequences in sequences, more than {DEEPEST} deep")
    while walk.stream.tell() < end:
        tag = walk.tag()
        _, length = walk.length(tag)
        if tag == SEQUENCE_END and not closed:
            return
        if tag != ITEM:
            raise walk.fail("a sequence with something else than items")
        here = walk.stream.tell()
        if length == OPEN and not pixels:
            _elements(walk, end, depth + 1, inside=True)
        elif length > end - here:
            raise walk.fail(f"an item of {length} bytes")
        elif pixels:
            walk.stream.seek(here + length)
        else:
            _elements(walk, here + length, depth + 1)
    if not closed:
        raise walk.fail("a sequence without an end")
