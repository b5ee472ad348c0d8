"""Fine-tuning: output layers by name, what is loaded, what is frozen, rates by level; and all of
it resumed to the bit.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_resume import BASE, STEPS, Calm, Events, discs, events, fingerprint, words
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from pipeline import config as configs
from pipeline import train
from pipeline.config import ConfigError, InitFrom, Train
from pipeline.inference.models import CheckpointError, load_model, save_model
from pipeline.networks import NETWORKS, HeadedNet, build, parts
from pipeline.networks.outline import declaring, outline
from pipeline.records import Checkpoint, NamedOptions
from pipeline.training import freezing, initial, optim
from pipeline.workflows.checks import trials

__all__ = ["discs", "events"]  # fixtures

WIDTHS = [4, 4, 8, 8, 8]
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {"channels": WIDTHS, "heads": {"mask": 1}}),
    "unet-batch": ("unet", {"channels": WIDTHS, "norm": "batch", "upsample": "pixelshuffle"}),
    "dynunet": ("dynunet", {"channels": [4, 6, 8, 8], "deep_supervision": 2}),
    "dynunet-plain": ("dynunet", {"channels": [4, 6, 8], "residual": True}),
    "dynunet-block": ("dynunet", {"channels": [4, 4, 4], "deep_supervision": 1, "block": 2}),
    "segresnet": ("segresnet", {"filters": 8, "blocks_down": [1, 2, 1], "blocks_up": [1, 1]}),
    "segresnet-deconv": (
        "segresnet",
        {"filters": 8, "blocks_down": [1, 1], "blocks_up": [2], "upsample": "deconv"},
    ),
    "sa_unet": ("sa_unet", {"channels": [4, 8, 8]}),
    "image_unet": ("image_unet", {"base": 4, "depth": 2}),
    "deblur_unet": ("deblur_unet", {"base": 8}),
    "abpn": ("abpn", {"levels": 2, "widths": [4, 8], "refine": 4}),
}
LEVELS = {
    "unet": 9,
    "dynunet": 7,
    "dynunet-plain": 5,
    "segresnet": 5,
    "sa_unet": 5,
    "deblur_unet": 9,
}
FROZEN = ("down", "bottom.0")
IN_DETAIL = {name for name, _ in SMALL.values()}


def small(which: str, outputs: int = 2, inputs: int = 1, **more: Any) -> HeadedNet:
    name, options = SMALL[which]
    options = {**options, **more}
    return build(NamedOptions(name=name, options=options), inputs, outputs, 2)


# --- parts of networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", SMALL)
def test_without_output_layers_the_answer_is_constant(which: str) -> None:
    """So these layers, and no others, make the heads; a network that adds its input returns it."""
    net = small(which, *((1, 1) if which == "abpn" else (2, 1)))
    assert net.outputs
    x = torch.rand(2, 1, 32, 32)
    spread = net(x)["main"].std((2, 3))
    assert which == "abpn" or bool((spread > 0).all())
    for name in net.outputs:
        for weight in net.get_submodule(name).parameters():
            nn.init.zeros_(weight)
    for head, y in net(x).items():
        if which == "abpn" and head == "main":
            torch.testing.assert_close(y, x, rtol=0, atol=2e-5)
        else:
            assert torch.equal(y, torch.zeros_like(y)), head


@pytest.mark.parametrize("which", sorted({*SMALL, *(set(NETWORKS) - IN_DETAIL)}))
def test_levels_and_outputs_hold_every_weight_once(which: str) -> None:
    """Also of networks that this file knows nothing of."""
    dims = 2 if which in SMALL else 3
    named = NamedOptions(name=which)
    net = small(which, 1) if which in SMALL else outline(named, 1, 2, dims)
    if which in LEVELS:
        assert len(net.levels) == LEVELS[which]
    if not net.levels:
        assert which == "abpn" or which not in SMALL
        return
    groups = parts.by_level(net)
    assert all(groups)
    found = [id(p) for group in groups for p in group]
    assert sorted(found) == sorted(id(p) for p in net.parameters())
    for name in net.outputs:
        net.get_submodule(name)
    # From the input on: a network has its first convolution in the first level.
    first = {n for n, p in net.named_parameters() if any(p is q for q in groups[-1])}
    assert (
        any(dict(net.named_parameters())[n].shape[1:2] == (1,) for n in first) or "block" in which
    )


def test_networks_without_levels_or_with_a_gap_are_refused() -> None:
    with pytest.raises(ConfigError, match="ABPN declares no levels"):
        parts.by_level(small("abpn", 1))
    net = small("sa_unet")
    net.levels = net.levels[1:]
    with pytest.raises(ConfigError, match=r"'down\.0\.0\.0\.weight'.* lies in 0 of"):
        parts.by_level(net)
    net.levels = (("down",), ("down.0",), *net.levels)
    with pytest.raises(ConfigError, match="lies in 2 of"):
        parts.by_level(net)
    assert {"sa_unet", "unet"} <= set(declaring("levels", 2))
    assert not {"abpn", "sa_unet"} & set(declaring("levels", 3))


# --- initial weights ------------------------------------------------------------------------------


def saved(folder: Path, which: str, outputs: int = 2, inputs: int = 1, **more: Any) -> InitFrom:
    """A model file of a small network, whose output layers are to stay fresh."""
    name, options = SMALL[which]
    document = {
        "data": {"dims": 2, "patch": {"size": [32, 32]}},
        "network": {"name": name, "options": {**options, **more}},
        "losses": ["ce"],
        "predict": {"overlap": 4},
    }
    config = configs.to_dict(configs.from_dict({"name": "a", **document}))
    torch.manual_seed(7)
    weights = small(which, outputs, inputs, **more).state_dict()
    path = folder / "best_model.safetensors"
    model = Checkpoint(
        config=config, channels=(inputs, outputs), fold=0, epoch=0, score=None, weights=weights
    )
    save_model(path, model)
    return InitFrom(path=str(path), fresh_heads=True)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("which", [k for k in SMALL if k != "abpn"])
def test_all_but_the_output_layers_is_loaded(which: str, classes: int, tmp_path: Path) -> None:
    """Also where the layers have the shape of the file's."""
    wanted = saved(tmp_path, which)
    net = small(which, classes)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    given = load_model(Path(wanted.path), own=False).weights
    listing = initial.load(net, wanted)
    for name, weight in net.state_dict().items():
        is_output = parts.is_within(name, net.outputs)
        assert torch.equal(weight, (before if is_output else given)[name]), name
        assert (f"left fresh (output layer): {name}" in listing) == is_output
    heads = sum(parts.is_within(k, net.outputs) for k in before)
    assert f"{len(before) - heads} of {len(before)} loaded" in listing


