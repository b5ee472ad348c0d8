"""Regions: rules of the config, losses, maps, decision, metrics, fusion, tuning and warnings."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from pipeline import config as configs
from pipeline import files, postprocess, train
from pipeline.config import ConfigError, from_dict, load, to_dict
from pipeline.config import regions as region_rules
from pipeline.config.reading import difference
from pipeline.config.regions import faults, unions, written
from pipeline.data import derived, described
from pipeline.files import Rows
from pipeline.inference.fusion import fuse
from pipeline.losses import WeightedSum
from pipeline.metrics import evaluate
from pipeline.metrics.context import MetricContext
from pipeline.records import LossTerm, NamedOptions
from pipeline.scoring.patches import PatchRules, PatchScores, measure
from pipeline.tasks import TASKS
from pipeline.tuning import search

BRATS = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def config_of(regions: dict, order: list[int], classes: int, **data) -> configs.Config:
    sections = {"classes": classes, "regions": regions, "regions_class_order": order, **data}
    return from_dict(
        {
            "name": "x",
            "network": "unet",
            "losses": ["dice", "ce"],
            "data": {"patch": {"size": [8, 8, 8]}, **sections},
        }
    )


# --- config ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"regions": {"a": [1]}}, "data.regions_class_order is missing"),
        ({"regions_class_order": [1]}, "stands without data.regions"),
        (
            {"regions": {"a": [1, 4]}, "regions_class_order": [1]},
            "'a' holds 4, must be from 1 to 3",
        ),
        ({"regions": {"a": [0, 1]}, "regions_class_order": [1]}, "'a' holds 0"),
        (
            {"regions": {"a": [1, 3]}, "regions_class_order": [1], "ignore_label": 3},
            "and not 3, which is ignored",
        ),
        ({"regions": {"a": []}, "regions_class_order": [1]}, "holds no label value"),
        ({"regions": {"a": [1, 1]}, "regions_class_order": [1]}, "a label value twice"),
        ({"regions": {}, "regions_class_order": []}, "is empty"),
        (
            {"regions": {"a": [1, 2], "b": [2, 1]}, "regions_class_order": [1, 2]},
            "'a' and 'b' hold the same labels",
        ),
        ({"regions": {"a": 1, "b": 2}, "regions_class_order": [1]}, "has 1 values for 2 regions"),
        (
            {"regions": {"a": [1, 2], "b": 2}, "regions_class_order": [3, 2]},
            "writes 3 for 'a', which holds [1, 2]",
        ),
        (
            {"regions": {"a": [1, 2], "b": 2}, "regions_class_order": [2, 2]},
            "writes one label for several regions",
        ),
        (
            {"regions": {"a": [1, 3], "b": [2, 3]}, "regions_class_order": [1, 2]},
            "label 3 cannot be written back, its regions give 2",
        ),
        (
            {"regions": {"a": [1, 2]}, "regions_class_order": [1]},
            "label 2 cannot be written back, its regions give 1",
        ),
        ({"class_names": {1: "a", 2: "a"}}, "1 and 2 are both named 'a'"),
        ({"class_names": {7: "a"}}, "data.class_names names 7 'a'"),
        ({"class_names": {1: " "}}, "use printable letters"),
        ({"channel_names": ["CT", ""]}, "every name needs printable letters"),
    ],
)
def test_rules_of_labels(data: dict, words: str) -> None:
    settings = {"name": "x", "network": "unet", "losses": ["dice"], "data": {"classes": 4, **data}}
    with pytest.raises(ConfigError) as raised:
        from_dict(settings)
    assert words in str(raised.value)
    assert str(raised.value).count("\n") == 1, "one fault, one line"


@given(
    st.lists(st.sets(st.integers(1, 6), min_size=1), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_labels_survive_regions_or_the_config_is_refused(members: list[set[int]], random) -> None:
    """Perfect probabilities of regions give back every label map of labels that are in regions."""
    regions = {f"r{n}": sorted(values) for n, values in enumerate(members)}
    order = [random.choice(values) for values in regions.values()]
    known = unions(regions)
    labels = np.array([0, *sorted(set().union(*members))])
    soft = np.stack([np.isin(labels, values) for values in known]).astype(np.float32)
    found = list(faults(regions, order, 7, None))
    decoded = postprocess.regions(soft, order)
    assert [written(int(v), known, order) for v in labels] == decoded.tolist()
    if not found:
        assert decoded.tolist() == labels.tolist()
    elif all("cannot be written back" in text for text in found):
        assert decoded.tolist() != labels.tolist()


def test_a_config_with_regions_keeps_them_through_files(tmp_path: Path) -> None:
    config = config_of(BRATS, [1, 2, 3], 4, class_names={1: "oedema", 3: "enhancing"})
    assert config.postprocess[0].options == {"order": [1, 2, 3]}
    assert config.rules == "regions"
    assert TASKS[config.rules].channels(config, 4) == 3
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    path = tmp_path / "c.yaml"
    path.write_text(configs.dump(config))
    assert load(path) == config
    assert list(load(path).data.regions or ()) == list(BRATS)


def test_another_order_of_channels_is_a_difference() -> None:
    """Dicts of another order are equal, but their channels are not."""
    one, other = {"data": {"regions": {"a": 1, "b": 2}}}, {"data": {"regions": {"b": 2, "a": 1}}}
    assert one == other
    assert difference(one, other) == ["data.regions: in the order ['a', 'b'] -> ['b', 'a']"]


@pytest.mark.parametrize("step", ["argmax", "threshold", "hysteresis"])
def test_other_decisions_of_regions_are_refused(step: str) -> None:
    settings = to_dict(config_of(BRATS, [1, 2, 3], 4)) | {"postprocess": [step]}
    with pytest.raises(ConfigError, match=f"'{step}' does not write the labels of regions"):
        from_dict(settings)


# --- losses and maps ------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore", [None, 4])
def test_losses_of_regions_are_means_of_binary_ones(ignore: int | None) -> None:
    """Dice and BCE of nnU-Net's regions, written out with torch alone."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 5 if ignore else 4, (2, 1, 5, 4, 3))
    terms = [LossTerm(name="dice"), LossTerm(name="ce")]
    loss = WeightedSum(terms, {"label": "labels"}, ignore, unions(BRATS))
    total, values = loss({"main": x}, {"label": y})
    valid = (y != ignore).double() if ignore else torch.ones_like(y, dtype=torch.float64)
    target = torch.cat([torch.isin(y, torch.tensor(u)).double() for u in unions(BRATS)], 1)
    p, axes = x.sigmoid(), (2, 3, 4)
    both = (p * target * valid).sum(axes)
    sizes = ((p + target) * valid).sum(axes)
    dice = 1 - (2 * both + 1e-5) / (sizes + 1e-5)
    ce = functional.binary_cross_entropy_with_logits(x, target, reduction="none") * valid
    assert values["dice"].item() == pytest.approx(dice.mean().item(), rel=1e-12)
    assert values["ce"].item() == pytest.approx((ce.sum() / valid.sum() / 3).item(), rel=1e-12)
    (wanted,) = torch.autograd.grad(dice.mean() + ce.sum() / valid.sum() / 3, x)
    (got,) = torch.autograd.grad(total, x)
    assert torch.allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    ["tversky", "focal", "variance", "cldice", "skeleton_recall", "boundary", "connectivity"],
)
def test_every_loss_of_labels_takes_regions(name: str) -> None:
    """It is the mean of the losses of two-class systems, each with its own map."""
    torch.manual_seed(1)
    x = torch.randn(1, 2, 12, 12)
    y = torch.zeros(1, 1, 12, 12, dtype=torch.int64)
    y[..., 2:9, 3:9] = 1
    y[..., 4:8, 5:8] = 2
    regions = {"whole": [1, 2], "core": 2}
    config = config_of(regions, [1, 2], 3, dims=2, patch={"size": [12, 12]})
    term = LossTerm(name=name)
    loss = WeightedSum([term], {"label": "labels"}, None, config.data.unions)
    binary = configs.Data(dims=2, patch=config.data.patch)
    maps, singles = {}, []
    request = loss.maps.get(name)
    for n, values in enumerate(config.data.unions or ()):
        own = torch.isin(y, torch.tensor(values)).long()
        batch = {"label": own}
        if request is not None:
            found = _request(term)
            batch[request] = torch.from_numpy(derived.derive(own[0].numpy(), found, binary))[None]
            maps.setdefault(request, []).append(batch[request])
        alone = WeightedSum([term], {"label": "labels"})
        singles.append(alone({"main": x[:, n : n + 1]}, batch)[0])
    batch = {"label": y}
    if request is not None:
        batch[request] = torch.from_numpy(
            derived.derive(y[0].numpy(), _request(term), config.data)
        )[None]
        assert torch.equal(batch[request], torch.cat(maps[request], 1))
    value, _ = loss({"main": x}, batch)
    assert torch.allclose(value, torch.stack(singles).mean())


