"""Tiled prediction: equal to MONAI's sliding window on its settings, the identity for an identity
network, exact in any batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers.inferer import SlidingWindowInferer
from PIL import Image
from tiles import tiled

from pipeline.config import ConfigError, from_dict
from pipeline.data.normalise import IntensityScale
from pipeline.geometry import Tiling
from pipeline.inference.sliding_window import Source, network_ensemble, resampled, scaled, tiling
from pipeline.networks import build
from pipeline.records import NamedOptions, UserError

UNIT = IntensityScale(low=(0.0,), high=(1.0,), clip=False)


def source(shape: tuple[int, ...]) -> Source:
    return Source(array=np.random.default_rng(0).random((1, *shape), np.float32), scale=UNIT)


class Blur(torch.nn.Module):
    """One fixed 3x3(x3) convolution, two output channels: its answer at a tile's rim depends on the
    tile.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convolution = (torch.nn.Conv3d if dims == 3 else torch.nn.Conv2d)(1, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"main": self.convolution(x)}


def monai(
    array: np.ndarray, tile: tuple[int, ...], overlap: float, network: torch.nn.Module
) -> np.ndarray:
    inferer = SlidingWindowInferer(tile, sw_batch_size=2, overlap=overlap, mode="gaussian")
    with torch.inference_mode():
        return inferer(torch.from_numpy(array[None]), lambda x: network(x)["main"].clone())[
            0
        ].numpy()


@pytest.mark.parametrize("shape", [(40, 32, 50), (16, 16, 16), (11, 40, 17), (5, 6, 7)])
def test_equals_monai_in_3d(shape: tuple[int, ...]) -> None:
    network, given = Blur(3), source(shape)
    tiles = Tiling(size=shape, tile=(16, 16, 16), overlap=4, one_sided=False)
    ours = tiled(given, lambda x: network(x)["main"], tiles, batch=3)
    # MONAI pads a short axis with zeros to the tile and blends the middle of it; ours shortens the
    # tile, so give MONAI that tile.
    np.testing.assert_allclose(ours, monai(given.array, tiles.tile, 0.25, network), atol=1e-5)


def test_equals_monai_in_2d() -> None:
    network, given = Blur(2), source((70, 45))
    tiles = Tiling(size=(70, 45), tile=(32, 16), overlap=8, one_sided=False)
    # MONAI takes a share of each axis: 8 of 32 and 4 of 16 would differ from ours, so compare where
    # both share a quarter.
    square = Tiling(size=(70, 45), tile=(32, 32), overlap=8, one_sided=False)
    np.testing.assert_allclose(
        tiled(given, lambda x: network(x)["main"], square),
        monai(given.array, (32, 32), 0.25, network),
        atol=1e-5,
    )
    assert tiled(given, lambda x: network(x)["main"], tiles).shape == (2, 70, 45)


@pytest.mark.parametrize("window", ["gaussian", "hann", "feather", "constant"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (15, 16, 17), (37, 16, 23), (33, 47, 8)])
def test_identity_network_gives_the_volume_back(window: str, shape: tuple[int, ...]) -> None:
    given = source(shape)
    tiles = Tiling(size=shape, tile=(16, 16, 16), overlap=5, window=window)
    np.testing.assert_allclose(tiled(given, lambda x: x, tiles, batch=2), given.array, atol=2e-6)


def test_whole_image_equality_with_a_halo() -> None:
    """A norm-free network with receptive radius 1 and a halo of 1: tiles leave no trace."""
    network, given = Blur(2), source((61, 47))
    whole = network(torch.from_numpy(given.array[None]))["main"][0].detach().numpy()
    halo = tiled(
        given, lambda x: network(x)["main"], Tiling(size=(61, 47), tile=(16, 16), overlap=3, halo=1)
    )
    np.testing.assert_allclose(halo, whole, atol=1e-5)
    without = tiled(
        given, lambda x: network(x)["main"], Tiling(size=(61, 47), tile=(16, 16), overlap=0, halo=0)
    )
    assert np.abs(without - whole).max() > 1e-3


def test_batch_size_changes_nothing() -> None:
    network, given = Blur(3), source((30, 21, 40))
    tiles = Tiling(size=(30, 21, 40), tile=(16, 16, 16), overlap=4)
    one, five = (tiled(given, lambda x: network(x)["main"], tiles, batch=b) for b in (1, 5))
    np.testing.assert_allclose(one, five, atol=1e-6)