@pytest.mark.parametrize(("there", "here"), [(2, 0), (0, 2), (2, 1), (1, 2)])
def test_another_number_of_deep_heads_is_no_mismatch(there: int, here: int, tmp_path: Path) -> None:
    wanted = saved(tmp_path, "dynunet", deep_supervision=there)
    listing = initial.load(small("dynunet", 4, deep_supervision=here), wanted)
    assert listing.count("skipped (output layer)") == 2 * max(there - here, 0)
    assert listing.count("left fresh (output layer)") == 2 * (here + 1)
    strict = dataclasses.replace(wanted, fresh_heads=False)
    with pytest.raises(CheckpointError, match=r"fresh_heads: true"):
        initial.load(small("dynunet", 4, deep_supervision=here), strict)


def test_mismatches_name_their_way_out(tmp_path: Path) -> None:
    wanted = saved(tmp_path, "unet-batch")
    strict = dataclasses.replace(wanted, fresh_heads=False)
    with pytest.raises(
        CheckpointError, match=r"2 weights do not match.*allow_shape.*2 of them are"
    ):
        initial.load(small("unet-batch", 3), strict)
    initial.load(small("unet-batch", 2), strict)
    two = small("unet-batch", 3, inputs=2)
    with pytest.raises(CheckpointError, match=r"allow_shape.*images of 1 channels, this one of 2"):
        initial.load(two, wanted)
    listing = initial.load(two, dataclasses.replace(wanted, allow_shape=True))
    assert listing.count("left fresh (shape") == 1
    with pytest.raises(CheckpointError, match="weights do not match") as error:
        initial.load(small("unet-batch", 2, channels=[4, 4, 8, 8, 16]), wanted)
    assert "fresh_heads" not in str(error.value)
    with pytest.raises(CheckpointError, match="allow_missing") as error:
        initial.load(small("sa_unet"), wanted)
    assert '. The file\'s network is {"name": "unet"' in str(error.value)
    assert "more of this kind" in str(error.value)
    assert len(str(error.value).splitlines()) < 4 * initial.SHOWN
    two.outputs = ()
    with pytest.raises(ConfigError, match=r"fresh_heads: the network UNet does not name.*unet"):
        initial.load(two, wanted)


