"""The runs that are tuned, their cases, and the metric that candidates are ranked by."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.config import Config, ConfigError, nearest
from pipeline.data import cases as case_finder
from pipeline.inference import soft
from pipeline.metrics import METRICS, better, units
from pipeline.records import NamedOptions, UserError
from pipeline.runs import RunFolder
from pipeline.scoring import worlds
from pipeline.tasks import TASKS
from pipeline.tuning.trials import CaseFiles

logger = logging.getLogger(__name__)


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
