"""File names of images: their formats, and the id of the case that they belong to."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (
    ".ome.zarr",
    ".zarr",
    ".nii.gz",
    ".nii",
    ".mha",
    ".mhd",
    ".nrrd",
    ".nhdr",
    ".dcm",
    ".tiff",
    ".tif",
    ".png",
    ".jpeg",
    ".jpg",
    ".npy",
    ".gif",
    ".bmp",
)
"""Formats that can be read; a longer suffix comes before one that it ends with."""

FOLDERS = (".ome.zarr", ".zarr")
"""Formats that are folders of many files."""

INSTEAD = {".gif": ".png", ".bmp": ".png", ".mhd": ".mha", ".nhdr": ".nrrd", ".dcm": ".nii.gz"}
"""Formats that can only be read, and what is written in their place."""

READ_ONLY = tuple(INSTEAD)
"""Formats that can only be read."""

WRITABLE = tuple(s for s in SUFFIXES if s not in READ_ONLY)
"""Formats that can be written."""


SELECTION = re.compile(r"(.+\.zarr)(#[^/#]*)|(.+)(#box=[0-9:x]*)", re.DOTALL | re.IGNORECASE)
"""Name of a Zarr and what is chosen of it, such as ``scan.ome.zarr#level=1,time=0``.

Or name of any image and a box of it, such as ``stack.tif#box=0:200x:x:``.
"""

BOX = "box="
"""Begins the choice of a box of voxels (:mod:`pipeline.files.boxes`)."""


def split_selection(path: Path) -> tuple[Path, str]:
    """Split a path into its file or folder and what is chosen of it.

    Args:
        path: such as ``scan.ome.zarr#level=1,time=0`` or ``stack.tif#box=0:200x:x:``. A folder or a
            link that itself has such a name is the folder of the choice in its name.

    Returns:
        The file or folder, and the choice with its ``#``; empty where nothing is chosen.
    """
    base, choice = _divided(path.name)
    if not choice or os.path.lexists(path):
        return path, choice
    named = path.with_name(without_box(path.name))
    return named if os.path.lexists(named) else path.with_name(base), choice


def without_box(name: str) -> str:
    """A name without the box that it chooses; what else it chooses stays.

    Args:
        name: name of a file.

    Returns:
        The name that chooses no box.

    Example:
        >>> without_box("a.tif#box=0:2x:x:"), without_box("a.zarr#level=1,box=:x2:3")
        ('a.tif', 'a.zarr#level=1')
    """
    base, choice = _divided(name)
    kept = [part for part in choice[1:].split(",") if not part.startswith(BOX)]
    return base + ("#" + ",".join(kept) if choice and any(kept) else "") if choice else name


def box_text(path: Path) -> str | None:
    """The box that a path chooses, as it is written.

    Args:
        path: path of an image.

    Returns:
        Text such as ``0:200x:x:``; None where no box is chosen. Several boxes are joined by commas,
        and so are none that can be read.
    """
    choice = _divided(path.name)[1]
    found = [part[len(BOX) :] for part in choice[1:].split(",") if part.startswith(BOX)]
    return ",".join(found) if found else None


def _divided(name: str) -> tuple[str, str]:
    """A name without what is chosen, and the choice with its ``#``."""
    match = SELECTION.fullmatch(name)
    return (name, "") if match is None else (match[1] or match[3], match[2] or match[4])


def suffix(path: Path | str) -> str:
    """The known suffix of a file name, without what is chosen of it.

    Args:
        path: path or name.

    Returns:
        Suffix in lower case with its dot; empty where none is known.

    Example:
        >>> suffix("scan.NII.GZ"), suffix("notes.txt"), suffix("a.zarr#level=1")
        ('.nii.gz', '', '.zarr')
    """
    name = _whole_name(path).lower()
    return next((s for s in SUFFIXES if name.endswith(s) and len(name) > len(s)), "")


def stem(path: Path | str) -> str:
    """File name without its image suffix; other dots stay.

    Args:
        path: path or name.

    Returns:
        The name without folders and suffix.

    Example:
        >>> stem("a/b.v2.nii.gz"), stem("x.tif"), stem("plain")
        ('b.v2', 'x', 'plain')
    """
    name = _whole_name(path)
    known = suffix(name)
    return name[: -len(known)] if known else Path(name).stem


def _whole_name(path: Path | str) -> str:
    """File name without what is chosen of the file."""
    return _divided(Path(path).name)[0]


def case_id(path: Path | str) -> str:
    """Id of the case that a file belongs to: its stem in composed Unicode (NFC).

    A folder of DICOM slices gives its whole name. This is the only place where ids are made. Some
    file systems and archives keep ``é`` as two characters; the same file then has two spellings.

    Args:
        path: path or name.

    Returns:
        The id.

    Example:
        >>> case_id("a/Zu\u0308rich.tif") == "Z\u00fcrich"
        True
    """
    whole = not suffix(path) and is_dicom_folder(path)
    return unicodedata.normalize("NFC", _whole_name(path) if whole else stem(path))


@contextlib.contextmanager
def as_text(path: Path) -> Iterator[str]:
    """Give a path as UTF-8 text, for libraries that take no other.

    Args:
        path: existing file or folder.

    Yields:
        The path; where it is no UTF-8, another name of the same file or folder, which is held open.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        handle = os.open(path, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
    else:
        yield os.fspath(path)


def is_folder(path: Path | str) -> bool:
    """Whether an image of this name is a folder.

    Args:
        path: path or name.

    Returns:
        True for the suffixes of FOLDERS.

    Example:
        >>> is_folder("scan.ome.zarr"), is_folder("scan.tif")
        (True, False)
    """
    return suffix(path) in FOLDERS


def format_suffix(path: Path | str) -> str:
    """The suffix of the format of an image, also of a folder of DICOM slices.

    Args:
        path: path of the image; of a name without a known suffix the disk is asked.

    Returns:
        As :func:`suffix`; ``.dcm`` for a folder of DICOM slices.
    """
    return suffix(path) or (".dcm" if is_dicom_folder(path) else "")


LOOKED_AT = 16
"""Files of a folder that are opened, to see whether they are DICOM."""


def is_dicom_folder(path: Path | str) -> bool:
    """Whether a path is a folder of DICOM slices: files with DICOM's mark, and no other images.

    Args:
        path: any path.

    Returns:
        False for files, and for folders that hold an image of another format.
    """
    path = split_selection(Path(path))[0]
    if not os.path.isdir(path) or suffix(path) in FOLDERS:
        return False
    try:
        with os.scandir(path) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.name != _INDEX]
    except OSError:
        return False
    if any(suffix(name) not in ("", ".dcm") for name in names):
        return False
    paths = (Path(path, name) for name in names)
    return any(map(_is_dicom, itertools.islice(filter(os.path.isfile, paths), LOOKED_AT)))


_INDEX = "DICOMDIR"
"""Name of an index of DICOM files, which is DICOM and no image."""


def _is_dicom(path: Path) -> bool:
    """Whether a regular file has DICOM's mark behind its first 128 bytes."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder.

    Args:
        folder: a folder.

    Returns:
        Files with DICOM's mark, by name, without an index of them.
    """
    names = sorted(os.listdir(folder))
    paths = [folder / n for n in names if not n.startswith(".") and n != _INDEX]
    return [path for path in paths if _is_dicom(path)]


def is_image(path: Path | str) -> bool:
    """Whether a file name is that of an image.

    Args:
        path: path or name.

    Returns:
        True for a known suffix, but for dotfiles such as the ``._x`` that macOS leaves behind.
    """
    return bool(suffix(path)) and not Path(path).name.startswith(".")