def test_a_folder_in_place_of_a_model_file_is_answered_with_its_files(tmp_path: Path) -> None:
    wanted = saved(tmp_path, "unet-batch")
    folder = Path(wanted.path).parent
    with pytest.raises(CheckpointError, match=re.escape(f"Here are: {wanted.path}")):
        initial.load(small("unet-batch"), dataclasses.replace(wanted, path=str(folder)))


def test_frozen_weights_that_stay_random_are_named(tmp_path: Path) -> None:
    wanted = saved(tmp_path, "sa_unet")
    network = {"name": "sa_unet", "options": SMALL["sa_unet"][1]}
    found: dict[str, list[str]] = {}
    for part in ("down", "head_main"):
        settings = {"init_from": dataclasses.asdict(wanted), "freeze": [part]}
        config = configs.from_dict({**BASE, "network": network, "train": settings})
        found[part] = [p.text for p in trials.initial_weights(wanted, config, (1, 1))]
    assert found["down"] == []
    (text,) = found["head_main"]
    assert "2 frozen weights are not loaded" in text
    assert "head_main.weight" in text


# --- frozen parts ---------------------------------------------------------------------------------


def test_frozen_weights_by_name() -> None:
    net = small("sa_unet")
    line = freezing.freeze(net, ["down.0", "bottom.1.conv.weight"])
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in net.named_parameters()
        if name.startswith("down.0.") or name == "bottom.1.conv.weight"
    }
    numbers = [sum(p.numel() for p in net.parameters() if p.requires_grad or i) for i in (0, 1)]
    assert f"{numbers[0]:,} of {numbers[1]:,} weights are trained" in line


@pytest.mark.parametrize(
    ("names", "words_"),
    [
        (["dwn"], r"called 'dwn' or begins with 'dwn\.'. Did you mean 'down'"),
        (["down.0", "encoder", "decoder"], r"'encoder'.*nor 'decoder'.*Known: bottom, "),
        (["dow"], "'dow'"),
        (["head_main.weigh"], "'head_main.weigh'"),
        (["down", "bottom", "enlarge", "up", "head_main"], "all weights of the network"),
    ],
)
def test_wrong_names_are_refused(names: list[str], words_: str) -> None:
    with pytest.raises(ConfigError, match=words_):
        parts.frozen_by(small("sa_unet"), names)


