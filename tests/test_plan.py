"""``pipeline.plan``: from a folder to a config with reasons, and training without a config."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import competition_folder
from small_models import picture as picture_file
from worlds import affine_of, save

import pipeline as pl
from pipeline import files, train
from pipeline import plan as command
from pipeline.config import Config, Data, Patch, load, shipped_configs
from pipeline.config.schema import LossTerm, NamedOptions
from pipeline.networks import build
from pipeline.planning import decide, plan_file, precision, stored
from pipeline.planning.cost import Cost
from pipeline.planning.ground import PlanRequest
from pipeline.planning.kept import as_kept, read_kept
from pipeline.planning.precision import Precision
from pipeline.planning.settings import Setting
from pipeline.records import UserError
from pipeline.runs import RunFolder
from pipeline.workflows import plan as plans

COST = Cost(device="cpu", batch=2, draw=0.01, step=0.02, predict=0.01, memory=10**8)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed is known: nothing is measured."""
    plain = Precision(amp="none", channels_last=False, seconds=1.0, plain=1.0)
    monkeypatch.setattr(plans.costs, "measure", lambda *args, **more: COST)
    monkeypatch.setattr(plans.precision, "fastest", lambda *args, **more: plain)


def volumes(
    root: Path,
    shape: tuple[int, ...] = (24, 20, 16),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    cases: int = 6,
    labels: dict[str, Any] | None = None,
    channels: tuple[str, ...] = ("MRI",),
) -> Path:
    """A folder in nnU-Net's layout: a bright box on each side of noise, values 1 and 2."""
    random = np.random.default_rng(0)
    affine = affine_of(spacing)
    for n in range(cases):
        label = np.zeros(shape, np.uint8)
        third = shape[0] // 3
        label[2 : third - 1, 4:-4, 4:-4] = 1
        label[-third + 1 : -2, 4:-4, 4:-4] = 2
        for c in range(len(channels)):
            image = random.normal(20 + 100 * (label > 0), 5).astype(np.float32)
            save(root / "imagesTr" / f"p{n}_{c:04d}.nii.gz", image, affine)
        save(root / "labelsTr" / f"p{n}.nii.gz", label, affine)
    document = {
        "channel_names": {str(c): name for c, name in enumerate(channels)},
        "labels": labels or {"background": 0, "lower": 1, "upper": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(document))
    return root


def value(plan: Any, key: str) -> Any:
    return next(s.value for s in plan.settings if s.key == key and not s.proposed)


def reason(plan: Any, key: str) -> str:
    return next(s.reason for s in plan.settings if s.key == key)


# --- decisions ------------------------------------------------------------------------------------


def test_a_plan_is_a_config_with_reasons(tmp_path: Path, unmeasured: None) -> None:
    root = volumes(tmp_path / "d")
    out = tmp_path / "p.yaml"
    plan = pl.plan_dataset(root, budget="cpu", minutes=5, name="p")
    pl.write_plan(plan, out)
    assert load(out) == plan.config
    data = plan.config.data
    assert (data.classes, data.layout, data.orientation) == (3, "nnunet", "SAR")
    assert data.spacing == (1.0, 1.0, 1.0)
    text = out.read_text()
    for key in ("data.patch.size", "data.spacing", "network", "train.optimizer"):
        assert reason(plan, key), key
        assert reason(plan, key).split(":")[0] in text.replace("\n  # ", " "), key
    kept = plan_file.fingerprint_path(out)
    found = stored.from_json(json.loads(kept.read_text()), kept)
    assert found == plan.fingerprint


def test_minutes_give_the_steps(tmp_path: Path, unmeasured: None) -> None:
    root = volumes(tmp_path / "d")
    short, long = (pl.plan_dataset(root, budget="cpu", minutes=m) for m in (4, 8))
    steps = [p.config.train.epochs * (p.config.data.patch.steps or 0) for p in (short, long)]
    assert 1.5 < steps[1] / steps[0] < 3
    for plan, minutes in ((short, 4), (long, 8)):
        assert plan.schedule is not None
        assert 0.6 * 60 * minutes < plan.schedule.total <= 60 * minutes


def test_too_few_minutes_leave_the_plan_that_takes_the_least_time(
    tmp_path: Path, unmeasured: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The facts are printed, the file is there, and a script that heeds the exit code stops."""
    root = volumes(tmp_path / "d")
    with pytest.raises(plans.MinutesError, match="too short") as refused:
        pl.plan_dataset(root, budget="cpu", minutes=0.05)
    shortest = refused.value.plan
    assert shortest.config.train.epochs * (shortest.config.data.patch.steps or 0) == 100
    out = tmp_path / "least.yaml"
    words = [str(root), "--budget", "cpu", "--minutes", "0.05", "--out", str(out)]
    assert command.main(words) == 2
    printed = capsys.readouterr()
    assert "6 training cases" in printed.out
    assert f"Wrote the plan that takes the least time, {out}" in printed.err
    assert load(out) == shortest.config
    assert "100 steps a fold, the fewest that are worth it" in printed.out
    assert "0.05 minutes are too few here." in out.read_text()


def test_a_run_of_another_plan_is_named(
    tmp_path: Path, unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own plan is beside it, and what goes on with it; a new name has none."""
    monkeypatch.chdir(tmp_path)
    plan, other = (
        pl.plan_dataset(volumes(tmp_path / "d"), budget="cpu", minutes=m) for m in (4, 8)
    )
    run = RunFolder(Path("runs/d"))
    assert plans.other_run(plan) == ""
    run.path.mkdir(parents=True)
    run.begin(plan.config, {})
    run.keep_plan(as_kept(plan))
    assert plans.other_run(plan) == ""
    assert "--config runs/d/plan.yaml" in plans.other_run(other)
    with pytest.raises(UserError, match=r"is the plan of the run runs/d.*another --out"):
        pl.write_plan(other, run.plan_file, force=True)
    assert "Its own plan is runs/d/plan.yaml." in run.refusal(run.changed_settings(other.config))


def test_a_length_that_nobody_gave_is_exceeded_with_a_note(
    tmp_path: Path, unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans.decide, "MINUTES", 0.05)
    told: list[str] = []
    plan = pl.plan_dataset(volumes(tmp_path / "d"), budget="cpu", on_facts=told.append)
    assert plan.config.train.epochs * (plan.config.data.patch.steps or 0) == 100
    assert any("minutes are too few here" in text for text in plan.remarks)
    assert "6 training cases" in told[0]


def test_left_and_right_are_not_mirrored(tmp_path: Path, unmeasured: None) -> None:
    names = {"background": 0, "Kidney left": 1, "Kidney right": 2}
    told = pl.plan_dataset(volumes(tmp_path / "a", labels=names), preset="plain")
    flips = [e for e in value(told, "data.augment") if isinstance(e, dict) and e["name"] == "flip"]
    assert flips[0]["options"]["axes"] == [0, 1], "axes are SAR: the last one runs left to right"
    assert value(told, "predict.flips") is False
    assert any("left" in text.lower() for text in told.remarks)


def test_regions_of_dataset_json_are_trained(tmp_path: Path, unmeasured: None) -> None:
    labels = {"background": 0, "organ": [1, 2], "upper": [2]}
    root = volumes(tmp_path / "d", labels=labels)
    with pytest.raises(UserError, match="regions_class_order"):
        pl.plan_dataset(root, budget="cpu", minutes=5)
    document = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**document, "regions_class_order": [1, 2]}))
    plan = pl.plan_dataset(root, budget="cpu", minutes=5)
    assert plan.config.data.regions == {"organ": (1, 2), "upper": (2,)}
    assert plan.config.postprocess[0].name == "regions"


