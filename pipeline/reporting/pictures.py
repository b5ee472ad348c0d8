"""Cases as pictures, four in a row.

For labels these are image, truth, prediction and errors; for images input, target, prediction
and difference.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import colours, files
from pipeline.records import UserError
from pipeline.reporting.page import escape, finite, number, section, table
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

SMALL, LARGE, FULL = 240, 420, 1024
"""Sizes of pictures in pixels.

They are enlarged to at least about SMALL; planes of a volume are reduced to at most LARGE, images
to at most FULL.
"""


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
    if run.summary.get("task") == "image":
        return ""
    binary = _classes(run) == 2
    parts = [("truth", colours.GREEN), ("answer", colours.SKY)] if binary else []
    parts += [
        (label_title(run, n), colours.CLASSES[(n - 1) % len(colours.CLASSES)])
        for n in range(1, _classes(run))
        if not binary
    ]
    parts += [
        ("false positive", colours.FALSE_POSITIVE),
        ("false negative", colours.FALSE_NEGATIVE),
    ]
    parts += [] if binary else [("wrong class", colours.WRONG_CLASS)]
    parts += [("found", colours.FOUND)]
    swatches = "".join(
        f'<span><i style="background:rgb{c}"></i>{escape(n)}</span>' for n, c in parts
    )
    ignored = (
        '<span><i class="hatch"></i>ignored</span>'
        if option(run, "data", "ignore_label") is not None
        else ""
    )
    return f'<p class="legend">{swatches}{ignored}</p>'


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
        arrays = _arrays(run, name)
    except (UserError, OSError, KeyError) as error:
        reason = f"no entry {error} in cases.json" if isinstance(error, KeyError) else str(error)
        run.gaps.append(f"no pictures of case {name}: {reason}")
        return f'<article>{head}<p class="none">No pictures: {escape(reason)}</p></article>'
    panels = image_panels if run.summary.get("task") == "image" else label_panels
    rows = [
        _strip(where, panels(run, *planes))
        for where, planes in slices(arrays, option(run, "data", "ignore_label"))
    ]
    return f"<article>{head}{''.join(rows)}</article>"


def _by_class(run: Run, case: Mapping[str, Any]) -> str:
    """Scores of a case's classes, folded away, where they are too many for the heading."""
    found, scores = class_metrics(run), case.get("metrics", {})
    numbers = sorted({n for keys in found.values() for n in keys})
    rows = [
        ("", [class_title(run, n), *(number(scores.get(keys.get(n))) for keys in found.values())])
        for n in numbers
    ]
    return (
        f"<details><summary>Classes</summary>{table(['class', *found], rows)}</details>"
        if rows
        else ""
    )


def _strip(where: str, panels: Sequence[tuple[str, np.ndarray]]) -> str:
    """Four pictures in a row.

    Images, which unlike planes have no ``where``, get two rows if they are large, and grow
    when clicked.
    """
    large = not where and max(max(array.shape[:2]) for _, array in panels) > LARGE
    limit, more = (FULL, ' tabindex="0" title="click to enlarge"') if large else (LARGE, "")
    cells = "".join(
        f'<figure><img{more} alt="{escape(" ".join([title, where]).strip())}"'
        f' src="{data_url(array, limit)}"><figcaption>{escape(title)}</figcaption></figure>'
        for title, array in panels
    )
    return (
        f'<div class="strip{" large" if large else ""}">'
        f"{f'<span>{escape(where)}</span>' if where else ''}{cells}</div>"
    )


def _arrays(run: Run, name: str) -> Planes:
    """Image, truth and prediction ``(C, *S)``.

    Raises UserError or KeyError for what is missing or does not fit.
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
    image = files.read(Path(entry["image"][0]), dims)[0]
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
    return image, truth, prediction


def slices(arrays: Planes, ignore: int | None) -> list[tuple[str, Planes]]:
    """Choose planes to show: an image as it is, a volume along each axis.

    Of the slices with at least 70 % of the most foreground that a slice of the truth has, the one
    nearest to the middle is taken.

    Args:
        arrays: image, truth and prediction ``(C, *S)``.
        ignore: label value that is no foreground; None: none.

    Returns:
        Position in words, empty for an image, and planes ``(C, Y, X)`` of image, truth
        and prediction.
    """
    truth = arrays[1]
    if truth.ndim == 3:
        return [("", arrays)]
    foreground = (truth[0] != 0) & (truth[0] != ignore)
    planes = []
    for axis in range(3):
        counts = foreground.sum(axis=tuple(a for a in range(3) if a != axis))
        rich = np.flatnonzero(counts >= 0.7 * counts.max())
        index = int(rich[np.abs(rich - len(counts) // 2).argmin()])
        image, true, predicted = (a.take(index, axis + 1) for a in arrays)
        planes.append(
            (f"axis {axis}, slice {index + 1} of {len(counts)}", (image, true, predicted))
        )
    return planes


def label_panels(
    run: Run, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """Pictures of a plane with labels.

    Args:
        run: what was found of a run; its config has the classes and the ignored label.
        image: ``(C, Y, X)``.
        truth: labels ``(1, Y, X)``.
        prediction: predicted labels ``(1, Y, X)``.

    Returns:
        Titles and pictures ``(Y, X, 3)`` in 0 ... 1: image, truth over it, prediction over
        it, errors.
    """
    # Enlarged before they are coloured, so that the hatching keeps its width.
    shown, truth, prediction = (
        enlarge(a) for a in (colours.stretched(image), truth[0], prediction[0])
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
            "answer",
            colours.classes(
                grey, prediction.astype(int), (colours.SKY,) if binary else colours.CLASSES
            ),
        ),
        ("errors", colours.hatch(colours.errors(grey, true, predicted), ignored)),
    ]


def image_panels(
    run: Run, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """Pictures of an image and its target.

    Args:
        run: not used.
        image: ``(C, Y, X)``.
        truth: target ``(C, Y, X)``.
        prediction: prediction ``(C, Y, X)``.

    Returns:
        Titles and pictures ``(Y, X, 3)``: input, target, prediction, and the absolute difference of
        the last two on the scale that its title names.
    """
    full = _full_scale(truth)
    shown = [
        colours.rgb(image / _full_scale(image)),
        colours.rgb(truth / full),
        colours.rgb(prediction / full),
    ]
    error = np.abs(truth.astype(float) - prediction).mean(axis=0) / full
    top = max(float(np.quantile(error, 0.995)), 1e-3)
    heat = np.clip(error / top, 0, 1)
    shown.append(np.stack([heat**0.5, heat, heat**3], axis=-1))  # black, orange, white
    titles = ("input", "target", "prediction", f"|difference|, white = {top:.3f} of full scale")
    return [(title, enlarge(picture)) for title, picture in zip(titles, shown, strict=True)]


def _full_scale(array: np.ndarray) -> float:
    """255 for bytes; the largest value for other types, which seldom use their whole range."""
    return 255.0 if array.dtype == np.uint8 else float(np.nanmax(np.abs(array))) or 1.0


def enlarge(plane: np.ndarray) -> np.ndarray:
    """Repeat each pixel, so that small pictures can be read.

    Args:
        plane: ``(Y, X, ...)``.

    Returns:
        The plane, about SMALL pixels along its longer side, or unchanged where it is larger.
    """
    factor = max(1, round(SMALL / max(plane.shape[:2])))
    return plane.repeat(factor, axis=0).repeat(factor, axis=1)


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
