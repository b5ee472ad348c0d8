"""Turn a run into one self-contained page, report.html: scores with intervals, curves, and the cases that went worst as pictures.

python -m pipeline.report RUN

The page needs no network and no script. What a run lacks (a failed fold, missing answers) is stated, never an error.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import cli
from pipeline.cli import say
from pipeline.records import DONE, UserError

if TYPE_CHECKING:
    import numpy as np

DRAWS = 5000
"""Bootstrap samples behind an interval."""
SMALL, LARGE = 240, 560
"""Pictures are enlarged to at least about SMALL pixels and reduced to at most LARGE."""

GREEN, SKY, ORANGE, BLUE, PURPLE = (0, 190, 130), (86, 180, 233), (240, 120, 0), (50, 120, 255), (204, 121, 167)
CLASSES = (GREEN, SKY, (240, 228, 66), PURPLE, ORANGE, BLUE)
"""Colours of label values 1, 2, ...: those of Okabe and Ito, brightened, which colour-blind readers can tell apart."""


class Safe(str):
    """Text that is HTML already; everything else is escaped on its way into the page."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was found in a run's folder. ``logs``: epochs by fold; ``gaps``: what is not there, in words."""

    folder: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    cases: Mapping[str, Any]
    logs: Mapping[int, list[dict[str, Any]]]
    gaps: list[str] = field(default_factory=list)


def parser() -> argparse.ArgumentParser:
    p = cli.parser("report", "Turn a run into one self-contained page, RUN/report.html.")
    p.add_argument("run", type=Path, metavar="RUN", help="folder that pipeline.train wrote")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), report, argv)


def report(arguments: argparse.Namespace) -> int:
    """The whole command; returns its exit code."""
    from pipeline import files

    out = arguments.run / "report.html"
    files.write_text(out, build(arguments.run))
    say(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
    return DONE


def build(run: Path) -> str:
    """The page of a run as HTML. Raises UserError where there is no summary.json, without which there is nothing to tell."""
    found = load(run)
    # The sections come first: they add to the gaps that the head lists.
    sections = [scores(found), curves(found), groups(found), distributions(found), pictures(found), origin(found)]
    title = escape(f"{found.summary.get('name', run.name)}: report")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>{STYLE}</style></head><body>\n" + headline(found) + "\n".join(sections) + "\n</body></html>\n"
    )


# --- reading a run -----------------------------------------------------------------------------------------------------


def load(folder: Path) -> Run:
    """Read what there is. Raises UserError where the folder has no summary.json."""
    from pipeline import files

    if not (folder / "summary.json").is_file():
        raise UserError(
            f"{folder}: no summary.json, so this is no run of which a fold has ended. Give the folder that pipeline.train wrote."
        )
    gaps: list[str] = []
    summary = files.read_json(folder / "summary.json")
    run = Run(
        folder=folder,
        summary=summary,
        config=_config(folder, gaps),
        cases=_json(folder / "cases.json", gaps),
        logs={f["fold"]: _log(folder / f"fold_{f['fold']}" / "log.jsonl", gaps) for f in summary.get("folds", ())},
        gaps=gaps,
    )
    planned = run.config.get("data", {}).get("folds", {}).get("count")
    absent = sorted(set(range(planned or 0)) - set(run.logs))
    gaps.extend(f"fold {n} has no result yet" for n in absent)
    gaps.extend(f"fold {f['fold']} {f['status']}: {f.get('error') or 'no reason given'}" for f in _folds(run) if f["status"] != "completed")
    if not summary.get("baselines"):
        gaps.append("no baseline scores")
    return run


def _folds(run: Run) -> list[dict[str, Any]]:
    return sorted(run.summary.get("folds", ()), key=lambda f: f["fold"])


def _config(folder: Path, gaps: list[str]) -> Mapping[str, Any]:
    from pipeline.config import read_yaml

    try:
        return read_yaml(folder / "config.yaml")
    except (UserError, OSError):
        gaps.append("config.yaml is missing or not readable")
        return {}


def _json(path: Path, gaps: list[str]) -> Mapping[str, Any]:
    from pipeline import files

    try:
        return files.read_json(path)
    except UserError:
        gaps.append(f"{path.name} is missing or not readable")
        return {}


