"""A staged search over post-processing, with nested validation and intervals of its gains.

Nothing here reads a file: a search asks its caller for the scores of candidates. Scores are "higher
is better" throughout.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import postprocess
from pipeline.config import ConfigError
from pipeline.postprocess import SearchSetting, StepSearch
from pipeline.records import NamedOptions
from pipeline.scoring.bootstrap import UNIT_DRAWS, interval_by_units

Steps = tuple[NamedOptions, ...]
Mixture = tuple[tuple[float, ...], str]
"""Weights of the members, and the name of their fusion."""

ALL = ""
"""Name of the search that uses every case, among those that leave a part out."""

TOLERANCE = 1e-4
"""Mean scores that differ by less are equal."""

EDGE = 80
"""Edge, in voxels, of the volume for which the sizes in the search space are written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One combination of fusion and post-processing, from the members' soft predictions to labels.

    Args:
        steps: post-processing steps; the first one decides.
        weights: one per member.
        fusion: how members are combined: ``mean``, ``logit`` or ``vote``.
    """

    steps: Steps
    weights: tuple[float, ...] = (1.0,)
    fusion: str = "mean"

    @property
    def key(self) -> str:
        """Equal for equal candidates.

        In alphabetical order neighbours share fusion and first steps.
        """
        return json.dumps(
            [self.fusion, self.weights, [[s.name, dict(s.options)] for s in self.steps]],
            sort_keys=True,
            default=list,
        )

    def __str__(self) -> str:
        """``hysteresis low=0.3 high=0.85, dust below=100``."""
        steps = [
            " ".join([s.name, *(f"{k}={v}" for k, v in s.options.items())]) for s in self.steps
        ] or ["(default decision)"]
        mixture = (
            f"{self.fusion} of {'/'.join(f'{w:g}' for w in self.weights)}: "
            if len(self.weights) > 1
            else ""
        )
        return mixture + ", ".join(steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """What a search may try.

    A candidate takes one alternative from each stage and one of the mixtures.

    Args:
        start: the present post-processing.
        stages: alternatives by stage, each a list of steps, maybe none.
        mixtures: weights and fusions.
        also: further candidates, by name, that are evaluated in any case.
        width: number of candidates that survive each stage (beam width).
        filters: for each class, by label value, the filters of components that are tried for it
            alone, the weakest first (:mod:`pipeline.tuning.filters`); none: no class by itself.
    """

    start: Candidate
    stages: tuple[tuple[Steps, ...], ...]
    mixtures: tuple[Mixture, ...] = (((1.0,), "mean"),)
    also: Mapping[str, Candidate] = dataclasses.field(default_factory=dict)
    width: int = 3
    filters: Mapping[int, Sequence[NamedOptions]] = dataclasses.field(default_factory=dict)


Search = Generator[list[Candidate], np.ndarray, Candidate]
"""Yields candidates, is sent their scores ``(candidates, cases)``, returns its choice."""

Evaluate = Callable[[Mapping[str, Sequence[Candidate]]], Mapping[tuple[str, str], float]]
"""Candidates wanted by case -> score by (case, key of the candidate).

