"""What is known of a folder of predictions: its summary, files, inputs, voxels of each class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, morphology
from pipeline.files import FileError, LazyArray, slabs
from pipeline.grid import Grid, grid_of
from pipeline.inference import outputs
from pipeline.metrics.names import from_json
from pipeline.morphology.sizes import voxel_volume
from pipeline.processes import available_memory
from pipeline.records import UserError
from pipeline.reporting.planes import add_foreground

SHARE = 3
"""A file that is read whole may take this part of the free memory."""

MOST_VOXELS = 2**32
"""Larger predictions are listed as their summary has them, and not read."""

COUNTED = 2**24
"""Voxels of the largest prediction whose components are counted class by class."""

MOST_CLASSES = 256
"""Label values that get a name although they do not occur."""

MEMBERS = 4
"""Levels of ensembles of ensembles that are searched for inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One prediction.

    Args:
        id: of the case.
        path: its file.
        dims: number of space axes.
        given: file of the input (of several channels the first); None: not named.
        row: what the summary says of it; empty where it says nothing.
    """

    id: str
    path: Path
    dims: int
    given: Path | None
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """Sizes of one prediction.

    Args:
        voxels: of each label value above 0 that occurs.
        grid: how it lies in the world.
        foreground: voxels above 0 of each slice along each axis; empty for images.
        components: connected components (corners touch) of the largest classes; empty where they
            were not counted.
    """

    voxels: Mapping[int, int]
    grid: Grid
    foreground: Sequence[np.ndarray] = ()
    components: Mapping[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Voxels of the foreground."""
        return sum(self.voxels.values())

    def physical(self, voxels: int) -> tuple[float, str] | None:
        """A number of voxels as a volume or an area.

        Args:
            voxels: how many.

        Returns:
            Number and unit; None where the file has no unit.
        """
        spacing = self.grid.spacing
        if spacing is None:
            return None
        if len(spacing) == 3:
            return voxels * voxel_volume(spacing) / 1000, "ml"
        return voxels * float(np.prod(spacing)), "mm²"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A folder of predictions.

    Args:
        folder: the folder.
        summary: its summary.json.
        answers: its predictions, by id.
        failed: messages by id.
        gaps: what is missing, in words.
    """

    folder: Path
    summary: Mapping[str, Any]
    answers: Mapping[str, Answer]
    failed: Mapping[str, str]
    gaps: list[str] = field(default_factory=list)

    @property
    def image(self) -> bool:
        """Whether the predictions are images, no labels."""
        return self.summary.get("task") == "image"

    @property
    def instances(self) -> bool:
        """Whether label values number objects, and are no classes."""
        return any(step.get("name") == "instances" for step in self.summary.get("postprocess", ()))

    @property
    def classes(self) -> dict[int, str]:
        """Names of the label values above 0, as far as the summary knows them."""
        names = from_json(self.summary.get("class_names"))
        count = self.summary.get("classes") or 0
        ignored = self.summary.get("ignore_label")
        values = sorted({*names, *range(1, min(count, MOST_CLASSES))} - {ignored})
        if self.instances:
            return {}
        only = "foreground" if values == [1] else ""
        return {v: names.get(v, only or f"class {v}") for v in values}

    @property
    def binary(self) -> bool:
        """Whether pictures show one class in the colour of answers."""
        return not self.instances and len(self.classes) <= 1


def load(folder: Path) -> Predicted:
    """Look at a folder of predictions; no pixel is read.

    Args:
        folder: what pipeline.predict or pipeline.ensemble wrote.

    Returns:
        What was found.

    Raises:
        UserError: the folder cannot be read, or its summary is none.
    """
    summary = outputs.read_summary(folder)
    rows = {row["id"]: row for row in summary.get("files", ())}
    failed = {
        i: str(r.get("error", "no reason given"))
        for i, r in rows.items()
        if r.get("status") == "failed"
    }
    given = dict(_inputs(folder, summary, MEMBERS))
    found = Predicted(folder=folder, summary=summary, answers={}, failed=failed)
    answers: dict[str, Answer] = {}
    for name, path in outputs.answer_files(folder).items():
        row = rows.get(name, {})
        if name in failed:
            continue
        shape = row.get("shape")
        try:
            dims = len(shape) if isinstance(shape, list) else files.dims_of(path)
        except FileError as error:
            found.gaps.append(f"{path.name}: {error.problem}")
            continue
        answers[name] = Answer(id=name, path=path, dims=dims, given=given.get(name), row=row)
    found.gaps.extend(_listed_gaps(rows, answers, failed, summary))
    return Predicted(
        folder=folder, summary=summary, answers=answers, failed=failed, gaps=found.gaps
    )


def _listed_gaps(
    rows: Mapping[str, Any],
    answers: Mapping[str, Answer],
    failed: Mapping[str, str],
    summary: Mapping[str, Any],
) -> Iterator[str]:
    """Where the summary and the files disagree."""
    wanted = summary.get("inputs")
    if isinstance(wanted, int) and len(rows) < wanted:
        yield f"the last command ended after {len(rows)} of {wanted} files; run it again"
    lost = [i for i in rows if i not in answers and i not in failed]
    if lost:
        yield f"listed in summary.json but not in the folder: {', '.join(lost[:10])}"
    foreign = [i for i in answers if i not in rows]
    if foreign:
        yield f"in the folder but not in summary.json: {', '.join(foreign[:10])}"


def _inputs(folder: Path, summary: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Path]]:
    """Files of the inputs by id; those of an ensemble are in the summaries of its members."""
    for row in summary.get("files", ()):
        if isinstance(row.get("file"), str):
            yield row["id"], Path(row["file"])
    for member in summary.get("members") or ():
        below = Path(str(member.get("folder", ""))) if isinstance(member, Mapping) else None
        if below is None or depth == 0 or below == folder:
            continue
        try:
            inner = outputs.read_summary(below)
        except UserError:
            continue
        yield from _inputs(below, inner, depth - 1)


def require_readable(path: Path, dims: int) -> None:
    """Check that an image can be read slab by slab, or fits into memory.

    Args:
        path: the file.
        dims: number of space axes.

    Raises:
        FileError: it is damaged, or too large.
    """
    found = files.probe(path, dims)
    if found.problem is not None:
        raise FileError(path, found.problem, found.suggestion)
    voxels = int(np.prod(found.shape))
    if voxels > MOST_VOXELS:
        raise FileError(
            path,
            f"has {voxels:,} voxels, reports read up to {MOST_VOXELS:,}",
            "Cut out a part of it to look at",
        )
    sliced = dims == 3 and files.suffix(path) in (".tif", ".tiff", ".zarr", ".npy")
    need, free = voxels * np.dtype(found.dtype).itemsize, available_memory() // SHARE
    if not sliced and need > free:
        raise FileError(
            path,
            f"takes {need / 1e9:.1f} GB, as its format is read whole; a third of the free memory"
            f" is {free / 1e9:.1f} GB",
            "Write TIFF or Zarr, which are read in slabs",
        )


def measure(answer: Answer, ignore: int | None) -> Volumes:
    """Count the voxels of each class of a prediction of labels.

    Args:
        answer: the prediction.
        ignore: label value that is no class; None: none.

    Returns:
        Its sizes.

    Raises:
        FileError: the file cannot be read, or is too large.
    """
    require_readable(answer.path, answer.dims)
    if answer.dims == 2:
        labels, geometry = files.read(answer.path, 2, labels=True)
        return _sizes(labels[:, None], grid_of(geometry, 2), ignore, answer.path)
    with files.view(answer.path, 3) as (labels, geometry):
        return _sizes(labels, grid_of(geometry, 3), ignore, answer.path)


def _sizes(labels: LazyArray, grid: Grid, ignore: int | None, path: Path) -> Volumes:
    """Sizes of labels ``(1, *S)`` with three space axes, in one pass."""
    voxels: dict[int, int] = {}
    along = [np.zeros(n, np.int64) for n in labels.shape[1:]]
    for first, end in slabs(labels):
        part = np.asarray(labels[0, first:end])
        values, numbers = np.unique(part, return_counts=True)
        wrong = values[~(np.isfinite(values) & (values == np.floor(values)))]
        if wrong.size:
            raise FileError(path, f"holds {wrong[0]}, which is no label: labels are whole numbers")
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            if value and value != ignore:
                voxels[int(value)] = voxels.get(int(value), 0) + number
        add_foreground(along, part, first, ignore)
    return Volumes(
        voxels=dict(sorted(voxels.items())),
        grid=grid,
        foreground=along,
        components=_components(labels, voxels),
    )


LARGEST = 4
"""Classes whose components are counted, the largest ones."""


def _components(labels: LazyArray, voxels: Mapping[int, int]) -> dict[int, int]:
    """Components of the largest classes of a prediction that is not too large."""
    if int(np.prod(labels.shape)) > COUNTED:
        return {}
    whole = np.asarray(labels[0, :])
    largest = sorted(voxels, key=lambda v: -voxels[v])[:LARGEST]
    return {v: len(morphology.component_sizes(whole == v)) - 1 for v in sorted(largest)}
