"""Atomic writing: files are written beside their final path, flushed to disk, then renamed.

JSON on top of that, free space, write permission and checksums.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.files.errors import check_regular
from pipeline.files.names import FOLDERS, suffix
from pipeline.records import UserError

_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_PREFIX = ".tmp-"
_open_temps: set[str] = set()


class DiskError(OSError):
    """A file that could not be written.

    The message gives its path, the reason, bytes needed and free, what is left, and a suggestion.
    """

    def __str__(self) -> str:
        return str(self.strerror)


@contextlib.contextmanager
def whole(path: Path, need: int = 0) -> Iterator[Path]:
    """Write a file or folder atomically, through a temporary path beside it.

    On leaving the context ``path`` is the complete new file, or untouched after an error. A folder
    may be made as well; an existing folder at ``path`` is moved aside first, so that ``path`` is
    whole or absent. The bytes reach the disk before the name does (fsync of file, rename, fsync of
    folder).

    Args:
        path: file or folder to write; its parent folder is made where missing.
        need: bytes that will be written, for the error message; 0: not known.

    Yields:
        Temporary path to write to, with the suffix of ``path`` if it is below LONGEST_ENDING.

    Raises:
        DiskError: where the disk is full or may not be written.
        UserError: where something other than a file or an image folder would be replaced.
    """
    ending = suffix(path) or path.suffix
    temp = path.with_name(
        f"{_PREFIX}{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
        f"{ending if len(ending) < LONGEST_ENDING else ''}"
    )
    _open_temps.add(temp.name)
    try:
        with named(path, need, temp):
            _require_replaceable(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temp
            _sync_all(temp)
            _replace(temp, path)
            _sync(path.parent)
    finally:
        # A failing disk may not delete either; remove_stale_temps does it later.
        with contextlib.suppress(OSError):
            _remove(temp)
        _open_temps.discard(temp.name)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Make a folder for temporary files of this process and remove it afterwards.

    Where the process is killed, the next :func:`remove_stale_temps` removes it.

    Args:
        folder: where to make it.

    Yields:
        Path of the new folder.

    Raises:
        DiskError: where it cannot be made.
    """
    path = folder / f"{_PREFIX}{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    _open_temps.add(path.name)
    try:
        with named(path):
            path.mkdir(parents=True)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _open_temps.discard(path.name)


LONGEST_ENDING = 32
"""A temporary name keeps a suffix shorter than this (characters): libraries go by it."""


@contextlib.contextmanager
def named(path: Path, need: int = 0, temp: Path | None = None) -> Iterator[None]:
    """Turn an OSError of writing ``path`` into a DiskError; errors of other files stay as they are.

    Args:
        path: file that is written inside the context.
        need: bytes that it will have, for the message; 0: not known.
        temp: temporary path that is written first; None: ``path`` is written in place.

    Yields:
        Nothing; the context covers the writing.

    Raises:
        DiskError: for an OSError of ``path``, ``temp``, or a parent folder.
    """
    own = {os.fspath(p) for p in (path, path.parent, temp) if p is not None}
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        where = {
            os.fsdecode(f) for f in (error.filename, error.filename2) if isinstance(f, str | bytes)
        }
        if where and not any(
            w in own
            or (temp is not None and w.startswith(f"{temp}{os.sep}"))
            or _is_parent(w, path)
            for w in where
        ):
            raise
        raise _disk_error(path, error, need, temp) from None


def _is_parent(found: str, path: Path) -> bool:
    """Whether ``found`` is a folder that ``path`` lies in."""
    return any(found == os.fspath(p) for p in path.parents)


def _disk_error(path: Path, error: OSError, need: int, temp: Path | None) -> DiskError:
    """The DiskError for an OSError of writing ``path``."""
    number = error.errno or (_write_errno(temp) if temp is not None else 0)
    done = _written_bytes(temp) if temp is not None else 0
    reason = os.strerror(number) if number else str(error)
    bytes_needed = f", {need} bytes are needed" if need else ""
    free = free_bytes(path)
    bytes_free = "" if free is None else f", {free} are free"
    left = "; the file was not changed" if temp is not None else ""
    return DiskError(
        number,
        f"{path}: {reason} after {done} bytes{bytes_needed}{bytes_free}{left}."
        f" {_advice(path, number)}.",
    )


def _advice(path: Path, number: int) -> str:
    """What the user can do about the error ``number`` (errno)."""
    folder = path.parent
    advice = {
        errno.EFBIG: (
            "Raise the limit of the size of files (ulimit -f), or use a disk that takes files of"
            " that size, and run again"
        ),
        errno.EROFS: f"{folder} is read-only: choose another folder",
        errno.EACCES: f"Give this user the right to write in {folder}, or choose another folder",
        errno.ENAMETOOLONG: (
            f"Its name has {len(os.fsencode(path.name))} bytes, its path {len(os.fsencode(path))}:"
            " choose a shorter one"
        ),
        errno.EMFILE: "Raise the limit of open files, e.g. with ulimit -n 4096, and run again",
        errno.EIO: (
            f"The disk of {folder} fails: look into the system's log, or choose another disk"
        ),
        errno.EDQUOT: f"Your quota is used up: free space in {folder}, and run again",
    }
    advice |= {errno.EPERM: advice[errno.EACCES], errno.ENFILE: advice[errno.EMFILE]}
    advice |= {errno.ENOSPC: f"Free space in {folder} and run again"}
    advice |= {errno.ENOENT: f"{folder} was taken away meanwhile: run again"}
    return advice.get(number, f"Look after {folder} and its disk, and run again")


