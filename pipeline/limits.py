"""Limits of a config that no sensible run reaches.

Beyond them a run would take memory or hours, and then fail with another library's message.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import Config, ConfigError, Problem

EDGE = 2**15
"""Most voxels along an axis of a patch or tile."""

VOXELS = 2**28
"""Most voxels of a patch or tile: 645 along each side of a cube, 16,384 of a square."""

STEP = 2**32
"""Most voxels of all samples of a step."""

SAMPLES = 4096
"""Most samples of a batch."""

CLASSES = 256
"""Most classes: labels are written in one byte."""

SEEDS = 2**32 - 1
"""Largest seed that NumPy and scikit-learn take."""

ENTRIES = 256
"""Most entries of a list of terms, metrics, augmentations, steps or targets."""

SCALES = 32
"""Most sizes at which each tile is predicted."""

RADIUS = 1024
"""Most pixels by which a mask of change is opened, grown or blurred."""

NAME = 200
"""Most characters of a run's name, which becomes a folder."""

WEIGHT = 1e6
"""Largest weight of a loss, by absolute value."""

REACHING = {"radius": 128, "size": 256}
"""Options of post-processing that set how far a step reaches in voxels, with their limits."""

LABEL = 2**31 - 1
"""Largest label value, by absolute value."""

COUNTS = {"data.patch.tries": 10**5, "data.patch.per_case": 10**6, "data.workers": 1024}
COUNTS |= {"data.patch.steps": 10**6}
COUNTS |= {"train.epochs": 10**6, "train.accumulate": 10**6, "train.validate.per_case": 10**6}
COUNTS |= {"train.stop.patience": 10**9, "train.validate.every": 10**9}  # often written for "never"
COUNTS |= dict.fromkeys(
    ("train.preview_every", "train.preview_steps", "train.keep_every", "train.save_steps"), 10**12
)
COUNTS |= {"train.timeout": 10**7}
COUNTS |= {
    "data.patch.batch": SAMPLES,
    "predict.batch": SAMPLES,
    "predict.overlap": EDGE,
    "predict.halo": EDGE,
    "data.classes": CLASSES,
}
"""Largest value of each key that is a number."""


def problems(config: Config) -> Iterator[Problem]:
    """Check a config for values out of proportion, and for settings that leave nothing to learn.

    Args:
        config: a config that follows its schema.

    Yields:
        A problem for each such key.
    """
    for key, most in COUNTS.items():
        value = _value(config, key)
        if value is not None and value > most:
            yield Problem(f"{key} is {value}, must be at most {most}.", (key,))
    yield from _sizes(config)
    yield from _lists(config)
    yield from _magnitudes(config)
    patch = config.data.patch
    voxels = patch.batch * math.prod(patch.size)
    if patch.batch <= SAMPLES and math.prod(patch.size) <= VOXELS and voxels > STEP:
        yield Problem(
            f"data.patch.batch is {patch.batch}: with data.patch.size {list(patch.size)} a step has"
            f" {voxels:,} voxels; must be at most {STEP:,}.",
            ("data.patch.batch",),
        )
    if not 0 <= config.seed <= SEEDS:
        yield Problem(
            f"seed is {config.seed}, must be a whole number from 0 to {SEEDS}.", ("seed",)
        )
    yield from _classes(config)
    yield from _forced(config)
    yield from _average(config)
    if (
        config.train.average is not None
        and config.train.average.lr is not None
        and not 0 < config.train.average.lr < math.inf
    ):
        yield Problem(
            f"train.average.lr is {config.train.average.lr}, must be above 0, or null for the"
            " schedule's.",
            ("train.average.lr",),
        )


def _average(config: Config) -> Iterator[Problem]:
    """An average of all steps whose constant rate leaves nothing to the schedule."""
    average = config.train.average
    if average and average.by == "step" and average.start == 0 and average.lr is not None:
        yield Problem(
            f"train.average.lr is {average.lr:g} from epoch 0 on, so train.schedule and the"
            " optimiser's lr are not used. For an EMA beside the schedule set"
            " train.average.lr=null.",
            ("train.average.lr",),
            "warning",
        )


def _forced(config: Config) -> Iterator[Problem]:
    """A share of samples on foreground that is less than one of a batch."""
    share, batch = config.data.patch.oversample, config.data.patch.batch
    if share and round(batch * (1 - share)) == batch:
        yield Problem(
            f"data.patch.oversample is {share}: of a batch of {batch} on one device that is no"
            " sample, and none is centred on foreground. Raise data.patch.batch or oversample.",
            ("data.patch.oversample",),
            "warning",
        )


def clipped(config: Config) -> Config:
    """Replace values out of proportion, so that the rest of a config can be tried.

    Args:
        config: the config.

    Returns:
        A config with the limits, or stand-ins, in their place.
    """
    for problem in [p for p in problems(config) if p.severity == "error"]:
        key = problem.keys[0]
        if key in COUNTS:
            config = _with(config, key, COUNTS[key])
        elif key in STAND_INS:
            config = _with(config, key, STAND_INS[key])
        elif key == "data.patch.size":
            config = _with(config, key, (32,) * config.data.dims)
    return config


