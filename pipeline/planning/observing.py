"""What planning wants to know of one case, from its decoded arrays alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import cc3d
import numpy as np

from pipeline.data import intensities, spaces
from pipeline.data.intensities import Intensities
from pipeline.data.properties import Decoded
from pipeline.planning.fingerprint import MOST

LEVELS = 4096
"""Entries of a count of intensities that are kept of one case.

Scans of 12 bits stay exact; of others a percentile is off by at most 1.2e-4 of the range of a case.
"""

LARGEST = 2**16 - 1
"""Label values beyond this are numbered anew before they are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What one look at the arrays of a case found; fields as in
    :class:`pipeline.planning.fingerprint.CaseFacts`.
    """

    box: tuple[int, ...] = ()
    voxels: Mapping[int, int] = field(default_factory=dict)
    components: Mapping[int, int] = field(default_factory=dict)
    centres: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    extents: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    values: int = 0
    intensities: tuple[Intensities, ...] = ()
    """Of each channel, in the foreground; in the whole image where there is none."""
    foreground: bool = False
    """Whether there is a foreground."""


def observe(arrays: Decoded, role: str | None, ignored: int | None) -> Observed:
    """Measure the image and the labels of a case.

    Args:
        arrays: image and targets ``(C, *S)`` by role, as far as they could be read.
        role: the first target of labels; None: there is none.
        ignored: the label that is no class.

    Returns:
        What was found; empty where the image could not be read.

    Example:
        >>> image = np.array([[[0, 5, 7, 0]]])
        >>> found = observe({"image": image, "label": np.array([[[0, 1, 0, 1]]])}, "label", None)
        >>> found.box, found.voxels[1], found.components, found.centres
        ((1, 2), 2, {1: 2}, {1: (0.5, 0.625)})
    """
    image = arrays.get("image")
    if image is None:
        return Observed()
    labels = arrays.get(role) if role is not None else None
    found = Observed(box=tuple(b - a for a, b in spaces.nonzero_box(image)))
    mask = None
    if labels is not None and _countable(labels):
        found = dataclasses.replace(found, **measure(labels[0], ignored))
        if labels.shape[1:] == image.shape[1:]:
            mask = intensities.foreground(labels[0], ignored)
    inside = mask is not None and bool(mask.any())
    mask = mask if mask is not None and inside else np.ones(image.shape[1:], bool)
    counts = tuple(map(thinned, intensities.collect(image, mask)))
    return dataclasses.replace(found, intensities=counts, foreground=inside)


def _countable(labels: np.ndarray) -> bool:
    """Whether all labels are whole numbers that can be told apart."""
    if labels.dtype.kind != "f":
        return True
    return bool(np.isfinite(labels).all() and (labels == np.floor(labels)).all())


def measure(labels: np.ndarray, ignored: int | None) -> dict[str, object]:
    """Voxels, components, centres and extents of each label value.

    Args:
        labels: ``(*S)`` of whole numbers.
        ignored: the label that is no class; its voxels alone are counted.

    Returns:
        Fields of :class:`Observed`, of the first ``MOST`` values.
    """
    numbered, values = _numbered(labels)
    stats = cc3d.statistics(numbered)
    counts = np.asarray(stats["voxel_counts"])
    kinds = 8 if labels.ndim == 2 else 26
    parts, number = cc3d.connected_components(numbered, connectivity=kinds, return_N=True)
    owner = np.zeros(int(number) + 1, np.int64)
    for row, same in zip(parts, numbered, strict=True):  # an index of a whole array is large
        owner[row] = same
    components = np.bincount(owner[1:], minlength=len(counts))
    present = [n for n in np.flatnonzero(counts).tolist() if n < len(values)]
    shown = [n for n in present if n == 0 or values[n] == ignored or values[n] > 0][: MOST + 1]
    objects = [n for n in shown if values[n] > 0 and values[n] != ignored]
    boxes, centres = stats["bounding_boxes"], stats["centroids"]
    return {
        "voxels": {values[n]: int(counts[n]) for n in shown},
        "components": {values[n]: int(components[n]) for n in objects},
        "centres": {
            values[n]: tuple(
                round((float(c) + 0.5) / size, 4)
                for c, size in zip(centres[n], labels.shape, strict=True)
            )
            for n in objects
        },
        "extents": {values[n]: tuple(s.stop - s.start for s in boxes[n]) for n in objects},
        "values": sum(values[n] > 0 and values[n] != ignored for n in present),
    }


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Labels as small unsigned numbers, 0 staying 0, and the value of each number."""
    least, most = int(labels.min()), int(labels.max())
    if least >= 0 and most <= LARGEST:
        kind = np.uint8 if most < 2**8 else np.uint16
        return np.ascontiguousarray(labels, dtype=kind), list(range(most + 1))
    found, places = np.unique(labels, return_inverse=True)
    values = [0, *(int(v) for v in found if v != 0)]
    order = {value: n for n, value in enumerate(values)}
    table = np.array([order[int(v)] for v in found], np.uint32)
    return np.ascontiguousarray(table[places.reshape(labels.shape)]), values


def thinned(count: Intensities) -> Intensities:
    """The same count in at most ``LEVELS`` entries, in an array.

    Args:
        count: of one channel of a case.

    Returns:
        The count; several neighbouring entries are one, at their middle, where there were more.
    """
    counts = np.asarray(count.counts, np.int64)
    width = -(-len(counts) // LEVELS)
    if width <= 1:
        return dataclasses.replace(count, counts=counts)  # pyright: ignore[reportArgumentType]
    padded = np.pad(counts, (0, -len(counts) % width)).reshape(-1, width).sum(1)
    return dataclasses.replace(
        count,
        start=count.start + count.step * (width - 1) / 2,
        step=count.step * width,
        counts=padded,  # pyright: ignore[reportArgumentType]
    )
