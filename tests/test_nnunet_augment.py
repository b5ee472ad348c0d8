"""Augmentation as nnU-Net draws it: every draw has the distribution of its rule, found from the
patches themselves, and options from before give what they gave.
"""

from __future__ import annotations

import functools
import itertools
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml
from documents import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
)
from scipy import ndimage, stats
from test_augment import config, image_of, images, part, picture

from pipeline.config import ConfigError
from pipeline.data.augment import augmentations
from pipeline.data.augment.colours import RandMirroredSmoothd
from pipeline.data.loaders import set_random_state
from pipeline.data.sampling import seed_of
from pipeline.data.transforms import plain_tensors

CHANCE = 1e-3
"""Least probability of what is seen under the rule. Seeds are fixed, so a test that passes stays
so.
"""
RANGE = [0.7, 1.5]
EACH = {"balanced": True, "per_channel": True}
PAGE = (ROOT / "docs" / "nnunet.md").read_text(encoding="utf-8")


def chain_of_the_page() -> list[dict[str, Any]]:
    """Entries of the YAML block below the heading "Augmentation", in their order."""
    section = PAGE.split("\n## Augmentation\n")[1].split("\n## ")[0]
    block = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert block
    return yaml.safe_load(block[1])["data"]["augment"]


INTENSITIES = [e for e in chain_of_the_page() if e["name"] not in ("spatial", "flip")]
IDS = [f"{n}-{e['name']}" for n, e in enumerate(INTENSITIES)]


def samples(image: np.ndarray, *augment: object, count: int = 1000) -> np.ndarray:
    """The image after the entries, drawn anew for each of ``count`` samples: ``(count, C, *S)``."""
    transforms = augmentations(config(image.shape[1:], *augment))
    state = np.random.RandomState(5)
    for transform in transforms:
        set_random_state(transform, state)
    out = np.empty((count, *image.shape), np.float32)
    with plain_tensors():
        for number in range(count):
            sample: Any = {"image": image, "label": np.zeros((1, *image.shape[1:]), np.uint8)}
            for transform in transforms:
                sample = transform(sample)
            out[number] = np.asarray(sample["image"])
    return out


def draw(chain: Compose, image: np.ndarray, number: int) -> np.ndarray:
    set_random_state(chain, np.random.RandomState(seed_of(5, number)))
    with plain_tensors():
        out: Any = chain({"image": image, "label": np.zeros((1, *image.shape[1:]), np.uint8)})
    return np.asarray(out["image"])


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    assert low <= values.min()
    assert values.max() <= high
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > CHANCE


def assert_share(hits: np.ndarray, p: float) -> None:
    assert stats.binomtest(int(np.sum(hits)), len(hits), p).pvalue > CHANCE


