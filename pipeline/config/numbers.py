"""Numbers of entries that are found in the training data, and how a stored config gives them back.

A user's config leaves them out; the config of the run and of its models holds them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.schema import Config
from pipeline.records import NamedOptions

FOUND: Mapping[str, tuple[str, ...]] = {"ct": ("low", "high", "mean", "std")}
"""Options that are found in the training data, by normalisation."""

Normalisation = NamedOptions | Sequence[NamedOptions]
"""``data.normalise``: one entry for all channels, or one for each."""


def entries(method: Normalisation) -> tuple[NamedOptions, ...]:
    """The entries of a normalisation.

    Args:
        method: one entry, or one for each channel.

    Returns:
        One or several.
    """
    return (method,) if isinstance(method, NamedOptions) else tuple(method)


def lacking(entry: NamedOptions) -> tuple[str, ...]:
    """Numbers that an entry leaves to the training data.

    Args:
        entry: of ``data.normalise``.

    Returns:
        Names of the options; empty for entries without such numbers.

    Example:
        >>> lacking(NamedOptions(name="ct", options={"low": -50}))
        ('high', 'mean', 'std')
    """
    return tuple(n for n in FOUND.get(entry.name, ()) if entry.options.get(n) is None)


def given(entry: NamedOptions) -> dict[str, Any]:
    """Options of an entry without the numbers that are null.

    Args:
        entry: of ``data.normalise``.

    Returns:
        The options that the user has set.
    """
    empty = lacking(entry)
    return {name: value for name, value in entry.options.items() if name not in empty}


def with_normalisation(config: Config, method: Normalisation) -> Config:
    """A config with another normalisation.

    Args:
        config: the config.
        method: one entry, or one for each channel.

    Returns:
        The config.
    """
    one = method if isinstance(method, NamedOptions) else tuple(method)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, normalise=one))


def with_numbers(method: Normalisation, numbers: Sequence[Mapping[str, float]]) -> Normalisation:
    """A normalisation with the numbers that it lacks.

    Args:
        method: one entry, or one for each channel.
        numbers: of each channel, by option.

    Returns:
        One entry where it was one and there is one channel; else one for each channel.
    """
    several = entries(method) * (len(numbers) if isinstance(method, NamedOptions) else 1)
    made = tuple(
        NamedOptions(
            name=entry.name,
            options=given(entry) | {n: found[n] for n in lacking(entry)},
        )
        if lacking(entry)
        else entry
        for entry, found in zip(several, numbers, strict=True)
    )
    return made[0] if isinstance(method, NamedOptions) and len(made) == 1 else made


def filled(config: Config, stored: Config) -> Config:
    """A user's config with the numbers of a stored one, where both normalise alike.

    Args:
        config: the user's config.
        stored: that of a run or a model, with all numbers.

    Returns:
        The config; the same where it lacks no number, or the stored one cannot give them.
    """
    mine, theirs = config.data.normalise, entries(stored.data.normalise)
    if not any(map(lacking, entries(mine))):
        return config
    if not isinstance(mine, NamedOptions) and len(mine) != len(theirs):
        return config
    several = entries(mine) * (len(theirs) if isinstance(mine, NamedOptions) else 1)
    pairs = zip(several, theirs, strict=True)
    if any(lacking(a) and (a.name != b.name or lacking(b)) for a, b in pairs):
        return config
    return with_normalisation(config, with_numbers(mine, [b.options for b in theirs]))
