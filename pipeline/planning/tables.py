"""A fingerprint as a text for the terminal."""

from __future__ import annotations

import re
import statistics
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from pipeline.planning.fingerprint import CaseFacts, Fingerprint, Oddity
from pipeline.planning.names import instances

WIDTH = 100
"""Columns of a line."""

LINES = 40
"""Lines of a table."""

CHANNELS, CLASSES, KINDS = 5, 12, 4
"""Rows of channels and of classes, and kinds of a property, that are shown."""

NAME = 24
"""Letters of a name."""

EXAMPLES = 3
"""Cases that a line names."""

ROWS, FEW = 2, 3
"""Lines of one oddity where there are more than a few, and up to how many cases each keeps its
own.
"""


def table(fingerprint: Fingerprint) -> str:
    """The facts of a data set on one page.

    Args:
        fingerprint: of the data set.

    Returns:
        At most 40 lines of 100 columns.
    """
    lines = [*_head(fingerprint), *_channels(fingerprint), *_classes(fingerprint)]
    lines += _oddities(fingerprint.oddities, LINES - len(lines))
    return "\n".join(line[:WIDTH].rstrip() for line in lines)


def _head(fingerprint: Fingerprint) -> list[str]:
    """Cases, shapes, spacings, axis codes and number types."""
    cases = fingerprint.cases
    tests = f", {fingerprint.tests} images to predict" if fingerprint.tests else ""
    number = f"{len(cases)} training {'case' if len(cases) == 1 else 'cases'}"
    lines = [
        f"{number}{tests}; layout {fingerprint.layout},"
        f" {fingerprint.dims} space axes, task {fingerprint.task}",
        f"  {'shape':<10}{span([c.shape for c in cases], 'voxels')}",
    ]
    if any(c.box != c.shape for c in cases):
        lines.append(f"  {'non-zero':<10}{span([c.box for c in cases], 'voxels')}")
    spaced = [c.spacing for c in cases if c.spacing is not None]
    lacking = len(cases) - len(spaced)
    text = span(spaced, "mm") if spaced else "not in the files"
    more = f"; {lacking} do not say theirs" if spaced and lacking else ""
    lines.append(f"  {'spacing':<10}{text}{more}")
    codes = Counter(c.codes for c in cases if c.codes is not None)
    if codes:
        lines.append(f"  {'axes':<10}{counted(codes)}")
    lines.append(f"  {'numbers':<10}{counted(Counter(c.dtype for c in cases))}")
    groups = len(set(fingerprint.groups.values()))
    return [*lines, f"  {'groups':<10}{groups}"] if groups else lines


def span(rows: Sequence[Sequence[float]], unit: str) -> str:
    """Medians of each axis, least and most.

    Args:
        rows: a shape or a spacing of each case.
        unit: of the numbers.

    Returns:
        Such as ``median 36x50x35 voxels, least 31x40x24, most 43x59x47``.
    """
    axes = list(zip(*rows, strict=True))
    least, usual, most = (
        "x".join(f"{round(pick(axis), 4):.5g}" for axis in axes)
        for pick in (min, statistics.median, max)
    )
    if least == most:
        return f"{usual} {unit} in all"
    return f"median {usual} {unit}, least {least}, most {most}"


def counted(counts: Counter[str]) -> str:
    """The most frequent kinds of a property.

    Args:
        counts: cases by kind.

    Returns:
        Such as ``37 float32, 3 uint8``.
    """
    shown = counts.most_common(KINDS)
    rest = len(counts) - len(shown)
    text = ", ".join(f"{count} {name}" for name, count in shown)
    return f"{text}, and {rest} more" if rest else text


def _short(name: str) -> str:
    """A name of limited length."""
    return name if len(name) <= NAME else name[: NAME - 3] + "..."


def digits(value: float) -> str:
    """A number in four digits.

    Args:
        value: any number.

    Returns:
        Text.
    """
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


def _channels(fingerprint: Fingerprint) -> list[str]:
    """A row for each channel."""
    channels = fingerprint.channels
    where = "foreground" if any(c.components for c in fingerprint.cases) else "all voxels"
    titles = ("0.5 %", "median", "99.5 %", "mean", "std", "spread")
    lines = [f"  {'channel (' + where + ')':<{NAME + 6}}" + "".join(f"{t:>11}" for t in titles)]
    for n, channel in enumerate(channels[:CHANNELS]):
        row = (channel.low, channel.median, channel.high, channel.mean, channel.std)
        numbers = "".join(f"{digits(v):>11}" for v in row) + f"{channel.spread:>11.2f}"
        name = f"{n} {_short(channel.name or '')}"
        lines.append(f"    {name:<{NAME + 4}}{numbers}")
    return [*lines, *_rest(len(channels), CHANNELS, "channels")] if channels else []


def _rest(count: int, shown: int, what: str) -> list[str]:
    """How many rows are left out."""
    return [f"    ... and {count - shown} more {what}"] if count > shown else []


