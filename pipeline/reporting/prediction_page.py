"""A folder of predictions as one page: volumes of each class, pictures in colour, what failed."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import colours, files
from pipeline.files import FileError
from pipeline.grid import grid_of
from pipeline.records import UserError
from pipeline.reporting.html_tables import table
from pipeline.reporting.page import DASH, Safe, escape, section
from pipeline.reporting.pictures import colour_of, full_scale, legend, strip, swatch
from pipeline.reporting.planes import Cut, cuts, enlarge, planes
from pipeline.reporting.predictions import Answer, Predicted, Volumes, measure, require_readable

MOST = 12
"""Predictions that are shown as pictures."""

LISTED = 500
"""Predictions whose volumes are listed."""

COLUMNS = 32
"""Classes whose volumes are listed; of more, the largest."""

WORDS = {"done": "predicted", "failed": "failed", "empty": "without foreground"}


def body(found: Predicted) -> str:
    """The content of the page.

    Args:
        found: a folder of predictions.

    Returns:
        HTML.
    """
    sizes = {} if found.image else dict(_sizes(found))
    # The sections come first: they add to the gaps that the head lists.
    parts = [
        _failures(found),
        _volumes(found, sizes),
        _pictures(found, sizes),
        _origin(found),
    ]
    return _headline(found, sizes) + "\n".join(parts)


def _sizes(found: Predicted) -> Iterator[tuple[str, Volumes]]:
    """Sizes of each prediction by id; those that cannot be read are a gap."""
    for name, answer in list(found.answers.items())[:LISTED]:
        try:
            yield name, measure(answer, found.summary.get("ignore_label"))
        except FileError as error:
            found.gaps.append(f"volumes of {name}: {error.path.name} {error.problem}")
    rest = len(found.answers) - LISTED
    if rest > 0:
        found.gaps.append(f"volumes of {rest} more predictions: {LISTED} are listed")


def _headline(found: Predicted, sizes: Mapping[str, Volumes]) -> str:
    """Name of the folder, a tile for each count, and what is missing."""
    summary = found.summary
    models, members = _listed(summary, "models"), _listed(summary, "members")
    facts = [
        f"predictions of task {summary.get('task', 'labels')}",
        *([f"{len(models)} model{'s' * (len(models) > 1)}"] if models else []),
        *([f"{_members(len(members))}, fusion {summary.get('fusion')}"] if members else []),
        "no truth: nothing is scored here",
    ]
    counts = {"done": len(found.answers), "failed": len(found.failed)}
    if not found.image:
        counts["empty"] = sum(v.total == 0 for v in sizes.values())
    tiles = "".join(
        f'<div class="tile"><span>{WORDS[k]}</span><b>{n}</b></div>' for k, n in counts.items()
    )
    gaps = "".join(f"<li>{escape(g)}</li>" for g in found.gaps)
    missing = f"<aside><strong>Not in this report</strong><ul>{gaps}</ul></aside>" if gaps else ""
    return (
        f"<header><h1>{escape(found.folder.resolve().name)}</h1>"
        f"<p>{escape(' · '.join(facts))}</p>"
        f'<div class="tiles">{tiles}</div>{missing}</header>\n'
    )


def _listed(summary: Mapping[str, Any], key: str) -> Sequence[object]:
    """A list of a summary; empty where it holds something else."""
    found = summary.get(key)
    return found if isinstance(found, list) else ()


def _members(count: int) -> str:
    return f"{count} member{'s' * (count > 1)}"


def _failures(found: Predicted) -> str:
    """Files that failed, with their messages."""
    if not found.failed:
        return ""
    rows = [("", [name, error]) for name, error in found.failed.items()]
    return section("Failed", table(["file", "message"], rows))


# --- volumes --------------------------------------------------------------------------------------


def _names(found: Predicted, sizes: Mapping[str, Volumes]) -> dict[int, str]:
    """Names of the label values that are classes, with those that nobody announced.

    At most COLUMNS of them, the largest ones.
    """
    if found.instances:
        return {}
    voxels: Counter[int] = Counter()
    for one in sizes.values():
        voxels.update(one.voxels)
    values = sorted({*found.classes, *voxels})
    if len(values) > COLUMNS:
        values = sorted(v for v, _ in voxels.most_common(COLUMNS))
    return {v: found.classes.get(v, f"class {v}") for v in values}


def _volumes(found: Predicted, sizes: Mapping[str, Volumes]) -> str:
    """A table of files and classes."""
    if not sizes:
        return ""
    names = _names(found, sizes)
    many = len(names) > 1 or found.instances
    head: list[object] = ["file"]
    head += [Safe(_square(found, v) + escape(name)) for v, name in names.items()]
    head += ["foreground"] if many else []
    head += ["objects"] if found.instances else ["components"]
    rows = []
    for name, found_sizes in sizes.items():
        cells: list[object] = [name, *(_amount(found_sizes, v) for v in names)]
        cells += [_amount(found_sizes, None)] if many else []
        cells += [_pieces(found, name, found_sizes)]
        rows.append(("", cells))
    where = "pixels" if all(a.dims == 2 for a in found.answers.values()) else "voxels"
    units = any(s.grid.spacing for s in sizes.values())
    note = f"Above: {where}; below: ml (of pictures mm²)." if units else f"{where.capitalize()}."
    if units and not all(s.grid.spacing for s in sizes.values()):
        note += " Files without a unit say voxels only."
    seen = {v for s in sizes.values() for v in s.voxels}
    if names and len(seen) > len(names):
        note += f" The largest {len(names)} of {len(seen):,} classes."
    note += " Components: connected parts of the foreground, corners touch."
    title = "Areas" if where == "pixels" else "Volumes"
    return section(title, table(head, rows), note=note)


def _square(found: Predicted, value: int) -> str:
    """The colour of a class in the pictures; nothing where there is only one."""
    return "" if found.binary else swatch(value)


def _amount(sizes: Volumes, value: int | None) -> Safe:
    """Voxels of a class, of the foreground for None, and below them ml."""
    voxels = sizes.total if value is None else sizes.voxels.get(value, 0)
    size = sizes.physical(voxels)
    below = f"<small>{f'{size[0]:#.4g}'.rstrip('.')} {size[1]}</small>" if size else ""
    return Safe(f"{voxels:,}{below}")


def _pieces(found: Predicted, name: str, sizes: Volumes) -> object:
    """Number of components, or of objects where label values number them."""
    if found.instances:
        return len(sizes.voxels)
    counted = found.answers[name].row.get("components")
    if isinstance(counted, int):
        return counted
    return sizes.components[next(iter(sizes.voxels))] if len(sizes.components) == 1 else DASH


# --- pictures -------------------------------------------------------------------------------------


def _pictures(found: Predicted, sizes: Mapping[str, Volumes]) -> str:
    """Predictions as pictures: those with the least and the most foreground, and some between."""
    names = _chosen(found, sizes)
    if not names:
        return section("Pictures", note="No prediction can be shown.")
    cards = [_card(found, sizes.get(name), name) for name in names]
    left = len(found.answers) - len(names)
    note = "Images: input and output." if found.image else "From the least foreground to the most."
    if any(answer.dims == 3 for answer in found.answers.values()):
        where = "in the middle" if found.image else CENTRAL
        note += f" Volumes are cut along each axis, {where}, with square pixels where the file says"
        note += " the size of its voxels."
    more = f" {left} more are not shown." if left else ""
    keys = "" if found.image or found.instances else _legend(found, sizes)
    return section("Pictures", keys, *cards, note=note + more)


CENTRAL = "in the most central slice that is rich in foreground"


def _chosen(found: Predicted, sizes: Mapping[str, Volumes]) -> list[str]:
    """At most MOST ids, evenly over the sizes of the foreground."""
    known = list(found.answers) if found.image else sorted(sizes, key=lambda i: sizes[i].total)
    if len(known) <= MOST:
        return known
    return [known[n] for n in np.linspace(0, len(known) - 1, MOST).round().astype(int)]


def _legend(found: Predicted, sizes: Mapping[str, Volumes]) -> str:
    """Colours of the classes."""
    names = _names(found, sizes)
    return legend([(n, colours.SKY if found.binary else colour_of(v)) for v, n in names.items()])


def _card(found: Predicted, sizes: Volumes | None, name: str) -> str:
    """One prediction: what is known of it, and its pictures."""
    answer = found.answers[name]
    facts = [answer.path.name]
    if answer.row.get("shape"):
        facts.append(" x ".join(map(str, answer.row["shape"])))
    if sizes is not None and sizes.grid.spacing:
        facts.append(" x ".join(f"{s:.4g}" for s in sizes.grid.spacing) + " mm")
    if isinstance(answer.row.get("seconds"), int | float):
        facts.append(f"{answer.row['seconds']:.1f} s")
    image, problem = _input(answer)
    if problem:
        facts.append(problem)
    head = f"<h3>{escape(name)}</h3><p>{escape(' · '.join(facts))}</p>"
    try:
        rows = _rows(found, answer, sizes, image)
    except UserError as error:
        found.gaps.append(f"no pictures of {name}: {error}")
        return f'<article>{head}<p class="none">No pictures: {escape(error)}</p></article>'
    return f"<article>{head}{_parts(found, sizes)}{rows}</article>"


def _input(answer: Answer) -> tuple[Path | None, str]:
    """The file of the input, or what is wrong with it, in words."""
    given = answer.given
    if given is None:
        return None, "input not named: shown on black"
    path = files.split_selection(given)[0]
    if not os.path.exists(path):  # a name that no file can have counts as gone
        return None, f"input {given} is no longer there: shown on black"
    try:
        require_readable(given, answer.dims)
        shape = files.probe(given, answer.dims).shape
        own = files.probe(answer.path, answer.dims).shape
    except FileError as error:
        return None, f"input {given.name} {error.problem}: shown on black"
    if shape[1:] != own[1:]:
        return None, f"input {given.name} has another size, {shape[1:]}: shown on black"
    return given, ""


def _parts(found: Predicted, sizes: Volumes | None) -> str:
    """Voxels and components of the classes of one prediction, folded away."""
    if sizes is None or found.instances or len(sizes.components) < 2:
        return ""
    names = _names(found, {"": sizes})
    rows = [
        ("", [Safe(swatch(v) + escape(n)), _amount(sizes, v), sizes.components.get(v, DASH)])
        for v, n in names.items()
    ]
    return (
        "<details><summary>Classes</summary>"
        f"{table(['class', 'voxels', 'components'], rows)}</details>"
    )


def _rows(found: Predicted, answer: Answer, sizes: Volumes | None, image: Path | None) -> str:
    """The pictures of a prediction."""
    if found.image:
        return _image_rows(found, answer, image)
    if sizes is None:
        raise UserError("its volumes could not be read")
    palette = (colours.SKY,) if found.binary else colours.CLASSES
    ignore = found.summary.get("ignore_label")
    if answer.dims == 2:
        labels = files.read(answer.path, 2, labels=True)[0][0]
        shown = files.read(image, 2)[0] if image else np.zeros((1, *labels.shape), np.uint8)
        picture = enlarge(colours.stretched(shown), _pixel(sizes))
        painted = _painted(picture, enlarge(labels, _pixel(sizes)), palette, ignore)
        return strip("", [("input", picture), ("prediction", painted)] if image else
                     [("prediction", painted)])  # fmt: skip
    wanted = cuts(sizes.foreground, sizes.grid)
    labels = _read_planes(answer.path, wanted)
    below = _read_planes(image, wanted) if image else [np.zeros_like(p) for p in labels]
    panels = []
    for cut, plane, grey in zip(wanted, labels, below, strict=True):
        picture = enlarge(colours.stretched(grey[:1]), cut.pixel)
        painted = _painted(picture, enlarge(plane[0], cut.pixel), palette, ignore)
        panels.append((cut.title, painted))
    return strip("", panels, planes=True)


def _pixel(sizes: Volumes) -> tuple[float, float]:
    """Height and width of a pixel of a 2D prediction."""
    spacing = sizes.grid.spacing or (1.0, 1.0)
    return spacing[-2], spacing[-1]


def _painted(
    picture: np.ndarray,
    labels: np.ndarray,
    palette: Sequence[colours.Colour],
    ignore: int | None,
) -> np.ndarray:
    """Labels in colour over a picture in grey, ``(Y, X, 3)``."""
    grey = picture.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    shown = labels if ignore is None else np.where(labels == ignore, 0, labels)
    return colours.classes(grey, shown, palette)


def _read_planes(path: Path, wanted: Sequence[Cut]) -> list[np.ndarray]:
    """Upright planes of a volume, read slab by slab where the format can."""
    with files.view(path, 3) as (volume, _):
        return planes(volume, wanted)


def _image_rows(found: Predicted, answer: Answer, image: Path | None) -> str:
    """Input and output of an image, and the mask where there is one."""
    require_readable(answer.path, answer.dims)
    sources = [("input", image)] if image else []
    sources += [("output", answer.path), *_masks(found, answer)]
    if answer.dims == 2:
        arrays = [(title, files.read(path, 2)[0]) for title, path in sources]
        full = full_scale(dict(arrays)["output"])
        return strip("", [(t, enlarge(colours.rgb(a / _scale(t, a, full)))) for t, a in arrays])
    grid = grid_of(files.geometry(answer.path, 3), 3)
    shape = files.probe(answer.path, 3).shape[1:]
    middle = [Cut(axis=a, index=n // 2, count=n, grid=grid) for a, n in enumerate(shape)]
    rows = [(title, _read_planes(path, middle)) for title, path in sources]
    full = max(full_scale(p) for p in dict(rows)["output"])
    return "".join(
        strip(
            cut.title,
            [(t, enlarge(colours.rgb(p[n] / _scale(t, p[n], full)), cut.pixel)) for t, p in rows],
        )
        for n, cut in enumerate(middle)
    )


def _scale(title: str, array: np.ndarray, full: float) -> float:
    """What is white: the same for input and output, and what a mask's type holds."""
    return full_scale(array) if title == "mask" else full


def _masks(found: Predicted, answer: Answer) -> list[tuple[str, Path]]:
    """The picture of where a network with a mask head changed something."""
    tried = [found.folder / "masks" / f"{answer.id}{kind}" for kind in (".png", ".tif")]
    return [("mask", path) for path in tried if path.is_file()][:1]


def _origin(found: Predicted) -> str:
    """The summary without its files, folded away."""
    rest = {k: v for k, v in found.summary.items() if k != "files"}
    text = json.dumps(rest, indent=1, ensure_ascii=False)
    return section(
        "Origin",
        f"<details><summary>Models and settings</summary><pre>{escape(text)}</pre></details>",
    )
