"""Members of an ensemble: folders of predictions, checked and aligned to one grid."""

from __future__ import annotations

import collections
import functools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.data import labels
from pipeline.data.normalise import IntensityScale
from pipeline.files import LazyArray, Rows
from pipeline.grid import Alignment, alignment, grid_of
from pipeline.inference import soft as softs
from pipeline.inference.outputs import answer_files
from pipeline.inference.soft import SoftPrediction
from pipeline.progress import progress
from pipeline.records import Geometry, UserError
from pipeline.stopping import stop

logger = logging.getLogger(__name__)

SHOWN = 10
"""Most faults that a message lists; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Cases of one member.

    Args:
        folder: where its files lie.
        ids: ids of the cases.
        load: the prediction of a case; of an answer file one with its mask as the main head.
        inspect: the same without the values of answer files, while those of soft predictions are
            checked. Raises UserError where a file cannot be used.
        path: the file of a case, for messages.
    """

    folder: Path
    ids: tuple[str, ...]
    load: Callable[[str], SoftPrediction]
    inspect: Callable[[str], SoftPrediction]
    path: Callable[[str], Path]


def open_member(folder: Path, fusion: str) -> Reader:
    """Open a member's soft predictions or, for votes, its answer files.

    Args:
        folder: output folder of a prediction.
        fusion: ``mean``, ``logit`` or ``vote``.

    Returns:
        A reader of the folder's soft predictions where there are any, else of its answer files.

    Raises:
        UserError: there are no soft predictions, and ``fusion`` is not a vote.
    """
    inner = folder / "soft"
    found = softs.ids(inner)
    if found:
        load = functools.partial(softs.load, inner)
        inspect = functools.partial(_inspect_soft, inner)
        return Reader(
            folder=inner,
            ids=tuple(found),
            load=load,
            inspect=inspect,
            path=functools.partial(softs.array_path, inner),
        )
    answers = answer_files(folder)
    if fusion != "vote":
        suggestion = "Run pipeline.predict with --save-soft" + (
            ", or fuse the answers with --fusion vote." if answers else "."
        )
        raise UserError(f"{folder}: holds no soft predictions. {suggestion}")
    return Reader(
        folder=folder,
        ids=tuple(answers),
        load=lambda case_id: _answer(case_id, answers[case_id], *_mask(answers[case_id])),
        inspect=lambda case_id: _inspect_answer(case_id, answers[case_id]),
        path=lambda case_id: answers[case_id],
    )


def _inspect_soft(folder: Path, case_id: str) -> SoftPrediction:
    """Load a soft prediction whose values and metadata are checked."""
    soft = softs.load_sound(folder, case_id)
    lost = [key for key in soft.meta.rules.needed if getattr(soft.meta, key) is None]
    if lost:
        path = softs.array_path(folder, case_id).with_suffix(".json")
        raise UserError(
            f"{path}: lacks {' and '.join(lost)}, without which no image can be written. Predict it"
            " with pipeline.predict."
        )
    return soft


def _mask(path: Path) -> tuple[np.ndarray, Geometry]:
    """A 0/1 mask from an answer file. Raises UserError for other values."""
    array, geometry = files.read(path, files.dims_of(path), labels=True)
    try:
        array = labels.class_numbers(path, array)
        wrong = array[(array != 0) & (array != 1)]
        problem = f"holds {wrong[0]}" if wrong.size else None
    except files.FileError as error:
        problem = error.problem
    if problem is not None:
        raise UserError(
            f"{path}: {problem}. A vote over answer files takes 0/1 masks; save soft predictions"
            " instead."
        )
    return array, geometry


def _answer(case_id: str, path: Path, array: LazyArray, geometry: Geometry) -> SoftPrediction:
    meta = softs.SoftMeta(task="labels", suffix=files.suffix(path))
    return SoftPrediction(case_id=case_id, heads={softs.MAIN: array}, geometry=geometry, meta=meta)


def _inspect_answer(case_id: str, path: Path) -> SoftPrediction:
    """An answer file whose header is read, and whose values are read when they are sliced."""
    dims = files.dims_of(path)
    shape = files.probe(path, dims).shape
    unread = Rows(shape, np.dtype(np.uint8), lambda first, end: _mask(path)[0][:, first:end])
    return _answer(case_id, path, unread, files.geometry(path, dims))