def test_thin_stacks_are_learned_as_slices(tmp_path: Path, unmeasured: None) -> None:
    root = volumes(tmp_path / "d", shape=(64, 64, 9), spacing=(1.0, 1.0, 8.0))
    plan = pl.plan_dataset(root, budget="cpu", minutes=5)
    data = plan.config.data
    assert data.orientation == "SAR"
    assert data.spacing == (None, 1.0, 1.0)
    assert data.patch.size[0] == 1
    options = plan.config.network.options
    assert all(k[0] == 1 for k in options["kernel"])
    assert all(s[0] == 1 for s in options["strides"])
    whole = pl.plan_dataset(root, budget="cpu", minutes=5, configuration="3d_fullres")
    assert whole.config.data.patch.size[0] > 1
    rows = {row.name: row for row in plan.ground.rows}
    assert rows["2d"].taken
    assert "pixels 8.0" in rows["2d"].why
    assert rows["3d_lowres"].planned is None
    assert rows["3d_lowres"].why


def test_large_solid_classes_are_learned_coarser(tmp_path: Path, unmeasured: None) -> None:
    root = volumes(tmp_path / "d", shape=(96, 72, 64), cases=3)  # boxes of 29 x 64 x 56 voxels
    plan = pl.plan_dataset(root, budget="cpu", minutes=5)
    assert value(plan, "data.spacing") == [1.45, 1.45, 1.45]
    assert "1.4 times coarser" in reason(plan, "data.spacing")
    assert plan.ground.sizes["p0"] == (44, 50, 66)
    preset = pl.plan_dataset(root, preset="plain")
    assert value(preset, "data.spacing") == [1.0, 1.0, 1.0], "a preset is nnU-Net's"
    label = np.zeros((96, 72, 64), np.uint8)
    label[2:94, 30:42, 30:42] = 1  # a tube
    label[2:94, 50:54, :] = 2
    for n in range(3):
        save(root / "labelsTr" / f"p{n}.nii.gz", label, affine_of((1.0, 1.0, 1.0)))
    thin = pl.plan_dataset(root, budget="cpu", minutes=5)
    assert value(thin, "data.spacing") == [1.0, 1.0, 1.0]


