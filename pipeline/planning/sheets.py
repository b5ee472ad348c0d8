"""A fingerprint as small tables: cases, intensities, classes, oddities."""

from __future__ import annotations

from collections import Counter

from pipeline.planning.fingerprint import Fingerprint
from pipeline.planning.names import instances
from pipeline.planning.tables import EXAMPLES, counted, digits, grouped, pieces, span, typical_size

Sheet = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""Title, titles of the columns, and rows."""


def sheets(fingerprint: Fingerprint) -> list[Sheet]:
    """The facts of a data set.

    Args:
        fingerprint: of the data set.

    Returns:
        Tables that have rows.
    """
    found = [
        ("Cases", ("property", "value"), _cases(fingerprint)),
        _intensities(fingerprint),
        ("Classes", ("class", "cases", "of voxels", "median size", "components"),
         _classes(fingerprint)),
        ("Oddities", ("kind", "cases", "what is odd"), _oddities(fingerprint)),
    ]  # fmt: skip
    return [sheet for sheet in found if sheet[2]]


def _cases(fingerprint: Fingerprint) -> list[tuple[str, ...]]:
    """Numbers, layout, shapes, spacings, directions, types."""
    cases = fingerprint.cases
    spaced = [c.spacing for c in cases if c.spacing is not None]
    lacking = len(cases) - len(spaced)
    spacing = span(spaced, "mm") if spaced else "not in the files"
    rows = [
        ("training cases", str(len(cases))),
        ("images to predict", str(fingerprint.tests)),
        ("layout", fingerprint.layout),
        ("task", f"{fingerprint.task}, {fingerprint.dims} space axes"),
        ("shape", span([c.shape for c in cases], "voxels")),
    ]
    if any(c.box != c.shape for c in cases):
        rows.append(("non-zero", span([c.box for c in cases], "voxels")))
    rows.append(
        ("spacing", spacing + (f"; {lacking} do not say theirs" if spaced and lacking else ""))
    )
    codes = Counter(c.codes for c in cases if c.codes is not None)
    if codes:
        rows.append(("axis codes", counted(codes)))
    rows.append(("number types", counted(Counter(c.dtype for c in cases))))
    groups = len(set(fingerprint.groups.values()))
    return [*rows, ("groups", str(groups))] if groups else rows


def _intensities(fingerprint: Fingerprint) -> Sheet:
    """A row for each channel."""
    where = "foreground" if any(c.components for c in fingerprint.cases) else "all voxels"
    head = ("channel", "min", "0.5 %", "median", "99.5 %", "max", "mean", "std", "spread")
    rows = []
    for n, c in enumerate(fingerprint.channels):
        numbers = (c.minimum, c.low, c.median, c.high, c.maximum, c.mean, c.std)
        rows.append((f"{n} {c.name or ''}".strip(), *map(digits, numbers), f"{c.spread:.2f}"))
    return (f"Intensities ({where})", head, rows)


def _classes(fingerprint: Fingerprint) -> list[tuple[str, ...]]:
    """A row for each class."""
    cases, ignored = [c for c in fingerprint.cases if c.voxels], fingerprint.ignore_label
    objects = instances(fingerprint)
    if objects is not None:
        text = f"{objects.least} to {objects.most} in a case"
        return [("numbered objects", str(len(cases)), "", "", text)]
    seen = {v for c in cases for v in c.voxels if v > 0 and v != ignored}
    total = sum(n for c in cases for v, n in c.voxels.items() if v != ignored)
    rows = []
    for value in sorted(seen | set(fingerprint.class_names)):
        have = [c for c in cases if c.voxels.get(value)]
        share = sum(c.voxels[value] for c in have) / total if total else 0.0
        name = f"{value} {fingerprint.class_names.get(value, '')}".strip()
        facts = (f"{100 * share:.3g} %", typical_size(have, value), pieces(have, value))
        rows.append((name, str(len(have)), *facts))
    if ignored is not None:
        have = [c for c in cases if c.voxels.get(ignored)]
        rows.append((f"{ignored} is ignored", str(len(have)), "", "", ""))
    for name, values in (fingerprint.regions or {}).items():
        rows.append((f"region {name}", "", "", "", f"of the labels {list(values)}"))
    return rows


def _oddities(fingerprint: Fingerprint) -> list[tuple[str, ...]]:
    """A row for each group of oddities that are alike."""
    rows = []
    for group in grouped(fingerprint.oddities):
        names = [o.case for o in group if o.case]
        shown = ", ".join(names[:EXAMPLES]) + (
            f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
        )
        kind = "refused" if group[0].severity == "error" else "warning"
        rows.append((kind, shown or "all", ("e.g. " if len(group) > 1 else "") + group[0].text))
    return rows
