"""Scores of a folder of predictions, with as many cases at a time as memory holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from pipeline import files, processes
from pipeline.files import FileError
from pipeline.metrics import METRICS, directions, pool
from pipeline.metrics.context import several
from pipeline.metrics.counts import Counts
from pipeline.metrics.retouch import empty_masks
from pipeline.records import NamedOptions, UserError
from pipeline.scoring import core, memory
from pipeline.scoring.core import Scores, mean
from pipeline.scoring.pairs import Pair, foreground, opened


def folder(
    pairs: Sequence[Pair],
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score answers against labels.

    Args:
        pairs: the cases, all with the same metrics.
        workers: number of processes; None: one a core, fewer where memory is short.
        progress: called with the numbers of cases done and in all; an exception from it stops the
            work.

    Returns:
        ``{"cases": {id: scores}, "mean": scores, "failed": {id: reason}}``, cases in the given
        order. Sets of several classes add ``"classes"``. Binary cases add ``"pooled"``, the metrics
        of all their voxels together, as far as they can be pooled. Images with an ``input`` add
        ``"do_nothing"``, the means of the inputs themselves, and ``"difference"``, what the answers
        gain over them in every value that has a better direction; with a metric of what was to
        change also ``"empty_masks"``, the number of cases in which nothing was.

    Raises:
        UserError: answers and labels have no foreground value in common.
    """
    rows: dict[str, Row | str] = {}
    for pair, row in _rows(pairs, workers):
        rows[pair.id] = row
        if progress:
            progress(len(rows), len(pairs))
    classes = classes_of(rows.values())
    require_comparable(rows.values(), pairs[0].rules.metrics if pairs else ())
    regions = pairs[0].rules.regions if pairs else None
    many = several(classes) and regions is None  # of regions, all cases have the same keys already
    if many:
        rows |= {pair.id: row for pair, row in _rows(_of_one_class(pairs, rows, classes), workers)}
    good = {p.id: row for p in pairs if not isinstance(row := rows[p.id], str)}
    failed = {p.id: row for p in pairs if isinstance(row := rows[p.id], str)}
    cases = (
        same_columns({i: row.scores for i, row in good.items()})
        if many
        else {i: row.scores for i, row in good.items()}
    )
    found = {"cases": cases, "mean": mean(cases.values()), "failed": failed}
    found |= {"classes": list(classes)} if many else {}
    counts = [row.counts for row in good.values() if row.counts is not None]
    pooled = (
        pool(counts, (m.name for p in pairs[:1] for m in p.rules.metrics))
        if len(counts) == len(good)
        else {}
    )
    idle = mean(row.nothing for row in good.values() if row.nothing is not None)
    empty = empty_masks(found["cases"].values())
    found |= {"pooled": pooled} if pooled else {}
    found |= {} if empty is None else {"empty_masks": empty[0]}
    known = directions()
    gain = {k: found["mean"][k] - v for k, v in idle.items() if k in known}
    return found | ({"do_nothing": idle, "difference": gain} if idle else {})


@dataclass(frozen=True, slots=True)
class Row:
    """Scores of one case.

    Args:
        scores: by metric.
        counts: counts of voxels by frame, where there are two classes.
        nothing: of images, the scores of the input as it is.
        answers: foreground values that occur in the answer.
        labels: foreground values that occur in the label.
    """

    scores: Scores
    counts: Mapping[str, Counts] | None = None
    nothing: Scores | None = None
    answers: frozenset[int] = frozenset()
    labels: frozenset[int] = frozenset()


def classes_of(rows: Iterable[Row | str]) -> tuple[int, ...]:
    """Foreground classes of a set.

    Args:
        rows: its cases; reasons of failed ones are skipped.

    Returns:
        Every foreground value that an answer or a label holds, sorted.

    Example:
        >>> classes_of([Row({}, answers=frozenset({1})), Row({}, labels=frozenset({3})), "damaged"])
        (1, 3)
    """
    return tuple(
        sorted(set().union(*(row.answers | row.labels for row in rows if not isinstance(row, str))))
    )


