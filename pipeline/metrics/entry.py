"""The record that describes a metric to the package."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from pipeline.metrics.counts import Pooling

Better = Literal["higher", "lower"]
"""Direction in which a value improves."""

Need = Literal["probabilities", "change"]
"""What a metric may read besides prediction and target.

``probabilities``: foreground probabilities of two classes in place of the label map. ``change``, of
images: the input and the mask of what was to change (:class:`pipeline.metrics.retouch.Retouched`).
"""

GIVEN = ("prediction", "target", "valid", "change", "classes", "spacing")
"""Arguments that the package passes to a metric that takes them; they are no options of a user."""

Compute = Callable[..., dict[str, Any]]


@dataclass(frozen=True, slots=True)
class MetricEntry:
    """A metric of whole cases, as registered in ``METRICS``.

    Args:
        compute: ``f(prediction, target, valid=None, **options) -> {name: number}``: label maps or
            probabilities ``(*S)``, images ``(C, *S)`` on 0..1, ``valid`` bool ``(*S)``. It also
            gets those arguments of ``GIVEN`` that it takes. The metric's own name is its first key
            and begins all others, but for those in ``parts``. A table as a value has no mean.
        better: direction of the metric's own value; None: a count, or no value of its own name.
        task: whose predictions it compares, a name in ``TASKS``.
        needs: what it reads besides prediction and target.
        parts: directions of further values that have names of their own; None: such as a count.
        length: whether its value is a distance: in millimetres where the files state the spacing,
            else in voxels.
        volumes: those of its values that are volumes: in millilitres where the files of a data set
            of volumes state the spacing, else in voxels.
        compares_numbers: whether equal numbers in two label maps mean the same class; else they are
            foreground or segments only.
        pooled: how it is computed for the voxels of all cases together; None: it cannot be.
        version_1: what its name meant in metrics version 1, for runs begun with it; None: the same.
        bytes_per_voxel: measured peak memory of ``compute`` per voxel (of images: per channel).
        bytes_per_pixel: of images: peak memory for each position in space on top of that.

    Example:
        >>> import numpy as np
        >>> def volume_difference(prediction, target, valid=None):
        ...     error = np.count_nonzero(prediction) - np.count_nonzero(target)
        ...     return {"volume_difference": abs(error)}
        >>> MetricEntry(volume_difference, better="lower").given
        ('prediction', 'target', 'valid')
    """

    compute: Compute
    _: KW_ONLY
    better: Better | None = None
    task: Literal["labels", "image"] = "labels"
    needs: frozenset[Need] = frozenset()
    parts: Mapping[str, Better | None] = field(default_factory=lambda: MappingProxyType({}))
    length: bool = False
    volumes: frozenset[str] = frozenset()
    compares_numbers: bool = True
    pooled: Pooling | None = None
    version_1: Compute | None = None
    bytes_per_voxel: int = 48
    bytes_per_pixel: int = 0

    @property
    def given(self) -> tuple[str, ...]:
        """Those arguments of ``GIVEN`` that ``compute`` takes."""
        return tuple(n for n in inspect.signature(self.compute).parameters if n in GIVEN)
