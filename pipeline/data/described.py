"""What a data set's ``dataset.json`` (nnU-Net) says of labels and channels, beside the config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import config, files
from pipeline.data import cases


def _document(root: Path) -> dict[str, Any]:
    """The content of ``dataset.json``; empty where there is no usable file."""
    try:
        found = files.read_json(root / "dataset.json")
    except files.FileError:
        return {}
    return found if isinstance(found, dict) else {}


def label_names(data: config.Data, root: Path | None = None) -> dict[int, str]:
    """Names of label values: those of the config, else those of ``dataset.json``.

    Args:
        data: section ``data`` of the config.
        root: folder of the data set; None: that of the config.

    Returns:
        Names by label value, without background and the ignored label. With regions those of the
        config alone, for a ``dataset.json`` names regions then.

    Example:
        >>> label_names(config.Data(class_names={0: "outside", 1: "Brainstem"}))
        {1: 'Brainstem'}
    """
    if data.class_names is None and data.regions is not None:
        return {}  # names there are those of regions
    if data.class_names is None:
        return cases.class_names(Path(data.root) if root is None else root)
    skipped = (0, data.ignore_label)
    return {v: name for v, name in sorted(data.class_names.items()) if v not in skipped}


def channel_names(data: config.Data, root: Path | None = None) -> tuple[str, ...]:
    """Names of image channels: those of the config, else those of ``dataset.json``.

    Both versions of nnU-Net are read (``channel_names`` and ``modality``).

    Args:
        data: section ``data`` of the config.
        root: folder of the data set; None: that of the config.

    Returns:
        Names in the order of the channels; empty where there are none.

    Example:
        >>> channel_names(config.Data(channel_names=("CT", "PET")))
        ('CT', 'PET')
    """
    if data.channel_names is not None:
        return data.channel_names
    return cases.channel_names(Path(data.root) if root is None else root)


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedRegions:
    """Regions that a ``dataset.json`` names.

    Args:
        members: label values of each region by name, in the order of the file.
        order: its ``regions_class_order``; None where it has none.
        ignore: the value that it calls ``ignore``; None: none.
    """

    members: Mapping[str, tuple[int, ...]]
    order: tuple[int, ...] | None
    ignore: int | None

    @property
    def largest(self) -> int:
        """Largest label value of all regions."""
        return max(v for values in self.members.values() for v in values)

    @property
    def snippet(self) -> str:
        """The keys of a config that trains these regions, as YAML on one line."""
        order = self.order or tuple(max(values) for values in self.members.values())
        keys = [
            f"classes: {self.largest + 1}",
            f"regions: {json.dumps({n: list(v) for n, v in self.members.items()})}",
            f"regions_class_order: {list(order)}",
            *([] if self.ignore is None else [f"ignore_label: {self.ignore}"]),
        ]
        return "data: {" + ", ".join(keys) + "}"


def regions(root: Path) -> DescribedRegions | None:
    """Regions of a ``dataset.json``: entries of ``labels`` that are lists of values.

    Single values beside them are regions, too, as nnU-Net takes them.

    Args:
        root: folder of the data set.

    Returns:
        The regions; None where no entry is a list of more than one value.
    """
    document = _document(root)
    labels = document.get("labels")
    if not isinstance(labels, Mapping):
        return None
    members = {
        name: values
        for name, given in labels.items()
        if name.lower() not in ("background", "ignore") and (values := _values(given))
    }
    if all(len(values) < 2 for values in members.values()):
        return None
    order = _values(document.get("regions_class_order")) or None
    return DescribedRegions(members=members, order=order, ignore=cases.ignore_label(root))


def _values(given: object) -> tuple[int, ...]:
    """Label values above 0 of an entry; empty for everything else."""
    values = given if isinstance(given, list) else [given]
    good = [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0]
    return tuple(good) if len(good) == len(values) else ()
