"""Post-processing class by class: what is planted in one class is found there, noise chooses
nothing.

On made-up scores, and on runs written by hand.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sizes_mm3 import soft_case
from test_tune import RESULT

from pipeline import config as configs
from pipeline import files, morphology, postprocess, tune
from pipeline.inference import soft as softs
from pipeline.records import NamedOptions
from pipeline.tuning import filters, search, usual
from pipeline.tuning.filters import class_filters, filtered, worth
from pipeline.tuning.nnunet_rule import nnunet_rule
from pipeline.tuning.search import ALL, Candidate, SearchPlan, part
from pipeline.tuning.trials import CaseFiles
from pipeline.workflows import fuse, tune_space
from pipeline.workflows import tune as workflow

START = Candidate(steps=(part("argmax"),))
CASES = {f"g{g}": [f"g{g}c{c}" for c in range(6)] for g in range(4)}
STAGES: tuple[tuple[search.Steps, ...], ...] = (
    ((part("argmax"),),),
    ((), (part("dust", below=20),), (part("largest_component"),)),
    ((), (part("fill_holes", below=50),)),
)


def plan_of(classes: int, start: Candidate = START) -> SearchPlan:
    tried = {c: class_filters(1000) for c in range(1, classes + 1)}
    return SearchPlan(start=start, stages=STAGES, filters=tried)


def filters_of(candidate: Candidate, classes: int) -> dict[int, str]:
    """Name and size of the filter of each class; the foreground's goes to all."""
    out: dict[int, str] = {}
    for step in candidate.steps:
        if step.name in filters.STEPS:
            named = step.options.get("classes", range(1, classes + 1))
            named = range(1, classes + 1) if isinstance(named, str) else named
            out |= {c: f"{step.name} {step.options.get('below', '')}".strip() for c in named}
    return out


def nested(plan: SearchPlan, score: Any) -> tuple[dict[str, Candidate], set[str]]:
    asked: set[str] = set()

    def evaluate(wanted: Mapping[str, Sequence[Candidate]]) -> dict[tuple[str, str], float]:
        asked.update(c.key for cs in wanted.values() for c in cs)
        return {(case, c.key): score(case, c) for case, cs in wanted.items() for c in cs}

    return search.nested(plan, CASES, evaluate, filters.search), asked


def noise(*what: object) -> float:
    digest = hashlib.blake2b(repr(what).encode(), digest_size=8).digest()
    return float(np.random.default_rng(int.from_bytes(digest)).normal())


def planted(case: str, candidate: Candidate) -> float:
    """Class 2 gains by any filter from 50 voxels on; class 1 has true small components."""
    have = filters_of(candidate, 3)
    strong = ("dust 50", "dust 200", "largest_component")
    gain = 0.03 * (have.get(2) in strong) + 0.01 * (have.get(2) == "dust 20")
    loss = 0.02 * (1 in have) + 0.01 * any(s.name == "fill_holes" for s in candidate.steps)
    return 0.8 + 0.05 * noise(case) + gain - loss


def test_what_is_planted_in_one_class_is_filtered_there_alone() -> None:
    chosen, _ = nested(plan_of(3), planted)
    assert set(chosen) == {ALL, *CASES}
    for candidate in chosen.values():
        assert candidate.steps == (part("argmax"), part("dust", below=50, classes=[2]))


def test_the_weakest_filter_that_is_as_good_is_taken_and_classes_share_a_step() -> None:
    def score(case: str, candidate: Candidate) -> float:
        have = filters_of(candidate, 3)
        return (
            0.8 + 0.1 * sum(have.get(c) == "largest_component" for c in (1, 3)) - 0.3 * (2 in have)
        )

    chosen, _ = nested(plan_of(3), score)
    assert chosen[ALL].steps == (part("argmax"), part("largest_component", classes=[1, 3]))


