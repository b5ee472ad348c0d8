"""Cases as pictures: image, truth, answer and errors for labels; input, target, prediction and difference for images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.records import UserError
from pipeline.report.page import escape, finite, number, section
from pipeline.report.runs import Run, leading_metric, option

if TYPE_CHECKING:
    import numpy as np

    Planes = tuple[np.ndarray, np.ndarray, np.ndarray]

SMALL, LARGE = 240, 420
"""Pictures are enlarged to at least about SMALL pixels and reduced to at most LARGE."""
GREEN, SKY, ORANGE, BLUE, PURPLE, WHITE = (0, 190, 130), (86, 180, 233), (240, 120, 0), (50, 120, 255), (204, 121, 167), (225, 225, 225)
CLASSES = (GREEN, SKY, (240, 228, 66), PURPLE, ORANGE, BLUE)
"""Colours of label values 1, 2, ...: those of Okabe and Ito, brightened, which colour-blind readers can tell apart."""


def gallery(run: Run) -> str:
    """The worst cases, the median and the best: image, truth, answer, errors."""
    lead = leading_metric(run)
    if lead is None:
        return section("Cases in pictures", note="No metric by which cases could be ranked.")
    ranked = rank(run, *lead)
    if not ranked:
        return section("Cases in pictures", note=f"No case has a finite {lead[0]}.")
    cards = [_card(run, label, name) for label, name in pick(ranked)]
    where = (
        " Volumes are cut along each axis, in the most central slice that is rich in foreground."
        if option(run, "data", "dims") != 2
        else ""
    )
    return section("Cases in pictures", _legend(run), *cards, note=f"Ranked by {lead[0]}.{where}")


def rank(run: Run, metric: str, sign: int) -> list[str]:
    """Case ids from worst to best; cases without a finite score are left out."""
    cases = run.scored
    return sorted(
        (i for i in cases if finite(cases[i].get("metrics", {}).get(metric))), key=lambda i: (sign * cases[i]["metrics"][metric], i)
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
    ignored = '<span><i class="hatch"></i>ignored</span>' if option(run, "data", "ignore_label") is not None else ""
    return f'<p class="legend">{swatches}<span><i style="background:rgb{WHITE}"></i>found</span>{ignored}</p>'


def _classes(run: Run) -> int:
    return option(run, "data", "classes") or 2


def _card(run: Run, label: str, name: str) -> str:
    case = run.scored[name]
    facts = [f"fold {case.get('fold')}", *([f"group {case['group']}"] if case.get("group") is not None else [])]
    facts += [f"{k} {number(v)}" for k, v in case.get("metrics", {}).items() if not isinstance(v, Mapping)]
    head = f'<h3><span class="badge">{escape(label)}</span> {escape(name)}</h3><p>{escape(" · ".join(facts))}</p>'
    try:
        arrays = _arrays(run, name)
    except (UserError, OSError, KeyError) as error:
        reason = f"no entry {error} in cases.json" if isinstance(error, KeyError) else str(error)
        run.gaps.append(f"no pictures of case {name}: {reason}")
        return f'<article>{head}<p class="none">No pictures: {escape(reason)}</p></article>'
    panels = image_panels if run.summary.get("task") == "image" else label_panels
    rows = [_strip(where, panels(run, *planes)) for where, planes in slices(arrays, option(run, "data", "ignore_label"))]
    return f"<article>{head}{''.join(rows)}</article>"


def _strip(where: str, panels: Sequence[tuple[str, np.ndarray]]) -> str:
    cells = "".join(
        f'<figure><img alt="{escape(" ".join([title, where]).strip())}" src="{png(array)}"><figcaption>{escape(title)}</figcaption></figure>'
        for title, array in panels
    )
    return f'<div class="strip">{f"<span>{escape(where)}</span>" if where else ""}{cells}</div>'


def _arrays(run: Run, name: str) -> Planes:
    """Image, truth and answer ``(C, *S)``. Raises UserError or KeyError for what is not there or does not fit."""
    from pipeline import files

    entry, fold = run.cases[name], run.scored[name].get("fold")
    found = [p for p in (run.folder / f"fold_{fold}" / "oof").glob("*") if files.is_image(p) and files.stem(p) == name]
    targets = entry["targets"]
    target = targets.get("label") or targets.get("target") or next(iter(targets.values()), None)
    if not found or target is None:
        raise UserError("cases.json names no target" if found else f"fold_{fold}/oof holds no answer")
    labels = run.summary.get("task") != "image"
    dims = option(run, "data", "dims") or files.dims_of(Path(target))
    image = files.read(Path(entry["image"][0]), dims)[0]
    truth, answer = files.read(Path(target), dims, labels)[0], files.read(found[0], dims, labels)[0]
    if len({a.shape[1:] for a in (image, truth, answer)}) > 1 or (not labels and truth.shape != answer.shape):
        raise UserError(f"image {image.shape}, truth {truth.shape} and answer {answer.shape} differ in shape")
    return image, truth, answer


def slices(arrays: Planes, ignore: int | None) -> list[tuple[str, Planes]]:
    """Planes ``(C, Y, X)`` of image, truth and answer with their place in words: an image as it is, a volume along each axis.

    Of the slices with at least 70 % of the most foreground that a slice of the truth has, the one nearest to the middle is taken.
    """
    import numpy as np

    truth = arrays[1]
    if truth.ndim == 3:
        return [("", arrays)]
    foreground = (truth[0] != 0) & (truth[0] != ignore)
    planes = []
    for axis in range(3):
        counts = foreground.sum(axis=tuple(a for a in range(3) if a != axis))
        rich = np.flatnonzero(counts >= 0.7 * counts.max())
        index = int(rich[np.abs(rich - len(counts) // 2).argmin()])
        image, real, said = (a.take(index, axis + 1) for a in arrays)
        planes.append((f"axis {axis}, slice {index + 1} of {len(counts)}", (image, real, said)))
    return planes


def label_panels(run: Run, image: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Image, truth over it, answer over it, and the errors, each ``(Y, X, 3)`` in 0 ... 1."""
    # Enlarged before they are coloured, so that the hatching keeps its width.
    shown, truth, answer = (enlarge(a) for a in (window(image), truth[0], answer[0]))
    grey = shown.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    ignored = truth == option(run, "data", "ignore_label")  # false everywhere where there is no such label
    binary = _classes(run) == 2
    if binary:
        truth, answer = truth != 0, answer != 0
    real, said = (a.astype(int) * ~ignored for a in (truth, answer))
    errors = 0.5 * grey
    for where, colour in (
        ((real == said) & (real != 0), WHITE),
        ((said != 0) & (real == 0), ORANGE),
        ((said == 0) & (real != 0), BLUE),
        ((said != real) & (said != 0) & (real != 0), PURPLE),
    ):
        errors = tint(errors, where, colour, 0.85)
    return [
        ("image", shown),
        ("truth", hatch(classes(grey, real, CLASSES), ignored)),
        ("answer", classes(grey, answer.astype(int), (SKY,) if binary else CLASSES)),
        ("errors", hatch(errors, ignored)),
    ]


