"""How large a component of each class usually is in the labels of the cases that are tuned on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipeline import morphology
from pipeline.config import Data
from pipeline.data.targets import read_labels
from pipeline.morphology.sizes import voxel_volume
from pipeline.postprocess.classes import class_boxes
from pipeline.tuning.trials import CaseFiles


def usual_sizes(
    cases: Sequence[CaseFiles],
    data: Data,
    classes: Sequence[int],
    spacings: Mapping[str, Sequence[float]] | None = None,
) -> dict[int, float]:
    """Median over the cases that have a class of the size of its largest component.

    They only set the scale of what is tried, as the size of the volume does for the other steps,
    and are the same for every part that is held out.

    Args:
        cases: files of the cases; labels are read.
        data: ``data`` of the config.
        classes: label values.
        spacings: millimetres between voxels along each axis, by case id; cases without one are
            left out; None: sizes in voxels.

    Returns:
        Sizes by class, in voxels or mm³; classes that no case has are missing.
    """
    found: dict[int, list[float]] = {value: [] for value in classes}
    for case in cases:
        if spacings is not None and case.id not in spacings:
            continue
        unit = 1.0 if spacings is None else voxel_volume(spacings[case.id])
        for value, size in _largest(read_labels(case.label, data)[0]):
            if value in found:
                found[value].append(size * unit)
    return {value: float(np.median(sizes)) for value, sizes in found.items() if sizes}


def _largest(labels: np.ndarray) -> Iterator[tuple[int, int]]:
    """Values of the classes that are there, with the voxels of their largest component."""
    for value, box in class_boxes(labels).items():
        yield value, int(morphology.component_sizes(labels[box] == value).max())