SMALL = 8
"""Class numbers below this may differ between the answers and labels of a small set by chance."""


def require_comparable(rows: Iterable[Row | str], metrics: Sequence[NamedOptions]) -> None:
    """Check that answers and labels of a set have a foreground value in common.

    Otherwise nothing can ever agree. Where no metric compares equal numbers, numbers are names, and
    may differ: only two greys are then reported as a mistake.

    Args:
        rows: the cases; reasons of failed ones are skipped.
        metrics: what they are scored by.

    Raises:
        UserError: they have no value in common, and one is at least ``SMALL``.
    """
    good = [row for row in rows if not isinstance(row, str)]
    answers, truths = (
        set().union(*(getattr(row, side) for row in good)) for side in ("answers", "labels")
    )
    if (
        not any(METRICS[m.name].compares_numbers for m in metrics)
        and max(len(answers), len(truths)) > 1
    ):
        return
    if answers and truths and not answers & truths and max(answers | truths) >= SMALL:
        raise UserError(
            f"the labels hold {_listed(truths)} where the answers hold {_listed(answers)}: no value"
            " is foreground in both, so nothing can agree. Bring both to the same class numbers,"
            " or say with --binarise X from which value on a label is foreground."
        )


def _listed(values: Iterable[int]) -> str:
    known = sorted(values)
    return ", ".join(map(str, known[:6])) + (", ..." if len(known) > 6 else "")


def _of_one_class(
    pairs: Sequence[Pair], rows: Mapping[str, Row | str], classes: tuple[int, ...]
) -> list[Pair]:
    """Cases that were scored as masks although the set has several classes, with those classes."""
    masks = [
        p
        for p in pairs
        if not isinstance(row := rows[p.id], str) and max(row.answers | row.labels, default=0) <= 1
    ]
    return [
        dataclasses.replace(p, rules=dataclasses.replace(p.rules, classes=classes)) for p in masks
    ]


def same_columns(cases: Mapping[str, Scores]) -> dict[str, Scores]:
    """Give all cases of a set the same keys.

    Args:
        cases: scores by case.

    Returns:
        The same with NaN for keys that only other cases have: classes that neither map of a case
        holds.

    Example:
        >>> same_columns({"a": {"dice_1": 1.0}, "b": {"dice_2": 1.0}})
        {'a': {'dice_1': 1.0, 'dice_2': nan}, 'b': {'dice_1': nan, 'dice_2': 1.0}}
    """
    keys = dict.fromkeys(key for scores in cases.values() for key in scores)
    return {i: {key: scores.get(key, math.nan) for key in keys} for i, scores in cases.items()}


def _rows(pairs: Sequence[Pair], workers: int | None) -> Iterable[tuple[Pair, Row | str]]:
    number = min(len(pairs), memory.workers(max((bytes_of(p) for p in pairs), default=0), workers))
    if number <= 1:
        yield from ((pair, score(pair)) for pair in pairs)
        return
    with processes.pool(number) as pool:
        futures = {pool.submit(score, pair): pair for pair in pairs}
        try:
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except BrokenProcessPool:
                    yield (
                        futures[future],
                        "its process died, probably for want of memory; run with --workers 1",
                    )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def bytes_of(pair: Pair) -> int:
    """Memory that scoring a case takes, from the header of its label.

    Args:
        pair: the case.

    Returns:
        Bytes.
    """
    return memory.case_bytes(pair.rules.metrics, files.probe(pair.label, pair.reading.dims).shape)


def score(pair: Pair) -> Row | str:
    """Score one case of files.

    Args:
        pair: the case.

    Returns:
        Its scores, or the reason why there are none.
    """
    rules = pair.rules
    try:
        case = opened(pair)
        scores = core.score(case, rules)
        if rules.images:
            return Row(
                scores,
                nothing=None if case.source is None else core.score(case.doing_nothing(), rules),
            )
        return Row(
            scores,
            core.counted(case, rules),
            answers=foreground(case.answer, None),
            labels=foreground(case.target, rules.ignore),
        )
    except FileError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
