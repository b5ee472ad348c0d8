"""CSV tables that users keep: UTF-8, with a header, every row as long as the header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.files.errors import FileError, guarded

LARGEST = 2**27
"""Largest table, in bytes: several million rows of an id and a group."""

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""Separators other than the comma, and their names in messages."""
SUGGESTION = "Save it as UTF-8 text with commas between the columns"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table."""

    line: int
    """Line in the file, from 1."""
    values: dict[str, str]
    """Values by column, without blanks around them."""


def read_table(path: Path, known: Sequence[str]) -> tuple[tuple[str, ...], list[Row]]:
    """Read a CSV file with a header; empty lines are skipped.

    Args:
        path: CSV file in UTF-8.
        known: columns that the caller reads.

    Returns:
        The header and the rows, without blanks around the values.

    Raises:
        FileError: with the line, for another encoding or separator, a row of another length than
            the header's, quotes that are never closed, a field of more than 131,072 characters, and
            a known column that occurs twice.
    """
    return guarded(path, lambda: _table(path, _text(path), known))


def _text(path: Path) -> str:
    if path.stat().st_size > LARGEST:
        raise FileError(
            path,
            f"has {path.stat().st_size:,} bytes; a table has at most {LARGEST:,}",
            "Is it another file?",
        )
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise FileError(path, "is UTF-16 text", SUGGESTION)
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise FileError(
            path, f"holds a zero byte in line {line}: it is UTF-16 text, or damaged", SUGGESTION
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FileError(
            path, f"is no UTF-8 text: byte {content[error.start]:#x} in line {line}", SUGGESTION
        ) from None


def _table(path: Path, text: str, known: Sequence[str]) -> tuple[tuple[str, ...], list[Row]]:
    rows = _rows(path, text)
    first = next(rows, None)
    if first is None:
        raise FileError(path, "holds no row", SUGGESTION)
    header = tuple(name.strip() for name in first[1])
    duplicates = [name for name in known if header.count(name) > 1]
    if duplicates:
        raise FileError(path, f"has the column {duplicates[0]!r} twice", "Remove one of the two")
    other = next(
        (word for sign, word in SEPARATORS.items() if len(header) == 1 and sign in header[0]), None
    )
    if other is not None:
        raise FileError(path, f"has {other} between its columns", SUGGESTION)
    return header, [
        Row(line, dict(zip(header, values, strict=True)))
        for line, values in _aligned(path, header, rows)
    ]


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Line and fields of each row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield line, [field.strip() for field in fields]
            line = reader.line_num + 1
    except csv.Error as error:
        raise FileError(
            path,
            f"is damaged from line {line} on ({error})",
            "Look for a quote that is not closed in that line",
        ) from None


def _aligned(
    path: Path, header: Sequence[str], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    """Rows of the header's length, without the empty fields that spreadsheets append."""
    for line, fields in rows:
        if len(fields) < len(header) or any(fields[len(header) :]):
            raise FileError(
                path,
                f"has {len(fields)} values in line {line}, but {len(header)} columns",
                "Correct that line",
            )
        yield line, fields[: len(header)]