A candidate with a score that is not finite is excluded.
"""


@dataclass(frozen=True, slots=True)
class _Node:
    """A candidate under construction: a mixture and the alternative taken at each stage."""

    mixture: Mixture
    taken: tuple[Steps, ...]

    @property
    def candidate(self) -> Candidate:
        return Candidate(
            steps=tuple(itertools.chain(*self.taken)),
            weights=self.mixture[0],
            fusion=self.mixture[1],
        )

    def take(self, stage: int, alternative: Steps) -> _Node:
        return dataclasses.replace(
            self, taken=(*self.taken[:stage], alternative, *self.taken[stage + 1 :])
        )


class _Evaluated:
    """Every candidate that a search has evaluated, with its scores ``(cases,)``, in that order."""

    def __init__(self) -> None:
        self.candidates: dict[str, Candidate] = {}
        self.scores: dict[str, np.ndarray] = {}

    def evaluate(
        self, candidates: Iterable[Candidate]
    ) -> Generator[list[Candidate], np.ndarray, None]:
        """Ask for the scores of those candidates that have none yet."""
        new = {c.key: c for c in candidates if c.key not in self.scores}
        if new:
            rows = yield list(new.values())
            self.candidates |= new
            self.scores |= dict(zip(new, rows, strict=True))

    def best(
        self, nodes: Iterable[_Node], width: int
    ) -> Generator[list[Candidate], np.ndarray, list[_Node]]:
        """The ``width`` nodes with the highest mean; of equal ones the earlier."""
        nodes = list({n.candidate.key: n for n in nodes}.values())
        yield from self.evaluate(n.candidate for n in nodes)
        return sorted(nodes, key=lambda n: -mean(self.scores[n.candidate.key]))[:width]


def search(plan: SearchPlan) -> Search:
    """Beam search over mixtures and stages, refined around the deciding step's numbers.

    Mixtures come first, then stage by stage with the best few so far, then one round around the
    numbers of the deciding step. The choice is made by :func:`pick` among all candidates that
    were evaluated.

    Args:
        plan: what may be tried.

    Yields:
        Candidates to evaluate; their scores ``(candidates, cases)`` are to be sent.

    Returns:
        The chosen candidate.
    """
    evaluated = _Evaluated()
    yield from evaluated.evaluate([plan.start, *plan.also.values()])
    mixtures = yield from evaluated.best(
        [_Node(m, (plan.start.steps,)) for m in plan.mixtures], plan.width
    )
    beam = [
        _Node(node.mixture, tuple(_neutral(stage) for stage in plan.stages)) for node in mixtures
    ]
    for i, stage in enumerate(plan.stages):
        beam = yield from evaluated.best(
            [node.take(i, alternative) for node in beam for alternative in stage], plan.width
        )
    around = [node.take(0, alternative) for node in beam for alternative in varied(node.taken[0])]
    around += [dataclasses.replace(beam[0], mixture=m) for m in plan.mixtures]
    yield from evaluated.best([*beam, *around], plan.width)
    candidates = list(evaluated.candidates.values())
    return candidates[pick(candidates, np.stack(list(evaluated.scores.values())))]


def _neutral(stage: Sequence[Steps]) -> Steps:
    """The alternative that a stage starts from: no step, where that is one."""
    return () if () in stage else stage[0]


def pick(candidates: Sequence[Candidate], scores: np.ndarray) -> int:
    """Index of the simplest candidate that is as good as the best (one standard error rule).

    As good: its mean difference to the best over the same cases is at most one standard error of
    that difference, or TOLERANCE. Simplest: the present one, which changes nothing; then fewest
    steps; then the highest mean. A candidate with a score that is not finite is excluded.

    Args:
        candidates: the first is the present one.
        scores: ``(candidates, cases)``, higher is better.

    Returns:
        Index into ``candidates``; 0 where none has finite scores.

    Source:
        The one standard error rule of Breiman et al. 1984 (Classification and Regression Trees),
        here with paired differences.

    Example:
        >>> import numpy as np
        >>> present, new = Candidate(steps=()), Candidate(steps=(part("dust", below=9),))
        >>> pick([present, new], np.array([[0.5, 0.6, 0.7], [0.8, 0.9, 1.0]]))
        1
    """
    sound = [i for i, row in enumerate(scores) if np.isfinite(row).all()]
    if not sound:
        return 0
    best = scores[max(sound, key=lambda i: mean(scores[i]))]
    near = [i for i in sound if as_good(scores[i], best)]
    return min(near, key=lambda i: (i > 0, len(candidates[i].steps), -mean(scores[i])))


def as_good(scores: np.ndarray, best: np.ndarray) -> bool:
    """Whether scores are within one standard error of the best, or within TOLERANCE.

    Args:
        scores: ``(cases,)``, finite.
        best: of the same cases.

    Returns:
        True where the mean paired difference is no larger than that.
    """
    return bool((best - scores).mean() <= max(_standard_error(best - scores), TOLERANCE))


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def mean(scores: np.ndarray) -> float:
    """Mean over cases; -inf where a case has no finite score.

    Args:
        scores: ``(cases,)``.

    Returns:
        The mean.
    """
    return float(scores.mean()) if np.isfinite(scores).all() else -np.inf


def nested(
    plan: SearchPlan,
    parts: Mapping[str, Sequence[str]],
    evaluate: Evaluate,
    how: Callable[[SearchPlan], Search] = search,
) -> dict[str, Candidate]:
    """Search with each part of the cases held out in turn, and on all cases.

    The searches advance together: scores that several ask for are computed once.

    Args:
        plan: what may be tried.
        parts: case ids by the part's name.
        evaluate: computes scores.
        how: the search.

    Returns:
        For each part the choice made on all other parts only, and under ``ALL`` that on all cases.
    """
    return in_step({name: (how(plan), side) for name, side in sides(parts).items()}, evaluate)


def sides(parts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Find the cases that a choice may use.

    Args:
        parts: case ids by the part's name.

    Returns:
        All cases under ``ALL``, and under each part's name those of all other parts.

    Example:
        >>> sides({"x": ["a", "c"], "y": ["b"]})
        {'': ['a', 'c', 'b'], 'x': ['b'], 'y': ['a', 'c']}
    """
    all_cases = [case for cases in parts.values() for case in cases]
    others = {
        part: [case for case in all_cases if case not in set(cases)]
        for part, cases in parts.items()
    }
    return {ALL: all_cases, **others}


