"""Cases as pictures in a row.

For labels these are image, truth, prediction and errors; for images input, target, prediction
and difference.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import colours, files
from pipeline.grid import Grid, grid_of
from pipeline.records import UserError
from pipeline.reporting.html_tables import table
from pipeline.reporting.page import Safe, escape, finite, number, section
from pipeline.reporting.planes import FULL, LARGE, NOWHERE, counts, cuts, enlarge, planes
from pipeline.reporting.runs import (
    Run,
    class_metrics,
    class_title,
    label_title,
    leading_metric,
    main_metrics,
    named,
    option,
)

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]


def gallery(run: Run) -> str:
    """The worst cases, the median and the best, as pictures.

    Args:
        run: what was found of a run; cases without pictures are added to its gaps.

    Returns:
        A section, as HTML.
    """
    lead = leading_metric(run)
    if lead is None:
        return section("Cases in pictures", note="No metric by which cases could be ranked.")
    ranked = rank(run, *lead)
    if not ranked:
        return section("Cases in pictures", note=f"No case has a finite {named(run, lead[0])}.")
    cards = [_card(run, label, name) for label, name in pick(ranked)]
    where = (
        " Volumes are cut along each axis, in the most central slice that is rich in foreground."
        if option(run, "data", "dims") != 2
        else ""
    )
    return section(
        "Cases in pictures", _legend(run), *cards, note=f"Ranked by {named(run, lead[0])}.{where}"
    )


def rank(run: Run, metric: str, sign: int) -> list[str]:
    """Sort cases from worst to best.

    Args:
        run: what was found of a run.
        metric: key of the metric.
        sign: 1 where higher is better, -1 where lower is.

    Returns:
        Case ids; cases without a finite score are left out.
    """
    cases = run.scored
    return sorted(
        (i for i in cases if finite(cases[i].get("metrics", {}).get(metric))),
        key=lambda i: (sign * cases[i]["metrics"][metric], i),
    )


def pick(ranked: Sequence[str]) -> list[tuple[str, str]]:
    """Choose the worst few, the median and the best; each case once.

    Args:
        ranked: case ids from worst to best, at least one.

    Returns:
        Pairs of label and id.

    Example:
        >>> pick(["a", "b"])
        [('worst', 'a'), ('best', 'b')]
        >>> [label for label, _ in pick("abcdefgh")]
        ['worst', '2nd worst', '3rd worst', '4th worst', 'median', 'best']
    """
    labels: dict[str, str] = {}
    for name, label in zip(
        ranked[:-1], ("worst", "2nd worst", "3rd worst", "4th worst"), strict=False
    ):
        labels[name] = label
    labels.setdefault(ranked[len(ranked) // 2], "median")
    labels[ranked[-1]] = "best"
    return [(label, name) for name, label in labels.items()]


def _legend(run: Run) -> str:
    """The colours of label pictures; nothing for images."""
    parts = legend_parts(run)
    ignored = parts and option(run, "data", "ignore_label") is not None
    hatched = '<span><i class="hatch"></i>ignored</span>' if ignored else ""
    return legend(parts, hatched) if parts else ""


def legend_parts(run: Run) -> list[tuple[str, colours.Colour]]:
    """What the colours of label pictures mean.

    Args:
        run: what was found of a run.

    Returns:
        Texts and colours; none for images.
    """
    if run.summary.get("task") == "image":
        return []
    binary = _classes(run) == 2
    names = {n: label_title(run, n) for n in range(1, _classes(run))}
    only = f"{names[1]}, " if run.summary.get("class_names") else ""
    found = (
        [(f"{only}truth", colours.GREEN), (f"{only}prediction", colours.SKY)]
        if binary
        else [(name, colour_of(n)) for n, name in names.items()]
    )
    found += [
        ("false positive", colours.FALSE_POSITIVE),
        ("false negative", colours.FALSE_NEGATIVE),
    ]
    found += [] if binary else [("wrong class", colours.WRONG_CLASS)]
    return [*found, ("found", colours.FOUND)]


def legend(parts: Sequence[tuple[str, colours.Colour]], more: str = "") -> str:
    """Colours with what they mean.

    Args:
        parts: texts and colours.
        more: HTML that follows.

    Returns:
        HTML.
    """
    keys = "".join(f"<span>{_square(colour)}{escape(text)}</span>" for text, colour in parts)
    return f'<p class="legend">{keys}{more}</p>'


def _square(colour: colours.Colour) -> str:
    return f'<i style="background:rgb{colour}"></i>'


def colour_of(value: int) -> colours.Colour:
    """Colour of a label value in pictures of several classes.

    Args:
        value: from 1 on.

    Returns:
        Red, green and blue.
    """
    return colours.CLASSES[(value - 1) % len(colours.CLASSES)]


def class_cell(run: Run, n: int) -> Safe:
    """Name of a class with its colour in the pictures; regions have none.

    Args:
        run: what was found of a run.
        n: number of the class, or of the region, in keys of metrics.

    Returns:
        HTML.
    """
    name = escape(class_title(run, n))
    coloured = not run.summary.get("regions") and _classes(run) > 2
    return Safe(swatch(n) + name if coloured else name)


def swatch(value: int) -> Safe:
    """A square in the colour of a label value, to stand before its name.

    Args:
        value: from 1 on.

    Returns:
        HTML.
    """
    return Safe(f'<span class="swatch">{_square(colour_of(value))}</span>')


def _classes(run: Run) -> int:
    return option(run, "data", "classes") or 2


def _card(run: Run, label: str, name: str) -> str:
    """One case: its scores and pictures."""
    case, names = run.scored[name], main_metrics(run)
    facts = [
        f"fold {case.get('fold')}",
        *([f"group {case['group']}"] if case.get("group") is not None else []),
    ]
    facts += [
        f"{named(run, k)} {number(v)}" for k, v in case.get("metrics", {}).items() if k in names
    ]
    head = (
        f'<h3><span class="badge">{escape(label)}</span> {escape(name)}</h3>'
        f"<p>{escape(' · '.join(facts))}</p>{_by_class(run, case)}"
    )
    try:
        arrays, grid = case_arrays(run, name)
    except (UserError, OSError, KeyError) as error:
        reason = f"no entry {error} in cases.json" if isinstance(error, KeyError) else str(error)
        run.gaps.append(f"no pictures of case {name}: {reason}")
        return f'<article>{head}<p class="none">No pictures: {escape(reason)}</p></article>'
    rows = [
        strip(shown.title, panels(run, shown))
        for shown in slices(arrays, option(run, "data", "ignore_label"), grid)
    ]
    return f"<article>{head}{''.join(rows)}</article>"


def panels(run: Run, shown: Shown) -> list[tuple[str, np.ndarray]]:
    """Pictures of a slice: of labels or of images, as the run has them.

    Args:
        run: the run.
        shown: a slice of a case.

    Returns:
        Titles and pictures ``(Y, X, 3)``, see :func:`label_panels` and :func:`image_panels`.
    """
    if run.summary.get("task") == "image":
        return image_panels(*shown.planes, pixel=shown.pixel)
    return label_panels(run, *shown.planes, pixel=shown.pixel)


def _by_class(run: Run, case: Mapping[str, Any]) -> str:
    """Scores of a case's classes, folded away, where they are too many for the heading."""
    found, scores = class_metrics(run), case.get("metrics", {})
    numbers = sorted({n for keys in found.values() for n in keys})
    rows = [
        ("", [class_cell(run, n), *(number(scores.get(keys.get(n))) for keys in found.values())])
        for n in numbers
    ]
    return (
        f"<details><summary>Classes</summary>{table(['class', *found], rows)}</details>"
        if rows
        else ""
    )


