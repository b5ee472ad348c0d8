"""Augmentation: one field for image and targets, labels that stay labels, colours that only
`colour` changes, seeds that hold.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose, RandAffined
from skimage.color import rgb2hsv
from skimage.exposure import equalize_adapthist

from pipeline.config import Config, ConfigError, from_dict
from pipeline.data.augment import AUGMENT, augmentations
from pipeline.data.augment.colours import colour_matrix
from pipeline.data.augment.geometry import UNFOLDED
from pipeline.data.augment.keys import Keys
from pipeline.data.augment.moves import RandElasticd
from pipeline.data.cache import CachedCase, Volume
from pipeline.data.loaders import PatchDataset, set_random_state
from pipeline.data.normalise import IntensityScale
from pipeline.data.properties import CaseProperties
from pipeline.data.transforms import plain_tensors
from pipeline.losses import reads
from pipeline.records import Case


@pytest.fixture(autouse=True)
def _as_in_training() -> Iterator[None]:
    with plain_tensors():
        yield


FLAT, SOLID = (32, 32), (12, 12, 12)
GEOMETRY = {
    "flip": {"axes": "each"},
    "rotate90": {},
    "rotate": {},
    "affine": {"degrees": 40, "scale": 0.3, "translate": 3, "shear": 0.2},
    "elastic": {"spacing": 6, "magnitude": 2},
}
ENTRIES = [
    (name, size)
    for name in AUGMENT
    for size in (FLAT, SOLID)
    if name != "spatial" and (name != "clahe" or size == FLAT)
]


def part(name: str, p: float = 1.0, **options: object) -> dict:
    return {"name": name, "options": {"p": p, **options}}


def config(
    size: tuple[int, ...], *augment: object, losses: tuple = ("dice",), **data: object
) -> Config:
    patch = {"size": list(size), "foreground": None}
    return from_dict(
        {
            "name": "t",
            "data": {
                "dims": len(size),
                "ignore_label": 255,
                "patch": patch,
                "augment": list(augment),
                **data,
            },
            "network": "unet",
            "losses": list(losses),
        }
    )


def apply(setting: Config, sample: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    chain = Compose(augmentations(setting, reads(setting.losses)))
    set_random_state(chain, np.random.RandomState(seed))
    out = chain({k: v.copy() for k, v in sample.items()})
    assert isinstance(out, dict)
    return {k: np.asarray(v) for k, v in out.items()}


def image_only(image: np.ndarray, *augment: object, seed: int = 0) -> np.ndarray:
    """The image after the entries, beside a label that must come out as it went in."""
    label = np.arange(image[0].size, dtype=np.uint16).reshape(1, *image.shape[1:])
    out = apply(config(image.shape[1:], *augment), {"image": image, "label": label}, seed)
    np.testing.assert_array_equal(out["label"], label)
    return out["image"]


def coordinates(size: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in size), indexing="ij"))


def picture(channels: int, size: tuple[int, ...] = FLAT, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((channels, *size), dtype=np.float32)


def hue(image: np.ndarray) -> np.ndarray:
    """Angle about the grey axis in radians, red at 0 and green at 120 degrees; of ``(3, *S)``."""
    red, green, blue = image.astype(np.float64)
    return np.arctan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)


def turn(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """By how much hues were turned, in degrees from -180 to 180, where there is a colour worth the
    name.
    """
    vivid = np.ptp(before, axis=0) > 0.1
    return np.degrees(np.angle(np.exp(1j * (hue(after) - hue(before)))))[vivid]


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [FLAT, SOLID])
@pytest.mark.parametrize("name", GEOMETRY)
def test_image_and_targets_move_by_the_same_field(name: str, size: tuple[int, ...]) -> None:
    """Each voxel carries its place: as input, as target image, and as the label that numbers the
    voxels.
    """
    targets = {"label": "labels", "twin": "image"}
    setting = config(size, part(name, **GEOMETRY[name]), targets=targets)
    places = coordinates(size)
    numbers = np.arange(math.prod(size), dtype=np.int32).reshape(1, *size)
    moved = 0
    for seed in range(4):
        out = apply(setting, {"image": places, "twin": places, "label": numbers}, seed)
        np.testing.assert_array_equal(out["image"], out["twin"])
        assert out["label"].dtype == np.int32
        np.testing.assert_allclose(
            np.stack(np.unravel_index(out["label"][0], size)), out["image"], atol=0.501
        )
        moved += not np.array_equal(out["image"], places)
    assert moved >= 2


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("name", GEOMETRY)
def test_labels_keep_type_and_values(name: str, dtype: type) -> None:
    """Interpolation between 0 and the ignored 255 would invent the classes in between."""
    label = np.random.default_rng(1).choice(np.array([0, 1, 3, 255], dtype), (1, *FLAT))
    for p, seed in itertools.product((0.0, 1.0), range(3)):
        out = apply(
            config(FLAT, part(name, p, **GEOMETRY[name])),
            {"image": picture(3), "label": label},
            seed,
        )
        assert out["label"].dtype == dtype
        assert set(np.unique(out["label"])) == {0, 1, 3, 255}


@pytest.mark.parametrize("name", ["affine", "rotate", "elastic"])
def test_maps_of_losses_are_moved_after_their_kind(name: str) -> None:
    setting = config(FLAT, part(name, **GEOMETRY[name]), losses=("skeleton_recall", "boundary"))
    label = (coordinates(FLAT)[:1] > 15).astype(np.uint8)
    distance = 15.5 - coordinates(FLAT)[:1]
    out = apply(
        setting,
        {"image": picture(1), "label": label, "label:skeleton": label, "label:distance": distance},
    )
    np.testing.assert_array_equal(out["label:skeleton"], out["label"])
    assert len(np.unique(out["label:distance"])) > FLAT[0], "distances are interpolated"
    clear = np.abs(out["label:distance"]) > 1
    np.testing.assert_array_equal((out["label:distance"] < 0)[clear], out["label"][clear] == 1)


@pytest.mark.parametrize("size", [FLAT, SOLID])
def test_plain_affine_is_monais_with_its_draws(size: tuple[int, ...]) -> None:
    """Options of zero draw no random numbers: a seed gives what it gave before they existed."""
    dims = len(size)
    angle = 15 * math.pi / 180
    reference = RandAffined(
        ("image",),
        prob=1.0,
        rotate_range=(angle,) * (3 if dims == 3 else 1),
        scale_range=(0.1,) * dims,
        padding_mode="reflection",
    )
    reference.set_random_state(state=np.random.RandomState(3))
    expected = reference({"image": picture(2, size)})["image"]
    np.testing.assert_array_equal(
        image_of(picture(2, size), part("affine"), seed=3), np.asarray(expected)
    )


def image_of(image: np.ndarray, *augment: object, seed: int = 0) -> np.ndarray:
    label = np.zeros((1, *image.shape[1:]), np.uint8)
    return apply(config(image.shape[1:], *augment), {"image": image, "label": label}, seed)["image"]


@pytest.mark.parametrize(("name", "rigid"), [("rotate", True), ("affine", False)])
def test_rotation_keeps_distances_and_turns_far(name: str, rigid: bool) -> None:
    """Near the centre, where no turn reaches over the border."""
    angles = []
    for seed in range(8):
        middle = image_of(coordinates(FLAT), part(name), seed=seed)[:, 8:24, 8:24].astype(
            np.float64
        )
        down, along = middle[:, -1, 0] - middle[:, 0, 0], middle[:, 0, -1] - middle[:, 0, 0]
        lengths = np.hypot(*down), np.hypot(*along)
        assert np.allclose(lengths, 15, atol=1e-3) == rigid
        angles.append(abs(math.degrees(math.atan2(down[1], down[0]))))
    assert (max(angles) > 90) == rigid


def test_shear_and_translation_do_what_they_say() -> None:
    """Only translated: every voxel by the same shift, within bounds.

    Only sheared: squares lose their right angle, not their middle.
    """
    places = coordinates(FLAT)
    inner = (slice(None), slice(10, 22), slice(10, 22))
    for seed in range(4):
        shift = (
            image_of(places, part("affine", degrees=0, scale=0, translate=4), seed=seed) - places
        )[inner].reshape(2, -1)
        np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=1e-3)
        assert 0 < np.abs(shift).max() <= 4
        sheared = image_of(places, part("affine", degrees=0, scale=0, shear=0.3), seed=seed)[inner]
        np.testing.assert_allclose(sheared.mean((1, 2)), 15.5, atol=1e-3)
        down, along = sheared[:, -1, 0] - sheared[:, 0, 0], sheared[:, 0, -1] - sheared[:, 0, 0]
        assert abs(down @ along) > 1


# --- elastic --------------------------------------------------------------------------------------


def elastic(size: tuple[int, ...], spacing: float, magnitude: float, seed: int = 0) -> RandElasticd:
    out = RandElasticd(
        Keys(image=("image",), every=("image",), modes=("bilinear",), size=size),
        1.0,
        spacing,
        magnitude,
    )
    out.set_random_state(seed)
    out.randomize()
    return out


@settings(max_examples=40, deadline=None)
@given(
    size=st.lists(st.integers(1, 20), min_size=2, max_size=3).map(tuple),
    spacing=st.floats(0.7, 50),
    share=st.floats(0.01, 0.4),
    seed=st.integers(0, 99),
)
def test_elastic_moves_no_voxel_further_than_it_says(
    size: tuple[int, ...], spacing: float, share: float, seed: int
) -> None:
    transform = elastic(size, spacing, share * spacing, seed)
    field = transform.field()
    assert field.shape == (len(size), *size)
    assert np.abs(field).max() <= share * spacing * (1 + 1e-9)
    transform.shifts = np.ones_like(transform.shifts)
    np.testing.assert_allclose(
        transform.field(), 1, err_msg="control points that move alike move everything alike"
    )


def determinant(field: np.ndarray) -> np.ndarray:
    """Jacobian determinant of ``x + field(x)`` by central differences."""
    axes = range(len(field))
    gradient = np.stack([np.stack(np.gradient(part, axis=tuple(axes))) for part in field])
    return np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(len(field)))


@pytest.mark.parametrize("size", [(40, 40), (30, 30, 30)])
def test_elastic_never_folds_at_the_largest_magnitude(size: tuple[int, ...]) -> None:
    """Control points pushed to their limit, each to a random side or all against each other:
    orientation is kept everywhere.
    """
    spacing, most = 10.0, UNFOLDED[len(size)] * 10.0
    transform = elastic(size, spacing, most)
    least = []
    for seed in range(20):
        sides = np.random.default_rng(seed).choice([-1.0, 1.0], transform.shifts.shape)
        transform.shifts = most * sides
        least.append(determinant(transform.field()).min())
    parity = np.indices(transform.shifts.shape[1:])
    transform.shifts = most * np.where((parity // 2) % 2, 1.0, -1.0)
    least.append(determinant(transform.field()).min())
    assert min(least) > 0
    transform.shifts *= 2.5
    assert determinant(transform.field()).min() < 0, "this measure can see a fold"


def test_elastic_samples_where_its_field_points() -> None:
    transform = elastic(FLAT, 10, 4)
    transform.set_random_state(7)
    moved = transform({"image": coordinates(FLAT)})["image"]
    inner = (slice(None), slice(6, -6), slice(6, -6))
    np.testing.assert_allclose(
        (moved - coordinates(FLAT))[inner], transform.field()[inner], atol=1e-4
    )
    assert np.abs(transform.field()).max() > 1


def test_elastic_of_no_magnitude_is_identity() -> None:
    """MONAI's own moves voxels at the border by more than one."""
    np.testing.assert_allclose(
        image_of(coordinates(FLAT), part("elastic", magnitude=0)), coordinates(FLAT), atol=1e-5
    )


