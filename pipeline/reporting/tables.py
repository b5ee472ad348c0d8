"""Scores as text tables, for a terminal or a log."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.metrics.frames import SUFFIXES
from pipeline.metrics.names import display, key_names, of_class
from pipeline.metrics.retouch import note
from pipeline.progress import clock

RULE = "=" * 80
"""A line of the log that is easy to search for."""

DETAILS = ("voi_split", "voi_merge", "toposcore", "voi_score")
"""Numbers that are kept in files and report but not in the table.

The competition's score is computed from them.
"""

MOST_COLUMNS = 6
"""Number of metrics that the table of a summary holds side by side.

Of more, those of classes get a table of their own.
"""


def of_training(summary: Mapping[str, Any]) -> str:
    """Per-fold and out-of-fold scores; ``*`` marks the weights that are chosen for a fold.

    Where metrics were counted in several frames (a field of view), the first frame is in this table
    and all of them in a second one; where metrics of classes would make it too wide, they get a
    table of their own.

    Args:
        summary: content of a summary.json.

    Returns:
        Lines of text.
    """
    names = [n for n in summary["out_of_fold"] if n not in DETAILS and not n.endswith(SUFFIXES[1:])]
    classes = key_names(summary)
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
        f"{'fold':<12}{'status':<11}{'weights':<9}{'epoch':>6}{'time':>9}{monitor:>{wide}}"
        + _head(columns),
    ]
    for fold in summary["folds"]:
        start = f"{fold['fold']:<12}{fold['status']:<11}"
        for kind, scores in fold["metrics"].items():
            mark = "*" if kind == fold["chosen"] else ""
            score = fold["score"] if kind == "best" else None
            epoch = fold["epochs"] if kind == "last" else fold["best_epoch"] + 1
            middle = (
                f"{kind + mark:<9}{epoch:>6}{clock(fold['seconds']):>9}{_number(score):>{wide}}"
            )
            lines.append(start + middle + _row(scores, columns))
        if fold["error"]:
            lines.append(start + fold["error"])
    total = clock(sum(fold["seconds"] for fold in summary["folds"]))
    if summary["folds"]:  # else there is only the model of all cases
        lines.append(
            f"{'out of fold':<12}{len(summary['cases']):>4} cases{total:>25}{'':>{wide}}"
            + _row(summary["out_of_fold"], columns)
        )
    lines += _all_cases(summary)
    if "pooled" in summary:
        lines.append(
            f"{'out of fold, all pixels pooled':<{margin}}" + _row(summary["pooled"], columns)
        )
    lines += [
        f"{name:<{margin}}" + _row(scores, columns)
        for name, scores in summary.get("baselines", {}).items()
    ]
    decided = [summary["decision"]] if summary.get("decision") else []
    empty = note(c.get("metrics", {}) for c in summary["cases"].values())
    return "\n".join(
        [
            *lines,
            *([] if few else _by_class(summary, names)),
            *empty,
            *_frames(summary),
            *decided,
            RULE,
        ]
    )


def _all_cases(summary: Mapping[str, Any]) -> list[str]:
    """The line of the model of all cases, where there is one; it has no scores."""
    every = summary.get("all_cases")
    if every is None:
        return []
    facts = f"{every['epochs']:>6}{clock(every['seconds']):>9}  no case is held out to score it"
    weights = f"{every['chosen'] + '*':<9}" if every["status"] == "completed" else " " * 9
    return [f"{'all':<12}{every['status']:<11}{weights}" + (every["error"] or facts)]


def _by_class(summary: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Out-of-fold scores, a line for each class."""
    classes = key_names(summary)
    rows: dict[int, dict[str, float | None]] = {}
    for name in names:
        if found := of_class(name):
            rows.setdefault(found[1], {})[found[0]] = summary["out_of_fold"][name]
    if not rows:
        return []
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
    """Out-of-fold scores and baselines, a line for each frame that metrics were counted in."""
    means = summary["out_of_fold"]
    found = [f for f in SUFFIXES if any(n.endswith(f) for n in means)]
    if not found:
        return []
    classes = key_names(summary)
    units = summary.get("units") or {}
    columns = {
        n: display(n, classes, units)
        for n in (m.removesuffix(found[0]) for m in means if m.endswith(found[0]))
    }
    rows = {
        "out of fold, mean of images": means,
        "out of fold, all pixels pooled": summary.get("pooled", {}),
        **summary.get("baselines", {}),
    }
    lines = ["", f"{'':<47}{'frame':<12}" + _head(columns)]
    for name, scores in rows.items():
        lines += [
            f"{name:<47}{frame[1:]:<12}"
            + _row({n: scores.get(n + frame) for n in columns}, columns)
            for frame in found
            if scores
        ]
    return lines


