"""Pictures to put beside results: a run at a glance, and strips of held-out cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import colours, files
from pipeline.colours import Colour
from pipeline.records import UserError
from pipeline.reporting.canvas import INK, LINE, SOFT, Canvas, shortened, text_width
from pipeline.reporting.charts import Scale, padded, ticks
from pipeline.reporting.page import finite, number
from pipeline.reporting.pictures import (
    Shown,
    case_arrays,
    full_scale,
    image_panels,
    legend_parts,
    panels,
    rank,
    slices,
)
from pipeline.reporting.runs import Run, leading_metric, load, named, option
from pipeline.runs import RunFolder

WIDTH, EDGE, GAP = 1200, 36, 18
"""Width of a picture, its margin, and the space between panels, in pixels."""

LARGE, MIDDLE, SMALL = 32, 28, 24
"""Sizes of text: read at a third of the width, on a phone."""

TRAIN, VALIDATION = (208, 87, 10), (10, 108, 159)
"""Colours of curves."""

IGNORED = (140, 140, 140)
"""Colour of the hatched part of pictures in the legend."""

Panels = list[tuple[str, np.ndarray]]


# --- a run at a glance ----------------------------------------------------------------------------


def summary_picture(run: RunFolder, out: Path, case: str | None = None) -> Path:
    """Draw one held-out case and the learning curves of all folds.

    Image, truth, prediction and errors of one slice; below them loss and the first validation
    metric by epoch, a line for each fold.

    Args:
        run: a run folder of which a fold has ended.
        out: PNG file to write, 1200 pixels wide.
        case: id of a held-out case; None: the one of median score.

    Returns:
        The file.

    Raises:
        UserError: where the run has no such case, or its files are gone.
    """
    found = load(run.path)
    name = case or _typical(found, 1)[0]
    shown = _arrays(found, name)
    shown_panels = panels(found, shown[0])
    side = (WIDTH - 2 * EDGE - 3 * GAP) // 4
    tall = max(_size(picture, side)[1] for _, picture in shown_panels)
    top = EDGE + LARGE + 26
    legend_at = top + MIDDLE + 12 + tall + 44
    chart_at = legend_at + 36
    canvas = Canvas(WIDTH, chart_at + CHART + EDGE)
    head = f"{found.summary.get('name', run.path.name)}: {_caption(found, name)}"
    canvas.text((EDGE, EDGE + LARGE - 6), shortened(head, LARGE, WIDTH - 2 * EDGE), LARGE)
    _row(canvas, shown_panels, top, side, titles=True)
    _legend(canvas, found, legend_at)
    room = (WIDTH - 2 * EDGE - GAP) / 2
    for n, (title, lines) in enumerate(_curves(found)):
        _chart(canvas, (EDGE + n * (room + GAP), chart_at), room, title, lines)
    return canvas.save(out)


def _arrays(run: Run, name: str) -> list[Shown]:
    """What there is to show of a case; UserError where it is missing."""
    if name not in run.scored:
        some = ", ".join(list(run.scored)[:5])
        raise UserError(f"{run.folder.path}: {name!r} is no held-out case. There are {some} ...")
    try:
        arrays, grid = case_arrays(run, name)
    except KeyError as error:
        raise UserError(f"{run.folder.path}: no entry {error} in cases.json") from None
    return slices(arrays, option(run, "data", "ignore_label"), grid)


def _typical(run: Run, count: int) -> list[str]:
    """Cases at even quantiles of the score: typical ones, neither the best nor the worst."""
    lead = leading_metric(run)
    ranked = rank(run, *lead) if lead else []
    if not ranked:
        raise UserError(f"{run.folder.path}: no held-out case has a score to choose by. Name one.")
    places = [(n + 1) / (count + 1) * (len(ranked) - 1) for n in range(count)]
    return list(dict.fromkeys(ranked[round(p)] for p in places))


def _caption(run: Run, name: str) -> str:
    """A case and its scores: the first one, and Dice where that is another."""
    scores, lead = run.scored[name].get("metrics", {}), leading_metric(run)
    keys = dict.fromkeys([*(lead[:1] if lead else ()), "dice"])
    texts = [f"{named(run, k)} {number(scores[k])}" for k in keys if finite(scores.get(k))]
    return ", ".join([f"held-out case {name}", *texts])


def _size(picture: np.ndarray, side: int, tall: int = 0) -> tuple[int, int]:
    """Width and height of a picture that fits into a column: a whole multiple where it is small."""
    height, width = picture.shape[:2]
    scale = min(side / width, (tall or side) / height)
    scale = float(int(scale)) if scale >= 3 else scale
    return max(1, round(width * scale)), max(1, round(height * scale))


def _row(canvas: Canvas, panels: Panels, top: float, side: int, titles: bool) -> float:
    """Draw panels side by side, and return where the row ends."""
    if titles:
        top += MIDDLE
    end = top
    for n, (title, picture) in enumerate(panels):
        x = EDGE + n * (side + GAP)
        size = _size(picture, side)
        if titles:
            canvas.text((x, top), shortened(title, MIDDLE, side), MIDDLE, SOFT)
        canvas.picture((x, top + 12), picture, size)
        end = max(end, top + 12 + size[1])
    return end


def _legend(canvas: Canvas, run: Run, y: float) -> None:
    """Draw the colours of labels with what they mean, as many as fit into a line."""
    x = float(EDGE)
    ignored = option(run, "data", "ignore_label") is not None
    for text, colour in [*legend_parts(run), *([("ignored", IGNORED)] if ignored else [])]:
        wide = 34 + text_width(text, SMALL) + 26
        if x + wide > WIDTH:
            break
        canvas.square((x, y - 20), 22, colour)
        canvas.text((x + 32, y), text, SMALL, INK)
        x += wide


# --- curves ---------------------------------------------------------------------------------------

CHART = 330
"""Height of a chart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Curves of one kind.

    Args:
        name: in the legend.
        colour: of the lines.
        folds: points (epoch from 1, value), a line for each fold.
    """

    name: str
    colour: Colour
    folds: Sequence[Sequence[tuple[float, float]]]


def _curves(run: Run) -> list[tuple[str, list[Lines]]]:
    """Titles and curves of the two charts; those without any value are left out."""
    logs = [log for name, log in run.logs.items() if isinstance(name, int)]
    keys = [k for log in logs for record in log for k in record]
    watched = [k for k in dict.fromkeys(keys) if k.startswith("val_") and k != "val_loss"]
    charts = [("loss", {"training": ("train_loss", TRAIN), "validation": ("val_loss", VALIDATION)})]
    if watched:
        key = "val_dice" if "val_dice" in watched else watched[0]
        title = named(run, key.removeprefix("val_")).replace("_", " ")
        charts.append((f"validation {title}", {"validation": (key, VALIDATION)}))
    found = []
    for title, series in charts:
        lines = [
            Lines(name=name, colour=colour, folds=folds)
            for name, (key, colour) in series.items()
            if (folds := [line for log in logs if (line := _points(log, key))])
        ]
        if lines:
            found.append((title, lines))
    return found


def _points(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(r["epoch"] + 1, r[key]) for r in log if finite(r.get(key))]


def _chart(
    canvas: Canvas, at: tuple[float, float], wide: float, title: str, lines: Sequence[Lines]
) -> None:
    """Draw curves with labelled axes."""
    points = [p for kind in lines for line in kind.folds for p in line]
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    bottom, top = padded([y for _, y in points], log=False)
    left, right = at[0] + 64, at[0] + wide - 12
    x = Scale(
        low=low - 0.5 * (low == high), high=high + 0.5 * (low == high), start=left, stop=right
    )
    y = Scale(low=bottom, high=top, start=at[1] + CHART - 66, stop=at[1] + 44)
    canvas.text((at[0], at[1] + 22), title, MIDDLE)
    for value in ticks(bottom, top):
        canvas.line([(left, y(value)), (right, y(value))], LINE)
        canvas.text((left - 10, y(value)), f"{value:.4g}", SMALL, SOFT, "rm")
    for value in (v for v in ticks(low, high) if v == int(v)) if low < high else [low]:
        canvas.text((x(value), y.start + 12), f"{value:.0f}", SMALL, SOFT, "mt")
    canvas.text(((left + right) / 2, y.start + 42), "epoch", SMALL, SOFT, "mt")
    for kind in lines:
        for line in kind.folds:
            drawn = [(x(a), y(b)) for a, b in line]
            if len(drawn) > 1:
                canvas.line(drawn, kind.colour, 2.5)
            for point in drawn if len(drawn) < 12 else ():
                canvas.dot(point, kind.colour, 3.5)
    _keys(canvas, right, at[1] + 22, lines)


def _keys(canvas: Canvas, right: float, y: float, lines: Sequence[Lines]) -> None:
    """Draw the legend of a chart, from its right end."""
    folds = max(len(kind.folds) for kind in lines)
    texts = [(kind.name, kind.colour) for kind in lines] if len(lines) > 1 else []
    if not texts and folds > 1:
        canvas.text((right, y), f"a line per fold ({folds})", SMALL, SOFT, "rs")
    for text, colour in reversed(texts):
        wide = text_width(text, SMALL)
        canvas.text((right, y), text, SMALL, INK, "rs")
        canvas.line([(right - wide - 40, y - 8), (right - wide - 10, y - 8)], colour, 3)
        right -= wide + 66


# --- strips ---------------------------------------------------------------------------------------


def strip_picture(
    run: RunFolder, out: Path, cases: int | Sequence[str] = 2, crop: int | None = None
) -> Path:
    """Draw held-out cases, one below the other.

    Of labels image, truth, prediction and errors; of images input, target, output, error and,
    where there are any, the mask and the predicted mask.

    Args:
        run: a run folder of which a fold has ended.
        out: PNG file to write, 1200 pixels wide.
        cases: ids of held-out cases, or how many, which are then taken at even quantiles of the
            score.
        crop: side of the window that is shown, in pixels, where images differ most from their
            targets, or labels are; 0: all of the picture; None: a window for images that are much
            larger than a panel.

    Returns:
        The file.

    Raises:
        UserError: where the run has no such case, or its files are gone.
    """
    found = load(run.path)
    names = _typical(found, cases) if isinstance(cases, int) else list(cases)
    if crop is not None and crop < 0:
        raise UserError(f"--crop {crop} must be 0 (all of the picture) or a number of pixels.")
    rows = [_strip_panels(found, name, crop) for name in names]
    captions = [_caption(found, name) for name in names]
    legend = found if found.summary.get("task") != "image" else None
    return _draw_strips(rows, captions, out, legend)


def pairs_picture(
    inputs: Path,
    targets: Path,
    answers: Path,
    names: Sequence[str],
    out: Path,
    crop: int | None = None,
) -> Path:
    """Draw answers to images that no fold has seen, one below the other.

    Args:
        inputs: folder of the images, ``ID.*``.
        targets: folder of what they should become, equal names.
        answers: what ``pipeline.predict`` wrote, with ``masks/`` where the network has a mask.
        names: ids of the images.
        out: PNG file to write, 1200 pixels wide.
        crop: see :func:`strip_picture`.

    Returns:
        The file.

    Raises:
        UserError: where a folder has no such image.
    """
    rows = []
    for name in names:
        image, truth, answer = (
            files.read(_of(folder, name), 2)[0] for folder in (inputs, targets, answers)
        )
        rows.append(_image_row(image, truth, answer, crop, _answer_masks(answers, name)))
    return _draw_strips(rows, list(names), out)


def _of(folder: Path, name: str) -> Path:
    """The file of an image in a folder."""
    found = sorted(path for path in folder.glob("*") if path.stem == name and path.is_file())
    if not found:
        raise UserError(f"{folder} has no image called {name!r}.")
    return found[0]


def _draw_strips(
    rows: Sequence[Panels], captions: Sequence[str], out: Path, legend: Run | None = None
) -> Path:
    """Draw rows of panels with a caption each, and the legend of a run's classes."""
    columns = max(map(len, rows))
    side = (WIDTH - 2 * EDGE - (columns - 1) * GAP) // columns
    heights = [max(_size(p, side)[1] for _, p in row) for row in rows]
    above = SMALL + 22
    under = 56 if legend is not None else 0
    height = EDGE + MIDDLE + sum(heights) + len(rows) * (above + 12) + under + EDGE // 2
    canvas, top = Canvas(WIDTH, height), float(EDGE + MIDDLE - 12)
    for n, title in enumerate(max(rows, key=len)):
        x = EDGE + n * (side + GAP)
        canvas.text((x, EDGE + MIDDLE - 12), shortened(title[0], MIDDLE, side), MIDDLE, SOFT)
    for caption, row in zip(captions, rows, strict=True):
        canvas.text((EDGE, top + above - 8), shortened(caption, SMALL, WIDTH - 2 * EDGE), SMALL)
        top = _row(canvas, row, top + above, side, titles=False)
    if legend is not None:
        _legend(canvas, legend, top + 48)
    return canvas.save(out)


