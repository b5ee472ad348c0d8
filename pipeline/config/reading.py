"""Reading a :class:`~pipeline.config.schema.Config` from YAML and overrides, and back to dicts."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.binding import nearest
from pipeline.config.errors import SHOWN, ConfigError, Problem, noted_problems, shown
from pipeline.config.schema import Config
from pipeline.config.strict_yaml import DEEPEST, dump_yaml, parse_yaml, read_yaml

T = typing.TypeVar("T")


MOST_SHOWN = 50
"""Most faults of one file that a message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Result of reading a config that may have faults."""

    config: Any
    """The config with the keys in ``replaced`` at their defaults.

    None where even that gives no config.
    """
    problems: tuple[Problem, ...] = ()
    """Every fault found; empty for a good config."""
    replaced: tuple[str, ...] = ()
    """Dotted keys that were reset to their defaults because of a fault."""

    def relies_on(self, key: str) -> bool:
        """Whether a key, or one that holds it, was replaced.

        A finding about such a key would not be about the user's file.

        Args:
            key: dotted key.

        Returns:
            True where its value is not the user's.
        """
        return any(key == r or key.startswith(f"{r}.") for r in self.replaced)


def load(path: Path | str, overrides: typing.Sequence[str] | str = ()) -> Config:
    """Read a system's YAML, apply overrides and check everything.

    Args:
        path: the YAML file.
        overrides: ``KEY=VALUE``, one or several, with dotted keys and YAML values.

    Returns:
        The config.

    Raises:
        ConfigError: listing every fault found.
    """
    if isinstance(overrides, str):
        overrides = [overrides]
    problems: list[Problem] = []
    data = _read_with(Path(path), overrides, problems)
    if problems:
        raise ConfigError(_listed(problems))
    return from_dict(data, where=str(path))


def examine(path: Path, overrides: typing.Sequence[str] = ()) -> Reading:
    """Read a config as :func:`load`, but return its faults, so that the rest can be checked, too.

    Args:
        path: the YAML file.
        overrides: ``KEY=VALUE``, with dotted keys and YAML values.

    Returns:
        The config as far as it can be built, and every fault.

    Raises:
        ConfigError: only where the file is missing or no YAML.
    """
    problems: list[Problem] = []
    reading = _read(_read_with(path, overrides, problems), Config)
    return dataclasses.replace(reading, problems=(*problems, *reading.problems))


def _read_with(
    path: Path, overrides: typing.Sequence[str], problems: list[Problem]
) -> dict[str, Any]:
    """The YAML file with the overrides; an override that cannot be applied becomes a problem."""
    if not path.is_file():
        have = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(
            f"{path}: no such config file. "
            + (f"There are: {', '.join(have)}." if have else f"{path.parent} holds no YAML file.")
        )
    data = read_yaml(path)
    for text in overrides:
        try:
            override(data, text)
        except ConfigError as error:
            problems.append(Problem(str(error)))
    return data


def override(data: dict[str, Any], text: str) -> None:
    """Apply one override to nested dicts in place.

    Args:
        data: nested dicts and lists.
        text: ``a.b.c=value``; the value is read as YAML, and ``a.0.b`` indexes a list.

    Raises:
        ConfigError: for a text that is no ``KEY=VALUE``, a value that is no YAML, and a key that
            does not fit the data.

    Example:
        >>> data = {"losses": [{"name": "dice"}]}
        >>> override(data, "losses.0.weight=0.5")
        >>> data
        {'losses': [{'name': 'dice', 'weight': 0.5}]}
    """
    key, equals, value = text.partition("=")
    option = f"--set {text[:SHOWN]!r}"
    *parents, last = key.strip().split(".")
    if not equals or not all((*parents, last)):
        raise ConfigError(f"{option} is not KEY=VALUE; e.g. --set train.epochs=10.")
    if len(parents) > DEEPEST:
        raise ConfigError(f"{option} names more than {DEEPEST} levels; a config has six.")
    try:
        new = parse_yaml(value)
    except ConfigError as error:
        raise ConfigError(f"{option}: not readable as YAML: {error}") from None
    node: Any = data
    for name in parents:
        node = (
            node[_index(node, name, option)]
            if isinstance(node, list)
            else node.setdefault(name, {})
        )
        if not isinstance(node, dict | list):
            raise ConfigError(f"{option}: {name[:SHOWN]!r} holds {shown(node)}, which has no keys.")
    index: Any = _index(node, last, option) if isinstance(node, list) else last
    node[index] = new


def _index(node: list, name: str, option: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", name) or int(name) >= len(node):
        raise ConfigError(
            f"{option}: {name[:SHOWN]!r} is no position in a list of {len(node)}; count from 0."
        )
    return int(name)


def from_dict(data: Mapping[str, Any], where: str = "config") -> Config:
    """Build a config from nested dicts (a YAML file, the header of a model file).

    Args:
        data: nested dicts.
        where: what the message calls them.

    Returns:
        The config.

    Raises:
        ConfigError: with every structural fault.

    Example:
        >>> from_dict({"name": "demo", "network": "unet", "losses": ["dice"]}).network.name
        'unet'
    """
    return structure(data, Config, where)


def structure(data: Mapping[str, Any], kind: type[T], where: str) -> T:
    """Build a frozen dataclass from nested dicts.

    Args:
        data: nested dicts.
        kind: the dataclass.
        where: what the message calls them.

    Returns:
        An instance of ``kind``.

    Raises:
        ConfigError: with every structural fault.
    """
    reading = _read(data, kind)
    if reading.problems:
        raise ConfigError(f"{where}:\n  " + _listed(reading.problems))
    return reading.config


def _listed(problems: typing.Sequence[Problem]) -> str:
    more = [f"... {len(problems) - MOST_SHOWN} more"] if len(problems) > MOST_SHOWN else []
    return "\n  ".join([*(p.text for p in problems[:MOST_SHOWN]), *more])


ROUNDS = 50
"""Times that a config is read, each time without the keys that were wrong before.

