"""File names of images: their formats, and the id of the case that they belong to."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (
    ".ome.zarr",
    ".zarr",
    ".nii.gz",
    ".nii",
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

READ_ONLY = (".gif", ".bmp")
"""Formats that can only be read."""

WRITABLE = tuple(s for s in SUFFIXES if s not in READ_ONLY)
"""Formats that can be written."""


def suffix(path: Path | str) -> str:
    """The known suffix of a file name.

    Args:
        path: path or name.

    Returns:
        Suffix in lower case with its dot; empty where none is known.

    Example:
        >>> suffix("scan.NII.GZ"), suffix("notes.txt")
        ('.nii.gz', '')
    """
    name = Path(path).name.lower()
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
    name = Path(path).name
    known = suffix(name)
    return name[: -len(known)] if known else Path(name).stem


def case_id(path: Path | str) -> str:
    """Id of the case that a file belongs to: its stem in composed Unicode (NFC).

    This is the only place where ids are made. Some file systems and archives keep ``é`` as two
    characters; the same file then has two spellings.

    Args:
        path: path or name.

    Returns:
        The id.

    Example:
        >>> case_id("a/Zu\u0308rich.tif") == "Z\u00fcrich"
        True
    """
    return unicodedata.normalize("NFC", stem(path))


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


def is_image(path: Path | str) -> bool:
    """Whether a file name is that of an image.

    Args:
        path: path or name.

    Returns:
        True for a known suffix, but for dotfiles such as the ``._x`` that macOS leaves behind.
    """
    return bool(suffix(path)) and not Path(path).name.startswith(".")
