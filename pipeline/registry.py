"""Tables of named entries: what a name in the YAML may mean. An entry is a record, so that adding
one is one place.

A table is read like a dict. Plugins add to it (:mod:`pipeline.plugins`); nothing is ever taken away
or replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

E = TypeVar("E")


def function_of(entry: Any) -> Callable[..., Any]:
    """The function whose options an entry takes: the first field of its record."""
    return getattr(entry, dataclasses.fields(entry)[0].name)


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of an entry, and other names of its options: ``{alias: option}``."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)


class Registry(Mapping[str, E], Generic[E]):
    """Entries by name, in the order in which they were added.

    Args:
        kind: what an entry is, for messages: ``metric``, ``loss``, ``network``.
        entries: the entries of this package.
        aliases: further names. They are mapped when a name is resolved, never in a stored config.
        record: the type of the entries. Given, plugins may add to the table: an entry goes to the
            table of its type (:func:`table_of`).
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, E],
        aliases: Mapping[str, Alias] | None = None,
        record: type[E] | None = None,
    ) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self.aliases = dict(aliases or {})
        if record is not None:
            TABLES[record] = self

    def __getitem__(self, name: str) -> E:
        alias = self.aliases.get(name)
        return self._entries[name if alias is None else alias.name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, name: str, entry: E) -> None:
        """Add an entry. Raises ValueError as :meth:`require_free`."""
        self.require_free(name)
        self._entries[name] = entry

    def require_free(self, name: str) -> None:
        """Raise ValueError for a name that is taken, or no plain word."""
        if not name.isidentifier():
            rule = "a name consists of letters, digits and underscores, and begins with no digit"
            raise ValueError(f"{self.kind} {name!r}: {rule}.")
        if name in self:
            raise ValueError(f"{self.kind} {name!r} is there already. Choose another name.")

    def resolve(self, name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The entry's own name, and the options under its own names of them."""
        alias = self.aliases.get(name)
        if alias is None:
            return name, dict(options)
        return alias.name, {alias.options.get(k, k): v for k, v in options.items()}


TABLES: dict[type, Registry[Any]] = {}
"""Tables that plugins may add to, by the type of their entries."""


def table_of(entry: Any) -> Registry[Any] | None:
    """The table that an entry of a plugin belongs to; None where there is none."""
    return TABLES.get(type(entry))
