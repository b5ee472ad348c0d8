"""Scores of whole cases: the held-out cases of a fold, and the rows that any network has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline import files, networks, postprocess
from pipeline.config import Config, from_dict
from pipeline.data.store import Stored
from pipeline.engine import soft as softs
from pipeline.engine.checkpoint import load_model, load_weights
from pipeline.engine.folder import Scores, mean, score_labels
from pipeline.engine.inference import Source, Voice, sliding_window, tiling, voice
from pipeline.metrics import better, evaluate
from pipeline.records import Checkpoint, Part, Prediction
from pipeline.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Held-out cases of a fold and where their soft answers go. ``each`` is called before every case and may stop the work."""

    cases: Sequence[Stored]
    folder: Path
    device: str
    each: Callable[[Iterable[Stored], str], Iterable[Stored]]


def case_metrics(config: Config) -> tuple[Part, ...]:
    """Metrics of whole cases, with the task's default; the first one chooses between best and averaged weights."""
    return config.metrics or (Part(name="dice" if config.task == "labels" else "psnr"),)


def build(model: Checkpoint, where: str) -> tuple[torch.nn.Module, Config]:
    """The network of a model file with its weights, ready for prediction."""
    config = from_dict(model.config, where)
    network = networks.build(config.network, *model.channels, config.data.dims)
    load_weights(network, model.weights, where)
    return network.eval(), config


def answer_of(config: Config, soft: np.ndarray, stored: Stored) -> np.ndarray:
    """The answer that ``predict`` would write for this case."""
    if config.task == "labels":
        return postprocess.apply(config.postprocess, soft)
    return TASKS["image"].hard(soft, stored.scale, stored.image.dtype)


def score(config: Config, soft: np.ndarray, stored: Stored) -> Scores:
    """``metrics`` of one case: labels after post-processing, images on the normalised scale."""
    name, kind = next(iter(config.targets.items()))
    truth = np.asarray(stored.targets[name].array)
    if kind == "image":
        return evaluate(case_metrics(config), soft, stored.scale.apply(truth), None)
    return score_labels(case_metrics(config), answer_of(config, soft, stored), truth[0], config.data.ignore_label)


def held_out(model_path: Path, job: HeldOut) -> dict[str, Scores]:
    """Predict and score the held-out cases with one model. A case that is already done (its ``.json`` is there) is not done again."""
    network, config = build(load_model(model_path), str(model_path))
    speak = voice([network.to(job.device)], config, job.device)
    scores = {}
    for stored in job.each(job.cases, f"held-out cases, {model_path.stem}"):
        done = job.folder / f"{stored.case.id}.scores.json"
        if not done.is_file():
            prediction = predict_stored(stored, config, speak, job.device)
            softs.save(job.folder, prediction, {"task": config.task})
            files.write_json(done, score(config, prediction.soft, stored))
        scores[stored.case.id] = {k: math.nan if v is None else v for k, v in files.read_json(done).items()}
    return scores


def predict_stored(stored: Stored, config: Config, speak: Voice, device: str) -> Prediction:
    """Soft answer of a case in the store."""
    array = stored.image.array
    soft = sliding_window(Source(array=array, scale=stored.scale), speak, tiling(config, array.shape[1:]), config.predict.batch, device)
    return Prediction(case_id=stored.case.id, soft=soft, geometry=files.geometry(stored.case.image[0], config.data.dims))


def choose(means: Mapping[str, Scores]) -> str:
    """``best`` or ``swa``: the better one in the first metric; ``best`` when equal."""
    metric = next(iter(means["best"]))
    sign = 1 if better(metric) == "higher" else -1
    return max(means, key=lambda kind: (sign * means[kind][metric] if math.isfinite(means[kind][metric]) else -math.inf, kind == "best"))


def baselines(config: Config, cases: Sequence[Stored], bins: int = 256) -> dict[str, Scores]:
    """Rows that a network has to beat, binary labels only: an empty answer, and the best global threshold on the normalised image.

    The threshold and its side (bright or dark) are chosen on the very cases that they are scored on, in the baseline's favour.
    """
    name, metrics, ignore = next(iter(config.targets)), case_metrics(config), config.data.ignore_label
    histograms = [_histogram(c, np.asarray(c.targets[name].array)[0], ignore, bins) for c in cases]
    side, cut = _best_cut(histograms)
    rows: dict[str, list[Scores]] = {"empty answer": [], "best global threshold": []}
    for stored in cases:
        truth = np.asarray(stored.targets[name].array)[0]
        level = _levels(stored, bins)
        answer = (level >= cut) if side == "bright" else (level < cut)
        rows["empty answer"].append(score_labels(metrics, np.zeros(truth.shape, np.uint8), truth, ignore))
        rows["best global threshold"].append(score_labels(metrics, answer.astype(np.uint8), truth, ignore))
    return {k: mean(v) for k, v in rows.items()}


def _levels(stored: Stored, bins: int) -> np.ndarray:
    grey = stored.scale.apply(stored.image.array[:1])[0]
    return np.clip(grey * bins, 0, bins - 1).astype(np.int32)


def _histogram(stored: Stored, truth: np.ndarray, ignore: int | None, bins: int) -> np.ndarray:
    """Counts ``(2, bins)`` of background and foreground by grey level."""
    level = _levels(stored, bins)
    valid = np.ones(truth.shape, bool) if ignore is None else truth != ignore
    return np.stack([np.bincount(level[valid & ((truth != 0) == side)], minlength=bins) for side in (False, True)])


def _best_cut(histograms: Sequence[np.ndarray]) -> tuple[str, int]:
    best = (-1.0, "bright", 0)
    for side in ("bright", "dark"):
        dices = np.mean([_dice_by_cut(h if side == "bright" else h[:, ::-1]) for h in histograms], axis=0)
        k = int(dices.argmax())
        best = max(best, (float(dices[k]), side, k if side == "bright" else len(dices) - k))
    return best[1], best[2]


def _dice_by_cut(histogram: np.ndarray) -> np.ndarray:
    """Dice of "level >= k" for every k."""
    false, true = (np.cumsum(h[::-1])[::-1] for h in histogram)
    return 2 * true / np.maximum(true + false + histogram[1].sum(), 1)
