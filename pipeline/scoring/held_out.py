"""Scores of whole cases: the held-out cases of a fold, and the rows that any network has to beat."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import documents, files
from pipeline.config import Config
from pipeline.data.change import LEVEL
from pipeline.data.store import Stored
from pipeline.grid import grid_of
from pipeline.inference import soft as softs
from pipeline.inference.models import build, load_model
from pipeline.inference.sliding_window import Source, Voice, settled, sliding_window, tiling, voice
from pipeline.inference.soft import SoftMeta, SoftPrediction
from pipeline.inference.writing import decided
from pipeline.metrics import CHANGED, better, evaluate_frames, in_millimetres
from pipeline.metrics.context import MetricContext
from pipeline.metrics.frames import Counts, Truth, pool, views
from pipeline.metrics.retouch import Retouched
from pipeline.records import METRICS_VERSION, Geometry, Part, UserError
from pipeline.scoring.folder import Scores, counted, image_scores, mean
from pipeline.scoring.patches import classes_of, validation_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """By which rules a run is scored: its metrics version, and millimetres between voxels by case where distances are lengths."""

    version: int = METRICS_VERSION
    spacings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


PRESENT = Scoring()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Held-out cases of a fold and where their soft answers go.

    ``progress(done, total)`` is called with the number of cases done, in fractions of one while it is predicted; it may stop the work.
    """

    cases: Sequence[Stored]
    folder: Path
    device: str
    progress: Callable[[float, int], None]
    scoring: Scoring = PRESENT


def scoring_of(config: Config, version: int, cases: Sequence[Stored]) -> Scoring:
    """How a run is scored: lengths are millimetres where a metric measures any and the labels of all cases carry a unit.

    Raises UserError where a tolerance in millimetres is asked for and some labels carry none.
    """
    metrics = (*case_metrics(config), *validation_metrics(config))
    if version < 2 or config.task != "labels" or not in_millimetres(metrics):
        return Scoring(version=version)
    label = next(iter(config.targets))
    places = {c.case.id: files.geometry(c.case.targets[label], config.data.dims) for c in cases}
    spacings = {i: s for i, place in places.items() if (s := grid_of(place, config.data.dims).spacing) is not None}
    bare = [i for i in places if i not in spacings]
    if bare and any("tolerance_mm" in m.options for m in metrics):
        raise UserError(
            f"tolerance_mm needs the distance between voxels, which the labels of {len(bare)} cases do not carry: {', '.join(bare[:10])}. "
            "Use tolerance (voxels), or give them their spacing."
        )
    return Scoring(version=version, spacings={} if bare else spacings)


def case_metrics(config: Config) -> tuple[Part, ...]:
    """Metrics of whole cases, with the task's default; the first one chooses between best and averaged weights."""
    return config.metrics or (Part(name="dice" if config.task == "labels" else "psnr"),)


def answer_of(config: Config, soft: SoftPrediction) -> np.ndarray:
    """The answer that ``predict`` would write for this case."""
    return np.asarray(decided(soft, config.postprocess))


def score(config: Config, soft: SoftPrediction, stored: Stored, scoring: Scoring = PRESENT) -> Scores:
    """``metrics`` of one case: labels after post-processing; images as they are saved (clipped, rounded to the input's type), on 0..1.

    Raises UserError naming the case where an image cannot be scored: a NaN in it, or a target of another number type.
    """
    if config.task == "image":
        if not np.isfinite(np.asarray(soft.main)).all():  # rounding to integers would hide it
            raise UserError(
                f"case {stored.case.id}: the prediction holds NaN or infinite values. Lower the learning rate or set train.clip."
            )
        predicted = np.asarray(soft.heads["mask"])[0] if "mask" in soft.heads else None
        return _image_scores(config, answer_of(config, soft), stored, predicted)
    truth = truth_of(config, stored, scoring)
    return evaluate_frames(case_metrics(config), answer_of(config, soft), truth, _foreground(np.asarray(soft.main)))


def _image_scores(config: Config, image: np.ndarray, stored: Stored, predicted: np.ndarray | None = None) -> Scores:
    """``metrics`` of an image ``(C, *S)`` of the input's number type against the case's target, each brought to 0..1.

    ``predicted`` is the probability ``(*S)`` of the mask of change, where the network gives one.
    """
    target = np.asarray(stored.targets[_image_target(config)].array)
    if target.dtype != image.dtype:
        raise UserError(
            f"case {stored.case.id}: the input holds {image.dtype}, its target {target.dtype}; one normalisation cannot serve both. "
            "Save the two in the same number type."
        )
    metrics = case_metrics(config)
    change = change_of(stored, predicted) if CHANGED & {m.name for m in metrics} else None
    try:
        return image_scores(metrics, image, target, change)
    except ValueError as error:
        raise UserError(f"case {stored.case.id}: {error}.") from None


