"""One fold: fit its network, then score its kept and averaged weights on whole held-out cases.

Fold ``all`` is one network on every case: nothing is held out, so it is fitted and not scored.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import files, losses, networks
from pipeline.config import Config
from pipeline.data.cache import CachedCase
from pipeline.data.folds import Split
from pipeline.data.loaders import Loader
from pipeline.data.locations import is_forced
from pipeline.data.sampling import seed_of
from pipeline.inference import soft
from pipeline.networks import HeadedNet
from pipeline.progress import Progress, clock
from pipeline.records import ALL, FoldName, FoldResult, seed_number
from pipeline.runs import FoldFolder, RunFolder
from pipeline.scoring import held_out
from pipeline.scoring.cached import Scoring
from pipeline.scoring.core import mean
from pipeline.stopping import stop
from pipeline.tasks import TASKS
from pipeline.training import distributed, freezing, initial, loop
from pipeline.training.distributed import DistributedContext
from pipeline.training.job import FoldJob, TrainingError, kept_weights
from pipeline.training.state import TrainingState

logger = logging.getLogger(__name__)

MEMORY = ("out of memory", "can't allocate memory", "unable to allocate")
"""Words in messages of torch and numpy, also where a loader's worker raises another class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """A run whose checks have passed: what its folds are trained on, and how they are scored."""

    config: Config
    folder: RunFolder
    device: str
    """``cpu`` or ``cuda``."""
    channels: tuple[int, int]
    """Input and output channels of the network."""
    cached: Mapping[str, CachedCase]
    """Cases by id."""
    splits: Sequence[Split]
    """Ids of training and held-out cases, by fold."""
    context: DistributedContext
    """The ranks that train it."""
    version: int
    """Metrics version by which the run is scored."""
    scoring: Scoring
    """How held-out cases are scored."""
    trained_on: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the training data looked like, for the header of model files."""

    def split(self, fold: FoldName) -> Split:
        """Cases of a fold.

        Args:
            fold: its number; ``all``: every case of any fold is trained on, none is held out.

        Returns:
            Ids of its training and held-out cases.
        """
        if isinstance(fold, str):
            # Cases that own splits leave out may be kept for a test: no model sees them.
            used = {i for split in self.splits for i in (*split.train, *split.val)}
            return Split(train=tuple(i for i in self.cached if i in used), val=())
        return self.splits[fold]


def train_guarded(run: TrainingRun, fold: FoldName) -> FoldResult:
    """Train one fold and write its result; an error becomes a result with status ``failed``.

    The traceback is written to the fold's error file. Of several ranks, an error other than a
    TrainingError is raised: the rank has failed alone, and the others learn it by its end.

    Args:
        run: the run.
        fold: number of the fold, or ``all``.

    Returns:
        The result.
    """
    began, folder = time.monotonic(), run.folder.fold(fold)
    scores: Mapping[str, Any] = {}
    try:
        result, scores = train_fold(run, fold)
    except Exception as error:
        if not run.context.is_single and not isinstance(error, TrainingError):
            raise  # this rank alone has failed; the others learn it by its end
        text = f"{type(error).__name__}: {error}"
        logger.info(f"Fold {fold} FAILED: {text}{memory_hint(error)}")
        if run.context.is_main:
            files.write_text(folder.error_file, traceback.format_exc())
        result = FoldResult(
            fold=fold,
            status="failed",
            chosen=kept_weights(run.config, fold),
            error=text,
            seconds=time.monotonic() - began,
        )
    else:
        best = f"best epoch {result.best_epoch + 1}, " if result.best_epoch >= 0 else ""
        logger.info(
            f"Fold {fold} complete! {best}weights used: {result.chosen}, {clock(result.seconds)}"
        )
    if run.context.is_main:
        folder.write_result(result, scores)
    return result


def memory_hint(error: Exception) -> str:
    """Advice for an error of too little memory, to follow its message.

    Args:
        error: any error.

    Returns:
        The advice; empty for other errors.

    Example:
        >>> memory_hint(RuntimeError("CUDA out of memory"))
        " -> Reduce data.patch.batch or data.patch.size, or the network's channels."
        >>> memory_hint(ValueError("no such class"))
        ''
    """
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in MEMORY):
        return " -> Reduce data.patch.batch or data.patch.size, or the network's channels."
    return ""


def train_fold(run: TrainingRun, fold: FoldName) -> tuple[FoldResult, dict[str, Any]]:
    """Fit one fold, then predict and score its held-out cases.

    Args:
        run: the run.
        fold: number of the fold, or ``all``, which has no held-out cases.

    Returns:
        The result, and the scores by model and case (of several ranks, those of the first).

    Raises:
        TrainingError: where no epoch had a finite value of the monitored metric, and the weights of
            the best one were to be kept.
    """
    began, folder, context = time.monotonic(), run.folder.fold(fold), run.context
    with Progress(f"Fold {fold}") as bar:
        job = make_job(run, fold, bar)
        state = loop.fit(job)
    if fold == ALL:
        result = _unscored(run, state)
        return dataclasses.replace(result, seconds=state.spent + time.monotonic() - began), {}
    if state.best_score is None:
        _without_best(run.config, fold)
    cases = [run.cached[i] for i in run.split(fold).val]
    scores = _score_held_out(run, fold, distributed.rank_share(cases, context))
    context.barrier("predicting the held-out cases")
    if not context.is_main:
        context.barrier("writing the fold's answers")
        return FoldResult(fold=fold, status="completed", best_epoch=state.best_epoch), {}
    # Predictions of the other ranks' cases are read from the disk.
    scores = scores if context.is_single else _score_held_out(run, fold, cases)
    means = {kind: mean(found.values()) for kind, found in scores.items()}
    chosen = held_out.choose(means)
    _write_predictions(run, cases, folder, chosen)
    context.barrier("writing the fold's answers")
    result = FoldResult(
        fold=fold,
        status="completed",
        best_epoch=state.best_epoch,
        score=state.best_score,
        metrics=means,
        checkpoint=folder.model_files()[chosen].name,
        chosen=chosen,
        epochs=state.epoch,
        seconds=state.spent + time.monotonic() - began,
    )
    return result, scores


def _unscored(run: TrainingRun, state: TrainingState) -> FoldResult:
    """Result of fold ``all``; its averaged weights represent it, where there are any."""
    found = run.folder.fold(ALL).model_files()
    chosen = "swa" if "swa" in found else kept_weights(run.config, ALL)
    checkpoint = found[chosen].name if run.context.is_main else ""
    return FoldResult(
        fold=ALL, status="completed", checkpoint=checkpoint, chosen=chosen, epochs=state.epoch
    )


def _without_best(config: Config, fold: FoldName) -> None:
    """Raise TrainingError where no epoch is the best and its weights were to be kept; else warn."""
    text = f"{config.train.stop.monitor} was never finite, so no epoch could be the best."
    if kept_weights(config, fold) == "best":
        raise TrainingError(f"{text} See training_log.txt.")
    logger.warning(f"Fold {fold}: {text} The last weights are kept; see training_log.txt")


def make_job(run: TrainingRun, fold: FoldName, progress: Progress) -> FoldJob:
    """Build network, losses and loaders of one fold.

    Initial weights depend on (seed, fold) only, and on the file of ``train.init_from``.

    Args:
        run: the run.
        fold: number of the fold, or ``all``; its folder is created.
        progress: shows the steps of all epochs.

    Returns:
        What :func:`pipeline.training.loop.fit` trains.

    Raises:
        CheckpointError: where weights of ``train.init_from`` do not match and that is not allowed.
    """
    config, split, context = run.config, run.split(fold), run.context
    number = seed_number(fold)
    torch.manual_seed(seed_of(config.seed, number))
    network = networks.build(config.network, *run.channels, config.data.dims)
    logger.info(f"Fold {fold}: {len(split.train)} train, {len(split.val)} val")
    logger.info(f"Model parameters: {networks.parameters(network):,}")
    if config.train.init_from is not None:
        logger.info(initial.load(network, config.train.init_from))
    if config.train.freeze:
        logger.info(freezing.freeze(network, config.train.freeze))
    for line in _about_samples(config, context.size):
        logger.info(line)
    folder = run.folder.fold(fold).path
    folder.mkdir(parents=True, exist_ok=True)
    ranks, reads = (context.rank, context.size), losses.reads(config.losses)
    return FoldJob(
        config=config,
        fold=fold,
        folder=folder,
        device=run.device,
        network=network,
        channels=run.channels,
        losses=_losses(run, network),
        train_loader=Loader(
            [run.cached[i] for i in split.train],
            config,
            number,
            training=True,
            ranks=ranks,
            reads=reads,
        ),
        val_loader=Loader(
            [run.cached[i] for i in split.val],
            config,
            number,
            training=False,
            ranks=ranks,
            reads=reads,
        )
        if split.val
        else None,
        raise_if_stopped=functools.partial(_raise_if_stopped, context),
        progress=progress,
        context=context,
        version=run.version,
        spacings=run.scoring.in_model_space(run.cached.values()),
        trained_on=run.trained_on,
    )


def _about_samples(config: Config, ranks: int) -> Iterator[str]:
    """What the log says of forced foreground, steps and averaged weights, where they are on."""
    patch, average = config.data.patch, config.train.average
    parts = []
    if patch.oversample is not None:
        wide = patch.batch * ranks
        forced = sum(is_forced(n, wide, patch.oversample) for n in range(wide))
        parts.append(f"{forced} of {wide} in a batch centred on foreground (data.patch.oversample)")
    if patch.steps is not None:
        parts.append(f"{patch.steps} batches an epoch, cases drawn at random (data.patch.steps)")
    if parts:
        yield f"Samples: {', '.join(parts)}"
    if average is not None:
        when = f"from epoch {average.start + 1} on, after every {average.by}"
        rate = (
            "the learning rate follows the schedule"
            if average.lr is None
            else f"the learning rate is {average.lr:g} from then on, not the schedule's"
            " (train.average.lr; null: the schedule's)"
        )
        yield f"Averaged weights: {when}; {rate}"


def _losses(run: TrainingRun, network: HeadedNet) -> losses.WeightedSum:
    """The config's terms; from version 2 on also those of deep-supervision heads not in it."""
    data, written, weights = run.config.data, run.config.losses, network.deep
    terms, main = written, 1.0
    if run.version >= 2:
        terms = losses.with_deep(written, network.heads, weights)
        main = losses.main_factor(written, weights)
    if deep := dict.fromkeys(term.head for term in terms[len(written) :]):
        factors = {h: weights[h].weight if h in weights else 0.5 ** int(h[4:]) for h in deep}
        heads = ", ".join(f"{head} ({factor:.4g} times)" for head, factor in factors.items())
        count = "count again" if main == 1 else f"count {main:.4g} times in training, and again"
        advice = "name these heads in losses to weigh them yourself"
        logger.info(f"Deep supervision: the losses of head main {count} for {heads}; {advice}")
    return losses.WeightedSum(
        terms, run.config.kinds, data.ignore_label, data.unions, weights, main
    )