def test_presets_are_nnunets(tmp_path: Path, unmeasured: None) -> None:
    root = volumes(tmp_path / "d", shape=(35, 50, 36), cases=2)
    plan = pl.plan_dataset(root, preset="plain")
    config = plan.config
    assert config.data.patch.size == (40, 56, 40)
    assert config.network.options["channels"] == [32, 64, 128, 256]
    assert (config.train.epochs, config.data.patch.steps) == (1000, 250)
    assert config.train.optimizer.name == "sgd"
    assert plan.cost is None, "no CUDA device: nothing is measured for one"
    assert "nnU-Net's rules, preset plain" in plan.text("today").replace("\n# ", " ")
    large = pl.plan_dataset(root, preset="resenc-l").config
    assert large.network.name == "resenc_unet"


def test_names_of_channels_decide_the_scale(tmp_path: Path, unmeasured: None) -> None:
    root = volumes(tmp_path / "d", channels=("CT", "dose"))
    own = pl.plan_dataset(root, budget="cpu", minutes=5)
    assert value(own, "data.normalise") == {"name": "ct"}
    assert "dose" in reason(own, "data.normalise")
    exact = pl.plan_dataset(root, preset="plain")
    assert value(exact, "data.normalise") == [{"name": "ct"}, {"name": "zscore"}]
    assert any("dose" in text for text in exact.remarks), "a name that means nothing is said"


def test_groups_are_proposed_and_not_applied(tmp_path: Path, unmeasured: None) -> None:
    root = volumes(tmp_path / "d")
    for folder, end in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        for n in range(6):
            (root / folder / f"p{n}{end}").rename(root / folder / f"rat{n // 2}_scan{n % 2}{end}")
    plan = pl.plan_dataset(root, budget="cpu", minutes=5)
    assert plan.config.data.folds.by == "case"
    proposed = [s for s in plan.settings if s.proposed]
    assert [s.key for s in proposed][:2] == ["data.folds.by", "data.folds.pattern"]
    text = plan.text("today")
    assert "    # pattern: " in text
    taken = text.replace("    # by: group", "    by: group").replace(
        "    # pattern:", "    pattern:"
    )
    out = tmp_path / "taken.yaml"
    out.write_text(taken)
    assert load(out).data.folds.by == "group"


