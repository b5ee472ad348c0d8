"""Train the folds of a system: check everything, split once, train each fold to its end, score it on its held-out cases.

    python -m pipeline.train --config configs/surface.yaml --data-dir DIR --fold -1

Running the same command again continues where it stopped; a finished fold is not trained again. Several such commands may work on
one run at the same time, on one host or many, each on its own folds: a fold belongs to the process that trains it, and the run
folder to one process at a time while it is prepared and summed up.

Under torchrun the ranks train one fold together; the first of them prepares, writes and speaks:

    torchrun --standalone --nproc-per-node 4 -m pipeline.train --config configs/surface.yaml --data-dir DIR --fold 0
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import checks, cli
from pipeline.checks import LOCK, check_data, check_folds, check_names, runs
from pipeline.checks.runs import read_result
from pipeline.cli import say
from pipeline.config import Config, dump, load
from pipeline.records import DONE, FAILED, FoldResult, UserError

if TYPE_CHECKING:
    from pipeline.data.folds import Split
    from pipeline.data.store import Stored
    from pipeline.networks import HeadedNet
    from pipeline.records import Term
    from pipeline.scoring.held_out import Scoring
    from pipeline.training.distributed import Team
    from pipeline.training.loop import Job

RULE = "=" * 80
MOST_BASELINE_CASES = 32
DETAILS = ("voi_split", "voi_merge", "toposcore", "voi_score")
"""Numbers that stand in the files and the report but not in the table: the competition's score takes them in."""
MOST_COLUMNS = 6
"""Metrics that the table of a summary holds side by side; of more, those of classes stand in a table of their own."""
SILENT = 3.0
"""Seconds of waiting for another process before it is said."""


def parser() -> argparse.ArgumentParser:
    p = cli.parser("train", "Train the folds of a system by cross-validation.")
    p.add_argument("--config", type=Path, default=Path("configs/surface.yaml"), help="the system's YAML file")
    p.add_argument("--data-dir", type=Path, help="data set folder; default: data.root of the config")
    p.add_argument("--fold", type=int, default=-1, help="-1: all folds in order; N: only fold N")
    p.add_argument("--out", type=Path, help="run folder; default: runs/NAME")
    p.add_argument("--continue-on-error", action="store_true", help="go on with the next fold when one fails")
    p.add_argument("--dry-run", action="store_true", help="check config and data, print every fault, start nothing")
    p.add_argument("--fresh", action="store_true", help="start over; an existing run folder is renamed, not deleted")
    p.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override config values, e.g. train.epochs=10"
    )
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return p


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a training command works on, after every check has passed."""

    config: Config
    folder: Path
    device: str
    stored: Mapping[str, Stored]
    splits: Sequence[Split]
    team: Team
    version: int
    """Metrics version by which the run is scored."""
    scoring: Scoring
    trained_on: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the training data looked like, for the header of model files."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), train, argv)


def train(arguments: argparse.Namespace) -> int:
    """The whole command; returns its exit code."""
    request = checks.Request(
        path=arguments.config,
        overrides=arguments.set,
        data_dir=arguments.data_dir,
        out=arguments.out,
        fold=arguments.fold,
        device=arguments.device,
        fresh=arguments.fresh,
    )
    if arguments.dry_run:
        return checks.dry_run(request)
    config = request.on_data(load(arguments.config, arguments.set))
    start = request.start(config)
    checks.refuse(config, start, arguments.config)
    _refuse_taken(start)
    with _together(config, start.device) as team:
        run, channels = team.leader_first(lambda: _prepared(config, start, team), "preparing the run")
        log = cli.kept_log(start.folder, "train" if arguments.fold == -1 else f"train_fold_{arguments.fold}")
        with log if team.leads else contextlib.nullcontext():
            return train_folds(run, start.folds, channels, arguments.continue_on_error)


@contextlib.contextmanager
def _together(config: Config, device: str) -> Iterator[Team]:
    """The team of this process. One that has lost a rank ends here, at once: its threads may wait for that rank for ever."""
    from pipeline.training import distributed

    team = distributed.join(cli.device(device), config.train.timeout)
    if not team.leads:
        cli.mute()
    try:
        yield team
    except distributed.TeamError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(FAILED)
    distributed.leave(team)


def _prepared(config: Config, start: checks.Start, team: Team) -> tuple[Run, tuple[int, int]]:
    """The run, laid out by the first rank and found by the others, and its channels."""
    folder = start.folder
    if not team.leads:
        data = check_data(config, folder, write=False, fresh=start.fresh)
        return open_run(config, folder, data, team), check_names(config, data.facts, start)
    with alone(folder):
        data = check_data(config, folder, write=True, fresh=start.fresh)
        channels = check_names(config, data.facts, start)
        check_folds(config, data, start)
        with _started_over(folder) if start.fresh else contextlib.nullcontext():
            lay_out(config, folder, data)
            return open_run(config, folder, data, team), channels


def _refuse_taken(start: checks.Start) -> None:
    """Raise UserError at once, before any waiting and checking, where the one fold asked for is another process's."""
    from pipeline.files import lock

    path = start.folder / f"fold_{start.folds[0]}" / LOCK
    if len(start.folds) == 1 and path.is_file() and os.environ.get("RANK", "0") == "0":
        with lock.held(path, say):
            pass


def alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    """The run folder for this process alone, to prepare it or sum it up. Waits for others that do, and stops waiting on request."""
    from pipeline.files import lock

    told = False

    def wait(busy: lock.BusyError, seconds: float) -> None:
        nonlocal told
        cli.stop.check()
        if seconds > SILENT and not told:
            told = True
            say(f"Waiting: {folder} is being prepared or summed up by {busy.owner or 'another process'}")

    return lock.held(folder / LOCK, say, wait)


@contextlib.contextmanager
def _started_over(folder: Path) -> Iterator[None]:
    """Rename a folder that holds a run and own the new one in its place. Raises UserError where a process still trains one of its folds."""
    from pipeline.files import lock

    if not {p.name for p in folder.iterdir()} - {LOCK, "store"}:
        yield
        return
    with contextlib.ExitStack() as folds:
        for path in sorted(folder.glob("fold_*")):
            folds.enter_context(lock.held(path / LOCK, say))
        say(f"--fresh: the old run is kept as {_set_aside(folder)}")
    with alone(folder):
        yield


def lay_out(config: Config, folder: Path, data: checks.Examined) -> None:
    """Make or check the run folder. Raises UserError where it belongs to another config or data set, or the cases cannot be split."""
    from pipeline import files

    listing = runs.case_listing(data.cases, data.facts)
    changes = [*runs.changed_settings(folder, config), *runs.changed_cases(folder, listing)]
    if changes:
        raise UserError(runs.refusal(folder, changes))
    checks.planned_folds(config, folder, data, write=False)
    environment = {**cli.environment(), "metrics_version": runs.metrics_version(folder)}
    files.sweep(folder)
    files.write_json(folder / "environment.json", environment)  # before the config, which makes the folder a run
    files.write_text(folder / "config.yaml", dump(config))
    files.write_json(folder / "cases.json", listing)


def open_run(config: Config, folder: Path, data: checks.Examined, team: Team) -> Run:
    """Split, and build the store; what is there already is used as it is."""
    from pipeline.data import derived, world
    from pipeline.data import store as stores
    from pipeline.scoring import held_out

    split = checks.planned_folds(config, folder, data, write=True)
    place = stores.place(config.data, folder)
    stored = stores.build(data.cases, data.facts, config, place, progress=cli.counter("building the store"))
    stored = derived.attach(stored, config, place, progress=cli.counter("making maps and masks"))
    version = runs.metrics_version(folder)
    return Run(
        config=config,
        folder=folder,
        device=team.device,
        stored={s.case.id: s for s in stored},
        splits=split,
        team=team,
        version=version,
        scoring=held_out.scoring_of(config, version, stored),
        trained_on=world.trained_on(data.layout, data.facts, class_names(config)),
    )


def _set_aside(folder: Path) -> Path:
    n = 1
    while (aside := folder.with_name(f"{folder.name}.old-{n}")).exists():
        n += 1
    return folder.rename(aside)


