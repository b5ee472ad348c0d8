"""Plugins: files of Python that the user names, which add entries to the tables.

A plugin runs because the user has named its file: on the command line, in a config of their own, or
to :func:`load_plugins`. Nothing that is stored in a run or in a model file is ever run. There a
plugin is a name and a SHA-256, by which :func:`require` checks that the user has named the right
one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.abc
import importlib.util
import logging
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import documents
from pipeline.records import LossTerm, NamedOptions, UserError
from pipeline.registry import Registry, table_of

logger = logging.getLogger(__name__)

LARGEST = 2**20
"""Most bytes of a plugin."""

SHOWN = 12
"""Digits of a SHA-256 that a message shows."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin as it was read: these bytes run, here and in other processes.

    Args:
        path: where the user has it.
        source: its bytes.
    """

    path: str
    source: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """Name of the file."""
        return Path(self.path).name

    @property
    def sha256(self) -> str:
        """SHA-256 of the source in hexadecimal digits."""
        return hashlib.sha256(self.source).hexdigest()

    @property
    def record(self) -> dict[str, str]:
        """What a run and a model file keep of it."""
        return {"name": self.name, "sha256": self.sha256}


_loaded: dict[str, Plugin] = {}
"""Plugins of this process by SHA-256."""

_owners: dict[tuple[str, str], Plugin] = {}
"""Plugin that has added an entry, by kind and name."""

_loading: list[list[tuple[Registry[Any], str, Any]]] = []
"""Entries that the plugins being run have registered so far, a list for each plugin."""

_lock = threading.RLock()


def register(name: str, entry: Any) -> None:
    """Add an entry to the table of its kind; called by a plugin while it is loaded.

    Args:
        name: its name in the YAML, an identifier that no other entry of the table has.
        entry: a ``LossEntry``, ``NetworkEntry``, ``AugmentationEntry``, ``OptimizerEntry``, ...

    Raises:
        UserError: for a name that is taken, another kind of entry, and outside of a plugin.

    Example:
        In a plugin, a file ``mine.py`` that is loaded with ``--plugin mine.py``::

            def brier(*, power: float = 2.0): ...

            pl.register("brier", pl.LossEntry(brier, targets=("labels",)))
    """
    if not _loading:
        how = "with --plugin FILE, plugins: [FILE] in a config, or pipeline.load_plugins(FILE)"
        raise UserError(
            f"register({name!r}, ...) stands outside of a plugin. Put it into a file and name that"
            f" {how}."
        )
    if not isinstance(name, str):
        raise UserError(f"register({name!r}, ...): a name is a text.")
    table, current = table_of(entry), _loading[-1]
    if table is None:
        raise UserError(f"register({name!r}, {type(entry).__name__}): no table has such entries.")
    owner = _owners.get((table.kind, name))
    if owner is not None:
        raise UserError(
            f"{table.kind} {name!r} is registered by {owner.path}, too. Rename it in one of the"
            " two."
        )
    if any(table is other and name == taken for other, taken, _ in current):
        raise UserError(f"{table.kind} {name!r} is registered twice. Rename one of the two.")
    try:
        table.require_free(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    current.append((table, name, entry))


def load_plugins(paths: Iterable[Path | str] | Path | str) -> None:
    """Run files of Python that :func:`register` entries.

    A file that is loaded already is not run again.

    Args:
        paths: a file or several, below the working folder unless absolute.

    Raises:
        UserError: for a file that is not there, fails, or registers a name that is taken; nothing
            of that file is registered then.

    Example:
        ::

            pl.load_plugins("mine.py")
            config = pl.load_config("configs/mine.yaml")
    """
    for path in [paths] if isinstance(paths, str | Path) else paths:
        _load(_read(Path(path)))


def _read(path: Path) -> Plugin:
    if documents.PLUGIN.fullmatch(path.name) is None or not path.name.isprintable():
        raise UserError(f"--plugin {path}: a plugin is a file of Python, NAME.py.")
    try:
        # A pipe would be waited for, and a device read without end.
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")
        with path.open("rb") as file:
            source = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"--plugin {path}: cannot be read: {reason}. Check the path; it is relative to the"
            " working folder."
        ) from None
    if len(source) > LARGEST:
        raise UserError(f"--plugin {path}: has more than {LARGEST:,} bytes. Is it another file?")
    return Plugin(str(path), source)


class _Source(importlib.abc.ExecutionLoader):
    """Loads a plugin from the bytes that were read: the file may have changed since."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin

    def get_filename(self, fullname: str) -> str:
        return self.plugin.path

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.plugin.source)


