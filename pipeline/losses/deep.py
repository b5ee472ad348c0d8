"""Loss terms and weights of deep-supervision heads that no term of a config names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from pipeline.records import DeepHead, LossTerm

NO_HEADS: Mapping[str, DeepHead] = MappingProxyType({})


def is_deep(head: str) -> bool:
    """Check for the name of a deep-supervision head.

    Args:
        head: name of a head.

    Returns:
        Whether it is ``deep1``, ``deep2`` ...
    """
    return re.fullmatch(r"deep\d+", head) is not None


def with_deep(
    terms: Sequence[LossTerm], heads: Collection[str], deep: Mapping[str, DeepHead] = NO_HEADS
) -> tuple[LossTerm, ...]:
    """Add terms for deep-supervision heads where no term names one.

    The terms of head main are repeated for each head ``deepN``, with their weight times that of the
    head in ``deep``, unless it is 0. Heads that ``deep`` lacks have ``0.5**N``, N from 1 for the
    finest.

    Args:
        terms: terms of a config.
        heads: names of the network's heads.
        deep: weights of the network's heads, which :func:`main_factor` completes.

    Returns:
        All terms.

    Example:
        >>> terms = with_deep([LossTerm(name="dice")], ["main", "deep1", "deep2"])
        >>> [(term.head, term.weight) for term in terms]
        [('main', 1.0), ('deep1', 0.5), ('deep2', 0.25)]
    """
    found = sorted((head for head in heads if is_deep(head)), key=lambda head: int(head[4:]))
    if any(is_deep(term.head) for term in terms):
        return tuple(terms)
    factors = {head: deep[head].weight if head in deep else 0.5 ** int(head[4:]) for head in found}
    main = [term for term in terms if term.head == "main"]
    return (
        *terms,
        *(
            replace(t, head=head, weight=t.weight * factor)
            for head, factor in factors.items()
            if factor > 0
            for t in main
        ),
    )


def main_factor(terms: Sequence[LossTerm], deep: Mapping[str, DeepHead]) -> float:
    """Find the factor of the terms of head ``main`` in training.

    In validation their weights count as they are written, so that its loss is that of a network
    without deep supervision.

    Args:
        terms: terms of a config, as written.
        deep: weights of the network's heads.

    Returns:
        The weight of ``main`` in ``deep``; 1 where a term names a deep-supervision head, or
        ``deep`` is empty.

    Example:
        >>> heads = {"main": DeepHead(weight=0.75, stride=(1, 1))}
        >>> main_factor([LossTerm(name="dice")], heads), main_factor([LossTerm(name="dice")], {})
        (0.75, 1.0)
    """
    if "main" not in deep or any(is_deep(term.head) for term in terms):
        return 1.0
    return deep["main"].weight
