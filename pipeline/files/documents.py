"""Documents that other commands or people wrote: JSON of bounded size, checked against a schema
before anything is done with it.

A schema is an annotation: a ``TypedDict`` (keys that it does not name are kept as they are),
``dict``, ``list``, ``Literal``, ``float``, ... as in :mod:`pipeline.documents`. It is not pydantic
that checks them: that refuses every text with a byte of a file name that is no UTF-8 (a surrogate
in Python, ``\\udcff`` in JSON), and such names are taken through all commands.
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
"""Bytes of a document.

Listings of 300,000 cases take about 200 MB; beyond that a file is no document but data.
"""

WIDEST = 2**63
"""Whole numbers below this, by amount, are what other libraries take."""

HUGE = 2**1000
"""A whole number below this, by amount, is also a float."""

_NO_NAME = re.compile("[\ud800-\udc7f\udd00-\udfff]")

SHOWN = 80
"""Letters of a wrong value that a message shows."""


def read_json(path: Path) -> Any:
    """Content of a JSON file; FileError where it is missing, no regular file, larger than LARGEST,
    not JSON, or has a key twice.
    """
    return guarded(path, lambda: _parsed(path, _content(path)))


def read_document(path: Path, schema: Any, suggestion: str, what: str = "") -> Any:
    """Content of a JSON file that follows ``schema``.

    Raises FileError with the key, its value, the rule, ``what`` that makes of the file (``is no
    result of a fold``), and ``suggestion``, what the user can do, where it does not, and as
    :func:`read_json`.
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
    """``document``, of which a part of the file ``path`` consists.

    Raises FileError where it does not follow ``schema``.
    """
    found = problem(document, schema)
    if found is not None:
        raise FileError(path, found, suggestion)
    return document


def _content(path: Path) -> bytes:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise FileError(
            path, "is a folder" if path.is_dir() else "is no regular file", "Name a file"
        )
    if facts.st_size > LARGEST:
        raise FileError(
            path,
            f"has {facts.st_size:,} bytes; documents have at most {LARGEST:,}",
            "Look at what it holds",
        )
    return path.read_bytes()


def _parsed(path: Path, content: bytes) -> Any:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(
            path, f"is no UTF-8 text (byte {error.start})", "Save it as UTF-8, or make it again"
        ) from None
    return parse(text)


def parse(text: str) -> Any:
    """JSON text as plain data.

    Raises ValueError for what is no JSON, has a key twice, or nests too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:SHOWN]!r} stands twice")
    return found


def shown(value: Any) -> str:
    """A value in a message: never longer than SHOWN letters, however deep or long it is."""
    if isinstance(value, dict | list) and value:
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= WIDEST:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


# --- schemas --------------------------------------------------------------------------------------


def problem(value: Any, schema: Any, key: str = "") -> str | None:
    """What is wrong with ``value``: ``folds.0.train is 3, must be a list``; None where it follows
    the schema.
    """
    return next(_problems(value, schema, key), None)


def _problems(value: Any, schema: Any, key: str) -> Iterator[str]:
    origin = typing.get_origin(schema)
    if typing.is_typeddict(schema):
        yield from _of_record(value, schema, key)
    elif origin is dict:
        yield from _of_items(value, dict, typing.get_args(schema)[1], key)
    elif origin is list:
        yield from _of_items(value, list, typing.get_args(schema)[0], key)
    elif origin in (types.UnionType, typing.Union):
        yield from _of_union(value, typing.get_args(schema), key)
    elif not _fits(value, schema):
        yield _wrong(value, schema, key)


def _wrong(value: Any, schema: Any, key: str) -> str:
    begin = f"{key} is {shown(value)}" if key else f"holds {shown(value)}"
    return f"{begin}, must be {in_words(schema)}"


def _of_record(value: Any, schema: Any, key: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield _wrong(value, dict, key)
        return
    for name, (kind, needed) in _keys(schema).items():
        if name in value:
            yield from _problems(value[name], kind, f"{key}.{name}" if key else name)
        elif needed:
            yield f"lacks the key {f'{key}.{name}' if key else name}"


def _of_items(value: Any, kind: type, inner: Any, key: str) -> Iterator[str]:
    if not isinstance(value, kind):
        yield _wrong(value, kind, key)
        return
    for name, item in value.items() if kind is dict else enumerate(value):
        if not _is_plainly(item, inner):
            yield from _problems(
                item, inner, f"{key}.{str(name)[:SHOWN]}" if key else str(name)[:SHOWN]
            )
        if kind is dict and not _is_text(name):
            yield f"{key or 'the document'} has a key that is no text: {shown(name)}"


def _of_union(value: Any, kinds: tuple[Any, ...], key: str) -> Iterator[str]:
    if any(problem(value, kind) is None for kind in kinds):
        return
    inner = [kind for kind in kinds if _container(kind) is type(value)]
    if len(inner) == 1:  # of the right kind, with something wrong inside
        yield from _problems(value, inner[0], key)
    else:
        yield _wrong(value, typing.Union[kinds], key)  # noqa: UP007 - a tuple of kinds


def _container(kind: Any) -> Any:
    return dict if typing.is_typeddict(kind) else typing.get_origin(kind)


@functools.cache
def _keys(schema: Any) -> dict[str, tuple[Any, bool]]:
    """Kind of each key of a TypedDict, and whether it has to be there."""
    found = {}
    for name, kind in typing.get_type_hints(schema, include_extras=True).items():
        optional = typing.get_origin(kind) is typing.NotRequired
        found[name] = (typing.get_args(kind)[0] if optional else kind, not optional)
    return found


def _is_plainly(value: Any, kind: Any) -> bool:
    """A quick yes for what most long lists hold."""
    return kind is str and type(value) is str and value.isascii() and "\0" not in value


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Annotated:
        plain, *rules = typing.get_args(kind)
        return problem(value, plain) is None and all(rule.holds(value) for rule in rules)
    if typing.get_origin(kind) is Literal:
        return any(type(value) is type(a) and value == a for a in typing.get_args(kind))
    return kind is Any or FITS[kind](value)


def _is_text(value: Any) -> bool:
    """Text that can be a path: no zero, and no surrogate but those that stand for bytes of a file
    name that are no UTF-8.
    """
    return isinstance(value, str) and "\0" not in value and _NO_NAME.search(value) is None


def _is_number(value: Any) -> bool:
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


def in_words(kind: Any) -> str:
    """
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