# --- every entry ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "size"), ENTRIES)
def test_every_entry_keeps_shape_type_and_sense(
    name: str, size: tuple[int, ...], channels: int
) -> None:
    image = picture(channels, size)
    label = (image[:1] > 0.5).astype(np.uint8)
    chain = Compose(augmentations(config(size, part(name))))
    set_random_state(chain, np.random.RandomState(0))
    before = image.copy()
    sample = chain({"image": image, "label": label})
    np.testing.assert_array_equal(image, before, err_msg="the input was written to")
    assert isinstance(sample, dict)
    assert all(type(v) in (np.ndarray, torch.Tensor) for v in sample.values()), "a MetaTensor leaks"
    out = {k: np.asarray(v) for k, v in sample.items()}
    assert out["image"].shape == image.shape
    assert out["label"].shape == label.shape
    assert out["image"].dtype == np.float32
    assert out["label"].dtype == np.uint8
    assert np.isfinite(out["image"]).all()
    changes = (not np.array_equal(image_of(image, part(name), seed=s), image) for s in range(6))
    assert any(changes) == (name != "colour" or channels == 3)


@pytest.mark.parametrize(("name", "size"), ENTRIES)
def test_probability_zero_is_identity(name: str, size: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(image_only(picture(3, size), part(name, 0.0)), picture(3, size))


@pytest.mark.parametrize(("name", "size"), ENTRIES)
def test_constant_patches_survive(name: str, size: tuple[int, ...]) -> None:
    for value in (-1.0, 0.0, 0.7):
        out = image_of(np.full((3, *size), value, np.float32), part(name))
        assert np.isfinite(out).all()
        if name not in ("noise", "brightness", "brightness_additive", "shift", "colour"):
            np.testing.assert_allclose(out, value, atol=1e-4)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    """Two RGB images with labels, as the store hands them out."""
    folder = tmp_path_factory.mktemp("arrays")

    def keep(name: str, array: np.ndarray) -> Volume:
        np.save(folder / f"{name}.npy", array)
        return Volume(path=folder / f"{name}.npy", shape=array.shape, dtype=str(array.dtype))

    def case(n: int) -> CachedCase:
        image = (picture(3, (48, 50), n) * 255).astype(np.uint8)
        volumes = keep(f"image{n}", image), keep(f"label{n}", (image[:1] > 128).astype(np.uint8))
        scale = IntensityScale(low=(0.0,), high=(255.0,))
        name = Case(id=f"{n}", image=(Path("none"),))
        return CachedCase(
            case=name,
            image=volumes[0],
            targets={"label": volumes[1]},
            scale=scale,
            properties=CaseProperties(id=f"{n}", files={}),
        )

    return [case(0), case(1)]


@pytest.mark.parametrize("name", [name for name in AUGMENT if name != "spatial"])
def test_a_sample_depends_on_its_key_alone(name: str, cases: list[CachedCase]) -> None:
    """Transforms inside transforms draw from the shared state too: other samples drawn before
    change nothing.
    """
    setting = config(FLAT, part(name), part("noise", 0.5))
    key = (4, 5, 1)
    first = PatchDataset(cases, setting, 0, training=True)
    for n in range(3):
        first[0, n, 0]
    np.random.seed(0)
    again = PatchDataset(cases, setting, 0, training=True)
    a, b = first[key], again[key]
    for k in ("image", "label"):
        torch.testing.assert_close(a[k], b[k], rtol=0, atol=0)
    assert a["label"].dtype == torch.uint8
    assert a["image"].dtype == torch.float32
    assert type(a["image"]) is type(a["label"]) is torch.Tensor


# --- colour ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_colour_leaves_other_images_alone_and_draws_the_same(channels: int) -> None:
    image = picture(channels)
    np.testing.assert_array_equal(image_only(image, part("colour", hue=90)), image)
    states = []
    for sample in (image, picture(3)):
        chain, state = (
            Compose(augmentations(config(FLAT, part("colour", 0.5)))),
            np.random.RandomState(5),
        )
        set_random_state(chain, state)
        for _ in range(4):
            chain({"image": sample, "label": np.zeros((1, *FLAT), np.uint8)})
        states.append(state.rand())
    assert states[0] == states[1]


def test_colour_turns_all_hues_by_one_angle_and_moves_nothing() -> None:
    image = picture(3)
    seen = []
    for seed in range(6):
        after = image_only(image, part("colour", hue=40, saturation=[0.7, 1.3], gain=0), seed=seed)
        turned = turn(image, after)
        np.testing.assert_allclose(turned, turned[0], atol=0.01)
        seen.append(turned[0])
        np.testing.assert_allclose(after.mean(0), image.mean(0), atol=1e-5)
        radius = np.linalg.norm(after - after.mean(0), axis=0) / np.linalg.norm(
            image - image.mean(0), axis=0
        )
        np.testing.assert_allclose(radius, radius[0, 0], rtol=1e-3)
        assert 0.7 <= radius[0, 0] <= 1.3
        mixed = image[:, ::-1].transpose(0, 2, 1)
        np.testing.assert_allclose(
            image_of(mixed, part("colour", hue=40, saturation=[0.7, 1.3], gain=0), seed=seed),
            after[:, ::-1].transpose(0, 2, 1),
            atol=1e-6,
        )
    assert max(seen) > 5
    assert min(seen) < -5
    assert max(map(abs, seen)) <= 40


def test_a_third_of_a_turn_takes_red_to_green() -> None:
    np.testing.assert_allclose(
        colour_matrix(math.radians(120), 1), np.eye(3)[[2, 0, 1]], atol=1e-12
    )
    np.testing.assert_allclose(
        colour_matrix(0.4, 1) @ colour_matrix(-0.4, 1), np.eye(3), atol=1e-12
    )
    hsv = rgb2hsv(
        np.moveaxis(np.tensordot(colour_matrix(math.radians(120), 1), picture(3), axes=1), 0, -1)
    )
    expected = rgb2hsv(np.moveaxis(picture(3), 0, -1))
    np.testing.assert_allclose((hsv[..., 0] - expected[..., 0]) % 1, 1 / 3, atol=1e-5)
    np.testing.assert_allclose(hsv[..., 1:], expected[..., 1:], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.1, 10), offset=st.floats(-3, 3), seed=st.integers(0, 99))
