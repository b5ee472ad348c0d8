"""What is wrong with the cases of a data set, found from their properties alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline import config, grid
from pipeline.data.properties import CaseProperties, files_by_role
from pipeline.data.reading import NONFINITE, nonfinite_problem, same_affine
from pipeline.data.targets import EMPTY_VIEW, label_problem, target_rules
from pipeline.records import Case, Fault


def faults(
    properties: Sequence[CaseProperties], cases: Sequence[Case], settings: config.Config
) -> list[Fault]:
    """Check the content of all cases; no voxel is read.

    Args:
        properties: those of ``examine(cases, ...)``.
        cases: cases of the data set.
        settings: config of the run.

    Returns:
        Findings with path and suggestion: case by case, then channel counts, then duplicates.
    """
    found = []
    for case, props in zip(cases, properties, strict=True):
        found += [
            Fault(path=Path(path), problem=problem, suggestion=suggestion)
            for path, problem, suggestion in props.problems
        ]
        found += [*_image_faults(case, props), *_number_faults(case, props)]
        for role in (r for r in case.targets if r in props.shapes):
            found += _target_faults(case, props, role, settings)
    return [*found, *_channel_faults(properties, cases), *_duplicate_faults(properties, cases)]


def _image_faults(case: Case, props: CaseProperties) -> Iterator[Fault]:
    """Values that are not finite, and constant images."""
    found = [(case.image[int(number)], count) for number, count in props.nonfinite_files.items()]
    found += [
        (case.targets[role], count)
        for role, count in props.nonfinite.items()
        if role not in ("image", *props.label_values)
    ]
    for path, count in found:
        yield Fault(path=path, problem=nonfinite_problem(count), suggestion=NONFINITE)
    if props.constant:
        suggestion = (
            "It teaches nothing and is often a failed export: replace it or take the case away"
        )
        severity = "error" if case.targets else "warning"
        yield Fault(
            path=case.image[0],
            problem="is constant: every voxel has the same value",
            suggestion=suggestion,
            severity=severity,
        )


def _number_faults(case: Case, props: CaseProperties) -> Iterator[Fault]:
    """Files whose numbers may not mean what they seem to, or do not fit the normalisation."""
    paths = {role: paths[0] for role, paths in files_by_role(case).items()}
    for role, (problem, suggestion) in props.outside.items():
        yield Fault(path=paths[role], problem=problem, suggestion=suggestion)
    for role, notes in props.notes.items():
        for note in notes:
            yield Fault(
                path=paths[role],
                problem=note,
                suggestion="Check that this is meant; else save the file again",
                severity="warning",
            )
    for note in props.scale_notes:
        suggestion = (
            "Check the image; data.normalise can set other percentiles, or range with limits of"
            " its own"
        )
        yield Fault(path=paths["image"], problem=note, suggestion=suggestion, severity="warning")


def _target_faults(
    case: Case, props: CaseProperties, role: str, settings: config.Config
) -> Iterator[Fault]:
    """A target that does not fit its image, or with wrong label values."""
    path, image, target = case.targets[role], props.shapes.get("image"), props.shapes[role]
    if image and image[1:] != target[1:]:
        problem = (
            f"has shape {_shape_text(target[1:])}, its image {case.image[0].name} has"
            f" {_shape_text(image[1:])}"
        )
        suggestion = "Check that the two belong together; resample one to the other's grid"
        if image[1:] == target[:0:-1]:
            suggestion += (
                ". A photograph is turned upright by its EXIF orientation: a mask drawn over the"
                " unturned pixels must be turned, too"
            )
        yield Fault(path=path, problem=problem, suggestion=suggestion)
    types = props.dtypes.get("image"), props.dtypes.get(role)
    if settings.roles.get(role) == "image" and None not in types and types[0] != types[1]:
        problem = f"holds {types[1]}, its image {case.image[0].name} {types[0]}"
        yield Fault(
            path=path,
            problem=problem,
            suggestion=(
                "Save both with the same number type, so that equal values mean equal brightness"
            ),
        )
    if not same_affine(props.affines.get("image"), props.affines.get(role)):
        problem = (
            f"lies elsewhere in the world than its image {case.image[0].name}: their affines differ"
            f" by more than {grid.TOLERANCE}"
        )
        yield Fault(
            path=path,
            problem=problem,
            suggestion=(
                "Resample it to the image's grid, or copy the image's affine if only the header is"
                " wrong"
            ),
        )
    if role in props.label_values:
        kind = settings.roles[role]
        yield from _label_faults(
            path, props.label_values[role], target_rules(settings.data, kind), kind
        )


def _shape_text(shape: Sequence[int]) -> str:
    """``(128, 64)`` as ``128x64``."""
    return "x".join(map(str, shape))


def _label_faults(
    path: Path, values: Mapping[str, int], data: config.Data, kind: str
) -> Iterator[Fault]:
    """Label values that are no classes, and labels that teach nothing."""
    problem = label_problem(values, data)
    if problem:
        yield Fault(path=path, problem=problem[0], suggestion=problem[1])
    elif kind == "mask":
        if set(values) <= {"0"}:
            yield Fault(path=path, problem=EMPTY_VIEW[0], suggestion=EMPTY_VIEW[1])
    elif set(values) == {str(data.ignore_label)}:
        yield Fault(
            path=path,
            problem="is ignored everywhere",
            suggestion="The case teaches nothing and has no score",
            severity="warning",
        )
    elif outside := _in_no_region(values, data):
        yield Fault(
            path=path,
            problem=f"holds labels that are in no region of data.regions: {outside}",
            suggestion="They are learned as background; add a region, or check that this is meant",
            severity="warning",
        )
    elif set(values) <= {"0", str(data.ignore_label)}:
        suggestion = "Check that this is meant" + (
            ""
            if data.binarise is None
            else f"; no value lies above data.binarise: {data.binarise:g}"
        )
        yield Fault(
            path=path, problem="has no foreground", suggestion=suggestion, severity="warning"
        )


def _in_no_region(values: Mapping[str, int], data: config.Data) -> str:
    """Label values of a case that no region holds, with their voxels; empty where there is none."""
    if data.unions is None:
        return ""
    known = {"0", str(data.ignore_label), *(str(v) for union in data.unions for v in union)}
    return ", ".join(f"{v} ({n} voxels)" for v, n in values.items() if v not in known)


def _channel_faults(properties: Sequence[CaseProperties], cases: Sequence[Case]) -> Iterator[Fault]:
    """Cases whose image or target has another number of channels than most."""
    for role in {role: None for props in properties for role in props.shapes}:
        counts = Counter(props.shapes[role][0] for props in properties if role in props.shapes)
        usual, count = counts.most_common(1)[0]
        for case, props in zip(cases, properties, strict=True):
            have = props.shapes.get(role, (usual,))[0]
            if have != usual:
                path = case.image[0] if role == "image" else case.targets[role]
                yield Fault(
                    path=path,
                    problem=f"has {have} channels, {count} other cases have {usual}",
                    suggestion="Give every case the same channels",
                )


def _duplicate_faults(
    properties: Sequence[CaseProperties], cases: Sequence[Case]
) -> Iterator[Fault]:
    """Images that occur under several ids."""
    by_content: dict[str, list[Case]] = defaultdict(list)
    for case, props in zip(cases, properties, strict=True):
        if props.content:
            by_content[props.content].append(case)
    for group in (group for group in by_content.values() if len(group) > 1):
        names = ", ".join(case.id for case in group)
        suggestion = "They stay on one side of every fold; remove the copies if they are not meant"
        yield Fault(
            path=group[0].image[0],
            problem=f"holds the same image as other cases: {names}",
            suggestion=suggestion,
            severity="warning",
        )