def test_input_is_never_written_to() -> None:
    given = source((20, 20, 20))
    before = given.array.copy()
    tiled(given, lambda x: x.mul_(2), Tiling(size=(20, 20, 20), tile=(16, 16, 16)))
    np.testing.assert_array_equal(given.array, before)


def config(
    flips: bool = False, classes: int = 2, dims: int = 3, task: str = "labels", **predict: Any
) -> Any:
    return from_dict(
        {
            "name": "t",
            "task": task,
            "data": {"dims": dims, "patch": {"size": [8] * dims}, "classes": classes},
            "network": "unet",
            "losses": [{"name": "l1", "target": "target"}] if task == "image" else ["dice"],
            "predict": {"flips": flips, **predict},
        }
    )


def test_flips_are_undone() -> None:
    """An equivariant network answers the same with and without test-time flips; a
    position-dependent one does not.
    """

    class Pointwise(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"main": 3 * x - 1}

    class Ramp(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"main": x + torch.arange(x.shape[-1])}

    x = torch.rand(2, 1, 8, 8, 8)
    plain, flipped = (
        network_ensemble([Pointwise()], config(f), "cpu")(x)["main"] for f in (False, True)
    )
    torch.testing.assert_close(plain, flipped)
    plain, flipped = (
        network_ensemble([Ramp()], config(f), "cpu")(x)["main"] for f in (False, True)
    )
    assert (plain - flipped).abs().max() > 0.1


def test_several_networks_are_averaged_by_weight() -> None:
    class Constant(torch.nn.Module):
        def __init__(self, p: float) -> None:
            super().__init__()
            self.logit = float(np.log(p / (1 - p)))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"main": torch.full_like(x, self.logit)}

    x = torch.zeros(1, 1, 8, 8, 8)
    mean = network_ensemble([Constant(0.2), Constant(0.6)], config(True), "cpu")(x)["main"]
    torch.testing.assert_close(mean, torch.full_like(x, 0.4))
    weighted = network_ensemble([Constant(0.2), Constant(0.6)], config(False), "cpu", [3, 1])(x)[
        "main"
    ]
    torch.testing.assert_close(weighted, torch.full_like(x, 0.3))


# --- whole images ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 3000), min_size=2, max_size=2), st.integers(0, 40))
def test_whole_is_one_tile_of_any_size(size: list[int], halo: int) -> None:
    tiles = tiling(config(dims=2, patch="whole", halo=halo), size)
    assert (tiles.count(), tiles.tile, tiles.padded) == (1, tuple(size), tuple(size))


