"""Text files that a command writes and a person may edit: a checksum says whether somebody has."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pipeline.files.durable import require_writable
from pipeline.records import UserError


def with_checksum(mark: str, body: str) -> str:
    """Put a line with the checksum of a text in front of it.

    Args:
        mark: begins that line.
        body: the text.

    Returns:
        Both.

    Example:
        >>> made = with_checksum("# by a command, ", "name: x")
        >>> is_unchanged("# by a command, ", made), is_unchanged("# by a command, ", made + "y")
        (True, False)
    """
    return f"{mark}{_checksum(body)}\n{body}"


def is_unchanged(mark: str, text: str) -> bool:
    """Whether a text was written with this mark, and not changed since.

    Args:
        mark: begins its first line.
        text: content of a file.

    Returns:
        True where the checksum of the first line is that of the rest.
    """
    first, _, rest = text.partition("\n")
    return first == mark + _checksum(rest)


def require_replaceable(out: Path, what: str, mark: str, force: bool) -> None:
    """Check that a YAML file can be written without loss.

    Args:
        out: the file.
        what: it holds: ``a plan``.
        mark: begins its first line where the same command wrote it.
        force: replace a file although somebody made it otherwise, or changed it.

    Raises:
        UserError: where it cannot.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}: {what} is a .yaml file.")
    require_writable("--out", out.parent)
    if os.path.lexists(out) and not os.path.isfile(out):
        raise UserError(f"--out {out} is no file. Choose another --out.")
    if force or not os.path.lexists(out):
        return
    if not is_unchanged(mark, out.read_text(encoding="utf-8", errors="replace")):
        raise UserError(
            f"{out} is there and was made or changed by somebody. Choose another --out, or replace"
            " it with --force."
        )


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]
