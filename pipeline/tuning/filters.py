"""Filters of components by class: how a list of steps holds them, and a search class by class.

A filter of a class is ``largest_component`` or ``dust`` on that class alone. It changes no other
class, so each class is decided by itself, and the number of candidates grows with the number of
classes, not with its power.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from pipeline import postprocess
from pipeline.postprocess.objects import EACH, FOREGROUND, named_objects
from pipeline.postprocess.sizes import MM3
from pipeline.records import NamedOptions
from pipeline.tuning import search as stages
from pipeline.tuning.search import TOLERANCE, Candidate, Search, SearchPlan, Steps, mean, part

Filter = NamedOptions | None
"""A step without its option ``classes``; None: components of the class are left alone."""

STEPS = ("dust", "largest_component")
"""Names of the steps that are filters."""

SHARES = (0.01, 0.05, 0.2)
"""Sizes of ``dust`` that are tried, as shares of the usual size of a class."""

LEVEL = 0.05
"""In how many searches noise alone may choose a filter that makes some cases worse."""


def class_filters(usual: float, option: str = "below") -> tuple[NamedOptions, ...]:
    """Filters that are tried for a class, the weakest first.

    Args:
        usual: size of a usual component of the class, in voxels or mm³.
        option: ``below`` for voxels, ``mm3``.

    Returns:
        Steps without ``classes``.

    Example:
        >>> [dict(step.options) for step in class_filters(1234)]
        [{'below': 12}, {'below': 62}, {'below': 250}, {}]
    """
    sizes = [float(f"{share * usual:.2g}") for share in SHARES]
    if option == "below":
        sizes = [int(size) for size in sizes if size >= 2]  # below 2 voxels nothing is left out
    dusts = [part("dust", **{option: size}) for size in dict.fromkeys(sizes)]
    return (*dusts, part("largest_component"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """A list of steps, and in it one filter for each class.

    Args:
        before: steps before the filters.
        after: steps after them.
        filters: by class.
        present: the list that was read, which stands for its own filters.
    """

    before: Steps
    after: Steps
    filters: Mapping[int, Filter]
    present: tuple[Mapping[int, Filter], Steps]

    def having(self, filters: Mapping[int, Filter]) -> Filtered:
        """Replace filters.

        Args:
            filters: of some classes.

        Returns:
            The list with these filters.
        """
        return dataclasses.replace(self, filters={**self.filters, **filters})

    @property
    def steps(self) -> Steps:
        """The list; classes with equal filters share a step."""
        if self.filters == self.present[0]:
            return self.present[1]
        groups: list[tuple[NamedOptions, list[int]]] = []
        for value, step in self.filters.items():
            group = next((values for known, values in groups if known == step), None)
            if step is not None and group is None:
                groups.append((step, [value]))
            elif group is not None:
                group.append(value)
        return (*self.before, *(self._step(s, values) for s, values in groups), *self.after)

    def _step(self, step: NamedOptions, values: list[int]) -> NamedOptions:
        """A filter on some classes; ``dust`` on all of them needs no list."""
        whole = len(values) == len(self.filters)
        classes: dict[str, Any] = {"classes": EACH if whole else values}
        if whole and step.name == "dust":
            classes = {}
        return NamedOptions(name=step.name, options={**step.options, **classes})


def filtered(steps: Steps, classes: Iterable[int]) -> Filtered:
    """Read the filters of a list of steps.

    Filters of one class each that stand side by side are read. Any others, such as the largest
    component of the whole foreground, stay as they are, and filters of classes come after them.

    Args:
        steps: the list.
        classes: label values of the foreground.

    Returns:
        The list with a filter for each class, maybe None.

    Example:
        >>> found = filtered((part("argmax"), part("dust", below=9), part("fill_holes")), (1, 2))
        >>> [step.name for step in found.having({1: None}).steps]
        ['argmax', 'dust', 'fill_holes']
        >>> dict(found.having({1: None}).steps[1].options)
        {'below': 9, 'classes': [2]}
    """
    none: dict[int, Filter] = dict.fromkeys(classes)
    places = [i for i, step in enumerate(steps) if postprocess.resolved(step).name in STEPS]
    if not places:
        place = _place(steps)
        return Filtered(
            before=steps[:place], after=steps[place:], filters=none, present=(none, steps)
        )
    first, end = places[0], places[-1] + 1
    read = _read(steps[first:end], none) if len(places) == end - first else None
    if read is None:
        return Filtered(before=steps[:end], after=steps[end:], filters=none, present=(none, steps))
    return Filtered(before=steps[:first], after=steps[end:], filters=read, present=(read, steps))


def _place(steps: Steps) -> int:
    """Where filters are put: before the first step that tuning puts after ``dust``."""
    return next((i for i, step in enumerate(steps) if _position(step) > 2), len(steps))


def _position(step: NamedOptions) -> float:
    entry = postprocess.POSTPROCESS[step.name].search
    return 0.0 if entry is None else entry.position


def _read(steps: Steps, none: Mapping[int, Filter]) -> dict[int, Filter] | None:
    """Filters by class; None: they are not of one class each."""
    out = dict(none)
    for given in steps:
        step = postprocess.resolved(given)
        options = dict(step.options)
        named = options.pop("classes", EACH if step.name == "dust" else FOREGROUND)
        values = _single(step.name, named, list(none))
        if values is None or any(out.get(value, step) is not None for value in values):
            return None
        out |= dict.fromkeys(values, NamedOptions(name=step.name, options=options))
    return out


def _single(name: str, named: Any, classes: Sequence[int]) -> list[int] | None:
    """Classes that a filter takes one by one; None: it takes several together."""
    if named == EACH:
        return list(classes)
    if named == FOREGROUND:
        return list(classes) if len(classes) == 1 else None
    objects = named_objects(name, named) or ()
    return None if any(len(values) > 1 for values in objects) else [v for (v,) in objects]


# --- the search -----------------------------------------------------------------------------------


def search(plan: SearchPlan) -> Search:
    """Search stage by stage (:func:`pipeline.tuning.search.search`), then class by class.

    Class by class the filters of the chosen list are replaced: each class has the filter of the
    present list unless another one is :func:`worth` it, and of those that are the weakest that is
    as good as the best. Where the stages chose a filter of several classes together, this is done
    without it, too. What the stages chose beats what comes out only where it is worth it, unless it
    is the present list, which wins when equal.

    Args:
        plan: what may be tried.

    Yields:
        Candidates to evaluate; their scores ``(candidates, cases)`` are to be sent.

    Returns:
        The chosen candidate.
    """
    best = yield from stages.search(plan)
    if not plan.filters:
        return best
    ways = []
    for base in _bases(plan, best):
        ways.append((yield from _by_class(plan, base)))
    scores = yield from _scores([best, *ways])
    if best.key == plan.start.key:
        ways = [best, *ways]
        return ways[stages.pick(ways, np.stack([scores[c.key] for c in ways]))]
    chosen, tests = ways[0], sum(len(tried) + 1 for tried in plan.filters.values())
    for other in (best, *ways[1:]):
        if worth(scores[other.key] - scores[chosen.key], tests):
            chosen = other
    return chosen


def _bases(plan: SearchPlan, best: Candidate) -> list[Candidate]:
    """Lists whose filters are replaced: without a new filter of several classes, and the best."""
    of_best, of_start = (
        [step for step in c.steps if postprocess.resolved(step).name in STEPS]
        for c in (best, plan.start)
    )
    none = dict.fromkeys(plan.filters)
    if not of_best or of_best == of_start or _read(tuple(of_best), none) is not None:
        return [best]
    rest = tuple(step for step in best.steps if step not in of_best)
    return [dataclasses.replace(best, steps=rest), best]


def _by_class(plan: SearchPlan, base: Candidate) -> Search:
    """The base with the filter that is chosen for each class."""
    own, now = (filtered(c.steps, plan.filters) for c in (plan.start, base))
    options = {
        value: _options(own.filters[value], [None, *tried, now.filters[value]])
        for value, tried in plan.filters.items()
    }
    made = {
        (value, i): dataclasses.replace(base, steps=now.having({value: option}).steps)
        for value, some in options.items()
        for i, option in enumerate(some)
    }
    scores = yield from _scores(made.values())
    tests = sum(len(some) - 1 for some in options.values())
    chosen = {
        value: some[_choose([scores[made[value, i].key] for i in range(len(some))], tests)]
        for value, some in options.items()
    }
    return dataclasses.replace(base, steps=now.having(chosen).steps)


def _options(own: Filter, others: Iterable[Filter]) -> list[Filter]:
    """The present filter of a class, and others from the weakest to the strongest, each once."""
    out = [own]
    for option in sorted(others, key=_strength):
        out += [] if option in out else [option]
    return out


def _strength(step: Filter) -> float:
    if step is None:
        return 0.0
    size = step.options.get(MM3, step.options.get("below", 100))
    return math.inf if step.name == "largest_component" else float(size)


def _scores(
    candidates: Iterable[Candidate],
) -> Generator[list[Candidate], np.ndarray, dict[str, np.ndarray]]:
    """Ask for scores: ``(cases,)`` by key."""
    keyed = {c.key: c for c in candidates}
    rows = yield list(keyed.values())
    return dict(zip(keyed, rows, strict=True))


def _choose(rows: Sequence[np.ndarray], tests: int) -> int:
    """Index of the filter of a class: the first, or the weakest as good as the best of the worthy.

    Filters come from the weakest to the strongest.
    """
    good = [i for i, row in enumerate(rows) if i and worth(row - rows[0], tests)]
    if not good:
        return 0
    best = rows[max(good, key=lambda i: mean(rows[i]))]
    return next(i for i in good if stages.as_good(rows[i], best))


def worth(differences: np.ndarray, tests: int) -> bool:
    """Whether a filter of a class gains more than chance would.

    Where it makes no case worse, its mean gain is more than one standard error. Where it does, it
    is more standard errors, as chance has as many tries as there are filters: so many that among
    filters that do nothing any gets as far in one search of twenty.

    Args:
        differences: paired gains over the present filter, ``(cases,)``.
        tests: filters of all classes that are tried.

    Returns:
        False for a single case, and where a difference is not finite.

    Source:
        Šidák, Rectangular confidence regions for the means of multivariate normal distributions,
        1967.

    Example:
        >>> worth(np.array([0.1, 0.0, 0.2, 0.0]), 20), worth(np.array([0.1, -0.01, 0.2, 0.0]), 20)
        (True, False)
    """
    count = len(differences)
    if count < 2 or not np.isfinite(differences).all() or differences.mean() <= TOLERANCE:
        return False
    error = float(differences.std(ddof=1) / np.sqrt(count))
    if (differences >= -TOLERANCE).all():
        return bool(differences.mean() > error)
    tail = 1 - (1 - LEVEL) ** (1 / max(tests, 1))
    return bool(differences.mean() > scipy.stats.t.isf(tail, count - 1) * error)