def test_whole_equals_tiled_with_a_batch_norm_network() -> None:
    """A U-Net whose norms stand still; tiles of even size and stride keep its pooling grid, and the
    halo covers what a voxel sees.
    """
    torch.manual_seed(0)
    network = build(
        NamedOptions(name="unet", options={"channels": [2] * 5, "norm": "batch"}), 3, 1, 2
    )
    network.train()(torch.rand(2, 3, 32, 32))  # statistics that are not 0 and 1
    network.eval()
    image = np.random.default_rng(0).random((3, 288, 352), np.float32)
    given = Source(array=image, scale=IntensityScale(low=(0.0,) * 3, high=(1.0,) * 3))
    predict_tile = network_ensemble([network], config(dims=2), "cpu")
    whole = tiled(given, predict_tile, tiling(config(dims=2, patch="whole"), image.shape[1:]))
    with torch.inference_mode():
        np.testing.assert_allclose(
            whole, network(torch.from_numpy(image[None]))["main"].sigmoid()[0].numpy(), atol=1e-6
        )
    pieces = tiled(
        given,
        predict_tile,
        tiling(config(dims=2, patch=[256, 256], halo=96, overlap=0), image.shape[1:]),
    )
    np.testing.assert_allclose(pieces, whole, atol=1e-6)
    seams = tiled(
        given,
        predict_tile,
        tiling(config(dims=2, patch=[64, 64], halo=0, overlap=0), image.shape[1:]),
    )
    assert np.abs(seams - whole).max() > 1e-5


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: no"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_how_to_go_on(error: Exception) -> None:
    def predict_tile(tiles: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(UserError, match="--patch-size 51 40"):
        tiled(source((101, 80)), predict_tile, tiling(config(dims=2, patch="whole"), (101, 80)))


def test_other_errors_are_not_taken_for_it() -> None:
    def predict_tile(tiles: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("sizes differ")

    with pytest.raises(RuntimeError, match="sizes differ"):
        tiled(source((16, 16)), predict_tile, tiling(config(dims=2), (16, 16)))


# --- scales ---------------------------------------------------------------------------------------


class Identity(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"main": x}


class Squares(torch.nn.Module):
    """A pointwise answer that does not commute with resampling."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"main": x**2}


SCALES = st.lists(st.sampled_from([0.1, 0.5, 0.75, 1.0, 1.25, 2.0]), min_size=1, max_size=3)


@settings(deadline=None, max_examples=15)
@given(SCALES, st.sampled_from([2, 3]), st.booleans(), st.integers(1, 9))
def test_constant_fields_stay(scales: list[float], dims: int, flips: bool, size: int) -> None:
    """Also a tile of one voxel, whatever the scale; and each network is asked once a scale and
    flip.
    """
    asked: list[tuple[int, ...]] = []

    class Count(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            asked.append(tuple(x.shape[2:]))
            return {"main": x}

    x = torch.full((1, 1, *[size] * dims), 0.3)
    predict_tile = network_ensemble([Count()], config(flips, dims=dims, scales=scales), "cpu")
    torch.testing.assert_close(predict_tile(x)["main"], torch.full_like(x, 0.3).sigmoid())
    assert asked == [scaled(x.shape[2:], s) for s in scales for _ in range(2**dims if flips else 1)]


@settings(deadline=None, max_examples=10)
@given(SCALES, st.sampled_from([2, 3]))
def test_probabilities_of_classes_sum_to_1(scales: list[float], dims: int) -> None:
    x = torch.randn(2, 4, *[7] * dims, generator=torch.Generator().manual_seed(1)) * 5
    soft = network_ensemble([Identity()], config(classes=4, dims=dims, scales=scales), "cpu")(x)[
        "main"
    ]
    assert soft.min() >= 0
    torch.testing.assert_close(soft.sum(1), torch.ones(2, *[7] * dims))


def test_scale_1_alone_changes_no_bit() -> None:
    """As the sum was before there were scales: over flips, then networks."""
    network, x = Blur(2), torch.rand(2, 1, 9, 8)
    expected: torch.Tensor | None = None
    for turn in [(), (-2,), (-1,), (-2, -1)]:
        soft = torch.flip(network(torch.flip(x, turn))["main"].softmax(1), turn) * (1 / 4)
        expected = soft if expected is None else expected + soft
    assert torch.equal(
        network_ensemble([network], config(True, dims=2, scales=[1]), "cpu")(x)["main"], expected
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_scales_average_what_each_says_alone(dims: int) -> None:
    x = torch.rand(1, 1, *[10] * dims)
    each = [
        network_ensemble([Squares()], config(dims=dims, scales=[s]), "cpu")(x)["main"]
        for s in (0.75, 1, 1.5)
    ]
    together = network_ensemble([Squares()], config(dims=dims, scales=[0.75, 1, 1.5]), "cpu")(x)[
        "main"
    ]
    torch.testing.assert_close(together, sum(each) / 3)
    assert (each[0] - each[1]).abs().max() > 1e-2


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 2])
def test_a_smooth_image_comes_back_in_its_place(scale: float) -> None:
    """Identity network: a slow wave returns within the error of interpolation; half a voxel of
    shift would cost 0.1.
    """
    y, x = np.mgrid[:48, :64]
    image = torch.from_numpy(np.sin(y / 5) * np.cos(x / 5)).float()[None, None]
    back = network_ensemble([Identity()], config(dims=2, task="image", scales=[scale]), "cpu")(
        image
    )["main"]
    error = (back - image).abs()[..., 3:-3, 3:-3]
    assert error.max() < 0.07


def test_reduced_images_are_smoothed_like_pillow_does() -> None:
    image = np.random.default_rng(0).random((30, 40)).astype(np.float32)
    ours = resampled(torch.from_numpy(image)[None, None], (12, 17))[0, 0].numpy()
    theirs = np.asarray(Image.fromarray(image).resize((17, 12), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("scales", [[], [0], [-1], [11], [float("nan")]])
def test_impossible_scales_are_refused(scales: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"predict\.scales"):
        config(scales=scales)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    network, given = Blur(3), source((40, 33, 21))
    tiles = Tiling(size=(40, 33, 21), tile=(16, 16, 16), overlap=4)
    cpu = tiled(given, lambda x: network(x)["main"], tiles)
    network = network.cuda()
    np.testing.assert_allclose(
        tiled(given, lambda x: network(x)["main"], tiles, batch=2, device="cuda"), cpu, atol=1e-4
    )