def train_folds(run: Run, folds: Sequence[int], channels: tuple[int, int], continue_on_error: bool) -> int:
    """Train folds in order, keep a result of each, print and write the summary; folds that another process trains are left to it.

    Raises UserError where that is all of them. Where it is some, the code is 1 unless those, too, are complete by then: the run is not.
    """
    from pipeline.files import lock

    say(f"{RULE}\nSTARTING MULTI-FOLD TRAINING - {time.strftime('%Y-%m-%d %H:%M:%S')}\n{RULE}")
    failed, others = False, {}
    for fold in folds:
        try:
            result = _settle(run, fold, channels)
        except lock.BusyError as busy:
            if len(others) + 1 == len(folds):
                raise
            others[fold] = busy
            say(f"Fold {fold} is left out: {busy}")
            continue
        failed = failed or result.status == "failed"
        if failed and not continue_on_error:
            break
    if run.team.leads:
        with alone(run.folder):
            summary = summarise(run)
            say(table(summary))
            _report(run.folder)
    open_ = {fold: busy for fold, busy in others.items() if not _completed(run.folder / f"fold_{fold}")}
    for fold, busy in open_.items():
        say(f"Fold {fold} is not complete and was not trained here: {busy}")
    say(what_next(run))
    return FAILED if failed or open_ else DONE


def _settle(run: Run, fold: int, channels: tuple[int, int]) -> FoldResult:
    """The result of a fold, which is trained where it is not complete. Raises lock.BusyError where another process has it."""
    from pipeline.files import lock

    folder = run.folder / f"fold_{fold}"
    with contextlib.ExitStack() as stack:
        own = lock.held(folder / LOCK, say)
        run.team.leader_first(lambda: stack.enter_context(own) if run.team.leads else None, f"owning fold {fold}")
        result = run.team.leader_first(lambda: read_result(folder), f"reading fold {fold}")
        run.team.wait("agreeing on the fold")  # before anyone writes a new result
        if result is not None and result.status == "completed":
            say(f"Fold {fold} is already complete (best epoch {result.best_epoch + 1}); remove {folder} to train it again")
            return result
        say(f"{RULE}\nSTARTING FOLD {fold}\n{RULE}")
        return _guarded(run, fold, channels)


def _completed(folder: Path) -> bool:
    result = read_result(folder)
    return result is not None and result.status == "completed"


def _guarded(run: Run, fold: int, channels: tuple[int, int]) -> FoldResult:
    """Train one fold; what goes wrong becomes a result with status ``failed``."""
    from pipeline import files
    from pipeline.training.journal import clock
    from pipeline.training.loop import TrainingError

    began = time.monotonic()
    folder = run.folder / f"fold_{fold}"
    try:
        result, cases = train_fold(run, fold, channels)
    except Exception as error:
        if not run.team.alone and not isinstance(error, TrainingError):
            raise  # this rank alone has failed; its end is what the others hear
        say(f"Fold {fold} FAILED: {type(error).__name__}: {error}{_hint(error)}")
        if run.team.leads:
            files.write_text(folder / "error.txt", traceback.format_exc())
        result, cases = (
            FoldResult(fold=fold, status="failed", error=f"{type(error).__name__}: {error}", seconds=time.monotonic() - began),
            {},
        )
    else:
        say(f"Fold {fold} complete! best epoch {result.best_epoch + 1}, weights used: {result.chosen}, {clock(result.seconds)}")
    if not run.team.leads:
        return result
    files.write_json(folder / "result.json", {**asdict(result), "cases": cases})
    return result


def _hint(error: Exception) -> str:
    text = str(error).lower()  # torch's and, handed on by a loader's worker as another class, numpy's
    if isinstance(error, MemoryError) or any(words in text for words in ("out of memory", "can't allocate memory", "unable to allocate")):
        return " -> Reduce data.patch.batch or data.patch.size, or the network's channels."
    return ""


