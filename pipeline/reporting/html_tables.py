"""Tables in HTML that are never wider than the page: rows become blocks where they do not fit."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.reporting.page import Safe, escape
from pipeline.reporting.style import BREAKS

BREAKABLE = re.compile(r"([_./])(?=\D)")
"""Where a name may break: not inside a number."""


def heading(text: object) -> Safe:
    """The title of a column: it may break after ``_`` and ``.``, and its unit stands below it.

    Args:
        text: such as ``surface_dice liver [mm]``; HTML stays as it is.

    Returns:
        HTML.

    Example:
        >>> heading("hd95_max [mm]")
        'hd95_<wbr>max<small>mm</small>'
    """
    if isinstance(text, Safe):
        return text
    name, _, unit = str(text).partition(" [")
    broken = BREAKABLE.sub(r"\1<wbr>", escape(name))
    return Safe(broken + (f"<small>{escape(unit.removesuffix(']'))}</small>" if unit else ""))


def table(head: Sequence[object], rows: Sequence[tuple[str, Sequence[object]]]) -> str:
    """A table that is never wider than the page.

    Where its columns do not fit beside one another, its rows become blocks: the name, and below it
    each value under the title of its column.

    Args:
        head: titles of the columns.
        rows: (CSS class, cells). The first cell names the row, and spans the columns that the row
            is short of.

    Returns:
        HTML.
    """
    cells = [list(c) for _, c in rows]
    columns = [_column(n, title, cells, len(head)) for n, title in enumerate(head)]
    top = "".join(
        f'<th scope="col"{_attributes(c.kind)}>{heading(title)}</th>'
        for title, c in zip(head, columns, strict=True)
    )
    body = ""
    for kind, row in rows:
        span = len(head) - len(row) + 1
        body += (
            f'<tr class="{kind}"><th scope="row" colspan="{span}"{_attributes(columns[0].kind)}>'
        )
        body += f"{escape(row[0])}</th>"
        for column, cell in zip(columns[span:], row[1:], strict=True):
            body += f"<td{_attributes(column.kind, column.title)}>{escape(cell)}</td>"
        body += "</tr>"
    return (
        f'<div class="wide"><table class="{_stacks(columns)}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: its title in plain text, the kind of its text, and pixels that it needs."""

    title: str
    kind: str
    width: float


LETTER, MARGIN = 8.4, 18.0
"""Pixels of a letter, and of a cell's margins, in the page's font."""

KINDS = {"": 14, "word": 26, "text": 10**9}
"""Letters of the longest text by kind of column; text of the first is not broken."""

WIDTHS = {"word": 142.0, "text": 175.0}
"""Pixels that a column of broken text has at least."""

PAIR = 2
"""Columns of a table that fits everywhere."""


def _column(number: int, title: object, rows: Sequence[Sequence[object]], count: int) -> _Column:
    """Measure one column of a table of ``count`` columns."""
    # A name that spans further columns needs no room of its own.
    whole = [row for row in rows if len(row) == count] or rows
    found = [row[0] for row in whole]
    if number:
        at = [number + len(row) - count for row in rows]
        found = [row[n] for row, n in zip(rows, at, strict=True) if n >= 1]
    lines = [line for cell in found for line in _lines(cell)]
    longest = max(map(len, lines), default=0) + 6 * (number == 0)
    wordy = number == 0 or any(re.search(r"[^\W\d]{3}", line) for line in lines)
    kind = next(k for k, most in KINDS.items() if longest <= most) if wordy else ""
    plain = " ".join(_lines(title))
    words = max(map(len, re.split(r"[\s_./]+", plain)), default=0) + 1
    need = WIDTHS.get(kind, max(map(_letters, found), default=0.0) * LETTER)
    return _Column(plain, kind, max(need, words * LETTER) + MARGIN)


def _lines(cell: object) -> list[str]:
    """Texts of a cell, as they stand below one another."""
    if not isinstance(cell, Safe):
        return [str(cell)]
    texts = re.split(r"<[^>]*>", cell.replace("<wbr>", ""))
    return [html.unescape(t).strip() for t in texts if t.strip()]


def _letters(cell: object) -> float:
    """Length of the longest text of a cell; small ones count for less."""
    if not isinstance(cell, Safe):
        return len(str(cell))
    small = re.findall(r"<small>(.*?)</small>", cell)
    rest = Safe(re.sub(r"<small>.*?</small>", "<br>", cell))
    return max([*(len(line) for line in _lines(rest)), *(0.82 * len(t) for t in small)], default=0)


def _attributes(kind: str, title: str = "") -> str:
    """Class and title of a cell."""
    # An attribute holds no <wbr>: a space without width says where the title may break.
    breaking = html.escape(BREAKABLE.sub("\\1\u200b", title))
    return (f' class="{kind}"' if kind else "") + (f' data-title="{breaking}"' if title else "")


def _stacks(columns: Sequence[_Column]) -> str:
    """The class that says below which width rows become blocks."""
    if len(columns) <= PAIR:
        return "pair"
    need = sum(c.width for c in columns)
    return next((f"below{w}" for w in BREAKS if need <= w), "stacked")
