"""Find the cases of a data set: which files belong together, are missing, or are too many.

No pixel is read. Layouts are documented in :class:`pipeline.config.Data`. Files pair by stem; ids
are compared in Unicode's composed form (NFC), because some file systems store ``é`` as two
characters.
"""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import config, documents, files
from pipeline.data import patterns
from pipeline.records import Case, Fault, UserError, remember

SHOWN = 200
"""Characters of a header that a message shows."""

JUNK = frozenset({"thumbs.db", "desktop.ini", "icon\r", "__macosx"})
"""Lower-case names of files that file managers leave behind; skipped silently like any dotfile."""

TREES = {
    "competition": (
        "train_images/ID.tif, train_labels/ID.tif, test_images/ID.tif and train.csv (id,scroll_id)"
    ),
    "nnunet": (
        "imagesTr/ID_0000.nii.gz, labelsTr/ID.nii.gz, imagesTs/ID_0000.nii.gz and dataset.json"
    ),
}
"""Files of each layout, for messages."""

CALLED = {
    "competition": "a folder of the competition (train_images, train_labels)",
    "nnunet": "an nnU-Net folder (imagesTr, labelsTr)",
    "folders": "a folder of images and targets as data.folders names them",
}
"""Names of the layouts, for messages."""

_CHANNEL = re.compile(r"(.+)_(\d{4})", re.DOTALL)
_LABEL = re.compile(r"\s*\d{1,9}\s*")


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


@dataclass(slots=True)
class _Search:
    """State of one search through a data set."""

    root: Path
    ending: str = ""
    """File ending of dataset.json; other files are skipped. Empty: every known one counts."""
    splits: bool = False
    """Whether split.json is read."""
    odd_folders: bool = False
    """Whether folders with the name of an image file count as images, to fail on their own."""
    faults: list[Fault] = field(default_factory=list)

    def fault(self, path: Path, problem: str, suggestion: str, warning: bool = False) -> None:
        """Note a finding."""
        self.faults.append(
            Fault(
                path=path,
                problem=problem,
                suggestion=suggestion,
                severity="warning" if warning else "error",
            )
        )


def find(data: config.Data, targets: Mapping[str, str], root: Path) -> Found:
    """Find the cases of a data set.

    ``split.json`` of the layout ``folders`` moves images to the test cases, which need no targets
    but keep those that exist. Never raises for bad data: ``faults`` lists all of it. Rows of
    train.csv without files are a warning.

    Args:
        data: section ``data`` of the config.
        targets: kind of each role beside the image (``Config.roles``).
        root: folder of the data set.

    Returns:
        Cases and faults.
    """
    layout = _layout(data, root)
    if layout is None:
        return Found(layout=data.layout, faults=(_no_images(data, root),))
    search = _Search(root, splits=layout == "folders")
    if layout == "nnunet":
        train, test = _find_nnunet(search, targets)
    else:
        folders = dict(data.folders) if layout == "folders" else _competition_folders(targets)
        test_folder = root / (data.test if layout == "folders" else "test_images")
        train, test = _find_folders(search, folders, targets, test_folder)
    if data.folds.pattern is not None:
        train = _groups_by_pattern(search, train, data.folds.pattern)
    else:
        train = _groups_from_csv(
            search, train, [c.id for c in test], optional=layout != "competition"
        )
    _report_long_ids(search, train)
    if not train and not any(f.severity == "error" for f in search.faults):
        search.faults.append(_no_images(data, root))
    return Found(layout=layout, train=tuple(train), test=tuple(test), faults=tuple(search.faults))


LONGEST = 255 - len(".scores.json")
"""Bytes of the longest id: training makes file names of it, and disks hold 255 bytes."""


def _report_long_ids(search: _Search, cases: Sequence[Case]) -> None:
    """Note ids of which no file names can be made."""
    for case in cases:
        size = len(os.fsencode(case.id))
        if size > LONGEST:
            suggestion = (
                f"Rename image and targets: {LONGEST} bytes are the most, since training makes"
                " longer names of it"
            )
            search.fault(case.image[0], f"has an id of {size} bytes", suggestion)


