"""Post-processing chosen by its score: a staged search over candidates, run without each part of
the cases in turn, and how sure a gain is.

Nothing here reads a file: a search asks for scores of candidates and is told. Scores are "higher is
better" throughout.
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
"""Name of the search that sees every case, among those that leave a part out."""

TOLERANCE = 1e-4
"""Two mean scores nearer than this are equal."""

EDGE = 80
"""Edge in voxels of the volume that the sizes of the search space are written for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way from the members' soft predictions to an answer."""

    steps: Steps
    weights: tuple[float, ...] = (1.0,)
    fusion: str = "mean"

    @property
    def key(self) -> str:
        """Equal for equal candidates; neighbours in alphabetical order share fusion and first
        steps.
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
        voices = (
            f"{self.fusion} of {'/'.join(f'{w:g}' for w in self.weights)}: "
            if len(self.weights) > 1
            else ""
        )
        return voices + ", ".join(steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """What a search may try.

    A candidate takes one alternative (a list of steps, maybe none) from each of ``stages`` and one
    of ``mixtures``. ``start`` is the present post-processing, ``also`` are further candidates, by
    name, to be looked at in any case; ``width`` ones survive each stage.
    """

    start: Candidate
    stages: tuple[tuple[Steps, ...], ...]
    mixtures: tuple[Mixture, ...] = (((1.0,), "mean"),)
    also: Mapping[str, Candidate] = dataclasses.field(default_factory=dict)
    width: int = 3


Search = Generator[list[Candidate], np.ndarray, Candidate]
"""Yields candidates, is sent their scores ``(candidates, cases)``, returns its choice."""

Ask = Callable[[Mapping[str, Sequence[Candidate]]], Mapping[tuple[str, str], float]]
"""Candidates wanted by case -> score by (case, key of the candidate).

Not finite: the candidate is out.
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


class _Seen:
    """Every candidate that a search has looked at, with its scores ``(cases,)``, in the order of
    looking.
    """

    def __init__(self) -> None:
        self.candidates: dict[str, Candidate] = {}
        self.scores: dict[str, np.ndarray] = {}

    def look(self, candidates: Iterable[Candidate]) -> Generator[list[Candidate], np.ndarray, None]:
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
        yield from self.look(n.candidate for n in nodes)
        return sorted(nodes, key=lambda n: -mean(self.scores[n.candidate.key]))[:width]


def search(plan: SearchPlan) -> Search:
    """Greedy search: mixtures, then stage by stage with the best few so far, then once around the
    deciding step's numbers.

    The choice is made by :func:`pick` among all that was looked at.
    """
    seen = _Seen()
    yield from seen.look([plan.start, *plan.also.values()])
    mixtures = yield from seen.best(
        [_Node(m, (plan.start.steps,)) for m in plan.mixtures], plan.width
    )
    beam = [
        _Node(node.mixture, tuple(_neutral(stage) for stage in plan.stages)) for node in mixtures
    ]
    for i, stage in enumerate(plan.stages):
        beam = yield from seen.best(
            [node.take(i, way) for node in beam for way in stage], plan.width
        )
    around = [node.take(0, way) for node in beam for way in varied(node.taken[0])]
    around += [dataclasses.replace(beam[0], mixture=m) for m in plan.mixtures]
    yield from seen.best([*beam, *around], plan.width)
    candidates = list(seen.candidates.values())
    return candidates[pick(candidates, np.stack(list(seen.scores.values())))]


def _neutral(stage: Sequence[Steps]) -> Steps:
    return () if () in stage else stage[0]


def pick(candidates: Sequence[Candidate], scores: np.ndarray) -> int:
    """Index of the simplest candidate that is as good as the best; ``scores`` is ``(candidates,
    cases)``, the first row the present one.

    As good: its mean difference to the best over the same cases is at most one standard error of
    that difference (Breiman et al. 1984, paired) or TOLERANCE. Simplest: the present one, which
    changes nothing; then fewest steps; then the highest mean. A candidate with a score that is not
    finite is out.
    """
    sound = [i for i, row in enumerate(scores) if np.isfinite(row).all()]
    if not sound:
        return 0
    best = scores[max(sound, key=lambda i: mean(scores[i]))]
    near = [
        i
        for i in sound
        if (best - scores[i]).mean() <= max(_standard_error(best - scores[i]), TOLERANCE)
    ]
    return min(near, key=lambda i: (i > 0, len(candidates[i].steps), -mean(scores[i])))


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def mean(scores: np.ndarray) -> float:
    """Mean over cases; -inf where a case has no finite score."""
    return float(scores.mean()) if np.isfinite(scores).all() else -np.inf


