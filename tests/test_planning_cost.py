"""What a config costs is measured without a trace; schedules keep to the time they are given."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import files, networks
from pipeline.config import Config, from_dict
from pipeline.planning import bench, topology
from pipeline.planning import cost as costs
from pipeline.planning.cost import Cost, measure
from pipeline.planning.memory import SavedTensors, elements_to_bytes, estimated_memory
from pipeline.planning.presets import PRESETS
from pipeline.planning.sample import SampleCase, cut_size, objects, write_case
from pipeline.planning.schedule import (
    EPOCHS,
    MOST_EPOCHS,
    SAFETY,
    STEPS,
    Schedule,
    Workload,
    expected,
    fold_seconds,
    lines,
    schedule_for,
    seconds_of,
    workload,
)
from pipeline.records import UserError

SMALL = {
    "name": "small",
    "data": {
        "layout": "nnunet",
        "classes": 3,
        "normalise": {"name": "ct"},
        "patch": {"size": [16, 16, 16], "batch": 2, "steps": 5, "oversample": 0.33},
        "augment": ["spatial", {"name": "noise", "options": {"p": 0.1}}],
    },
    "network": {"name": "plain_unet", "options": {"channels": [4, 8]}},
    "losses": ["dice", "ce"],
    "metrics": ["dice", {"name": "surface_dice", "options": {"tolerance_mm": 1}}],
    "train": {
        "epochs": 2,
        "optimizer": {"name": "sgd"},
        "keep": "last",
        "preview_every": 1,
        "average": {"start": 1},
    },
    "predict": {"overlap": 4},
    "postprocess": ["argmax"],
}
CASE = SampleCase(
    shape=(20, 24, 22),
    native=(20, 24, 22),
    channels=1,
    outputs=3,
    classes=3,
    spacing=(1.0, 1.0, 2.0),
)
TIMES = [f.name for f in dataclasses.fields(Cost) if f.type == "float"]


def small(**data: Any) -> Config:
    return from_dict({**SMALL, "data": {**SMALL["data"], **data}})  # type: ignore[dict-item]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A few steps, and temporary folders where a test sees them."""
    monkeypatch.setattr(bench, "DRAWING", 0.02)
    monkeypatch.setattr(bench, "STEPPING", 0.02)
    monkeypatch.setattr(costs, "_start_seconds", lambda: 1.5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


# --- the measurement ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> Cost:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "DRAWING", 0.02)
        patch.setattr(bench, "STEPPING", 0.02)
        return measure(small(), CASE, "cpu", start=False)


def test_every_part_takes_time(measured: Cost) -> None:
    zero = {name for name in TIMES if not getattr(measured, name) > 0}
    assert zero <= {"start", "baseline", "first"}, zero
    assert measured.fits
    assert not measured.real
    assert measured.memory_is == "estimated"
    assert json.loads(json.dumps(measured.as_json()))["batch"] == 2


def test_what_is_measured_is_said_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """Long measurements are not silent, though training's own lines are."""
    logger = logging.getLogger("pipeline.test")
    with caplog.at_level(logging.INFO, "pipeline"):
        measure(small(), CASE, "cpu", logger.info, start=False)
    assert "training steps" in caplog.messages
    assert {r.name for r in caplog.records} == {"pipeline.test"}


def test_a_process_is_started_on_request() -> None:
    assert measure(small(), CASE, "cpu").start == 1.5


def test_nothing_of_the_process_changes(tmp_path: Path) -> None:
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    with torch.no_grad():
        measure(small(), CASE, "cpu")
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # type: ignore[arg-type]
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("planted")])
def test_an_interrupted_measurement_leaves_nothing(
    error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        assert list(tmp_path.iterdir()), "the folder is there while it measures"
        raise error

    monkeypatch.setattr(bench, "validate", fail)
    state = torch.get_rng_state()
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        measure(small(), CASE, "cpu")
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.get_rng_state(), state)


def test_too_little_memory_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    monkeypatch.setattr(bench.loop, "training_step", fail)
    found = measure(small(), CASE, "cpu")
    assert not found.fits
    assert found.problem == "CUDA out of memory. Tried to allocate 20.00 GiB."
    assert "does not fit" in lines(found)[0]
    with pytest.raises(UserError, match=r"data\.patch\.batch"):
        schedule_for(60, found, workload(10, 5))
    with pytest.raises(UserError, match="does not fit"):
        expected(small(), found, workload(10, 5))


