"""Choose post-processing on out-of-fold predictions, and estimate its gain by nested validation.

Data flow: runs and their out-of-fold predictions -> tuning.search (candidates) -> tuning.trials
(scores by case) -> paired gains -> RUN/tuning/result.json and an ensemble's YAML.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, plugins, postprocess
from pipeline.config import Config, ConfigError, dump_yaml, nearest, read_yaml, structure
from pipeline.data import cases as case_finder
from pipeline.files import lock
from pipeline.inference import soft
from pipeline.metrics import METRICS, better, units
from pipeline.progress import progress_callback
from pipeline.records import NamedOptions, UserError, printable
from pipeline.reporting import tables
from pipeline.runs import RunFolder
from pipeline.scoring import worlds
from pipeline.scoring.bootstrap import UNIT_DRAWS
from pipeline.scoring.patches import classes_of
from pipeline.tasks import TASKS
from pipeline.training.summary import class_names, named_regions
from pipeline.tuning import filters, search
from pipeline.tuning.nnunet_rule import nnunet_rule
from pipeline.tuning.search import Candidate, Gain, SearchPlan
from pipeline.tuning.trials import CaseFiles, Measure, Trials, workers_for
from pipeline.tuning.usual import usual_sizes

logger = logging.getLogger(__name__)

ENOUGH_GROUPS = 5
"""Number of groups from which on the bootstrap resamples groups instead of cases."""
OWN, NESTED, OPTIMISTIC = tables.OWN, "tuned (nested)", "tuned on all (optimistic)"
NNUNET = "nnU-Net's rule (nested)"
STEPS = {2: 8, 3: 4, 4: 3}
"""Into how many steps the weights of so many members are divided."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a ``--space`` file may hold."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic
    stages: tuple[tuple[tuple[NamedOptions, ...], ...], ...]
    """Alternatives, each a list of steps, by stage.

    A candidate takes one alternative from each stage, in this order; the deciding step belongs to
    the first.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A run with out-of-fold predictions.

    Args:
        run: the run folder.
        config: its config.
        folds: its complete folds.
        fold_of: the fold that predicted a case, by case id.
        listing: the run's cases.json.
        version: metrics version of the run.
    """

    run: RunFolder
    config: Config
    folds: tuple[int, ...]
    fold_of: Mapping[str, int]
    listing: Mapping[str, Any]
    version: int

    @property
    def folder(self) -> Path:
        """Path of the run folder."""
        return self.run.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is compared, on which cases, by which metric.

    Args:
        sources: the runs, which are the members of the ensemble.
        cases: files of the cases, sorted by id.
        groups: group by case id, None for a case without one.
        metric: what candidates are ranked by.
        sign: 1 where a higher value of the metric is better, -1 where a lower one is.
    """

    sources: tuple[Source, ...]
    cases: tuple[CaseFiles, ...]
    groups: Mapping[str, str | None]
    metric: NamedOptions
    sign: int
    shape: tuple[int, ...]
    """Channels and space axes ``(K, *S)`` of the largest prediction."""

    @property
    def config(self) -> Config:
        """Config of the first run."""
        return self.sources[0].config

    @property
    def folder(self) -> Path:
        """Where the journal and the result are kept: with the first run."""
        return self.sources[0].run.tuning

    @property
    def version(self) -> int:
        """Metrics version: that of the oldest run."""
        return min(s.version for s in self.sources)

    @property
    def units(self) -> dict[str, str]:
        """Units of the metric's values that are lengths or volumes."""
        known = all(c.spacing is not None for c in self.cases)
        return units([self.metric], known, self.config.data.dims)

    @property
    def name(self) -> str:
        """Names of the run folders, joined by ``+``."""
        return "+".join(Path(os.path.realpath(s.folder)).name for s in self.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table: the scores of each case, and the candidates that gave them.

    Args:
        name: title of the line.
        candidates: by the part that was held out; under ``""`` the one for all cases.
        cases: scores by case id and metric.
    """

    name: str
    candidates: Mapping[str, Candidate]
    cases: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The ensemble that was written, and what it gains.

    Args:
        spec: the ensemble's YAML.
        chosen: the candidate that was chosen on all cases.
        gains: paired gains by row and reference.
        plugins: the options of a command that uses the ensemble, ``--plugin FILE``, where it
            needs any.
    """

    spec: Path
    chosen: Candidate
    gains: Mapping[str, Mapping[str, Gain]]
    plugins: Sequence[str] = ()


def tune_postprocessing(
    runs: Sequence[Path | str | RunFolder] | Path | str | RunFolder,
    *,
    metric: str | None = None,
    space: Path | str | None = None,
    by: str | None = None,
    out: Path | str | None = None,
    force: bool = False,
    workers: int | None = 1,
    data_dir: Path | str | None = None,
) -> Tuned:
    """Choose post-processing, and of several runs their weights and fusion.

    Args:
        runs: a run folder with out-of-fold predictions, or several of the same cases.
        metric: what is to be improved; None: competition for binary volumes, else the
            config's first.
        space: YAML file with the search space; None: built in.
        by: what is held out from each choice, ``group`` or ``fold``; None: group where there are
            two or more.
        out: ensemble to write; None: ``ensembles/<run>_tuned.yaml``.
        force: replace ``out`` although it was written or changed by something else.
        workers: processes. More than 1 needs ``if __name__ == "__main__":`` in a script; None: one
            per core, as far as memory holds the cases.
        data_dir: data set folder, where the labels have moved since training.

    Returns:
        The ensemble file, the steps that were chosen, and what they gain.

    Raises:
        UserError: for runs that cannot be tuned, and a path that cannot be written.

    Example:
        >>> tune_postprocessing([])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        pipeline.records.UserError: runs: no run folder is named. ...
    """
    given = [runs] if isinstance(runs, str | Path | RunFolder) else runs
    folders = [r.path if isinstance(r, RunFolder) else Path(r) for r in given]
    if not folders:
        raise UserError("runs: no run folder is named. Name one that pipeline.train wrote.")
    if by not in (None, "group", "fold"):
        raise UserError(f"by is {by!r}, must be group or fold.")
    for folder in folders:
        files.require_text("", folder)  # the ensemble's YAML will hold it
    if folders and os.path.isdir(folders[0]):
        files.require_writable("", RunFolder(folders[0]).tuning)
    study = prepare(folders, metric, workers, None if data_dir is None else Path(data_dir))
    spec = Path(out) if out is not None else Path("ensembles") / f"{study.name}_tuned.yaml"
    guard(spec, force)
    plan = make_search_plan(study, None if space is None else Path(space))
    require_spacings(study, plan)
    with lock.held(study.folder / lock.NAME), make_trials(study, workers) as trials:
        study = usable(study, trials, plan)
        parts = make_parts(study, by)
        held = ", ".join(f"{name} ({len(ids)})" for name, ids in parts.items())
        logger.info(f"{len(study.cases)} cases; held out in turn: {held}")
        rows, chosen = compare(study, plan, parts, trials)
    gains = compute_gains(study, rows)
    averages = {r.name: means(r) for r in rows}
    logger.info(tables.of_tuning(study.metric.name, study.units, averages, gains, drawn_by(study)))
    for name, candidate in chosen.items():
        logger.info(f"chosen {f'without {name}' if name else 'on all cases'}: {candidate}")
    for row in rows:
        if row.name == NNUNET:
            logger.info(f"{NNUNET}: {'; '.join(sorted({str(c) for c in row.candidates.values()}))}")
    keep_result(study, rows, gains, parts)
    write_spec(spec, study, chosen[""], gains)
    return Tuned(spec=spec, chosen=chosen[""], gains=gains, plugins=plugins.words(study.config))


# --- the runs and their cases ---------------------------------------------------------------------


def prepare(
    runs: Sequence[Path], metric_name: str | None, workers: int | None, data_dir: Path | None
) -> Study:
    """Open the runs and check that they can be compared.

    Args:
        runs: run folders; the first one keeps the journal and the result.
        metric_name: what candidates are ranked by; None: see :func:`choose_metric`.
        workers: processes asked for; None: one per core.
        data_dir: data set folder, where the labels have moved since training.

    Returns:
        The cases of the runs, with everything that scoring needs.

    Raises:
        UserError: for everything that cannot be used.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: at least 1 process is needed.")
    sources = tuple(open_run(RunFolder(folder)) for folder in runs)
    config = sources[0].config
    check_alike(sources)
    cases = case_files(sources, data_dir)
    softs = (soft.load(folder, case.id) for case in cases for folder in case.soft)
    shapes = [found.on_file_grid().main.shape for found in softs]
    metric = choose_metric(metric_name, config)
    return Study(
        sources=sources,
        cases=with_spacings(cases, metric, config, min(s.version for s in sources)),
        groups={case.id: sources[0].listing[case.id]["group"] for case in cases},
        metric=metric,
        sign=1 if better(metric.name) == "higher" else -1,
        shape=max(shapes, key=math.prod),
    )


def open_run(run: RunFolder) -> Source:
    """Read a run's config, finished folds and out-of-fold cases.

    Args:
        run: the run folder.

    Returns:
        What was read.

    Raises:
        UserError: where the folder is no run, or there is nothing to tune on.
    """
    if not os.path.isfile(run.config_file) or not os.path.isfile(run.cases_file):
        raise UserError(
            f"{run.path}: no run folder (config.yaml and cases.json are missing). Give one that"
            " pipeline.train wrote."
        )
    run.require_plugins()
    config = run.config()
    if not TASKS[config.rules].decides:
        raise UserError(
            f"{run.path}: its task is {config.task!r}; only labels have post-processing to tune."
        )
    fold_of: dict[str, int] = {}
    for fold in run.completed():
        fold_of |= dict.fromkeys(soft.ids(run.fold(fold).soft), fold)
    if not fold_of:
        raise UserError(
            f"{run.path}: no finished fold with out-of-fold predictions (fold_N/oof/soft). Train a"
            " fold to its end first."
        )
    listing = run.listing()
    unknown = sorted(set(fold_of) - set(listing))
    if unknown:
        raise UserError(
            f"{run.cases_file}: lacks {len(unknown)} cases that were predicted:"
            f" {', '.join(unknown[:10])}. Restore it, or remove their files from fold_N/oof/soft."
        )
    folds = tuple(sorted(set(fold_of.values())))
    which = ", ".join(map(str, folds))
    logger.info(
        f"{run.path}: {len(fold_of)} of {len(listing)} cases predicted out of fold by folds {which}"
    )
    return Source(
        run=run,
        config=config,
        folds=folds,
        fold_of=fold_of,
        listing=listing,
        version=run.metrics_version(),
    )


def check_alike(sources: Sequence[Source]) -> None:
    """Check that all runs predicted the same cases, with the same labels and classes.

    Args:
        sources: the runs; each is compared with the first.

    Raises:
        UserError: with the differences, or where a run is given twice.
    """
    first = sources[0]
    if len({os.path.realpath(s.folder) for s in sources}) < len(sources):
        raise UserError("a run is given twice. Name each run once.")
    for other in sources[1:]:
        faults = [
            f"{key} is {getattr(first.config.data, key)} and {getattr(other.config.data, key)}"
            for key in ("classes", "dims", "ignore_label", "unions", "regions_class_order")
            if getattr(first.config.data, key) != getattr(other.config.data, key)
        ]
        faults += [
            f"only one of them predicted {i}"
            for i in sorted(set(first.fold_of) ^ set(other.fold_of))[:5]
        ]
        name = next(iter(first.config.targets))
        both = sorted(set(first.fold_of) & set(other.fold_of))
        contents = [[s.listing[i]["content"].get(name) for s in (first, other)] for i in both]
        faults += [
            f"case {i} has other labels" for i, (a, b) in zip(both, contents, strict=True) if a != b
        ][:5]
        if faults:
            raise UserError(
                f"{first.folder} and {other.folder} cannot be tuned together: {'; '.join(faults)}."
            )


def case_files(sources: Sequence[Source], data_dir: Path | None) -> tuple[CaseFiles, ...]:
    """Find the soft predictions and the label file of every case.

    Args:
        sources: the runs; cases are those of the first.
        data_dir: data set folder; None: labels are where the first run found them.

    Returns:
        One record per case, sorted by id.

    Raises:
        UserError: for labels that are not where they were.
    """
    config, listing = sources[0].config, sources[0].listing
    target = next(iter(config.targets))
    if data_dir is None:
        files_of = {
            i: {role: Path(path) for role, path in listing[i]["targets"].items()} for i in listing
        }
    else:
        files_of = {
            c.id: dict(c.targets)
            for c in case_finder.find(config.data, config.roles, data_dir).train
        }
    ids = sorted(sources[0].fold_of)
    fov = config.data.frames.fov
    needed = [target, *([fov] if fov else [])]
    missing = [
        i
        for i in ids
        if any(
            role not in files_of.get(i, {})
            or files.absence(files.split_selection(files_of[i][role])[0])
            for role in needed
        )
    ]
    labels = {i: files_of[i][target] for i in ids if i not in missing}
    if missing:
        where = data_dir or next(
            (path.parent for path in files_of.get(missing[0], {}).values()), "the run's data set"
        )
        raise UserError(
            f"labels of {len(missing)} cases are not in {where}: {', '.join(missing[:10])}. Say"
            " with --data-dir where they are now."
        )
    return tuple(
        CaseFiles(
            id=i,
            soft=tuple(s.run.fold(s.fold_of[i]).soft for s in sources),
            label=labels[i],
            content=" ".join(
                listing[i]["content"][role] if data_dir is None else _stamp(files_of[i][role])
                for role in needed
            ),
            fov=files_of[i][fov] if fov else None,
        )
        for i in ids
    )


def with_spacings(
    cases: Sequence[CaseFiles], metric: NamedOptions, config: Config, version: int
) -> tuple[CaseFiles, ...]:
    """Add voxel spacings where the metric measures lengths and all labels carry a unit.

    Args:
        cases: files of the cases.
        metric: what candidates are ranked by.
        config: config of the first run.
        version: metrics version; before 2 lengths are counted in voxels.

    Returns:
        The cases, in the same order.

    Raises:
        UserError: for an option in millimetres where labels carry no unit.
    """
    if version < 2:
        return tuple(cases)
    spacings = worlds.spacings([metric], {c.id: c.label for c in cases}, config.data.dims)
    return tuple(dataclasses.replace(c, spacing=spacings.get(c.id)) for c in cases)


def _stamp(path: Path) -> str:
    found = files.split_selection(path)[0].stat()
    return f"{found.st_mtime_ns} {found.st_size}"


def choose_metric(name: str | None, config: Config) -> NamedOptions:
    """The metric to tune by, with the config's options where the config has it.

    Args:
        name: name of the metric; None: competition for binary volumes, else the first of the
            config's that needs no probabilities, else dice.
        config: config of the first run.

    Returns:
        The metric and its options.

    Raises:
        ConfigError: for a metric without a direction, or not of label maps.
    """
    given = {p.name: p for p in config.metrics}
    if name is None:
        binary_volumes = (
            config.data.classes == 2 and config.data.dims == 3 and config.data.regions is None
        )
        ranking = [n for n, entry in METRICS.items() if "probabilities" in entry.needs]
        name = (
            "competition"
            if binary_volumes
            else next((n for n in given if n not in ranking), "dice")
        )
    known = [
        n
        for n, entry in METRICS.items()
        if entry.better and entry.task == "labels" and not entry.needs
    ]
    if name not in known:
        raise ConfigError(
            f"--metric {name}: not a metric of label maps with a direction. {nearest(name, known)}"
        )
    return given.get(name, NamedOptions(name=name))


def make_trials(study: Study, workers: int | None) -> Trials:
    """Open the scores of a study, which are kept in ``RUN/tuning/scores.jsonl``.

    Args:
        study: cases, metric and runs.
        workers: processes; None: one per core, as far as memory allows.

    Returns:
        The scores, to be used as a context manager.
    """
    metrics = (study.metric, *([] if study.metric.name == "dice" else [NamedOptions(name="dice")]))
    number = workers_for(metrics, study.shape, len(study.sources), workers)
    inside = ", inside the field of view" if study.config.data.frames.fov else ""
    logger.info(
        f"metric {study.metric.name} ({'higher' if study.sign > 0 else 'lower'} is better{inside}),"
        f" {number} worker{'s' if number > 1 else ''}"
    )
    return Trials(
        study.cases,
        Measure.of(study.config.data, metrics, study.version),
        study.sources[0].run.tuning_journal,
        number,
        progress_callback("scores"),
    )


def usable(study: Study, trials: Trials, plan: SearchPlan) -> Study:
    """Leave out cases whose score under the present post-processing is not finite.

    No difference could be computed there.

    Args:
        study: all cases.
        trials: scores, opened.
        plan: its ``start`` is the present post-processing.

    Returns:
        The study with the remaining cases.

    Raises:
        UserError: where fewer than 2 cases remain.
    """
    found = trials.scores({case.id: [plan.start] for case in study.cases})
    good = [
        c
        for c in study.cases
        if math.isfinite(found[c.id, plan.start.key].get(study.metric.name, math.nan))
    ]
    if len(good) < len(study.cases):
        missing = sorted({c.id for c in study.cases} - {c.id for c in good})
        logger.warning(
            f"{study.metric.name} has no value for {len(missing)} cases, which are left out:"
            f" {', '.join(missing[:10])}"
        )
    if len(good) < 2:
        raise UserError(
            f"{study.metric.name} has a value for {len(good)} cases; at least 2 are needed. Choose"
            " another --metric."
        )
    return dataclasses.replace(study, cases=tuple(good))


def make_parts(study: Study, by: str | None) -> dict[str, list[str]]:
    """Divide the cases into parts that are held out in turn.

    Args:
        study: the cases, with their groups and folds.
        by: ``group`` or ``fold``; None: group where every case has one and there are at least two.

    Returns:
        Case ids by the part's name.

    Raises:
        UserError: where there are fewer than two parts.
    """
    ids = [c.id for c in study.cases]
    groups = {i: study.groups[i] for i in ids}
    whole = all(g is not None for g in groups.values())
    enough = whole and len(set(groups.values())) >= 2
    kind = by or ("group" if enough else "fold")
    if kind == "group" and not enough:
        problem = (
            f"there is only the group {next(iter(groups.values()))}"
            if whole
            else "some cases have no group"
        )
        raise UserError(f"--by group: {problem}. Use --by fold.")
    by_case = {
        i: str(groups[i]) if kind == "group" else f"fold {study.sources[0].fold_of[i]}" for i in ids
    }
    if len(set(by_case.values())) < 2:
        raise UserError(
            "only one fold is finished and there are no two groups, so nothing can be held out."
            " Train another fold first."
        )
    return search.deal(by_case)


# --- the search space -----------------------------------------------------------------------------


def make_search_plan(study: Study, file: Path | None) -> SearchPlan:
    """The search space, with the baselines and, for several runs, their weights and fusions.

    Args:
        study: cases, metric and runs.
        file: YAML file of ``--space``; None: the built-in space.

    Returns:
        What the search may try.

    Raises:
        UserError: for a file that cannot be used.
    """
    channels, *space = study.shape
    edge = math.prod(space) ** (1 / len(space))
    own = study.config.postprocess
    stages = (
        read_space(file, channels, len(space))
        if file
        else search.space(own, edge, channels, len(space))
    )
    if study.config.data.regions is not None:  # the step that writes their labels is always there
        stages = (tuple(_decided(s, own[:1]) for s in stages[0]), *stages[1:])
    if left := [
        s.name for s in own if postprocess.POSTPROCESS[s.name].search is None and file is None
    ]:
        logger.warning(
            f"{', '.join(left)}: no search knows this step, so what is tried leaves it out; see"
            " search in its PostprocessStep"
        )
    weights = tuple(1.0 for _ in study.sources)
    also = (
        {name: search.Candidate(steps=s, weights=weights) for name, s in search.BASELINES.items()}
        if channels == 1 and study.config.data.regions is None
        else {}
    )
    for n, source in enumerate(study.sources if len(weights) > 1 else ()):
        alone = tuple(float(i == n) for i in range(len(weights)))
        also[f"{Path(os.path.realpath(source.folder)).name} alone"] = search.Candidate(
            steps=own, weights=alone
        )
    return search.SearchPlan(
        start=search.Candidate(steps=own, weights=weights),
        stages=stages,
        mixtures=mixtures(len(weights)),
        also=also,
        filters={} if file else class_filters(study),
    )


def several_classes(config: Config) -> tuple[int, ...]:
    """Label values of the foreground that a system writes, where they are several.

    Args:
        config: its config.

    Returns:
        The values, ascending; none of a system with one foreground class.
    """
    order = config.data.regions_class_order
    values = classes_of(config.data) if order is None else tuple(sorted(set(order)))
    return values if len(values) > 1 else ()


def class_filters(study: Study) -> dict[int, tuple[NamedOptions, ...]]:
    """Filters of components that are tried for each class by itself.

    Their sizes are shares of a usual component of the class in the labels; in mm³ where the present
    list has its ``dust`` in mm³.

    Args:
        study: cases and runs.

    Returns:
        Filters by label value, the weakest first; none of a system with one foreground class.
    """
    values, own = several_classes(study.config), study.config.postprocess
    if not values:
        return {}
    in_mm3 = any(postprocess.resolved(s).name == "dust" and postprocess.in_mm3([s]) for s in own)
    spacings = (
        {
            c.id: spacing
            for c in study.cases
            if (spacing := soft.load(c.soft[0], c.id).spacing) is not None and len(spacing) == 3
        }
        if in_mm3
        else None
    )
    usual = usual_sizes(study.cases, study.config.data, values, spacings)
    logger.info(
        "usual component: "
        + ", ".join(f"class {v} {size:.3g}" for v, size in usual.items())
        + (" mm³" if in_mm3 else " voxels")
    )
    return {v: filters.class_filters(usual[v], "mm3" if in_mm3 else "below") for v in usual}


def _decided(
    steps: tuple[NamedOptions, ...], deciding: tuple[NamedOptions, ...]
) -> tuple[NamedOptions, ...]:
    """The steps, begun with ``deciding`` where none of them decides."""
    return steps if steps and postprocess.decides(steps[0]) else (*deciding, *steps)


def read_space(
    file: Path, channels: int, dims: int
) -> tuple[tuple[tuple[NamedOptions, ...], ...], ...]:
    """Read the stages of a ``--space`` file.

    Args:
        file: the YAML file.
        channels: K of the predictions.
        dims: space axes.

    Returns:
        Alternatives by stage, each a list of steps.

    Raises:
        UserError: where there is no such file.
        ConfigError: for structure, names, options, and deciding steps after the first stage.
    """
    if not os.path.isfile(file):
        raise UserError(f"--space {file}: no such file.")
    stages = structure(read_yaml(file), Space, str(file)).stages
    if not stages or not all(stages):
        raise ConfigError(
            f"{file}: stages: give at least one stage, and in each stage at least one alternative;"
            " [] is no step at all."
        )
    for i, stage in enumerate(stages):
        for steps in stage:
            postprocess.check(steps, channels, dims)
            if i and steps and postprocess.decides(steps[0]):
                raise ConfigError(
                    f"{file}: stage {i}: {steps[0].name!r} takes a soft prediction. Move it to the"
                    " first stage."
                )
    return stages


def require_spacings(study: Study, plan: SearchPlan) -> None:
    """Check that sizes in mm³ can be followed in every case.

    Args:
        study: the cases.
        plan: what the search may try.

    Raises:
        UserError: for cases whose images carry no unit of length.
    """
    tried = (plan.start.steps, *itertools.chain(*plan.stages))
    steps = [step for steps in tried for step in steps]
    if not postprocess.in_mm3(steps):
        return
    found = {
        c.id: problem
        for c in study.cases
        if (problem := postprocess.problem_of(steps, soft.load(c.soft[0], c.id).spacing))
    }
    if found:
        (problem, suggestion), names = next(iter(found.values())), ", ".join(list(found)[:10])
        raise UserError(
            f"the image of each of {len(found)} cases ({names}) {problem}. {suggestion}."
        )


def mixtures(members: int) -> tuple[tuple[tuple[float, ...], str], ...]:
    """Weights on a grid over the simplex with each fusion; equal weights first.

    Args:
        members: number of members; one alone needs no fusion.

    Returns:
        Pairs of weights, one per member, and fusion.

    Example:
        >>> mixtures(1)
        (((1.0,), 'mean'),)
        >>> len(mixtures(2))
        16
    """
    if members == 1:
        return (((1.0,), "mean"),)
    steps = STEPS.get(members, 2)
    grid = [w for w in itertools.product(range(steps + 1), repeat=members) if sum(w) == steps]
    equal = tuple(1.0 for _ in range(members))
    weights = [
        equal,
        *(w for w in (tuple(n / steps for n in row) for row in grid) if len(set(w)) > 1),
    ]
    several = [w for w in weights if sum(n > 0 for n in w) > 1]
    return (*((w, "mean") for w in weights), *((w, "logit") for w in several))


# --- gains ----------------------------------------------------------------------------------------


def compare(
    study: Study, plan: SearchPlan, parts: Mapping[str, Sequence[str]], trials: Trials
) -> tuple[list[Row], dict[str, Candidate]]:
    """Search with each part held out in turn and on all cases, and score what was chosen.

    Args:
        study: cases, metric and runs.
        plan: what the search may try.
        parts: case ids by part.
        trials: scores, opened.

    Returns:
        The rows of the table, and the choices: under ``""`` the one on all cases, under a part's
        name the one made without that part.
    """
    rounds = itertools.count(1)

    def evaluate(wanted: Mapping[str, Sequence[Candidate]]) -> dict[tuple[str, str], float]:
        new = trials.missing(wanted)
        logger.info(
            f"round {next(rounds)}: {max(map(len, wanted.values()))} candidates, {new} scores to"
            " compute"
        )
        found = trials.scores(wanted)
        return {
            pair: study.sign * scores.get(study.metric.name, math.nan)
            for pair, scores in found.items()
        }

    chosen = search.nested(plan, parts, evaluate, filters.search)
    rule = by_nnunet(study, plan.start, parts, trials)
    fixed = {OWN: plan.start, **plan.also}
    part_of = {case: part for part, cases in parts.items() for case in cases}
    wanted = {
        c.id: [
            *fixed.values(),
            *([rule[part_of[c.id]]] if rule else []),
            chosen[part_of[c.id]],
            chosen[search.ALL],
        ]
        for c in study.cases
    }
    found = trials.scores(wanted)
    lines = [
        (name, {search.ALL: c}, dict.fromkeys(part_of, c))
        for name, c in {**fixed, OPTIMISTIC: chosen[search.ALL]}.items()
    ]
    for name, choices in ((NNUNET, rule), (NESTED, chosen)):
        if choices:
            by_part = {part: c for part, c in choices.items() if part != search.ALL}
            lines.insert(-1, (name, by_part, {i: choices[part] for i, part in part_of.items()}))
    rows = [
        Row(
            name=name,
            candidates=candidates,
            cases={c.id: found[c.id, used[c.id].key] for c in study.cases},
        )
        for name, candidates, used in lines
    ]
    return rows, chosen


def by_nnunet(
    study: Study, present: Candidate, parts: Mapping[str, Sequence[str]], trials: Trials
) -> dict[str, Candidate]:
    """Choose largest components by nnU-Net's rule, see :mod:`pipeline.tuning.nnunet_rule`.

    Args:
        study: cases and runs.
        present: of its steps only the deciding one is used.
        parts: case ids by part.
        trials: scores, opened.

    Returns:
        Choices as those of the search; none of a system with one foreground class.
    """
    values, data = several_classes(study.config), study.config.data
    if not values:
        return {}
    objects = data.unions or tuple((v,) for v in values)
    names = [f"dice_{n}" for n in (range(1, len(objects) + 1) if data.unions else values)]
    deciding = tuple(step for step in present.steps[:1] if postprocess.decides(step))

    def dices(candidates: Sequence[Candidate]) -> dict[tuple[str, str], list[float]]:
        found = trials.scores({c.id: candidates for c in study.cases})
        return {
            pair: [scores.get(name, math.nan) for name in names] for pair, scores in found.items()
        }

    return nnunet_rule(dataclasses.replace(present, steps=deciding), objects, parts, dices)


def compute_gains(study: Study, rows: Sequence[Row]) -> dict[str, dict[str, Gain]]:
    """Paired gains of every row over the present post-processing and over the first baseline.

    Args:
        study: cases and metric.
        rows: the rows of the table.

    Returns:
        Gains by row and reference.
    """
    ids = [c.id for c in study.cases]
    values = {
        r.name: np.array([study.sign * r.cases[i].get(study.metric.name, math.nan) for i in ids])
        for r in rows
    }
    units = bootstrap_units(study)
    references = [name for name in (OWN, next(iter(search.BASELINES))) if name in values]
    return {
        row.name: {
            name: search.gain(values[row.name] - values[name], units, seed=study.config.seed)
            for name in references
        }
        for row in rows
    }


def bootstrap_units(study: Study) -> list[str]:
    """What the bootstrap resamples as a whole: groups where there are enough, else cases.

    Args:
        study: cases and their groups.

    Returns:
        The unit of each case, in the order of the cases.
    """
    groups = [study.groups[c.id] for c in study.cases]
    enough = None not in groups and len(set(groups)) >= ENOUGH_GROUPS
    return [str(g) for g in groups] if enough else [c.id for c in study.cases]


def drawn_by(study: Study) -> str:
    """Name what the bootstrap resamples.

    Args:
        study: cases and their groups.

    Returns:
        ``groups`` or ``cases``.
    """
    return "groups" if len(set(bootstrap_units(study))) < len(study.cases) else "cases"


def means(row: Row) -> dict[str, float]:
    """Mean of every metric over the cases in which it is finite.

    Args:
        row: scores by case.

    Returns:
        Means by metric, NaN where no case has a finite value.
    """
    names = dict.fromkeys(k for scores in row.cases.values() for k in scores)
    out = {}
    for name in names:
        values = [v for s in row.cases.values() if math.isfinite(v := s.get(name, math.nan))]
        out[name] = sum(values) / len(values) if values else math.nan
    return out


# --- output ---------------------------------------------------------------------------------------


def keep_result(
    study: Study,
    rows: Sequence[Row],
    gains: Mapping[str, Mapping[str, Gain]],
    parts: Mapping[str, Sequence[str]],
) -> None:
    """Write all rows, scores by case, gains, and choices by part as JSON.

    The file is ``RUN/tuning/result.json``, for several runs ``result_A+B.json``.

    Args:
        study: cases, metric and runs.
        rows: the rows of the table.
        gains: paired gains by row and reference.
        parts: case ids by part.
    """
    name = "result.json" if len(study.sources) == 1 else f"result_{study.name}.json"
    files.write_json(
        study.folder / name,
        {
            "runs": [str(s.folder) for s in study.sources],
            "metric": study.metric,
            "better": "higher" if study.sign > 0 else "lower",
            "units": study.units,
            "class_names": class_names(study.config),
            **named_regions(study.config),
            "parts": parts,
            "bootstrap": {"resamples": UNIT_DRAWS, "unit": drawn_by(study)[:-1]},
            "rows": [
                {
                    "name": row.name,
                    "chosen": {
                        part or "all": {"text": str(c), **dataclasses.asdict(c)}
                        for part, c in row.candidates.items()
                    },
                    "mean": means(row),
                    "gains": gains[row.name],
                    "cases": row.cases,
                }
                for row in rows
            ],
        },
    )


MARK = "# Written by pipeline.tune, checksum "


def spec_text(study: Study, chosen: Candidate, gains: Mapping[str, Mapping[str, Gain]]) -> str:
    """The ensemble as YAML, below a comment with its origin and what it gains.

    Args:
        study: cases, metric and runs.
        chosen: the candidate that was chosen on all cases.
        gains: paired gains by row and reference.

    Returns:
        The text; its first line holds a checksum of the rest, see :func:`guard`.
    """
    members = [
        {"run": str(s.folder), "folds": list(s.folds), "weight": w}
        for s, w in zip(study.sources, chosen.weights, strict=True)
        if w > 0
    ]
    content = {
        "members": members,
        "fusion": chosen.fusion,
        "postprocess": json.loads(json.dumps([_as_yaml(s) for s in chosen.steps])),
    }
    nested = gains[NESTED]
    lines = [
        f"{time.strftime('%Y-%m-%d')}   {command(study)}",
        (
            f"Chosen on {len(study.cases)} cases by {study.metric.name}. Honest gain (each case"
            " under the choice made without its part), 95 %:"
        ),
        *(
            f"  {found} over {reference}; better in {found.better}, worse in {found.worse} cases"
            for reference, found in nested.items()
        ),
    ]
    # A name with a line feed must not end the comment.
    lines = [printable(line).replace("\n", "\\n") for line in lines]
    body = "".join(f"# {line}\n" for line in lines) + dump_yaml(
        content, default_flow_style=None, width=120
    )
    return f"{MARK}{_checksum(body)}\n{body}"


def command(study: Study) -> str:
    """The command line, quoted for a shell.

    Args:
        study: its runs stand for the arguments where Python, not the command, was called.

    Returns:
        One line.
    """
    words = (
        sys.argv[1:] if Path(sys.argv[0]).stem == "tune" else [str(s.folder) for s in study.sources]
    )
    return shlex.join(["python", "-m", "pipeline.tune", *words])


def _as_yaml(step: NamedOptions) -> dict[str, Any] | str:
    return {"name": step.name, "options": dict(step.options)} if step.options else step.name


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def guard(out: Path, force: bool) -> None:
    """Check that ``out`` can be written without loss.

    Args:
        out: the ensemble's YAML.
        force: replace a file although it was written or changed by something else.

    Raises:
        UserError: where ``out`` holds something that this command did not write, or that was
            changed since, or may not be written.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}: an ensemble is a .yaml file.")
    files.require_writable("--out", out.parent)
    if os.path.exists(out) and not os.path.isfile(out):
        raise UserError(f"--out {out} is no file. Choose another --out.")
    if force or not os.path.lexists(out):
        return
    first, _, rest = out.read_text(encoding="utf-8", errors="replace").partition("\n")
    if first != MARK + _checksum(rest):
        raise UserError(
            f"{out} is there and was written or changed by somebody else. Choose another --out, or"
            " replace it with --force."
        )


def write_spec(
    out: Path, study: Study, chosen: Candidate, gains: Mapping[str, Mapping[str, Gain]]
) -> None:
    """Write the ensemble, whole or not at all.

    Args:
        out: the YAML file.
        study: cases, metric and runs.
        chosen: the candidate that was chosen on all cases.
        gains: paired gains by row and reference.
    """
    files.write_text(out, spec_text(study, chosen, gains))
