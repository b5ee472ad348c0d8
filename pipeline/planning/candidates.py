"""Folders of images below a folder, and what their names say."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import files
from pipeline.data.listing import folder_entries, list_folder, natural

IMAGES = frozenset({
    "image", "images", "img", "imgs", "src", "source", "sources", "input", "inputs", "in", "blur",
    "blurred", "blurry", "low", "lr", "noisy", "noise", "raw", "photo", "photos", "scan", "scans",
    "volume", "volumes", "vol", "degraded", "before", "rainy", "rain", "hazy", "original", "x",
})  # fmt: skip
"""Words in the names of folders of images."""

TARGETS = frozenset({
    "label", "labels", "lbl", "mask", "masks", "seg", "segs", "segmentation", "segmentations",
    "annotation", "annotations", "annot", "manual", "gt", "gts", "groundtruth", "truth", "dst",
    "destination", "target", "targets", "sharp", "clean", "high", "hr", "output", "outputs", "out",
    "reference", "references", "ref", "after", "clear", "retouched", "y",
})  # fmt: skip
"""Words in the names of folders of targets."""

TRAIN = frozenset({"train", "training", "tr"})
TEST = frozenset({"test", "testing", "tests", "ts", "te", "val", "valid", "validation"})
"""Words for the side of a folder; images of these are predicted, not trained on."""

FOV = frozenset({"fov", "fovs"})
"""Words for the field of view, which is no target."""

SKIPPED = frozenset({"store", "runs"})
"""Folders that training writes."""

PAIRED = 0.5
"""Least share of images that have a target of the same stem."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of image files."""

    name: str
    """Path below the root."""
    paths: Sequence[Path]
    role: str
    """``image``, ``target``, ``fov``, or empty where its name says nothing."""
    side: str
    """``train``, ``test`` or empty."""
    stems: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stems", frozenset(map(files.case_id, self.paths)))

    @property
    def shown(self) -> str:
        """Name, number of files and the first of them."""
        return f"{self.name}/ ({len(self.paths)} images: {self.paths[0].name}, ...)"


def folders_of(root: Path) -> list[Folder]:
    """Folders of images in a folder and one level below.

    Args:
        root: folder of the data set.

    Returns:
        Those that hold images, in natural order.
    """
    found = []
    for top in subfolders(root):
        found.append(top)
        found += subfolders(top)
    table = []
    for path in found:
        paths = list_folder(path)[0]
        if paths:
            name = path.relative_to(root).as_posix()
            table.append(Folder(name, paths, *role_of(name)))
    return table


def subfolders(path: Path) -> list[Path]:
    """Folders that may hold images, without those that are one image themselves.

    Args:
        path: a folder.

    Returns:
        Folders in it, in natural order; none where it may not be listed.
    """
    try:
        entries = folder_entries(path)
    except OSError:
        return []
    return sorted(
        (
            p
            for p in entries
            if os.path.isdir(p)
            and not p.name.startswith(".")
            and p.name not in SKIPPED
            and not files.is_folder(p)
            and not files.is_dicom_folder(p)
        ),
        key=natural,
    )


def role_of(name: str) -> tuple[str, str]:
    """What the name of a folder says.

    Args:
        name: path of a folder below the root.

    Returns:
        Role (``image``, ``target``, ``fov`` or empty) and side (``train``, ``test`` or empty).

    Example:
        >>> role_of("train/images"), role_of("masks_test"), role_of("1st_manual")
        (('image', 'train'), ('target', 'test'), ('target', ''))
        >>> role_of("GroundTruth"), role_of("trainA")
        (('target', ''), ('', 'train'))
    """
    words = [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]
    known = {*words, *("".join(pair) for pair in itertools.pairwise(words))}
    side = "test" if known & TEST else "train" if known & TRAIN else ""
    for role, table in (("fov", FOV), ("target", TARGETS), ("image", IMAGES)):
        if known & table:
            return role, side
    return "", side


def pairs(one: Folder, other: Folder) -> bool:
    """Whether most files of a folder have one of the same stem in the other.

    Args:
        one: a folder of images.
        other: perhaps that of its targets.

    Returns:
        True for at least half of the files of ``one``.
    """
    return one is not other and len(one.stems & other.stems) >= PAIRED * len(one.stems)


def paired_suffixes(stems: Sequence[str]) -> tuple[str, str] | None:
    """A pair of stems of which one is the other with a word for labels added.

    Args:
        stems: of files.

    Returns:
        The stem and what is added; None where there is no such pair.

    Example:
        >>> paired_suffixes(["a", "a_seg", "b", "b_seg"])
        ('a', '_seg')
    """
    known = set(stems)
    for stem in stems:
        for match in re.finditer(r"[-_. ]([A-Za-z]+)$", stem):
            if match[1].lower() in TARGETS and stem[: match.start()] in known:
                return stem[: match.start()], match[0]
    return None
