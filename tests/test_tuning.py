"""The search for post-processing on made-up scores: it finds what was planted, never looks at what
is held out, and gains nothing from noise.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import postprocess
from pipeline.records import NamedOptions
from pipeline.tuning import search
from pipeline.tuning.search import ALL, Candidate, SearchPlan, part

START = Candidate(steps=(part("threshold", at=0.5),))
STAGES = (
    tuple((part("threshold", at=at),) for at in (0.5, 0.3, 0.7)),
    ((), (part("opening", radius=1.0),)),
    ((), *((part("dust", below=n),) for n in (10, 100, 1000))),
    ((), (part("fill_holes", below=50),)),
)
PLAN = SearchPlan(start=START, stages=STAGES)
PARTS = {"a": ["a1", "a2", "a3"], "b": ["b1", "b2", "b3"], "c": ["c1", "c2"]}


class Table:
    """An ``Ask`` over a function of case and candidate; remembers everything that was asked."""

    def __init__(self, score) -> None:
        self.score = score
        self.asked: set[tuple[str, str]] = set()

    def __call__(self, wanted: Mapping[str, Sequence[Candidate]]) -> dict[tuple[str, str], float]:
        pairs = {(case, c.key): self.score(case, c) for case, cs in wanted.items() for c in cs}
        assert not self.asked & set(pairs), "asked twice"
        self.asked |= set(pairs)
        return pairs


def noise(*what: object) -> float:
    """A fixed number in -1..1 for anything."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=4).digest()) / 2**31 - 1


def options(candidate: Candidate) -> dict[str, float]:
    return {s.name: next(iter(s.options.values())) for s in candidate.steps}


def planted(case: str, candidate: Candidate) -> float:
    """Best at threshold 0.3 with dust below 100 and no other step; cases differ in level, hardly in
    taste.
    """
    have = options(candidate)
    loss = (
        abs(have["threshold"] - 0.3)
        + 0.05 * abs(np.log10(have.get("dust", 1)) - 2)
        + 0.03 * ("opening" in have)
    )
    return noise(case) - loss - 0.02 * ("fill_holes" in have) + 1e-5 * noise(case, candidate.key)


def test_the_planted_optimum_is_found_with_a_fraction_of_the_questions() -> None:
    table = Table(planted)
    chosen = search.nested(PLAN, PARTS, table)
    assert set(chosen) == {ALL, "a", "b", "c"}
    for candidate in chosen.values():
        assert options(candidate) == {"threshold": 0.3, "dust": 100}
    assert len(table.asked) / 8 < 3 * 2 * 4 * 2


def test_refinement_leaves_the_grid() -> None:
    """The best threshold lies between those of the stage."""
    chosen = search.nested(
        PLAN,
        PARTS,
        Table(
            lambda case, c: noise(case) - abs(options(c)["threshold"] - 0.325) - 0.01 * len(c.steps)
        ),
    )
    assert options(chosen[ALL]) == {"threshold": 0.325}


def test_member_weights_are_searched() -> None:
    mixtures = tuple(
        (w, f) for w in [(1.0, 1.0), (1.0, 0.0), (0.25, 0.75)] for f in ("mean", "logit")
    )
    plan = dataclasses.replace(
        PLAN, start=dataclasses.replace(START, weights=(1.0, 1.0)), mixtures=mixtures
    )

    def score(case: str, candidate: Candidate) -> float:
        return (
            planted(case, candidate)
            - abs(candidate.weights[0] - 0.25)
            - 0.1 * (candidate.fusion == "mean")
        )

    chosen = search.nested(plan, PARTS, Table(score))[ALL]
    assert (chosen.weights, chosen.fusion) == ((0.25, 0.75), "logit")
    assert options(chosen) == {"threshold": 0.3, "dust": 100}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), held=st.sampled_from(sorted(PARTS)))