No file has more faults in a row that hide each other.
"""


def _read(data: Mapping[str, Any], kind: type[Any]) -> Reading:
    """Build ``kind`` from nested dicts and collect every problem.

    A fault may hide others: they are found by reading again with the faulty key at its default.
    """
    unknown: list[str] = []
    full = _expand(dict(data), kind, "", unknown)
    problems, replaced = [Problem(text) for text in unknown], list[str]()
    for key in list(_not_numbers(full)):
        problems.append(Problem(f"{key} is nan (not a number), which no key takes.", (key,)))
        replaced += [taken] if (taken := _reset(full, key)) is not None else []
    value = None
    for _ in range(ROUNDS):
        value, found = _build(full, kind)
        so_far = Reading(config=None, replaced=tuple(replaced))
        problems += [p for p in found if not any(so_far.relies_on(key) for key in p.keys)]
        if not found:
            break
        value = None
        taken = [_reset(full, key) for key in dict.fromkeys(key for p in found for key in p.keys)]
        replaced += [key for key in taken if key is not None]
        if not any(taken):
            break
    return Reading(
        config=value,
        problems=tuple(dict.fromkeys(problems)),
        replaced=tuple(dict.fromkeys(replaced)),
    )


def _not_numbers(value: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of NaN, which any rule of the form "not below" lets pass.

    Options of entries are left to :func:`~pipeline.config.bind`.
    """
    if isinstance(value, float) and math.isnan(value):
        yield key.removeprefix(".")
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, item in items:
        if name != "options":
            yield from _not_numbers(item, f"{key}.{name}")


def _build(full: Any, kind: type[Any]) -> tuple[Any, list[Problem]]:
    """Build ``kind`` from spelled-out nested dicts, and collect all that is wrong with them."""
    from pydantic import ValidationError

    found: list[Problem] = []
    token = noted_problems.set(found)
    try:
        return _adapter(kind).validate_json(json.dumps(full), strict=True), found
    except ValidationError as error:
        items = (_of_one_kind(full, item) for item in error.errors(include_url=False))
        return None, [*found, *(_problem_of(item) for item in items if item is not None)]
    finally:
        noted_problems.reset(token)


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _of_one_kind(full: Any, item: Mapping[str, Any]) -> dict[str, Any] | None:
    """A fault of a key that takes an entry or a list of entries; None for the kind it is not."""
    where = list(item["loc"])
    named = [n for n, part in enumerate(where) if "NamedOptions" in str(part)]
    if named:
        is_list = str(where[named[0]]).startswith("tuple")
        if is_list != isinstance(_at(full, [str(x) for x in where[: named[0]]]), list):
            return None
        del where[named[0]]
    return {**item, "loc": tuple(where)}


def _problem_of(item: Mapping[str, Any]) -> Problem:
    key = ".".join(str(x) for x in item["loc"] if not str(x).startswith("function-"))
    if key.startswith("data.class_names"):
        text = (
            f"data.class_names: {shown(item.get('input'))} has another form than"
            " {1: Brainstem, 2: Cord}: label values first, then their names."
        )
        return Problem(text, ("data.class_names",))
    if item["type"] == "missing":
        text = f"{key}: missing, has no default"
    else:
        text = f"{key}: {str(item['msg'])[:SHOWN]} (got {shown(item.get('input'))})"
    return Problem(text, (key,))


