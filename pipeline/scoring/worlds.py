"""The unit in which distances of a set are measured: millimetres where labels carry spacings.

Else distances are in voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import files
from pipeline.grid import grid_of
from pipeline.metrics import in_millimetres, millimetre_options
from pipeline.metrics.table import IN_VOXELS
from pipeline.records import NamedOptions, UserError

Spacings = dict[str, tuple[float, ...]]
"""Millimetres between voxels along each axis by case; empty: distances are in voxels."""


def spacings(metrics: Sequence[NamedOptions], labels: Mapping[str, Path], dims: int) -> Spacings:
    """Spacings of a set, where a metric measures distances or volumes and all labels carry a unit.

    Distances of the whole set are in voxels where one label carries none.

    Args:
        metrics: those of the set.
        labels: label file by case. One that cannot be read is left out here: the code that scores
            it reports it.
        dims: number of space axes.

    Returns:
        Millimetres between voxels along each axis by case; empty where distances are in voxels.

    Raises:
        UserError: an option is in millimetres, and some labels carry no unit.
    """
    if not in_millimetres(metrics):
        return {}
    found, bare = _by_unit(labels, dims)
    require_millimetres(metrics, bare)
    return {} if bare else found


def common_spacings(
    metrics: Sequence[NamedOptions], labels: Mapping[str, Path], dims: int
) -> Spacings:
    """As :func:`spacings`, for files chosen by someone else, which must have a unit in common.

    An option in millimetres for files without any unit is left to the metric, which refuses each
    case.

    Args:
        metrics: those of the set.
        labels: label file by case.
        dims: number of space axes.

    Returns:
        Millimetres between voxels along each axis by case; empty where distances are in voxels.

    Raises:
        UserError: some files carry a unit and others do not.
    """
    if not in_millimetres(metrics):
        return {}
    found, bare = _by_unit(labels, dims)
    if bare and found:
        raise UserError(
            "distances and volumes of these cases have no common unit:"
            f" {len(bare)} label files carry none ({', '.join(bare[:10])}), the others do. Give all"
            " of them their spacing, or score them apart."
        )
    return found


def require_millimetres(metrics: Sequence[NamedOptions], bare: Sequence[str]) -> None:
    """Check that options in millimetres can be followed.

    Args:
        metrics: those of the set.
        bare: ids of the cases whose labels carry no unit.

    Raises:
        UserError: an option is in millimetres, and there are such cases.
    """
    options = millimetre_options(metrics)
    if options and bare:
        instead = IN_VOXELS.get(options[0], options[0].removesuffix("_mm"))
        raise UserError(
            f"metrics: {options[0]} needs the distance between voxels, which the labels of"
            f" {len(bare)} cases do not carry: {', '.join(bare[:10])}. Use"
            f" {instead} (voxels), or give them their spacing."
        )


def _by_unit(labels: Mapping[str, Path], dims: int) -> tuple[Spacings, list[str]]:
    """Spacings of the labels that carry a unit, and the cases of those that carry none."""
    found: dict[str, tuple[float, ...] | None] = {}
    for case_id, path in labels.items():
        try:
            found[case_id] = grid_of(files.geometry(path, dims), dims).spacing
        except files.FileError:
            continue
    return {i: s for i, s in found.items() if s is not None}, [
        i for i, s in found.items() if s is None
    ]