def strip(where: str, panels: Sequence[tuple[str, np.ndarray]], planes: bool = False) -> str:
    """Pictures in a row.

    Images, which unlike planes have no ``where``, get two rows if they are large, and grow
    when clicked.

    Args:
        where: which slice they show; empty for images.
        panels: titles and pictures ``(Y, X, 3)`` in 0 ... 1.
        planes: they are planes of a volume although ``where`` does not say which.

    Returns:
        HTML.
    """
    large = not (where or planes) and max(max(array.shape[:2]) for _, array in panels) > LARGE
    limit, more = (FULL, ' tabindex="0" title="click to enlarge"') if large else (LARGE, "")
    cells = "".join(
        f'<figure><img{more} alt="{escape(" ".join([title, where]).strip())}"'
        f' src="{data_url(array, limit)}"><figcaption>{escape(title)}</figcaption></figure>'
        for title, array in panels
    )
    return (
        f'<div class="strip n{len(panels)}{" large" if large else ""}">'
        f"{f'<span>{escape(where)}</span>' if where else ''}{cells}</div>"
    )


def case_arrays(run: Run, name: str) -> tuple[Planes, Grid]:
    """Read a held-out case of a run with its prediction.

    Args:
        run: what was found of a run.
        name: id of the case.

    Returns:
        Image, truth and prediction ``(C, *S)``, and how they lie in the world.

    Raises:
        UserError: what is missing or does not fit.
        KeyError: the case is not in cases.json.
    """
    entry, fold = run.cases[name], run.scored[name].get("fold")
    found = [
        p
        for p in run.folder.fold(fold).answers.glob("*")
        if files.is_image(p) and files.case_id(p) == name
    ]
    targets = entry["targets"]
    target = targets.get("label") or targets.get("target") or next(iter(targets.values()), None)
    if not found or target is None:
        raise UserError(
            "cases.json names no target" if found else f"fold_{fold}/oof holds no answer"
        )
    labels = run.summary.get("task") != "image"
    dims = option(run, "data", "dims") or files.dims_of(Path(target))
    image, geometry = files.read(Path(entry["image"][0]), dims)
    truth, prediction = (
        files.read(Path(target), dims, labels)[0],
        files.read(found[0], dims, labels)[0],
    )
    if len({a.shape[1:] for a in (image, truth, prediction)}) > 1 or (
        not labels and truth.shape != prediction.shape
    ):
        raise UserError(
            f"image {image.shape}, truth {truth.shape} and answer {prediction.shape} differ in"
            " shape"
        )
    return (image, truth, prediction), grid_of(geometry, dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What one row of pictures shows.

    Args:
        title: position in words, empty for an image.
        planes: ``(C, Y, X)`` of image, truth and prediction.
        pixel: height and width of a pixel.
    """

    title: str
    planes: Planes
    pixel: tuple[float, float] = (1.0, 1.0)


def slices(arrays: Planes, ignore: int | None, grid: Grid = NOWHERE) -> list[Shown]:
    """Choose planes to show: an image as it is, a volume along each axis.

    Of the slices with at least 70 % of the most foreground that a slice of the truth has, the one
    nearest to the middle is taken.

    Args:
        arrays: image, truth and prediction ``(C, *S)``.
        ignore: label value that is no foreground; None: none.
        grid: how the volume lies in the world.

    Returns:
        Planes, upright where the file says directions.
    """
    truth = arrays[1]
    if truth.ndim == 3:
        return [Shown(title="", planes=arrays)]
    wanted = cuts(counts(truth, ignore), grid)
    image, true, predicted = (planes(a, wanted) for a in arrays)
    return [
        Shown(title=cut.title, planes=(a, b, c), pixel=cut.pixel)
        for cut, a, b, c in zip(wanted, image, true, predicted, strict=True)
    ]


def label_panels(
    run: Run,
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    pixel: tuple[float, float] = (1.0, 1.0),
) -> list[tuple[str, np.ndarray]]:
    """Pictures of a plane with labels.

    Args:
        run: what was found of a run; its config has the classes and the ignored label.
        image: ``(C, Y, X)``.
        truth: labels ``(1, Y, X)``.
        prediction: predicted labels ``(1, Y, X)``.
        pixel: height and width of a pixel.

    Returns:
        Titles and pictures ``(Y, X, 3)`` in 0 ... 1: image, truth over it, prediction over
        it, errors.
    """
    # Enlarged before they are coloured, so that the hatching keeps its width.
    shown, truth, prediction = (
        enlarge(a, pixel) for a in (colours.stretched(image), truth[0], prediction[0])
    )
    grey = shown.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    # Without such a label it is None, which equals no value.
    ignored = truth == option(run, "data", "ignore_label")
    binary = _classes(run) == 2
    if binary:
        truth, prediction = truth > (option(run, "data", "binarise") or 0), prediction != 0
    true, predicted = (a.astype(int) * ~ignored for a in (truth, prediction))
    return [
        ("image", shown),
        ("truth", colours.hatch(colours.classes(grey, true), ignored)),
        (
            "prediction",
            colours.classes(
                grey, prediction.astype(int), (colours.SKY,) if binary else colours.CLASSES
            ),
        ),
        ("errors", colours.hatch(colours.errors(grey, true, predicted), ignored)),
    ]


def image_panels(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    pixel: tuple[float, float] = (1.0, 1.0),
) -> list[tuple[str, np.ndarray]]:
    """Pictures of an image and its target.

    Args:
        image: ``(C, Y, X)``.
        truth: target ``(C, Y, X)``.
        prediction: prediction ``(C, Y, X)``.
        pixel: height and width of a pixel.

    Returns:
        Titles and pictures ``(Y, X, 3)``: input, target, prediction, and the absolute difference of
        the last two on the scale that its title names.
    """
    full = full_scale(truth)
    shown = [
        colours.rgb(image / full_scale(image)),
        colours.rgb(truth / full),
        colours.rgb(prediction / full),
    ]
    error = np.abs(truth.astype(float) - prediction).mean(axis=0) / full
    top = max(float(np.quantile(error, 0.995)), 1e-3)
    heat = np.clip(error / top, 0, 1)
    shown.append(np.stack([heat**0.5, heat, heat**3], axis=-1))  # black, orange, white
    titles = ("input", "target", "prediction", f"|difference|, white = {top:.3f} of full scale")
    return [(title, enlarge(picture, pixel)) for title, picture in zip(titles, shown, strict=True)]


def full_scale(array: np.ndarray) -> float:
    """What is white: of bytes 255, else the largest value, as they seldom use their whole range.

    Args:
        array: intensities.

    Returns:
        A positive number.
    """
    return 255.0 if array.dtype == np.uint8 else float(np.nanmax(np.abs(array))) or 1.0


def data_url(picture: np.ndarray, limit: int = LARGE) -> str:
    """Encode a picture as a data URL.

    PNG up to LARGE pixels; beyond that JPEG with colours at full resolution, a sixth of the size.

    Args:
        picture: ``(Y, X, 3)`` in 0 ... 1.
        limit: pixels along its longer side to which a larger picture is reduced.

    Returns:
        The URL.
    """
    image = Image.fromarray(colours.to_bytes(picture))
    if max(image.size) > limit:
        scale = limit / max(image.size)
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
            Image.Resampling.BOX,
        )
    kind, options = (
        ("png", {}) if max(image.size) <= LARGE else ("jpeg", {"quality": 85, "subsampling": 0})
    )
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