def in_step(
    searches: Mapping[str, tuple[Search, Sequence[str]]], evaluate: Evaluate
) -> dict[str, Candidate]:
    """Run searches together, each on its own cases, one round of candidates at a time.

    Args:
        searches: pairs of search and case ids, by name.
        evaluate: computes scores.

    Returns:
        The choice of each search, by name.
    """
    wanted = {name: next(running) for name, (running, _) in searches.items()}
    chosen: dict[str, Candidate] = {}
    while wanted:
        scores = evaluate(_by_case(wanted, {name: cases for name, (_, cases) in searches.items()}))
        for name, candidates in list(wanted.items()):
            running, cases = searches[name]
            try:
                wanted[name] = running.send(
                    np.array(
                        [
                            [scores[case, key] for case in cases]
                            for key in [c.key for c in candidates]
                        ],
                        float,
                    )
                )
            except StopIteration as end:
                chosen[name] = end.value
                del wanted[name]
    return chosen


def _by_case(
    wanted: Mapping[str, Sequence[Candidate]], cases: Mapping[str, Sequence[str]]
) -> dict[str, list[Candidate]]:
    """Candidates wanted by case, each once."""
    out: dict[str, dict[str, Candidate]] = {}
    for name, candidates in wanted.items():
        keyed = {c.key: c for c in candidates}
        for case in cases[name]:
            out.setdefault(case, {}).update(keyed)
    return {case: list(keyed.values()) for case, keyed in out.items()}


def deal(groups: Mapping[str, str], most: int = 8) -> dict[str, list[str]]:
    """Divide cases into parts that keep groups whole.

    There is one part per group, or, with more groups than ``most``, the largest are dealt out
    first. The result is deterministic.

    Args:
        groups: group by case id.
        most: largest number of parts.

    Returns:
        Case ids by part; a part is named after its groups.

    Example:
        >>> deal({"a": "x", "b": "y", "c": "x"})
        {'x': ['a', 'c'], 'y': ['b']}
    """
    members: dict[str, list[str]] = {}
    for case, group in sorted(groups.items()):
        members.setdefault(group, []).append(case)
    parts: list[list[str]] = [[] for _ in range(min(most, len(members)))]
    for group in sorted(members, key=lambda g: (-len(members[g]), g)):
        min(parts, key=lambda part_groups: sum(len(members[g]) for g in part_groups)).append(group)
    return {
        "+".join(part_groups): [case for group in part_groups for case in members[group]]
        for part_groups in parts
    }