def _layout(data: config.Data, root: Path) -> str | None:
    """The configured layout, for ``auto`` the first whose image folder exists.

    None where that folder is missing.
    """
    image_folders = {
        "competition": "train_images",
        "nnunet": "imagesTr",
        "folders": data.folders["image"],
    }
    wanted = image_folders if data.layout == "auto" else {data.layout: image_folders[data.layout]}
    return next((name for name, folder in wanted.items() if os.path.isdir(root / folder)), None)


def _no_images(data: config.Data, root: Path) -> Fault:
    """The finding for a folder without training images, with the nearest remedy."""
    configured = ", ".join(f"{folder}/ID.* ({role})" for role, folder in data.folders.items())
    trees = TREES | {"folders": configured}
    shown = trees if data.layout == "auto" else {data.layout: trees[data.layout]}
    other = _layout(dataclasses.replace(data, layout="auto"), root)
    if other is not None and _layout(data, root) is None:
        problem = f"holds no images in the layout {data.layout!r}, but this is {CALLED[other]}"
        return Fault(
            path=root, problem=problem, suggestion=f"Set data.layout=auto, or data.layout={other}"
        )
    if other is None and (below := _nested_data_set(data, root)):
        problem = f"holds no training images itself; {below.name} in it does"
        return Fault(
            path=root,
            problem=problem,
            suggestion=f"Set data.root or --data-dir to {below}, and data.layout=auto",
        )
    suggestion = "Set data.root or --data-dir to a folder that holds " + "; or ".join(
        f"[{name}] {tree}" for name, tree in shown.items()
    )
    return Fault(
        path=root,
        problem="holds no training images" if os.path.isdir(root) else _no_folder(root),
        suggestion=suggestion,
    )


def _no_folder(path: Path) -> str:
    """Why a path is no folder that can be listed."""
    reason = files.absence(path)
    return f"is no folder ({reason})" if reason else "is no folder"


def _nested_data_set(data: config.Data, root: Path) -> Path | None:
    """The first folder in ``root`` that is a data set itself.

    As in nnU-Net's ``nnUNet_raw/Dataset001_NAME``.
    """
    folders = sorted(p for p in _children(root) if os.path.isdir(p))
    named = dataclasses.replace(data, layout="auto", folders={"image": "imagesTr"})
    return next((p for p in folders if _layout(named, p) is not None), None)


def _competition_folders(targets: Mapping[str, str]) -> dict[str, str]:
    """Folders by role in the layout of the competition, which has one target."""
    return {"image": "train_images"} | dict.fromkeys(list(targets)[:1], "train_labels")


def _find_folders(
    search: _Search, folders: Mapping[str, str], targets: Mapping[str, str], test: Path
) -> tuple[list[Case], list[Case]]:
    """Training and test cases of the layouts ``folders`` and ``competition``."""
    images = _by_id(search, search.root / folders["image"])
    roles = {
        role: paths
        for role, kind in targets.items()
        if (paths := _target_files(search, role, folders, kind)) is not None
    }
    others = _by_id(search, test)
    held_out = _held_out_ids(search, images, others) if search.splits else frozenset()
    train = [
        Case(id=name, image=(path,), targets=_targets_of(search, name, path, roles))
        for name, path in images.items()
        if name not in held_out
    ]
    _report_orphans(search, images, roles)
    tests = [
        Case(
            id=name,
            image=(path,),
            targets={role: paths[name] for role, paths in roles.items() if name in paths},
        )
        for name, path in images.items()
        if name in held_out
    ]
    return train, tests + [
        Case(id=name, image=(path,)) for name, path in others.items() if name not in held_out
    ]


