"""Split cases into folds, plain or by group, the same on every machine.

Equal images are always on one side. The split of a run is written once (``splits.json``) and read
ever after, so that a resumed fold sees the cases it began with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scipy

from pipeline import config, documents, files
from pipeline.records import Case, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Case ids of one fold, each side sorted."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def split(
    cases: Sequence[Case], contents: Mapping[str, str], folds: config.Folds, seed: int
) -> list[Split]:
    """Split cases into folds.

    ``by: case`` without equal images is exactly
    ``sklearn.model_selection.KFold(count, shuffle=True, random_state=seed)`` over the sorted ids;
    ``by: group`` is its ``GroupKFold`` with shuffled groups; ``by: block`` holds out block k of
    every stack in fold k.

    Args:
        cases: cases to train and validate on.
        contents: hash of the image by id; cases with equal hashes stay on one side.
        folds: ``data.folds`` of the config.
        seed: seed of the shuffle.

    Returns:
        One split per fold; every case is validated on once.

    Raises:
        UserError: where there is too little to split, a case has no group with ``by: group``, or is
            no block with ``by: block``.
    """
    if folds.by == "block":
        return _by_block(cases, contents, folds.count)
    # Imported here: it takes 1 to 2 s, and only this function needs it.
    from sklearn.model_selection import GroupKFold, KFold

    ids = sorted(case.id for case in cases)
    units = _units(ids, contents, groups_of(cases) if folds.by == "group" else {})
    _require_enough(ids, units, folds)
    if folds.by == "case" and len(set(units)) == len(ids):
        index_pairs = KFold(folds.count, shuffle=True, random_state=seed).split(ids)
    else:
        index_pairs = GroupKFold(folds.count, shuffle=True, random_state=seed).split(
            ids, groups=units
        )
    return [
        Split(train=tuple(ids[i] for i in train), val=tuple(ids[i] for i in val))
        for train, val in index_pairs
    ]


def _by_block(cases: Sequence[Case], contents: Mapping[str, str], count: int) -> list[Split]:
    """Block k of every stack is held out in fold k."""
    whole = sorted(case.id for case in cases if case.block is None)
    if whole:
        raise UserError(
            f"data.folds.by is 'block', but {len(whole)} of {len(cases)} cases could not be"
            f" divided: {', '.join(whole[:10])}. A line about the files of each says why; mend"
            " that, or set data.folds.by=case."
        )
    number = {case.id: case.block for case in cases}
    by_content: dict[str, list[str]] = {}
    for name in sorted(number):
        by_content.setdefault(contents.get(name) or f"no content: {name}", []).append(name)
    equal = [ids for ids in by_content.values() if len({number[i] for i in ids}) > 1]
    if equal:
        raise UserError(
            f"blocks of different folds hold equal images: {'; '.join(map(', '.join, equal[:10]))}."
            " Take copies of stacks away, or set data.folds.count, axis or margin so that blocks"
            " differ."
        )
    return [
        Split(
            train=tuple(sorted(i for i, k in number.items() if k != fold)),
            val=tuple(sorted(i for i, k in number.items() if k == fold)),
        )
        for fold in range(count)
    ]


def groups_of(cases: Sequence[Case]) -> dict[str, str]:
    """Group of each case by id.

    Args:
        cases: cases to train and validate on.

    Returns:
        Groups by id.

    Raises:
        UserError: for cases without a group.
    """
    missing = sorted(case.id for case in cases if case.group is None)
    if missing:
        raise UserError(
            f"data.folds.by is 'group', but {len(missing)} of {len(cases)} cases have no group:"
            f" {', '.join(missing[:10])}. Read it out of each id by a regular expression with one"
            " group in brackets, such as data.folds.pattern='^([^_]+)_', give train.csv a column"
            " scroll_id (or group) with a value for each id, or set data.folds.by=case."
        )
    return {case.id: str(case.group) for case in cases}


def _units(ids: Sequence[str], contents: Mapping[str, str], groups: Mapping[str, str]) -> list[int]:
    """Number of the inseparable set that each id belongs to.

    Ids are connected through an equal image or a common group.
    """
    first: dict[tuple[str, str], int] = {}
    pairs = []
    for index, name in enumerate(ids):
        for link in (("image", contents.get(name, "")), ("group", groups.get(name, ""))):
            if link[1]:
                pairs.append((first.setdefault(link, index), index))
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    graph = scipy.sparse.coo_array(
        ([1] * len(pairs), (list(rows), list(columns))), shape=(len(ids), len(ids))
    )
    return [
        int(label) for label in scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    ]


def _require_enough(ids: Sequence[str], units: Sequence[int], folds: config.Folds) -> None:
    """Raise UserError where there are fewer inseparable sets than folds."""
    have = len(set(units))
    if have >= folds.count:
        return
    what = "groups" if folds.by == "group" else "cases with different images"
    advice = f"Lower data.folds.count to at most {have}" if have >= 2 else "Add cases"
    raise UserError(
        f"data.folds.count is {folds.count}, but there are only {have} {what} ({len(ids)} cases). "
        f"{advice}"
        f"{', or set data.folds.by=case' if folds.by == 'group' and len(ids) > have else ''}."
    )


def load_or_make(
    path: Path,
    make: Callable[[], list[Split]],
    ids: Iterable[str],
    about: Mapping[str, Any] | None = None,
) -> list[Split]:
    """Read the splits of a run, or make and write them.

    Args:
        path: ``splits.json`` of the run.
        make: makes the splits where there is no file.
        ids: ids of the cases that are there.
        about: rules (seed, by, count) that are kept beside the splits and compared, too; with
            ``file``, the hash of the user's own folds, cases may be in no fold.

    Returns:
        One split per fold.

    Raises:
        UserError: where the file was made for other cases or by other rules.
        FileError: where it cannot be read or holds no usable folds.
    """
    existed = path.exists()
    splits = load_or_plan(path, make, ids, about)
    if not existed:
        files.write_json(path, {**(about or {}), "folds": splits})
    return splits


def load_or_plan(
    path: Path,
    make: Callable[[], list[Split]],
    ids: Iterable[str],
    about: Mapping[str, Any] | None = None,
) -> list[Split]:
    """As :func:`load_or_make`, but nothing is written.

    Args:
        path: ``splits.json`` of the run.
        make: makes the splits where there is no file.
        ids: ids of the cases that are there.
        about: rules that the file has to have been made by.

    Returns:
        One split per fold.

    Raises:
        UserError: where the file was made for other cases or by other rules.
        FileError: where it cannot be read or holds no usable folds.
    """
    return _checked(path, set(ids), dict(about or {})) if path.exists() else make()


def _checked(path: Path, present: set[str], about: Mapping[str, Any]) -> list[Split]:
    """Splits of a file that fit the cases that are there and the rules."""
    document = files.read_document(
        path, documents.Splits, "Remove it; it is made again", "holds no folds"
    )
    splits = [
        Split(train=tuple(fold["train"]), val=tuple(fold["val"])) for fold in document["folds"]
    ]
    known = {name for fold in splits for name in (*fold.train, *fold.val)}
    added = present - known if "file" not in about else set()  # own folds may leave cases out
    changes = [
        f"{len(names)} {word} since: {', '.join(sorted(names)[:10])}"
        for word, names in (("added", added), ("removed", known - present))
        if names
    ]
    faulty = [
        n
        for n, fold in enumerate(splits)
        if not fold.train or not fold.val or set(fold.train) & set(fold.val)
    ]
    if faulty:
        problem = f"puts a case on both sides of fold {faulty[0]}, or none on one of them"
        raise files.FileError(path, problem, "Correct it, or remove it; it is made again")
    if len(splits) != about.get("count", len(splits)):
        raise files.FileError(
            path, f"holds {len(splits)} folds, not {about['count']}", "Remove it; it is made again"
        )
    changes += [
        f"{key} was {document.get(key)}, is {value}"
        if key != "file"
        else "the file of data.folds.file has changed"
        for key, value in about.items()
        if document.get(key) != value
    ]
    if changes:
        raise UserError(
            f"{path} was made for other data: {'; '.join(changes)}. Run with --fresh, or choose"
            " another --out."
        )
    return splits
