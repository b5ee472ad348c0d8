"""A decision of planning: a key of a config, its value, and the rule that gave it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config, from_dict


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of a planned config.

    Args:
        key: dotted key, such as ``data.patch.size``.
        value: as YAML holds it: numbers, text, lists, dicts, None.
        reason: the rule that gave it, with its numbers; empty where the name says it all.
        proposed: not set: written as a comment for a person to decide.

    Example:
        >>> Setting("data.dims", 2, "pictures").key
        'data.dims'
    """

    key: str
    value: Any
    reason: str = ""
    proposed: bool = False


def as_dict(settings: Iterable[Setting]) -> dict[str, Any]:
    """Nested dicts of the settings that are set.

    Args:
        settings: in any order; of one key the last counts.

    Returns:
        What a YAML file of them would hold.

    Example:
        >>> as_dict([Setting("name", "x"), Setting("data.dims", 2), Setting("seed", 1, "", True)])
        {'name': 'x', 'data': {'dims': 2}}
    """
    found: dict[str, Any] = {}
    for setting in settings:
        if setting.proposed:
            continue
        *parents, last = setting.key.split(".")
        at = found
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = setting.value
    return found


def as_config(settings: Iterable[Setting], where: str = "plan") -> Config:
    """The config of settings.

    Args:
        settings: decisions.
        where: what messages call it.

    Returns:
        The checked config.

    Raises:
        ConfigError: where the settings do not make one.
    """
    return from_dict(as_dict(settings), where=where)
