"""Files that are whole or absent: written beside their place, flushed to the disk, renamed; and JSON on top of that."""

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
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.files.errors import check_regular, guarded
from pipeline.files.names import suffix

_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_PREFIX = ".tmp-"
_open_temps: set[str] = set()


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; afterwards ``path`` is the complete new file, or untouched after an error.

    What is made there may also be a folder; a folder that ``path`` was is moved aside first, so that ``path`` is whole or absent. The bytes reach the disk before the name does (fsync of file, rename, fsync of folder). Raises OSError that says how far
    it came when the disk is full.
    """
    ending = suffix(path) or path.suffix
    temp = path.with_name(f"{_PREFIX}{_HOST}-{os.getpid()}-{secrets.token_hex(4)}{ending}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _open_temps.add(temp.name)
    try:
        yield temp
        _sync_all(temp)
        _replace(temp, path)
        _sync(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        done = temp.stat().st_size if temp.exists() else 0
        why = f"{path}: {error.strerror} after {done} bytes; the file was not changed. Free space in {path.parent} and run again."
        raise OSError(error.errno, why) from None
    finally:
        _remove(temp)
        _open_temps.discard(temp.name)


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
    with whole(path) as temp:
        temp.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with line ends as they are, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, obj: Any) -> None:
    """Write ``obj`` as JSON, whole or not at all; NaN and infinity become null, numpy numbers, paths and dataclasses what they look like."""
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


def read_json(path: Path) -> Any:
    """Content of a JSON file; FileError where it is missing or not JSON."""
    return guarded(path, lambda: json.loads(path.read_text(encoding="utf-8")))


def sweep(folder: Path, deep: bool = True) -> list[Path]:
    """Remove what a killed writer left anywhere below ``folder``, and return it. Files that a live process is writing stay.

    With ``deep`` off only in ``folder`` itself. A temporary file of another machine is taken as left behind after a day.
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
"""Of a larger file: so many blocks of so many bytes, the first and the last among them, evenly spread."""


def checksum(path: Path) -> str:
    """A sum by which damage shows: of all bytes of a file of up to 16 MiB, else of its length and of 8 MiB that are spread over it."""
    size = check_regular(path).st_size
    with path.open("rb") as stream:
        if size <= WHOLE:
            return f"crc32:{zlib.crc32(stream.read()):08x}"
        total = zlib.crc32(str(size).encode())
        for n in range(SAMPLES):
            stream.seek(n * (size - SAMPLE) // (SAMPLES - 1))
            total = zlib.crc32(stream.read(SAMPLE), total)
    return f"crc32/{SAMPLES}x{SAMPLE}:{total:08x}"