def _held_out_ids(
    search: _Search, images: Mapping[str, Path], others: Mapping[str, Path]
) -> frozenset[str]:
    """Ids that ``split.json`` holds out of training.

    None where there is no such file or it cannot be used, which is a fault. ``others`` are the
    images of the folder of test images, which may not bear the same ids.
    """
    path = search.root / "split.json"
    if not os.path.lexists(path):
        return frozenset()
    lists = _split_lists(search, path)
    if lists is None:
        return frozenset()
    train, test = (
        {listed_id(entry, images): None for entry in lists.get(key, ())}
        for key in ("train", "test")
    )
    for name in [name for name in train if name not in images] + [
        name for name in test if name not in images and name not in others
    ]:
        search.fault(
            path,
            f"names {name}, of which there is no image",
            "It is skipped; correct or remove that entry",
            warning=True,
        )
    both = [name for name in train if name in test]
    if both:
        search.fault(
            path,
            f"lists {len(both)} ids under both train and test: {_first_names(both)}",
            "Keep each id in one list",
        )
    unlisted = (
        [name for name in images if name not in train and name not in test]
        if "train" in lists
        else []
    )
    if unlisted:
        suggestion = (
            "List them under train or test, or leave the list train away: then all images that are"
            " not under test are trained on"
        )
        search.fault(
            path,
            f"lists {len(unlisted)} images neither under train nor under test:"
            f" {_first_names(unlisted)}",
            suggestion,
        )
    for name in [name for name in test if name in images and name in others]:
        search.fault(
            others[name],
            f"has the same id as {images[name].name}, which split.json tests on, too",
            "Keep one file per case",
        )
    held_out = frozenset(name for name in test if name in images)
    if images and held_out == set(images):
        search.fault(
            path,
            "leaves no image to train on: all are under test",
            "Take some of them off that list",
        )
    return held_out


def _split_lists(search: _Search, path: Path) -> dict[str, list[str]] | None:
    """The lists of split.json; None where it is no such document, which is a fault."""
    suggestion = (
        'It should read {"train": [ID, ...], "test": [ID, ...]}, where train may be left out; mend'
        " it, or take it away"
    )
    try:
        document = files.read_json(path)
    except files.FileError as error:
        search.fault(path, error.problem, suggestion)
        return None
    if not isinstance(document, dict) or not document:
        search.fault(
            path,
            f"holds {type(document).__name__ if document else 'nothing'} and no lists of ids",
            suggestion,
        )
        return None
    for key, value in document.items():
        if key not in ("train", "test"):
            search.fault(path, f"holds the key {key!r}, which means nothing here", suggestion)
            return None
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            search.fault(
                path, f"holds under {key!r} something else than a list of texts", suggestion
            )
            return None
    return document


def listed_id(entry: str, images: Collection[str]) -> str:
    """The id that an entry of split.json means.

    Args:
        entry: an id, or a file name with or without folder and suffix.
        images: ids of the images.

    Returns:
        The entry itself where it is an id, else its file name without folder and suffix, in NFC.

    Example:
        >>> listed_id("images/case_1.nii.gz", ["case_1"])
        'case_1'
    """
    given = unicodedata.normalize("NFC", entry.strip())
    if given in images:
        return given
    name = Path(given).name
    return name[: len(name) - len(files.suffix(name))]


def _target_files(
    search: _Search, role: str, folders: Mapping[str, str], kind: str
) -> dict[str, Path] | None:
    """Files of one target by id; None where it has no folder.

    That is one fault and not one for each case.
    """
    what = f"field of view {role!r}" if kind == "mask" else f"target {role!r}"
    if role not in folders:
        suggestion = f"Use data.layout: folders and name it, data.folders: {{{role}: FOLDER}}"
        search.fault(search.root, f"has no folder for the {what}", suggestion)
        return None
    folder = search.root / folders[role]
    if not os.path.isdir(folder):
        search.fault(
            folder,
            f"is no folder; it should hold the {what}",
            "Add it, or correct data.folders or data.layout",
        )
        return None
    return _by_id(search, folder)


def _targets_of(
    search: _Search, name: str, image: Path, roles: Mapping[str, dict[str, Path]]
) -> dict[str, Path]:
    """Targets of one image by role; a missing one is a fault."""
    for role in [role for role, paths in roles.items() if name not in paths]:
        search.fault(
            image, f"has no {role} of the same name", "Add that file, or take the image away"
        )
    return {role: paths[name] for role, paths in roles.items() if name in paths}


def _report_orphans(
    search: _Search, images: Mapping[str, Any], roles: Mapping[str, dict[str, Path]]
) -> None:
    """Note targets without an image."""
    for role, paths in roles.items():
        for name in [name for name in paths if name not in images]:
            search.fault(
                paths[name],
                f"is a {role} without an image",
                "Add the image of that name, or take this file away",
            )