def test_on_the_cpu_a_vast_step_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "available_memory", lambda: 1000)
    monkeypatch.setattr(costs, "Bench", None)
    found = measure(small(), CASE, "cpu")
    assert not found.fits
    assert found.memory > 1000
    assert "are free" in found.problem


def test_memory_without_values_is_that_of_a_real_forward_pass() -> None:
    config = small()
    network = networks.build(config.network, 1, 3, 3).train()
    with SavedTensors() as saved:
        network(torch.zeros(2, 1, 16, 16, 16))
    weights = sum(p.numel() * 4 for p in network.parameters())
    found = estimated_memory(config, 1, 3)
    assert found == saved.bytes + saved.passing + 3 * weights
    twice = estimated_memory(small(patch={"size": [16, 16, 16], "batch": 4}), 1, 3)
    assert found is not None
    assert twice is not None
    assert 1.7 < twice / found < 2


def test_the_whole_step_is_close_to_the_estimate(measured: Cost) -> None:
    estimate = estimated_memory(small(), 1, 3)
    assert estimate is not None
    assert 0.8 < measured.memory / estimate < 2


def test_a_broken_case_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    case = write_case(CASE, small(), folder)
    case.image[0].write_bytes(case.image[0].read_bytes()[:1000])
    with pytest.raises(files.FileError, match=r"image_0\.nii"):
        measure(small(), dataclasses.replace(CASE, case=case), "cpu")