def test_hue_and_saturation_mean_the_same_on_any_range(
    scale: float, offset: float, seed: int
) -> None:
    image, entry = picture(3, (8, 8), seed), part("colour", hue=30, gain=0)
    there = image_of((scale * image + offset).astype(np.float32), entry, seed=seed)
    np.testing.assert_allclose(
        there,
        scale * image_of(image, entry, seed=seed) + offset,
        atol=1e-5 * (1 + scale + abs(offset)),
    )


def test_gain_tints_each_channel_for_itself() -> None:
    ratio = image_of(picture(3) + 1, part("colour", hue=0, saturation=[1, 1], gain=0.2)) / (
        picture(3) + 1
    )
    factors = ratio[:, 0, 0]
    np.testing.assert_allclose(
        ratio, np.broadcast_to(factors[:, None, None], ratio.shape), rtol=1e-5
    )
    assert len(set(factors.round(4))) == 3
    assert np.abs(factors - 1).max() <= 0.2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("brightness", {"range": [0.5, 2]}),
        ("contrast", {"range": [0.5, 2]}),
        ("shift", {"offset": 0.5}),
    ],
)
def test_one_factor_for_all_channels_keeps_hues(name: str, options: dict) -> None:
    image = picture(3) * np.array([1, 0.5, 0.2], np.float32)[:, None, None]
    for seed in range(4):
        after = image_only(image, part(name, **options), seed=seed)
        assert not np.array_equal(after, image)
        np.testing.assert_allclose(turn(image, after), 0, atol=0.01)