STAND_INS = {
    r"name": "unnamed",
    r"network": {"name": "unet"},
    r"losses": [{"name": "dice"}],
    r"losses\.\d+": {"name": "dice"},
    r"(metrics|train\.validate\.metrics)\.\d+": {"name": "dice"},
    r"postprocess\.\d+": {"name": "fill_holes"},
    r"data\.augment\.\d+": {"name": "flip"},
    r"data\.normalise\.\d+": {"name": "percentile"},
    r"data\.folders\.image": "images",
}
"""Values in place of faulty keys without a default, so that the other keys can be checked.

Nothing is reported about these values themselves.
"""


def _reset(full: Any, key: str) -> str | None:
    """Reset the entry at a dotted key, or the nearest one around it, to its default.

    Returns the key that was reset; None where there was nothing to reset.
    """
    parts = key.split(".")
    while parts:
        where, at = ".".join(parts), _at(full, parts[:-1])
        stand_in = _stand_in(full, where)
        if isinstance(at, dict) and (parts[-1] in at or stand_in is not None):
            at.pop(parts[-1], None)
            at |= {} if stand_in is None else {parts[-1]: stand_in}
            return where
        if (
            isinstance(at, list)
            and stand_in is not None
            and parts[-1].isdigit()
            and int(parts[-1]) < len(at)
        ):
            at[int(parts[-1])] = stand_in
            return where
        parts.pop()
    return None


def _stand_in(full: Any, key: str) -> Any:
    """Value to put at a faulty key; None: remove the key, so that its default counts."""
    if key in ("data.patch", "data.patch.size"):  # the default is for volumes, and larger than many
        dims = _at(full, ["data", "dims"])
        size = [32] * (dims if dims in (2, 3) else 3)
        return size if key.endswith("size") else {"size": size}
    return next((value for pattern, value in STAND_INS.items() if re.fullmatch(pattern, key)), None)


def _at(full: Any, parts: typing.Sequence[str]) -> Any:
    for part in parts:
        if isinstance(full, dict):
            full = full.get(part)
        else:
            full = (
                full[int(part)]
                if isinstance(full, list) and part.isdigit() and int(part) < len(full)
                else None
            )
    return full


def _expand(value: Any, kind: Any, key: str, faults: list[str]) -> Any:
    """Spell out shorthand: ``flip`` -> ``{name: flip}``.

    Unknown keys are added to ``faults``, each with the nearest known one.
    """
    if isinstance(kind, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        lists = [k for k in kinds if typing.get_origin(k) is tuple]
        kind = (lists if isinstance(value, list) and lists else kinds)[0]
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return [
            _expand(v, typing.get_args(kind)[0], f"{key}.{i}", faults) for i, v in enumerate(value)
        ]
    if not dataclasses.is_dataclass(kind):
        return value
    if isinstance(value, str) and "name" in {f.name for f in dataclasses.fields(kind)}:
        value = {"name": value}
    if value is None or not isinstance(value, dict):
        return value
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for unknown in [k for k in value if k not in names]:
        faults.append(
            f"{key + '.' if key else ''}{str(unknown)[:SHOWN]}: unknown key."
            f" {nearest(str(unknown), names)}"
            + (
                " Options of an entry stand in its options."
                if {"name", "options"} <= {*names}
                else ""
            )
        )
    return {
        k: _expand(v, hints[k], f"{key}.{k}" if key else k, faults)
        for k, v in value.items()
        if k in names
    }


def to_dict(config: Config) -> dict[str, Any]:
    """Convert a config to nested plain dicts, with every default written out.

    Paths of plugins are left out: neither a run nor a model file keeps them.

    Args:
        config: the config.

    Returns:
        Values that JSON and YAML can hold.
    """
    settings = plain(config)
    del settings["plugins"]
    return settings


def plain(record: Any) -> dict[str, Any]:
    """Convert a dataclass of the config to nested plain dicts, as they are read from JSON.

    Args:
        record: a dataclass instance.

    Returns:
        Nested dicts and lists.
    """
    return json.loads(json.dumps(dataclasses.asdict(record), default=list))


def dump(config: Config) -> str:
    """Write the resolved config as YAML.

    Args:
        config: the config.

    Returns:
        YAML from which :func:`load` makes an equal config, but for ``plugins``.
    """
    return dump_yaml(to_dict(config), default_flow_style=None, width=120)


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List every leaf in which two nested dicts differ.

    Args:
        old: nested dicts.
        new: nested dicts.
        prefix: put before each key.

    Returns:
        Lines ``key: old -> new``, in alphabetical order.

    Example:
        >>> difference({"train": {"epochs": 10}}, {"train": {"epochs": 20}})
        ['train.epochs: 10 -> 20']
    """
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{prefix}{key}.")
            if (
                key == "regions" and a == b and list(a) != list(b)
            ):  # their order is that of channels
                lines.append(f"{prefix}{key}: in the order {list(a)} -> {list(b)}")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
