"""Our MONAI inferer equals MONAI's on MONAI's settings, keeps what goes in, and holds one band of
tiles.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from monai import inferers
from monai.data.meta_tensor import MetaTensor

from pipeline.inference.inferer import SlidingWindowInferer

SHAPES = {
    1: st.tuples(st.integers(1, 40)),
    2: st.tuples(st.integers(1, 40), st.integers(1, 30)),
    3: st.tuples(st.integers(1, 20), st.integers(1, 14), st.integers(1, 14)),
}


@st.composite
def scans(
    draw: st.DrawFn, shares: st.SearchStrategy[float]
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Shape of a batch of images and MONAI's arguments."""
    dims = draw(st.sampled_from(sorted(SHAPES)))
    size = draw(SHAPES[dims])
    axis = st.one_of(st.integers(3, 16), st.sampled_from([-1, None]))
    roi = draw(st.one_of(st.tuples(*[axis] * dims), st.integers(3, 16)))
    options = {
        "roi_size": roi,
        "sw_batch_size": draw(st.integers(1, 4)),
        "overlap": draw(st.one_of(shares, st.tuples(*[shares] * dims))),
        "mode": draw(st.sampled_from(["constant", "gaussian"])),
        "sigma_scale": draw(st.sampled_from([0.125, 0.3])),
        "padding_mode": draw(st.sampled_from(["constant", "replicate"])),
        "cval": draw(st.sampled_from([0.0, 2.5])),
    }
    if options["padding_mode"] == "replicate":
        options["cval"] = 0.0  # torch refuses a value that is not used
    return (draw(st.integers(1, 3)), draw(st.integers(1, 2)), *size), options


def edges(tiles: torch.Tensor) -> torch.Tensor:
    """Depends on where a voxel lies in its tile, and has another number of channels: no tiling can
    go unnoticed.
    """
    where = sum(
        torch.arange(n).reshape(-1, *[1] * k) / n for k, n in enumerate(reversed(tiles.shape[2:]))
    )
    return torch.cat(
        [
            tiles * where,
            where.expand(len(tiles), 1, *tiles.shape[2:]),
            tiles.mean(dim=1, keepdim=True),
        ],
        dim=1,
    )


def test_the_arguments_are_those_of_monai_in_its_order() -> None:
    import inspect

    theirs = list(inspect.signature(inferers.SlidingWindowInferer).parameters)
    ours = list(inspect.signature(SlidingWindowInferer).parameters)
    assert ours[:10] == theirs[:10]
    assert issubclass(SlidingWindowInferer, inferers.Inferer)