@pytest.mark.parametrize("low", [0.0, -2.0])
def test_gamma_is_one_rising_curve_for_all_channels(low: float) -> None:
    """Grey stays grey, the order of channels stays, minimum and maximum stay; negative values are
    no trap.
    """
    image = picture(3) * np.array([1, 0.5, 0.2], np.float32)[:, None, None] + low
    image[:, :4] = image[:1, :4]
    for seed in range(4):
        after = image_only(image, part("gamma"), seed=seed)
        assert not np.allclose(after, image, atol=0.005)
        order = np.argsort(image, axis=None)
        assert (np.diff(after.reshape(-1)[order]) >= 0).all()
        np.testing.assert_array_equal(after[0, :4], after[1, :4])
        np.testing.assert_allclose(
            [after.min(), after.max()], [image.min(), image.max()], atol=1e-5
        )


def test_blur_darkens_no_border() -> None:
    """Stripes that the mirror continues: blurred alike at the border and in the middle."""
    image = np.broadcast_to(
        ((coordinates(FLAT)[0] + 1) // 2 % 2 == 0).astype(np.float32), (3, *FLAT)
    )
    after = image_only(image, part("blur", sigma=[1, 1]))
    np.testing.assert_allclose(
        after, np.broadcast_to(np.tile(after[:1, 12:16, 16:17], (8, 1)), after.shape), atol=1e-5
    )
    assert np.ptp(after) < 0.9


# --- CLAHE ----------------------------------------------------------------------------------------


def faint(channels: int = 1) -> np.ndarray:
    """A ramp of brightness under a faint texture."""
    yx = coordinates((64, 64))
    ramp, texture = yx[0] / 63, 0.03 * np.sin(yx.sum(0)) * np.cos(yx[1] - yx[0])
    return np.stack([(0.1 + 0.8 * ramp + texture) * (1 - 0.3 * c) for c in range(channels)]).astype(
        np.float32
    )


def local_contrast(plane: np.ndarray) -> float:
    """Mean standard deviation of the rows, along which the ramp is flat."""
    return float(plane.std(axis=1).mean())


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_clahe_raises_local_contrast_within_the_range(channels: int) -> None:
    image = faint(channels)
    after = image_only(image, part("clahe"))
    for a, b in zip(after, image, strict=True):
        assert local_contrast(a) > 1.2 * local_contrast(b)
    assert after.min() >= image.min() - 1e-6
    assert after.max() <= image.max() + 1e-6


def test_clahe_limit_bounds_the_contrast() -> None:
    gain = [
        local_contrast(image_only(faint(), part("clahe", clip=[c, c]))[0])
        / local_contrast(faint()[0])
        for c in (0.005, 0.02)
    ]
    assert gain[0] < gain[1]
    assert gain[0] < 256 * 0.005 * 1.3


@pytest.mark.parametrize("channels", [1, 3])
def test_clahe_is_scikit_images(channels: int) -> None:
    """On a patch that fills [0, 1] nothing is left to our scaling; RGB goes by the HSV value there
    too.
    """
    image = picture(channels, (64, 64)) ** 2
    image[:, 0, 0], image[:, 0, 1] = 0, 1
    expected = equalize_adapthist(
        np.moveaxis(image, 0, -1) if channels == 3 else image[0], (16, 16), 0.01
    )
    after = image_of(image, part("clahe", clip=[0.01, 0.01]))
    np.testing.assert_allclose(
        np.moveaxis(after, 0, -1) if channels == 3 else after[0], expected, atol=1e-4
    )


def test_clahe_keeps_hues() -> None:
    image = picture(3, (64, 64))
    image[:, 0, 0] = 0
    np.testing.assert_allclose(turn(image, image_only(image, part("clahe"))), 0, atol=0.01)


@settings(max_examples=25, deadline=None)
@given(
    scale=st.sampled_from([1e-4, 0.3, 1.0, 2.0, 500.0]),
    offset=st.sampled_from([-1.0, 0.0, 3.0]),
    levels=st.integers(1, 4),
    channels=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_clahe_is_safe_on_any_range(
    scale: float, offset: float, levels: int, channels: int, seed: int
) -> None:
    """Few grey levels down to one, pure colours, z-scores: finite, inside the patch's range, and
    the same picture at any scale.
    """
    image = np.random.default_rng(seed).integers(0, levels, (channels, 17, 16)).astype(np.float32)
    scaled = (scale * image + offset).astype(np.float32)
    entry = part("clahe", tiles=2)
    after = image_of(scaled, entry, seed=seed)
    slack = 1e-5 * (scale + abs(offset))
    assert scaled.min() - slack <= after.min()
    assert after.max() <= scaled.max() + slack
    np.testing.assert_allclose(
        after,
        scale * image_of(image, entry, seed=seed) + offset,
        atol=0.01 * scale * levels + slack,
    )


# --- wrong settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "augment", "words"),
    [
        (FLAT, "colur", "Did you mean 'colour'"),
        (FLAT, "elastik", "Did you mean 'elastic'"),
        (FLAT, part("elastic", spacin=4), "Did you mean 'spacing'"),
        (FLAT, part("elastic", magnitude=20), "fold.*raise spacing"),
        (FLAT, part("elastic", spacing=0), "above 0"),
        (FLAT, part("rotate", degree=4), "Did you mean 'degrees'"),
        (FLAT, part("affine", sheer=4), "Did you mean 'shear'"),
        (FLAT, part("colour", saturation=1.2), "two numbers"),
        (FLAT, part("colour", gain=1.5), "gain must be below 1"),
        (FLAT, part("colour", hue="red"), "hue"),
        (FLAT, part("clahe", limit=0.1), "no option 'limit'"),
        (FLAT, part("clahe", clip=[0, 0.1]), "above 0"),
        (FLAT, part("clahe", tiles=5), "from 1 to 4"),
        (SOLID, "clahe", "data.dims: 2"),
        (FLAT, part("brightness", range=[0.8]), "two numbers"),
        (FLAT, part("gamma", range=[-1, 1]), "above 0"),
        (FLAT, part("blur", sigma=[0, 1]), "above 0"),
        (FLAT, part("flip", p=1.5), "probability"),
    ],
)
def test_wrong_settings_say_what_to_do(size: tuple[int, ...], augment: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        augmentations(config(size, augment))


# --- the same change for input and target ---------------------------------------------------------

BOTH = {
    "brightness": {"range": [0.3, 3.0]},
    "contrast": {"range": [0.3, 3.0]},
    "shift": {"offset": 0.5},
    "gamma": {"range": [0.3, 3.0]},
    "colour": {"hue": 180, "saturation": [0, 2], "gain": 0.5},
}


def images(
    size: tuple[int, ...], *augment: object, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A pair, equal on its left half, before and after the entries."""
    image, target = (
        picture(3, size, seed),
        picture(3, size, seed + 1000) * 3 - 1,
    )  # beyond the image's range on both sides
    target[..., : size[-1] // 2] = image[..., : size[-1] // 2]
    patch = {"size": list(size), "foreground": None}
    setting = from_dict(
        {
            "name": "t",
            "task": "image",
            "data": {"dims": len(size), "patch": patch, "augment": list(augment)},
            "network": "image_unet",
            "losses": [{"name": "l1", "target": "target"}],
        }
    )
    sample = {"image": image, "target": target}
    return sample, apply(setting, sample, seed)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", BOTH)
def test_both_changes_input_and_target_by_one_rule(name: str, seed: int) -> None:
    before, after = images(FLAT, part(name, both=True, **BOTH[name]), seed=seed)
    assert set(after) == {"image", "target"}
    half = FLAT[-1] // 2
    np.testing.assert_array_equal(
        after["image"][..., :half], after["target"][..., :half]
    )  # what was equal stays equal, to the bit
    assert np.abs(after["image"] - before["image"]).max() > 0.01
    assert all(after[k].dtype == np.float32 and after[k].shape == before[k].shape for k in after)
    # One affine map of the channels (or, for gamma, one rising curve) takes every pixel of both, so
    # a fit on the input predicts the target.
    if name != "gamma":
        flat = {
            k: np.moveaxis(v, 0, -1).reshape(-1, 3).astype(np.float64)
            for k, v in (before | {"new " + k: v for k, v in after.items()}).items()
        }
        fit = np.linalg.lstsq(
            np.c_[flat["image"], np.ones(len(flat["image"]))], flat["new image"], rcond=None
        )[0]
        np.testing.assert_allclose(
            np.c_[flat["target"], np.ones(len(flat["target"]))] @ fit, flat["new target"], atol=1e-4
        )
    else:
        old, new = (
            np.concatenate([d["image"].ravel(), d["target"].ravel()]) for d in (before, after)
        )
        assert (np.diff(new[np.argsort(old, kind="stable")]) >= -1e-6).all()


@pytest.mark.parametrize("name", BOTH)
def test_without_both_the_target_stays(name: str) -> None:
    before, after = images(FLAT, part(name, **BOTH[name]))
    np.testing.assert_array_equal(after["target"], before["target"])
    assert np.abs(after["image"] - before["image"]).max() > 0.01


@pytest.mark.parametrize("name", BOTH)
def test_both_needs_an_image_as_target(name: str) -> None:
    with pytest.raises(ConfigError, match="both is true, but no target is an image"):
        augmentations(config(FLAT, part(name, both=True)))
    with pytest.raises(ConfigError, match="must be true or false"):
        augmentations(config(FLAT, part(name, both="yes")))