def _request(term: LossTerm) -> derived.Map:
    from pipeline.losses import reads

    (found,) = reads([term])
    assert isinstance(found, derived.Map)
    return found


def test_a_further_head_keeps_its_own_labels() -> None:
    """Regions are those of the main head; a mask of another target has one channel."""
    terms = [LossTerm(name="ce"), LossTerm(name="ce", head="mask", target="vessel")]
    kinds = {"label": "labels", "vessel": "labels"}
    outputs = {"main": torch.zeros(1, 2, 4, 4), "mask": torch.zeros(1, 1, 4, 4)}
    batch = {name: torch.ones(1, 1, 4, 4, dtype=torch.int64) for name in kinds}
    _, values = WeightedSum(terms, kinds, None, [(1, 2), (2,)])(outputs, batch)
    assert float(values["ce@mask"]) == pytest.approx(math.log(2))
    outputs["main"] = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="3 channels, there are 2 regions"):
        WeightedSum(terms, kinds, None, [(1, 2), (2,)])(outputs, batch)


# --- decision, fusion and tuning ------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.3, [0.2, 0.5, 0.8]]))
def test_regions_are_decided_one_after_the_other(seed: int, threshold) -> None:
    soft = np.random.default_rng(seed).random((3, 5, 4, 3), np.float32)
    step = NamedOptions(name="regions", options={"order": [2, 3, 300], "threshold": threshold})
    cuts = threshold if isinstance(threshold, list) else [threshold] * 3
    wanted = np.zeros(soft.shape[1:], int)
    for p, cut, value in zip(soft, cuts, [2, 3, 300], strict=True):
        wanted[p > cut] = value
    found = postprocess.apply([step], soft)
    assert found.dtype == np.uint16
    assert (found == wanted).all()
    lazy = Rows(soft.shape, soft.dtype, lambda first, end: soft[:, first:end])
    assert (postprocess.apply([step], lazy)[:][0] == wanted).all()


