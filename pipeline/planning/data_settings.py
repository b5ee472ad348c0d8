"""Decisions about the data: what is learned, in which space, with which intensities and folds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.planning import names
from pipeline.planning.fingerprint import Fingerprint
from pipeline.planning.ground import Ground, block_rules, channel_names, longest_axis
from pipeline.planning.settings import Setting
from pipeline.planning.topology import shape_text
from pipeline.records import UserError

FOLDS = 5
"""Folds of a cross-validation, as in nnU-Net."""

SHARED_SCALE = ("hu", "hounsfield", "dose", "suv", "adc", "t1 map", "t2 map")
"""Channel names, besides nnU-Net's CT, whose numbers mean the same in every image."""

NORMALISERS: dict[str, dict[str, Any]] = {
    "ct": {"name": "ct"},
    "rescale_to_0_1": {"name": "rescale"},
    "rgb_to_0_1": {"name": "rgb"},
    "nonorm": {"name": "none"},
    "zscore": {"name": "zscore"},
}
"""Entries of NORMALISE by nnU-Net's names."""

CROPPED = 0.95
"""Median share of an image inside the box that is not 0, below which our own rules crop."""


def settings(ground: Ground) -> Iterator[Setting]:
    """Settings of section ``data`` but those of samples.

    Args:
        ground: facts and choices.

    Yields:
        Settings in the order of the file.
    """
    found = ground.fingerprint
    yield Setting("data.root", str(Path(found.root).absolute()))
    yield Setting("data.layout", found.layout)
    if found.layout == "folders":
        yield Setting("data.folders", dict(found.folders), "images and targets pair by name")
        if found.test and found.tests:
            yield Setting("data.test", found.test, f"{found.tests} images to predict")
    yield Setting("data.dims", found.dims)
    yield from _labels(ground)
    yield from _space(ground)
    yield _normalise(ground)
    yield from _folds(ground)


def _labels(ground: Ground) -> Iterator[Setting]:
    """Classes, regions and the ignored value."""
    found = ground.fingerprint
    if not ground.labels:
        return
    if ground.instances is not None:
        yield Setting("data.classes", 2, "background and object; see the note on instances above")
        yield Setting("data.binarise", 0, "every number above 0 is an object")
        return
    named = ", ".join(f"{v} {n}" for v, n in sorted(found.class_names.items()) if v > 0)
    yield Setting("data.classes", found.classes, f"0 background, {named}" if named else "")
    if found.binarise is not None:
        yield Setting("data.binarise", found.binarise, "masks are black and white pictures")
    if found.regions:
        members = {name: list(values) for name, values in found.regions.items()}
        yield Setting("data.regions", members, "as dataset.json names them, a sigmoid each")
        order = _region_order(found)
        yield Setting("data.regions_class_order", list(order), "later ones overwrite earlier ones")
    if found.ignore_label is not None:
        who = "the competition's" if found.layout == "competition" else "dataset.json's"
        yield Setting("data.ignore_label", found.ignore_label, f"{who} label to ignore")


def _region_order(found: Fingerprint) -> tuple[int, ...]:
    """The label that is written for each region; without dataset.json's, its largest."""
    regions = found.regions or {}
    order = found.regions_class_order or tuple(max(v) for v in regions.values())
    if len(set(order)) < len(regions):
        names = ", ".join(f"{name} {list(values)}" for name, values in regions.items())
        raise UserError(
            f"{Path(found.root) / 'dataset.json'} names regions ({names}) without a usable"
            " regions_class_order. Add one: the label that is written for each region, in their"
            " order, a different one for each, such as"
            f" {list(range(1, len(regions) + 1))}."
        )
    return order


def _space(ground: Ground) -> Iterator[Setting]:
    """Axes, crop and spacing."""
    axes, spacing, rules = ground.axes, ground.spacing, ground.rules
    if axes.codes is not None:
        why = "axes as in most files, slowest first"
        moved = rules.transpose_forward != (0, 1, 2)
        reason = f"{why}; {rules.reasons['transpose']}" if moved else why
        yield Setting("data.orientation", axes.codes, reason)
    elif axes.moved:
        yield Setting("data.axes", list(axes.order), rules.reasons["transpose"])
    left = _left(ground)
    if ground.fingerprint.dims == 3 and (left < CROPPED or not ground.small):
        text = f"{left:.0%} of a median image lie inside the box outside of which it is 0"
        yield Setting("data.crop", "nonzero", text)
    if spacing is not None:
        values: list[float | None] = [round(s, 6) for s in spacing]
        reason = ground.configuration.reasons["spacing"]
        if ground.flat:
            values, reason = [None, *values], f"{reason}; slices stay as far apart as they are"
        yield Setting("data.spacing", values, reason)


