"""Limits that no sensible run reaches: whatever lies beyond would take memory or hours before it failed in words of another library."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from pipeline.config import Config, Problem

EDGE = 2**15
"""Voxels along an axis of a patch or tile."""

VOXELS = 2**28
"""Voxels of a patch or tile: 645 along each side of a cube, 16,384 of a square."""

STEP = 2**32
"""Voxels of all samples of a step."""

SAMPLES = 4096
"""Samples of a batch."""

CLASSES = 256
"""Classes that labels of one byte hold, which is what answers are written in."""

SEEDS = 2**32 - 1
"""Largest seed that NumPy and scikit-learn take."""

LABEL = 2**31 - 1
"""Largest label value, by amount."""

COUNTS = {"data.folds.count": 1000, "data.patch.tries": 10**5, "data.patch.per_case": 10**6, "data.workers": 1024}
COUNTS |= {"train.epochs": 10**6, "train.accumulate": 10**6, "train.validate.per_case": 10**6}
COUNTS |= {"data.patch.batch": SAMPLES, "predict.batch": SAMPLES, "predict.overlap": EDGE, "predict.halo": EDGE, "data.classes": CLASSES}


def problems(config: Config) -> Iterator[Problem]:
    """What is out of proportion, and what leaves nothing to learn."""
    for key, most in COUNTS.items():
        value = _value(config, key)
        if value > most:
            yield Problem(f"{key} is {value}, must be at most {most}.", (key,))
    yield from _boxes(config)
    patch = config.data.patch
    voxels = patch.batch * math.prod(patch.size)
    if patch.batch <= SAMPLES and math.prod(patch.size) <= VOXELS and voxels > STEP:
        yield Problem(
            f"data.patch.batch is {patch.batch}: with data.patch.size {list(patch.size)} a step has {voxels:,} voxels; must be at most {STEP:,}.",
            ("data.patch.batch",),
        )
    if not 0 <= config.seed <= SEEDS:
        yield Problem(f"seed is {config.seed}, must be a whole number from 0 to {SEEDS}.", ("seed",))
    yield from _classes(config)
    if config.train.average is not None and config.train.average.lr is not None and not 0 < config.train.average.lr < math.inf:
        yield Problem(f"train.average.lr is {config.train.average.lr}, must be above 0, or null for the schedule's.", ("train.average.lr",))


def clipped(config: Config) -> Config:
    """The config without what is out of proportion, so that the rest of it can be tried."""
    for problem in [p for p in problems(config) if p.severity == "error"]:
        key = problem.keys[0]
        if key in COUNTS:
            config = _with(config, key, COUNTS[key])
        elif key in STAND_INS:
            config = _with(config, key, STAND_INS[key])
        elif key == "data.patch.size":
            config = _with(config, key, (32,) * config.data.dims)
    return config


STAND_INS = {"seed": 42, "predict.patch": None, "train.average.lr": None, "data.ignore_label": None, "data.frames.padded": None}
"""What is tried in place of a value that has no nearest good one."""


def _with(part: Any, key: str, value: Any) -> Any:
    name, _, rest = key.partition(".")
    return dataclasses.replace(part, **{name: _with(getattr(part, name), rest, value) if rest else value})


def _value(config: Config, key: str) -> int:
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


def _boxes(config: Config) -> Iterator[Problem]:
    sizes = {
        "data.patch.size": config.data.patch.size,
        "predict.patch": config.predict.patch,
        "data.frames.padded": config.data.frames.padded,
    }
    for key, size in sizes.items():
        if not isinstance(size, tuple):
            continue
        if max(size, default=0) > EDGE:
            yield Problem(f"{key} is {list(size)}, must be at most {EDGE} along each axis.", (key,))
        elif math.prod(size) > VOXELS:
            yield Problem(f"{key} is {list(size)}, {math.prod(size):,} voxels; must be at most {VOXELS:,}.", (key,))


def _classes(config: Config) -> Iterator[Problem]:
    ignored, classes = config.data.ignore_label, config.data.classes
    if config.task != "labels" or ignored is None:
        return
    if abs(ignored) > LABEL:
        yield Problem(f"data.ignore_label is {ignored}, must be from {-LABEL} to {LABEL}.", ("data.ignore_label",))
    if classes == 2 and ignored in (0, 1):
        what = "foreground" if ignored == 1 else "background"
        yield Problem(
            f"data.ignore_label is {ignored}, the only class of {what}: nothing is left to tell apart. "
            "Give the voxels to be ignored a value of their own, e.g. 2 or 255, or set data.ignore_label: null.",
            ("data.ignore_label",),
        )
