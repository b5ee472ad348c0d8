"""nnU-Net's plans, reproduced: stored ones of nnU-Net itself, published ones, and properties."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.networks.nnunet_parts import Residual
from pipeline.networks.outline import bounded, outline
from pipeline.planning.facts import NORMALISATIONS, normalisation
from pipeline.planning.nnunet import Configuration, Facts, NnunetPlan, plan
from pipeline.planning.presets import PRESETS, REFERENCE_BATCH
from pipeline.planning.topology import PlanError, Topology, elements, fit, initial_patch, topology
from pipeline.records import NamedOptions

ROOT = Path(__file__).resolve().parents[1]
STORED = json.loads((ROOT / "tests/fixtures/nnunet_plans.json").read_text(encoding="utf-8"))
ROWS: list[dict[str, Any]] = STORED["rows"]
NAMES = [f"{i}-{row['scheme']}-{row['preset']}" for i, row in enumerate(ROWS)]
WHOLE = ("patch", "batch", "batch_dice", "strides", "kernels", "widths", "blocks", "decoder")
REASONED = {"spacing", "patch", "batch", "strides", "kernels", "batch_dice", "normalisation"}


def tuples(value: Any) -> Any:
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def planned(row: dict[str, Any]) -> NnunetPlan:
    return plan(Facts(**row["facts"]), row["preset"], row["gigabytes"])


# --- nnU-Net's own answers ------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_the_plan_is_nnunets(row: dict[str, Any]) -> None:
    known = row["nnunet"]
    wanted = {name: c for name, c in known["configurations"].items() if c is not None}
    if not wanted:
        with pytest.raises(PlanError, match="no configuration"):
            planned(row)
        return
    found = planned(row)
    assert set(found.configurations) == set(wanted)
    assert set(found.dropped) == {"2d", "3d_fullres", "3d_lowres"} - set(wanted)
    assert found.cascade == known["cascade"]
    assert list(found.normalisation) == known["normalise"]
    assert list(found.masked) == known["masked"]
    if len(row["facts"]["shapes"][0]) == 3:
        assert list(found.transpose_forward) == known["transpose"]
    for name, values in wanted.items():
        made = found.configurations[name]
        assert {k: getattr(made, k) for k in WHOLE} == {k: tuples(values[k]) for k in WHOLE}, name
        assert made.elements == values["elements"]
        assert made.spacing == pytest.approx(values["spacing"], rel=1e-12)
        assert made.median_shape == tuples(values["median_shape"])
        assert set(made.reasons) == REASONED
        assert all(made.reasons.values())


def test_the_stored_plans_try_every_rule() -> None:
    plans = [row["nnunet"] for row in ROWS]
    each = [c for p in plans for c in p["configurations"].values()]
    made = [c for c in each if c is not None]
    assert len(ROWS) >= 60
    assert {row["preset"] for row in ROWS} == set(PRESETS)
    assert sum(p["cascade"] for p in plans) >= 8
    assert sum(c is None for c in each) >= 3
    assert sum(row["gigabytes"] is not None for row in ROWS) >= 20
    assert any(1 in kernel for c in made for kernel in c["kernels"])
    assert any(n % 1 for c in made for n in c["median_shape"])
    assert {True, False} <= {m for p in plans for m in p["masked"]}
    assert {n for p in plans for n in p["normalise"]} == set(NORMALISATIONS)


@pytest.mark.slow
def test_the_networks_of_all_stored_plans_can_be_built() -> None:
    seen: set[str] = set()
    for row in ROWS:
        configurations = planned(row).configurations if _possible(row) else {}
        for made in configurations.values():
            key = f"{made.network} {made.options}"
            if key in seen:
                continue
            seen.add(key)
            named = NamedOptions(name=made.network, options=made.options)
            channels, classes = len(row["facts"]["channels"]), row["facts"]["classes"]
            net = bounded(named, channels, classes, len(made.patch))
            assert all(n % d == 0 for n, d in zip(made.patch, net.divisor, strict=True))
    assert len(seen) > 50


def _possible(row: dict[str, Any]) -> bool:
    return any(row["nnunet"]["configurations"].values())


# --- published plans ------------------------------------------------------------------------------

HIPPOCAMPUS = Facts(
    shapes=[(36, 50, 35)], spacings=[(1, 1, 1)], channels=["MRI"], classes=3, training=260
)
SCROLLS = Facts(
    shapes=[(320, 320, 320)], spacings=[(1, 1, 1)], channels=["CT"], classes=2, training=786
)
HEARTS = Facts(
    shapes=[(18, 237, 208)],
    spacings=[(5, 1.5625, 1.5625)],
    channels=["MRI"],
    classes=4,
    training=200,
)


@pytest.mark.parametrize(
    ("facts", "preset", "gigabytes", "name", "patch", "batch"),
    [
        (HIPPOCAMPUS, "plain", None, "3d_fullres", (40, 56, 40), 9),
        (HIPPOCAMPUS, "plain", None, "2d", (56, 40), 366),
        (SCROLLS, "plain", None, "3d_fullres", (128, 128, 128), 2),
        (SCROLLS, "resenc-m", None, "3d_fullres", (128, 128, 128), 2),
        (SCROLLS, "resenc-l", None, "3d_fullres", (192, 192, 192), 2),
        (SCROLLS, "resenc-xl", None, "3d_fullres", (256, 224, 224), 2),
        (SCROLLS, "resenc-l", 48, "3d_fullres", (256, 256, 224), 2),
        (SCROLLS, "resenc-xl", 140, "3d_fullres", (256, 256, 256), 6),
        (HEARTS, "plain", None, "3d_fullres", (20, 256, 224), 4),
    ],
)
def test_published_plans(
    facts: Facts,
    preset: str,
    gigabytes: float | None,
    name: str,
    patch: tuple[int, ...],
    batch: int,
) -> None:
    made = plan(facts, preset, gigabytes).configurations[name]
    assert (made.patch, made.batch) == (patch, batch)


def test_the_config_in_nnunets_manner_is_its_plan() -> None:
    text = (ROOT / "configs/nnunet.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    made = plan(HIPPOCAMPUS).configurations["3d_fullres"]
    assert config["network"]["name"] == made.network
    assert tuple(config["data"]["patch"]["size"]) == made.patch
    assert config["data"]["patch"]["batch"] == made.batch
    assert tuple(config["network"]["options"]["channels"]) == made.widths


# --- elements -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("plain", 452_796_416), ("resenc-m", 557_420_544)])
def test_elements_of_the_usual_network(name: str, count: int) -> None:
    usual = Topology(patch=(128,) * 3, strides=((1,) * 3, *[(2,) * 3] * 5), kernels=((3,) * 3,) * 6)
    assert usual.widths == (32, 64, 128, 256, 320, 320)
    assert elements(usual, PRESETS[name], 3) == count


@pytest.mark.parametrize("preset", ["plain", "resenc-m"])
@pytest.mark.parametrize(
    ("spacing", "patch"),
    [
        ((1.0, 1.0, 1.0), (64, 64, 64)),
        ((5.0, 1.0, 1.0), (12, 96, 80)),
        ((1.0, 1.0), (256, 320)),
        ((4.0, 1.0, 1.3), (9, 100, 33)),
    ],
)
def test_elements_are_those_of_our_networks(
    preset: str, spacing: tuple[float, ...], patch: tuple[int, ...]
) -> None:
    made, rules, outputs = topology(spacing, patch), PRESETS[preset], 5
    options = {
        "channels": list(made.widths),
        "kernel": [list(k) for k in made.kernels],
        "strides": [list(s) for s in made.strides],
        "decoder_convs": rules.decoder,
        "blocks" if rules.residual else "convs": list(rules.counts(len(made.strides))),
    }
    named = NamedOptions(name=rules.network, options=options)
    net = outline(named, 2, outputs, len(patch)).eval()
    counted = _counted(net, (1, 2, *made.patch))
    assert counted == elements(made, rules, outputs)


def _counted(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Elements that convolutions and skip connections which are no identity return."""
    found: list[int] = []
    skips = {m.skip for m in net.modules() if isinstance(m, Residual) and len(m.skip)}
    inside = {m for skip in skips for m in skip.modules()} - skips
    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for module in net.modules():
        if module in skips or (isinstance(module, kinds) and module not in inside):
            module.register_forward_hook(lambda _m, _x, y: found.append(y.numel()))
    with torch.no_grad():
        net(torch.zeros(shape, device="meta"))
    return sum(found)


