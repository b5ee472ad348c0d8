"""Where the cases of a data set lie in the world: what does not fit together, what training saw."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import grid
from pipeline.config import Data
from pipeline.data.properties import CaseProperties
from pipeline.records import Case, Fault

ORDER = {
    "nifti": "NIfTI, MetaImage, NRRD or DICOM, whose axes are (X, Y, Z)",
    "array": "TIFF, Zarr, NumPy or a picture, whose axes are (Z, Y, X)",
}
"""Families of files and the order of their axes, for messages."""

NAMED = 3
"""Cases named as examples in a message."""


def faults(
    properties: Sequence[CaseProperties],
    cases: Sequence[Case],
    root: Path,
    continues: bool = False,
    data: Data | None = None,
) -> list[Fault]:
    """Check that the axes and spacings of all cases fit together.

    Args:
        properties: those of ``examine(cases, ...)``.
        cases: cases of the data set.
        root: folder of the data set, for messages.
        continues: a run is resumed, perhaps one from before this check; errors are then warnings.
        data: section ``data`` of the config, whose orientation and spacing make them fit.

    Returns:
        Findings; empty where everything fits.
    """
    severity = "warning" if continues else "error"
    found = [
        Fault(path=path, problem=problem, suggestion=suggestion, severity=severity)
        for case, props in zip(cases, properties, strict=True)
        for path, problem, suggestion in _mixed_files(case, props)
    ]
    oriented = data is not None and data.orientation is not None
    mixed = _mixed_cases(properties, oriented)
    if mixed:
        suggestion = (
            "Set data.orientation, e.g. RAS, which brings all of them to it and their answers back;"
            " or bring the files to one (nibabel.as_closest_canonical gives RAS), or train them"
            " apart"
        )
        found.append(Fault(path=root, problem=mixed, suggestion=suggestion, severity=severity))
    spaced = data is not None and data.spacing is not None
    uneven = "" if spaced else _uneven_spacing(properties, oriented)
    if uneven:
        suggestion = (
            "A network knows voxels and no millimetres: set data.spacing to resample them to one"
            " spacing, or see that this is meant"
        )
        found.append(Fault(path=root, problem=uneven, suggestion=suggestion, severity="warning"))
    return found


def _mixed_files(case: Case, props: CaseProperties) -> Iterator[tuple[Path, str, str]]:
    """Targets of another family than their image, with problem and suggestion."""
    own = _family(props, "image")
    for role, path in case.targets.items():
        family = _family(props, role)
        if own and family and own != family:
            problem = (
                f"is {ORDER[family]}, its image {case.image[0].name} is {ORDER[own]}: nothing says"
                " which axis is which"
            )
            yield path, problem, "Save both in one format, the axes in one order"


def _family(props: CaseProperties, role: str) -> str | None:
    """Family of a role's file; None where it could not be read."""
    return props.grids.get(role, {}).get("family")


def _mixed_cases(properties: Sequence[CaseProperties], oriented: bool) -> str:
    """Kinds of axis order and how many cases have each; empty where it is one.

    Where all are brought to one orientation only the family counts: what lacks codes is refused by
    itself.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for props in properties:
        entry = props.grids.get("image")
        if entry:
            kinds[_kind({**entry, "codes": None} if oriented else entry)].append(props.id)
    plain = {kind for kind in kinds if kind != _kind({"family": "nifti"})}
    if len(plain) + ("NIfTI" in kinds and not any(k.startswith("NIfTI ") for k in kinds)) < 2:
        return ""
    shown = [
        f"{len(ids)} {kind} ({', '.join(ids[:NAMED])}{', ...' if len(ids) > NAMED else ''})"
        for kind, ids in kinds.items()
    ]
    return f"holds images whose axes lie differently: {'; '.join(shown)}"


def _kind(entry: Mapping[str, Any]) -> str:
    """Axis order of a file, for messages."""
    if entry["family"] == "array":
        return "without an orientation (TIFF, Zarr, NumPy, pictures)"
    return f"NIfTI {entry['codes']}" if entry.get("codes") else "NIfTI"


def _spacing_of(props: CaseProperties, oriented: bool) -> list[float]:
    """Spacing of a case's image, in the order of its file or of the common orientation."""
    spacing = list(props.grids["image"]["spacing"])
    axes = props.model_space.alignment.axes if oriented else ()
    return [spacing[a] for a in axes or range(len(spacing))]


def _uneven_spacing(properties: Sequence[CaseProperties], oriented: bool) -> str:
    """A warning where spacings differ by more than ``grid.SPREAD``; empty where they do not."""
    known = {
        props.id: _spacing_of(props, oriented)
        for props in properties
        if props.grids.get("image", {}).get("spacing")
    }
    spacings = list(known.values())
    if len({len(s) for s in spacings}) != 1 or grid.spread(spacings) <= grid.SPREAD:
        return ""
    axis = max(
        range(len(spacings[0])),
        key=lambda a: max(s[a] for s in spacings) / min(s[a] for s in spacings),
    )
    small, large = (pick(known, key=lambda case_id: known[case_id][axis]) for pick in (min, max))
    return (
        f"holds images of different spacing: {small} has {grid.by_mm(known[small])}, {large} has"
        f" {grid.by_mm(known[large])}"
    )


def trained_on(
    layout: str,
    properties: Sequence[CaseProperties],
    names: Mapping[int, str],
    data: Data | None = None,
    channels: Sequence[str] = (),
) -> dict[str, Any]:
    """What the training data looked like, for ``Checkpoint.trained_on``.

    Args:
        layout: layout of the data set.
        properties: those of ``examine(cases, ...)``.
        names: names of the classes by label value.
        data: section ``data`` of the config.
        channels: names of the image channels.

    Returns:
        ``layout``, ``family``, ``codes`` (both None where cases differ), ``spacing`` (median along
        each axis in mm, None where not all have as many axes) and ``class_names``. Where images are
        brought to an orientation, ``codes`` are that and the spacings are in its order. Where
        channels have names also ``channel_names``.
    """
    orientation = None if data is None else data.orientation
    seen = [props for props in properties if props.grids.get("image")]
    grids = [props.grids["image"] for props in seen]
    spacings = [
        _spacing_of(props, orientation is not None)
        for props, g in zip(seen, grids, strict=True)
        if g.get("spacing")
    ]
    even = len({len(s) for s in spacings}) == 1
    return {
        "layout": layout,
        "family": _common(g["family"] for g in grids),
        "codes": orientation or _common(g.get("codes") for g in grids),
        "spacing": (
            [statistics.median(axis) for axis in zip(*spacings, strict=True)] if even else None
        ),
        "class_names": {str(value): name for value, name in names.items()},
        **({"channel_names": list(channels)} if channels else {}),
    }


def _common(values: Iterator[str | None]) -> str | None:
    """The value that all have; None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None
