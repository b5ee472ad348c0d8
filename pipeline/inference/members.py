"""Members of an ensemble: folders of soft predictions or answers, looked at and laid onto one grid before they are fused."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.data import labels
from pipeline.grid import Alignment, alignment, grid_of
from pipeline.inference import soft as softs
from pipeline.inference.outputs import answer_files
from pipeline.progress import progress
from pipeline.records import Geometry, UserError
from pipeline.stopping import stop

logger = logging.getLogger(__name__)

SHOWN = 10
"""Faults that a message spells out; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a member's case before it is fused: its file, shape ``(K, *S)``, geometry and facts."""

    path: Path
    shape: tuple[int, ...]
    geometry: Geometry
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Cases of one member: ids, and a function from id to (array ``(K, *S)`` soft or ``(1, *S)`` hard, its facts)."""

    ids: tuple[str, ...]
    load: Callable[[str], tuple[Any, dict[str, Any]]]
    look: Callable[[str], Seen]
    """Without the values of answer files; those of soft predictions are checked. Raises UserError where they cannot be used."""


def open_member(folder: Path, fusion: str) -> Reader:
    """Soft predictions where there are any; otherwise, for votes, the answers themselves."""
    found = softs.ids(folder / "soft")
    if found:
        place = folder / "soft"
        return Reader(ids=tuple(found), load=lambda case_id: _soft(place, case_id), look=lambda case_id: _look_at_soft(place, case_id))
    answers = answer_files(folder)
    if fusion != "vote":
        cure = "Run pipeline.predict with --save-soft" + (", or fuse the answers with --fusion vote." if answers else ".")
        raise UserError(f"{folder}: holds no soft predictions. {cure}")
    return Reader(ids=tuple(answers), load=lambda case_id: _hard(answers[case_id]), look=lambda case_id: _look_at_answer(answers[case_id]))


def _soft(folder: Path, case_id: str) -> tuple[Any, dict[str, Any]]:
    prediction, facts = softs.load(folder, case_id)
    usual = {"task": "labels", "suffix": ".nii.gz" if prediction.geometry.format == "nifti" else ".tif"}  # of what training wrote
    return prediction.soft, {**usual, **facts, "geometry": prediction.geometry}


def _look_at_soft(folder: Path, case_id: str) -> Seen:
    softs.require_sound(folder, case_id)
    array, facts = _soft(folder, case_id)
    lost = [key for key in ("scale", "dtype") if facts["task"] == "image" and facts.get(key) is None]
    if lost:
        path = softs.array_path(folder, case_id).with_suffix(".json")
        raise UserError(f"{path}: lacks {' and '.join(lost)}, without which no image can be written. Predict it with pipeline.predict.")
    return Seen(path=softs.array_path(folder, case_id), shape=tuple(array.shape), geometry=facts["geometry"], facts=facts)


def _hard(path: Path) -> tuple[Any, dict[str, Any]]:
    array, geometry = files.read(path, files.dims_of(path), labels=True)
    try:
        array = labels.class_numbers(path, array)
        wrong = array[(array != 0) & (array != 1)]
        problem = f"holds {wrong[0]}" if wrong.size else None
    except files.FileError as error:
        problem = error.problem
    if problem is not None:
        raise UserError(f"{path}: {problem}. A vote over answer files takes 0/1 masks; save soft predictions instead.")
    return array, {"geometry": geometry, "suffix": files.suffix(path), "task": "labels"}


def _look_at_answer(path: Path) -> Seen:
    dims = files.dims_of(path)
    facts = {"suffix": files.suffix(path), "task": "labels"}
    return Seen(path=path, shape=files.probe(path, dims).shape, geometry=files.geometry(path, dims), facts=facts)


def looked_at(ids: Sequence[str], readers: Sequence[Reader]) -> tuple[dict[str, list[Alignment]], dict[str, str]]:
    """How each member's array is laid onto the first member's grid, by case: flips and axis order, exactly.

    Also the cases of which a file cannot be used, with what is wrong. Raises UserError, with all that is wrong, where members do not fit
    each other, and where no case is left.
    """
    ways: dict[str, list[Alignment]] = {}
    damaged: dict[str, str] = {}
    faults: dict[str, str] = {}
    moved: collections.Counter[Path] = collections.Counter()
    for case_id in progress(ids, "looking at members"):
        stop.check()
        try:
            first, *others = [reader.look(case_id) for reader in readers]
        except UserError as error:
            damaged[case_id] = str(error)
            continue
        try:
            ways[case_id] = [_laid_onto(first, seen) for seen in (first, *others)]
        except UserError as error:
            faults[case_id] = str(error)
            continue
        moved.update(seen.path.parent for seen, way in zip((first, *others), ways[case_id], strict=True) if not way.identity)
    if faults or not ways:
        faults |= damaged
        more = f"\n  ... {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        shown = [f"case {case_id}: {error}" for case_id, error in list(faults.items())[:SHOWN]]
        raise UserError("members cannot be fused:\n  " + "\n  ".join(shown) + more)
    for folder, count in moved.items():
        logger.info(f"{folder}: {count} cases have other axes than the first member's; they are brought to those exactly")
    return ways, damaged


def _laid_onto(first: Seen, other: Seen) -> Alignment:
    """The flips and axis order from one member's grid to the first one's. Raises UserError, naming both files, where there are none."""
    pair = f"{other.path} and {first.path}"
    tasks = [seen.facts.get("task", "labels") for seen in (other, first)]
    if tasks[0] != tasks[1] or other.shape[0] != first.shape[0]:
        raise UserError(f"{pair} hold other things: {tasks[0]} of {other.shape[0]} channels and {tasks[1]} of {first.shape[0]}.")
    if tasks[0] == "image" and not _same_scale(other.facts.get("scale"), first.facts.get("scale")):
        raise UserError(f"{pair} hold intensities on different scales (data.normalise). Fuse networks that were trained alike.")
    dims = len(first.shape) - 1
    here, there = grid_of(other.geometry, dims), grid_of(first.geometry, dims)
    if here.family != there.family:
        raise UserError(f"{pair} are answers to {here.family} and {there.family} files, whose axes lie in different orders. {FROM_ONE}")
    way = alignment(here, other.shape[1:], there, first.shape[1:]) if len(other.shape) == len(first.shape) else None
    if way is None:
        what = "lie in different places of the world" if sorted(other.shape) == sorted(first.shape) else "disagree in shape"
        raise UserError(f"{pair} {what} ({_size(other)} and {_size(first)} voxels). {FROM_ONE}")
    return way


FROM_ONE = "They were made from different inputs: predict the same files with every member."


def _size(seen: Seen) -> str:
    return " x ".join(map(str, seen.shape[1:]))


def _same_scale(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether intensities mean the same; those of older files, which do not say, are taken to."""
    if not one or not other:
        return True
    return all(np.shape(one[k]) == np.shape(other[k]) and np.allclose(one[k], other[k], rtol=1e-3) for k in ("low", "high", "to"))


def common_ids(readers: Sequence[Reader], folders: Sequence[Path], failed: Collection[str] = ()) -> list[str]:
    """The ids that all members hold, without the ``failed`` ones. Raises UserError naming every member that lacks or adds another one."""
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
