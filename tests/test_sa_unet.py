"""SA-UNet and DropBlock: equal to slow literal references, drawn as published, the published size,
the same bits after a stop.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from pipeline import train
from pipeline.config import ConfigError
from pipeline.networks import HeadedNet, build, parameters
from pipeline.networks.dropblock import DropBlock, blocks, drop
from pipeline.networks.sa_unet import Doubling, SpatialAttention
from pipeline.records import NamedOptions
from pipeline.training import loop
from pipeline.training.job import FoldJob
from pipeline.training.state import TrainingState, set_training_progress


def sa_unet(
    in_channels: int = 3, out_channels: int = 1, dims: int = 2, **options: Any
) -> HeadedNet:
    return build(NamedOptions(name="sa_unet", options=options), in_channels, out_channels, dims)


def draw(keep: float, shape: tuple[int, ...], block: int = 7, seed: int = 0) -> Tensor:
    """What a DropBlock in training makes of ones."""
    torch.manual_seed(seed)
    return DropBlock(keep, block).train()(torch.ones(shape))


# --- DropBlock ------------------------------------------------------------------------------------


def literal_dropblock(x: np.ndarray, draws: np.ndarray, keep: float, block: int) -> np.ndarray:
    """Ghiasi et al. with the exact gamma, unit by unit: a seed at the centre of an odd block, only
    where the block fits.
    """
    batch, channels, height, width = x.shape
    gamma = (1 - keep) / block**2 * (height * width) / ((height - block + 1) * (width - block + 1))
    half, mask = block // 2, np.ones_like(x)
    for b, c, i, j in np.ndindex(batch, channels, height, width):
        fits = half <= i < height - half and half <= j < width - half
        if fits and draws[b, c, i - half, j - half] < gamma:
            mask[b, c, i - half : i + half + 1, j - half : j + half + 1] = 0
    return x * mask * (mask.size / mask.sum())


@pytest.mark.parametrize(
    ("size", "block", "keep"),
    [((20, 17), 7, 0.82), ((9, 30), 5, 0.5), ((7, 8), 7, 0.9), ((6, 6), 1, 0.7)],
)
def test_dropblock_is_the_literal_one(size: tuple[int, int], block: int, keep: float) -> None:
    shape = (2, 5, *size)
    x = np.random.default_rng(1).normal(size=shape)
    torch.manual_seed(4)
    draws = torch.rand(2, 5, size[0] - block + 1, size[1] - block + 1).numpy()
    torch.manual_seed(4)
    got = DropBlock(keep, block).train()(torch.tensor(x, dtype=torch.float32)).numpy()
    wanted = literal_dropblock(x, draws, keep, block)
    assert (wanted == 0).any()
    np.testing.assert_allclose(got, wanted, rtol=2e-6)


@settings(deadline=None, max_examples=25)
@given(
    size=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    block=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_blocks_are_max_pooling_of_seeds(size: list[int], block: int, seed: int) -> None:
    """The textbook form: seeds at the centres, max pooling of the block's edge with its whole reach
    of padding; 2D and 3D.
    """
    assume(min(size) >= block)
    places = [n - block + 1 for n in size]
    seeds = torch.from_numpy(np.random.default_rng(seed).random((2, 2, *places)) < 0.1)
    pool = functional.max_pool2d if len(size) == 2 else functional.max_pool3d
    wanted = pool(
        functional.pad(seeds.float(), [block - 1] * 2 * len(size)), block, stride=1
    ).bool()
    assert torch.equal(blocks(seeds, block), wanted)


@settings(deadline=None, max_examples=25)
@given(height=st.integers(7, 40), width=st.integers(7, 40), seed=st.integers(0, 999))
def test_blocks_are_whole_and_never_cut_by_the_border(height: int, width: int, seed: int) -> None:
    """A union of whole squares is its own opening by that square; a square that the border cuts
    would be opened away.
    """
    holes = (draw(0.7, (1, 4, height, width), seed=seed) == 0).numpy()[0]
    for hole in holes:
        np.testing.assert_array_equal(ndimage.binary_opening(hole, np.ones((7, 7))), hole)


def test_a_lone_seed_drops_49_units() -> None:
    sizes = [int((draw(0.995, (1, 1, 40, 40), seed=n) == 0).sum()) for n in range(60)]
    assert set(sizes) >= {0, 49}
    assert min(s for s in sizes if s) == 49


@pytest.mark.parametrize("keep", [0.9, 0.6])
def test_the_kept_share_is_that_of_independent_seeds(keep: float) -> None:
    """A unit stays if none of the seeds that reach it fires: (1 - gamma)^n, n of them, counted by
    convolution.
    """
    size = (24, 31)
    gamma = (1 - keep) / 49 * np.prod(size) / np.prod([n - 6 for n in size])
    reach = [np.convolve(np.ones(n - 6), np.ones(7)) for n in size]
    wanted = (1 - gamma) ** np.outer(*reach)
    kept = (draw(keep, (200, 40, *size)) != 0).double().mean((0, 1)).numpy()
    assert np.abs(kept - wanted).max() < 0.03  # 8000 draws a unit: five standard deviations
    assert kept.mean() == pytest.approx(wanted.mean(), abs=0.003)
    assert keep < kept.mean() < keep + (1 - keep) / 2  # overlaps keep somewhat more than asked


def test_the_mean_is_preserved() -> None:
    assert draw(0.7, (4, 8, 30, 30)).mean().item() == pytest.approx(
        1, abs=1e-5
    )  # in each draw, for ones
    torch.manual_seed(0)
    x, layer = torch.rand(4, 16, 24, 24), DropBlock(0.8, 7).train()
    mean = torch.stack([layer(x) for _ in range(60)]).mean(0)
    assert mean.mean().item() == pytest.approx(x.mean().item(), rel=0.005)


def test_channels_and_samples_are_drawn_alone() -> None:
    """Not Dropout2d, which drops whole channels, and not one mask for all channels."""
    holes = (draw(0.8, (8, 16, 40, 40)) == 0).double()
    shares = holes.mean((2, 3))
    assert ((shares > 0) & (shares < 1)).float().mean() > 0.95
    correlation = np.corrcoef(holes.flatten(0, 1).flatten(1).numpy())
    assert np.abs(correlation[~np.eye(128, dtype=bool)]).mean() < 0.2
    assert correlation[~np.eye(128, dtype=bool)].max() < 0.9


def test_evaluation_and_a_full_keep_are_the_identity() -> None:
    x = torch.randn(2, 3, 20, 20)
    assert torch.equal(DropBlock(0.5, 7).eval()(x), x)
    assert torch.equal(DropBlock(1.0, 7).train()(x), x)


@pytest.mark.parametrize("size", [(6, 40), (40, 6), (1, 1), (6, 6)])
def test_a_map_smaller_than_the_block_passes(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    assert torch.equal(DropBlock(0.1, 7).train()(x), x)


def test_a_map_of_one_block_has_one_seed() -> None:
    shares = (draw(0.7, (40, 50, 7, 7)) != 0).double().mean((2, 3))
    assert set(shares.flatten().tolist()) == {0.0, 1.0}
    assert shares.mean().item() == pytest.approx(0.7, abs=0.05)


def test_nothing_left_is_zero_and_finite() -> None:
    x = torch.randn(2, 3, 7, 7, requires_grad=True)
    torch.manual_seed(0)
    y = DropBlock(1e-9, 7).train()(x)
    y.sum().backward()
    assert not y.any()
    assert x.grad is not None
    assert not x.grad.any()


def test_the_gradient_is_the_mask_times_the_factor() -> None:
    x, holes = (
        torch.randn(1, 2, 9, 9, dtype=torch.float32),
        torch.zeros(1, 2, 9, 9, dtype=torch.bool),
    )
    holes[0, 1, 2:7, 1:8] = True
    x.requires_grad_()
    drop(x, holes).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (~holes).float() * (162 / (162 - 35)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_scaled_in_float32(dtype: torch.dtype) -> None:
    """The factor 1.0063 rounds to 1.0078 in bfloat16: as numbers, the maps would gain 0.15 %."""
    x, holes = torch.randn(1, 1, 40, 40).to(dtype), torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    holes[..., :2, :5] = True
    y = drop(x, holes)
    assert y.dtype == dtype
    assert torch.equal(y, (x.float() * (~holes) * (1600 / 1590)).to(dtype))


def test_volumes_drop_cubes() -> None:
    holes = (draw(0.8, (1, 2, 12, 11, 10), block=3) == 0).numpy()[0]
    assert holes.any()
    for hole in holes:
        np.testing.assert_array_equal(ndimage.binary_opening(hole, np.ones((3, 3, 3))), hole)


# --- the schedule ---------------------------------------------------------------------------------


def test_the_schedule_is_linear_and_ends_exactly() -> None:
    layer = DropBlock(0.82, 7, "linear")
    assert layer.now == 1
    for share in (0.0, 0.25, 0.5, 1.0, 0.1):  # any order: a function of the share, not of history
        layer.progress(share)
        assert layer.now == pytest.approx(1 - 0.18 * share, abs=1e-12)
    layer.progress(1)
    assert layer.now == 0.82
    constant = DropBlock(0.82, 7)
    constant.progress(0.3)
    assert constant.now == 0.82
    with pytest.raises(ValueError, match="share"):
        layer.progress(1.2)


def test_the_schedule_changes_what_is_dropped() -> None:
    layer, kept = DropBlock(0.5, 7, "linear").train(), []
    for share in (0, 0.5, 1):
        torch.manual_seed(0)
        layer.progress(share)
        kept.append((layer(torch.ones(4, 8, 30, 30)) != 0).float().mean().item())
    assert kept[0] == 1 > kept[1] > kept[2]


def test_the_value_is_not_saved() -> None:
    net = sa_unet(schedule="linear")
    assert not [k for k in net.state_dict() if k.endswith("now")]
    assert set(net.state_dict()) == set(sa_unet().state_dict())


@pytest.mark.parametrize(("epochs", "wanted"), [(5, [1, 0.95, 0.9, 0.85, 0.8]), (1, [1])])
def test_the_loop_tells_every_part(epochs: int, wanted: list[float]) -> None:
    net = sa_unet(channels=[4, 4], keep=0.8, schedule="linear")
    parts = [m for m in net.modules() if isinstance(m, DropBlock)]
    for epoch, keep in enumerate(wanted):
        set_training_progress(net, epoch, epochs)
        assert [p.now for p in parts] == pytest.approx([keep] * 6)


# --- the network ----------------------------------------------------------------------------------


def test_it_has_the_published_size() -> None:
    """0.537 M weights; Keras' own count of 538,707 adds the two running statistics of each
    normalised channel.
    """
    net = sa_unet()
    assert parameters(net) == 537_299
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert parameters(net) + sum(2 * m.num_features for m in norms) == 538_707
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


@pytest.mark.parametrize("size", [(592, 592), (1, 1), (5, 7), (101, 67), (8, 8), (64, 3)])
def test_every_size_comes_back(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for mode in (True, False):
        if mode and size[0] > 500:
            continue
        with torch.no_grad():
            y = sa_unet(out_channels=2).train(mode)(torch.randn(1, 3, *size))
        assert set(y) == {"main"}
        assert y["main"].shape == (1, 2, *size)
        assert torch.isfinite(y["main"]).all()


def test_the_order_of_a_block() -> None:
    chains = [
        m
        for m in sa_unet().modules()
        if isinstance(m, nn.Sequential) and isinstance(m[0], nn.Conv2d)
    ]
    assert len(chains) == 14
    for chain in chains:
        assert [type(m) for m in chain] == [nn.Conv2d, DropBlock, nn.BatchNorm2d, nn.ReLU]
        assert isinstance(chain[0], nn.Conv2d)
        assert chain[0].kernel_size == (3, 3)
        assert chain[0].bias is not None


def test_the_norm_sees_the_holes() -> None:
    """Behind the norm each channel has mean 0 and variance 1, and its holes hold one value that is
    not 0.
    """
    net, seen = sa_unet(keep=0.6).train(), {}
    block = net.get_submodule("down.0.0")
    block.get_submodule("1").register_forward_hook(
        lambda _m, _x, y: seen.update(holes=y.detach() == 0)
    )
    block.get_submodule("2").register_forward_hook(
        lambda _m, _x, y: seen.update(normed=y.detach().clone())
    )
    torch.manual_seed(0)
    net(torch.randn(2, 3, 64, 64) + 1)
    holes, normed = seen["holes"], seen["normed"]
    assert normed.mean((0, 2, 3)).abs().max() < 1e-4
    assert (normed.var((0, 2, 3)) - 1).abs().max() < 0.05
    for c in range(16):
        values = normed[:, c][holes[:, c]]
        assert values.numel() > 0
        assert values.max() == values.min() != 0


def literal_attention(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """One sample ``(C, Y, X)``, place by place."""
    channels, height, width = x.shape
    half, out = weight.shape[-1] // 2, np.empty_like(x)
    for i, j in np.ndindex(height, width):
        total = 0.0
        for di, dj in np.ndindex(weight.shape[1:]):
            y, z = i + di - half, j + dj - half
            if 0 <= y < height and 0 <= z < width:
                total += weight[0, di, dj] * (sum(x[:, y, z]) / channels) + weight[1, di, dj] * max(
                    x[:, y, z]
                )
        out[:, i, j] = x[:, i, j] / (1 + np.exp(-total))
    return out


@pytest.mark.parametrize("kernel", [7, 3])
def test_attention_is_the_literal_one(kernel: int) -> None:
    torch.manual_seed(0)
    attention, x = SpatialAttention(kernel).double(), torch.randn(1, 5, 9, 11, dtype=torch.float64)
    wanted = literal_attention(x[0].numpy(), attention.conv.weight[0].detach().numpy())
    np.testing.assert_allclose(attention(x)[0].detach().numpy(), wanted, rtol=1e-9)


def test_attention_multiplies_without_residual_and_only_at_the_bottom() -> None:
    net = sa_unet()
    assert [n for n, m in net.named_modules() if isinstance(m, SpatialAttention)] == ["bottom.1"]
    attention = net.get_submodule("bottom.1")
    assert {k: tuple(v.shape) for k, v in attention.state_dict().items()} == {
        "conv.weight": (1, 2, 7, 7)
    }
    nn.init.zeros_(attention.get_parameter("conv.weight"))
    x = torch.randn(1, 128, 9, 9)
    assert torch.equal(attention(x), x / 2)


def test_doubling_reaches_forward() -> None:
    """A lone 1 at place i reaches 2i, 2i + 1 and 2i + 2, the last cut at the far end: Keras'
    ``same``.
    """
    layer = Doubling(1, 1)
    nn.init.ones_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)  # pyright: ignore[reportArgumentType] - there is one
    for place in range(4):
        x = torch.zeros(1, 1, 4, 5)
        x[0, 0, place, 0] = 1
        y = layer(x).detach()
        assert y.shape == (1, 1, 8, 10)
        assert y[0, 0, :, 0].nonzero().flatten().tolist() == [
            n for n in (2 * place, 2 * place + 1, 2 * place + 2) if n < 8
        ]


def test_it_starts_as_keras_does() -> None:
    torch.manual_seed(0)
    net = sa_unet()
    for m in net.modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and m.bias is not None:
            assert not m.bias.any()
            limit = (6 / (m.weight[0, 0].numel() * (m.in_channels + m.out_channels))) ** 0.5
            assert m.weight.abs().max() <= limit
            assert m.weight.numel() < 400 or m.weight.abs().max() > 0.95 * limit
    stds = torch.stack(
        [sa_unet(channels=[2, 2]).get_parameter("bottom.1.conv.weight").std() for _ in range(20)]
    )
    assert stds.mean().item() == pytest.approx((2 / 98) ** 0.5, rel=0.1)


def literal_network(net: HeadedNet, x: Tensor) -> Tensor:
    """The published layers in their order, written out, for evaluation."""
    w = net.state_dict()

    def block(x: Tensor, name: str) -> Tensor:
        x = functional.conv2d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], padding=1)
        mean, var, gain, shift = (
            w[f"{name}.2.{k}"][:, None, None]
            for k in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-3).sqrt() * gain + shift).clamp(min=0)

    def up(x: Tensor, skip: Tensor, n: int) -> Tensor:
        x = functional.conv_transpose2d(
            x, w[f"enlarge.{n}.conv.weight"], w[f"enlarge.{n}.conv.bias"], stride=2
        )
        x = torch.cat([x[:, :, : skip.shape[2], : skip.shape[3]], skip], 1)
        return block(block(x, f"up.{n}.0"), f"up.{n}.1")

    a = block(block(x, "down.0.0"), "down.0.1")
    b = block(block(functional.max_pool2d(a, 2), "down.1.0"), "down.1.1")
    c = block(block(functional.max_pool2d(b, 2), "down.2.0"), "down.2.1")
    d = block(functional.max_pool2d(c, 2), "bottom.0")
    both = torch.stack([d.mean(1), d.max(1).values], 1)
    d = d * torch.sigmoid(functional.conv2d(both, w["bottom.1.conv.weight"], padding=3))
    y = up(up(up(block(d, "bottom.2"), c, 0), b, 1), a, 2)
    return functional.conv2d(y, w["head_main.weight"], w["head_main.bias"])


def test_the_whole_is_its_layers_in_order() -> None:
    torch.manual_seed(0)
    net, x = sa_unet().double(), torch.randn(2, 3, 56, 64, dtype=torch.float64)
    for _ in range(3):
        net.train()(x)  # statistics other than 0 and 1
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x)["main"], literal_network(net, x))


def test_the_gradient_reaches_every_weight() -> None:
    torch.manual_seed(0)
    net = sa_unet(keep=0.8).train()
    net(torch.randn(2, 3, 64, 64))["main"].square().mean().backward()
    assert [
        k
        for k, p in net.named_parameters()
        if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()
    ] == []


def test_it_trains_under_autocast() -> None:
    torch.manual_seed(0)
    net = sa_unet(channels=[8, 16, 16], keep=0.8).train()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(torch.randn(2, 3, 64, 64))["main"]
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_draw_follows_the_seed_and_prediction_has_none() -> None:
    net, x = sa_unet(keep=0.7), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first, again, other = (_seeded(copy.deepcopy(net).train(), x, seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(_seeded(net.eval(), x, 1), _seeded(net.eval(), x, 2))


def _seeded(net: HeadedNet, x: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return net(x)["main"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dims": 3}, "data.dims: 2"),
        ({"channels": [16]}, "at least two"),
        ({"channels": 16}, "channels"),
        ({"keep": 0}, "keep is 0"),
        ({"keep": 1.1}, "keep is 1.1"),
        ({"keep": True}, "keep is True"),
        ({"block": 0}, "block is 0"),
        ({"block": 7.0}, "block is 7.0"),
        ({"schedule": "cosine"}, "constant, linear"),
        ({"kernel": 4}, "odd"),
        ({"momentum": 0}, "momentum"),
        ({"momentum": 1}, "momentum"),
        ({"keep_prob": 0.9}, "keep"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        sa_unet(**options)


# --- training -------------------------------------------------------------------------------------


SYSTEM: dict[str, Any] = {
    "name": "bars",
    "task": "labels",
    "data": {
        "dims": 2,
        "layout": "folders",
        "folds": {"count": 2},
        "normalise": {"name": "range"},
        "patch": {"size": [24, 24], "foreground": None, "batch": 2},
    },
    "network": {
        "name": "sa_unet",
        "options": {"channels": [4, 8], "keep": 0.6, "block": 5, "schedule": "linear"},
    },
    "losses": ["ce"],
    "train": {
        "epochs": 4,
        "optimizer": {"name": "adam", "options": {"lr": 0.01}},
        "average": {"start": 1, "lr": None},
    },
}


@pytest.fixture
def bars(tmp_path: Path) -> list[str]:
    """Four pictures of bars and the command that trains on them."""
    rng = np.random.default_rng(0)
    for n in range(4):
        label = np.zeros((30, 34), np.uint8)
        label[:, 5 * n + 3 : 5 * n + 7] = 1
        noisy = np.clip(80 + 90 * label + rng.normal(0, 10, label.shape), 0, 255).astype(np.uint8)
        for folder, array in (("images", noisy), ("masks", label)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "data" / folder / f"c{n}.png")
    path = tmp_path / "bars.yaml"
    path.write_text(json.dumps(SYSTEM))
    return ["--config", str(path), "--data-dir", str(tmp_path / "data"), "--fold", "0"]


def models(run: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in (run / "fold_0").glob("*.safetensors")
    }


def test_an_interrupted_run_ends_with_the_same_bits(
    bars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the second epoch, and again after the last but before the averaged weights are
    finished.
    """
    assert train.main([*bars, "--out", str(tmp_path / "calm")]) == 0
    save = loop.save

    def save_and_fail(job: FoldJob, state: TrainingState) -> None:
        save(job, state)
        if state.epoch in (2, 4):
            raise RuntimeError("power cut")

    monkeypatch.setattr(loop, "save", save_and_fail)
    for _ in range(2):
        assert train.main([*bars, "--out", str(tmp_path / "rough")]) == 1
    monkeypatch.setattr(loop, "save", save)
    assert train.main([*bars, "--out", str(tmp_path / "rough")]) == 0
    assert set(models(tmp_path / "calm")) == {"best_model.safetensors", "swa_model.safetensors"}
    assert models(tmp_path / "rough") == models(tmp_path / "calm")


def test_training_follows_the_schedule(
    bars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[float] = []
    original = loop.training_step

    def spy(job: FoldJob, state: TrainingState, step: int, batch: dict) -> bool:
        values.append(
            round(next(m.now for m in state.network.modules() if isinstance(m, DropBlock)), 6)
        )
        return original(job, state, step, batch)

    monkeypatch.setattr(loop, "training_step", spy)
    assert train.main([*bars, "--out", str(tmp_path / "run")]) == 0
    assert (
        sorted(set(values), reverse=True)
        == values[:: len(values) // 4]
        == pytest.approx([1, 1 - 0.4 / 3, 1 - 0.8 / 3, 0.6], abs=1e-6)
    )