def test_pictures_and_pairs(tmp_path: Path, unmeasured: None) -> None:
    random = np.random.default_rng(0)
    for n in range(6):
        picture = random.integers(0, 255, (3, 96, 80), dtype=np.uint8)
        for folder, array in (
            ("a/images", picture),
            ("a/masks", 255 * (picture[..., 0] > 128).astype(np.uint8)),
            ("b/src", picture),
            ("b/dst", 255 - picture),
        ):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            picture_file(tmp_path / folder / f"p{n}.png", array)
    masks = pl.plan_dataset(tmp_path / "a", budget="cpu", minutes=5)
    assert (masks.config.task, masks.config.data.dims, masks.config.data.classes) == (
        "labels",
        2,
        2,
    )
    assert value(masks, "data.normalise") == {"name": "rgb"}
    pairs = pl.plan_dataset(tmp_path / "b", budget="cpu", minutes=5)
    assert pairs.config.task == "image"
    assert pairs.config.network.name == "image_unet"
    assert [m.name for m in pairs.config.metrics] == ["psnr", "ssim", "mae"]
    with pytest.raises(UserError, match="for labels"):
        pl.plan_dataset(tmp_path / "b", preset="plain")


def test_pairs_of_volumes_have_a_network_for_volumes(tmp_path: Path, unmeasured: None) -> None:
    random = np.random.default_rng(0)
    for n in range(3):
        volume = random.integers(0, 255, (16, 24, 20), dtype=np.uint8)
        for folder, array in (("src", volume), ("dst", 255 - volume)):
            (tmp_path / "d" / folder).mkdir(parents=True, exist_ok=True)
            files.write(tmp_path / "d" / folder / f"p{n}.tif", array, dims=3)
    plan = pl.plan_dataset(tmp_path / "d", budget="cpu", minutes=5)
    assert (plan.config.task, plan.config.data.dims) == ("image", 3)
    build(plan.config.network, in_channels=1, out_channels=1, dims=3)


@pytest.mark.parametrize("preset", [None, "plain"])
def test_a_short_stack_is_planned_for_its_blocks(
    tmp_path: Path, unmeasured: None, preset: str | None
) -> None:
    root = volumes(tmp_path / "d", shape=(24, 20, 44), cases=1)
    asked: dict[str, Any] = {"preset": preset} if preset else {"budget": "cpu", "minutes": 5}
    plan = pl.plan_dataset(root, **asked)
    data = plan.config.data
    assert data.orientation == "SAR"
    assert (data.folds.by, data.folds.count) == ("block", 2)
    assert data.patch.size[0] <= (44 - data.folds.margin) // 2
    assert plan.ground.sizes == {"p0": (44, 20, 24)}, "costs are those of the whole stack"


def test_a_missing_configuration_is_refused_with_its_rule(tmp_path: Path, unmeasured: None) -> None:
    root = volumes(tmp_path / "d", cases=2)
    with pytest.raises(UserError) as refused:
        pl.plan_dataset(root, budget="cpu", minutes=5, configuration="3d_lowres")
    assert "asked for" not in str(refused.value)
    assert "(" in str(refused.value)


def test_tables_are_not_wide_and_say_what_follows(tmp_path: Path, unmeasured: None) -> None:
    names = {"background": 0, "Left lung": 1, "Right lung": 2}
    root = volumes(tmp_path / "d", labels=names, channels=("MRI", "dose"))
    text = plans.described(pl.plan_dataset(root, budget="cpu", minutes=5))
    assert [line for line in text.splitlines() if len(line) > 100] == []
    assert "3d_fullres " in text  # not run into the patch
    assert "no sample is mirrored so that they change places" in text
    assert "'MRI' is no known name, so zscore" in text


def test_bfloat16_is_not_tried_on_large_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(
        precision, "_measured", lambda config, ends, way, limit: float(not tried.append(way[0]))
    )
    for size in ((4, 128, 128), (8, 256, 256)):
        data = Data(patch=Patch(size=size))
        config = Config(
            name="x",
            data=data,
            network=NamedOptions(name="plain_unet"),
            losses=(LossTerm(name="dice"),),
        )
        assert precision.fastest(config, 1, 1).is_plain
    assert set(tried) == {"none"}