def _image_target(config: Config) -> str:
    """Name of the image that the answer should be: a user's masks may be a target beside it."""
    return next(name for name, kind in config.targets.items() if kind == "image")


def change_of(stored: Stored, predicted: np.ndarray | None = None) -> Retouched | None:
    """The input of a case, as its file has it, and the mask of what was to change; None where the data has no such mask.

    The mask is that of ``data.change``, or the user's own: a target of labels called ``mask``.
    """
    if "mask" in stored.maps:
        mask = np.asarray(stored.maps["mask"].array)[0] >= LEVEL
    elif "mask" in stored.targets:
        mask = np.asarray(stored.targets["mask"].array)[0] > 0
    else:
        return None
    return Retouched(source=np.asarray(stored.image.array), mask=mask, predicted=predicted)


def truth_of(config: Config, stored: Stored, scoring: Scoring = PRESENT) -> Truth:
    """The label of a case with its field of view, where the config has one, and what its metrics are told."""
    frames, targets = config.data.frames, stored.targets
    label = np.asarray(targets[next(iter(config.targets))].array)[0]
    fov = None if frames.fov is None else np.asarray(targets[frames.fov].array)[0]
    context = context_of(config, scoring, scoring.spacings.get(stored.case.id))
    return Truth(label=label, ignore=config.data.ignore_label, fov=fov, padded=frames.padded, context=context)


def context_of(config: Config, scoring: Scoring, spacing: tuple[float, ...] | None = None) -> MetricContext:
    """What metrics of labels are told of a run's data: all its classes, unless instances are numbered."""
    numbered = any(step.name == "instances" for step in config.postprocess)
    classes = None if scoring.version < 2 or numbered else classes_of(config.data)
    return MetricContext(classes=classes, spacing=spacing, version=scoring.version)


def _foreground(soft: np.ndarray) -> np.ndarray | None:
    """Foreground probability ``(*S)`` of two classes."""
    return soft[0] if len(soft) == 1 else None


def pooled(config: Config, cases: Iterable[tuple[Stored, np.ndarray, np.ndarray]], version: int = METRICS_VERSION) -> Scores:
    """The metrics that can be pooled, over all voxels of (case, answer ``(*S)``, soft ``(K, *S)``); empty for more than two classes."""
    metrics = case_metrics(config)
    found: list[dict[str, Counts]] = []
    for stored, answer, soft in cases:
        counts = counted(metrics, answer, truth_of(config, stored), _foreground(soft))
        if counts is None:
            return {}
        found.append(counts)
    return dict(pool(found, (m.name for m in metrics), version))


def held_out(model_path: Path, job: HeldOut) -> dict[str, Scores]:
    """Predict and score the held-out cases with one model. A case that is already done (its ``.json`` is there) is not done again."""
    network, config = build(load_model(model_path), str(model_path))
    speak = voice([network.to(job.device)], config, job.device)
    scores: dict[str, Scores] = {}
    total = len(job.cases)

    def advance(share: float) -> None:
        job.progress(len(scores) + share, total)

    for stored in job.cases:
        advance(0)
        done = job.folder / f"{stored.case.id}.scores.json"
        if not done.is_file():
            prediction = predict_stored(stored, config, speak, job.device, advance)
            softs.save(job.folder, dataclasses.replace(prediction, meta=SoftMeta(task=config.task)))
            files.write_json(done, score(config, prediction, stored, job.scoring))
        found = files.read_document(done, documents.CaseScores, "Remove it: the case is predicted and scored again")
        scores[stored.case.id] = {k: math.nan if v is None else v for k, v in found.items()}
    advance(0)
    return scores


def predict_stored(
    stored: Stored, config: Config, speak: Voice, device: str, progress: Callable[[float], None] | None = None
) -> SoftPrediction:
    """Soft answer of a case in the store. ``progress`` is called with the share of the case that is done; scoring it is the last bit."""
    array = stored.image.array
    source, tiles = Source(array=array, scale=stored.scale), tiling(config, array.shape[1:], speak)
    fixed, done = settled(speak, source, tiles), 0

    def advance(number: int) -> None:
        nonlocal done
        done += number
        if progress is not None:
            progress(done / (tiles.count() + 1))

    heads = sliding_window(source, fixed, tiles, config.predict.batch, device, advance)
    return SoftPrediction(case_id=stored.case.id, heads=heads, geometry=geometry_of(stored, config), meta=meta_of(stored, config))


