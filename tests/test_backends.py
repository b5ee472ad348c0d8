"""ONNX Runtime and OpenVINO beside torch: the same numbers at every size, exports that are kept and
proved, refusals that help.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import model_from_yaml
from torch import nn

from pipeline import config as configs
from pipeline import files, networks, predict
from pipeline.inference import backends
from pipeline.inference import soft as softs
from pipeline.inference.models import load_models, save_model
from pipeline.inference.sliding_window import network_ensemble
from pipeline.networks import HeadedNet, receptive
from pipeline.records import Checkpoint, NamedOptions

pytest.importorskip("onnx", reason='needs pip install -e ".[cpu]"')

PARITY = 1e-4
NETWORKS = {
    "unet 2D": (
        NamedOptions(name="unet", options={"channels": [4, 8, 8, 16, 16], "heads": {"mask": 1}}),
        (3, 1),
        2,
    ),
    "unet 3D": (NamedOptions(name="unet", options={"channels": [4, 4, 8, 8, 16]}), (1, 1), 3),
    "unet 3D, batch norm, pixelshuffle": (
        NamedOptions(
            name="unet",
            options={"channels": [4, 4, 8, 8, 8], "norm": "batch", "upsample": "pixelshuffle"},
        ),
        (2, 3),
        3,
    ),
    "dynunet 3D, blocks": (
        NamedOptions(
            name="dynunet", options={"channels": [8, 16, 32], "block": 2, "deep_supervision": 1}
        ),
        (1, 1),
        3,
    ),
    "dynunet 2D, anisotropic": (
        NamedOptions(
            name="dynunet",
            options={"channels": [4, 8, 8], "strides": [1, [2, 1], 2], "residual": True},
        ),
        (1, 3),
        2,
    ),
    "plain_unet 3D, anisotropic": (
        NamedOptions(
            name="plain_unet",
            options={
                "channels": [4, 6, 8, 8],
                "kernel": [[1, 3, 3], 3, 3, 3],
                "strides": [1, [1, 2, 2], 2, [1, 3, 2]],
            },
        ),
        (1, 3),
        3,
    ),
    "resenc_unet 2D": (
        NamedOptions(
            name="resenc_unet", options={"channels": [4, 8, 8], "deep_supervision": False}
        ),
        (2, 3),
        2,
    ),
    "mednext 2D": (NamedOptions(name="mednext"), (1, 2), 2),
    "segresnet 3D": (NamedOptions(name="segresnet", options={"filters": 8}), (1, 1), 3),
    "sa_unet": (NamedOptions(name="sa_unet", options={"channels": [4, 8, 16]}), (3, 1), 2),
    "image_unet": (NamedOptions(name="image_unet", options={"base": 4}), (3, 3), 2),
    "image_unet, corners free": (
        NamedOptions(
            name="image_unet",
            options={
                "base": 8,
                "align_corners": False,
                "norm": {"name": "group", "options": {"num_groups": 2}},
            },
        ),
        (3, 3),
        2,
    ),
    "deblur_unet": (
        NamedOptions(name="deblur_unet", options={"base": 8, "groups": 4, "residual": True}),
        (3, 3),
        2,
    ),
    "abpn": (NamedOptions(name="abpn", options={"widths": [8, 8, 16], "refine": 4}), (3, 3), 2),
}
SIZES = {
    2: [(7, 13), (16, 16), (33, 50), (64, 40), (97, 131)],
    3: [(5, 7, 19), (16, 16, 16), (17, 18, 19), (32, 16, 24), (20, 33, 19)],
}


def installed(backend: str) -> str:
    for name in backends.BACKENDS[backend].packages:
        pytest.importorskip(name, reason='needs pip install -e ".[cpu]"')
    return backend


@pytest.fixture(params=list(backends.BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    return installed(request.param)


def network(name: str) -> HeadedNet:
    """Fresh weights, and running statistics as if it had been trained."""
    part, channels, dims = NETWORKS[name]
    torch.manual_seed(3)
    net = networks.build(part, *channels, dims).train()
    with torch.no_grad():
        for _ in range(2):
            net(torch.randn((2, channels[0], *[3 * d for d in net.divisor])))
    return net.eval()


def noise(*shape: int) -> torch.Tensor:
    """Not a flat image: where a group norm of one channel meets a constant map, it divides rounding
    errors by sqrt(eps), layer after layer, and torch itself is far from what it computes in
    float64.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def difference(one: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    """Greatest difference over all heads of ``other``."""
    with torch.inference_mode():
        a, b = one(x), other(x)
    assert "mask" in b or "mask" not in a
    assert all(b[head].shape == a[head].shape and b[head].dtype == torch.float32 for head in b)
    return max(float((a[head] - b[head]).abs().max()) for head in b)


@pytest.mark.parametrize("name", NETWORKS)
def test_parity_at_five_sizes(name: str) -> None:
    """One export for all sizes, multiples of the divisor or not, and for batches."""
    net, (_, (channels, _), dims) = network(name), NETWORKS[name]
    content = backends.export(net, channels)
    for backend in backends.BACKENDS:
        exported = backends.proved(content, net, channels, installed(backend))
        for n, size in enumerate(SIZES[dims]):
            x = noise(1 + n % 2, channels, *size)
            assert difference(net, exported, x) <= PARITY, (backend, size)


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3))
def test_parity_at_any_size(height: int, width: int, batch: int) -> None:
    net, exported = _deblur()
    x = noise(batch, 3, height, width)
    assert difference(net, exported, x) <= PARITY