def test_a_choice_does_not_depend_on_what_it_is_scored_on(seed: int, held: str) -> None:
    """Whatever the held-out cases' scores are, the choice made without them is the same; the choice
    on all cases is not.
    """

    def other(case: str, candidate: Candidate) -> float:
        return (
            noise(seed, case, candidate.key) * 100
            if case in PARTS[held]
            else planted(case, candidate)
        )

    assert (
        search.nested(PLAN, PARTS, Table(other))[held]
        == search.nested(PLAN, PARTS, Table(planted))[held]
    )


def test_what_is_best_on_one_group_alone_is_not_chosen_for_it() -> None:
    def tempting(case: str, candidate: Candidate) -> float:
        return (
            (10.0 if case in PARTS["a"] else -1.0)
            if "opening" in options(candidate)
            else planted(case, candidate)
        )

    chosen = search.nested(PLAN, PARTS, Table(tempting))
    assert "opening" in options(chosen[ALL])
    assert "opening" not in options(chosen["a"])


def test_noise_gains_nothing_out_of_sample() -> None:
    """Scores without any truth in them: the choice on all cases seems to gain, the nested one does
    not.
    """
    nested, optimistic = [], []
    for seed in range(25):

        def score(case: str, candidate: Candidate, seed: int = seed) -> float:
            return noise(case) + noise(seed, case, candidate.key)

        chosen = search.nested(PLAN, PARTS, Table(score))
        of = {case: p for p, cases in PARTS.items() for case in cases}
        nested += [score(case, chosen[p]) - score(case, START) for case, p in of.items()]
        optimistic += [score(case, chosen[ALL]) - score(case, START) for case in of]
    honest = search.gain(np.array(nested), range(len(nested)))
    assert honest.low < 0 < honest.high
    assert abs(honest.mean) < 0.12  # standard error 0.05
    assert np.mean(optimistic) > 0.3


# --- the rule of choice ---------------------------------------------------------------------------


def of_length(*lengths: int) -> list[Candidate]:
    return [
        Candidate(steps=tuple(part("dust", below=i + 1) for _ in range(n)))
        for i, n in enumerate(lengths)
    ]


def test_equal_scores_choose_the_present_one() -> None:
    assert search.pick(of_length(3, 1, 2), np.full((3, 5), 0.7)) == 0


def test_within_one_standard_error_the_shortest_wins() -> None:
    rng = np.random.default_rng(0)
    level = rng.random(50)
    near = level + rng.normal(0, 0.1, 50)
    near += (level - near).mean() + 0.01  # paired difference 0.01, standard error 0.014
    assert search.pick(of_length(1, 4, 2, 3), np.stack([level - 1, near, level, near])) == 2
    assert (
        search.pick(of_length(1, 2, 4, 3), np.stack([level - 1, level - 0.01, level, level - 0.02]))
        == 2
    )  # sure: no spread


def test_cases_are_paired() -> None:
    """A small gain in every case counts, however much cases differ from each other."""
    level = np.random.default_rng(0).random(30) * 100
    assert search.pick(of_length(1, 3), np.stack([level, level + 0.01])) == 1


def test_scores_that_are_not_finite_are_out() -> None:
    scores = np.array([[0.1, 0.1], [np.nan, 5], [np.inf, 5], [-np.inf, 5], [0.2, 0.2]])
    assert search.pick(of_length(1, 1, 1, 1, 1), scores) == 4
    assert search.pick(of_length(1, 1), np.full((2, 2), np.nan)) == 0
    assert search.pick(of_length(2, 1), np.array([[0.1], [0.2]])) == 1  # one case has no spread


# --- intervals ------------------------------------------------------------------------------------


def test_interval_agrees_with_scipy() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).exponential(size=40)
    ours = search.gain(values, range(40))
    theirs = bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    found = [
        search.gain(rng.normal(0.3, 1, 40), range(40), resamples=1000, seed=i) for i in range(300)
    ]
    assert 0.89 <= np.mean([g.low <= 0.3 <= g.high for g in found]) <= 0.98


