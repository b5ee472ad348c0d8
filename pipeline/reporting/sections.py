"""Sections of the page as HTML; a section without content is empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import files
from pipeline.metrics.frames import SUFFIXES
from pipeline.metrics.names import of_class
from pipeline.records import ALL
from pipeline.reporting.charts import chart, dots, histogram
from pipeline.reporting.html_tables import table
from pipeline.reporting.page import DASH, Safe, clock, escape, number, section
from pipeline.reporting.pictures import class_cell
from pipeline.reporting.runs import (
    Run,
    class_metrics,
    folds_of,
    leading_metric,
    main_metrics,
    mean_of,
    metric_names,
    named,
    option,
    values_of,
)
from pipeline.scoring.bootstrap import interval

TRUE = "_true"
"""End of the name of what a metric would be of the truth itself, such as ``components_true``."""


def headline(run: Run) -> str:
    """Name of the run, a tile for each metric, and what is missing.

    Args:
        run: what was found of a run.

    Returns:
        HTML.
    """
    folds = folds_of(run)
    done = sum(f["status"] == "completed" for f in folds)
    facts = [
        f"task {run.summary.get('task', 'unknown')}",
        f"{len(run.scored)} held-out cases",
        f"{done} of {max(len(folds), option(run, 'data', 'folds', 'count') or 0)} folds completed",
        f"trained for {clock(sum(f.get('seconds') or 0 for f in folds))}",
        *_all_cases(run),
    ]
    gaps = "".join(f"<li>{escape(g)}</li>" for g in run.gaps)
    missing = f"<aside><strong>Not in this report</strong><ul>{gaps}</ul></aside>" if gaps else ""
    tiles = "".join(_tile(run, name) for name in _without_truth(main_metrics(run)))
    return (
        f"<header><h1>{escape(run.summary.get('name', run.folder.path.name))}</h1>"
        f"<p>{escape(' · '.join(facts))}</p>"
        f'<div class="tiles">{tiles}</div>{missing}</header>\n'
    )


def _all_cases(run: Run) -> list[str]:
    """What is said of the model of all cases, where there is one."""
    every = run.summary.get("all_cases")
    if not every:
        return []
    spent = f", {clock(every['seconds'])}" if every.get("seconds") else ""
    return [f"one model of all cases: {every['status']}, not scored{spent}"]


def _without_truth(names: Sequence[str]) -> list[str]:
    """Metrics without what others would be of the truth, which their tiles say."""
    return [n for n in names if n.removesuffix(TRUE) == n or n.removesuffix(TRUE) not in names]


def _tile(run: Run, metric: str) -> str:
    """A metric's out-of-fold mean with its interval, above the truth's and the baselines'."""
    truth = run.summary["out_of_fold"].get(metric + TRUE)
    rows = {**({} if truth is None else {"the truth": {metric: truth}}), **run.baselines}
    rivals = "".join(
        f"<small>{escape(name)}: {number(row.get(metric))}</small>" for name, row in rows.items()
    )
    mean = _with_interval(run.summary["out_of_fold"].get(metric), values_of(run, metric), tag="b")
    return f'<div class="tile"><span>{escape(named(run, metric))}</span>{mean}{rivals}</div>'


def _with_interval(mean: Any, values: Sequence[float], tag: str = "span") -> Safe:
    """A mean above the bootstrap interval of the values."""
    pair = interval(values)
    return Safe(
        f"<{tag}>{number(mean)}</{tag}>"
        f"<small>{f'{pair[0]:.3f} … {pair[1]:.3f}' if pair else 'no interval'}</small>"
    )


def scores(run: Run) -> str:
    """The table of folds, the out-of-fold mean with its interval, and the baselines.

    Args:
        run: what was found of a run.

    Returns:
        HTML.
    """
    names = _without_truth(main_metrics(run))
    rows = [row for fold in folds_of(run) for row in _fold_rows(fold, names)]
    mean = run.summary.get("out_of_fold") or {}
    rows.append(
        (
            "mean",
            [
                "out of fold: all cases, chosen weights",
                *(_with_interval(mean.get(n), values_of(run, n)) for n in names),
            ],
        )
    )
    if "pooled" in run.summary:
        rows.append(
            (
                "other",
                [
                    "out of fold: all pixels pooled",
                    *(number(run.summary["pooled"].get(n)) for n in names),
                ],
            )
        )
    for name, row in run.baselines.items():
        rows.append(("rival", [f"baseline: {name}", *(number(row.get(n)) for n in names)]))
    note = (
        "Every case is scored once, by the fold that did not train on it. Below a mean: its 95 %"
        " bootstrap interval over cases. Cases are resampled, groups are not: with few groups the"
        " doubt about a new one is larger. ✓ marks the weights chosen."
    )
    return section(
        "Scores",
        table(["", "weights", "best epoch", "time", *(named(run, n) for n in names)], rows),
        note=note,
    )


