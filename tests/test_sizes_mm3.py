"""Sizes in cubic millimetres: rounding, steps, prediction, fusion, training and tuning."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import model_file, nifti, noise, rows, run_predict
from test_blocks import compare_by_slabs

import pipeline as pl
from pipeline import config as configs
from pipeline import files, postprocess
from pipeline.config import ConfigError
from pipeline.data.properties import CaseProperties
from pipeline.files import FileError
from pipeline.inference import soft as softs
from pipeline.inference.soft import SoftPrediction
from pipeline.inference.writing import decided
from pipeline.morphology.sizes import least_voxels, most_voxels
from pipeline.postprocess import POSTPROCESS, PostprocessStep, VolumeOption
from pipeline.records import NamedOptions, UserError
from pipeline.tuning import search, trials
from pipeline.tuning.search import Candidate, part
from pipeline.tuning.trials import CaseFiles, Measure, ScoringTask
from pipeline.workflows.checks import entries
from pipeline.workflows.fuse import EnsembleJob, Spec, fuse, of_folders
from pipeline.workflows.tune_space import require_spacings

FEW = settings(max_examples=40, deadline=None)
SPACING = (5.0, 0.5, 0.8)
"""Millimetres; a voxel has 2 mm³."""
SIDES = st.floats(0.01, 20.0)


def boxes(*sizes: int) -> np.ndarray:
    """Rods of these voxels along the last axis, with air between them."""
    out = np.zeros((2 * len(sizes), 3, max(sizes)), np.uint8)
    for n, size in enumerate(sizes):
        out[2 * n, 1, :size] = 1
    return out


def lengths(labels: np.ndarray) -> list[int]:
    return [int(n) for n in labels.sum((1, 2)) if n]


# --- rounding -------------------------------------------------------------------------------------


@FEW
@given(st.integers(0, 10**5), st.tuples(SIDES, SIDES, SIDES), st.sampled_from(["f4", "f8"]))
def test_a_whole_number_of_voxels_is_that_number(
    number: int, sides: tuple[float, ...], kind: str
) -> None:
    """Also where the file keeps its spacing in single precision."""
    stored = tuple(float(np.dtype(kind).type(s)) for s in sides)
    mm3 = number * sides[0] * sides[1] * sides[2]
    assert least_voxels(mm3, stored) == most_voxels(mm3, stored) == number
    more = mm3 + sides[0] * sides[1] * sides[2] / 2
    assert (least_voxels(more, stored), most_voxels(more, stored)) == (number + 1, number)


def test_the_order_of_axes_is_nothing_to_a_volume() -> None:
    assert {least_voxels(77, s) for s in (SPACING, SPACING[::-1], (0.5, 5.0, 0.8))} == {39}


# --- steps ----------------------------------------------------------------------------------------


def test_a_component_of_exactly_the_volume_stays() -> None:
    labels = boxes(24, 25, 26)
    step = [part("dust", mm3=50)]
    assert lengths(postprocess.run(step, labels, spacing=SPACING)) == [25, 26]
    assert lengths(postprocess.run(step, labels, spacing=(1, 1, 1))) == []
    alias = [part("remove_small_components", mm3=50.5)]
    assert lengths(postprocess.run(alias, labels, spacing=SPACING)) == [26]


def test_a_hole_of_exactly_the_volume_is_filled() -> None:
    solid = np.ones((9, 5, 12), np.uint8)
    solid[2, 2, 1:5] = 0  # 4 voxels, 8 mm³
    solid[6, 2, 1:6] = 0  # 5 voxels
    for mm3, left in ((7.9, 9), (8.0, 5), (9.9, 5), (10, 0)):
        filled = postprocess.run([part("fill_holes", mm3=mm3)], solid, spacing=SPACING)
        assert int((filled == 0).sum()) == left


def test_seeds_of_walls_have_a_volume() -> None:
    rng = np.random.default_rng(0)
    soft = rng.random((1, 12, 24, 24), dtype=np.float32)
    voxels = postprocess.apply([part("walls", low=0.9, least=7)], soft)
    steps = [part("walls", low=0.9, mm3=13.0)]
    np.testing.assert_array_equal(postprocess.apply(steps, soft, spacing=SPACING), voxels)


@FEW
@given(
    seed=st.integers(0, 2**20),
    rows_of_a_slab=st.integers(1, 4),
    sides=st.tuples(*[st.floats(0.3, 3.0)] * 3),
    mm3=st.floats(0, 40),
    channels=st.integers(1, 3),
)
def test_slabs_give_what_memory_gives(
    seed: int, rows_of_a_slab: int, sides: tuple[float, ...], mm3: float, channels: int
) -> None:
    soft = np.random.default_rng(seed).random((channels, 9, 8, 7), dtype=np.float32)
    steps = [part("dust", mm3=mm3), part("fill_holes", mm3=mm3)]
    with tempfile.TemporaryDirectory() as work:
        compare_by_slabs(steps, soft, Path(work), rows_of_a_slab, sides)
    voxels = [
        part("dust", below=least_voxels(mm3, sides)),
        part("fill_holes", below=most_voxels(mm3, sides)),
    ]
    np.testing.assert_array_equal(
        postprocess.apply(steps, soft, spacing=sides), postprocess.apply(voxels, soft)
    )


@pytest.mark.parametrize(
    ("options", "dims", "words"),
    [
        ({"mm3": 50, "below": 9}, 3, r"'dust' has below: 9 \(voxels\) and mm3: 50. Give one"),
        ({"mm3": -1}, 3, "-1 mm³ is no volume"),
        ({"mm3": True}, 3, "True mm³ is no volume"),
        ({"mm3": float("nan")}, 3, "nan mm³ is no volume"),
        ({"mm3": "50"}, 3, "'50' mm³ is no volume"),
        ({"mm3": None}, 3, "None mm³ is no volume"),
        ({"mm3": 50}, 2, "2 space axes. Give the size in voxels"),
        ({"mm3": 1e300}, 3, None),
        ({"mm3": 50, "connectivity": 18}, 3, None),
    ],
)
def test_lists_are_checked_before_any_work(
    options: dict[str, Any], dims: int, words: str | None
) -> None:
    steps = [NamedOptions(name="dust", options=options)]
    if words is None:
        postprocess.check(steps, dims=dims)
        return
    with pytest.raises(ConfigError, match=words):
        postprocess.check(steps, dims=dims)


def test_both_under_an_alias_are_both() -> None:
    steps = [part("remove_small_components", mm3=50, min_size=9)]
    with pytest.raises(ConfigError, match=r"has below: 9 \(voxels\) and mm3: 50"):
        postprocess.check(steps)


def test_other_steps_have_no_volume() -> None:
    with pytest.raises(ConfigError, match="no option 'mm3'"):
        postprocess.check([part("closing", mm3=50)])


def test_without_spacing_nothing_is_guessed() -> None:
    with pytest.raises(UserError, match=r"mm3: 50, and the distance .* Give below \(voxels\)"):
        postprocess.apply([part("dust", mm3=50)], np.ones((1, 4, 4, 4), np.float32))


def test_an_added_step_says_which_option_is_a_volume() -> None:
    def keep_large(array: np.ndarray, least: int = 3, mm3: float = 0) -> np.ndarray:
        return array * (array.sum() >= least)

    with POSTPROCESS.restored():
        volume = VolumeOption("least", least_voxels)
        POSTPROCESS.add("keep_large", PostprocessStep(keep_large, volume=volume))
        POSTPROCESS.add("own_mm3", PostprocessStep(keep_large))
        labels = boxes(5)
        for mm3, left in ((10, 5), (10.1, 0)):
            found = postprocess.run([part("keep_large", mm3=mm3)], labels, spacing=SPACING)
            assert found.sum() == left
        assert postprocess.run([part("own_mm3", mm3=99)], labels).sum() == 5, "its own option"


def test_the_command_line_stays_in_voxels() -> None:
    steps = (part("dust", mm3=50, connectivity=6),)
    (changed,) = postprocess.adjust(steps, min_component_size=9)
    assert changed == part("dust", below=9, connectivity=6)
    assert postprocess.adjust(steps) == steps


def test_statistics_have_volumes_where_there_are_any() -> None:
    labels = boxes(24, 25)
    plain = postprocess.statistics(labels)
    assert postprocess.statistics(labels[0], SPACING[1:]) == postprocess.statistics(labels[0])
    found = postprocess.statistics(labels, SPACING)
    assert found == {**plain, "foreground_ml": 0.098, "largest_component_mm3": 50.0}
    assert all(isinstance(v, int) for v in plain.values())


# --- prediction -----------------------------------------------------------------------------------

LOW = {"name": "threshold", "options": {"at": 0.52}}
MM3 = [LOW, {"name": "dust", "options": {"mm3": 12}}]
AFFINE = np.diag([0.5, 0.8, 5.0, 1.0])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    lists = {"mm3": MM3, "voxels": [LOW, {"name": "dust", "options": {"below": 6}}], "all": [LOW]}
    return {name: model_file(folder / name, postprocess=s) for name, s in lists.items()}


def spaced(path: Path, seed: int = 0) -> Path:
    return nifti(path, noise((20, 21, 22), seed), AFFINE)


@pytest.mark.parametrize("blocks", ["never", "always"])
def test_a_file_is_post_processed_by_its_own_spacing(
    models: dict[str, Path], tmp_path: Path, blocks: str
) -> None:
    spaced(tmp_path / "in" / "a.nii.gz")
    answers = {}
    for name, model in models.items():
        assert run_predict(model, tmp_path / "in", tmp_path / name, "--blocks", blocks) == 0
        answers[name] = np.asarray(nibabel.load(tmp_path / name / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(answers["mm3"], answers["voxels"])
    assert 0 < answers["mm3"].sum() < answers["all"].sum()
    (row,) = rows(tmp_path / "mm3")
    assert row["foreground_ml"] == pytest.approx(row["foreground_voxels"] * 2 / 1000)
    assert row["largest_component_mm3"] == pytest.approx(row["largest_component"] * 2)


def test_a_file_without_a_unit_is_refused_before_it_is_predicted(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced(tmp_path / "in" / "a.nii.gz")
    files.write(tmp_path / "in" / "b.npy", noise((20, 21, 22)), dims=3)
    assert run_predict(models["mm3"], tmp_path / "in", tmp_path / "out") == 3
    good, bad = rows(tmp_path / "out")
    assert good["status"] == "done"
    for word in ("b.npy: carries no unit", "'dust' has mm3: 12", "Give below (voxels)"):
        assert word in bad["error"]
    monkeypatch.setattr("pipeline.workflows.predict._predict_in_memory", None)
    assert run_predict(models["mm3"], tmp_path / "in" / "b.npy", tmp_path / "again") == 1
    assert rows(tmp_path / "again")[0]["error"] == bad["error"]
    assert "foreground_ml" not in bad


def test_arrays_say_how_far_voxels_lie_apart(models: dict[str, Path]) -> None:
    volume = noise((20, 21, 22))
    by_name = {n: pl.Predictor.load(m, device="cpu") for n, m in models.items()}
    predictor, wanted = by_name["mm3"], by_name["voxels"].predict(volume)
    for placement in ({"spacing": SPACING}, {"affine": AFFINE}):
        np.testing.assert_array_equal(predictor.predict(volume, **placement), wanted)
    halved = predictor.predict(volume, spacing=(2.5, 0.5, 0.8))
    assert halved.sum() < wanted.sum()
    with pytest.raises(FileError, match=r"array: carries no unit of length.*mm3: 12"):
        predictor.predict(volume)
    assert predictor.predict_heads(volume)["main"].shape == (1, 20, 21, 22)


def test_a_picture_has_no_volume(tmp_path: Path) -> None:
    problem = postprocess.problem_of([part("dust", mm3=30)], (1.0, 1.0))
    assert problem is not None
    assert "2 space axes" in problem[0]
    assert postprocess.problem_of([part("dust", below=3), part("dust", mm3=3)], SPACING) is None
    found = postprocess.problem_of([part("dust", below=3), part("fill_holes", mm3=3)], None)
    assert found is not None
    assert "'fill_holes' has mm3: 3" in found[0]


# --- fusion ---------------------------------------------------------------------------------------


def test_members_are_fused_by_the_spacing_of_the_first(
    models: dict[str, Path], tmp_path: Path
) -> None:
    spaced(tmp_path / "in" / "a.nii.gz")
    files.write(tmp_path / "in" / "b.npy", noise((20, 21, 22)), dims=3)
    assert run_predict(models["all"], tmp_path / "in", tmp_path / "all", "--save-soft") == 0
    assert run_predict(models["mm3"], tmp_path / "in", tmp_path / "mm3") == 3
    steps = tuple(NamedOptions(**s) for s in MM3)
    spec = dataclasses.replace(of_folders([tmp_path / "all"]), postprocess=steps)
    done = fuse(EnsembleJob(spec=spec, output=tmp_path / "fused"))
    assert done.done == ("a",)
    assert list(done.failed) == ["b"]
    assert "b.npy: carries no unit of length" in done.failed["b"]
    one, two = (
        np.asarray(nibabel.load(tmp_path / n / "a.nii.gz").dataobj) for n in ("fused", "mm3")
    )
    assert (one != two).mean() < 1e-3, "but for float16"
    assert "foreground_ml" in rows(tmp_path / "fused")[1]
    (tmp_path / "all" / "soft" / "a.npy").unlink()
    (tmp_path / "all" / "soft" / "a.json").unlink()
    with pytest.raises(UserError, match=r"b\.npy: carries no unit of length"):
        fuse(EnsembleJob(spec=_without(spec), output=tmp_path / "none"))


def _without(spec: Spec) -> Spec:
    """The same, of a folder whose summary no longer lists what was deleted."""
    folder = spec.members[0].run
    summary = files.read_json(folder / "summary.json")
    summary["files"] = [row for row in summary["files"] if row["id"] != "a"]
    files.write_json(folder / "summary.json", {**summary, "inputs": 1})
    return spec


# --- training and tuning --------------------------------------------------------------------------


def test_training_refuses_images_without_a_unit(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(TINY)
    config = dataclasses.replace(
        configs.load(tmp_path / "c.yaml"), postprocess=(part("dust", mm3=50),)
    )

    def props(name: str, spacing: tuple[float, ...] | None) -> CaseProperties:
        return CaseProperties(
            id=name, files={}, grids={"image": {"family": "array", "spacing": spacing}}
        )

    cases = [props("a", SPACING), props("b", None)]
    (problem,) = [p for p in entries.for_cases(config, cases) if p.keys == ("postprocess",)]
    for word in ("images of 1 cases (b) carries no unit", "'dust' has mm3: 50", "Give below"):
        assert word in problem.text
    for steps, given_cases in ((config.postprocess, cases[:1]), ((part("dust"),), cases)):
        changed = dataclasses.replace(config, postprocess=steps)
        found = entries.for_cases(changed, given_cases)
        assert not [p for p in found if p.keys == ("postprocess",)]


def space_of(*own: NamedOptions) -> list[dict[str, Any]]:
    stages = search.space(own, edge=160, channels=1, dims=3)
    steps = [s for stage in stages for alternative in stage for s in alternative]
    return [dict(s.options) for s in steps if s.name in ("dust", "fill_holes")]


def test_the_search_keeps_to_the_unit_of_the_present_list() -> None:
    voxels = [{"below": n} for n in (80, 400, 2000, 8000)]
    assert space_of() == [*voxels, {"below": 200}, {"below": None}]
    volumes = [{"mm3": n} for n in (6.0, 30.0, 150.0, 600.0)]
    for name in ("dust", "remove_small_components"):
        assert space_of(part(name, mm3=30)) == [*volumes, {"below": 200}, {"below": None}]
    both = space_of(part("dust", below=5), part("fill_holes", mm3=7.5))
    assert both == [*voxels, {"mm3": 7.5}, {"below": None}]


def soft_case(folder: Path, name: str, spacing: bool) -> CaseFiles:
    label = (np.random.default_rng(3).random((20, 21, 22)) < 0.1).astype(np.uint8)
    path = nifti(folder / "labels" / f"{name}.nii.gz", label, AFFINE)
    place = {"geometry": files.geometry(path, 3)} if spacing else {}
    main = 0.6 * label[None].astype(np.float32) + 0.2
    softs.save(folder / "soft", SoftPrediction(case_id=name, heads={"main": main}, **place))
    return CaseFiles(id=name, soft=(folder / "soft",), label=path, content="")


def test_candidates_are_scored_by_the_spacing_of_the_case(tmp_path: Path) -> None:
    case = soft_case(tmp_path, "a", True)
    (tmp_path / "c.yaml").write_text(TINY)
    config = configs.load(tmp_path / "c.yaml")
    candidates = tuple(
        Candidate(steps=(part("threshold", at=0.5), part("dust", **size)))
        for size in ({"below": 4}, {"mm3": 8}, {"mm3": 8.1}, {"below": 5})
    )
    measure = Measure.of(config.data, (NamedOptions(name="dice"),))
    task = ScoringTask(case=case, measure=measure, candidates=candidates)
    found = dict(trials.score_case(task))
    first, same, next_one, five = (found[c.key]["dice"] for c in candidates)
    assert first == same != next_one == five
    main = softs.load(tmp_path / "soft", "a")
    held_out = decided(dataclasses.replace(main, heads={"main": main.main[:]}), candidates[1].steps)
    truth = np.asarray(nibabel.load(case.label).dataobj)
    assert pl.score(held_out, truth)["dice"] == pytest.approx(same)


def test_tuning_refuses_cases_without_a_unit_before_it_searches(tmp_path: Path) -> None:
    class Study:
        cases = (soft_case(tmp_path, "a", True), soft_case(tmp_path, "b", False))

    study: Any = Study()
    voxels = search.SearchPlan(start=Candidate(steps=(part("dust", below=5),)), stages=())
    require_spacings(study, voxels)
    for plan in (
        search.SearchPlan(start=Candidate(steps=(part("dust", mm3=5),)), stages=()),
        search.SearchPlan(start=Candidate(steps=()), stages=(((), (part("dust", mm3=5),)),)),
    ):
        with pytest.raises(UserError, match=r"each of 1 cases \(b\) carries no unit.*'dust'"):
            require_spacings(study, plan)
    study.cases = study.cases[:1]
    require_spacings(study, plan)
