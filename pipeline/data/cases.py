"""Find the cases of a data set: which files belong together, are missing, or are too many.

No pixel is read. Layouts are documented in :class:`pipeline.config.Data`. Files pair by stem; ids
are compared in Unicode's composed form (NFC), because some file systems store ``é`` as two
characters.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import config, files
from pipeline.data import blocks
from pipeline.data.groups import groups_by_pattern, groups_from_csv
from pipeline.data.layouts import (
    Search,
    competition_folders,
    files_by_id,
    find_folders,
    find_nnunet,
    images_by_channel,
    layout_of,
    no_images,
)
from pipeline.data.listing import channel_groups, remember_name
from pipeline.records import Case, Fault, UserError

_LABEL_KEY = re.compile(r"\s*\d{1,9}\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Cases of a data set in natural order, and everything that is wrong with how its files lie."""

    layout: str
    """``competition``, ``nnunet`` or ``folders``; the configured name where none was found."""
    train: tuple[Case, ...] = ()
    """Cases to train and validate on, with targets."""
    test: tuple[Case, ...] = ()
    """Cases held out of training; targets where they exist."""
    faults: tuple[Fault, ...] = ()


def find(data: config.Data, kinds: Mapping[str, str], root: Path) -> Found:
    """Find the cases of a data set.

    ``split.json`` of the layout ``folders`` moves images to the test cases, which need no targets
    but keep those that exist. With ``data.folds.by: block`` the training cases are blocks of stacks
    (:mod:`pipeline.data.blocks`), for which headers are read. Never raises for bad data: ``faults``
    lists all of it. Rows of train.csv without files are a warning.

    Args:
        data: section ``data`` of the config.
        kinds: kind of each role beside the image (``Config.roles``).
        root: folder of the data set.

    Returns:
        Cases and faults.
    """
    layout = layout_of(data, root)
    if layout is None:
        return Found(layout=data.layout, faults=(no_images(data, root),))
    search = Search(root, splits=layout == "folders")
    if layout == "nnunet":
        train, test = find_nnunet(search, kinds)
    else:
        folders = dict(data.folders) if layout == "folders" else competition_folders(kinds)
        test_folder = root / (data.test if layout == "folders" else "test_images")
        train, test = find_folders(search, folders, kinds, test_folder)
    if data.folds.pattern is not None:
        train = groups_by_pattern(search, train, data.folds.pattern)
    else:
        train = groups_from_csv(
            search, train, [c.id for c in test], optional=layout != "competition"
        )
    if data.folds.by == "block":
        train = blocks.divide(search, train, data)
    _report_long_ids(search, train)
    if not train and not any(f.severity == "error" for f in search.faults):
        search.faults.append(no_images(data, root))
    return Found(layout=layout, train=tuple(train), test=tuple(test), faults=tuple(search.faults))


LONGEST = 255 - len(".scores.json")
"""Bytes of the longest id: training makes file names of it, and disks hold 255 bytes."""


def _report_long_ids(search: Search, cases: Sequence[Case]) -> None:
    """Note ids of which no file names can be made."""
    for case in cases:
        size = len(os.fsencode(case.id))
        if size > LONGEST:
            suggestion = (
                f"Rename image and targets: {LONGEST} bytes are the most, since training makes"
                " longer names of it"
            )
            search.fault(case.image[0], f"has an id of {size} bytes", suggestion)


def ignore_label(root: Path) -> int | None:
    """The label that an nnU-Net ``dataset.json`` calls ``ignore``.

    Args:
        root: folder of the data set.

    Returns:
        Its value; None where the file names none or cannot be read.
    """
    path = root / "dataset.json"
    try:
        labels = files.read_json(path)["labels"] if os.path.isfile(path) else {}
        value = labels.get("ignore")
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    except (files.FileError, AttributeError, KeyError, TypeError):
        return None


def class_names(root: Path) -> dict[int, str]:
    """Names of the foreground classes in an nnU-Net ``dataset.json``.

    Both versions are read: ``{"background": 0, "Anterior": 1}`` and
    ``{"0": "background", "1": "Anterior"}``. Regions (lists of values) and ``ignore`` are no
    classes; a name that two classes bear gains its value.

    Args:
        root: folder of the data set.

    Returns:
        Names by label value, in the order of the values. Empty where there is no usable file: only
        reports read these names, so a damaged one is not worth an error.
    """
    try:
        document = files.read_json(root / "dataset.json")
    except files.FileError:
        return {}
    labels = document.get("labels") if isinstance(document, dict) else None
    entries = labels.items() if isinstance(labels, dict) else ()
    found = sorted(pair for entry in entries if (pair := _named_class(*entry)) is not None)
    count = Counter(name for _, name in found)
    return {value: name if count[name] == 1 else f"{name} ({value})" for value, name in found}


