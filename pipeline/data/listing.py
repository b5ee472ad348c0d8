"""Image files in a folder, in natural order, and files that are channels of one image."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import files
from pipeline.records import remember

SHOWN = 200
"""Characters of a header that a message shows."""


JUNK = frozenset({"thumbs.db", "desktop.ini", "icon\r", "__macosx"})
"""Lower-case names of files that file managers leave behind; skipped silently like any dotfile."""


PIXELS = {".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz", ".raw.bz2")}
"""Endings of the pixels beside a header, of the same stem; they are no files of their own."""


CHANNEL = re.compile(r"(.+)_(\d{4})", re.DOTALL)


def list_folder(folder: Path, odd_folders: bool = False) -> tuple[list[Path], list[Path]]:
    """Images and other files of a folder, each in natural order, without junk and sub-folders.

    Args:
        folder: a folder; a missing one is empty.
        odd_folders: whether a folder with the name of an image file counts as a file.

    Returns:
        Images and other files; a broken link counts as a file.

    Raises:
        FileError: where the folder may not be listed.
    """
    if not os.path.isdir(folder):
        return [], []
    try:
        everything = folder_entries(folder)
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
        remember_name(path)
    entries.sort(key=natural)
    found = [p for p in entries if files.is_image(p) or files.is_dicom_folder(p)]
    pixels = {f"{files.stem(p)}{end}" for p in found for end in PIXELS.get(files.suffix(p), ())}
    chosen = set(found)
    return found, [p for p in entries if p not in chosen and p.name not in pixels]


def folder_entries(folder: Path) -> list[Path]:
    """Paths directly in a folder.

    Args:
        folder: any path.

    Returns:
        Files and folders; none where the path is no folder.
    """
    return list(folder.iterdir()) if os.path.isdir(folder) else []


def remember_name(path: Path) -> None:
    """Register a name with a line feed, and its id, to be escaped where they are printed.

    Args:
        path: a file; names without a line feed need nothing.
    """
    if "\n" in path.name:
        remember(path.name)
        remember(files.case_id(path))


def _is_entry(path: Path, odd_folders: bool) -> bool:
    """Whether a path is a file, or a folder that is one image."""
    return (
        not os.path.isdir(path)
        or files.is_folder(path)
        or (odd_folders and files.is_image(path))
        or files.is_dicom_folder(path)
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


def is_empty(path: Path) -> bool:
    """Whether a path is a file of no bytes.

    Args:
        path: any path.

    Returns:
        False for what is no file.
    """
    return path.is_file() and path.stat().st_size == 0


def first_names(names: Sequence[str]) -> str:
    """The first ten names, for a message.

    Args:
        names: any number of names.

    Returns:
        Text with commas, and dots where there are more.
    """
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def images(folder: Path, itself: bool = False) -> list[Path]:
    """The images directly in a folder.

    Args:
        folder: a folder; a missing one is empty.
        itself: whether it may be an image itself, or a file.

    Returns:
        Files, and folders that are one image (Zarr, DICOM), in natural order.

    Raises:
        FileError: where the folder may not be listed.
    """
    if itself and (
        not os.path.isdir(folder) or files.is_folder(folder) or files.is_dicom_folder(folder)
    ):
        return [folder]
    return list_folder(folder)[0]


def channel_groups(found: Mapping[str, Path]) -> dict[str, dict[int, Path]] | None:
    """Group files ``ID_0000, ID_0001, ...`` by id.

    Args:
        found: files by their stem.

    Returns:
        ``{ID: {number: path}}``; None unless all stems are of this form and every ID has its
        ``_0000``.
    """
    matches = [(match, path) for name, path in found.items() if (match := CHANNEL.fullmatch(name))]
    table: dict[str, dict[int, Path]] = defaultdict(dict)
    for match, path in matches:
        table[match[1]][int(match[2])] = path
    complete = 0 < len(matches) == len(found) and all(0 in numbers for numbers in table.values())
    return dict(table) if complete else None
