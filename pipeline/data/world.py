"""Where the cases of a data set lie in the world, as far as their files say: what does not go
together, and what training saw.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import grid
from pipeline.data.properties import CaseProperties
from pipeline.records import Case, Fault

ORDER = {
    "nifti": "NIfTI, whose axes are (X, Y, Z)",
    "array": "TIFF, Zarr, NumPy or a picture, whose axes are (Z, Y, X)",
}
"""Families of files and the order of their axes."""

NAMED = 3
"""Cases named as examples."""


def faults(
    properties: Sequence[CaseProperties], cases: Sequence[Case], root: Path, continues: bool = False
) -> list[Fault]:
    """What does not go together.

    ``continues``: the data of a run that began before anybody looked; errors are then warnings.
    """
    severity = "warning" if continues else "error"
    found = [
        Fault(path=path, problem=problem, suggestion=suggestion, severity=severity)
        for case, entry in zip(cases, properties, strict=True)
        for path, problem, suggestion in _mixed_files(case, entry)
    ]
    mixed = _mixed_cases(properties)
    if mixed:
        suggestion = (
            "Bring all files to one (nibabel.as_closest_canonical gives RAS), or train them apart"
        )
        found.append(Fault(path=root, problem=mixed, suggestion=suggestion, severity=severity))
    uneven = _uneven_spacing(properties)
    if uneven:
        suggestion = (
            "A network knows voxels and no millimetres: resample them to one spacing, or see that"
            " this is meant"
        )
        found.append(Fault(path=root, problem=uneven, suggestion=suggestion, severity="warning"))
    return found


def _mixed_files(case: Case, entry: CaseProperties) -> Iterator[tuple[Path, str, str]]:
    own = _family(entry, "image")
    for role, path in case.targets.items():
        family = _family(entry, role)
        if own and family and own != family:
            problem = (
                f"is {ORDER[family]}, its image {case.image[0].name} is {ORDER[own]}: nothing says"
                " which axis is which"
            )
            yield path, problem, "Save both in one format, the axes in one order"


def _family(entry: CaseProperties, role: str) -> str | None:
    return entry.grids.get(role, {}).get("family")


def _mixed_cases(properties: Sequence[CaseProperties]) -> str:
    """Kinds of axis order and how many cases have each; empty where it is one."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for entry in properties:
        placed = entry.grids.get("image")
        if placed:
            kinds[_kind(placed)].append(entry.id)
    plain = {kind for kind in kinds if kind != _kind({"family": "nifti"})}
    if len(plain) + ("NIfTI" in kinds and not any(k.startswith("NIfTI ") for k in kinds)) < 2:
        return ""
    shown = [
        f"{len(ids)} {kind} ({', '.join(ids[:NAMED])}{', ...' if len(ids) > NAMED else ''})"
        for kind, ids in kinds.items()
    ]
    return f"holds images whose axes lie differently: {'; '.join(shown)}"


def _kind(entry: Mapping[str, Any]) -> str:
    if entry["family"] == "array":
        return "without an orientation (TIFF, Zarr, NumPy, pictures)"
    return f"NIfTI {entry['codes']}" if entry.get("codes") else "NIfTI"


def _uneven_spacing(properties: Sequence[CaseProperties]) -> str:
    known = {
        f.id: f.grids["image"]["spacing"]
        for f in properties
        if f.grids.get("image", {}).get("spacing")
    }
    spacings = list(known.values())
    if len({len(s) for s in spacings}) != 1 or grid.spread(spacings) <= grid.SPREAD:
        return ""
    axis = max(
        range(len(spacings[0])),
        key=lambda a: max(s[a] for s in spacings) / min(s[a] for s in spacings),
    )
    small, large = (pick(known, key=lambda i: known[i][axis]) for pick in (min, max))
    return (
        f"holds images of different spacing: {small} has {grid.by_mm(known[small])}, {large} has"
        f" {grid.by_mm(known[large])}"
    )


def trained_on(
    layout: str, properties: Sequence[CaseProperties], names: Mapping[int, str]
) -> dict[str, Any]:
    """What the training data looked like, for ``Checkpoint.trained_on``: what is common to all
    cases, None where they differ.

    ``names`` are those of the classes.
    """
    grids = [f.grids["image"] for f in properties if f.grids.get("image")]
    spacings = [g["spacing"] for g in grids if g.get("spacing")]
    even = len({len(s) for s in spacings}) == 1
    return {
        "layout": layout,
        "family": _common(g["family"] for g in grids),
        "codes": _common(g.get("codes") for g in grids),
        "spacing": (
            [statistics.median(axis) for axis in zip(*spacings, strict=True)] if even else None
        ),
        "class_names": {str(value): name for value, name in names.items()},
    }


def _common(values: Iterator[str | None]) -> str | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None
