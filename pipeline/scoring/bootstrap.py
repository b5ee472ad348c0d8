"""Confidence intervals of a mean over cases: the percentile bootstrap, with a fixed seed.

Source:
    Efron 1979; Efron and Tibshirani 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 5000
"""Bootstrap samples of cases."""

UNIT_DRAWS = 10_000
"""Bootstrap samples of units."""


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % confidence interval of a mean over cases.

    Args:
        values: one number for each case.

    Returns:
        Lower and upper end; None for fewer than two cases.

    Example:
        >>> interval([0.5, 0.5, 0.5])
        (0.5, 0.5)
    """
    if len(values) < 2:
        return None
    array = np.asarray(values, float)
    picks = np.random.default_rng(0).integers(0, len(array), (DRAWS, len(array)))
    return _between(array[picks].mean(axis=1), ((1 - 0.95) / 2, (1 + 0.95) / 2))


def interval_by_units(
    values: np.ndarray, units: Sequence[Any] | np.ndarray, draws: int = UNIT_DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95 % confidence interval of a mean over cases, where cases of one unit are drawn as a whole.

    Args:
        values: one number for each case ``(cases,)``, at least one.
        units: unit of each case, e.g. its group.
        draws: number of bootstrap samples.
        seed: of the random numbers.

    Returns:
        Lower and upper end; of a single unit both are the mean itself.
    """
    _, index = np.unique(np.asarray(list(units)), return_inverse=True)
    sums, sizes = np.bincount(index, values), np.bincount(index)
    picks = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=draws
    )
    return _between((picks @ sums) / (picks @ sizes), (0.025, 0.975))


def _between(means: np.ndarray, shares: tuple[float, float]) -> tuple[float, float]:
    """The quantiles ``shares`` of bootstrap means."""
    low, high = np.quantile(means, shares)
    return float(low), float(high)