def _load(plugin: Plugin) -> None:
    with _lock:
        if plugin.sha256 in _loaded:
            return
        if (other := _loaded_as(plugin.name)) is not None:
            raise UserError(
                f"--plugin {plugin.path}: {other.path} is loaded under the same name and holds"
                " other bytes. Rename one of them; if it is the same file, changed since, begin a"
                " new process."
            )
        _run(plugin)


def _loaded_as(name: str) -> Plugin | None:
    return next((plugin for plugin in _loaded.values() if plugin.name == name), None)


def _run(plugin: Plugin) -> None:
    """Run a plugin, and add its entries to their tables when it has succeeded."""
    name = f"pipeline_plugin_{plugin.sha256[:SHOWN]}"
    if name in sys.modules:
        raise UserError(f"plugin {plugin.path} loads itself. Leave that out.")
    loader = _Source(plugin)
    spec = importlib.util.spec_from_file_location(name, plugin.path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    entries: list[tuple[Registry[Any], str, Any]] = []
    _loading.append(entries)
    sys.modules[name] = module  # pickle finds its classes there
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        logger.debug("a plugin failed", exc_info=True)
        raise UserError(_error_text(plugin, error)) from None
    finally:
        _loading.pop()
    for table, entry_name, entry in entries:
        table.add(entry_name, entry)
        _owners[table.kind, entry_name] = plugin
    _loaded[plugin.sha256] = plugin


def _error_text(plugin: Plugin, error: BaseException) -> str:
    """File, line and message of what went wrong in a plugin."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == plugin.path
    ]
    line = (
        error.lineno
        if isinstance(error, SyntaxError) and error.filename == plugin.path
        else next(reversed(lines), None)
    )
    words = str(error.msg if isinstance(error, SyntaxError) else error)
    text = words if isinstance(error, UserError) else f"{type(error).__name__}: {words}"
    return f"plugin {plugin.path}{'' if line is None else f', line {line}'}: {text}"


# --- what a config needs --------------------------------------------------------------------------


def used_by(config: Any) -> list[Plugin]:
    """Find the plugins that have added what a config names.

    Args:
        config: the config.

    Returns:
        Plugins by file name.
    """
    named = set(_names(config))
    found = {owner.name: owner for (_, name), owner in _owners.items() if name in named}
    return [found[name] for name in sorted(found)]


def words(config: Any) -> list[str]:
    """Options of a command that name the plugins which a config needs.

    Args:
        config: the config.

    Returns:
        Words of a command line: ``--plugin FILE`` for each.
    """
    return [word for plugin in used_by(config) for word in ("--plugin", plugin.path)]


def _names(value: Any) -> Iterator[str]:
    """Names of all entries in nested dataclasses."""
    if isinstance(value, NamedOptions | LossTerm):
        yield value.name
    elif dataclasses.is_dataclass(value):
        for part in dataclasses.fields(value):
            yield from _names(getattr(value, part.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _names(item)


def require(
    records: Sequence[Mapping[str, str]], where: Path | str, copies: Path | None = None
) -> None:
    """Check that every plugin of a run or a model file is loaded, with the same bytes.

    Args:
        records: name and SHA-256 of each (:attr:`Plugin.record`).
        where: the run or the file.
        copies: folder in which the run keeps copies; None: not known.

    Raises:
        UserError: listing the plugins that are missing or were changed.
    """
    faults = [_mismatch(record) for record in records if record["sha256"] not in _loaded]
    if faults:
        there = (
            f"A copy lies in {copies}"
            if copies is not None
            else "The run that trained it keeps a copy in plugins/"
        )
        raise UserError(
            f"{where} was made with plugins:\n  "
            + "\n  ".join(faults)
            + f"\n{there}; it is never run by itself. Read it, then name the file: --plugin FILE,"
            " or pipeline.load_plugins(FILE)."
        )


def _mismatch(record: Mapping[str, str]) -> str:
    known = _loaded_as(record["name"])
    wanted = f"{record['name']} (SHA-256 {record['sha256'][:SHOWN]}...)"
    if known is None:
        return f"{wanted} is not loaded"
    return f"{wanted}, but {known.path} has SHA-256 {known.sha256[:SHOWN]}...: it was changed"


# --- other processes ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Carried:
    """The plugins of this process, on their way to another one.

    Unpickled there, it loads them, so what is pickled after it may hold their classes.
    """

    plugins: tuple[Plugin, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_carried, (self.plugins,)


def carried() -> Carried:
    """The plugins that this process has loaded, to be pickled.

    Returns:
        A record that loads them where it is unpickled.
    """
    return Carried(tuple(_loaded.values()))


def _load_carried(plugins: tuple[Plugin, ...]) -> Carried:
    for plugin in plugins:
        _load(plugin)
    return Carried(plugins)