def train_fold(run: Run, fold: int, channels: tuple[int, int]) -> tuple[FoldResult, dict[str, Any]]:
    """Fit one fold, then score best and averaged weights on its whole held-out cases; returns the result and the scores by model and case."""
    from pipeline.scoring import held_out
    from pipeline.training import distributed, loop

    began = time.monotonic()
    with cli.Progress(f"Fold {fold}") as bar:
        job = make_job(run, fold, channels, bar)
        state = loop.fit(job)
    if state.best_score is None:
        raise loop.TrainingError(f"{run.config.train.stop.monitor} was never finite, so no epoch could be the best. See training_log.txt.")
    work = job.folder / "oof" / "work"
    held = [run.stored[i] for i in run.splits[fold].val]

    def score(cases: Sequence[Stored]) -> dict[str, Any]:
        jobs = {
            kind: held_out.HeldOut(
                cases=cases,
                folder=work / kind,
                device=run.device,
                progress=_scoring(f"Fold {fold}, {kind} weights"),
                scoring=run.scoring,
            )
            for kind in model_files(job.folder)
        }
        return {kind: held_out.held_out(path, jobs[kind]) for kind, path in model_files(job.folder).items()}

    scores = score(distributed.share(held, run.team))
    run.team.wait("predicting the held-out cases")
    if not run.team.leads:
        run.team.wait("writing the fold's answers")
        return FoldResult(fold=fold, status="completed", best_epoch=state.best_epoch), {}
    scores = scores if run.team.alone else score(held)  # those of the other ranks are there, and read
    means = {kind: held_out.mean(s.values()) for kind, s in scores.items()}
    chosen = held_out.choose(means)
    _keep_answers(run, held, work, chosen)
    run.team.wait("writing the fold's answers")
    result = FoldResult(
        fold=fold,
        status="completed",
        best_epoch=state.best_epoch,
        score=state.best_score,
        metrics=means,
        checkpoint=model_files(job.folder)[chosen].name,
        chosen=chosen,
        epochs=state.epoch,
        seconds=state.spent + time.monotonic() - began,
    )
    return result, scores


def model_files(fold: Path) -> dict[str, Path]:
    """The model files of a fold folder that exist: ``{"best": ..., "swa": ...}``."""
    paths = {"best": fold / "best_model.safetensors", "swa": fold / "swa_model.safetensors"}
    return {k: p for k, p in paths.items() if p.is_file()}


def make_job(run: Run, fold: int, channels: tuple[int, int], watch: cli.Progress) -> Job:
    """Network, losses and loaders of one fold. Initial weights depend on (seed, fold)."""
    import torch

    from pipeline import losses, networks
    from pipeline.data.loaders import Loader
    from pipeline.data.sampling import seed_of
    from pipeline.training import initial, loop

    config, split, team = run.config, run.splits[fold], run.team
    torch.manual_seed(seed_of(config.seed, fold))
    network = networks.build(config.network, *channels, config.data.dims)
    say(f"Fold {fold}: {len(split.train)} train, {len(split.val)} val")
    say(f"Model parameters: {networks.parameters(network):,}")
    if config.train.init_from is not None:
        say(initial.load(network, config.train.init_from))
    folder = run.folder / f"fold_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    return loop.Job(
        config=config,
        fold=fold,
        folder=folder,
        device=run.device,
        network=network,
        channels=channels,
        losses=losses.WeightedSum(_terms(run, network), config.kinds, config.data.ignore_label),
        train=Loader([run.stored[i] for i in split.train], config, fold, training=True, ranks=(team.rank, team.size)),
        val=Loader([run.stored[i] for i in split.val], config, fold, training=False, ranks=(team.rank, team.size)),
        say=say,
        check=functools.partial(_check, team),
        watch=watch,
        team=team,
        version=run.version,
        spacings=run.scoring.spacings,
        trained_on=run.trained_on,
    )


def _terms(run: Run, network: HeadedNet) -> Sequence[Term]:
    """Terms of the losses; a run of before version 2 has none for deep-supervision heads that its config does not name."""
    from pipeline import losses

    written = run.config.losses
    terms = losses.with_deep(written, network.heads) if run.version >= 2 else written
    if deep := sorted({term.head for term in terms[len(written) :]}):
        heads = ", ".join(f"{head} ({0.5 ** int(head[4:]):g} times)" for head in deep)
        say(f"Deep supervision: the losses of head main count again for {heads}; name these heads in losses to weigh them yourself")
    return terms


def _check(team: Team) -> None:
    """Stop all ranks at the same point when a signal has come to any of them."""
    if team.agree(cli.stop.signal is not None)[0] and cli.stop.signal is None:
        cli.stop.signal = signal.SIGTERM  # another rank's
    cli.stop.check()


