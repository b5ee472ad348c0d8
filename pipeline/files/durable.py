"""Files that are whole or absent: written beside their place, flushed to the disk, renamed; and
JSON on top of that.
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
    """A file that could not be written, in words: its path, why, bytes needed and free, what is
    left, the way out.
    """

    def __str__(self) -> str:
        return str(self.strerror)


@contextlib.contextmanager
def whole(path: Path, need: int = 0) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; afterwards ``path`` is the complete new
    file, or untouched after an error.

    What is made there may also be a folder; a folder that ``path`` was is moved aside first, so
    that ``path`` is whole or absent. The bytes reach the disk before the name does (fsync of file,
    rename, fsync of folder). Raises DiskError where the disk is full or may not be written, with
    the bytes that are ``need``ed (0: not known), and UserError where something else than a file
    would be replaced.
    """
    ending = suffix(path) or path.suffix
    temp = path.with_name(
        f"{_PREFIX}{_HOST}-{os.getpid()}-{secrets.token_hex(4)}{ending if len(ending) < LONGEST_ENDING else ''}"
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
        with contextlib.suppress(
            OSError
        ):  # on a disk that fails nothing can be taken away; sweep does it later
            _remove(temp)
        _open_temps.discard(temp.name)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder in ``folder`` for files of this process; gone afterwards, or where the process
    is killed by the next :func:`sweep`.
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
"""Bytes of an ending that a temporary name keeps: libraries go by it."""


@contextlib.contextmanager
def named(path: Path, need: int = 0, temp: Path | None = None) -> Iterator[None]:
    """Turn an error of writing ``path`` (by way of ``temp``) into a DiskError in words; errors of
    other files stay as they are.
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
            w in own or (temp is not None and w.startswith(f"{temp}{os.sep}")) or _above(w, path)
            for w in where
        ):
            raise
        raise _in_words(path, error, need, temp) from None


def _above(found: str, path: Path) -> bool:
    return any(found == os.fspath(p) for p in path.parents)


def _in_words(path: Path, error: OSError, need: int, temp: Path | None) -> DiskError:
    number = error.errno or (_real_reason(temp) if temp is not None else 0)
    done = _bytes_of(temp) if temp is not None else 0
    reason = os.strerror(number) if number else str(error)
    bytes_needed = f", {need} bytes are needed" if need else ""
    free = free_bytes(path)
    bytes_free = "" if free is None else f", {free} are free"
    left = "; the file was not changed" if temp is not None else ""
    return DiskError(
        number,
        f"{path}: {reason} after {done} bytes{bytes_needed}{bytes_free}{left}."
        f" {_way_out(path, number)}.",
    )


def _way_out(path: Path, number: int) -> str:
    folder = path.parent
    ways = {
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
    ways |= {errno.EPERM: ways[errno.EACCES], errno.ENFILE: ways[errno.EMFILE]}
    ways |= {errno.ENOSPC: f"Free space in {folder} and run again"}
    ways |= {errno.ENOENT: f"{folder} was taken away meanwhile: run again"}
    return ways.get(number, f"Look after {folder} and its disk, and run again")


def _real_reason(temp: Path) -> int:
    """Why nothing can be added to a file: numpy and libraries on it tell of a short write without
    its reason. 0 where something can.
    """
    try:
        with open(temp / ".room" if temp.is_dir() else temp, "ab", buffering=0) as stream:
            for _ in range(2):  # the first may fill the last bytes
                stream.write(bytes(2**16))
    except OSError as error:
        return error.errno or 0
    return 0


def _bytes_of(temp: Path) -> int:
    try:
        return sum(p.lstat().st_size for p in (temp.rglob("*") if temp.is_dir() else [temp]))
    except OSError:
        return 0


def free_bytes(path: Path) -> int | None:
    """Bytes that this user can still write where ``path`` is or would be; None where the disk does
    not say.
    """
    try:
        found = os.statvfs(nearest(path))
    except (OSError, ValueError):
        return None
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def require_room(folder: Path, need: int, advice: str) -> str | None:
    """A warning where fewer bytes are free than files will take; DiskError where the disk certainly
    cannot hold them.
    """
    free = free_bytes(folder)
    if free is None or need <= free:
        return None
    text = f"{folder}: {need} bytes are needed for what will be written, {free} are free. {advice}"
    if keeps_every_byte(folder):
        raise DiskError(errno.ENOSPC, text)
    return text


PLAIN = frozenset({"ext2", "ext3", "ext4", "xfs", "jfs", "tmpfs", "ramfs", "vfat", "exfat"})
"""File systems on which a byte takes a byte: others compress, or are a server's of which nothing is
known.
"""


def keeps_every_byte(path: Path) -> bool:
    """Whether what lies at ``path`` takes as much of its disk as it has bytes; False where that is
    not known.
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
    """The path itself, or the closest folder around it that is there."""
    return next((p for p in (path, *path.absolute().parents) if os.path.exists(p)), Path("/"))


def require_writable(option: str, folder: Path) -> None:
    """Raise UserError where nothing can be made in ``folder``, which need not be there yet."""
    if reason := refused(folder):
        shown = f"{option} {folder}" if option else str(folder)
        raise UserError(
            f"{shown} may not be written ({reason}). Choose another folder, or make it writable."
        )


def refused(path: Path) -> str:
    """Why nothing can be made in the folder ``path``, which need not be there yet; empty where
    something can.

    Found by making a file without a name, of which nothing stays.
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
        with tempfile.TemporaryFile(dir=there):  # on Linux it never has a name
            pass
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # says nothing about the folder
            raise
        return error.strerror or str(error)
    except ValueError as error:
        return f"no path: {error}"
    return "" if os.access(there, os.W_OK | os.X_OK) else "no permission"


ROOM = 300
"""Bytes of a path that are kept for what is written below a folder."""


def _require_replaceable(path: Path) -> None:
    """Raise UserError where ``path`` is a folder that is no image, or a pipe, a socket or a device:
    none of them was made here.
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
    for inner in path.rglob("*") if path.is_dir() else ():
        _sync(inner)
    _sync(path)


def _replace(temp: Path, path: Path) -> None:
    """A folder cannot take the place of a folder in one step."""
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
    """Write ``data``, whole or not at all."""
    with whole(path, len(data)) as temp:
        temp.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with line ends as they are, whole or not at all; bytes of a file name
    that are no text as ``\\udcXX``.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, obj: Any) -> None:
    """Write ``obj`` as JSON, whole or not at all; NaN and infinity become null, numpy numbers,
    paths and dataclasses what they look like.

    A file name that is no text holds its bytes as ``\\udcXX``, which is an escape of JSON: it is
    read back as the same path.
    """
    write_text(path, json.dumps(_plain(obj), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(obj: Any) -> Any:
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
    """Remove what a killed writer left anywhere below ``folder``, and return it.

    Files that a live process is writing stay.

    With ``deep`` off only in ``folder`` itself. A temporary file of another machine is taken as
    left behind after a day.
    """
    removed = []
    for temp in sorted((folder.rglob if deep else folder.glob)(f"{_PREFIX}*")):
        if temp.name not in _open_temps and _abandoned(temp):
            _remove(temp)
            removed.append(temp)
    return removed


def _abandoned(temp: Path) -> bool:
    match = re.match(rf"{re.escape(_PREFIX)}([0-9a-f]{{8}})-(\d+)-", temp.name)
    if match is None:
        return False
    if match[1] == _HOST and (int(match[2]) == os.getpid() or not _alive(int(match[2]))):
        return True
    with contextlib.suppress(OSError):
        return time.time() - temp.stat().st_mtime > 86400
    return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    check_regular(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


WHOLE = 2**24
"""Bytes up to which :func:`checksum` takes in a whole file."""

SAMPLES, SAMPLE = 128, 2**16
"""Of a larger file: so many blocks of so many bytes, the first and the last among them, evenly
spread.
"""


def checksum(path: Path) -> str:
    """A sum by which damage shows: of all bytes of a file of up to 16 MiB, else of its length and
    of 8 MiB that are spread over it.
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