def geometry_of(stored: Stored, config: Config) -> Geometry:
    """Where the input of a case in the store lies."""
    return files.geometry(stored.case.image[0], config.data.dims)


def meta_of(stored: Stored, config: Config) -> SoftMeta:
    """What an answer to a case in the store is made with."""
    return SoftMeta(task=config.task, scale=stored.scale, dtype=str(stored.image.dtype), channels=stored.image.shape[0])


def choose(means: Mapping[str, Scores]) -> str:
    """``best`` or ``swa``: the better one in the first metric; ``best`` when equal."""
    metric = next(iter(means["best"]))
    sign = 1 if better(metric) == "higher" else -1
    return max(means, key=lambda kind: (sign * means[kind][metric] if math.isfinite(means[kind][metric]) else -math.inf, kind == "best"))


def baselines(config: Config, cases: Sequence[Stored], bins: int = 256, scoring: Scoring = PRESENT) -> dict[str, Scores]:
    """Rows that a network has to beat, binary labels only: an empty answer, and the best global threshold on the normalised image.

    The threshold, its side (bright or dark) and the channel are chosen on the very cases that they are scored on, in the
    baseline's favour, by the mean Dice of the first frame. Probabilities are then the grey values of that channel.
    """
    truths = [truth_of(config, c, scoring) for c in cases]
    channel, side, cut = _best_cut(np.stack([_histograms(c, t, bins) for c, t in zip(cases, truths, strict=True)]))
    single = cases[0].image.shape[0] == 1
    name = "best global threshold" if single else f"best global threshold (channel {channel}, {side})"
    rows: dict[str, list[Scores]] = {"empty answer": [], name: []}
    for stored, truth in zip(cases, truths, strict=True):
        grey = stored.scale.apply(np.asarray(stored.image.array))[channel]
        level = _levels(grey, bins)
        answer = (level >= cut) if side == "bright" else (level < cut)
        nothing = np.zeros(truth.label.shape, np.uint8)
        rows["empty answer"].append(evaluate_frames(case_metrics(config), nothing, truth, nothing.astype(np.float32)))
        soft = grey if side == "bright" else 1 - grey
        rows[name].append(evaluate_frames(case_metrics(config), answer.astype(np.uint8), truth, soft))
    return {k: mean(v) for k, v in rows.items()}


DO_NOTHING = "do nothing (the input)"
"""The row of images that any network has to beat."""


def baselines_image(config: Config, cases: Sequence[Stored]) -> dict[str, Scores]:
    """The row that a network has to beat, task image: the mean scores of the inputs themselves; empty where an input has not its target's shape.

    Scored like answers (:func:`score`). Raises UserError like it.
    """
    name = _image_target(config)
    if not cases or any(c.image.shape != c.targets[name].shape for c in cases):
        return {}
    return {DO_NOTHING: mean(_image_scores(config, np.asarray(c.image.array), c) for c in cases)}


def _levels(grey: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(grey * bins, 0, bins - 1).astype(np.int32)


def _histograms(stored: Stored, truth: Truth, bins: int) -> np.ndarray:
    """Counts ``(C, 2, bins)`` of background and foreground by grey level of each channel, in the first frame."""
    view = next(views(truth))
    valid = np.ones(view.label.shape, bool) if view.valid is None else view.valid
    levels = _levels(stored.scale.apply(np.asarray(stored.image.array)), bins)
    sides = [valid & ((view.label != 0) == side) for side in (False, True)]
    return np.stack([[np.bincount(level[side], minlength=bins) for side in sides] for level in levels])


def _best_cut(histograms: np.ndarray) -> tuple[int, str, int]:
    """Channel, side and level with the highest mean Dice; ``histograms`` is ``(cases, C, 2, bins)``."""
    best = (-1.0, 0, "bright", 0)
    for channel in range(histograms.shape[1]):
        for side in ("bright", "dark"):
            turned = histograms[:, channel] if side == "bright" else histograms[:, channel, :, ::-1]
            dices = np.mean([_dice_by_cut(h) for h in turned], axis=0)
            k = int(dices.argmax())
            if dices[k] > best[0]:
                best = (float(dices[k]), channel, side, k if side == "bright" else len(dices) - k)
    return best[1:]


def _dice_by_cut(histogram: np.ndarray) -> np.ndarray:
    """Dice of "level >= k" for every k."""
    false, true = (np.cumsum(h[::-1])[::-1] for h in histogram)
    return 2 * true / np.maximum(true + false + histogram[1].sum(), 1)