def _find_nnunet(search: _Search, targets: Mapping[str, str]) -> tuple[list[Case], list[Case]]:
    """Training and test cases of the nnU-Net layout."""
    channels = _dataset_json(search)
    images = _by_channel(search, search.root / "imagesTr", channels)
    role = next(iter(targets))
    for further, kind in list(targets.items())[1:]:
        what = "field of view" if kind == "mask" else "target"
        suggestion = "The nnU-Net layout has one target; use data.layout: folders"
        search.fault(search.root, f"has no folder for the {what} {further!r}", suggestion)
    labels = _target_files(search, role, {role: "labelsTr"}, targets[role])
    roles = {} if labels is None else {role: labels}
    train = [
        Case(id=name, image=paths, targets=_targets_of(search, name, paths[0], roles))
        for name, paths in images.items()
    ]
    _report_orphans(search, images, roles)
    tests = _by_channel(
        search, search.root / "imagesTs", channels or max(map(len, images.values()), default=0)
    )
    return train, [Case(id=name, image=paths) for name, paths in tests.items()]


def _dataset_json(search: _Search) -> int:
    """Number of channels that dataset.json announces, 0 where it does not.

    Its file ending is kept in the search.
    """
    path = search.root / "dataset.json"
    if not os.path.lexists(path):
        return 0
    try:
        document = files.read_document(path, documents.DatasetJson, "Mend it, or take it away")
    except files.FileError as error:
        search.fault(
            path, f"is no nnU-Net description: {error.problem}", "Mend it, or take it away"
        )
        return 0
    search.ending = document.get("file_ending", "")
    return len(document.get("channel_names", document.get("modality", ())))


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


def _named_class(key: str, value: object) -> tuple[int, str] | None:
    """Value and name of one entry of ``labels``.

    None for background, regions, ``ignore`` and what is no entry at all.
    """
    if isinstance(value, str) and _LABEL.fullmatch(key):
        key, value = value, int(key)
    elif isinstance(value, str) and _LABEL.fullmatch(value):
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


ODD_CHANNELS = 8
"""Missing or surplus channels that are named per case; a description can announce any number of
them.
"""


def _by_channel(search: _Search, folder: Path, channels: int) -> dict[str, tuple[Path, ...]]:
    """Files ``ID_0000, ID_0001, ...`` by id, channels in order.

    ``channels`` is their number, 0 for the most that any id has.
    """
    table: dict[str, dict[int, Path]] = defaultdict(dict)
    for name, path in _by_id(search, folder).items():
        match = _CHANNEL.fullmatch(name)
        if match:
            table[match[1]][int(match[2])] = path
        else:
            search.fault(path, "has no channel number", f"Call it {name}_0000{files.suffix(path)}")
    wanted = channels or max((max(found) + 1 for found in table.values()), default=0)
    for name, found in table.items():
        wrong = sorted(set(range(wanted)) ^ set(found))
        for number in wrong[:ODD_CHANNELS]:
            which = (
                f"has no channel {number:04d}"
                if number < wanted
                else f"has a channel {number:04d} beyond the {wanted} announced"
            )
            more = (
                f", and {len(wrong) - ODD_CHANNELS} more of its channels are not as announced"
                if len(wrong) > ODD_CHANNELS
                else ""
            )
            suggestion = "Give every case the same channels, numbered from 0000"
            search.fault(folder / f"{name}_{number:04d}", which + more, suggestion)
    return {name: tuple(found[number] for number in sorted(found)) for name, found in table.items()}


def _by_id(search: _Search, folder: Path) -> dict[str, Path]:
    """Image files of a folder by id, in natural order.

    A missing folder is empty; a second file of one id is a fault.
    """
    try:
        paths, non_images = _listing(folder, search.odd_folders)
    except files.FileError as error:
        search.fault(error.path, error.problem, error.suggestion)
        return {}
    if search.ending:
        non_images += [p for p in paths if not p.name.endswith(search.ending)]
        paths = [p for p in paths if p.name.endswith(search.ending)]
    if non_images:
        names = ", ".join(p.name for p in non_images[:5])
        search.fault(
            folder,
            f"holds {len(non_images)} files that are no images: {names}",
            "They are skipped",
            warning=True,
        )
    table: dict[str, Path] = {}
    for path in paths:
        name = files.case_id(path)
        if name in table:
            search.fault(path, f"has the same id as {table[name].name}", "Keep one file per case")
        table.setdefault(name, path)
    return table