def image_panels(run: Run, image: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Input, target, prediction, and the absolute difference of the last two on the scale that its title names."""
    import numpy as np

    full = _full_scale(truth)
    shown = [_colours(image / _full_scale(image)), _colours(truth / full), _colours(answer / full)]
    error = np.abs(truth.astype(float) - answer).mean(axis=0) / full
    top = max(float(np.quantile(error, 0.995)), 1e-3)
    heat = np.clip(error / top, 0, 1)
    shown.append(np.stack([heat**0.5, heat, heat**3], axis=-1))  # black, orange, white
    titles = ("input", "target", "prediction", f"|difference|, white = {top:.3f} of full scale")
    return [(title, enlarge(picture)) for title, picture in zip(titles, shown, strict=True)]


def _full_scale(array: np.ndarray) -> float:
    """255 for bytes; the largest value for other types, which seldom use their whole range."""
    import numpy as np

    return 255.0 if array.dtype == np.uint8 else float(np.nanmax(np.abs(array))) or 1.0


def enlarge(plane: np.ndarray) -> np.ndarray:
    """``(Y, X, ...)`` with each pixel repeated, so that small pictures can be read."""
    factor = max(1, round(SMALL / max(plane.shape[:2])))
    return plane.repeat(factor, axis=0).repeat(factor, axis=1)


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

    image = Image.fromarray(np.rint(255 * np.clip(np.nan_to_num(picture), 0, 1)).astype(np.uint8))
    if max(image.size) > LARGE:
        scale = LARGE / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