def _classes(fingerprint: Fingerprint) -> list[str]:
    """A row for each class."""
    cases = [c for c in fingerprint.cases if c.voxels]
    ignored = fingerprint.ignore_label
    values = sorted(
        {v for c in cases for v in c.voxels if v > 0 and v != ignored}
        | set(fingerprint.class_names)
    )
    objects = instances(fingerprint)
    if objects is not None:
        span = f"{objects.least} to {objects.most}"
        return [f"  {'objects':<10}{span} in a case, {objects.values} different label values"]
    if not values:
        return []
    total = sum(n for c in cases for v, n in c.voxels.items() if v != ignored)
    lines = [f"  {'class':<{NAME + 6}}{_row('cases', 'of voxels', 'median size', 'pieces')}"]
    for value in values[:CLASSES]:
        have = [c for c in cases if c.voxels.get(value)]
        share = sum(c.voxels[value] for c in have) / total if total else 0.0
        row = _row(
            f"{len(have)}", f"{100 * share:.3g} %", typical_size(have, value), pieces(have, value)
        )
        name = f"{value} {_short(fingerprint.class_names.get(value, ''))}"
        lines.append(f"    {name:<{NAME + 4}}{row}")
    lines += _rest(len(values), CLASSES, "classes")
    if ignored is not None:
        have = [c for c in cases if c.voxels.get(ignored)]
        lines.append(f"    {ignored} is ignored: in {len(have)} cases")
    if fingerprint.regions:
        shown = ", ".join(f"{n} {list(v)}" for n, v in fingerprint.regions.items())
        lines += textwrap.wrap(f"regions: {shown}", WIDTH - 4, max_lines=2, initial_indent="    ")
    return lines


def _row(*texts: str) -> str:
    """Four columns of classes."""
    return "".join(f"{t:>{w}}" for t, w in zip(texts, (8, 13, 19, 22), strict=True))


def typical_size(cases: Sequence[CaseFacts], value: int) -> str:
    """Median size of a class: in ml or mm where all files say the size of their voxels.

    Args:
        cases: those that have the class.
        value: its label value.

    Returns:
        Text.
    """
    if not cases:
        return "-"
    if any(c.spacing is None for c in cases):
        return f"{digits(statistics.median(c.voxels[value] for c in cases))} voxels"
    sizes = []
    for case in cases:
        size = float(case.voxels[value])
        for step in case.spacing or ():
            size *= step
        sizes.append(size)
    size, flat = statistics.median(sizes), len(cases[0].shape) == 2
    if flat:
        return f"{digits(size)} mm2"
    return f"{digits(size / 1000)} ml" if size >= 1000 else f"{digits(size)} mm3"


def pieces(cases: Sequence[CaseFacts], value: int) -> str:
    """Median number of components of a class, and the range.

    Args:
        cases: those that have the class.
        value: its label value.

    Returns:
        Text.
    """
    counts = [c.components[value] for c in cases if value in c.components]
    if not counts:
        return "-"
    usual = f"{statistics.median(counts):g}"
    return usual if min(counts) == max(counts) else f"{usual} ({min(counts)}-{max(counts)})"


# --- oddities -------------------------------------------------------------------------------------

NUMBER = re.compile(r"\d+(?:[x.,e+-]+\d+)*")
"""Numbers and shapes in a text."""


def _oddities(oddities: Sequence[Oddity], room: int) -> list[str]:
    """What is odd, alike cases on one line, in so many lines."""
    if not oddities:
        return ["  nothing odd"]
    refused = sum(o.severity == "error" for o in oddities)
    more = f", of which training refuses {refused}" if refused else ""
    lines = [f"  {len(oddities)} {'oddity' if len(oddities) == 1 else 'oddities'}{more}"]
    groups = grouped(oddities)
    most = ROWS if len(groups) > FEW else 2 * ROWS
    for n, group in enumerate(groups):
        text = _line(group)
        rows = textwrap.wrap(
            text, WIDTH, initial_indent="    ", subsequent_indent="      ", max_lines=most,
            placeholder=" ...",
        )  # fmt: skip
        if len(lines) + len(rows) > room - 1:
            left = sum(len(g) for g in groups[n:])
            return [*lines, f"    ... and {left} more"]
        lines += rows
    return lines


def grouped(oddities: Iterable[Oddity]) -> list[list[Oddity]]:
    """Oddities that differ in names and numbers alone, together where there are many.

    Args:
        oddities: in any order.

    Returns:
        Groups, in the order of their first.
    """
    groups: dict[tuple[str, str, bool], list[Oddity]] = defaultdict(list)
    for oddity in oddities:
        plain = oddity.text.replace(oddity.case, "*") if oddity.case else oddity.text
        key = (NUMBER.sub("#", plain), oddity.severity, not oddity.case)
        groups[key].append(oddity)
    parts = ([g] if len(g) > FEW else [[oddity] for oddity in g] for g in groups.values())
    return [group for part in parts for group in part]


def _line(group: Sequence[Oddity]) -> str:
    """One text for a group."""
    first = group[0]
    mark = "refused: " if first.severity == "error" else ""
    file = first.path.rsplit("/", 1)[-1] if first.path and first.case else ""
    if len(group) == 1:
        who = f"{first.case}: " if first.case else ""
        return f"{mark}{who}{f'{file} ' if file else ''}{first.text}"
    if not first.case:
        return f"{mark}{len(group)} times, e.g. {first.path} {first.text}"
    names = ", ".join(o.case for o in group[:EXAMPLES]) + (", ..." if len(group) > EXAMPLES else "")
    return f"{mark}{len(group)} cases ({names}), e.g. {file or first.case} {first.text}"