@pytest.mark.parametrize("classes", [2, 7])
def test_noise_chooses_nothing(classes: int) -> None:
    """Small random differences of every filter in every case; one search in twenty may err."""
    changed = 0
    for seed in range(12):

        def score(case: str, candidate: Candidate, seed: int = seed) -> float:
            have = filters_of(candidate, classes)
            extra = [s for s in candidate.steps if s.name == "fill_holes"]
            moved = sum(1e-3 * noise(seed, case, c, f) for c, f in have.items())
            return 0.8 + 0.1 * noise(case) + moved - 0.1 * len(extra)

        plan = SearchPlan(start=START, stages=STAGES[:1], filters=plan_of(classes).filters)
        changed += nested(plan, score)[0][ALL] != START
    assert changed <= 2


def test_equal_scores_keep_the_present_list() -> None:
    own = Candidate(steps=(part("argmax"), part("dust", below=9), part("fill_holes")))
    for start in (START, own):
        chosen, _ = nested(plan_of(3, start), lambda case, _: noise(case))
        assert all(c == start for c in chosen.values())


def test_the_present_filter_stays_for_the_other_classes() -> None:
    own = Candidate(steps=(part("argmax"), part("dust", below=9), part("fill_holes", below=5)))

    def score(case: str, candidate: Candidate) -> float:
        have = filters_of(candidate, 2)
        mine = any(s.options.get("below") == 5 for s in candidate.steps)
        return (
            noise(case)
            + 0.1 * (have.get(2) == "largest_component")
            + 0.2 * (have.get(1) == "dust 9")
            + 0.1 * mine
        )

    chosen, _ = nested(plan_of(2, own), score)
    assert chosen[ALL].steps == (
        part("argmax"),
        part("dust", below=9, classes=[1]),
        part("largest_component", classes=[2]),
        part("fill_holes", below=5),
    )


def test_the_number_of_candidates_is_linear_in_the_classes() -> None:
    counts = [len(nested(plan_of(classes), planted)[1]) for classes in (3, 5, 7)]
    assert counts[1] - counts[0] == counts[2] - counts[1] <= 2 * 10
    assert counts[2] < 75


def test_a_choice_does_not_depend_on_what_it_is_scored_on() -> None:
    def other(case: str, candidate: Candidate) -> float:
        return 100 * noise(case, candidate.key) if case in CASES["g1"] else planted(case, candidate)

    plan = plan_of(3)
    assert nested(plan, other)[0]["g1"] == nested(plan, planted)[0]["g1"]


def test_without_classes_the_search_is_the_old_one() -> None:
    plan = SearchPlan(start=START, stages=STAGES)

    def ask(wanted: Any) -> Any:
        return {(case, c.key): planted(case, c) for case, cs in wanted.items() for c in cs}

    assert search.nested(plan, CASES, ask, filters.search) == search.nested(plan, CASES, ask)


# --- lists with a filter for each class -----------------------------------------------------------


LABELS = st.lists(st.sampled_from([None, *class_filters(300)]), min_size=3, max_size=3)


