"""Spatial folds: stacks are divided into blocks with a margin between them, each a case of its own.

A block is a box of its stack's files (:mod:`pipeline.files.boxes`), so that whatever reads a case
reads the block, at its place in the world, and no voxel of another block or of a margin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import config, files
from pipeline.data.layouts import Search
from pipeline.records import Case

MARK = "@"
"""Between the id of a stack and the number of its block."""

LEAST = 2
"""Fewest slices of a block."""


def ranges(length: int, count: int, margin: int) -> list[tuple[int, int]]:
    """Consecutive blocks along an axis, with a margin between neighbours.

    Args:
        length: voxels of the axis.
        count: number of blocks.
        margin: voxels between neighbours that belong to no block.

    Returns:
        First voxel and end of each block. Their lengths differ by one at most; all but
        ``(count - 1) * margin`` voxels are in a block.

    Raises:
        ValueError: where a block would be empty.

    Example:
        >>> ranges(20, 2, 4), ranges(10, 3, 0)
        ([(0, 8), (12, 20)], [(0, 3), (3, 6), (6, 10)])
    """
    kept = length - (count - 1) * margin
    if kept < count:
        raise ValueError(f"{length} voxels hold no {count} blocks with {margin} between them")
    ends = [kept * n // count for n in range(count + 1)]
    return [(ends[n] + n * margin, ends[n + 1] + n * margin) for n in range(count)]


def divide(search: Search, cases: Sequence[Case], data: config.Data) -> list[Case]:
    """Divide every case into blocks along one axis.

    A case of which a file cannot be read or has another shape than the image stays whole; the check
    of the data says why.

    Args:
        search: takes what is wrong.
        cases: whole stacks.
        data: section ``data`` of the config.

    Returns:
        ``data.folds.count`` cases ``ID@k`` for each.
    """
    found: list[Case] = []
    for case in cases:
        size = _size(case, data.dims)
        fault = None if size is None else _problem(case, size, data)
        if fault is not None:
            search.fault(case.image[0], *fault)
        found += [case] if size is None or fault is not None else _blocks(case, size, data)
    names = {case.id for case in cases}
    for case in found:
        if case.block is not None and case.id in names:
            problem = f"is divided into blocks, of which {case.id} is called like another case"
            search.fault(case.image[0], problem, "Rename one of the two")
    return found


def axis_of(size: Sequence[int], folds: config.Folds) -> int:
    """The axis that a stack is divided along.

    Args:
        size: ``(*S)`` of the stack.
        folds: ``data.folds`` of the config.

    Returns:
        ``folds.axis``, or the longest axis.

    Example:
        >>> axis_of((30, 90, 90), config.Folds(by="block"))
        1
    """
    return folds.axis if folds.axis is not None else list(size).index(max(size))


def _size(case: Case, dims: int) -> tuple[int, ...] | None:
    """``(*S)`` of a stack; None where its files cannot be read or differ."""
    sizes = set()
    for path in (*case.image, *case.targets.values()):
        probe = files.probe(path, dims)
        if probe.problem is not None:
            return None
        sizes.add(probe.shape[1:])
    return sizes.pop() if len(sizes) == 1 else None


def _problem(case: Case, size: Sequence[int], data: config.Data) -> tuple[str, str] | None:
    """Why a stack cannot be divided as the config asks, and what to do; None where it can."""
    chosen = [
        p.name for p in (*case.image, *case.targets.values()) if files.box_text(p) is not None
    ]
    if chosen:
        return (
            f"chooses a box of an image ({chosen[0]}), which cannot be divided into blocks",
            "Save the part as a file of its own",
        )
    return problem_of(size, data)


def problem_of(size: Sequence[int], data: config.Data) -> tuple[str, str] | None:
    """Check that a stack can be divided as the config asks.

    Args:
        size: ``(*S)`` of the stack.
        data: section ``data`` of the config.

    Returns:
        What is wrong, as it follows the name of the stack, and what to do; None where it can.

    Example:
        >>> problem_of((9, 9, 9), config.Data(folds=config.Folds(by="block", count=2)))[1]
        'Lower data.folds.margin to at most 4, or data.folds.count; or choose another axis'
    """
    folds, axis = data.folds, axis_of(size, data.folds)
    length, between = size[axis], (data.folds.count - 1) * folds.margin
    where = f"{'x'.join(map(str, size))}: {length} slices along axis {axis}"
    asked = f"{folds.count} blocks with margins of {folds.margin} (data.folds)"
    if 2 * (length - between) < length:
        problem = f"has {where}, of which {asked} leave {max(0, length - between)}, less than half"
        return problem, _smaller_margin(length, folds)
    shortest = (length - between) // folds.count
    patch = 0 if data.has_space else data.patch.size[axis]  # patches lie in model space
    if shortest >= max(LEAST, patch):
        return None
    rule = (
        f"shorter than a patch ({patch}, data.patch.size)"
        if patch > LEAST
        else f"and {LEAST} are the least"
    )
    problem = f"has {where}, of which {asked} are {shortest} slices long, {rule}"
    return problem, _fewer(length, max(LEAST, patch), data)


COUNTS, MARGINS = (5, 4, 3, 2), (16, 8, 4)
"""Folds and margins that are tried for a data set, the first that fits is taken."""


def fitting(sizes: Sequence[Sequence[int]], data: config.Data) -> config.Data | None:
    """Find rules by which stacks can be divided into blocks.

    Args:
        sizes: ``(*S)`` of each stack.
        data: section ``data`` of the config; its patch must fit into a block.

    Returns:
        The section with ``folds.by: block`` and a count and a margin that fit every stack: of
        COUNTS and MARGINS the widest margin with which two folds can be made, then the most folds.
        None where there are no such rules.

    Example:
        >>> small = config.Patch(size=(32, 32, 32))
        >>> found = fitting([(90, 300, 300)], config.Data(patch=small))
        >>> (found.folds.count, found.folds.margin)
        (5, 16)
    """
    for margin in MARGINS:
        for count in COUNTS:
            rules = dataclasses.replace(data.folds, by="block", count=count, margin=margin)
            found = dataclasses.replace(data, folds=rules)
            if all(problem_of(size, found) is None for size in sizes):
                return found
    return None


def _smaller_margin(length: int, folds: config.Folds) -> str:
    """What to do about margins that take more than half of a stack."""
    most = length // 2 // (folds.count - 1)
    return f"Lower data.folds.margin to at most {most}, or data.folds.count; or choose another axis"


def _fewer(length: int, wanted: int, data: config.Data) -> str:
    """What to do about blocks that are shorter than wanted."""
    folds, ways = data.folds, []
    count = (length + folds.margin) // (wanted + folds.margin)
    if count >= 2:
        ways.append(f"data.folds.count to at most {count}")
    margin = (length - wanted * folds.count) // (folds.count - 1)
    if margin >= 0:
        ways.append(f"data.folds.margin to at most {margin}")
    kept = (length - (folds.count - 1) * folds.margin) // folds.count
    if LEAST <= kept < wanted:
        ways.append(f"that side of data.patch.size to at most {kept}")
    if not ways:
        return "Choose another data.folds.axis, or take the stack away: it is too short"
    return f"Lower {', or '.join(ways)}; or choose another data.folds.axis"


def _blocks(case: Case, size: Sequence[int], data: config.Data) -> list[Case]:
    """The blocks of a stack."""
    axis, folds = axis_of(size, data.folds), data.folds
    return [
        _block(case, number, [pair if a == axis else None for a in range(len(size))])
        for number, pair in enumerate(ranges(size[axis], folds.count, folds.margin))
    ]


def _block(case: Case, number: int, box: Sequence[tuple[int, int] | None]) -> Case:
    """One block of a stack."""
    targets: Mapping[str, Path] = {
        role: files.with_box(path, box) for role, path in case.targets.items()
    }
    return dataclasses.replace(
        case,
        id=f"{case.id}{MARK}{number}",
        image=tuple(files.with_box(path, box) for path in case.image),
        targets=targets,
        block=number,
    )