def test_a_probability_of_the_threshold_is_not_found() -> None:
    assert postprocess.regions(np.full((1, 2), 0.5), [1]).tolist() == [0, 0]


@pytest.mark.parametrize(
    "options",
    [{"order": []}, {"order": [0]}, {"order": [1, 2]}, {"order": [True]}, {"order": "12"}],
)
def test_wrong_options_of_the_decision(options: dict) -> None:
    with pytest.raises(ConfigError, match="regions: order"):
        postprocess.regions(np.zeros((1, 4)), **options)


def test_members_of_regions_are_fused_channel_by_channel() -> None:
    rng = np.random.default_rng(0)
    members, weights = list(rng.uniform(0.05, 0.95, (2, 3, 4, 5)).astype(np.float32)), [1.0, 3.0]
    for fusion in ("mean", "logit", "vote"):
        found = fuse(members, weights, fusion, "case", independent=True)[:]
        for n in range(3):
            alone = fuse([m[n : n + 1] for m in members], weights, fusion, "case")[:]
            assert np.allclose(found[n], alone[0], atol=1e-6)


def test_tuning_varies_the_thresholds_of_regions_alone() -> None:
    config = config_of(BRATS, [1, 2, 3], 4)
    first = search.space(config.postprocess, 64, 3, 3)[0]
    tried = {steps[0].options.get("threshold", 0.5) for steps in first}
    assert {steps[0].name for steps in first} == {"regions"}
    assert len(tried) > 4
    assert all(steps[0].options["order"] == [1, 2, 3] for steps in first)
    own = (NamedOptions(name="regions", options={"order": [1, 2], "threshold": [0.4, 0.6]}),)
    each = [steps[0].options["threshold"] for steps in search.varied(own)]
    assert [0.5, 0.6] in each
    assert [0.5, 0.7] in each
    assert all(0 <= x <= 1 for pair in each for x in pair)


