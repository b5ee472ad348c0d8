"""Post-processing on shapes of known topology, class by class, and the lists of steps: checked,
adjusted, run.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline import morphology, postprocess
from pipeline.config import ConfigError
from pipeline.records import NamedOptions, UserError

FEW = settings(max_examples=25, deadline=None)
MAPS = arrays(
    np.uint8,
    st.one_of(st.tuples(*[st.integers(1, 8)] * 2), st.tuples(*[st.integers(1, 6)] * 3)),
    elements=st.integers(0, 3),
)


def part(name: str, **options: object) -> NamedOptions:
    return NamedOptions(name=name, options=options)


def betti(labels: np.ndarray) -> tuple[int, ...]:
    return morphology.betti_numbers(labels != 0)


def scroll() -> np.ndarray:
    """Two sheets from face to face: the first with two pinholes, the second with a cavity; and two
    specks between them.
    """
    labels = np.zeros((20, 24, 24), dtype=np.uint8)
    labels[2:4] = 1
    labels[12:16] = 1
    labels[:, 6, 6] = labels[:, 12, 15] = 0
    labels[12:16, 6, 6] = labels[12:16, 12, 15] = 1
    labels[13:15, 18, 3:8] = 0
    labels[8, 3, 3] = labels[8, 20, 20:22] = 1
    return labels


def test_each_step_changes_the_betti_numbers_that_it_is_for():
    labels = scroll()
    assert betti(labels) == (4, 2, 1)
    clean = postprocess.dust(labels, below=3)
    assert betti(clean) == (2, 2, 1)
    assert betti(postprocess.dust(labels, below=2)) == (3, 2, 1)
    assert betti(postprocess.fill_holes(clean, below=9)) == (2, 2, 1)
    filled = postprocess.fill_holes(clean, below=10)
    assert betti(filled) == (2, 2, 0)
    assert betti(postprocess.fill_holes(clean, below=10, per_slice=0)) == (2, 0, 0)
    mended = postprocess.closing(filled, size=2)
    assert betti(mended) == (2, 0, 0)
    assert not postprocess.opening(mended, radius=2).any()
    assert betti(postprocess.opening(mended, radius=1)) == (1, 0, 0)
    np.testing.assert_array_equal(np.unique(postprocess.instances(mended)), [0, 1, 2])


def test_a_whole_chain_in_2d():
    soft = np.zeros((1, 12, 12), dtype=np.float32)
    soft[0, 2:9, 2:9] = 0.9
    soft[0, 5, 5] = 0.1
    soft[0, 11, 11] = 0.8
    labels = postprocess.apply([part("hysteresis", low=0.3, high=0.85), part("fill_holes")], soft)
    assert (labels.dtype, betti(labels), labels.sum()) == (np.uint8, (1, 0), 49)


def test_threshold_counts_the_value_itself_as_foreground():
    soft = np.array([[[0.2, 0.5, 0.7]]], dtype=np.float32)
    np.testing.assert_array_equal(postprocess.threshold(soft), [[0, 1, 1]])
    np.testing.assert_array_equal(postprocess.threshold(soft, at=0.7), [[0, 0, 1]])
    np.testing.assert_array_equal(postprocess.apply([], soft), [[0, 1, 1]])


def test_hysteresis_keeps_weak_voxels_that_touch_strong_ones():
    soft = np.array([[[0.4, 0.4, 0.9, 0.0, 0.4, 0.4]]], dtype=np.float32)
    np.testing.assert_array_equal(
        postprocess.hysteresis(soft, low=0.4, high=0.9), [[1, 1, 1, 0, 0, 0]]
    )


def test_argmax_takes_the_first_of_equal_channels_and_is_the_default_of_many():
    soft = np.array([[[0.4, 0.2]], [[0.4, 0.3]], [[0.2, 0.5]]], dtype=np.float32)
    np.testing.assert_array_equal(postprocess.argmax(soft), [[0, 2]])
    np.testing.assert_array_equal(postprocess.apply([part("dust", below=0)], soft), [[0, 2]])


STEPS = {
    "dust": (
        lambda a: postprocess.dust(a, below=3, connectivity=6),
        lambda m: morphology.remove_small_components(m, 3, 6),
    ),
    "opening": (lambda a: postprocess.opening(a, radius=1), lambda m: morphology.opening(m, 1)),
    "closing": (lambda a: postprocess.closing(a, size=3), lambda m: morphology.closing(m, 1.5)),
    "fill_holes": (
        lambda a: postprocess.fill_holes(a, below=4),
        lambda m: morphology.fill_holes(m, 4),
    ),
}


@pytest.mark.parametrize("name", STEPS)
@FEW
@given(array=MAPS)
def test_a_step_on_one_class_is_its_morphology_in_the_whole_array(name, array):
    step, reference = STEPS[name]
    binary = (array > 1).astype(np.int16) * 3
    before = binary.copy()
    result = step(binary)
    assert result.dtype == np.int16
    np.testing.assert_array_equal(result, reference(binary != 0) * 3)
    np.testing.assert_array_equal(binary, before)


@pytest.mark.parametrize("name", STEPS)
@FEW
@given(array=MAPS)
def test_classes_do_not_take_voxels_from_each_other(name, array):
    step, reference = STEPS[name]
    result = step(array)
    for value in (1, 2, 3):
        own = array == value
        alone = reference(own)
        gained = (result == value) & ~own
        assert (gained <= (alone & (array == 0))).all()
        if name in ("dust", "opening"):
            np.testing.assert_array_equal(result == value, alone)
        else:
            assert (result[own] == value).all()
            assert (result[alone & (array == 0)] > 0).all()


def test_another_class_inside_a_hole_stays_and_counts():
    labels = np.zeros((7, 7), dtype=np.uint8)
    labels[1:6, 1:6] = 1
    labels[2:5, 2:5] = 0
    labels[3, 3] = 2
    np.testing.assert_array_equal(postprocess.fill_holes(labels, below=8), labels)
    filled = postprocess.fill_holes(labels, below=9)
    assert ((filled == 1).sum(), (filled == 2).sum()) == (24, 1)


def two_balls(distance: int) -> np.ndarray:
    z, y, x = np.mgrid[:25, :25, :46]
    left = (z - 12) ** 2 + (y - 12) ** 2 + (x - 11) ** 2 <= 64
    right = (z - 12) ** 2 + (y - 12) ** 2 + (x - 11 - distance) ** 2 <= 64
    return (left | right).astype(np.uint8)


def test_instances_cut_touching_balls_at_their_neck():
    labels = two_balls(13)
    assert morphology.components(labels)[1] == 1
    numbers = postprocess.instances(labels)
    assert numbers.dtype == np.uint8
    np.testing.assert_array_equal(numbers != 0, labels != 0)
    assert numbers.max() == 2
    assert numbers[12, 12, 11] == 1
    assert numbers[12, 12, 24] == 2
    assert abs(int((numbers == 1).sum()) - int((numbers == 2).sum())) < 0.1 * (numbers == 1).sum()
    assert postprocess.instances(two_balls(3)).max() == 1
    assert postprocess.instances(labels, depth=6).max() == 1


@FEW
@given(MAPS)
def test_instances_refine_the_components_of_each_class(array):
    numbers = postprocess.instances(array, depth=1.0)
    np.testing.assert_array_equal(numbers != 0, array != 0)
    found = np.unique(numbers[numbers > 0])
    np.testing.assert_array_equal(found, np.arange(1, len(found) + 1))
    for number in found:
        inside = numbers == number
        assert len(np.unique(array[inside])) == 1
        assert morphology.components(inside)[1] == 1
    alone = sum(morphology.components(array == value)[1] for value in (1, 2, 3))
    assert len(found) >= alone


def test_instances_without_necks_are_the_components_however_many():
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[::2, ::2] = 1
    numbers = postprocess.instances(labels)
    assert (numbers.dtype, numbers.max()) == (np.uint16, 400)
    np.testing.assert_array_equal(numbers[labels > 0], np.arange(1, 401))
    assert postprocess.instances(np.ones((3, 3), dtype=np.uint8)).max() == 1
    assert postprocess.instances(np.zeros((3, 3), dtype=np.uint8)).max() == 0


GOOD = (
    part("hysteresis", low=0.3, high=0.85),
    part("opening", radius=1),
    part("closing", size=2),
    part("dust"),
    part("fill_holes", below=None, per_slice=1),
    part("instances"),
)


def test_a_good_list_passes_in_every_shape_that_it_fits():
    postprocess.check([])
    postprocess.check(GOOD)
    postprocess.check(GOOD, channels=1)
    postprocess.check([part("argmax"), part("dust")], channels=4, dims=2)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([part("treshold")], "postprocess.0.*Did you mean 'threshold'"),
        ([part("threshold", a=0.5)], "no option 'a'.*at"),
        ([part("dust", array=1)], "no option 'array'"),
        ([part("dust"), part("threshold")], "postprocess.1.*'threshold'.*after 'dust'"),
        ([part("threshold"), part("argmax")], "postprocess.1"),
        ([part("hysteresis", low=0.3)], "high"),
        ([part("hysteresis", low=0.9, high=0.3)], "Exchange"),
        ([part("threshold", at=50)], "0..1"),
        ([part("dust"), part("dust", below=-1)], "postprocess.1.*-1"),
        ([part("dust", below="many")], "postprocess.0.*many"),
        ([part("dust", connectivity=5)], "connectivity"),
        ([part("closing")], "radius or size"),
        ([part("closing", radius=1, size=3)], "radius or size"),
        ([part("closing", size=0)], "at least 1"),
        ([part("opening", radius=-2)], "radius"),
        ([part("fill_holes", below=-3)], "-3"),
        ([part("fill_holes", per_slice=3)], "per_slice"),
        ([part("instances", depth=0)], "depth"),
    ],
)
def test_a_bad_list_is_refused_before_any_work(steps, words):
    with pytest.raises(ConfigError, match=words):
        postprocess.check(steps)


def test_steps_that_do_not_fit_the_prediction_are_refused():
    with pytest.raises(ConfigError, match="one channel"):
        postprocess.check([part("threshold")], channels=3)
    with pytest.raises(ConfigError, match="2 to 256 channels"):
        postprocess.check([part("argmax")], channels=1)
    with pytest.raises(ConfigError, match="per_slice"):
        postprocess.check([part("fill_holes", per_slice=0)], dims=2)
    with pytest.raises(UserError, match="after 'dust'"):
        postprocess.apply([part("dust"), part("threshold")], np.zeros((1, 2, 2), dtype=np.float32))


@pytest.mark.parametrize("channels", [1, 3])
@FEW
@given(data=st.data())
def test_apply_runs_the_steps_in_their_order(channels, data):
    soft = data.draw(arrays(np.float32, (channels, 4, 5, 6), elements=st.floats(0, 1, width=32)))
    steps = [part("closing", radius=1), part("dust", below=4)]
    labels = (soft[0] >= 0.5).astype(np.uint8) if channels == 1 else soft.argmax(0).astype(np.uint8)
    expected = postprocess.dust(postprocess.closing(labels, radius=1), below=4)
    result = postprocess.apply(steps, soft)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


def names(steps: tuple[NamedOptions, ...]) -> list[str]:
    return [step.name for step in steps]


def test_adjust_without_options_changes_nothing():
    assert postprocess.adjust(GOOD) == GOOD


def test_adjust_inserts_missing_steps_in_their_natural_place():
    everything = {
        "threshold": 0.4,
        "min_component_size": 7,
        "max_hole_size": 8,
        "kernel_size": 3,
        "separate_instances": True,
    }
    expected = (
        part("threshold", at=0.4),
        part("closing", size=3),
        part("dust", below=7),
        part("fill_holes", below=8),
        part("instances"),
    )
    assert postprocess.adjust((), **everything) == expected
    steps = (part("threshold"), part("dust"))
    assert names(postprocess.adjust(steps, kernel_size=2)) == ["threshold", "closing", "dust"]
    assert names(postprocess.adjust(steps, max_hole_size=2)) == ["threshold", "dust", "fill_holes"]
    assert names(postprocess.adjust((part("instances"),), min_component_size=2)) == [
        "dust",
        "instances",
    ]


def test_adjust_replaces_what_is_there_and_keeps_its_other_options():
    steps = (
        part("hysteresis", low=0.2, high=0.8),
        part("dust", below=5, connectivity=6),
        part("closing", radius=4),
        part("dust"),
    )
    changed = postprocess.adjust(steps, threshold=0.3, min_component_size=9, kernel_size=5)
    assert changed == (
        part("threshold", at=0.3),
        part("dust", below=9, connectivity=6),
        part("closing", size=5),
        part("dust", below=9),
    )
    assert postprocess.adjust(GOOD, separate_instances=True) == GOOD


def test_adjust_takes_steps_of_size_0_away():
    left = postprocess.adjust(GOOD, min_component_size=0, max_hole_size=0, kernel_size=0)
    assert names(left) == ["hysteresis", "opening", "instances"]
    assert postprocess.adjust((), kernel_size=0) == ()


def test_whatever_adjust_makes_of_a_good_list_is_good():
    postprocess.check(postprocess.adjust(GOOD, 0.25, 50, 20, 2, True))
    with pytest.raises(ConfigError, match="-4"):
        postprocess.check(postprocess.adjust(GOOD, min_component_size=-4))


def test_statistics_count_voxels_and_components():
    labels = scroll()
    assert postprocess.statistics(labels) == {
        "foreground_voxels": int((labels != 0).sum()),
        "background_voxels": int((labels == 0).sum()),
        "components": 4,
        "largest_component": 4 * 24 * 24 - 10,
    }
    assert postprocess.statistics(np.zeros((2, 3), dtype=np.uint8)) == {
        "foreground_voxels": 0,
        "background_voxels": 6,
        "components": 0,
        "largest_component": 0,
    }
