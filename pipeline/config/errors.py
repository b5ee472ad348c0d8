"""What is wrong with a config, in words: errors, and problems that are noted while a whole config
is read.
"""

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.records import UserError

SHOWN = 200
"""Letters of a value, a key or a library's words that a message shows."""


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


class ConfigError(UserError):
    """A YAML file, an override or an option of a table's entry that cannot be used.

    The message names key, value, rule and cure.
    """


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a config: the sentence to show, and the keys without which it
    would not be wrong.
    """

    text: str
    keys: tuple[str, ...] = ()
    severity: Literal["error", "warning"] = "error"


noted_problems: contextvars.ContextVar[list[Problem] | None] = contextvars.ContextVar(
    "_found", default=None
)
"""Where the checks of a config's dataclasses put what they find while one is read; None where each
raises at once.
"""


def require(good: bool, message: str, *keys: str) -> None:
    """Raise ConfigError unless ``good``, or only take note while a whole config is read.

    ``keys`` would mend it if they were left out.
    """
    if good:
        return
    found = noted_problems.get()
    if found is None:
        raise ConfigError(message)
    found.append(Problem(message, keys))


def require_at_least(least: int, where: str, **values: float) -> None:
    for name, value in values.items():
        rule = "must not be negative" if least == 0 else f"must be at least {least}"
        require(value >= least, f"{where}.{name} is {value}, {rule}.", f"{where}.{name}")