@settings(max_examples=examples(100))
@given(scan=scans(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.6, 0.75])), seed=st.integers(0, 9))
def test_equals_monai(scan: tuple[tuple[int, ...], dict[str, Any]], seed: int) -> None:
    shape, options = scan
    image = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    before = image.clone()
    theirs = inferers.SlidingWindowInferer(**options)(image, edges)
    ours = SlidingWindowInferer(**options, one_sided=False)
    torch.testing.assert_close(ours(image, edges), theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(image, before)
    slabs = list(ours.slabs(image, edges))
    assert [first for first, _ in slabs] == [
        0,
        *itertools.accumulate(rows.shape[2] for _, rows in slabs[:-1]),
    ]
    assert torch.equal(torch.cat([rows for _, rows in slabs], dim=2), ours(image, edges))


@settings(max_examples=examples(60))
@given(
    scan=scans(st.sampled_from([0.0, 0.25, 0.5, 0.75])),
    one_sided=st.booleans(),
    halo=st.integers(0, 1),
    stride=st.sampled_from([None, 1, 2, 4]),
)
def test_an_identity_network_gives_the_image_back(
    scan: tuple, one_sided: bool, halo: int, stride: int | None
) -> None:
    shape, options = scan
    image = torch.rand(shape)
    if stride == 4 and halo:
        options["roi_size"] = 8  # two halos and a stride need that much
    inferer = SlidingWindowInferer(**options, one_sided=one_sided, halo=halo, stride=stride)
    torch.testing.assert_close(inferer(image, lambda x: x), image, atol=2e-6, rtol=0)
    torch.testing.assert_close(
        torch.cat([rows for _, rows in inferer.slabs(image, lambda x: x)], dim=2),
        image,
        atol=2e-6,
        rtol=0,
    )


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(
    ("padding", "size"),
    [("reflect", (9, 30)), ("circular", (9, 30)), ("circular", (8, 5)), ("reflect", (30, 9))],
)
def test_every_padding_of_monai(mode: str, padding: str, size: tuple[int, ...]) -> None:
    image = torch.rand(2, 1, *size)
    options = {
        "roi_size": (16, 8),
        "sw_batch_size": 2,
        "mode": mode,
        "padding_mode": padding,
        "overlap": 0.5,
    }
    torch.testing.assert_close(
        SlidingWindowInferer(**options, one_sided=False)(image, edges),
        inferers.SlidingWindowInferer(**options)(image, edges),
        atol=1e-5,
        rtol=1e-5,
    )


def test_reflection_goes_on_where_torch_refuses_it() -> None:
    image = torch.tensor([[[1.0, 2.0, 3.0]]])
    seen: list[torch.Tensor] = []
    SlidingWindowInferer(12, padding_mode="reflect")(image, lambda x: seen.append(x) or x)
    assert seen[0].flatten().tolist() == [1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2]
    SlidingWindowInferer(4, padding_mode="reflect")(image[..., :1], lambda x: seen.append(x) or x)
    assert seen[1].flatten().tolist() == [1, 1, 1, 1]


def pyramid(tiles: torch.Tensor) -> tuple[torch.Tensor, ...]:
    pool = torch.nn.functional.avg_pool2d
    return (
        tiles,
        pool(tiles, 2),
        pool(tiles, 4),
        torch.nn.functional.interpolate(tiles, scale_factor=2),
    )


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(
    "shape", [(2, 1, 40, 24), (1, 3, 16, 30), (1, 1, 8, 24), (2, 1, 16, 4), (1, 1, 39, 27)]
)
def test_outputs_of_other_sizes_equal_monai(mode: str, shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)
    options = {"roi_size": (16, 8), "sw_batch_size": 3, "mode": mode, "overlap": 0.5}
    # Enlarged after shrunk, MONAI's weights come from the shrunk ones; so do ours.
    theirs = inferers.SlidingWindowInferer(**options)(image, pyramid)
    inferer = SlidingWindowInferer(**options, one_sided=False)
    ours = inferer(image, pyramid)
    assert isinstance(ours, tuple)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    slabs = [rows for _, rows in inferer.slabs(image, pyramid)]
    for n, one in enumerate(ours):
        assert torch.equal(torch.cat([rows[n] for rows in slabs], dim=2), one)


def test_what_is_smaller_may_come_before_what_is_not() -> None:
    """MONAI fails here."""
    image = torch.rand(1, 1, 40, 24)
    half, full = SlidingWindowInferer((16, 8), overlap=0.5)(
        image, lambda x: (torch.nn.functional.avg_pool2d(x, 2), x)
    )
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(image, 2))
    torch.testing.assert_close(full, image)


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        (lambda x: (x, 2 * x), tuple),
        (lambda x: [x, 2 * x], tuple),
        (lambda x: (x,), torch.Tensor),
        (lambda x: {"b": x, "a": 2 * x}, dict),
        (lambda x: {"only": x}, dict),
        (lambda x: MetaTensor(x), torch.Tensor),
    ],
)
def test_the_structure_is_that_of_monai(network: Callable[..., Any], kind: type) -> None:
    image = torch.rand(2, 1, 20, 13)
    options = {"roi_size": 8, "mode": "gaussian"}
    theirs = inferers.SlidingWindowInferer(**options)(image.clone(), lambda x: network(x.clone()))
    ours = SlidingWindowInferer(**options, one_sided=False)(image, network)
    assert type(ours) is kind
    assert type(theirs) is kind
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("network", [lambda x: x, lambda x: (x, x), lambda x: {"main": x}])
def test_metadata_come_out_again_with_every_output(network: Callable[..., Any]) -> None:
    affine = torch.diag(torch.tensor([0.5, 2.0, 3.0, 1.0]))
    image = MetaTensor(
        torch.rand(1, 1, 20, 13, 9), affine=affine, meta={"filename_or_obj": "a.nii.gz"}
    )
    seen = set()
    out = SlidingWindowInferer(8)(image, lambda x: seen.add(type(x)) or network(x))
    assert seen == {torch.Tensor}
    for one in out.values() if isinstance(out, dict) else out if isinstance(out, tuple) else [out]:
        assert isinstance(one, MetaTensor)
        assert torch.equal(one.affine, affine.double())
        assert one.meta["filename_or_obj"] == "a.nii.gz"
        torch.testing.assert_close(one.as_tensor(), image.as_tensor())


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_type_is_kept_and_sums_are_float32(dtype: torch.dtype, meta: bool) -> None:
    exact = torch.rand(1, 1, 40, 30, dtype=torch.float64)
    image = exact.to(dtype)
    out = SlidingWindowInferer(8, overlap=0.75)(MetaTensor(image) if meta else image, lambda x: x)
    assert out.dtype == dtype
    # Rounded once: sums in the half types themselves would be several steps off.
    assert torch.equal(out.as_tensor() if meta else out, image) or dtype in (
        torch.float32,
        torch.float64,
    )
    torch.testing.assert_close(out.double(), image.double(), atol=2e-6, rtol=0)


