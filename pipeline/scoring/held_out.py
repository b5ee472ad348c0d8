"""The held-out cases of a fold: predicted, saved and scored with one model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import documents, files
from pipeline.config import Config
from pipeline.data.cache import CachedCase
from pipeline.inference import soft as softs
from pipeline.inference.models import build, load_model
from pipeline.inference.sliding_window import (
    Source,
    TilePredictor,
    TileRun,
    network_ensemble,
    sliding_window,
    tiling,
    with_fixed_norms,
)
from pipeline.inference.soft import SoftMeta, SoftPrediction
from pipeline.inference.writing import decided
from pipeline.metrics import better
from pipeline.records import UserError
from pipeline.scoring import core
from pipeline.scoring.cached import PRESENT, Scoring, label_case, rules_of, score_image
from pipeline.scoring.core import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldEvaluation:
    """Held-out cases of a fold, and where their soft predictions go.

    Args:
        cases: the cached cases.
        folder: folder of their soft predictions and scores.
        device: where they are predicted.
        progress: called with the number of cases done (in fractions of one while it is predicted)
            and the number of all; an exception from it stops the work.
        scoring: metrics version and spacings.
    """

    cases: Sequence[CachedCase]
    folder: Path
    device: str
    progress: Callable[[float, int], None]
    scoring: Scoring = PRESENT


def answer_of(config: Config, soft: SoftPrediction) -> np.ndarray:
    """Decide and post-process a prediction, as ``predict`` would.

    Args:
        config: config of the run.
        soft: the prediction, in memory.

    Returns:
        Labels ``(*S)``, or an image ``(C, *S)`` in the input's number type.
    """
    return np.asarray(decided(soft, config.postprocess))


def score(
    config: Config, soft: SoftPrediction, cached: CachedCase, scoring: Scoring = PRESENT
) -> Scores:
    """Compute the run's metrics of one case.

    Labels are scored after post-processing; images as they are saved (clipped, rounded to the
    input's type), on 0..1.

    Args:
        config: config of the run.
        soft: the prediction.
        cached: the case.
        scoring: metrics version and spacings.

    Returns:
        Scores by metric.

    Raises:
        UserError: an image cannot be scored, e.g. for a NaN or a target of another number type; the
            message names the case.
    """
    rules = rules_of(config, scoring.version)
    if not rules.images:
        case = label_case(
            config,
            cached,
            answer_of(config, soft),
            soft.foreground(),
            scoring.spacings.get(cached.case.id),
        )
        return core.score(case, rules)
    if not np.isfinite(np.asarray(soft.main)).all():  # rounding to integers would hide it
        raise UserError(
            f"case {cached.case.id}: the prediction holds NaN or infinite values. Lower the"
            " learning rate or set train.clip."
        )
    predicted = soft.on_file_grid().heads["mask"][:][0] if "mask" in soft.heads else None
    return score_image(config, cached, answer_of(config, soft), predicted)


def evaluate_fold(model_path: Path, job: FoldEvaluation) -> dict[str, Scores]:
    """Predict and score the held-out cases of a fold with one model.

    A case that is already done (its ``.json`` is there) is not done again.

    Args:
        model_path: the model file.
        job: the cases, and where results go.

    Returns:
        Scores by case.

    Raises:
        UserError: the model file cannot be used, or a case cannot be predicted or scored.
    """
    network, config = build(load_model(model_path), str(model_path))
    predict_tile = network_ensemble([network.to(job.device)], config, job.device)
    scores: dict[str, Scores] = {}
    total = len(job.cases)

    def advance(share: float) -> None:
        job.progress(len(scores) + share, total)

    for cached in job.cases:
        advance(0)
        done = job.folder / f"{cached.case.id}.scores.json"
        if not done.is_file():
            prediction = predict_stored(cached, config, predict_tile, job.device, advance)
            if config.data.has_space or config.data.regions:  # score what oof/ is made from
                prediction = softs.as_stored(prediction)
            softs.save(
                job.folder, dataclasses.replace(prediction, meta=SoftMeta(task=config.rules))
            )
            files.write_json(done, score(config, prediction, cached, job.scoring))
        found = files.read_document(
            done, documents.CaseScores, "Remove it: the case is predicted and scored again"
        )
        scores[cached.case.id] = {k: math.nan if v is None else v for k, v in found.items()}
    advance(0)
    return scores


def predict_stored(
    cached: CachedCase,
    config: Config,
    predict_tile: TilePredictor,
    device: str,
    progress: Callable[[float], None] | None = None,
) -> SoftPrediction:
    """Predict a cached case.

    Args:
        cached: the case.
        config: config of the run.
        predict_tile: the networks.
        device: where tiles are summed.
        progress: called with the share of the case that is done; it ends just below 1, since the
            case has still to be scored.

    Returns:
        The prediction, in memory.

    Raises:
        UserError: the device runs out of memory, or the statistics of norms cannot be fixed.
    """
    array = cached.image.array
    source = Source(array=array, scale=cached.scale)
    tiles = tiling(config, array.shape[1:], predict_tile)
    fixed = with_fixed_norms(predict_tile, source, tiles)
    done = 0

    def advance(number: int) -> None:
        nonlocal done
        done += number
        if progress is not None:
            progress(done / (tiles.count() + 1))

    run = TileRun(
        source=source,
        predict_tile=fixed,
        tiles=tiles,
        batch=config.predict.batch,
        device=device,
        advance=advance,
    )
    heads = sliding_window(run)
    place = files.geometry(cached.case.image[0], config.data.dims)
    return SoftPrediction(
        case_id=cached.case.id,
        heads=heads,
        geometry=place,
        meta=meta_of(cached, config),
        space=cached.space,
    )


def meta_of(cached: CachedCase, config: Config) -> SoftMeta:
    """Metadata of the soft prediction of a cached case.

    Args:
        cached: the case.
        config: config of the run.

    Returns:
        Task, intensity scale, number type and channels.
    """
    resampled = cached.space.resampling is not None
    kind = np.dtype(cached.properties.dtypes["image"] if resampled else cached.image.dtype)
    return SoftMeta(
        task=config.rules,
        scale=cached.scale,
        dtype="float32" if kind == np.float64 else str(kind),
        channels=cached.image.shape[0],
    )


def choose(means: Mapping[str, Scores]) -> str:
    """Choose the better weights of a fold by the first metric.

    Args:
        means: mean scores of ``best`` (or ``last``) and, where weights were averaged, ``swa``.

    Returns:
        One of them; not ``swa`` when equal.

    Example:
        >>> choose({"best": {"dice": 0.8}, "swa": {"dice": 0.9}})
        'swa'
    """
    metric = next(iter(next(iter(means.values()))))
    sign = 1 if better(metric) == "higher" else -1
    return max(
        means,
        key=lambda kind: (
            sign * means[kind][metric] if math.isfinite(means[kind][metric]) else -math.inf,
            kind != "swa",
        ),
    )
