"""Faults of a config: errors, and problems that are collected while a whole config is read."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.records import UserError

SHOWN = 200
"""Most characters of a value, a key or another library's message that a message shows."""


def shown(value: Any) -> str:
    """Format a value for a message, cut to ``SHOWN`` characters.

    Args:
        value: any value.

    Returns:
        Its ``repr``, followed by ``...`` where it was cut.
    """
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


class ConfigError(UserError):
    """A YAML file, an override or an option of a table's entry that cannot be used.

    The message names key, value, rule and suggestion.
    """


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a config."""

    text: str
    """The sentence to show."""
    keys: tuple[str, ...] = ()
    """Dotted keys that cause the fault: with their defaults in place it would not be there."""
    severity: Literal["error", "warning"] = "error"


noted_problems: contextvars.ContextVar[list[Problem] | None] = contextvars.ContextVar(
    "_found", default=None
)
"""List that the checks of a config's dataclasses append to while one is read.

None where each check raises at once.
"""


def require(good: bool, message: str, *keys: str) -> None:
    """Raise ConfigError unless a rule holds, or only note it while a whole config is read.

    Args:
        good: whether the rule holds.
        message: the sentence to show where it does not.
        *keys: dotted keys that cause the fault.

    Raises:
        ConfigError: where the rule does not hold and no list of problems is open.
    """
    if good:
        return
    found = noted_problems.get()
    if found is None:
        raise ConfigError(message)
    found.append(Problem(message, keys))


def require_at_least(least: int, where: str, **values: float) -> None:
    """Require lower bounds, as :func:`require`.

    Args:
        least: smallest value that is accepted.
        where: dotted key of the section that the values belong to.
        **values: numbers by the name of their key.

    Raises:
        ConfigError: as :func:`require`.
    """
    for name, value in values.items():
        rule = "must not be negative" if least == 0 else f"must be at least {least}"
        require(value >= least, f"{where}.{name} is {value}, {rule}.", f"{where}.{name}")
