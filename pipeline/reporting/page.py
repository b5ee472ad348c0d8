"""Small pieces of HTML; text that is not marked as HTML is escaped."""

from __future__ import annotations

import html
import shlex
import time
from pathlib import Path
from typing import Any

import pipeline
from pipeline.reporting.style import STYLE

DASH = "\N{EN DASH}"


class Safe(str):
    """Text that is HTML already; everything else is escaped before it enters the page."""

    __slots__ = ()


def escape(value: object) -> str:
    """Escape a value for HTML, unless it is marked as HTML.

    Args:
        value: anything; what is no text is converted.

    Returns:
        HTML.

    Example:
        >>> escape("a < b"), escape(Safe("<b>1</b>"))
        ('a &lt; b', '<b>1</b>')
    """
    return value if isinstance(value, Safe) else html.escape(str(value))


LARGEST = 1e300
"""Numbers whose magnitude is below this can be shown; NaN is not below it."""


def finite(value: Any) -> bool:
    """Whether a value is a number that can be shown.

    Args:
        value: anything that JSON holds.

    Returns:
        False for None, NaN, infinities and what is no number.
    """
    return isinstance(value, int | float) and abs(value) < LARGEST


def number(value: Any) -> str:
    """A number with three decimals; a dash for what is no finite number.

    Args:
        value: anything that JSON holds.

    Returns:
        Text.

    Example:
        >>> number(0.51234), number(None) == DASH, number(7)
        ('0.512', True, '7.000')
    """
    return f"{value:.3f}" if finite(value) else DASH


def clock(seconds: Any) -> str:
    """A duration in words.

    Args:
        seconds: a number; anything else counts as 0.

    Returns:
        Minutes and seconds, or hours and minutes.

    Example:
        >>> clock(61.2), clock(7300)
        ('1 min 01 s', '2 h 01 min')
    """
    whole = round(seconds) if finite(seconds) else 0
    return (
        f"{whole // 3600} h {whole % 3600 // 60:02} min"
        if whole >= 3600
        else f"{whole // 60} min {whole % 60:02} s"
    )


def section(title: str, *parts: str, note: str = "") -> str:
    """A section of the page.

    Args:
        title: its heading, as text.
        *parts: HTML.
        note: text below the heading.

    Returns:
        HTML.
    """
    lead = f"<p>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{''.join(parts)}</section>"


def figure(title: str, keys: str, body: str) -> str:
    """A figure with a caption.

    Args:
        title: text.
        keys: legend, as HTML.
        body: HTML.

    Returns:
        HTML.
    """
    return f"<figure><figcaption><b>{escape(title)}</b>{keys}</figcaption>{body}</figure>"


def footer(folder: Path, date: str | None = None) -> str:
    """What made the page, when, and what it is not for.

    Args:
        folder: what the page is of.
        date: of the page; None: today.

    Returns:
        HTML.
    """
    command = shlex.join(["python", "-m", "pipeline.report", str(folder)])
    made = date or time.strftime("%Y-%m-%d")
    return (
        f"<footer>pipeline {pipeline.__version__} · <code>{escape(command)}</code> ·"
        f" {escape(made)}<br><strong>Research software, not a medical device.</strong></footer>"
    )


def document(title: str, body: str) -> str:
    """The whole document.

    Its content security policy forbids every request and every script, whatever the body holds.

    Args:
        title: text.
        body: HTML.

    Returns:
        HTML.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    )
