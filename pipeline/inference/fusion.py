"""Weighted fusion of the predictions of several members for one case.

Probabilities are averaged, or their logits, or the members vote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.files import Rows
from pipeline.records import UserError

SLAB = 32
"""Rows along the first space axis that are fused at a time."""


def require_weights(weights: Sequence[float]) -> None:
    """Check the weights of a mean.

    Args:
        weights: one number for each member.

    Raises:
        UserError: weights are negative or not finite, or none is positive.
    """
    if (
        not all(math.isfinite(w) and w >= 0 for w in weights)
        or not sum(weights) > 0
        or not math.isfinite(sum(weights))
    ):
        raise UserError(
            f"member weights {list(weights)} must be finite numbers that are not negative, and one"
            " must be positive."
        )


def fuse(
    arrays: Sequence[Any],
    weights: Sequence[float],
    fusion: str,
    case_id: str,
    independent: bool = False,
) -> Rows:
    """Fuse the predictions of several members, slab by slab as the result is sliced.

    Args:
        arrays: predictions ``(K, *S)``, one for each member, in memory or read as sliced.
        weights: one for each array; they are divided by their sum.
        fusion: ``mean``, ``logit`` or ``vote``, see ``FUSIONS``.
        case_id: id of the case for messages.
        independent: each channel is a probability of its own, as those of regions are.

    Returns:
        The fused array ``(K, *S)`` float32, computed as it is sliced.

    Raises:
        UserError: shapes differ, or weights make no mean.

    Example:
        >>> import numpy as np
        >>> one, other = np.full((1, 2, 2), 0.25), np.full((1, 2, 2), 0.75)
        >>> fuse([one, other], [1, 3], "mean", "case")[:].tolist()
        [[[0.625, 0.625], [0.625, 0.625]]]
    """
    require_weights(weights)
    shapes = {tuple(int(n) for n in a.shape) for a in arrays}
    if len(shapes) > 1:
        raise UserError(
            f"case {case_id}: members disagree in shape: {sorted(shapes)}. They were made from"
            " different inputs or configs."
        )
    shares = np.asarray(weights, np.float32) / np.float32(sum(weights))
    kind, (shape,) = (REGION_FUSIONS if independent else FUSIONS)[fusion], shapes

    def make(first: int, end: int) -> np.ndarray:
        out = np.empty((shape[0], end - first, *shape[2:]), np.float32)
        for start in range(first, end, SLAB):
            rows = slice(start, min(start + SLAB, end))
            total = np.zeros((shape[0], rows.stop - start, *shape[2:]), np.float32)
            for array, share in zip(arrays, shares, strict=True):
                total += share * kind.before(np.asarray(array[:, rows], np.float32))
            out[:, start - first : rows.stop - first] = kind.after(total)
        return out

    return Rows(shape, np.dtype(np.float32), make)


def _logit(p: Any) -> Any:
    """Logit of foreground, or log probabilities of classes, of clipped probabilities."""
    # float16 files hold exact 0 and 1; half a step away from them the logit is finite, so that no
    # single member decides.
    p = np.clip(p, 2.0**-12, 1 - 2.0**-12)
    return np.log(p / (1 - p)) if len(p) == 1 else np.log(p)


def _unlogit(x: Any) -> Any:
    """Inverse of :func:`_logit`: sigmoid or softmax."""
    if len(x) == 1:
        return 1 / (1 + np.exp(-x))
    e = np.exp(x - x.max(0))
    return e / e.sum(0)


def _decision(p: Any) -> Any:
    """One-hot decisions (of one channel: 1 from a probability of 0.5)."""
    return (
        (p >= 0.5).astype(np.float32)
        if len(p) == 1
        else (np.arange(len(p)).reshape(-1, *[1] * (p.ndim - 1)) == p.argmax(0)).astype(np.float32)
    )


def _each(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function of each channel by itself."""
    return lambda x: np.concatenate([function(x[n : n + 1]) for n in range(len(x))])


def _found(p: Any) -> Any:
    """Decisions for each region: 1 above a probability of 0.5."""
    return (p > 0.5).astype(np.float32)


def _same(x: Any) -> Any:
    return x


@dataclass(frozen=True, slots=True)
class Fusion:
    """A weighted mean of a function of the predictions.

    Args:
        text: what it is, for people.
        before: applied to a member's slab ``(K, *S)`` before it is averaged.
        after: applied to the mean; gives the result.
        probabilities: whether it is defined for probabilities alone.
    """

    text: str = ""
    before: Callable[[Any], Any] = _same
    after: Callable[[Any], Any] = _same
    probabilities: bool = True


FUSIONS: Mapping[str, Fusion] = {
    "mean": Fusion("Weighted mean of probabilities or intensities.", probabilities=False),
    "logit": Fusion("Weighted mean of log-odds.", _logit, _unlogit),
    "vote": Fusion("Weighted share of members that decide for a class.", _decision),
}
"""Kinds of fusion by their names in ``--fusion``."""

REGION_FUSIONS: Mapping[str, Fusion] = {
    "mean": Fusion(probabilities=False),
    "logit": Fusion(before=_each(_logit), after=_each(_unlogit)),
    "vote": Fusion(before=_found),
}
"""The same where each channel is a probability of its own."""
