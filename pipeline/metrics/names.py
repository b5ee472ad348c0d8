"""Names of metrics for display and on the command line.

``dice_1`` is written ``dice Anterior`` where the data set names its classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pipeline.config import override
from pipeline.metrics.frames import SUFFIXES
from pipeline.records import NamedOptions

_OF_CLASS = re.compile(rf"(?P<metric>.+)_(?P<label>[1-9]\d{{0,8}})(?P<frame>{'|'.join(SUFFIXES)})?")


def display(
    key: str, names: Mapping[int, str], units: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Write a metric's key with the name of its class in place of the number.

    Other keys, and classes without a name, stay as they are.

    Args:
        key: as in a table of scores.
        names: class names by number.
        units: units of those metrics that are lengths, appended in brackets.

    Returns:
        The text to show.

    Example:
        >>> names = {1: "Anterior", 2: "Posterior"}
        >>> display("dice_1", names), display("dice_2_fov", names), display("val_dice_1", names)
        ('dice Anterior', 'dice_fov Posterior', 'val_dice Anterior')
        >>> display("dice", names), display("dice_3", names), display("betti_error_b1", names)
        ('dice', 'dice_3', 'betti_error_b1')
        >>> display("hd95_1", names, {"hd95": "mm"}), display("hd95", {}, {"hd95": "voxels"})
        ('hd95 Anterior [mm]', 'hd95 [voxels]')
    """
    unit = next(
        (f" [{u}]" for name, u in units.items() if key == name or key.startswith(f"{name}_")), ""
    )
    found = of_class(key)
    return (f"{found[0]} {names[found[1]]}" if found and found[1] in names else key) + unit


def of_class(key: str) -> tuple[str, int] | None:
    """Split a key into metric and class.

    Args:
        key: as in a table of scores.

    Returns:
        The metric (with its frame) and the class number; None where the key has no class.

    Example:
        >>> of_class("surface_dice_2"), of_class("dice_2_fov"), of_class("dice")
        (('surface_dice', 2), ('dice_fov', 2), None)
    """
    match = _OF_CLASS.fullmatch(key)
    return match and (f"{match['metric']}{match['frame'] or ''}", int(match["label"]))


def from_json(names: object) -> dict[int, str]:
    """Read class names as JSON stores them, with numbers as strings.

    Args:
        names: any parsed JSON value.

    Returns:
        Names by class number; empty for what is no such table.

    Example:
        >>> from_json({"1": "Anterior"}), from_json(None), from_json({"x": "y"})
        ({1: 'Anterior'}, {}, {})
    """
    if not isinstance(names, Mapping):
        return {}
    return {
        int(k): v
        for k, v in names.items()
        if re.fullmatch(r"[1-9]\d{0,8}", str(k)) and isinstance(v, str)
    }


def key_names(document: Mapping[str, Any]) -> dict[int, str]:
    """Names of the numbers in keys of metrics: regions where a document has any, else classes.

    Args:
        document: a summary or table of scores, with ``class_names`` (by label value) and
            ``regions`` (in the order of their numbers, from 1 on).

    Returns:
        Names by number; empty where nothing has a name.

    Example:
        >>> key_names({"class_names": {"1": "core", "2": "edge"}})
        {1: 'core', 2: 'edge'}
        >>> key_names({"class_names": {"1": "core"}, "regions": {"whole": [1, 2], "core": [2]}})
        {1: 'whole', 2: 'core'}
    """
    regions = document.get("regions")
    if isinstance(regions, Mapping) and regions:
        return {n: str(name) for n, name in enumerate(regions, 1)}
    return from_json(document.get("class_names"))


def read_metric(text: str) -> NamedOptions:
    """Parse ``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``, values as in YAML.

    Args:
        text: from the command line.

    Returns:
        The metric with its options, not checked.

    Example:
        >>> read_metric("surface_dice:tolerance=3")
        NamedOptions(name='surface_dice', options={'tolerance': 3})
    """
    name, _, given = text.partition(":")
    options: dict[str, Any] = {}
    for words in given.split(",") if given else ():
        override(options, words)
    return NamedOptions(name=name, options=options)