def looked_at(
    ids: Sequence[str], readers: Sequence[Reader]
) -> tuple[dict[str, list[Alignment]], dict[str, str]]:
    """Check all members and find how each one's array is aligned to the first member's grid.

    Args:
        ids: cases that all members hold.
        readers: the members.

    Returns:
        By case the alignment of each member: flips and axis order, no resampling; and, by case,
        what is wrong where a file cannot be used.

    Raises:
        UserError: members do not fit each other, or no case is left; it lists what is wrong.
    """
    alignments: dict[str, list[Alignment]] = {}
    damaged: dict[str, str] = {}
    faults: dict[str, str] = {}
    moved: collections.Counter[Path] = collections.Counter()
    for case_id in progress(ids, "looking at members"):
        stop.raise_if_stopped()
        try:
            first, *others = [(reader.path(case_id), reader.inspect(case_id)) for reader in readers]
        except UserError as error:
            damaged[case_id] = str(error)
            continue
        try:
            alignments[case_id] = [_aligned_to(first, other) for other in (first, *others)]
        except UserError as error:
            faults[case_id] = str(error)
            continue
        moved.update(
            r.folder
            for r, found in zip(readers, alignments[case_id], strict=True)
            if not found.identity
        )
    if faults or not alignments:
        faults |= damaged
        more = f"\n  ... {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        shown = [f"case {case_id}: {error}" for case_id, error in list(faults.items())[:SHOWN]]
        raise UserError("members cannot be fused:\n  " + "\n  ".join(shown) + more)
    for folder, count in moved.items():
        logger.info(
            f"{folder}: {count} cases have other axes than the first member's; they are brought to"
            " those exactly"
        )
    return alignments, damaged


Located = tuple[Path, SoftPrediction]
"""A soft prediction and the file that messages name."""


def _aligned_to(first: Located, other: Located) -> Alignment:
    """Alignment of a member's grid to the first one's. Raises UserError where none exists."""
    pair, (mine, theirs) = f"{other[0]} and {first[0]}", (other[1], first[1])
    if mine.meta.task != theirs.meta.task or mine.channels != theirs.channels:
        raise UserError(f"{pair} hold other things: {_what(mine)} and {_what(theirs)}.")
    if "scale" in mine.meta.rules.needed and not _same_scale(mine.meta.scale, theirs.meta.scale):
        raise UserError(
            f"{pair} hold intensities on different scales (data.normalise). Fuse networks that were"
            " trained alike."
        )
    shape, size = (s.on_file_grid().main.shape[1:] for s in (mine, theirs))
    here, there = grid_of(mine.geometry, len(size)), grid_of(theirs.geometry, len(size))
    if here.family != there.family:
        raise UserError(
            f"{pair} are answers to {here.family} and {there.family} files, whose axes lie in"
            f" different orders. {FROM_ONE}"
        )
    found = alignment(here, shape, there, size) if len(shape) == len(size) else None
    if found is None:
        what = (
            "lie in different places of the world"
            if sorted(shape) == sorted(size)
            else "disagree in shape"
        )
        raise UserError(f"{pair} {what} ({_size(shape)} and {_size(size)} voxels). {FROM_ONE}")
    return found


def _what(soft: SoftPrediction) -> str:
    heads = "".join(f", with a head {name}" for name in soft.heads if name != softs.MAIN)
    return f"{soft.meta.task} of {soft.main.shape[0]} channels{heads}"


FROM_ONE = "They were made from different inputs: predict the same files with every member."


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _same_scale(one: IntensityScale | None, other: IntensityScale | None) -> bool:
    """Whether intensities mean the same; older files without a scale count as the same."""
    if one is None or other is None:
        return True
    pairs = [(one.low, other.low), (one.high, other.high), (one.to, other.to)]
    if len(one.ranges) != len(other.ranges):
        return False
    for a, b in zip(one.ranges, other.ranges, strict=True):
        pairs += [((*a.to, a.clip), (*b.to, b.clip)), (a.window or (), b.window or ())]
    return all(len(a) == len(b) and np.allclose(a, b, rtol=1e-3) for a, b in pairs)


def common_ids(
    readers: Sequence[Reader], folders: Sequence[Path], failed: Collection[str] = ()
) -> list[str]:
    """Cases that all members hold.

    Args:
        readers: the members.
        folders: their folders as the user gave them, for messages.
        failed: ids to leave out.

    Returns:
        Ids in the order of the first member.

    Raises:
        UserError: a member lacks cases that another one has, or there are none at all.
    """
    union = set().union(*(r.ids for r in readers)) - set(failed)
    faults = [
        f"{folder}: lacks {', '.join(sorted(union - set(r.ids))[:10])}"
        for r, folder in zip(readers, folders, strict=True)
        if union - set(r.ids)
    ]
    if faults or not union:
        raise UserError(
            "members do not hold the same cases:\n  "
            + "\n  ".join(faults or ["no predictions at all"])
            + "\nPredict the missing ones, or leave the member out."
        )
    return [i for i in readers[0].ids if i in union]
