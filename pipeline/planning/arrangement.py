"""Which data set lies in a folder: from names, structure, headers and a few files."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pipeline import files
from pipeline.config import Config, Data, Patch
from pipeline.data import cases as case_finder
from pipeline.data.layouts import TREES
from pipeline.data.listing import list_folder
from pipeline.planning import contents
from pipeline.planning.candidates import (
    TARGETS,
    Folder,
    folders_of,
    paired_suffixes,
    pairs,
    role_of,
    subfolders,
)
from pipeline.planning.contents import Content
from pipeline.records import LossTerm, NamedOptions, UserError

FIXED = ("imagesTr", "train_images")
"""Folders of images in layouts of fixed names."""

SHOWN = 12
"""Folders that an error lists."""

TREE = "\n".join([
    *(f"  [{name}] {tree}" for name, tree in TREES.items()),
    "  [folders] images/ID.png and masks/ID.png (labels), or src/ID.png and dst/ID.png (images);"
    " files pair by equal stem",
])  # fmt: skip
"""The layouts, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """A data set, and the config with which its cases are found and examined."""

    root: Path
    config: Config
    """Layout, folders, axes, task and how labels are read; the rest has no meaning."""
    notes: tuple[str, ...] = ()
    """What was decided, and why."""


def arrange(root: Path, images: str | None = None, targets: str | None = None) -> Arrangement:
    """Find out how the data set in a folder is laid out.

    Names are listed, a few headers read and at most three targets decoded.

    Args:
        root: folder of the data set.
        images: folder of the images below ``root``, where names leave a choice; None: found.
        targets: folder of their labels or target images; None: found.

    Returns:
        The layout and the config with which cases can be found.

    Raises:
        UserError: where no layout fits, with what was seen and what would fit.
        FileError: where no header of an image can be read.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root} is no folder ({files.absence(root) or 'a file'}).")
    if images is not None or targets is not None:
        return _from_folders(root, images, targets)
    _refuse_nested(root)
    if _has(root, "imagesTr", "labelsTr"):
        return _fixed(root, "nnunet", "imagesTr", "labelsTr")
    if _has(root, "train_images", "train_labels"):
        return _fixed(root, "competition", "train_images", "train_labels")
    return _from_folders(root, None, None)


def _has(root: Path, images: str, labels: str) -> bool:
    """Whether a layout's folders are there.

    Raises:
        UserError: where only one of them is, or the first is empty.
    """
    have = [os.path.isdir(root / name) for name in (images, labels)]
    if any(have) and not all(have):
        there, lacks = (images, labels) if have[0] else (labels, images)
        raise UserError(
            f"{root} has {there}/ and no {lacks}/. Training needs both, with files of the same"
            f" names; layouts:\n{TREE}"
        )
    if all(have) and not list_folder(root / images)[0]:
        raise UserError(f"{root / images} holds no image. Layouts:\n{TREE}")
    return all(have)


def preliminary(root: Path, task: str, data: Mapping[str, Any]) -> Config:
    """A config with which cases can be found and examined.

    Args:
        root: folder of the data set.
        task: ``labels`` or ``image``.
        data: keys of section ``data``, ``dims`` among them.

    Returns:
        The config; network and losses have no meaning, and images keep their numbers.
    """
    target = "label" if task == "labels" else "target"
    return Config(
        name="plan",
        task="image" if task == "image" else "labels",
        data=Data(
            root=str(root),
            normalise=NamedOptions(name="none"),
            patch=Patch(size=(1,) * data["dims"]),
            **data,
        ),
        network=NamedOptions(name="unet"),
        losses=(LossTerm(name="dice" if task == "labels" else "l1", target=target),),
    )


def _fixed(root: Path, layout: str, images: str, labels: str) -> Arrangement:
    """A data set of a layout whose folders have fixed names; its targets are labels."""
    dims = contents.axes_of(list_folder(root / images)[0])
    ignored = 2 if layout == "competition" else case_finder.ignore_label(root)
    found = contents.content_of(list_folder(root / labels)[0], dims)
    if found is not None and found.kind == "colours":
        _refuse_colours(root / labels, found)
    binarise = None if found is None or _names_classes(root) else found.binarise
    data = {"layout": layout, "dims": dims, "ignore_label": ignored, "binarise": binarise}
    notes = [f"layout {layout}: {images} and {labels}", f"{dims} space axes, by headers"]
    if layout == "competition":
        notes.append("label 2 is ignored, as the competition has it")
    if binarise is not None and found is not None:
        notes.append(f"{labels}: {found.text}; above {binarise:g} is class 1")
    return Arrangement(root=root, config=preliminary(root, "labels", data), notes=tuple(notes))


def _names_classes(root: Path) -> bool:
    """Whether ``dataset.json`` names more than one class."""
    return len(case_finder.class_names(root)) > 1


# --- folders --------------------------------------------------------------------------------------


def _from_folders(root: Path, images: str | None, targets: str | None) -> Arrangement:
    """A data set of the layout ``folders``."""
    found = folders_of(root)
    image = _named(root, images, found) if images else _image_folder(root, found)
    target = _named(root, targets, found) if targets else _target_folder(root, image, found)
    if image.name == target.name:
        raise UserError(f"{image.name}/ cannot be both --images and --targets. Name two folders.")
    _require_pairs(root, image, target)
    dims = contents.axes_of(image.paths)
    content = contents.content_of(target.paths, dims)
    if content is None:
        raise UserError(
            f"{root / target.name}: none of the files that were tried can be read, e.g."
            f" {target.paths[0].name}: {files.probe(target.paths[0], dims).problem}."
        )
    if content.kind == "colours":
        _refuse_colours(root / target.name, content)
    task = content.kind
    test = _test_folder(image, target, found)
    data: dict[str, Any] = {
        "layout": "folders",
        "dims": dims,
        "folders": {"image": image.name, "label" if task == "labels" else "target": target.name},
        "binarise": content.binarise,
    }
    if test is not None:
        data["test"] = test.name
    both = len(image.stems & target.stems)
    notes = [
        f"layout folders: {image.name} is the input, {target.name} the target; {both} of"
        f" {len(image.stems)} images have one of the same stem",
        f"{dims} space axes, by headers",
        f"task {task}: {target.name} holds {content.text}",
    ]
    if content.binarise is not None:
        notes.append(f"above {content.binarise:g} is class 1")
    if test is not None:
        notes.append(f"{test.name} is predicted, not trained on")
    return Arrangement(root=root, config=preliminary(root, task, data), notes=tuple(notes))


def _image_folder(root: Path, found: Sequence[Folder]) -> Folder:
    """The folder of training images."""
    if not found:
        _refuse_flat(root)
    here = [f for f in found if f.side != "test" and f.role == "image"]
    here = here or _by_pairs(found) or _by_content(root, found)
    if not here:
        _refuse_cases(root, found)
        targets = [f for f in found if f.role == "target"]
        what = "labels without images" if targets else "no folder that is known for images"
        _refuse(root, what, found)
    paired = [f for f in here if any(pairs(f, t) for t in found if t.role != "image")]
    best = paired or here
    best = [f for f in best if f.side == "train"] or best
    if len(best) > 1:
        _refuse_choice(root, "image", best, found)
    return best[0]


def _by_pairs(found: Sequence[Folder]) -> list[Folder]:
    """Folders without a known name that pair with a folder of targets."""
    unnamed = [f for f in found if not f.role and f.side != "test"]
    targets = [f for f in found if f.role == "target" and f.side != "test"]
    return [f for f in unnamed if any(pairs(f, t) for t in targets)]


def _by_content(root: Path, found: Sequence[Folder]) -> list[Folder]:
    """Of two folders without known names that pair, the one that holds no labels."""
    unnamed = [f for f in found if not f.role and f.side != "test"]
    both = [f for f in unnamed if any(pairs(f, g) and pairs(g, f) for g in unnamed)]
    if len(both) != 2:
        return []
    dims = contents.axes_of(both[0].paths)
    kinds = [contents.content_of(f.paths, dims) for f in both]
    images = [f for f, c in zip(both, kinds, strict=True) if c is not None and c.kind == "image"]
    if len(images) == 1:
        return images
    _refuse_choice(root, "image", both, found)


def _target_folder(root: Path, image: Folder, found: Sequence[Folder]) -> Folder:
    """The folder of targets of a folder of images."""
    here = [f for f in found if f is not image and f.role not in ("image", "fov")]
    here = [f for f in here if f.side == image.side or (f.side != "test" and pairs(image, f))]
    named = [f for f in here if f.role == "target"]
    best = [f for f in named if pairs(image, f)] or [f for f in here if pairs(image, f)]
    best = best or named
    if not best:
        _refuse(root, f"images in {image.name}/ without labels or targets", found)
    near = [f for f in best if f.side == image.side]
    best = near or best
    if len(best) > 1:
        _refuse_choice(root, "label", best, found, image)
    return best[0]


def _named(root: Path, name: str, found: Sequence[Folder]) -> Folder:
    """A folder that the user names."""
    name = name.strip("/")
    known = next((f for f in found if f.name == name), None)
    if known is not None:
        return known
    paths = list_folder(root / name)[0]
    if not paths:
        _refuse(root, f"no image in {name}/", found)
    return Folder(name, paths, *role_of(name))


def _require_pairs(root: Path, image: Folder, target: Folder) -> None:
    """Refuse folders of which no file belongs to one of the other."""
    if image.stems & target.stems:
        return
    raise UserError(
        f"{root}: no file of {image.name}/ ({image.paths[0].name}, ...) has the stem of one of"
        f" {target.name}/ ({target.paths[0].name}, ...). Files pair by equal stem: rename them so"
        f" that {image.name}/{image.paths[0].name} goes with"
        f" {target.name}/{files.case_id(image.paths[0])}{files.suffix(target.paths[0])}."
    )


def _test_folder(image: Folder, target: Folder, found: Sequence[Folder]) -> Folder | None:
    """The folder of images to predict."""
    here = [f for f in found if f.side == "test" and f not in (image, target)]
    named = [f for f in here if f.role == "image"] or [f for f in here if not f.role]
    exact = [f for f in named if "val" not in f.name.lower()]
    return next(iter(exact or named), None)


# --- errors ---------------------------------------------------------------------------------------


def _refuse(root: Path, what: str, found: Collection[Folder]) -> NoReturn:
    """Say what was seen and what would fit."""
    seen = "".join(f"\n  {f.shown}" for f in list(found)[:SHOWN])
    more = f"\n  ... and {len(found) - SHOWN} more folders" if len(found) > SHOWN else ""
    raise UserError(
        f"{root} holds {what}. Seen:{seen or ' no folder of images'}{more}\nLayouts:\n{TREE}"
    )


def _refuse_choice(
    root: Path,
    role: str,
    best: Sequence[Folder],
    found: Collection[Folder],
    image: Folder | None = None,
) -> NoReturn:
    """Say that several folders could be meant, and which key chooses."""
    other = image.name if image else "FOLDER"
    named = ", ".join(f"{f.name}/" for f in best)
    words = ["--images", other, "--targets"] if role == "label" else ["--images"]
    _refuse(
        root,
        f"{len(best)} folders that may be the {'target' if role == 'label' else 'input'}: {named}."
        f" Choose with options of pipeline.plan, e.g. {shlex.join([*words, best[0].name])}",
        found,
    )


def _refuse_colours(folder: Path, content: Content) -> NoReturn:
    """Say that classes are saved as colours."""
    raise UserError(
        f"{folder} holds pictures of {content.text}: classes saved as colours. Save one channel"
        " that holds the class numbers (0 background, 1, 2, ...), or a palette image of them."
    )


def _refuse_nested(root: Path) -> None:
    """Refuse a folder of data sets, such as ``nnUNet_raw``."""
    if any(os.path.isdir(root / name) for name in FIXED):
        return
    below = [p for p in subfolders(root) if any(os.path.isdir(p / name) for name in FIXED)]
    if below:
        names = ", ".join(str(p) for p in below[:SHOWN]) + (", ..." if len(below) > SHOWN else "")
        raise UserError(f"{root} holds no images itself; folders in it do. Give one of: {names}.")


def _refuse_cases(root: Path, found: Sequence[Folder]) -> None:
    """Refuse folders of single cases, with their files side by side."""
    for folder in found:
        words = [set(re.split(r"[\W_\d]+", files.case_id(p).lower())) for p in folder.paths]
        labels = [p for p, w in zip(folder.paths, words, strict=True) if w & TARGETS]
        if folder.role or len(labels) != 1 or len(found) < 2:
            continue
        images = [p for p in folder.paths if p not in labels]
        moved = ", ".join(
            f"{p.name} to imagesTr/{folder.name}_{n:04d}{files.suffix(p)}"
            for n, p in enumerate(images[:2])
        )
        raise UserError(
            f"{root} seems to hold a folder for each case, e.g. {folder.shown}. Bring the files to"
            f" one of the layouts, e.g. {moved}, {labels[0].name} to"
            f" labelsTr/{folder.name}{files.suffix(labels[0])}. Layouts:\n{TREE}"
        )


def _refuse_flat(root: Path) -> NoReturn:
    """Say what lies in a folder without folders of images."""
    paths = list_folder(root)[0]
    if not paths:
        below = [p.name for p in subfolders(root)][:SHOWN]
        seen = f"the folders {', '.join(below)}" if below else "no folder"
        raise UserError(f"{root} holds no image, and {seen}. Layouts:\n{TREE}")
    names = ", ".join(p.name for p in paths[:4]) + (", ..." if len(paths) > 4 else "")
    marks = paired_suffixes([files.case_id(p) for p in paths])
    if marks:
        stem, mark = marks
        end = files.suffix(paths[0])
        raise UserError(
            f"{root} holds images and labels in one folder: {stem}{end} and {stem}{mark}{end}."
            f" Move them apart, without {mark!r}: images/{stem}{end} and masks/{stem}{end}."
            f" Layouts:\n{TREE}"
        )
    raise UserError(
        f"{root} holds {len(paths)} images ({names}) without labels or targets. If some of them are"
        " labels of others, move them to a folder of their own and give both the same name:"
        f" images/NAME{files.suffix(paths[0])} and masks/NAME{files.suffix(paths[0])}."
        f" Layouts:\n{TREE}"
    )