@settings(max_examples=40, deadline=None)
@given(some=LABELS, seed=st.integers(0, 2**20))
def test_a_list_of_filters_does_what_each_does_alone(some: list[Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (9, 9, 9)).astype(np.uint8) * (rng.random((9, 9, 9)) < 0.4)
    labels = labels.astype(np.uint8)
    chosen: dict[int, Any] = dict(zip((1, 2, 3), some, strict=True))
    steps = filtered((part("argmax"), part("closing", radius=1)), (1, 2, 3)).having(chosen).steps
    assert [s.name for s in (steps[0], steps[-1])] == ["argmax", "closing"]
    expected = np.zeros_like(labels)
    for value, step in chosen.items():
        mask = (labels == value).astype(np.uint8)
        kept = mask if step is None else postprocess.run([step], mask)
        expected += value * kept
    np.testing.assert_array_equal(postprocess.run(steps[1:-1], labels), expected)
    again = filtered(steps, (1, 2, 3))
    assert dict(again.filters) == chosen
    assert again.having(chosen).steps == steps


@pytest.mark.parametrize(
    "steps",
    [
        (part("argmax"), part("largest_component"), part("fill_holes")),
        (part("argmax"), part("dust", below=3), part("dust", below=9, classes=[1])),
        (part("dust", classes=[1]), part("fill_holes"), part("dust", classes=[2])),
        (part("largest_component", classes=[[1, 2]]),),
        (part("remove_small_components", min_size=4), part("opening", radius=1)),
        (),
    ],
)
def test_a_present_list_stays_as_it_is(steps: tuple[NamedOptions, ...]) -> None:
    found = filtered(steps, (1, 2))
    assert found.steps == steps
    new = found.having({2: part("dust", below=77)}).steps
    assert part("dust", below=77, classes=[2]) in new
    if steps and postprocess.resolved(steps[0]).name != "dust":
        assert new[: len(steps) - 1] == steps[:-1] or new[: len(steps)] == steps


def test_a_gain_that_harms_nobody_needs_one_standard_error_others_more() -> None:
    few = np.array([0.2, 0.1, 0.15, *[0.0] * 21])
    assert worth(few, 28)
    assert not worth(np.array([0.2, *[0.0] * 23]), 28), "a single case"
    assert not worth(few - 0.002, 28)
    assert worth(np.abs(few) + 0.01, 28)
    rng = np.random.default_rng(0)
    assert worth(0.05 + rng.normal(0, 0.01, 24), 28)
    assert not worth(np.full(24, 5e-5), 1), "within the tolerance"
    assert not worth(np.array([0.1, np.nan]), 1)
    assert not worth(np.array([0.1]), 1)


def test_noise_passes_as_rarely_as_is_said() -> None:
    rng = np.random.default_rng(1)
    wrong = sum(any(worth(d, 10) for d in rng.normal(0, 1, (10, 12))) for _ in range(600)) / 600
    assert 0.02 < wrong < 0.08


# --- nnU-Net's rule -------------------------------------------------------------------------------


def rule_by_hand(base: np.ndarray, union: np.ndarray, singles: Any) -> tuple[bool, list[int]]:
    """From Dice (cases, classes) of each answer."""
    before, after = np.nanmean(base, 0), np.nanmean(union, 0)
    whole = bool(after.mean() > before.mean() and (after >= before).all())
    source = union if whole else base
    kept = [
        n
        for n in range(base.shape[1])
        if np.nanmean(singles[whole][n][:, n]) > np.nanmean(source[:, n])
    ]
    return whole, kept


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), better=st.floats(-0.1, 0.3))
def test_nnunets_rule_is_its_rule(seed: int, better: float) -> None:
    rng = np.random.default_rng(seed)
    ids = [case for cases in CASES.values() for case in cases]
    base = rng.random((len(ids), 3))
    union = base + better + rng.normal(0, 0.05, base.shape)
    singles = {
        w: [s + rng.normal(0, 0.1, s.shape) for _ in range(3)]
        for w, s in ((False, base), (True, union))
    }

    def dice(candidates: Sequence[Candidate]) -> dict[tuple[str, str], list[float]]:
        out = {}
        for c in candidates:
            steps = c.steps[1:]
            whole = bool(steps) and "classes" not in steps[0].options
            named = [s.options["classes"][0] for s in steps if "classes" in s.options]
            table = singles[whole][named[0] - 1] if named else union if whole else base
            out |= {(case, c.key): table[i].tolist() for i, case in enumerate(ids)}
        return out

    chosen = nnunet_rule(START, [(1,), (2,), (3,)], CASES, dice)
    for name, cases in search.sides(CASES).items():
        rows = [ids.index(case) for case in cases]
        picked = {w: [t[rows] for t in some] for w, some in singles.items()}
        whole, kept = rule_by_hand(base[rows], union[rows], picked)
        expected = [part("argmax"), *([part("largest_component")] if whole else [])]
        expected += [part("largest_component", classes=[n + 1 for n in kept])] if kept else []
        assert chosen[name].steps == tuple(expected)