def _raise_if_stopped(context: DistributedContext) -> None:
    """Stop all ranks at the same point when a signal has come to any of them."""
    if context.any_rank(stop.signal is not None)[0] and stop.signal is None:
        stop.signal = signal.SIGTERM  # another rank's
    stop.raise_if_stopped()


def _score_held_out(
    run: TrainingRun, fold: FoldName, cases: Sequence[CachedCase]
) -> dict[str, Any]:
    """Scores of held-out cases by model and case, predicted where that is not done yet."""
    folder, scores = run.folder.fold(fold), {}
    for kind, path in folder.model_files().items():
        job = held_out.FoldEvaluation(
            cases=cases,
            folder=folder.work / kind,
            device=run.device,
            progress=_case_progress(f"Fold {fold}, {kind} weights"),
            scoring=run.scoring,
        )
        scores[kind] = held_out.evaluate_fold(path, job)
    return scores


def _case_progress(what: str) -> Callable[[float, int], None]:
    """Show progress over held-out cases; stop between two of them on request."""
    bar, began = Progress(what), time.monotonic()

    def advance(done: float, total: int) -> None:
        if done < total and done == int(done):  # a case that has begun is finished and kept
            stop.raise_if_stopped()
        left = (time.monotonic() - began) / done * (total - done) if done else 0.0
        more = f", about {clock(left)} left" if left >= 0.5 else ""
        bar(done, total, f"held-out case {min(int(done) + 1, total)}/{total}{more}")
        if done >= total:
            bar.close()

    return advance


def _write_predictions(
    run: TrainingRun, cases: Sequence[CachedCase], folder: FoldFolder, chosen: str
) -> None:
    """Write the chosen model's predictions to ``oof/``, and remove the working files.

    Its soft predictions are moved to ``oof/soft/``. Interrupted anywhere, the next run finds either
    the working files or nothing, and does the same again.
    """
    work: Path = folder.work / chosen
    for cached in cases:
        kept = soft.load(work, cached.case.id, channels=cached.image.shape[0])
        whole = {name: np.asarray(head, np.float32) for name, head in kept.heads.items()}
        kept = dataclasses.replace(kept, heads=whole, meta=held_out.meta_of(cached, run.config))
        suffix = TASKS[run.config.rules].suffix(files.format_suffix(cached.case.image[0]))
        files.write(
            folder.answers / f"{cached.case.id}{suffix}",
            held_out.answer_of(run.config, kept),
            kept.geometry,
        )
    shutil.rmtree(folder.soft, ignore_errors=True)
    work.rename(folder.soft)
    shutil.rmtree(folder.work)
