"""The mask of what was retouched: every step by counting pixels, and one mask for one picture
whatever its number type.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Change, ConfigError
from pipeline.data import change
from pipeline.records import UserError

BARE = Change(opening=0, dilation=0, blur=0)
quick = settings(deadline=None, max_examples=30)


def grey(shape: tuple[int, int] = (21, 23), level: int = 100) -> np.ndarray:
    return np.full((3, *shape), level, np.uint8)


def with_pixels(places: list[tuple[int, int]], by: int = 50) -> np.ndarray:
    out = grey()
    for y, x in places:
        out[:, y, x] += by
    return out


def random_pair(seed: int, shape: tuple[int, ...] = (3, 17, 19)) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures of 8 bits that differ by up to six levels, so that many differences lie at a
    threshold of 3.
    """
    draw = np.random.default_rng(seed)
    one = draw.integers(6, 250, shape)
    return one.astype(np.uint8), (one + draw.integers(-6, 7, shape)).astype(np.uint8)


def sixteen(image: np.ndarray) -> np.ndarray:
    return image.astype(np.uint16) * 257


# --- what is compared -----------------------------------------------------------------------------


def test_value_is_blind_to_hue_and_saturation_and_colour_is_not() -> None:
    image = np.broadcast_to(np.array([200, 120, 60], np.uint8)[:, None, None], (3, 8, 8))
    hue, saturation = (
        image[[2, 0, 1]],
        np.array([200, 190, 180], np.uint8)[:, None, None] + 0 * image,
    )
    for target in (hue, saturation):
        assert not change.difference_mask(image, target, BARE).any()
        assert change.difference_mask(
            image, target, Change(by="colour", opening=0, dilation=0, blur=0)
        ).all()


def test_difference_is_that_of_the_greatest_channel_or_the_greatest_of_all() -> None:
    image, target = random_pair(3)
    one, other = image.astype(int), target.astype(int)
    np.testing.assert_array_equal(
        change.difference(image, target, "value"), abs(one.max(0) - other.max(0))
    )
    np.testing.assert_array_equal(
        change.difference(image, target, "colour"), abs(one - other).max(0)
    )


@quick
@given(
    st.integers(0, 10**6),
    st.sampled_from([0, 1, 3, 5]),
    st.sampled_from([0.5, 1, 3, 7]),
    st.sampled_from(["value", "colour"]),
)
def test_one_picture_has_one_mask_whatever_its_number_type(
    seed: int, threshold: int, magnifier: float, by: str
) -> None:
    """Counted in whole levels, where the edge is exact: a difference equal to the threshold is not
    above it.
    """
    image, target = random_pair(seed)
    one, other = image.astype(int), target.astype(int)
    exact = (
        abs(one.max(0) - other.max(0)) if by == "value" else abs(one - other).max(0)
    ) * magnifier > threshold
    config = Change(
        by="value" if by == "value" else "colour",
        threshold=threshold,
        magnifier=magnifier,
        opening=0,
        dilation=0,
        blur=0,
    )
    floats = [(a / 255).astype(np.float32) for a in (image, target)]
    for pair in (
        (image, target),
        (sixteen(image), sixteen(target)),
        (image, sixteen(target)),
        tuple(floats),
    ):
        np.testing.assert_array_equal(change.difference_mask(pair[0], pair[1], config)[0], exact)


@pytest.mark.parametrize(("step", "found"), [(3, 0), (4, 1), (-3, 0), (-4, 1)])
def test_a_difference_of_exactly_the_threshold_is_not_above_it(step: int, found: int) -> None:
    for convert in (lambda a: a, sixteen, lambda a: a / 255):
        assert (
            change.difference_mask(convert(grey()), convert(grey(level=100 + step)), BARE) == found
        ).all()


def test_sixteen_bits_see_a_step_that_eight_cannot_hold() -> None:
    image = sixteen(grey())
    assert change.difference_mask(image, image + 3 * 257 + 1, BARE).all()
    every = np.arange(65535 - 771, dtype=np.uint16).reshape(1, 1, -1)
    assert not change.difference_mask(
        every, every + 771, BARE
    ).any()  # three levels exactly, between any two values
    assert change.difference_mask(every, every + 772, BARE).all()


@quick
@given(st.integers(0, 10**6), st.sampled_from(["value", "colour"]))
def test_which_image_comes_first_does_not_matter(seed: int, by: str) -> None:
    image, target = random_pair(seed)
    config = Change(by="value" if by == "value" else "colour", opening=0, dilation=1, blur=1)
    np.testing.assert_array_equal(
        change.difference_mask(image, target, config), change.difference_mask(target, image, config)
    )


def test_grey_images_have_the_masks_of_their_colour_copies() -> None:
    image = np.random.default_rng(5).integers(6, 250, (1, 30, 31)).astype(np.uint8)
    target = image.copy()
    target[0, 5:12, 8:14] += 6
    for by in ("value", "colour"):
        config = Change(by=by)
        alone = change.difference_mask(image, target, config)
        assert 0 < alone.mean() < 1
        np.testing.assert_array_equal(
            alone, change.difference_mask(np.repeat(image, 3, 0), np.repeat(target, 3, 0), config)
        )


