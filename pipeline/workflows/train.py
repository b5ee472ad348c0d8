"""Training: check everything, split once, train and score each fold, summarise.

A fold is trained to its end and scored on its held-out cases before the next one begins.

Data flow: checks -> data (cases, cache, folds) -> training.fold (fit, held-out scores) ->
training.summary -> reporting.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from pipeline import losses, plugins
from pipeline.config import Config, find_config
from pipeline.data import cache, derived, properties, world
from pipeline.data.described import channel_names
from pipeline.files import lock
from pipeline.inference import devices
from pipeline.invocation import called
from pipeline.planning.decide import DatasetPlan
from pipeline.planning.kept import as_kept, read_kept
from pipeline.progress import bars_shown, log_to_file, progress_callback, silenced
from pipeline.records import ALL, FAILED, FoldName, FoldResult, UserError
from pipeline.reporting import tables
from pipeline.runs import KeptPlan, RunFolder, fold_names, load_config
from pipeline.scoring.cached import scoring_of
from pipeline.training import distributed
from pipeline.training.distributed import DistributedContext, DistributedError
from pipeline.training.fold import TrainingRun, train_guarded
from pipeline.training.summary import class_names, summarise
from pipeline.workflows import checks
from pipeline.workflows.checks import (
    DataError,
    Examined,
    Request,
    Start,
    check_data,
    check_folds,
    check_names,
)
from pipeline.workflows.locking import run_lock
from pipeline.workflows.report import write_report

logger = logging.getLogger(__name__)

RULE = tables.RULE

MOST_FAULTS = 20
"""Number of faults in the data that an exception lists."""

_training = threading.Lock()
"""Held while a fold is trained: random state, logging and signals belong to the whole process."""


class FoldError(RuntimeError):
    """Folds of a run are not complete: they failed, or another process trains them.

    The run holds what is done.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training command leaves.

    Args:
        run: the run folder.
        failed: folds that failed, with the reason.
        busy: folds that another process trains and has not finished.
    """

    run: RunFolder
    failed: dict[FoldName, str] = field(default_factory=dict)
    busy: dict[FoldName, str] = field(default_factory=dict)


def train_folds(
    config: Config | DatasetPlan | Path | str,
    data: Path | str | None = None,
    *,
    folds: Sequence[int] | int | Literal["all"] | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    fresh: bool = False,
    continue_on_error: bool = False,
    progress: bool = False,
) -> RunFolder:
    """Train folds of a config, and score each on the cases that it was not trained on.

    Called again with the same arguments it continues where it stopped: a finished fold is not
    trained again.

    Args:
        config: a config, the path of its YAML file, the name of one that comes with the package
            (``"surface"``), or a plan (:func:`~pipeline.plan_dataset`), which the run keeps with
            its fingerprint.
        data: data set folder; None: ``data.root`` of the config.
        folds: which folds, from 0; None: all of them; ``"all"``: instead one model on every case,
            which nothing is held out from and which is not scored.
        out: run folder; None: ``runs/NAME``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        fresh: start over; an existing run is renamed, not deleted.
        continue_on_error: go on with the next fold when one fails.
        progress: show a bar on a terminal.

    Returns:
        The run: it holds models, out-of-fold predictions and scores.

    Raises:
        UserError: for a config, a data set or a folder that cannot be used, before anything
            is trained.
        FoldError: where a fold failed, after the others were done or given up.

    Example:
        >>> train_folds("nowhere.yaml")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        pipeline.config.errors.ConfigError: nowhere.yaml: no such config file, ...
    """
    given, source, plan = _given(config)
    request = Request(
        source=source,
        plan=plan,
        data_dir=None if data is None else Path(data),
        out=None if out is None else Path(out),
        folds=fold_names(folds),
        device=str(device),
        fresh=fresh,
    )
    if not _training.acquire(blocking=False):
        raise UserError(
            "another thread of this process is training. Train one after the other, or in processes"
            " of their own."
        )
    try:  # under the caller's own random state, to which it comes back
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(range(torch.cuda.device_count())),
        ):
            return _complete(given, request, continue_on_error, progress)
    finally:
        _training.release()


def _given(config: Config | DatasetPlan | Path | str) -> tuple[Config, str, KeptPlan | None]:
    """The config, what messages call it, and the plan that it is."""
    if isinstance(config, Config):
        return config, "config", None
    if isinstance(config, DatasetPlan):
        return config.config, "the plan", as_kept(config)
    path = find_config(config)
    return load_config(path), str(path), read_kept(path)


def _complete(
    config: Config, request: Request, continue_on_error: bool, progress: bool
) -> RunFolder:
    """Train; raise as errors the faults and failures that a command would print."""
    try:
        with bars_shown(progress):
            trained = train(config, request, continue_on_error)
    except DataError as error:  # a command has printed them; here they may have gone nowhere
        lines = [*error.faults[:MOST_FAULTS], *(["..."] if len(error.faults) > MOST_FAULTS else [])]
        found = "1 fault" if len(error.faults) == 1 else f"{len(error.faults)} faults"
        raise UserError(
            "\n  ".join([f"{found} in the data; nothing was started.", *lines])
        ) from None
    faults = [
        f"fold {n} failed: {text}. See {trained.run.fold(n).error_file}"
        for n, text in trained.failed.items()
    ]
    faults += [f"fold {n} is not complete: {text}" for n, text in trained.busy.items()]
    if faults:
        raise FoldError("\n  ".join([f"{trained.run.path} is not complete:", *faults]))
    return trained.run


def train(config: Config, request: Request, continue_on_error: bool = False) -> Trained:
    """Check everything, then train the folds that were asked for.

    Args:
        config: the resolved config.
        request: folds, device and folders of the command line.
        continue_on_error: go on with the next fold when one fails.

    Returns:
        The run, with the folds that failed or are trained by another process.

    Raises:
        UserError: before anything is trained.
    """
    config = request.on_data(config)
    start = request.start(config)
    if start.continues:
        start.run.require_plugins()
    checks.refuse(config, start, request.source)
    _require_unlocked(start)
    with _process_group(config, start.device) as context:
        run = context.main_first(lambda: _prepare(config, start, context), "preparing the run")
        name = "train" if request.folds is None else f"train_fold_{'_'.join(map(str, start.folds))}"
        with log_to_file(start.folder, name) if context.is_main else contextlib.nullcontext():
            return _train_all(run, start.folds, continue_on_error)


# --- preparing the run ----------------------------------------------------------------------------


@contextlib.contextmanager
def _process_group(config: Config, device: str) -> Iterator[DistributedContext]:
    """Join the process group of this process.

    A process that has lost a rank exits at once: its threads may wait for that rank for ever.
    """
    context = distributed.init_distributed(devices.resolve(device), config.train.timeout)
    with silenced(not context.is_main):
        try:
            yield context
        except DistributedError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
            sys.stdout.flush()
            os._exit(FAILED)
    distributed.destroy(context)


def _prepare(config: Config, start: Start, context: DistributedContext) -> TrainingRun:
    """Create the run on the first rank; the other ranks open it."""
    folder = start.folder
    if not context.is_main:
        data = check_data(config, folder, write=False, fresh=start.fresh)
        channels = check_names(config, data.properties, start)
        config, data = checks.with_numbers(config, data, start)
        return _open_run(config, start.run, data, context, channels)
    checks.require_images(config)  # before a folder is made for the lock
    with run_lock(start.run):
        data = check_data(config, folder, write=True, fresh=start.fresh)
        channels = check_names(config, data.properties, start)
        config, data = checks.with_numbers(config, data, start)
        check_folds(config, data, start)
        with _replacing(start.run) if start.fresh else contextlib.nullcontext():
            _create_run(config, start.run, data)
            if start.plan is not None:
                start.run.keep_plan(start.plan)
            return _open_run(config, start.run, data, context, channels)


def _require_unlocked(start: Start) -> None:
    """Raise UserError where the only fold asked for is locked by another process.

    This comes before any waiting and checking.
    """
    path = start.run.fold(start.folds[0]).lock
    if len(start.folds) == 1 and path.is_file() and os.environ.get("RANK", "0") == "0":
        with lock.held(path):
            pass


@contextlib.contextmanager
def _replacing(run: RunFolder) -> Iterator[None]:
    """Rename a folder that holds a run and lock the new one in its place.

    Raises UserError where a process still trains one of its folds.
    """
    if not {p.name for p in run.path.iterdir()} - {lock.NAME, run.store.name}:
        yield
        return
    with contextlib.ExitStack() as folds:
        for path in run.fold_paths():
            folds.enter_context(lock.held(path / lock.NAME))
        logger.info(f"--fresh: the old run is kept as {run.set_aside()}")
    with run_lock(run):
        yield


def _create_run(config: Config, run: RunFolder, data: Examined) -> None:
    """Create or check the run folder.

    Raises UserError where it belongs to another config or data set, or the cases cannot be split.
    """
    listing = properties.case_listing(data.cases, data.properties)
    changes = [*run.changed_settings(config), *run.changed_cases(listing)]
    if changes:
        raise UserError(run.refusal(changes))
    checks.planned_folds(config, run.path, data, write=False)
    run.begin(config, listing)


def _open_run(
    config: Config,
    run: RunFolder,
    data: Examined,
    context: DistributedContext,
    channels: tuple[int, int],
) -> TrainingRun:
    """Split the cases and build the cache; what exists already is used as it is."""
    run.require_plugins()  # of every rank
    split = checks.planned_folds(config, run.path, data, write=True)
    cache_path = cache.cache_folder(config.data, run.path)
    cached = cache.build(
        data.cases,
        data.properties,
        config,
        cache_path,
        progress=progress_callback("building the cache"),
    )
    cached = derived.attach(
        cached,
        config,
        cache_path,
        losses.reads(config.losses),
        progress_callback("making maps and masks"),
    )
    version = run.metrics_version()
    return TrainingRun(
        config=config,
        folder=run,
        device=context.device,
        channels=channels,
        cached={s.case.id: s for s in cached},
        splits=split,
        context=context,
        version=version,
        scoring=scoring_of(config, version, cached),
        trained_on=world.trained_on(
            data.layout,
            data.properties,
            class_names(config),
            config.data,
            _channel_names(config, channels[0]),
        ),
    )


def _channel_names(config: Config, channels: int) -> tuple[str, ...]:
    """Names of the image channels, where there is one for each."""
    names = channel_names(config.data)
    return names if len(names) == channels else ()


# --- fold after fold ------------------------------------------------------------------------------


def _train_all(run: TrainingRun, folds: Sequence[FoldName], continue_on_error: bool) -> Trained:
    """Train folds in order, keep a result of each, and write the summary.

    Folds that another process trains are left to it. Raises UserError where that is all of them.
    Where it is some, they count as busy unless they, too, are complete by then.
    """
    logger.info(
        f"{RULE}\nSTARTING MULTI-FOLD TRAINING - {time.strftime('%Y-%m-%d %H:%M:%S')}\n{RULE}"
    )
    failed: dict[FoldName, str] = {}
    others: dict[FoldName, lock.BusyError] = {}
    for fold in folds:
        try:
            result = _complete_fold(run, fold)
        except lock.BusyError as busy:
            if len(others) + 1 == len(folds):
                raise
            others[fold] = busy
            logger.info(f"Fold {fold} is left out: {busy}")
            continue
        if result.status == "failed":
            failed[fold] = result.error
            if not continue_on_error:
                break
    if run.context.is_main:
        with run_lock(run.folder):
            logger.info(tables.of_training(summarise(run)))
            write_run_report(run.folder)
    unfinished: dict[FoldName, str] = {
        fold: str(error) for fold, error in others.items() if not run.folder.fold(fold).completed
    }
    for fold, text in unfinished.items():
        logger.info(f"Fold {fold} is not complete and was not trained here: {text}")
    logger.info(what_next(run.config, run.folder))
    return Trained(run=run.folder, failed=failed, busy=unfinished)


def _complete_fold(run: TrainingRun, fold: FoldName) -> FoldResult:
    """Return the result of a fold, training it where it is not complete.

    Raises lock.BusyError where another process trains it.
    """
    folder, context = run.folder.fold(fold), run.context
    with contextlib.ExitStack() as stack:
        own = lock.held(folder.lock)
        context.main_first(
            lambda: stack.enter_context(own) if context.is_main else None, f"owning fold {fold}"
        )
        result = context.main_first(folder.result, f"reading fold {fold}")
        context.barrier("agreeing on the fold")  # before anyone writes a new result
        if result is not None and result.status == "completed":
            best = f" (best epoch {result.best_epoch + 1})" if result.best_epoch >= 0 else ""
            text = f"Fold {fold} is already complete{best}"
            logger.info(f"{text}; remove {folder.path} to train it again")
            return result
        logger.info(f"{RULE}\nSTARTING FOLD {fold}\n{RULE}")
        return train_guarded(run, fold)


def write_run_report(run: RunFolder) -> None:
    """Write the report of a run; one that fails is a warning and does not fail the training.

    Args:
        run: the folder of the run.
    """
    try:
        logger.info(f"Report: {write_report(run)}")
    except Exception as error:
        logger.warning(
            f"no report.html ({type(error).__name__}: {error}); try {called('report')} {run.path}"
        )


def what_next(config: Config, run: RunFolder) -> str:
    """What a run holds by now, and the command to run next.

    Args:
        config: the resolved config.
        run: the run folder.

    Returns:
        Lines of text; commands are quoted for a shell.
    """
    count = config.data.folds.count
    done = [n for n in range(count) if run.fold(n).completed]
    missing = [n for n in range(count) if n not in done]
    lines = [f"{len(done)} of {count} folds are complete in {run.path}."]
    untrained = [n for n in missing if not run.fold(n).error_file.is_file()]
    for fold in sorted(set(missing) - set(untrained)):
        lines.append(
            f"Fold {fold} failed, see {run.fold(fold).error_file}; the same command with --fold"
            f" {fold} trains it."
        )
    if len(untrained) == 1:
        lines.append(
            f"Fold {untrained[0]} is not trained; the same command with --fold {untrained[0]}"
            " trains it."
        )
    elif untrained:
        lines.append(
            f"Folds {', '.join(map(str, untrained))} are not trained; the same command with --fold"
            " -1 trains them."
        )
    every = run.fold(ALL)
    if every.completed:
        lines.append("The model of all cases is complete: --folds all predicts with it.")
    elif every.error_file.is_file():
        lines.append(
            f"Fold all failed, see {every.error_file}; the same command with --fold all trains it."
        )
    if done or every.completed:
        alone = bool(missing) and every.completed
        models = run.fold(done[0]).path if missing and not alone else run.path
        words = ["--checkpoint", str(models), *(["--folds", ALL] if alone else [])]
        words += ["--input", _test_images(config)]
        words += ["--output", str(Path("predictions") / run.path.name), *plugins.words(config)]
        lines.append(f"To predict: {called('predict')} {shlex.join(words)}")
    return "\n".join(lines)


def _test_images(config: Config) -> str:
    """The folder of the data set's test images; ``IMAGES``, to be replaced, where it has none."""
    root = Path(config.data.root)
    folders = [root / name for name in ("test_images", "imagesTs", config.data.test)]
    return next((str(f) for f in folders if f.is_dir() and any(f.iterdir())), "IMAGES")
