"""A strict subset of YAML: plain data without tags, aliases and duplicate keys.

Anchors are refused because a few of them expand to gigabytes.
"""

from __future__ import annotations

import functools
import re
import typing
from pathlib import Path
from typing import Any

from pipeline.config.errors import SHOWN, ConfigError
from pipeline.invocation import called

LARGEST_FILE = 2**18
"""Most bytes of a YAML file: a hundred times a shipped config.

Larger ones take a minute to read and are no config.
"""


DEEPEST = 32
"""Most levels of nesting in a YAML file; a config has six."""


WIDEST = 10**100
"""Whole numbers below this, by absolute value, are read; narrower limits are checked key by key."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: a UTF-8 file, with or without a byte order mark.

    Returns:
        Nested plain dicts.

    Raises:
        ConfigError: for a file that cannot be read, is too large, is no UTF-8, holds no mapping, or
            as :func:`parse_yaml`.
    """
    try:
        content = path.read_bytes() if path.stat().st_size <= LARGEST_FILE else None
        text = None if content is None else content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}. Check the path and its rights."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not readable as YAML: it is no UTF-8 text (byte {error.start}). Save it as"
            " UTF-8."
        ) from None
    if text is None:
        raise ConfigError(
            f"{path}: has {path.stat().st_size:,} bytes; a YAML file here has at most"
            f" {LARGEST_FILE:,}. Is it another file?"
        )
    try:
        data = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(data, dict):
        holds = "nothing" if data is None else type(data).__name__
        raise ConfigError(
            f"{path}: must hold 'key: value' lines, holds {holds}. {called('list')} configs names"
            " examples."
        )
    return data


def parse_yaml(text: str) -> Any:
    """Parse YAML as plain data: text, numbers, booleans, null, lists, mappings with text keys.

    Differs from PyYAML where that follows YAML 1.1 against expectation: ``1e-4`` is a number, a
    date is a text, and numbers to base 60 or 8 are refused.

    Args:
        text: a YAML document.

    Returns:
        The value, of built-in types.

    Raises:
        ConfigError: for bad syntax, tags, anchors and aliases, duplicate keys, keys that are no
            text, and values that no key takes.

    Example:
        >>> parse_yaml("{lr: 1e-4, size: [64, 64]}")
        {'lr': 0.0001, 'size': [64, 64]}
    """
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except (ConfigError, RecursionError) as error:
        raise ConfigError(
            str(error) if isinstance(error, ConfigError) else "it is nested too deep"
        ) from None
    except Exception as error:  # PyYAML lets errors of int(), chr() and others through
        raise ConfigError(
            f"{error}"[:SHOWN]
            if isinstance(error, yaml.YAMLError)
            else f"{type(error).__name__}: {error}"[:SHOWN]
        ) from None


PLAIN_TAGS = {
    None,
    "!",
    *(
        f"tag:yaml.org,2002:{kind}"
        for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge")
    ),
}
"""Tags that say no more than the form of a value does."""


FLOAT = "tag:yaml.org,2002:float"
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$")
"""Numbers that are a text to PyYAML, which follows YAML 1.1, such as 1e-4; users mean the number.
"""


def dump_yaml(value: Any, **style: Any) -> str:
    """Write plain data as YAML.

    Args:
        value: dicts, lists, texts, numbers, True, False and None.
        **style: options of ``yaml.dump``.

    Returns:
        YAML of which :func:`parse_yaml` makes an equal value: equal parts are written out again,
        texts that look like numbers are quoted, and letters that end a line or cannot be seen are
        escapes.

    Example:
        >>> print(dump_yaml(["1e3", "a\\u2028b"], default_flow_style=True).strip())
        ['1e3', "a\\Lb"]
    """
    import yaml

    found = ""
    for readable in (True, False):
        found = yaml.dump(value, Dumper=_dumper(), sort_keys=False, allow_unicode=readable, **style)
        if found.replace("\n", "").isprintable():
            break
    return found


@functools.cache
def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.add_implicit_resolver(FLOAT, NUMBER, list("-+0123456789."))
    return Dumper


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(
                    "anchors and aliases (&, *) are not accepted; write the value out."
                )
            _require_plain(event, self.depth)
            self.depth += 1
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            if not isinstance(node, yaml.ScalarNode):
                return super().construct_object(node, deep)
            where, text = f"line {node.start_mark.line + 1}", node.value[:SHOWN]
            try:
                value = super().construct_object(node, deep)
            except (ValueError, LookupError, OverflowError):
                raise ConfigError(
                    f"{where}: {text!r} is no value of the kind {node.tag.rpartition(':')[2]}."
                ) from None
            _require_usual(where, text, value, quoted=node.style is not None)
            return value

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            _require_keys([key for key, _ in node.value])
            return {
                key if isinstance(key, str) else str(key): value
                for key, value in super().construct_mapping(node, deep).items()
            }

    Loader.add_implicit_resolver(FLOAT, NUMBER, list("-+0123456789."))
    # A date is a text here: no key takes a date.
    resolvers: Any = Loader.yaml_implicit_resolvers
    Loader.yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in resolvers.items()
    }
    return Loader


def _require_plain(event: Any, depth: int) -> None:
    where = f"line {event.start_mark.line + 1}"
    if getattr(event, "tag", None) not in PLAIN_TAGS:
        raise ConfigError(
            f"{where}: the tag {event.tag[:SHOWN]} is not accepted; write plain values."
        )
    if depth >= DEEPEST:
        raise ConfigError(f"{where}: more than {DEEPEST} levels; a config has six.")


def _require_keys(keys: typing.Sequence[Any]) -> None:
    """Raise ConfigError for a key that is no text, and for one that occurs twice."""
    seen = set()
    for key in keys:
        where = f"line {key.start_mark.line + 1}"
        if not isinstance(key.value, str):
            raise ConfigError(f"{where}: a key is a list or a mapping; keys are texts.")
        if key.value in seen:
            raise ConfigError(
                f"key {key.value[:SHOWN]!r} stands twice, again in {where}. Remove one."
            )
        seen.add(key.value)
        if key.tag.rpartition(":")[2] in ("null", "bool", "float"):
            raise ConfigError(
                f"{where}: the key {key.value[:SHOWN]!r} is no text to YAML; put it in quotes."
            )


def _require_usual(where: str, text: str, value: Any, quoted: bool) -> None:
    """Raise ConfigError for a scalar that no key takes.

    Also for one that YAML 1.1 reads as another number than people do.
    """
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise ConfigError(
                f"{where}: the text {text!r} holds a character that no file name and no message can"
                " hold."
            )
        return
    if type(value) is int and abs(value) >= WIDEST:
        raise ConfigError(
            f"{where}: {text[:40]}{'...' if len(text) > 40 else ''} is a number that no key takes."
        )
    if type(value) in (int, float) and ":" in text:
        raise ConfigError(
            f"{where}: {text} is {value} to YAML, a number to base 60. Write that, or put it in"
            " quotes."
        )
    if type(value) is int and not quoted and re.fullmatch(r"[-+]?0[0-7_]+", text) and value:
        raise ConfigError(
            f"{where}: {text} is {value} to YAML, a number to base 8. Write it without the"
            " leading 0."
        )