def assert_independent(columns: np.ndarray) -> None:
    """Columns of ``(count, columns)`` have nothing to do with each other."""
    for a, b in itertools.combinations(columns.T, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 3.3 / np.sqrt(len(a)), "3.3 standard errors: CHANCE"


def assert_balanced(values: np.ndarray) -> None:
    """Factors ``(count, C)`` within RANGE: a fair coin, then uniform on its side of 1."""
    assert_independent(values)
    for factors in values.T:
        below = factors < 1
        assert_share(below, 0.5)
        assert_uniform(factors[below], RANGE[0], 1 + 1e-5)
        assert_uniform(factors[~below], 1 - 1e-5, RANGE[1] + 1e-5)


# --- the page -------------------------------------------------------------------------------------


def test_the_chain_of_the_page_is_nnunets() -> None:
    """Names and probabilities in nnU-Net's order, and each entry but the spatial one is built."""
    found = chain_of_the_page()
    assert [(e["name"], e["options"].get("p")) for e in found] == [
        ("spatial", None),
        ("noise", 0.1),
        ("blur", 0.2),
        ("brightness", 0.15),
        ("contrast", 0.15),
        ("low_resolution", 0.25),
        ("gamma", 0.1),
        ("gamma", 0.3),
        ("flip", 0.5),
    ]
    assert [e["options"].get("invert", False) for e in found if e["name"] == "gamma"] == [1, 0]
    image = picture(2, (12, 12, 12))
    out = image_of(image, *found[1:])
    assert out.shape == image.shape
    assert out.dtype == np.float32


@pytest.mark.parametrize("entry", INTENSITIES, ids=IDS)
def test_share_of_samples_and_channels(entry: dict[str, Any]) -> None:
    """Which of two channels change: both or none, or with a share each for itself."""
    out = samples(picture(2, (12, 12)), entry, count=2000)
    changed = (out != picture(2, (12, 12))).any((2, 3))
    p, share = entry["options"]["p"], entry["options"].get("per_channel", True)
    # Factors so near 1 that no voxel is lost, change nothing: round(12 * factor) is 12.
    share *= 1 - 0.5 / 12 / 0.5 if entry["name"] == "low_resolution" else 1
    for channel in changed.T:
        assert_share(channel, p * share)
    assert_share(changed.all(1), p * share**2)


def test_flips_of_each_axis_are_nnunets_mirroring() -> None:
    """Eight equally likely outcomes, hence a fair coin for every axis on its own."""
    image = picture(1, (2, 2, 2))
    out = samples(image, chain_of_the_page()[-1], count=2000)
    every = [
        np.flip(image, axes)
        for axes in itertools.chain.from_iterable(
            itertools.combinations((1, 2, 3), k) for k in range(4)
        )
    ]
    counts = [(out == one).all((1, 2, 3, 4)).sum() for one in every]
    assert sum(counts) == 2000
    assert stats.chisquare(counts).pvalue > CHANCE


# --- distributions --------------------------------------------------------------------------------


def test_noise_has_one_uniform_standard_deviation_for_all_channels() -> None:
    out = samples(
        np.zeros((2, 60, 60), np.float32), part("noise", std=[0, 0.1]), count=600
    ).reshape(600, 2, -1)
    found = out.std(axis=2)
    assert_uniform(found.mean(axis=1), 0, 0.1 * 1.03)
    np.testing.assert_allclose(found[:, 0], found[:, 1], rtol=0.1)
    white = out / found.mean(axis=1)[:, None, None]
    assert stats.kstest(white[:10].ravel(), "norm").pvalue > CHANCE
    correlation = (white[:, 0] * white[:, 1]).mean()
    assert abs(correlation) < 5 / 1000, "channels have noise of their own"


def test_one_standard_deviation_may_be_given_as_a_pair() -> None:
    found = samples(np.zeros((1, 60, 60), np.float32), part("noise", std=[0.2, 0.2]), count=20)
    np.testing.assert_allclose(found.std(axis=(1, 2, 3)), 0.2, rtol=0.05)


def test_brightness_draws_a_balanced_factor_for_each_channel() -> None:
    out = samples(np.ones((3, 2, 2), np.float32), part("brightness", range=RANGE, **EACH))
    assert (out == out[..., :1, :1]).all()
    assert_balanced(out[..., 0, 0])


def test_brightness_of_all_channels_has_one_factor() -> None:
    image = np.ones((3, 2, 2), np.float32)
    out = samples(image, part("brightness", range=RANGE, balanced=True))[..., 0, 0]
    assert (out == out[:, :1]).all()
    assert_balanced(out[:, :1])
    plain = samples(image, part("brightness", range=RANGE, per_channel=True))[..., 0, 0]
    assert_uniform(plain[:, 0], *RANGE)
    assert_independent(plain)


def test_additive_brightness_is_normal() -> None:
    image = picture(2, (2, 2))
    options = {"mean": 0.2, "std": 0.5}
    added = samples(image, part("brightness_additive", per_channel=True, **options)) - image
    np.testing.assert_allclose(added, np.broadcast_to(added[..., :1, :1], added.shape), atol=1e-6)
    assert_independent(added[..., 0, 0])
    for channel in added[..., 0, 0].T:
        assert stats.kstest(channel, stats.norm(0.2, 0.5).cdf).pvalue > CHANCE
    together = samples(image, part("brightness_additive", **options), count=50) - image
    assert np.ptp(together, axis=(1, 2, 3)).max() < 1e-6


@pytest.mark.parametrize("preserve_range", [False, True])
def test_contrast_spreads_each_channel_about_its_own_mean(preserve_range: bool) -> None:
    """The second value is so near the mean that no factor takes it to the end of the range."""
    deviations = np.array([-1, 0.1, -0.1, 1], np.float32).reshape(2, 2)
    means = np.array([0.0, 5.0, -3.0], np.float32)[:, None, None]
    image = deviations + means
    entry = part("contrast", range=RANGE, preserve_range=preserve_range, **EACH)
    out = samples(image, entry) - means
    factors = out[..., 0, 1] / (image - means)[:, 0, 1]
    assert_balanced(factors)
    expected = factors[..., None, None] * deviations
    if preserve_range:
        expected = expected.clip(-1, 1)
    np.testing.assert_allclose(out, expected, atol=2e-5)


@pytest.mark.parametrize("retain_stats", [False, True])
@pytest.mark.parametrize("invert", [False, True])
def test_gamma_draws_a_balanced_exponent_for_each_channel(invert: bool, retain_stats: bool) -> None:
    """Whatever restores the statistics is linear: where the middle lies between the ends gives the
    exponent.
    """
    image = np.array([0, 0.5, 1, 0.25], np.float32).reshape(1, 2, 2) * np.array([2, 1, 5]).reshape(
        3, 1, 1
    ).astype(np.float32)
    entry = part("gamma", range=RANGE, invert=invert, retain_stats=retain_stats, **EACH)
    least, middle, most = samples(image, entry).reshape(-1, 3, 4)[..., :3].transpose(2, 0, 1)
    above = (most - middle if invert else middle - least) / (most - least)
    assert_balanced(np.log(above) / np.log(0.5))


def test_blur_draws_a_width_for_each_channel_and_axis() -> None:
    """Beside the centre of a blurred point the values fall by exp(-1 / 2 sigma²)."""
    image = np.zeros((2, 11, 11, 11), np.float32)
    image[:, 5, 5, 5] = 1
    out = samples(image, part("blur", sigma=[0.5, 1], per_channel=True), count=500)
    beside = np.stack([out[:, :, 6, 5, 5], out[:, :, 5, 6, 5], out[:, :, 5, 5, 6]], axis=-1)
    found = np.sqrt(-0.5 / np.log(beside / out[:, :, 5, 5, 5, None])).reshape(500, 6)
    assert_uniform(found.ravel(), 0.5 - 1e-4, 1 + 1e-4)
    assert_independent(found)


@functools.cache
def step_profile(many: int, few: int) -> np.ndarray:
    """A ramp 0, 1, ..., ``many`` - 1 of which the ``few`` nearest values are kept.

    With an odd ``many`` no two are equally near, where rounding would decide.
    """
    kept = np.floor((np.arange(few) + 0.5) * many / few)
    return np.interp((np.arange(many) + 0.5) * few / many - 0.5, np.arange(few), kept)


def kept_voxels(profile: np.ndarray) -> int:
    """Of how many voxels a ramp was interpolated, whatever was added to it."""
    many = len(profile)
    errors = [
        np.abs(np.diff(profile) - np.diff(step_profile(many, few))).max()
        for few in range(1, many + 1)
    ]
    assert min(errors) < 1e-3
    return int(np.argmin(errors)) + 1


def test_low_resolution_draws_one_factor_for_all_axes_of_a_channel() -> None:
    down, along = np.indices((41, 61), np.float32)
    image = np.stack([down + 2 * along, down - along])
    out = samples(image, part("low_resolution", scale=[0.5, 1], per_channel=True), count=300)
    rows = np.array([[kept_voxels(c[:, 0]) for c in sample] for sample in out])
    columns = np.array(
        [[kept_voxels(c[0] / s) for c, s in zip(sample, (2, -1), strict=True)] for sample in out]
    )
    assert_independent(columns)
    assert np.abs(rows / 41 - columns / 61).max() <= 0.5 / 41 + 0.5 / 61 + 1e-9, "one for both axes"
    edges = np.array([0.5, *(np.arange(31, 61) + 0.5) / 61, 1])
    counts = np.bincount(columns.ravel() - 31, minlength=31)
    assert stats.chisquare(counts, np.diff(edges) / 0.5 * counts.sum()).pvalue > CHANCE


def test_low_resolution_of_all_channels_has_one_factor() -> None:
    image = np.stack([np.indices((41, 61), np.float32)[1]] * 2)
    out = samples(image, part("low_resolution", per_channel=False), count=30)
    np.testing.assert_array_equal(out[:, 0], out[:, 1])
    assert len({kept_voxels(sample[0, 0]) for sample in out}) > 5


@pytest.mark.parametrize(
    ("size", "options", "kept"),
    [
        ((8, 32, 32), {}, [0]),
        ((32, 8, 32), {}, [1]),
        ((32, 32, 8), {}, [2]),
        ((12, 32, 32), {}, []),
        ((8, 32), {}, []),
        ((8, 32, 32), {"ignore_axes": []}, []),
        ((12, 12, 12), {"ignore_axes": [0, 2]}, [0, 2]),
    ],
)
def test_axes_that_keep_their_resolution(
    size: tuple[int, ...], options: dict[str, Any], kept: list[int]
) -> None:
    """Along the short axis of a stack nothing is lost; ``max / min > 3`` makes it one."""
    entry = part("low_resolution", scale=[0.5, 0.5], per_channel=True, **options)
    for axis in range(len(size)):
        image = np.indices(size, np.float32)[axis][None]
        assert np.array_equal(image_of(image, entry), image) == (axis in kept)


# --- values ---------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    size=st.lists(st.integers(1, 9), min_size=2, max_size=3).map(tuple),
    sigma=st.floats(0.3, 3),
    seed=st.integers(0, 99),
)
def test_blur_is_scipys(size: tuple[int, ...], sigma: float, seed: int) -> None:
    """Also where the patch is shorter than the reach of the blur, which is mirrored repeatedly."""
    image = picture(2, size, seed)
    out = image_of(image, part("blur", sigma=[sigma, sigma], per_channel=True))
    expected = [ndimage.gaussian_filter(c.astype(np.float64), sigma, mode="reflect") for c in image]
    np.testing.assert_allclose(out, expected, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    size=st.lists(st.integers(1, 20), min_size=2, max_size=3).map(tuple),
    scale=st.floats(0.05, 1),
    each=st.booleans(),
)
def test_low_resolution_is_torchs(size: tuple[int, ...], scale: float, each: bool) -> None:
    image = picture(2, size)
    entry = part("low_resolution", scale=[scale, scale], per_channel=each, ignore_axes=[])
    small = [max(1, round(n * scale)) for n in size]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    few = torch.nn.functional.interpolate(torch.as_tensor(image)[None], small, mode="nearest-exact")
    expected = torch.nn.functional.interpolate(few, size, mode=mode)[0]
    np.testing.assert_allclose(image_of(image, entry), expected, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    scale=st.sampled_from([1e-3, 1.0, 500.0]),
    offset=st.sampled_from([-1000.0, 0.0, 3.0]),
    power=st.sampled_from([0.3, 1.0, 8.0]),
    each=st.booleans(),
    invert=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gamma_keeps_its_statistics(
    scale: float, offset: float, power: float, each: bool, invert: bool, seed: int
) -> None:
    """Mean and deviation, of each channel or of all; a constant channel is left as it is."""
    image = (picture(3, (9, 10), seed) ** power * scale + offset).astype(np.float32)
    image[2] = image[2, 0, 0]
    options = {"balanced": True, "per_channel": each, "invert": invert, "retain_stats": True}
    out = image_of(image, part("gamma", **options), seed=seed)
    for before, after in zip(image, out, strict=True) if each else [(image, out)]:
        a, b = before.astype(np.float64), after.astype(np.float64)
        slack = 1e-6 * abs(offset)
        assert b.mean() == pytest.approx(a.mean(), abs=1e-4 * a.std() + slack)
        assert b.std() == pytest.approx(a.std(), rel=1e-4, abs=slack)
    if each:
        np.testing.assert_array_equal(out[2], image[2])


@pytest.mark.parametrize("retain_stats", [False, True])
def test_inverted_gamma_is_that_of_the_negated_image(retain_stats: bool) -> None:
    image = picture(2) * 3 - 1
    for seed in range(5):
        plain, inverted = (
            part("gamma", range=RANGE, invert=invert, retain_stats=retain_stats, **EACH)
            for invert in (False, True)
        )
        out = image_of(image, inverted, seed=seed)
        np.testing.assert_allclose(out, -image_of(-image, plain, seed=seed), atol=1e-5)
        assert np.abs(out - image_of(image, plain, seed=seed)).max() > 1e-3


def test_gamma_without_statistics_keeps_the_ends() -> None:
    image = picture(3)
    out = image_of(image, part("gamma", **EACH))
    np.testing.assert_allclose(out.min((1, 2)), image.min((1, 2)), atol=1e-6)
    np.testing.assert_allclose(out.max((1, 2)), image.max((1, 2)), atol=1e-6)


CONSTANTS = (-1.0, 0.0, 0.1, 1000.1, 1e-30)


@pytest.mark.parametrize("size", [(8, 9), (1, 8, 9), (1, 1, 1)])
@pytest.mark.parametrize("entry", INTENSITIES, ids=IDS)
def test_constant_patches_stay_finite(entry: dict[str, Any], size: tuple[int, ...]) -> None:
    """No spread and no range: what is no noise or factor leaves them as they are."""
    for value in CONSTANTS:
        image = np.full((2, *size), value, np.float32)
        out = image_of(image, {**entry, "options": {**entry["options"], "p": 1}})
        assert np.isfinite(out).all()
        if entry["name"] not in ("noise", "brightness"):
            np.testing.assert_allclose(out, image, rtol=1e-5)


# --- samples --------------------------------------------------------------------------------------


def always(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "options": {**entry["options"], "p": 1}}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8])
@pytest.mark.parametrize("entry", INTENSITIES, ids=IDS)
def test_patches_are_read_and_never_written(
    entry: dict[str, Any], dtype: type, tmp_path: Path
) -> None:
    """Views of memory-mapped files, with any strides; whatever comes in, float32 comes out."""
    kept = (picture(2, (9, 8)) * 200).astype(dtype)
    np.save(tmp_path / "image.npy", kept)
    chain = Compose(augmentations(config((9, 8), always(entry))))
    views: list[tuple[Literal["r", "r+"], int]] = [("r", -1), ("r", 1), ("r+", 1)]
    for mode, step in views:
        image = np.load(tmp_path / "image.npy", mmap_mode=mode)[:, ::step]
        seen = {draw(chain, image, n).dtype for n in range(4)}
        assert np.dtype(np.float32) in seen
        assert seen <= {np.dtype(np.float32), np.dtype(dtype)}, "or what no channel was drawn of"
        np.testing.assert_array_equal(np.load(tmp_path / "image.npy"), kept)