def _left(ground: Ground) -> float:
    """Median share of the images inside the box that is not 0."""
    sizes = sorted(math.prod(c.box) / math.prod(c.shape) for c in ground.fingerprint.cases)
    return sizes[len(sizes) // 2]


def _normalise(ground: Ground) -> Setting:
    """One entry for all channels, or one for each."""
    if not ground.labels:
        options = {"low": 0, "high": None, "to": [-1, 1]}
        return Setting(
            "data.normalise",
            {"name": "range", "options": options},
            "pictures on a scale from 0 to the largest value of their number type",
        )
    rules = ground.rules
    each = []
    for name, scheme, masked in zip(
        channel_names(ground.fingerprint), rules.normalisation, rules.masked, strict=True
    ):
        if ground.small and scheme == "zscore" and name.strip().lower() in SHARED_SCALE:
            each.append({"name": "ct"})
        elif ground.small and scheme == "zscore" and _is_rgb(ground):
            each.append({"name": "rgb"})
        elif masked:
            each.append({"name": "zscore", "options": {"mask": True}})
        else:
            each.append(NORMALISERS[scheme])
    value = each[0] if all(e == each[0] for e in each) else each
    return Setting("data.normalise", value, _normalise_reason(ground, each))


def _is_rgb(ground: Ground) -> bool:
    """Whether images are colour pictures of 8 bits."""
    found = ground.fingerprint
    return (
        found.dims == 2
        and len(found.channels) == 3
        and all(c.dtype == "uint8" for c in found.cases)
    )


def _normalise_reason(ground: Ground, each: list[dict[str, Any]]) -> str:
    """nnU-Net's reason, and where our rules differ."""
    own = [
        name
        for name, scheme, entry in zip(
            channel_names(ground.fingerprint), ground.rules.normalisation, each, strict=True
        )
        if scheme == "zscore" and entry["name"] == "ct"
    ]
    more = (
        f"; by our rules ct for {', '.join(own)}: its numbers mean the same in every image"
        if own
        else ""
    )
    if any(e["name"] == "rgb" for e in each) and "rgb_to_0_1" not in ground.rules.normalisation:
        return "colour pictures of 8 bits"
    return ground.configuration.reasons.get("normalisation", "") + more


def _folds(ground: Ground) -> Iterator[Setting]:
    """How many folds, and what stays together."""
    found = ground.fingerprint
    count = len(found.cases)
    if count == 1:
        yield from _block_folds(ground)
        return
    groups = set(found.groups.values())
    if len(groups) >= 2:
        yield Setting(
            "data.folds.count", min(FOLDS, len(groups)), _count_reason(len(groups), "groups")
        )
        yield Setting("data.folds.by", "group", f"train.csv names {len(groups)} groups")
        return
    yield Setting("data.folds.count", min(FOLDS, count), _count_reason(count, "cases"))
    for n, proposal in enumerate(names.group_proposals([c.id for c in found.cases])[:2]):
        text = f"names hold {proposal.text}. If these belong together, take the #"
        if n == 0:
            yield Setting("data.folds.by", "group", f"{text} away here and in the line below", True)
        yield Setting("data.folds.pattern", proposal.pattern, proposal.text, True)


def _count_reason(have: int, what: str) -> str:
    return "" if have >= FOLDS else f"there are {have} {what}"


def _block_folds(ground: Ground) -> Iterator[Setting]:
    """Folds within one large image."""
    case, rules = ground.fingerprint.cases[0], block_rules(ground)
    longest = longest_axis(case)
    if rules is None:
        raise UserError(
            f"{ground.fingerprint.root} holds one image of {shape_text(case.shape)} voxels, too"
            f" small to be divided into blocks as long as a patch ({shape_text(ground.patch)}) for"
            " cross-validation. Add images."
        )
    fewer = "; in more, a block is shorter than a patch" if rules.count < FOLDS else ""
    yield Setting(
        "data.folds.count",
        rules.count,
        f"blocks of the one image, {case.shape[longest]} long{fewer}",
    )
    yield Setting("data.folds.by", "block", "one image: parts of it are held out, no voxel twice")
    yield Setting(
        "data.folds.margin",
        rules.margin,
        "slices between blocks that nobody sees: they are near copies",
    )
