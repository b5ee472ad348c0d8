"""Rotation and scaling while reading: against SciPy, against the whole volume, by geometry, and the
distribution of what is drawn.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import regionprops

from pipeline.config import ConfigError, Patch, from_dict
from pipeline.data.augment import AUGMENT, augmentations
from pipeline.data.cache import Volume
from pipeline.data.normalise import IntensityScale
from pipeline.data.sampling import RandBalancedCropd
from pipeline.data.spatial import RandSpatiald, Warp, rotation, rules
from pipeline.data.transforms import training_chain

SCALE = IntensityScale(low=(0.0,), high=(2.0,))


def inside(warp: Warp, space: tuple[int, ...]) -> tuple[tuple[slice, ...], list[int]]:
    low, size = warp.box()
    first = [max(a, 0) for a in low]
    stops = [max(min(a + n, m), f) for a, n, m, f in zip(low, size, space, first, strict=True)]
    return tuple(slice(f, s) for f, s in zip(first, stops, strict=True)), first


def places(warp: Warp) -> np.ndarray:
    """Where each voxel of the patch lies in the volume, ``(dims, *size)``, by the definition."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in warp.size), indexing="ij")).astype(float)
    shape = (-1, *(1,) * len(warp.size))
    index -= warp.half.reshape(shape)
    return np.tensordot(warp.matrix, index, 1) + warp.centre.reshape(shape)