STAND_INS = {
    "data.binarise": None,
    "predict.scales": (1.0,),
    "seed": 42,
    "predict.patch": None,
    "train.average.lr": None,
    "data.ignore_label": None,
    "data.frames.padded": None,
}
"""Values that are tried in place of ones that have no nearest good value."""


def _with(part: Any, key: str, value: Any) -> Any:
    """The dataclass with the value at a dotted key replaced."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(
        part, **{name: _with(getattr(part, name), rest, value) if rest else value}
    )


def _value(config: Config, key: str) -> int | None:
    """The number at a dotted key; None for ``null``."""
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


def _sizes(config: Config) -> Iterator[Problem]:
    """Patch and tile sizes that are too large."""
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
            yield Problem(
                f"{key} is {list(size)}, {math.prod(size):,} voxels; must be at most {VOXELS:,}.",
                (key,),
            )


def _lists(config: Config) -> Iterator[Problem]:
    """Lists and names that are too long."""
    lists: dict[str, Any] = {
        "losses": config.losses,
        "metrics": config.metrics,
        "postprocess": config.postprocess,
        "train.validate.metrics": config.train.validate.metrics,
        "data.augment": config.data.augment,
        "data.targets": config.data.targets,
        "data.folders": config.data.folders,
    }
    for key, entries in lists.items():
        if len(entries) > ENTRIES:
            yield Problem(f"{key} has {len(entries)} entries, must have at most {ENTRIES}.", (key,))
    if len(config.predict.scales) > SCALES:
        yield Problem(
            f"predict.scales has {len(config.predict.scales)} entries, must have at most {SCALES}.",
            ("predict.scales",),
        )
    if len(config.name) > NAME:
        yield Problem(
            f"name has {len(config.name)} letters, must have at most {NAME}: it becomes a folder.",
            ("name",),
        )


def _magnitudes(config: Config) -> Iterator[Problem]:
    """Numbers that are infinite or so large that nothing can be computed with them."""
    change = config.data.change
    if change is not None:
        for name in ("opening", "dilation", "blur"):
            if getattr(change, name) > RADIUS:
                yield Problem(
                    f"data.change.{name} is {getattr(change, name)}, must be at most {RADIUS}.",
                    (f"data.change.{name}",),
                )
        for name in ("magnifier", "threshold"):
            if not getattr(change, name) <= WEIGHT:
                yield Problem(
                    f"data.change.{name} is {getattr(change, name)}, must be at most {WEIGHT:g}.",
                    (f"data.change.{name}",),
                )
    for n, term in enumerate(config.losses):
        if not abs(term.weight) <= WEIGHT:
            yield Problem(
                f"losses.{n}.weight is {term.weight}, must be at most {WEIGHT:g} by amount.",
                (f"losses.{n}.weight",),
            )
    if config.data.binarise is not None and not math.isfinite(config.data.binarise):
        yield Problem(
            f"data.binarise is {config.data.binarise}, must be finite, or null.", ("data.binarise",)
        )


def of_prediction(config: Config, model: Path) -> None:
    """Check that a prediction stays within the limits: tiles, batches, scales and steps.

    Args:
        config: the config of a model, with the options of a command.
        model: where it comes from, for the message.

    Raises:
        ConfigError: listing every value beyond its limit.
    """
    concerned = ("predict.", "postprocess")
    found = [
        p.text
        for p in problems(config)
        if p.keys[0].startswith(concerned) and p.severity == "error"
    ]
    for n, step in enumerate(config.postprocess if not found else ()):
        for option, most in REACHING.items():
            value = step.options.get(option, 0)
            if isinstance(value, int | float) and abs(value) > most:
                found.append(
                    f"postprocess.{n}: {step.name!r}: option {option} is {value}, must be at most"
                    f" {most} by amount."
                )
    if found:
        raise ConfigError(f"{model}, with the options of this command: " + "\n  ".join(found))


def _classes(config: Config) -> Iterator[Problem]:
    """An ignored label that is out of range, or leaves only one class to learn."""
    ignored, classes = config.data.ignore_label, config.data.classes
    if config.task != "labels" or ignored is None:
        return
    if abs(ignored) > LABEL:
        yield Problem(
            f"data.ignore_label is {ignored}, must be from {-LABEL} to {LABEL}.",
            ("data.ignore_label",),
        )
    if classes == 2 and ignored in (0, 1):
        what = "foreground" if ignored == 1 else "background"
        yield Problem(
            f"data.ignore_label is {ignored}, the only class of {what}: nothing is left to tell"
            " apart. Give the voxels to be ignored a value of their own, e.g. 2 or 255, or set"
            " data.ignore_label: null.",
            ("data.ignore_label",),
        )
