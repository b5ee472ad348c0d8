"""Read a run folder of which any file may be missing, and compute what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.config import ConfigError
from pipeline.metrics import better
from pipeline.metrics.frames import SUFFIXES
from pipeline.metrics.names import display, from_json, key_names, of_class
from pipeline.records import ALL, FoldName, UserError
from pipeline.reporting.page import finite
from pipeline.runs import FoldFolder, RunFolder

MOST = 6
"""Number of metrics that stand side by side; of more, those of classes have tables of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was found in a run's folder.

    Args:
        folder: the run folder.
        summary: its summary.json.
        config: its config.yaml, as it is in the file.
        cases: its cases.json.
        logs: epochs by fold, and by ``all``.
        gaps: what is missing, in words.
    """

    folder: RunFolder
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    cases: Mapping[str, Any]
    logs: Mapping[FoldName, list[dict[str, Any]]]
    gaps: list[str] = field(default_factory=list)

    @property
    def scored(self) -> Mapping[str, Any]:
        """Held-out cases with their fold, group and metrics, by id."""
        return self.summary.get("cases") or {}

    @property
    def baselines(self) -> Mapping[str, Any]:
        """Mean scores of the baselines, by name and metric."""
        return self.summary.get("baselines") or {}


def load(folder: Path) -> Run:
    """Read what exists of a run.

    Args:
        folder: the run folder.

    Returns:
        What was found, with the gaps.

    Raises:
        UserError: where the folder has no summary.json.
    """
    run_folder = RunFolder(folder)
    if not run_folder.summary_file.is_file():
        raise UserError(
            f"{folder}: no summary.json, so this is no run of which a fold has ended. Give the"
            " folder that pipeline.train, or for predictions pipeline.predict, wrote."
        )
    gaps: list[str] = []
    summary = run_folder.summary()
    run = Run(
        folder=run_folder,
        summary=summary,
        config=_config(run_folder, gaps),
        cases=_listing(run_folder, gaps),
        logs={name: _log(run_folder.fold(name), gaps) for name in _logged(summary)},
        gaps=gaps,
    )
    absent = set(range(option(run, "data", "folds", "count") or 0)) - set(run.logs)
    gaps.extend(f"fold {n} has no result yet" for n in sorted(absent))
    gaps.extend(
        f"fold {f['fold']} {f['status']}: {f.get('error') or 'no reason given'}"
        for f in folds_of(run)
        if f["status"] != "completed"
    )
    every = summary.get("all_cases") or {}
    if every.get("status", "completed") != "completed":
        gaps.append(f"fold {ALL} {every['status']}: {every.get('error') or 'no reason given'}")
    # Of several classes there are none: they are an empty answer and a threshold.
    binary = summary.get("task") != "image" and option(run, "data", "classes") in (None, 2)
    if binary and not run.baselines:
        gaps.append("no scores of an empty answer and a threshold yet: they need all folds")
    return run


def _logged(summary: Mapping[str, Any]) -> list[FoldName]:
    """Folds that have a log: those with a result, and the model of all cases."""
    return [
        *(f["fold"] for f in summary.get("folds", ())),
        *([ALL] if "all_cases" in summary else []),
    ]


def _config(folder: RunFolder, gaps: list[str]) -> Mapping[str, Any]:
    """The config as it is in its file; nothing, and a gap, where it cannot be read."""
    try:
        return folder.reported_config()
    except (UserError, OSError) as error:
        why = f": {error.problem}" if isinstance(error, files.FileError) else ""
        gaps.append(f"config.yaml is missing or not readable{why}")
        return {}


def _listing(folder: RunFolder, gaps: list[str]) -> Mapping[str, Any]:
    """The cases.json; nothing, and a gap, where it cannot be read."""
    try:
        return folder.places()
    except files.FileError as error:
        gaps.append(f"cases.json is missing or not readable: it {error.problem}"[:300])
        return {}


def _log(fold: FoldFolder, gaps: list[str]) -> list[dict[str, Any]]:
    """Epochs of a fold in order, with the values that can be drawn; unreadable lines are a gap."""
    name = f"{fold.path.name}/{fold.log_file.name}"
    if not fold.log_file.is_file():
        gaps.append(f"{name} is missing: no curves")
        return []
    epochs, torn = fold.epochs()
    if torn:
        gaps.append(f"{name}: {torn} unreadable lines are left out")
    return [{k: v for k, v in record.items() if v is None or finite(v)} for record in epochs]


def folds_of(run: Run) -> list[dict[str, Any]]:
    """Results of the folds, in order.

    Args:
        run: what was found of a run.

    Returns:
        Rows of summary.json.
    """
    return sorted(run.summary.get("folds", ()), key=lambda f: f["fold"])


def option(run: Run, *keys: str) -> Any:
    """A value of the config file.

    Args:
        run: what was found of a run.
        *keys: from the outermost section to the option.

    Returns:
        The value, None where the file has none.
    """
    value: Any = run.config
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def metric_names(run: Run) -> list[str]:
    """Metrics of the first frame; those of further frames have a table of their own.

    Args:
        run: what was found of a run.

    Returns:
        Keys of metrics.
    """
    return [
        name for name in run.summary.get("out_of_fold") or {} if not name.endswith(SUFFIXES[1:])
    ]


def named(run: Run, key: str) -> str:
    """A metric's display name, with the name of its class and its unit where they are known.

    Args:
        run: what was found of a run.
        key: of the metric.

    Returns:
        Text.
    """
    return display(key, key_names(run.summary), run.summary.get("units") or {})


def main_metrics(run: Run) -> list[str]:
    """The metrics that stand side by side: all where they are few, else those of no single class.

    Args:
        run: what was found of a run.

    Returns:
        Keys of metrics.
    """
    names = metric_names(run)
    return names if len(names) <= MOST else [n for n in names if of_class(n) is None]


def class_metrics(run: Run) -> dict[str, dict[int, str]]:
    """The keys of the other metrics by metric and class.

    Args:
        run: what was found of a run.

    Returns:
        ``{"dice": {1: "dice_1", ...}, ...}``.
    """
    main, out = set(main_metrics(run)), {}
    for name in metric_names(run):
        found = of_class(name)
        if found and name not in main:
            out.setdefault(found[0], {})[found[1]] = name
    return out


def class_title(run: Run, number: int) -> str:
    """Name of what a number in a metric's key stands for: a class, or a region.

    Args:
        run: what was found of a run.
        number: from 1 on.

    Returns:
        Its name, where there is one.
    """
    return key_names(run.summary).get(number, f"class {number}")


def label_title(run: Run, value: int) -> str:
    """Name of a label value, as pictures show it.

    Args:
        run: what was found of a run.
        value: the label value.

    Returns:
        Its name, where there is one.
    """
    return from_json(run.summary.get("class_names")).get(value, f"class {value}")


def leading_metric(run: Run) -> tuple[str, int] | None:
    """The first metric that cases can be ranked by.

    Args:
        run: what was found of a run.

    Returns:
        Its key, and 1 where higher is better, -1 where lower is; None: there is none.
    """
    for name in metric_names(run):
        try:
            return name, 1 if better(name) == "higher" else -1
        except ConfigError:
            continue
    return None


def values_of(run: Run, metric: str, group: str | None = None) -> list[float]:
    """Finite scores of held-out cases.

    Args:
        run: what was found of a run.
        metric: key of the metric.
        group: only cases of this group; None: all.

    Returns:
        One number per case.
    """
    cases = [c for c in run.scored.values() if group is None or str(c.get("group")) == group]
    return [float(v) for c in cases if finite(v := c.get("metrics", {}).get(metric))]


def mean_of(values: Sequence[float]) -> float | None:
    """Mean of values.

    Args:
        values: any number of them.

    Returns:
        The mean, None of no values.
    """
    return sum(values) / len(values) if values else None