# --- metrics --------------------------------------------------------------------------------------


def masks(labels: np.ndarray) -> list[np.ndarray]:
    return [np.isin(labels, u).astype(np.uint8) for u in unions(BRATS)]


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_metrics_of_regions_are_those_of_their_masks(seed: int, ignore: bool) -> None:
    rng = np.random.default_rng(seed)
    answer, label = rng.integers(0, 4, (2, 4, 5, 3)).astype(np.uint8)
    valid = rng.random(label.shape) > 0.3 if ignore else None
    metrics = [NamedOptions(name=n) for n in ("dice", "accuracy", "hd95", "components")]
    context = MetricContext(regions=unions(BRATS), spacing=(2.0, 1.0, 1.0))
    found = evaluate(metrics, answer, label, valid, context=context)
    binary = MetricContext(spacing=(2.0, 1.0, 1.0))
    for n, (p, t) in enumerate(zip(masks(answer), masks(label), strict=True), 1):
        wanted = evaluate(metrics[:3], p, t, valid, context=binary)
        for key, value in wanted.items():
            assert found[f"{key}_{n}"] == pytest.approx(value, nan_ok=True)
    assert found["dice"] == pytest.approx(np.mean([found[f"dice_{n}"] for n in (1, 2, 3)]))
    once = evaluate(metrics[3:], answer != 0, label != 0, valid)
    assert found["components"] == once["components"]
    assert "components_1" not in found


def test_a_region_in_neither_map_is_in_no_mean() -> None:
    answer = label = np.array([[0, 1, 1, 2]], np.uint8)
    context = MetricContext(regions=unions(BRATS))
    found = evaluate([NamedOptions(name="dice")], answer, label, context=context)
    assert math.isnan(found["dice_3"])
    assert found["dice"] == 1.0
    nothing = evaluate([NamedOptions(name="dice")], answer * 0, label * 0, context=context)
    assert all(math.isnan(v) for v in nothing.values())


def test_labels_of_no_region_are_background() -> None:
    context = MetricContext(regions=((2,),))
    answer, label = np.array([[0, 0, 2, 2]], np.uint8), np.array([[1, 1, 2, 0]], np.uint8)
    found = evaluate(
        [NamedOptions(name="dice"), NamedOptions(name="components")],
        answer,
        label,
        context=context,
    )
    assert found["dice"] == pytest.approx(2 / 3)
    assert "dice_1" not in found  # one region is a mask
    assert found["components_true"] == 1


def test_validation_counts_the_regions_of_decided_labels() -> None:
    config = config_of(BRATS, [1, 2, 3], 4, ignore_label=9)
    rules = PatchRules(config=config, version=2, fail=lambda case: None)
    torch.manual_seed(0)
    logits = torch.randn(3, 3, 8, 8, 8)
    label = torch.randint(0, 4, (3, 1, 8, 8, 8))
    label[:, :, :3] = 9
    scores = PatchScores(rules)
    scores.add(measure(rules, logits, {"label": label, "id": ["a", "b", "c"]}))
    answer = np.stack([postprocess.regions(p, [1, 2, 3]) for p in logits.sigmoid().numpy()])
    truth = label[:, 0].numpy()
    valid = truth != 9
    found = scores.result()
    for n, (p, t) in enumerate(zip(masks(answer), masks(truth), strict=True), 1):
        both = (p & t)[valid].sum()
        assert found[f"val_dice_{n}"] == pytest.approx(2 * both / (p[valid].sum() + t[valid].sum()))


# --- data sets ------------------------------------------------------------------------------------


def data_set(root: Path, labels: dict, **more) -> Path:
    for case in range(4):
        label = np.zeros((1, 16, 16), np.uint8)
        label[:, 2:10, 2:10], label[:, 4:8, 4:8], label[:, 12:14, 12:14] = 1, 2, 3
        image = (label * 60 + np.random.default_rng(case).integers(0, 9, label.shape)).astype(
            np.uint8
        )
        files.write(root / "imagesTr" / f"case{case}_0000.png", image)
        files.write(root / "labelsTr" / f"case{case}.png", label)
    document = {"channel_names": {"0": "MR"}, "labels": labels, **more}
    (root / "dataset.json").write_text(json.dumps(document))
    return root