_made: list[tuple[nn.Module, nn.Module]] = []


def _deblur() -> tuple[nn.Module, nn.Module]:
    if not _made:
        net = network("deblur_unet")
        _made.append((net, backends.proved(backends.export(net, 3), net, 3, installed("onnx"))))
    return _made[0]


class Branching(HeadedNet):
    """A network that tracing cannot follow: what it does depends on the size."""

    def __init__(self) -> None:
        super().__init__(("main",), (4, 4))
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def run(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"main": self.layer(x) * (1 if x.shape[2] == x.shape[3] else 2)}


def test_an_export_with_other_predictions_is_refused(backend: str) -> None:
    net = Branching().eval()
    with pytest.raises(backends.BackendError, match="--backend torch"):
        backends.proved(backends.export(net, 1), net, 1, backend)


def test_an_export_leaves_its_network_alone() -> None:
    net = network("sa_unet").train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    backends.export(net, 3)
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


IMAGES = """
name: sharper
task: image
data:
  folders: {image: src, target: dst}
  dims: 2
  normalise: {name: range, options: {low: 0, high: null, to: [-1, 1]}}
  patch: {size: [32, 32], foreground: null}
network: {name: deblur_unet, options: {base: 8, groups: 4}}
losses: [{name: l1, target: target}]
predict: {overlap: 8}
"""
RETOUCH = IMAGES.replace(
    "deblur_unet, options: {base: 8, groups: 4}", "abpn, options: {widths: [8, 8], refine: 4}"
).replace("[-1, 1]", "[0, 1]")
VOLUMES = """
name: sheets
data: {patch: {size: [16, 16, 16]}}
network:
  name: unet
  options: {channels: [4, 4, 8, 8, 8], norm: {name: group, options: {num_groups: 2}}}
losses: [dice]
predict: {overlap: 4}
postprocess: [threshold]
"""


def model(folder: Path, text: str) -> Path:
    return model_from_yaml(folder, text, 1 if text == VOLUMES else 3)


@pytest.mark.parametrize("text", [IMAGES, VOLUMES], ids=["image", "volume"])
def test_predict_gives_the_same_with_flips_and_scales(
    text: str, backend: str, tmp_path: Path
) -> None:
    checkpoint, rng = model(tmp_path / "run", text), np.random.default_rng(0)
    if text == IMAGES:
        files.write(tmp_path / "case.tif", rng.integers(0, 65535, (3, 41, 60), np.uint16), dims=2)
    else:
        tifffile.imwrite(tmp_path / "case.tif", rng.integers(0, 255, (12, 17, 20), np.uint8))
    found = {}
    for way in ("torch", backend):
        out = tmp_path / way
        options = ["--backend", way, "--tta", "--scales", "1", "0.8", "--save-soft"]
        assert (
            predict.main(
                [
                    "--checkpoint",
                    str(checkpoint),
                    "--input",
                    str(tmp_path / "case.tif"),
                    "--output",
                    str(out),
                    *options,
                ]
            )
            == 0
        )
        found[way] = softs.load(out / "soft", "case").main
    assert np.abs(found["torch"].astype(np.float32) - found[backend]).max() <= (
        PARITY if text == IMAGES else 2 * 2**-11
    )  # probabilities are kept as float16


def test_predicted_masks_are_written_too(backend: str, tmp_path: Path) -> None:
    checkpoint = model(tmp_path / "run", RETOUCH)
    files.write(
        tmp_path / "case.png",
        np.random.default_rng(0).integers(0, 255, (3, 41, 60), np.uint8),
        dims=2,
    )
    masks = {}
    for way in ("torch", backend):
        words = [
            "--checkpoint",
            str(checkpoint),
            "--input",
            str(tmp_path / "case.png"),
            "--output",
            str(tmp_path / way),
            "--backend",
            way,
        ]
        assert predict.main(words) == 0
        masks[way] = files.read(tmp_path / way / "masks" / "case.png", 2)[0].astype(int)
    assert masks["torch"].shape == (1, 41, 60)
    assert np.ptp(masks["torch"]) > 10
    assert np.abs(masks["torch"] - masks[backend]).max() <= 1


