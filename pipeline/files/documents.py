"""JSON documents from other commands or users, bounded in size and checked against a schema.

A schema is an annotation: a ``TypedDict`` (keys that it does not name are kept as they are),
``dict``, ``list``, ``Literal``, ``float``, ... as in :mod:`pipeline.documents`. pydantic does not
serve here: it refuses every text with a byte of a file name that is no UTF-8 (a surrogate in
Python, ``\\udcff`` in JSON), and all commands accept such names.
"""

from __future__ import annotations

import functools
import json
import math
import re
import stat
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pipeline.files.errors import FileError, guarded

LARGEST = 2**28
"""Largest document, in bytes.

Listings of 300,000 cases take about 200 MB; a larger file is data, not a document.
"""

WIDEST = 2**63
"""Integers must be smaller than this in magnitude: other libraries take no more."""

HUGE = 2**1000
"""An integer smaller than this in magnitude can be converted to a float."""

_INVALID_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates that no byte of a file name is decoded to."""

SHOWN = 80
"""Characters of a wrong value that a message shows."""


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Args:
        path: JSON file in UTF-8, with or without a byte order mark.

    Returns:
        Its content as plain Python data.

    Raises:
        FileError: where the file is missing, empty, no regular file, larger than LARGEST bytes, not
            UTF-8 or not JSON, or has a key twice.
    """
    return guarded(path, lambda: _decode(path, _read_bytes(path)))


def read_document(path: Path, schema: Any, suggestion: str, what: str = "") -> Any:
    """Parse a JSON file and check it against a schema.

    Args:
        path: JSON file, as for :func:`read_json`.
        schema: annotation that the content must follow.
        suggestion: what the user can do about a document that cannot be used.
        what: what a mismatch means for the file, e.g. ``is no result of a fold``.

    Returns:
        The content as plain Python data.

    Raises:
        FileError: as :func:`read_json`, and where the content does not follow ``schema``: with the
            key, its value, the rule, ``what`` and ``suggestion``.
    """
    try:
        document = read_json(path)
    except FileError as error:
        raise FileError(
            path, error.problem, suggestion if path.is_file() else error.suggestion
        ) from None
    found = problem(document, schema)
    if found is not None:
        raise FileError(path, f"{found}: it {what}" if what else found, suggestion)
    return document


def checked(path: Path, document: Any, schema: Any, suggestion: str) -> Any:
    """Check a part of a parsed document against a schema.

    Args:
        path: file that the document comes from, for the message.
        document: parsed data.
        schema: annotation that it must follow.
        suggestion: what the user can do where it does not.

    Returns:
        ``document``, unchanged.

    Raises:
        FileError: where it does not follow ``schema``.
    """
    found = problem(document, schema)
    if found is not None:
        raise FileError(path, found, suggestion)
    return document