def nested(plan: SearchPlan, parts: Mapping[str, Sequence[str]], ask: Ask) -> dict[str, Candidate]:
    """The choice for each part of the cases, made by the same search on all other parts only; and
    under ``ALL`` that on all cases.

    ``parts`` maps a part's name to its case ids. The searches go in step: what several ask for is
    asked once.
    """
    everyone = [case for cases in parts.values() for case in cases]
    sides = {
        part: [case for case in everyone if case not in set(cases)] for part, cases in parts.items()
    }
    return in_step(
        {name: (search(plan), side) for name, side in {ALL: everyone, **sides}.items()}, ask
    )


def in_step(searches: Mapping[str, tuple[Search, Sequence[str]]], ask: Ask) -> dict[str, Candidate]:
    """Run searches, each on its own cases, one round of questions at a time; returns their choices."""
    wanted = {name: next(hunt) for name, (hunt, _) in searches.items()}
    chosen: dict[str, Candidate] = {}
    while wanted:
        told = ask(_by_case(wanted, {name: cases for name, (_, cases) in searches.items()}))
        for name, candidates in list(wanted.items()):
            hunt, cases = searches[name]
            try:
                wanted[name] = hunt.send(
                    np.array(
                        [
                            [told[case, key] for case in cases]
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
    out: dict[str, dict[str, Candidate]] = {}
    for name, candidates in wanted.items():
        keyed = {c.key: c for c in candidates}
        for case in cases[name]:
            out.setdefault(case, {}).update(keyed)
    return {case: list(keyed.values()) for case, keyed in out.items()}


def deal(groups: Mapping[str, str], most: int = 8) -> dict[str, list[str]]:
    """Parts of the cases that keep groups whole: one part a group, or, with more groups than
    ``most``, the largest dealt out first.

    ``groups`` maps case to group. Deterministic; a part is named after its groups.
    """
    members: dict[str, list[str]] = {}
    for case, group in sorted(groups.items()):
        members.setdefault(group, []).append(case)
    piles: list[list[str]] = [[] for _ in range(min(most, len(members)))]
    for group in sorted(members, key=lambda g: (-len(members[g]), g)):
        min(piles, key=lambda pile: sum(len(members[g]) for g in pile)).append(group)
    return {"+".join(pile): [case for group in pile for case in members[group]] for pile in piles}


# --- how sure a gain is ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Mean paired difference, its 95 % interval, and how many cases are better or worse by more
    than TOLERANCE.
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
    """Mean of ``differences`` ``(cases,)`` and its percentile bootstrap interval.

    ``units`` says for each case what is drawn as a whole: its own id, or its group. Cases without a
    finite difference are left out; with none left all numbers are NaN. One unit has no interval: it
    is the mean itself.
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


# --- what there is to try -------------------------------------------------------------------------


def part(name: str, **options: Any) -> NamedOptions:
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
"""What a tuned post-processing has to beat, binary labels."""


def space(own: Steps, edge: float, channels: int, dims: int) -> tuple[tuple[Steps, ...], ...]:
    """Stages of a search, as the table of steps describes them; the first holds deciding steps.

    Args:
        own: the present post-processing: its deciding step is tried too, with its numbers varied.
        edge: about so many voxels lie along each axis.
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
    places = sorted({entry.place for entry in tried.values()})
    lists = [
        _ways(own, {n: e for n, e in tried.items() if e.place == place}, setting)
        for place in places
    ]
    lists[0] = [*([present, *varied(present)] if present else []), *lists[0]]
    stages = (tuple(steps for steps in ways if _possible(steps, channels, dims)) for ways in lists)
    return tuple(stage for stage in stages if stage not in ((), ((),)))


def _ways(own: Steps, tried: Mapping[str, StepSearch], setting: SearchSetting) -> list[Steps]:
    """The alternatives of one place, first to leave its steps out unless they decide."""
    if any(entry.stays for entry in tried.values()):
        return [tuple(step for step in own if postprocess.resolved(step).name in tried)]
    ways = [
        (part(name, **options),)
        for name, entry in tried.items()
        for options in entry.options(setting)
    ]
    return ways if any(entry.place == 0 for entry in tried.values()) else [(), *ways]


def varied(steps: Steps) -> list[Steps]:
    """``steps`` with one number of the first one, a deciding step, changed; impossible numbers left
    out.
    """
    if not steps or not postprocess.decides(steps[0]):
        return []
    first, entry = postprocess.resolved(steps[0]), postprocess.POSTPROCESS[steps[0].name]
    defaults = {name: p.default for name, p in inspect.signature(entry.run).parameters.items()}
    changed = [
        NamedOptions(name=first.name, options={**first.options, option: round(new, 6)})
        for option, vary in (entry.search.vary if entry.search else {}).items()
        for new in vary({**defaults, **first.options}[option])
    ]
    return [(new, *steps[1:]) for new in changed if _possible((new,), None, 3)]


def _possible(steps: Steps, channels: int | None, dims: int) -> bool:
    try:
        postprocess.check(steps, channels, dims)
    except ConfigError:
        return False
    return True
