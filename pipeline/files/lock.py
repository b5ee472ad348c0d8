"""One owner for a folder: a lock that ends with its process, and says who holds it.

The lock is ``flock`` on a small file, in which the owner's process, host, start and command stand
for others to read. The kernel gives it up when the process ends, however it ends; worker processes
that were forked meanwhile do not keep it. A file with an owner's facts that nobody holds is what a
killed process left: it is taken over, and said.

On NFS, Linux makes ``flock`` a lock of the server, which all hosts see (kernel 2.6.12 and later,
version 4 or a running lock manager); a share mounted with ``local_lock=flock`` or
``local_lock=all`` keeps apart only the processes of one host. When a host dies, an NFS server frees
its locks after the lease of about 90 seconds. Where the file system has no locks at all (some
Lustre mounts), the facts alone decide: an owner on another host counts as alive, and two processes
that start within the same moment are not kept apart.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shlex
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.files.durable import named
from pipeline.records import UserError

logger = logging.getLogger(__name__)

NAME = ".lock"
"""File in a folder that one process at a time may own."""

POLL = 0.1
"""Seconds between two tries while waiting."""

UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

_held: set[int] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The process that holds a lock: its number, its host, its start in local time, and its command
    line.
    """

    pid: int
    host: str
    since: str
    command: str

    def __str__(self) -> str:
        words = f"process {self.pid} on {self.host}, since {self.since} ({self.command})"
        return words.replace("\n", "\\n")  # a name in the command may hold a line feed


class BusyError(UserError):
    """Another process holds the lock.

    ``owner`` is None in the moment before it has written who it is.
    """

    def __init__(self, path: Path, owner: Owner | None) -> None:
        who = "another process" if owner is None else str(owner)
        super().__init__(
            f"{path.parent} belongs to {who}. Wait until it is done, or stop it first."
        )
        self.path, self.owner = path, owner


Wait = Callable[[BusyError, float], None]
"""Called between two tries with who is in the way and the seconds waited so far; what it raises
ends the waiting.
"""


@contextlib.contextmanager
def held(path: Path, wait: Wait | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` (made with its folder where missing, never removed).

    Raises BusyError where another has it and nobody waits.
    """
    handle = _acquire(path, wait)
    _held.add(handle)
    try:
        yield
    finally:
        _held.discard(handle)
        os.ftruncate(handle, 0)
        os.close(handle)


def owner(path: Path) -> str | None:
    """Who holds the lock file ``path``, in words; None where nobody does. Nothing is made or
    changed.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
    except (OSError, ValueError):  # not there, or not ours to see
        return None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        left = _read(handle)
        if left is None:  # nobody, or in the moment before the owner has written who it is
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return str(left)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return None if _gone(left) else str(left)
        return None
    finally:
        os.close(handle)


def is_foreign(path: Path) -> bool:
    """Whether something lies at ``path`` that no lock of this package is: neither empty nor an
    owner's facts.
    """
    if not os.path.isfile(path):
        return os.path.lexists(path)
    try:
        return path.stat().st_size > 0 and not isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return True
    except OSError:  # not ours to see: taking it will say so
        return False


def _acquire(path: Path, wait: Wait | None) -> int:
    began = time.monotonic()
    while True:
        if os.path.lexists(path) and not os.path.isfile(path):
            raise UserError(
                f"{path} should be the lock of {path.parent}, and is no file. Move it away, or"
                " choose another folder."
            )
        with named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with named(path):
                taken = _take(handle, path)
            if taken:
                return handle
            busy = BusyError(path, _read(handle)) if _still_there(handle, path) else None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if busy is None:
            continue
        if wait is None:
            raise busy
        wait(busy, time.monotonic() - began)
        time.sleep(POLL)


def _take(handle: int, path: Path) -> bool:
    """Lock the open file and write the owner into it; False where another has it, or where the
    folder was renamed meanwhile.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        left = _read(handle)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        left = _read(handle)
        if left is not None and not _gone(left):
            return False
    if not _still_there(handle, path):
        return False
    if left is not None:
        logger.info(f"{path.parent}: taken over from {left}, which ended without giving it back")
    _write(handle)
    return True


def _still_there(handle: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def _gone(owner: Owner) -> bool:
    """Whether the owner is a process of this host that has ended; of other hosts nothing is known."""
    if owner.host != socket.gethostname():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # alive, and another user's
        pass
    return False


def _write(handle: int) -> None:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    owner = Owner(
        pid=os.getpid(),
        host=socket.gethostname(),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        command=command,
    )
    os.ftruncate(handle, 0)
    data, done = json.dumps(asdict(owner)).encode(), 0
    while done < len(data):  # a full disk takes a part of it
        done += os.pwrite(handle, data[done:], done)
    os.fsync(handle)


def _read(handle: int) -> Owner | None:
    try:
        owner = Owner(**json.loads(os.pread(handle, 1 << 16, 0)))
    except (ValueError, TypeError, RecursionError):  # empty, or just being written
        return None
    sound = (
        type(owner.pid) is int
        and 0 < owner.pid < 2**31
        and all(isinstance(t, str) for t in (owner.host, owner.since, owner.command))
    )
    return owner if sound else None


def _let_go() -> None:
    """In a forked child: its copies of the handles would keep the locks after the owner's death."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
