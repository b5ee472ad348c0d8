"""What a metric of labels depends on besides the two label maps: the classes and the spacing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.records import METRICS_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricContext:
    """Settings that hold for every case of a data set that is scored.

    Args:
        classes: foreground classes of the whole set, ascending; None: those that occur in the case
            at hand. A class of the set that is in neither map of a case has the value NaN there,
            and is left out of its mean.
        regions: label values of each region that is scored in place of classes; None: none.
        spacing: millimetres between voxels along each axis; None: distances are counted in voxels.
        version: see :data:`pipeline.records.METRICS_VERSION`.
    """

    classes: tuple[int, ...] | None = None
    regions: tuple[tuple[int, ...], ...] | None = None
    spacing: tuple[float, ...] | None = None
    version: int = METRICS_VERSION

    @property
    def unit(self) -> str:
        """Unit of distances: ``voxels`` or ``mm``."""
        return "voxels" if self.spacing is None else "mm"


def several(classes: Sequence[int] | None) -> bool:
    """Check whether a set of classes holds more than one kind of foreground.

    Args:
        classes: class numbers; None: not known.

    Returns:
        True where a number above 1 is among them.

    Example:
        >>> several(None), several((1,)), several((1, 2)), several((2,))
        (False, False, True, True)
    """
    return classes is not None and max(classes, default=0) > 1