# --- properties -----------------------------------------------------------------------------------

SIDES = st.floats(0.2, 8.0)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    dims = draw(st.sampled_from([2, 3]))
    shape = draw(st.lists(st.integers(16, 700), min_size=dims, max_size=dims))
    return draw(st.lists(SIDES, min_size=dims, max_size=dims)), shape


@given(worlds(), st.sampled_from(list(PRESETS)), st.integers(1, 400), st.integers(2, 20))
@settings(max_examples=60)
def test_patch_batch_and_network_keep_the_rules(
    world: tuple[list[float], list[int]], name: str, cases: int, outputs: int
) -> None:
    (spacing, shape), preset = world, PRESETS[name]
    voxels = math.prod(shape) * cases
    if len(topology(spacing, initial_patch(spacing, shape)).strides) < 2:
        with pytest.raises(PlanError, match="halved"):
            fit(spacing, shape, voxels, outputs, preset)
        return
    found = fit(spacing, shape, voxels, outputs, preset)
    made, dims = found.topology, len(shape)
    assert all(n % d == 0 for n, d in zip(made.patch, made.divisor, strict=True))
    assert all(n < m + d for n, m, d in zip(made.patch, shape, made.divisor, strict=True))
    assert all(n >= 4 for n in made.sizes[-1])
    assert len(made.kernels) == len(made.strides)
    assert set(made.kernels[-1]) == {3}
    assert elements(made, preset, outputs) == found.elements
    assert found.elements * preset.fits[dims] <= preset.budget(dims) * REFERENCE_BATCH[dims]
    assert found.batch == 2 or found.batch * math.prod(made.patch) <= 1.5 * preset.share * voxels
    least = preset.fits[dims] if preset.share == 1 else 2
    assert found.by_memory >= least


