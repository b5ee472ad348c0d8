"""The file of a plan read back: keys, values as they are written, and the reasons beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.planning.plan_file import MARK

PROPOSAL = re.compile(r"# *([a-z_][\w.]*): (.+?)  # (.+)")
"""A value that a plan proposes in a comment, with its reason."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One value of a plan.

    Args:
        key: dotted key, such as ``data.patch.size``.
        value: as it stands in the file, a line for each of a list that is too long for one.
        reason: the comment beside or above it.
        proposed: it is in a comment, for a person to decide.
    """

    key: str
    value: str
    reason: str = ""
    proposed: bool = False


def header(text: str) -> list[str]:
    """The comment that a plan begins with, without its checksum.

    Args:
        text: of the file.

    Returns:
        Lines; those that were wrapped stay so.

    Example:
        >>> header("# Written by pipeline.plan, checksum 1\\n# Time: an hour\\nname: x\\n")
        ['Time: an hour']
    """
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(MARK):
            found.append(line.lstrip("# ").rstrip())
    return found


def decisions(text: str) -> list[Decision]:
    """The values of a plan with their reasons, in the order of the file.

    Args:
        text: of the file, edited or not.

    Returns:
        Decisions; none where it is no YAML mapping.

    Example:
        >>> decisions("data:\\n  dims: 3  # volumes\\n  # as in most files\\n  crop: none\\n")[1]
        Decision(key='data.crop', value='none', reason='as in most files', proposed=False)
    """
    import yaml

    try:
        leaves = list(_leaves(yaml.compose(text, Loader=yaml.SafeLoader), ""))
    except (yaml.YAMLError, ValueError, RecursionError):  # an alias may hold itself
        return []
    lines = text.splitlines()
    found, begun = [], len(header(text)) + text.startswith(MARK)
    for key, node, first in leaves:
        above = _comment_above(lines, first, begun)
        proposals = [PROPOSAL.fullmatch(line) for line in above]
        section = key.rpartition(".")[0]
        found += [
            Decision(_dotted(section, m[1]), m[2], m[3], proposed=True) for m in proposals if m
        ]
        rest = [line.lstrip("# ") for line, m in zip(above, proposals, strict=True) if not m]
        value, beside = _value(text, lines, node)
        found.append(Decision(key, value, beside or " ".join(rest)))
    return found


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any, int]]:
    """Dotted key, value and line of the key, of everything that is no block of keys."""
    if getattr(node, "id", "") != "mapping":
        return
    for key, value in node.value:
        name = _dotted(path, str(key.value))
        if value.id == "mapping" and not value.flow_style:
            yield from _leaves(value, name)
        else:
            yield name, value, key.start_mark.line


def _dotted(section: str, key: str) -> str:
    return f"{section}.{key}" if section and "." not in key else key


def _comment_above(lines: Sequence[str], line: int, begun: int) -> list[str]:
    """The lines of comment directly above a line, without those of the file's header."""
    first = line
    while first > begun and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return [text.strip() for text in lines[first:line]]


def _value(text: str, lines: Sequence[str], node: Any) -> tuple[str, str]:
    """A value as it is written, and the comment behind it."""
    start, end = node.start_mark, node.end_mark
    if start.line != end.line and node.id == "sequence" and not node.flow_style:
        items = (item for item in node.value)
        return "\n".join(text[i.start_mark.index : i.end_mark.index].strip() for i in items), ""
    written = text[start.index : end.index].strip()
    last = str(lines[end.line]) if end.line < len(lines) else ""
    behind = last[end.column :].strip()
    return written, behind.lstrip("# ") if behind.startswith("#") else ""