def _read_bytes(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FileError(
            path, "is a folder" if path.is_dir() else "is no regular file", "Name a file"
        )
    if status.st_size > LARGEST:
        raise FileError(
            path,
            f"has {status.st_size:,} bytes; documents have at most {LARGEST:,}",
            "Look at what it holds",
        )
    return path.read_bytes()


def _decode(path: Path, content: bytes) -> Any:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(
            path, f"is no UTF-8 text (byte {error.start})", "Save it as UTF-8, or make it again"
        ) from None
    return parse(text)


def parse(text: str) -> Any:
    """Parse JSON text into plain data.

    Args:
        text: a JSON document.

    Returns:
        Its content as plain Python data.

    Raises:
        ValueError: where the text is no JSON, has a key twice, or is nested too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict from the pairs of a JSON object, refusing duplicate keys."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {duplicate[:SHOWN]!r} stands twice")
    return found


def shown(value: Any) -> str:
    """Shorten a value for a message, however deep or long it is.

    Args:
        value: any parsed data.

    Returns:
        Its ``repr``, cut after SHOWN characters; of containers and huge integers only the size.

    Example:
        >>> shown([1, 2, 3]), shown(2**100), shown("a")
        ('a list of 3', 'a number of 101 bits', "'a'")
    """
    if isinstance(value, dict | list) and value:
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= WIDEST:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


# --- schemas --------------------------------------------------------------------------------------


def problem(value: Any, schema: Any, key: str = "") -> str | None:
    """Find the first violation of a schema.

    Args:
        value: parsed data.
        schema: annotation that it should follow.
        key: dotted path of ``value`` within its document, empty for the document itself.

    Returns:
        The violation in words, such as ``folds.0.train is 3, must be a list``; None where there is
        none.

    Example:
        >>> problem({"train": 3}, dict[str, list[str]])
        'train is 3, must be a list'
    """
    return next(_problems(value, schema, key), None)


def _problems(value: Any, schema: Any, key: str) -> Iterator[str]:
    origin = typing.get_origin(schema)
    if typing.is_typeddict(schema):
        yield from _record_problems(value, schema, key)
    elif origin is dict:
        yield from _item_problems(value, dict, typing.get_args(schema)[1], key)
    elif origin is list:
        yield from _item_problems(value, list, typing.get_args(schema)[0], key)
    elif origin in (types.UnionType, typing.Union):
        yield from _union_problems(value, typing.get_args(schema), key)
    elif not _fits(value, schema):
        yield _mismatch(value, schema, key)


def _mismatch(value: Any, schema: Any, key: str) -> str:
    """The message for a value of the wrong type."""
    begin = f"{key} is {shown(value)}" if key else f"holds {shown(value)}"
    return f"{begin}, must be {in_words(schema)}"


def _record_problems(value: Any, schema: Any, key: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield _mismatch(value, dict, key)
        return
    for name, (kind, needed) in _keys(schema).items():
        if name in value:
            yield from _problems(value[name], kind, f"{key}.{name}" if key else name)
        elif needed:
            yield f"lacks the key {f'{key}.{name}' if key else name}"


def _item_problems(value: Any, kind: type, inner: Any, key: str) -> Iterator[str]:
    if not isinstance(value, kind):
        yield _mismatch(value, kind, key)
        return
    for name, item in value.items() if kind is dict else enumerate(value):
        if not _is_plain_text(item, inner):
            yield from _problems(
                item, inner, f"{key}.{str(name)[:SHOWN]}" if key else str(name)[:SHOWN]
            )
        if kind is dict and not _is_text(name):
            yield f"{key or 'the document'} has a key that is no text: {shown(name)}"


def _union_problems(value: Any, kinds: tuple[Any, ...], key: str) -> Iterator[str]:
    if any(problem(value, kind) is None for kind in kinds):
        return
    inner = [kind for kind in kinds if _container(kind) is type(value)]
    if len(inner) == 1:  # of the right kind, with something wrong inside
        yield from _problems(value, inner[0], key)
    else:
        yield _mismatch(value, typing.Union[kinds], key)  # noqa: UP007 - a tuple of kinds


def _container(kind: Any) -> Any:
    """The container type of a schema, to be compared with ``type(value)``; None for plain types."""
    return dict if typing.is_typeddict(kind) else typing.get_origin(kind)


@functools.cache
def _keys(schema: Any) -> dict[str, tuple[Any, bool]]:
    """Type of each key of a TypedDict, and whether the key is required."""
    found = {}
    for name, kind in typing.get_type_hints(schema, include_extras=True).items():
        optional = typing.get_origin(kind) is typing.NotRequired
        found[name] = (typing.get_args(kind)[0] if optional else kind, not optional)
    return found


def _is_plain_text(value: Any, kind: Any) -> bool:
    """Fast check for what most long lists hold: ASCII strings where strings are wanted."""
    return kind is str and type(value) is str and value.isascii() and "\0" not in value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value follows a schema that is no container."""
    if typing.get_origin(kind) is typing.Annotated:
        plain, *rules = typing.get_args(kind)
        return problem(value, plain) is None and all(rule.holds(value) for rule in rules)
    if typing.get_origin(kind) is Literal:
        return any(type(value) is type(a) and value == a for a in typing.get_args(kind))
    return kind is Any or FITS[kind](value)


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be a path.

    It holds no NUL and no surrogates but those that stand for bytes of a file name that are no
    UTF-8.
    """
    return isinstance(value, str) and "\0" not in value and _INVALID_SURROGATE.search(value) is None


def _is_number(value: Any) -> bool:
    """Whether a value is a finite float, or an integer that a float can hold."""
    return (
        math.isfinite(value) if type(value) is float else type(value) is int and abs(value) < HUGE
    )


FITS: dict[Any, Callable[[Any], bool]] = {
    str: _is_text,
    float: _is_number,
    int: lambda value: type(value) is int and abs(value) < WIDEST,
    bool: lambda value: isinstance(value, bool),
    dict: lambda value: isinstance(value, dict),
    list: lambda value: isinstance(value, list),
    types.NoneType: lambda value: value is None,
}
"""Check of each plain type of a schema."""
WORDS: dict[Any, str] = {
    str: "a text",
    float: "a finite number",
    int: "a whole number of at most 63 bits",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    types.NoneType: "null",
    Any: "anything",
}
"""Name of each type of a schema in messages."""


def in_words(kind: Any) -> str:
    """Describe a schema in words.

    Args:
        kind: annotation, as for :func:`problem`.

    Returns:
        The description as it ends a message: ``must be ...``.

    Example:
        >>> in_words(list[str] | None), in_words(Literal["best", "swa"])
        ('a list or null', 'one of best, swa')
    """
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        plain, *rules = typing.get_args(kind)
        return " ".join(
            [*([] if plain is Any else [in_words(plain)]), *(rule.words for rule in rules)]
        )
    if origin is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(in_words(k) for k in typing.get_args(kind)))
    return WORDS.get(_container(kind) or kind, "a mapping")
