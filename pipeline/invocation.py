"""How the commands were called, for messages that name the next one."""

from __future__ import annotations

_program: list[str] = []
"""Program that has passed this process on to a command; empty where the command was started."""


def come_from(program: str) -> None:
    """Name the program by which the command of this process was called.

    Args:
        program: ``pipeline``, or ``python -m pipeline``.
    """
    _program[:] = [program]


def called(command: str) -> str:
    """How a command is called in the way that the present one was.

    Args:
        command: such as ``train``.

    Returns:
        ``pipeline train`` where this process is the command ``pipeline``, else
        ``python -m pipeline.train``, which works wherever the package is.

    Example:
        >>> called("train")
        'python -m pipeline.train'
    """
    return f"{_program[0]} {command}" if _program else f"python -m pipeline.{command}"
