"""Sizes in cubic millimetres: ``mm3`` in place of a step's option in voxels.

A step never sees them: they become voxels by the spacing of the file at hand, before its function
is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import ConfigError
from pipeline.files import FileError
from pipeline.postprocess.table import POSTPROCESS, resolved
from pipeline.records import NamedOptions, UserError

MM3 = "mm3"
"""Option of a step: the volume in cubic millimetres."""


def in_voxels(
    step: NamedOptions, spacing: Sequence[float] | None, where: str = "postprocess"
) -> NamedOptions:
    """Replace a step's size in mm³ by the option in voxels that it stands for.

    Args:
        step: name with options.
        spacing: millimetres between voxels along each axis; None: not known.
        where: key of the step in the config, for messages.

    Returns:
        The step with sizes in voxels; the very same one where it has none in mm³, or takes none.

    Raises:
        ConfigError: both are given, or ``mm3`` is no volume.
        UserError: the spacing is not known, or is that of an image of two axes.

    Example:
        >>> in_voxels(NamedOptions(name="dust", options={"mm3": 50}), (5.0, 0.5, 0.5))
        NamedOptions(name='dust', options={'below': 40})
    """
    if not _has_volume(step):
        return step
    own = resolved(step)
    volume, options = POSTPROCESS[own.name].volume, dict(own.options)
    assert volume is not None
    given = options.pop(MM3)
    if volume.name in options:
        raise ConfigError(
            f"{where}: {step.name!r} has {volume.name}: {options[volume.name]!r} (voxels) and"
            f" {MM3}: {given!r}. Give one of them."
        )
    if spacing is None:
        raise UserError(
            f"{where}: {step.name!r} has {MM3}: {given!r}, and the distance between voxels is not"
            f" known. Give {volume.name} (voxels), or the spacing."
        )
    try:
        number = volume.voxels(given, spacing)
    except UserError as error:
        raise ConfigError(f"{where}: {step.name!r} has {MM3}: {given!r}: {error}") from None
    return NamedOptions(name=own.name, options={**options, volume.name: number})


def _has_volume(step: NamedOptions) -> bool:
    return (
        step.name in POSTPROCESS
        and MM3 in step.options
        and POSTPROCESS[step.name].volume is not None
    )


def in_mm3(steps: Sequence[NamedOptions]) -> list[str]:
    """List the steps whose sizes are in mm³.

    Args:
        steps: names with options.

    Returns:
        Their names, as they stand.

    Example:
        >>> in_mm3([NamedOptions(name="dust", options={"mm3": 50}), NamedOptions(name="argmax")])
        ['dust']
    """
    return [step.name for step in steps if _has_volume(step)]


def problem_of(
    steps: Sequence[NamedOptions], spacing: Sequence[float] | None
) -> tuple[str, str] | None:
    """Find what keeps a file from being post-processed by sizes in mm³.

    Args:
        steps: names with options.
        spacing: millimetres between voxels along each axis of the file; None: not known.

    Returns:
        The problem and a suggestion, as :class:`~pipeline.files.FileError` takes them; None: there
        is none.
    """
    step = next((step for step in steps if _has_volume(step)), None)
    if step is None or (spacing is not None and len(spacing) == 3):
        return None
    volume = POSTPROCESS[step.name].volume
    assert volume is not None
    has = f"{step.name!r} has {MM3}: {step.options[MM3]!r}"
    if spacing is not None:
        return (
            f"has {len(spacing)} space axes, and postprocess takes a volume: {has}",
            f"Give {volume.name} (voxels) in its place",
        )
    return (
        f"carries no unit of length, which postprocess needs: {has}",
        f"Give {volume.name} (voxels) in its place, or save the file with its spacing (NIfTI,"
        " OME-Zarr, OME or ImageJ TIFF)",
    )


def require_spacing(
    path: Path, steps: Sequence[NamedOptions], spacing: Sequence[float] | None
) -> None:
    """Check that a file can be post-processed by sizes in mm³.

    Args:
        path: the file.
        steps: names with options.
        spacing: millimetres between voxels along each axis of the file; None: not known.

    Raises:
        FileError: a size is in mm³, and the file carries no unit of length.
    """
    if (problem := problem_of(steps, spacing)) is not None:
        raise FileError(path, *problem)