def _write_errno(temp: Path) -> int:
    """The errno of appending to a file, 0 where it succeeds.

    numpy and libraries built on it report a short write without its reason.
    """
    try:
        with open(temp / ".room" if temp.is_dir() else temp, "ab", buffering=0) as stream:
            for _ in range(2):  # the first write may just fill the disk
                stream.write(bytes(2**16))
    except OSError as error:
        return error.errno or 0
    return 0


def _written_bytes(temp: Path) -> int:
    """Bytes of a file or of all files of a folder so far; 0 where it cannot be read."""
    try:
        return sum(p.lstat().st_size for p in (temp.rglob("*") if temp.is_dir() else [temp]))
    except OSError:
        return 0


def free_bytes(path: Path) -> int | None:
    """Free disk space for this user.

    Args:
        path: file or folder, which need not exist yet.

    Returns:
        Bytes that can still be written there; None where the file system does not say.
    """
    try:
        found = os.statvfs(nearest(path))
    except (OSError, ValueError):
        return None
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def require_room(folder: Path, need: int, advice: str) -> str | None:
    """Compare free disk space with what will be written.

    Args:
        folder: where the files will be written.
        need: their bytes.
        advice: what the user can do where they do not fit.

    Returns:
        A warning where fewer bytes are free but the file system may compress; None where they fit
        or free space is not known.

    Raises:
        DiskError: where the disk certainly cannot hold them.
    """
    free = free_bytes(folder)
    if free is None or need <= free:
        return None
    text = f"{folder}: {need} bytes are needed for what will be written, {free} are free. {advice}"
    if keeps_every_byte(folder):
        raise DiskError(errno.ENOSPC, text)
    return text


PLAIN = frozenset({"ext2", "ext3", "ext4", "xfs", "jfs", "tmpfs", "ramfs", "vfat", "exfat"})
"""File systems on which a byte takes a byte.

Others compress, or belong to a server of which nothing is known.
"""


def keeps_every_byte(path: Path) -> bool:
    """Whether files on this file system take at least as much space as they have bytes.

    Args:
        path: file or folder, which need not exist yet.

    Returns:
        True for the file systems of PLAIN; False for others, and where it is not known.
    """
    try:
        device = os.stat(nearest(path)).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    halves = [line.partition(b" - ") for line in lines]
    return any(
        mount.split()[2].decode() == wanted and kind.split()[0].decode() in PLAIN
        for mount, _, kind in halves
        if kind
    )


def nearest(path: Path) -> Path:
    """Closest existing ancestor of a path.

    Args:
        path: file or folder.

    Returns:
        The path itself where it exists, else its nearest parent that does.
    """
    return next((p for p in (path, *path.absolute().parents) if os.path.exists(p)), Path("/"))


def require_writable(option: str, folder: Path) -> None:
    """Check that files can be created in a folder.

    Args:
        option: command line option that names the folder, for the message; empty: none.
        folder: folder, which need not exist yet.

    Raises:
        UserError: where nothing can be created in it.
    """
    if reason := refused(folder):
        shown = f"{option} {folder}" if option else str(folder)
        raise UserError(
            f"{shown} may not be written ({reason}). Choose another folder, or make it writable."
        )


def refused(path: Path) -> str:
    """Find out why files cannot be created in a folder, by creating one without a name.

    Args:
        path: folder, which need not exist yet.

    Returns:
        The reason in words; empty where files can be created.

    Raises:
        OSError: where too many files are open, which says nothing about the folder.
    """
    try:
        if b"\0" in os.fsencode(path):
            return "a name with a zero byte"
        there = nearest(path)
        limits = os.pathconf(there, "PC_NAME_MAX"), os.pathconf(there, "PC_PATH_MAX")
        if any(len(os.fsencode(part)) > limits[0] for part in path.parts):
            return f"a name of more than {limits[0]} bytes"
        if len(os.fsencode(path.absolute())) > limits[1] - ROOM:
            return f"a path that leaves no room for the files in it; {limits[1]} bytes are the most"
        entry = next((p for p in (path, *path.absolute().parents) if os.path.lexists(p)), there)
        if not os.path.isdir(entry):
            return (
                f"{entry} is {'a file' if os.path.exists(entry) else 'a link that leads nowhere'}"
            )
        with tempfile.TemporaryFile(dir=there):  # O_TMPFILE on Linux: it never has a name
            pass
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # says nothing about the folder
            raise
        return error.strerror or str(error)
    except ValueError as error:
        return f"no path: {error}"
    return "" if os.access(there, os.W_OK | os.X_OK) else "no permission"