def test_tensors_are_not_written_either() -> None:
    for entry in INTENSITIES:
        chain = Compose(augmentations(config((9, 8), always(entry))))
        image = torch.as_tensor(picture(2, (9, 8)))
        for n in range(4):
            set_random_state(chain, np.random.RandomState(n))
            chain({"image": image, "label": torch.zeros(1, 9, 8)})
        np.testing.assert_array_equal(image, picture(2, (9, 8)))


def test_a_seed_gives_a_sample_whatever_was_drawn_before() -> None:
    setting = config((9, 8), *chain_of_the_page()[1:])
    first, second = (Compose(augmentations(setting)) for _ in range(2))
    expected = [draw(first, picture(2, (9, 8)), n) for n in range(40)]
    assert len({out.tobytes() for out in expected}) > 30
    np.random.seed(0)
    torch.manual_seed(0)
    of_numpy, of_torch = pickle.dumps(np.random.get_state()), torch.get_rng_state()
    for n in reversed(range(40)):
        np.testing.assert_array_equal(draw(second, picture(2, (9, 8)), n), expected[n])
    assert pickle.dumps(np.random.get_state()) == of_numpy
    assert torch.equal(torch.get_rng_state(), of_torch), "nothing draws from the shared state"


def test_workers_that_are_started_anew_get_the_same_chain() -> None:
    chain = Compose(augmentations(config((9, 8), *map(always, INTENSITIES))))
    copy = pickle.loads(pickle.dumps(chain))
    np.testing.assert_array_equal(
        draw(copy, picture(2, (9, 8)), 3), draw(chain, picture(2, (9, 8)), 3)
    )