WINDOW = 320
"""Side of the window of large images, about the pixels of a panel."""


def _strip_panels(run: Run, name: str, crop: int | None) -> Panels:
    """The panels of one case."""
    shown = _arrays(run, name)[0]
    image, truth, answer = shown.planes
    if run.summary.get("task") == "image":
        return _image_row(image, truth, answer, crop, _masks(run, name), shown.pixel)
    part = window((truth[0] != 0).astype(float), crop or 0)
    cut = Shown(title="", planes=(image[part], truth[part], answer[part]), pixel=shown.pixel)
    return panels(run, cut)


def _image_row(
    image: np.ndarray,
    truth: np.ndarray,
    answer: np.ndarray,
    crop: int | None,
    masks: Sequence[tuple[str, Path]],
    pixel: tuple[float, float] = (1.0, 1.0),
) -> Panels:
    """Input, target, output, error and masks, where input and target differ most."""
    large = max(image.shape[1:]) > 2 * WINDOW
    part = window(_difference(image, truth), crop if crop is not None else WINDOW * large)
    titles = ("input", "target", "output", "error")
    drawn = image_panels(image[part], truth[part], answer[part], pixel)
    shown = [(title, picture) for title, (_, picture) in zip(titles, drawn, strict=True)]
    return shown + [(title, _mask(path, part)) for title, path in masks]