def dry_run(root: Path, data: dict, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    settings = {
        "name": "x",
        "data": {
            "layout": "nnunet",
            "dims": 2,
            "folds": {"count": 2},
            "patch": {"size": [16, 16]},
            **data,
        },
        "network": {"name": "dynunet", "options": {"channels": [2, 2, 2]}},
        "losses": ["dice"],
    }
    path = root / "c.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    capsys.readouterr()
    code = train.main(["--config", str(path), "--data-dir", str(root), "--dry-run"])
    return code, capsys.readouterr().out


LABELS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


def test_regions_of_a_data_set_are_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = data_set(tmp_path, LABELS, regions_class_order=[1, 2, 3])
    code, out = dry_run(root, {"classes": 4}, capsys)
    assert code == 0
    assert "names regions (whole [1, 2, 3], core [2, 3], enhancing [3])" in out
    snippet = yaml.safe_load(out.partition("To train regions set ")[2].splitlines()[0])["data"]
    assert snippet["ignore_label"] == 4
    code, out = dry_run(root, snippet, capsys)
    assert code == 0
    assert "names regions" not in out
    found = described.regions(root)
    assert found is not None
    assert unions(snippet["regions"]) == tuple(found.members.values())


def test_labels_that_no_region_holds_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = data_set(tmp_path, {"background": 0})
    data = {"classes": 4, "regions": {"a": [1, 2], "b": 2}, "regions_class_order": [1, 2]}
    code, out = dry_run(root, data, capsys)
    assert code == 0
    assert "labels that are in no region of data.regions: 3 (4 voxels)" in out


def test_names_of_the_config_and_of_the_data_set(tmp_path: Path) -> None:
    root = data_set(tmp_path, {"background": 0, "A": 1, "B": 2})
    own = configs.Data(classes=3, class_names={0: "air", 2: "mine"}, channel_names=("T1",))
    assert described.label_names(own, root) == {2: "mine"}
    assert described.label_names(configs.Data(), root) == {1: "A", 2: "B"}
    assert described.channel_names(own, root) == ("T1",)
    assert described.channel_names(configs.Data(), root) == ("MR",)
    assert described.channel_names(configs.Data(), root / "nowhere") == ()


def test_as_many_channel_names_as_channels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = dry_run(
        data_set(tmp_path, {}), {"classes": 4, "channel_names": ["CT", "PET"]}, capsys
    )
    assert code == 2
    assert "names 2 channels (CT, PET), the images have 1" in out


@pytest.mark.parametrize("metric", ["roc_auc", "pr_auc"])
def test_rankings_of_several_regions_are_refused(
    metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"classes": 4, "regions": BRATS, "regions_class_order": [1, 2, 3]}
    root = data_set(tmp_path, {})
    path = root / "c.yaml"
    code, _ = dry_run(root, data, capsys)
    assert code == 0
    words = ["--config", str(path), "--data-dir", str(root), "--dry-run"]
    assert train.main([*words, "--set", f"metrics=[dice, {metric}]"]) == 2
    assert "or one region" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("regions", "example"),
    [
        ({"all": [1, 2, 3], "inner": [2, 3], "core": 3}, "e.g. [1, 2, 3]"),
        ({"left": [1, 2], "right": [2, 3]}, ""),
        ({"inner": 2, "all": [1, 2]}, ""),
    ],
)
def test_a_missing_order_is_proposed_only_where_it_works(
    regions: dict[str, int | list[int]], example: str
) -> None:
    text = " ".join(region_rules.faults(regions, None, 4, None))
    assert "data.regions_class_order is missing" in text
    assert example in text
    assert bool(example) == ("e.g." in text)


def test_names_before_values_say_how_to_write_them() -> None:
    with pytest.raises(ConfigError, match="label values first, then their names"):
        configs.from_dict(
            {
                "name": "x",
                "data": {"class_names": {"LV": 1}},
                "network": "dynunet",
                "losses": ["dice"],
            }
        )
