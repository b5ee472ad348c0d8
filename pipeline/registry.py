"""Tables of named entries: what a name in the YAML may mean.

A table is read like a dict. Each entry is one record, so that adding an entry is one change in one
place. Plugins add to a table (:mod:`pipeline.plugins`); nothing is ever removed or replaced, but
inside :meth:`Registry.restored`, which is for tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

E = TypeVar("E")


def function_of(entry: Any) -> Callable[..., Any]:
    """Function whose options an entry takes: the first field of its record.

    Args:
        entry: a dataclass instance from a table.

    Returns:
        The value of its first field.
    """
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
            table of its type (:func:`table_of`). None: the table is closed.
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
        """Add an entry.

        Args:
            name: its name in configs.
            entry: the record.

        Raises:
            ValueError: as :meth:`require_free`.
        """
        self.require_free(name)
        self._entries[name] = entry

    @contextmanager
    def restored(self) -> Iterator[dict[str, E]]:
        """Undo every change of the table at the end of a ``with`` block, also after an error.

        For tests that add, replace or remove entries. Blocks may be nested.

        Yields:
            The entries by their own names, without aliases. Changes of this dict change the table.

        Example:
            >>> table = Registry("loss", {"dice": 1})
            >>> with table.restored() as entries:
            ...     entries["dice"] = 2
            ...     table.add("focal", 3)
            ...     dict(table)
            {'dice': 2, 'focal': 3}
            >>> dict(table)
            {'dice': 1}
        """
        entries, aliases = dict(self._entries), dict(self.aliases)
        try:
            yield self._entries
        finally:
            self._entries.clear()
            self._entries.update(entries)
            self.aliases.clear()
            self.aliases.update(aliases)

    def require_free(self, name: str) -> None:
        """Check that a name may be given to a new entry.

        Args:
            name: the name.

        Raises:
            ValueError: for a name that is taken, or no identifier.
        """
        if not name.isidentifier():
            rule = "a name consists of letters, digits and underscores, and begins with no digit"
            raise ValueError(f"{self.kind} {name!r}: {rule}.")
        if name in self:
            raise ValueError(f"{self.kind} {name!r} is there already. Choose another name.")

    def resolve(self, name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Replace aliases of an entry and of its options by their own names.

        Args:
            name: name or alias of an entry; an unknown name is returned as it is.
            options: options of the entry, possibly under aliases.

        Returns:
            The entry's own name, and its options by their own names.

        Example:
            >>> table = Registry("loss", {"dice": 1}, {"Dice": Alias("dice", {"eps": "smooth"})})
            >>> table.resolve("Dice", {"eps": 1.0})
            ('dice', {'smooth': 1.0})
        """
        alias = self.aliases.get(name)
        if alias is None:
            return name, dict(options)
        return alias.name, {alias.options.get(k, k): v for k, v in options.items()}


TABLES: dict[type, Registry[Any]] = {}
"""Tables that plugins may add to, by the type of their entries."""


def table_of(entry: Any) -> Registry[Any] | None:
    """Table that an entry of a plugin belongs to.

    Args:
        entry: a record, such as a ``LossEntry``.

    Returns:
        The table of its type; None where there is none.
    """
    return TABLES.get(type(entry))
