"""How sure a mean over cases is: percentile bootstrap intervals (Efron 1979; Efron and Tibshirani
1993, chapter 13). Seeded.
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
    """95 % interval of the mean of ``values`` ``(cases,)``; None for fewer than two."""
    if len(values) < 2:
        return None
    array = np.asarray(values, float)
    picks = np.random.default_rng(0).integers(0, len(array), (DRAWS, len(array)))
    return _between(array[picks].mean(axis=1), ((1 - 0.95) / 2, (1 + 0.95) / 2))


def interval_by_units(
    values: np.ndarray, units: Sequence[Any] | np.ndarray, draws: int = UNIT_DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` ``(cases,)``, at least one, where cases of one unit
    are drawn as a whole.

    ``units`` names that of each case, e.g. its group. One unit has no interval: it is the mean
    itself.
    """
    _, index = np.unique(np.asarray(list(units)), return_inverse=True)
    sums, sizes = np.bincount(index, values), np.bincount(index)
    picks = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=draws
    )
    return _between((picks @ sums) / (picks @ sizes), (0.025, 0.975))


def _between(means: np.ndarray, shares: tuple[float, float]) -> tuple[float, float]:
    low, high = np.quantile(means, shares)
    return float(low), float(high)
