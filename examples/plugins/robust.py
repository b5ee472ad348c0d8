"""The normalisation ``robust``: a z-score that bright spots do not move.

::

    data:
      normalise: {name: robust}
"""

import pipeline as pl
from pipeline.data.normalise import IntensityScale, percentiles

NORMAL = 1.349
"""Quartiles of a normal distribution lie so many standard deviations apart."""


def robust(array, width: float = 50.0) -> tuple[IntensityScale, tuple[str, ...]]:
    """Median to 0 and the range between two percentiles, by default the quartiles, to 1.349.

    For normally distributed intensities and quartiles this is the z-score.

    Args:
        array: ``(C, *S)``, in memory or read as it is sliced; ``percentiles`` takes both.
        width: share in per cent of the values between the two percentiles, above 0, below 100.

    Returns:
        The scale of each channel, and warnings for the user.
    """
    if not 0 < width < 100:
        raise ValueError(f"width is {width} per cent, must be above 0 and below 100.")
    limits, notes = [], []
    at = (0, 50 - width / 2, 50, 50 + width / 2, 100)
    for channel, (least, low, median, high, most) in enumerate(percentiles(array, at)):
        if high == low < most:
            notes.append(
                f"channel {channel}: the middle {width:g} % of its values are equal: it is"
                " scaled from its minimum to its maximum"
            )
            low, high = least, most
        limits.append((median, median + (high - low) / NORMAL))
    lows, highs = zip(*limits, strict=True)
    return IntensityScale(low=lows, high=highs, clip=False), tuple(notes)


pl.register("robust", pl.NormalisationEntry(robust, bounded=False, of_images=False))
