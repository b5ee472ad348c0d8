"""Tables of text that people keep: CSV with a header, in UTF-8, every row as long as the header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.files.errors import FileError, guarded

LARGEST = 2**27
"""Bytes of a table: several million rows of an id and a group."""

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
SUGGESTION = "Save it as UTF-8 text with commas between the columns"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: its line in the file, and its values by column, without blanks around them."""

    line: int
    values: dict[str, str]


def read_table(path: Path, known: Sequence[str]) -> tuple[tuple[str, ...], list[Row]]:
    """The header and the rows of a CSV file; empty lines are skipped.

    ``known`` columns are those that the caller reads.

    Raises FileError, with the line, for what is no such table: another encoding or separator, a row
    of another length than the header's, quotes that never close, a field of more than 131,072
    letters, a known column that stands twice.
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
    twice = [name for name in known if header.count(name) > 1]
    if twice:
        raise FileError(path, f"has the column {twice[0]!r} twice", "Remove one of the two")
    other = next(
        (word for sign, word in SEPARATORS.items() if len(header) == 1 and sign in header[0]), None
    )
    if other is not None:
        raise FileError(path, f"has {other} between its columns", SUGGESTION)
    return header, [
        Row(line, dict(zip(header, values, strict=True)))
        for line, values in _even(path, header, rows)
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


def _even(
    path: Path, header: Sequence[str], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    """The rows at the header's length; empty fields beyond it, which spreadsheets leave, are
    dropped.
    """
    for line, fields in rows:
        if len(fields) < len(header) or any(fields[len(header) :]):
            raise FileError(
                path,
                f"has {len(fields)} values in line {line}, but {len(header)} columns",
                "Correct that line",
            )
        yield line, fields[: len(header)]