def classes(run: Run) -> str:
    """A table for each metric with a row per class, where there are too many for the main table.

    Args:
        run: what was found of a run.

    Returns:
        HTML, empty where the main table holds all metrics.
    """
    found = class_metrics(run)
    if not found:
        return ""
    folds = [
        (f"fold {f['fold']}", (f.get("metrics") or {}).get(f.get("chosen", "best")) or {})
        for f in folds_of(run)
    ]
    others = folds + [(f"baseline: {name}", row) for name, row in run.baselines.items()]
    means, parts = run.summary.get("out_of_fold") or {}, []
    for metric, keys in found.items():
        rows = [
            (
                "",
                [
                    class_cell(run, n),
                    _with_interval(means.get(k), values_of(run, k)),
                    *(number(row.get(k)) for _, row in others),
                ],
            )
            for n, k in sorted(keys.items())
        ]
        parts += [
            f"<h3>{escape(named(run, metric))}</h3>",
            table(["class", "out of fold", *(name for name, _ in others)], rows),
        ]
    return section(
        "Classes",
        *parts,
        note=(
            "The chosen weights of each fold. Below a mean: its 95 % bootstrap interval over cases."
        ),
    )


def frames(run: Run) -> str:
    """Scores inside the field of view, over the full image and over the padded image.

    The predictions are the same in all of them.

    Args:
        run: what was found of a run.

    Returns:
        HTML, empty without a field of view.
    """
    means = run.summary.get("out_of_fold") or {}
    found = [f for f in SUFFIXES if any(n.endswith(f) for n in means)]
    if not found:
        return ""
    names = [n.removesuffix(found[0]) for n in means if n.endswith(found[0])]
    sources = {"mean of images": means, "all pixels pooled": run.summary.get("pooled") or {}}
    sources |= {f"baseline: {name}": row for name, row in run.baselines.items()}
    rows = [
        (
            "rival" if name.startswith("baseline") else "",
            [name, frame[1:], *(number(row.get(n + frame)) for n in names)],
        )
        for name, row in sources.items()
        for frame in found
        if row
    ]
    note = (
        "fov: inside the field of view, the one to compare; full: the whole image; padded: the"
        " image with background added. Background outside the object raises accuracy and"
        f" specificity without any better answer. {run.summary.get('decision', '')}"
    )
    return section("Frames", table(["", "frame", *(named(run, n) for n in names)], rows), note=note)


def _fold_rows(fold: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, Sequence[object]]]:
    """One row for each kind of weights of a fold, the chosen ones first.

    A single row where the fold left no scores.
    """
    chosen, metrics = fold.get("chosen", "best"), fold.get("metrics") or {}
    name = Safe(
        f"fold {escape(fold['fold'])}"
        f' <span class="badge {escape(fold["status"])}">{escape(fold["status"])}</span>'
    )
    again = Safe(f'<span class="again">fold {escape(fold["fold"])}</span>')
    best = fold.get("best_epoch", -1)
    facts = [
        f"{best + 1} of {fold.get('epochs')}" if best >= 0 else DASH,
        clock(fold.get("seconds")),
    ]
    if not metrics:
        return [("", [name, DASH, *facts, *(DASH for _ in names)])]
    rows: list[tuple[str, Sequence[object]]] = []
    for kind in sorted(metrics, key=lambda k: k != chosen):
        values = [number((metrics[kind] or {}).get(n)) for n in names]
        rows.append(
            ("", [name, f"{kind} ✓", *facts, *values])
            if kind == chosen
            else ("other", [again, kind, DASH, DASH, *values])
        )
    return rows


def tuned(run: Run) -> str:
    """The rows that pipeline.tune compared: mean, paired gains with their intervals, steps.

    Args:
        run: what was found of a run; a result that cannot be read is added to its gaps.

    Returns:
        HTML, empty where pipeline.tune did not run.
    """
    try:
        result = run.folder.tuned()
        if result is None:
            return ""
        metric, references = result["metric"]["name"], list(result["rows"][0]["gains"])
        rows = [("", _tuned_row(row, metric, references)) for row in result["rows"]]
    except (files.FileError, LookupError) as error:
        problem = error.problem if isinstance(error, files.FileError) else f"its rows lack {error}"
        run.gaps.append(f"tuning/result.json cannot be read ({problem}); run pipeline.tune again")
        return ""
    note = (
        "Post-processing of the same out-of-fold probabilities. Nested: each case is answered with"
        " the steps that were chosen without its group (or fold). Gains are paired over cases, with"
        " 95 % bootstrap intervals."
    )
    return section(
        "Post-processing",
        table(["", named(run, metric), *(f"over {r}" for r in references), "steps"], rows),
        note=note,
    )