# --- confidence in a gain -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Mean paired difference with its 95 % interval.

    Args:
        mean: mean difference over cases.
        low: lower end of the interval.
        high: upper end of the interval.
        better: number of cases that are better by more than TOLERANCE.
        worse: number of cases that are worse by more than TOLERANCE.
        cases: number of cases with a finite difference.
    """

    mean: float
    low: float
    high: float
    better: int
    worse: int
    cases: int

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def gain(
    differences: np.ndarray, units: Sequence[Any], resamples: int = UNIT_DRAWS, seed: int = 0
) -> Gain:
    """Mean of paired differences and its percentile bootstrap interval.

    Cases without a finite difference are left out; with none left all numbers are NaN. A single
    unit has no interval: it is the mean itself.

    Args:
        differences: ``(cases,)``.
        units: for each case what is resampled as a whole: its own id, or its group.
        resamples: number of bootstrap samples.
        seed: of the random numbers.

    Returns:
        The gain.

    Example:
        >>> import numpy as np
        >>> found = gain(np.array([0.1, 0.3]), ["a", "b"])
        >>> round(found.mean, 3), found.better, found.worse
        (0.2, 2, 0)
    """
    finite = np.isfinite(differences)
    values = np.asarray(differences, float)[finite]
    if not len(values):
        return Gain(mean=np.nan, low=np.nan, high=np.nan, better=0, worse=0, cases=0)
    low, high = interval_by_units(values, np.asarray(list(units))[finite], resamples, seed)
    return Gain(
        mean=float(values.mean()),
        low=low,
        high=high,
        better=int((values > TOLERANCE).sum()),
        worse=int((values < -TOLERANCE).sum()),
        cases=len(values),
    )


# --- the search space -----------------------------------------------------------------------------


def part(name: str, **options: Any) -> NamedOptions:
    """A step with its options.

    Args:
        name: of the step.
        **options: as in a config.

    Returns:
        The entry, as a config holds it.
    """
    return NamedOptions(name=name, options=options)


BASELINES: dict[str, Steps] = {
    "threshold 0.5": (part("threshold", at=0.5),),
    "hysteresis 0.5/0.9": (part("hysteresis", low=0.5, high=0.9),),
    "hysteresis 0.3/0.85, opening, closing": (
        part("hysteresis", low=0.3, high=0.85),
        part("opening", radius=1.0),
        part("closing", radius=1.5),
    ),
}
"""What tuned post-processing of binary labels has to beat."""


def space(own: Steps, edge: float, channels: int, dims: int) -> tuple[tuple[Steps, ...], ...]:
    """Stages of a search, from the table of steps; the first stage holds deciding steps.

    Args:
        own: the present post-processing: its deciding step is tried too, with its numbers varied.
        edge: approximate number of voxels along each axis.
        channels: K of the predictions.
        dims: their space axes.

    Returns:
        Alternatives by stage. Those that do not exist, or not for such predictions, are left out.
    """
    present = tuple(step for step in own[:1] if postprocess.decides(step))
    scale = (edge / EDGE) ** (dims - 1)  # specks and holes of sheets grow like areas
    setting = SearchSetting(channels=channels, dims=dims, scale=scale, decided=bool(present))
    tried = {
        name: entry.search
        for name, entry in postprocess.POSTPROCESS.items()
        if entry.search is not None
    }
    positions = sorted({entry.position for entry in tried.values()})
    lists = [
        _alternatives(own, {n: e for n, e in tried.items() if e.position == position}, setting)
        for position in positions
    ]
    lists[0] = [*([present, *varied(present)] if present else []), *lists[0]]
    stages = (
        tuple(steps for steps in alternatives if _possible(steps, channels, dims))
        for alternatives in lists
    )
    return tuple(stage for stage in stages if stage not in ((), ((),)))


def _alternatives(
    own: Steps, tried: Mapping[str, StepSearch], setting: SearchSetting
) -> list[Steps]:
    """The alternatives of one position; the first leaves its steps out, unless they decide."""
    if any(entry.stays for entry in tried.values()):
        return [tuple(step for step in own if postprocess.resolved(step).name in tried)]
    alternatives = [
        (part(name, **options),)
        for name, entry in tried.items()
        for options in _own_unit(name, own, entry, setting)
    ]
    return (
        alternatives
        if any(entry.position == 0 for entry in tried.values())
        else [(), *alternatives]
    )


def _own_unit(
    name: str, own: Steps, entry: StepSearch, setting: SearchSetting
) -> Iterable[Mapping[str, Any]]:
    """Options that are tried of a step: in mm³ where the present list has its size in mm³.

    Those sizes are to the present one as the usual ones are to the step's default.
    """
    present = next(
        (s for s in own if postprocess.in_mm3([s]) and postprocess.resolved(s).name == name), None
    )
    step = postprocess.POSTPROCESS[name]
    if present is None or step.volume is None:
        return entry.options(setting)
    option = step.volume.name
    usual = inspect.signature(step.run).parameters[option].default
    factor = present.options["mm3"] / usual if isinstance(usual, int | float) else 1.0
    return [
        {"mm3": float(f"{factor * options[option]:.6g}")} | _without(options, option)
        if options.get(option) is not None
        else options
        for options in entry.options(dataclasses.replace(setting, scale=1.0))
    ]


def _without(options: Mapping[str, Any], option: str) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k != option}


def varied(steps: Steps) -> list[Steps]:
    """``steps`` with one number of the deciding step changed; impossible numbers are left out."""
    if not steps or not postprocess.decides(steps[0]):
        return []
    first, entry = postprocess.resolved(steps[0]), postprocess.POSTPROCESS[steps[0].name]
    defaults = {name: p.default for name, p in inspect.signature(entry.run).parameters.items()}
    changed = [
        NamedOptions(
            name=first.name,
            options={**first.options, option: round(new, 6) if isinstance(new, float) else new},
        )
        for option, vary in (entry.search.vary if entry.search else {}).items()
        for new in vary({**defaults, **first.options}[option])
    ]
    return [(new, *steps[1:]) for new in changed if _possible((new,), None, 3)]


def _possible(steps: Steps, channels: int | None, dims: int) -> bool:
    """Whether the steps go with these predictions."""
    try:
        postprocess.check(steps, channels, dims)
    except ConfigError:
        return False
    return True
