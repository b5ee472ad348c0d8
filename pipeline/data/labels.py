"""What a file of labels may hold: the rules that are the same wherever labels and answers are read."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pipeline.data.normalise import histogram
from pipeline.files import FileError, suffix

CLOSE = 1e-3
"""Distance from a whole number within which a value is that number: files that scale integers give
1.00000006.
"""

WHITE = (255, 65535)
"""Values that stand for class 1 in a black and white picture of 8 or 16 bits."""

VOID = -1
"""What many data sets write where nothing was labelled."""

LOSSY = (".jpg", ".jpeg")

DARK, LIGHT = 34, 254
"""Greys between these are no class numbers where 0 and 255 occur, too: classes of pictures count
from 0, and 255 is void.
"""


def rounded(array: np.ndarray) -> np.ndarray:
    """The array with every value that is nearly a whole number made one; as it is where another
    value occurs, and of integers.
    """
    if array.dtype.kind != "f":
        return array
    near = np.rint(array)
    with np.errstate(invalid="ignore"):
        return near if bool((np.abs(array - near) <= CLOSE).all()) else array


def occurring(array: np.ndarray) -> dict[int | float, int]:
    """Voxels of each value that occurs, ascending."""
    if array.dtype in (np.uint8, np.uint16):
        counts = histogram(array)
        return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    values, counts = np.unique(array, return_counts=True)
    return {v: int(n) for v, n in zip(values.tolist(), counts.tolist(), strict=True)}


def white_of(values: Collection[float], ignore: int | None) -> int | None:
    """The value that stands for class 1 where these are the values of a black and white picture,
    else None.
    """
    return next(
        (w for w in WHITE if w in values and w != ignore and set(values) <= {0, w, ignore}), None
    )


def class_numbers(path: Path, array: np.ndarray, ignore: int | None = None) -> np.ndarray:
    """Labels ``(*S)`` of a file whose classes nobody declared, as integers from 0 on, and
    ``ignore``.

    A picture of 0 and 255 (65535) becomes 0 and 1. Raises FileError, which names ``--binarise``,
    for everything that is no set of class numbers: probabilities, numbers below 0, pictures kept as
    JPEG, greys.
    """
    array = rounded(array)
    values = occurring(array)
    problem = _problem(path, array.dtype, values, ignore)
    if problem:
        way_out = (
            "Give class numbers, or say with --binarise X from which value on a voxel is foreground"
            " (e.g. 0.5 of probabilities, 127 of greys)"
        )
        raise FileError(
            path,
            problem,
            way_out
            + (
                f", or --ignore-label={VOID} if that is void"
                if problem.endswith(f"below 0: {VOID}")
                else ""
            ),
        )
    labels = array.astype(np.int64) if array.dtype.kind == "f" else array
    white = white_of(values, ignore)
    return labels if white is None else np.where(labels == white, 1, labels)


def _problem(
    path: Path, dtype: np.dtype, values: dict[int | float, int], ignore: int | None
) -> str | None:
    known = [v for v in values if v != ignore]
    odd = (
        [v for v in known if not math.isfinite(v) or v < 0 or v != int(v) or abs(v) > 2**53]
        if dtype.kind == "f"
        else [v for v in known if v < 0]
    )
    if odd:
        kind = (
            "below 0"
            if all(math.isfinite(v) and v == int(v) for v in odd)
            else "that are no class numbers"
        )
        return f"holds {sum(values[v] for v in odd)} values {kind}: {_some(odd)}"
    if suffix(path) in LOSSY and not (set(known) <= {0, 1} or white_of(known, None) is not None):
        return f"is a JPEG, which blurs labels: it holds {len(known)} values, {_some(known)}"
    if (
        dtype == np.uint8
        and {0, 255} <= set(known)
        and len([v for v in known if DARK <= v < LIGHT]) >= 3
    ):
        return (
            "holds greys between 0 and 255 as of a mask that was resized or smoothed:"
            f" {_some(known)}"
        )
    if (
        dtype == np.uint8
        and len(known) == 2
        and min(known) > 0
        and max(known) > 2
        and suffix(path) not in (".nii", ".nii.gz")
    ):
        return f"holds two greys and no background: {_some(known)}"
    return None


def _some(values: Collection[float]) -> str:
    shown = ", ".join(f"{v:.6g}" for v in list(values)[:6])
    return shown + (", ..." if len(values) > 6 else "")
