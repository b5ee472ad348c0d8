"""Tiled prediction: equal to MONAI's sliding window on its settings, the identity for an identity network, exact in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers.inferer import SlidingWindowInferer

from pipeline.config import from_dict
from pipeline.data.normalise import Scale
from pipeline.engine.inference import Source, sliding_window, voice
from pipeline.geometry import Tiling

UNIT = Scale(low=(0.0,), high=(1.0,), clip=False)


def source(shape: tuple[int, ...]) -> Source:
    return Source(array=np.random.default_rng(0).random((1, *shape), np.float32), scale=UNIT)


class Blur(torch.nn.Module):
    """One fixed 3x3(x3) convolution, two output channels: its answer at a tile's rim depends on the tile."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convolution = (torch.nn.Conv3d if dims == 3 else torch.nn.Conv2d)(1, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"main": self.convolution(x)}


def monai(array: np.ndarray, tile: tuple[int, ...], overlap: float, network: torch.nn.Module) -> np.ndarray:
    inferer = SlidingWindowInferer(tile, sw_batch_size=2, overlap=overlap, mode="gaussian")
    with torch.inference_mode():
        return inferer(torch.from_numpy(array[None]), lambda x: network(x)["main"].clone())[0].numpy()


@pytest.mark.parametrize("shape", [(40, 32, 50), (16, 16, 16), (11, 40, 17), (5, 6, 7)])
def test_equals_monai_in_3d(shape: tuple[int, ...]) -> None:
    network, given = Blur(3), source(shape)
    tiles = Tiling(size=shape, tile=(16, 16, 16), overlap=4, one_sided=False)
    ours = sliding_window(given, lambda x: network(x)["main"], tiles, batch=3)
    np.testing.assert_allclose(ours, monai(given.array, (16, 16, 16), 0.25, network), atol=1e-5)


def test_equals_monai_in_2d() -> None:
    network, given = Blur(2), source((70, 45))
    tiles = Tiling(size=(70, 45), tile=(32, 16), overlap=8, one_sided=False)
    # MONAI takes a share of each axis: 8 of 32 and 4 of 16 would differ from ours, so compare where both share a quarter.
    square = Tiling(size=(70, 45), tile=(32, 32), overlap=8, one_sided=False)
    np.testing.assert_allclose(
        sliding_window(given, lambda x: network(x)["main"], square), monai(given.array, (32, 32), 0.25, network), atol=1e-5
    )
    assert sliding_window(given, lambda x: network(x)["main"], tiles).shape == (2, 70, 45)


@pytest.mark.parametrize("window", ["gaussian", "hann", "feather", "constant"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (15, 16, 17), (37, 16, 23), (33, 47, 8)])
def test_identity_network_gives_the_volume_back(window: str, shape: tuple[int, ...]) -> None:
    given = source(shape)
    tiles = Tiling(size=shape, tile=(16, 16, 16), overlap=5, window=window)
    np.testing.assert_allclose(sliding_window(given, lambda x: x, tiles, batch=2), given.array, atol=2e-6)


def test_whole_image_equality_with_a_halo() -> None:
    """A norm-free network with receptive radius 1 and a halo of 1: tiles are not to be seen at all."""
    network, given = Blur(2), source((61, 47))
    whole = network(torch.from_numpy(given.array[None]))["main"][0].detach().numpy()
    halo = sliding_window(given, lambda x: network(x)["main"], Tiling(size=(61, 47), tile=(16, 16), overlap=3, halo=1))
    np.testing.assert_allclose(halo, whole, atol=1e-5)
    without = sliding_window(given, lambda x: network(x)["main"], Tiling(size=(61, 47), tile=(16, 16), overlap=0, halo=0))
    assert np.abs(without - whole).max() > 1e-3


def test_batch_size_changes_nothing() -> None:
    network, given = Blur(3), source((30, 21, 40))
    tiles = Tiling(size=(30, 21, 40), tile=(16, 16, 16), overlap=4)
    one, five = (sliding_window(given, lambda x: network(x)["main"], tiles, batch=b) for b in (1, 5))
    np.testing.assert_allclose(one, five, atol=1e-6)


def test_input_is_never_written_to() -> None:
    given = source((20, 20, 20))
    before = given.array.copy()
    sliding_window(given, lambda x: x.mul_(2), Tiling(size=(20, 20, 20), tile=(16, 16, 16)))
    np.testing.assert_array_equal(given.array, before)


def config(flips: bool, classes: int = 2) -> object:
    return from_dict(
        {
            "name": "t",
            "data": {"patch": {"size": [8, 8, 8]}, "classes": classes},
            "network": "unet",
            "losses": ["dice"],
            "predict": {"flips": flips},
        }
    )


def test_flips_are_undone() -> None:
    """An equivariant network answers the same with and without test-time flips; a position-dependent one does not."""

    class Pointwise(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"main": 3 * x - 1}

    class Ramp(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"main": x + torch.arange(x.shape[-1])}

    x = torch.rand(2, 1, 8, 8, 8)
    plain, turned = (voice([Pointwise()], config(f), "cpu")(x) for f in (False, True))
    torch.testing.assert_close(plain, turned)
    plain, turned = (voice([Ramp()], config(f), "cpu")(x) for f in (False, True))
    assert (plain - turned).abs().max() > 0.1


def test_several_networks_are_averaged_by_weight() -> None:
    class Constant(torch.nn.Module):
        def __init__(self, p: float) -> None:
            super().__init__()
            self.logit = float(np.log(p / (1 - p)))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"main": torch.full_like(x, self.logit)}

    x = torch.zeros(1, 1, 8, 8, 8)
    mean = voice([Constant(0.2), Constant(0.6)], config(True), "cpu")(x)
    torch.testing.assert_close(mean, torch.full_like(x, 0.4))
    weighted = voice([Constant(0.2), Constant(0.6)], config(False), "cpu", [3, 1])(x)
    torch.testing.assert_close(weighted, torch.full_like(x, 0.3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    network, given = Blur(3), source((40, 33, 21))
    tiles = Tiling(size=(40, 33, 21), tile=(16, 16, 16), overlap=4)
    cpu = sliding_window(given, lambda x: network(x)["main"], tiles)
    network = network.cuda()
    np.testing.assert_allclose(sliding_window(given, lambda x: network(x)["main"], tiles, batch=2, device="cuda"), cpu, atol=1e-4)
