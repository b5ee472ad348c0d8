"""Losses at heads that are coarser than the input: targets, ignored voxels and maps at their size,
nnU-Net's weights in training, the written ones in validation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_image_training import SMALL, pair
from test_ranks import end, start
from test_resume import Events
from torch.nn import functional

from pipeline import config as configs
from pipeline import files, networks, train
from pipeline.data.derived import of_term
from pipeline.losses import LOSSES, WeightedSum, main_factor, with_deep
from pipeline.losses.coarse import subsampled
from pipeline.records import AGAIN, DeepHead, LossTerm, NamedOptions
from pipeline.tasks import TASKS
from pipeline.training import state
from pipeline.workflows.checks import trials

DEEP = {
    "main": DeepHead(weight=4 / 7, stride=(1, 1)),
    "deep1": DeepHead(weight=2 / 7, stride=(2, 1)),
    "deep2": DeepHead(weight=1 / 7, stride=(4, 3)),
    "deep3": DeepHead(weight=0.0, stride=(8, 6)),
}
SIZE = (10, 11)
FACTORS = {"main": 4 / 7, "deep1": 2 / 7, "deep2": 1 / 7}
NETWORK = {"name": "plain_unet", "options": {"channels": [4, 4, 8, 8, 8]}}
Output = pytest.CaptureFixture[str]


def middles(size: int, stride: int) -> list[int]:
    return [min(i * stride + stride // 2, size - 1) for i in range(-(-size // stride))]


def picked(array: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """The middle voxels of blocks, by numpy."""
    rows = [middles(n, s) for n, s in zip(array.shape[2:], stride, strict=True)]
    return torch.from_numpy(array.numpy()[np.ix_(*map(range, array.shape[:2]), *rows)])


def heads(channels: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(
            2,
            channels,
            *(-(-n // s) for n, s in zip(SIZE, head.stride, strict=True)),
            generator=generator,
        )
        for name, head in DEEP.items()
    }


def labels(classes: int = 3) -> torch.Tensor:
    return torch.randint(0, classes, (2, 1, *SIZE), generator=torch.Generator().manual_seed(1))


def summed(
    terms: Sequence[LossTerm],
    kinds: Mapping[str, str],
    ignore_label: int | None = None,
    regions: Sequence[Sequence[int]] | None = None,
) -> tuple[WeightedSum, tuple[LossTerm, ...]]:
    added = with_deep(terms, DEEP, DEEP)
    main = main_factor(terms, DEEP)
    return WeightedSum(added, kinds, ignore_label, regions, DEEP, main), added


# --- sizes ----------------------------------------------------------------------------------------


@given(
    size=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    stride=st.lists(st.integers(1, 5), min_size=3, max_size=3),
)
def test_middle_voxels_are_torchs_nearest_exact(size: list[int], stride: list[int]) -> None:
    stride = stride[: len(size)]
    x = torch.randn(2, 2, *(n * s for n, s in zip(size, stride, strict=True)))
    wanted = functional.interpolate(x, size=tuple(size), mode="nearest-exact")
    assert torch.equal(subsampled(x, stride), wanted)


@given(
    size=st.lists(st.integers(1, 13), min_size=2, max_size=3),
    stride=st.lists(st.integers(1, 16), min_size=3, max_size=3),
)
def test_the_last_block_may_be_smaller(size: list[int], stride: list[int]) -> None:
    x = torch.randint(0, 250, (1, 2, *size)).to(torch.uint8)
    assert torch.equal(subsampled(x, stride[: len(size)]), picked(x, stride[: len(size)]))


# --- sums -----------------------------------------------------------------------------------------


def test_main_counts_less_in_training_only() -> None:
    terms = [LossTerm(name="dice", weight=2.0), LossTerm(name="ce")]
    total, added = summed(terms, {"label": "labels"})
    assert [t.head for t in added] == ["main"] * 2 + ["deep1"] * 2 + ["deep2"] * 2
    outputs, batch = heads(3), {"label": labels()}
    plain = WeightedSum(terms, {"label": "labels"})
    found, values = total(outputs, batch)
    wanted = torch.zeros(())
    for head, factor in FACTORS.items():
        target = picked(batch["label"], DEEP[head].stride)
        alone, _ = plain({"main": outputs[head]}, {"label": target})
        wanted = wanted + factor * alone
    torch.testing.assert_close(found, wanted)
    assert sum(FACTORS.values()) == pytest.approx(1)
    assert list(values) == ["dice", "ce", "dice@deep1", "ce@deep1", "dice@deep2", "ce@deep2"]
    held_out, few = total({"main": outputs["main"]}, batch, training=False)
    assert torch.equal(held_out, plain({"main": outputs["main"]}, batch)[0])
    assert list(few) == ["dice", "ce"]


def test_ignored_voxels_are_those_of_the_coarse_labels() -> None:
    total, _ = summed([LossTerm(name="ce")], {"label": "labels"}, 2)
    outputs, batch = heads(2), {"label": labels(3)}
    _, values = total(outputs, batch)
    plain = WeightedSum([LossTerm(name="ce")], {"label": "labels"}, 2)
    for head in FACTORS:
        target = picked(batch["label"], DEEP[head].stride)
        _, alone = plain({"main": outputs[head]}, {"label": target})
        key = "ce" if head == "main" else f"ce@{head}"
        torch.testing.assert_close(values[key], alone["ce"])


def test_regions_and_maps_are_taken_at_the_same_voxels() -> None:
    regions = [(1, 2), (2,)]
    terms = [LossTerm(name="skeleton_recall"), LossTerm(name="boundary"), LossTerm(name="dice")]
    total, added = summed(terms, {"label": "labels"}, 3, regions)
    outputs, batch = heads(2), {"label": labels(4)}
    for n, term in enumerate(terms[:2]):
        key = of_term(str(LOSSES[term.name].reads({})), term).key
        batch[key] = torch.randn(2, 2, *SIZE, generator=torch.Generator().manual_seed(n))
        batch[key] = (batch[key] > 0).float() if term.name == "skeleton_recall" else batch[key]
    _, values = total(outputs, batch)
    plain = WeightedSum(terms, {"label": "labels"}, 3, regions)
    for head in FACTORS:
        coarse = {key: picked(array, DEEP[head].stride) for key, array in batch.items()}
        _, alone = plain({"main": outputs[head]}, coarse)
        for name in ("skeleton_recall", "boundary", "dice"):
            key = name if head == "main" else f"{name}@{head}"
            torch.testing.assert_close(values[key], alone[name])
    assert len(values) == len(added) == 9


def test_images_and_masks_of_change_are_means_of_blocks() -> None:
    kinds = {"target": "image", "mask": "soft"}
    term = LossTerm(name="l1", target="target")
    total, _ = summed([term, LossTerm(name="masked_l1", target="target")], kinds)
    outputs = heads(1)
    batch = {"target": torch.rand(2, 1, *SIZE), "mask": torch.rand(2, 1, *SIZE)}
    _, values = total(outputs, batch)
    one, masked = (
        WeightedSum([LossTerm(name=n, target="target")], kinds) for n in ("l1", "masked_l1")
    )
    for head in ("deep1", "deep2"):
        rows = DEEP[head].stride
        coarse = {name: block_means(array, rows) for name, array in batch.items()}
        for name, alone in (("l1", one), ("masked_l1", masked)):
            _, found = alone({"main": outputs[head]}, coarse)
            torch.testing.assert_close(values[f"{name}@{head}"], found[name])


def block_means(array: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """Means of blocks, the last ones of what is there, one block after the other."""
    (a, b), (height, width) = stride, array.shape[2:]
    rows = [
        [array[..., i : i + a, j : j + b].mean(dim=(2, 3)) for j in range(0, width, b)]
        for i in range(0, height, a)
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def test_named_heads_count_as_they_are_written() -> None:
    terms = [LossTerm(name="dice"), LossTerm(name="dice", head="deep3", weight=0.3)]
    assert with_deep(terms, DEEP, DEEP) == tuple(terms)
    assert main_factor(terms, DEEP) == 1
    total, _ = summed(terms, {"label": "labels"})
    found, values = total(heads(3), {"label": labels()})
    torch.testing.assert_close(found, values["dice"] + 0.3 * values["dice@deep3"])


@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet", "mednext"])
def test_a_step_leaves_the_head_of_weight_0_alone(name: str) -> None:
    options = {} if name == "mednext" else {"channels": [2, 3, 4, 4]}
    net = networks.build(NamedOptions(name=name, options=options), 1, 3, 2).train()
    terms = [LossTerm(name="dice"), LossTerm(name="ce")]
    total = WeightedSum(
        with_deep(terms, net.heads, net.deep),
        {"label": "labels"},
        deep=net.deep,
        main=main_factor(terms, net.deep),
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    before = {key: p.clone() for key, p in net.state_dict().items()}
    total(net(torch.randn(2, 1, 33, 47)), {"label": torch.randint(0, 3, (2, 1, 33, 47))})[
        0
    ].backward()
    optimizer.step()
    layer = "trunk.out_blocks.0." if name == "mednext" else "decoder.seg_layers.0."
    same = {key for key, p in net.state_dict().items() if torch.equal(p, before[key])}
    assert {key for key in same if key.startswith(layer)} == {
        key for key in before if key.startswith(layer)
    }
    last = "trunk.out_0." if name == "mednext" else f"decoder.seg_layers.{len(net.deep) - 1}."
    assert not [key for key in same if key.startswith(last)]


# --- checks before training -----------------------------------------------------------------------

SYSTEMS: dict[str, dict[str, Any]] = {
    "labels": {"losses": ["dice", "ce"]},
    "ignored": {"losses": ["dice", "ce", "focal"], "data": {"ignore_label": 2}},
    "maps": {"losses": ["skeleton_recall", "surface_recall", "boundary", "dice"]},
    "several": {"losses": ["dice", "ce"], "data": {"classes": 4}},
    "regions": {
        "losses": ["dice", "ce", "boundary"],
        "data": {
            "classes": 3,
            "regions": {"whole": [1, 2], "core": 2},
            "regions_class_order": [1, 2],
        },
    },
    "named": {"losses": ["dice", {"name": "dice", "head": "deep2", "weight": 0.5}]},
    "image": {
        "task": "image",
        "metrics": ["psnr"],
        "losses": [{"name": "l1", "target": "target"}, {"name": "masked_l1", "target": "target"}],
        "data": {"change": {}},
    },
}


def system(name: str, dims: int, **more: Any) -> configs.Config:
    given = {"name": name, "network": NETWORK, **SYSTEMS[name], **more}
    data = {"dims": dims, "patch": {"size": [24, 40, 16][:dims]}, **given.pop("data", {})}
    return configs.from_dict({**given, "data": data})


@pytest.mark.parametrize("network", ["plain_unet", "resenc_unet", "mednext"])
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("dims", [2, 3])
def test_losses_are_tried_at_every_head(name: str, dims: int, network: str) -> None:
    if (name, dims) == ("image", 3):
        pytest.skip("masks of change are of photographs")
    part = {"name": network} if network == "mednext" else {**NETWORK, "name": network}
    config = system(name, dims, network=part)
    made, found = trials.network(config, (1, ends(config)))
    assert made is not None
    assert found == []
    shapes = trials.head_shapes(config, made, (1, ends(config)))
    assert {k: tuple(round(1 / s) for s in share) for k, (_, share) in shapes.items()} == {
        k: head.stride for k, head in made.deep.items()
    }
    assert list(trials.loss_terms(config, shapes, 1, made.deep)) == []


def ends(config: configs.Config) -> int:
    return TASKS[config.rules].channels(config, 1)


def test_large_networks_are_not_run_for_their_heads() -> None:
    config = system("labels", 3, network="resenc_unet")
    made, _ = trials.network(config, (1, 1))
    assert made is not None
    shapes = trials.head_shapes(config, made, (1, 1))
    assert shapes["deep3"] == (1, [1 / 8] * 3)
    assert list(trials.loss_terms(config, shapes, 1, made.deep)) == []


def test_a_loss_that_needs_larger_heads_is_refused_with_the_way_out() -> None:
    terms = [{"name": "ms_ssim", "target": "target", "options": {"levels": 1}}]
    config = system("image", 2, losses=terms, network={**NETWORK, "options": {"channels": [4] * 6}})
    (problem,) = [p for p in entries_of(config) if "deep" in p.text]
    words = ("losses.0", "ms_ssim", "deep2", "4 x 4", "deep_supervision: false", "head: deep1")
    assert [word for word in words if word not in problem.text] == []
    alone = {"channels": [4] * 6, "deep_supervision": False}
    config = system("image", 2, losses=terms, network={**NETWORK, "options": alone})
    assert entries_of(config) == []


def entries_of(config: configs.Config) -> list[configs.Problem]:
    made, found = trials.network(config, (1, 1))
    assert made is not None
    shapes = trials.head_shapes(config, made, (1, 1))
    return [*found, *trials.loss_terms(config, shapes, 1, made.deep)]


# --- training -------------------------------------------------------------------------------------

QUICK = ("--fold", "0", "--set", "train.epochs=2", "train.average=null", "metrics=[dice]")


def command(config: Path, data: Path, out: Path) -> list[str]:
    words = ["--config", str(config), "--data-dir", str(data), "--out", str(out), *QUICK]
    return [*words, f"network={json.dumps(NETWORK)}"]


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "fold_0" / "log.jsonl").read_text().splitlines()]


def test_losses_of_two_epochs(tiny: Path, surfaces: Path, tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "run"
    assert train.main(command(tiny, surfaces, out)) == 0
    (line,) = (r for r in capsys.readouterr().out.splitlines() if r.startswith("Deep supervision:"))
    for words in ("0.5714 times in training", "deep1 (0.2857 times)", "deep2 (0.1429 times)"):
        assert words in line
    assert "deep3" not in line
    names = {"dice": 0.4, "focal": 0.2, "variance": 0.2}
    for row in rows(out):
        total = sum(
            weight
            * (4 * row[f"train/{n}"] + 2 * row[f"train/{n}@deep1"] + row[f"train/{n}@deep2"])
            / 7
            for n, weight in names.items()
        )
        assert row["train_loss"] == pytest.approx(total, rel=1e-5)
        assert row["val_loss"] == pytest.approx(
            sum(weight * row[f"val/{n}"] for n, weight in names.items()), rel=1e-5
        )
        assert not [key for key in row if "deep3" in key]


def test_an_image_system_trains_with_coarse_heads(tmp_path: Path) -> None:
    for n in range(4):
        for folder, array in zip(("src", "dst"), pair(n, np.uint8), strict=True):
            files.write(tmp_path / folder / f"{'ab'[n // 2]}_{n}.png", array)
    (tmp_path / "small.yaml").write_text(SMALL)
    words = ["--config", str(tmp_path / "small.yaml"), "--data-dir", str(tmp_path), "--fold", "0"]
    change = ("train.epochs=1", f"network={json.dumps(NETWORK)}", "metrics=[psnr]")
    assert train.main([*words, "--out", str(tmp_path / "run"), "--set", *change]) == 0
    (row,) = rows(tmp_path / "run")
    parts = [row[f"train/charbonnier{head}"] for head in ("", "@deep1", "@deep2")]
    assert row["train_loss"] == pytest.approx(np.dot([4 / 7, 2 / 7, 1 / 7], parts), rel=1e-5)
    assert row["val_loss"] == pytest.approx(row["val/charbonnier"])


@pytest.mark.slow
def test_a_fold_in_two_parts_ends_with_the_same_bits(
    tiny: Path, surfaces: Path, tmp_path: Path
) -> None:
    out, parts = tmp_path / "run", tmp_path / "parts"
    assert train.main(command(tiny, surfaces, out)) == 0
    with pytest.MonkeyPatch.context() as patch:
        events = Events(patch)
        words = command(tiny, surfaces, parts)
        assert events.run(words, until=("step", 3)) == AGAIN  # within the second epoch
        assert events.run(words) == 0
    one, two = (load_file(r / "fold_0" / "best_model.safetensors") for r in (out, parts))
    assert {k for k in one if k.startswith("decoder.seg_layers.")} >= {"decoder.seg_layers.0.bias"}
    assert all(torch.equal(one[k], two[k]) for k in one)
    timeless = [[{**row, "seconds": 0} for row in rows(r)] for r in (out, parts)]
    assert timeless[0] == timeless[1]


def test_unused_weights_are_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """DistributedDataParallel would wait for the gradient of the head that has no term."""
    asked: list[bool] = []

    def wrapped(network: torch.nn.Module, _: Any, unused: bool) -> torch.nn.Module:
        asked.append(unused)
        return network

    monkeypatch.setattr(state.distributed, "wrap_ddp", wrapped)
    for deep in (True, False):
        options = {"channels": [2, 2, 2], "deep_supervision": deep}
        part = NamedOptions(name="plain_unet", options=options)
        net = networks.build(part, 1, 1, 2)
        terms = with_deep([LossTerm(name="dice")], net.heads, net.deep)
        config = system("labels", 2)
        job = SimpleNamespace(
            config=config,
            network=net,
            device="cpu",
            losses=WeightedSum(terms, {"label": "labels"}, deep=net.deep),
            context=None,
            val_loader=object(),
        )
        state.start(job)  # type: ignore[arg-type]
    assert asked == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("deep", ["true", "false"])
def test_two_ranks_train_it(tiny: Path, surfaces: Path, tmp_path: Path, deep: str) -> None:
    name = (
        f"network={{name: plain_unet, options: {{channels: [4, 4, 4], deep_supervision: {deep}}}}}"
    )
    words = ("--set", "train.epochs=2", "train.average=null", "metrics=[dice]", name)
    code, text = end(start(tiny, surfaces, tmp_path / "run", *words))
    assert code == 0, text