def class_names(config: Config) -> dict[int, str]:
    """Names of the classes as the data set gives them; none for images."""
    from pipeline.data import cases as case_finder

    return case_finder.class_names(Path(config.data.root)) if config.task == "labels" else {}


def _scoring(what: str) -> Callable[[float, int], None]:
    """Progress over held-out cases while they are predicted and scored; stops that work on request, between two cases."""
    from pipeline.training.journal import clock

    bar, began = cli.Progress(what), time.monotonic()

    def advance(done: float, total: int) -> None:
        if done < total and done == int(done):  # a case that is begun is finished and kept
            cli.stop.check()
        left = (time.monotonic() - began) / done * (total - done) if done else 0.0
        more = f", about {clock(left)} left" if left >= 0.5 else ""
        bar(done, total, f"held-out case {min(int(done) + 1, total)}/{total}{more}")
        if done >= total:
            bar.close()

    return advance


def _keep_answers(run: Run, held: Sequence[Stored], work: Path, chosen: str) -> None:
    """Write the chosen model's answers to ``oof/``, rename its soft predictions to ``oof/soft/``; drop the working files.

    Interrupted anywhere, the next run finds either the working files or nothing and does the same again.
    """
    import shutil

    from pipeline import files
    from pipeline.inference import soft
    from pipeline.scoring import held_out
    from pipeline.tasks import answer_suffix

    out = work.parent
    for stored in held:
        prediction, _ = soft.load(work / chosen, stored.case.id)
        answer = held_out.answer_of(run.config, prediction.soft.astype("float32"), stored)
        suffix = answer_suffix(run.config.task, files.suffix(stored.case.image[0]))
        files.write(out / f"{stored.case.id}{suffix}", answer, prediction.geometry)
    shutil.rmtree(out / "soft", ignore_errors=True)
    (work / chosen).rename(out / "soft")
    shutil.rmtree(work)


def summarise(run: Run) -> dict[str, Any]:
    """Gather the folds' results into ``summary.json``: status, scores of every fold, and the mean over all held-out cases."""
    from pipeline import files
    from pipeline.checks import runs
    from pipeline.metrics import units
    from pipeline.scoring import held_out

    results, cases = [], {}
    for fold in range(run.config.data.folds.count):
        result = read_result(run.folder / f"fold_{fold}")
        if result is None:
            continue
        results.append(asdict(result))
        scores = runs.read_scores(run.folder / f"fold_{fold}").get(result.chosen, {})
        cases |= {i: {"fold": fold, "group": run.stored[i].case.group, "metrics": s} for i, s in scores.items()}
    rows = [{k: float("nan") if v is None else v for k, v in c["metrics"].items()} for c in cases.values()]
    summary = {
        "name": run.config.name,
        "task": run.config.task,
        "monitor": run.config.train.stop.monitor,
        "folds": results,
        "decision": _decision(run.config),
        "out_of_fold": held_out.mean(rows),
        "class_names": class_names(run.config),
        "cases": cases,
        "units": units(held_out.case_metrics(run.config), bool(run.scoring.spacings)),
    }
    whole = _pooled(run, results)
    if whole:
        summary["pooled"] = whole
    rows_to_beat = _baselines(run)
    if rows_to_beat:
        summary["baselines"] = rows_to_beat
    files.write_json(run.folder / "summary.json", summary)
    return summary


def _decision(config: Config) -> str:
    """How probabilities became the answers that are scored, in words."""
    from pipeline.postprocess import DECIDE

    if config.task != "labels":
        return ""
    step = next((s for s in config.postprocess if s.name in DECIDE), None)
    steps = "the task's default" if step is None else " ".join([step.name, *(f"{k}={v}" for k, v in step.options.items())])
    return f"answers by {steps}, fixed beforehand in the config; pipeline.tune chooses on other cases"