def _log(path: Path, gaps: list[str]) -> list[dict[str, Any]]:
    """Epochs of a log.jsonl in order; a line cut short by a kill is counted and left out."""
    if not path.is_file():
        gaps.append(f"{path.parent.name}/{path.name} is missing: no curves")
        return []
    epochs: dict[int, dict[str, Any]] = {}
    torn = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            epochs[int(record["epoch"])] = record
        except (ValueError, KeyError, TypeError):
            torn += 1
    if torn:
        gaps.append(f"{path.parent.name}/{path.name}: {torn} lines are not readable and left out")
    return [epochs[n] for n in sorted(epochs)]


def metric_names(run: Run) -> list[str]:
    return list(run.summary.get("out_of_fold") or {})


def leading_metric(run: Run) -> tuple[str, int] | None:
    """The first metric that can be ranked, and 1 where higher is better, -1 where lower is; None: there is none."""
    from pipeline.config import ConfigError
    from pipeline.metrics import better

    for name in metric_names(run):
        try:
            return name, 1 if better(name) == "higher" else -1
        except ConfigError:
            continue
    return None


def values_of(run: Run, metric: str, group: str | None = None) -> list[float]:
    """Finite scores of held-out cases, of one group where it is given."""
    cases = [c for c in run.summary.get("cases", {}).values() if group is None or c.get("group") == group]
    return [float(v) for c in cases if _finite(v := c.get("metrics", {}).get(metric))]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean over cases (Efron and Tibshirani 1993, chapter 13); None for fewer than two."""
    import numpy as np

    if len(values) < 2:
        return None
    array = np.asarray(values, float)
    picks = np.random.default_rng(seed).integers(0, len(array), (DRAWS, len(array)))
    low, high = np.quantile(array[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# --- small pieces of HTML ----------------------------------------------------------------------------------------------


def escape(value: object) -> str:
    return value if isinstance(value, Safe) else html.escape(str(value))


def number(value: Any) -> str:
    """Three decimals; a dash for what is no finite number.

    >>> number(0.51234), number(None), number(7)
    ('0.512', '–', '7.000')
    """
    return f"{value:.3f}" if _finite(value) else "–"  # noqa: RUF001


def clock(seconds: Any) -> str:
    """
    >>> clock(61.2), clock(7300)
    ('1 min 01 s', '2 h 01 min')
    """
    whole = round(seconds) if _finite(seconds) else 0
    return f"{whole // 3600} h {whole % 3600 // 60:02} min" if whole >= 3600 else f"{whole // 60} min {whole % 60:02} s"


def bounds(pair: tuple[float, float] | None) -> str:
    return f"{pair[0]:.3f} … {pair[1]:.3f}" if pair else "no interval: fewer than two cases"


def table(head: Sequence[object], rows: Sequence[tuple[str, Sequence[object]]]) -> str:
    """Rows are (CSS class, cells); the first cell of a row names it."""
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{escape(cells[0])}</th>' + "".join(f"<td>{escape(c)}</td>" for c in cells[1:]) + "</tr>"
        for kind, cells in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, *parts: str, note: str = "") -> str:
    lead = f"<p>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{''.join(parts)}</section>"


# --- head and scores ---------------------------------------------------------------------------------------------------


def headline(run: Run) -> str:
    """Name, a tile for each metric, and what is missing."""
    folds = _folds(run)
    done = sum(f["status"] == "completed" for f in folds)
    seconds = sum(f.get("seconds") or 0 for f in folds)
    facts = [
        f"task {run.summary.get('task', 'unknown')}",
        f"{len(run.summary.get('cases', {}))} held-out cases",
        f"{done} of {max(len(folds), run.config.get('data', {}).get('folds', {}).get('count', 0))} folds completed",
        f"trained for {clock(seconds)}",
    ]
    gaps = "".join(f"<li>{escape(g)}</li>" for g in run.gaps)
    missing = f"<aside><strong>Not in this report</strong><ul>{gaps}</ul></aside>" if gaps else ""
    return (
        f"<header><h1>{escape(run.summary.get('name', run.folder.name))}</h1><p>{escape(' · '.join(facts))}</p>"
        f'<div class="tiles">{"".join(_tile(run, n) for n in metric_names(run))}</div>{missing}</header>\n'
    )


def _tile(run: Run, metric: str) -> str:
    mean = run.summary["out_of_fold"].get(metric)
    rivals = [f"{name} {number(row.get(metric))}" for name, row in (run.summary.get("baselines") or {}).items()]
    small = "".join(f"<small>{escape(r)}</small>" for r in rivals)
    return (
        f'<div class="tile"><span>{escape(metric)}</span><b>{number(mean)}</b>'
        f"<small>{escape(bounds(interval(values_of(run, metric))))}</small>{small}</div>"
    )


def scores(run: Run) -> str:
    """The table of folds, the out-of-fold mean with its interval, and the baselines."""
    names = metric_names(run)
    head = ["", "status", "weights", "best epoch", "epochs", "time", *names]
    rows = [row for fold in _folds(run) for row in _fold_rows(fold, names)]
    mean = run.summary.get("out_of_fold") or {}
    rows.append(("mean", ["out of fold, all cases", "", "chosen ones", "", "", "", *(_with_interval(run, n, mean.get(n)) for n in names)]))
    for name, row in (run.summary.get("baselines") or {}).items():
        rows.append(("rival", [f"baseline: {name}", "", "", "", "", "", *(number(row.get(n)) for n in names)]))
    note = (
        "Every case is scored once, by the fold that did not train on it. Brackets: 95 % bootstrap interval of the mean over cases. "
        "Cases are resampled, groups are not: with few groups the doubt about a new one is larger."
    )
    return section("Scores", table(head, rows), note=note)


def _with_interval(run: Run, metric: str, mean: Any) -> Safe:
    pair = interval(values_of(run, metric))
    return Safe(f"{number(mean)}<small>{escape(bounds(pair)) if pair else ''}</small>")


def _fold_rows(fold: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, Sequence[object]]]:
    """One row for each kind of weights of a fold, the chosen ones first."""
    chosen = fold.get("chosen", "best")
    metrics = fold.get("metrics") or {}
    status = Safe(f'<span class="badge {escape(fold["status"])}">{escape(fold["status"])}</span>')
    best, epochs = fold.get("best_epoch", -1), fold.get("epochs") or 0
    facts = [best + 1 if best >= 0 else "–", epochs, clock(fold.get("seconds"))]  # noqa: RUF001
    rows = []
    for kind in sorted(metrics or {chosen: {}}, key=lambda k: k != chosen):
        cells = [number((metrics.get(kind) or {}).get(n)) for n in names]
        first = kind == chosen
        mark = f"{kind} ✓" if first and metrics else (kind if metrics else "–")  # noqa: RUF001
        rows.append(
            (
                "" if first else "other",
                [f"fold {fold['fold']}", status, mark, *facts, *cells] if first else ["", "", mark, "", "", "", *cells],
            )
        )
    return rows


# --- charts ------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 190, 48, 10, 10, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Data to picture along one axis; ``log`` for positive data."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.stop - self.start), 1)


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Two to six round numbers within [low, high]; on a log scale powers of ten, or 1, 2, 5 of them over a short range.

    >>> ticks(0, 1), ticks(1e-4, 1e-2, log=True)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0001, 0.001, 0.01])
    """
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1,) if high / low >= 99 else (1, 2, 5)
        return [
            float(f"{f}e{p}")
            for p in powers
            for f in factors
            if low <= float(f"{f}e{p}") * (1 + 1e-9) and float(f"{f}e{p}") <= high * (1 + 1e-9)
        ]
    step = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (high - low) / s <= 5)
    return [round(n * step, 12) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _padded(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return (low / 1.3, high * 1.3) if high / low > 1.01 else (low / 4, high * 4)
    pad = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return low - pad, high + pad


def axes(x: Scale, y: Scale, whole: bool = False) -> str:
    """Grid lines and numbers. ``whole``: only whole numbers along x."""
    out = []
    for value in ticks(y.low, y.high, y.log):
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:.3g}</text>')
    for value in ticks(x.low, x.high):
        if not whole or value == int(value):
            out.append(f'<text x="{x(value)}" y="{HEIGHT - 7}" text-anchor="middle">{value:.4g}</text>')
    return "".join(out)


def chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]], log: bool = False, mark: float | None = None) -> str:
    """Lines over epochs as a figure; values that are missing or not finite are passed over. ``mark``: a dashed line at that epoch."""
    drawn = {name: [(x, y) for x, y in points if _finite(y) and (y > 0 or not log)] for name, points in series.items()}
    points = [p for line in drawn.values() for p in line]
    if not points:
        return figure(title, "", '<p class="none">no values</p>')
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    x = Scale(low=low - 0.5 * (low == high), high=high + 0.5 * (low == high), start=LEFT, stop=WIDTH - RIGHT)
    bottom, top = _padded([y for _, y in points], log)
    y = Scale(low=bottom, high=top, start=HEIGHT - BOTTOM, stop=TOP, log=log)
    body = axes(x, y, whole=True)
    if mark is not None and low <= mark <= high:
        body += f'<line class="mark" x1="{x(mark)}" x2="{x(mark)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    keys = ""
    for n, (name, line) in enumerate(drawn.items()):
        path = " ".join(f"{x(a)},{y(b)}" for a, b in line)
        dots = "".join(f'<circle class="c{n}" cx="{x(a)}" cy="{y(b)}" r="2.5"/>' for a, b in line) if len(line) < 12 else ""
        body += f'<polyline class="c{n}" points="{path}"/>{dots}' if line else ""
        keys += f'<span class="key c{n}">{escape(name)}</span>' if line else f'<span class="key">{escape(name)}: no values</span>'
    return figure(title, keys, svg(body, title))


