"""The axes of a plan: slowest first, as nnU-Net sees files, whatever the order in each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.planning.fingerprint import CaseFacts, Fingerprint

PAIRS = {letter: n for n, pair in enumerate(("RL", "AP", "SI")) for letter in pair}
"""Axis of the body of each letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAxes:
    """How a data set's axes are brought to those of its plan.

    Args:
        codes: axis codes of the plan's axes, such as ``SPL``; None: files have none, or 2D.
        order: without codes, the file's axis that is each axis of the plan.
    """

    codes: str | None
    order: tuple[int, ...]

    @property
    def moved(self) -> bool:
        """Whether the order differs from that of files without codes."""
        return self.codes is None and self.order != tuple(range(len(self.order)))

    def permuted(self, forward: Sequence[int]) -> PlanAxes:
        """The axes in another order.

        Args:
            forward: axis of these that becomes each axis.

        Returns:
            The new axes.

        Example:
            >>> PlanAxes(codes="SPL", order=(2, 1, 0)).permuted((1, 0, 2)).codes
            'PSL'
        """
        codes = self.codes and "".join(self.codes[a] for a in forward)
        return PlanAxes(codes=codes, order=tuple(self.order[a] for a in forward))

    def of(self, case: CaseFacts) -> tuple[int, ...]:
        """The file's axis that is each axis of the plan.

        Args:
            case: facts of a case.

        Returns:
            A permutation of its axes.
        """
        if self.codes is None or case.codes is None:
            return self.order
        there = [PAIRS[letter] for letter in case.codes]
        return tuple(there.index(PAIRS[letter]) for letter in self.codes)

    def lateral(self) -> int | None:
        """The axis that runs between left and right; None where codes do not say."""
        return None if self.codes is None else [PAIRS[c] for c in self.codes].index(0)


def plan_axes(fingerprint: Fingerprint) -> PlanAxes:
    """The axes of a data set, slowest first.

    Volumes of medical formats have X first in their arrays and are turned round; all others are
    taken as they are. The letters are those of most files, so that fewest are flipped.

    Args:
        fingerprint: of the data set.

    Returns:
        The axes before nnU-Net's transposition.
    """
    dims = fingerprint.dims
    codes = Counter(c.codes for c in fingerprint.cases if c.codes is not None)
    if dims == 3 and codes and sum(codes.values()) == len(fingerprint.cases):
        return PlanAxes(codes=codes.most_common(1)[0][0][::-1], order=(2, 1, 0))
    return PlanAxes(codes=None, order=tuple(range(dims)))


def brought(values: Sequence[float], order: Sequence[int]) -> tuple[float, ...]:
    """Values of each file axis in the order of the plan.

    Args:
        values: by axis of the file.
        order: as :meth:`PlanAxes.of` gives it.

    Returns:
        By axis of the plan.
    """
    return tuple(values[a] for a in order)