def _pooled(run: Run, results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics of all held-out pixels together, for binary images: volumes would have to be read a second time for it."""
    from pipeline import files
    from pipeline.inference import soft
    from pipeline.scoring import held_out

    if run.config.task != "labels" or run.config.data.dims != 2:
        return {}

    def cases() -> Iterator[Any]:
        for result in results:
            out = run.folder / f"fold_{result['fold']}" / "oof"
            for case_id in soft.ids(out / "soft") if result["status"] == "completed" else ():
                stored = run.stored[case_id]
                path = next(p for p in out.glob("*") if files.is_image(p) and files.case_id(p) == case_id)
                yield stored, files.read(path, 2, labels=True)[0][0], soft.load(out / "soft", case_id)[0].soft

    return held_out.pooled(run.config, cases(), run.version)


def _baselines(run: Run) -> dict[str, dict[str, float]]:
    """What any network has to beat, computed once: for binary labels an empty answer and the best global threshold, on at most 32 cases;
    for images the input itself, on all of them."""
    from pipeline import documents, files
    from pipeline.scoring import held_out

    path = run.folder / "baselines.json"
    labels = run.config.task == "labels"
    if (labels and run.config.data.classes != 2) or not cases_done(run):
        return {}
    if not path.is_file():
        say("Scoring what any network has to beat" + ("" if labels else ": the inputs themselves"))
        cases = list(run.stored.values())
        chosen = cases[:: -(-len(cases) // MOST_BASELINE_CASES)] if labels else cases
        share = "" if len(chosen) == len(cases) else f" ({len(chosen)} cases)"
        rows = held_out.baselines(run.config, chosen, scoring=run.scoring) if labels else held_out.baselines_image(run.config, chosen)
        files.write_json(path, {k + share: v for k, v in rows.items()})
    return files.read_document(path, documents.Baselines, "Remove it: it is made again")


def cases_done(run: Run) -> bool:
    """Every fold has a completed result."""
    return all(_completed(run.folder / f"fold_{n}") for n in range(run.config.data.folds.count))


def table(summary: Mapping[str, Any]) -> str:
    """Per-fold and out-of-fold scores as text; ``*`` marks the weights that speak for a fold.

    Where metrics were counted in several frames (a field of view), the first frame stands here and all of them in a second table; where
    metrics of classes would make it too wide, they stand in a table of their own.
    """
    from pipeline.metrics.frames import SUFFIXES
    from pipeline.metrics.names import display, from_json, of_class
    from pipeline.metrics.retouch import note
    from pipeline.training.journal import clock

    names = [n for n in summary["out_of_fold"] if n not in DETAILS and not n.endswith(SUFFIXES[1:])]
    classes = from_json(summary.get("class_names"))
    few = len(names) <= MOST_COLUMNS
    units = summary.get("units") or {}
    columns = {n: display(n, classes, units) for n in names if few or not of_class(n)}
    monitor = display(summary["monitor"], classes)
    wide = max(12, len(monitor) + 2)
    margin = 47 + wide
    lines = [
        RULE,
        "TRAINING SUMMARY",
        RULE,
        f"{'fold':<12}{'status':<11}{'weights':<9}{'epoch':>6}{'time':>9}{monitor:>{wide}}" + _head(columns),
    ]
    for fold in summary["folds"]:
        start = f"{fold['fold']:<12}{fold['status']:<11}"
        for kind, scores in fold["metrics"].items():
            mark = "*" if kind == fold["chosen"] else ""
            score = fold["score"] if kind == "best" else None
            middle = f"{kind + mark:<9}{fold['best_epoch'] + 1:>6}{clock(fold['seconds']):>9}{_number(score):>{wide}}"
            lines.append(start + middle + _row(scores, columns))
        if fold["error"]:
            lines.append(start + fold["error"])
    total = clock(sum(fold["seconds"] for fold in summary["folds"]))
    lines.append(f"{'out of fold':<12}{len(summary['cases']):>4} cases{total:>25}{'':>{wide}}" + _row(summary["out_of_fold"], columns))
    if "pooled" in summary:
        lines.append(f"{'out of fold, all pixels pooled':<{margin}}" + _row(summary["pooled"], columns))
    lines += [f"{name:<{margin}}" + _row(scores, columns) for name, scores in summary.get("baselines", {}).items()]
    decided = [summary["decision"]] if summary.get("decision") else []
    empty = note(c.get("metrics", {}) for c in summary["cases"].values())
    return "\n".join([*lines, *([] if few else _by_class(summary, names)), *empty, *_frames(summary), *decided, RULE])


def _by_class(summary: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Out-of-fold scores of each class, a line for each."""
    from pipeline.metrics.names import display, from_json, of_class

    classes = from_json(summary.get("class_names"))
    rows: dict[int, dict[str, float | None]] = {}
    for name in names:
        if found := of_class(name):
            rows.setdefault(found[1], {})[found[0]] = summary["out_of_fold"][name]
    units = summary.get("units") or {}
    columns = {metric: display(metric, {}, units) for scores in rows.values() for metric in scores}
    titles = {number: classes.get(number, f"class {number}") for number in sorted(rows)}
    wide = max([59, *(len(title) + 2 for title in titles.values())])
    return [
        "",
        f"{'out of fold, by class':<{wide}}" + _head(columns),
        *(f"{t:<{wide}}" + _row(rows[n], columns) for n, t in titles.items()),
    ]


def _frames(summary: Mapping[str, Any]) -> list[str]:
    """Out-of-fold scores and what they have to beat, a line for each frame that metrics were counted in."""
    from pipeline.metrics.frames import SUFFIXES
    from pipeline.metrics.names import display, from_json

    means = summary["out_of_fold"]
    found = [f for f in SUFFIXES if any(n.endswith(f) for n in means)]
    if not found:
        return []
    classes = from_json(summary.get("class_names"))
    units = summary.get("units") or {}
    columns = {n: display(n, classes, units) for n in (m.removesuffix(found[0]) for m in means if m.endswith(found[0]))}
    rows = {
        "out of fold, mean of images": means,
        "out of fold, all pixels pooled": summary.get("pooled", {}),
        **summary.get("baselines", {}),
    }
    lines = ["", f"{'':<47}{'frame':<12}" + _head(columns)]
    for name, scores in rows.items():
        lines += [f"{name:<47}{frame[1:]:<12}" + _row({n: scores.get(n + frame) for n in columns}, columns) for frame in found if scores]
    return lines


def _head(columns: Mapping[str, str]) -> str:
    return "".join(f"{title:>{_wide(title)}}" for title in columns.values())


def _row(scores: Mapping[str, float | None], columns: Mapping[str, str]) -> str:
    return "".join(f"{_number(scores.get(n)):>{_wide(title)}}" for n, title in columns.items())


def _wide(title: str) -> int:
    return max(17, len(title) + 2)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _report(folder: Path) -> None:
    """A report that fails must not fail the training that it reports."""
    try:
        from pipeline import files
        from pipeline import report as reports

        files.write_text(folder / "report.html", reports.build(folder))
        say(f"Report: {folder / 'report.html'}")
    except Exception as error:
        say(f"warning: no report.html ({type(error).__name__}: {error}); try python -m pipeline.report {folder}")


def what_next(run: Run) -> str:
    """What a run holds by now and the command that goes on from here, ready to be typed."""
    import shlex

    count = run.config.data.folds.count
    done = [n for n in range(count) if _completed(run.folder / f"fold_{n}")]
    missing = [n for n in range(count) if n not in done]
    lines = [f"{len(done)} of {count} folds are complete in {run.folder}."]
    for fold in missing:
        failed = (run.folder / f"fold_{fold}" / "error.txt").is_file()
        why = f"failed, see {run.folder / f'fold_{fold}' / 'error.txt'}" if failed else "is not trained"
        lines.append(f"Fold {fold} {why}; the same command with --fold {fold} trains it.")
    if done:
        words = ["--checkpoint", str(run.folder if not missing else run.folder / f"fold_{done[0]}"), "--input", _test_images(run.config)]
        words += ["--output", str(Path("predictions") / run.config.name)]
        lines.append(f"To predict: python -m pipeline.predict {shlex.join(words)}")
    return "\n".join(lines)


def _test_images(config: Config) -> str:
    """The folder of the data set's test images, a word for the user's own where it has none."""
    root = Path(config.data.root)
    folders = [root / name for name in ("test_images", "imagesTs", config.data.test)]
    return next((str(f) for f in folders if f.is_dir() and any(f.iterdir())), "IMAGES")


if __name__ == "__main__":
    raise SystemExit(main())