@pytest.mark.parametrize("taken", [30.0, None])
def test_a_step_that_takes_too_much_is_planned_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: float | None
) -> None:
    found = pl.plan_dataset(volumes(tmp_path / "d", cases=2), budget="24G").fingerprint
    size = (320, 320, 320)
    cases = tuple(dataclasses.replace(c, shape=size, box=size) for c in found.cases)
    found = dataclasses.replace(found, cases=cases)
    plan = decide.decide(found, PlanRequest(name="x", gigabytes=24))
    assert plan.ground.preset == "resenc-l"
    second = dataclasses.replace(COST, memory=20 * 2**30)
    monkeypatch.setattr(plans.costs, "measure", lambda *args, **more: second)
    first = dataclasses.replace(COST, fits=taken is not None, memory=int((taken or 0) * 2**30))
    again, cost = plans._corrected(plan, first, "cuda")
    assert cost is second
    share = 0.95 * 24 / 30 if taken else 0.5
    assert again.ground.request.share == pytest.approx(share)
    made, before = again.ground.configuration, plan.ground.configuration
    assert made.elements * made.batch < before.elements * before.batch
    assert f"planned for {share:.0%} of 24 GB" in again.remarks[-1]
    assert plans._corrected(plan, second, "cuda") == (plan, second), "what fits stays"
    kept = decide.decide(found, PlanRequest(name="x", preset="resenc-l", gigabytes=24))
    said, cost = plans._corrected(kept, first, "cuda")
    assert (said.settings, cost) == (kept.settings, first)
    assert "--preset keeps nnU-Net's rules" in said.remarks[-1]


# --- what cannot be asked for ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"budget": "lots"}, "--budget is 'lots'"),
        ({"budget": "cpu", "preset": "plain"}, "Leave one of them out"),
        ({"preset": "resenc"}, "--preset is 'resenc'"),
        ({"preset": "plain", "minutes": 5}, "needs a measured step"),
        ({"budget": "cpu", "minutes": -1}, "--minutes is -1"),
        ({"budget": "cpu", "name": "a/b"}, "--name is 'a/b'"),
        ({"budget": "cpu", "configuration": "3d"}, "--configuration 3d"),
        ({"budget": "cpu", "configuration": "3d_lowres"}, "preset plain holds"),
    ],
)
def test_wrong_requests_say_the_way_out(
    tmp_path: Path, unmeasured: None, more: dict[str, Any], words: str
) -> None:
    root = volumes(tmp_path / "d", cases=2)
    with pytest.raises(UserError, match=words):
        pl.plan_dataset(root, **more)


