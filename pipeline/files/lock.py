"""A lock on a folder that ends with its process and names its owner.

The lock is ``flock`` on a small file that holds the owner's process, host, start and command for
others to read. The kernel releases it when the process ends, however it ends; worker processes that
were forked meanwhile do not keep it. A file that names an owner but is not locked was left by a
killed process: the lock is taken over, with a log line.

On NFS, Linux makes ``flock`` a lock of the server, which all hosts see (kernel 2.6.12 and later,
version 4 or a running lock manager); a share mounted with ``local_lock=flock`` or
``local_lock=all`` separates only the processes of one host. When a host dies, an NFS server
releases its locks after the lease of about 90 seconds. Where the file system has no locks at all
(some Lustre mounts), the file's content alone decides: an owner on another host counts as running,
and two processes that start within the same moment are not separated.
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
"""Name of the lock file in a folder that one process at a time may own."""

POLL = 0.1
"""Seconds between two tries while waiting."""

UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""Errors of ``flock`` on file systems without locks."""

_held: set[int] = set()
"""File descriptors of the locks that this process holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The process that holds a lock."""

    pid: int
    """Process id."""
    host: str
    """Host name."""
    since: str
    """Start of the lock in local time, ``YYYY-MM-DD HH:MM:SS``."""
    command: str
    """Command line."""

    def __str__(self) -> str:
        words = f"process {self.pid} on {self.host}, since {self.since} ({self.command})"
        return words.replace("\n", "\\n")  # a name in the command may hold a line feed


class BusyError(UserError):
    """Another process holds the lock.

    Args:
        path: lock file.
        owner: the process that holds it; None in the moment before it has written who it is.
    """

    def __init__(self, path: Path, owner: Owner | None) -> None:
        who = "another process" if owner is None else str(owner)
        super().__init__(
            f"{path.parent} belongs to {who}. Wait until it is done, or stop it first."
        )
        self.path, self.owner = path, owner


Wait = Callable[[BusyError, float], None]
"""Called between two tries with the error that names the owner and the seconds waited so far.

An exception that it raises ends the waiting.
"""


@contextlib.contextmanager
def held(path: Path, wait: Wait | None = None) -> Iterator[None]:
    """Hold a lock for the duration of the context.

    Args:
        path: lock file, made with its folder where missing, never removed.
        wait: called between two tries while another process holds the lock; None: do not wait.

    Yields:
        Nothing; the lock is held until the context is left.

    Raises:
        BusyError: where another process holds it and ``wait`` is None.
        UserError: where ``path`` is something other than a file.
        DiskError: where the lock file cannot be written.
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
    """Find out who holds a lock, without making or changing anything.

    Args:
        path: lock file, which need not exist.

    Returns:
        The owner in words; None where nobody holds it.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
    except (OSError, ValueError):  # missing, or no permission
        return None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        previous = _read_owner(handle)
        if previous is None:  # no owner, or one that has not written its description yet
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return str(previous)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return None if _has_ended(previous) else str(previous)
        return None
    finally:
        os.close(handle)


def is_foreign(path: Path) -> bool:
    """Whether a path holds something that is no lock of this package.

    Args:
        path: where a lock file would be.

    Returns:
        True for what is neither empty nor an owner's description; False where nothing is there, or
        where it may not be read.
    """
    if not os.path.isfile(path):
        return os.path.lexists(path)
    try:
        return path.stat().st_size > 0 and not isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return True
    except OSError:  # no permission: locking it will say so
        return False


def _acquire(path: Path, wait: Wait | None) -> int:
    """Open and lock the file, waiting where ``wait`` says so; the file descriptor."""
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
                taken = _try_lock(handle, path)
            if taken:
                return handle
            busy = BusyError(path, _read_owner(handle)) if _is_same_file(handle, path) else None
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


def _try_lock(handle: int, path: Path) -> bool:
    """Lock the open file and write the owner into it.

    False where another process has it, or where the folder was renamed meanwhile.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        previous = _read_owner(handle)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        previous = _read_owner(handle)
        if previous is not None and not _has_ended(previous):
            return False
    if not _is_same_file(handle, path):
        return False
    if previous is not None:
        logger.info(
            f"{path.parent}: taken over from {previous}, which ended without giving it back"
        )
    _write_owner(handle)
    return True


def _is_same_file(handle: int, path: Path) -> bool:
    """Whether ``path`` still leads to the open file."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def _has_ended(owner: Owner) -> bool:
    """Whether the owner was a process of this host that has ended; False for other hosts."""
    if owner.host != socket.gethostname():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs, as another user
        pass
    return False


def _write_owner(handle: int) -> None:
    """Write this process into the open lock file."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    owner = Owner(
        pid=os.getpid(),
        host=socket.gethostname(),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        command=command,
    )
    os.ftruncate(handle, 0)
    data, done = json.dumps(asdict(owner)).encode(), 0
    while done < len(data):  # a full disk may take only a part
        done += os.pwrite(handle, data[done:], done)
    os.fsync(handle)


def _read_owner(handle: int) -> Owner | None:
    """The owner that the open lock file names; None where it names none."""
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


def _close_in_child() -> None:
    """Close a forked child's copies of the file descriptors, which would keep the locks."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