ROOM = 300
"""Bytes of the longest path that are reserved for names below a folder."""


def _require_replaceable(path: Path) -> None:
    """Raise UserError for a path that must not be replaced.

    That is a folder that is no image, a pipe, a socket or a device: none of them was made here.
    """
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):
        return
    if stat.S_ISDIR(mode) and suffix(path) not in FOLDERS:
        raise UserError(
            f"{path} is a folder where a file is to be written. Move it away, or choose another"
            " place."
        )
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
        raise UserError(
            f"{path} is no file but a pipe, a socket or a device. Move it away, or choose another"
            " place."
        )


def _sync_all(path: Path) -> None:
    """Flush a file, or a folder with all that it holds, to the disk."""
    for inner in path.rglob("*") if path.is_dir() else ():
        _sync(inner)
    _sync(path)


def _replace(temp: Path, path: Path) -> None:
    """Rename ``temp`` to ``path``; a folder cannot replace a folder in one step."""
    if not path.is_dir():
        os.replace(temp, path)
        return
    old = temp.with_name(f"{temp.name}.old")
    os.replace(path, old)
    os.replace(temp, path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically.

    Args:
        path: file to write.
        data: its content.

    Raises:
        DiskError: where it cannot be written.
    """
    with whole(path, len(data)) as temp:
        temp.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 atomically, line ends as they are.

    Args:
        path: file to write.
        text: its content; bytes of a file name that are no text are written as ``\\udcXX``.

    Raises:
        DiskError: where it cannot be written.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, obj: Any) -> None:
    """Write an object as JSON atomically.

    Args:
        path: file to write.
        obj: plain data, dataclasses, paths, numpy arrays and scalars; NaN and infinity become null.
            A file name that is no text holds its bytes as ``\\udcXX``, which is a JSON escape: it
            is read back as the same path.

    Raises:
        DiskError: where it cannot be written.
    """
    write_text(path, json.dumps(_plain(obj), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(obj: Any) -> Any:
    """Data that JSON can hold."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: _plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple | set | frozenset):
        return [_plain(value) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    if callable(tolist := getattr(obj, "tolist", None)):  # numpy arrays and scalars
        return _plain(tolist())
    return None if isinstance(obj, float) and not math.isfinite(obj) else obj


def remove_stale_temps(folder: Path, deep: bool = True) -> list[Path]:
    """Remove temporary files and folders that killed writers left behind.

    Those of running processes stay. A temporary file of another host counts as stale after a day.

    Args:
        folder: where to search.
        deep: search its subfolders, too.

    Returns:
        The paths that were removed.
    """
    removed = []
    for temp in sorted((folder.rglob if deep else folder.glob)(f"{_PREFIX}*")):
        if temp.name not in _open_temps and _is_stale(temp):
            _remove(temp)
            removed.append(temp)
    return removed


def _is_stale(temp: Path) -> bool:
    """Whether the writer of a temporary file has ended, or may have: other hosts get a day."""
    match = re.match(rf"{re.escape(_PREFIX)}([0-9a-f]{{8}})-(\d+)-", temp.name)
    if match is None:
        return False
    if match[1] == _HOST and (int(match[2]) == os.getpid() or not _is_running(int(match[2]))):
        return True
    with contextlib.suppress(OSError):
        return time.time() - temp.stat().st_mtime > 86400
    return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256(path: Path) -> str:
    """SHA-256 of a file.

    Args:
        path: regular file.

    Returns:
        Hexadecimal digest of its bytes.

    Raises:
        FileError: where it is a pipe, a socket or a device.
        OSError: where it cannot be read.
    """
    check_regular(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


WHOLE = 2**24
"""Largest file, in bytes, of which :func:`checksum` reads every byte."""

SAMPLES, SAMPLE = 128, 2**16
"""Blocks of a larger file that :func:`checksum` reads, and bytes of each.

They are spread evenly; the first and the last block of the file are among them.
"""


def checksum(path: Path) -> str:
    """Fast checksum to detect a damaged file.

    It covers all bytes of a file of up to 16 MiB (WHOLE), else its length and 8 MiB that are spread
    over it.

    Args:
        path: regular file.

    Returns:
        CRC-32 in hexadecimal, with its method: ``crc32:...`` or ``crc32/128x65536:...``.

    Raises:
        FileError: where it is a pipe, a socket or a device.
        OSError: where it cannot be read.
    """
    size = check_regular(path).st_size
    with path.open("rb") as stream:
        if size <= WHOLE:
            return f"crc32:{zlib.crc32(stream.read()):08x}"
        total = zlib.crc32(str(size).encode())
        for n in range(SAMPLES):
            stream.seek(n * (size - SAMPLE) // (SAMPLES - 1))
            total = zlib.crc32(stream.read(SAMPLE), total)
    return f"crc32/{SAMPLES}x{SAMPLE}:{total:08x}"
