"""The table of metrics of whole cases by name.

Where a field of view is given (``frames``) every key ends with the frame that it was counted in. A
metric's own name is its first key and begins all others. Exceptions are ``competition``, whose
parts have names of their own and whose ``counts`` are a table, ``lesion_f1`` and ``volume_error``,
whose parts have names of their own, too, and ``retouch`` of parts only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.config import ConfigError, bind, nearest
from pipeline.metrics import (
    competition,
    counts,
    image,
    lesions,
    overlap,
    probability,
    retouch,
    surface,
    topology,
)
from pipeline.metrics.counts import Pooling
from pipeline.metrics.entry import Better, Compute, MetricEntry, Need
from pipeline.metrics.frames import SUFFIXES
from pipeline.records import NamedOptions
from pipeline.registry import Registry

PROBABILITIES: frozenset[Need] = frozenset({"probabilities"})


METRICS: Registry[MetricEntry] = Registry(
    "metric",
    {
        "competition": MetricEntry(
            competition.competition,
            better="higher",
            parts={"toposcore": "higher", "surface_dice": "higher", "voi_score": "higher"},
            compares_numbers=False,
            bytes_per_voxel=16,
        ),
        "dice": MetricEntry(
            overlap.dice, better="higher", pooled=Pooling(counts.dice), bytes_per_voxel=6
        ),
        "iou": MetricEntry(
            overlap.iou, better="higher", pooled=Pooling(counts.iou), bytes_per_voxel=6
        ),
        "precision": MetricEntry(
            overlap.precision, better="higher", pooled=Pooling(counts.precision), bytes_per_voxel=6
        ),
        "recall": MetricEntry(
            overlap.recall, better="higher", pooled=Pooling(counts.recall), bytes_per_voxel=6
        ),
        "specificity": MetricEntry(
            overlap.specificity,
            better="higher",
            pooled=Pooling(counts.specificity, background=True),
            bytes_per_voxel=7,
        ),
        "accuracy": MetricEntry(
            overlap.accuracy,
            better="higher",
            pooled=Pooling(counts.accuracy, background=True, any_class=True),
            bytes_per_voxel=2,
        ),
        "roc_auc": MetricEntry(
            probability.roc_auc,
            better="higher",
            needs=PROBABILITIES,
            compares_numbers=False,
            pooled=Pooling(counts.roc_auc, background=True),
            bytes_per_voxel=42,
        ),
        "pr_auc": MetricEntry(
            probability.pr_auc,
            better="higher",
            needs=PROBABILITIES,
            compares_numbers=False,
            pooled=Pooling(counts.pr_auc, background=True),
            bytes_per_voxel=42,
        ),
        "components": MetricEntry(overlap.components, compares_numbers=False, bytes_per_voxel=8),
        "betti_error": MetricEntry(
            overlap.betti_error, better="lower", compares_numbers=False, bytes_per_voxel=9
        ),
        "betti_matching_error": MetricEntry(
            topology.betti_matching_error, better="lower", bytes_per_voxel=48
        ),
        "cldice": MetricEntry(topology.cldice, better="higher", bytes_per_voxel=48),
        "voi": MetricEntry(
            topology.voi,
            better="lower",
            compares_numbers=False,
            version_1=topology.voi_by_class,
            bytes_per_voxel=16,
        ),
        "adapted_rand": MetricEntry(
            topology.adapted_rand,
            better="lower",
            compares_numbers=False,
            version_1=topology.adapted_rand_by_class,
            bytes_per_voxel=16,
        ),
        "surface_dice": MetricEntry(surface.surface_dice, better="higher", bytes_per_voxel=12),
        "hd95": MetricEntry(surface.hd95, better="lower", length=True, bytes_per_voxel=13),
        "assd": MetricEntry(surface.assd, better="lower", length=True, bytes_per_voxel=13),
        "lesion_f1": MetricEntry(
            lesions.lesion_f1,
            better="higher",
            parts={
                "lesion_precision": "higher",
                "lesion_recall": "higher",
                "lesions_true": None,
                "lesions_predicted": None,
            },
            bytes_per_voxel=20,
        ),
        "volume_error": MetricEntry(
            lesions.volume_error,
            better="lower",
            parts={"volume_bias": None, "volume_true": None, "volume_predicted": None},
            volumes=frozenset({"volume_true", "volume_predicted"}),
            bytes_per_voxel=6,
        ),
        "mae": MetricEntry(image.mae, better="lower", task="image", bytes_per_voxel=17),
        "psnr": MetricEntry(image.psnr, better="higher", task="image", bytes_per_voxel=9),
        "ssim": MetricEntry(
            image.ssim, better="higher", task="image", bytes_per_voxel=30, bytes_per_pixel=104
        ),
        "retouch": MetricEntry(
            retouch.retouch,
            task="image",
            needs=frozenset({"change"}),
            parts={
                "psnr_in": "higher",
                "psnr_out": "higher",
                "ssim_in": "higher",
                "ssim_out": "higher",
                "leak": "lower",
                "mask_dice": "higher",
            },
            bytes_per_voxel=12,
            bytes_per_pixel=128,
        ),
    },
    record=MetricEntry,
)
"""All metrics by name."""


def names_of(task: str) -> list[str]:
    """List the metrics that compare predictions of a task.

    Args:
        task: name in ``TASKS``.

    Returns:
        Names in alphabetical order.

    Example:
        >>> names_of("image")
        ['mae', 'psnr', 'retouch', 'ssim']
    """
    return sorted(name for name, entry in METRICS.items() if entry.task == task)


def needing(parts: Sequence[NamedOptions], need: Need) -> list[str]:
    """List those metrics that read something besides prediction and target.

    Args:
        parts: metrics.
        need: what they read.

    Returns:
        Their names, in the order of ``parts``.
    """
    return [part.name for part in parts if need in METRICS[part.name].needs]


def of_images(parts: Sequence[NamedOptions]) -> bool:
    """Check whether one of the metrics compares images.

    Args:
        parts: metrics.

    Returns:
        True if any does.
    """
    return any(METRICS[part.name].task == "image" for part in parts)


def directions() -> dict[str, Better]:
    """List the better direction of every value that has one.

    Counts, like ``components``, have none and are left out.

    Returns:
        Direction by name of the value; also of ``loss``.
    """
    out: dict[str, Better] = {"loss": "lower"}
    for name, entry in METRICS.items():
        found: dict[str, Better | None] = {name: entry.better, **entry.parts}
        out.update((key, value) for key, value in found.items() if value is not None)
    return out


def better(name: str) -> Better:
    """Find the direction in which a value improves.

    Args:
        name: such as ``dice``, ``val_dice``, ``dice_2`` (of class 2) or ``dice_fov`` (of a frame).

    Returns:
        ``higher`` or ``lower``.

    Raises:
        ConfigError: for values that cannot be compared, such as counts, and for unknown ones.

    Example:
        >>> better("val_dice"), better("hd95_2")
        ('higher', 'lower')
    """
    base = re.sub(rf"({'|'.join(SUFFIXES)})$", "", name.removeprefix("val_"))
    base = re.sub(r"_\d+$", "", base)
    known = directions()
    if base not in known:
        raise ConfigError(
            f"{name!r} is no value that has a better and a worse direction. {nearest(base, known)}"
        )
    return known[base]


def bound(part: NamedOptions, where: str) -> Compute:
    """Bind the options of a metric.

    Args:
        part: metric with its options.
        where: place in the config, for messages.

    Returns:
        The metric as a function of prediction, target and ``valid``.

    Raises:
        ConfigError: for an unknown metric or option; names ``where``.
    """
    return bind(
        METRICS, part, where, given=METRICS[part.name].given if part.name in METRICS else ()
    )


def millimetre_options(parts: Sequence[NamedOptions]) -> list[str]:
    """List the options of these metrics that are physical lengths or volumes.

    They end with ``_mm`` or ``_mm3``, such as ``tolerance_mm`` and ``min_mm3``.

    Args:
        parts: metrics with their options.

    Returns:
        Names of the options that are set.
    """
    return [
        key
        for part in parts
        for key, value in part.options.items()
        if key.endswith(("_mm", "_mm3")) and value is not None
    ]


IN_VOXELS = {"min_mm3": "min_size"}
"""Options in voxels by that in millimetres, where the name is another one without ``_mm``."""


def in_millimetres(parts: Sequence[NamedOptions]) -> bool:
    """Check whether a metric is in millimetres where the files state the spacing.

    Args:
        parts: metrics with their options.

    Returns:
        True for a distance or a volume, or for an option in millimetres.
    """
    entries = [METRICS[part.name] for part in parts]
    return bool(millimetre_options(parts)) or any(e.length or e.volumes for e in entries)


def units(parts: Sequence[NamedOptions], spacing: bool, dims: int = 3) -> dict[str, str]:
    """Find the unit of each value that is a length or a volume.

    Args:
        parts: metrics.
        spacing: whether the files state the spacing of voxels.
        dims: their space axes.

    Returns:
        By name of the value: ``mm`` of a length and ``ml`` of a volume, or ``voxels``.

    Example:
        >>> units([NamedOptions(name="hd95"), NamedOptions(name="volume_error")], spacing=True)
        {'hd95': 'mm', 'volume_predicted': 'ml', 'volume_true': 'ml'}
    """
    found: dict[str, str] = {}
    for part in parts:
        entry = METRICS[part.name]
        found |= {part.name: "mm" if spacing else "voxels"} if entry.length else {}
        unit = "ml" if spacing and dims == 3 else "voxels"
        found |= dict.fromkeys(sorted(entry.volumes), unit)
    return found
