"""What a file of labels may hold: the same rules for targets and for predictions."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pipeline.data.normalise import histogram
from pipeline.files import FileError, suffix

CLOSE = 1e-3
"""Distance within which a value is a whole number: files that scale integers give 1.00000006."""

WHITE = (255, 65535)
"""Values that stand for class 1 in a black and white picture of 8 or 16 bits."""

VOID = -1
"""What many data sets write where nothing was labelled."""

LOSSY = (".jpg", ".jpeg")
"""Suffixes of formats that do not keep values exactly."""

DARK, LIGHT = 34, 254
"""Greys between these are no class numbers where 0 and 255 occur, too: classes of pictures count
from 0, and 255 is void.
"""


def rounded(array: np.ndarray) -> np.ndarray:
    """Make values that are nearly whole numbers whole.

    Args:
        array: any shape and number type.

    Returns:
        The rounded array; the array itself where it holds integers or any other value.

    Example:
        >>> rounded(np.array([0.0, 1.0000001])).tolist()
        [0.0, 1.0]
    """
    if array.dtype.kind != "f":
        return array
    near = np.rint(array)
    with np.errstate(invalid="ignore"):
        return near if bool((np.abs(array - near) <= CLOSE).all()) else array


def occurring(array: np.ndarray) -> dict[int | float, int]:
    """Count the voxels of each value that occurs.

    Args:
        array: any shape and number type.

    Returns:
        Counts by value, ascending.

    Example:
        >>> occurring(np.array([3, 0, 3], np.uint8))
        {0: 1, 3: 2}
    """
    if array.dtype in (np.uint8, np.uint16):
        counts = histogram(array)
        return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    values, counts = np.unique(array, return_counts=True)
    return {v: int(n) for v, n in zip(values.tolist(), counts.tolist(), strict=True)}


def white_of(values: Collection[float], ignore: int | None) -> int | None:
    """The value that stands for class 1 in a black and white picture.

    Args:
        values: all values of the picture.
        ignore: ignored label, which may occur besides; None: there is none.

    Returns:
        255 or 65535; None where these are not the values of such a picture.

    Example:
        >>> white_of({0, 255}, None), white_of({0, 7, 255}, None)
        (255, None)
    """
    return next(
        (w for w in WHITE if w in values and w != ignore and set(values) <= {0, w, ignore}), None
    )


def class_numbers(path: Path, array: np.ndarray, ignore: int | None = None) -> np.ndarray:
    """Class numbers of a file whose classes nobody declared.

    A picture of 0 and 255 (65535) becomes 0 and 1.

    Args:
        path: the file, for messages.
        array: its labels ``(*S)``.
        ignore: ignored label, which stays as it is; None: there is none.

    Returns:
        ``(*S)``, integers from 0 on, and ``ignore``.

    Raises:
        FileError: for everything that is no set of class numbers: probabilities, numbers below 0,
            pictures kept as JPEG, greys. The message names ``--binarise``.
    """
    array = rounded(array)
    values = occurring(array)
    problem = _problem(path, array.dtype, values, ignore)
    if problem:
        suggestion = (
            "Give class numbers, or say with --binarise X from which value on a voxel is foreground"
            " (e.g. 0.5 of probabilities, 127 of greys)"
        )
        raise FileError(
            path,
            problem,
            suggestion
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
    """Why these values are no class numbers; None where they are."""
    known = [v for v in values if v != ignore]
    invalid = (
        [v for v in known if not math.isfinite(v) or v < 0 or v != int(v) or abs(v) > 2**53]
        if dtype.kind == "f"
        else [v for v in known if v < 0]
    )
    if invalid:
        kind = (
            "below 0"
            if all(math.isfinite(v) and v == int(v) for v in invalid)
            else "that are no class numbers"
        )
        return f"holds {sum(values[v] for v in invalid)} values {kind}: {_shown(invalid)}"
    if suffix(path) in LOSSY and not (set(known) <= {0, 1} or white_of(known, None) is not None):
        return f"is a JPEG, which blurs labels: it holds {len(known)} values, {_shown(known)}"
    if (
        dtype == np.uint8
        and {0, 255} <= set(known)
        and len([v for v in known if DARK <= v < LIGHT]) >= 3
    ):
        return (
            "holds greys between 0 and 255 as of a mask that was resized or smoothed:"
            f" {_shown(known)}"
        )
    if (
        dtype == np.uint8
        and len(known) == 2
        and min(known) > 0
        and max(known) > 2
        and suffix(path) not in (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")
    ):
        return f"holds two greys and no background: {_shown(known)}"
    return None


def _shown(values: Collection[float]) -> str:
    """The first six values, for a message."""
    shown = ", ".join(f"{v:.6g}" for v in list(values)[:6])
    return shown + (", ..." if len(values) > 6 else "")