def _head(columns: Mapping[str, str]) -> str:
    return "".join(f"{title:>{_wide(title)}}" for title in columns.values())


def _row(scores: Mapping[str, float | None], columns: Mapping[str, str]) -> str:
    return "".join(f"{_number(scores.get(n)):>{_wide(title)}}" for n, title in columns.items())


def _wide(title: str) -> int:
    return max(17, len(title) + 2)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


# --- folders of predictions -----------------------------------------------------------------------

TINY = 1e-3
"""Numbers below this are shown with four significant digits."""


def of_evaluation(scores: Mapping[str, Any]) -> str:
    """Scores of a folder: a row per case, their mean, and the metrics of all voxels pooled.

    For images also "do nothing" and the gain over it. Classes have their names, lengths their unit.
    Cases that failed for one reason share a line.

    Args:
        scores: as :func:`pipeline.workflows.evaluate.evaluate` returns them.

    Returns:
        Lines of text.
    """
    names = list(scores["mean"])  # tables, such as the competition's counts, are in the file only
    classes = key_names(scores)
    titles = [display(n, classes, scores.get("units", {})) for n in names]
    widths = [max(18, len(title) + 2) for title in titles]
    lines = [f"{'case':<24}" + "".join(f"{t:>{w}}" for t, w in zip(titles, widths, strict=True))]
    further = [
        (key.replace("_", " "), scores[key])
        for key in ("pooled", "do_nothing", "difference")
        if key in scores
    ]
    for case_id, row in [*scores["cases"].items(), ("mean", scores["mean"]), *further]:
        numbers = (f"{_score(row.get(n)):>{w}}" for n, w in zip(names, widths, strict=True))
        lines.append(f"{case_id:<24}" + "".join(numbers))
    return "\n".join([*lines, *note(scores["cases"].values()), *_failures(scores["failed"])])


def _failures(failed: Mapping[str, str]) -> list[str]:
    """A line for each reason, with the cases that share it; file names in it are not compared."""
    groups: dict[str, list[str]] = {}
    for i, reason in failed.items():
        groups.setdefault(re.sub(r"\S*" + re.escape(i) + r"\S*", "...", reason), []).append(i)
    lines = []
    for case_ids in groups.values():
        first = f"{case_ids[0]:<24}FAILED: {failed[case_ids[0]]}"
        more = (
            f" ({len(case_ids)} cases alike: "
            f"{', '.join(case_ids[:6])}{', ...' if len(case_ids) > 6 else ''})"
        )
        lines.append(first + (more if len(case_ids) > 1 else ""))
    return lines


def _score(value: Any) -> str:
    if isinstance(value, Mapping):
        return "..."
    if value is None or not math.isfinite(value):
        return "-"
    # The tiny ones are lengths under a microscope, in millimetres.
    return f"{value:.4g}" if 0 < abs(value) < TINY else f"{value:.4f}"


# --- tuning ---------------------------------------------------------------------------------------

OWN = "the run's own"
"""Name of the row with the run's own post-processing."""

BESIDE = ("toposcore", "surface_dice", "voi_score", "dice")
"""Numbers that the table of tuning shows beside the metric, where they were computed."""


def of_tuning(
    metric: str,
    units: Mapping[str, str],
    averages: Mapping[str, Mapping[str, float]],
    gains: Mapping[str, Mapping[str, Any]],
    drawn: str,
) -> str:
    """Rows with means, gains with 95 % intervals, and how many cases are better and worse.

    Args:
        metric: what was tuned by.
        units: unit of a metric that is a length.
        averages: means by row and metric.
        gains: paired gains (``Gain`` of tuning.search) by row and reference.
        drawn: what the bootstrap resamples, ``groups`` or ``cases``.

    Returns:
        Lines of text.
    """
    names = [metric, *(n for n in BESIDE if n != metric and any(n in a for a in averages.values()))]
    references = list(gains[OWN])
    titles = [f"over {reference}" for reference in references]
    columns = [display(n, {}, units) for n in names]
    lines = [
        f"{'':<40}"
        + "".join(f"{n:>14}" for n in columns)
        + "".join(f"{t + ' [95 %]':>36}{'+/-':>9}" for t in titles)
    ]
    for name, average in averages.items():
        numbers = "".join(f"{_finite(average.get(n)):>14}" for n in names)
        cells = [("-", "") if name == ref else _gain(gains[name][ref]) for ref in references]
        lines.append(
            f"{name:<40}" + numbers + "".join(f"{text:>36}{sides:>9}" for text, sides in cells)
        )
    lines.append(
        f"intervals: paired bootstrap over {drawn}, 10,000 draws; +/-: cases that are better /"
        " worse"
    )
    return "\n".join(lines)


def _gain(found: Any) -> tuple[str, str]:
    return str(found), f"{found.better}/{found.worse}"


def _finite(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
