"""Names of metrics as people write and read them: ``dice_1`` is written ``dice Anterior`` where the
data set names its classes.
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
    """The key of a metric with the name of its class in place of its number; other keys, and
    classes without a name, as they are.

    >>> names = {1: "Anterior", 2: "Posterior"}
    >>> display("dice_1", names), display("dice_2_fov", names), display("val_dice_1", names)
    ('dice Anterior', 'dice_fov Posterior', 'val_dice Anterior')
    >>> display("dice", names), display("dice_3", names), display("betti_error_b1", names)
    ('dice', 'dice_3', 'betti_error_b1')

    ``units`` are those of metrics that are lengths:

    >>> display("hd95_1", names, {"hd95": "mm"}), display("hd95", {}, {"hd95": "voxels"})
    ('hd95 Anterior [mm]', 'hd95 [voxels]')
    """
    unit = next(
        (f" [{u}]" for name, u in units.items() if key == name or key.startswith(f"{name}_")), ""
    )
    found = of_class(key)
    return (f"{found[0]} {names[found[1]]}" if found and found[1] in names else key) + unit


def of_class(key: str) -> tuple[str, int] | None:
    """Metric and class of a key, None where it is of no single class.

    >>> of_class("surface_dice_2"), of_class("dice_2_fov"), of_class("dice")
    (('surface_dice', 2), ('dice_fov', 2), None)
    """
    match = _OF_CLASS.fullmatch(key)
    return match and (f"{match['metric']}{match['frame'] or ''}", int(match["label"]))


def from_json(names: object) -> dict[int, str]:
    """Class names as JSON keeps them, by number again; what is no such table has none.

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


def read_metric(text: str) -> NamedOptions:
    """``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``, values as in YAML.

    >>> read_metric("surface_dice:tolerance=3")
    NamedOptions(name='surface_dice', options={'tolerance': 3})
    """
    name, _, given = text.partition(":")
    options: dict[str, Any] = {}
    for words in given.split(",") if given else ():
        override(options, words)
    return NamedOptions(name=name, options=options)
