"""One setting of the range for every number type, and its exact inverse to the file's values."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config import ConfigError
from pipeline.data import normalise
from pipeline.records import NamedOptions
from pipeline.tasks import TASKS

TYPED = NamedOptions(name="range", options={"low": 0, "high": None, "to": [-1, 1]})


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("to", [(-1, 1), (0, 1), (1, -1), (-0.3, 0.45)])
def test_every_value_comes_back_exactly(dtype: str, to: tuple[float, float]) -> None:
    values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(1, 16, -1)
    scale = normalise.fit(
        NamedOptions(name="range", options={"low": 0, "high": None, "to": to}), values
    )
    out = scale.apply(values)
    assert (out.min(), out.max()) == pytest.approx((min(to), max(to)), rel=1e-6)
    back = TASKS["image"].decide(out, scale, dtype)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize(
    ("dtype", "ends"),
    [
        ("uint8", (0, 255)),
        ("uint16", (0, 65535)),
        ("int16", (-32768, 32767)),
        ("float32", (0, 1)),
        ("float64", (0, 1)),
    ],
)
def test_null_is_the_end_of_the_number_type(dtype: str, ends: tuple[float, float]) -> None:
    image = np.ones((3, 2, 2), dtype)
    scale = normalise.fit(NamedOptions(name="range", options={"low": None, "high": None}), image)
    assert (scale.low, scale.high) == ((ends[0],) * 3, (ends[1],) * 3)
    assert normalise.fit(TYPED, image).low == (0.0,) * 3


def test_without_null_the_range_is_what_it_was() -> None:
    scale = normalise.fit(NamedOptions(name="range"), np.zeros((1, 2, 2), np.uint16))
    assert (scale.low, scale.high, scale.to) == ((0.0,), (255.0,), (0.0, 1.0))


def test_rounding_goes_to_the_nearest_value_and_clips() -> None:
    scale = normalise.fit(TYPED, np.zeros((1, 1, 1), np.uint8))
    soft = (np.array([[[-0.4, 0.4, 0.6, 254.4, 254.6, 300]]], np.float32) / 255) * 2 - 1
    np.testing.assert_array_equal(
        TASKS["image"].decide(soft, scale, "uint8")[0, 0], [0, 0, 1, 254, 255, 255]
    )


def test_a_low_above_the_types_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"low=300, high=255\.0"):
        normalise.fit(
            NamedOptions(name="range", options={"low": 300, "high": None}),
            np.zeros((1, 2, 2), np.uint8),
        )


@pytest.mark.parametrize("to", [(-1, 1), (0, 1), (1, -1), (0, 255)])
def test_unit_undoes_the_range_whatever_it_is(to: tuple[float, float]) -> None:
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    part = NamedOptions(name="range", options={"high": None, "to": to})
    out = normalise.unit(part, normalise.fit(part, image).apply(image))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, image / 255, atol=1e-6)
    np.testing.assert_array_equal(
        normalise.unit(part, np.array([2 * to[0] - to[1], 2 * to[1] - to[0]])), [0, 1]
    )


def test_unit_leaves_what_has_no_range() -> None:
    np.testing.assert_array_equal(
        normalise.unit(NamedOptions(name="zscore"), np.array([-3.0, 4.0])), [-3, 4]
    )
    np.testing.assert_array_equal(
        normalise.unit(NamedOptions(name="percentile"), np.array([-3.0, 0.25])), [0, 0.25]
    )
