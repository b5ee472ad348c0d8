"""Baselines: the scores that any network has to beat."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.config import Config, numbers
from pipeline.data.cache import CachedCase, file_image
from pipeline.metrics.frames import views
from pipeline.records import NamedOptions
from pipeline.scoring import core
from pipeline.scoring.cached import (
    PRESENT,
    Scoring,
    image_target,
    label_case,
    rules_of,
    score_image,
)
from pipeline.scoring.core import CaseArrays, Rules, Scores, mean


def of_labels(
    config: Config, cases: Sequence[CachedCase], scoring: Scoring = PRESENT, bins: int = 256
) -> dict[str, Scores]:
    """Score the baselines of binary labels: an empty answer, and the best global threshold.

    The threshold is on the normalised image; of ``ct`` and ``none`` anywhere between the least and
    the greatest value of all cases. It, its side (bright or dark) and the channel are chosen on the
    very cases that they are scored on, in the baseline's favour, by the mean Dice of the first
    frame. Probabilities are then the grey values of that channel.

    Args:
        config: config of the run.
        cases: cached cases, at least one, with an image and labels.
        scoring: metrics version and spacings.
        bins: number of grey levels between which thresholds are tried.

    Returns:
        Mean scores by name of the baseline.
    """
    rules, spans = rules_of(config, scoring.version), _spans(config, cases)
    channel, side, cut = _best_cut(
        np.stack([_histograms(c, _empty(config, c, scoring), rules, spans, bins) for c in cases])
    )
    single = cases[0].image.shape[0] == 1
    name = (
        "best global threshold" if single else f"best global threshold (channel {channel}, {side})"
    )
    rows: dict[str, list[Scores]] = {"empty answer": [], name: []}
    for cached in cases:
        nothing = _empty(config, cached, scoring)
        grey = _greys(cached, spans)[channel]
        level = _levels(grey, bins)
        answer = (level >= cut) if side == "bright" else (level < cut)
        soft = grey if side == "bright" else 1 - grey
        rows["empty answer"].append(core.score(nothing, rules))
        rows[name].append(
            core.score(
                dataclasses.replace(nothing, answer=answer.astype(np.uint8), probabilities=soft),
                rules,
            )
        )
    return {k: mean(v) for k, v in rows.items()}


def _empty(config: Config, cached: CachedCase, scoring: Scoring) -> CaseArrays:
    """A case in which nothing was found."""
    nothing = np.zeros(cached.properties.shapes["image"][1:], np.uint8)
    return label_case(
        config,
        cached,
        nothing,
        nothing[None].astype(np.float32),
        scoring.spacings.get(cached.case.id),
    )


DO_NOTHING = "do nothing (the input)"
"""Name of the baseline of images."""


def of_images(
    config: Config, cases: Sequence[CachedCase], scoring: Scoring = PRESENT
) -> dict[str, Scores]:
    """Score the inputs themselves, in the way answers are scored.

    Args:
        config: config of the run.
        cases: cached cases with an input and a target.
        scoring: not used; as for :func:`of_labels`.

    Returns:
        Mean scores by name of the baseline; empty where an input has not its target's shape.

    Raises:
        UserError: a case cannot be scored.
    """
    name = image_target(config)
    if not cases or any(c.image.shape != c.targets[name].shape for c in cases):
        return {}
    inputs = ((c, file_image(c, config.data.dims)) for c in cases)
    return {DO_NOTHING: mean(score_image(config, c, image) for c, image in inputs)}


BASELINES: dict[str, Callable[[Config, Sequence[CachedCase], Scoring], dict[str, Scores]]] = {
    "labels": of_labels,
    "image": of_images,
}
"""Baselines by task."""


Spans = list[tuple[float, float] | None]
"""Of each channel, least and greatest normalised value of all cases; None: 0 and 1."""


def _spans(config: Config, cases: Sequence[CachedCase]) -> Spans:
    """Spans of channels that keep the intensities of their files (``ct`` and ``none``)."""
    count, method = cases[0].image.shape[0], config.data.normalise
    each = numbers.entries(method) * (count if isinstance(method, NamedOptions) else 1)
    out: Spans = [None] * count
    kept = [n for n, entry in enumerate(each) if entry.name in ("ct", "none")]
    for array in (c.scale.apply(np.asarray(c.image.array)) for c in cases if kept):
        for n in kept:
            least, most = out[n] or (np.inf, -np.inf)
            out[n] = (min(least, float(array[n].min())), max(most, float(array[n].max())))
    return out


def _greys(cached: CachedCase, spans: Spans) -> np.ndarray:
    """The normalised image, with each span brought to 0..1."""
    out = cached.scale.apply(file_image(cached, len(cached.image.shape) - 1))
    for channel, span in zip(out, spans, strict=True):
        if span is not None and span[1] > span[0]:
            channel -= np.float32(span[0])
            channel /= np.float32(span[1] - span[0])
    return out


def _levels(grey: np.ndarray, bins: int) -> np.ndarray:
    """Grey levels 0 to ``bins - 1`` of a normalised image."""
    return np.clip(grey * bins, 0, bins - 1).astype(np.int32)


def _histograms(
    cached: CachedCase, case: CaseArrays, rules: Rules, spans: Spans, bins: int
) -> np.ndarray:
    """Counts ``(C, 2, bins)`` of background and foreground by grey level, in the first frame."""
    view = next(views(core.truth_of(case, rules)))
    valid = np.ones(view.label.shape, bool) if view.valid is None else view.valid
    levels = _levels(_greys(cached, spans), bins)
    sides = [valid & ((view.label != 0) == side) for side in (False, True)]
    return np.stack(
        [[np.bincount(level[side], minlength=bins) for side in sides] for level in levels]
    )


def _best_cut(histograms: np.ndarray) -> tuple[int, str, int]:
    """Channel, side and level with the highest mean Dice.

    ``histograms`` is ``(cases, C, 2, bins)``.
    """
    best = (-1.0, 0, "bright", 0)
    for channel in range(histograms.shape[1]):
        for side in ("bright", "dark"):
            sided = histograms[:, channel] if side == "bright" else histograms[:, channel, :, ::-1]
            dices = np.mean([_dice_by_cut(h) for h in sided], axis=0)
            k = int(dices.argmax())
            if dices[k] > best[0]:
                best = (float(dices[k]), channel, side, k if side == "bright" else len(dices) - k)
    return best[1:]


def _dice_by_cut(histogram: np.ndarray) -> np.ndarray:
    """Dice of "level >= k" for every k."""
    false, true = (np.cumsum(h[::-1])[::-1] for h in histogram)
    return 2 * true / np.maximum(true + false + histogram[1].sum(), 1)