OTHER: dict[str, tuple[dict[str, Any], SampleCase]] = {
    "images": (
        {
            "task": "image",
            "data": {
                "dims": 2,
                "layout": "folders",
                "folders": {"image": "images", "target": "targets"},
                "patch": {"size": [32, 32], "grid": 0.25},
            },
            "losses": [{"name": "l1", "target": "target"}],
            "metrics": ["psnr"],
            "postprocess": [],
        },
        SampleCase(
            shape=(40, 48), native=(40, 48), channels=3, outputs=3, classes=2, dtype="uint8"
        ),
    ),
    "regions": (
        {
            "data": {
                "classes": 3,
                "regions": {"all": [1, 2], "core": 2},
                "regions_class_order": [1, 2],
                "patch": {"size": [16, 16, 16]},
                "orientation": "RAS",
                "spacing": [1, 1, 1],
            },
            "metrics": ["dice"],
            "postprocess": [],
        },
        dataclasses.replace(CASE, shape=(40, 24, 20), outputs=2, channels=2, codes="SAR"),
    ),
    "two classes": (
        {
            "data": {
                "dims": 2,
                "classes": 2,
                "patch": {"size": [32, 32], "foreground": [0.1, 0.9], "per_case": 3},
                "workers": 2,
            },
            "metrics": ["dice"],
            "train": {"epochs": 1, "accumulate": 2},
            "postprocess": ["threshold"],
        },
        SampleCase(shape=(40, 30), native=(40, 30), channels=1, outputs=1, classes=2),
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_systems_are_measured(name: str) -> None:
    changes, sample = OTHER[name]
    found = measure(from_dict({**SMALL, **changes}), sample, "cpu")
    for part in ("prepare", "draw", "step", "validate", "predict", "back", "keep", "score"):
        assert getattr(found, part) > 0, part
    assert (found.baseline > 0) == (name != "regions")


def test_of_a_large_case_a_part_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.planning.sample.LARGEST", 3 * 30**3)
    large = dataclasses.replace(CASE, shape=(60, 80, 70), native=(60, 80, 70))
    assert math.prod(cut_size(large, small())) < 1.3 * 30**3
    share = []
    few_tiles = bench.Bench._few_tiles
    monkeypatch.setattr(
        bench.Bench, "_few_tiles", lambda *a: share.append(few_tiles(*a)) or share[-1]
    )
    measure(small(), large, "cpu")
    part, times = share[0]
    assert math.prod(part.image.shape) < 30**3
    assert times > 5
    measure(small(), dataclasses.replace(large, shapes=((60, 80, 70), (60, 80, 210))), "cpu")
    assert 1.5 * times < share[1][1] < 2.5 * times


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_counts_its_memory() -> None:
    found = measure(small(), CASE, "cuda")
    assert found.memory_is == "measured"
    assert 0 < found.memory <= found.reserved < found.available
    before = torch.cuda.memory_allocated()
    share = (torch.cuda.memory_reserved() + 2**24) / found.available
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        large = small(patch={"size": [96, 96, 96], "batch": 8})
        assert not measure(large, CASE, "cuda", start=False).fits
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_allocated() <= before + 2**20


# --- the made-up case -----------------------------------------------------------------------------


@given(
    size=st.lists(st.integers(3, 40), min_size=2, max_size=3),
    classes=st.integers(2, 9),
)
@settings(max_examples=examples(30))
def test_every_class_has_a_voxel(size: list[int], classes: int) -> None:
    assert set(np.unique(objects(size, classes))) == set(range(classes))


def test_a_made_up_case_has_the_facts(tmp_path: Path) -> None:
    sample = dataclasses.replace(CASE, channels=2, codes="LPS")
    case = write_case(sample, small(), tmp_path)
    image, geometry = files.read(case.image[0], 3)
    assert image.shape == (1, *CASE.native)
    assert image.dtype == np.int16
    assert len(case.image) == 2
    label, _ = files.read(case.targets["label"], 3, labels=True)
    assert set(np.unique(label)) == {0, 1, 2}
    assert "LPS" in json.dumps(dict(geometry.meta), default=str) or geometry.format == "nifti"


# --- the schedule ---------------------------------------------------------------------------------

SHORTEST = [(50, 2), (40, 3)]
"""Epochs and steps of schedules with the fewest steps."""

seconds = st.floats(0, 20)
cost_records = st.builds(
    Cost,
    device=st.just("cpu"),
    batch=st.integers(1, 8),
    workers=st.integers(0, 4),
    cores=st.integers(1, 16),
    step=st.floats(1e-3, 20),
    **dict.fromkeys(
        ["start", "first", "prepare", "setup", "draw", "epoch", "model", "preview"], seconds
    ),
    **dict.fromkeys(["validate", "predict", "back", "keep", "score", "baseline"], seconds),
)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    count = draw(st.integers(2, 10))
    folds: Any = draw(st.sampled_from([None, [0], ["all"]]))
    work = workload(draw(st.integers(count, 300)), count, folds=folds)
    return dataclasses.replace(
        work,
        validate_every=draw(st.integers(1, 60)),
        preview_every=draw(st.integers(0, 10)),
        averages=draw(st.booleans()),
        keep_best=draw(st.booleans()),
    )


def fitting(minutes: float, cost: Cost, work: Workload) -> Schedule | None:
    """The schedule; None where nothing fits, which even the shortest ones have to show."""
    try:
        return schedule_for(minutes, cost, work)
    except UserError:
        shortest = min(seconds_of(cost, work, epochs, steps) for epochs, steps in SHORTEST)
        if shortest <= 60 * minutes * (1 - SAFETY):
            raise
        return None


@given(cost=cost_records, work=workloads(), minutes=st.floats(0.1, 50_000), more=st.floats(1, 3))
@settings(max_examples=examples(60))
def test_schedules_keep_to_the_time_and_grow_with_it(
    cost: Cost, work: Workload, minutes: float, more: float
) -> None:
    found = fitting(minutes, cost, work)
    if found is None:
        return
    assert 1 <= found.steps <= STEPS
    assert EPOCHS <= found.epochs <= MOST_EPOCHS
    assert found.epochs * found.steps >= 100
    assert found.total <= 60 * minutes * (1 - SAFETY) * (1 + 1e-9)
    assert found.total == pytest.approx(sum(found.parts.values()))
    assert found.total == pytest.approx(seconds_of(cost, work, found.epochs, found.steps))
    longer = schedule_for(minutes * more, cost, work)
    assert longer.epochs * longer.steps >= found.epochs * found.steps
    json.dumps(found.as_json())


@given(cost=cost_records, work=workloads(), minutes=st.floats(5, 5000))
@settings(max_examples=examples(30))
def test_no_longer_schedule_would_fit(cost: Cost, work: Workload, minutes: float) -> None:
    found = fitting(minutes, cost, work)
    if found is None:
        return
    if found.steps < STEPS:
        assert seconds_of(cost, work, found.epochs, found.steps + 1) > 60 * minutes * (1 - SAFETY)
    elif found.epochs < MOST_EPOCHS:
        assert seconds_of(cost, work, found.epochs + 1, STEPS) > 60 * minutes * (1 - SAFETY)


PLAIN = Cost(device="cpu", batch=2, draw=0.1, step=0.9, predict=10.0)


def test_the_way_out_of_too_little_time_is_right() -> None:
    work = workload(40, 5)
    with pytest.raises(UserError) as caught:
        schedule_for(15, PLAIN, work)
    text = str(caught.value)
    assert "5 folds" in text
    assert "prediction 0:06:40" in text
    assert "fewer folds (--fold 0 and --fold 1 and --fold 2 and --fold 3)" in text
    wanted = int(text.split("at least --minutes ")[1].split(",")[0])
    schedule_for(wanted, PLAIN, work)
    with pytest.raises(UserError):
        schedule_for(wanted - 1, PLAIN, work)
    named = [int(n) for n in re.findall(r"--fold (\d)", text)]
    schedule_for(15, PLAIN, workload(40, 5, folds=named))
    with pytest.raises(UserError, match="positive"):
        schedule_for(0, PLAIN, work)


def test_folds_differ_in_their_held_out_cases() -> None:
    work = workload(12, 5)
    assert work.held_out == (3, 3, 2, 2, 2)
    assert work.training == (9, 9, 10, 10, 10)
    first, last = (fold_seconds(PLAIN, work, n, 2, 3) for n in (0, 4))
    assert first["prediction"] == 30
    assert last["prediction"] == 20
    every = workload(12, 5, folds=["all"])
    alone = fold_seconds(dataclasses.replace(PLAIN, validate=1.0), every, 0, 2, 3)
    assert every.held_out == (0,)
    assert alone["validation"] == alone["prediction"] == 0


def test_a_config_is_expected_to_take_its_own_epochs() -> None:
    config = from_dict({**SMALL, "train": {"epochs": 1000}})
    found = expected(config, PLAIN, workload(10, 5, config))
    assert (found.epochs, found.steps) == (1000, 5)
    assert found.parts["training"] == 5 * 1000 * 5
    passes = small(patch={"size": [16, 16, 16], "batch": 2, "per_case": 3})
    assert expected(passes, PLAIN, workload(10, 5, passes)).steps == 12


def test_loaders_of_their_own_draw_meanwhile() -> None:
    loaded = dataclasses.replace(PLAIN, draw=3.0, step=1.0)
    assert loaded.batch_seconds == 4
    several = dataclasses.replace(loaded, workers=6, device="cuda:0")
    assert several.batch_seconds == 1
    assert dataclasses.replace(several, workers=2).batch_seconds == 1.5


def test_lines_say_memory_and_time() -> None:
    cost = dataclasses.replace(PLAIN, memory=4_900_000_000)
    found = lines(cost, schedule_for(60, cost, workload(10, 5)), 5.1e9)
    assert "expected 5.1 GB, measured 4.9 GB" in found[0]
    assert "of 1:00:00 (15% kept free) for 5 folds" in found[2]
    assert "training" in found[3]


def test_half_precision_keeps_half() -> None:
    config = small(patch={"size": [32, 32, 32], "batch": 4})
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, amp="fp16"))
    full = estimated_memory(config, 1, 3)
    assert full == estimated_memory(half, 1, 3)
    found = estimated_memory(half, 1, 3, "cuda")
    assert full is not None
    assert found is not None
    assert 0.45 < found / full < 0.6


def test_elements_are_bytes_as_the_networks_keep_them() -> None:
    plan = topology.topology((1.0, 1.0, 1.0), (32, 32, 32))
    count = topology.elements(plan, PRESETS["plain"], 3)
    options = {"channels": list(plan.widths), "strides": [list(s) for s in plan.strides]}
    network = {"name": "plain_unet", "options": options}
    config = from_dict(
        {**SMALL, "network": network, "data": {**SMALL["data"], "patch": {"size": [32, 32, 32]}}}  # type: ignore[dict-item]
    )
    weights = sum(p.numel() * 4 for p in networks.build(config.network, 1, 3, 3).parameters())
    found = estimated_memory(config, 1, 3)
    assert found is not None
    assert (found - 3 * weights) == pytest.approx(elements_to_bytes(count, 2), rel=0.25)
