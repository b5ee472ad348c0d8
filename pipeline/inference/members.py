"""Members of an ensemble: folders of soft predictions or answers, looked at and laid onto one grid
before they are fused.
"""

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
"""Faults that a message spells out; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Cases of one member: ids, and what gives one of them.

    ``load`` gives a activate prediction, of an answer file one with the difference_mask as its main
    head. ``look`` gives the same without the values of answer files; those of soft predictions are
    checked. It raises UserError where they cannot be used.
    """

    folder: Path
    ids: tuple[str, ...]
    load: Callable[[str], SoftPrediction]
    look: Callable[[str], SoftPrediction]
    path: Callable[[str], Path]


def open_member(folder: Path, fusion: str) -> Reader:
    """Soft predictions where there are any; otherwise, for votes, the answers themselves."""
    place = folder / "soft"
    found = softs.ids(place)
    if found:
        load = functools.partial(softs.load, place)
        look = functools.partial(_look_at_soft, place)
        return Reader(
            folder=place,
            ids=tuple(found),
            load=load,
            look=look,
            path=functools.partial(softs.array_path, place),
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
        look=lambda case_id: _look_at_answer(case_id, answers[case_id]),
        path=lambda case_id: answers[case_id],
    )


def _look_at_soft(folder: Path, case_id: str) -> SoftPrediction:
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


def _look_at_answer(case_id: str, path: Path) -> SoftPrediction:
    dims = files.dims_of(path)
    shape = files.probe(path, dims).shape
    unread = Rows(shape, np.dtype(np.uint8), lambda first, end: _mask(path)[0][:, first:end])
    return _answer(case_id, path, unread, files.geometry(path, dims))


def looked_at(
    ids: Sequence[str], readers: Sequence[Reader]
) -> tuple[dict[str, list[Alignment]], dict[str, str]]:
    """How each member's array is laid onto the first member's grid, by case: flips and axis order,
    exactly.

    Also the cases of which a file cannot be used, with what is wrong. Raises UserError, with all
    that is wrong, where members do not fit each other, and where no case is left.
    """
    ways: dict[str, list[Alignment]] = {}
    damaged: dict[str, str] = {}
    faults: dict[str, str] = {}
    moved: collections.Counter[Path] = collections.Counter()
    for case_id in progress(ids, "looking at members"):
        stop.raise_if_stopped()
        try:
            first, *others = [(reader.path(case_id), reader.look(case_id)) for reader in readers]
        except UserError as error:
            damaged[case_id] = str(error)
            continue
        try:
            ways[case_id] = [_laid_onto(first, seen) for seen in (first, *others)]
        except UserError as error:
            faults[case_id] = str(error)
            continue
        moved.update(
            r.folder for r, way in zip(readers, ways[case_id], strict=True) if not way.identity
        )
    if faults or not ways:
        faults |= damaged
        more = f"\n  ... {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        shown = [f"case {case_id}: {error}" for case_id, error in list(faults.items())[:SHOWN]]
        raise UserError("members cannot be fused:\n  " + "\n  ".join(shown) + more)
    for folder, count in moved.items():
        logger.info(
            f"{folder}: {count} cases have other axes than the first member's; they are brought to"
            " those exactly"
        )
    return ways, damaged


Located = tuple[Path, SoftPrediction]
"""A soft prediction and the file that messages name."""


def _laid_onto(first: Located, other: Located) -> Alignment:
    """The flips and axis order from one member's grid to the first one's.

    Raises UserError, naming both files, where there are none.
    """
    pair, (mine, theirs) = f"{other[0]} and {first[0]}", (other[1], first[1])
    if mine.meta.task != theirs.meta.task or mine.channels != theirs.channels:
        raise UserError(f"{pair} hold other things: {_what(mine)} and {_what(theirs)}.")
    if "scale" in mine.meta.rules.needed and not _same_scale(mine.meta.scale, theirs.meta.scale):
        raise UserError(
            f"{pair} hold intensities on different scales (data.normalise). Fuse networks that were"
            " trained alike."
        )
    shape, size = mine.main.shape[1:], theirs.main.shape[1:]
    here, there = grid_of(mine.geometry, len(size)), grid_of(theirs.geometry, len(size))
    if here.family != there.family:
        raise UserError(
            f"{pair} are answers to {here.family} and {there.family} files, whose axes lie in"
            f" different orders. {FROM_ONE}"
        )
    way = alignment(here, shape, there, size) if len(shape) == len(size) else None
    if way is None:
        what = (
            "lie in different places of the world"
            if sorted(shape) == sorted(size)
            else "disagree in shape"
        )
        raise UserError(f"{pair} {what} ({_size(shape)} and {_size(size)} voxels). {FROM_ONE}")
    return way


def _what(soft: SoftPrediction) -> str:
    heads = "".join(f", with a head {name}" for name in soft.heads if name != softs.MAIN)
    return f"{soft.meta.task} of {soft.main.shape[0]} channels{heads}"


FROM_ONE = "They were made from different inputs: predict the same files with every member."


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _same_scale(one: IntensityScale | None, other: IntensityScale | None) -> bool:
    """Whether intensities mean the same; those of older files, which do not say, are taken to."""
    if one is None or other is None:
        return True
    pairs = ((one.low, other.low), (one.high, other.high), (one.to, other.to))
    return all(len(a) == len(b) and np.allclose(a, b, rtol=1e-3) for a, b in pairs)


def common_ids(
    readers: Sequence[Reader], folders: Sequence[Path], failed: Collection[str] = ()
) -> list[str]:
    """The ids that all members hold, without the ``failed`` ones.

    Raises UserError naming every member that lacks or adds another one.
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