def test_whole_numbers_go_in_and_the_networks_type_comes_out() -> None:
    """MONAI fails here."""
    image = torch.randint(0, 255, (2, 1, 5, 30), dtype=torch.uint8)
    for padding, dtype in itertools.product(
        ["constant", "reflect", "replicate", "circular"], [torch.float32, torch.float16]
    ):
        out = SlidingWindowInferer(8, padding_mode=padding, cval=7)(
            image, lambda x, to=dtype: x.to(to)
        )
        assert out.dtype == dtype
        torch.testing.assert_close(out, image.to(dtype))


def test_results_can_be_used_like_any_tensor() -> None:
    weight = torch.ones(1, requires_grad=True)
    image = torch.rand(1, 1, 20, 20, requires_grad=True)
    grads = []
    inferer = SlidingWindowInferer(8)

    def network(x: torch.Tensor) -> torch.Tensor:
        grads.append(torch.is_grad_enabled())
        return x * weight

    out = inferer(image, network)
    slabs = inferer.slabs(image, network)
    next(slabs)
    assert torch.is_grad_enabled()  # also while a generator of ours is half-way
    assert not any(grads)
    assert not out.requires_grad
    assert not out.is_inference()
    out += 1
    ((out * weight) ** 2).mean().backward()
    assert weight.grad is not None


def test_a_network_of_inference_tensors_gives_ordinary_ones() -> None:
    out = SlidingWindowInferer(8)(torch.rand(1, 1, 20, 20), torch.inference_mode()(lambda x: x + 1))
    assert not out.is_inference()


def test_a_network_may_write_into_its_tiles() -> None:
    image = torch.rand(1, 1, 20, 20)
    before = image.clone()
    for batch in (1, 3):
        torch.testing.assert_close(
            SlidingWindowInferer(8, batch)(image, lambda x: x.mul_(2)), 2 * before
        )
        assert torch.equal(image, before)