def _listing(folder: Path, odd_folders: bool = False) -> tuple[list[Path], list[Path]]:
    """Images and other files of a folder, each in natural order, without junk and sub-folders.

    A broken link counts as a file. With ``odd_folders`` a folder with the name of an image file
    does, too. Raises FileError where the folder may not be listed.
    """
    if not os.path.isdir(folder):
        return [], []
    try:
        everything = _children(folder)
    except OSError as error:
        raise files.FileError(
            folder, f"cannot be listed: {error.strerror}", "Give this user the right to read it"
        ) from None
    entries = [
        p
        for p in everything
        if not p.name.startswith(".") and p.name.lower() not in JUNK and _is_entry(p, odd_folders)
    ]
    for path in entries:
        _remember_name(path)
    entries.sort(key=natural)
    return [p for p in entries if files.is_image(p)], [p for p in entries if not files.is_image(p)]


def _children(folder: Path) -> list[Path]:
    """What lies directly in a folder; nothing where it is none."""
    return list(folder.iterdir()) if os.path.isdir(folder) else []


def _remember_name(path: Path) -> None:
    """Register a name with a line feed, and its id, to be escaped where they are printed."""
    if "\n" in path.name:
        remember(path.name)
        remember(files.case_id(path))


def _is_entry(path: Path, odd_folders: bool) -> bool:
    """Whether a path is a file, or a folder that is one image."""
    return (
        not os.path.isdir(path) or files.is_folder(path) or (odd_folders and files.is_image(path))
    )


def natural(path: Path | str) -> tuple:
    """Sort key in which ``case2`` comes before ``case10``.

    Args:
        path: file or name; only the last part counts.

    Returns:
        The key; equal numbers that are written differently keep a fixed order.

    Example:
        >>> sorted(["case10", "case2"], key=natural)
        ['case2', 'case10']
    """
    name = unicodedata.normalize("NFC", Path(path).name)
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ], name


def _groups_by_pattern(search: _Search, cases: Sequence[Case], pattern: str) -> list[Case]:
    """The cases with the group that ``data.folds.pattern`` finds in their ids.

    It is what the first bracket of the expression matches.
    """
    try:
        groups = dict(
            zip(
                [c.id for c in cases],
                patterns.first_groups(pattern, [c.id for c in cases]),
                strict=True,
            )
        )
    except TimeoutError:
        problem = (
            f"has ids for which data.folds.pattern {pattern!r} takes more than"
            f" {patterns.SECONDS:g} s"
        )
        search.fault(
            search.root, problem, "Write it without a repetition inside a repetition, such as (a+)+"
        )
        return list(cases)
    for case in [c for c in cases if not groups[c.id]]:
        problem = f"has the id {case.id}, in which data.folds.pattern {pattern!r} finds no group"
        search.fault(
            case.image[0],
            problem,
            "Rename the file, or correct the pattern so that its first bracket fits every id",
        )
    return [dataclasses.replace(c, group=groups[c.id] or None) for c in cases]


def _groups_from_csv(
    search: _Search, cases: Sequence[Case], tests: Sequence[str], optional: bool
) -> list[Case]:
    """The cases with their group from train.csv, where there is one.

    ``optional``: the layout does not know that file. Rows of ``tests``, the ids of test cases, are
    nothing to warn of.
    """
    path = search.root / "train.csv"
    if not os.path.lexists(path):
        return list(cases)
    groups = _read_groups(search, path, optional)
    present = {*tests, *(case.id for case in cases)} if optional else {case.id for case in cases}
    _report_rows(
        search,
        path,
        [name for name in groups if name not in present],
        [c.id for c in cases if groups and c.id not in groups],
    )
    return [dataclasses.replace(c, group=groups.get(c.id)) for c in cases]


def _report_rows(
    search: _Search, path: Path, deprecated: Sequence[str], unlisted: Sequence[str]
) -> None:
    """Warn of rows without files and of files without a row."""
    if deprecated:
        search.fault(
            path,
            f"names {len(deprecated)} ids without any file ({_first_names(deprecated)})",
            "These deprecated rows are skipped",
            warning=True,
        )
    if unlisted:
        suggestion = "They are used, but have no group: add rows if folds go by group"
        search.fault(
            path,
            f"lacks {len(unlisted)} ids that have files ({_first_names(unlisted)})",
            suggestion,
            warning=True,
        )


