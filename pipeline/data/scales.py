"""Linear maps of intensities, channel by channel: how an array is normalised, and the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRange:
    """What one channel's map has beside its two intensities."""

    to: tuple[float, float] = (0.0, 1.0)
    """Range of the output: where ``low`` and ``high`` go."""
    clip: bool = True
    """Whether the output is clipped to that range."""
    window: tuple[float, float] | None = None
    """Intensities of the input that values are clipped to before they are mapped; None: none."""

    def limits(self, low: float, high: float) -> tuple[float, float] | None:
        """Intensities of the input beyond which values are clipped.

        Args:
            low: intensity that maps to ``to[0]``.
            high: intensity that maps to ``to[1]``.

        Returns:
            The window; without one (low, high) of a clipped output; None where nothing is clipped,
            or the channel is constant.
        """
        if self.window is not None:
            return self.window
        return (low, high) if self.clip and high > low else None


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensityScale:
    """A linear map for each channel: ``low`` goes to ``to[0]`` and ``high`` to ``to[1]``.

    One entry of ``low`` and ``high`` per channel, or one for all channels.
    """

    low: tuple[float, ...]
    """Intensity that maps to ``to[0]``."""
    high: tuple[float, ...]
    """Intensity that maps to ``to[1]``; a channel with ``high <= low`` is constant."""
    to: tuple[float, float] = (0.0, 1.0)
    """Range of the output."""
    clip: bool = True
    """Whether the output is clipped to that range."""
    ranges: tuple[ChannelRange, ...] = ()
    """One for each channel, in place of ``to`` and ``clip``, where channels differ in them or one
    has a window; else empty.
    """

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Normalise an array.

        Args:
            array: ``(C, *S)`` of any number type.

        Returns:
            ``(C, *S)``, float32; constant channels and NaN become ``to[0]``.

        Raises:
            ValueError: where the array has another number of channels than the scale.

        Example:
            >>> scale = IntensityScale(low=(0.0,), high=(128.0,))
            >>> scale.apply(np.array([[0, 64, 255]], np.uint8)).tolist()
            [[0.0, 0.5, 1.0]]
        """
        out = np.empty(array.shape, np.float32)
        for values, result, (low, high, how) in zip(
            array, out, self.channels(len(array)), strict=True
        ):
            _normalise(values, low, high, how, result)
        return out

    def invert(self, array: np.ndarray) -> np.ndarray:
        """Undo :meth:`apply`; what was clipped stays clipped.

        Args:
            array: ``(C, *S)``, normalised.

        Returns:
            ``(C, *S)``, float32; constant channels give their value.

        Raises:
            ValueError: where the array has another number of channels than the scale.
        """
        out = np.empty(array.shape, np.float32)
        for channel, (low, high, how) in enumerate(self.channels(len(array))):
            span = how.to[1] - how.to[0]
            out[channel] = (array[channel] - np.float32(how.to[0])) * np.float32(
                max(high - low, 0) / span
            ) + np.float32(low)
        return out

    def channels(self, count: int) -> Sequence[tuple[float, float, ChannelRange]]:
        """Low, high and range of each channel.

        Args:
            count: channels of an array.

        Returns:
            One for each channel.

        Raises:
            ValueError: where the scale has another number of channels.

        Example:
            >>> IntensityScale(low=(0.0,), high=(9.0,), clip=False).channels(1)[0][:2]
            (0.0, 9.0)
        """
        limits = list(zip(self.low, self.high, strict=True))
        ranges = list(self.ranges or (ChannelRange(to=self.to, clip=self.clip),))
        for found in (limits, ranges):
            if len(found) not in (1, count):
                raise ValueError(
                    f"a scale of {len(found)} channels cannot be used for an array of {count}"
                )
        limits *= count if len(limits) == 1 else 1
        ranges *= count if len(ranges) == 1 else 1
        return [(low, high, how) for (low, high), how in zip(limits, ranges, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """The scale for a JSON document (:class:`pipeline.documents.Scale`).

        Returns:
            Its fields; ``ranges`` only where there are any.

        Example:
            >>> sorted(IntensityScale(low=(0.0,), high=(9.0,)).as_json())
            ['clip', 'high', 'low', 'to']
        """
        found = dataclasses.asdict(self)
        return found if self.ranges else {k: v for k, v in found.items() if k != "ranges"}


def _normalise(
    values: np.ndarray, low: float, high: float, how: ChannelRange, out: np.ndarray
) -> None:
    """Write one channel, normalised, to ``out``."""
    start, span = how.to[0], how.to[1] - how.to[0]
    if not high > low:
        out[...] = start
        return
    if how.window is None:
        np.subtract(values, np.float32(low), out=out, dtype=np.float32, casting="unsafe")
    else:
        clipped(values, how.window, out)
        out -= np.float32(low)
    out *= np.float32(span / (high - low))
    out += np.float32(start)
    if values.dtype.kind == "f":
        out[np.isnan(out)] = start
    if how.clip:
        np.clip(out, min(how.to), max(how.to), out=out)


def clipped(values: np.ndarray, limits: tuple[float, float] | None, out: np.ndarray) -> None:
    """Write values as float32, clipped to limits.

    Args:
        values: any shape and number type.
        limits: least and greatest; None: not clipped.
        out: float32 array of that shape.
    """
    np.copyto(out, values, casting="unsafe")
    if limits is not None:
        np.clip(out, np.float32(limits[0]), np.float32(limits[1]), out=out)


def from_json(document: Mapping[str, Any]) -> IntensityScale:
    """A scale from its JSON document.

    Args:
        document: as of :meth:`IntensityScale.as_json`, also of older files.

    Returns:
        The scale.

    Example:
        >>> from_json(IntensityScale(low=(0.0,), high=(9.0,)).as_json()).high
        (9.0,)
    """
    return IntensityScale(
        low=tuple(document["low"]),
        high=tuple(document["high"]),
        to=tuple(document["to"]),
        clip=document["clip"],
        ranges=tuple(
            ChannelRange(
                to=tuple(entry["to"]),
                clip=entry["clip"],
                window=None if entry.get("window") is None else tuple(entry["window"]),
            )
            for entry in document.get("ranges", ())
        ),
    )


def joined(parts: Sequence[IntensityScale]) -> IntensityScale:
    """One scale for several channels.

    Args:
        parts: scales of one channel each, in their order.

    Returns:
        Their scale, with ``ranges`` only where the channels differ in them or have a window.

    Example:
        >>> one = IntensityScale(low=(0.0,), high=(9.0,))
        >>> joined([one, IntensityScale(low=(2.0,), high=(3.0,))])
        IntensityScale(low=(0.0, 2.0), high=(9.0, 3.0), to=(0.0, 1.0), clip=True, ranges=())
    """
    channels = [part.channels(1)[0] for part in parts]
    lows, highs = tuple(low for low, _, _ in channels), tuple(high for _, high, _ in channels)
    ranges = tuple(how for _, _, how in channels)
    if len(set(ranges)) == 1 and ranges[0].window is None:
        return IntensityScale(low=lows, high=highs, to=ranges[0].to, clip=ranges[0].clip)
    return IntensityScale(low=lows, high=highs, clip=False, ranges=ranges)


def parts(scale: IntensityScale, count: int) -> list[IntensityScale]:
    """The scale of each channel alone: the inverse of :func:`joined`.

    Args:
        scale: a scale.
        count: channels of the array.

    Returns:
        Scales of one channel each.
    """
    return [
        IntensityScale(low=(low,), high=(high,), to=how.to, clip=how.clip)
        if how.window is None
        else IntensityScale(low=(low,), high=(high,), clip=False, ranges=(how,))
        for low, high, how in scale.channels(count)
    ]