@given(st.permutations([0, 1, 2]))
def test_the_coarsest_axis_comes_first_wherever_it_lies(order: list[int]) -> None:
    shape, spacing = np.array([20, 300, 256]), np.array([4.0, 0.8, 0.8])
    facts = Facts(
        shapes=[shape[order].tolist()], spacings=[spacing[order].tolist()],
        channels=["CT"], classes=2,
    )  # fmt: skip
    found = plan(facts)
    assert found.transpose_forward[0] == order.index(0)
    assert found.spacing == (4.0, 0.8, 0.8)


@pytest.mark.parametrize("name", ["mri", "scroll", "ct ", "", "CT1"])
def test_a_name_that_means_nothing_is_said(name: str) -> None:
    facts = Facts(
        shapes=[(64, 64, 64)], spacings=[(1, 1, 1)], channels=["ct", name], classes=2
    )  # fmt: skip
    found = plan(facts)
    assert found.unknown == (name,)
    assert normalisation(name) == "zscore"
    assert "no known name" in found.reasons["normalisation"]


def test_masks_only_where_much_was_cut_off() -> None:
    def masked(left: float) -> tuple[bool, ...]:
        facts = Facts(
            shapes=[(64, 64, 64)], spacings=[(1, 1, 1)], channels=["CT", "T1"], classes=2,
            relative_sizes=[left],
        )  # fmt: skip
        return plan(facts).masked

    assert masked(0.74) == (False, True)
    assert masked(0.75) == (False, False)


def test_pictures_have_one_configuration() -> None:
    facts = Facts(shapes=[(512, 600)], spacings=[(1, 1)], channels=["R"], classes=2)
    found = plan(facts)
    assert set(found.configurations) == {"2d"}
    assert (found.transpose_forward, found.spacing) == ((0, 1), (1.0, 1.0))
    assert found.median_shape == (512, 600)
    assert "two axes" in found.dropped["3d_fullres"]


# --- messages -------------------------------------------------------------------------------------


def test_reasons_say_numbers() -> None:
    low = plan(
        Facts(shapes=[(500, 512, 512)], spacings=[(1, 0.8, 0.8)], channels=["CT"], classes=3)
    )
    made: Configuration = low.configurations["3d_fullres"]
    assert "1 mm is not above 3 x 0.8 mm" in made.reasons["spacing"]
    assert "shrunk 13 times to fit 5.6e8 elements" in made.reasons["patch"]
    assert "1 %" in low.configurations["3d_lowres"].reasons["spacing"]
    assert "10th percentile, 5 mm" in plan(HEARTS).reasons["spacing"]
    assert "at least 25 %" in plan(HEARTS).dropped["3d_lowres"]
    text = plan(HIPPOCAMPUS).configurations["3d_fullres"].reasons["batch"]
    assert text == "58 would fit the memory, 5 % of the voxels of all cases allow 9"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": []}, "0 shapes and 1 spacings"),
        ({"spacings": [(1, 1)]}, r"of \[2, 3\] axes"),
        ({"spacings": [(0, 1, 1)]}, r"spacing is \(0, 1, 1\), all numbers must be above 0"),
        ({"spacings": [(math.nan, 1, 1)]}, "must be above 0"),
        ({"shapes": [(64, 0, 64)]}, r"shape is \(64, 0, 64\)"),
    ],
)
def test_facts_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"shapes": [(64, 64, 64)], "spacings": [(1, 1, 1)]}
    with pytest.raises(PlanError, match=message):
        Facts(**{**good, **change}, channels=["CT"], classes=2)


def test_what_cannot_be_planned_is_said() -> None:
    with pytest.raises(PlanError, match="Did you mean 'resenc-l'"):
        plan(SCROLLS, "resenc_l")
    with pytest.raises(PlanError, match="gigabytes is 0"):
        plan(SCROLLS, "plain", 0)
    with pytest.raises(PlanError, match=r"3d_fullres: No patch fits .* Plan for more memory"):
        plan(SCROLLS, "plain", 1e-5)
