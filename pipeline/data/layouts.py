"""How data sets lie on disk: the competition, nnU-Net, and folders that the config names."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import config, documents, files
from pipeline.data.listing import CHANNEL, first_names, folder_entries, list_folder
from pipeline.records import Case, Fault

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


@dataclass(slots=True)
class Search:
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


def layout_of(data: config.Data, root: Path) -> str | None:
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


def no_images(data: config.Data, root: Path) -> Fault:
    """The finding for a folder without training images, with the nearest remedy."""
    configured = ", ".join(f"{folder}/ID.* ({role})" for role, folder in data.folders.items())
    trees = TREES | {"folders": configured}
    shown = trees if data.layout == "auto" else {data.layout: trees[data.layout]}
    other = layout_of(dataclasses.replace(data, layout="auto"), root)
    if other is not None and layout_of(data, root) is None:
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
        problem="holds no training images" if os.path.isdir(root) else no_folder(root),
        suggestion=suggestion,
    )


def no_folder(path: Path) -> str:
    """Why a path is no folder that can be listed."""
    reason = files.absence(path)
    return f"is no folder ({reason})" if reason else "is no folder"


def _nested_data_set(data: config.Data, root: Path) -> Path | None:
    """The first folder in ``root`` that is a data set itself.

    As in nnU-Net's ``nnUNet_raw/Dataset001_NAME``.
    """
    folders = sorted(p for p in folder_entries(root) if os.path.isdir(p))
    named = dataclasses.replace(data, layout="auto", folders={"image": "imagesTr"})
    return next((p for p in folders if layout_of(named, p) is not None), None)


def competition_folders(kinds: Mapping[str, str]) -> dict[str, str]:
    """Folders by role in the layout of the competition, which has one target."""
    return {"image": "train_images"} | dict.fromkeys(list(kinds)[:1], "train_labels")


def find_folders(
    search: Search, folders: Mapping[str, str], kinds: Mapping[str, str], test: Path
) -> tuple[list[Case], list[Case]]:
    """Training and test cases of the layouts ``folders`` and ``competition``."""
    images = files_by_id(search, search.root / folders["image"])
    files_by_role = {
        role: paths
        for role, kind in kinds.items()
        if (paths := _target_files(search, role, folders, kind)) is not None
    }
    others = files_by_id(search, test)
    held_out = _held_out_ids(search, images, others) if search.splits else frozenset()
    train = [
        Case(id=name, image=(path,), targets=_targets_of(search, name, path, files_by_role))
        for name, path in images.items()
        if name not in held_out
    ]
    _report_orphans(search, images, files_by_role)
    tests = [
        Case(
            id=name,
            image=(path,),
            targets={role: paths[name] for role, paths in files_by_role.items() if name in paths},
        )
        for name, path in images.items()
        if name in held_out
    ]
    return train, tests + [
        Case(id=name, image=(path,)) for name, path in others.items() if name not in held_out
    ]


def _held_out_ids(
    search: Search, images: Mapping[str, Path], others: Mapping[str, Path]
) -> frozenset[str]:
    """Ids that ``split.json`` holds out of training.

    Empty where there is no such file or it cannot be used, which is a fault. ``others`` are the
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
            f"lists {len(both)} ids under both train and test: {first_names(both)}",
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
            f" {first_names(unlisted)}",
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


def _split_lists(search: Search, path: Path) -> dict[str, list[str]] | None:
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
    search: Search, role: str, folders: Mapping[str, str], kind: str
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
    return files_by_id(search, folder)


def _targets_of(
    search: Search, name: str, image: Path, files_by_role: Mapping[str, dict[str, Path]]
) -> dict[str, Path]:
    """Targets of one image by role; a missing one is a fault."""
    for role in [role for role, paths in files_by_role.items() if name not in paths]:
        search.fault(
            image, f"has no {role} of the same name", "Add that file, or take the image away"
        )
    return {role: paths[name] for role, paths in files_by_role.items() if name in paths}


def _report_orphans(
    search: Search, images: Mapping[str, Any], files_by_role: Mapping[str, dict[str, Path]]
) -> None:
    """Note targets without an image."""
    for role, paths in files_by_role.items():
        for name in [name for name in paths if name not in images]:
            search.fault(
                paths[name],
                f"is a {role} without an image",
                "Add the image of that name, or take this file away",
            )


def find_nnunet(search: Search, kinds: Mapping[str, str]) -> tuple[list[Case], list[Case]]:
    """Training and test cases of the nnU-Net layout."""
    channels = _dataset_json(search)
    images = images_by_channel(search, search.root / "imagesTr", channels)
    role = next(iter(kinds))
    for further, kind in list(kinds.items())[1:]:
        what = "field of view" if kind == "mask" else "target"
        suggestion = "The nnU-Net layout has one target; use data.layout: folders"
        search.fault(search.root, f"has no folder for the {what} {further!r}", suggestion)
    labels = _target_files(search, role, {role: "labelsTr"}, kinds[role])
    files_by_role = {} if labels is None else {role: labels}
    train = [
        Case(id=name, image=paths, targets=_targets_of(search, name, paths[0], files_by_role))
        for name, paths in images.items()
    ]
    _report_orphans(search, images, files_by_role)
    tests = images_by_channel(
        search, search.root / "imagesTs", channels or max(map(len, images.values()), default=0)
    )
    return train, [Case(id=name, image=paths) for name, paths in tests.items()]


def _dataset_json(search: Search) -> int:
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


ODD_CHANNELS = 8
"""Missing or surplus channels that are named per case; a description can announce any number of
them.
"""


def images_by_channel(search: Search, folder: Path, channels: int) -> dict[str, tuple[Path, ...]]:
    """Files ``ID_0000, ID_0001, ...`` by id, channels in order.

    ``channels`` is their number, 0 for the most that any id has.
    """
    table: dict[str, dict[int, Path]] = defaultdict(dict)
    for name, path in files_by_id(search, folder).items():
        match = CHANNEL.fullmatch(name)
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


def files_by_id(search: Search, folder: Path) -> dict[str, Path]:
    """Image files of a folder by id, in natural order.

    A missing folder is empty; a second file of one id is a fault.
    """
    try:
        paths, non_images = list_folder(folder, search.odd_folders)
    except files.FileError as error:
        search.fault(error.path, error.problem, error.suggestion)
        return {}
    if search.ending:
        fitting = [p for p in paths if p.name.endswith(search.ending) or files.is_dicom_folder(p)]
        non_images += [p for p in paths if p not in fitting]
        paths = fitting
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
