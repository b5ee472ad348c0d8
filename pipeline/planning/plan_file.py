"""A plan as a YAML file that a person reads and edits: each value with its reason beside it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.config import dump_yaml
from pipeline.planning.settings import Setting
from pipeline.records import printable

MARK = "# Written by pipeline.plan, checksum "
"""Begins the first line of a plan; the checksum of the rest follows."""

WIDTH = 100
"""Columns of a comment, and of a value that stands on one line."""

LONGEST = 120
"""Columns of a line with value and reason."""

STEP = "  "


def text(settings: Sequence[Setting], header: Sequence[str]) -> str:
    """The YAML of a plan.

    Args:
        settings: decisions in the order of the file; those of one section are gathered where it
            first stands.
        header: lines of the comment above.

    Returns:
        The text; its first line holds a checksum of the rest, see
        :mod:`pipeline.files.generated`.

    Example:
        >>> made = text([Setting("name", "x"), Setting("data.dims", 2, "pictures")], ["A plan."])
        >>> print(made.partition(chr(10))[2])
        # A plan.
        name: x
        data:
          dims: 2  # pictures
        <BLANKLINE>
    """
    lines = [wrapped for line in header for wrapped in _comment(line, "")]
    lines += _section(settings, 0, "")
    body = "\n".join(lines) + "\n"
    return files.with_checksum(MARK, body)


def is_plan(content: str) -> bool:
    """Whether a text is a plan, edited or not.

    Args:
        content: of a file.

    Returns:
        True where it begins as plans do.
    """
    return content.startswith(MARK)


def fingerprint_path(plan: Path) -> Path:
    """Where the fingerprint lies beside a plan.

    Args:
        plan: the YAML file.

    Returns:
        ``NAME.fingerprint.json``.
    """
    return plan.with_suffix(".fingerprint.json")


def _section(settings: Sequence[Setting], depth: int, indent: str) -> Iterator[str]:
    """Lines of the settings of one section, whose keys agree up to ``depth``."""
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.key.split(".")[depth], []).append(setting)
    for name, group in groups.items():
        leaves = [s for s in group if s.key.count(".") == depth]
        for leaf in leaves:
            yield from _entry(name, leaf, indent)
        inner = [s for s in group if s.key.count(".") > depth]
        if inner and not all(s.proposed for s in inner):
            yield f"{indent}{_flow(name)}:"
            yield from _section(inner, depth + 1, indent + STEP)
        else:
            yield from _proposed_section(inner, indent)


def _proposed_section(settings: Sequence[Setting], indent: str) -> Iterator[str]:
    """Proposals of a section that is not written otherwise, by their dotted keys."""
    for setting in settings:
        yield from _entry(setting.key, setting, indent)


def _entry(name: str, setting: Setting, indent: str) -> Iterator[str]:
    """Lines of one value with its reason."""
    before = f"{indent}# " if setting.proposed else indent
    reason = printable(setting.reason).replace("\n", " ")
    lines = list(_value(name, setting.value, before))
    if len(lines) == 1 and len(lines[0]) + len(reason) + 4 <= LONGEST:
        yield lines[0] + (f"  # {reason}" if reason else "")
        return
    if reason:
        yield from _comment(reason, indent)
    yield from lines


def _value(name: str, value: Any, before: str) -> Iterator[str]:
    """A value on one line; a list of dicts that does not fit as one item a line."""
    line = f"{before}{_flow(name)}: {_flow(value)}"
    items = isinstance(value, list) and any(isinstance(v, dict) for v in value)
    if not items or len(line) <= WIDTH:
        yield line
        return
    yield f"{before}{_flow(name)}:"
    yield from (f"{before}{STEP}- {_flow(item)}" for item in value)


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    made = dump_yaml(_plain(value), default_flow_style=True, width=math.inf)
    return made.removesuffix("...\n").rstrip("\n")


def _plain(value: Any) -> Any:
    """Tuples as lists, mappings as dicts."""
    if isinstance(value, Mapping):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _comment(line: str, indent: str) -> Iterator[str]:
    """A comment, broken at words."""
    safe = printable(line).replace("\n", " ")
    found = textwrap.wrap(safe, WIDTH - len(indent) - 2, break_long_words=False) or [""]
    yield from (f"{indent}# {part}".rstrip() for part in found)
