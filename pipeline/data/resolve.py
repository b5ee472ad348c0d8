"""Numbers that a config takes from its training data, put into it before anything else is made."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from pipeline.config import Config, ConfigError, numbers
from pipeline.data import intensities, normalise
from pipeline.data.intensities import Intensities
from pipeline.data.properties import CaseProperties
from pipeline.records import NamedOptions

BY_HAND = "or give the numbers: {name: ct, options: {low: -100, high: 300, mean: 100, std: 75}}"
"""The way out where nothing can be counted."""


def resolved(config: Config, properties: Sequence[CaseProperties]) -> Config:
    """A config with the numbers that ``data.normalise`` leaves to the training data.

    They are those of all cases, in the order of the cases, whichever fold is trained: folds that
    are started apart get the same.

    Args:
        config: the user's config.
        properties: those of ``examine(cases, config, ...)``, without problems, and of one number of
            channels.

    Returns:
        The config: the same where it lacks no number; else with one entry for each channel where
        there are several.

    Raises:
        ConfigError: where no voxel of the foreground was found.
    """
    method = config.data.normalise
    if not any(map(numbers.lacking, numbers.entries(method))):
        return config
    channels = properties[0].shapes["image"][0]
    several = numbers.entries(method) * (channels if isinstance(method, NamedOptions) else 1)
    found = [
        _numbers(entry, [p.intensities[n] for p in properties if p.intensities], n)
        if numbers.lacking(entry)
        else {}
        for n, entry in enumerate(several)
    ]
    return numbers.with_normalisation(config, numbers.with_numbers(method, found))


def _numbers(entry: NamedOptions, cases: Sequence[Intensities], channel: int) -> dict[str, float]:
    """The numbers of one channel, by option."""
    if not any(case.count for case in cases):
        raise ConfigError(
            f"data.normalise: {entry.name!r} takes its numbers from the foreground of the training"
            f" cases (label above 0, not ignored), and channel {channel} has none. Look at the"
            f" labels, {BY_HAND}."
        )
    usual = inspect.signature(normalise.ct).parameters
    at = [
        entry.options.get(name, usual[name].default)
        for name in ("low_percentile", "high_percentile")
    ]
    (low, high), mean, std = intensities.pooled(cases, at)
    return {"low": low, "high": high, "mean": mean, "std": std}