PLAIN: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "noise": (
        {"std": 0.2},
        lambda: RandGaussianNoised("image", prob=0.7, mean=0.0, std=0.2, sample_std=False),
    ),
    "brightness": (
        {"range": [0.5, 2]},
        lambda: RandScaleIntensityd("image", prob=0.7, factors=(-0.5, 1)),
    ),
    "contrast": (
        {"range": [0.5, 2]},
        lambda: RandScaleIntensityFixedMeand(
            "image", prob=0.7, factors=(-0.5, 1), preserve_range=False
        ),
    ),
    "gamma": (
        {"range": [0.5, 2]},
        lambda: RandAdjustContrastd("image", prob=0.7, gamma=(0.5, 2)),
    ),
    "blur": (
        {"sigma": [0.5, 2]},
        lambda: RandMirroredSmoothd("image", (0.5, 2), (0.5, 2), (0.5, 2), prob=0.7),
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_options_from_before_give_what_they_gave(name: str) -> None:
    """MONAI's own transforms to the bit, also with the new options spelt out as switched off."""
    options, make = PLAIN[name]
    off = {} if name == "noise" else {"per_channel": False}
    off |= {"balanced": False} if name in ("brightness", "contrast", "gamma") else {}
    monais, image = Compose([make()]), picture(3)
    for chosen in (options, options | off):
        ours = Compose(augmentations(config(image.shape[1:], part(name, 0.7, **chosen))))
        for n in range(6):
            np.testing.assert_array_equal(draw(ours, image, n), draw(monais, image, n))


# --- input and target together --------------------------------------------------------------------

TOGETHER = {
    "brightness": {"range": [0.3, 3.0], "balanced": True},
    "brightness_additive": {"std": 2.0},
    "contrast": {"range": [0.3, 3.0], "balanced": True, "preserve_range": True},
    "gamma": {"range": [0.3, 3.0], "balanced": True, "invert": True, "retain_stats": True},
}


@pytest.mark.parametrize("name", TOGETHER)
def test_both_changes_input_and_target_by_one_rule(name: str) -> None:
    """What is equal in both stays equal to the bit: one draw, and statistics of both together."""
    for seed in (0, 2, 3):
        before, after = images((12, 12), part(name, both=True, **TOGETHER[name]), seed=seed)
        np.testing.assert_array_equal(after["image"][..., :6], after["target"][..., :6])
        assert np.abs(after["target"] - before["target"]).max() > 0.01
        old, new = (np.concatenate([v["image"], v["target"]]) for v in (before, after))
        if name == "gamma":
            assert new.mean() == pytest.approx(old.mean(), abs=1e-5)
            assert new.std() == pytest.approx(old.std(), rel=1e-5)
        if name == "contrast":
            assert old.min() <= new.min()
            assert new.max() <= old.max()


def test_a_target_is_left_alone_without_both() -> None:
    for entry in INTENSITIES:
        before, after = images((12, 12), always(entry))
        np.testing.assert_array_equal(after["target"], before["target"])


# --- wrong settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        (part("noise", std=[0.1, 0]), r"std is \[0.1, 0\].*low <= high"),
        (part("noise", std=[-0.1, 0.1]), "0 <= low"),
        (part("noise", std=[0.1]), "two numbers"),
        (part("brightness", range=[1.2, 1.4], balanced=True), "low < 1 < high.*leave balanced"),
        (part("brightness", range=[1.2, 0.8], per_channel=True), r"Write \[0.8, 1.2\]"),
        (part("brightness", balanced=1), "balanced is 1, must be true or false"),
        (part("contrast", preserve_range="yes"), "preserve_range is 'yes', must be true or false"),
        (part("gamma", invert=0), "invert is 0, must be true or false"),
        (part("gamma", retain_stats="on"), "retain_stats is 'on', must be true or false"),
        (part("gamma", range=[0, 1.5], **EACH), "above 0"),
        (part("gamma", per_channel=1.5), "probability of each channel"),
        (part("blur", per_channel=0), "per_channel is 0, must be true, false"),
        (part("blur", per_channel="each"), "per_channel"),
        (part("blur", sigma=[0, 1], per_channel=True), "above 0"),
        (part("low_resolution", scale=[0, 1]), "0 < low"),
        (part("low_resolution", scale=[0.5, 1.5]), "<= 1"),
        (part("low_resolution", scale=0.5), "two numbers"),
        (part("low_resolution", ignore_axes=[2]), "axes from 0 to 1"),
        (part("low_resolution", ignore_axes="short"), "a list of whole numbers or null"),
        (part("low_resolution", axes=[0]), "no option 'axes'"),
        (part("brightness_additive", std=-1), "std not negative"),
        (part("brightness_additive", sigma=1), "no option 'sigma'"),
        (part("brightness_additve"), "Did you mean 'brightness_additive'"),
        (part("low_resolution", both=True), "no option 'both'"),
    ],
)
def test_wrong_settings_say_what_to_do(augment: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        augmentations(config((32, 32), augment))


@pytest.mark.parametrize("name", TOGETHER)
def test_channels_for_themselves_exclude_both(name: str) -> None:
    with pytest.raises(ConfigError, match=r"per_channel.*both.*Keep one"):
        images((12, 12), part(name, both=True, per_channel=True))