def _tuned_row(row: Mapping[str, Any], metric: str, references: Sequence[str]) -> list[object]:
    """Cells of one row of tuning: name, mean, gains by reference, steps."""
    gains = [row["gains"][r] for r in references]
    cells = [
        DASH
        if row["name"] == r
        else Safe(f"{g['mean']:+.4f}<small>{g['low']:+.4f} … {g['high']:+.4f}</small>")
        for r, g in zip(references, gains, strict=True)
    ]
    steps = "; ".join(
        f"without {part}: {c['text']}" if part != "all" else c["text"]
        for part, c in row["chosen"].items()
    )
    return [row["name"], number(row["mean"].get(metric)), *cells, steps]


def curves(run: Run) -> str:
    """Loss, validation metrics and learning rate of each fold.

    Args:
        run: what was found of a run.

    Returns:
        HTML.
    """
    if not any(run.logs.values()):
        return section("Curves", note="No fold left a log.")
    rows = []
    every = [{"fold": ALL}] if "all_cases" in run.summary else []
    for fold in [*folds_of(run), *every]:
        log = run.logs.get(fold["fold"], [])
        if not log:
            rows.append(f"<h3>fold {fold['fold']}</h3><p>No log.</p>")
            continue
        best = fold.get("best_epoch", -1)
        mark = best + 1 if best >= 0 else None
        watched = sorted(
            dict.fromkeys(k for r in log for k in r if k.startswith("val_") and k != "val_loss"),
            key=_is_of_class,
        )[:4]
        charts = (
            chart(
                "loss",
                {"train": _line(log, "train_loss"), "validation": _line(log, "val_loss")},
                mark=mark,
            ),
            chart(
                "validation",
                {named(run, k.removeprefix("val_")): _line(log, k) for k in watched},
                mark=mark,
            ),
            chart("learning rate", {"learning rate": _line(log, "lr")}, log=True, mark=mark),
        )
        rows.append(f'<h3>fold {fold["fold"]}</h3><div class="row">{"".join(charts)}</div>')
    monitor = named(run, run.summary.get("monitor", "the monitored value"))
    note = f"Epochs along x. Dashed: the best epoch by {monitor}. Learning rates on a log scale."
    return section("Curves", *rows, note=note)


def _is_of_class(key: str) -> bool:
    return of_class(key) is not None


def _line(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Points (epoch from 1, value) of a key of the log."""
    return [(record["epoch"] + 1, record[key]) for record in log if key in record]


def groups(run: Run) -> str:
    """Scores by group, as a table and as dots.

    Args:
        run: what was found of a run.

    Returns:
        HTML, empty where cases have no groups.
    """
    names = sorted({str(c["group"]) for c in run.scored.values() if c.get("group") is not None})
    if not names:
        return ""
    metrics, rows = main_metrics(run), []
    for name in names:
        found = [values_of(run, m, name) for m in metrics]
        count = sum(str(c.get("group")) == name for c in run.scored.values())
        rows.append(("", [name, count, *(_with_interval(mean_of(v), v) for v in found)]))
    lead = leading_metric(run)
    picture = (
        dots(
            f"{named(run, lead[0])} by group",
            {name: values_of(run, lead[0], name) for name in names},
        )
        if lead
        else ""
    )
    return section(
        "Groups",
        table(["group", "cases", *(named(run, m) for m in metrics)], rows),
        f'<div class="row">{picture}</div>',
    )


def distributions(run: Run) -> str:
    """A histogram of case scores for each metric; those of many classes are folded away.

    Args:
        run: what was found of a run.

    Returns:
        HTML.
    """
    main = main_metrics(run)
    figures = _histograms(run, main)
    if not figures:
        return section("Case scores", note="No case has a score.")
    rest = _histograms(run, [n for n in metric_names(run) if n not in main])
    more = f"<details><summary>Metrics of single classes</summary>{rest}</details>" if rest else ""
    return section(
        "Case scores", figures, more, note="Held-out cases. Line: mean; band: its 95 % interval."
    )


def _histograms(run: Run, names: Sequence[str]) -> str:
    """Histograms of those metrics that have values."""
    figures = [
        histogram(named(run, n), values, interval(values))
        for n in names
        for values in [values_of(run, n)]
    ]
    return f'<div class="row">{"".join(figures)}</div>' if figures else ""


def origin(run: Run) -> str:
    """The config file, the environment and the splits, folded away.

    Args:
        run: what was found of a run.

    Returns:
        HTML.
    """
    parts, folder = [], run.folder
    for title, path in (
        ("Resolved config", folder.config_file),
        ("Environment", folder.environment_file),
        ("Splits", folder.splits_file),
    ):
        text = (
            path.read_text(encoding="utf-8", errors="replace")
            if path.is_file()
            else "not in the run's folder"
        )
        parts.append(f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>")
    return section("Origin", *parts)
