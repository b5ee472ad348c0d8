"""The number type of a plan: measured apart, and given up where it takes too long or crashes."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest

from pipeline.config import Patch, from_dict
from pipeline.planning import precision
from pipeline.planning.precision import Precision, fastest, step_seconds
from pipeline.workflows.checks import places

CONFIG = from_dict(
    {
        "name": "x",
        "data": {"patch": {"size": [8, 8, 8], "batch": 1}},
        "network": {"name": "plain_unet", "options": {"channels": [4, 8]}},
        "losses": ["dice"],
    }
)


def times(monkeypatch: pytest.MonkeyPatch, **seconds: float | None) -> None:
    known = {("none", False): "plain", ("bf16", False): "bf16", ("bf16", True): "last"}
    monkeypatch.setattr(
        precision, "_measured", lambda config, ends, way, limit: seconds[known[way]]
    )


def test_the_fastest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, plain=1.0, bf16=0.6, last=0.5)
    assert fastest(CONFIG, 1, 2) == Precision(amp="bf16", channels_last=True, seconds=0.5, plain=1)
    times(monkeypatch, plain=1.0, bf16=0.5, last=0.6)
    assert fastest(CONFIG, 1, 2).channels_last is False


def test_what_saves_little_or_fails_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, plain=1.0, bf16=0.9, last=0.88)
    assert fastest(CONFIG, 1, 2).is_plain
    times(monkeypatch, plain=1.0, bf16=None, last=None)
    assert fastest(CONFIG, 1, 2).is_plain
    times(monkeypatch, plain=None, bf16=0.1, last=0.1)
    assert fastest(CONFIG, 1, 2).is_plain


def test_a_way_that_hangs_or_crashes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "START", 0.2)
    assert precision._measured(CONFIG, (1, 2), ("none", False), 0.0) is None
    monkeypatch.setattr(precision.sys, "executable", os.devnull)
    assert precision._measured(CONFIG, (1, 2), ("none", False), None) is None


@pytest.mark.parametrize("way", precision.WAYS)
def test_steps_of_every_way_are_timed(way: tuple[str, bool]) -> None:
    asked: dict[str, Any] = {
        "network": {"name": "plain_unet", "options": {"channels": [4, 8]}},
        "ends": [1, 2],
        "size": [8, 8],
        "batch": 1,
        "way": way,
    }
    assert step_seconds(asked) > 0


@pytest.mark.slow
def test_a_real_process_answers() -> None:
    assert fastest(CONFIG, 1, 2).plain > 0


@pytest.mark.parametrize(
    ("size", "amp", "refused"),
    [
        ([4, 256, 256], "bf16", True),
        ([4, 256, 256], "none", False),
        ([1, 256, 256], "bf16", False),
        ([40, 56, 40], "bf16", False),
    ],
)
def test_what_breaks_memory_is_refused(size: list[int], amp: str, refused: bool) -> None:
    data = dataclasses.replace(CONFIG.data, patch=Patch(size=tuple(size)))
    train = dataclasses.replace(CONFIG.train, amp=amp)  # type: ignore[arg-type]
    config = dataclasses.replace(CONFIG, data=data, train=train)
    found = [p.text for p in places.broken_types(config, "cpu")]
    assert bool(found) is refused
    assert all("train.amp=none" in text for text in found)