def test_exports_are_kept_as_long_as_the_weights_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installed("onnx")
    path = model(tmp_path, IMAGES)
    (tmp_path / "best_model-notes.onnx").write_text("of somebody else")

    def start() -> nn.Module:
        (net,), _ = load_models([path])
        return backends.accelerate(net, path, "onnx")

    start()
    kept = backends.cache(path)
    first = kept.stat().st_mtime_ns
    start()
    assert kept.stat().st_mtime_ns == first
    kept.write_bytes(kept.read_bytes()[:1000])
    start()
    assert len(caplog.messages) == 1
    assert str(kept) in caplog.messages[0]
    assert kept.stat().st_size > 1000
    torch.manual_seed(5)
    config = configs.load(tmp_path / "config.yaml")
    weights = networks.build(config.network, 3, 3, 2).state_dict()
    save_model(
        path,
        Checkpoint(
            config=configs.to_dict(config),
            channels=(3, 3),
            fold=0,
            epoch=2,
            score=None,
            weights=weights,
        ),
    )
    start()
    assert backends.cache(path) != kept
    assert {p.name for p in tmp_path.glob("*.onnx")} == {
        backends.cache(path).name,
        "best_model-notes.onnx",
    }


def test_an_export_of_other_weights_is_found_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody copies a folder about and the names no longer tell the truth."""
    installed("onnx")
    path = model(tmp_path, IMAGES)
    (net,), _ = load_models([path])
    torch.manual_seed(9)
    other = networks.build(
        NamedOptions(name="deblur_unet", options={"base": 8, "groups": 4}), 3, 3, 2
    ).eval()
    backends.cache(path).write_bytes(backends.export(other, 3))
    exported = backends.accelerate(net, path, "onnx")
    assert "differs" in caplog.messages[0]
    assert difference(net, exported, noise(1, 3, 16, 16)) <= PARITY


def test_a_folder_that_may_not_be_written_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installed("onnx")
    path = model(tmp_path, IMAGES)
    (net,), _ = load_models([path])

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "write_bytes", refuse)
    exported = backends.accelerate(net, path, "onnx")
    assert difference(net, exported, noise(1, 3, 20, 20)) <= PARITY
    assert "Permission denied" in caplog.messages[0]
    assert not list(tmp_path.glob("*.onnx"))


def test_layers_that_see_their_tile_are_still_known() -> None:
    """Without their weights, so that predict warns with any backend as it does with torch."""
    net, exported = _deblur()
    assert [n.partition(".")[2] for n in receptive.tile_dependent(exported)] == list(
        receptive.tile_dependent(net)
    )
    assert all(p.is_meta for p in exported.parameters())


def test_ensembles_of_exports_predict_like_those_of_networks(tmp_path: Path) -> None:
    config = configs.load(model(tmp_path, IMAGES).with_name("config.yaml"))
    net, exported = _deblur()
    tiles = noise(2, 3, 24, 31)
    with torch.inference_mode():
        assert (
            float(
                (
                    network_ensemble([net], config, "cpu")(tiles)["main"]
                    - network_ensemble([exported], config, "cpu")(tiles)["main"]
                )
                .abs()
                .max()
            )
            <= PARITY
        )


def test_what_a_backend_cannot_do_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model(tmp_path, IMAGES)
    (net,), _ = load_models([path])
    assert backends.accelerate(net, path, "torch") is net
    with pytest.raises(backends.BackendError, match="--device cpu"):
        backends.check("onnx", "cuda")
    with pytest.raises(backends.BackendError, match="norms: tile"):
        backends.check("onnx", "cpu", "exact")
    with pytest.raises(backends.BackendError, match="must be one of: torch"):
        backends.check("tvm", "cpu")
    with pytest.raises(backends.BackendError, match="Linear"):
        backends.accelerate(nn.Linear(1, 1), path, "onnx")
    for backend, packages in ((n, b.packages) for n, b in backends.BACKENDS.items()):
        monkeypatch.setitem(sys.modules, packages[0], None)
        command = [
            "--checkpoint",
            str(path),
            "--input",
            str(tmp_path),
            "--output",
            str(tmp_path / "o"),
            "--backend",
            backend,
        ]
        assert predict.main(command) == 2
        assert 'pip install -e ".[cpu]"' in capsys.readouterr().err


def test_the_options_of_predict_are_these() -> None:
    action = next(a for a in predict.parser()._actions if "--backend" in a.option_strings)
    assert action.choices == ["torch", *backends.BACKENDS]