def shares(label: np.ndarray, warp: Warp, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated share of each label in float64, by SciPy, from the whole volume."""
    values = np.union1d(np.unique(label), [fill])
    wide = np.pad(label, 1, constant_values=fill)
    at = [
        p.clip(0, n - 1) for p, n in zip(places(warp) + 1, wide.shape, strict=True)
    ]  # beyond the padding is more of the same
    found = [scipy.ndimage.map_coordinates((wide == v).astype(float), at, order=1) for v in values]
    return values, np.stack(found)


def volumes(folder: Path, seed: int, space: tuple[int, ...], classes: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    image = rng.random(space).astype(np.float32)
    smooth = scipy.ndimage.gaussian_filter(rng.random((classes, *space)), (0, *(1.5,) * len(space)))
    label = smooth.argmax(axis=0).astype(np.uint8)
    out: dict[str, Any] = {"scale": SCALE}
    for name, array in (("image", image), ("label", label)):
        path = folder / f"{name}{seed}.npy"
        np.save(path, array[None])
        out[name] = Volume(path=path, shape=(1, *space), dtype=str(array.dtype))
    return out


def spatial(size: tuple[int, ...], **options: Any) -> RandSpatiald:
    given = {"p_rotation": 1.0, "p_scaling": 1.0, **options}
    setting = config(size, {"name": "spatial", "options": given})
    (found,) = augmentations(setting)
    assert isinstance(found, RandSpatiald)
    return found


def config(size: tuple[int, ...], *augment: object, **data: object) -> Any:
    return from_dict(
        {
            "name": "t",
            "data": {
                "dims": len(size),
                "patch": {"size": list(size), "foreground": None},
                "augment": list(augment),
                **data,
            },
            "network": "unet",
            "losses": ["dice"],
        }
    )


def cropper(move: RandSpatiald | None, size: tuple[int, ...], ignore: int | None = None, **patch):
    return RandBalancedCropd(
        {"label": "labels"}, Patch(size=size, foreground=None, **patch), ignore, {}, move
    )


# --- numerics -------------------------------------------------------------------------------------


@st.composite
def warps(draw: st.DrawFn) -> tuple[Warp, tuple[int, ...]]:
    """A transform of a patch anywhere about a volume, which may be smaller than the patch."""
    dims = draw(st.sampled_from([2, 3]))
    sides = st.integers(1, 14)
    size = tuple(draw(sides) for _ in range(dims))
    space = tuple(draw(st.integers(2, 24)) for _ in range(dims))
    angles = [draw(st.floats(-math.pi, math.pi)) for _ in range(3 if dims == 3 else 1)]
    start = [
        draw(st.integers(min(0, -((t - n) // 2)), max(0, n - t // 2)))
        for n, t in zip(space, size, strict=True)
    ]
    matrix = rotation(angles) * draw(st.floats(0.5, 2))
    return Warp(matrix, start, size), space


@settings(max_examples=150, deadline=None)
@given(drawn=warps(), seed=st.integers(0, 99), fill=st.sampled_from([0.0, 3.0]))
def test_the_box_gives_what_the_whole_volume_gives(
    drawn: tuple[Warp, tuple[int, ...]], seed: int, fill: float
) -> None:
    """And both what SciPy gives from the whole volume, constant outside."""
    warp, space = drawn
    image = np.random.default_rng(seed).random((2, *space)).astype(np.float32)
    box, first = inside(warp, space)
    found = warp.linear(image[(slice(None), *box)], first, fill)
    assert found.dtype == np.float32
    assert found.shape == (2, *warp.size)
    whole = Warp(warp.matrix, (warp.centre - warp.half).astype(int), warp.size).linear(
        image, [0] * len(space), fill
    )
    np.testing.assert_allclose(found, whole, atol=2e-5 * (1 + fill))
    offset = warp.centre - warp.matrix @ warp.half
    for channel, reference in zip(found, image, strict=True):
        wide = np.pad(reference.astype(float), 40, constant_values=fill)
        expected = scipy.ndimage.affine_transform(
            wide, warp.matrix, offset + 40, warp.size, order=1, mode="nearest"
        )
        np.testing.assert_allclose(channel, expected, atol=2e-5 * (1 + fill))


@settings(max_examples=150, deadline=None)
@given(
    drawn=warps(),
    seed=st.integers(0, 99),
    classes=st.sampled_from([1, 2, 5]),
    fill=st.sampled_from([0, 9]),
    kind=st.sampled_from([np.uint8, np.int16]),
)
def test_labels_take_the_largest_share(
    drawn: tuple[Warp, tuple[int, ...]], seed: int, classes: int, fill: int, kind: type
) -> None:
    """By shares that SciPy interpolates from the whole volume, wherever one is clearly largest."""
    warp, space = drawn
    label = np.random.default_rng(seed).integers(0, classes, space).astype(kind)
    box, first = inside(warp, space)
    found = warp.labels(label[box][None], first, fill)[0]
    assert found.dtype == kind
    values, expected = shares(label, warp, fill)
    own = np.take_along_axis(expected, np.searchsorted(values, found)[None], 0)[0]
    assert (own >= expected.max(axis=0) - 2e-5).all()
    assert np.isin(found, values).all()


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
@pytest.mark.parametrize("plane", [(1, 2), (2, 0), (0, 1)])
@pytest.mark.parametrize("side", [16, 15])
def test_quarter_turns_are_exact(side: int, plane: tuple[int, int], angle: int) -> None:
    rng = np.random.default_rng(side)
    image, label = rng.random((1, side, side, side)), rng.integers(0, 4, (1, side, side, side))
    angles = [0.0, 0.0, 0.0]
    angles[3 - sum(plane)] = math.radians(angle)
    warp = Warp(rotation(angles), (0, 0, 0), (side,) * 3)
    assert warp.box() == ([0] * 3, [side] * 3)
    turns, axes = angle // 90, tuple(a + 1 for a in plane)
    found = warp.linear(image.astype(np.float32), (0, 0, 0))
    expected = np.rot90(image.astype(np.float32), -turns, axes)
    # In boxes of a power of two float32 holds every place exactly.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if side == 16 else 2e-6)
    for labels in (label, (label > 1).astype(np.uint8)):
        np.testing.assert_array_equal(
            warp.labels(labels, (0, 0, 0), 7), np.rot90(labels, -turns, axes)
        )


def test_a_quarter_turn_of_an_image() -> None:
    image = np.arange(64, dtype=np.float32).reshape(1, 8, 8)
    found = Warp(rotation([math.pi / 2]), (0, 0), (8, 8)).linear(image, (0, 0))
    np.testing.assert_array_equal(found[0], np.rot90(image[0], -1))


def test_a_tie_goes_to_the_nearest_then_to_the_lowest() -> None:
    """Half a voxel beside the grid all shares are equal; among three labels the nearest may have
    less than two that are tied.
    """
    pair = np.array([[[1, 2]]], np.uint8).repeat(2, axis=1)
    half = Warp(np.eye(2), (0, 0), (2, 1))
    half.centre = np.array([0.5, 0.5])
    np.testing.assert_array_equal(half.labels(pair, (0, 0), 0)[0], [[2], [2]])
    half.centre = np.array([0.5, 0.5 - 1e-12])
    np.testing.assert_array_equal(half.labels(pair, (0, 0), 0)[0], [[2], [2]])
    many = np.array([[[5, 2], [7, 2]]], np.uint8)
    spot = Warp(np.eye(2), (0, 0), (1, 1))
    spot.centre = np.array([0.5, 0.5])
    assert spot.labels(many, (0, 0), 0)[0, 0, 0] == 2
    # 5 is nearest with a share of 0.36; 2 and 7 have 0.24 + 0.08 = 0.32 ... of all three 5 wins.
    spot.centre = np.array([0.4, 0.4])
    assert spot.labels(np.array([[[5, 2], [7, 3]]], np.uint8), (0, 0), 0)[0, 0, 0] == 5
    # 5 has 0.3025, the others 0.2475 + 0.2025 = 0.45 together.
    spot.centre = np.array([0.45, 0.45])
    assert spot.labels(np.array([[[5, 2], [3, 2]]], np.uint8), (0, 0), 0)[0, 0, 0] == 2


@pytest.mark.parametrize("length", [100, 500, 1000, 2500])
def test_places_are_exact_in_large_boxes(length: int) -> None:
    """A zigzag of slope 1 shows an error of place as one of value."""
    zigzag = np.abs(np.arange(length) % 20 - 10.0)
    image = np.broadcast_to(zigzag[None, :, None], (1, length, 40)).astype(np.float32)
    for matrix in (np.eye(2), rotation([0.3]), rotation([0.02]) * 0.9):
        warp = Warp(matrix, (length // 20, 4), (length * 9 // 10, 32))
        place = places(warp)
        expected = np.interp(place[0], np.arange(length), zigzag)
        well = (place >= 0).all(0) & (place[0] <= length - 1) & (place[1] <= 39)
        assert well.mean() > 0.05
        assert np.abs(warp.linear(image, (0, 0))[0] - expected)[well].max() < 1e-4


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_a_ball_stays_a_ball_of_scaled_volume(factor: float) -> None:
    """Above 1 things become smaller."""
    grid = np.stack(np.meshgrid(*(np.arange(72.0),) * 3, indexing="ij"))
    ball = ((grid - 35.5) ** 2).sum(0) < 15**2
    warp = Warp(rotation([0.4, -0.3, 0.2]) * factor, (4, 4, 4), (64, 64, 64))
    box, first = inside(warp, ball.shape)
    out = warp.labels(ball[box][None].astype(np.uint8), first, 0)[0]
    assert out.sum() == pytest.approx(ball.sum() / factor**3, rel=0.01)
    (found,) = regionprops(out)
    assert found.centroid == pytest.approx((31.5,) * 3, abs=0.05)
    assert found.axis_minor_length / found.axis_major_length > 0.98


def test_turns_of_three_axes_follow_each_other() -> None:
    """The first axis first, each taking the next axis towards the one after it."""
    from scipy.spatial.transform import Rotation

    angles = (0.3, -0.7, 1.1)
    np.testing.assert_allclose(
        rotation(angles), Rotation.from_euler("xyz", angles).as_matrix(), atol=1e-12
    )


# --- in the crop ----------------------------------------------------------------------------------


def test_where_nothing_is_drawn_the_bits_are_those_of_a_plain_crop(tmp_path: Path) -> None:
    size = (8, 12, 10)
    data = volumes(tmp_path, 0, (20, 24, 9))
    plain, move = cropper(None, size), spatial(size, p_rotation=0.2, p_scaling=0.2)
    crop, same = cropper(move, size), 0
    for seed in range(60):
        outs = []
        for c in (plain, crop):
            c.set_random_state(seed)
            outs.append(c(data))
        state = np.random.RandomState(seed)
        for n in (20 - 8, 24 - 12):
            state.randint(0, n + 1)
        drawn = move.draw(state)
        for key in ("image", "label"):
            assert outs[0][key].dtype == outs[1][key].dtype
            assert outs[0][key].shape == outs[1][key].shape
            if drawn is None:
                np.testing.assert_array_equal(outs[0][key], outs[1][key])
            else:
                assert not np.array_equal(outs[0]["image"], outs[1]["image"])
        same += drawn is None
        if drawn is None:
            assert outs[0]["foreground_share"] == outs[1]["foreground_share"]
    assert 30 < same < 48


@pytest.mark.parametrize(("border", "ignore"), [("zero", None), ("zero", 9), ("mirror", 9)])
@pytest.mark.parametrize("size", [(10, 12), (4, 12, 8), (24, 24)])
def test_the_crop_reads_what_the_transform_needs(
    tmp_path: Path, size: tuple[int, ...], border: str, ignore: int | None
) -> None:
    """The same as transforming the whole padded volume; with ``mirror`` a mirrored one."""
    space = (20, 18, 22)[: len(size)]
    data = volumes(tmp_path, 1, space)
    crop = cropper(spatial(size), size, ignore, border=border)
    image, label = (np.asarray(data[k].array[0]) for k in ("image", "label"))
    mode: Any = {"mode": "symmetric"} if border == "mirror" else {"mode": "constant"}
    label_mode = mode if border == "mirror" else {**mode, "constant_values": ignore or 0}
    wide, labels = np.pad(SCALE.apply(image[None])[0], 40, **mode), np.pad(label, 40, **label_mode)
    for seed in range(6):
        crop.set_random_state(seed)
        out = crop(data)
        crop.set_random_state(seed)
        start, _ = crop.randomize(data)
        matrix = crop.spatial.draw(crop.R)
        warp = Warp(matrix, [s + 40 for s in start], size)
        expected = warp.linear(wide[None], [0] * len(size))
        np.testing.assert_allclose(out["image"], expected, atol=2e-5)
        values, found = shares(labels, warp, 0)
        own = np.take_along_axis(found, np.searchsorted(values, out["label"][0])[None], 0)[0]
        assert (own >= found.max(axis=0) - 2e-5).all()
        assert out["label"].dtype == np.uint8
        assert out["label"].shape == (1, *size)
        counted = out["label"] != ignore
        share = (out["label"][counted] > 0).mean() if counted.any() else float("nan")
        assert out["foreground_share"] == pytest.approx(share, nan_ok=True)


def test_only_the_box_is_read(tmp_path: Path) -> None:
    """Of a patch that does not move exactly the patch; of one that does no voxel too many: each
    face of the box holds a voxel with some weight.
    """
    for seed in range(20):
        rng = np.random.default_rng(seed)
        warp = Warp(rotation(rng.uniform(-1, 1, 3)) * rng.uniform(0.7, 1.4), (40,) * 3, (9, 6, 12))
        low, size = warp.box()
        place = places(warp).reshape(3, -1)
        assert (np.floor(place.min(1)) == low).all()
        assert (np.ceil(place.max(1)) + 1 == np.array(low) + size).all()


def test_maps_move_along(tmp_path: Path) -> None:
    """Masks take the larger share, distances are interpolated and end in their own value."""
    size, rng = (10, 10), np.random.default_rng(0)
    data = volumes(tmp_path, 2, (16, 16), 2)
    maps = {"label:skeleton": rng.integers(0, 2, (2, 16, 16)).astype(np.uint8)}
    maps["label:distance"] = rng.normal(0, 2, (1, 16, 16)).astype(np.float16)
    for name, array in maps.items():
        path = tmp_path / f"{name.replace(':', '.')}.npy"
        np.save(path, array)
        data[name] = Volume(path=path, shape=array.shape, dtype=str(array.dtype))
    modes = {"image": "bilinear", "label": "nearest"}
    modes |= {"label:skeleton": "nearest", "label:distance": "bilinear"}
    move = RandSpatiald(modes, size, (1.0, 1.0), (math.pi,), (1.2, 1.4))
    fills = {"label:skeleton": 0.0, "label:distance": 5.0}
    crop = RandBalancedCropd({"label": "labels"}, Patch(size=size, foreground=None), 9, fills, move)
    crop.set_random_state(3)
    out = crop(data)
    crop.set_random_state(3)
    start, _ = crop.randomize(data)
    warp = Warp(move.draw(crop.R), [s + 20 for s in start], size)  # type: ignore[arg-type]
    wide = np.pad(maps["label:distance"][0].astype(np.float32), 20, constant_values=5.0)
    np.testing.assert_allclose(out["label:distance"], warp.linear(wide[None], (0, 0)), atol=1e-4)
    assert out["label:distance"].dtype == np.float32
    assert out["label:skeleton"].dtype == np.uint8
    assert (out["label:distance"] == 5).any()
    assert out["label:skeleton"].shape == (2, *size)
    for found, mask in zip(out["label:skeleton"], maps["label:skeleton"], strict=True):
        values, share = shares(np.pad(mask, 20), warp, 0)
        own = np.take_along_axis(share, np.searchsorted(values, found)[None], 0)[0]
        assert (own >= share.max(axis=0) - 2e-5).all()


# --- what is drawn --------------------------------------------------------------------------------


def drawn_moves(move: RandSpatiald, count: int) -> list[np.ndarray | None]:
    state = np.random.RandomState(7)
    return [move.draw(state) for _ in range(count)]


def test_a_fifth_is_rotated_a_fifth_is_scaled_and_a_25th_both() -> None:
    moves = drawn_moves(spatial((32, 32, 32), p_rotation=0.2, p_scaling=0.2), 20_000)
    factors = np.array([1.0 if m is None else abs(np.linalg.det(m)) ** (1 / 3) for m in moves])
    turned = np.array(
        [m is not None and np.abs(m - np.diag(np.diag(m))).max() > 1e-9 for m in moves]
    )
    scaled = np.abs(factors - 1) > 1e-9
    assert np.mean([m is None for m in moves]) == pytest.approx(0.64, abs=0.012)
    assert turned.mean() == pytest.approx(0.2, abs=0.01)
    assert scaled.mean() == pytest.approx(0.2, abs=0.01)
    assert (turned & scaled).mean() == pytest.approx(0.04, abs=0.005)
    found = scipy.stats.kstest(factors[scaled], scipy.stats.uniform(0.7, 0.7).cdf)
    assert found.pvalue > 0.01
    default = AUGMENT["spatial"].make.__defaults__
    assert default == (0.2, 0.2, None, (0.7, 1.4), None)


@pytest.mark.parametrize(
    ("size", "options", "most"),
    [
        ((32, 32, 32), {}, (30, 30, 30)),
        ((32, 32, 11), {}, (30, 30, 30)),
        ((32, 32, 10), {}, (0, 0, 180)),
        ((10, 32, 32), {}, (180, 0, 0)),
        ((10, 32, 32), {"dummy_2d": False}, (30, 30, 30)),
        ((31, 32, 32), {"dummy_2d": True}, (180, 0, 0)),
        ((32, 32, 32), {"degrees": 15}, (15, 15, 15)),
        ((10, 32, 32), {"degrees": 45.0}, (45, 0, 0)),
        ((32, 32), {}, (180,)),
        ((32, 48), {}, (180,)),
        ((32, 49), {}, (15,)),
        ((32, 49), {"degrees": 90}, (90,)),
    ],
)
def test_angles_are_uniform_within_the_rule(
    size: tuple[int, ...], options: dict, most: tuple[float, ...]
) -> None:
    from scipy.spatial.transform import Rotation

    matrices = drawn_moves(spatial(size, p_scaling=0.0, **options), 2000)
    found = np.array([np.eye(len(size)) if m is None else m for m in matrices])
    if len(size) == 2:
        angles = np.degrees(np.arctan2(found[:, 1, 0], found[:, 0, 0]))[:, None]
    else:
        angles = Rotation.from_matrix(found).as_euler("xyz", degrees=True)
    for column, limit in zip(angles.T, most, strict=True):
        assert np.abs(column).max() <= limit + 1e-6
        if limit:
            uniform = scipy.stats.uniform(-limit, 2 * limit)
            assert scipy.stats.kstest(column, uniform.cdf).pvalue > 0.01


def test_flat_patches_are_neither_tilted_nor_scaled_across() -> None:
    for m in drawn_moves(spatial((8, 32, 32)), 200):
        assert m is not None
        np.testing.assert_array_equal(m[0], [1, 0, 0])
        np.testing.assert_array_equal(m[:, 0], [1, 0, 0])
        in_plane = np.linalg.svd(m[1:, 1:], compute_uv=False)
        assert in_plane[0] == pytest.approx(in_plane[1])
        assert 0.7 <= in_plane[0] <= 1.4
        warp = Warp(m, (5, 5, 5), (8, 32, 32))
        assert (warp.box()[0][0], warp.box()[1][0]) == (5, 8)


def test_as_many_numbers_are_used_whatever_is_drawn() -> None:
    nexts = []
    for chance in (0.0, 1.0):
        state = np.random.RandomState(1)
        spatial((8, 8, 8), p_rotation=chance, p_scaling=chance).draw(state)
        nexts.append(state.random_sample())
    assert nexts[0] == nexts[1]


# --- config ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": [1.4, 0.7]}, r"scale is \[1.4, 0.7\], must satisfy 0 < low <= high"),
        ({"scale": [0, 1]}, "0 < low"),
        ({"scale": [1, 20]}, "high <= 4"),
        ({"scale": 1.4}, "two numbers"),
        ({"p_rotation": 1.5}, "p_rotation is 1.5"),
        ({"p_scaling": -0.5}, "p_scaling is -0.5"),
        ({"degrees": 200}, "degrees is 200"),
        ({"dummy_2d": True}, "dummy_2d is for volumes"),
        ({"p": 0.5}, "no option 'p'"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        augmentations(config((32, 32), {"name": "spatial", "options": options}))


def test_it_comes_first_and_once() -> None:
    for entries in (["noise", "spatial"], ["spatial", "flip", "spatial"]):
        with pytest.raises(ConfigError, match=r"data.augment.\d: 'spatial' .* the first entry"):
            augmentations(config((32, 32), *entries))
    chain = training_chain(config((32, 32), "spatial", "noise")).transforms
    assert [type(t).__name__ for t in chain] == [
        "OpenCachedCase", "RandBalancedCropd", "RandGaussianNoised",
    ]  # fmt: skip
    assert training_chain(config((32, 32), "noise")).transforms[1].spatial is None


def test_a_patch_that_is_cut_already_is_moved_too() -> None:
    sample = {"image": np.ones((1, 16, 16), np.float32), "label": np.ones((1, 16, 16), np.uint8)}
    move = spatial((16, 16), p_scaling=0.0)
    move.set_random_state(0)
    out = move(sample)
    assert out["image"][0, 0, 0] < 1
    assert out["image"][0, 8, 8] == pytest.approx(1)
    assert out["label"].dtype == np.uint8
    assert out["label"][0, 8, 8] == 1


def test_the_rule_of_slender_patches() -> None:
    assert rules((32, 32, 96), None, None)[1] is None
    assert rules((32, 32, 97), None, None)[1] == 0
    assert rules((40, 20, 61), None, None)[1] == 1