def test_arguments_reach_the_network() -> None:
    seen = []
    image = torch.rand(2, 1, 9, 9)

    def network(x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        seen.append((args, kwargs))
        return x

    SlidingWindowInferer(8)(image, network, 1, "two", three=3)
    assert seen
    assert all(s == ((1, "two"), {"three": 3}) for s in seen)


def test_a_condition_is_cut_into_the_same_tiles() -> None:
    image, condition = torch.rand(2, 1, 20, 5), torch.rand(2, 1, 20, 5)
    options = {"roi_size": 8, "mode": "gaussian"}
    ours = SlidingWindowInferer(**options, one_sided=False)(
        image, lambda x, condition: edges(x) + condition, condition=condition
    )
    theirs = inferers.SlidingWindowInferer(**options)(
        image, lambda x, condition: edges(x) + condition, condition=condition
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="shape of the inputs"):
        SlidingWindowInferer(8)(image, lambda x, condition: x, condition=condition[:1])


def test_a_call_may_name_another_device() -> None:
    """The meta device has shapes and no memory: enough to see where things go."""
    image = torch.rand(1, 1, 20, 20)
    assert SlidingWindowInferer(8, device="meta")(image, lambda x: x).device.type == "meta"
    assert SlidingWindowInferer(8)(image, lambda x: x, device="meta").device.type == "meta"
    assert (
        SlidingWindowInferer(8, device="meta")(image, lambda x: x, device="cpu").device.type
        == "cpu"
    )


def test_tiles_are_moved_one_batch_at_a_time() -> None:
    image = torch.rand(2, 1, 40, 40)
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append((x.device.type, tuple(x.shape)))
        return x

    out = SlidingWindowInferer(8, 3, sw_device="meta", device="meta")(image, network)
    assert out.shape == image.shape
    assert {d for d, _ in seen} == {"meta"}
    assert {s for _, s in seen} <= {(n, 1, 8, 8) for n in (1, 2, 3)}


class Recorder(torch.overrides.TorchFunctionMode):
    """Sizes in bytes of every tensor that a torch function returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.sizes.append(out.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("rows", [40, 400])
def test_memory_is_a_band_and_not_the_volume(rows: int) -> None:
    """Slabs of a volume ten times as high are made of tensors of the same sizes; the network's
    answer has two channels.
    """
    image = torch.rand(1, 1, rows, 24, 12)
    whole = image.untyped_storage().nbytes()
    with Recorder() as recorder:
        for _, slab in SlidingWindowInferer(8, overlap=0.5).slabs(
            image, lambda x: torch.cat([x, x], dim=1)
        ):
            assert slab.untyped_storage().nbytes() <= 2 * 8 * 24 * 12 * 4
    assert max(size for size in recorder.sizes if size != whole) <= 2 * 8 * 24 * 12 * 4


def test_a_call_makes_nothing_of_the_volumes_size_but_the_answer() -> None:
    image = torch.rand(1, 3, 400, 24, 12)

    def large(inferer: inferers.Inferer) -> set[int]:
        """Sizes, in volumes of one float32 channel, of what is larger than a band of the answer."""
        with Recorder() as recorder:
            inferer(image, lambda x: x[:, :2])
        return {
            size // (400 * 24 * 12 * 4) for size in recorder.sizes if size > 2 * 8 * 24 * 12 * 4
        }

    assert large(SlidingWindowInferer(8)) == {3, 2}
    assert large(inferers.SlidingWindowInferer(8)) == {3, 2, 1}  # MONAI's map of weights


def test_items_do_not_depend_on_each_other() -> None:
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    image = torch.rand(3, 1, 30, 21)
    together = SlidingWindowInferer(8, 1)(image, network)
    for n in range(3):
        assert torch.equal(SlidingWindowInferer(8, 1)(image[n : n + 1], network)[0], together[n])
    torch.testing.assert_close(
        SlidingWindowInferer(8, 5)(image, network), together, atol=1e-6, rtol=0
    )


class Pooled(torch.nn.Module):
    """Shrinks and enlarges by 4: its answer moves with its input by multiples of 4 only."""

    divisor = (4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(torch.nn.functional.max_pool2d(x, 4), scale_factor=4)


@pytest.mark.parametrize("size", [(40, 32), (44, 36), (8, 60)])
def test_tiles_lie_on_the_stride_of_the_network(size: tuple[int, ...]) -> None:
    """Tiles then answer as the whole image does; given by the module, or by hand for what is no
    module.
    """
    image, network = torch.rand(2, 1, *size), Pooled()
    whole = network(image)
    options = {"roi_size": (18, 10), "overlap": 0.5}
    torch.testing.assert_close(SlidingWindowInferer(**options)(image, network), whole)
    for stride in (4, (4, 4)):
        torch.testing.assert_close(
            SlidingWindowInferer(**options, stride=stride)(image, lambda x: network(x)), whole
        )
    off = SlidingWindowInferer((20, 20), overlap=0.5, stride=2)(image, network)
    assert (off - whole).abs().max() > 0.1


def test_what_somebody_else_calls_divisor_is_not_a_stride() -> None:
    network = torch.nn.Identity()
    network.divisor = 8.0
    image = torch.rand(1, 1, 20, 20)
    torch.testing.assert_close(SlidingWindowInferer(9)(image, network), image)


def test_a_halo_hides_the_tiles() -> None:
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    image = torch.rand(2, 1, 61, 47)
    whole = network(image).detach()
    torch.testing.assert_close(
        SlidingWindowInferer(16, overlap=0, halo=1)(image, network), whole, atol=1e-5, rtol=0
    )
    assert (SlidingWindowInferer(16, overlap=0)(image, network) - whole).abs().max() > 1e-3


def test_a_smaller_output_with_a_halo_needs_whole_voxels() -> None:
    image = torch.rand(1, 1, 40, 40)
    pool = torch.nn.AvgPool2d(2)
    torch.testing.assert_close(SlidingWindowInferer(16, halo=2, stride=2)(image, pool), pool(image))
    with pytest.raises(ValueError, match="halo of 1"):
        SlidingWindowInferer(16, halo=1, overlap=0.3)(image, pool)


def test_one_sided_windows_trust_the_border() -> None:
    """At the border only one tile contributes: its weight there must not be small beside what
    overlaps it further in.
    """
    image = torch.rand(1, 1, 20)
    both = [
        SlidingWindowInferer(16, overlap=0.5, one_sided=side)(
            image, lambda x: torch.arange(16.0).expand_as(x)
        )
        for side in (True, False)
    ]
    assert not torch.equal(*both)
    # Voxel 4 is voxel 4 of the first tile and voxel 0 of the second.
    assert both[0][0, 0, 4] > both[1][0, 0, 4] > 3.5


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"overlap": 1.0}, ValueError, "from 0 to below 1"),
        ({"overlap": (0.5, -0.1)}, ValueError, "from 0 to below 1"),
        ({"mode": "hann"}, ValueError, "constant, gaussian"),
        ({"padding_mode": "edge"}, ValueError, "replicate"),
        ({"sw_batch_size": 0}, ValueError, "at least 1 tile"),
        ({"sigma_scale": 0.0}, ValueError, "above 0"),
        ({"halo": -1}, ValueError, "0 or more"),
        ({"stride": 0}, ValueError, "1 or more"),
        ({"roi_size": 8.5}, ValueError, "whole numbers"),
        ({"buffer_steps": 4}, TypeError, "band of tiles"),
        ({"cpu_thresh": 10}, TypeError, 'device="cpu"'),
        ({"with_coord": True}, TypeError, "with_coord=True is not taken"),
        ({"cache_roi_weight_map": True}, TypeError, "not taken"),
        ({"roi": 8}, TypeError, "no argument 'roi'"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        SlidingWindowInferer(**{"roi_size": 8, **arguments})


def test_monais_defaults_of_what_is_left_out_are_taken() -> None:
    SlidingWindowInferer(
        8,
        buffer_steps=None,
        buffer_dim=-1,
        cpu_thresh=None,
        with_coord=False,
        cache_roi_weight_map=False,
    )


@pytest.mark.parametrize(
    ("network", "error", "words"),
    [
        (lambda x: x.argmax(1, keepdim=True), TypeError, "int64"),
        (lambda x: [[x]], TypeError, "list"),
        (lambda x: (), TypeError, "no output"),
        (lambda x: None, TypeError, "NoneType"),
        (lambda x: x.mean((2, 3)), ValueError, r"\(1, 1\)"),
        (lambda x: x[:0], ValueError, "for 1 tiles"),
    ],
)
def test_answers_that_cannot_be_blended_are_refused(
    network: Callable[..., Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        SlidingWindowInferer(8)(torch.rand(1, 1, 20, 20), network)


def test_outputs_that_change_from_tile_to_tile_are_refused() -> None:
    calls = itertools.count()
    with pytest.raises(ValueError, match="every tile needs the same outputs"):
        SlidingWindowInferer(8)(
            torch.rand(1, 1, 20, 20), lambda x: x if next(calls) else torch.cat([x, x], dim=1)
        )
    with pytest.raises(ValueError, match="every tile needs the same outputs"):
        SlidingWindowInferer(8)(
            torch.rand(1, 1, 20, 20), lambda x: {"a" if next(calls) % 2 else "b": x}
        )


@pytest.mark.parametrize(
    ("inputs", "arguments", "error", "words"),
    [
        (torch.rand(0, 1, 8, 8), {}, ValueError, "at least one"),
        (torch.rand(1, 8), {}, ValueError, "space axis"),
        (torch.rand(1, 1, 8, 8).numpy(), {}, TypeError, "torch.from_numpy"),
        (torch.rand(1, 1, 8, 8), {"roi_size": (8, 8, 8)}, ValueError, "2 space axes"),
        (torch.rand(1, 1, 8, 8), {"overlap": (0.1, 0.2, 0.3)}, ValueError, "2 space axes"),
        (torch.rand(1, 1, 20, 20), {"halo": 4}, ValueError, "enlarge it"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    inputs: Any, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        SlidingWindowInferer(**{"roi_size": 8, **arguments})(inputs, lambda x: x)


def test_monais_own_evaluator_style_call_works() -> None:
    """By keyword, as MONAI's engines and ensembles call an inferer."""
    image = torch.rand(1, 1, 20, 20)
    torch.testing.assert_close(
        SlidingWindowInferer((8, 8))(inputs=image, network=torch.nn.Identity()), image
    )


def test_progress_counts_calls_of_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    SlidingWindowInferer(8, 3, overlap=0, progress=True)(torch.rand(2, 1, 16, 16), lambda x: x)
    assert "3/3" in capsys.readouterr().err
    SlidingWindowInferer(8, 3, overlap=0)(torch.rand(2, 1, 16, 16), lambda x: x)
    assert not capsys.readouterr().err