def test_a_changed_plan_is_not_overwritten(
    tmp_path: Path, unmeasured: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    root = volumes(tmp_path / "d", cases=3)
    monkeypatch.chdir(tmp_path)
    words = [str(root), "--budget", "cpu", "--minutes", "5"]
    assert command.main(words) == 0
    printed = capsys.readouterr().out
    assert "pipeline.train --config d.yaml" in printed
    assert command.main(words) == 0, "what nobody changed may be replaced"
    out = tmp_path / "d.yaml"
    out.write_text(out.read_text().replace("clip: 12", "clip: 1"))
    assert command.main(words) == 2
    assert "clip: 1\n" in out.read_text() or "clip: 1 " in out.read_text()
    assert command.main([*words, "--force"]) == 0
    assert "clip: 12" in out.read_text()


# --- training -------------------------------------------------------------------------------------


def run_train(*words: object) -> int:
    return train.main([str(word) for word in words])


QUICK = ("--set", "train.epochs=1", "data.patch.steps=1", "data.patch.size=[8,8,8]",
         "network.options={channels: [4, 8]}", "data.folds.count=2",
         "train.schedule=constant")  # fmt: skip


def test_training_without_a_config_plans_first(
    tmp_path: Path, unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = volumes(tmp_path / "brains", cases=4)
    assert run_train("--data-dir", root, "--fold", 0, *QUICK) == 0
    run = RunFolder(tmp_path / "runs" / "brains")
    first = run.plan_file.read_text()
    assert plan_file.is_plan(first)
    assert json.loads(run.fingerprint_file.read_text())["task"] == "labels"
    assert run.completed() == [0]

    def never(*args: object, **more: object) -> None:
        raise AssertionError("the plan of the run is taken")

    monkeypatch.setattr(plans, "plan_dataset", never)
    assert run_train("--data-dir", root, "--fold", 1, *QUICK) == 0
    assert run.completed() == [0, 1]
    assert run.plan_file.read_text() == first


def test_the_run_keeps_the_plan_it_was_trained_by(tmp_path: Path, unmeasured: None) -> None:
    root = volumes(tmp_path / "d", cases=4)
    out, run = tmp_path / "p.yaml", RunFolder(tmp_path / "run")
    plan = pl.plan_dataset(root, budget="cpu", minutes=5)
    pl.write_plan(plan, out)
    edited = out.read_text().replace("clip: 12", "clip: 3")
    out.write_text(edited)
    assert run_train("--config", out, "--fold", 0, "--out", run.path, *QUICK) == 0
    assert run.plan_file.read_text() == edited
    assert json.loads(run.fingerprint_file.read_text()) == stored.as_json(plan.fingerprint)


@pytest.mark.parametrize("name", ["p.yaml", "plan.yaml"])
def test_a_plan_keeps_its_fingerprint_by_any_name(
    tmp_path: Path, unmeasured: None, name: str
) -> None:
    plan = pl.plan_dataset(volumes(tmp_path / "d", cases=4), budget="cpu", minutes=5)
    pl.write_plan(plan, tmp_path / name)
    kept, run = read_kept(tmp_path / name), RunFolder(tmp_path / "run")
    assert kept is not None
    assert kept.fingerprint is not None
    assert json.loads(kept.fingerprint) == stored.as_json(plan.fingerprint)
    run.keep_plan(kept)
    assert read_kept(run.plan_file) == kept


def test_a_dry_run_plans_and_keeps_nothing(
    tmp_path: Path, unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = volumes(tmp_path / "d", cases=5)
    assert run_train("--data-dir", root, "--dry-run") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d"]


def test_a_folder_without_data_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        assert run_train("--data-dir", tmp_path / folder) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]


@pytest.mark.slow
def test_fresh_keeps_the_old_plan_with_the_old_run(
    tmp_path: Path, unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = volumes(tmp_path / "d", cases=4)
    assert run_train("--data-dir", root, "--fold", 0, *QUICK) == 0
    old = tmp_path / "runs" / "d" / "plan.yaml"
    old.write_text(old.read_text() + "# mine\n")
    assert run_train("--data-dir", root, "--fold", 0, "--fresh", *QUICK) == 0
    assert "# mine" not in old.read_text()
    assert "# mine" in (tmp_path / "runs" / "d.old-1" / "plan.yaml").read_text()


def test_the_competition_keeps_its_system(
    tmp_path: Path, unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(
        "pipeline.workflows.checks.dry_run", lambda config, *rest: asked.append(config)
    )
    competition_folder(tmp_path / "c")
    assert run_train("--data-dir", tmp_path / "c", "--dry-run") == 0
    assert run_train("--dry-run") == 0
    assert [path.samefile(shipped_configs()["surface"]) for path in asked] == [True, True]


def test_python_keeps_the_plan_too(tmp_path: Path, unmeasured: None) -> None:
    root = volumes(tmp_path / "d", cases=4)
    plan = pl.plan_dataset(root, budget="cpu", minutes=5)
    quick = {
        "data.patch.size": [8, 8, 8],
        "data.patch.steps": 1,
        "data.folds.count": 2,
        "network": {"name": "plain_unet", "options": {"channels": [4, 8]}},
        "train.epochs": 1,
        "train.schedule": "constant",
    }
    settings = tuple(Setting(s.key, quick.get(s.key, s.value), s.reason) for s in plan.settings)
    plan = dataclasses.replace(plan, settings=settings)
    run = pl.train_folds(plan, folds=[0], out=tmp_path / "run")
    assert plan_file.is_plan(run.plan_file.read_text())


@pytest.mark.slow
def test_a_real_measurement_plans_the_real_thing(shared_data: Path) -> None:
    root = shared_data / "hippocampus"
    plan = pl.plan_dataset(root, budget="cpu", minutes=600)
    assert plan.config.data.patch.size == (40, 56, 40)
    assert plan.cost is not None
    assert plan.cost.step > 0


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_what_is_no_plan_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(10**12)
    assert read_kept(path) is None


@pytest.mark.parametrize("name", ["", ".", "..", "/", "x" * 5000, "x" * 5000 + "/plan.yaml"])
def test_names_that_no_file_can_have_are_no_plans(name: str) -> None:
    assert read_kept(Path(name)) is None
