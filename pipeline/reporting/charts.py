"""Line charts, histograms and rows of dots as inline SVG.

They are coloured by the page's style, in light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.reporting.page import escape, figure, finite

NOTHING = '<p class="none">no values</p>'
NAME = 13
"""Number of characters of a row's name that fit beside it."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 190, 48, 10, 10, 24
"""Size of a chart and its margins, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps data to picture coordinates along one axis.

    Args:
        low: data at ``start``.
        high: data at ``stop``.
        start: picture coordinate in pixels.
        stop: picture coordinate in pixels.
        log: logarithmic, for positive data.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.stop - self.start), 1)


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Two to six round numbers within [low, high].

    On a log scale these are powers of ten, or 1, 2, 5 times those over a short range.

    Args:
        low: lower end of the axis.
        high: upper end, above ``low``.
        log: logarithmic; both ends are positive.

    Returns:
        Ascending numbers.

    Example:
        >>> ticks(0, 1), ticks(1e-4, 1e-2, log=True)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0001, 0.001, 0.01])
    """
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [
            float(f"{factor}e{power}")
            for power in powers
            for factor in ((1,) if high / low >= 99 else (1, 2, 5))
        ]
        return [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
    step = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (high - low) / s <= 5)
    return [
        round(n * step, 12)
        for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def padded(values: Sequence[float], log: bool) -> tuple[float, float]:
    """Limits of an axis, with a margin around the values.

    Args:
        values: at least one.
        log: logarithmic; the values are positive.

    Returns:
        The lower and the upper end.
    """
    low, high = min(values), max(values)
    if log:
        share = 1.3 if high / low > 1.01 else 4
        return max(low / share, math.ulp(0.0)), high * share  # the least number has no quarter
    pad = 0.06 * (high - low) if high - low > 1e-9 * abs(high) else 0.5 * abs(high) or 1.0
    return low - pad, high + pad


def axes(x: Scale, y: Scale, whole: str = "") -> str:
    """Grid lines and numbers of a chart.

    Args:
        x: horizontal scale.
        y: vertical scale.
        whole: letters of the axes that get whole numbers only: ``""``, ``"x"``, ``"y"``, ``"xy"``.

    Returns:
        SVG elements.
    """
    out = ""
    for value in ticks(y.low, y.high, y.log):
        if "y" not in whole or value == int(value):
            out += (
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}"'
                f' y2="{y(value)}"/>'
            )
            out += f'<text x="{LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:.4g}</text>'
    for value in ticks(x.low, x.high):
        if "x" not in whole or value == int(value):
            out += f'<text x="{x(value)}" y="{HEIGHT - 7}" text-anchor="middle">{value:.4g}</text>'
    return out


def svg(body: str, label: str, height: int = HEIGHT) -> str:
    """An SVG picture.

    Args:
        body: SVG elements.
        label: text for screen readers.
        height: pixels.

    Returns:
        HTML.
    """
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{body}</svg>'
    )


def chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    log: bool = False,
    mark: float | None = None,
) -> str:
    """Lines over epochs as a figure; values that are missing or not finite are left out.

    Args:
        title: text.
        series: points (epoch, value) by name of the line.
        log: logarithmic values; those that are not positive are left out.
        mark: epoch of a dashed line; None: none.

    Returns:
        HTML.
    """
    drawn = {
        name: [(x, y) for x, y in points if finite(y) and (y > 0 or not log)]
        for name, points in series.items()
    }
    points = [p for line in drawn.values() for p in line]
    if not points:
        return figure(title, "", NOTHING)
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    x = Scale(
        low=low - 0.5 * (low == high),
        high=high + 0.5 * (low == high),
        start=LEFT,
        stop=WIDTH - RIGHT,
    )
    bottom, top = padded([y for _, y in points], log)
    y = Scale(low=bottom, high=top, start=HEIGHT - BOTTOM, stop=TOP, log=log)
    body = axes(x, y, whole="x")
    if mark is not None and low <= mark <= high:
        body += (
            f'<line class="mark" x1="{x(mark)}" x2="{x(mark)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
    keys = ""
    for n, (name, line) in enumerate(drawn.items()):
        path = " ".join(f"{x(a)},{y(b)}" for a, b in line)
        dots = (
            "".join(f'<circle class="c{n}" cx="{x(a)}" cy="{y(b)}" r="2.5"/>' for a, b in line)
            if len(line) < 12
            else ""
        )
        body += f'<polyline class="c{n}" points="{path}"/>{dots}' if line else ""
        keys += (
            f'<span class="key c{n}">{escape(name)}</span>'
            if line
            else f'<span class="key">{escape(name)}: no values</span>'
        )
    return figure(title, keys, svg(body, title))


def histogram(title: str, values: Sequence[float], band: tuple[float, float] | None = None) -> str:
    """Bars of counts with a line at the mean, as a figure.

    Args:
        title: text.
        values: one per case.
        band: interval that is shaded behind the bars, such as that of the mean; None: none.

    Returns:
        HTML.
    """
    if not values:
        return figure(title, "", NOTHING)
    low, high = padded(values, log=False)
    counts, edges = np.histogram(
        values, bins=min(24, max(6, round(2 * math.sqrt(len(values))))), range=(low, high)
    )
    x = Scale(low=low, high=high, start=LEFT, stop=WIDTH - RIGHT)
    y = Scale(low=0, high=float(counts.max()) * 1.05, start=HEIGHT - BOTTOM, stop=TOP)
    body = axes(x, y, whole="y")
    if band:
        body += (
            f'<rect class="band" x="{x(band[0])}" y="{TOP}"'
            f' width="{max(x(band[1]) - x(band[0]), 0):.1f}" height="{HEIGHT - BOTTOM - TOP}"/>'
        )
    for count, a, b in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        label = f"{a:.3f} to {b:.3f}: {count}"
        bar = (
            f'x="{x(a) + 1:.1f}" y="{y(count)}" width="{max(x(b) - x(a) - 2, 1):.1f}"'
            f' height="{y(0) - y(count):.1f}"'
        )
        body += f'<rect class="bar" {bar}><title>{label}</title></rect>' if count else ""
    body += _mean_line(x, values, TOP, HEIGHT - BOTTOM)
    return figure(
        title,
        f'<span class="key">{len(values)} cases</span>',
        svg(body, f"distribution of {title}"),
    )


def dots(title: str, rows: Mapping[str, Sequence[float]]) -> str:
    """A row of dots for each name with a bar at its mean, as a figure.

    Args:
        title: text.
        rows: values by name.

    Returns:
        HTML.
    """
    every = [v for values in rows.values() for v in values]
    if not every:
        return figure(title, "", NOTHING)
    low, high = padded(every, log=False)
    x, height = Scale(low=low, high=high, start=90, stop=WIDTH - RIGHT), 24 * len(rows) + 26
    body = "".join(
        f'<text x="{x(t)}" y="{height - 6}" text-anchor="middle">{t:.4g}</text>'
        for t in ticks(low, high)
    )
    for n, (name, values) in enumerate(rows.items()):
        y = 18 + 24 * n
        short = name if len(name) <= NAME else f"{name[: NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
        body += (
            f'<text x="82" y="{y + 4}" text-anchor="end">'
            f"{escape(short)}<title>{escape(name)}</title></text>"
        )
        body += f'<line class="grid" x1="90" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        body += "".join(
            f'<circle class="dot" cx="{x(v)}" cy="{y}" r="4"><title>{v:.3f}</title></circle>'
            for v in values
        )
        body += _mean_line(x, values, y - 9, y + 9)
    return figure(title, "", svg(body, title, height))


def _mean_line(x: Scale, values: Sequence[float], top: float, bottom: float) -> str:
    """A vertical line at the mean of the values; nothing where there are none."""
    mean = x(sum(values) / len(values)) if values else None
    return (
        ""
        if mean is None
        else f'<line class="mean" x1="{mean}" x2="{mean}" y1="{top}" y2="{bottom}"/>'
    )