# --- what is made of it ---------------------------------------------------------------------------


def test_equal_images_give_zeros() -> None:
    soft = change.difference_mask(grey(), grey(), Change())
    assert soft.dtype == np.float32
    assert soft.shape == (1, 21, 23)
    assert not soft.any()


def test_opening_removes_specks_and_lines_that_a_cross_does_not_fit_into() -> None:
    config = Change(opening=1, dilation=0, blur=0)
    speck, line = (
        with_pixels([(4, 4)]),
        with_pixels([(y, x) for y in (10, 11) for x in range(5, 20)]),
    )
    assert not change.difference_mask(grey(), speck, config).any()
    assert not change.difference_mask(grey(), line, config).any()
    square = [(y, x) for y in (9, 10, 11) for x in (14, 15, 16)]
    kept = change.difference_mask(grey(), with_pixels(square), config)[0]
    assert {tuple(p) for p in np.argwhere(kept).tolist()} == {
        (10, 15),
        (9, 15),
        (11, 15),
        (10, 14),
        (10, 16),
    }


@pytest.mark.parametrize("radius", [1, 2, 3, 5])
def test_dilation_reaches_exactly_its_radius(radius: int) -> None:
    found = change.difference_mask(
        grey(), with_pixels([(10, 12)]), Change(opening=0, dilation=radius, blur=0)
    )[0]
    expected = [[(y - 10) ** 2 + (x - 12) ** 2 <= radius**2 for x in range(23)] for y in range(21)]
    np.testing.assert_array_equal(found, expected)


def test_opening_comes_before_dilation() -> None:
    assert not change.difference_mask(
        grey(), with_pixels([(4, 4)]), Change(opening=1, dilation=5, blur=0)
    ).any()


def test_blur_softens_within_0_and_1_and_keeps_what_it_spreads() -> None:
    block = with_pixels([(y, x) for y in range(8, 13) for x in range(9, 14)])
    hard, soft = (
        change.difference_mask(grey(), block, Change(opening=0, dilation=0, blur=blur))
        for blur in (0, 1.5)
    )
    assert set(np.unique(hard)) == {0, 1}
    assert soft.dtype == np.float32
    assert soft.min() >= 0
    assert 0.5 < soft.max() < 1
    assert soft.sum() == pytest.approx(hard.sum(), rel=1e-4)
    np.testing.assert_allclose(soft[0, 3:18, 4:19], soft[0, 3:18, 4:19].T, atol=1e-6)
    everywhere = change.difference_mask(
        grey(), grey(level=200), Change()
    )  # the border takes nothing away
    np.testing.assert_allclose(everywhere, 1, atol=1e-6)
    assert everywhere.max() <= 1


@quick
@given(st.integers(0, 10**6), st.floats(0, 4), st.integers(0, 3), st.integers(0, 2))
def test_masks_lie_in_0_to_1_and_hold_what_was_left_to_grow(
    seed: int, blur: float, dilation: int, opening: int
) -> None:
    image, target = random_pair(seed)
    soft = change.difference_mask(
        image, target, Change(opening=opening, dilation=dilation, blur=blur)
    )
    assert soft.min() >= 0
    assert soft.max() <= 1
    assert (
        soft.any()
        == change.difference_mask(image, target, Change(opening=opening, dilation=0, blur=0)).any()
    )


def test_images_of_two_shapes_are_refused() -> None:
    for other in (grey((21, 22)), grey()[:1]):
        with pytest.raises(UserError, match=r"two images of one shape, got \(3, 21, 23\) and"):
            change.difference_mask(grey(), other, Change())


@pytest.mark.parametrize(
    "wrong", [{"magnifier": 0}, {"threshold": -1}, {"opening": -1}, {"blur": -0.5}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=r"data\.change"):
        Change(**wrong)


# --- where it is ----------------------------------------------------------------------------------


@quick
@given(st.integers(1, 100), st.integers(1, 100), st.integers(0, 10**6))
def test_blocks_are_those_of_a_literal_loop(high: int, wide: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    soft = (draw.random((1, high, wide)) ** 1500).astype(np.float32)  # few pixels above a half
    found = change.blocks(soft)
    edge = change.REDUCED
    assert found.dtype == np.uint8
    assert found.shape == (1, -(-high // edge), -(-wide // edge))
    for y, x in itertools.product(range(found.shape[1]), range(found.shape[2])):
        part = soft[0, y * edge : (y + 1) * edge, x * edge : (x + 1) * edge]
        assert found[0, y, x] == any(value >= change.LEVEL for value in part.ravel().tolist())


def test_blocks_count_from_the_level_on() -> None:
    soft = np.zeros((1, 70, 33), np.float32)
    soft[0, 31, 31], soft[0, 32, 32] = 0.499, change.LEVEL
    np.testing.assert_array_equal(change.blocks(soft)[0], [[0, 0], [0, 1], [0, 0]])