def test_frozen_statistics_stay(tmp_path: Path) -> None:
    """In training, and where those of averaged weights are recomputed; dropout goes on."""
    net = small("sa_unet")
    freezing.train_mode(net, ["down"])
    norms = {n: m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert all(norm.training != name.startswith("down.") for name, norm in norms.items())
    assert all(m.training for m in net.modules() if not isinstance(m, nn.BatchNorm2d))
    nn.init.constant_(net.get_buffer("down.0.0.2.running_mean"), 0.25)
    average = AveragedModel(net)
    before = {k: v.clone() for k, v in average.module.state_dict().items()}
    with freezing.kept_statistics(average.module, ["down"]):
        update_bn([torch.rand(2, 1, 16, 16)], average)
    for name, value in average.module.state_dict().items():
        moved = "running" in name and not name.startswith("down.")
        assert torch.equal(value, before[name]) != moved or "num_batches" in name, name
    assert list(average.module.state_dict()) == list(before)


# --- rates by level -------------------------------------------------------------------------------

SCHEDULES = ["cosine_restarts", "cosine", "step", "plateau", "poly", "one_cycle", "constant"]


def rates(settings: Train, net: nn.Module) -> list[list[float]]:
    made, schedule = optim.make_optimizer(settings, net)
    out = []
    for epoch in range(settings.epochs):
        out.append([group["lr"] for group in made.param_groups])
        made.step()
        optim.step_schedule(schedule, float(epoch % 3))
    optim.set_rates(made, 0.5)
    return [*out, [group["lr"] for group in made.param_groups]]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_keeps_the_factors(schedule: str) -> None:
    """The output layers have the rates of a run without decay, to the bit."""
    options = {"min_lr": 1e-3} if "cosine" in schedule else {}
    options |= {"every": 4} if schedule == "step" else {}
    options |= {"patience": 1, "min_lr": 0.02} if schedule == "plateau" else {}
    named = NamedOptions(name=schedule, options=options)
    plain = Train(
        epochs=12,
        optimizer=NamedOptions(name="sgd", options={"lr": 0.1}),
        schedule=named,
        average=None,
    )
    net = small("sa_unet")
    found = rates(dataclasses.replace(plain, layer_decay=0.8), net)
    assert [row[0] for row in found] == [row for (row,) in rates(plain, net)]
    assert schedule == "constant" or len({row[0] for row in found}) > 2
    for row in found:
        assert row == pytest.approx([row[0] * 0.8**n for n in range(6)], rel=1e-12)


def test_groups_leave_out_what_is_frozen_and_null_makes_one() -> None:
    net = small("sa_unet")
    (only,) = optim.make_optimizer(Train(), net)[0].param_groups
    assert optim.FACTOR not in only
    assert [id(p) for p in only["params"]] == [id(p) for p in net.parameters()]
    freezing.freeze(net, ["head_main", "down.0", "up.0.0.0.weight"])
    settings = Train(layer_decay=0.5, optimizer=NamedOptions(name="adam", options={"lr": 1.0}))
    groups = optim.make_optimizer(settings, net)[0].param_groups
    assert [group["lr"] for group in groups] == [0.5, 0.25, 0.125, 0.0625]
    count = sum(p.numel() for group in groups for p in group["params"])
    assert count == sum(p.numel() for p in net.parameters() if p.requires_grad)


def problems(**more: Any) -> list[str]:
    config = configs.from_dict({**BASE, "name": "x", **more})
    network = trials.outline(config, (1, 1))
    return [p.text for p in (*trials.parts(config, network), *trials.optimizer(config))]


def test_checks_name_what_cannot_be_used() -> None:
    (text,) = problems(train={"freeze": ["down"], "layer_decay": 0.7})
    assert "train.freeze without train.init_from: random weights" in text
    (_, text) = problems(train={"freeze": ["encoder"]})
    assert text.startswith("train.freeze: no weight of the network is called 'encoder'")
    network = {"name": "abpn", "options": {"levels": 1, "widths": [4], "refine": 4}}
    (text,) = problems(network=network, train={"layer_decay": 0.7})
    assert "'abpn' declares no levels" in text
    assert "sa_unet" in text


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file whose batch norms have statistics of their own."""
    net = build(NamedOptions(**BASE["network"]), 1, 1, 2)
    net(torch.rand(4, 1, 32, 32))
    path = tmp_path_factory.mktemp("pretrained") / "best_model.safetensors"
    config = configs.to_dict(configs.from_dict(BASE))
    model = Checkpoint(
        config=config, channels=(1, 1), fold=0, epoch=0, score=None, weights=net.state_dict()
    )
    save_model(path, model)
    return path


def tuned(folder: Path, model: Path, **more: Any) -> Path:
    """A config that fine-tunes at another patch size."""
    patch = {**BASE["data"]["patch"], "size": [24, 24]}
    settings = {
        "epochs": 3,
        "optimizer": {"name": "adam", "options": {"lr": 0.01}},
        "schedule": {"name": "cosine"},
        "average": {"start": 1, "lr": 5e-3},
        "preview_every": 0,
        "init_from": {"path": str(model), "fresh_heads": True},
        "freeze": list(FROZEN),
        "layer_decay": 0.8,
        **more,
    }
    path = folder / "tuned.yaml"
    document = {**BASE, "data": {**BASE["data"], "patch": patch}, "train": settings}
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def calm(
    discs: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Calm]:
    """An undisturbed run of fine-tuning, made once."""
    made: list[Calm] = []

    def of() -> Calm:
        if not made:
            folder = tmp_path_factory.mktemp("calm")
            with pytest.MonkeyPatch.context() as patch:
                counted = Events(patch)
                assert counted.run(words(tuned(folder, pretrained), discs, folder / "run")) == 0
            made.append((fingerprint(folder / "run"), counted.done, folder / "run"))
        return made[0]

    return of


def test_a_fine_tuned_fold_keeps_what_is_frozen(calm: Callable[[], Calm], pretrained: Path) -> None:
    run = calm()[2]
    given = load_model(pretrained).weights
    for kind in ("best", "swa"):
        weights = load_model(run / "fold_0" / f"{kind}_model.safetensors").weights
        for name, value in weights.items():
            if "num_batches" not in name:
                assert torch.equal(value, given[name]) == parts.is_within(name, FROZEN), name
    log = [json.loads(line) for line in (run / "fold_0" / "log.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in log] == [0.01, 5e-3, 5e-3]
    (text,) = (path.read_text() for path in run.rglob("train*.log"))
    assert "weights are trained" in text
    assert "left fresh (output layer): head_main.weight" in text


@pytest.mark.parametrize("until", [("step", 2), ("step", 2 * STEPS + 3)])
def test_fine_tuning_goes_on_to_the_bit(
    until: tuple[str, int],
    calm: Callable[[], Calm],
    pretrained: Path,
    discs: Path,
    tmp_path: Path,
    events: Events,
) -> None:
    expected = calm()[0]
    events.done.clear()
    arguments = words(tuned(tmp_path, pretrained), discs, tmp_path / "run")
    assert events.run(arguments, until) == 75
    assert events.run(arguments) == 0
    assert fingerprint(tmp_path / "run") == expected


def test_wrong_parts_are_found_before_training(
    pretrained: Path, discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = words(tuned(tmp_path, pretrained), discs, tmp_path / "run")
    assert train.main([*arguments, "--set", "train.freeze=[encoder]"]) == 2
    assert "train.freeze: no weight of the network is called 'encoder'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "fold_0").exists()


@pytest.mark.parametrize("section", ["Own splits", "Fine-tuning"])
def test_the_examples_of_the_page_can_be_used(section: str) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "nnunet.md").read_text("utf-8")
    text = page.split(f"## {section}\n")[1].split("\n## ")[0]
    (example,) = (block.split("```")[0] for block in text.split("```yaml\n")[1:])
    config = configs.from_dict(yaml.safe_load(example))
    channels = (1, config.data.classes)
    assert list(trials.parts(config, trials.outline(config, channels))) == []
    assert list(trials.optimizer(config)) == []
