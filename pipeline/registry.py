"""Tables of named entries: what a name in the YAML may mean. An entry is a record, so that adding one is one place.

A table is read like a dict. Plugins add to it (:mod:`pipeline.plugins`); nothing is ever taken away or replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar


class Entry(Protocol):
    """A record of a table: it says which function its options are those of."""

    @property
    def call(self) -> Callable[..., Any]: ...


E = TypeVar("E", bound=Entry)


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
    """

    def __init__(self, kind: str, entries: Mapping[str, E], aliases: Mapping[str, Alias] | None = None) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self.aliases = dict(aliases or {})

    def __getitem__(self, name: str) -> E:
        alias = self.aliases.get(name)
        return self._entries[name if alias is None else alias.name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self.aliases

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, name: str, entry: E) -> None:
        """Add an entry. Raises ValueError for a name that is taken, or that no YAML could hold as a plain word."""
        if not name.isidentifier():
            raise ValueError(f"{self.kind} {name!r}: a name consists of letters, digits and underscores, and begins with no digit.")
        if name in self:
            raise ValueError(f"{self.kind} {name!r} is there already. Choose another name.")
        self._entries[name] = entry

    def resolve(self, name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The entry's own name, and the options under its own names of them."""
        alias = self.aliases.get(name)
        if alias is None:
            return name, dict(options)
        return alias.name, {alias.options.get(k, k): v for k, v in options.items()}