def test_regions_overlap_and_have_a_step_each() -> None:
    def dice(candidates: Sequence[Candidate]) -> dict[tuple[str, str], list[float]]:
        return {
            (case, c.key): [0.5 + 0.1 * any("classes" in s.options for s in c.steps)] * 2
            for c in candidates
            for case in itertools.chain(*CASES.values())
        }

    chosen = nnunet_rule(START, [(1, 2), (2,)], CASES, dice)[ALL]
    assert [s.options["classes"] for s in chosen.steps[1:]] == [[[1, 2]], [2]]


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the built-in space what decides and the filters; the other steps take long."""
    space, names = search.space, {"argmax", "regions", *filters.STEPS}

    def smaller(*arguments: Any) -> Any:
        stages = space(*arguments)
        return tuple(s for s in stages if all(x.name in names for way in s for x in way))

    monkeypatch.setattr(search, "space", smaller)


CONFIG = """
name: organs
task: labels
data:
  layout: competition
  classes: 3
  folds: {count: 2}
  patch: {size: [16, 16, 16]}
  augment: [flip]
network: {name: unet, options: {channels: [4, 4, 8, 8, 8]}}
losses: [dice]
metrics: [dice]
train: {epochs: 1}
"""
SHAPE = (16, 20, 24)


def organs(n: int) -> np.ndarray:
    """Class 1: a body and a true small one; class 2: a body."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:9, 2:9, 2 : 9 + n % 3] = 1
    label[12:14, 3:5, 3:5] = 1
    label[4:12, 10:18, 12:20] = 2
    return label


