"""Binding of an entry's options, checked against the signature of the function that it builds."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pipeline.config.errors import SHOWN, ConfigError, shown
from pipeline.records import LossTerm, NamedOptions
from pipeline.registry import Registry, function_of

OPTION = 2**63
"""Whole numbers below this, by absolute value, can be options; other libraries take no more."""


class OptionTypeError(ConfigError):
    """An option of a table's entry whose value is not of the annotated type."""

    def in_own_words(self, call: Callable[[], object]) -> ConfigError:
        """Prefer the error that the entry itself raises for that option: it names the rule better.

        Args:
            call: calls the entry with the option.

        Returns:
            The ConfigError that ``call`` raises; this error where it raises another one or none.
        """
        try:
            call()
        except ConfigError as own:
            return own
        except Exception:
            return self
        return self


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """Suggest the closest known name, for messages.

    Args:
        word: the unknown name.
        known: all names that there are.

    Returns:
        ``Did you mean 'x'? Known: ...``, without the question where no name is close.

    Example:
        >>> nearest("dise", ["dice", "focal"])
        "Did you mean 'dice'? Known: dice, focal."
    """
    known, word = sorted(known), word[:SHOWN]
    close = difflib.get_close_matches(word, known, n=1)
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {', '.join(known)}."


def bind(
    table: Mapping[str, Any],
    part: NamedOptions | LossTerm,
    where: str,
    given: typing.Sequence[str] = (),
    further: typing.Sequence[str] = (),
) -> Callable[..., Any]:
    """Bind the options of an entry as keywords of its function.

    Args:
        table: entries by name: functions, or records whose function is
            :func:`pipeline.registry.function_of`.
        part: name and options.
        where: dotted key of the entry, for messages.
        given: names of the arguments that the caller will add; options may not name those.
        further: options that the caller has replaced, for the list of known ones.

    Returns:
        The function with the options bound.

    Raises:
        ConfigError: for an unknown name, an unknown option, or an argument that neither the options
            nor the caller provide.
        OptionTypeError: for a value that is not of the annotated type.
    """
    if part.name not in table:
        raise ConfigError(
            f"{where}: {part.name[:SHOWN]!r} is unknown. {nearest(part.name, table)} A plugin can"
            " add it: --plugin FILE."
        )
    if isinstance(table, Registry):
        name, options = table.resolve(part.name, part.options)
        part = dataclasses.replace(part, name=name, options=options)
    entry: Any = table[part.name]
    factory = function_of(entry) if dataclasses.is_dataclass(entry) else entry
    signature = inspect.signature(factory)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    allowed = [
        n
        for n, p in signature.parameters.items()
        if n not in given and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    for option in part.options:
        if option not in allowed and not open_ended:
            raise ConfigError(
                f"{where}: {part.name!r} has no option {option[:SHOWN]!r}."
                f" {nearest(option, [*allowed, *further]) if allowed else 'It takes no options.'}"
            )
    wrong = [
        f"option {n} is {shown(value)}, must be {_type_text(kind)}."
        for n, value in part.options.items()
        if (kind := _annotations(factory).get(n, Any)) is not Any and not _fits(value, kind)
    ]
    if wrong:
        raise OptionTypeError(f"{where}: {part.name!r}: {' '.join(wrong)}")
    try:
        signature.bind(**dict.fromkeys(given), **part.options)
    except TypeError as error:
        raise ConfigError(
            f"{where}: {part.name!r}: {error}. Its options: {', '.join(allowed) or 'none'}."
        ) from None
    return functools.partial(factory, **part.options)


@functools.cache
def _annotations(factory: Callable[..., Any]) -> Mapping[str, Any]:
    """Types of a function's arguments; empty where they cannot be resolved."""
    try:
        return typing.get_type_hints(factory)
    except (NameError, TypeError):
        return {}


def _fits(value: Any, kind: Any) -> bool:
    """Whether an option from YAML is of an annotated type.

    A list is a sequence, a whole number is also a float; NaN is no number.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, k) for k in arguments)
    if origin is Literal:
        return any(type(value) is type(a) and value == a for a in arguments)
    if _is_list(kind):
        return isinstance(value, list | tuple) and _items_fit(value, kind)
    if origin in (dict, collections.abc.Mapping) or kind in (dict, collections.abc.Mapping):
        items = value.items() if isinstance(value, Mapping) else ()
        return isinstance(value, Mapping) and (
            not arguments
            or all(_fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in items)
        )
    return _is_plain(value, kind)


def _is_plain(value: Any, kind: Any) -> bool:
    """Whether a scalar is of an annotated type; types that are not known here pass."""
    # NaN differs from itself.
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if number and isinstance(value, int) and abs(value) >= OPTION:
        return False
    if kind is float:
        return number
    if kind is int:  # 3.0 is accepted as 3
        return number and math.isfinite(value) and value == int(value)
    if kind in (None, types.NoneType):
        return value is None
    return isinstance(value, kind) if kind in (bool, str) else True


def _is_list(kind: Any) -> bool:
    return (typing.get_origin(kind) or kind) in (
        list,
        tuple,
        collections.abc.Sequence,
        collections.abc.Iterable,
    )


def _items_fit(values: typing.Sequence[Any], kind: Any) -> bool:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and arguments[-1:] != (...,):
        return len(values) == len(arguments) and all(
            _fits(v, k) for v, k in zip(values, arguments, strict=True)
        )
    return not arguments or all(_fits(v, arguments[0]) for v in values)


def _type_text(kind: Any) -> str:
    """An annotation in a user's terms: ``a number``, ``a list of two numbers or null``."""
    plain = {
        float: "a number",
        int: "a whole number",
        bool: "true or false",
        str: "a text",
        types.NoneType: "null",
        Any: "anything",
    }
    if kind in plain:
        return plain[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(_type_text(k) for k in arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if _is_list(kind):
        fixed = origin is tuple and arguments[-1:] != (...,)
        count = {0: "", 2: "two ", 3: "three "}.get(
            len(arguments) if fixed else 0, f"{len(arguments)} "
        )
        many = {float: "numbers", int: "whole numbers", str: "texts"}.get(
            arguments[0] if arguments else None, "values"
        )
        return f"a list of {count}{many}"
    return (
        "a mapping"
        if origin in (dict, collections.abc.Mapping)
        else f"{getattr(kind, '__name__', kind)}"
    )
