"""Rules of regions and names of classes in section ``data`` of a config.

A region is a union of label values that is trained, decided and scored as one. Each has an output
channel with a sigmoid, in the order of ``data.regions``. A label map is made from them as nnU-Net
does it: region after region, in that order, its value of ``data.regions_class_order`` is written
where its probability is high, so that later regions overwrite earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

Given: TypeAlias = Mapping[str, Sequence[int] | int]
"""Regions as a config has them: one value may stand without brackets."""

Unions: TypeAlias = tuple[tuple[int, ...], ...]
"""Label values of each region, in the order of the output channels."""

REGIONS, ORDER = "data.regions", "data.regions_class_order"


def unions(regions: Given) -> Unions:
    """Label values of each region.

    Args:
        regions: by name.

    Returns:
        Values, in the order of the output channels.

    Example:
        >>> unions({"whole": [1, 2], "core": 2})
        ((1, 2), (2,))
    """
    return tuple((v,) if isinstance(v, int) else tuple(v) for v in regions.values())


def written(value: int, regions: Unions, order: Sequence[int]) -> int:
    """The label that is written where exactly the regions of a label value are found.

    Args:
        value: label value.
        regions: label values of each region.
        order: label value that is written for each region.

    Returns:
        ``value`` itself where regions tell it from all others; 0 where it is in none.

    Example:
        >>> written(1, ((1, 2), (2,)), (1, 2)), written(2, ((1, 2), (2,)), (1, 2))
        (1, 2)
    """
    found = [label for label, members in zip(order, regions, strict=True) if value in members]
    return found[-1] if found else 0


def faults(
    regions: Given | None, order: Sequence[int] | None, classes: int, ignore: int | None
) -> Iterator[str]:
    """Find what is wrong with regions and their order.

    Args:
        regions: ``data.regions``.
        order: ``data.regions_class_order``.
        classes: ``data.classes``.
        ignore: ``data.ignore_label``.

    Yields:
        A message for each fault.
    """
    if regions is None or order is None:
        if regions is not None:
            yield (
                f"{ORDER} is missing: give the label value that is written for each of the"
                f" {len(regions)} regions{_example(unions(regions))}; later ones overwrite."
            )
        if order is not None:
            yield f"{ORDER} stands without {REGIONS}. Name the regions, or take it away."
        return
    found = [
        *_of_members(regions, classes, ignore),
        *_of_order(regions, unions(regions), tuple(order)),
    ]
    yield from found
    if not found:
        yield from _of_labels(unions(regions), order, classes)


def _example(regions: Unions) -> str:
    """An order that gives every label back, as an example; empty where there is none."""
    own = [set(u).difference(*regions[n + 1 :]) for n, u in enumerate(regions)]
    order = [min(u) for u in own if u]
    labels = set().union(*regions)
    works = len(order) == len(regions) and all(written(v, regions, order) == v for v in labels)
    return f", e.g. {order}" if works else ""


def _of_members(regions: Given, classes: int, ignore: int | None) -> Iterator[str]:
    """Regions without values, with values that are no classes, and regions that are the same."""
    if not regions:
        yield f"{REGIONS} is empty; name at least one, or set null."
    first: dict[frozenset[int], str] = {}
    for name, values in zip(regions, unions(regions), strict=True):
        allowed = set(range(1, classes)) - {ignore}
        if wrong := sorted(set(values) - allowed):
            rule = f"must be from 1 to {classes - 1} (data.classes is {classes})"
            ignored = "" if ignore is None else f" and not {ignore}, which is ignored"
            yield f"{REGIONS}: {name!r} holds {wrong[0]}, {rule}{ignored}."
        elif not values or len(set(values)) < len(values):
            what = "no label value" if not values else "a label value twice"
            yield f"{REGIONS}: {name!r} holds {what}: {list(values)}."
        same = first.setdefault(frozenset(values), name)
        if same != name:
            yield f"{REGIONS}: {same!r} and {name!r} hold the same labels. Keep one."
        if not _is_name(name):
            yield f"{REGIONS}: {name!r} is no name; use printable letters."


def _of_order(regions: Given, members: Unions, order: tuple[int, ...]) -> Iterator[str]:
    """An order that does not give one member of each region, each of its own."""
    if len(order) != len(regions):
        yield (
            f"{ORDER} has {len(order)} values for {len(regions)} regions"
            f" ({', '.join(regions)}); give one for each."
        )
        return
    for name, values, label in zip(regions, members, order, strict=True):
        if values and label not in values:
            yield (
                f"{ORDER} writes {label} for {name!r}, which holds {list(values)}: the label map"
                " would not give the region back. Take one of its own values."
            )
    if len(set(order)) < len(order):
        yield f"{ORDER} {list(order)} writes one label for several regions; each needs its own."


def _of_labels(members: Unions, order: Sequence[int], classes: int) -> Iterator[str]:
    """Labels that no label map could hold again, since regions do not tell them from others."""
    for value in range(1, classes):
        label = written(value, members, order)
        if label not in (0, value):
            yield (
                f"{REGIONS} and {ORDER} {list(order)}: label {value} cannot be written back, its"
                f" regions give {label}. Add a region of its own as the last one, e.g."
                f" 'label {value}': [{value}], or exchange the order."
            )


def _is_name(text: str) -> bool:
    return bool(text.strip()) and text.isprintable()


def name_faults(names: Mapping[int, str] | None, classes: int, ignore: int | None) -> Iterator[str]:
    """Find what is wrong with names of label values.

    Args:
        names: ``data.class_names``.
        classes: ``data.classes``.
        ignore: ``data.ignore_label``.

    Yields:
        A message for each fault.
    """
    key, first = "data.class_names", dict[str, int]()
    for value, name in (names or {}).items():
        if not 0 <= value < classes and value != ignore:
            yield (
                f"{key} names {value} {name!r}, but data.classes is {classes}: label values are 0"
                f" to {classes - 1}."
            )
        if not _is_name(name):
            yield f"{key}: {value} is named {name!r}; use printable letters."
        if first.setdefault(name, value) != value:
            yield f"{key}: {first[name]} and {value} are both named {name!r}; names must differ."