def channel_names(root: Path) -> tuple[str, ...]:
    """Names of the channels in an nnU-Net ``dataset.json``.

    Args:
        root: folder of the data set.

    Returns:
        Names in the order of the channels; empty where there is no usable file.
    """
    try:
        document = files.read_json(root / "dataset.json")
    except files.FileError:
        return ()
    names = (
        document.get("channel_names", document.get("modality"))
        if isinstance(document, dict)
        else None
    )
    if isinstance(names, dict):
        known = sorted((int(key), name) for key, name in names.items() if key.isdecimal())
        names = [name for _, name in known]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _named_class(key: str, value: object) -> tuple[int, str] | None:
    """Value and name of one entry of ``labels``.

    None for background, regions, ``ignore`` and what is no entry at all.
    """
    if isinstance(value, str) and _LABEL_KEY.fullmatch(key):
        key, value = value, int(key)
    elif isinstance(value, str) and _LABEL_KEY.fullmatch(value):
        value = int(value)
    name = " ".join("".join(letter if letter.isprintable() else " " for letter in key).split())
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < 1
        or not name
        or name.lower() == "ignore"
    ):
        return None
    return value, name


IMAGE_FOLDERS = ("imagesTs", "test_images", "imagesTr", "train_images", "images")
"""Folders of a data set that may be meant where it was named whole, test images first."""


def inputs(
    path: Path, data: config.Data, channels: int = 0, layout: str | None = None
) -> tuple[Case, ...]:
    """Cases to predict: one file, or the images of one folder, in natural order.

    Files ``ID_0000, ID_0001`` of a folder may be channels of one case, or cases of their own, such
    as the frames of a film. The layout that the model was trained with and its number of input
    channels decide:

    - another layout than ``nnunet``: every file is a case;
    - ``nnunet``: they are channels, and every id must have as many as the model takes;
    - ``auto`` (not known): they are channels where they then make the model's number, else cases
      where each has that number alone.

    Args:
        path: a file, a Zarr folder, a folder of the DICOM slices of one series, or a folder of
            images.
        data: section ``data`` of the model's config.
        channels: input channels of the model; 0: not known, then names alone decide.
        layout: layout of the data that the model was trained on; None: as ``data`` says.

    Returns:
        The cases, without targets.

    Raises:
        UserError: where nothing is there, two files would give one output, or channels cannot be
            made to fit.
    """
    if _is_single_input(path, data.dims):
        remember_name(path)
        case_id = files.case_id(path)
        if channels == 1 and (layout or data.layout) == "nnunet":  # named as in its folder
            case_id = case_id.removesuffix("_0000") or case_id
        return (Case(id=case_id, image=(path,)),)
    search = Search(path, odd_folders=True)
    found = files_by_id(search, path)
    groups = channel_groups(found)
    if groups is not None and _are_channels(
        path, groups, (data.dims, channels), layout or data.layout
    ):
        search.faults.clear()
        result = tuple(
            Case(id=name, image=paths) for name, paths in images_by_channel(search, path, 0).items()
        )
    else:
        result = tuple(Case(id=name, image=(image,)) for name, image in found.items())
    errors = [f"{f.path}: {f.problem}. {f.suggestion}." for f in _errors(search.faults)]
    if errors:
        raise UserError("\n".join(errors))
    if not result:
        state = "holds no image" if os.path.isdir(path) else "does not exist"
        below = [path / n for n in IMAGE_FOLDERS if os.path.isdir(path / n)]
        state += f", {below[0]} in it may" if below else ""
        raise UserError(f"{path} {state}. Give a file or a folder of {', '.join(files.SUFFIXES)}.")
    return result


def _is_single_input(path: Path, dims: int) -> bool:
    """Whether a path is one input: whatever is there but a folder of images.

    What cannot be read fails on its own later. The slices of a DICOM folder are one volume, but
    images of their own in 2D.
    """
    try:
        os.lstat(files.split_selection(path)[0])
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    if not os.path.isdir(path) or files.is_folder(path):
        return True
    return dims == 3 and files.is_dicom_folder(path)


def _are_channels(
    folder: Path, groups: Mapping[str, Mapping[int, Path]], space: tuple[int, int], layout: str
) -> bool:
    """Whether numbered files are channels of one case.

    ``space`` holds the space axes and the model's channels, see :func:`inputs`. Files that cannot
    be read are not counted: they fail on their own later.
    """
    dims, wanted = space
    if layout not in ("auto", "nnunet"):
        return False
    if not wanted:
        return True
    counts = {
        name: [_channels(path, dims) for path in numbers.values()]
        for name, numbers in groups.items()
    }
    counts = {name: found for name, found in counts.items() if all(found)}
    wrong = next((name for name, found in counts.items() if sum(found) != wanted), None)
    if wrong is None:
        return True
    if layout == "auto" and all(n == wanted for found in counts.values() for n in found):
        return False
    found = counts[wrong]
    raise UserError(
        f"{folder}: {wrong} has {len(found)} files"
        f" ({', '.join(p.name for p in list(groups[wrong].values())[:4])}"
        f"{', ...' if len(found) > 4 else ''})"
        f" of {sum(found)} channels together, the model takes {wanted}. Give every id files"
        f" ID_0000, ID_0001, ... of {wanted} channels together; files that are cases of their own"
        " need names without such numbers, or are given one by one."
    )


def _channels(path: Path, dims: int) -> int:
    """Channels that a file's header announces, 0 where it cannot be read."""
    found = files.probe(path, dims)
    return found.shape[0] if found.problem is None else 0


def _errors(faults: Iterable[Fault]) -> list[Fault]:
    """Faults that are no warnings."""
    return [fault for fault in faults if fault.severity == "error"]
