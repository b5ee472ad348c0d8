"""Folds of the user's own (``data.folds.file``), as nnU-Net's ``splits_final.json`` holds them."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pipeline import config, documents, files
from pipeline.data.folds import Split, groups_of
from pipeline.records import Case, UserError

SHOWN = 10
"""Most ids that a message lists."""

LONGEST = 200
"""Most characters of an id that a message shows whole."""


def path_of(data: config.Data) -> Path | None:
    """Where the file of own folds lies.

    Args:
        data: section ``data`` of a config.

    Returns:
        Its path, below ``data.root`` unless absolute; None where there is none.
    """
    return None if data.folds.file is None else Path(data.root) / data.folds.file


def read(path: Path, count: int) -> list[Split]:
    """Read a file of own folds.

    Args:
        path: ``[{"train": [ids], "val": [ids]}, ...]``, or ``{"folds": [...]}`` as ``splits.json``
            of a run.
        count: ``data.folds.count``.

    Returns:
        The folds, each side sorted.

    Raises:
        FileError: where the file is missing, holds something else, or another number of folds.
    """
    if not os.path.exists(path):
        raise files.FileError(
            path,
            "is not there, and data.folds.file names it",
            "Paths are below data.root unless absolute; correct it, or set data.folds.file=null",
        )
    suggestion = (
        'It must hold [{"train": [ids], "val": [ids]}, ...], as nnU-Net\'s splits_final.json'
    )
    document = files.read_document(path, documents.OwnSplits, suggestion)
    found = document["folds"] if isinstance(document, dict) else document
    if len(found) != count:
        advice = (
            f"Set data.folds.count={len(found)}"
            if len(found) >= 2
            else "Give it at least two folds"
        )
        raise files.FileError(
            path, f"holds {len(found)} folds, data.folds.count is {count}", advice
        )
    return [Split(train=tuple(sorted(f["train"])), val=tuple(sorted(f["val"]))) for f in found]


def splits(
    path: Path, cases: Sequence[Case], contents: Mapping[str, str], rules: config.Folds
) -> list[Split]:
    """Read a file of own folds, and check it against the cases.

    Args:
        path: the file.
        cases: all training cases.
        contents: hash of the image by id; cases with equal hashes may not be on both sides.
        rules: ``data.folds`` of the config.

    Returns:
        The folds, each side sorted.

    Raises:
        UserError: with every fault that the folds have.
        FileError: as :func:`read`.
    """
    found = read(path, rules.count)
    faults = [
        *_foreign(found, [case.id for case in cases]),
        *(text for n, fold in enumerate(found) for text in _of_sides(n, fold)),
        *_held_out_twice(found),
        *_leaks(found, contents, "equal images", "Put equal images on one side"),
    ]
    if rules.by == "group":
        faults += _shared_groups(found, cases)
    if faults:
        raise UserError("\n  ".join(f"{path}: {text}" for text in faults))
    return found


def notes(path: Path, found: Sequence[Split], cases: Sequence[Case]) -> Iterator[str]:
    """What the user should know of folds that have no fault.

    Args:
        path: the file.
        found: its folds.
        cases: all training cases.

    Yields:
        Sentences: cases that no fold uses, and cases that are never held out.
    """
    used = {name for fold in found for name in (*fold.train, *fold.val)}
    scored = {name for fold in found for name in fold.val}
    unused = sorted({case.id for case in cases} - used)
    if unused:
        yield (
            f"{path}: {len(unused)} of {len(cases)} cases are in no fold: {_listed(unused)}. They"
            " are not used; add them to the file to train on them."
        )
    if unscored := sorted(used - scored):
        yield (
            f"{path}: {len(unscored)} of {len(cases)} cases are never held out:"
            f" {_listed(unscored)}. They are trained on, and out-of-fold scores are without them."
        )


def _foreign(found: Sequence[Split], known: Sequence[str]) -> Iterator[str]:
    """Ids of no case."""
    ids = set(known)
    unknown = sorted({i for fold in found for i in (*fold.train, *fold.val) if i not in ids})
    if unknown:
        hints = [f"{_legible(i)} ({_near(i, known)})" for i in unknown[:SHOWN]]
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        yield (
            f"{len(unknown)} of the ids are of no case of the data set: {', '.join(hints)}{more}."
            " Ids are names of image files without ending and without nnU-Net's _0000: correct or"
            " remove them."
        )


def _legible(name: str) -> str:
    """An id as a message shows it: a long one cut, and one with line breaks or the like quoted."""
    return name if name.isprintable() and len(name) <= LONGEST else files.shown(name)


def _near(name: str, known: Sequence[str]) -> str:
    """The id that a name most likely means, first the one that it is a file name of."""
    stem = re.sub(r"(_\d{4})?(\.[A-Za-z]\w*)*$", "", name)
    close = [stem] if stem in known else difflib.get_close_matches(stem, known, n=1)
    return f"did you mean {close[0]}?" if close else "no id is like it"


def _of_sides(number: int, fold: Split) -> Iterator[str]:
    """Faults of one fold by itself."""
    for side, ids in (("train", fold.train), ("val", fold.val)):
        if not ids:
            yield f"fold {number} has no case under {side!r}. Give it one, or remove the fold."
        twice = sorted(name for name, n in Counter(ids).items() if n > 1)
        if twice:
            yield f"fold {number} names under {side!r} twice: {_listed(twice)}. Name each once."
    if both := sorted(set(fold.train) & set(fold.val)):
        yield (
            f"fold {number} has on both sides: {_listed(both)}. Take them out of 'train' or 'val'."
        )


def _held_out_twice(found: Sequence[Split]) -> Iterator[str]:
    """Cases that several folds hold out."""
    by_case: dict[str, list[int]] = defaultdict(list)
    for number, fold in enumerate(found):
        for name in set(fold.val):
            by_case[name].append(number)
    twice = sorted(f"{_legible(name)} ({_numbers(n)})" for name, n in by_case.items() if len(n) > 1)
    if twice:
        yield (
            f"{len(twice)} cases are held out by several folds: {_listed(twice)}. An out-of-fold"
            " score is that of the one model that has not seen the case: keep each in one 'val'."
        )


def _numbers(folds: Iterable[int]) -> str:
    return f"folds {', '.join(map(str, folds))}"


def _leaks(
    found: Sequence[Split], ties: Mapping[str, str], what: str, advice: str
) -> Iterator[str]:
    """Cases that are tied and yet on different sides of a fold."""
    for number, fold in enumerate(found):
        trained: dict[str, str] = {}
        for name in fold.train:
            if ties.get(name):
                trained.setdefault(ties[name], name)
        pairs = [
            f"{trained[ties[name]]} and {name}"
            for name in fold.val
            if ties.get(name) in trained and trained[ties[name]] != name
        ]
        if pairs:
            yield f"fold {number} has {what} on both sides: {_listed(pairs)}. {advice}."


def _shared_groups(found: Sequence[Split], cases: Sequence[Case]) -> Iterator[str]:
    """Cases of one group on both sides, or without a group."""
    used = {name for fold in found for name in (*fold.train, *fold.val)}
    try:
        groups = groups_of([case for case in cases if case.id in used])
    except UserError as error:
        yield str(error)
        return
    advice = "Put cases of a group on one side, or set data.folds.by=case"
    yield from _leaks(found, groups, "cases of one group", advice)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(_legible(name) for name in names[:SHOWN]) + (
        f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    )