def _read_groups(search: _Search, path: Path, optional: bool) -> dict[str, str | None]:
    """Column scroll_id (or group) of train.csv by id.

    Empty where the file cannot be used, which is a fault.
    """
    try:
        header, rows = (
            files.read_table(path, ("id", "scroll_id", "group"))
            if not _is_empty(path)
            else ((), [])
        )
    except files.FileError as error:
        suggestion = f"{error.suggestion}; it should have the columns id,scroll_id"
        search.fault(path, f"cannot be read: it {error.problem}", suggestion, warning=optional)
        return {}
    if "id" not in header or not rows:
        have = (", ".join(header)[:SHOWN] or "nothing") + (
            "" if rows or not header else ", and no row"
        )
        search.fault(
            path,
            f"has no column 'id', but {have}",
            "It should begin with id,scroll_id",
            warning=optional,
        )
        return {}
    table: dict[str, str | None] = {}
    for row in rows:
        name = unicodedata.normalize("NFC", row.values["id"])
        group = row.values.get("scroll_id") or row.values.get("group") or None
        if not name:
            search.fault(
                path, f"has no id in line {row.line}", "Correct that line", warning=optional
            )
        elif table.setdefault(name, group) != group:
            problem = f"puts {name} into two groups, {table[name]} and {group} (line {row.line})"
            search.fault(path, problem, "Keep one row per id")
    return table


def _is_empty(path: Path) -> bool:
    """Whether a path is a file of no bytes."""
    return path.is_file() and path.stat().st_size == 0


def _first_names(names: Sequence[str]) -> str:
    """The first ten names, for a message."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def images(folder: Path) -> list[Path]:
    """The images directly in a folder.

    Args:
        folder: a folder; a missing one is empty.

    Returns:
        Files, and folders that are one image (Zarr), in natural order.

    Raises:
        FileError: where the folder may not be listed.
    """
    return _listing(folder)[0]


def channel_groups(found: Mapping[str, Path]) -> dict[str, dict[int, Path]] | None:
    """Group files ``ID_0000, ID_0001, ...`` by id.

    Args:
        found: files by their stem.

    Returns:
        ``{ID: {number: path}}``; None unless all stems are of this form and every ID has its
        ``_0000``.
    """
    matches = [(match, path) for name, path in found.items() if (match := _CHANNEL.fullmatch(name))]
    table: dict[str, dict[int, Path]] = defaultdict(dict)
    for match, path in matches:
        table[match[1]][int(match[2])] = path
    complete = 0 < len(matches) == len(found) and all(0 in numbers for numbers in table.values())
    return dict(table) if complete else None


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
        path: a file, a Zarr folder, or a folder of images.
        data: section ``data`` of the model's config.
        channels: input channels of the model; 0: not known, then names alone decide.
        layout: layout of the data that the model was trained on; None: as ``data`` says.

    Returns:
        The cases, without targets.

    Raises:
        UserError: where nothing is there, two files would give one output, or channels cannot be
            made to fit.
    """
    if _is_single_input(path):
        _remember_name(path)
        return (Case(id=files.case_id(path), image=(path,)),)
    search = _Search(path, odd_folders=True)
    found = _by_id(search, path)
    groups = channel_groups(found)
    if groups is not None and _are_channels(
        path, groups, (data.dims, channels), layout or data.layout
    ):
        search.faults.clear()
        result = tuple(
            Case(id=name, image=paths) for name, paths in _by_channel(search, path, 0).items()
        )
    else:
        result = tuple(Case(id=name, image=(image,)) for name, image in found.items())
    errors = [f"{f.path}: {f.problem}. {f.suggestion}." for f in _errors(search.faults)]
    if errors:
        raise UserError("\n".join(errors))
    if not result:
        state = "holds no image" if os.path.isdir(path) else "does not exist"
        raise UserError(f"{path} {state}. Give a file or a folder of {', '.join(files.SUFFIXES)}.")
    return result


def _is_single_input(path: Path) -> bool:
    """Whether a path is one input: whatever is there but a folder of images.

    What cannot be read fails on its own later.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return not os.path.isdir(path) or files.is_folder(path)


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
