"""Summary of a run over its folds, ``summary.json``, with baselines that a network has to beat."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline import files, postprocess
from pipeline.config import Config
from pipeline.data.described import label_names
from pipeline.inference import soft
from pipeline.metrics import units
from pipeline.records import ALL
from pipeline.scoring import baselines, cached
from pipeline.scoring.core import mean
from pipeline.tasks import TASKS
from pipeline.training.fold import TrainingRun

logger = logging.getLogger(__name__)

MOST_BASELINE_CASES = 32
"""Cases that the baselines of labels are computed on."""


def summarise(run: TrainingRun) -> dict[str, Any]:
    """Gather the folds' results, and write them to ``summary.json``.

    Args:
        run: the run; folds without a result are left out.

    Returns:
        The content of the file: status and scores of every fold, scores of every held-out case,
        their mean, units and, where there are any, pooled scores, baselines and the status of the
        model of all cases, which is not scored.
    """
    results, cases = [], {}
    for number in range(run.config.data.folds.count):
        fold = run.folder.fold(number)
        result = fold.result()
        if result is None:
            continue
        results.append(asdict(result))
        scores = fold.scores().get(result.chosen, {})
        cases |= {
            i: {"fold": number, "group": run.cached[i].case.group, "metrics": s}
            for i, s in scores.items()
        }
    rows = [
        {k: float("nan") if v is None else v for k, v in c["metrics"].items()}
        for c in cases.values()
    ]
    summary = {
        "name": run.config.name,
        "task": run.config.rules,
        "monitor": run.config.train.stop.monitor,
        "folds": results,
        "decision": _decision(run.config),
        "out_of_fold": mean(rows),
        "class_names": class_names(run.config),
        **named_regions(run.config),
        "cases": cases,
        "units": units(
            cached.case_metrics(run.config), bool(run.scoring.spacings), run.config.data.dims
        ),
    }
    if (every := run.folder.fold(ALL).result()) is not None:
        names = ("status", "epochs", "seconds", "chosen", "error")
        summary["all_cases"] = {name: getattr(every, name) for name in names}
    if whole := _pooled(run, results):
        summary["pooled"] = whole
    if rows_to_beat := _baselines(run):
        summary["baselines"] = rows_to_beat
    files.write_json(run.folder.summary_file, summary)
    return summary


def class_names(config: Config) -> dict[int, str]:
    """Names of the label values, from the config or the data set.

    Args:
        config: its task and data set.

    Returns:
        Names by label value; none for images.
    """
    return label_names(config.data) if TASKS[config.rules].decides else {}


def named_regions(config: Config) -> dict[str, Any]:
    """What summaries say of regions.

    Args:
        config: of the run.

    Returns:
        ``regions`` and ``regions_class_order``; nothing without regions.
    """
    facts = TASKS[config.rules].facts(config)
    return {key: value for key, value in facts.items() if key != "classes"}


def _decision(config: Config) -> str:
    """How probabilities became the labels that are scored, in words."""
    if not TASKS[config.rules].decides:
        return ""
    step = next((s for s in config.postprocess if postprocess.decides(s)), None)
    steps = (
        "the task's default"
        if step is None
        else " ".join([step.name, *(f"{k}={v}" for k, v in step.options.items())])
    )
    return (
        f"answers by {steps}, fixed beforehand in the config; pipeline.tune chooses on other cases"
    )


def _pooled(run: TrainingRun, results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics of all held-out pixels together, for 2D labels.

    Volumes would have to be read a second time for it.
    """
    if not TASKS[run.config.rules].decides or run.config.data.dims != 2:
        return {}

    def cases() -> Iterator[Any]:
        for fold in (run.folder.fold(r["fold"]) for r in results if r["status"] == "completed"):
            for case_id in soft.ids(fold.soft):
                found = fold.answers.glob("*")
                path = next(p for p in found if files.is_image(p) and files.case_id(p) == case_id)
                answer = files.read(path, 2, labels=True)[0][0]
                yield run.cached[case_id], answer, soft.load(fold.soft, case_id).foreground()

    return cached.pooled(run.config, cases(), run.version)


def _baselines(run: TrainingRun) -> dict[str, dict[str, float]]:
    """Scores that any network has to beat, computed once, when all folds are complete.

    Of binary labels an empty prediction and the best global threshold, on at most 32 cases; of
    images the input itself, on all of them. With folds of the user's own, cases that none holds
    out are left out.
    """
    labels = TASKS[run.config.rules].decides
    every = all(run.folder.fold(n).completed for n in range(run.config.data.folds.count))
    if (labels and run.config.data.classes != 2) or not every:
        return {}
    if not run.folder.baselines_file.is_file():
        logger.info(
            "Scoring what any network has to beat" + ("" if labels else ": the inputs themselves")
        )
        scored = {name for split in run.splits for name in split.val}
        cases = [case for name, case in run.cached.items() if name in scored]
        chosen = cases[:: -(-len(cases) // MOST_BASELINE_CASES)] if labels else cases
        share = "" if len(chosen) == len(cases) else f" ({len(chosen)} cases)"
        rows = baselines.BASELINES[run.config.task](run.config, chosen, run.scoring)
        files.write_json(run.folder.baselines_file, {k + share: v for k, v in rows.items()})
    return run.folder.baselines()