def svg(body: str, label: str, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{body}</svg>'


def figure(title: str, keys: str, body: str) -> str:
    return f"<figure><figcaption><b>{escape(title)}</b>{keys}</figcaption>{body}</figure>"


def curves(run: Run) -> str:
    """Loss, validation metrics and learning rate of each fold."""
    if not any(run.logs.values()):
        return section("Curves", note="No fold left a log.")
    rows = []
    for fold in _folds(run):
        log = run.logs.get(fold["fold"], [])
        if not log:
            rows.append(f"<h3>fold {fold['fold']}</h3><p>No log.</p>")
            continue
        best = fold.get("best_epoch", -1)
        mark = best + 1 if best >= 0 else None
        watched = sorted({k for r in log for k in r if k.startswith("val_") and k != "val_loss"})[:4]
        charts = (
            chart("loss", {"train": _line(log, "train_loss"), "validation": _line(log, "val_loss")}, mark=mark),
            chart("validation", {k.removeprefix("val_"): _line(log, k) for k in watched}, mark=mark),
            chart("learning rate", {"learning rate": _line(log, "lr")}, log=True, mark=mark),
        )
        rows.append(f'<h3>fold {fold["fold"]}</h3><div class="row">{"".join(charts)}</div>')
    note = f"Epochs along x. Dashed: the best epoch by {run.summary.get('monitor', 'the monitored value')}. Learning rates on a log scale."
    return section("Curves", *rows, note=note)


def _line(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(record["epoch"] + 1, record[key]) for record in log if key in record]


def groups(run: Run) -> str:
    """Scores by group, as a table and as dots; nothing where cases have no groups."""
    names = sorted({str(c["group"]) for c in run.summary.get("cases", {}).values() if c.get("group") is not None})
    if not names:
        return ""
    metrics = metric_names(run)
    rows = []
    for name in names:
        found = [values_of(run, m, name) for m in metrics]
        cells = [Safe(f"{number(_mean(v))}<small>{escape(bounds(interval(v)))}</small>") for v in found]
        rows.append(("", [name, sum(c.get("group") == name for c in run.summary["cases"].values()), *cells]))
    lead = leading_metric(run)
    dots = _group_dots(run, names, lead[0]) if lead else ""
    return section("Groups", table(["group", "cases", *metrics], rows), dots)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _group_dots(run: Run, names: Sequence[str], metric: str) -> str:
    """One line of dots for each group, a dot a case, with a bar at the mean."""
    every = values_of(run, metric)
    if not every:
        return ""
    low, high = _padded(every, log=False)
    x, height = Scale(low=low, high=high, start=90, stop=WIDTH - RIGHT), 24 * len(names) + 26
    body = "".join(f'<text x="{x(t)}" y="{height - 6}" text-anchor="middle">{t:.4g}</text>' for t in ticks(low, high))
    for n, name in enumerate(names):
        y, values = 18 + 24 * n, values_of(run, metric, name)
        body += f'<text x="82" y="{y + 4}" text-anchor="end">{escape(name)}</text><line class="grid" x1="90" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        body += "".join(f'<circle class="dot" cx="{x(v)}" cy="{y}" r="4"><title>{v:.3f}</title></circle>' for v in values)
        body += f'<line class="mean" x1="{x(m)}" x2="{x(m)}" y1="{y - 9}" y2="{y + 9}"/>' if (m := _mean(values)) is not None else ""
    return f'<div class="row">{figure(f"{metric} by group", "", svg(body, metric, height))}</div>'


def distributions(run: Run) -> str:
    """A histogram of case scores for each metric."""
    figures = [histogram(name, values_of(run, name)) for name in metric_names(run)]
    if not figures:
        return section("Case scores", note="No case has a score.")
    return section("Case scores", f'<div class="row">{"".join(figures)}</div>', note="Held-out cases. Line: mean; band: its 95 % interval.")


def histogram(title: str, values: Sequence[float]) -> str:
    """Bars of counts, with the mean and its interval."""
    import numpy as np

    if not values:
        return figure(title, "", '<p class="none">no values</p>')
    low, high = _padded(values, log=False)
    counts, edges = np.histogram(values, bins=min(24, max(6, round(2 * math.sqrt(len(values))))), range=(low, high))
    x = Scale(low=low, high=high, start=LEFT, stop=WIDTH - RIGHT)
    y = Scale(low=0, high=float(counts.max()) * 1.05, start=HEIGHT - BOTTOM, stop=TOP)
    body = axes(x, y)
    if pair := interval(values):
        body += f'<rect class="band" x="{x(pair[0])}" y="{TOP}" width="{max(x(pair[1]) - x(pair[0]), 0):.1f}" height="{HEIGHT - BOTTOM - TOP}"/>'
    for count, a, b in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        label = f"{a:.3f} to {b:.3f}: {count}"
        bar = f'x="{x(a) + 1:.1f}" y="{y(count)}" width="{max(x(b) - x(a) - 2, 1):.1f}" height="{y(0) - y(count):.1f}"'
        body += f'<rect class="bar" {bar}><title>{label}</title></rect>' if count else ""
    mean = x(sum(values) / len(values))
    body += f'<line class="mean" x1="{mean}" x2="{mean}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    return figure(title, f'<span class="key">{len(values)} cases</span>', svg(body, f"distribution of {title}"))


# --- pictures ----------------------------------------------------------------------------------------------------------


def pictures(run: Run) -> str:
    """The worst cases, the median and the best: image, truth, answer, errors."""
    lead = leading_metric(run)
    if lead is None:
        return section("Cases in pictures", note="No metric by which cases could be ranked.")
    ranked = rank(run, *lead)
    if not ranked:
        return section("Cases in pictures", note=f"No case has a finite {lead[0]}.")
    cards = [_card(run, label, name) for label, name in pick(ranked)]
    note = f"Ranked by {lead[0]}. Volumes are shown in the slice of each axis that holds most foreground of the truth."
    return section("Cases in pictures", _legend(run), *cards, note=note)


def rank(run: Run, metric: str, sign: int) -> list[str]:
    """Case ids from worst to best; cases without a finite score are left out."""
    cases = run.summary.get("cases", {})
    return sorted(
        (i for i in cases if _finite(cases[i].get("metrics", {}).get(metric))), key=lambda i: (sign * cases[i]["metrics"][metric], i)
    )


def pick(ranked: Sequence[str]) -> list[tuple[str, str]]:
    """(label, id): the worst few, the median, the best; each case once.

    >>> pick(["a", "b"]), [label for label, _ in pick("abcdefgh")]
    ([('worst', 'a'), ('best', 'b')], ['worst', '2nd worst', '3rd worst', '4th worst', 'median', 'best'])
    """
    labels: dict[str, str] = {}
    for name, label in zip(ranked[:-1], ("worst", "2nd worst", "3rd worst", "4th worst"), strict=False):
        labels[name] = label
    labels.setdefault(ranked[len(ranked) // 2], "median")
    labels[ranked[-1]] = "best"
    return [(label, name) for name, label in labels.items()]


def _legend(run: Run) -> str:
    if run.summary.get("task") == "image":
        return ""
    parts = [("truth", GREEN), ("answer", SKY), ("false positive", ORANGE), ("false negative", BLUE)]
    parts += [("wrong class", PURPLE)] if _classes(run) > 2 else []
    swatches = "".join(f'<span><i style="background:rgb{c}"></i>{escape(n)}</span>' for n, c in parts)
    ignored = '<span><i class="hatch"></i>ignored</span>' if _ignore(run) is not None else ""
    return f'<p class="legend">{swatches}<span><i style="background:#ddd"></i>found</span>{ignored}</p>'


def _classes(run: Run) -> int:
    return run.config.get("data", {}).get("classes") or 2


def _ignore(run: Run) -> int | None:
    return run.config.get("data", {}).get("ignore_label")


def _card(run: Run, label: str, name: str) -> str:
    case = run.summary["cases"][name]
    facts = [f"fold {case.get('fold')}", *([f"group {case['group']}"] if case.get("group") is not None else [])]
    facts += [f"{k} {number(v)}" for k, v in case.get("metrics", {}).items()]
    head = f'<h3><span class="badge">{escape(label)}</span> {escape(name)}</h3><p>{escape(" · ".join(facts))}</p>'
    try:
        image, truth, answer = _arrays(run, name)
    except (UserError, OSError, KeyError) as error:
        reason = f"no entry {error} in cases.json" if isinstance(error, KeyError) else str(error)
        run.gaps.append(f"no pictures of case {name}: {reason}")
        return f'<article>{head}<p class="none">No pictures: {escape(reason)}</p></article>'
    panels = image_panels if run.summary.get("task") == "image" else label_panels
    rows = [_strip(where, panels(run, *planes)) for where, planes in slices(image, truth, answer, _ignore(run))]
    return f"<article>{head}{''.join(rows)}</article>"


def _strip(where: str, panels: Sequence[tuple[str, np.ndarray]]) -> str:
    cells = "".join(
        f'<figure><img alt="{escape(f"{title}, {where}")}" src="{png(array)}"><figcaption>{escape(title)}</figcaption></figure>'
        for title, array in panels
    )
    return f'<div class="strip"><span>{escape(where)}</span>{cells}</div>'


def _arrays(run: Run, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ``(C, *S)``, truth and answer. Raises UserError or KeyError for what is not there or does not fit."""
    from pipeline import files

    entry, fold = run.cases[name], run.summary["cases"][name].get("fold")
    oof = run.folder / f"fold_{fold}" / "oof"
    found = [p for p in sorted(oof.glob("*")) if p.is_file() and files.is_image(p) and files.stem(p) == name]
    if not found:
        raise UserError(f"fold_{fold}/oof holds no answer")
    targets = entry["targets"]
    target = Path(next((targets[k] for k in ("label", "target") if k in targets), next(iter(targets.values()))))
    dims = run.config.get("data", {}).get("dims") or files.dims_of(target)
    labels = run.summary.get("task") != "image"
    image = files.read(Path(entry["image"][0]), dims)[0]
    truth, answer = files.read(target, dims, labels)[0], files.read(found[0], dims, labels)[0]
    if truth.shape[1:] != answer.shape[1:] or image.shape[1:] != answer.shape[1:]:
        raise UserError(f"image {image.shape[1:]}, truth {truth.shape[1:]} and answer {answer.shape[1:]} differ in shape")
    return image, truth, answer


def slices(
    image: np.ndarray, truth: np.ndarray, answer: np.ndarray, ignore: int | None
) -> list[tuple[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Planes ``(C, Y, X)`` of all three arrays: an image as it is, a volume along each axis where the truth has most foreground."""
    if truth.ndim == 3:
        return [("", (image, truth, answer))]
    foreground = (truth[0] != 0) & (truth[0] != (ignore if ignore is not None else 0))
    planes = []
    for axis in range(3):
        counts = foreground.sum(axis=tuple(a for a in range(3) if a != axis))
        index = int(counts.argmax()) if counts.max() > 0 and counts.min() < counts.max() else len(counts) // 2
        planes.append((f"axis {axis}, slice {index + 1} of {len(counts)}", tuple(a.take(index, axis + 1) for a in (image, truth, answer))))
    return planes


def label_panels(run: Run, image: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Image, truth over it, answer over it, and the errors, each ``(Y, X, 3)`` in 0 ... 1."""
    import numpy as np

    grey = window(image)
    factor = _enlargement(truth.shape[1:])
    # Enlarged before they are coloured, so that the hatching keeps its width.
    grey, truth, answer = (np.repeat(np.repeat(a, factor, 0), factor, 1) for a in (grey, truth[0], answer[0]))
    ignored = truth == _ignore(run) if _ignore(run) is not None else np.zeros(truth.shape, bool)
    if _classes(run) == 2:
        truth, answer = truth != 0, answer != 0
    real, said = (np.where(ignored, 0, a).astype(int) for a in (truth, answer))
    errors = 0.5 * grey
    for where, colour in (
        ((real == said) & (real != 0), (225, 225, 225)),
        ((said != 0) & (real == 0), ORANGE),
        ((said == 0) & (real != 0), BLUE),
        ((said != real) & (said != 0) & (real != 0), PURPLE),
    ):
        errors = tint(errors, where, colour, 0.85)
    return [
        ("image", grey),
        ("truth", hatch(classes(grey, real, CLASSES), ignored)),
        ("answer", classes(grey, answer.astype(int), (SKY, *CLASSES[1:]) if _classes(run) == 2 else CLASSES)),
        ("errors", hatch(errors, ignored)),
    ]


def image_panels(run: Run, image: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Input, target, prediction on one scale, and their absolute difference with the scale that its title names."""
    import numpy as np

    full = _full_scale(truth)
    shown = [np.clip(_colours(a.astype(float)) / _full_scale(a), 0, 1) for a in (image, truth, answer)]
    error = np.abs(truth.astype(float) - answer.astype(float)).mean(axis=0) / full
    top = max(float(np.quantile(error, 0.995)), 1e-6)
    heat = np.clip(error / top, 0, 1)
    shown.append(np.stack([heat**0.5, heat, heat**3], axis=-1))  # black, orange, white
    factor = _enlargement(truth.shape[1:])
    titles = ("input", "target", "prediction", f"|difference|, white = {top:.3f} of full scale")
    return [(t, np.repeat(np.repeat(a, factor, 0), factor, 1)) for t, a in zip(titles, shown, strict=True)]


def _full_scale(array: np.ndarray) -> float:
    import numpy as np

    return float(np.iinfo(array.dtype).max) if array.dtype.kind in "iu" else max(1.0, float(array.max()))


def _enlargement(shape: Sequence[int]) -> int:
    return max(1, round(SMALL / max(shape)))


def _colours(plane: np.ndarray) -> np.ndarray:
    """``(C, Y, X)`` as ``(Y, X, 3)``: three channels as colours, otherwise the first as grey."""
    import numpy as np

    return np.moveaxis(plane if len(plane) == 3 else np.repeat(plane[:1], 3, axis=0), 0, -1)


def window(plane: np.ndarray) -> np.ndarray:
    """A plane ``(C, Y, X)`` as ``(Y, X, 3)`` in 0 ... 1, stretched between its 0.5 and 99.5 percentiles."""
    import numpy as np

    values = np.nan_to_num(_colours(plane.astype(float)))
    low, high = np.percentile(values, [0.5, 99.5])
    return np.clip((values - low) / (high - low if high > low else 1), 0, 1)


def tint(picture: np.ndarray, where: np.ndarray, colour: Sequence[int], strength: float) -> np.ndarray:
    import numpy as np

    return np.where(where[..., None], (1 - strength) * picture + strength * np.asarray(colour) / 255, picture)


def classes(picture: np.ndarray, labels: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """``picture`` with each label above 0 tinted in its own colour; colours repeat after the last."""
    for n, colour in enumerate(colours):
        picture = tint(picture, (labels > 0) & ((labels - 1) % len(colours) == n), colour, 0.6)
    return picture


def hatch(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """``picture`` greyed under diagonal lines."""
    import numpy as np

    lines = where & (np.indices(where.shape).sum(axis=0) % 8 < 2)
    return tint(tint(picture, where, (110, 110, 110), 0.55), lines, (190, 190, 190), 0.6)


def png(picture: np.ndarray) -> str:
    """``(Y, X, 3)`` in 0 ... 1 as a data URL, reduced to LARGE pixels along its longer side."""
    import numpy as np
    from PIL import Image

    image = Image.fromarray(np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8))
    if max(image.size) > LARGE:
        scale = LARGE / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# --- where it comes from -----------------------------------------------------------------------------------------------


def origin(run: Run) -> str:
    """The resolved config and the environment, folded away."""
    parts = []
    for title, name in (("Resolved config", "config.yaml"), ("Environment", "environment.json"), ("Splits", "splits.json")):
        path = run.folder / name
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "not in the run's folder"
        parts.append(f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>")
    return section("Origin", *parts)


STYLE = """
:root{color-scheme:light dark;--bg:#f6f5f2;--card:#fff;--ink:#1d2126;--soft:#666d75;--line:#e2e0da;--c0:#0a6c9f;--c1:#d0570a;--c2:#0d8f68;--c3:#9c4f86;
--band:#0a6c9f22;--good:#0d7f5c;--bad:#b3261e;--warn:#8f5b00}
@media(prefers-color-scheme:dark){:root{--bg:#15181c;--card:#1e2227;--ink:#e7e9eb;--soft:#9aa3ac;--line:#343a41;--c0:#5cb8ea;--c1:#f79a4b;--c2:#47cfa3;--c3:#dc94c4;
--band:#5cb8ea2e;--good:#4fd1a2;--bad:#ff8a80;--warn:#f0bd5b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:2rem 1.25rem 4rem;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:2rem;line-height:1.15;margin:0;letter-spacing:-.02em}h2{font-size:1.25rem;margin:0 0 .4rem}h3{font-size:1rem;margin:1rem 0 .25rem}
p{margin:.2rem 0 .8rem;color:var(--soft);max-width:85ch}header{margin-bottom:2rem}section{margin:0 0 2.5rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:.75rem}
.tile,.wide,figure,article,aside,details{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:.8rem 1rem}.tile span{color:var(--soft)}.tile b{display:block;font-size:1.9rem;line-height:1.2;font-variant-numeric:tabular-nums}
small{display:block;color:var(--soft);font-size:.8rem;font-variant-numeric:tabular-nums}
aside{margin-top:1rem;padding:.7rem 1rem;border-left:4px solid var(--warn)}aside ul{margin:.2rem 0 0;padding-left:1.2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.45rem .8rem;text-align:right;vertical-align:top;white-space:nowrap}th:first-child{text-align:left}thead th{color:var(--soft);font-weight:500;border-bottom:1px solid var(--line)}
tbody th{font-weight:500}tbody tr+tr{border-top:1px solid var(--line)}tr.other{border-top:0!important;color:var(--soft)}tr.mean{background:var(--band)}tr.mean td,tr.mean th{font-weight:700}
tr.mean small{font-weight:400}tr.rival{color:var(--soft)}
.badge{display:inline-block;padding:0 .55em;border-radius:99px;font-size:.85em;font-weight:500;border:1px solid currentColor;color:var(--soft)}
.badge.completed{color:var(--good)}.badge.failed{color:var(--bad)}.badge.stopped{color:var(--warn)}
.row{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:.75rem}
figure{margin:0;padding:.7rem .8rem .3rem}figcaption{display:flex;flex-wrap:wrap;gap:.2rem .9rem;align-items:baseline}
.key{color:var(--soft);font-size:.85rem}.key[class*=" c"]:before{content:"";display:inline-block;width:1.1em;height:3px;margin-right:.4em;vertical-align:middle;background:var(--k)}
.c0{--k:var(--c0)}.c1{--k:var(--c1)}.c2{--k:var(--c2)}.c3{--k:var(--c3)}
svg{display:block;width:100%;height:auto}svg text{font-size:11px;fill:var(--soft)}.grid{stroke:var(--line)}.mark{stroke:var(--soft);stroke-dasharray:4 4}
polyline{fill:none;stroke:var(--k);stroke-width:2;stroke-linejoin:round}circle{fill:var(--k)}.dot{fill:var(--c0);fill-opacity:.55}.bar{fill:var(--c0);fill-opacity:.75}
.band{fill:var(--band)}.mean{stroke:var(--c1);stroke-width:2}.none{padding:1.5rem 0;color:var(--soft)}
article{padding:1rem 1.1rem;margin-top:1rem}article h3{margin-top:0}.strip{display:grid;grid-template-columns:repeat(4,1fr);gap:.5rem;margin-bottom:.5rem}
.strip>span{grid-column:1/-1;color:var(--soft);font-size:.85rem}.strip figure{border:0;padding:0}.strip img{display:block;width:100%;border-radius:4px;image-rendering:pixelated}
.strip figcaption{font-size:.8rem;color:var(--soft)}.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem}.legend i{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin-right:.4em;vertical-align:-.1em}
.hatch{background:repeating-linear-gradient(135deg,#999 0 2px,#666 2px 5px)}details{margin-top:.6rem;padding:.6rem 1rem}summary{cursor:pointer;font-weight:500}
pre{overflow-x:auto;font-size:.82rem;line-height:1.4}
@media(max-width:640px){.strip{grid-template-columns:repeat(2,1fr)}}
"""
"""Both schemes of colours; system fonts, so that nothing is fetched."""


if __name__ == "__main__":
    raise SystemExit(main())
