"""Sentences that say which of nnU-Net's rules fired, with its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.planning.presets import (
    LARGEST_EDGE,
    LEAST_BATCH,
    REFERENCE_BATCH,
    SMALLEST_EDGE,
    Preset,
)
from pipeline.planning.topology import Fit, shape_text


def isotropic(
    numbers: tuple[float, float, float, float], limit: float, unit: str, by_spacing: bool
) -> str:
    """Explain a spacing that is the median along all axes.

    Args:
        numbers: of the coarsest axis and the largest of the others the spacing, and of the coarsest
            axis and the smallest of the others the voxels; all medians.
        limit: factor above which data are anisotropic.
        unit: of the spacing.
        by_spacing: whether the spacings alone say so, else the voxels.

    Returns:
        The reason.

    Example:
        >>> isotropic((3.3, 1.125, 40, 90), 3, "mm", by_spacing=True)
        'median; not anisotropic: 3.3 mm is not above 3 x 1.125 mm'
    """
    coarse, fine, few, many = numbers
    if by_spacing:
        return (
            f"median; not anisotropic: {coarse:.4g} {unit} is not above {limit} x {fine:.4g} {unit}"
        )
    return f"median; not anisotropic: {limit} x {few:g} voxels are not fewer than {many:g}"


def anisotropic(
    numbers: tuple[float, float, float, float],
    rule: tuple[float, float],
    unit: str,
    taken: tuple[float, bool],
) -> str:
    """Explain a spacing that is a low percentile along the coarsest axis.

    Args:
        numbers: as in :func:`isotropic`.
        rule: factor above which data are anisotropic, and the percentile.
        unit: of the spacing.
        taken: the percentile's value, and whether it was raised to that of the other axes.

    Returns:
        The reason.
    """
    coarse, fine, few, many = numbers
    (limit, percentile), (value, raised) = rule, taken
    end = f", raised to just above {fine:.4g}" if raised else ""
    return (
        f"median, but along the coarsest axis the {percentile}th percentile, {value:.4g} {unit}"
        f"{end}: anisotropic, {coarse:.4g} {unit} is above {limit} x {fine:.4g},"
        f" and {limit} x {few:g} voxels are fewer than {many:g}"
    )


def transpose(picture: bool, order: Sequence[int], spacing: Sequence[float]) -> str:
    """Explain the order of the axes.

    Args:
        picture: whether the data are pictures.
        order: axis of the arrays that each axis of the plan is.
        spacing: on the axes of the plan.

    Returns:
        The reason.
    """
    if picture:
        return "pictures keep their axes"
    if max(spacing) == min(spacing):
        return "axes stay: all spacings are equal"
    axis, values = order[0], ", ".join(f"{s:.4g}" for s in spacing)
    return f"axis {axis} is the coarsest and comes first (spacing now {values})"


def normalisation(
    names: Sequence[str],
    schemes: Sequence[str],
    unknown: Sequence[str],
    left: tuple[float, float],
) -> str:
    """Explain the normalisation of all channels.

    Args:
        names: of the channels.
        schemes: normalisation of each.
        unknown: names that mean nothing to nnU-Net.
        left: median share of the images left after cropping, and below which z-score is masked.

    Returns:
        The reason.

    Example:
        >>> normalisation(["CT", "MRI"], ["ct", "zscore"], ["MRI"], (0.9, 0.75))
        "'CT' is ct; 'MRI' is no known name, so zscore; over all voxels: cropping leaves 90 %"
    """
    texts = [
        (f"{name!r} is no known name" if name else "a channel of no known name") + f", so {scheme}"
        if name in unknown
        else f"{name!r} is {scheme}"
        for name, scheme in zip(names, schemes, strict=True)
    ]
    share, limit = left
    if "zscore" in schemes:
        texts.append(
            f"over what is not 0: cropping leaves {_percent(share)}, less than {_percent(limit)}"
            if share < limit
            else f"over all voxels: cropping leaves {_percent(share)}"
        )
    return "; ".join(texts)


def flat(volume: str, picture: bool) -> str:
    """Explain the spacing of ``2d``.

    Args:
        volume: reason of the spacing in 3D.
        picture: whether the data are pictures.

    Returns:
        The reason.
    """
    return volume if picture else f"that of 3d_fullres without the first axis ({volume})"


def batch_dice(low: bool) -> str:
    """Explain ``batch_dice`` of ``3d_fullres``.

    Args:
        low: whether there is a low resolution.

    Returns:
        The reason.
    """
    return (
        "yes, as there is a low resolution: a patch is a small part of an image"
        if low
        else "no, as there is no low resolution: a patch is a large part of an image"
    )


def patch_is_enough(held: float, limit: float) -> str:
    """Explain that no low resolution is needed.

    Args:
        held: share of the median image in a patch.
        limit: share that is enough.

    Returns:
        The reason.
    """
    return f"The patch holds {_percent(held)} of the median image, at least {_percent(limit)}."


def little_gain(gain: float, limit: float) -> str:
    """Explain that a low resolution is not worthwhile.

    Args:
        gain: voxels of the image over those at low resolution.
        limit: the least gain.

    Returns:
        The reason.
    """
    return f"The image would have only {gain:.2f} times fewer voxels, less than {limit}."


def low_resolution(held: tuple[float, float], steps: tuple[float, int], gain: float) -> str:
    """Explain the spacing of a low resolution.

    Args:
        held: share of the median image in a patch of ``3d_fullres``, and the share that is enough.
        steps: factor of one step, and number of steps.
        gain: voxels of the image over those at low resolution.

    Returns:
        The reason.
    """
    return (
        f"at full resolution the patch holds {_percent(held[0])} of the median image: made coarser"
        f" {steps[1]} times by a factor of {steps[0]}, until it holds {_percent(held[1])}"
        f" ({gain:.1f} times fewer voxels)"
    )


def of_fit(found: Fit, preset: Preset, median: Sequence[float]) -> dict[str, str]:
    """Explain patch, batch and network.

    Args:
        found: what was planned.
        preset: rules.
        median: median shape of the images.

    Returns:
        Reasons of ``patch``, ``batch``, ``strides`` and ``kernels``.
    """
    plan = found.topology
    return {
        "patch": _patch(found, median),
        "batch": _batch(found, preset),
        "strides": f"a level halves the axes of at least {2 * SMALLEST_EDGE} voxels and less than"
        f" twice the finest spacing, a single axis from {3 * SMALLEST_EDGE}: to"
        f" {shape_text(plan.sizes[-1])}",
        "kernels": "3 along every axis"
        if all(set(kernel) == {3} for kernel in plan.kernels)
        else "1 along an axis until its spacing is less than twice the finest, then 3",
    }


def _patch(found: Fit, median: Sequence[float]) -> str:
    dims, plan = len(median), found.topology
    shape = "square" if dims == 2 else "cubic"
    texts = [f"as many voxels as {LARGEST_EDGE[dims]}^{dims}, {shape} in the world"]
    if any(n >= m for n, m in zip(found.initial, median, strict=True)):
        texts.append(f"within the median image {shape_text(median)}: {shape_text(found.initial)}")
    else:
        texts[0] += f": {shape_text(found.initial)}"
    if found.shrunk:
        times = "once" if found.shrunk == 1 else f"{found.shrunk} times"
        texts.append(f"shrunk {times} to fit {_short(found.budget)} elements")
    texts.append(f"multiples of {shape_text(plan.divisor)}")
    return ", ".join(texts)


def _batch(found: Fit, preset: Preset) -> str:
    share = f"{_percent(preset.share)} of the voxels of all cases"
    if min(found.by_memory, found.by_voxels) < LEAST_BATCH:
        fits = found.by_memory < LEAST_BATCH
        what = (
            f"{found.by_memory} would fit the memory"
            if fits
            else f"{share} allow {found.by_voxels}"
        )
        return f"at least {LEAST_BATCH}: {what}"
    if found.by_voxels < found.by_memory:
        return f"{found.by_memory} would fit the memory, {share} allow {found.by_voxels}"
    return (
        f"as many as fit the memory: {_short(found.elements)} elements a sample of {_whole(found)}"
    )


def _whole(found: Fit) -> str:
    """Elements that fit in a batch."""
    reference = REFERENCE_BATCH[len(found.topology.patch)]
    return _short(found.budget * reference)


def _short(number: float) -> str:
    """Such as ``5.6e8``."""
    return f"{number:.3g}".replace("e+0", "e").replace("e+", "e")


def _percent(share: float) -> str:
    """Such as ``43 %``, rounded down so that less than a limit does not look like it."""
    return f"{math.floor(share * 100 + 1e-9)} %"