def _difference(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How much an image differs from its target at each pixel, ``(Y, X)``."""
    one, other = image / full_scale(image), truth / full_scale(truth)
    if len(one) != len(other):
        one, other = one.mean(axis=0, keepdims=True), other.mean(axis=0, keepdims=True)
    return np.abs(one - other).mean(axis=0)


def window(interest: np.ndarray, side: int) -> tuple[Any, ...]:
    """Find the square window with the most interest.

    Args:
        interest: ``(Y, X)``, not negative.
        side: of the window; 0: the whole.

    Returns:
        Index of an array ``(C, Y, X)``.
    """
    if side == 0 or max(interest.shape) <= side:
        return (slice(None),) * 3
    sums = np.pad(interest, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    size = [min(side, n) for n in interest.shape]
    step = max(1, side // 8)
    best, found = -1.0, (0, 0)
    for y in range(0, interest.shape[0] - size[0] + 1, step):
        for x in range(0, interest.shape[1] - size[1] + 1, step):
            low, right = y + size[0], x + size[1]
            total = sums[low, right] - sums[y, right] - sums[low, x] + sums[y, x]
            if total > best:
                best, found = float(total), (y, x)
    (y, x) = found
    return slice(None), slice(y, y + size[0]), slice(x, x + size[1])


def _masks(run: Run, name: str) -> list[tuple[str, Path]]:
    """Masks of where an image is to be changed: the true one and the predicted one."""
    fold = run.folder.fold(run.scored[name].get("fold"))
    found = []
    target = run.cases[name].get("targets", {}).get("mask")
    if target is not None and Path(target).exists():
        found.append(("mask", Path(target)))
    return found + _answer_masks(fold.answers, name)


def _answer_masks(answers: Path, name: str) -> list[tuple[str, Path]]:
    """The predicted mask of an image, where the network has one."""
    own = [answers / "masks" / f"{name}{kind}" for kind in (".png", ".tif")]
    return [("predicted mask", path) for path in own if path.is_file()][:1]


def _mask(path: Path, part: tuple[Any, ...]) -> np.ndarray:
    """A mask as a picture ``(Y, X, 3)``."""
    array = files.read(path, 2)[0][part]
    return colours.rgb(array / full_scale(array))