def test_cases_that_go_together_widen_the_interval() -> None:
    groups = np.repeat(np.arange(8), 10)
    values = np.random.default_rng(4).normal(size=8)[groups]
    by_case, by_group = search.gain(values, range(80)), search.gain(values, groups.tolist())
    assert by_group.high - by_group.low > 2 * (by_case.high - by_case.low)
    assert by_group.mean == by_case.mean


def test_same_seed_same_interval_and_signs_are_counted() -> None:
    values = np.array([0.5, 0.2, -0.1, 0.0, np.nan, np.inf])
    found = search.gain(values, list("abcdef"))
    assert found == search.gain(values, list("abcdef"))
    assert (found.better, found.worse, found.cases) == (2, 1, 4)
    assert search.gain(np.full(3, np.nan), "abc").cases == 0
    same = search.gain(np.full(4, 0.25), "abcd")
    assert same.low == same.high == same.mean == 0.25


# --- parts and the space --------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text("xyz123", min_size=1, max_size=4),
        st.sampled_from([f"g{n}" for n in range(15)]),
        min_size=1,
        max_size=40,
    )
)
def test_parts_keep_groups_whole(groups: dict[str, str]) -> None:
    parts = search.deal(groups)
    assert sorted(case for cases in parts.values() for case in cases) == sorted(groups)
    assert len(parts) == min(8, len(set(groups.values())))
    for group in set(groups.values()):
        assert sum(any(groups[c] == group for c in cases) for cases in parts.values()) == 1


@pytest.mark.parametrize(("channels", "dims"), [(1, 3), (1, 2), (4, 3), (3, 2)])
def test_everything_in_the_built_in_space_can_be_run(channels: int, dims: int) -> None:
    own = (part("threshold", at=0.4), part("dust", below=5), part("instances"))
    own = own if channels == 1 else (part("argmax"),)
    stages = search.space(own, 64.0, channels, dims)
    assert stages[0][0] == own[:1]
    for ways in stages:
        for steps in ways:
            postprocess.check(steps, channels, dims)
    assert (stages[-1] == (own[2:],)) == (channels == 1), "instances stay"
    assert [s for s in stages if () in s], "steps can be left out"


def test_sizes_grow_with_the_faces_of_the_volume() -> None:
    def dusts(edge: float) -> list[int]:
        stage = next(
            s for s in search.space((), edge, 1, 3) if any(w and w[0].name == "dust" for w in s)
        )
        return [w[0].options["below"] for w in stage if w and w[0].name == "dust"]

    assert dusts(80) == [20, 100, 500, 2000]
    assert dusts(320) == [320, 1600, 8000, 32000]
    assert min(dusts(4)) >= 1


def test_numbers_of_the_present_step_are_varied_one_at_a_time() -> None:
    stage = search.space((part("walls", low=0.02),), 80, 1, 3)[0]
    walls = [dict(s[0].options) for s in stage if s[0].name == "walls"]
    assert walls[0] == {"low": 0.02}
    assert {"low": 0.01} in walls
    assert {"low": 0.02, "merge": 0.6} in walls
    assert {"low": 0.02, "depth": 1.0} in walls
    for step in (
        NamedOptions(name="hysteresis", options={"low": 0.9, "high": 0.9}),
        part("threshold", at=1.0),
        part("threshold", at=0.0),
    ):
        for new, *_ in search.varied((step,)):
            postprocess.check((new,))
            assert sum(new.options[k] != v for k, v in step.options.items()) == 1


def test_keys_tell_candidates_apart_and_ignore_the_order_of_options() -> None:
    one, two = (
        Candidate(steps=(NamedOptions(name="hysteresis", options=o),))
        for o in ({"low": 0.1, "high": 0.5}, {"high": 0.5, "low": 0.1})
    )
    assert one.key == two.key
    assert (
        len(
            {
                c.key
                for c in (
                    one,
                    START,
                    Candidate(steps=()),
                    Candidate(steps=START.steps, weights=(0.5, 0.5)),
                )
            }
        )
        == 4
    )
    assert str(one) == "hysteresis low=0.1 high=0.5"
