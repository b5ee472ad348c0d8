"""What nnU-Net's rules ask of a data set, and what follows for its voxels and channels.

Source: Isensee et al., Nature Methods 18:203, 2021; rules as of nnU-Net 2.8.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.planning import reasons
from pipeline.planning.topology import PlanError

Normalisation = Literal["ct", "rescale_to_0_1", "rgb_to_0_1", "nonorm", "zscore"]

NORMALISATIONS: tuple[Normalisation, ...] = (
    "ct",
    "rescale_to_0_1",
    "rgb_to_0_1",
    "nonorm",
    "zscore",
)
"""Channel names that mean something to nnU-Net, in lower case; all others mean z-score."""

ANISOTROPIC = 3
"""Spacing of the coarsest axis over that of the others, and their voxels over its, above which the
data are anisotropic."""

FINE_PERCENTILE = 10
"""Percentile of the spacings along the coarsest axis of anisotropic data; others take the median.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What nnU-Net's rules ask of a data set. Axes are those of the arrays, the slowest first.

    Example:
        >>> Facts(shapes=((512, 600),), spacings=((1, 1),), channels=("R",), classes=2).cases
        1
    """

    shapes: Sequence[Sequence[int]]
    """Voxels of each case along each of 2 or 3 axes, without the border where all channels are 0.
    """
    spacings: Sequence[Sequence[float]]
    """Length of a voxel of each case along each axis; 1 where files do not say."""
    channels: Sequence[str]
    """Names of the image's channels."""
    classes: int
    """Labels (or regions) with the background, without the label to ignore."""
    relative_sizes: Sequence[float] = (1.0,)
    """Share of each case that is left after cropping, or their median alone."""
    ignore: bool = False
    """Whether there is a label to ignore; nnU-Net counts it when it estimates memory."""
    regions: bool = False
    """Whether regions are trained; changes no value of the plan."""
    training: int | None = None
    """Training cases. None: as many as there are shapes."""
    unit: str = "mm"
    """Unit of the spacings, for reasons."""

    def __post_init__(self) -> None:
        sizes = {len(row) for row in (*self.shapes, *self.spacings)}
        if len(self.shapes) != len(self.spacings) or not self.shapes or sizes not in ({2}, {3}):
            raise PlanError(
                f"{len(self.shapes)} shapes and {len(self.spacings)} spacings of {sorted(sizes)}"
                " axes: there must be one of each for every case, all of 2 or all of 3 axes."
            )
        for name, rows in (("shape", self.shapes), ("spacing", self.spacings)):
            bad = [tuple(row) for row in rows if not all(0 < n < math.inf for n in row)]
            if bad:
                raise PlanError(f"A {name} is {bad[0]}, all numbers must be above 0.")

    @property
    def cases(self) -> int:
        """Training cases."""
        return len(self.shapes) if self.training is None else self.training

    @property
    def left(self) -> float:
        """Median share of a case that is left after cropping."""
        return float(np.median(self.relative_sizes))


def normalisation(name: str) -> Normalisation:
    """Look up what a channel's name means to nnU-Net.

    Args:
        name: of a channel; upper and lower case are the same, blanks count.

    Returns:
        A normalisation; ``zscore`` for every name that means nothing.

    Example:
        >>> [normalisation(name) for name in ("CT", "noNorm", "T2", "ct ")]
        ['ct', 'nonorm', 'zscore', 'zscore']
    """
    for known in NORMALISATIONS:
        if name.casefold() == known:
            return known
    return "zscore"


def target_spacing(
    shapes: np.ndarray, spacings: np.ndarray, unit: str = "mm"
) -> tuple[np.ndarray, str]:
    """Choose the spacing to which all cases are resampled.

    It is the median along each axis. Where the coarsest axis is much coarser than the others, and
    has much fewer voxels, the 10th percentile is taken along it, but nothing finer than the others.

    Args:
        shapes: ``(cases, axes)``, voxels.
        spacings: ``(cases, axes)``.
        unit: of the spacings, for the reason.

    Returns:
        Spacing along each axis, and the reason in words.

    Example:
        >>> shapes = np.array([[10, 256, 256]] * 3)
        >>> spacings = np.array([[5.0, 1.5, 1.5], [10.0, 1.5, 1.5], [10.0, 1.5, 1.5]])
        >>> target_spacing(shapes, spacings)[0].tolist()
        [6.0, 1.5, 1.5]
    """
    target = np.percentile(spacings, 50, axis=0)
    size = np.percentile(shapes, 50, axis=0)
    coarsest = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != coarsest]
    spacing, coarse = max(target[others]), target[coarsest]
    voxels, few = min(size[others]), size[coarsest]
    numbers = (float(coarse), float(spacing), float(few), float(voxels))
    if not coarse > ANISOTROPIC * spacing:
        return target, reasons.isotropic(numbers, ANISOTROPIC, unit, by_spacing=True)
    if not ANISOTROPIC * few < voxels:
        return target, reasons.isotropic(numbers, ANISOTROPIC, unit, by_spacing=False)
    fine = float(np.percentile(spacings[:, coarsest], FINE_PERCENTILE))
    raised = fine < spacing
    target[coarsest] = spacing + 1e-5 if raised else fine
    return target, reasons.anisotropic(
        numbers, (ANISOTROPIC, FINE_PERCENTILE), unit, (fine, raised)
    )