def make_run(folder: Path, false_at: tuple[int, ...], extra: str = "", cases: int = 12) -> Path:
    """A run whose answers have a false component of class 2 in some cases."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG + extra)
    listing: dict[str, Any] = {}
    for n in range(cases):
        name, label = f"{100 + n}", organs(n)
        path = folder.parent / "labels" / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, label, photometric="minisblack")
        answer = label.copy()
        answer[rng.random(SHAPE) < 0.002] = 0  # holes: small random differences
        if n in false_at:
            answer[13:15, 15:19, 1:3] = 2
        channels = 3 if "regions" not in extra else 2
        if channels == 3:
            hot = np.arange(3)[:, None, None, None] == answer
        else:
            hot = np.stack([answer > 0, answer == 2])
        main = (0.8 * hot + 0.1).astype(np.float32)
        softs.save(
            folder / f"fold_{n % 2}" / "oof" / "soft",
            softs.SoftPrediction(case_id=name, heads={"main": main}),
        )
        listing[name] = {
            "image": [],
            "targets": {"label": str(path)},
            "group": "abcd"[n % 4],
            "content": {"label": f"hash {n}"},
        }
    files.write_json(folder / "cases.json", listing)
    for fold in (0, 1):
        files.write_json(folder / f"fold_{fold}" / "result.json", {**RESULT, "fold": fold})
    return folder


def go(run: Path) -> dict[str, dict[str, Any]]:
    out = run.parent / "e.yaml"
    assert tune.main([str(run), "--metric", "dice", "--out", str(out), "--workers", "1"]) == 0
    rows = json.loads((run / "tuning" / "result.json").read_text())["rows"]
    return {row["name"]: row for row in rows}


@pytest.mark.usefixtures("few")
def test_a_planted_defect_of_one_class_is_found_nested_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "r", false_at=(0, 1, 2, 5, 7, 8, 10, 11))
    rows = go(run)
    assert list(rows) == [workflow.OWN, workflow.NNUNET, workflow.NESTED, workflow.OPTIMISTIC]
    row = rows[workflow.NESTED]
    assert row["gains"][workflow.OWN]["low"] > 0
    assert row["gains"][workflow.OWN]["worse"] == 0
    for choice in row["chosen"].values():
        named = [s["options"].get("classes") for s in choice["steps"] if s["name"] in filters.STEPS]
        assert named == [[2]], choice["text"]
    rule = [s for s in rows[workflow.NNUNET]["chosen"]["a"]["steps"] if s["options"]]
    assert rule == [{"name": "largest_component", "options": {"classes": [2]}}]
    out = capsys.readouterr().out
    assert workflow.NNUNET in out
    assert "usual component: class 1 3" in out
    spec = fuse.load_spec(run.parent / "e.yaml")
    assert spec.postprocess is not None
    assert spec.postprocess[-1].options["classes"] in ([2], (2,))
    soft = softs.load(run / "fold_0" / "oof" / "soft", "100").main[:].astype(np.float32)
    found = postprocess.apply(spec.postprocess, soft)
    assert (found[13:15, 15:19, 1:3] == 0).all()
    assert (found[12:14, 3:5, 3:5] == 1).any()


@pytest.mark.usefixtures("few")
def test_without_a_defect_nothing_is_chosen(tmp_path: Path) -> None:
    rows = go(make_run(tmp_path / "r", false_at=()))
    own = rows[workflow.OWN]["chosen"]["all"]["text"]
    for name in (workflow.NESTED, workflow.OPTIMISTIC):
        for choice in rows[name]["chosen"].values():
            assert not any(s["name"] in filters.STEPS for s in choice["steps"]), choice["text"]
    assert own == "(default decision)"


@pytest.mark.usefixtures("few")
def test_regions_are_filtered_by_their_written_labels(tmp_path: Path) -> None:
    regions = CONFIG.replace(
        "classes: 3", "classes: 3\n  regions: {all: [1, 2], core: 2}\n  regions_class_order: [1, 2]"
    )
    run = make_run(tmp_path / "r", false_at=(0, 1, 2, 5, 7, 8, 10, 11), extra="# regions\n")
    (run / "config.yaml").write_text(regions)
    rows = go(run)
    for choice in rows[workflow.NESTED]["chosen"].values():
        named = [s["options"].get("classes") for s in choice["steps"] if s["name"] in filters.STEPS]
        assert named == [[2]], choice["text"]
    assert rows[workflow.NNUNET]["gains"][workflow.OWN]["cases"] == 12


@pytest.mark.usefixtures("few")
def test_scores_kept_before_are_used(tmp_path: Path) -> None:
    """The key of a candidate of old steps is what it was, so old journals go on."""
    old = Candidate(steps=(part("argmax"), part("dust", below=20)))
    assert old.key == '["mean", [1.0], [["argmax", {}], ["dust", {"below": 20}]]]'
    run = make_run(tmp_path / "r", false_at=(0, 1))
    go(run)
    kept = run / "tuning" / "scores.jsonl"
    before = kept.read_bytes()
    go(run)
    assert kept.read_bytes() == before


def test_usual_sizes_are_those_of_the_labels(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    data = configs.load(tmp_path / "c.yaml").data
    cases = []
    for n in range(3):
        path = tmp_path / f"{n}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(organs(n), np.diag([2.0, 1, 1, 1])), path)
        cases.append(CaseFiles(id=str(n), soft=(), label=path, content=""))
    found = usual.usual_sizes(cases, data, (1, 2, 5))
    assert found == {1: 7 * 7 * 8, 2: 512}
    spacings = {"0": (2.0, 1.0, 1.0)}
    assert usual.usual_sizes(cases, data, (1, 2), spacings) == {1: 686, 2: 1024}


def test_sizes_of_classes_are_in_the_unit_of_the_present_list(tmp_path: Path) -> None:
    """A case without a unit of length says nothing of mm³; the search then refuses it."""
    (tmp_path / "v.yaml").write_text(CONFIG)
    (tmp_path / "m.yaml").write_text(
        CONFIG + "postprocess: [argmax, {name: dust, options: {mm3: 9}}]\n"
    )

    class Study:
        cases = (soft_case(tmp_path, "a", True), soft_case(tmp_path, "b", False))
        config: Any = configs.load(tmp_path / "v.yaml")

    study: Any = Study()
    image: Any = nibabel.load(tmp_path / "labels" / "a.nii.gz")
    label = np.asarray(image.dataobj)
    largest = int(morphology.component_sizes(label).max())
    voxels = tune_space.class_filters(study)
    assert voxels == {1: class_filters(largest)}, "no case has class 2"
    study.config = configs.load(tmp_path / "m.yaml")
    assert tune_space.class_filters(study) == {1: class_filters(2 * largest, "mm3")}
    assert [list(s.options) for s in class_filters(50, "mm3")] == [["mm3"]] * 3 + [[]]
