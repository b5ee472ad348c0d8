"""What can be wrong with a file, in words that a user can act on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.records import UserError

T = TypeVar("T")

AGAIN = "The file is incomplete or damaged: copy, download or export it again"


class FileError(UserError):
    """A file that cannot be used, with what is wrong and what to do: the parts of a :class:`pipeline.records.Fault`."""

    def __init__(self, path: Path, problem: str, cure: str = AGAIN) -> None:
        super().__init__(f"{path}: {problem}. {cure}.")
        self.path, self.problem, self.cure = path, problem, cure

    def __reduce__(self) -> tuple:
        return FileError, (self.path, self.problem, self.cure)


def guarded(path: Path, action: Callable[[], T]) -> T:
    """Run a decoder; whatever it raises becomes a FileError, because codecs raise anything for a damaged file."""
    try:
        if path.stat().st_size == 0 and not path.is_dir():
            raise FileError(path, "is empty (0 bytes)")
        return action()
    except FileError:
        raise
    except MemoryError:
        raise FileError(path, "announces more pixels than fit into memory", "Check its header, or cut it into smaller pieces") from None
    except OSError as error:
        raise FileError(path, *_os_problem(path, error)) from None
    except Exception as error:
        raise FileError(path, f"cannot be decoded: {type(error).__name__}: {str(error)[:300]}") from None


def _os_problem(path: Path, error: OSError) -> tuple[str, str]:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"is a symbolic link to {os.readlink(path)}, which does not exist", "Mend or remove the link"
    if isinstance(error, FileNotFoundError):
        return "does not exist", "Check the path"
    if error.errno == errno.ELOOP:
        return "is a symbolic link that leads back to itself", "Mend or remove the link"
    if isinstance(error, PermissionError):
        return "may not be read", "Give this user the right to read it"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "cannot be opened: too many files are open at a time", "Raise that limit, e.g. with ulimit -n 4096"
    if isinstance(error, IsADirectoryError):
        return "is a folder", "Name a file"
    return f"cannot be read to its end: {error}"[:400], AGAIN


def wrong_axes(path: Path, shape: tuple[int, ...], dims: int) -> FileError:
    found, wanted = ("an image", "a volume") if dims == 3 else ("a volume or a series", "an image")
    size = "x".join(map(str, shape))
    return FileError(path, f"is {found} ({size}) where {wanted} is needed", f"Set data.dims, or give {wanted} with {dims} space axes")
