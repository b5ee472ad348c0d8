"""What the tables hold, a line an entry: name, first sentence of its docstring, options."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.augment.table import AUGMENT
from pipeline.data.normalise import NORMALISE
from pipeline.inference.fusion import FUSIONS
from pipeline.losses import LOSSES
from pipeline.metrics import METRICS
from pipeline.networks import NETWORKS
from pipeline.postprocess.table import POSTPROCESS
from pipeline.registry import Registry, function_of
from pipeline.training.optim import OPTIMIZERS, SCHEDULES

LONGEST = 24
"""Most characters of a default that a line shows."""

ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
"""A reference of a docstring, such as ``:func:`score```."""

END = re.compile(r"(?<!et al)(?<!e\.g)(?<!i\.e)(?<=[.!?])\s+(?=[A-Z])")
"""Where a sentence ends and another one begins."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A table whose entries are functions with options.

    Args:
        entries: the table.
        given: arguments that the package provides, which are no options.
    """

    entries: Registry[Any]
    given: Sequence[str] = ()


TABLES: Mapping[str, Listed] = {
    "networks": Listed(NETWORKS, ("in_channels", "out_channels", "dims")),
    "losses": Listed(LOSSES),
    "metrics": Listed(METRICS),
    "steps": Listed(POSTPROCESS, ("array",)),
    "augment": Listed(AUGMENT, ("keys",)),
    "normalisations": Listed(NORMALISE, ("array",)),
    "optimizers": Listed(OPTIMIZERS, ("parameters",)),
    "schedules": Listed(SCHEDULES, ("optimizer", "epochs")),
}
"""Tables by the names that ``pipeline list`` takes; those of plugins' entries, too."""


def lines(table: str) -> list[str]:
    """Describe the entries of a table.

    Args:
        table: a key of :data:`TABLES`, or ``fusions``.

    Returns:
        A line for each entry, in the table's order.

    Example:
        >>> print(lines("losses")[0])
        dice              Soft Dice, `1 - (2 TP + smooth) / (2 TP + FP + FN + smooth)`.  \
{smooth: 1.0e-05, batch: false, background: false}
    """
    if table == "fusions":
        return columns([(name, fusion.text) for name, fusion in FUSIONS.items()])
    listed = TABLES[table]
    return columns([(name, _described(entry, listed)) for name, entry in listed.entries.items()])


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Align two columns.

    Args:
        rows: name and text.

    Returns:
        A line for each row.

    Example:
        >>> columns([("a", "first"), ("long", "")])
        ['a     first', 'long']
    """
    wide = max((len(name) for name, _ in rows), default=0)
    return [f"{name:<{wide}}  {text}".rstrip() for name, text in rows]


def first_sentence(text: str | None) -> str:
    """Take the first sentence of a docstring, without its marks.

    Args:
        text: a docstring; None: there is none.

    Returns:
        One line; empty where there is no text.

    Example:
        >>> first_sentence("Soft Dice, ``1 - d``.  By :func:`~a.dice`.")
        'Soft Dice, `1 - d`.'
    """
    paragraph = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
    return END.split(ROLE.sub(r"\1", paragraph).replace("``", "`"))[0]


def _described(entry: Any, listed: Listed) -> str:
    """First sentence of an entry, and its options as YAML."""
    function = function_of(entry)
    given = {*listed.given, *getattr(entry, "given", ())}
    options = ", ".join(_options(inspect.signature(function), given))
    sentence = first_sentence(function.__doc__)
    return "  ".join(part for part in (sentence, options and f"{{{options}}}") if part)


def _options(signature: inspect.Signature, given: set[str]) -> Iterator[str]:
    for name, parameter in signature.parameters.items():
        if name in given or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is parameter.empty
        text = "?" if required else _yaml(parameter.default)
        yield f"{name}: {text if len(text) <= LONGEST else '...'}"


def _yaml(value: Any) -> str:
    """A default as it would stand in a config."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):  # YAML takes 1e-05 for a text
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    try:
        return json.dumps(value)
    except TypeError:  # an object of a plugin
        return str(value)
